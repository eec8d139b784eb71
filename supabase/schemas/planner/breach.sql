-- What an account loses if the stops of everything that is open are hit, and whether an open would then cross a limit.

-- Whether an open past this rule's limit is refused, shrunk, or not judged (ignore). A rule that only notifies changes
-- nothing unless its user says so; targets and margin use have nothing to do with stops.
create function private.rule_would_breach(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when r.kind not in ('daily_loss', 'trailing_drawdown', 'equity_floor') then 'ignore'
    else coalesce(r.would_breach, case r.action when 'notify' then 'ignore' else 'refuse' end) end;
end $$;

-- Notes in the account's row whether opens are judged: the planner looks there first.
create function private.note_guard(p_account uuid) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.trading_accounts a set guarded = not a.guarded
  where a.id = p_account and a.guarded <> exists (select 1 from public.protection_rules r
    where r.account_id = p_account and r.enabled and private.rule_would_breach(r) <> 'ignore');
end $$;

-- The money of the account that one lot loses when the price moves by 1; null: a rate is not known.
create function private.money_per_move(p_account public.trading_accounts, p_symbol public.account_symbols)
returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_rate numeric[] := private.profit_fraction(p_symbol, p_account.currency, case
    when p_symbol.profit_currency = p_account.currency then '{}'::jsonb
    else private.quoted_rates(array[p_account.id], array[p_symbol.profit_currency,
      private.quoted_currency(p_symbol.name), p_account.currency]) end);
begin
  return p_symbol.contract_size * v_rate[1] / v_rate[2];
end $$;

-- The price that a loss is counted from: the present one if it is known (an order: its own price).
create function private.loss_begins_at(p_symbol public.account_symbols, p_side text, p_price numeric,
  p_pending boolean, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce(case when not p_pending
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s')
    then case p_side when 'buy' then p_symbol.bid else p_symbol.ask end end, p_price);
end $$;

-- The loss in the account's currency from the present price (an order: its own price) to the stop; 0: the stop is in
-- profit; null: a figure or rate is not known.
create function private.loss_to_stop(p_account public.trading_accounts, p_symbol public.account_symbols, p_side text,
  p_lots numeric, p_price numeric, p_sl numeric, p_pending boolean, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_from numeric := private.loss_begins_at(p_symbol, p_side, p_price, p_pending, p_now);
begin
  return greatest(0, case p_side when 'buy' then v_from - p_sl else p_sl - v_from end)
    * p_lots * private.money_per_move(p_account, p_symbol);
end $$;

-- Whether a level is a stop: 0 is none, below 0 is one where prices may be negative.
create function private.is_stop(p_sl numeric, p_symbol public.account_symbols) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(p_sl > 0 or p_sl < 0 and private.may_be_negative(p_symbol), false);
end $$;

-- The stop that a position or order has, or the wider one that is being set: brokers set some only after the fill.
create function private.widest_stop(p public.positions) returns numeric
language sql stable security definer set search_path = '' as $$
  select case p.side when 'buy' then least(nullif(p.sl, 0), q.sl) else greatest(nullif(p.sl, 0), q.sl) end
  from (values (1)) one
  left join lateral (
    select x.sl from public.trade_execution_queue x
    where x.account_id = p.account_id and x.symbol = p.symbol and x.in_flight and x.ticket = p.ticket
      and x.action = case p.kind when 'order' then 'amend' else 'modify' end
    order by x.id desc limit 1
  ) q on true
$$;

-- Everything that is open or on its way on a netting account: the shares of the copies, whose stops need not stand at
-- the broker, and what the user holds beside them. A copy that is to be closed is left out.
create function private.shares_with_stops(p_account public.trading_accounts)
returns table (symbol text, side text, lots numeric, price numeric, sl numeric, pending boolean)
language sql stable security definer set search_path = '' as $$
  with shares as materialized (
    select s.symbol, s.side, s.position_lots as held, s.doomed, s.master_price as price, s.wanted_sl as sl,
      coalesce(s.wanted_lots, 0) + coalesce((
        select sum((e ->> 'lots')::numeric) from public.trade_execution_queue q, jsonb_array_elements(q.parts) e
        where q.account_id = p_account.id and q.symbol = s.symbol and q.in_flight and e ->> 'link_id' = s.id::text
          and (e ->> 'lots')::numeric > 0), 0) as coming
    from private.link_states s where s.follower_account_id = p_account.id and s.state = 'live'
  )
  select s.symbol, s.side, s.held + s.coming, s.price, s.sl, false
  from shares s where not s.doomed and s.held + s.coming > 0
  union all
  select o.symbol, case when o.lots > 0 then 'buy' else 'sell' end, abs(o.lots), o.price, o.sl, false
  from (
    select distinct on (p.symbol) p.symbol, p.price, p.sl, private.sign_of(p.side) * p.lots - coalesce((
      select sum(private.sign_of(s.side) * s.held) from shares s where s.symbol = p.symbol), 0) as lots
    from public.positions p
    where p.account_id = p_account.id and p.closed_at is null and p.kind = 'position'
    order by p.symbol, p.session desc, p.seq desc
  ) o where o.lots <> 0
  union all
  select p.symbol, p.side, p.lots, p.price, private.widest_stop(p), true
  from public.positions p where p.account_id = p_account.id and p.closed_at is null and p.kind = 'order'
$$;

-- Everything that is open or on its way on an account.
create function private.held_with_stops(p_account public.trading_accounts)
returns table (symbol text, side text, lots numeric, price numeric, sl numeric, pending boolean)
language sql stable security definer set search_path = '' as $$
  select * from private.shares_with_stops(p_account) where p_account.mode = 'netting'
  union all
  select p.symbol, p.side, p.lots, p.price, private.widest_stop(p), p.kind = 'order'
  from public.positions p
  where p_account.mode = 'hedging' and p.account_id = p_account.id and p.closed_at is null
  union all
  select q.symbol, q.side, q.lots, coalesce(q.price, q.master_price), coalesce(q.sl, l.asked_sl), q.action = 'place'
  from public.trade_execution_queue q
  left join public.position_links l on l.id = q.link_id
  where p_account.mode = 'hedging' and q.account_id = p_account.id and q.in_flight and private.opens(q)
$$;

-- What one lot loses when the price moves from p_from to p_at; below 0: what it gains. Its stop ends the loss. A loss
-- without a stop is not counted, nor is the gain of an order, which may not have filled.
create function private.lost_at(p_side text, p_from numeric, p_sl numeric, p_pending boolean, p_at numeric)
returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_lost numeric := case p_side when 'buy' then p_from - greatest(p_at, p_sl) else least(p_at, p_sl) - p_from end;
begin
  return case when v_lost is null then null when p_pending and p_sl is null then 0
    when p_pending then greatest(0, v_lost) when p_sl is null then least(0, v_lost) else v_lost end;
end $$;

-- What a netting account loses in one symbol, at each of its stops in turn: what one side loses there the other gains.
-- held: by what is held; one: by one lot of a trade that is to come (p_side null: there is none).
create function private.losses_at_stops(p_account public.trading_accounts, s public.account_symbols, p_side text,
  p_price numeric, p_sl numeric, p_now timestamptz)
returns table (held numeric, one numeric)
language sql stable security definer set search_path = '' as $$
  with held as materialized (
    select h.side, h.lots, h.pending, private.loss_begins_at(s, h.side, h.price, h.pending, p_now) as price,
      case when private.is_stop(h.sl, s) then h.sl end as sl
    from private.held_with_stops(p_account) h where h.symbol = s.name
  )
  select f.money * (
      select case when count(*) = count(y.lost) then coalesce(sum(y.lost), 0) end
      from (select h.lots * private.lost_at(h.side, h.price, h.sl, h.pending, x.at) as lost from held h) y),
    f.money * private.lost_at(p_side, private.loss_begins_at(s, p_side, p_price, false, p_now), p_sl, false, x.at)
  from (select h.sl from held h where h.sl is not null union select p_sl where p_sl is not null) x (at)
  cross join (select private.money_per_move(p_account, s) as money offset 0) f
$$;

-- The loss if the stops of one symbol of a netting account are hit; null: it cannot be computed.
create function private.net_bound(p_account public.trading_accounts, p_symbol text, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
begin
  select * into s from public.account_symbols x where x.account_id = p_account.id and x.name = p_symbol;
  if s.name is null then return null; end if;
  return (select case when count(*) = count(l.held) then greatest(0, max(l.held)) end
    from private.losses_at_stops(p_account, s, null, null, null, p_now) l);
end $$;

-- The loss if all stops are hit, without those of one symbol (p_except). unknown: how many cannot be computed;
-- without_stop: how many have none.
create function private.bound_by_stops(p_account public.trading_accounts, p_now timestamptz, p_except text,
  out loss numeric, out unknown bigint, out without_stop bigint)
language plpgsql stable security definer set search_path = '' as $$
begin
  select coalesce(sum(x.loss), 0), coalesce(sum(x.stops) filter (where x.loss is null), 0),
    coalesce(sum(x.without), 0)
  into loss, unknown, without_stop
  from (
    select count(*) filter (where h.stopped) as stops, count(*) filter (where not h.stopped) as without, case
      when not bool_or(h.stopped) then 0
      when p_account.mode = 'netting' then private.net_bound(p_account, h.symbol, p_now)
      when count(h.loss) = count(*) filter (where h.stopped) then sum(h.loss) end as loss
    from (
      select h.symbol, private.is_stop(h.sl, s) as stopped, case
        when p_account.mode = 'hedging' and private.is_stop(h.sl, s) then
          private.loss_to_stop(p_account, s, h.side, h.lots, h.price, h.sl, h.pending, p_now) end as loss
      from private.held_with_stops(p_account) h
      left join public.account_symbols s on s.account_id = p_account.id and s.name = h.symbol
      where h.symbol is distinct from p_except
    ) h group by h.symbol
  ) x;
end $$;

-- At most so many lots of which each loses p_one fit into this room; null: a figure is not known. The limit itself
-- triggers, so a size that reaches it exactly is one step too large.
create function private.lots_in_room(p_lots numeric, p_one numeric, p_room numeric, p_step numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_lots numeric;
begin
  if p_room - p_one * p_lots > 0 or p_room is null or p_one is null then
    return case when p_room - p_one * p_lots > 0 then p_lots end;
  end if;
  if p_room <= 0 then return 0; end if;
  v_lots := div(p_room, p_one * p_step) * p_step;
  return case when v_lots * p_one = p_room then v_lots - p_step else v_lots end;
end $$;

-- The size of an open, held to the account's limits: refused (would_breach) or shrunk if its stop, hit together with
-- those already open, would cross one. A stop that is not set bounds nothing and is not judged. On a netting account
-- the net position counts: what leaves it with no more to lose than before is never refused. Figures that are not
-- fresh can refuse but not allow.
create function private.held_to_limits(p_account public.trading_accounts, s public.account_symbols, p_side text,
  p_size private.sizing, p_price numeric, p_sl numeric, p_pending boolean, p_since timestamptz, p_now timestamptz)
returns private.sizing
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := (select sum(o) from unnest(p_size.orders) o);
  v_fit numeric := v_lots;
  v_netting boolean := p_account.mode = 'netting';
  v_bound record;
  v_held numeric[];  -- what can be lost without this trade,
  v_one numeric[];   -- and by one lot of it: on a netting account at each stop of the symbol
  v_worst record;
  v_limit numeric;
  r public.protection_rules;
begin
  if p_size.reason is not null or not private.is_stop(p_sl, s) or v_lots is null then return p_size; end if;
  v_bound := private.bound_by_stops(p_account, p_now, case when v_netting then s.name end);
  if v_netting then
    select array_agg(v_bound.loss + l.held), array_agg(l.one) into v_held, v_one
    from private.losses_at_stops(p_account, s, p_side, p_price, p_sl, p_now) l;
    if (select bool_and(c.held + c.one * v_lots <= greatest(v_bound.loss, c.most))
      from (select u.*, max(u.held) over () as most from unnest(v_held, v_one) u (held, one)) c) then
      return p_size;
    end if;
  else
    v_held := array[v_bound.loss];
    v_one := array[private.loss_to_stop(p_account, s, p_side, 1, p_price, p_sl, p_pending, p_now)];
  end if;
  for r in select * from public.protection_rules x where x.account_id = p_account.id and x.enabled
    -- what a triggered rule stopped, its user has switched on again; one that only notifies goes on judging
    and (x.triggered_at is null or x.action = 'notify') and private.rule_would_breach(x) <> 'ignore' order by x.id
  loop
    v_limit := private.rule_limit(r, private.initial_for(r, p_account.balance));
    select c.held, c.one, private.lots_in_room(v_fit, c.one, p_account.equity - c.held - v_limit, s.lots_step) as lots
    into v_worst from unnest(v_held, v_one) c (held, one) where c.one >= 0 order by 3 limit 1;
    continue when v_worst.lots is null or v_worst.lots = v_fit;
    v_fit := v_worst.lots;
    if private.rule_would_breach(r) = 'refuse' or v_fit < s.lots_min then
      return private.no_order('would_breach', p_size.raw_lots, p_size.warnings, p_size.explain || format(
        '%s: the limit is %s and the equity %s. The stops of what is open can lose %s, and %s lots with the stop %s '
        'can lose %s more.', private.rule_title(r), v_limit, trim_scale(p_account.equity),
        round(greatest(0, v_worst.held), 2), private.plain(v_lots), private.plain(p_sl),
        round(v_worst.one * v_lots + least(0, v_worst.held), 2)));
    end if;
  end loop;
  if array_position(v_held || v_one, null) is not null or v_bound.unknown > 0
    or p_account.funds_at > p_since is not true or p_account.equity is null then
    return private.no_order('stale_funds', p_size.raw_lots, p_size.warnings, p_size.explain
      || 'Whether its stop would cross a limit of the account cannot be checked: the equity is not known or too old, '
        'or a rate is missing.'::text);
  end if;
  if v_fit < v_lots then
    p_size.orders := private.orders_up_to(p_size.orders, v_fit, s.lots_min);
    p_size.warnings := p_size.warnings || 'breach_shrunk'::text;
    p_size.explain := p_size.explain || format('Shrunk to %s lots: with more, its stop could cross a limit of the '
      'account.', private.plain(v_fit));
  end if;
  return p_size;
end $$;
