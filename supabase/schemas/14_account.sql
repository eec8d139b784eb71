-- trading_accounts: what users connect; the instruments each account knows, and its equity over time.

create table public.trading_accounts (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete restrict,
  platform text not null,
  server text not null,
  login text not null,
  name text not null,
  mode text not null default 'hedging',
  currency text not null default 'USD',
  leverage integer,
  balance numeric,
  equity numeric,
  margin numeric,
  free_margin numeric,
  funds_at timestamptz,
  status text not null default 'pending',
  status_reason text,
  status_at timestamptz not null default now(),
  session bigint not null default 0,
  session_vps_id uuid references public.vps_instances (id) on delete set null,
  session_opened_at timestamptz,
  snapshot_session bigint not null default 0,
  seen_at timestamptz,
  copy_state text not null default 'on',
  copy_state_reason text,
  flatten_manual boolean not null default false,
  flatten_then text not null default 'off',
  flat_snapshots integer not null default 0,
  flattened_at timestamptz,
  secret_id uuid,
  settings jsonb not null default '{}',
  symbol_prefix text not null default '',
  symbol_suffix text not null default '',
  removed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint names_are_short check (length(name) between 1 and 100 and length(server) between 1 and 200
    and length(login) between 1 and 100),
  constraint mode_is_known check (mode in ('hedging', 'netting')),
  constraint currency_is_a_code check (currency ~ '^[A-Z0-9]{2,10}$'),
  constraint leverage_is_positive check (leverage > 0),
  constraint status_is_known check (status in ('pending', 'connecting', 'connected', 'degraded', 'disconnected', 'halted')),
  constraint copy_state_is_known check (copy_state in ('on', 'monitor', 'off', 'flattening')),
  constraint flatten_then_is_known check (flatten_then in ('on', 'monitor', 'off')),
  constraint settings_are_an_object check (jsonb_typeof(settings) = 'object')
) with (fillfactor = 70);
comment on table public.trading_accounts is 'A user''s account at a broker. Master or follower is what it is inside a copier, never a kind of account.';
comment on column public.trading_accounts.id is 'Number of the account.';
comment on column public.trading_accounts.user_id is 'Whose it is. A user with accounts cannot be deleted: close them first.';
comment on column public.trading_accounts.platform is 'Platform, a key of the setting "platforms".';
comment on column public.trading_accounts.server is 'Broker''s server, as the platform names it.';
comment on column public.trading_accounts.login is 'Login at the broker.';
comment on column public.trading_accounts.name is 'What its user calls it.';
comment on column public.trading_accounts.mode is 'hedging (a position per trade) or netting (one per symbol).';
comment on column public.trading_accounts.currency is 'Currency of its money.';
comment on column public.trading_accounts.leverage is 'Leverage, 100 means 1:100.';
comment on column public.trading_accounts.balance is 'Balance in currency.';
comment on column public.trading_accounts.equity is 'Equity in currency.';
comment on column public.trading_accounts.margin is 'Margin in use, in currency.';
comment on column public.trading_accounts.free_margin is 'Free margin in currency.';
comment on column public.trading_accounts.funds_at is 'When the four figures were measured.';
comment on column public.trading_accounts.status is 'pending (never connected), connecting, connected, degraded, disconnected, halted (the broker refuses trading or the password).';
comment on column public.trading_accounts.status_reason is 'What its agent says about the status.';
comment on column public.trading_accounts.status_at is 'When the status last changed.';
comment on column public.trading_accounts.session is 'Number of the last login that was opened; events and reports are numbered within it.';
comment on column public.trading_accounts.session_vps_id is 'The VPS that opened it.';
comment on column public.trading_accounts.session_opened_at is 'When it was opened.';
comment on column public.trading_accounts.snapshot_session is 'The last session whose first snapshot was applied.';
comment on column public.trading_accounts.seen_at is 'Last moment its agent had it connected and clean: a change found after a gap is as old as this.';
comment on column public.trading_accounts.copy_state is 'on; monitor (decide, place nothing); off (leave everything alone); flattening (closing all, then off).';
comment on column public.trading_accounts.copy_state_reason is 'What set copy_state when it was not its user: the kind of a protection rule, or stop_out.';
comment on column public.trading_accounts.flatten_then is 'The copy_state that follows when it is flat.';
comment on column public.trading_accounts.flatten_manual is 'Whether flattening closes what the user opened by hand, too.';
comment on column public.trading_accounts.flat_snapshots is 'Good snapshots in a row that showed nothing left while flattening; two end it.';
comment on column public.trading_accounts.flattened_at is 'When it was last flattened: copies from before are closed, even those that turn up later.';
comment on column public.trading_accounts.secret_id is 'Its password in Vault; null: it needs none.';
comment on column public.trading_accounts.settings is 'What its platform wants to know besides; no secrets.';
comment on column public.trading_accounts.symbol_prefix is 'What its broker puts before symbols, learned from those known everywhere.';
comment on column public.trading_accounts.symbol_suffix is 'What its broker puts after symbols, learned from those known everywhere.';
comment on column public.trading_accounts.removed_at is 'When its user removed it; the row stays for the history.';
comment on column public.trading_accounts.created_at is 'When it was connected first.';
comment on column public.trading_accounts.updated_at is 'When the row last changed. Not indexed: the figures change every few seconds, and an index would cost more than the scan once a second.';

