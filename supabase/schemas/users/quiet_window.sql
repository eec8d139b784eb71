-- Functions by which users, and operators for everybody, set quiet windows.

create type private.window_draft as (begins_at timestamptz, ends_at timestamptz, currencies text[], symbols text[],
  name text);
comment on type private.window_draft is 'A quiet window that a user wants to save.';

-- A point in time as people write it: 2026-12-04 13:30, with seconds, with a zone (Z or +01:00) or else in p_zone. A
-- day alone is its midnight. Null: it is none.
create function private.instant_of(p_text text, p_zone text) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
  v_text text := btrim(p_text);
begin
  if v_text !~ '^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?( ?(Z|[+-]\d\d(:?\d\d)?))?)?$'
    or not pg_input_is_valid(v_text, 'timestamptz') then
    return null;
  end if;
  return case when v_text ~ '[Z]$|\d\d:\d\d\S* ?[+-]\d' then v_text::timestamptz
    else v_text::timestamp at time zone p_zone end;
end $$;

-- A list of codes or names of a window, trimmed and in upper case, without duplicates.
create function private.window_list(p_list jsonb) returns text[]
language sql immutable set search_path = '' as $$
  select coalesce(array_agg(distinct upper(btrim(e)) order by upper(btrim(e))), '{}')
  from jsonb_array_elements_text(case when jsonb_typeof(p_list) = 'array' then p_list else '[]' end) e
  where btrim(e) <> ''
$$;

-- What is wrong with a window, as the end of a sentence; null: nothing.
create function private.window_fault(p_window jsonb, w private.window_draft) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case
    when exists (select from unnest(array['currencies', 'symbols']) k
      where coalesce(jsonb_typeof(p_window -> k), 'null') not in ('array', 'null')
        or jsonb_path_exists(p_window, 'strict $.keyvalue() ? (@.key == $k).value[*] ? (@.type() != "string")',
          jsonb_build_object('k', k), true))
      then 'has currencies or symbols that are not lists of texts'
    when coalesce(jsonb_typeof(p_window -> 'name'), 'null') not in ('string', 'null') then 'has a name that is no text'
    when w.begins_at is null then format('has no time that can be read in from (%s)',
      left(coalesce(p_window ->> 'from', 'nothing'), 50))
    when w.ends_at is null then format('has no time that can be read in until (%s)', left(p_window ->> 'until', 50))
    when w.ends_at < w.begins_at then format('ends at %s, before it begins at %s', private.rfc3339(w.ends_at),
      private.rfc3339(w.begins_at))
    when w.ends_at > w.begins_at + interval '31 days' then 'lasts over 31 days'
    when exists (select from unnest(w.currencies) c where c !~ '^[A-Z0-9]{2,10}$')
      then format('has a currency that is no code of 2 to 10 letters and digits (%s)',
        left(array_to_string(w.currencies, ', '), 50))
    when exists (select from unnest(w.symbols) s where length(s) > 64 or not private.is_plain(s))
      then 'has a symbol with over 64 characters or with control characters'
    when cardinality(w.currencies) > 50 or cardinality(w.symbols) > 100
      then 'has over 50 currencies or over 100 symbols'
    when length(w.name) > 100 or not private.is_plain(w.name)
      then 'has a name with over 100 characters or with control characters' end;
end $$;

-- A window of a request. until left out: a moment, or the whole day if from is a day; a day in until is meant with it.
create function private.window_of(p_window jsonb, p_zone text) returns private.window_draft
language plpgsql stable security definer set search_path = '' as $$
declare
  w private.window_draft;
  v_until text := coalesce(nullif(btrim(p_window ->> 'until'), ''), btrim(p_window ->> 'from'));
begin
  w.begins_at := private.instant_of(p_window ->> 'from', p_zone);
  w.ends_at := private.instant_of(v_until, p_zone);
  if v_until ~ '^\d{4}-\d\d-\d\d$' and w.ends_at is not null then
    w.ends_at := (v_until::date + 1)::timestamp at time zone p_zone;
  end if;
  w.currencies := private.window_list(p_window -> 'currencies');
  w.symbols := private.window_list(p_window -> 'symbols');
  w.name := nullif(btrim(p_window ->> 'name'), '');
  return w;
end $$;

