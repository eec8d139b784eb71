-- The planner, decisions: opens and increases, once per copier, master position, generation and increase, latched whatever comes of them.

-- Whether an account can be told to trade now; null = yes, else the reason.
create function private.unreachable(p_account public.trading_accounts, p_lease_ends timestamptz, p_now timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_account.removed_at is not null then 'account_removed'
    when p_account.status = 'halted' then 'account_halted'
    when p_lease_ends is null then 'follower_unassigned'
    when p_lease_ends <= p_now or p_account.status = 'pending' then 'follower_offline' end;
end $$;

-- Money of an account for sizing; unknown when it was measured before p_since.
create function private.fresh_funds(p_account public.trading_accounts, p_since timestamptz) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  if p_account.funds_at > p_since then
    return row(p_account.currency, p_account.balance, p_account.equity, p_account.free_margin)::private.funds;
  end if;
  return row(p_account.currency, null, null, null)::private.funds;
end $$;

-- A pending order under reverse: a buy limit becomes a sell stop.
create function private.copied_order_type(p_type text, p_reverse boolean) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when p_type is null then 'market' when not p_reverse then p_type when p_type = 'limit' then 'stop' else 'limit' end;
end $$;

-- Pairs (copier, master position) that wait for a decision: never seen, flipped, increased, or asked for by their user.
-- p_copiers null: all copiers of the masters. An old generation of a flip must be ended or have its close in flight.
-- p_asked: these very positions are asked for, however old: 'existing' by a copier's start, 'resync' by its user. One that was decided before
-- and is not held gets a new generation then. asked_lots: a live copy shall get just these, for its user asks.
create function private.undecided(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_asked text default null)
returns table (copier_id uuid, master_account_id uuid, ticket text, kind text, link_id bigint, generation integer, delta numeric, close_step bigint,
  asked_lots numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select c.id, m.account_id, m.ticket,
    case when l.id is null or p_asked is not null then 'new' when l.master_side <> m.side then 'flip' else 'increase' end,
    l.id, coalesce(l.generation, 0) + 1,
    case when l.id is null or p_asked is not null or l.master_side <> m.side or l.resync_lots is not null then m.lots
      else m.lots - l.seen_master_lots end,
    case when l.state = 'live' then f.close_step end, l.resync_lots
  from (select distinct u.master, u.ticket from unnest(p_masters, p_tickets) as u (master, ticket)) x
  join public.positions m on m.account_id = x.master and m.ticket = x.ticket and m.lots > 0
  join public.copiers c on c.master_account_id = x.master and c.removed_at is null and (p_copiers is null or c.id = any (p_copiers))
  join public.trading_accounts fa on fa.id = c.follower_account_id
  left join lateral (
    select pl.* from public.position_links pl
    where pl.master_account_id = x.master and pl.master_ticket = x.ticket and pl.copier_id = c.id
    order by pl.generation desc limit 1
  ) l on true
  left join lateral (
    select count(*) as executions, max(q.step_id) filter (where q.action in ('close', 'cancel')) as close_step
    from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
  ) f on true
  where case
    when p_asked is not null then (l.id is null or l.state = 'ended' and f.executions = 0)
      and (m.kind = 'position' or c.copy_pending and fa.mode = 'hedging')
    -- what was there before the copier is not news, except the fill of an order where orders are copied at their fill
    when l.id is null and c.copy_pending and fa.mode = 'hedging' then not m.existing and m.first_seen_at >= c.started_at
    when l.id is null then m.kind = 'position' and (not m.existing and m.first_seen_at >= c.started_at or coalesce(m.filled_at >= c.started_at, false))
    when l.master_side <> m.side then m.kind = 'position' and (l.state = 'ended' or f.close_step is not null or fa.mode = 'netting')
    else l.state = 'live' and m.kind = 'position' and (m.lots > l.seen_master_lots or l.resync_lots is not null) and f.executions = 0 and l.wanted_lots is null
      and l.base_lots is not null and (fa.mode = 'hedging' or not exists (  -- a deal may be its reduction, whichever link it is queued for
        select 1 from public.trade_execution_queue q where q.account_id = fa.id and q.symbol = l.symbol and q.in_flight
          and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text)))) end;
end $$;

