-- Resync: the user's action on each entry of a copier's drift (users/drift.sql). Nothing here runs automatically.

-- What is wrong with a request of resync_copier, one sentence; null: nothing is.
create function private.resync_error(p_request jsonb) returns text
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_field text;
begin
  if jsonb_typeof(p_request -> 'items') is distinct from 'array'
    or jsonb_array_length(p_request -> 'items') not between 1 and 200 then
    return '"items" must be an array of 1 to 200 items';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'max_distance_points'), 'null') <> 'null'
    and coalesce(not private.is_number(p_request -> 'max_distance_points')
      or (p_request ->> 'max_distance_points')::numeric < 0, true) then
    return 'max_distance_points must be a number, not negative';
  end if;
  for e in select value from jsonb_array_elements(p_request -> 'items') loop
    if jsonb_typeof(e) is distinct from 'object' then return 'an item is not an object'; end if;
    if not coalesce(case e ->> 'kind' when 'missing' then e ->> 'action' in ('copy', 'adopt', 'dismiss')
      when 'orphan' then e ->> 'action' in ('close', 'dismiss') when 'size_mismatch'
        then e ->> 'action' in ('copy', 'dismiss') end, false) then
      return format('there is no action %s for an item of kind %s: missing takes copy, adopt and dismiss; orphan close '
        'and dismiss; '
        'size_mismatch copy and dismiss', coalesce(left(e ->> 'action', 50), '(none)'),
          coalesce(left(e ->> 'kind', 50), '(none)'));
    end if;
    foreach v_field in array case when e ->> 'kind' = 'orphan' then array['ticket']
      when e ->> 'action' = 'adopt' then array['master_ticket', 'ticket'] else array['master_ticket'] end
    loop
      if jsonb_typeof(e -> v_field) is distinct from 'string' or length(e ->> v_field) > 64 then
        return format('an item of kind %s with action %s needs %s, a text of at most 64 characters', e ->> 'kind',
          e ->> 'action', v_field);
      end if;
    end loop;
  end loop;
  return null;
end $$;

-- Links a position of the follower to the master's without an order. Its levels count as the levels last asked for.
create function private.adopt_position(p_copier public.copiers, d private.drift, p_ticket text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link bigint;
  v_wanted record;
begin
  insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket,
    master_kind, master_side, generation, symbol,
    side, state, seen_master_lots, base_master_lots, base_lots, sized_lots, sized_master_lots, warnings, event_id,
      created_at)
  select p_copier.user_id, p_copier.id, m.account_id, p.account_id, m.ticket, m.kind, m.side, coalesce((
      select max(o.generation) from public.position_links o
      where o.master_account_id = m.account_id and o.master_ticket = m.ticket and o.master_kind = m.kind
        and o.copier_id = p_copier.id), 0) + 1,
    p.symbol, p.side, 'live', m.lots, m.lots, p.lots, p.lots, m.lots, array['adopted'], m.last_event_id, p_now
  from public.positions m, public.positions p
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket and m.kind = d.master_kind
    and p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.kind = 'position'
  returning id into v_link;
  insert into private.link_legs (link_id, account_id, ticket, ticket_kind, kind, lots, price)
  select v_link, p.account_id, p.ticket, p.kind, p.kind, p.lots, p.price from public.positions p
  where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.kind = 'position';
  update public.positions p set released = false
  where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.kind = 'position'
    and p.released;
  select s.wanted_sl, s.wanted_tp into v_wanted from private.link_states s where s.id = v_link;
  update public.position_links l set asked_sl = v_wanted.wanted_sl, asked_tp = v_wanted.wanted_tp, asked_unknown = false
  where l.id = v_link;
end $$;

