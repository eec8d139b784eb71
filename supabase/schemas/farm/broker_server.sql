-- broker_servers: the servers that accounts may connect to. Agents take addresses from this table only, so that a user
-- cannot make a VPS connect to a machine of the user's choice and report the response.

create function private.is_address(p_address text) returns boolean
language sql immutable
set search_path = ''
as $$
  select p_address ~ '^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}$'
    and substring(p_address from '[0-9]+$')::integer <= 65535
$$;
comment on function private.is_address(text) is 'Whether a text is exactly host:port or [IPv6]:port.';

create table public.broker_servers (
  platform text not null,
  server text not null,
  title text not null,
  address text,
  server_key text not null generated always as (private.plain_name(server)) stored,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (platform, server),
  constraint names_are_short check
    (length(platform) between 1 and 50 and length(server) between 1 and 100 and length(title) between 1 and 100),
  constraint address_is_host_and_port check (private.is_address(address))
);
comment on table public.broker_servers is
  'Servers that accounts may connect to. Operators maintain the list; users read platform, server and title.';
comment on column public.broker_servers.platform is 'The platform, a key of the setting "platforms".';
comment on column public.broker_servers.server is 'The broker''s server, as the platform names it.';
comment on column public.broker_servers.title is 'The name that people know it by.';
comment on column public.broker_servers.address is
  'The address for agents, host:port; only for platforms that cannot find a server by its name.';
comment on column public.broker_servers.server_key is
  'The server name without differences of case and blanks: a server is listed once.';
comment on column public.broker_servers.created_at is 'When it was first listed.';
comment on column public.broker_servers.updated_at is 'When the row last changed.';

-- connect_account, account_credentials: the server of an account
create unique index broker_server_is_listed_once on public.broker_servers (platform, server_key);
alter table public.broker_servers enable row level security;
create policy "everybody sees what may be connected" on public.broker_servers for select to authenticated using (true);
create trigger touch before update on public.broker_servers for each row execute function private.touch();

create function private.broker_server(p_platform text, p_server text) returns public.broker_servers
language sql stable
set search_path = ''
as $$
  select b from public.broker_servers b where b.platform = p_platform and b.server_key = private.plain_name(p_server)
$$;
comment on function private.broker_server(text, text) is
  'The listed server of this name, in any spelling; null: it is not listed.';

create function private.require_broker_server(p_function text, p_platform text,
  p_server text) returns public.broker_servers
language plpgsql stable
set search_path = ''
as $$
declare
  v_server public.broker_servers := private.broker_server(p_platform, p_server);
begin
  if v_server.server is null then
    raise exception using errcode = 'TC220',
      message = format('%s: server %s is not listed for platform %s', p_function, left(p_server, 100), p_platform),
      hint = 'Choose a server from the table broker_servers. An operator can add one with save_broker_server.';
  end if;
  return v_server;
end
$$;
comment on function private.require_broker_server(text, text, text) is
  'The listed server of this name; TC220 if there is none.';

