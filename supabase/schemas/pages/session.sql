-- my_session: what every page shows around its content.

create function private.my_session(p_request jsonb) returns jsonb
language plpgsql stable security invoker set search_path = '' as $$
declare
  v_user uuid := private.page_user();
  v_kept public.user_preferences;
  v_switch public.trading_switch;
begin
  perform private.refuse_unknown(p_request, 'my_session', '{}');
  select p.* into v_kept from public.user_preferences p where p.user_id = v_user;
  select t.* into v_switch from public.trading_switch t where t.one;
  return jsonb_build_object(
    'server_time', private.server_time(),
    'user_id', v_user,
    'email', auth.jwt() ->> 'email',
    'operator', private.is_operator(),
    'preferences', jsonb_build_object('time_zone', v_kept.time_zone, 'theme', coalesce(v_kept.theme, 'system'),
      'tour', coalesce(v_kept.tour, 'open')),
    'trading', jsonb_build_object('state', v_switch.state, 'reason', v_switch.reason,
      'changed_at', private.rfc3339(v_switch.changed_at)),
    'unseen_alerts', (
      select jsonb_build_object('critical', count(*) filter (where a.severity = 'critical'),
        'warning', count(*) filter (where a.severity = 'warning'),
        'info', count(*) filter (where a.severity = 'info'))
      from public.alerts a where a.user_id = v_user and a.seen_at is null),
    'counts', jsonb_build_object(
      'accounts', (select count(*) from public.trading_accounts a where a.user_id = v_user and a.removed_at is null),
      'copiers', (select count(*) from public.copiers c where c.user_id = v_user and c.removed_at is null),
      'open_positions', (select count(*) from public.positions p where p.user_id = v_user and p.kind = 'position'
        and p.closed_at is null)));
end $$;

create function public.my_session(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.my_session(p_request) $$;
comment on function public.my_session(jsonb) is
  'Users: what every page of the dashboard shows around its content.
Request: none
Answer:
- server_time (time): the database''s clock
- user_id (uuid): the caller
- email (text or null): the caller''s address
- operator (boolean): whether the caller is an operator
- preferences (object): time_zone (text or null), theme and tour, as set_preferences keeps them
- trading (object): state (on, monitor or off), reason and changed_at of the switch for everybody
- unseen_alerts (object): number of the caller''s unseen alerts: critical, warning, info
- counts (object): number of the caller''s accounts, copiers and open_positions
Errors: TC001 TC105 TC108 TC301
Example: {} -> {"server_time": "2026-12-01T09:30:00.000000Z", "user_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02",
"email": "ann@example.com", "operator": false, "preferences": {"time_zone": "Europe/Berlin", "theme": "system",
"tour": "open"}, "trading": {"state": "on", "reason": "", "changed_at": "2026-12-01T09:30:00.000000Z"},
"unseen_alerts": {"critical": 0, "warning": 1, "info": 0}, "counts": {"accounts": 2, "copiers": 1,
"open_positions": 3}}';
revoke all on function public.my_session(jsonb) from public, anon;
grant execute on function public.my_session(jsonb), private.my_session(jsonb) to authenticated;
