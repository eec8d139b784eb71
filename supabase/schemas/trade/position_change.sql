-- How a message changes the mirror. Callers hold the account's plan lock.

create type private.change as (applied boolean, type text, previous_lots numeric);
comment on type private.change is
  'What a message changed in the mirror; applied is false if something newer is known.';

-- The type of event that leads from one state to the next; p_old.ticket null: the position was not known, or closed.
create function private.change_type(p_old public.positions, p_kind text, p_side text, p_lots numeric) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_lots = 0 then case when p_kind = 'order' then 'cancelled' else 'closed' end
    when (p_old).ticket is null or (p_old).closed_at is not null
      then case when p_kind = 'order' then 'ordered' else 'opened' end
    when p_kind = 'order' then 'amended'
    when (p_old).kind = 'order' or (p_old).side <> p_side then 'opened'
    when p_lots > (p_old).lots then 'increased'
    when p_lots < (p_old).lots then 'reduced'
    else 'modified' end;
end $$;

-- What the reported position continues under its own ticket: the open order or position that it replaces, or null. An
-- agent may leave out the kind of what is replaced, and where the position of a filled order keeps the order's number
-- also the number. Then only what has the same symbol and side can be meant: two numbers may be equal by chance.
create function private.continued(p_account uuid, p jsonb) returns public.positions
language plpgsql stable security definer set search_path = '' as $$
declare
  o public.positions;
  v_ticket text := coalesce(p ->> 'replaces', p ->> 'ticket');
  v_same_number boolean := v_ticket = p ->> 'ticket';
begin
  -- the last: its message says that no order became this position
  if v_same_number and (p ->> 'kind' <> 'position' or p ->> 'replaces' is null and p ->> 'replaces_kind' = 'position')
  then
    return null;
  end if;
  select * into o from public.positions m
  where m.account_id = p_account and m.ticket = v_ticket and m.closed_at is null
    and case
      when p ->> 'replaces' is not null and p ->> 'replaces_kind' is not null then m.kind = p ->> 'replaces_kind'
      when v_same_number then m.kind = 'order' end is not false
    and not (v_same_number and m.kind = p ->> 'kind')
    and (not v_same_number or p ->> 'replaces' is not null and p ->> 'replaces_kind' is not null
      or m.symbol = p ->> 'symbol' and m.side = p ->> 'side')
  order by m.symbol = p ->> 'symbol' and m.side = p ->> 'side' desc, m.kind limit 1;
  return o;
end $$;

-- The kinds that the ticket which a position replaces may have had.
create function private.replaced_kinds(p jsonb) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p ->> 'replaces_kind' is not null then array[p ->> 'replaces_kind']
    when p ->> 'replaces' <> p ->> 'ticket' then array['order', 'position']
    when p ->> 'kind' = 'position' then array['order']
    else '{}' end;
end $$;

-- Whether an order that is told of for the first time has become the position of its number: news of that position is
-- newer, and has the same tag, or the same symbol and side. Then the order is history, and what was said of it belongs
-- to the position.
create function private.has_filled(p_account public.trading_accounts, p_session bigint, p_seq bigint, p jsonb,
  p_now timestamptz) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq, unseen_at,
    detected_at, first_seen_at, changed_at, closed_at, close_reason, replaced_by, replaced_by_kind)
  select m.account_id, m.ticket, m.user_id, 'order', m.symbol, m.side, 0, (p ->> 'price')::numeric, p_session, p_seq,
    m.unseen_at, m.detected_at, p_now, p_now, p_now, 'replaced', m.ticket, m.kind
  from public.positions m
  where m.account_id = p_account.id and m.ticket = p ->> 'ticket' and m.kind = 'position'
    and (m.session, m.seq) > (p_session, p_seq)
    and (m.tag = (p ->> 'tag')::bigint or m.symbol = p ->> 'symbol' and m.side = p ->> 'side');
  return found;
end $$;

-- Applies one position. p_unseen: the last read in which the change was absent. p_existing: it is the first snapshot
-- ever.
create function private.apply_position(
  p_account public.trading_accounts, p_session bigint, p_seq bigint, p jsonb, p_detected timestamptz,
    p_unseen timestamptz,
  p_existing boolean, p_event_id bigint, p_close_reason text, p_now timestamptz
) returns private.change
language plpgsql security definer set search_path = '' as $$
declare
  o public.positions;
  v_lots numeric := (p ->> 'lots')::numeric;
  v_from public.positions;
  v_type text;
  v_news boolean;
  v_flip boolean;
  v_unread record;
