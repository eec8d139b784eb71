-- The plan of netting followers: one order in flight per (account, symbol). The changes that a symbol's links want are
-- summed to one deal, reductions first. Before planning, the difference between the broker's net position and the
-- ledger is booked (ledger/net_ledger.sql).

-- Queues the deal for these parts; what it opens is no longer wanted. Returns its number.
create function private.queue_deal(
  p_account uuid, p_symbol text, p_side text, p_lots numeric, p_net numeric, p_ticket text, p_parts jsonb,
    p_target private.net_target, p_now timestamptz
) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_link public.position_links;
  v_opens boolean;
  v_levels private.levels;
  v_action text;
  v_copier public.copiers;
  v_master public.positions;
  v_draft private.execution_draft;
  v_new bigint;
begin
  select coalesce(bool_or((e ->> 'lots')::numeric > 0), false) into v_opens from jsonb_array_elements(p_parts) e;
  select l.* into v_link from jsonb_array_elements(p_parts) e
  join public.position_links l on l.id = (e ->> 'link_id')::bigint
  order by (e ->> 'lots')::numeric > 0 desc, l.id desc limit 1;
  -- "open" if the position may grow or a new one may result (the end of a short copy buys); a pure reduction names the
  -- position
  v_action := case when v_opens or private.sign_of(p_side) = sign(p_net) or p_lots > abs(p_net) or p_ticket is null
    then 'open' when p_lots = abs(p_net) then 'close' else 'reduce' end;
  v_levels := private.levels_to_ask(p_account, p_symbol, p_side, null, p_target.sl, p_target.tp, 0, p_now);
  select a.user_id into v_draft.user_id from public.trading_accounts a where a.id = p_account;
  select c.* into v_copier from public.copiers c where c.id = v_link.copier_id;  -- none when a surplus is all of it
  select m.* into v_master from public.positions m
  where m.account_id = v_link.master_account_id and m.ticket = v_link.master_ticket and m.kind = v_link.master_kind;
  v_draft.link_id := v_link.id;
  v_draft.lane := p_account || ':' || p_symbol;
  v_draft.copier_id := v_link.copier_id;
  v_draft.account_id := p_account;
  v_draft.master_account_id := v_link.master_account_id;
  v_draft.event_id := v_master.last_event_id;
  v_draft.action := v_action;
  v_draft.symbol := p_symbol;
  v_draft.side := case when v_action = 'open' then p_side when p_side = 'buy' then 'sell' else 'buy' end;
  v_draft.lots := p_lots;
  if v_action <> 'open' then
    v_draft.target_lots := abs(p_net) - p_lots;
    v_draft.ticket := p_ticket;
  end if;
  if v_opens then
    v_draft.sl := v_levels.sent_sl;
    v_draft.tp := v_levels.sent_tp;
    v_draft.max_slippage_points := v_copier.max_slippage_points;
  end if;
  v_draft.master_price := v_master.price;
  v_draft.master_lots := v_link.seen_master_lots;
  v_draft.comment := private.copy_comment(v_copier, v_link.master_ticket);
  v_draft.parts := p_parts;
  v_draft.warnings := case
    when p_target.shares > 1 or p_target.virtual then array['netting_sltp_virtual']
    when v_opens then v_levels.warnings
  end;
  v_draft.retry_until := p_now + make_interval(secs => v_copier.retry_window_s);
  v_draft.detected_at := private.seen_at(
    case when v_action <> 'close' or v_master.lots = 0 then v_master.last_event_id end,
    v_link.copier_id, v_action, v_master.detected_at, v_master.changed_at, p_now);
  v_new := (private.queue_executions(array[v_draft], false, p_now))[1];
  perform private.take_from_wanted(p_target.parts, p_parts);
  -- every link of the deal is explained by it; of a flip's two links, the one that it reduces
  perform private.store_outcomes(array(
    select row(m.last_event_id, l.copier_id, l.user_id, l.id, v_new, null, null)::private.outcome
    from jsonb_array_elements(p_parts) e
    join public.position_links l on l.id = (e ->> 'link_id')::bigint
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind
    order by (e ->> 'lots')::numeric < 0 desc, l.id));
  return v_new;
end $$;

