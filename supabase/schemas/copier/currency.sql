-- Exchange rates between currencies, from the accounts' own quotes, and the value of a symbol's point.

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

-- Units of p_to for one unit of p_from, by rates such as {"EURUSD": "1.0850"}: direct, inverse, or across USD or EUR.
-- The result is a fraction {numerator, denominator}, because an inverse rate has no exact decimal value. Cent
-- currencies count as a hundredth (USC = USD / 100). Null: the rates do not tell.
create function private.exchange_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
declare
  v_from text := p_from;
  v_to text := p_to;
  v_num numeric := 1;
  v_den numeric := 1;
  v_rate numeric[];
  v_second numeric[];
  v_via text;
begin
  if v_from = v_to then return array[1, 1]; end if;
  if v_from in ('USC', 'EUC', 'GBC') then
    v_from := case v_from when 'USC' then 'USD' when 'EUC' then 'EUR' else 'GBP' end;
    v_den := 100;
  end if;
  if v_to in ('USC', 'EUC', 'GBC') then
    v_to := case v_to when 'USC' then 'USD' when 'EUC' then 'EUR' else 'GBP' end;
    v_num := 100;
  end if;
  if v_from = v_to then return array[v_num, v_den]; end if;
  v_rate := private.quoted_fraction(v_from, v_to, p_rates);
  if v_rate is not null then return array[v_rate[1] * v_num, v_rate[2] * v_den]; end if;
  foreach v_via in array array['USD', 'EUR'] loop
    v_rate := private.quoted_fraction(v_from, v_via, p_rates);
    v_second := private.quoted_fraction(v_via, v_to, p_rates);
    if v_rate is not null and v_second is not null then
      return array[v_rate[1] * v_second[1] * v_num, v_rate[2] * v_second[2] * v_den];
    end if;
  end loop;
  return null;
end $$;

create function private.exchange_rate(p_from text, p_to text, p_rates jsonb) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_fraction numeric[] := private.exchange_fraction(p_from, p_to, p_rates);
begin
  return v_fraction[1] / v_fraction[2];
end $$;

-- Current mid prices of every pair of these currencies that the accounts quote, as {"EURUSD": "1.0850"}. Agents report
-- these pairs about every twenty seconds, even if the price has not moved.
create function private.quoted_rates(p_accounts uuid[], p_currencies text[]) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  return (
    with currencies as materialized (
      select distinct case when c = 'GBC' then 'GBP' else left(c, 3) end as name
      from unnest(p_currencies || array['USD', 'EUR']) c
    )
    select coalesce(jsonb_object_agg(a.name || b.name, ((s.bid + s.ask) / 2)::text), '{}'::jsonb)
    from currencies a
    join currencies b on b.name <> a.name
    -- looked up pair by pair: without statistics Postgres would read all symbols of the accounts instead
    cross join lateral (
      select x.bid, x.ask from public.account_symbols x
      where private.symbol_root(x.name) = a.name || b.name and x.account_id = any (p_accounts) and x.bid > 0
        and x.ask > 0
        and x.quoted_at > v_since
      order by x.quoted_at desc nulls last limit 1
    ) s);
end $$;

-- The size of a symbol's point in price units, and the present value of one point of one lot in the account's currency.
-- Null: not known. No exchange rate is needed in the usual case, where the symbol's profit is in the account's
-- currency. If p_filled is null or 0, nothing was filled and both results are null.
create function private.point_worth(p_account uuid, p_currency text, p_symbol text, p_filled numeric, out size numeric,
  out money numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
begin
  if coalesce(p_filled, 0) = 0 then return; end if;
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_symbol;
  size := 10::numeric ^ (-s.digits);
  money := size * s.contract_size * case when s.profit_currency = p_currency then 1
    else private.exchange_rate(s.profit_currency, p_currency,
      private.quoted_rates(array[p_account], array[s.profit_currency, p_currency])) end;
end $$;