begin
  select * into o from public.positions
  where account_id = p_account.id and ticket = p ->> 'ticket' and kind = p ->> 'kind';
  if (o.session, o.seq) >= (p_session, p_seq) then
    return row(false, null, o.lots)::private.change;
  end if;
  if o.ticket is null then
    v_from := private.continued(p_account.id, p);
    o := v_from;
    if o.ticket is null and p ->> 'kind' = 'order' and private.has_filled(p_account, p_session, p_seq, p, p_now) then
      return row(false, null, 0)::private.change;
    end if;
  end if;
  if p_account.has_unread and o.ticket is null then
    select u.unseen_at, u.existing into v_unread
    from private.read_at_last(p_account.id, p ->> 'ticket', p ->> 'kind') u;
    p_unseen := coalesce(least(v_unread.unseen_at, p_unseen), p_unseen);
    p_existing := p_existing or coalesce(v_unread.existing, false);
  end if;
  v_type := private.change_type(o, p ->> 'kind', p ->> 'side', v_lots);
  v_news := v_type in ('opened', 'ordered', 'increased') or o.ticket is null;
  v_flip := coalesce(v_type = 'opened' and o.closed_at is null and o.kind = 'position', false);

  insert into public.positions as m (account_id, ticket, user_id, kind, symbol, side, order_type, lots, grown_lots,
    price, sl, tp, magic, comment, tag,
    opened_at, expires_at, session, seq, existing, released, unseen_at, detected_at, first_seen_at, filled_at,
    changed_at, last_event_id, closed_at, close_reason)
  values (p_account.id, p ->> 'ticket', p_account.user_id, p ->> 'kind', p ->> 'symbol', p ->> 'side',
    case when p ->> 'kind' = 'order' then p ->> 'order_type' end, v_lots,
    case when v_news or v_flip then v_lots else greatest(o.grown_lots, v_lots) end, (p ->> 'price')::numeric,
    nullif((p ->> 'sl')::numeric, 0), nullif((p ->> 'tp')::numeric, 0), left(p ->> 'magic', 100),
      left(p ->> 'comment', 200),
    coalesce((p ->> 'tag')::bigint, o.tag), (p ->> 'opened_at')::timestamptz, (p ->> 'expires_at')::timestamptz,
      p_session, p_seq,
    case when v_flip then false else coalesce(o.existing, p_existing) end,
      coalesce(o.released and o.closed_at is null, false),
    case when v_news then p_unseen else o.unseen_at end, p_detected,
    case when v_flip or o.ticket is null then p_now else o.first_seen_at end,
    case when o.kind = 'order' and o.closed_at is null and p ->> 'kind' = 'position' then p_now else o.filled_at end,
      p_now, p_event_id,
    case when v_lots = 0 then p_now end, case when v_lots = 0 then coalesce(left(p_close_reason, 100), 'client') end)
  on conflict (account_id, ticket, kind) do update set
    symbol = excluded.symbol, side = excluded.side, order_type = excluded.order_type,
      lots = excluded.lots, grown_lots = excluded.grown_lots,
    price = excluded.price, sl = excluded.sl, tp = excluded.tp, magic = excluded.magic, comment = excluded.comment,
      tag = excluded.tag,
    opened_at = coalesce(excluded.opened_at, m.opened_at), expires_at = excluded.expires_at, session = excluded.session,
      seq = excluded.seq,
    existing = excluded.existing, released = excluded.released, absent_snapshots = 0, unseen_at = excluded.unseen_at,
      detected_at = excluded.detected_at,
    first_seen_at = excluded.first_seen_at, filled_at = excluded.filled_at, changed_at = excluded.changed_at,
    last_event_id = coalesce(excluded.last_event_id, m.last_event_id), closed_at = excluded.closed_at,
    close_reason = excluded.close_reason, replaced_by = null, replaced_by_kind = null;

  if o.symbol <> p ->> 'symbol' and private.is_renamed(o, p) then
    perform private.follow_rename(p_account, o, p);
  end if;
  if v_from.ticket is not null then
    perform private.continue_as(v_from, p ->> 'ticket', p ->> 'kind', p_session, p_seq, p_now);
  elsif p ->> 'replaces' is not null then  -- a later message about the old ticket is history
    insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq, unseen_at,
      detected_at,
      first_seen_at, changed_at, closed_at, close_reason, replaced_by, replaced_by_kind)
    select p_account.id, p ->> 'replaces', p_account.user_id, k.kind, p ->> 'symbol', p ->> 'side', 0,
      (p ->> 'price')::numeric, p_session, p_seq,
      p_unseen, p_detected, p_now, p_now, p_now, 'replaced', p ->> 'ticket', p ->> 'kind'
    from unnest(private.replaced_kinds(p)) as k (kind)
    on conflict (account_id, ticket, kind) do update set lots = 0, closed_at = p_now, close_reason = 'replaced',
      replaced_by = excluded.replaced_by, replaced_by_kind = excluded.replaced_by_kind,
      session = excluded.session, seq = excluded.seq  -- an order that has filled into an existing position
      where positions.closed_at is null and positions.kind = 'order'
        and (positions.session, positions.seq) < (excluded.session, excluded.seq)
        and (p ->> 'replaces_kind' is not null or p ->> 'replaces' <> p ->> 'ticket'
          or positions.symbol = excluded.symbol and positions.side = excluded.side);
  end if;
  return row(true, v_type, coalesce(o.lots, 0))::private.change;
