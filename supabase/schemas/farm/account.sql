-- trading_accounts: the accounts that users connect. account_symbols: the instruments of each account.
-- account_snapshots: its equity over time.

create table public.trading_accounts (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete restrict,
  platform text not null,
  server text not null,
  login text not null,
  server_key text not null generated always as (private.plain_name(server)) stored,
  login_key text not null generated always as (private.plain_name(login)) stored,
  name text not null,
  mode text not null default 'hedging',
  currency text not null default 'USD',
  leverage integer,
  balance numeric,
  equity numeric,
  margin numeric,
  free_margin numeric,
  funds_at timestamptz,
  initial_balance numeric,
  initial_balance_at timestamptz,
  initial_moved numeric not null default 0,
  guarded boolean not null default false,
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
  flat_from timestamptz,
  flat_until timestamptz,
  resumes_at timestamptz,
  quiet_minutes_before integer not null default 0,
  quiet_minutes_after integer not null default 0,
  quiet_levels_wait boolean not null default false,
  quiet_own_windows boolean not null default true,
  secret_id uuid,
  claim text not null default 'unproven',
  proven_at timestamptz,
  password_is_new boolean not null default false,
  settings jsonb not null default '{}',
  revision bigint not null default 1,
  symbol_prefix text not null default '',
  symbol_suffix text not null default '',
  symbol_affix_proven boolean not null default false,
  symbols_complete boolean,
  has_unread boolean not null default false,
  removed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint names_are_short check (length(name) between 1 and 100 and length(server) between 1 and 100
    and length(login) between 1 and 100),
  constraint mode_is_known check (mode in ('hedging', 'netting')),
  constraint currency_is_a_code check (currency ~ '^[A-Z0-9]{2,10}$'),
  constraint leverage_is_positive check (leverage > 0),
  constraint status_is_known check (status in ('pending', 'connecting', 'connected', 'degraded', 'disconnected',
    'halted')),
  constraint copy_state_is_known check (copy_state in ('on', 'monitor', 'off', 'flattening')),
  constraint flatten_then_is_known check (flatten_then in ('on', 'monitor', 'off')),
  constraint quiet_minutes_are_at_most_a_day check (quiet_minutes_before between 0 and 1440
    and quiet_minutes_after between 0 and 1440),
  constraint claim_is_known check (claim in ('unproven', 'investor', 'trading', 'given_way', 'ended')),
  constraint initial_balance_in_range check (abs(initial_balance) < 1e16),
  constraint settings_are_an_object check (jsonb_typeof(settings) = 'object')
) with (fillfactor = 70);
comment on table public.trading_accounts is
  'A user''s account at a broker. Master and follower are roles in a copier, not kinds of account.';
comment on column public.trading_accounts.id is 'ID of the account.';
comment on column public.trading_accounts.user_id is
  'The user that it belongs to. A user with accounts cannot be deleted: remove the accounts first.';
comment on column public.trading_accounts.platform is 'The platform, a key of the setting "platforms".';
comment on column public.trading_accounts.server is 'The broker''s server, as the platform names it.';
comment on column public.trading_accounts.login is 'The login at the broker.';
comment on column public.trading_accounts.server_key is
  'The server name without differences of case and blanks, for comparison.';
comment on column public.trading_accounts.login_key is
  'The login without differences of case and blanks, for comparison: "ABC " and "abc" are one account at the broker.';
comment on column public.trading_accounts.name is 'The name that its user gave it.';
comment on column public.trading_accounts.mode is 'hedging (one position per trade) or netting (one per symbol).';
comment on column public.trading_accounts.currency is 'Currency of balance, equity and margin.';
comment on column public.trading_accounts.leverage is 'Leverage; 100 means 1:100.';
comment on column public.trading_accounts.balance is 'Balance in currency.';
comment on column public.trading_accounts.equity is 'Equity in currency.';
comment on column public.trading_accounts.margin is 'Margin in use, in currency.';
comment on column public.trading_accounts.free_margin is 'Free margin in currency.';
comment on column public.trading_accounts.funds_at is
  'When balance, equity, margin and free_margin were measured.';
comment on column public.trading_accounts.initial_balance is
  'What the account began with, in currency: set by its user, otherwise the first balance above 0 that was known. '
  'Protection rules may measure from it. Deposits and withdrawals move it.';
comment on column public.trading_accounts.guarded is
  'Whether a protection rule judges its opens by their stops (would_breach).';
comment on column public.trading_accounts.initial_balance_at is
  'When the figures were measured that were known when initial_balance was set; later balance operations move it.';
comment on column public.trading_accounts.initial_moved is
  'By how much balance operations have moved initial_balance since it was set.';
comment on column public.trading_accounts.status is
  'pending (never connected), connecting, connected, degraded, disconnected, halted (the broker refuses trading or the '
  'password).';
comment on column public.trading_accounts.status_reason is 'Why, as its agent reported it.';
comment on column public.trading_accounts.status_at is 'When the status last changed.';
comment on column public.trading_accounts.session is
  'Number of the last session that was opened; events and reports are numbered within it.';
