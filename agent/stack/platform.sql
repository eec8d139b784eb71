-- The part of a hosted Supabase project that the migrations use, with hosted's privileges.
-- Idempotent: roles belong to the cluster, everything else to one database, and several databases share a cluster.
-- Run as the superuser supabase_admin; migrations then run as postgres, which is not a superuser here either.
-- It begins with hosted's OLD, open default privileges, so that a migration that forgets a revoke is noticed.
-- A superuser who runs another role's code can be taken over. Names are therefore resolved in pg_catalog only (a role's
-- objects may have the names of Postgres' own), and nothing that another role may have made is called.

set client_min_messages = warning;
set search_path = pg_catalog;

-- Roles ---------------------------------------------------------------------------------------------------------------

do $$
declare
  v_role record;
begin
  for v_role in
    select * from (values
      ('supabase_admin',          'login superuser createdb createrole replication bypassrls'),
      -- On hosted this role has REPLICATION. Here that would let it copy all files of the cluster, including Vault's
      -- key.
      ('postgres',                'login nosuperuser createdb createrole noreplication bypassrls'),
      ('anon',                    'nologin noinherit'),
      ('authenticated',           'nologin noinherit'),
      ('service_role',            'nologin noinherit bypassrls'),
      ('authenticator',           'login noinherit'),
      ('supabase_auth_admin',     'login noinherit createrole'),
      ('supabase_storage_admin',  'login noinherit createrole'),
      ('supabase_functions_admin', 'login noinherit createrole'),
      ('supabase_realtime_admin', 'nologin noinherit'),
      -- Only here: the role of the embedded Realtime server. On hosted the server is a superuser.
      ('supabase_realtime_server', 'login noinherit replication bypassrls'),
      ('supabase_read_only_user', 'nologin bypassrls'),
      ('dashboard_user',          'nologin createdb createrole replication')
    ) as wanted (name, attributes)
  loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role.name) then
      begin
        execute format('create role %I %s', v_role.name, v_role.attributes);
      exception when duplicate_object or unique_violation then
        null;  -- the platform.sql of another database has created it
      end;
    end if;
  end loop;
  if exists (select from pg_catalog.pg_roles where rolname = 'postgres' and rolreplication) then
    alter role postgres noreplication;  -- a cluster of an older version
  end if;
end
$$;

do $$
declare
  v_grant record;
begin
  for v_grant in
    select * from (values
      ('anon', 'postgres'), ('authenticated', 'postgres'), ('service_role', 'postgres'),
      ('anon', 'authenticator'), ('authenticated', 'authenticator'), ('service_role', 'authenticator'),
      ('anon', 'supabase_realtime_server'), ('authenticated', 'supabase_realtime_server'),
      ('service_role', 'supabase_realtime_server'),
      -- Not pg_read_all_data, which postgres has on hosted: it could read the vault's root key, which is in a table
      -- here.
      ('pg_monitor', 'postgres'), ('pg_signal_backend', 'postgres'),
      -- On hosted, supautils lets postgres write policies on realtime.messages. Plain Postgres has no such privilege,
      -- so the ownership is inherited, and the event trigger below revokes everything but the policies.
      ('supabase_realtime_admin', 'postgres')
    ) as wanted (role, member)
  loop
    if not exists (
      select from pg_catalog.pg_auth_members m
      where m.roleid = v_grant.role::regrole and m.member = v_grant.member::regrole
    ) then
      execute format('grant %I to %I', v_grant.role, v_grant.member);
    end if;
  end loop;
end
$$;

-- As on hosted, postgres may configure these roles (`alter role authenticator set pgrst.…`) and pass them on. It does
-- not become authenticator by this.
do $$
declare
  v_role text;
begin
  foreach v_role in array array['anon', 'authenticated', 'service_role', 'authenticator'] loop
    if not exists (
      select from pg_catalog.pg_auth_members m
      where m.roleid = v_role::regrole and m.member = 'postgres'::regrole and m.admin_option
    ) then
      execute format('grant %I to postgres with admin true', v_role)
        || case when v_role = 'authenticator' then ', inherit false, set false' else '' end;
    end if;
  end loop;
end
$$;

-- Settings of the API that no module defines: on hosted, supautils lets postgres set them.
do $$
declare
  v_name text;
