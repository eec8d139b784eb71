-- Quiet windows: spans of time, usually around news, in which nothing is opened in certain currencies or symbols. Users
-- type or paste them; operators set them for everybody. No source of news is built in.

create table public.quiet_windows (
  id bigint generated always as identity primary key,
  user_id uuid references auth.users (id) on delete cascade,
  begins_at timestamptz not null,
  ends_at timestamptz not null,
  currencies text[] not null default '{}',
  symbols text[] not null default '{}',
  name text,
  meanings text[] not null default '{}',
  span tstzrange not null,
  created_at timestamptz not null default now(),
  constraint it_ends_after_it_begins check (ends_at >= begins_at and ends_at <= begins_at + interval '31 days')
);
comment on table public.quiet_windows is
  'Spans of time in which nothing is opened. Every account adds its minutes before and after '
  '(trading_accounts.quiet_minutes_before).';
comment on column public.quiet_windows.id is 'ID of the window.';
comment on column public.quiet_windows.user_id is 'Whose accounts it concerns; null: everybody''s, set by operators.';
comment on column public.quiet_windows.begins_at is 'When it begins.';
comment on column public.quiet_windows.ends_at is 'When it ends; the same as begins_at: a moment.';
comment on column public.quiet_windows.currencies is
  'It concerns symbols with one of these currencies. No currencies and no symbols: it concerns everything.';
comment on column public.quiet_windows.symbols is 'It concerns these symbols, whatever a broker adds to their names.';
comment on column public.quiet_windows.name is 'What it is about.';
comment on column public.quiet_windows.meanings is 'What the names in symbols can mean (copier/instrument.sql).';
comment on column public.quiet_windows.span is 'The window with a day before and after: what the planner looks up.';
comment on column public.quiet_windows.created_at is 'When it was saved.';

-- the same window is stored once
create unique index quiet_window_is_stored_once
  on public.quiet_windows (user_id, begins_at, ends_at, currencies, symbols) nulls not distinct;

-- the planner
create index quiet_windows_by_span on public.quiet_windows using gist (span);

-- retention
create index quiet_windows_by_end on public.quiet_windows (ends_at);
alter table public.quiet_windows enable row level security;
create policy "own windows and everybody's are readable" on public.quiet_windows for select to authenticated
  using (user_id = (select auth.uid()) or user_id is null or (select private.is_operator()));
create trigger audited after insert or delete on public.quiet_windows for each row
  execute function private.audit('id', 'user_id', 'begins_at', 'ends_at', 'currencies', 'symbols', 'name');
grant select on public.quiet_windows to authenticated, service_role;

-- The currencies of a symbol: those of the pair in its name, else those that its broker tells. Cents and stablecoins
-- count as their money, too.
create function private.currencies_of(s public.account_symbols) returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  v_pair text := private.pair_in(regexp_replace(s.name, '[^A-Za-z0-9]', '', 'g'));
  v_own text[] := case when v_pair is not null then array[left(v_pair, 3), right(v_pair, 3)]
    else array[upper(btrim(s.margin_currency)), upper(btrim(s.profit_currency))] end;
begin
  return v_own || array(select u.counts_as from public.currency_units u where u.currency = any (v_own));
end $$;

-- What the names of a window's symbols can mean: each itself, and "=" with the listed instrument.
create function private.window_meanings(p_symbols text[]) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_symbols || array(select '=' || i from unnest(p_symbols) n
    cross join lateral private.listed_instrument(n) i where i is not null);
end $$;
