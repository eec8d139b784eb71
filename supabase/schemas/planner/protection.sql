-- Protection: every report of an account's funds is checked against its rules. A limit that two reports have reached
-- triggers the rule's action. Unknown or late funds do not count: they neither trigger a rule nor rearm it.

-- The rule, measuring from now: the day's start or the high-water mark is this figure (null: the next that is known),
-- and nothing is triggered.
create function private.rearmed(r public.protection_rules, p_at timestamptz, p_equity numeric,
  p_balance numeric) returns public.protection_rules
language plpgsql stable set search_path = '' as $$
declare
  v_day date := private.rule_day(r, clock_timestamp());
begin
  r.day := null;
  r.day_start_equity := null;
  r.day_start_at := null;
  r.high_water_mark := null;
  r.breached_at := null;
  r.breached_equity := null;
  r.triggered_at := null;
  if p_equity is not null and r.kind in ('daily_loss', 'daily_profit') then
    r.day := v_day;
    r.day_start_equity := case r.basis when 'equity' then p_equity when 'balance' then p_balance
      else greatest(p_equity, p_balance) end;
    r.day_start_at := p_at;
  elsif p_equity is not null and r.kind = 'trailing_drawdown' then
    r.high_water_mark := case r.moves_with when 'day_end_balance' then p_balance else p_equity end;
    r.day_start_at := p_at;
    r.day := case when r.moves_with = 'day_end_balance' then v_day end;
  end if;
  return r;
end $$;