begin
  foreach v_name in array array[
    'pgrst.db_aggregates_enabled', 'pgrst.db_max_rows', 'pgrst.db_plan_enabled', 'pgrst.db_schemas', 'pgrst.db_tx_end'
  ] loop
    if not exists (select from pg_catalog.pg_parameter_acl where parname = v_name) then
      begin
        execute format('grant set on parameter pgrst.%I to postgres', substr(v_name, 7));
      exception when unique_violation then
        null;  -- the platform.sql of another database has granted it
      end;
    end if;
  end loop;
end
$$;

do $$
declare
  v_setting record;
begin
  for v_setting in
    select * from (values
      ('anon', 'statement_timeout', '3s'), ('authenticated', 'statement_timeout', '8s'),
      ('authenticator', 'statement_timeout', '8s'), ('authenticator', 'lock_timeout', '8s'),
      ('postgres', 'search_path', '"$user", public, extensions'),
      ('supabase_admin', 'search_path', '"$user", public, auth, extensions'),
      ('supabase_auth_admin', 'search_path', 'auth'),
      ('supabase_auth_admin', 'idle_in_transaction_session_timeout', '60000')
    ) as wanted (role, name, value)
  loop
    if not exists (
      select from pg_catalog.pg_db_role_setting s
      where s.setdatabase = 0 and s.setrole = v_setting.role::regrole
        and v_setting.name || '=' || v_setting.value = any (s.setconfig)
    ) then
      if v_setting.name = 'search_path' then
        execute format('alter role %I set search_path = %s', v_setting.role, v_setting.value);
      else
        execute format('alter role %I set %I = %L', v_setting.role, v_setting.name, v_setting.value);
      end if;
    end if;
  end loop;
end
$$;

-- Schemas and extensions ----------------------------------------------------------------------------------------------

do $$
begin
  execute format('grant all on database %I to postgres, dashboard_user', current_database());
  execute format('grant create on database %I to supabase_auth_admin', current_database());
end
$$;

create schema if not exists extensions;
grant usage on schema extensions to postgres, anon, authenticated, service_role, supabase_auth_admin;
grant create on schema extensions to postgres;
create extension if not exists pgcrypto with schema extensions;
create extension if not exists "uuid-ossp" with schema extensions;
create extension if not exists pg_stat_statements with schema extensions;

create schema if not exists auth authorization supabase_auth_admin;
grant usage on schema auth to postgres, anon, authenticated, service_role, dashboard_user;
create schema if not exists realtime authorization supabase_admin;
grant usage on schema realtime to postgres, anon, authenticated, service_role, dashboard_user;
grant usage, create on schema realtime to supabase_realtime_admin;
grant usage on schema realtime to supabase_realtime_server;
create schema if not exists storage authorization supabase_storage_admin;
grant usage on schema storage to postgres, anon, authenticated, service_role, dashboard_user;
create schema if not exists vault;
grant usage on schema vault to postgres, service_role;
create schema if not exists cron;
grant usage on schema cron to postgres with grant option;
create schema if not exists supabase_migrations authorization postgres;

grant usage, create on schema public to postgres;
grant usage on schema public to anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
  grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
  grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
  grant all on sequences to postgres, anon, authenticated, service_role;

-- auth ----------------------------------------------------------------------------------------------------------------

-- The columns are those that Auth writes and reads; migrations refer to auth.users (id).
create table if not exists auth.users (
  instance_id uuid,
  id uuid primary key,
  aud varchar(255) default 'authenticated',
  role varchar(255) default 'authenticated',
  email varchar(255),
  encrypted_password varchar(255),
  phone text unique,
  email_confirmed_at timestamptz,
  phone_confirmed_at timestamptz,
  confirmed_at timestamptz generated always as (least(email_confirmed_at, phone_confirmed_at)) stored,
  invited_at timestamptz,
  confirmation_token varchar(255),
  confirmation_sent_at timestamptz,
  recovery_token varchar(255),
  recovery_sent_at timestamptz,
  email_change varchar(255),
  email_change_token_new varchar(255),
  email_change_token_current varchar(255),
  email_change_sent_at timestamptz,
  email_change_confirm_status smallint default 0 check (email_change_confirm_status between 0 and 2),
  phone_change text,
  phone_change_token varchar(255),
  phone_change_sent_at timestamptz,
  reauthentication_token varchar(255),
  reauthentication_sent_at timestamptz,
  raw_app_meta_data jsonb default '{}',
  raw_user_meta_data jsonb default '{}',
  is_super_admin boolean,
  banned_until timestamptz,
  deleted_at timestamptz,
  is_sso_user boolean not null default false,
  is_anonymous boolean not null default false,
  last_sign_in_at timestamptz,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);
