-- set_preferences: how a person wants the pages shown.

create function private.set_preferences(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_zone text := private.text_of(p_request, 'time_zone', 100);
  v_theme text := private.text_of(p_request, 'theme', 20);
  v_tour text := private.text_of(p_request, 'tour', 20);
  v_kept public.user_preferences;
begin
  perform private.refuse_unknown(p_request, 'set_preferences', array['time_zone', 'theme', 'tour']);
  if v_zone is not null and not private.is_time_zone(v_zone) then
    raise exception using errcode = 'TC303',
      message = format('set_preferences: there is no time zone named %s', v_zone),
      hint = 'Give a name of the time zone database, such as Europe/Berlin.';
  elsif v_theme not in ('system', 'light', 'dark') then
    raise exception using errcode = 'TC303',
      message = format('set_preferences: theme is %s, but must be system, light or dark', v_theme),
      hint = 'system follows the device.';
  elsif v_tour not in ('open', 'left', 'done') then
    raise exception using errcode = 'TC303',
      message = format('set_preferences: tour is %s, but must be open, left or done', v_tour),
      hint = 'open shows the tour again.';
  end if;
  insert into public.user_preferences as p (user_id, time_zone, theme, tour)
  values (v_user, v_zone, coalesce(v_theme, 'system'), coalesce(v_tour, 'open'))
  on conflict (user_id) do update
  set time_zone = case when p_request ? 'time_zone' then v_zone else p.time_zone end,
    theme = coalesce(v_theme, p.theme), tour = coalesce(v_tour, p.tour)
  returning p.* into v_kept;
  return jsonb_build_object('time_zone', v_kept.time_zone, 'theme', v_kept.theme, 'tour', v_kept.tour);
end $$;

create function public.set_preferences(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_preferences(p_request) $$;
comment on function public.set_preferences(jsonb) is
  'Users: how the pages are shown to the caller. What the request leaves out stays as it is.
Request:
- time_zone (text; at most 100 characters): name of the time zone database, such as Europe/Berlin; null: UTC. Days of
  accounts begin in a new zone from the next day on
- theme (text; system, light or dark): light, dark, or as the device says
- tour (text; open, left or done): the tour of a new user
Answer:
- time_zone (text or null): as it is now; null: none is chosen, and UTC holds
- theme (text; system, light or dark): as it is now
- tour (text; open, left or done): as it is now
Errors: TC001 TC105 TC108 TC301 TC303
Example: {"time_zone": "Europe/Berlin", "theme": "dark"}
-> {"time_zone": "Europe/Berlin", "theme": "dark", "tour": "open"}';
revoke all on function public.set_preferences(jsonb) from public, anon;
grant execute on function public.set_preferences(jsonb), private.set_preferences(jsonb) to authenticated;
