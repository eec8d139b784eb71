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
