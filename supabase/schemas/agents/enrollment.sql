-- Enrolment: how a machine becomes a VPS of the farm, and how its agent signs in again.
--
-- The contract with the Edge Function "enroll", the only caller of the three functions for the service key:
--
--   POST enroll {"token", "name", "platforms": ["mt5"], "region"?, "capacity"?}
--     1. check_enrollment({"token", "name", "platforms"})    -> {"name"}    raises TC210, TC211, TC001; changes nothing
--     2. Auth admin API: create a confirmed user for the agent, e-mail agent-<random>@<something>.invalid
--     3. make a secret of 32 random bytes (hex or base64url); secret_hash = lower-case hex of the SHA-256 of its UTF-8
--        text
--     4. enroll_vps({"token", "name", "platforms", "region"?, "capacity"?, "user_id", "secret_hash"})
--        -> {"vps_id", "name"}; uses up the token. If it raises an error: delete the user of step 2.
--     5. answer {"vps_id", "name", "secret", session of the user}. The secret is shown only this once.
--   POST enroll {"vps_id", "secret"}     (an agent without a usable session; a CAPTCHA may guard the password grant)
--     1. agent_session({"vps_id", "secret"}) -> {"vps_id", "name", "user_id", "email"}; raises TC102 (retired), TC212
--     2. Auth admin API: a session for that user (generateLink "magiclink", then verifyOtp), answer it.

-- Security definer: it writes enrollment_tokens, which no API role may.
create function private.create_enrollment_token(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_token text := 'tce_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
  v_name text := nullif(trim(p_request ->> 'name'), '');
  v_expires_at timestamptz := now() + private.setting_s('enrollment_token_s');
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'create_enrollment_token', array['name']);
  if v_name is not null then
    perform private.require_free_name(v_name);
  end if;
  insert into public.enrollment_tokens (token_hash, name, created_by, expires_at)
  values (private.sha256_hex(v_token), v_name, auth.uid(), v_expires_at);
  return jsonb_build_object('token', v_token, 'name', v_name, 'expires_at', v_expires_at);
end
$$;
comment on function private.create_enrollment_token(jsonb) is
  'Operators: {"name"?} -> {"token", "name", "expires_at"}. The token enrols one VPS and is shown only here.';

