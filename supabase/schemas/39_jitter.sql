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
