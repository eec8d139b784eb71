-- Fills: how a completed execution changes the copy that it belongs to.

-- What an order or position is now. It may have got another ticket, or several, before the report of its opening
-- arrived.
create function private.continuation(p_position public.positions) returns public.positions
language plpgsql stable security definer set search_path = '' as $$
declare
  v_next public.positions;
begin
  for n in 1 .. 100 loop
    exit when p_position.replaced_by is null;
    select * into v_next from public.positions m
    where m.account_id = p_position.account_id and m.ticket = p_position.replaced_by
      and m.kind = p_position.replaced_by_kind;
    exit when not found;
    p_position := v_next;
  end loop;
  return p_position;
end $$;

-- Books what a broker did to the link of a hedging follower. The mirror has already taken the report and takes
-- precedence: a late report brings nothing back. A close that found nothing proves nothing by itself: the account is
-- read again.
create function private.book_fill(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opens boolean := q.action in ('open', 'increase', 'place');
  v_modified boolean := q.action in ('modify', 'amend');
  v_legs integer;
  v_filled numeric;
begin
  if v_opens then
    insert into private.link_legs as g (link_id, account_id, ticket, ticket_kind, kind, lots, price)
    select q.link_id, q.account_id, m.ticket, m.kind, m.kind, m.lots, m.price
    from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    join public.positions o on o.account_id = q.account_id and o.ticket = e ->> 'ticket' and o.kind = e ->> 'kind'
    cross join lateral private.continuation(o) m
    where (e ->> 'lots')::numeric > 0 and m.lots > 0
    on conflict (link_id, ticket, ticket_kind) do nothing;
    get diagnostics v_legs = row_count;
    update public.position_links l set symbol = m.symbol  -- its broker has renamed it meanwhile
    from private.link_legs g
    join public.positions m on m.account_id = g.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
    where v_legs > 0 and g.link_id = q.link_id and l.id = q.link_id and m.symbol <> l.symbol;
    if v_legs > 0 and exists (select 1 from private.link_legs g
      where g.link_id = q.link_id and g.kind = 'position') then
      update public.position_links l set base_master_lots = coalesce(q.master_lots, l.base_master_lots),
        base_lots = least((select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'),
          -- what it held above its base, such as another order's second fill, stays above it
          l.base_lots + coalesce(q.filled_lots, q.lots))
      where l.id = q.link_id;
    end if;
  end if;
  -- if every position of an open is a new leg, nothing need be compared
  if not v_opens or v_legs is distinct from jsonb_array_length(nullif(r -> 'positions', 'null')) then
    delete from private.link_legs g using public.positions m
    where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
      and m.lots = 0 and m.replaced_by is null;
    if exists (select 1 from private.link_legs g where g.link_id = q.link_id) then
      update private.link_legs g set ticket = m.replaced_by, ticket_kind = m.replaced_by_kind from public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
        and m.replaced_by is not null
        and not exists (select 1 from private.link_legs o
          where o.link_id = g.link_id and o.ticket = m.replaced_by and o.ticket_kind = m.replaced_by_kind);
      delete from private.link_legs g using public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
        and m.lots = 0;
      with looks as materialized (
        select g.ticket, g.ticket_kind, g.kind as held_as, least(g.lots, m.lots) as lots, m.kind, m.price
        from private.link_legs g
        join public.positions m on m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
          and m.lots > 0
        where g.link_id = q.link_id and (m.lots < g.lots or m.kind <> g.kind)
      ), kept as (
        update private.link_legs g set lots = k.lots, kind = k.kind, price = k.price
        from looks k where g.link_id = q.link_id and g.ticket = k.ticket and g.ticket_kind = k.ticket_kind
      )
      select sum(k.lots) into v_filled from looks k where k.held_as = 'order' and k.kind = 'position';
      if v_filled is not null then
        perform private.add_filled_order(q.link_id, v_filled);
      end if;
    end if;
  end if;

  if q.action = 'reduce' and q.status = 'completed' then
    perform private.mark_reduction_done(q.link_id, q.master_lots);
  end if;
  -- refused levels keep their retry time: other orders say nothing about them, nor does an order of the same step for
  -- another position of the copy
  update public.position_links l set close_failures = case when v_opens or v_modified then l.close_failures else 0 end,
    modify_failures = case when v_modified then 0 else l.modify_failures end,
    replan_at = case when not v_modified and l.modify_failures between 1 and 2 then l.replan_at end
  where l.id = q.link_id and (l.close_failures > 0 or l.modify_failures > 0)
    and not (v_modified and exists (select 1 from public.trade_execution_queue o
      where o.step_id = q.step_id and o.status in ('rejected', 'cancelled')));
  if q.status = 'completed' and q.ticket is not null and q.action in ('reduce', 'close', 'cancel')
    and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
  then
    update public.positions m set absent_snapshots = greatest(m.absent_snapshots, 1)
    where m.account_id = q.account_id and m.ticket = q.ticket and m.kind = private.kind_of(q.action) and m.lots > 0;
    update public.position_links l set close_failures = l.close_failures + 1,
      replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id and exists (select 1 from private.link_legs g
      where g.link_id = l.id and g.ticket = q.ticket and g.ticket_kind = private.kind_of(q.action));
  end if;
end $$;

-- Books a second fill of an execution that is already completed: its link holds the lots, but above its target, so the
-- planner reduces them again.
create function private.book_filled_again(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_was public.position_links;
begin
  select * into v_was from public.position_links l where l.id = q.link_id;
  perform private.book_fill(q, r, p_now);
  update public.position_links l set base_master_lots = v_was.base_master_lots,
    base_lots = least(l.base_lots, v_was.base_lots + greatest(0, q.lots - coalesce(q.filled_lots, q.lots)))
  where l.id = q.link_id and l.base_lots > v_was.base_lots;
end $$;

-- A late fill opened with the levels of its time. Others may have been asked since, for what the copy held then. Which
-- levels stand is unknown now, so the planner asks for them again.
create function private.forget_asked_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set asked_sl = null, asked_tp = null, asked_unknown = true
  where l.id = q.link_id and l.ended_at is null and private.opens(q)
    and (l.asked_sl, l.asked_tp) is distinct from (q.sl, q.tp);
end $$;

-- A fill arrives for a link that has ended meanwhile (expired, rejected). The report overrules that, so the link
-- becomes live again.
create function private.revive_link(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'live', ended_at = null, reason = null
  where l.id = q.link_id and l.state = 'ended' and l.reason is distinct from 'released' and private.opens(q);
end $$;
