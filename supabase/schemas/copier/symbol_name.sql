-- Symbol names without a broker's prefixes and suffixes.

-- The pair of currencies or metals in a symbol's name, which means the same at every broker: EURUSD for "m.EURUSD.x";
-- null: there is none.
create function private.pair_in(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return substring(upper(p_name) from
    '(?:AUD|CAD|CHF|CNH|CZK|DKK|EUR|GBP|HKD|HUF|ILS|JPY|MXN|NOK|NZD|PLN|RUB|SEK|SGD|THB|TRY|USD|ZAR'
    '|XAU|XAG|XPT|XPD|BTC|ETH|LTC){2}');
end $$;

-- What a symbol is looked up by, in upper case: the pair that it begins with, also as EUR/USD, else everything up to
-- the first odd character: EURUSD for "eurusd.m", "EURUSDpro" and "#EURUSD", BRK for "BRK.B". Equal roots do not
-- make two symbols the same instrument: copier/instrument.sql decides that.
create function private.symbol_root(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_bare text := upper(regexp_replace(p_name, '^[^A-Za-z0-9]+', ''));
begin
  if private.pair_in(left(v_bare, 6)) is not null then return left(v_bare, 6); end if;
  if v_bare ~ '^[A-Z]{3}[^A-Z0-9][A-Z]{3}'
    and private.pair_in(left(v_bare, 3) || substr(v_bare, 5, 3)) is not null then
    return left(v_bare, 3) || substr(v_bare, 5, 3);
  end if;
  return regexp_replace(v_bare, '[^A-Z0-9].*$', '');
end $$;

-- the planner: a follower's candidates for the master's symbol, exchange rates by pair. The root is the first column,
-- so that a look-up by account and name uses the primary key.
create index account_symbols_by_root on public.account_symbols (private.symbol_root(name), account_id);