-- The copier, sizing exactly the lots that its user asks for; limits and caps hold all the same.
create function private.sized_by(p_copier public.copiers, p_lots numeric) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sizing_mode := 'fixed';
  p_copier.sizing_value := p_lots;
  return p_copier;
end $$;

-- The price that slippage is measured from when a user asks for a copy long after the master's open: the one he sees now.
create function private.entry_price(p_symbol public.account_symbols, p_side text, p_master_price numeric, p_now timestamptz) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  if p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s') then
    return coalesce(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end, p_master_price);
  end if;
  return null;  -- whatever it is: the agent measures from the price it finds
end $$;

-- Where the stop of an increase will stand that the copier sets itself: it is measured from the copy's average price, which the increase moves
-- to somewhere between the present one and its own. The farther of both, so that no risk is forgotten.
create function private.stop_of_increase(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_link bigint, p_now timestamptz
) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_held numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, private.open_price(p_link), p_now)).sl;
  v_new numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, null, p_now)).sl;
begin
  return case p_side when 'buy' then least(v_held, v_new) else greatest(v_held, v_new) end;
end $$;

-- A copier whose stop is known: the master's level that it is sized with is the stop.
create function private.at_stop(p_copier public.copiers) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sl_mode := 'price';
  p_copier.max_sl_points := null;
  return p_copier;
end $$;

-- Decides every pair that waits for it, for any number of followers in one statement, and queues the orders of hedging followers;
-- what a netting follower shall open is latched as wanted_lots of its link, for 46_netting.sql. Returns the new executions.
-- p_asked: see private.undecided; what is asked for is as old as the asking. Longer than forty lines because it is that statement.
create function private.decide(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz, p_asked text default null) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_fresh_since timestamptz := p_now - private.setting_s('funds_max_age_s');
  v_send_within interval := private.send_within();
  v_trading text := private.trading_state();
