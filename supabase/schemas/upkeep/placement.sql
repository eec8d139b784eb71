-- Placement: which VPS works which account.
--
-- Locks, always in this order: the turn "assign" (one placement at a time, so that capacity is never exceeded), the
-- plan locks of the accounts (nothing is planned while an account moves), rows.

create function private.await_turn(p_name text) returns void
language sql
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.await_turn(text) is 'Like take_turn(), but waits for it.';

-- Required: the platform, fit, a live lease, spare capacity. Preferred: most copy partners there, then the lowest load.
create function private.choose_vps(p_account uuid, p_only uuid) returns uuid
language sql stable
set search_path = ''
as $$
  with partners as (
    select case c.master_account_id when p_account then c.follower_account_id else c.master_account_id end as account_id
    from public.copiers c
    where c.removed_at is null and p_account in (c.master_account_id, c.follower_account_id)
  )
  select v.id
  from public.vps_instances v
  join public.trading_accounts a on a.id = p_account
  cross join lateral (
    select count(*) filter (where s.account_id <> p_account) as accounts,
           count(*) filter (where s.account_id in (select p.account_id from partners p)) as partners
    from public.account_vps_assignments s where s.vps_id = v.id
  ) load
  where v.status = 'online' and v.unfit is null and v.lease_expires_at > clock_timestamp()
    and a.platform = any (v.platforms)
    and load.accounts < v.capacity and (p_only is null or v.id = p_only)
      and p_account <> all (private.released_accounts(v.id))
  order by load.partners desc, load.accounts::numeric / v.capacity, v.name
  limit 1
$$;
comment on function private.choose_vps(uuid, uuid) is
  'The best VPS for an account, or p_only if it can take the account; null: there is none.';

-- Moves the account if it must move or p_only says so. The caller holds the turn "assign".
create function private.place_account(p_account uuid, p_only uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid := private.choose_vps(p_account, p_only);
  v_old public.account_vps_assignments;
  v_new public.account_vps_assignments;
  v_last_session_vps uuid;
  v_old_lease timestamptz;
  v_send_before timestamptz;
begin
  if v_vps is null then
    return null;
  end if;
  perform private.lock_accounts(array[p_account]);
  select s.* into v_old from public.account_vps_assignments s where s.account_id = p_account;
  if v_old.vps_id = v_vps then
    return v_old;
  end if;
  select a.session_vps_id into v_last_session_vps from public.trading_accounts a
  where a.id = p_account and a.removed_at is null and a.claim <> 'ended';
  if not found then
    return null;
  end if;
  -- Only a VPS that opened a session for the account may still send orders. Another one cannot open a session now: that
  -- needs the lock that is held here.
  if v_old.vps_id is not null and v_last_session_vps = v_old.vps_id then
    select v.lease_expires_at into v_old_lease from public.vps_instances v where v.id = v_old.vps_id;
    select max(q.send_before) into v_send_before from public.trade_execution_queue q
    where q.account_id = p_account and q.in_flight and q.offered_at is not null;
  end if;
  insert into public.account_vps_assignments as s (account_id, vps_id, epoch, begins_at, assigned_at)
  values (p_account, v_vps, coalesce(v_old.epoch, 0) + 1,
    greatest(clock_timestamp(), v_old.begins_at, v_old_lease, v_send_before), clock_timestamp())
  on conflict (account_id) do update
  set vps_id = excluded.vps_id, epoch = excluded.epoch, begins_at = excluded.begins_at,
    assigned_at = excluded.assigned_at,
      -- If two VPSes must still give the account up, the wait runs its full length.
      previous_vps_id = case when v_old_lease is not null and s.begins_at <= clock_timestamp() then s.vps_id end
  returning s.* into v_new;
  perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  if v_old.vps_id is not null then
    perform private.broadcast('vps:' || v_old.vps_id, 'assignments', '{}');
  end if;
  return v_new;
end
$$;
comment on function private.place_account(uuid, uuid) is
  'Assigns the account to the best VPS (or p_only) with a new epoch; null: no VPS can take it.';

create function private.place_or_refuse(p_account uuid, p_vps uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_placed public.account_vps_assignments := private.place_account(p_account, p_vps);
begin
  if v_placed.vps_id is null and p_vps is null then
    raise exception using errcode = 'TC206', message = 'no VPS can take the account now', detail = p_account::text,
      hint = 'It is placed automatically as soon as one can. An operator can add a VPS or capacity.';
  elsif v_placed.vps_id is null then
    raise exception using errcode = 'TC207', message = 'this VPS cannot take the account', detail = p_vps::text,
      hint = 'The VPS must be online and fit, support the platform and have capacity left.';
  end if;
  return v_placed;
end
$$;
comment on function private.place_or_refuse(uuid, uuid) is
  'place_account() that raises TC206 or TC207 instead of returning null.';

-- Moves accounts whose VPS may not keep them, and places accounts without a VPS. The caller holds the turn "assign".
-- All account locks are taken at once, in the planner's order. An account that is being planned now is left for the
-- next run, because all others would wait for it.
create function private.place_homeless(p_limit integer) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_homeless uuid[];
  v_account uuid;
  v_moved integer := 0;
begin
  select array_agg(h.id) into v_homeless from (
    with farm as materialized (select v.*, private.released_accounts(v.id) as released from public.vps_instances v)
    select a.id
    from public.trading_accounts a
    left join public.account_vps_assignments s on s.account_id = a.id
    left join farm v on v.id = s.vps_id
    where a.removed_at is null and a.claim <> 'ended'
      and (v.id is null or v.status in ('offline', 'draining', 'retired') or a.id = any (v.released))
      and exists (select from farm o
                  where o.status = 'online' and o.unfit is null and o.lease_expires_at > clock_timestamp()
                    and a.platform = any (o.platforms)
                    and o.capacity > (select count(*) from public.account_vps_assignments t where t.vps_id = o.id)
                    and a.id <> all (o.released))
    order by a.id
    limit p_limit
  ) h;
  if v_homeless is null then
    return 0;
  end if;
  foreach v_account in array private.lock_free(v_homeless) loop
    v_moved := v_moved + ((private.place_account(v_account, null)).vps_id is not null)::integer;
  end loop;
  return v_moved;
end
$$;
comment on function private.place_homeless(integer) is
  'Moves accounts of lost, draining and retired VPSes, and places unassigned ones. Returns how many were moved.';
