-- Deletes rows that are past their retention.

-- Small batches: a table that has fallen behind catches up over many runs instead of being locked for long.
create function private.delete_expired() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_batch integer := (private.setting('retention_batch') #>> '{}')::integer;
begin
  delete from public.connection_health_logs where id = any (array(
    select l.id from public.connection_health_logs l
    where l.at < now() - private.setting_days('retention_days.connection_health_logs') order by l.at limit v_batch));
  delete from public.account_snapshots where ctid = any (array(
    select s.ctid from public.account_snapshots s
    where s.at < now() - private.setting_days('retention_days.account_snapshots') order by s.at limit v_batch));
  delete from public.account_days where ctid = any (array(
    select d.ctid from public.account_days d
    where d.day < (now() - private.setting_days('retention_days.account_days'))::date order by d.day limit v_batch));
  delete from public.alerts where id = any (array(
    select a.id from public.alerts a
    where a.updated_at < now() - private.setting_days('retention_days.alerts') order by a.updated_at limit v_batch));
  delete from public.protection_looks where id = any (array(
    select l.id from public.protection_looks l
    where l.created_at < now() - private.setting_days('retention_days.protection_looks')
      order by l.created_at limit v_batch));
  delete from public.quiet_windows where id = any (array(
    select w.id from public.quiet_windows w
    where w.ends_at < now() - private.setting_days('retention_days.quiet_windows') order by w.ends_at limit v_batch));
  delete from public.audit_log where id = any (array(
    select l.id from public.audit_log l
    where l.at < now() - private.setting_days('retention_days.audit_log') order by l.at limit v_batch));
  delete from public.enrollment_tokens where id = any (array(
    select t.id from public.enrollment_tokens t
    where t.expires_at < now() - private.setting_days('retention_days.enrollment_tokens') limit v_batch));
  delete from private.login_attempts where id = any (array(
    select t.id from private.login_attempts t
    where t.at < now() - private.setting_days('retention_days.login_attempts') order by t.at limit v_batch));
  delete from private.event_keys where ctid = any (array(
    select k.ctid from private.event_keys k
    where k.received_at < now() - private.setting_days('retention_days.event_keys')
      order by k.received_at limit v_batch));
  delete from public.copy_outcomes where ctid = any (array(
    select o.ctid from public.copy_outcomes o
    where o.decided_at < now() - private.setting_days('retention_days.copy_outcomes')
      order by o.decided_at limit v_batch));
  delete from public.trade_execution_queue where id = any (array(
    select q.id from public.trade_execution_queue q
    where q.finalized_at is not null
      and q.updated_at < now() - private.setting_days('retention_days.trade_execution_queue')
    order by q.updated_at limit v_batch));
  -- An ended link latches its decision for as long as the master holds the position.
  delete from public.position_links where id = any (array(
    select k.id from public.position_links k
    where k.state = 'ended' and k.ended_at < now() - private.setting_days('retention_days.positions')
      and not exists (select from public.positions p where p.account_id = k.master_account_id
                      and p.ticket = k.master_ticket and p.kind = k.master_kind and p.closed_at is null)
    order by k.ended_at limit v_batch));
  delete from public.positions where ctid = any (array(
    select p.ctid from public.positions p
    where p.closed_at < now() - private.setting_days('retention_days.positions')
      and not exists (select from public.position_links k
        where k.master_account_id = p.account_id and k.master_ticket = p.ticket
                      and k.master_kind = p.kind
                      and k.ended_at is null)  -- a frozen copy must still be closed
    order by p.closed_at limit v_batch));
end
$$;
comment on function private.delete_expired() is
  'Deletes one batch of expired rows from every growing table; of trade_events it drops whole partitions.';
