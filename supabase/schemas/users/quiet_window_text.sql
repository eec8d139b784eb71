-- Quiet windows pasted as text: CSV from a table, or ICS from a calendar. All lines are taken or none.

create type private.window_line as (line integer, body jsonb, fault text);
comment on type private.window_line is
  'A window that was read from a line of a text, as save_quiet_windows takes it, or what is wrong with the line.';

create function private.wrong_line(p_line integer, p_fault text) returns private.window_line
language sql immutable set search_path = '' as $$ select row(p_line, null, p_fault)::private.window_line $$;

-- The lines of a text, numbered, without a byte order mark; any kind of line end.
create function private.text_lines(p_text text) returns table (line integer, body text)
language sql immutable set search_path = '' as $$
  select l.n::integer, l.t
  from regexp_split_to_table(regexp_replace(p_text, '^\uFEFF', ''), '\r\n|\r|\n') with ordinality l (t, n)
$$;

-- The fields of a line of CSV; null: a quote is not closed.
create function private.csv_fields(p_line text, p_separator text) returns text[]
language plpgsql immutable set search_path = '' as $$
declare
  v_field text := format('(?:"(?:[^"]|"")*"|[^"%1$s][^%1$s]*|)', p_separator);
begin
  if p_line !~ format('^\s*%1$s\s*(?:%2$s\s*%1$s\s*)*$', v_field, p_separator) then return null; end if;
  return array(
    select btrim(case when f.m[1] like '"%' then replace(substr(f.m[1], 2, length(f.m[1]) - 2), '""', '"')
      else f.m[1] end)
    from regexp_matches(p_line || p_separator, format('\s*(%1$s)\s*%2$s', v_field, p_separator), 'g')
      with ordinality f (m, n) order by f.n);
end $$;

-- What the columns of a table mean, by their names; a name that is not listed means nothing.
create function private.csv_columns(p_names text[]) returns text[]
language sql immutable set search_path = '' as $$
  select array_agg(case when lower(n) in ('from', 'start', 'begin', 'begins', 'datetime') then 'from'
    when lower(n) = 'date' then 'date' when lower(n) = 'time' then 'time'
    when lower(n) in ('until', 'end', 'ends', 'to') then 'until'
    when lower(n) in ('currency', 'currencies') then 'currencies'
    when lower(n) in ('symbol', 'symbols', 'instrument') then 'symbols'
    when lower(n) in ('name', 'title', 'event', 'summary') then 'name' else 'other' end order by o)
  from unnest(p_names) with ordinality u (n, o)
$$;

-- A text for a name: on one line, without control characters, at most 100 characters.
create function private.window_name(p_text text) returns text
language sql immutable set search_path = '' as $$
  select nullif(btrim(left(btrim(regexp_replace(p_text,
    '[\u0001-\u001F\u007F-\u009F\u2028-\u202E\u2066-\u2069\uFEFF]+', ' ', 'g')), 100)), '')
$$;

-- The windows in a table. Its first line names the columns, or its columns are from, until, currencies, symbols, name.
create function private.windows_in_csv(p_text text) returns setof private.window_line
language plpgsql stable set search_path = '' as $$
declare
  r record;
  v_separator text;
  v_columns text[];
  v_fields text[];
  v_row jsonb;