create unique index if not exists users_email_partial_key on auth.users (email) where is_sso_user = false;
alter table auth.users owner to supabase_auth_admin;

create table if not exists auth.identities (
  id uuid primary key default gen_random_uuid(),
  provider text not null,
  provider_id text not null,
  user_id uuid not null references auth.users (id) on delete cascade,
  identity_data jsonb not null default '{}',
  email varchar(255) generated always as (lower(identity_data ->> 'email')) stored,
  last_sign_in_at timestamptz,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  unique (provider, provider_id)
);
create index if not exists identities_user_id_idx on auth.identities (user_id);
alter table auth.identities owner to supabase_auth_admin;
grant select, insert, update, delete, references, trigger on auth.users, auth.identities to postgres, dashboard_user;
-- Auth creates its other tables when it starts. REST, as postgres, reads the session of a user's token there.
grant select, insert, update, delete on all tables in schema auth to postgres;
alter default privileges for role supabase_auth_admin in schema auth
  grant select, insert, update, delete on tables to postgres;

create or replace function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$$;
create or replace function auth.role() returns text language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
  )
$$;
create or replace function auth.email() returns text language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.email', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
  )
$$;
create or replace function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb
$$;
alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
alter function auth.email() owner to supabase_auth_admin;
alter function auth.jwt() owner to supabase_auth_admin;

-- realtime ------------------------------------------------------------------------------------------------------------

create table if not exists realtime.messages (
  topic text not null,
  extension text not null,
  payload jsonb,
  event text,
  private boolean default false,
  updated_at timestamp not null default now(),
  inserted_at timestamp not null default now(),
  id uuid not null default gen_random_uuid(),
  binary_payload bytea,
  primary key (id, inserted_at),
  constraint messages_payload_exclusive check (payload is null or binary_payload is null)
) partition by range (inserted_at);
create index if not exists messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
  where extension = 'broadcast' and private is true;
alter table realtime.messages owner to supabase_realtime_admin;
alter table realtime.messages enable row level security;
grant select, insert, update on realtime.messages to postgres, anon, authenticated, service_role;

-- On hosted the Realtime server maintains the partitions; here the stack calls this function. Returns the number
-- created.
create or replace function realtime.maintain_partitions() returns integer
language plpgsql security definer set search_path = '' as $$
declare
  v_day date;
  v_name text;
  v_made integer := 0;
begin
  for v_day in
    select d::date
    from generate_series((now() at time zone 'utc')::date - 1, (now() at time zone 'utc')::date + 3, '1 day') d
  loop
    v_name := 'messages_' || to_char(v_day, 'YYYY_MM_DD');
    if to_regclass('realtime.' || v_name) is null then
      execute format(
        'create table if not exists realtime.%I partition of realtime.messages for values from (%L) to (%L)',
        v_name, v_day::timestamp, (v_day + 1)::timestamp);
      execute format('alter table realtime.%I enable row level security', v_name);
      v_made := v_made + 1;
    end if;
  end loop;
  for v_name in
    select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'realtime.messages'::regclass
      and c.relname < 'messages_' || to_char((now() at time zone 'utc')::date - 3, 'YYYY_MM_DD')
  loop
    execute format('drop table realtime.%I', v_name);
  end loop;
  return v_made;
end
$$;
alter function realtime.maintain_partitions() owner to supabase_realtime_admin;
revoke execute on function realtime.maintain_partitions() from public;
-- The server reads messages for replay, tests policies with rows that it rolls back, and maintains the partitions.
grant select, insert on realtime.messages to supabase_realtime_server;
grant execute on function realtime.maintain_partitions() to supabase_realtime_server;
-- Only in a new database, before postgres owns it: later another role may own the function. The scheduler and the
-- Realtime server create the partitions. (postgres can give the database to other roles, but not to supabase_admin.)
do $$
begin
  if (select datdba from pg_catalog.pg_database where datname = current_database()) = 'supabase_admin'::regrole then
    perform realtime.maintain_partitions();
  end if;
end
$$;

create or replace function realtime.topic() returns text language sql stable as $$
  select nullif(current_setting('realtime.topic', true), '')
$$;

-- Like hosted's: runs with the caller's rights, and a failure is a WARNING, never an error. A message can be lost while
-- the transaction commits, so the row is authoritative and the broadcast only a hint.
create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void
language plpgsql as $$
declare
  v_id uuid := gen_random_uuid();
  v_payload jsonb;