begin
  if cardinality(p_tickets) > 1 and private.limits_count(p_masters) then  -- each counts against the next
    return private.decide_in_turn(p_masters, p_tickets, p_copiers, p_now, p_asked);
  end if;
  with pairs as (
    select u.kind, u.link_id, u.generation, u.delta, u.close_step, u.asked_lots, c, m, ma, fa, v.lease_expires_at as lease_ends, ms,
      v.id as vps_id, a.epoch, a.begins_at, private.unreachable(fa, v.lease_expires_at, p_now) as unreachable,
      private.shut(v_trading, fa.copy_state, fa.copy_state_reason, c.mode, c.removal) as shut,
      private.filtered(c, m, (private.fresh_funds(fa, v_fresh_since)).equity, u.kind <> 'increase',
        case u.kind when 'flip' then u.link_id end, p_now) as refusal,
      -- the user's mapping; else the same name with the same figures; else 38_symbol.sql decides
      case when ms.contract_size is null then null::public.account_symbols
        when y.copier_id is not null or named.contract_size = ms.contract_size and named.profit_currency = ms.profit_currency
          and named.trade_mode not in ('close_only', 'disabled') then named
        else private.choose_symbol(fa, ms) end as fs,
      case when (m.side = 'buy') = c.reverse then 'sell' else 'buy' end as side,
      case when p_asked is null and u.asked_lots is null then m.unseen_at else p_now end as news_at,
      coalesce(p_asked = 'resync', false) or u.asked_lots is not null as by_user
    from private.undecided(p_masters, p_tickets, p_copiers, p_asked) u
    join public.copiers c on c.id = u.copier_id
    join public.positions m on m.account_id = u.master_account_id and m.ticket = u.ticket
    join public.trading_accounts ma on ma.id = c.master_account_id
    join public.trading_accounts fa on fa.id = c.follower_account_id
    left join public.account_symbols ms on ms.account_id = ma.id and ms.name = m.symbol
    left join public.symbol_mappings y on y.copier_id = c.id and y.master_symbol = m.symbol
    left join public.account_symbols named on named.account_id = fa.id and named.name = coalesce(y.follower_symbol, m.symbol)
    left join public.account_vps_assignments a on a.account_id = fa.id
    left join public.vps_instances v on v.id = a.vps_id and v.retired_at is null
    offset 0  -- here and below: a fence, so that each row's functions are called once, without storing the wide rows
  ), checked as (
    select p.*, case
        when p.shut is not null then p.shut
        when p.news_at < p_now - make_interval(secs => (p.c).max_age_ms / 1000.0) then 'too_old'
        when p.unreachable is not null then p.unreachable
        when p.refusal is not null then p.refusal
        when (p.fs).contract_size is null or (p.fs).lots_step is null or (p.fs).lots_min is null or (p.fs).lots_max is null then 'symbol_unmapped'
        when (p.fs).trade_mode in ('close_only', 'disabled') or ((p.fs).trade_mode = 'long_only' and p.side = 'sell')
          or ((p.fs).trade_mode = 'short_only' and p.side = 'buy') then 'trade_disabled'
        when p_asked is not null or p.by_user then private.asked_too_late(coalesce(p_asked, 'resync'), p.c, p.m, p.ma, p.fs, p.side, p_now) end as verdict,
      p.kind = 'increase' and (p.m).kind = 'position' and ((p.c).sl_mode in ('distance', 'fixed') or (p.c).max_sl_points is not null) as own_stop
    from pairs p
    offset 0
  ), sized as (
    select k.*, case when k.verdict is null then private.size_order(
        case when k.own_stop then private.at_stop(y.sizer) else y.sizer end,
        private.fresh_funds(k.ma, v_fresh_since), private.fresh_funds(k.fa, v_fresh_since), k.ms, k.fs, (k.m).side, k.delta,
        -- what is bought today loses from today's price to the stop, wherever the master began; a stop by distance goes along with the price
        case when (k.kind = 'increase' or p_asked is not null and (k.c).sl_mode <> 'distance') and (k.m).kind = 'position'
          then coalesce(private.entry_price(k.fs, k.side, (k.m).price, p_now), (k.m).price) else (k.m).price end,
        case when k.own_stop and not (k.c).reverse then private.stop_of_increase(k.c, k.m, k.fs, k.side, k.link_id, p_now) else (k.m).sl end,
        case when k.own_stop and (k.c).reverse then private.stop_of_increase(k.c, k.m, k.fs, k.side, k.link_id, p_now) else (k.m).tp end,
        case when (k.ma).currency = (k.fa).currency and (k.fs).profit_currency = (k.fa).currency and (k.ms).profit_currency = (k.ma).currency
          then '{}'::jsonb
          else private.quoted_rates(array[(k.fa).id, (k.ma).id],
            array[(k.ma).currency, (k.fa).currency, (k.ms).profit_currency, (k.fs).profit_currency]) end) end as z,
      case when k.verdict is not null then null
        when (k.c).sl_mode = 'price' and (k.c).tp_mode = 'price' and (k.c).max_sl_points is null
          and (k.fs).stops_level_points = 0 and (k.fs).freeze_level_points = 0
        then private.price_levels(case when (k.c).reverse then (k.m).tp else (k.m).sl end,
          case when (k.c).reverse then (k.m).sl else (k.m).tp end, (k.fs).tick_size)
        else private.first_levels(k.c, k.m, k.fs, k.side,
        case when k.kind = 'increase' then private.open_price(k.link_id) end, p_now) end as levels,
      case when k.verdict is null and (k.c).max_open_lots is not null
        then (private.copier_load(k.c, case k.kind when 'flip' then k.link_id end, p_now)).lots end as held_lots,
      private.on_tick((k.m).price, (k.fs).tick_size) as order_price
    from checked k
    cross join lateral (select case when k.asked_lots is not null then private.sized_by(k.c, k.asked_lots)
      when (k.c).lots_jitter_percent > 0 then private.jittered(k.c, (k.m).ticket, k.generation) else k.c end as sizer) y
    offset 0
  ), decided as materialized (
    select s.*, coalesce(s.verdict, (s.z).reason,
        case when s.held_lots + (select sum(o) from unnest((s.z).orders) o) > (s.c).max_open_lots then 'max_open_lots' end) as reason,
      (s.fa).mode = 'netting' as netting,
      nextval('public.trade_execution_queue_id_seq') as step_id,
      case s.kind when 'increase' then s.link_id else nextval('public.position_links_id_seq') end as its_link
    from sized s
  ), made as (
    insert into public.position_links (id, user_id, copier_id, master_account_id, follower_account_id, master_ticket, master_side, generation,
      symbol, side, state, reason, seen_master_lots, sized_master_lots, sized_lots, wanted_lots, wanted_until, asked_price, asked_sl, asked_tp, asked_expires_at, order_due_at, warnings, event_id,
      created_at, ended_at)
    overriding system value
    select d.its_link, (d.c).user_id, (d.c).id, (d.c).master_account_id, (d.c).follower_account_id, (d.m).ticket, (d.m).side, d.generation,
      (d.fs).name, d.side, case when d.reason is null then 'live' else 'ended' end, d.reason, (d.m).lots,
      (d.m).lots, (select sum(o) from unnest((d.z).orders) o),
      case when d.reason is null and d.netting then (select sum(o) from unnest((d.z).orders) o) end,
      case when d.reason is null and d.netting then d.news_at + make_interval(secs => (d.c).max_age_ms / 1000.0) end,
      case when (d.m).kind = 'order' then d.order_price end, (d.levels).sl, (d.levels).tp,
      case when (d.m).kind = 'order' then (d.m).expires_at end, case when (d.m).kind = 'order' then (d.m).expires_at + interval '1 s' end,
      coalesce((d.z).warnings || (d.levels).warnings, '{}'), (d.m).last_event_id,
      p_now, case when d.reason is not null then p_now end
    from decided d where d.kind in ('new', 'flip')
  ), grown as (
    update public.position_links l set seen_master_lots = (d.m).lots, reason = d.reason, resync_lots = null,
      sized_lots = case when d.reason is null and d.asked_lots is null
        then l.sized_lots * l.seen_master_lots + l.sized_master_lots * (select sum(o) from unnest((d.z).orders) o) else l.sized_lots end,
      sized_master_lots = case when d.reason is null and d.asked_lots is null then l.sized_master_lots * (d.m).lots else l.sized_master_lots end,
      asked_sl = case when d.reason is null then (d.levels).sl else l.asked_sl end,
      asked_tp = case when d.reason is null then (d.levels).tp else l.asked_tp end,
      wanted_lots = case when d.reason is null and d.netting then (select sum(o) from unnest((d.z).orders) o) end,
      wanted_until = case when d.reason is null and d.netting then d.news_at + make_interval(secs => (d.c).max_age_ms / 1000.0) end,
      -- a skipped increase rebases the pair
      base_master_lots = case when d.reason is null then l.base_master_lots else (d.m).lots end,
      base_lots = case when d.reason is null then l.base_lots
        else coalesce((select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'), 0) end
    from decided d
    where d.kind = 'increase' and l.id = d.link_id and l.id = any (array(select i.link_id from decided i where i.kind = 'increase'))
  ), placed as (
    insert into public.trade_execution_queue (step_id, after_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id,
      action, priority, symbol, side, order_type, lots, price, sl, tp, max_slippage_points, master_price, master_lots, expires_at, comment,
      warnings, retry_until, vps_id, epoch, offered_at, send_before, detected_at, queued_at, updated_at)
    select k.step_id, case when k.kind = 'flip' then k.close_step end, k.its_link, k.its_link::text, (k.c).id, (k.c).user_id, (k.fa).id,
      (k.ma).id, (k.m).last_event_id,
      case when k.kind = 'increase' then 'increase' when (k.m).kind = 'order' then 'place' else 'open' end, 40,
      (k.fs).name, k.side, private.copied_order_type((k.m).order_type, (k.c).reverse), o.lots,
      case when (k.m).kind = 'order' then k.order_price end, (k.levels).sent_sl, (k.levels).sent_tp, (k.c).max_slippage_points,
      case when not k.by_user then (k.m).price else private.entry_price(k.fs, k.side, (k.m).price, p_now) end, (k.m).lots,
      (k.m).expires_at, case when (k.c).comment like '%{%' then private.copy_comment(k.c, (k.m).ticket) else (k.c).comment end, (k.z).warnings || (k.levels).warnings, p_now + make_interval(secs => (k.c).retry_window_s), k.vps_id, k.epoch, p_now,
      least(greatest(p_now, k.begins_at) + v_send_within, k.lease_ends,
        k.news_at + make_interval(secs => (k.c).max_age_ms / 1000.0)), case when k.by_user then p_now else (k.m).detected_at end, p_now, p_now
    from decided k cross join lateral unnest((k.z).orders) as o (lots)
    where k.reason is null and not k.netting
    returning id, event_id, copier_id, user_id, link_id
  ), copied as (
    insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
    select distinct on (p.event_id, p.copier_id) p.event_id, p.copier_id, p.user_id, p.link_id, p.id
    from placed p where p.event_id is not null order by p.event_id, p.copier_id, p.id
    on conflict (event_id, copier_id) do update
      set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null where o.execution_id is null
  ), explained as (
    insert into public.copy_outcomes (event_id, copier_id, user_id, link_id, reason, detail)
    select (k.m).last_event_id, (k.c).id, (k.c).user_id, k.its_link, coalesce(k.reason, 'coalesced'),
      case when k.reason = 'symbol_unmapped' then private.unmapped_detail((k.c).id, (k.m).symbol)
        when k.verdict is not null then private.refusal_words(k.c, k.m, k.fa, k.fs, k.reason, p_now)
        when k.reason = 'max_open_lots' then format('max_open_lots is %s: %s lots are held or under way, and this would be %s more.',
          trim_scale((k.c).max_open_lots), trim_scale(k.held_lots), (select trim_scale(sum(o)) from unnest((k.z).orders) o))
        when k.reason is not null then array_to_string((k.z).explain, ' ') end
    from decided k where (k.reason is not null or k.netting) and (k.m).last_event_id is not null
    on conflict (event_id, copier_id) do update set reason = excluded.reason, detail = excluded.detail, link_id = excluded.link_id
      where copy_outcomes.execution_id is null
  )
  select array_agg(id) into v_new from placed;
  if v_new is not null and exists (select 1 from public.copiers c where c.master_account_id = any (p_masters) and c.removed_at is null
    and (c.delay_max_ms > 0 or c.lots_jitter_percent > 0)) then
    v_new := private.hold_back(v_new, p_now);
  end if;
  return v_new;
end $$;

-- Gives every (event, copier) pair that nothing else has explained its one reason. The arrays: id, type and ticket of accepted events.
create function private.explain_rest(p_account uuid, p_events bigint[], p_types text[], p_tickets text[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_trading text := private.trading_state();
begin
  if not exists (
    select 1 from unnest(p_events) as e (id)
    join public.copiers c on c.master_account_id = p_account and c.removed_at is null
    where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id))
  then
    return;
  end if;
  insert into public.copy_outcomes (event_id, copier_id, user_id, link_id, reason)
  select e.id, c.id, c.user_id, l.id, case
      when v_trading = 'off' then 'trading_stopped'
      when c.mode = 'off' and c.removal is null then 'copier_off'
      when fa.copy_state = 'off' then 'account_off'
      when l.id is null and c.removal is not null then 'copier_removed'
      when l.id is null and m.closed_at is not null and e.type in ('opened', 'ordered') then 'already_closed'
      when l.id is null and m.kind = 'order' and (not c.copy_pending or fa.mode = 'netting') then 'copied_at_fill'
      when l.id is null and (m.existing or m.first_seen_at < c.started_at)
        and (c.copy_pending and fa.mode = 'hedging' or m.filled_at is null or m.filled_at < c.started_at) then 'existing'
      when l.id is null then 'not_copied'
      when l.state = 'ended' and l.reason in ('closed_by_follower', 'stop_out', 'closed', 'master_never_filled', 'order_expired', 'released') then l.reason
      when l.state = 'ended' then 'not_copied'
      when exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null) then 'coalesced'
      when e.type = 'reduced' then 'residual_hold'
      else 'no_change' end
  from unnest(p_events, p_types, p_tickets) as e (id, type, ticket)
  join public.copiers c on c.master_account_id = p_account and c.removed_at is null
  join public.trading_accounts fa on fa.id = c.follower_account_id
  left join public.positions m on m.account_id = p_account and m.ticket = e.ticket
  left join lateral (
    select pl.id, pl.state, pl.reason from public.position_links pl
    where pl.master_account_id = p_account and pl.master_ticket = e.ticket and pl.copier_id = c.id
    order by pl.generation desc limit 1
  ) l on true
  where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id)
  on conflict (event_id, copier_id) do nothing;
end $$;
