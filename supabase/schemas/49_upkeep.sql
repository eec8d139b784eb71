-- Upkeep of executions and links: what heartbeats hand out, and what time itself changes.

-- Everything open of the accounts that a VPS works now, for vps_heartbeat. What nobody was offered yet is offered here.
create function private.outstanding_executions(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_unoffered bigint[];
  v_aside bigint[];
  v_rows jsonb;
begin
  if exists (select 1 from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= v_now and q.attempt = 0) then
    begin
      perform private.maintain_executions();  -- opens that were held back: their time is a matter of seconds
    exception when others then  -- the lease must be renewed all the same
      raise warning 'outstanding_executions: % (%)', sqlerrm, sqlstate;
    end;
  end if;
  v_aside := private.set_aside_executions();
  select array_agg(q.id) into v_unoffered
  from public.account_vps_assignments a
  join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
  where a.vps_id = p_vps and q.status = 'queued' and q.offered_at is null
    and (not private.opens(q) or q.queued_at > v_now - interval '5 s') and q.id <> all (v_aside);
  if v_unoffered is not null then
    perform private.offer_apart(v_unoffered, p_vps, v_now);
  end if;
  begin
    select coalesce(jsonb_agg(private.execution_json(q) order by q.priority, q.id), '[]') into v_rows
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.status in ('queued', 'executing', 'unknown') and q.offered_at is not null and q.id <> all (v_aside);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    v_rows := private.executions_apart(array(
      select q.id from public.account_vps_assignments a
      join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
      where a.vps_id = p_vps and q.status in ('queued', 'executing', 'unknown') and q.offered_at is not null and q.id <> all (v_aside)));
  end;
  return v_rows;
end $$;

create function private.cancel_requests(p_vps uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(q.id::text), '[]')
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.cancel_requested_at is not null);
end $$;

-- Symbols whose quotes an account's agent should report: those of open links and of its masters' open positions.
create function private.watched_symbols(p_account uuid) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(array_agg(distinct symbol), '{}') from (
      select l.symbol from public.position_links l where l.follower_account_id = p_account and l.state = 'live'
      union all
      select p.symbol from public.positions p where p.account_id = p_account and p.closed_at is null
      union all
      select w.name from public.copiers c cross join lateral private.symbols_of_existing(c) w
      where c.follower_account_id = p_account and c.existing_until is not null
    ) s);
end $$;

-- Whether the account's agent shall send another good snapshot: something is missing once, or the account is being flattened.
create function private.wants_snapshot(p_account uuid, p_copy_state text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_copy_state = 'flattening'
    or exists (select 1 from public.positions p where p.account_id = p_account and p.closed_at is null and p.absent_snapshots > 0);
end $$;

-- Whether the agent shall report the account's funds every second: something is open and a rule watches it.
create function private.watches_funds(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.protection_rules r where r.account_id = p_account and r.enabled)
    and exists (select 1 from public.positions p where p.account_id = p_account and p.closed_at is null);
end $$;

-- Accounts with something that time has changed, that no one else is planning at this moment.
create function private.lock_due(p_now timestamptz) returns uuid[]
language plpgsql security definer set search_path = '' as $$
declare
  v_due uuid[];
begin
  select array_agg(account_id) into v_due from (
    select q.account_id from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= p_now
    union
    select q.account_id from public.trade_execution_queue q
    where q.in_flight and q.status in ('queued', 'executing') and q.send_before < p_now - interval '5 s'
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.replan_at <= p_now
    union
    select l.follower_account_id from public.position_links l where l.wanted_lots is not null and l.wanted_until <= p_now
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.order_due_at <= p_now
    union
    select n.account_id from private.net_ledgers n where n.replan_at <= p_now
    union
    select a.id from public.trading_accounts a where a.copy_state = 'flattening'
    union
    select c.follower_account_id from public.copiers c where c.existing_until is not null
    union
    select unnest(private.with_followers(array(select f.account_id from private.faults f where f.retry_at <= p_now)))
  ) d;
  return array(select account_id from private.plan_locks where account_id = any (v_due) order by account_id for no key update skip locked);
end $$;

-- Offered, past its deadline, and its agent has gone: what became of it is unknown. Never offered and too late: expired.
create function private.judge_overdue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'unknown', updated_at = p_now
  where x.account_id = any (p_accounts) and x.status in ('queued', 'executing') and x.offered_at is not null and x.send_before < p_now - interval '5 s'
    and not exists (
      select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
      where a.account_id = x.account_id and a.epoch = x.epoch and v.lease_expires_at > p_now);
  for q in
    update public.trade_execution_queue x set status = 'expired', reason = 'follower_offline', finalized_at = p_now, updated_at = p_now
    where x.account_id = any (p_accounts) and x.status = 'queued' and x.offered_at is null and private.opens(x)
      and x.queued_at < p_now - interval '5 s'
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id;
  end loop;
  return v_links;
end $$;

-- Live links that time, or their account's state, asks to look at again; and for a netting account's surplus the link that left it.
create function private.links_due(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(select l.id from public.position_links l
  where l.follower_account_id = any (p_accounts) and l.state = 'live'
    and (l.replan_at <= p_now or l.wanted_until <= p_now or l.order_due_at <= p_now
      or exists (select 1 from private.net_ledgers n where n.account_id = l.follower_account_id and n.symbol = l.symbol and n.replan_at <= p_now)
      or exists (select 1 from public.trading_accounts a where a.id = l.follower_account_id and a.copy_state = 'flattening')))
  || array(select n.surplus_link_id from private.net_ledgers n
    where n.account_id = any (p_accounts) and n.surplus_lots <> 0 and n.replan_at <= p_now);
end $$;

create function private.keep_up(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.judge_overdue(p_accounts, p_now);
  v_new bigint[];
  v_account uuid;
begin
  v_links := coalesce(v_links, '{}') || private.links_due(p_accounts, p_now);
  v_new := coalesce(private.requeue(p_accounts, p_now), '{}') || coalesce(private.plan_again(v_links, p_now), '{}');
  for v_account in select a.id from public.trading_accounts a where a.id = any (p_accounts) and a.copy_state = 'flattening' loop
    v_new := v_new || private.plan_flatten(v_account, p_now);
  end loop;
  return v_new || private.decide_waiting_existing(p_accounts, p_now);
end $$;

-- What time changes: retries, deadlines, links that wait, flattening accounts. Called by maintain() and by heartbeats; safe to run at once.
-- All accounts at once, unless the planner fails on something, or did lately: then part by part.
create function private.maintain_executions() returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_accounts uuid[] := private.lock_due(clock_timestamp());
  v_now timestamptz := clock_timestamp();
  v_new bigint[];
  v_whole boolean;
begin
  if v_accounts is null or cardinality(v_accounts) = 0 then return; end if;
  v_whole := not exists (select 1 from private.faults f where f.account_id = any (v_accounts));
  if v_whole then
    begin
      v_new := private.keep_up(v_accounts, v_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      raise warning 'maintain_executions: part by part, for %: %', sqlstate, sqlerrm;
      v_whole := false;
    end;
  end if;
  if not v_whole then
    v_new := private.keep_up_apart(v_accounts, v_now) || private.retry_faults(v_accounts, v_now);
  end if;
  perform private.offer_apart(v_new, null, clock_timestamp());
end $$;
