-- Symbols: which symbol of a follower is the master's, and what currencies are worth by the accounts' own quotes.

-- What is left of a symbol's name without the broker's prefix and suffix, in upper case: EURUSD of "eurusd.m", "EURUSDpro", "#EURUSD".
create function private.symbol_root(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return (
    select case
      when bare ~ '^(AUD|CAD|CHF|CNH|CZK|DKK|EUR|GBP|HKD|HUF|ILS|JPY|MXN|NOK|NZD|PLN|RUB|SEK|SGD|THB|TRY|USD|ZAR|XAU|XAG|XPT|XPD|BTC|ETH|LTC){2}'
        then left(bare, 6)
      else regexp_replace(bare, '[^A-Z0-9].*$', '') end
    from (select upper(regexp_replace(p_name, '^[^A-Za-z0-9]+', ''))) as s (bare));
end $$;

-- the planner: candidates of a follower for the master's symbol; exchange rates by pair. The root comes first, so that a look-up by
-- account and name has only the primary key to choose.
create index account_symbols_by_root on public.account_symbols (private.symbol_root(name), account_id);

-- The follower's symbol where it has none of the master's name: the only one of the same root with the same contract size and profit
-- currency. Null: none or several, nothing may be traded.
create function private.symbol_by_root(p_follower uuid, p_master public.account_symbols) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_found integer;
  v_name text;
  v_symbol public.account_symbols;
begin
  select count(*), min(s.name) into v_found, v_name from public.account_symbols s
  where s.account_id = p_follower and private.symbol_root(s.name) = private.symbol_root(p_master.name)
    and s.contract_size = p_master.contract_size and s.profit_currency = p_master.profit_currency;
  if v_found = 1 then
    select * into v_symbol from public.account_symbols s where s.account_id = p_follower and s.name = v_name;
  end if;
  return v_symbol;
end $$;

-- Mid prices of every pair of the currencies that the accounts themselves quote, as {"EURUSD": "1.0850"}.
create function private.quoted_rates(p_accounts uuid[], p_currencies text[]) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_currencies text[] := array(select distinct left(c, 3) from unnest(p_currencies || array['USD', 'EUR']) c);
  v_pairs text[] := array(select a || b from unnest(v_currencies) a cross join unnest(v_currencies) b where a <> b);
begin
  return (
    select coalesce(jsonb_object_agg(pair, ((bid + ask) / 2)::text), '{}'::jsonb)
    from (
      select distinct on (pair) pair, q.bid, q.ask
      from (
        select private.symbol_root(s.name) as pair, s.bid, s.ask, s.quoted_at from public.account_symbols s
        where s.account_id = any (p_accounts) and private.symbol_root(s.name) = any (v_pairs) and s.bid > 0 and s.ask > 0
      ) q
      order by pair, q.quoted_at desc nulls last
    ) quotes);
end $$;

-- A level or price moved onto the symbol's ticks: the nearest one, for a broker refuses what lies between.
create function private.on_tick(p_price numeric, p_tick numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if p_price is null or p_tick is null or p_tick <= 0 then
    return p_price;
  end if;
  return div(p_price + p_tick / 2, p_tick) * p_tick;
end $$;
