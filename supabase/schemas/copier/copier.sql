-- Copiers: the rule "copy this master to this follower", with sizing, filters, limits and symbol mappings.

-- Every sizing mode; planner/sizing.sql has their formulas.
create function private.sizing_modes() returns text[]
language sql immutable set search_path = '' as $$
  select array['multiplier', 'percentage', 'fixed', 'balance_ratio', 'equity_ratio', 'free_margin_ratio',
    'risk_percent']
$$;

-- 'a, b or c', for messages.
create function private.one_of(p_words text[]) returns text
language sql immutable set search_path = '' as $$
  select array_to_string(p_words[:cardinality(p_words) - 1], ', ') || ' or ' || p_words[cardinality(p_words)]
$$;

create table public.copiers (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  name text not null default '',
  master_account_id uuid not null references public.trading_accounts (id),
  follower_account_id uuid not null references public.trading_accounts (id),
  mode text not null default 'on',
  -- sizing; preview_copy's "copier" has the same keys
  sizing_mode text not null default 'multiplier',
  sizing_value numeric not null default 1,
  contract_alignment boolean not null default true,
  min_policy text not null default 'skip',
  max_risk_coefficient numeric not null default 5,
  max_policy text not null default 'cap',
  max_lots numeric,
  max_risk_percent numeric,
  max_leverage numeric,
  max_leverage_policy text not null default 'discard',
  sanity_factor numeric default 3,
  reverse boolean not null default false,
  -- levels, pending orders, timing, retries
  sl_mode text not null default 'price',
  tp_mode text not null default 'price',
  sl_points integer,
  tp_points integer,
  max_sl_points integer,
  copy_pending boolean not null default true,
  copy_existing text not null default 'none',
  copy_existing_points integer,
  pending_grace_ms integer not null default 2000,
  early_fill_policy text not null default 'close',
  max_age_ms integer not null default 5000,
  retry_window_s integer not null default 60,
  no_money_policy text not null default 'skip',
  delay_min_ms integer not null default 0,
  delay_max_ms integer not null default 0,
  lots_jitter_percent numeric not null default 0,
  max_slippage_points integer,
  comment text not null default '',
  -- what is copied; filters never apply to closes
  sides text not null default 'both',
  symbols_only text[] not null default '{}',
  symbols_except text[] not null default '{}',
  magic_only text[] not null default '{}',
  magic_except text[] not null default '{}',
  comment_only text[] not null default '{}',
  comment_except text[] not null default '{}',
  max_open_positions integer,
  max_open_lots numeric,
  max_trades_per_day integer,
  min_equity numeric,
  time_zone text not null default 'UTC',
  weekdays integer[] not null default '{1,2,3,4,5,6,7}',
  open_from time,
  open_until time,
  -- lifecycle
  started_at timestamptz not null default now(),
  existing_until timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  removal text,
  removed_at timestamptz,
  constraint accounts_differ check (master_account_id <> follower_account_id),
  constraint name_is_short check (length(name) <= 100),
  constraint mode_is_known check (mode in ('on', 'monitor', 'off')),
  constraint removal_is_known check (removal in ('preserve', 'close_gracefully', 'close_now')),
  constraint sizing_mode_is_known check (sizing_mode = any (private.sizing_modes())),
  constraint sizing_value_in_range check (sizing_value > 0 and sizing_value <= 100000),
  constraint sizing_value_fits_sizing_mode check (sizing_mode = 'percentage'
    or sizing_value <= case sizing_mode when 'risk_percent' then 100 else 1000 end),
  constraint min_policy_is_known check (min_policy in ('skip', 'force_min')),
  constraint max_policy_is_known check (max_policy in ('cap', 'split')),
  constraint max_leverage_policy_is_known check (max_leverage_policy in ('discard', 'shrink')),
  constraint max_risk_coefficient_in_range check (max_risk_coefficient between 1 and 1000),
  constraint max_lots_in_range check (max_lots > 0 and max_lots <= 1000000),
  constraint max_risk_percent_in_range check (max_risk_percent > 0 and max_risk_percent <= 100),
  constraint max_leverage_in_range check (max_leverage > 0 and max_leverage <= 1000000),
  constraint sanity_factor_in_range check (sanity_factor between 1 and 1000000),
  constraint sl_mode_is_known check (sl_mode in ('price', 'distance', 'fixed', 'none')),
  constraint tp_mode_is_known check (tp_mode in ('price', 'distance', 'fixed', 'none')),
  constraint sl_points_in_range check (sl_points between 1 and 1000000),
  constraint tp_points_in_range check (tp_points between 1 and 1000000),
  constraint max_sl_points_in_range check (max_sl_points between 1 and 1000000),
  constraint fixed_sl_has_points check (sl_mode <> 'fixed' or sl_points is not null),
  constraint fixed_tp_has_points check (tp_mode <> 'fixed' or tp_points is not null),
  constraint pending_grace_in_range check (pending_grace_ms between 0 and 60000),
  constraint early_fill_policy_is_known check (early_fill_policy in ('close', 'keep')),
  constraint copy_existing_is_known check (copy_existing in ('none', 'all', 'near')),
  constraint copy_existing_points_not_negative check (copy_existing_points >= 0),
  constraint near_says_how_near check (copy_existing <> 'near' or copy_existing_points is not null),
  constraint max_age_in_range check (max_age_ms between 100 and 600000),
  constraint retry_window_in_range check (retry_window_s between 0 and 3600),
  constraint delay_in_range check (delay_max_ms between 0 and 3000),
  constraint delay_min_within_max check (delay_min_ms between 0 and delay_max_ms),
  constraint lots_jitter_in_range check (lots_jitter_percent between 0 and 50),
  constraint no_money_policy_is_known check (no_money_policy in ('skip', 'shrink')),
  constraint max_slippage_not_negative check (max_slippage_points >= 0),
  constraint comment_is_short check (length(comment) <= 60),
  constraint comment_placeholders_are_known check (replace(replace(replace(comment, '{master}', ''), '{ticket}', ''),
    '{copier}', '') !~ '[{}]'),
  constraint sides_are_known check (sides in ('both', 'buy', 'sell')),
  constraint symbols_only_is_short check (private.is_list(symbols_only)),
  constraint symbols_except_is_short check (private.is_list(symbols_except)),
  constraint magic_only_is_short check (private.is_list(magic_only)),
  constraint magic_except_is_short check (private.is_list(magic_except)),
  constraint comment_only_is_short check (private.is_list(comment_only)),
  constraint comment_except_is_short check (private.is_list(comment_except)),
  constraint max_open_positions_is_positive check (max_open_positions > 0),
  constraint max_open_lots_in_range check (max_open_lots > 0 and max_open_lots <= 1000000),
  constraint max_trades_per_day_is_positive check (max_trades_per_day > 0),
  constraint min_equity_in_range check (min_equity >= 0 and min_equity < 1e12),
  constraint weekdays_are_1_to_7 check (weekdays <@ '{1,2,3,4,5,6,7}' and cardinality(weekdays) between 1 and 7),
  constraint hours_come_in_pairs check ((open_from is null) = (open_until is null)
    and open_from is distinct from open_until or open_from is null)
);
comment on table public.copiers is
  'The rule "copy this master to this follower": what is copied, and how large. Rows are never deleted; removed_at is '
  'set.';