-- A stop loss that cannot be set at the broker protects only while its master's account is watched, so its user gets an
-- alert.
create function private.alert_virtual_levels(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(p_account, 'levels', 'netting_sltp_virtual', 'warning',
    format('%s: the position belongs to several copies (or in part to '
    'you), so their stop loss and take profit cannot stand on it. Each copy is closed when its master closes, by its '
    'stop too. '
    'Use a hedging account if every copy needs its own stop at the broker.', p_symbol),
      jsonb_build_object('symbol', p_symbol));
end $$;

-- Asks for the levels that the position must have. Returns the new execution.
create function private.queue_levels(p_account uuid, p_symbol text, p_net numeric, p_ticket text, p_sl numeric,
  p_tp numeric, p_now timestamptz)
returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_draft private.execution_draft;
  v_side text := case when p_net > 0 then 'buy' else 'sell' end;
  v_levels private.levels := private.levels_to_ask(p_account, p_symbol, v_side, null, p_sl, p_tp,
    (select n.modify_failures from private.net_ledgers n where n.account_id = p_account and n.symbol = p_symbol),
      p_now);
begin
  update private.net_ledgers n set modify_failures = case
    when (n.asked_sl, n.asked_tp) is distinct from (p_sl, p_tp) then 0 else n.modify_failures end,
    asked_sl = p_sl, asked_tp = p_tp, replan_at = null
  where n.account_id = p_account and n.symbol = p_symbol;
  select l.id, l.copier_id, l.user_id, l.master_account_id, m.last_event_id,
    private.seen_at(m.last_event_id, l.copier_id, 'modify', m.detected_at, m.changed_at, p_now)
  into v_draft.link_id, v_draft.copier_id, v_draft.user_id, v_draft.master_account_id, v_draft.event_id,
    v_draft.detected_at
  from public.position_links l
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live'
  order by l.id desc limit 1;
  if not found then return null; end if;
  v_draft.lane := p_account || ':' || p_symbol;
  v_draft.account_id := p_account;
  v_draft.action := 'modify';
  v_draft.symbol := p_symbol;
  v_draft.side := v_side;
  v_draft.lots := abs(p_net);
  v_draft.ticket := p_ticket;
  v_draft.sl := v_levels.sent_sl;
  v_draft.tp := v_levels.sent_tp;
  v_draft.warnings := v_levels.warnings;
  return (private.queue_executions(array[v_draft], false, p_now))[1];
end $$;

-- Plans one netting symbol: nothing while a deal is handed out; else one deal, or the levels. Returns the new execution
-- or null. It is one decision, therefore a little over forty lines.
create function private.plan_net(p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_waiting public.trade_execution_queue;
  v_ledger private.net_ledgers;
  v_target private.net_target;
  v_ticket text;
  v_min numeric;
  v_max numeric;
  v_side text;
  v_lots numeric;
  v_parts jsonb;
begin
  select q.* into v_waiting from public.trade_execution_queue q
  where q.account_id = p_account and q.symbol = p_symbol and q.in_flight order by q.status = 'retrying' limit 1;
  if v_waiting.status <> 'retrying' then return null; end if;
  perform private.book_net(p_account, p_symbol, private.mirror_net(p_account, p_symbol), p_now);
  if v_waiting.parts is not null then perform private.give_back(v_waiting); end if;
  perform private.drop_wanted(p_account, p_symbol, p_now);
  perform private.shrink_rests(p_account, p_symbol);
  select * into v_ledger from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  v_target := private.net_target_of(p_account, p_symbol, v_ledger.net_lots, p_now);
  if v_ledger.surplus_lots <> private.surplus_to_deal(p_account, p_symbol) then  -- nothing else would return to it
    update private.net_ledgers set replan_at = p_now + interval '30 s'
    where account_id = p_account and symbol = p_symbol;
  end if;
  select p.ticket into v_ticket from public.positions p
  where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position'
  order by p.session desc, p.seq desc limit 1;  -- the last reported: an older one may not be known to be gone
  -- the levels are gone with the position
  if v_ticket is null and (v_ledger.asked_sl, v_ledger.asked_tp) is distinct from (null, null) then
    update private.net_ledgers set asked_sl = null, asked_tp = null, modify_failures = 0
    where account_id = p_account and symbol = p_symbol
    returning * into v_ledger;
  end if;
  select s.lots_min, div(s.lots_max, s.lots_step) * s.lots_step into v_min, v_max
  from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  v_side := case when v_target.sum > 0 then 'buy' else 'sell' end;
  v_lots := least(abs(v_target.sum), v_max);
  v_parts := private.cut_parts(v_target.parts, v_side, v_lots);

  -- brokers accept a close of everything, however small
  if v_target.sum <> 0 and (v_lots >= v_min or v_ticket is not null and not v_target.opens
    and v_target.sum = -v_ledger.net_lots) then
    if v_waiting.parts = v_parts then  -- nothing has changed: it keeps waiting for its next attempt
      perform private.take_from_wanted(v_target.parts, v_parts);
      return null;
    end if;
    if v_waiting.id is not null then return private.plan_behind(v_waiting.id, p_account, p_symbol, p_now); end if;
    if not v_target.opens and v_ledger.failures > 0 and v_ledger.replan_at > p_now then return null; end if;
    if v_target.virtual then perform private.alert_virtual_levels(p_account, p_symbol); end if;
    return private.queue_deal(p_account, p_symbol, v_side, v_lots, v_ledger.net_lots, v_ticket, v_parts, v_target,
      p_now);
  end if;
  if v_target.sum = 0 and v_target.parts <> '[]' then  -- the links settle among themselves
    perform private.supersede(v_waiting.id, p_now);
    perform private.take_from_wanted(v_target.parts, v_target.parts);
    perform private.book_deal(p_account, p_symbol, 1, 0, null, v_target.parts);
    perform private.decide_for_symbol(p_account, p_symbol, p_now);
    return private.plan_net(p_account, p_symbol, p_now);
  end if;
  -- what waits is planned again when it is no longer frozen; while all trading is off nothing is requeued, but what a
  -- deal was to open is dropped
  if v_target.frozen then
    if v_waiting.parts is not null or private.trading_state() <> 'off' then
      perform private.supersede(v_waiting.id, p_now);
    end if;
    return null;
  end if;
  if v_waiting.action = 'modify'
    and (v_ledger.asked_sl, v_ledger.asked_tp) is not distinct from (v_target.sl, v_target.tp)
    and v_ticket is not null then
    return null;
  end if;
  if v_waiting.id is not null then return private.plan_behind(v_waiting.id, p_account, p_symbol, p_now); end if;
  if v_ticket is not null and v_target.shares > 0
    and ((v_target.sl, v_target.tp) is distinct from (v_ledger.asked_sl, v_ledger.asked_tp)
    or v_ledger.modify_failures between 1 and 2 and v_ledger.replan_at <= p_now) then
    if private.hold_net_levels(p_account, p_symbol, p_now) then return null; end if;
    if v_target.virtual then perform private.alert_virtual_levels(p_account, p_symbol); end if;
    return private.queue_levels(p_account, p_symbol, v_ledger.net_lots, v_ticket, v_target.sl, v_target.tp, p_now);
  end if;
  return null;
end $$;

-- Ends an execution that waits for another attempt because something else is wanted now. Its levels were never set, so
-- they count as not asked for and are asked for again.
create function private.supersede(p_id bigint, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'cancelled', reason = 'superseded', finalized_at = p_now,
    updated_at = p_now
  where x.id = p_id and x.status = 'retrying' returning * into q;
  if q.action = 'modify' then
    update private.net_ledgers n set asked_sl = p.sl, asked_tp = p.tp
    from public.positions p
    where n.account_id = q.account_id and n.symbol = q.symbol and p.account_id = q.account_id and p.ticket = q.ticket
      and p.kind = 'position';
  end if;
end $$;

-- Plans a netting symbol without the execution that waits for another attempt; increases may have waited behind it.
create function private.plan_behind(p_id bigint, p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
begin
  perform private.supersede(p_id, p_now);
  perform private.decide_for_symbol(p_account, p_symbol, p_now);
  return private.plan_net(p_account, p_symbol, p_now);
end $$;

-- Decides the increases that waited behind a deal of this symbol.
create function private.decide_for_symbol(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_copiers uuid[];
begin
  select array_agg(l.master_account_id), array_agg(l.master_ticket), array_agg(distinct l.copier_id) into v_masters,
    v_tickets, v_copiers
  from public.position_links l where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live';
  perform private.decide(v_masters, v_tickets, v_copiers, p_now);
end $$;

-- Plans the netting symbols of the links, ended links included: what waited behind their deal may belong to other
-- links.
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
    where l.id = any (p_links) and l.symbol is not null
  loop
    perform private.mark_reductions_done(v_unit.follower_account_id, v_unit.symbol);
    v_one := private.plan_net(v_unit.follower_account_id, v_unit.symbol, p_now);
    if v_one is not null then v_new := v_new || v_one; end if;
    perform private.end_links(array(
      select l.id from public.position_links l
      where l.follower_account_id = v_unit.follower_account_id and l.symbol = v_unit.symbol and l.state = 'live'),
        p_now);
  end loop;
  return v_new;
end $$;
