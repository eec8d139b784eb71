-- Quarantine: how calls and upkeep continue when the planner's own code fails. The work is first tried as a whole. If
-- that raises an error, it is repeated in parts, each in a subtransaction. A part that still fails is set aside
-- (trade/fault.sql) and retried by the upkeep.

-- Plans links and isolates those that fail, by halving, so that one failure among many links costs little. Returns the
-- executions made.
create function private.plan_links_isolated(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_half integer := cardinality(p_links) / 2;
  v_account uuid;
  v_context text;
begin
  if coalesce(cardinality(p_links), 0) = 0 then return '{}'; end if;
  begin
    v_new := private.plan_again(private.links_to_plan(p_links, p_now), p_now);
    delete from private.quarantine f where f.kind = 'link' and f.subject = any (p_links::text[]);
    return coalesce(v_new, '{}');
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    if v_half = 0 then
      get stacked diagnostics v_context = pg_exception_context;
      select l.follower_account_id into v_account from public.position_links l where l.id = p_links[1];
      perform private.note_fault(v_account, 'link', p_links[1]::text, null, v_account, format('copy %s', p_links[1]),
        sqlerrm, v_context, p_now);
      return '{}';
    end if;
  end;
  return private.plan_links_isolated(p_links[:v_half], p_now) || private.plan_links_isolated(p_links[v_half + 1:],
    p_now);
end $$;

-- Plans what a position of a master means for these copiers, and isolates those that fail. Returns the executions made.
create function private.decide_isolated(p_account uuid, p_ticket text, p_copiers uuid[],
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_half integer := cardinality(p_copiers) / 2;
  v_follower uuid;
  v_context text;
begin
  if coalesce(cardinality(p_copiers), 0) = 0 then return '{}'; end if;
  begin
    v_new := private.plan((
      select array_agg(l.id) from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = p_ticket and l.copier_id = any (p_copiers)
        and l.ended_at is null),
      array[p_account], array[p_ticket], p_copiers, p_now);
    delete from private.quarantine f
    where f.account_id = p_account and f.kind = 'decision'
      and f.subject = any (array(select p_ticket || ' ' || c from unnest(p_copiers) c));
    return coalesce(v_new, '{}');
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    if v_half = 0 then
      get stacked diagnostics v_context = pg_exception_context;
      select c.follower_account_id into v_follower from public.copiers c where c.id = p_copiers[1];
      perform private.note_fault(p_account, 'decision', p_ticket || ' ' || p_copiers[1],
        jsonb_build_object('ticket', p_ticket, 'copier_id', p_copiers[1]), v_follower,
          format('the copy of position %s', p_ticket), sqlerrm, v_context, p_now);
      return '{}';
    end if;
  end;
  return private.decide_isolated(p_account, p_ticket, p_copiers[:v_half], p_now) || private.decide_isolated(p_account,
    p_ticket, p_copiers[v_half + 1:], p_now);
end $$;

-- Plans what one event changed: {"tickets", "events", "types"} from take_event. Reasons are stored once every decision
-- about the ticket has been made. Returns the executions made.
create function private.plan_event_isolated(p_account uuid, p_taken jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_ticket text;
begin
  for v_ticket in  -- in their order: a replacement comes after the ticket that it replaces
    select t.value from jsonb_array_elements_text(p_taken -> 'tickets') with ordinality as t (value, n) group by t.value
    order by min(t.n)
  loop
    v_new := v_new || private.decide_isolated(p_account, v_ticket, array(
      select c.id from public.copiers c where c.master_account_id = p_account and c.removed_at is null
      union
      select l.copier_id from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = v_ticket and l.ended_at is null), p_now);
    v_new := v_new || private.plan_links_isolated(array(
      select l.id from public.position_links l
      where l.id = any (private.links_of_tickets(p_account, array[v_ticket])) and l.follower_account_id = p_account),
        p_now);
    insert into private.quarantine as f (account_id, kind, subject, body, error, first_at, last_at, retry_at)
    select p_account, 'explain', v_ticket, jsonb_object_agg(u.event, u.type), 'waits for its decisions', p_now, p_now,
      p_now
    from jsonb_array_elements_text(p_taken -> 'events') with ordinality as n (event, i)
    join lateral (select n.event, p_taken -> 'types' ->> (n.i - 1)::integer,
      p_taken -> 'tickets' ->> (n.i - 1)::integer) u (event, type, ticket) on true
    where u.ticket = v_ticket
    on conflict (account_id, kind, subject) do update set body = f.body || excluded.body;
    v_new := v_new || private.try_step(p_account, 'explain', v_ticket, null, p_now);
  end loop;
  return v_new;
end $$;

-- Does one part of the work on an account. Returns its result, with the executions made in "executions"; raises any
-- error. It lists every kind of part, so it is longer than forty lines.
create function private.do_step(p_account uuid, p_kind text, p_subject text, p_body jsonb,
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_body jsonb := p_body;
  v_done jsonb := '{}';
  v_taken record;
  v_new bigint[];
begin
  case p_kind
    when 'event' then
      select * into v_account from public.trading_accounts where id = p_account;
      v_done := private.take_event(v_account, p_body, p_now);
      if v_done ? 'tickets' then v_new := private.plan_event_isolated(p_account, v_done, p_now); end if;
    when 'report' then
      -- checked against the VPS that was given the execution: the account may have moved since
      v_taken := private.take_report(coalesce((select q.vps_id from public.trade_execution_queue q
        where q.id = (p_body #>> '{report,execution_id}')::bigint), (p_body ->> 'vps_id')::uuid), p_body -> 'report',
          p_now);
      v_done := v_taken.result;
      v_new := private.plan_links_isolated(array(select distinct x from unnest(v_taken.link_ids) x where x is not null),
        p_now);
      if v_taken.changes <> '[]' then
        v_new := v_new || private.try_step(p_account, 'changes', p_subject, v_taken.changes, p_now);
      end if;
    when 'changes' then
      v_new := private.plan_changes(p_account, p_body, p_now);
    when 'explain' then
      if not exists (select 1 from private.quarantine f
        where f.account_id = p_account and f.kind = 'decision' and f.body ->> 'ticket' = p_subject) then
        select f.body into v_body from private.quarantine f
        where f.account_id = p_account and f.kind = 'explain' and f.subject = p_subject;
        perform private.explain_rest(p_account, array_agg(e.key::bigint), array_agg(e.value), array_agg(p_subject))
          from jsonb_each_text(v_body) e;
      else
        v_done := '{"waits": true}';
      end if;
    when 'offer' then
      perform private.offer(array[p_subject::bigint], null, clock_timestamp());
    when 'overdue' then
      v_new := private.plan_links_isolated(private.judge_overdue(array[p_account], p_now), p_now);
    when 'retries' then
      v_new := private.requeue(array[p_account], p_now);
    when 'flatten' then
      v_new := private.plan_flatten(p_account, p_now);
    when 'watch' then
      perform private.assignments_of(s.vps_id, p_account) from public.account_vps_assignments s
        where s.account_id = p_account;
    when 'existing' then
      v_new := private.decide_waiting_existing(array[p_account], p_now);
    when 'symbols' then
      v_new := private.decide_waiting_symbols(array[p_account], p_now);
  end case;
  return v_done || jsonb_build_object('executions', to_jsonb(coalesce(v_new, '{}')));
end $$;

-- do_step() in a subtransaction. If it fails, the work is set aside with an alert and the result is null; if it
-- succeeds, the work is no longer set aside.
create function private.attempt(p_account uuid, p_kind text, p_subject text, p_body jsonb,
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_done jsonb;
  v_context text;
begin
  v_done := private.do_step(p_account, p_kind, p_subject, p_body, p_now);
  if not v_done ? 'waits' then
    delete from private.quarantine f where f.account_id = p_account and f.kind = p_kind and f.subject = p_subject;
  end if;
  return v_done;
exception when others then
  if not private.is_fault(sqlstate) then raise; end if;
  get stacked diagnostics v_context = pg_exception_context;
  perform private.note_fault(p_account, p_kind, p_subject,
    coalesce(p_body, (select f.body from private.quarantine f
      where f.account_id = p_account and f.kind = p_kind and f.subject = p_subject)), p_account,
    case p_kind when 'report' then format('the report of execution %s', p_body -> 'report' ->> 'execution_id')
      when 'event' then format('event %s', p_subject)
      when 'changes' then 'the changes that its own copies made' when 'explain'
        then format('the reasons of position %s', p_subject)
      when 'offer' then format('handing out execution %s', p_subject)
        else format('the upkeep of the account (%s)', replace(p_kind, '_', ' ')) end,
    sqlerrm, v_context, p_now);
  return null;
end $$;

create function private.try_step(p_account uuid, p_kind text, p_subject text, p_body jsonb,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  return array(select jsonb_array_elements_text(private.attempt(p_account, p_kind, p_subject, p_body,
    p_now) -> 'executions')::bigint);
end $$;

-- Takes one event. An event that the mirror cannot take is stored whole and taken later under its own number and times;
-- by then it may be outdated. Only the newest snapshot is kept.
create function private.take_event_isolated(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_key text := coalesce((e ->> 'session') || ':' || (e ->> 'seq'), md5(e::text));
begin
  return coalesce(private.attempt(p_account.id, 'event', case
    when e ->> 'type' = 'snapshot' then 'snapshot' else v_key end, e, p_now),
    jsonb_build_object('event_key', v_key, 'status', 'kept', 'code', 'TC420',
    'error', 'the planner failed on this event; it is kept and retried automatically'));
end $$;

-- Stores what can be used of a report that cannot be booked: the mirror, and what the broker did. An open, or a netting
-- deal, stays in flight, so that nothing is planned on top of it. A step that opens nothing must not delay the close of
-- its copy: it ends once the mirror shows its effect (its legs follow the mirror), and a step without an effect waits
-- for its next attempt.
create function private.keep_facts(q public.trade_execution_queue, r jsonb, p_subject text,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  p jsonb;
  c private.change;
  v_changes jsonb := '[]';
  v_freed boolean := false;
begin
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then return '{}'; end if;
  update public.trade_execution_queue x set filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots),
    fill_price = coalesce((r ->> 'price')::numeric, x.fill_price),
      received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at),
    sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at),
      done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    message = format('reported %s; the planner failed on the report, which is kept and retried', r ->> 'outcome'),
      updated_at = p_now
  where x.id = q.id and x.finalized_at is null;
  begin
    for p in
      select value from jsonb_array_elements(case
        when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
      order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0
    loop
      c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
        coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null,
          null, p_now);
      if c.applied and (c.type <> 'modified' or q.action = 'modify') then
        v_changes := v_changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots,
          'price', r -> 'price', 'seen_at', r -> 'done_at');
      end if;
    end loop;
    update public.trade_execution_queue x set
      status = case r ->> 'outcome' when 'completed' then 'completed' else 'retrying' end,
      reason = case r ->> 'outcome' when 'completed' then null else coalesce(r ->> 'reason', r ->> 'outcome') end,
      finalized_at = case r ->> 'outcome' when 'completed' then p_now end,
      next_attempt_at = case r ->> 'outcome' when 'completed'
        then null else p_now + private.retry_delay(x.attempt, 30) end
    where x.id = q.id and x.status in ('queued', 'unknown') and x.attempt = (r ->> 'attempt')::integer
      and x.parts is null and not private.opens(x)
      and case r ->> 'outcome' when 'completed'
        then coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) > 0
        else r ->> 'outcome' in ('rejected', 'expired') end;
    v_freed := found;
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    return '{}';
  end;
  -- planned only once: when the report itself is taken later, the mirror already has the change
  return case when v_changes = '[]' then '{}'
    else private.try_step(q.account_id, 'changes', p_subject, v_changes, p_now) end
    || case when v_freed and q.link_id is not null
      then private.plan_links_isolated(array[q.link_id], p_now) else '{}' end;
end $$;

-- Takes one report. A report that cannot be booked is stored whole, and its execution stays in flight until it is
-- booked.
create function private.take_report_isolated(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb,
  out executions bigint[])
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_subject text := format('%s:%s %s:%s', r ->> 'execution_id', r ->> 'attempt', r ->> 'session', r ->> 'seq');
  v_done jsonb;
begin
  executions := '{}';
  if pg_input_is_valid(r ->> 'execution_id', 'bigint') then
    select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  end if;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := (private.take_report(p_vps, r, p_now)).result;  -- refused
    return;
  end if;
  v_done := private.attempt(q.account_id, 'report', v_subject, jsonb_build_object('vps_id', p_vps, 'report', r), p_now);
  if v_done is null then
    begin
      executions := private.keep_facts(q, r, v_subject, p_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;  -- the report is stored, which is enough
    end;
    result := jsonb_build_object('execution_id', q.id::text, 'status', 'kept', 'code', 'TC420',
      'error', 'the planner failed on this report; it is kept and retried automatically');
  else
    executions := array(select jsonb_array_elements_text(v_done -> 'executions')::bigint);
    result := v_done - 'executions';
  end if;
end $$;

create function private.requeue_isolated(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_account uuid;
begin
  for v_account in select distinct a from unnest(p_accounts) a loop
    v_new := v_new || private.try_step(v_account, 'retries', '', null, p_now);
  end loop;
  return v_new;
end $$;

-- offer() for executions of which some may fail: such an execution is handed to nobody and is retried.
create function private.offer_isolated(p_executions bigint[], p_caller uuid, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own jsonb := '[]';
  v_id bigint;
  v_account uuid;
  v_context text;
begin
  begin
    return private.offer(p_executions, p_caller, p_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
  end;
  foreach v_id in array p_executions loop
    begin
      v_own := v_own || private.offer(array[v_id], p_caller, p_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      get stacked diagnostics v_context = pg_exception_context;
      select q.account_id into v_account from public.trade_execution_queue q where q.id = v_id;
      perform private.note_fault(v_account, 'offer', v_id::text, null, v_account,
        format('handing out execution %s', v_id), sqlerrm, v_context, p_now);
    end;
  end loop;
  return v_own;
end $$;

-- Executions that heartbeats leave out: their report waits to be booked, or they could not be handed out.
create function private.set_aside_executions() returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(
    select case f.kind when 'report' then (f.body -> 'report' ->> 'execution_id')::bigint else f.subject::bigint end
    from private.quarantine f
    -- a later attempt has no report yet
    where f.kind = 'offer' or f.kind = 'report' and (f.body #>> '{report,outcome}' = 'completed' or exists (
      select 1 from public.trade_execution_queue q
      where q.id = (f.body #>> '{report,execution_id}')::bigint
        and q.attempt = (f.body #>> '{report,attempt}')::integer)));
end $$;

-- The upkeep of accounts, part by part; what was set aside is left until its retry is due.
create function private.keep_up_isolated(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_account uuid;
  v_part text;
begin
  foreach v_account in array p_accounts loop
    foreach v_part in array array['overdue', 'retries', 'flatten', 'existing', 'symbols'] loop
      continue when exists (select 1 from private.quarantine f where f.account_id = v_account and f.kind = v_part)
        or v_part = 'flatten' and not exists (select 1 from public.trading_accounts a
          where a.id = v_account and a.copy_state = 'flattening');
      v_new := v_new || private.try_step(v_account, v_part, '', null, p_now);
    end loop;
    v_new := v_new || private.plan_links_isolated(array(
      select l from unnest(private.links_due(array[v_account], p_now)) l
      where not exists (select 1 from private.quarantine f
        where f.account_id = v_account and f.kind = 'link' and f.subject = l::text)), p_now);
    perform private.end_level_waits(array[v_account], p_now);
  end loop;
  return v_new;
end $$;

-- Retries what was set aside and is due. The caller holds the locks of these accounts and of their followers. Reports
-- and events are retried in the order in which they failed; reasons last.
create function private.retry_quarantine(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  f private.quarantine;
begin
  if not exists (select 1 from private.quarantine x where x.retry_at <= p_now) then return v_new; end if;
  for f in
    select * from private.quarantine x where x.account_id = any (p_accounts) and x.retry_at <= p_now
    order by x.kind = 'explain', x.first_at, x.subject limit 200
  loop
    continue when not private.with_followers(array[f.account_id]) <@ p_accounts;
    if f.kind = 'link' then
      v_new := v_new || private.plan_links_isolated(array[f.subject::bigint], p_now);
      delete from private.quarantine x
      where x.kind = 'link' and x.subject = f.subject
        and not exists (select 1 from public.position_links l where l.id = f.subject::bigint);
    elsif f.kind = 'decision' then
      v_new := v_new || private.decide_isolated(f.account_id, f.body ->> 'ticket',
        array[(f.body ->> 'copier_id')::uuid], p_now);
    else
      v_new := v_new || private.try_step(f.account_id, f.kind, f.subject, f.body, p_now);
    end if;
  end loop;
  return v_new;
end $$;