create function private.require_free_name(p_name text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' then
    raise exception using errcode = 'TC001',
      message = 'name: expected 1 to 63 letters, digits, dots, dashes or underscores',
      detail = coalesce(left(p_name, 100), 'null');
  end if;
  if exists (select from public.vps_instances v where v.name = p_name and v.retired_at is null) then
    raise exception using errcode = 'TC211', message = format('there is already a VPS named %s', p_name),
      hint = 'Choose another name, or retire that VPS first.';
  end if;
end
$$;
comment on function private.require_free_name(text) is
  'Raises TC001 if this is not a valid name for a VPS, TC211 if a VPS has it.';

-- Locks the token's row: if two machines use one token, the second waits and is refused.
create function private.require_enrollment(p_request jsonb) returns public.enrollment_tokens
language plpgsql
set search_path = ''
as $$
declare
  v_token public.enrollment_tokens;
  v_platforms jsonb := p_request -> 'platforms';
  v_unknown text;
begin
  select t.* into v_token from public.enrollment_tokens t
  where t.token_hash = private.sha256_hex(coalesce(p_request ->> 'token', '')) for update;
  if not found or v_token.used_at is not null or v_token.expires_at <= now() then
    raise exception using errcode = 'TC210',
      message = case when v_token.used_at is not null then 'this enrolment token was already used'
                     when v_token.expires_at <= now() then 'this enrolment token has expired'
                     else 'there is no such enrolment token' end,
      hint = 'Ask an operator for a new one; each is good for one VPS.';
  end if;
  if jsonb_typeof(v_platforms) is distinct from 'array' or jsonb_array_length(v_platforms) = 0 then
    raise exception using errcode = 'TC001', message = 'platforms: expected an array with at least one platform';
  end if;
  select p.name into v_unknown from jsonb_array_elements_text(v_platforms) as p (name)
  where not private.setting('platforms') ? p.name limit 1;
  if found then
    raise exception using errcode = 'TC001', message = format('platforms: %s is not a platform', left(v_unknown, 50));
  end if;
  v_token.name := coalesce(v_token.name, p_request ->> 'name');
  perform private.require_free_name(v_token.name);
  return v_token;
end
$$;
comment on function private.require_enrollment(jsonb) is
  'The token row of an enrolment, with the name that the VPS will have in "name"; TC210, TC211 or TC001.';

-- Security definer: it reads enrollment_tokens.
create function private.check_enrollment(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_token public.enrollment_tokens;
begin
  perform private.require_service();
  v_token := private.require_enrollment(p_request);
  return jsonb_build_object('name', v_token.name, 'expires_at', v_token.expires_at);
end
$$;
comment on function private.check_enrollment(jsonb) is
  'Service key: raises the error that enroll_vps would raise for this request, else {"name", "expires_at"}; changes '
  'nothing.';

-- Security definer: it writes vps_instances and the secret.
create function private.enroll_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_token public.enrollment_tokens;
  v_user uuid;
  v_vps uuid;
begin
  perform private.require_service();
  v_token := private.require_enrollment(p_request);
  v_user := private.uuid_of(p_request, 'user_id');
  if coalesce(p_request ->> 'secret_hash', '') !~ '^[0-9a-f]{64}$' then
    raise exception using errcode = 'TC001', message = 'secret_hash: expected 64 hexadecimal digits in lower case';
  end if;
  if not exists (select from auth.users u where u.id = v_user)
    or exists (select from public.operators o where o.user_id = v_user)
    or exists (select from public.trading_accounts a where a.user_id = v_user)
    or exists (select from public.vps_instances v where v.user_id = v_user) then
    raise exception using errcode = 'TC213', message = 'an agent needs an auth user of its own', detail = v_user::text,
      hint = 'Create a new user for the agent; a person, an operator or another agent cannot be one.';
  end if;
  insert into public.vps_instances (name, user_id, region, platforms, capacity)
  values (v_token.name, v_user, coalesce(private.name_of(p_request, 'region', 100), ''),
          array(select distinct jsonb_array_elements_text(p_request -> 'platforms') order by 1),
          coalesce(private.int_of(p_request, 'capacity', 1, 10000), 50))
  returning id into v_vps;
  insert into private.vps_secrets (vps_id, secret_hash) values (v_vps, p_request ->> 'secret_hash');
  update public.enrollment_tokens set used_at = now(), vps_id = v_vps where id = v_token.id and used_at is null;
  return jsonb_build_object('vps_id', v_vps, 'name', v_token.name);
end
$$;
comment on function private.enroll_vps(jsonb) is
  'Service key: {"token", "name", "platforms", "region"?, "capacity"?, "user_id", "secret_hash"} -> {"vps_id", '
  '"name"}; uses up the token.';

-- Security definer: it reads secrets and auth.users.
create function private.agent_session(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_email text;
begin
  perform private.require_service();
  select v.* into v_vps from public.vps_instances v join private.vps_secrets s on s.vps_id = v.id
  where v.id::text = p_request ->> 'vps_id'
    and s.secret_hash = private.sha256_hex(coalesce(p_request ->> 'secret', ''));
  select u.email into v_email from auth.users u where u.id = v_vps.user_id;
  if v_vps.retired_at is not null then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps.id::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  if v_email is null then
    raise exception using errcode = 'TC212', message = 'there is no VPS with this id and secret',
      hint = 'Enrol the VPS again with a new token.';
  end if;
  return jsonb_build_object('vps_id', v_vps.id, 'name', v_vps.name, 'user_id', v_vps.user_id, 'email', v_email);
end
$$;
comment on function private.agent_session(jsonb) is
  'Service key: {"vps_id", "secret"} -> {"vps_id", "name", "user_id", "email"} of the agent''s auth user; TC212 if '
  'they do not match, TC102 if the VPS is retired.';

create function public.create_enrollment_token(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.create_enrollment_token(p_request) $$;
comment on function public.create_enrollment_token(jsonb) is
  'Operators: makes a token with which one VPS can be enrolled. The token is shown only in this answer.
Request:
- name (text; 1 to 63 letters, digits, dots, dashes or underscores): name that the VPS will have; left out: the VPS
  chooses it
Answer:
- token (text): for tradecopier agent enroll
- name (text or null): the name, if one was given
- expires_at (time): until when the token can be used
Errors: TC001 TC107 TC211 TC301
Example: {"name": "vps-frankfurt-1"}
-> {"token": "tce_0f4e8c1b9a7d4e2f8b6c3d5a1e9f7b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f2a", "name": "vps-frankfurt-1",
"expires_at": "2026-12-01T10:30:00.123456+00:00"}';

create function public.check_enrollment(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.check_enrollment(p_request) $$;
comment on function public.check_enrollment(jsonb) is
  'Service key: whether enroll_vps would accept this request. Changes nothing; the Edge Function enroll calls it.
Request:
- token (text; required; unused and not expired): token of create_enrollment_token
- name (text; required unless the token has one; 1 to 63 letters, digits, dots, dashes or underscores): name of the VPS
- platforms (list of texts; required; 1 or more platforms of the setting platforms): what the VPS can work
Answer:
- name (text): name that the VPS would have
- expires_at (time): until when the token can be used
Errors: TC001 TC109 TC210 TC211
Example: {"token": "tce_0f4e8c1b9a7d4e2f8b6c3d5a1e9f7b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f2a", "name": "vps-frankfurt-1",
  "platforms": ["mt5"]}
-> {"name": "vps-frankfurt-1", "expires_at": "2026-12-01T10:30:00.123456+00:00"}';

create function public.enroll_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.enroll_vps(p_request) $$;
comment on function public.enroll_vps(jsonb) is
  'Service key: makes a VPS from a token and an auth user, and uses up the token. The Edge Function enroll calls it.
Request:
- token (text; required; unused and not expired): token of create_enrollment_token
- name (text; required unless the token has one; 1 to 63 letters, digits, dots, dashes or underscores): name of the VPS
- platforms (list of texts; required; 1 or more platforms of the setting platforms): what the VPS can work
- region (text; at most 100 characters): where the VPS is; left out: empty
- capacity (integer; 1 to 10000): the most accounts that it takes; left out: 50
- user_id (uuid; required): auth user of the agent, used by nobody else
- secret_hash (text; required; 64 hexadecimal digits in lower case): SHA-256 of the secret that the agent signs in with
Answer:
- vps_id (uuid): the new VPS
- name (text): its name
Errors: TC001 TC109 TC210 TC211 TC213
Example: {"token": "tce_0f4e8c1b9a7d4e2f8b6c3d5a1e9f7b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f2a", "name": "vps-frankfurt-1",
  "platforms": ["mt5"],
"region": "Frankfurt", "capacity": 20, "user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a02",
"secret_hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "name": "vps-frankfurt-1"}';

create function public.agent_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.agent_session(p_request) $$;
comment on function public.agent_session(jsonb) is
  'Service key: the auth user of a VPS that presents its secret. The Edge Function enroll calls it.
Request:
- vps_id (uuid; required): the VPS
- secret (text; required): its secret, as shown at enrolment
Answer:
- vps_id (uuid): the VPS
- name (text): its name
- user_id (uuid): the agent''s auth user
- email (text): e-mail address of that user
Errors: TC102 TC109 TC212
Example: {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "secret": "the secret of the VPS"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "name": "vps-frankfurt-1", "user_id":
  "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a02",
"email": "agent-1f2e3d@agents.invalid"}';
grant execute on function private.create_enrollment_token(jsonb),
  public.create_enrollment_token(jsonb) to authenticated, service_role;
grant execute on function
  private.check_enrollment(jsonb), public.check_enrollment(jsonb),
  private.enroll_vps(jsonb), public.enroll_vps(jsonb),
  private.agent_session(jsonb), public.agent_session(jsonb)
to service_role;
