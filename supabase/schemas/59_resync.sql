-- Resync: what a copier's follower holds and should not, or does not hold and should, and what its user does about each. Explicit, one by one:
-- nothing here happens by itself.

create table private.drift_dismissals (
  copier_id uuid not null references public.copiers (id) on delete cascade,
  kind text not null,
  master_ticket text not null,
  ticket text not null,
  seen text not null,
  dismissed_at timestamptz not null,
  primary key (copier_id, kind, master_ticket, ticket)
);
comment on table private.drift_dismissals is 'Differences that a user does not want to see again, until something about them changes.';
comment on column private.drift_dismissals.seen is 'what the difference was: another one is shown';
alter table private.drift_dismissals enable row level security;

create type private.drift as (
  kind text, master_ticket text, ticket text, link_id bigint, symbol text, side text, lots numeric, held_lots numeric, target_lots numeric,
  price numeric, price_now numeric, digits integer, reason text, actions text[], adoptable text[], seen text
);
comment on type private.drift is 'One difference between what a copier''s follower holds and what its master holds.';

-- The follower's symbol for a trade of the master, as decide() chooses it.
create function private.copied_symbol(p_copier public.copiers, p_symbol text) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_named public.account_symbols;
  v_mapped text;
begin
  select * into v_master from public.account_symbols s where s.account_id = p_copier.master_account_id and s.name = p_symbol;
  select y.follower_symbol into v_mapped from public.symbol_mappings y where y.copier_id = p_copier.id and y.master_symbol = p_symbol;
  select * into v_named from public.account_symbols s where s.account_id = p_copier.follower_account_id and s.name = coalesce(v_mapped, p_symbol);
  if v_mapped is not null or v_named.contract_size = v_master.contract_size and v_named.profit_currency = v_master.profit_currency
    and v_named.trade_mode not in ('close_only', 'disabled') then
    return v_named;
  end if;
  select * into v_follower from public.trading_accounts a where a.id = p_copier.follower_account_id;
  return private.follower_symbol(v_follower, v_master);
end $$;

-- What an open would be made at now, by the follower's quote or else the master's; null: neither has a fresh one.
create function private.price_now(p_copier public.copiers, p_symbol public.account_symbols, p_master_symbol text, p_side text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  if p_symbol.quoted_at > v_since then
    return case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  return (
    select case p_side when 'buy' then s.ask else s.bid end from public.account_symbols s
    where s.account_id = p_copier.master_account_id and s.name = p_master_symbol and s.quoted_at > v_since);
end $$;

-- Whether a live link holds a ticket, or an execution is at work on it.
create function private.is_taken(p public.positions) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
      select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
      where g.account_id = p.account_id and g.ticket = p.ticket)
    or exists (
      select 1 from public.trade_execution_queue q
      where q.account_id = p.account_id and q.in_flight and (q.id = p.tag or q.ticket = p.ticket));
end $$;

-- Whether a position of the follower was opened by this copier for this position of the master.
create function private.is_copy_of(p public.positions, p_copier uuid, p_master_ticket text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.trade_execution_queue q join public.position_links l on l.id = q.link_id
    where q.id = p.tag and q.account_id = p.account_id and l.copier_id = p_copier and l.master_ticket = p_master_ticket);
end $$;

-- The master's positions without a live copy, each with the reason why there is none.
create function private.missing_copies(p_copier public.copiers, p_netting boolean) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
declare
  m record;
  s public.account_symbols;
  v_side text;
  v_adoptable text[];
  v_held boolean;
