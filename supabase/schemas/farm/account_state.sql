-- The state of accounts as heartbeats report it, and the alert to the owner when an account cannot trade.

-- Only a change of state updates a row. A row that is locked is skipped and updated by the next heartbeat, which
-- reports the same state: a long transaction on one account must not keep the VPS from renewing its lease.
create function private.note_account_states(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
begin
  if not exists (select from public.vps_instances v where v.id = p_vps and v.lease_expires_at > clock_timestamp()) then
    return;  -- without a lease the agent works no account, so its report does not count
  end if;
  with told as materialized (
    select a.id, said.status, left(said.error, 500) as error
    from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, revision bigint, status text,
      error text)
    join public.account_vps_assignments s on s.account_id = said.account_id
    join public.vps_instances v on v.id = s.vps_id
    join public.trading_accounts a on a.id = said.account_id
    where said.status in ('connecting', 'connected', 'degraded', 'disconnected', 'halted') and s.vps_id = p_vps
    and a.id <> all ((select private.released_accounts(p_vps))::uuid[])
    -- The result of a login with earlier settings or an earlier password says nothing about the current ones.
    and coalesce(said.revision = a.revision, true)
    -- An agent that names no session has opened none since it started, so its report is older than any session that
    -- was opened since.
    and case when said.session is null then a.session_vps_id is distinct from p_vps
      or coalesce(a.session_opened_at < v.process_since, true)
      else said.session = a.session end
    and (a.status, a.status_reason) is distinct from (said.status, left(said.error, 500))
    for no key update of a skip locked
  )
  update public.trading_accounts a set status = told.status, status_reason = told.error from told where a.id = told.id;

  -- seen_at is written every few seconds and last. It counts only once the session's first snapshot is applied: a login
  -- alone shows no positions, so a position opened during an outage would pass for new.
  update public.trading_accounts a set seen_at = now()
  where a.id = any (array(
    select t.id from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
    join public.account_vps_assignments s on s.account_id = said.account_id
    join public.trading_accounts t on t.id = said.account_id
    where s.vps_id = p_vps and said.session = t.session and said.status in ('connected', 'degraded')
      and t.snapshot_session = said.session
      and (t.seen_at is null or t.seen_at not between now() - interval '1 second' and now())
    for no key update of t skip locked));
end
$$;
comment on function private.note_account_states(uuid, jsonb) is
  'Stores the states of the VPS''s accounts that a heartbeat reported: [{"account_id", "session", "revision", '
  '"status", '
  '"error"}]. Without a live lease it does nothing.';

-- Only trouble that a person must fix: the agent's reason begins with a code, or the login shows another account.
-- Everything else recovers by itself.
create function private.alert_account_trouble() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_reason text := coalesce(substring(new.status_reason from '^([a-z][a-z_]{1,38}): '), case
    when new.status = 'halted' then 'account_halted' end);
begin
  if v_reason is not null then
    perform private.raise_alert(new.id, 'account', v_reason, 'critical',
      format('Account %s cannot trade: %s', new.name, coalesce(private.without_code(new.status_reason),
        'the broker refused its login')),
      jsonb_build_object('status', new.status));
  end if;
  return null;
end
$$;
comment on function private.alert_account_trouble() is
  'Trigger: raises an alert when an account becomes degraded or halted; repeats are counted until the alert is seen.';
create trigger alert_trouble after update of status on public.trading_accounts for each row
  when (new.status in ('degraded', 'halted') and old.status is distinct from new.status and new.removed_at is null)
  execute function private.alert_account_trouble();
