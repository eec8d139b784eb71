-- account_days: equity and balance of an account, day by day, in its owner's time zone.

create table public.account_days (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  day date not null,
  user_id uuid not null references auth.users (id) on delete cascade,
  time_zone text not null,
  ends_at timestamptz not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  first_equity numeric not null,
  min_equity numeric not null,
  max_equity numeric not null,
  last_equity numeric not null,
  first_balance numeric not null,
  min_balance numeric not null,
  max_balance numeric not null,
  last_balance numeric not null,
  primary key (account_id, day),
  constraint times_are_in_order check (first_at <= last_at and last_at < ends_at),
  constraint equity_is_within check (first_equity between min_equity and max_equity
    and last_equity between min_equity and max_equity),
  constraint balance_is_within check (first_balance between min_balance and max_balance
    and last_balance between min_balance and max_balance)
);
comment on table public.account_days is
  'First, lowest, highest and last equity and balance of each account and day. A day on which nothing was measured has '
  'no row. Between two measurements equity may have been lower or higher.';
comment on column public.account_days.account_id is 'The account.';
comment on column public.account_days.day is 'The date, in time_zone.';
comment on column public.account_days.user_id is 'Owner of the account.';
comment on column public.account_days.time_zone is
  'The owner''s time zone when the day began (user_preferences; UTC if none). A zone chosen later holds from the next '
  'day.';
comment on column public.account_days.ends_at is 'When the day ends; figures from then on belong to the next row.';
comment on column public.account_days.first_at is 'When the first figures of the day were measured.';
comment on column public.account_days.last_at is 'When the last figures of the day were measured.';
comment on column public.account_days.first_equity is 'First equity of the day, in the account''s currency.';
comment on column public.account_days.min_equity is 'Lowest measured equity of the day.';
comment on column public.account_days.max_equity is 'Highest measured equity of the day.';
comment on column public.account_days.last_equity is 'Last measured equity of the day.';
comment on column public.account_days.first_balance is 'First balance of the day, in the account''s currency.';
comment on column public.account_days.min_balance is 'Lowest measured balance of the day.';
comment on column public.account_days.max_balance is 'Highest measured balance of the day.';
comment on column public.account_days.last_balance is 'Last measured balance of the day.';
create index account_days_of_user on public.account_days (user_id, day);
-- retention
create index account_days_by_day on public.account_days (day);
alter table public.account_days enable row level security;
create policy "users see the days of their accounts, operators all" on public.account_days for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.account_days to authenticated, service_role;
