-- The end of a copier: what is not yet sent is called back; what is held is released, followed to its end or closed.

-- Whether an execution (p_all), or what it opens, belongs to this copier alone; a netting deal may serve several.
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

-- Calls back what is queued and not yet sent: opens, or with p_all everything. What is not handed out ends here with
-- p_reason; for what an agent has, the agent is asked at once to drop it. p_copier null: all copiers. The caller holds
-- the plan locks of the accounts.
create function private.withdraw(p_accounts uuid[], p_copier uuid, p_all boolean, p_reason text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_message record;
begin
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = p_reason, finalized_at = p_now,
      updated_at = p_now
    where x.account_id = any (p_accounts) and x.in_flight and x.parts is null
      and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null)
      and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
    returning x.*
  loop
    perform private.book_failure(q, p_now);
  end loop;
  -- a netting deal that is not handed out is taken apart by plan_net, like one that waits for another attempt
  update public.trade_execution_queue x set status = 'retrying', next_attempt_at = p_now, updated_at = p_now
  where x.account_id = any (p_accounts) and x.in_flight and x.parts is not null and x.status = 'queued'
    and x.offered_at is null;
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
  select fa.id, private.opening_blocked_reason(private.trading_state(), fa.copy_state, fa.copy_state_reason, c.mode,
    c.removal) into v_follower, v_shut
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
    raise exception using errcode = 'TC307',
      message = format('copier %s is being removed (%s): it cannot be changed any more', p_copier, v_removal),
      hint = 'Change how it is removed with remove_copier, or make a new copier for the two accounts.';
  end if;
end $$;

-- Releases a copier's live copies to the user: their links end, and their tickets are the user's own.
create function private.release_copies(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id);
begin
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.ticket = g.ticket
    and p.kind = g.ticket_kind and p.closed_at is null;
  -- on a netting account a leg is a share of the symbol's position: the whole position is the user's only if no other
  -- copier has a share
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.symbol = g.ticket and p.closed_at is null
    and p.kind = 'position'
    and exists (select 1 from public.trading_accounts a where a.id = g.account_id and a.mode = 'netting')
    and not exists (
      select 1 from private.link_legs o where o.account_id = g.account_id and o.ticket = g.ticket
        and not o.link_id = any (v_links));
  delete from private.link_legs g where g.link_id = any (v_links);
  update public.position_links l set state = 'ended', reason = 'released', ended_at = p_now, wanted_lots = null,
    wanted_until = null, replan_at = null
  where l.id = any (v_links);
  perform private.withdraw(array[p_copier.follower_account_id], p_copier.id, true, 'released', p_now);
  -- a deal that included the released copies is made again without them
  perform private.offer(private.plan_nets(v_links, p_now), null, clock_timestamp());
end $$;

-- Whether a report is about a released copy: then what it opened is also the user's own, and the row says so. Or about
-- a copy that has ended, and whose position its user has linked to another copy (resync): it stays there and is not
-- booked twice.
create function private.left_to_user(q public.trade_execution_queue, r jsonb) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  if q.parts is not null or not exists (select 1 from public.position_links l
    where l.id = q.link_id and l.state = 'ended') then
    return false;
  end if;
  if not exists (select 1 from public.position_links l where l.id = q.link_id and l.reason = 'released') then
    return exists (
      select 1 from jsonb_array_elements(case
        when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
      join private.link_legs g on g.account_id = q.account_id and g.ticket = e ->> 'ticket'
        and g.ticket_kind = e ->> 'kind' and g.link_id <> q.link_id
      join public.position_links l on l.id = g.link_id and l.ended_at is null);
  end if;
  update public.positions p set released = true
  from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
  where p.account_id = q.account_id and p.ticket = e ->> 'ticket' and p.kind = e ->> 'kind' and p.closed_at is null;
  if found and private.opens(q) then
    update public.trade_execution_queue x set warnings = array_append(array_remove(x.warnings, 'filled_after_release'),
      'filled_after_release')
    where x.id = q.id;
    update public.position_links l set warnings = array_append(array_remove(l.warnings, 'filled_after_release'),
      'filled_after_release')
    where l.id = q.link_id;
  end if;
  return true;
end $$;

-- Deletes what a deal has booked to links whose copies were released meanwhile: that part of the net position is the
-- user's own.
create function private.drop_released_shares(p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.link_legs g using public.position_links l
  where g.link_id = any (array(select (e ->> 'link_id')::bigint from jsonb_array_elements(p_parts) e))
    and l.id = g.link_id and l.state = 'ended' and l.reason = 'released';
end $$;

-- Sets removed_at when nothing is left to do. The caller holds the follower's plan lock; a master's event that this
-- copier must still explain holds it too.
create function private.finish_removal(p_copier uuid, p_follower uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.copiers c set removed_at = p_now, updated_at = clock_timestamp()
  where c.id = p_copier and c.removal is not null and c.removed_at is null
    and not exists (
      select 1 from public.position_links l where l.follower_account_id = p_follower and l.state = 'live'
        and l.copier_id = p_copier)
    and not exists (
      select 1 from public.trade_execution_queue q
      where q.account_id = p_follower and q.in_flight and q.copier_id = p_copier);
end $$;

-- Upkeep: completes the removals whose last copy has ended. Accounts that are being planned wait for the next run.
create function private.finish_removals() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_copier record;
begin
  for v_copier in select c.id, c.follower_account_id from public.copiers c
    where c.removal is not null and c.removed_at is null loop
    perform 1 from private.plan_locks k where k.account_id = v_copier.follower_account_id for no key update skip locked;
    if found then
      perform private.finish_removal(v_copier.id, v_copier.follower_account_id, clock_timestamp());
    end if;
  end loop;
end $$;
