-- Figures of copying: one count of trades, orders and times for the terminal, the dashboard and the JSON of a run, so
-- that they cannot contradict each other. Each figure comes with its population.

-- Percentiles by nearest rank, in ms; null is no time, so it does not count.
create function private.spread_of(p_ms numeric[]) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return (select jsonb_build_object('p50', round(percentile_disc(0.5) within group (order by u.ms), 3),
    'p95', round(percentile_disc(0.95) within group (order by u.ms), 3),
    'p99', round(percentile_disc(0.99) within group (order by u.ms), 3), 'max', round(max(u.ms), 3),
    'n', count(u.ms)) from unnest(p_ms) as u (ms));
end $$;

-- p_user null: everybody's. p_since null: from the beginning. p_most, p_latest, p_listed: how many of the newest trades
-- and orders are counted, of how many completed orders the times are taken, how many refused trades are listed; null:
-- all. The trade's status is that of copied_trades, and "nothing to do" is decided nowhere else.
create function private.figures_of(p_user uuid, p_since timestamptz, p_most integer, p_latest integer,
  p_listed integer) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := coalesce(p_since, '-infinity');
  v_trades jsonb;
  v_orders jsonb;
begin
  -- the user is compared only if there is one: each form has its index
  execute format($query$
    with newest as materialized (
      select t.event_id, t.copier_id, t.follower_account_id, t.decided_at, t.event, t.master_side, t.master_symbol,
        t.master_lots, t.closed_lots, t.status, t.reason, t.detail, t.message, t.orders
      from public.copied_trades t where %s t.decided_at >= $2
      order by t.decided_at desc, t.event_id desc, t.copier_id limit $3
    ), reasons as (
      select n.reason, count(*) as trades, count(*) filter (where n.orders is null) as skipped
      from newest n where n.status = 'not_copied' and n.reason is not null group by n.reason
    ), listed as (
      select n.event_id, n.copier_id, n.follower_account_id, n.decided_at, n.event, n.master_side, n.master_symbol,
        n.master_lots, n.closed_lots, n.reason, n.detail, n.message, n.orders is not null as ordered
      from newest n where n.status = 'not_copied' order by n.decided_at desc, n.event_id desc, n.copier_id limit $4
    )
    select jsonb_build_object(
      'trades', (select jsonb_build_object('all', count(*),
        'copied', count(*) filter (where n.status = 'copied'), 'partly', count(*) filter (where n.status = 'partly'),
        'in_flight', count(*) filter (where n.status = 'in_flight'),
        'nothing_to_do', count(*) filter (where n.status = 'nothing_to_do'),
        'not_copied', count(*) filter (where n.status = 'not_copied')) from newest n),
      'not_copied', (select coalesce(jsonb_object_agg(r.reason, r.trades), '{}') from reasons r),
      'skipped', (select coalesce(jsonb_object_agg(r.reason, r.skipped) filter (where r.skipped > 0), '{}')
        from reasons r),
      'refused', (select coalesce(jsonb_agg(jsonb_build_object('event_id', l.event_id::text, 'copier_id', l.copier_id,
        'account_id', l.follower_account_id, 'at', private.rfc3339(l.decided_at), 'event', l.event,
        'side', l.master_side, 'symbol', l.master_symbol, 'lots', case when l.event in ('closed', 'reduced')
          then nullif(l.closed_lots, 0) else l.master_lots end::text,
        'reason', l.reason, 'ordered', l.ordered, 'detail', l.detail, 'message', l.message)
        order by l.decided_at desc, l.event_id desc, l.copier_id), '[]') from listed l))
  $query$, case when p_user is null then '' else 't.user_id = $1 and' end)
  into v_trades using p_user, v_since, p_most, p_listed;
  execute format($query$
    with latest as (
      select q.* from public.trade_execution_queue q %s limit $3
    ), newest as materialized (
      select q.* from latest q where q.queued_at >= $2
    ), timed as materialized (
      select t.* from newest q join public.execution_latencies t on t.id = q.id
      where t.measured order by q.id desc limit $4
    ), counts as (
      select count(*) filter (where q.status = 'completed') as completed,
        count(*) filter (where q.status = 'rejected') as rejected,
        count(*) filter (where q.status = 'expired') as expired,
        count(*) filter (where q.status = 'cancelled') as cancelled,
        count(*) filter (where q.status = 'cancelled' and q.reason <> all (private.nothing_to_do())) as dropped,
        count(*) filter (where q.finalized_at is null) as open
      from newest q
    )
    select jsonb_build_object(
      'orders', jsonb_build_object('completed', c.completed, 'rejected', (
        select coalesce(jsonb_object_agg(r.reason, r.orders), '{}')
        from (select q.reason, count(*) as orders from newest q where q.status = 'rejected' group by 1) r),
        'expired', c.expired, 'cancelled', c.cancelled, 'open', c.open),
      'success_rate', round(c.completed::numeric / nullif(c.completed + c.rejected + c.expired + c.dropped, 0), 6),
      'ours_ms', private.spread_of(array(select t.ours_ms from timed t)),
      'whole_ms', private.spread_of(array(select t.whole_ms from timed t)),
      'stages_ms', (select jsonb_build_object(
        'detect', round(percentile_disc(0.5) within group (order by t.detect_ms), 3),
        'request', round(percentile_disc(0.5) within group (order by t.request_ms), 3),
        'lock', round(percentile_disc(0.5) within group (order by t.lock_ms), 3),
        'plan', round(percentile_disc(0.5) within group (order by t.plan_ms), 3),
        'deliver', round(percentile_disc(0.5) within group (order by t.deliver_ms), 3),
        'lane', round(percentile_disc(0.5) within group (order by t.lane_ms), 3),
        'broker', round(percentile_disc(0.5) within group (order by t.broker_ms), 3)) from timed t))
    from counts c
  $query$, case when p_user is null then 'order by q.id desc'
    else 'where q.user_id = $1 order by q.queued_at desc, q.id desc' end)
  into v_orders using p_user, v_since, p_most, p_latest;
  return jsonb_build_object('since', private.rfc3339(p_since), 'most', p_most, 'latest', p_latest)
    || v_trades || v_orders || jsonb_build_object('latency_ms', v_orders -> 'ours_ms');
