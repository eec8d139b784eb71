-- Releases: a VPS that cannot work one account gives up that account and keeps the others. The account is placed
-- elsewhere. If no other VPS can take it, it waits with the reason as its status and returns to the same VPS after
-- release_s.

create table private.releases (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  vps_id uuid not null references public.vps_instances (id) on delete cascade,
  reason text not null,
  released_at timestamptz not null,
  primary key (vps_id, account_id),
  constraint reason_is_short check (length(reason) <= 500)
);
comment on table private.releases is
  'Which VPS could not work which account, and why. A release ends after release_s, when the VPS''s agent restarts, '
  'and '
  'when the account''s settings change.';
comment on column private.releases.account_id is 'The account.';
comment on column private.releases.vps_id is 'The VPS that released it.';
comment on column private.releases.reason is 'Why: a code, a colon and an explanation.';
comment on column private.releases.released_at is 'When the VPS last reported it.';

-- cascade from trading_accounts
create index releases_of_account on private.releases (account_id);
alter table private.releases enable row level security;

create function private.released_accounts(p_vps uuid) returns uuid[]
language sql stable
set search_path = ''
as $$
  select array(
    select r.account_id from private.releases r join public.vps_instances v on v.id = r.vps_id
    where r.vps_id = p_vps and r.released_at > clock_timestamp() - private.setting_s('release_s')
      and r.released_at >= coalesce(v.process_since, '-infinity'))
$$;
comment on function private.released_accounts(uuid) is
  'The accounts that this VPS has released and must not be given now.';

-- The account stays assigned until another VPS takes it, so reports of sent orders still arrive and nobody else trades
-- it.
create function private.release_account(p_vps uuid, p_account uuid, p_reason text) returns void
language plpgsql
set search_path = ''
as $$
begin
  if not exists (select from public.account_vps_assignments s where s.account_id = p_account and s.vps_id = p_vps) then
    return;
  end if;
  insert into private.releases as r (account_id, vps_id, reason, released_at)
  values (p_account, p_vps, left(p_reason, 500), clock_timestamp())
  on conflict (vps_id, account_id) do update set reason = excluded.reason, released_at = excluded.released_at;
  perform private.raise_alert(p_account, 'account', substring(p_reason from '^[a-z_]+'), 'critical',
    format('Account %s was released by its VPS: %s',
      (select a.name from public.trading_accounts a where a.id = p_account),
      private.without_code(left(p_reason, 500))),
    jsonb_build_object('vps_id', p_vps));
end
$$;
comment on function private.release_account(uuid, uuid, text) is
  'Releases one account from a VPS; the reason begins with a code. maintain() places the account elsewhere.';

-- Repeated in every heartbeat: a row that is locked is skipped until the next one, so that no account keeps a VPS from
-- renewing its lease.
create function private.show_releases(p_vps uuid) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_released uuid[] := private.released_accounts(p_vps);
begin
  if v_released <> '{}' then
    update public.trading_accounts a set status = 'disconnected', status_reason = r.reason
    from private.releases r
    where r.vps_id = p_vps and r.account_id = a.id
      and (a.status, a.status_reason) is distinct from ('disconnected', r.reason)
      and a.id = any (array(
        select t.id from public.trading_accounts t join public.account_vps_assignments s on s.account_id = t.id
        where t.id = any (v_released) and s.vps_id = p_vps for no key update of t skip locked));
  end if;
end
$$;
comment on function private.show_releases(uuid) is
  'Sets the status of accounts that this VPS has released to disconnected, with the reason, until another VPS takes '
  'them.';

create function private.release_unreadable(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account uuid;
begin
  if jsonb_typeof(p_accounts) is distinct from 'array' or p_accounts = '[]' then
    return;
  end if;
  for v_account in
    select s.account_id from public.account_vps_assignments s where s.vps_id = p_vps and p_accounts ? s.account_id::text
    order by 1
  loop
    perform private.release_account(p_vps, v_account,
      'unreadable_assignment: the agent of its VPS cannot read what the database sent about the account; the log of '
      'that agent names the field');
  end loop;
end
$$;
comment on function private.release_unreadable(uuid, jsonb) is
  'Releases the accounts of the VPS whose entries in the last answer its agent could not read: p_accounts, an array.';

-- The explanations of the codes in docs/errors.md, for alerts.
create function private.unfit_words(p_unfit text) returns text
language sql immutable
set search_path = ''
as $$
  select case p_unfit
    when 'journal_unwritable'
      then 'its agent cannot write its journal: free disk space, or check the owner of its data directory'
    when 'loop_stalled' then
      'its agent stood still for over two seconds three times in a minute: see what else runs on the machine'
    when 'low_disk' then 'it has under 50 MB of disk left where its agent keeps the journal: free some'
    when 'low_memory' then 'it has under 50 MB of memory left: see what uses it'
    when 'clock_drift' then 'its wall clock drifts by over a second a minute: see its time service'
  end
$$;
comment on function private.unfit_words(text) is
  'What is wrong with an agent that is unfit for this reason, and what to do; null: there is no such reason.';
