-- Sizing: how large a copy is. One pure function, used by the planner and, through preview_copy, by users. All volumes
-- are exact: quotients are computed with div() on numerator and denominator, never from a rounded ratio.

create type private.funds as (currency text, balance numeric, equity numeric, free_margin numeric);
comment on type private.funds is 'Money of an account in its own currency; null = unknown or too old to use.';

create type private.sizing as (orders numeric[], raw_lots numeric, reason text, warnings text[], explain text[]);
comment on type private.sizing is 'orders: lots of each order, empty with a reason if there is nothing to place.';

-- Why an amount of money cannot be used: it is unknown, or a rate is missing.
create function private.unknown_money_words(p_whose text, p_amount numeric, p_from text, p_to text) returns text
language plpgsql stable set search_path = '' as $$
begin
  if p_amount > 0 then return private.missing_rate_words(p_from, p_to); end if;
  return format('The %s is not known, too old, or not above 0.%s', p_whose, case when p_whose like '%free margin' then
    ' Trades that are on their way take their margin, and without a leverage of the account, or a rate of the symbol, '
    'it cannot be estimated.' else '' end);
end $$;

create function private.no_order(p_reason text, p_raw numeric, p_warnings text[],
  p_explain text[]) returns private.sizing
language plpgsql immutable set search_path = '' as $$
begin
  return row('{}'::numeric[], p_raw, p_reason, p_warnings,
    p_explain || 'Nothing is placed.'::text)::private.sizing;
end $$;

-- What a limit needs to value a trade at: the price without its sign. Null near 0, where prices may be negative:
-- there a value says nothing about what can be lost.
create function private.value_price(p_price numeric, p_symbol public.account_symbols) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if private.may_be_negative(p_symbol)
    and abs(p_price) < 100 * coalesce(p_symbol.tick_size, 10::numeric ^ -p_symbol.digits) then
    return null;
  end if;
  return abs(p_price);
end $$;

-- The orders of a volume that is more than one order may be; what is too little for another is left out.
create function private.split_orders(p_lots numeric, s public.account_symbols) returns numeric[]
language plpgsql immutable set search_path = '' as $$
declare
  v_cap numeric := div(s.lots_max, s.lots_step) * s.lots_step;
  v_orders numeric[] := '{}';
  v_order numeric;
begin
  while p_lots > v_cap loop
    -- the rest must be at least one smallest order
    v_order := least(v_cap, div(p_lots - s.lots_min, s.lots_step) * s.lots_step);
    exit when v_order < s.lots_min;
    v_orders := v_orders || v_order;
    p_lots := p_lots - v_order;
  end loop;
  return v_orders || least(p_lots, v_cap);
end $$;

-- Size of one copy. p_side, p_price, p_sl and p_tp are the master's; p_lots is its volume or, for an increase,
-- the increase. p_rates: exchange rates for exchange_rate(). The rules must apply in this order, therefore it is longer
-- than forty lines.
create function private.size_order(
  p_copier public.copiers, p_master private.funds, p_follower private.funds,
  p_master_symbol public.account_symbols, p_follower_symbol public.account_symbols,
  p_side text, p_lots numeric, p_price numeric, p_sl numeric, p_tp numeric, p_rates jsonb
) returns private.sizing
language plpgsql stable set search_path = '' as $$
declare
  s public.account_symbols := p_follower_symbol;
  v_num numeric;           -- raw lots = v_num / v_den
  v_den numeric := 1;
  v_raw numeric;
  v_rate numeric[];        -- follower's account currency for one unit of the symbol's profit currency, as a fraction
  v_master_funds numeric;
  v_follower_funds numeric;
  v_funds_rate numeric[];
  v_stop numeric;  -- price of the follower's stop, at the master's price level; null: none that limits the loss
  v_no_stop text := 'It has no stop.';
  -- money lost per lot if the stop is hit, times v_rate[2]: quotients are computed only at the end
  v_risk numeric;
  v_limit numeric;
  v_value numeric;  -- the price that limits value the trade at
  v_exposure numeric;  -- value of one lot in the follower's currency, times v_rate[2]
  v_master_rate numeric[];
  v_master_exposure numeric;
  v_lots numeric;
  v_cap numeric;
  v_warnings text[] := '{}';
  v_explain text[];
  v_orders numeric[];
  v_order numeric;  -- lots of all of them
  v_par text;
