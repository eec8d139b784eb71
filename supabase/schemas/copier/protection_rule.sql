-- Protection rules: limits on an account's money, the action when one is reached, and the present state of each rule.
-- The logic is in planner/protection.sql.

create table public.protection_rules (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  threshold numeric not null,
  action text not null default 'close_all_and_off',
  close_manual boolean not null default true,
  confirm_ms integer not null default 250,
  time_zone text not null default 'UTC',
  enabled boolean not null default true,
  of text,
  basis text not null default 'equity',
  day_begins time not null default '00:00',
  cushion_percent numeric not null default 0,
  warn_percent numeric not null default 70,
  moves_with text not null default 'equity',
  locks_at numeric,
  would_breach text,
  count_balance_operations boolean not null default false,
  -- present state
  warned_day date,
  day date,
  day_start_equity numeric,
  day_start_at timestamptz,
  high_water_mark numeric,
  breached_at timestamptz,
  breached_equity numeric,
  triggered_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint kind_is_known check (kind in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target',
    'max_margin_use', 'daily_profit')),
  constraint action_is_known check (action in ('notify', 'monitor', 'close_all', 'close_all_until_next_day',
    'close_all_and_off')),
  constraint threshold_in_range check (threshold > 0 and case
    when of = 'amount' then threshold < 1e12
    when kind in ('daily_loss', 'trailing_drawdown') then threshold < 100
    when kind in ('max_margin_use', 'daily_profit') or of = 'initial' then threshold <= 1000
    else threshold < 1e12 end),
  constraint of_is_known check (of in ('day_start', 'high', 'initial', 'amount')),
  constraint basis_is_known check (basis in ('equity', 'balance', 'higher')),
  constraint moves_with_is_known check (moves_with in ('equity', 'day_end_balance')),
  constraint would_breach_is_known check (would_breach in ('refuse', 'shrink', 'ignore')),
  constraint locks_at_in_range check (locks_at > 0 and locks_at < 1e12),
  constraint percentages_in_range check (cushion_percent >= 0 and cushion_percent < 100 and warn_percent >= 0
    and warn_percent < 100),
  constraint confirm_in_range check (confirm_ms between 250 and 60000)
) with (fillfactor = 70);
comment on table public.protection_rules is
  'Limits on an account''s money and what happens when one is reached. A rule triggers once; it must be reset before '
  'it can trigger again. An account may have several rules of a kind; each is judged by itself.';
comment on column public.protection_rules.kind is
  'daily_loss and daily_profit (against the day''s start), trailing_drawdown (against the highest equity or day-end '
  'balance), equity_floor, equity_target, max_margin_use (margin as a share of equity).';
comment on column public.protection_rules.threshold is
  'Percent or money of the account, as "of" says. Reaching the limit exactly triggers.';
comment on column public.protection_rules.of is
  'What threshold is: percent of the day''s start (day_start), of the high (high), of the account''s initial balance '
  '(initial), or money (amount). Null: day_start for daily rules, high for trailing_drawdown, amount for equity_floor '
  'and equity_target.';
comment on column public.protection_rules.basis is
  'Daily rules: the day''s start is the equity, the balance, or the higher of the two at that time.';
comment on column public.protection_rules.day_begins is 'Time of day in time_zone at which the day begins.';
comment on column public.protection_rules.cushion_percent is
  'The rule acts when 100 minus this percentage of its allowance is used; 0: at the limit itself.';
comment on column public.protection_rules.warn_percent is
  'An alert, once a day, when this percentage of the allowance is used; 0: none.';
comment on column public.protection_rules.moves_with is
  'trailing_drawdown: the limit follows the highest equity, or the highest balance at the end of a day.';
comment on column public.protection_rules.locks_at is
  'trailing_drawdown: the limit stops rising at this amount; null: never.';
comment on column public.protection_rules.would_breach is
  'What becomes of an open whose stop, hit together with those already open, would cross the limit: refuse, shrink or '
  'ignore. Null: refuse, and ignore for a rule that only notifies.';
