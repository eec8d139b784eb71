-- maintain(): scheduled work of the farm. pg_cron runs it; a heartbeat runs it if pg_cron did not (on hosted Supabase
-- pg_cron has stood still for weeks). One run at a time; a part that fails does not stop the others; every part may be
-- repeated at once.

create function private.log_health() returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into public.connection_health_logs (at, kind, vps_id, status, accounts, heartbeat_age_ms, rtt_ms,
    clock_offset_ms,
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
comment on function private.log_health() is 'Writes one health row per VPS for this minute.';

-- Refreshes the statistics of the planner's tables when they have doubled. Autovacuum runs at most once a minute; until
-- then, on a new installation or after a burst, Postgres plans for tables that it believes to be tiny. Not more often,
-- because new statistics make every session plan again.
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
    where c.oid = any (array['public.positions', 'public.position_links', 'private.link_legs',
      'public.trade_execution_queue',
        'public.copy_outcomes', 'private.event_keys', 'public.copiers', 'public.trading_accounts',
          'public.account_symbols']::regclass[])
      and s.n_mod_since_analyze > 2000 + greatest(c.reltuples, 0)
  loop
    execute format('analyze %s', v_table);
  end loop;
end
$$;
comment on function private.refresh_statistics() is
  'Analyses those of the planner''s tables that have doubled since their last analysis.';

create function private.note_run(p_name text, p_error text) returns void
language sql
set search_path = ''
as $$ update private.clockwork set last_run_at = clock_timestamp(), last_error = p_error where name = p_name $$;
comment on function private.note_run(text, text) is
  'Stores that a part of the clockwork ran, and its error (null: none).';

-- A part that fails is rolled back, its error is stored, and the next run tries it again; the other parts go on.
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
    when 'flat times' then
      perform private.keep_flat_times();
    when 'resumes' then
      perform private.resume_accounts();
    when 'removals' then
      perform private.finish_removals();
    when 'claims' then
      perform private.alert_absurd_claim();
    when 'ticks' then
      perform private.send_ticks();
    when 'health' then
      perform private.log_health();
      perform private.note_run('health', null);
    when 'account days' then
      perform private.note_account_days();
    when 'retention' then
      perform private.delete_expired();
      perform private.note_run('retention', null);
    when 'alarms' then
      perform private.raise_alarms();
    when 'weekend' then
      perform private.watch_weekend();
      perform private.note_run('weekend', null);
    when 'fitness' then
      perform private.watch_database_clock();
      perform private.alert_stranded();
    when 'statistics' then
      perform private.refresh_statistics();
    when 'partitions' then
      perform private.make_partitions();
      perform private.learn_time_zones();
      perform private.note_run('partitions', null);
  end case;
  return null;
exception when others then
  raise warning 'maintain: part % failed: % (%)', p_part, sqlerrm, sqlstate;
  return format('%s: %s (%s)', p_part, sqlerrm, sqlstate);
end
$$;
comment on function private.run_part(text, interval) is
  'Runs one part of maintain(). Returns its error, or null.';

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
comment on function private.place_part() is
  'place_homeless() as a part of maintain(): a failure becomes a warning. Returns the number of accounts moved.';

-- Security definer: pg_cron and agents' heartbeats run it.
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
  -- Only if no other placement is running: a heartbeat holds its own row, which that placement may wait for.
  if private.take_turn('assign') then
    v_moved := private.place_part();
  end if;
  v_errors := v_errors || private.run_part('claims', null);
  v_errors := v_errors || private.run_part('alarms', null);
  v_errors := v_errors || private.run_part('fitness', null);
  v_errors := v_errors || private.run_part('ticks', null);
  if private.is_due('weekend', '1 minute') then
    v_errors := v_errors || private.run_part('weekend', null);
  end if;
  if private.is_due('health', '15 seconds') then
    v_errors := v_errors || private.run_part('health', null);
    v_errors := v_errors || private.run_part('account days', null);
  end if;
  v_errors := v_errors || private.run_part('statistics', null);
  if private.is_due('retention', '1 minute') then
    v_errors := v_errors || private.run_part('retention', null);
  end if;
  if private.is_due('partitions', '1 hour') then
    v_errors := v_errors || private.run_part('partitions', null);
  end if;
  -- Last: what these parts lock stays locked until the end, and nobody can plan with it meanwhile. Placement and these
  -- parts each lock accounts in order, but not when one follows the other; so after a move they wait for the next run.
  if v_moved = 0 then
    v_errors := v_errors || private.run_part('flat times', null);
    v_errors := v_errors || private.run_part('executions', null);
    v_errors := v_errors || private.run_part('resumes', null);
  end if;
  v_errors := v_errors || private.run_part('removals', null);
  v_errors := array_remove(v_errors, null);
  perform private.note_run('maintain', nullif(array_to_string(v_errors, '; '), ''));
  return jsonb_build_object('ran', true, 'moved', v_moved, 'errors', to_jsonb(v_errors));
end
$$;
comment on function private.maintain() is
  'Runs leases, failover, executions, ticks, health, retention and partitions: {"ran", "moved", "errors"}. Safe to run '
  'at any time, also concurrently.';

-- Runs in every heartbeat; costs two look-ups while pg_cron works.
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
  -- The lease must be renewed even if this work fails.
  raise warning 'stand_in_for_scheduler: % (%)', sqlerrm, sqlstate;
end
$$;
comment on function private.stand_in_for_scheduler() is
  'Runs maintain() and ring_doorbells() if their last run is too long ago; never raises an error.';

create function public.maintain() returns jsonb
language sql
set search_path = ''
as $$ select private.maintain() $$;
comment on function public.maintain() is
  'Service key: runs the upkeep now: leases, failover, executions, health, retention. It also runs automatically every '
  'few seconds.
Request: none
Answer:
- ran (boolean): false: another run was in progress, and the answer has no other keys
- moved (integer): accounts that were placed on a VPS
- errors (list of texts): parts that failed; the others ran
Errors: none
Example: {} -> {"ran": true, "moved": 0, "errors": []}';
grant execute on function private.maintain(), public.maintain() to service_role;
