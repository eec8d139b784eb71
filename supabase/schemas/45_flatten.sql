-- Flattening: a state of an account, not a list. It outranks every mode, latches opens, closes whatever appears until two good snapshots
-- in a row show nothing left, and then switches the account off (or to what its flatten_then says).

-- Begins it, or goes on with it more strictly: what a flattening under way was to close, and to switch off, stays so. p_then null: back to what
-- it was. The caller holds the plan locks of the account and its neighbours and has updated no row of trading_accounts before it took them.
create function private.start_flattening(p_account uuid, p_manual boolean, p_then text, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  update public.trading_accounts a set copy_state = 'flattening', copy_state_reason = p_reason, flat_snapshots = 0, flattened_at = p_now,
    flatten_manual = p_manual or p_reason is not null and a.copy_state = 'flattening' and a.flatten_manual,
    flatten_then = case when a.copy_state <> 'flattening' then coalesce(p_then, a.copy_state)
      when p_then = 'off' or a.flatten_then = 'off' then 'off' else coalesce(p_then, a.flatten_then) end
  where a.id = p_account;
  -- opens that are on their way and still unsent need not be sent
  update public.trade_execution_queue q set cancel_requested_at = p_now, updated_at = p_now
  where q.account_id = p_account and q.in_flight and private.opens(q) and q.cancel_requested_at is null;
  select array_agg(l.id) into v_links from public.position_links l where l.follower_account_id = p_account and l.state = 'live';
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(coalesce(private.plan_again(v_links, p_now), '{}') || private.plan_flatten(p_account, p_now), null, clock_timestamp());
end $$;

-- What is open on the account and no link holds: the user's own trades. Closed as well when flatten_manual says so.
create function private.plan_flatten(p_account uuid, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
begin
  if private.trading_state() = 'off' then return '{}'; end if;
  with loose as (
    select p.*, nextval('public.trade_execution_queue_id_seq') as step_id
    from public.positions p
    join public.trading_accounts a on a.id = p.account_id and a.copy_state = 'flattening'
      and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released)  -- of a net position, ours is what links hold
    where p.account_id = p_account and p.closed_at is null
      and not exists (
        select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
        where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol))
      and not exists (
        select 1 from public.trade_execution_queue q
        where q.account_id = p.account_id and q.symbol = p.symbol and q.in_flight and (q.ticket = p.ticket or a.mode = 'netting'))
  ), placed as (
    insert into public.trade_execution_queue (step_id, lane, user_id, account_id, action, priority, symbol, side, lots, target_lots, ticket,
      send_before, queued_at, updated_at)
    select f.step_id, 'flatten:' || f.ticket, f.user_id, f.account_id, case f.kind when 'order' then 'cancel' else 'close' end, 10, f.symbol,
      f.side, f.lots, 0, f.ticket, p_now, p_now, p_now
    from loose f
    returning id
  )
  select array_agg(id) into v_new from placed;
  return coalesce(v_new, '{}');
end $$;

-- Counts a good snapshot that shows nothing left to close; the second in a row ends the flattening.
create function private.count_flat_snapshot(p_account uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_left boolean;
begin
  select exists (select 1 from public.trade_execution_queue q where q.account_id = p_account and q.in_flight)
    or exists (
      select 1 from public.positions p join public.trading_accounts a on a.id = p.account_id
      where p.account_id = p_account and p.closed_at is null and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released
        or exists (select 1 from private.link_legs g where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol))))
    or exists (select 1 from private.net_ledgers n where n.account_id = p_account and n.surplus_lots <> 0)
  into v_left;
  update public.trading_accounts a set flat_snapshots = case when v_left then 0 else a.flat_snapshots + 1 end,
    copy_state = case when not v_left and a.flat_snapshots >= 1 then a.flatten_then else a.copy_state end,
    copy_state_reason = case when not v_left and a.flat_snapshots >= 1 and a.flatten_then = 'on' then null else a.copy_state_reason end
  where a.id = p_account and a.copy_state = 'flattening';
end $$;
