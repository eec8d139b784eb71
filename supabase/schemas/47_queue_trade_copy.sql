-- queue_trade_copy: trade events of one account come in, executions for its followers go out, in one round trip.

-- What is wrong with an event as docs/protocol.md describes it; null when nothing is.
create function private.event_error(e jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(e) is distinct from 'object' then 'the event is not an object'
    when jsonb_typeof(e -> 'session') is distinct from 'number' or not pg_input_is_valid(e ->> 'session', 'bigint')
      or (e ->> 'session')::bigint < 1 then 'session must be a whole number above 0'
    when jsonb_typeof(e -> 'seq') is distinct from 'number' or not pg_input_is_valid(e ->> 'seq', 'bigint') or (e ->> 'seq')::bigint < 1
      then 'seq must be a whole number above 0'
    when coalesce(e ->> 'type', '') not in
      ('opened', 'increased', 'reduced', 'modified', 'closed', 'ordered', 'amended', 'cancelled', 'snapshot')
      then 'type is not one of the known event types'
    when e ->> 'detected_at' is null then 'detected_at is missing'
    when not pg_input_is_valid(e ->> 'detected_at', 'timestamptz') then 'detected_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz'), true)
      then 'unchanged_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'dealt_at', 'timestamptz'), true) then 'dealt_at must be a time such as 2026-01-31T12:00:00Z'
    when e ->> 'deal_price' is not null and not coalesce(case when pg_input_is_valid(e ->> 'deal_price', 'numeric')
      then (e ->> 'deal_price')::numeric between 0 and 1e12 end, false) then 'deal_price must be a decimal number, not negative (or above 1e12)'
    when e ->> 'type' = 'snapshot' then
      case when jsonb_typeof(e -> 'positions') is distinct from 'array' then 'positions of a snapshot must be an array' end
    when private.position_error(e -> 'position') is not null then private.position_error(e -> 'position')
    when e ->> 'type' in ('closed', 'cancelled') <> ((e #>> '{position,lots}')::numeric = 0)
      then 'position.lots must be 0 for closed and cancelled, and above 0 for everything else'
    when e ->> 'type' in ('closed', 'cancelled') and coalesce(e ->> 'evidence', '') not in ('deal', 'snapshots')
      then 'evidence of a close must be "deal" or "snapshots"'
  end;
  if v_error is null and e ->> 'type' = 'snapshot' then
    for p in select value from jsonb_array_elements(e -> 'positions') loop
      v_error := coalesce(private.position_error(p),
        case when (p ->> 'lots')::numeric = 0 then 'a snapshot holds only what is open: position.lots must be above 0' end);
      exit when v_error is not null;
    end loop;
  end if;
  return v_error;
end $$;

create function private.record_event(
  p_account public.trading_accounts, p_id bigint, e jsonb, p_source text, p_type text, p_status text, p_code text, p_error text, p_position jsonb,
  p_previous numeric, p_payload jsonb
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.trade_events (id, account_id, user_id, session, seq, event_key, source, type, status, code, error, ticket, symbol, side,
    lots, previous_lots, deal_price, payload, dealt_at, detected_at, unchanged_at, decided_at)
  overriding system value
  values (p_id, p_account.id, p_account.user_id,
    case when pg_input_is_valid(e ->> 'session', 'bigint') then (e ->> 'session')::bigint end,
    case when pg_input_is_valid(e ->> 'seq', 'bigint') then (e ->> 'seq')::bigint end,
    (e ->> 'session') || ':' || (e ->> 'seq'), p_source, coalesce(p_type, left(e ->> 'type', 20), '?'), p_status, p_code, p_error,
    left(p_position ->> 'ticket', 64), left(p_position ->> 'symbol', 64), p_position ->> 'side',
    case when private.is_number(p_position -> 'lots') then (p_position ->> 'lots')::numeric end, p_previous,
    -- a new position says itself at what price it was opened
    case when p_status <> 'refused' then coalesce((e ->> 'deal_price')::numeric, case when p_type = 'opened' then (p_position ->> 'price')::numeric end) end,
    p_payload, case when p_status <> 'refused' then (e ->> 'dealt_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'detected_at', 'timestamptz') then (e ->> 'detected_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz') then (e ->> 'unchanged_at')::timestamptz end, clock_timestamp());
end $$;

-- Whether a change of a position may be the fill of an order whose copies are to be planned, too, for they go on under the order's ticket.
create function private.order_filled_into(p_position jsonb, p_previous_lots numeric) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_previous_lots > 0 and p_position ->> 'replaces' <> p_position ->> 'ticket', false);
end $$;

-- Stores and applies one event; result as docs/protocol.md, plus what it changed: parallel arrays "tickets", "events", "types".
create function private.take_event(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint := nextval('public.trade_events_id_seq');
  v_error text := private.event_error(e);
  v_key jsonb := jsonb_build_object('event_key', (e ->> 'session') || ':' || (e ->> 'seq'));
  v_session bigint;
  v_seq bigint;
  v_known bigint;
  v_detected timestamptz;
  v_unseen timestamptz;
  v_position jsonb;
  v_change private.change;
  v_status text := 'accepted';
  v_snapshot record;
  v_found jsonb;
  v_tickets jsonb := '[]';
  v_events jsonb := '[]';
  v_types jsonb := '[]';
begin
  if v_error is not null then
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC401', v_error, e -> 'position', null,
      case when octet_length(e::text) < 10000 then e else to_jsonb(left(e::text, 1000)) end);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC401', 'error', v_error);
  end if;
  v_session := (e ->> 'session')::bigint;
  v_seq := (e ->> 'seq')::bigint;
  if v_session > p_account.session then
    v_error := format('session %s was never issued for this account; its newest is %s', v_session, p_account.session);
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC402', v_error, e -> 'position', null, e);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC402', 'error', v_error);
  end if;
  insert into private.event_keys (account_id, session, seq, event_id) values (p_account.id, v_session, v_seq, v_id)
  on conflict do nothing returning event_id into v_known;
  if v_known is null then
    select event_id into v_known from private.event_keys where account_id = p_account.id and session = v_session and seq = v_seq;
    return v_key || jsonb_build_object('status', 'duplicate', 'code', null, 'error', null, 'events', jsonb_build_array(v_known));
  end if;
  v_detected := least((e ->> 'detected_at')::timestamptz, p_now);
  v_unseen := least(coalesce((e ->> 'unchanged_at')::timestamptz, p_account.seen_at, p_account.created_at), v_detected);

  if v_session < p_account.snapshot_session then  -- a newer session's snapshot has spoken: history
    v_status := 'history';
    perform private.record_event(p_account, v_id, e, 'agent', null, v_status, null, null, e -> 'position', null, e);
  elsif e ->> 'type' = 'snapshot' then
    select * into v_snapshot from private.apply_snapshot(p_account, v_session, v_seq, e -> 'positions', v_detected, v_unseen, p_now);
    perform private.record_event(p_account, v_id, e, 'agent', 'snapshot', v_status, null, null, null, null,
      jsonb_build_object('positions', jsonb_array_length(e -> 'positions')));
    for v_found in select value from jsonb_array_elements(v_snapshot.changes) loop
      v_id := nextval('public.trade_events_id_seq');
      perform private.record_event(p_account, v_id, e, 'snapshot', v_found ->> 'type', v_status, null, null, v_found -> 'position',
        (v_found ->> 'previous_lots')::numeric, v_found -> 'position');
      update public.positions set last_event_id = v_id where account_id = p_account.id and ticket = v_found #>> '{position,ticket}';
      v_tickets := v_tickets || jsonb_build_array(v_found #>> '{position,ticket}');
      v_events := v_events || to_jsonb(v_id);
      v_types := v_types || (v_found -> 'type');
      if private.order_filled_into(v_found -> 'position', (v_found ->> 'previous_lots')::numeric) then
        v_tickets := v_tickets || (v_found #> '{position,replaces}');
        v_events := v_events || to_jsonb(v_id);
        v_types := v_types || (v_found -> 'type');
      end if;
    end loop;
    v_key := v_key || jsonb_build_object('missing', v_snapshot.missing);
    if p_account.copy_state = 'flattening' then
      perform private.count_flat_snapshot(p_account.id, p_now);
    end if;
  else
    v_position := e -> 'position';
    v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id,
      e ->> 'close_reason', p_now);
    if not v_change.applied and e #>> '{position,replaces}' is not null then  -- late news, but what it replaced is gone all the same
      v_position := v_position || jsonb_build_object('ticket', e #>> '{position,replaces}', 'lots', '0', 'replaces', null);
      v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id, 'replaced', p_now);
      v_change.applied := v_change.applied and v_change.previous_lots > 0;
    end if;
    v_status := case when v_change.applied then 'accepted' else 'history' end;
    perform private.record_event(p_account, v_id, e, 'agent', v_change.type, v_status, null, null, v_position, v_change.previous_lots, e);
    if v_change.applied and e ->> 'close_reason' = 'stop_out' then
      perform private.note_stop_out(p_account, v_position, v_change.previous_lots, p_now);
    end if;
    if v_change.applied then
      v_tickets := jsonb_build_array(v_position ->> 'ticket');
      v_events := jsonb_build_array(v_id);
      v_types := jsonb_build_array(v_change.type);
      if private.order_filled_into(v_position, v_change.previous_lots) then
        v_tickets := v_tickets || (v_position -> 'replaces');
        v_events := v_events || to_jsonb(v_id);
        v_types := v_types || to_jsonb(v_change.type);
      end if;
    end if;
  end if;
  return v_key || jsonb_build_object('status', v_status, 'code', null, 'error', null, 'tickets', v_tickets, 'events', v_events,
    'types', v_types);
end $$;

-- Links that a change of these tickets of an account concerns: it as master, and it as follower.
create function private.links_of_tickets(p_account uuid, p_tickets text[]) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select array_agg(id) from (
      select l.id from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = any (p_tickets) and l.ended_at is null
      union
      select l.id from private.link_legs g join public.position_links l on l.id = g.link_id
      where g.account_id = p_account and g.ticket = any (p_tickets) and l.ended_at is null
      union
      select l.id from public.positions p
      join public.trading_accounts a on a.id = p_account and (a.mode = 'netting' or a.copy_state = 'flattening')
      join public.position_links l on l.follower_account_id = p_account and l.symbol = p.symbol and l.state = 'live'
      where p.account_id = p_account and p.ticket = any (p_tickets)
    ) x);
end $$;

-- Followers of an account, and the account itself: whose plan locks a change of it needs. Some may be named twice.
create function private.with_followers(p_accounts uuid[]) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_accounts || array(
    select c.follower_account_id from public.copiers c where c.master_account_id = any (p_accounts) and c.removed_at is null);
end $$;

-- Locks them and returns the moment after the last wait. A copier that was made while we waited brings its follower in; no other can come
-- after that, for saving a copier takes its master's lock.
create function private.lock_with_followers(p_accounts uuid[]) returns timestamptz
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_locked uuid[] := private.with_followers(p_accounts);
  v_now timestamptz := private.lock_accounts(v_locked);
  v_wanted uuid[] := private.with_followers(p_accounts);
begin
  if not v_wanted <@ v_locked then
    v_now := private.lock_accounts(v_wanted);
  end if;
  return v_now;
end $$;

-- Plans what events changed, and gives each of their pairs its reason.
create function private.plan_events(p_account uuid, p_events bigint[], p_types text[], p_tickets text[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.links_of_tickets(p_account, p_tickets);
  v_new bigint[];
begin
  if v_links is not null and p_types && array['reduced', 'closed', 'cancelled', 'opened'] then
    perform private.wait_no_longer(array(
      select l.id from unnest(p_types, p_tickets) as e (type, ticket)
      join public.position_links l on l.master_account_id = p_account and l.master_ticket = e.ticket and l.id = any (v_links)
      where e.type in ('reduced', 'closed', 'cancelled', 'opened')), p_now);
  end if;
  v_new := private.plan(v_links, array_fill(p_account, array[cardinality(p_tickets)]), p_tickets, null, p_now);
  -- a decision may have waited for this: an increase for the fill of an order of ours, a flip for the end of what was held
  v_new := coalesce(v_new, '{}') || coalesce(private.plan_again(array(
    select l.id from public.position_links l where l.id = any (v_links) and l.follower_account_id = p_account), p_now), '{}');
  perform private.explain_rest(p_account, p_events, p_types, p_tickets);
  return v_new;
end $$;

-- Takes events and plans; the whole answer. p_apart: each by itself, because something among them made the planner fail (49_apart.sql).
create function private.take_events(p_vps uuid, p_account uuid, p_events jsonb, p_apart boolean, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_results jsonb := '[]';
  v_result jsonb;
  v_event jsonb;
  v_tickets text[] := '{}';
  v_events bigint[] := '{}';
  v_types text[] := '{}';
  v_repeated bigint[] := '{}';
  v_new bigint[];
  v_again jsonb := '[]';
begin
  select * into v_account from public.trading_accounts where id = p_account;
  for v_event in select value from jsonb_array_elements(p_events) loop
    if p_apart then
      v_result := private.take_event_apart(v_account, v_event, p_now);
      v_new := coalesce(v_new, '{}') || array(select jsonb_array_elements_text(v_result -> 'executions')::bigint);
    else
      v_result := private.take_event(v_account, v_event, p_now);
    end if;
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
    v_results := v_results || (v_result - array['tickets', 'events', 'types', 'executions']);
  end loop;
  if cardinality(v_tickets) > 0 and not p_apart then
    v_new := private.plan_events(p_account, v_events, v_types, v_tickets, p_now);
  end if;
  if v_account.copy_state = 'flattening' then
    v_new := coalesce(v_new, '{}') || case when p_apart then private.try_step(p_account, 'flatten', '', '{}', p_now)
      else private.plan_flatten(p_account, p_now) end;
  end if;
  if cardinality(v_repeated) > 0 then
    select coalesce(jsonb_agg(private.execution_json(q)), '[]') into v_again from public.trade_execution_queue q
    where q.event_id = any (v_repeated) and q.finalized_at is null and q.vps_id = p_vps;
  end if;
  return jsonb_build_object('results', v_results, 'executions',
    case when p_apart then private.offer_apart(v_new, p_vps, clock_timestamp()) else private.offer(v_new, p_vps, clock_timestamp()) end || v_again,
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

-- Its settings hold for all that it calls: plans are made once, when tables may be tiny, and must serve when they are large.
create function private.queue_trade_copy(p_events jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
begin
  if octet_length(p_events::text) > 1000000 then
    raise exception using errcode = 'TC002', message = 'queue_trade_copy: the payload is over 1 MB', hint = 'Send fewer events in one call.';
  end if;
  if jsonb_typeof(p_events -> 'events') is distinct from 'array' or not coalesce(pg_input_is_valid(p_events ->> 'account_id', 'uuid'), false)
    or not coalesce(pg_input_is_valid(p_events ->> 'epoch', 'bigint'), false) then
    raise exception using errcode = 'TC001', message = 'queue_trade_copy: account_id, epoch or the array "events" is missing or malformed',
      hint = 'See docs/protocol.md for the form of the call.';
  end if;
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);
  v_now := private.lock_with_followers(array[(p_events ->> 'account_id')::uuid]);
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);  -- it may have moved meanwhile
  begin
    return private.take_events(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', false, v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'queue_trade_copy: one by one, for %: %', sqlstate, sqlerrm;
  end;
  return private.take_events(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', true, v_now);
end $$;

create function public.queue_trade_copy(p_events jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.queue_trade_copy(p_events) $$;
comment on function public.queue_trade_copy(jsonb) is
  'Trade events of one account, from its agent: stored once, planned, and the executions of the calling VPS returned (docs/protocol.md).';
revoke all on function public.queue_trade_copy(jsonb) from public, anon;
grant execute on function public.queue_trade_copy(jsonb) to authenticated;
grant execute on function private.queue_trade_copy(jsonb) to authenticated;