comment on column public.copiers.id is 'ID of the copier';
comment on column public.copiers.user_id is 'the user that it belongs to';
comment on column public.copiers.name is 'the name that the user gave it';
comment on column public.copiers.master_account_id is 'account whose trades are copied; cannot be changed later';
comment on column public.copiers.follower_account_id is 'account that holds the copies; cannot be changed later';
comment on column public.copiers.mode is
  'on = copies; monitor = opens nothing, keeps open copies in step; off = frozen, closes included';
comment on column public.copiers.sizing_mode is
  'how a copy''s size is computed: a multiple or percentage of the master''s lots, fixed lots, by the ratio of '
  'balance, equity or free margin, or so that the stop risks a percentage of the balance';
comment on column public.copiers.sizing_value is
  'multiplier, percent of the master''s size, fixed lots, factor on the ratio, or risk percent, depending on '
  'sizing_mode';
comment on column public.copiers.contract_alignment is
  'whether lots are converted when contract sizes differ, so that a copy has the same exposure';
comment on column public.copiers.min_policy is
  'what to do with a size below the follower''s minimum: skip it, or raise it to the minimum (force_min)';
comment on column public.copiers.max_risk_coefficient is
  'for min_policy force_min: how many times the wanted size the minimum may be';
comment on column public.copiers.max_policy is
  'what to do with a size above the symbol''s maximum: one order of the maximum (cap), or several orders (split)';
