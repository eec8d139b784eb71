-- Levels: which stop loss and take profit a copy shall have, and which of them its broker will take at this moment.
-- What is wanted depends on settings, the master and the copy's own open price alone; it is compared with what was last asked. What is
-- sent may differ from it by the broker's distances: that is decided when an order is queued and never compared, for quotes move.

create type private.levels as (sl numeric, tp numeric, sent_sl numeric, sent_tp numeric, warnings text[]);
comment on type private.levels is 'sl, tp: what is wanted; sent_sl, sent_tp: the nearest that the broker takes now; warnings say that they differ.';

-- A level that a copy shall have. p_from: the master's level it comes from (under reverse its other one); p_direction: +1 when the level
-- lies above the copy's open price, -1 below; p_open: the copy's own open price, null while there is none (then the master's counts);
-- p_cap: the farthest that it may lie away, in points, also when the master has none.
create function private.wanted_level(
  p_mode text, p_from numeric, p_master_open numeric, p_open numeric, p_direction integer, p_points integer, p_cap integer, p_digits integer,
  p_tick numeric
) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_open numeric;
  v_level numeric := p_from;
  v_cap numeric;
begin
  if p_mode = 'price' and p_cap is null then  -- what most copiers do, for every link that is looked at: no further call
    return case when p_tick > 0 then div(p_from + p_tick / 2, p_tick) * p_tick else p_from end;
  end if;
  if p_mode = 'none' and p_cap is null then return null; end if;
  v_open := coalesce(p_open, private.on_tick(p_master_open, p_tick));
  v_level := case p_mode when 'price' then p_from when 'distance' then v_open + (p_from - p_master_open)
    when 'fixed' then v_open + p_direction * p_points * 10::numeric ^ -p_digits end;
  if p_cap is not null then
    v_cap := v_open + p_direction * p_cap * 10::numeric ^ -p_digits;
    v_level := case when p_direction > 0 then least(v_level, v_cap) else greatest(v_level, v_cap) end;
  end if;
  v_level := private.on_tick(v_level, p_tick);
  return case when v_level > 0 then v_level end;
end $$;

-- A quote that may be relied on: an agent tells those of the symbols in use again and again.
create function private.is_fresh(p_symbol public.account_symbols, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(p_symbol.bid > 0 and p_symbol.ask > 0
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s'), false);
end $$;

-- The nearest levels that the broker takes. p_order_price: of a pending order, null: a position at the market. p_tries: refusals for the levels
-- so far; a broker that names no distance (0) is believed until it refuses, then the spread is kept, doubled each time.
create function private.legal_levels(
  p_symbol public.account_symbols, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer, p_now timestamptz
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
    if not private.is_fresh(p_symbol, p_now) then return v_levels; end if;
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
  v_levels.sent_sl := case when v_levels.sent_sl > 0 then v_levels.sent_sl end;
  v_levels.sent_tp := case when v_levels.sent_tp > 0 then v_levels.sent_tp end;
  v_levels.warnings := array_remove(array[case when v_levels.sent_sl is distinct from p_sl then 'sl_adjusted' end,
    case when v_levels.sent_tp is distinct from p_tp then 'tp_adjusted' end], null);
  return v_levels;
end $$;

-- Levels of a link's change, by its follower's symbol.
create function private.levels_to_ask(
  p_account uuid, p_symbol text, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer, p_now timestamptz
) returns private.levels
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  if p_sl is null and p_tp is null then return row(null, null, null, null, '{}'::text[])::private.levels; end if;
  select * into v_symbol from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  return private.legal_levels(v_symbol, p_side, p_order_price, p_sl, p_tp, p_tries, p_now);
end $$;

-- The same for a copier that takes the master's levels as they are, where the broker names no distance.
create function private.price_levels(p_sl numeric, p_tp numeric, p_tick numeric) returns private.levels
language plpgsql immutable set search_path = '' as $$
declare
  v_sl numeric := case when p_tick > 0 then div(p_sl + p_tick / 2, p_tick) * p_tick else p_sl end;
  v_tp numeric := case when p_tick > 0 then div(p_tp + p_tick / 2, p_tick) * p_tick else p_tp end;
begin
  return row(v_sl, v_tp, v_sl, v_tp, '{}'::text[])::private.levels;
end $$;

-- Levels of an order that opens something: from the price that it will probably get, since it must never be naked. The exact ones follow
-- when its own price is known. p_open: what the copy holds already (an increase), null: nothing.
create function private.first_levels(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_open numeric, p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_open numeric := p_open;
  v_up integer := case p_side when 'buy' then 1 else -1 end;
  v_sl numeric;
  v_tp numeric;
begin
  if v_open is null and p_master.kind = 'position' and (p_copier.sl_mode in ('distance', 'fixed') or p_copier.tp_mode in ('distance', 'fixed')
    or p_copier.max_sl_points is not null) and private.is_fresh(p_symbol, p_now) then
    v_open := case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  v_sl := private.wanted_level(p_copier.sl_mode, case when p_copier.reverse then p_master.tp else p_master.sl end, p_master.price, v_open, -v_up,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size);
  v_tp := private.wanted_level(p_copier.tp_mode, case when p_copier.reverse then p_master.sl else p_master.tp end, p_master.price, v_open, v_up,
    p_copier.tp_points, null, p_symbol.digits, p_symbol.tick_size);
  return private.legal_levels(p_symbol, p_side, case when p_master.kind = 'order' then private.on_tick(p_master.price, p_symbol.tick_size) end,
    v_sl, v_tp, 0, p_now);
end $$;

-- What a link's positions were opened at, on average.
create function private.open_price(p_link bigint) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select sum(g.lots * g.price) / nullif(sum(g.lots), 0) from private.link_legs g
    where g.link_id = p_link and g.kind = 'position' and g.price is not null);
end $$;

-- The stop that a copy risks its money by, at the master's price level: its own where the copier sets it, else the master's.
-- p_side: the master's; p_stop: the master's level that becomes the copy's stop.
create function private.stop_of_copy(p_copier public.copiers, p_side text, p_price numeric, p_stop numeric, p_symbol public.account_symbols)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(p_copier.sl_mode, 'price') <> 'fixed' and p_copier.max_sl_points is null then return p_stop; end if;
  return private.wanted_level(p_copier.sl_mode, p_stop, p_price, p_price, case when (p_side = 'buy') = p_copier.reverse then 1 else -1 end,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size);
end $$;

-- A link's warnings, with those about levels replaced by the newest.
create function private.with_level_warnings(p_warnings text[], p_new text[]) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  return array_remove(array_remove(p_warnings, 'sl_adjusted'), 'tp_adjusted') || coalesce(p_new, '{}');
end $$;

-- Settings of levels that contradict each other, both named. p_given: what is being saved, p_new: what would stand.
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
    when p_new.sl_mode = 'none' and p_new.max_sl_points is not null then 'sl_mode is none, but max_sl_points sets a stop'
    when p_new.sl_mode = 'fixed' and p_new.sl_points > p_new.max_sl_points then
      format('sl_points %s is more than max_sl_points %s', p_new.sl_points, p_new.max_sl_points) end;
begin
  if v_message is not null then
    raise exception using errcode = 'TC306', message = 'save_copier: ' || v_message, hint = 'Change one of the two settings.';
  end if;
end $$;

create function private.is_quote(p jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(jsonb_typeof(p), 'null') = 'null' then return true; end if;
  if jsonb_typeof(p) <> 'object' or not coalesce(private.is_number(p -> 'bid') and private.is_number(p -> 'ask'), false) then return false; end if;
  return (p ->> 'bid')::numeric > 0 and (p ->> 'ask')::numeric > 0;
end $$;

-- The prices at which an agent saw its order refused.
create function private.note_quote(p_account uuid, p_symbol text, p_quote jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.account_symbols s set bid = (p_quote ->> 'bid')::numeric, ask = (p_quote ->> 'ask')::numeric, quoted_at = p_now
  where s.account_id = p_account and s.name = p_symbol and (s.quoted_at < p_now or s.quoted_at is null);
end $$;

-- Whether an order that was refused for its levels shall be sent again with the nearest ones that the broker may take; not for ever.
create function private.may_mend(q public.trade_execution_queue, p_reason text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return p_reason = 'invalid_stops' and q.attempt < 3 and coalesce(q.sl, q.tp) is not null and q.action in ('open', 'increase', 'place');
end $$;

create function private.mend_levels(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.levels_to_ask(q.account_id, q.symbol, q.side, case when q.action = 'place' then q.price end, q.sl, q.tp,
    q.attempt, p_now);
begin
  update public.trade_execution_queue x set sl = v_levels.sent_sl, tp = v_levels.sent_tp,
    warnings = private.with_level_warnings(x.warnings, v_levels.warnings)
  where x.id = q.id;
  update public.position_links l set warnings = private.with_level_warnings(l.warnings, v_levels.warnings) where l.id = q.link_id;
end $$;

-- An order that was filled without the levels it asked for: as if none had been asked, so that the planner asks at once. And a change
-- that was carried out ends the warning of one that was not.
create function private.mind_protection(q public.trade_execution_queue, r jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if q.action in ('modify', 'amend') then
    update public.position_links l set warnings = array_remove(l.warnings, 'protection_dropped')
    where l.id = q.link_id and 'protection_dropped' = any (l.warnings);
  elsif coalesce(q.sl, q.tp) is not null and q.action in ('open', 'increase', 'place') and exists (
    select 1 from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    where (e ->> 'lots')::numeric > 0 and (q.sl is not null and coalesce((e ->> 'sl')::numeric, 0) = 0
      or q.tp is not null and coalesce((e ->> 'tp')::numeric, 0) = 0))
  then
    if exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting') then
      update private.net_ledgers n set asked_sl = null, asked_tp = null where n.account_id = q.account_id and n.symbol = q.symbol;
    else
      update public.position_links l set asked_sl = null, asked_tp = null where l.id = q.link_id;
    end if;
  end if;
end $$;

-- Levels that the broker has refused for good: never silently. A change is given up after three refusals, an opening order is not sent any more.
create function private.mind_refused_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if coalesce(q.sl, q.tp) is null then return; end if;
  if q.action in ('modify', 'amend') then
    if exists (select 1 from public.position_links l where l.id = q.link_id and l.modify_failures >= 3)
      or exists (select 1 from private.net_ledgers n where n.account_id = q.account_id and n.symbol = q.symbol and n.modify_failures >= 3)
    then
      update public.position_links l set warnings = l.warnings || 'protection_dropped'::text
      where l.id = q.link_id and not 'protection_dropped' = any (l.warnings);
      perform private.raise_alert(q.account_id, 'levels', 'protection_dropped', 'critical', format(
        'The broker refused stop loss %s and take profit %s of the copy %s (%s) three times: %s. Set them by hand, or close the position.',
        coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none'), q.ticket, q.symbol, coalesce(q.message, q.reason)),
        jsonb_build_object('link_id', q.link_id::text, 'ticket', q.ticket, 'symbol', q.symbol, 'sl', q.sl::text, 'tp', q.tp::text));
    end if;
  elsif q.status = 'rejected' and q.reason = 'invalid_stops' then
    perform private.raise_alert(q.account_id, 'levels', 'invalid_stops', 'warning', format(
      'A copy of %s lots of %s was not opened: the broker takes neither its levels nor nearer ones (stop loss %s, take profit %s).',
      private.plain(q.lots), q.symbol, coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none')),
      jsonb_build_object('link_id', q.link_id::text, 'symbol', q.symbol, 'sl', q.sl::text, 'tp', q.tp::text));
  end if;
end $$;
