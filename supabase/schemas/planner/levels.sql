-- Levels: which stop loss and take profit a copy should have, and which of them its broker accepts now. The wanted
-- levels depend only on settings, the master and the copy's own open price, and are compared with the levels last asked
-- for. The levels sent may differ because of the broker's distances; that is decided when an order is queued.

create type private.levels as (sl numeric, tp numeric, sent_sl numeric, sent_tp numeric, warnings text[]);
comment on type private.levels is
  'sl, tp: the wanted levels; sent_sl, sent_tp: the nearest that the broker accepts now; warnings say that they '
  'differ.';

-- The nearest levels that the broker accepts. p_order_price: the price of a pending order; null: a position at the
-- market. p_tries: refusals of the levels so far. A broker that reports a distance of 0 is believed until it refuses;
-- then the distance is the spread, doubled with each refusal.
create function private.legal_levels(
  p_symbol public.account_symbols, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer,
    p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_levels private.levels := row(p_sl, p_tp, p_sl, p_tp, '{}'::text[]);
  v_distance numeric := greatest(p_symbol.stops_level_points, p_symbol.freeze_level_points);
  v_price numeric := p_order_price;
  v_below numeric;
  v_above numeric;
begin
  if p_sl is null and p_tp is null or v_distance = 0 and p_tries = 0 then return v_levels; end if;
  if v_price is null then
    if not private.quote_is_fresh(p_symbol, p_now) then return v_levels; end if;
    v_price := case p_side when 'buy' then p_symbol.bid else p_symbol.ask end;
  end if;
  v_distance := v_distance * 10::numeric ^ -p_symbol.digits;
  if p_tries > 0 then
    v_distance := greatest(v_distance, p_symbol.ask - p_symbol.bid, p_symbol.tick_size) * 2::numeric ^ (p_tries - 1);
  end if;
  v_below := floor((v_price - v_distance) / p_symbol.tick_size) * p_symbol.tick_size;
  v_above := ceil((v_price + v_distance) / p_symbol.tick_size) * p_symbol.tick_size;
  if p_side = 'buy' then
    v_levels.sent_sl := least(p_sl, case when p_sl is not null then v_below end);
    v_levels.sent_tp := greatest(p_tp, case when p_tp is not null then v_above end);
  else
    v_levels.sent_sl := greatest(p_sl, case when p_sl is not null then v_above end);
    v_levels.sent_tp := least(p_tp, case when p_tp is not null then v_below end);
  end if;
  if not private.may_be_negative(p_symbol) then
    v_levels.sent_sl := case when v_levels.sent_sl > 0 then v_levels.sent_sl end;
    v_levels.sent_tp := case when v_levels.sent_tp > 0 then v_levels.sent_tp end;
  end if;
  v_levels.warnings := array_remove(array[case when v_levels.sent_sl is distinct from p_sl then 'sl_adjusted' end,
    case when v_levels.sent_tp is distinct from p_tp then 'tp_adjusted' end], null);
  return v_levels;
end $$;

-- Levels for a change of a link, by its follower's symbol.
create function private.levels_to_ask(
  p_account uuid, p_symbol text, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer,
    p_now timestamptz
) returns private.levels
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  if p_sl is null and p_tp is null then return row(null, null, null, null, '{}'::text[])::private.levels; end if;
  select * into v_symbol from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  return private.legal_levels(v_symbol, p_side, p_order_price, p_sl, p_tp, p_tries, p_now);
end $$;

-- The same for a copier that takes the master's levels unchanged, where the broker reports no distance.
create function private.price_levels(p_sl numeric, p_tp numeric, p_tick numeric) returns private.levels
language plpgsql immutable set search_path = '' as $$
declare
  v_sl numeric := case when p_tick > 0 then sign(p_sl) * div(abs(p_sl) + p_tick / 2, p_tick) * p_tick else p_sl end;
  v_tp numeric := case when p_tick > 0 then sign(p_tp) * div(abs(p_tp) + p_tick / 2, p_tick) * p_tick else p_tp end;
begin
  return row(v_sl, v_tp, v_sl, v_tp, '{}'::text[])::private.levels;
end $$;

-- Levels of an opening order, computed from the price that it will probably get, since it must never be without a stop.
-- The exact levels follow when its own price is known. p_open: the copy's open price (an increase), null: it is new.
create function private.first_levels(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_open numeric,
    p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_open numeric := p_open;
  v_up integer := case p_side when 'buy' then 1 else -1 end;
  v_sl numeric;
  v_tp numeric;
begin
  if v_open is null and p_master.kind = 'position'
    and (p_copier.sl_mode in ('distance', 'fixed') or p_copier.tp_mode in ('distance', 'fixed')
    or p_copier.max_sl_points is not null) and private.quote_is_fresh(p_symbol, p_now) then
    v_open := case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  v_sl := private.wanted_level(p_copier.sl_mode, case
    when p_copier.reverse then p_master.tp else p_master.sl end, p_master.price, v_open, -v_up,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size,
    private.may_be_negative(p_symbol));
  v_tp := private.wanted_level(p_copier.tp_mode, case
    when p_copier.reverse then p_master.sl else p_master.tp end, p_master.price, v_open, v_up,
    p_copier.tp_points, null, p_symbol.digits, p_symbol.tick_size, private.may_be_negative(p_symbol));
  return private.legal_levels(p_symbol, p_side, case
    when p_master.kind = 'order' then private.on_tick(p_master.price, p_symbol.tick_size) end,
    v_sl, v_tp, 0, p_now);
end $$;

-- Average open price of a link's positions.
create function private.open_price(p_link bigint) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select sum(g.lots * g.price) / nullif(sum(g.lots), 0) from private.link_legs g
    where g.link_id = p_link and g.kind = 'position' and g.price is not null);
end $$;

-- The stop that limits the loss of a copy, at the master's price level: its own where the copier sets one, else the
-- master's. p_side: the master's; p_stop: the master's level that becomes the copy's stop.
create function private.stop_of_copy(p_copier public.copiers, p_side text, p_price numeric, p_stop numeric,
  p_symbol public.account_symbols)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(p_copier.sl_mode, 'price') <> 'fixed' and p_copier.max_sl_points is null then return p_stop; end if;
  return private.wanted_level(p_copier.sl_mode, p_stop, p_price, p_price, case
    when (p_side = 'buy') = p_copier.reverse then 1 else -1 end,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size,
    private.may_be_negative(p_symbol));
end $$;

-- A link's warnings, with those about levels replaced by the new ones.
create function private.with_level_warnings(p_warnings text[], p_new text[]) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  return array_remove(array_remove(p_warnings, 'sl_adjusted'), 'tp_adjusted') || coalesce(p_new, '{}');
end $$;

-- Raises an error for level settings that contradict each other, naming both. p_given: the request, p_new: the result.
create function private.refuse_contradicting_levels(p_given jsonb, p_new public.copiers) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_message text := case
    when p_new.sl_mode = 'fixed' and p_new.sl_points is null then 'sl_mode is fixed, but sl_points is missing'
    when p_new.tp_mode = 'fixed' and p_new.tp_points is null then 'tp_mode is fixed, but tp_points is missing'
    when p_new.sl_mode <> 'fixed' and jsonb_typeof(p_given -> 'sl_points') <> 'null' then
      format('sl_points is given, but sl_mode is %s', p_new.sl_mode)
    when p_new.tp_mode <> 'fixed' and jsonb_typeof(p_given -> 'tp_points') <> 'null' then
      format('tp_points is given, but tp_mode is %s', p_new.tp_mode)
    when p_new.sl_mode = 'none' and p_new.max_sl_points is not null
      then 'sl_mode is none, but max_sl_points sets a stop'
    when p_new.sl_mode = 'fixed' and p_new.sl_points > p_new.max_sl_points then
      format('sl_points %s is more than max_sl_points %s', p_new.sl_points, p_new.max_sl_points) end;
begin
  if v_message is not null then
    raise exception using errcode = 'TC306', message = 'save_copier: ' || v_message,
      hint = 'Change one of the two settings.';
  end if;
end $$;

-- Stores the prices at which an agent's order was refused. Two zeros are no quote.
create function private.note_quote(p_account uuid, p_symbol text, p_quote jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.account_symbols s set bid = (p_quote ->> 'bid')::numeric, ask = (p_quote ->> 'ask')::numeric,
    quoted_at = p_now
  where s.account_id = p_account and s.name = p_symbol and (s.quoted_at < p_now or s.quoted_at is null)
    and ((p_quote ->> 'bid')::numeric > 0 and (p_quote ->> 'ask')::numeric > 0
      or (s.allow_negative or (p_quote ->> 'bid')::numeric < 0)
        and (p_quote ->> 'bid')::numeric <= (p_quote ->> 'ask')::numeric);
end $$;
