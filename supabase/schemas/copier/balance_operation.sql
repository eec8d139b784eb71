-- Balance operations: deposits and withdrawals, as the broker numbers them. They are no profits or losses: what a
-- protection rule measures from moves by their amount.

create table public.balance_operations (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  number text not null,
  user_id uuid not null references auth.users (id) on delete cascade,
  kind text not null,
  amount numeric not null,
  made_at timestamptz not null,
  counted boolean not null,
  created_at timestamptz not null default now(),
  primary key (account_id, number),
  constraint kind_is_known check (kind in ('deposit', 'withdrawal')),
  constraint number_is_short check (length(number) between 1 and 64),
  constraint amount_in_range check (amount <> 0 and abs(amount) < 1e15)
);
comment on table public.balance_operations is
  'Deposits and withdrawals of accounts, each booked once by the broker''s own number. Never credit, bonus, swap or '
  'commission. Kept as long as the account, because a broker may tell its history again.';
comment on column public.balance_operations.number is 'The broker''s number of the operation.';
comment on column public.balance_operations.amount is
  'In the account''s currency: above 0 a deposit, below 0 a withdrawal.';
comment on column public.balance_operations.made_at is 'When the broker booked it.';
comment on column public.balance_operations.counted is
  'Whether protection rules were moved by it; false: it is older than the first figures that were known.';
create index balance_operations_of_user on public.balance_operations (user_id);
alter table public.balance_operations enable row level security;
create policy "own balance operations are readable" on public.balance_operations for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger audited after insert on public.balance_operations for each row
  execute function private.audit('number', 'user_id', 'account_id', 'number', 'kind', 'amount', 'made_at', 'counted');
grant select on public.balance_operations to authenticated, service_role;
