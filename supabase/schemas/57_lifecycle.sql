-- The end of a copier, and the end of all trading: what is on its way is called back, what is held is kept, followed or closed.

-- Whether a copier alone answers for what an execution does (p_all) or opens; a netting deal may serve several.
create function private.is_of_copier(q public.trade_execution_queue, p_copier uuid, p_all boolean) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  if q.parts is null then
    return q.copier_id = p_copier;
  end if;
  return not exists (
    select 1 from jsonb_array_elements(q.parts) e left join public.position_links l on l.id = (e ->> 'link_id')::bigint
    where l.copier_id is distinct from p_copier and (p_all or (e ->> 'lots')::numeric > 0));
end $$;

-- Calls back what is on its way and not sent yet: opens, with p_all everything. What no agent has ends here, with p_reason; what one has is
-- asked to be dropped, at once. p_copier null: of all copiers. The caller holds the plan locks of the accounts.
create function private.withdraw(p_accounts uuid[], p_copier uuid, p_all boolean, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_message record;
begin
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = p_reason, finalized_at = p_now, updated_at = p_now
    where x.account_id = any (p_accounts) and x.in_flight and x.parts is null
      and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null)
      and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
    returning x.*
  loop
    perform private.book_failure(q, p_now);
  end loop;
  -- a netting deal that nobody has is taken apart by plan_net, as one that waits for another attempt
  update public.trade_execution_queue x set status = 'retrying', next_attempt_at = p_now, updated_at = p_now
  where x.account_id = any (p_accounts) and x.in_flight and x.parts is not null and x.status = 'queued' and x.offered_at is null;
  for v_message in
    with asked as (
      update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
      where x.account_id = any (p_accounts) and x.in_flight and x.status <> 'retrying' and x.cancel_requested_at is null
        and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
      returning x.id, x.vps_id
    )
    select a.vps_id, jsonb_agg(a.id::text) as ids from asked a where a.vps_id is not null group by a.vps_id, a.id / 5000
  loop
    perform private.broadcast('vps:' || v_message.vps_id, 'cancel', jsonb_build_object('ids', v_message.ids));
  end loop;
end $$;

