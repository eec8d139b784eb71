-- Made by `make migration` from supabase/schemas/. Edit those.

-- 00_defaults.sql
-- What every later file relies on: nothing is callable or readable unless a line says so by name.
--
-- Three places for a function:
--   private.*  security definer, checks who calls before it does anything. The schema is not exposed by the API, so
--              the caller's role may hold EXECUTE without anybody reaching the function from outside.
--   public.*   one-line security invoker wrappers: the API's surface, granted to roles by name.
--   private.*  without a grant: parts that only other functions call.

create schema if not exists private;
comment on schema private is 'Functions with their owner''s rights, partitions and secrets. Never exposed by the API.';

-- Without "in schema": a default per schema can only add to the global one, and the global one grants to public.
alter default privileges revoke execute on functions from public;

-- Projects created before mid 2026 also grant everything new in public to the API roles by name.
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;

revoke all on schema private from public;
grant usage on schema private to authenticated, service_role;


-- Sets updated_at; the doorbells find what changed by it.
create function private.touch() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.updated_at := now();
  return new;
end
$$;
comment on function private.touch() is 'Trigger: sets updated_at to the transaction''s time.';


-- Reading requests: a field of the wrong kind is an error that names the field (TC001), never a cast's message.
create function private.uuid_of(p_request jsonb, p_field text) returns uuid
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null or not pg_input_is_valid(v_text, 'uuid') then
    raise exception using errcode = 'TC001', message = format('%s: expected a UUID', p_field),
      detail = coalesce(left(v_text, 100), 'it is missing');
  end if;
  return v_text::uuid;
end
$$;
comment on function private.uuid_of(jsonb, text) is 'A required field that is a UUID; TC001 otherwise.';


create function private.text_of(p_request jsonb, p_field text, p_max integer) returns text
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := nullif(trim(p_request ->> p_field), '');
begin
  if v_text is not null and (jsonb_typeof(p_request -> p_field) <> 'string' or length(v_text) > p_max) then
    raise exception using errcode = 'TC001', message = format('%s: expected a string of at most %s characters', p_field, p_max);
  end if;
  return v_text;
end
$$;
comment on function private.text_of(jsonb, text, integer) is 'An optional string, trimmed; null if it is missing or empty; TC001 if it is too long.';


create function private.int_of(p_request jsonb, p_field text, p_min bigint, p_max bigint) returns bigint
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null then
    return null;
  end if;
  if not pg_input_is_valid(v_text, 'bigint') or v_text::bigint not between p_min and p_max then
    raise exception using errcode = 'TC001', message = format('%s: expected a whole number from %s to %s', p_field, p_min, p_max),
      detail = left(v_text, 100);
  end if;
  return v_text::bigint;
end
$$;
comment on function private.int_of(jsonb, text, bigint, bigint) is 'An optional whole number within limits; TC001 otherwise.';


create function private.numeric_of(p_request jsonb, p_field text) returns numeric
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null then
    return null;
  end if;
  -- NaN and the infinities are numeric to Postgres; no account, clock or machine has such a figure.
  if not pg_input_is_valid(v_text, 'numeric') or v_text::numeric in ('NaN', 'Infinity', '-Infinity')
    or abs(v_text::numeric) >= 1e24 then
    raise exception using errcode = 'TC001', message = format('%s: expected a finite number', p_field), detail = left(v_text, 100);
  end if;
  return v_text::numeric;
end
$$;
comment on function private.numeric_of(jsonb, text) is 'An optional finite number, as a JSON string or number; TC001 otherwise.';


create function private.time_of(p_request jsonb, p_field text) returns timestamptz
language plpgsql stable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null then
    return null;
  end if;
  if not pg_input_is_valid(v_text, 'timestamptz') or not isfinite(v_text::timestamptz) then
    raise exception using errcode = 'TC001', message = format('%s: expected a time as RFC 3339', p_field), detail = left(v_text, 100);
  end if;
  return v_text::timestamptz;
end
$$;
comment on function private.time_of(jsonb, text) is 'An optional time; TC001 if it is none.';

-- 10_config.sql
-- system_config: every number that an operator may want to turn, with what it does.

create table public.system_config (
  key text primary key,
  value jsonb not null,
  description text not null,
  updated_at timestamptz not null default now(),
  constraint key_is_snake_case check (key ~ '^[a-z][a-z0-9_.]{1,62}$'),
  constraint description_says_something check (length(description) >= 10)
);
comment on table public.system_config is 'Settings of the whole installation. Operators read it and change it with set_setting().';
comment on column public.system_config.key is 'Name of the setting; units stand in the name (_s, _ms, _days).';
comment on column public.system_config.value is 'The value; its JSON type never changes.';
comment on column public.system_config.description is 'What it does, for the operator who is about to change it.';
comment on column public.system_config.updated_at is 'When it was last changed.';

alter table public.system_config enable row level security;

create trigger touch before update on public.system_config for each row execute function private.touch();


create function private.setting(p_key text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
  v_value jsonb;
begin
  select c.value into v_value from public.system_config c where c.key = p_key;
  if not found then
    raise exception using errcode = 'TC200', message = format('there is no setting %s', p_key),
      hint = 'Rows of system_config come with the migrations: run them.';
  end if;
  return v_value;
end
$$;
comment on function private.setting(text) is 'The value of a setting; raises TC200 when there is none of that name.';


create function private.setting_s(p_key text) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
  return make_interval(secs => (private.setting(p_key) #>> '{}')::double precision);
end
$$;
comment on function private.setting_s(text) is 'A setting whose unit is seconds, as an interval.';


create function private.setting_days(p_key text) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
  return make_interval(days => (private.setting(p_key) #>> '{}')::integer);
end
$$;
comment on function private.setting_days(text) is 'A setting whose unit is days, as an interval.';


-- Settings that only make sense together, whoever writes them (Studio included).
create function private.check_setting() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_lease numeric;
  v_pause numeric;
begin
  if new.key not in ('lease_s', 'maintain_s', 'heartbeat_s') then
    return new;
  end if;
  select max((c.value #>> '{}')::numeric) filter (where c.key = 'lease_s'),
    sum((c.value #>> '{}')::numeric) filter (where c.key in ('maintain_s', 'heartbeat_s'))
  into v_lease, v_pause
  from (
    select o.key, o.value from public.system_config o where o.key in ('lease_s', 'maintain_s', 'heartbeat_s') and o.key <> new.key
    union all
    select new.key, new.value
  ) c;
  -- maintain() judges no lease when its own last run is over half a lease ago; without a scheduler that is the rule, not an outage
  if v_lease <= 2 * v_pause then
    raise exception using errcode = 'TC215',
      message = format('lease_s must be over twice the sum of maintain_s and heartbeat_s (%s s), it would be %s s', 2 * v_pause, v_lease),
      hint = 'With less no lost VPS would ever be noticed. Raise lease_s, or lower maintain_s or heartbeat_s first.';
  end if;
  return new;
end
$$;
comment on function private.check_setting() is 'Refuses settings that contradict each other, both named (TC215).';

create trigger check_setting before update on public.system_config for each row execute function private.check_setting();


insert into public.system_config (key, value, description) values
  ('lease_s', '15', 'How long a VPS may trade after its last heartbeat. Shorter fails over sooner and forgives less.'),
  ('heartbeat_s', '2', 'How often an idle agent sends a heartbeat.'),
  ('maintain_s', '4', 'A heartbeat runs maintain() itself when the last run is older than this (the scheduler may be dead).'),
  ('doorbells_s', '2', 'A heartbeat rings the doorbells itself when the last ring is older than this.'),
  ('doorbells_max', '100', 'Topics of dashboards rung per second; the rest waits a second. Keeps dashboards from eating the quota of trading.'),
  ('tick_s', '30', 'A tick goes to a VPS topic this often, so that an agent can tell a quiet socket from a dead one.'),
  ('existing_wait_s', '30', 'How long a new copier waits for quotes to tell which of the master''s positions are near enough to be copied.'),
  ('send_within_ms', '5000', 'An execution that its agent has not sent within this time is no longer sent.'),
  ('retry_window_s', '60', 'How long a refused open may be tried again (a closed market, a requote).'),
  ('second_attempt_s', '2', 'Pause before the only second attempt of an open that was refused for want of money or for its volume.'),
  ('retry_backoff_ms', '500', 'First pause before a retry; it doubles, with jitter.'),
  ('retry_backoff_max_ms', '30000', 'Longest pause before a retry.'),
  ('broadcast_executions_max', '100', 'Executions in one broadcast.'),
  ('broadcast_bytes_max', '200000', 'Size of one broadcast in bytes; hosted Realtime refuses 256 KB on its smallest plan.'),
  ('symbol_quote_max_age_s', '60', 'A quote older than this is not used to convert currencies.'),
  ('funds_max_age_s', '60', 'Funds older than this are not used for sizing.'),
  ('protection_max_age_s', '10', 'Funds measured longer ago than this are not held against protection rules: late news is not a look.'),
  ('snapshot_every_s', '60', 'How often the equity of an account is written down in account_snapshots.'),
  ('accounts_per_user_max', '200', 'How many trading accounts one user may connect.'),
  ('enrollment_token_s', '3600', 'How long an enrolment token is good for.'),
  ('platforms', '{"paper": {"password": false}, "mt5": {"password": true}, "mt4": {"password": true}, "ctrader": {"password": true}}',
   'Platforms that accounts may be on, and whether a password must be given.'),
  ('retention_batch', '1000', 'Rows that one run of maintain() deletes per table at most.'),
  ('retention_days.event_keys', '7', 'How long the keys that make events idempotent are kept; journals replay nothing older.'),
  ('retention_days.trade_events', '90', 'How long trade events are kept (whole partitions are dropped).'),
  ('retention_days.trade_execution_queue', '90', 'How long final executions are kept.'),
  ('retention_days.copy_outcomes', '90', 'How long reasons of trades that were not copied are kept.'),
  ('retention_days.positions', '30', 'How long tombstones of closed positions and ended links are kept.'),
  ('retention_days.connection_health_logs', '14', 'How long health rows of VPSes and accounts are kept.'),
  ('retention_days.account_snapshots', '365', 'How long the equity curve of an account is kept.'),
  ('retention_days.alerts', '90', 'How long alerts are kept after they happened last or were seen.'),
  ('retention_days.protection_looks', '365', 'How long the looks at funds that were past a protection rule are kept.'),
  ('retention_days.audit_log', '730', 'How long the audit log is kept; nothing younger can be deleted at all.'),
  ('retention_days.enrollment_tokens', '30', 'How long used or expired enrolment tokens are kept.');

-- 11_operator.sql
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

-- 12_vps.sql
-- vps_instances: the machines of the farm, one agent on each; their enrolment, secrets and health.

create table public.vps_instances (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  user_id uuid unique references auth.users (id) on delete set null,
  region text not null default '',
  platforms text[] not null,
  capacity integer not null default 50,
  status text not null default 'enrolled',
  -- written by every heartbeat: none of these columns is indexed, so the update stays on its page (HOT)
  lease_expires_at timestamptz not null default 'epoch',
  last_heartbeat_at timestamptz,
  last_tick_at timestamptz,
  clock_offset_ms numeric,
  rtt_ms numeric,
  agent_version text,
  cpu_percent numeric,
  memory_percent numeric,
  disk_percent numeric,
  rss_mb numeric,
  process text,
  process_machine text,
  process_since timestamptz,
  process_begins_at timestamptz,
  process_beat bigint,
  retired_at timestamptz,
  created_at timestamptz not null default now(),
  constraint name_is_short check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  constraint platforms_are_named check (cardinality(platforms) > 0),
  constraint capacity_is_positive check (capacity between 1 and 10000),
  constraint status_is_known check (status in ('enrolled', 'online', 'offline', 'draining', 'retired')),
  constraint retired_means_retired_at check ((status = 'retired') = (retired_at is not null))
) with (fillfactor = 60);
comment on table public.vps_instances is 'One row per VPS of the farm. The agent on it renews lease_expires_at with its heartbeat.';
comment on column public.vps_instances.id is 'Number of the VPS; its broadcasts go to the topic vps:<id>.';
comment on column public.vps_instances.name is 'What operators call it.';
comment on column public.vps_instances.user_id is 'The auth user that its agent signs in as.';
comment on column public.vps_instances.region is 'Where it stands; for operators.';
comment on column public.vps_instances.platforms is 'Platforms that its agent can connect.';
comment on column public.vps_instances.capacity is 'How many accounts it takes.';
comment on column public.vps_instances.status is 'enrolled (no heartbeat yet) -> online <-> offline (lease lost); draining (gives its accounts away); retired (for good).';
comment on column public.vps_instances.lease_expires_at is 'Until then its agent may trade; afterwards its accounts move.';
comment on column public.vps_instances.last_heartbeat_at is 'When its agent was last heard of.';
comment on column public.vps_instances.last_tick_at is 'When the last tick was sent to its topic; an agent that did not get it rebuilds its socket.';
comment on column public.vps_instances.clock_offset_ms is 'Database clock minus agent clock, as the agent measured it.';
comment on column public.vps_instances.rtt_ms is 'Round trip of a heartbeat as the agent measured it.';
comment on column public.vps_instances.agent_version is 'Version of its agent.';
comment on column public.vps_instances.cpu_percent is 'Load of the machine.';
comment on column public.vps_instances.memory_percent is 'Memory in use on the machine.';
comment on column public.vps_instances.disk_percent is 'Disk in use on the machine.';
comment on column public.vps_instances.rss_mb is 'Memory of the agent itself.';
comment on column public.vps_instances.process is 'The agent process that works as this VPS: a number that each start draws.';
comment on column public.vps_instances.process_machine is 'Where it runs; the same only where the lock on its data directory proves that the one before has gone.';
comment on column public.vps_instances.process_since is 'When it was first heard of.';
comment on column public.vps_instances.process_begins_at is 'From then on it may trade: at once, or when the lease of a process elsewhere was over.';
comment on column public.vps_instances.process_beat is 'Number of its last heartbeat.';
comment on column public.vps_instances.retired_at is 'When it was retired; its agent is refused from then on.';
comment on column public.vps_instances.created_at is 'When it was enrolled.';

-- a name is free again once its VPS is retired
create unique index name_is_taken_once on public.vps_instances (name) where retired_at is null;

alter table public.vps_instances enable row level security;
create policy "operators see the farm" on public.vps_instances for select to authenticated
  using ((select private.is_operator()));


-- Apart from vps_instances, so that "select *" by an operator can never show one.
create table private.vps_secrets (
  vps_id uuid primary key references public.vps_instances (id) on delete cascade,
  secret_hash text not null,
  constraint secret_is_a_sha256 check (secret_hash ~ '^[0-9a-f]{64}$')
);
comment on table private.vps_secrets is 'What an agent proves itself with when it must sign in again.';
comment on column private.vps_secrets.vps_id is 'The VPS.';
comment on column private.vps_secrets.secret_hash is 'SHA-256 (hex) of the agent''s secret. The secret has 256 random bits, so it needs no slow hash.';
alter table private.vps_secrets enable row level security;


create table public.enrollment_tokens (
  id uuid primary key default gen_random_uuid(),
  token_hash text not null unique,
  name text,
  created_by uuid references auth.users (id) on delete set null,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  used_at timestamptz,
  vps_id uuid references public.vps_instances (id) on delete set null,
  constraint token_is_a_sha256 check (token_hash ~ '^[0-9a-f]{64}$'),
  constraint expires_later check (expires_at > created_at)
);
comment on table public.enrollment_tokens is 'One-time tokens with which a new VPS joins the farm.';
comment on column public.enrollment_tokens.id is 'Number of the token.';
comment on column public.enrollment_tokens.token_hash is 'SHA-256 (hex) of the token; the token itself is shown once and stored nowhere.';
comment on column public.enrollment_tokens.name is 'Name that the VPS must take; null: it chooses.';
comment on column public.enrollment_tokens.created_by is 'The operator who made it; null: the service key.';
comment on column public.enrollment_tokens.created_at is 'When it was made.';
comment on column public.enrollment_tokens.expires_at is 'Until when it can be used.';
comment on column public.enrollment_tokens.used_at is 'When it was used; once.';
comment on column public.enrollment_tokens.vps_id is 'The VPS that joined with it.';

alter table public.enrollment_tokens enable row level security;
create policy "operators see tokens" on public.enrollment_tokens for select to authenticated
  using ((select private.is_operator()));


create table public.connection_health_logs (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  kind text not null,
  vps_id uuid references public.vps_instances (id) on delete cascade,
  account_id uuid,
  status text not null,
  previous_status text,
  reason text,
  accounts integer,
  heartbeat_age_ms numeric,
  rtt_ms numeric,
  clock_offset_ms numeric,
  cpu_percent numeric,
  memory_percent numeric,
  disk_percent numeric,
  rss_mb numeric,
  constraint kind_is_known check (kind in ('minute', 'state')),
  constraint somebody_is_meant check (vps_id is not null or account_id is not null)
);
comment on table public.connection_health_logs is 'Health over time: one row per VPS and minute, and one per change of state of a VPS or an account.';
comment on column public.connection_health_logs.id is 'Number of the row.';
comment on column public.connection_health_logs.at is 'When; for kind minute the beginning of the minute.';
comment on column public.connection_health_logs.kind is 'minute (sample) or state (something changed).';
comment on column public.connection_health_logs.vps_id is 'The VPS; for an account the VPS that works it.';
comment on column public.connection_health_logs.account_id is 'The account whose connection changed; null: the row is about the VPS.';
comment on column public.connection_health_logs.status is 'Status then (of the VPS or the account).';
comment on column public.connection_health_logs.previous_status is 'Status before; kind state only.';
comment on column public.connection_health_logs.reason is 'What the agent said about it.';
comment on column public.connection_health_logs.accounts is 'How many accounts the VPS had.';
comment on column public.connection_health_logs.heartbeat_age_ms is 'Age of its last heartbeat.';
comment on column public.connection_health_logs.rtt_ms is 'Round trip to the database.';
comment on column public.connection_health_logs.clock_offset_ms is 'Database clock minus agent clock.';
comment on column public.connection_health_logs.cpu_percent is 'Load of the machine.';
comment on column public.connection_health_logs.memory_percent is 'Memory in use on the machine.';
comment on column public.connection_health_logs.disk_percent is 'Disk in use on the machine.';
comment on column public.connection_health_logs.rss_mb is 'Memory of the agent.';

-- one sample per VPS and minute, whoever runs maintain(); also: the health of one VPS over time
create unique index one_sample_per_vps_and_minute on public.connection_health_logs (vps_id, at) where kind = 'minute';
-- what happened to one account
create index health_of_account on public.connection_health_logs (account_id, at) where account_id is not null;
-- retention; what changed since the last doorbell
create index health_by_time on public.connection_health_logs (at);

alter table public.connection_health_logs enable row level security;


-- What runs by the clock, and when it last did. Only the holder of the advisory lock of that name writes its row.
create table private.clockwork (
  name text primary key,
  last_run_at timestamptz not null default 'epoch',
  last_xmin bigint not null default 0,
  last_error text
);
comment on table private.clockwork is 'When maintain() and its parts last ran.';
comment on column private.clockwork.name is 'What runs.';
comment on column private.clockwork.last_run_at is 'When it last ran.';
comment on column private.clockwork.last_xmin is 'doorbells: every transaction below this number was over at the last ring.';
comment on column private.clockwork.last_error is 'What went wrong in the last run; null: nothing.';
alter table private.clockwork enable row level security;
insert into private.clockwork (name) values ('maintain'), ('doorbells'), ('health'), ('partitions'), ('retention');


create table private.doorbells (
  topic text primary key,
  changed_at timestamptz not null,
  due boolean not null,
  rung_at timestamptz
);
comment on table private.doorbells is 'Dashboards'' topics: which are to be rung. Written only by ring_doorbells().';
comment on column private.doorbells.topic is 'user:<id> or operators.';
comment on column private.doorbells.changed_at is 'Since when a ring is due.';
comment on column private.doorbells.due is 'Whether something changed after the last ring.';
comment on column private.doorbells.rung_at is 'When it was last rung.';
alter table private.doorbells enable row level security;


-- The caller's VPS. Called at the head of every function for agents: one lookup in a unique index.
create function private.agent_vps() returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_vps uuid;
  v_retired_at timestamptz;
begin
  select v.id, v.retired_at into v_vps, v_retired_at from public.vps_instances v where v.user_id = auth.uid();
  if not found then
    raise exception using errcode = 'TC101', message = 'the caller is not an agent',
      hint = 'Sign in as the agent''s own user: tradecopier agent enroll makes it.';
  end if;
  if v_retired_at is not null then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  return v_vps;
end
$$;
comment on function private.agent_vps() is 'The VPS whose agent is calling; TC101 if the caller is not an agent, TC102 if its VPS is retired.';


create function private.require_user() returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_user uuid := auth.uid();
begin
  if v_user is null then
    raise exception using errcode = 'TC108', message = 'nobody is signed in', hint = 'Sign in and try again.';
  end if;
  if exists (select from public.vps_instances v where v.user_id = v_user) then
    raise exception using errcode = 'TC105', message = 'agents may not call this function',
      hint = 'Sign in as a user.';
  end if;
  return v_user;
end
$$;
comment on function private.require_user() is 'The signed-in user who is calling; TC108 if nobody is, TC105 if it is an agent.';


-- Every change of a VPS's status leaves a row, whoever made it.
create function private.log_vps_state() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  insert into public.connection_health_logs (kind, vps_id, status, previous_status, heartbeat_age_ms, rtt_ms)
  values ('state', new.id, new.status, old.status,
          round(extract(epoch from now() - new.last_heartbeat_at) * 1000, 1), new.rtt_ms);
  return null;
end
$$;
comment on function private.log_vps_state() is 'Trigger: writes a change of a VPS''s status into connection_health_logs.';

create trigger log_state after update of status on public.vps_instances for each row
  when (old.status is distinct from new.status) execute function private.log_vps_state();


grant select on public.vps_instances, public.enrollment_tokens, public.connection_health_logs to authenticated, service_role;

-- 13_process.sql
-- Which agent process works as a VPS. A machine that is cloned while it runs has the same identity twice, and each of the two would send
-- every order: the newest process works, the one before is refused (TC110) and stops.
--
-- A process names itself in each heartbeat: {"id", "machine", "beat", "new"}. "machine" is the same only where the lock on the agent's
-- data directory proves that the process before has gone: then its successor begins at once. From anywhere else it begins when the
-- lease of the one before is over, for that one may not have heard yet. "beat" counts, so that a copy of a running process, which
-- has the same id, is noticed as well. "new" stands until the first answer: only that one may take over from a living process.

create function private.refuse_process(p_vps uuid) returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC110', message = 'another process works as this VPS', detail = p_vps::text,
    hint = 'Two machines run with one identity (a clone?). Stop one of them, or enrol it as a VPS of its own; this one trades nothing until the other is gone.';
end
$$;
comment on function private.refuse_process(uuid) is 'Tells a process that it is not, or no longer, the one that works as this VPS.';


-- When the process may begin to trade. The caller writes down the beat.
create function private.admit_process(p_vps uuid, p_process jsonb) returns timestamptz
language plpgsql
set search_path = ''
as $$
declare
  v_id text := private.text_of(p_process, 'id', 64);
  v_machine text := private.text_of(p_process, 'machine', 64);
  v_beat bigint := private.int_of(p_process, 'beat', 0, 9223372036854775807);
  v_old public.vps_instances;
  v_alive boolean;
  v_begins_at timestamptz := clock_timestamp();
begin
  if v_id is null or v_beat is null then
    return '-infinity';
  end if;
  select v.* into v_old from public.vps_instances v where v.id = p_vps for no key update;
  v_alive := v_old.process is not null and v_old.lease_expires_at > clock_timestamp();
  if v_old.process = v_id and v_beat > v_old.process_beat then
    return v_old.process_begins_at;
  end if;
  if v_alive and (v_old.process = v_id or p_process -> 'new' is distinct from 'true') then
    perform private.refuse_process(p_vps);
  end if;
  if v_alive then
    v_begins_at := greatest(v_begins_at, v_old.process_begins_at);
  end if;
  if v_alive and v_old.process_machine is distinct from v_machine then
    v_begins_at := greatest(v_begins_at, v_old.lease_expires_at);
    perform private.write_audit('process_replaced', 'vps_instances', p_vps::text, null,
      jsonb_build_object('since', v_old.process_since, 'begins_at', private.rfc3339(v_begins_at)));
    -- whoever listens there asks for a heartbeat, and learns it
    perform private.broadcast('vps:' || p_vps, 'assignments', '{}');
  end if;
  update public.vps_instances v
  set process = v_id, process_machine = v_machine, process_since = clock_timestamp(), process_begins_at = v_begins_at
  where v.id = p_vps;
  return v_begins_at;
end
$$;
comment on function private.admit_process(uuid, jsonb) is 'From when on the process that calls may trade as this VPS; raises TC110 when another one works.';

-- 14_account.sql
-- trading_accounts: what users connect; the instruments each account knows, and its equity over time.

create table public.trading_accounts (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete restrict,
  platform text not null,
  server text not null,
  login text not null,
  name text not null,
  mode text not null default 'hedging',
  currency text not null default 'USD',
  leverage integer,
  balance numeric,
  equity numeric,
  margin numeric,
  free_margin numeric,
  funds_at timestamptz,
  status text not null default 'pending',
  status_reason text,
  status_at timestamptz not null default now(),
  session bigint not null default 0,
  session_vps_id uuid references public.vps_instances (id) on delete set null,
  session_opened_at timestamptz,
  snapshot_session bigint not null default 0,
  seen_at timestamptz,
  copy_state text not null default 'on',
  copy_state_reason text,
  flatten_manual boolean not null default false,
  flatten_then text not null default 'off',
  flat_snapshots integer not null default 0,
  flattened_at timestamptz,
  secret_id uuid,
  settings jsonb not null default '{}',
  symbol_prefix text not null default '',
  symbol_suffix text not null default '',
  removed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint names_are_short check (length(name) between 1 and 100 and length(server) between 1 and 200
    and length(login) between 1 and 100),
  constraint mode_is_known check (mode in ('hedging', 'netting')),
  constraint currency_is_a_code check (currency ~ '^[A-Z0-9]{2,10}$'),
  constraint leverage_is_positive check (leverage > 0),
  constraint status_is_known check (status in ('pending', 'connecting', 'connected', 'degraded', 'disconnected', 'halted')),
  constraint copy_state_is_known check (copy_state in ('on', 'monitor', 'off', 'flattening')),
  constraint flatten_then_is_known check (flatten_then in ('on', 'monitor', 'off')),
  constraint settings_are_an_object check (jsonb_typeof(settings) = 'object')
) with (fillfactor = 70);
comment on table public.trading_accounts is 'A user''s account at a broker. Master or follower is what it is inside a copier, never a kind of account.';
comment on column public.trading_accounts.id is 'Number of the account.';
comment on column public.trading_accounts.user_id is 'Whose it is. A user with accounts cannot be deleted: close them first.';
comment on column public.trading_accounts.platform is 'Platform, a key of the setting "platforms".';
comment on column public.trading_accounts.server is 'Broker''s server, as the platform names it.';
comment on column public.trading_accounts.login is 'Login at the broker.';
comment on column public.trading_accounts.name is 'What its user calls it.';
comment on column public.trading_accounts.mode is 'hedging (a position per trade) or netting (one per symbol).';
comment on column public.trading_accounts.currency is 'Currency of its money.';
comment on column public.trading_accounts.leverage is 'Leverage, 100 means 1:100.';
comment on column public.trading_accounts.balance is 'Balance in currency.';
comment on column public.trading_accounts.equity is 'Equity in currency.';
comment on column public.trading_accounts.margin is 'Margin in use, in currency.';
comment on column public.trading_accounts.free_margin is 'Free margin in currency.';
comment on column public.trading_accounts.funds_at is 'When the four figures were measured.';
comment on column public.trading_accounts.status is 'pending (never connected), connecting, connected, degraded, disconnected, halted (the broker refuses trading or the password).';
comment on column public.trading_accounts.status_reason is 'What its agent says about the status.';
comment on column public.trading_accounts.status_at is 'When the status last changed.';
comment on column public.trading_accounts.session is 'Number of the last login that was opened; events and reports are numbered within it.';
comment on column public.trading_accounts.session_vps_id is 'The VPS that opened it.';
comment on column public.trading_accounts.session_opened_at is 'When it was opened.';
comment on column public.trading_accounts.snapshot_session is 'The last session whose first snapshot was applied.';
comment on column public.trading_accounts.seen_at is 'Last moment its agent had it connected and clean: a change found after a gap is as old as this.';
comment on column public.trading_accounts.copy_state is 'on; monitor (decide, place nothing); off (leave everything alone); flattening (closing all, then off).';
comment on column public.trading_accounts.copy_state_reason is 'What set copy_state when it was not its user: the kind of a protection rule, or stop_out.';
comment on column public.trading_accounts.flatten_then is 'The copy_state that follows when it is flat.';
comment on column public.trading_accounts.flatten_manual is 'Whether flattening closes what the user opened by hand, too.';
comment on column public.trading_accounts.flat_snapshots is 'Good snapshots in a row that showed nothing left while flattening; two end it.';
comment on column public.trading_accounts.flattened_at is 'When it was last flattened: copies from before are closed, even those that turn up later.';
comment on column public.trading_accounts.secret_id is 'Its password in Vault; null: it needs none.';
comment on column public.trading_accounts.settings is 'What its platform wants to know besides; no secrets.';
comment on column public.trading_accounts.symbol_prefix is 'What its broker puts before symbols, learned from those known everywhere.';
comment on column public.trading_accounts.symbol_suffix is 'What its broker puts after symbols, learned from those known everywhere.';
comment on column public.trading_accounts.removed_at is 'When its user removed it; the row stays for the history.';
comment on column public.trading_accounts.created_at is 'When it was connected first.';
comment on column public.trading_accounts.updated_at is 'When the row last changed. Not indexed: the figures change every few seconds, and an index would cost more than the scan once a second.';

-- one connection per account at a broker, whoever owns it; a removed one may be connected again
create unique index account_is_connected_once on public.trading_accounts (platform, server, login) where removed_at is null;
-- a user's accounts, and the policies of everything that hangs on them
create index accounts_of_user on public.trading_accounts (user_id);

alter table public.trading_accounts enable row level security;
create policy "users see their accounts, operators all" on public.trading_accounts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));

create trigger touch before update on public.trading_accounts for each row execute function private.touch();


create table public.account_symbols (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  name text not null,
  contract_size numeric not null,
  tick_size numeric not null,
  digits integer not null,
  profit_currency text not null,
  margin_currency text not null,
  lots_min numeric not null,
  lots_max numeric not null,
  lots_step numeric not null,
  stops_level_points integer not null default 0,
  freeze_level_points integer not null default 0,
  trade_mode text not null default 'full',
  bid numeric,
  ask numeric,
  quoted_at timestamptz,
  updated_at timestamptz not null default now(),
  primary key (account_id, name),
  constraint contract_size_is_positive check (contract_size > 0 and contract_size < 'Infinity'),
  constraint tick_size_is_positive check (tick_size > 0 and tick_size < 'Infinity'),
  constraint digits_are_few check (digits between 0 and 15),
  -- NaN is greater than everything to Postgres: every figure needs an upper bound
  constraint lots_fit check (lots_min > 0 and lots_step > 0 and lots_min <= lots_max and lots_step <= lots_max and lots_max < 'Infinity'),
  constraint stops_level_is_not_negative check (stops_level_points >= 0),
  constraint freeze_level_is_not_negative check (freeze_level_points >= 0),
  constraint trade_mode_is_known check (trade_mode in ('full', 'long_only', 'short_only', 'close_only', 'disabled')),
  constraint quote_is_positive check (bid > 0 and ask > 0 and bid < 'Infinity' and ask < 'Infinity')
) with (fillfactor = 80);
comment on table public.account_symbols is 'An instrument as one account sees it, with its last quote.';
comment on column public.account_symbols.account_id is 'The account.';
comment on column public.account_symbols.name is 'The broker''s name of the instrument, suffix included.';
comment on column public.account_symbols.contract_size is 'Units per lot.';
comment on column public.account_symbols.tick_size is 'Smallest step of the price, in price units.';
comment on column public.account_symbols.digits is 'Decimals of the price; a point is 10 to the minus digits.';
comment on column public.account_symbols.profit_currency is 'Currency in which profit arises.';
comment on column public.account_symbols.margin_currency is 'Currency in which margin is asked.';
comment on column public.account_symbols.lots_min is 'Smallest volume in lots.';
comment on column public.account_symbols.lots_max is 'Largest volume of one order in lots.';
comment on column public.account_symbols.lots_step is 'Step of the volume in lots.';
comment on column public.account_symbols.stops_level_points is 'Least distance of SL and TP from the price.';
comment on column public.account_symbols.freeze_level_points is 'Distance from the price within which SL and TP cannot be changed any more.';
comment on column public.account_symbols.trade_mode is 'What the broker allows: full, long_only, short_only, close_only, disabled.';
comment on column public.account_symbols.bid is 'Last bid.';
comment on column public.account_symbols.ask is 'Last ask.';
comment on column public.account_symbols.quoted_at is 'When the quote was seen, database clock.';
comment on column public.account_symbols.updated_at is 'When the row last changed.';

alter table public.account_symbols enable row level security;
create policy "users see symbols of their accounts, operators all" on public.account_symbols for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

create trigger touch before update on public.account_symbols for each row execute function private.touch();


create table public.account_snapshots (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  at timestamptz not null,
  balance numeric not null,
  equity numeric not null,
  margin numeric,
  free_margin numeric,
  primary key (account_id, at)
);
comment on table public.account_snapshots is 'Equity of an account over time, one row per snapshot_every_s.';
comment on column public.account_snapshots.account_id is 'The account.';
comment on column public.account_snapshots.at is 'Beginning of the interval that the row stands for.';
comment on column public.account_snapshots.balance is 'Balance in the account''s currency.';
comment on column public.account_snapshots.equity is 'Equity in the account''s currency.';
comment on column public.account_snapshots.margin is 'Margin in use.';
comment on column public.account_snapshots.free_margin is 'Free margin.';

-- retention
create index snapshots_by_time on public.account_snapshots (at);

alter table public.account_snapshots enable row level security;
create policy "users see the equity of their accounts, operators all" on public.account_snapshots for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

alter table public.connection_health_logs
  add constraint health_is_of_an_account foreign key (account_id) references public.trading_accounts (id) on delete cascade;
create policy "users see the health of their accounts, operators all" on public.connection_health_logs for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));


-- Every change of an account's connection leaves a row, whoever made it.
create function private.log_account_state() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.status_at := now();
  insert into public.connection_health_logs (kind, vps_id, account_id, status, previous_status, reason)
  values ('state', new.session_vps_id, new.id, new.status, old.status, new.status_reason);
  return new;
end
$$;
comment on function private.log_account_state() is 'Trigger: writes a change of an account''s status into connection_health_logs.';

create trigger log_state before update of status on public.trading_accounts for each row
  when (old.status is distinct from new.status) execute function private.log_account_state();


grant select on public.trading_accounts, public.account_symbols, public.account_snapshots to authenticated, service_role;

-- 16_assignment.sql
-- account_vps_assignments: which VPS works an account. The epoch fences off whoever did before.

create table public.account_vps_assignments (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade,
  vps_id uuid not null references public.vps_instances (id),
  epoch bigint not null default 1,
  begins_at timestamptz not null default now(),
  previous_vps_id uuid references public.vps_instances (id),
  assigned_at timestamptz not null default now(),
  constraint epoch_counts_from_one check (epoch >= 1)
);
comment on table public.account_vps_assignments is 'The one VPS that works an account. Earlier ones stand in audit_log.';
comment on column public.account_vps_assignments.account_id is 'The account.';
comment on column public.account_vps_assignments.vps_id is 'The VPS that works it.';
comment on column public.account_vps_assignments.epoch is 'Fencing token: grows on each move; calls with an older one are refused.';
comment on column public.account_vps_assignments.begins_at is 'Before this the agent may read but not trade: the one before may still send until then.';
comment on column public.account_vps_assignments.previous_vps_id is 'The VPS that begins_at waits for; null once it let go.';
comment on column public.account_vps_assignments.assigned_at is 'When it was assigned.';

-- accounts of a VPS: heartbeat, load, failover
create index assignments_of_vps on public.account_vps_assignments (vps_id);
-- which accounts wait for a VPS to let go: heartbeat
create index assignments_waiting_for_vps on public.account_vps_assignments (previous_vps_id) where previous_vps_id is not null;

alter table public.account_vps_assignments enable row level security;
create policy "users see where their accounts are, operators all" on public.account_vps_assignments for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));


-- The gate of every function by which an agent does something to an account.
create function private.require_assignment(p_vps uuid, p_account uuid, p_epoch bigint) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_lease_expires_at timestamptz;
begin
  select v.lease_expires_at into v_lease_expires_at
  from public.account_vps_assignments s
  join public.vps_instances v on v.id = s.vps_id
  where s.account_id = p_account and s.vps_id = p_vps and s.epoch = p_epoch;
  if not found then
    raise exception using errcode = 'TC103', message = 'the account is not assigned to this VPS with this epoch',
      detail = format('account %s, epoch %s', p_account, p_epoch),
      hint = 'Stop trading the account and ask for a heartbeat.';
  end if;
  if v_lease_expires_at <= clock_timestamp() then
    raise exception using errcode = 'TC104', message = 'the lease of this VPS is over',
      detail = format('since %s', v_lease_expires_at), hint = 'Renew it with a heartbeat first.';
  end if;
end
$$;
comment on function private.require_assignment(uuid, uuid, bigint) is
  'Raises TC103 unless the account is assigned to the VPS with this epoch, TC104 if the lease of the VPS is over.';


grant select on public.account_vps_assignments to authenticated, service_role;

-- 17_alert.sql
-- Alerts: what a user has to know without looking for it. One place for all of them: whoever finds something calls private.raise_alert().

create table public.alerts (
  id bigint generated always as identity primary key,
  user_id uuid not null references auth.users (id) on delete cascade,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  reason text not null,
  severity text not null default 'warning',
  message text not null,
  detail jsonb not null default '{}',
  times integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  seen_at timestamptz,
  constraint kind_and_reason_are_codes check (kind ~ '^[a-z][a-z0-9_]{1,39}$' and reason ~ '^[a-z][a-z0-9_]{1,39}$'),
  constraint severity_is_known check (severity in ('info', 'warning', 'critical')),
  constraint message_says_something check (length(message) between 10 and 1000),
  constraint detail_is_an_object check (jsonb_typeof(detail) = 'object')
);
comment on table public.alerts is 'What a user has to know of an account. Until it is seen, the same thing (account, kind, reason) stays one row that counts.';
comment on column public.alerts.id is 'Number of the alert.';
comment on column public.alerts.user_id is 'Whose account it is about.';
comment on column public.alerts.account_id is 'The account.';
comment on column public.alerts.kind is 'What spoke up: protection, stop_out, …';
comment on column public.alerts.reason is 'What happened, as a code: the kind of a protection rule, a reason of docs/errors.md, …';
comment on column public.alerts.severity is 'info; warning; critical = positions were closed, or money is at risk until somebody looks.';
comment on column public.alerts.message is 'What happened, to what, and what to do.';
comment on column public.alerts.detail is 'The figures behind it.';
comment on column public.alerts.times is 'How often it happened since it was last seen.';
comment on column public.alerts.created_at is 'When it happened first.';
comment on column public.alerts.updated_at is 'When it happened last, or was seen.';
comment on column public.alerts.seen_at is 'When its user said so; what happens afterwards is a new alert.';

-- raise_alert: the one that is still unseen
create unique index alert_is_one_until_seen on public.alerts (account_id, kind, reason) where seen_at is null;
-- the dashboard; doorbells and retention
create index alerts_of_user on public.alerts (user_id, created_at desc);
create index alerts_updated on public.alerts (updated_at);

alter table public.alerts enable row level security;
create policy "own alerts are readable" on public.alerts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.alerts for each row execute function private.touch();
grant select on public.alerts to authenticated, service_role;


-- Security definer: called wherever something is found, also in an agent's name.
create function private.raise_alert(p_account uuid, p_kind text, p_reason text, p_severity text, p_message text, p_detail jsonb) returns bigint
language plpgsql security definer
set search_path = ''
as $$
declare
  v_id bigint;
begin
  insert into public.alerts as x (user_id, account_id, kind, reason, severity, message, detail)
  select a.user_id, a.id, p_kind, p_reason, p_severity, left(p_message, 1000), coalesce(p_detail, '{}')
  from public.trading_accounts a where a.id = p_account
  on conflict (account_id, kind, reason) where seen_at is null
  do update set times = x.times + 1, severity = excluded.severity, message = excluded.message, detail = excluded.detail
  returning x.id into v_id;
  return v_id;
end
$$;
comment on function private.raise_alert(uuid, text, text, text, text, jsonb) is
  'Tells the account''s user something: (account, kind, reason, severity, message, detail). Unseen, the same thing is counted, not repeated.';


-- {"alert_id"} -> {"alert_id", "seen_at"}. Again changes nothing.
create function private.mark_alert_seen(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.require_user();
  v_id bigint := private.int_of(p_request, 'alert_id', 1, 9223372036854775807);
  v_seen timestamptz;
begin
  update public.alerts a set seen_at = coalesce(a.seen_at, clock_timestamp())
  where a.id = v_id and (a.user_id = v_user or private.is_operator())
  returning a.seen_at into v_seen;
  if v_seen is null then
    raise exception using errcode = 'TC106', message = format('mark_alert_seen: alert %s does not exist or is not yours', p_request ->> 'alert_id'),
      hint = 'Check the id.';
  end if;
  return jsonb_build_object('alert_id', v_id, 'seen_at', private.rfc3339(v_seen));
end
$$;
comment on function private.mark_alert_seen(jsonb) is 'Users: {"alert_id"} -> {"alert_id", "seen_at"}.';

create function public.mark_alert_seen(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.mark_alert_seen(p_request) $$;
comment on function public.mark_alert_seen(jsonb) is 'Users: marks an alert of one of their accounts as seen; what happens afterwards is a new alert.';

grant execute on function private.mark_alert_seen(jsonb), public.mark_alert_seen(jsonb) to authenticated;

-- 18_audit.sql
-- audit_log: who changed what. Written by triggers, so that no caller can forget it; nobody can change it.

create table public.audit_log (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  actor text not null,
  actor_id uuid,
  action text not null,
  entity text not null,
  entity_id text not null,
  user_id uuid,
  details jsonb not null default '{}',
  constraint actor_is_known check (actor in ('user', 'operator', 'agent', 'service', 'system')),
  constraint details_are_an_object check (jsonb_typeof(details) = 'object')
);
comment on table public.audit_log is 'Who changed what, and when. Append-only.';
comment on column public.audit_log.id is 'Number of the entry.';
comment on column public.audit_log.at is 'When.';
comment on column public.audit_log.actor is 'user, operator, agent, service (the secret key) or system (maintain(), migrations).';
comment on column public.audit_log.actor_id is 'Auth user who did it; null: service or system. No foreign key: an entry outlives its user.';
comment on column public.audit_log.action is 'inserted, updated, deleted, or a verb such as credentials_read.';
comment on column public.audit_log.entity is 'Table of the row.';
comment on column public.audit_log.entity_id is 'Key of the row.';
comment on column public.audit_log.user_id is 'The user whose row it is, who may read the entry; null: the farm''s.';
comment on column public.audit_log.details is 'inserted: values; updated: {"column": [before, after]}; never a secret.';

-- a user's history
create index audit_of_user on public.audit_log (user_id, at) where user_id is not null;
-- the history of one row
create index audit_of_entity on public.audit_log (entity, entity_id, at);
-- retention
create index audit_by_time on public.audit_log (at);

alter table public.audit_log enable row level security;
create policy "users see their history, operators all" on public.audit_log for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));


create function private.actor() returns text
language sql stable
set search_path = ''
as $$
  select case
    when auth.role() = 'service_role' then 'service'
    when auth.uid() is null then 'system'
    when exists (select from public.vps_instances v where v.user_id = auth.uid()) then 'agent'
    when private.is_operator() then 'operator'
    else 'user'
  end
$$;
comment on function private.actor() is 'What the caller is, in the words of audit_log.actor.';


create function private.write_audit(p_action text, p_entity text, p_entity_id text, p_user uuid, p_details jsonb)
returns void
language sql
set search_path = ''
as $$
  insert into public.audit_log (actor, actor_id, action, entity, entity_id, user_id, details)
  values (private.actor(), auth.uid(), p_action, p_entity, p_entity_id, p_user, p_details)
$$;
comment on function private.write_audit(text, text, text, uuid, jsonb) is 'One entry in audit_log by the caller.';


-- Trigger arguments: key column, owner ('user_id' = that column, 'account' = owner of account_id, '' = nobody), then the
-- columns to write down. An update that touches none of them leaves no entry.
create function private.audit() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) else '{}' end;
  v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) else '{}' end;
  v_row jsonb := case when tg_op = 'DELETE' then to_jsonb(old) else to_jsonb(new) end;
  v_user uuid;
  v_details jsonb;
begin
  select coalesce(jsonb_object_agg(c.name, case tg_op
      when 'UPDATE' then jsonb_build_array(v_old -> c.name, v_new -> c.name)
      else v_row -> c.name end), '{}')
  into v_details
  from unnest(tg_argv[2:]) as c (name)
  where tg_op <> 'UPDATE' or v_old -> c.name is distinct from v_new -> c.name;
  if tg_op = 'UPDATE' and v_details = '{}' then
    return null;
  end if;
  v_user := case tg_argv[1]
    when '' then null
    when 'account' then (select a.user_id from public.trading_accounts a where a.id = (v_row ->> 'account_id')::uuid)
    else (v_row ->> tg_argv[1])::uuid
  end;
  perform private.write_audit(case tg_op when 'INSERT' then 'inserted' when 'UPDATE' then 'updated' else 'deleted' end,
                              tg_table_name, v_row ->> tg_argv[0], v_user, v_details);
  return null;
end
$$;
comment on function private.audit() is
  'Trigger (key column, owner, columns…): writes inserts, deletes and changes of these columns into audit_log.';


create function private.keep_audit() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  if tg_op = 'DELETE' and old.at < now() - private.setting_days('retention_days.audit_log') then
    return old;
  end if;
  raise exception using errcode = 'TC240', message = 'the audit log is append-only',
    hint = 'Entries go when they are older than the setting retention_days.audit_log, and not before.';
end
$$;
comment on function private.keep_audit() is 'Trigger: refuses every change of audit_log but the removal of what is past its retention.';

create trigger append_only before update or delete on public.audit_log for each row execute function private.keep_audit();
create trigger append_only_truncate before truncate on public.audit_log for each statement execute function private.keep_audit();

create trigger audited after insert or update or delete on public.system_config for each row
  execute function private.audit('key', '', 'value');
create trigger audited after insert or delete on public.operators for each row
  execute function private.audit('user_id', 'user_id', 'user_id');
create trigger audited after insert or update of name, user_id, platforms, capacity, status or delete on public.vps_instances for each row
  execute function private.audit('id', '', 'name', 'user_id', 'region', 'platforms', 'capacity', 'status');
create trigger audited after insert or update of used_at or delete on public.enrollment_tokens for each row
  execute function private.audit('id', '', 'name', 'created_by', 'expires_at', 'used_at', 'vps_id');
create trigger audited after insert or update of name, copy_state, secret_id, settings, removed_at or delete on public.trading_accounts for each row
  execute function private.audit('id', 'user_id', 'platform', 'server', 'login', 'name', 'copy_state', 'secret_id', 'settings', 'removed_at');
create trigger audited after insert or update of vps_id, epoch or delete on public.account_vps_assignments for each row
  execute function private.audit('account_id', 'account', 'vps_id', 'epoch');


grant select on public.audit_log to authenticated, service_role;

-- 19_enroll.sql
-- Enrolment: how a machine becomes a VPS of the farm, and how its agent signs in again.
--
-- The contract with the Edge Function "enroll", the only caller of the three functions for the service key:
--
--   POST enroll {"token", "name", "platforms": ["mt5"], "region"?, "capacity"?}
--     1. check_enrollment({"token", "name", "platforms"})    -> {"name"}    raises TC210, TC211, TC001; changes nothing
--     2. Auth admin API: create a confirmed user for the agent, e-mail agent-<random>@<something>.invalid
--     3. make a secret of 32 random bytes (hex or base64url), secret_hash = lower-case hex of SHA-256 over its UTF-8 text
--     4. enroll_vps({"token", "name", "platforms", "region"?, "capacity"?, "user_id", "secret_hash"})
--        -> {"vps_id", "name"}; uses the token up. If it raises: delete the user of step 2.
--     5. answer {"vps_id", "name", "secret", session of the user}. The secret is shown this once.
--   POST enroll {"vps_id", "secret"}     (an agent without a usable session; a CAPTCHA may guard the password grant)
--     1. agent_session({"vps_id", "secret"}) -> {"vps_id", "name", "user_id", "email"}; raises TC102 (retired), TC212
--     2. Auth admin API: a session for that user (generateLink "magiclink", then verifyOtp), answer it.

create function private.sha256_hex(p_text text) returns text
language sql immutable
set search_path = ''
as $$ select encode(sha256(convert_to(p_text, 'UTF8')), 'hex') $$;
comment on function private.sha256_hex(text) is 'SHA-256 of a text in UTF-8, lower-case hex.';


-- Security definer: writes enrollment_tokens, which no API role may.
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
  if v_name is not null then
    perform private.require_free_name(v_name);
  end if;
  insert into public.enrollment_tokens (token_hash, name, created_by, expires_at)
  values (private.sha256_hex(v_token), v_name, auth.uid(), v_expires_at);
  return jsonb_build_object('token', v_token, 'name', v_name, 'expires_at', v_expires_at);
end
$$;
comment on function private.create_enrollment_token(jsonb) is
  'Operators: {"name"?} -> {"token", "name", "expires_at"}. The token is good for one VPS and shown only here.';


create function private.require_free_name(p_name text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' then
    raise exception using errcode = 'TC001', message = 'name: expected 1 to 63 letters, digits, dots, dashes or underscores',
      detail = coalesce(p_name, 'null');
  end if;
  if exists (select from public.vps_instances v where v.name = p_name and v.retired_at is null) then
    raise exception using errcode = 'TC211', message = format('there is already a VPS named %s', p_name),
      hint = 'Choose another name, or retire that VPS first.';
  end if;
end
$$;
comment on function private.require_free_name(text) is 'Raises TC001 or TC211 unless a new VPS may take this name.';


-- Locks the token's row, so that of two machines with one token one waits and is refused.
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
    raise exception using errcode = 'TC001', message = format('platforms: %s is not a platform', v_unknown);
  end if;
  v_token.name := coalesce(v_token.name, p_request ->> 'name');
  perform private.require_free_name(v_token.name);
  return v_token;
end
$$;
comment on function private.require_enrollment(jsonb) is 'The token of an enrolment with the name that the VPS will take; raises TC210, TC211, TC001.';


-- Security definer: reads enrollment_tokens.
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
comment on function private.check_enrollment(jsonb) is 'Service key: whether enroll_vps would accept this request; changes nothing.';


-- Security definer: writes vps_instances and its secret.
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
  values (v_token.name, v_user, coalesce(p_request ->> 'region', ''),
          array(select distinct jsonb_array_elements_text(p_request -> 'platforms') order by 1),
          coalesce(private.int_of(p_request, 'capacity', 1, 10000), 50))
  returning id into v_vps;
  insert into private.vps_secrets (vps_id, secret_hash) values (v_vps, p_request ->> 'secret_hash');
  update public.enrollment_tokens set used_at = now(), vps_id = v_vps where id = v_token.id and used_at is null;
  return jsonb_build_object('vps_id', v_vps, 'name', v_token.name);
end
$$;
comment on function private.enroll_vps(jsonb) is
  'Service key: {"token", "name", "platforms", "region"?, "capacity"?, "user_id", "secret_hash"} -> {"vps_id", "name"}; uses the token up.';


-- Security definer: reads secrets and auth.users.
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
  where v.id::text = p_request ->> 'vps_id' and s.secret_hash = private.sha256_hex(coalesce(p_request ->> 'secret', ''));
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
  'Service key: {"vps_id", "secret"} -> {"vps_id", "name", "user_id", "email"} of the agent''s auth user; TC212 if they do not match.';


create function public.create_enrollment_token(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.create_enrollment_token(p_request) $$;
comment on function public.create_enrollment_token(jsonb) is 'Operators: {"name"?} -> {"token", "name", "expires_at"}; the token is shown only here.';

create function public.check_enrollment(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.check_enrollment(p_request) $$;
comment on function public.check_enrollment(jsonb) is 'Service key: whether enroll_vps would accept this request.';

create function public.enroll_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.enroll_vps(p_request) $$;
comment on function public.enroll_vps(jsonb) is 'Service key: makes a VPS of a token and an auth user.';

create function public.agent_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.agent_session(p_request) $$;
comment on function public.agent_session(jsonb) is 'Service key: the auth user of a VPS that shows its secret.';


grant execute on function private.create_enrollment_token(jsonb), public.create_enrollment_token(jsonb) to authenticated, service_role;
grant execute on function
  private.check_enrollment(jsonb), public.check_enrollment(jsonb),
  private.enroll_vps(jsonb), public.enroll_vps(jsonb),
  private.agent_session(jsonb), public.agent_session(jsonb)
to service_role;

-- 20_copier.sql
-- Copiers: from a master account to a follower account, with sizing, filters and limits.

create table public.copiers (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  name text not null default '',
  master_account_id uuid not null references public.trading_accounts (id),
  follower_account_id uuid not null references public.trading_accounts (id),
  mode text not null default 'on',
  -- sizing: the keys of preview_copy's "copier"
  sizing_mode text not null default 'multiplier',
  sizing_value numeric not null default 1,
  contract_alignment boolean not null default true,
  min_policy text not null default 'skip',
  max_risk_coefficient numeric not null default 5,
  max_policy text not null default 'cap',
  max_lots numeric,
  max_risk_percent numeric,
  max_leverage numeric,
  max_leverage_policy text not null default 'discard',
  sanity_factor numeric default 3,
  reverse boolean not null default false,
  -- how
  sl_mode text not null default 'price',
  tp_mode text not null default 'price',
  sl_points integer,
  tp_points integer,
  max_sl_points integer,
  copy_pending boolean not null default true,
  copy_existing text not null default 'none',
  copy_existing_points integer,
  pending_grace_ms integer not null default 2000,
  early_fill_policy text not null default 'close',
  max_age_ms integer not null default 5000,
  retry_window_s integer not null default 60,
  no_money_policy text not null default 'skip',
  delay_min_ms integer not null default 0,
  delay_max_ms integer not null default 0,
  lots_jitter_percent numeric not null default 0,
  max_slippage_points integer,
  comment text not null default '',
  -- what is copied; closes are never filtered
  sides text not null default 'both',
  symbols_only text[] not null default '{}',
  symbols_except text[] not null default '{}',
  magic_only text[] not null default '{}',
  magic_except text[] not null default '{}',
  comment_only text[] not null default '{}',
  comment_except text[] not null default '{}',
  max_open_positions integer,
  max_open_lots numeric,
  max_trades_per_day integer,
  min_equity numeric,
  time_zone text not null default 'UTC',
  weekdays integer[] not null default '{1,2,3,4,5,6,7}',
  open_from time,
  open_until time,
  -- life
  started_at timestamptz not null default now(),
  existing_until timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  removal text,
  removed_at timestamptz,
  constraint accounts_differ check (master_account_id <> follower_account_id),
  constraint name_is_short check (length(name) <= 100),
  constraint mode_is_known check (mode in ('on', 'monitor', 'off')),
  constraint removal_is_known check (removal in ('preserve', 'close_gracefully', 'close_now')),
  constraint sizing_mode_is_known check (sizing_mode in
    ('multiplier', 'percentage', 'fixed', 'balance_ratio', 'equity_ratio', 'free_margin_ratio', 'risk_percent')),
  constraint sizing_value_in_range check (sizing_value > 0 and sizing_value <= 100000),
  constraint sizing_value_fits_sizing_mode check (sizing_mode = 'percentage' or sizing_value <= case sizing_mode when 'risk_percent' then 100 else 1000 end),
  constraint min_policy_is_known check (min_policy in ('skip', 'force_min')),
  constraint max_policy_is_known check (max_policy in ('cap', 'split')),
  constraint max_leverage_policy_is_known check (max_leverage_policy in ('discard', 'shrink')),
  constraint max_risk_coefficient_in_range check (max_risk_coefficient between 1 and 1000),
  constraint max_lots_in_range check (max_lots > 0 and max_lots <= 1000000),
  constraint max_risk_percent_in_range check (max_risk_percent > 0 and max_risk_percent <= 100),
  constraint max_leverage_in_range check (max_leverage > 0 and max_leverage <= 1000000),
  constraint sanity_factor_in_range check (sanity_factor between 1 and 1000000),
  constraint sl_mode_is_known check (sl_mode in ('price', 'distance', 'fixed', 'none')),
  constraint tp_mode_is_known check (tp_mode in ('price', 'distance', 'fixed', 'none')),
  constraint sl_points_in_range check (sl_points between 1 and 1000000),
  constraint tp_points_in_range check (tp_points between 1 and 1000000),
  constraint max_sl_points_in_range check (max_sl_points between 1 and 1000000),
  constraint fixed_sl_has_points check (sl_mode <> 'fixed' or sl_points is not null),
  constraint fixed_tp_has_points check (tp_mode <> 'fixed' or tp_points is not null),
  constraint pending_grace_in_range check (pending_grace_ms between 0 and 60000),
  constraint early_fill_policy_is_known check (early_fill_policy in ('close', 'keep')),
  constraint copy_existing_is_known check (copy_existing in ('none', 'all', 'near')),
  constraint copy_existing_points_not_negative check (copy_existing_points >= 0),
  constraint near_says_how_near check (copy_existing <> 'near' or copy_existing_points is not null),
  constraint max_age_in_range check (max_age_ms between 100 and 600000),
  constraint retry_window_in_range check (retry_window_s between 0 and 3600),
  constraint delay_in_range check (delay_max_ms between 0 and 3000),
  constraint delay_min_within_max check (delay_min_ms between 0 and delay_max_ms),
  constraint lots_jitter_in_range check (lots_jitter_percent between 0 and 50),
  constraint no_money_policy_is_known check (no_money_policy in ('skip', 'shrink')),
  constraint max_slippage_not_negative check (max_slippage_points >= 0),
  constraint comment_is_short check (length(comment) <= 60),
  constraint comment_placeholders_are_known check (replace(replace(replace(comment, '{master}', ''), '{ticket}', ''), '{copier}', '') !~ '[{}]'),
  constraint sides_are_known check (sides in ('both', 'buy', 'sell')),
  constraint max_open_positions_is_positive check (max_open_positions > 0),
  constraint max_open_lots_in_range check (max_open_lots > 0 and max_open_lots <= 1000000),
  constraint max_trades_per_day_is_positive check (max_trades_per_day > 0),
  constraint min_equity_in_range check (min_equity >= 0 and min_equity < 1e12),
  constraint weekdays_are_1_to_7 check (weekdays <@ '{1,2,3,4,5,6,7}' and cardinality(weekdays) > 0),
  constraint hours_come_in_pairs check ((open_from is null) = (open_until is null) and open_from is distinct from open_until or open_from is null)
);
comment on table public.copiers is 'From a master account to a follower account: what is copied, and how large. Never deleted, only removed_at is set.';
comment on column public.copiers.mode is 'on = copies; monitor = closes only; off = frozen, closes included';
comment on column public.copiers.sizing_value is 'multiplier, percent of the master''s size, fixed lots, ratio factor or risk percent, by sizing_mode';
comment on column public.copiers.contract_alignment is 'align different contract sizes, so that one lot means the same exposure';
comment on column public.copiers.min_policy is 'what to do with a size under the follower''s minimum';
comment on column public.copiers.max_policy is 'what to do with a size over the maximum: one order of the maximum, or several';
comment on column public.copiers.max_lots is 'cap on one copy, in lots of the follower';
comment on column public.copiers.sanity_factor is 'block a copy whose exposure per equity is more than this many times the master''s; null = never';
comment on column public.copiers.copy_existing is 'what the master holds when the copier is made: none, all, or near = if the price is within copy_existing_points of the master''s; decided then, never again';
comment on column public.copiers.copy_existing_points is 'how far the follower''s price may be from the master''s open price, in points of the follower''s symbol';
comment on column public.copiers.existing_until is 'until then quotes are awaited to decide what the master held at the start; null = that is decided';
comment on column public.copiers.sl_mode is 'price = the master''s level; distance = as far from the copy''s own open price as the master''s is from its; fixed = sl_points away; none';
comment on column public.copiers.tp_mode is 'price, distance, fixed (tp_points away) or none, as sl_mode';
comment on column public.copiers.sl_points is 'for sl_mode fixed: distance from the copy''s own open price, in points of the follower''s symbol';
comment on column public.copiers.tp_points is 'for tp_mode fixed: distance from the copy''s own open price, in points of the follower''s symbol';
comment on column public.copiers.max_sl_points is 'farthest stop loss of a copy from its own open price, in points; holds also when the master has none';
comment on column public.copiers.copy_pending is 'pending orders are copied as such; else their fills are copied, and their age counts from the fill';
comment on column public.copiers.pending_grace_ms is 'how long a copied order may fill later than the master''s before it is cancelled and opened at the market';
comment on column public.copiers.early_fill_policy is 'a copied order fills, then the master cancels its own: close the copy, or keep it (it is the user''s from then on)';
comment on column public.copiers.comment is 'what brokers show with a copy; {master}, {ticket} and {copier} stand for what it copies';
comment on column public.copiers.max_age_ms is 'an open seen later than this after the last look without it is refused as too_old';
comment on column public.copiers.retry_window_s is 'how long a refused open may be tried again (market closed, requote)';
comment on column public.copiers.delay_min_ms is 'with delay_max_ms: opens wait this long at least, at random between the two';
comment on column public.copiers.delay_max_ms is 'opens of hedging followers wait up to this long; closes and levels never; 0 = none. Whether your account''s rules allow it is yours to know';
comment on column public.copiers.lots_jitter_percent is 'sizes shrink at random by up to this; they never grow';
comment on column public.copiers.no_money_policy is 'an open refused for want of money is tried once more: as it was, or with what the free margin allows (shrink)';
comment on column public.copiers.sides is 'sides of the master that are copied: both, buy or sell';
comment on column public.copiers.symbols_only is 'symbols of the master, * stands for anything; empty = all';
comment on column public.copiers.symbols_except is 'symbols of the master that are left out, * stands for anything';
comment on column public.copiers.magic_only is 'magic numbers of the master''s trades; empty = all';
comment on column public.copiers.comment_only is 'comments of the master''s trades, * stands for anything; empty = all';
comment on column public.copiers.max_open_positions is 'copies held at once by this copier';
comment on column public.copiers.max_open_lots is 'lots held at once by this copier';
comment on column public.copiers.max_trades_per_day is 'copies opened since midnight in time_zone';
comment on column public.copiers.min_equity is 'nothing is opened while the follower''s equity is below, in its currency';
comment on column public.copiers.weekdays is 'ISO weekdays on which trades are opened, 1 = Monday, in time_zone';
comment on column public.copiers.open_from is 'with open_until: time of day in time_zone in which trades are opened; may reach over midnight';
comment on column public.copiers.removal is
  'being removed: preserve = its copies are the user''s own now; close_gracefully = they end with their master''s; close_now = they are closed now';
comment on column public.copiers.removed_at is 'since when nothing of it is left to do; set by the upkeep once its last copy has ended';
comment on column public.copiers.started_at is 'positions of the master that were seen before are not copied';

-- What each rule allows, in words: save_copier says them when a value breaks it (TC303, TC306).
comment on constraint accounts_differ on public.copiers is 'must be two different accounts';
comment on constraint name_is_short on public.copiers is 'must have at most 100 characters';
comment on constraint mode_is_known on public.copiers is 'must be on, monitor or off';
comment on constraint removal_is_known on public.copiers is 'must be preserve, close_gracefully or close_now';
comment on constraint sizing_mode_is_known on public.copiers is 'must be multiplier, percentage, fixed, balance_ratio, equity_ratio, free_margin_ratio or risk_percent';
comment on constraint sizing_value_in_range on public.copiers is 'must be above 0 and at most 1000 (percentage: 100000, risk_percent: 100)';
comment on constraint sizing_value_fits_sizing_mode on public.copiers is 'must fit together: at most 100 for risk_percent, 100000 for percentage, 1000 for the others';
comment on constraint min_policy_is_known on public.copiers is 'must be skip or force_min';
comment on constraint max_policy_is_known on public.copiers is 'must be cap or split';
comment on constraint max_leverage_policy_is_known on public.copiers is 'must be discard or shrink';
comment on constraint max_risk_coefficient_in_range on public.copiers is 'must be 1 to 1000';
comment on constraint max_lots_in_range on public.copiers is 'must be above 0 and at most 1000000, or null for no limit';
comment on constraint max_risk_percent_in_range on public.copiers is 'must be above 0 and at most 100, or null for no limit';
comment on constraint max_leverage_in_range on public.copiers is 'must be above 0 and at most 1000000, or null for no limit';
comment on constraint sanity_factor_in_range on public.copiers is 'must be 1 to 1000000, or null for no limit';
comment on constraint sl_mode_is_known on public.copiers is 'must be price, distance, fixed or none';
comment on constraint tp_mode_is_known on public.copiers is 'must be price, distance, fixed or none';
comment on constraint sl_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null';
comment on constraint tp_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null';
comment on constraint max_sl_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null for no limit';
comment on constraint fixed_sl_has_points on public.copiers is 'must fit together: fixed needs points';
comment on constraint fixed_tp_has_points on public.copiers is 'must fit together: fixed needs points';
comment on constraint pending_grace_in_range on public.copiers is 'must be 0 to 60000 milliseconds';
comment on constraint early_fill_policy_is_known on public.copiers is 'must be close or keep';
comment on constraint copy_existing_is_known on public.copiers is 'must be none, all or near';
comment on constraint copy_existing_points_not_negative on public.copiers is 'must be 0 or more points';
comment on constraint near_says_how_near on public.copiers is 'must go together: near needs a number of points';
comment on constraint max_age_in_range on public.copiers is 'must be 100 to 600000 milliseconds';
comment on constraint retry_window_in_range on public.copiers is 'must be 0 to 3600 seconds';
comment on constraint delay_in_range on public.copiers is 'must be 0 to 3000 milliseconds';
comment on constraint delay_min_within_max on public.copiers is 'must fit together: delay_min_ms from 0 to delay_max_ms';
comment on constraint lots_jitter_in_range on public.copiers is 'must be 0 to 50 percent';
comment on constraint no_money_policy_is_known on public.copiers is 'must be skip or shrink';
comment on constraint max_slippage_not_negative on public.copiers is 'must be 0 or more points, or null for no limit';
comment on constraint comment_is_short on public.copiers is 'must have at most 60 characters';
comment on constraint comment_placeholders_are_known on public.copiers is 'must have no braces but {master}, {ticket} and {copier}';
comment on constraint sides_are_known on public.copiers is 'must be both, buy or sell';
comment on constraint max_open_positions_is_positive on public.copiers is 'must be 1 or more, or null for no limit';
comment on constraint max_open_lots_in_range on public.copiers is 'must be above 0 and at most 1000000, or null for no limit';
comment on constraint max_trades_per_day_is_positive on public.copiers is 'must be 1 or more, or null for no limit';
comment on constraint min_equity_in_range on public.copiers is 'must be 0 or more and below 1e12, or null for no limit';
comment on constraint weekdays_are_1_to_7 on public.copiers is 'must be one or more of 1 (Monday) to 7 (Sunday)';
comment on constraint hours_come_in_pairs on public.copiers is 'must both be given and differ, or both be left out';

-- the planner: which copiers does this master feed; the follower's partners
create index copiers_of_master on public.copiers (master_account_id) where removed_at is null;
-- one that is being removed opens nothing: another may take its place already
create unique index copiers_one_per_pair on public.copiers (master_account_id, follower_account_id) where removed_at is null and removal is null;
-- upkeep: removals that may be over
create index copiers_leaving on public.copiers (follower_account_id, id) where removal is not null and removed_at is null;
create index copiers_of_follower on public.copiers (follower_account_id) where removed_at is null;
create index copiers_of_user on public.copiers (user_id);
create index copiers_with_existing on public.copiers (follower_account_id) where existing_until is not null;

create table public.symbol_mappings (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  copier_id uuid not null references public.copiers (id) on delete cascade,
  master_symbol text not null,
  follower_symbol text not null,
  created_at timestamptz not null default now(),
  constraint one_mapping_per_symbol unique (copier_id, master_symbol)
);
comment on table public.symbol_mappings is 'What the user says a symbol of the master is called at the follower; outranks every automatic match.';
create index symbol_mappings_of_user on public.symbol_mappings (user_id);

alter table public.copiers enable row level security;
alter table public.symbol_mappings enable row level security;
create policy "own copiers are readable" on public.copiers for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create policy "own symbol mappings are readable" on public.symbol_mappings for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.copiers, public.symbol_mappings to authenticated, service_role;

-- 21_copier_audit.sql
-- What users change about their copiers stands in audit_log.

create trigger audited after insert or update or delete on public.copiers for each row
  execute function private.audit('id', 'user_id', 'name', 'master_account_id', 'follower_account_id', 'mode', 'sizing_mode',
    'sizing_value', 'contract_alignment', 'min_policy', 'max_risk_coefficient', 'max_policy', 'max_lots', 'max_risk_percent',
    'max_leverage', 'max_leverage_policy', 'sanity_factor', 'reverse', 'sl_mode', 'tp_mode', 'sl_points', 'tp_points', 'max_sl_points', 'copy_pending', 'pending_grace_ms', 'early_fill_policy', 'max_age_ms',
    'retry_window_s', 'max_slippage_points', 'comment', 'removal', 'removed_at');
create trigger audited after insert or update or delete on public.symbol_mappings for each row
  execute function private.audit('id', 'user_id', 'copier_id', 'master_symbol', 'follower_symbol');

-- 22_sizing.sql
-- Sizing: how large a copy is. One pure function, used by the planner and, through preview_copy (23_preview.sql), by users.
-- All volumes are exact: quotients are taken with div() on numerator and denominator, never on a rounded ratio.

create type private.funds as (currency text, balance numeric, equity numeric, free_margin numeric);
comment on type private.funds is 'Money of an account in its own currency; null = unknown or too old to be used.';
create type private.sizing as (orders numeric[], raw_lots numeric, reason text, warnings text[], explain text[]);
comment on type private.sizing is 'orders: lots of each order, empty with a reason when there is nothing to place.';

create function private.plain(p numeric) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(p)::text;
end $$;

-- A quoted rate as a fraction: {rate, 1}, {1, rate} from the inverse, or null.
create function private.quoted_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
begin
  return case when (p_rates ->> (p_from || p_to))::numeric > 0 then array[(p_rates ->> (p_from || p_to))::numeric, 1]
    when (p_rates ->> (p_to || p_from))::numeric > 0 then array[1, (p_rates ->> (p_to || p_from))::numeric] end;
end $$;

-- Units of p_to for one unit of p_from, by rates like {"EURUSD": "1.0850"}: direct, inverse, or across USD or EUR; as {numerator, denominator},
-- for an inverse is no decimal number. Cent currencies count as their hundredth (USC = USD / 100). Null when the rates do not say.
create function private.exchange_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
declare
  v_from text := p_from;
  v_to text := p_to;
  v_num numeric := 1;
  v_den numeric := 1;
  v_rate numeric[];
  v_second numeric[];
  v_via text;
begin
  if v_from = v_to then return array[1, 1]; end if;
  if v_from in ('USC', 'EUC', 'GBC') then
    v_from := case v_from when 'USC' then 'USD' when 'EUC' then 'EUR' else 'GBP' end;
    v_den := 100;
  end if;
  if v_to in ('USC', 'EUC', 'GBC') then
    v_to := case v_to when 'USC' then 'USD' when 'EUC' then 'EUR' else 'GBP' end;
    v_num := 100;
  end if;
  if v_from = v_to then return array[v_num, v_den]; end if;
  v_rate := private.quoted_fraction(v_from, v_to, p_rates);
  if v_rate is not null then return array[v_rate[1] * v_num, v_rate[2] * v_den]; end if;
  foreach v_via in array array['USD', 'EUR'] loop
    v_rate := private.quoted_fraction(v_from, v_via, p_rates);
    v_second := private.quoted_fraction(v_via, v_to, p_rates);
    if v_rate is not null and v_second is not null then
      return array[v_rate[1] * v_second[1] * v_num, v_rate[2] * v_second[2] * v_den];
    end if;
  end loop;
  return null;
end $$;

create function private.exchange_rate(p_from text, p_to text, p_rates jsonb) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_fraction numeric[] := private.exchange_fraction(p_from, p_to, p_rates);
begin
  return v_fraction[1] / v_fraction[2];
end $$;

create function private.no_order(p_reason text, p_raw numeric, p_warnings text[], p_explain text[]) returns private.sizing
language plpgsql immutable set search_path = '' as $$
begin
  return row('{}'::numeric[], p_raw, p_reason, p_warnings, p_explain || ('Nothing is placed: ' || p_reason || '.'))::private.sizing;
end $$;

-- Size of one copy. p_side, p_price (> 0), p_sl and p_tp are the master's; p_lots is its volume or, for an increase, the increase.
-- p_rates: exchange rates for exchange_rate(). Longer than forty lines because the rules apply in this one order.
create function private.size_order(
  p_copier public.copiers, p_master private.funds, p_follower private.funds,
  p_master_symbol public.account_symbols, p_follower_symbol public.account_symbols,
  p_side text, p_lots numeric, p_price numeric, p_sl numeric, p_tp numeric, p_rates jsonb
) returns private.sizing
language plpgsql immutable set search_path = '' as $$
declare
  s public.account_symbols := p_follower_symbol;
  v_num numeric;           -- raw lots = v_num / v_den
  v_den numeric := 1;
  v_raw numeric;
  v_rate numeric[];        -- follower's account currency for one unit of the symbol's profit currency, as a fraction
  v_master_funds numeric;
  v_follower_funds numeric;
  v_funds_rate numeric[];
  v_stop numeric;          -- price of the follower's stop, at the master's price level; null: none that limits a loss
  v_no_stop text := 'It has no stop.';
  v_risk numeric;          -- money lost per lot if the stop is hit, times v_rate[2]: quotients are taken only at the end
  v_limit numeric;
  v_exposure numeric;      -- worth of one lot in the follower's currency, times v_rate[2]
  v_master_rate numeric[];
  v_master_exposure numeric;
  v_lots numeric;
  v_cap numeric;
  v_warnings text[] := '{}';
  v_explain text[];
  v_orders numeric[] := '{}';
  v_order numeric;
begin
  v_explain := array[format('The master trades %s lots of %s.', private.plain(p_lots), p_master_symbol.name)];
  v_stop := private.stop_of_copy(p_copier, p_side, p_price, case when p_copier.reverse then p_tp else p_sl end, s);
  if p_copier.reverse then v_no_stop := 'It has no take profit, which would be the follower''s stop.'; end if;
  if v_stop <= 0 or v_stop = p_price or (v_stop < p_price) = ((p_side = 'sell') <> p_copier.reverse) then
    v_no_stop := format('The follower''s stop %s is not on the losing side of the price %s.', private.plain(v_stop), private.plain(p_price));
    v_stop := null;
  end if;
  v_rate := private.exchange_fraction(s.profit_currency, p_follower.currency, p_rates);
  v_risk := abs(p_price - v_stop) * s.contract_size * v_rate[1];

  -- the raw size
  case p_copier.sizing_mode
    when 'multiplier' then
      v_num := p_lots * p_copier.sizing_value;
      v_explain := v_explain || format('Times the multiplier %s: %s lots.', private.plain(p_copier.sizing_value), private.plain(v_num));
    when 'percentage' then
      v_num := p_lots * p_copier.sizing_value;
      v_den := 100;
      v_explain := v_explain || format('%s %% of that: %s lots.', private.plain(p_copier.sizing_value), private.plain(v_num / 100));
    when 'fixed' then
      v_num := p_copier.sizing_value;
      v_explain := v_explain || format('A fixed size of %s lots is set.', private.plain(v_num));
    when 'risk_percent' then
      if v_stop is null then
        v_explain := v_explain || v_no_stop;
        return private.no_order('no_stop_loss', null, v_warnings, v_explain);
      end if;
      if p_follower.balance is null or p_follower.balance <= 0 or v_risk is null then
        v_explain := v_explain || 'The follower''s balance, or the rate between the currencies, is not known, too old, or not above 0.'::text;
        return private.no_order('stale_funds', null, v_warnings, v_explain);
      end if;
      v_num := p_follower.balance * p_copier.sizing_value * v_rate[2];
      v_den := 100 * v_risk;
      v_explain := v_explain || format('%s %% of the balance %s %s may be lost: %s. From %s to the stop %s one lot loses %s: %s lots.',
        private.plain(p_copier.sizing_value), private.plain(p_follower.balance), p_follower.currency, private.plain(round(v_num / (100 * v_rate[2]), 2)),
        private.plain(p_price), private.plain(v_stop), private.plain(round(v_risk / v_rate[2], 2)), private.plain(round(v_num / v_den, 6)));
    else
      v_master_funds := case p_copier.sizing_mode when 'balance_ratio' then p_master.balance
        when 'equity_ratio' then p_master.equity else p_master.free_margin end;
      v_follower_funds := case p_copier.sizing_mode when 'balance_ratio' then p_follower.balance
        when 'equity_ratio' then p_follower.equity else p_follower.free_margin end;
      v_funds_rate := private.exchange_fraction(p_master.currency, p_follower.currency, p_rates);
      if v_master_funds is null or v_master_funds <= 0 or v_follower_funds is null or v_follower_funds <= 0 or v_funds_rate is null then
        v_explain := v_explain || format('The %s of the master or the follower, or the rate between their currencies, is not known, too old, or not above 0.',
          replace(replace(p_copier.sizing_mode, '_ratio', ''), '_', ' '));
        return private.no_order('stale_funds', null, v_warnings, v_explain);
      end if;
      v_num := p_lots * p_copier.sizing_value * v_follower_funds * v_funds_rate[2];
      v_den := v_master_funds * v_funds_rate[1];
      v_explain := v_explain || format('The follower''s %s is %s %s, the master''s %s %s%s: a ratio of %s%s. %s lots.',
        replace(replace(p_copier.sizing_mode, '_ratio', ''), '_', ' '), private.plain(v_follower_funds), p_follower.currency,
        private.plain(v_master_funds), p_master.currency,
        case when v_funds_rate[1] <> v_funds_rate[2] then format(' (%s %s)', private.plain(round(v_den / v_funds_rate[2], 2)), p_follower.currency) else '' end,
        private.plain(round(v_follower_funds * v_funds_rate[2] / v_den, 6)),
        case when p_copier.sizing_value <> 1 then format(', times %s', private.plain(p_copier.sizing_value)) else '' end,
        private.plain(round(v_num / v_den, 6)));
  end case;

  -- contract sizes
  if p_master_symbol.contract_size <> s.contract_size and p_copier.sizing_mode not in ('fixed', 'risk_percent') then
    if p_copier.contract_alignment then
      v_num := v_num * p_master_symbol.contract_size;
      v_den := v_den * s.contract_size;
      v_explain := v_explain || format('One lot is %s units at the master and %s at the follower: %s lots.', private.plain(p_master_symbol.contract_size),
        private.plain(s.contract_size), private.plain(round(v_num / v_den, 6)));
    else
      v_warnings := v_warnings || 'contract_sizes_differ'::text;
      v_explain := v_explain || format('Contract sizes differ %s:%s and are not aligned.', private.plain(p_master_symbol.contract_size),
        private.plain(s.contract_size));
    end if;
  end if;
  v_raw := v_num / v_den;

  -- caps on risk and leverage
  if p_copier.max_risk_percent is not null and v_stop is null then
    v_warnings := v_warnings || 'risk_unknown'::text;
    v_explain := v_explain || format('The limit of %s %% of risk cannot be applied: %s', private.plain(p_copier.max_risk_percent),
      case when v_no_stop = 'It has no stop.' then 'the trade has no stop.' else v_no_stop end);
  elsif p_copier.max_risk_percent is not null and (v_risk > 0 and p_follower.balance > 0) is not true then
    v_explain := v_explain || 'The follower''s balance, or the rate between the currencies, is not known, too old, or not above 0: the limit on risk cannot be checked.'::text;
    return private.no_order('stale_funds', v_raw, v_warnings, v_explain);
  elsif p_copier.max_risk_percent is not null then
    v_limit := p_follower.balance * p_copier.max_risk_percent / 100;
    if v_num * v_risk > v_limit * v_den * v_rate[2] then
      v_num := v_limit * v_rate[2]; v_den := v_risk; v_raw := v_num / v_den;
      v_warnings := v_warnings || 'risk_capped'::text;
      v_explain := v_explain || format('Cut to %s lots: more would risk over %s %% of the balance, which is %s %s.', private.plain(round(v_raw, 6)),
        private.plain(p_copier.max_risk_percent), private.plain(round(v_limit, 2)), p_follower.currency);
    end if;
  end if;
  v_exposure := s.contract_size * p_price * v_rate[1];
  if p_copier.max_leverage is not null then
    if v_exposure is null or p_follower.equity is null or p_follower.equity <= 0 then
      v_explain := v_explain || 'The follower''s equity, or the rate between the currencies, is not known, too old, or not above 0: the leverage limit cannot be checked.'::text;
      return private.no_order('stale_funds', v_raw, v_warnings, v_explain);
    end if;
    if v_num * v_exposure > p_copier.max_leverage * p_follower.equity * v_den * v_rate[2] then
      v_explain := v_explain || format('%s lots are worth %s %s: %s times the equity %s, and the limit is %s.', private.plain(round(v_raw, 6)),
        private.plain(round(v_raw * v_exposure / v_rate[2], 2)), p_follower.currency,
        private.plain(round(v_raw * v_exposure / (p_follower.equity * v_rate[2]), 2)),
        private.plain(p_follower.equity), private.plain(p_copier.max_leverage));
      if p_copier.max_leverage_policy = 'discard' then
        return private.no_order('max_leverage', v_raw, v_warnings, v_explain);
      end if;
      v_num := p_copier.max_leverage * p_follower.equity * v_rate[2]; v_den := v_exposure; v_raw := v_num / v_den;
      v_warnings := v_warnings || 'leverage_shrunk'::text;
      v_explain := v_explain || format('Shrunk to %s lots.', private.plain(round(v_raw, 6)));
    end if;
  end if;

  -- floor to the step, minimum, maximum
  v_lots := div(v_num, v_den * s.lots_step) * s.lots_step;
  v_explain := v_explain || format('Rounded down to steps of %s: %s lots.', private.plain(s.lots_step), private.plain(v_lots));
  if v_lots < s.lots_min then
    v_explain := v_explain || format('The smallest volume of %s is %s lots.', s.name, private.plain(s.lots_min));
    if p_copier.min_policy = 'skip' then
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    if s.lots_min * v_den > p_copier.max_risk_coefficient * v_num then
      v_explain := v_explain || format('That would be %s times the wanted size, and the limit is %s times.',
        coalesce(private.plain(round(s.lots_min * v_den / nullif(v_num, 0), 1)), 'infinitely many'), private.plain(p_copier.max_risk_coefficient));
      return private.no_order('risk_coefficient', v_raw, v_warnings, v_explain);
    end if;
    -- the limits on risk and leverage outrank the smallest volume
    if s.lots_min * v_exposure > p_copier.max_leverage * p_follower.equity * v_rate[2] then
      v_explain := v_explain || format('It would be more than %s times the equity.', private.plain(p_copier.max_leverage));
      return private.no_order('max_leverage', v_raw, v_warnings, v_explain);
    end if;
    if p_copier.max_risk_percent is not null and s.lots_min * v_risk * 100 > p_follower.balance * p_copier.max_risk_percent * v_rate[2] then
      v_explain := v_explain || format('It would risk more than %s %% of the balance.', private.plain(p_copier.max_risk_percent));
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    v_lots := s.lots_min;
    v_warnings := v_warnings || 'forced_min'::text;
    v_explain := v_explain || format('Raised to it: that is %s times the wanted size.', private.plain(round(s.lots_min * v_den / v_num, 1)));
  end if;
  if p_copier.max_lots < v_lots then
    v_lots := div(p_copier.max_lots, s.lots_step) * s.lots_step;
    if v_lots < s.lots_min then
      v_explain := v_explain || format('The copier''s maximum of %s lots is below the smallest volume %s.', private.plain(p_copier.max_lots), private.plain(s.lots_min));
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    v_warnings := v_warnings || 'capped'::text;
    v_explain := v_explain || format('Cut to the copier''s maximum: %s lots.', private.plain(v_lots));
  end if;
  v_cap := div(s.lots_max, s.lots_step) * s.lots_step;
  if v_lots > v_cap and v_cap < s.lots_min then
    v_explain := v_explain || format('No step of %s lies between the smallest volume %s and the largest %s.', private.plain(s.lots_step),
      private.plain(s.lots_min), private.plain(s.lots_max));
    return private.no_order('below_min', v_raw, v_warnings, v_explain);
  end if;
  if v_lots > v_cap and p_copier.max_policy = 'cap' then
    v_lots := v_cap;
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut to the largest volume of one order: %s lots.', private.plain(v_lots));
  end if;

  -- exposure against the master's own
  v_master_rate := private.exchange_fraction(p_master_symbol.profit_currency, p_master.currency, p_rates);
  v_master_exposure := p_lots * p_master_symbol.contract_size * p_price * v_master_rate[1];
  if p_copier.sanity_factor is not null and (p_master.equity > 0 and p_follower.equity > 0 and v_exposure > 0 and v_master_exposure > 0) is not true then
    v_warnings := v_warnings || 'sanity_unchecked'::text;
    v_explain := v_explain || 'The exposure could not be compared with the master''s own: an equity or exchange rate is not known.'::text;
  elsif v_lots * v_exposure * v_master_rate[2] * p_master.equity > p_copier.sanity_factor * v_master_exposure * v_rate[2] * p_follower.equity then
    v_explain := v_explain || format('The trade would be worth %s %% of the equity, the master''s own %s %%: more than %s times as much.',
      private.plain(round(100 * v_lots * v_exposure / (p_follower.equity * v_rate[2]), 1)),
      private.plain(round(100 * v_master_exposure / (p_master.equity * v_master_rate[2]), 1)),
      private.plain(p_copier.sanity_factor));
    return private.no_order('sanity', v_raw, v_warnings, v_explain);
  end if;

  -- one order, or several
  if v_lots > 100 * v_cap then
    v_lots := 100 * v_cap;
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut to %s lots: a copy is split into 100 orders of %s at most.', private.plain(v_lots), private.plain(v_cap));
  end if;
  while v_lots > v_cap loop
    -- what would be left over is at least one smallest order
    v_order := least(v_cap, div(v_lots - s.lots_min, s.lots_step) * s.lots_step);
    exit when v_order < s.lots_min;
    v_orders := v_orders || v_order;
    v_lots := v_lots - v_order;
  end loop;
  if v_lots > v_cap then
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut by %s lots, which are too few for another order.', private.plain(v_lots - v_cap));
  end if;
  v_orders := v_orders || least(v_lots, v_cap);
  if cardinality(v_orders) > 1 then
    v_warnings := v_warnings || 'split'::text;
    v_explain := v_explain || format('Split into %s orders, for one may not exceed %s.', cardinality(v_orders), private.plain(v_cap));
  end if;
  return row(v_orders, v_raw, null, v_warnings, v_explain)::private.sizing;
end $$;

-- 23_preview.sql
-- preview_copy: users ask the very function that the planner sizes with (22_sizing.sql) what a copy would be, and why.

-- A copier with nothing set: the defaults of the table's sizing columns (a test holds the two together).
create function private.default_copier() returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::public.copiers, '{"sizing_mode": "multiplier", "sizing_value": 1, "contract_alignment": true,
    "min_policy": "skip", "max_risk_coefficient": 5, "max_policy": "cap", "max_leverage_policy": "discard", "sanity_factor": 3,
    "reverse": false}'::jsonb);
end $$;

create function private.symbol_of(p jsonb) returns public.account_symbols
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::public.account_symbols, p);
end $$;

create function private.funds_of(p jsonb) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::private.funds, p);
end $$;

-- The words and ranges of a request's copier: what the table's CHECKs say of a saved one.
create function private.check_sizing_words(c public.copiers) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_wrong text := case
    when c.sizing_mode not in ('multiplier', 'percentage', 'fixed', 'balance_ratio', 'equity_ratio', 'free_margin_ratio', 'risk_percent') is not false then
      'sizing_mode must be multiplier, percentage, fixed, balance_ratio, equity_ratio, free_margin_ratio or risk_percent'
    when (c.sizing_value > 0 and c.sizing_value <= case c.sizing_mode when 'risk_percent' then 100 when 'percentage' then 100000 else 1000 end) is not true
      then 'sizing_value must be above 0 and at most 1000 (percentage: 100000, risk_percent: 100)'
    when c.min_policy in ('skip', 'force_min') is not true then 'min_policy must be skip or force_min'
    when c.max_policy in ('cap', 'split') is not true then 'max_policy must be cap or split'
    when c.max_leverage_policy in ('discard', 'shrink') is not true then 'max_leverage_policy must be discard or shrink'
    when c.sl_mode in ('price', 'distance', 'fixed', 'none') is false then 'sl_mode must be price, distance, fixed or none'
    when c.max_risk_coefficient between 1 and 1000 is not true then 'max_risk_coefficient must be 1 to 1000'
    when c.max_lots <= 0 then 'max_lots must be above 0'
    when c.max_risk_percent <= 0 or c.max_risk_percent > 100 then 'max_risk_percent must be above 0 and at most 100'
    when c.max_leverage <= 0 then 'max_leverage must be above 0' when c.sanity_factor < 1 then 'sanity_factor must be 1 or more'
    when c.reverse is null or c.contract_alignment is null then 'reverse and contract_alignment must be true or false' end;
begin
  if v_wrong is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: copier.' || v_wrong, hint = 'See docs/protocol.md for the form of a request.';
  end if;
end $$;

-- Raises which value of a request is no number (null = unknown, or none), which word is wrong, which setting no copier has.
create function private.check_preview(p_request jsonb) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_wrong text;
begin
  select string_agg(format('copier.%s is no setting of a copier', k), '; ') into v_wrong
  from jsonb_object_keys(coalesce(nullif(p_request -> 'copier', 'null'), '{}')) k
  where k not in (select jsonb_object_keys(to_jsonb(private.default_copier())));
  if v_wrong is null then
    select format('%s is %s, but must be a number%s', array_to_string(x.path, '.'), left(x.value::text, 60), case when x.above then ' above 0' else '' end)
    into v_wrong
    from (
      select array[o.name, f], p_request #> array[o.name, f], false
      from (values ('copier', array['sizing_value', 'max_risk_coefficient', 'max_lots', 'max_risk_percent', 'max_leverage', 'sanity_factor']),
        ('master', array['balance', 'equity', 'free_margin']), ('follower', array['balance', 'equity', 'free_margin']),
        ('trade', array['sl', 'tp'])) o (name, fields) cross join unnest(o.fields) f
      union all
      select array[o, 'symbol', f], p_request #> array[o, 'symbol', f], true
      from unnest(array['master', 'follower']) o cross join unnest(array['contract_size', 'tick_size']) f
      union all
      select array['rates', e.key], e.value, false from jsonb_each(case jsonb_typeof(p_request -> 'rates') when 'object' then p_request -> 'rates' end) e
    ) x (path, value, above)
    where case when x.value is null or x.value = 'null' and not x.above then false
      when private.is_number(x.value) then x.above and (x.value #>> '{}')::numeric <= 0 else true end
    limit 1;
  end if;
  v_wrong := coalesce(v_wrong, case
    when coalesce(jsonb_typeof(p_request -> 'rates'), 'null') not in ('null', 'object') then 'rates must be an object such as {"EURUSD": "1.0850"}'
    when p_request #>> '{trade,side}' not in ('buy', 'sell') then 'trade.side must be buy or sell'
    when greatest((p_request #>> '{follower,symbol,lots_min}')::numeric, (p_request #>> '{follower,symbol,lots_step}')::numeric)
      > (p_request #>> '{follower,symbol,lots_max}')::numeric then 'follower.symbol: lots_min and lots_step must not be above lots_max' end);
  if v_wrong is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: ' || v_wrong, hint = 'Numbers are decimal strings such as "0.5"; null = unknown.';
  end if;
end $$;

-- What preview_copy answers; errors TC001 name the field that is missing or not as documented.
-- Security definer: the parts it is made of are granted to nobody.
create function private.preview_copy(p_request jsonb) returns jsonb
language plpgsql immutable security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_master_symbol public.account_symbols;
  v_follower_symbol public.account_symbols;
  v_trade jsonb := p_request -> 'trade';
  v_sizing private.sizing;
  v_field text;
begin
  foreach v_field in array array['master', 'follower', 'trade'] loop
    if jsonb_typeof(p_request -> v_field) is distinct from 'object' then
      raise exception using errcode = 'TC001', message = format('preview_copy: "%s" is missing or not an object', v_field),
        hint = 'See docs/protocol.md for the form of a request.';
    end if;
  end loop;
  if jsonb_typeof(p_request #> '{follower,symbol}') is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'preview_copy: "follower.symbol" is missing or not an object',
      hint = 'Give at least name, contract_size, digits, tick_size, profit_currency, lots_min, lots_max and lots_step.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'copier'), 'null') not in ('null', 'object')
    or coalesce(jsonb_typeof(p_request #> '{master,symbol}'), 'null') not in ('null', 'object') then
    raise exception using errcode = 'TC001', message = 'preview_copy: "copier" and "master.symbol" must be objects',
      hint = 'See docs/protocol.md for the form of a request.';
  end if;
  foreach v_field in array array['contract_size', 'lots_min', 'lots_max', 'lots_step'] loop
    if not coalesce(private.is_number(p_request #> array['follower', 'symbol', v_field]), false)
      or (p_request #>> array['follower', 'symbol', v_field])::numeric <= 0 then
      raise exception using errcode = 'TC001', message = format('preview_copy: "follower.symbol.%s" must be a number above 0', v_field),
        hint = 'Numbers are decimal strings such as "0.01".';
    end if;
  end loop;
  foreach v_field in array array['lots', 'price'] loop
    if not coalesce(private.is_number(v_trade -> v_field), false) or (v_trade ->> v_field)::numeric <= 0 then
      raise exception using errcode = 'TC001', message = format('preview_copy: "trade.%s" must be a number above 0', v_field),
        hint = 'Numbers are decimal strings such as "1.00".';
    end if;
  end loop;
  perform private.check_preview(p_request);
  begin
    v_copier := jsonb_populate_record(private.default_copier(), coalesce(nullif(p_request -> 'copier', 'null'), '{}'));
    perform private.check_sizing_words(v_copier);
    v_follower_symbol := private.symbol_of(p_request #> '{follower,symbol}');
    v_master_symbol := jsonb_populate_record(v_follower_symbol, coalesce(nullif(p_request #> '{master,symbol}', 'null'), '{}'));
    v_sizing := private.size_order(v_copier, private.funds_of(p_request -> 'master'), private.funds_of(p_request -> 'follower'),
      v_master_symbol, v_follower_symbol, coalesce(v_trade ->> 'side', 'buy'), (v_trade ->> 'lots')::numeric,
      (v_trade ->> 'price')::numeric, nullif((v_trade ->> 'sl')::numeric, 0), nullif((v_trade ->> 'tp')::numeric, 0),
      coalesce(nullif(p_request -> 'rates', 'null'), '{}'));
  exception when data_exception or case_not_found then
    raise exception using errcode = 'TC001', message = 'preview_copy: a value is not of its documented form: ' || sqlerrm,
      hint = 'Numbers are decimal strings; see docs/protocol.md for the allowed words.';
  end;
  return jsonb_build_object('orders', (select coalesce(jsonb_agg(private.plain(o)), '[]'::jsonb) from unnest(v_sizing.orders) o),
    'raw_lots', private.plain(v_sizing.raw_lots), 'reason', v_sizing.reason, 'warnings', to_jsonb(v_sizing.warnings),
    'explain', to_jsonb(v_sizing.explain));
end $$;

create function private.is_number(p jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case jsonb_typeof(p) when 'number' then true
    when 'string' then pg_input_is_valid(p #>> '{}', 'numeric') and (p #>> '{}') !~* 'nan|inf' else false end;
end $$;

create function public.preview_copy(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.preview_copy(p_request) $$;
comment on function public.preview_copy(jsonb) is 'How large a copy would be, and why: the very function that the planner sizes with.';
revoke all on function public.preview_copy(jsonb) from public, anon;
grant execute on function public.preview_copy(jsonb) to authenticated, service_role;
grant execute on function private.preview_copy(jsonb) to authenticated, service_role;

-- 24_protection.sql
-- Protection rules: limits on an account's money, what happens when one is crossed, and how far each has come. The logic is in 59_protection.sql.

create table public.protection_rules (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  threshold numeric not null,
  action text not null default 'close_all_and_off',
  close_manual boolean not null default true,
  confirm_ms integer not null default 250,
  time_zone text not null default 'UTC',
  enabled boolean not null default true,
  -- where it stands
  day date,
  day_start_equity numeric,
  day_start_at timestamptz,
  high_water_mark numeric,
  breached_at timestamptz,
  breached_equity numeric,
  triggered_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint one_rule_per_kind unique (account_id, kind),
  constraint kind_is_known check (kind in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target', 'max_margin_use')),
  constraint action_is_known check (action in ('notify', 'monitor', 'close_all', 'close_all_and_off')),
  constraint threshold_in_range check (threshold > 0 and case
    when kind in ('daily_loss', 'trailing_drawdown') then threshold < 100
    when kind = 'max_margin_use' then threshold <= 1000
    else threshold < 1e12 end),
  constraint confirm_in_range check (confirm_ms between 250 and 60000)
) with (fillfactor = 70);
comment on table public.protection_rules is 'Limits on an account and what happens when one is reached. A rule triggers once, and again only when it was re-armed.';
comment on column public.protection_rules.kind is
  'daily_loss (against the equity at the day''s start), trailing_drawdown (against the highest equity), equity_floor, equity_target, max_margin_use (margin as a share of equity).';
comment on column public.protection_rules.threshold is
  'Percent for daily_loss, trailing_drawdown (above 0, below 100) and max_margin_use (up to 1000); money of the account for the others. Reaching it exactly triggers.';
comment on column public.protection_rules.action is
  'notify (an alert only); monitor (nothing is opened any more); close_all (flatten, then go on); close_all_and_off (flatten, then off).';
comment on column public.protection_rules.close_manual is 'Whether closing includes what the user opened by hand.';
comment on column public.protection_rules.confirm_ms is 'A second look at least so long after the first must agree, so that one bad tick closes nothing.';
comment on column public.protection_rules.time_zone is 'daily_loss: the day begins at midnight there.';
comment on column public.protection_rules.enabled is 'Whether it watches.';
comment on column public.protection_rules.day is 'daily_loss: the day that day_start_equity is of, in time_zone.';
comment on column public.protection_rules.day_start_equity is 'daily_loss: what the day''s loss is counted from.';
comment on column public.protection_rules.day_start_at is 'When that equity was measured.';
comment on column public.protection_rules.high_water_mark is 'trailing_drawdown: highest equity that two looks in a row have reached.';
comment on column public.protection_rules.breached_at is 'First look past the limit; the next one confirms or contradicts it.';
comment on column public.protection_rules.breached_equity is 'Equity of that look.';
comment on column public.protection_rules.triggered_at is 'When it acted. It is quiet until the next day (daily_loss) or reset_protection().';

create index protection_rules_of_user on public.protection_rules (user_id);

alter table public.protection_rules enable row level security;
create policy "own protection rules are readable" on public.protection_rules for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.protection_rules for each row execute function private.touch();
create trigger audited after insert or delete
  or update of kind, threshold, action, close_manual, confirm_ms, time_zone, enabled, triggered_at on public.protection_rules
  for each row execute function private.audit('id', 'user_id', 'account_id', 'kind', 'threshold', 'action', 'close_manual', 'confirm_ms',
    'time_zone', 'enabled', 'triggered_at');


create table public.protection_looks (
  id bigint generated always as identity primary key,
  rule_id uuid not null,
  user_id uuid not null,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  at timestamptz not null,
  equity numeric not null,
  margin numeric,
  reached numeric not null,
  outcome text not null,
  created_at timestamptz not null default now(),
  constraint outcome_is_known check (outcome in ('first', 'contradicted', 'confirmed'))
);
comment on table public.protection_looks is 'Evidence: the looks at an account''s funds that a protection rule acted on, or that one bad tick would have made it act on.';
comment on column public.protection_looks.rule_id is 'The rule; it may have been removed since.';
comment on column public.protection_looks.at is 'When the figures were measured.';
comment on column public.protection_looks.reached is 'What equity was held against; for max_margin_use the percentage.';
comment on column public.protection_looks.outcome is 'first look past the limit; contradicted or confirmed by the next.';

create index protection_looks_of_rule on public.protection_looks (rule_id, at);
create index protection_looks_of_user on public.protection_looks (user_id, created_at);
-- retention
create index protection_looks_by_time on public.protection_looks (created_at);

alter table public.protection_looks enable row level security;
create policy "own protection looks are readable" on public.protection_looks for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.protection_rules, public.protection_looks to authenticated, service_role;

-- 24_trading.sql
-- The global switch: whether copies are traded at all. One row, read once per planning call.

create table public.trading_switch (
  one boolean primary key default true,
  state text not null default 'on',
  reason text not null default '',
  changed_at timestamptz not null default now(),
  settled boolean not null default true,
  constraint there_is_one_switch check (one),
  constraint state_is_known check (state in ('on', 'monitor', 'off')),
  constraint stopping_says_why check (state = 'on' or length(reason) between 3 and 200)
);
comment on table public.trading_switch is 'Whether copies are traded at all, for everybody. Operators turn it with set_trading().';
comment on column public.trading_switch.state is 'on = copies are traded; monitor = nothing is opened anywhere, closes go on; off = frozen, closes included';
comment on column public.trading_switch.reason is 'why it is not on, for all users to read';
comment on column public.trading_switch.changed_at is 'since when';
comment on column public.trading_switch.settled is 'whether every account has been brought in line with it; the upkeep does what is left';
insert into public.trading_switch default values;

alter table public.trading_switch enable row level security;
create policy "everybody sees whether copies are traded" on public.trading_switch for select to authenticated using (true);
grant select on public.trading_switch to authenticated, service_role;
create trigger audited after insert or update or delete on public.trading_switch for each row
  execute function private.audit('one', '', 'state', 'reason');

create function private.trading_state() returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select t.state from public.trading_switch t where t.one);
end $$;

-- Why nothing may be opened now, or null: one order of ranks for decisions, for what was decided but not yet dealt, and for users.
create function private.shut(p_trading text, p_copy_state text, p_copy_state_reason text, p_mode text, p_removal text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_trading = 'off' then 'trading_stopped'
    when p_trading = 'monitor' then 'trading_monitor'
    when p_copy_state <> 'on' and p_copy_state_reason is not null then 'account_protected'
    when p_copy_state = 'flattening' then 'account_flattening'
    when p_copy_state = 'off' then 'account_off'
    when p_copy_state = 'monitor' then 'account_monitor'
    when p_removal is not null then 'copier_removed'
    when p_mode = 'off' then 'copier_off'
    when p_mode = 'monitor' then 'copier_monitor' end;
end $$;

-- 30_position.sql
-- Positions: the mirror of what every account holds, as its agent last saw it.

create table private.plan_locks (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade
);
comment on table private.plan_locks is
  'Every planning transaction locks the rows of its accounts first, in a statement of its own and in order of account_id; only later statements read and plan.';
alter table private.plan_locks enable row level security;

create function private.make_plan_lock() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into private.plan_locks (account_id) values (new.id) on conflict do nothing;
  return null;
end $$;
create trigger plan_lock_for_every_account after insert on public.trading_accounts
  for each row execute function private.make_plan_lock();

-- Locks the accounts and returns the moment after the last wait: plans are made from there on.
create function private.lock_accounts(p_accounts uuid[]) returns timestamptz
language plpgsql security definer set search_path = '' as $$
begin
  perform 1 from private.plan_locks where account_id = any (p_accounts) order by account_id for no key update;
  return clock_timestamp();
end $$;

create table public.positions (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  ticket text not null,
  user_id uuid not null,
  kind text not null,
  symbol text not null,
  side text not null,
  order_type text,
  lots numeric not null,
  price numeric not null,
  sl numeric,
  tp numeric,
  magic text,
  comment text,
  tag bigint,
  opened_at timestamptz,
  expires_at timestamptz,
  session bigint not null,
  seq bigint not null,
  existing boolean not null default false,
  released boolean not null default false,
  absent_snapshots integer not null default 0,
  unseen_at timestamptz not null,
  detected_at timestamptz not null,
  first_seen_at timestamptz not null,
  filled_at timestamptz,
  changed_at timestamptz not null,
  last_event_id bigint,
  replaced_by text,
  closed_at timestamptz,
  close_reason text,
  primary key (account_id, ticket),
  constraint kind_is_known check (kind in ('position', 'order')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint order_type_is_known check (order_type in ('limit', 'stop')),
  constraint lots_not_negative check (lots >= 0),
  constraint gone_means_closed check ((lots = 0) = (closed_at is not null))
);
comment on table public.positions is
  'Mirror of what an account holds: positions and pending orders. Closed rows stay as tombstones, so that a late message cannot bring them back.';
comment on column public.positions.session is 'with seq: number of the last message that changed or confirmed the row; a lower number never overrules it';
comment on column public.positions.existing is 'was there in the first snapshot ever made of the account: never copied by itself';
comment on column public.positions.released is 'was a copy and is the user''s own now: its copier was removed with preserve';
comment on column public.positions.absent_snapshots is 'good snapshots in a row without it; two close it when history does not explain it';
comment on column public.positions.filled_at is 'when the pending order that this position was became it; null = it never was one';
comment on column public.positions.unseen_at is 'last moment the account was seen without the open or increase: the age of the news is counted from here';
comment on column public.positions.tag is 'number of the execution that made it, when it is a copy of ours';
comment on column public.positions.last_event_id is 'trade event that last changed it';

-- the mirror of an account as it stands: snapshots, netting ledgers, dashboards
create index positions_open on public.positions (account_id, symbol) where closed_at is null;
-- retention
create index positions_closed on public.positions (closed_at) where closed_at is not null;
create index positions_of_user on public.positions (user_id) where closed_at is null;

alter table public.positions enable row level security;
create policy "own positions are readable" on public.positions for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.positions to authenticated, service_role;

-- 32_link.sql
-- Position links: which position of a follower copies which position of a master.

create table public.position_links (
  id bigint generated always as identity primary key,
  user_id uuid not null,
  copier_id uuid not null references public.copiers (id),
  master_account_id uuid not null,
  follower_account_id uuid not null,
  master_ticket text not null,
  master_side text not null,
  generation integer not null default 1,
  symbol text,
  side text,
  state text not null,
  reason text,
  seen_master_lots numeric not null,
  base_master_lots numeric,
  base_lots numeric,
  sized_lots numeric,
  sized_master_lots numeric,
  wanted_lots numeric,
  wanted_until timestamptz,
  rest_lots numeric,
  resync_lots numeric,
  asked_price numeric,
  asked_sl numeric,
  asked_tp numeric,
  asked_expires_at timestamptz,
  order_due_at timestamptz,
  modify_failures integer not null default 0,
  close_failures integer not null default 0,
  replan_at timestamptz,
  stopped_out boolean not null default false,
  warnings text[] not null default '{}',
  event_id bigint,
  created_at timestamptz not null default now(),
  ended_at timestamptz,
  constraint one_link_per_generation unique (copier_id, master_ticket, generation),
  constraint state_is_known check (state in ('live', 'ended')),
  constraint ended_means_ended_at check ((state = 'ended') = (ended_at is not null)),
  constraint ended_has_a_reason check (state = 'live' or reason is not null),
  constraint live_knows_its_symbol check (state = 'ended' or (symbol is not null and side is not null))
);
comment on table public.position_links is
  'One decision to copy (or not to copy) a position of a master: made once per copier, master position and generation, and latched. Ended links with a refusal''s reason are such latches.';
comment on column public.position_links.master_side is 'side of the master''s position when the link was made; another side now is a flip, which ends the link and begins a generation';
comment on column public.position_links.seen_master_lots is 'master volume up to which opens and increases were decided';
comment on column public.position_links.base_master_lots is 'master volume that base_lots was sized from; reductions are base_lots x master now / base_master_lots';
comment on column public.position_links.base_lots is 'volume held after the last fill or skipped increase';
comment on column public.position_links.reason is 'ended: why; live: why its newest increase was refused, null if it was not';
comment on column public.position_links.sized_lots is
  'what the settings made of sized_master_lots, decision by decision, as an exact fraction; what is held beside it is drift';
comment on column public.position_links.resync_lots is 'its user asks for these to be added: set for one decision, within one transaction';
comment on column public.position_links.asked_sl is 'what was last asked of the broker, not what the broker made of it';
comment on column public.position_links.stopped_out is 'the follower''s broker closed what it held, or some of it, for lack of margin';
comment on column public.position_links.wanted_lots is 'decided, but it waits: netting followers for the symbol''s deal in flight, a filled order''s copy for its own order to be cancelled';
comment on column public.position_links.rest_lots is
  'netting followers: of wanted_lots, the rest of an open that takes several orders; once the first has filled, base_lots counts it as if it were held';
comment on column public.position_links.asked_price is 'of a pending order; null once the copy is a position for good';
comment on column public.position_links.order_due_at is 'copies of pending orders: when the copier itself has something to do (the master''s has filled, or expires)';
comment on column public.position_links.replan_at is 'a refused close or modify is planned again from here on';

-- the planner: links of a master position, newest generation first
create index position_links_of_master on public.position_links (master_account_id, master_ticket, copier_id, generation desc);
-- the planner: live links of a follower and symbol (netting), flattening
create index position_links_live on public.position_links (follower_account_id, symbol) where state = 'live';
-- maintain: what is due
create index position_links_due on public.position_links (replan_at) where state = 'live' and replan_at is not null;
create index position_links_orders_due on public.position_links (order_due_at) where state = 'live' and order_due_at is not null;
create index position_links_wanted on public.position_links (wanted_until) where wanted_lots is not null;
create index position_links_of_user on public.position_links (user_id, created_at);
create index position_links_ended on public.position_links (ended_at) where state = 'ended';

alter table public.position_links enable row level security;
create policy "own links are readable" on public.position_links for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.position_links to authenticated, service_role;

create table private.link_legs (
  link_id bigint not null references public.position_links (id) on delete cascade,
  account_id uuid not null,
  ticket text not null,
  kind text not null,
  lots numeric not null,
  price numeric,
  primary key (link_id, ticket),
  constraint kind_is_known check (kind in ('position', 'order')),
  constraint lots_are_positive check (lots > 0)
);
comment on table private.link_legs is
  'What a link holds at its follower: usually one ticket, several after a split or an increase. On a netting account lots is the link''s share of the net position.';
create index link_legs_of_ticket on private.link_legs (account_id, ticket);
alter table private.link_legs enable row level security;

create table private.net_ledgers (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  symbol text not null,
  net_lots numeric not null default 0,
  asked_sl numeric,
  asked_tp numeric,
  modify_failures integer not null default 0,
  failures integer not null default 0,
  replan_at timestamptz,
  surprises jsonb not null default '[]',
  surplus_lots numeric not null default 0,
  surplus_link_id bigint,
  primary key (account_id, symbol)
);
comment on table private.net_ledgers is
  'Netting followers: the signed net volume that was last booked to links. What the broker''s net differs by is booked before anything is planned.';
comment on column private.net_ledgers.failures is 'refusals in a row of deals that only reduce; the next waits until replan_at';
comment on column private.net_ledgers.surprises is
  'the newest changes of the net that no deal of ours explained: [{"link_id": taken from, or null, "lots": signed, "at", "surplus": taken from that}]; a deal that was given up and filled after all may explain one';
comment on column private.net_ledgers.surplus_lots is
  'signed: what our deals moved and no link can have (two attempts filled, a reduction dealt twice); part of net_lots, and dealt back';
comment on column private.net_ledgers.surplus_link_id is 'the link whose deal left the surplus: planning that one plans it';
create index net_ledgers_due on private.net_ledgers (replan_at) where replan_at is not null;
alter table private.net_ledgers enable row level security;

-- 34_event.sql
-- Trade events: what happened on an account, as its agent told it, and what came of each for every copier.

create table public.trade_events (
  id bigint generated always as identity,
  account_id uuid not null,
  user_id uuid not null,
  session bigint,
  seq bigint,
  event_key text,
  source text not null default 'agent',
  type text not null,
  status text not null,
  code text,
  error text,
  ticket text,
  symbol text,
  side text,
  lots numeric,
  previous_lots numeric,
  deal_price numeric,
  payload jsonb,
  dealt_at timestamptz,
  detected_at timestamptz,
  unchanged_at timestamptz,
  received_at timestamptz not null default clock_timestamp(),
  decided_at timestamptz,
  detect_ms numeric generated always as (case when detected_at >= dealt_at then extract(epoch from detected_at - dealt_at) * 1000 end) stored,
  decide_ms numeric generated always as (greatest(0, extract(epoch from decided_at - detected_at) * 1000)) stored,
  primary key (id, received_at),
  constraint status_is_known check (status in ('accepted', 'history', 'refused')),
  constraint source_is_known check (source in ('agent', 'snapshot', 'report')),
  constraint refused_says_why check (status <> 'refused' or (code is not null and error is not null))
) partition by range (received_at);
comment on table public.trade_events is
  'Every trade event. Partitions (one a day) live in schema private; idempotency in private.event_keys, for a partitioned table cannot hold that key.';
comment on column public.trade_events.status is 'accepted = applied and planned; history = older than what is known, stored only; refused = malformed';
comment on column public.trade_events.source is 'agent = told by itself; snapshot = found in one; report = made by a copy of ours on an account that is itself a master';
comment on column public.trade_events.previous_lots is 'lots before the change; null when the position was not known';
comment on column public.trade_events.deal_price is
  'price of the deal that made the change: what copies of it are compared with; null = not told, and no deal for modified, ordered, amended';
comment on column public.trade_events.dealt_at is 'when the master''s broker made the deal; null = not told';
comment on column public.trade_events.detect_ms is 'from the deal at the broker to its detection by the agent; null = not told, or the broker''s clock is ahead';
comment on column public.trade_events.decide_ms is 'from detection by the agent to the decision in the database';
create index trade_events_of_account on public.trade_events (account_id, received_at desc);
create index trade_events_received on public.trade_events (received_at);
create index trade_events_of_user on public.trade_events (user_id, received_at desc);
alter table public.trade_events enable row level security;
create policy "own trade events are readable" on public.trade_events for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_events to authenticated, service_role;

create table private.event_keys (
  account_id uuid not null,
  session bigint not null,
  seq bigint not null,
  event_id bigint not null,
  received_at timestamptz not null default clock_timestamp(),
  primary key (account_id, session, seq)
);
comment on table private.event_keys is 'One row per numbered event: the same event delivered twice is found here. Pruned after 7 days.';
create index event_keys_received on private.event_keys (received_at);
alter table private.event_keys enable row level security;

-- Partitions for yesterday up to three days ahead; drops those older than the retention. Called by maintain().
create function private.make_partitions() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_day date;
  v_name text;
  v_keep integer := coalesce((private.setting('retention_days.trade_events') #>> '{}')::integer, 90);
begin
  for v_day in select generate_series(current_date - 1, current_date + 3, interval '1 day')::date loop
    v_name := 'trade_events_' || to_char(v_day, 'YYYY_MM_DD');
    if to_regclass('private.' || v_name) is null then
      execute format('create table private.%I partition of public.trade_events for values from (%L) to (%L)',
        v_name, v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
      execute format('alter table private.%I enable row level security', v_name);
      execute format('revoke all on private.%I from public, anon, authenticated, service_role', v_name);
    end if;
  end loop;
  for v_name in
    select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'public.trade_events'::regclass
      and c.relname < 'trade_events_' || to_char(current_date - v_keep, 'YYYY_MM_DD')
  loop
    execute format('drop table private.%I', v_name);
  end loop;
end $$;
select private.make_partitions();

create table public.copy_outcomes (
  event_id bigint not null,
  copier_id uuid not null,
  user_id uuid not null,
  link_id bigint,
  execution_id bigint,
  reason text,
  detail text,
  decided_at timestamptz not null default clock_timestamp(),
  primary key (event_id, copier_id),
  constraint a_copy_or_one_reason check ((execution_id is null) <> (reason is null))
);
comment on table public.copy_outcomes is
  'What came of a trade event for a copier: the first execution of the step that copies it, or exactly one reason of docs/errors.md.';
create index copy_outcomes_of_user on public.copy_outcomes (user_id, decided_at desc);
create index copy_outcomes_decided on public.copy_outcomes (decided_at);
alter table public.copy_outcomes enable row level security;
create policy "own outcomes are readable" on public.copy_outcomes for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.copy_outcomes to authenticated, service_role;

-- 36_execution.sql
-- Executions: what agents are told to do, one row each, and how it went.

create table public.trade_execution_queue (
  id bigint generated always as identity primary key,
  step_id bigint not null,
  after_id bigint,
  link_id bigint,
  lane text not null,
  copier_id uuid,
  user_id uuid not null,
  account_id uuid not null,
  master_account_id uuid,
  event_id bigint,
  -- what to do
  action text not null,
  priority integer not null,
  symbol text not null,
  side text not null,
  order_type text not null default 'market',
  lots numeric not null,
  target_lots numeric,
  ticket text,
  price numeric,
  sl numeric,
  tp numeric,
  max_slippage_points integer,
  master_price numeric,
  master_lots numeric,
  expires_at timestamptz,
  comment text not null default '',
  parts jsonb,
  warnings text[] not null default '{}',
  -- where it stands
  status text not null default 'queued',
  reason text,
  message text,
  attempt integer not null default 1,
  next_attempt_at timestamptz,
  retry_until timestamptz,
  send_before timestamptz not null,
  vps_id uuid,
  epoch bigint,
  offered_at timestamptz,
  cancel_requested_at timestamptz,
  adopted boolean not null default false,
  -- what came of it
  filled_lots numeric,
  fill_price numeric,
  point_size numeric,
  point_money numeric,
  -- when
  detected_at timestamptz,
  queued_at timestamptz not null,
  received_at timestamptz,
  sent_at timestamptz,
  done_at timestamptz,
  finalized_at timestamptz,
  updated_at timestamptz not null,
  in_flight boolean not null generated always as (finalized_at is null) stored,
  constraint action_is_known check (action in ('open', 'increase', 'reduce', 'close', 'modify', 'place', 'amend', 'cancel')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint lots_not_negative check (lots >= 0),
  constraint status_is_known check (status in
    ('queued', 'executing', 'retrying', 'unknown', 'completed', 'rejected', 'expired', 'cancelled')),
  constraint final_means_finalized_at check
    ((status in ('completed', 'rejected', 'expired', 'cancelled')) = (finalized_at is not null)),
  constraint failure_says_why check (status not in ('rejected', 'expired', 'cancelled') or reason is not null),
  constraint retrying_knows_when check (status <> 'retrying' or next_attempt_at is not null)
);
comment on table public.trade_execution_queue is
  'One row per order to a broker. id is the execution number: at most one broker order ever carries it per attempt that was reported as refused.';
comment on column public.trade_execution_queue.step_id is 'executions of one step (a split open, all legs of a close) share it';
comment on column public.trade_execution_queue.after_id is 'step that must have ended first';
comment on column public.trade_execution_queue.lane is 'executions of one lane run in order: a link, or the symbol of a netting account';
comment on column public.trade_execution_queue.parts is 'netting deal: [{"link_id","lots"}], lots signed: + more of the link, - less of it; without a link: the account''s surplus';
comment on column public.trade_execution_queue.master_lots is 'master volume that the size was computed from';
comment on column public.trade_execution_queue.offered_at is 'when an agent could have received it; from then on only a report finalises it';
comment on column public.trade_execution_queue.send_before is 'deadline of this attempt, checked by the last process before the broker';
comment on column public.trade_execution_queue.in_flight is 'not final yet; look-ups by account use it, look-ups by link say finalized_at is null, so that each fits one index';
comment on column public.trade_execution_queue.point_size is 'price of one point of the symbol when it was filled (0.00001 of EURUSD with five digits)';
comment on column public.trade_execution_queue.point_money is
  'what one point of one lot was worth when it was filled, in the account''s currency; null = no rate was known';
comment on column public.trade_execution_queue.retry_until is 'opens: no new attempt after this';

-- No index beside these begins with a column that the planner looks up by: Postgres might choose it while the tables are small.
-- the planner: what is in flight for a link ("finalized_at is null"), for an account or netting symbol ("in_flight"): each look-up fits one
create index executions_open_of_link on public.trade_execution_queue (link_id) where finalized_at is null;
create index executions_open_of_account on public.trade_execution_queue (account_id, symbol) where in_flight;
create index executions_of_step on public.trade_execution_queue (step_id);
-- the agent's repeated call: open executions of an event; copied_trades: executions of an event for a copier
create index executions_of_event on public.trade_execution_queue (event_id, copier_id);
-- maintain: retries that are due; doorbells; retention
create index executions_due on public.trade_execution_queue (next_attempt_at) where status = 'retrying';
create index executions_updated on public.trade_execution_queue (updated_at);
create index executions_of_user on public.trade_execution_queue (user_id, queued_at desc);

alter table public.trade_execution_queue enable row level security;
create policy "own executions are readable" on public.trade_execution_queue for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_execution_queue to authenticated, service_role;

create function private.rfc3339(p_at timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
end $$;

-- An execution as agents read it (docs/protocol.md). Its queued_at is that of the attempt: a retry after a move to another VPS was
-- in nobody's hands before, and an agent that took it for an old one would look for it for ever and never send it.
create function private.execution_json(p public.trade_execution_queue) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'id', p.id::text, 'attempt', p.attempt, 'account_id', p.account_id, 'epoch', p.epoch, 'link_id', p.link_id::text,
    'lane', p.lane, 'step_id', p.step_id::text, 'after_id', p.after_id::text, 'action', p.action, 'priority', p.priority,
    'symbol', p.symbol, 'side', p.side, 'order_type', p.order_type, 'lots', trim_scale(p.lots)::text,
    'target_lots', trim_scale(p.target_lots)::text, 'ticket', p.ticket, 'price', p.price::text, 'sl', p.sl::text,
    'tp', p.tp::text, 'max_slippage_points', p.max_slippage_points, 'master_price', p.master_price::text,
    'expires_at', p.expires_at, 'comment', p.comment, 'investigate', p.status = 'unknown',
    'detected_at', p.detected_at, 'queued_at', coalesce(p.offered_at, p.queued_at),
    'send_before', p.send_before);
end $$;

-- Whether an execution opens something: decided once, never late. A netting deal opens when one of its parts does.
create function private.opens(p public.trade_execution_queue) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if p.parts is not null then
    return exists (select 1 from jsonb_array_elements(p.parts) e where (e ->> 'lots')::numeric > 0);
  end if;
  return p.action in ('open', 'increase', 'place');
end $$;

create function private.send_within() returns interval
language plpgsql stable set search_path = '' as $$
begin
  return make_interval(secs => (private.setting('send_within_ms') #>> '{}')::numeric / 1000);
end $$;

-- Puts executions into the hands of the agents that work their accounts: stamps epoch and deadline, broadcasts to other VPSes
-- (at most 100 executions and 200 KB a message), and returns the array for the calling VPS.
-- Executions of accounts that nobody works stay unoffered.
create function private.offer(p_executions bigint[], p_caller uuid, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own jsonb := '[]';
  v_message record;
  v_send_within interval;
begin
  if p_executions is null or cardinality(p_executions) = 0 then
    return v_own;
  end if;
  -- most were offered when they were planned
  if exists (select 1 from public.trade_execution_queue q where q.id = any (p_executions) and q.offered_at is null) then
    v_send_within := private.send_within();
    update public.trade_execution_queue q
    set vps_id = v.id, epoch = a.epoch, offered_at = p_now,
        send_before = least(greatest(p_now, a.begins_at) + v_send_within, v.lease_expires_at,
          case when private.opens(q) then coalesce(case when q.attempt > 1 then q.retry_until end, q.queued_at) + v_send_within end)
    from public.account_vps_assignments a
    join public.vps_instances v on v.id = a.vps_id
    where q.id = any (p_executions) and q.offered_at is null and a.account_id = q.account_id and v.retired_at is null
      and v.lease_expires_at > p_now;
  end if;

  for v_message in
    select numbered.vps_id, jsonb_agg(numbered.body order by numbered.priority, numbered.id) as bodies
    from (
      select rendered.*,
        case when rendered.vps_id = p_caller then 0 else (sum(octet_length(rendered.body::text)) over w / 190000)::integer end as part_by_bytes,
        case when rendered.vps_id = p_caller then 0 else ((row_number() over w - 1) / 100)::integer end as part_by_rows
      from (
        select q.id, q.vps_id, q.priority, private.execution_json(q) as body
        from public.trade_execution_queue q
        where q.id = any (p_executions) and q.offered_at is not null
        offset 0  -- each is rendered once
      ) rendered
      window w as (partition by rendered.vps_id order by rendered.priority, rendered.id)
    ) numbered
    group by numbered.vps_id, numbered.part_by_bytes, numbered.part_by_rows
    order by numbered.vps_id, numbered.part_by_rows, numbered.part_by_bytes
  loop
    if v_message.vps_id = p_caller then
      v_own := v_message.bodies;
    else
      perform realtime.send(jsonb_build_object('executions', v_message.bodies), 'executions', 'vps:' || v_message.vps_id, true);
    end if;
  end loop;
  return v_own;
end $$;

-- 37_refusal.sql
-- Refusals in words: what exactly stood against a trade at that moment. What the code means and what to do about it: docs/errors.md.

-- The figures behind a refusal that was decided before anything was sized; null where the code says all there is. p_symbol: the follower's.
create function private.refusal_words(
  p_copier public.copiers, p_position public.positions, p_follower public.trading_accounts, p_symbol public.account_symbols, p_reason text,
  p_now timestamptz
) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case p_reason
    when 'too_old' then format('The account was last seen without the trade %s s ago; max_age_ms allows %s s.',
      round(extract(epoch from p_now - p_position.unseen_at), 1), trim_scale(p_copier.max_age_ms / 1000.0))
    when 'side_filtered' then format('The master''s side is %s; sides is %s.', p_position.side, p_copier.sides)
    when 'symbol_filtered' then case when private.matches_any(p_position.symbol, p_copier.symbols_except)
      then format('%s is left out by symbols_except (%s).', p_position.symbol, array_to_string(p_copier.symbols_except, ', '))
      else format('%s is not among symbols_only (%s).', p_position.symbol, array_to_string(p_copier.symbols_only, ', ')) end
    when 'magic_filtered' then format('The magic number is %s; magic_only is (%s), magic_except is (%s).', coalesce(p_position.magic, '0'),
      array_to_string(p_copier.magic_only, ', '), array_to_string(p_copier.magic_except, ', '))
    when 'comment_filtered' then format('The comment is "%s"; comment_only is (%s), comment_except is (%s).', p_position.comment,
      array_to_string(p_copier.comment_only, ', '), array_to_string(p_copier.comment_except, ', '))
    when 'outside_hours' then format('It was %s in %s; trades are opened on weekdays %s%s.',
      to_char(p_now at time zone p_copier.time_zone, 'FMDay HH24:MI'), p_copier.time_zone, array_to_string(p_copier.weekdays, ', '),
      case when p_copier.open_from is not null
        then format(' from %s until %s', to_char(p_copier.open_from, 'HH24:MI'), to_char(p_copier.open_until, 'HH24:MI')) else '' end)
    when 'min_equity' then format('The equity is %s %s (told %s); min_equity is %s.', coalesce(trim_scale(p_follower.equity)::text, 'unknown'),
      p_follower.currency, coalesce(to_char(p_follower.funds_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'),
      trim_scale(p_copier.min_equity))
    when 'max_open_positions' then format('max_open_positions is %s, and so many copies are held or under way.', p_copier.max_open_positions)
    when 'max_open_lots' then format('max_open_lots is %s, and so many lots are held or under way.', trim_scale(p_copier.max_open_lots))
    when 'max_trades_per_day' then format('max_trades_per_day is %s, and so many trades were opened since midnight in %s.',
      p_copier.max_trades_per_day, p_copier.time_zone)
    when 'trade_disabled' then format('%s is %s at the follower.', p_symbol.name, replace(p_symbol.trade_mode, '_', ' '))
    when 'account_halted' then p_follower.status_reason
    when 'follower_offline' then format('The follower''s status is %s, its agent was last heard of %s.', p_follower.status,
      coalesce(to_char(p_follower.seen_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'))
  end;
end $$;

-- 38_symbol.sql
-- Symbols: which symbol of a follower is the master's, and what currencies are worth by the accounts' own quotes.

-- Names under which brokers list one and the same instrument.
create table public.symbol_aliases (
  name text primary key,
  instrument text not null,
  constraint names_are_roots check (name ~ '^[A-Z0-9]{1,20}$' and instrument ~ '^[A-Z0-9]{1,20}$')
);
comment on table public.symbol_aliases is 'Names of one instrument at different brokers, without prefix and suffix; names of one group share an instrument.';
comment on column public.symbol_aliases.name is 'A name, in upper case and without the broker''s prefix and suffix.';
comment on column public.symbol_aliases.instrument is 'What it names; any of the group''s names.';

-- the planner: all names of an instrument
create index symbol_aliases_of_instrument on public.symbol_aliases (instrument);
alter table public.symbol_aliases enable row level security;
create policy "aliases are no secret" on public.symbol_aliases for select to authenticated using (true);
grant select on public.symbol_aliases to authenticated, service_role;

insert into public.symbol_aliases (instrument, name)
select g.names[1], unnest(g.names) from (values
  (array['XAUUSD', 'GOLD']), (array['XAGUSD', 'SILVER']), (array['XPTUSD', 'PLATINUM']), (array['XPDUSD', 'PALLADIUM']),
  (array['XCUUSD', 'COPPER']),
  (array['US30', 'DJ30', 'WS30', 'DJI30', 'DJIA30', 'DOW30', 'USA30', 'WALLSTREET30']),
  (array['NAS100', 'USTEC', 'US100', 'NDX100', 'NASDAQ100', 'USTECH100', 'UT100', 'USTECH']),
  (array['SPX500', 'US500', 'SP500', 'USA500']), (array['US2000', 'RUSSELL2000', 'RUS2000']),
  (array['GER40', 'DE40', 'DAX40', 'GER30', 'DE30', 'DAX30', 'GDAXI', 'DAX']),
  (array['UK100', 'FTSE100', 'GB100', 'FTSE']), (array['JP225', 'JPN225', 'NI225', 'NIKKEI225', 'NIKKEI']),
  (array['FRA40', 'FR40', 'CAC40']), (array['EU50', 'STOXX50', 'EUSTX50', 'ESTX50', 'EURO50', 'STX50']),
  (array['ESP35', 'ES35', 'IBEX35', 'SPA35']), (array['AUS200', 'AU200', 'ASX200']), (array['HK50', 'HKG50', 'HSI50', 'HSI']),
  (array['WTI', 'USOIL', 'XTIUSD']), (array['BRENT', 'UKOIL', 'XBRUSD']), (array['NATGAS', 'NGAS', 'XNGUSD']),
  (array['BTCUSD', 'BITCOIN']), (array['ETHUSD', 'ETHEREUM']), (array['LTCUSD', 'LITECOIN']), (array['XRPUSD', 'RIPPLE'])
) as g (names);

-- The pair of currencies or metals in a name, which means the same everywhere: EURUSD of "m.EURUSD.x"; null where there is none.
create function private.pair_in(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return substring(upper(p_name) from
    '(?:AUD|CAD|CHF|CNH|CZK|DKK|EUR|GBP|HKD|HUF|ILS|JPY|MXN|NOK|NZD|PLN|RUB|SEK|SGD|THB|TRY|USD|ZAR|XAU|XAG|XPT|XPD|BTC|ETH|LTC){2}');
end $$;

-- What is left of a symbol's name without the broker's prefix and suffix, in upper case: EURUSD of "eurusd.m", "EURUSDpro", "#EURUSD".
create function private.symbol_root(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_bare text := upper(regexp_replace(p_name, '^[^A-Za-z0-9]+', ''));
begin
  if private.pair_in(left(v_bare, 6)) is not null then return left(v_bare, 6); end if;
  return regexp_replace(v_bare, '[^A-Z0-9].*$', '');
end $$;

-- the planner: candidates of a follower for the master's symbol; exchange rates by pair. The root comes first, so that a look-up by
-- account and name has only the primary key to choose.
create index account_symbols_by_root on public.account_symbols (private.symbol_root(name), account_id);

-- What an account's broker puts before and after a symbol's name, learned from the names that are known everywhere: what most of them
-- carry, and at least two. Kept at the account, so that planning need not read its whole list.
create function private.learn_affixes() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if not exists (select from new_symbols) then return null; end if;  -- every report of quotes comes here
  update public.trading_accounts a
  set symbol_prefix = f.prefix, symbol_suffix = f.suffix
  from (
    select distinct on (x.account_id) x.account_id, case when x.roots > 1 and x.roots * 2 > x.all_roots then x.prefix else '' end as prefix,
      case when x.roots > 1 and x.roots * 2 > x.all_roots then x.suffix else '' end as suffix
    from (
      select s.account_id, left(s.name, at - 1) as prefix, substr(s.name, at + length(root)) as suffix,
        count(*) as roots, sum(count(*)) over (partition by s.account_id) as all_roots
      from public.account_symbols s
      cross join lateral (select coalesce(private.pair_in(s.name), private.symbol_root(s.name))) r (root)
      cross join lateral (select strpos(upper(s.name), r.root)) p (at)
      where s.account_id in (select n.account_id from new_symbols n)
        and (private.pair_in(root) is not null or root in (select known.name from public.symbol_aliases known))
      group by s.account_id, 2, 3
    ) x
    order by x.account_id, x.roots desc, x.prefix, x.suffix
  ) f
  where a.id = f.account_id and (a.symbol_prefix, a.symbol_suffix) is distinct from (f.prefix, f.suffix);
  perform private.forget_choices(array(select distinct n.account_id from new_symbols n));
  return null;
end $$;
create trigger learn_affixes after insert on public.account_symbols
  referencing new table as new_symbols for each statement execute function private.learn_affixes();

-- Why a follower's symbol cannot be taken for the master's without its user's word; null: nothing speaks against it. The same name may have
-- another contract size (a size is aligned to it), within reason; another name may not.
create function private.misfit(p_master public.account_symbols, p_symbol public.account_symbols) returns text
language plpgsql immutable set search_path = '' as $$
declare
  m public.account_symbols := p_master;
  s public.account_symbols := p_symbol;
  v_dated constant text := '(fut|ft|fwd|[._-][fghjkmnquvxz]\d\d?)$';
  v_prices boolean := abs(extract(epoch from m.quoted_at - s.quoted_at)) < 86400;
begin
  if m.profit_currency <> s.profit_currency
    and (m.name <> s.name or private.exchange_rate(m.profit_currency, s.profit_currency, '{}') is null) then  -- cents of one money are the same money
    return format('its profit is in %s, the master''s in %s', s.profit_currency, m.profit_currency);
  end if;
  if v_prices and not (s.bid < m.bid * 1.5 and m.bid < s.bid * 1.5) then
    return format('its price is %s, the master''s %s', trim_scale(s.bid), trim_scale(m.bid));
  end if;
  if m.contract_size <> s.contract_size and (m.name <> s.name or v_prices is not true and private.pair_in(s.name) is null
    and greatest(m.contract_size, s.contract_size) > 50 * least(m.contract_size, s.contract_size)) then
    return format('one lot of it is %s units, of the master''s %s', trim_scale(s.contract_size), trim_scale(m.contract_size));
  end if;
  if m.name ~* v_dated <> (s.name ~* v_dated) then
    return 'one of the two seems to be a future';
  end if;
  return null;
end $$;

-- All names of the instrument that a master's symbol names, without prefix and suffix; its own first.
create function private.names_of(p_master public.account_symbols) returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  v_name text := p_master.name;
  v_root text;
begin
  select * into a from public.trading_accounts where id = p_master.account_id;
  if a.symbol_prefix || a.symbol_suffix <> '' and starts_with(v_name, a.symbol_prefix)
    and right(v_name, length(a.symbol_suffix)) = a.symbol_suffix and length(v_name) > length(a.symbol_prefix || a.symbol_suffix) then
    v_name := substr(v_name, length(a.symbol_prefix) + 1, length(v_name) - length(a.symbol_prefix || a.symbol_suffix));
  end if;
  v_root := private.symbol_root(v_name);
  return v_root || array(
    select o.name from public.symbol_aliases i join public.symbol_aliases o on o.instrument = i.instrument
    where i.name = v_root and o.name <> v_root order by o.name);
end $$;

-- Candidates of a follower for the master's symbol, best rank first: 1 the root with the broker's usual prefix and suffix, 2 the root,
-- 3 another name of the instrument with them, 4 without. misfit: why it may not be taken.
create function private.symbol_candidates(p_follower public.trading_accounts, p_master public.account_symbols)
returns table (name text, rank integer, tradable boolean, misfit text)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_names text[] := private.names_of(p_master);
  v_usual text[] := array(select p_follower.symbol_prefix || n || p_follower.symbol_suffix from unnest(v_names) n);
begin
  return query
  select s.name, case when upper(s.name) = upper(v_usual[1]) then 1 when private.symbol_root(s.name) = v_names[1] then 2
      when upper(s.name) = any (select upper(u) from unnest(v_usual) u) then 3 else 4 end,
    s.trade_mode not in ('close_only', 'disabled'), private.misfit(p_master, s)
  from (
    select * from public.account_symbols x where private.symbol_root(x.name) = any (v_names) and x.account_id = p_follower.id
    union
    select * from public.account_symbols x where x.account_id = p_follower.id and x.name = any (v_usual)
  ) s
  order by 2, 1;
end $$;

-- The follower's symbol for the master's, where its user has named none: the same name; else the one of the same root, by the broker's
-- usual prefix and suffix where there are several; else the one under another name of the instrument. Null: none, or several, or one that
-- may be something else. The same name with the same figures needs no call (44_decide.sql).
create function private.follower_symbol(p_follower public.trading_accounts, p_master public.account_symbols) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
  v_names text[];
begin
  if p_master.contract_size is null then return null; end if;
  -- of what fits: what may be traded before what may not, the same name before all, then by rank
  select array_agg(f.name) into v_names from (
    select c.name, dense_rank() over (order by c.tradable desc, c.name <> p_master.name, c.rank) as place
    from private.symbol_candidates(p_follower, p_master) c where c.misfit is null
  ) f where f.place = 1;
  if cardinality(v_names) = 1 then
    select * into v_symbol from public.account_symbols s where s.account_id = p_follower.id and s.name = v_names[1];
    -- a namesake of another contract size beside one that fits in everything: only its user can know
    if v_symbol.contract_size <> p_master.contract_size and exists (
      select 1 from private.symbol_candidates(p_follower, p_master) c
      join public.account_symbols s on s.account_id = p_follower.id and s.name = c.name
      where c.misfit is null and c.tradable and s.name <> v_symbol.name) then
      return null;
    end if;
    return v_symbol;
  end if;
  return null;
end $$;

-- What follower_symbol() last answered: looking through a broker's names costs ten times as much as looking one up.
create table private.symbol_choices (
  follower_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  master_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  master_symbol text not null,
  follower_symbol text not null,
  primary key (follower_account_id, master_account_id, master_symbol)
);
comment on table private.symbol_choices is
  'The follower''s symbol for a master''s, as last found by name. Forgotten when symbols of either account come or change, and when a name of an instrument does.';
create index symbol_choices_of_master on private.symbol_choices (master_account_id);
alter table private.symbol_choices enable row level security;

create function private.forget_choices(p_accounts uuid[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.symbol_choices where follower_account_id = any (p_accounts);
  delete from private.symbol_choices where master_account_id = any (p_accounts);
end $$;

create function private.forget_choices_of_symbol() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.forget_choices(array[new.account_id]);
  return null;
end $$;
create trigger forget_choices after update on public.account_symbols for each row
  when ((old.contract_size, old.profit_currency, old.trade_mode) is distinct from (new.contract_size, new.profit_currency, new.trade_mode))
  execute function private.forget_choices_of_symbol();

-- follower_symbol(), remembered. What is remembered must still fit.
create function private.choose_symbol(p_follower public.trading_accounts, p_master public.account_symbols) returns public.account_symbols
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  select s.* into v_symbol from private.symbol_choices c
  join public.account_symbols s on s.account_id = c.follower_account_id and s.name = c.follower_symbol
  where c.follower_account_id = p_follower.id and c.master_account_id = p_master.account_id and c.master_symbol = p_master.name;
  if v_symbol.name is not null and private.misfit(p_master, v_symbol) is null then
    return v_symbol;
  end if;
  v_symbol := private.follower_symbol(p_follower, p_master);
  if v_symbol.name is not null then
    insert into private.symbol_choices (follower_account_id, master_account_id, master_symbol, follower_symbol)
    values (p_follower.id, p_master.account_id, p_master.name, v_symbol.name)
    on conflict (follower_account_id, master_account_id, master_symbol) do update set follower_symbol = excluded.follower_symbol;
  end if;
  return v_symbol;
end $$;

-- Mid prices of every pair of the currencies that the accounts themselves quote now, as {"EURUSD": "1.0850"}; agents tell these pairs every
-- twenty seconds or so, moved or not.
create function private.quoted_rates(p_accounts uuid[], p_currencies text[]) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  return (
    with currencies as materialized (
      select distinct case when c = 'GBC' then 'GBP' else left(c, 3) end as name from unnest(p_currencies || array['USD', 'EUR']) c
    )
    select coalesce(jsonb_object_agg(a.name || b.name, ((s.bid + s.ask) / 2)::text), '{}'::jsonb)
    from currencies a
    join currencies b on b.name <> a.name
    cross join lateral (  -- looked up pair by pair: of a table without statistics Postgres would rather read all symbols of the accounts
      select x.bid, x.ask from public.account_symbols x
      where private.symbol_root(x.name) = a.name || b.name and x.account_id = any (p_accounts) and x.bid > 0 and x.ask > 0
        and x.quoted_at > v_since
      order by x.quoted_at desc nulls last limit 1
    ) s);
end $$;

-- A level or price moved onto the symbol's ticks: the nearest one, for a broker refuses what lies between.
create function private.on_tick(p_price numeric, p_tick numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if p_price is null or p_tick is null or p_tick <= 0 then
    return p_price;
  end if;
  return div(p_price + p_tick / 2, p_tick) * p_tick;
end $$;

-- 39_fault.sql
-- Faults: what the planner's own code failed on. One report, event or copy that makes it raise is set aside here, with all that is needed to do
-- it again, so that it holds up nothing else and nothing of it is lost. Usually empty. 49_apart.sql works it off.

create table private.faults (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  subject text not null,
  body jsonb not null default '{}',
  error text not null,
  context text,
  times integer not null default 1,
  first_at timestamptz not null,
  last_at timestamptz not null,
  retry_at timestamptz not null,
  primary key (account_id, kind, subject),
  constraint kind_is_known check (kind in
    ('report', 'event', 'changes', 'decision', 'explain', 'link', 'offer', 'overdue', 'retries', 'flatten', 'existing', 'watch'))
);
comment on table private.faults is 'What the planner''s own code raised an exception for: kept, tried again by itself, gone once it succeeds. Each raised an alert.';
comment on column private.faults.account_id is 'whose plan lock, and whose followers'', trying again needs';
comment on column private.faults.kind is
  'report, event: the whole entry is in body. changes: of a master, made by reports. decision: a ticket and a copier. explain: events that wait for decisions.'
  ' link: a copy. offer: an execution nobody was given. overdue, retries, flatten, existing: parts of an account''s upkeep. watch: what its agent shall watch';
comment on column private.faults.subject is 'which one: execution and attempt with their number, session:seq, ticket and copier, link, execution';
comment on column private.faults.context is 'where in the code';

-- maintain: what is due
create index faults_due on private.faults (retry_at);
alter table private.faults enable row level security;

-- Whether an error is a fault of our own code. Refusals (TC) are answers; what only this moment made fail is for the caller to repeat.
create function private.is_fault(p_state text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return left(p_state, 2) not in ('TC', '08', '40', '53', '57', '58') and p_state <> '55P03';
end $$;

-- Sets it aside, or counts that it failed again: after 5 s, doubling up to a minute. Its alert goes to the owner of p_concerns; operators see all.
create function private.note_fault(p_account uuid, p_kind text, p_subject text, p_body jsonb, p_concerns uuid, p_what text, p_error text, p_context text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  raise warning 'planner fault, %: % (account %) %', p_what, p_error, p_account, p_context;
  insert into private.faults as f (account_id, kind, subject, body, error, context, first_at, last_at, retry_at)
  values (p_account, p_kind, p_subject, coalesce(p_body, '{}'), p_error, p_context, p_now, p_now, p_now + interval '5 s')
  on conflict (account_id, kind, subject) do update set body = excluded.body, error = excluded.error, context = excluded.context,
    times = f.times + 1, last_at = p_now, retry_at = p_now + make_interval(secs => least(60, 5 * 2 ^ least(f.times, 10)));
  perform private.raise_alert(p_concerns, 'planner', 'planner_fault', 'critical', format(
    'The copier''s own code failed on %s. It is kept and tried again by itself, everything else goes on; tell the operators: %s', p_what, p_error),
    jsonb_build_object('kind', p_kind, 'subject', p_subject, 'error', p_error));
end $$;

-- 39_jitter.sql
-- Opens that are to look less alike, for users whose rules allow it: a little later and a little smaller, different for every follower and trade, and
-- the same again for the same one. Closes, reductions and levels are never touched; a size only ever shrinks, so that every limit holds.

-- A number from 0 to under 1 that depends on its name alone.
create function private.dice(p_name text) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return ((hashtextextended(p_name, 0) % 1000000 + 1000000) % 1000000) / 1000000.0;
end $$;

-- The copier with a size up to lots_jitter_percent smaller.
create function private.jittered(p_copier public.copiers, p_ticket text, p_generation integer) returns public.copiers
language plpgsql immutable set search_path = '' as $$
declare
  c public.copiers := p_copier;
begin
  c.sizing_value := c.sizing_value * (1 - c.lots_jitter_percent / 100 * private.dice(format('lots %s %s %s', c.id, p_ticket, p_generation)));
  return c;
end $$;

-- Notes what was made smaller, and takes opens that shall wait out of the agents' hands: they are in nobody's until their time comes, so a close
-- ends them at once. Returns those that go out now.
create function private.hold_back(p_new bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  update public.trade_execution_queue q set warnings = q.warnings || 'lots_jittered'::text
  from public.copiers c where q.id = any (p_new) and c.id = q.copier_id and c.lots_jitter_percent > 0;
  update public.trade_execution_queue q set status = 'retrying', attempt = 0, next_attempt_at = w.at, queued_at = w.at, offered_at = null,
    vps_id = null, epoch = null, warnings = q.warnings || 'delayed'::text
  from public.copiers c
  cross join lateral (
    select x.id, p_now + make_interval(secs => (c.delay_min_ms + (c.delay_max_ms - c.delay_min_ms) * private.dice(format('delay %s %s', c.id, x.link_id))) / 1000.0) as at
    from public.trade_execution_queue x where x.id = any (p_new) and x.copier_id = c.id
  ) w
  where q.id = w.id and c.delay_max_ms > 0;
  return array(select q.id from public.trade_execution_queue q where q.id = any (p_new) and q.offered_at is not null);
end $$;

-- 39_point.sql
-- Points: what the smallest step of a price is worth, kept with every fill so that its slippage reads the same for ever.

-- Size of a point of a symbol, and what one point of one lot is worth in the account's currency now. Null: not known. Where the symbol's
-- profit is in the account's own currency, which is the rule, no rate is looked for. p_filled: nothing filled, nothing to know.
create function private.point_worth(p_account uuid, p_currency text, p_symbol text, p_filled numeric, out size numeric, out money numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
begin
  if coalesce(p_filled, 0) = 0 then return; end if;
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_symbol;
  size := 10::numeric ^ (-s.digits);
  money := size * s.contract_size * case when s.profit_currency = p_currency then 1
    else private.exchange_rate(s.profit_currency, p_currency, private.quoted_rates(array[p_account], array[s.profit_currency, p_currency])) end;
end $$;

-- 39_second_attempt.sql
-- Second attempts of opens that a broker refused for their size: one, after a pause in which figures and specifications are looked at again.

-- What a broker asks for one lot, in the account's currency: contract x price / leverage. Null when a figure is unknown or old.
create function private.margin_per_lot(p_account public.trading_accounts, p_symbol public.account_symbols, p_side text, p_price numeric, p_now timestamptz)
returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_symbol.contract_size
    * coalesce(case when p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s')
      then case p_side when 'buy' then p_symbol.ask else p_symbol.bid end end, p_price)
    * private.exchange_rate(p_symbol.profit_currency, p_account.currency, case when p_symbol.profit_currency = p_account.currency then '{}'::jsonb
      else private.quoted_rates(array[p_account.id], array[p_symbol.profit_currency, p_account.currency]) end)
    / p_account.leverage;
end $$;

-- Lots that the free margin allows, on the symbol's step; null when that is not known.
create function private.affordable_lots(q public.trade_execution_queue, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  s public.account_symbols;
  v_free numeric;
  v_margin numeric;
begin
  select * into a from public.trading_accounts where id = q.account_id;
  select * into s from public.account_symbols x where x.account_id = q.account_id and x.name = q.symbol;
  v_free := (private.fresh_funds(a, p_now - private.setting_s('funds_max_age_s'))).free_margin;
  v_margin := private.margin_per_lot(a, s, q.side, q.master_price, p_now);
  if v_free is null or v_margin is null or v_margin <= 0 then return null; end if;
  return div(greatest(v_free, 0), v_margin * s.lots_step) * s.lots_step;
end $$;

-- When an open that was refused for want of money, or for its volume, is tried once more; null: not at all.
create function private.second_attempt_at(q public.trade_execution_queue, p_reason text, p_now timestamptz) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers;
  v_at timestamptz := p_now + private.setting_s('second_attempt_s');
begin
  select * into c from public.copiers where id = q.copier_id;
  if q.attempt > 1 or v_at > q.queued_at + make_interval(secs => coalesce(c.max_age_ms, 5000) / 1000.0) then return null; end if;
  if p_reason = 'no_money' and c.no_money_policy = 'shrink' and private.affordable_lots(q, p_now) < (
    select s.lots_min from public.account_symbols s where s.account_id = q.account_id and s.name = q.symbol) then
    return null;  -- not even the smallest volume
  end if;
  return v_at;
end $$;

-- Gives second attempts that are due the volume they can have: what the free margin allows (no_money_policy shrink), or what the symbol's newest
-- specification allows. Never more than before. A netting deal is cut only where all of it opens; what is cut off is not made up for.
create function private.fit_second_attempts(p_accounts uuid[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  s public.account_symbols;
  v_lots numeric;
begin
  for q in
    select x.* from public.trade_execution_queue x
    where x.status = 'retrying' and x.next_attempt_at <= p_now and x.account_id = any (p_accounts) and x.reason in ('no_money', 'invalid_volume')
  loop
    continue when not private.opens(q) or exists (select 1 from jsonb_array_elements(q.parts) e where (e ->> 'lots')::numeric < 0 or e ->> 'side' <> q.side);
    select * into s from public.account_symbols x where x.account_id = q.account_id and x.name = q.symbol;
    v_lots := null;
    if q.reason = 'invalid_volume' then
      v_lots := div(least(q.lots, s.lots_max), s.lots_step) * s.lots_step;
    elsif (select c.no_money_policy from public.copiers c where c.id = q.copier_id) = 'shrink' then
      v_lots := private.affordable_lots(q, p_now);
    end if;
    if v_lots >= s.lots_min and v_lots < q.lots then
      update public.trade_execution_queue x set lots = v_lots, warnings = x.warnings || case q.reason when 'no_money' then 'margin_shrunk' else 'volume_refitted' end,
        parts = case when q.parts is not null then private.cut_parts(q.parts, q.side, v_lots) end
      where x.id = q.id;
    end if;
  end loop;
end $$;

create function private.tell_no_money(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(q.account_id, 'copy', 'no_money', 'warning',
    format('%s lots of %s were not opened: the broker says that the free margin does not suffice. Add funds, copy smaller, or set no_money_policy to shrink.',
      trim_scale(q.lots), q.symbol), jsonb_build_object('execution_id', q.id::text, 'copier_id', q.copier_id, 'symbol', q.symbol, 'lots', trim_scale(q.lots)::text));
end $$;

-- 40_mirror.sql
-- The mirror: how a message about a position changes public.positions. Callers hold the account's plan lock.

-- What is wrong with a position as docs/protocol.md describes it; null when nothing is. One expression: everything told passes here.
-- NaN and Infinity are greater than every bound.
create function private.position_error(p jsonb) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case
    when jsonb_typeof(p) is distinct from 'object' then 'position is missing or not an object'
    when jsonb_typeof(p -> 'ticket') is distinct from 'string' or length(p ->> 'ticket') not between 1 and 64
      then 'position.ticket must be a text of 1 to 64 characters'
    when jsonb_typeof(p -> 'symbol') is distinct from 'string' or length(p ->> 'symbol') not between 1 and 64
      then 'position.symbol must be a text of 1 to 64 characters'
    when coalesce(p ->> 'kind', '') not in ('position', 'order') then 'position.kind must be "position" or "order"'
    when coalesce(p ->> 'side', '') not in ('buy', 'sell') then 'position.side must be "buy" or "sell"'
    when p ->> 'kind' = 'order' and coalesce(p ->> 'order_type', '') not in ('limit', 'stop')
      then 'position.order_type of an order must be "limit" or "stop"'
    when coalesce(not pg_input_is_valid(p ->> 'lots', 'numeric') or (p ->> 'lots')::numeric not between 0 and 1e12, true)
      then 'position.lots must be a decimal number between 0 and 1e12'
    when coalesce(not pg_input_is_valid(p ->> 'price', 'numeric') or (p ->> 'price')::numeric not between 0 and 1e12, true)
      then 'position.price must be a decimal number between 0 and 1e12'
    when not pg_input_is_valid(p ->> 'sl', 'numeric') or (p ->> 'sl')::numeric not between 0 and 1e12
      then 'position.sl must be a decimal number between 0 and 1e12'
    when not pg_input_is_valid(p ->> 'tp', 'numeric') or (p ->> 'tp')::numeric not between 0 and 1e12
      then 'position.tp must be a decimal number between 0 and 1e12'
    when not coalesce(pg_input_is_valid(p ->> 'opened_at', 'timestamptz'), true)
      then 'position.opened_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(p ->> 'expires_at', 'timestamptz'), true)
      then 'position.expires_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(p ->> 'tag', 'bigint'), true) then 'position.tag must be an execution number'
  end;
end $$;

create type private.change as (applied boolean, type text, previous_lots numeric);
comment on type private.change is 'What a message changed in the mirror; applied is false when something newer is known.';

-- What kind of event leads from one state to the next; p_old.ticket null = was not known (or was closed).
create function private.change_type(p_old public.positions, p_kind text, p_side text, p_lots numeric) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_lots = 0 then case when p_kind = 'order' then 'cancelled' else 'closed' end
    when (p_old).ticket is null or (p_old).closed_at is not null then case when p_kind = 'order' then 'ordered' else 'opened' end
    when p_kind = 'order' then 'amended'
    when (p_old).kind = 'order' or (p_old).side <> p_side then 'opened'
    when p_lots > (p_old).lots then 'increased'
    when p_lots < (p_old).lots then 'reduced'
    else 'modified' end;
end $$;

-- Applies one position. p_unseen: last moment the account was seen without the change. p_existing: first snapshot ever.
create function private.apply_position(
  p_account public.trading_accounts, p_session bigint, p_seq bigint, p jsonb, p_detected timestamptz, p_unseen timestamptz,
  p_existing boolean, p_event_id bigint, p_close_reason text, p_now timestamptz
) returns private.change
language plpgsql security definer set search_path = '' as $$
declare
  o public.positions;
  v_lots numeric := (p ->> 'lots')::numeric;
  v_from text := nullif(p ->> 'replaces', p ->> 'ticket');
  v_type text;
  v_news boolean;
  v_flip boolean;
begin
  select * into o from public.positions where account_id = p_account.id and ticket = p ->> 'ticket';
  if (o.session, o.seq) >= (p_session, p_seq) then
    return row(false, null, o.lots)::private.change;
  end if;
  if o.ticket is null and v_from is not null then
    select * into o from public.positions where account_id = p_account.id and ticket = v_from and closed_at is null;
  end if;
  v_type := private.change_type(o, p ->> 'kind', p ->> 'side', v_lots);
  v_news := v_type in ('opened', 'ordered', 'increased') or o.ticket is null;
  v_flip := coalesce(v_type = 'opened' and o.closed_at is null and o.kind = 'position', false);

  insert into public.positions as m (account_id, ticket, user_id, kind, symbol, side, order_type, lots, price, sl, tp, magic, comment, tag,
    opened_at, expires_at, session, seq, existing, released, unseen_at, detected_at, first_seen_at, filled_at,
    changed_at, last_event_id, closed_at, close_reason)
  values (p_account.id, p ->> 'ticket', p_account.user_id, p ->> 'kind', p ->> 'symbol', p ->> 'side',
    case when p ->> 'kind' = 'order' then p ->> 'order_type' end, v_lots, (p ->> 'price')::numeric,
    nullif((p ->> 'sl')::numeric, 0), nullif((p ->> 'tp')::numeric, 0), p ->> 'magic', p ->> 'comment',
    coalesce((p ->> 'tag')::bigint, o.tag), (p ->> 'opened_at')::timestamptz, (p ->> 'expires_at')::timestamptz, p_session, p_seq,
    case when v_flip then false else coalesce(o.existing, p_existing) end, coalesce(o.released and o.closed_at is null, false),
    case when v_news then p_unseen else o.unseen_at end, p_detected,
    case when v_flip or o.ticket is null then p_now else o.first_seen_at end,
    case when o.kind = 'order' and o.closed_at is null and p ->> 'kind' = 'position' then p_now else o.filled_at end, p_now, p_event_id,
    case when v_lots = 0 then p_now end, case when v_lots = 0 then coalesce(p_close_reason, 'client') end)
  on conflict (account_id, ticket) do update set
    kind = excluded.kind, symbol = excluded.symbol, side = excluded.side, order_type = excluded.order_type, lots = excluded.lots,
    price = excluded.price, sl = excluded.sl, tp = excluded.tp, magic = excluded.magic, comment = excluded.comment, tag = excluded.tag,
    opened_at = coalesce(excluded.opened_at, m.opened_at), expires_at = excluded.expires_at, session = excluded.session, seq = excluded.seq,
    existing = excluded.existing, released = excluded.released, absent_snapshots = 0, unseen_at = excluded.unseen_at, detected_at = excluded.detected_at,
    first_seen_at = excluded.first_seen_at, filled_at = excluded.filled_at, changed_at = excluded.changed_at,
    last_event_id = coalesce(excluded.last_event_id, m.last_event_id), closed_at = excluded.closed_at,
    close_reason = excluded.close_reason, replaced_by = null;

  if o.ticket = v_from then  -- the lineage goes on under another ticket
    update public.positions set lots = 0, closed_at = p_now, close_reason = 'replaced', replaced_by = p ->> 'ticket',
      session = p_session, seq = p_seq where account_id = p_account.id and ticket = v_from;
    update public.position_links set master_ticket = p ->> 'ticket' where master_account_id = p_account.id and master_ticket = v_from;
    update private.link_legs set ticket = p ->> 'ticket' where account_id = p_account.id and ticket = v_from;
  end if;
  if v_from is not null and o.ticket is distinct from v_from then  -- the old ticket's own news, should it still come, is history
    insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq, unseen_at, detected_at,
      first_seen_at, changed_at, closed_at, close_reason, replaced_by)
    values (p_account.id, v_from, p_account.user_id, 'position', p ->> 'symbol', p ->> 'side', 0, (p ->> 'price')::numeric, p_session, p_seq,
      p_unseen, p_detected, p_now, p_now, p_now, 'replaced', p ->> 'ticket')
    on conflict (account_id, ticket) do update set lots = 0, closed_at = p_now, close_reason = 'replaced', replaced_by = excluded.replaced_by,
      session = excluded.session, seq = excluded.seq  -- an order that has filled into a position which was there before
      where positions.closed_at is null and positions.kind = 'order' and (positions.session, positions.seq) < (excluded.session, excluded.seq);
  end if;
  return row(true, v_type, coalesce(o.lots, 0))::private.change;
end $$;

-- Applies a good snapshot: what differs changes, what is missing for the second time (and has a lower number) is closed.
-- Returns the changes as [{"position": …, "type", "previous_lots"}] for the caller to record, and the tickets still missing.
create function private.apply_snapshot(
  p_account public.trading_accounts, p_session bigint, p_seq bigint, p_positions jsonb, p_detected timestamptz, p_unseen timestamptz,
  p_now timestamptz, out changes jsonb, out missing jsonb
) language plpgsql security definer set search_path = '' as $$
declare
  p jsonb;
  c private.change;
  o public.positions;
  v_first boolean := p_account.snapshot_session = 0;
begin
  changes := '[]'::jsonb;
  for p in select value from jsonb_array_elements(p_positions) loop
    select * into o from public.positions where account_id = p_account.id and ticket = p ->> 'ticket';
    if o.closed_at is null and o.kind = p ->> 'kind' and o.side = p ->> 'side' and o.lots = (p ->> 'lots')::numeric
      and o.sl is not distinct from nullif((p ->> 'sl')::numeric, 0) and o.tp is not distinct from nullif((p ->> 'tp')::numeric, 0)
      and (o.kind = 'position' or o.price = (p ->> 'price')::numeric)
    then
      update public.positions set session = p_session, seq = p_seq, absent_snapshots = 0
      where account_id = p_account.id and ticket = o.ticket and (session, seq) < (p_session, p_seq);
    else
      c := private.apply_position(p_account, p_session, p_seq, p, p_detected, p_unseen, v_first, null, null, p_now);
      if c.applied then
        changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots);
      end if;
    end if;
  end loop;

  update public.positions m set absent_snapshots = m.absent_snapshots + 1
  where m.account_id = p_account.id and m.closed_at is null and (m.session, m.seq) < (p_session, p_seq)
    and not exists (select 1 from jsonb_array_elements(p_positions) e where e ->> 'ticket' = m.ticket);
  for o in
    select * from public.positions m where m.account_id = p_account.id and m.closed_at is null and m.absent_snapshots >= 2
  loop
    p := jsonb_build_object('ticket', o.ticket, 'kind', o.kind, 'symbol', o.symbol, 'side', o.side, 'order_type', o.order_type,
      'lots', '0', 'price', o.price::text, 'sl', o.sl::text, 'tp', o.tp::text, 'magic', o.magic, 'comment', o.comment,
      'opened_at', o.opened_at, 'expires_at', o.expires_at);
    c := private.apply_position(p_account, p_session, p_seq, p, p_detected, p_unseen, false, null, 'client', p_now);
    changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots);
  end loop;
  select coalesce(jsonb_agg(m.ticket), '[]'::jsonb) into missing from public.positions m
  where m.account_id = p_account.id and m.closed_at is null and m.absent_snapshots > 0;
  update public.trading_accounts set snapshot_session = p_session where id = p_account.id and snapshot_session < p_session;
end $$;

-- 41_fifo.sql
-- Brokers that close positions of one symbol only in the order of their opening (reason "fifo").

-- The close of one of our tickets was refused so: if an older ticket of the same volume belongs to another copy, the two copies exchange them. What
-- each holds stays the same, and the close that is planned again names the older one. A copy of another volume waits for its turn.
create function private.exchange_for_oldest(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_mine public.positions;
  v_oldest public.positions;
  v_other bigint;
begin
  select p.* into v_mine from private.link_legs g join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.lots > 0
  where g.link_id = q.link_id and g.ticket = q.ticket and g.kind = 'position' and g.lots = p.lots;
  if not found then return; end if;
  select p.* into v_oldest from public.positions p join private.link_legs g on g.account_id = p.account_id and g.ticket = p.ticket
  where p.account_id = q.account_id and p.lots > 0 and p.kind = 'position' and (p.symbol, p.side, p.lots) = (v_mine.symbol, v_mine.side, v_mine.lots)
    and g.lots = p.lots and g.link_id <> q.link_id
    and (coalesce(p.opened_at, '-infinity'), length(p.ticket), p.ticket) < (coalesce(v_mine.opened_at, '-infinity'), length(v_mine.ticket), v_mine.ticket)
    and not exists (select 1 from public.trade_execution_queue o where o.link_id = g.link_id and o.finalized_at is null)
  order by coalesce(p.opened_at, '-infinity'), length(p.ticket), p.ticket limit 1;
  if not found then return; end if;
  select g.link_id into v_other from private.link_legs g where g.account_id = q.account_id and g.ticket = v_oldest.ticket;
  update private.link_legs g set ticket = v_oldest.ticket, price = v_oldest.price where g.link_id = q.link_id and g.ticket = v_mine.ticket;
  update private.link_legs g set ticket = v_mine.ticket, price = v_mine.price where g.link_id = v_other and g.ticket = v_oldest.ticket;
  -- the ticket that each holds now has the levels of the other copy: its own are asked for again
  update public.position_links l set asked_sl = v_mine.sl, asked_tp = v_mine.tp, replan_at = p_now
  where l.id = v_other and (l.asked_sl, l.asked_tp) is distinct from (v_mine.sl, v_mine.tp);
  update public.position_links l set asked_sl = v_oldest.sl, asked_tp = v_oldest.tp  -- after a reduction some of it stays
  where l.id = q.link_id and l.ended_at is null and (l.asked_sl, l.asked_tp) is distinct from (v_oldest.sl, v_oldest.tp);
end $$;

-- 41_levels.sql
-- Levels: which stop loss and take profit a copy shall have, and which of them its broker will take at this moment.
-- What is wanted depends on settings, the master and the copy's own open price alone; it is compared with what was last asked. What is
-- sent may differ from it by the broker's distances: that is decided when an order is queued and never compared, for quotes move.

create type private.levels as (sl numeric, tp numeric, sent_sl numeric, sent_tp numeric, warnings text[]);
comment on type private.levels is 'sl, tp: what is wanted; sent_sl, sent_tp: the nearest that the broker takes now; warnings say that they differ.';

-- A level that a copy shall have. p_from: the master's level it comes from (under reverse its other one); p_direction: +1 when the level
-- lies above the copy's open price, -1 below; p_open: the copy's own open price, null while there is none (then the master's counts);
-- p_cap: the farthest that it may lie away, in points, also when the master has none.
create function private.wanted_level(
  p_mode text, p_from numeric, p_master_open numeric, p_open numeric, p_direction integer, p_points integer, p_cap integer, p_digits integer,
  p_tick numeric
) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_open numeric;
  v_level numeric := p_from;
  v_cap numeric;
begin
  if p_mode = 'price' and p_cap is null then  -- what most copiers do, for every link that is looked at: no further call
    return case when p_tick > 0 then div(p_from + p_tick / 2, p_tick) * p_tick else p_from end;
  end if;
  if p_mode = 'none' and p_cap is null then return null; end if;
  v_open := coalesce(p_open, private.on_tick(p_master_open, p_tick));
  v_level := case p_mode when 'price' then p_from when 'distance' then v_open + (p_from - p_master_open)
    when 'fixed' then v_open + p_direction * p_points * 10::numeric ^ -p_digits end;
  if p_cap is not null then
    v_cap := v_open + p_direction * p_cap * 10::numeric ^ -p_digits;
    v_level := case when p_direction > 0 then least(v_level, v_cap) else greatest(v_level, v_cap) end;
  end if;
  v_level := private.on_tick(v_level, p_tick);
  return case when v_level > 0 then v_level end;
end $$;

-- A quote that may be relied on: an agent tells those of the symbols in use again and again.
create function private.is_fresh(p_symbol public.account_symbols, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(p_symbol.bid > 0 and p_symbol.ask > 0
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s'), false);
end $$;

-- The nearest levels that the broker takes. p_order_price: of a pending order, null: a position at the market. p_tries: refusals for the levels
-- so far; a broker that names no distance (0) is believed until it refuses, then the spread is kept, doubled each time.
create function private.legal_levels(
  p_symbol public.account_symbols, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer, p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_levels private.levels := row(p_sl, p_tp, p_sl, p_tp, '{}'::text[]);
  v_distance numeric := greatest(p_symbol.stops_level_points, p_symbol.freeze_level_points);
  v_price numeric := p_order_price;
  v_below numeric;
  v_above numeric;
begin
  if p_sl is null and p_tp is null or v_distance = 0 and p_tries = 0 then return v_levels; end if;
  if v_price is null then
    if not private.is_fresh(p_symbol, p_now) then return v_levels; end if;
    v_price := case p_side when 'buy' then p_symbol.bid else p_symbol.ask end;
  end if;
  v_distance := v_distance * 10::numeric ^ -p_symbol.digits;
  if p_tries > 0 then
    v_distance := greatest(v_distance, p_symbol.ask - p_symbol.bid, p_symbol.tick_size) * 2::numeric ^ (p_tries - 1);
  end if;
  v_below := floor((v_price - v_distance) / p_symbol.tick_size) * p_symbol.tick_size;
  v_above := ceil((v_price + v_distance) / p_symbol.tick_size) * p_symbol.tick_size;
  if p_side = 'buy' then
    v_levels.sent_sl := least(p_sl, case when p_sl is not null then v_below end);
    v_levels.sent_tp := greatest(p_tp, case when p_tp is not null then v_above end);
  else
    v_levels.sent_sl := greatest(p_sl, case when p_sl is not null then v_above end);
    v_levels.sent_tp := least(p_tp, case when p_tp is not null then v_below end);
  end if;
  v_levels.sent_sl := case when v_levels.sent_sl > 0 then v_levels.sent_sl end;
  v_levels.sent_tp := case when v_levels.sent_tp > 0 then v_levels.sent_tp end;
  v_levels.warnings := array_remove(array[case when v_levels.sent_sl is distinct from p_sl then 'sl_adjusted' end,
    case when v_levels.sent_tp is distinct from p_tp then 'tp_adjusted' end], null);
  return v_levels;
end $$;

-- Levels of a link's change, by its follower's symbol.
create function private.levels_to_ask(
  p_account uuid, p_symbol text, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer, p_now timestamptz
) returns private.levels
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  if p_sl is null and p_tp is null then return row(null, null, null, null, '{}'::text[])::private.levels; end if;
  select * into v_symbol from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  return private.legal_levels(v_symbol, p_side, p_order_price, p_sl, p_tp, p_tries, p_now);
end $$;

-- The same for a copier that takes the master's levels as they are, where the broker names no distance.
create function private.price_levels(p_sl numeric, p_tp numeric, p_tick numeric) returns private.levels
language plpgsql immutable set search_path = '' as $$
declare
  v_sl numeric := case when p_tick > 0 then div(p_sl + p_tick / 2, p_tick) * p_tick else p_sl end;
  v_tp numeric := case when p_tick > 0 then div(p_tp + p_tick / 2, p_tick) * p_tick else p_tp end;
begin
  return row(v_sl, v_tp, v_sl, v_tp, '{}'::text[])::private.levels;
end $$;

-- Levels of an order that opens something: from the price that it will probably get, since it must never be naked. The exact ones follow
-- when its own price is known. p_open: what the copy holds already (an increase), null: nothing.
create function private.first_levels(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_open numeric, p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_open numeric := p_open;
  v_up integer := case p_side when 'buy' then 1 else -1 end;
  v_sl numeric;
  v_tp numeric;
begin
  if v_open is null and p_master.kind = 'position' and (p_copier.sl_mode in ('distance', 'fixed') or p_copier.tp_mode in ('distance', 'fixed')
    or p_copier.max_sl_points is not null) and private.is_fresh(p_symbol, p_now) then
    v_open := case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  v_sl := private.wanted_level(p_copier.sl_mode, case when p_copier.reverse then p_master.tp else p_master.sl end, p_master.price, v_open, -v_up,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size);
  v_tp := private.wanted_level(p_copier.tp_mode, case when p_copier.reverse then p_master.sl else p_master.tp end, p_master.price, v_open, v_up,
    p_copier.tp_points, null, p_symbol.digits, p_symbol.tick_size);
  return private.legal_levels(p_symbol, p_side, case when p_master.kind = 'order' then private.on_tick(p_master.price, p_symbol.tick_size) end,
    v_sl, v_tp, 0, p_now);
end $$;

-- What a link's positions were opened at, on average.
create function private.open_price(p_link bigint) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select sum(g.lots * g.price) / nullif(sum(g.lots), 0) from private.link_legs g
    where g.link_id = p_link and g.kind = 'position' and g.price is not null);
end $$;

-- The stop that a copy risks its money by, at the master's price level: its own where the copier sets it, else the master's.
-- p_side: the master's; p_stop: the master's level that becomes the copy's stop.
create function private.stop_of_copy(p_copier public.copiers, p_side text, p_price numeric, p_stop numeric, p_symbol public.account_symbols)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(p_copier.sl_mode, 'price') <> 'fixed' and p_copier.max_sl_points is null then return p_stop; end if;
  return private.wanted_level(p_copier.sl_mode, p_stop, p_price, p_price, case when (p_side = 'buy') = p_copier.reverse then 1 else -1 end,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size);
end $$;

-- A link's warnings, with those about levels replaced by the newest.
create function private.with_level_warnings(p_warnings text[], p_new text[]) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  return array_remove(array_remove(p_warnings, 'sl_adjusted'), 'tp_adjusted') || coalesce(p_new, '{}');
end $$;

-- Settings of levels that contradict each other, both named. p_given: what is being saved, p_new: what would stand.
create function private.refuse_contradicting_levels(p_given jsonb, p_new public.copiers) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_message text := case
    when p_new.sl_mode = 'fixed' and p_new.sl_points is null then 'sl_mode is fixed, but sl_points is missing'
    when p_new.tp_mode = 'fixed' and p_new.tp_points is null then 'tp_mode is fixed, but tp_points is missing'
    when p_new.sl_mode <> 'fixed' and jsonb_typeof(p_given -> 'sl_points') <> 'null' then
      format('sl_points is given, but sl_mode is %s', p_new.sl_mode)
    when p_new.tp_mode <> 'fixed' and jsonb_typeof(p_given -> 'tp_points') <> 'null' then
      format('tp_points is given, but tp_mode is %s', p_new.tp_mode)
    when p_new.sl_mode = 'none' and p_new.max_sl_points is not null then 'sl_mode is none, but max_sl_points sets a stop'
    when p_new.sl_mode = 'fixed' and p_new.sl_points > p_new.max_sl_points then
      format('sl_points %s is more than max_sl_points %s', p_new.sl_points, p_new.max_sl_points) end;
begin
  if v_message is not null then
    raise exception using errcode = 'TC306', message = 'save_copier: ' || v_message, hint = 'Change one of the two settings.';
  end if;
end $$;

create function private.is_quote(p jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(jsonb_typeof(p), 'null') = 'null' then return true; end if;
  if jsonb_typeof(p) <> 'object' or not coalesce(private.is_number(p -> 'bid') and private.is_number(p -> 'ask'), false) then return false; end if;
  return (p ->> 'bid')::numeric > 0 and (p ->> 'ask')::numeric > 0;
end $$;

-- The prices at which an agent saw its order refused.
create function private.note_quote(p_account uuid, p_symbol text, p_quote jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.account_symbols s set bid = (p_quote ->> 'bid')::numeric, ask = (p_quote ->> 'ask')::numeric, quoted_at = p_now
  where s.account_id = p_account and s.name = p_symbol and (s.quoted_at < p_now or s.quoted_at is null);
end $$;

-- Whether an order that was refused for its levels shall be sent again with the nearest ones that the broker may take; not for ever.
create function private.may_mend(q public.trade_execution_queue, p_reason text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return p_reason = 'invalid_stops' and q.attempt < 3 and coalesce(q.sl, q.tp) is not null and q.action in ('open', 'increase', 'place');
end $$;

create function private.mend_levels(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.levels_to_ask(q.account_id, q.symbol, q.side, case when q.action = 'place' then q.price end, q.sl, q.tp,
    q.attempt, p_now);
begin
  update public.trade_execution_queue x set sl = v_levels.sent_sl, tp = v_levels.sent_tp,
    warnings = private.with_level_warnings(x.warnings, v_levels.warnings)
  where x.id = q.id;
  update public.position_links l set warnings = private.with_level_warnings(l.warnings, v_levels.warnings) where l.id = q.link_id;
end $$;

-- An order that was filled without the levels it asked for: as if none had been asked, so that the planner asks at once. And a change
-- that was carried out ends the warning of one that was not.
create function private.mind_protection(q public.trade_execution_queue, r jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if q.action in ('modify', 'amend') then
    update public.position_links l set warnings = array_remove(l.warnings, 'protection_dropped')
    where l.id = q.link_id and 'protection_dropped' = any (l.warnings);
  elsif coalesce(q.sl, q.tp) is not null and q.action in ('open', 'increase', 'place') and exists (
    select 1 from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    where (e ->> 'lots')::numeric > 0 and (q.sl is not null and coalesce((e ->> 'sl')::numeric, 0) = 0
      or q.tp is not null and coalesce((e ->> 'tp')::numeric, 0) = 0))
  then
    if exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting') then
      update private.net_ledgers n set asked_sl = null, asked_tp = null where n.account_id = q.account_id and n.symbol = q.symbol;
    else
      update public.position_links l set asked_sl = null, asked_tp = null where l.id = q.link_id;
    end if;
  end if;
end $$;

-- Levels that the broker has refused for good: never silently. A change is given up after three refusals, an opening order is not sent any more.
create function private.mind_refused_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if coalesce(q.sl, q.tp) is null then return; end if;
  if q.action in ('modify', 'amend') then
    if exists (select 1 from public.position_links l where l.id = q.link_id and l.modify_failures >= 3)
      or exists (select 1 from private.net_ledgers n where n.account_id = q.account_id and n.symbol = q.symbol and n.modify_failures >= 3)
    then
      update public.position_links l set warnings = l.warnings || 'protection_dropped'::text
      where l.id = q.link_id and not 'protection_dropped' = any (l.warnings);
      perform private.raise_alert(q.account_id, 'levels', 'protection_dropped', 'critical', format(
        'The broker refused stop loss %s and take profit %s of the copy %s (%s) three times: %s. Set them by hand, or close the position.',
        coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none'), q.ticket, q.symbol, coalesce(q.message, q.reason)),
        jsonb_build_object('link_id', q.link_id::text, 'ticket', q.ticket, 'symbol', q.symbol, 'sl', q.sl::text, 'tp', q.tp::text));
    end if;
  elsif q.status = 'rejected' and q.reason = 'invalid_stops' then
    perform private.raise_alert(q.account_id, 'levels', 'invalid_stops', 'warning', format(
      'A copy of %s lots of %s was not opened: the broker takes neither its levels nor nearer ones (stop loss %s, take profit %s).',
      private.plain(q.lots), q.symbol, coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none')),
      jsonb_build_object('link_id', q.link_id::text, 'symbol', q.symbol, 'sl', q.sl::text, 'tp', q.tp::text));
  end if;
end $$;

-- 41_net_ledger.sql
-- The ledger of a netting follower: each link's share of the net position (its leg), and what the account's net and the shares differ by.
-- Callers hold the account's plan lock.

create function private.sign_of(p_side text) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return case p_side when 'buy' then 1 else -1 end;
end $$;

-- Adds p_lots (signed: + more, - less) to a link's share.
create function private.book_share(p_link bigint, p_account uuid, p_symbol text, p_lots numeric, p_price numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_lots > 0 then
    insert into private.link_legs as g (link_id, account_id, ticket, kind, lots, price)
    values (p_link, p_account, p_symbol, 'position', p_lots, p_price)
    on conflict (link_id, ticket) do update set lots = g.lots + excluded.lots,
      price = coalesce((g.lots * g.price + excluded.lots * excluded.price) / (g.lots + excluded.lots), excluded.price, g.price);
  else
    delete from private.link_legs where link_id = p_link and ticket = p_symbol and lots + p_lots <= 0;
    update private.link_legs set lots = lots + p_lots where link_id = p_link and ticket = p_symbol and lots + p_lots > 0;
  end if;
end $$;

-- What the account holds in this symbol by its own mirror, signed.
create function private.mirror_net(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(sum(p.lots * private.sign_of(p.side)), 0) from public.positions p
    where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position');
end $$;

-- Books what the account's own mirror shows beyond our deals: a stop, a stop-out or a manual deal against the links reduces them first
-- (oldest first), or a later close would open a position the other way. The rest is the user's own. Each is remembered as a surprise.
-- p_net: the net to be booked, which is the mirror's unless a deal is booked right after this.
create function private.book_net(p_account uuid, p_symbol text, p_net numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_change numeric;
  v_surplus numeric;
  v_leg record;
  v_take numeric;
  v_surprises jsonb := '[]';
begin
  insert into private.net_ledgers (account_id, symbol) values (p_account, p_symbol) on conflict do nothing;
  select p_net - net_lots, surplus_lots into v_change, v_surplus from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  if v_change = 0 then return; end if;
  v_take := least(abs(v_change), greatest(0, -sign(v_change) * v_surplus));
  if v_take > 0 then  -- the user, or a stop, has done what we were about to
    perform private.book_surplus(p_account, p_symbol, v_take * sign(v_change));
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', (v_take * sign(v_change))::text, 'at', p_now, 'surplus', true);
    v_change := v_change - v_take * sign(v_change);
  end if;
  for v_leg in
    select g.link_id, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id
    where g.account_id = p_account and g.ticket = p_symbol and l.state = 'live' and private.sign_of(l.side) = -sign(v_change)
    order by g.link_id
  loop
    v_take := least(v_leg.lots, abs(v_change));
    exit when v_take <= 0;
    perform private.book_share(v_leg.link_id, p_account, p_symbol, -v_take, null);
    v_surprises := v_surprises || jsonb_build_object('link_id', v_leg.link_id::text, 'lots', (v_take * sign(v_change))::text, 'at', p_now);
    v_change := v_change + v_take * -sign(v_change);
  end loop;
  if v_change <> 0 then
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', v_change::text, 'at', p_now);
  end if;
  update private.net_ledgers n set net_lots = p_net, surprises = private.newest(n.surprises || v_surprises, 20)
  where n.account_id = p_account and n.symbol = p_symbol;
end $$;

create function private.newest(p_entries jsonb, p_count integer) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(e.value order by e.n) from jsonb_array_elements(p_entries) with ordinality as e (value, n)
    where e.n > jsonb_array_length(p_entries) - p_count), '[]');
end $$;

-- What our deals moved and no link can have (an open dealt twice, a reduction of what is gone already) is the account's surplus, signed like
-- its net: the next deal moves it back. p_link: the deal's, which says whose it was.
create function private.book_surplus(p_account uuid, p_symbol text, p_lots numeric, p_link bigint default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update private.net_ledgers set surplus_lots = surplus_lots + p_lots, surplus_link_id = coalesce(p_link, surplus_link_id)
  where account_id = p_account and symbol = p_symbol and p_lots <> 0;
end $$;

-- Books a filled (or purely internal) deal. Each part gets what the deal was sent for, as far as its link can still have it: parts against the
-- deal in full, those with it from the fill, reductions first. Whatever the links cannot have is surplus, so nothing of a fill is ever nobody's.
-- p_when: 'in_time', 'given_up' (its verdict was no fill), 'dealt_again' (what it was to open was put into another deal).
create function private.book_deal(p_account uuid, p_symbol text, p_direction integer, p_filled numeric, p_price numeric, p_parts jsonb,
  p_when text default 'in_time') returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_part record;
  v_room numeric;
  v_lots numeric;
  v_surplus numeric := p_filled * p_direction;
begin
  select p_filled + coalesce(sum(abs((e ->> 'lots')::numeric)), 0) into v_room from jsonb_array_elements(p_parts) e
  where private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) <> p_direction;
  for v_part in
    select e as body, (e ->> 'link_id')::bigint as link_id, (e ->> 'lots')::numeric > 0 as opens,
      private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) as direction
    from jsonb_array_elements(p_parts) e order by (e ->> 'lots')::numeric > 0, (e ->> 'link_id')::bigint
  loop
    v_lots := case when v_part.opens then (v_part.body ->> 'lots')::numeric
      else private.possible_lots(v_part.body, p_account, p_symbol, p_when <> 'in_time') end;
    if v_part.direction = p_direction then
      v_lots := least(v_lots, v_room);
      v_room := v_room - v_lots;
    end if;
    if v_part.opens then
      v_lots := private.book_open(v_part.body, p_account, p_symbol, v_lots, p_price, p_when);
    elsif v_part.link_id is null then
      perform private.book_surplus(p_account, p_symbol, v_lots * v_part.direction);
    else
      perform private.book_reduction(v_part.body, p_account, p_symbol, v_lots, p_when);
    end if;
    v_surplus := v_surplus - v_lots * v_part.direction;
  end loop;
  update private.net_ledgers set net_lots = net_lots + p_filled * p_direction where account_id = p_account and symbol = p_symbol;
  perform private.book_surplus(p_account, p_symbol, v_surplus, (
    select max((e ->> 'link_id')::bigint) from jsonb_array_elements(p_parts) e));
end $$;

-- What a reduction can still take: what its link holds beyond the target that the deal was sent for, or, of a late one, beyond its target now:
-- it may have been repeated, or taken back by the master. Of a surplus, what is left of it; of a copy that was handed over, what its user has.
create function private.possible_lots(p_part jsonb, p_account uuid, p_symbol text, p_late boolean) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := abs((p_part ->> 'lots')::numeric);
  v_link bigint := (p_part ->> 'link_id')::bigint;
begin
  if v_link is null then
    return (
      select least(v_lots, greatest(0, n.surplus_lots * private.sign_of(p_part ->> 'side'))) from private.net_ledgers n
      where n.account_id = p_account and n.symbol = p_symbol);
  end if;
  if exists (select 1 from public.position_links l where l.id = v_link and l.state = 'ended' and l.reason = 'released') then
    return v_lots;
  end if;
  return coalesce((
    select least(v_lots, greatest(0, s.position_lots - case
        when not p_late and (p_part ->> 'reduced_to' is null or s.base_lots is null) or p_late and s.doomed then 0
        when s.base_lots is null or s.master_kind <> 'position' then s.position_lots
        else private.target_lots(s.base_lots, case when p_late then s.master_lots else (p_part ->> 'reduced_to')::numeric end,
          s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) end))
    from private.link_states s where s.id = v_link and s.ended_at is null), 0);
end $$;

create function private.book_reduction(p_part jsonb, p_account uuid, p_symbol text, p_lots numeric, p_when text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.book_share((p_part ->> 'link_id')::bigint, p_account, p_symbol, -p_lots, null);
  if p_when = 'in_time' and p_part ->> 'reduced_to' is not null then  -- a late one is seen when the link is as small as its master now
    perform private.see_reduction((p_part ->> 'link_id')::bigint, (p_part ->> 'reduced_to')::numeric, (p_part ->> 'master_lots')::numeric);
  end if;
end $$;

-- A link gets what a deal opened for it, and lives again if it was given up. What was dealt again counts only as far as it is still wanted.
-- Returns the lots that the link took.
create function private.book_open(p_part jsonb, p_account uuid, p_symbol text, p_lots numeric, p_price numeric, p_when text) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  l public.position_links;
  v_lots numeric := p_lots;
  v_master_lots numeric := (p_part ->> 'master_lots')::numeric;
  v_counted numeric := (p_part ->> 'counted')::numeric;
  v_rest numeric;
  v_held numeric;
begin
  select * into l from public.position_links x where x.id = (p_part ->> 'link_id')::bigint;
  v_rest := coalesce(l.rest_lots, 0);
  if p_when = 'dealt_again' then v_lots := least(p_lots, coalesce(l.wanted_lots, 0)); end if;
  if p_when <> 'in_time' and v_lots = 0 then return 0; end if;
  select coalesce(sum(g.lots), 0) into v_held from private.link_legs g where g.link_id = l.id;
  if v_lots > 0 then
    perform private.book_share(l.id, p_account, p_symbol, v_lots, p_price);
    update public.position_links x set state = 'live', ended_at = null, reason = null
    where x.id = l.id and x.state = 'ended' and x.reason is distinct from 'released';
  end if;
  if p_when = 'given_up' then  -- that has rebased the link already: now it is held after all
    update public.position_links x set base_lots = case when v_held = 0 then v_lots else coalesce(x.base_lots, 0) + v_lots end,
      base_master_lots = case when v_held = 0 then v_master_lots else coalesce(x.base_master_lots, v_master_lots) end
    where x.id = l.id;
  elsif p_when = 'dealt_again' then
    update public.position_links x set wanted_lots = nullif(x.wanted_lots - v_lots, 0), rest_lots = nullif(x.rest_lots - v_lots, 0),
      wanted_until = case when x.wanted_lots > v_lots then x.wanted_until end,
      base_lots = case when x.rest_lots is not null then x.base_lots else v_lots + least(v_held, coalesce(x.base_lots, 0)) end,
      base_master_lots = case when x.rest_lots is not null then x.base_master_lots else v_master_lots end
    where x.id = l.id;
  elsif v_counted is not null and v_lots = (p_part ->> 'lots')::numeric then
    update public.position_links x set base_lots = x.base_lots - v_counted + v_lots + v_rest,
      base_master_lots = case when v_lots + v_rest > v_counted then v_master_lots else x.base_master_lots end
    where x.id = l.id;
  else  -- a fill rebases the pair, to what is held now and the rest that is still to be dealt
    update public.position_links x set base_master_lots = v_master_lots,
      base_lots = nullif(v_lots + least(v_held, coalesce(x.base_lots, 0)) + v_rest, 0)
    where x.id = l.id;
  end if;
  return v_lots;
end $$;

-- Which way an execution moves the net: an order by ticket names the position's side.
create function private.direction_of(q public.trade_execution_queue) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return private.sign_of(q.side) * case when q.action = 'open' then 1 else -1 end;
end $$;

-- Books a deal that was reported as filled. p_was: the execution before this report; p_shown: the net that the mirror showed before it.
create function private.book_fill_of_net(q public.trade_execution_queue, p_was public.trade_execution_queue, p_late boolean, p_shown numeric,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  n private.net_ledgers;
  v_before numeric;
  v_sign integer;
  v_held numeric;
begin
  if p_late or p_was.finalized_at is not null or p_was.status = 'retrying' then
    perform private.book_late(q, case when p_was.reason = 'superseded' then 'dealt_again' when p_was.finalized_at is not null then 'given_up'
      else 'in_time' end);
  else
    -- A stop, or a deal by hand, while ours was on its way: told of by itself or by this very report, it took from what was held before. What it
    -- took beyond that it took from what ours opened, and is found later; so is what the mirror had seen together with our deal.
    v_before := private.mirror_net(q.account_id, q.symbol) - private.direction_of(q) * coalesce(q.filled_lots, q.lots);
    select * into n from private.net_ledgers x where x.account_id = q.account_id and x.symbol = q.symbol;
    if p_shown in (v_before, n.net_lots) and v_before <> n.net_lots then
      v_sign := sign(n.net_lots - v_before);
      select greatest(0, n.surplus_lots * v_sign) + coalesce(sum(g.lots), 0) into v_held
      from private.link_legs g join public.position_links l on l.id = g.link_id
      where g.account_id = q.account_id and g.ticket = q.symbol and l.state = 'live' and private.sign_of(l.side) = v_sign;
      perform private.book_net(q.account_id, q.symbol, n.net_lots - v_sign * least(v_held, abs(n.net_lots - v_before)), p_now);
    end if;
    perform private.book_deal(q.account_id, q.symbol, private.direction_of(q), coalesce(q.filled_lots, q.lots), q.fill_price, q.parts);
  end if;
end $$;

-- Books a fill that nobody waited for any more. Its volume may be among the surprises already: then these were none.
create function private.book_late(q public.trade_execution_queue, p_when text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_direction integer := private.direction_of(q);
  v_filled numeric := coalesce(q.filled_lots, q.lots);
  v_beyond numeric;
  v_known numeric;
begin
  insert into private.net_ledgers (account_id, symbol) values (q.account_id, q.symbol) on conflict do nothing;
  -- the mirror has taken the report: what it shows and the ledger does not is this fill, unless another deal is under way
  v_beyond := case when exists (
      select 1 from public.trade_execution_queue o
      where o.account_id = q.account_id and o.symbol = q.symbol and o.in_flight and o.status <> 'retrying') then 0
    else greatest(0, (private.mirror_net(q.account_id, q.symbol) - (
      select n.net_lots from private.net_ledgers n where n.account_id = q.account_id and n.symbol = q.symbol)) * v_direction) end;
  v_known := private.undo_surprises(q, v_direction, greatest(0, v_filled - v_beyond));
  perform private.book_deal(q.account_id, q.symbol, v_direction, v_filled, q.fill_price, q.parts, p_when);
  update private.net_ledgers set net_lots = net_lots - v_direction * v_known where account_id = q.account_id and symbol = q.symbol;
end $$;

-- A deal of which another attempt had filled already (q.attempt is the one that completed it). Returns its links; none when the report is only
-- repeated.
create function private.book_second_fill(q public.trade_execution_queue, r jsonb) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  if q.status <> 'completed' or (r ->> 'attempt')::integer = q.attempt or 'filled_twice' = any (q.warnings)
    or coalesce((r ->> 'filled_lots')::numeric, 0) = 0 then
    return '{}';
  end if;
  update public.trade_execution_queue set warnings = warnings || 'filled_twice'::text where id = q.id;
  q.filled_lots := (r ->> 'filled_lots')::numeric;
  perform private.book_late(q, 'dealt_again');
  return array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint from jsonb_array_elements(q.parts) e);
end $$;

-- Takes up to p_lots in this direction off the surprises since the deal was queued; what they took from links is given back. Returns the lots.
create function private.undo_surprises(q public.trade_execution_queue, p_direction integer, p_lots numeric) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_left numeric := p_lots;
  v_kept jsonb := '[]';
  v_take numeric;
  e jsonb;
begin
  for e in
    select x.value from private.net_ledgers n cross join jsonb_array_elements(n.surprises) with ordinality as x (value, n)
    where n.account_id = q.account_id and n.symbol = q.symbol order by x.n
  loop
    v_take := case when (e ->> 'at')::timestamptz >= q.queued_at and sign((e ->> 'lots')::numeric) = p_direction
      then least(v_left, abs((e ->> 'lots')::numeric)) else 0 end;
    if v_take > 0 and e ? 'surplus' then
      perform private.book_surplus(q.account_id, q.symbol, -v_take * p_direction);
    elsif v_take > 0 and e ->> 'link_id' is not null then
      perform private.book_share((e ->> 'link_id')::bigint, q.account_id, q.symbol, v_take, null);
      update public.position_links set state = 'live', ended_at = null, reason = null
      where id = (e ->> 'link_id')::bigint and state = 'ended';
    end if;
    v_left := v_left - v_take;
    if v_take < abs((e ->> 'lots')::numeric) then
      v_kept := v_kept || (e || jsonb_build_object('lots', ((e ->> 'lots')::numeric - v_take * p_direction)::text));
    end if;
  end loop;
  update private.net_ledgers set surprises = v_kept where account_id = q.account_id and symbol = q.symbol;
  return p_lots - v_left;
end $$;

-- Gives back what a waiting deal would have opened: it is in nobody's hands and may be dealt otherwise.
create function private.give_back(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = coalesce(l.wanted_lots, 0) + (e ->> 'lots')::numeric, wanted_until = (e ->> 'until')::timestamptz,
    rest_lots = case when e ->> 'counted' is not null then coalesce(l.rest_lots, 0) + (e ->> 'lots')::numeric end
  from jsonb_array_elements(q.parts) e
  where l.id = (e ->> 'link_id')::bigint and l.ended_at is null and (e ->> 'lots')::numeric > 0;
end $$;

-- Cuts the parts of a deal to what one order may hold: parts against the deal stay whole, those with it share p_room, reductions first.
create function private.cut_parts(p_parts jsonb, p_side text, p_room numeric) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_with boolean;
  v_left numeric := p_room;
  v_lots numeric;
  v_cut jsonb := '[]';
begin
  select v_left + coalesce(sum(abs((x ->> 'lots')::numeric)), 0) into v_left from jsonb_array_elements(p_parts) x
  where private.sign_of(x ->> 'side') * sign((x ->> 'lots')::numeric) <> private.sign_of(p_side);
  for e in select value from jsonb_array_elements(p_parts) order by (value ->> 'lots')::numeric > 0, (value ->> 'link_id')::bigint loop
    v_with := private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = private.sign_of(p_side);
    v_lots := case when v_with then least(abs((e ->> 'lots')::numeric), v_left) else abs((e ->> 'lots')::numeric) end;
    if v_with then v_left := v_left - v_lots; end if;
    if v_lots > 0 then
      v_cut := v_cut || jsonb_build_array(e || jsonb_build_object('lots', (v_lots * sign((e ->> 'lots')::numeric))::text));
    end if;
  end loop;
  return v_cut;
end $$;

-- 42_plan.sql
-- The planner, level-triggered half: what live links hold is brought to what their master holds now.
-- Closes, reductions, cancels and SL/TP are planned here from the state alone; opens and increases are decided once, in 44_decide.sql.

-- A link with everything a plan needs to know of it. "doomed": nothing of it shall be left. "frozen": its copier, its account or all trading is off.
-- Look-ups by id say "ended_at is null", look-ups by follower "state = 'live'"; of positions, "lots > 0" and "closed_at is null" likewise: so
-- each fits only the index that it needs, whatever Postgres believes of a table that was empty when it planned.
create view private.link_states with (security_invoker = true) as
select l.*, c.mode as copier_mode, c.removal, fa.mode as account_mode, fa.copy_state,
  coalesce(fa.copy_state = 'flattening' or l.created_at <= fa.flattened_at or m.closed_at is not null or m.side <> l.master_side
    or c.removal = 'close_now'  -- gracefully: what has not filled yet is not waited for, nor what fills after all was over
    or c.removal = 'close_gracefully' and (c.removed_at is not null or held.order_lots > 0 and held.position_lots = 0), false)
    or newer.generation is not null as doomed,
  (fa.copy_state <> 'flattening' and l.created_at > coalesce(fa.flattened_at, '-infinity')
    and (c.mode = 'off' and c.removal is null or fa.copy_state = 'off'))
    or (select t.state from public.trading_switch t where t.one) = 'off' as frozen,
  m.kind as master_kind, m.lots as master_lots, m.last_event_id as master_event_id, m.detected_at as master_detected_at,
  m.price as master_price, m.expires_at as master_expires_at,
  s.lots_min, s.lots_step,
  private.wanted_level(c.sl_mode, case when c.reverse then m.tp else m.sl end, m.price, held.open_price,
    case l.side when 'buy' then -1 else 1 end, c.sl_points, c.max_sl_points, s.digits, s.tick_size) as wanted_sl,
  private.wanted_level(c.tp_mode, case when c.reverse then m.sl else m.tp end, m.price, held.open_price,
    case l.side when 'buy' then 1 else -1 end, c.tp_points, null, s.digits, s.tick_size) as wanted_tp,
  private.on_tick(m.price, s.tick_size) as wanted_price,
  held.position_lots, held.order_lots, held.legs,
  flight.executions, flight.opens, flight.waiting, flight.reducing, flight.open_step
from public.position_links l
join public.copiers c on c.id = l.copier_id
join public.trading_accounts fa on fa.id = l.follower_account_id
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
left join public.account_symbols s on s.account_id = l.follower_account_id and s.name = l.symbol
left join lateral (
  select n.generation from public.position_links n
  where n.master_account_id = l.master_account_id and n.master_ticket = l.master_ticket and n.copier_id = l.copier_id
    and n.generation > l.generation limit 1
) newer on true
cross join lateral (
  select coalesce(sum(g.lots) filter (where g.kind = 'position'), 0) as position_lots,
    coalesce(sum(g.lots) filter (where g.kind = 'order'), 0) as order_lots, count(*) as legs,
    sum(g.lots * g.price) filter (where g.kind = 'position')
      / nullif(sum(g.lots) filter (where g.kind = 'position' and g.price is not null), 0) as open_price
  from private.link_legs g where g.link_id = l.id
) held
cross join lateral (
  select count(*) as executions, count(*) filter (where q.action in ('open', 'increase', 'place')) as opens,
    count(*) filter (where q.status = 'retrying') as waiting,
    coalesce(sum(q.lots) filter (where q.action = 'reduce'), 0) as reducing,
    max(q.step_id) filter (where q.action in ('open', 'increase', 'place')) as open_step
  from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
) flight;
comment on view private.link_states is 'Links with their master''s mirror, their copier, what they hold and what is in flight for them.';

-- Volume that a link shall hold after its master was reduced: the share of what it was opened with, exact, floored to the step;
-- never rounded to nothing while the master is open (residual_hold).
create function private.target_lots(p_base numeric, p_master_now numeric, p_master_base numeric, p_step numeric, p_min numeric, p_held numeric)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return least(p_held, greatest(div(p_base * p_master_now, p_master_base * p_step) * p_step, p_min));
end $$;

-- A reduction to what the master had when it was planned (p_master_lots) has been carried out: what the master adds to that, and be it while the
-- reduction was under way, is an increase. p_seen: what was seen when it was planned; what was decided since is seen still.
create function private.see_reduction(p_link bigint, p_master_lots numeric, p_seen numeric default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = p_master_lots + greatest(0, l.seen_master_lots - coalesce(p_seen, l.seen_master_lots))
  from public.account_symbols s, (select coalesce(sum(g.lots), 0) as lots from private.link_legs g where g.link_id = p_link) held
  where l.id = p_link and l.ended_at is null and l.seen_master_lots > p_master_lots and l.base_lots is not null
    and s.account_id = l.follower_account_id and s.name = l.symbol
    and held.lots <= private.target_lots(l.base_lots, p_master_lots, l.base_master_lots, s.lots_step, s.lots_min, held.lots);
end $$;

-- Books what a follower's own mirror shows to links that have nothing in flight: trimmed, closed or filled without us. A row of the mirror is
-- never older than the last report on its ticket, for that report wrote it.
create function private.book_links(p_links bigint[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  -- as a rule mirror and links agree
  select array_agg(l.id) into v_links from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and (l.base_lots is null or exists (
    select 1 from private.link_legs g join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket
    where g.link_id = l.id and (p.lots < g.lots or p.kind <> g.kind)));
  if v_links is null then return; end if;

  with looks as materialized (
    select g.link_id, g.ticket, p.lots, p.kind, p.price
    from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'hedging'
    cross join lateral (select * from private.link_legs i where i.link_id = l.id offset 0) g  -- never by all legs there are
    join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket
    where l.id = any (v_links) and l.ended_at is null and (p.lots < g.lots or p.kind <> g.kind)
      and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null and q.status <> 'retrying')
  ), gone as (
    delete from private.link_legs g using looks k where g.link_id = k.link_id and g.ticket = k.ticket and k.lots = 0
  )
  update private.link_legs g set lots = least(g.lots, k.lots), kind = k.kind, price = k.price
  from looks k where g.link_id = k.link_id and g.ticket = k.ticket and k.lots > 0;

  -- an order of ours that filled by itself: from now on there is a volume to reduce from
  update public.position_links l set base_lots = h.lots, base_master_lots = l.seen_master_lots
  from (select link_id, sum(lots) as lots from private.link_legs where link_id = any (v_links) and kind = 'position' group by link_id) h
  where h.link_id = l.id and l.base_lots is null and l.ended_at is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
end $$;

-- A copy of a pending order may be several orders, which fill one after the other: each adds to the volume that is reduced from. What the first
-- one begins is above.
create function private.add_filled_order() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set base_lots = l.base_lots + new.lots where l.id = new.link_id and l.base_lots is not null;
  return null;
end $$;
create trigger an_order_has_filled after update of kind on private.link_legs
  for each row when (old.kind = 'order' and new.kind = 'position') execute function private.add_filled_order();

-- Ends links of netting accounts that hold nothing, want nothing and have nothing in flight; plan_links ends the others itself.
create function private.end_links(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_closed bigint[];
  v_given_up bigint[];
begin
  -- read into arrays first: an update joined to the view would compute it once per link and link
  select array_agg(s.id) filter (where s.doomed), array_agg(s.id) filter (where not s.doomed) into v_closed, v_given_up
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.legs = 0 and s.executions = 0 and s.wanted_lots is null
    and (s.account_mode = 'hedging' or not exists (  -- the deal in flight may be this link's, too
      select 1 from public.trade_execution_queue q
      where q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight));
  if v_closed is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = 'closed' where l.id = any (v_closed);
  end if;
  if v_given_up is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = case when l.stopped_out then 'stop_out' else 'closed_by_follower' end
    where l.id = any (v_given_up);
  end if;
end $$;

-- What was refused waits for its time or for a changed wish: these links are wanted otherwise now, so their closes and reductions wait no longer.
create function private.wait_no_longer(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set replan_at = p_now where l.id = any (p_links) and l.ended_at is null and l.close_failures > 0 and l.replan_at > p_now;
  update private.net_ledgers n set replan_at = p_now
  from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and n.account_id = l.follower_account_id and n.symbol = l.symbol and n.failures > 0
    and n.replan_at > p_now;
end $$;

-- After a report most links are as they should be, or over. Ends those that are over and returns those that the planner has to look at; a link
-- left out is one for which it would do nothing.
create function private.settle(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_over bigint[];
  v_calm bigint[];
begin
  select array_agg(s.id) filter (where s.legs = 0), array_agg(s.id) filter (where s.legs > 0) into v_over, v_calm
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.executions = 0 and s.wanted_lots is null
    and not s.frozen and s.replan_at is null and case when s.legs = 0 then s.doomed and s.master_lots = 0
      else not s.doomed and s.master_kind = 'position' and s.order_lots = 0 and s.master_lots = s.seen_master_lots
        and s.position_lots - private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) < s.lots_min
        and (s.wanted_sl, s.wanted_tp) is not distinct from (s.asked_sl, s.asked_tp)
        and not exists (
          select 1 from private.link_legs g join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket
          where g.link_id = s.id and (p.lots < g.lots or p.kind <> g.kind)) end;
  if v_over is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, reason = 'closed' where l.id = any (v_over);
  end if;
  return array(select id from unnest(p_links) as u (id) where id <> all (coalesce(v_over, '{}') || coalesce(v_calm, '{}')));
end $$;

-- Steps that wait for another attempt are in nobody's hands. Those that are no longer what is wanted end here, so that they cannot hold up
-- what is: on a doomed link everything but its close, else a change or reduction to another value. Netting symbols: 46_netting.sql.
create function private.drop_waiting(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  with dropped as (
    update public.trade_execution_queue q set status = 'cancelled', finalized_at = p_now, updated_at = p_now,
      reason = case when q.action in ('open', 'increase', 'place') then 'already_closed' else 'superseded' end
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and q.link_id = s.id and q.finalized_at is null
      and q.status = 'retrying' and q.parts is null
      and case
        -- frozen by its copier or account: nothing is done until it thaws, then it is planned anew (while all trading is off, nothing is requeued)
        when s.frozen and q.action not in ('open', 'increase', 'place') and private.trading_state() <> 'off' then true
        when s.doomed then q.action not in ('close', 'cancel')
        when q.action = 'close' then true  -- its copier is to go gracefully after all, or its master was not closed
        when q.action = 'modify' then (s.asked_sl, s.asked_tp) is distinct from (s.wanted_sl, s.wanted_tp)
        when q.action = 'amend' then (s.asked_price, s.asked_sl, s.asked_tp) is distinct from (s.wanted_price, s.wanted_sl, s.wanted_tp)
        when q.action = 'reduce' then s.waiting = s.executions and not s.position_lots - s.reducing
          - private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) between 0 and s.lots_min - s.lots_step
        else false end
    returning q.link_id, q.account_id, q.ticket, q.action, s.legs
  )
  -- levels and prices that never came to stand count as not asked for. Where the copy has other positions, on which they may stand, nobody
  -- knows what was asked last: NaN, which is never what is wanted
  update public.position_links l set asked_sl = case when d.legs = 1 then p.sl else 'NaN' end, asked_tp = case when d.legs = 1 then p.tp else 'NaN' end,
    asked_price = case when d.action = 'modify' then l.asked_price when d.legs = 1 then p.price else 'NaN' end
  from dropped d join public.positions p on p.account_id = d.account_id and p.ticket = d.ticket
  where l.id = any (p_links) and d.action in ('modify', 'amend') and l.id = d.link_id;
end $$;

-- Records the pairs that new executions explain; a reason given earlier because the link was busy gives way.
create function private.explain_executions(p_executions bigint[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
  select distinct on (q.event_id, q.copier_id) q.event_id, q.copier_id, q.user_id, q.link_id, q.id
  from public.trade_execution_queue q
  where q.id = any (p_executions) and q.event_id is not null and q.copier_id is not null
  order by q.event_id, q.copier_id, q.id
  on conflict (event_id, copier_id) do update
    set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null
    where o.execution_id is null;
end $$;

-- Plans one step for every link that needs one and has none in flight; a close is also planned beside an open step.
-- One statement for any number of links. Returns the new executions. Longer than forty lines because it is that statement.
create function private.plan_links(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_orders bigint[];
  v_reduced bigint[];
  v_volumes numeric[];
  v_send_within interval := private.send_within();
begin
  if exists (
    select 1 from public.trade_execution_queue q where q.link_id = any (p_links) and q.finalized_at is null and q.status = 'retrying')
  then
    perform private.drop_waiting(p_links, p_now);
  end if;
  if exists (select 1 from public.position_links l where l.id = any (p_links) and l.ended_at is null and l.asked_price is not null) then
    v_orders := private.mind_orders(p_links, p_now);
  end if;
  -- a reduction of the master counts as seen once it is carried out: an increase back to the old volume is then none
  if exists (
    select 1 from public.position_links l
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket and m.lots > 0
    where l.id = any (p_links) and l.ended_at is null and m.lots < l.seen_master_lots)
  then
    select array_agg(s.id), array_agg(s.master_lots) into v_reduced, v_volumes from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.master_kind = 'position' and not s.doomed
      and s.master_lots < s.seen_master_lots and s.base_lots is not null and s.executions = 0
      and s.position_lots <= private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots);
    if v_reduced is not null then
      update public.position_links l set seen_master_lots = u.lots
      from unnest(v_reduced, v_volumes) as u (id, lots) where l.id = any (v_reduced) and l.id = u.id;
    end if;
  end if;

  with states as (  -- no column more than is needed below: each costs in every step
    select s.id, s.copier_id, s.user_id, s.follower_account_id, s.master_account_id, s.symbol, s.side, s.wanted_lots,
      s.doomed, s.frozen, s.close_failures, s.modify_failures, s.replan_at, s.asked_price, s.asked_sl, s.asked_tp, s.asked_expires_at,
      s.wanted_price, s.wanted_sl, s.wanted_tp, s.master_kind, s.master_lots, s.master_event_id, s.master_detected_at, s.master_price,
      s.master_expires_at, s.lots_min, s.position_lots, s.order_lots, s.legs, s.executions, s.opens, s.open_step,
      private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) as target
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging'
    offset 0  -- a fence: each row is computed once
  ), choices as materialized (
    select s.*, case
        when s.frozen then null
        when s.doomed and s.executions > 0 and s.executions = s.opens then 'close_beside'
        when s.executions > 0 then null
        when s.doomed and s.legs > 0 and (s.close_failures = 0 or s.replan_at is null or s.replan_at <= p_now) then 'close'
        when s.doomed then null
        when s.master_kind = 'position' and s.position_lots - s.target >= s.lots_min
          and (s.close_failures = 0 or s.replan_at is null or s.replan_at <= p_now) then 'reduce'
        when s.master_kind = 'order' and s.order_lots > 0
          and ((s.wanted_price, s.wanted_sl, s.wanted_tp, s.master_expires_at)
              is distinct from (s.asked_price, s.asked_sl, s.asked_tp, s.asked_expires_at)
            or (s.modify_failures between 1 and 2 and s.replan_at <= p_now)) then 'amend'
        when s.position_lots > 0 and ((s.wanted_sl, s.wanted_tp) is distinct from (s.asked_sl, s.asked_tp)
          or (s.modify_failures between 1 and 2 and s.replan_at <= p_now)) then 'modify'
      end as choice
    from states s
  ), steps as materialized (
    select c.*, nextval('public.trade_execution_queue_id_seq') as step_id,
      case when c.choice in ('modify', 'amend') then private.levels_to_ask(c.follower_account_id, c.symbol, c.side,
        case when c.choice = 'amend' then c.wanted_price end, c.wanted_sl, c.wanted_tp, c.modify_failures, p_now) end as levels
    from choices c where c.choice is not null
  ), over as materialized (  -- holds nothing, wants nothing, has nothing in flight
    select c.id, c.doomed from choices c where c.choice is null and c.legs = 0 and c.executions = 0 and c.wanted_lots is null
  ), ended as (
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null,
      reason = case when o.doomed then 'closed' when l.stopped_out then 'stop_out' else 'closed_by_follower' end
    from over o where l.id = o.id and l.id = any (array(select i.id from over i))
  ), asked as (
    update public.position_links l set asked_sl = t.wanted_sl, asked_tp = t.wanted_tp,
      asked_price = case when t.choice = 'amend' then t.wanted_price else l.asked_price end,
      asked_expires_at = case when t.choice = 'amend' then t.master_expires_at else l.asked_expires_at end,
      order_due_at = case when t.choice = 'amend' then t.master_expires_at + interval '1 s' else l.order_due_at end,
      modify_failures = case when (t.wanted_price, t.wanted_sl, t.wanted_tp) is distinct from
        (case when t.choice = 'amend' then l.asked_price else t.wanted_price end, l.asked_sl, l.asked_tp) then 0 else l.modify_failures end,
      replan_at = null, warnings = private.with_level_warnings(l.warnings, (t.levels).warnings)
    from steps t
    where l.id = t.id and t.choice in ('modify', 'amend') and l.id = any (array(select i.id from steps i where i.choice in ('modify', 'amend')))
  ), placed as (
    insert into public.trade_execution_queue (step_id, after_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id,
      action, priority, symbol, side, order_type, lots, target_lots, ticket, price, sl, tp, master_price, master_lots, expires_at,
      warnings, vps_id, epoch, offered_at, send_before, detected_at, queued_at, updated_at)
    select t.step_id, o.after_id, t.id, t.id::text, t.copier_id, t.user_id, t.follower_account_id, t.master_account_id, t.master_event_id,
      o.action, case o.action when 'reduce' then 20 when 'modify' then 30 when 'amend' then 30 else 10 end,
      t.symbol, t.side, 'market', o.lots, o.target_lots, o.ticket, case when o.action = 'amend' then t.wanted_price end,
      (t.levels).sent_sl, (t.levels).sent_tp, t.master_price, t.master_lots, t.master_expires_at, coalesce((t.levels).warnings, '{}'), v.id, case when v.id is not null then a.epoch end,
      case when v.id is not null then p_now end,
      coalesce(least(greatest(p_now, a.begins_at) + v_send_within, v.lease_expires_at), p_now), t.master_detected_at, p_now, p_now
    from steps t
    cross join lateral (  -- an order for each leg that the step concerns; beside an open, one more for whatever that leaves behind
      select g.ticket, null::bigint as after_id,
        case when t.choice in ('close', 'close_beside') then case g.kind when 'position' then 'close' else 'cancel' end else t.choice end as action,
        case t.choice when 'reduce' then least(g.lots, t.position_lots - t.target - g.newer_lots) else g.lots end as lots,
        case when t.choice in ('close', 'close_beside') then 0::numeric
          when t.choice = 'reduce' then g.lots - least(g.lots, t.position_lots - t.target - g.newer_lots) end as target_lots
      from (
        select i.ticket, i.kind, i.lots, sum(i.lots) over (order by i.ticket desc) - i.lots as newer_lots
        from private.link_legs i where i.link_id = t.id
      ) g
      where t.choice in ('close', 'close_beside')
        or t.choice = 'reduce' and g.kind = 'position' and t.position_lots - t.target > g.newer_lots  -- the newest legs give first
          and t.position_lots - t.target - g.newer_lots >= least(g.lots, t.lots_min)  -- less is taken off a position only with all of it
        or t.choice = 'modify' and g.kind = 'position' or t.choice = 'amend' and g.kind = 'order'
      union all
      select null, t.open_step, 'close', 0, 0 where t.choice = 'close_beside'
    ) o
    left join public.account_vps_assignments a on a.account_id = t.follower_account_id
    left join public.vps_instances v on v.id = a.vps_id and v.retired_at is null and v.lease_expires_at > p_now
    returning id, event_id, copier_id, user_id, link_id
  ), copied as (
    insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
    select distinct on (p.event_id, p.copier_id) p.event_id, p.copier_id, p.user_id, p.link_id, p.id
    from placed p where p.event_id is not null order by p.event_id, p.copier_id, p.id
    on conflict (event_id, copier_id) do update
      set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null where o.execution_id is null
  )
  select array_agg(id) into v_new from placed;
  if v_orders is not null then
    perform private.explain_executions(v_orders);
    v_new := nullif(coalesce(v_new, '{}') || v_orders, '{}');
  end if;
  return v_new;
end $$;

-- 43_filter.sql
-- Filters: what a copier opens. They apply to opens and increases only; nothing here can hold back a close.

-- Whether a text is one of the patterns; * stands for anything, case does not count.
create function private.matches_any(p_text text, p_patterns text[]) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return exists (
    select 1 from unnest(p_patterns) as u (pattern)
    where lower(coalesce(p_text, '')) like replace(replace(replace(replace(lower(u.pattern), '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'));
end $$;

-- Whether trades are opened at this moment: weekday and time of day of the copier's zone; hours over midnight belong to the day they began.
create function private.within_hours(p_copier public.copiers, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  v_local timestamp := p_now at time zone p_copier.time_zone;
  v_overnight boolean := p_copier.open_until < p_copier.open_from;
  v_day integer := extract(isodow from case when v_overnight and v_local::time < p_copier.open_until then v_local - interval '1 day' else v_local end);
begin
  return v_day = any (p_copier.weekdays) and (p_copier.open_from is null
    or case when v_overnight then v_local::time >= p_copier.open_from or v_local::time < p_copier.open_until
      else v_local::time >= p_copier.open_from and v_local::time < p_copier.open_until end);
end $$;

-- What this copier holds now and is about to, and has opened since midnight of its zone. p_leaving: a link whose close a flip's open waits for,
-- null: none; what its master's position was before that leaves, too.
create function private.copier_load(p_copier public.copiers, p_leaving bigint, p_now timestamptz, out positions bigint, out lots numeric, out today bigint)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a where a.id = p_copier.follower_account_id);
  v_leaves text := (select l.master_ticket from public.position_links l where l.id = p_leaving);
begin
  -- a pending order that is to be opened at the market instead is wanted while it is held; netting followers want more than they hold
  select count(*), coalesce(sum(case when v_netting then coalesce(h.lots, 0) + coalesce(l.wanted_lots, 0)
    else greatest(coalesce(h.lots, 0), coalesce(l.wanted_lots, 0)) end + coalesce(f.lots, d.lots, 0)), 0) into positions, lots
  from public.position_links l
  left join lateral (select sum(g.lots) as lots from private.link_legs g where g.link_id = l.id) h on true
  left join lateral (
    select sum(q.lots) as lots from public.trade_execution_queue q
    where not v_netting and q.link_id = l.id and q.finalized_at is null and q.action in ('open', 'increase', 'place')) f on true
  left join lateral (
    select sum((e ->> 'lots')::numeric) as lots from public.trade_execution_queue q cross join lateral jsonb_array_elements(q.parts) e
    where v_netting and q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight
      and e ->> 'link_id' = l.id::text and (e ->> 'lots')::numeric > 0) d on true
  where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id
    and l.master_ticket is distinct from v_leaves;
  if p_copier.max_trades_per_day is not null then
    select count(*) into today from public.position_links l
    where l.user_id = p_copier.user_id and l.copier_id = p_copier.id and l.symbol is not null
      and l.created_at >= date_trunc('day', p_now at time zone p_copier.time_zone) at time zone p_copier.time_zone
      and (l.state = 'live' or l.base_lots is not null);
  end if;
end $$;

-- The rule of the copier that refuses an open or increase now, whatever its size, or null. p_new: a new position (not an increase); p_equity
-- may be unknown; p_leaving: see copier_load.
create function private.filtered(
  p_copier public.copiers, p_position public.positions, p_equity numeric, p_new boolean, p_leaving bigint, p_now timestamptz
)
returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_load record;
begin
  -- most copiers filter nothing: one look
  if p_copier.sides = 'both' and p_copier.open_from is null and p_copier.weekdays @> '{1,2,3,4,5,6,7}' and p_copier.min_equity is null
    and p_copier.symbols_only = '{}' and p_copier.symbols_except = '{}' and p_copier.magic_only = '{}' and p_copier.magic_except = '{}'
    and p_copier.comment_only = '{}' and p_copier.comment_except = '{}' and p_copier.max_open_positions is null
    and p_copier.max_open_lots is null and p_copier.max_trades_per_day is null then
    return null;
  end if;
  if p_copier.sides not in ('both', p_position.side) then return 'side_filtered'; end if;
  if cardinality(p_copier.symbols_only) > 0 and not private.matches_any(p_position.symbol, p_copier.symbols_only)
    or private.matches_any(p_position.symbol, p_copier.symbols_except) then
    return 'symbol_filtered';
  end if;
  if cardinality(p_copier.magic_only) > 0 and not coalesce(p_position.magic, '0') = any (p_copier.magic_only)
    or coalesce(p_position.magic, '0') = any (p_copier.magic_except) then
    return 'magic_filtered';
  end if;
  if cardinality(p_copier.comment_only) > 0 and not private.matches_any(p_position.comment, p_copier.comment_only)
    or private.matches_any(p_position.comment, p_copier.comment_except) then
    return 'comment_filtered';
  end if;
  if not private.within_hours(p_copier, p_now) then return 'outside_hours'; end if;
  if p_copier.min_equity is not null and (p_equity is null or p_equity < p_copier.min_equity) then return 'min_equity'; end if;
  if coalesce(p_copier.max_open_positions, p_copier.max_trades_per_day) is not null or p_copier.max_open_lots is not null then
    v_load := private.copier_load(p_copier, p_leaving, p_now);
    if p_new and v_load.positions >= p_copier.max_open_positions then return 'max_open_positions'; end if;
    if v_load.lots >= p_copier.max_open_lots then return 'max_open_lots'; end if;
    if p_new and v_load.today >= p_copier.max_trades_per_day then return 'max_trades_per_day'; end if;
  end if;
  return null;
end $$;

-- Whether a copier of these masters counts what it holds or opens: what is decided together then counts against each other.
create function private.limits_count(p_masters uuid[]) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.copiers c
    where c.master_account_id = any (p_masters) and c.removed_at is null
      and (c.max_open_positions is not null or c.max_open_lots is not null or c.max_trades_per_day is not null));
end $$;

-- Decides one position after the other, in the order given.
create function private.decide_in_turn(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz, p_asked text) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
begin
  for i in 1 .. cardinality(p_tickets) loop
    v_new := v_new || coalesce(private.decide(array[p_masters[i]], array[p_tickets[i]], p_copiers, p_now, p_asked), '{}');
  end loop;
  return v_new;
end $$;

-- 44_decide.sql
-- The planner, decisions: opens and increases, once per copier, master position, generation and increase, latched whatever comes of them.

-- Whether an account can be told to trade now; null = yes, else the reason.
create function private.unreachable(p_account public.trading_accounts, p_lease_ends timestamptz, p_now timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_account.removed_at is not null then 'account_removed'
    when p_account.status = 'halted' then 'account_halted'
    when p_lease_ends is null then 'follower_unassigned'
    when p_lease_ends <= p_now or p_account.status = 'pending' then 'follower_offline' end;
end $$;

-- Money of an account for sizing; unknown when it was measured before p_since.
create function private.fresh_funds(p_account public.trading_accounts, p_since timestamptz) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  if p_account.funds_at > p_since then
    return row(p_account.currency, p_account.balance, p_account.equity, p_account.free_margin)::private.funds;
  end if;
  return row(p_account.currency, null, null, null)::private.funds;
end $$;

-- A pending order under reverse: a buy limit becomes a sell stop.
create function private.copied_order_type(p_type text, p_reverse boolean) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when p_type is null then 'market' when not p_reverse then p_type when p_type = 'limit' then 'stop' else 'limit' end;
end $$;

-- Pairs (copier, master position) that wait for a decision: never seen, flipped, increased, or asked for by their user.
-- p_copiers null: all copiers of the masters. An old generation of a flip must be ended or have its close in flight.
-- p_asked: these very positions are asked for, however old: 'existing' by a copier's start, 'resync' by its user. One that was decided before
-- and is not held gets a new generation then. asked_lots: a live copy shall get just these, for its user asks.
create function private.undecided(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_asked text default null)
returns table (copier_id uuid, master_account_id uuid, ticket text, kind text, link_id bigint, generation integer, delta numeric, close_step bigint,
  asked_lots numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select c.id, m.account_id, m.ticket,
    case when l.id is null or p_asked is not null then 'new' when l.master_side <> m.side then 'flip' else 'increase' end,
    l.id, coalesce(l.generation, 0) + 1,
    case when l.id is null or p_asked is not null or l.master_side <> m.side or l.resync_lots is not null then m.lots
      else m.lots - l.seen_master_lots end,
    case when l.state = 'live' then f.close_step end, l.resync_lots
  from (select distinct u.master, u.ticket from unnest(p_masters, p_tickets) as u (master, ticket)) x
  join public.positions m on m.account_id = x.master and m.ticket = x.ticket and m.lots > 0
  join public.copiers c on c.master_account_id = x.master and c.removed_at is null and (p_copiers is null or c.id = any (p_copiers))
  join public.trading_accounts fa on fa.id = c.follower_account_id
  left join lateral (
    select pl.* from public.position_links pl
    where pl.master_account_id = x.master and pl.master_ticket = x.ticket and pl.copier_id = c.id
    order by pl.generation desc limit 1
  ) l on true
  left join lateral (
    select count(*) as executions, max(q.step_id) filter (where q.action in ('close', 'cancel')) as close_step
    from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
  ) f on true
  where case
    when p_asked is not null then (l.id is null or l.state = 'ended' and f.executions = 0)
      and (m.kind = 'position' or c.copy_pending and fa.mode = 'hedging')
    -- what was there before the copier is not news, except the fill of an order where orders are copied at their fill
    when l.id is null and c.copy_pending and fa.mode = 'hedging' then not m.existing and m.first_seen_at >= c.started_at
    when l.id is null then m.kind = 'position' and (not m.existing and m.first_seen_at >= c.started_at or coalesce(m.filled_at >= c.started_at, false))
    when l.master_side <> m.side then m.kind = 'position' and (l.state = 'ended' or f.close_step is not null or fa.mode = 'netting')
    else l.state = 'live' and m.kind = 'position' and (m.lots > l.seen_master_lots or l.resync_lots is not null) and f.executions = 0 and l.wanted_lots is null
      and l.base_lots is not null and (fa.mode = 'hedging' or not exists (  -- a deal may be its reduction, whichever link it is queued for
        select 1 from public.trade_execution_queue q where q.account_id = fa.id and q.symbol = l.symbol and q.in_flight
          and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text)))) end;
end $$;

-- The copier, sizing exactly the lots that its user asks for; limits and caps hold all the same.
create function private.sized_by(p_copier public.copiers, p_lots numeric) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sizing_mode := 'fixed';
  p_copier.sizing_value := p_lots;
  return p_copier;
end $$;

-- The price that slippage is measured from when a user asks for a copy long after the master's open: the one he sees now.
create function private.entry_price(p_symbol public.account_symbols, p_side text, p_master_price numeric, p_now timestamptz) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  if p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s') then
    return coalesce(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end, p_master_price);
  end if;
  return null;  -- whatever it is: the agent measures from the price it finds
end $$;

-- Where the stop of an increase will stand that the copier sets itself: it is measured from the copy's average price, which the increase moves
-- to somewhere between the present one and its own. The farther of both, so that no risk is forgotten.
create function private.stop_of_increase(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_link bigint, p_now timestamptz
) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_held numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, private.open_price(p_link), p_now)).sl;
  v_new numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, null, p_now)).sl;
begin
  return case p_side when 'buy' then least(v_held, v_new) else greatest(v_held, v_new) end;
end $$;

-- A copier whose stop is known: the master's level that it is sized with is the stop.
create function private.at_stop(p_copier public.copiers) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sl_mode := 'price';
  p_copier.max_sl_points := null;
  return p_copier;
end $$;

-- Decides every pair that waits for it, for any number of followers in one statement, and queues the orders of hedging followers;
-- what a netting follower shall open is latched as wanted_lots of its link, for 46_netting.sql. Returns the new executions.
-- p_asked: see private.undecided; what is asked for is as old as the asking. Longer than forty lines because it is that statement.
create function private.decide(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz, p_asked text default null) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_fresh_since timestamptz := p_now - private.setting_s('funds_max_age_s');
  v_send_within interval := private.send_within();
  v_trading text := private.trading_state();
begin
  if cardinality(p_tickets) > 1 and private.limits_count(p_masters) then  -- each counts against the next
    return private.decide_in_turn(p_masters, p_tickets, p_copiers, p_now, p_asked);
  end if;
  with pairs as (
    select u.kind, u.link_id, u.generation, u.delta, u.close_step, u.asked_lots, c, m, ma, fa, v.lease_expires_at as lease_ends, ms,
      v.id as vps_id, a.epoch, a.begins_at, private.unreachable(fa, v.lease_expires_at, p_now) as unreachable,
      private.shut(v_trading, fa.copy_state, fa.copy_state_reason, c.mode, c.removal) as shut,
      private.filtered(c, m, (private.fresh_funds(fa, v_fresh_since)).equity, u.kind <> 'increase',
        case u.kind when 'flip' then u.link_id end, p_now) as refusal,
      -- the user's mapping; else the same name with the same figures; else 38_symbol.sql decides
      case when ms.contract_size is null then null::public.account_symbols
        when y.copier_id is not null or named.contract_size = ms.contract_size and named.profit_currency = ms.profit_currency
          and named.trade_mode not in ('close_only', 'disabled') then named
        else private.choose_symbol(fa, ms) end as fs,
      case when (m.side = 'buy') = c.reverse then 'sell' else 'buy' end as side,
      case when p_asked is null and u.asked_lots is null then m.unseen_at else p_now end as news_at,
      coalesce(p_asked = 'resync', false) or u.asked_lots is not null as by_user
    from private.undecided(p_masters, p_tickets, p_copiers, p_asked) u
    join public.copiers c on c.id = u.copier_id
    join public.positions m on m.account_id = u.master_account_id and m.ticket = u.ticket
    join public.trading_accounts ma on ma.id = c.master_account_id
    join public.trading_accounts fa on fa.id = c.follower_account_id
    left join public.account_symbols ms on ms.account_id = ma.id and ms.name = m.symbol
    left join public.symbol_mappings y on y.copier_id = c.id and y.master_symbol = m.symbol
    left join public.account_symbols named on named.account_id = fa.id and named.name = coalesce(y.follower_symbol, m.symbol)
    left join public.account_vps_assignments a on a.account_id = fa.id
    left join public.vps_instances v on v.id = a.vps_id and v.retired_at is null
    offset 0  -- here and below: a fence, so that each row's functions are called once, without storing the wide rows
  ), checked as (
    select p.*, case
        when p.shut is not null then p.shut
        when p.news_at < p_now - make_interval(secs => (p.c).max_age_ms / 1000.0) then 'too_old'
        when p.unreachable is not null then p.unreachable
        when p.refusal is not null then p.refusal
        when (p.fs).contract_size is null or (p.fs).lots_step is null or (p.fs).lots_min is null or (p.fs).lots_max is null then 'symbol_unmapped'
        when (p.fs).trade_mode in ('close_only', 'disabled') or ((p.fs).trade_mode = 'long_only' and p.side = 'sell')
          or ((p.fs).trade_mode = 'short_only' and p.side = 'buy') then 'trade_disabled'
        when p_asked is not null or p.by_user then private.asked_too_late(coalesce(p_asked, 'resync'), p.c, p.m, p.ma, p.fs, p.side, p_now) end as verdict,
      p.kind = 'increase' and (p.m).kind = 'position' and ((p.c).sl_mode in ('distance', 'fixed') or (p.c).max_sl_points is not null) as own_stop
    from pairs p
    offset 0
  ), sized as (
    select k.*, case when k.verdict is null then private.size_order(
        case when k.own_stop then private.at_stop(y.sizer) else y.sizer end,
        private.fresh_funds(k.ma, v_fresh_since), private.fresh_funds(k.fa, v_fresh_since), k.ms, k.fs, (k.m).side, k.delta,
        -- what is bought today loses from today's price to the stop, wherever the master began; a stop by distance goes along with the price
        case when (k.kind = 'increase' or p_asked is not null and (k.c).sl_mode <> 'distance') and (k.m).kind = 'position'
          then coalesce(private.entry_price(k.fs, k.side, (k.m).price, p_now), (k.m).price) else (k.m).price end,
        case when k.own_stop and not (k.c).reverse then private.stop_of_increase(k.c, k.m, k.fs, k.side, k.link_id, p_now) else (k.m).sl end,
        case when k.own_stop and (k.c).reverse then private.stop_of_increase(k.c, k.m, k.fs, k.side, k.link_id, p_now) else (k.m).tp end,
        case when (k.ma).currency = (k.fa).currency and (k.fs).profit_currency = (k.fa).currency and (k.ms).profit_currency = (k.ma).currency
          then '{}'::jsonb
          else private.quoted_rates(array[(k.fa).id, (k.ma).id],
            array[(k.ma).currency, (k.fa).currency, (k.ms).profit_currency, (k.fs).profit_currency]) end) end as z,
      case when k.verdict is not null then null
        when (k.c).sl_mode = 'price' and (k.c).tp_mode = 'price' and (k.c).max_sl_points is null
          and (k.fs).stops_level_points = 0 and (k.fs).freeze_level_points = 0
        then private.price_levels(case when (k.c).reverse then (k.m).tp else (k.m).sl end,
          case when (k.c).reverse then (k.m).sl else (k.m).tp end, (k.fs).tick_size)
        else private.first_levels(k.c, k.m, k.fs, k.side,
        case when k.kind = 'increase' then private.open_price(k.link_id) end, p_now) end as levels,
      case when k.verdict is null and (k.c).max_open_lots is not null
        then (private.copier_load(k.c, case k.kind when 'flip' then k.link_id end, p_now)).lots end as held_lots,
      private.on_tick((k.m).price, (k.fs).tick_size) as order_price
    from checked k
    cross join lateral (select case when k.asked_lots is not null then private.sized_by(k.c, k.asked_lots)
      when (k.c).lots_jitter_percent > 0 then private.jittered(k.c, (k.m).ticket, k.generation) else k.c end as sizer) y
    offset 0
  ), decided as materialized (
    select s.*, coalesce(s.verdict, (s.z).reason,
        case when s.held_lots + (select sum(o) from unnest((s.z).orders) o) > (s.c).max_open_lots then 'max_open_lots' end) as reason,
      (s.fa).mode = 'netting' as netting,
      nextval('public.trade_execution_queue_id_seq') as step_id,
      case s.kind when 'increase' then s.link_id else nextval('public.position_links_id_seq') end as its_link
    from sized s
  ), made as (
    insert into public.position_links (id, user_id, copier_id, master_account_id, follower_account_id, master_ticket, master_side, generation,
      symbol, side, state, reason, seen_master_lots, sized_master_lots, sized_lots, wanted_lots, wanted_until, asked_price, asked_sl, asked_tp, asked_expires_at, order_due_at, warnings, event_id,
      created_at, ended_at)
    overriding system value
    select d.its_link, (d.c).user_id, (d.c).id, (d.c).master_account_id, (d.c).follower_account_id, (d.m).ticket, (d.m).side, d.generation,
      (d.fs).name, d.side, case when d.reason is null then 'live' else 'ended' end, d.reason, (d.m).lots,
      (d.m).lots, (select sum(o) from unnest((d.z).orders) o),
      case when d.reason is null and d.netting then (select sum(o) from unnest((d.z).orders) o) end,
      case when d.reason is null and d.netting then d.news_at + make_interval(secs => (d.c).max_age_ms / 1000.0) end,
      case when (d.m).kind = 'order' then d.order_price end, (d.levels).sl, (d.levels).tp,
      case when (d.m).kind = 'order' then (d.m).expires_at end, case when (d.m).kind = 'order' then (d.m).expires_at + interval '1 s' end,
      coalesce((d.z).warnings || (d.levels).warnings, '{}'), (d.m).last_event_id,
      p_now, case when d.reason is not null then p_now end
    from decided d where d.kind in ('new', 'flip')
  ), grown as (
    update public.position_links l set seen_master_lots = (d.m).lots, reason = d.reason, resync_lots = null,
      sized_lots = case when d.reason is null and d.asked_lots is null
        then l.sized_lots * l.seen_master_lots + l.sized_master_lots * (select sum(o) from unnest((d.z).orders) o) else l.sized_lots end,
      sized_master_lots = case when d.reason is null and d.asked_lots is null then l.sized_master_lots * (d.m).lots else l.sized_master_lots end,
      asked_sl = case when d.reason is null then (d.levels).sl else l.asked_sl end,
      asked_tp = case when d.reason is null then (d.levels).tp else l.asked_tp end,
      wanted_lots = case when d.reason is null and d.netting then (select sum(o) from unnest((d.z).orders) o) end,
      wanted_until = case when d.reason is null and d.netting then d.news_at + make_interval(secs => (d.c).max_age_ms / 1000.0) end,
      -- a skipped increase rebases the pair
      base_master_lots = case when d.reason is null then l.base_master_lots else (d.m).lots end,
      base_lots = case when d.reason is null then l.base_lots
        else coalesce((select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'), 0) end
    from decided d
    where d.kind = 'increase' and l.id = d.link_id and l.id = any (array(select i.link_id from decided i where i.kind = 'increase'))
  ), placed as (
    insert into public.trade_execution_queue (step_id, after_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id,
      action, priority, symbol, side, order_type, lots, price, sl, tp, max_slippage_points, master_price, master_lots, expires_at, comment,
      warnings, retry_until, vps_id, epoch, offered_at, send_before, detected_at, queued_at, updated_at)
    select k.step_id, case when k.kind = 'flip' then k.close_step end, k.its_link, k.its_link::text, (k.c).id, (k.c).user_id, (k.fa).id,
      (k.ma).id, (k.m).last_event_id,
      case when k.kind = 'increase' then 'increase' when (k.m).kind = 'order' then 'place' else 'open' end, 40,
      (k.fs).name, k.side, private.copied_order_type((k.m).order_type, (k.c).reverse), o.lots,
      case when (k.m).kind = 'order' then k.order_price end, (k.levels).sent_sl, (k.levels).sent_tp, (k.c).max_slippage_points,
      case when not k.by_user then (k.m).price else private.entry_price(k.fs, k.side, (k.m).price, p_now) end, (k.m).lots,
      (k.m).expires_at, case when (k.c).comment like '%{%' then private.copy_comment(k.c, (k.m).ticket) else (k.c).comment end, (k.z).warnings || (k.levels).warnings, p_now + make_interval(secs => (k.c).retry_window_s), k.vps_id, k.epoch, p_now,
      least(greatest(p_now, k.begins_at) + v_send_within, k.lease_ends,
        k.news_at + make_interval(secs => (k.c).max_age_ms / 1000.0)), case when k.by_user then p_now else (k.m).detected_at end, p_now, p_now
    from decided k cross join lateral unnest((k.z).orders) as o (lots)
    where k.reason is null and not k.netting
    returning id, event_id, copier_id, user_id, link_id
  ), copied as (
    insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
    select distinct on (p.event_id, p.copier_id) p.event_id, p.copier_id, p.user_id, p.link_id, p.id
    from placed p where p.event_id is not null order by p.event_id, p.copier_id, p.id
    on conflict (event_id, copier_id) do update
      set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null where o.execution_id is null
  ), explained as (
    insert into public.copy_outcomes (event_id, copier_id, user_id, link_id, reason, detail)
    select (k.m).last_event_id, (k.c).id, (k.c).user_id, k.its_link, coalesce(k.reason, 'coalesced'),
      case when k.reason = 'symbol_unmapped' then private.unmapped_detail((k.c).id, (k.m).symbol)
        when k.verdict is not null then private.refusal_words(k.c, k.m, k.fa, k.fs, k.reason, p_now)
        when k.reason = 'max_open_lots' then format('max_open_lots is %s: %s lots are held or under way, and this would be %s more.',
          trim_scale((k.c).max_open_lots), trim_scale(k.held_lots), (select trim_scale(sum(o)) from unnest((k.z).orders) o))
        when k.reason is not null then array_to_string((k.z).explain, ' ') end
    from decided k where (k.reason is not null or k.netting) and (k.m).last_event_id is not null
    on conflict (event_id, copier_id) do update set reason = excluded.reason, detail = excluded.detail, link_id = excluded.link_id
      where copy_outcomes.execution_id is null
  )
  select array_agg(id) into v_new from placed;
  if v_new is not null and exists (select 1 from public.copiers c where c.master_account_id = any (p_masters) and c.removed_at is null
    and (c.delay_max_ms > 0 or c.lots_jitter_percent > 0)) then
    v_new := private.hold_back(v_new, p_now);
  end if;
  return v_new;
end $$;

-- Gives every (event, copier) pair that nothing else has explained its one reason. The arrays: id, type and ticket of accepted events.
create function private.explain_rest(p_account uuid, p_events bigint[], p_types text[], p_tickets text[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_trading text := private.trading_state();
begin
  if not exists (
    select 1 from unnest(p_events) as e (id)
    join public.copiers c on c.master_account_id = p_account and c.removed_at is null
    where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id))
  then
    return;
  end if;
  insert into public.copy_outcomes (event_id, copier_id, user_id, link_id, reason)
  select e.id, c.id, c.user_id, l.id, case
      when v_trading = 'off' then 'trading_stopped'
      when c.mode = 'off' and c.removal is null then 'copier_off'
      when fa.copy_state = 'off' then 'account_off'
      when l.id is null and c.removal is not null then 'copier_removed'
      when l.id is null and m.closed_at is not null and e.type in ('opened', 'ordered') then 'already_closed'
      when l.id is null and m.kind = 'order' and (not c.copy_pending or fa.mode = 'netting') then 'copied_at_fill'
      when l.id is null and (m.existing or m.first_seen_at < c.started_at)
        and (c.copy_pending and fa.mode = 'hedging' or m.filled_at is null or m.filled_at < c.started_at) then 'existing'
      when l.id is null then 'not_copied'
      when l.state = 'ended' and l.reason in ('closed_by_follower', 'stop_out', 'closed', 'master_never_filled', 'order_expired', 'released') then l.reason
      when l.state = 'ended' then 'not_copied'
      when exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null) then 'coalesced'
      when e.type = 'reduced' then 'residual_hold'
      else 'no_change' end
  from unnest(p_events, p_types, p_tickets) as e (id, type, ticket)
  join public.copiers c on c.master_account_id = p_account and c.removed_at is null
  join public.trading_accounts fa on fa.id = c.follower_account_id
  left join public.positions m on m.account_id = p_account and m.ticket = e.ticket
  left join lateral (
    select pl.id, pl.state, pl.reason from public.position_links pl
    where pl.master_account_id = p_account and pl.master_ticket = e.ticket and pl.copier_id = c.id
    order by pl.generation desc limit 1
  ) l on true
  where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id)
  on conflict (event_id, copier_id) do nothing;
end $$;

-- 45_flatten.sql
-- Flattening: a state of an account, not a list. It outranks every mode, latches opens, closes whatever appears until two good snapshots
-- in a row show nothing left, and then switches the account off (or to what its flatten_then says).

-- Begins it, or goes on with it more strictly: what a flattening under way was to close, and to switch off, stays so. p_then null: back to what
-- it was. The caller holds the plan locks of the account and its neighbours and has updated no row of trading_accounts before it took them.
create function private.start_flattening(p_account uuid, p_manual boolean, p_then text, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  update public.trading_accounts a set copy_state = 'flattening', copy_state_reason = p_reason, flat_snapshots = 0, flattened_at = p_now,
    flatten_manual = p_manual or p_reason is not null and a.copy_state = 'flattening' and a.flatten_manual,
    flatten_then = case when a.copy_state <> 'flattening' then coalesce(p_then, a.copy_state)
      when p_then = 'off' or a.flatten_then = 'off' then 'off' else coalesce(p_then, a.flatten_then) end
  where a.id = p_account;
  -- opens that are on their way and still unsent need not be sent
  update public.trade_execution_queue q set cancel_requested_at = p_now, updated_at = p_now
  where q.account_id = p_account and q.in_flight and private.opens(q) and q.cancel_requested_at is null;
  select array_agg(l.id) into v_links from public.position_links l where l.follower_account_id = p_account and l.state = 'live';
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(coalesce(private.plan_again(v_links, p_now), '{}') || private.plan_flatten(p_account, p_now), null, clock_timestamp());
end $$;

-- What is open on the account and no link holds: the user's own trades. Closed as well when flatten_manual says so.
create function private.plan_flatten(p_account uuid, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
begin
  if private.trading_state() = 'off' then return '{}'; end if;
  with loose as (
    select p.*, nextval('public.trade_execution_queue_id_seq') as step_id
    from public.positions p
    join public.trading_accounts a on a.id = p.account_id and a.copy_state = 'flattening'
      and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released)  -- of a net position, ours is what links hold
    where p.account_id = p_account and p.closed_at is null
      and not exists (
        select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
        where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol))
      and not exists (
        select 1 from public.trade_execution_queue q
        where q.account_id = p.account_id and q.symbol = p.symbol and q.in_flight and (q.ticket = p.ticket or a.mode = 'netting'))
  ), placed as (
    insert into public.trade_execution_queue (step_id, lane, user_id, account_id, action, priority, symbol, side, lots, target_lots, ticket,
      send_before, queued_at, updated_at)
    select f.step_id, 'flatten:' || f.ticket, f.user_id, f.account_id, case f.kind when 'order' then 'cancel' else 'close' end, 10, f.symbol,
      f.side, f.lots, 0, f.ticket, p_now, p_now, p_now
    from loose f
    returning id
  )
  select array_agg(id) into v_new from placed;
  return coalesce(v_new, '{}');
end $$;

-- Counts a good snapshot that shows nothing left to close; the second in a row ends the flattening.
create function private.count_flat_snapshot(p_account uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_left boolean;
begin
  select exists (select 1 from public.trade_execution_queue q where q.account_id = p_account and q.in_flight)
    or exists (
      select 1 from public.positions p join public.trading_accounts a on a.id = p.account_id
      where p.account_id = p_account and p.closed_at is null and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released
        or exists (select 1 from private.link_legs g where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol))))
    or exists (select 1 from private.net_ledgers n where n.account_id = p_account and n.surplus_lots <> 0)
  into v_left;
  update public.trading_accounts a set flat_snapshots = case when v_left then 0 else a.flat_snapshots + 1 end,
    copy_state = case when not v_left and a.flat_snapshots >= 1 then a.flatten_then else a.copy_state end,
    copy_state_reason = case when not v_left and a.flat_snapshots >= 1 and a.flatten_then = 'on' then null else a.copy_state_reason end
  where a.id = p_account and a.copy_state = 'flattening';
end $$;

-- 46_netting.sql
-- The planner, netting followers: the unit of flight is (account, symbol). What the links of a symbol want is summed to one deal, reductions
-- first; before anything is planned, what the broker's net and the ledger differ by is booked (41_net_ledger.sql).

-- What each live link of a netting symbol wants changed, in lots of the link (+ more, - less); reduced_to: what its master holds.
create function private.net_deltas(p_account uuid, p_symbol text, p_now timestamptz)
returns table (link_id bigint, side text, delta numeric, opens boolean, wanted_sl numeric, wanted_tp numeric, held numeric, reduced_to numeric, frozen boolean)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select s.id, s.side, case
      when s.frozen then 0
      when s.doomed then -s.position_lots
      else coalesce(s.wanted_lots, 0) - case when s.base_lots is null or s.master_kind <> 'position' then 0
        else greatest(0, s.position_lots
          - private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots)) end
    end,
    s.wanted_lots is not null and not s.doomed and not s.frozen, s.wanted_sl, s.wanted_tp, s.position_lots,
    case when not s.doomed and s.master_kind = 'position' then s.master_lots end, s.frozen
  from private.link_states s
  where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live';
end $$;

-- Drops what was decided but not dealt in time, or is not wanted any more.
create function private.drop_wanted(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_reason text;
  v_trading text := private.trading_state();
  v_why text := (select a.copy_state_reason from public.trading_accounts a where a.id = p_account);
begin
  for v_link in
    select s.id, s.copier_id, s.master_event_id, s.doomed, s.removal, x.shut, s.legs, s.master_lots, s.position_lots
    from private.link_states s
    cross join lateral (select private.shut(v_trading, s.copy_state, v_why, s.copier_mode, s.removal) as shut) x
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.wanted_lots is not null
      and (s.doomed or x.shut is not null or s.wanted_until <= p_now)
  loop
    v_reason := case when v_link.doomed and v_link.removal is null then 'already_closed' else coalesce(v_link.shut, 'too_old') end;
    update public.position_links l set wanted_lots = null, wanted_until = null, rest_lots = null,
      base_lots = case when v_link.legs > 0 then v_link.position_lots end,
      base_master_lots = coalesce(nullif(v_link.master_lots, 0), l.base_master_lots),  -- a closed master's 0 is nothing to divide by
      state = case when v_link.legs = 0 then 'ended' else 'live' end,
      reason = case when v_link.legs = 0 then v_reason else l.reason end,
      ended_at = case when v_link.legs = 0 then p_now end
    where l.id = v_link.id;
    update public.copy_outcomes set reason = v_reason
    where event_id = v_link.master_event_id and copier_id = v_link.copier_id and execution_id is null and reason = 'coalesced';
  end loop;
end $$;

-- The rest of an open of several orders shrinks with its master: what is held and the rest together follow it, as if all had been dealt at once.
create function private.shrink_rests(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_rest numeric;
  v_any boolean := false;
begin
  for v_link in
    select s.id, s.rest_lots, s.wanted_lots, s.position_lots,
      private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.base_lots) as lots
    from private.link_states s
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.rest_lots is not null
      and s.base_lots is not null and s.master_kind = 'position' and not s.doomed and not s.frozen
  loop
    v_rest := least(v_link.rest_lots, v_link.wanted_lots, greatest(0, v_link.lots - v_link.position_lots));
    update public.position_links l set rest_lots = nullif(v_rest, 0), wanted_lots = nullif(l.wanted_lots - v_link.rest_lots + v_rest, 0),
      wanted_until = case when l.wanted_lots > v_link.rest_lots - v_rest then l.wanted_until end
    where l.id = v_link.id and v_rest < v_link.rest_lots;
    v_any := true;
  end loop;
  if v_any then perform private.see_reductions(p_account, p_symbol); end if;  -- the copy may be as small as its master already
end $$;

-- What a deal opens is no longer wanted, nor what a wish reduces; the rest of a cut part still is. p_wish: what was wished for, p_parts: what of it is dealt.
create function private.take_from_wanted(p_wish jsonb, p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = nullif(w.rest, 0), wanted_until = case when w.rest > 0 then l.wanted_until end,
    rest_lots = case when e is not null then nullif(w.rest, 0) when l.rest_lots is not null then nullif(least(l.rest_lots, w.rest), 0) end
  from jsonb_array_elements(p_wish) x
  left join jsonb_array_elements(p_parts) e on e ->> 'link_id' = x ->> 'link_id' and (e ->> 'lots')::numeric > 0  -- none: it had no room
  cross join lateral (select greatest((x ->> 'lots')::numeric, 0) - coalesce((e ->> 'lots')::numeric, 0) as rest) w
  where l.id = (x ->> 'link_id')::bigint;
end $$;

-- What our deals moved and no link has, as far as it may be moved back now.
create function private.surplus_to_deal(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce((
    select n.surplus_lots from private.net_ledgers n join public.trading_accounts a on a.id = n.account_id
    where n.account_id = p_account and n.symbol = p_symbol and a.copy_state <> 'off' and private.trading_state() <> 'off'), 0);
end $$;

create type private.wish as (parts jsonb, sum numeric, opens boolean, shares integer, sl numeric, tp numeric, virtual boolean, frozen boolean);
comment on type private.wish is 'What the links of a netting symbol want together.';

-- What a netting symbol's links want together. parts: the changes, sum: signed lots of the deal that makes them, shares: links that will hold
-- something, sl and tp: the levels that may stand on the position (none where it has several owners; virtual: one of them wants some), frozen:
-- each of them is off, so the levels stay as they are.
create function private.net_wish(p_account uuid, p_symbol text, p_net numeric, p_now timestamptz) returns private.wish
language plpgsql security definer set search_path = '' as $$
declare
  w private.wish;
  v_after numeric;
  v_surplus numeric := private.surplus_to_deal(p_account, p_symbol);
begin
  select coalesce(sum(d.delta * private.sign_of(d.side)), 0),
    coalesce(jsonb_agg(jsonb_build_object('link_id', d.link_id::text, 'side', d.side, 'lots', d.delta::text,
      'reduced_to', case when d.delta < 0 then d.reduced_to::text end, 'until', l.wanted_until, 'counted', l.rest_lots::text,
      'master_lots', case when l.rest_lots is not null then least(l.seen_master_lots, d.reduced_to) else l.seen_master_lots end::text) order by d.link_id) filter (where d.delta <> 0), '[]'),
    coalesce(bool_or(d.delta > 0), false), count(*) filter (where d.held + d.delta > 0),
    coalesce(sum((d.held + d.delta) * private.sign_of(d.side)), 0),
    min(d.wanted_sl) filter (where d.held + d.delta > 0), min(d.wanted_tp) filter (where d.held + d.delta > 0),
    coalesce(bool_and(d.frozen) filter (where d.held + d.delta > 0), false)
  into w.sum, w.parts, w.opens, w.shares, v_after, w.sl, w.tp, w.frozen
  from private.net_deltas(p_account, p_symbol, p_now) d join public.position_links l on l.id = d.link_id;
  if v_surplus <> 0 then
    w.sum := w.sum - v_surplus;
    w.parts := w.parts || jsonb_build_object('link_id', null, 'side', case when v_surplus > 0 then 'buy' else 'sell' end, 'lots', (-abs(v_surplus))::text,
      'surplus_of', (select n.surplus_link_id::text from private.net_ledgers n where n.account_id = p_account and n.symbol = p_symbol));
  end if;
  w.virtual := false;
  if w.shares <> 1 or p_net + w.sum <> v_after then
    w.virtual := w.sl is not null or w.tp is not null;
    w.sl := null;
    w.tp := null;
  end if;
  return w;
end $$;

-- Queues the deal for these parts; what it opens is no longer wanted. Returns its number.
create function private.queue_deal(
  p_account uuid, p_symbol text, p_side text, p_lots numeric, p_net numeric, p_ticket text, p_parts jsonb, p_wish private.wish, p_now timestamptz
) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_link public.position_links;
  v_opens boolean;
  v_levels private.levels;
  v_action text;
  v_new bigint;
begin
  select coalesce(bool_or((e ->> 'lots')::numeric > 0), false) into v_opens from jsonb_array_elements(p_parts) e;
  select l.* into v_link from jsonb_array_elements(p_parts) e join public.position_links l on l.id = (e ->> 'link_id')::bigint
  order by (e ->> 'lots')::numeric > 0 desc, l.id desc limit 1;
  -- "open" where the position may grow or a new one come of it (the end of a short copy buys); a pure reduction names the position
  v_action := case when v_opens or private.sign_of(p_side) = sign(p_net) or p_lots > abs(p_net) or p_ticket is null then 'open' when p_lots = abs(p_net) then 'close' else 'reduce' end;
  v_levels := private.levels_to_ask(p_account, p_symbol, p_side, null, p_wish.sl, p_wish.tp, 0, p_now);
  insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id, action,
    priority, symbol, side, lots, target_lots, ticket, sl, tp, max_slippage_points, master_price, master_lots, comment, parts, warnings,
    retry_until, send_before, detected_at, queued_at, updated_at)
  select nextval('public.trade_execution_queue_id_seq'), v_link.id, p_account || ':' || p_symbol, v_link.copier_id, a.user_id, p_account,
    v_link.master_account_id, m.last_event_id, v_action,
    case when exists (select 1 from jsonb_array_elements(p_parts) e where (e ->> 'lots')::numeric < 0) then 10 else 40 end, p_symbol,
    case when v_action = 'open' then p_side when p_side = 'buy' then 'sell' else 'buy' end, p_lots,
    case when v_action <> 'open' then abs(p_net) - p_lots end, case when v_action <> 'open' then p_ticket end,
    case when v_opens then v_levels.sent_sl end, case when v_opens then v_levels.sent_tp end, case when v_opens then c.max_slippage_points end, m.price,
    v_link.seen_master_lots, coalesce(private.copy_comment(c, v_link.master_ticket), ''), p_parts,
    case when p_wish.shares > 1 or p_wish.virtual then array['netting_sltp_virtual'] when v_opens then v_levels.warnings else '{}' end,
    p_now + make_interval(secs => c.retry_window_s), p_now, m.detected_at, p_now, p_now
  from public.trading_accounts a
  left join public.copiers c on c.id = v_link.copier_id  -- none when a surplus is all of it
  left join public.positions m on m.account_id = v_link.master_account_id and m.ticket = v_link.master_ticket
  where a.id = p_account
  returning id into v_new;
  perform private.take_from_wanted(p_wish.parts, p_parts);
  -- every link of the deal is explained by it
  insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
  select distinct on (m.last_event_id, l.copier_id) m.last_event_id, l.copier_id, l.user_id, l.id, v_new
  from jsonb_array_elements(p_parts) e
  join public.position_links l on l.id = (e ->> 'link_id')::bigint
  join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
  where m.last_event_id is not null
  on conflict (event_id, copier_id) do update set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null
    where o.execution_id is null;
  return v_new;
end $$;

-- A stop loss that cannot stand at the broker protects only as long as its master's account is watched: its user shall know.
create function private.tell_virtual_levels(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(p_account, 'levels', 'netting_sltp_virtual', 'warning', format('%s: the position belongs to several copies (or in part to '
    'you), so their stop loss and take profit cannot stand on it. Each copy is closed when its master closes, by its stop too. '
    'Use a hedging account if every copy needs its own stop at the broker.', p_symbol), jsonb_build_object('symbol', p_symbol));
end $$;

-- Asks for the levels that the position shall have. Returns the new execution.
create function private.queue_levels(p_account uuid, p_symbol text, p_net numeric, p_ticket text, p_sl numeric, p_tp numeric, p_now timestamptz)
returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint;
  v_side text := case when p_net > 0 then 'buy' else 'sell' end;
  v_levels private.levels := private.levels_to_ask(p_account, p_symbol, v_side, null, p_sl, p_tp,
    (select n.modify_failures from private.net_ledgers n where n.account_id = p_account and n.symbol = p_symbol), p_now);
begin
  update private.net_ledgers n set modify_failures = case when (n.asked_sl, n.asked_tp) is distinct from (p_sl, p_tp) then 0 else n.modify_failures end,
    asked_sl = p_sl, asked_tp = p_tp, replan_at = null
  where n.account_id = p_account and n.symbol = p_symbol;
  insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id, action,
    priority, symbol, side, lots, ticket, sl, tp, warnings, send_before, detected_at, queued_at, updated_at)
  select nextval('public.trade_execution_queue_id_seq'), l.id, p_account || ':' || p_symbol, l.copier_id, l.user_id, p_account,
    l.master_account_id, m.last_event_id, 'modify', 30, p_symbol, v_side, abs(p_net), p_ticket, v_levels.sent_sl, v_levels.sent_tp,
    v_levels.warnings, p_now, m.detected_at, p_now, p_now
  from public.position_links l left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live'
  order by l.id desc limit 1
  returning id into v_new;
  perform private.explain_executions(array[v_new]);
  return v_new;
end $$;

-- Plans one netting symbol: nothing while a deal is with the agent; else one deal, or the levels. Returns the new execution or null.
-- A little over forty lines: it is one decision.
create function private.plan_net(p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_waiting public.trade_execution_queue;
  v_ledger private.net_ledgers;
  v_wish private.wish;
  v_ticket text;
  v_min numeric;
  v_max numeric;
  v_side text;
  v_lots numeric;
  v_parts jsonb;
begin
  select q.* into v_waiting from public.trade_execution_queue q
  where q.account_id = p_account and q.symbol = p_symbol and q.in_flight order by q.status = 'retrying' limit 1;
  if v_waiting.status <> 'retrying' then return null; end if;
  perform private.book_net(p_account, p_symbol, private.mirror_net(p_account, p_symbol), p_now);
  if v_waiting.parts is not null then perform private.give_back(v_waiting); end if;
  perform private.drop_wanted(p_account, p_symbol, p_now);
  perform private.shrink_rests(p_account, p_symbol);
  select * into v_ledger from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  v_wish := private.net_wish(p_account, p_symbol, v_ledger.net_lots, p_now);
  if v_ledger.surplus_lots <> private.surplus_to_deal(p_account, p_symbol) then  -- nobody else would come back to it
    update private.net_ledgers set replan_at = p_now + interval '30 s' where account_id = p_account and symbol = p_symbol;
  end if;
  select p.ticket into v_ticket from public.positions p
  where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position'
  order by p.session desc, p.seq desc limit 1;  -- told of last, should an older one not be known to be gone yet
  if v_ticket is null and (v_ledger.asked_sl, v_ledger.asked_tp) is distinct from (null, null) then  -- its levels are gone with a position
    update private.net_ledgers set asked_sl = null, asked_tp = null, modify_failures = 0 where account_id = p_account and symbol = p_symbol
    returning * into v_ledger;
  end if;
  select s.lots_min, div(s.lots_max, s.lots_step) * s.lots_step into v_min, v_max
  from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  v_side := case when v_wish.sum > 0 then 'buy' else 'sell' end;
  v_lots := least(abs(v_wish.sum), v_max);
  v_parts := private.cut_parts(v_wish.parts, v_side, v_lots);

  -- brokers take a close of all that there is, however little
  if v_wish.sum <> 0 and (v_lots >= v_min or v_ticket is not null and not v_wish.opens and v_wish.sum = -v_ledger.net_lots) then
    if v_waiting.parts = v_parts then  -- nothing has changed: it keeps waiting for its next attempt
      perform private.take_from_wanted(v_wish.parts, v_parts);
      return null;
    end if;
    if v_waiting.id is not null then return private.plan_behind(v_waiting.id, p_account, p_symbol, p_now); end if;
    if not v_wish.opens and v_ledger.failures > 0 and v_ledger.replan_at > p_now then return null; end if;
    if v_wish.virtual then perform private.tell_virtual_levels(p_account, p_symbol); end if;
    return private.queue_deal(p_account, p_symbol, v_side, v_lots, v_ledger.net_lots, v_ticket, v_parts, v_wish, p_now);
  end if;
  if v_wish.sum = 0 and v_wish.parts <> '[]' then  -- the links settle among themselves
    perform private.supersede(v_waiting.id, p_now);
    perform private.take_from_wanted(v_wish.parts, v_wish.parts);
    perform private.book_deal(p_account, p_symbol, 1, 0, null, v_wish.parts);
    perform private.decide_for_symbol(p_account, p_symbol, p_now);
    return private.plan_net(p_account, p_symbol, p_now);
  end if;
  if v_wish.frozen then  -- what waits is planned anew when it thaws; while all trading is off nothing is requeued, but what a deal was to open is dropped
    if v_waiting.parts is not null or private.trading_state() <> 'off' then perform private.supersede(v_waiting.id, p_now); end if;
    return null;
  end if;
  if v_waiting.action = 'modify' and (v_ledger.asked_sl, v_ledger.asked_tp) is not distinct from (v_wish.sl, v_wish.tp) and v_ticket is not null then
    return null;
  end if;
  if v_waiting.id is not null then return private.plan_behind(v_waiting.id, p_account, p_symbol, p_now); end if;
  if v_ticket is not null and v_wish.shares > 0 and ((v_wish.sl, v_wish.tp) is distinct from (v_ledger.asked_sl, v_ledger.asked_tp)
    or v_ledger.modify_failures between 1 and 2 and v_ledger.replan_at <= p_now) then
    if v_wish.virtual then perform private.tell_virtual_levels(p_account, p_symbol); end if;
    return private.queue_levels(p_account, p_symbol, v_ledger.net_lots, v_ticket, v_wish.sl, v_wish.tp, p_now);
  end if;
  return null;
end $$;

-- Ends an execution that waits for another attempt, because something else is wanted now. Levels that were asked for so and never came
-- to stand count as not asked for: they are asked for anew.
create function private.supersede(p_id bigint, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'cancelled', reason = 'superseded', finalized_at = p_now, updated_at = p_now
  where x.id = p_id and x.status = 'retrying' returning * into q;
  if q.action = 'modify' then
    update private.net_ledgers n set asked_sl = p.sl, asked_tp = p.tp
    from public.positions p
    where n.account_id = q.account_id and n.symbol = q.symbol and p.account_id = q.account_id and p.ticket = q.ticket;
  end if;
end $$;

-- Plans a netting symbol without the execution that waits for another attempt; increases may have waited behind it.
create function private.plan_behind(p_id bigint, p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
begin
  perform private.supersede(p_id, p_now);
  perform private.decide_for_symbol(p_account, p_symbol, p_now);
  return private.plan_net(p_account, p_symbol, p_now);
end $$;

-- Decides the increases that waited behind a deal of this symbol.
create function private.decide_for_symbol(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_copiers uuid[];
begin
  select array_agg(l.master_account_id), array_agg(l.master_ticket), array_agg(distinct l.copier_id) into v_masters, v_tickets, v_copiers
  from public.position_links l where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live';
  perform private.decide(v_masters, v_tickets, v_copiers, p_now);
end $$;

-- Plans the netting symbols that the links belong to, ended ones too: what waited behind their deal is somebody else's.
create function private.plan_nets(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_unit record;
  v_new bigint[] := '{}';
  v_one bigint;
begin
  for v_unit in
    select distinct l.follower_account_id, l.symbol from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'netting'
    where l.id = any (p_links) and l.symbol is not null
  loop
    perform private.see_reductions(v_unit.follower_account_id, v_unit.symbol);
    v_one := private.plan_net(v_unit.follower_account_id, v_unit.symbol, p_now);
    if v_one is not null then v_new := v_new || v_one; end if;
    perform private.end_links(array(
      select l.id from public.position_links l
      where l.follower_account_id = v_unit.follower_account_id and l.symbol = v_unit.symbol and l.state = 'live'), p_now);
  end loop;
  return v_new;
end $$;

-- A reduction of the master counts as seen once it is carried out, as in plan_links.
create function private.see_reductions(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = s.master_lots
  from private.link_states s
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live' and s.id = l.id and s.master_kind = 'position'
    and not s.doomed and s.master_lots < l.seen_master_lots and l.base_lots is not null and l.wanted_lots is null
    and s.position_lots <= private.target_lots(l.base_lots, s.master_lots, l.base_master_lots, s.lots_step, s.lots_min, s.position_lots)
    and not exists (select 1 from public.trade_execution_queue q
      where q.account_id = p_account and q.symbol = p_symbol and q.in_flight and (q.status <> 'retrying' or private.opens(q)));
end $$;

-- The whole planner. p_links: live links to look at; p_masters and p_tickets: master positions that may wait for a decision, of the
-- copiers p_copiers (null: all). The caller holds the plan locks. Returns the new executions, unoffered.
create function private.plan(p_links bigint[], p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_decided bigint[];
begin
  if p_links is not null then
    perform private.book_links(p_links);
    v_new := private.plan_links(p_links, p_now);
  end if;
  -- what the master has closed waits for no decision; after a report, too, there is rarely one: asking first is cheaper than deciding nothing
  if p_links is null or exists (
      select 1 from unnest(p_masters, p_tickets) as u (master, ticket)
      join public.positions m on m.account_id = u.master and m.ticket = u.ticket and m.lots > 0)
    and exists (select 1 from private.undecided(p_masters, p_tickets, p_copiers)) then
    v_new := coalesce(v_new, '{}') || coalesce(private.decide(p_masters, p_tickets, p_copiers, p_now), '{}');
  end if;
  select array_agg(l.id) into v_decided from public.position_links l
  where l.master_account_id = any (p_masters) and l.master_ticket = any (p_tickets) and l.ended_at is null
    and (p_copiers is null or l.copier_id = any (p_copiers));
  return coalesce(v_new, '{}') || coalesce(private.plan_nets(coalesce(p_links, '{}') || coalesce(v_decided, '{}'), p_now), '{}');
end $$;

-- Plans links, and the decisions that wait for them, whose locks the caller holds.
create function private.plan_again(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_copiers uuid[];
begin
  if p_links is null or cardinality(p_links) = 0 then return null; end if;
  select array_agg(l.master_account_id), array_agg(l.master_ticket), array_agg(distinct l.copier_id) into v_masters, v_tickets, v_copiers
  from public.position_links l where l.id = any (p_links);
  if v_masters is null then return null; end if;
  return private.plan(p_links, v_masters, v_tickets, v_copiers, p_now);
end $$;

-- 47_queue_trade_copy.sql
-- queue_trade_copy: trade events of one account come in, executions for its followers go out, in one round trip.

-- What is wrong with an event as docs/protocol.md describes it; null when nothing is.
create function private.event_error(e jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(e) is distinct from 'object' then 'the event is not an object'
    when jsonb_typeof(e -> 'session') is distinct from 'number' or not pg_input_is_valid(e ->> 'session', 'bigint')
      or (e ->> 'session')::bigint < 1 then 'session must be a whole number above 0'
    when jsonb_typeof(e -> 'seq') is distinct from 'number' or not pg_input_is_valid(e ->> 'seq', 'bigint') or (e ->> 'seq')::bigint < 1
      then 'seq must be a whole number above 0'
    when coalesce(e ->> 'type', '') not in
      ('opened', 'increased', 'reduced', 'modified', 'closed', 'ordered', 'amended', 'cancelled', 'snapshot')
      then 'type is not one of the known event types'
    when e ->> 'detected_at' is null then 'detected_at is missing'
    when not pg_input_is_valid(e ->> 'detected_at', 'timestamptz') then 'detected_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz'), true)
      then 'unchanged_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'dealt_at', 'timestamptz'), true) then 'dealt_at must be a time such as 2026-01-31T12:00:00Z'
    when e ->> 'deal_price' is not null and not coalesce(case when pg_input_is_valid(e ->> 'deal_price', 'numeric')
      then (e ->> 'deal_price')::numeric between 0 and 1e12 end, false) then 'deal_price must be a decimal number, not negative (or above 1e12)'
    when e ->> 'type' = 'snapshot' then
      case when jsonb_typeof(e -> 'positions') is distinct from 'array' then 'positions of a snapshot must be an array' end
    when private.position_error(e -> 'position') is not null then private.position_error(e -> 'position')
    when e ->> 'type' in ('closed', 'cancelled') <> ((e #>> '{position,lots}')::numeric = 0)
      then 'position.lots must be 0 for closed and cancelled, and above 0 for everything else'
    when e ->> 'type' in ('closed', 'cancelled') and coalesce(e ->> 'evidence', '') not in ('deal', 'snapshots')
      then 'evidence of a close must be "deal" or "snapshots"'
  end;
  if v_error is null and e ->> 'type' = 'snapshot' then
    for p in select value from jsonb_array_elements(e -> 'positions') loop
      v_error := coalesce(private.position_error(p),
        case when (p ->> 'lots')::numeric = 0 then 'a snapshot holds only what is open: position.lots must be above 0' end);
      exit when v_error is not null;
    end loop;
  end if;
  return v_error;
end $$;

create function private.record_event(
  p_account public.trading_accounts, p_id bigint, e jsonb, p_source text, p_type text, p_status text, p_code text, p_error text, p_position jsonb,
  p_previous numeric, p_payload jsonb
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.trade_events (id, account_id, user_id, session, seq, event_key, source, type, status, code, error, ticket, symbol, side,
    lots, previous_lots, deal_price, payload, dealt_at, detected_at, unchanged_at, decided_at)
  overriding system value
  values (p_id, p_account.id, p_account.user_id,
    case when pg_input_is_valid(e ->> 'session', 'bigint') then (e ->> 'session')::bigint end,
    case when pg_input_is_valid(e ->> 'seq', 'bigint') then (e ->> 'seq')::bigint end,
    (e ->> 'session') || ':' || (e ->> 'seq'), p_source, coalesce(p_type, left(e ->> 'type', 20), '?'), p_status, p_code, p_error,
    left(p_position ->> 'ticket', 64), left(p_position ->> 'symbol', 64), p_position ->> 'side',
    case when private.is_number(p_position -> 'lots') then (p_position ->> 'lots')::numeric end, p_previous,
    -- a new position says itself at what price it was opened
    case when p_status <> 'refused' then coalesce((e ->> 'deal_price')::numeric, case when p_type = 'opened' then (p_position ->> 'price')::numeric end) end,
    p_payload, case when p_status <> 'refused' then (e ->> 'dealt_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'detected_at', 'timestamptz') then (e ->> 'detected_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz') then (e ->> 'unchanged_at')::timestamptz end, clock_timestamp());
end $$;

-- Whether a change of a position may be the fill of an order whose copies are to be planned, too, for they go on under the order's ticket.
create function private.order_filled_into(p_position jsonb, p_previous_lots numeric) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_previous_lots > 0 and p_position ->> 'replaces' <> p_position ->> 'ticket', false);
end $$;

-- Stores and applies one event; result as docs/protocol.md, plus what it changed: parallel arrays "tickets", "events", "types".
create function private.take_event(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint := nextval('public.trade_events_id_seq');
  v_error text := private.event_error(e);
  v_key jsonb := jsonb_build_object('event_key', (e ->> 'session') || ':' || (e ->> 'seq'));
  v_session bigint;
  v_seq bigint;
  v_known bigint;
  v_detected timestamptz;
  v_unseen timestamptz;
  v_position jsonb;
  v_change private.change;
  v_status text := 'accepted';
  v_snapshot record;
  v_found jsonb;
  v_tickets jsonb := '[]';
  v_events jsonb := '[]';
  v_types jsonb := '[]';
begin
  if v_error is not null then
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC401', v_error, e -> 'position', null,
      case when octet_length(e::text) < 10000 then e else to_jsonb(left(e::text, 1000)) end);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC401', 'error', v_error);
  end if;
  v_session := (e ->> 'session')::bigint;
  v_seq := (e ->> 'seq')::bigint;
  if v_session > p_account.session then
    v_error := format('session %s was never issued for this account; its newest is %s', v_session, p_account.session);
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC402', v_error, e -> 'position', null, e);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC402', 'error', v_error);
  end if;
  insert into private.event_keys (account_id, session, seq, event_id) values (p_account.id, v_session, v_seq, v_id)
  on conflict do nothing returning event_id into v_known;
  if v_known is null then
    select event_id into v_known from private.event_keys where account_id = p_account.id and session = v_session and seq = v_seq;
    return v_key || jsonb_build_object('status', 'duplicate', 'code', null, 'error', null, 'events', jsonb_build_array(v_known));
  end if;
  v_detected := least((e ->> 'detected_at')::timestamptz, p_now);
  v_unseen := least(coalesce((e ->> 'unchanged_at')::timestamptz, p_account.seen_at, p_account.created_at), v_detected);

  if v_session < p_account.snapshot_session then  -- a newer session's snapshot has spoken: history
    v_status := 'history';
    perform private.record_event(p_account, v_id, e, 'agent', null, v_status, null, null, e -> 'position', null, e);
  elsif e ->> 'type' = 'snapshot' then
    select * into v_snapshot from private.apply_snapshot(p_account, v_session, v_seq, e -> 'positions', v_detected, v_unseen, p_now);
    perform private.record_event(p_account, v_id, e, 'agent', 'snapshot', v_status, null, null, null, null,
      jsonb_build_object('positions', jsonb_array_length(e -> 'positions')));
    for v_found in select value from jsonb_array_elements(v_snapshot.changes) loop
      v_id := nextval('public.trade_events_id_seq');
      perform private.record_event(p_account, v_id, e, 'snapshot', v_found ->> 'type', v_status, null, null, v_found -> 'position',
        (v_found ->> 'previous_lots')::numeric, v_found -> 'position');
      update public.positions set last_event_id = v_id where account_id = p_account.id and ticket = v_found #>> '{position,ticket}';
      v_tickets := v_tickets || jsonb_build_array(v_found #>> '{position,ticket}');
      v_events := v_events || to_jsonb(v_id);
      v_types := v_types || (v_found -> 'type');
      if private.order_filled_into(v_found -> 'position', (v_found ->> 'previous_lots')::numeric) then
        v_tickets := v_tickets || (v_found #> '{position,replaces}');
        v_events := v_events || to_jsonb(v_id);
        v_types := v_types || (v_found -> 'type');
      end if;
    end loop;
    v_key := v_key || jsonb_build_object('missing', v_snapshot.missing);
    if p_account.copy_state = 'flattening' then
      perform private.count_flat_snapshot(p_account.id, p_now);
    end if;
  else
    v_position := e -> 'position';
    v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id,
      e ->> 'close_reason', p_now);
    if not v_change.applied and e #>> '{position,replaces}' is not null then  -- late news, but what it replaced is gone all the same
      v_position := v_position || jsonb_build_object('ticket', e #>> '{position,replaces}', 'lots', '0', 'replaces', null);
      v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id, 'replaced', p_now);
      v_change.applied := v_change.applied and v_change.previous_lots > 0;
    end if;
    v_status := case when v_change.applied then 'accepted' else 'history' end;
    perform private.record_event(p_account, v_id, e, 'agent', v_change.type, v_status, null, null, v_position, v_change.previous_lots, e);
    if v_change.applied and e ->> 'close_reason' = 'stop_out' then
      perform private.note_stop_out(p_account, v_position, v_change.previous_lots, p_now);
    end if;
    if v_change.applied then
      v_tickets := jsonb_build_array(v_position ->> 'ticket');
      v_events := jsonb_build_array(v_id);
      v_types := jsonb_build_array(v_change.type);
      if private.order_filled_into(v_position, v_change.previous_lots) then
        v_tickets := v_tickets || (v_position -> 'replaces');
        v_events := v_events || to_jsonb(v_id);
        v_types := v_types || to_jsonb(v_change.type);
      end if;
    end if;
  end if;
  return v_key || jsonb_build_object('status', v_status, 'code', null, 'error', null, 'tickets', v_tickets, 'events', v_events,
    'types', v_types);
end $$;

-- Links that a change of these tickets of an account concerns: it as master, and it as follower.
create function private.links_of_tickets(p_account uuid, p_tickets text[]) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select array_agg(id) from (
      select l.id from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = any (p_tickets) and l.ended_at is null
      union
      select l.id from private.link_legs g join public.position_links l on l.id = g.link_id
      where g.account_id = p_account and g.ticket = any (p_tickets) and l.ended_at is null
      union
      select l.id from public.positions p
      join public.trading_accounts a on a.id = p_account and (a.mode = 'netting' or a.copy_state = 'flattening')
      join public.position_links l on l.follower_account_id = p_account and l.symbol = p.symbol and l.state = 'live'
      where p.account_id = p_account and p.ticket = any (p_tickets)
    ) x);
end $$;

-- Followers of an account, and the account itself: whose plan locks a change of it needs. Some may be named twice.
create function private.with_followers(p_accounts uuid[]) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_accounts || array(
    select c.follower_account_id from public.copiers c where c.master_account_id = any (p_accounts) and c.removed_at is null);
end $$;

-- Locks them and returns the moment after the last wait. A copier that was made while we waited brings its follower in; no other can come
-- after that, for saving a copier takes its master's lock.
create function private.lock_with_followers(p_accounts uuid[]) returns timestamptz
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_locked uuid[] := private.with_followers(p_accounts);
  v_now timestamptz := private.lock_accounts(v_locked);
  v_wanted uuid[] := private.with_followers(p_accounts);
begin
  if not v_wanted <@ v_locked then
    v_now := private.lock_accounts(v_wanted);
  end if;
  return v_now;
end $$;

-- Plans what events changed, and gives each of their pairs its reason.
create function private.plan_events(p_account uuid, p_events bigint[], p_types text[], p_tickets text[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.links_of_tickets(p_account, p_tickets);
  v_new bigint[];
begin
  if v_links is not null and p_types && array['reduced', 'closed', 'cancelled', 'opened'] then
    perform private.wait_no_longer(array(
      select l.id from unnest(p_types, p_tickets) as e (type, ticket)
      join public.position_links l on l.master_account_id = p_account and l.master_ticket = e.ticket and l.id = any (v_links)
      where e.type in ('reduced', 'closed', 'cancelled', 'opened')), p_now);
  end if;
  v_new := private.plan(v_links, array_fill(p_account, array[cardinality(p_tickets)]), p_tickets, null, p_now);
  -- a decision may have waited for this: an increase for the fill of an order of ours, a flip for the end of what was held
  v_new := coalesce(v_new, '{}') || coalesce(private.plan_again(array(
    select l.id from public.position_links l where l.id = any (v_links) and l.follower_account_id = p_account), p_now), '{}');
  perform private.explain_rest(p_account, p_events, p_types, p_tickets);
  return v_new;
end $$;

-- Takes events and plans; the whole answer. p_apart: each by itself, because something among them made the planner fail (49_apart.sql).
create function private.take_events(p_vps uuid, p_account uuid, p_events jsonb, p_apart boolean, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_results jsonb := '[]';
  v_result jsonb;
  v_event jsonb;
  v_tickets text[] := '{}';
  v_events bigint[] := '{}';
  v_types text[] := '{}';
  v_repeated bigint[] := '{}';
  v_new bigint[];
  v_again jsonb := '[]';
begin
  select * into v_account from public.trading_accounts where id = p_account;
  for v_event in select value from jsonb_array_elements(p_events) loop
    if p_apart then
      v_result := private.take_event_apart(v_account, v_event, p_now);
      v_new := coalesce(v_new, '{}') || array(select jsonb_array_elements_text(v_result -> 'executions')::bigint);
    else
      v_result := private.take_event(v_account, v_event, p_now);
    end if;
    if v_result ->> 'status' = 'duplicate' then
      v_repeated := v_repeated || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
    elsif v_result ? 'tickets' then
      v_tickets := v_tickets || array(select jsonb_array_elements_text(v_result -> 'tickets'));
      v_events := v_events || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
      v_types := v_types || array(select jsonb_array_elements_text(v_result -> 'types'));
      if v_event ->> 'type' = 'snapshot' then
        v_account.snapshot_session := greatest(v_account.snapshot_session, (v_event ->> 'session')::bigint);
      end if;
    end if;
    v_results := v_results || (v_result - array['tickets', 'events', 'types', 'executions']);
  end loop;
  if cardinality(v_tickets) > 0 and not p_apart then
    v_new := private.plan_events(p_account, v_events, v_types, v_tickets, p_now);
  end if;
  if v_account.copy_state = 'flattening' then
    v_new := coalesce(v_new, '{}') || case when p_apart then private.try_step(p_account, 'flatten', '', '{}', p_now)
      else private.plan_flatten(p_account, p_now) end;
  end if;
  if cardinality(v_repeated) > 0 then
    select coalesce(jsonb_agg(private.execution_json(q)), '[]') into v_again from public.trade_execution_queue q
    where q.event_id = any (v_repeated) and q.finalized_at is null and q.vps_id = p_vps;
  end if;
  return jsonb_build_object('results', v_results, 'executions',
    case when p_apart then private.offer_apart(v_new, p_vps, clock_timestamp()) else private.offer(v_new, p_vps, clock_timestamp()) end || v_again,
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

-- Its settings hold for all that it calls: plans are made once, when tables may be tiny, and must serve when they are large.
create function private.queue_trade_copy(p_events jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
begin
  if octet_length(p_events::text) > 1000000 then
    raise exception using errcode = 'TC002', message = 'queue_trade_copy: the payload is over 1 MB', hint = 'Send fewer events in one call.';
  end if;
  if jsonb_typeof(p_events -> 'events') is distinct from 'array' or not coalesce(pg_input_is_valid(p_events ->> 'account_id', 'uuid'), false)
    or not coalesce(pg_input_is_valid(p_events ->> 'epoch', 'bigint'), false) then
    raise exception using errcode = 'TC001', message = 'queue_trade_copy: account_id, epoch or the array "events" is missing or malformed',
      hint = 'See docs/protocol.md for the form of the call.';
  end if;
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);
  v_now := private.lock_with_followers(array[(p_events ->> 'account_id')::uuid]);
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);  -- it may have moved meanwhile
  begin
    return private.take_events(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', false, v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'queue_trade_copy: one by one, for %: %', sqlstate, sqlerrm;
  end;
  return private.take_events(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', true, v_now);
end $$;

create function public.queue_trade_copy(p_events jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.queue_trade_copy(p_events) $$;
comment on function public.queue_trade_copy(jsonb) is
  'Trade events of one account, from its agent: stored once, planned, and the executions of the calling VPS returned (docs/protocol.md).';
revoke all on function public.queue_trade_copy(jsonb) from public, anon;
grant execute on function public.queue_trade_copy(jsonb) to authenticated;
grant execute on function private.queue_trade_copy(jsonb) to authenticated;

-- 48_report.sql
-- report_executions: what came of executions. Reports are facts: accepted late and from any epoch, and planned on.

-- Pause before the next attempt: doubling, capped by p_cap_s and by the setting, with jitter of a quarter.
create function private.retry_delay(p_attempt integer, p_cap_s numeric) returns interval
language plpgsql volatile set search_path = '' as $$
begin
  return make_interval(secs => least(p_cap_s, (private.setting('retry_backoff_max_ms') #>> '{}')::numeric / 1000,
    (private.setting('retry_backoff_ms') #>> '{}')::numeric / 1000 * 2 ^ least(p_attempt - 1, 16)) * (0.75 + random() * 0.5));
end $$;

-- What is wrong with a report as docs/protocol.md describes it; null when nothing is. One expression: every report passes here.
create function private.report_error(r jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(r) is distinct from 'object' then 'the report is not an object'
    when not coalesce(pg_input_is_valid(r ->> 'execution_id', 'bigint'), false) then 'execution_id must be an execution number'
    when not coalesce(pg_input_is_valid(r ->> 'attempt', 'integer'), false) then 'attempt must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'session', 'bigint'), false) then 'session must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'seq', 'bigint'), false) then 'seq must be a whole number'
    when coalesce(jsonb_typeof(r -> 'retryable'), 'null') not in ('null', 'boolean') then 'retryable must be true or false'
    when coalesce(jsonb_typeof(r -> 'adopted'), 'null') not in ('null', 'boolean') then 'adopted must be true or false'
    when coalesce(jsonb_typeof(r -> 'reason'), 'null') not in ('null', 'string') then 'reason must be a text'
    when coalesce(jsonb_typeof(r -> 'message'), 'null') not in ('null', 'string') then 'message must be a text'
    when coalesce(r ->> 'outcome', '') not in ('completed', 'rejected', 'expired', 'cancelled', 'unknown')
      then 'outcome is not one of completed, rejected, expired, cancelled, unknown'
    when not pg_input_is_valid(r ->> 'filled_lots', 'numeric') or (r ->> 'filled_lots')::numeric not between 0 and 1e12
      then 'filled_lots must be a decimal number, not negative'
    when not pg_input_is_valid(r ->> 'price', 'numeric') or (r ->> 'price')::numeric not between 0 and 1e12
      then 'price must be a decimal number, not negative'
    when not coalesce(pg_input_is_valid(r ->> 'received_at', 'timestamptz'), true) then 'received_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'sent_at', 'timestamptz'), true) then 'sent_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'done_at', 'timestamptz'), true) then 'done_at must be a time such as 2026-01-31T12:00:00Z'
    when r ? 'quote' and not private.is_quote(r -> 'quote') then 'quote must be an object with bid and ask above 0'
    when coalesce(jsonb_typeof(r -> 'positions'), 'null') not in ('null', 'array') then 'positions must be an array'
  end;
  if v_error is null and jsonb_typeof(r -> 'positions') = 'array' then
    for p in select value from jsonb_array_elements(r -> 'positions') loop
      v_error := private.position_error(p);
      exit when v_error is not null;
    end loop;
  end if;
  return v_error;
end $$;

-- The ticket that a position goes under now: it may have got another one, or several, before the report of its opening came.
create function private.heir(p_account uuid, p_ticket text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_ticket text := p_ticket;
  v_next text;
begin
  for n in 1 .. 100 loop
    select m.replaced_by into v_next from public.positions m where m.account_id = p_account and m.ticket = v_ticket;
    exit when v_next is null;
    v_ticket := v_next;
  end loop;
  return v_ticket;
end $$;

-- What a broker did, booked to the link of a hedging follower. The mirror has taken the report already and knows best: a report that comes
-- late brings nothing back. A close that found nothing proves nothing by itself: the mirror is asked to be looked at again.
create function private.book_fill(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opens boolean := q.action in ('open', 'increase', 'place');
  v_modified boolean := q.action in ('modify', 'amend');
  v_legs integer;
begin
  if v_opens then
    insert into private.link_legs as g (link_id, account_id, ticket, kind, lots, price)
    select q.link_id, q.account_id, m.ticket, m.kind, m.lots, m.price
    from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    join public.positions o on o.account_id = q.account_id and o.ticket = e ->> 'ticket'
    join public.positions m on m.account_id = q.account_id and m.lots > 0
      and m.ticket = case when o.replaced_by is null then o.ticket else private.heir(q.account_id, o.ticket) end
    where (e ->> 'lots')::numeric > 0
    on conflict (link_id, ticket) do nothing;
    get diagnostics v_legs = row_count;
    if v_legs > 0 and exists (select 1 from private.link_legs g where g.link_id = q.link_id and g.kind = 'position') then
      update public.position_links l set base_master_lots = coalesce(q.master_lots, l.base_master_lots),
        base_lots = least((select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'),
          l.base_lots + coalesce(q.filled_lots, q.lots))  -- what it held beyond its base, another order's second fill, stays beyond it
      where l.id = q.link_id;
    end if;
  end if;
  -- an open whose every position is a new leg leaves nothing to compare
  if not v_opens or v_legs is distinct from jsonb_array_length(nullif(r -> 'positions', 'null')) then
    delete from private.link_legs g using public.positions m
    where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.lots = 0 and m.replaced_by is null;
    if exists (select 1 from private.link_legs g where g.link_id = q.link_id) then
      update private.link_legs g set ticket = m.replaced_by from public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.replaced_by is not null
        and not exists (select 1 from private.link_legs o where o.link_id = g.link_id and o.ticket = m.replaced_by);
      delete from private.link_legs g using public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.lots = 0;
      update private.link_legs g set lots = least(g.lots, m.lots), kind = m.kind, price = m.price from public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.lots > 0
        and (m.lots < g.lots or m.kind <> g.kind);
    end if;
  end if;

  if q.action = 'reduce' and q.status = 'completed' then
    perform private.see_reduction(q.link_id, q.master_lots);
  end if;
  -- refused levels keep their time: other orders say nothing of them, nor do those of the same step for another position of the copy
  update public.position_links l set close_failures = case when v_opens or v_modified then l.close_failures else 0 end,
    modify_failures = case when v_modified then 0 else l.modify_failures end,
    replan_at = case when not v_modified and l.modify_failures between 1 and 2 then l.replan_at end
  where l.id = q.link_id and (l.close_failures > 0 or l.modify_failures > 0)
    and not (v_modified and exists (select 1 from public.trade_execution_queue o where o.step_id = q.step_id and o.status in ('rejected', 'cancelled')));
  if q.status = 'completed' and q.ticket is not null and q.action in ('reduce', 'close', 'cancel')
    and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
  then
    update public.positions m set absent_snapshots = greatest(m.absent_snapshots, 1)
    where m.account_id = q.account_id and m.ticket = q.ticket and m.lots > 0;
    update public.position_links l set close_failures = l.close_failures + 1, replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id and exists (select 1 from private.link_legs g where g.link_id = l.id and g.ticket = q.ticket);
  end if;
end $$;

-- A fill of an execution that is completed already: held by its link, yet beyond what it was to open, so that the planner takes it off again.
create function private.book_filled_again(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_was public.position_links;
begin
  select * into v_was from public.position_links l where l.id = q.link_id;
  perform private.book_fill(q, r, p_now);
  update public.position_links l set base_master_lots = v_was.base_master_lots,
    base_lots = least(l.base_lots, v_was.base_lots + greatest(0, q.lots - coalesce(q.filled_lots, q.lots)))
  where l.id = q.link_id and l.base_lots > v_was.base_lots;
end $$;

-- What nobody waited for any more was opened with the levels of its time. Others may have been asked since, of what the copy held then: NaN, which
-- is never what is wanted, has them asked anew.
create function private.doubt_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set asked_sl = 'NaN', asked_tp = 'NaN'
  where l.id = q.link_id and l.ended_at is null and private.opens(q) and (l.asked_sl, l.asked_tp) is distinct from (q.sl, q.tp);
end $$;

-- An order that came to nothing: an open's link ends with its reason, a close or modify waits for its next time.
create function private.book_failure(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opened bigint[];
  v_modifies boolean := q.action in ('modify', 'amend');
  v_netting boolean := q.parts is not null or exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting');
begin
  if v_netting and (v_modifies or not private.opens(q)) then
    update private.net_ledgers n set failures = n.failures + case when v_modifies then 0 else 1 end,
      modify_failures = n.modify_failures + case when v_modifies then 1 else 0 end,
      replan_at = case when v_modifies and n.modify_failures >= 2 then null else p_now + private.retry_delay(n.failures + n.modify_failures + 1, 30) end
    where n.account_id = q.account_id and n.symbol = q.symbol;
  elsif q.action in ('close', 'reduce', 'cancel') then
    update public.position_links l set close_failures = l.close_failures + 1, replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id;
  elsif v_modifies then
    update public.position_links l set modify_failures = l.modify_failures + 1,
      replan_at = case when l.modify_failures >= 2 then null else p_now + private.retry_delay(l.modify_failures + 2, 30) end
    where l.id = q.link_id;
  end if;
  if q.reason = 'no_money' and private.opens(q) then
    perform private.tell_no_money(q);
  end if;
  perform private.mind_refused_levels(q);
  if q.parts is not null then
    v_opened := array(select (e ->> 'link_id')::bigint from jsonb_array_elements(q.parts) e where (e ->> 'lots')::numeric > 0);
    update public.position_links l set rest_lots = null where l.id = any (v_opened) and l.rest_lots is not null;
  elsif q.action in ('open', 'increase', 'place') then
    v_opened := array[q.link_id];
  end if;
  if q.status in ('rejected', 'expired', 'cancelled') and v_opened is not null then
    update public.position_links l set state = 'ended', reason = q.reason, ended_at = p_now, replan_at = null
    where l.id = any (v_opened) and l.state = 'live' and l.wanted_lots is null
      and not exists (select 1 from private.link_legs g where g.link_id = l.id)
      and not exists (select 1 from public.trade_execution_queue o where o.link_id = l.id and o.finalized_at is null and o.id <> q.id);
    -- a part of it is held: what was not filled is a skipped increase
    update public.position_links l set base_master_lots = coalesce((select (e ->> 'master_lots')::numeric from jsonb_array_elements(q.parts) e
        where (e ->> 'link_id')::bigint = l.id), q.master_lots, l.base_master_lots),
      base_lots = least(l.base_lots, (select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'))
    where l.id = any (v_opened) and l.state = 'live' and exists (select 1 from private.link_legs g where g.link_id = l.id and g.kind = 'position');
  end if;
end $$;

-- A fill that arrives for a link that has ended meanwhile (expired, rejected: the report overrules it): the link lives again.
create function private.revive_link(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'live', ended_at = null, reason = null
  where l.id = q.link_id and l.state = 'ended' and l.reason is distinct from 'released' and private.opens(q);
end $$;

-- Status after a report: final, or on to another attempt. Closes, reductions and SL/TP are tried for ever; opens within their limits.
create function private.next_status(q public.trade_execution_queue, r jsonb, p_now timestamptz, out status text, out reason text, out next_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_opens boolean := private.opens(q);
  v_limit timestamptz;
begin
  reason := coalesce(r ->> 'reason', case when r ->> 'outcome' = 'completed' then null else r ->> 'outcome' end);
  case r ->> 'outcome'
    when 'completed' then
      -- a deal that filled something must show what became of it: until then it is looked for by its tag. What was looked for (adopted)
      -- and shows nothing is not held any more.
      if not coalesce((r ->> 'adopted')::boolean, false) and (q.action in ('open', 'increase', 'place') or q.parts is not null) and (q.action = 'place' or coalesce((r ->> 'filled_lots')::numeric, 0) > 0)
        and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
      then
        status := 'unknown';
      else
        status := 'completed'; reason := null;
      end if;
    when 'unknown' then status := 'unknown';
    when 'cancelled' then status := 'cancelled';
    when 'expired' then
      status := case when v_opens then 'expired' else 'retrying' end;
      next_at := case when q.attempt = 1 then p_now else p_now + private.retry_delay(q.attempt, 5) end;
    when 'rejected' then
      v_limit := case when reason = 'market_closed' then q.retry_until
        else q.queued_at + coalesce((select make_interval(secs => c.max_age_ms / 1000.0) from public.copiers c where c.id = q.copier_id), interval '5 s') end;
      next_at := p_now + private.retry_delay(q.attempt, case when v_opens then 5 else 30 end);
      if v_opens and q.cancel_requested_at is not null then status := 'rejected';  -- asked to be dropped: not tried again
      elsif v_opens and reason in ('no_money', 'invalid_volume') then
        next_at := private.second_attempt_at(q, reason, p_now);
        status := case when next_at is null then 'rejected' else 'retrying' end;
      elsif private.may_mend(q, reason) and p_now <= v_limit then status := 'retrying'; next_at := p_now;
      elsif not coalesce((r ->> 'retryable')::boolean, false) then status := 'rejected';
      elsif v_opens and next_at > v_limit then status := 'expired'; reason := case reason when 'price_changed' then 'slippage' else 'too_old' end;
      elsif q.action in ('modify', 'amend') and q.attempt >= 3 then status := 'rejected';
      else status := 'retrying'; end if;
  end case;
  -- a close of whatever a step left behind has done its work once the step is over: what is held now is closed by ticket
  if q.action = 'close' and q.ticket is null and status in ('retrying', 'rejected') and not exists (
    select 1 from public.trade_execution_queue o where o.step_id = q.after_id and o.finalized_at is null)
  then
    status := 'completed';
    reason := null;
  end if;
  if status <> 'retrying' then next_at := null; end if;
end $$;

-- Whether a VPS may speak of an execution: it works the account, or was given the execution when it did.
create function private.was_given(q public.trade_execution_queue, p_vps uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return q.vps_id = p_vps or exists (select 1 from public.account_vps_assignments a where a.account_id = q.account_id and a.vps_id = p_vps);
end $$;

-- Takes one report; returns its result. Adds to p_links what is to be planned and to p_changes what changed on the account.
create function private.take_report(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb, out link_ids bigint[], out changes jsonb)
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_was public.trade_execution_queue;
  v_account public.trading_accounts;
  n record;
  p jsonb;
  c private.change;
  v_late boolean;
  v_ended boolean;
  v_shown numeric;
begin
  link_ids := '{}';
  changes := '[]';
  result := jsonb_build_object('execution_id', r ->> 'execution_id', 'status', 'refused', 'code', 'TC411', 'error', private.report_error(r));
  if result ->> 'error' is not null then return; end if;
  select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := result || jsonb_build_object('code', 'TC106', 'error', format('execution %s was never given to this VPS', r ->> 'execution_id'));
    return;
  end if;
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then
    result := result || jsonb_build_object('code', 'TC402', 'error', format('session %s was never issued for this account', r ->> 'session'));
    return;
  end if;
  result := jsonb_build_object('execution_id', q.id::text, 'status', 'accepted', 'code', null, 'error', null);

  if q.parts is not null then v_shown := private.mirror_net(q.account_id, q.symbol); end if;
  -- the mirror takes the report's look at the account, whatever becomes of the execution
  for p in
    select value from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
    order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0  -- a ticket that goes on under another one is not gone
  loop
    c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
      coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null, null, p_now);
    if c.applied and (c.type <> 'modified' or q.action = 'modify') then
      changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots, 'price', r -> 'price');
    end if;
  end loop;

  if jsonb_typeof(r -> 'quote') = 'object' then perform private.note_quote(q.account_id, q.symbol, r -> 'quote', p_now); end if;
  v_late := (r ->> 'attempt')::integer < q.attempt;
  if q.status = 'completed' or (q.finalized_at is not null or v_late) and r ->> 'outcome' <> 'completed'
    or (r ->> 'attempt')::integer > q.attempt then
    result := result || jsonb_build_object('status', 'duplicate');
    -- two attempts may both have filled after all: what either opened is held by the link
    if r ->> 'outcome' = 'completed' and v_account.mode = 'hedging' and private.opens(q) and not private.left_to_user(q, r) then
      perform private.revive_link(q);
      perform private.book_filled_again(q, r, p_now);
      perform private.doubt_levels(q);
      link_ids := array[q.link_id];
    elsif r ->> 'outcome' = 'completed' and q.parts is not null then
      link_ids := private.book_second_fill(q, r);
    end if;
    return;
  end if;
  n := private.next_status(q, r, p_now);
  v_was := q;
  update public.trade_execution_queue x set status = n.status, reason = n.reason, message = left(r ->> 'message', 500),
    attempt = case when n.status = 'completed' and q.parts is not null then (r ->> 'attempt')::integer else x.attempt end,
    next_attempt_at = n.next_at, adopted = x.adopted or coalesce((r ->> 'adopted')::boolean, false),
    filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots), fill_price = coalesce((r ->> 'price')::numeric, x.fill_price),
    (point_size, point_money) = (select coalesce(w.size, x.point_size), coalesce(w.money, x.point_money)
      from private.point_worth(v_account.id, v_account.currency, x.symbol, (r ->> 'filled_lots')::numeric) w),
    received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at), sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at),
    done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    finalized_at = case when n.status in ('completed', 'rejected', 'expired', 'cancelled') then p_now end, updated_at = p_now
  where x.id = q.id returning * into q;
  if q.reason = 'invalid_stops' and q.status = 'retrying' then perform private.mend_levels(q, p_now); end if;

  v_ended := exists (select 1 from public.position_links l where l.id = q.link_id and l.state = 'ended');
  if v_ended and private.left_to_user(q, r) then
    null;
  elsif q.status = 'completed' then
    if v_ended and q.parts is null then
      perform private.revive_link(q);
    end if;
    if q.parts is not null then
      perform private.book_fill_of_net(q, v_was, v_late, v_shown, p_now);
      perform private.drop_released_shares(q.parts);
      update private.net_ledgers k set asked_sl = coalesce(q.sl, k.asked_sl), asked_tp = coalesce(q.tp, k.asked_tp), failures = 0,
        replan_at = case when k.modify_failures between 1 and 2 then k.replan_at end
      where k.account_id = q.account_id and k.symbol = q.symbol;
    elsif v_account.mode = 'hedging' then
      perform private.book_fill(q, r, p_now);
      if v_was.finalized_at is not null then perform private.doubt_levels(q); end if;
    else
      update private.net_ledgers k set modify_failures = 0, replan_at = null where k.account_id = q.account_id and k.symbol = q.symbol;
    end if;
  else
    -- a close of several tickets may be refused for one of them: what was done is booked all the same
    if v_account.mode = 'hedging' and q.parts is null and jsonb_typeof(r -> 'positions') = 'array' and jsonb_array_length(r -> 'positions') > 0 then
      perform private.book_fill(q, r, p_now);
    end if;
    if q.status in ('rejected', 'expired', 'cancelled') then
      perform private.book_failure(q, p_now);
      if q.reason = 'fifo' then perform private.exchange_for_oldest(q, p_now); end if;
    end if;
  end if;
  if q.status = 'completed' then perform private.mind_protection(q, r); end if;
  link_ids := array[q.link_id];
  if q.parts is not null then
    link_ids := link_ids || array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint from jsonb_array_elements(q.parts) e);
  end if;
end $$;

-- Puts retries that are due into the hands of agents again, under the next attempt number.
create function private.requeue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_ids bigint[];
begin
  if not exists (select 1 from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= p_now) then return null; end if;
  if private.trading_state() = 'off' then return null; end if;
  perform private.fit_second_attempts(p_accounts, p_now);
  with due as (
    update public.trade_execution_queue q set status = 'queued', attempt = q.attempt + 1, next_attempt_at = null, offered_at = null, updated_at = p_now
    where q.status = 'retrying' and q.next_attempt_at <= p_now and q.account_id = any (p_accounts)
    returning q.id
  )
  select array_agg(id) into v_ids from due;
  return v_ids;
end $$;

-- Records what reports changed on an account that is itself a master, as events, and plans on them.
create function private.plan_changes(p_account uuid, p_changes jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_change jsonb;
  v_id bigint;
  v_events bigint[] := '{}';
  v_tickets text[] := '{}';
  v_types text[] := '{}';
  v_new bigint[];
begin
  if not exists (select 1 from public.copiers c where c.master_account_id = p_account and c.removed_at is null) then return null; end if;
  select * into v_account from public.trading_accounts where id = p_account;
  for v_change in select value from jsonb_array_elements(p_changes) loop
    v_id := nextval('public.trade_events_id_seq');
    perform private.record_event(v_account, v_id, jsonb_build_object('detected_at', p_now, 'unchanged_at', p_now,
      'deal_price', v_change -> 'price'), 'report', v_change ->> 'type',
      'accepted', null, null, v_change -> 'position', (v_change ->> 'previous_lots')::numeric, v_change -> 'position');
    update public.positions set last_event_id = v_id, detected_at = p_now
    where account_id = p_account and ticket = v_change #>> '{position,ticket}';
    v_events := v_events || v_id;
    v_tickets := v_tickets || (v_change #>> '{position,ticket}');
    v_types := v_types || (v_change ->> 'type');
    if private.order_filled_into(v_change -> 'position', (v_change ->> 'previous_lots')::numeric) then
      v_events := v_events || v_id;
      v_tickets := v_tickets || (v_change #>> '{position,replaces}');
      v_types := v_types || (v_change ->> 'type');
    end if;
  end loop;
  if cardinality(v_tickets) = 0 then return null; end if;
  v_new := private.plan(private.links_of_tickets(p_account, v_tickets), array_fill(p_account, array[cardinality(v_tickets)]), v_tickets, null, p_now);
  perform private.explain_rest(p_account, v_events, v_types, v_tickets);
  return v_new;
end $$;

-- Takes reports and plans; the whole answer. p_apart: each by itself, because something among them made the planner fail (49_apart.sql).
create function private.take_reports(p_vps uuid, p_reports jsonb, p_accounts uuid[], p_apart boolean, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_taken_at_once bigint[] := '{}';
  v_report jsonb;
  v_number bigint;
  v_taken record;
  v_results jsonb := '[]';
  v_links bigint[] := '{}';
  v_changes jsonb := '{}';
  v_account text;
  v_new bigint[] := '{}';
begin
  if not p_apart and p_reports @> '[{"outcome": "completed"}]' then
    select coalesce(u.taken, '{}'), coalesce(u.results, '[]'), coalesce(u.link_ids, '{}') into v_taken_at_once, v_results, v_links
    from private.take_usual_reports(p_vps, p_reports, p_now) u;
  end if;
  for v_report, v_number in
    select value, ordinality from jsonb_array_elements(case when cardinality(v_taken_at_once) < jsonb_array_length(p_reports) then p_reports else '[]' end)
      with ordinality
    where ordinality <> all (v_taken_at_once)
  loop
    if p_apart then
      v_taken := private.take_report_apart(p_vps, v_report, p_now);
      v_new := v_new || v_taken.executions;
    else
      v_taken := private.take_report(p_vps, v_report, p_now);
      v_links := v_links || v_taken.link_ids;
      if v_taken.changes <> '[]' then
        v_account := v_report ->> 'account_id';
        v_changes := v_changes || jsonb_build_object(v_account, coalesce(v_changes -> v_account, '[]') || v_taken.changes);
      end if;
    end if;
    -- results stand in the order of the reports; those taken at once and not yet passed come later than this one
    v_results := jsonb_insert(v_results, array[(v_number - 1)::text], v_taken.result);
  end loop;
  if p_apart then
    v_new := v_new || private.requeue_apart(p_accounts, p_now);
    return jsonb_build_object('results', v_results, 'executions', private.offer_apart(v_new, p_vps, clock_timestamp()),
      'server_time', private.rfc3339(clock_timestamp()));
  end if;
  v_new := coalesce(private.plan_again(private.settle(v_links, p_now), p_now), '{}') || coalesce(private.requeue(p_accounts, p_now), '{}');
  if v_changes <> '{}' then
    for v_account in select jsonb_object_keys(v_changes) loop
      v_new := v_new || coalesce(private.plan_changes(v_account::uuid, v_changes -> v_account, p_now), '{}');
    end loop;
  end if;
  return jsonb_build_object('results', v_results, 'executions', private.offer(v_new, p_vps, clock_timestamp()),
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

create function private.report_executions(p_reports jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
  v_accounts uuid[];
begin
  if pg_column_size(p_reports) > 150000 and octet_length(p_reports::text) > 1000000 then  -- a character is six of its text at most
    raise exception using errcode = 'TC002', message = 'report_executions: the payload is over 1 MB', hint = 'Send fewer reports in one call.';
  end if;
  if jsonb_typeof(p_reports -> 'reports') is distinct from 'array' then
    raise exception using errcode = 'TC001', message = 'report_executions: the array "reports" is missing', hint = 'See docs/protocol.md.';
  end if;
  v_accounts := array(
    select (e ->> 'account_id')::uuid from jsonb_array_elements(p_reports -> 'reports') e where pg_input_is_valid(e ->> 'account_id', 'uuid'));
  v_now := private.lock_with_followers(v_accounts);
  begin
    return private.take_reports(v_vps, p_reports -> 'reports', v_accounts, false, v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'report_executions: one by one, for %: %', sqlstate, sqlerrm;
  end;
  return private.take_reports(v_vps, p_reports -> 'reports', v_accounts, true, v_now);
end $$;

create function public.report_executions(p_reports jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.report_executions(p_reports) $$;
comment on function public.report_executions(jsonb) is
  'What came of executions, from the agent that was given them; late reports count as well (docs/protocol.md).';
revoke all on function public.report_executions(jsonb) from public, anon;
grant execute on function public.report_executions(jsonb) to authenticated;
grant execute on function private.report_executions(jsonb) to authenticated;

-- 48_usual_reports.sql
-- Usual reports, many at once. Nearly every report says that an order of a hedging follower was carried out at its first telling: a new position
-- opened, the one position of a copy closed or given other levels. What take_report does with these, statement by statement, is here one statement for
-- all of them, for most of its time goes into beginning statements. It is a short cut, not a rule of its own: whatever is not exactly this is left to
-- take_report, and tests/sql/test_usual_reports.py tells both the same reports and compares every row. Whoever changes take_report, apply_position,
-- next_status, book_fill or mind_protection changes it here, or makes it leave such reports alone.

-- Returns which reports (numbers from 1) were taken, their results in order, and their links, to be planned on. Raises at what is no value of its type:
-- the caller then takes each by itself, as after a fault. Longer than forty lines because it is one statement.
create function private.take_usual_reports(p_vps uuid, p_reports jsonb, p_now timestamptz, out taken bigint[], out results jsonb, out link_ids bigint[])
language plpgsql security definer set search_path = '' as $$
declare
  v_many boolean := jsonb_array_length(p_reports) > 1;
begin
  with told as (
    select t.*, t.positions -> 0 as p
    from rows from (jsonb_to_recordset(p_reports) as (account_id text, execution_id bigint, attempt integer, session bigint, seq bigint, outcome text,
      retryable jsonb, adopted jsonb, reason jsonb, message jsonb, filled_lots numeric, price numeric, positions jsonb, quote jsonb,
      received_at timestamptz, sent_at timestamptz, done_at timestamptz)) with ordinality as t (account_id, execution_id, attempt, session, seq, outcome,
      retryable, adopted, reason, message, filled_lots, price, positions, quote, received_at, sent_at, done_at, n)
  ), looks as materialized (
    select t.*, q.link_id, q.master_lots, q.symbol, q.action in ('open', 'increase') as opens, q.action = 'close' as closes,
      a.id as follower, a.user_id, a.currency, h.lots as held_lots,
      coalesce(t.filled_lots, q.filled_lots, q.lots) as booked_lots, s.ticket, s.lots, s.price as open_price, s.side, nullif(s.sl, 0) as sl,
      nullif(s.tp, 0) as tp, s.tag, s.opened_at, s.expires_at, s.magic, s.comment, t.account_id || ' ' || s.ticket as position_key,
      case when coalesce(
        -- of its form, and all that take_report looks at in it; null is no number that these ignore
        t.outcome = 'completed' and jsonb_typeof(t.positions) = 'array' and jsonb_array_length(t.positions) = 1
        and coalesce(jsonb_typeof(t.quote), 'null') = 'null' and t.session is not null and t.seq is not null
        and coalesce(jsonb_typeof(t.retryable), 'null') in ('null', 'boolean') and coalesce(jsonb_typeof(t.adopted), 'null') in ('null', 'boolean')
        and coalesce(jsonb_typeof(t.reason), 'null') = 'null' and coalesce(jsonb_typeof(t.message), 'null') in ('null', 'string')
        and least(t.filled_lots, t.price, s.lots, s.price, s.sl, s.tp) >= 0 and greatest(t.filled_lots, t.price, s.lots, s.price, s.sl, s.tp) <= 1e12
        and s.lots is not null and s.price is not null and s.kind = 'position' and s.replaces is null
        and jsonb_typeof(t.p -> 'ticket') = 'string' and length(s.ticket) between 1 and 64 and t.p -> 'symbol' = to_jsonb(q.symbol)
        -- of an order in flight, told by who was given it
        and q.account_id::text = t.account_id and q.attempt = t.attempt and q.status in ('queued', 'executing', 'unknown') and q.parts is null
        and (q.vps_id = p_vps or private.was_given(q, p_vps)) and a.mode = 'hedging' and t.session <= a.session
        and c.masters is null and s.side = q.side and l.state = 'live' and l.close_failures + l.modify_failures = 0
        and case
          -- the levels it asked for stand
          when q.action in ('open', 'increase') then s.lots > 0 and m.ticket is null and h.found = 0
            and (q.sl is null or s.sl > 0) and (q.tp is null or s.tp > 0)
          when q.action in ('close', 'modify') then q.ticket = s.ticket and m.closed_at is null and m.kind = 'position' and m.side = q.side
            and (m.session, m.seq) < (t.session, t.seq) and h.legs = 1 and h.found = 1
            and case q.action when 'close' then s.lots = 0
              else s.lots = m.lots and h.lots = m.lots and not 'protection_dropped' = any (l.warnings) end
          else false end, false) then 'usual' end as verdict
    from told t
    left join lateral jsonb_to_record(t.p) as s (ticket text, kind text, side text, lots numeric, price numeric, sl numeric, tp numeric,
      magic text, comment text, tag bigint, opened_at timestamptz, expires_at timestamptz, replaces text) on true
    left join public.trade_execution_queue q on q.id = t.execution_id
    left join public.trading_accounts a on a.id = q.account_id
    left join public.position_links l on l.id = q.link_id
    left join lateral (select * from public.positions i where i.account_id = q.account_id and i.ticket = s.ticket limit 1) m on true
    left join lateral (select true as masters from public.copiers i where i.master_account_id = a.id and i.removed_at is null limit 1) c on true
    left join lateral (
      select count(*) as legs, count(*) filter (where g.ticket = s.ticket and g.kind = 'position') as found,
        coalesce(sum(g.lots) filter (where g.kind = 'position'), 0) as lots
      from private.link_legs g where g.link_id = q.link_id
    ) h on true
  ), usual as materialized (
    select k.*, w.size as point_size, w.money as point_money
    from looks k left join lateral private.point_worth(k.follower, k.currency, k.symbol, k.filled_lots) w on true
    -- of these words the planner expects one row: what is joined to it is looked up by its key, however small its table is
    where k.verdict = 'usual'
      -- two about the same copy or position are taken in their order
      and k.link_id <> all (case when v_many then array(select d.link_id from looks d group by d.link_id having count(*) > 1) else '{}' end)
      and k.position_key <> all (case when v_many then array(select d.position_key from looks d group by d.position_key having count(*) > 1) else '{}' end)
  ), seen as (
    insert into public.positions as m (account_id, ticket, user_id, kind, symbol, side, lots, price, sl, tp, magic, comment, tag, opened_at, expires_at,
      session, seq, unseen_at, detected_at, first_seen_at, changed_at, closed_at, close_reason)
    select u.follower, u.ticket, u.user_id, 'position', u.symbol, u.side, u.lots, u.open_price, u.sl, u.tp, u.magic, u.comment, u.tag,
      u.opened_at, u.expires_at, u.session, u.seq, coalesce(u.sent_at, p_now), coalesce(u.done_at, p_now), p_now, p_now,
      case when u.closes then p_now end, case when u.closes then 'client' end
    from usual u
    on conflict (account_id, ticket) do update set symbol = excluded.symbol, lots = excluded.lots, price = excluded.price, sl = excluded.sl,
      tp = excluded.tp, order_type = null, magic = excluded.magic, comment = excluded.comment, tag = coalesce(excluded.tag, m.tag),
      opened_at = coalesce(excluded.opened_at, m.opened_at), expires_at = excluded.expires_at, session = excluded.session, seq = excluded.seq,
      absent_snapshots = 0, detected_at = excluded.detected_at, changed_at = excluded.changed_at, closed_at = excluded.closed_at,
      close_reason = excluded.close_reason, replaced_by = null
  ), done as (
    update public.trade_execution_queue x set status = 'completed', reason = null, message = left(u.message #>> '{}', 500), next_attempt_at = null,
      adopted = x.adopted or coalesce(u.adopted::boolean, false), filled_lots = coalesce(u.filled_lots, x.filled_lots),
      fill_price = coalesce(u.price, x.fill_price), point_size = coalesce(u.point_size, x.point_size),
      point_money = coalesce(u.point_money, x.point_money), received_at = coalesce(u.received_at, x.received_at),
      sent_at = coalesce(u.sent_at, x.sent_at), done_at = coalesce(u.done_at, x.done_at), finalized_at = p_now, updated_at = p_now
    from usual u where x.id = u.execution_id
  ), held as (
    insert into private.link_legs (link_id, account_id, ticket, kind, lots, price)
    select u.link_id, u.follower, u.ticket, 'position', u.lots, u.open_price from usual u where u.opens
  ), given as (
    delete from private.link_legs g where g.link_id = any (array(select u.link_id from usual u where u.closes))
  ), based as (
    update public.position_links l set base_master_lots = coalesce(u.master_lots, l.base_master_lots), base_lots = least(u.held_lots + u.lots, l.base_lots + u.booked_lots)
    from usual u where u.opens and l.id = u.link_id
  )
  select array_agg(u.n), array_agg(u.link_id),
    jsonb_agg(jsonb_build_object('execution_id', u.execution_id::text, 'status', 'accepted', 'code', null, 'error', null) order by u.n)
  into taken, link_ids, results from usual u;
end $$;

-- 49_apart.sql
-- One by one: how calls and upkeep go on when the planner's own code fails on something. Whoever plans tries everything at once, as ever; only when
-- that raises is it done over in parts, each in a subtransaction, and what still fails is set aside (39_fault.sql) and tried again by the upkeep.

-- Plans links, those that fail by themselves: in halves, so that one among many costs little.
create function private.plan_links_apart(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_half integer := cardinality(p_links) / 2;
  v_account uuid;
  v_context text;
begin
  if coalesce(cardinality(p_links), 0) = 0 then return '{}'; end if;
  begin
    v_new := private.plan_again(private.settle(p_links, p_now), p_now);
    delete from private.faults f where f.kind = 'link' and f.subject = any (p_links::text[]);
    return coalesce(v_new, '{}');
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    if v_half = 0 then
      get stacked diagnostics v_context = pg_exception_context;
      select l.follower_account_id into v_account from public.position_links l where l.id = p_links[1];
      perform private.note_fault(v_account, 'link', p_links[1]::text, null, v_account, format('copy %s', p_links[1]), sqlerrm, v_context, p_now);
      return '{}';
    end if;
  end;
  return private.plan_links_apart(p_links[:v_half], p_now) || private.plan_links_apart(p_links[v_half + 1:], p_now);
end $$;

-- Plans what a position of a master asks of these copiers, those that fail by themselves.
create function private.decide_apart(p_account uuid, p_ticket text, p_copiers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_half integer := cardinality(p_copiers) / 2;
  v_follower uuid;
  v_context text;
begin
  if coalesce(cardinality(p_copiers), 0) = 0 then return '{}'; end if;
  begin
    v_new := private.plan((
      select array_agg(l.id) from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = p_ticket and l.copier_id = any (p_copiers) and l.ended_at is null),
      array[p_account], array[p_ticket], p_copiers, p_now);
    delete from private.faults f
    where f.account_id = p_account and f.kind = 'decision' and f.subject = any (array(select p_ticket || ' ' || c from unnest(p_copiers) c));
    return coalesce(v_new, '{}');
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    if v_half = 0 then
      get stacked diagnostics v_context = pg_exception_context;
      select c.follower_account_id into v_follower from public.copiers c where c.id = p_copiers[1];
      perform private.note_fault(p_account, 'decision', p_ticket || ' ' || p_copiers[1],
        jsonb_build_object('ticket', p_ticket, 'copier_id', p_copiers[1]), v_follower, format('the copy of position %s', p_ticket), sqlerrm, v_context, p_now);
      return '{}';
    end if;
  end;
  return private.decide_apart(p_account, p_ticket, p_copiers[:v_half], p_now) || private.decide_apart(p_account, p_ticket, p_copiers[v_half + 1:], p_now);
end $$;

-- Plans what one event changed: {"tickets", "events", "types"} of take_event. Reasons are given once every decision on the ticket is made.
create function private.plan_event_apart(p_account uuid, p_taken jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_ticket text;
begin
  for v_ticket in  -- in their order: what a ticket replaces comes after it
    select t.value from jsonb_array_elements_text(p_taken -> 'tickets') with ordinality as t (value, n) group by t.value order by min(t.n)
  loop
    v_new := v_new || private.decide_apart(p_account, v_ticket, array(
      select c.id from public.copiers c where c.master_account_id = p_account and c.removed_at is null
      union
      select l.copier_id from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = v_ticket and l.ended_at is null), p_now);
    v_new := v_new || private.plan_links_apart(array(
      select l.id from public.position_links l
      where l.id = any (private.links_of_tickets(p_account, array[v_ticket])) and l.follower_account_id = p_account), p_now);
    insert into private.faults as f (account_id, kind, subject, body, error, first_at, last_at, retry_at)
    select p_account, 'explain', v_ticket, jsonb_object_agg(u.event, u.type), 'waits for its decisions', p_now, p_now, p_now
    from jsonb_array_elements_text(p_taken -> 'events') with ordinality as n (event, i)
    join lateral (select n.event, p_taken -> 'types' ->> (n.i - 1)::integer, p_taken -> 'tickets' ->> (n.i - 1)::integer) u (event, type, ticket) on true
    where u.ticket = v_ticket
    on conflict (account_id, kind, subject) do update set body = f.body || excluded.body;
    v_new := v_new || private.try_step(p_account, 'explain', v_ticket, null, p_now);
  end loop;
  return v_new;
end $$;

-- One part of the work on an account; what came of it, and "executions" that it made. Raises what went wrong. Longer than forty lines, for it lists them.
create function private.do_step(p_account uuid, p_kind text, p_subject text, p_body jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_body jsonb := p_body;
  v_done jsonb := '{}';
  v_taken record;
  v_new bigint[];
begin
  case p_kind
    when 'event' then
      select * into v_account from public.trading_accounts where id = p_account;
      v_done := private.take_event(v_account, p_body, p_now);
      if v_done ? 'tickets' then v_new := private.plan_event_apart(p_account, v_done, p_now); end if;
    when 'report' then
      -- who told it was given it then; meanwhile the account may have moved on
      v_taken := private.take_report(coalesce((select q.vps_id from public.trade_execution_queue q
        where q.id = (p_body #>> '{report,execution_id}')::bigint), (p_body ->> 'vps_id')::uuid), p_body -> 'report', p_now);
      v_done := v_taken.result;
      v_new := private.plan_links_apart(array(select distinct x from unnest(v_taken.link_ids) x where x is not null), p_now);
      if v_taken.changes <> '[]' then v_new := v_new || private.try_step(p_account, 'changes', p_subject, v_taken.changes, p_now); end if;
    when 'changes' then
      v_new := private.plan_changes(p_account, p_body, p_now);
    when 'explain' then
      if not exists (select 1 from private.faults f where f.account_id = p_account and f.kind = 'decision' and f.body ->> 'ticket' = p_subject) then
        select f.body into v_body from private.faults f where f.account_id = p_account and f.kind = 'explain' and f.subject = p_subject;
        perform private.explain_rest(p_account, array_agg(e.key::bigint), array_agg(e.value), array_agg(p_subject)) from jsonb_each_text(v_body) e;
      else
        v_done := '{"waits": true}';
      end if;
    when 'offer' then
      perform private.offer(array[p_subject::bigint], null, clock_timestamp());
    when 'overdue' then
      v_new := private.plan_links_apart(private.judge_overdue(array[p_account], p_now), p_now);
    when 'retries' then
      v_new := private.requeue(array[p_account], p_now);
    when 'flatten' then
      v_new := private.plan_flatten(p_account, p_now);
    when 'watch' then
      perform private.assignments_of(s.vps_id, p_account) from public.account_vps_assignments s where s.account_id = p_account;
    when 'existing' then
      v_new := private.decide_waiting_existing(array[p_account], p_now);
  end case;
  return v_done || jsonb_build_object('executions', to_jsonb(coalesce(v_new, '{}')));
end $$;

-- Does it in a subtransaction: null, and set aside with an alert, when it fails; if it was set aside, that is over when it succeeds.
create function private.attempt(p_account uuid, p_kind text, p_subject text, p_body jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_done jsonb;
  v_context text;
begin
  v_done := private.do_step(p_account, p_kind, p_subject, p_body, p_now);
  if not v_done ? 'waits' then
    delete from private.faults f where f.account_id = p_account and f.kind = p_kind and f.subject = p_subject;
  end if;
  return v_done;
exception when others then
  if not private.is_fault(sqlstate) then raise; end if;
  get stacked diagnostics v_context = pg_exception_context;
  perform private.note_fault(p_account, p_kind, p_subject,
    coalesce(p_body, (select f.body from private.faults f where f.account_id = p_account and f.kind = p_kind and f.subject = p_subject)), p_account,
    case p_kind when 'report' then format('the report of execution %s', p_body -> 'report' ->> 'execution_id') when 'event' then format('event %s', p_subject)
      when 'changes' then 'what its own copies changed' when 'explain' then format('the reasons of position %s', p_subject)
      when 'offer' then format('handing out execution %s', p_subject) else format('the upkeep of the account (%s)', p_kind) end,
    sqlerrm, v_context, p_now);
  return null;
end $$;

create function private.try_step(p_account uuid, p_kind text, p_subject text, p_body jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  return array(select jsonb_array_elements_text(private.attempt(p_account, p_kind, p_subject, p_body, p_now) -> 'executions')::bigint);
end $$;

-- An event by itself. What the mirror cannot take is kept whole, and taken later under its own number and times: by then it may be history. Of
-- snapshots only the newest is kept.
create function private.take_event_apart(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_key text := coalesce((e ->> 'session') || ':' || (e ->> 'seq'), md5(e::text));
begin
  return coalesce(private.attempt(p_account.id, 'event', case when e ->> 'type' = 'snapshot' then 'snapshot' else v_key end, e, p_now), jsonb_build_object('event_key', v_key, 'status', 'kept', 'code', 'TC420',
    'error', 'the planner failed on this event; it is kept and tried again by itself'));
end $$;

-- What a report that cannot be booked says, as far as it goes by itself: the mirror, and what the broker did. An open, or a deal, stays in flight, so
-- that nothing else is planned on what is not booked. A step that opens nothing must not hold up the close of its copy: once the mirror shows
-- what it did it is over (its legs follow the mirror), and one that came to nothing waits for its next attempt.
create function private.keep_facts(q public.trade_execution_queue, r jsonb, p_subject text, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  p jsonb;
  c private.change;
  v_changes jsonb := '[]';
  v_freed boolean := false;
begin
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then return '{}'; end if;
  update public.trade_execution_queue x set filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots),
    fill_price = coalesce((r ->> 'price')::numeric, x.fill_price), received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at),
    sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at), done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    message = format('reported %s; the planner failed on the report, which is kept and tried again', r ->> 'outcome'), updated_at = p_now
  where x.id = q.id and x.finalized_at is null;
  begin
    for p in
      select value from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
      order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0
    loop
      c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
        coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null, null, p_now);
      if c.applied and (c.type <> 'modified' or q.action = 'modify') then
        v_changes := v_changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots, 'price', r -> 'price');
      end if;
    end loop;
    update public.trade_execution_queue x set
      status = case r ->> 'outcome' when 'completed' then 'completed' else 'retrying' end,
      reason = case r ->> 'outcome' when 'completed' then null else coalesce(r ->> 'reason', r ->> 'outcome') end,
      finalized_at = case r ->> 'outcome' when 'completed' then p_now end,
      next_attempt_at = case r ->> 'outcome' when 'completed' then null else p_now + private.retry_delay(x.attempt, 30) end
    where x.id = q.id and x.status in ('queued', 'executing', 'unknown') and x.attempt = (r ->> 'attempt')::integer
      and x.parts is null and not private.opens(x)
      and case r ->> 'outcome' when 'completed' then coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) > 0
        else r ->> 'outcome' in ('rejected', 'expired') end;
    v_freed := found;
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    return '{}';
  end;
  -- said once: when the report itself is taken, the mirror knows it already
  return case when v_changes = '[]' then '{}' else private.try_step(q.account_id, 'changes', p_subject, v_changes, p_now) end
    || case when v_freed and q.link_id is not null then private.plan_links_apart(array[q.link_id], p_now) else '{}' end;
end $$;

-- A report by itself. One that cannot be booked is kept whole; its execution stays in flight until it is.
create function private.take_report_apart(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb, out executions bigint[])
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_subject text := format('%s:%s %s:%s', r ->> 'execution_id', r ->> 'attempt', r ->> 'session', r ->> 'seq');
  v_done jsonb;
begin
  executions := '{}';
  if pg_input_is_valid(r ->> 'execution_id', 'bigint') then
    select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  end if;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := (private.take_report(p_vps, r, p_now)).result;  -- refused
    return;
  end if;
  v_done := private.attempt(q.account_id, 'report', v_subject, jsonb_build_object('vps_id', p_vps, 'report', r), p_now);
  if v_done is null then
    begin
      executions := private.keep_facts(q, r, v_subject, p_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;  -- the report is kept, that must do
    end;
    result := jsonb_build_object('execution_id', q.id::text, 'status', 'kept', 'code', 'TC420',
      'error', 'the planner failed on this report; it is kept and tried again by itself');
  else
    executions := array(select jsonb_array_elements_text(v_done -> 'executions')::bigint);
    result := v_done - 'executions';
  end if;
end $$;

create function private.requeue_apart(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_account uuid;
begin
  for v_account in select distinct a from unnest(p_accounts) a loop
    v_new := v_new || private.try_step(v_account, 'retries', '', null, p_now);
  end loop;
  return v_new;
end $$;

-- offer(), for executions among which one may not be offered: that one stays with nobody and is tried again.
create function private.offer_apart(p_executions bigint[], p_caller uuid, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own jsonb := '[]';
  v_id bigint;
  v_account uuid;
  v_context text;
begin
  begin
    return private.offer(p_executions, p_caller, p_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
  end;
  foreach v_id in array p_executions loop
    begin
      v_own := v_own || private.offer(array[v_id], p_caller, p_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      get stacked diagnostics v_context = pg_exception_context;
      select q.account_id into v_account from public.trade_execution_queue q where q.id = v_id;
      perform private.note_fault(v_account, 'offer', v_id::text, null, v_account, format('handing out execution %s', v_id), sqlerrm, v_context, p_now);
    end;
  end loop;
  return v_own;
end $$;

-- Executions that heartbeats leave out: reported, and the report waits to be booked; or they cannot be handed out.
create function private.set_aside_executions() returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(
    select case f.kind when 'report' then (f.body -> 'report' ->> 'execution_id')::bigint else f.subject::bigint end
    from private.faults f
    where f.kind = 'offer' or f.kind = 'report' and (f.body #>> '{report,outcome}' = 'completed' or exists (  -- another attempt is nobody's report yet
      select 1 from public.trade_execution_queue q
      where q.id = (f.body #>> '{report,execution_id}')::bigint and q.attempt = (f.body #>> '{report,attempt}')::integer)));
end $$;

-- Executions as agents read them, for a heartbeat: one that cannot be read out does not keep a VPS from its lease.
create function private.executions_apart(p_executions bigint[]) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rows jsonb := '[]';
  v_context text;
  q public.trade_execution_queue;
begin
  for q in select * from public.trade_execution_queue x where x.id = any (p_executions) order by x.priority, x.id loop
    begin
      v_rows := v_rows || private.execution_json(q);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      get stacked diagnostics v_context = pg_exception_context;
      perform private.note_fault(q.account_id, 'offer', q.id::text, null, q.account_id, format('handing out execution %s', q.id), sqlerrm, v_context,
        clock_timestamp());
    end;
  end loop;
  return v_rows;
end $$;

-- The accounts of a VPS, for a heartbeat. One for which it cannot be worked out what to watch is its VPS's all the same.
create function private.assignments_apart(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_all jsonb := '[]';
  v_account uuid;
begin
  begin
    return private.assignments_of(p_vps);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
  end;
  for v_account in select s.account_id from public.account_vps_assignments s where s.vps_id = p_vps order by 1 loop
    v_all := v_all || private.assignments_of(p_vps, v_account,
      exists (select 1 from private.faults f where f.account_id = v_account and f.kind = 'watch')
      or private.attempt(v_account, 'watch', '', null, clock_timestamp()) is null);
  end loop;
  return v_all;
end $$;

-- The upkeep of accounts, part by part; what waits to be tried again is left for its time.
create function private.keep_up_apart(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_account uuid;
  v_part text;
begin
  foreach v_account in array p_accounts loop
    foreach v_part in array array['overdue', 'retries', 'flatten', 'existing'] loop
      continue when exists (select 1 from private.faults f where f.account_id = v_account and f.kind = v_part)
        or v_part = 'flatten' and not exists (select 1 from public.trading_accounts a where a.id = v_account and a.copy_state = 'flattening');
      v_new := v_new || private.try_step(v_account, v_part, '', null, p_now);
    end loop;
    v_new := v_new || private.plan_links_apart(array(
      select l from unnest(private.links_due(array[v_account], p_now)) l
      where not exists (select 1 from private.faults f where f.account_id = v_account and f.kind = 'link' and f.subject = l::text)), p_now);
  end loop;
  return v_new;
end $$;

-- Tries again what was set aside and is due, of accounts whose locks, with their followers', the caller holds. Reports and events come in the order
-- in which they failed; reasons last.
create function private.retry_faults(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  f private.faults;
begin
  if not exists (select 1 from private.faults x where x.retry_at <= p_now) then return v_new; end if;
  for f in
    select * from private.faults x where x.account_id = any (p_accounts) and x.retry_at <= p_now
    order by x.kind = 'explain', x.first_at, x.subject limit 200
  loop
    continue when not private.with_followers(array[f.account_id]) <@ p_accounts;
    if f.kind = 'link' then
      v_new := v_new || private.plan_links_apart(array[f.subject::bigint], p_now);
      delete from private.faults x
      where x.kind = 'link' and x.subject = f.subject and not exists (select 1 from public.position_links l where l.id = f.subject::bigint);
    elsif f.kind = 'decision' then
      v_new := v_new || private.decide_apart(f.account_id, f.body ->> 'ticket', array[(f.body ->> 'copier_id')::uuid], p_now);
    else
      v_new := v_new || private.try_step(f.account_id, f.kind, f.subject, f.body, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- 49_upkeep.sql
-- Upkeep of executions and links: what heartbeats hand out, and what time itself changes.

-- Everything open of the accounts that a VPS works now, for vps_heartbeat. What nobody was offered yet is offered here.
create function private.outstanding_executions(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_unoffered bigint[];
  v_aside bigint[];
  v_rows jsonb;
begin
  if exists (select 1 from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= v_now and q.attempt = 0) then
    begin
      perform private.maintain_executions();  -- opens that were held back: their time is a matter of seconds
    exception when others then  -- the lease must be renewed all the same
      raise warning 'outstanding_executions: % (%)', sqlerrm, sqlstate;
    end;
  end if;
  v_aside := private.set_aside_executions();
  select array_agg(q.id) into v_unoffered
  from public.account_vps_assignments a
  join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
  where a.vps_id = p_vps and q.status = 'queued' and q.offered_at is null
    and (not private.opens(q) or q.queued_at > v_now - interval '5 s') and q.id <> all (v_aside);
  if v_unoffered is not null then
    perform private.offer_apart(v_unoffered, p_vps, v_now);
  end if;
  begin
    select coalesce(jsonb_agg(private.execution_json(q) order by q.priority, q.id), '[]') into v_rows
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.status in ('queued', 'executing', 'unknown') and q.offered_at is not null and q.id <> all (v_aside);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    v_rows := private.executions_apart(array(
      select q.id from public.account_vps_assignments a
      join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
      where a.vps_id = p_vps and q.status in ('queued', 'executing', 'unknown') and q.offered_at is not null and q.id <> all (v_aside)));
  end;
  return v_rows;
end $$;

create function private.cancel_requests(p_vps uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(q.id::text), '[]')
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.cancel_requested_at is not null);
end $$;

-- Symbols whose quotes an account's agent should report: those of open links and of its masters' open positions.
create function private.watched_symbols(p_account uuid) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(array_agg(distinct symbol), '{}') from (
      select l.symbol from public.position_links l where l.follower_account_id = p_account and l.state = 'live'
      union all
      select p.symbol from public.positions p where p.account_id = p_account and p.closed_at is null
      union all
      select w.name from public.copiers c cross join lateral private.symbols_of_existing(c) w
      where c.follower_account_id = p_account and c.existing_until is not null
    ) s);
end $$;

-- Whether the account's agent shall send another good snapshot: something is missing once, or the account is being flattened.
create function private.wants_snapshot(p_account uuid, p_copy_state text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_copy_state = 'flattening'
    or exists (select 1 from public.positions p where p.account_id = p_account and p.closed_at is null and p.absent_snapshots > 0);
end $$;

-- Whether the agent shall report the account's funds every second: something is open and a rule watches it.
create function private.watches_funds(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.protection_rules r where r.account_id = p_account and r.enabled)
    and exists (select 1 from public.positions p where p.account_id = p_account and p.closed_at is null);
end $$;

-- Accounts with something that time has changed, that no one else is planning at this moment.
create function private.lock_due(p_now timestamptz) returns uuid[]
language plpgsql security definer set search_path = '' as $$
declare
  v_due uuid[];
begin
  select array_agg(account_id) into v_due from (
    select q.account_id from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= p_now
    union
    select q.account_id from public.trade_execution_queue q
    where q.in_flight and q.status in ('queued', 'executing') and q.send_before < p_now - interval '5 s'
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.replan_at <= p_now
    union
    select l.follower_account_id from public.position_links l where l.wanted_lots is not null and l.wanted_until <= p_now
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.order_due_at <= p_now
    union
    select n.account_id from private.net_ledgers n where n.replan_at <= p_now
    union
    select a.id from public.trading_accounts a where a.copy_state = 'flattening'
    union
    select c.follower_account_id from public.copiers c where c.existing_until is not null
    union
    select unnest(private.with_followers(array(select f.account_id from private.faults f where f.retry_at <= p_now)))
  ) d;
  return array(select account_id from private.plan_locks where account_id = any (v_due) order by account_id for no key update skip locked);
end $$;

-- Offered, past its deadline, and its agent has gone: what became of it is unknown. Never offered and too late: expired.
create function private.judge_overdue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'unknown', updated_at = p_now
  where x.account_id = any (p_accounts) and x.status in ('queued', 'executing') and x.offered_at is not null and x.send_before < p_now - interval '5 s'
    and not exists (
      select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
      where a.account_id = x.account_id and a.epoch = x.epoch and v.lease_expires_at > p_now);
  for q in
    update public.trade_execution_queue x set status = 'expired', reason = 'follower_offline', finalized_at = p_now, updated_at = p_now
    where x.account_id = any (p_accounts) and x.status = 'queued' and x.offered_at is null and private.opens(x)
      and x.queued_at < p_now - interval '5 s'
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id;
  end loop;
  return v_links;
end $$;

-- Live links that time, or their account's state, asks to look at again; and for a netting account's surplus the link that left it.
create function private.links_due(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(select l.id from public.position_links l
  where l.follower_account_id = any (p_accounts) and l.state = 'live'
    and (l.replan_at <= p_now or l.wanted_until <= p_now or l.order_due_at <= p_now
      or exists (select 1 from private.net_ledgers n where n.account_id = l.follower_account_id and n.symbol = l.symbol and n.replan_at <= p_now)
      or exists (select 1 from public.trading_accounts a where a.id = l.follower_account_id and a.copy_state = 'flattening')))
  || array(select n.surplus_link_id from private.net_ledgers n
    where n.account_id = any (p_accounts) and n.surplus_lots <> 0 and n.replan_at <= p_now);
end $$;

create function private.keep_up(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.judge_overdue(p_accounts, p_now);
  v_new bigint[];
  v_account uuid;
begin
  v_links := coalesce(v_links, '{}') || private.links_due(p_accounts, p_now);
  v_new := coalesce(private.requeue(p_accounts, p_now), '{}') || coalesce(private.plan_again(v_links, p_now), '{}');
  for v_account in select a.id from public.trading_accounts a where a.id = any (p_accounts) and a.copy_state = 'flattening' loop
    v_new := v_new || private.plan_flatten(v_account, p_now);
  end loop;
  return v_new || private.decide_waiting_existing(p_accounts, p_now);
end $$;

-- What time changes: retries, deadlines, links that wait, flattening accounts. Called by maintain() and by heartbeats; safe to run at once.
-- All accounts at once, unless the planner fails on something, or did lately: then part by part.
create function private.maintain_executions() returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_accounts uuid[] := private.lock_due(clock_timestamp());
  v_now timestamptz := clock_timestamp();
  v_new bigint[];
  v_whole boolean;
begin
  if v_accounts is null or cardinality(v_accounts) = 0 then return; end if;
  v_whole := not exists (select 1 from private.faults f where f.account_id = any (v_accounts));
  if v_whole then
    begin
      v_new := private.keep_up(v_accounts, v_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      raise warning 'maintain_executions: part by part, for %: %', sqlstate, sqlerrm;
      v_whole := false;
    end;
  end if;
  if not v_whole then
    v_new := private.keep_up_apart(v_accounts, v_now) || private.retry_faults(v_accounts, v_now);
  end if;
  perform private.offer_apart(v_new, null, clock_timestamp());
end $$;

-- 49_warm_up.sql
-- A session that has never planned compiles and plans some eighty statements at its first trade, which takes several times as long as planning
-- the trade itself; and all of that again whenever a table's statistics change. So it is done beforehand, with nothing at hand: once in every
-- session that a report of an account comes to, and at each heartbeat (p_again). Nothing is written or locked, for no row fits.
-- The settings are those of the entry functions: the plans that are made here are the ones that they use.
create function private.warm_up(p_again boolean) returns void
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_nobody constant uuid := '00000000-0000-0000-0000-000000000000';
  v_now constant timestamptz := clock_timestamp();
begin
  if current_setting('tradecopier.warm', true) = 'yes' and not p_again then return; end if;
  perform set_config('tradecopier.warm', 'yes', false);
  begin
    perform private.event_error('{}'), private.report_error('{}');
    perform private.lock_with_followers(array[v_nobody]);
    perform private.links_of_tickets(v_nobody, array['']);
    perform private.plan(array[0], array[v_nobody], array[''], null, v_now);
    perform private.decide(array[v_nobody], array[''], null, v_now);
    perform private.explain_rest(v_nobody, array[0], array['opened'], array['']);
    perform private.book_fill(null, '{"positions": []}', v_now);
    perform private.take_usual_reports(v_nobody, '[]', v_now);
    perform private.settle(array[0], v_now);
    perform private.requeue(array[v_nobody], v_now);
    perform private.offer(array[0], v_nobody, v_now);
  exception when others then  -- a fault of the planner shows where it plans; an agent's lease must not hang on it
    raise warning 'warm_up: %', sqlerrm;
  end;
end $$;
comment on function private.warm_up(boolean) is 'Has this session compile and plan the planner''s statements before a trade needs them.';

-- 50_heartbeat.sql
-- What agents call about themselves and their accounts: vps_heartbeat, open_session, report_account_state,
-- account_credentials. docs/protocol.md says what goes in and out.

-- The only way to a topic: payload is always an object (realtime.send loses everything else without an error).
-- Security definer: its owner bypasses the policies of realtime.messages, by which nobody may write there.
create function private.broadcast(p_topic text, p_event text, p_payload jsonb) returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if jsonb_typeof(p_payload) is distinct from 'object' then
    raise exception 'broadcast payload: expected an object';
  end if;
  perform realtime.send(p_payload, p_event, p_topic, true);
end
$$;
comment on function private.broadcast(text, text, jsonb) is 'Sends an event to the private topic; a lost one is no error (the row is the truth).';


-- Holds for the transaction; false if another one runs this part just now.
create function private.take_turn(p_name text) returns boolean
language sql
set search_path = ''
as $$ select pg_try_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.take_turn(text) is 'Whether the caller may run this part of the clockwork now; the turn ends with its transaction.';


create function private.is_due(p_name text, p_every interval) returns boolean
language sql
set search_path = ''
as $$ select c.last_run_at < clock_timestamp() - p_every from private.clockwork c where c.name = p_name $$;
comment on function private.is_due(text, interval) is 'Whether this part of the clockwork last ran longer ago than that.';


-- What a heartbeat says about accounts. Only a change of state touches a row.
create function private.note_account_states(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
begin
  update public.trading_accounts a
  set status = told.status, status_reason = told.error
  from (
    select said.account_id, said.session, said.status, left(said.error, 500) as error
    from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text, error text)
    where said.status in ('connecting', 'connected', 'degraded', 'disconnected', 'halted')
  ) told
  join public.account_vps_assignments s on s.account_id = told.account_id
  join public.vps_instances v on v.id = s.vps_id
  where a.id = told.account_id and s.vps_id = p_vps
    -- An agent that names no session has opened none since it was started: what it says is older than a session that was opened since.
    and case when told.session is null then a.session_vps_id is distinct from p_vps or coalesce(a.session_opened_at < v.process_since, true)
      else told.session = a.session end
    and (a.status, a.status_reason) is distinct from (told.status, told.error);

  -- Every few seconds, and last of all: the row of a connected account says when it was last seen. Only when its session has told
  -- what it holds: a login is not a look, and a position opened during an outage would pass for new.
  update public.trading_accounts a set seen_at = now()
  from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
  join public.account_vps_assignments s on s.account_id = said.account_id
  where a.id = said.account_id and s.vps_id = p_vps and said.session = a.session and said.status in ('connected', 'degraded')
    and a.snapshot_session = said.session and (a.seen_at is null or a.seen_at < now() - interval '1 second');
end
$$;
comment on function private.note_account_states(uuid, jsonb) is 'Writes down what a heartbeat says about the connections of the VPS''s accounts.';


-- Trouble that only a person can mend. An agent's words begin with the code of what it found, or the login shows another account;
-- everything else mends itself.
create function private.alert_account_trouble() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_reason text := coalesce(substring(new.status_reason from '^([a-z][a-z_]{1,38}): '), case when new.status = 'halted' then 'account_halted' end);
begin
  if v_reason is not null then
    perform private.raise_alert(new.id, 'account', v_reason, 'critical',
      format('Account %s cannot trade: %s', new.name, coalesce(new.status_reason, 'the broker refused its login')),
      jsonb_build_object('status', new.status));
  end if;
  return null;
end
$$;
comment on function private.alert_account_trouble() is 'One alert when an account becomes degraded or halted; it is counted, not repeated, until it is seen.';

create trigger alert_trouble after update of status on public.trading_accounts for each row
  when (new.status in ('degraded', 'halted') and old.status is distinct from new.status and new.removed_at is null)
  execute function private.alert_account_trouble();


-- A VPS that lost an account and says {"status": "released"} for its last session has nothing in hand any more: the
-- next one need not wait for the old lease. Silence is no evidence.
create function private.note_releases(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_next uuid;
begin
  for v_next in
    with released as (
      update public.account_vps_assignments s
      set begins_at = least(s.begins_at, clock_timestamp()), previous_vps_id = null
      from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
      join public.trading_accounts a on a.id = said.account_id
      where s.account_id = said.account_id and s.previous_vps_id = p_vps and s.vps_id <> p_vps
        and said.status = 'released' and said.session = a.session and a.session_vps_id = p_vps
      returning s.vps_id
    )
    select distinct r.vps_id from released r
  loop
    perform private.broadcast('vps:' || v_next, 'assignments', '{}');
  end loop;
end
$$;
comment on function private.note_releases(uuid, jsonb) is 'Lets the next VPS begin where this one says that it let go of an account.';


-- p_account: this one only. p_blind: without what must be worked out; its figures are asked for then, in case a rule watches them.
create function private.assignments_of(p_vps uuid, p_account uuid default null, p_blind boolean default false) returns jsonb
language sql stable
set search_path = ''
as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'account_id', a.id, 'epoch', s.epoch, 'platform', a.platform, 'server', a.server, 'login', a.login, 'mode', a.mode,
    'currency', a.currency, 'settings', a.settings, 'begins_at', private.rfc3339(s.begins_at),
    'watch_symbols', case when p_blind then '[]' else to_jsonb(private.watched_symbols(a.id)) end,
    'watch_funds', p_blind or private.watches_funds(a.id), 'resync', not p_blind and private.wants_snapshot(a.id, a.copy_state)) order by a.id), '[]')
  from public.account_vps_assignments s
  join public.trading_accounts a on a.id = s.account_id
  where s.vps_id = p_vps and a.removed_at is null and (p_account is null or a.id = p_account)
$$;
comment on function private.assignments_of(uuid, uuid, boolean) is 'The accounts of a VPS as vps_heartbeat tells them.';


-- Security definer: agents have no right on any table. The hot path of an idle farm: one row is updated per call.
create function private.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_accounts jsonb := coalesce(p_heartbeat -> 'accounts', '[]');
  v_lease interval := private.setting_s('lease_s');
  v_tick interval := private.setting_s('tick_s');
  v_row public.vps_instances;
  v_begins_at timestamptz := private.admit_process(v_vps, p_heartbeat -> 'process');
  v_waits boolean := v_begins_at > clock_timestamp();
begin
  if jsonb_typeof(v_accounts) <> 'array' then
    raise exception using errcode = 'TC001', message = 'accounts: expected an array';
  end if;
  perform private.warm_up(true);  -- before anything is locked

  update public.vps_instances v
  set lease_expires_at = now() + v_lease,
      last_heartbeat_at = now(),
      status = case when v.status in ('enrolled', 'offline') then 'online' else v.status end,
      last_tick_at = case when v.last_tick_at > now() - v_tick then v.last_tick_at else now() end,
      agent_version = coalesce(private.text_of(p_heartbeat, 'agent_version', 50), v.agent_version),
      cpu_percent = private.numeric_of(p_heartbeat, 'cpu_percent'),
      memory_percent = private.numeric_of(p_heartbeat, 'memory_percent'),
      disk_percent = private.numeric_of(p_heartbeat, 'disk_percent'),
      rss_mb = private.numeric_of(p_heartbeat, 'rss_mb'),
      clock_offset_ms = private.numeric_of(p_heartbeat, 'offset_ms'),
      rtt_ms = private.numeric_of(p_heartbeat, 'rtt_ms'),
      process_beat = coalesce(private.int_of(p_heartbeat -> 'process', 'beat', 0, 9223372036854775807), v.process_beat)
  where v.id = v_vps and v.retired_at is null
  returning v.* into v_row;
  if not found then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  if v_row.last_tick_at = now() then
    perform private.broadcast('vps:' || v_vps, 'tick', jsonb_build_object('at', private.rfc3339(v_row.last_tick_at)));
  end if;

  -- Before any row of an account is touched: maintain() locks accounts in the planner's order.
  perform private.stand_in_for_scheduler();

  if v_accounts <> '[]' then
    begin
      perform private.note_account_states(v_vps, v_accounts);
      perform private.note_releases(v_vps, v_accounts);
    exception when data_exception then
      raise exception using errcode = 'TC001', message = 'accounts: an entry is not of the documented form', detail = sqlerrm;
    end;
  end if;

  return jsonb_build_object(
    'vps_id', v_vps, 'name', v_row.name, 'status', v_row.status, 'topic', 'vps:' || v_vps,
    'server_time', private.rfc3339(clock_timestamp()),
    'lease_ms', case when v_waits then 0 else round(extract(epoch from v_lease) * 1000)::integer end,
    'begins_at', private.rfc3339(nullif(v_begins_at, '-infinity')),
    'heartbeat_ms', round(extract(epoch from private.setting_s('heartbeat_s')) * 1000)::integer,
    'last_tick_at', private.rfc3339(v_row.last_tick_at),
    'assignments', private.assignments_apart(v_vps),
    'executions', case when v_waits then '[]' else private.outstanding_executions(v_vps) end,
    'cancel', private.cancel_requests(v_vps));
end
$$;
comment on function private.vps_heartbeat(jsonb) is 'Agents: renews the lease, returns assignments and everything outstanding (docs/protocol.md).';


-- Security definer: agents have no right on any table.
create function private.open_session(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account uuid := private.uuid_of(p_request, 'account_id');
  v_epoch bigint := private.int_of(p_request, 'epoch', 1, 9223372036854775807);
  v_session bigint;
  v_continues bigint;
  v_begins_at timestamptz;
begin
  -- After this lock, in statements of their own: a move of the account is either over or has not begun.
  perform private.lock_accounts(array[v_account]);
  perform private.require_assignment(v_vps, v_account, v_epoch);
  select case when a.session_vps_id = v_vps then nullif(a.session, 0) end, s.begins_at
  into v_continues, v_begins_at
  from public.trading_accounts a join public.account_vps_assignments s on s.account_id = a.id
  where a.id = v_account;
  update public.trading_accounts a
  set session = a.session + 1, session_vps_id = v_vps, session_opened_at = clock_timestamp(),
      status = 'connected', status_reason = null
  where a.id = v_account
  returning a.session into v_session;
  return jsonb_build_object('session', v_session, 'continues', v_continues, 'begins_at', private.rfc3339(v_begins_at));
end
$$;
comment on function private.open_session(jsonb) is 'Agents: {"account_id", "epoch"} -> {"session", "continues", "begins_at"} (docs/protocol.md).';


-- Specifications and quotes that an agent sends. A new symbol needs its whole specification, a known one only its name.
create function private.save_symbols(p_account uuid, p_symbols jsonb) returns void
language plpgsql
set search_path = ''
as $$
begin
  update public.account_symbols t
  set contract_size = coalesce(s.contract_size, t.contract_size), tick_size = coalesce(s.tick_size, t.tick_size),
      digits = coalesce(s.digits, t.digits), profit_currency = coalesce(s.profit_currency, t.profit_currency),
      margin_currency = coalesce(s.margin_currency, t.margin_currency), lots_min = coalesce(s.lots_min, t.lots_min),
      lots_max = coalesce(s.lots_max, t.lots_max), lots_step = coalesce(s.lots_step, t.lots_step),
      stops_level_points = coalesce(s.stops_level_points, t.stops_level_points),
      freeze_level_points = coalesce(s.freeze_level_points, t.freeze_level_points),
      trade_mode = coalesce(s.trade_mode, t.trade_mode),
      bid = case when newer.quote then s.bid else t.bid end, ask = case when newer.quote then s.ask else t.ask end,
      quoted_at = case when newer.quote then s.quoted_at else t.quoted_at end
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  cross join lateral (select s.quoted_at is not null and s.bid is not null and s.ask is not null) as given (quote),
    lateral (select given.quote and s.quoted_at >= coalesce((
      select old.quoted_at from public.account_symbols old where old.account_id = p_account and old.name = s.name), '-infinity')) as newer (quote)
  where t.account_id = p_account and t.name = s.name;

  insert into public.account_symbols (account_id, name, contract_size, tick_size, digits, profit_currency, margin_currency,
    lots_min, lots_max, lots_step, stops_level_points, freeze_level_points, trade_mode, bid, ask, quoted_at)
  select distinct on (s.name) p_account, s.name, s.contract_size, s.tick_size, s.digits, s.profit_currency,
    coalesce(s.margin_currency, s.profit_currency), s.lots_min, s.lots_max, s.lots_step,
    coalesce(s.stops_level_points, 0), coalesce(s.freeze_level_points, 0), coalesce(s.trade_mode, 'full'), s.bid, s.ask, s.quoted_at
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  where not exists (select from public.account_symbols t where t.account_id = p_account and t.name = s.name)
  order by s.name;
exception
  when data_exception or check_violation or not_null_violation then
    raise exception using errcode = 'TC001', message = 'symbols: an entry is not of the documented form', detail = sqlerrm,
      hint = 'A symbol that is new to the account needs its whole specification.';
end
$$;
comment on function private.save_symbols(uuid, jsonb) is 'Writes specifications and quotes of an account''s symbols; an older quote never overrules a newer one.';


-- Security definer: agents have no right on any table.
create function private.report_account_state(p_state jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account uuid := private.uuid_of(p_state, 'account_id');
  v_session bigint := private.int_of(p_state, 'session', 0, 9223372036854775807);
  v_status text := private.text_of(p_state, 'status', 20);
  v_equity numeric := private.numeric_of(p_state, 'equity');
  v_balance numeric := private.numeric_of(p_state, 'balance');
  v_symbols jsonb := coalesce(nullif(p_state -> 'symbols', 'null'), '[]');
  v_measured_at timestamptz := least(coalesce(private.time_of(p_state, 'measured_at'), now()), now());
  v_look_again_ms integer;
begin
  if octet_length(p_state::text) > 4000000 then
    raise exception using errcode = 'TC002', message = 'the payload is over 4 MB', hint = 'Send fewer symbols at once.';
  end if;
  perform private.require_assignment(v_vps, v_account, private.int_of(p_state, 'epoch', 1, 9223372036854775807));
  perform private.warm_up(false);
  if v_status is not null and v_status not in ('connecting', 'connected', 'degraded', 'disconnected', 'halted') then
    raise exception using errcode = 'TC001',
      message = 'status: expected connecting, connected, degraded, disconnected or halted', detail = v_status;
  end if;
  if jsonb_typeof(v_symbols) <> 'array' then
    raise exception using errcode = 'TC001', message = 'symbols: expected an array';
  end if;

  -- before any row of an account is touched: what a rule does is planned under the plan locks
  if v_balance is not null and v_equity is not null
    and exists (select 1 from public.protection_rules r where r.account_id = v_account and r.enabled)
  then
    v_look_again_ms := private.check_protection(v_vps, v_account, v_session, v_measured_at, v_equity, private.numeric_of(p_state, 'margin'));
  end if;

  begin
    -- The figures of an older reading change nothing. Without a session (the login failed) only the status counts.
    update public.trading_accounts a
    set status = coalesce(v_status, a.status),
        status_reason = case when v_status is null then a.status_reason else private.text_of(p_state, 'error', 500) end,
        currency = coalesce(private.text_of(p_state, 'currency', 10), a.currency),
        leverage = coalesce(private.int_of(p_state, 'leverage', 1, 100000), a.leverage),
        mode = coalesce(private.text_of(p_state, 'mode', 10), a.mode),
        balance = case when f.fresh then v_balance else a.balance end,
        equity = case when f.fresh then v_equity else a.equity end,
        margin = case when f.fresh then private.numeric_of(p_state, 'margin') else a.margin end,
        free_margin = case when f.fresh then private.numeric_of(p_state, 'free_margin') else a.free_margin end,
        funds_at = case when f.fresh then v_measured_at else a.funds_at end
    from (select b.id, v_balance is not null and v_equity is not null and v_measured_at >= coalesce(b.funds_at, '-infinity') as fresh
          from public.trading_accounts b where b.id = v_account) f
    where a.id = f.id and (v_session is null or (v_session = a.session and a.session_vps_id = v_vps));
  exception when check_violation then
    raise exception using errcode = 'TC001', message = 'currency or mode: not of the documented form', detail = sqlerrm;
  end;
  if not found then
    raise exception using errcode = 'TC208', message = 'this session of the account is over',
      detail = format('account %s, session %s', v_account, v_session), hint = 'A newer login was opened: stop using the old one.';
  end if;
  if v_symbols <> '[]' then
    perform private.save_symbols(v_account, v_symbols);
  end if;
  if v_balance is not null and v_equity is not null then
    insert into public.account_snapshots (account_id, at, balance, equity, margin, free_margin)
    values (v_account, date_bin(private.setting_s('snapshot_every_s'), v_measured_at, '2000-01-01'), v_balance, v_equity,
            private.numeric_of(p_state, 'margin'), private.numeric_of(p_state, 'free_margin'))
    on conflict (account_id, at) do nothing;
  end if;
  return jsonb_strip_nulls(jsonb_build_object('ok', true, 'look_again_ms', v_look_again_ms));
end
$$;
comment on function private.report_account_state(jsonb) is 'Agents: status, funds, symbols and quotes of an account (docs/protocol.md).';


-- Security definer: reads Vault, which no API role may.
create function private.account_credentials(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account public.trading_accounts;
  v_password text;
begin
  perform private.require_assignment(v_vps, private.uuid_of(p_request, 'account_id'),
                                     private.int_of(p_request, 'epoch', 1, 9223372036854775807));
  select a.* into v_account from public.trading_accounts a where a.id = private.uuid_of(p_request, 'account_id');
  select s.decrypted_secret into v_password from vault.decrypted_secrets s where s.id = v_account.secret_id;
  perform private.write_audit('credentials_read', 'trading_accounts', v_account.id::text, v_account.user_id,
                              jsonb_build_object('vps_id', v_vps, 'epoch', p_request -> 'epoch'));
  return jsonb_build_object('login', v_account.login, 'server', v_account.server, 'password', coalesce(v_password, ''),
                            'settings', v_account.settings);
end
$$;
comment on function private.account_credentials(jsonb) is 'Agents: {"account_id", "epoch"} of an account assigned to the caller now -> its broker login; audited.';


create function public.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.vps_heartbeat(p_heartbeat) $$;
comment on function public.vps_heartbeat(jsonb) is 'Agents: renews the lease, returns assignments and everything outstanding.';

create function public.open_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.open_session(p_request) $$;
comment on function public.open_session(jsonb) is 'Agents: {"account_id", "epoch"} -> {"session", "continues", "begins_at"}.';

create function public.report_account_state(p_state jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.report_account_state(p_state) $$;
comment on function public.report_account_state(jsonb) is 'Agents: status, funds, symbols and quotes of an account.';

create function public.account_credentials(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.account_credentials(p_request) $$;
comment on function public.account_credentials(jsonb) is 'Agents: the broker login of an account assigned to the caller now.';

grant execute on function
  private.vps_heartbeat(jsonb), public.vps_heartbeat(jsonb),
  private.open_session(jsonb), public.open_session(jsonb),
  private.report_account_state(jsonb), public.report_account_state(jsonb),
  private.account_credentials(jsonb), public.account_credentials(jsonb)
to authenticated;

-- 51_assign.sql
-- Which VPS works which account; and what users and operators call about accounts and VPSes.
--
-- Locks, always in this order: the turn "assign" (one placement at a time, so capacity cannot be overrun), plan_locks of
-- the accounts (no plan is made while an account moves), rows.

create function private.await_turn(p_name text) returns void
language sql
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.await_turn(text) is 'Like take_turn(), but waits for it.';


-- Right platform, lease alive, spare capacity; then beside most copy partners, then least loaded.
create function private.choose_vps(p_account uuid, p_only uuid) returns uuid
language sql stable
set search_path = ''
as $$
  with partners as (
    select case c.master_account_id when p_account then c.follower_account_id else c.master_account_id end as account_id
    from public.copiers c
    where c.removed_at is null and p_account in (c.master_account_id, c.follower_account_id)
  )
  select v.id
  from public.vps_instances v
  join public.trading_accounts a on a.id = p_account
  cross join lateral (
    select count(*) filter (where s.account_id <> p_account) as accounts,
           count(*) filter (where s.account_id in (select p.account_id from partners p)) as partners
    from public.account_vps_assignments s where s.vps_id = v.id
  ) load
  where v.status = 'online' and v.lease_expires_at > clock_timestamp() and a.platform = any (v.platforms)
    and load.accounts < v.capacity and (p_only is null or v.id = p_only)
  order by load.partners desc, load.accounts::numeric / v.capacity, v.name
  limit 1
$$;
comment on function private.choose_vps(uuid, uuid) is 'The best VPS for an account (or p_only, if it can take it); null: none.';


-- Moves the account if it has to or p_only says so; null: nobody can take it now. The caller holds the turn "assign".
create function private.place_account(p_account uuid, p_only uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid := private.choose_vps(p_account, p_only);
  v_old public.account_vps_assignments;
  v_new public.account_vps_assignments;
  v_last_session_vps uuid;
  v_old_lease timestamptz;
  v_send_before timestamptz;
begin
  if v_vps is null then
    return null;
  end if;
  perform private.lock_accounts(array[p_account]);
  select s.* into v_old from public.account_vps_assignments s where s.account_id = p_account;
  if v_old.vps_id = v_vps then
    return v_old;
  end if;
  select a.session_vps_id into v_last_session_vps from public.trading_accounts a where a.id = p_account and a.removed_at is null;
  if not found then
    return null;
  end if;
  -- A VPS that never opened a session for the account (and no longer can: it needs the lock that is held here) has
  -- nothing to wait for.
  if v_old.vps_id is not null and v_last_session_vps = v_old.vps_id then
    select v.lease_expires_at into v_old_lease from public.vps_instances v where v.id = v_old.vps_id;
    select max(q.send_before) into v_send_before from public.trade_execution_queue q
    where q.account_id = p_account and q.in_flight and q.offered_at is not null;
  end if;
  insert into public.account_vps_assignments as s (account_id, vps_id, epoch, begins_at, assigned_at)
  values (p_account, v_vps, coalesce(v_old.epoch, 0) + 1,
    greatest(clock_timestamp(), v_old.begins_at, v_old_lease, v_send_before), clock_timestamp())
  on conflict (account_id) do update
  set vps_id = excluded.vps_id, epoch = excluded.epoch, begins_at = excluded.begins_at, assigned_at = excluded.assigned_at,
      -- Two still to let go: the wait runs its full length.
      previous_vps_id = case when v_old_lease is not null and s.begins_at <= clock_timestamp() then s.vps_id end
  returning s.* into v_new;
  perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  if v_old.vps_id is not null then
    perform private.broadcast('vps:' || v_old.vps_id, 'assignments', '{}');
  end if;
  return v_new;
end
$$;
comment on function private.place_account(uuid, uuid) is 'Gives the account to the best VPS (or p_only) with a new epoch; null: none can take it.';


create function private.own_account(p_account uuid, p_operators_too boolean) returns public.trading_accounts
language plpgsql stable
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_service boolean := coalesce(auth.role(), '') = 'service_role';
  v_user uuid;
begin
  if not v_service then
    v_user := private.require_user();
  end if;
  select a.* into v_account from public.trading_accounts a where a.id = p_account and a.removed_at is null;
  if not found or not (v_service or v_account.user_id = v_user or (p_operators_too and private.is_operator())) then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours', detail = p_account::text,
      hint = 'Check the id.';
  end if;
  return v_account;
end
$$;
comment on function private.own_account(uuid, boolean) is 'The account, if the caller owns it or holds the service key (or is an operator, where they may); TC106 otherwise.';


-- A user, or the service key on behalf of the user named in the request.
create function private.acting_user(p_request jsonb) returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_user uuid;
begin
  if auth.role() = 'service_role' then
    v_user := private.uuid_of(p_request, 'user_id');
    if not exists (select from auth.users u where u.id = v_user) then
      raise exception using errcode = 'TC001', message = 'user_id: there is no such user', detail = v_user::text;
    end if;
    return v_user;
  end if;
  return private.require_user();
end
$$;
comment on function private.acting_user(jsonb) is 'The user for whom the caller acts: himself, or with the service key the one named by user_id.';


-- Security definer: writes trading_accounts and Vault.
create function private.connect_account(p_account jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.acting_user(p_account);
  v_platform text := private.text_of(p_account, 'platform', 50);
  v_server text := private.text_of(p_account, 'server', 200);
  v_login text := private.text_of(p_account, 'login', 100);
  v_password text := p_account ->> 'password';
  v_rules jsonb;
  v_account uuid;
  v_placed public.account_vps_assignments;
begin
  if v_platform is null or v_server is null or v_login is null then
    raise exception using errcode = 'TC001', message = 'platform, server and login are required';
  end if;
  v_rules := private.setting('platforms') -> v_platform;
  if v_rules is null then
    raise exception using errcode = 'TC001', message = format('platform: %s is not a platform', v_platform),
      hint = format('Use one of: %s.', (select string_agg(k, ', ' order by k) from jsonb_object_keys(private.setting('platforms')) k));
  end if;
  if (v_rules -> 'password') = 'true' and coalesce(v_password, '') = '' then
    raise exception using errcode = 'TC203', message = format('a %s account wants its password', v_platform),
      hint = 'Give the broker''s trading password, not the investor password.';
  end if;
  if length(v_password) > 1000 then
    raise exception using errcode = 'TC001', message = 'password: expected a string of at most 1000 characters';
  end if;
  if (select count(*) from public.trading_accounts a where a.user_id = v_user and a.removed_at is null)
     >= (private.setting('accounts_per_user_max') #>> '{}')::integer then
    raise exception using errcode = 'TC204', message = 'the limit of accounts per user is reached',
      detail = private.setting('accounts_per_user_max') #>> '{}', hint = 'Remove an account first.';
  end if;

  begin
    insert into public.trading_accounts (user_id, platform, server, login, name, mode, currency, settings)
    values (v_user, v_platform, v_server, v_login,
            coalesce(private.text_of(p_account, 'name', 100), left(v_login || ' · ' || v_server, 100)),
            coalesce(private.text_of(p_account, 'mode', 10), 'hedging'),
            coalesce(private.text_of(p_account, 'currency', 10), 'USD'),
            coalesce(nullif(p_account -> 'settings', 'null'), '{}'))
    returning id into v_account;
  exception
    when unique_violation then
      raise exception using errcode = 'TC202', message = 'this account is already connected',
        detail = format('%s, login %s at %s', v_platform, v_login, v_server),
        hint = 'An account can be connected once. To change its password call update_account.';
    when check_violation then
      raise exception using errcode = 'TC001', message = 'mode, currency or settings: not of the documented form', detail = sqlerrm;
  end;
  if coalesce(v_password, '') <> '' then
    update public.trading_accounts
    set secret_id = vault.create_secret(v_password, 'account:' || v_account, 'Broker password of a trading account')
    where id = v_account;
  end if;

  perform private.await_turn('assign');
  if p_account ? 'vps_id' then
    perform private.require_operator();
    v_placed := private.place_or_refuse(v_account, private.uuid_of(p_account, 'vps_id'));
  else
    v_placed := private.place_account(v_account, null);
  end if;
  return jsonb_build_object('account_id', v_account, 'vps_id', v_placed.vps_id);
end
$$;
comment on function private.connect_account(jsonb) is
  'Users: {"platform", "server", "login", "password", "name"?, "mode"?, "currency"?, "settings"?} -> {"account_id", "vps_id"}; vps_id null: placed as soon as a VPS can take it. With the service key also "user_id" and "vps_id".';


create function private.place_or_refuse(p_account uuid, p_vps uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_placed public.account_vps_assignments := private.place_account(p_account, p_vps);
begin
  if v_placed.vps_id is null and p_vps is null then
    raise exception using errcode = 'TC206', message = 'no VPS can take the account now', detail = p_account::text,
      hint = 'It is placed by itself as soon as one can. An operator adds a VPS or capacity.';
  elsif v_placed.vps_id is null then
    raise exception using errcode = 'TC207', message = 'this VPS cannot take the account', detail = p_vps::text,
      hint = 'It must be online, know the platform and have capacity left.';
  end if;
  return v_placed;
end
$$;
comment on function private.place_or_refuse(uuid, uuid) is 'place_account() that raises TC206 or TC207 instead of returning null.';


-- Security definer: writes account_vps_assignments.
create function private.assign_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), true);
  v_vps uuid := case when p_request ->> 'vps_id' is not null then private.uuid_of(p_request, 'vps_id') end;
  v_placed public.account_vps_assignments;
begin
  if v_vps is not null then
    perform private.require_operator();
  end if;
  perform private.await_turn('assign');
  -- Without a wish an account on a healthy VPS stays where it is: each move costs a pause.
  select s.* into v_placed from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id
  where s.account_id = v_account.id and v_vps is null and v.status = 'online' and v.lease_expires_at > clock_timestamp();
  if not found then
    v_placed := private.place_or_refuse(v_account.id, v_vps);
  end if;
  return jsonb_build_object('account_id', v_account.id, 'vps_id', v_placed.vps_id, 'epoch', v_placed.epoch,
                            'begins_at', private.rfc3339(v_placed.begins_at));
end
$$;
comment on function private.assign_account(jsonb) is
  'The owner or an operator: {"account_id"} -> {"account_id", "vps_id", "epoch", "begins_at"}. Operators may name a "vps_id".';


-- Security definer: writes trading_accounts and Vault.
create function private.update_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_password text := nullif(p_request ->> 'password', '');
  v_settings jsonb := nullif(p_request -> 'settings', 'null');
begin
  if length(v_password) > 1000 or jsonb_typeof(v_settings) <> 'object' then
    raise exception using errcode = 'TC001', message = 'password: expected a string of at most 1000 characters; settings: expected an object';
  end if;
  if v_password is not null and v_account.secret_id is null then
    v_account.secret_id := vault.create_secret(v_password, 'account:' || v_account.id, 'Broker password of a trading account');
  elsif v_password is not null then
    perform vault.update_secret(v_account.secret_id, v_password);
  end if;
  update public.trading_accounts
  set name = coalesce(private.text_of(p_request, 'name', 100), name), settings = coalesce(v_settings, settings),
      secret_id = v_account.secret_id
  where id = v_account.id;
  if v_password is not null then
    perform private.write_audit('password_changed', 'trading_accounts', v_account.id::text, v_account.user_id, '{}');
  end if;
  perform private.broadcast('vps:' || s.vps_id, 'assignments', '{}')
  from public.account_vps_assignments s where s.account_id = v_account.id;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.update_account(jsonb) is 'The owner: {"account_id", "name"?, "password"?, "settings"?} -> {"account_id"}.';


-- Security definer: writes trading_accounts, assignments and Vault.
create function private.remove_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_vps uuid;
begin
  perform private.await_turn('assign');
  perform private.lock_accounts(array[v_account.id]);
  if exists (select from public.copiers c
             where c.removed_at is null and v_account.id in (c.master_account_id, c.follower_account_id)) then
    raise exception using errcode = 'TC205', message = 'the account still takes part in copiers', detail = v_account.id::text,
      hint = 'Remove those copiers first; positions stay as they are.';
  end if;
  update public.trading_accounts
  set removed_at = clock_timestamp(), status = 'disconnected', status_reason = 'removed', secret_id = null
  where id = v_account.id and removed_at is null;
  if not found then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours', detail = v_account.id::text;
  end if;
  delete from vault.secrets s where s.id = v_account.secret_id;
  delete from public.account_vps_assignments s where s.account_id = v_account.id returning s.vps_id into v_vps;
  if v_vps is not null then
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end if;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.remove_account(jsonb) is 'The owner: {"account_id"} -> {"account_id"}; disconnects it and forgets its password. Its history stays.';


create function private.farm_vps(p_request jsonb) returns public.vps_instances
language plpgsql stable
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
begin
  select v.* into v_vps from public.vps_instances v where v.id = private.uuid_of(p_request, 'vps_id') and v.retired_at is null;
  if not found then
    raise exception using errcode = 'TC214', message = 'there is no such VPS, or it is retired', detail = p_request ->> 'vps_id',
      hint = 'Check the id.';
  end if;
  return v_vps;
end
$$;
comment on function private.farm_vps(jsonb) is 'The VPS that the request names by vps_id, not a retired one; TC214 otherwise.';


-- Moves what stands on VPSes that must not keep it, and what stands nowhere. The caller holds the turn "assign".
-- All locks of accounts are taken at once, in the planner's order.
create function private.place_homeless(p_limit integer) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_homeless uuid[];
  v_account uuid;
  v_moved integer := 0;
begin
  select array_agg(h.id) into v_homeless from (
    select a.id
    from public.trading_accounts a
    left join public.account_vps_assignments s on s.account_id = a.id
    left join public.vps_instances v on v.id = s.vps_id
    where a.removed_at is null and (v.id is null or v.status in ('offline', 'draining', 'retired'))
      and exists (select from public.vps_instances o
                  where o.status = 'online' and o.lease_expires_at > clock_timestamp() and a.platform = any (o.platforms)
                    and o.capacity > (select count(*) from public.account_vps_assignments t where t.vps_id = o.id))
    order by a.id
    limit p_limit
  ) h;
  if v_homeless is null then
    return 0;
  end if;
  perform private.lock_accounts(v_homeless);
  foreach v_account in array v_homeless loop
    v_moved := v_moved + ((private.place_account(v_account, null)).vps_id is not null)::integer;
  end loop;
  return v_moved;
end
$$;
comment on function private.place_homeless(integer) is 'Gives accounts of lost, draining and retired VPSes, and unassigned ones, to others; says how many moved.';


-- Security definer: writes vps_instances.
create function private.drain_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer := 0;
begin
  perform private.require_operator();
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  if coalesce(p_request ->> 'drain', 'true') = 'true' then
    update public.vps_instances set status = 'draining' where id = v_vps.id and status in ('enrolled', 'online', 'offline', 'draining');
    v_moved := private.place_homeless(500);
  else
    -- A lost one comes back with its next heartbeat.
    update public.vps_instances set status = case when lease_expires_at > now() then 'online' else 'offline' end
    where id = v_vps.id and status = 'draining';
  end if;
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.drain_vps(jsonb) is
  'Operators: {"vps_id", "drain": true} -> {"vps_id", "moved", "left"}. Accounts move as others can take them; "drain": false takes it back.';


-- Security definer: writes vps_instances.
create function private.retire_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer;
begin
  perform private.require_operator();
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  update public.vps_instances set status = 'retired', retired_at = clock_timestamp() where id = v_vps.id and retired_at is null;
  delete from private.vps_secrets s where s.vps_id = v_vps.id;
  v_moved := private.place_homeless(500);
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.retire_vps(jsonb) is 'Operators: {"vps_id"} -> {"vps_id", "moved", "left"}. For good, and at once: its agent is refused from now on.';


create function public.connect_account(p_account jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.connect_account(p_account) $$;
comment on function public.connect_account(jsonb) is
  'Users: {"platform", "server", "login", "password", "name"?, "mode"?, "currency"?, "settings"?} -> {"account_id", "vps_id"}.';

create function public.assign_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.assign_account(p_request) $$;
comment on function public.assign_account(jsonb) is 'The owner or an operator: {"account_id"} -> {"account_id", "vps_id", "epoch", "begins_at"}.';

create function public.update_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.update_account(p_request) $$;
comment on function public.update_account(jsonb) is 'The owner: {"account_id", "name"?, "password"?, "settings"?} -> {"account_id"}.';

create function public.remove_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.remove_account(p_request) $$;
comment on function public.remove_account(jsonb) is 'The owner: {"account_id"} -> {"account_id"}; disconnects it and forgets its password.';

create function public.drain_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.drain_vps(p_request) $$;
comment on function public.drain_vps(jsonb) is 'Operators: {"vps_id", "drain"?} -> {"vps_id", "moved", "left"}.';

create function public.retire_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.retire_vps(p_request) $$;
comment on function public.retire_vps(jsonb) is 'Operators: {"vps_id"} -> {"vps_id", "moved", "left"}; for good.';

grant execute on function
  private.connect_account(jsonb), public.connect_account(jsonb),
  private.assign_account(jsonb), public.assign_account(jsonb),
  private.update_account(jsonb), public.update_account(jsonb),
  private.remove_account(jsonb), public.remove_account(jsonb),
  private.drain_vps(jsonb), public.drain_vps(jsonb),
  private.retire_vps(jsonb), public.retire_vps(jsonb)
to authenticated, service_role;

-- 52_maintain.sql
-- maintain(): what the farm does by the clock. pg_cron runs it, and a heartbeat runs it when pg_cron did not (hosted's has
-- been seen dead for weeks). One run at a time; each part may fail without the others; every part may run again at once.

-- A VPS is judged only if the database was there for its heartbeats: after a gap in the runs all leases are extended once,
-- or a database outage would move the whole farm. A row that is locked belongs to a heartbeat under way.
create function private.judge_leases(p_gap interval) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_lease interval := private.setting_s('lease_s');
begin
  if p_gap > v_lease / 2 then
    update public.vps_instances v
    set lease_expires_at = clock_timestamp() + v_lease
    where v.id = any (array(
      select w.id from public.vps_instances w
      where w.status in ('online', 'draining') and w.lease_expires_at < clock_timestamp() + v_lease
      for no key update skip locked));
    return;
  end if;
  update public.vps_instances v set status = 'offline'
  where v.id = any (array(
    select w.id from public.vps_instances w
    where w.status = 'online' and w.lease_expires_at < clock_timestamp()
    for no key update skip locked));
end
$$;
comment on function private.judge_leases(interval) is 'Marks VPSes offline whose lease is over; after a gap in the runs it extends the leases instead.';


-- Idle agents heartbeat every five seconds, but a tick must come even to one whose heartbeats fail.
create function private.send_ticks() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid;
begin
  for v_vps in
    update public.vps_instances v set last_tick_at = now()
    where v.id = any (array(
      select w.id from public.vps_instances w
      where w.status in ('online', 'draining', 'offline')
        and coalesce(w.last_tick_at, '-infinity') <= now() - private.setting_s('tick_s')
      for no key update skip locked))
    returning v.id
  loop
    perform private.broadcast('vps:' || v_vps, 'tick', jsonb_build_object('at', private.rfc3339(now())));
  end loop;
end
$$;
comment on function private.send_ticks() is 'A tick to every VPS topic that had none for tick_s.';


create function private.log_health() returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into public.connection_health_logs (at, kind, vps_id, status, accounts, heartbeat_age_ms, rtt_ms, clock_offset_ms,
    cpu_percent, memory_percent, disk_percent, rss_mb)
  select date_trunc('minute', clock_timestamp()), 'minute', v.id, v.status,
    (select count(*) from public.account_vps_assignments s where s.vps_id = v.id),
    round(extract(epoch from clock_timestamp() - v.last_heartbeat_at) * 1000, 1), v.rtt_ms, v.clock_offset_ms,
    v.cpu_percent, v.memory_percent, v.disk_percent, v.rss_mb
  from public.vps_instances v
  where v.retired_at is null
  on conflict (vps_id, at) where kind = 'minute' do nothing;
end
$$;
comment on function private.log_health() is 'One health row per VPS for this minute.';


-- Small batches: a table that fell behind catches up over many runs instead of locking for long.
create function private.delete_expired() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_batch integer := (private.setting('retention_batch') #>> '{}')::integer;
begin
  delete from public.connection_health_logs where id = any (array(
    select l.id from public.connection_health_logs l
    where l.at < now() - private.setting_days('retention_days.connection_health_logs') order by l.at limit v_batch));
  delete from public.account_snapshots where ctid = any (array(
    select s.ctid from public.account_snapshots s
    where s.at < now() - private.setting_days('retention_days.account_snapshots') order by s.at limit v_batch));
  delete from public.alerts where id = any (array(
    select a.id from public.alerts a
    where a.updated_at < now() - private.setting_days('retention_days.alerts') order by a.updated_at limit v_batch));
  delete from public.protection_looks where id = any (array(
    select l.id from public.protection_looks l
    where l.created_at < now() - private.setting_days('retention_days.protection_looks') order by l.created_at limit v_batch));
  delete from public.audit_log where id = any (array(
    select l.id from public.audit_log l
    where l.at < now() - private.setting_days('retention_days.audit_log') order by l.at limit v_batch));
  delete from public.enrollment_tokens where id = any (array(
    select t.id from public.enrollment_tokens t
    where t.expires_at < now() - private.setting_days('retention_days.enrollment_tokens') limit v_batch));
  delete from private.event_keys where ctid = any (array(
    select k.ctid from private.event_keys k
    where k.received_at < now() - private.setting_days('retention_days.event_keys') order by k.received_at limit v_batch));
  delete from public.copy_outcomes where ctid = any (array(
    select o.ctid from public.copy_outcomes o
    where o.decided_at < now() - private.setting_days('retention_days.copy_outcomes') order by o.decided_at limit v_batch));
  delete from public.trade_execution_queue where id = any (array(
    select q.id from public.trade_execution_queue q
    where q.finalized_at is not null and q.updated_at < now() - private.setting_days('retention_days.trade_execution_queue')
    order by q.updated_at limit v_batch));
  -- An ended link latches its decision for as long as the master's position lives.
  delete from public.position_links where id = any (array(
    select k.id from public.position_links k
    where k.state = 'ended' and k.ended_at < now() - private.setting_days('retention_days.positions')
      and not exists (select from public.positions p where p.account_id = k.master_account_id
                      and p.ticket = k.master_ticket and p.closed_at is null)
    order by k.ended_at limit v_batch));
  delete from public.positions where ctid = any (array(
    select p.ctid from public.positions p
    where p.closed_at < now() - private.setting_days('retention_days.positions')
      and not exists (select from public.position_links k where k.master_account_id = p.account_id and k.master_ticket = p.ticket
                      and k.ended_at is null)  -- a frozen copy still has to be closed
    order by p.closed_at limit v_batch));
end
$$;
comment on function private.delete_expired() is 'Deletes a batch of what is past its retention from every growing table; trade_events lose whole partitions.';


-- Statistics of the planner's tables when they have doubled: autovacuum looks once a minute at most, and until then every plan of a new
-- installation, or of a burst, is made for tables that it believes to be tiny. Not oftener, for new statistics make every session plan anew.
create function private.refresh_statistics() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_table regclass;
begin
  for v_table in
    select c.oid from pg_catalog.pg_class c
    join pg_catalog.pg_stat_user_tables s on s.relid = c.oid
    where c.oid = any (array['public.positions', 'public.position_links', 'private.link_legs', 'public.trade_execution_queue',
        'public.copy_outcomes', 'private.event_keys', 'public.copiers', 'public.trading_accounts', 'public.account_symbols']::regclass[])
      and s.n_mod_since_analyze > 2000 + greatest(c.reltuples, 0)
  loop
    execute format('analyze %s', v_table);
  end loop;
end
$$;
comment on function private.refresh_statistics() is 'Analyses those tables of the planner that have doubled since they were last looked at.';


create function private.note_run(p_name text, p_error text) returns void
language sql
set search_path = ''
as $$ update private.clockwork set last_run_at = clock_timestamp(), last_error = p_error where name = p_name $$;
comment on function private.note_run(text, text) is 'Notes that a part of the clockwork ran, and what went wrong.';


-- A part that fails is undone, noted and tried again the next time; it never takes the others with it.
create function private.run_part(p_part text, p_gap interval) returns text
language plpgsql
set search_path = ''
as $$
begin
  case p_part
    when 'leases' then
      perform private.judge_leases(p_gap);
    when 'executions' then
      perform private.maintain_executions();
    when 'trading' then
      perform private.settle_trading();
    when 'removals' then
      perform private.finish_removals();
    when 'ticks' then
      perform private.send_ticks();
    when 'health' then
      perform private.log_health();
      perform private.note_run('health', null);
    when 'retention' then
      perform private.delete_expired();
      perform private.note_run('retention', null);
    when 'statistics' then
      perform private.refresh_statistics();
    when 'partitions' then
      perform private.make_partitions();
      perform private.note_run('partitions', null);
  end case;
  return null;
exception when others then
  raise warning 'maintain: part % failed: % (%)', p_part, sqlerrm, sqlstate;
  return format('%s: %s (%s)', p_part, sqlerrm, sqlstate);
end
$$;
comment on function private.run_part(text, interval) is 'Runs one part of maintain(); returns what went wrong, null if nothing did.';


create function private.place_part() returns integer
language plpgsql
set search_path = ''
as $$
begin
  return private.place_homeless(500);
exception when others then
  raise warning 'maintain: placing accounts failed: % (%)', sqlerrm, sqlstate;
  return 0;
end
$$;
comment on function private.place_part() is 'place_homeless() as a part of maintain(): its failure is a warning.';


-- Security definer: it is run by pg_cron and inside an agent's heartbeat.
create function private.maintain() returns jsonb
language plpgsql security definer
set search_path = ''
set lock_timeout = '3s'
as $$
declare
  v_last_run_at timestamptz;
  v_errors text[] := '{}';
  v_moved integer := 0;
begin
  if not private.take_turn('maintain') then
    return jsonb_build_object('ran', false);
  end if;
  select c.last_run_at into v_last_run_at from private.clockwork c where c.name = 'maintain';
  v_errors := v_errors || private.run_part('trading', null);
  v_errors := v_errors || private.run_part('leases', clock_timestamp() - v_last_run_at);
  -- Only if nobody is placing just now: a heartbeat holds its own row, for which that one may wait.
  if private.take_turn('assign') then
    v_moved := private.place_part();
  end if;
  -- Both lock accounts in order, but one after the other would not be in order: the moved ones wait for the next run.
  if v_moved = 0 then
    v_errors := v_errors || private.run_part('executions', null);
  end if;
  v_errors := v_errors || private.run_part('removals', null);
  v_errors := v_errors || private.run_part('ticks', null);
  if private.is_due('health', '15 seconds') then
    v_errors := v_errors || private.run_part('health', null);
  end if;
  v_errors := v_errors || private.run_part('statistics', null);
  if private.is_due('retention', '1 minute') then
    v_errors := v_errors || private.run_part('retention', null);
  end if;
  if private.is_due('partitions', '1 hour') then
    v_errors := v_errors || private.run_part('partitions', null);
  end if;
  v_errors := array_remove(v_errors, null);
  perform private.note_run('maintain', nullif(array_to_string(v_errors, '; '), ''));
  return jsonb_build_object('ran', true, 'moved', v_moved, 'errors', to_jsonb(v_errors));
end
$$;
comment on function private.maintain() is 'Leases, failover, executions, ticks, health, retention, partitions. Harmless to run at any time, by several at once.';


-- Which users see something new since the last ring. Nothing is written where trades are: a change is found by its time,
-- and by the number of the transaction that made it. The time is that of the transaction's beginning, so the window reaches
-- back further than a statement of the API may take (8 s); the number says whether the last ring can have seen it.
create function private.news(p_since timestamptz, p_xmin bigint) returns table (topic text)
language sql stable
set search_path = ''
as $$
  with snapshot (xmax) as (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint),
  fresh (user_id, xid) as (
    select q.user_id, q.xmin from public.trade_execution_queue q where q.updated_at > p_since
    union all
    select e.user_id, e.xmin from public.trade_events e where e.received_at > p_since
    union all
    select a.user_id, a.xmin from public.trading_accounts a where a.updated_at > p_since
    union all
    select c.user_id, c.xmin from public.copiers c where c.updated_at > p_since
    union all
    select r.user_id, r.xmin from public.protection_rules r where r.updated_at > p_since
    union all
    select l.user_id, l.xmin from public.alerts l where l.updated_at > p_since
    union all
    select null, h.xmin from public.connection_health_logs h where h.at > p_since and h.kind = 'state'
  ),
  -- xmin has 32 bits, the snapshot 64: the same number modulo 2^32, not above the snapshot.
  unseen as (
    select f.user_id from fresh f, snapshot s
    where s.xmax - mod(s.xmax - f.xid::text::bigint + 4294967296, 4294967296) >= p_xmin
    group by f.user_id
  )
  select 'user:' || u.user_id from unseen u where u.user_id is not null
  union all
  select 'operators' where exists (select from unseen)
$$;
comment on function private.news(timestamptz, bigint) is 'Topics of dashboards with something new: changed after p_since by a transaction that was not surely over at the last ring.';


-- Security definer: it is run by pg_cron and inside an agent's heartbeat.
create function private.ring_doorbells() returns integer
language plpgsql security definer
set search_path = ''
as $$
declare
  v_last private.clockwork;
  v_xmin bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  v_topic text;
  v_rung integer := 0;
begin
  if not private.take_turn('doorbells') then
    return 0;
  end if;
  select c.* into v_last from private.clockwork c where c.name = 'doorbells';
  -- Slightly under a second: a scheduler that is early by a hair must not make it two.
  if v_last.last_run_at > clock_timestamp() - interval '0.9 seconds' then
    return 0;
  end if;
  insert into private.doorbells as d (topic, changed_at, due)
  select n.topic, clock_timestamp(), true
  from private.news(greatest(v_last.last_run_at, clock_timestamp() - interval '1 minute') - interval '15 seconds', v_last.last_xmin) n
  on conflict (topic) do update set due = true, changed_at = excluded.changed_at where not d.due;
  for v_topic in
    update private.doorbells d set due = false, rung_at = clock_timestamp()
    where d.topic = any (array(
      select e.topic from private.doorbells e where e.due order by e.topic <> 'operators', e.changed_at
      limit (private.setting('doorbells_max') #>> '{}')::integer))
    returning d.topic
  loop
    perform private.broadcast(v_topic, 'changed', '{}');
    v_rung := v_rung + 1;
  end loop;
  update private.clockwork set last_run_at = clock_timestamp(), last_xmin = v_xmin where name = 'doorbells';
  return v_rung;
end
$$;
comment on function private.ring_doorbells() is
  'Rings every dashboard topic with something new, each at most once per second and after the change; says how many.';


-- In every heartbeat: two lookups while pg_cron does its work.
create function private.stand_in_for_scheduler() returns void
language plpgsql
set search_path = ''
as $$
begin
  if private.is_due('maintain', private.setting_s('maintain_s')) then
    perform private.maintain();
  end if;
  if private.is_due('doorbells', private.setting_s('doorbells_s')) then
    perform private.ring_doorbells();
  end if;
exception when others then
  -- The lease must be renewed whatever happens to the chores.
  raise warning 'stand_in_for_scheduler: % (%)', sqlerrm, sqlstate;
end
$$;
comment on function private.stand_in_for_scheduler() is 'Runs maintain() and ring_doorbells() when nobody else did lately; never raises.';


create function public.maintain() returns jsonb
language sql
set search_path = ''
as $$ select private.maintain() $$;
comment on function public.maintain() is 'Service key: runs maintain() now. It runs by itself every few seconds.';

grant execute on function private.maintain(), public.maintain() to service_role;

-- 53_existing.sql
-- What the master holds when a copier is made: decided once, then or as soon as there are quotes to tell by.

-- Why a position that is asked for is not opened now, or null. Unknown is not open: a master that nobody watches may have closed it.
create function private.asked_too_late(p_asked text, p_copier public.copiers, p_position public.positions, p_master public.trading_accounts,
  p_symbol public.account_symbols, p_side text, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_master.status <> 'connected' or not exists (
    select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
    where a.account_id = p_master.id and v.retired_at is null and v.lease_expires_at > p_now) then
    return 'master_offline';
  end if;
  if p_asked = 'existing' and p_copier.copy_existing = 'near' and p_position.kind = 'position' then
    if not private.quote_is_fresh(p_symbol, p_now) then return 'no_quote'; end if;
    if abs(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end - p_position.price)
      > p_copier.copy_existing_points * power(10::numeric, -p_symbol.digits) then
      return 'price_moved';
    end if;
  end if;
  return null;
end $$;

create function private.quote_is_fresh(p_symbol public.account_symbols, p_now timestamptz) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce(p_symbol.bid > 0 and p_symbol.ask > 0 and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s'), false);
end $$;

-- The symbols of its follower that a copier waits for a quote of: those of what its master held when it was made.
create function private.symbols_of_existing(p_copier public.copiers) returns setof public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
begin
  select * into v_follower from public.trading_accounts where id = p_copier.follower_account_id;
  return query
  select s.* from (
    select distinct p.symbol from public.positions p
    where p.account_id = p_copier.master_account_id and p.closed_at is null and p.kind = 'position' and p.first_seen_at < p_copier.started_at
  ) p
  join public.account_symbols m on m.account_id = p_copier.master_account_id and m.name = p.symbol
  left join public.symbol_mappings y on y.copier_id = p_copier.id and y.master_symbol = p.symbol
  join lateral (select (private.follower_symbol(v_follower, m)).name) f (name) on true
  join public.account_symbols s on s.account_id = v_follower.id and s.name = coalesce(y.follower_symbol, f.name);
end $$;

-- A new copier, whose accounts the caller has locked.
create function private.copy_existing(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_copier.copy_existing = 'none' then return; end if;
  if p_copier.copy_existing = 'near' and exists (
    select 1 from private.symbols_of_existing(p_copier) s where not private.quote_is_fresh(s, p_now)) then
    -- the follower's agent quotes what is watched: it is asked, and the next maintain() looks again
    update public.copiers set existing_until = p_now + private.setting_s('existing_wait_s') where id = p_copier.id;
    return;
  end if;
  perform private.offer(private.decide_existing(p_copier, p_now), null, clock_timestamp());
end $$;

create function private.decide_existing(p_copier public.copiers, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_new bigint[];
begin
  update public.copiers set existing_until = null where id = p_copier.id and existing_until is not null;
  select array_agg(p.account_id order by p.first_seen_at, p.ticket), array_agg(p.ticket order by p.first_seen_at, p.ticket)
  into v_masters, v_tickets from public.positions p
  where p.account_id = p_copier.master_account_id and p.closed_at is null and p.first_seen_at < p_copier.started_at;
  if v_masters is null then return '{}'; end if;
  v_new := private.decide(v_masters, v_tickets, array[p_copier.id], p_now, 'existing');
  return coalesce(v_new, '{}') || coalesce(private.plan_nets(array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id), p_now), '{}');
end $$;

-- Copiers whose quotes have come, or will not come; of followers that the caller has locked.
create function private.decide_waiting_existing(p_followers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_new bigint[] := '{}';
begin
  for v_copier in
    select c.* from public.copiers c where c.follower_account_id = any (p_followers) and c.existing_until is not null order by c.id
  loop
    if v_copier.removed_at is not null then
      update public.copiers set existing_until = null where id = v_copier.id;
    elsif v_copier.existing_until <= p_now or not exists (
      select 1 from private.symbols_of_existing(v_copier) s where not private.quote_is_fresh(s, p_now)) then
      v_new := v_new || private.decide_existing(v_copier, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- 53_pending.sql
-- Pending orders: what the copier itself has to do about the copy of one, beside following its master's. Called by the planner for links that
-- were made from an order, when something changed and when their time has come (order_due_at).

-- The text a broker shows with a copy: {master}, {ticket} and {copier} stand for names of what it copies. Platforms cut it as they must;
-- nothing depends on it, for copies are known by their tags.
create function private.copy_comment(p_copier public.copiers, p_ticket text) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_copier.comment not like '%{%' then return p_copier.comment; end if;
  return left(replace(replace(replace(p_copier.comment, '{ticket}', p_ticket), '{copier}', p_copier.name), '{master}',
    (select coalesce(nullif(a.name, ''), a.login) from public.trading_accounts a where a.id = p_copier.master_account_id)), 100);
end $$;

-- Why the copy of an order that has filled at the master may not be opened at the market now; null: it may.
create function private.no_conversion(p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_now timestamptz)
returns text
language plpgsql stable set search_path = '' as $$
declare
  v_adverse numeric;
  v_shut text;
begin
  select private.shut(private.trading_state(), a.copy_state, a.copy_state_reason, p_copier.mode, p_copier.removal) into v_shut
  from public.trading_accounts a where a.id = p_copier.follower_account_id;
  if v_shut is not null then return v_shut; end if;
  -- the grace was our own wait: it does not make the news older
  if p_now > private.convertible_until(p_copier, p_master) then return 'too_old'; end if;
  if p_copier.max_slippage_points is not null then
    if not private.is_fresh(p_symbol, p_now) then return 'no_quotes'; end if;
    v_adverse := case p_side when 'buy' then p_symbol.ask - p_master.price else p_master.price - p_symbol.bid end;
    if v_adverse > p_copier.max_slippage_points * 10::numeric ^ -p_symbol.digits then return 'slippage'; end if;
  end if;
  return null;
end $$;

create function private.convertible_until(p_copier public.copiers, p_master public.positions) returns timestamptz
language plpgsql immutable set search_path = '' as $$
begin
  return p_master.unseen_at + make_interval(secs => (p_copier.max_age_ms + p_copier.pending_grace_ms) / 1000.0);
end $$;

-- Queues the cancelling of everything pending that a link holds.
create function private.queue_cancel(p_link public.position_links, p_event bigint, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_step bigint := nextval('public.trade_execution_queue_id_seq');
  v_new bigint[];
begin
  with placed as (
    insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id, action, priority,
      symbol, side, lots, target_lots, ticket, send_before, queued_at, updated_at)
    select v_step, p_link.id, p_link.id::text, p_link.copier_id, p_link.user_id, p_link.follower_account_id, p_link.master_account_id, p_event,
      'cancel', 10, p_link.symbol, p_link.side, g.lots, 0, g.ticket, p_now, p_now, p_now
    from private.link_legs g where g.link_id = p_link.id and g.kind = 'order'
    returning id
  )
  select array_agg(id) into v_new from placed;
  return v_new;
end $$;

-- Queues the market order that takes the place of a cancelled one.
create function private.queue_conversion(
  p_link public.position_links, p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_now timestamptz
) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.first_levels(p_copier, p_master, p_symbol, p_link.side, null, p_now);
  v_new bigint := nextval('public.trade_execution_queue_id_seq');
begin
  insert into public.trade_execution_queue (id, step_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id, action,
    priority, symbol, side, lots, sl, tp, max_slippage_points, master_price, master_lots, comment, warnings, retry_until, send_before,
    detected_at, queued_at, updated_at)
  overriding system value
  values (v_new, v_new, p_link.id, p_link.id::text, p_link.copier_id, p_link.user_id, p_link.follower_account_id, p_link.master_account_id,
    p_master.last_event_id, 'open', 40, p_link.symbol, p_link.side, p_link.wanted_lots, v_levels.sent_sl, v_levels.sent_tp,
    p_copier.max_slippage_points, p_master.price, p_master.lots, private.copy_comment(p_copier, p_master.ticket), v_levels.warnings,
    p_now + make_interval(secs => p_copier.retry_window_s), p_now, p_master.detected_at, p_now, p_now);
  update public.position_links l set wanted_lots = null, wanted_until = null, asked_price = null, asked_sl = v_levels.sl, asked_tp = v_levels.tp
  where l.id = p_link.id;
  return v_new;
end $$;

create function private.end_order(p_link bigint, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'ended', reason = p_reason, ended_at = p_now, replan_at = null, order_due_at = null,
    wanted_lots = null, wanted_until = null
  where l.id = p_link and l.ended_at is null;
end $$;

-- The master's order has filled into a position that its netting account held before. Where that is copied, too, and grew by the fill, what the
-- order's copy has filled becomes part of that copy, and the increase is done. True if so; else the copy of the order is closed or cancelled
-- like any other of an order that is gone, and the position's own copy follows its position.
create function private.join_filled_order(p_link public.position_links, p_filled numeric, p_now timestamptz) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_into public.position_links;
  v_master numeric;
  v_base numeric;
  v_asked boolean;  -- its levels stand as they are wanted: those of the order's copy may not
begin
  select l.* into v_into
  from public.positions o
  join public.position_links l on l.master_account_id = o.account_id and l.master_ticket = o.replaced_by and l.ended_at is null
  where o.account_id = p_link.master_account_id and o.ticket = p_link.master_ticket and l.copier_id = p_link.copier_id and l.side = p_link.side
    and l.symbol = p_link.symbol and l.base_lots is not null and l.wanted_lots is null and l.asked_price is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
  select m.lots into v_master from public.positions m where m.account_id = v_into.master_account_id and m.ticket = v_into.master_ticket;
  if v_into.id is null or v_master <= v_into.seen_master_lots is not false then return false; end if;
  select (s.asked_sl, s.asked_tp) is not distinct from (s.wanted_sl, s.wanted_tp),
    private.target_lots(s.base_lots, s.seen_master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots)
  into v_asked, v_base from private.link_states s where s.id = v_into.id;
  -- like every fill it rebases the pair: the order may have been copied at another ratio
  update public.position_links l set base_lots = v_base + p_filled, base_master_lots = least(v_master, l.seen_master_lots + p_link.seen_master_lots),
    seen_master_lots = least(v_master, l.seen_master_lots + p_link.seen_master_lots),
    asked_sl = case when v_asked then p_link.asked_sl else l.asked_sl end, asked_tp = case when v_asked then p_link.asked_tp else l.asked_tp end
  where l.id = v_into.id;
  update private.link_legs g set link_id = v_into.id where g.link_id = p_link.id;
  perform private.end_order(p_link.id, 'coalesced', p_now);
  return true;
end $$;

-- What the copier does about the orders of these links that have nothing in flight. Returns new executions.
create function private.mind_orders(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_state record;
  v_link public.position_links;
  v_new bigint[] := '{}';
begin
  for v_state in
    select s.id, s.master_kind, s.master_lots, s.doomed, s.frozen, s.copy_state, s.position_lots, s.order_lots, s.master_event_id,
      exists (select 1 from public.positions o
        where o.account_id = s.master_account_id and o.ticket = s.master_ticket and o.kind = 'order' and o.replaced_by is not null) as replaced
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.asked_price is not null and s.executions = 0
  loop
    select * into v_link from public.position_links l where l.id = v_state.id;
    if v_state.replaced then  -- it has filled: no policy for orders that never did concerns it
      if v_state.position_lots > 0 and v_state.order_lots = 0 and not v_state.frozen and v_state.copy_state <> 'flattening' then
        perform private.join_filled_order(v_link, v_state.position_lots, p_now);
      end if;
      update public.position_links l set order_due_at = null where l.id = v_state.id and l.ended_at is null and l.order_due_at <= p_now;
    elsif v_state.master_kind = 'order' then
      v_new := v_new || private.mind_waiting_order(v_link, v_state.master_event_id, v_state.master_lots = 0, v_state.doomed or v_state.frozen,
        v_state.copy_state = 'flattening', v_state.position_lots, v_state.order_lots, p_now);
    else
      v_new := v_new || private.mind_filled_order(v_link, v_state.doomed or v_state.frozen, v_state.position_lots, v_state.order_lots, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- While the master's order waits (or was cancelled, p_gone): its expiry, also when nobody tells of it, and a copy that has filled first.
create function private.mind_waiting_order(
  p_link public.position_links, p_event bigint, p_gone boolean, p_stop boolean, p_flattening boolean, p_filled numeric, p_orders numeric,
  p_now timestamptz
) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_policy text;
  v_new bigint[];
begin
  if p_gone and p_filled > 0 and p_orders = 0 and not p_flattening then
    select c.early_fill_policy into v_policy from public.copiers c where c.id = p_link.copier_id;
    if v_policy = 'keep' then
      perform private.end_order(p_link.id, 'master_never_filled', p_now);
    elsif not 'master_never_filled' = any (p_link.warnings) then
      update public.position_links l set warnings = l.warnings || 'master_never_filled'::text where l.id = p_link.id;
    end if;
  elsif not p_stop and p_filled = 0 and p_link.asked_expires_at <= p_now + interval '2 s' then
    if p_orders = 0 then  -- its broker's clock may be a little ahead
      perform private.end_order(p_link.id, 'order_expired', p_now);
    elsif p_link.asked_expires_at + interval '1 s' <= p_now and (p_link.replan_at is null or p_link.replan_at <= p_now) then
      v_new := private.queue_cancel(p_link, p_event, p_now);
    end if;
  end if;
  if p_link.order_due_at <= p_now then
    update public.position_links l set order_due_at = null where l.id = p_link.id and l.ended_at is null;
  end if;
  return coalesce(v_new, '{}');
end $$;

-- The master's order has filled. The copy is given its grace; then it is opened at the market in place of its order: the order is cancelled
-- first, and only when it is known to be gone unfilled the market order is queued, so that there is never more than one position.
create function private.mind_filled_order(p_link public.position_links, p_stop boolean, p_filled numeric, p_orders numeric, p_now timestamptz)
returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_master public.positions;
  v_symbol public.account_symbols;
  v_why text;
begin
  if p_filled > 0 or p_stop then  -- it has filled by itself, or nothing of it is wanted
    update public.position_links l set wanted_lots = null, wanted_until = null, order_due_at = null,
      asked_expires_at = null, asked_price = case when p_filled = 0 or p_orders > 0 then l.asked_price end
    where l.id = p_link.id;
    return '{}';
  end if;
  select * into v_copier from public.copiers c where c.id = p_link.copier_id;
  select * into v_master from public.positions m where m.account_id = p_link.master_account_id and m.ticket = p_link.master_ticket;
  select * into v_symbol from public.account_symbols s where s.account_id = p_link.follower_account_id and s.name = p_link.symbol;
  if p_orders = 0 and p_link.wanted_lots is null then return '{}'; end if;  -- its user cancelled it
  if p_orders > 0 and (p_link.order_due_at is null or p_link.asked_expires_at is not null) and p_link.wanted_lots is null
    and not 'order_not_filled' = any (p_link.warnings) then
    update public.position_links l set asked_expires_at = null, order_due_at = p_now + make_interval(secs => v_copier.pending_grace_ms / 1000.0)
    where l.id = p_link.id returning * into p_link;
  end if;
  if p_link.wanted_lots is null and coalesce(p_link.order_due_at, 'infinity') > p_now or p_link.replan_at > p_now then
    return '{}';
  end if;
  v_why := private.no_conversion(v_copier, v_master, v_symbol, p_link.side, p_now);
  if p_orders = 0 then
    if v_why is null then return array[private.queue_conversion(p_link, v_copier, v_master, v_symbol, p_now)]; end if;
    perform private.end_order(p_link.id, v_why, p_now);
    update public.copy_outcomes o set execution_id = null, reason = v_why where o.event_id = v_master.last_event_id and o.copier_id = v_copier.id;
    return '{}';
  end if;
  if v_why is not null then
    update public.position_links l set warnings = l.warnings || 'order_not_filled'::text, order_due_at = null, wanted_lots = null, wanted_until = null
    where l.id = p_link.id and not 'order_not_filled' = any (l.warnings);
    perform private.raise_alert(p_link.follower_account_id, 'pending', 'order_not_filled', 'warning', format(
      'The master''s order in %s has filled at %s, its copy of %s lots has not, and the market is not taken instead (%s). The copy''s order stays.',
      p_link.symbol, v_master.price, private.plain(p_orders), v_why), jsonb_build_object('link_id', p_link.id::text, 'why', v_why));
    return '{}';
  end if;
  update public.position_links l set wanted_lots = p_orders, wanted_until = private.convertible_until(v_copier, v_master), order_due_at = null
  where l.id = p_link.id;
  return private.queue_cancel(p_link, v_master.last_event_id, p_now);
end $$;

-- 54_schedule.sql
-- The clock. Heartbeats do the same work when it stands still (52_maintain.sql), so that a dead scheduler costs seconds.

create extension if not exists pg_cron with schema pg_catalog;

-- By name: applying it again replaces the job.
select cron.schedule('tradecopier-maintain', '3 seconds', 'select private.maintain()');
select cron.schedule('tradecopier-doorbells', '1 second', 'select private.ring_doorbells()');

-- pg_cron writes down every run for ever: 120,000 rows a day.
select cron.schedule('tradecopier-cron-history', '17 * * * *',
  $$delete from cron.job_run_details where end_time < now() - interval '1 day'$$);

-- 55_settings.sql
-- What is said about a copier's settings: which is wrong and what it may be, which contradict each other, which will surprise.

-- Raises what a broken rule of copiers means: the settings it is about, their values, and its words (comments on the constraints).
create function private.refuse_setting(p_constraint text, p_column text, p_copier jsonb, p_error text) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_settings text[];
  v_values text;
  v_words text;
begin
  select array_agg(a.attname::text order by a.attnum), obj_description(k.oid, 'pg_constraint') into v_settings, v_words
  from pg_catalog.pg_constraint k join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = any (k.conkey)
  where k.conrelid = 'public.copiers'::regclass and k.conname = p_constraint group by k.oid;
  if v_settings is null then
    v_settings := array[coalesce(nullif(p_column, ''), 'a setting')];
    v_words := case when p_column <> '' then 'must have a value' end;
  end if;
  select string_agg(format('%s is %s', s, left(coalesce(p_copier ->> s, 'null'), 100)), ' and ') into v_values from unnest(v_settings) s;
  raise exception using errcode = case when cardinality(v_settings) > 1 then 'TC306' else 'TC303' end,
    message = format('save_copier: %s, but %s', v_values, coalesce(v_words, 'that is not allowed: ' || p_error)),
    hint = case when cardinality(v_settings) > 1 then 'Change one of the two.' else 'Choose another value.' end;
end $$;

-- Raises which setting's value is not of its form, and what form it has.
create function private.refuse_form(p_copier jsonb, p_error text) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_setting record;
begin
  for v_setting in
    select e.key, e.value, a.atttypid as type from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
  loop
    begin
      perform jsonb_populate_record(null::public.copiers, jsonb_build_object(v_setting.key, v_setting.value));
    exception when data_exception then
      raise exception using errcode = 'TC302', message = format('save_copier: %s is %s, but must be %s', v_setting.key, left(v_setting.value::text, 100),
        case v_setting.type when 'integer'::regtype then 'a whole number below 2147483648' when 'boolean'::regtype then 'true or false'
          when 'time'::regtype then 'a time of day such as "08:30"' when 'text[]'::regtype then 'a list of texts such as ["EURUSD"]'
          when 'integer[]'::regtype then 'a list of whole numbers such as [1, 2]' else 'of another form' end),
        hint = 'Give it in that form, or leave it out.';
    end;
  end loop;
  raise exception using errcode = 'TC302', message = 'save_copier: a value is not of its setting''s form: ' || p_error,
    hint = 'Numbers are decimal strings such as "0.5".';
end $$;

-- Raises TC306 when a list asks for what another list leaves out: it could never be copied.
create function private.refuse_contradictions(p_copier public.copiers) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_pair record;
begin
  for v_pair in
    select x.only_name, x.except_name, string_agg(w, ', ') as both_name
    from (values ('symbols_only', 'symbols_except', p_copier.symbols_only, p_copier.symbols_except),
      ('magic_only', 'magic_except', p_copier.magic_only, p_copier.magic_except),
      ('comment_only', 'comment_except', p_copier.comment_only, p_copier.comment_except)) x (only_name, except_name, wanted, unwanted)
    cross join lateral unnest(x.wanted) w
    -- a pattern is covered by a wider one: EUR* by *, EURUSD by EUR*
    where case when x.only_name = 'magic_only' then w = any (x.unwanted) else private.matches_any(w, x.unwanted) end
    group by 1, 2
  loop
    raise exception using errcode = 'TC306',
      message = format('save_copier: %s of %s is left out again by %s', v_pair.both_name, v_pair.only_name, v_pair.except_name),
      hint = 'Take it out of one of the two.';
  end loop;
end $$;

-- What is allowed but will surprise, one sentence each.
create function private.settings_warnings(p_copier public.copiers) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_warnings text[] := '{}';
  v_small text;
begin
  if p_copier.max_lots is not null then
    select string_agg(x.name, ', ') into v_small from (
      select s.name from public.account_symbols s
      where s.account_id = p_copier.follower_account_id and s.lots_min > p_copier.max_lots order by s.name limit 5) x;
    if v_small is not null then
      v_warnings := v_warnings || format('max_lots is %s, below the smallest volume of %s: nothing of it will be copied.',
        private.plain(p_copier.max_lots), v_small);
    end if;
    if p_copier.sizing_mode = 'fixed' and p_copier.sizing_value > p_copier.max_lots then
      v_warnings := v_warnings || format('sizing_value is %s fixed lots and max_lots %s: every copy is cut to max_lots.',
        private.plain(p_copier.sizing_value), private.plain(p_copier.max_lots));
    end if;
  end if;
  if p_copier.sizing_mode = 'risk_percent' and p_copier.sizing_value > p_copier.max_risk_percent then
    v_warnings := v_warnings || format('sizing_value is %s %% of risk and max_risk_percent %s %%: every copy is cut to max_risk_percent.',
      private.plain(p_copier.sizing_value), private.plain(p_copier.max_risk_percent));
  end if;
  if '*' = any (p_copier.symbols_except) then
    v_warnings := v_warnings || 'symbols_except has "*": nothing will be opened.'::text;
  end if;
  return to_jsonb(v_warnings);
end $$;

-- 56_realtime.sql
-- Who may listen to which topic. There is no policy for insert: only the database itself publishes.

-- Security definer: reads vps_instances, which listeners may not.
create function private.may_listen(p_topic text) returns boolean
language sql stable security definer
set search_path = ''
as $$
  select case
    when p_topic like 'vps:%' then exists (
      select from public.vps_instances v
      where v.user_id = auth.uid() and v.retired_at is null and p_topic = 'vps:' || v.id)
    when p_topic like 'user:%' then p_topic = 'user:' || auth.uid()
    when p_topic = 'operators' then private.is_operator()
    else false
  end
$$;
comment on function private.may_listen(text) is
  'Whether the caller may join a topic: vps:<id> only the agent of that VPS, user:<id> only that user, operators only operators.';

create policy "agents, users and operators hear their own topic" on realtime.messages for select to authenticated
  using (extension = 'broadcast' and (select private.may_listen((select realtime.topic()))));

grant execute on function private.may_listen(text) to authenticated;

-- 57_lifecycle.sql
-- The end of a copier, and the end of all trading: what is on its way is called back, what is held is kept, followed or closed.

-- Whether a copier alone answers for what an execution does (p_all) or opens; a netting deal may serve several.
create function private.is_of_copier(q public.trade_execution_queue, p_copier uuid, p_all boolean) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  if q.parts is null then
    return q.copier_id = p_copier;
  end if;
  return not exists (
    select 1 from jsonb_array_elements(q.parts) e left join public.position_links l on l.id = (e ->> 'link_id')::bigint
    where l.copier_id is distinct from p_copier and (p_all or (e ->> 'lots')::numeric > 0));
end $$;

-- Calls back what is on its way and not sent yet: opens, with p_all everything. What no agent has ends here, with p_reason; what one has is
-- asked to be dropped, at once. p_copier null: of all copiers. The caller holds the plan locks of the accounts.
create function private.withdraw(p_accounts uuid[], p_copier uuid, p_all boolean, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_message record;
begin
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = p_reason, finalized_at = p_now, updated_at = p_now
    where x.account_id = any (p_accounts) and x.in_flight and x.parts is null
      and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null)
      and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
    returning x.*
  loop
    perform private.book_failure(q, p_now);
  end loop;
  -- a netting deal that nobody has is taken apart by plan_net, as one that waits for another attempt
  update public.trade_execution_queue x set status = 'retrying', next_attempt_at = p_now, updated_at = p_now
  where x.account_id = any (p_accounts) and x.in_flight and x.parts is not null and x.status = 'queued' and x.offered_at is null;
  for v_message in
    with asked as (
      update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
      where x.account_id = any (p_accounts) and x.in_flight and x.status <> 'retrying' and x.cancel_requested_at is null
        and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
      returning x.id, x.vps_id
    )
    select a.vps_id, jsonb_agg(a.id::text) as ids from asked a where a.vps_id is not null group by a.vps_id, a.id / 5000
  loop
    perform private.broadcast('vps:' || v_message.vps_id, 'cancel', jsonb_build_object('ids', v_message.ids));
  end loop;
end $$;

-- Calls back the unsent opens of a copier that may open nothing now. The caller has locked both its accounts.
create function private.withdraw_opens(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follower uuid;
  v_shut text;
begin
  select fa.id, private.shut(private.trading_state(), fa.copy_state, fa.copy_state_reason, c.mode, c.removal) into v_follower, v_shut
  from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id where c.id = p_copier;
  if v_shut is not null then
    perform private.withdraw(array[v_follower], p_copier, false, v_shut, p_now);
  end if;
end $$;

create function private.refuse_leaving(p_copier uuid) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_removal text;
begin
  select c.removal into v_removal from public.copiers c where c.id = p_copier;
  if v_removal is not null then
    raise exception using errcode = 'TC307', message = format('copier %s is being removed (%s): it cannot be changed any more', p_copier, v_removal),
      hint = 'Change how it is removed with remove_copier, or make a new copier for the two accounts.';
  end if;
end $$;

-- Hands a copier's live copies over to the user: their links end, their tickets are not ours any more.
create function private.release_copies(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id);
begin
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.ticket = g.ticket and p.closed_at is null;
  -- on a netting account a leg is a share of the symbol's position: all of it is the user's only when no other copier has one
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.symbol = g.ticket and p.closed_at is null and p.kind = 'position'
    and exists (select 1 from public.trading_accounts a where a.id = g.account_id and a.mode = 'netting')
    and not exists (
      select 1 from private.link_legs o where o.account_id = g.account_id and o.ticket = g.ticket and not o.link_id = any (v_links));
  delete from private.link_legs g where g.link_id = any (v_links);
  update public.position_links l set state = 'ended', reason = 'released', ended_at = p_now, wanted_lots = null, wanted_until = null, replan_at = null
  where l.id = any (v_links);
  perform private.withdraw(array[p_copier.follower_account_id], p_copier.id, true, 'released', p_now);
  -- a deal that the released copies had a part in is made anew without them
  perform private.offer(private.plan_nets(v_links, p_now), null, clock_timestamp());
end $$;

-- Whether a report is about a copy that was handed over to its user: then what it opened is the user's own as well, and the row says so.
-- Or about one that ended, and whose position its user has bound to another copy (resync): it stays there, and is not held twice.
create function private.left_to_user(q public.trade_execution_queue, r jsonb) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  if q.parts is not null or not exists (select 1 from public.position_links l where l.id = q.link_id and l.state = 'ended') then
    return false;
  end if;
  if not exists (select 1 from public.position_links l where l.id = q.link_id and l.reason = 'released') then
    return exists (
      select 1 from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
      join private.link_legs g on g.account_id = q.account_id and g.ticket = e ->> 'ticket' and g.link_id <> q.link_id
      join public.position_links l on l.id = g.link_id and l.ended_at is null);
  end if;
  update public.positions p set released = true
  from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
  where p.account_id = q.account_id and p.ticket = e ->> 'ticket' and p.closed_at is null;
  if found and private.opens(q) then
    update public.trade_execution_queue x set warnings = array_append(array_remove(x.warnings, 'filled_after_release'), 'filled_after_release')
    where x.id = q.id;
    update public.position_links l set warnings = array_append(array_remove(l.warnings, 'filled_after_release'), 'filled_after_release')
    where l.id = q.link_id;
  end if;
  return true;
end $$;

-- What a deal booked to links whose copies were handed over meanwhile belongs to no link: the user owns that part of the net position.
create function private.drop_released_shares(p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.link_legs g using public.position_links l
  where g.link_id = any (array(select (e ->> 'link_id')::bigint from jsonb_array_elements(p_parts) e))
    and l.id = g.link_id and l.state = 'ended' and l.reason = 'released';
end $$;

-- Sets removed_at when nothing is left to do. The caller holds the follower's plan lock: a master's event that this copier still has to
-- explain holds it too.
create function private.finish_removal(p_copier uuid, p_follower uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.copiers c set removed_at = p_now, updated_at = clock_timestamp()
  where c.id = p_copier and c.removal is not null and c.removed_at is null
    and not exists (
      select 1 from public.position_links l where l.follower_account_id = p_follower and l.state = 'live' and l.copier_id = p_copier)
    and not exists (
      select 1 from public.trade_execution_queue q where q.account_id = p_follower and q.in_flight and q.copier_id = p_copier);
end $$;

-- Upkeep: finishes the removals whose last copy has ended. What somebody else is planning waits for the next run.
create function private.finish_removals() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_copier record;
begin
  for v_copier in select c.id, c.follower_account_id from public.copiers c where c.removal is not null and c.removed_at is null loop
    perform 1 from private.plan_locks k where k.account_id = v_copier.follower_account_id for no key update skip locked;
    if found then
      perform private.finish_removal(v_copier.id, v_copier.follower_account_id, clock_timestamp());
    end if;
  end loop;
end $$;

-- {"copier_id", "mode": "preserve|close_gracefully|close_now"} -> {"copier_id", "mode", "state": "removing|removed", "copies", "waits_for"}
-- While it is being removed the mode may be changed; repeating a call changes nothing.
create function private.remove_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_mode text := p_request ->> 'mode';
  c public.copiers;
  v_now timestamptz;
begin
  if coalesce(v_mode, '') not in ('preserve', 'close_gracefully', 'close_now') then
    raise exception using errcode = 'TC303', message = 'remove_copier: mode must be preserve, close_gracefully or close_now',
      hint = 'preserve: its copies become your own trades. close_gracefully: they end with their master''s. close_now: they are closed now.';
  end if;
  select * into c from public.copiers x where x.id = v_id and (x.user_id = v_user or private.is_operator());
  if c.id is null then
    raise exception using errcode = 'TC106', message = format('remove_copier: copier %s does not exist or is not yours', v_id), hint = 'Check the id.';
  end if;
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  update public.copiers x set removal = v_mode, updated_at = clock_timestamp()
  where x.id = v_id and x.removed_at is null and x.removal is distinct from v_mode;
  if found then
    select * into c from public.copiers x where x.id = v_id;
    if v_mode = 'preserve' then
      perform private.release_copies(c, v_now);
    end if;
    perform private.replan_copier(v_id, v_now);
  end if;
  perform private.finish_removal(v_id, c.follower_account_id, v_now);
  return private.removal_of(v_id);
end $$;

-- How far the removal of a copier is. waits_for: what keeps its copies from being closed.
create function private.removal_of(p_copier uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select jsonb_build_object('copier_id', c.id, 'mode', c.removal, 'state', case when c.removed_at is null then 'removing' else 'removed' end,
      'copies', x.copies, 'waits_for', case when x.copies = 0 then null when private.trading_state() = 'off' then 'trading_stopped'
        when fa.copy_state = 'off' then 'account_off' end)
    from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id
    cross join lateral (
      select count(*) as copies from public.position_links l
      where l.follower_account_id = c.follower_account_id and l.state = 'live' and l.copier_id = c.id) x
    where c.id = p_copier);
end $$;

-- Everything that follows from the switch, for all accounts: unsent opens (off: everything unsent) are called back; on: what was missed of
-- closes is done. Every plan made before has ended, every later one reads the new state. The caller has set it.
create function private.sweep_trading(p_state text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array(select k.account_id from private.plan_locks k);
  v_now timestamptz := private.lock_accounts(v_accounts);
begin
  if p_state = 'on' then
    -- what froze on its way goes on
    update public.trade_execution_queue q set cancel_requested_at = null, updated_at = v_now
    where q.account_id = any (v_accounts) and q.in_flight and q.cancel_requested_at is not null and not private.opens(q);
  else
    perform private.withdraw(v_accounts, null, p_state = 'off', case p_state when 'off' then 'trading_stopped' else 'trading_monitor' end, v_now);
  end if;
  perform private.offer_apart(private.plan_links_apart(array(select l.id from public.position_links l where l.state = 'live'), v_now), null, clock_timestamp());
  update public.trading_switch t set settled = true where t.one and not t.settled;
end $$;

-- Upkeep: does what a turn of the switch could not do, because some plan would not let go. First of all parts, for it waits for locks.
create function private.settle_trading() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_state text;
begin
  select t.state into v_state from public.trading_switch t where t.one and not t.settled for no key update;
  if found then
    perform private.sweep_trading(v_state);
  end if;
end $$;

-- Operators: {"state": "on|monitor|off", "reason"} -> {"state", "reason", "changed_at", "settled"}. settled false: some plan would not let go in
-- time; the switch holds all the same for what is planned from now on, and the upkeep does the rest.
create function private.set_trading(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' set lock_timeout = '3s' set jit = off as $$
declare
  v_state text := p_request ->> 'state';
  v_reason text := coalesce(private.text_of(p_request, 'reason', 200), '');
  v_switch public.trading_switch;
begin
  perform private.require_operator();
  if coalesce(v_state, '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'set_trading: state must be on, monitor or off',
      hint = 'monitor: nothing is opened anywhere, closes go on. off: frozen, closes included.';
  end if;
  if v_state <> 'on' and length(v_reason) < 3 then
    raise exception using errcode = 'TC303', message = format('set_trading: %s needs a reason of 3 to 200 characters', v_state),
      hint = 'All users read it.';
  end if;
  update public.trading_switch t set state = v_state, reason = v_reason, settled = false,
    changed_at = case when t.state = v_state then t.changed_at else clock_timestamp() end
  where t.one;
  begin
    perform private.sweep_trading(v_state);
  exception when lock_not_available or deadlock_detected then
    raise warning 'set_trading: an account is being planned just now; the upkeep does the rest';
  end;
  select * into v_switch from public.trading_switch t where t.one;
  insert into private.doorbells as d (topic, changed_at, due)
  select 'user:' || a.user_id, clock_timestamp(), true from public.trading_accounts a where a.removed_at is null group by a.user_id
  union all select 'operators', clock_timestamp(), true
  on conflict (topic) do update set due = true, changed_at = excluded.changed_at where not d.due;
  return jsonb_build_object('state', v_switch.state, 'reason', v_switch.reason, 'changed_at', private.rfc3339(v_switch.changed_at),
    'settled', v_switch.settled);
end $$;

create function public.remove_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_copier(p_request) $$;
comment on function public.remove_copier(jsonb) is
  'Removes a copier: preserve (its copies become the user''s own), close_gracefully (they end with their master''s) or close_now.';
create function public.set_trading(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_trading(p_request) $$;
comment on function public.set_trading(jsonb) is 'Operators: trading of everybody on, monitor (closes only) or off (frozen), with the reason that users read.';
revoke all on function public.remove_copier(jsonb), public.set_trading(jsonb) from public, anon;
grant execute on function public.remove_copier(jsonb), private.remove_copier(jsonb) to authenticated;
grant execute on function public.set_trading(jsonb), private.set_trading(jsonb) to authenticated, service_role;

-- 57_suggest.sql
-- What the dashboard shows of a copier's symbols: what is chosen, what else there is, and what to save.

-- Symbols of the follower that might be the master's, the likeliest first: [{"name", "contract_size", "profit_currency", "why_not"}]. What
-- only looks alike is found by reading the whole list, which planning does for a refusal alone.
create function private.symbol_alternatives(p_follower public.trading_accounts, p_master public.account_symbols) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_names text[] := private.names_of(p_master);
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', x.name, 'contract_size', trim_scale(x.contract_size)::text,
      'profit_currency', x.profit_currency, 'why_not', x.misfit) order by x.rank, x.name), '[]')
    from (
      select s.name, s.contract_size, s.profit_currency, coalesce(c.rank, 5) as rank,
        case when c.name is null then coalesce(private.misfit(p_master, s), 'its name is only similar') else c.misfit end as misfit
      from public.account_symbols s
      left join private.symbol_candidates(p_follower, p_master) c on c.name = s.name
      where s.account_id = p_follower.id
        and (c.name is not null or exists (select 1 from unnest(v_names) n where strpos(upper(s.name), n) > 0))
      order by 4, s.name limit 8
    ) x);
end $$;

-- Why a copier has no symbol for the master's, in words: the detail of an outcome symbol_unmapped.
create function private.unmapped_detail(p_copier uuid, p_symbol text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_mapped text;
  v_others jsonb;
begin
  select s.* into v_master from public.copiers c join public.account_symbols s on s.account_id = c.master_account_id and s.name = p_symbol
  where c.id = p_copier;
  if v_master.name is null then
    return format('The master''s agent has not yet said what %s is (contract size, currency).', p_symbol);
  end if;
  select y.follower_symbol into v_mapped from public.symbol_mappings y where y.copier_id = p_copier and y.master_symbol = p_symbol;
  select a.* into v_follower from public.copiers c join public.trading_accounts a on a.id = c.follower_account_id where c.id = p_copier;
  v_others := private.symbol_alternatives(v_follower, v_master);
  return case when v_mapped is null then '' else format('%s is mapped to %s, which the follower does not have. ', p_symbol, v_mapped) end || case
    when v_others = '[]' then format('The follower has nothing like %s: map it by hand if it has it under another name.', p_symbol)
    else format('For %s the follower has: %s. Choose one of them in the copier''s symbols.', p_symbol, (
      select string_agg(format('%s (%s)', e ->> 'name', coalesce(e ->> 'why_not', 'it fits, and so does another')), ', ')
      from jsonb_array_elements(v_others) e)) end;
end $$;

-- {"copier_id", "symbols": [names of the master] or left out} -> {"copier_id", "prefix", "suffix", "symbols": [{"master_symbol",
-- "follower_symbol", "how", "why", "candidates", "save"}]}. "save" is what save_copier wants to hear if the user agrees.
create function private.symbol_suggestions(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_copier public.copiers;
  v_follower public.trading_accounts;
  v_mapped jsonb;
  v_answers jsonb;
begin
  select * into v_copier from public.copiers c
  where c.id = private.uuid_of(p_request, 'copier_id') and (c.user_id = v_user or private.is_operator()) and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106', message = format('symbol_suggestions: copier %s does not exist or is not yours', p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'symbols'), 'null') not in ('null', 'array') then
    raise exception using errcode = 'TC001', message = 'symbol_suggestions: "symbols" must be an array of the master''s symbols';
  end if;
  select * into v_follower from public.trading_accounts where id = v_copier.follower_account_id;
  select coalesce(jsonb_object_agg(y.master_symbol, y.follower_symbol), '{}') into v_mapped
  from public.symbol_mappings y where y.copier_id = v_copier.id;
  select jsonb_agg(private.suggest_symbol(v_copier.id, v_follower, s, v_mapped) order by s.name) into v_answers
  from (
    select x.* from public.account_symbols x
    where x.account_id = v_copier.master_account_id and (jsonb_typeof(p_request -> 'symbols') is distinct from 'array' or p_request -> 'symbols' ? x.name)
    order by x.name in (select p.symbol from public.positions p where p.account_id = v_copier.master_account_id) desc, x.name limit 500
  ) s;
  return jsonb_build_object('copier_id', v_copier.id, 'prefix', v_follower.symbol_prefix, 'suffix', v_follower.symbol_suffix,
    'symbols', coalesce(v_answers, '[]'));
end $$;

create function private.suggest_symbol(p_copier uuid, p_follower public.trading_accounts, p_master public.account_symbols, p_mapped jsonb)
returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_others jsonb := private.symbol_alternatives(p_follower, p_master);
  v_chosen public.account_symbols;
  v_how text := 'mapped';
  v_best text;
begin
  if p_mapped ? p_master.name then
    select * into v_chosen from public.account_symbols s where s.account_id = p_follower.id and s.name = p_mapped ->> p_master.name;
  else
    v_chosen := private.follower_symbol(p_follower, p_master);
    select case when v_chosen.name = p_master.name then 'exact' when c.rank = 1 then 'affix' when c.rank = 2 then 'root' else 'alias' end into v_how
    from private.symbol_candidates(p_follower, p_master) c where c.name = v_chosen.name;
  end if;
  v_best := coalesce(v_chosen.name, (
    select e ->> 'name' from jsonb_array_elements(v_others) with ordinality as o (e, n) order by e ->> 'why_not' is not null, n limit 1));
  return jsonb_build_object('master_symbol', p_master.name, 'follower_symbol', v_chosen.name,
    'how', case when v_chosen.name is not null then v_how end,
    'why', case when v_chosen.name is null then private.unmapped_detail(p_copier, p_master.name)
      when v_how = 'mapped' then format('You have mapped it to %s.', v_chosen.name)
      when v_how = 'exact' then 'The follower has a symbol of the same name.'
      when v_how = 'affix' then format('%s carries the prefix and suffix that most of the follower''s symbols carry.', v_chosen.name)
      when v_how = 'root' then format('%s is the only one with this name inside.', v_chosen.name)
      else format('%s is another name of the same instrument.', v_chosen.name) end,
    'candidates', v_others,
    'save', case when v_best is not null then
      jsonb_build_object('id', p_copier, 'symbols', p_mapped || jsonb_build_object(p_master.name, v_best)) end);
end $$;

-- {"name", "instrument"} -> {"name", "instrument"}: operators add a name of an instrument, or take one back (instrument null).
create function private.set_symbol_alias(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_name text := upper(private.text_of(p_request, 'name', 20));
  v_instrument text := upper(private.text_of(p_request, 'instrument', 20));
begin
  perform private.require_operator();
  if coalesce(v_name, '') !~ '^[A-Z0-9]+$' or v_instrument !~ '^[A-Z0-9]+$' then
    raise exception using errcode = 'TC001', message = 'set_symbol_alias: a name has 1 to 20 letters and digits, without the broker''s prefix and suffix',
      hint = 'For example {"name": "GOLD", "instrument": "XAUUSD"}; instrument null takes the name back.';
  end if;
  if v_instrument is null then
    delete from public.symbol_aliases where name = v_name;
  else
    -- the instrument itself is one of its names
    v_instrument := coalesce((select a.instrument from public.symbol_aliases a where a.name = v_instrument), v_instrument);
    insert into public.symbol_aliases (name, instrument) values (v_instrument, v_instrument) on conflict (name) do nothing;
    insert into public.symbol_aliases (name, instrument) values (v_name, v_instrument)
    on conflict (name) do update set instrument = excluded.instrument;
  end if;
  delete from private.symbol_choices where master_symbol is not null;
  return jsonb_build_object('name', v_name, 'instrument', v_instrument);
end $$;

-- Refusals that only their user can end are told, not only recorded.
create function private.tell_refusal() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(c.follower_account_id, 'copy', new.reason, 'warning', case new.reason
      when 'sanity' then format('A trade of %s was not copied: it would have been far larger, measured by the equity, than the master''s own. Check the copier''s sizing.',
        (select l.symbol from public.position_links l where l.id = new.link_id))
      else format('A trade was not copied. %s', coalesce(new.detail, 'The follower has no symbol for it: map it in the copier.')) end,
    jsonb_build_object('copier_id', c.id, 'event_id', new.event_id::text))
  from public.copiers c where c.id = new.copier_id;
  return null;
end $$;
create trigger tell_refusal after insert on public.copy_outcomes for each row
  when (new.reason in ('sanity', 'symbol_unmapped')) execute function private.tell_refusal();

create function public.symbol_suggestions(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.symbol_suggestions(p_request) $$;
comment on function public.symbol_suggestions(jsonb) is 'Per symbol of a copier''s master: what is copied into, what else there is, and what to save.';
create function public.set_symbol_alias(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_symbol_alias(p_request) $$;
comment on function public.set_symbol_alias(jsonb) is 'Operators: another name of an instrument.';
revoke all on function public.symbol_suggestions(jsonb), public.set_symbol_alias(jsonb) from public, anon;
grant execute on function public.symbol_suggestions(jsonb), private.symbol_suggestions(jsonb) to authenticated;
grant execute on function public.set_symbol_alias(jsonb), private.set_symbol_alias(jsonb) to authenticated, service_role;

-- 58_copying.sql
-- What users do with copiers.

-- Saves a copier: without "id" a new one, else the columns given. {"master_account_id", "follower_account_id", any column of copiers,
-- "symbols": {"MASTER": "FOLLOWER"}} -> {"copier_id", "warnings"}
create function private.save_copier(p_copier jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_new public.copiers;
  v_now timestamptz;
  v_unknown text;
  v_rule text;
  v_made boolean := not p_copier ? 'id';
begin
  if jsonb_typeof(p_copier) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_copier: the copier must be an object', hint = 'See docs/protocol.md.';
  end if;
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(p_copier) k
  where k <> 'symbols' and k not in (select attname from pg_catalog.pg_attribute where attrelid = 'public.copiers'::regclass and attnum > 0
    and attname not in ('user_id', 'started_at', 'existing_until', 'created_at', 'updated_at', 'removal', 'removed_at'));
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_copier: unknown setting: %s', v_unknown),
      hint = 'The settings are the columns of the table copiers.';
  end if;
  perform private.refuse_bad_values(p_copier);
  if p_copier ? 'id' then
    select c.master_account_id, c.follower_account_id into v_new.master_account_id, v_new.follower_account_id from public.copiers c
    where c.id = private.uuid_of(p_copier, 'id') and c.user_id = v_user and c.removed_at is null;
    if v_new.master_account_id is null then
      raise exception using errcode = 'TC106', message = format('save_copier: copier %s does not exist or is not yours', p_copier ->> 'id'),
        hint = 'Check the id, or leave it out to make a new copier.';
    end if;
    perform private.refuse_leaving((p_copier ->> 'id')::uuid);
    foreach v_unknown in array array['master_account_id', 'follower_account_id'] loop
      if p_copier ? v_unknown and private.uuid_of(p_copier, v_unknown)::text <> to_jsonb(v_new) ->> v_unknown then
        raise exception using errcode = 'TC303', message = format('save_copier: %s of a copier does not change', v_unknown),
          hint = 'Remove this copier and make a new one.';
      end if;
    end loop;
    p_copier := p_copier - 'master_account_id' - 'follower_account_id';
  else
    v_new.master_account_id := private.uuid_of(p_copier, 'master_account_id');
    v_new.follower_account_id := private.uuid_of(p_copier, 'follower_account_id');
    p_copier := p_copier - 'id';
  end if;
  if v_new.master_account_id = v_new.follower_account_id then
    raise exception using errcode = 'TC305', message = format('save_copier: account %s cannot follow itself', v_new.master_account_id),
      hint = 'Choose two different accounts.';
  end if;
  v_now := private.lock_accounts(array[v_new.master_account_id, v_new.follower_account_id]);
  if (select count(*) from public.trading_accounts a where a.id in (v_new.master_account_id, v_new.follower_account_id)
      and a.user_id = v_user and a.removed_at is null) <> 2 then
    raise exception using errcode = 'TC106', message = 'save_copier: the master or the follower account does not exist or is not yours',
      hint = 'Connect both accounts first.';
  end if;
  begin
    if not p_copier ? 'id' then
      perform private.refuse_cycle(v_new.master_account_id, v_new.follower_account_id);
      insert into public.copiers (user_id, master_account_id, follower_account_id, started_at, created_at)
      values (v_user, v_new.master_account_id, v_new.follower_account_id, v_now, v_now) returning id into v_new.id;
      p_copier := p_copier || jsonb_build_object('id', v_new.id);
    end if;
    -- read after the lock: what somebody else has just changed stays as it is
    select * into v_new from public.copiers c where c.id = (p_copier ->> 'id')::uuid;
    v_new := jsonb_populate_record(v_new, p_copier - 'symbols');
    perform private.refuse_contradictions(v_new);
    perform private.refuse_contradicting_levels(p_copier, v_new);
    update public.copiers set name = v_new.name, mode = v_new.mode, sizing_mode = v_new.sizing_mode, sizing_value = v_new.sizing_value,
      contract_alignment = v_new.contract_alignment, min_policy = v_new.min_policy, max_risk_coefficient = v_new.max_risk_coefficient,
      max_policy = v_new.max_policy, max_lots = v_new.max_lots, max_risk_percent = v_new.max_risk_percent, max_leverage = v_new.max_leverage,
      max_leverage_policy = v_new.max_leverage_policy, sanity_factor = v_new.sanity_factor, reverse = v_new.reverse, sl_mode = v_new.sl_mode,
      tp_mode = v_new.tp_mode, sl_points = v_new.sl_points, tp_points = v_new.tp_points, max_sl_points = v_new.max_sl_points,
      copy_pending = v_new.copy_pending, pending_grace_ms = v_new.pending_grace_ms, early_fill_policy = v_new.early_fill_policy,
      copy_existing = v_new.copy_existing, copy_existing_points = v_new.copy_existing_points, max_age_ms = v_new.max_age_ms,
      retry_window_s = v_new.retry_window_s, no_money_policy = v_new.no_money_policy,
      delay_min_ms = v_new.delay_min_ms, delay_max_ms = v_new.delay_max_ms, lots_jitter_percent = v_new.lots_jitter_percent, max_slippage_points = v_new.max_slippage_points,
      comment = v_new.comment, sides = v_new.sides, symbols_only = v_new.symbols_only,
      symbols_except = v_new.symbols_except, magic_only = v_new.magic_only, magic_except = v_new.magic_except,
      comment_only = v_new.comment_only, comment_except = v_new.comment_except, max_open_positions = v_new.max_open_positions,
      max_open_lots = v_new.max_open_lots, max_trades_per_day = v_new.max_trades_per_day, min_equity = v_new.min_equity,
      time_zone = v_new.time_zone, weekdays = v_new.weekdays, open_from = v_new.open_from, open_until = v_new.open_until,
      updated_at = clock_timestamp()
    where id = v_new.id;
  exception
    when check_violation or not_null_violation or foreign_key_violation then
      get stacked diagnostics v_rule = constraint_name, v_unknown = column_name;
      perform private.refuse_setting(v_rule, v_unknown, to_jsonb(v_new), sqlerrm);
    when unique_violation then
      raise exception using errcode = 'TC304', message = 'save_copier: these two accounts already have a copier', hint = 'Change that one instead.';
    when data_exception then
      perform private.refuse_form(p_copier, sqlerrm);
  end;
  if jsonb_typeof(p_copier -> 'symbols') = 'object' then
    delete from public.symbol_mappings where copier_id = v_new.id;
    insert into public.symbol_mappings (user_id, copier_id, master_symbol, follower_symbol)
    select v_user, v_new.id, key, value from jsonb_each_text(p_copier -> 'symbols');
  end if;
  perform private.replan_copier(v_new.id, v_now);
  if v_made then
    perform private.copy_existing(v_new, v_now);
  end if;
  return jsonb_build_object('copier_id', v_new.id, 'warnings', private.settings_warnings(v_new));
end $$;

-- Values that a CHECK cannot name well: numbers that are none, zones that do not exist.
create function private.refuse_bad_values(p_copier jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_field record;
begin
  for v_field in
    select e.key, e.value from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key and a.atttypid = 'numeric'::regtype
    where jsonb_typeof(e.value) <> 'null' and not coalesce(private.is_number(e.value), false)
  loop
    raise exception using errcode = 'TC302', message = format('save_copier: %s is not a number', v_field.key),
      hint = 'Numbers are decimal strings such as "0.5".';
  end loop;
  if p_copier ? 'time_zone' and not exists (select 1 from pg_catalog.pg_timezone_names z where z.name = p_copier ->> 'time_zone') then
    raise exception using errcode = 'TC303', message = format('save_copier: time_zone is %s, but there is no such time zone', left(p_copier ->> 'time_zone', 100)),
      hint = 'Zones are named like Europe/Berlin, America/New_York or UTC.';
  end if;
  -- an entry that is no text, or cannot be a magic number, would match nothing: a filter that lets through everything, or nothing at all
  for v_field in
    select e.key, l.entry from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key and a.atttypid = 'text[]'::regtype
    cross join lateral jsonb_array_elements(case jsonb_typeof(e.value) when 'array' then e.value else '[]' end) as l (entry)
    where not coalesce(case when e.key like 'magic%' then jsonb_typeof(l.entry) in ('string', 'number') and (l.entry #>> '{}') ~ '^-?[0-9]{1,20}$'
      else jsonb_typeof(l.entry) = 'string' and length(l.entry #>> '{}') between case when e.key like 'comment%' then 0 else 1 end and 100 end, false)
  loop
    raise exception using errcode = 'TC302', message = format('save_copier: %s holds %s, but must be a list of %s', v_field.key,
        left(v_field.entry::text, 100), case when v_field.key like 'magic%' then 'whole numbers such as ["42"]' else 'texts of up to 100 characters such as ["EURUSD"]' end),
      hint = 'An empty list is no filter.';
  end loop;
  if coalesce(jsonb_typeof(p_copier -> 'symbols'), 'null') not in ('null', 'object') or jsonb_typeof(p_copier -> 'symbols') = 'object' and exists (
    select 1 from jsonb_each(p_copier -> 'symbols') e where jsonb_typeof(e.value) <> 'string' or length(e.value #>> '{}') not between 1 and 64
      or length(e.key) not between 1 and 64) then
    raise exception using errcode = 'TC302', message = 'save_copier: symbols must name a symbol of the follower for each of the master''s',
      hint = 'For example {"GOLD": "XAUUSD"}.';
  end if;
end $$;

-- A copier that would close a circle is refused; copiers that are off count as well. One lock for all, so that two cannot close it together.
create function private.refuse_cycle(p_master uuid, p_follower uuid) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform pg_advisory_xact_lock(hashtext('private.refuse_cycle'));
  if exists (
    with recursive downstream (id) as (
      select p_follower
      union
      select c.follower_account_id from downstream d join public.copiers c on c.master_account_id = d.id and c.removed_at is null
    )
    select 1 from downstream where id = p_master
  ) then
    raise exception using errcode = 'TC305', message = 'save_copier: the follower already leads, directly or through others, to the master',
      detail = 'Such a circle would copy its own copies for ever.', hint = 'Remove a copier of the circle first.';
  end if;
end $$;

-- Plans everything of a copier after a change of its settings or mode: a resumed copier catches up on closes and SL/TP. The caller has
-- locked both its accounts.
create function private.replan_copier(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  perform private.withdraw_opens(p_copier, p_now);
  select array_agg(l.id) into v_links from public.copiers c
  join public.position_links l on l.follower_account_id = c.follower_account_id and l.copier_id = c.id and l.state = 'live'
  where c.id = p_copier;
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(private.plan_again(v_links, p_now), null, clock_timestamp());
end $$;

-- Every account whose plans meet with the account's: itself, its followers, its masters. Taken in one lock, for two could cross.
create function private.with_neighbours(p_account uuid) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return private.with_followers(array[p_account]) || array(
    select c.master_account_id from public.copiers c where c.follower_account_id = p_account and c.removed_at is null);
end $$;

-- {"copier_id", "mode": "on|monitor|off"} -> {"copier_id", "mode"}
create function private.set_copier_mode(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_copier public.copiers;
  v_now timestamptz;
begin
  if coalesce(p_request ->> 'mode', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = format('set_copier_mode: mode is %s, but must be on, monitor or off', coalesce(left(p_request ->> 'mode', 100), 'missing')),
      hint = 'Only off leaves what is open alone; the others follow its closes.';
  end if;
  select * into v_copier from public.copiers c
  where c.id = v_id and (c.user_id = v_user or private.is_operator()) and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106', message = format('set_copier_mode: copier %s does not exist or is not yours', v_id),
      hint = 'Check the id.';
  end if;
  perform private.refuse_leaving(v_copier.id);
  v_now := private.lock_accounts(array[v_copier.master_account_id, v_copier.follower_account_id]);
  update public.copiers set mode = p_request ->> 'mode', updated_at = clock_timestamp() where id = v_copier.id;
  perform private.replan_copier(v_copier.id, v_now);
  return jsonb_build_object('copier_id', v_copier.id, 'mode', p_request ->> 'mode');
end $$;

-- The caller's account, or any for an operator; TC106 otherwise.
create function private.require_account(p_request jsonb) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_account uuid;
begin
  select a.id into v_account from public.trading_accounts a
  where a.id = private.uuid_of(p_request, 'account_id') and (a.user_id = v_user or private.is_operator()) and a.removed_at is null;
  if v_account is null then
    raise exception using errcode = 'TC106', message = format('account %s does not exist or is not yours', p_request ->> 'account_id'),
      hint = 'Check the id.';
  end if;
  return v_account;
end $$;

-- {"account_id", "include_manual": false} -> {"account_id", "copy_state"}. Repeating it changes nothing but include_manual.
create function private.flatten_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := private.require_account(p_request);
  v_now timestamptz;
begin
  if coalesce(jsonb_typeof(p_request -> 'include_manual'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'flatten_account: include_manual must be true or false';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  perform private.start_flattening(v_account, coalesce((p_request ->> 'include_manual')::boolean, false), 'off', null, v_now);
  return jsonb_build_object('account_id', v_account, 'copy_state', 'flattening');
end $$;

-- {"account_id", "state": "on|monitor|off"} -> {"account_id", "copy_state"}: on; monitor = closes only; off = frozen.
create function private.pause_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := private.require_account(p_request);
  v_copier uuid;
  v_now timestamptz;
begin
  if coalesce(p_request ->> 'state', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'pause_account: state must be on, monitor or off';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  update public.trading_accounts set copy_state = p_request ->> 'state', copy_state_reason = null, flat_snapshots = 0 where id = v_account;
  for v_copier in select c.id from public.copiers c where c.follower_account_id = v_account and c.removed_at is null loop
    perform private.replan_copier(v_copier, v_now);
  end loop;
  return jsonb_build_object('account_id', v_account, 'copy_state', p_request ->> 'state');
end $$;

create function public.flatten_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.flatten_account(p_request) $$;
comment on function public.flatten_account(jsonb) is 'Closes every copy on an account (and manual trades, if asked), until it is flat; then switches it off.';
create function public.pause_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.pause_account(p_request) $$;
comment on function public.pause_account(jsonb) is 'Copying into an account: on, monitor (closes only) or off (frozen).';
create function public.save_copier(p_copier jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_copier(p_copier) $$;
comment on function public.save_copier(jsonb) is 'Makes or changes a copier of the caller; refuses circles and settings out of range.';
create function public.set_copier_mode(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_copier_mode(p_request) $$;
comment on function public.set_copier_mode(jsonb) is 'Switches a copier: on, monitor (closes only) or off (frozen).';
revoke all on function public.save_copier(jsonb), public.set_copier_mode(jsonb), public.flatten_account(jsonb), public.pause_account(jsonb)
  from public, anon;
grant execute on function public.save_copier(jsonb), public.set_copier_mode(jsonb), public.flatten_account(jsonb), public.pause_account(jsonb),
  private.save_copier(jsonb), private.set_copier_mode(jsonb), private.flatten_account(jsonb), private.pause_account(jsonb) to authenticated;

-- 59_protection.sql
-- Protection: every report of an account's funds is a look at its rules. A limit that is reached in two looks does what the rule says.
-- Unknown funds and late ones are no look: they neither trigger a rule nor disarm it.

-- What the equity (max_margin_use: the percentage of it) is held against; null while it is not known.
create function private.rule_limit(r public.protection_rules) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'daily_loss' then trim_scale(r.day_start_equity * (100 - r.threshold) / 100)
    when 'trailing_drawdown' then trim_scale(r.high_water_mark * (100 - r.threshold) / 100)
    else trim_scale(r.threshold) end;
end $$;

-- Whether these figures have reached the rule's limit; null when a figure for it is unknown. Multiplied, not divided: exact to the last digit.
create function private.limit_reached(r public.protection_rules, p_equity numeric, p_margin numeric) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'daily_loss' then p_equity * 100 <= r.day_start_equity * (100 - r.threshold) and r.day_start_equity > 0
    when 'trailing_drawdown' then p_equity * 100 <= r.high_water_mark * (100 - r.threshold) and r.high_water_mark > 0
    when 'equity_floor' then p_equity <= r.threshold
    when 'equity_target' then p_equity >= r.threshold
    when 'max_margin_use' then p_margin > 0 and p_margin * 100 >= p_equity * r.threshold end;
end $$;

-- Opens a rule's count anew: the day's start or the high-water mark is this equity (null: the next one that is known), nothing is triggered.
create function private.rearmed(r public.protection_rules, p_at timestamptz, p_equity numeric) returns public.protection_rules
language plpgsql stable set search_path = '' as $$
begin
  r.day := null;
  r.day_start_equity := null;
  r.day_start_at := null;
  r.high_water_mark := null;
  r.breached_at := null;
  r.breached_equity := null;
  r.triggered_at := null;
  if p_equity is not null and r.kind = 'daily_loss' then
    r.day := (clock_timestamp() at time zone r.time_zone)::date;
    r.day_start_equity := p_equity;
    r.day_start_at := p_at;
  elsif p_equity is not null and r.kind = 'trailing_drawdown' then
    r.high_water_mark := p_equity;
  end if;
  return r;
end $$;

-- One look: the rule as it is afterwards, and what the look was: null (nothing past the limit), first, waiting (too soon after the first),
-- contradicted, confirmed. p_before: the account's last look before this one.
create function private.judge_rule(
  inout r public.protection_rules, p_at timestamptz, p_equity numeric, p_margin numeric, p_before_at timestamptz, p_before_equity numeric,
  out verdict text
) language plpgsql stable set search_path = '' as $$
declare
  v_day date := (p_at at time zone r.time_zone)::date;
  v_reached boolean;
begin
  if r.kind = 'daily_loss' and (r.day is null or v_day > r.day) then
    -- The last equity before midnight, if the account was seen across it: the first one after it may be a tick of the rollover.
    if r.day is not null and p_at - p_before_at <= private.setting_s('funds_max_age_s') then
      r := private.rearmed(r, p_before_at, p_before_equity);
    else
      r := private.rearmed(r, p_at, p_equity);
    end if;
    r.day := v_day;
  elsif r.kind = 'trailing_drawdown' then
    if r.high_water_mark is null then
      r.high_water_mark := p_equity;
    -- a high is one when two looks in a row have reached it; not confirm_ms apart, for looks a second apart would then never make one
    elsif p_at - p_before_at >= interval '250 ms' then
      r.high_water_mark := greatest(r.high_water_mark, least(p_equity, p_before_equity));
    end if;
  end if;
  v_reached := private.limit_reached(r, p_equity, p_margin);
  if r.triggered_at is not null or v_reached is null then
    return;
  elsif not v_reached then
    if r.breached_at is not null then
      verdict := 'contradicted';
    end if;
    r.breached_at := null;
    r.breached_equity := null;
  elsif r.breached_at is null then
    verdict := 'first';
    r.breached_at := p_at;
    r.breached_equity := p_equity;
  elsif p_at - r.breached_at < make_interval(secs => r.confirm_ms / 1000.0) then
    verdict := 'waiting';
  else
    verdict := 'confirmed';
  end if;
end $$;

-- Copying into the account goes on closing and opens nothing more; what is stricter already stays. The caller holds its plan lock.
-- Opens that wait for another attempt, or for an agent, end here: they are in nobody's hands.
create function private.stop_opening(p_account uuid, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_links bigint[] := '{}';
begin
  update public.trading_accounts a set copy_state_reason = p_reason,
    copy_state = case a.copy_state when 'on' then 'monitor' else a.copy_state end,
    flatten_then = case when a.copy_state = 'flattening' then 'monitor' else a.flatten_then end
  where a.id = p_account and (a.copy_state = 'on' or a.copy_state = 'flattening' and a.flatten_then = 'on');
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = 'account_protected', next_attempt_at = null, finalized_at = p_now,
      updated_at = p_now
    where x.account_id = p_account and x.in_flight and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null) and private.opens(x)
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id || array(select (e ->> 'link_id')::bigint from jsonb_array_elements(coalesce(q.parts, '[]')) e);
  end loop;
  update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
  where x.account_id = p_account and x.in_flight and private.opens(x) and x.cancel_requested_at is null;
  if cardinality(v_links) > 0 then
    perform private.offer(private.plan_again(array_remove(v_links, null), p_now), null, clock_timestamp());
  end if;
end $$;

-- What a rule has to tell, for people.
create function private.protection_message(r public.protection_rules, p_currency text, p_equity numeric, p_margin numeric) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_limit text := private.rule_limit(r)::text;
begin
  return case r.kind
      when 'daily_loss' then format('Daily loss: equity is %s %s, the limit is %s (%s %% under the %s of the day''s start).', p_equity,
        p_currency, v_limit, trim_scale(r.threshold), r.day_start_equity)
      when 'trailing_drawdown' then format('Trailing drawdown: equity is %s %s, the limit is %s (%s %% under the high of %s).', p_equity,
        p_currency, v_limit, trim_scale(r.threshold), r.high_water_mark)
      when 'equity_floor' then format('Equity floor: equity is %s %s, the floor is %s.', p_equity, p_currency, v_limit)
      when 'equity_target' then format('Equity target: equity is %s %s, the target is %s.', p_equity, p_currency, v_limit)
      else format('Margin use: %s %s of margin at %s of equity have reached %s %%.', p_margin, p_currency, p_equity, v_limit) end
    || case r.action
      when 'notify' then ' Nothing was changed.'
      when 'monitor' then ' Nothing is opened on the account any more; closes go on. Switch it on again when you want to go on.'
      when 'close_all' then ' Everything on the account is being closed; when it is flat, copying goes on as before.'
      else ' Everything on the account is being closed, then it is off. Switch it on again when you want to go on.' end
    || case r.kind when 'daily_loss' then ' The rule watches again from the next day''s start, or once it is reset.'
      else ' The rule watches again once it is reset.' end;
end $$;

-- Carries out a rule whose limit two looks have reached. The caller holds the plan locks of the account and its neighbours.
create function private.trigger_rule(r public.protection_rules, p_at timestamptz, p_equity numeric, p_margin numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.protection_rules set triggered_at = p_at where id = r.id;
  perform private.raise_alert(r.account_id, 'protection', r.kind, case r.action when 'notify' then 'warning' else 'critical' end,
    private.protection_message(r, (select a.currency from public.trading_accounts a where a.id = r.account_id), p_equity, p_margin),
    jsonb_build_object('rule_id', r.id, 'action', r.action, 'threshold', r.threshold::text, 'limit', private.rule_limit(r)::text,
      'looks', jsonb_build_array(
        jsonb_build_object('at', private.rfc3339(r.breached_at), 'equity', r.breached_equity::text),
        jsonb_build_object('at', private.rfc3339(p_at), 'equity', p_equity::text, 'margin', p_margin::text))));
  case r.action
    when 'notify' then null;
    when 'monitor' then perform private.stop_opening(r.account_id, r.kind, p_now);
    when 'close_all' then perform private.start_flattening(r.account_id, r.close_manual, null, r.kind, p_now);
    when 'close_all_and_off' then perform private.start_flattening(r.account_id, r.close_manual, 'off', r.kind, p_now);
  end case;
end $$;

-- Holds an account's funds against its rules, before its own row is touched. Returns in how many milliseconds it wants to see them again;
-- null: at the usual pace. Figures of another session, or older than what is known, are no look.
create function private.check_protection(
  p_vps uuid, p_account uuid, p_session bigint, p_at timestamptz, p_equity numeric, p_margin numeric
) returns integer
language plpgsql security definer set search_path = '' as $$
declare
  v_before record;
  v_rule public.protection_rules;
  v_look record;
  v_now timestamptz;
  v_again integer;
begin
  -- Plan locks come before every row of this transaction, and only a second look can need them.
  if exists (
    select 1 from public.protection_rules r where r.account_id = p_account and r.enabled and r.breached_at is not null and r.triggered_at is null)
  then
    v_now := private.lock_accounts(private.with_neighbours(p_account));
  end if;
  select a.funds_at, a.equity into v_before from public.trading_accounts a
  where a.id = p_account and a.session = p_session and a.session_vps_id = p_vps and a.removed_at is null
    and p_at >= coalesce(a.funds_at, '-infinity');
  if not found or p_at < clock_timestamp() - private.setting_s('protection_max_age_s') then
    return null;
  end if;
  for v_rule in
    select * from public.protection_rules r where r.account_id = p_account and r.enabled order by r.id for no key update
  loop
    select * into v_look from private.judge_rule(v_rule, p_at, p_equity, p_margin, v_before.funds_at, v_before.equity);
    if v_look.verdict = 'confirmed' and v_now is null then  -- its first look came while we were on our way
      v_look.verdict := 'waiting';
    end if;
    perform private.keep_look(v_rule, v_look.r, v_look.verdict, p_at, p_equity, p_margin);
    if v_look.verdict = 'confirmed' then
      perform private.trigger_rule(v_look.r, p_at, p_equity, p_margin, v_now);
    elsif v_look.verdict in ('first', 'waiting') then
      v_again := least(v_again, (v_look.r).confirm_ms + 10);
    end if;
  end loop;
  return v_again;
end $$;

-- Writes down what a look made of a rule, and the look itself if it was past the limit or took that back.
create function private.keep_look(
  p_old public.protection_rules, p_new public.protection_rules, p_verdict text, p_at timestamptz, p_equity numeric, p_margin numeric
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_old is distinct from p_new then
    update public.protection_rules r set day = p_new.day, day_start_equity = p_new.day_start_equity, day_start_at = p_new.day_start_at,
      high_water_mark = p_new.high_water_mark, breached_at = p_new.breached_at, breached_equity = p_new.breached_equity
    where r.id = p_old.id;
    if p_old.triggered_at is distinct from p_new.triggered_at then
      update public.protection_rules r set triggered_at = p_new.triggered_at where r.id = p_old.id;
    end if;
  end if;
  if p_verdict in ('first', 'contradicted', 'confirmed') then
    insert into public.protection_looks (rule_id, user_id, account_id, kind, at, equity, margin, reached, outcome)
    values (p_old.id, p_old.user_id, p_old.account_id, p_old.kind, p_at, p_equity, p_margin, private.rule_limit(p_new), p_verdict);
  end if;
end $$;

-- A follower's broker closed a position for lack of margin: its copy ends so, nothing more is opened there, and its user is told.
-- Called with the event, before it is planned on: the links still know what they held.
create function private.note_stop_out(p_account public.trading_accounts, p_position jsonb, p_lots numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follows boolean := exists (select 1 from public.copiers c where c.follower_account_id = p_account.id and c.removed_at is null);
begin
  update public.position_links l set stopped_out = true
  where l.ended_at is null and l.id = any (array(
    select g.link_id from private.link_legs g
    where g.account_id = p_account.id and g.ticket in (p_position ->> 'ticket', p_position ->> 'symbol')));
  if v_follows then
    perform private.stop_opening(p_account.id, 'stop_out', p_now);
  end if;
  perform private.raise_alert(p_account.id, 'stop_out', 'stop_out', 'critical',
    format('Stop-out: the broker of %s closed %s %s %s for lack of margin.', p_account.name, p_position ->> 'side', trim_scale(p_lots),
      p_position ->> 'symbol')
    || case when v_follows then ' Nothing is opened there any more and the copy stays closed; closes go on.'
      || ' Add funds or copy smaller, then switch the account on again.' else ' Add funds or reduce what is held.' end,
    jsonb_build_object('ticket', p_position ->> 'ticket', 'symbol', p_position ->> 'symbol', 'side', p_position ->> 'side', 'lots', p_lots::text));
end $$;


-- What users do with rules

-- The funds of an account if they are known and fresh, else nulls.
create function private.known_funds(p_account uuid, out measured_at timestamptz, out equity numeric, out margin numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  select a.funds_at, a.equity, a.margin into measured_at, equity, margin from public.trading_accounts a
  where a.id = p_account and a.funds_at > clock_timestamp() - private.setting_s('funds_max_age_s');
end $$;

-- Refuses a rule that would close everything the moment it watches: a slip of the pen must not.
create function private.refuse_reached(p_function text, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_funds record;
begin
  select * into v_funds from private.known_funds(r.account_id);
  if r.enabled and r.triggered_at is null and private.limit_reached(r, v_funds.equity, v_funds.margin) then
    raise exception using errcode = 'TC321',
      message = format('%s: the account is already past this limit: %s of %s, equity %s, margin %s', p_function, r.kind,
        private.rule_limit(r), v_funds.equity, coalesce(v_funds.margin::text, 'unknown')),
      hint = 'The rule would act at once. Choose another threshold, or close positions first (flatten_account).';
  end if;
end $$;

-- What is wrong with the settings of a rule; every message says what is allowed.
create function private.refuse_bad_rule(p_rule jsonb, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_what text;
begin
  v_what := case
    when r.kind is null or r.kind not in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target', 'max_margin_use')
      then 'kind must be daily_loss, trailing_drawdown, equity_floor, equity_target or max_margin_use'
    when r.action is null or r.action not in ('notify', 'monitor', 'close_all', 'close_all_and_off')
      then 'action must be notify, monitor, close_all or close_all_and_off'
    when r.threshold is null then 'threshold is missing'
    when r.kind in ('daily_loss', 'trailing_drawdown') and not (r.threshold > 0 and r.threshold < 100)
      then format('threshold of %s must be above 0 and below 100 (percent), not %s', r.kind, r.threshold)
    when r.kind = 'max_margin_use' and not (r.threshold > 0 and r.threshold <= 1000)
      then format('threshold of max_margin_use must be above 0 and at most 1000 (percent of equity), not %s', r.threshold)
    when not (r.threshold > 0 and r.threshold < 1e12)
      then format('threshold of %s must be above 0 and below 1e12 (money of the account), not %s', r.kind, r.threshold)
    when r.confirm_ms is null or r.confirm_ms not between 250 and 60000 then 'confirm_ms must be from 250 to 60000'
    when r.close_manual is null or r.enabled is null then 'close_manual and enabled must be true or false'
    when r.time_zone is null or not exists (select 1 from pg_catalog.pg_timezone_names z where z.name = r.time_zone)
      then format('there is no time zone %s: time_zone must be named like Europe/Berlin, America/New_York or UTC',
        left(coalesce(r.time_zone, 'null'), 100)) end;
  if v_what is not null then
    raise exception using errcode = 'TC303', message = 'save_protection_rule: ' || v_what, hint = 'See docs/protocol.md.';
  end if;
end $$;

-- A rule of the caller, locked together with its account's plan: TC106 when there is none.
create function private.own_rule(p_function text, p_rule uuid) returns public.protection_rules
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_rule public.protection_rules;
begin
  perform private.lock_accounts(array(select r.account_id from public.protection_rules r where r.id = p_rule and r.user_id = v_user));
  select * into v_rule from public.protection_rules r where r.id = p_rule and r.user_id = v_user for update;
  if v_rule.id is null then
    raise exception using errcode = 'TC106', message = format('%s: rule %s does not exist or is not yours', p_function, p_rule), hint = 'Check the id.';
  end if;
  return v_rule;
end $$;

-- {"id" of a rule to change, or "account_id" and "kind" of a new one, "threshold", "action", "close_manual", "confirm_ms", "time_zone",
-- "enabled"} -> {"rule_id"}
create function private.save_protection_rule(p_rule jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_old public.protection_rules;
  v_new public.protection_rules;
  v_unknown text;
begin
  if jsonb_typeof(p_rule) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_protection_rule: the rule must be an object', hint = 'See docs/protocol.md.';
  end if;
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(p_rule) k
  where k not in ('id', 'account_id', 'kind', 'threshold', 'action', 'close_manual', 'confirm_ms', 'time_zone', 'enabled');
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_protection_rule: unknown setting: %s', v_unknown),
      hint = 'The settings are account_id, kind, threshold, action, close_manual, confirm_ms, time_zone and enabled.';
  end if;
  if p_rule ? 'threshold' and not coalesce(private.is_number(p_rule -> 'threshold'), false) then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: threshold is not a number', hint = 'Numbers are decimal strings such as "5".';
  end if;
  select format('%s is %s, but must be %s', e.key, left(e.value::text, 100),
    case e.key when 'confirm_ms' then 'a whole number from 250 to 60000' else 'true or false' end) into v_unknown
  from jsonb_each(p_rule) e
  where e.key in ('confirm_ms', 'close_manual', 'enabled') and not pg_input_is_valid(e.value #>> '{}', case e.key when 'confirm_ms' then 'integer' else 'boolean' end)
  limit 1;
  if v_unknown is not null then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: ' || v_unknown, hint = 'See docs/protocol.md.';
  end if;
  if p_rule ? 'id' then
    v_old := private.own_rule('save_protection_rule', private.uuid_of(p_rule, 'id'));
  else
    select a.id into v_old.account_id from public.trading_accounts a
    where a.id = private.uuid_of(p_rule, 'account_id') and a.user_id = v_user and a.removed_at is null;
    if v_old.account_id is null then
      raise exception using errcode = 'TC106', message = format('save_protection_rule: account %s does not exist or is not yours', p_rule ->> 'account_id'),
        hint = 'Check the id.';
    end if;
    perform private.lock_accounts(array[v_old.account_id]);
    v_old.user_id := v_user;
    v_old.action := 'close_all_and_off';
    v_old.close_manual := true;
    v_old.confirm_ms := 250;
    v_old.time_zone := 'UTC';
    v_old.enabled := true;
  end if;
  begin
    v_new := jsonb_populate_record(v_old, p_rule - array['id', 'account_id']);
  exception when data_exception then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: a value is not of its setting''s form: ' || sqlerrm,
      hint = 'Numbers are decimal strings such as "5", confirm_ms is a whole number, close_manual and enabled are true or false.';
  end;
  perform private.refuse_bad_rule(p_rule, v_new);
  perform private.refuse_contradiction(p_rule, v_old, v_new);
  return jsonb_build_object('rule_id', private.put_rule(v_old, v_new));
end $$;

-- Rules that contradict each other, or what the rule is about: both are named.
create function private.refuse_contradiction(p_rule jsonb, p_old public.protection_rules, p_new public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_other numeric;
begin
  if p_old.id is not null and (p_new.kind <> p_old.kind or coalesce(p_rule ->> 'account_id', p_old.account_id::text) <> p_old.account_id::text) then
    raise exception using errcode = 'TC303', message = 'save_protection_rule: kind and account_id of a rule do not change',
      hint = 'Remove the rule and save another.';
  end if;
  if p_old.id is null and exists (select 1 from public.protection_rules r where r.account_id = p_new.account_id and r.kind = p_new.kind) then
    raise exception using errcode = 'TC320', message = format('save_protection_rule: the account already has a rule of kind %s', p_new.kind),
      hint = 'Change that one instead.';
  end if;
  select r.threshold into v_other from public.protection_rules r
  where r.account_id = p_new.account_id and r.kind = case p_new.kind when 'equity_floor' then 'equity_target' when 'equity_target' then 'equity_floor' end;
  if p_new.kind = 'equity_floor' and p_new.threshold >= v_other or p_new.kind = 'equity_target' and p_new.threshold <= v_other then
    raise exception using errcode = 'TC306',
      message = format('save_protection_rule: equity_floor %s is not below equity_target %s',
        case p_new.kind when 'equity_floor' then p_new.threshold else v_other end, case p_new.kind when 'equity_floor' then v_other else p_new.threshold end),
      hint = 'Change one of the two first.';
  end if;
end $$;

-- Stores a rule that was found good. A new one, one that is switched on again and one with another time zone begin to count anew.
create function private.put_rule(p_old public.protection_rules, p_new public.protection_rules) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_new public.protection_rules := p_new;
  v_funds record;
begin
  if p_old.id is null or p_new.enabled and not p_old.enabled or p_new.time_zone <> p_old.time_zone then
    select * into v_funds from private.known_funds(p_new.account_id);
    v_new := private.rearmed(v_new, v_funds.measured_at, v_funds.equity);
  end if;
  v_new.breached_at := null;  -- seen past another limit, perhaps
  v_new.breached_equity := null;
  perform private.refuse_reached('save_protection_rule', v_new);
  if p_old.id is null then
    v_new.id := gen_random_uuid();
    v_new.created_at := clock_timestamp();
    v_new.updated_at := v_new.created_at;
    insert into public.protection_rules select v_new.*;
  else
    update public.protection_rules r set threshold = v_new.threshold, action = v_new.action, close_manual = v_new.close_manual,
      confirm_ms = v_new.confirm_ms, time_zone = v_new.time_zone, enabled = v_new.enabled, day = v_new.day,
      day_start_equity = v_new.day_start_equity, day_start_at = v_new.day_start_at, high_water_mark = v_new.high_water_mark,
      breached_at = null, breached_equity = null, triggered_at = v_new.triggered_at
    where r.id = p_old.id;
  end if;
  return v_new.id;
end $$;

-- {"rule_id"} -> {"rule_id"}
create function private.remove_protection_rule(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('remove_protection_rule', private.uuid_of(p_request, 'rule_id'));
begin
  delete from public.protection_rules where id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id);
end $$;

-- {"rule_id"} -> {"rule_id", "day_start_equity", "high_water_mark"}: the rule is armed again and counts from now: the day's start and the high
-- are the present equity, or the next one that is known. What the rule did to the account stays.
create function private.reset_protection(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('reset_protection', private.uuid_of(p_request, 'rule_id'));
  v_funds record;
begin
  select * into v_funds from private.known_funds(v_rule.account_id);
  v_rule := private.rearmed(v_rule, v_funds.measured_at, v_funds.equity);
  perform private.refuse_reached('reset_protection', v_rule);
  update public.protection_rules r set day = v_rule.day, day_start_equity = v_rule.day_start_equity, day_start_at = v_rule.day_start_at,
    high_water_mark = v_rule.high_water_mark, breached_at = null, breached_equity = null, triggered_at = null
  where r.id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id, 'day_start_equity', v_rule.day_start_equity::text, 'high_water_mark', v_rule.high_water_mark::text);
end $$;

create function public.save_protection_rule(p_rule jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_protection_rule(p_rule) $$;
comment on function public.save_protection_rule(jsonb) is 'Users: makes or changes a protection rule of one of their accounts.';
create function public.remove_protection_rule(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_protection_rule(p_request) $$;
comment on function public.remove_protection_rule(jsonb) is 'Users: removes a protection rule.';
create function public.reset_protection(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.reset_protection(p_request) $$;
comment on function public.reset_protection(jsonb) is 'Users: arms a protection rule again; its day''s start and high-water mark are the present equity.';
revoke all on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb), public.reset_protection(jsonb) from public, anon;
grant execute on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb), public.reset_protection(jsonb),
  private.save_protection_rule(jsonb), private.remove_protection_rule(jsonb), private.reset_protection(jsonb) to authenticated;

-- 59_resync.sql
-- Resync: what a copier's follower holds and should not, or does not hold and should, and what its user does about each. Explicit, one by one:
-- nothing here happens by itself.

create table private.drift_dismissals (
  copier_id uuid not null references public.copiers (id) on delete cascade,
  kind text not null,
  master_ticket text not null,
  ticket text not null,
  seen text not null,
  dismissed_at timestamptz not null,
  primary key (copier_id, kind, master_ticket, ticket)
);
comment on table private.drift_dismissals is 'Differences that a user does not want to see again, until something about them changes.';
comment on column private.drift_dismissals.seen is 'what the difference was: another one is shown';
alter table private.drift_dismissals enable row level security;

create type private.drift as (
  kind text, master_ticket text, ticket text, link_id bigint, symbol text, side text, lots numeric, held_lots numeric, target_lots numeric,
  price numeric, price_now numeric, digits integer, reason text, actions text[], adoptable text[], seen text
);
comment on type private.drift is 'One difference between what a copier''s follower holds and what its master holds.';

-- The follower's symbol for a trade of the master, as decide() chooses it.
create function private.copied_symbol(p_copier public.copiers, p_symbol text) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_named public.account_symbols;
  v_mapped text;
begin
  select * into v_master from public.account_symbols s where s.account_id = p_copier.master_account_id and s.name = p_symbol;
  select y.follower_symbol into v_mapped from public.symbol_mappings y where y.copier_id = p_copier.id and y.master_symbol = p_symbol;
  select * into v_named from public.account_symbols s where s.account_id = p_copier.follower_account_id and s.name = coalesce(v_mapped, p_symbol);
  if v_mapped is not null or v_named.contract_size = v_master.contract_size and v_named.profit_currency = v_master.profit_currency
    and v_named.trade_mode not in ('close_only', 'disabled') then
    return v_named;
  end if;
  select * into v_follower from public.trading_accounts a where a.id = p_copier.follower_account_id;
  return private.follower_symbol(v_follower, v_master);
end $$;

-- What an open would be made at now, by the follower's quote or else the master's; null: neither has a fresh one.
create function private.price_now(p_copier public.copiers, p_symbol public.account_symbols, p_master_symbol text, p_side text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  if p_symbol.quoted_at > v_since then
    return case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  return (
    select case p_side when 'buy' then s.ask else s.bid end from public.account_symbols s
    where s.account_id = p_copier.master_account_id and s.name = p_master_symbol and s.quoted_at > v_since);
end $$;

-- Whether a live link holds a ticket, or an execution is at work on it.
create function private.is_taken(p public.positions) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
      select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
      where g.account_id = p.account_id and g.ticket = p.ticket)
    or exists (
      select 1 from public.trade_execution_queue q
      where q.account_id = p.account_id and q.in_flight and (q.id = p.tag or q.ticket = p.ticket));
end $$;

-- Whether a position of the follower was opened by this copier for this position of the master.
create function private.is_copy_of(p public.positions, p_copier uuid, p_master_ticket text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.trade_execution_queue q join public.position_links l on l.id = q.link_id
    where q.id = p.tag and q.account_id = p.account_id and l.copier_id = p_copier and l.master_ticket = p_master_ticket);
end $$;

-- The master's positions without a live copy, each with the reason why there is none.
create function private.missing_copies(p_copier public.copiers, p_netting boolean) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
declare
  m record;
  s public.account_symbols;
  v_side text;
  v_adoptable text[];
  v_held boolean;
begin
  for m in
    select p.*, l.id as link_id, case when l.id is null then 'existing' else l.reason end as why
    from public.positions p
    left join lateral (
      select k.id, k.state, k.reason from public.position_links k
      where k.master_account_id = p.account_id and k.master_ticket = p.ticket and k.copier_id = p_copier.id
      order by k.generation desc limit 1
    ) l on true
    where p.account_id = p_copier.master_account_id and p.closed_at is null and coalesce(l.state, 'ended') = 'ended'
      and (p.kind = 'position' or p_copier.copy_pending and not p_netting)
    order by p.first_seen_at, p.ticket
  loop
    s := private.copied_symbol(p_copier, m.symbol);
    v_side := case when (m.side = 'buy') = p_copier.reverse then 'sell' else 'buy' end;
    select coalesce(array_agg(p.ticket order by p.opened_at, p.ticket), '{}'), coalesce(bool_or(private.is_copy_of(p, p_copier.id, m.ticket)), false)
    into v_adoptable, v_held
    from public.positions p
    where p.account_id = p_copier.follower_account_id and p.closed_at is null and p.kind = 'position' and m.kind = 'position'
      and not p_netting and p.symbol = s.name and p.side = v_side and not private.is_taken(p);
    return next row('missing', m.ticket, null, m.link_id, m.symbol, m.side, m.lots, null, null, m.price,
      private.price_now(p_copier, s, m.symbol, v_side), s.digits, case when v_held then 'held_already' else m.why end,
      case when v_held then '{}' else array['copy'] end || case when v_adoptable <> '{}' then array['adopt'] else '{}' end || array['dismiss'],
      v_adoptable, concat_ws('|', m.side, m.lots, m.link_id, v_held))::private.drift;
  end loop;
end $$;

-- Copies of ours that no link holds any more, and whose master is closed. What its user was left with (preserve) is none of them.
create function private.orphans(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'orphan', coalesce(l.master_ticket, ''), p.ticket, l.id, p.symbol, p.side, p.lots, p.lots, 0::numeric, p.price, null::numeric,
    null::integer, 'closed', array['close', 'dismiss'], null::text[], concat_ws('|', p.side, p.lots)
  from public.positions p
  join public.trade_execution_queue q on q.id = p.tag and q.account_id = p.account_id and q.copier_id = p_copier.id
  left join public.position_links l on l.id = q.link_id
  where p.account_id = p_copier.follower_account_id and p.closed_at is null and not p.released and not private.is_taken(p)
    and l.reason is distinct from 'master_never_filled'  -- early_fill_policy keep
    and not exists (
      select 1 from public.positions m where m.account_id = l.master_account_id and m.ticket = l.master_ticket and m.closed_at is null)
  order by p.ticket;
end $$;

-- Live copies that hold something else than what the settings made of their master when it was copied: trimmed by hand, or an increase that was
-- refused. What is in flight is none, nor what is less than the follower's minimum.
create function private.size_mismatches(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'size_mismatch', s.master_ticket, (select min(g.ticket) from private.link_legs g where g.link_id = s.id), s.id, m.symbol, m.side,
    m.lots, s.position_lots, t.lots, m.price, private.price_now(p_copier, f, m.symbol, s.side), f.digits,
    case when s.position_lots > t.lots then coalesce(private.frozen_by(p_copier), 'coalesced')
      when s.position_lots < private.target_lots(s.base_lots, m.lots, s.base_master_lots, s.lots_step, s.lots_min, 1e12) then 'closed_by_follower'
      else coalesce(s.reason, 'not_copied') end,
    array['copy', 'dismiss'], null::text[], concat_ws('|', s.position_lots, t.lots)
  from private.link_states s
  join public.positions m on m.account_id = s.master_account_id and m.ticket = s.master_ticket and m.closed_at is null and m.kind = 'position'
  join public.account_symbols f on f.account_id = s.follower_account_id and f.name = s.symbol
  cross join lateral (
    select private.target_lots(s.sized_lots, m.lots, s.sized_master_lots, f.lots_step, f.lots_min, 1e12) as lots) t
  where s.follower_account_id = p_copier.follower_account_id and s.state = 'live' and s.copier_id = p_copier.id and not s.doomed
    and s.executions = 0 and s.wanted_lots is null and s.base_lots is not null and s.sized_lots is not null
    and (t.lots - s.position_lots >= f.lots_min or s.position_lots - t.lots >= f.lots_min and s.position_lots
      > private.target_lots(s.base_lots, m.lots, s.base_master_lots, f.lots_step, f.lots_min, s.position_lots))
    and not exists (  -- a netting deal in flight may be this link's, too
      select 1 from public.trade_execution_queue q
      where s.account_mode = 'netting' and q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight)
  order by s.id;
end $$;

-- What keeps even closes and reductions of a copier from being made now, or null.
create function private.frozen_by(p_copier public.copiers) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select case when private.trading_state() = 'off' then 'trading_stopped' when a.copy_state = 'off' then 'account_off'
      when p_copier.mode = 'off' and p_copier.removal is null then 'copier_off' end
    from public.trading_accounts a where a.id = p_copier.follower_account_id);
end $$;

create function private.drift_of(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a where a.id = p_copier.follower_account_id);
begin
  return query select d.* from private.missing_copies(p_copier, v_netting) d;
  if not v_netting then  -- which part of a net position no link holds, nobody can tell
    return query select d.* from private.orphans(p_copier) d;
  end if;
  return query select d.* from private.size_mismatches(p_copier) d;
end $$;

-- The caller's copier, or any for an operator; TC106 otherwise.
create function private.require_copier(p_function text, p_request jsonb) returns public.copiers
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  c public.copiers;
begin
  select * into c from public.copiers x
  where x.id = private.uuid_of(p_request, 'copier_id') and (x.user_id = v_user or private.is_operator()) and x.removed_at is null;
  if c.id is null then
    raise exception using errcode = 'TC106', message = format('%s: copier %s does not exist or is not yours', p_function, p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  return c;
end $$;

-- {"copier_id", "dismissed": false} -> {"copier_id", "items": […]}, see docs/protocol.md. "dismissed": true shows the dismissed ones, too.
create function private.copier_drift(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers := private.require_copier('copier_drift', p_request);
begin
  return jsonb_build_object('copier_id', c.id, 'items', (
    select coalesce(jsonb_agg(jsonb_build_object('kind', d.kind, 'master_ticket', nullif(d.master_ticket, ''), 'ticket', d.ticket,
        'symbol', d.symbol, 'side', d.side, 'lots', trim_scale(d.lots)::text, 'held_lots', trim_scale(d.held_lots)::text,
        'target_lots', trim_scale(d.target_lots)::text, 'price', trim_scale(d.price)::text, 'price_now', trim_scale(d.price_now)::text,
        'distance_points', private.distance_points(d), 'reason', d.reason, 'actions', to_jsonb(d.actions),
        'adoptable', to_jsonb(coalesce(d.adoptable, '{}')), 'dismissed', x.copier_id is not null)), '[]')
    from private.drift_of(c) d
    left join private.drift_dismissals x on x.copier_id = c.id and x.kind = d.kind and x.master_ticket = d.master_ticket
      and x.ticket = coalesce(d.ticket, '') and x.seen = d.seen
    where x.copier_id is null or coalesce((p_request ->> 'dismissed')::boolean, false)));
end $$;

-- How far the price has moved from the master's, whichever way; null: nobody knows.
create function private.distance_points(d private.drift) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(round(abs(d.price_now - d.price) * 10::numeric ^ d.digits, 1));
end $$;

-- What is wrong with a call of resync_copier; null when nothing is.
create function private.resync_error(p_request jsonb) returns text
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_field text;
begin
  if jsonb_typeof(p_request -> 'items') is distinct from 'array' or jsonb_array_length(p_request -> 'items') not between 1 and 200 then
    return '"items" must be an array of 1 to 200 items';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'max_distance_points'), 'null') <> 'null'
    and coalesce(not private.is_number(p_request -> 'max_distance_points') or (p_request ->> 'max_distance_points')::numeric < 0, true) then
    return 'max_distance_points must be a number, not negative';
  end if;
  for e in select value from jsonb_array_elements(p_request -> 'items') loop
    if jsonb_typeof(e) is distinct from 'object' then return 'an item is not an object'; end if;
    if not coalesce(case e ->> 'kind' when 'missing' then e ->> 'action' in ('copy', 'adopt', 'dismiss')
      when 'orphan' then e ->> 'action' in ('close', 'dismiss') when 'size_mismatch' then e ->> 'action' in ('copy', 'dismiss') end, false) then
      return format('there is no action %s for an item of kind %s: missing takes copy, adopt and dismiss; orphan close and dismiss; '
        'size_mismatch copy and dismiss', coalesce(e ->> 'action', '(none)'), coalesce(e ->> 'kind', '(none)'));
    end if;
    foreach v_field in array case when e ->> 'kind' = 'orphan' then array['ticket']
      when e ->> 'action' = 'adopt' then array['master_ticket', 'ticket'] else array['master_ticket'] end
    loop
      if jsonb_typeof(e -> v_field) is distinct from 'string' then
        return format('an item of kind %s with action %s needs %s, a text', e ->> 'kind', e ->> 'action', v_field);
      end if;
    end loop;
  end loop;
  return null;
end $$;

-- Binds a position of the follower to the master's, without any order: its levels count as asked for.
create function private.adopt_position(p_copier public.copiers, d private.drift, p_ticket text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link bigint;
  v_wanted record;
begin
  insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket, master_side, generation, symbol,
    side, state, seen_master_lots, base_master_lots, base_lots, sized_lots, sized_master_lots, warnings, event_id, created_at)
  select p_copier.user_id, p_copier.id, m.account_id, p.account_id, m.ticket, m.side, coalesce((
      select max(o.generation) from public.position_links o
      where o.master_account_id = m.account_id and o.master_ticket = m.ticket and o.copier_id = p_copier.id), 0) + 1,
    p.symbol, p.side, 'live', m.lots, m.lots, p.lots, p.lots, m.lots, array['adopted'], m.last_event_id, p_now
  from public.positions m, public.positions p
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket
    and p.account_id = p_copier.follower_account_id and p.ticket = p_ticket
  returning id into v_link;
  insert into private.link_legs (link_id, account_id, ticket, kind, lots, price)
  select v_link, p.account_id, p.ticket, p.kind, p.lots, p.price from public.positions p
  where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket;
  update public.positions p set released = false where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.released;
  select s.wanted_sl, s.wanted_tp into v_wanted from private.link_states s where s.id = v_link;
  update public.position_links l set asked_sl = v_wanted.wanted_sl, asked_tp = v_wanted.wanted_tp where l.id = v_link;
end $$;

-- Queues the close of a copy that no link holds. Returns the new execution.
create function private.close_orphan(p_copier public.copiers, p_ticket text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint := nextval('public.trade_execution_queue_id_seq');
begin
  insert into public.trade_execution_queue (id, step_id, lane, copier_id, user_id, account_id, action, priority, symbol, side, lots, target_lots,
    ticket, send_before, queued_at, updated_at)
  overriding system value
  select v_id, v_id, 'orphan:' || p.ticket, p_copier.id, p.user_id, p.account_id, case p.kind when 'order' then 'cancel' else 'close' end, 10,
    p.symbol, p.side, p.lots, 0, p.ticket, p_now, p_now, p_now
  from public.positions p where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket;
  return v_id;
end $$;

create function private.resync_answer(p_item jsonb, p_result text, p_reason text, p_message text, p_executions bigint[]) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_build_object('kind', p_item ->> 'kind', 'action', p_item ->> 'action', 'master_ticket', p_item ->> 'master_ticket',
    'ticket', p_item ->> 'ticket', 'result', p_result, 'reason', p_reason, 'message', p_message,
    'executions', coalesce((select jsonb_agg(x::text) from unnest(p_executions) x), '[]'));
end $$;

-- Why a copy may not even be decided, or null: what is held already is not bought twice, and the price may have run away.
create function private.copy_refused(d private.drift, p_max_distance numeric, out reason text, out message text)
language plpgsql immutable set search_path = '' as $$
begin
  if not 'copy' = any (d.actions) then
    reason := 'held_already';
    message := format('The follower still holds a position that was opened for %s: adopt it, or close it first.', d.master_ticket);
  elsif p_max_distance is not null and private.distance_points(d) is null then
    reason := 'no_quote';
    message := format('Nobody knows the price of %s now, so its distance from %s cannot be told.', d.symbol, private.plain(d.price));
  elsif private.distance_points(d) > p_max_distance then
    reason := 'price_moved';
    message := format('The price is %s, %s points from the master''s %s; at most %s were allowed.', private.plain(d.price_now),
      private.distance_points(d), private.plain(d.price), private.plain(p_max_distance));
  end if;
end $$;

-- What came of a copy that was put before the planner: its new executions, or the reason why there are none.
create function private.copy_answer(p_copier public.copiers, p_item jsonb, d private.drift) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  l public.position_links;
  v_executions bigint[];
  v_detail text;
begin
  select * into l from public.position_links k
  where k.master_account_id = p_copier.master_account_id and k.master_ticket = d.master_ticket and k.copier_id = p_copier.id
  order by k.generation desc limit 1;
  select array_agg(q.id order by q.id) into v_executions from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null;
  if l.state = 'live' and (v_executions is not null or l.wanted_lots is not null or exists (
    select 1 from public.trade_execution_queue q
    where q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text))))
  then
    return private.resync_answer(p_item, 'queued', null, null, v_executions);
  end if;
  select o.detail into v_detail from public.positions m
  join public.copy_outcomes o on o.event_id = m.last_event_id and o.copier_id = p_copier.id and o.reason = l.reason
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket;
  return private.resync_answer(p_item, 'refused', coalesce(l.reason, private.frozen_by(p_copier), 'no_change'), v_detail, null);
end $$;

-- Whether a drift is the one that an item of a call speaks of.
create function private.is_meant(d private.drift, p_item jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return d.kind = p_item ->> 'kind' and case d.kind when 'orphan' then d.ticket = p_item ->> 'ticket' else d.master_ticket = p_item ->> 'master_ticket' end;
end $$;

-- {"copier_id", "items": [{"kind", "master_ticket", "ticket", "action"}], "max_distance_points": null} -> {"copier_id", "items": [{…, "result":
-- "queued|adopted|dismissed|refused|nothing_to_do", "reason", "message", "executions"}]}, one per item, in order.
-- Longer than forty lines: it is one walk over the items.
create function private.resync_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  c public.copiers := private.require_copier('resync_copier', p_request);
  v_error text := private.resync_error(p_request);
  v_now timestamptz;
  v_netting boolean;
  v_items jsonb := '[]';
  v_item jsonb;
  d private.drift;
  v_refused record;
  v_answers jsonb := '{}';
  v_links bigint[] := '{}';
  v_tickets text[] := '{}';
  v_missing text[] := '{}';
  v_new bigint[] := '{}';
  n integer := 0;
begin
  if v_error is not null then
    raise exception using errcode = 'TC001', message = 'resync_copier: ' || v_error, hint = 'copier_drift lists the items and their actions.';
  end if;
  perform private.refuse_leaving(c.id);
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  c := private.require_copier('resync_copier', p_request);  -- it may have changed while we waited
  perform private.refuse_leaving(c.id);
  v_netting := (select a.mode = 'netting' from public.trading_accounts a where a.id = c.follower_account_id);

  for v_item in select value from jsonb_array_elements(p_request -> 'items') loop
    n := n + 1;
    if v_netting and (v_item ->> 'action' = 'adopt' or v_item ->> 'kind' = 'orphan') then
      raise exception using errcode = 'TC308', message = format('resync_copier: a netting account has one position per symbol, so %s is not possible',
          case when v_item ->> 'action' = 'adopt' then 'adopting one' else 'closing what no copy holds' end),
        hint = 'Deal it by hand at the follower; what no copy holds is never touched.';
    end if;
    d := null;
    select x.* into d from private.drift_of(c) x where private.is_meant(x, v_item) limit 1;
    v_refused := private.copy_refused(d, (p_request ->> 'max_distance_points')::numeric);
    v_item := v_item || jsonb_build_object('n', n);
    if d.kind is null or v_item ->> 'master_ticket' = any (v_tickets) then
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'nothing_to_do', null,
        'There is no such difference (any more): it is copied, closed or being worked on.', null));
    elsif v_item ->> 'action' = 'dismiss' then
      insert into private.drift_dismissals as x (copier_id, kind, master_ticket, ticket, seen, dismissed_at)
      values (c.id, d.kind, d.master_ticket, coalesce(d.ticket, ''), d.seen, v_now)
      on conflict (copier_id, kind, master_ticket, ticket) do update set seen = excluded.seen, dismissed_at = excluded.dismissed_at;
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'dismissed', null, null, null));
    elsif v_item ->> 'action' = 'adopt' then
      if v_item ->> 'ticket' = any (d.adoptable) then
        perform private.adopt_position(c, d, v_item ->> 'ticket', v_now);
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'adopted', null, null, null));
      else
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'refused', 'not_adoptable', format(
          'Position %s of the follower is closed, held by another copy, being worked on, or not of the symbol and side of %s.',
          v_item ->> 'ticket', d.master_ticket), null));
      end if;
    elsif v_item ->> 'action' = 'close' then
      if private.frozen_by(c) in ('trading_stopped', 'account_off') then
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'refused', private.frozen_by(c), null, null));
      else
        v_new := v_new || private.close_orphan(c, d.ticket, v_now);
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'queued', null, null, v_new[cardinality(v_new):]));
      end if;
    elsif v_refused.reason is not null and (d.kind = 'missing' or d.held_lots < d.target_lots) then
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'refused', v_refused.reason, v_refused.message, null));
    else
      update public.position_links l set resync_lots = d.target_lots - d.held_lots
      where l.id = d.link_id and l.ended_at is null and d.held_lots < d.target_lots;
      v_tickets := v_tickets || d.master_ticket;
      v_links := v_links || case when d.kind = 'size_mismatch' then d.link_id end;
      v_missing := v_missing || case when d.kind = 'missing' then d.master_ticket end;
      v_items := v_items || jsonb_build_array(v_item || jsonb_build_object('drift', to_jsonb(d)));
    end if;
  end loop;

  v_missing := array_remove(v_missing, null);
  v_links := array_remove(v_links, null);
  v_new := v_new || coalesce(private.decide(array_fill(c.master_account_id, array[cardinality(v_missing)]), v_missing, array[c.id], v_now, 'resync'), '{}');
  v_new := v_new || coalesce(private.plan(v_links, array_fill(c.master_account_id, array[cardinality(v_tickets)]), v_tickets, array[c.id], v_now), '{}');
  for v_item in select value from jsonb_array_elements(v_items) loop
    v_answers := v_answers || jsonb_build_object(v_item ->> 'n', private.copy_answer(c, v_item,
      jsonb_populate_record(null::private.drift, v_item -> 'drift')));
  end loop;
  -- what was asked for and could not be decided now is not decided later
  update public.position_links l set resync_lots = null where l.id = any (v_links) and l.resync_lots is not null;
  perform private.offer(v_new, null, clock_timestamp());
  delete from private.drift_dismissals x where x.copier_id = c.id and not exists (
    select 1 from private.drift_of(c) y
    where y.kind = x.kind and y.master_ticket = x.master_ticket and coalesce(y.ticket, '') = x.ticket and y.seen = x.seen);
  return jsonb_build_object('copier_id', c.id, 'items', (
    select jsonb_agg(v_answers -> i::text order by i) from generate_series(1, n) i));
end $$;

create function public.copier_drift(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.copier_drift(p_request) $$;
comment on function public.copier_drift(jsonb) is
  'How what a copier''s follower holds differs from its master: missing, orphan and size_mismatch, each with the reason and what can be done.';
create function public.resync_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.resync_copier(p_request) $$;
comment on function public.resync_copier(jsonb) is 'Does something about differences of copier_drift: copy, close, adopt or dismiss, each by the user''s own decision.';
revoke all on function public.copier_drift(jsonb), public.resync_copier(jsonb) from public, anon;
grant execute on function public.copier_drift(jsonb), private.copier_drift(jsonb), public.resync_copier(jsonb), private.resync_copier(jsonb) to authenticated;

-- 60_views.sql
-- Views for people: Studio, the dashboard, checks.

create view public.unexplained_pairs with (security_invoker = true) as
select e.id as event_id, e.received_at, e.account_id, e.type, e.ticket, c.id as copier_id, c.follower_account_id
from public.trade_events e
join public.copiers c on c.master_account_id = e.account_id and c.created_at <= e.received_at
  and (c.removed_at is null or c.removed_at > e.received_at)
left join public.copy_outcomes o on o.event_id = e.id and o.copier_id = c.id
where e.status = 'accepted' and e.type <> 'snapshot' and e.received_at > now() - interval '30 days'  -- older outcomes may be gone
  and (o.event_id is null
    or (o.execution_id is not null and not exists (select 1 from public.trade_execution_queue q where q.id = o.execution_id)));
comment on view public.unexplained_pairs is
  'Every (event, copier) that has neither a copy nor a reason. Must be empty; a row here is a bug.';
grant select on public.unexplained_pairs to authenticated, service_role;

-- Times, prices and units stand in the comments below. Every join is a look-up by an index from the outcomes that are asked for, newest
-- first by user (copy_outcomes_of_user) or for operators (copy_outcomes_decided). Two windows of time keep the event's look-up on a few
-- partitions; an outcome that is decided later than that after its event knows the rest from the mirror.
create view public.copied_trades with (security_invoker = true) as
select o.event_id, o.copier_id, o.user_id, o.link_id, o.decided_at,
  c.name as copier, c.master_account_id, c.follower_account_id,
  e.type as event, coalesce(e.ticket, l.master_ticket) as master_ticket, coalesce(e.symbol, m.symbol) as master_symbol,
  coalesce(e.side, l.master_side) as master_side, e.lots as master_lots, e.previous_lots as master_previous_lots,
  coalesce(e.deal_price, case when x.action = 'open' and x.parts is null then x.master_price end) as master_price,
  coalesce(x.symbol, l.symbol) as symbol, coalesce(case when x.parts is null then x.side end, l.side) as side,
  case
    when x.id is null then 'not_copied'
    when d.waiting > 0 then 'in_flight'
    when d.failed = 0 and not d.short and t.reason is null then 'copied'
    when d.filled_lots > 0 or d.short and d.filled_lots is null then 'partly'
    when d.failed < d.orders then 'copied'
    else 'not_copied' end as status,
  coalesce(o.reason, d.reason, t.reason) as reason, o.detail, d.message,
  array(select distinct w from unnest(coalesce(x.warnings, '{}') || coalesce(l.warnings, '{}')) w order by w) as warnings,
  d.orders, d.attempts, d.filled_lots, d.fill_price,
  round(d.slippage_points, 2) as slippage_points, round(d.slippage_money, 4) as slippage_money, fa.currency,
  e.detect_ms, d.decide_ms, d.transport_ms, d.lane_ms, d.broker_ms, d.total_ms
from public.copy_outcomes o
left join public.copiers c on c.id = o.copier_id
left join public.trading_accounts fa on fa.id = c.follower_account_id
left join public.position_links l on l.id = o.link_id
-- of a flip whose other side a rule refused: why
left join public.position_links t on t.copier_id = l.copier_id and t.master_ticket = l.master_ticket and t.generation = l.generation + 1
  and t.event_id = o.event_id and t.ended_at = t.created_at
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
left join public.trade_events e on e.id = o.event_id and e.received_at > o.decided_at - interval '7 days'
  and e.received_at < o.decided_at + interval '1 day'
left join public.trade_execution_queue x on x.id = o.execution_id
left join lateral (
  select count(*) as orders, count(*) filter (where q.finalized_at is null) as waiting,
    -- what was refused, or filled in part, and has been done since by another order is no failure
    count(*) filter (where q.status in ('rejected', 'expired', 'cancelled') and q.step_id >= coalesce(q.done_step, 0)) as failed,
    coalesce(bool_or(q.finalized_at is not null and q.filled_lots < q.lots and q.action in ('open', 'increase', 'reduce', 'close')
      and q.status = 'completed' and q.step_id >= coalesce(q.done_step, 0)), false) as short,
    max(q.attempt) as attempts,
    (array_agg(q.reason order by q.finalized_at is null desc, q.id desc) filter (where q.reason is not null and q.step_id >= coalesce(q.done_step, 0)))[1] as reason,
    (array_agg(q.message order by q.finalized_at is null desc, q.id desc) filter (where q.reason is not null and q.step_id >= coalesce(q.done_step, 0)))[1] as message,
    sum(f.lots) as filled_lots, sum(f.lots * q.fill_price) / nullif(sum(f.lots), 0) as fill_price,
    -- one fill that cannot be compared, and the sum would say too little
    case when bool_and(s.points is not null) filter (where f.lots > 0) then sum(f.lots * s.points) / nullif(sum(f.lots), 0) end
      as slippage_points,
    case when bool_and(s.points * q.point_money is not null) filter (where f.lots > 0) then sum(f.lots * s.points * q.point_money) end
      as slippage_money,
    max(case when q.queued_at >= q.detected_at then extract(epoch from q.queued_at - q.detected_at) * 1000 end) as decide_ms,
    max(case when q.received_at >= coalesce(q.offered_at, q.queued_at)
      then extract(epoch from q.received_at - coalesce(q.offered_at, q.queued_at)) * 1000 end) as transport_ms,
    max(case when q.sent_at >= q.received_at then extract(epoch from q.sent_at - q.received_at) * 1000 end) as lane_ms,
    max(case when q.done_at >= q.sent_at then extract(epoch from q.done_at - q.sent_at) * 1000 end) as broker_ms,
    max(case when q.sent_at >= q.detected_at then extract(epoch from q.sent_at - q.detected_at) * 1000 end) as total_ms
  from (
    -- the step; the open of a flip, which names the step that closed; what was queued anew after a refusal
    select y.*, max(y.step_id) filter (where y.status = 'completed') over (partition by y.action) as done_step
    from public.trade_execution_queue y
    where y.id = x.id or y.event_id = x.event_id and y.copier_id = x.copier_id and (y.step_id = x.step_id
      or y.after_id = x.step_id and x.action in ('close', 'cancel') or y.action = x.action and y.link_id = x.link_id)
  ) q
  -- what this copier has of the order: of a netting deal its own part, which is known unless several parts shared a partial fill
  left join lateral (
    select case when (p.value ->> 'lots')::numeric < 0 then -1 else 1 end * case p.value ->> 'side' when 'buy' then 1 else -1 end as direction,
      case when jsonb_array_length(q.parts) = 1 then q.filled_lots when q.filled_lots = q.lots then abs((p.value ->> 'lots')::numeric) end as lots
    from jsonb_array_elements(q.parts) p where p.value ->> 'link_id' = o.link_id::text
  ) part on q.parts is not null
  cross join lateral (
    select case when q.parts is null then q.filled_lots else part.lots end as lots,
      case when q.parts is not null then part.direction
        else case q.side when 'buy' then 1 else -1 end * case when q.action in ('open', 'increase') then 1 else -1 end end as direction
  ) f
  cross join lateral (
    select f.direction * (q.fill_price
      - coalesce(e.deal_price, case when q.action = 'open' and q.parts is null then q.master_price end)) / q.point_size as points
  ) s
  where q.parts is null or part.direction is not null
) d on x.id is not null;
comment on view public.copied_trades is
  'What came of every trade event for every copier: what was dealt, at what price, how late and how far from the master; or the one reason why not.';
comment on column public.copied_trades.event is 'what the master did: opened, increased, reduced, modified, closed, ordered, amended, cancelled';
comment on column public.copied_trades.master_lots is 'lots of the master''s position after the event';
comment on column public.copied_trades.master_price is 'price of the master''s deal; null = not told, or no deal';
comment on column public.copied_trades.symbol is 'the follower''s symbol';
comment on column public.copied_trades.side is 'side of the follower''s position';
comment on column public.copied_trades.status is 'copied; partly (less was filled than asked for); in_flight; not_copied (see reason)';
comment on column public.copied_trades.reason is 'code of docs/errors.md: why nothing, or not all of it, was copied, or what the order waits for';
comment on column public.copied_trades.detail is 'the steps of the sizing, in words';
comment on column public.copied_trades.message is 'the broker''s or the agent''s own words';
comment on column public.copied_trades.warnings is 'what was changed on the way: capped, split, forced_min, …';
comment on column public.copied_trades.orders is 'orders that the copy took';
comment on column public.copied_trades.filled_lots is 'lots that were dealt at the follower; null = not known (a netting deal of several copies, filled in part)';
comment on column public.copied_trades.fill_price is 'price of the fills, weighted by their lots';
comment on column public.copied_trades.slippage_points is
  'points of the follower''s symbol between the master''s deal and the fills, weighted by lots; above 0 = worse for the follower';
comment on column public.copied_trades.slippage_money is
  'the same for all lots in the follower''s currency, by the rate at the fill; above 0 = lost. Commission and swap are not in it';
comment on column public.copied_trades.currency is 'currency of the follower''s account';
comment on column public.copied_trades.detect_ms is 'ms from the deal at the master''s broker to its detection by the agent; null = not told';
comment on column public.copied_trades.decide_ms is 'ms from the detection to the decision; this and the following: the slowest order''s; null = not known';
comment on column public.copied_trades.transport_ms is 'ms from the decision (or the new attempt) to the follower''s agent';
comment on column public.copied_trades.lane_ms is 'ms that the order waited at the agent before it was sent';
comment on column public.copied_trades.broker_ms is 'ms that the broker took to answer';
comment on column public.copied_trades.total_ms is 'ms from the detection until the order was sent';
grant select on public.copied_trades to authenticated, service_role;
