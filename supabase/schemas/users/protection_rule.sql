-- Functions by which users manage protection rules.

-- The funds of an account if they are known and fresh; otherwise all results are null.
create function private.known_funds(p_account uuid, out measured_at timestamptz, out equity numeric, out margin numeric,
  out balance numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  select a.funds_at, a.equity, a.margin, a.balance into measured_at, equity, margin, balance
  from public.trading_accounts a
  where a.id = p_account and a.funds_at > clock_timestamp() - private.setting_s('funds_max_age_s');
end $$;

-- Refuses a rule that would trigger at once (TC321): a typing error must not close everything.
create function private.refuse_reached(p_function text, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_funds record;
  v_initial numeric;
begin
  select * into v_funds from private.known_funds(r.account_id);
  v_initial := private.initial_for(r, v_funds.balance);
  if r.enabled and r.triggered_at is null and private.limit_reached(r, v_initial, v_funds.equity,
    v_funds.margin) then
    raise exception using errcode = 'TC321',
      message = format('%s: the account is already past this limit: %s of %s, equity %s, margin %s', p_function, r.kind,
        private.rule_limit(r, v_initial), v_funds.equity, coalesce(v_funds.margin::text, 'unknown')),
      hint = 'The rule would trigger at once. Choose another threshold, or close positions first (flatten_account).';
  end if;
end $$;

-- A rule of the caller, locked together with its account's plan; TC106 if there is none.
create function private.own_rule(p_function text, p_rule uuid) returns public.protection_rules
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_rule public.protection_rules;
begin
  perform private.lock_accounts(array(select r.account_id from public.protection_rules r
    where r.id = p_rule and r.user_id = v_user));
  select * into v_rule from public.protection_rules r where r.id = p_rule and r.user_id = v_user for update;
  if v_rule.id is null then
    raise exception using errcode = 'TC106',
      message = format('%s: rule %s does not exist or is not yours', p_function, p_rule), hint = 'Check the id.';
  end if;
  return v_rule;
end $$;

-- A new rule of the caller's account with the default of each setting; the account's plan is locked.
create function private.new_rule(p_rule jsonb) returns public.protection_rules
language plpgsql volatile security definer set search_path = '' as $$
declare
  r public.protection_rules;
begin
  r.user_id := private.require_user();
  select a.id into r.account_id from public.trading_accounts a
  where a.id = private.uuid_of(p_rule, 'account_id') and a.user_id = r.user_id and a.removed_at is null;
  if r.account_id is null then
    raise exception using errcode = 'TC106',
      message = format('save_protection_rule: account %s does not exist or is not yours', p_rule ->> 'account_id'),
      hint = 'Check the id.';
  end if;
  perform private.hold_user(r.user_id);
  perform private.lock_accounts(array[r.account_id]);
  r.action := 'close_all_and_off';
  r.close_manual := true;
  r.confirm_ms := 250;
  r.time_zone := 'UTC';
  r.enabled := true;
  r.basis := 'equity';
  r.day_begins := '00:00';
  r.cushion_percent := 0;
  r.moves_with := 'equity';
  r.warn_percent := 70;
  r.count_balance_operations := false;
  -- a cushion that acts earlier than that is warned of when it acts
  if private.is_number(p_rule -> 'cushion_percent') then
    r.warn_percent := greatest(least(70, 100 - (p_rule ->> 'cushion_percent')::numeric), 0);
  end if;
  return r;
end $$;

-- {"id" of the rule to change, or "account_id" and "kind" of a new one; the settings} -> {"rule_id", "action",
-- "warnings"}
create function private.save_protection_rule(p_rule jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_old public.protection_rules;
  v_new public.protection_rules;
  v_unknown text;
begin
  if jsonb_typeof(p_rule) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_protection_rule: the rule must be an object',
      hint = 'See docs/protocol.md.';
  end if;
  select left(string_agg(k, ', '), 200) into v_unknown from jsonb_object_keys(p_rule) k
  where k not in ('id', 'account_id', 'kind', 'threshold', 'action', 'close_manual', 'confirm_ms', 'time_zone',
    'enabled', 'of', 'basis', 'day_begins', 'cushion_percent', 'warn_percent', 'moves_with', 'locks_at',
    'count_balance_operations', 'would_breach');
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_protection_rule: unknown setting: %s', v_unknown),
      hint = 'The settings are account_id, kind, threshold, of, basis, day_begins, time_zone, cushion_percent, '
        'warn_percent, moves_with, locks_at, count_balance_operations, would_breach, action, close_manual, confirm_ms '
        'and enabled.';
  end if;
  perform private.refuse_malformed_rule(p_rule);
  if p_rule ? 'id' then
    v_old := private.own_rule('save_protection_rule', private.uuid_of(p_rule, 'id'));
  else
    v_old := private.new_rule(p_rule);
  end if;
  begin
    v_new := jsonb_populate_record(v_old, p_rule - array['id', 'account_id']);
  exception when data_exception then
    raise exception using errcode = 'TC302',
      message = 'save_protection_rule: a value has the wrong form: ' || left(sqlerrm, 500),
      hint = 'Numbers are decimal strings such as "5", confirm_ms is a whole number, close_manual and enabled are true '
        'or false.';
  end;
  v_new.action := private.rule_action(v_new);
  perform private.refuse_bad_rule(p_rule, v_new);
  perform private.refuse_bad_pair(v_new);
  perform private.refuse_contradiction(p_rule, v_old, v_new);
  return jsonb_build_object('rule_id', private.put_rule(v_old, v_new), 'action', v_new.action,
    'warnings', private.rule_warnings(v_new));
end $$;

-- Stores a rule that passed all checks. A new rule, one that is enabled again, and one that measures another way start
-- their measurements from now.
create function private.put_rule(p_old public.protection_rules, p_new public.protection_rules) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_new public.protection_rules := p_new;
  v_funds record;
begin
  if p_old.id is null or p_new.enabled and not p_old.enabled or (p_new.time_zone, p_new.day_begins, p_new.basis,
    p_new.moves_with) is distinct from (p_old.time_zone, p_old.day_begins, p_old.basis, p_old.moves_with) then
    select * into v_funds from private.known_funds(p_new.account_id);
    v_new := private.rearmed(v_new, v_funds.measured_at, v_funds.equity, v_funds.balance);
    if v_new.high_water_mark is not null then
      v_new.high_water_mark := private.first_high(v_new, v_new.high_water_mark,
        private.initial_for(v_new, v_funds.balance));
    end if;
  end if;
  v_new.breached_at := null;  -- it may be about another limit
  v_new.breached_equity := null;
  perform private.refuse_reached('save_protection_rule', v_new);
  if p_old.id is null then
    v_new.id := gen_random_uuid();
    v_new.created_at := clock_timestamp();
    v_new.updated_at := v_new.created_at;
    insert into public.protection_rules select v_new.*;
  else
    update public.protection_rules r set threshold = v_new.threshold, action = v_new.action,
      close_manual = v_new.close_manual,
      confirm_ms = v_new.confirm_ms, time_zone = v_new.time_zone, enabled = v_new.enabled, of = v_new.of,
      basis = v_new.basis, day_begins = v_new.day_begins, cushion_percent = v_new.cushion_percent,
      warn_percent = v_new.warn_percent, moves_with = v_new.moves_with, locks_at = v_new.locks_at,
      count_balance_operations = v_new.count_balance_operations, would_breach = v_new.would_breach, day = v_new.day,
      day_start_equity = v_new.day_start_equity, day_start_at = v_new.day_start_at,
        high_water_mark = v_new.high_water_mark,
      breached_at = null, breached_equity = null, triggered_at = v_new.triggered_at
    where r.id = p_old.id;
  end if;
  perform private.note_guard(v_new.account_id);
  return v_new.id;
end $$;

-- {"rule_id"} -> {"rule_id"}
create function private.remove_protection_rule(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('remove_protection_rule', private.uuid_of(p_request, 'rule_id'));
begin
  perform private.refuse_unknown(p_request, 'remove_protection_rule', array['rule_id']);
  delete from public.protection_rules where id = v_rule.id;
  perform private.note_guard(v_rule.account_id);
  return jsonb_build_object('rule_id', v_rule.id);
end $$;

-- {"rule_id"} -> {"rule_id", "day_start_equity", "high_water_mark"}. The rule can trigger again and measures from now:
-- day_start_equity and high_water_mark become the present equity, or the next that is known. What the rule did to the
-- account is not undone.
create function private.reset_protection(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('reset_protection', private.uuid_of(p_request, 'rule_id'));
  v_funds record;
begin
  perform private.refuse_unknown(p_request, 'reset_protection', array['rule_id']);
  select * into v_funds from private.known_funds(v_rule.account_id);
  v_rule := private.rearmed(v_rule, v_funds.measured_at, v_funds.equity, v_funds.balance);
  perform private.refuse_reached('reset_protection', v_rule);
  update public.protection_rules r set day = v_rule.day, day_start_equity = v_rule.day_start_equity,
    day_start_at = v_rule.day_start_at,
    high_water_mark = v_rule.high_water_mark, breached_at = null, breached_equity = null, triggered_at = null
  where r.id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id, 'day_start_equity', v_rule.day_start_equity::text, 'high_water_mark',
    v_rule.high_water_mark::text);
end $$;

create function public.save_protection_rule(p_rule jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_protection_rule(p_rule) $$;
comment on function public.save_protection_rule(jsonb) is
  'Users: makes a protection rule for an account, or changes one. Keys that are left out keep their value.
Request:
- id (uuid): rule of the caller to change; left out: a new one
- account_id (uuid; required for a new rule): account of the caller; cannot be changed later
- kind (text; required for a new rule; daily_loss, trailing_drawdown, equity_floor, equity_target, max_margin_use or
  daily_profit): cannot be changed later; an account may have several rules of a kind
- threshold (number; required for a new rule; percent above 0 and below 100, daily_profit and max_margin_use up to
  1000; where of is amount: money above 0 and below 1e12): reaching it exactly triggers
- of (text; day_start, high, initial or amount): what the threshold is: percent of the day''s start (daily rules), of
  the high (trailing_drawdown) or of the account''s initial balance, or money; equity_floor and equity_target with
  initial stand at that percentage of it. Left out or null: day_start for daily rules, high for trailing_drawdown
  (initial if it moves with day_end_balance), amount for equity_floor and equity_target
- basis (text; equity, balance or higher): daily rules: what the day''s start is; default equity
- day_begins (text; a time of day from 00:00 to 23:59): when the day begins in time_zone; default 00:00
- cushion_percent (number; from 0 to below 100): the rule acts when 100 minus this percentage of its allowance is used;
  not for equity_target; default 0: at the limit itself
- warn_percent (number; from 0 to below 100, at most 100 minus cushion_percent): an alert, once a day, when this
  percentage of the allowance is used; 0: none; default 70, or what the cushion leaves
- moves_with (text; equity or day_end_balance): trailing_drawdown: what its limit follows; default equity
- locks_at (number or null; above 0 and below 1e12): trailing_drawdown: the limit stops rising there; default: never
- action (text; notify, monitor, close_all, close_all_until_next_day or close_all_and_off): what the rule does; default
  close_all_and_off. close_all_until_next_day is for daily_loss and daily_profit: it opens nothing until the next day
  begins, then copying goes on by itself. close_all of these two is stored as close_all_until_next_day
- close_manual (boolean): whether closing includes positions that the user opened by hand; default true
- confirm_ms (integer; 250 to 60000): a second look at least this long after the first must agree; default 250
- would_breach (text or null; refuse, shrink or ignore): daily_loss, trailing_drawdown and equity_floor: what becomes of
  an open whose stop, hit together with those already open, would cross the limit; default refuse, and ignore for a
  rule that only notifies
- count_balance_operations (boolean): whether deposits and withdrawals count as profits and losses; default false: they
  move the day''s start, the high and the initial balance by their amount
- time_zone (text; a time zone such as Europe/Berlin): the time zone of day_begins; default UTC
- enabled (boolean): whether the rule is checked; default true
Answer:
- rule_id (uuid): the rule
- action (text): what it does, as stored
- warnings (list of texts): settings that are allowed but may surprise, one sentence each
Errors: TC001 TC105 TC106 TC108 TC301 TC302 TC303 TC306 TC321 TC332
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "kind": "daily_loss", "threshold": "5", "action":
  "close_all_and_off",
"time_zone": "Europe/Berlin"}
-> {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401", "action": "close_all_and_off", "warnings": []}';

create function public.remove_protection_rule(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_protection_rule(p_request) $$;
comment on function public.remove_protection_rule(jsonb) is
  'Users: removes a protection rule. What it did to the account is not undone.
Request:
- rule_id (uuid; required): rule of the caller
Answer:
- rule_id (uuid): the rule that was removed
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401"} -> {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401"}';

create function public.reset_protection(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.reset_protection(p_request) $$;
comment on function public.reset_protection(jsonb) is
  'Users: lets a protection rule trigger again; it measures from the present equity, or from the next that is known.
Request:
- rule_id (uuid; required): rule of the caller
Answer:
- rule_id (uuid): the rule
- day_start_equity (text or null): for daily rules: the amount that the day is measured from
- high_water_mark (text or null): for trailing_drawdown: the highest equity or day-end balance
Errors: TC001 TC105 TC106 TC108 TC301 TC321
Example: {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401"}
-> {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401", "day_start_equity": "5000.00", "high_water_mark": null}';

revoke all on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb),
  public.reset_protection(jsonb) from public, anon;
grant execute on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb),
  public.reset_protection(jsonb),
  private.save_protection_rule(jsonb), private.remove_protection_rule(jsonb),
    private.reset_protection(jsonb) to authenticated;
