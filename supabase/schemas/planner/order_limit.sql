-- Copies of pending orders and the limits of their account: what may become of them when the master's order changes or
-- fills.

-- Why this order may not take the place of the copy's pending orders of p_orders lots, because its stop could then
-- cross a limit of the account (null: it may). What it replaces does not count.
create function private.over_limit(p_link public.position_links, p_symbol public.account_symbols, p_orders numeric,
  p_lots numeric, p_price numeric, p_sl numeric, p_pending boolean, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  v_size private.sizing;
begin
  select * into a from public.trading_accounts x where x.id = p_link.follower_account_id and x.guarded;
  if a.id is null then return null; end if;
  if p_orders > 0 and private.is_stop(p_link.asked_sl, p_symbol) then
    a.equity := a.equity + coalesce(private.loss_to_stop(a, p_symbol, p_link.side, p_orders, p_link.asked_price,
      p_link.asked_sl, true, p_now), 0);
  end if;
  v_size.orders := array[p_lots];
  v_size := private.held_to_limits(a, p_symbol, p_link.side, v_size, p_price, p_sl, p_pending,
    p_now - private.setting_s('funds_max_age_s'), p_now);
  return coalesce(v_size.reason, case when v_size.orders <> array[p_lots] then 'would_breach' end);
end $$;

-- Why the copy's order may not become what its master's has become (null: it may): its stop could then cross a limit of
-- the account. What can lose no more than before is never refused, nor is an order without a stop.
create function private.amendment_over_limit(p_link public.position_links, p_orders numeric, p_price numeric,
  p_sl numeric, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  s public.account_symbols;
begin
  select * into a from public.trading_accounts x where x.id = p_link.follower_account_id and x.guarded;
  if a.id is null or (p_price, p_sl) is not distinct from (p_link.asked_price, p_link.asked_sl) then
    return null;
  end if;
  select * into s from public.account_symbols x where x.account_id = a.id and x.name = p_link.symbol;
  if private.is_stop(p_sl, s) and (not private.is_stop(p_link.asked_sl, s) and not p_link.asked_unknown
    or private.loss_to_stop(a, s, p_link.side, p_orders, p_price, p_sl, true, p_now)
      <= private.loss_to_stop(a, s, p_link.side, p_orders, p_link.asked_price, p_link.asked_sl, true, p_now)) then
    return null;
  end if;
  return private.over_limit(p_link, s, p_orders, p_orders, p_price, p_sl, true, p_now);
end $$;

-- Lots of the market order that replaces pending orders of p_lots: the master may have reduced its position since.
create function private.converted_lots(p_link public.position_links, p_lots numeric, p_master public.positions,
  p_symbol public.account_symbols) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case when p_master.lots < p_link.seen_master_lots then private.target_lots(p_lots, p_master.lots,
    p_link.seen_master_lots, p_symbol.lots_step, p_symbol.lots_min, p_lots) else p_lots end;
end $$;

-- Why the market order that replaces the copy's order would cross a limit of the account (null: it would not): the
-- price may be far from the order's. p_orders: the lots of the order.
create function private.conversion_over_limit(p_link public.position_links, p_copier public.copiers,
  p_master public.positions, p_symbol public.account_symbols, p_orders numeric, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := private.converted_lots(p_link, case when p_orders > 0 then p_orders else p_link.wanted_lots end,
    p_master, p_symbol);
begin
  return private.over_limit(p_link, p_symbol, p_orders, v_lots, p_master.price,
    (private.first_levels(p_copier, p_master, p_symbol, p_link.side, null, p_now)).sent_sl, false, p_now);
end $$;
