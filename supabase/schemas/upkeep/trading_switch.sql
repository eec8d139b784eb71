-- The global switch at work: when trading stops, executions that have not been sent are called back.

-- Applies the switch to all accounts. monitor: calls back unsent opens; off: calls back everything unsent; on: does the
-- closes that were missed. The caller has set the switch: every plan made before has ended, every later one reads the
-- new state.
create function private.sweep_trading(p_state text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array(select k.account_id from private.plan_locks k);
  v_now timestamptz := private.lock_accounts(v_accounts);
begin
  if p_state = 'on' then
    -- executions that were called back and not yet dropped go on
    update public.trade_execution_queue q set cancel_requested_at = null, updated_at = v_now
    where q.account_id = any (v_accounts) and q.in_flight and q.cancel_requested_at is not null
      and not private.opens(q);
  else
    perform private.withdraw(v_accounts, null, p_state = 'off',
      case p_state when 'off' then 'trading_stopped' else 'trading_monitor' end, v_now);
  end if;
  perform private.offer_isolated(private.plan_links_isolated(array(select l.id from public.position_links l
    where l.state = 'live'), v_now), null, clock_timestamp());
  update public.trading_switch t set settled = true where t.one and not t.settled;
end $$;

-- Upkeep: does what a change of the switch could not do because a plan kept its locks. It is the first of all parts,
-- because it waits for locks.
create function private.settle_trading() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_state text;
begin
  select t.state into v_state from public.trading_switch t where t.one and not t.settled for no key update;
  if found then
    perform private.sweep_trading(v_state);
  end if;
end $$;
