-- report_executions: what came of executions. Reports are facts: accepted late and from any epoch, and planned on.

-- Pause before the next attempt: doubling, capped by p_cap_s and by the setting, with jitter of a quarter.
create function private.retry_delay(p_attempt integer, p_cap_s numeric) returns interval
language plpgsql volatile set search_path = '' as $$
begin
  return make_interval(secs => least(p_cap_s, (private.setting('retry_backoff_max_ms') #>> '{}')::numeric / 1000,
    (private.setting('retry_backoff_ms') #>> '{}')::numeric / 1000 * 2 ^ least(p_attempt - 1, 16)) * (0.75 + random() * 0.5));
end $$;

-- What is wrong with a report as docs/protocol.md describes it; null when nothing is. One expression: every report passes here.
create function private.report_error(r jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(r) is distinct from 'object' then 'the report is not an object'
    when not coalesce(pg_input_is_valid(r ->> 'execution_id', 'bigint'), false) then 'execution_id must be an execution number'
    when not coalesce(pg_input_is_valid(r ->> 'attempt', 'integer'), false) then 'attempt must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'session', 'bigint'), false) then 'session must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'seq', 'bigint'), false) then 'seq must be a whole number'
    when coalesce(jsonb_typeof(r -> 'retryable'), 'null') not in ('null', 'boolean') then 'retryable must be true or false'
    when coalesce(jsonb_typeof(r -> 'adopted'), 'null') not in ('null', 'boolean') then 'adopted must be true or false'
    when coalesce(jsonb_typeof(r -> 'reason'), 'null') not in ('null', 'string') then 'reason must be a text'
    when coalesce(jsonb_typeof(r -> 'message'), 'null') not in ('null', 'string') then 'message must be a text'
    when coalesce(r ->> 'outcome', '') not in ('completed', 'rejected', 'expired', 'cancelled', 'unknown')
      then 'outcome is not one of completed, rejected, expired, cancelled, unknown'
    when not pg_input_is_valid(r ->> 'filled_lots', 'numeric') or (r ->> 'filled_lots')::numeric not between 0 and 1e12
      then 'filled_lots must be a decimal number, not negative'
    when not pg_input_is_valid(r ->> 'price', 'numeric') or (r ->> 'price')::numeric not between 0 and 1e12
      then 'price must be a decimal number, not negative'
    when not coalesce(pg_input_is_valid(r ->> 'received_at', 'timestamptz'), true) then 'received_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'sent_at', 'timestamptz'), true) then 'sent_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'done_at', 'timestamptz'), true) then 'done_at must be a time such as 2026-01-31T12:00:00Z'
    when r ? 'quote' and not private.is_quote(r -> 'quote') then 'quote must be an object with bid and ask above 0'
    when coalesce(jsonb_typeof(r -> 'positions'), 'null') not in ('null', 'array') then 'positions must be an array'
  end;
  if v_error is null and jsonb_typeof(r -> 'positions') = 'array' then
    for p in select value from jsonb_array_elements(r -> 'positions') loop
      v_error := private.position_error(p);
      exit when v_error is not null;
    end loop;
  end if;
  return v_error;
end $$;

-- The ticket that a position goes under now: it may have got another one, or several, before the report of its opening came.
create function private.heir(p_account uuid, p_ticket text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_ticket text := p_ticket;
  v_next text;
begin
  for n in 1 .. 100 loop
    select m.replaced_by into v_next from public.positions m where m.account_id = p_account and m.ticket = v_ticket;
    exit when v_next is null;
    v_ticket := v_next;
  end loop;
  return v_ticket;
end $$;

-- What a broker did, booked to the link of a hedging follower. The mirror has taken the report already and knows best: a report that comes
-- late brings nothing back. A close that found nothing proves nothing by itself: the mirror is asked to be looked at again.
create function private.book_fill(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opens boolean := q.action in ('open', 'increase', 'place');
  v_modified boolean := q.action in ('modify', 'amend');
  v_legs integer;
begin
  if v_opens then
    insert into private.link_legs as g (link_id, account_id, ticket, kind, lots, price)
    select q.link_id, q.account_id, m.ticket, m.kind, m.lots, m.price
    from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    join public.positions o on o.account_id = q.account_id and o.ticket = e ->> 'ticket'
    join public.positions m on m.account_id = q.account_id and m.lots > 0
      and m.ticket = case when o.replaced_by is null then o.ticket else private.heir(q.account_id, o.ticket) end
    where (e ->> 'lots')::numeric > 0
    on conflict (link_id, ticket) do nothing;
    get diagnostics v_legs = row_count;
    if v_legs > 0 and exists (select 1 from private.link_legs g where g.link_id = q.link_id and g.kind = 'position') then
      update public.position_links l set base_master_lots = coalesce(q.master_lots, l.base_master_lots),
        base_lots = least((select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'),
          l.base_lots + coalesce(q.filled_lots, q.lots))  -- what it held beyond its base, another order's second fill, stays beyond it
      where l.id = q.link_id;
    end if;
  end if;
  -- an open whose every position is a new leg leaves nothing to compare
  if not v_opens or v_legs is distinct from jsonb_array_length(nullif(r -> 'positions', 'null')) then
    delete from private.link_legs g using public.positions m
    where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.lots = 0 and m.replaced_by is null;
    if exists (select 1 from private.link_legs g where g.link_id = q.link_id) then
      update private.link_legs g set ticket = m.replaced_by from public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.replaced_by is not null
        and not exists (select 1 from private.link_legs o where o.link_id = g.link_id and o.ticket = m.replaced_by);
      delete from private.link_legs g using public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.lots = 0;
      update private.link_legs g set lots = least(g.lots, m.lots), kind = m.kind, price = m.price from public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.lots > 0
        and (m.lots < g.lots or m.kind <> g.kind);
    end if;
  end if;

  if q.action = 'reduce' and q.status = 'completed' then
    perform private.see_reduction(q.link_id, q.master_lots);
  end if;
  -- refused levels keep their time: other orders say nothing of them, nor do those of the same step for another position of the copy
  update public.position_links l set close_failures = case when v_opens or v_modified then l.close_failures else 0 end,
    modify_failures = case when v_modified then 0 else l.modify_failures end,
    replan_at = case when not v_modified and l.modify_failures between 1 and 2 then l.replan_at end
  where l.id = q.link_id and (l.close_failures > 0 or l.modify_failures > 0)
    and not (v_modified and exists (select 1 from public.trade_execution_queue o where o.step_id = q.step_id and o.status in ('rejected', 'cancelled')));
  if q.status = 'completed' and q.ticket is not null and q.action in ('reduce', 'close', 'cancel')
    and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
  then
    update public.positions m set absent_snapshots = greatest(m.absent_snapshots, 1)
    where m.account_id = q.account_id and m.ticket = q.ticket and m.lots > 0;
    update public.position_links l set close_failures = l.close_failures + 1, replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id and exists (select 1 from private.link_legs g where g.link_id = l.id and g.ticket = q.ticket);
  end if;
end $$;

-- A fill of an execution that is completed already: held by its link, yet beyond what it was to open, so that the planner takes it off again.
create function private.book_filled_again(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_was public.position_links;
begin
  select * into v_was from public.position_links l where l.id = q.link_id;
  perform private.book_fill(q, r, p_now);
  update public.position_links l set base_master_lots = v_was.base_master_lots,
    base_lots = least(l.base_lots, v_was.base_lots + greatest(0, q.lots - coalesce(q.filled_lots, q.lots)))
  where l.id = q.link_id and l.base_lots > v_was.base_lots;
end $$;

-- What nobody waited for any more was opened with the levels of its time. Others may have been asked since, of what the copy held then: NaN, which
-- is never what is wanted, has them asked anew.
create function private.doubt_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set asked_sl = 'NaN', asked_tp = 'NaN'
  where l.id = q.link_id and l.ended_at is null and private.opens(q) and (l.asked_sl, l.asked_tp) is distinct from (q.sl, q.tp);
end $$;

-- An order that came to nothing: an open's link ends with its reason, a close or modify waits for its next time.
create function private.book_failure(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opened bigint[];
  v_modifies boolean := q.action in ('modify', 'amend');
  v_netting boolean := q.parts is not null or exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting');
begin
  if v_netting and (v_modifies or not private.opens(q)) then
    update private.net_ledgers n set failures = n.failures + case when v_modifies then 0 else 1 end,
      modify_failures = n.modify_failures + case when v_modifies then 1 else 0 end,
      replan_at = case when v_modifies and n.modify_failures >= 2 then null else p_now + private.retry_delay(n.failures + n.modify_failures + 1, 30) end
    where n.account_id = q.account_id and n.symbol = q.symbol;
  elsif q.action in ('close', 'reduce', 'cancel') then
    update public.position_links l set close_failures = l.close_failures + 1, replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id;
  elsif v_modifies then
    update public.position_links l set modify_failures = l.modify_failures + 1,
      replan_at = case when l.modify_failures >= 2 then null else p_now + private.retry_delay(l.modify_failures + 2, 30) end
    where l.id = q.link_id;
  end if;
  if q.reason = 'no_money' and private.opens(q) then
    perform private.tell_no_money(q);
  end if;
  perform private.mind_refused_levels(q);
  if q.parts is not null then
    v_opened := array(select (e ->> 'link_id')::bigint from jsonb_array_elements(q.parts) e where (e ->> 'lots')::numeric > 0);
    update public.position_links l set rest_lots = null where l.id = any (v_opened) and l.rest_lots is not null;
  elsif q.action in ('open', 'increase', 'place') then
    v_opened := array[q.link_id];
  end if;
  if q.status in ('rejected', 'expired', 'cancelled') and v_opened is not null then
    update public.position_links l set state = 'ended', reason = q.reason, ended_at = p_now, replan_at = null
    where l.id = any (v_opened) and l.state = 'live' and l.wanted_lots is null
      and not exists (select 1 from private.link_legs g where g.link_id = l.id)
      and not exists (select 1 from public.trade_execution_queue o where o.link_id = l.id and o.finalized_at is null and o.id <> q.id);
    -- a part of it is held: what was not filled is a skipped increase
    update public.position_links l set base_master_lots = coalesce((select (e ->> 'master_lots')::numeric from jsonb_array_elements(q.parts) e
        where (e ->> 'link_id')::bigint = l.id), q.master_lots, l.base_master_lots),
      base_lots = least(l.base_lots, (select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'))
    where l.id = any (v_opened) and l.state = 'live' and exists (select 1 from private.link_legs g where g.link_id = l.id and g.kind = 'position');
  end if;
end $$;

-- A fill that arrives for a link that has ended meanwhile (expired, rejected: the report overrules it): the link lives again.
create function private.revive_link(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'live', ended_at = null, reason = null
  where l.id = q.link_id and l.state = 'ended' and l.reason is distinct from 'released' and private.opens(q);
end $$;

-- Status after a report: final, or on to another attempt. Closes, reductions and SL/TP are tried for ever; opens within their limits.
create function private.next_status(q public.trade_execution_queue, r jsonb, p_now timestamptz, out status text, out reason text, out next_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_opens boolean := private.opens(q);
  v_limit timestamptz;
begin
  reason := coalesce(r ->> 'reason', case when r ->> 'outcome' = 'completed' then null else r ->> 'outcome' end);
  case r ->> 'outcome'
    when 'completed' then
      -- a deal that filled something must show what became of it: until then it is looked for by its tag. What was looked for (adopted)
      -- and shows nothing is not held any more.
      if not coalesce((r ->> 'adopted')::boolean, false) and (q.action in ('open', 'increase', 'place') or q.parts is not null) and (q.action = 'place' or coalesce((r ->> 'filled_lots')::numeric, 0) > 0)
        and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
      then
        status := 'unknown';
      else
        status := 'completed'; reason := null;
      end if;
    when 'unknown' then status := 'unknown';
    when 'cancelled' then status := 'cancelled';
    when 'expired' then
      status := case when v_opens then 'expired' else 'retrying' end;
      next_at := case when q.attempt = 1 then p_now else p_now + private.retry_delay(q.attempt, 5) end;
    when 'rejected' then
      v_limit := case when reason = 'market_closed' then q.retry_until
        else q.queued_at + coalesce((select make_interval(secs => c.max_age_ms / 1000.0) from public.copiers c where c.id = q.copier_id), interval '5 s') end;
      next_at := p_now + private.retry_delay(q.attempt, case when v_opens then 5 else 30 end);
      if v_opens and q.cancel_requested_at is not null then status := 'rejected';  -- asked to be dropped: not tried again
      elsif v_opens and reason in ('no_money', 'invalid_volume') then
        next_at := private.second_attempt_at(q, reason, p_now);
        status := case when next_at is null then 'rejected' else 'retrying' end;
      elsif private.may_mend(q, reason) and p_now <= v_limit then status := 'retrying'; next_at := p_now;
      elsif not coalesce((r ->> 'retryable')::boolean, false) then status := 'rejected';
      elsif v_opens and next_at > v_limit then status := 'expired'; reason := case reason when 'price_changed' then 'slippage' else 'too_old' end;
      elsif q.action in ('modify', 'amend') and q.attempt >= 3 then status := 'rejected';
      else status := 'retrying'; end if;
  end case;
  -- a close of whatever a step left behind has done its work once the step is over: what is held now is closed by ticket
  if q.action = 'close' and q.ticket is null and status in ('retrying', 'rejected') and not exists (
    select 1 from public.trade_execution_queue o where o.step_id = q.after_id and o.finalized_at is null)
  then
    status := 'completed';
    reason := null;
  end if;
  if status <> 'retrying' then next_at := null; end if;
end $$;

-- Whether a VPS may speak of an execution: it works the account, or was given the execution when it did.
create function private.was_given(q public.trade_execution_queue, p_vps uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return q.vps_id = p_vps or exists (select 1 from public.account_vps_assignments a where a.account_id = q.account_id and a.vps_id = p_vps);
end $$;

-- Takes one report; returns its result. Adds to p_links what is to be planned and to p_changes what changed on the account.
create function private.take_report(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb, out link_ids bigint[], out changes jsonb)
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_was public.trade_execution_queue;
  v_account public.trading_accounts;
  n record;
  p jsonb;
  c private.change;
  v_late boolean;
  v_ended boolean;
  v_shown numeric;
begin
  link_ids := '{}';
  changes := '[]';
  result := jsonb_build_object('execution_id', r ->> 'execution_id', 'status', 'refused', 'code', 'TC411', 'error', private.report_error(r));
  if result ->> 'error' is not null then return; end if;
  select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := result || jsonb_build_object('code', 'TC106', 'error', format('execution %s was never given to this VPS', r ->> 'execution_id'));
    return;
  end if;
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then
    result := result || jsonb_build_object('code', 'TC402', 'error', format('session %s was never issued for this account', r ->> 'session'));
    return;
  end if;
  result := jsonb_build_object('execution_id', q.id::text, 'status', 'accepted', 'code', null, 'error', null);

  if q.parts is not null then v_shown := private.mirror_net(q.account_id, q.symbol); end if;
  -- the mirror takes the report's look at the account, whatever becomes of the execution
  for p in
    select value from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
    order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0  -- a ticket that goes on under another one is not gone
  loop
    c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
      coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null, null, p_now);
    if c.applied and (c.type <> 'modified' or q.action = 'modify') then
      changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots, 'price', r -> 'price');
    end if;
  end loop;

  if jsonb_typeof(r -> 'quote') = 'object' then perform private.note_quote(q.account_id, q.symbol, r -> 'quote', p_now); end if;
  v_late := (r ->> 'attempt')::integer < q.attempt;
  if q.status = 'completed' or (q.finalized_at is not null or v_late) and r ->> 'outcome' <> 'completed'
    or (r ->> 'attempt')::integer > q.attempt then
    result := result || jsonb_build_object('status', 'duplicate');
    -- two attempts may both have filled after all: what either opened is held by the link
    if r ->> 'outcome' = 'completed' and v_account.mode = 'hedging' and private.opens(q) and not private.left_to_user(q, r) then
      perform private.revive_link(q);
      perform private.book_filled_again(q, r, p_now);
      perform private.doubt_levels(q);
      link_ids := array[q.link_id];
    elsif r ->> 'outcome' = 'completed' and q.parts is not null then
      link_ids := private.book_second_fill(q, r);
    end if;
    return;
  end if;
  n := private.next_status(q, r, p_now);
  v_was := q;
  update public.trade_execution_queue x set status = n.status, reason = n.reason, message = left(r ->> 'message', 500),
    attempt = case when n.status = 'completed' and q.parts is not null then (r ->> 'attempt')::integer else x.attempt end,
    next_attempt_at = n.next_at, adopted = x.adopted or coalesce((r ->> 'adopted')::boolean, false),
    filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots), fill_price = coalesce((r ->> 'price')::numeric, x.fill_price),
    (point_size, point_money) = (select coalesce(w.size, x.point_size), coalesce(w.money, x.point_money)
      from private.point_worth(v_account.id, v_account.currency, x.symbol, (r ->> 'filled_lots')::numeric) w),
    received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at), sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at),
    done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    finalized_at = case when n.status in ('completed', 'rejected', 'expired', 'cancelled') then p_now end, updated_at = p_now
  where x.id = q.id returning * into q;
  if q.reason = 'invalid_stops' and q.status = 'retrying' then perform private.mend_levels(q, p_now); end if;

  v_ended := exists (select 1 from public.position_links l where l.id = q.link_id and l.state = 'ended');
  if v_ended and private.left_to_user(q, r) then
    null;
  elsif q.status = 'completed' then
    if v_ended and q.parts is null then
      perform private.revive_link(q);
    end if;
    if q.parts is not null then
      perform private.book_fill_of_net(q, v_was, v_late, v_shown, p_now);
      perform private.drop_released_shares(q.parts);
      update private.net_ledgers k set asked_sl = coalesce(q.sl, k.asked_sl), asked_tp = coalesce(q.tp, k.asked_tp), failures = 0,
        replan_at = case when k.modify_failures between 1 and 2 then k.replan_at end
      where k.account_id = q.account_id and k.symbol = q.symbol;
    elsif v_account.mode = 'hedging' then
      perform private.book_fill(q, r, p_now);
      if v_was.finalized_at is not null then perform private.doubt_levels(q); end if;
    else
      update private.net_ledgers k set modify_failures = 0, replan_at = null where k.account_id = q.account_id and k.symbol = q.symbol;
    end if;
  else
    -- a close of several tickets may be refused for one of them: what was done is booked all the same
    if v_account.mode = 'hedging' and q.parts is null and jsonb_typeof(r -> 'positions') = 'array' and jsonb_array_length(r -> 'positions') > 0 then
      perform private.book_fill(q, r, p_now);
    end if;
    if q.status in ('rejected', 'expired', 'cancelled') then
      perform private.book_failure(q, p_now);
      if q.reason = 'fifo' then perform private.exchange_for_oldest(q, p_now); end if;
    end if;
  end if;
  if q.status = 'completed' then perform private.mind_protection(q, r); end if;
  link_ids := array[q.link_id];
  if q.parts is not null then
    link_ids := link_ids || array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint from jsonb_array_elements(q.parts) e);
  end if;
end $$;

-- Puts retries that are due into the hands of agents again, under the next attempt number.
create function private.requeue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_ids bigint[];
begin
  if not exists (select 1 from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= p_now) then return null; end if;
  if private.trading_state() = 'off' then return null; end if;
  perform private.fit_second_attempts(p_accounts, p_now);
  with due as (
    update public.trade_execution_queue q set status = 'queued', attempt = q.attempt + 1, next_attempt_at = null, offered_at = null, updated_at = p_now
    where q.status = 'retrying' and q.next_attempt_at <= p_now and q.account_id = any (p_accounts)
    returning q.id
  )
  select array_agg(id) into v_ids from due;
  return v_ids;
end $$;

-- Records what reports changed on an account that is itself a master, as events, and plans on them.
create function private.plan_changes(p_account uuid, p_changes jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_change jsonb;
  v_id bigint;
  v_events bigint[] := '{}';
  v_tickets text[] := '{}';
  v_types text[] := '{}';
  v_new bigint[];
begin
  if not exists (select 1 from public.copiers c where c.master_account_id = p_account and c.removed_at is null) then return null; end if;
  select * into v_account from public.trading_accounts where id = p_account;
  for v_change in select value from jsonb_array_elements(p_changes) loop
    v_id := nextval('public.trade_events_id_seq');
    perform private.record_event(v_account, v_id, jsonb_build_object('detected_at', p_now, 'unchanged_at', p_now,
      'deal_price', v_change -> 'price'), 'report', v_change ->> 'type',
      'accepted', null, null, v_change -> 'position', (v_change ->> 'previous_lots')::numeric, v_change -> 'position');
    update public.positions set last_event_id = v_id, detected_at = p_now
    where account_id = p_account and ticket = v_change #>> '{position,ticket}';
    v_events := v_events || v_id;
    v_tickets := v_tickets || (v_change #>> '{position,ticket}');
    v_types := v_types || (v_change ->> 'type');
    if private.order_filled_into(v_change -> 'position', (v_change ->> 'previous_lots')::numeric) then
      v_events := v_events || v_id;
      v_tickets := v_tickets || (v_change #>> '{position,replaces}');
      v_types := v_types || (v_change ->> 'type');
    end if;
  end loop;
  if cardinality(v_tickets) = 0 then return null; end if;
  v_new := private.plan(private.links_of_tickets(p_account, v_tickets), array_fill(p_account, array[cardinality(v_tickets)]), v_tickets, null, p_now);
  perform private.explain_rest(p_account, v_events, v_types, v_tickets);
  return v_new;
end $$;

-- Takes reports and plans; the whole answer. p_apart: each by itself, because something among them made the planner fail (49_apart.sql).
create function private.take_reports(p_vps uuid, p_reports jsonb, p_accounts uuid[], p_apart boolean, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_taken_at_once bigint[] := '{}';
  v_report jsonb;
  v_number bigint;
  v_taken record;
  v_results jsonb := '[]';
  v_links bigint[] := '{}';
  v_changes jsonb := '{}';
  v_account text;
  v_new bigint[] := '{}';
begin
  if not p_apart and p_reports @> '[{"outcome": "completed"}]' then
    select coalesce(u.taken, '{}'), coalesce(u.results, '[]'), coalesce(u.link_ids, '{}') into v_taken_at_once, v_results, v_links
    from private.take_usual_reports(p_vps, p_reports, p_now) u;
  end if;
  for v_report, v_number in
    select value, ordinality from jsonb_array_elements(case when cardinality(v_taken_at_once) < jsonb_array_length(p_reports) then p_reports else '[]' end)
      with ordinality
    where ordinality <> all (v_taken_at_once)
  loop
    if p_apart then
      v_taken := private.take_report_apart(p_vps, v_report, p_now);
      v_new := v_new || v_taken.executions;
    else
      v_taken := private.take_report(p_vps, v_report, p_now);
      v_links := v_links || v_taken.link_ids;
      if v_taken.changes <> '[]' then
        v_account := v_report ->> 'account_id';
        v_changes := v_changes || jsonb_build_object(v_account, coalesce(v_changes -> v_account, '[]') || v_taken.changes);
      end if;
    end if;
    -- results stand in the order of the reports; those taken at once and not yet passed come later than this one
    v_results := jsonb_insert(v_results, array[(v_number - 1)::text], v_taken.result);
  end loop;
  if p_apart then
    v_new := v_new || private.requeue_apart(p_accounts, p_now);
    return jsonb_build_object('results', v_results, 'executions', private.offer_apart(v_new, p_vps, clock_timestamp()),
      'server_time', private.rfc3339(clock_timestamp()));
  end if;
  v_new := coalesce(private.plan_again(private.settle(v_links, p_now), p_now), '{}') || coalesce(private.requeue(p_accounts, p_now), '{}');
  if v_changes <> '{}' then
    for v_account in select jsonb_object_keys(v_changes) loop
      v_new := v_new || coalesce(private.plan_changes(v_account::uuid, v_changes -> v_account, p_now), '{}');
    end loop;
  end if;
  return jsonb_build_object('results', v_results, 'executions', private.offer(v_new, p_vps, clock_timestamp()),
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

create function private.report_executions(p_reports jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
  v_accounts uuid[];
begin
  if pg_column_size(p_reports) > 150000 and octet_length(p_reports::text) > 1000000 then  -- a character is six of its text at most
    raise exception using errcode = 'TC002', message = 'report_executions: the payload is over 1 MB', hint = 'Send fewer reports in one call.';
  end if;
  if jsonb_typeof(p_reports -> 'reports') is distinct from 'array' then
    raise exception using errcode = 'TC001', message = 'report_executions: the array "reports" is missing', hint = 'See docs/protocol.md.';
  end if;
  v_accounts := array(
    select (e ->> 'account_id')::uuid from jsonb_array_elements(p_reports -> 'reports') e where pg_input_is_valid(e ->> 'account_id', 'uuid'));
  v_now := private.lock_with_followers(v_accounts);
  begin
    return private.take_reports(v_vps, p_reports -> 'reports', v_accounts, false, v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'report_executions: one by one, for %: %', sqlstate, sqlerrm;
  end;
  return private.take_reports(v_vps, p_reports -> 'reports', v_accounts, true, v_now);
end $$;

create function public.report_executions(p_reports jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.report_executions(p_reports) $$;
comment on function public.report_executions(jsonb) is
  'What came of executions, from the agent that was given them; late reports count as well (docs/protocol.md).';
revoke all on function public.report_executions(jsonb) from public, anon;
grant execute on function public.report_executions(jsonb) to authenticated;
grant execute on function private.report_executions(jsonb) to authenticated;