-- Queues the close of a copy that no link holds. Returns the new execution.
create function private.close_orphan(p_copier public.copiers, d private.drift, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_orphan public.positions;
  v_draft private.execution_draft;
begin
  select p.* into v_orphan from public.positions p
  where p.account_id = p_copier.follower_account_id and p.ticket = d.ticket and p.kind = d.ticket_kind;
  v_draft.lane := 'orphan:' || v_orphan.ticket || case v_orphan.kind when 'order' then ':order' else '' end;
  v_draft.copier_id := p_copier.id;
  v_draft.user_id := v_orphan.user_id;
  v_draft.account_id := v_orphan.account_id;
  v_draft.action := case v_orphan.kind when 'order' then 'cancel' else 'close' end;
  v_draft.symbol := v_orphan.symbol;
  v_draft.side := v_orphan.side;
  v_draft.lots := v_orphan.lots;
  v_draft.target_lots := 0;
  v_draft.ticket := v_orphan.ticket;
  return (private.queue_executions(array[v_draft], false, p_now))[1];
end $$;

create function private.resync_answer(p_item jsonb, p_result text, p_reason text, p_message text,
  p_executions bigint[]) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_build_object('kind', p_item ->> 'kind', 'action', p_item ->> 'action', 'master_ticket',
    p_item ->> 'master_ticket',
    'ticket', p_item ->> 'ticket', 'result', p_result, 'reason', p_reason, 'message', p_message,
    'executions', coalesce((select jsonb_agg(x::text) from unnest(p_executions) x), '[]'));
end $$;

-- Why a copy is refused before any decision, or null: the follower still holds one, or the price has moved too far.
create function private.copy_refused(d private.drift, p_max_distance numeric, out reason text, out message text)
language plpgsql immutable set search_path = '' as $$
begin
  if not 'copy' = any (d.actions) then
    reason := 'held_already';
    message := format('The follower still holds a position that was opened for %s: adopt it, or close it first.',
      d.master_ticket);
  elsif p_max_distance is not null and private.distance_points(d) is null then
    reason := 'no_quote';
    message := format('The price of %s is not known now, so its distance from %s cannot be computed.', d.symbol,
      private.plain(d.price));
  elsif private.distance_points(d) > p_max_distance then
    reason := 'price_moved';
    message := format('The price is %s, %s points from the master''s %s; at most %s were allowed.',
      private.plain(d.price_now),
      private.distance_points(d), private.plain(d.price), private.plain(p_max_distance));
  end if;
end $$;

-- The answer for a copy that was handed to the planner: its new executions, or the reason why there are none.
create function private.copy_answer(p_copier public.copiers, p_item jsonb, d private.drift) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  l public.position_links;
  v_executions bigint[];
  v_detail text;
begin
  select * into l from public.position_links k
  where k.master_account_id = p_copier.master_account_id and k.master_ticket = d.master_ticket
    and k.master_kind = d.master_kind and k.copier_id = p_copier.id
  order by k.generation desc limit 1;
  select array_agg(q.id order by q.id) into v_executions from public.trade_execution_queue q
  where q.link_id = l.id and q.finalized_at is null;
  if exists (select from private.symbol_waits w where w.copier_id = p_copier.id
    and w.master_account_id = p_copier.master_account_id and w.ticket = d.master_ticket
      and w.kind = d.master_kind) then
    return private.resync_answer(p_item, 'queued', 'symbols_loading', null, v_executions);
  end if;
  if l.state = 'live' and (v_executions is not null or l.wanted_lots is not null or exists (
    select 1 from public.trade_execution_queue q
    where q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight
      and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text))))
  then
    return private.resync_answer(p_item, 'queued', null, null, v_executions);
  end if;
  select o.detail into v_detail from public.positions m
  join public.copy_outcomes o on o.event_id = m.last_event_id and o.copier_id = p_copier.id and o.reason = l.reason
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket
    and m.kind = d.master_kind;
  return private.resync_answer(p_item, 'refused', coalesce(l.reason, private.frozen_by(p_copier), 'no_change'),
    v_detail, null);
end $$;