-- Stores checked windows, all or none. Windows that were over a day ago are left out. Returns the answer to the caller.
create function private.put_quiet_windows(p_user uuid, p_windows private.window_draft[], p_replace boolean)
returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_max integer := (private.setting('quiet_windows_max') #>> '{}')::integer;
  v_saved bigint;
  v_count bigint;
  v_moments bigint;
begin
  perform private.hold_user(coalesce(p_user, '00000000-0000-0000-0000-000000000000'));
  if p_replace then
    delete from public.quiet_windows w where w.user_id is not distinct from p_user;
  end if;
  insert into public.quiet_windows as x (user_id, begins_at, ends_at, currencies, symbols, name, meanings, span)
  select distinct on (w.begins_at, w.ends_at, w.currencies, w.symbols) p_user, w.begins_at, w.ends_at, w.currencies,
    w.symbols, w.name, private.window_meanings(w.symbols),
    tstzrange(w.begins_at - interval '24 hours', w.ends_at + interval '24 hours')
  from unnest(p_windows) w where w.ends_at >= clock_timestamp() - interval '24 hours'
  on conflict (user_id, begins_at, ends_at, currencies, symbols) do update set name = excluded.name;
  get diagnostics v_saved = row_count;
  select count(*) into v_count from public.quiet_windows w where w.user_id is not distinct from p_user;
  if v_count > v_max then
    raise exception using errcode = 'TC324',
      message = format('the limit of quiet windows is %s, this would make %s', v_max, v_count),
      hint = 'Remove some first, or ask an operator to raise quiet_windows_max.';
  end if;
  select count(*) into v_moments from unnest(p_windows) w where w.ends_at = w.begins_at;
  return jsonb_build_object('saved', v_saved,
    'over', (select count(*) from unnest(p_windows) w where w.ends_at < clock_timestamp() - interval '24 hours'),
    'windows', v_count,
    'warnings', case when v_moments > 0 and exists (select from public.trading_accounts a
        where (a.user_id = p_user or p_user is null) and a.removed_at is null
          and a.quiet_minutes_before + a.quiet_minutes_after = 0)
      then jsonb_build_array(format('%s windows are moments: they hold back nothing on accounts without minutes before '
        'and after (set_quiet_times).', v_moments)) else '[]'::jsonb end);
end $$;

-- Whose windows a request is about: the caller's, or with for_all everybody's (null).
create function private.window_owner(p_function text, p_request jsonb) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
begin
  if coalesce(jsonb_typeof(p_request -> 'for_all'), 'null') not in ('null', 'boolean')
    or coalesce(jsonb_typeof(p_request -> 'replace'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = p_function || ': for_all and replace must be true or false';
  end if;
  if (p_request ->> 'for_all')::boolean then
    perform private.require_operator();
    return null;
  end if;
  return v_user;
end $$;

-- {"windows", "time_zone", "replace", "for_all"} -> {"saved", "over", "windows", "warnings"}
create function private.save_quiet_windows(p_request jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_owner uuid;
  v_zone text;
  v_window jsonb;
  w private.window_draft;
  v_windows private.window_draft[] := '{}';
  v_fault text;
begin
  perform private.refuse_unknown(p_request, 'save_quiet_windows', array['windows', 'time_zone', 'replace', 'for_all']);
  v_owner := private.window_owner('save_quiet_windows', p_request);
  v_zone := private.zone_of('save_quiet_windows', p_request -> 'time_zone', 'time_zone', 'UTC');
  if jsonb_typeof(p_request -> 'windows') is distinct from 'array'
    or jsonb_array_length(p_request -> 'windows') > 1000 then
    raise exception using errcode = 'TC001', message = 'save_quiet_windows: windows must be a list of at most 1000',
      hint = 'For example [{"from": "2026-12-04 13:30", "until": "2026-12-04 14:00", "currencies": ["USD"]}].';
  end if;
  for v_window in select value from jsonb_array_elements(p_request -> 'windows') loop
    perform private.refuse_unknown(v_window, 'save_quiet_windows: windows',
      array['from', 'until', 'currencies', 'symbols', 'name']);
    w := private.window_of(v_window, v_zone);
    v_fault := private.window_fault(v_window, w);
    if v_fault is not null then
      raise exception using errcode = 'TC303',
        message = format('save_quiet_windows: window %s %s', cardinality(v_windows) + 1, v_fault),
        hint = 'Nothing was saved. Times are written 2026-12-04 13:30 or 2026-12-04T13:30:00Z.';
    end if;
    v_windows := v_windows || w;
  end loop;
  return private.put_quiet_windows(v_owner, v_windows, coalesce((p_request ->> 'replace')::boolean, false));
end $$;

-- {"ids" or "all", "for_all"} -> {"removed"}
create function private.remove_quiet_windows(p_request jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_owner uuid;
  v_removed bigint;
begin
  perform private.refuse_unknown(p_request, 'remove_quiet_windows', array['ids', 'all', 'for_all']);
  v_owner := private.window_owner('remove_quiet_windows', p_request);
  if coalesce(jsonb_typeof(p_request -> 'all'), 'null') not in ('null', 'boolean')
    or coalesce((p_request ->> 'all')::boolean, false) = (jsonb_typeof(p_request -> 'ids') is not distinct from 'array')
    or exists (select from jsonb_array_elements_text(case when jsonb_typeof(p_request -> 'ids') = 'array'
      then p_request -> 'ids' else '[]' end) e where not pg_input_is_valid(e, 'bigint')) then
    raise exception using errcode = 'TC001',
      message = 'remove_quiet_windows: give ids, a list of whole numbers, or "all": true';
  end if;
  delete from public.quiet_windows w
  where w.user_id is not distinct from v_owner
    and ((p_request ->> 'all')::boolean
      or w.id in (select e::bigint from jsonb_array_elements_text(case when jsonb_typeof(p_request -> 'ids') = 'array'
        then p_request -> 'ids' else '[]' end) e));
  get diagnostics v_removed = row_count;
  return jsonb_build_object('removed', v_removed);
end $$;

-- {"account_id", "minutes_before", "minutes_after", "levels_wait", "own_windows"} -> the same
create function private.set_quiet_times(p_request jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_account uuid := private.require_account(p_request);
  a public.trading_accounts;
begin
  perform private.refuse_unknown(p_request, 'set_quiet_times', array['account_id', 'minutes_before', 'minutes_after',
    'levels_wait', 'own_windows']);
  if coalesce(jsonb_typeof(p_request -> 'levels_wait'), 'null') not in ('null', 'boolean')
    or coalesce(jsonb_typeof(p_request -> 'own_windows'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001',
      message = 'set_quiet_times: levels_wait and own_windows must be true or false';
  end if;
  update public.trading_accounts x set
    quiet_minutes_before = coalesce(private.int_of(p_request, 'minutes_before', 0, 1440), x.quiet_minutes_before),
    quiet_minutes_after = coalesce(private.int_of(p_request, 'minutes_after', 0, 1440), x.quiet_minutes_after),
    quiet_levels_wait = coalesce((p_request ->> 'levels_wait')::boolean, x.quiet_levels_wait),
    quiet_own_windows = coalesce((p_request ->> 'own_windows')::boolean, x.quiet_own_windows)
  where x.id = v_account returning * into a;
  return jsonb_build_object('account_id', v_account, 'minutes_before', a.quiet_minutes_before, 'minutes_after',
    a.quiet_minutes_after, 'levels_wait', a.quiet_levels_wait, 'own_windows', a.quiet_own_windows);
end $$;

create function public.save_quiet_windows(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_quiet_windows(p_request) $$;
comment on function public.save_quiet_windows(jsonb) is
  'Users: saves quiet windows, all or none: spans of time in which opens of certain currencies or '
  'symbols end as news_window. Closes are never held back. The table quiet_windows lists them.
Request:
- windows (list of objects; required; at most 1000): the windows; the same window is stored once
- windows[].from (text; required; 2026-12-04 13:30 or 2026-12-04T13:30:00Z, or a day): when it begins
- windows[].until (text; as from): when it ends; left out: a moment, or the whole day; a day is meant with its end
- windows[].currencies (list of texts): symbols with one of these currencies
- windows[].symbols (list of texts): these symbols, whatever a broker adds; neither of the two: everything
- windows[].name (text; up to 100 characters): what it is about
- time_zone (text; a time zone such as Europe/Berlin): of times without one; default UTC
- replace (boolean): true removes all others first
- for_all (boolean): true: for everybody; operators only
Answer:
- saved (integer): windows that were saved
- over (integer): windows that were left out because they ended over a day ago
- windows (integer): how many there are now
- warnings (list of texts): windows that hold back nothing
Errors: TC001 TC105 TC107 TC108 TC301 TC303 TC324
Example: {"windows": [{"from": "2099-12-04T13:30:00Z", "until": "2099-12-04T14:00:00Z", "currencies": ["USD"],
"name": "Non-farm payrolls"}]}
-> {"saved": 1, "over": 0, "windows": 1, "warnings": []}';

create function public.remove_quiet_windows(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_quiet_windows(p_request) $$;
comment on function public.remove_quiet_windows(jsonb) is
  'Users: removes quiet windows, by their ids or all.
Request:
- ids (list of integers; required unless all is true): ids of the table quiet_windows
- all (boolean): true: all of them
- for_all (boolean): true: those for everybody; operators only
Answer:
- removed (integer): how many were removed
Errors: TC001 TC105 TC107 TC108 TC301
Example: {"all": true} -> {"removed": 3}';

create function public.set_quiet_times(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_quiet_times(p_request) $$;
comment on function public.set_quiet_times(jsonb) is
  'Users and operators: how quiet windows concern an account. Keys that are left out or null keep their value.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- minutes_before (integer; 0 to 1440): windows begin so many minutes earlier; at first 0
- minutes_after (integer; 0 to 1440): windows end so many minutes later; at first 0
- levels_wait (boolean): true: changes of levels and pending orders wait until the window is over; at first false
- own_windows (boolean): false: only the windows for everybody concern it; at first true
Answer:
- account_id (uuid): the account
- minutes_before, minutes_after (integer): what holds now
- levels_wait, own_windows (boolean): what holds now
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "minutes_before": 2, "minutes_after": 2}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "minutes_before": 2, "minutes_after": 2,
"levels_wait": false, "own_windows": true}';

revoke all on function public.save_quiet_windows(jsonb), public.remove_quiet_windows(jsonb),
  public.set_quiet_times(jsonb) from public, anon;
grant execute on function public.save_quiet_windows(jsonb), public.remove_quiet_windows(jsonb),
  public.set_quiet_times(jsonb), private.save_quiet_windows(jsonb), private.remove_quiet_windows(jsonb),
  private.set_quiet_times(jsonb) to authenticated;
