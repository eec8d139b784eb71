-- Pending orders: what the copier does with the copy of an order besides following the master's order. The planner
-- calls it for links that were made from an order, when something has changed and at order_due_at.

-- The text that a broker shows with a copy: {master}, {ticket} and {copier} are replaced. Platforms cut it as they
-- must; nothing depends on it, because copies are recognised by their tags.
create function private.copy_comment(p_copier public.copiers, p_ticket text) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_copier.comment not like '%{%' then return p_copier.comment; end if;
  return left(replace(replace(replace(p_copier.comment, '{ticket}', p_ticket), '{copier}', p_copier.name), '{master}',
    (select coalesce(nullif(a.name, ''), a.login) from public.trading_accounts a
      where a.id = p_copier.master_account_id)), 100);
end $$;

-- Why the copy of an order that has filled at the master may not be opened at the market now; null: it may.
create function private.no_conversion(p_copier public.copiers, p_master public.positions,
  p_symbol public.account_symbols, p_side text, p_now timestamptz)
returns text
language plpgsql stable set search_path = '' as $$
declare
  v_adverse numeric;
  v_shut text;
begin
  select coalesce(private.opening_blocked_reason(private.trading_state(), a.copy_state, a.copy_state_reason,
    p_copier.mode, p_copier.removal), private.time_refusal(a.id, p_symbol.name, p_master.symbol, p_now)) into v_shut
  from public.trading_accounts a where a.id = p_copier.follower_account_id;
  if v_shut is not null then return v_shut; end if;
  -- the grace period was our own wait, so it does not count towards the age
  if p_now > private.convertible_until(p_copier, p_master) then return 'too_old'; end if;
  if p_copier.max_slippage_points is not null then
    if not private.quote_is_fresh(p_symbol, p_now) then return 'no_quotes'; end if;
    v_adverse := case p_side when 'buy' then p_symbol.ask - p_master.price else p_master.price - p_symbol.bid end;
    if v_adverse > p_copier.max_slippage_points * 10::numeric ^ -p_symbol.digits then return 'slippage'; end if;
  end if;
  return null;
end $$;

create function private.convertible_until(p_copier public.copiers, p_master public.positions) returns timestamptz
language plpgsql immutable set search_path = '' as $$
begin
  return p_master.unseen_at + make_interval(secs => (p_copier.max_age_ms + p_copier.pending_grace_ms) / 1000.0);
end $$;

