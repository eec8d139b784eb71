-- Jitter, for users whose rules allow it: opens are a little later and a little smaller, differently for every follower
-- and trade, but always the same for the same one. Closes, reductions and levels are never changed. A size is only ever
-- reduced, so every limit still holds.

-- A number from 0 to below 1 that depends only on the name.
create function private.stable_random(p_name text) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return ((hashtextextended(p_name, 0) % 1000000 + 1000000) % 1000000) / 1000000.0;
end $$;

-- The copier, with its size reduced by up to lots_jitter_percent.
create function private.jittered(p_copier public.copiers, p_ticket text, p_generation integer) returns public.copiers
language plpgsql immutable set search_path = '' as $$
declare
  c public.copiers := p_copier;
begin
  c.sizing_value := c.sizing_value * (1 - c.lots_jitter_percent / 100 * private.stable_random(format('lots %s %s %s',
    c.id, p_ticket, p_generation)));
  return c;
end $$;

-- Stores which sizes were reduced, and holds back opens that must wait: they are not handed out until their time comes,
-- so a close ends them at once. Returns the executions that go out now.
create function private.hold_back(p_new bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  update public.trade_execution_queue q set warnings = q.warnings || 'lots_jittered'::text
  from public.copiers c where q.id = any (p_new) and c.id = q.copier_id and c.lots_jitter_percent > 0;
  update public.trade_execution_queue q set status = 'retrying', attempt = 0, next_attempt_at = w.at, queued_at = w.at,
    offered_at = null,
    vps_id = null, epoch = null, warnings = q.warnings || 'delayed'::text
  from public.copiers c
  cross join lateral (
    select x.id, p_now +
      make_interval(secs =>
      (c.delay_min_ms + (c.delay_max_ms - c.delay_min_ms) * private.stable_random(format('delay %s %s', c.id,
      x.link_id))) / 1000.0) as at
    from public.trade_execution_queue x where x.id = any (p_new) and x.copier_id = c.id
  ) w
  where q.id = w.id and c.delay_max_ms > 0;
  return array(select q.id from public.trade_execution_queue q where q.id = any (p_new) and q.offered_at is not null);
end $$;