begin
  for r in select * from private.text_lines(p_text) loop
    continue when btrim(r.body) = '' or btrim(r.body) like '#%';
    v_separator := coalesce(v_separator, case when strpos(r.body, E'\t') > 0 then E'\t'
      when length(replace(r.body, ';', '')) < length(replace(r.body, ',', '')) then ';' else ',' end);
    v_fields := private.csv_fields(r.body, v_separator);
    if v_columns is null and v_fields[1] !~ '^\d' then
      v_columns := private.csv_columns(v_fields);
      if not v_columns && array['from', 'date'] then
        return next private.wrong_line(r.line, 'names no column from (or date)');
        return;
      end if;
      continue;
    end if;
    v_columns := coalesce(v_columns, array['from', 'until', 'currencies', 'symbols', 'name']);
    if v_fields is null or cardinality(v_fields) > cardinality(v_columns) then
      return next private.wrong_line(r.line, case when v_fields is null then 'has a quotation mark that is not closed'
        else format('has %s fields, but there are %s columns', cardinality(v_fields), cardinality(v_columns)) end);
      return;
    end if;
    select coalesce(jsonb_object_agg(k, v) filter (where v <> ''), '{}') into v_row
    from unnest(v_columns, v_fields) u (k, v) where k is not null;
    return next row(r.line, jsonb_build_object('from', coalesce(v_row ->> 'from', concat_ws(' ', v_row ->> 'date',
        v_row ->> 'time')), 'until', v_row -> 'until',
      'currencies', to_jsonb(regexp_split_to_array(coalesce(v_row ->> 'currencies', ''), '[;|/,\s]+')),
      'symbols', to_jsonb(regexp_split_to_array(coalesce(v_row ->> 'symbols', ''), '[;|,]')),
      'name', private.window_name(v_row ->> 'name')), null)::private.window_line;
  end loop;
end $$;

-- The properties of a calendar: folded lines joined, each with the number of its first line.
create function private.ics_properties(p_text text) returns table (line integer, name text, params text, body text)
language sql immutable set search_path = '' as $$
  with numbered as (
    select l.line, l.body, count(*) filter (where l.body !~ '^[ \t]') over (order by l.line) as unit
    from private.text_lines(p_text) l where l.body <> ''
  ), joined as (
    select min(n.line) as line, string_agg(case when n.body ~ '^[ \t]' then substr(n.body, 2) else n.body end, ''
      order by n.line) as body
    from numbered n group by n.unit
  )
  select j.line, upper(m[1]), coalesce(m[2], ''), coalesce(m[3], j.body)
  from joined j
  left join lateral regexp_match(j.body, '^([A-Za-z0-9-]+)((?:;[A-Za-z0-9-]+=(?:"[^"]*"|[^:"]*?))*):(.*)$') m on true
  order by j.line
$$;

