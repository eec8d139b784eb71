-- Protection: every report of an account's funds is checked against its rules. A limit that two reports have reached
-- triggers the rule's action. Unknown or late funds do not count: they neither trigger a rule nor rearm it.

-- The value that equity (max_margin_use: the percentage) is compared with; null while it is not known.
create function private.rule_limit(r public.protection_rules) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'daily_loss' then trim_scale(r.day_start_equity * (100 - r.threshold) / 100)
    when 'trailing_drawdown' then trim_scale(r.high_water_mark * (100 - r.threshold) / 100)
    else trim_scale(r.threshold) end;
end $$;

-- Whether these figures have reached the rule's limit; null if a needed figure is unknown. It multiplies instead of
-- dividing, so the comparison is exact.
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

-- The rule, measuring from now: the day's start or the high-water mark is this equity (null: the next that is known),
-- and nothing is triggered.
create function private.rearmed(r public.protection_rules, p_at timestamptz,
  p_equity numeric) returns public.protection_rules
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

-- One look. Returns the rule after it and the verdict: null (not past the limit), first, waiting (too soon after the
-- first), contradicted, confirmed. p_before: the account's previous look.
create function private.judge_rule(
  inout r public.protection_rules, p_at timestamptz, p_equity numeric, p_margin numeric, p_before_at timestamptz,
    p_before_equity numeric,
  out verdict text
) language plpgsql stable set search_path = '' as $$
declare
  v_day date := (p_at at time zone r.time_zone)::date;
  v_reached boolean;
begin
  if r.kind = 'daily_loss' and (r.day is null or v_day > r.day) then
    -- The last equity before midnight, if the account was seen on both sides of it: the first one after midnight may be
    -- a tick of the rollover.
    if r.day is not null and p_at - p_before_at <= private.setting_s('funds_max_age_s') then
      r := private.rearmed(r, p_before_at, p_before_equity);
    else
      r := private.rearmed(r, p_at, p_equity);
    end if;
    r.day := v_day;
  elsif r.kind = 'trailing_drawdown' then
    if r.high_water_mark is null then
      r.high_water_mark := p_equity;
    -- a high counts when two consecutive looks have reached it; not confirm_ms apart, because looks a second apart
    -- would then never make one
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

-- From now on copying into the account only closes; a stricter state is kept. The caller holds its plan lock. Opens
-- that wait for another attempt or for an agent end here, because they are not handed out.
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
    update public.trade_execution_queue x set status = 'cancelled', reason = 'account_protected',
      next_attempt_at = null, finalized_at = p_now,
      updated_at = p_now
    where x.account_id = p_account and x.in_flight
      and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null) and private.opens(x)
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id || array(select (e ->> 'link_id')::bigint
      from jsonb_array_elements(coalesce(q.parts, '[]')) e);
  end loop;
  update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
  where x.account_id = p_account and x.in_flight and private.opens(x) and x.cancel_requested_at is null;
  if cardinality(v_links) > 0 then
    perform private.offer(private.plan_again(array_remove(v_links, null), p_now), null, clock_timestamp());
  end if;
end $$;

-- The message of a rule, for people.
create function private.protection_message(r public.protection_rules, p_currency text, p_equity numeric,
  p_margin numeric) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_limit text := private.rule_limit(r)::text;
begin
  return case r.kind
      when 'daily_loss' then
        format('Daily loss: equity is %s %s, the limit is %s (%s %% under the %s of the day''s start).', p_equity,
        p_currency, v_limit, trim_scale(r.threshold), r.day_start_equity)
      when 'trailing_drawdown'
        then format('Trailing drawdown: equity is %s %s, the limit is %s (%s %% under the high of %s).', p_equity,
        p_currency, v_limit, trim_scale(r.threshold), r.high_water_mark)
      when 'equity_floor' then format('Equity floor: equity is %s %s, the floor is %s.', p_equity, p_currency, v_limit)
      when 'equity_target' then format('Equity target: equity is %s %s, the target is %s.', p_equity, p_currency,
        v_limit)
      else format('Margin use: %s %s of margin at %s of equity have reached %s %%.', p_margin, p_currency, p_equity,
        v_limit) end
    || case r.action
      when 'notify' then ' Nothing was changed.'
      when 'monitor' then ' Nothing is opened on the account any more; closes go on. Switch it on again when you want '
        'to go on.'
      when 'close_all' then ' Everything on the account is being closed; when it is flat, copying goes on as before.'
      else ' Everything on the account is being closed, then it is off. Switch it on again when you want to go on.' end
    || case r.kind when 'daily_loss' then ' The rule watches again from the next day''s start, or once it is reset.'
      else ' The rule watches again once it is reset.' end;
