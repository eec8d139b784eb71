-- set_trading: how operators stop and start all trading.

-- Operators: {"state": "on|monitor|off", "reason"} -> {"state", "reason", "changed_at", "settled"}. settled false: a
-- plan kept its locks too long. The switch applies to everything planned from now on, and the upkeep does the rest.
create function private.set_trading(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' set lock_timeout = '3s' set jit = off as $$
declare
  v_state text := p_request ->> 'state';
  v_reason text := coalesce(private.text_of(p_request, 'reason', 200), '');
  v_switch public.trading_switch;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_trading', array['state', 'reason']);
  if coalesce(v_state, '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'set_trading: state must be on, monitor or off',
      hint = 'monitor: nothing is opened anywhere, closes go on. off: frozen, closes included.';
  end if;
  if v_state <> 'on' and length(v_reason) < 3 then
    raise exception using errcode = 'TC303',
      message = format('set_trading: %s needs a reason of 3 to 200 characters', v_state),
      hint = 'All users read it.';
  end if;
  update public.trading_switch t set state = v_state, reason = v_reason, settled = false,
    changed_at = case when t.state = v_state then t.changed_at else clock_timestamp() end
  where t.one;
  begin
    perform private.sweep_trading(v_state);
  exception when lock_not_available or deadlock_detected then
    raise warning 'set_trading: an account is being planned now; the upkeep does the rest';
  end;
  select * into v_switch from public.trading_switch t where t.one;
  insert into private.doorbells as d (topic, changed_at, due)
  select 'user:' || a.user_id, clock_timestamp(), true from public.trading_accounts a where a.removed_at is null
  group by a.user_id
  union all select 'operators', clock_timestamp(), true
  on conflict (topic) do update set due = true, changed_at = excluded.changed_at where not d.due;
  return jsonb_build_object('state', v_switch.state, 'reason', v_switch.reason, 'changed_at',
    private.rfc3339(v_switch.changed_at),
    'settled', v_switch.settled);
end $$;

create function public.set_trading(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_trading(p_request) $$;
comment on function public.set_trading(jsonb) is
  'Operators: switches trading for everybody: on, monitor (closes only) or off (frozen), with a reason that users read.
Request:
- state (text; required; on, monitor or off): monitor opens nothing anywhere; off is frozen, closes included
- reason (text; required unless state is on; 3 to 200 characters): all users read it
Answer:
- state (text; on, monitor or off): the new state
- reason (text): the reason
- changed_at (time): when it was changed
- settled (boolean): false: an account was being planned; the switch applies all the same, and the upkeep does the rest
Errors: TC001 TC107 TC301 TC303
Example: {"state": "monitor", "reason": "News at 14:30"}
-> {"state": "monitor", "reason": "News at 14:30", "changed_at": "2026-12-01T09:30:00.000000Z", "settled": true}';

revoke all on function public.set_trading(jsonb) from public, anon;
grant execute on function public.set_trading(jsonb), private.set_trading(jsonb) to authenticated, service_role;