-- Queues the cancelling of every pending order that a link holds.
create function private.queue_cancel(p_link public.position_links, p_event bigint, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_order private.link_legs;
  v_draft private.execution_draft;
  v_drafts private.execution_draft[];
begin
  v_draft.step_id := nextval('public.trade_execution_queue_id_seq');
  v_draft.link_id := p_link.id;
  v_draft.copier_id := p_link.copier_id;
  v_draft.user_id := p_link.user_id;
  v_draft.account_id := p_link.follower_account_id;
  v_draft.master_account_id := p_link.master_account_id;
  v_draft.event_id := p_event;
  v_draft.detected_at := (
    select private.seen_at(p_event, p_link.copier_id, 'cancel', m.detected_at, m.changed_at, p_now)
    from public.positions m
    where m.account_id = p_link.master_account_id and m.ticket = p_link.master_ticket
      and m.kind = p_link.master_kind and m.last_event_id = p_event);
  v_draft.action := 'cancel';
  v_draft.symbol := p_link.symbol;
  v_draft.side := p_link.side;
  v_draft.target_lots := 0;
  for v_order in select * from private.link_legs g where g.link_id = p_link.id and g.kind = 'order' loop
    v_draft.lots := v_order.lots;
    v_draft.ticket := v_order.ticket;
    v_drafts := v_drafts || v_draft;
  end loop;
  return private.queue_executions(v_drafts, false, p_now);
end $$;

-- Queues the market orders that replace a cancelled order: several if it was more than one order may be.
create function private.queue_conversion(
  p_link public.position_links, p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols,
    p_now timestamptz
) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.first_levels(p_copier, p_master, p_symbol, p_link.side, null, p_now);
  v_draft private.execution_draft;
  v_drafts private.execution_draft[];
  v_orders numeric[] := private.split_orders(private.converted_lots(p_link, p_link.wanted_lots, p_master, p_symbol),
    p_symbol);
begin
  -- one order is a step of its own
  v_draft.step_id := case when cardinality(v_orders) > 1 then nextval('public.trade_execution_queue_id_seq') end;
  v_draft.link_id := p_link.id;
  v_draft.copier_id := p_link.copier_id;
  v_draft.user_id := p_link.user_id;
  v_draft.account_id := p_link.follower_account_id;
  v_draft.master_account_id := p_link.master_account_id;
  v_draft.event_id := p_master.last_event_id;
  v_draft.action := 'open';
  v_draft.symbol := p_link.symbol;
  v_draft.side := p_link.side;
  v_draft.sl := v_levels.sent_sl;
  v_draft.tp := v_levels.sent_tp;
  v_draft.max_slippage_points := p_copier.max_slippage_points;
  v_draft.master_price := p_master.price;
  v_draft.master_lots := least(p_master.lots, p_link.seen_master_lots);  -- more is an increase, which comes after it
  v_draft.comment := private.copy_comment(p_copier, p_master.ticket);
  v_draft.warnings := v_levels.warnings;
  v_draft.retry_until := p_now + make_interval(secs => p_copier.retry_window_s);
  v_draft.detected_at := private.seen_at(p_master.last_event_id, p_link.copier_id, 'open', p_master.detected_at,
    p_master.changed_at, p_now);
  update public.position_links l set wanted_lots = null, wanted_until = null, asked_price = null,
    asked_sl = v_levels.sl, asked_tp = v_levels.tp, asked_unknown = false, seen_master_lots = v_draft.master_lots
  where l.id = p_link.id;
  foreach v_draft.lots in array v_orders loop
    v_drafts := v_drafts || v_draft;
  end loop;
  return private.queue_executions(v_drafts, false, p_now);
end $$;

create function private.end_order(p_link bigint, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'ended', reason = p_reason, ended_at = p_now, replan_at = null,
    order_due_at = null,
    wanted_lots = null, wanted_until = null
  where l.id = p_link and l.ended_at is null;
end $$;

-- The master's order has filled into a position that its netting account already held. If that position is copied and
-- grew by the fill, what the order's copy has filled becomes part of that copy, and the increase is done: returns true.
-- Otherwise the order's copy is closed or cancelled like that of any order that is gone, and the position's own copy
-- follows its position.
create function private.join_filled_order(p_link public.position_links, p_filled numeric,
  p_now timestamptz) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_into public.position_links;
  v_master numeric;
  v_base numeric;
  v_asked boolean;  -- whether its levels are as wanted: those of the order's copy may not be
begin
  select l.* into v_into
  from public.positions o
  join public.position_links l on l.master_account_id = o.account_id and l.master_ticket = o.replaced_by
    and l.master_kind = o.replaced_by_kind and l.ended_at is null
  where o.account_id = p_link.master_account_id and o.ticket = p_link.master_ticket and o.kind = p_link.master_kind
    and l.copier_id = p_link.copier_id
    and l.side = p_link.side
    and l.symbol = p_link.symbol and l.base_lots is not null and l.wanted_lots is null and l.asked_price is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
  select m.lots into v_master from public.positions m
  where m.account_id = v_into.master_account_id and m.ticket = v_into.master_ticket and m.kind = v_into.master_kind;
  if v_into.id is null or v_master <= v_into.seen_master_lots is not false then return false; end if;
  select not s.asked_unknown and (s.asked_sl, s.asked_tp) is not distinct from (s.wanted_sl, s.wanted_tp),
    private.target_lots(s.base_lots, s.seen_master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots)
  into v_asked, v_base from private.link_states s where s.id = v_into.id;
  -- like every fill it rebases the pair: the order may have been copied at another ratio
  update public.position_links l set base_lots = v_base + p_filled,
    base_master_lots = least(v_master, l.seen_master_lots + p_link.seen_master_lots),
    seen_master_lots = least(v_master, l.seen_master_lots + p_link.seen_master_lots),
    asked_sl = case when v_asked then p_link.asked_sl else l.asked_sl end,
    asked_tp = case when v_asked then p_link.asked_tp else l.asked_tp end,
    asked_unknown = case when v_asked then p_link.asked_unknown else l.asked_unknown end
  where l.id = v_into.id;
  update private.link_legs g set link_id = v_into.id where g.link_id = p_link.id;
  perform private.end_order(p_link.id, 'coalesced', p_now);
  return true;
end $$;

-- Cancels the copy of an order that its master has changed so that its stop could cross a limit of the account; the
-- link then ends with that reason. One that has filled meanwhile, or was changed back, goes on. Returns new executions.
create function private.hold_order_to_limits(
  p_link public.position_links, p_event bigint, p_stop boolean, p_filled numeric, p_orders numeric, p_price numeric,
    p_sl numeric, p_now timestamptz
) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_why text;
begin
  if p_stop or p_link.levels_due_at > p_now then return '{}'; end if;
  if p_filled = 0 and p_orders = 0 then
    if p_link.reason is not null then perform private.end_order(p_link.id, p_link.reason, p_now); end if;
    return '{}';
  end if;
  if p_filled = 0 then
    v_why := private.amendment_over_limit(p_link, p_orders, p_price, p_sl, p_now);
  end if;
  if v_why is distinct from p_link.reason then
    update public.position_links l set reason = v_why where l.id = p_link.id;
  end if;
  if v_why is null then return '{}'; end if;
  return private.withdraw_order(p_link, p_event, p_orders, v_why, p_now);
end $$;

-- Cancels a copied order for this reason, and tells why.
create function private.withdraw_order(p_link public.position_links, p_event bigint, p_orders numeric, p_why text,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_words text := format('The master has changed its order in %s. With its new price and stop the copy of %s '
    'lots %s, so the copy is cancelled and not placed again.', p_link.symbol, private.plain(p_orders),
    case p_why when 'would_breach' then 'could cross a limit of the account'
      else format('cannot be judged (%s)', private.reason_words(p_why)) end);
begin
  if p_link.reason is distinct from p_why then
    perform private.raise_alert(p_link.follower_account_id, 'pending', 'order_withdrawn', 'warning', v_words,
      jsonb_build_object('link_id', p_link.id::text, 'why', p_why));
  end if;
  if p_link.close_failures = 0 or p_link.replan_at is null or p_link.replan_at <= p_now then
    v_new := private.queue_cancel(p_link, p_event, p_now);
  end if;
  perform private.store_outcomes(array[row(p_event, p_link.copier_id, p_link.user_id, p_link.id, null, p_why,
    v_words)::private.outcome]);
  update public.copy_outcomes o set execution_id = null, reason = p_why, detail = v_words
  where o.event_id = p_event and o.copier_id = p_link.copier_id;
  return coalesce(v_new, '{}');
end $$;

-- Handles the orders of these links that have nothing in flight. Returns new executions.
create function private.handle_orders(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_state record;
  v_link public.position_links;
  v_held bigint[];
  v_new bigint[] := '{}';
begin
  for v_state in
    select s.id, s.master_kind, s.master_lots, s.doomed, s.frozen, s.copy_state, s.position_lots, s.order_lots,
      s.master_event_id, s.wanted_price, s.wanted_sl,
      exists (select 1 from public.positions o
        where o.account_id = s.master_account_id and o.ticket = s.master_ticket and o.kind = 'order'
          and s.master_kind = 'order'
          and o.replaced_by is not null) as replaced
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.asked_price is not null
      and s.executions = 0
  loop
    select * into v_link from public.position_links l where l.id = v_state.id;
    if v_state.replaced then  -- it has filled: the policies for unfilled orders do not apply
      if v_state.position_lots > 0 and v_state.order_lots = 0 and not v_state.frozen
        and v_state.copy_state <> 'flattening' then
        perform private.join_filled_order(v_link, v_state.position_lots, p_now);
      end if;
      update public.position_links l set order_due_at = null
      where l.id = v_state.id and l.ended_at is null and l.order_due_at <= p_now;
    elsif v_state.master_kind = 'order' then
      v_held := private.hold_order_to_limits(v_link, v_state.master_event_id, v_state.doomed or v_state.frozen,
        v_state.position_lots, v_state.order_lots, v_state.wanted_price, v_state.wanted_sl, p_now);
      v_new := v_new || v_held;
      continue when v_held <> '{}';
      v_new := v_new || private.handle_waiting_order(v_link, v_state.master_event_id, v_state.master_lots = 0,
        v_state.doomed or v_state.frozen,
        v_state.copy_state = 'flattening', v_state.position_lots, v_state.order_lots, p_now);
    else
      v_new := v_new || private.handle_filled_order(v_link, v_state.doomed
        or v_state.frozen, v_state.position_lots, v_state.order_lots, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- While the master's order waits (p_gone: was cancelled): its expiry, even if nobody reports it, and a copy that has
-- filled first.
create function private.handle_waiting_order(
  p_link public.position_links, p_event bigint, p_gone boolean, p_stop boolean, p_flattening boolean, p_filled numeric,
    p_orders numeric,
  p_now timestamptz
) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_policy text;
  v_new bigint[];
begin
  if p_gone and p_filled > 0 and p_orders = 0 and not p_flattening then
    select c.early_fill_policy into v_policy from public.copiers c where c.id = p_link.copier_id;
    if v_policy = 'keep' then
      perform private.end_order(p_link.id, 'master_never_filled', p_now);
    elsif not 'master_never_filled' = any (p_link.warnings) then
      update public.position_links l set warnings = l.warnings || 'master_never_filled'::text where l.id = p_link.id;
    end if;
  elsif not p_stop and p_filled = 0 and p_link.asked_expires_at <= p_now + interval '2 s' then
    if p_orders = 0 then  -- its broker's clock may be a little ahead
      perform private.end_order(p_link.id, 'order_expired', p_now);
    elsif p_link.asked_expires_at + interval '1 s' <= p_now
      and (p_link.replan_at is null or p_link.replan_at <= p_now) then
      v_new := private.queue_cancel(p_link, p_event, p_now);
    end if;
  end if;
  if p_link.order_due_at <= p_now then
    update public.position_links l set order_due_at = null where l.id = p_link.id and l.ended_at is null;
  end if;
  return coalesce(v_new, '{}');
end $$;

-- The master's order has filled. The copy gets its grace period; then it is opened at the market instead. The order is
-- cancelled first, and the market order is queued only when the order is known to be gone unfilled, so that there is
-- never more than one position.
create function private.handle_filled_order(p_link public.position_links, p_stop boolean, p_filled numeric,
  p_orders numeric, p_now timestamptz)
returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_master public.positions;
  v_symbol public.account_symbols;
  v_why text;
begin
  if p_filled > 0 or p_stop then  -- it has filled by itself, or nothing of it is wanted
    update public.position_links l set wanted_lots = null, wanted_until = null, order_due_at = null,
      asked_expires_at = null, asked_price = case when p_filled = 0 or p_orders > 0 then l.asked_price end
    where l.id = p_link.id;
    return '{}';
  end if;
  select * into v_copier from public.copiers c where c.id = p_link.copier_id;
  select * into v_master from public.positions m
  where m.account_id = p_link.master_account_id and m.ticket = p_link.master_ticket and m.kind = p_link.master_kind;
  select * into v_symbol from public.account_symbols s
  where s.account_id = p_link.follower_account_id and s.name = p_link.symbol;
  if p_orders = 0 and p_link.wanted_lots is null then return '{}'; end if;  -- its user cancelled it
  if p_orders > 0 and (p_link.order_due_at is null or p_link.asked_expires_at is not null)
    and p_link.wanted_lots is null
    and not 'order_not_filled' = any (p_link.warnings) then
    update public.position_links l set asked_expires_at = null,
      order_due_at = p_now + make_interval(secs => v_copier.pending_grace_ms / 1000.0)
    where l.id = p_link.id returning * into p_link;
  end if;
  if p_link.wanted_lots is null and coalesce(p_link.order_due_at, 'infinity') > p_now or p_link.replan_at > p_now then
    return '{}';
  end if;
  v_why := coalesce(private.no_conversion(v_copier, v_master, v_symbol, p_link.side, p_now),
    private.conversion_over_limit(p_link, v_copier, v_master, v_symbol, p_orders, p_now));
  if p_orders = 0 then
    if v_why is null then return private.queue_conversion(p_link, v_copier, v_master, v_symbol, p_now); end if;
    perform private.end_order(p_link.id, v_why, p_now);
    update public.copy_outcomes o set execution_id = null, reason = v_why
    where o.event_id = v_master.last_event_id and o.copier_id = v_copier.id;
    return '{}';
  end if;
  if v_why is not null then
    update public.position_links l set warnings = l.warnings || 'order_not_filled'::text, order_due_at = null,
      wanted_lots = null, wanted_until = null
    where l.id = p_link.id and not 'order_not_filled' = any (l.warnings);
    perform private.raise_alert(p_link.follower_account_id, 'pending', 'order_not_filled', 'warning', format(
      'The master''s order in %s has filled at %s, its copy of %s lots has not, and the market is not taken instead: '
      '%s. The copy''s order stays.',
      p_link.symbol, v_master.price, private.plain(p_orders), private.reason_words(v_why)),
        jsonb_build_object('link_id', p_link.id::text, 'why', v_why));
    return '{}';
  end if;
  update public.position_links l set wanted_lots = p_orders,
    wanted_until = private.convertible_until(v_copier, v_master), order_due_at = null
  where l.id = p_link.id;
  return private.queue_cancel(p_link, v_master.last_event_id, p_now);
end $$;