end $$;

-- Carries out a rule whose limit two looks have reached. The caller holds the plan locks of the account and its
-- neighbours.
create function private.trigger_rule(r public.protection_rules, p_at timestamptz, p_equity numeric, p_margin numeric,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.protection_rules set triggered_at = p_at where id = r.id;
  perform private.raise_alert(r.account_id, 'protection', r.kind,
    case r.action when 'notify' then 'warning' else 'critical' end,
    private.protection_message(r, (select a.currency from public.trading_accounts a where a.id = r.account_id),
      p_equity, p_margin),
    jsonb_build_object('rule_id', r.id, 'action', r.action, 'threshold', r.threshold::text, 'limit',
      private.rule_limit(r)::text,
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

-- Checks an account's funds against its rules, before the account's own row is updated. Returns the milliseconds after
-- which the funds must be read again; null: at the usual pace. Figures of another session, or older than what is known,
-- are not a look.
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
  -- Plan locks come before every row lock of this transaction, and only a second look can need them.
  if exists (
    select 1 from public.protection_rules r
    where r.account_id = p_account and r.enabled and r.breached_at is not null and r.triggered_at is null)
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
    -- The mildest action first: rules of one kind share an alert, and the last one's message stands.
    select * from public.protection_rules r where r.account_id = p_account and r.enabled
    order by array_position(array['notify', 'monitor', 'close_all', 'close_all_and_off'], r.action), r.id
    for no key update
  loop
    select * into v_look from private.judge_rule(v_rule, p_at, p_equity, p_margin, v_before.funds_at, v_before.equity);
    if v_look.verdict = 'confirmed' and v_now is null then  -- another call made the first look meanwhile
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

-- Stores the rule after a look, and the look itself if it was past the limit or contradicted the one before.
create function private.keep_look(
  p_old public.protection_rules, p_new public.protection_rules, p_verdict text, p_at timestamptz, p_equity numeric,
    p_margin numeric
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_old is distinct from p_new then
    update public.protection_rules r set day = p_new.day, day_start_equity = p_new.day_start_equity,
      day_start_at = p_new.day_start_at,
      high_water_mark = p_new.high_water_mark, breached_at = p_new.breached_at, breached_equity = p_new.breached_equity
    where r.id = p_old.id;
    if p_old.triggered_at is distinct from p_new.triggered_at then
      update public.protection_rules r set triggered_at = p_new.triggered_at where r.id = p_old.id;
    end if;
  end if;
  if p_verdict in ('first', 'contradicted', 'confirmed') then
    insert into public.protection_looks (rule_id, user_id, account_id, kind, at, equity, margin, reached, outcome)
    values (p_old.id, p_old.user_id, p_old.account_id, p_old.kind, p_at, p_equity, p_margin, private.rule_limit(p_new),
      p_verdict);
  end if;
end $$;

-- A follower's broker closed a position for lack of margin: its copy ends, nothing more is opened there, and its user
-- gets an alert. Called with the event before it is planned, while the links still know what they held.
create function private.note_stop_out(p_account public.trading_accounts, p_position jsonb, p_lots numeric,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follows boolean := exists (select 1 from public.copiers c
    where c.follower_account_id = p_account.id and c.removed_at is null);
begin
  update public.position_links l set stopped_out = true
  where l.ended_at is null and l.id = any (array(
    select g.link_id from private.link_legs g
    where g.account_id = p_account.id and g.ticket in (p_position ->> 'ticket', p_position ->> 'symbol')
      and (g.ticket <> p_position ->> 'ticket' or g.ticket_kind = p_position ->> 'kind')));
  if v_follows then
    perform private.stop_opening(p_account.id, 'stop_out', p_now);
  end if;
  perform private.raise_alert(p_account.id, 'stop_out', 'stop_out', 'critical',
    format('Stop-out: the broker of %s closed %s %s %s for lack of margin.', p_account.name, p_position ->> 'side',
      trim_scale(p_lots),
      p_position ->> 'symbol')
    || case when v_follows then ' Nothing is opened there any more and the copy stays closed; closes go on.'
      || ' Add funds or copy smaller, then switch the account on again.' else ' Add funds or reduce what is held.' end,
    jsonb_build_object('ticket', p_position ->> 'ticket', 'symbol', p_position ->> 'symbol', 'side',
      p_position ->> 'side', 'lots', p_lots::text));
end $$;
