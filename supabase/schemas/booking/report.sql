-- Booking of execution reports. Reports are facts: they are accepted late and from any epoch, and then planned.

-- What is wrong with a report, compared with docs/protocol.md; null: nothing is. One expression, because every report
-- is checked here.
create function private.report_error(r jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(r) is distinct from 'object' then 'the report is not an object'
    when not coalesce(pg_input_is_valid(r ->> 'execution_id', 'bigint'), false)
      then 'execution_id must be an execution number'
    when not coalesce(pg_input_is_valid(r ->> 'attempt', 'integer'), false) then 'attempt must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'session', 'bigint'), false) then 'session must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'seq', 'bigint'), false) then 'seq must be a whole number'
    when coalesce(jsonb_typeof(r -> 'retryable'), 'null') not in ('null', 'boolean')
      then 'retryable must be true or false'
    when coalesce(jsonb_typeof(r -> 'adopted'), 'null') not in ('null', 'boolean') then 'adopted must be true or false'
    when coalesce(jsonb_typeof(r -> 'reason'), 'null') not in ('null', 'string') then 'reason must be a text'
    when coalesce(jsonb_typeof(r -> 'message'), 'null') not in ('null', 'string') then 'message must be a text'
    when coalesce(r ->> 'outcome', '') not in ('completed', 'rejected', 'expired', 'cancelled', 'unknown')
      then 'outcome is not one of completed, rejected, expired, cancelled, unknown'
    when not pg_input_is_valid(r ->> 'filled_lots', 'numeric') or (r ->> 'filled_lots')::numeric not between 0 and 1e12
      then 'filled_lots must be a decimal number, not negative'
    when not pg_input_is_valid(r ->> 'price', 'numeric') or (r ->> 'price')::numeric not between -1e12 and 1e12
      then 'price must be a decimal number between -1e12 and 1e12'
    when not coalesce(pg_input_is_valid(r ->> 'received_at', 'timestamptz'), true)
      then 'received_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'sent_at', 'timestamptz'), true)
      then 'sent_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'done_at', 'timestamptz'), true)
      then 'done_at must be a time such as 2026-01-31T12:00:00Z'
    when r ? 'quote' and not private.is_quote(r -> 'quote') then 'quote must be an object with the numbers bid and ask'
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

-- When the database had planned the execution, as its message said. It is only a figure: a report whose other fields
-- can be read is never refused for it.
create function private.planned_at_of(r jsonb) returns timestamptz
language plpgsql stable set search_path = '' as $$
begin
  return case when pg_input_is_valid(r ->> 'planned_at', 'timestamptz') then (r ->> 'planned_at')::timestamptz end;
end $$;

