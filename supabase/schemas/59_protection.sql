-- Protection: every report of an account's funds is a look at its rules. A limit that is reached in two looks does what the rule says.
-- Unknown funds and late ones are no look: they neither trigger a rule nor disarm it.

-- What the equity (max_margin_use: the percentage of it) is held against; null while it is not known.
create function private.rule_limit(r public.protection_rules) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'daily_loss' then trim_scale(r.day_start_equity * (100 - r.threshold) / 100)
    when 'trailing_drawdown' then trim_scale(r.high_water_mark * (100 - r.threshold) / 100)
    else trim_scale(r.threshold) end;
end $$;

-- Whether these figures have reached the rule's limit; null when a figure for it is unknown. Multiplied, not divided: exact to the last digit.
create function private.limit_reached(r public.protection_rules, p_equity numeric, p_margin numeric) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'daily_loss' then p_equity * 100 <= r.day_start_equity * (100 - r.threshold) and r.day_start_equity > 0
    when 'trailing_drawdown' then p_equity * 100 <= r.high_water_mark * (100 - r.threshold) and r.high_water_mark > 0
    when 'equity_floor' then p_equity <= r.threshold
    when 'equity_target' then p_equity >= r.threshold
    when 'max_margin_use' then p_margin > 0 and p_margin * 100 >= p_equity * r.threshold end;
end $$;

-- Opens a rule's count anew: the day's start or the high-water mark is this equity (null: the next one that is known), nothing is triggered.
create function private.rearmed(r public.protection_rules, p_at timestamptz, p_equity numeric) returns public.protection_rules
language plpgsql stable set search_path = '' as $$
begin
  r.day := null;
  r.day_start_equity := null;
  r.day_start_at := null;
  r.high_water_mark := null;
  r.breached_at := null;
  r.breached_equity := null;
  r.triggered_at := null;
  if p_equity is not null and r.kind = 'daily_loss' then
    r.day := (clock_timestamp() at time zone r.time_zone)::date;
    r.day_start_equity := p_equity;
    r.day_start_at := p_at;
  elsif p_equity is not null and r.kind = 'trailing_drawdown' then
    r.high_water_mark := p_equity;
  end if;
  return r;
end $$;

-- One look: the rule as it is afterwards, and what the look was: null (nothing past the limit), first, waiting (too soon after the first),
-- contradicted, confirmed. p_before: the account's last look before this one.
create function private.judge_rule(
  inout r public.protection_rules, p_at timestamptz, p_equity numeric, p_margin numeric, p_before_at timestamptz, p_before_equity numeric,
  out verdict text
) language plpgsql stable set search_path = '' as $$
declare
  v_day date := (p_at at time zone r.time_zone)::date;
  v_reached boolean;
begin
  if r.kind = 'daily_loss' and (r.day is null or v_day > r.day) then
    -- The last equity before midnight, if the account was seen across it: the first one after it may be a tick of the rollover.
    if r.day is not null and p_at - p_before_at <= private.setting_s('funds_max_age_s') then
      r := private.rearmed(r, p_before_at, p_before_equity);
    else
      r := private.rearmed(r, p_at, p_equity);
    end if;
    r.day := v_day;
  elsif r.kind = 'trailing_drawdown' then
    if r.high_water_mark is null then
      r.high_water_mark := p_equity;
    -- a high is one when two looks in a row have reached it; not confirm_ms apart, for looks a second apart would then never make one
    elsif p_at - p_before_at >= interval '250 ms' then
      r.high_water_mark := greatest(r.high_water_mark, least(p_equity, p_before_equity));
    end if;
  end if;
  v_reached := private.limit_reached(r, p_equity, p_margin);
  if r.triggered_at is not null or v_reached is null then
    return;
  elsif not v_reached then
    if r.breached_at is not null then
      verdict := 'contradicted';
    end if;
    r.breached_at := null;
    r.breached_equity := null;
  elsif r.breached_at is null then
    verdict := 'first';
    r.breached_at := p_at;
    r.breached_equity := p_equity;
  elsif p_at - r.breached_at < make_interval(secs => r.confirm_ms / 1000.0) then
    verdict := 'waiting';
  else
    verdict := 'confirmed';
  end if;
