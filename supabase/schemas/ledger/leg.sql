-- Legs: the positions of a follower that make up a copy, kept in step with the mirror.

-- A copy of a pending order may be several orders, which fill one after the other: each fill (p_lots) adds to the
-- volume that reductions are computed from. The first fill begins that volume (private.book_links), so it adds nothing
-- here. Whoever turns the leg of an order into a position calls this.
create function private.add_filled_order(p_link bigint, p_lots numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set base_lots = l.base_lots + p_lots
  where l.id = p_link and l.base_lots is not null;
end $$;

-- Books what the follower's mirror shows to links that have nothing in flight: reduced by hand, closed or filled. A row
-- of the mirror is never older than the last report about its ticket, because that report wrote it.
create function private.book_links(p_links bigint[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
  v_filled bigint[];
  v_lots numeric[];
begin
  -- usually mirror and links agree
  select array_agg(l.id) into v_links from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and (l.base_lots is null or exists (
    select 1 from private.link_legs g
    join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.kind = g.ticket_kind
    where g.link_id = l.id and (p.lots < g.lots or p.kind <> g.kind)));
  if v_links is null then return; end if;

  with looks as materialized (
    select g.link_id, g.ticket, g.ticket_kind, p.lots, p.kind, p.price, g.kind as held_as
    from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'hedging'
    -- never by all legs there are
    cross join lateral (select * from private.link_legs i where i.link_id = l.id offset 0) g
    join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.kind = g.ticket_kind
    where l.id = any (v_links) and l.ended_at is null and (p.lots < g.lots or p.kind <> g.kind)
      and not exists (select 1 from public.trade_execution_queue q
        where q.link_id = l.id and q.finalized_at is null and q.status <> 'retrying')
  ), gone as (
    delete from private.link_legs g using looks k where g.link_id = k.link_id and g.ticket = k.ticket
      and g.ticket_kind = k.ticket_kind and k.lots = 0
  ), kept as (
    update private.link_legs g set lots = least(g.lots, k.lots), kind = k.kind, price = k.price
    from looks k where g.link_id = k.link_id and g.ticket = k.ticket and g.ticket_kind = k.ticket_kind and k.lots > 0
    returning g.link_id, g.lots, k.held_as = 'order' and k.kind = 'position' as filled
  )
  select array_agg(k.link_id), array_agg(k.lots) into v_filled, v_lots from kept k where k.filled;
  if v_filled is not null then
    perform private.add_filled_order(f.id, f.lots) from unnest(v_filled, v_lots) as f (id, lots);
  end if;

  -- one of our orders has filled: from now on there is a volume to reduce from
  update public.position_links l set base_lots = h.lots, base_master_lots = l.seen_master_lots
  from (select link_id, sum(lots) as lots from private.link_legs where link_id = any (v_links) and kind = 'position'
    group by link_id) h
  where h.link_id = l.id and l.base_lots is null and l.ended_at is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
end $$;

-- Ends links of netting accounts that hold nothing, want nothing and have nothing in flight; plan_links ends the
-- others.
create function private.end_links(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_closed bigint[];
  v_given_up bigint[];
begin
  -- read into arrays first: an update joined to the view would compute the view once per pair of links
  select array_agg(s.id) filter (where s.doomed), array_agg(s.id) filter (where not s.doomed) into v_closed, v_given_up
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.legs = 0 and s.executions = 0 and s.wanted_lots is null
    and (s.account_mode = 'hedging' or not exists (  -- the deal in flight may include this link
      select 1 from public.trade_execution_queue q
      where q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight));
  if v_closed is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = 'closed'
    where l.id = any (v_closed);
  end if;
  if v_given_up is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = case
      when l.stopped_out then 'stop_out' else 'closed_by_follower' end
    where l.id = any (v_given_up);
  end if;
end $$;