comment on column public.trading_accounts.session_vps_id is 'The VPS that opened the session.';
comment on column public.trading_accounts.session_opened_at is 'When the session was opened.';
comment on column public.trading_accounts.snapshot_session is 'The last session whose first snapshot was applied.';
comment on column public.trading_accounts.seen_at is
  'When its agent last reported it as connected with its snapshot applied. A change found after a gap is dated to this '
  'time.';
comment on column public.trading_accounts.copy_state is
  'on; monitor (decide, but open nothing); off (change nothing); flattening (close everything, then flatten_then).';
comment on column public.trading_accounts.copy_state_reason is
  'What set copy_state if it was not the user: the kind of a protection rule, or stop_out.';
comment on column public.trading_accounts.flatten_then is 'The copy_state that follows once the account is flat.';
comment on column public.trading_accounts.flatten_manual is
  'Whether flattening also closes positions that the user opened by hand.';
comment on column public.trading_accounts.flat_snapshots is
  'Complete snapshots in a row that showed nothing left while flattening; two end the flattening.';
comment on column public.trading_accounts.flattened_at is
  'When the account was last flattened. A copy of an earlier trade is closed even if it turns up later.';
comment on column public.trading_accounts.flat_from is
  'From then until flat_until nothing is opened on it (flat_by); null: it has no flat time. The table flat_times says '
  'which.';
comment on column public.trading_accounts.flat_until is 'When copying into it goes on by itself.';
comment on column public.trading_accounts.resumes_at is
  'When copying goes on by itself after a daily protection rule closed everything; null: it was not stopped so.';
comment on column public.trading_accounts.quiet_minutes_before is
  'A quiet window begins so many minutes earlier for it.';
comment on column public.trading_accounts.quiet_minutes_after is
  'A quiet window ends so many minutes later for it.';
comment on column public.trading_accounts.quiet_levels_wait is
  'Whether changes of stop loss, take profit and pending orders wait until a quiet window is over.';
comment on column public.trading_accounts.quiet_own_windows is
  'Whether its user''s own quiet windows concern it; those for everybody always do.';
comment on column public.trading_accounts.secret_id is 'Its password in Vault; null: it has none.';
comment on column public.trading_accounts.claim is
  'State of the user''s claim: unproven (no login yet); trading or investor (proven with that password); given_way (it '
  'was proven with the investor password, then another user logged in with the trading password); ended (another user '
  'proved it).';
comment on column public.trading_accounts.proven_at is
  'When an agent first logged in with the claim; null: the claim is not proven.';
comment on column public.trading_accounts.password_is_new is
  'No login with the present password has been tried yet, so the next one need not wait.';
comment on column public.trading_accounts.settings is 'Other settings that its platform needs; no secrets.';
comment on column public.trading_accounts.revision is
  'Grows with each change of settings or password; the agent then logs in again.';
comment on column public.trading_accounts.symbol_prefix is
  'What its broker puts before symbol names, learned from well-known names.';
comment on column public.trading_accounts.symbol_suffix is
  'What its broker puts after symbol names, learned from well-known names.';
comment on column public.trading_accounts.has_unread is
  'Whether its last snapshot had entries that could not be taken: they count as open and unknown.';
comment on column public.trading_accounts.symbols_complete is
  'Whether its list of symbols was ever told completely; null: its agent does not say, which counts as complete.';
comment on column public.trading_accounts.symbol_affix_proven is
  'Whether prefix and suffix are on at least five of its well-known symbols and on more than half of them, so that '
  'they are also taken off names that are not well known.';
comment on column public.trading_accounts.removed_at is 'When its user removed it; the row is kept for the history.';
comment on column public.trading_accounts.created_at is 'When it was first connected.';
comment on column public.trading_accounts.updated_at is
  'When the row last changed. Not indexed: the figures change every few seconds, so an index would cost more than the '
  'scan that runs once a second.';

-- one owner per account at a broker; several unproven claims may exist side by side
create unique index account_is_proven_once on public.trading_accounts (platform, server_key, login_key)
  where removed_at is null and claim in ('investor', 'trading');

-- every claim on a login, at most one per user; a removed account may be connected again
create unique index account_is_claimed_once_by_a_user
  on public.trading_accounts (platform, server_key, login_key, user_id) where removed_at is null;

-- resume_accounts
create index accounts_that_resume on public.trading_accounts (resumes_at) where resumes_at is not null;

-- a user's accounts; the policies of tables that refer to an account
create index accounts_of_user on public.trading_accounts (user_id);
alter table public.trading_accounts enable row level security;
create policy "users see their accounts, operators all" on public.trading_accounts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.trading_accounts for each row execute function private.touch();

-- Runs for every writer of settings. A password that changes inside Vault is counted by update_account().
create function private.count_revision() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.revision := greatest(new.revision, old.revision + 1);
  return new;
end
$$;
comment on function private.count_revision() is
  'Trigger: raises the revision when the settings of an account change.';
