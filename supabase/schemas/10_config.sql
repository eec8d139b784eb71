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
