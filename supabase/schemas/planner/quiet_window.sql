-- Times at which nothing is opened: an account's flat time, and quiet windows. They hold back opens and increases; an
-- account may ask that changes of levels wait, too. No close waits for them.

-- Whether anybody has a window about now, a day before and after included: one look in an index, before all else.
create function private.any_quiet(p_now timestamptz) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.quiet_windows w where w.span @> p_now);
end $$;

-- When the window that lasts now for a symbol of an account is over, the account's minutes included; null: there is
-- none. p_masters: the master's name of the symbol.
create function private.quiet_until(a public.trading_accounts, p_symbol public.account_symbols, p_masters text,
  p_now timestamptz) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
declare
  v_before interval := make_interval(mins => a.quiet_minutes_before);
  v_after interval := make_interval(mins => a.quiet_minutes_after);
  v_names text[];
begin
  if not exists (
    select 1 from public.quiet_windows w
    where w.span @> p_now and (w.user_id is null or w.user_id = a.user_id and a.quiet_own_windows)
      and p_now >= w.begins_at - v_before and p_now < w.ends_at + v_after)
  then
    return null;
  end if;
  v_names := private.window_meanings(array[upper(btrim(p_masters))])
    || case when p_symbol.name is not null then private.meanings(p_symbol.name, a) end;
  return (
    select max(w.ends_at + v_after) from public.quiet_windows w
    where w.span @> p_now and (w.user_id is null or w.user_id = a.user_id and a.quiet_own_windows)
      and p_now >= w.begins_at - v_before and p_now < w.ends_at + v_after
      and (w.currencies = '{}' and w.symbols = '{}' or w.meanings && v_names
        or w.currencies <> '{}' and p_symbol.name is not null
          and w.currencies && private.currencies_of(p_symbol)));
end $$;

-- Why the time forbids to open a symbol on an account now; null: it does not.
create function private.time_refusal(p_account uuid, p_symbol text, p_masters text, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  s public.account_symbols;
begin
  select * into a from public.trading_accounts where id = p_account;
  if private.must_be_flat(a, p_now) then return 'flat_by'; end if;
  if not private.any_quiet(p_now) then return null; end if;
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_symbol;
  return case when private.quiet_until(a, s, p_masters, p_now) is not null then 'news_window' end;
end $$;

-- The windows that forbid it, in words: the first that begins, and how many more.
create function private.quiet_words(a public.trading_accounts, p_symbol public.account_symbols, p_masters text,
  p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select format('%s: %s until %s UTC, and %s minutes before and %s after.', coalesce(w.name, 'A quiet window'),
      to_char(w.begins_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI'),
      to_char(w.ends_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI'), a.quiet_minutes_before, a.quiet_minutes_after)
    from public.quiet_windows w
    where w.span @> p_now and (w.user_id is null or w.user_id = a.user_id and a.quiet_own_windows)
      and w.ends_at + make_interval(mins => a.quiet_minutes_after) = private.quiet_until(a, p_symbol, p_masters, p_now)
    order by w.begins_at limit 1);
end $$;

-- When a quiet window is over that changes of levels on an account wait for; null: they do not wait.
create function private.levels_wait_until(a public.trading_accounts, p_symbol text, p_masters text, p_now timestamptz)
returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
begin
  if not a.quiet_levels_wait then return null; end if;
  return private.quiet_until(a, (select s from public.account_symbols s where s.account_id = a.id
    and s.name = p_symbol), p_masters, p_now);
end $$;

-- Notes when these links' levels may be changed again, and returns the links that must wait until then.
create function private.hold_levels(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_held bigint[];
  v_until timestamptz[];
begin
  select array_agg(h.id), array_agg(h.until) into v_held, v_until
  from (
    select l.id, private.levels_wait_until(a, l.symbol, coalesce(m.symbol, l.symbol), p_now) as until
    from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.quiet_levels_wait
    left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind
    where l.id = any (p_links) and l.ended_at is null
    offset 0
  ) h where h.until is not null;
  if v_held is not null then
    update public.position_links l set levels_due_at = u.until from unnest(v_held, v_until) as u (id, until)
    where l.id = any (v_held) and l.id = u.id;
  end if;
  return v_held;
end $$;

-- Waits that are over: what they were for has been planned.
create function private.end_level_waits(p_accounts uuid[], p_now timestamptz) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  update public.position_links l set levels_due_at = null
  where l.follower_account_id = any (p_accounts) and l.state = 'live' and l.levels_due_at <= p_now;
  update private.net_ledgers n set replan_at = null
  where n.account_id = any (p_accounts) and n.replan_at <= p_now and n.failures = 0 and n.modify_failures = 0
    and n.surplus_lots = 0;
end $$;

-- Whether changes of a netting symbol's levels must wait; then they are planned again when the window is over.
create function private.hold_net_levels(p_account uuid, p_symbol text, p_now timestamptz) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_until timestamptz;
begin
  if not private.any_quiet(p_now) then return false; end if;
  v_until := private.levels_wait_until((select a from public.trading_accounts a where a.id = p_account), p_symbol,
    p_symbol, p_now);
  if v_until is null then return false; end if;
  update private.net_ledgers n set replan_at = v_until
  where n.account_id = p_account and n.symbol = p_symbol and n.failures = 0;
  return true;
end $$;
