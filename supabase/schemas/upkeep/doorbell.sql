-- Doorbells and ticks: empty broadcasts that say "read again". They are only hints; the rows are authoritative.

-- Idle agents send a heartbeat every few seconds anyway; ticks also reach an agent whose heartbeats fail.
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
comment on function private.send_ticks() is 'Sends a tick to every VPS topic that has had none for tick_s.';

-- Finds the users for whom something changed since the last ring, without any write where trades are made. A change is
-- found by its updated_at and by the ID of its transaction. updated_at is the time at which the transaction began, so
-- the time window reaches back further than a statement of the API may take (8 s); the transaction ID tells whether the
-- last ring can have seen the change.
create function private.changed_topics(p_since timestamptz, p_xmin bigint) returns table (topic text)
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
  -- xmin has 32 bits, the snapshot 64: compare modulo 2^32, and never above the snapshot.
  unseen as (
    select f.user_id from fresh f, snapshot s
    where s.xmax - mod(s.xmax - f.xid::text::bigint + 4294967296, 4294967296) >= p_xmin
    group by f.user_id
  )
  select 'user:' || u.user_id from unseen u where u.user_id is not null
  union all
  select 'operators' where exists (select from unseen)
$$;
comment on function private.changed_topics(timestamptz, bigint) is
  'Topics of dashboards with something new: changed after p_since by a transaction that may not have ended at the last '
  'ring.';

-- Security definer: pg_cron and agents' heartbeats run it.
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
  -- Slightly under a second: a scheduler that runs a little early must not turn one second into two.
  if v_last.last_run_at > clock_timestamp() - interval '0.9 seconds' then
    return 0;
  end if;
  insert into private.doorbells as d (topic, changed_at, due)
  select n.topic, clock_timestamp(), true
  from private.changed_topics(greatest(v_last.last_run_at,
    clock_timestamp() - interval '1 minute') - interval '15 seconds', v_last.last_xmin) n
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
  'Rings every dashboard topic with something new, at most once per second each. Returns the number of topics rung.';
