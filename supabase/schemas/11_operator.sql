-- operators: who runs the farm. A table, because nothing in a token can be trusted to say so.

create table public.operators (
  user_id uuid primary key references auth.users (id) on delete cascade,
  granted_at timestamptz not null default now()
);
comment on table public.operators is 'Users who run the farm: they see every row, and move, drain and retire VPSes.';
comment on column public.operators.user_id is 'The user.';
comment on column public.operators.granted_at is 'When the right was given.';


-- Security definer: it is called in policies by users who may not read the table.
create function private.is_operator() returns boolean
language sql stable security definer
set search_path = ''
as $$ select exists (select from public.operators o where o.user_id = auth.uid()) $$;
comment on function private.is_operator() is 'Whether the caller is an operator.';

alter table public.operators enable row level security;
create policy "operators see operators, everybody sees himself" on public.operators for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));

create policy "operators see the settings" on public.system_config for select to authenticated
  using ((select private.is_operator()));


create function private.require_operator() returns void
language plpgsql stable
set search_path = ''
as $$
begin
  -- The service key is the owner of the project: what it may not do, nobody may.
  if coalesce(auth.role(), '') <> 'service_role' and not private.is_operator() then
    raise exception using errcode = 'TC107', message = 'only an operator may do this',
      hint = 'Ask an operator. The first one is made with: tradecopier operator grant EMAIL';
  end if;
end
$$;
comment on function private.require_operator() is 'Raises TC107 unless the caller is an operator or holds the service key.';


create function private.require_service() returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if coalesce(auth.role(), '') <> 'service_role' then
    raise exception using errcode = 'TC109', message = 'only the service key may do this',
      hint = 'Edge functions and the command line call it with the project''s secret key.';
  end if;
end
$$;
comment on function private.require_service() is 'Raises TC109 unless the caller holds the service key.';


-- Security definer: reads auth.users and writes operators, which no API role may.
create function private.grant_operator(p_email text) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid;
begin
  perform private.require_service();
  select u.id into v_user from auth.users u where lower(u.email) = lower(trim(p_email));
  if not found then
    raise exception using errcode = 'TC201', message = format('there is no user with the e-mail address %s', p_email),
      hint = 'Sign up first, then grant.';
  end if;
  if exists (select from public.vps_instances v where v.user_id = v_user) then
    raise exception using errcode = 'TC105', message = 'an agent cannot be an operator',
      hint = 'Use the e-mail address of a person.';
  end if;
  insert into public.operators (user_id) values (v_user) on conflict (user_id) do nothing;
  return jsonb_build_object('user_id', v_user);
end
$$;
comment on function private.grant_operator(text) is 'Makes the user with this e-mail address an operator. Service key only.';

create function public.grant_operator(p_email text) returns jsonb
language sql
set search_path = ''
as $$ select private.grant_operator(p_email) $$;
comment on function public.grant_operator(text) is 'Makes the user with this e-mail address an operator. Service key only.';


-- Security definer: system_config is written by nobody else.
create function private.set_setting(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_key text := p_request ->> 'key';
  v_value jsonb := p_request -> 'value';
  v_old jsonb;
begin
  perform private.require_operator();
  v_old := private.setting(v_key);
  if v_value is null or jsonb_typeof(v_value) <> jsonb_typeof(v_old) then
    raise exception using errcode = 'TC001',
      message = format('value of setting %s: expected a JSON %s', v_key, jsonb_typeof(v_old));
  end if;
  if jsonb_typeof(v_value) = 'number' and (v_value #>> '{}')::numeric <= 0 then
    raise exception using errcode = 'TC001', message = format('value of setting %s: must be greater than 0', v_key);
  end if;
  update public.system_config set value = v_value where key = v_key;
  return jsonb_build_object('key', v_key, 'value', v_value);
end
$$;
comment on function private.set_setting(jsonb) is 'Operators: {"key", "value"}; the JSON type must stay what it is.';

create function public.set_setting(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.set_setting(p_request) $$;
comment on function public.set_setting(jsonb) is 'Operators: {"key", "value"}; the JSON type must stay what it is.';


grant select on public.system_config, public.operators to authenticated, service_role;
grant execute on function private.is_operator() to authenticated;
grant execute on function private.grant_operator(text), public.grant_operator(text) to service_role;
grant execute on function private.set_setting(jsonb), public.set_setting(jsonb) to authenticated, service_role;