comment on column public.copiers.max_lots is 'limit of one copy, in lots of the follower';
comment on column public.copiers.max_risk_percent is
  'the most that the stop of one copy may lose, in percent of the follower''s balance';
comment on column public.copiers.max_leverage is
  'the largest value of one copy, in multiples of the follower''s equity';
comment on column public.copiers.max_leverage_policy is
  'what to do with a copy above max_leverage: leave it out (discard), or shrink it';
comment on column public.copiers.sanity_factor is
  'refuses a copy whose exposure per equity is more than this many times the master''s; null = never';
comment on column public.copiers.reverse is
  'copies buys as sells and sells as buys; stop loss and take profit are swapped';
comment on column public.copiers.copy_existing is
  'what to do with positions that the master already holds when the copier is made: none, all, or near = copy those '
  'whose price is within copy_existing_points of the master''s; decided once, at the start';
comment on column public.copiers.copy_existing_points is
  'how far the follower''s price may be from the master''s open price, in points of the follower''s symbol';
comment on column public.copiers.existing_until is
  'until then the copier waits for quotes to decide which existing positions to copy; null = that is decided';
comment on column public.copiers.sl_mode is
  'price = the master''s level; distance = as far from the copy''s open price as the master''s level is from the '
  'master''s; fixed = sl_points away; none';
comment on column public.copiers.tp_mode is 'price, distance, fixed (tp_points away) or none, as for sl_mode';
comment on column public.copiers.sl_points is
  'for sl_mode fixed: distance from the copy''s own open price, in points of the follower''s symbol';
comment on column public.copiers.tp_points is
  'for tp_mode fixed: distance from the copy''s own open price, in points of the follower''s symbol';
comment on column public.copiers.max_sl_points is
  'largest distance of a copy''s stop loss from its open price, in points; also applies when the master has no stop '
  'loss';
comment on column public.copiers.copy_pending is
  'whether pending orders are copied as pending orders; if not, their fills are copied, and a fill''s age is measured '
  'from the fill';
comment on column public.copiers.pending_grace_ms is
  'how much later than the master''s a copied order may fill before it is cancelled and opened at the market';
comment on column public.copiers.early_fill_policy is
  'if a copied order fills and the master then cancels its own: close the copy, or keep it as the user''s own position';
comment on column public.copiers.comment is
  'the comment that brokers show on a copy; {master}, {ticket} and {copier} stand for the master''s name and ticket '
  'and the copier''s name';
comment on column public.copiers.max_age_ms is
  'an open is refused as too_old if it is detected later than this after the last read in which it was absent';
comment on column public.copiers.retry_window_s is
  'how long a refused open may be retried (market closed, requote)';
comment on column public.copiers.delay_min_ms is
  'with delay_max_ms: each open waits at least this long; the delay is random between the two';
comment on column public.copiers.delay_max_ms is
  'opens of hedging followers wait up to this long; closes and level changes never wait; 0 = no delay. You must check '
  'whether your account''s rules allow it';
comment on column public.copiers.lots_jitter_percent is
  'sizes are reduced at random by up to this much; they are never increased';
comment on column public.copiers.no_money_policy is
  'an open refused for lack of money is tried once more: unchanged (skip), or reduced to what the free margin allows '
  '(shrink)';
comment on column public.copiers.max_slippage_points is
  'how much worse than the master''s price an open''s price may be, in points of the follower''s symbol; a better '
  'price is always accepted';
comment on column public.copiers.sides is 'sides of the master that are copied: both, buy or sell';
comment on column public.copiers.symbols_only is 'only these symbols of the master, * stands for any text; empty = all';
comment on column public.copiers.symbols_except is 'not these symbols of the master, * stands for any text';
comment on column public.copiers.magic_only is 'only trades of the master with these magic numbers; empty = all';
comment on column public.copiers.magic_except is 'no trades of the master with these magic numbers';
comment on column public.copiers.comment_only is
  'only trades of the master with these comments, * stands for any text; empty = all';
comment on column public.copiers.comment_except is
  'no trades of the master with these comments, * stands for any text';
comment on column public.copiers.max_open_positions is 'the most copies that this copier may hold at once';
comment on column public.copiers.max_open_lots is 'the most lots that this copier may hold at once';
comment on column public.copiers.max_trades_per_day is
  'the most copies opened per day; a day begins at midnight in time_zone';
