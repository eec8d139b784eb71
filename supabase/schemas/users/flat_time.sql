-- Functions by which users set the time of the week by which an account must be flat.

-- A weekday of a request; TC303 if it is not a whole number from 1 to 7.
create function private.weekday_of(p_function text, p_value jsonb, p_field text) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  if (p_value #>> '{}' in ('1', '2', '3', '4', '5', '6', '7')) is not true then
    raise exception using errcode = 'TC303',
      message = format('%s: %s must be 1 (Monday) to 7 (Sunday), not %s', p_function, p_field,
        left(coalesce(p_value::text, 'missing'), 50)), hint = 'Friday is 5.';
  end if;
  return (p_value #>> '{}')::integer;
end $$;

-- A time of day of a request, hours and minutes; TC303 otherwise.
create function private.day_time_of(p_function text, p_value jsonb, p_field text) returns time
language plpgsql immutable set search_path = '' as $$
begin
  if jsonb_typeof(p_value) is distinct from 'string' or p_value #>> '{}' !~ '^([01]\d|2[0-3]):[0-5]\d$' then
    raise exception using errcode = 'TC303',
      message = format('%s: %s must be a time of day from 00:00 to 23:59, not %s', p_function, p_field,
        left(coalesce(p_value::text, 'missing'), 50)), hint = 'For example "16:45".';
  end if;
  return (p_value #>> '{}')::time;
end $$;

-- A time zone of a request, or p_default if it is left out; TC303 if there is none of this name.
create function private.zone_of(p_function text, p_value jsonb, p_field text, p_default text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_zone text := coalesce(nullif(p_value, 'null') #>> '{}', p_default);
begin
  if v_zone is null or not private.is_time_zone(v_zone) then
    raise exception using errcode = 'TC303',
      message = format('%s: there is no time zone %s: %s must be named like Europe/Berlin, America/New_York or UTC',
        p_function, left(coalesce(v_zone, 'null'), 100), p_field), hint = 'Use a name of the IANA list.';
  end if;
  return v_zone;
end $$;

-- The flat time that a request describes, checked.
create function private.flat_time_in(p_request jsonb) returns public.flat_times
language plpgsql stable security definer set search_path = '' as $$
declare
  r public.flat_times;
  v_until jsonb := coalesce(nullif(p_request -> 'until', 'null'), '{}');
begin
  perform private.refuse_unknown(v_until, 'set_flat_by: until', array['weekday', 'time', 'time_zone']);
  if coalesce(jsonb_typeof(p_request -> 'close_manual'), 'null') not in ('null', 'boolean')
    or coalesce(jsonb_typeof(p_request -> 'close_now'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'set_flat_by: close_manual and close_now must be true or false';
  end if;
  r.weekday := private.weekday_of('set_flat_by', p_request -> 'weekday', 'weekday');
  r.flat_at := private.day_time_of('set_flat_by', p_request -> 'time', 'time');
  r.time_zone := private.zone_of('set_flat_by', p_request -> 'time_zone', 'time_zone', null);
  r.close_manual := coalesce((p_request ->> 'close_manual')::boolean, true);
  r.until_weekday := private.weekday_of('set_flat_by', coalesce(nullif(v_until -> 'weekday', 'null'), '7'),
    'until.weekday');
  r.until_at := private.day_time_of('set_flat_by', coalesce(nullif(v_until -> 'time', 'null'), '"17:00"'),
    'until.time');
  r.until_time_zone := private.zone_of('set_flat_by', v_until -> 'time_zone', 'until.time_zone',
    case when v_until = '{}' then 'America/New_York' else r.time_zone end);
  return r;
end $$;

-- Refuses a period that would never end, and one that lasts now and would close what the account holds (TC322).
create function private.refuse_flat_now(r public.flat_times, p_close_now boolean, p_now timestamptz) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_period record := private.flat_period(r, p_now);
  v_held bigint;
begin
  if v_period.ends > v_period.begins + interval '6 days 23 hours' then
    raise exception using errcode = 'TC306',
      message = format('set_flat_by: time %s and until %s are the same moment: nothing would ever be opened',
        private.weekly_words(r.weekday, r.flat_at, r.time_zone),
        private.weekly_words(r.until_weekday, r.until_at, r.until_time_zone)), hint = 'Change one of the two.';
  end if;
  if p_close_now or v_period.begins > p_now or not private.is_follower(r.account_id) then return; end if;
  select count(*) into v_held from public.positions p where p.account_id = r.account_id and p.closed_at is null;
  if v_held > 0 then
    raise exception using errcode = 'TC322',
      message = format('set_flat_by: %s was %s already, and the account holds %s positions or orders',
        private.weekly_words(r.weekday, r.flat_at, r.time_zone), private.rfc3339(v_period.begins), v_held),
      hint = 'They would be closed at once. Pass "close_now": true if you want that, or choose another time.';
  end if;
end $$;

-- {"account_id", "weekday", "time", "time_zone", "until", "close_manual", "close_now"} -> {"account_id", "begins_at",
-- "ends_at", "warnings"}. It replaces what was set before.
create function private.set_flat_by(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_account uuid := private.require_account(p_request);
  v_now timestamptz;
  r public.flat_times;
  a public.trading_accounts;
begin
  perform private.refuse_unknown(p_request, 'set_flat_by', array['account_id', 'weekday', 'time', 'time_zone', 'until',
    'close_manual', 'close_now']);
  r := private.flat_time_in(p_request);
  r.account_id := v_account;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  perform private.refuse_flat_now(r, coalesce((p_request ->> 'close_now')::boolean, false), v_now);
  insert into public.flat_times as f (account_id, user_id, weekday, flat_at, time_zone, until_weekday, until_at,
    until_time_zone, close_manual, due_at)
  select v_account, x.user_id, r.weekday, r.flat_at, r.time_zone, r.until_weekday, r.until_at, r.until_time_zone,
    r.close_manual, v_now
  from public.trading_accounts x where x.id = v_account
  on conflict (account_id) do update set weekday = r.weekday, flat_at = r.flat_at, time_zone = r.time_zone,
    until_weekday = r.until_weekday, until_at = r.until_at, until_time_zone = r.until_time_zone,
    close_manual = r.close_manual;
  select * into r from public.flat_times f where f.account_id = v_account;
  perform private.begin_flat_period(r, v_now);
  select * into a from public.trading_accounts x where x.id = v_account;
  if private.must_be_flat(a, v_now) and r.closed_for is distinct from a.flat_from then
    perform private.close_for_flat_time(r, a, v_now);
  end if;
  return jsonb_build_object('account_id', v_account, 'begins_at', private.rfc3339(a.flat_from),
    'ends_at', private.rfc3339(a.flat_until),
    'warnings', case when private.is_follower(v_account) then '[]'::jsonb else jsonb_build_array(
      'The account follows nobody: nothing is closed on it until a copier copies into it.') end);
end $$;

-- {"account_id"} -> {"account_id"}. What it has begun to close, it closes.
create function private.remove_flat_by(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := private.require_account(p_request);
begin
  perform private.refuse_unknown(p_request, 'remove_flat_by', array['account_id']);
  perform private.lock_accounts(array[v_account]);
  delete from public.flat_times f where f.account_id = v_account;
  update public.trading_accounts set flat_from = null, flat_until = null where id = v_account;
  return jsonb_build_object('account_id', v_account);
end $$;

create function public.set_flat_by(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_flat_by(p_request) $$;
comment on function public.set_flat_by(jsonb) is
  'Users and operators: sets the time of the week by which an account must be flat. Everything on it is then closed, '
  'opens end as flat_by until the period is over, and copying goes on by itself. Its user is warned 30 minutes before. '
  'It replaces what was set before; the table flat_times lists it.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- weekday (integer; required; 1 = Monday to 7 = Sunday): day on which the account is closed
- time (text; required; 00:00 to 23:59): time of that day
- time_zone (text; required; a time zone such as America/New_York): zone of weekday and time
- until (object): when copying goes on; left out or null: Sunday 17:00 in New York
- until.weekday (integer; 1 = Monday to 7 = Sunday): day on which copying goes on; default 7
- until.time (text; 00:00 to 23:59): time of that day; default 17:00
- until.time_zone (text; a time zone): left out: the same as time_zone
- close_manual (boolean): false leaves positions that the user opened by hand; left out or null: true
- close_now (boolean): true: close at once if the time has passed and the period lasts (else refused, TC322)
Answer:
- account_id (uuid): the account
- begins_at (time): when the period that lasts now, or the next, begins
- ends_at (time): when copying goes on
- warnings (list of texts): why nothing will be closed
Errors: TC001 TC105 TC106 TC108 TC301 TC303 TC306 TC322
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "weekday": 5, "time": "16:45",
"time_zone": "America/New_York"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "begins_at": "2026-12-04T21:45:00.000000Z",
"ends_at": "2026-12-06T22:00:00.000000Z", "warnings": []}';

create function public.remove_flat_by(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_flat_by(p_request) $$;
comment on function public.remove_flat_by(jsonb) is
  'Users and operators: removes the time by which an account must be flat. What it has begun to close is still closed.
Request:
- account_id (uuid; required): account of the caller; operators: any account
Answer:
- account_id (uuid): the account
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02"}';

revoke all on function public.set_flat_by(jsonb), public.remove_flat_by(jsonb) from public, anon;
grant execute on function public.set_flat_by(jsonb), public.remove_flat_by(jsonb), private.set_flat_by(jsonb),
  private.remove_flat_by(jsonb) to authenticated;