begin
  for m in
    select p.*, l.id as link_id, case when l.id is null then 'existing' else l.reason end as why
    from public.positions p
    left join lateral (
      select k.id, k.state, k.reason from public.position_links k
      where k.master_account_id = p.account_id and k.master_ticket = p.ticket and k.copier_id = p_copier.id
      order by k.generation desc limit 1
    ) l on true
    where p.account_id = p_copier.master_account_id and p.closed_at is null and coalesce(l.state, 'ended') = 'ended'
      and (p.kind = 'position' or p_copier.copy_pending and not p_netting)
    order by p.first_seen_at, p.ticket
  loop
    s := private.copied_symbol(p_copier, m.symbol);
    v_side := case when (m.side = 'buy') = p_copier.reverse then 'sell' else 'buy' end;
    select coalesce(array_agg(p.ticket order by p.opened_at, p.ticket), '{}'), coalesce(bool_or(private.is_copy_of(p, p_copier.id, m.ticket)), false)
    into v_adoptable, v_held
    from public.positions p
    where p.account_id = p_copier.follower_account_id and p.closed_at is null and p.kind = 'position' and m.kind = 'position'
      and not p_netting and p.symbol = s.name and p.side = v_side and not private.is_taken(p);
    return next row('missing', m.ticket, null, m.link_id, m.symbol, m.side, m.lots, null, null, m.price,
      private.price_now(p_copier, s, m.symbol, v_side), s.digits, case when v_held then 'held_already' else m.why end,
      case when v_held then '{}' else array['copy'] end || case when v_adoptable <> '{}' then array['adopt'] else '{}' end || array['dismiss'],
      v_adoptable, concat_ws('|', m.side, m.lots, m.link_id, v_held))::private.drift;
  end loop;
end $$;

