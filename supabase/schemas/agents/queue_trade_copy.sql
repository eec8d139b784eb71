-- queue_trade_copy: takes trade events of one account and returns executions for its followers, in one round trip.

-- Unfinished executions of events that this call repeats: they are handed out again.
create function private.offer_repeated(p_events bigint[], p_vps uuid) returns jsonb
language plpgsql set search_path = '' as $$
begin
  if cardinality(p_events) = 0 then
    return '[]';
  end if;
  return (
    select coalesce(jsonb_agg(private.execution_json(q)), '[]')
    from public.trade_execution_queue q
    where q.event_id = any (p_events) and q.finalized_at is null and q.vps_id = p_vps);
end $$;
comment on function private.offer_repeated(bigint[], uuid) is
  'The executions of this VPS that belong to these events and are not final, a JSON array.';

-- Takes events and plans them together; returns the whole answer. p_outdated: the agent knows only a database that was
-- lost since (trade/generation.sql), so all of its events are history.
create function private.take_events(p_vps uuid, p_account uuid, p_events jsonb, p_now timestamptz,
  p_outdated boolean default false) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_results jsonb[] := '{}';  -- an array grows in place, a JSON list is copied at each append
  v_result jsonb;
  v_event jsonb;
  v_tickets text[] := '{}';
  v_events bigint[] := '{}';
  v_types text[] := '{}';
  v_repeated bigint[] := '{}';
  v_new bigint[];
begin
  select * into v_account from public.trading_accounts where id = p_account;
  if p_outdated then
    v_account.snapshot_session := 9223372036854775807;
  end if;
  for v_event in select value from jsonb_array_elements(p_events) loop
    v_result := private.take_event(v_account, v_event, p_now);
    if v_result ->> 'status' = 'duplicate' then
      v_repeated := v_repeated || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
    elsif v_result ? 'tickets' then
      v_tickets := v_tickets || array(select jsonb_array_elements_text(v_result -> 'tickets'));
      v_events := v_events || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
      v_types := v_types || array(select jsonb_array_elements_text(v_result -> 'types'));
      if v_event ->> 'type' = 'snapshot' then
        v_account.snapshot_session := greatest(v_account.snapshot_session, (v_event ->> 'session')::bigint);
      end if;
    end if;
    v_results := array_append(v_results, v_result - array['tickets', 'events', 'types', 'executions']);
  end loop;
  if cardinality(v_tickets) > 0 then
    v_new := private.plan_events(p_account, v_events, v_types, v_tickets, p_now);
  end if;
  if v_account.copy_state = 'flattening' and not p_outdated then
    v_new := coalesce(v_new, '{}') || private.plan_flatten(p_account, p_now);
  end if;
  return jsonb_build_object(
    'results', to_jsonb(v_results),
    'executions', private.offer(v_new, p_vps, clock_timestamp()) || private.offer_repeated(v_repeated, p_vps));
end $$;