begin
  begin
    v_payload := case when payload ? 'id' then payload else jsonb_set(payload, '{id}', to_jsonb(v_id)) end;
    perform set_config('realtime.topic', topic, true);
    insert into realtime.messages (id, payload, event, topic, private, extension)
    values (v_id, v_payload, event, topic, private, 'broadcast');
  exception when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
  end;
end
$$;

create or replace function realtime.send_binary(payload bytea, event text, topic text, private boolean default true)
returns void
language plpgsql as $$
begin
  begin
    perform set_config('realtime.topic', topic, true);
    insert into realtime.messages (binary_payload, event, topic, private, extension)
    values (payload, event, topic, private, 'broadcast');
  exception when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
  end;
end
$$;

create or replace function realtime.broadcast_changes(
  topic_name text, event_name text, operation text, table_name text, table_schema text,
  new record, old record, level text default 'ROW'
) returns void
language plpgsql as $$
declare
  v_row jsonb;
begin
  if level = 'STATEMENT' then
    raise exception 'function can only be triggered for each row, not for each statement';
  end if;
  if operation not in ('INSERT', 'UPDATE', 'DELETE') then
    raise exception 'Unexpected operation type: %', operation;
  end if;
  v_row := jsonb_build_object(
    'old_record', old, 'record', new, 'operation', operation, 'table', table_name, 'schema', table_schema);
  perform realtime.send(v_row, event_name, topic_name, true);
exception when others then
  raise exception 'Failed to process the row: %', sqlerrm;
end
$$;
alter function realtime.topic() owner to supabase_realtime_admin;
alter function realtime.send(jsonb, text, text, boolean) owner to supabase_realtime_admin;
alter function realtime.send_binary(bytea, text, text, boolean) owner to supabase_realtime_admin;
alter function realtime.broadcast_changes(text, text, text, text, text, record, record, text)
  owner to supabase_realtime_admin;

do $$
begin
  if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
    alter publication supabase_realtime owner to postgres;
  end if;
  if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime_messages_publication') then
    create publication supabase_realtime_messages_publication for table realtime.messages;
  end if;
end
$$;

-- vault ---------------------------------------------------------------------------------------------------------------

-- The root key: hosted keeps it outside the database. Here only the superuser can read it.
create table if not exists vault.root_key (
  only_row boolean primary key default true check (only_row),
  cipher_key bytea not null,
  mac_key bytea not null
);
insert into vault.root_key (cipher_key, mac_key)
values (extensions.gen_random_bytes(32), extensions.gen_random_bytes(32))
on conflict do nothing;
revoke all on vault.root_key from public, postgres, service_role;

create table if not exists vault.secrets (
  id uuid primary key default gen_random_uuid(),
  name text,
  description text not null default '',
  secret text not null,
  key_id uuid,
  nonce bytea,
  created_at timestamptz not null default current_timestamp,
  updated_at timestamptz not null default current_timestamp
);
create unique index if not exists secrets_name_idx on vault.secrets (name) where name is not null;

-- Encrypt, then authenticate. The row's id is authenticated too, so that rows cannot be swapped.
create or replace function vault.seal(p_secret text, p_id uuid, p_nonce bytea) returns text
language sql security definer set search_path = '' as $$
  select encode(sealed || extensions.hmac(uuid_send(p_id) || p_nonce || sealed, k.mac_key, 'sha256'), 'base64')
  from vault.root_key k,
    lateral (
      select extensions.encrypt_iv(convert_to(p_secret, 'utf8'), k.cipher_key, p_nonce, 'aes-cbc/pad:pkcs') as sealed
    ) s
$$;

create or replace function vault.unseal(p_sealed text, p_id uuid, p_nonce bytea) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_key vault.root_key;
  v_bytes bytea := decode(p_sealed, 'base64');
  v_sealed bytea := substr(v_bytes, 1, length(v_bytes) - 32);
begin
  select * into strict v_key from vault.root_key;
  if substr(v_bytes, length(v_bytes) - 31)
    <> extensions.hmac(uuid_send(p_id) || p_nonce || v_sealed, v_key.mac_key, 'sha256') then
    raise exception 'vault secret % was not written by this vault', p_id using errcode = 'data_corrupted';
  end if;
  return convert_from(extensions.decrypt_iv(v_sealed, v_key.cipher_key, p_nonce, 'aes-cbc/pad:pkcs'), 'utf8');
end
$$;

create or replace view vault.decrypted_secrets as
  select id, name, description, secret, vault.unseal(secret, id, nonce) as decrypted_secret,
    key_id, nonce, created_at, updated_at
  from vault.secrets;

