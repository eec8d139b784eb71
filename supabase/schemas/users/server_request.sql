-- Finding a broker's server by name, and asking operators for one that is not listed.

create function private.search_servers(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_platform text := private.name_of(p_request, 'platform', 50);
  v_query text := coalesce(private.plain_name(private.name_of(p_request, 'query', 100)), '');
begin
  perform private.require_user();
  perform private.refuse_unknown(p_request, 'search_servers', array['platform', 'query']);
  perform private.platform_rules(v_platform);
  return jsonb_build_object('servers', coalesce((
    select jsonb_agg(jsonb_build_object('server', found.server, 'title', found.title) order by found.rank,
      found.server_key)
    from (
      select b.server, b.title, b.server_key,
        case when starts_with(b.server_key, v_query) then 0 else 1 end as rank
      from public.broker_servers b
      where b.platform = v_platform
        and (strpos(b.server_key, v_query) > 0 or strpos(private.plain_name(b.title), v_query) > 0)
      order by rank, b.server_key limit 20
    ) found), '[]'));
end $$;

create function public.search_servers(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.search_servers(p_request) $$;
comment on function public.search_servers(jsonb) is
  'Users: the listed servers of a platform whose name or title contains a text; 20 at most, best first.
Request:
- platform (text; required; a platform of the setting platforms): the platform
- query (text; at most 100 characters): part of the name, in any case; left out: all
Answer:
- servers (list of objects): each with server, its name, and title, what people call it
Errors: TC001 TC105 TC108 TC301
Example: {"platform": "mt5", "query": "broker"} -> {"servers": [{"server": "Broker-Demo", "title": "The broker"}]}';

create function private.request_server(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_platform text := private.name_of(p_request, 'platform', 50);
  v_name text := private.name_of(p_request, 'name', 100);
begin
  perform private.refuse_unknown(p_request, 'request_server', array['platform', 'name']);
  perform private.platform_rules(v_platform);
  if v_name is null then
    raise exception using errcode = 'TC001', message = 'request_server: name is required',
      hint = 'Give the server''s name as the terminal shows it, such as Broker-Live3.';
  end if;
  if (private.broker_server(v_platform, v_name)).server is not null then
    return jsonb_build_object('listed', true);
  end if;
  if (select count(*) from public.server_requests r where r.user_id = v_user) >= 50 and not exists (
    select from public.server_requests r
    where r.user_id = v_user and r.platform = v_platform and r.name_key = private.plain_name(v_name)) then
    raise exception using errcode = 'TC235',
      message = 'request_server: you have asked for 50 servers, which is as many as one person may',
      hint = 'Ask the operators for those that you need.';
  end if;
  insert into public.server_requests (user_id, platform, name) values (v_user, v_platform, v_name)
  on conflict on constraint asked_for_once do nothing;
  return jsonb_build_object('listed', false);
end $$;

create function public.request_server(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.request_server(p_request) $$;
comment on function public.request_server(jsonb) is
  'Users: asks the operators to list a broker''s server. Asking again changes nothing.
Request:
- platform (text; required; a platform of the setting platforms): the platform
- name (text; required; at most 100 characters): the server''s name, as the terminal shows it
Answer:
- listed (boolean): true: the server is listed already, nothing was asked for
Errors: TC001 TC105 TC108 TC235 TC301
Example: {"platform": "mt5", "name": "Broker-Live3"} -> {"listed": false}';
revoke all on function public.search_servers(jsonb), public.request_server(jsonb) from public, anon;
grant execute on function public.search_servers(jsonb), private.search_servers(jsonb), public.request_server(jsonb),
  private.request_server(jsonb)
to authenticated;