-- Takes and plans each event separately after the planner failed on some of them (upkeep/quarantine.sql); returns the
-- whole answer.
create function private.take_events_isolated(p_vps uuid, p_account uuid, p_events jsonb,
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_results jsonb[] := '{}';
  v_result jsonb;
  v_event jsonb;
  v_repeated bigint[] := '{}';
  v_new bigint[] := '{}';
begin
  select * into v_account from public.trading_accounts where id = p_account;
  for v_event in select value from jsonb_array_elements(p_events) loop
    v_result := private.take_event_isolated(v_account, v_event, p_now);
    v_new := v_new || array(select jsonb_array_elements_text(v_result -> 'executions')::bigint);
    if v_result ->> 'status' = 'duplicate' then
      v_repeated := v_repeated || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
    elsif v_result ? 'tickets' and v_event ->> 'type' = 'snapshot' then
      v_account.snapshot_session := greatest(v_account.snapshot_session, (v_event ->> 'session')::bigint);
    end if;
    v_results := array_append(v_results, v_result - array['tickets', 'events', 'types', 'executions']);
  end loop;
  if v_account.copy_state = 'flattening' then
    v_new := v_new || private.try_step(p_account, 'flatten', '', '{}', p_now);
  end if;
  return jsonb_build_object(
    'results', to_jsonb(v_results),
    'executions', private.offer_isolated(v_new, p_vps, clock_timestamp()) || private.offer_repeated(v_repeated, p_vps));
end $$;

-- Events that the agent stored before it knew the database's present generation. They change nothing: the agent now
-- begins a new session, whose snapshot shows the account's present state. Only the VPS that works the account may send
-- them.
create function private.take_history(p_vps uuid, p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := (p_request ->> 'account_id')::uuid;
  v_now timestamptz := private.lock_accounts(array[v_account]);
begin
  if exists (select from public.account_vps_assignments s where s.account_id = v_account and s.vps_id = p_vps) then
    return private.take_events(p_vps, v_account, p_request -> 'events', v_now, true);
  end if;
  return jsonb_build_object('executions', '[]'::jsonb, 'results', (
    select coalesce(jsonb_agg(jsonb_build_object('event_key', (e ->> 'session') || ':' || (e ->> 'seq'), 'status',
      'refused', 'code', 'TC103',
      'error', 'the account is not assigned to this VPS') order by n), '[]')
    from jsonb_array_elements(p_request -> 'events') with ordinality as x (e, n)));
end $$;

-- The settings below apply to all functions that it calls: plans are cached while tables may be tiny, and must still
-- serve when the tables are large.
create function private.queue_trade_copy(p_events jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
  v_heard record;
  v_answer jsonb;
begin
  if octet_length(p_events::text) > 1000000 then
    raise exception using errcode = 'TC002', message = 'queue_trade_copy: the payload is over 1 MB',
      hint = 'Send fewer events in one call.';
  end if;
  if jsonb_typeof(p_events -> 'events') is distinct from 'array'
    or not coalesce(pg_input_is_valid(p_events ->> 'account_id', 'uuid'), false)
    or not coalesce(pg_input_is_valid(p_events ->> 'epoch', 'bigint'), false) then
    raise exception using errcode = 'TC001',
      message = 'queue_trade_copy: account_id, epoch or the array "events" is missing or malformed',
      hint = 'See docs/protocol.md for the form of the call.';
  end if;
  if jsonb_array_length(p_events -> 'events') > 1000 then
    raise exception using errcode = 'TC002',
      message = format('queue_trade_copy: %s events in one call, at most 1000 are allowed',
      jsonb_array_length(p_events -> 'events')), hint = 'Send fewer events in one call.';
  end if;
  v_heard := private.check_witness(v_vps, p_events);
  if v_heard.outdated then
    return private.take_history(v_vps, p_events) || private.answer_state();
  end if;
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);
  v_now := private.lock_with_followers(array[(p_events ->> 'account_id')::uuid]);
  -- the account may have moved while this call waited for the lock
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);
  begin
    v_answer := private.take_events(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'queue_trade_copy: one by one, for %: %', sqlstate, sqlerrm;
    v_answer := private.take_events_isolated(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', v_now);
  end;
  perform private.count_on(v_heard.last_execution_id);
  return v_answer || private.answer_state();
end $$;

create function public.queue_trade_copy(p_events jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.queue_trade_copy(p_events) $$;
comment on function public.queue_trade_copy(jsonb) is
  'Agents: stores and plans trade events of one account, each once, and returns executions for the calling VPS.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required): number of the assignment
- events (list of objects; required; at most 1000, and 1 MB in all): what changed, in order
- highest_execution_id (text or null): highest execution number that the agent was ever sent
- generation (integer or null): generation of the database that the agent knows
Answer:
- results (list of objects): one per event, in the same order
- results[].event_key (text): session and number of the event
- results[].status (text; accepted, duplicate, history, refused or kept): what the database did with the event
- results[].code (text or null; TC103, TC401, TC402 or TC420): why it was refused or kept; the call itself
  still succeeds
- results[].error (text or null): the same in words
- results[].missing (list of texts): only for a snapshot: open tickets of the database that the snapshot lacks
- executions (list of objects): executions of the calling VPS
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
- received_at, sent_at (time): when the database received the call, and when it sent the answer
Errors: TC001 TC002 TC101 TC102 TC103 TC104 TC150
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3, "events": [{"session": 12, "seq": 345,
  "type": "opened",
"position": {"ticket": "5001", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": "1.00", "price":
"1.10000", "sl": "1.09500", "tp": null, "order_type": null, "magic": "0", "comment": "", "opened_at":
"2026-12-01T09:29:59.900Z", "expires_at": null, "tag": null, "replaces": null}, "detected_at":
"2026-12-01T09:29:59.950Z", "unchanged_at": "2026-12-01T09:29:59.850Z"}], "highest_execution_id": "123", "generation":
1}
-> {"results": [{"event_key": "12:345", "status": "accepted", "code": null, "error": null}], "executions": [],
"last_execution_id": "124", "generation": 1,
"received_at": "2026-12-01T09:30:00.000000Z", "sent_at": "2026-12-01T09:30:00.004000Z"}';

revoke all on function public.queue_trade_copy(jsonb) from public, anon;
grant execute on function public.queue_trade_copy(jsonb) to authenticated;
grant execute on function private.queue_trade_copy(jsonb) to authenticated;
