-- Positions: the mirror of what every account holds, as its agent last saw it.

create table private.plan_locks (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade
);
comment on table private.plan_locks is
  'Every planning transaction locks the rows of its accounts first, in a statement of its own and in order of account_id; only later statements read and plan.';
alter table private.plan_locks enable row level security;

create function private.make_plan_lock() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into private.plan_locks (account_id) values (new.id) on conflict do nothing;
  return null;
end $$;
create trigger plan_lock_for_every_account after insert on public.trading_accounts
  for each row execute function private.make_plan_lock();

-- Locks the accounts and returns the moment after the last wait: plans are made from there on.
create function private.lock_accounts(p_accounts uuid[]) returns timestamptz
language plpgsql security definer set search_path = '' as $$
begin
  perform 1 from private.plan_locks where account_id = any (p_accounts) order by account_id for no key update;
  return clock_timestamp();
end $$;

create table public.positions (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  ticket text not null,
  user_id uuid not null,
  kind text not null,
  symbol text not null,
  side text not null,
  order_type text,
  lots numeric not null,
  price numeric not null,
  sl numeric,
  tp numeric,
  magic text,
  comment text,
  tag bigint,
  opened_at timestamptz,
  expires_at timestamptz,
  session bigint not null,
  seq bigint not null,
  existing boolean not null default false,
  released boolean not null default false,
  absent_snapshots integer not null default 0,
  unseen_at timestamptz not null,
  detected_at timestamptz not null,
  first_seen_at timestamptz not null,
  filled_at timestamptz,
  changed_at timestamptz not null,
  last_event_id bigint,
  replaced_by text,
  closed_at timestamptz,
  close_reason text,
  primary key (account_id, ticket),
  constraint kind_is_known check (kind in ('position', 'order')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint order_type_is_known check (order_type in ('limit', 'stop')),
  constraint lots_not_negative check (lots >= 0),
  constraint gone_means_closed check ((lots = 0) = (closed_at is not null))
);
comment on table public.positions is
  'Mirror of what an account holds: positions and pending orders. Closed rows stay as tombstones, so that a late message cannot bring them back.';
comment on column public.positions.session is 'with seq: number of the last message that changed or confirmed the row; a lower number never overrules it';
comment on column public.positions.existing is 'was there in the first snapshot ever made of the account: never copied by itself';
comment on column public.positions.released is 'was a copy and is the user''s own now: its copier was removed with preserve';
comment on column public.positions.absent_snapshots is 'good snapshots in a row without it; two close it when history does not explain it';
comment on column public.positions.filled_at is 'when the pending order that this position was became it; null = it never was one';
comment on column public.positions.unseen_at is 'last moment the account was seen without the open or increase: the age of the news is counted from here';
comment on column public.positions.tag is 'number of the execution that made it, when it is a copy of ours';
comment on column public.positions.last_event_id is 'trade event that last changed it';

-- the mirror of an account as it stands: snapshots, netting ledgers, dashboards
create index positions_open on public.positions (account_id, symbol) where closed_at is null;
-- retention
create index positions_closed on public.positions (closed_at) where closed_at is not null;
create index positions_of_user on public.positions (user_id) where closed_at is null;

alter table public.positions enable row level security;
create policy "own positions are readable" on public.positions for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.positions to authenticated, service_role;
