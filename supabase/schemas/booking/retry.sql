-- What follows a report: the execution's next status, and whether it is queued again.

-- Status after a report: final, or another attempt. Closes, reductions and level changes are retried without end; opens
-- within their limits.
create function private.next_status(q public.trade_execution_queue, r jsonb, p_now timestamptz, out status text,
  out reason text, out next_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_opens boolean := private.opens(q);
  v_limit timestamptz;
begin
  reason := coalesce(r ->> 'reason', case when r ->> 'outcome' = 'completed' then null else r ->> 'outcome' end);
  case r ->> 'outcome'
    when 'completed' then
      -- a deal that filled something must show the result: until then it is looked for by its tag. A deal that was
      -- looked for (adopted) and shows nothing is no longer held.
      if not coalesce((r ->> 'adopted')::boolean, false)
        and (q.action in ('open', 'increase', 'place') or q.parts is not null)
        and (q.action = 'place' or coalesce((r ->> 'filled_lots')::numeric, 0) > 0)
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
        else q.queued_at + coalesce((select make_interval(secs => c.max_age_ms / 1000.0) from public.copiers c
          where c.id = q.copier_id), interval '5 s') end;
      next_at := p_now + private.retry_delay(q.attempt, case when v_opens then 5 else 30 end);
      -- it was asked to be dropped: not retried
      if v_opens and q.cancel_requested_at is not null then status := 'rejected';
      elsif v_opens and reason in ('no_money', 'invalid_volume') then
        next_at := private.second_attempt_at(q, reason, p_now);
        status := case when next_at is null then 'rejected' else 'retrying' end;
      elsif private.may_adjust_levels(q, reason) and p_now <= v_limit then status := 'retrying'; next_at := p_now;
      elsif not coalesce((r ->> 'retryable')::boolean, false) then status := 'rejected';
      elsif v_opens and next_at > v_limit then status := 'expired'; reason := case reason
        when 'price_changed' then 'slippage' else 'too_old' end;
      elsif q.action in ('modify', 'amend') and q.attempt >= 3 then status := 'rejected';
      else status := 'retrying'; end if;
  end case;
  -- a close of whatever a step left behind has done its work once the step is over; what is held now is closed by
  -- ticket
  if q.action = 'close' and q.ticket is null and status in ('retrying', 'rejected') and not exists (
    select 1 from public.trade_execution_queue o where o.step_id = q.after_id and o.finalized_at is null)
  then
    status := 'completed';
    reason := null;
  end if;
  if status <> 'retrying' then next_at := null; end if;
end $$;

-- Opens that wait for another attempt end here if the time forbids them now; changes of levels wait on, if
-- their account asks for it. Those of netting symbols are taken apart
-- by plan_net.
create function private.end_barred_opens(p_accounts uuid[], p_now timestamptz) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
begin
  if not private.any_quiet(p_now) and not exists (select 1 from public.trading_accounts a
    where a.id = any (p_accounts) and private.must_be_flat(a, p_now)) then
    return;
  end if;
  for q in
    with barred as materialized (
      select x.id, private.time_refusal(x.account_id, x.symbol, coalesce(m.symbol, x.symbol), p_now) as reason
      from public.trade_execution_queue x
      left join public.position_links l on l.id = x.link_id
      left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
        and m.kind = l.master_kind
      where x.status = 'retrying' and x.next_attempt_at <= p_now and x.account_id = any (p_accounts)
        and x.parts is null and private.opens(x)
    )
    update public.trade_execution_queue x set status = 'cancelled', reason = b.reason, next_attempt_at = null,
      finalized_at = p_now, updated_at = p_now
    from barred b where x.id = b.id and b.reason is not null
    returning x.*
  loop
    perform private.book_failure(q, p_now);
  end loop;
  update public.trade_execution_queue x set next_attempt_at = h.until, updated_at = p_now
  from (
    select y.id, private.levels_wait_until(a, y.symbol, y.symbol, p_now) as until
    from public.trade_execution_queue y
    join public.trading_accounts a on a.id = y.account_id and a.quiet_levels_wait
    where y.status = 'retrying' and y.next_attempt_at <= p_now and y.account_id = any (p_accounts)
      and y.action in ('modify', 'amend')
    offset 0
  ) h where x.id = h.id and h.until is not null;
end $$;

-- Queues retries that are due again, under the next attempt number.
create function private.requeue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_ids bigint[];
begin
  if not exists (select 1 from public.trade_execution_queue q
    where q.status = 'retrying' and q.next_attempt_at <= p_now) then
    return null;
  end if;
  if private.trading_state() = 'off' then return null; end if;
  perform private.end_barred_opens(p_accounts, p_now);
  perform private.fit_second_attempts(p_accounts, p_now);
  with due as (
    update public.trade_execution_queue q set status = 'queued', attempt = q.attempt + 1, next_attempt_at = null,
      offered_at = null, planned_at = clock_timestamp(), received_at = null, sent_at = null, done_at = null,
      updated_at = p_now
    where q.status = 'retrying' and q.next_attempt_at <= p_now and q.account_id = any (p_accounts)
    returning q.id
  )
  select array_agg(id) into v_ids from due;
  return v_ids;
end $$;
