-- Booking of an account's events.

-- What is wrong with an event, compared with docs/protocol.md; null: nothing is.
create function private.event_error(p_account uuid, e jsonb) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case
    when jsonb_typeof(e) is distinct from 'object' then 'the event is not an object'
    when jsonb_typeof(e -> 'session') is distinct from 'number' or not pg_input_is_valid(e ->> 'session', 'bigint')
      or (e ->> 'session')::bigint < 1 then 'session must be a whole number above 0'
    when jsonb_typeof(e -> 'seq') is distinct from 'number' or not pg_input_is_valid(e ->> 'seq', 'bigint')
      or (e ->> 'seq')::bigint < 1
      then 'seq must be a whole number above 0'
    when coalesce(e ->> 'type', '') not in
      ('opened', 'increased', 'reduced', 'modified', 'closed', 'ordered', 'amended', 'cancelled', 'snapshot')
      then 'type is not one of the known event types'
    when e ->> 'detected_at' is null then 'detected_at is missing'
    when not pg_input_is_valid(e ->> 'detected_at', 'timestamptz')
      then 'detected_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz'), true)
      then 'unchanged_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'dealt_at', 'timestamptz'), true)
      then 'dealt_at must be a time such as 2026-01-31T12:00:00Z'
    when e ->> 'deal_price' is not null and not coalesce(case when pg_input_is_valid(e ->> 'deal_price', 'numeric')
      then (e ->> 'deal_price')::numeric between -1e12 and 1e12 end, false)
        then 'deal_price must be a decimal number between -1e12 and 1e12'
    when e ->> 'type' = 'snapshot' then
      case when jsonb_typeof(e -> 'positions') is distinct from 'array'
        then 'positions of a snapshot must be an array' end
    when private.entry_error(p_account, e -> 'position') is not null
      then private.entry_error(p_account, e -> 'position')
    when e ->> 'type' in ('closed', 'cancelled') <> ((e #>> '{position,lots}')::numeric = 0)
      then 'position.lots must be 0 for closed and cancelled, and above 0 for everything else'
    when e ->> 'type' in ('closed', 'cancelled') and coalesce(e ->> 'evidence', '') not in ('deal', 'snapshots')
      then 'evidence of a close must be "deal" or "snapshots"'
  end;
end $$;

-- Stores and applies one event. Returns the result as in docs/protocol.md, and what it changed: parallel arrays
-- "tickets", "events", "types".
create function private.take_event(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint := nextval('public.trade_events_id_seq');
  v_error text;
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
  v_sorted record;
  v_found jsonb;
  v_tickets jsonb := '[]';
  v_events jsonb := '[]';
  v_types jsonb := '[]';
  v_told integer := case when e ->> 'type' = 'snapshot' and jsonb_typeof(e -> 'positions') = 'array'
    then jsonb_array_length(e -> 'positions') end;
begin
  if v_told is not null or pg_column_size(e) > 1500 or private.is_odd_position(e -> 'position')
    or jsonb_typeof(e -> 'close_reason') in ('object', 'array')
  then
    e := private.cut_event(e);
  end if;
  if v_told is not null then
    perform private.alert_left_out(p_account.id, 'positions', v_told - jsonb_array_length(e -> 'positions'));
  end if;
  v_error := private.event_error(p_account.id, e);
  if v_error is not null and e ->> 'type' in ('closed', 'cancelled') then
    e := private.bare_close(p_account.id, e);
    v_error := private.event_error(p_account.id, e);
  end if;
  if v_error is not null then
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC401', v_error, e -> 'position', null,
      case when octet_length(e::text) < 10000 then e else to_jsonb(left(e::text, 1000)) end, p_now);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC401', 'error', v_error);
  end if;
  v_session := (e ->> 'session')::bigint;
  v_seq := (e ->> 'seq')::bigint;
  if v_session > p_account.session then
    v_error := format('session %s was never issued for this account; its newest is %s', v_session, p_account.session);
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC402', v_error, e -> 'position', null,
      e, p_now);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC402', 'error', v_error);
  end if;
  insert into private.event_keys (account_id, session, seq, event_id) values (p_account.id, v_session, v_seq, v_id)
  on conflict do nothing returning event_id into v_known;
  if v_known is null then
    select event_id into v_known from private.event_keys
    where account_id = p_account.id and session = v_session and seq = v_seq;
    return v_key || jsonb_build_object('status', 'duplicate', 'code', null, 'error', null, 'events',
      jsonb_build_array(v_known));
  end if;
  v_detected := least((e ->> 'detected_at')::timestamptz, p_now);
  v_unseen := least(coalesce((e ->> 'unchanged_at')::timestamptz, p_account.seen_at, p_account.created_at), v_detected);

  if v_session < p_account.snapshot_session then  -- a newer session's snapshot was applied: history
    v_status := 'history';
    perform private.record_event(p_account, v_id, e, 'agent', null, v_status, null, null, e -> 'position', null, e,
      p_now);
  elsif e ->> 'type' = 'snapshot' then
    v_sorted := private.sort_entries(p_account.id, e -> 'positions');
    perform private.note_unread(p_account, v_sorted.unread, v_session, v_seq, v_unseen);
    select * into v_snapshot from private.apply_snapshot(p_account, v_session, v_seq, v_sorted.good, v_detected,
      v_unseen, v_sorted.nameless, p_now);
    perform private.forget_unread(p_account, v_sorted.unread);
    perform private.record_event(p_account, v_id, e, 'agent', 'snapshot', v_status, null, null, null, null,
      jsonb_build_object('positions', jsonb_array_length(e -> 'positions')), p_now);
    for v_found in select value from jsonb_array_elements(v_snapshot.changes) loop
      v_id := nextval('public.trade_events_id_seq');
      perform private.record_event(p_account, v_id, e, 'snapshot', v_found ->> 'type', v_status, null, null,
        v_found -> 'position',
        (v_found ->> 'previous_lots')::numeric, v_found -> 'position', p_now);
      update public.positions set last_event_id = v_id
      where account_id = p_account.id and ticket = v_found #>> '{position,ticket}'
        and kind = v_found #>> '{position,kind}';
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
    -- an outdated event, but the ticket that it replaced is gone all the same
    if not v_change.applied and e #>> '{position,replaces}' is not null then
      v_position := v_position || jsonb_build_object('ticket', e #>> '{position,replaces}', 'lots', '0', 'replaces',
        null, 'replaces_kind', null, 'kind', coalesce((private.continued(p_account.id, v_position)).kind,
        (private.replaced_kinds(v_position))[1], 'position'));
      v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id,
        'replaced', p_now);
      v_change.applied := v_change.applied and v_change.previous_lots > 0;
    end if;
    v_status := case when v_change.applied then 'accepted' else 'history' end;
    perform private.record_event(p_account, v_id, e, 'agent', v_change.type, v_status, null, null, v_position,
      v_change.previous_lots, e, p_now);
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
  return v_key || jsonb_build_object('status', v_status, 'code', null, 'error', null, 'tickets', v_tickets, 'events',
    v_events,
    'types', v_types);
end $$;
