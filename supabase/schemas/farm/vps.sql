-- vps_instances: the machines of the farm, one agent on each. Also enrolment tokens, secrets, health and doorbells.

create table public.vps_instances (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  user_id uuid unique references auth.users (id) on delete set null,
  region text not null default '',
  platforms text[] not null,
  capacity integer not null default 50,
  status text not null default 'enrolled',
  -- updated by every heartbeat: none of these columns is indexed, so the update can stay on its page (HOT)
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
  answer_id bigint not null default 0,
  worked_at timestamptz not null default now(),
  process_worked boolean not null default true,
  unfit text,
  unfit_since timestamptz,
  unfit_works boolean not null default false,
  retired_at timestamptz,
  created_at timestamptz not null default now(),
  constraint name_is_short check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  constraint platforms_are_named check (cardinality(platforms) > 0),
  constraint capacity_is_positive check (capacity between 1 and 10000),
  constraint status_is_known check (status in ('enrolled', 'online', 'offline', 'draining', 'retired')),
  constraint retired_means_retired_at check ((status = 'retired') = (retired_at is not null))
) with (fillfactor = 60);
comment on table public.vps_instances is
  'One row per VPS of the farm. Its agent renews lease_expires_at with each heartbeat.';
comment on column public.vps_instances.id is 'ID of the VPS; its broadcasts go to the topic vps:<id>.';
comment on column public.vps_instances.name is 'The name that operators gave it.';
comment on column public.vps_instances.user_id is 'The auth user that its agent signs in as.';
comment on column public.vps_instances.region is 'Where the machine is; for operators.';
comment on column public.vps_instances.platforms is 'Platforms that its agent can connect.';
comment on column public.vps_instances.capacity is 'The most accounts that it takes.';
comment on column public.vps_instances.status is
  'enrolled (no heartbeat yet) -> online <-> offline (lease lost); draining (its accounts are moved away); retired '
  '(permanently).';
comment on column public.vps_instances.lease_expires_at is
  'Until then its agent may trade; after that its accounts move.';
comment on column public.vps_instances.last_heartbeat_at is 'When its agent last sent a heartbeat.';
comment on column public.vps_instances.last_tick_at is
  'When the last tick was sent to its topic; an agent that did not receive it reconnects its socket.';
comment on column public.vps_instances.clock_offset_ms is 'Database clock minus agent clock, as the agent measured it.';
comment on column public.vps_instances.rtt_ms is 'Round trip of a heartbeat, as the agent measured it.';
comment on column public.vps_instances.agent_version is 'Version of its agent.';
comment on column public.vps_instances.cpu_percent is 'CPU load of the machine.';
comment on column public.vps_instances.memory_percent is 'Memory in use on the machine.';
comment on column public.vps_instances.disk_percent is 'Disk in use on the machine.';
comment on column public.vps_instances.rss_mb is 'Memory used by the agent itself.';
comment on column public.vps_instances.process is
  'The agent process that works as this VPS: a random ID drawn at each start.';
comment on column public.vps_instances.process_machine is
  'Where the process runs. Equal to the previous one''s only if the lock on the data directory proves that it has '
  'ended.';
comment on column public.vps_instances.process_since is 'When its first heartbeat arrived.';
comment on column public.vps_instances.process_begins_at is
  'From then on the process may trade: at once, or when the lease of a process on another machine was over.';
comment on column public.vps_instances.process_beat is 'Number of the process''s last heartbeat.';
comment on column public.vps_instances.answer_id is
  'Number of the last answer to a heartbeat: the time it was given, in microseconds since 1970.';
comment on column public.vps_instances.worked_at is
  'When the last answer that its agent has worked through was given; before the first, when the process first called.';
comment on column public.vps_instances.process_worked is
  'Whether the current process has ever worked through an answer.';
comment on column public.vps_instances.unfit is
  'Why its agent reports that it is unfit, a code of docs/errors.md; null: it is fit. An unfit VPS is given no '
  'account.';
comment on column public.vps_instances.unfit_since is 'Since when it has been unfit.';
comment on column public.vps_instances.unfit_works is
  'Whether it works although it is unfit, because no other VPS can take its accounts.';
comment on column public.vps_instances.retired_at is 'When it was retired; its agent is refused from then on.';
comment on column public.vps_instances.created_at is 'When it was enrolled.';

-- a name is free again once its VPS is retired
create unique index name_is_taken_once on public.vps_instances (name) where retired_at is null;
alter table public.vps_instances enable row level security;
create policy "operators see the farm" on public.vps_instances for select to authenticated
  using ((select private.is_operator()));

-- A table of its own, so that "select *" by an operator can never show a secret.
create table private.vps_secrets (
  vps_id uuid primary key references public.vps_instances (id) on delete cascade,
  secret_hash text not null,
  constraint secret_is_a_sha256 check (secret_hash ~ '^[0-9a-f]{64}$')
);
comment on table private.vps_secrets is 'What an agent proves its identity with when it must sign in again.';
comment on column private.vps_secrets.vps_id is 'The VPS.';
comment on column private.vps_secrets.secret_hash is
  'SHA-256 (hex) of the agent''s secret. The secret has 256 random bits, so it needs no slow hash.';
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
comment on table public.enrollment_tokens is 'One-time tokens by which a new VPS joins the farm.';
comment on column public.enrollment_tokens.id is 'ID of the token.';
comment on column public.enrollment_tokens.token_hash is
  'SHA-256 (hex) of the token; the token itself is shown once and stored nowhere.';
