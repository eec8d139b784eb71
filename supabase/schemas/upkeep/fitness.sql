-- Fitness: an agent that cannot do the work does not hold the lease. Each heartbeat says what is wrong ("unfit"). The
-- heartbeat is then answered, but renews no lease and hands nothing out; the accounts move when the lease ends.
--
-- With low memory, low disk or a drifting clock the agent keeps its lease while no other fit VPS can take one of its
-- accounts. If most VPSes differ from the database's clock at the same time, the database's clock is wrong.

create function private.unfit_of(p_heartbeat jsonb) returns text
language plpgsql stable
set search_path = ''
as $$
declare
  v_unfit text := private.text_of(p_heartbeat, 'unfit', 50);
begin
  if v_unfit is not null and private.unfit_words(v_unfit) is null then
    raise exception using errcode = 'TC001',
      message = 'unfit: expected null, journal_unwritable, loop_stalled, low_disk, low_memory or clock_drift',
        detail = v_unfit;
  end if;
  return v_unfit;
end
$$;
comment on function private.unfit_of(jsonb) is
  'Why the agent that sent this heartbeat is unfit, a code; null: it is fit. TC001 for an unknown code.';

-- p_vps is reporting p_offset_ms now (null: no VPS is).
create function private.database_clock_is_off(p_vps uuid, p_offset_ms numeric) returns boolean
language sql stable
set search_path = ''
as $$
  select count(*) >= 3 and count(*) filter (where abs(o.offset_ms) > 1000) * 2 > count(*)
  from (
    select case when v.id = p_vps then p_offset_ms else v.clock_offset_ms end as offset_ms
    from public.vps_instances v
    where v.retired_at is null and (v.id = p_vps or v.last_heartbeat_at > now() - interval '30 seconds')
  ) o
$$;
comment on function private.database_clock_is_off(uuid, numeric) is
  'Whether over half of at least three VPSes reported an offset of over a second within 30 s; then the database''s '
  'clock is wrong.';

create function private.has_substitute(p_vps public.vps_instances) returns boolean
language sql stable
set search_path = ''
as $$
  with mine as materialized (
    select a.id, a.platform from public.account_vps_assignments s join public.trading_accounts a on a.id = s.account_id
    where s.vps_id = p_vps.id and a.removed_at is null
  )
  select exists (
    select from public.vps_instances o
    where o.id <> p_vps.id and o.status = 'online' and o.unfit is null and o.lease_expires_at > clock_timestamp()
      and o.capacity > (select count(*) from public.account_vps_assignments t where t.vps_id = o.id)
      and case when exists (select from mine)
        then exists (select from mine m where m.platform = any (o.platforms)
          and m.id <> all (private.released_accounts(o.id)))
        else o.platforms && p_vps.platforms end)
$$;
comment on function private.has_substitute(public.vps_instances) is
  'Whether another fit VPS can take an account of this one; for a VPS without accounts, any of its platforms.';

create function private.may_hold_lease(p_vps public.vps_instances, p_unfit text, p_offset_ms numeric) returns boolean
language sql stable
set search_path = ''
as $$
  select case
    when p_unfit is null then true
    when p_unfit not in ('low_disk', 'low_memory', 'clock_drift') then false
    when p_unfit = 'clock_drift' and private.database_clock_is_off(p_vps.id, p_offset_ms) then true
    else not private.has_substitute(p_vps) end
$$;
comment on function private.may_hold_lease(public.vps_instances, text, numeric) is
  'Whether a heartbeat renews the lease of an agent that is unfit for this reason.';

-- Each heartbeat calls this before it renews anything. It writes only when something has changed. p_vps: the row before
-- the heartbeat.
create function private.judge_fitness(p_vps public.vps_instances, p_heartbeat jsonb) returns boolean
language plpgsql
set search_path = ''
as $$
declare
  v_unfit text := private.unfit_of(p_heartbeat);
  v_holds boolean := private.may_hold_lease(p_vps, v_unfit, private.numeric_of(p_heartbeat, 'offset_ms'));