-- Calls back the unsent opens of a copier that may open nothing now. The caller has locked both its accounts.
create function private.withdraw_opens(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follower uuid;
  v_shut text;
begin
  select fa.id, private.shut(private.trading_state(), fa.copy_state, fa.copy_state_reason, c.mode, c.removal) into v_follower, v_shut
  from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id where c.id = p_copier;
  if v_shut is not null then
    perform private.withdraw(array[v_follower], p_copier, false, v_shut, p_now);
  end if;
end $$;

create function private.refuse_leaving(p_copier uuid) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_removal text;
begin
  select c.removal into v_removal from public.copiers c where c.id = p_copier;
  if v_removal is not null then
    raise exception using errcode = 'TC307', message = format('copier %s is being removed (%s): it cannot be changed any more', p_copier, v_removal),
      hint = 'Change how it is removed with remove_copier, or make a new copier for the two accounts.';
  end if;
end $$;

-- Hands a copier's live copies over to the user: their links end, their tickets are not ours any more.
create function private.release_copies(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id);
begin
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.ticket = g.ticket and p.closed_at is null;
  -- on a netting account a leg is a share of the symbol's position: all of it is the user's only when no other copier has one
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.symbol = g.ticket and p.closed_at is null and p.kind = 'position'
    and exists (select 1 from public.trading_accounts a where a.id = g.account_id and a.mode = 'netting')
    and not exists (
      select 1 from private.link_legs o where o.account_id = g.account_id and o.ticket = g.ticket and not o.link_id = any (v_links));
  delete from private.link_legs g where g.link_id = any (v_links);
  update public.position_links l set state = 'ended', reason = 'released', ended_at = p_now, wanted_lots = null, wanted_until = null, replan_at = null
  where l.id = any (v_links);
  perform private.withdraw(array[p_copier.follower_account_id], p_copier.id, true, 'released', p_now);
  -- a deal that the released copies had a part in is made anew without them
  perform private.offer(private.plan_nets(v_links, p_now), null, clock_timestamp());
end $$;

-- Whether a report is about a copy that was handed over to its user: then what it opened is the user's own as well, and the row says so.
-- Or about one that ended, and whose position its user has bound to another copy (resync): it stays there, and is not held twice.
create function private.left_to_user(q public.trade_execution_queue, r jsonb) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  if q.parts is not null or not exists (select 1 from public.position_links l where l.id = q.link_id and l.state = 'ended') then
    return false;
  end if;
  if not exists (select 1 from public.position_links l where l.id = q.link_id and l.reason = 'released') then
    return exists (
      select 1 from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
      join private.link_legs g on g.account_id = q.account_id and g.ticket = e ->> 'ticket' and g.link_id <> q.link_id
      join public.position_links l on l.id = g.link_id and l.ended_at is null);
  end if;
  update public.positions p set released = true
  from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
  where p.account_id = q.account_id and p.ticket = e ->> 'ticket' and p.closed_at is null;
  if found and private.opens(q) then
    update public.trade_execution_queue x set warnings = array_append(array_remove(x.warnings, 'filled_after_release'), 'filled_after_release')
    where x.id = q.id;
    update public.position_links l set warnings = array_append(array_remove(l.warnings, 'filled_after_release'), 'filled_after_release')
    where l.id = q.link_id;
  end if;
  return true;
end $$;

-- What a deal booked to links whose copies were handed over meanwhile belongs to no link: the user owns that part of the net position.
create function private.drop_released_shares(p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.link_legs g using public.position_links l
  where g.link_id = any (array(select (e ->> 'link_id')::bigint from jsonb_array_elements(p_parts) e))
    and l.id = g.link_id and l.state = 'ended' and l.reason = 'released';
end $$;

-- Sets removed_at when nothing is left to do. The caller holds the follower's plan lock: a master's event that this copier still has to
-- explain holds it too.
create function private.finish_removal(p_copier uuid, p_follower uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.copiers c set removed_at = p_now, updated_at = clock_timestamp()
  where c.id = p_copier and c.removal is not null and c.removed_at is null
    and not exists (
      select 1 from public.position_links l where l.follower_account_id = p_follower and l.state = 'live' and l.copier_id = p_copier)
    and not exists (
      select 1 from public.trade_execution_queue q where q.account_id = p_follower and q.in_flight and q.copier_id = p_copier);
end $$;

-- Upkeep: finishes the removals whose last copy has ended. What somebody else is planning waits for the next run.
create function private.finish_removals() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_copier record;
begin
  for v_copier in select c.id, c.follower_account_id from public.copiers c where c.removal is not null and c.removed_at is null loop
    perform 1 from private.plan_locks k where k.account_id = v_copier.follower_account_id for no key update skip locked;
    if found then
      perform private.finish_removal(v_copier.id, v_copier.follower_account_id, clock_timestamp());
    end if;
  end loop;
end $$;

-- {"copier_id", "mode": "preserve|close_gracefully|close_now"} -> {"copier_id", "mode", "state": "removing|removed", "copies", "waits_for"}
-- While it is being removed the mode may be changed; repeating a call changes nothing.
create function private.remove_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_mode text := p_request ->> 'mode';
  c public.copiers;
  v_now timestamptz;
begin
  if coalesce(v_mode, '') not in ('preserve', 'close_gracefully', 'close_now') then
    raise exception using errcode = 'TC303', message = 'remove_copier: mode must be preserve, close_gracefully or close_now',
      hint = 'preserve: its copies become your own trades. close_gracefully: they end with their master''s. close_now: they are closed now.';
  end if;
  select * into c from public.copiers x where x.id = v_id and (x.user_id = v_user or private.is_operator());
  if c.id is null then
    raise exception using errcode = 'TC106', message = format('remove_copier: copier %s does not exist or is not yours', v_id), hint = 'Check the id.';
  end if;
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  update public.copiers x set removal = v_mode, updated_at = clock_timestamp()
  where x.id = v_id and x.removed_at is null and x.removal is distinct from v_mode;
  if found then
    select * into c from public.copiers x where x.id = v_id;
    if v_mode = 'preserve' then
      perform private.release_copies(c, v_now);
    end if;
    perform private.replan_copier(v_id, v_now);
  end if;
  perform private.finish_removal(v_id, c.follower_account_id, v_now);
  return private.removal_of(v_id);
end $$;

-- How far the removal of a copier is. waits_for: what keeps its copies from being closed.
create function private.removal_of(p_copier uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select jsonb_build_object('copier_id', c.id, 'mode', c.removal, 'state', case when c.removed_at is null then 'removing' else 'removed' end,
      'copies', x.copies, 'waits_for', case when x.copies = 0 then null when private.trading_state() = 'off' then 'trading_stopped'
        when fa.copy_state = 'off' then 'account_off' end)
    from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id
    cross join lateral (
      select count(*) as copies from public.position_links l
      where l.follower_account_id = c.follower_account_id and l.state = 'live' and l.copier_id = c.id) x
    where c.id = p_copier);
end $$;

-- Everything that follows from the switch, for all accounts: unsent opens (off: everything unsent) are called back; on: what was missed of
-- closes is done. Every plan made before has ended, every later one reads the new state. The caller has set it.
create function private.sweep_trading(p_state text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array(select k.account_id from private.plan_locks k);
  v_now timestamptz := private.lock_accounts(v_accounts);
begin
  if p_state = 'on' then
    -- what froze on its way goes on
    update public.trade_execution_queue q set cancel_requested_at = null, updated_at = v_now
    where q.account_id = any (v_accounts) and q.in_flight and q.cancel_requested_at is not null and not private.opens(q);
  else
    perform private.withdraw(v_accounts, null, p_state = 'off', case p_state when 'off' then 'trading_stopped' else 'trading_monitor' end, v_now);
  end if;
  perform private.offer_apart(private.plan_links_apart(array(select l.id from public.position_links l where l.state = 'live'), v_now), null, clock_timestamp());
  update public.trading_switch t set settled = true where t.one and not t.settled;
end $$;

-- Upkeep: does what a turn of the switch could not do, because some plan would not let go. First of all parts, for it waits for locks.
create function private.settle_trading() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_state text;
begin
  select t.state into v_state from public.trading_switch t where t.one and not t.settled for no key update;
  if found then
    perform private.sweep_trading(v_state);
  end if;
end $$;

-- Operators: {"state": "on|monitor|off", "reason"} -> {"state", "reason", "changed_at", "settled"}. settled false: some plan would not let go in
-- time; the switch holds all the same for what is planned from now on, and the upkeep does the rest.
create function private.set_trading(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' set lock_timeout = '3s' set jit = off as $$
declare
  v_state text := p_request ->> 'state';
  v_reason text := coalesce(private.text_of(p_request, 'reason', 200), '');
  v_switch public.trading_switch;
begin
  perform private.require_operator();
  if coalesce(v_state, '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'set_trading: state must be on, monitor or off',
      hint = 'monitor: nothing is opened anywhere, closes go on. off: frozen, closes included.';
  end if;
  if v_state <> 'on' and length(v_reason) < 3 then
    raise exception using errcode = 'TC303', message = format('set_trading: %s needs a reason of 3 to 200 characters', v_state),
      hint = 'All users read it.';
  end if;
  update public.trading_switch t set state = v_state, reason = v_reason, settled = false,
    changed_at = case when t.state = v_state then t.changed_at else clock_timestamp() end
  where t.one;
  begin
    perform private.sweep_trading(v_state);
  exception when lock_not_available or deadlock_detected then
    raise warning 'set_trading: an account is being planned just now; the upkeep does the rest';
  end;
  select * into v_switch from public.trading_switch t where t.one;
  insert into private.doorbells as d (topic, changed_at, due)
  select 'user:' || a.user_id, clock_timestamp(), true from public.trading_accounts a where a.removed_at is null group by a.user_id
  union all select 'operators', clock_timestamp(), true
  on conflict (topic) do update set due = true, changed_at = excluded.changed_at where not d.due;
  return jsonb_build_object('state', v_switch.state, 'reason', v_switch.reason, 'changed_at', private.rfc3339(v_switch.changed_at),
    'settled', v_switch.settled);
end $$;

create function public.remove_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_copier(p_request) $$;
comment on function public.remove_copier(jsonb) is
  'Removes a copier: preserve (its copies become the user''s own), close_gracefully (they end with their master''s) or close_now.';
create function public.set_trading(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_trading(p_request) $$;
comment on function public.set_trading(jsonb) is 'Operators: trading of everybody on, monitor (closes only) or off (frozen), with the reason that users read.';
revoke all on function public.remove_copier(jsonb), public.set_trading(jsonb) from public, anon;
grant execute on function public.remove_copier(jsonb), private.remove_copier(jsonb) to authenticated;
grant execute on function public.set_trading(jsonb), private.set_trading(jsonb) to authenticated, service_role;
