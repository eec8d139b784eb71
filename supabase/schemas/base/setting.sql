-- system_config: every setting that an operator may change, with its meaning, type, range and unit.

create table public.system_config (
  key text primary key,
  value jsonb not null,
  type text not null,
  minimum numeric,
  maximum numeric,
  unit text not null,
  description text not null,
  updated_at timestamptz not null default now(),
  constraint key_is_snake_case check (key ~ '^[a-z][a-z0-9_.]{1,62}$'),
  constraint description_says_something check (length(description) >= 10),
  constraint type_is_known check (type in ('integer', 'number', 'platforms', 'weekend')),
  constraint unit_is_named check (length(unit) between 1 and 20),
  -- a number without a range could stop the farm, so every new row needs one
  constraint numbers_have_a_range check (case when type in ('integer', 'number')
    then coalesce(minimum < maximum and minimum >= 0 and maximum < 'Infinity', false)
    else minimum is null and maximum is null end)
);
comment on table public.system_config is
  'Settings of the whole installation. Operators read it and change values with set_setting(); only migrations add or '
  'remove rows.';
comment on column public.system_config.key is 'Name of the setting; the name ends in its unit (_s, _ms, _days).';
comment on column public.system_config.value is
  'The value; always of this row''s type and within its range.';
comment on column public.system_config.type is
  'integer (a whole number), number (at most six decimals), or the name of a structure that is checked (platforms, '
  'weekend).';
comment on column public.system_config.minimum is
  'The smallest allowed value; no allowed value stops the farm by itself. Null for structures.';
comment on column public.system_config.maximum is
  'The largest allowed value; no allowed value stops the farm by itself. Null for structures.';
comment on column public.system_config.unit is
  'What the number counts: s, ms, days, rows, …; for a structure, what its entries are.';
comment on column public.system_config.description is 'What the setting does, written for the operator who changes it.';
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
    raise exception using errcode = 'TC200',
      message = format('there is no setting %s', left(coalesce(p_key, '(no key given)'), 100)),
      hint = 'Check the name. The rows of system_config are created by the migrations: run them if one is missing.';
  end if;
  return v_value;
end
$$;
comment on function private.setting(text) is 'The value of a setting; TC200 if there is no setting of that name.';

