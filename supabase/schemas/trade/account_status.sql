-- What an account's status is when it is read. The stored status is what an agent said last; whether that agent still
-- works the account, its lease and its heartbeats tell. So nothing has to run for a dead copier to read as dead.

-- Whether accounts of a platform are worked by a VPS.
create function private.needs_vps(p_platform text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce((private.setting('platforms') -> p_platform ->> 'vps')::boolean, true);
end $$;

-- Whether a VPS in service, online or not, can run the platform.
create function private.has_vps_for(p_platform text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select from public.vps_instances v where v.retired_at is null and p_platform = any (v.platforms));
end $$;

-- What an account without a VPS waits for.
create function private.vps_waited_for(p_platform text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_online bigint;
  v_fit bigint;
  v_room bigint;
begin
  if not private.has_vps_for(p_platform) then
    return format('no VPS of this farm can run %s', p_platform);
  end if;
  select count(*), count(*) filter (where v.unfit is null), count(*) filter (where v.unfit is null
      and v.capacity > (select count(*) from public.account_vps_assignments s where s.vps_id = v.id))
  into v_online, v_fit, v_room
  from public.vps_instances v
  where v.status = 'online' and v.lease_expires_at > clock_timestamp() and p_platform = any (v.platforms);
  return case when v_online = 0 then format('every VPS that can run %s is offline', p_platform)
    when v_fit = 0 then format('every VPS that can run %s is unfit', p_platform)
    when v_room = 0 then format('every VPS that can run %s is full', p_platform)
    else 'it is given a place on a VPS within seconds' end;
end $$;
comment on function private.vps_waited_for(text) is
  'What an account of this platform that has no VPS waits for, in words.';

-- Until when the agent of a VPS may trade by its own last heartbeat. The upkeep may extend leases after an outage of
-- the database, so that the farm does not move; that says nothing about the agent.
create function private.lease_end(v public.vps_instances) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
begin
  return least(v.lease_expires_at, v.last_heartbeat_at + private.setting_s('lease_s'));
end $$;

-- Since when an account that is stored as connecting or disconnected has not been connected. Each attempt to log in
-- changes its status, so status_at does not tell; the history does.
create function private.not_connected_since(a public.trading_accounts) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
declare
  v_left record;
begin
  select h.at, h.previous_status into v_left from public.connection_health_logs h
  where h.account_id = a.id and h.kind = 'state' and h.previous_status not in ('connecting', 'disconnected')
  order by h.at desc limit 1;
  return least(a.status_at, v_left.at,
    case when v_left.previous_status is null or v_left.previous_status in ('connected', 'degraded') then a.seen_at end);
end $$;

-- What is wrong with an account that is stored as connected or degraded; null: nothing is. "Connected" is what its
-- agent claims: it counts with a session of the VPS that works the account, whose first snapshot was applied, and while
-- the agent goes on showing it.
create function private.unproven_connection(a public.trading_accounts, p_vps uuid, p_assigned_at timestamptz,
  p_now timestamptz, out status text, out reason text, out since timestamptz)
language plpgsql immutable set search_path = '' as $$
declare
  v_seen timestamptz := greatest(a.seen_at, a.funds_at);
begin
  if a.session = 0 or a.session_vps_id <> p_vps then
    status := 'connecting';
    reason := 'its agent has opened no session for it';
    since := p_assigned_at;
  elsif a.snapshot_session <> a.session then
    status := 'connecting';
    reason := 'it is logged in; its positions are not read yet';
    since := a.session_opened_at;
  end if;
  if v_seen < p_now - interval '30 seconds' then
    status := 'disconnected';
    reason := coalesce('not_seen: ' || reason, 'not_seen: its agent has not shown it as connected for over 30 s');
    since := v_seen;
  end if;
end $$;

-- Security definer: everybody may read what his accounts' status is, but only operators the VPSes that it depends on.
create function private.account_status_now(a public.trading_accounts, p_now timestamptz, out status text,
  out reason text, out waits_for text, out since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare
  v record;
  f record;
begin
  reason := a.status_reason;
  since := a.status_at;
  -- another user owns it now, or a person must act: whatever agents say
  status := case when a.claim = 'ended' then 'halted' else a.status end;
  if a.removed_at is not null or status = 'halted' then return; end if;
  if not private.needs_vps(a.platform) then
    status := case a.status when 'pending' then 'connected' else a.status end;
    return;
  end if;
  select s.vps_id, s.assigned_at, private.lease_end(o) as lease_end, o.unfit into v
  from public.account_vps_assignments s join public.vps_instances o on o.id = s.vps_id where s.account_id = a.id;
  if v.vps_id is null then
    waits_for := private.vps_waited_for(a.platform);
    if a.status <> 'pending' then
      status := 'disconnected';
      reason := 'vps_lost: no VPS works it; ' || waits_for;
      since := private.not_connected_since(a);
    end if;
  elsif v.lease_end <= p_now then
    status := 'disconnected';
    since := least(greatest(v.lease_end, v.assigned_at), case a.status when 'disconnected' then a.status_at end);
    if a.status <> 'disconnected' or reason is null then
      reason := coalesce(v.unfit, 'vps_lost') || ': ' || coalesce(private.unfit_words(v.unfit),
        'its VPS sends no heartbeats') || '; no other VPS works the account';
    end if;
  elsif a.status = 'pending' then
    waits_for := 'its agent has not logged in yet';
  elsif a.status in ('connected', 'degraded') then
    f := private.unproven_connection(a, v.vps_id, v.assigned_at, p_now);
    if f.status is not null then
      status := f.status;
      reason := f.reason;
      since := f.since;
    end if;
  else
    since := private.not_connected_since(a);
    if a.status = 'connecting' and a.seen_at is not null and since < p_now - interval '30 seconds' then
      status := 'disconnected';
      reason := coalesce(reason, 'its agent tries to log in again');
    end if;
    -- an agent that works cannot reach the broker: at the weekend that may be rest. A lost agent never is
    if private.closed_for_weekend(a.id, p_now) then
      status := 'weekend';
      reason := 'closed for the weekend until ' || private.weekend_end_words(p_now);
      since := (private.weekend_at(p_now)).begins;
    end if;
  end if;
end $$;
comment on function private.account_status_now(public.trading_accounts, timestamptz) is
  'What an account''s status is at this moment, by its agent''s lease and heartbeats: pending, connecting, connected, '
  'degraded, disconnected, halted, or weekend (closed for the weekend); why; what it waits for; since when.';

-- The end of the weekend that lasts now, as people read it: "Sunday 17:00 (America/New_York)".
create function private.weekend_end_words(p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_weekend jsonb := private.setting('weekend');
begin
  return private.weekly_words((v_weekend ->> 'until_weekday')::integer, (v_weekend ->> 'until_time')::time,
    v_weekend ->> 'time_zone');
end $$;

-- The present status of a user's accounts; p_user null: of all.
create function private.account_statuses(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  name text, status text, reason text, waits_for text, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select a.id, a.user_id, a.name, s.status, s.reason, s.waits_for, s.since
  from public.trading_accounts a cross join lateral private.account_status_now(a, p_now) s
  where a.removed_at is null and (p_user is null or a.user_id = p_user);
end $$;
