-- Links and executions that are due because time has passed.

-- Overdue executions. Handed out, past their deadline, and the agent is gone: the outcome is unknown. Opens that were
-- never handed out: expired. Returns the links of the expired ones.
create function private.judge_overdue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'unknown', updated_at = p_now
  where x.account_id = any (p_accounts) and x.status = 'queued' and x.offered_at is not null
    and x.send_before < p_now - interval '5 s'
    and not exists (
      select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
      where a.account_id = x.account_id and a.epoch = x.epoch and v.lease_expires_at > p_now);
  for q in
    update public.trade_execution_queue x set status = 'expired', reason = 'follower_offline', finalized_at = p_now,
      updated_at = p_now
    where x.account_id = any (p_accounts) and x.status = 'queued' and x.offered_at is null and private.opens(x)
      and x.queued_at < p_now - interval '5 s'
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id;
  end loop;
  return v_links;
end $$;

-- Live links that must be planned because of the time or their account's state; for a netting account's surplus, the
-- link that left it.
create function private.links_due(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(select l.id from public.position_links l
  where l.follower_account_id = any (p_accounts) and l.state = 'live'
    and (l.replan_at <= p_now or l.wanted_until <= p_now or l.order_due_at <= p_now or l.levels_due_at <= p_now
      or exists (select 1 from private.net_ledgers n
        where n.account_id = l.follower_account_id and n.symbol = l.symbol and n.replan_at <= p_now)
      or exists (select 1 from public.trading_accounts a
        where a.id = l.follower_account_id and a.copy_state = 'flattening')))
  || array(select n.surplus_link_id from private.net_ledgers n
    where n.account_id = any (p_accounts) and n.surplus_lots <> 0 and n.replan_at <= p_now);
end $$;