end $$;

-- Copying into the account goes on closing and opens nothing more; what is stricter already stays. The caller holds its plan lock.
-- Opens that wait for another attempt, or for an agent, end here: they are in nobody's hands.
create function private.stop_opening(p_account uuid, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_links bigint[] := '{}';
begin
  update public.trading_accounts a set copy_state_reason = p_reason,
    copy_state = case a.copy_state when 'on' then 'monitor' else a.copy_state end,
    flatten_then = case when a.copy_state = 'flattening' then 'monitor' else a.flatten_then end
  where a.id = p_account and (a.copy_state = 'on' or a.copy_state = 'flattening' and a.flatten_then = 'on');
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = 'account_protected', next_attempt_at = null, finalized_at = p_now,
      updated_at = p_now
    where x.account_id = p_account and x.in_flight and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null) and private.opens(x)
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id || array(select (e ->> 'link_id')::bigint from jsonb_array_elements(coalesce(q.parts, '[]')) e);
  end loop;
  update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
  where x.account_id = p_account and x.in_flight and private.opens(x) and x.cancel_requested_at is null;
  if cardinality(v_links) > 0 then
    perform private.offer(private.plan_again(array_remove(v_links, null), p_now), null, clock_timestamp());
  end if;
end $$;

-- What a rule has to tell, for people.
create function private.protection_message(r public.protection_rules, p_currency text, p_equity numeric, p_margin numeric) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_limit text := private.rule_limit(r)::text;
begin
  return case r.kind
      when 'daily_loss' then format('Daily loss: equity is %s %s, the limit is %s (%s %% under the %s of the day''s start).', p_equity,
        p_currency, v_limit, trim_scale(r.threshold), r.day_start_equity)
      when 'trailing_drawdown' then format('Trailing drawdown: equity is %s %s, the limit is %s (%s %% under the high of %s).', p_equity,
        p_currency, v_limit, trim_scale(r.threshold), r.high_water_mark)
      when 'equity_floor' then format('Equity floor: equity is %s %s, the floor is %s.', p_equity, p_currency, v_limit)
      when 'equity_target' then format('Equity target: equity is %s %s, the target is %s.', p_equity, p_currency, v_limit)
      else format('Margin use: %s %s of margin at %s of equity have reached %s %%.', p_margin, p_currency, p_equity, v_limit) end
    || case r.action
      when 'notify' then ' Nothing was changed.'
      when 'monitor' then ' Nothing is opened on the account any more; closes go on. Switch it on again when you want to go on.'
      when 'close_all' then ' Everything on the account is being closed; when it is flat, copying goes on as before.'
      else ' Everything on the account is being closed, then it is off. Switch it on again when you want to go on.' end
    || case r.kind when 'daily_loss' then ' The rule watches again from the next day''s start, or once it is reset.'
      else ' The rule watches again once it is reset.' end;
end $$;

