-- Netting followers: the unit of flight is (account, symbol). One deal of summed deltas, booked to reductions first; each link keeps its
-- share of the net position as its leg, and what the broker's net and the ledger differ by is booked before anything is planned.

create function private.sign_of(p_side text) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return case p_side when 'buy' then 1 else -1 end;
end $$;

-- Adds p_lots (signed: + more, - less) to a link's share.
create function private.book_share(p_link bigint, p_account uuid, p_symbol text, p_lots numeric, p_price numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_lots > 0 then
    insert into private.link_legs as g (link_id, account_id, ticket, kind, lots, price)
    values (p_link, p_account, p_symbol, 'position', p_lots, p_price)
    on conflict (link_id, ticket) do update set lots = g.lots + excluded.lots;
  else
    delete from private.link_legs where link_id = p_link and ticket = p_symbol and lots + p_lots <= 0;
    update private.link_legs set lots = lots + p_lots where link_id = p_link and ticket = p_symbol and lots + p_lots > 0;
  end if;
end $$;

-- Books what the account's own mirror shows beyond our deals: a stop, a stop-out or a manual deal against the links reduces them first
-- (oldest first), or a later close would open a position the other way.
create function private.book_net(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_net numeric;
  v_change numeric;
  v_leg record;
  v_take numeric;
begin
  insert into private.net_ledgers (account_id, symbol) values (p_account, p_symbol) on conflict do nothing;
  select coalesce(sum(p.lots * private.sign_of(p.side)), 0) into v_net
  from public.positions p where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position';
  select v_net - net_lots into v_change from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  if v_change = 0 then return; end if;
  update private.net_ledgers set net_lots = v_net where account_id = p_account and symbol = p_symbol;
  for v_leg in
    select g.link_id, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id
    where g.account_id = p_account and g.ticket = p_symbol and l.state = 'live' and private.sign_of(l.side) = -sign(v_change)
    order by g.link_id
  loop
    v_take := least(v_leg.lots, abs(v_change));
    exit when v_take <= 0;
    perform private.book_share(v_leg.link_id, p_account, p_symbol, -v_take, null);
    v_change := v_change + v_take * -sign(v_change);
  end loop;
end $$;

-- What each live link of a netting symbol wants changed, in lots of the link (+ more, - less).
create function private.net_deltas(p_account uuid, p_symbol text, p_now timestamptz)
returns table (link_id bigint, side text, delta numeric, opens boolean, wanted_sl numeric, wanted_tp numeric, held numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select s.id, s.side, case
      when s.frozen then 0
      when s.doomed then -s.position_lots
      else coalesce(s.wanted_lots, 0) - case when s.base_lots is null or s.master_kind <> 'position' then 0
        else greatest(0, s.position_lots
          - private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots)) end
    end,
    s.wanted_lots is not null and not s.doomed and not s.frozen, s.wanted_sl, s.wanted_tp, s.position_lots
  from private.link_states s
  where s.follower_account_id = p_account and s.symbol = p_symbol;
end $$;

-- Drops what was decided but not dealt in time, or is not wanted any more.
create function private.drop_wanted(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_reason text;
begin
  for v_link in
    select s.id, s.copier_id, s.master_event_id, s.doomed, s.frozen, s.legs, s.master_lots, s.position_lots
    from private.link_states s
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.wanted_lots is not null
      and (s.doomed or s.frozen or s.wanted_until <= p_now)
  loop
    v_reason := case when v_link.doomed then 'already_closed' when v_link.frozen then 'copier_off' else 'too_old' end;
    update public.position_links l set wanted_lots = null, wanted_until = null,
      base_lots = case when v_link.legs > 0 then v_link.position_lots end, base_master_lots = v_link.master_lots,
      state = case when v_link.legs = 0 then 'ended' else 'live' end,
      reason = case when v_link.legs = 0 then v_reason else l.reason end,
      ended_at = case when v_link.legs = 0 then p_now end
    where l.id = v_link.id;
    update public.copy_outcomes set reason = v_reason
    where event_id = v_link.master_event_id and copier_id = v_link.copier_id and execution_id is null and reason = 'coalesced';
  end loop;
end $$;

-- Books a finished (or purely internal) deal: parts against its direction are settled in full, those with it get the fill,
-- reductions first.
create function private.book_deal(p_account uuid, p_symbol text, p_side text, p_filled numeric, p_price numeric, p_master jsonb, p_parts jsonb)
returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_part record;
  v_left numeric := p_filled;
  v_lots numeric;
begin
  select v_left + coalesce(sum(abs((e ->> 'lots')::numeric)), 0) into v_left
  from jsonb_array_elements(p_parts) e
  where private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) <> private.sign_of(p_side);
  for v_part in
    select (e ->> 'link_id')::bigint as link_id, (e ->> 'lots')::numeric as lots, (e ->> 'master_lots')::numeric as master_lots,
      private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = private.sign_of(p_side) as with_deal
    from jsonb_array_elements(p_parts) e order by (e ->> 'lots')::numeric > 0, (e ->> 'link_id')::bigint
  loop
    v_lots := case when v_part.with_deal then least(abs(v_part.lots), v_left) else abs(v_part.lots) end;
    if v_part.with_deal then v_left := v_left - v_lots; end if;
    if v_lots > 0 then
      perform private.book_share(v_part.link_id, p_account, p_symbol, v_lots * sign(v_part.lots), p_price);
    end if;
    if v_part.lots > 0 then  -- a fill rebases the pair
      update public.position_links l set base_master_lots = v_part.master_lots,
        base_lots = (select sum(g.lots) from private.link_legs g where g.link_id = l.id)
      where l.id = v_part.link_id;
    end if;
  end loop;
  update private.net_ledgers set net_lots = net_lots + p_filled * private.sign_of(p_side) where account_id = p_account and symbol = p_symbol;
end $$;

-- Plans one netting symbol: nothing while a deal is in flight; else one deal, or the SL/TP. Returns the new execution or null.
-- Longer than forty lines because it is one decision.
create function private.plan_net(p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_parts jsonb;
  v_sum numeric;
  v_net numeric;
  v_ledger private.net_ledgers;
  v_ticket text;
  v_min numeric;
  v_link public.position_links;
  v_sl numeric;
  v_tp numeric;
  v_shares integer;
  v_share numeric;
  v_action text;
  v_side text;
  v_new bigint;
  v_master record;
begin
  if exists (select 1 from public.trade_execution_queue q where q.account_id = p_account and q.symbol = p_symbol and q.in_flight) then
    return null;
  end if;
  perform private.book_net(p_account, p_symbol);
  perform private.drop_wanted(p_account, p_symbol, p_now);
  select * into v_ledger from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  v_net := v_ledger.net_lots;
  select p.ticket into v_ticket from public.positions p
  where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position' limit 1;
  select s.lots_min into v_min from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  select coalesce(sum(d.delta * private.sign_of(d.side)), 0),
    coalesce(jsonb_agg(jsonb_build_object('link_id', d.link_id::text, 'side', d.side, 'lots', d.delta::text,
      'master_lots', (select l.seen_master_lots::text from public.position_links l where l.id = d.link_id))) filter (where d.delta <> 0), '[]'),
    count(*) filter (where d.held + greatest(d.delta, 0) > 0), coalesce(sum((d.held + d.delta) * private.sign_of(d.side)), 0),
    min(d.wanted_sl) filter (where d.held + d.delta > 0), min(d.wanted_tp) filter (where d.held + d.delta > 0)
  into v_sum, v_parts, v_shares, v_share, v_sl, v_tp
  from private.net_deltas(p_account, p_symbol, p_now) d;
  -- SL/TP of one leg cannot stand on a net position that has other owners
  if v_shares <> 1 or v_net + v_sum <> v_share then v_sl := null; v_tp := null; end if;

  select l.* into v_link from public.position_links l
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live'
  order by (l.id::text in (select e ->> 'link_id' from jsonb_array_elements(v_parts) e)) desc, l.id desc limit 1;
  if v_link.id is null or (v_link.replan_at > p_now and v_link.close_failures > 0) then return null; end if;
  select m.last_event_id, m.detected_at, m.price, c.retry_window_s, c.max_slippage_points, c.comment into v_master
  from public.copiers c left join public.positions m on m.account_id = v_link.master_account_id and m.ticket = v_link.master_ticket
  where c.id = v_link.copier_id;

  if v_sum = 0 and v_parts <> '[]' then  -- the links settle among themselves
    perform private.book_deal(p_account, p_symbol, 'buy', 0, null, null, v_parts);
    update public.position_links l set wanted_lots = null, wanted_until = null
    where l.id in (select (e ->> 'link_id')::bigint from jsonb_array_elements(v_parts) e);
    return private.plan_net(p_account, p_symbol, p_now);
  elsif abs(v_sum) >= v_min then
    v_side := case when v_sum > 0 then 'buy' else 'sell' end;
    v_action := case when v_net * v_sum >= 0 or abs(v_sum) > abs(v_net) then 'open' when abs(v_sum) = abs(v_net) then 'close' else 'reduce' end;
    insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id, action,
      priority, symbol, side, lots, target_lots, ticket, sl, tp, max_slippage_points, master_price, master_lots, comment, parts, warnings,
      retry_until, send_before, detected_at, queued_at, updated_at)
    values (nextval('public.trade_execution_queue_id_seq'), v_link.id, p_account || ':' || p_symbol, v_link.copier_id, v_link.user_id, p_account,
      v_link.master_account_id, v_master.last_event_id, v_action, case when v_action = 'open' then 40 else 10 end, p_symbol,
      case when v_action = 'open' then v_side when v_side = 'buy' then 'sell' else 'buy' end, abs(v_sum),
      case when v_action <> 'open' then abs(v_net) - abs(v_sum) end, case when v_action <> 'open' then v_ticket end,
      case when v_action = 'open' then v_sl end, case when v_action = 'open' then v_tp end,
      case when v_action = 'open' then v_master.max_slippage_points end, v_master.price, v_link.seen_master_lots, v_master.comment, v_parts,
      case when v_shares > 1 then array['netting_sltp_virtual'] else '{}' end,
      p_now + make_interval(secs => v_master.retry_window_s), p_now, v_master.detected_at, p_now, p_now)
    returning id into v_new;
    update public.position_links l set wanted_lots = null, wanted_until = null
    where l.id in (select (e ->> 'link_id')::bigint from jsonb_array_elements(v_parts) e);
    if v_action = 'open' then  -- a level that the deal does not carry is taken off by a modify of its own
      update private.net_ledgers set asked_sl = coalesce(v_sl, asked_sl), asked_tp = coalesce(v_tp, asked_tp)
      where account_id = p_account and symbol = p_symbol;
    end if;
    -- every link of the deal is explained by it
    insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
    select distinct on (m.last_event_id, l.copier_id) m.last_event_id, l.copier_id, l.user_id, l.id, v_new
    from jsonb_array_elements(v_parts) e
    join public.position_links l on l.id = (e ->> 'link_id')::bigint
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
    where m.last_event_id is not null
    on conflict (event_id, copier_id) do update set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null
      where o.execution_id is null;
    return v_new;
  elsif v_ticket is not null and (v_sl, v_tp) is distinct from (v_ledger.asked_sl, v_ledger.asked_tp) and v_shares > 0
    and (v_link.modify_failures = 0 or v_link.replan_at <= p_now) and v_link.modify_failures < 3 then
    update private.net_ledgers set asked_sl = v_sl, asked_tp = v_tp where account_id = p_account and symbol = p_symbol;
    insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id, action,
      priority, symbol, side, lots, ticket, sl, tp, send_before, detected_at, queued_at, updated_at)
    values (nextval('public.trade_execution_queue_id_seq'), v_link.id, p_account || ':' || p_symbol, v_link.copier_id, v_link.user_id, p_account,
      v_link.master_account_id, v_master.last_event_id, 'modify', 30, p_symbol, case when v_net > 0 then 'buy' else 'sell' end, abs(v_net),
      v_ticket, v_sl, v_tp, p_now, v_master.detected_at, p_now, p_now)
    returning id into v_new;
    perform private.explain_executions(array[v_new]);
    return v_new;
  end if;
  return null;
end $$;

-- Plans the netting symbols that the links belong to.
create function private.plan_nets(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_unit record;
  v_new bigint[] := '{}';
  v_one bigint;
begin
  for v_unit in
    select distinct l.follower_account_id, l.symbol from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'netting'
    where l.id = any (p_links) and l.ended_at is null
  loop
    v_one := private.plan_net(v_unit.follower_account_id, v_unit.symbol, p_now);
    if v_one is not null then v_new := v_new || v_one; end if;
    perform private.end_links(p_links, p_now);
  end loop;
  return v_new;
end $$;

-- The whole planner. p_links: live links to look at; p_masters and p_tickets: master positions that may wait for a decision, of the
-- copiers p_copiers (null: all). The caller holds the plan locks. Returns the new executions, unoffered.
create function private.plan(p_links bigint[], p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_decided bigint[];
begin
  if p_links is not null then
    perform private.book_links(p_links);
    v_new := private.plan_links(p_links, p_now);
  end if;
  v_new := coalesce(v_new, '{}') || coalesce(private.decide(p_masters, p_tickets, p_copiers, p_now), '{}');
  select array_agg(l.id) into v_decided from public.position_links l
  where l.master_account_id = any (p_masters) and l.master_ticket = any (p_tickets) and l.ended_at is null
    and (p_copiers is null or l.copier_id = any (p_copiers));
  return v_new || coalesce(private.plan_nets(coalesce(p_links, '{}') || coalesce(v_decided, '{}'), p_now), '{}');
end $$;
