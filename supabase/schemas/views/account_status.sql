-- The status of accounts as it is now, not as an agent said it last.

create view public.account_status with (security_invoker = true) as
select a.id as account_id, a.user_id, a.name, a.platform, s.status, s.reason, s.waits_for, s.since, a.seen_at
from public.trading_accounts a
cross join lateral private.account_status_now(a, clock_timestamp()) s
where a.removed_at is null;
comment on view public.account_status is
  'The status of every account, computed when it is read: an account whose agent has lost its lease, or does not show '
  'it, reads as disconnected although nothing has noticed it yet.';
comment on column public.account_status.status is
  'pending (not connected yet: see waits_for), connecting, connected, degraded, disconnected, halted, or weekend '
  '(closed for the weekend: its silence is no fault)';
comment on column public.account_status.reason is
  'why, in words; a code of docs/errors.md may precede them';
comment on column public.account_status.waits_for is
  'why an account that is pending, or that nobody works, has to wait, in words';
comment on column public.account_status.since is 'since when';
comment on column public.account_status.seen_at is 'when its agent last showed it as connected';
grant select on public.account_status to authenticated, service_role;
grant execute on function private.account_status_now(public.trading_accounts, timestamptz) to authenticated,
  service_role;
