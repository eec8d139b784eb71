-- The ledger of a netting follower: each link's share of the net position (its leg), and the difference between the
-- account's net position and the sum of the shares. Callers hold the account's plan lock.

create function private.sign_of(p_side text) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return case p_side when 'buy' then 1 else -1 end;
end $$;

-- Adds p_lots (signed: + more, - less) to a link's share.
create function private.book_share(p_link bigint, p_account uuid, p_symbol text, p_lots numeric,
  p_price numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_lots > 0 then
    insert into private.link_legs as g (link_id, account_id, ticket, ticket_kind, kind, lots, price)
    values (p_link, p_account, p_symbol, 'position', 'position', p_lots, p_price)
    on conflict (link_id, ticket, ticket_kind) do update set lots = g.lots + excluded.lots,
      price = coalesce((g.lots * g.price + excluded.lots * excluded.price) / (g.lots + excluded.lots), excluded.price,
        g.price);
  else
    delete from private.link_legs where link_id = p_link and ticket = p_symbol and lots + p_lots <= 0;
    update private.link_legs set lots = lots + p_lots
    where link_id = p_link and ticket = p_symbol and lots + p_lots > 0;
  end if;
end $$;

-- The signed volume that the account's mirror shows in this symbol.
create function private.mirror_net(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(sum(p.lots * private.sign_of(p.side)), 0) from public.positions p
    where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position');
end $$;

-- Books changes that the account's mirror shows and our deals do not explain. A stop, a stop-out or a manual deal
-- against the links reduces them first, oldest first; otherwise a later close would open a position the other way. The
-- rest is the user's own. Each change is stored as a surprise. p_net: the net volume to book, which is the mirror's
-- unless a deal is booked right after this.
create function private.book_net(p_account uuid, p_symbol text, p_net numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_change numeric;
  v_surplus numeric;
  v_leg record;
  v_take numeric;
  v_surprises jsonb := '[]';
begin
  insert into private.net_ledgers (account_id, symbol) values (p_account, p_symbol) on conflict do nothing;
  select p_net - net_lots, surplus_lots into v_change, v_surplus from private.net_ledgers
  where account_id = p_account and symbol = p_symbol;
  if v_change = 0 then return; end if;
  v_take := least(abs(v_change), greatest(0, -sign(v_change) * v_surplus));
  if v_take > 0 then  -- the user, or a stop, has done what the copy was about to do
    perform private.book_surplus(p_account, p_symbol, v_take * sign(v_change));
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', (v_take * sign(v_change))::text, 'at',
      p_now, 'surplus', true);
    v_change := v_change - v_take * sign(v_change);
  end if;
  for v_leg in
    select g.link_id, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id
    where g.account_id = p_account and g.ticket = p_symbol and l.state = 'live'
      and private.sign_of(l.side) = -sign(v_change)
    order by g.link_id
  loop
    v_take := least(v_leg.lots, abs(v_change));
    exit when v_take <= 0;
    perform private.book_share(v_leg.link_id, p_account, p_symbol, -v_take, null);
    v_surprises := v_surprises || jsonb_build_object('link_id', v_leg.link_id::text, 'lots',
      (v_take * sign(v_change))::text, 'at', p_now);
    v_change := v_change + v_take * -sign(v_change);
  end loop;
  if v_change <> 0 then
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', v_change::text, 'at', p_now);
  end if;
  update private.net_ledgers n set net_lots = p_net, surprises = private.newest(n.surprises || v_surprises, 20)
  where n.account_id = p_account and n.symbol = p_symbol;
end $$;

create function private.newest(p_entries jsonb, p_count integer) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(e.value order by e.n) from jsonb_array_elements(p_entries) with ordinality as e (value, n)
    where e.n > jsonb_array_length(p_entries) - p_count), '[]');
end $$;

