-- Weekends: whether an account's symbols stood still while they were watched, and whether the account is therefore
-- closed for the weekend: its silence raises no alert.

-- Here, because its check is made after base/setting.sql.
insert into public.system_config (key, value, type, minimum, maximum, unit, description) values
  ('weekend', '{"weekday": 5, "time": "17:00", "until_weekday": 7, "until_time": "17:00", "time_zone": '
    '"America/New_York"}', 'weekend', null, null, 'period',
   'When markets rest at the end of the week. An account whose symbols all stood still then raises no alert for its '
   'silence; 15 minutes before the end everything is as on other days.');

create table private.weekend_watches (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  symbol text not null,
  begins timestamptz not null,
  bid numeric not null,
  ask numeric not null,
  looked_at timestamptz not null,
  watched interval not null default '0',
  moved boolean not null default false,
  primary key (account_id, symbol, begins)
);
comment on table private.weekend_watches is
  'Whether the quote of a held or copied symbol moved during a weekend. Only time in which the account''s agent told '
  'current quotes counts as watched. Written by maintain(), a row per weekend until a later one is watched.';
comment on column private.weekend_watches.begins is 'Beginning of the weekend.';
comment on column private.weekend_watches.looked_at is 'The last look; bid and ask are the quote of that look.';
comment on column private.weekend_watches.watched is 'For how long quotes were told, in all.';
comment on column private.weekend_watches.moved is 'Whether two looks showed different quotes.';
alter table private.weekend_watches enable row level security;

-- The weekend that lasts at p_now, else the next.
create function private.weekend_at(p_now timestamptz, out begins timestamptz, out ends timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare
  w jsonb := private.setting('weekend');
begin
  select p.begins, p.ends into begins, ends
  from private.weekly_period((w ->> 'weekday')::integer, (w ->> 'time')::time, w ->> 'time_zone',
    (w ->> 'until_weekday')::integer, (w ->> 'until_time')::time, w ->> 'time_zone', p_now) p;
end $$;

-- The symbols that an account holds now: their quotes are told by its agent.
create function private.symbols_held(p_account uuid) returns table (symbol text)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select p.symbol from public.positions p where p.account_id = p_account and p.closed_at is null
  union
  select l.symbol from public.position_links l where l.follower_account_id = p_account and l.state = 'live';
end $$;

-- The symbols that an account holds or copies, each with the account whose quotes tell about it: its own of the last
-- weeks (closed positions are kept for retention_days.positions), and those that its masters hold.
create function private.symbols_at_stake(p_account uuid) returns table (account_id uuid, symbol text)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select p_account, h.symbol from private.symbols_held(p_account) h
  union
  select p.account_id, p.symbol from public.positions p where p.account_id = p_account
  union
  select p.account_id, p.symbol from public.copiers c
  join public.positions p on p.account_id = c.master_account_id and p.closed_at is null
  where c.follower_account_id = p_account and c.removed_at is null;
end $$;

-- Whether a symbol trades at weekends: it moved in this one, or in the last one that was watched; never watched: it is
-- of a crypto currency. A weekend without movement counts as watched from half its length on.
create function private.trades_at_weekends(p_account uuid, p_symbol text, p_begins timestamptz, p_ends timestamptz)
returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  v_moved boolean;
begin
  select w.moved into v_moved from private.weekend_watches w
  where w.account_id = p_account and w.symbol = p_symbol and w.begins <= p_begins
    and (w.moved or w.begins < p_begins and w.watched >= (p_ends - p_begins) / 2)
  order by w.begins desc limit 1;
  return coalesce(v_moved, private.is_crypto(p_symbol, (
    select array[s.profit_currency, s.margin_currency] from public.account_symbols s
    where s.account_id = p_account and s.name = p_symbol)));
end $$;

-- Until 15 minutes before the end: then everything must be connected again.
create function private.closed_for_weekend(p_account uuid, p_now timestamptz) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  w record := private.weekend_at(p_now);
begin
  return p_now >= w.begins and p_now < w.ends - interval '15 minutes' and coalesce((
    select not bool_or(private.trades_at_weekends(s.account_id, s.symbol, w.begins, w.ends))
    from private.symbols_at_stake(p_account) s), false);  -- an account without symbols says nothing about rest
end $$;
comment on function private.closed_for_weekend(uuid, timestamptz) is
  'Whether the account is closed for the weekend: everything that it holds or copies stood still in the last weekend '
  'that was watched.';

-- One look of the weekend that lasts now. Its first and last 15 minutes do not count: markets close late and open
-- early. Only current quotes of accounts that their agents see count, so that silence is never taken for rest.
create function private.watch_weekend() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_weekend record := private.weekend_at(v_now);
begin
  if v_now < v_weekend.begins + interval '15 minutes' or v_now >= v_weekend.ends - interval '15 minutes' then
    return;
  end if;
  insert into private.weekend_watches as w (account_id, symbol, begins, bid, ask, looked_at)
  select k.account_id, k.name, v_weekend.begins, k.bid, k.ask, v_now
  from public.trading_accounts a
  cross join lateral private.symbols_held(a.id) s
  join public.account_symbols k on k.account_id = a.id and k.name = s.symbol
  where a.removed_at is null and a.status in ('connected', 'degraded') and a.seen_at > v_now - interval '30 seconds'
    and k.quoted_at > v_now - private.setting_s('symbol_quote_max_age_s') and k.bid is not null
    and k.ask is not null
  on conflict (account_id, symbol, begins) do update set looked_at = excluded.looked_at, bid = excluded.bid,
    ask = excluded.ask, moved = w.moved or (w.bid, w.ask) <> (excluded.bid, excluded.ask),
    -- a gap was not watched
    watched = w.watched + case when excluded.looked_at - w.looked_at between interval '0' and interval '3 minutes'
      then excluded.looked_at - w.looked_at else interval '0' end;
  delete from private.weekend_watches w
  where w.begins < v_weekend.begins and exists (
    select from private.weekend_watches n
    where n.account_id = w.account_id and n.symbol = w.symbol and n.begins > w.begins and n.begins < v_weekend.begins
      and (n.moved or n.watched >= (v_weekend.ends - v_weekend.begins) / 2));
end $$;
comment on function private.watch_weekend() is
  'Notes which symbols move during the weekend that lasts now; maintain() calls it once a minute.';
