-- account_vps_assignments: which VPS works an account. The epoch fences off the VPS that worked it before.

create table public.account_vps_assignments (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade,
  vps_id uuid not null references public.vps_instances (id),
  epoch bigint not null default 1,
  begins_at timestamptz not null default now(),
  previous_vps_id uuid references public.vps_instances (id),
  assigned_at timestamptz not null default now(),
  constraint epoch_counts_from_one check (epoch >= 1)
);
comment on table public.account_vps_assignments is
  'The one VPS that works an account. Earlier assignments are in audit_log.';
comment on column public.account_vps_assignments.account_id is 'The account.';
comment on column public.account_vps_assignments.vps_id is 'The VPS that works it.';
comment on column public.account_vps_assignments.epoch is
  'Fencing token: grows with each move; calls with an older epoch are refused.';
comment on column public.account_vps_assignments.begins_at is
  'Until then the agent may read but not trade, because the previous VPS may still send orders.';
comment on column public.account_vps_assignments.previous_vps_id is
  'The VPS that begins_at waits for; null once it has given the account up.';
comment on column public.account_vps_assignments.assigned_at is 'When it was assigned.';

-- accounts of a VPS: heartbeat, load, failover
create index assignments_of_vps on public.account_vps_assignments (vps_id);

-- accounts that wait for a VPS to give them up: heartbeat
create index assignments_waiting_for_vps on public.account_vps_assignments (previous_vps_id)
  where previous_vps_id is not null;
alter table public.account_vps_assignments enable row level security;
create policy "users see where their accounts are, operators all"
  on public.account_vps_assignments for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

-- Every function by which an agent acts on an account calls this first.
create function private.require_assignment(p_vps uuid, p_account uuid, p_epoch bigint) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_lease_expires_at timestamptz;
begin
  select v.lease_expires_at into v_lease_expires_at
  from public.account_vps_assignments s
  join public.vps_instances v on v.id = s.vps_id
  where s.account_id = p_account and s.vps_id = p_vps and s.epoch = p_epoch;
  if not found then
    raise exception using errcode = 'TC103', message = 'the account is not assigned to this VPS with this epoch',
      detail = format('account %s, epoch %s', p_account, p_epoch),
      hint = 'Stop trading the account and send a heartbeat.';
  end if;
  if v_lease_expires_at <= clock_timestamp() then
    raise exception using errcode = 'TC104', message = 'the lease of this VPS is over',
      detail = format('since %s', v_lease_expires_at), hint = 'Renew it with a heartbeat first.';
  end if;
end
$$;
comment on function private.require_assignment(uuid, uuid, bigint) is
  'Raises TC103 unless the account is assigned to the VPS with this epoch, and TC104 if the lease of the VPS is over.';
grant select on public.account_vps_assignments to authenticated, service_role;
