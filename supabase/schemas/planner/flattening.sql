-- Flattening: a state of an account, not a list of positions. It outranks every mode, refuses opens, and closes
-- whatever appears until two complete snapshots in a row show nothing left. Then it sets the account to off, or to
-- flatten_then.

-- Begins flattening, or makes one in progress stricter: what it was to close, and to switch off, stays so. p_then null:
-- back to the previous state. The caller holds the plan locks of the account and its neighbours and updated no row of
-- trading_accounts before it took them.
create function private.start_flattening(p_account uuid, p_manual boolean, p_then text, p_reason text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  update public.trading_accounts a set copy_state = 'flattening', flat_snapshots = 0,
    -- what stopped the account before its flat time still says so
    copy_state_reason = case when p_reason = 'flat_by' and a.copy_state <> 'on' then a.copy_state_reason else p_reason
      end,
    flattened_at = p_now,
    flatten_manual = p_manual or p_reason is not null and a.copy_state = 'flattening' and a.flatten_manual,
    flatten_then = case when a.copy_state <> 'flattening' then coalesce(p_then, a.copy_state)
      when p_then = 'off' or a.flatten_then = 'off' then 'off' else coalesce(p_then, a.flatten_then) end,
    resumes_at = case when p_then is null then a.resumes_at end
  where a.id = p_account;
  -- opens that are queued and unsent need not be sent
  update public.trade_execution_queue q set cancel_requested_at = p_now, updated_at = p_now
  where q.account_id = p_account and q.in_flight and private.opens(q) and q.cancel_requested_at is null;
  select array_agg(l.id) into v_links from public.position_links l
  where l.follower_account_id = p_account and l.state = 'live';
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(coalesce(private.plan_again(v_links, p_now), '{}') || private.plan_flatten(p_account, p_now),
    null, clock_timestamp());
end $$;

-- Closes what is open on the account and no link holds: on hedging accounts positions with our tag that were not
-- released; with flatten_manual also the user's own trades.
create function private.plan_flatten(p_account uuid, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_loose public.positions;
  v_draft private.execution_draft;
  v_drafts private.execution_draft[];
begin
  -- a copy that waits for its symbol is refused now, so that it is not opened when the account is on again
  perform private.decide_waiting_symbols(array[p_account], p_now);
  if private.trading_state() = 'off' then return '{}'; end if;
  for v_loose in
    select p.*
    from public.positions p
    join public.trading_accounts a on a.id = p.account_id and a.copy_state = 'flattening'
      -- of a net position, only what links hold is ours
      and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released)
    where p.account_id = p_account and p.closed_at is null
      and not exists (
        select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
        where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol)
          and (g.ticket <> p.ticket or g.ticket_kind = p.kind))
      and not exists (
        select 1 from public.trade_execution_queue q
        where q.account_id = p.account_id and q.symbol = p.symbol and q.in_flight
          and (q.ticket = p.ticket and private.kind_of(q.action) = p.kind or a.mode = 'netting'))
  loop
    v_draft.lane := 'flatten:' || v_loose.ticket || case v_loose.kind when 'order' then ':order' else '' end;
    v_draft.user_id := v_loose.user_id;
    v_draft.account_id := v_loose.account_id;
    v_draft.action := case v_loose.kind when 'order' then 'cancel' else 'close' end;
    v_draft.symbol := v_loose.symbol;
    v_draft.side := v_loose.side;
    v_draft.lots := v_loose.lots;
    v_draft.target_lots := 0;
    v_draft.ticket := v_loose.ticket;
    v_drafts := v_drafts || v_draft;
  end loop;
  return coalesce(private.queue_executions(v_drafts, false, p_now), '{}');
end $$;

-- Counts a complete snapshot that shows nothing left to close; the second in a row ends the flattening.
create function private.count_flat_snapshot(p_account uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_left boolean;
begin
  select exists (select 1 from public.trade_execution_queue q where q.account_id = p_account and q.in_flight)
    or exists (
      select 1 from public.positions p join public.trading_accounts a on a.id = p.account_id
      where p.account_id = p_account and p.closed_at is null
        and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released
        or exists (select 1 from private.link_legs g
          where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol)
            and (g.ticket <> p.ticket or g.ticket_kind = p.kind))))
    or exists (select 1 from private.net_ledgers n where n.account_id = p_account and n.surplus_lots <> 0)
  into v_left;
  update public.trading_accounts a set flat_snapshots = case when v_left then 0 else a.flat_snapshots + 1 end,
    copy_state = case when not v_left and a.flat_snapshots >= 1 then a.flatten_then else a.copy_state end,
    copy_state_reason = case when not v_left and a.flat_snapshots >= 1 and a.flatten_then = 'on'
      then null else a.copy_state_reason end
  where a.id = p_account and a.copy_state = 'flattening';
end $$;
