-- Functions by which operators manage broker servers.

-- Security definer: nothing else may write broker_servers.
create function private.save_broker_server(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_platform text;
  v_server text;
  v_address text;
  v_known public.broker_servers;
  v_wants_address boolean;
  v_before text;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'save_broker_server', array['platform', 'server', 'title', 'address']);
  v_platform := private.name_of(p_request, 'platform', 50);
  v_server := private.name_of(p_request, 'server', 100);
  if v_platform is null or v_server is null then
    raise exception using errcode = 'TC001', message = 'save_broker_server: platform and server are required';
  end if;
  v_wants_address := coalesce((private.platform_rules(v_platform) -> 'address') = 'true', false);
  v_known := private.broker_server(v_platform, v_server);
  v_before := v_known.address;
  v_address := coalesce(private.text_of(p_request, 'address', 260), case when v_wants_address then v_known.address end);
  if v_address is null and v_wants_address or not private.is_address(v_address) then
    raise exception using errcode = 'TC303',
      message = format('save_broker_server: address is %s, but must be host:port with a port from 1 to 65535',
      coalesce(v_address, 'missing')),
        hint = 'Give the address at which agents reach the broker, such as 127.0.0.1:7000.';
  elsif v_address is not null and not v_wants_address then
    raise exception using errcode = 'TC303',
      message = format('save_broker_server: address is given, but %s finds its servers by name', v_platform),
      hint = 'Leave the address out.';
  end if;
  insert into public.broker_servers as b (platform, server, title, address)
  values (v_platform, coalesce(v_known.server, v_server),
    coalesce(private.name_of(p_request, 'title', 100), v_known.title, left(v_server, 100)), v_address)
  on conflict (platform, server) do update set title = excluded.title, address = excluded.address
  returning b.* into v_known;
  if v_known.address is distinct from v_before then
    perform private.readdress(v_platform, v_known.server_key);
  end if;
  return jsonb_build_object('platform', v_platform, 'server', v_known.server, 'title', v_known.title, 'address',
    v_known.address);
end
$$;
comment on function private.save_broker_server(jsonb) is
  'Operators: {"platform", "server", "title"?, "address"?} -> the row; lists a server, or changes its title or '
  'address.';

-- Security definer: it writes broker_servers.
create function private.remove_broker_server(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_server public.broker_servers;
  v_accounts bigint;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'remove_broker_server', array['platform', 'server']);
  v_server := private.require_broker_server('remove_broker_server', private.name_of(p_request, 'platform', 50),
    private.name_of(p_request, 'server', 200));
  select count(*) into v_accounts from public.trading_accounts a
  where a.platform = v_server.platform and a.server_key = v_server.server_key and a.removed_at is null;
  if v_accounts > 0 then
    raise exception using errcode = 'TC221',
      message = format('remove_broker_server: %s accounts are connected to %s', v_accounts, v_server.server),
      hint = 'Their users must remove them first. To move the broker, give its new address to save_broker_server.';
  end if;
  delete from public.broker_servers b where b.platform = v_server.platform and b.server = v_server.server;
  return jsonb_build_object('platform', v_server.platform, 'server', v_server.server);
end
$$;
comment on function private.remove_broker_server(jsonb) is
  'Operators: {"platform", "server"} -> {"platform", "server"}; refused while accounts are connected to it.';

-- Security definer: users may not read addresses.
create function private.list_broker_servers(p_request jsonb) returns jsonb
language plpgsql stable security definer
set search_path = ''
as $$
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'list_broker_servers', '{}');
  return jsonb_build_object('servers', (select coalesce(jsonb_agg(jsonb_build_object(
      'platform', b.platform, 'server', b.server, 'title', b.title, 'address', b.address,
      'accounts', (select count(*) from public.trading_accounts a
                   where a.platform = b.platform and a.server_key = b.server_key and a.removed_at is null))
                     order by b.platform, b.server), '[]')
    from public.broker_servers b));
end
$$;
comment on function private.list_broker_servers(jsonb) is
  'Operators: {} -> {"servers": […]}, with addresses and the number of connected accounts.';

create function public.save_broker_server(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.save_broker_server(p_request) $$;
comment on function public.save_broker_server(jsonb) is
  'Operators: lists a server that accounts may connect to, or changes its title or address.
Request:
- platform (text; required; a platform of the setting platforms): platform of the server
- server (text; required; at most 100 characters): broker''s server, as the platform names it
- title (text; at most 100 characters): name that people know it by; left out: unchanged, or the server''s name
- address (text; required where the platform requires one and none is stored; host:port with a port from 1 to 65535):
  address for agents; refused where the platform finds servers by name
Answer:
- platform (text): the platform
- server (text): the server, as listed
- title (text): its title
- address (text or null): its address
Errors: TC001 TC107 TC301 TC303
Example: {"platform": "mt5", "server": "Broker-Demo", "title": "The broker, practice"}
-> {"platform": "mt5", "server": "Broker-Demo", "title": "The broker, practice", "address": null}';

create function public.remove_broker_server(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.remove_broker_server(p_request) $$;
comment on function public.remove_broker_server(jsonb) is
  'Operators: removes a server from the list, if no account is connected to it.
Request:
- platform (text; required; a platform): platform of the server
- server (text; required; a listed server): the server to remove
Answer:
- platform (text): the platform
- server (text): the server that was removed
Errors: TC001 TC107 TC220 TC221 TC301
Example: {"platform": "mt5", "server": "Broker-Demo"} -> {"platform": "mt5", "server": "Broker-Demo"}';

create function public.list_broker_servers(p_request jsonb) returns jsonb
language sql stable
set search_path = ''
as $$ select private.list_broker_servers(p_request) $$;
comment on function public.list_broker_servers(jsonb) is
  'Operators: the servers that accounts may connect to, with addresses and numbers of accounts.
Request: none
Answer:
- servers (list of objects): sorted by platform and name
- servers[].platform, server, title (text): the server, and the name that people know it by
- servers[].address (text or null): address for agents; null: the platform finds the server by its name
- servers[].accounts (integer): number of connected accounts
Errors: TC001 TC107 TC301
Example: {}
-> {"servers": [{"platform": "mt5", "server": "Broker-Demo", "title": "The broker, practice", "address": null,
  "accounts": 3}]}';
grant execute on function
  private.save_broker_server(jsonb), public.save_broker_server(jsonb),
  private.remove_broker_server(jsonb), public.remove_broker_server(jsonb),
  private.list_broker_servers(jsonb), public.list_broker_servers(jsonb)
to authenticated, service_role;
