-- Settings of protection rules: which are wrong, contradict each other, or may surprise.

-- What is wrong with how a rule measures; null: nothing.
create function private.bad_measure(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when r.of not in ('day_start', 'high', 'initial', 'amount')
      then 'of must be day_start, high, initial or amount'
    when r.basis is null or r.basis not in ('equity', 'balance', 'higher')
      then 'basis must be equity, balance or higher'
    when r.moves_with is null or r.moves_with not in ('equity', 'day_end_balance')
      then 'moves_with must be equity or day_end_balance'
    when not (r.locks_at > 0 and r.locks_at < 1e12) then 'locks_at must be above 0 and below 1e12, or null'
    when r.cushion_percent is null or not (r.cushion_percent >= 0 and r.cushion_percent < 100)
      then 'cushion_percent must be from 0 to below 100'
    when r.warn_percent is null or not (r.warn_percent >= 0 and r.warn_percent < 100)
      then 'warn_percent must be from 0 (no warning) to below 100'
    when r.would_breach not in ('refuse', 'shrink', 'ignore') then 'would_breach must be refuse, shrink or ignore'
    when r.day_begins is null then 'day_begins must be a time of day from 00:00 to 23:59' end;
end $$;

-- Raises TC306 for two settings of a rule that contradict each other; both are named.
create function private.refuse_bad_pair(r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_daily boolean := r.kind in ('daily_loss', 'daily_profit');
  v_trails boolean := r.kind = 'trailing_drawdown';
  v_pair text := case
    when r.of = 'day_start' and not v_daily or r.of = 'high' and not v_trails
      or r.of is not null and r.kind = 'max_margin_use' then format('of %s does not go with kind %s', r.of, r.kind)
    when r.basis <> 'equity' and not v_daily then format('basis %s does not go with kind %s', r.basis, r.kind)
    when r.moves_with <> 'equity' and not v_trails
      then format('moves_with %s does not go with kind %s', r.moves_with, r.kind)
    when r.locks_at is not null and not v_trails
      then format('locks_at %s does not go with kind %s', trim_scale(r.locks_at), r.kind)
    when r.cushion_percent > 0 and r.kind = 'equity_target'
      then format('cushion_percent %s does not go with kind %s', trim_scale(r.cushion_percent), r.kind)
    when r.action = 'close_all_until_next_day' and not v_daily
      then format('action %s does not go with kind %s, which has no next day', r.action, r.kind)
    when r.would_breach <> 'ignore' and r.kind not in ('daily_loss', 'trailing_drawdown', 'equity_floor')
      then format('would_breach %s does not go with kind %s', r.would_breach, r.kind)
    when r.warn_percent > 100 - r.cushion_percent
      then format('warn_percent %s is above %s, where the rule acts with cushion_percent %s',
        trim_scale(r.warn_percent), trim_scale(100 - r.cushion_percent), trim_scale(r.cushion_percent)) end;
begin
  if v_pair is not null then
    raise exception using errcode = 'TC306', message = 'save_protection_rule: ' || v_pair,
      hint = 'Change one of the two.';
  end if;
end $$;

-- What is wrong with a rule's threshold; null: nothing.
create function private.bad_threshold(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_of text := private.rule_of(r);
begin
  return case
    when r.threshold is null then 'threshold is missing'
    when r.kind = 'max_margin_use' then case when not (r.threshold > 0 and r.threshold <= 1000)
      then format('threshold of max_margin_use must be above 0 and at most 1000 (percent of equity), not %s',
        r.threshold) end
    when v_of = 'amount' then case when not (r.threshold > 0 and r.threshold < 1e12)
      then format('threshold of %s must be above 0 and below 1e12 (money of the account), not %s', r.kind,
        r.threshold) end
    when r.kind in ('daily_loss', 'trailing_drawdown') then case when not (r.threshold > 0 and r.threshold < 100)
      then format('threshold of %s must be above 0 and below 100 (percent), not %s', r.kind, r.threshold) end
    when not (r.threshold > 0 and r.threshold <= 1000)
      then format('threshold of %s must be above 0 and at most 1000 (percent), not %s', r.kind, r.threshold) end;
end $$;

-- Raises TC303 for a wrong setting of a rule; the message says what is allowed.
create function private.refuse_bad_rule(p_rule jsonb, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_what text;
begin
  v_what := case
    when r.kind is null or r.kind not in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target',
      'max_margin_use', 'daily_profit')
      then 'kind must be daily_loss, trailing_drawdown, equity_floor, equity_target, max_margin_use or daily_profit'
    when r.action is null or r.action not in ('notify', 'monitor', 'close_all', 'close_all_until_next_day',
      'close_all_and_off')
      then 'action must be notify, monitor, close_all or close_all_and_off; daily_loss and daily_profit also take '
        'close_all_until_next_day'
    when r.confirm_ms is null or r.confirm_ms not between 250 and 60000 then 'confirm_ms must be from 250 to 60000'
    when r.close_manual is null or r.enabled is null then 'close_manual and enabled must be true or false'
    when r.count_balance_operations is null then 'count_balance_operations must be true or false'
    when r.time_zone is null or not private.is_time_zone(r.time_zone)
      then format('there is no time zone %s: time_zone must be named like Europe/Berlin, America/New_York or UTC',
        left(coalesce(r.time_zone, 'null'), 100))
    else coalesce(private.bad_measure(r), private.bad_threshold(r)) end;
  if v_what is not null then
    raise exception using errcode = 'TC303', message = 'save_protection_rule: ' || v_what,
      hint = 'See docs/protocol.md.';
  end if;
end $$;

-- Refuses settings of the wrong form (TC302).
create function private.refuse_malformed_rule(p_rule jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_wrong text;
begin
  select k into v_wrong from unnest(array['threshold', 'cushion_percent', 'warn_percent', 'locks_at']) k
  where p_rule ? k and not coalesce(private.is_number(p_rule -> k), false)
    and not (k = 'locks_at' and p_rule -> k = 'null') limit 1;
  if v_wrong is not null then
    raise exception using errcode = 'TC302', message = format('save_protection_rule: %s is not a number', v_wrong),
      hint = 'Numbers are decimal strings such as "5".';
  end if;
  select format('%s is %s, but must be %s', e.key, left(e.value::text, 100), case e.key
    when 'confirm_ms' then 'a whole number from 250 to 60000'
    when 'day_begins' then 'a time of day such as "17:00"' else 'true or false' end) into v_wrong
  from jsonb_each(p_rule) e
  where case when e.key = 'confirm_ms' then not pg_input_is_valid(e.value #>> '{}', 'integer')
    when e.key in ('close_manual', 'enabled', 'count_balance_operations')
      then not pg_input_is_valid(e.value #>> '{}', 'boolean')
    when e.key = 'day_begins' then coalesce(e.value #>> '{}', '') !~ '^([01][0-9]|2[0-3]):[0-5][0-9](:00)?$' end
  limit 1;
  if v_wrong is not null then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: ' || v_wrong,
      hint = 'See docs/protocol.md.';
  end if;
end $$;

-- Settings that are allowed but may surprise, one sentence each.
create function private.rule_warnings(r public.protection_rules) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_balance numeric := (select a.balance from public.trading_accounts a where a.id = r.account_id);
  v_initial numeric := private.initial_for(r, v_balance);
  v_allowed numeric := case
    when r.kind not in ('daily_loss', 'trailing_drawdown') then null
    when private.rule_of(r) = 'amount' then r.threshold
    when private.rule_of(r) = 'initial' then v_initial * r.threshold * 0.01 end * (100 - r.cushion_percent) * 0.01;
begin
  return to_jsonb(array_remove(array[
    case when v_allowed >= v_balance then format('threshold allows a loss of %s, and the balance is %s: the rule acts '
      'only when nothing is left.', private.plain(round(v_allowed, 2)), private.plain(v_balance)) end], null));
end $$;

-- Refuses a change of kind or account, and two rules that contradict each other.
create function private.refuse_contradiction(p_rule jsonb, p_old public.protection_rules,
  p_new public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_other numeric;
  v_initial numeric := private.initial_balance(p_new.account_id, null);
  v_limit numeric := private.whole_limit(p_new, v_initial);
begin
  if p_old.id is not null and (p_new.kind <> p_old.kind
    or coalesce(p_rule ->> 'account_id', p_old.account_id::text) <> p_old.account_id::text) then
    raise exception using errcode = 'TC303',
      message = 'save_protection_rule: kind and account_id of a rule cannot be changed',
      hint = 'Remove the rule and save another.';
  end if;
  -- of several, the one that is nearest: the lowest target of a floor, the highest floor of a target
  select case p_new.kind when 'equity_floor' then min(private.whole_limit(r, v_initial))
    else max(private.whole_limit(r, v_initial)) end into v_other
  from public.protection_rules r
  where r.account_id = p_new.account_id and r.kind = case p_new.kind when 'equity_floor'
    then 'equity_target' when 'equity_target' then 'equity_floor' end;
  if p_new.kind = 'equity_floor' and v_limit >= v_other or p_new.kind = 'equity_target' and v_limit <= v_other then
    raise exception using errcode = 'TC306',
      message = format('save_protection_rule: equity_floor %s is not below equity_target %s',
        case p_new.kind when 'equity_floor' then v_limit else v_other end,
        case p_new.kind when 'equity_floor' then v_other else v_limit end),
      hint = 'Change one of the two first.';
  end if;
end $$;