create or replace function vault.create_secret(
  new_secret text, new_name text default null, new_description text default '', new_key_id uuid default null
) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_id uuid := gen_random_uuid();
  v_nonce bytea := extensions.gen_random_bytes(16);
begin
  insert into vault.secrets (id, name, description, secret, key_id, nonce)
  values (v_id, new_name, coalesce(new_description, ''), vault.seal(new_secret, v_id, v_nonce), new_key_id, v_nonce);
  return v_id;
end
$$;

create or replace function vault.update_secret(
  secret_id uuid, new_secret text default null, new_name text default null, new_description text default null,
  new_key_id uuid default null
) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_nonce bytea := extensions.gen_random_bytes(16);
begin
  update vault.secrets s
  set secret = case when new_secret is null then s.secret else vault.seal(new_secret, s.id, v_nonce) end,
    nonce = case when new_secret is null then s.nonce else v_nonce end,
    name = coalesce(new_name, s.name),
    description = coalesce(new_description, s.description),
    key_id = coalesce(new_key_id, s.key_id),
    updated_at = now()
  where s.id = secret_id;
end
$$;

grant select, delete on vault.secrets, vault.decrypted_secrets to postgres with grant option;
grant select, delete on vault.secrets, vault.decrypted_secrets to service_role;
revoke execute on function vault.seal(text, uuid, bytea) from public;
revoke execute on function vault.unseal(text, uuid, bytea) from public;
revoke execute on function vault.create_secret(text, text, text, uuid) from public;
revoke execute on function vault.update_secret(uuid, text, text, text, uuid) from public;
grant execute on function vault.unseal(text, uuid, bytea) to postgres, service_role;
grant execute on function vault.create_secret(text, text, text, uuid) to postgres with grant option;
grant execute on function vault.update_secret(uuid, text, text, text, uuid) to postgres with grant option;
grant execute on function vault.create_secret(text, text, text, uuid) to service_role;
grant execute on function vault.update_secret(uuid, text, text, text, uuid) to service_role;

-- cron ----------------------------------------------------------------------------------------------------------------

-- pg_cron's tables and functions; agent/stack/scheduler.py runs the jobs.
create table if not exists cron.job (
  jobid bigint generated by default as identity primary key,
  schedule text not null,
  command text not null,
  nodename text not null default 'localhost',
  nodeport integer not null default 5432,
  database text not null default current_database(),
  username text not null default current_user,
  active boolean not null default true,
  jobname text,
  constraint jobname_username_uniq unique (jobname, username)
);
create table if not exists cron.job_run_details (
  jobid bigint,
  runid bigint generated by default as identity primary key,
  job_pid integer,
  database text,
  username text,
  command text,
  status text,
  return_message text,
  start_time timestamptz,
  end_time timestamptz
);
create index if not exists job_run_details_jobid_idx on cron.job_run_details (jobid, runid);
alter table cron.job enable row level security;
alter table cron.job_run_details enable row level security;
do $$
begin
  if not exists (select from pg_catalog.pg_policies where schemaname = 'cron' and policyname = 'cron_job_policy') then
    create policy cron_job_policy on cron.job using (username = current_user);
    create policy cron_job_run_details_policy on cron.job_run_details using (username = current_user);
  end if;
end
$$;

-- Rejects what pg_cron rejects: anything but five fields, or 1 to 59 seconds.
create or replace function cron.is_schedule(p_schedule text) returns boolean language sql immutable as $$
  select p_schedule ~* '^\s*([1-9]|[1-5][0-9])\s+seconds?\s*$'
    or p_schedule ~* '^\s*([0-9*/,-]+\s+){2}([0-9*/,-]+|\$)\s+[0-9a-z*/,-]+\s+[0-9a-z*/,-]+\s*$'
    or p_schedule ~* '^\s*@(hourly|daily|midnight|weekly|monthly|yearly|annually)\s*$'
$$;

create or replace function cron.put_job(p_name text, p_schedule text, p_command text, p_username text) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint;
begin
  if not pg_has_role(session_user, p_username, 'member') then
    raise exception 'must be a member of role "%" to schedule its jobs', p_username
      using errcode = 'insufficient_privilege';
  end if;
  if p_schedule is null or not cron.is_schedule(p_schedule) then
    raise exception 'invalid schedule: %', p_schedule
      using hint = 'Use cron format (e.g. 5 4 * * *), or interval format ''[1-59] seconds''';
  end if;
  insert into cron.job (jobname, schedule, command, username, database)
  values (p_name, p_schedule, p_command, p_username, current_database())
  on conflict (jobname, username) do update set schedule = excluded.schedule, command = excluded.command, active = true
  returning jobid into v_id;
  return v_id;
