-- Filters: what a copier opens. They apply to opens and increases only; nothing here can hold back a close.

-- Whether a text is one of the patterns; * stands for anything, case does not count.
create function private.matches_any(p_text text, p_patterns text[]) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return exists (
    select 1 from unnest(p_patterns) as u (pattern)
    where lower(coalesce(p_text, '')) like replace(replace(replace(replace(lower(u.pattern), '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'));
end $$;

-- Whether trades are opened at this moment: weekday and time of day of the copier's zone; hours over midnight belong to the day they began.
create function private.within_hours(p_copier public.copiers, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  v_local timestamp := p_now at time zone p_copier.time_zone;
  v_overnight boolean := p_copier.open_until < p_copier.open_from;
  v_day integer := extract(isodow from case when v_overnight and v_local::time < p_copier.open_until then v_local - interval '1 day' else v_local end);
begin
  return v_day = any (p_copier.weekdays) and (p_copier.open_from is null
    or case when v_overnight then v_local::time >= p_copier.open_from or v_local::time < p_copier.open_until
      else v_local::time >= p_copier.open_from and v_local::time < p_copier.open_until end);
end $$;

-- What this copier holds now and is about to, and has opened since midnight of its zone. p_leaving: a link whose close a flip's open waits for,
-- null: none; what its master's position was before that leaves, too.
create function private.copier_load(p_copier public.copiers, p_leaving bigint, p_now timestamptz, out positions bigint, out lots numeric, out today bigint)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a where a.id = p_copier.follower_account_id);
  v_leaves text := (select l.master_ticket from public.position_links l where l.id = p_leaving);
begin
  -- a pending order that is to be opened at the market instead is wanted while it is held; netting followers want more than they hold
  select count(*), coalesce(sum(case when v_netting then coalesce(h.lots, 0) + coalesce(l.wanted_lots, 0)
    else greatest(coalesce(h.lots, 0), coalesce(l.wanted_lots, 0)) end + coalesce(f.lots, d.lots, 0)), 0) into positions, lots
  from public.position_links l
  left join lateral (select sum(g.lots) as lots from private.link_legs g where g.link_id = l.id) h on true
  left join lateral (
    select sum(q.lots) as lots from public.trade_execution_queue q
    where not v_netting and q.link_id = l.id and q.finalized_at is null and q.action in ('open', 'increase', 'place')) f on true
  left join lateral (
    select sum((e ->> 'lots')::numeric) as lots from public.trade_execution_queue q cross join lateral jsonb_array_elements(q.parts) e
    where v_netting and q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight
      and e ->> 'link_id' = l.id::text and (e ->> 'lots')::numeric > 0) d on true
  where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id
    and l.master_ticket is distinct from v_leaves;
  if p_copier.max_trades_per_day is not null then
    select count(*) into today from public.position_links l
    where l.user_id = p_copier.user_id and l.copier_id = p_copier.id and l.symbol is not null
      and l.created_at >= date_trunc('day', p_now at time zone p_copier.time_zone) at time zone p_copier.time_zone
      and (l.state = 'live' or l.base_lots is not null);
  end if;
end $$;

-- The rule of the copier that refuses an open or increase now, whatever its size, or null. p_new: a new position (not an increase); p_equity
-- may be unknown; p_leaving: see copier_load.
create function private.filtered(
  p_copier public.copiers, p_position public.positions, p_equity numeric, p_new boolean, p_leaving bigint, p_now timestamptz
)
returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_load record;
begin
  -- most copiers filter nothing: one look
  if p_copier.sides = 'both' and p_copier.open_from is null and p_copier.weekdays @> '{1,2,3,4,5,6,7}' and p_copier.min_equity is null
    and p_copier.symbols_only = '{}' and p_copier.symbols_except = '{}' and p_copier.magic_only = '{}' and p_copier.magic_except = '{}'
    and p_copier.comment_only = '{}' and p_copier.comment_except = '{}' and p_copier.max_open_positions is null
    and p_copier.max_open_lots is null and p_copier.max_trades_per_day is null then
    return null;
  end if;
  if p_copier.sides not in ('both', p_position.side) then return 'side_filtered'; end if;
  if cardinality(p_copier.symbols_only) > 0 and not private.matches_any(p_position.symbol, p_copier.symbols_only)
    or private.matches_any(p_position.symbol, p_copier.symbols_except) then
    return 'symbol_filtered';
  end if;
  if cardinality(p_copier.magic_only) > 0 and not coalesce(p_position.magic, '0') = any (p_copier.magic_only)
    or coalesce(p_position.magic, '0') = any (p_copier.magic_except) then
    return 'magic_filtered';
  end if;
  if cardinality(p_copier.comment_only) > 0 and not private.matches_any(p_position.comment, p_copier.comment_only)
    or private.matches_any(p_position.comment, p_copier.comment_except) then
    return 'comment_filtered';
  end if;
  if not private.within_hours(p_copier, p_now) then return 'outside_hours'; end if;
  if p_copier.min_equity is not null and (p_equity is null or p_equity < p_copier.min_equity) then return 'min_equity'; end if;
  if coalesce(p_copier.max_open_positions, p_copier.max_trades_per_day) is not null or p_copier.max_open_lots is not null then
    v_load := private.copier_load(p_copier, p_leaving, p_now);
    if p_new and v_load.positions >= p_copier.max_open_positions then return 'max_open_positions'; end if;
    if v_load.lots >= p_copier.max_open_lots then return 'max_open_lots'; end if;
    if p_new and v_load.today >= p_copier.max_trades_per_day then return 'max_trades_per_day'; end if;
  end if;
  return null;
end $$;

-- Whether a copier of these masters counts what it holds or opens: what is decided together then counts against each other.
create function private.limits_count(p_masters uuid[]) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.copiers c
    where c.master_account_id = any (p_masters) and c.removed_at is null
      and (c.max_open_positions is not null or c.max_open_lots is not null or c.max_trades_per_day is not null));
end $$;

-- Decides one position after the other, in the order given.
create function private.decide_in_turn(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz, p_asked text) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
begin
  for i in 1 .. cardinality(p_tickets) loop
    v_new := v_new || coalesce(private.decide(array[p_masters[i]], array[p_tickets[i]], p_copiers, p_now, p_asked), '{}');
  end loop;
  return v_new;
end $$;
