-- Pairs of a copier and a master position that wait for a decision, and what a decision needs to know of them.

-- Whether an account can be traded now; null: yes, else the reason.
create function private.unreachable_reason(p_account public.trading_accounts, p_lease_ends timestamptz,
  p_now timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_account.removed_at is not null then 'account_removed'
    when p_account.status = 'halted' then 'account_halted'
    when p_lease_ends is null then 'follower_unassigned'
    when p_lease_ends <= p_now or p_account.status = 'pending' then 'follower_offline' end;
end $$;

-- An account's money for sizing; unknown if it was measured before p_since.
create function private.fresh_funds(p_account public.trading_accounts, p_since timestamptz) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  if p_account.funds_at > p_since then
    return row(p_account.currency, p_account.balance, p_account.equity, p_account.free_margin)::private.funds;
  end if;
  return row(p_account.currency, null, null, null)::private.funds;
end $$;

-- The type of a copied pending order; under reverse a buy limit becomes a sell stop.
create function private.copied_order_type(p_type text, p_reverse boolean) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when p_type is null then 'market' when not p_reverse then p_type when p_type = 'limit'
    then 'stop' else 'limit' end;
end $$;

-- Pairs (copier, master position) that wait for a decision: new, flipped, increased, or requested by the user.
-- p_copiers null: all copiers of the masters. p_kinds null: the order and the position of each number. The
-- old generation of a flip must have ended or have its close in flight.
-- p_asked: exactly these positions are requested, however old: 'existing' when a copier starts, 'resync' by its user. A
-- requested position that was decided before and is not held gets a new generation. asked_lots: the lots that a live
-- copy must get because its user requested them.
create function private.undecided(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_asked text default null,
  p_kinds text[] default null)
returns table (copier_id uuid, master_account_id uuid, ticket text, position_kind text, kind text,
  link_id bigint, generation integer,
  delta numeric, close_step bigint,
  asked_lots numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select c.id, m.account_id, m.ticket, m.kind,
    case when l.id is null or p_asked is not null then 'new' when l.master_side <> m.side
      then 'flip' else 'increase' end,
    l.id, coalesce(l.generation, 0) + 1,
    case when l.id is null or p_asked is not null or l.master_side <> m.side or l.resync_lots is not null then m.lots
      else m.lots - l.seen_master_lots end,
    case when l.state = 'live' then f.close_step end, l.resync_lots
  from (select distinct u.master, u.ticket, u.kind
    from unnest(p_masters, p_tickets, p_kinds) as u (master, ticket, kind)) x
  join public.positions m on m.account_id = x.master and m.ticket = x.ticket and m.lots > 0
    and (x.kind is null or m.kind = x.kind)
  join public.copiers c on c.master_account_id = x.master and c.removed_at is null
    and (p_copiers is null or c.id = any (p_copiers))
  join public.trading_accounts fa on fa.id = c.follower_account_id
  left join lateral (
    select pl.* from public.position_links pl
    where pl.master_account_id = x.master and pl.master_ticket = x.ticket and pl.master_kind = m.kind
      and pl.copier_id = c.id
    order by pl.generation desc limit 1
  ) l on true
  left join lateral (
    select count(*) as executions, max(q.step_id) filter (where q.action in ('close', 'cancel')) as close_step
    from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
  ) f on true
  where case
    when p_asked is not null then (l.id is null or l.state = 'ended' and f.executions = 0)
      and (m.kind = 'position' or c.copy_pending and fa.mode = 'hedging')
    -- what was there before the copier is not copied, except the fill of an order if orders are copied at their fill
    when l.id is null and c.copy_pending and fa.mode = 'hedging' then not m.existing and m.first_seen_at >= c.started_at
    when l.id is null then m.kind = 'position'
      and (not m.existing and m.first_seen_at >= c.started_at or coalesce(m.filled_at >= c.started_at, false))
    when l.master_side <> m.side then m.kind = 'position'
      and (l.state = 'ended' or f.close_step is not null or fa.mode = 'netting')
    else l.state = 'live' and m.kind = 'position' and (m.lots > l.seen_master_lots or l.resync_lots is not null)
      and f.executions = 0 and l.wanted_lots is null
      -- a deal may be its reduction, whichever link it is queued for
      and l.base_lots is not null and (fa.mode = 'hedging' or not exists (
        select 1 from public.trade_execution_queue q where q.account_id = fa.id and q.symbol = l.symbol and q.in_flight
          and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text)))) end;