-- Copies of ours that no link holds any more, and whose master is closed. What its user was left with (preserve) is none of them.
create function private.orphans(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'orphan', coalesce(l.master_ticket, ''), p.ticket, l.id, p.symbol, p.side, p.lots, p.lots, 0::numeric, p.price, null::numeric,
    null::integer, 'closed', array['close', 'dismiss'], null::text[], concat_ws('|', p.side, p.lots)
  from public.positions p
  join public.trade_execution_queue q on q.id = p.tag and q.account_id = p.account_id and q.copier_id = p_copier.id
  left join public.position_links l on l.id = q.link_id
  where p.account_id = p_copier.follower_account_id and p.closed_at is null and not p.released and not private.is_taken(p)
    and l.reason is distinct from 'master_never_filled'  -- early_fill_policy keep
    and not exists (
      select 1 from public.positions m where m.account_id = l.master_account_id and m.ticket = l.master_ticket and m.closed_at is null)
  order by p.ticket;
end $$;

-- Live copies that hold something else than what the settings made of their master when it was copied: trimmed by hand, or an increase that was
-- refused. What is in flight is none, nor what is less than the follower's minimum.
create function private.size_mismatches(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'size_mismatch', s.master_ticket, (select min(g.ticket) from private.link_legs g where g.link_id = s.id), s.id, m.symbol, m.side,
    m.lots, s.position_lots, t.lots, m.price, private.price_now(p_copier, f, m.symbol, s.side), f.digits,
    case when s.position_lots > t.lots then coalesce(private.frozen_by(p_copier), 'coalesced')
      when s.position_lots < private.target_lots(s.base_lots, m.lots, s.base_master_lots, s.lots_step, s.lots_min, 1e12) then 'closed_by_follower'
      else coalesce(s.reason, 'not_copied') end,
    array['copy', 'dismiss'], null::text[], concat_ws('|', s.position_lots, t.lots)
  from private.link_states s
  join public.positions m on m.account_id = s.master_account_id and m.ticket = s.master_ticket and m.closed_at is null and m.kind = 'position'
  join public.account_symbols f on f.account_id = s.follower_account_id and f.name = s.symbol
  cross join lateral (
    select private.target_lots(s.sized_lots, m.lots, s.sized_master_lots, f.lots_step, f.lots_min, 1e12) as lots) t
  where s.follower_account_id = p_copier.follower_account_id and s.state = 'live' and s.copier_id = p_copier.id and not s.doomed
    and s.executions = 0 and s.wanted_lots is null and s.base_lots is not null and s.sized_lots is not null
    and (t.lots - s.position_lots >= f.lots_min or s.position_lots - t.lots >= f.lots_min and s.position_lots
      > private.target_lots(s.base_lots, m.lots, s.base_master_lots, f.lots_step, f.lots_min, s.position_lots))
    and not exists (  -- a netting deal in flight may be this link's, too
      select 1 from public.trade_execution_queue q
      where s.account_mode = 'netting' and q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight)
  order by s.id;
end $$;

-- What keeps even closes and reductions of a copier from being made now, or null.
create function private.frozen_by(p_copier public.copiers) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select case when private.trading_state() = 'off' then 'trading_stopped' when a.copy_state = 'off' then 'account_off'
      when p_copier.mode = 'off' and p_copier.removal is null then 'copier_off' end
    from public.trading_accounts a where a.id = p_copier.follower_account_id);
end $$;

create function private.drift_of(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a where a.id = p_copier.follower_account_id);
begin
  return query select d.* from private.missing_copies(p_copier, v_netting) d;
  if not v_netting then  -- which part of a net position no link holds, nobody can tell
    return query select d.* from private.orphans(p_copier) d;
  end if;
  return query select d.* from private.size_mismatches(p_copier) d;
end $$;

-- The caller's copier, or any for an operator; TC106 otherwise.
create function private.require_copier(p_function text, p_request jsonb) returns public.copiers
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  c public.copiers;
begin
  select * into c from public.copiers x
  where x.id = private.uuid_of(p_request, 'copier_id') and (x.user_id = v_user or private.is_operator()) and x.removed_at is null;
  if c.id is null then
    raise exception using errcode = 'TC106', message = format('%s: copier %s does not exist or is not yours', p_function, p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  return c;
end $$;

-- {"copier_id", "dismissed": false} -> {"copier_id", "items": […]}, see docs/protocol.md. "dismissed": true shows the dismissed ones, too.
create function private.copier_drift(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers := private.require_copier('copier_drift', p_request);
begin
  return jsonb_build_object('copier_id', c.id, 'items', (
    select coalesce(jsonb_agg(jsonb_build_object('kind', d.kind, 'master_ticket', nullif(d.master_ticket, ''), 'ticket', d.ticket,
        'symbol', d.symbol, 'side', d.side, 'lots', trim_scale(d.lots)::text, 'held_lots', trim_scale(d.held_lots)::text,
        'target_lots', trim_scale(d.target_lots)::text, 'price', trim_scale(d.price)::text, 'price_now', trim_scale(d.price_now)::text,
        'distance_points', private.distance_points(d), 'reason', d.reason, 'actions', to_jsonb(d.actions),
        'adoptable', to_jsonb(coalesce(d.adoptable, '{}')), 'dismissed', x.copier_id is not null)), '[]')
    from private.drift_of(c) d
    left join private.drift_dismissals x on x.copier_id = c.id and x.kind = d.kind and x.master_ticket = d.master_ticket
      and x.ticket = coalesce(d.ticket, '') and x.seen = d.seen
    where x.copier_id is null or coalesce((p_request ->> 'dismissed')::boolean, false)));
end $$;

-- How far the price has moved from the master's, whichever way; null: nobody knows.
create function private.distance_points(d private.drift) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(round(abs(d.price_now - d.price) * 10::numeric ^ d.digits, 1));
end $$;

-- What is wrong with a call of resync_copier; null when nothing is.
create function private.resync_error(p_request jsonb) returns text
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_field text;
begin
  if jsonb_typeof(p_request -> 'items') is distinct from 'array' or jsonb_array_length(p_request -> 'items') not between 1 and 200 then
    return '"items" must be an array of 1 to 200 items';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'max_distance_points'), 'null') <> 'null'
    and coalesce(not private.is_number(p_request -> 'max_distance_points') or (p_request ->> 'max_distance_points')::numeric < 0, true) then
    return 'max_distance_points must be a number, not negative';
  end if;
  for e in select value from jsonb_array_elements(p_request -> 'items') loop
    if jsonb_typeof(e) is distinct from 'object' then return 'an item is not an object'; end if;
    if not coalesce(case e ->> 'kind' when 'missing' then e ->> 'action' in ('copy', 'adopt', 'dismiss')
      when 'orphan' then e ->> 'action' in ('close', 'dismiss') when 'size_mismatch' then e ->> 'action' in ('copy', 'dismiss') end, false) then
      return format('there is no action %s for an item of kind %s: missing takes copy, adopt and dismiss; orphan close and dismiss; '
        'size_mismatch copy and dismiss', coalesce(e ->> 'action', '(none)'), coalesce(e ->> 'kind', '(none)'));
    end if;
    foreach v_field in array case when e ->> 'kind' = 'orphan' then array['ticket']
      when e ->> 'action' = 'adopt' then array['master_ticket', 'ticket'] else array['master_ticket'] end
    loop
      if jsonb_typeof(e -> v_field) is distinct from 'string' then
        return format('an item of kind %s with action %s needs %s, a text', e ->> 'kind', e ->> 'action', v_field);
      end if;
    end loop;
  end loop;
  return null;
end $$;

-- Binds a position of the follower to the master's, without any order: its levels count as asked for.
create function private.adopt_position(p_copier public.copiers, d private.drift, p_ticket text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link bigint;
  v_wanted record;
begin
  insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket, master_side, generation, symbol,
    side, state, seen_master_lots, base_master_lots, base_lots, sized_lots, sized_master_lots, warnings, event_id, created_at)
  select p_copier.user_id, p_copier.id, m.account_id, p.account_id, m.ticket, m.side, coalesce((
      select max(o.generation) from public.position_links o
      where o.master_account_id = m.account_id and o.master_ticket = m.ticket and o.copier_id = p_copier.id), 0) + 1,
    p.symbol, p.side, 'live', m.lots, m.lots, p.lots, p.lots, m.lots, array['adopted'], m.last_event_id, p_now
  from public.positions m, public.positions p
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket
    and p.account_id = p_copier.follower_account_id and p.ticket = p_ticket
  returning id into v_link;
  insert into private.link_legs (link_id, account_id, ticket, kind, lots, price)
  select v_link, p.account_id, p.ticket, p.kind, p.lots, p.price from public.positions p
  where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket;
  update public.positions p set released = false where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.released;
  select s.wanted_sl, s.wanted_tp into v_wanted from private.link_states s where s.id = v_link;
  update public.position_links l set asked_sl = v_wanted.wanted_sl, asked_tp = v_wanted.wanted_tp where l.id = v_link;
end $$;

-- Queues the close of a copy that no link holds. Returns the new execution.
create function private.close_orphan(p_copier public.copiers, p_ticket text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint := nextval('public.trade_execution_queue_id_seq');
begin
  insert into public.trade_execution_queue (id, step_id, lane, copier_id, user_id, account_id, action, priority, symbol, side, lots, target_lots,
    ticket, send_before, queued_at, updated_at)
  overriding system value
  select v_id, v_id, 'orphan:' || p.ticket, p_copier.id, p.user_id, p.account_id, case p.kind when 'order' then 'cancel' else 'close' end, 10,
    p.symbol, p.side, p.lots, 0, p.ticket, p_now, p_now, p_now
  from public.positions p where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket;
  return v_id;
end $$;

create function private.resync_answer(p_item jsonb, p_result text, p_reason text, p_message text, p_executions bigint[]) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_build_object('kind', p_item ->> 'kind', 'action', p_item ->> 'action', 'master_ticket', p_item ->> 'master_ticket',
    'ticket', p_item ->> 'ticket', 'result', p_result, 'reason', p_reason, 'message', p_message,
    'executions', coalesce((select jsonb_agg(x::text) from unnest(p_executions) x), '[]'));
end $$;

-- Why a copy may not even be decided, or null: what is held already is not bought twice, and the price may have run away.
create function private.copy_refused(d private.drift, p_max_distance numeric, out reason text, out message text)
language plpgsql immutable set search_path = '' as $$
begin
  if not 'copy' = any (d.actions) then
    reason := 'held_already';
    message := format('The follower still holds a position that was opened for %s: adopt it, or close it first.', d.master_ticket);
  elsif p_max_distance is not null and private.distance_points(d) is null then
    reason := 'no_quote';
    message := format('Nobody knows the price of %s now, so its distance from %s cannot be told.', d.symbol, private.plain(d.price));
  elsif private.distance_points(d) > p_max_distance then
    reason := 'price_moved';
    message := format('The price is %s, %s points from the master''s %s; at most %s were allowed.', private.plain(d.price_now),
      private.distance_points(d), private.plain(d.price), private.plain(p_max_distance));
  end if;
end $$;

-- What came of a copy that was put before the planner: its new executions, or the reason why there are none.
create function private.copy_answer(p_copier public.copiers, p_item jsonb, d private.drift) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  l public.position_links;
  v_executions bigint[];
  v_detail text;
begin
  select * into l from public.position_links k
  where k.master_account_id = p_copier.master_account_id and k.master_ticket = d.master_ticket and k.copier_id = p_copier.id
  order by k.generation desc limit 1;
  select array_agg(q.id order by q.id) into v_executions from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null;
  if l.state = 'live' and (v_executions is not null or l.wanted_lots is not null or exists (
    select 1 from public.trade_execution_queue q
    where q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text))))
  then
    return private.resync_answer(p_item, 'queued', null, null, v_executions);
  end if;
  select o.detail into v_detail from public.positions m
  join public.copy_outcomes o on o.event_id = m.last_event_id and o.copier_id = p_copier.id and o.reason = l.reason
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket;
  return private.resync_answer(p_item, 'refused', coalesce(l.reason, private.frozen_by(p_copier), 'no_change'), v_detail, null);