end $$;

-- {"time_zone", "all"} -> the figures of today
create function private.copy_figures(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_zone text := coalesce(private.text_of(p_request, 'time_zone', 100), 'UTC');
begin
  perform private.refuse_unknown(p_request, 'copy_figures', array['time_zone', 'all']);
  if not private.is_time_zone(v_zone) then
    raise exception using errcode = 'TC303',
      message = format('copy_figures: time_zone is %s, but there is no such time zone', v_zone),
      hint = 'Name it like Europe/Berlin, America/New_York or UTC.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'all'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'copy_figures: all must be true or false';
  end if;
  if (p_request ->> 'all')::boolean then
    perform private.require_operator();
    v_user := null;
  end if;
  return private.figures_of(v_user, date_trunc('day', now(), v_zone), 5000, 500, 200)
    || jsonb_build_object('time_zone', v_zone, 'server_time', private.rfc3339(clock_timestamp()));
end $$;

create function public.copy_figures(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.copy_figures(p_request) $$;
comment on function public.copy_figures(jsonb) is
  'Users: what was copied today, what was not and why, and how fast: the same counts as the terminal and
  the JSON of a run.
Request:
- time_zone (text; default UTC): the zone whose today is meant
- all (boolean; default false): everybody''s trades (operators)
Answer:
- since (time): when today began there; everything below is of today
- most (integer): the newest trades, and the newest orders, up to which is counted
- trades (object): all, copied, partly, in_flight, nothing_to_do and not_copied: numbers of trades, one per copier
- not_copied (object): trades that were not copied, a number per reason
- skipped (object): those of them for which no order was made, a number per reason
- refused (list of objects): the newest 200 of them, each with event_id, copier_id, account_id, at, event, side, symbol,
  lots, reason, ordered, detail and message
- orders (object): completed, rejected (a number per reason), expired, cancelled and open
- success_rate (number or null): completed orders by all that ended, without those that nothing was left to do for
- latest (integer): the newest completed orders up to which times are taken
- ours_ms (object): p50, p95, p99 and max in ms from the moment at which the master''s agent saw the change until the
  order was sent; n: of how many orders
- whole_ms (object): the same from the master''s fill to the follower''s fill
- latency_ms (object): the same as ours_ms
- stages_ms (object): the median of detect, request, lock, plan, deliver, lane and broker; null: not known
- time_zone (text): the zone
- server_time (time): when it was read
Errors: TC001 TC105 TC107 TC108 TC301 TC303
Example: {"time_zone": "Europe/Berlin"} -> {"since": "2026-11-30T23:00:00.000000Z", "most": 5000, "latest": 500,
"trades": {"all": 3, "copied": 1, "partly": 0, "in_flight": 0, "nothing_to_do": 1, "not_copied": 1},
"not_copied": {"below_min": 1}, "skipped": {"below_min": 1}, "refused": [], "orders": {"completed": 1, "rejected": {},
"expired": 0, "cancelled": 0, "open": 0}, "success_rate": 1.0, "ours_ms": {"p50": 6.4, "p95": 6.4, "p99": 6.4,
"max": 6.4, "n": 1}, "whole_ms": {"p50": 31.2, "p95": 31.2, "p99": 31.2, "max": 31.2, "n": 1}, "latency_ms":
{"p50": 6.4, "p95": 6.4, "p99": 6.4, "max": 6.4, "n": 1}, "stages_ms": {"detect": 0.8, "request": 1.1, "lock": 0.1,
"plan": 3.0, "deliver": 1.5, "lane": 0.7, "broker": 24.0},
"time_zone": "Europe/Berlin", "server_time": "2026-12-01T09:30:00.000000Z"}';
grant execute on function private.copy_figures(jsonb), public.copy_figures(jsonb) to authenticated;
