-- The ledger of a netting follower: each link's share of the net position (its leg), and what the account's net and the shares differ by.
-- Callers hold the account's plan lock.

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
    on conflict (link_id, ticket) do update set lots = g.lots + excluded.lots,
      price = coalesce((g.lots * g.price + excluded.lots * excluded.price) / (g.lots + excluded.lots), excluded.price, g.price);
  else
    delete from private.link_legs where link_id = p_link and ticket = p_symbol and lots + p_lots <= 0;
    update private.link_legs set lots = lots + p_lots where link_id = p_link and ticket = p_symbol and lots + p_lots > 0;
  end if;
end $$;

-- What the account holds in this symbol by its own mirror, signed.
create function private.mirror_net(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(sum(p.lots * private.sign_of(p.side)), 0) from public.positions p
    where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position');
end $$;

-- Books what the account's own mirror shows beyond our deals: a stop, a stop-out or a manual deal against the links reduces them first
-- (oldest first), or a later close would open a position the other way. The rest is the user's own. Each is remembered as a surprise.
create function private.book_net(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_net numeric := private.mirror_net(p_account, p_symbol);
  v_change numeric;
  v_leg record;
  v_take numeric;
  v_surprises jsonb := '[]';
begin
  insert into private.net_ledgers (account_id, symbol) values (p_account, p_symbol) on conflict do nothing;
  select v_net - net_lots into v_change from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  if v_change = 0 then return; end if;
  for v_leg in
    select g.link_id, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id
    where g.account_id = p_account and g.ticket = p_symbol and l.state = 'live' and private.sign_of(l.side) = -sign(v_change)
    order by g.link_id
  loop
    v_take := least(v_leg.lots, abs(v_change));
    exit when v_take <= 0;
    perform private.book_share(v_leg.link_id, p_account, p_symbol, -v_take, null);
    v_surprises := v_surprises || jsonb_build_object('link_id', v_leg.link_id::text, 'lots', (v_take * sign(v_change))::text, 'at', p_now);
    v_change := v_change + v_take * -sign(v_change);
  end loop;
  if v_change <> 0 then
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', v_change::text, 'at', p_now);
  end if;
  update private.net_ledgers n set net_lots = v_net, surprises = private.newest(n.surprises || v_surprises, 20)
  where n.account_id = p_account and n.symbol = p_symbol;
end $$;

-- What a link holds beyond its base (a late deal dealt too much) serves an increase that waits: that much need not be dealt again.
create function private.serve_from_excess(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set base_lots = l.base_lots + e.lots, wanted_lots = nullif(l.wanted_lots - e.lots, 0),
    base_master_lots = case when e.lots = l.wanted_lots then l.seen_master_lots else l.base_master_lots end,
    wanted_until = case when e.lots < l.wanted_lots then l.wanted_until end
  from (
    select x.id, least(x.wanted_lots, sum(g.lots) - x.base_lots) as lots
    from public.position_links x join private.link_legs g on g.link_id = x.id
    where x.follower_account_id = p_account and x.symbol = p_symbol and x.state = 'live' and x.wanted_lots > 0 and x.base_lots is not null
    group by x.id having sum(g.lots) > x.base_lots
  ) e
  where l.id = e.id;
end $$;

create function private.newest(p_entries jsonb, p_count integer) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(e.value order by e.n) from jsonb_array_elements(p_entries) with ordinality as e (value, n)
    where e.n > jsonb_array_length(p_entries) - p_count), '[]');
end $$;

-- Books a finished (or purely internal) deal: parts against its direction are settled in full, those with it get the fill,
-- reductions first.
create function private.book_deal(p_account uuid, p_symbol text, p_side text, p_filled numeric, p_price numeric, p_parts jsonb)
returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_part record;
  v_left numeric := p_filled;
  v_lots numeric;
  v_beyond numeric := 0;
begin
  select v_left + coalesce(sum(abs((e ->> 'lots')::numeric)), 0) into v_left
  from jsonb_array_elements(p_parts) e
  where private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) <> private.sign_of(p_side);
  for v_part in
    select (e ->> 'link_id')::bigint as link_id, (e ->> 'lots')::numeric as lots, (e ->> 'master_lots')::numeric as master_lots,
      (e ->> 'reduced_to')::numeric as reduced_to,
      private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = private.sign_of(p_side) as with_deal
    from jsonb_array_elements(p_parts) e order by (e ->> 'lots')::numeric > 0, (e ->> 'link_id')::bigint
  loop
    v_lots := case when v_part.with_deal then least(abs(v_part.lots), v_left) else abs(v_part.lots) end;
    if v_part.with_deal then v_left := v_left - v_lots; end if;
    if v_part.lots > 0 then  -- a fill rebases the pair; what a link held beyond its base already is not wanted now either
      update public.position_links l set base_master_lots = v_part.master_lots, base_lots = nullif(v_lots + (
        select coalesce(least(sum(g.lots), l.base_lots), 0) from private.link_legs g where g.link_id = l.id), 0)
      where l.id = v_part.link_id;
    end if;
    if v_part.lots < 0 and v_part.with_deal then
      v_beyond := v_beyond + greatest(0, v_lots - (select coalesce(sum(g.lots), 0) from private.link_legs g where g.link_id = v_part.link_id));
    end if;
    if v_lots > 0 then
      perform private.book_share(v_part.link_id, p_account, p_symbol, v_lots * sign(v_part.lots), p_price);
    end if;
    if v_part.lots < 0 and v_part.reduced_to is not null then
      perform private.see_reduction(v_part.link_id, v_part.reduced_to);
    end if;
  end loop;
  update private.net_ledgers set net_lots = net_lots + p_filled * private.sign_of(p_side) where account_id = p_account and symbol = p_symbol;
  if v_beyond > 0 then
    perform private.book_beyond(p_account, p_symbol, private.sign_of(p_side), v_beyond);
  end if;