end $$;

-- The symbol that a copy is held in, whatever would be chosen for a new one.
create function private.symbol_of_link(p_link bigint) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
begin
  select x.* into s from public.position_links l
  join public.account_symbols x on x.account_id = l.follower_account_id and x.name = l.symbol
  where l.id = p_link;
  return s;
end $$;

-- The copier, set to size exactly the lots that its user requested; limits still apply.
create function private.sized_by(p_copier public.copiers, p_lots numeric) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sizing_mode := 'fixed';
  p_copier.sizing_value := p_lots;
  return p_copier;
end $$;

-- The copier, set to size this many times as much: the factor of a mapping.
create function private.times_factor(p_copier public.copiers, p_factor numeric) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sizing_value := p_copier.sizing_value * p_factor;
  return p_copier;
end $$;

-- The price that slippage is measured from when a user requests a copy long after the master's open: the present one.
create function private.entry_price(p_symbol public.account_symbols, p_side text, p_master_price numeric,
  p_now timestamptz) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  if p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s') then
    return coalesce(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end, p_master_price);
  end if;
  return null;  -- no fresh quote: the agent measures from the price it finds
end $$;

-- The stop of an increase if the copier sets its own stops. The stop is measured from the copy's average price, which
-- the increase moves to between the present one and its own price. The farther of both stops, so that no risk is
-- missed.
create function private.stop_of_increase(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_link bigint,
    p_now timestamptz
) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_held numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, private.open_price(p_link), p_now)).sl;
  v_new numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, null, p_now)).sl;
begin
  return case p_side when 'buy' then least(v_held, v_new) else greatest(v_held, v_new) end;
end $$;

-- The copier, with the stop known: the master's level that it is sized with is the stop.
create function private.at_stop(p_copier public.copiers) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sl_mode := 'price';
  p_copier.max_sl_points := null;
  return p_copier;
end $$;

-- Why no open may be made in this symbol, as far as the symbol itself says it; null: it may.
create function private.symbol_refusal(p_symbol public.account_symbols, p_side text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_symbol.contract_size is null or p_symbol.lots_step is null or p_symbol.lots_min is null
      or p_symbol.lots_max is null then 'symbol_unmapped'
    when p_symbol.trade_mode in ('close_only', 'disabled')
      or p_symbol.trade_mode = 'long_only' and p_side = 'sell'
      or p_symbol.trade_mode = 'short_only' and p_side = 'buy' then 'trade_disabled'
  end;
end $$;

-- Why a requested position is not opened now, or null. A position of unknown state is not open: a master that nobody
-- watches may have closed it.
create function private.asked_too_late(p_asked text, p_copier public.copiers, p_position public.positions,
  p_master public.trading_accounts,
  p_symbol public.account_symbols, p_side text, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_master.status <> 'connected' or not exists (
    select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
    where a.account_id = p_master.id and v.retired_at is null and v.lease_expires_at > p_now) then
    return 'master_offline';
  end if;
  if p_asked = 'existing' and p_copier.copy_existing = 'near' and p_position.kind = 'position' then
    if not private.quote_is_fresh(p_symbol, p_now) then return 'no_quote'; end if;
    if abs(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end - p_position.price)
      > p_copier.copy_existing_points * power(10::numeric, -p_symbol.digits) then
      return 'price_moved';
    end if;
  end if;
  return null;
end $$;

-- A master's position whose open price its broker does not tell (0): its symbol's present quote stands for it. Without
-- one the price is null.
create function private.at_known_price(p_position public.positions, p_symbol public.account_symbols, p_now timestamptz)
returns public.positions
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_position.price = 0 and not private.may_be_negative(p_symbol) then
    p_position.price := case when p_position.kind = 'position' and private.quote_is_fresh(p_symbol, p_now)
      then case p_position.side when 'buy' then p_symbol.ask else p_symbol.bid end end;
  end if;
  return p_position;
end $$;