comment on column public.enrollment_tokens.name is 'Name that the VPS must take; null: the VPS chooses it.';
comment on column public.enrollment_tokens.created_by is 'The operator who made it; null: the service key.';
comment on column public.enrollment_tokens.created_at is 'When it was made.';
comment on column public.enrollment_tokens.expires_at is 'Until when it can be used.';
comment on column public.enrollment_tokens.used_at is 'When it was used; null: not yet. A token can be used once.';
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
comment on table public.connection_health_logs is
  'Health over time: one row per VPS and minute, and one per change of state of a VPS or an account.';
comment on column public.connection_health_logs.id is 'ID of the row.';
comment on column public.connection_health_logs.at is 'When; for kind minute, the beginning of the minute.';
comment on column public.connection_health_logs.kind is 'minute (a sample) or state (a status changed).';
comment on column public.connection_health_logs.vps_id is 'The VPS; for an account, the VPS that works it.';
comment on column public.connection_health_logs.account_id is
  'The account whose connection changed; null: the row is about the VPS.';
comment on column public.connection_health_logs.status is 'The new status of the VPS or account.';
comment on column public.connection_health_logs.previous_status is 'The status before; only for kind state.';
comment on column public.connection_health_logs.reason is 'Why, as the agent reported it.';
comment on column public.connection_health_logs.accounts is 'How many accounts the VPS had.';
comment on column public.connection_health_logs.heartbeat_age_ms is 'Age of the VPS''s last heartbeat.';
comment on column public.connection_health_logs.rtt_ms is 'Round trip to the database.';
comment on column public.connection_health_logs.clock_offset_ms is 'Database clock minus agent clock.';
comment on column public.connection_health_logs.cpu_percent is 'CPU load of the machine.';
comment on column public.connection_health_logs.memory_percent is 'Memory in use on the machine.';
comment on column public.connection_health_logs.disk_percent is 'Disk in use on the machine.';
comment on column public.connection_health_logs.rss_mb is 'Memory used by the agent.';

-- one sample per VPS and minute, whoever runs maintain(); also reads the health of one VPS over time
create unique index one_sample_per_vps_and_minute on public.connection_health_logs (vps_id, at) where kind = 'minute';

-- the history of one account
create index health_of_account on public.connection_health_logs (account_id, at) where account_id is not null;

-- retention, doorbells
create index health_by_time on public.connection_health_logs (at);
alter table public.connection_health_logs enable row level security;

-- When scheduled work last ran. Only the holder of the advisory lock of the same name writes a row.
create table private.clockwork (
  name text primary key,
  last_run_at timestamptz not null default 'epoch',
  last_xmin bigint not null default 0,
  last_error text
);
comment on table private.clockwork is 'When maintain() and its parts last ran.';
comment on column private.clockwork.name is 'maintain, one of its parts, or doorbells.';
comment on column private.clockwork.last_run_at is 'When it last ran.';
comment on column private.clockwork.last_xmin is
  'Only for doorbells: every transaction below this ID had ended at the last ring.';
comment on column private.clockwork.last_error is 'What went wrong in the last run; null: nothing.';
alter table private.clockwork enable row level security;

insert into private.clockwork (name) values ('maintain'), ('doorbells'), ('health'), ('partitions'), ('retention'),
  ('weekend');

create table private.doorbells (
  topic text primary key,
  changed_at timestamptz not null,
  due boolean not null,
  rung_at timestamptz
);
comment on table private.doorbells is
  'Topics of dashboards and when they are due to be rung. Written only by ring_doorbells().';
comment on column private.doorbells.topic is 'user:<id> or operators.';
comment on column private.doorbells.changed_at is 'Since when a ring has been due.';
comment on column private.doorbells.due is 'Whether something has changed since the last ring.';
comment on column private.doorbells.rung_at is 'When it was last rung.';
alter table private.doorbells enable row level security;

-- Every function for agents calls this first: one lookup in a unique index.
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
      hint = 'Sign in as the agent''s own user, which `tradecopier agent enroll` creates.';
  end if;
  if v_retired_at is not null then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  return v_vps;
end
$$;
comment on function private.agent_vps() is
  'The VPS whose agent is calling; TC101 if the caller is not an agent, TC102 if its VPS is retired.';

-- Runs for every writer: each change of a VPS's status or fitness is logged.
create function private.log_vps_state() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  insert into public.connection_health_logs (kind, vps_id, status, previous_status, reason, heartbeat_age_ms, rtt_ms)
  values ('state', new.id, new.status, old.status, new.unfit,
          round(extract(epoch from now() - new.last_heartbeat_at) * 1000, 1), new.rtt_ms);
  return null;
end
$$;
comment on function private.log_vps_state() is
  'Trigger: logs a change of a VPS''s status or fitness in connection_health_logs.';
create trigger log_state after update of status, unfit on public.vps_instances for each row
  when ((old.status, old.unfit) is distinct from (new.status, new.unfit)) execute function private.log_vps_state();
grant select on public.vps_instances, public.enrollment_tokens, public.connection_health_logs to authenticated,
  service_role;
