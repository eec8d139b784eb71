-- Functions for granting operators, and for changing settings.

-- Who would become an operator. An unconfirmed address is refused: anybody may have signed up with it. Security
-- definer: it reads auth.users, which no API role may.
create function private.operator_candidate(p_email text) returns jsonb
language plpgsql stable security definer
set search_path = ''
as $$
declare
  v_email text := left(trim(p_email), 320);
  v_found bigint;
  v_user record;
begin
  perform private.require_service();
  select count(*) into v_found from auth.users u where lower(u.email) = lower(v_email);
  select u.id, u.email, u.created_at, u.email_confirmed_at into v_user from auth.users u
  where lower(u.email) = lower(v_email);
  if v_found = 0 then
    raise exception using errcode = 'TC201', message = format('there is no user with the e-mail address %s', v_email),
      hint = 'Sign up first, then grant.';
  end if;
  -- single sign-on may add a second user with the same address
  if v_found > 1 then
    raise exception using errcode = 'TC218',
      message = format('there are %s users with the e-mail address %s', v_found, v_email),
      hint = 'In Auth, delete the user that is not meant, or give it another address.';
  end if;
  if exists (select from public.vps_instances v where v.user_id = v_user.id) then
    raise exception using errcode = 'TC105', message = 'an agent cannot be an operator',
      hint = 'Use the e-mail address of a person.';
  end if;
  if v_user.email_confirmed_at is null then
    raise exception using errcode = 'TC217',
      message = format('the e-mail address %s is not confirmed: anybody may have signed up with it', v_email),
      detail = v_user.id::text, hint = 'Let its owner open the link in the confirmation mail, then grant again.';
  end if;
  return jsonb_build_object('user_id', v_user.id, 'email', v_user.email, 'signed_up_at', v_user.created_at,
    'confirmed_at', v_user.email_confirmed_at,
    'operator', exists (select from public.operators o where o.user_id = v_user.id));
end
$$;
comment on function private.operator_candidate(text) is
  'Who has this e-mail address, and since when; raises what grant_operator raises (TC201, TC105, TC217, TC218). '
  'Service key only.';

-- Security definer: it writes operators, which no API role may.
create function private.grant_operator(p_email text, p_user_id uuid) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user jsonb := private.operator_candidate(p_email);
begin
  if p_user_id <> (v_user ->> 'user_id')::uuid then
    raise exception using errcode = 'TC218',
      message = format('the e-mail address %s belongs to another user than the one that was shown', v_user ->> 'email'),
      detail = v_user ->> 'user_id', hint = 'Check in Auth who it is now, then grant again.';
  end if;
  insert into public.operators (user_id) values ((v_user ->> 'user_id')::uuid) on conflict (user_id) do nothing;
  return v_user || '{"operator": true}';
end
$$;
comment on function private.grant_operator(text, uuid) is
  'Makes the user with this confirmed e-mail address an operator; with an ID, only if the address still belongs to '
  'that user. Service key only.';

create function public.operator_candidate(p_email text) returns jsonb
language sql stable
set search_path = ''
as $$ select private.operator_candidate(p_email) $$;
comment on function public.operator_candidate(text) is
  'Service key: who would become an operator by this e-mail address. Changes nothing.
Request:
- p_email (text; required; a confirmed address of one user who is no agent): the user''s e-mail address; case is ignored
Answer:
- user_id (uuid): the user
- email (text): the address, as given at sign-up
- signed_up_at (time): when the user signed up
- confirmed_at (time): when the address was confirmed
- operator (boolean): whether the user is already an operator
Errors: TC105 TC109 TC201 TC217 TC218
Example: {"p_email": "you@example.org"}
-> {"user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a01", "email": "you@example.org", "signed_up_at":
  "2026-11-30T08:00:00.123456+00:00",
"confirmed_at": "2026-11-30T08:02:00.123456+00:00", "operator": false}';

create function public.grant_operator(p_email text, p_user_id uuid default null) returns jsonb
language sql
set search_path = ''
as $$ select private.grant_operator(p_email, p_user_id) $$;
comment on function public.grant_operator(text, uuid) is
  'Service key: makes the user with this confirmed e-mail address an operator.
Request:
- p_email (text; required; a confirmed address of one user who is no agent): the user''s e-mail address; case is ignored
- p_user_id (uuid): the user that operator_candidate showed; another one is refused; left out or null: not compared
Answer:
- user_id (uuid): the user
- email (text): the address, as given at sign-up
- signed_up_at (time): when the user signed up
- confirmed_at (time): when the address was confirmed
- operator (boolean; true): the user is now an operator
Errors: TC105 TC109 TC201 TC217 TC218
Example: {"p_email": "you@example.org", "p_user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a01"}
-> {"user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a01", "email": "you@example.org", "signed_up_at":
  "2026-11-30T08:00:00.123456+00:00",
"confirmed_at": "2026-11-30T08:02:00.123456+00:00", "operator": true}';

-- Security definer: nothing else may write system_config. The table's own triggers check the value.
create function private.set_setting(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_key text := p_request ->> 'key';
  v_value jsonb;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_setting', array['key', 'value']);
  perform private.setting(v_key);
  update public.system_config set value = p_request -> 'value' where key = v_key returning value into v_value;
  return jsonb_build_object('key', v_key, 'value', v_value);
end
$$;
comment on function private.set_setting(jsonb) is
  'Operators: {"key", "value"} -> {"key", "value"}; the value must have the setting''s type and be within its range.';

create function public.set_setting(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.set_setting(p_request) $$;
comment on function public.set_setting(jsonb) is
  'Operators: changes a setting of the whole installation. The table system_config lists them with type, range and '
  'meaning.
Request:
- key (text; required; a key of system_config): the setting
- value (number or object; required; of the setting''s type and within its range): the new value, a JSON number without
  quotes
Answer:
- key (text): the setting
- value (number or object): its new value
Errors: TC001 TC107 TC200 TC215 TC301 TC302 TC303
Example: {"key": "lease_s", "value": 20} -> {"key": "lease_s", "value": 20}';
grant execute on function
  private.operator_candidate(text), public.operator_candidate(text),
  private.grant_operator(text, uuid), public.grant_operator(text, uuid)
to service_role;
grant execute on function private.set_setting(jsonb), public.set_setting(jsonb) to authenticated, service_role;