comment on column public.copiers.min_equity is
  'nothing is opened while the follower''s equity is below this, in the account''s currency';
comment on column public.copiers.time_zone is
  'time zone of the day, weekdays and hours of this copier, such as Europe/Berlin';
comment on column public.copiers.weekdays is 'ISO weekdays on which trades are opened, 1 = Monday, in time_zone';
comment on column public.copiers.open_from is
  'with open_until: hours of the day, in time_zone, in which trades are opened; may span midnight';
comment on column public.copiers.open_until is 'with open_from: the end of these hours';
comment on column public.copiers.removal is
  'how it is being removed: preserve = its copies are left to the user; close_gracefully = each copy is closed with '
  'its master; close_now = all copies are closed now';
comment on column public.copiers.removed_at is
  'when the removal was complete; set by the upkeep once its last copy has ended';
comment on column public.copiers.started_at is 'positions that the master held before this are not copied';
comment on column public.copiers.created_at is 'when it was created';
comment on column public.copiers.updated_at is 'when it last changed';

-- What each rule allows. save_copier puts these words into its message when a value breaks the rule (TC303, TC306).
comment on constraint accounts_differ on public.copiers is 'must be two different accounts';
comment on constraint name_is_short on public.copiers is 'must have at most 100 characters';
comment on constraint mode_is_known on public.copiers is 'must be on, monitor or off';
comment on constraint removal_is_known on public.copiers is 'must be preserve, close_gracefully or close_now';
do $$ begin
  execute format('comment on constraint sizing_mode_is_known on public.copiers is %L',
    'must be ' || private.one_of(private.sizing_modes()));
end $$;
comment on constraint sizing_value_in_range on public.copiers is
  'must be above 0 and at most 1000 (percentage: 100000, risk_percent: 100)';
comment on constraint sizing_value_fits_sizing_mode on public.copiers is
  'must fit together: at most 100 for risk_percent, 100000 for percentage, 1000 for the others';
comment on constraint min_policy_is_known on public.copiers is 'must be skip or force_min';
comment on constraint max_policy_is_known on public.copiers is 'must be cap or split';
comment on constraint max_leverage_policy_is_known on public.copiers is 'must be discard or shrink';
comment on constraint max_risk_coefficient_in_range on public.copiers is 'must be 1 to 1000';
comment on constraint max_lots_in_range on public.copiers is
  'must be above 0 and at most 1000000, or null for no limit';
comment on constraint max_risk_percent_in_range on public.copiers is
  'must be above 0 and at most 100, or null for no limit';
comment on constraint max_leverage_in_range on public.copiers is
  'must be above 0 and at most 1000000, or null for no limit';
comment on constraint sanity_factor_in_range on public.copiers is 'must be 1 to 1000000, or null for no limit';
comment on constraint sl_mode_is_known on public.copiers is 'must be price, distance, fixed or none';
comment on constraint tp_mode_is_known on public.copiers is 'must be price, distance, fixed or none';
comment on constraint sl_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null';
comment on constraint tp_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null';
comment on constraint max_sl_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null for no limit';
comment on constraint fixed_sl_has_points on public.copiers is 'must fit together: fixed needs points';
comment on constraint fixed_tp_has_points on public.copiers is 'must fit together: fixed needs points';
comment on constraint pending_grace_in_range on public.copiers is 'must be 0 to 60000 milliseconds';
comment on constraint early_fill_policy_is_known on public.copiers is 'must be close or keep';
comment on constraint copy_existing_is_known on public.copiers is 'must be none, all or near';
comment on constraint copy_existing_points_not_negative on public.copiers is 'must be 0 or more points';
comment on constraint near_says_how_near on public.copiers is 'must go together: near needs a number of points';
comment on constraint max_age_in_range on public.copiers is 'must be 100 to 600000 milliseconds';
comment on constraint retry_window_in_range on public.copiers is 'must be 0 to 3600 seconds';
comment on constraint delay_in_range on public.copiers is 'must be 0 to 3000 milliseconds';
comment on constraint delay_min_within_max on public.copiers is
  'must fit together: delay_min_ms from 0 to delay_max_ms';
