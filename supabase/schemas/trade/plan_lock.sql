-- One row per account: the lock that every plan about the account holds.

create table private.plan_locks (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade
);
comment on table private.plan_locks is
  'Every planning transaction first locks the rows of its accounts, in a statement of its own and in order of '
  'account_id; only later statements read and plan.';
alter table private.plan_locks enable row level security;

create function private.make_plan_lock() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into private.plan_locks (account_id) values (new.id) on conflict do nothing;
  return null;
end $$;
create trigger plan_lock_for_every_account after insert on public.trading_accounts
  for each row execute function private.make_plan_lock();
