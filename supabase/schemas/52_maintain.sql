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
