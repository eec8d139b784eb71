-- Flat by: the time of the week by which an account must be flat, and the time at which copying into it goes on. The
-- period in between stands in trading_accounts.flat_from and flat_until, where the planner reads it.

create table public.flat_times (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade,
  user_id uuid not null references auth.users (id) on delete cascade,
  weekday integer not null,
  flat_at time not null,
  time_zone text not null,
  until_weekday integer not null default 7,
  until_at time not null default '17:00',
  until_time_zone text not null default 'America/New_York',
  close_manual boolean not null default true,
  -- present state
  due_at timestamptz not null,
  warned_for timestamptz,
  closed_for timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint weekdays_are_iso check (weekday between 1 and 7 and until_weekday between 1 and 7)
);
comment on table public.flat_times is
  'When an account must be flat each week: everything on it is closed then, nothing is opened until until_at, and '
  'copying goes on by itself.';
comment on column public.flat_times.weekday is 'Day on which the account is closed, 1 = Monday to 7 = Sunday.';
comment on column public.flat_times.flat_at is 'Time of that day in time_zone.';
comment on column public.flat_times.time_zone is 'Time zone of weekday and flat_at.';
comment on column public.flat_times.until_weekday is 'Day on which copying goes on, 1 = Monday to 7 = Sunday.';
comment on column public.flat_times.until_at is 'Time of that day in until_time_zone.';
comment on column public.flat_times.until_time_zone is 'Time zone of until_weekday and until_at.';
comment on column public.flat_times.close_manual is
  'Whether closing includes positions that the user opened by hand.';
comment on column public.flat_times.due_at is 'When the upkeep must do something next: warn, close, or begin anew.';
comment on column public.flat_times.warned_for is 'Beginning of the period that its user was last warned of.';
comment on column public.flat_times.closed_for is 'Beginning of the period for which the account was last closed.';

-- upkeep
create index flat_times_due on public.flat_times (due_at);
create index flat_times_of_user on public.flat_times (user_id);
alter table public.flat_times enable row level security;
create policy "own flat times are readable" on public.flat_times for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.flat_times for each row execute function private.touch();
create trigger audited after insert or delete
  or update of weekday, flat_at, time_zone, until_weekday, until_at, until_time_zone, close_manual, closed_for
    on public.flat_times
  for each row execute function private.audit('account_id', 'user_id', 'weekday', 'flat_at', 'time_zone',
    'until_weekday', 'until_at', 'until_time_zone', 'close_manual', 'closed_for');
grant select on public.flat_times to authenticated, service_role;

-- The first time after p_after at which it is this weekday and time of day in a zone. A time that a clock change skips
-- is the one that the clocks show instead.
create function private.next_weekly(p_after timestamptz, p_weekday integer, p_time time, p_zone text)
returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
  v_day date := (p_after at time zone p_zone)::date;
  v_at timestamptz;
begin
  v_day := v_day + (p_weekday - extract(isodow from v_day)::integer + 7) % 7;
  v_at := (v_day + p_time) at time zone p_zone;
  return case when v_at > p_after then v_at else (v_day + 7 + p_time) at time zone p_zone end;
end $$;

-- A weekly period that lasts at p_now, else the next. Of two equal times of day, at the end of summer time, it begins
-- at the first.
create function private.weekly_period(p_weekday integer, p_time time, p_zone text, p_until_weekday integer,
  p_until_time time, p_until_zone text, p_now timestamptz, out begins timestamptz, out ends timestamptz)
language plpgsql stable set search_path = '' as $$
declare
  v_after timestamptz := p_now - interval '8 days';
begin
  loop
    begins := private.next_weekly(v_after, p_weekday, p_time, p_zone);
    v_after := begins;
    if (begins - interval '1 hour') at time zone p_zone = begins at time zone p_zone then
      begins := begins - interval '1 hour';
    end if;
    ends := private.next_weekly(begins, p_until_weekday, p_until_time, p_until_zone);
    exit when ends > p_now;
  end loop;
end $$;

-- The period of a flat time that lasts now, else the next.
create function private.flat_period(r public.flat_times, p_now timestamptz, out begins timestamptz,
  out ends timestamptz)
language sql stable set search_path = '' as $$
  select * from private.weekly_period(r.weekday, r.flat_at, r.time_zone, r.until_weekday, r.until_at,
    r.until_time_zone, p_now)
$$;

-- A time as its user writes it: "Friday 16:45 (America/New_York)".
create function private.weekly_words(p_weekday integer, p_time time, p_zone text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return format('%s %s (%s)', (array['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday',
    'Sunday'])[p_weekday], to_char(p_time, 'HH24:MI'), p_zone);
end $$;

-- Whether the account must be flat now.
create function private.must_be_flat(a public.trading_accounts, p_now timestamptz) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_now >= a.flat_from and p_now < a.flat_until, false);
end $$;