end $$;

-- An order or position continues under another ticket: its copies, and what it is a copy of, follow it.
create function private.continue_as(p_old public.positions, p_ticket text, p_kind text, p_session bigint, p_seq bigint,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.positions set lots = 0, closed_at = p_now, close_reason = 'replaced', replaced_by = p_ticket,
    replaced_by_kind = p_kind, session = p_session, seq = p_seq
  where account_id = p_old.account_id and ticket = p_old.ticket and kind = p_old.kind;
  update public.position_links set master_ticket = p_ticket, master_kind = p_kind
  where master_account_id = p_old.account_id and master_ticket = p_old.ticket and master_kind = p_old.kind;
  update private.link_legs set ticket = p_ticket, ticket_kind = p_kind
  where account_id = p_old.account_id and ticket = p_old.ticket and ticket_kind = p_old.kind;
  -- a filled order is decided anew, as a position
  update private.symbol_waits set ticket = p_ticket
  where master_account_id = p_old.account_id and ticket = p_old.ticket and kind = p_old.kind and kind = p_kind;
end $$;

-- Applies a complete snapshot: what differs is changed; what is absent for the second time (and has a lower number) is
-- closed. Returns the changes as [{"position": …, "type", "previous_lots"}] for the caller to record, and the tickets
-- that are still missing. p_nameless: an entry without a ticket was left out, so nothing counts as absent.
create function private.apply_snapshot(
  p_account public.trading_accounts, p_session bigint, p_seq bigint, p_positions jsonb, p_detected timestamptz,
    p_unseen timestamptz,
  p_nameless boolean, p_now timestamptz, out changes jsonb, out missing jsonb
) language plpgsql security definer set search_path = '' as $$
declare
  p jsonb;
  c private.change;
  o public.positions;
  v_first boolean := p_account.snapshot_session = 0;
begin
  changes := '[]'::jsonb;
  for p in select value from jsonb_array_elements(p_positions) loop
    select * into o from public.positions
    where account_id = p_account.id and ticket = p ->> 'ticket' and kind = p ->> 'kind';
    if o.closed_at is null and o.side = p ->> 'side' and o.symbol = p ->> 'symbol' and o.lots = (p ->> 'lots')::numeric
      and o.sl is not distinct from nullif((p ->> 'sl')::numeric, 0)
        and o.tp is not distinct from nullif((p ->> 'tp')::numeric, 0)
      and (o.kind = 'position' or o.price = (p ->> 'price')::numeric)
    then
      update public.positions set session = p_session, seq = p_seq, absent_snapshots = 0
      where account_id = p_account.id and ticket = o.ticket and kind = o.kind
        and (session, seq) < (p_session, p_seq);
    else
      if p ->> 'kind' = 'position' and o.ticket is null and exists (
        select 1 from jsonb_array_elements(p_positions) e
        where e ->> 'ticket' = p ->> 'ticket' and e ->> 'kind' = 'order') then
        p := p || '{"replaces": null, "replaces_kind": "position"}';  -- the order of this number still waits
      end if;
      c := private.apply_position(p_account, p_session, p_seq, p, p_detected, p_unseen, v_first, null, null, p_now);
      if c.applied then
        changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots);
      end if;
    end if;
  end loop;

  update public.positions m set absent_snapshots = m.absent_snapshots + 1
  where not p_nameless and m.account_id = p_account.id and m.closed_at is null
    and (m.session, m.seq) < (p_session, p_seq)
    and not exists (select 1 from jsonb_array_elements(p_positions) e
      where e ->> 'ticket' = m.ticket and e ->> 'kind' = m.kind);
  for o in
    select * from public.positions m where not p_nameless and m.account_id = p_account.id and m.closed_at is null
      and m.absent_snapshots >= 2
  loop
    p := jsonb_build_object('ticket', o.ticket, 'kind', o.kind, 'symbol', o.symbol, 'side', o.side, 'order_type',
      o.order_type,
      'lots', '0', 'price', o.price::text, 'sl', o.sl::text, 'tp', o.tp::text, 'magic', o.magic, 'comment', o.comment,
      'opened_at', o.opened_at, 'expires_at', o.expires_at);
    c := private.apply_position(p_account, p_session, p_seq, p, p_detected, p_unseen, false, null, 'client', p_now);
    changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots);
  end loop;
  select coalesce(jsonb_agg(m.ticket), '[]'::jsonb) into missing from public.positions m
  where m.account_id = p_account.id and m.closed_at is null and m.absent_snapshots > 0;
  update public.trading_accounts set snapshot_session = p_session
  where id = p_account.id and snapshot_session < p_session;
end $$;
