-- Waits for a symbol: pairs (event, copier) whose decision needs a symbol or a quote that an agent has not told yet.

create table private.symbol_waits (
  copier_id uuid not null references public.copiers (id) on delete cascade,
  master_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  follower_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  ticket text not null,
  side text not null,
  event_id bigint,
  asked text,
  news_at timestamptz not null,
  ends_at timestamptz not null,
  ends_as text not null,
  symbols text[] not null,
  lots numeric not null,
  primary key (copier_id, kind, ticket, side)
);
comment on table private.symbol_waits is
  'Master positions that copiers will decide on once a symbol or quote is told. Such a pair has the outcome '
  'symbols_loading. The row is deleted with the decision, or when there is nothing left to decide.';
comment on column private.symbol_waits.event_id is
  'the event whose outcome is symbols_loading; null: the position came without an event';
comment on column private.symbol_waits.asked is 'existing or resync: the copy was asked for';
comment on column private.symbol_waits.news_at is 'from then on max_age_ms counts';
comment on column private.symbol_waits.ends_as is 'the reason of the pair if nothing is told in time';
comment on column private.symbol_waits.symbols is 'names at the follower that may be the master''s symbol';
comment on column private.symbol_waits.lots is
  'the most that the master has traded since: the decision is sized for it, and cut to the share that is left';
create index symbol_waits_of_master on private.symbol_waits (master_account_id, ticket);
create index symbol_waits_of_follower on private.symbol_waits (follower_account_id);
alter table private.symbol_waits enable row level security;