end $$;

-- Whether a drift is the one that an item of a call speaks of.
create function private.is_meant(d private.drift, p_item jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return d.kind = p_item ->> 'kind' and case d.kind when 'orphan' then d.ticket = p_item ->> 'ticket' else d.master_ticket = p_item ->> 'master_ticket' end;
end $$;

-- {"copier_id", "items": [{"kind", "master_ticket", "ticket", "action"}], "max_distance_points": null} -> {"copier_id", "items": [{…, "result":
-- "queued|adopted|dismissed|refused|nothing_to_do", "reason", "message", "executions"}]}, one per item, in order.
-- Longer than forty lines: it is one walk over the items.
create function private.resync_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
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
  v_missing text[] := '{}';
  v_new bigint[] := '{}';
  n integer := 0;
begin
  if v_error is not null then
    raise exception using errcode = 'TC001', message = 'resync_copier: ' || v_error, hint = 'copier_drift lists the items and their actions.';
  end if;
  perform private.refuse_leaving(c.id);
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  c := private.require_copier('resync_copier', p_request);  -- it may have changed while we waited
  perform private.refuse_leaving(c.id);
  v_netting := (select a.mode = 'netting' from public.trading_accounts a where a.id = c.follower_account_id);

  for v_item in select value from jsonb_array_elements(p_request -> 'items') loop
    n := n + 1;
    if v_netting and (v_item ->> 'action' = 'adopt' or v_item ->> 'kind' = 'orphan') then
      raise exception using errcode = 'TC308', message = format('resync_copier: a netting account has one position per symbol, so %s is not possible',
          case when v_item ->> 'action' = 'adopt' then 'adopting one' else 'closing what no copy holds' end),
        hint = 'Deal it by hand at the follower; what no copy holds is never touched.';
    end if;
    d := null;
    select x.* into d from private.drift_of(c) x where private.is_meant(x, v_item) limit 1;
    v_refused := private.copy_refused(d, (p_request ->> 'max_distance_points')::numeric);
    v_item := v_item || jsonb_build_object('n', n);
    if d.kind is null or v_item ->> 'master_ticket' = any (v_tickets) then
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'nothing_to_do', null,
        'There is no such difference (any more): it is copied, closed or being worked on.', null));
    elsif v_item ->> 'action' = 'dismiss' then
      insert into private.drift_dismissals as x (copier_id, kind, master_ticket, ticket, seen, dismissed_at)
      values (c.id, d.kind, d.master_ticket, coalesce(d.ticket, ''), d.seen, v_now)
      on conflict (copier_id, kind, master_ticket, ticket) do update set seen = excluded.seen, dismissed_at = excluded.dismissed_at;
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'dismissed', null, null, null));
    elsif v_item ->> 'action' = 'adopt' then
      if v_item ->> 'ticket' = any (d.adoptable) then
        perform private.adopt_position(c, d, v_item ->> 'ticket', v_now);
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'adopted', null, null, null));
      else
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'refused', 'not_adoptable', format(
          'Position %s of the follower is closed, held by another copy, being worked on, or not of the symbol and side of %s.',
          v_item ->> 'ticket', d.master_ticket), null));
      end if;
    elsif v_item ->> 'action' = 'close' then
      if private.frozen_by(c) in ('trading_stopped', 'account_off') then
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'refused', private.frozen_by(c), null, null));
      else
        v_new := v_new || private.close_orphan(c, d.ticket, v_now);
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'queued', null, null, v_new[cardinality(v_new):]));
      end if;
    elsif v_refused.reason is not null and (d.kind = 'missing' or d.held_lots < d.target_lots) then
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'refused', v_refused.reason, v_refused.message, null));
    else
      update public.position_links l set resync_lots = d.target_lots - d.held_lots
      where l.id = d.link_id and l.ended_at is null and d.held_lots < d.target_lots;
      v_tickets := v_tickets || d.master_ticket;
      v_links := v_links || case when d.kind = 'size_mismatch' then d.link_id end;
      v_missing := v_missing || case when d.kind = 'missing' then d.master_ticket end;
      v_items := v_items || jsonb_build_array(v_item || jsonb_build_object('drift', to_jsonb(d)));
    end if;
  end loop;

  v_missing := array_remove(v_missing, null);
  v_links := array_remove(v_links, null);
  v_new := v_new || coalesce(private.decide(array_fill(c.master_account_id, array[cardinality(v_missing)]), v_missing, array[c.id], v_now, 'resync'), '{}');
  v_new := v_new || coalesce(private.plan(v_links, array_fill(c.master_account_id, array[cardinality(v_tickets)]), v_tickets, array[c.id], v_now), '{}');
  for v_item in select value from jsonb_array_elements(v_items) loop
    v_answers := v_answers || jsonb_build_object(v_item ->> 'n', private.copy_answer(c, v_item,
      jsonb_populate_record(null::private.drift, v_item -> 'drift')));
  end loop;
  -- what was asked for and could not be decided now is not decided later
  update public.position_links l set resync_lots = null where l.id = any (v_links) and l.resync_lots is not null;
  perform private.offer(v_new, null, clock_timestamp());
  delete from private.drift_dismissals x where x.copier_id = c.id and not exists (
    select 1 from private.drift_of(c) y
    where y.kind = x.kind and y.master_ticket = x.master_ticket and coalesce(y.ticket, '') = x.ticket and y.seen = x.seen);
  return jsonb_build_object('copier_id', c.id, 'items', (
    select jsonb_agg(v_answers -> i::text order by i) from generate_series(1, n) i));
end $$;

create function public.copier_drift(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.copier_drift(p_request) $$;
comment on function public.copier_drift(jsonb) is
  'How what a copier''s follower holds differs from its master: missing, orphan and size_mismatch, each with the reason and what can be done.';
create function public.resync_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.resync_copier(p_request) $$;
comment on function public.resync_copier(jsonb) is 'Does something about differences of copier_drift: copy, close, adopt or dismiss, each by the user''s own decision.';
revoke all on function public.copier_drift(jsonb), public.resync_copier(jsonb) from public, anon;
grant execute on function public.copier_drift(jsonb), private.copier_drift(jsonb), public.resync_copier(jsonb), private.resync_copier(jsonb) to authenticated;
