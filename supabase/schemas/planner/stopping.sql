-- How a protection rule or a stop-out stops an account, for good or until the next day.

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
  -- what was stopped until the next day now stays stopped
  update public.trading_accounts a set copy_state_reason = p_reason, resumes_at = null
  where a.id = p_account and a.resumes_at is not null;
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

-- Flattens the account and opens nothing until the rule's day is over; resume_accounts() then switches it on again. An
-- account that was not on stays as it was. The caller holds the plan locks of the account and its neighbours.
create function private.stop_until_next_day(r public.protection_rules, p_at timestamptz, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_until timestamptz;
  v_was_on boolean;
begin
  select a.resumes_at, a.resumes_at is not null or a.copy_state = 'on'
    or a.copy_state = 'flattening' and a.flatten_then = 'on'
  into v_until, v_was_on from public.trading_accounts a where a.id = r.account_id;
  perform private.start_flattening(r.account_id, r.close_manual, case when v_was_on then 'monitor' end, r.kind, p_now);
  update public.trading_accounts a set resumes_at = greatest(v_until, private.rule_day_ends(r, p_at))
  where a.id = r.account_id and v_was_on and a.flatten_then = 'monitor';
end $$;

-- Switches an account on whose rule stopped it until this time. The caller holds the plan locks of the account and its
-- neighbours.
create function private.resume_account(p_account uuid, p_at timestamptz, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_copier uuid;
begin
  update public.trading_accounts a set resumes_at = null,
    copy_state = case a.copy_state when 'monitor' then 'on' else a.copy_state end,
    flatten_then = case a.copy_state when 'flattening' then 'on' else a.flatten_then end,
    copy_state_reason = case a.copy_state when 'monitor' then null else a.copy_state_reason end
  where a.id = p_account and a.resumes_at <= p_at;
  if not found then return; end if;
  for v_copier in select c.id from public.copiers c
    where c.follower_account_id = p_account and c.removed_at is null loop
    perform private.replan_copier(v_copier, p_now);
  end loop;
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
