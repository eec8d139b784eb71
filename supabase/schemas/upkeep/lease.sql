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
  update public.vps_instances v set status = 'offline'
  where v.id = any (array(
    select w.id from public.vps_instances w
    where w.status = 'online' and w.lease_expires_at < clock_timestamp()
    for no key update skip locked));
end
$$;
comment on function private.judge_leases(interval) is
  'Marks VPSes offline whose lease is over; after a gap in the runs it extends the leases instead.';