-- Whether a drift entry is the one that an item of a request names.
create function private.is_meant(d private.drift, p_item jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return d.kind = p_item ->> 'kind' and case d.kind
    when 'orphan' then d.ticket = p_item ->> 'ticket'
      and d.ticket_kind = coalesce(p_item ->> 'ticket_kind', d.ticket_kind)
    else d.master_ticket = p_item ->> 'master_ticket'
      and d.master_kind = coalesce(p_item ->> 'master_kind', d.master_kind) end;
end $$;

-- {"copier_id", "items": [{"kind", "master_ticket", "ticket", "action"}], "max_distance_points": null} -> {"copier_id",
-- "items": [{…, "result": "queued|adopted|dismissed|refused|nothing_to_do", "reason", "message", "executions"}]}, one
-- per item, in order. One loop over the items, therefore longer than forty lines.
create function private.resync_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  c public.copiers := private.require_copier('resync_copier', p_request);
  v_error text := private.resync_error(p_request);
  v_now timestamptz;
  v_netting boolean;
  v_items jsonb := '[]';
  v_item jsonb;
  d private.drift;
  v_refused record;
  v_answers jsonb := '{}';
  v_links bigint[] := '{}';
  v_tickets text[] := '{}';
  v_kinds text[] := '{}';
  v_missing text[] := '{}';
  v_missing_kinds text[] := '{}';
  v_new bigint[] := '{}';
  n integer := 0;
begin
  perform private.refuse_unknown(p_request, 'resync_copier', array['copier_id', 'items', 'max_distance_points']);
  if v_error is not null then
    raise exception using errcode = 'TC001', message = 'resync_copier: ' || v_error,
      hint = 'copier_drift lists the items and their actions.';
  end if;
  perform private.refuse_leaving(c.id);
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  c := private.require_copier('resync_copier', p_request);  -- it may have changed while this call waited for the lock
  perform private.refuse_leaving(c.id);
  v_netting := (select a.mode = 'netting' from public.trading_accounts a where a.id = c.follower_account_id);

  for v_item in select value from jsonb_array_elements(p_request -> 'items') loop
    n := n + 1;
    if v_netting and (v_item ->> 'action' = 'adopt' or v_item ->> 'kind' = 'orphan') then
      raise exception using errcode = 'TC308',
        message = format('resync_copier: a netting account has one position per symbol, so %s is not possible',
          case when v_item ->> 'action' = 'adopt' then 'adopting one' else 'closing what no copy holds' end),
        hint = 'Trade by hand on the follower''s account; the copier never touches what no copy holds.';
    end if;
    d := null;
    select x.* into d from private.drift_of(c) x where private.is_meant(x, v_item)
    order by coalesce(x.master_kind, x.ticket_kind) = 'position' desc limit 1;
    v_refused := private.copy_refused(d, (p_request ->> 'max_distance_points')::numeric);
    v_item := v_item || jsonb_build_object('n', n);
    if d.kind is null or exists (
      select 1 from unnest(v_tickets, v_kinds) u (ticket, kind)
      where u.ticket = d.master_ticket and u.kind = d.master_kind) then
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'nothing_to_do', null,
        'There is no such difference now: it is copied, closed or in progress.', null));
    elsif v_item ->> 'action' = 'dismiss' then
      insert into private.drift_dismissals as x (copier_id, kind, master_ticket, master_kind, ticket, ticket_kind, seen,
        dismissed_at)
      values (c.id, d.kind, d.master_ticket, coalesce(d.master_kind, ''), coalesce(d.ticket, ''),
        coalesce(d.ticket_kind, ''), d.seen, v_now)
      on conflict (copier_id, kind, master_ticket, master_kind, ticket, ticket_kind) do update set seen = excluded.seen,
        dismissed_at = excluded.dismissed_at;
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'dismissed', null, null, null));
    elsif v_item ->> 'action' = 'adopt' then
      if v_item ->> 'ticket' = any (d.adoptable) then
        perform private.adopt_position(c, d, v_item ->> 'ticket', v_now);
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'adopted', null, null, null));
      else
        v_answers := v_answers || jsonb_build_object(n,
          private.resync_answer(v_item, 'refused', 'not_adoptable', format(
          'Position %s of the follower is closed, held by another copy, being worked on, or not of the symbol and side '
          'of %s.',
          v_item ->> 'ticket', d.master_ticket), null));
      end if;
    elsif v_item ->> 'action' = 'close' then
      if private.frozen_by(c) in ('trading_stopped', 'account_off') then
        v_answers := v_answers || jsonb_build_object(n,
          private.resync_answer(v_item, 'refused', private.frozen_by(c), null, null));
      else
        v_new := v_new || private.close_orphan(c, d, v_now);
        v_answers := v_answers || jsonb_build_object(n,
          private.resync_answer(v_item, 'queued', null, null, v_new[cardinality(v_new):]));
      end if;
    elsif v_refused.reason is not null and (d.kind = 'missing' or d.held_lots < d.target_lots) then
      v_answers := v_answers || jsonb_build_object(n,
        private.resync_answer(v_item, 'refused', v_refused.reason, v_refused.message, null));
    else
      update public.position_links l set resync_lots = d.target_lots - d.held_lots
      where l.id = d.link_id and l.ended_at is null and d.held_lots < d.target_lots;
      v_tickets := v_tickets || d.master_ticket;
      v_kinds := v_kinds || d.master_kind;
      v_links := v_links || case when d.kind = 'size_mismatch' then d.link_id end;
      if d.kind = 'missing' then
        v_missing := v_missing || d.master_ticket;
        v_missing_kinds := v_missing_kinds || d.master_kind;
      end if;
      v_items := v_items || jsonb_build_array(v_item || jsonb_build_object('drift', to_jsonb(d)));
    end if;
  end loop;

  v_links := array_remove(v_links, null);
  if cardinality(v_missing) > 0 then
    v_new := v_new || coalesce(private.decide_kinds(
      array_fill(c.master_account_id, array[cardinality(v_missing)]), v_missing, v_missing_kinds, array[c.id], v_now,
      'resync'), '{}');
  end if;
  if cardinality(v_tickets) > 0 then
    v_new := v_new || coalesce(private.plan(v_links, array_fill(c.master_account_id, array[cardinality(v_tickets)]),
      v_tickets, array[c.id], v_now), '{}');
  end if;
  for v_item in select value from jsonb_array_elements(v_items) loop
    v_answers := v_answers || jsonb_build_object(v_item ->> 'n', private.copy_answer(c, v_item,
      jsonb_populate_record(null::private.drift, v_item -> 'drift')));
  end loop;
  -- a request that could not be decided now is not decided later
  update public.position_links l set resync_lots = null where l.id = any (v_links) and l.resync_lots is not null;
  perform private.offer(v_new, null, clock_timestamp());
  delete from private.drift_dismissals x where x.copier_id = c.id and not exists (
    select 1 from private.drift_of(c) y
    where y.kind = x.kind and y.master_ticket = x.master_ticket and coalesce(y.master_kind, '') = x.master_kind
      and coalesce(y.ticket, '') = x.ticket and coalesce(y.ticket_kind, '') = x.ticket_kind
      and y.seen = x.seen);
  return jsonb_build_object('copier_id', c.id, 'items', (
    select jsonb_agg(v_answers -> i::text order by i) from generate_series(1, n) i));
