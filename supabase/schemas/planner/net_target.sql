-- What the links of a netting symbol want: the changes of each, and the one deal that makes them.

-- The change that each live link of a netting symbol wants, in lots of the link (+ more, - less); reduced_to: the
-- volume that its master holds.
create function private.net_deltas(p_account uuid, p_symbol text, p_now timestamptz)
returns table (link_id bigint, side text, delta numeric, opens boolean, wanted_sl numeric, wanted_tp numeric,
  held numeric, reduced_to numeric, frozen boolean)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select s.id, s.side, case
      when s.frozen then 0
      when s.doomed then -s.position_lots
      else coalesce(s.wanted_lots, 0) - case when s.base_lots is null or s.master_kind <> 'position' then 0
        else greatest(0, s.position_lots - s.target_lots) end
    end,
    s.wanted_lots is not null and not s.doomed and not s.frozen, s.wanted_sl, s.wanted_tp, s.position_lots,
    case when not s.doomed and s.master_kind = 'position' then s.master_lots end, s.frozen
  from private.link_states s
  where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live';
end $$;

-- Drops what was decided but not dealt in time, or is no longer wanted.
create function private.drop_wanted(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_reason text;
  v_trading text := private.trading_state();
  v_why text := (select a.copy_state_reason from public.trading_accounts a where a.id = p_account);
begin
  for v_link in
    select s.id, s.copier_id, s.master_event_id, s.doomed, s.removal, x.shut, s.legs, s.master_lots, s.position_lots
    from private.link_states s
    cross join lateral (select coalesce(private.opening_blocked_reason(v_trading, s.copy_state, v_why, s.copier_mode,
      s.removal), private.time_refusal(p_account, p_symbol, (select m.symbol from public.positions m
        where m.account_id = s.master_account_id and m.ticket = s.master_ticket and m.kind = s.master_kind), p_now))
      as shut) x
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.wanted_lots is not null
      and (s.doomed or x.shut is not null or s.wanted_until <= p_now)
  loop
    v_reason := case when v_link.doomed and v_link.removal is null
      then 'already_closed' else coalesce(v_link.shut, 'too_old') end;
    update public.position_links l set wanted_lots = null, wanted_until = null, rest_lots = null,
      base_lots = case when v_link.legs > 0 then v_link.position_lots end,
      -- one cannot divide by a closed master's 0
      base_master_lots = coalesce(nullif(v_link.master_lots, 0), l.base_master_lots),
      state = case when v_link.legs = 0 then 'ended' else 'live' end,
      reason = case when v_link.legs = 0 then v_reason else l.reason end,
      ended_at = case when v_link.legs = 0 then p_now end
    where l.id = v_link.id;
    update public.copy_outcomes set reason = v_reason
    where event_id = v_link.master_event_id and copier_id = v_link.copier_id and execution_id is null
      and reason = 'coalesced';
  end loop;
end $$;

-- Reduces the rest of an open in several orders when its master is reduced: held volume and rest together follow the
-- master, as if everything had been dealt at once.
create function private.shrink_rests(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_rest numeric;
  v_any boolean := false;
begin
  for v_link in
    select s.id, s.rest_lots, s.wanted_lots, s.position_lots,
      private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.base_lots) as lots
    from private.link_states s
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.rest_lots is not null
      and s.base_lots is not null and s.master_kind = 'position' and not s.doomed and not s.frozen
  loop
    v_rest := least(v_link.rest_lots, v_link.wanted_lots, greatest(0, v_link.lots - v_link.position_lots));
    update public.position_links l set rest_lots = nullif(v_rest, 0),
      wanted_lots = nullif(l.wanted_lots - v_link.rest_lots + v_rest, 0),
      wanted_until = case when l.wanted_lots > v_link.rest_lots - v_rest then l.wanted_until end
    where l.id = v_link.id and v_rest < v_link.rest_lots;
    v_any := true;
  end loop;
  -- the copy may already be as small as its master
  if v_any then perform private.mark_reductions_done(p_account, p_symbol); end if;
end $$;

-- What a deal opens is no longer wanted, nor what the wanted change reduces; the rest of a part that was cut still is.
-- p_target: the wanted changes, p_parts: the parts of them that are dealt.
create function private.take_from_wanted(p_target jsonb, p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = nullif(w.rest, 0), wanted_until = case
    when w.rest > 0 then l.wanted_until end,
    rest_lots = case when e is not null then nullif(w.rest, 0) when l.rest_lots is not null
      then nullif(least(l.rest_lots, w.rest), 0) end
  from jsonb_array_elements(p_target) x
  -- no row: there was no room for it
  left join jsonb_array_elements(p_parts) e on e ->> 'link_id' = x ->> 'link_id' and (e ->> 'lots')::numeric > 0
  cross join lateral (select greatest((x ->> 'lots')::numeric, 0) - coalesce((e ->> 'lots')::numeric, 0) as rest) w
  where l.id = (x ->> 'link_id')::bigint;
end $$;

-- The lots that our deals moved and no link has, as far as they can be moved back now.
create function private.surplus_to_deal(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce((
    select n.surplus_lots from private.net_ledgers n join public.trading_accounts a on a.id = n.account_id
    where n.account_id = p_account and n.symbol = p_symbol and a.copy_state <> 'off'
      and private.trading_state() <> 'off'), 0);
end $$;

create type private.net_target as (parts jsonb, sum numeric, opens boolean, shares integer, sl numeric, tp numeric,
  virtual boolean, frozen boolean);
comment on type private.net_target is 'What the links of a netting symbol want together.';

-- What a netting symbol's links want together. parts: the changes; sum: signed lots of the deal that makes them;
-- shares: links that will hold something; sl and tp: the levels of the position (none if it has several owners;
-- virtual: one of them wants some); frozen: all of them are off, so the levels stay as they are.
create function private.net_target_of(p_account uuid, p_symbol text, p_net numeric, p_now timestamptz)
returns private.net_target
language plpgsql security definer set search_path = '' as $$
declare
  w private.net_target;
  v_after numeric;
  v_surplus numeric := private.surplus_to_deal(p_account, p_symbol);
begin
  select coalesce(sum(d.delta * private.sign_of(d.side)), 0),
    coalesce(jsonb_agg(jsonb_build_object('link_id', d.link_id::text, 'side', d.side, 'lots', d.delta::text,
      'reduced_to', case when d.delta < 0 then d.reduced_to::text end, 'until', l.wanted_until, 'counted',
        l.rest_lots::text,
      'master_lots', case when l.rest_lots is not null
        then least(l.seen_master_lots, d.reduced_to) else l.seen_master_lots end::text)
        order by d.link_id) filter (where d.delta <> 0), '[]'),
    coalesce(bool_or(d.delta > 0), false), count(*) filter (where d.held + d.delta > 0),
    coalesce(sum((d.held + d.delta) * private.sign_of(d.side)), 0),
    min(d.wanted_sl) filter (where d.held + d.delta > 0), min(d.wanted_tp) filter (where d.held + d.delta > 0),
    coalesce(bool_and(d.frozen) filter (where d.held + d.delta > 0), false)
  into w.sum, w.parts, w.opens, w.shares, v_after, w.sl, w.tp, w.frozen
  from private.net_deltas(p_account, p_symbol, p_now) d join public.position_links l on l.id = d.link_id;
  if v_surplus <> 0 then
    w.sum := w.sum - v_surplus;
    w.parts := w.parts || jsonb_build_object('link_id', null, 'side', case
      when v_surplus > 0 then 'buy' else 'sell' end, 'lots', (-abs(v_surplus))::text,
      'surplus_of', (select n.surplus_link_id::text from private.net_ledgers n
        where n.account_id = p_account and n.symbol = p_symbol));
  end if;
  w.virtual := false;
  if w.shares <> 1 or p_net + w.sum <> v_after then
    w.virtual := w.sl is not null or w.tp is not null;
    w.sl := null;
    w.tp := null;
  end if;
  return w;
end $$;

-- A reduction of the master counts as seen once it is carried out, as in plan_links.
create function private.mark_reductions_done(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = s.master_lots
  from private.link_states s
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live' and s.id = l.id
    and s.master_kind = 'position'
    and not s.doomed and s.master_lots < l.seen_master_lots and l.base_lots is not null and l.wanted_lots is null
    and s.position_lots <= s.target_lots
    and not exists (select 1 from public.trade_execution_queue q
      where q.account_id = p_account and q.symbol = p_symbol and q.in_flight
        and (q.status <> 'retrying' or private.opens(q)));
end $$;