end $$;

-- A deal took more off a link than it still held (an earlier one had filled late, while it was under way). As far as no link and no volume of
-- the user's own stands for that, it is left unbooked: book_net finds it, and takes it from the links that hold, or they would close it twice.
create function private.book_beyond(p_account uuid, p_symbol text, p_direction integer, p_lots numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update private.net_ledgers n set net_lots = n.net_lots - p_direction * least(p_lots, greatest(0, p_direction * (n.net_lots - (
    select coalesce(sum(g.lots * private.sign_of(l.side)), 0) from private.link_legs g join public.position_links l on l.id = g.link_id
    where g.account_id = p_account and g.ticket = p_symbol))))
  where n.account_id = p_account and n.symbol = p_symbol;
end $$;

-- Books the parts of a deal that was given up and filled after all. Meanwhile its reductions may have been repeated: each link gives what it
-- holds beyond its target now. What the deal then has too much goes first to the opens against it, which are less by that, then to its last
-- open, beyond what was asked: the planner takes it off again. Returns the lots that found a link.
create function private.book_late_parts(p_account uuid, p_symbol text, p_direction integer, p_filled numeric, p_price numeric, p_parts jsonb,
  p_dealt_again boolean) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_part record;
  v_left numeric;
  v_excess numeric;
  v_lots numeric;
  v_booked numeric := 0;
begin
  with parts as (
    select private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = p_direction as with_deal,
      (e ->> 'lots')::numeric > 0 as opens, private.possible_lots(e, p_symbol) as lots
    from jsonb_array_elements(p_parts) e
  )
  select p_filled + coalesce(sum(lots) filter (where not with_deal), 0), coalesce(sum(lots) filter (where with_deal), 0)
  into v_left, v_excess from parts;
  v_excess := greatest(0, v_left - v_excess);
  for v_part in
    select (e ->> 'link_id')::bigint as link_id, (e ->> 'lots')::numeric > 0 as opens, private.possible_lots(e, p_symbol) as lots,
      (e ->> 'master_lots')::numeric as master_lots, (e ->> 'reduced_to')::numeric as reduced_to, w.with_deal,
      row_number() over (partition by w.with_deal order by (e ->> 'lots')::numeric > 0 desc, (e ->> 'link_id')::bigint desc) = 1 as last
    from jsonb_array_elements(p_parts) e
    cross join lateral (select private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = p_direction as with_deal) w
    order by w.with_deal, (e ->> 'lots')::numeric > 0, (e ->> 'link_id')::bigint
  loop
    v_lots := v_part.lots;
    if v_part.with_deal then
      v_lots := least(v_lots, v_left);
      v_left := v_left - v_lots;
    elsif v_part.opens then
      v_lots := greatest(0, v_lots - v_excess);
      v_left := v_left - (v_part.lots - v_lots);
      v_excess := v_excess - (v_part.lots - v_lots);
    end if;
    if v_part.opens then
      perform private.open_late(v_part.link_id, p_account, p_symbol, v_lots, v_part.master_lots, p_price, p_dealt_again);
      if v_part.with_deal and v_part.last and v_left > 0 then
        perform private.book_share(v_part.link_id, p_account, p_symbol, v_left, p_price);
        v_lots := v_lots + v_left;
        v_left := 0;
      end if;
    elsif v_lots > 0 then
      perform private.book_share(v_part.link_id, p_account, p_symbol, -v_lots, p_price);
    end if;
    if not v_part.opens and v_part.reduced_to is not null then
      perform private.see_reduction(v_part.link_id, v_part.reduced_to);
    end if;
    v_booked := v_booked + case when v_part.with_deal then v_lots else -v_lots end;
  end loop;
  return v_booked;
end $$;

-- What a part of a late deal can still do: an open all of it, a reduction what its link holds beyond its target.
create function private.possible_lots(p_part jsonb, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := (p_part ->> 'lots')::numeric;
begin
  if v_lots > 0 then return v_lots; end if;
  return coalesce((
    select least(-v_lots, g.lots - case when p_part ->> 'reduced_to' is null or l.base_lots is null then 0 else private.target_lots(
      l.base_lots, (p_part ->> 'reduced_to')::numeric, l.base_master_lots, s.lots_step, s.lots_min, g.lots) end)
    from private.link_legs g
    join public.position_links l on l.id = g.link_id
    join public.account_symbols s on s.account_id = g.account_id and s.name = p_symbol
    where g.link_id = (p_part ->> 'link_id')::bigint and g.ticket = p_symbol), 0);
end $$;

-- A link gets what was given up for it. p_dealt_again: it has been wanted again since, so it counts only as far as it still is.
create function private.open_late(p_link bigint, p_account uuid, p_symbol text, p_lots numeric, p_master_lots numeric, p_price numeric,
  p_dealt_again boolean) returns void
language plpgsql security definer set search_path = '' as $$
declare
  l public.position_links;
  v_counts numeric := p_lots;
  v_held numeric;
begin
  if p_lots <= 0 then return; end if;
  select * into l from public.position_links where id = p_link;
  select coalesce(sum(g.lots), 0) into v_held from private.link_legs g where g.link_id = p_link;
  perform private.book_share(p_link, p_account, p_symbol, p_lots, p_price);
  if p_dealt_again then
    v_counts := least(p_lots, coalesce(l.wanted_lots, 0));
  end if;
  update public.position_links x set wanted_lots = case when p_dealt_again then nullif(x.wanted_lots - v_counts, 0) else x.wanted_lots end,
    wanted_until = case when p_dealt_again and x.wanted_lots = v_counts then null else x.wanted_until end,
    -- what was given up has rebased the link already: now it is held after all
    base_lots = case when v_held = 0 then v_counts else coalesce(x.base_lots, 0) + v_counts end,
    base_master_lots = case when v_held = 0 then p_master_lots else coalesce(x.base_master_lots, p_master_lots) end
  where x.id = p_link;
end $$;

-- Books a deal whose verdict was no fill, and which filled after all. Its volume may be among the surprises already: then these were none.
-- p_was: the execution before this report.
create function private.book_late(q public.trade_execution_queue, p_was public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_direction integer := private.sign_of(q.side) * case when q.action = 'open' then 1 else -1 end;
  v_booked numeric;
  v_net numeric;
  v_beyond numeric;
begin
  insert into private.net_ledgers (account_id, symbol) values (q.account_id, q.symbol) on conflict do nothing;
  v_booked := private.book_late_parts(q.account_id, q.symbol, v_direction, coalesce(q.filled_lots, q.lots), q.fill_price, q.parts,
    coalesce(p_was.reason = 'superseded', false));
  select net_lots into v_net from private.net_ledgers where account_id = q.account_id and symbol = q.symbol;
  -- the mirror has taken the report: what it shows and the ledger does not is this fill, unless another deal is under way
  v_beyond := case when exists (
      select 1 from public.trade_execution_queue o
      where o.account_id = q.account_id and o.symbol = q.symbol and o.in_flight and o.status <> 'retrying') then 0
    else greatest(0, (private.mirror_net(q.account_id, q.symbol) - v_net) * v_direction) end;
  v_booked := v_booked - private.undo_surprises(q, v_direction, greatest(0, v_booked - v_beyond));
  update private.net_ledgers set net_lots = net_lots + v_direction * v_booked where account_id = q.account_id and symbol = q.symbol;
end $$;

-- A deal of which another attempt had filled already (q.attempt is the one that completed it): its volume is its links' as well, more than they
-- want, so the planner takes it off again. Returns the links; none when the report is only repeated.
create function private.book_second_fill(q public.trade_execution_queue, r jsonb) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_dealt_again public.trade_execution_queue := q;
begin
  if q.status <> 'completed' or (r ->> 'attempt')::integer = q.attempt or 'filled_twice' = any (q.warnings)
    or coalesce((r ->> 'filled_lots')::numeric, 0) = 0 then
    return '{}';
  end if;
  update public.trade_execution_queue set warnings = warnings || 'filled_twice'::text where id = q.id;
  perform private.revive_link(q);
  q.filled_lots := (r ->> 'filled_lots')::numeric;
  v_dealt_again.reason := 'superseded';
  perform private.book_late(q, v_dealt_again);
  return array(select (e ->> 'link_id')::bigint from jsonb_array_elements(q.parts) e);
end $$;

-- Takes up to p_lots in this direction off the surprises since the deal was queued; what they took from links is given back. Returns the lots.
create function private.undo_surprises(q public.trade_execution_queue, p_direction integer, p_lots numeric) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_left numeric := p_lots;
  v_kept jsonb := '[]';
  v_take numeric;
  e jsonb;
begin
  for e in
    select x.value from private.net_ledgers n cross join jsonb_array_elements(n.surprises) with ordinality as x (value, n)
    where n.account_id = q.account_id and n.symbol = q.symbol order by x.n
  loop
    v_take := case when (e ->> 'at')::timestamptz >= q.queued_at and sign((e ->> 'lots')::numeric) = p_direction
      then least(v_left, abs((e ->> 'lots')::numeric)) else 0 end;
    if v_take > 0 and e ->> 'link_id' is not null then
      perform private.book_share((e ->> 'link_id')::bigint, q.account_id, q.symbol, v_take, null);
      update public.position_links set state = 'live', ended_at = null, reason = null
      where id = (e ->> 'link_id')::bigint and state = 'ended';
    end if;
    v_left := v_left - v_take;
    if v_take < abs((e ->> 'lots')::numeric) then
      v_kept := v_kept || (e || jsonb_build_object('lots', ((e ->> 'lots')::numeric - v_take * p_direction)::text));
    end if;
  end loop;
  update private.net_ledgers set surprises = v_kept where account_id = q.account_id and symbol = q.symbol;
  return p_lots - v_left;
end $$;

-- Gives back what a waiting deal would have opened: it is in nobody's hands and may be dealt otherwise.
create function private.give_back(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = coalesce(l.wanted_lots, 0) + (e ->> 'lots')::numeric, wanted_until = (e ->> 'until')::timestamptz
  from jsonb_array_elements(q.parts) e
  where l.id = (e ->> 'link_id')::bigint and l.ended_at is null and (e ->> 'lots')::numeric > 0;
end $$;

-- Cuts the parts of a deal to what one order may hold: parts against the deal stay whole, those with it share p_room, reductions first.
create function private.cut_parts(p_parts jsonb, p_side text, p_room numeric) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_with boolean;
  v_left numeric := p_room;
  v_lots numeric;
  v_cut jsonb := '[]';
begin
  select v_left + coalesce(sum(abs((x ->> 'lots')::numeric)), 0) into v_left from jsonb_array_elements(p_parts) x
  where private.sign_of(x ->> 'side') * sign((x ->> 'lots')::numeric) <> private.sign_of(p_side);
  for e in select value from jsonb_array_elements(p_parts) order by (value ->> 'lots')::numeric > 0, (value ->> 'link_id')::bigint loop
    v_with := private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = private.sign_of(p_side);
    v_lots := case when v_with then least(abs((e ->> 'lots')::numeric), v_left) else abs((e ->> 'lots')::numeric) end;
    if v_with then v_left := v_left - v_lots; end if;
    if v_lots > 0 then
      v_cut := v_cut || jsonb_build_array(e || jsonb_build_object('lots', (v_lots * sign((e ->> 'lots')::numeric))::text));
    end if;
  end loop;
  return v_cut;
end $$;