-- The surplus: lots that our deals moved and no link can have (an open dealt twice, a reduction of a copy that was
-- gone), signed like the account's net. The next deal moves it back. p_link: the link of the deal, which tells whose it
-- was.
create function private.book_surplus(p_account uuid, p_symbol text, p_lots numeric,
  p_link bigint default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update private.net_ledgers set surplus_lots = surplus_lots + p_lots,
    surplus_link_id = coalesce(p_link, surplus_link_id)
  where account_id = p_account and symbol = p_symbol and p_lots <> 0;
end $$;

-- Books a filled (or purely internal) deal. Each part gets what the deal was sent for, as far as its link can still
-- have it: parts against the deal in full, parts with it from the fill, reductions first. What the links cannot have is
-- surplus, so every lot of a fill is booked. p_when: 'in_time', 'given_up' (it had counted as not filled),
-- 'dealt_again' (what it was to open was put into another deal).
create function private.book_deal(p_account uuid, p_symbol text, p_direction integer, p_filled numeric, p_price numeric,
  p_parts jsonb,
  p_when text default 'in_time') returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_part record;
  v_room numeric;
  v_lots numeric;
  v_surplus numeric := p_filled * p_direction;
begin
  select p_filled + coalesce(sum(abs((e ->> 'lots')::numeric)), 0) into v_room from jsonb_array_elements(p_parts) e
  where private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) <> p_direction;
  for v_part in
    select e as body, (e ->> 'link_id')::bigint as link_id, (e ->> 'lots')::numeric > 0 as opens,
      private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) as direction
    from jsonb_array_elements(p_parts) e order by (e ->> 'lots')::numeric > 0, (e ->> 'link_id')::bigint
  loop
    v_lots := case when v_part.opens then (v_part.body ->> 'lots')::numeric
      else private.possible_lots(v_part.body, p_account, p_symbol, p_when <> 'in_time') end;
    if v_part.direction = p_direction then
      v_lots := least(v_lots, v_room);
      v_room := v_room - v_lots;
    end if;
    if v_part.opens then
      v_lots := private.book_open(v_part.body, p_account, p_symbol, v_lots, p_price, p_when);
    elsif v_part.link_id is null then
      perform private.book_surplus(p_account, p_symbol, v_lots * v_part.direction);
    else
      perform private.book_reduction(v_part.body, p_account, p_symbol, v_lots, p_when);
    end if;
    v_surplus := v_surplus - v_lots * v_part.direction;
  end loop;
  update private.net_ledgers set net_lots = net_lots + p_filled * p_direction
  where account_id = p_account and symbol = p_symbol;
  perform private.book_surplus(p_account, p_symbol, v_surplus, (
    select max((e ->> 'link_id')::bigint) from jsonb_array_elements(p_parts) e));
end $$;

-- How much a reduction can still take: what its link holds above the target that the deal was sent for; for a late
-- deal, above its present target, because the reduction may have been repeated or the master may have increased again.
-- For a surplus: what is left of it. For a released copy: what its user has.
create function private.possible_lots(p_part jsonb, p_account uuid, p_symbol text, p_late boolean) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := abs((p_part ->> 'lots')::numeric);
  v_link bigint := (p_part ->> 'link_id')::bigint;
begin
  if v_link is null then
    return (
      select least(v_lots, greatest(0, n.surplus_lots * private.sign_of(p_part ->> 'side'))) from private.net_ledgers n
      where n.account_id = p_account and n.symbol = p_symbol);
  end if;
  if exists (select 1 from public.position_links l
    where l.id = v_link and l.state = 'ended' and l.reason = 'released') then
    return v_lots;
  end if;
  return coalesce((
    select least(v_lots, greatest(0, s.position_lots - case
        when not p_late and (p_part ->> 'reduced_to' is null or s.base_lots is null) or p_late and s.doomed then 0
        when s.base_lots is null or s.master_kind <> 'position' then s.position_lots
        when p_late then s.target_lots
        else private.target_lots(s.base_lots, (p_part ->> 'reduced_to')::numeric, s.base_master_lots, s.lots_step,
          s.lots_min, s.position_lots) end))
    from private.link_states s where s.id = v_link and s.ended_at is null), 0);
end $$;