end $$;

create function public.resync_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.resync_copier(p_request) $$;
comment on function public.resync_copier(jsonb) is
  'Users and operators: acts on differences that copier_drift lists. A second call finds nothing to do and says so.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- items (list of objects; required; 1 to 200 items): the differences and actions
- items[].kind (text; required; missing, orphan or size_mismatch): kind of the item in copier_drift
- items[].action (text; required; one of the item''s actions in copier_drift): copy, adopt, close or dismiss
- items[].master_ticket (text; required except for orphans; at most 64 characters): position of the master
- items[].ticket (text; required for orphans and adopt; at most 64 characters): position of the follower
- items[].master_kind, ticket_kind (text; position or order): which one is meant where an order and a position carry the
  number; left out or null: the position
- max_distance_points (number; 0 or more): copy only if the price is not further than this from the master''s; left out
  or null: any
Answer:
- copier_id (uuid): the copier
- items (list of objects): one per item of the request, in the same order
- items[].kind, action, master_ticket, ticket (text or null): as in the request
- items[].result (text; queued, adopted, dismissed, refused or nothing_to_do): what was done
- items[].reason (text or null): a reason of docs/errors.md, if it was refused
- items[].message (text or null): the same in a sentence
- items[].executions (list of texts): numbers of the executions that were queued
Errors: TC001 TC105 TC106 TC108 TC301 TC307 TC308
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "items": [{"kind": "missing", "master_ticket": "5001",
  "action": "copy"}],
"max_distance_points": "50"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "items": [{"kind": "missing", "action": "copy",
  "master_ticket": "5001",
"ticket": null, "result": "queued", "reason": null, "message": null, "executions": ["123"]}]}';

revoke all on function public.resync_copier(jsonb) from public, anon;
grant execute on function public.resync_copier(jsonb), private.resync_copier(jsonb) to authenticated;
