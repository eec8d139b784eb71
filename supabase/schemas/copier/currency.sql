-- Exchange rates between currencies, from the accounts' own quotes, and the value of a symbol's point. A pair is known
-- by its symbol's name: brokers name base and margin currencies wrongly (AUD for every pair).

create function private.plain(p numeric) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(p)::text;
end $$;

-- A quoted rate as a fraction {numerator, denominator}: {rate, 1}, or {1, rate} from the inverse pair; null: not
-- quoted.
create function private.quoted_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
begin
  return case when (p_rates ->> (p_from || p_to))::numeric > 0 then array[(p_rates ->> (p_from || p_to))::numeric, 1]
    when (p_rates ->> (p_to || p_from))::numeric > 0 then array[1, (p_rates ->> (p_to || p_from))::numeric] end;
end $$;

-- The money that a currency counts as (copier/currency_unit.sql): a cent is 0.01 USD, USDT is a dollar. One unit is
-- num / den of `whole`; a quote of the two, if there is one, is better than the table. assumed: the value is taken
-- without a quote, though it may move.
create function private.in_whole_money(p_currency text, p_rates jsonb, out whole text, out num numeric, out den numeric,
  out assumed boolean)
language plpgsql stable security definer set search_path = '' as $$
declare
  u record;
  v_quoted numeric[];
begin
  whole := upper(btrim(p_currency));
  num := 1;
  den := 1;
  assumed := false;
  select * into u from public.currency_units x where x.currency = whole;
  if not found then return; end if;
  v_quoted := private.quoted_fraction(whole, u.counts_as, p_rates);
  whole := u.counts_as;
  num := coalesce(v_quoted[1], u.amount);
  den := coalesce(v_quoted[2], 1);
  assumed := u.assumed and v_quoted is null;
end $$;

-- The rate between two currencies that are quoted, as a fraction: direct, inverse, or across USD or EUR.
create function private.cross_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
declare
  v_rate numeric[];
  v_second numeric[];
  v_via text;
begin
  if p_from = p_to then return array[1, 1]; end if;
  v_rate := private.quoted_fraction(p_from, p_to, p_rates);
  if v_rate is not null then return v_rate; end if;
  foreach v_via in array array['USD', 'EUR'] loop
    v_rate := private.quoted_fraction(p_from, v_via, p_rates);
    v_second := private.quoted_fraction(v_via, p_to, p_rates);
    if v_rate is not null and v_second is not null then
      return array[v_rate[1] * v_second[1], v_rate[2] * v_second[2]];
    end if;
  end loop;
  return null;
end $$;

-- Units of p_to for one unit of p_from, by rates such as {"EURUSD": "1.0850"}: direct, inverse, or across USD or EUR.
-- The result is a fraction {numerator, denominator}, because an inverse rate has no exact decimal value. Cents and
-- stablecoins count as the money that currency_units names. Null: the rates do not tell.
create function private.exchange_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql stable set search_path = '' as $$
declare
  v_rate numeric[];
  f record;
  t record;
begin
  if p_from = p_to then return array[1, 1]; end if;  -- the usual case: no table is read
  v_rate := private.quoted_fraction(upper(btrim(p_from)), upper(btrim(p_to)), p_rates);
  if v_rate is not null then return v_rate; end if;
  f := private.in_whole_money(p_from, p_rates);
  t := private.in_whole_money(p_to, p_rates);
  v_rate := private.cross_fraction(f.whole, t.whole, p_rates);
  return case when v_rate is not null then array[v_rate[1] * f.num * t.den, v_rate[2] * f.den * t.num] end;
end $$;

create function private.exchange_rate(p_from text, p_to text, p_rates jsonb) returns numeric
language plpgsql stable set search_path = '' as $$
declare
  v_fraction numeric[] := private.exchange_fraction(p_from, p_to, p_rates);
begin
  return v_fraction[1] / v_fraction[2];
end $$;

-- Why p_from cannot be converted into p_to: which pair would have to be quoted.
create function private.missing_rate_words(p_from text, p_to text) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_from text := (private.in_whole_money(p_from, '{}')).whole;
  v_to text := (private.in_whole_money(p_to, '{}')).whole;
begin
  if v_from is null or v_to is null then
    return 'The currency of an account or of a symbol''s profit is not known.';
  end if;
  return format('There is no recent quote of %s or %s%s: %s cannot be converted into %s. Let the broker of one of the '
    'two accounts show that pair.',
    v_from || v_to, v_to || v_from,
    case when not array[v_from, v_to] && array['USD', 'EUR'] then
      format(', and none of both %s and %s with USD or EUR', v_from, v_to) else '' end, p_from, p_to);
