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

-- The loss in the account's currency from the present price (an order: its own price) to the stop; 0: the stop is in
-- profit; null: a figure or rate is not known.
create function private.loss_to_stop(p_account public.trading_accounts, p_symbol public.account_symbols, p_side text,
  p_lots numeric, p_price numeric, p_sl numeric, p_pending boolean, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_rate numeric[] := private.profit_fraction(p_symbol, p_account.currency, case
    when p_symbol.profit_currency = p_account.currency then '{}'::jsonb
    else private.quoted_rates(array[p_account.id], array[p_symbol.profit_currency,
      private.quoted_currency(p_symbol.name), p_account.currency]) end);
  v_from numeric := coalesce(case when not p_pending
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s')
    then case p_side when 'buy' then p_symbol.bid else p_symbol.ask end end, p_price);
begin
  return greatest(0, case p_side when 'buy' then v_from - p_sl else p_sl - v_from end)
    * p_lots * p_symbol.contract_size * v_rate[1] / v_rate[2];
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

-- Everything that is open or on its way on an account.
create function private.held_with_stops(p_account public.trading_accounts)
returns table (symbol text, side text, lots numeric, price numeric, sl numeric, pending boolean)
language sql stable security definer set search_path = '' as $$
  select p.symbol, p.side, p.lots, p.price, private.widest_stop(p), p.kind = 'order'
  from public.positions p where p.account_id = p_account.id and p.closed_at is null
  union all
  select q.symbol, q.side, case when q.parts is null then q.lots else least(q.lots, (
      select sum((e ->> 'lots')::numeric) from jsonb_array_elements(q.parts) e where (e ->> 'lots')::numeric > 0)) end,
    coalesce(q.price, q.master_price), coalesce(q.sl, l.asked_sl), q.action = 'place'
  from public.trade_execution_queue q
  left join public.position_links l on l.id = q.link_id
  where q.account_id = p_account.id and q.in_flight and private.opens(q)
  union all
  select l.symbol, l.side, l.wanted_lots, m.price, l.asked_sl, false
  from public.position_links l
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
    and m.kind = l.master_kind
  where l.follower_account_id = p_account.id and l.state = 'live' and l.wanted_lots > 0
    and p_account.mode = 'netting'
$$;

-- The loss if all these stops are hit. unknown: how many cannot be computed; without_stop: how many have none.
create function private.bound_by_stops(p_account public.trading_accounts, p_now timestamptz, out loss numeric,
  out unknown bigint, out without_stop bigint)
language plpgsql stable security definer set search_path = '' as $$
begin
  select coalesce(sum(x.loss), 0), count(*) filter (where x.stopped and x.loss is null),
    count(*) filter (where not x.stopped)
  into loss, unknown, without_stop
  from (
    select private.is_stop(h.sl, s) as stopped, case when private.is_stop(h.sl, s) then
      private.loss_to_stop(p_account, s, h.side, h.lots, h.price, h.sl, h.pending, p_now) end as loss
    from private.held_with_stops(p_account) h
    left join public.account_symbols s on s.account_id = p_account.id and s.name = h.symbol
  ) x;
end $$;

-- The orders of a size, at most this volume in all; the last ones are cut first.
create function private.orders_up_to(p_orders numeric[], p_lots numeric) returns numeric[]
language sql immutable set search_path = '' as $$
  select coalesce(array_agg(least(x.lots, p_lots - x.before) order by x.n), '{}')
  from (
    select o.lots, o.n, sum(o.lots) over (order by o.n) - o.lots as before
    from unnest(p_orders) with ordinality as o (lots, n)
  ) x
  where x.before < p_lots
$$;

-- The size of an open, held to the account's limits: refused (would_breach) or shrunk if its stop, hit together with
-- those already open, would cross one. A stop that is not set bounds nothing and is not judged. Figures that are not
-- fresh can refuse but not allow.
create function private.held_to_limits(p_account public.trading_accounts, s public.account_symbols, p_side text,
  p_size private.sizing, p_price numeric, p_sl numeric, p_pending boolean, p_since timestamptz, p_now timestamptz)
returns private.sizing
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := (select sum(o) from unnest(p_size.orders) o);
  v_fit numeric := v_lots;
  v_one numeric := private.loss_to_stop(p_account, s, p_side, 1, p_price, p_sl, p_pending, p_now);
  v_bound record;
  v_room numeric;
  v_limit numeric;
  r public.protection_rules;
begin
  if p_size.reason is not null or not private.is_stop(p_sl, s) or v_lots is null then return p_size; end if;
  v_bound := private.bound_by_stops(p_account, p_now);
  for r in select * from public.protection_rules x where x.account_id = p_account.id and x.enabled
    -- what a triggered rule stopped, its user has switched on again; one that only notifies goes on judging
    and (x.triggered_at is null or x.action = 'notify') and private.rule_would_breach(x) <> 'ignore' order by x.id
  loop
    v_limit := private.rule_limit(r, private.initial_for(r, p_account.balance));
    v_room := p_account.equity - v_bound.loss - v_limit;
    continue when v_room - v_one * v_fit > 0 or v_limit is null or v_room is null or v_one is null;
    -- the limit itself triggers, so a size that reaches it exactly is one step too large
    v_fit := case when v_room <= 0 then 0 else div(v_room, v_one * s.lots_step) * s.lots_step end;
    if v_fit * v_one = v_room then v_fit := v_fit - s.lots_step; end if;
    if private.rule_would_breach(r) = 'refuse' or v_fit < s.lots_min then
      return private.no_order('would_breach', p_size.raw_lots, p_size.warnings, p_size.explain || format(
        '%s: the limit is %s and the equity %s. The stops of what is open can lose %s, and %s lots with the stop %s '
        'can lose %s more.', private.rule_title(r), v_limit, trim_scale(p_account.equity), round(v_bound.loss, 2),
        private.plain(v_lots), private.plain(p_sl), round(v_one * v_lots, 2)));
    end if;
  end loop;
  if v_one is null or v_bound.unknown > 0 or p_account.funds_at > p_since is not true or p_account.equity is null then
    return private.no_order('stale_funds', p_size.raw_lots, p_size.warnings, p_size.explain
      || 'Whether its stop would cross a limit of the account cannot be checked: the equity is not known or too old, '
        'or a rate is missing.'::text);
  end if;
  if v_fit < v_lots then
    p_size.orders := private.orders_up_to(p_size.orders, v_fit);
    p_size.warnings := p_size.warnings || 'breach_shrunk'::text;
    p_size.explain := p_size.explain || format('Shrunk to %s lots: with more, its stop could cross a limit of the '
      'account.', private.plain(v_fit));
  end if;
  return p_size;
end $$;
