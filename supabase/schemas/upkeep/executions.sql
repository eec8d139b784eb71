-- Upkeep of executions and links: work that is due because time has passed, one owner at a time.

-- Accounts with work that is due, one row per owner, the owner with the most first. p_held_back: only accounts with
-- opens that were held back.
create function private.due_by_owner(p_held_back boolean, p_now timestamptz) returns table (accounts uuid[])
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_held_back then
    return query
    select array_agg(distinct q.account_id) from public.trade_execution_queue q
    where q.status = 'retrying' and q.next_attempt_at <= p_now and q.attempt = 0 group by q.user_id
      order by count(distinct q.account_id) desc;
    return;
  end if;
  return query
  select array_agg(a.id) from public.trading_accounts a where a.id in (
    select q.account_id from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= p_now
    union
    select q.account_id from public.trade_execution_queue q
    where q.in_flight and q.status = 'queued' and q.send_before < p_now - interval '5 s'
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.replan_at <= p_now
    union
    select l.follower_account_id from public.position_links l
    where l.wanted_lots is not null and l.wanted_until <= p_now
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.order_due_at <= p_now
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.levels_due_at <= p_now
    union
    select n.account_id from private.net_ledgers n where n.replan_at <= p_now
    union
    select a.id from public.trading_accounts a where a.copy_state = 'flattening'
    union
    select c.follower_account_id from public.copiers c where c.existing_until is not null
    union
    select w.follower_account_id from private.symbol_waits w
    union
    select unnest(private.with_followers(array(select f.account_id from private.quarantine f
      where f.retry_at <= p_now)))
  )
  group by a.user_id order by count(*) desc;
end $$;

-- Locks those of these accounts that no other transaction is planning now, and returns them.
create function private.lock_free(p_accounts uuid[]) returns uuid[]
language plpgsql security definer set search_path = '' as $$
begin
  perform private.check_start();
  return array(select account_id from private.plan_locks where account_id = any (p_accounts)
    order by account_id for no key update skip locked);
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
  perform private.end_level_waits(p_accounts, p_now);
  for v_account in select a.id from public.trading_accounts a
    where a.id = any (p_accounts) and a.copy_state = 'flattening' loop
    v_new := v_new || private.plan_flatten(v_account, p_now);
  end loop;
  return v_new || private.decide_waiting_existing(p_accounts, p_now)
    || private.decide_waiting_symbols(p_accounts, p_now);
end $$;

-- The due work for these accounts of one owner: all at once, or part by part if the planner fails or has failed
-- recently.
create function private.maintain_owner(p_accounts uuid[]) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_accounts uuid[] := private.lock_free(p_accounts);
  v_now timestamptz := clock_timestamp();
  v_new bigint[];
  v_whole boolean;
begin
  if cardinality(v_accounts) = 0 then return; end if;
  v_whole := not exists (select 1 from private.quarantine f where f.account_id = any (v_accounts));
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
    v_new := private.keep_up_isolated(v_accounts, v_now) || private.retry_quarantine(v_accounts, v_now);
  end if;
  perform private.offer_isolated(v_new, null, clock_timestamp());
end $$;

-- The due work of all accounts: retries, deadlines, waiting links, flattening. Called by maintain() and by heartbeats;
-- concurrent runs are safe. It goes owner by owner, the one with the most work first. Locks are held to the end, so
-- this order keeps no account locked while another owner's larger work is done.
create function private.maintain_executions(p_held_back boolean default false) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_accounts uuid[];
begin
  for v_accounts in select d.accounts from private.due_by_owner(p_held_back, clock_timestamp()) d loop
    begin
      perform private.maintain_owner(v_accounts);
    exception when others then  -- undone for this owner only; the next run tries again
      raise warning 'maintain_executions: one owner''s waits for the next run: % (%)', sqlerrm, sqlstate;
    end;
  end loop;
end $$;

-- Takes the plan locks for a report that tells symbols, before anything else: a plan that just missed them has ended
-- then, and its wait is seen. All locks that planning after the report may need are taken in this one call.
create function private.lock_for_symbols(p_account uuid, p_state jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if exists (select from private.symbol_waits w where w.follower_account_id = p_account)
    or exists (select from private.symbol_waits w where w.master_account_id = p_account) then
    perform private.lock_accounts(private.with_neighbours(p_account));
  elsif p_state -> 'symbols_complete' = 'true'
    or jsonb_path_exists(p_state, '$.symbols[*].contract_size ? (@ != null)') then
    perform private.lock_accounts(case
      when exists (select from public.protection_rules r where r.account_id = p_account and r.enabled)
        then private.with_neighbours(p_account)
      else array[p_account] end);
  end if;
end $$;

-- Decides what waits for symbols or quotes of this account, which has just told some. The caller has called
-- lock_for_symbols(); of followers that were locked by nobody in time, the next upkeep decides.
create function private.decide_told_symbols(p_account uuid) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_followers uuid[] := array(
    select w.follower_account_id from private.symbol_waits w where w.follower_account_id = p_account
    union
    select w.follower_account_id from private.symbol_waits w where w.master_account_id = p_account);
begin
  if cardinality(v_followers) = 0 then return; end if;
  v_followers := private.lock_free(v_followers);
  perform private.offer_isolated(private.decide_waiting_symbols(v_followers, clock_timestamp()), null,
    clock_timestamp());
exception when others then  -- the report stands; the upkeep decides, part by part
  if not private.is_fault(sqlstate) then raise; end if;
  raise warning 'decide_told_symbols: left to the upkeep, for %: %', sqlstate, sqlerrm;
end $$;
