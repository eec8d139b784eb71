-- The free margin that a size may be computed from: figures are read every few seconds, so what was opened since then
-- is deducted. Closes give nothing back until the broker's own figures say so.

-- The margin for one lot, in the account's currency: contract x price / leverage. Null if a figure is unknown or old.
create function private.margin_per_lot(p_account public.trading_accounts, p_symbol public.account_symbols, p_side text,
  p_price numeric, p_now timestamptz)
returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_rate numeric[] := private.profit_fraction(p_symbol, p_account.currency, case
    when p_symbol.profit_currency = p_account.currency then '{}'::jsonb
    else private.quoted_rates(array[p_account.id], array[p_symbol.profit_currency,
      private.quoted_currency(p_symbol.name), p_account.currency]) end);
begin
  return p_symbol.contract_size
    * abs(coalesce(case when p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s')
      then case p_side when 'buy' then p_symbol.ask else p_symbol.bid end end, p_price))
    * v_rate[1] / (v_rate[2] * p_account.leverage);
end $$;

-- What the account opens or has opened since its figures were read: orders in flight, orders filled later than that,
-- and what a netting account is about to be given. p_before: only what may be sent before this execution.
create function private.opened_since(p_account public.trading_accounts, p_before bigint)
returns table (symbol text, side text, lots numeric, price numeric)
language sql stable security definer set search_path = '' as $$
  select q.symbol, q.side, private.opening_lots(q), q.master_price
  from public.trade_execution_queue q
  where q.account_id = p_account.id and q.in_flight and q.action in ('open', 'increase') and private.opens(q)
    and (p_before is null or q.id <> p_before and (q.status <> 'retrying' or q.id < p_before))
  union all
  select q.symbol, q.side, coalesce(q.filled_lots, q.lots), coalesce(q.fill_price, q.master_price)
  from public.trade_execution_queue q
  where q.account_id = p_account.id and q.status = 'completed' and q.action in ('open', 'increase')
    and q.finalized_at > p_account.funds_at - interval '10 s'
    and coalesce(q.done_at, q.finalized_at) > p_account.funds_at and private.opens(q)
  union all
  select l.symbol, l.side, l.wanted_lots, m.price
  from public.position_links l
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
    and m.kind = l.master_kind
  where l.follower_account_id = p_account.id and l.state = 'live' and l.wanted_lots > 0
    and p_account.mode = 'netting'
$$;
comment on function private.opened_since(public.trading_accounts, bigint) is
  'Volumes that an account''s last figures do not contain yet.';

-- The estimated margin of all that; 0: there is nothing, null: it cannot be estimated (no leverage, no rate).
create function private.margin_since(p_account public.trading_accounts, p_before bigint,
  p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select case when count(*) = count(m.margin) then coalesce(sum(m.margin), 0) end
    from (
      select o.lots * private.margin_per_lot(p_account, s, o.side, o.price, p_now) as margin
      from private.opened_since(p_account, p_before) o
      left join public.account_symbols s on s.account_id = p_account.id and s.name = o.symbol
    ) m);
end $$;

-- The same for a master: positions that are newer than its figures and came before the one that is being copied. What
-- cannot be estimated is left out.
create function private.masters_margin_since(p_master public.trading_accounts, p_copied public.positions,
  p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(sum(p.lots * private.margin_per_lot(p_master, s, p.side, p.price, p_now)), 0)
    from public.positions p
    join public.account_symbols s on s.account_id = p.account_id and s.name = p.symbol
    where p.account_id = p_master.id and p.closed_at is null and p.kind = 'position' and p.lots > 0
      and p.ticket <> p_copied.ticket and not p.existing and p.last_event_id < p_copied.last_event_id
      and least(p.detected_at, p.first_seen_at) > p_master.funds_at);
end $$;

-- An account's money for a copy that is sized by free margin: the figures, less what was opened since.
create function private.funds_left(p_copier public.copiers, p_account public.trading_accounts,
  p_copied public.positions, p_since timestamptz, p_now timestamptz) returns private.funds
language plpgsql stable security definer set search_path = '' as $$
declare
  f private.funds := private.fresh_funds(p_account, p_since);
begin
  if f.free_margin is null then return f; end if;
  f.free_margin := f.free_margin - case when p_account.id = p_copier.follower_account_id
    then private.margin_since(p_account, null, p_now)
    else private.masters_margin_since(p_account, p_copied, p_now) end;
  return f;
end $$;
