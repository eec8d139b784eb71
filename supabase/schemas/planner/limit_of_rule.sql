-- What a rule's limit is, from its own figures and the account's initial balance. Everything is computed by
-- multiplication, so that comparisons are exact.

create type private.look as (at timestamptz, equity numeric, balance numeric, margin numeric);
comment on type private.look is 'Figures of an account that protection rules are judged by.';

-- What the rule does. close_all of a daily rule would be undone by the next copy, so it stops until the next day.
create function private.rule_action(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when r.action = 'close_all' and r.kind in ('daily_loss', 'daily_profit') then 'close_all_until_next_day'
    else r.action end;
end $$;

-- What the threshold is: percent of day_start, high or initial, or an amount.
create function private.rule_of(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(r.of, case
    when r.kind in ('daily_loss', 'daily_profit') then 'day_start'
    when r.kind = 'trailing_drawdown' and r.moves_with = 'day_end_balance' then 'initial'
    when r.kind = 'trailing_drawdown' then 'high'
    else 'amount' end);
end $$;

-- The amount that a loss or profit is measured from; null: not known, or not above 0.
create function private.rule_base(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_base numeric := case
    when r.kind in ('daily_loss', 'daily_profit') then r.day_start_equity
    when r.kind = 'trailing_drawdown' then r.high_water_mark
    else p_initial end;
begin
  return case when v_base > 0 then v_base end;
end $$;

-- The threshold in money (max_margin_use: in percent).
create function private.rule_threshold(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case private.rule_of(r)
    when 'amount' then r.threshold
    when 'initial' then case when p_initial > 0 then p_initial * r.threshold * 0.01 end
    else private.rule_base(r, p_initial) * r.threshold * 0.01 end;
end $$;

-- The limit itself, without the cushion.
create function private.whole_limit(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_base numeric := private.rule_base(r, p_initial);
  v_threshold numeric := private.rule_threshold(r, p_initial);
begin
  return trim_scale(case r.kind
    when 'daily_loss' then v_base - v_threshold
    when 'daily_profit' then v_base + v_threshold
    when 'trailing_drawdown' then case when v_base > 0 then least(v_base - v_threshold, r.locks_at) end
    else v_threshold end);
end $$;

-- How much may be used before the limit is reached; null: the rule knows no allowance.
create function private.rule_allowance(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'equity_target' then null
    when 'equity_floor' then case when p_initial > private.whole_limit(r, p_initial)
      then p_initial - private.whole_limit(r, p_initial) end
    else private.rule_threshold(r, p_initial) end;
end $$;

-- The value at which this percentage of the allowance is used (100: the limit itself); null while it is not known.
create function private.limit_at(r public.protection_rules, p_initial numeric, p_percent numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_limit numeric := private.whole_limit(r, p_initial);
  v_rest numeric := private.rule_allowance(r, p_initial) * (100 - p_percent) * 0.01;
begin
  return trim_scale(case
    when p_percent = 100 then v_limit
    when r.kind in ('daily_profit', 'max_margin_use') then v_limit - v_rest
    else v_limit + v_rest end);
end $$;

-- The value that equity (max_margin_use: the percentage) is compared with; null while it is not known.
create function private.rule_limit(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(private.limit_at(r, p_initial, 100 - r.cushion_percent), private.whole_limit(r, p_initial));
end $$;

-- Whether these figures have reached a value of the rule; null if a needed figure is unknown.
create function private.value_reached(r public.protection_rules, p_value numeric, p_equity numeric, p_margin numeric)
returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'max_margin_use' then p_margin > 0 and p_margin * 100 >= p_equity * p_value
    when 'daily_profit' then p_equity >= p_value
    when 'equity_target' then p_equity >= p_value
    else p_equity <= p_value end;
end $$;

-- Whether these figures have reached the rule's limit; null if a needed figure is unknown.
create function private.limit_reached(r public.protection_rules, p_initial numeric, p_equity numeric, p_margin numeric)
returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return private.value_reached(r, private.rule_limit(r, p_initial), p_equity, p_margin);
end $$;

-- The rule's day at this time: the date on which it began in the rule's zone. When the clocks go back, a day that
-- has begun does not end again: callers only go forward.
create function private.rule_day(r public.protection_rules, p_at timestamptz) returns date
language plpgsql stable set search_path = '' as $$
begin
  return ((p_at at time zone r.time_zone) - r.day_begins::interval)::date;
end $$;

-- When the rule's day that holds p_at ends: the first minute of a later day, also where the clocks change at it.
create function private.rule_day_ends(r public.protection_rules, p_at timestamptz) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
  v_day date := greatest(private.rule_day(r, p_at), r.day);
  v_about timestamptz := ((v_day + 1) + r.day_begins) at time zone r.time_zone;
begin
  return (select min(m) from generate_series(v_about - interval '3 hours', v_about + interval '3 hours',
    interval '1 minute') m where m > p_at and private.rule_day(r, m) > v_day);
end $$;

-- The initial balance of an account, or the first balance that is known.
create function private.initial_balance(p_account uuid, p_balance numeric) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select coalesce(a.initial_balance, case when p_balance > 0 then p_balance end)
    from public.trading_accounts a where a.id = p_account);
end $$;

-- The same for a rule: one that counts balance operations as profits and losses keeps the balance without them.
create function private.initial_for(r public.protection_rules, p_balance numeric) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return private.initial_balance(r.account_id, p_balance) - case when r.count_balance_operations
    then (select a.initial_moved from public.trading_accounts a where a.id = r.account_id) else 0 end;
end $$;
