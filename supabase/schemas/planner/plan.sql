-- plan(): the planner's entry point. It decides opens and increases, then plans links and net positions.

-- The whole planner. p_links: live links to look at; p_masters and p_tickets: master positions and orders that may wait
-- for a decision (a number may be one of each), of the copiers p_copiers (null: all). The caller holds the plan locks.
-- Returns the new executions, not yet handed out.
create function private.plan(p_links bigint[], p_masters uuid[], p_tickets text[], p_copiers uuid[],
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_decided bigint[];
begin
  if p_links is not null then
    perform private.book_links(p_links);
    v_new := private.plan_links(p_links, p_now);
  end if;
  -- a position that the master has closed waits for no decision; after a report there is rarely one either: checking
  -- first is cheaper than deciding nothing
  if p_links is null or exists (
      select 1 from unnest(p_masters, p_tickets) as u (master, ticket)
      join public.positions m on m.account_id = u.master and m.ticket = u.ticket and m.lots > 0)
    and exists (select 1 from private.undecided(p_masters, p_tickets, p_copiers)) then
    v_new := coalesce(v_new, '{}') || coalesce(private.decide(p_masters, p_tickets, p_copiers, p_now), '{}');
  end if;
  if exists (select from private.symbol_waits w
    where w.master_account_id = any (p_masters) and w.ticket = any (p_tickets)) then
    perform private.end_waits(p_masters, p_tickets, p_now);
  end if;
  select array_agg(l.id) into v_decided from public.position_links l
  where l.master_account_id = any (p_masters) and l.master_ticket = any (p_tickets) and l.ended_at is null
    and (p_copiers is null or l.copier_id = any (p_copiers));
  return coalesce(v_new, '{}') || coalesce(private.plan_nets(coalesce(p_links, '{}') || coalesce(v_decided, '{}'),
    p_now), '{}');
end $$;

-- Plans links and the decisions that wait for them; the caller holds their locks.
create function private.plan_again(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_copiers uuid[];
begin
  if p_links is null or cardinality(p_links) = 0 then return null; end if;
  select array_agg(l.master_account_id), array_agg(l.master_ticket), array_agg(distinct l.copier_id) into v_masters,
    v_tickets, v_copiers
  from public.position_links l where l.id = any (p_links);
  if v_masters is null then return null; end if;
  return private.plan(p_links, v_masters, v_tickets, v_copiers, p_now);
end $$;

-- Whether a change of a position may be the fill of a pending order. Copies of that order must be planned too, because
-- they continue under the order's ticket.
create function private.order_filled_into(p_position jsonb, p_previous_lots numeric) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_previous_lots > 0 and p_position ->> 'replaces' <> p_position ->> 'ticket', false);
end $$;

-- Links that a change of these tickets concerns, of either kind: with the account as master, and as follower.
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

-- Plans what events changed, and gives each of their pairs its reason.
create function private.plan_events(p_account uuid, p_events bigint[], p_types text[], p_tickets text[],
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.links_of_tickets(p_account, p_tickets);
  v_new bigint[];
begin
  if v_links is not null and p_types && array['reduced', 'closed', 'cancelled', 'opened'] then
    perform private.wait_no_longer(array(
      select l.id from unnest(p_types, p_tickets) as e (type, ticket)
      join public.position_links l on l.master_account_id = p_account and l.master_ticket = e.ticket
        and l.id = any (v_links)
      where e.type in ('reduced', 'closed', 'cancelled', 'opened')), p_now);
  end if;
  v_new := private.plan(v_links, array_fill(p_account, array[cardinality(p_tickets)]), p_tickets, null, p_now);
  -- a decision may have waited for this: an increase for the fill of one of our orders, a flip for the end of the old
  -- copy
  v_new := coalesce(v_new, '{}') || coalesce(private.plan_again(array(
    select l.id from public.position_links l where l.id = any (v_links) and l.follower_account_id = p_account), p_now),
      '{}');
  perform private.explain_rest(p_account, p_events, p_types, p_tickets);
  return v_new;
end $$;

-- Records the changes that reports made on an account that is itself a master, as events, and plans them.
create function private.plan_changes(p_account uuid, p_changes jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_change jsonb;
  v_id bigint;
  v_seen_at timestamptz;
  v_events bigint[] := '{}';
  v_tickets text[] := '{}';
  v_types text[] := '{}';
  v_new bigint[];
begin
  if not exists (select 1 from public.copiers c where c.master_account_id = p_account and c.removed_at is null) then
    return null;
  end if;
  select * into v_account from public.trading_accounts where id = p_account;
  for v_change in select value from jsonb_array_elements(p_changes) loop
    v_id := nextval('public.trade_events_id_seq');
    v_seen_at := least((v_change ->> 'seen_at')::timestamptz, p_now);
    perform private.record_event(v_account, v_id, jsonb_build_object('detected_at', v_seen_at, 'unchanged_at',
      v_seen_at, 'deal_price', v_change -> 'price'), 'report', v_change ->> 'type',
      'accepted', null, null, v_change -> 'position', (v_change ->> 'previous_lots')::numeric, v_change -> 'position',
      p_now);
    update public.positions set last_event_id = v_id, detected_at = v_seen_at
    where account_id = p_account and ticket = v_change #>> '{position,ticket}'
      and kind = v_change #>> '{position,kind}';
    v_events := v_events || v_id;
    v_tickets := v_tickets || (v_change #>> '{position,ticket}');
    v_types := v_types || (v_change ->> 'type');
    if private.order_filled_into(v_change -> 'position', (v_change ->> 'previous_lots')::numeric) then
      v_events := v_events || v_id;
      v_tickets := v_tickets || (v_change #>> '{position,replaces}');
      v_types := v_types || (v_change ->> 'type');
    end if;
  end loop;
  if cardinality(v_tickets) = 0 then return null; end if;
  v_new := private.plan(private.links_of_tickets(p_account, v_tickets),
    array_fill(p_account, array[cardinality(v_tickets)]), v_tickets, null, p_now);
  perform private.explain_rest(p_account, v_events, v_types, v_tickets);
  return v_new;
end $$;

-- Decides the pairs of these followers that wait for symbols, if what they wait for was told or their time is over. The
-- caller holds the followers' locks. Returns the new executions, not yet handed out.
create function private.decide_waiting_symbols(p_followers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  w record;
  v_new bigint[] := '{}';
begin
  for w in
    select s.asked, array_agg(s.master_account_id order by s.news_at, s.ticket) as masters,
      array_agg(s.ticket order by s.news_at, s.ticket) as tickets,
      array_agg(s.kind order by s.news_at, s.ticket) as kinds, array_agg(distinct s.copier_id) as copiers
    from private.symbol_waits s where s.follower_account_id = any (p_followers)
    -- what a user asked of one copier is asked of no other
    group by s.asked, case when s.asked is not null then s.copier_id end order by min(s.news_at)
  loop
    if w.asked is null then
      v_new := v_new || private.plan(null, w.masters, w.tickets, w.copiers, p_now);
    else
      v_new := v_new || coalesce(private.decide_kinds(w.masters, w.tickets, w.kinds, w.copiers, p_now, w.asked),
        '{}');
      v_new := v_new || coalesce(private.plan_nets(array(
        select l.id from public.position_links l
        where l.master_account_id = any (w.masters) and l.master_ticket = any (w.tickets)
          and l.copier_id = any (w.copiers) and l.ended_at is null), p_now), '{}');
    end if;
    perform private.end_waits(w.masters, w.tickets, p_now);
  end loop;
  return v_new;
end $$;

-- Plans everything of a copier after a change of its settings or mode; a copier that is resumed catches up on closes
-- and levels. The caller has locked both its accounts.
create function private.replan_copier(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  perform private.withdraw_opens(p_copier, p_now);
  select array_agg(l.id) into v_links from public.copiers c
  join public.position_links l on l.follower_account_id = c.follower_account_id and l.copier_id = c.id
    and l.state = 'live'
  where c.id = p_copier;
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(private.plan_again(v_links, p_now)
    || private.decide_waiting_symbols(array(select c.follower_account_id from public.copiers c where c.id = p_copier),
      p_now), null, clock_timestamp());
end $$;
