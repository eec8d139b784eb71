-- The state of a link: what its master holds, what the copy holds and should hold, what is in flight.

-- A level or price, rounded to the nearest of the symbol's ticks: a broker refuses values in between.
create function private.on_tick(p_price numeric, p_tick numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if p_price is null or p_tick is null or p_tick <= 0 then
    return p_price;
  end if;
  return sign(p_price) * div(abs(p_price) + p_tick / 2, p_tick) * p_tick;
end $$;

-- The level that a copy must have. p_from: the master's level it is derived from (under reverse, the other one);
-- p_direction: +1 if the level lies above the copy's open price, -1 below; p_open: the copy's own open price, null
-- while there is none (then the master's counts); p_cap: the largest distance in points, which also applies if the
-- master has no level. p_negative: prices may be 0 or below; else an open price of 0 of the master is not known.
create function private.wanted_level(
  p_mode text, p_from numeric, p_master_open numeric, p_open numeric, p_direction integer, p_points integer,
    p_cap integer, p_digits integer,
  p_tick numeric, p_negative boolean
) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_open numeric;
  v_level numeric := p_from;
  v_cap numeric;
begin
  if p_mode = 'price' and p_cap is null then  -- the usual case: no further call
    return case when p_tick > 0 then sign(p_from) * div(abs(p_from) + p_tick / 2, p_tick) * p_tick else p_from end;
  end if;
  if p_mode = 'none' and p_cap is null then return null; end if;
  v_open := coalesce(p_open, private.on_tick(case when p_master_open <> 0 or p_negative then p_master_open end,
    p_tick));
  v_level := case p_mode when 'price' then p_from
    when 'distance' then
      case when p_master_open > 0 or p_negative then v_open + (p_from - p_master_open) else p_from end
    when 'fixed' then v_open + p_direction * p_points * 10::numeric ^ -p_digits end;
  if p_cap is not null then
    v_cap := v_open + p_direction * p_cap * 10::numeric ^ -p_digits;
    v_level := case when p_direction > 0 then least(v_level, v_cap) else greatest(v_level, v_cap) end;
  end if;
  v_level := private.on_tick(v_level, p_tick);
  return case when v_level > 0 or p_negative then v_level end;
end $$;

-- Volume that a link must hold after its master was reduced: the share of what it was opened with, exact, floored to
-- the step; never rounded to nothing while the master is open (residual_hold). For what the master holds now, read
-- link_states.target_lots; call this for another volume of the master or another base.
create function private.target_lots(p_base numeric, p_master_now numeric, p_master_base numeric, p_step numeric,
  p_min numeric, p_held numeric)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return least(p_held, greatest(div(p_base * p_master_now, p_master_base * p_step) * p_step, p_min));
end $$;

-- A link with everything that a plan needs to know about it. "doomed": nothing of it may remain. "frozen": its copier,
-- its account or all trading is off. Look-ups by ID use "ended_at is null", look-ups by follower "state = 'live'"; for
-- positions likewise "lots > 0" and "closed_at is null". So each fits only the index that it needs, even if Postgres
-- planned it while the table was empty.
create view private.link_states with (security_invoker = true) as
select l.*, c.mode as copier_mode, c.removal, fa.mode as account_mode, fa.copy_state,
  coalesce(fa.copy_state = 'flattening' or l.created_at <= fa.flattened_at or m.closed_at is not null
    or m.side <> l.master_side
    -- close_gracefully: a copy that is still a pending order is cancelled, a fill after the end is closed
    or c.removal = 'close_now'
    or c.removal = 'close_gracefully' and (c.removed_at is not null or held.order_lots > 0 and held.position_lots = 0),
      false)
    or newer.generation is not null as doomed,
  (fa.copy_state <> 'flattening' and l.created_at > coalesce(fa.flattened_at, '-infinity')
    and (c.mode = 'off' and c.removal is null or fa.copy_state = 'off'))
    or (select t.state from public.trading_switch t where t.one) = 'off' as frozen,
  m.lots as master_lots, m.last_event_id as master_event_id, m.detected_at as master_detected_at,
  m.changed_at as master_changed_at,
  coalesce(m.closed_at is not null or m.side <> l.master_side, false) as master_gone,
  m.price as master_price, m.expires_at as master_expires_at,
  s.lots_min, s.lots_step,
  private.wanted_level(c.sl_mode, case when c.reverse then m.tp else m.sl end, m.price, held.open_price,
    case l.side when 'buy' then -1 else 1 end, c.sl_points, c.max_sl_points, s.digits, s.tick_size,
    s.allow_negative or s.bid < 0) as wanted_sl,
  private.wanted_level(c.tp_mode, case when c.reverse then m.sl else m.tp end, m.price, held.open_price,
    case l.side when 'buy' then 1 else -1 end, c.tp_points, null, s.digits, s.tick_size,
    s.allow_negative or s.bid < 0) as wanted_tp,
  private.on_tick(m.price, s.tick_size) as wanted_price,
  held.position_lots, held.order_lots, held.legs,
  private.target_lots(l.base_lots, m.lots, l.base_master_lots, s.lots_step, s.lots_min, held.position_lots)
    as target_lots,
  flight.executions, flight.opens, flight.waiting, flight.reducing, flight.open_step
from public.position_links l
join public.copiers c on c.id = l.copier_id
join public.trading_accounts fa on fa.id = l.follower_account_id
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
  and m.kind = l.master_kind
left join public.account_symbols s on s.account_id = l.follower_account_id and s.name = l.symbol
left join lateral (
  select n.generation from public.position_links n
  where n.master_account_id = l.master_account_id and n.master_ticket = l.master_ticket and n.copier_id = l.copier_id
    and n.master_kind = l.master_kind and n.generation > l.generation limit 1
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
comment on view private.link_states is
  'Links with their master''s mirror, their copier, what they hold and what is in flight for them.';

-- Called when a reduction to p_master_lots has been carried out. Whatever the master adds to that, even while the
-- reduction was in flight, is an increase. p_seen: seen_master_lots when the reduction was planned; what was decided
-- since stays decided.
create function private.mark_reduction_done(p_link bigint, p_master_lots numeric,
  p_seen numeric default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = p_master_lots + greatest(0,
    l.seen_master_lots - coalesce(p_seen, l.seen_master_lots))
  from public.account_symbols s, (select coalesce(sum(g.lots), 0) as lots from private.link_legs g
    where g.link_id = p_link) held
  where l.id = p_link and l.ended_at is null and l.seen_master_lots > p_master_lots and l.base_lots is not null
    and s.account_id = l.follower_account_id and s.name = l.symbol
    and held.lots <= private.target_lots(l.base_lots, p_master_lots, l.base_master_lots, s.lots_step, s.lots_min,
      held.lots);
end $$;