create trigger count_revision before update of settings on public.trading_accounts for each row
  when (old.settings is distinct from new.settings) execute function private.count_revision();

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
  allow_negative boolean not null default false,
  bid numeric,
  ask numeric,
  quoted_at timestamptz,
  updated_at timestamptz not null default now(),
  primary key (account_id, name),
  constraint contract_size_is_positive check (contract_size > 0 and contract_size < 'Infinity'),
  constraint tick_size_is_positive check (tick_size > 0 and tick_size < 'Infinity'),
  constraint digits_are_few check (digits between 0 and 15),
  -- Postgres sorts NaN above every number, so each figure needs an upper bound
  constraint lots_fit check (lots_min > 0 and lots_step > 0 and lots_min <= lots_max and lots_step <= lots_max
    and lots_max < 'Infinity'),
  constraint stops_level_is_not_negative check (stops_level_points >= 0),
  constraint freeze_level_is_not_negative check (freeze_level_points >= 0),
  constraint trade_mode_is_known check (trade_mode in ('full', 'long_only', 'short_only', 'close_only', 'disabled')),
  -- without a price many brokers report 0; a bid below 0 is one (oil in April 2020)
  constraint quote_is_a_price check (
    (bid > 0 and ask > 0 or bid < 0 and bid <= ask or allow_negative and bid <= ask) and bid > '-Infinity'
    and bid < 'Infinity' and ask < 'Infinity')
) with (fillfactor = 80);
comment on table public.account_symbols is 'An instrument as one account sees it, with its last quote.';
comment on column public.account_symbols.account_id is 'The account.';
comment on column public.account_symbols.name is 'The broker''s name of the instrument, prefix and suffix included.';
comment on column public.account_symbols.contract_size is 'Units per lot.';
comment on column public.account_symbols.tick_size is 'Smallest step of the price, in price units.';
comment on column public.account_symbols.digits is 'Decimals of the price; a point is 10 to the minus digits.';
comment on column public.account_symbols.profit_currency is 'Currency that profit is calculated in.';
comment on column public.account_symbols.margin_currency is 'Currency that margin is required in.';
comment on column public.account_symbols.lots_min is 'Smallest volume of an order in lots.';
comment on column public.account_symbols.lots_max is 'Largest volume of one order in lots.';
comment on column public.account_symbols.lots_step is 'Step of the volume in lots.';
comment on column public.account_symbols.stops_level_points is
  'Smallest distance of SL and TP from the price, in points.';
comment on column public.account_symbols.freeze_level_points is
  'Distance from the price, in points, within which SL and TP can no longer be changed.';
comment on column public.account_symbols.trade_mode is
  'What the broker allows: full, long_only, short_only, close_only, disabled.';
comment on column public.account_symbols.allow_negative is
  'Whether the broker says that prices of the instrument may be 0 or below.';
comment on column public.account_symbols.bid is 'Last bid.';
comment on column public.account_symbols.ask is 'Last ask.';
comment on column public.account_symbols.quoted_at is 'When the quote was read, by the database''s clock.';
comment on column public.account_symbols.updated_at is 'When the row last changed.';
alter table public.account_symbols enable row level security;
create policy "users see symbols of their accounts, operators all" on public.account_symbols for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));
-- Whether a price of 0 or below means something: the broker says so, or quotes one now.
create function private.may_be_negative(p_symbol public.account_symbols) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_symbol.allow_negative or p_symbol.bid < 0, false);
end $$;

-- Whether a quote is recent enough to judge by: an agent reports the quotes of symbols in use again and again.
create function private.quote_is_fresh(p_symbol public.account_symbols, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(p_symbol.bid is not null and p_symbol.ask is not null
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s'), false);
end $$;
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
comment on column public.account_snapshots.at is 'Beginning of the interval that the row covers.';
comment on column public.account_snapshots.balance is 'Balance in the account''s currency.';
comment on column public.account_snapshots.equity is 'Equity in the account''s currency.';
comment on column public.account_snapshots.margin is 'Margin in use, in the account''s currency.';
comment on column public.account_snapshots.free_margin is 'Free margin in the account''s currency.';

-- retention
create index snapshots_by_time on public.account_snapshots (at);
alter table public.account_snapshots enable row level security;
create policy "users see the equity of their accounts, operators all"
  on public.account_snapshots for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));
alter table public.connection_health_logs
  add constraint health_is_of_an_account foreign key (account_id) references public.trading_accounts (id)
    on delete cascade;
create policy "users see the health of their accounts, operators all"
  on public.connection_health_logs for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

-- Runs for every writer: each change of an account's status is logged.
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
comment on function private.log_account_state() is
  'Trigger: logs a change of an account''s status in connection_health_logs.';
create trigger log_state before update of status on public.trading_accounts for each row
  when (old.status is distinct from new.status) execute function private.log_account_state();
grant select on public.trading_accounts, public.account_symbols, public.account_snapshots to authenticated,
  service_role;