create function private.platform_rules(p_platform text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
  v_rules jsonb := private.setting('platforms') -> p_platform;
begin
  if v_rules is null then
    raise exception using errcode = 'TC001', message = format('platform: %s is not a platform', p_platform),
      hint = format('Use one of: %s.', (select string_agg(k, ', ' order by k)
        from jsonb_object_keys(private.setting('platforms')) k));
  end if;
  return v_rules;
end
$$;
comment on function private.platform_rules(text) is
  'What the setting "platforms" says about a platform, such as {"password": true}; TC001 if there is no such platform.';

-- Key words that say where to connect, or with which rights. Agents ignore such settings in any case.
create function private.is_addressing(p_key text) returns boolean
language sql immutable
set search_path = ''
as $$
  with written as (
    select lower(regexp_replace(normalize(p_key, NFKC), '([a-z0-9])([A-Z])', '\1_\2', 'g')) as words
  ), spelt as (
    select regexp_split_to_array(w.words, '[^a-z0-9]+') as words,
      regexp_replace(w.words, '[^a-z0-9]+', '', 'g') as joined from written w
  )
  select s.words && '{ip,ips,ipv4,ipv6,port,ports,url,urls,uri,uris,dsn,domain,domains,gateway,gateways,server,servers,'
      'peer,peers,remote,dns}'
    or s.joined ~ 'addr|host|endpoint|socket|token|proxy|proxies|apikey|credential'
    or s.joined ~ '(server|broker|paper|base|api|remote|tcp|udp|https?|wss?|web|target|bridge|terminal)'
      '(ip|port|url|uri|dns)'
    or s.joined ~ '^(ip|ipv4|ipv6|ports?|urls?|uris?)[0-9]*$'
  from spelt s
$$;
comment on function private.is_addressing(text) is
  'Whether a key in an account''s settings names an address, host, port, token or the like.';

-- Values that are addresses: scheme://…, IPv4 and IPv6 with or without a port, localhost, host.name:port. "1.5",
-- "12:30", "EURUSD.m" and times are not.
create function private.is_address_like(p_value text) returns boolean
language sql immutable
set search_path = ''
as $$
  select v ~ '[a-z][a-z0-9+.-]*://'
    or v ~ ':' and pg_input_is_valid(v, 'inet')
    or v ~ '^([^@[:space:]]+@)?([0-9]{1,3}(\.[0-9]{1,3}){3}|localhost\.?)(:[0-9]{1,5})?(/.*)?$'
    or v ~ '^([^@[:space:]]+@)?\[[0-9a-f:.%]*:[0-9a-z:.%]*\](:[0-9]{1,5})?(/.*)?$'
    or v ~ '^([^@[:space:]]+@)?[[:alnum:]]([[:alnum:]_-]*\.)+[[:alnum:]-]*[[:alpha:]][[:alnum:]-]*\.?:[0-9]{1,5}(/.*)?$'
  from private.plain_name(p_value) v
$$;
comment on function private.is_address_like(text) is
  'Whether a value in an account''s settings looks like an address.';

create function private.refuse_addressing(p_function text, p_settings jsonb) returns void
language plpgsql immutable
set search_path = ''
as $$
declare
  v_named text;
begin
  select left(string_agg(distinct f.named, ', '), 200) into v_named
  from (
    select k #>> '{}' from jsonb_path_query(p_settings, 'strict $.** ? (@.type() == "object").keyvalue().key') k
    where private.is_addressing(k #>> '{}')
    union all
    select left(s #>> '{}', 50) from jsonb_path_query(p_settings, 'strict $.** ? (@.type() == "string")') s
    where private.is_address_like(s #>> '{}')
  ) f (named);
  if v_named is not null then
    raise exception using errcode = 'TC222',
      message = format('%s: settings may not name an address or a credential: %s', p_function, v_named),
      hint = 'Addresses come from the table broker_servers. Remove these keys and values from the settings.';
  end if;
end
$$;
comment on function private.refuse_addressing(text, jsonb) is
  'Raises TC222 if settings name an address, host, port or token, or contain an address as a value, at any depth.';

-- The agents log in again at the new address, as they do after a change of password.
create function private.readdress(p_platform text, p_server_key text) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid;
begin
  update public.trading_accounts a set revision = a.revision + 1
  where a.platform = p_platform and a.server_key = p_server_key and a.removed_at is null;
  for v_vps in
    select distinct s.vps_id from public.account_vps_assignments s join public.trading_accounts a on a.id = s.account_id
    where a.platform = p_platform and a.server_key = p_server_key
  loop
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end loop;
end
$$;
comment on function private.readdress(text, text) is 'Makes the agents log in again to every account of a server.';

-- The address is left out: only agents (account_credentials) and operators may read it.
grant select (platform, server, title) on public.broker_servers to authenticated;
grant select on public.broker_servers to service_role;
