-- What protection rules tell people.

-- How a rule's limit came about.
create function private.limit_words(r public.protection_rules, p_initial numeric) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_limit text := private.rule_limit(r, p_initial)::text;
  v_percent text := trim_scale(r.threshold)::text;
  v_allowance text := case private.rule_of(r)
    when 'amount' then v_percent
    when 'initial' then format('%s %% of the initial balance %s', v_percent, trim_scale(p_initial))
    else v_percent || ' %' end;
begin
  return v_limit || case
      when r.kind = 'daily_loss' then format(' (%s under the %s of the day''s start)', v_allowance, r.day_start_equity)
      when r.kind = 'daily_profit' then format(' (%s above the %s of the day''s start)', v_allowance,
        r.day_start_equity)
      when r.kind = 'trailing_drawdown' and private.whole_limit(r, p_initial) = r.locks_at then ' (where it is locked)'
      when r.kind = 'trailing_drawdown' then format(' (%s under the high of %s)', v_allowance, r.high_water_mark)
      when private.rule_of(r) = 'initial' then format(' (%s)', v_allowance)
      else '' end
    || case when r.cushion_percent > 0 then format(', with a cushion of %s %%', trim_scale(r.cushion_percent))
      else '' end;
end $$;

create function private.rule_title(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind when 'daily_loss' then 'Daily loss' when 'daily_profit' then 'Daily profit'
    when 'trailing_drawdown' then 'Trailing drawdown' when 'equity_floor' then 'Equity floor'
    when 'equity_target' then 'Equity target' else 'Margin use' end;
end $$;

-- What a rule does when it triggers.
create function private.action_words(p_action text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case p_action when 'notify' then 'it tells you again' when 'monitor' then 'it opens nothing more'
    when 'close_all' then 'it closes everything'
    when 'close_all_until_next_day' then 'it closes everything and opens nothing until the next day'
    else 'it closes everything and switches the account off' end;
end $$;

-- The message of a rule that has triggered.
create function private.protection_message(r public.protection_rules, p_currency text, p_initial numeric,
  p_look private.look) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_limit text := private.limit_words(r, p_initial);
begin
  return case r.kind
      when 'equity_floor' then format('Equity floor: equity is %s %s, the floor is %s.', p_look.equity, p_currency,
        v_limit)
      when 'equity_target' then format('Equity target: equity is %s %s, the target is %s.', p_look.equity, p_currency,
        v_limit)
      when 'max_margin_use' then format('Margin use: %s %s of margin at %s of equity have reached %s %%.',
        p_look.margin, p_currency, p_look.equity, v_limit)
      else format('%s: equity is %s %s, the limit is %s.', private.rule_title(r), p_look.equity, p_currency,
        v_limit) end
    || case private.rule_action(r)
      when 'notify' then ' Nothing was changed.'
      when 'monitor' then ' Nothing is opened on the account any more; closes go on. Switch it on again when you want '
        'to go on.'
      when 'close_all' then ' Everything on the account is being closed; when it is flat, copying goes on as before.'
      when 'close_all_until_next_day' then format(' Everything on the account is being closed and nothing is opened '
        'until %s %s (%s); then copying goes on by itself.', to_char(private.rule_day_ends(r, p_look.at)
        at time zone r.time_zone, 'YYYY-MM-DD HH24:MI'), r.time_zone, private.rfc3339(private.rule_day_ends(r,
        p_look.at)))
      else ' Everything on the account is being closed, then it is off. Switch it on again when you want to go on.' end
    || case when r.kind in ('daily_loss', 'daily_profit') then ' The rule watches again from the next day''s start, or '
      'once it is reset.' else ' The rule watches again once it is reset.' end;
end $$;

-- An alert, once a day, that much of a rule's allowance is used.
create function private.warn_of_rule(r public.protection_rules, p_initial numeric, p_look private.look) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(r.account_id, 'protection_near', r.kind, 'warning',
    format('%s: %s %% of the allowance is used: equity is %s, margin %s, and the limit is %s. There %s. '
      'Close or reduce positions if that must not happen.', private.rule_title(r), trim_scale(r.warn_percent),
      p_look.equity,
      coalesce(p_look.margin::text, 'unknown'), private.limit_words(r, p_initial),
      private.action_words(private.rule_action(r))),
    jsonb_build_object('rule_id', r.id, 'action', private.rule_action(r), 'warn_percent', r.warn_percent::text,
      'limit', private.rule_limit(r, p_initial)::text, 'equity', p_look.equity::text, 'at',
      private.rfc3339(p_look.at)));
end $$;