create function private.setting_s(p_key text) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
  return make_interval(secs => (private.setting(p_key) #>> '{}')::double precision);
end
$$;
comment on function private.setting_s(text) is 'A setting in seconds, as an interval; TC200 if it does not exist.';

create function private.setting_days(p_key text) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
  return make_interval(days => (private.setting(p_key) #>> '{}')::integer);
end
$$;
comment on function private.setting_days(text) is 'A setting in days, as an interval; TC200 if it does not exist.';

-- Checks the form of the setting platforms: {"paper": {"password": false}, …}.
create function private.platforms_error(p_value jsonb) returns text
language plpgsql immutable
set search_path = ''
as $$
declare
  v_name text;
  v_rules jsonb;
begin
  if jsonb_typeof(p_value) <> 'object' or p_value = '{}' or (select count(*) from jsonb_object_keys(p_value)) > 50 then
    return 'must be an object with 1 to 50 platforms such as {"paper": {"password": false}}';
  end if;
  for v_name, v_rules in select e.key, e.value from jsonb_each(p_value) e loop
    if v_name !~ '^[a-z][a-z0-9_]{0,29}$' then
      return format('has a platform named "%s", but a name must be 1 to 30 small letters, digits and _',
        left(v_name, 100));
    end if;
    if jsonb_typeof(v_rules) <> 'object' or jsonb_typeof(v_rules -> 'password') is distinct from 'boolean'
      or jsonb_typeof(coalesce(v_rules -> 'address', 'true')) <> 'boolean'
      or jsonb_typeof(coalesce(v_rules -> 'vps', 'true')) <> 'boolean'
      or v_rules - array['password', 'address', 'vps'] <> '{}'
    then
      return format('has %s for %s, but must have {"password": true} or {"password": false}, and may have "address" '
        'and "vps" as well', left(v_rules::text, 100), v_name);
    end if;
  end loop;
  return null;
end
$$;
comment on function private.platforms_error(jsonb) is
  'One sentence about what is wrong with a value of the setting platforms; null: nothing is.';

-- The value as it is stored: of the row's type, within its range, without trailing zeros (a cast of 15.0 to integer
-- would fail).
create function private.checked_setting(p_row public.system_config) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
  v_said text := left(coalesce(p_row.value, 'null')::text, 100);
  v_number numeric;
  v_error text;
begin
  if p_row.type in ('platforms', 'weekend') then
    if p_row.type = 'platforms' then
      v_error := private.platforms_error(coalesce(p_row.value, 'null'));
    else
      v_error := private.weekend_error(coalesce(p_row.value, 'null'));
    end if;
    if v_error is not null then
      raise exception using errcode = 'TC302', message = format('setting %s: %s', p_row.key, v_error),
        hint = 'Give the value in that form.';
    end if;
    return p_row.value;
  end if;
  if jsonb_typeof(p_row.value) = 'number' then
    v_number := trim_scale((p_row.value #>> '{}')::numeric);
  end if;
  if v_number is null or scale(v_number) > (case p_row.type when 'integer' then 0 else 6 end) then
    raise exception using errcode = 'TC302',
      message = format('setting %s: %s is not %s; it must be %s to %s %s', p_row.key, v_said,
        case p_row.type when 'integer' then 'a whole number' else 'a number of at most six decimals' end,
        p_row.minimum, p_row.maximum, p_row.unit),
      hint = 'Give a JSON number, without quotes.';
  end if;
  if v_number not between p_row.minimum and p_row.maximum then
    raise exception using errcode = 'TC303',
      message = format('setting %s: %s is out of its range, it must be %s to %s %s', p_row.key, v_said, p_row.minimum,
        p_row.maximum, p_row.unit),
      hint = 'Choose a value within the range.';
  end if;
  return to_jsonb(v_number);
end
$$;
comment on function private.checked_setting(public.system_config) is
  'The value of a row in its stored form; TC302 if it has the wrong type, TC303 if it is out of range.';

-- Runs for every writer, Studio included: the value must fit the row's range, and only migrations may add, remove or
-- redefine rows.
create function private.check_setting() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_migrating boolean := coalesce(current_setting('tradecopier.migrating', true), '') = 'on';
begin
  if not v_migrating and (tg_op in ('DELETE', 'TRUNCATE') or tg_op = 'UPDATE'
      and (new.key, new.type, new.minimum, new.maximum, new.unit) is distinct from (old.key, old.type, old.minimum,
        old.maximum, old.unit)) then
    raise exception using errcode = 'TC216',
      message = format('%s: only a migration may remove a setting, or change its name, type, range or unit',
        case when tg_op = 'TRUNCATE' then 'system_config' else 'setting ' || old.key end),
      hint = 'Change the value instead. A migration first runs: set local tradecopier.migrating = on';
  end if;
  if tg_op in ('DELETE', 'TRUNCATE') then
    return old;
  end if;
  new.value := private.checked_setting(new);
  return new;
end
$$;
comment on function private.check_setting() is
  'Trigger: refuses a value that does not fit its row (TC302, TC303), and a change of a row''s name, type, range or '
  'unit outside a migration (TC216).';
create trigger check_setting before insert or update or delete
  on public.system_config for each row execute function private.check_setting();
create trigger check_setting_truncate before truncate
  on public.system_config for each statement execute function private.check_setting();

-- Checks settings that depend on each other. Runs for every writer, Studio included.
create function private.check_settings_together() returns trigger
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
  -- serialized: two concurrent changes could each be valid alone and invalid together
  perform pg_advisory_xact_lock(hashtextextended('tradecopier.settings', 0));
  select max((c.value #>> '{}')::numeric) filter (where c.key = 'lease_s'),
    sum((c.value #>> '{}')::numeric) filter (where c.key in ('maintain_s', 'heartbeat_s'))
  into v_lease, v_pause
  from (
    select o.key, o.value from public.system_config o
    where o.key in ('lease_s', 'maintain_s', 'heartbeat_s') and o.key <> new.key
    union all
    select new.key, new.value
  ) c;
  -- maintain() judges no lease if its own last run is over half a lease ago. Without a scheduler such gaps are normal,
  -- so no lease would ever be judged.
  if v_lease <= 2 * v_pause then
    raise exception using errcode = 'TC215',
      message = format('lease_s must be over twice the sum of maintain_s and heartbeat_s (%s s), it would be %s s',
        2 * v_pause, v_lease),
      hint = 'With less, no lost VPS would ever be noticed. Raise lease_s, or lower maintain_s or heartbeat_s first.';
  end if;
  return new;
end
$$;
comment on function private.check_settings_together() is
  'Trigger: refuses settings that contradict each other and names them (TC215).';

-- triggers run in the order of their names, so this one runs after check_setting
create trigger check_together before insert or update
  on public.system_config for each row execute function private.check_settings_together();

-- No allowed value may stop the farm or trading by itself: tests/sql/base/test_setting_ranges.py copies a trade at both
-- ends of every range.
insert into public.system_config (key, value, type, minimum, maximum, unit, description) values
  ('lease_s', '15', 'number', 7, 120, 's',
    'How long a VPS may trade after its last heartbeat. Shorter fails over sooner and forgives less.'),
  ('heartbeat_s', '2', 'number', 0.5, 5, 's', 'How often an idle agent sends a heartbeat.'),
  ('maintain_s', '4', 'number', 1, 30, 's',
    'A heartbeat runs maintain() itself when the last run is older than this (the scheduler may be dead).'),
  ('doorbells_s', '2', 'number', 1, 60, 's',
    'A heartbeat sends the dashboards'' change broadcasts itself when the last were sent longer ago than this.'),
  ('doorbells_max', '100', 'integer', 1, 250, 'topics',
    'How many dashboards are notified of changes per second; the others wait a second. Keeps dashboards from using '
    'up the message quota that trading needs.'),
  ('tick_s', '30', 'number', 10, 60, 's',
    'A tick goes to a VPS topic this often, so that an agent can tell a quiet socket from a dead one.'),
  ('existing_wait_s', '30', 'number', 1, 600, 's',
    'How long a new copier waits for quotes before it decides which of the master''s positions it copies.'),
  ('send_within_ms', '5000', 'integer', 1000, 15000, 'ms',
    'An execution that its agent has not sent within this time is no longer sent.'),
  ('second_attempt_s', '2', 'number', 0.5, 10, 's',
    'Pause before the only second attempt of an open that the broker refused for lack of money or for its volume.'),
  ('retry_backoff_ms', '500', 'integer', 100, 10000, 'ms', 'First pause before a retry; it doubles, with jitter.'),
  ('retry_backoff_max_ms', '30000', 'integer', 1000, 300000, 'ms', 'Longest pause before a retry.'),
  -- at least 45 s: agents report unchanged figures only every 20 s, and a slow broker is read less often
  ('symbol_quote_max_age_s', '60', 'number', 45, 600, 's',
    'A quote older than this is not used to convert currencies.'),
  ('funds_max_age_s', '60', 'number', 45, 600, 's', 'Funds older than this are not used for sizing.'),
  ('protection_max_age_s', '10', 'number', 5, 60, 's',
    'Funds measured longer ago than this are not used to judge protection rules.'),
  ('snapshot_every_s', '60', 'number', 10, 86400, 's',
    'How often the equity of an account is stored in account_snapshots.'),
  ('accounts_per_user_max', '200', 'integer', 1, 10000, 'accounts', 'How many trading accounts one user may connect.'),
  ('release_s', '300', 'number', 10, 86400, 's',
   'How long a VPS that could not work an account is not given it again. New settings of the account and a restart of '
   'the agent end it.'),
  ('unproven_accounts_max', '5', 'integer', 1, 1000, 'accounts',
    'How many accounts a user may have that no agent has logged in to yet.'),
  ('login_attempts_per_user', '3', 'integer', 1, 100, 'logins per hour',
    'How often one user''s unproven account may be logged in to. Brokers lock logins after wrong passwords.'),
  ('login_attempts_per_login', '9', 'integer', 1, 1000, 'logins per hour',
    'How often all unproven accounts with one login may be logged in to together, in turn by user.'),
  ('enrollment_token_s', '3600', 'number', 60, 604800, 's', 'How long an enrolment token is good for.'),
  ('platforms', '{"paper": {"password": true, "address": true}, "mt5": {"password": true}, "mt4": {"password": true}, '
    '"ctrader": {"password": true}}',
   'platforms', null, null, 'platform',
   'Platforms that accounts may be on: whether a password must be given, and whether broker_servers must name an '
   'address.'),
  ('retention_batch', '1000', 'integer', 100, 20000, 'rows',
    'Rows that one run of maintain() deletes per table at most.'),
  ('retention_days.event_keys', '7', 'integer', 7, 90, 'days',
    'How long the keys that make events idempotent are kept; journals replay nothing older.'),
  ('retention_days.trade_events', '90', 'integer', 31, 3650, 'days',
    'How long trade events are kept (whole partitions are dropped).'),
  ('retention_days.trade_execution_queue', '90', 'integer', 31, 3650, 'days', 'How long final executions are kept.'),
  ('retention_days.copy_outcomes', '90', 'integer', 31, 3650, 'days',
    'How long reasons of trades that were not copied are kept.'),
  ('retention_days.positions', '30', 'integer', 7, 3650, 'days',
    'How long tombstones of closed positions and ended links are kept.'),
  ('retention_days.connection_health_logs', '14', 'integer', 1, 3650, 'days',
    'How long health rows of VPSes and accounts are kept.'),
  ('retention_days.account_snapshots', '365', 'integer', 7, 3650, 'days',
    'How long the equity curve of an account is kept.'),
  ('retention_days.account_days', '1825', 'integer', 31, 18250, 'days',
    'How long the days of an account (first, lowest, highest and last equity) are kept.'),
  ('retention_days.alerts', '90', 'integer', 7, 3650, 'days',
    'How long alerts are kept after they happened last or were seen.'),
  ('retention_days.protection_looks', '365', 'integer', 7, 3650, 'days',
    'How long the looks at funds that were past a protection rule are kept.'),
  ('retention_days.quiet_windows', '30', 'integer', 2, 3650, 'days',
    'How long quiet windows are kept after they have ended.'),
  ('retention_days.audit_log', '730', 'integer', 90, 3650, 'days',
    'How long the audit log is kept; nothing younger can be deleted at all.'),
  ('retention_days.login_attempts', '2', 'integer', 1, 3650, 'days',
    'How long logins to unproven accounts are remembered; the last hour counts.'),
  ('retention_days.enrollment_tokens', '30', 'integer', 1, 3650, 'days',
    'How long used or expired enrolment tokens are kept.');
create policy "operators see the settings" on public.system_config for select to authenticated
  using ((select private.is_operator()));
grant select on public.system_config to authenticated, service_role;

insert into public.system_config (key, value, type, minimum, maximum, unit, description) values
  ('copiers_per_user_max', '500', 'integer', 1, 10000, 'copiers',
    'How many copiers one user may have, those that are being removed included.'),
  ('symbol_mappings_per_user_max', '2000', 'integer', 1, 100000, 'mappings',
    'How many symbol mappings one user may have, over all his copiers.'),
  ('protection_rules_per_user_max', '1000', 'integer', 1, 50000, 'rules',
    'How many protection rules one user may have, over all his accounts.'),
  ('quiet_windows_max', '2000', 'integer', 1, 50000, 'windows',
    'How many quiet windows one user may have, and how many operators may set for everybody.');