-- Whether a VPS may report on an execution: it works the account, or was handed the execution when it did.
create function private.was_given(q public.trade_execution_queue, p_vps uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return q.vps_id = p_vps or exists (select 1 from public.account_vps_assignments a
    where a.account_id = q.account_id and a.vps_id = p_vps);
end $$;

-- Takes one report; returns its result, the links to plan and the changes on the account.
create function private.take_report(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb, out link_ids bigint[],
  out changes jsonb)
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
  if jsonb_typeof(r -> 'positions') = 'array' and (pg_column_size(r) > 2000 or exists (
    select 1 from jsonb_array_elements(r -> 'positions') e where private.is_odd_position(e)))
  then
    r := jsonb_set(r, '{positions}', (select coalesce(jsonb_agg(private.cut_position(e.value) order by e.n), '[]')
      from jsonb_array_elements(r -> 'positions') with ordinality e (value, n)));
  end if;
  result := jsonb_build_object('execution_id', r ->> 'execution_id', 'status', 'refused', 'code', 'TC411', 'error',
    private.report_error(r));
  if result ->> 'error' is not null then return; end if;
  select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := result || jsonb_build_object('code', 'TC106', 'error',
      format('execution %s was never given to this VPS', r ->> 'execution_id'));
    return;
  end if;
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then
    result := result || jsonb_build_object('code', 'TC402', 'error',
      format('session %s was never issued for this account', r ->> 'session'));
    return;
  end if;
  result := jsonb_build_object('execution_id', q.id::text, 'status', 'accepted', 'code', null, 'error', null);

  if q.parts is not null then v_shown := private.mirror_net(q.account_id, q.symbol); end if;
  -- the mirror takes the report's view of the account, whatever the outcome of the execution
  for p in
    select value from jsonb_array_elements(case
      when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
    -- a ticket that continues under another one is not gone
    order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0
  loop
    c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
      coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null,
        null, p_now);
    if c.applied and (c.type <> 'modified' or q.action = 'modify') then
      changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots, 'price',
        r -> 'price', 'seen_at', r -> 'done_at');
    end if;
  end loop;

  if jsonb_typeof(r -> 'quote') = 'object' then
    perform private.note_quote(q.account_id, q.symbol, r -> 'quote', p_now);
  end if;
  v_late := (r ->> 'attempt')::integer < q.attempt;
  if q.status = 'completed' or (q.finalized_at is not null or v_late) and r ->> 'outcome' <> 'completed'
    or (r ->> 'attempt')::integer > q.attempt then
    result := result || jsonb_build_object('status', 'duplicate');
    -- two attempts may both have filled after all: the link holds what each opened
    if r ->> 'outcome' = 'completed' and v_account.mode = 'hedging' and private.opens(q)
      and not private.left_to_user(q, r) then
      perform private.revive_link(q);
      perform private.book_filled_again(q, r, p_now);
      perform private.forget_asked_levels(q);
      link_ids := array[q.link_id];
    elsif r ->> 'outcome' = 'completed' and q.parts is not null then
      link_ids := private.book_second_fill(q, r);
    end if;
    return;
  end if;
  n := private.next_status(q, r, p_now);
  v_was := q;
  update public.trade_execution_queue x set status = n.status, reason = left(n.reason, 100),
    message = left(r ->> 'message', 500),
    attempt = case when n.status = 'completed' and q.parts is not null
      then (r ->> 'attempt')::integer else x.attempt end,
    next_attempt_at = n.next_at, adopted = x.adopted or coalesce((r ->> 'adopted')::boolean, false),
    filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots),
      fill_price = coalesce((r ->> 'price')::numeric, x.fill_price),
    (point_size, point_money, spread) = (select coalesce(w.size, x.point_size), coalesce(w.money, x.point_money),
        coalesce(w.spread, x.spread)
      from private.point_worth(v_account.id, v_account.currency, x.symbol, (r ->> 'filled_lots')::numeric) w),
    planned_at = coalesce(private.planned_at_of(r), x.planned_at),
    received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at),
      sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at),
    done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    finalized_at = case when n.status in ('completed', 'rejected', 'expired', 'cancelled') then p_now end,
      updated_at = p_now
  where x.id = q.id returning * into q;
  if q.reason = 'invalid_stops' and q.status = 'retrying' then perform private.adjust_levels(q, p_now); end if;

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
      update private.net_ledgers k set asked_sl = coalesce(q.sl, k.asked_sl), asked_tp = coalesce(q.tp, k.asked_tp),
        failures = 0,
        replan_at = case when k.modify_failures between 1 and 2 then k.replan_at end
      where k.account_id = q.account_id and k.symbol = q.symbol;
    elsif v_account.mode = 'hedging' then
      perform private.book_fill(q, r, p_now);
      if v_was.finalized_at is not null then perform private.forget_asked_levels(q); end if;
    else
      update private.net_ledgers k set modify_failures = 0, replan_at = null
      where k.account_id = q.account_id and k.symbol = q.symbol;
    end if;
  else
    -- a close of several tickets may be refused for one of them: what was done is booked all the same
    if v_account.mode = 'hedging' and q.parts is null and jsonb_typeof(r -> 'positions') = 'array'
      and jsonb_array_length(r -> 'positions') > 0 then
      perform private.book_fill(q, r, p_now);
    end if;
    if q.status in ('rejected', 'expired', 'cancelled') then
      perform private.book_failure(q, p_now);
      if q.reason = 'fifo' then perform private.exchange_for_oldest(q, p_now); end if;
    end if;
  end if;
  if q.status = 'completed' then perform private.handle_protection(q, r); end if;
  link_ids := array[q.link_id];
  if q.parts is not null then
    link_ids := link_ids || array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint
      from jsonb_array_elements(q.parts) e);
  end if;
end $$;