-- The zone of a TZID: a name of the IANA list, or one of the names that Windows uses; null: unknown.
create function private.ics_zone(p_params text, p_default text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_id text := (regexp_match(p_params, ';TZID="?([^";]+)"?', 'i'))[1];
  v_name text := coalesce('{"Eastern Standard Time": "America/New_York", "Central Standard Time": "America/Chicago",
    "Pacific Standard Time": "America/Los_Angeles", "GMT Standard Time": "Europe/London",
    "W. Europe Standard Time": "Europe/Berlin", "Romance Standard Time": "Europe/Paris",
    "Central European Standard Time": "Europe/Warsaw", "Central Europe Standard Time": "Europe/Budapest",
    "Tokyo Standard Time": "Asia/Tokyo", "AUS Eastern Standard Time": "Australia/Sydney"}'::jsonb ->> v_id, v_id);
begin
  return case when v_id is null then p_default when private.is_time_zone(v_name) then v_name end;
end $$;

-- 20261204T133000Z, or a day, as save_quiet_windows reads it, with its offset from UTC; null: it is no time.
create function private.ics_time(p_body text, p_params text, p_zone text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  m text[] := regexp_match(btrim(p_body), '^(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z?))?$');
  v_local text := format('%s-%s-%s %s:%s:%s', m[1], m[2], m[3], coalesce(m[4], '00'), coalesce(m[5], '00'),
    coalesce(m[6], '00'));
begin
  if m is null or not pg_input_is_valid(v_local, 'timestamp') then return null; end if;
  return private.rfc3339(v_local::timestamp at time zone case when m[7] = 'Z' then 'UTC'
    else private.ics_zone(p_params, p_zone) end);
end $$;

-- A window from the properties of an event, {"DTSTART": {"body", "params"}, …}.
create function private.window_of_event(p_line integer, e jsonb, p_zone text) returns private.window_line
language plpgsql stable security definer set search_path = '' as $$
declare
  v_from text := private.ics_time(e #>> '{DTSTART,body}', e #>> '{DTSTART,params}', p_zone);
  v_until text := private.ics_time(e #>> '{DTEND,body}', e #>> '{DTEND,params}', p_zone);
  v_duration text := e #>> '{DURATION,body}';
  v_words text := concat_ws(' ', e #>> '{SUMMARY,body}', e #>> '{CATEGORIES,body}');
begin
  if e ?| array['RRULE', 'RDATE'] then
    return private.wrong_line(p_line, 'is an event that repeats: give each of its dates as an event of its own');
  elsif v_from is null or e ? 'DTEND' and v_until is null then
    return private.wrong_line(p_line, case
        when private.ics_zone(concat(e #>> '{DTSTART,params}', e #>> '{DTEND,params}'), p_zone) is null
          then 'has a time in a zone that is not known' else 'has no time that can be read' end
      || format(' (%s %s)', left(concat(e #>> '{DTSTART,params}', ':', e #>> '{DTSTART,body}'), 60),
        left(concat(e #>> '{DTEND,params}', ':', e #>> '{DTEND,body}'), 60)));
  elsif v_duration is not null and (v_duration !~ '^\+?P[0-9WDTHMS]+$'
    or not pg_input_is_valid(ltrim(v_duration, '+'), 'interval')) then
    return private.wrong_line(p_line, format('has a duration that cannot be read (%s)', left(v_duration, 50)));
  end if;
  v_until := coalesce(v_until,
    private.rfc3339(v_from::timestamptz + ltrim(v_duration, '+')::interval),
    case when e #>> '{DTSTART,body}' !~ 'T' then
      private.ics_time(to_char(btrim(e #>> '{DTSTART,body}')::date + 1, 'YYYYMMDD'), e #>> '{DTSTART,params}', p_zone)
      end, v_from);
  return row(p_line, jsonb_build_object('from', v_from, 'until', v_until,
    'currencies', to_jsonb(array(select m[1] from regexp_matches(v_words, '\m(AUD|BRL|CAD|CHF|CNH|CNY|CZK|DKK|EUR|GBP|'
      'HKD|HUF|ILS|INR|JPY|KRW|MXN|NOK|NZD|PLN|RUB|SEK|SGD|THB|TRY|USD|ZAR)\M', 'g') m)),
    'symbols', '[]'::jsonb,
    'name', private.window_name(regexp_replace(regexp_replace(e #>> '{SUMMARY,body}', '\\[nN]', ' ', 'g'), '\\(.)',
      '\1', 'g'))), null)::private.window_line;
end $$;

-- The windows in a calendar: its events, except cancelled ones. What is inside an event (alarms) does not count.
create function private.windows_in_ics(p_text text, p_zone text) returns setof private.window_line
language plpgsql stable security definer set search_path = '' as $$
declare
  r record;
  v_open text[] := '{}';
  v_event jsonb;
  v_begun integer;
begin
  for r in select * from private.ics_properties(p_text) loop
    if r.name is null then
      return next private.wrong_line(r.line, format('is no line of a calendar (%s)', left(r.body, 50)));
      return;
    elsif r.name = 'BEGIN' then
      v_open := v_open || upper(btrim(r.body));
      if upper(btrim(r.body)) = 'VEVENT' then v_event := '{}'; v_begun := r.line; end if;
    elsif r.name = 'END' then
      if v_open[cardinality(v_open)] is distinct from upper(btrim(r.body)) then
        return next private.wrong_line(r.line, format('ends %s, which was not begun', left(r.body, 50)));
        return;
      end if;
      if upper(btrim(r.body)) = 'VEVENT' and upper(coalesce(v_event #>> '{STATUS,body}', '')) <> 'CANCELLED' then
        return next private.window_of_event(v_begun, v_event, p_zone);
      end if;
      v_open := v_open[:cardinality(v_open) - 1];
    elsif v_open[cardinality(v_open)] = 'VEVENT' then
      v_event := v_event || jsonb_build_object(r.name, jsonb_build_object('params', r.params, 'body', r.body));
    elsif v_open = '{}' then
      return next private.wrong_line(r.line, 'stands outside of the calendar (BEGIN:VCALENDAR)');
      return;
    end if;
  end loop;
  if v_open <> '{}' then
    return next private.wrong_line(v_begun, 'begins something that is not ended: the text is cut off');
  end if;
end $$;

-- {"text", "format", "time_zone", "currencies", "symbols", "replace", "for_all"} -> {"saved", "over", "windows",
-- "warnings"}
create function private.import_quiet_windows(p_request jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_owner uuid;
  v_zone text;
  v_text text := p_request ->> 'text';
  v_ics boolean;
  r private.window_line;
  w private.window_draft;
  v_windows private.window_draft[] := '{}';
begin
  perform private.refuse_unknown(p_request, 'import_quiet_windows', array['text', 'format', 'time_zone', 'currencies',
    'symbols', 'replace', 'for_all']);
  v_owner := private.window_owner('import_quiet_windows', p_request);
  v_zone := private.zone_of('import_quiet_windows', p_request -> 'time_zone', 'time_zone', 'UTC');
  if jsonb_typeof(p_request -> 'text') is distinct from 'string' or length(v_text) > 200000
    or coalesce(p_request ->> 'format', 'csv') not in ('csv', 'ics') then
    raise exception using errcode = 'TC001',
      message = 'import_quiet_windows: text must have at most 200000 characters, format must be csv or ics',
      hint = 'Paste a longer text in parts.';
  end if;
  v_ics := coalesce(p_request ->> 'format' = 'ics', v_text ~* '^\uFEFF?\s*BEGIN:VCALENDAR');
  for r in select * from private.windows_in_ics(v_text, v_zone) where v_ics
    union all select * from private.windows_in_csv(v_text) where not v_ics
  loop
    if r.fault is null then
      if r.body -> 'currencies' in ('[]', '[""]') and r.body -> 'symbols' in ('[]', '[""]') then
        r.body := r.body || jsonb_strip_nulls(jsonb_build_object('currencies', p_request -> 'currencies', 'symbols',
          p_request -> 'symbols'));
      end if;
      w := private.window_of(r.body, v_zone);
      r.fault := private.window_fault(r.body, w);
    end if;
    if r.fault is not null then
      raise exception using errcode = 'TC323',
        message = format('import_quiet_windows: line %s %s', r.line, r.fault),
        hint = 'Nothing was saved. Correct the line, or leave it out.';
    end if;
    v_windows := v_windows || w;
  end loop;
  if v_windows = '{}' then
    raise exception using errcode = 'TC323', message = 'import_quiet_windows: the text has no window',
      hint = 'Nothing was saved. A line of a table is: 2026-12-04 13:30,2026-12-04 14:00,USD';
  end if;
  return private.put_quiet_windows(v_owner, v_windows, coalesce((p_request ->> 'replace')::boolean, false));
end $$;

create function public.import_quiet_windows(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.import_quiet_windows(p_request) $$;
comment on function public.import_quiet_windows(jsonb) is
  'Users: saves quiet windows from a pasted text, all or none. CSV: a first line with the names of the columns (from '
  'or date and time, until, currencies, symbols, name), or columns in this order; separated by comma, semicolon or '
  'tab. ICS: the events of a calendar; their currencies are the codes in their title and categories.
Request:
- text (text; required; up to 200000 characters): the text
- format (text; csv or ics): left out: seen from the text
- time_zone (text; a time zone such as Europe/Berlin): of times without one; default UTC
- currencies, symbols (list of texts): of windows that name neither; left out: they concern everything
- replace (boolean): true removes all others first
- for_all (boolean): true: for everybody; operators only
Answer:
- saved (integer): windows that were saved
- over (integer): windows that were left out because they ended over a day ago
- windows (integer): how many there are now
- warnings (list of texts): windows that hold back nothing
Errors: TC001 TC105 TC107 TC108 TC301 TC303 TC323 TC324
Example: {"text": "2099-12-04 13:30,2099-12-04 14:00,USD", "time_zone": "UTC"}
-> {"saved": 1, "over": 0, "windows": 1, "warnings": []}';

revoke all on function public.import_quiet_windows(jsonb) from public, anon;
grant execute on function public.import_quiet_windows(jsonb), private.import_quiet_windows(jsonb) to authenticated;
