-- Drift: what a copier's follower holds but should not, or should hold but does not, as users see it. Nothing here
-- changes a position.

create table private.drift_dismissals (
  copier_id uuid not null references public.copiers (id) on delete cascade,
  kind text not null,
  master_ticket text not null,
  master_kind text not null,
  ticket text not null,
  ticket_kind text not null,
  seen text not null,
  dismissed_at timestamptz not null,
  primary key (copier_id, kind, master_ticket, master_kind, ticket, ticket_kind)
);
comment on table private.drift_dismissals is
  'Drift entries that a user has dismissed; they stay hidden until something about them changes.';
comment on column private.drift_dismissals.seen is
  'state of the difference when it was dismissed; another state is shown';
alter table private.drift_dismissals enable row level security;

create type private.drift as (
  kind text, master_ticket text, ticket text, link_id bigint, symbol text, side text, lots numeric, held_lots numeric,
    target_lots numeric,
  price numeric, price_now numeric, digits integer, reason text, actions text[], adoptable text[], seen text,
    master_kind text, ticket_kind text
);
comment on type private.drift is
  'One difference between what a copier''s follower holds and what it should hold.';

-- The follower's symbol for a trade of the master, chosen as decide() does.
create function private.copied_symbol(p_copier public.copiers, p_symbol text) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_named public.account_symbols;
  v_mapped text;
begin
  select * into v_master from public.account_symbols s
  where s.account_id = p_copier.master_account_id and s.name = p_symbol;
  v_mapped := (private.mapping_of(p_copier.id, p_symbol)).follower_symbol;
  if v_mapped is not null then return private.symbol_named(p_copier.follower_account_id, v_mapped); end if;
  select * into v_named from public.account_symbols s
  where s.account_id = p_copier.follower_account_id and s.name = p_symbol;
  if v_named.contract_size = v_master.contract_size
    and v_named.profit_currency = v_master.profit_currency
    and v_named.trade_mode not in ('close_only', 'disabled') then
    return v_named;
  end if;
  select * into v_follower from public.trading_accounts a where a.id = p_copier.follower_account_id;
  return private.follower_symbol(v_follower, v_master);
end $$;

-- The present price of an open, from the follower's quote or else the master's; null: neither has a fresh one.
create function private.price_now(p_copier public.copiers, p_symbol public.account_symbols, p_master_symbol text,
  p_side text) returns numeric
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

-- Whether a live link holds the position, or an execution for it is in flight.
create function private.is_taken(p public.positions) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
      select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
      where g.account_id = p.account_id and g.ticket = p.ticket and g.ticket_kind = p.kind)
    or exists (
      select 1 from public.trade_execution_queue q
      where q.account_id = p.account_id and q.in_flight
        and (q.id = p.tag or q.ticket = p.ticket and private.kind_of(q.action) = p.kind));
end $$;

-- Whether this copier opened a position of the follower for this position of the master.
create function private.is_copy_of(p public.positions, p_copier uuid, p_master_ticket text,
  p_master_kind text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.trade_execution_queue q join public.position_links l on l.id = q.link_id
    where q.id = p.tag and q.account_id = p.account_id and l.copier_id = p_copier
      and l.master_ticket = p_master_ticket and l.master_kind = p_master_kind);
end $$;

-- The master's positions that have no live copy, each with the reason.
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
    select p.*, l.id as link_id, case
        when exists (select from private.symbol_waits w where w.copier_id = p_copier.id
          and w.master_account_id = p.account_id and w.ticket = p.ticket and w.kind = p.kind) then 'symbols_loading'
        when l.id is null then 'existing'
        else l.reason end as why
    from public.positions p
    left join lateral (
      select k.id, k.state, k.reason from public.position_links k
      where k.master_account_id = p.account_id and k.master_ticket = p.ticket and k.master_kind = p.kind
        and k.copier_id = p_copier.id
      order by k.generation desc limit 1
    ) l on true
    where p.account_id = p_copier.master_account_id and p.closed_at is null and coalesce(l.state, 'ended') = 'ended'
      and (p.kind = 'position' or p_copier.copy_pending and not p_netting)
    order by p.first_seen_at, p.ticket
  loop
    s := private.copied_symbol(p_copier, m.symbol);
    v_side := case when (m.side = 'buy') = p_copier.reverse then 'sell' else 'buy' end;
    select coalesce(array_agg(p.ticket order by p.opened_at, p.ticket), '{}'),
      coalesce(bool_or(private.is_copy_of(p, p_copier.id, m.ticket, m.kind)), false)
    into v_adoptable, v_held
    from public.positions p
    where p.account_id = p_copier.follower_account_id and p.closed_at is null and p.kind = 'position'
      and m.kind = 'position'
      and not p_netting and p.symbol = s.name and p.side = v_side and not private.is_taken(p);
    return next row('missing', m.ticket, null, m.link_id, m.symbol, m.side, m.lots, null, null, m.price,
      private.price_now(p_copier, s, m.symbol, v_side), s.digits, case when v_held then 'held_already' else m.why end,
      case when v_held then '{}' else array['copy'] end || case
        when v_adoptable <> '{}' then array['adopt'] else '{}' end || array['dismiss'],
      v_adoptable, concat_ws('|', m.side, m.lots, m.link_id, v_held), m.kind, null)::private.drift;
  end loop;
