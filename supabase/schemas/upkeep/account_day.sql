-- The days of accounts: a part of maintain() adds the newest figures of every account to its day.

-- When a date is over in a time zone: the first moment of a later date. Where clocks are set back across midnight, the
-- new date begins twice and Postgres names the second time.
create function private.end_of_day(p_day date, p_zone text) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
  v_midnight timestamptz := (p_day + 1)::timestamp at time zone p_zone;
begin
  return (select min(m) from unnest(array[v_midnight, v_midnight - interval '30 minutes',
    v_midnight - interval '1 hour', v_midnight - interval '2 hours']) m where (m at time zone p_zone)::date > p_day);
end $$;

-- The day of a measurement, given the account's last day. A zone that the owner has changed holds when that day is
-- over; if its date is not a later one (the owner has moved west), the day goes on until the date ends in the new zone.
create function private.day_of_account(p_last public.account_days, p_user uuid, p_at timestamptz, out day date,
  out zone text, out ends_at timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_at < p_last.ends_at then
    day := p_last.day;
    zone := p_last.time_zone;
    ends_at := p_last.ends_at;
    return;
  end if;
  zone := private.time_zone_of(p_user);
  day := greatest((p_at at time zone zone)::date, p_last.day);
  ends_at := private.end_of_day(day, zone);
end $$;

-- Figures that are not newer than the account's last ones are left out.
create function private.note_account_days() returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.account_days as d (account_id, day, user_id, time_zone, ends_at, first_at, last_at,
    first_equity, min_equity, max_equity, last_equity, first_balance, min_balance, max_balance, last_balance)
  select a.id, t.day, a.user_id, t.zone, t.ends_at, a.funds_at, a.funds_at,
    a.equity, a.equity, a.equity, a.equity, a.balance, a.balance, a.balance, a.balance
  from public.trading_accounts a
  left join lateral (
    select n as row from public.account_days n where n.account_id = a.id order by n.day desc limit 1
  ) last on true
  cross join lateral private.day_of_account(last.row, a.user_id, a.funds_at) t
  where a.removed_at is null and a.equity is not null and a.balance is not null and a.funds_at is not null
    and ((last.row).last_at is null or a.funds_at > (last.row).last_at)
  on conflict (account_id, day) do update
  set time_zone = excluded.time_zone, ends_at = excluded.ends_at, last_at = excluded.last_at,
    min_equity = least(d.min_equity, excluded.min_equity), max_equity = greatest(d.max_equity, excluded.max_equity),
    last_equity = excluded.last_equity, min_balance = least(d.min_balance, excluded.min_balance),
    max_balance = greatest(d.max_balance, excluded.max_balance), last_balance = excluded.last_balance;
end $$;
comment on function private.note_account_days() is
  'Adds the newest funds of every account to its day in account_days.';
