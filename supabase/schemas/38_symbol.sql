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

-- the planner: candidates of a follower for the master's symbol; exchange rates by pair
create index account_symbols_by_root on public.account_symbols (account_id, private.symbol_root(name));

-- The follower's symbol for the master's: the user's mapping, else the same name, else the only one of the same root with the same
-- contract size and profit currency. Null: none or several, nothing may be traded.
create function private.resolve_symbol(p_copier uuid, p_follower uuid, p_master public.account_symbols) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_name text;
  v_symbol public.account_symbols;
  v_found integer;
begin
  select follower_symbol into v_name from public.symbol_mappings where copier_id = p_copier and master_symbol = p_master.name;
  select * into v_symbol from public.account_symbols where account_id = p_follower and name = coalesce(v_name, p_master.name);
  if v_name is null and v_symbol.name is null then
    select count(*) into v_found from public.account_symbols
    where account_id = p_follower and private.symbol_root(name) = private.symbol_root(p_master.name)
      and contract_size = p_master.contract_size and profit_currency = p_master.profit_currency;
    if v_found = 1 then
      select * into v_symbol from public.account_symbols
      where account_id = p_follower and private.symbol_root(name) = private.symbol_root(p_master.name)
        and contract_size = p_master.contract_size and profit_currency = p_master.profit_currency;
    end if;
  end if;
  if v_symbol.contract_size is null or v_symbol.lots_step is null or v_symbol.lots_min is null or v_symbol.lots_max is null then
    return null;
  end if;
  return v_symbol;
end $$;

-- Mid prices of every pair of the currencies that the accounts themselves quote, as {"EURUSD": "1.0850"}.
create function private.quoted_rates(p_accounts uuid[], p_currencies text[]) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_object_agg(pair, ((bid + ask) / 2)::text), '{}'::jsonb)
    from (
      select distinct on (pair) private.symbol_root(s.name) as pair, s.bid, s.ask
      from (select distinct left(c, 3) as currency from unnest(p_currencies || array['USD', 'EUR']) c) a
      join (select distinct left(c, 3) as currency from unnest(p_currencies || array['USD', 'EUR']) c) b on a.currency <> b.currency
      join public.account_symbols s on s.account_id = any (p_accounts) and private.symbol_root(s.name) = a.currency || b.currency
      where s.bid > 0 and s.ask > 0
      order by pair, s.quoted_at desc nulls last
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