end
$$;

create or replace function cron.remove_job(p_id bigint, p_name text, p_username text) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint;
begin
  if not pg_has_role(session_user, p_username, 'member') then
    raise exception 'must be a member of role "%" to unschedule its jobs', p_username
      using errcode = 'insufficient_privilege';
  end if;
  delete from cron.job j
  where (j.jobid = p_id or j.jobname = p_name)
    and (j.username = p_username or pg_has_role(p_username, 'supabase_admin', 'member'))
  returning j.jobid into v_id;
  if v_id is null then
    raise exception 'could not find valid entry for job ''%''', coalesce(p_name, p_id::text);
  end if;
  return true;
end
$$;

create or replace function cron.schedule(schedule text, command text) returns bigint language sql as $$
  select cron.put_job(null, schedule, command, current_user::text)
$$;
create or replace function cron.schedule(job_name text, schedule text, command text) returns bigint language sql as $$
  select cron.put_job(job_name, schedule, command, current_user::text)
$$;
create or replace function cron.unschedule(job_id bigint) returns boolean language sql as $$
  select cron.remove_job(job_id, null, current_user::text)
$$;
create or replace function cron.unschedule(job_name text) returns boolean language sql as $$
  select cron.remove_job(null, job_name, current_user::text)
$$;

grant select on cron.job to postgres with grant option;
-- The embedded scheduler works as postgres; postgres has the same rights on hosted.
grant all on cron.job_run_details to postgres with grant option;
revoke execute on all functions in schema cron from public;
grant execute on all functions in schema cron to postgres with grant option;

-- Empty extensions, so that `create extension if not exists pg_cron` and `supabase_vault` in a migration succeed; their
-- objects are those above. agent/stack/postgres.py puts the control files next to Postgres.
do $$
begin
  if exists (select from pg_catalog.pg_available_extensions where name = 'supabase_vault') then
    create extension if not exists supabase_vault with schema vault;
  end if;
end
$$;

-- Hosted's restrictions -----------------------------------------------------------------------------------------------

-- Hosted refuses postgres all DDL in the platform's schemas except policies; this does the same.
create or replace function extensions.refuse_platform_ddl() returns event_trigger
language plpgsql set search_path = '' as $$
declare
  v_object record;
begin
  if current_user <> 'postgres' then
    return;
  end if;
  if tg_event = 'sql_drop' then
    for v_object in select * from pg_catalog.pg_event_trigger_dropped_objects() loop
      if v_object.original and v_object.object_type <> 'policy'
        and v_object.schema_name in ('auth', 'realtime', 'storage', 'vault', 'cron') then
        raise exception 'must be owner of %', v_object.object_identity using errcode = 'insufficient_privilege';
      end if;
    end loop;
    return;
  end if;
  for v_object in select * from pg_catalog.pg_event_trigger_ddl_commands() loop
    if v_object.command_tag not in ('CREATE POLICY', 'ALTER POLICY', 'GRANT', 'REVOKE', 'COMMENT', 'CREATE TRIGGER')
      and v_object.schema_name in ('auth', 'realtime', 'storage', 'vault', 'cron') then
      raise exception 'must be owner of %', v_object.object_identity using errcode = 'insufficient_privilege';
    end if;
  end loop;
end
$$;

-- After DDL, hosted notifies PostgREST to read the schema again; the gateway listens to the same channel.
create or replace function extensions.pgrst_ddl_watch() returns event_trigger
language plpgsql set search_path = '' as $$
begin
  notify pgrst, 'reload schema';
end
$$;
do $$
begin
  if not exists (select from pg_catalog.pg_event_trigger where evtname = 'pgrst_ddl_watch') then
    create event trigger pgrst_ddl_watch on ddl_command_end execute function extensions.pgrst_ddl_watch();
    create event trigger pgrst_drop_watch on sql_drop execute function extensions.pgrst_ddl_watch();
  end if;
  if not exists (select from pg_catalog.pg_event_trigger where evtname = 'refuse_platform_ddl') then
    create event trigger refuse_platform_ddl on ddl_command_end execute function extensions.refuse_platform_ddl();
    create event trigger refuse_platform_drop on sql_drop execute function extensions.refuse_platform_ddl();
  end if;
end
$$;

reset search_path;
reset client_min_messages;