end $$;

-- "USDT counts as 1 USD: …", if that conversion takes the value of a currency without a quote; null: it does not.
create function private.at_par_words(p_from text, p_to text, p_rates jsonb) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_from = p_to or private.quoted_fraction(upper(btrim(p_from)), upper(btrim(p_to)), p_rates) is not null then
    return null;
  end if;
  return (
    select string_agg(format('%s counts as %s %s, because no broker of the two quotes it.', u.currency,
      private.plain(u.amount), u.counts_as), ' ' order by u.currency)
    from public.currency_units u
    where u.currency in (upper(btrim(p_from)), upper(btrim(p_to))) and (private.in_whole_money(u.currency,
      p_rates)).assumed);
end $$;

-- The pair that a symbol's name quotes, whatever its broker calls the two currencies: EURUSD for "m.EURUSD.x" and
-- "EUR/USD"; else the name's root (USDCNY, USDTUSD).
create function private.quoted_pair(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(private.pair_in(regexp_replace(p_name, '[^A-Za-z0-9]', '', 'g')), private.symbol_root(p_name));
end $$;

-- exchange rates by pair
create index account_symbols_by_pair on public.account_symbols (private.quoted_pair(name), account_id);

-- The currency that the name of a pair says its profit is in: JPY for "USD/JPY.x"; null: it names no pair.
create function private.quoted_currency(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return right(private.pair_in(private.quoted_pair(p_name)), 3);
end $$;

-- p_to for one unit of a symbol's profit, as a fraction. What the broker says counts; if that cannot be converted, what
-- the pair's name says.
create function private.profit_fraction(p_symbol public.account_symbols, p_to text, p_rates jsonb) returns numeric[]
language plpgsql stable set search_path = '' as $$
declare
  v_rate numeric[] := private.exchange_fraction(p_symbol.profit_currency, p_to, p_rates);
begin
  if v_rate is null then
    v_rate := private.exchange_fraction(private.quoted_currency(p_symbol.name), p_to, p_rates);
  end if;
  return v_rate;
end $$;

-- Current mid prices of every pair of these currencies that the accounts quote, as {"EURUSD": "1.0850"}. Agents report
-- these pairs about every twenty seconds, even if the price has not moved.
create function private.quoted_rates(p_accounts uuid[], p_currencies text[]) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  return (
    with named as (
      select upper(btrim(c)) as name from unnest(p_currencies || array['USD', 'EUR']) c where c is not null
    ), currencies as materialized (
      select n.name from named n
      union
      select u.counts_as from public.currency_units u where u.currency in (select n.name from named n)
    )
    select coalesce(jsonb_object_agg(a.name || b.name, ((s.bid + s.ask) / 2)::text), '{}'::jsonb)
    from currencies a
    join currencies b on b.name <> a.name
    -- looked up pair by pair: without statistics Postgres would read all symbols of the accounts instead
    cross join lateral (
      select x.bid, x.ask from public.account_symbols x
      where private.quoted_pair(x.name) = a.name || b.name and x.account_id = any (p_accounts) and x.bid > 0
        and x.ask > 0
        and x.quoted_at > v_since
      -- the plain name before a future of the same pair
      order by length(x.name), x.quoted_at desc limit 1
    ) s);
end $$;

-- The size of a symbol's point in price units, the present value of one point of one lot in the account's currency, and
-- the present spread in price units. Null: not known. No exchange rate is needed in the usual case, where the symbol's
-- profit is in the account's currency. If p_filled is null or 0, nothing was filled and all results are null.
create function private.point_worth(p_account uuid, p_currency text, p_symbol text, p_filled numeric, out size numeric,
  out money numeric, out spread numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
  v_rate numeric[];
begin
  if coalesce(p_filled, 0) = 0 then return; end if;
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_symbol;
  size := 10::numeric ^ (-s.digits);
  spread := case when s.ask >= s.bid then s.ask - s.bid end;
  money := size * s.contract_size;
  if s.profit_currency <> p_currency then
    v_rate := private.profit_fraction(s, p_currency, private.quoted_rates(array[p_account],
      array[s.profit_currency, private.quoted_currency(p_symbol), p_currency]));
    money := money * v_rate[1] / v_rate[2];
  end if;
end $$;