-- A high-water mark that begins: with a fixed allowance it is never below the initial balance.
create function private.first_high(r public.protection_rules, p_figure numeric, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case when private.rule_of(r) in ('initial', 'amount') then greatest(p_figure, p_initial) else p_figure end;
end $$;

-- The rule after the look's time has moved its day and its high-water mark.
create function private.moved_on(r public.protection_rules, p_look private.look, p_before private.look,
  p_initial numeric) returns public.protection_rules
language plpgsql stable set search_path = '' as $$
declare
  v_day date := private.rule_day(r, p_look.at);
  -- The last figures before the day began, if the account was seen on both sides of that time: the first ones after it
  -- may be a tick of the rollover.
  v_at_end private.look := case when r.day is not null
    and p_look.at - p_before.at <= private.setting_s('funds_max_age_s') then p_before else p_look end;
begin
  if r.kind in ('daily_loss', 'daily_profit') and (r.day is null or v_day > r.day) then
    r := private.rearmed(r, v_at_end.at, v_at_end.equity, v_at_end.balance);
    r.day := v_day;
  elsif r.kind = 'trailing_drawdown' and r.moves_with = 'day_end_balance' then
    if r.high_water_mark is null then
      r.high_water_mark := private.first_high(r, coalesce(p_before.balance, p_look.balance), p_initial);
      r.day_start_at := coalesce(p_before.at, p_look.at);
    elsif v_day > r.day then
      r.high_water_mark := greatest(r.high_water_mark, v_at_end.balance);
    end if;
    r.day := greatest(r.day, v_day);
  elsif r.kind = 'trailing_drawdown' then
    if r.high_water_mark is null then
      r.high_water_mark := private.first_high(r, p_look.equity, p_initial);
      r.day_start_at := p_look.at;
    -- a high counts when two consecutive looks have reached it; not confirm_ms apart, because looks a second apart
    -- would then never make one
    elsif p_look.at - p_before.at >= interval '250 ms' then
      r.high_water_mark := greatest(r.high_water_mark, least(p_look.equity, p_before.equity));
    end if;
  end if;
  return r;
end $$;

-- One look. Returns the rule after it and the verdict: null (not past the limit), first, waiting (too soon after the
-- first), contradicted, confirmed; and whether to warn that much of the allowance is used. p_before: the account's
-- previous look.
create function private.judge_rule(
  inout r public.protection_rules, p_look private.look, p_before private.look, p_initial numeric,
  out verdict text, out warns boolean
) language plpgsql stable set search_path = '' as $$
declare
  v_reached boolean;
  v_warn_at numeric;
begin
  r := private.moved_on(r, p_look, p_before, p_initial);
  v_reached := private.limit_reached(r, p_initial, p_look.equity, p_look.margin);
  if r.triggered_at is not null or v_reached is null then
    return;
  end if;
  if r.warn_percent > 0 and r.warned_day is distinct from private.rule_day(r, p_look.at) then
    v_warn_at := private.limit_at(r, p_initial, r.warn_percent);
    warns := private.value_reached(r, v_warn_at, p_look.equity, p_look.margin)
      and private.value_reached(r, v_warn_at, p_before.equity, p_before.margin);
    if warns then r.warned_day := private.rule_day(r, p_look.at); end if;
  end if;
  if not v_reached then
    if r.breached_at is not null then
      verdict := 'contradicted';
    end if;
    r.breached_at := null;
    r.breached_equity := null;
  elsif r.breached_at is null then
    verdict := 'first';
    r.breached_at := p_look.at;
    r.breached_equity := p_look.equity;
  elsif p_look.at - r.breached_at < make_interval(secs => r.confirm_ms / 1000.0) then
    verdict := 'waiting';
  else
    verdict := 'confirmed';
  end if;
end $$;

-- Carries out a rule whose limit two looks have reached. The caller holds the plan locks of the account and its
-- neighbours.
create function private.trigger_rule(r public.protection_rules, p_initial numeric, p_look private.look,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_action text := private.rule_action(r);
begin
  update public.protection_rules set triggered_at = p_look.at where id = r.id;
  perform private.raise_alert(r.account_id, 'protection', r.kind,
    case v_action when 'notify' then 'warning' else 'critical' end,
    private.protection_message(r, (select a.currency from public.trading_accounts a where a.id = r.account_id),
      p_initial, p_look),
    jsonb_build_object('rule_id', r.id, 'action', v_action, 'threshold', r.threshold::text, 'limit',
      private.rule_limit(r, p_initial)::text,
      'looks', jsonb_build_array(
        jsonb_build_object('at', private.rfc3339(r.breached_at), 'equity', r.breached_equity::text),
        jsonb_build_object('at', private.rfc3339(p_look.at), 'equity', p_look.equity::text, 'margin',
          p_look.margin::text))));
  case v_action
    when 'notify' then null;
    when 'monitor' then perform private.stop_opening(r.account_id, r.kind, p_now);
    when 'close_all' then perform private.start_flattening(r.account_id, r.close_manual, null, r.kind, p_now);
    when 'close_all_until_next_day' then perform private.stop_until_next_day(r, p_look.at, p_now);
    when 'close_all_and_off' then perform private.start_flattening(r.account_id, r.close_manual, 'off', r.kind, p_now);
  end case;
end $$;

-- Checks an account's funds against its rules, before the account's own row is updated. Returns the milliseconds after
-- which the funds must be read again; null: at the usual pace. Figures of another session, or older than what is known,
-- are not a look.
-- p_moved: balance operations that these figures contain and the last ones did not.
create function private.check_protection(p_vps uuid, p_account uuid, p_session bigint, p_look private.look,
  p_moved numeric) returns integer
language plpgsql security definer set search_path = '' as $$
declare
  v_before private.look;
  v_initial numeric;
  v_rule public.protection_rules;
  v_look record;
  v_now timestamptz;
  v_again integer;
begin
  -- Plan locks come before every row lock of this transaction, and only a second look or a new day can need them.
  if exists (
    select 1 from public.protection_rules r
    where r.account_id = p_account and r.enabled and r.breached_at is not null and r.triggered_at is null)
    or exists (select 1 from public.trading_accounts a where a.id = p_account and a.resumes_at <= p_look.at)
  then
    v_now := private.lock_accounts(private.with_neighbours(p_account));
  end if;
  select a.funds_at, a.equity + p_moved, a.balance + p_moved, a.margin into v_before from public.trading_accounts a
  where a.id = p_account and a.session = p_session and a.session_vps_id = p_vps and a.removed_at is null
    and p_look.at >= coalesce(a.funds_at, '-infinity');
  if not found or p_look.at < clock_timestamp() - private.setting_s('protection_max_age_s') then
    return null;
  end if;
  if v_now is not null then
    perform private.resume_account(p_account, p_look.at, v_now);
  end if;
  for v_rule in
    -- The mildest action first: rules of one kind share an alert, and the last one's message stands.
    select * from public.protection_rules r where r.account_id = p_account and r.enabled
    order by array_position(array['notify', 'monitor', 'close_all', 'close_all_until_next_day', 'close_all_and_off'],
      private.rule_action(r)), r.id
    for no key update
  loop
    v_initial := private.initial_for(v_rule, p_look.balance);
    select * into v_look from private.judge_rule(v_rule, p_look, v_before, v_initial);
    if v_look.verdict = 'confirmed' and v_now is null then  -- another call made the first look meanwhile
      v_look.verdict := 'waiting';
    end if;
    perform private.keep_look(v_rule, v_look.r, v_look.verdict, v_initial, p_look);
    if v_look.verdict = 'confirmed' then
      perform private.trigger_rule(v_look.r, v_initial, p_look, v_now);
    elsif v_look.warns then
      perform private.warn_of_rule(v_look.r, v_initial, p_look);
    end if;
    if v_look.verdict in ('first', 'waiting') then
      v_again := least(v_again, (v_look.r).confirm_ms + 10);
    end if;
  end loop;
  return v_again;
end $$;

-- Stores the rule after a look, and the look itself if it was past the limit or contradicted the one before.
create function private.keep_look(p_old public.protection_rules, p_new public.protection_rules, p_verdict text,
  p_initial numeric, p_look private.look) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_old is distinct from p_new then
    update public.protection_rules r set day = p_new.day, day_start_equity = p_new.day_start_equity,
      day_start_at = p_new.day_start_at, warned_day = p_new.warned_day,
      high_water_mark = p_new.high_water_mark, breached_at = p_new.breached_at, breached_equity = p_new.breached_equity
    where r.id = p_old.id;
    if p_old.triggered_at is distinct from p_new.triggered_at then
      update public.protection_rules r set triggered_at = p_new.triggered_at where r.id = p_old.id;
    end if;
  end if;
  if p_verdict in ('first', 'contradicted', 'confirmed') then
    insert into public.protection_looks (rule_id, user_id, account_id, kind, at, equity, margin, reached, outcome)
    values (p_old.id, p_old.user_id, p_old.account_id, p_old.kind, p_look.at, p_look.equity, p_look.margin,
      private.rule_limit(p_new, p_initial), p_verdict);
  end if;
end $$;