begin
  if (p_vps.unfit, p_vps.unfit_works) is not distinct from (v_unfit, v_unfit is not null and v_holds) then
    return v_holds;
  end if;
  update public.vps_instances v
  set unfit = v_unfit, unfit_works = v_unfit is not null and v_holds,
      unfit_since = case when v_unfit is null then null when v.unfit = v_unfit then v.unfit_since else now() end
  where v.id = p_vps.id;
  if v_unfit is not null then
    perform private.alert_operators(p_vps.id, 'vps', v_unfit, case when v_holds then 'warning' else 'critical' end,
      format('VPS %s is unfit: %s. %s', p_vps.name, private.unfit_words(v_unfit),
        case when v_holds then 'It goes on working, because no other VPS can take its accounts.'
          else 'Its lease is not renewed; its accounts move to other VPSes that can take them.' end),
      jsonb_build_object('goes_on', v_holds));
  end if;
  return v_holds;
end
$$;
comment on function private.judge_fitness(public.vps_instances, jsonb) is
  'Stores whether the agent of this VPS is fit and alerts operators. Returns whether its heartbeat renews the lease.';

-- An agent that cannot work one account (the platform's library is missing, the credentials cannot be read) reports it
-- in that account's entry.
create function private.release_unfit(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_said record;
begin
  for v_said in
    select t.account_id, t.unfit, coalesce(t.error, 'its agent does not say more') as error
    from jsonb_to_recordset(p_accounts) as t (account_id uuid, revision bigint, unfit text, error text)
    join public.trading_accounts a on a.id = t.account_id
    -- A problem with earlier settings or an earlier password says nothing about the current ones.
    where t.unfit in ('platform_missing', 'credentials_unreadable') and coalesce(t.revision = a.revision, true)
    order by t.account_id
  loop
    perform private.release_account(p_vps, v_said.account_id,
      case when starts_with(v_said.error, v_said.unfit || ': ')
        then v_said.error else v_said.unfit || ': ' || v_said.error end);
  end loop;
end
$$;
comment on function private.release_unfit(uuid, jsonb) is
  'Releases the accounts that their agent reports it cannot work, each with its reason.';

-- Decides whether the VPS or the broker is at fault. An account counts as connected if it was connected before the
-- trouble began, or for longer than agents wait between two attempts: when a broker comes back, some agents connect
-- sooner than others.
create function private.is_broker_down(p_platform text, p_server_key text, p_unreachable uuid[]) returns boolean
language sql stable
set search_path = ''
as $$
  select count(distinct s.vps_id) >= 2 and not coalesce(bool_or(
    a.status in ('connected', 'degraded') and a.session_vps_id = s.vps_id and a.id <> all (p_unreachable)
    and a.session_opened_at < greatest(clock_timestamp() - interval '90 seconds',
      (select max(u.seen_at) from public.trading_accounts u where u.id = any (p_unreachable)))), false)
  from public.trading_accounts a
  join public.account_vps_assignments s on s.account_id = a.id
  join public.vps_instances v on v.id = s.vps_id
  where a.platform = p_platform and a.server_key = p_server_key and a.removed_at is null
    and a.status <> 'halted'  -- not tried at present
    and v.lease_expires_at > clock_timestamp()
    and not exists (select from private.releases r
      where r.vps_id = s.vps_id and r.account_id = a.id and r.reason like 'broker_unreachable: %'
                    and r.released_at > clock_timestamp() - (select private.setting_s('release_s')))
$$;
comment on function private.is_broker_down(text, text, uuid[]) is
  'Whether at least two VPSes work accounts of this server and no account is connected, apart from the given ones, '
  'which have just been reported as not connected.';

create function private.has_room_elsewhere(p_account uuid, p_vps uuid) returns boolean
language sql stable
set search_path = ''
as $$
  select coalesce(sum(greatest(0, o.capacity - (select count(*) from public.account_vps_assignments t
    where t.vps_id = o.id))), 0) > (
    select count(*) from private.releases r
    join public.account_vps_assignments s on s.account_id = r.account_id and s.vps_id = r.vps_id
    join public.trading_accounts w on w.id = r.account_id
    where r.reason like 'broker_unreachable: %' and r.released_at > clock_timestamp() - private.setting_s('release_s')
      and w.platform = (select a.platform from public.trading_accounts a where a.id = p_account))
  from public.vps_instances o join public.trading_accounts a on a.id = p_account
  where o.id <> p_vps and o.status = 'online' and o.unfit is null and o.lease_expires_at > clock_timestamp()
    and a.platform = any (o.platforms)
    and p_account <> all (private.released_accounts(o.id))
$$;
comment on function private.has_room_elsewhere(uuid, uuid) is
  'Whether other VPSes have room for this account, not counting the places needed by accounts that wait because their '
  'broker is unreachable.';

-- Accounts whose broker cannot be reached from this VPS. Nobody works a released account until another VPS takes it, so
-- an account that no other VPS can take is not released: its agent keeps trying. At most once an hour per account and
-- VPS; otherwise accounts of a broker that is down would move around all the time.
create function private.release_unreachable(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_said record;
begin
  for v_said in
    with told as materialized (
      select a.id, a.name, a.platform, a.server_key, t.error, exists (
        select from public.alerts l
        where l.account_id = a.id and l.reason = 'broker_unreachable'
          and l.updated_at > now() - interval '1 hour') as alerted
      from jsonb_to_recordset(p_accounts) as t (account_id uuid, revision bigint, unfit text, error text)
      join public.trading_accounts a on a.id = t.account_id
      join public.account_vps_assignments s on s.account_id = a.id and s.vps_id = p_vps
      where t.unfit = 'broker_unreachable' and starts_with(t.error, 'broker_unreachable: ')
        and coalesce(t.revision = a.revision, true)
        and not exists (select from private.releases r
          where r.vps_id = p_vps and r.account_id = a.id and r.reason like 'broker_unreachable: %'
                        and r.released_at > clock_timestamp() - interval '1 hour')
    ),
    cut_off as materialized (
      select platform, server_key from told group by platform, server_key
      having not private.is_broker_down(platform, server_key, array_agg(id))
    )
    select t.id, t.name, t.error, t.alerted from told t join cut_off using (platform, server_key) order by t.id
  loop
    if private.has_room_elsewhere(v_said.id, p_vps) then
      perform private.release_account(p_vps, v_said.id, v_said.error);
    elsif not v_said.alerted and not private.closed_for_weekend(v_said.id, clock_timestamp()) then
      perform private.raise_alert(v_said.id, 'account', 'broker_unreachable', 'critical',
        format('Account %s is not traded, and no other VPS can take it now: %s', v_said.name,
          private.without_code(left(v_said.error, 500))),
        jsonb_build_object('vps_id', p_vps));
    end if;
  end loop;
end
$$;
comment on function private.release_unreachable(uuid, jsonb) is
  'Releases the accounts whose broker cannot be reached from this VPS, if another VPS can take them and the broker '
  'itself is not down.';

-- Accounts that nobody works: their VPS has no lease, and no other VPS can take them. maintain() runs this last: it
-- locks account rows that others lock after plan locks, so it waits for no lock.
create function private.alert_stranded() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account record;
begin
  for v_account in
    update public.trading_accounts a
    set status = 'disconnected', status_reason = w.code || ': ' || w.words
    from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id,
      lateral (select coalesce(v.unfit, 'vps_lost') as code,
        coalesce(private.unfit_words(v.unfit),
          'its VPS sends no heartbeats') || '; no other VPS can take the account now' as words) w
    where s.account_id = a.id and a.id = any (array(
      select b.id from public.trading_accounts b
      join public.account_vps_assignments t on t.account_id = b.id join public.vps_instances o on o.id = t.vps_id
      where b.removed_at is null and b.status not in ('disconnected', 'halted')
        and o.status in ('offline', 'draining', 'retired') and o.lease_expires_at < clock_timestamp()
      for no key update of b skip locked))
    returning a.id, a.name, w.code, w.words, v.last_heartbeat_at
  loop
    continue when private.is_alerted(v_account.id, 'account', array['disconnected'], v_account.last_heartbeat_at, '{}');
    perform private.raise_alert(v_account.id, 'account', v_account.code, 'critical',
      format('Account %s is not traded: %s.%s', v_account.name, v_account.words,
        private.open_copies_sentence(v_account.id)), '{}');
  end loop;
end
$$;
comment on function private.alert_stranded() is
  'Sets accounts that nobody works to disconnected, with the reason, and alerts their users.';

create function private.watch_database_clock() returns void
language plpgsql
set search_path = ''
as $$
begin
  if private.database_clock_is_off(null, null) and not exists (
    select from public.alerts l
    where l.account_id is null and l.vps_id is null and l.reason = 'database_clock'
      and l.updated_at > now() - interval '1 hour')
  then
    perform private.alert_operators(null, 'database', 'database_clock', 'critical',
      'The clocks of most VPSes differ from the database''s by over a second at once: check the time service of the '
      'database''s machine. Until then no VPS loses its lease because of its clock.',
      (select jsonb_object_agg(v.name, v.clock_offset_ms) from public.vps_instances v where v.retired_at is null));
  end if;
end
$$;
comment on function private.watch_database_clock() is
  'Alerts operators while the database''s own clock is wrong, at most once an hour.';
