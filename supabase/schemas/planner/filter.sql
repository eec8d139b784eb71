-- Filters: what a copier opens. They apply only to opens and increases; nothing here can block a close.

-- Whether trades may be opened now: weekday and time of day in the copier's time zone. Hours past midnight belong to
-- the day on which they began.
create function private.within_hours(p_copier public.copiers, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  v_local timestamp := p_now at time zone p_copier.time_zone;
  v_overnight boolean := p_copier.open_until < p_copier.open_from;
  v_day integer := extract(isodow from case
    when v_overnight and v_local::time < p_copier.open_until then v_local - interval '1 day' else v_local end);
begin
  return v_day = any (p_copier.weekdays) and (p_copier.open_from is null
    or case when v_overnight then v_local::time >= p_copier.open_from or v_local::time < p_copier.open_until
      else v_local::time >= p_copier.open_from and v_local::time < p_copier.open_until end);
end $$;

-- What this copier holds now or is about to, and has opened since midnight in its time zone. p_leaving: the link whose
-- close a flip's open waits for (null: none); it and the master's old position do not count.
create function private.copier_load(p_copier public.copiers, p_leaving bigint, p_now timestamptz, out positions bigint,
  out lots numeric, out today bigint)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a
    where a.id = p_copier.follower_account_id);
  v_leaves public.position_links;
begin
  if p_leaving is not null then
    select * into v_leaves from public.position_links l where l.id = p_leaving;
  end if;
  -- a pending order to be opened at the market instead is both held and wanted; what netting followers want is added to
  -- what they hold
  select count(*), coalesce(sum(case when v_netting then coalesce(h.lots, 0) + coalesce(l.wanted_lots, 0)
    else greatest(coalesce(h.lots, 0), coalesce(l.wanted_lots, 0)) end + coalesce(f.lots, d.lots, 0)),
      0) into positions, lots
  from public.position_links l
  left join lateral (select sum(g.lots) as lots from private.link_legs g where g.link_id = l.id) h on true
  left join lateral (
    select sum(q.lots) as lots from public.trade_execution_queue q
    where not v_netting and q.link_id = l.id and q.finalized_at is null and q.action in ('open', 'increase', 'place')) f
      on true
  left join lateral (
    select sum((e ->> 'lots')::numeric) as lots from public.trade_execution_queue q
    cross join lateral jsonb_array_elements(q.parts) e
    where v_netting and q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight
      and e ->> 'link_id' = l.id::text and (e ->> 'lots')::numeric > 0) d on true
  where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id
    and (l.master_ticket, l.master_kind) is distinct from (v_leaves.master_ticket, v_leaves.master_kind);
  if p_copier.max_trades_per_day is not null then
    select count(*) into today from public.position_links l
    where l.user_id = p_copier.user_id and l.copier_id = p_copier.id and l.symbol is not null
      and l.created_at >= date_trunc('day', p_now at time zone p_copier.time_zone) at time zone p_copier.time_zone
      and (l.state = 'live' or l.base_lots is not null);
  end if;
end $$;

-- The copier's rule that refuses an open or increase now, whatever its size, or null. p_new: it is a new position, not
-- an increase; p_equity may be unknown; p_leaving: see copier_load.
create function private.filter_refusal(
  p_copier public.copiers, p_position public.positions, p_equity numeric, p_new boolean, p_leaving bigint,
    p_now timestamptz
)
returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_load record;
  v_filter private.copier_filters;
begin
  -- most copiers filter nothing: one check
  if p_copier.sides = 'both' and p_copier.open_from is null and p_copier.weekdays @> '{1,2,3,4,5,6,7}'
    and p_copier.min_equity is null
    and p_copier.symbols_only = '{}' and p_copier.symbols_except = '{}' and p_copier.magic_only = '{}'
      and p_copier.magic_except = '{}'
    and p_copier.comment_only = '{}' and p_copier.comment_except = '{}' and p_copier.max_open_positions is null
    and p_copier.max_open_lots is null and p_copier.max_trades_per_day is null then
    return null;
  end if;
  if p_copier.sides not in ('both', p_position.side) then return 'side_filtered'; end if;
  select * into v_filter from private.copier_filters f where f.copier_id = p_copier.id;
  if cardinality(p_copier.symbols_only) > 0 and not private.matches(p_position.symbol, v_filter.symbols_only)
    or cardinality(p_copier.symbols_except) > 0 and private.matches(p_position.symbol, v_filter.symbols_except) then
    return 'symbol_filtered';
  end if;
  if cardinality(p_copier.magic_only) > 0 and not coalesce(p_position.magic, '0') = any (p_copier.magic_only)
    or coalesce(p_position.magic, '0') = any (p_copier.magic_except) then
    return 'magic_filtered';
  end if;
  if cardinality(p_copier.comment_only) > 0 and not private.matches(p_position.comment, v_filter.comment_only)
    or cardinality(p_copier.comment_except) > 0 and private.matches(p_position.comment, v_filter.comment_except) then
    return 'comment_filtered';
  end if;
  if not private.within_hours(p_copier, p_now) then return 'outside_hours'; end if;
  if p_copier.min_equity is not null and (p_equity is null or p_equity < p_copier.min_equity) then
    return 'min_equity';
  end if;
  if coalesce(p_copier.max_open_positions, p_copier.max_trades_per_day) is not null
    or p_copier.max_open_lots is not null then
    v_load := private.copier_load(p_copier, p_leaving, p_now);
    if p_new and v_load.positions >= p_copier.max_open_positions then return 'max_open_positions'; end if;
    if v_load.lots >= p_copier.max_open_lots then return 'max_open_lots'; end if;
    if p_new and v_load.today >= p_copier.max_trades_per_day then return 'max_trades_per_day'; end if;
  end if;
  return null;
end $$;

-- Whether a copier of these masters limits what it holds or opens, or sizes by the margin that is left, or its
-- follower's opens are held to limits: decisions made together then count against each other.
create function private.limits_count(p_masters uuid[]) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.copiers c
    where c.master_account_id = any (p_masters) and c.removed_at is null
      and (c.max_open_positions is not null or c.max_open_lots is not null or c.max_trades_per_day is not null
        or c.sizing_mode = 'free_margin_ratio'))
    or exists (
      select 1 from public.copiers c join public.trading_accounts a on a.id = c.follower_account_id and a.guarded
      where c.master_account_id = any (p_masters) and c.removed_at is null);
end $$;