comment on constraint lots_jitter_in_range on public.copiers is 'must be 0 to 50 percent';
comment on constraint no_money_policy_is_known on public.copiers is 'must be skip or shrink';
comment on constraint max_slippage_not_negative on public.copiers is 'must be 0 or more points, or null for no limit';
comment on constraint comment_is_short on public.copiers is 'must have at most 60 characters';
comment on constraint comment_placeholders_are_known on public.copiers is
  'must have no braces but {master}, {ticket} and {copier}';
comment on constraint sides_are_known on public.copiers is 'must be both, buy or sell';
comment on constraint symbols_only_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint symbols_except_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint magic_only_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint magic_except_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint comment_only_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint comment_except_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint max_open_positions_is_positive on public.copiers is 'must be 1 or more, or null for no limit';
comment on constraint max_open_lots_in_range on public.copiers is
  'must be above 0 and at most 1000000, or null for no limit';
comment on constraint max_trades_per_day_is_positive on public.copiers is 'must be 1 or more, or null for no limit';
comment on constraint min_equity_in_range on public.copiers is 'must be 0 or more and below 1e12, or null for no limit';
comment on constraint weekdays_are_1_to_7 on public.copiers is
  'must be one or more of 1 (Monday) to 7 (Sunday), at most seven';
comment on constraint hours_come_in_pairs on public.copiers is 'must both be given and differ, or both be left out';

-- the planner: the copiers that a master feeds, the follower's masters
create index copiers_of_master on public.copiers (master_account_id) where removed_at is null;

-- a copier that is being removed opens nothing, so a new one for the same pair may already exist
create unique index copiers_one_per_pair on public.copiers (master_account_id, follower_account_id)
  where removed_at is null and removal is null;

-- upkeep: removals that may be complete
create index copiers_leaving on public.copiers (follower_account_id, id)
  where removal is not null and removed_at is null;
create index copiers_of_follower on public.copiers (follower_account_id) where removed_at is null;
create index copiers_of_user on public.copiers (user_id);
create index copiers_with_existing on public.copiers (follower_account_id) where existing_until is not null;

create table public.symbol_mappings (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  copier_id uuid not null references public.copiers (id) on delete cascade,
  master_symbol text not null,
  follower_symbol text not null,
  lots_factor numeric not null default 1,
  mode text not null default 'on',
  created_at timestamptz not null default now(),
  master_key text not null generated always as (upper(btrim(master_symbol))) stored,
  constraint one_mapping_per_symbol unique (copier_id, master_key),
  constraint lots_factor_is_sane check (lots_factor between 0.01 and 100),
  constraint mapping_mode_is_known check (mode in ('on', 'closes_only', 'off')),
  constraint symbols_are_short check
    (length(master_symbol) between 1 and 64 and length(follower_symbol) between 1 and 64)
);
comment on table public.symbol_mappings is
  'The follower''s symbol that the user chose for a symbol of the master; takes precedence over automatic matches.';
comment on column public.symbol_mappings.lots_factor is 'What the size of each copy in this symbol is multiplied by.';
comment on column public.symbol_mappings.mode is
  'on; closes_only or off: nothing is opened (symbol_off). Copies that are open are closed with the master all the '
  'same.';
comment on column public.symbol_mappings.master_key is
  'The master''s symbol without differences of case and blanks, for comparison.';
create index symbol_mappings_of_user on public.symbol_mappings (user_id);
alter table public.copiers enable row level security;
alter table public.symbol_mappings enable row level security;
create policy "own copiers are readable" on public.copiers for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create policy "own symbol mappings are readable" on public.symbol_mappings for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.copiers, public.symbol_mappings to authenticated, service_role;
create trigger audited after insert or update or delete on public.copiers for each row
  execute function private.audit('id', 'user_id', 'name', 'master_account_id', 'follower_account_id', 'mode',
    'sizing_mode',
    'sizing_value', 'contract_alignment', 'min_policy', 'max_risk_coefficient', 'max_policy', 'max_lots',
      'max_risk_percent',
    'max_leverage', 'max_leverage_policy', 'sanity_factor', 'reverse', 'sl_mode', 'tp_mode', 'sl_points', 'tp_points',
      'max_sl_points', 'copy_pending', 'pending_grace_ms', 'early_fill_policy', 'max_age_ms',
    'retry_window_s', 'max_slippage_points', 'comment', 'removal', 'removed_at');
create trigger audited after insert or update or delete on public.symbol_mappings for each row
  execute function private.audit('id', 'user_id', 'copier_id', 'master_symbol', 'follower_symbol');