-- one connection per account at a broker, whoever owns it; a removed one may be connected again
create unique index account_is_connected_once on public.trading_accounts (platform, server, login) where removed_at is null;
-- a user's accounts, and the policies of everything that hangs on them
create index accounts_of_user on public.trading_accounts (user_id);

alter table public.trading_accounts enable row level security;
create policy "users see their accounts, operators all" on public.trading_accounts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));

create trigger touch before update on public.trading_accounts for each row execute function private.touch();


create table public.account_symbols (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  name text not null,
  contract_size numeric not null,
  tick_size numeric not null,
  digits integer not null,
  profit_currency text not null,
  margin_currency text not null,
  lots_min numeric not null,
  lots_max numeric not null,
  lots_step numeric not null,
  stops_level_points integer not null default 0,
  freeze_level_points integer not null default 0,
  trade_mode text not null default 'full',
  bid numeric,
  ask numeric,
  quoted_at timestamptz,
  updated_at timestamptz not null default now(),
  primary key (account_id, name),
  constraint contract_size_is_positive check (contract_size > 0 and contract_size < 'Infinity'),
  constraint tick_size_is_positive check (tick_size > 0 and tick_size < 'Infinity'),
  constraint digits_are_few check (digits between 0 and 15),
  -- NaN is greater than everything to Postgres: every figure needs an upper bound
  constraint lots_fit check (lots_min > 0 and lots_step > 0 and lots_min <= lots_max and lots_step <= lots_max and lots_max < 'Infinity'),
  constraint stops_level_is_not_negative check (stops_level_points >= 0),
  constraint freeze_level_is_not_negative check (freeze_level_points >= 0),
  constraint trade_mode_is_known check (trade_mode in ('full', 'long_only', 'short_only', 'close_only', 'disabled')),
  constraint quote_is_positive check (bid > 0 and ask > 0 and bid < 'Infinity' and ask < 'Infinity')
) with (fillfactor = 80);
comment on table public.account_symbols is 'An instrument as one account sees it, with its last quote.';
comment on column public.account_symbols.account_id is 'The account.';
comment on column public.account_symbols.name is 'The broker''s name of the instrument, suffix included.';
comment on column public.account_symbols.contract_size is 'Units per lot.';
comment on column public.account_symbols.tick_size is 'Smallest step of the price, in price units.';
comment on column public.account_symbols.digits is 'Decimals of the price; a point is 10 to the minus digits.';
comment on column public.account_symbols.profit_currency is 'Currency in which profit arises.';
comment on column public.account_symbols.margin_currency is 'Currency in which margin is asked.';
comment on column public.account_symbols.lots_min is 'Smallest volume in lots.';
comment on column public.account_symbols.lots_max is 'Largest volume of one order in lots.';
comment on column public.account_symbols.lots_step is 'Step of the volume in lots.';
comment on column public.account_symbols.stops_level_points is 'Least distance of SL and TP from the price.';
comment on column public.account_symbols.freeze_level_points is 'Distance from the price within which SL and TP cannot be changed any more.';
comment on column public.account_symbols.trade_mode is 'What the broker allows: full, long_only, short_only, close_only, disabled.';
comment on column public.account_symbols.bid is 'Last bid.';
comment on column public.account_symbols.ask is 'Last ask.';
comment on column public.account_symbols.quoted_at is 'When the quote was seen, database clock.';
comment on column public.account_symbols.updated_at is 'When the row last changed.';

alter table public.account_symbols enable row level security;
create policy "users see symbols of their accounts, operators all" on public.account_symbols for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

create trigger touch before update on public.account_symbols for each row execute function private.touch();


create table public.account_snapshots (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  at timestamptz not null,
  balance numeric not null,
  equity numeric not null,
  margin numeric,
  free_margin numeric,
  primary key (account_id, at)
);
comment on table public.account_snapshots is 'Equity of an account over time, one row per snapshot_every_s.';
comment on column public.account_snapshots.account_id is 'The account.';
comment on column public.account_snapshots.at is 'Beginning of the interval that the row stands for.';
comment on column public.account_snapshots.balance is 'Balance in the account''s currency.';
comment on column public.account_snapshots.equity is 'Equity in the account''s currency.';
comment on column public.account_snapshots.margin is 'Margin in use.';
comment on column public.account_snapshots.free_margin is 'Free margin.';

-- retention
create index snapshots_by_time on public.account_snapshots (at);

alter table public.account_snapshots enable row level security;
create policy "users see the equity of their accounts, operators all" on public.account_snapshots for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

alter table public.connection_health_logs
  add constraint health_is_of_an_account foreign key (account_id) references public.trading_accounts (id) on delete cascade;
create policy "users see the health of their accounts, operators all" on public.connection_health_logs for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));


-- Every change of an account's connection leaves a row, whoever made it.
create function private.log_account_state() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.status_at := now();
  insert into public.connection_health_logs (kind, vps_id, account_id, status, previous_status, reason)
  values ('state', new.session_vps_id, new.id, new.status, old.status, new.status_reason);
  return new;
end
$$;
comment on function private.log_account_state() is 'Trigger: writes a change of an account''s status into connection_health_logs.';

create trigger log_state before update of status on public.trading_accounts for each row
  when (old.status is distinct from new.status) execute function private.log_account_state();


grant select on public.trading_accounts, public.account_symbols, public.account_snapshots to authenticated, service_role;