begin
  v_explain := array[format('The master trades %s lots of %s.', private.plain(p_lots), p_master_symbol.name)];
  v_stop := private.stop_of_copy(p_copier, p_side, p_price, case when p_copier.reverse then p_tp else p_sl end, s);
  if p_copier.reverse then v_no_stop := 'It has no take profit, which would be the follower''s stop.'; end if;
  if v_stop <= 0 and not private.may_be_negative(s) or v_stop = p_price
    or (v_stop < p_price) = ((p_side = 'sell') <> p_copier.reverse) then
    v_no_stop := format('The follower''s stop %s is not on the losing side of the price %s.', private.plain(v_stop),
      private.plain(p_price));
    v_stop := null;
  end if;
  v_rate := private.profit_fraction(s, p_follower.currency, p_rates);
  v_risk := abs(p_price - v_stop) * s.contract_size * v_rate[1];

  -- the raw size
  case p_copier.sizing_mode
    when 'multiplier' then
      v_num := p_lots * p_copier.sizing_value;
      v_explain := v_explain || format('Times the multiplier %s: %s lots.', private.plain(p_copier.sizing_value),
        private.plain(v_num));
    when 'percentage' then
      v_num := p_lots * p_copier.sizing_value;
      v_den := 100;
      v_explain := v_explain || format('%s %% of that: %s lots.', private.plain(p_copier.sizing_value),
        private.plain(v_num / 100));
    when 'fixed' then
      v_num := p_copier.sizing_value;
      v_explain := v_explain || format('A fixed size of %s lots is set.', private.plain(v_num));
    when 'risk_percent' then
      if v_stop is null then
        v_explain := v_explain || v_no_stop;
        return private.no_order('no_stop_loss', null, v_warnings, v_explain);
      end if;
      if p_follower.balance is null or p_follower.balance <= 0 or v_risk is null then
        v_explain := v_explain ||
          private.unknown_money_words('follower''s balance', p_follower.balance, s.profit_currency,
            p_follower.currency);
        return private.no_order('stale_funds', null, v_warnings, v_explain);
      end if;
      v_num := p_follower.balance * p_copier.sizing_value * v_rate[2];
      v_den := 100 * v_risk;
      v_explain := v_explain ||
        format('%s %% of the balance %s %s may be lost: %s. From %s to the stop %s one lot loses %s: %s lots.',
        private.plain(p_copier.sizing_value), private.plain(p_follower.balance), p_follower.currency,
          private.plain(round(v_num / (100 * v_rate[2]), 2)),
        private.plain(p_price), private.plain(v_stop), private.plain(round(v_risk / v_rate[2], 2)),
          private.plain(round(v_num / v_den, 6)));
    else
      v_master_funds := case p_copier.sizing_mode when 'balance_ratio' then p_master.balance
        when 'equity_ratio' then p_master.equity else p_master.free_margin end;
      v_follower_funds := case p_copier.sizing_mode when 'balance_ratio' then p_follower.balance
        when 'equity_ratio' then p_follower.equity else p_follower.free_margin end;
      v_funds_rate := private.exchange_fraction(p_master.currency, p_follower.currency, p_rates);
      if v_master_funds is null or v_master_funds <= 0 or v_follower_funds is null or v_follower_funds <= 0
        or v_funds_rate is null then
        v_explain := v_explain ||
          private.unknown_money_words(
            case when v_master_funds > 0 then 'follower''s ' else 'master''s ' end
              || replace(replace(p_copier.sizing_mode, '_ratio', ''), '_', ' '),
            case when v_master_funds > 0 then v_follower_funds else v_master_funds end,
            p_master.currency, p_follower.currency);
        return private.no_order('stale_funds', null, v_warnings, v_explain);
      end if;
      v_num := p_lots * p_copier.sizing_value * v_follower_funds * v_funds_rate[2];
      v_den := v_master_funds * v_funds_rate[1];
      v_explain := v_explain || format('The follower''s %s is %s %s, the master''s %s %s%s: a ratio of %s%s. %s lots.',
        replace(replace(p_copier.sizing_mode, '_ratio', ''), '_', ' '), private.plain(v_follower_funds),
          p_follower.currency,
        private.plain(v_master_funds), p_master.currency,
        case when v_funds_rate[1] <> v_funds_rate[2]
          then format(' (%s %s)', private.plain(round(v_den / v_funds_rate[2], 2)), p_follower.currency) else '' end,
        private.plain(round(v_follower_funds * v_funds_rate[2] / v_den, 6)),
        case when p_copier.sizing_value <> 1 then format(', times %s', private.plain(p_copier.sizing_value))
          else '' end,
        private.plain(round(v_num / v_den, 6)));
  end case;

  -- contract sizes
  if p_master_symbol.contract_size <> s.contract_size and p_copier.sizing_mode not in ('fixed', 'risk_percent') then
    if p_copier.contract_alignment then
      v_num := v_num * p_master_symbol.contract_size;
      v_den := v_den * s.contract_size;
      v_explain := v_explain || format('One lot is %s units at the master and %s at the follower: %s lots.',
        private.plain(p_master_symbol.contract_size),
        private.plain(s.contract_size), private.plain(round(v_num / v_den, 6)));
    else
      v_warnings := v_warnings || 'contract_sizes_differ'::text;
      v_explain := v_explain || format('Contract sizes differ %s:%s and are not aligned.',
        private.plain(p_master_symbol.contract_size),
        private.plain(s.contract_size));
    end if;
  end if;
  v_raw := v_num / v_den;

  -- caps on risk and leverage
  if p_copier.max_risk_percent is not null and v_stop is null then
    v_warnings := v_warnings || 'risk_unknown'::text;
    v_explain := v_explain || format('The limit of %s %% of risk cannot be applied: %s',
      private.plain(p_copier.max_risk_percent),
      case when v_no_stop = 'It has no stop.' then 'the trade has no stop.' else v_no_stop end);
  elsif p_copier.max_risk_percent is not null and (v_risk > 0 and p_follower.balance > 0) is not true then
    v_explain := v_explain ||
      private.unknown_money_words('follower''s balance', p_follower.balance, s.profit_currency, p_follower.currency)
      || 'The limit on risk cannot be checked.'::text;
    return private.no_order('stale_funds', v_raw, v_warnings, v_explain);
  elsif p_copier.max_risk_percent is not null then
    v_limit := p_follower.balance * p_copier.max_risk_percent / 100;
    if v_num * v_risk > v_limit * v_den * v_rate[2] then
      v_num := v_limit * v_rate[2]; v_den := v_risk; v_raw := v_num / v_den;
      v_warnings := v_warnings || 'risk_capped'::text;
      v_explain := v_explain || format('Cut to %s lots: more would risk over %s %% of the balance, which is %s %s.',
        private.plain(round(v_raw, 6)),
        private.plain(p_copier.max_risk_percent), private.plain(round(v_limit, 2)), p_follower.currency);
    end if;
  end if;
  v_value := private.value_price(coalesce(case when (p_side = 'buy') <> p_copier.reverse then s.ask else s.bid end,
    p_price), s);
  v_exposure := s.contract_size * v_rate[1] * v_value;
  if v_value is null and (p_copier.max_leverage is not null or p_copier.sanity_factor is not null) then
    v_explain := v_explain || format('The price of %s is too near 0 to say what the trade is worth, so the limit on %s '
      'cannot be checked.', s.name, case when p_copier.max_leverage is null then 'exposure' else 'leverage' end);
    return private.no_order(case when p_copier.max_leverage is null then 'sanity' else 'max_leverage' end, v_raw,
      v_warnings, v_explain);
  end if;
  if p_copier.max_leverage is not null then
    if v_exposure is null or p_follower.equity is null or p_follower.equity <= 0 then
      v_explain := v_explain ||
        private.unknown_money_words('follower''s equity', p_follower.equity, s.profit_currency, p_follower.currency)
        || 'The limit on leverage cannot be checked.'::text;
      return private.no_order('stale_funds', v_raw, v_warnings, v_explain);
    end if;
    if v_num * v_exposure > p_copier.max_leverage * p_follower.equity * v_den * v_rate[2] then
      v_explain := v_explain || format('%s lots are worth %s %s: %s times the equity %s, and the limit is %s.',
        private.plain(round(v_raw, 6)),
        private.plain(round(v_raw * v_exposure / v_rate[2], 2)), p_follower.currency,
        private.plain(round(v_raw * v_exposure / (p_follower.equity * v_rate[2]), 2)),
        private.plain(p_follower.equity), private.plain(p_copier.max_leverage));
      if p_copier.max_leverage_policy = 'discard' then
        return private.no_order('max_leverage', v_raw, v_warnings, v_explain);
      end if;
      v_num := p_copier.max_leverage * p_follower.equity * v_rate[2]; v_den := v_exposure; v_raw := v_num / v_den;
      v_warnings := v_warnings || 'leverage_shrunk'::text;
      v_explain := v_explain || format('Shrunk to %s lots.', private.plain(round(v_raw, 6)));
    end if;
  end if;

  -- a size that depends on the value of a stablecoin says so
  if p_copier.sizing_mode like '%ratio' and p_master.currency <> p_follower.currency
    or s.profit_currency <> p_follower.currency and (p_copier.sizing_mode = 'risk_percent'
      or p_copier.max_risk_percent is not null or p_copier.max_leverage is not null) then
    v_par := private.at_par_words(case when p_copier.sizing_mode like '%ratio' then p_master.currency
      else s.profit_currency end, p_follower.currency, p_rates);
    if v_par is not null then
      v_warnings := v_warnings || 'at_par'::text;
      v_explain := v_explain || v_par;
    end if;
  end if;

  -- floor to the step, minimum, maximum
  v_lots := div(v_num, v_den * s.lots_step) * s.lots_step;
  v_explain := v_explain || format('Rounded down to steps of %s: %s lots.', private.plain(s.lots_step),
    private.plain(v_lots));
  if v_lots < s.lots_min then
    v_explain := v_explain || format('The smallest volume of %s is %s lots.', s.name, private.plain(s.lots_min));
    if p_copier.min_policy = 'skip' then
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    if s.lots_min * v_den > p_copier.max_risk_coefficient * v_num then
      v_explain := v_explain || format('That would be %s times the wanted size, and the limit is %s times.',
        coalesce(private.plain(round(s.lots_min * v_den / nullif(v_num, 0), 1)), 'infinitely many'),
          private.plain(p_copier.max_risk_coefficient));
      return private.no_order('risk_coefficient', v_raw, v_warnings, v_explain);
    end if;
    -- the limits on risk and leverage take precedence over the smallest volume
    if s.lots_min * v_exposure > p_copier.max_leverage * p_follower.equity * v_rate[2] then
      v_explain := v_explain || format('It would be more than %s times the equity.',
        private.plain(p_copier.max_leverage));
      return private.no_order('max_leverage', v_raw, v_warnings, v_explain);
    end if;
    if p_copier.max_risk_percent is not null
      and s.lots_min * v_risk * 100 > p_follower.balance * p_copier.max_risk_percent * v_rate[2] then
      v_explain := v_explain || format('It would risk more than %s %% of the balance.',
        private.plain(p_copier.max_risk_percent));
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    v_lots := s.lots_min;
    v_warnings := v_warnings || 'forced_min'::text;
    v_explain := v_explain || format('Raised to it: that is %s times the wanted size.',
      private.plain(round(s.lots_min * v_den / v_num, 1)));
  end if;
  if p_copier.max_lots < v_lots then
    v_lots := div(p_copier.max_lots, s.lots_step) * s.lots_step;
    if v_lots < s.lots_min then
      v_explain := v_explain || format('The copier''s maximum of %s lots is below the smallest volume %s.',
        private.plain(p_copier.max_lots), private.plain(s.lots_min));
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    v_warnings := v_warnings || 'capped'::text;
    v_explain := v_explain || format('Cut to the copier''s maximum: %s lots.', private.plain(v_lots));
  end if;
  v_cap := div(s.lots_max, s.lots_step) * s.lots_step;
  if v_lots > v_cap and v_cap < s.lots_min then
    v_explain := v_explain || format('No step of %s lies between the smallest volume %s and the largest %s.',
      private.plain(s.lots_step),
      private.plain(s.lots_min), private.plain(s.lots_max));
    return private.no_order('below_min', v_raw, v_warnings, v_explain);
  end if;
  if v_lots > v_cap and p_copier.max_policy = 'cap' then
    v_lots := v_cap;
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut to the largest volume of one order: %s lots.', private.plain(v_lots));
  end if;

  -- exposure compared with the master's own
  v_master_rate := private.profit_fraction(p_master_symbol, p_master.currency, p_rates);
  v_master_exposure := p_lots * p_master_symbol.contract_size * v_master_rate[1]
    * private.value_price(coalesce(case p_side when 'buy' then p_master_symbol.ask else p_master_symbol.bid end,
      p_price), p_master_symbol);
  if p_copier.sanity_factor is not null and (p_master.equity > 0 and p_follower.equity > 0 and v_exposure > 0
    and v_master_exposure > 0) is not true then
    v_warnings := v_warnings || 'sanity_unchecked'::text;
    v_explain := array_remove(v_explain ||
      'The exposure could not be compared with the master''s own: an equity or exchange rate is not known.'::text
      || case when v_rate is null then private.missing_rate_words(s.profit_currency, p_follower.currency)
        when v_master_rate is null then private.missing_rate_words(p_master_symbol.profit_currency,
          p_master.currency) end, null);
  elsif v_lots * v_exposure * v_master_rate[2] * p_master.equity > p_copier.sanity_factor * v_master_exposure *
    v_rate[2] * p_follower.equity then
    v_explain := v_explain ||
      format('The trade would be worth %s %% of the equity, the master''s own %s %%: more than %s times as much.',
      private.plain(round(100 * v_lots * v_exposure / (p_follower.equity * v_rate[2]), 1)),
      private.plain(round(100 * v_master_exposure / (p_master.equity * v_master_rate[2]), 1)),
      private.plain(p_copier.sanity_factor));
    return private.no_order('sanity', v_raw, v_warnings, v_explain);
  end if;

  -- one order, or several
  if v_lots > 100 * v_cap then
    v_lots := 100 * v_cap;
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut to %s lots: a copy is split into 100 orders of %s at most.',
      private.plain(v_lots), private.plain(v_cap));
  end if;
  v_orders := case when v_lots > v_cap then private.split_orders(v_lots, s) else array[v_lots] end;
  v_order := case when v_lots > v_cap then (select sum(o) from unnest(v_orders) o) else v_lots end;
  if v_lots > v_order then
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut by %s lots, which are too few for another order.',
      private.plain(v_lots - v_order));
  end if;
  if cardinality(v_orders) > 1 then
    v_warnings := v_warnings || 'split'::text;
    v_explain := v_explain || format('Split into %s orders, for one may not exceed %s.', cardinality(v_orders),
      private.plain(v_cap));
  end if;
  return row(v_orders, v_raw, null, v_warnings, v_explain)::private.sizing;
end $$;