create function private.book_reduction(p_part jsonb, p_account uuid, p_symbol text, p_lots numeric,
  p_when text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.book_share((p_part ->> 'link_id')::bigint, p_account, p_symbol, -p_lots, null);
  -- a late one counts as done once the link is as small as its master now
  if p_when = 'in_time' and p_part ->> 'reduced_to' is not null then
    perform private.mark_reduction_done((p_part ->> 'link_id')::bigint, (p_part ->> 'reduced_to')::numeric,
      (p_part ->> 'master_lots')::numeric);
  end if;
end $$;

-- Gives a link what a deal opened for it; the link becomes live again if it was given up. What was dealt again counts
-- only as far as it is still wanted. Returns the lots that the link took.
create function private.book_open(p_part jsonb, p_account uuid, p_symbol text, p_lots numeric, p_price numeric,
  p_when text) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  l public.position_links;
  v_lots numeric := p_lots;
  v_master_lots numeric := (p_part ->> 'master_lots')::numeric;
  v_counted numeric := (p_part ->> 'counted')::numeric;
  v_rest numeric;
  v_held numeric;
begin
  select * into l from public.position_links x where x.id = (p_part ->> 'link_id')::bigint;
  v_rest := coalesce(l.rest_lots, 0);
  if p_when = 'dealt_again' then v_lots := least(p_lots, coalesce(l.wanted_lots, 0)); end if;
  if p_when <> 'in_time' and v_lots = 0 then return 0; end if;
  select coalesce(sum(g.lots), 0) into v_held from private.link_legs g where g.link_id = l.id;
  if v_lots > 0 then
    perform private.book_share(l.id, p_account, p_symbol, v_lots, p_price);
    update public.position_links x set state = 'live', ended_at = null, reason = null
    where x.id = l.id and x.state = 'ended' and x.reason is distinct from 'released';
  end if;
  if p_when = 'given_up' then  -- giving up has already rebased the link: now it is held after all
    update public.position_links x set base_lots = case
      when v_held = 0 then v_lots else coalesce(x.base_lots, 0) + v_lots end,
      base_master_lots = case when v_held = 0 then v_master_lots else coalesce(x.base_master_lots, v_master_lots) end
    where x.id = l.id;
  elsif p_when = 'dealt_again' then
    update public.position_links x set wanted_lots = nullif(x.wanted_lots - v_lots, 0),
      rest_lots = nullif(x.rest_lots - v_lots, 0),
      wanted_until = case when x.wanted_lots > v_lots then x.wanted_until end,
      base_lots = case when x.rest_lots is not null
        then x.base_lots else v_lots + least(v_held, coalesce(x.base_lots, 0)) end,
      base_master_lots = case when x.rest_lots is not null then x.base_master_lots else v_master_lots end
    where x.id = l.id;
  elsif v_counted is not null and v_lots = (p_part ->> 'lots')::numeric then
    update public.position_links x set base_lots = x.base_lots - v_counted + v_lots + v_rest,
      base_master_lots = case when v_lots + v_rest > v_counted then v_master_lots else x.base_master_lots end
    where x.id = l.id;
  else  -- a fill rebases the pair, to what is held now and the rest still to be dealt
    update public.position_links x set base_master_lots = v_master_lots,
      base_lots = nullif(v_lots + least(v_held, coalesce(x.base_lots, 0)) + v_rest, 0)
    where x.id = l.id;
  end if;
  return v_lots;
end $$;

-- The direction in which an execution moves the net: an order by ticket names the position's side.
create function private.direction_of(q public.trade_execution_queue) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return private.sign_of(q.side) * case when q.action = 'open' then 1 else -1 end;
end $$;

-- Books a deal that was reported as filled. p_was: the execution before this report; p_shown: the net that the mirror
-- showed before the report.
create function private.book_fill_of_net(q public.trade_execution_queue, p_was public.trade_execution_queue,
  p_late boolean, p_shown numeric,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  n private.net_ledgers;
  v_before numeric;
  v_sign integer;
  v_held numeric;
begin
  if p_late or p_was.finalized_at is not null or p_was.status = 'retrying' then
    perform private.book_late(q, case when p_was.reason = 'superseded'
      then 'dealt_again' when p_was.finalized_at is not null then 'given_up'
      else 'in_time' end);
  else
    -- A stop or a manual deal while our deal was in flight, reported separately or by this report, took from what was
    -- held before. What it took beyond that came from what our deal opened, and is found later; so is a change that the
    -- mirror showed together with our deal.
    v_before := private.mirror_net(q.account_id, q.symbol) - private.direction_of(q) * coalesce(q.filled_lots, q.lots);
    select * into n from private.net_ledgers x where x.account_id = q.account_id and x.symbol = q.symbol;
    if p_shown in (v_before, n.net_lots) and v_before <> n.net_lots then
      v_sign := sign(n.net_lots - v_before);
      select greatest(0, n.surplus_lots * v_sign) + coalesce(sum(g.lots), 0) into v_held
      from private.link_legs g join public.position_links l on l.id = g.link_id
      where g.account_id = q.account_id and g.ticket = q.symbol and l.state = 'live'
        and private.sign_of(l.side) = v_sign;
      perform private.book_net(q.account_id, q.symbol, n.net_lots - v_sign * least(v_held, abs(n.net_lots - v_before)),
        p_now);
    end if;
    perform private.book_deal(q.account_id, q.symbol, private.direction_of(q), coalesce(q.filled_lots, q.lots),
      q.fill_price, q.parts);
  end if;
end $$;

-- Books a fill that was no longer waited for. Its volume may have been booked as surprises, which it then explains.
create function private.book_late(q public.trade_execution_queue, p_when text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_direction integer := private.direction_of(q);
  v_filled numeric := coalesce(q.filled_lots, q.lots);
  v_beyond numeric;
  v_known numeric;
begin
  insert into private.net_ledgers (account_id, symbol) values (q.account_id, q.symbol) on conflict do nothing;
  -- the mirror has taken the report: a difference between mirror and ledger is this fill, unless another deal is in
  -- flight
  v_beyond := case when exists (
      select 1 from public.trade_execution_queue o
      where o.account_id = q.account_id and o.symbol = q.symbol and o.in_flight and o.status <> 'retrying') then 0
    else greatest(0, (private.mirror_net(q.account_id, q.symbol) - (
      select n.net_lots from private.net_ledgers n
      where n.account_id = q.account_id and n.symbol = q.symbol)) * v_direction) end;
  v_known := private.undo_surprises(q, v_direction, greatest(0, v_filled - v_beyond));
  perform private.book_deal(q.account_id, q.symbol, v_direction, v_filled, q.fill_price, q.parts, p_when);
  update private.net_ledgers set net_lots = net_lots - v_direction * v_known
  where account_id = q.account_id and symbol = q.symbol;
end $$;

-- Books a deal of which another attempt had already filled (q.attempt is the one that completed it). Returns its links;
-- none if the report is only a repetition.
create function private.book_second_fill(q public.trade_execution_queue, r jsonb) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  if q.status <> 'completed' or (r ->> 'attempt')::integer = q.attempt or 'filled_twice' = any (q.warnings)
    or coalesce((r ->> 'filled_lots')::numeric, 0) = 0 then
    return '{}';
  end if;
  update public.trade_execution_queue set warnings = warnings || 'filled_twice'::text where id = q.id;
  q.filled_lots := (r ->> 'filled_lots')::numeric;
  perform private.book_late(q, 'dealt_again');
  return array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint from jsonb_array_elements(q.parts) e);
end $$;

-- Removes up to p_lots in this direction from the surprises since the deal was queued, and gives back to links what
-- they lost by them. Returns the lots.
create function private.undo_surprises(q public.trade_execution_queue, p_direction integer,
  p_lots numeric) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_left numeric := p_lots;
  v_kept jsonb := '[]';
  v_take numeric;
  e jsonb;
begin
  for e in
    select x.value from private.net_ledgers n
    cross join jsonb_array_elements(n.surprises) with ordinality as x (value, n)
    where n.account_id = q.account_id and n.symbol = q.symbol order by x.n
  loop
    v_take := case when (e ->> 'at')::timestamptz >= q.queued_at and sign((e ->> 'lots')::numeric) = p_direction
      then least(v_left, abs((e ->> 'lots')::numeric)) else 0 end;
    if v_take > 0 and e ? 'surplus' then
      perform private.book_surplus(q.account_id, q.symbol, -v_take * p_direction);
    elsif v_take > 0 and e ->> 'link_id' is not null then
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

-- Gives back what a waiting deal would have opened. The deal is not handed out, so its parts may be dealt differently.
create function private.give_back(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = coalesce(l.wanted_lots, 0) + (e ->> 'lots')::numeric,
    wanted_until = (e ->> 'until')::timestamptz,
    rest_lots = case when e ->> 'counted' is not null then coalesce(l.rest_lots, 0) + (e ->> 'lots')::numeric end
  from jsonb_array_elements(q.parts) e
  where l.id = (e ->> 'link_id')::bigint and l.ended_at is null and (e ->> 'lots')::numeric > 0;
end $$;

-- Cuts the parts of a deal to what one order may hold: parts against the deal stay whole, parts with it share p_room,
-- reductions first.
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
  for e in select value from jsonb_array_elements(p_parts)
    order by (value ->> 'lots')::numeric > 0, (value ->> 'link_id')::bigint loop
    v_with := private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = private.sign_of(p_side);
    v_lots := case when v_with then least(abs((e ->> 'lots')::numeric), v_left) else abs((e ->> 'lots')::numeric) end;
    if v_with then v_left := v_left - v_lots; end if;
    if v_lots > 0 then
      v_cut := v_cut || jsonb_build_array(e || jsonb_build_object('lots',
        (v_lots * sign((e ->> 'lots')::numeric))::text));
    end if;
  end loop;
  return v_cut;
end $$;
