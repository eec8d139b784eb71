-- Leases that have ended: which VPS is offline.

-- A VPS is judged only if the database was up to receive its heartbeats. After a gap in the runs all leases are
-- extended once; otherwise a database outage would move the whole farm. A row that is locked belongs to a heartbeat in
-- progress.
create function private.judge_leases(p_gap interval) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_lease interval := private.setting_s('lease_s');
  v_lost record;
begin
  -- If the clock was set back: no lease may last longer than lease_s from now.
  update public.vps_instances v set lease_expires_at = clock_timestamp() + v_lease
  where v.id = any (array(
    select w.id from public.vps_instances w
    where w.lease_expires_at > clock_timestamp() + v_lease for no key update skip locked));
  if p_gap > v_lease / 2 then
    update public.vps_instances v
    set lease_expires_at = clock_timestamp() + v_lease
    where v.id = any (array(
      select w.id from public.vps_instances w
      where w.status in ('online', 'draining') and w.lease_expires_at < clock_timestamp() + v_lease
        and (w.unfit is null or w.unfit_works)
      for no key update skip locked));
    return;
  end if;
  for v_lost in
    update public.vps_instances v set status = 'offline'
    where v.id = any (array(
      select w.id from public.vps_instances w
      where w.status = 'online' and w.lease_expires_at < clock_timestamp()
      for no key update skip locked))
    returning v.id, v.name, v.last_heartbeat_at,
      (select count(*) from public.account_vps_assignments s where s.vps_id = v.id) as accounts
  loop
    perform private.alert_operators(v_lost.id, 'vps', 'vps_lost', 'critical', format(
      'VPS %s lost its lease, its last heartbeat came at %s: its %s accounts move to other VPSes that can take them. '
      'See whether the machine and its agent run.', v_lost.name, coalesce(private.utc_words(v_lost.last_heartbeat_at),
        'no time'), v_lost.accounts), jsonb_build_object('accounts', v_lost.accounts));
  end loop;
end
$$;
comment on function private.judge_leases(interval) is
  'Marks VPSes offline whose lease is over and alerts operators; after a gap in the runs it extends the leases '
  'instead.';