end $$;

-- Positions that a copier opened, that no link holds any more, and whose master position is closed. Positions that were
-- left to the user (preserve) do not count.
create function private.orphans(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'orphan', coalesce(l.master_ticket, ''), p.ticket, l.id, p.symbol, p.side, p.lots, p.lots, 0::numeric, p.price,
    null::numeric,
    null::integer, 'closed', array['close', 'dismiss'], null::text[], concat_ws('|', p.side, p.lots),
    coalesce(l.master_kind, ''), p.kind
  from public.positions p
  join public.trade_execution_queue q on q.id = p.tag and q.account_id = p.account_id and q.copier_id = p_copier.id
  left join public.position_links l on l.id = q.link_id
  where p.account_id = p_copier.follower_account_id and p.closed_at is null and not p.released
    and not private.is_taken(p)
    and l.reason is distinct from 'master_never_filled'  -- early_fill_policy keep
    and not exists (
      select 1 from public.positions m where m.account_id = l.master_account_id and m.ticket = l.master_ticket
        and m.kind = l.master_kind and m.closed_at is null)
  order by p.ticket;
end $$;

-- Live copies whose size differs from the settings' result when the position was copied: reduced by hand, or an
-- increase that was refused. Not copies with something in flight, nor differences below the follower's minimum.
create function private.size_mismatches(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'size_mismatch', s.master_ticket, (select min(g.ticket) from private.link_legs g where g.link_id = s.id), s.id,
    m.symbol, m.side,
    m.lots, s.position_lots, t.lots, m.price, private.price_now(p_copier, f, m.symbol, s.side), f.digits,
    case when s.position_lots > t.lots then coalesce(private.frozen_by(p_copier), 'coalesced')
      when s.position_lots < private.target_lots(s.base_lots, m.lots, s.base_master_lots, s.lots_step, s.lots_min, 1e12)
        then 'closed_by_follower'
      else coalesce(s.reason, 'not_copied') end,
    array['copy', 'dismiss'], null::text[], concat_ws('|', s.position_lots, t.lots),
    s.master_kind, 'position'
  from private.link_states s
  join public.positions m on m.account_id = s.master_account_id and m.ticket = s.master_ticket
    and m.kind = s.master_kind and m.closed_at is null and m.kind = 'position'
  join public.account_symbols f on f.account_id = s.follower_account_id and f.name = s.symbol
  cross join lateral (
    select private.target_lots(s.sized_lots, m.lots, s.sized_master_lots, f.lots_step, f.lots_min, 1e12) as lots) t
  where s.follower_account_id = p_copier.follower_account_id and s.state = 'live' and s.copier_id = p_copier.id
    and not s.doomed
    and s.executions = 0 and s.wanted_lots is null and s.base_lots is not null and s.sized_lots is not null
    and (t.lots - s.position_lots >= f.lots_min or s.position_lots - t.lots >= f.lots_min and s.position_lots
      > s.target_lots)
    and not exists (  -- a netting deal in flight may include this link
      select 1 from public.trade_execution_queue q
      where s.account_mode = 'netting' and q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight)
  order by s.id;
end $$;

-- Why not even closes and reductions of a copier can be made now, or null.
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
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a
    where a.id = p_copier.follower_account_id);
begin
  return query select d.* from private.missing_copies(p_copier, v_netting) d;
  if not v_netting then  -- nobody can tell which part of a net position no link holds
    return query select d.* from private.orphans(p_copier) d;
  end if;
  return query select d.* from private.size_mismatches(p_copier) d;
end $$;

-- The caller's copier, or any copier for an operator; TC106 otherwise.
create function private.require_copier(p_function text, p_request jsonb) returns public.copiers
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  c public.copiers;
begin
  select * into c from public.copiers x
  where x.id = private.uuid_of(p_request, 'copier_id') and (x.user_id = v_user or private.is_operator())
    and x.removed_at is null;
  if c.id is null then
    raise exception using errcode = 'TC106',
      message = format('%s: copier %s does not exist or is not yours', p_function, p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  return c;
end $$;

-- Distance of the present price from the master's in points, always positive; null: unknown.
create function private.distance_points(d private.drift) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(round(abs(d.price_now - d.price) * 10::numeric ^ d.digits, 1));
end $$;

-- {"copier_id", "dismissed": false} -> {"copier_id", "items": […]}, see docs/protocol.md. "dismissed": true also
-- returns dismissed items.
create function private.copier_drift(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers := private.require_copier('copier_drift', p_request);
begin
  perform private.refuse_unknown(p_request, 'copier_drift', array['copier_id', 'dismissed']);
  if coalesce(jsonb_typeof(p_request -> 'dismissed'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'copier_drift: dismissed must be true or false',
      hint = 'See docs/protocol.md.';
  end if;
  return jsonb_build_object('copier_id', c.id, 'items', (
    select coalesce(jsonb_agg(jsonb_build_object('kind', d.kind, 'master_ticket', nullif(d.master_ticket, ''),
      'master_kind', nullif(d.master_kind, ''), 'ticket', d.ticket, 'ticket_kind', d.ticket_kind,
        'symbol', d.symbol, 'side', d.side, 'lots', trim_scale(d.lots)::text, 'held_lots',
          trim_scale(d.held_lots)::text,
        'target_lots', trim_scale(d.target_lots)::text, 'price', trim_scale(d.price)::text, 'price_now',
          trim_scale(d.price_now)::text,
        'distance_points', private.distance_points(d), 'reason', d.reason, 'actions', to_jsonb(d.actions),
        'adoptable', to_jsonb(coalesce(d.adoptable, '{}')), 'dismissed', x.copier_id is not null)), '[]')
    from private.drift_of(c) d
    left join private.drift_dismissals x on x.copier_id = c.id and x.kind = d.kind and x.master_ticket = d.master_ticket
      and x.master_kind = coalesce(d.master_kind, '') and x.ticket = coalesce(d.ticket, '')
      and x.ticket_kind = coalesce(d.ticket_kind, '') and x.seen = d.seen
    where x.copier_id is null or coalesce((p_request ->> 'dismissed')::boolean, false)));
end $$;

create function public.copier_drift(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.copier_drift(p_request) $$;
comment on function public.copier_drift(jsonb) is
  'Users and operators: the differences between what a copier''s follower holds and what it should hold. Nothing is '
  'corrected automatically.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- dismissed (boolean): true also lists dismissed items; left out or null: false
Answer:
- copier_id (uuid): the copier
- items (list of objects): one per difference
- items[].kind (text; missing, orphan or size_mismatch): a position without a copy, a copy without a master, or a copy
  of another size
- items[].master_ticket (text or null): position of the master
- items[].master_kind (text or null; position or order): what the master''s ticket is
- items[].ticket (text or null): position of the follower
- items[].ticket_kind (text or null; position or order): what the follower''s ticket is
- items[].symbol, side, lots (text): of the master''s position; for an orphan, of the follower''s
- items[].held_lots, target_lots (text or null): lots that the copy holds, and lots that it should hold
- items[].price, price_now (text or null): the master''s open price, and the present price of an open
- items[].distance_points (number or null): distance between the two prices
- items[].reason (text): why there is a difference, a reason of docs/errors.md
- items[].actions (list of texts; copy, adopt, close, dismiss): actions that resync_copier accepts for it
- items[].adoptable (list of texts): positions of the follower that can be adopted
- items[].dismissed (boolean): whether it was dismissed
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "items": [{"kind": "missing", "master_ticket": "5001",
  "ticket": null,
"symbol": "EURUSD", "side": "buy", "lots": "1", "held_lots": null, "target_lots": null, "price": "1.1", "price_now":
"1.10042", "distance_points": 42, "reason": "follower_offline", "actions": ["copy", "dismiss"], "adoptable": [],
"dismissed": false}]}';

revoke all on function public.copier_drift(jsonb) from public, anon;
grant execute on function public.copier_drift(jsonb), private.copier_drift(jsonb) to authenticated;