comment on column public.protection_rules.count_balance_operations is
  'Whether deposits and withdrawals count as profits and losses: then they move nothing that the rule measures from.';
comment on column public.protection_rules.warned_day is 'The last day with an alert of warn_percent.';
comment on column public.protection_rules.action is
  'notify (an alert only); monitor (nothing more is opened); close_all (flatten, then continue); '
  'close_all_until_next_day (flatten, open nothing until the day''s end, then continue); close_all_and_off (flatten, '
  'then off).';
comment on column public.protection_rules.close_manual is
  'Whether closing includes positions that the user opened by hand.';
comment on column public.protection_rules.confirm_ms is
  'A second look at least this long after the first must agree, so that one bad tick closes nothing.';
comment on column public.protection_rules.time_zone is 'The time zone of day_begins.';
comment on column public.protection_rules.enabled is 'Whether the rule is checked.';
comment on column public.protection_rules.day is
  'The rule''s present day: the date in time_zone on which it began.';
comment on column public.protection_rules.day_start_equity is
  'Daily rules: the amount that the day''s loss or profit is measured from, as basis says.';
comment on column public.protection_rules.day_start_at is
  'When that amount was measured, or since when a trailing_drawdown measures.';
comment on column public.protection_rules.high_water_mark is
  'trailing_drawdown: the highest equity that two consecutive looks have reached, or the highest day-end balance.';
comment on column public.protection_rules.breached_at is
  'Time of the first look past the limit; the next look confirms or contradicts it.';
comment on column public.protection_rules.breached_equity is 'Equity of that look.';
comment on column public.protection_rules.triggered_at is
  'When the rule triggered. It stays quiet until the next day (daily rules) or until reset_protection().';
create index protection_rules_of_account on public.protection_rules (account_id, kind);
create index protection_rules_of_user on public.protection_rules (user_id);
alter table public.protection_rules enable row level security;
create policy "own protection rules are readable" on public.protection_rules for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.protection_rules for each row execute function private.touch();
create trigger audited after insert or delete
  or update of kind, threshold, action, close_manual, confirm_ms, time_zone, enabled, of, basis, day_begins,
    cushion_percent, warn_percent, moves_with, locks_at, would_breach,
    count_balance_operations, triggered_at
    on public.protection_rules
  for each row execute function private.audit('id', 'user_id', 'account_id', 'kind', 'threshold', 'action',
    'close_manual', 'confirm_ms',
    'time_zone', 'enabled', 'of', 'basis', 'day_begins', 'cushion_percent', 'warn_percent', 'moves_with', 'locks_at',
    'would_breach', 'count_balance_operations', 'triggered_at');

create table public.protection_looks (
  id bigint generated always as identity primary key,
  rule_id uuid not null,
  user_id uuid not null,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  at timestamptz not null,
  equity numeric not null,
  margin numeric,
  reached numeric not null,
  outcome text not null,
  created_at timestamptz not null default now(),
  constraint outcome_is_known check (outcome in ('first', 'contradicted', 'confirmed'))
);
comment on table public.protection_looks is
  'Evidence: looks at an account''s funds that were past a protection rule, whether the next look confirmed them or '
  'not.';
comment on column public.protection_looks.rule_id is 'The rule; it may have been removed since.';
comment on column public.protection_looks.at is 'When the figures were measured.';
comment on column public.protection_looks.reached is
  'The value that equity was compared with, cushion included; for max_margin_use, the percentage.';
comment on column public.protection_looks.outcome is
  'first: a look past the limit; contradicted or confirmed: the look that followed it.';
create index protection_looks_of_rule on public.protection_looks (rule_id, at);
create index protection_looks_of_user on public.protection_looks (user_id, created_at);

-- retention
create index protection_looks_by_time on public.protection_looks (created_at);
alter table public.protection_looks enable row level security;
create policy "own protection looks are readable" on public.protection_looks for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.protection_rules, public.protection_looks to authenticated, service_role;