-- Carries out a rule whose limit two looks have reached. The caller holds the plan locks of the account and its neighbours.
create function private.trigger_rule(r public.protection_rules, p_at timestamptz, p_equity numeric, p_margin numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.protection_rules set triggered_at = p_at where id = r.id;
  perform private.raise_alert(r.account_id, 'protection', r.kind, case r.action when 'notify' then 'warning' else 'critical' end,
    private.protection_message(r, (select a.currency from public.trading_accounts a where a.id = r.account_id), p_equity, p_margin),
    jsonb_build_object('rule_id', r.id, 'action', r.action, 'threshold', r.threshold::text, 'limit', private.rule_limit(r)::text,
      'looks', jsonb_build_array(
        jsonb_build_object('at', private.rfc3339(r.breached_at), 'equity', r.breached_equity::text),
        jsonb_build_object('at', private.rfc3339(p_at), 'equity', p_equity::text, 'margin', p_margin::text))));
  case r.action
    when 'notify' then null;
    when 'monitor' then perform private.stop_opening(r.account_id, r.kind, p_now);
    when 'close_all' then perform private.start_flattening(r.account_id, r.close_manual, null, r.kind, p_now);
    when 'close_all_and_off' then perform private.start_flattening(r.account_id, r.close_manual, 'off', r.kind, p_now);
  end case;
end $$;

-- Holds an account's funds against its rules, before its own row is touched. Returns in how many milliseconds it wants to see them again;
-- null: at the usual pace. Figures of another session, or older than what is known, are no look.
create function private.check_protection(
  p_vps uuid, p_account uuid, p_session bigint, p_at timestamptz, p_equity numeric, p_margin numeric
) returns integer
language plpgsql security definer set search_path = '' as $$
declare
  v_before record;
  v_rule public.protection_rules;
  v_look record;
  v_now timestamptz;
  v_again integer;
begin
  -- Plan locks come before every row of this transaction, and only a second look can need them.
  if exists (
    select 1 from public.protection_rules r where r.account_id = p_account and r.enabled and r.breached_at is not null and r.triggered_at is null)
  then
    v_now := private.lock_accounts(private.with_neighbours(p_account));
  end if;
  select a.funds_at, a.equity into v_before from public.trading_accounts a
  where a.id = p_account and a.session = p_session and a.session_vps_id = p_vps and a.removed_at is null
    and p_at >= coalesce(a.funds_at, '-infinity');
  if not found or p_at < clock_timestamp() - private.setting_s('protection_max_age_s') then
    return null;
  end if;
  for v_rule in
    select * from public.protection_rules r where r.account_id = p_account and r.enabled order by r.id for no key update
  loop
    select * into v_look from private.judge_rule(v_rule, p_at, p_equity, p_margin, v_before.funds_at, v_before.equity);
    if v_look.verdict = 'confirmed' and v_now is null then  -- its first look came while we were on our way
      v_look.verdict := 'waiting';
    end if;
    perform private.keep_look(v_rule, v_look.r, v_look.verdict, p_at, p_equity, p_margin);
    if v_look.verdict = 'confirmed' then
      perform private.trigger_rule(v_look.r, p_at, p_equity, p_margin, v_now);
    elsif v_look.verdict in ('first', 'waiting') then
      v_again := least(v_again, (v_look.r).confirm_ms + 10);
    end if;
  end loop;
  return v_again;
end $$;

-- Writes down what a look made of a rule, and the look itself if it was past the limit or took that back.
create function private.keep_look(
  p_old public.protection_rules, p_new public.protection_rules, p_verdict text, p_at timestamptz, p_equity numeric, p_margin numeric
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_old is distinct from p_new then
    update public.protection_rules r set day = p_new.day, day_start_equity = p_new.day_start_equity, day_start_at = p_new.day_start_at,
      high_water_mark = p_new.high_water_mark, breached_at = p_new.breached_at, breached_equity = p_new.breached_equity
    where r.id = p_old.id;
    if p_old.triggered_at is distinct from p_new.triggered_at then
      update public.protection_rules r set triggered_at = p_new.triggered_at where r.id = p_old.id;
    end if;
  end if;
  if p_verdict in ('first', 'contradicted', 'confirmed') then
    insert into public.protection_looks (rule_id, user_id, account_id, kind, at, equity, margin, reached, outcome)
    values (p_old.id, p_old.user_id, p_old.account_id, p_old.kind, p_at, p_equity, p_margin, private.rule_limit(p_new), p_verdict);
  end if;
end $$;

-- A follower's broker closed a position for lack of margin: its copy ends so, nothing more is opened there, and its user is told.
-- Called with the event, before it is planned on: the links still know what they held.
create function private.note_stop_out(p_account public.trading_accounts, p_position jsonb, p_lots numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follows boolean := exists (select 1 from public.copiers c where c.follower_account_id = p_account.id and c.removed_at is null);
begin
  update public.position_links l set stopped_out = true
  where l.ended_at is null and l.id = any (array(
    select g.link_id from private.link_legs g
    where g.account_id = p_account.id and g.ticket in (p_position ->> 'ticket', p_position ->> 'symbol')));
  if v_follows then
    perform private.stop_opening(p_account.id, 'stop_out', p_now);
  end if;
  perform private.raise_alert(p_account.id, 'stop_out', 'stop_out', 'critical',
    format('Stop-out: the broker of %s closed %s %s %s for lack of margin.', p_account.name, p_position ->> 'side', trim_scale(p_lots),
      p_position ->> 'symbol')
    || case when v_follows then ' Nothing is opened there any more and the copy stays closed; closes go on.'
      || ' Add funds or copy smaller, then switch the account on again.' else ' Add funds or reduce what is held.' end,
    jsonb_build_object('ticket', p_position ->> 'ticket', 'symbol', p_position ->> 'symbol', 'side', p_position ->> 'side', 'lots', p_lots::text));
end $$;


-- What users do with rules

-- The funds of an account if they are known and fresh, else nulls.
create function private.known_funds(p_account uuid, out measured_at timestamptz, out equity numeric, out margin numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  select a.funds_at, a.equity, a.margin into measured_at, equity, margin from public.trading_accounts a
  where a.id = p_account and a.funds_at > clock_timestamp() - private.setting_s('funds_max_age_s');
end $$;

-- Refuses a rule that would close everything the moment it watches: a slip of the pen must not.
create function private.refuse_reached(p_function text, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_funds record;
begin
  select * into v_funds from private.known_funds(r.account_id);
  if r.enabled and r.triggered_at is null and private.limit_reached(r, v_funds.equity, v_funds.margin) then
    raise exception using errcode = 'TC321',
      message = format('%s: the account is already past this limit: %s of %s, equity %s, margin %s', p_function, r.kind,
        private.rule_limit(r), v_funds.equity, coalesce(v_funds.margin::text, 'unknown')),
      hint = 'The rule would act at once. Choose another threshold, or close positions first (flatten_account).';
  end if;
end $$;

-- What is wrong with the settings of a rule; every message says what is allowed.
create function private.refuse_bad_rule(p_rule jsonb, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_what text;
begin
  v_what := case
    when r.kind is null or r.kind not in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target', 'max_margin_use')
      then 'kind must be daily_loss, trailing_drawdown, equity_floor, equity_target or max_margin_use'
    when r.action is null or r.action not in ('notify', 'monitor', 'close_all', 'close_all_and_off')
      then 'action must be notify, monitor, close_all or close_all_and_off'
    when r.threshold is null then 'threshold is missing'
    when r.kind in ('daily_loss', 'trailing_drawdown') and not (r.threshold > 0 and r.threshold < 100)
      then format('threshold of %s must be above 0 and below 100 (percent), not %s', r.kind, r.threshold)
    when r.kind = 'max_margin_use' and not (r.threshold > 0 and r.threshold <= 1000)
      then format('threshold of max_margin_use must be above 0 and at most 1000 (percent of equity), not %s', r.threshold)
    when not (r.threshold > 0 and r.threshold < 1e12)
      then format('threshold of %s must be above 0 and below 1e12 (money of the account), not %s', r.kind, r.threshold)
    when r.confirm_ms is null or r.confirm_ms not between 250 and 60000 then 'confirm_ms must be from 250 to 60000'
    when r.close_manual is null or r.enabled is null then 'close_manual and enabled must be true or false'
    when r.time_zone is null or not exists (select 1 from pg_catalog.pg_timezone_names z where z.name = r.time_zone)
      then format('there is no time zone %s: time_zone must be named like Europe/Berlin, America/New_York or UTC',
        left(coalesce(r.time_zone, 'null'), 100)) end;
  if v_what is not null then
    raise exception using errcode = 'TC303', message = 'save_protection_rule: ' || v_what, hint = 'See docs/protocol.md.';
  end if;
end $$;

-- A rule of the caller, locked together with its account's plan: TC106 when there is none.
create function private.own_rule(p_function text, p_rule uuid) returns public.protection_rules
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_rule public.protection_rules;
begin
  perform private.lock_accounts(array(select r.account_id from public.protection_rules r where r.id = p_rule and r.user_id = v_user));
  select * into v_rule from public.protection_rules r where r.id = p_rule and r.user_id = v_user for update;
  if v_rule.id is null then
    raise exception using errcode = 'TC106', message = format('%s: rule %s does not exist or is not yours', p_function, p_rule), hint = 'Check the id.';
  end if;
  return v_rule;
end $$;

-- {"id" of a rule to change, or "account_id" and "kind" of a new one, "threshold", "action", "close_manual", "confirm_ms", "time_zone",
-- "enabled"} -> {"rule_id"}
create function private.save_protection_rule(p_rule jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_old public.protection_rules;
  v_new public.protection_rules;
  v_unknown text;
begin
  if jsonb_typeof(p_rule) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_protection_rule: the rule must be an object', hint = 'See docs/protocol.md.';
  end if;
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(p_rule) k
  where k not in ('id', 'account_id', 'kind', 'threshold', 'action', 'close_manual', 'confirm_ms', 'time_zone', 'enabled');
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_protection_rule: unknown setting: %s', v_unknown),
      hint = 'The settings are account_id, kind, threshold, action, close_manual, confirm_ms, time_zone and enabled.';
  end if;
  if p_rule ? 'threshold' and not coalesce(private.is_number(p_rule -> 'threshold'), false) then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: threshold is not a number', hint = 'Numbers are decimal strings such as "5".';
  end if;
  select format('%s is %s, but must be %s', e.key, left(e.value::text, 100),
    case e.key when 'confirm_ms' then 'a whole number from 250 to 60000' else 'true or false' end) into v_unknown
  from jsonb_each(p_rule) e
  where e.key in ('confirm_ms', 'close_manual', 'enabled') and not pg_input_is_valid(e.value #>> '{}', case e.key when 'confirm_ms' then 'integer' else 'boolean' end)
  limit 1;
  if v_unknown is not null then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: ' || v_unknown, hint = 'See docs/protocol.md.';
  end if;
  if p_rule ? 'id' then
    v_old := private.own_rule('save_protection_rule', private.uuid_of(p_rule, 'id'));
  else
    select a.id into v_old.account_id from public.trading_accounts a
    where a.id = private.uuid_of(p_rule, 'account_id') and a.user_id = v_user and a.removed_at is null;
    if v_old.account_id is null then
      raise exception using errcode = 'TC106', message = format('save_protection_rule: account %s does not exist or is not yours', p_rule ->> 'account_id'),
        hint = 'Check the id.';
    end if;
    perform private.lock_accounts(array[v_old.account_id]);
    v_old.user_id := v_user;
    v_old.action := 'close_all_and_off';
    v_old.close_manual := true;
    v_old.confirm_ms := 250;
    v_old.time_zone := 'UTC';
    v_old.enabled := true;
  end if;
  begin
    v_new := jsonb_populate_record(v_old, p_rule - array['id', 'account_id']);
  exception when data_exception then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: a value is not of its setting''s form: ' || sqlerrm,
      hint = 'Numbers are decimal strings such as "5", confirm_ms is a whole number, close_manual and enabled are true or false.';
  end;
  perform private.refuse_bad_rule(p_rule, v_new);
  perform private.refuse_contradiction(p_rule, v_old, v_new);
  return jsonb_build_object('rule_id', private.put_rule(v_old, v_new));
end $$;

-- Rules that contradict each other, or what the rule is about: both are named.
create function private.refuse_contradiction(p_rule jsonb, p_old public.protection_rules, p_new public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_other numeric;
begin
  if p_old.id is not null and (p_new.kind <> p_old.kind or coalesce(p_rule ->> 'account_id', p_old.account_id::text) <> p_old.account_id::text) then
    raise exception using errcode = 'TC303', message = 'save_protection_rule: kind and account_id of a rule do not change',
      hint = 'Remove the rule and save another.';
  end if;
  if p_old.id is null and exists (select 1 from public.protection_rules r where r.account_id = p_new.account_id and r.kind = p_new.kind) then
    raise exception using errcode = 'TC320', message = format('save_protection_rule: the account already has a rule of kind %s', p_new.kind),
      hint = 'Change that one instead.';
  end if;
  select r.threshold into v_other from public.protection_rules r
  where r.account_id = p_new.account_id and r.kind = case p_new.kind when 'equity_floor' then 'equity_target' when 'equity_target' then 'equity_floor' end;
  if p_new.kind = 'equity_floor' and p_new.threshold >= v_other or p_new.kind = 'equity_target' and p_new.threshold <= v_other then
    raise exception using errcode = 'TC306',
      message = format('save_protection_rule: equity_floor %s is not below equity_target %s',
        case p_new.kind when 'equity_floor' then p_new.threshold else v_other end, case p_new.kind when 'equity_floor' then v_other else p_new.threshold end),
      hint = 'Change one of the two first.';
  end if;
end $$;

-- Stores a rule that was found good. A new one, one that is switched on again and one with another time zone begin to count anew.
create function private.put_rule(p_old public.protection_rules, p_new public.protection_rules) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_new public.protection_rules := p_new;
  v_funds record;
begin
  if p_old.id is null or p_new.enabled and not p_old.enabled or p_new.time_zone <> p_old.time_zone then
    select * into v_funds from private.known_funds(p_new.account_id);
    v_new := private.rearmed(v_new, v_funds.measured_at, v_funds.equity);
  end if;
  v_new.breached_at := null;  -- seen past another limit, perhaps
  v_new.breached_equity := null;
  perform private.refuse_reached('save_protection_rule', v_new);
  if p_old.id is null then
    v_new.id := gen_random_uuid();
    v_new.created_at := clock_timestamp();
    v_new.updated_at := v_new.created_at;
    insert into public.protection_rules select v_new.*;
  else
    update public.protection_rules r set threshold = v_new.threshold, action = v_new.action, close_manual = v_new.close_manual,
      confirm_ms = v_new.confirm_ms, time_zone = v_new.time_zone, enabled = v_new.enabled, day = v_new.day,
      day_start_equity = v_new.day_start_equity, day_start_at = v_new.day_start_at, high_water_mark = v_new.high_water_mark,
      breached_at = null, breached_equity = null, triggered_at = v_new.triggered_at
    where r.id = p_old.id;
  end if;
  return v_new.id;
end $$;

-- {"rule_id"} -> {"rule_id"}
create function private.remove_protection_rule(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('remove_protection_rule', private.uuid_of(p_request, 'rule_id'));
begin
  delete from public.protection_rules where id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id);
end $$;

-- {"rule_id"} -> {"rule_id", "day_start_equity", "high_water_mark"}: the rule is armed again and counts from now: the day's start and the high
-- are the present equity, or the next one that is known. What the rule did to the account stays.
create function private.reset_protection(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('reset_protection', private.uuid_of(p_request, 'rule_id'));
  v_funds record;
begin
  select * into v_funds from private.known_funds(v_rule.account_id);
  v_rule := private.rearmed(v_rule, v_funds.measured_at, v_funds.equity);
  perform private.refuse_reached('reset_protection', v_rule);
  update public.protection_rules r set day = v_rule.day, day_start_equity = v_rule.day_start_equity, day_start_at = v_rule.day_start_at,
    high_water_mark = v_rule.high_water_mark, breached_at = null, breached_equity = null, triggered_at = null
  where r.id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id, 'day_start_equity', v_rule.day_start_equity::text, 'high_water_mark', v_rule.high_water_mark::text);
end $$;

create function public.save_protection_rule(p_rule jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_protection_rule(p_rule) $$;
comment on function public.save_protection_rule(jsonb) is 'Users: makes or changes a protection rule of one of their accounts.';
create function public.remove_protection_rule(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_protection_rule(p_request) $$;
comment on function public.remove_protection_rule(jsonb) is 'Users: removes a protection rule.';
create function public.reset_protection(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.reset_protection(p_request) $$;
comment on function public.reset_protection(jsonb) is 'Users: arms a protection rule again; its day''s start and high-water mark are the present equity.';
revoke all on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb), public.reset_protection(jsonb) from public, anon;
grant execute on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb), public.reset_protection(jsonb),
  private.save_protection_rule(jsonb), private.remove_protection_rule(jsonb), private.reset_protection(jsonb) to authenticated;
