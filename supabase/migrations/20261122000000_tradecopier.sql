-- Made by `make migration` from supabase/schemas/. Edit those.

-- base/rights.sql
-- Rights: nothing can be called or read unless a grant names it. This file is loaded first.
--
-- Three kinds of functions:
--   private.* with a grant     security definer; it checks the caller before it does anything. The API does not expose
--                              this schema.
--   public.*                   one-line security invoker wrappers: the functions of the API, granted to roles by name.
--   private.* without a grant  called by other functions only.

create schema if not exists private;
comment on schema private is
  'Functions that run with their owner''s rights, partitions and secrets. Never exposed by the API.';

-- No "in schema" here: per-schema defaults can only add to the global default, and the global one grants to public.
alter default privileges revoke execute on functions from public;

-- Projects created before mid 2026 also grant every new object in public to the API roles.
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;

alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;

alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;

revoke all on schema private from public;
grant usage on schema private to authenticated, service_role;

-- Sets updated_at, by which the doorbells find what changed.
create function private.touch() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.updated_at := now();
  return new;
end
$$;
comment on function private.touch() is 'Trigger: sets updated_at to the transaction''s time.';

-- base/hash.sql
-- Hashes of secrets and of identifiers.

create function private.sha256_hex(p_text text) returns text
language sql immutable
set search_path = ''
as $$ select encode(sha256(convert_to(p_text, 'UTF8')), 'hex') $$;
comment on function private.sha256_hex(text) is 'SHA-256 of a text encoded as UTF-8, in lower-case hex; null for null.';

-- base/json.sql
-- JSON readers: each reads one typed value of a request or report, or raises an error that names the key. Also the
-- limits of documents and texts. Input typed by a person is refused when it exceeds a limit (TC001, TC303).
--
-- settings: 16 kB, 6 levels, 500 keys · names: 100 characters · comments: 200 · patterns: 100

-- A field of the wrong type raises TC001 and names the field, instead of failing in a cast.
create function private.uuid_of(p_request jsonb, p_field text) returns uuid
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null or not pg_input_is_valid(v_text, 'uuid') then
    raise exception using errcode = 'TC001', message = format('%s: expected a UUID', p_field),
      detail = coalesce(left(v_text, 100), 'it is missing');
  end if;
  return v_text::uuid;
end
$$;
comment on function private.uuid_of(jsonb, text) is 'A required UUID field; TC001 if it is missing or not a UUID.';

create function private.text_of(p_request jsonb, p_field text, p_max integer) returns text
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := nullif(trim(p_request ->> p_field), '');
begin
  if v_text is not null and (jsonb_typeof(p_request -> p_field) <> 'string' or length(v_text) > p_max) then
    raise exception using errcode = 'TC001',
      message = format('%s: expected a string of at most %s characters', p_field, p_max);
  end if;
  return v_text;
end
$$;
comment on function private.text_of(jsonb, text, integer) is
  'An optional string, trimmed; null if it is missing or empty; TC001 if it is not a string or too long.';

create function private.int_of(p_request jsonb, p_field text, p_min bigint, p_max bigint) returns bigint
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null then
    return null;
  end if;
  if not pg_input_is_valid(v_text, 'bigint') or v_text::bigint not between p_min and p_max then
    raise exception using errcode = 'TC001',
      message = format('%s: expected a whole number from %s to %s', p_field, p_min, p_max),
      detail = left(v_text, 100);
  end if;
  return v_text::bigint;
end
$$;
comment on function private.int_of(jsonb, text, bigint, bigint) is
  'An optional whole number; null if it is missing; TC001 if it is not a whole number from p_min to p_max.';

create function private.numeric_of(p_request jsonb, p_field text) returns numeric
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null then
    return null;
  end if;
  -- Postgres accepts NaN and the infinities as numeric; no real figure has these values.
  if length(v_text) > 40 or not pg_input_is_valid(v_text, 'numeric')
    or v_text::numeric in ('NaN', 'Infinity', '-Infinity')
    or abs(v_text::numeric) >= 1e24 then
    raise exception using errcode = 'TC001',
      message = format('%s: expected a finite number of at most 40 characters', p_field), detail = left(v_text, 100);
  end if;
  return v_text::numeric;
end
$$;
comment on function private.numeric_of(jsonb, text) is
  'An optional finite number of at most 40 characters, as a JSON string or number; null if it is missing; TC001 '
  'otherwise.';

create function private.time_of(p_request jsonb, p_field text) returns timestamptz
language plpgsql stable
set search_path = ''
as $$
declare
  v_text text := p_request ->> p_field;
begin
  if v_text is null then
    return null;
  end if;
  if not pg_input_is_valid(v_text, 'timestamptz') or not isfinite(v_text::timestamptz) then
    raise exception using errcode = 'TC001', message = format('%s: expected a time as RFC 3339', p_field),
      detail = left(v_text, 100);
  end if;
  return v_text::timestamptz;
end
$$;
comment on function private.time_of(jsonb, text) is
  'An optional time; null if it is missing; TC001 if it is not a finite time.';

-- The size is checked first, so the later checks only ever see a small document.
create function private.document_fault(p_document jsonb) returns text
language sql immutable
set search_path = ''
as $$
  select case
    when octet_length(p_document::text) > 16384
      then format('it has %s bytes, at most 16384 are allowed', octet_length(p_document::text))
    when jsonb_path_exists(p_document, 'strict $.**{6} ? (@.type() == "object" || @.type() == "array")')
      then 'it is nested deeper than 6 levels'
    when (select count(*) from jsonb_path_query(p_document, 'strict $.** ? (@.type() == "object")') o,
      jsonb_object_keys(o)) > 500
      then 'it has more than 500 keys'
  end
$$;
comment on function private.document_fault(jsonb) is
  'Why a free-form document is too large (limits: 16 kB as text, 6 levels, 500 keys over all levels); null: it is not.';

create function private.check_document(p_request jsonb, p_field text) returns jsonb
language plpgsql immutable
set search_path = ''
as $$
declare
  v_document jsonb := nullif(p_request -> p_field, 'null');
  v_fault text := private.document_fault(v_document);
begin
  if jsonb_typeof(v_document) <> 'object' then
    raise exception using errcode = 'TC001', message = format('%s: expected an object', p_field);
  elsif v_fault is not null then
    raise exception using errcode = 'TC303', message = format('%s: %s', p_field, v_fault),
      hint = 'Settings are a few values for the account''s platform, not a store of data: give fewer and flatter ones.';
  end if;
  return v_document;
end
$$;
comment on function private.check_document(jsonb, text) is
  'An optional free-form object within its limits; null if it is missing; TC001 if it is not an object, TC303 if it is '
  'too large.';

-- The string is not trimmed: a password may begin or end with a space.
create function private.verbatim_of(p_request jsonb, p_field text, p_max integer) returns text
language plpgsql immutable
set search_path = ''
as $$
begin
  if coalesce(jsonb_typeof(p_request -> p_field), 'null') not in ('null', 'string')
    or length(p_request ->> p_field) > p_max then
    raise exception using errcode = 'TC001',
      message = format('%s: expected a string of at most %s characters', p_field, p_max);
  end if;
  return nullif(p_request ->> p_field, '');
end
$$;
comment on function private.verbatim_of(jsonb, text, integer) is
  'An optional string, not trimmed; null if it is missing or empty; TC001 if it is not a string or too long.';

-- Symbol names and tickets have at most 64 characters. Anything with a longer name cannot be copied, but it does not
-- make the call fail.
create function private.is_too_long(p_name jsonb) returns boolean
language sql immutable
set search_path = ''
as $$ select jsonb_typeof(p_name) = 'string' and length(p_name #>> '{}') > 64 $$;
comment on function private.is_too_long(jsonb) is
  'Whether this is a string of over 64 characters, too long for a symbol name or a ticket.';

-- An object or a list in place of a string is treated as if nothing had been sent.
create function private.is_no_text(p jsonb) returns boolean
language sql immutable
set search_path = ''
as $$ select jsonb_typeof(p) in ('object', 'array') $$;
comment on function private.is_no_text(jsonb) is
  'Whether this is an object or a list where a string or null is expected.';

create function private.is_number(p jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  -- 40 characters are more than any figure needs, and keep the arithmetic cheap
  return case when length(p #>> '{}') > 40 then false when jsonb_typeof(p) = 'number' then true
    when jsonb_typeof(p) = 'string' then pg_input_is_valid(p #>> '{}', 'numeric') and (p #>> '{}') !~* 'nan|inf'
      else false end;
end $$;

create function private.rfc3339(p_at timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
end $$;

create function private.is_quote(p jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(jsonb_typeof(p), 'null') = 'null' then return true; end if;
  if jsonb_typeof(p) <> 'object' or not coalesce(private.is_number(p -> 'bid')
    and private.is_number(p -> 'ask'), false) then
    return false;
  end if;
  return (p ->> 'bid')::numeric > 0 and (p ->> 'ask')::numeric > 0;
end $$;

-- base/limit.sql
-- The limit of `detail` of an outcome: 2 kB.

-- Details are for people to read. A detail over 2 kB keeps its short values; a long value is replaced by its size and
-- digest.
create function private.short_detail(p_detail jsonb) returns jsonb
language sql immutable
set search_path = ''
as $$
  select case when octet_length(p_detail::text) <= 2048 then p_detail
    when jsonb_typeof(p_detail) <> 'object' or kept.body is null or octet_length(kept.body::text) > 2048
      then jsonb_build_object('cut', left(p_detail::text, 450))
    else kept.body end
  from (
    select jsonb_object_agg(left(e.key, 64), case when octet_length(e.value::text) <= 200 then e.value
      else jsonb_build_object('bytes', octet_length(e.value::text), 'md5', md5(e.value::text)) end) as body
    from jsonb_each(case when jsonb_typeof(p_detail) = 'object' and octet_length(p_detail::text) > 2048
      then p_detail end) e
  ) kept
$$;
comment on function private.short_detail(jsonb) is
  'The detail, cut to at most 2 kB: a long value is replaced by its size and MD5.';

-- base/operator.sql
-- operators: the people who run the farm. The right is a row in a table, because a claim in a token cannot be trusted.

create table public.operators (
  user_id uuid primary key references auth.users (id) on delete cascade,
  granted_at timestamptz not null default now()
);
comment on table public.operators is 'Users who run the farm: they see every row, and move, drain and retire VPSes.';
comment on column public.operators.user_id is 'The user.';
comment on column public.operators.granted_at is 'When the user became an operator.';

-- Security definer: policies call it for users who may not read the table.
create function private.is_operator() returns boolean
language sql stable security definer
set search_path = ''
as $$ select exists (select from public.operators o where o.user_id = auth.uid()) $$;
comment on function private.is_operator() is 'Whether the caller is an operator.';
alter table public.operators enable row level security;
create policy "operators see operators, everybody sees himself" on public.operators for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));

create function private.require_operator() returns void
language plpgsql stable
set search_path = ''
as $$
begin
  -- The service key owns the project and may do everything an operator may.
  if coalesce(auth.role(), '') <> 'service_role' and not private.is_operator() then
    raise exception using errcode = 'TC107', message = 'only an operator may do this',
      hint = 'Ask an operator. The first one is made with: tradecopier operator grant EMAIL';
  end if;
end
$$;
comment on function private.require_operator() is
  'Raises TC107 unless the caller is an operator or holds the service key.';
grant select on public.operators to authenticated, service_role;
grant execute on function private.is_operator() to authenticated;

-- base/pattern.sql
-- Lists of patterns: the limits of a copier's lists, and the compiled form that the planner matches trades against.

-- The most entries that a copier's list may have; entry_max(): the most characters of one entry.
create function private.list_max() returns integer
language plpgsql immutable set search_path = '' as $$ begin return 500; end $$;

create function private.entry_max() returns integer
language plpgsql immutable set search_path = '' as $$ begin return 100; end $$;

-- Whether a list is within its limits: one dimension, no nulls, at most 500 entries of at most 100 characters.
create function private.is_list(p_list text[]) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return cardinality(p_list) = 0 or array_ndims(p_list) = 1 and cardinality(p_list) <= private.list_max()
    and not exists (select 1 from unnest(p_list) as e (entry)
      where e.entry is null or length(e.entry) > private.entry_max());
end $$;

create type private.patterns as (exact text[], wild text[]);
comment on type private.patterns is
  'A compiled list: exact names in lower case, and the entries with * as LIKE patterns.';

-- LIKE, not a regular expression: LIKE backtracks no further than to the last *, so no pattern can take long, and LIKE
-- patterns need not be compiled anew by each connection.
create function private.compiled(p_list text[]) returns private.patterns
language plpgsql immutable set search_path = '' as $$
declare
  v_exact text[];
  v_wild text[];
begin
  select array_agg(distinct lower(e.entry)) filter (where strpos(e.entry, '*') = 0),
    array_agg(distinct replace(replace(replace(regexp_replace(lower(e.entry), '\*+', '*', 'g'), '\', '\\'), '%', '\%'),
      '_', '\_'))
      filter (where strpos(e.entry, '*') > 0)
  into v_exact, v_wild from unnest(p_list) as e (entry);
  if '*' = any (v_wild) then  -- * matches everything: the other entries are not needed
    return row('{}'::text[], array['%'])::private.patterns;
  end if;
  return row(coalesce(v_exact, '{}'), coalesce(array(select replace(w, '*', '%') from unnest(v_wild) w),
    '{}'))::private.patterns;
end $$;

-- Whether a text matches one of the patterns. * stands for any text; case is ignored.
create function private.matches(p_text text, p_patterns private.patterns) returns boolean
language plpgsql immutable set search_path = '' as $$
declare
  v_text text := lower(coalesce(p_text, ''));
begin
  return v_text = any (p_patterns.exact) or v_text like any (p_patterns.wild);
end $$;

-- The first entries of a list as text, for use in a message.
create function private.listed(p_list text[]) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return array_to_string(p_list[:10], ', ')
    || case when cardinality(p_list) > 10 then format(' and %s more', cardinality(p_list) - 10) else '' end;
end $$;

-- base/request.sql
-- Checks for every function that takes an object: the argument must be an object, and every key must be known. A
-- misspelt key that was ignored would look as if its setting had been applied.

-- Names are shown within other text in alerts and lists. A line break, an invisible character or a mark of writing
-- direction in a name could change how the text around it reads.
create function private.is_plain(p_text text) returns boolean
language sql immutable
set search_path = ''
as $$ select p_text !~ '[\u0001-\u001F\u007F-\u009F\u2028-\u202E\u2066-\u2069\uFEFF]' $$;
comment on function private.is_plain(text) is
  'Whether a text is free of control characters, marks of writing direction and U+FEFF.';

create function private.name_of(p_request jsonb, p_field text, p_max integer) returns text
language plpgsql immutable
set search_path = ''
as $$
declare
  v_name text := private.text_of(p_request, p_field, p_max);
begin
  if not private.is_plain(v_name) then
    raise exception using errcode = 'TC001',
      message = format('%s: it holds a control character or a mark of writing direction', p_field),
      hint = 'Type the name by hand: the pasted text contains invisible characters.';
  end if;
  return v_name;
end
$$;
comment on function private.name_of(jsonb, text, integer) is
  'An optional name, trimmed; null if it is missing or empty; TC001 if it is too long or not plain.';

create function private.refuse_unknown(p_request jsonb, p_function text, p_known text[]) returns void
language plpgsql immutable
set search_path = ''
as $$
declare
  v_unknown text;
begin
  if jsonb_typeof(p_request) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = format('%s: the argument must be an object', p_function),
      hint = 'See docs/protocol.md.';
  end if;
  select left(string_agg(k, ', ' order by k), 200) into v_unknown from jsonb_object_keys(p_request) k
  where k <> all (p_known);
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('%s: unknown setting: %s', p_function, v_unknown),
      hint = format('Known are: %s.', array_to_string(p_known, ', '));
  end if;
end
$$;
comment on function private.refuse_unknown(jsonb, text, text[]) is
  'Raises TC001 unless the request is an object, and TC301 with the names of unknown keys.';

-- People and brokers write the same name in different ways: "ABC " and "abc" are the same server, or the same login.
create function private.plain_name(p_name text) returns text
language sql immutable strict parallel safe
set search_path = ''
as $$
  select btrim(regexp_replace(lower(regexp_replace(normalize(p_name, NFKC), '[\u200B-\u200D\u2060\uFEFF]', '',
    'g') collate "pg_c_utf8"),
                              '[[:space:][:cntrl:]]+', ' ', 'g'))
$$;
comment on function private.plain_name(text) is
  'The name without differences of case, blanks and invisible characters, for comparison.';

-- base/setting.sql
-- system_config: every setting that an operator may change, with its meaning, type, range and unit.

create table public.system_config (
  key text primary key,
  value jsonb not null,
  type text not null,
  minimum numeric,
  maximum numeric,
  unit text not null,
  description text not null,
  updated_at timestamptz not null default now(),
  constraint key_is_snake_case check (key ~ '^[a-z][a-z0-9_.]{1,62}$'),
  constraint description_says_something check (length(description) >= 10),
  constraint type_is_known check (type in ('integer', 'number', 'platforms')),
  constraint unit_is_named check (length(unit) between 1 and 20),
  -- a number without a range could stop the farm, so every new row needs one
  constraint numbers_have_a_range check (case when type in ('integer', 'number')
    then coalesce(minimum < maximum and minimum >= 0 and maximum < 'Infinity', false)
    else minimum is null and maximum is null end)
);
comment on table public.system_config is
  'Settings of the whole installation. Operators read it and change values with set_setting(); only migrations add or '
  'remove rows.';
comment on column public.system_config.key is 'Name of the setting; the name ends in its unit (_s, _ms, _days).';
comment on column public.system_config.value is
  'The value; always of this row''s type and within its range.';
comment on column public.system_config.type is
  'integer (a whole number), number (at most six decimals), or the name of a structure that is checked (platforms).';
comment on column public.system_config.minimum is
  'The smallest allowed value; no allowed value stops the farm by itself. Null for structures.';
comment on column public.system_config.maximum is
  'The largest allowed value; no allowed value stops the farm by itself. Null for structures.';
comment on column public.system_config.unit is
  'What the number counts: s, ms, days, rows, …; for a structure, what its entries are.';
comment on column public.system_config.description is 'What the setting does, written for the operator who changes it.';
comment on column public.system_config.updated_at is 'When it was last changed.';
alter table public.system_config enable row level security;
create trigger touch before update on public.system_config for each row execute function private.touch();

create function private.setting(p_key text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
  v_value jsonb;
begin
  select c.value into v_value from public.system_config c where c.key = p_key;
  if not found then
    raise exception using errcode = 'TC200',
      message = format('there is no setting %s', left(coalesce(p_key, '(no key given)'), 100)),
      hint = 'Check the name. The rows of system_config are created by the migrations: run them if one is missing.';
  end if;
  return v_value;
end
$$;
comment on function private.setting(text) is 'The value of a setting; TC200 if there is no setting of that name.';

create function private.setting_s(p_key text) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
  return make_interval(secs => (private.setting(p_key) #>> '{}')::double precision);
end
$$;
comment on function private.setting_s(text) is 'A setting in seconds, as an interval; TC200 if it does not exist.';

create function private.setting_days(p_key text) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
  return make_interval(days => (private.setting(p_key) #>> '{}')::integer);
end
$$;
comment on function private.setting_days(text) is 'A setting in days, as an interval; TC200 if it does not exist.';

-- Checks the form of the setting platforms: {"paper": {"password": false}, …}.
create function private.platforms_error(p_value jsonb) returns text
language plpgsql immutable
set search_path = ''
as $$
declare
  v_name text;
  v_rules jsonb;
begin
  if jsonb_typeof(p_value) <> 'object' or p_value = '{}' or (select count(*) from jsonb_object_keys(p_value)) > 50 then
    return 'must be an object with 1 to 50 platforms such as {"paper": {"password": false}}';
  end if;
  for v_name, v_rules in select e.key, e.value from jsonb_each(p_value) e loop
    if v_name !~ '^[a-z][a-z0-9_]{0,29}$' then
      return format('has a platform named "%s", but a name must be 1 to 30 small letters, digits and _',
        left(v_name, 100));
    end if;
    if jsonb_typeof(v_rules) <> 'object' or jsonb_typeof(v_rules -> 'password') is distinct from 'boolean'
      or jsonb_typeof(coalesce(v_rules -> 'address', 'true')) <> 'boolean' or v_rules - 'password' - 'address' <> '{}'
    then
      return format('has %s for %s, but must have {"password": true} or {"password": false}, and may have "address" as '
        'well', left(v_rules::text, 100), v_name);
    end if;
  end loop;
  return null;
end
$$;
comment on function private.platforms_error(jsonb) is
  'One sentence about what is wrong with a value of the setting platforms; null: nothing is.';

-- The value as it is stored: of the row's type, within its range, without trailing zeros (a cast of 15.0 to integer
-- would fail).
create function private.checked_setting(p_row public.system_config) returns jsonb
language plpgsql immutable
set search_path = ''
as $$
declare
  v_said text := left(coalesce(p_row.value, 'null')::text, 100);
  v_number numeric;
  v_error text;
begin
  if p_row.type = 'platforms' then
    v_error := private.platforms_error(coalesce(p_row.value, 'null'));
    if v_error is not null then
      raise exception using errcode = 'TC302', message = format('setting %s: %s', p_row.key, v_error),
        hint = 'Give the value in that form.';
    end if;
    return p_row.value;
  end if;
  if jsonb_typeof(p_row.value) = 'number' then
    v_number := trim_scale((p_row.value #>> '{}')::numeric);
  end if;
  if v_number is null or scale(v_number) > (case p_row.type when 'integer' then 0 else 6 end) then
    raise exception using errcode = 'TC302',
      message = format('setting %s: %s is not %s; it must be %s to %s %s', p_row.key, v_said,
        case p_row.type when 'integer' then 'a whole number' else 'a number of at most six decimals' end,
        p_row.minimum, p_row.maximum, p_row.unit),
      hint = 'Give a JSON number, without quotes.';
  end if;
  if v_number not between p_row.minimum and p_row.maximum then
    raise exception using errcode = 'TC303',
      message = format('setting %s: %s is out of its range, it must be %s to %s %s', p_row.key, v_said, p_row.minimum,
        p_row.maximum, p_row.unit),
      hint = 'Choose a value within the range.';
  end if;
  return to_jsonb(v_number);
end
$$;
comment on function private.checked_setting(public.system_config) is
  'The value of a row in its stored form; TC302 if it has the wrong type, TC303 if it is out of range.';

-- Runs for every writer, Studio included: the value must fit the row's range, and only migrations may add, remove or
-- redefine rows.
create function private.check_setting() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_migrating boolean := coalesce(current_setting('tradecopier.migrating', true), '') = 'on';
begin
  if not v_migrating and (tg_op in ('DELETE', 'TRUNCATE') or tg_op = 'UPDATE'
      and (new.key, new.type, new.minimum, new.maximum, new.unit) is distinct from (old.key, old.type, old.minimum,
        old.maximum, old.unit)) then
    raise exception using errcode = 'TC216',
      message = format('%s: only a migration may remove a setting, or change its name, type, range or unit',
        case when tg_op = 'TRUNCATE' then 'system_config' else 'setting ' || old.key end),
      hint = 'Change the value instead. A migration first runs: set local tradecopier.migrating = on';
  end if;
  if tg_op in ('DELETE', 'TRUNCATE') then
    return old;
  end if;
  new.value := private.checked_setting(new);
  return new;
end
$$;
comment on function private.check_setting() is
  'Trigger: refuses a value that does not fit its row (TC302, TC303), and a change of a row''s name, type, range or '
  'unit outside a migration (TC216).';
create trigger check_setting before insert or update or delete
  on public.system_config for each row execute function private.check_setting();
create trigger check_setting_truncate before truncate
  on public.system_config for each statement execute function private.check_setting();

-- Checks settings that depend on each other. Runs for every writer, Studio included.
create function private.check_settings_together() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_lease numeric;
  v_pause numeric;
begin
  if new.key not in ('lease_s', 'maintain_s', 'heartbeat_s') then
    return new;
  end if;
  -- serialized: two concurrent changes could each be valid alone and invalid together
  perform pg_advisory_xact_lock(hashtextextended('tradecopier.settings', 0));
  select max((c.value #>> '{}')::numeric) filter (where c.key = 'lease_s'),
    sum((c.value #>> '{}')::numeric) filter (where c.key in ('maintain_s', 'heartbeat_s'))
  into v_lease, v_pause
  from (
    select o.key, o.value from public.system_config o
    where o.key in ('lease_s', 'maintain_s', 'heartbeat_s') and o.key <> new.key
    union all
    select new.key, new.value
  ) c;
  -- maintain() judges no lease if its own last run is over half a lease ago. Without a scheduler such gaps are normal,
  -- so no lease would ever be judged.
  if v_lease <= 2 * v_pause then
    raise exception using errcode = 'TC215',
      message = format('lease_s must be over twice the sum of maintain_s and heartbeat_s (%s s), it would be %s s',
        2 * v_pause, v_lease),
      hint = 'With less, no lost VPS would ever be noticed. Raise lease_s, or lower maintain_s or heartbeat_s first.';
  end if;
  return new;
end
$$;
comment on function private.check_settings_together() is
  'Trigger: refuses settings that contradict each other and names them (TC215).';

-- triggers run in the order of their names, so this one runs after check_setting
create trigger check_together before insert or update
  on public.system_config for each row execute function private.check_settings_together();

-- No allowed value may stop the farm or trading by itself: tests/sql/base/test_setting_ranges.py copies a trade at both
-- ends of every range.
insert into public.system_config (key, value, type, minimum, maximum, unit, description) values
  ('lease_s', '15', 'number', 7, 120, 's',
    'How long a VPS may trade after its last heartbeat. Shorter fails over sooner and forgives less.'),
  ('heartbeat_s', '2', 'number', 0.5, 5, 's', 'How often an idle agent sends a heartbeat.'),
  ('maintain_s', '4', 'number', 1, 30, 's',
    'A heartbeat runs maintain() itself when the last run is older than this (the scheduler may be dead).'),
  ('doorbells_s', '2', 'number', 1, 60, 's',
    'A heartbeat sends the dashboards'' change broadcasts itself when the last were sent longer ago than this.'),
  ('doorbells_max', '100', 'integer', 1, 250, 'topics',
    'How many dashboards are notified of changes per second; the others wait a second. Keeps dashboards from using '
    'up the message quota that trading needs.'),
  ('tick_s', '30', 'number', 10, 60, 's',
    'A tick goes to a VPS topic this often, so that an agent can tell a quiet socket from a dead one.'),
  ('existing_wait_s', '30', 'number', 1, 600, 's',
    'How long a new copier waits for quotes before it decides which of the master''s positions it copies.'),
  ('send_within_ms', '5000', 'integer', 1000, 15000, 'ms',
    'An execution that its agent has not sent within this time is no longer sent.'),
  ('second_attempt_s', '2', 'number', 0.5, 10, 's',
    'Pause before the only second attempt of an open that the broker refused for lack of money or for its volume.'),
  ('retry_backoff_ms', '500', 'integer', 100, 10000, 'ms', 'First pause before a retry; it doubles, with jitter.'),
  ('retry_backoff_max_ms', '30000', 'integer', 1000, 300000, 'ms', 'Longest pause before a retry.'),
  -- at least 45 s: agents report unchanged figures only every 20 s, and a slow broker is read less often
  ('symbol_quote_max_age_s', '60', 'number', 45, 600, 's',
    'A quote older than this is not used to convert currencies.'),
  ('funds_max_age_s', '60', 'number', 45, 600, 's', 'Funds older than this are not used for sizing.'),
  ('protection_max_age_s', '10', 'number', 5, 60, 's',
    'Funds measured longer ago than this are not used to judge protection rules.'),
  ('snapshot_every_s', '60', 'number', 10, 86400, 's',
    'How often the equity of an account is stored in account_snapshots.'),
  ('accounts_per_user_max', '200', 'integer', 1, 10000, 'accounts', 'How many trading accounts one user may connect.'),
  ('release_s', '300', 'number', 10, 86400, 's',
   'How long a VPS that could not work an account is not given it again. New settings of the account and a restart of '
   'the agent end it.'),
  ('unproven_accounts_max', '5', 'integer', 1, 1000, 'accounts',
    'How many accounts a user may have that no agent has logged in to yet.'),
  ('login_attempts_per_user', '3', 'integer', 1, 100, 'logins per hour',
    'How often one user''s unproven account may be logged in to. Brokers lock logins after wrong passwords.'),
  ('login_attempts_per_login', '9', 'integer', 1, 1000, 'logins per hour',
    'How often all unproven accounts with one login may be logged in to together, in turn by user.'),
  ('enrollment_token_s', '3600', 'number', 60, 604800, 's', 'How long an enrolment token is good for.'),
  ('platforms', '{"paper": {"password": true, "address": true}, "mt5": {"password": true}, "mt4": {"password": true}, '
    '"ctrader": {"password": true}}',
   'platforms', null, null, 'platform',
   'Platforms that accounts may be on: whether a password must be given, and whether broker_servers must name an '
   'address.'),
  ('retention_batch', '1000', 'integer', 100, 20000, 'rows',
    'Rows that one run of maintain() deletes per table at most.'),
  ('retention_days.event_keys', '7', 'integer', 7, 90, 'days',
    'How long the keys that make events idempotent are kept; journals replay nothing older.'),
  ('retention_days.trade_events', '90', 'integer', 31, 3650, 'days',
    'How long trade events are kept (whole partitions are dropped).'),
  ('retention_days.trade_execution_queue', '90', 'integer', 31, 3650, 'days', 'How long final executions are kept.'),
  ('retention_days.copy_outcomes', '90', 'integer', 31, 3650, 'days',
    'How long reasons of trades that were not copied are kept.'),
  ('retention_days.positions', '30', 'integer', 7, 3650, 'days',
    'How long tombstones of closed positions and ended links are kept.'),
  ('retention_days.connection_health_logs', '14', 'integer', 1, 3650, 'days',
    'How long health rows of VPSes and accounts are kept.'),
  ('retention_days.account_snapshots', '365', 'integer', 7, 3650, 'days',
    'How long the equity curve of an account is kept.'),
  ('retention_days.alerts', '90', 'integer', 7, 3650, 'days',
    'How long alerts are kept after they happened last or were seen.'),
  ('retention_days.protection_looks', '365', 'integer', 7, 3650, 'days',
    'How long the looks at funds that were past a protection rule are kept.'),
  ('retention_days.quiet_windows', '30', 'integer', 2, 3650, 'days',
    'How long quiet windows are kept after they have ended.'),
  ('retention_days.audit_log', '730', 'integer', 90, 3650, 'days',
    'How long the audit log is kept; nothing younger can be deleted at all.'),
  ('retention_days.login_attempts', '2', 'integer', 1, 3650, 'days',
    'How long logins to unproven accounts are remembered; the last hour counts.'),
  ('retention_days.enrollment_tokens', '30', 'integer', 1, 3650, 'days',
    'How long used or expired enrolment tokens are kept.');
create policy "operators see the settings" on public.system_config for select to authenticated
  using ((select private.is_operator()));
grant select on public.system_config to authenticated, service_role;

insert into public.system_config (key, value, type, minimum, maximum, unit, description) values
  ('copiers_per_user_max', '500', 'integer', 1, 10000, 'copiers',
    'How many copiers one user may have, those that are being removed included.'),
  ('symbol_mappings_per_user_max', '2000', 'integer', 1, 100000, 'mappings',
    'How many symbol mappings one user may have, over all his copiers.'),
  ('protection_rules_per_user_max', '1000', 'integer', 1, 50000, 'rules',
    'How many protection rules one user may have, over all his accounts.'),
  ('quiet_windows_max', '2000', 'integer', 1, 50000, 'windows',
    'How many quiet windows one user may have, and how many operators may set for everybody.');

-- base/time_zone.sql
-- Names of time zones. A query on pg_timezone_names reads some six hundred files, which takes tens of milliseconds, so
-- the names are kept in a table.

create table private.time_zones (name text primary key);
comment on table private.time_zones is
  'The names in pg_timezone_names, for checking a setting that names a zone; maintain() adds new ones.';
alter table private.time_zones enable row level security;

create function private.learn_time_zones() returns void
language sql
set search_path = ''
as $$ insert into private.time_zones (name) select z.name from pg_catalog.pg_timezone_names z on conflict do nothing $$;
comment on function private.learn_time_zones() is
  'Adds the names that a newer version of Postgres or of its time zone data has brought.';

select private.learn_time_zones();

create function private.is_time_zone(p_name text) returns boolean
language sql stable
set search_path = ''
as $$ select exists (select from private.time_zones z where z.name = p_name) $$;
comment on function private.is_time_zone(text) is 'Whether a time zone of exactly this name exists.';

-- farm/vps.sql
-- vps_instances: the machines of the farm, one agent on each. Also enrolment tokens, secrets, health and doorbells.

create table public.vps_instances (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  user_id uuid unique references auth.users (id) on delete set null,
  region text not null default '',
  platforms text[] not null,
  capacity integer not null default 50,
  status text not null default 'enrolled',
  -- updated by every heartbeat: none of these columns is indexed, so the update can stay on its page (HOT)
  lease_expires_at timestamptz not null default 'epoch',
  last_heartbeat_at timestamptz,
  last_tick_at timestamptz,
  clock_offset_ms numeric,
  rtt_ms numeric,
  agent_version text,
  cpu_percent numeric,
  memory_percent numeric,
  disk_percent numeric,
  rss_mb numeric,
  process text,
  process_machine text,
  process_since timestamptz,
  process_begins_at timestamptz,
  process_beat bigint,
  answer_id bigint not null default 0,
  worked_at timestamptz not null default now(),
  process_worked boolean not null default true,
  unfit text,
  unfit_since timestamptz,
  unfit_works boolean not null default false,
  retired_at timestamptz,
  created_at timestamptz not null default now(),
  constraint name_is_short check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  constraint platforms_are_named check (cardinality(platforms) > 0),
  constraint capacity_is_positive check (capacity between 1 and 10000),
  constraint status_is_known check (status in ('enrolled', 'online', 'offline', 'draining', 'retired')),
  constraint retired_means_retired_at check ((status = 'retired') = (retired_at is not null))
) with (fillfactor = 60);
comment on table public.vps_instances is
  'One row per VPS of the farm. Its agent renews lease_expires_at with each heartbeat.';
comment on column public.vps_instances.id is 'ID of the VPS; its broadcasts go to the topic vps:<id>.';
comment on column public.vps_instances.name is 'The name that operators gave it.';
comment on column public.vps_instances.user_id is 'The auth user that its agent signs in as.';
comment on column public.vps_instances.region is 'Where the machine is; for operators.';
comment on column public.vps_instances.platforms is 'Platforms that its agent can connect.';
comment on column public.vps_instances.capacity is 'The most accounts that it takes.';
comment on column public.vps_instances.status is
  'enrolled (no heartbeat yet) -> online <-> offline (lease lost); draining (its accounts are moved away); retired '
  '(permanently).';
comment on column public.vps_instances.lease_expires_at is
  'Until then its agent may trade; after that its accounts move.';
comment on column public.vps_instances.last_heartbeat_at is 'When its agent last sent a heartbeat.';
comment on column public.vps_instances.last_tick_at is
  'When the last tick was sent to its topic; an agent that did not receive it reconnects its socket.';
comment on column public.vps_instances.clock_offset_ms is 'Database clock minus agent clock, as the agent measured it.';
comment on column public.vps_instances.rtt_ms is 'Round trip of a heartbeat, as the agent measured it.';
comment on column public.vps_instances.agent_version is 'Version of its agent.';
comment on column public.vps_instances.cpu_percent is 'CPU load of the machine.';
comment on column public.vps_instances.memory_percent is 'Memory in use on the machine.';
comment on column public.vps_instances.disk_percent is 'Disk in use on the machine.';
comment on column public.vps_instances.rss_mb is 'Memory used by the agent itself.';
comment on column public.vps_instances.process is
  'The agent process that works as this VPS: a random ID drawn at each start.';
comment on column public.vps_instances.process_machine is
  'Where the process runs. Equal to the previous one''s only if the lock on the data directory proves that it has '
  'ended.';
comment on column public.vps_instances.process_since is 'When its first heartbeat arrived.';
comment on column public.vps_instances.process_begins_at is
  'From then on the process may trade: at once, or when the lease of a process on another machine was over.';
comment on column public.vps_instances.process_beat is 'Number of the process''s last heartbeat.';
comment on column public.vps_instances.answer_id is
  'Number of the last answer to a heartbeat: the time it was given, in microseconds since 1970.';
comment on column public.vps_instances.worked_at is
  'When the last answer that its agent has worked through was given; before the first, when the process first called.';
comment on column public.vps_instances.process_worked is
  'Whether the current process has ever worked through an answer.';
comment on column public.vps_instances.unfit is
  'Why its agent reports that it is unfit, a code of docs/errors.md; null: it is fit. An unfit VPS is given no '
  'account.';
comment on column public.vps_instances.unfit_since is 'Since when it has been unfit.';
comment on column public.vps_instances.unfit_works is
  'Whether it works although it is unfit, because no other VPS can take its accounts.';
comment on column public.vps_instances.retired_at is 'When it was retired; its agent is refused from then on.';
comment on column public.vps_instances.created_at is 'When it was enrolled.';

-- a name is free again once its VPS is retired
create unique index name_is_taken_once on public.vps_instances (name) where retired_at is null;
alter table public.vps_instances enable row level security;
create policy "operators see the farm" on public.vps_instances for select to authenticated
  using ((select private.is_operator()));

-- A table of its own, so that "select *" by an operator can never show a secret.
create table private.vps_secrets (
  vps_id uuid primary key references public.vps_instances (id) on delete cascade,
  secret_hash text not null,
  constraint secret_is_a_sha256 check (secret_hash ~ '^[0-9a-f]{64}$')
);
comment on table private.vps_secrets is 'What an agent proves its identity with when it must sign in again.';
comment on column private.vps_secrets.vps_id is 'The VPS.';
comment on column private.vps_secrets.secret_hash is
  'SHA-256 (hex) of the agent''s secret. The secret has 256 random bits, so it needs no slow hash.';
alter table private.vps_secrets enable row level security;

create table public.enrollment_tokens (
  id uuid primary key default gen_random_uuid(),
  token_hash text not null unique,
  name text,
  created_by uuid references auth.users (id) on delete set null,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  used_at timestamptz,
  vps_id uuid references public.vps_instances (id) on delete set null,
  constraint token_is_a_sha256 check (token_hash ~ '^[0-9a-f]{64}$'),
  constraint expires_later check (expires_at > created_at)
);
comment on table public.enrollment_tokens is 'One-time tokens by which a new VPS joins the farm.';
comment on column public.enrollment_tokens.id is 'ID of the token.';
comment on column public.enrollment_tokens.token_hash is
  'SHA-256 (hex) of the token; the token itself is shown once and stored nowhere.';
comment on column public.enrollment_tokens.name is 'Name that the VPS must take; null: the VPS chooses it.';
comment on column public.enrollment_tokens.created_by is 'The operator who made it; null: the service key.';
comment on column public.enrollment_tokens.created_at is 'When it was made.';
comment on column public.enrollment_tokens.expires_at is 'Until when it can be used.';
comment on column public.enrollment_tokens.used_at is 'When it was used; null: not yet. A token can be used once.';
comment on column public.enrollment_tokens.vps_id is 'The VPS that joined with it.';
alter table public.enrollment_tokens enable row level security;
create policy "operators see tokens" on public.enrollment_tokens for select to authenticated
  using ((select private.is_operator()));

create table public.connection_health_logs (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  kind text not null,
  vps_id uuid references public.vps_instances (id) on delete cascade,
  account_id uuid,
  status text not null,
  previous_status text,
  reason text,
  accounts integer,
  heartbeat_age_ms numeric,
  rtt_ms numeric,
  clock_offset_ms numeric,
  cpu_percent numeric,
  memory_percent numeric,
  disk_percent numeric,
  rss_mb numeric,
  constraint kind_is_known check (kind in ('minute', 'state')),
  constraint somebody_is_meant check (vps_id is not null or account_id is not null)
);
comment on table public.connection_health_logs is
  'Health over time: one row per VPS and minute, and one per change of state of a VPS or an account.';
comment on column public.connection_health_logs.id is 'ID of the row.';
comment on column public.connection_health_logs.at is 'When; for kind minute, the beginning of the minute.';
comment on column public.connection_health_logs.kind is 'minute (a sample) or state (a status changed).';
comment on column public.connection_health_logs.vps_id is 'The VPS; for an account, the VPS that works it.';
comment on column public.connection_health_logs.account_id is
  'The account whose connection changed; null: the row is about the VPS.';
comment on column public.connection_health_logs.status is 'The new status of the VPS or account.';
comment on column public.connection_health_logs.previous_status is 'The status before; only for kind state.';
comment on column public.connection_health_logs.reason is 'Why, as the agent reported it.';
comment on column public.connection_health_logs.accounts is 'How many accounts the VPS had.';
comment on column public.connection_health_logs.heartbeat_age_ms is 'Age of the VPS''s last heartbeat.';
comment on column public.connection_health_logs.rtt_ms is 'Round trip to the database.';
comment on column public.connection_health_logs.clock_offset_ms is 'Database clock minus agent clock.';
comment on column public.connection_health_logs.cpu_percent is 'CPU load of the machine.';
comment on column public.connection_health_logs.memory_percent is 'Memory in use on the machine.';
comment on column public.connection_health_logs.disk_percent is 'Disk in use on the machine.';
comment on column public.connection_health_logs.rss_mb is 'Memory used by the agent.';

-- one sample per VPS and minute, whoever runs maintain(); also reads the health of one VPS over time
create unique index one_sample_per_vps_and_minute on public.connection_health_logs (vps_id, at) where kind = 'minute';

-- the history of one account
create index health_of_account on public.connection_health_logs (account_id, at) where account_id is not null;

-- retention, doorbells
create index health_by_time on public.connection_health_logs (at);
alter table public.connection_health_logs enable row level security;

-- When scheduled work last ran. Only the holder of the advisory lock of the same name writes a row.
create table private.clockwork (
  name text primary key,
  last_run_at timestamptz not null default 'epoch',
  last_xmin bigint not null default 0,
  last_error text
);
comment on table private.clockwork is 'When maintain() and its parts last ran.';
comment on column private.clockwork.name is 'maintain, one of its parts, or doorbells.';
comment on column private.clockwork.last_run_at is 'When it last ran.';
comment on column private.clockwork.last_xmin is
  'Only for doorbells: every transaction below this ID had ended at the last ring.';
comment on column private.clockwork.last_error is 'What went wrong in the last run; null: nothing.';
alter table private.clockwork enable row level security;

insert into private.clockwork (name) values ('maintain'), ('doorbells'), ('health'), ('partitions'), ('retention');

create table private.doorbells (
  topic text primary key,
  changed_at timestamptz not null,
  due boolean not null,
  rung_at timestamptz
);
comment on table private.doorbells is
  'Topics of dashboards and when they are due to be rung. Written only by ring_doorbells().';
comment on column private.doorbells.topic is 'user:<id> or operators.';
comment on column private.doorbells.changed_at is 'Since when a ring has been due.';
comment on column private.doorbells.due is 'Whether something has changed since the last ring.';
comment on column private.doorbells.rung_at is 'When it was last rung.';
alter table private.doorbells enable row level security;

-- Every function for agents calls this first: one lookup in a unique index.
create function private.agent_vps() returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_vps uuid;
  v_retired_at timestamptz;
begin
  select v.id, v.retired_at into v_vps, v_retired_at from public.vps_instances v where v.user_id = auth.uid();
  if not found then
    raise exception using errcode = 'TC101', message = 'the caller is not an agent',
      hint = 'Sign in as the agent''s own user, which `tradecopier agent enroll` creates.';
  end if;
  if v_retired_at is not null then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  return v_vps;
end
$$;
comment on function private.agent_vps() is
  'The VPS whose agent is calling; TC101 if the caller is not an agent, TC102 if its VPS is retired.';

-- Runs for every writer: each change of a VPS's status or fitness is logged.
create function private.log_vps_state() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  insert into public.connection_health_logs (kind, vps_id, status, previous_status, reason, heartbeat_age_ms, rtt_ms)
  values ('state', new.id, new.status, old.status, new.unfit,
          round(extract(epoch from now() - new.last_heartbeat_at) * 1000, 1), new.rtt_ms);
  return null;
end
$$;
comment on function private.log_vps_state() is
  'Trigger: logs a change of a VPS''s status or fitness in connection_health_logs.';
create trigger log_state after update of status, unfit on public.vps_instances for each row
  when ((old.status, old.unfit) is distinct from (new.status, new.unfit)) execute function private.log_vps_state();
grant select on public.vps_instances, public.enrollment_tokens, public.connection_health_logs to authenticated,
  service_role;

-- farm/broker_server.sql
-- broker_servers: the servers that accounts may connect to. Agents take addresses from this table only, so that a user
-- cannot make a VPS connect to a machine of the user's choice and report the response.

create function private.is_address(p_address text) returns boolean
language sql immutable
set search_path = ''
as $$
  select p_address ~ '^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}$'
    and substring(p_address from '[0-9]+$')::integer <= 65535
$$;
comment on function private.is_address(text) is 'Whether a text is exactly host:port or [IPv6]:port.';

create table public.broker_servers (
  platform text not null,
  server text not null,
  title text not null,
  address text,
  server_key text not null generated always as (private.plain_name(server)) stored,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (platform, server),
  constraint names_are_short check
    (length(platform) between 1 and 50 and length(server) between 1 and 100 and length(title) between 1 and 100),
  constraint address_is_host_and_port check (private.is_address(address))
);
comment on table public.broker_servers is
  'Servers that accounts may connect to. Operators maintain the list; users read platform, server and title.';
comment on column public.broker_servers.platform is 'The platform, a key of the setting "platforms".';
comment on column public.broker_servers.server is 'The broker''s server, as the platform names it.';
comment on column public.broker_servers.title is 'The name that people know it by.';
comment on column public.broker_servers.address is
  'The address for agents, host:port; only for platforms that cannot find a server by its name.';
comment on column public.broker_servers.server_key is
  'The server name without differences of case and blanks: a server is listed once.';
comment on column public.broker_servers.created_at is 'When it was first listed.';
comment on column public.broker_servers.updated_at is 'When the row last changed.';

-- connect_account, account_credentials: the server of an account
create unique index broker_server_is_listed_once on public.broker_servers (platform, server_key);
alter table public.broker_servers enable row level security;
create policy "everybody sees what may be connected" on public.broker_servers for select to authenticated using (true);
create trigger touch before update on public.broker_servers for each row execute function private.touch();

create function private.broker_server(p_platform text, p_server text) returns public.broker_servers
language sql stable
set search_path = ''
as $$
  select b from public.broker_servers b where b.platform = p_platform and b.server_key = private.plain_name(p_server)
$$;
comment on function private.broker_server(text, text) is
  'The listed server of this name, in any spelling; null: it is not listed.';

create function private.require_broker_server(p_function text, p_platform text,
  p_server text) returns public.broker_servers
language plpgsql stable
set search_path = ''
as $$
declare
  v_server public.broker_servers := private.broker_server(p_platform, p_server);
begin
  if v_server.server is null then
    raise exception using errcode = 'TC220',
      message = format('%s: server %s is not listed for platform %s', p_function, left(p_server, 100), p_platform),
      hint = 'Choose a server from the table broker_servers. An operator can add one with save_broker_server.';
  end if;
  return v_server;
end
$$;
comment on function private.require_broker_server(text, text, text) is
  'The listed server of this name; TC220 if there is none.';

create function private.platform_rules(p_platform text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
  v_rules jsonb := private.setting('platforms') -> p_platform;
begin
  if v_rules is null then
    raise exception using errcode = 'TC001', message = format('platform: %s is not a platform', p_platform),
      hint = format('Use one of: %s.', (select string_agg(k, ', ' order by k)
        from jsonb_object_keys(private.setting('platforms')) k));
  end if;
  return v_rules;
end
$$;
comment on function private.platform_rules(text) is
  'What the setting "platforms" says about a platform, such as {"password": true}; TC001 if there is no such platform.';

-- Key words that say where to connect, or with which rights. Agents ignore such settings in any case.
create function private.is_addressing(p_key text) returns boolean
language sql immutable
set search_path = ''
as $$
  with written as (
    select lower(regexp_replace(normalize(p_key, NFKC), '([a-z0-9])([A-Z])', '\1_\2', 'g')) as words
  ), spelt as (
    select regexp_split_to_array(w.words, '[^a-z0-9]+') as words,
      regexp_replace(w.words, '[^a-z0-9]+', '', 'g') as joined from written w
  )
  select s.words && '{ip,ips,ipv4,ipv6,port,ports,url,urls,uri,uris,dsn,domain,domains,gateway,gateways,server,servers,'
      'peer,peers,remote,dns}'
    or s.joined ~ 'addr|host|endpoint|socket|token|proxy|proxies|apikey|credential'
    or s.joined ~ '(server|broker|paper|base|api|remote|tcp|udp|https?|wss?|web|target|bridge|terminal)'
      '(ip|port|url|uri|dns)'
    or s.joined ~ '^(ip|ipv4|ipv6|ports?|urls?|uris?)[0-9]*$'
  from spelt s
$$;
comment on function private.is_addressing(text) is
  'Whether a key in an account''s settings names an address, host, port, token or the like.';

-- Values that are addresses: scheme://…, IPv4 and IPv6 with or without a port, localhost, host.name:port. "1.5",
-- "12:30", "EURUSD.m" and times are not.
create function private.is_address_like(p_value text) returns boolean
language sql immutable
set search_path = ''
as $$
  select v ~ '[a-z][a-z0-9+.-]*://'
    or v ~ ':' and pg_input_is_valid(v, 'inet')
    or v ~ '^([^@[:space:]]+@)?([0-9]{1,3}(\.[0-9]{1,3}){3}|localhost\.?)(:[0-9]{1,5})?(/.*)?$'
    or v ~ '^([^@[:space:]]+@)?\[[0-9a-f:.%]*:[0-9a-z:.%]*\](:[0-9]{1,5})?(/.*)?$'
    or v ~ '^([^@[:space:]]+@)?[[:alnum:]]([[:alnum:]_-]*\.)+[[:alnum:]-]*[[:alpha:]][[:alnum:]-]*\.?:[0-9]{1,5}(/.*)?$'
  from private.plain_name(p_value) v
$$;
comment on function private.is_address_like(text) is
  'Whether a value in an account''s settings looks like an address.';

create function private.refuse_addressing(p_function text, p_settings jsonb) returns void
language plpgsql immutable
set search_path = ''
as $$
declare
  v_named text;
begin
  select left(string_agg(distinct f.named, ', '), 200) into v_named
  from (
    select k #>> '{}' from jsonb_path_query(p_settings, 'strict $.** ? (@.type() == "object").keyvalue().key') k
    where private.is_addressing(k #>> '{}')
    union all
    select left(s #>> '{}', 50) from jsonb_path_query(p_settings, 'strict $.** ? (@.type() == "string")') s
    where private.is_address_like(s #>> '{}')
  ) f (named);
  if v_named is not null then
    raise exception using errcode = 'TC222',
      message = format('%s: settings may not name an address or a credential: %s', p_function, v_named),
      hint = 'Addresses come from the table broker_servers. Remove these keys and values from the settings.';
  end if;
end
$$;
comment on function private.refuse_addressing(text, jsonb) is
  'Raises TC222 if settings name an address, host, port or token, or contain an address as a value, at any depth.';

-- The agents log in again at the new address, as they do after a change of password.
create function private.readdress(p_platform text, p_server_key text) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid;
begin
  update public.trading_accounts a set revision = a.revision + 1
  where a.platform = p_platform and a.server_key = p_server_key and a.removed_at is null;
  for v_vps in
    select distinct s.vps_id from public.account_vps_assignments s join public.trading_accounts a on a.id = s.account_id
    where a.platform = p_platform and a.server_key = p_server_key
  loop
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end loop;
end
$$;
comment on function private.readdress(text, text) is 'Makes the agents log in again to every account of a server.';

-- The address is left out: only agents (account_credentials) and operators may read it.
grant select (platform, server, title) on public.broker_servers to authenticated;
grant select on public.broker_servers to service_role;

-- farm/account.sql
-- trading_accounts: the accounts that users connect. account_symbols: the instruments of each account.
-- account_snapshots: its equity over time.

create table public.trading_accounts (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete restrict,
  platform text not null,
  server text not null,
  login text not null,
  server_key text not null generated always as (private.plain_name(server)) stored,
  login_key text not null generated always as (private.plain_name(login)) stored,
  name text not null,
  mode text not null default 'hedging',
  currency text not null default 'USD',
  leverage integer,
  balance numeric,
  equity numeric,
  margin numeric,
  free_margin numeric,
  funds_at timestamptz,
  initial_balance numeric,
  initial_balance_at timestamptz,
  initial_moved numeric not null default 0,
  status text not null default 'pending',
  status_reason text,
  status_at timestamptz not null default now(),
  session bigint not null default 0,
  session_vps_id uuid references public.vps_instances (id) on delete set null,
  session_opened_at timestamptz,
  snapshot_session bigint not null default 0,
  seen_at timestamptz,
  copy_state text not null default 'on',
  copy_state_reason text,
  flatten_manual boolean not null default false,
  flatten_then text not null default 'off',
  flat_snapshots integer not null default 0,
  flattened_at timestamptz,
  flat_from timestamptz,
  flat_until timestamptz,
  resumes_at timestamptz,
  quiet_minutes_before integer not null default 0,
  quiet_minutes_after integer not null default 0,
  quiet_levels_wait boolean not null default false,
  quiet_own_windows boolean not null default true,
  secret_id uuid,
  claim text not null default 'unproven',
  proven_at timestamptz,
  password_is_new boolean not null default false,
  settings jsonb not null default '{}',
  revision bigint not null default 1,
  symbol_prefix text not null default '',
  symbol_suffix text not null default '',
  symbol_affix_proven boolean not null default false,
  symbols_complete boolean,
  removed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint names_are_short check (length(name) between 1 and 100 and length(server) between 1 and 100
    and length(login) between 1 and 100),
  constraint mode_is_known check (mode in ('hedging', 'netting')),
  constraint currency_is_a_code check (currency ~ '^[A-Z0-9]{2,10}$'),
  constraint leverage_is_positive check (leverage > 0),
  constraint status_is_known check (status in ('pending', 'connecting', 'connected', 'degraded', 'disconnected',
    'halted')),
  constraint copy_state_is_known check (copy_state in ('on', 'monitor', 'off', 'flattening')),
  constraint flatten_then_is_known check (flatten_then in ('on', 'monitor', 'off')),
  constraint quiet_minutes_are_at_most_a_day check (quiet_minutes_before between 0 and 1440
    and quiet_minutes_after between 0 and 1440),
  constraint claim_is_known check (claim in ('unproven', 'investor', 'trading', 'given_way', 'ended')),
  constraint initial_balance_in_range check (abs(initial_balance) < 1e16),
  constraint settings_are_an_object check (jsonb_typeof(settings) = 'object')
) with (fillfactor = 70);
comment on table public.trading_accounts is
  'A user''s account at a broker. Master and follower are roles in a copier, not kinds of account.';
comment on column public.trading_accounts.id is 'ID of the account.';
comment on column public.trading_accounts.user_id is
  'The user that it belongs to. A user with accounts cannot be deleted: remove the accounts first.';
comment on column public.trading_accounts.platform is 'The platform, a key of the setting "platforms".';
comment on column public.trading_accounts.server is 'The broker''s server, as the platform names it.';
comment on column public.trading_accounts.login is 'The login at the broker.';
comment on column public.trading_accounts.server_key is
  'The server name without differences of case and blanks, for comparison.';
comment on column public.trading_accounts.login_key is
  'The login without differences of case and blanks, for comparison: "ABC " and "abc" are one account at the broker.';
comment on column public.trading_accounts.name is 'The name that its user gave it.';
comment on column public.trading_accounts.mode is 'hedging (one position per trade) or netting (one per symbol).';
comment on column public.trading_accounts.currency is 'Currency of balance, equity and margin.';
comment on column public.trading_accounts.leverage is 'Leverage; 100 means 1:100.';
comment on column public.trading_accounts.balance is 'Balance in currency.';
comment on column public.trading_accounts.equity is 'Equity in currency.';
comment on column public.trading_accounts.margin is 'Margin in use, in currency.';
comment on column public.trading_accounts.free_margin is 'Free margin in currency.';
comment on column public.trading_accounts.funds_at is
  'When balance, equity, margin and free_margin were measured.';
comment on column public.trading_accounts.initial_balance is
  'What the account began with, in currency: set by its user, otherwise the first balance above 0 that was known. '
  'Protection rules may measure from it. Deposits and withdrawals move it.';
comment on column public.trading_accounts.initial_balance_at is
  'When the figures were measured that were known when initial_balance was set; later balance operations move it.';
comment on column public.trading_accounts.initial_moved is
  'By how much balance operations have moved initial_balance since it was set.';
comment on column public.trading_accounts.status is
  'pending (never connected), connecting, connected, degraded, disconnected, halted (the broker refuses trading or the '
  'password).';
comment on column public.trading_accounts.status_reason is 'Why, as its agent reported it.';
comment on column public.trading_accounts.status_at is 'When the status last changed.';
comment on column public.trading_accounts.session is
  'Number of the last session that was opened; events and reports are numbered within it.';
comment on column public.trading_accounts.session_vps_id is 'The VPS that opened the session.';
comment on column public.trading_accounts.session_opened_at is 'When the session was opened.';
comment on column public.trading_accounts.snapshot_session is 'The last session whose first snapshot was applied.';
comment on column public.trading_accounts.seen_at is
  'When its agent last reported it as connected with its snapshot applied. A change found after a gap is dated to this '
  'time.';
comment on column public.trading_accounts.copy_state is
  'on; monitor (decide, but open nothing); off (change nothing); flattening (close everything, then flatten_then).';
comment on column public.trading_accounts.copy_state_reason is
  'What set copy_state if it was not the user: the kind of a protection rule, or stop_out.';
comment on column public.trading_accounts.flatten_then is 'The copy_state that follows once the account is flat.';
comment on column public.trading_accounts.flatten_manual is
  'Whether flattening also closes positions that the user opened by hand.';
comment on column public.trading_accounts.flat_snapshots is
  'Complete snapshots in a row that showed nothing left while flattening; two end the flattening.';
comment on column public.trading_accounts.flattened_at is
  'When the account was last flattened. A copy of an earlier trade is closed even if it turns up later.';
comment on column public.trading_accounts.flat_from is
  'From then until flat_until nothing is opened on it (flat_by); null: it has no flat time. The table flat_times says '
  'which.';
comment on column public.trading_accounts.flat_until is 'When copying into it goes on by itself.';
comment on column public.trading_accounts.resumes_at is
  'When copying goes on by itself after a daily protection rule closed everything; null: it was not stopped so.';
comment on column public.trading_accounts.quiet_minutes_before is
  'A quiet window begins so many minutes earlier for it.';
comment on column public.trading_accounts.quiet_minutes_after is
  'A quiet window ends so many minutes later for it.';
comment on column public.trading_accounts.quiet_levels_wait is
  'Whether changes of stop loss, take profit and pending orders wait until a quiet window is over.';
comment on column public.trading_accounts.quiet_own_windows is
  'Whether its user''s own quiet windows concern it; those for everybody always do.';
comment on column public.trading_accounts.secret_id is 'Its password in Vault; null: it has none.';
comment on column public.trading_accounts.claim is
  'State of the user''s claim: unproven (no login yet); trading or investor (proven with that password); given_way (it '
  'was proven with the investor password, then another user logged in with the trading password); ended (another user '
  'proved it).';
comment on column public.trading_accounts.proven_at is
  'When an agent first logged in with the claim; null: the claim is not proven.';
comment on column public.trading_accounts.password_is_new is
  'No login with the present password has been tried yet, so the next one need not wait.';
comment on column public.trading_accounts.settings is 'Other settings that its platform needs; no secrets.';
comment on column public.trading_accounts.revision is
  'Grows with each change of settings or password; the agent then logs in again.';
comment on column public.trading_accounts.symbol_prefix is
  'What its broker puts before symbol names, learned from well-known names.';
comment on column public.trading_accounts.symbol_suffix is
  'What its broker puts after symbol names, learned from well-known names.';
comment on column public.trading_accounts.symbols_complete is
  'Whether its list of symbols was ever told completely; null: its agent does not say, which counts as complete.';
comment on column public.trading_accounts.symbol_affix_proven is
  'Whether prefix and suffix are on at least five of its well-known symbols and on more than half of them, so that '
  'they are also taken off names that are not well known.';
comment on column public.trading_accounts.removed_at is 'When its user removed it; the row is kept for the history.';
comment on column public.trading_accounts.created_at is 'When it was first connected.';
comment on column public.trading_accounts.updated_at is
  'When the row last changed. Not indexed: the figures change every few seconds, so an index would cost more than the '
  'scan that runs once a second.';

-- one owner per account at a broker; several unproven claims may exist side by side
create unique index account_is_proven_once on public.trading_accounts (platform, server_key, login_key)
  where removed_at is null and claim in ('investor', 'trading');

-- every claim on a login, at most one per user; a removed account may be connected again
create unique index account_is_claimed_once_by_a_user
  on public.trading_accounts (platform, server_key, login_key, user_id) where removed_at is null;

-- resume_accounts
create index accounts_that_resume on public.trading_accounts (resumes_at) where resumes_at is not null;

-- a user's accounts; the policies of tables that refer to an account
create index accounts_of_user on public.trading_accounts (user_id);
alter table public.trading_accounts enable row level security;
create policy "users see their accounts, operators all" on public.trading_accounts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.trading_accounts for each row execute function private.touch();

-- Runs for every writer of settings. A password that changes inside Vault is counted by update_account().
create function private.count_revision() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.revision := greatest(new.revision, old.revision + 1);
  return new;
end
$$;
comment on function private.count_revision() is
  'Trigger: raises the revision when the settings of an account change.';
create trigger count_revision before update of settings on public.trading_accounts for each row
  when (old.settings is distinct from new.settings) execute function private.count_revision();

create table public.account_symbols (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  name text not null,
  contract_size numeric not null,
  tick_size numeric not null,
  digits integer not null,
  profit_currency text not null,
  margin_currency text not null,
  lots_min numeric not null,
  lots_max numeric not null,
  lots_step numeric not null,
  stops_level_points integer not null default 0,
  freeze_level_points integer not null default 0,
  trade_mode text not null default 'full',
  bid numeric,
  ask numeric,
  quoted_at timestamptz,
  updated_at timestamptz not null default now(),
  primary key (account_id, name),
  constraint contract_size_is_positive check (contract_size > 0 and contract_size < 'Infinity'),
  constraint tick_size_is_positive check (tick_size > 0 and tick_size < 'Infinity'),
  constraint digits_are_few check (digits between 0 and 15),
  -- Postgres sorts NaN above every number, so each figure needs an upper bound
  constraint lots_fit check (lots_min > 0 and lots_step > 0 and lots_min <= lots_max and lots_step <= lots_max
    and lots_max < 'Infinity'),
  constraint stops_level_is_not_negative check (stops_level_points >= 0),
  constraint freeze_level_is_not_negative check (freeze_level_points >= 0),
  constraint trade_mode_is_known check (trade_mode in ('full', 'long_only', 'short_only', 'close_only', 'disabled')),
  constraint quote_is_positive check (bid > 0 and ask > 0 and bid < 'Infinity' and ask < 'Infinity')
) with (fillfactor = 80);
comment on table public.account_symbols is 'An instrument as one account sees it, with its last quote.';
comment on column public.account_symbols.account_id is 'The account.';
comment on column public.account_symbols.name is 'The broker''s name of the instrument, prefix and suffix included.';
comment on column public.account_symbols.contract_size is 'Units per lot.';
comment on column public.account_symbols.tick_size is 'Smallest step of the price, in price units.';
comment on column public.account_symbols.digits is 'Decimals of the price; a point is 10 to the minus digits.';
comment on column public.account_symbols.profit_currency is 'Currency that profit is calculated in.';
comment on column public.account_symbols.margin_currency is 'Currency that margin is required in.';
comment on column public.account_symbols.lots_min is 'Smallest volume of an order in lots.';
comment on column public.account_symbols.lots_max is 'Largest volume of one order in lots.';
comment on column public.account_symbols.lots_step is 'Step of the volume in lots.';
comment on column public.account_symbols.stops_level_points is
  'Smallest distance of SL and TP from the price, in points.';
comment on column public.account_symbols.freeze_level_points is
  'Distance from the price, in points, within which SL and TP can no longer be changed.';
comment on column public.account_symbols.trade_mode is
  'What the broker allows: full, long_only, short_only, close_only, disabled.';
comment on column public.account_symbols.bid is 'Last bid.';
comment on column public.account_symbols.ask is 'Last ask.';
comment on column public.account_symbols.quoted_at is 'When the quote was read, by the database''s clock.';
comment on column public.account_symbols.updated_at is 'When the row last changed.';
alter table public.account_symbols enable row level security;
create policy "users see symbols of their accounts, operators all" on public.account_symbols for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));
create trigger touch before update on public.account_symbols for each row execute function private.touch();

create table public.account_snapshots (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  at timestamptz not null,
  balance numeric not null,
  equity numeric not null,
  margin numeric,
  free_margin numeric,
  primary key (account_id, at)
);
comment on table public.account_snapshots is 'Equity of an account over time, one row per snapshot_every_s.';
comment on column public.account_snapshots.account_id is 'The account.';
comment on column public.account_snapshots.at is 'Beginning of the interval that the row covers.';
comment on column public.account_snapshots.balance is 'Balance in the account''s currency.';
comment on column public.account_snapshots.equity is 'Equity in the account''s currency.';
comment on column public.account_snapshots.margin is 'Margin in use, in the account''s currency.';
comment on column public.account_snapshots.free_margin is 'Free margin in the account''s currency.';

-- retention
create index snapshots_by_time on public.account_snapshots (at);
alter table public.account_snapshots enable row level security;
create policy "users see the equity of their accounts, operators all"
  on public.account_snapshots for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));
alter table public.connection_health_logs
  add constraint health_is_of_an_account foreign key (account_id) references public.trading_accounts (id)
    on delete cascade;
create policy "users see the health of their accounts, operators all"
  on public.connection_health_logs for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

-- Runs for every writer: each change of an account's status is logged.
create function private.log_account_state() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.status_at := now();
  insert into public.connection_health_logs (kind, vps_id, account_id, status, previous_status, reason)
  values ('state', new.session_vps_id, new.id, new.status, old.status, new.status_reason);
  return new;
end
$$;
comment on function private.log_account_state() is
  'Trigger: logs a change of an account''s status in connection_health_logs.';
create trigger log_state before update of status on public.trading_accounts for each row
  when (old.status is distinct from new.status) execute function private.log_account_state();
grant select on public.trading_accounts, public.account_symbols, public.account_snapshots to authenticated,
  service_role;

-- farm/account_state.sql
-- The state of accounts as heartbeats report it, and the alert to the owner when an account cannot trade.

-- Only a change of state updates a row. A row that is locked is skipped and updated by the next heartbeat, which
-- reports the same state: a long transaction on one account must not keep the VPS from renewing its lease.
create function private.note_account_states(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
begin
  if not exists (select from public.vps_instances v where v.id = p_vps and v.lease_expires_at > clock_timestamp()) then
    return;  -- without a lease the agent works no account, so its report does not count
  end if;
  with told as materialized (
    select a.id, said.status, left(said.error, 500) as error
    from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, revision bigint, status text,
      error text)
    join public.account_vps_assignments s on s.account_id = said.account_id
    join public.vps_instances v on v.id = s.vps_id
    join public.trading_accounts a on a.id = said.account_id
    where said.status in ('connecting', 'connected', 'degraded', 'disconnected', 'halted') and s.vps_id = p_vps
    and a.id <> all ((select private.released_accounts(p_vps))::uuid[])
    -- The result of a login with earlier settings or an earlier password says nothing about the current ones.
    and coalesce(said.revision = a.revision, true)
    -- An agent that names no session has opened none since it started, so its report is older than any session that
    -- was opened since.
    and case when said.session is null then a.session_vps_id is distinct from p_vps
      or coalesce(a.session_opened_at < v.process_since, true)
      else said.session = a.session end
    and (a.status, a.status_reason) is distinct from (said.status, left(said.error, 500))
    for no key update of a skip locked
  )
  update public.trading_accounts a set status = told.status, status_reason = told.error from told where a.id = told.id;

  -- seen_at is written every few seconds and last. It counts only once the session's first snapshot is applied: a login
  -- alone shows no positions, so a position opened during an outage would pass for new.
  update public.trading_accounts a set seen_at = now()
  where a.id = any (array(
    select t.id from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
    join public.account_vps_assignments s on s.account_id = said.account_id
    join public.trading_accounts t on t.id = said.account_id
    where s.vps_id = p_vps and said.session = t.session and said.status in ('connected', 'degraded')
      and t.snapshot_session = said.session and (t.seen_at is null or t.seen_at < now() - interval '1 second')
    for no key update of t skip locked));
end
$$;
comment on function private.note_account_states(uuid, jsonb) is
  'Stores the states of the VPS''s accounts that a heartbeat reported: [{"account_id", "session", "revision", '
  '"status", '
  '"error"}]. Without a live lease it does nothing.';

-- Only trouble that a person must fix: the agent's reason begins with a code, or the login shows another account.
-- Everything else recovers by itself.
create function private.alert_account_trouble() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_reason text := coalesce(substring(new.status_reason from '^([a-z][a-z_]{1,38}): '), case
    when new.status = 'halted' then 'account_halted' end);
begin
  if v_reason is not null then
    perform private.raise_alert(new.id, 'account', v_reason, 'critical',
      format('Account %s cannot trade: %s', new.name, coalesce(new.status_reason, 'the broker refused its login')),
      jsonb_build_object('status', new.status));
  end if;
  return null;
end
$$;
comment on function private.alert_account_trouble() is
  'Trigger: raises an alert when an account becomes degraded or halted; repeats are counted until the alert is seen.';
create trigger alert_trouble after update of status on public.trading_accounts for each row
  when (new.status in ('degraded', 'halted') and old.status is distinct from new.status and new.removed_at is null)
  execute function private.alert_account_trouble();

-- farm/alert.sql
-- Alerts: what a user or the operators must know. Use private.raise_alert() for an account and
-- private.alert_operators() for a VPS or the whole installation.

create table public.alerts (
  id bigint generated always as identity primary key,
  user_id uuid references auth.users (id) on delete cascade,
  account_id uuid references public.trading_accounts (id) on delete cascade,
  vps_id uuid references public.vps_instances (id) on delete cascade,
  kind text not null,
  reason text not null,
  severity text not null default 'warning',
  message text not null,
  detail jsonb not null default '{}',
  times integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  seen_at timestamptz,
  constraint kind_and_reason_are_codes check (kind ~ '^[a-z][a-z0-9_]{1,39}$' and reason ~ '^[a-z][a-z0-9_]{1,39}$'),
  constraint severity_is_known check (severity in ('info', 'warning', 'critical')),
  constraint message_says_something check (length(message) between 10 and 1000),
  constraint detail_is_an_object check (jsonb_typeof(detail) = 'object'),
  constraint users_have_accounts_operators_have_none check ((user_id is null) = (account_id is null)
    and (account_id is null or vps_id is null))
);
comment on table public.alerts is
  'What a user must know about an account, or operators about a VPS or the installation. Until an alert is seen, '
  'repeats (same account or VPS, kind and reason) are counted in its row.';
comment on column public.alerts.id is 'ID of the alert.';
comment on column public.alerts.user_id is 'The user whose account it is about; null: it is for operators only.';
comment on column public.alerts.account_id is 'The account; null: it is about a VPS or the whole installation.';
comment on column public.alerts.vps_id is
  'The VPS of an alert for operators; null in such an alert: the whole installation.';
comment on column public.alerts.kind is 'What raised it: protection, stop_out, …';
comment on column public.alerts.reason is
  'What happened, as a code: the kind of a protection rule, a reason of docs/errors.md, …';
comment on column public.alerts.severity is
  'info; warning; critical = positions were closed, or money is at risk until somebody looks.';
comment on column public.alerts.message is 'What happened, to what, and what to do.';
comment on column public.alerts.detail is 'The figures behind the message.';
comment on column public.alerts.times is 'How often it has happened since it was last seen.';
comment on column public.alerts.created_at is 'When it happened first.';
comment on column public.alerts.updated_at is 'When it happened last, or was seen.';
comment on column public.alerts.seen_at is
  'When its user marked it as seen; what happens afterwards is a new alert.';

-- raise_alert, alert_operators: the unseen alert, if there is one
create unique index alert_is_one_until_seen
  on public.alerts (account_id, vps_id, kind, reason) nulls not distinct where seen_at is null;

-- cascade from vps_instances
create index alerts_of_vps on public.alerts (vps_id) where vps_id is not null;

-- dashboard, doorbells, retention
create index alerts_of_user on public.alerts (user_id, created_at desc);
create index alerts_updated on public.alerts (updated_at);
alter table public.alerts enable row level security;
create policy "own alerts are readable" on public.alerts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.alerts for each row execute function private.touch();
grant select on public.alerts to authenticated, service_role;

create function private.is_milder(p_severity text, p_than text) returns boolean
language sql immutable
set search_path = ''
as $$
  select array_position(array['info', 'warning', 'critical'], p_severity)
    < array_position(array['info', 'warning', 'critical'], p_than)
$$;

-- Security definer: it is called in many places, also on behalf of an agent.
create function private.raise_alert(p_account uuid, p_kind text, p_reason text, p_severity text, p_message text,
  p_detail jsonb) returns bigint
language plpgsql security definer
set search_path = ''
as $$
declare
  v_id bigint;
begin
  insert into public.alerts as x (user_id, account_id, kind, reason, severity, message, detail)
  select a.user_id, a.id, p_kind, p_reason, p_severity, left(p_message, 1000),
    private.short_detail(coalesce(p_detail, '{}'))
  from public.trading_accounts a where a.id = p_account
  on conflict (account_id, vps_id, kind, reason) where seen_at is null
  do update set times = x.times + 1,
    (severity, message, detail) = (
      select case when milder then x.severity else excluded.severity end,
        case when milder then x.message else excluded.message end,
        case when milder then x.detail else excluded.detail end
      from private.is_milder(excluded.severity, x.severity) milder)
  returning x.id into v_id;
  return v_id;
end
$$;
comment on function private.raise_alert(uuid, text, text, text, text, jsonb) is
  'Raises an alert for the account''s user: (account, kind, reason, severity, message, detail). If the same alert is '
  'still unseen, it is counted there instead, and what a milder one says does not replace what a graver one said.';

-- Security definer: it is called in many places, also on behalf of an agent.
create function private.alert_operators(p_vps uuid, p_kind text, p_reason text, p_severity text, p_message text,
  p_detail jsonb) returns bigint
language sql security definer
set search_path = ''
as $$
  insert into public.alerts as x (vps_id, kind, reason, severity, message, detail)
  values (p_vps, p_kind, p_reason, p_severity, left(p_message, 1000), private.short_detail(coalesce(p_detail, '{}')))
  on conflict (account_id, vps_id, kind, reason) where seen_at is null
  do update set times = x.times + 1, severity = excluded.severity, message = excluded.message, detail = excluded.detail
  returning x.id
$$;
comment on function private.alert_operators(uuid, text, text, text, text, jsonb) is
  'Raises an alert for operators about a VPS (null: the installation): (VPS, kind, reason, severity, message, detail). '
  'Repeats are counted as in raise_alert().';

-- Symbols and positions beyond the limits are left out and cannot be copied; the user gets an alert.
create function private.alert_left_out(p_account uuid, p_what text, p_count bigint) returns void
language plpgsql
set search_path = ''
as $$
begin
  perform private.raise_alert(p_account, 'account', p_what || '_left_out', 'warning', format(
    '%s %s of account %s are left out and cannot be copied: a name has over 64 characters, or the account over 10000 '
    'symbols. '
    'Hide symbols in the terminal, or ask the broker for other names.',
    p_count, p_what, (select a.name from public.trading_accounts a where a.id = p_account)),
      jsonb_build_object('count', p_count))
  where p_count > 0;
end
$$;
comment on function private.alert_left_out(uuid, text, bigint) is
  'Alerts the account''s user that p_count symbols or positions are beyond the limits and were left out; 0: does '
  'nothing.';

-- {"alert_id"} -> {"alert_id", "seen_at"}. A second call changes nothing.
create function private.mark_alert_seen(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.require_user();
  v_id bigint := private.int_of(p_request, 'alert_id', 1, 9223372036854775807);
  v_seen timestamptz;
begin
  perform private.refuse_unknown(p_request, 'mark_alert_seen', array['alert_id']);
  update public.alerts a set seen_at = coalesce(a.seen_at, clock_timestamp())
  where a.id = v_id and (a.user_id = v_user or private.is_operator())
  returning a.seen_at into v_seen;
  if v_seen is null then
    raise exception using errcode = 'TC106',
      message = format('mark_alert_seen: alert %s does not exist or is not yours', left(p_request ->> 'alert_id', 20)),
      hint = 'Check the id.';
  end if;
  return jsonb_build_object('alert_id', v_id, 'seen_at', private.rfc3339(v_seen));
end
$$;
comment on function private.mark_alert_seen(jsonb) is 'Users: {"alert_id"} -> {"alert_id", "seen_at"}.';

create function public.mark_alert_seen(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.mark_alert_seen(p_request) $$;
comment on function public.mark_alert_seen(jsonb) is
  'Users and operators: marks an alert as seen; what happens afterwards is a new alert. A second call changes nothing.
Request:
- alert_id (integer; required; 1 or more): alert of the caller; operators: any
Answer:
- alert_id (integer): the alert
- seen_at (time): when it was first marked
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"alert_id": 42} -> {"alert_id": 42, "seen_at": "2026-12-01T09:30:00.000000Z"}';
grant execute on function private.mark_alert_seen(jsonb), public.mark_alert_seen(jsonb) to authenticated;

-- farm/assignment.sql
-- account_vps_assignments: which VPS works an account. The epoch fences off the VPS that worked it before.

create table public.account_vps_assignments (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade,
  vps_id uuid not null references public.vps_instances (id),
  epoch bigint not null default 1,
  begins_at timestamptz not null default now(),
  previous_vps_id uuid references public.vps_instances (id),
  assigned_at timestamptz not null default now(),
  constraint epoch_counts_from_one check (epoch >= 1)
);
comment on table public.account_vps_assignments is
  'The one VPS that works an account. Earlier assignments are in audit_log.';
comment on column public.account_vps_assignments.account_id is 'The account.';
comment on column public.account_vps_assignments.vps_id is 'The VPS that works it.';
comment on column public.account_vps_assignments.epoch is
  'Fencing token: grows with each move; calls with an older epoch are refused.';
comment on column public.account_vps_assignments.begins_at is
  'Until then the agent may read but not trade, because the previous VPS may still send orders.';
comment on column public.account_vps_assignments.previous_vps_id is
  'The VPS that begins_at waits for; null once it has given the account up.';
comment on column public.account_vps_assignments.assigned_at is 'When it was assigned.';

-- accounts of a VPS: heartbeat, load, failover
create index assignments_of_vps on public.account_vps_assignments (vps_id);

-- accounts that wait for a VPS to give them up: heartbeat
create index assignments_waiting_for_vps on public.account_vps_assignments (previous_vps_id)
  where previous_vps_id is not null;
alter table public.account_vps_assignments enable row level security;
create policy "users see where their accounts are, operators all"
  on public.account_vps_assignments for select to authenticated
  using ((select private.is_operator())
    or account_id in (select a.id from public.trading_accounts a where a.user_id = (select auth.uid())));

-- Every function by which an agent acts on an account calls this first.
create function private.require_assignment(p_vps uuid, p_account uuid, p_epoch bigint) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_lease_expires_at timestamptz;
begin
  select v.lease_expires_at into v_lease_expires_at
  from public.account_vps_assignments s
  join public.vps_instances v on v.id = s.vps_id
  where s.account_id = p_account and s.vps_id = p_vps and s.epoch = p_epoch;
  if not found then
    raise exception using errcode = 'TC103', message = 'the account is not assigned to this VPS with this epoch',
      detail = format('account %s, epoch %s', p_account, p_epoch),
      hint = 'Stop trading the account and send a heartbeat.';
  end if;
  if v_lease_expires_at <= clock_timestamp() then
    raise exception using errcode = 'TC104', message = 'the lease of this VPS is over',
      detail = format('since %s', v_lease_expires_at), hint = 'Renew it with a heartbeat first.';
  end if;
end
$$;
comment on function private.require_assignment(uuid, uuid, bigint) is
  'Raises TC103 unless the account is assigned to the VPS with this epoch, and TC104 if the lease of the VPS is over.';
grant select on public.account_vps_assignments to authenticated, service_role;

-- farm/audit.sql
-- audit_log: who changed what. Triggers write it, so no caller can forget it; nobody can change an entry.

create table public.audit_log (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  actor text not null,
  actor_id uuid,
  action text not null,
  entity text not null,
  entity_id text not null,
  user_id uuid,
  details jsonb not null default '{}',
  constraint actor_is_known check (actor in ('user', 'operator', 'agent', 'service', 'system')),
  constraint details_are_an_object check (jsonb_typeof(details) = 'object')
);
comment on table public.audit_log is 'Who changed what, and when. Append-only.';
comment on column public.audit_log.id is 'ID of the entry.';
comment on column public.audit_log.at is 'When the change was made.';
comment on column public.audit_log.actor is
  'user, operator, agent, service (the secret key) or system (maintain(), migrations).';
comment on column public.audit_log.actor_id is
  'Auth user who made the change; null: service or system. No foreign key: an entry outlives its user.';
comment on column public.audit_log.action is 'inserted, updated, deleted, or a verb such as credentials_read.';
comment on column public.audit_log.entity is 'Table of the changed row.';
comment on column public.audit_log.entity_id is 'Key of the changed row.';
comment on column public.audit_log.user_id is
  'The user who owns the row and may read the entry; null: the row belongs to the farm.';
comment on column public.audit_log.details is
  'inserted: the values; updated: {"column": [before, after]}; never a secret.';

-- a user's history
create index audit_of_user on public.audit_log (user_id, at) where user_id is not null;

-- the history of one row
create index audit_of_entity on public.audit_log (entity, entity_id, at);

-- retention
create index audit_by_time on public.audit_log (at);
alter table public.audit_log enable row level security;
create policy "users see their history, operators all" on public.audit_log for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));

create function private.actor() returns text
language sql stable
set search_path = ''
as $$
  select case
    when auth.role() = 'service_role' then 'service'
    when auth.uid() is null then 'system'
    when exists (select from public.vps_instances v where v.user_id = auth.uid()) then 'agent'
    when private.is_operator() then 'operator'
    else 'user'
  end
$$;
comment on function private.actor() is 'What kind of caller this is, as in audit_log.actor.';

create function private.write_audit(p_action text, p_entity text, p_entity_id text, p_user uuid, p_details jsonb)
returns void
language sql
set search_path = ''
as $$
  insert into public.audit_log (actor, actor_id, action, entity, entity_id, user_id, details)
  values (private.actor(), auth.uid(), p_action, p_entity, p_entity_id, p_user, private.short_detail(p_details))
$$;
comment on function private.write_audit(text, text, text, uuid, jsonb) is
  'Writes one entry to audit_log in the caller''s name.';

-- Trigger arguments: the key column, the owner ('user_id': that column; 'account': the owner of account_id; '':
-- nobody), then the columns to log. An update that changes none of them leaves no entry.
create function private.audit() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) else '{}' end;
  v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) else '{}' end;
  v_row jsonb := case when tg_op = 'DELETE' then to_jsonb(old) else to_jsonb(new) end;
  v_user uuid;
  v_details jsonb;
begin
  select coalesce(jsonb_object_agg(c.name, case tg_op
      when 'UPDATE' then jsonb_build_array(v_old -> c.name, v_new -> c.name)
      else v_row -> c.name end), '{}')
  into v_details
  from unnest(tg_argv[2:]) as c (name)
  where tg_op <> 'UPDATE' or v_old -> c.name is distinct from v_new -> c.name;
  if tg_op = 'UPDATE' and v_details = '{}' then
    return null;
  end if;
  v_user := case tg_argv[1]
    when '' then null
    when 'account' then (select a.user_id from public.trading_accounts a where a.id = (v_row ->> 'account_id')::uuid)
    else (v_row ->> tg_argv[1])::uuid
  end;
  perform private.write_audit(case tg_op when 'INSERT' then 'inserted' when 'UPDATE' then 'updated' else 'deleted' end,
                              tg_table_name, v_row ->> tg_argv[0], v_user, v_details);
  return null;
end
$$;
comment on function private.audit() is
  'Trigger (key column, owner, columns…): logs inserts, deletes and changes of these columns in audit_log.';

create function private.keep_audit() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  if tg_op = 'DELETE' and old.at < now() - private.setting_days('retention_days.audit_log') then
    return old;
  end if;
  raise exception using errcode = 'TC240', message = 'the audit log is append-only',
    hint = 'Entries are deleted once they are older than the setting retention_days.audit_log, and not before.';
end
$$;
comment on function private.keep_audit() is
  'Trigger: refuses every change of audit_log except the deletion of entries past their retention (TC240).';
create trigger append_only before update or delete
  on public.audit_log for each row execute function private.keep_audit();
create trigger append_only_truncate before truncate
  on public.audit_log for each statement execute function private.keep_audit();
create trigger audited after insert or update or delete on public.broker_servers for each row
  execute function private.audit('server', '', 'platform', 'server', 'title', 'address');
create trigger audited after insert or update or delete on public.system_config for each row
  execute function private.audit('key', '', 'value');
create trigger audited after insert or delete on public.operators for each row
  execute function private.audit('user_id', 'user_id', 'user_id');
create trigger audited after insert or update of name, user_id, platforms, capacity, status or delete
  on public.vps_instances for each row
  execute function private.audit('id', '', 'name', 'user_id', 'region', 'platforms', 'capacity', 'status');
create trigger audited after insert or update of used_at or delete on public.enrollment_tokens for each row
  execute function private.audit('id', '', 'name', 'created_by', 'expires_at', 'used_at', 'vps_id');
create trigger audited
  after insert or update of name, copy_state, secret_id, settings, claim, removed_at, initial_balance or delete
  on public.trading_accounts for each row
  execute function private.audit('id', 'user_id', 'platform', 'server', 'login', 'name', 'copy_state', 'secret_id',
    'settings', 'claim', 'removed_at', 'initial_balance');
create trigger audited after insert or update of vps_id, epoch or delete on public.account_vps_assignments for each row
  execute function private.audit('account_id', 'account', 'vps_id', 'epoch');
grant select on public.audit_log to authenticated, service_role;

-- farm/caller.sql
-- Checks of the caller: a user, or the service key.

create function private.require_service() returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if coalesce(auth.role(), '') <> 'service_role' then
    raise exception using errcode = 'TC109', message = 'only the service key may do this',
      hint = 'Call it from an Edge Function or the command line, with the project''s secret key.';
  end if;
end
$$;
comment on function private.require_service() is 'Raises TC109 unless the caller holds the service key.';

create function private.require_user() returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_user uuid := auth.uid();
begin
  if v_user is null then
    raise exception using errcode = 'TC108', message = 'nobody is signed in', hint = 'Sign in and try again.';
  end if;
  if exists (select from public.vps_instances v where v.user_id = v_user) then
    raise exception using errcode = 'TC105', message = 'agents may not call this function',
      hint = 'Sign in as a user.';
  end if;
  return v_user;
end
$$;
comment on function private.require_user() is
  'The signed-in user who is calling; TC108 if nobody is signed in, TC105 if the caller is an agent.';

-- farm/claim.sql
-- Claims on logins: who owns a broker's login before and after its password is proven, and how often it may be tried.
--
-- A claim is unproven until an agent has logged in with it. Several users may claim one login, because a login belongs
-- to whoever has its password, not to whoever typed it first. Attempts are counted per login and user when credentials
-- are handed out, so neither a new account nor another VPS starts a new count. Brokers lock a login after too many
-- wrong passwords; without the count, a stranger could lock out the owner.

create table private.login_attempts (
  id bigint generated always as identity primary key,
  platform text not null,
  server_key text not null,
  login_key text not null,
  user_id uuid not null,
  account_id uuid not null,
  beyond boolean not null default false,
  at timestamptz not null default clock_timestamp()
);
comment on table private.login_attempts is
  'Logins with unproven claims; a row is written when an agent gets the credentials for one.';
comment on column private.login_attempts.beyond is
  'Granted to a new password although the user''s attempts of that hour were used up.';

-- take_attempt: attempts on a login in the last hour
create index attempts_on_a_login on private.login_attempts (platform, server_key, login_key, at);

-- retention
create index attempts_by_time on private.login_attempts (at);
alter table private.login_attempts enable row level security;

-- Serializes every decision about a login: proofs, attempts, new claims.
create function private.lock_login(p_platform text, p_server_key text, p_login_key text) returns void
language sql
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended(concat_ws(chr(31), 'tradecopier.login', p_platform, p_server_key,
  p_login_key), 0)) $$;
comment on function private.lock_login(text, text, text) is
  'Locks the claims on one login until the transaction ends.';

create function private.proven_claim(p_platform text, p_server_key text,
  p_login_key text) returns public.trading_accounts
language sql stable
set search_path = ''
as $$
  select a from public.trading_accounts a
  where a.platform = p_platform and a.server_key = p_server_key and a.login_key = p_login_key and a.removed_at is null
    and a.claim in ('investor', 'trading')
$$;
comment on function private.proven_claim(text, text, text) is
  'The proven claim on a login; null: there is none. There is at most one.';

create function private.refuse_claimed(p_function text, p_platform text, p_server text, p_login text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC202', message = format('%s: this account is already connected', p_function),
    detail = format('%s, login %s at %s', p_platform, p_login, p_server),
    hint = 'An account can be connected once. To change its password call update_account.';
end
$$;
comment on function private.refuse_claimed(text, text, text, text) is 'Always raises TC202.';

-- Called before a claim is made or renewed. The service key has no limit: it connects accounts for users as an operator
-- would.
create function private.require_free_claim(p_user uuid) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_max integer := (private.setting('unproven_accounts_max') #>> '{}')::integer;
begin
  if coalesce(auth.role(), '') <> 'service_role' and (
    select count(*) from public.trading_accounts a
    where a.user_id = p_user and a.removed_at is null and a.claim = 'unproven') >= v_max
  then
    raise exception using errcode = 'TC223',
      message = format('%s of your accounts have never been logged in to', v_max),
      hint = 'Correct their passwords with update_account and wait for their logins, or remove some of them.';
  end if;
end
$$;
comment on function private.require_free_claim(uuid) is
  'Raises TC223 if the user has reached the limit of unproven claims (unproven_accounts_max).';

-- When an agent may next try to log in to the account; null: now.
create function private.attempt_waits(p_account public.trading_accounts) returns timestamptz
language plpgsql stable
set search_path = ''
as $$
declare
  v_own_max integer := (private.setting('login_attempts_per_user') #>> '{}')::integer;
  v_all_max integer := (private.setting('login_attempts_per_login') #>> '{}')::integer;
  v_own timestamptz[];
  v_all timestamptz[];
  v_beyond integer;
  v_until timestamptz;
begin
  select coalesce(array_agg(t.at order by t.at desc), '{}'),
    coalesce(array_agg(t.at order by t.at desc) filter (where t.user_id = p_account.user_id), '{}'),
    count(*) filter (where t.user_id = p_account.user_id and t.beyond)
  into v_all, v_own, v_beyond
  from private.login_attempts t
  where t.platform = p_account.platform and t.server_key = p_account.server_key and t.login_key = p_account.login_key
    and t.at > clock_timestamp() - interval '1 hour';
  -- A new password is tried at once: once per hour even if all attempts are used up, and again while that leaves
  -- another user's full share of the login's attempts.
  if p_account.password_is_new and (v_beyond = 0 or cardinality(v_all) < v_all_max - v_own_max) then
    return null;
  end if;
  v_until := greatest(v_own[v_own_max], v_all[v_all_max]) + interval '1 hour';
  if v_until is null and private.others_first(p_account, v_own_max) then
    v_until := clock_timestamp() + interval '1 minute';
  end if;
  return v_until;
end
$$;
comment on function private.attempt_waits(public.trading_accounts) is
  'When an unproven claim may be tried next; null: now.';

-- Users take turns: while others wait for an attempt, the user served last comes last. A user waits as long as the
-- account's agent reports it; the agent asks again every minute.
create function private.others_first(p_account public.trading_accounts, p_own_max integer) returns boolean
language sql stable
set search_path = ''
as $$
  select exists (
    select from public.trading_accounts a
    join public.account_vps_assignments s on s.account_id = a.id
    join public.vps_instances v on v.id = s.vps_id and v.lease_expires_at > clock_timestamp()
    cross join lateral (
      select max(t.at) as last_at, count(*) filter (where t.at > clock_timestamp() - interval '1 hour') as own
      from private.login_attempts t
      where t.platform = a.platform and t.server_key = a.server_key and t.login_key = a.login_key
        and t.user_id = a.user_id
    ) had
    where a.platform = p_account.platform and a.server_key = p_account.server_key and a.login_key = p_account.login_key
      and a.removed_at is null and a.claim in ('unproven', 'given_way') and a.user_id <> p_account.user_id
      and a.status_reason like 'login attempts used up until %' and had.own < p_own_max
      and (coalesce(had.last_at, '-infinity'), a.created_at, a.id) < (
        coalesce((select max(t.at) from private.login_attempts t
          where t.platform = p_account.platform and t.server_key = p_account.server_key
            and t.login_key = p_account.login_key
            and t.user_id = p_account.user_id), '-infinity'), p_account.created_at, p_account.id))
$$;
comment on function private.others_first(public.trading_accounts, integer) is
  'Whether another user who waits for an attempt at this login comes first.';

-- Called before an agent gets the credentials of an account. Logins with a proven claim are not counted: the owner may
-- always log in.
create function private.take_attempt(p_account uuid) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_other public.trading_accounts;
  v_until timestamptz;
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.claim in ('investor', 'trading') then
    return;
  end if;
  perform private.lock_login(v_account.platform, v_account.server_key, v_account.login_key);
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  v_other := private.proven_claim(v_account.platform, v_account.server_key, v_account.login_key);
  if v_account.claim in ('investor', 'trading') then
    return;
  elsif v_account.claim = 'ended' then
    perform private.refuse_ended('account_credentials', v_account.name);
  elsif v_other.claim = 'trading' and v_account.claim <> 'given_way' then
    perform private.refuse_claimed('account_credentials', v_account.platform, v_account.server, v_account.login);
  end if;
  v_until := private.attempt_waits(v_account);
  if v_until is not null then
    raise exception using errcode = 'TC224',
      message = format('login attempts used up until %s', private.rfc3339(v_until)),
      detail = format('account %s', v_account.id),
        hint = 'It is tried again automatically then. A corrected password (update_account) is tried at once.';
  end if;
  v_account.password_is_new := false;
  insert into private.login_attempts (platform, server_key, login_key, user_id, account_id, beyond)
  values (v_account.platform, v_account.server_key, v_account.login_key, v_account.user_id, v_account.id,
          private.attempt_waits(v_account) is not null);
  update public.trading_accounts a set password_is_new = false where a.id = v_account.id and a.password_is_new;
end
$$;
comment on function private.take_attempt(uuid) is
  'Counts a login with an unproven claim. Raises TC224 with the time of the next attempt if none is left now; TC225 or '
  'TC202 if there will never be one.';

create function private.refuse_ended(p_function text, p_name text) returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC225',
    message = format('%s: the claim of account %s has ended: another user has logged in to it with its trading '
      'password', p_function, p_name),
    hint = 'Remove the account. If it is yours, change its trading password at the broker and ask an operator.';
end
$$;
comment on function private.refuse_ended(text, text) is 'Always raises TC225.';

-- With a new password an ended claim starts again if nobody has proved the login since, and the next login need not
-- wait.
create function private.renew_claim(p_account uuid, p_password text) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if p_password is null or v_account.claim in ('investor', 'trading') then
    return;
  end if;
  perform private.lock_login(v_account.platform, v_account.server_key, v_account.login_key);
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.claim = 'ended' then
    if (private.proven_claim(v_account.platform, v_account.server_key, v_account.login_key)).claim = 'trading' then
      perform private.refuse_ended('update_account', v_account.name);
    end if;
    perform private.require_free_claim(v_account.user_id);
    update public.trading_accounts a set claim = 'unproven', status = 'pending', status_reason = null
    where a.id = p_account;
  end if;
  -- Only for a different password: the same one would fail again.
  update public.trading_accounts a set password_is_new = true
  where a.id = p_account and p_password is distinct from (select s.decrypted_secret from vault.decrypted_secrets s
    where s.id = a.secret_id);
end
$$;
comment on function private.renew_claim(uuid, text) is
  'Renews an unproven claim for a new password. Call it before the password is stored.';

-- farm/process.sql
-- Which agent process works as a VPS. A machine that is cloned while it runs exists twice with one identity, and each
-- copy would send every order. The newest process works; the one before is refused (TC110) and stops.
--
-- A process identifies itself in each heartbeat: {"id", "machine", "beat", "new"}.
--   machine  equal to the previous process's only if the lock on the agent's data directory proves that process ended.
--            Then the new process begins at once. Otherwise it begins when the previous lease is over, because the
--            previous process may not have noticed yet.
--   beat     counts up, so a copy of a running process, which has the same id, is noticed too.
--   new      is set until the process gets its first answer.

create function private.refuse_process(p_vps uuid) returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC110', message = 'another process works as this VPS', detail = p_vps::text,
    hint = 'Two machines run with one identity (a clone?). Stop one of them, or enrol it as a separate VPS; this one '
      'trades nothing until the other is gone.';
end
$$;
comment on function private.refuse_process(uuid) is
  'Raises TC110: the calling process is not, or no longer, the one that works as this VPS.';

-- The caller stores the beat.
create function private.admit_process(p_vps uuid, p_process jsonb) returns timestamptz
language plpgsql
set search_path = ''
as $$
declare
  v_id text := private.text_of(p_process, 'id', 64);
  v_machine text := private.text_of(p_process, 'machine', 64);
  v_beat bigint := private.int_of(p_process, 'beat', 0, 9223372036854775807);
  v_old public.vps_instances;
  v_alive boolean;
  v_begins_at timestamptz := clock_timestamp();
begin
  if v_id is null or v_beat is null then
    return '-infinity';
  end if;
  select v.* into v_old from public.vps_instances v where v.id = p_vps for no key update;
  v_alive := v_old.process is not null and v_old.lease_expires_at > clock_timestamp();
  if v_old.process = v_id and v_beat > v_old.process_beat then
    return v_old.process_begins_at;
  end if;
  if v_alive and (v_old.process = v_id or p_process -> 'new' is distinct from 'true') then
    perform private.refuse_process(p_vps);
  end if;
  if v_alive then
    v_begins_at := greatest(v_begins_at, v_old.process_begins_at);
  end if;
  if v_alive and v_old.process_machine is distinct from v_machine then
    v_begins_at := greatest(v_begins_at, v_old.lease_expires_at);
    perform private.write_audit('process_replaced', 'vps_instances', p_vps::text, null,
      jsonb_build_object('since', v_old.process_since, 'begins_at', private.rfc3339(v_begins_at)));
    -- a process that still listens on the topic sends a heartbeat, and is refused
    perform private.broadcast('vps:' || p_vps, 'assignments', '{}');
  end if;
  update public.vps_instances v
  set process = v_id, process_machine = v_machine, process_since = clock_timestamp(), process_begins_at = v_begins_at,
      -- A new process has one lease's time to work through an answer, but not if the one before never did.
      worked_at = case when v.process_worked then clock_timestamp() else v.worked_at end, process_worked = false
  where v.id = p_vps;
  return v_begins_at;
end
$$;
comment on function private.admit_process(uuid, jsonb) is
  'When the calling process may begin to trade as this VPS; -infinity if it did not identify itself; TC110 if another '
  'one works as the VPS.';

-- farm/protocol.sql
-- The protocol version, and which answers to heartbeats an agent has worked through. An agent that sends heartbeats but
-- fails on every answer would otherwise hold its accounts and trade none of them.
--
-- Each answer has a number, and each heartbeat names the last answer that was worked through. If that answer is older
-- than a lease, the heartbeat renews no lease and hands out nothing until the agent has worked through an answer again.

create function private.protocol_version() returns integer
language sql immutable
set search_path = ''
as $$ select 2 $$;
comment on function private.protocol_version() is
  'Version of docs/protocol.md that this database speaks. Agents with an older version are refused.';

create function private.check_protocol(p_heartbeat jsonb) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_version bigint := coalesce(private.int_of(p_heartbeat, 'protocol_version', 1, 1000000), 1);
begin
  if v_version < private.protocol_version() then
    raise exception using errcode = 'TC111',
      message = format('this agent speaks protocol %s, the database needs %s', v_version, private.protocol_version()),
      hint = 'On this VPS, update the agent to the version of the database and restart it; until then it trades '
        'nothing.';
  end if;
end
$$;
comment on function private.check_protocol(jsonb) is
  'Raises TC111 if the agent speaks an older protocol. A newer agent decides by the version in the answer.';

-- The number is the time in microseconds, and grows. If the clock was set back, the numbers start again from the new
-- time; an answer given before is then in the future and counts as never given.
create function private.next_answer(p_last bigint) returns bigint
language sql volatile
set search_path = ''
as $$
  select case when p_last between n.now and n.now + 1000000 then p_last + 1 else n.now end
  from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as now) n
$$;
comment on function private.next_answer(bigint) is 'The number of the answer after the one with this number.';

create function private.given_at(p_vps public.vps_instances, p_answer bigint) returns timestamptz
language sql stable
set search_path = ''
as $$
  select g.at from (select 'epoch'::timestamptz + p_answer * interval '1 microsecond' as at) g
  where p_answer <= p_vps.answer_id and g.at >= coalesce(p_vps.process_since, p_vps.created_at)
$$;
comment on function private.given_at(public.vps_instances, bigint) is
  'When this answer was given to the current process of the VPS; null: it never was.';

-- farm/release.sql
-- Releases: a VPS that cannot work one account gives up that account and keeps the others. The account is placed
-- elsewhere. If no other VPS can take it, it waits with the reason as its status and returns to the same VPS after
-- release_s.

create table private.releases (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  vps_id uuid not null references public.vps_instances (id) on delete cascade,
  reason text not null,
  released_at timestamptz not null,
  primary key (vps_id, account_id),
  constraint reason_is_short check (length(reason) <= 500)
);
comment on table private.releases is
  'Which VPS could not work which account, and why. A release ends after release_s, when the VPS''s agent restarts, '
  'and '
  'when the account''s settings change.';
comment on column private.releases.account_id is 'The account.';
comment on column private.releases.vps_id is 'The VPS that released it.';
comment on column private.releases.reason is 'Why: a code, a colon and an explanation.';
comment on column private.releases.released_at is 'When the VPS last reported it.';

-- cascade from trading_accounts
create index releases_of_account on private.releases (account_id);
alter table private.releases enable row level security;

create function private.released_accounts(p_vps uuid) returns uuid[]
language sql stable
set search_path = ''
as $$
  select array(
    select r.account_id from private.releases r join public.vps_instances v on v.id = r.vps_id
    where r.vps_id = p_vps and r.released_at > clock_timestamp() - private.setting_s('release_s')
      and r.released_at >= coalesce(v.process_since, '-infinity'))
$$;
comment on function private.released_accounts(uuid) is
  'The accounts that this VPS has released and must not be given now.';

-- The account stays assigned until another VPS takes it, so reports of sent orders still arrive and nobody else trades
-- it.
create function private.release_account(p_vps uuid, p_account uuid, p_reason text) returns void
language plpgsql
set search_path = ''
as $$
begin
  if not exists (select from public.account_vps_assignments s where s.account_id = p_account and s.vps_id = p_vps) then
    return;
  end if;
  insert into private.releases as r (account_id, vps_id, reason, released_at)
  values (p_account, p_vps, left(p_reason, 500), clock_timestamp())
  on conflict (vps_id, account_id) do update set reason = excluded.reason, released_at = excluded.released_at;
  perform private.raise_alert(p_account, 'account', substring(p_reason from '^[a-z_]+'), 'critical',
    format('Account %s was released by its VPS: %s',
      (select a.name from public.trading_accounts a where a.id = p_account), left(p_reason, 500)),
    jsonb_build_object('vps_id', p_vps));
end
$$;
comment on function private.release_account(uuid, uuid, text) is
  'Releases one account from a VPS; the reason begins with a code. maintain() places the account elsewhere.';

-- Repeated in every heartbeat: a row that is locked is skipped until the next one, so that no account keeps a VPS from
-- renewing its lease.
create function private.show_releases(p_vps uuid) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_released uuid[] := private.released_accounts(p_vps);
begin
  if v_released <> '{}' then
    update public.trading_accounts a set status = 'disconnected', status_reason = r.reason
    from private.releases r
    where r.vps_id = p_vps and r.account_id = a.id
      and (a.status, a.status_reason) is distinct from ('disconnected', r.reason)
      and a.id = any (array(
        select t.id from public.trading_accounts t join public.account_vps_assignments s on s.account_id = t.id
        where t.id = any (v_released) and s.vps_id = p_vps for no key update of t skip locked));
  end if;
end
$$;
comment on function private.show_releases(uuid) is
  'Sets the status of accounts that this VPS has released to disconnected, with the reason, until another VPS takes '
  'them.';

create function private.release_unreadable(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account uuid;
begin
  if jsonb_typeof(p_accounts) is distinct from 'array' or p_accounts = '[]' then
    return;
  end if;
  for v_account in
    select s.account_id from public.account_vps_assignments s where s.vps_id = p_vps and p_accounts ? s.account_id::text
    order by 1
  loop
    perform private.release_account(p_vps, v_account,
      'unreadable_assignment: the agent of its VPS cannot read what the database sent about the account; the log of '
      'that agent names the field');
  end loop;
end
$$;
comment on function private.release_unreadable(uuid, jsonb) is
  'Releases the accounts of the VPS whose entries in the last answer its agent could not read: p_accounts, an array.';

-- farm/topic.sql
-- Realtime topics and who may listen to them. There is no policy for insert, so only the database can publish.

-- All broadcasts go through this function. The payload must be an object: realtime.send drops anything else without an
-- error. Security definer: the owner bypasses the policies of realtime.messages, which let nobody write there.
create function private.broadcast(p_topic text, p_event text, p_payload jsonb) returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if jsonb_typeof(p_payload) is distinct from 'object' then
    raise exception 'broadcast payload: expected an object';
  end if;
  perform realtime.send(p_payload, p_event, p_topic, true);
end
$$;
comment on function private.broadcast(text, text, jsonb) is
  'Sends an event to a private topic. A lost broadcast is no error: the row is authoritative.';

-- Security definer: it reads vps_instances, which listeners may not.
create function private.may_listen(p_topic text) returns boolean
language sql stable security definer
set search_path = ''
as $$
  select case
    when p_topic like 'vps:%' then exists (
      select from public.vps_instances v
      where v.user_id = auth.uid() and v.retired_at is null and p_topic = 'vps:' || v.id)
    when p_topic like 'user:%' then p_topic = 'user:' || auth.uid()
    when p_topic = 'operators' then private.is_operator()
    else false
  end
$$;
comment on function private.may_listen(text) is
  'Whether the caller may join a topic: vps:<id>: the agent of that VPS; user:<id>: that user; operators: '
  'operators.';
create policy "agents, users and operators hear their own topic" on realtime.messages for select to authenticated
  using (extension = 'broadcast' and (select private.may_listen((select realtime.topic()))));
grant execute on function private.may_listen(text) to authenticated;

-- copier/symbol_name.sql
-- Symbol names without a broker's prefixes and suffixes.

-- The pair of currencies or metals in a symbol's name, which means the same at every broker: EURUSD for "m.EURUSD.x";
-- null: there is none.
create function private.pair_in(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return substring(upper(p_name) from
    '(?:AUD|CAD|CHF|CNH|CZK|DKK|EUR|GBP|HKD|HUF|ILS|JPY|MXN|NOK|NZD|PLN|RUB|SEK|SGD|THB|TRY|USD|ZAR'
    '|XAU|XAG|XPT|XPD|BTC|ETH|LTC){2}');
end $$;

-- What a symbol is looked up by, in upper case: the pair that it begins with, also as EUR/USD, else everything up to
-- the first odd character: EURUSD for "eurusd.m", "EURUSDpro" and "#EURUSD", BRK for "BRK.B". Equal roots do not
-- make two symbols the same instrument: copier/instrument.sql decides that.
create function private.symbol_root(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_bare text := upper(regexp_replace(p_name, '^[^A-Za-z0-9]+', ''));
begin
  if private.pair_in(left(v_bare, 6)) is not null then return left(v_bare, 6); end if;
  if v_bare ~ '^[A-Z]{3}[^A-Z0-9][A-Z]{3}'
    and private.pair_in(left(v_bare, 3) || substr(v_bare, 5, 3)) is not null then
    return left(v_bare, 3) || substr(v_bare, 5, 3);
  end if;
  return regexp_replace(v_bare, '[^A-Z0-9].*$', '');
end $$;

-- the planner: a follower's candidates for the master's symbol, exchange rates by pair. The root is the first column,
-- so that a look-up by account and name uses the primary key.
create index account_symbols_by_root on public.account_symbols (private.symbol_root(name), account_id);

-- copier/balance_operation.sql
-- Balance operations: deposits and withdrawals, as the broker numbers them. They are no profits or losses: what a
-- protection rule measures from moves by their amount.

create table public.balance_operations (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  number text not null,
  user_id uuid not null references auth.users (id) on delete cascade,
  kind text not null,
  amount numeric not null,
  made_at timestamptz not null,
  counted boolean not null,
  created_at timestamptz not null default now(),
  primary key (account_id, number),
  constraint kind_is_known check (kind in ('deposit', 'withdrawal')),
  constraint number_is_short check (length(number) between 1 and 64),
  constraint amount_in_range check (amount <> 0 and abs(amount) < 1e15)
);
comment on table public.balance_operations is
  'Deposits and withdrawals of accounts, each booked once by the broker''s own number. Never credit, bonus, swap or '
  'commission. Kept as long as the account, because a broker may tell its history again.';
comment on column public.balance_operations.number is 'The broker''s number of the operation.';
comment on column public.balance_operations.amount is
  'In the account''s currency: above 0 a deposit, below 0 a withdrawal.';
comment on column public.balance_operations.made_at is 'When the broker booked it.';
comment on column public.balance_operations.counted is
  'Whether protection rules were moved by it; false: it is older than the first figures that were known.';
create index balance_operations_of_user on public.balance_operations (user_id);
alter table public.balance_operations enable row level security;
create policy "own balance operations are readable" on public.balance_operations for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger audited after insert on public.balance_operations for each row
  execute function private.audit('number', 'user_id', 'account_id', 'number', 'kind', 'amount', 'made_at', 'counted');
grant select on public.balance_operations to authenticated, service_role;

-- copier/copier.sql
-- Copiers: the rule "copy this master to this follower", with sizing, filters, limits and symbol mappings.

-- Every sizing mode; planner/sizing.sql has their formulas.
create function private.sizing_modes() returns text[]
language sql immutable set search_path = '' as $$
  select array['multiplier', 'percentage', 'fixed', 'balance_ratio', 'equity_ratio', 'free_margin_ratio',
    'risk_percent']
$$;

-- 'a, b or c', for messages.
create function private.one_of(p_words text[]) returns text
language sql immutable set search_path = '' as $$
  select array_to_string(p_words[:cardinality(p_words) - 1], ', ') || ' or ' || p_words[cardinality(p_words)]
$$;

create table public.copiers (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  name text not null default '',
  master_account_id uuid not null references public.trading_accounts (id),
  follower_account_id uuid not null references public.trading_accounts (id),
  mode text not null default 'on',
  -- sizing; preview_copy's "copier" has the same keys
  sizing_mode text not null default 'multiplier',
  sizing_value numeric not null default 1,
  contract_alignment boolean not null default true,
  min_policy text not null default 'skip',
  max_risk_coefficient numeric not null default 5,
  max_policy text not null default 'cap',
  max_lots numeric,
  max_risk_percent numeric,
  max_leverage numeric,
  max_leverage_policy text not null default 'discard',
  sanity_factor numeric default 3,
  reverse boolean not null default false,
  -- levels, pending orders, timing, retries
  sl_mode text not null default 'price',
  tp_mode text not null default 'price',
  sl_points integer,
  tp_points integer,
  max_sl_points integer,
  copy_pending boolean not null default true,
  copy_existing text not null default 'none',
  copy_existing_points integer,
  pending_grace_ms integer not null default 2000,
  early_fill_policy text not null default 'close',
  max_age_ms integer not null default 5000,
  retry_window_s integer not null default 60,
  no_money_policy text not null default 'skip',
  delay_min_ms integer not null default 0,
  delay_max_ms integer not null default 0,
  lots_jitter_percent numeric not null default 0,
  max_slippage_points integer,
  comment text not null default '',
  -- what is copied; filters never apply to closes
  sides text not null default 'both',
  symbols_only text[] not null default '{}',
  symbols_except text[] not null default '{}',
  magic_only text[] not null default '{}',
  magic_except text[] not null default '{}',
  comment_only text[] not null default '{}',
  comment_except text[] not null default '{}',
  max_open_positions integer,
  max_open_lots numeric,
  max_trades_per_day integer,
  min_equity numeric,
  time_zone text not null default 'UTC',
  weekdays integer[] not null default '{1,2,3,4,5,6,7}',
  open_from time,
  open_until time,
  -- lifecycle
  started_at timestamptz not null default now(),
  existing_until timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  removal text,
  removed_at timestamptz,
  constraint accounts_differ check (master_account_id <> follower_account_id),
  constraint name_is_short check (length(name) <= 100),
  constraint mode_is_known check (mode in ('on', 'monitor', 'off')),
  constraint removal_is_known check (removal in ('preserve', 'close_gracefully', 'close_now')),
  constraint sizing_mode_is_known check (sizing_mode = any (private.sizing_modes())),
  constraint sizing_value_in_range check (sizing_value > 0 and sizing_value <= 100000),
  constraint sizing_value_fits_sizing_mode check (sizing_mode = 'percentage'
    or sizing_value <= case sizing_mode when 'risk_percent' then 100 else 1000 end),
  constraint min_policy_is_known check (min_policy in ('skip', 'force_min')),
  constraint max_policy_is_known check (max_policy in ('cap', 'split')),
  constraint max_leverage_policy_is_known check (max_leverage_policy in ('discard', 'shrink')),
  constraint max_risk_coefficient_in_range check (max_risk_coefficient between 1 and 1000),
  constraint max_lots_in_range check (max_lots > 0 and max_lots <= 1000000),
  constraint max_risk_percent_in_range check (max_risk_percent > 0 and max_risk_percent <= 100),
  constraint max_leverage_in_range check (max_leverage > 0 and max_leverage <= 1000000),
  constraint sanity_factor_in_range check (sanity_factor between 1 and 1000000),
  constraint sl_mode_is_known check (sl_mode in ('price', 'distance', 'fixed', 'none')),
  constraint tp_mode_is_known check (tp_mode in ('price', 'distance', 'fixed', 'none')),
  constraint sl_points_in_range check (sl_points between 1 and 1000000),
  constraint tp_points_in_range check (tp_points between 1 and 1000000),
  constraint max_sl_points_in_range check (max_sl_points between 1 and 1000000),
  constraint fixed_sl_has_points check (sl_mode <> 'fixed' or sl_points is not null),
  constraint fixed_tp_has_points check (tp_mode <> 'fixed' or tp_points is not null),
  constraint pending_grace_in_range check (pending_grace_ms between 0 and 60000),
  constraint early_fill_policy_is_known check (early_fill_policy in ('close', 'keep')),
  constraint copy_existing_is_known check (copy_existing in ('none', 'all', 'near')),
  constraint copy_existing_points_not_negative check (copy_existing_points >= 0),
  constraint near_says_how_near check (copy_existing <> 'near' or copy_existing_points is not null),
  constraint max_age_in_range check (max_age_ms between 100 and 600000),
  constraint retry_window_in_range check (retry_window_s between 0 and 3600),
  constraint delay_in_range check (delay_max_ms between 0 and 3000),
  constraint delay_min_within_max check (delay_min_ms between 0 and delay_max_ms),
  constraint lots_jitter_in_range check (lots_jitter_percent between 0 and 50),
  constraint no_money_policy_is_known check (no_money_policy in ('skip', 'shrink')),
  constraint max_slippage_not_negative check (max_slippage_points >= 0),
  constraint comment_is_short check (length(comment) <= 60),
  constraint comment_placeholders_are_known check (replace(replace(replace(comment, '{master}', ''), '{ticket}', ''),
    '{copier}', '') !~ '[{}]'),
  constraint sides_are_known check (sides in ('both', 'buy', 'sell')),
  constraint symbols_only_is_short check (private.is_list(symbols_only)),
  constraint symbols_except_is_short check (private.is_list(symbols_except)),
  constraint magic_only_is_short check (private.is_list(magic_only)),
  constraint magic_except_is_short check (private.is_list(magic_except)),
  constraint comment_only_is_short check (private.is_list(comment_only)),
  constraint comment_except_is_short check (private.is_list(comment_except)),
  constraint max_open_positions_is_positive check (max_open_positions > 0),
  constraint max_open_lots_in_range check (max_open_lots > 0 and max_open_lots <= 1000000),
  constraint max_trades_per_day_is_positive check (max_trades_per_day > 0),
  constraint min_equity_in_range check (min_equity >= 0 and min_equity < 1e12),
  constraint weekdays_are_1_to_7 check (weekdays <@ '{1,2,3,4,5,6,7}' and cardinality(weekdays) between 1 and 7),
  constraint hours_come_in_pairs check ((open_from is null) = (open_until is null)
    and open_from is distinct from open_until or open_from is null)
);
comment on table public.copiers is
  'The rule "copy this master to this follower": what is copied, and how large. Rows are never deleted; removed_at is '
  'set.';
comment on column public.copiers.id is 'ID of the copier';
comment on column public.copiers.user_id is 'the user that it belongs to';
comment on column public.copiers.name is 'the name that the user gave it';
comment on column public.copiers.master_account_id is 'account whose trades are copied; cannot be changed later';
comment on column public.copiers.follower_account_id is 'account that holds the copies; cannot be changed later';
comment on column public.copiers.mode is
  'on = copies; monitor = opens nothing, keeps open copies in step; off = frozen, closes included';
comment on column public.copiers.sizing_mode is
  'how a copy''s size is computed: a multiple or percentage of the master''s lots, fixed lots, by the ratio of '
  'balance, equity or free margin, or so that the stop risks a percentage of the balance';
comment on column public.copiers.sizing_value is
  'multiplier, percent of the master''s size, fixed lots, factor on the ratio, or risk percent, depending on '
  'sizing_mode';
comment on column public.copiers.contract_alignment is
  'whether lots are converted when contract sizes differ, so that a copy has the same exposure';
comment on column public.copiers.min_policy is
  'what to do with a size below the follower''s minimum: skip it, or raise it to the minimum (force_min)';
comment on column public.copiers.max_risk_coefficient is
  'for min_policy force_min: how many times the wanted size the minimum may be';
comment on column public.copiers.max_policy is
  'what to do with a size above the symbol''s maximum: one order of the maximum (cap), or several orders (split)';
comment on column public.copiers.max_lots is 'limit of one copy, in lots of the follower';
comment on column public.copiers.max_risk_percent is
  'the most that the stop of one copy may lose, in percent of the follower''s balance';
comment on column public.copiers.max_leverage is
  'the largest value of one copy, in multiples of the follower''s equity';
comment on column public.copiers.max_leverage_policy is
  'what to do with a copy above max_leverage: leave it out (discard), or shrink it';
comment on column public.copiers.sanity_factor is
  'refuses a copy whose exposure per equity is more than this many times the master''s; null = never';
comment on column public.copiers.reverse is
  'copies buys as sells and sells as buys; stop loss and take profit are swapped';
comment on column public.copiers.copy_existing is
  'what to do with positions that the master already holds when the copier is made: none, all, or near = copy those '
  'whose price is within copy_existing_points of the master''s; decided once, at the start';
comment on column public.copiers.copy_existing_points is
  'how far the follower''s price may be from the master''s open price, in points of the follower''s symbol';
comment on column public.copiers.existing_until is
  'until then the copier waits for quotes to decide which existing positions to copy; null = that is decided';
comment on column public.copiers.sl_mode is
  'price = the master''s level; distance = as far from the copy''s open price as the master''s level is from the '
  'master''s; fixed = sl_points away; none';
comment on column public.copiers.tp_mode is 'price, distance, fixed (tp_points away) or none, as for sl_mode';
comment on column public.copiers.sl_points is
  'for sl_mode fixed: distance from the copy''s own open price, in points of the follower''s symbol';
comment on column public.copiers.tp_points is
  'for tp_mode fixed: distance from the copy''s own open price, in points of the follower''s symbol';
comment on column public.copiers.max_sl_points is
  'largest distance of a copy''s stop loss from its open price, in points; also applies when the master has no stop '
  'loss';
comment on column public.copiers.copy_pending is
  'whether pending orders are copied as pending orders; if not, their fills are copied, and a fill''s age is measured '
  'from the fill';
comment on column public.copiers.pending_grace_ms is
  'how much later than the master''s a copied order may fill before it is cancelled and opened at the market';
comment on column public.copiers.early_fill_policy is
  'if a copied order fills and the master then cancels its own: close the copy, or keep it as the user''s own position';
comment on column public.copiers.comment is
  'the comment that brokers show on a copy; {master}, {ticket} and {copier} stand for the master''s name and ticket '
  'and the copier''s name';
comment on column public.copiers.max_age_ms is
  'an open is refused as too_old if it is detected later than this after the last read in which it was absent';
comment on column public.copiers.retry_window_s is
  'how long a refused open may be retried (market closed, requote)';
comment on column public.copiers.delay_min_ms is
  'with delay_max_ms: each open waits at least this long; the delay is random between the two';
comment on column public.copiers.delay_max_ms is
  'opens of hedging followers wait up to this long; closes and level changes never wait; 0 = no delay. You must check '
  'whether your account''s rules allow it';
comment on column public.copiers.lots_jitter_percent is
  'sizes are reduced at random by up to this much; they are never increased';
comment on column public.copiers.no_money_policy is
  'an open refused for lack of money is tried once more: unchanged (skip), or reduced to what the free margin allows '
  '(shrink)';
comment on column public.copiers.max_slippage_points is
  'how much worse than the master''s price an open''s price may be, in points of the follower''s symbol; a better '
  'price is always accepted';
comment on column public.copiers.sides is 'sides of the master that are copied: both, buy or sell';
comment on column public.copiers.symbols_only is 'only these symbols of the master, * stands for any text; empty = all';
comment on column public.copiers.symbols_except is 'not these symbols of the master, * stands for any text';
comment on column public.copiers.magic_only is 'only trades of the master with these magic numbers; empty = all';
comment on column public.copiers.magic_except is 'no trades of the master with these magic numbers';
comment on column public.copiers.comment_only is
  'only trades of the master with these comments, * stands for any text; empty = all';
comment on column public.copiers.comment_except is
  'no trades of the master with these comments, * stands for any text';
comment on column public.copiers.max_open_positions is 'the most copies that this copier may hold at once';
comment on column public.copiers.max_open_lots is 'the most lots that this copier may hold at once';
comment on column public.copiers.max_trades_per_day is
  'the most copies opened per day; a day begins at midnight in time_zone';
comment on column public.copiers.min_equity is
  'nothing is opened while the follower''s equity is below this, in the account''s currency';
comment on column public.copiers.time_zone is
  'time zone of the day, weekdays and hours of this copier, such as Europe/Berlin';
comment on column public.copiers.weekdays is 'ISO weekdays on which trades are opened, 1 = Monday, in time_zone';
comment on column public.copiers.open_from is
  'with open_until: hours of the day, in time_zone, in which trades are opened; may span midnight';
comment on column public.copiers.open_until is 'with open_from: the end of these hours';
comment on column public.copiers.removal is
  'how it is being removed: preserve = its copies are left to the user; close_gracefully = each copy is closed with '
  'its master; close_now = all copies are closed now';
comment on column public.copiers.removed_at is
  'when the removal was complete; set by the upkeep once its last copy has ended';
comment on column public.copiers.started_at is 'positions that the master held before this are not copied';
comment on column public.copiers.created_at is 'when it was created';
comment on column public.copiers.updated_at is 'when it last changed';

-- What each rule allows. save_copier puts these words into its message when a value breaks the rule (TC303, TC306).
comment on constraint accounts_differ on public.copiers is 'must be two different accounts';
comment on constraint name_is_short on public.copiers is 'must have at most 100 characters';
comment on constraint mode_is_known on public.copiers is 'must be on, monitor or off';
comment on constraint removal_is_known on public.copiers is 'must be preserve, close_gracefully or close_now';
do $$ begin
  execute format('comment on constraint sizing_mode_is_known on public.copiers is %L',
    'must be ' || private.one_of(private.sizing_modes()));
end $$;
comment on constraint sizing_value_in_range on public.copiers is
  'must be above 0 and at most 1000 (percentage: 100000, risk_percent: 100)';
comment on constraint sizing_value_fits_sizing_mode on public.copiers is
  'must fit together: at most 100 for risk_percent, 100000 for percentage, 1000 for the others';
comment on constraint min_policy_is_known on public.copiers is 'must be skip or force_min';
comment on constraint max_policy_is_known on public.copiers is 'must be cap or split';
comment on constraint max_leverage_policy_is_known on public.copiers is 'must be discard or shrink';
comment on constraint max_risk_coefficient_in_range on public.copiers is 'must be 1 to 1000';
comment on constraint max_lots_in_range on public.copiers is
  'must be above 0 and at most 1000000, or null for no limit';
comment on constraint max_risk_percent_in_range on public.copiers is
  'must be above 0 and at most 100, or null for no limit';
comment on constraint max_leverage_in_range on public.copiers is
  'must be above 0 and at most 1000000, or null for no limit';
comment on constraint sanity_factor_in_range on public.copiers is 'must be 1 to 1000000, or null for no limit';
comment on constraint sl_mode_is_known on public.copiers is 'must be price, distance, fixed or none';
comment on constraint tp_mode_is_known on public.copiers is 'must be price, distance, fixed or none';
comment on constraint sl_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null';
comment on constraint tp_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null';
comment on constraint max_sl_points_in_range on public.copiers is 'must be 1 to 1000000 points, or null for no limit';
comment on constraint fixed_sl_has_points on public.copiers is 'must fit together: fixed needs points';
comment on constraint fixed_tp_has_points on public.copiers is 'must fit together: fixed needs points';
comment on constraint pending_grace_in_range on public.copiers is 'must be 0 to 60000 milliseconds';
comment on constraint early_fill_policy_is_known on public.copiers is 'must be close or keep';
comment on constraint copy_existing_is_known on public.copiers is 'must be none, all or near';
comment on constraint copy_existing_points_not_negative on public.copiers is 'must be 0 or more points';
comment on constraint near_says_how_near on public.copiers is 'must go together: near needs a number of points';
comment on constraint max_age_in_range on public.copiers is 'must be 100 to 600000 milliseconds';
comment on constraint retry_window_in_range on public.copiers is 'must be 0 to 3600 seconds';
comment on constraint delay_in_range on public.copiers is 'must be 0 to 3000 milliseconds';
comment on constraint delay_min_within_max on public.copiers is
  'must fit together: delay_min_ms from 0 to delay_max_ms';
comment on constraint lots_jitter_in_range on public.copiers is 'must be 0 to 50 percent';
comment on constraint no_money_policy_is_known on public.copiers is 'must be skip or shrink';
comment on constraint max_slippage_not_negative on public.copiers is 'must be 0 or more points, or null for no limit';
comment on constraint comment_is_short on public.copiers is 'must have at most 60 characters';
comment on constraint comment_placeholders_are_known on public.copiers is
  'must have no braces but {master}, {ticket} and {copier}';
comment on constraint sides_are_known on public.copiers is 'must be both, buy or sell';
comment on constraint symbols_only_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint symbols_except_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint magic_only_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint magic_except_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint comment_only_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint comment_except_is_short on public.copiers is
  'must have at most 500 entries of at most 100 characters';
comment on constraint max_open_positions_is_positive on public.copiers is 'must be 1 or more, or null for no limit';
comment on constraint max_open_lots_in_range on public.copiers is
  'must be above 0 and at most 1000000, or null for no limit';
comment on constraint max_trades_per_day_is_positive on public.copiers is 'must be 1 or more, or null for no limit';
comment on constraint min_equity_in_range on public.copiers is 'must be 0 or more and below 1e12, or null for no limit';
comment on constraint weekdays_are_1_to_7 on public.copiers is
  'must be one or more of 1 (Monday) to 7 (Sunday), at most seven';
comment on constraint hours_come_in_pairs on public.copiers is 'must both be given and differ, or both be left out';

-- the planner: the copiers that a master feeds, the follower's masters
create index copiers_of_master on public.copiers (master_account_id) where removed_at is null;

-- a copier that is being removed opens nothing, so a new one for the same pair may already exist
create unique index copiers_one_per_pair on public.copiers (master_account_id, follower_account_id)
  where removed_at is null and removal is null;

-- upkeep: removals that may be complete
create index copiers_leaving on public.copiers (follower_account_id, id)
  where removal is not null and removed_at is null;
create index copiers_of_follower on public.copiers (follower_account_id) where removed_at is null;
create index copiers_of_user on public.copiers (user_id);
create index copiers_with_existing on public.copiers (follower_account_id) where existing_until is not null;

create table public.symbol_mappings (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  copier_id uuid not null references public.copiers (id) on delete cascade,
  master_symbol text not null,
  follower_symbol text not null,
  lots_factor numeric not null default 1,
  mode text not null default 'on',
  created_at timestamptz not null default now(),
  master_key text not null generated always as (upper(btrim(master_symbol))) stored,
  constraint one_mapping_per_symbol unique (copier_id, master_key),
  constraint lots_factor_is_sane check (lots_factor between 0.01 and 100),
  constraint mapping_mode_is_known check (mode in ('on', 'closes_only', 'off')),
  constraint symbols_are_short check
    (length(master_symbol) between 1 and 64 and length(follower_symbol) between 1 and 64)
);
comment on table public.symbol_mappings is
  'The follower''s symbol that the user chose for a symbol of the master; takes precedence over automatic matches.';
comment on column public.symbol_mappings.lots_factor is 'What the size of each copy in this symbol is multiplied by.';
comment on column public.symbol_mappings.mode is
  'on; closes_only or off: nothing is opened (symbol_off). Copies that are open are closed with the master all the '
  'same.';
comment on column public.symbol_mappings.master_key is
  'The master''s symbol without differences of case and blanks, for comparison.';
create index symbol_mappings_of_user on public.symbol_mappings (user_id);
alter table public.copiers enable row level security;
alter table public.symbol_mappings enable row level security;
create policy "own copiers are readable" on public.copiers for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create policy "own symbol mappings are readable" on public.symbol_mappings for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.copiers, public.symbol_mappings to authenticated, service_role;
create trigger audited after insert or update or delete on public.copiers for each row
  execute function private.audit('id', 'user_id', 'name', 'master_account_id', 'follower_account_id', 'mode',
    'sizing_mode',
    'sizing_value', 'contract_alignment', 'min_policy', 'max_risk_coefficient', 'max_policy', 'max_lots',
      'max_risk_percent',
    'max_leverage', 'max_leverage_policy', 'sanity_factor', 'reverse', 'sl_mode', 'tp_mode', 'sl_points', 'tp_points',
      'max_sl_points', 'copy_pending', 'pending_grace_ms', 'early_fill_policy', 'max_age_ms',
    'retry_window_s', 'max_slippage_points', 'comment', 'removal', 'removed_at');
create trigger audited after insert or update or delete on public.symbol_mappings for each row
  execute function private.audit('id', 'user_id', 'copier_id', 'master_symbol', 'follower_symbol');

-- copier/copier_filter.sql
-- A copier's lists of patterns, compiled when the copier is saved. The planner matches every trade against them.

create table private.copier_filters (
  copier_id uuid primary key references public.copiers (id) on delete cascade,
  symbols_only private.patterns not null,
  symbols_except private.patterns not null,
  comment_only private.patterns not null,
  comment_except private.patterns not null
);
comment on table private.copier_filters is
  'Compiled lists of patterns, one row per copier that has any. A trigger on copiers keeps it up to date for every '
  'writer.';
alter table private.copier_filters enable row level security;

create function private.compile_filters() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if new.symbols_only || new.symbols_except || new.comment_only || new.comment_except = '{}' then
    delete from private.copier_filters where copier_id = new.id;
    return null;
  end if;
  insert into private.copier_filters as f (copier_id, symbols_only, symbols_except, comment_only, comment_except)
  values (new.id, private.compiled(new.symbols_only), private.compiled(new.symbols_except),
    private.compiled(new.comment_only),
    private.compiled(new.comment_except))
  on conflict (copier_id) do update set symbols_only = excluded.symbols_only, symbols_except = excluded.symbols_except,
    comment_only = excluded.comment_only, comment_except = excluded.comment_except;
  return null;
end $$;
create trigger compile_filters after insert on public.copiers for each row
  when (new.symbols_only || new.symbols_except || new.comment_only || new.comment_except <> '{}') execute function
    private.compile_filters();
create trigger compile_filters_again after update of symbols_only, symbols_except, comment_only, comment_except
  on public.copiers for each row
  when ((old.symbols_only, old.symbols_except, old.comment_only, old.comment_except)
    is distinct from (new.symbols_only, new.symbols_except, new.comment_only,
      new.comment_except)) execute function private.compile_filters();

-- copier/currency.sql
-- Exchange rates between currencies, from the accounts' own quotes, and the value of a symbol's point. A pair is known
-- by its symbol's name: brokers name base and margin currencies wrongly (AUD for every pair).

create function private.plain(p numeric) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(p)::text;
end $$;

-- A quoted rate as a fraction {numerator, denominator}: {rate, 1}, or {1, rate} from the inverse pair; null: not
-- quoted.
create function private.quoted_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
begin
  return case when (p_rates ->> (p_from || p_to))::numeric > 0 then array[(p_rates ->> (p_from || p_to))::numeric, 1]
    when (p_rates ->> (p_to || p_from))::numeric > 0 then array[1, (p_rates ->> (p_to || p_from))::numeric] end;
end $$;

-- The money that a currency counts as (copier/currency_unit.sql): a cent is 0.01 USD, USDT is a dollar. One unit is
-- num / den of `whole`; a quote of the two, if there is one, is better than the table. assumed: the value is taken
-- without a quote, though it may move.
create function private.in_whole_money(p_currency text, p_rates jsonb, out whole text, out num numeric, out den numeric,
  out assumed boolean)
language plpgsql stable security definer set search_path = '' as $$
declare
  u record;
  v_quoted numeric[];
begin
  whole := upper(btrim(p_currency));
  num := 1;
  den := 1;
  assumed := false;
  select * into u from public.currency_units x where x.currency = whole;
  if not found then return; end if;
  v_quoted := private.quoted_fraction(whole, u.counts_as, p_rates);
  whole := u.counts_as;
  num := coalesce(v_quoted[1], u.amount);
  den := coalesce(v_quoted[2], 1);
  assumed := u.assumed and v_quoted is null;
end $$;

-- The rate between two currencies that are quoted, as a fraction: direct, inverse, or across USD or EUR.
create function private.cross_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql immutable set search_path = '' as $$
declare
  v_rate numeric[];
  v_second numeric[];
  v_via text;
begin
  if p_from = p_to then return array[1, 1]; end if;
  v_rate := private.quoted_fraction(p_from, p_to, p_rates);
  if v_rate is not null then return v_rate; end if;
  foreach v_via in array array['USD', 'EUR'] loop
    v_rate := private.quoted_fraction(p_from, v_via, p_rates);
    v_second := private.quoted_fraction(v_via, p_to, p_rates);
    if v_rate is not null and v_second is not null then
      return array[v_rate[1] * v_second[1], v_rate[2] * v_second[2]];
    end if;
  end loop;
  return null;
end $$;

-- Units of p_to for one unit of p_from, by rates such as {"EURUSD": "1.0850"}: direct, inverse, or across USD or EUR.
-- The result is a fraction {numerator, denominator}, because an inverse rate has no exact decimal value. Cents and
-- stablecoins count as the money that currency_units names. Null: the rates do not tell.
create function private.exchange_fraction(p_from text, p_to text, p_rates jsonb) returns numeric[]
language plpgsql stable set search_path = '' as $$
declare
  v_rate numeric[];
  f record;
  t record;
begin
  if p_from = p_to then return array[1, 1]; end if;  -- the usual case: no table is read
  v_rate := private.quoted_fraction(upper(btrim(p_from)), upper(btrim(p_to)), p_rates);
  if v_rate is not null then return v_rate; end if;
  f := private.in_whole_money(p_from, p_rates);
  t := private.in_whole_money(p_to, p_rates);
  v_rate := private.cross_fraction(f.whole, t.whole, p_rates);
  return case when v_rate is not null then array[v_rate[1] * f.num * t.den, v_rate[2] * f.den * t.num] end;
end $$;

create function private.exchange_rate(p_from text, p_to text, p_rates jsonb) returns numeric
language plpgsql stable set search_path = '' as $$
declare
  v_fraction numeric[] := private.exchange_fraction(p_from, p_to, p_rates);
begin
  return v_fraction[1] / v_fraction[2];
end $$;

-- Why p_from cannot be converted into p_to: which pair would have to be quoted.
create function private.missing_rate_words(p_from text, p_to text) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_from text := (private.in_whole_money(p_from, '{}')).whole;
  v_to text := (private.in_whole_money(p_to, '{}')).whole;
begin
  if v_from is null or v_to is null then
    return 'The currency of an account or of a symbol''s profit is not known.';
  end if;
  return format('There is no recent quote of %s or %s%s: %s cannot be converted into %s. Let the broker of one of the '
    'two accounts show that pair.',
    v_from || v_to, v_to || v_from,
    case when not array[v_from, v_to] && array['USD', 'EUR'] then
      format(', and none of both %s and %s with USD or EUR', v_from, v_to) else '' end, p_from, p_to);
end $$;

-- "USDT counts as 1 USD: …", if that conversion takes the value of a currency without a quote; null: it does not.
create function private.at_par_words(p_from text, p_to text, p_rates jsonb) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_from = p_to or private.quoted_fraction(upper(btrim(p_from)), upper(btrim(p_to)), p_rates) is not null then
    return null;
  end if;
  return (
    select string_agg(format('%s counts as %s %s, because no broker of the two quotes it.', u.currency,
      private.plain(u.amount), u.counts_as), ' ' order by u.currency)
    from public.currency_units u
    where u.currency in (upper(btrim(p_from)), upper(btrim(p_to))) and (private.in_whole_money(u.currency,
      p_rates)).assumed);
end $$;

-- The pair that a symbol's name quotes, whatever its broker calls the two currencies: EURUSD for "m.EURUSD.x" and
-- "EUR/USD"; else the name's root (USDCNY, USDTUSD).
create function private.quoted_pair(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(private.pair_in(regexp_replace(p_name, '[^A-Za-z0-9]', '', 'g')), private.symbol_root(p_name));
end $$;

-- exchange rates by pair
create index account_symbols_by_pair on public.account_symbols (private.quoted_pair(name), account_id);

-- The currency that the name of a pair says its profit is in: JPY for "USD/JPY.x"; null: it names no pair.
create function private.quoted_currency(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return right(private.pair_in(private.quoted_pair(p_name)), 3);
end $$;

-- p_to for one unit of a symbol's profit, as a fraction. What the broker says counts; if that cannot be converted, what
-- the pair's name says.
create function private.profit_fraction(p_symbol public.account_symbols, p_to text, p_rates jsonb) returns numeric[]
language plpgsql stable set search_path = '' as $$
declare
  v_rate numeric[] := private.exchange_fraction(p_symbol.profit_currency, p_to, p_rates);
begin
  if v_rate is null then
    v_rate := private.exchange_fraction(private.quoted_currency(p_symbol.name), p_to, p_rates);
  end if;
  return v_rate;
end $$;

-- Current mid prices of every pair of these currencies that the accounts quote, as {"EURUSD": "1.0850"}. Agents report
-- these pairs about every twenty seconds, even if the price has not moved.
create function private.quoted_rates(p_accounts uuid[], p_currencies text[]) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  return (
    with named as (
      select upper(btrim(c)) as name from unnest(p_currencies || array['USD', 'EUR']) c where c is not null
    ), currencies as materialized (
      select n.name from named n
      union
      select u.counts_as from public.currency_units u where u.currency in (select n.name from named n)
    )
    select coalesce(jsonb_object_agg(a.name || b.name, ((s.bid + s.ask) / 2)::text), '{}'::jsonb)
    from currencies a
    join currencies b on b.name <> a.name
    -- looked up pair by pair: without statistics Postgres would read all symbols of the accounts instead
    cross join lateral (
      select x.bid, x.ask from public.account_symbols x
      where private.quoted_pair(x.name) = a.name || b.name and x.account_id = any (p_accounts) and x.bid > 0
        and x.ask > 0
        and x.quoted_at > v_since
      -- the plain name before a future of the same pair
      order by length(x.name), x.quoted_at desc limit 1
    ) s);
end $$;

-- The size of a symbol's point in price units, and the present value of one point of one lot in the account's currency.
-- Null: not known. No exchange rate is needed in the usual case, where the symbol's profit is in the account's
-- currency. If p_filled is null or 0, nothing was filled and both results are null.
create function private.point_worth(p_account uuid, p_currency text, p_symbol text, p_filled numeric, out size numeric,
  out money numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  s public.account_symbols;
  v_rate numeric[];
begin
  if coalesce(p_filled, 0) = 0 then return; end if;
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_symbol;
  size := 10::numeric ^ (-s.digits);
  money := size * s.contract_size;
  if s.profit_currency <> p_currency then
    v_rate := private.profit_fraction(s, p_currency, private.quoted_rates(array[p_account],
      array[s.profit_currency, private.quoted_currency(p_symbol), p_currency]));
    money := money * v_rate[1] / v_rate[2];
  end if;
end $$;

-- copier/currency_unit.sql
-- Currencies that are another one's cents, thousandths or stand-in: accounts and symbols are kept in them, but few
-- brokers quote them.

create table public.currency_units (
  currency text primary key,
  counts_as text not null,
  amount numeric not null,
  assumed boolean not null default true,
  constraint currencies_are_codes check (currency ~ '^[A-Z0-9]{2,10}$' and counts_as ~ '^[A-Z0-9]{2,10}$'),
  constraint no_currency_counts_as_itself check (currency <> counts_as),
  constraint amount_is_in_range check (amount > 0 and amount <= 1000000)
);
comment on table public.currency_units is
  'What a currency counts as where no broker quotes it: USC is 0.01 USD, USDT 1 USD. Operators change it with '
  'set_currency_unit.';
comment on column public.currency_units.currency is 'the currency, as brokers write it, in capital letters';
comment on column public.currency_units.counts_as is 'the currency that it counts as; it has no row of its own';
comment on column public.currency_units.amount is 'how many units of that currency one unit of this one is';
comment on column public.currency_units.assumed is
  'true: its value may move (a stablecoin), so a size that depends on it says so; false: it is the same money (cents)';

alter table public.currency_units enable row level security;
create policy "units are no secret" on public.currency_units for select to authenticated using (true);
grant select on public.currency_units to authenticated, service_role;

insert into public.currency_units (currency, counts_as, amount, assumed) values
  ('USC', 'USD', 0.01, false), ('EUC', 'EUR', 0.01, false), ('GBC', 'GBP', 0.01, false),
  ('GBX', 'GBP', 0.01, false), ('ZAC', 'ZAR', 0.01, false),
  ('RUR', 'RUB', 1, false), ('XBT', 'BTC', 1, false),
  ('MBT', 'BTC', 0.001, false), ('MBTC', 'BTC', 0.001, false), ('UBT', 'BTC', 0.000001, false),
  ('UBTC', 'BTC', 0.000001, false),
  ('USDT', 'USD', 1, true), ('USDC', 'USD', 1, true), ('BUSD', 'USD', 1, true), ('FDUSD', 'USD', 1, true),
  ('TUSD', 'USD', 1, true), ('GUSD', 'USD', 1, true), ('PYUSD', 'USD', 1, true), ('RLUSD', 'USD', 1, true),
  ('USDP', 'USD', 1, true), ('USDD', 'USD', 1, true), ('USDE', 'USD', 1, true), ('USD1', 'USD', 1, true),
  ('DAI', 'USD', 1, true), ('EURT', 'EUR', 1, true), ('EURC', 'EUR', 1, true), ('EURS', 'EUR', 1, true);

-- copier/dated_contract.sql
-- Dated contracts: names that end with the date on which the contract ends.

-- Whether digits are a date whose year lies between the two: year, month and day, or year and month, in any usual
-- order.
create function private.digits_are_date(p_digits text, p_first_year integer, p_last_year integer) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return exists (
    select 1 from (values
      (8, 1, 4, 5, 7), (8, 5, 4, 3, 1), (8, 5, 4, 1, 3), (6, 1, 2, 3, 5), (6, 5, 2, 3, 1), (6, 5, 2, 1, 3),
      (6, 1, 4, 5, 0), (6, 3, 4, 1, 0), (4, 1, 2, 3, 0), (4, 3, 2, 1, 0)
    ) form (length, year_at, year_digits, month_at, day_at)
    cross join lateral (select substr(p_digits, form.year_at, form.year_digits)::integer
      + case form.year_digits when 2 then 2000 else 0 end) y (year)
    where form.length = length(p_digits) and y.year between p_first_year and p_last_year
      and substr(p_digits, form.month_at, 2)::integer between 1 and 12
      and (form.day_at = 0 or substr(p_digits, form.day_at, 2)::integer between 1 and 31));
end $$;

-- Whether a year of one, two or four digits lies between last year and three years ahead of p_year.
create function private.year_is_near(p_digits text, p_year integer) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case length(p_digits)
    when 1 then exists (select 1 from generate_series(p_year - 1, p_year + 3) y where y % 10 = p_digits::integer)
    when 2 then 2000 + p_digits::integer between p_year - 1 and p_year + 3
    when 4 then p_digits::integer between p_year - 1 and p_year + 3
    else false end;
end $$;

-- The date at the end of p_name, which is in upper case, without separators: DEC25 for US30-DEC-25; null: there is
-- none.
create function private.date_at_end(p_name text, p_year integer) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_month constant text := '(?:JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|AUG(?:UST)?'
    '|SEP(?:T(?:EMBER)?)?|OCT(?:OBER)?|NOV(?:EMBER)?|DEC(?:EMBER)?)';
  v_odd constant text := '[^A-Z0-9]*';
  v_end text;
begin
  -- after a separator: a month, or a month letter or quarter with a year
  v_end := coalesce(
    substring(p_name from '[^A-Z0-9]((?:\d{1,4}' || v_odd || ')?' || v_month || '(?:' || v_odd || '\d{1,4})?)$'),
    substring(p_name from '[^A-Z0-9]((?:[FGHJKMNQUVXZ]|Q[1-4]|[1-4]Q)' || v_odd || '(?:\d\d|\d{4}))$'),
    substring(p_name from '[^A-Z0-9]((?:\d\d|\d{4})' || v_odd || '(?:Q[1-4]|[1-4]Q))$'),
    substring(p_name from '[^A-Z0-9]((?:19|20)\d\d)$'),
    substring(p_name from '[^A-Z0-9](FUT|FT|FWD|FUTURES?)$'));
  if v_end is not null then return regexp_replace(v_end, '[^A-Z0-9]', '', 'g'); end if;
  v_end := regexp_replace(substring(p_name from
    '[^A-Z0-9](\d{4}|\d{6}|\d{8}|\d\d[^A-Z0-9]\d\d(?:[^A-Z0-9]\d\d|[^A-Z0-9]\d{4})?'
    '|\d{4}[^A-Z0-9]\d\d(?:[^A-Z0-9]\d\d)?)$'), '[^0-9]', '', 'g');
  if private.digits_are_date(v_end, case length(v_end) when 4 then p_year - 1 else 1990 end,
    case length(v_end) when 4 then p_year + 3 else 2099 end) then
    return v_end;
  end if;
  v_end := substring(p_name from '[^A-Z0-9]([FGHJKMNQUVXZ]?\d\d?)$');
  if v_end ~ '[A-Z]|\d\d' and private.year_is_near(regexp_replace(v_end, '[A-Z]', ''), p_year) then
    return v_end;
  end if;
  -- without one the year must be near
  v_end := coalesce(substring(p_name from '.(' || v_month || '(?:\d\d|\d{4}))$'),
    substring(p_name from '.((?:Q[1-4]|[1-4]Q|[FGHJKMNQUVXZ])(?:\d{4}|\d\d?))$'));
  if private.year_is_near(substring(v_end from '(\d{4}|\d\d?)$'), p_year) then return v_end; end if;
  v_end := substring(p_name from '.(\d{6})$');
  if private.digits_are_date(substring(p_name from '.(\d{8})$'), p_year - 1, p_year + 3)
    or private.digits_are_date(v_end, p_year - 1, p_year + 3) then
    return coalesce(substring(p_name from '.(\d{8})$'), v_end);
  end if;
  return substring(p_name from '..(' || v_month || ')$');
end $$;

-- The date in a symbol's name, without separators and before an affix such as ".r"; null: it is no dated contract.
create function private.contract_date(p_name text, p_year integer) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_name text := upper(btrim(p_name));
begin
  return coalesce(private.date_at_end(v_name, p_year),
    private.date_at_end(substring(v_name from '^(.*[^._#!+-])[._#!+-]+[A-Z]{0,6}[._#!+-]*$'), p_year));
end $$;

-- copier/flat_time.sql
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

-- The period of a flat time that lasts now, else the next. Of two equal times of day, at the end of summer time, it
-- begins at the first.
create function private.flat_period(r public.flat_times, p_now timestamptz, out begins timestamptz,
  out ends timestamptz)
language plpgsql stable set search_path = '' as $$
declare
  v_after timestamptz := p_now - interval '8 days';
begin
  loop
    begins := private.next_weekly(v_after, r.weekday, r.flat_at, r.time_zone);
    v_after := begins;
    if (begins - interval '1 hour') at time zone r.time_zone = begins at time zone r.time_zone then
      begins := begins - interval '1 hour';
    end if;
    ends := private.next_weekly(begins, r.until_weekday, r.until_at, r.until_time_zone);
    exit when ends > p_now;
  end loop;
end $$;

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

-- copier/instrument.sql
-- Whether two names mean the same instrument: what remains of a name beside what is known must be an affix.

-- Affixes that many brokers use and that never tell two instruments apart.
create function private.listed_affixes() returns text[]
language sql immutable set search_path = '' as $$
  select array['.CASH', '.CFD', '.ECN', '.PRO', '.RAW', '.SPOT', '.STD', '.STP']
$$;

-- The listed instrument (a pair of currencies, a metal or an alias) that a name in upper case means, with the date if
-- it is a dated contract: US30 for DJ30.x, US30@DEC25 for DJ30-DEC25. Null: none. A text with a blank is no affix.
create function private.listed_instrument(p_name text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_root text := private.symbol_root(p_name);
  v_pair boolean := private.pair_in(v_root) = v_root;
  v_instrument text := (select a.instrument from public.symbol_aliases a where a.name = v_root);
begin
  if v_instrument is null and not coalesce(v_pair, false) then return null; end if;
  if not coalesce(v_pair, false) and p_name ~ '[A-Z0-9]\s+\S*[A-Z]' and private.contract_date(p_name,
    extract(year from now())::integer) is null then
    return null;
  end if;
  return coalesce(v_instrument, v_root) || coalesce('@' || case when v_root <> p_name then
    private.contract_date(p_name, extract(year from now())::integer) end, '');
end $$;

-- What a name can mean at an account: itself; itself without the affixes that are proven or listed; and "=" with the
-- listed instrument. Two symbols may be the same instrument only if they share a meaning.
create function private.meanings(p_name text, p_account public.trading_accounts) returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  v_name text := upper(btrim(p_name));
  v_prefix text := upper(p_account.symbol_prefix);
  v_suffix text := upper(p_account.symbol_suffix);
  v_names text[] := array[v_name];
  v_inner text;
begin
  v_names := v_names || array(select left(v_name, -length(x)) from unnest(private.listed_affixes()) x
    where right(v_name, length(x)) = x and length(v_name) > length(x));
  if v_prefix || v_suffix <> '' and starts_with(v_name, v_prefix) and right(v_name, length(v_suffix)) = v_suffix
    and length(v_name) > length(v_prefix || v_suffix) then
    v_inner := substr(v_name, length(v_prefix) + 1, length(v_name) - length(v_prefix || v_suffix));
    if p_account.symbol_affix_proven then v_names := v_names || v_inner; end if;
  end if;
  return v_names || array(select '=' || i from unnest(v_names || v_inner) n
    cross join lateral private.listed_instrument(n) i where i is not null);
end $$;

-- Why a follower's symbol of another name does not mean the master's instrument; null: it does.
create function private.name_misfit(p_master text, p_master_meanings text[], p_symbol text,
  p_follower public.trading_accounts) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_year integer := extract(year from now());
begin
  return case
    when p_symbol = p_master or p_master_meanings && private.meanings(p_symbol, p_follower) then null
    when private.contract_date(p_master, v_year) is distinct from private.contract_date(p_symbol, v_year)
      then 'one of the two seems to be a future, or they end on different dates'
    else 'its name is only similar' end;
end $$;

-- copier/protection_rule.sql
-- Protection rules: limits on an account's money, the action when one is reached, and the present state of each rule.
-- The logic is in planner/protection.sql.

create table public.protection_rules (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  threshold numeric not null,
  action text not null default 'close_all_and_off',
  close_manual boolean not null default true,
  confirm_ms integer not null default 250,
  time_zone text not null default 'UTC',
  enabled boolean not null default true,
  of text,
  basis text not null default 'equity',
  day_begins time not null default '00:00',
  cushion_percent numeric not null default 0,
  warn_percent numeric not null default 70,
  moves_with text not null default 'equity',
  locks_at numeric,
  count_balance_operations boolean not null default false,
  -- present state
  warned_day date,
  day date,
  day_start_equity numeric,
  day_start_at timestamptz,
  high_water_mark numeric,
  breached_at timestamptz,
  breached_equity numeric,
  triggered_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint kind_is_known check (kind in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target',
    'max_margin_use', 'daily_profit')),
  constraint action_is_known check (action in ('notify', 'monitor', 'close_all', 'close_all_until_next_day',
    'close_all_and_off')),
  constraint threshold_in_range check (threshold > 0 and case
    when of = 'amount' then threshold < 1e12
    when kind in ('daily_loss', 'trailing_drawdown') then threshold < 100
    when kind in ('max_margin_use', 'daily_profit') or of = 'initial' then threshold <= 1000
    else threshold < 1e12 end),
  constraint of_is_known check (of in ('day_start', 'high', 'initial', 'amount')),
  constraint basis_is_known check (basis in ('equity', 'balance', 'higher')),
  constraint moves_with_is_known check (moves_with in ('equity', 'day_end_balance')),
  constraint locks_at_in_range check (locks_at > 0 and locks_at < 1e12),
  constraint percentages_in_range check (cushion_percent >= 0 and cushion_percent < 100 and warn_percent >= 0
    and warn_percent < 100),
  constraint confirm_in_range check (confirm_ms between 250 and 60000)
) with (fillfactor = 70);
comment on table public.protection_rules is
  'Limits on an account''s money and what happens when one is reached. A rule triggers once; it must be reset before '
  'it can trigger again. An account may have several rules of a kind; each is judged by itself.';
comment on column public.protection_rules.kind is
  'daily_loss and daily_profit (against the day''s start), trailing_drawdown (against the highest equity or day-end '
  'balance), equity_floor, equity_target, max_margin_use (margin as a share of equity).';
comment on column public.protection_rules.threshold is
  'Percent or money of the account, as "of" says. Reaching the limit exactly triggers.';
comment on column public.protection_rules.of is
  'What threshold is: percent of the day''s start (day_start), of the high (high), of the account''s initial balance '
  '(initial), or money (amount). Null: day_start for daily rules, high for trailing_drawdown, amount for equity_floor '
  'and equity_target.';
comment on column public.protection_rules.basis is
  'Daily rules: the day''s start is the equity, the balance, or the higher of the two at that time.';
comment on column public.protection_rules.day_begins is 'Time of day in time_zone at which the day begins.';
comment on column public.protection_rules.cushion_percent is
  'The rule acts when 100 minus this percentage of its allowance is used; 0: at the limit itself.';
comment on column public.protection_rules.warn_percent is
  'An alert, once a day, when this percentage of the allowance is used; 0: none.';
comment on column public.protection_rules.moves_with is
  'trailing_drawdown: the limit follows the highest equity, or the highest balance at the end of a day.';
comment on column public.protection_rules.locks_at is
  'trailing_drawdown: the limit stops rising at this amount; null: never.';
comment on column public.protection_rules.count_balance_operations is
  'Whether deposits and withdrawals count as profits and losses: then they move nothing that the rule measures from.';
comment on column public.protection_rules.warned_day is 'The last day with an alert of warn_percent.';
comment on column public.protection_rules.action is
  'notify (an alert only); monitor (nothing more is opened); close_all (flatten, then continue); '
  'close_all_until_next_day (flatten, open nothing until the day''s end, then continue); close_all_and_off (flatten, '
  'then off).';
comment on column public.protection_rules.close_manual is
  'Whether closing includes positions that the user opened by hand.';
comment on column public.protection_rules.confirm_ms is
  'A second look at least this long after the first must agree, so that one bad tick closes nothing.';
comment on column public.protection_rules.time_zone is 'The time zone of day_begins.';
comment on column public.protection_rules.enabled is 'Whether the rule is checked.';
comment on column public.protection_rules.day is
  'The rule''s present day: the date in time_zone on which it began.';
comment on column public.protection_rules.day_start_equity is
  'Daily rules: the amount that the day''s loss or profit is measured from, as basis says.';
comment on column public.protection_rules.day_start_at is
  'When that amount was measured, or since when a trailing_drawdown measures.';
comment on column public.protection_rules.high_water_mark is
  'trailing_drawdown: the highest equity that two consecutive looks have reached, or the highest day-end balance.';
comment on column public.protection_rules.breached_at is
  'Time of the first look past the limit; the next look confirms or contradicts it.';
comment on column public.protection_rules.breached_equity is 'Equity of that look.';
comment on column public.protection_rules.triggered_at is
  'When the rule triggered. It stays quiet until the next day (daily rules) or until reset_protection().';
create index protection_rules_of_account on public.protection_rules (account_id, kind);
create index protection_rules_of_user on public.protection_rules (user_id);
alter table public.protection_rules enable row level security;
create policy "own protection rules are readable" on public.protection_rules for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.protection_rules for each row execute function private.touch();
create trigger audited after insert or delete
  or update of kind, threshold, action, close_manual, confirm_ms, time_zone, enabled, of, basis, day_begins,
    cushion_percent, warn_percent, moves_with, locks_at, count_balance_operations, triggered_at
    on public.protection_rules
  for each row execute function private.audit('id', 'user_id', 'account_id', 'kind', 'threshold', 'action',
    'close_manual', 'confirm_ms',
    'time_zone', 'enabled', 'of', 'basis', 'day_begins', 'cushion_percent', 'warn_percent', 'moves_with', 'locks_at',
    'count_balance_operations', 'triggered_at');

create table public.protection_looks (
  id bigint generated always as identity primary key,
  rule_id uuid not null,
  user_id uuid not null,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  at timestamptz not null,
  equity numeric not null,
  margin numeric,
  reached numeric not null,
  outcome text not null,
  created_at timestamptz not null default now(),
  constraint outcome_is_known check (outcome in ('first', 'contradicted', 'confirmed'))
);
comment on table public.protection_looks is
  'Evidence: looks at an account''s funds that were past a protection rule, whether the next look confirmed them or '
  'not.';
comment on column public.protection_looks.rule_id is 'The rule; it may have been removed since.';
comment on column public.protection_looks.at is 'When the figures were measured.';
comment on column public.protection_looks.reached is
  'The value that equity was compared with, cushion included; for max_margin_use, the percentage.';
comment on column public.protection_looks.outcome is
  'first: a look past the limit; contradicted or confirmed: the look that followed it.';
create index protection_looks_of_rule on public.protection_looks (rule_id, at);
create index protection_looks_of_user on public.protection_looks (user_id, created_at);

-- retention
create index protection_looks_by_time on public.protection_looks (created_at);
alter table public.protection_looks enable row level security;
create policy "own protection looks are readable" on public.protection_looks for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.protection_rules, public.protection_looks to authenticated, service_role;

-- copier/quiet_window.sql
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

-- copier/quota.sql
-- Limits on what one user may have. All users share planning, reading and storage.

-- Serializes a user's own calls that must not overlap; other users do not wait. Taken before any plan lock.
create function private.hold_user(p_user uuid) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('tradecopier.user.' || p_user, 0));
end $$;

-- Raises the error of the limit that the user exceeds: TC204 (accounts), TC330 (copiers), TC331 (symbol_mappings) or
-- TC332 (protection_rules). p_what is the table's name; accounts stands for trading_accounts.
create function private.check_quota(p_what text, p_user uuid) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_setting text := p_what || '_per_user_max';
  v_max integer := (private.setting(v_setting) #>> '{}')::integer;
  v_count bigint;
begin
  perform private.hold_user(p_user);
  -- in a statement of its own after the wait, so that it sees what another call has committed meanwhile
  v_count := case p_what
    when 'accounts' then (select count(*) from public.trading_accounts a
      where a.user_id = p_user and a.removed_at is null)
    when 'copiers' then (select count(*) from public.copiers c where c.user_id = p_user and c.removed_at is null)
    when 'symbol_mappings' then (
      select count(*) from public.symbol_mappings y join public.copiers c on c.id = y.copier_id and c.removed_at is null
      where y.user_id = p_user)
    else (
      select count(*) from public.protection_rules r
      join public.trading_accounts a on a.id = r.account_id and a.removed_at is null
      where r.user_id = p_user) end;
  if v_count > v_max then
    raise exception using
      errcode = case p_what when 'accounts' then 'TC204' when 'copiers' then 'TC330' when 'symbol_mappings'
        then 'TC331' else 'TC332' end,
      message = format('the limit of %s per user is %s, this would make %s', replace(p_what, '_', ' '), v_max, v_count),
      detail = p_user::text, hint = format('Remove some first, or ask an operator to raise %s.', v_setting);
  end if;
end $$;

-- Runs for every writer, Studio included; once per statement, so that a list is counted once.
create function private.keep_quota() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.check_quota(replace(tg_table_name, 'trading_', ''), u.user_id)
    from (select distinct n.user_id from new_rows n order by 1) u;
  return null;
end $$;

-- For rows that change owner or are no longer removed; the trigger's arguments name the tables to count, dependent rows
-- included. A row trigger with a condition, so that the many other updates of accounts cost nothing.
create function private.keep_quota_again() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_what text;
begin
  foreach v_what in array tg_argv loop
    perform private.check_quota(v_what, new.user_id);
  end loop;
  return null;
end $$;
create trigger keep_quota after insert on public.trading_accounts
  referencing new table as new_rows for each statement execute function private.keep_quota();
create trigger keep_quota_again after update of user_id, removed_at on public.trading_accounts for each row
  when (new.removed_at is null and (old.removed_at is not null or old.user_id <> new.user_id))
  execute function private.keep_quota_again('accounts', 'protection_rules');
create trigger keep_quota_again after update of user_id, removed_at on public.copiers for each row
  when (new.removed_at is null and (old.removed_at is not null or old.user_id <> new.user_id))
  execute function private.keep_quota_again('copiers', 'symbol_mappings');
create trigger keep_quota_again after update of user_id, copier_id on public.symbol_mappings for each row
  when (old.user_id <> new.user_id
    or old.copier_id <> new.copier_id) execute function private.keep_quota_again('symbol_mappings');
create trigger keep_quota_again after update of user_id, account_id on public.protection_rules for each row
  when (old.user_id <> new.user_id
    or old.account_id <> new.account_id) execute function private.keep_quota_again('protection_rules');
create trigger keep_quota after insert on public.copiers
  referencing new table as new_rows for each statement execute function private.keep_quota();
create trigger keep_quota after insert on public.symbol_mappings
  referencing new table as new_rows for each statement execute function private.keep_quota();
create trigger keep_quota after insert on public.protection_rules
  referencing new table as new_rows for each statement execute function private.keep_quota();

-- Tells agents which accounts have the same owner, without telling who the owner is.
create function private.owner_mark(p_user uuid) returns text
language sql immutable
set search_path = ''
as $$ select left(private.sha256_hex('owner ' || p_user), 16) $$;
comment on function private.owner_mark(uuid) is
  'The "owner" of an assignment, a digest; agents keep the calls for different owners apart.';

-- copier/symbol.sql
-- Symbols: which symbol of a follower corresponds to a symbol of the master, and why one does not fit.

-- The prefix and suffix that an account's broker adds to symbol names, learned from well-known names: those on most of
-- them, and on at least two; proven: on at least five. Dates are no suffixes. Stored with the account, so that the
-- planner need not read its whole list.
create function private.learn_affixes() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if not exists (select from new_symbols) then return null; end if;  -- every report of quotes runs this trigger
  update public.trading_accounts a
  set symbol_prefix = f.prefix, symbol_suffix = f.suffix, symbol_affix_proven = f.proven
  from (
    select distinct on (x.account_id) x.account_id, case
      when x.roots > 1 and x.roots * 2 > x.all_roots then x.prefix else '' end as prefix,
      case when x.roots > 1 and x.roots * 2 > x.all_roots then x.suffix else '' end as suffix,
      x.roots >= 5 and x.roots * 2 > x.all_roots as proven
    from (
      select s.account_id, left(s.name, at - 1) as prefix, substr(s.name, at + length(root)) as suffix,
        count(*) as roots, sum(count(*)) over (partition by s.account_id) as all_roots
      from public.account_symbols s
      cross join lateral (select coalesce(private.pair_in(s.name), private.symbol_root(s.name))) r (root)
      cross join lateral (select strpos(upper(s.name), r.root)) p (at)
      where s.account_id in (select n.account_id from new_symbols n)
        -- a case, because dates are looked for in known names only: a list may have 10,000
        and case when at > 0
          and (private.pair_in(root) is not null or root in (select known.name from public.symbol_aliases known))
          then private.contract_date(substr(s.name, at), extract(year from now())::integer) is null else false end
      group by s.account_id, 2, 3
    ) x
    order by x.account_id, x.roots desc, x.prefix, x.suffix
  ) f
  where a.id = f.account_id and (a.symbol_prefix, a.symbol_suffix, a.symbol_affix_proven)
    is distinct from (f.prefix, f.suffix, f.proven);
  perform private.forget_choices(array(select distinct n.account_id from new_symbols n));
  return null;
end $$;
create trigger learn_affixes after insert on public.account_symbols
  referencing new table as new_symbols for each statement execute function private.learn_affixes();

-- Why a follower's symbol may not be used for the master's unless the user says so; null: nothing speaks against it.
-- A symbol of the same name may have another contract size, within limits (sizes are aligned); one of another name may
-- not.
create function private.misfit(p_master public.account_symbols, p_symbol public.account_symbols) returns text
language plpgsql stable set search_path = '' as $$
declare
  m public.account_symbols := p_master;
  s public.account_symbols := p_symbol;
  v_prices boolean := abs(extract(epoch from m.quoted_at - s.quoted_at)) < 86400;
begin
  if m.profit_currency <> s.profit_currency
    -- a currency and its cents are the same money
    and (m.name <> s.name or private.exchange_rate(m.profit_currency, s.profit_currency, '{}') is null) then
    return format('its profit is in %s, the master''s in %s', s.profit_currency, m.profit_currency);
  end if;
  if v_prices and not (s.bid < m.bid * 1.5 and m.bid < s.bid * 1.5) then
    return format('its price is %s, the master''s %s', trim_scale(s.bid), trim_scale(m.bid));
  end if;
  if m.contract_size <> s.contract_size and (m.name <> s.name or v_prices is not true
    and private.pair_in(s.name) is null
    and greatest(m.contract_size, s.contract_size) > 50 * least(m.contract_size, s.contract_size)) then
    return format('one lot of it is %s units, of the master''s %s', trim_scale(s.contract_size),
      trim_scale(m.contract_size));
  end if;
  return null;
end $$;

-- A copier's mapping of a master's symbol, without regard to case and surrounding blanks.
create function private.mapping_of(p_copier uuid, p_symbol text) returns public.symbol_mappings
language sql stable security definer set search_path = '' as $$
  select y from public.symbol_mappings y where y.copier_id = p_copier and y.master_key = upper(btrim(p_symbol))
$$;

-- An account's symbol of this name; if there is none, of this name without regard to case and surrounding blanks.
create function private.symbol_named(p_account uuid, p_name text) returns public.account_symbols
language sql stable security definer set search_path = '' as $$
  select s from public.account_symbols s
  where private.symbol_root(s.name) = private.symbol_root(btrim(p_name)) and s.account_id = p_account
    and upper(s.name) = upper(btrim(p_name))
  order by s.name <> p_name, s.name limit 1
$$;

-- All names of the instrument behind a master's symbol, without prefix and suffix; the symbol's own name first.
create function private.names_of(p_master public.account_symbols) returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  v_name text := p_master.name;
  v_root text;
begin
  select * into a from public.trading_accounts where id = p_master.account_id;
  if a.symbol_prefix || a.symbol_suffix <> '' and starts_with(v_name, a.symbol_prefix)
    and right(v_name, length(a.symbol_suffix)) = a.symbol_suffix
      and length(v_name) > length(a.symbol_prefix || a.symbol_suffix) then
    v_name := substr(v_name, length(a.symbol_prefix) + 1, length(v_name) - length(a.symbol_prefix || a.symbol_suffix));
  end if;
  v_root := private.symbol_root(v_name);
  return v_root || array(
    select o.name from public.symbol_aliases i join public.symbol_aliases o on o.instrument = i.instrument
    where i.name = v_root and o.name <> v_root order by o.name);
end $$;

-- A follower's candidates for the master's symbol, best rank first: 1 = the root with the broker's usual prefix and
-- suffix, 2 = the root without them, 3 = another name of the instrument with them, 4 = without. misfit: why the
-- candidate may not be used.
create function private.symbol_candidates(p_follower public.trading_accounts, p_master public.account_symbols)
returns table (name text, rank integer, tradable boolean, misfit text)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_names text[] := private.names_of(p_master);
  v_usual text[] := array(select p_follower.symbol_prefix || n || p_follower.symbol_suffix
    from unnest(v_names || p_master.name) n);
  v_meanings text[] := (select private.meanings(p_master.name, a) from public.trading_accounts a
    where a.id = p_master.account_id);
begin
  return query
  select s.name, case when upper(s.name) = upper(v_usual[1]) then 1 when private.symbol_root(s.name) = v_names[1] then 2
      when upper(s.name) = any (select upper(u) from unnest(v_usual) u) then 3 else 4 end,
    s.trade_mode not in ('close_only', 'disabled'),
    coalesce(private.name_misfit(p_master.name, v_meanings, s.name, p_follower), private.misfit(p_master, s))
  from (
    select * from public.account_symbols x
    where private.symbol_root(x.name) = any (v_names) and x.account_id = p_follower.id
    union
    select * from public.account_symbols x where x.account_id = p_follower.id and x.name = any (v_usual)
  ) s
  order by 2, 1;
end $$;

-- The follower's symbol for the master's if the user has not chosen one: the symbol of the same name, else of the same
-- root (with several, the one with the broker's usual prefix and suffix), else under another name of the instrument.
-- Null: there is none, there are several, or it may be a different instrument. The planner does not call this if a
-- symbol has the same name and figures (planner/decision.sql).
create function private.follower_symbol(p_follower public.trading_accounts,
  p_master public.account_symbols) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
  v_names text[];
begin
  if p_master.contract_size is null then return null; end if;
  -- of half a list, only the same name serves: the right symbol may be in the other half
  if not p_follower.symbols_complete then
    select * into v_symbol from public.account_symbols s
    where s.account_id = p_follower.id and s.name = p_master.name;
    if private.misfit(p_master, v_symbol) is not null then return null; end if;
    return v_symbol;
  end if;
  -- a namesake that may only be closed is still the instrument: no other takes its place
  select * into v_symbol from public.account_symbols s
  where s.account_id = p_follower.id and s.name = p_master.name and s.trade_mode = 'close_only';
  if v_symbol.name is not null and private.misfit(p_master, v_symbol) is null then return v_symbol; end if;
  -- among candidates that fit: tradable ones first, then the same name, then by rank
  select array_agg(f.name) into v_names from (
    select c.name, dense_rank() over (order by c.tradable desc, c.name <> p_master.name, c.rank) as place
    from private.symbol_candidates(p_follower, p_master) c where c.misfit is null
  ) f where f.place = 1;
  if cardinality(v_names) = 1 then
    select * into v_symbol from public.account_symbols s where s.account_id = p_follower.id and s.name = v_names[1];
    -- the same name with another contract size, beside another symbol that fits: only the user can tell
    if v_symbol.contract_size <> p_master.contract_size and exists (
      select 1 from private.symbol_candidates(p_follower, p_master) c
      join public.account_symbols s on s.account_id = p_follower.id and s.name = c.name
      where c.misfit is null and c.tradable and s.name <> v_symbol.name) then
      return null;
    end if;
    return v_symbol;
  end if;
  return null;
end $$;

-- The last results of follower_symbol(): searching a broker's names costs ten times as much as a look-up.
create table private.symbol_choices (
  follower_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  master_account_id uuid not null references public.trading_accounts (id) on delete cascade,
  master_symbol text not null,
  follower_symbol text not null,
  proven boolean not null default false,
  primary key (follower_account_id, master_account_id, master_symbol)
);
comment on table private.symbol_choices is
  'The follower''s symbol last found for a symbol of the master. Deleted when symbols of either account are added or '
  'change, and when a name of an instrument changes. proven: the prices of both agreed.';
create index symbol_choices_of_master on private.symbol_choices (master_account_id);
alter table private.symbol_choices enable row level security;

create function private.forget_choices(p_accounts uuid[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.symbol_choices where follower_account_id = any (p_accounts);
  delete from private.symbol_choices where master_account_id = any (p_accounts);
end $$;

create function private.forget_choices_of_symbol() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.forget_choices(array[new.account_id]);
  return null;
end $$;
create trigger forget_choices after update on public.account_symbols for each row
  when ((old.contract_size, old.profit_currency, old.trade_mode) is distinct from (new.contract_size,
    new.profit_currency, new.trade_mode))
  execute function private.forget_choices_of_symbol();

-- follower_symbol() with a cache. A cached symbol must still fit.
create function private.choose_symbol(p_follower public.trading_accounts,
  p_master public.account_symbols) returns public.account_symbols
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  select s.* into v_symbol from private.symbol_choices c
  join public.account_symbols s on s.account_id = c.follower_account_id and s.name = c.follower_symbol
  where c.follower_account_id = p_follower.id and c.master_account_id = p_master.account_id
    and c.master_symbol = p_master.name;
  if v_symbol.name is not null and private.misfit(p_master, v_symbol) is null then
    return v_symbol;
  end if;
  v_symbol := private.follower_symbol(p_follower, p_master);
  if v_symbol.name is not null then
    insert into private.symbol_choices (follower_account_id, master_account_id, master_symbol, follower_symbol)
    values (p_follower.id, p_master.account_id, p_master.name, v_symbol.name)
    on conflict (follower_account_id, master_account_id,
      master_symbol) do update set follower_symbol = excluded.follower_symbol, proven = false;
  end if;
  return v_symbol;
end $$;

-- copier/symbol_alias.sql
-- Aliases: the names of one instrument at different brokers.

-- Different brokers' names for the same instrument.
create table public.symbol_aliases (
  name text primary key,
  instrument text not null,
  constraint names_are_roots check (name ~ '^[A-Z0-9]{1,20}$' and instrument ~ '^[A-Z0-9]{1,20}$')
);
comment on table public.symbol_aliases is
  'Names of one instrument at different brokers, without prefix and suffix; rows of a group have the same instrument.';
comment on column public.symbol_aliases.name is 'A name, in upper case and without the broker''s prefix and suffix.';
comment on column public.symbol_aliases.instrument is 'The instrument that it names: one of the names of the group.';

-- the planner: all names of an instrument
create index symbol_aliases_of_instrument on public.symbol_aliases (instrument);
alter table public.symbol_aliases enable row level security;
create policy "aliases are no secret" on public.symbol_aliases for select to authenticated using (true);
grant select on public.symbol_aliases to authenticated, service_role;

insert into public.symbol_aliases (instrument, name)
select g.names[1], unnest(g.names) from (values
  (array['XAUUSD', 'GOLD']), (array['XAGUSD', 'SILVER']), (array['XPTUSD', 'PLATINUM']), (array['XPDUSD', 'PALLADIUM']),
  (array['XCUUSD', 'COPPER']),
  (array['US30', 'DJ30', 'WS30', 'DJI30', 'DJIA30', 'DOW30', 'USA30', 'WALLSTREET30']),
  (array['NAS100', 'USTEC', 'US100', 'NDX100', 'NASDAQ100', 'USTECH100', 'UT100', 'USTECH']),
  (array['SPX500', 'US500', 'SP500', 'USA500']), (array['US2000', 'RUSSELL2000', 'RUS2000']),
  (array['GER40', 'DE40', 'DAX40', 'GER30', 'DE30', 'DAX30', 'GDAXI', 'DAX']),
  (array['UK100', 'FTSE100', 'GB100', 'FTSE']), (array['JP225', 'JPN225', 'NI225', 'NIKKEI225', 'NIKKEI']),
  (array['FRA40', 'FR40', 'CAC40']), (array['EU50', 'STOXX50', 'EUSTX50', 'ESTX50', 'EURO50', 'STX50']),
  (array['ESP35', 'ES35', 'IBEX35', 'SPA35']), (array['AUS200', 'AU200', 'ASX200']),
    (array['HK50', 'HKG50', 'HSI50', 'HSI']),
  (array['WTI', 'USOIL', 'XTIUSD']), (array['BRENT', 'UKOIL', 'XBRUSD']), (array['NATGAS', 'NGAS', 'XNGUSD']),
  (array['BTCUSD', 'BITCOIN']), (array['ETHUSD', 'ETHEREUM']), (array['LTCUSD', 'LITECOIN']),
    (array['XRPUSD', 'RIPPLE'])
) as g (names);

-- copier/trading_switch.sql
-- The global trading switch: whether copies are traded at all. One row, read once per planning call.

create table public.trading_switch (
  one boolean primary key default true,
  state text not null default 'on',
  reason text not null default '',
  changed_at timestamptz not null default now(),
  settled boolean not null default true,
  constraint there_is_one_switch check (one),
  constraint state_is_known check (state in ('on', 'monitor', 'off')),
  constraint stopping_says_why check (state = 'on' or length(reason) between 3 and 200)
);
comment on table public.trading_switch is
  'Whether copies are traded at all, for everybody. Operators change it with set_trading().';
comment on column public.trading_switch.state is
  'on = copies are traded; monitor = nothing is opened anywhere, closes go on; off = frozen, closes included';
comment on column public.trading_switch.reason is 'why it is not on; all users can read it';
comment on column public.trading_switch.changed_at is 'when it was last changed';
comment on column public.trading_switch.settled is
  'whether every account has been updated after the last change; the upkeep does what is left';

insert into public.trading_switch default values;
alter table public.trading_switch enable row level security;
create policy "everybody sees whether copies are traded"
  on public.trading_switch for select to authenticated using (true);
grant select on public.trading_switch to authenticated, service_role;
create trigger audited after insert or update or delete on public.trading_switch for each row
  execute function private.audit('one', '', 'state', 'reason');

create function private.trading_state() returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select t.state from public.trading_switch t where t.one);
end $$;

-- Why opens are blocked, or null; one precedence for the planner, waiting opens and the UI.
create function private.opening_blocked_reason(p_trading text, p_copy_state text, p_copy_state_reason text, p_mode text,
  p_removal text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_trading = 'off' then 'trading_stopped'
    when p_trading = 'monitor' then 'trading_monitor'
    when p_copy_state <> 'on' and p_copy_state_reason = 'flat_by' then 'flat_by'
    when p_copy_state <> 'on' and p_copy_state_reason is not null then 'account_protected'
    when p_copy_state = 'flattening' then 'account_flattening'
    when p_copy_state = 'off' then 'account_off'
    when p_copy_state = 'monitor' then 'account_monitor'
    when p_removal is not null then 'copier_removed'
    when p_mode = 'off' then 'copier_off'
    when p_mode = 'monitor' then 'copier_monitor' end;
end $$;

-- trade/broker_text.sql
-- Broker texts over a limit are cut instead of refused, because a trade must not be lost for a long comment.
--
-- Limits: symbol names 64 characters · other texts 500 characters · 10,000 symbols per account

-- Brokers write currency codes in different ways.
create function private.currency_of(p jsonb) returns text
language sql immutable
set search_path = ''
as $$
  select c from upper(btrim(case when jsonb_typeof(p) = 'string' then left(p #>> '{}', 100) end)) c
  where c ~ '^[A-Z0-9]{2,10}$'
$$;
comment on function private.currency_of(jsonb) is
  'A currency code in capitals; null if the value is not one.';

-- Some brokers send 0, or two thousand million, for "not limited"; such values are useless for computing.
create function private.leverage_of(p jsonb) returns integer
language sql immutable
set search_path = ''
as $$
  select case when p #>> '{}' ~ '^[0-9]{1,6}$'
    and (p #>> '{}')::integer between 1 and 100000 then (p #>> '{}')::integer end
$$;
comment on function private.leverage_of(jsonb) is 'A leverage from 1 to 100000; null if the value is not one.';

-- Such a position needs cut_position() even if it is short.
create function private.is_odd_position(p jsonb) returns boolean
language sql immutable
set search_path = ''
as $$
  select coalesce(jsonb_typeof(p -> 'magic') in ('object', 'array')
    or jsonb_typeof(p -> 'comment') in ('object', 'array')
    or jsonb_typeof(p -> 'replaces') in ('object', 'array') or length(p ->> 'replaces') > 64
    or coalesce(p ->> 'replaces_kind', 'order') not in ('position', 'order'), false)
$$;
comment on function private.is_odd_position(jsonb) is
  'Whether magic, comment or replaces of a position is not text, or replaces (replaces_kind) is not a ticket (kind).';

-- A position as its broker describes it, with texts cut to their limits. Fields that are not text, and impossible
-- tickets, become null.
create function private.cut_position(p_position jsonb) returns jsonb
language sql immutable
set search_path = ''
as $$
  select case when jsonb_typeof(p_position) = 'object' then (
    select jsonb_object_agg(e.key, case
      when e.key in ('magic', 'comment', 'replaces') and private.is_no_text(e.value) or e.key = 'replaces'
        and length(e.value #>> '{}') > 64
        or e.key = 'replaces_kind' and e.value #>> '{}' not in ('position', 'order') then null
      when jsonb_typeof(e.value) = 'string'
      then to_jsonb(left(e.value #>> '{}', case e.key when 'comment' then 200 else 100 end)) else e.value end)
    from jsonb_each(p_position) e
    where e.key = any (array['ticket', 'kind', 'symbol', 'side', 'lots', 'price', 'sl', 'tp', 'order_type', 'magic',
      'comment', 'opened_at', 'expires_at',
      'tag', 'replaces', 'replaces_kind'])
  ) else p_position end
$$;
comment on function private.cut_position(jsonb) is
  'The documented fields of a position, with texts cut: comments to 200 characters.';

-- For events that are unusually long or odd. Texts are cut and undocumented fields are left out; of a snapshot, also
-- positions whose symbol or ticket is too long. A close is never refused because of its comment.
create function private.cut_event(p_event jsonb) returns jsonb
language sql immutable
set search_path = ''
as $$
  select case when jsonb_typeof(p_event) = 'object' then (
    select jsonb_object_agg(e.key, case
      when e.key = 'position' then private.cut_position(e.value)
      when e.key = 'positions' and jsonb_typeof(e.value) = 'array' then (
        select coalesce(jsonb_agg(private.cut_position(p.value) order by p.n), '[]')
        from jsonb_array_elements(e.value) with ordinality p (value, n)
        where private.is_too_long(p.value -> 'symbol') is not true
          and private.is_too_long(p.value -> 'ticket') is not true)
      when e.key = 'close_reason' and private.is_no_text(e.value) then null
      when jsonb_typeof(e.value) = 'string' then to_jsonb(left(e.value #>> '{}', 100))
      else e.value end)
    from jsonb_each(p_event) e
    where e.key = any (array['session', 'seq', 'type', 'position', 'positions', 'evidence', 'close_reason',
      'deal_price', 'dealt_at', 'detected_at',
      'unchanged_at'])
  ) else p_event end
$$;
comment on function private.cut_event(jsonb) is 'The event, cut to the limits for broker texts.';

-- trade/event.sql
-- Trade events: what happened on an account, as its agent reported it; and the outcome of each for every copier.

create table public.trade_events (
  id bigint generated always as identity,
  account_id uuid not null,
  user_id uuid not null,
  session bigint,
  seq bigint,
  event_key text,
  source text not null default 'agent',
  type text not null,
  status text not null,
  code text,
  error text,
  ticket text,
  kind text,
  symbol text,
  side text,
  lots numeric,
  previous_lots numeric,
  deal_price numeric,
  payload jsonb,
  dealt_at timestamptz,
  detected_at timestamptz,
  unchanged_at timestamptz,
  received_at timestamptz not null default clock_timestamp(),
  decided_at timestamptz,
  detect_ms numeric generated always as (case
    when detected_at >= dealt_at then extract(epoch from detected_at - dealt_at) * 1000 end) stored,
  decide_ms numeric generated always as (greatest(0, extract(epoch from decided_at - detected_at) * 1000)) stored,
  primary key (id, received_at),
  constraint status_is_known check (status in ('accepted', 'history', 'refused')),
  constraint source_is_known check (source in ('agent', 'snapshot', 'report')),
  constraint refused_says_why check (status <> 'refused' or (code is not null and error is not null))
) partition by range (received_at);
comment on table public.trade_events is
  'Every trade event. Partitions (one a day) are in schema private. private.event_keys makes events idempotent, '
  'because a partitioned table cannot have that key.';
comment on column public.trade_events.status is
  'accepted = applied and planned; history = older than what is known, only stored; refused = malformed';
comment on column public.trade_events.source is
  'agent = reported by itself; snapshot = found in a snapshot; report = made by one of our copies on an account that '
  'is itself a master';
comment on column public.trade_events.kind is 'with ticket: what changed, an order or a position';
comment on column public.trade_events.previous_lots is 'lots before the change; null when the position was not known';
comment on column public.trade_events.deal_price is
  'price of the deal that made the change, which copies are compared with; null = not reported, or no deal (modified, '
  'ordered, amended)';
comment on column public.trade_events.dealt_at is 'when the master''s broker made the deal; null = not reported';
comment on column public.trade_events.detect_ms is
  'from the deal at the broker to its detection by the agent; null = not reported, or the broker''s clock is ahead';
comment on column public.trade_events.decide_ms is 'from detection by the agent to the decision in the database';
create index trade_events_of_account on public.trade_events (account_id, received_at desc);
create index trade_events_received on public.trade_events (received_at);
create index trade_events_of_user on public.trade_events (user_id, received_at desc);
alter table public.trade_events enable row level security;
create policy "own trade events are readable" on public.trade_events for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_events to authenticated, service_role;

create table private.event_keys (
  account_id uuid not null,
  session bigint not null,
  seq bigint not null,
  event_id bigint not null,
  received_at timestamptz not null default clock_timestamp(),
  primary key (account_id, session, seq)
);
comment on table private.event_keys is
  'One row per numbered event, by which a second delivery of the event is found. Deleted after 7 days.';
create index event_keys_received on private.event_keys (received_at);
alter table private.event_keys enable row level security;

-- Makes partitions for yesterday to three days ahead, and drops those past the retention. maintain() calls it.
create function private.make_partitions() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_day date;
  v_name text;
  v_keep integer := coalesce((private.setting('retention_days.trade_events') #>> '{}')::integer, 90);
begin
  for v_day in select generate_series(current_date - 1, current_date + 3, interval '1 day')::date loop
    v_name := 'trade_events_' || to_char(v_day, 'YYYY_MM_DD');
    if to_regclass('private.' || v_name) is null then
      execute format('create table private.%I partition of public.trade_events for values from (%L) to (%L)',
        v_name, v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
      execute format('alter table private.%I enable row level security', v_name);
      execute format('revoke all on private.%I from public, anon, authenticated, service_role', v_name);
    end if;
  end loop;
  for v_name in
    select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'public.trade_events'::regclass
      and c.relname < 'trade_events_' || to_char(current_date - v_keep, 'YYYY_MM_DD')
  loop
    execute format('drop table private.%I', v_name);
  end loop;
end $$;

select private.make_partitions();

create table public.copy_outcomes (
  event_id bigint not null,
  copier_id uuid not null,
  user_id uuid not null,
  link_id bigint,
  execution_id bigint,
  reason text,
  detail text,
  decided_at timestamptz not null default clock_timestamp(),
  primary key (event_id, copier_id),
  constraint a_copy_or_one_reason check ((execution_id is null) <> (reason is null))
);
comment on table public.copy_outcomes is
  'The outcome of a trade event for a copier: the first execution of the step that copies it, or exactly one reason of '
  'docs/errors.md.';
create index copy_outcomes_of_user on public.copy_outcomes (user_id, decided_at desc);
create index copy_outcomes_decided on public.copy_outcomes (decided_at);
alter table public.copy_outcomes enable row level security;
create policy "own outcomes are readable" on public.copy_outcomes for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.copy_outcomes to authenticated, service_role;

create function private.record_event(
  p_account public.trading_accounts, p_id bigint, e jsonb, p_source text, p_type text, p_status text, p_code text,
    p_error text, p_position jsonb,
  p_previous numeric, p_payload jsonb
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.trade_events (id, account_id, user_id, session, seq, event_key, source, type, status, code, error,
    ticket, kind, symbol, side,
    lots, previous_lots, deal_price, payload, dealt_at, detected_at, unchanged_at, decided_at)
  overriding system value
  values (p_id, p_account.id, p_account.user_id,
    case when pg_input_is_valid(e ->> 'session', 'bigint') then (e ->> 'session')::bigint end,
    case when pg_input_is_valid(e ->> 'seq', 'bigint') then (e ->> 'seq')::bigint end,
    (e ->> 'session') || ':' || (e ->> 'seq'), p_source, coalesce(p_type, left(e ->> 'type', 20), '?'), p_status,
      p_code, p_error,
    left(p_position ->> 'ticket', 64), left(p_position ->> 'kind', 20), left(p_position ->> 'symbol', 64),
    p_position ->> 'side',
    case when private.is_number(p_position -> 'lots') then (p_position ->> 'lots')::numeric end, p_previous,
    -- a new position has its own open price
    case when p_status <> 'refused' then coalesce((e ->> 'deal_price')::numeric, case
      when p_type = 'opened' then (p_position ->> 'price')::numeric end) end,
    p_payload, case when p_status <> 'refused' then (e ->> 'dealt_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'detected_at', 'timestamptz') then (e ->> 'detected_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz') then (e ->> 'unchanged_at')::timestamptz end,
      clock_timestamp());
end $$;

-- trade/execution.sql
-- Executions: orders for agents, one row each, and their outcomes.

create table public.trade_execution_queue (
  id bigint generated always as identity primary key,
  step_id bigint not null,
  after_id bigint,
  link_id bigint,
  lane text not null,
  copier_id uuid,
  user_id uuid not null,
  account_id uuid not null,
  master_account_id uuid,
  event_id bigint,
  -- the order
  action text not null,
  priority integer not null,
  symbol text not null,
  side text not null,
  order_type text not null default 'market',
  lots numeric not null,
  target_lots numeric,
  ticket text,
  price numeric,
  sl numeric,
  tp numeric,
  max_slippage_points integer,
  master_price numeric,
  master_lots numeric,
  expires_at timestamptz,
  comment text not null default '',
  parts jsonb,
  warnings text[] not null default '{}',
  -- present state
  status text not null default 'queued',
  reason text,
  message text,
  attempt integer not null default 1,
  next_attempt_at timestamptz,
  retry_until timestamptz,
  send_before timestamptz not null,
  vps_id uuid,
  epoch bigint,
  offered_at timestamptz,
  cancel_requested_at timestamptz,
  adopted boolean not null default false,
  -- outcome
  filled_lots numeric,
  fill_price numeric,
  point_size numeric,
  point_money numeric,
  -- times
  detected_at timestamptz,
  queued_at timestamptz not null,
  received_at timestamptz,
  sent_at timestamptz,
  done_at timestamptz,
  finalized_at timestamptz,
  updated_at timestamptz not null,
  in_flight boolean not null generated always as (finalized_at is null) stored,
  constraint action_is_known check (action in ('open', 'increase', 'reduce', 'close', 'modify', 'place', 'amend',
    'cancel')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint lots_not_negative check (lots >= 0),
  constraint status_is_known check (status in
    ('queued', 'retrying', 'unknown', 'completed', 'rejected', 'expired', 'cancelled')),
  constraint final_means_finalized_at check
    ((status in ('completed', 'rejected', 'expired', 'cancelled')) = (finalized_at is not null)),
  constraint failure_says_why check (status not in ('rejected', 'expired', 'cancelled') or reason is not null),
  constraint retrying_knows_when check (status <> 'retrying' or next_attempt_at is not null)
);
comment on table public.trade_execution_queue is
  'One row per order to a broker. id is the execution number: no two orders at the broker carry it, unless the attempt '
  'before was reported as refused.';
comment on column public.trade_execution_queue.step_id is
  'shared by the executions of one step (a split open, all legs of a close)';
comment on column public.trade_execution_queue.after_id is 'the step that must end before this execution is sent';
comment on column public.trade_execution_queue.lane is
  'executions of one lane run in order: a link, or the symbol of a netting account';
comment on column public.trade_execution_queue.parts is
  'netting deal: [{"link_id","lots"}], lots signed: + more of the link, - less of it; without a link: the account''s '
  'surplus';
comment on column public.trade_execution_queue.master_lots is 'master volume that the size was computed from';
comment on column public.trade_execution_queue.offered_at is
  'when an agent could have received it; from then on only that agent''s report can close it';
comment on column public.trade_execution_queue.send_before is
  'deadline of this attempt, checked by the last process before the broker';
comment on column public.trade_execution_queue.in_flight is
  'not final yet. Look-ups by account use this column, look-ups by link use finalized_at is null, so that each fits '
  'only one index';
comment on column public.trade_execution_queue.point_size is
  'size of one point of the symbol when the order was filled (0.00001 for EURUSD with five digits)';
comment on column public.trade_execution_queue.point_money is
  'value of one point of one lot when the order was filled, in the account''s currency; null = no exchange rate was '
  'known';
comment on column public.trade_execution_queue.retry_until is 'only for opens: no new attempt after this';

-- Only these indexes begin with a column that the planner looks up by; Postgres might choose another one while the
-- tables are small. The planner looks up what is in flight for a link ("finalized_at is null") and for an account or
-- netting symbol ("in_flight"); each look-up fits only one index.
create index executions_open_of_link on public.trade_execution_queue (link_id) where finalized_at is null;
create index executions_open_of_account on public.trade_execution_queue (account_id, symbol) where in_flight;
-- sizing by free margin: what was filled after an account's figures were read
create index executions_filled on public.trade_execution_queue (account_id, finalized_at)
  where status = 'completed' and action in ('open', 'increase');
create index executions_of_step on public.trade_execution_queue (step_id);

-- an agent's repeated call: open executions of an event; copied_trades: executions of an event for a copier
create index executions_of_event on public.trade_execution_queue (event_id, copier_id);

-- maintain: retries that are due; doorbells; retention
create index executions_due on public.trade_execution_queue (next_attempt_at) where status = 'retrying';
create index executions_updated on public.trade_execution_queue (updated_at);
create index executions_of_user on public.trade_execution_queue (user_id, queued_at desc);
alter table public.trade_execution_queue enable row level security;
create policy "own executions are readable" on public.trade_execution_queue for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_execution_queue to authenticated, service_role;

-- Whether an execution opens something: opens are decided once and never sent late. A netting deal opens if one of its
-- parts does.
-- Whether the ticket that an execution names is an order's or a position's.
create function private.kind_of(p_action text) returns text
language sql immutable
set search_path = ''
as $$ select case when p_action in ('cancel', 'amend') then 'order' else 'position' end $$;
comment on function private.kind_of(text) is 'Kind of the ticket that an execution of this action names.';

create function private.opens(p public.trade_execution_queue) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if p.parts is not null then
    return exists (select 1 from jsonb_array_elements(p.parts) e where (e ->> 'lots')::numeric > 0);
  end if;
  return p.action in ('open', 'increase', 'place');
end $$;

-- trade/fault.sql
-- Faults: work on which the planner's own code failed. A report, event or copy that makes it raise an error is stored
-- here with everything needed to repeat it, so that it blocks nothing else and is not lost. The table is usually empty;
-- upkeep/quarantine.sql retries its rows.

create table private.quarantine (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  subject text not null,
  body jsonb not null default '{}',
  error text not null,
  context text,
  times integer not null default 1,
  first_at timestamptz not null,
  last_at timestamptz not null,
  retry_at timestamptz not null,
  primary key (account_id, kind, subject),
  constraint kind_is_known check (kind in
    ('report', 'event', 'changes', 'decision', 'explain', 'link', 'offer', 'overdue', 'retries', 'flatten', 'existing',
      'symbols', 'watch'))
);
comment on table private.quarantine is
  'Work on which the planner''s own code raised an error: stored, retried automatically, deleted once it succeeds. '
  'Each row raised an alert.';
comment on column private.quarantine.account_id is
  'the account whose plan lock, together with its followers'', a retry needs';
comment on column private.quarantine.kind is
  'report, event: the whole entry is in body. changes: changes of a master by reports. decision: a ticket and a '
  'copier. explain: events that wait for decisions.'
  ' link: a copy. offer: an execution that could not be handed out. overdue, retries, flatten, existing, symbols: '
  'parts of an account''s upkeep. watch: what its agent must watch';
comment on column private.quarantine.subject is
  'the failed item: execution and attempt with their number, session:seq, ticket and copier, link, execution';
comment on column private.quarantine.context is 'where in the code it failed';

-- maintain: rows that are due
create index faults_due on private.quarantine (retry_at);
alter table private.quarantine enable row level security;

-- Whether an error is a fault of our own code. Refusals (TC) are answers; after a transient error (such as a deadlock)
-- the caller repeats the call.
create function private.is_fault(p_state text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return left(p_state, 2) not in ('TC', '08', '40', '53', '57', '58') and p_state <> '55P03';
end $$;

-- Sets the work aside, or counts another failure: the first retry is after 5 s, the pause doubles up to a minute. The
-- alert goes to the owner of p_concerns; operators see all alerts.
create function private.note_fault(p_account uuid, p_kind text, p_subject text, p_body jsonb, p_concerns uuid,
  p_what text, p_error text, p_context text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  raise warning 'planner fault, %: % (account %) %', p_what, p_error, p_account, p_context;
  insert into private.quarantine as f (account_id, kind, subject, body, error, context, first_at, last_at, retry_at)
  values (p_account, p_kind, p_subject, coalesce(p_body, '{}'), p_error, p_context, p_now, p_now,
    p_now + interval '5 s')
  on conflict (account_id, kind, subject) do update set body = excluded.body, error = excluded.error,
    context = excluded.context,
    times = f.times + 1, last_at = p_now, retry_at = p_now + make_interval(secs => least(60,
      5 * 2 ^ least(f.times, 10)));
  perform private.raise_alert(p_concerns, 'planner', 'planner_fault', 'critical', format(
    'The copier''s own code failed on %s. It is kept and tried again by itself, everything else goes on; tell the '
    'operators: %s', p_what, p_error),
    jsonb_build_object('kind', p_kind, 'subject', p_subject, 'error', p_error));
end $$;

-- trade/generation.sql
-- Generations: how a database notices that it has gone back in time (a backup was restored), and what it does then.
--
-- A restored row cannot know that it is old. Agents are the witnesses: every answer to them contains the last execution
-- number given out and the generation; every agent keeps the highest number that it was sent on disk, and sends it with
-- every heartbeat, event and report call. A number that an agent was sent and that is not known here was sent by a
-- database that was lost since.
--
-- Three things are proof: a number above the sequence; a number that was jumped over (this database never sent it to
-- anybody); a generation that never began here. So are the cluster's own marks: another system identifier or timeline
-- than the stored ones, this table created anew (as a dump does), or another database around it (as a copy is:
-- `create database … template`), which needs no restart.

create table private.database_generation (
  one boolean primary key default true,
  generation bigint not null default 1,
  system_identifier text,
  timeline bigint,
  postmaster_started_at timestamptz not null,
  table_oid oid not null,
  database_oid oid not null,
  -- numbers above jumped_from and below jumped_to: the newest row of number_jumps, repeated here because every call
  -- reads it
  jumped_from bigint not null default 0,
  jumped_to bigint not null default 0,
  noted_at timestamptz not null default now(),
  began_at timestamptz not null default now(),
  reason text not null default 'installed',
  constraint there_is_one_generation check (one),
  constraint generation_counts_from_one check (generation >= 1)
);
comment on table private.database_generation is
  'One row: how often this database has gone back in time (1 = never), and the marks by which it notices that.';
comment on column private.database_generation.generation is
  'Part of every answer to an agent; when it is higher than before, agents begin new sessions.';
comment on column private.database_generation.system_identifier is
  'pg_control_system() when last stored; null: not readable here.';
comment on column private.database_generation.timeline is
  'Timeline that the cluster was writing when last stored; null: not readable here.';
comment on column private.database_generation.postmaster_started_at is
  'pg_postmaster_start_time() when last stored. Another value means that the server was started since, perhaps on an '
  'older copy of its data.';
comment on column private.database_generation.table_oid is
  'OID of this table when last stored. Another one means that a dump was restored.';
comment on column private.database_generation.database_oid is
  'OID of this database when last stored. Another one means that a copy of the database took its place.';
comment on column private.database_generation.jumped_from is 'Last execution number before the newest jump.';
comment on column private.database_generation.jumped_to is 'Last execution number after the newest jump.';
comment on column private.database_generation.noted_at is 'When the marks were stored.';
comment on column private.database_generation.began_at is 'When this generation began.';
comment on column private.database_generation.reason is
  'Why it began: installed; number, gap, generation (an agent''s claim); system, timeline, dump, copy; operator.';
alter table private.database_generation enable row level security;

create table private.number_jumps (
  from_id bigint primary key,
  to_id bigint not null,
  generation bigint not null,
  reason text not null,
  jumped_at timestamptz not null default clock_timestamp(),
  constraint a_jump_goes_up check (to_id > from_id)
);
comment on table private.number_jumps is
  'Execution numbers that this database has skipped: nobody was ever sent a number above from_id and below to_id. One '
  'row per start of the server.';
alter table private.number_jumps enable row level security;

-- A refused call leaves nothing behind except what it wrote to a sequence: the absurd number that was claimed, and the
-- first 60 bits of the ID of the VPS. The upkeep turns them into an alert.
create sequence private.absurd_claim_number;

create sequence private.absurd_claim_vps minvalue 0;

-- The marks of a cluster and of its history. A host may refuse a function; that mark is then unknown and not compared.
-- The timeline is that of the WAL file being written, because right after a promotion the control file still names the
-- previous one.
create function private.cluster_marks(out system_identifier text, out timeline bigint)
language plpgsql
set search_path = ''
as $$
begin
  begin
    select s.system_identifier::text into system_identifier from pg_catalog.pg_control_system() s;
  exception when others then
    raise warning 'cluster_marks: %', sqlerrm;
  end;
  begin
    timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint;
  exception when others then
    begin
      select c.timeline_id into timeline from pg_catalog.pg_control_checkpoint() c;
    exception when others then
      raise warning 'cluster_marks: %', sqlerrm;
    end;
  end;
end
$$;
comment on function private.cluster_marks() is
  'System identifier and timeline of this cluster; null where they cannot be read.';

-- Costs one index look-up in the catalog. A database can only be renamed while nobody is connected to it.
create function private.this_database() returns oid
language sql stable
set search_path = ''
return (select d.oid from pg_catalog.pg_database d where d.datname = current_database());
comment on function private.this_database() is
  'OID of the current database; a copy of it has another one, whatever its name.';

insert into private.database_generation (system_identifier, timeline, postmaster_started_at, table_oid, database_oid)
select m.system_identifier, m.timeline, pg_postmaster_start_time(), 'private.database_generation'::regclass,
  private.this_database()
from private.cluster_marks() m;

create function private.last_execution_id() returns bigint
language plpgsql
set search_path = ''
as $$
begin
  return (select s.last_value from public.trade_execution_queue_id_seq s);
end
$$;
comment on function private.last_execution_id() is 'The last execution number given out.';

-- Part of every answer to an agent. When a jump has just been committed, the row shows it a moment before the sequence
-- does (other sessions see the sequence's new file only after the commit). Without greatest(), an agent that was sent
-- the new generation with an old number would look like a witness of a gap.
create function private.number_state() returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  return (select jsonb_build_object('last_execution_id', greatest(s.last_value, g.jumped_to)::text, 'generation',
    g.generation)
    from private.database_generation g, public.trade_execution_queue_id_seq s where g.one);
end
$$;
comment on function private.number_state() is
  'The keys that every answer to an agent has: "last_execution_id" (text), the last execution number given out, and '
  '"generation".';

-- An answer to a call that stored something must have a higher execution number than earlier answers; otherwise the
-- agent could not prove that what it stored was lost. Uses up a number if no execution was made.
create function private.count_on(p_last_execution_id bigint) returns void
language plpgsql
set search_path = ''
as $$
begin
  while private.last_execution_id() = p_last_execution_id loop  -- twice for the very first number
    perform nextval('public.trade_execution_queue_id_seq');
  end loop;
end
$$;
comment on function private.count_on(bigint) is 'Uses up an execution number if none was given out since this one.';

-- Held to the end of the transaction. Taken before plan locks, never after them.
create function private.lock_generation() returns private.database_generation
language plpgsql
set search_path = ''
as $$
declare
  g private.database_generation;
begin
  perform pg_advisory_xact_lock(hashtextextended('tradecopier.generation', 0));
  select * into g from private.database_generation d where d.one for no key update;
  return g;
end
$$;
comment on function private.lock_generation() is
  'Waits for transactions that change the generation or jump numbers, then locks both out; returns the newest row.';

-- ALTER SEQUENCE, unlike setval(), is rolled back with its transaction, and nobody can take a number until it has
-- ended; the first ALTER waits for transactions that are taking one. The caller holds lock_generation(). p_at_least
-- null: the server was started. A restored copy of the data starts with the same numbers as the server that went on
-- after the copy was made. Both must not jump to the same number, so the later one jumps further, by more numbers than
-- a farm can use in the time between.
create function private.jump_numbers(p_at_least bigint, p_reason text) returns bigint
language plpgsql
set search_path = ''
as $$
declare
  v_from bigint;
  v_to bigint;
begin
  execute 'alter sequence public.trade_execution_queue_id_seq no cycle';
  v_from := private.last_execution_id();
  v_to := greatest(v_from, p_at_least) + 1000000 + case when p_at_least is null then (
    select greatest(0, 1000 * extract(epoch from clock_timestamp() - g.noted_at))::bigint
    from private.database_generation g where g.one) else 0 end;
  execute format('alter sequence public.trade_execution_queue_id_seq restart with %s', v_to);
  perform setval('public.trade_execution_queue_id_seq', v_to);
  insert into private.number_jumps (from_id, to_id, generation, reason)
  select v_from, v_to, g.generation, p_reason from private.database_generation g where g.one
  -- the sequence was set back by hand
  on conflict (from_id) do update set to_id = greatest(number_jumps.to_id, excluded.to_id);
  update private.database_generation set jumped_from = v_from, jumped_to = v_to where one;
  return v_to;
end
$$;
comment on function private.jump_numbers(bigint, text) is
  'Skips a million execution numbers above the last one given out, or above p_at_least; after a start (null) also a '
  'thousand for each second since the last jump. Returns the new last number.';

-- What a lost database may have changed cannot be known here. Earlier sessions and epochs become invalid: events with
-- their numbers are history, requests are refused. Nobody trades until every order that the lost database handed out is
-- past its deadline.
create function private.begin_accounts_anew(p_now timestamptz) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_accounts integer;
begin
  perform 1 from private.plan_locks k order by k.account_id for no key update;  -- waits for every plan in progress
  update public.trading_accounts a
  set session = a.session + 1000000,
      snapshot_session = case when a.snapshot_session > 0 then a.session + 1000000 else 0 end
  where a.id is not null;
  get diagnostics v_accounts = row_count;
  update public.account_vps_assignments s
  set epoch = s.epoch + 1000000, begins_at = greatest(s.begins_at, p_now + private.send_within())
  where s.account_id is not null;
  -- The sessions of these keys are over, so an event of theirs is history whether its key is known or not.
  truncate private.event_keys;
  return v_accounts;
end
$$;
comment on function private.begin_accounts_anew(timestamptz) is
  'Gives every account a new session and epoch; returns the number of accounts.';

-- Executions that were in flight when the backup was made may have been carried out since, in any attempt. They are
-- looked for, never sent again on a guess.
create function private.set_in_flight_unknown(p_now timestamptz) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_unknown integer;
begin
  update public.trade_execution_queue q
  set status = 'unknown', attempt = greatest(q.attempt, 1), next_attempt_at = null,
    offered_at = coalesce(q.offered_at, q.queued_at),
      epoch = q.epoch + 1000000, updated_at = p_now
  where q.finalized_at is null;
  get diagnostics v_unknown = row_count;
  return v_unknown;
end
$$;
comment on function private.set_in_flight_unknown(timestamptz) is
  'Sets every execution in flight to unknown; returns how many.';

-- The database has gone back in time: nothing is handed out until all of this is done. The caller holds
-- lock_generation(). If an operator has switched trading off, it stays off.
create function private.begin_generation(p_highest bigint, p_generation bigint, p_reason text,
  p_detail jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_accounts integer := private.begin_accounts_anew(v_now);
  v_unknown integer := private.set_in_flight_unknown(v_now);
  v_before bigint := private.last_execution_id();
  v_generation bigint;
  v_number bigint;
  v_trading text;
  v_did jsonb;
begin
  update private.database_generation g
  set generation = greatest(g.generation, coalesce(p_generation, 0)) + 1, began_at = v_now, reason = p_reason
  where g.one returning g.generation into v_generation;
  v_number := private.jump_numbers(coalesce(p_highest, 0), p_reason);
  update public.trading_switch t
  set state = 'monitor', reason = 'restored', settled = false, changed_at = v_now
  where t.one and t.state <> 'off';
  select t.state into v_trading from public.trading_switch t where t.one;
  v_did := jsonb_build_object('generation', v_generation, 'reason', p_reason, 'last_execution_id_before',
    v_before::text,
    'highest_execution_id', p_highest::text, 'last_execution_id', v_number::text, 'accounts', v_accounts, 'executions',
      v_unknown, 'trading', v_trading);
  perform private.write_audit('restored', 'database_generation', v_generation::text, null, v_did || p_detail);
  perform private.alert_operators(null, 'database', 'restored', 'critical', format(
    'The database has gone back in time (%s): a backup was put back. Execution numbers go on at %s, %s accounts begin '
    'anew, trading is %s: nothing is '
    'opened. Check what docs/operations.md lists under "Restore", then switch trading on with set_trading.', p_reason,
      v_number, v_accounts, v_trading), v_did || p_detail);
  perform realtime.send('{}', 'assignments', 'vps:' || v.id, true) from public.vps_instances v
    where v.retired_at is null;
  return v_did;
end
$$;
comment on function private.begin_generation(bigint, bigint, text, jsonb) is
  'Continues after a restore: (highest number and generation that anybody was sent, why, details) -> what it changed.';

-- The server was started since the marks were stored, or this is another database. On the same cluster and timeline
-- this is either a restart, after which numbers may have been lost, or an older copy of the data that no witness has
-- reported yet: a million numbers are skipped. If another mark differs, the database has gone back in time.
create function private.note_start() returns void
language plpgsql security definer
set search_path = ''
as $$
declare
  g private.database_generation := private.lock_generation();
  m record := private.cluster_marks();
  v_table constant oid := 'private.database_generation'::regclass;
  v_database constant oid := private.this_database();
begin
  if g.postmaster_started_at = pg_postmaster_start_time() and g.table_oid = v_table and g.database_oid = v_database then
    return;  -- another session has done it meanwhile
  end if;
  if m.system_identifier <> g.system_identifier or m.timeline <> g.timeline or g.table_oid <> v_table
    or g.database_oid <> v_database then
    perform private.jump_numbers(null, 'start');
    perform private.begin_generation(null, null,
      case when m.system_identifier <> g.system_identifier then 'system' when m.timeline <> g.timeline then 'timeline'
        when g.table_oid <> v_table then 'dump' else 'copy' end,
      jsonb_build_object('system_identifier', jsonb_build_array(g.system_identifier, m.system_identifier),
        'timeline', jsonb_build_array(g.timeline, m.timeline), 'database',
          jsonb_build_array(g.database_oid, v_database)));
  else
    perform private.jump_numbers(null, 'start');
  end if;
  update private.database_generation d
  set system_identifier = coalesce(m.system_identifier, d.system_identifier),
    timeline = coalesce(m.timeline, d.timeline),
      postmaster_started_at = pg_postmaster_start_time(), table_oid = v_table, database_oid = v_database,
      noted_at = clock_timestamp()
  where d.one;
end
$$;
comment on function private.note_start() is
  'Skips execution numbers, or begins a generation, because the server was started since the marks were stored or this '
  'is another database.';

-- Called before any number is taken. Reads one row and the database's OID, unless the server was started since.
create function private.check_start() returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if not exists (select from private.database_generation g
    where g.one and g.postmaster_started_at = pg_postmaster_start_time() and g.table_oid = g.tableoid
      and g.database_oid = (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
  then
    perform private.note_start();
  end if;
end
$$;
comment on function private.check_start() is
  'Calls note_start() if the server was started, or the database copied, since the last call.';

-- trade/link.sql
-- Position links: which position of a follower copies which position of a master; their legs and netting ledgers.

create table public.position_links (
  id bigint generated always as identity primary key,
  user_id uuid not null,
  copier_id uuid not null references public.copiers (id),
  master_account_id uuid not null,
  follower_account_id uuid not null,
  master_ticket text not null,
  master_kind text not null default 'position',
  master_side text not null,
  generation integer not null default 1,
  symbol text,
  side text,
  state text not null,
  reason text,
  seen_master_lots numeric not null,
  base_master_lots numeric,
  base_lots numeric,
  sized_lots numeric,
  sized_master_lots numeric,
  wanted_lots numeric,
  wanted_until timestamptz,
  rest_lots numeric,
  resync_lots numeric,
  asked_price numeric,
  asked_sl numeric,
  asked_tp numeric,
  asked_expires_at timestamptz,
  asked_unknown boolean not null default false,
  order_due_at timestamptz,
  modify_failures integer not null default 0,
  close_failures integer not null default 0,
  replan_at timestamptz,
  stopped_out boolean not null default false,
  warnings text[] not null default '{}',
  event_id bigint,
  created_at timestamptz not null default now(),
  ended_at timestamptz,
  constraint one_link_per_generation unique (copier_id, master_ticket, master_kind, generation),
  constraint master_kind_is_known check (master_kind in ('position', 'order')),
  constraint state_is_known check (state in ('live', 'ended')),
  constraint ended_means_ended_at check ((state = 'ended') = (ended_at is not null)),
  constraint ended_has_a_reason check (state = 'live' or reason is not null),
  constraint live_knows_its_symbol check (state = 'ended' or (symbol is not null and side is not null))
);
comment on table public.position_links is
  'One decision to copy (or not to copy) a position of a master: made once per copier, master position and generation, '
  'and latched. An ended link with the reason of a refusal is such a latch.';
comment on column public.position_links.master_kind is
  'with master_ticket: the order or position that is copied now; it becomes a position when the order fills';
comment on column public.position_links.master_side is
  'side of the master''s position when the link was made; if it changes (a flip), the link ends and a new generation '
  'begins';
comment on column public.position_links.seen_master_lots is
  'master volume up to which opens and increases have been decided';
comment on column public.position_links.base_master_lots is
  'master volume that base_lots was sized from; a reduction''s target is base_lots x master now / base_master_lots';
comment on column public.position_links.base_lots is 'volume held after the last fill or skipped increase';
comment on column public.position_links.reason is
  'ended link: why it ended; live link: why its newest increase was refused, null if it was not';
comment on column public.position_links.sized_lots is
  'the size that the settings gave for sized_master_lots, added up over the decisions, as an exact fraction; the '
  'difference to the held volume is drift';
comment on column public.position_links.resync_lots is
  'lots that the user asked to add in a resync; set for one decision, within one transaction';
comment on column public.position_links.asked_sl is 'the level last asked for, not the one that the broker made of it';
comment on column public.position_links.asked_unknown is
  'nobody knows which levels (of an order: and price) the broker has now; the planner asks for them again';
comment on column public.position_links.stopped_out is
  'the follower''s broker closed all or part of the copy for lack of margin';
comment on column public.position_links.wanted_lots is
  'lots that are decided but wait: netting followers for the symbol''s deal in flight, the copy of a filled order for '
  'the cancelling of its own order';
comment on column public.position_links.rest_lots is
  'netting followers: the part of wanted_lots that is the rest of an open in several orders; once the first order has '
  'filled, base_lots counts it as held';
comment on column public.position_links.asked_price is
  'price last asked for a pending order; null once the copy is a position';
comment on column public.position_links.order_due_at is
  'copies of pending orders: when the copier must act (the master''s order has filled, or expires)';
comment on column public.position_links.replan_at is 'from then on a refused close or modify is planned again';

-- the planner: links of a master position, newest generation first
create index position_links_of_master on public.position_links (master_account_id, master_ticket, copier_id,
  generation desc);

-- the planner: live links of a follower and symbol (netting), flattening
create index position_links_live on public.position_links (follower_account_id, symbol) where state = 'live';

-- maintain: links that are due
create index position_links_due on public.position_links (replan_at) where state = 'live' and replan_at is not null;
create index position_links_orders_due on public.position_links (order_due_at)
  where state = 'live' and order_due_at is not null;
create index position_links_wanted on public.position_links (wanted_until) where wanted_lots is not null;
create index position_links_of_user on public.position_links (user_id, created_at);
create index position_links_ended on public.position_links (ended_at) where state = 'ended';
alter table public.position_links enable row level security;
create policy "own links are readable" on public.position_links for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.position_links to authenticated, service_role;

create table private.link_legs (
  link_id bigint not null references public.position_links (id) on delete cascade,
  account_id uuid not null,
  ticket text not null,
  ticket_kind text not null default 'position',
  kind text not null,
  lots numeric not null,
  price numeric,
  primary key (link_id, ticket, ticket_kind),
  constraint kind_is_known check (kind in ('position', 'order') and ticket_kind in ('position', 'order')),
  constraint lots_are_positive check (lots > 0)
);
comment on table private.link_legs is
  'What a link holds at its follower: usually one ticket, several after a split or an increase. On a netting account, '
  'lots is the link''s share of the net position.';
comment on column private.link_legs.ticket_kind is 'with ticket: the order or position at the follower';
comment on column private.link_legs.kind is
  'what the leg is booked as: still an order after its order has filled, until the fill is booked';
create index link_legs_of_ticket on private.link_legs (account_id, ticket);
alter table private.link_legs enable row level security;

create table private.net_ledgers (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  symbol text not null,
  net_lots numeric not null default 0,
  asked_sl numeric,
  asked_tp numeric,
  modify_failures integer not null default 0,
  failures integer not null default 0,
  replan_at timestamptz,
  surprises jsonb not null default '[]',
  surplus_lots numeric not null default 0,
  surplus_link_id bigint,
  primary key (account_id, symbol)
);
comment on table private.net_ledgers is
  'Netting followers: the signed net volume that was last booked to links. A difference from the broker''s net '
  'position is booked before anything is planned.';
comment on column private.net_ledgers.failures is
  'consecutive refusals of deals that only reduce; the next deal waits until replan_at';
comment on column private.net_ledgers.surprises is
  'the newest changes of the net position that none of our deals explained: [{"link_id": the link that lost them, or '
  'null, "lots": signed, "at", "surplus": the part taken from the surplus}]; a deal that was given up and filled after '
  'all may explain one';
comment on column private.net_ledgers.surplus_lots is
  'signed lots that our deals moved and that belong to no link (two attempts filled, a reduction dealt twice); part of '
  'net_lots; the next deal moves them back';
comment on column private.net_ledgers.surplus_link_id is
  'the link whose deal left the surplus; planning that link plans the surplus';
create index net_ledgers_due on private.net_ledgers (replan_at) where replan_at is not null;
alter table private.net_ledgers enable row level security;

-- trade/lock.sql
-- The locks that planning transactions take, always in the same order.

-- Locks the accounts and returns the time after the last wait, which plans use as now. Planning takes execution
-- numbers, so a restore is checked for first.
create function private.lock_accounts(p_accounts uuid[]) returns timestamptz
language plpgsql security definer set search_path = '' as $$
begin
  perform private.check_start();
  perform 1 from private.plan_locks where account_id = any (p_accounts) order by account_id for no key update;
  return clock_timestamp();
end $$;

-- The accounts and their followers: whose plan locks a change of the accounts needs. May contain duplicates.
create function private.with_followers(p_accounts uuid[]) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_accounts || array(
    select c.follower_account_id from public.copiers c
    where c.master_account_id = any (p_accounts) and c.removed_at is null);
end $$;

-- Locks the accounts with their followers and returns the time after the last wait. A copier that was made during the
-- wait adds its follower; no other can follow, because saving a copier takes its master's lock.
create function private.lock_with_followers(p_accounts uuid[]) returns timestamptz
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_locked uuid[] := private.with_followers(p_accounts);
  v_now timestamptz := private.lock_accounts(v_locked);
  v_wanted uuid[] := private.with_followers(p_accounts);
begin
  if not v_wanted <@ v_locked then
    v_now := private.lock_accounts(v_wanted);
  end if;
  return v_now;
end $$;

-- The account, its followers and its masters: all accounts whose plans depend on each other. To be locked in one call,
-- because two calls could deadlock.
create function private.with_neighbours(p_account uuid) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return private.with_followers(array[p_account]) || array(
    select c.master_account_id from public.copiers c where c.follower_account_id = p_account and c.removed_at is null);
end $$;

-- trade/offer.sql
-- Offers: how an execution is handed to the agent of its account.

-- An execution as agents read it (docs/protocol.md). Its queued_at is that of the present attempt: a retry after a move
-- to another VPS was never handed out before, and an agent that took it for an old order would look for it for ever and
-- never send it.
create function private.execution_json(p public.trade_execution_queue) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'id', p.id::text, 'attempt', p.attempt, 'account_id', p.account_id, 'epoch', p.epoch, 'link_id', p.link_id::text,
    'lane', p.lane, 'step_id', p.step_id::text, 'after_id', p.after_id::text, 'action', p.action, 'priority',
      p.priority,
    'symbol', p.symbol, 'side', p.side, 'order_type', p.order_type, 'lots', trim_scale(p.lots)::text,
    'target_lots', trim_scale(p.target_lots)::text, 'ticket', p.ticket, 'price', p.price::text, 'sl', p.sl::text,
    'tp', p.tp::text, 'max_slippage_points', p.max_slippage_points, 'master_price', p.master_price::text,
    'expires_at', p.expires_at, 'comment', p.comment, 'investigate', p.status = 'unknown',
    'detected_at', p.detected_at, 'queued_at', coalesce(p.offered_at, p.queued_at),
    'send_before', p.send_before);
end $$;

create function private.send_within() returns interval
language plpgsql stable set search_path = '' as $$
begin
  return make_interval(secs => (private.setting('send_within_ms') #>> '{}')::numeric / 1000);
end $$;

-- Until when an agent may send what it is given now: for a while, no longer than its lease, and not after p_latest
-- (null: no such bound). An account that moves begins later, when its last agent's lease is over.
create function private.send_deadline(p_now timestamptz, p_begins_at timestamptz, p_send_within interval,
  p_lease_ends timestamptz, p_latest timestamptz) returns timestamptz
language plpgsql immutable set search_path = '' as $$
begin
  return least(greatest(p_now, p_begins_at) + p_send_within, p_lease_ends, p_latest);
end $$;

-- Hands executions to the agents that work their accounts: sets epoch and deadline, broadcasts to other VPSes (at most
-- 100 executions and 200 KB per message), and returns the array for the calling VPS. Executions of accounts that nobody
-- works are not handed out.
create function private.offer(p_executions bigint[], p_caller uuid, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own jsonb := '[]';
  v_message record;
  v_send_within interval;
begin
  if p_executions is null or cardinality(p_executions) = 0 then
    return v_own;
  end if;
  -- most were handed out when they were planned
  if exists (select 1 from public.trade_execution_queue q where q.id = any (p_executions) and q.offered_at is null) then
    v_send_within := private.send_within();
    update public.trade_execution_queue q
    set vps_id = v.id, epoch = a.epoch, offered_at = p_now,
        send_before = private.send_deadline(p_now, a.begins_at, v_send_within, v.lease_expires_at,
          case when private.opens(q) then coalesce(case
            when q.attempt > 1 then q.retry_until end, q.queued_at) + v_send_within end)
    from public.account_vps_assignments a
    join public.vps_instances v on v.id = a.vps_id
    where q.id = any (p_executions) and q.offered_at is null and a.account_id = q.account_id and v.retired_at is null
      and v.lease_expires_at > p_now;
  end if;

  for v_message in
    select numbered.vps_id, jsonb_agg(numbered.body order by numbered.priority, numbered.id) as bodies
    from (
      select rendered.*,
        case when rendered.vps_id = p_caller then 0
          else (sum(octet_length(rendered.body::text)) over w / 190000)::integer end as part_by_bytes,
        case when rendered.vps_id = p_caller then 0 else ((row_number() over w - 1) / 100)::integer end as part_by_rows
      from (
        select q.id, q.vps_id, q.priority, private.execution_json(q) as body
        from public.trade_execution_queue q
        where q.id = any (p_executions) and q.offered_at is not null
        offset 0  -- each is rendered once
      ) rendered
      window w as (partition by rendered.vps_id order by rendered.priority, rendered.id)
    ) numbered
    group by numbered.vps_id, numbered.part_by_bytes, numbered.part_by_rows
    order by numbered.vps_id, numbered.part_by_rows, numbered.part_by_bytes
  loop
    if v_message.vps_id = p_caller then
      v_own := v_message.bodies;
    else
      perform realtime.send(jsonb_build_object('executions', v_message.bodies), 'executions',
        'vps:' || v_message.vps_id, true);
    end if;
  end loop;
  return v_own;
end $$;

-- trade/outcome.sql
-- Outcomes: every (event, copier) pair ends in a copy or in one reason.

create type private.outcome as (
  event_id bigint,
  copier_id uuid,
  user_id uuid,
  link_id bigint,
  execution_id bigint,
  reason text,
  detail text
);
comment on type private.outcome is 'A row of copy_outcomes to be stored: a copy (execution_id) or its one reason.';

-- Stores what came of (event, copier) pairs; nothing else inserts into copy_outcomes. A stored copy stays. A stored
-- reason is replaced, because it was given while the link was busy, unless p_only_new is true. Of several outcomes of a
-- pair the first copy is stored, else the first reason. Without an event or a copier (null) there is no pair.
create function private.store_outcomes(p_outcomes private.outcome[], p_only_new boolean default false) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.copy_outcomes as stored (
    event_id,
    copier_id,
    user_id,
    link_id,
    execution_id,
    reason,
    detail)
  select distinct on (outcome.event_id, outcome.copier_id)
    outcome.event_id,
    outcome.copier_id,
    outcome.user_id,
    outcome.link_id,
    outcome.execution_id,
    outcome.reason,
    outcome.detail
  from unnest(p_outcomes) with ordinality as outcome
  where outcome.event_id is not null and outcome.copier_id is not null
  order by outcome.event_id, outcome.copier_id, outcome.execution_id, outcome.ordinality
  on conflict (event_id, copier_id) do update set
    link_id = excluded.link_id,
    execution_id = excluded.execution_id,
    reason = excluded.reason,
    detail = excluded.detail
  where stored.execution_id is null and not p_only_new;
end $$;

-- Gives its one reason to every (event, copier) pair that nothing else has explained. The arrays: ID, type and ticket
-- of accepted events.
create function private.explain_rest(p_account uuid, p_events bigint[], p_types text[], p_tickets text[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_trading text := private.trading_state();
begin
  if not exists (
    select 1 from unnest(p_events) as e (id)
    join public.copiers c on c.master_account_id = p_account and c.removed_at is null
    where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id))
  then
    return;
  end if;
  perform private.store_outcomes(array(
    select row(e.id, c.id, c.user_id, l.id, null, case
        when v_trading = 'off' then 'trading_stopped'
        when c.mode = 'off' and c.removal is null then 'copier_off'
        when fa.copy_state = 'off' then 'account_off'
        when l.id is null and c.removal is not null then 'copier_removed'
        when l.id is null and m.closed_at is not null and e.type in ('opened', 'ordered') then 'already_closed'
        when l.id is null and m.closed_at is null and exists (select from private.symbol_waits w
          where w.copier_id = c.id and w.master_account_id = p_account and w.ticket = e.ticket
            and w.kind = m.kind) then 'coalesced'
        when l.id is null and m.kind = 'order' and (not c.copy_pending or fa.mode = 'netting') then 'copied_at_fill'
        when l.id is null and (m.existing or m.first_seen_at < c.started_at)
          and (c.copy_pending and fa.mode = 'hedging' or m.filled_at is null or m.filled_at < c.started_at)
            then 'existing'
        when l.id is null then 'not_copied'
        when l.state = 'ended' and l.reason in ('closed_by_follower', 'stop_out', 'closed', 'master_never_filled',
          'order_expired', 'released') then l.reason
        when l.state = 'ended' then 'not_copied'
        when exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null)
          then 'coalesced'
        when e.type = 'reduced' then 'residual_hold'
        else 'no_change' end, null)::private.outcome
    from unnest(p_events, p_types, p_tickets) as e (id, type, ticket)
    join public.copiers c on c.master_account_id = p_account and c.removed_at is null
    join public.trading_accounts fa on fa.id = c.follower_account_id
    left join lateral (  -- an order and a position may carry this number; a filled order has none of the type's kind
      select i.* from public.positions i where i.account_id = p_account and i.ticket = e.ticket
      order by (i.kind = 'order') = (e.type in ('ordered', 'amended', 'cancelled')) desc limit 1
    ) m on true
    left join lateral (
      select pl.id, pl.state, pl.reason from public.position_links pl
      where pl.master_account_id = p_account and pl.master_ticket = e.ticket and pl.copier_id = c.id
        and pl.master_kind = m.kind
      order by pl.generation desc limit 1
    ) l on true
    where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id)), true);
end $$;

-- trade/plan_lock.sql
-- One row per account: the lock that every plan about the account holds.

create table private.plan_locks (
  account_id uuid primary key references public.trading_accounts (id) on delete cascade
);
comment on table private.plan_locks is
  'Every planning transaction first locks the rows of its accounts, in a statement of its own and in order of '
  'account_id; only later statements read and plan.';
alter table private.plan_locks enable row level security;

create function private.make_plan_lock() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into private.plan_locks (account_id) values (new.id) on conflict do nothing;
  return null;
end $$;
create trigger plan_lock_for_every_account after insert on public.trading_accounts
  for each row execute function private.make_plan_lock();

-- trade/position.sql
-- Positions: the mirror of what every account holds, as its agent last read it, and how a message changes it. Callers
-- hold the account's plan lock.

create table public.positions (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  ticket text not null,
  user_id uuid not null,
  kind text not null,
  symbol text not null,
  side text not null,
  order_type text,
  lots numeric not null,
  price numeric not null,
  sl numeric,
  tp numeric,
  magic text,
  comment text,
  tag bigint,
  opened_at timestamptz,
  expires_at timestamptz,
  session bigint not null,
  seq bigint not null,
  existing boolean not null default false,
  released boolean not null default false,
  absent_snapshots integer not null default 0,
  unseen_at timestamptz not null,
  detected_at timestamptz not null,
  first_seen_at timestamptz not null,
  filled_at timestamptz,
  changed_at timestamptz not null,
  last_event_id bigint,
  replaced_by text,
  replaced_by_kind text,
  closed_at timestamptz,
  close_reason text,
  primary key (account_id, ticket, kind),
  constraint kind_is_known check (kind in ('position', 'order')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint order_type_is_known check (order_type in ('limit', 'stop')),
  constraint lots_not_negative check (lots >= 0),
  constraint gone_means_closed check ((lots = 0) = (closed_at is not null)),
  constraint successor_has_a_kind check ((replaced_by is null) = (replaced_by_kind is null))
);
comment on table public.positions is
  'Mirror of what an account holds: positions and pending orders. Closed rows are kept as tombstones, so that a late '
  'message cannot bring them back.';
comment on column public.positions.kind is
  'belongs to the key: an order and a position of one account may carry the same number';
comment on column public.positions.replaced_by is
  'with replaced_by_kind: the ticket under which it continues, such as the position of a filled order';
comment on column public.positions.session is
  'with seq: number of the last message that changed or confirmed the row; a lower number never overrules it';
comment on column public.positions.existing is
  'was in the account''s very first snapshot: never copied automatically';
comment on column public.positions.released is
  'was a copy and is now the user''s own position, because its copier was removed with preserve';
comment on column public.positions.absent_snapshots is
  'consecutive complete snapshots without it; two of them close it if the history does not explain it';
comment on column public.positions.filled_at is
  'when the pending order that became this position filled; null = it never was an order';
comment on column public.positions.unseen_at is
  'the last read in which the open or increase was absent; its age is measured from here';
comment on column public.positions.tag is 'execution number of the order that made it, if it is one of our copies';
comment on column public.positions.last_event_id is 'trade event that last changed it';

-- the present mirror of an account: snapshots, netting ledgers, dashboards
create index positions_open on public.positions (account_id, symbol) where closed_at is null;

-- retention
create index positions_closed on public.positions (closed_at) where closed_at is not null;
create index positions_of_user on public.positions (user_id) where closed_at is null;
alter table public.positions enable row level security;
create policy "own positions are readable" on public.positions for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.positions to authenticated, service_role;

-- What is wrong with a position, compared with docs/protocol.md; null: nothing is. One expression, because every
-- reported position is checked here. NaN and Infinity exceed every bound.
create function private.position_error(p jsonb) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case
    when jsonb_typeof(p) is distinct from 'object' then 'position is missing or not an object'
    when jsonb_typeof(p -> 'ticket') is distinct from 'string' or length(p ->> 'ticket') not between 1 and 64
      then 'position.ticket must be a text of 1 to 64 characters'
    when jsonb_typeof(p -> 'symbol') is distinct from 'string' or length(p ->> 'symbol') not between 1 and 64
      then 'position.symbol must be a text of 1 to 64 characters'
    when coalesce(p ->> 'kind', '') not in ('position', 'order') then 'position.kind must be "position" or "order"'
    when coalesce(p ->> 'side', '') not in ('buy', 'sell') then 'position.side must be "buy" or "sell"'
    when p ->> 'kind' = 'order' and coalesce(p ->> 'order_type', '') not in ('limit', 'stop')
      then 'position.order_type of an order must be "limit" or "stop"'
    when coalesce(not pg_input_is_valid(p ->> 'lots', 'numeric')
      or (p ->> 'lots')::numeric not between 0 and 1e12, true)
      then 'position.lots must be a decimal number between 0 and 1e12'
    when coalesce(not pg_input_is_valid(p ->> 'price', 'numeric')
      or (p ->> 'price')::numeric not between 0 and 1e12, true)
      then 'position.price must be a decimal number between 0 and 1e12'
    when not pg_input_is_valid(p ->> 'sl', 'numeric') or (p ->> 'sl')::numeric not between 0 and 1e12
      then 'position.sl must be a decimal number between 0 and 1e12'
    when not pg_input_is_valid(p ->> 'tp', 'numeric') or (p ->> 'tp')::numeric not between 0 and 1e12
      then 'position.tp must be a decimal number between 0 and 1e12'
    when coalesce(p ->> 'replaces_kind', 'order') not in ('position', 'order')
      then 'position.replaces_kind must be "position", "order" or null'
    when not coalesce(pg_input_is_valid(p ->> 'opened_at', 'timestamptz'), true)
      then 'position.opened_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(p ->> 'expires_at', 'timestamptz'), true)
      then 'position.expires_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(p ->> 'tag', 'bigint'), true) then 'position.tag must be an execution number'
  end;
end $$;

create type private.change as (applied boolean, type text, previous_lots numeric);
comment on type private.change is
  'What a message changed in the mirror; applied is false if something newer is known.';

-- The type of event that leads from one state to the next; p_old.ticket null: the position was not known, or closed.
create function private.change_type(p_old public.positions, p_kind text, p_side text, p_lots numeric) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_lots = 0 then case when p_kind = 'order' then 'cancelled' else 'closed' end
    when (p_old).ticket is null or (p_old).closed_at is not null
      then case when p_kind = 'order' then 'ordered' else 'opened' end
    when p_kind = 'order' then 'amended'
    when (p_old).kind = 'order' or (p_old).side <> p_side then 'opened'
    when p_lots > (p_old).lots then 'increased'
    when p_lots < (p_old).lots then 'reduced'
    else 'modified' end;
end $$;

-- What the reported position continues under its own ticket: the open order or position that it replaces, or null. An
-- agent may leave out the kind of what is replaced, and where the position of a filled order keeps the order's number
-- also the number. Then only what has the same symbol and side can be meant: two numbers may be equal by chance.
create function private.continued(p_account uuid, p jsonb) returns public.positions
language plpgsql stable security definer set search_path = '' as $$
declare
  o public.positions;
  v_ticket text := coalesce(p ->> 'replaces', p ->> 'ticket');
  v_same_number boolean := v_ticket = p ->> 'ticket';
begin
  -- the last: its message says that no order became this position
  if v_same_number and (p ->> 'kind' <> 'position' or p ->> 'replaces' is null and p ->> 'replaces_kind' = 'position')
  then
    return null;
  end if;
  select * into o from public.positions m
  where m.account_id = p_account and m.ticket = v_ticket and m.closed_at is null
    and case
      when p ->> 'replaces' is not null and p ->> 'replaces_kind' is not null then m.kind = p ->> 'replaces_kind'
      when v_same_number then m.kind = 'order' end is not false
    and not (v_same_number and m.kind = p ->> 'kind')
    and (not v_same_number or p ->> 'replaces' is not null and p ->> 'replaces_kind' is not null
      or m.symbol = p ->> 'symbol' and m.side = p ->> 'side')
  order by m.symbol = p ->> 'symbol' and m.side = p ->> 'side' desc, m.kind limit 1;
  return o;
end $$;

-- The kinds that the ticket which a position replaces may have had.
create function private.replaced_kinds(p jsonb) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p ->> 'replaces_kind' is not null then array[p ->> 'replaces_kind']
    when p ->> 'replaces' <> p ->> 'ticket' then array['order', 'position']
    when p ->> 'kind' = 'position' then array['order']
    else '{}' end;
end $$;

-- Applies one position. p_unseen: the last read in which the change was absent. p_existing: it is the first snapshot
-- ever.
create function private.apply_position(
  p_account public.trading_accounts, p_session bigint, p_seq bigint, p jsonb, p_detected timestamptz,
    p_unseen timestamptz,
  p_existing boolean, p_event_id bigint, p_close_reason text, p_now timestamptz
) returns private.change
language plpgsql security definer set search_path = '' as $$
declare
  o public.positions;
  v_lots numeric := (p ->> 'lots')::numeric;
  v_from public.positions;
  v_type text;
  v_news boolean;
  v_flip boolean;
begin
  select * into o from public.positions
  where account_id = p_account.id and ticket = p ->> 'ticket' and kind = p ->> 'kind';
  if (o.session, o.seq) >= (p_session, p_seq) then
    return row(false, null, o.lots)::private.change;
  end if;
  if o.ticket is null then
    v_from := private.continued(p_account.id, p);
    o := v_from;
  end if;
  v_type := private.change_type(o, p ->> 'kind', p ->> 'side', v_lots);
  v_news := v_type in ('opened', 'ordered', 'increased') or o.ticket is null;
  v_flip := coalesce(v_type = 'opened' and o.closed_at is null and o.kind = 'position', false);

  insert into public.positions as m (account_id, ticket, user_id, kind, symbol, side, order_type, lots, price, sl, tp,
    magic, comment, tag,
    opened_at, expires_at, session, seq, existing, released, unseen_at, detected_at, first_seen_at, filled_at,
    changed_at, last_event_id, closed_at, close_reason)
  values (p_account.id, p ->> 'ticket', p_account.user_id, p ->> 'kind', p ->> 'symbol', p ->> 'side',
    case when p ->> 'kind' = 'order' then p ->> 'order_type' end, v_lots, (p ->> 'price')::numeric,
    nullif((p ->> 'sl')::numeric, 0), nullif((p ->> 'tp')::numeric, 0), left(p ->> 'magic', 100),
      left(p ->> 'comment', 200),
    coalesce((p ->> 'tag')::bigint, o.tag), (p ->> 'opened_at')::timestamptz, (p ->> 'expires_at')::timestamptz,
      p_session, p_seq,
    case when v_flip then false else coalesce(o.existing, p_existing) end,
      coalesce(o.released and o.closed_at is null, false),
    case when v_news then p_unseen else o.unseen_at end, p_detected,
    case when v_flip or o.ticket is null then p_now else o.first_seen_at end,
    case when o.kind = 'order' and o.closed_at is null and p ->> 'kind' = 'position' then p_now else o.filled_at end,
      p_now, p_event_id,
    case when v_lots = 0 then p_now end, case when v_lots = 0 then coalesce(left(p_close_reason, 100), 'client') end)
  on conflict (account_id, ticket, kind) do update set
    symbol = excluded.symbol, side = excluded.side, order_type = excluded.order_type,
      lots = excluded.lots,
    price = excluded.price, sl = excluded.sl, tp = excluded.tp, magic = excluded.magic, comment = excluded.comment,
      tag = excluded.tag,
    opened_at = coalesce(excluded.opened_at, m.opened_at), expires_at = excluded.expires_at, session = excluded.session,
      seq = excluded.seq,
    existing = excluded.existing, released = excluded.released, absent_snapshots = 0, unseen_at = excluded.unseen_at,
      detected_at = excluded.detected_at,
    first_seen_at = excluded.first_seen_at, filled_at = excluded.filled_at, changed_at = excluded.changed_at,
    last_event_id = coalesce(excluded.last_event_id, m.last_event_id), closed_at = excluded.closed_at,
    close_reason = excluded.close_reason, replaced_by = null, replaced_by_kind = null;

  if v_from.ticket is not null then
    perform private.continue_as(v_from, p ->> 'ticket', p ->> 'kind', p_session, p_seq, p_now);
  elsif p ->> 'replaces' is not null then  -- a later message about the old ticket is history
    insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq, unseen_at,
      detected_at,
      first_seen_at, changed_at, closed_at, close_reason, replaced_by, replaced_by_kind)
    select p_account.id, p ->> 'replaces', p_account.user_id, k.kind, p ->> 'symbol', p ->> 'side', 0,
      (p ->> 'price')::numeric, p_session, p_seq,
      p_unseen, p_detected, p_now, p_now, p_now, 'replaced', p ->> 'ticket', p ->> 'kind'
    from unnest(private.replaced_kinds(p)) as k (kind)
    on conflict (account_id, ticket, kind) do update set lots = 0, closed_at = p_now, close_reason = 'replaced',
      replaced_by = excluded.replaced_by, replaced_by_kind = excluded.replaced_by_kind,
      session = excluded.session, seq = excluded.seq  -- an order that has filled into an existing position
      where positions.closed_at is null and positions.kind = 'order'
        and (positions.session, positions.seq) < (excluded.session, excluded.seq)
        and (p ->> 'replaces_kind' is not null or p ->> 'replaces' <> p ->> 'ticket'
          or positions.symbol = excluded.symbol and positions.side = excluded.side);
  end if;
  return row(true, v_type, coalesce(o.lots, 0))::private.change;
end $$;

-- An order or position continues under another ticket: its copies, and what it is a copy of, follow it.
create function private.continue_as(p_old public.positions, p_ticket text, p_kind text, p_session bigint, p_seq bigint,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.positions set lots = 0, closed_at = p_now, close_reason = 'replaced', replaced_by = p_ticket,
    replaced_by_kind = p_kind, session = p_session, seq = p_seq
  where account_id = p_old.account_id and ticket = p_old.ticket and kind = p_old.kind;
  update public.position_links set master_ticket = p_ticket, master_kind = p_kind
  where master_account_id = p_old.account_id and master_ticket = p_old.ticket and master_kind = p_old.kind;
  update private.link_legs set ticket = p_ticket, ticket_kind = p_kind
  where account_id = p_old.account_id and ticket = p_old.ticket and ticket_kind = p_old.kind;
end $$;

-- Applies a complete snapshot: what differs is changed; what is absent for the second time (and has a lower number) is
-- closed. Returns the changes as [{"position": …, "type", "previous_lots"}] for the caller to record, and the tickets
-- that are still missing.
create function private.apply_snapshot(
  p_account public.trading_accounts, p_session bigint, p_seq bigint, p_positions jsonb, p_detected timestamptz,
    p_unseen timestamptz,
  p_now timestamptz, out changes jsonb, out missing jsonb
) language plpgsql security definer set search_path = '' as $$
declare
  p jsonb;
  c private.change;
  o public.positions;
  v_first boolean := p_account.snapshot_session = 0;
begin
  changes := '[]'::jsonb;
  for p in select value from jsonb_array_elements(p_positions) loop
    select * into o from public.positions
    where account_id = p_account.id and ticket = p ->> 'ticket' and kind = p ->> 'kind';
    if o.closed_at is null and o.side = p ->> 'side' and o.lots = (p ->> 'lots')::numeric
      and o.sl is not distinct from nullif((p ->> 'sl')::numeric, 0)
        and o.tp is not distinct from nullif((p ->> 'tp')::numeric, 0)
      and (o.kind = 'position' or o.price = (p ->> 'price')::numeric)
    then
      update public.positions set session = p_session, seq = p_seq, absent_snapshots = 0
      where account_id = p_account.id and ticket = o.ticket and kind = o.kind
        and (session, seq) < (p_session, p_seq);
    else
      if p ->> 'kind' = 'position' and o.ticket is null and exists (
        select 1 from jsonb_array_elements(p_positions) e
        where e ->> 'ticket' = p ->> 'ticket' and e ->> 'kind' = 'order') then
        p := p || '{"replaces": null, "replaces_kind": "position"}';  -- the order of this number still waits
      end if;
      c := private.apply_position(p_account, p_session, p_seq, p, p_detected, p_unseen, v_first, null, null, p_now);
      if c.applied then
        changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots);
      end if;
    end if;
  end loop;

  update public.positions m set absent_snapshots = m.absent_snapshots + 1
  where m.account_id = p_account.id and m.closed_at is null and (m.session, m.seq) < (p_session, p_seq)
    and not exists (select 1 from jsonb_array_elements(p_positions) e
      where e ->> 'ticket' = m.ticket and e ->> 'kind' = m.kind);
  for o in
    select * from public.positions m where m.account_id = p_account.id and m.closed_at is null
      and m.absent_snapshots >= 2
  loop
    p := jsonb_build_object('ticket', o.ticket, 'kind', o.kind, 'symbol', o.symbol, 'side', o.side, 'order_type',
      o.order_type,
      'lots', '0', 'price', o.price::text, 'sl', o.sl::text, 'tp', o.tp::text, 'magic', o.magic, 'comment', o.comment,
      'opened_at', o.opened_at, 'expires_at', o.expires_at);
    c := private.apply_position(p_account, p_session, p_seq, p, p_detected, p_unseen, false, null, 'client', p_now);
    changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots);
  end loop;
  select coalesce(jsonb_agg(m.ticket), '[]'::jsonb) into missing from public.positions m
  where m.account_id = p_account.id and m.closed_at is null and m.absent_snapshots > 0;
  update public.trading_accounts set snapshot_session = p_session
  where id = p_account.id and snapshot_session < p_session;
end $$;

-- trade/queue.sql
-- The queue: the only place that inserts executions. Priority and deadline are computed here, and the outcomes of
-- their events are stored.

create type private.execution_draft as (
  step_id bigint,
  after_id bigint,
  link_id bigint,
  lane text,
  copier_id uuid,
  user_id uuid,
  account_id uuid,
  master_account_id uuid,
  event_id bigint,
  action text,
  symbol text,
  side text,
  order_type text,
  lots numeric,
  target_lots numeric,
  ticket text,
  price numeric,
  sl numeric,
  tp numeric,
  max_slippage_points integer,
  master_price numeric,
  master_lots numeric,
  expires_at timestamptz,
  comment text,
  parts jsonb,
  warnings text[],
  retry_until timestamptz,
  send_until timestamptz,
  detected_at timestamptz
);
comment on type private.execution_draft is
  'What a caller of private.queue_executions says of an execution. Null: a new step_id, the lane of its link, a market '
  'order, no comment, no warnings. send_until: an upper bound of its deadline.';

-- What is sent first when several executions wait: ends, then reductions, then levels, then opens. A deal of a netting
-- symbol comes first if any of its parts reduces.
create function private.execution_priority(p_action text, p_parts jsonb) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  if p_parts is not null then
    return case when exists (select 1 from jsonb_array_elements(p_parts) e where (e ->> 'lots')::numeric < 0)
      then 10 else 40 end;
  end if;
  return case when p_action in ('close', 'cancel') then 10 when p_action = 'reduce' then 20
    when p_action in ('modify', 'amend') then 30 else 40 end;
end $$;

-- Queues these executions, in their order. p_offered: an execution whose account is worked now is offered at once, in
-- the same write; the caller hands it out. Any other execution gets its deadline from private.offer. Each execution is
-- the outcome of its event for its copier, but for a deal with parts, whose caller explains each part. Returns the
-- execution numbers, or null.
create function private.queue_executions(p_drafts private.execution_draft[], p_offered boolean,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_outcomes private.outcome[];
  v_send_within interval;
begin
  if p_drafts is null then return null; end if;
  v_send_within := private.send_within();
  with placed as (
    insert into public.trade_execution_queue (
      id,
      step_id,
      after_id,
      link_id,
      lane,
      copier_id,
      user_id,
      account_id,
      master_account_id,
      event_id,
      action,
      priority,
      symbol,
      side,
      order_type,
      lots,
      target_lots,
      ticket,
      price,
      sl,
      tp,
      max_slippage_points,
      master_price,
      master_lots,
      expires_at,
      comment,
      parts,
      warnings,
      retry_until,
      vps_id,
      epoch,
      offered_at,
      send_before,
      detected_at,
      queued_at,
      updated_at)
    overriding system value
    select
      draft.id,
      coalesce(draft.step_id, draft.id),
      draft.after_id,
      draft.link_id,
      coalesce(draft.lane, draft.link_id::text),
      draft.copier_id,
      draft.user_id,
      draft.account_id,
      draft.master_account_id,
      draft.event_id,
      draft.action,
      private.execution_priority(draft.action, draft.parts),
      draft.symbol,
      draft.side,
      coalesce(draft.order_type, 'market'),
      draft.lots,
      draft.target_lots,
      draft.ticket,
      draft.price,
      draft.sl,
      draft.tp,
      draft.max_slippage_points,
      draft.master_price,
      draft.master_lots,
      draft.expires_at,
      coalesce(draft.comment, ''),
      draft.parts,
      coalesce(draft.warnings, '{}'),
      draft.retry_until,
      vps.id,
      case when vps.id is not null then assignment.epoch end,
      case when vps.id is not null then p_now end,
      case
        when not p_offered then p_now
        else private.send_deadline(p_now, assignment.begins_at, v_send_within, vps.lease_expires_at, draft.send_until)
      end,
      draft.detected_at,
      p_now,
      p_now
    from (
      select listed.*, nextval('public.trade_execution_queue_id_seq') as id
      from unnest(p_drafts) with ordinality as listed
      order by listed.ordinality
    ) draft
    left join public.account_vps_assignments assignment on p_offered and assignment.account_id = draft.account_id
    left join public.vps_instances vps on vps.id = assignment.vps_id and vps.retired_at is null
      and vps.lease_expires_at > p_now
    order by draft.ordinality
    returning id, event_id, copier_id, user_id, link_id, parts
  )
  select
    array_agg(placed.id order by placed.id),
    array_agg(row(placed.event_id, placed.copier_id, placed.user_id, placed.link_id, placed.id, null,
      null)::private.outcome) filter (where placed.parts is null)
  into v_new, v_outcomes
  from placed;
  perform private.store_outcomes(v_outcomes);
  return v_new;
end $$;

-- trade/symbol_wait.sql
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
  primary key (copier_id, kind, ticket, side)
);
comment on table private.symbol_waits is
  'Master positions that copiers will decide on once a symbol or quote is told. Such a pair has the outcome '
  'symbol_loading. The row is deleted with the decision, or when there is nothing left to decide.';
comment on column private.symbol_waits.event_id is
  'the event whose outcome is symbol_loading; null: the position came without an event';
comment on column private.symbol_waits.asked is 'existing or resync: the copy was asked for';
comment on column private.symbol_waits.news_at is 'from then on max_age_ms counts';
comment on column private.symbol_waits.ends_as is 'the reason of the pair if nothing is told in time';
comment on column private.symbol_waits.symbols is 'names at the follower that may be the master''s symbol';
create index symbol_waits_of_master on private.symbol_waits (master_account_id, ticket);
create index symbol_waits_of_follower on private.symbol_waits (follower_account_id);
alter table private.symbol_waits enable row level security;

-- trade/witness.sql
-- What agents prove as witnesses of a database that has gone back in time (trade/generation.sql).

-- Compares what an agent was sent with what this database sent. A witness of an older generation proves nothing new,
-- unless its number is above all of this database's numbers.
create function private.proof_of_return(p_highest bigint, p_generation bigint, g private.database_generation,
  p_last bigint) returns text
language plpgsql
set search_path = ''
as $$
begin
  return case
    when p_generation > g.generation then 'generation'
    when p_highest > p_last then 'number'
    when p_highest < g.jumped_to and coalesce(p_generation, 1) = g.generation
      and exists (select from private.number_jumps j where p_highest > j.from_id and p_highest < j.to_id) then 'gap'
  end;
end
$$;
comment on function private.proof_of_return(bigint, bigint, private.database_generation, bigint) is
  'Why an agent''s highest number and generation prove that the database has gone back in time: number, gap or '
  'generation; null: they do not.';

-- An absurd claim is refused, so that a lying agent cannot use up the numbers. The upkeep raises the alert
-- (alert_absurd_claim).
create function private.refuse_absurd_claim(p_vps uuid, p_highest bigint, p_generation bigint,
  g private.database_generation, p_last bigint) returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if p_highest - p_last > 10000000 or p_generation - g.generation > 1000 then
    perform setval('private.absurd_claim_number', greatest(p_highest, 1)),
      setval('private.absurd_claim_vps', ('x' || left(replace(p_vps::text, '-', ''), 15))::bit(60)::bigint);
    raise exception using errcode = 'TC150',
      message = format('highest_execution_id %s (generation %s) is too far ahead: this database has given out %s '
        '(generation %s)', p_highest, p_generation, p_last, g.generation),
      detail = format('VPS %s', p_vps),
      hint = 'If a backup older than 10,000,000 executions was put back, run `tradecopier restored --highest N`. Else '
        'this VPS is broken, or not yours any more: retire it.';
  end if;
end
$$;
comment on function private.refuse_absurd_claim(uuid, bigint, bigint, private.database_generation, bigint) is
  'Raises TC150 for a number over 10,000,000, or a generation over 1,000, ahead of this database''s own.';

-- Called first in every call that carries a witness: {"highest_execution_id", "generation"}. The whole database begins
-- the new generation at once; if two callers bring the proof, the second finds it done. outdated: the caller does not
-- know the present generation yet.
create function private.check_witness(p_vps uuid, p_request jsonb, out last_execution_id bigint, out outdated boolean)
language plpgsql security definer
set search_path = ''
as $$
declare
  v_highest bigint := private.int_of(p_request, 'highest_execution_id', 0, 9223372036854775807);
  v_generation bigint := private.int_of(p_request, 'generation', 1, 9223372036854775807);
  g private.database_generation;
  r record;
  v_proof text;
begin
  -- on the hot path of every trade: one statement, unless something must be examined
  select d.generation, d.jumped_to, s.last_value, d.postmaster_started_at <> pg_postmaster_start_time()
    or d.table_oid <> d.tableoid
    or d.database_oid <> (select o.oid from pg_catalog.pg_database o where o.datname = current_database()) as started
  into r from private.database_generation d, public.trade_execution_queue_id_seq s where d.one;
  last_execution_id := r.last_value;
  outdated := coalesce(v_generation < r.generation, false);
  if not r.started and not coalesce(v_highest > r.last_value or v_highest < r.jumped_to
    or v_generation > r.generation, false) then
    return;
  end if;
  perform private.check_start();
  select d.* into g from private.database_generation d where d.one;
  last_execution_id := private.last_execution_id();
  if private.proof_of_return(v_highest, v_generation, g, last_execution_id) is not null then
    g := private.lock_generation();
    last_execution_id := private.last_execution_id();
    v_proof := private.proof_of_return(v_highest, v_generation, g, last_execution_id);
    perform private.refuse_absurd_claim(p_vps, v_highest, v_generation, g, last_execution_id);
    if v_proof is not null then
      perform private.begin_generation(v_highest, v_generation, v_proof,
        jsonb_build_object('vps_id', p_vps, 'generation_told', v_generation));
      select d.* into g from private.database_generation d where d.one;
      last_execution_id := private.last_execution_id();
    end if;
  end if;
  outdated := coalesce(v_generation < g.generation, v_proof is not null);
end
$$;
comment on function private.check_witness(uuid, jsonb) is
  'Compares what an agent was sent with what was given out; begins a new generation if the database has gone back in '
  'time.';

-- Run by the upkeep, because a refused call can leave no row.
create function private.alert_absurd_claim() returns void
language plpgsql security definer
set search_path = ''
as $$
declare
  v_number bigint;
  v_vps public.vps_instances;
begin
  select n.last_value into v_number from private.absurd_claim_number n where n.is_called;
  if not found then
    return;
  end if;
  select v.* into v_vps from public.vps_instances v, private.absurd_claim_vps c
  where ('x' || left(replace(v.id::text, '-', ''), 15))::bit(60)::bigint = c.last_value;
  perform setval('private.absurd_claim_number', 1, false);
  perform private.alert_operators(v_vps.id, 'database', 'absurd_claim', 'critical', format(
    'VPS %s says that it was sent execution number %s, but this database has given out %s. It is refused (TC150). If a '
    'very old backup was put back, run '
    '"tradecopier restored --highest N"; else the VPS is broken or in wrong hands: retire it.',
      coalesce(v_vps.name, '?'), v_number, private.last_execution_id()),
    jsonb_build_object('vps_id', v_vps.id, 'highest_execution_id', v_number::text, 'last_execution_id',
      private.last_execution_id()::text));
end
$$;
comment on function private.alert_absurd_claim() is 'Raises the alert for a claim that refuse_absurd_claim() refused.';

-- ledger/link_state.sql
-- The state of a link: what its master holds, what the copy holds and should hold, what is in flight.

-- A level or price, rounded to the nearest of the symbol's ticks: a broker refuses values in between.
create function private.on_tick(p_price numeric, p_tick numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if p_price is null or p_tick is null or p_tick <= 0 then
    return p_price;
  end if;
  return div(p_price + p_tick / 2, p_tick) * p_tick;
end $$;

-- The level that a copy must have. p_from: the master's level it is derived from (under reverse, the other one);
-- p_direction: +1 if the level lies above the copy's open price, -1 below; p_open: the copy's own open price, null
-- while there is none (then the master's counts); p_cap: the largest distance in points, which also applies if the
-- master has no level.
create function private.wanted_level(
  p_mode text, p_from numeric, p_master_open numeric, p_open numeric, p_direction integer, p_points integer,
    p_cap integer, p_digits integer,
  p_tick numeric
) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_open numeric;
  v_level numeric := p_from;
  v_cap numeric;
begin
  if p_mode = 'price' and p_cap is null then  -- the usual case: no further call
    return case when p_tick > 0 then div(p_from + p_tick / 2, p_tick) * p_tick else p_from end;
  end if;
  if p_mode = 'none' and p_cap is null then return null; end if;
  v_open := coalesce(p_open, private.on_tick(p_master_open, p_tick));
  v_level := case p_mode when 'price' then p_from when 'distance' then v_open + (p_from - p_master_open)
    when 'fixed' then v_open + p_direction * p_points * 10::numeric ^ -p_digits end;
  if p_cap is not null then
    v_cap := v_open + p_direction * p_cap * 10::numeric ^ -p_digits;
    v_level := case when p_direction > 0 then least(v_level, v_cap) else greatest(v_level, v_cap) end;
  end if;
  v_level := private.on_tick(v_level, p_tick);
  return case when v_level > 0 then v_level end;
end $$;

-- Volume that a link must hold after its master was reduced: the share of what it was opened with, exact, floored to
-- the step; never rounded to nothing while the master is open (residual_hold). For what the master holds now, read
-- link_states.target_lots; call this for another volume of the master or another base.
create function private.target_lots(p_base numeric, p_master_now numeric, p_master_base numeric, p_step numeric,
  p_min numeric, p_held numeric)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return least(p_held, greatest(div(p_base * p_master_now, p_master_base * p_step) * p_step, p_min));
end $$;

-- A link with everything that a plan needs to know about it. "doomed": nothing of it may remain. "frozen": its copier,
-- its account or all trading is off. Look-ups by ID use "ended_at is null", look-ups by follower "state = 'live'"; for
-- positions likewise "lots > 0" and "closed_at is null". So each fits only the index that it needs, even if Postgres
-- planned it while the table was empty.
create view private.link_states with (security_invoker = true) as
select l.*, c.mode as copier_mode, c.removal, fa.mode as account_mode, fa.copy_state,
  coalesce(fa.copy_state = 'flattening' or l.created_at <= fa.flattened_at or m.closed_at is not null
    or m.side <> l.master_side
    -- close_gracefully: a copy that is still a pending order is cancelled, a fill after the end is closed
    or c.removal = 'close_now'
    or c.removal = 'close_gracefully' and (c.removed_at is not null or held.order_lots > 0 and held.position_lots = 0),
      false)
    or newer.generation is not null as doomed,
  (fa.copy_state <> 'flattening' and l.created_at > coalesce(fa.flattened_at, '-infinity')
    and (c.mode = 'off' and c.removal is null or fa.copy_state = 'off'))
    or (select t.state from public.trading_switch t where t.one) = 'off' as frozen,
  m.lots as master_lots, m.last_event_id as master_event_id, m.detected_at as master_detected_at,
  m.price as master_price, m.expires_at as master_expires_at,
  s.lots_min, s.lots_step,
  private.wanted_level(c.sl_mode, case when c.reverse then m.tp else m.sl end, m.price, held.open_price,
    case l.side when 'buy' then -1 else 1 end, c.sl_points, c.max_sl_points, s.digits, s.tick_size) as wanted_sl,
  private.wanted_level(c.tp_mode, case when c.reverse then m.sl else m.tp end, m.price, held.open_price,
    case l.side when 'buy' then 1 else -1 end, c.tp_points, null, s.digits, s.tick_size) as wanted_tp,
  private.on_tick(m.price, s.tick_size) as wanted_price,
  held.position_lots, held.order_lots, held.legs,
  private.target_lots(l.base_lots, m.lots, l.base_master_lots, s.lots_step, s.lots_min, held.position_lots)
    as target_lots,
  flight.executions, flight.opens, flight.waiting, flight.reducing, flight.open_step
from public.position_links l
join public.copiers c on c.id = l.copier_id
join public.trading_accounts fa on fa.id = l.follower_account_id
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
  and m.kind = l.master_kind
left join public.account_symbols s on s.account_id = l.follower_account_id and s.name = l.symbol
left join lateral (
  select n.generation from public.position_links n
  where n.master_account_id = l.master_account_id and n.master_ticket = l.master_ticket and n.copier_id = l.copier_id
    and n.master_kind = l.master_kind and n.generation > l.generation limit 1
) newer on true
cross join lateral (
  select coalesce(sum(g.lots) filter (where g.kind = 'position'), 0) as position_lots,
    coalesce(sum(g.lots) filter (where g.kind = 'order'), 0) as order_lots, count(*) as legs,
    sum(g.lots * g.price) filter (where g.kind = 'position')
      / nullif(sum(g.lots) filter (where g.kind = 'position' and g.price is not null), 0) as open_price
  from private.link_legs g where g.link_id = l.id
) held
cross join lateral (
  select count(*) as executions, count(*) filter (where q.action in ('open', 'increase', 'place')) as opens,
    count(*) filter (where q.status = 'retrying') as waiting,
    coalesce(sum(q.lots) filter (where q.action = 'reduce'), 0) as reducing,
    max(q.step_id) filter (where q.action in ('open', 'increase', 'place')) as open_step
  from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
) flight;
comment on view private.link_states is
  'Links with their master''s mirror, their copier, what they hold and what is in flight for them.';

-- Called when a reduction to p_master_lots has been carried out. Whatever the master adds to that, even while the
-- reduction was in flight, is an increase. p_seen: seen_master_lots when the reduction was planned; what was decided
-- since stays decided.
create function private.mark_reduction_done(p_link bigint, p_master_lots numeric,
  p_seen numeric default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = p_master_lots + greatest(0,
    l.seen_master_lots - coalesce(p_seen, l.seen_master_lots))
  from public.account_symbols s, (select coalesce(sum(g.lots), 0) as lots from private.link_legs g
    where g.link_id = p_link) held
  where l.id = p_link and l.ended_at is null and l.seen_master_lots > p_master_lots and l.base_lots is not null
    and s.account_id = l.follower_account_id and s.name = l.symbol
    and held.lots <= private.target_lots(l.base_lots, p_master_lots, l.base_master_lots, s.lots_step, s.lots_min,
      held.lots);
end $$;

-- ledger/failure.sql
-- Failures: what a refused or expired execution means for its link, and when it is retried.

create function private.alert_no_money(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(q.account_id, 'copy', 'no_money', 'warning',
    format('%s lots of %s were not opened: the broker says that the free margin does not suffice. Add funds, copy '
      'smaller, or set no_money_policy to shrink.',
      trim_scale(q.lots), q.symbol), jsonb_build_object('execution_id', q.id::text, 'copier_id', q.copier_id, 'symbol',
        q.symbol, 'lots', trim_scale(q.lots)::text));
end $$;

-- Called for levels that the broker has finally refused; the user always gets an alert. A change of levels is given up
-- after three refusals; an opening order is not sent again.
create function private.handle_refused_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if coalesce(q.sl, q.tp) is null then return; end if;
  if q.action in ('modify', 'amend') then
    if exists (select 1 from public.position_links l where l.id = q.link_id and l.modify_failures >= 3)
      or exists (select 1 from private.net_ledgers n
        where n.account_id = q.account_id and n.symbol = q.symbol and n.modify_failures >= 3)
    then
      update public.position_links l set warnings = l.warnings || 'protection_dropped'::text
      where l.id = q.link_id and not 'protection_dropped' = any (l.warnings);
      perform private.raise_alert(q.account_id, 'levels', 'protection_dropped', 'critical', format(
        'The broker refused stop loss %s and take profit %s of the copy %s (%s) three times: %s. Set them by hand, or '
        'close the position.',
        coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none'), q.ticket, q.symbol, coalesce(q.message, q.reason)),
        jsonb_build_object('link_id', q.link_id::text, 'ticket', q.ticket, 'symbol', q.symbol, 'sl', q.sl::text, 'tp',
          q.tp::text));
    end if;
  elsif q.status = 'rejected' and q.reason = 'invalid_stops' then
    perform private.raise_alert(q.account_id, 'levels', 'invalid_stops', 'warning', format(
      'A copy of %s lots of %s was not opened: the broker takes neither its levels nor nearer ones (stop loss %s, take '
      'profit %s).',
      private.plain(q.lots), q.symbol, coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none')),
      jsonb_build_object('link_id', q.link_id::text, 'symbol', q.symbol, 'sl', q.sl::text, 'tp', q.tp::text));
  end if;
end $$;

-- Pause before the next attempt: doubles each time, limited by p_cap_s and by the setting, with a quarter of jitter.
create function private.retry_delay(p_attempt integer, p_cap_s numeric) returns interval
language plpgsql volatile set search_path = '' as $$
begin
  return make_interval(secs => least(p_cap_s, (private.setting('retry_backoff_max_ms') #>> '{}')::numeric / 1000,
    (private.setting('retry_backoff_ms') #>> '{}')::numeric / 1000 * 2 ^ least(p_attempt - 1,
      16)) * (0.75 + random() * 0.5));
end $$;

-- Books an order that did nothing: an open's link ends with its reason, a close or modify waits for its next attempt.
create function private.book_failure(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opened bigint[];
  v_modifies boolean := q.action in ('modify', 'amend');
  v_netting boolean := q.parts is not null
    or exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting');
begin
  if v_netting and (v_modifies or not private.opens(q)) then
    update private.net_ledgers n set failures = n.failures + case when v_modifies then 0 else 1 end,
      modify_failures = n.modify_failures + case when v_modifies then 1 else 0 end,
      replan_at = case when v_modifies and n.modify_failures >= 2
        then null else p_now + private.retry_delay(n.failures + n.modify_failures + 1, 30) end
    where n.account_id = q.account_id and n.symbol = q.symbol;
  elsif q.action in ('close', 'reduce', 'cancel') then
    update public.position_links l set close_failures = l.close_failures + 1,
      replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id;
  elsif v_modifies then
    update public.position_links l set modify_failures = l.modify_failures + 1,
      replan_at = case when l.modify_failures >= 2
        then null else p_now + private.retry_delay(l.modify_failures + 2, 30) end
    where l.id = q.link_id;
  end if;
  if q.reason = 'no_money' and private.opens(q) then
    perform private.alert_no_money(q);
  end if;
  perform private.handle_refused_levels(q);
  if q.parts is not null then
    v_opened := array(select (e ->> 'link_id')::bigint from jsonb_array_elements(q.parts) e
      where (e ->> 'lots')::numeric > 0);
    update public.position_links l set rest_lots = null where l.id = any (v_opened) and l.rest_lots is not null;
  elsif q.action in ('open', 'increase', 'place') then
    v_opened := array[q.link_id];
  end if;
  if q.status in ('rejected', 'expired', 'cancelled') and v_opened is not null then
    update public.position_links l set state = 'ended', reason = q.reason, ended_at = p_now, replan_at = null
    where l.id = any (v_opened) and l.state = 'live' and l.wanted_lots is null
      and not exists (select 1 from private.link_legs g where g.link_id = l.id)
      and not exists (select 1 from public.trade_execution_queue o
        where o.link_id = l.id and o.finalized_at is null and o.id <> q.id);
    -- the link holds a part: the rest that was not filled counts as a skipped increase
    update public.position_links l set base_master_lots = coalesce((select (e ->> 'master_lots')::numeric
      from jsonb_array_elements(q.parts) e
        where (e ->> 'link_id')::bigint = l.id), q.master_lots, l.base_master_lots),
      base_lots = least(l.base_lots, (select sum(g.lots) from private.link_legs g
        where g.link_id = l.id and g.kind = 'position'))
    where l.id = any (v_opened) and l.state = 'live'
      and exists (select 1 from private.link_legs g where g.link_id = l.id and g.kind = 'position');
  end if;
end $$;

-- ledger/fill.sql
-- Fills: how a completed execution changes the copy that it belongs to.

-- What an order or position is now. It may have got another ticket, or several, before the report of its opening
-- arrived.
create function private.continuation(p_position public.positions) returns public.positions
language plpgsql stable security definer set search_path = '' as $$
declare
  v_next public.positions;
begin
  for n in 1 .. 100 loop
    exit when p_position.replaced_by is null;
    select * into v_next from public.positions m
    where m.account_id = p_position.account_id and m.ticket = p_position.replaced_by
      and m.kind = p_position.replaced_by_kind;
    exit when not found;
    p_position := v_next;
  end loop;
  return p_position;
end $$;

-- Books what a broker did to the link of a hedging follower. The mirror has already taken the report and takes
-- precedence: a late report brings nothing back. A close that found nothing proves nothing by itself: the account is
-- read again.
create function private.book_fill(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opens boolean := q.action in ('open', 'increase', 'place');
  v_modified boolean := q.action in ('modify', 'amend');
  v_legs integer;
  v_filled numeric;
begin
  if v_opens then
    insert into private.link_legs as g (link_id, account_id, ticket, ticket_kind, kind, lots, price)
    select q.link_id, q.account_id, m.ticket, m.kind, m.kind, m.lots, m.price
    from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    join public.positions o on o.account_id = q.account_id and o.ticket = e ->> 'ticket' and o.kind = e ->> 'kind'
    cross join lateral private.continuation(o) m
    where (e ->> 'lots')::numeric > 0 and m.lots > 0
    on conflict (link_id, ticket, ticket_kind) do nothing;
    get diagnostics v_legs = row_count;
    if v_legs > 0 and exists (select 1 from private.link_legs g
      where g.link_id = q.link_id and g.kind = 'position') then
      update public.position_links l set base_master_lots = coalesce(q.master_lots, l.base_master_lots),
        base_lots = least((select sum(g.lots) from private.link_legs g where g.link_id = l.id and g.kind = 'position'),
          -- what it held above its base, such as another order's second fill, stays above it
          l.base_lots + coalesce(q.filled_lots, q.lots))
      where l.id = q.link_id;
    end if;
  end if;
  -- if every position of an open is a new leg, nothing need be compared
  if not v_opens or v_legs is distinct from jsonb_array_length(nullif(r -> 'positions', 'null')) then
    delete from private.link_legs g using public.positions m
    where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
      and m.lots = 0 and m.replaced_by is null;
    if exists (select 1 from private.link_legs g where g.link_id = q.link_id) then
      update private.link_legs g set ticket = m.replaced_by, ticket_kind = m.replaced_by_kind from public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
        and m.replaced_by is not null
        and not exists (select 1 from private.link_legs o
          where o.link_id = g.link_id and o.ticket = m.replaced_by and o.ticket_kind = m.replaced_by_kind);
      delete from private.link_legs g using public.positions m
      where g.link_id = q.link_id and m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
        and m.lots = 0;
      with looks as materialized (
        select g.ticket, g.ticket_kind, g.kind as held_as, least(g.lots, m.lots) as lots, m.kind, m.price
        from private.link_legs g
        join public.positions m on m.account_id = q.account_id and m.ticket = g.ticket and m.kind = g.ticket_kind
          and m.lots > 0
        where g.link_id = q.link_id and (m.lots < g.lots or m.kind <> g.kind)
      ), kept as (
        update private.link_legs g set lots = k.lots, kind = k.kind, price = k.price
        from looks k where g.link_id = q.link_id and g.ticket = k.ticket and g.ticket_kind = k.ticket_kind
      )
      select sum(k.lots) into v_filled from looks k where k.held_as = 'order' and k.kind = 'position';
      if v_filled is not null then
        perform private.add_filled_order(q.link_id, v_filled);
      end if;
    end if;
  end if;

  if q.action = 'reduce' and q.status = 'completed' then
    perform private.mark_reduction_done(q.link_id, q.master_lots);
  end if;
  -- refused levels keep their retry time: other orders say nothing about them, nor does an order of the same step for
  -- another position of the copy
  update public.position_links l set close_failures = case when v_opens or v_modified then l.close_failures else 0 end,
    modify_failures = case when v_modified then 0 else l.modify_failures end,
    replan_at = case when not v_modified and l.modify_failures between 1 and 2 then l.replan_at end
  where l.id = q.link_id and (l.close_failures > 0 or l.modify_failures > 0)
    and not (v_modified and exists (select 1 from public.trade_execution_queue o
      where o.step_id = q.step_id and o.status in ('rejected', 'cancelled')));
  if q.status = 'completed' and q.ticket is not null and q.action in ('reduce', 'close', 'cancel')
    and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
  then
    update public.positions m set absent_snapshots = greatest(m.absent_snapshots, 1)
    where m.account_id = q.account_id and m.ticket = q.ticket and m.kind = private.kind_of(q.action) and m.lots > 0;
    update public.position_links l set close_failures = l.close_failures + 1,
      replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id and exists (select 1 from private.link_legs g
      where g.link_id = l.id and g.ticket = q.ticket and g.ticket_kind = private.kind_of(q.action));
  end if;
end $$;

-- Books a second fill of an execution that is already completed: its link holds the lots, but above its target, so the
-- planner reduces them again.
create function private.book_filled_again(q public.trade_execution_queue, r jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_was public.position_links;
begin
  select * into v_was from public.position_links l where l.id = q.link_id;
  perform private.book_fill(q, r, p_now);
  update public.position_links l set base_master_lots = v_was.base_master_lots,
    base_lots = least(l.base_lots, v_was.base_lots + greatest(0, q.lots - coalesce(q.filled_lots, q.lots)))
  where l.id = q.link_id and l.base_lots > v_was.base_lots;
end $$;

-- A late fill opened with the levels of its time. Others may have been asked since, for what the copy held then. Which
-- levels stand is unknown now, so the planner asks for them again.
create function private.forget_asked_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set asked_sl = null, asked_tp = null, asked_unknown = true
  where l.id = q.link_id and l.ended_at is null and private.opens(q)
    and (l.asked_sl, l.asked_tp) is distinct from (q.sl, q.tp);
end $$;

-- A fill arrives for a link that has ended meanwhile (expired, rejected). The report overrules that, so the link
-- becomes live again.
create function private.revive_link(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'live', ended_at = null, reason = null
  where l.id = q.link_id and l.state = 'ended' and l.reason is distinct from 'released' and private.opens(q);
end $$;

-- ledger/leg.sql
-- Legs: the positions of a follower that make up a copy, kept in step with the mirror.

-- A copy of a pending order may be several orders, which fill one after the other: each fill (p_lots) adds to the
-- volume that reductions are computed from. The first fill begins that volume (private.book_links), so it adds nothing
-- here. Whoever turns the leg of an order into a position calls this.
create function private.add_filled_order(p_link bigint, p_lots numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set base_lots = l.base_lots + p_lots
  where l.id = p_link and l.base_lots is not null;
end $$;

-- Books what the follower's mirror shows to links that have nothing in flight: reduced by hand, closed or filled. A row
-- of the mirror is never older than the last report about its ticket, because that report wrote it.
create function private.book_links(p_links bigint[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
  v_filled bigint[];
  v_lots numeric[];
begin
  -- usually mirror and links agree
  select array_agg(l.id) into v_links from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and (l.base_lots is null or exists (
    select 1 from private.link_legs g
    join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.kind = g.ticket_kind
    where g.link_id = l.id and (p.lots < g.lots or p.kind <> g.kind)));
  if v_links is null then return; end if;

  with looks as materialized (
    select g.link_id, g.ticket, g.ticket_kind, p.lots, p.kind, p.price, g.kind as held_as
    from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'hedging'
    -- never by all legs there are
    cross join lateral (select * from private.link_legs i where i.link_id = l.id offset 0) g
    join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.kind = g.ticket_kind
    where l.id = any (v_links) and l.ended_at is null and (p.lots < g.lots or p.kind <> g.kind)
      and not exists (select 1 from public.trade_execution_queue q
        where q.link_id = l.id and q.finalized_at is null and q.status <> 'retrying')
  ), gone as (
    delete from private.link_legs g using looks k where g.link_id = k.link_id and g.ticket = k.ticket
      and g.ticket_kind = k.ticket_kind and k.lots = 0
  ), kept as (
    update private.link_legs g set lots = least(g.lots, k.lots), kind = k.kind, price = k.price
    from looks k where g.link_id = k.link_id and g.ticket = k.ticket and g.ticket_kind = k.ticket_kind and k.lots > 0
    returning g.link_id, g.lots, k.held_as = 'order' and k.kind = 'position' as filled
  )
  select array_agg(k.link_id), array_agg(k.lots) into v_filled, v_lots from kept k where k.filled;
  if v_filled is not null then
    perform private.add_filled_order(f.id, f.lots) from unnest(v_filled, v_lots) as f (id, lots);
  end if;

  -- one of our orders has filled: from now on there is a volume to reduce from
  update public.position_links l set base_lots = h.lots, base_master_lots = l.seen_master_lots
  from (select link_id, sum(lots) as lots from private.link_legs where link_id = any (v_links) and kind = 'position'
    group by link_id) h
  where h.link_id = l.id and l.base_lots is null and l.ended_at is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
end $$;

-- Ends links of netting accounts that hold nothing, want nothing and have nothing in flight; plan_links ends the
-- others.
create function private.end_links(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_closed bigint[];
  v_given_up bigint[];
begin
  -- read into arrays first: an update joined to the view would compute the view once per pair of links
  select array_agg(s.id) filter (where s.doomed), array_agg(s.id) filter (where not s.doomed) into v_closed, v_given_up
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.legs = 0 and s.executions = 0 and s.wanted_lots is null
    and (s.account_mode = 'hedging' or not exists (  -- the deal in flight may include this link
      select 1 from public.trade_execution_queue q
      where q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight));
  if v_closed is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = 'closed'
    where l.id = any (v_closed);
  end if;
  if v_given_up is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = case
      when l.stopped_out then 'stop_out' else 'closed_by_follower' end
    where l.id = any (v_given_up);
  end if;
end $$;

-- ledger/net_ledger.sql
-- The ledger of a netting follower: each link's share of the net position (its leg), and the difference between the
-- account's net position and the sum of the shares. Callers hold the account's plan lock.

create function private.sign_of(p_side text) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return case p_side when 'buy' then 1 else -1 end;
end $$;

-- Adds p_lots (signed: + more, - less) to a link's share.
create function private.book_share(p_link bigint, p_account uuid, p_symbol text, p_lots numeric,
  p_price numeric) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_lots > 0 then
    insert into private.link_legs as g (link_id, account_id, ticket, ticket_kind, kind, lots, price)
    values (p_link, p_account, p_symbol, 'position', 'position', p_lots, p_price)
    on conflict (link_id, ticket, ticket_kind) do update set lots = g.lots + excluded.lots,
      price = coalesce((g.lots * g.price + excluded.lots * excluded.price) / (g.lots + excluded.lots), excluded.price,
        g.price);
  else
    delete from private.link_legs where link_id = p_link and ticket = p_symbol and lots + p_lots <= 0;
    update private.link_legs set lots = lots + p_lots
    where link_id = p_link and ticket = p_symbol and lots + p_lots > 0;
  end if;
end $$;

-- The signed volume that the account's mirror shows in this symbol.
create function private.mirror_net(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(sum(p.lots * private.sign_of(p.side)), 0) from public.positions p
    where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position');
end $$;

-- Books changes that the account's mirror shows and our deals do not explain. A stop, a stop-out or a manual deal
-- against the links reduces them first, oldest first; otherwise a later close would open a position the other way. The
-- rest is the user's own. Each change is stored as a surprise. p_net: the net volume to book, which is the mirror's
-- unless a deal is booked right after this.
create function private.book_net(p_account uuid, p_symbol text, p_net numeric, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_change numeric;
  v_surplus numeric;
  v_leg record;
  v_take numeric;
  v_surprises jsonb := '[]';
begin
  insert into private.net_ledgers (account_id, symbol) values (p_account, p_symbol) on conflict do nothing;
  select p_net - net_lots, surplus_lots into v_change, v_surplus from private.net_ledgers
  where account_id = p_account and symbol = p_symbol;
  if v_change = 0 then return; end if;
  v_take := least(abs(v_change), greatest(0, -sign(v_change) * v_surplus));
  if v_take > 0 then  -- the user, or a stop, has done what the copy was about to do
    perform private.book_surplus(p_account, p_symbol, v_take * sign(v_change));
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', (v_take * sign(v_change))::text, 'at',
      p_now, 'surplus', true);
    v_change := v_change - v_take * sign(v_change);
  end if;
  for v_leg in
    select g.link_id, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id
    where g.account_id = p_account and g.ticket = p_symbol and l.state = 'live'
      and private.sign_of(l.side) = -sign(v_change)
    order by g.link_id
  loop
    v_take := least(v_leg.lots, abs(v_change));
    exit when v_take <= 0;
    perform private.book_share(v_leg.link_id, p_account, p_symbol, -v_take, null);
    v_surprises := v_surprises || jsonb_build_object('link_id', v_leg.link_id::text, 'lots',
      (v_take * sign(v_change))::text, 'at', p_now);
    v_change := v_change + v_take * -sign(v_change);
  end loop;
  if v_change <> 0 then
    v_surprises := v_surprises || jsonb_build_object('link_id', null, 'lots', v_change::text, 'at', p_now);
  end if;
  update private.net_ledgers n set net_lots = p_net, surprises = private.newest(n.surprises || v_surprises, 20)
  where n.account_id = p_account and n.symbol = p_symbol;
end $$;

create function private.newest(p_entries jsonb, p_count integer) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(e.value order by e.n) from jsonb_array_elements(p_entries) with ordinality as e (value, n)
    where e.n > jsonb_array_length(p_entries) - p_count), '[]');
end $$;

-- The surplus: lots that our deals moved and no link can have (an open dealt twice, a reduction of a copy that was
-- gone), signed like the account's net. The next deal moves it back. p_link: the link of the deal, which tells whose it
-- was.
create function private.book_surplus(p_account uuid, p_symbol text, p_lots numeric,
  p_link bigint default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update private.net_ledgers set surplus_lots = surplus_lots + p_lots,
    surplus_link_id = coalesce(p_link, surplus_link_id)
  where account_id = p_account and symbol = p_symbol and p_lots <> 0;
end $$;

-- Books a filled (or purely internal) deal. Each part gets what the deal was sent for, as far as its link can still
-- have it: parts against the deal in full, parts with it from the fill, reductions first. What the links cannot have is
-- surplus, so every lot of a fill is booked. p_when: 'in_time', 'given_up' (it had counted as not filled),
-- 'dealt_again' (what it was to open was put into another deal).
create function private.book_deal(p_account uuid, p_symbol text, p_direction integer, p_filled numeric, p_price numeric,
  p_parts jsonb,
  p_when text default 'in_time') returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_part record;
  v_room numeric;
  v_lots numeric;
  v_surplus numeric := p_filled * p_direction;
begin
  select p_filled + coalesce(sum(abs((e ->> 'lots')::numeric)), 0) into v_room from jsonb_array_elements(p_parts) e
  where private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) <> p_direction;
  for v_part in
    select e as body, (e ->> 'link_id')::bigint as link_id, (e ->> 'lots')::numeric > 0 as opens,
      private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) as direction
    from jsonb_array_elements(p_parts) e order by (e ->> 'lots')::numeric > 0, (e ->> 'link_id')::bigint
  loop
    v_lots := case when v_part.opens then (v_part.body ->> 'lots')::numeric
      else private.possible_lots(v_part.body, p_account, p_symbol, p_when <> 'in_time') end;
    if v_part.direction = p_direction then
      v_lots := least(v_lots, v_room);
      v_room := v_room - v_lots;
    end if;
    if v_part.opens then
      v_lots := private.book_open(v_part.body, p_account, p_symbol, v_lots, p_price, p_when);
    elsif v_part.link_id is null then
      perform private.book_surplus(p_account, p_symbol, v_lots * v_part.direction);
    else
      perform private.book_reduction(v_part.body, p_account, p_symbol, v_lots, p_when);
    end if;
    v_surplus := v_surplus - v_lots * v_part.direction;
  end loop;
  update private.net_ledgers set net_lots = net_lots + p_filled * p_direction
  where account_id = p_account and symbol = p_symbol;
  perform private.book_surplus(p_account, p_symbol, v_surplus, (
    select max((e ->> 'link_id')::bigint) from jsonb_array_elements(p_parts) e));
end $$;

-- How much a reduction can still take: what its link holds above the target that the deal was sent for; for a late
-- deal, above its present target, because the reduction may have been repeated or the master may have increased again.
-- For a surplus: what is left of it. For a released copy: what its user has.
create function private.possible_lots(p_part jsonb, p_account uuid, p_symbol text, p_late boolean) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_lots numeric := abs((p_part ->> 'lots')::numeric);
  v_link bigint := (p_part ->> 'link_id')::bigint;
begin
  if v_link is null then
    return (
      select least(v_lots, greatest(0, n.surplus_lots * private.sign_of(p_part ->> 'side'))) from private.net_ledgers n
      where n.account_id = p_account and n.symbol = p_symbol);
  end if;
  if exists (select 1 from public.position_links l
    where l.id = v_link and l.state = 'ended' and l.reason = 'released') then
    return v_lots;
  end if;
  return coalesce((
    select least(v_lots, greatest(0, s.position_lots - case
        when not p_late and (p_part ->> 'reduced_to' is null or s.base_lots is null) or p_late and s.doomed then 0
        when s.base_lots is null or s.master_kind <> 'position' then s.position_lots
        when p_late then s.target_lots
        else private.target_lots(s.base_lots, (p_part ->> 'reduced_to')::numeric, s.base_master_lots, s.lots_step,
          s.lots_min, s.position_lots) end))
    from private.link_states s where s.id = v_link and s.ended_at is null), 0);
end $$;

create function private.book_reduction(p_part jsonb, p_account uuid, p_symbol text, p_lots numeric,
  p_when text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.book_share((p_part ->> 'link_id')::bigint, p_account, p_symbol, -p_lots, null);
  -- a late one counts as done once the link is as small as its master now
  if p_when = 'in_time' and p_part ->> 'reduced_to' is not null then
    perform private.mark_reduction_done((p_part ->> 'link_id')::bigint, (p_part ->> 'reduced_to')::numeric,
      (p_part ->> 'master_lots')::numeric);
  end if;
end $$;

-- Gives a link what a deal opened for it; the link becomes live again if it was given up. What was dealt again counts
-- only as far as it is still wanted. Returns the lots that the link took.
create function private.book_open(p_part jsonb, p_account uuid, p_symbol text, p_lots numeric, p_price numeric,
  p_when text) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  l public.position_links;
  v_lots numeric := p_lots;
  v_master_lots numeric := (p_part ->> 'master_lots')::numeric;
  v_counted numeric := (p_part ->> 'counted')::numeric;
  v_rest numeric;
  v_held numeric;
begin
  select * into l from public.position_links x where x.id = (p_part ->> 'link_id')::bigint;
  v_rest := coalesce(l.rest_lots, 0);
  if p_when = 'dealt_again' then v_lots := least(p_lots, coalesce(l.wanted_lots, 0)); end if;
  if p_when <> 'in_time' and v_lots = 0 then return 0; end if;
  select coalesce(sum(g.lots), 0) into v_held from private.link_legs g where g.link_id = l.id;
  if v_lots > 0 then
    perform private.book_share(l.id, p_account, p_symbol, v_lots, p_price);
    update public.position_links x set state = 'live', ended_at = null, reason = null
    where x.id = l.id and x.state = 'ended' and x.reason is distinct from 'released';
  end if;
  if p_when = 'given_up' then  -- giving up has already rebased the link: now it is held after all
    update public.position_links x set base_lots = case
      when v_held = 0 then v_lots else coalesce(x.base_lots, 0) + v_lots end,
      base_master_lots = case when v_held = 0 then v_master_lots else coalesce(x.base_master_lots, v_master_lots) end
    where x.id = l.id;
  elsif p_when = 'dealt_again' then
    update public.position_links x set wanted_lots = nullif(x.wanted_lots - v_lots, 0),
      rest_lots = nullif(x.rest_lots - v_lots, 0),
      wanted_until = case when x.wanted_lots > v_lots then x.wanted_until end,
      base_lots = case when x.rest_lots is not null
        then x.base_lots else v_lots + least(v_held, coalesce(x.base_lots, 0)) end,
      base_master_lots = case when x.rest_lots is not null then x.base_master_lots else v_master_lots end
    where x.id = l.id;
  elsif v_counted is not null and v_lots = (p_part ->> 'lots')::numeric then
    update public.position_links x set base_lots = x.base_lots - v_counted + v_lots + v_rest,
      base_master_lots = case when v_lots + v_rest > v_counted then v_master_lots else x.base_master_lots end
    where x.id = l.id;
  else  -- a fill rebases the pair, to what is held now and the rest still to be dealt
    update public.position_links x set base_master_lots = v_master_lots,
      base_lots = nullif(v_lots + least(v_held, coalesce(x.base_lots, 0)) + v_rest, 0)
    where x.id = l.id;
  end if;
  return v_lots;
end $$;

-- The direction in which an execution moves the net: an order by ticket names the position's side.
create function private.direction_of(q public.trade_execution_queue) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  return private.sign_of(q.side) * case when q.action = 'open' then 1 else -1 end;
end $$;

-- Books a deal that was reported as filled. p_was: the execution before this report; p_shown: the net that the mirror
-- showed before the report.
create function private.book_fill_of_net(q public.trade_execution_queue, p_was public.trade_execution_queue,
  p_late boolean, p_shown numeric,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  n private.net_ledgers;
  v_before numeric;
  v_sign integer;
  v_held numeric;
begin
  if p_late or p_was.finalized_at is not null or p_was.status = 'retrying' then
    perform private.book_late(q, case when p_was.reason = 'superseded'
      then 'dealt_again' when p_was.finalized_at is not null then 'given_up'
      else 'in_time' end);
  else
    -- A stop or a manual deal while our deal was in flight, reported separately or by this report, took from what was
    -- held before. What it took beyond that came from what our deal opened, and is found later; so is a change that the
    -- mirror showed together with our deal.
    v_before := private.mirror_net(q.account_id, q.symbol) - private.direction_of(q) * coalesce(q.filled_lots, q.lots);
    select * into n from private.net_ledgers x where x.account_id = q.account_id and x.symbol = q.symbol;
    if p_shown in (v_before, n.net_lots) and v_before <> n.net_lots then
      v_sign := sign(n.net_lots - v_before);
      select greatest(0, n.surplus_lots * v_sign) + coalesce(sum(g.lots), 0) into v_held
      from private.link_legs g join public.position_links l on l.id = g.link_id
      where g.account_id = q.account_id and g.ticket = q.symbol and l.state = 'live'
        and private.sign_of(l.side) = v_sign;
      perform private.book_net(q.account_id, q.symbol, n.net_lots - v_sign * least(v_held, abs(n.net_lots - v_before)),
        p_now);
    end if;
    perform private.book_deal(q.account_id, q.symbol, private.direction_of(q), coalesce(q.filled_lots, q.lots),
      q.fill_price, q.parts);
  end if;
end $$;

-- Books a fill that was no longer waited for. Its volume may have been booked as surprises, which it then explains.
create function private.book_late(q public.trade_execution_queue, p_when text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_direction integer := private.direction_of(q);
  v_filled numeric := coalesce(q.filled_lots, q.lots);
  v_beyond numeric;
  v_known numeric;
begin
  insert into private.net_ledgers (account_id, symbol) values (q.account_id, q.symbol) on conflict do nothing;
  -- the mirror has taken the report: a difference between mirror and ledger is this fill, unless another deal is in
  -- flight
  v_beyond := case when exists (
      select 1 from public.trade_execution_queue o
      where o.account_id = q.account_id and o.symbol = q.symbol and o.in_flight and o.status <> 'retrying') then 0
    else greatest(0, (private.mirror_net(q.account_id, q.symbol) - (
      select n.net_lots from private.net_ledgers n
      where n.account_id = q.account_id and n.symbol = q.symbol)) * v_direction) end;
  v_known := private.undo_surprises(q, v_direction, greatest(0, v_filled - v_beyond));
  perform private.book_deal(q.account_id, q.symbol, v_direction, v_filled, q.fill_price, q.parts, p_when);
  update private.net_ledgers set net_lots = net_lots - v_direction * v_known
  where account_id = q.account_id and symbol = q.symbol;
end $$;

-- Books a deal of which another attempt had already filled (q.attempt is the one that completed it). Returns its links;
-- none if the report is only a repetition.
create function private.book_second_fill(q public.trade_execution_queue, r jsonb) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  if q.status <> 'completed' or (r ->> 'attempt')::integer = q.attempt or 'filled_twice' = any (q.warnings)
    or coalesce((r ->> 'filled_lots')::numeric, 0) = 0 then
    return '{}';
  end if;
  update public.trade_execution_queue set warnings = warnings || 'filled_twice'::text where id = q.id;
  q.filled_lots := (r ->> 'filled_lots')::numeric;
  perform private.book_late(q, 'dealt_again');
  return array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint from jsonb_array_elements(q.parts) e);
end $$;

-- Removes up to p_lots in this direction from the surprises since the deal was queued, and gives back to links what
-- they lost by them. Returns the lots.
create function private.undo_surprises(q public.trade_execution_queue, p_direction integer,
  p_lots numeric) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_left numeric := p_lots;
  v_kept jsonb := '[]';
  v_take numeric;
  e jsonb;
begin
  for e in
    select x.value from private.net_ledgers n
    cross join jsonb_array_elements(n.surprises) with ordinality as x (value, n)
    where n.account_id = q.account_id and n.symbol = q.symbol order by x.n
  loop
    v_take := case when (e ->> 'at')::timestamptz >= q.queued_at and sign((e ->> 'lots')::numeric) = p_direction
      then least(v_left, abs((e ->> 'lots')::numeric)) else 0 end;
    if v_take > 0 and e ? 'surplus' then
      perform private.book_surplus(q.account_id, q.symbol, -v_take * p_direction);
    elsif v_take > 0 and e ->> 'link_id' is not null then
      perform private.book_share((e ->> 'link_id')::bigint, q.account_id, q.symbol, v_take, null);
      update public.position_links set state = 'live', ended_at = null, reason = null
      where id = (e ->> 'link_id')::bigint and state = 'ended';
    end if;
    v_left := v_left - v_take;
    if v_take < abs((e ->> 'lots')::numeric) then
      v_kept := v_kept || (e || jsonb_build_object('lots', ((e ->> 'lots')::numeric - v_take * p_direction)::text));
    end if;
  end loop;
  update private.net_ledgers set surprises = v_kept where account_id = q.account_id and symbol = q.symbol;
  return p_lots - v_left;
end $$;

-- Gives back what a waiting deal would have opened. The deal is not handed out, so its parts may be dealt differently.
create function private.give_back(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = coalesce(l.wanted_lots, 0) + (e ->> 'lots')::numeric,
    wanted_until = (e ->> 'until')::timestamptz,
    rest_lots = case when e ->> 'counted' is not null then coalesce(l.rest_lots, 0) + (e ->> 'lots')::numeric end
  from jsonb_array_elements(q.parts) e
  where l.id = (e ->> 'link_id')::bigint and l.ended_at is null and (e ->> 'lots')::numeric > 0;
end $$;

-- Cuts the parts of a deal to what one order may hold: parts against the deal stay whole, parts with it share p_room,
-- reductions first.
create function private.cut_parts(p_parts jsonb, p_side text, p_room numeric) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_with boolean;
  v_left numeric := p_room;
  v_lots numeric;
  v_cut jsonb := '[]';
begin
  select v_left + coalesce(sum(abs((x ->> 'lots')::numeric)), 0) into v_left from jsonb_array_elements(p_parts) x
  where private.sign_of(x ->> 'side') * sign((x ->> 'lots')::numeric) <> private.sign_of(p_side);
  for e in select value from jsonb_array_elements(p_parts)
    order by (value ->> 'lots')::numeric > 0, (value ->> 'link_id')::bigint loop
    v_with := private.sign_of(e ->> 'side') * sign((e ->> 'lots')::numeric) = private.sign_of(p_side);
    v_lots := case when v_with then least(abs((e ->> 'lots')::numeric), v_left) else abs((e ->> 'lots')::numeric) end;
    if v_with then v_left := v_left - v_lots; end if;
    if v_lots > 0 then
      v_cut := v_cut || jsonb_build_array(e || jsonb_build_object('lots',
        (v_lots * sign((e ->> 'lots')::numeric))::text));
    end if;
  end loop;
  return v_cut;
end $$;

-- planner/levels.sql
-- Levels: which stop loss and take profit a copy should have, and which of them its broker accepts now. The wanted
-- levels depend only on settings, the master and the copy's own open price, and are compared with the levels last asked
-- for. The levels sent may differ because of the broker's distances; that is decided when an order is queued.

create type private.levels as (sl numeric, tp numeric, sent_sl numeric, sent_tp numeric, warnings text[]);
comment on type private.levels is
  'sl, tp: the wanted levels; sent_sl, sent_tp: the nearest that the broker accepts now; warnings say that they '
  'differ.';

-- A quote that is recent enough: an agent reports the quotes of symbols in use again and again.
create function private.is_fresh(p_symbol public.account_symbols, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(p_symbol.bid > 0 and p_symbol.ask > 0
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s'), false);
end $$;

-- The nearest levels that the broker accepts. p_order_price: the price of a pending order; null: a position at the
-- market. p_tries: refusals of the levels so far. A broker that reports a distance of 0 is believed until it refuses;
-- then the distance is the spread, doubled with each refusal.
create function private.legal_levels(
  p_symbol public.account_symbols, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer,
    p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_levels private.levels := row(p_sl, p_tp, p_sl, p_tp, '{}'::text[]);
  v_distance numeric := greatest(p_symbol.stops_level_points, p_symbol.freeze_level_points);
  v_price numeric := p_order_price;
  v_below numeric;
  v_above numeric;
begin
  if p_sl is null and p_tp is null or v_distance = 0 and p_tries = 0 then return v_levels; end if;
  if v_price is null then
    if not private.is_fresh(p_symbol, p_now) then return v_levels; end if;
    v_price := case p_side when 'buy' then p_symbol.bid else p_symbol.ask end;
  end if;
  v_distance := v_distance * 10::numeric ^ -p_symbol.digits;
  if p_tries > 0 then
    v_distance := greatest(v_distance, p_symbol.ask - p_symbol.bid, p_symbol.tick_size) * 2::numeric ^ (p_tries - 1);
  end if;
  v_below := floor((v_price - v_distance) / p_symbol.tick_size) * p_symbol.tick_size;
  v_above := ceil((v_price + v_distance) / p_symbol.tick_size) * p_symbol.tick_size;
  if p_side = 'buy' then
    v_levels.sent_sl := least(p_sl, case when p_sl is not null then v_below end);
    v_levels.sent_tp := greatest(p_tp, case when p_tp is not null then v_above end);
  else
    v_levels.sent_sl := greatest(p_sl, case when p_sl is not null then v_above end);
    v_levels.sent_tp := least(p_tp, case when p_tp is not null then v_below end);
  end if;
  v_levels.sent_sl := case when v_levels.sent_sl > 0 then v_levels.sent_sl end;
  v_levels.sent_tp := case when v_levels.sent_tp > 0 then v_levels.sent_tp end;
  v_levels.warnings := array_remove(array[case when v_levels.sent_sl is distinct from p_sl then 'sl_adjusted' end,
    case when v_levels.sent_tp is distinct from p_tp then 'tp_adjusted' end], null);
  return v_levels;
end $$;

-- Levels for a change of a link, by its follower's symbol.
create function private.levels_to_ask(
  p_account uuid, p_symbol text, p_side text, p_order_price numeric, p_sl numeric, p_tp numeric, p_tries integer,
    p_now timestamptz
) returns private.levels
language plpgsql stable security definer set search_path = '' as $$
declare
  v_symbol public.account_symbols;
begin
  if p_sl is null and p_tp is null then return row(null, null, null, null, '{}'::text[])::private.levels; end if;
  select * into v_symbol from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  return private.legal_levels(v_symbol, p_side, p_order_price, p_sl, p_tp, p_tries, p_now);
end $$;

-- The same for a copier that takes the master's levels unchanged, where the broker reports no distance.
create function private.price_levels(p_sl numeric, p_tp numeric, p_tick numeric) returns private.levels
language plpgsql immutable set search_path = '' as $$
declare
  v_sl numeric := case when p_tick > 0 then div(p_sl + p_tick / 2, p_tick) * p_tick else p_sl end;
  v_tp numeric := case when p_tick > 0 then div(p_tp + p_tick / 2, p_tick) * p_tick else p_tp end;
begin
  return row(v_sl, v_tp, v_sl, v_tp, '{}'::text[])::private.levels;
end $$;

-- Levels of an opening order, computed from the price that it will probably get, since it must never be without a stop.
-- The exact levels follow when its own price is known. p_open: the copy's open price (an increase), null: it is new.
create function private.first_levels(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_open numeric,
    p_now timestamptz
) returns private.levels
language plpgsql stable set search_path = '' as $$
declare
  v_open numeric := p_open;
  v_up integer := case p_side when 'buy' then 1 else -1 end;
  v_sl numeric;
  v_tp numeric;
begin
  if v_open is null and p_master.kind = 'position'
    and (p_copier.sl_mode in ('distance', 'fixed') or p_copier.tp_mode in ('distance', 'fixed')
    or p_copier.max_sl_points is not null) and private.is_fresh(p_symbol, p_now) then
    v_open := case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  v_sl := private.wanted_level(p_copier.sl_mode, case
    when p_copier.reverse then p_master.tp else p_master.sl end, p_master.price, v_open, -v_up,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size);
  v_tp := private.wanted_level(p_copier.tp_mode, case
    when p_copier.reverse then p_master.sl else p_master.tp end, p_master.price, v_open, v_up,
    p_copier.tp_points, null, p_symbol.digits, p_symbol.tick_size);
  return private.legal_levels(p_symbol, p_side, case
    when p_master.kind = 'order' then private.on_tick(p_master.price, p_symbol.tick_size) end,
    v_sl, v_tp, 0, p_now);
end $$;

-- Average open price of a link's positions.
create function private.open_price(p_link bigint) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select sum(g.lots * g.price) / nullif(sum(g.lots), 0) from private.link_legs g
    where g.link_id = p_link and g.kind = 'position' and g.price is not null);
end $$;

-- The stop that limits the loss of a copy, at the master's price level: its own where the copier sets one, else the
-- master's. p_side: the master's; p_stop: the master's level that becomes the copy's stop.
create function private.stop_of_copy(p_copier public.copiers, p_side text, p_price numeric, p_stop numeric,
  p_symbol public.account_symbols)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  if coalesce(p_copier.sl_mode, 'price') <> 'fixed' and p_copier.max_sl_points is null then return p_stop; end if;
  return private.wanted_level(p_copier.sl_mode, p_stop, p_price, p_price, case
    when (p_side = 'buy') = p_copier.reverse then 1 else -1 end,
    p_copier.sl_points, p_copier.max_sl_points, p_symbol.digits, p_symbol.tick_size);
end $$;

-- A link's warnings, with those about levels replaced by the new ones.
create function private.with_level_warnings(p_warnings text[], p_new text[]) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  return array_remove(array_remove(p_warnings, 'sl_adjusted'), 'tp_adjusted') || coalesce(p_new, '{}');
end $$;

-- Raises an error for level settings that contradict each other, naming both. p_given: the request, p_new: the result.
create function private.refuse_contradicting_levels(p_given jsonb, p_new public.copiers) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_message text := case
    when p_new.sl_mode = 'fixed' and p_new.sl_points is null then 'sl_mode is fixed, but sl_points is missing'
    when p_new.tp_mode = 'fixed' and p_new.tp_points is null then 'tp_mode is fixed, but tp_points is missing'
    when p_new.sl_mode <> 'fixed' and jsonb_typeof(p_given -> 'sl_points') <> 'null' then
      format('sl_points is given, but sl_mode is %s', p_new.sl_mode)
    when p_new.tp_mode <> 'fixed' and jsonb_typeof(p_given -> 'tp_points') <> 'null' then
      format('tp_points is given, but tp_mode is %s', p_new.tp_mode)
    when p_new.sl_mode = 'none' and p_new.max_sl_points is not null
      then 'sl_mode is none, but max_sl_points sets a stop'
    when p_new.sl_mode = 'fixed' and p_new.sl_points > p_new.max_sl_points then
      format('sl_points %s is more than max_sl_points %s', p_new.sl_points, p_new.max_sl_points) end;
begin
  if v_message is not null then
    raise exception using errcode = 'TC306', message = 'save_copier: ' || v_message,
      hint = 'Change one of the two settings.';
  end if;
end $$;

-- Stores the prices at which an agent's order was refused.
create function private.note_quote(p_account uuid, p_symbol text, p_quote jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.account_symbols s set bid = (p_quote ->> 'bid')::numeric, ask = (p_quote ->> 'ask')::numeric,
    quoted_at = p_now
  where s.account_id = p_account and s.name = p_symbol and (s.quoted_at < p_now or s.quoted_at is null);
end $$;

-- planner/sizing.sql
-- Sizing: how large a copy is. One pure function, used by the planner and, through preview_copy, by users. All volumes
-- are exact: quotients are computed with div() on numerator and denominator, never from a rounded ratio.

create type private.funds as (currency text, balance numeric, equity numeric, free_margin numeric);
comment on type private.funds is 'Money of an account in its own currency; null = unknown or too old to use.';

create type private.sizing as (orders numeric[], raw_lots numeric, reason text, warnings text[], explain text[]);
comment on type private.sizing is 'orders: lots of each order, empty with a reason if there is nothing to place.';

-- Why an amount of money cannot be used: it is unknown, or a rate is missing.
create function private.unknown_money_words(p_whose text, p_amount numeric, p_from text, p_to text) returns text
language plpgsql stable set search_path = '' as $$
begin
  if p_amount > 0 then return private.missing_rate_words(p_from, p_to); end if;
  return format('The %s is not known, too old, or not above 0.%s', p_whose, case when p_whose like '%free margin' then
    ' Trades that are on their way take their margin, and without a leverage of the account, or a rate of the symbol, '
    'it cannot be estimated.' else '' end);
end $$;

create function private.no_order(p_reason text, p_raw numeric, p_warnings text[],
  p_explain text[]) returns private.sizing
language plpgsql immutable set search_path = '' as $$
begin
  return row('{}'::numeric[], p_raw, p_reason, p_warnings,
    p_explain || ('Nothing is placed: ' || p_reason || '.'))::private.sizing;
end $$;

-- Size of one copy. p_side, p_price (> 0), p_sl and p_tp are the master's; p_lots is its volume or, for an increase,
-- the increase. p_rates: exchange rates for exchange_rate(). The rules must apply in this order, therefore it is longer
-- than forty lines.
create function private.size_order(
  p_copier public.copiers, p_master private.funds, p_follower private.funds,
  p_master_symbol public.account_symbols, p_follower_symbol public.account_symbols,
  p_side text, p_lots numeric, p_price numeric, p_sl numeric, p_tp numeric, p_rates jsonb
) returns private.sizing
language plpgsql stable set search_path = '' as $$
declare
  s public.account_symbols := p_follower_symbol;
  v_num numeric;           -- raw lots = v_num / v_den
  v_den numeric := 1;
  v_raw numeric;
  v_rate numeric[];        -- follower's account currency for one unit of the symbol's profit currency, as a fraction
  v_master_funds numeric;
  v_follower_funds numeric;
  v_funds_rate numeric[];
  v_stop numeric;  -- price of the follower's stop, at the master's price level; null: none that limits the loss
  v_no_stop text := 'It has no stop.';
  -- money lost per lot if the stop is hit, times v_rate[2]: quotients are computed only at the end
  v_risk numeric;
  v_limit numeric;
  v_exposure numeric;  -- value of one lot in the follower's currency, times v_rate[2]
  v_master_rate numeric[];
  v_master_exposure numeric;
  v_lots numeric;
  v_cap numeric;
  v_warnings text[] := '{}';
  v_explain text[];
  v_orders numeric[] := '{}';
  v_order numeric;
  v_par text;
begin
  v_explain := array[format('The master trades %s lots of %s.', private.plain(p_lots), p_master_symbol.name)];
  v_stop := private.stop_of_copy(p_copier, p_side, p_price, case when p_copier.reverse then p_tp else p_sl end, s);
  if p_copier.reverse then v_no_stop := 'It has no take profit, which would be the follower''s stop.'; end if;
  if v_stop <= 0 or v_stop = p_price or (v_stop < p_price) = ((p_side = 'sell') <> p_copier.reverse) then
    v_no_stop := format('The follower''s stop %s is not on the losing side of the price %s.', private.plain(v_stop),
      private.plain(p_price));
    v_stop := null;
  end if;
  v_rate := private.profit_fraction(s, p_follower.currency, p_rates);
  v_risk := abs(p_price - v_stop) * s.contract_size * v_rate[1];

  -- the raw size
  case p_copier.sizing_mode
    when 'multiplier' then
      v_num := p_lots * p_copier.sizing_value;
      v_explain := v_explain || format('Times the multiplier %s: %s lots.', private.plain(p_copier.sizing_value),
        private.plain(v_num));
    when 'percentage' then
      v_num := p_lots * p_copier.sizing_value;
      v_den := 100;
      v_explain := v_explain || format('%s %% of that: %s lots.', private.plain(p_copier.sizing_value),
        private.plain(v_num / 100));
    when 'fixed' then
      v_num := p_copier.sizing_value;
      v_explain := v_explain || format('A fixed size of %s lots is set.', private.plain(v_num));
    when 'risk_percent' then
      if v_stop is null then
        v_explain := v_explain || v_no_stop;
        return private.no_order('no_stop_loss', null, v_warnings, v_explain);
      end if;
      if p_follower.balance is null or p_follower.balance <= 0 or v_risk is null then
        v_explain := v_explain ||
          private.unknown_money_words('follower''s balance', p_follower.balance, s.profit_currency,
            p_follower.currency);
        return private.no_order('stale_funds', null, v_warnings, v_explain);
      end if;
      v_num := p_follower.balance * p_copier.sizing_value * v_rate[2];
      v_den := 100 * v_risk;
      v_explain := v_explain ||
        format('%s %% of the balance %s %s may be lost: %s. From %s to the stop %s one lot loses %s: %s lots.',
        private.plain(p_copier.sizing_value), private.plain(p_follower.balance), p_follower.currency,
          private.plain(round(v_num / (100 * v_rate[2]), 2)),
        private.plain(p_price), private.plain(v_stop), private.plain(round(v_risk / v_rate[2], 2)),
          private.plain(round(v_num / v_den, 6)));
    else
      v_master_funds := case p_copier.sizing_mode when 'balance_ratio' then p_master.balance
        when 'equity_ratio' then p_master.equity else p_master.free_margin end;
      v_follower_funds := case p_copier.sizing_mode when 'balance_ratio' then p_follower.balance
        when 'equity_ratio' then p_follower.equity else p_follower.free_margin end;
      v_funds_rate := private.exchange_fraction(p_master.currency, p_follower.currency, p_rates);
      if v_master_funds is null or v_master_funds <= 0 or v_follower_funds is null or v_follower_funds <= 0
        or v_funds_rate is null then
        v_explain := v_explain ||
          private.unknown_money_words(
            case when v_master_funds > 0 then 'follower''s ' else 'master''s ' end
              || replace(replace(p_copier.sizing_mode, '_ratio', ''), '_', ' '),
            case when v_master_funds > 0 then v_follower_funds else v_master_funds end,
            p_master.currency, p_follower.currency);
        return private.no_order('stale_funds', null, v_warnings, v_explain);
      end if;
      v_num := p_lots * p_copier.sizing_value * v_follower_funds * v_funds_rate[2];
      v_den := v_master_funds * v_funds_rate[1];
      v_explain := v_explain || format('The follower''s %s is %s %s, the master''s %s %s%s: a ratio of %s%s. %s lots.',
        replace(replace(p_copier.sizing_mode, '_ratio', ''), '_', ' '), private.plain(v_follower_funds),
          p_follower.currency,
        private.plain(v_master_funds), p_master.currency,
        case when v_funds_rate[1] <> v_funds_rate[2]
          then format(' (%s %s)', private.plain(round(v_den / v_funds_rate[2], 2)), p_follower.currency) else '' end,
        private.plain(round(v_follower_funds * v_funds_rate[2] / v_den, 6)),
        case when p_copier.sizing_value <> 1 then format(', times %s', private.plain(p_copier.sizing_value))
          else '' end,
        private.plain(round(v_num / v_den, 6)));
  end case;

  -- contract sizes
  if p_master_symbol.contract_size <> s.contract_size and p_copier.sizing_mode not in ('fixed', 'risk_percent') then
    if p_copier.contract_alignment then
      v_num := v_num * p_master_symbol.contract_size;
      v_den := v_den * s.contract_size;
      v_explain := v_explain || format('One lot is %s units at the master and %s at the follower: %s lots.',
        private.plain(p_master_symbol.contract_size),
        private.plain(s.contract_size), private.plain(round(v_num / v_den, 6)));
    else
      v_warnings := v_warnings || 'contract_sizes_differ'::text;
      v_explain := v_explain || format('Contract sizes differ %s:%s and are not aligned.',
        private.plain(p_master_symbol.contract_size),
        private.plain(s.contract_size));
    end if;
  end if;
  v_raw := v_num / v_den;

  -- caps on risk and leverage
  if p_copier.max_risk_percent is not null and v_stop is null then
    v_warnings := v_warnings || 'risk_unknown'::text;
    v_explain := v_explain || format('The limit of %s %% of risk cannot be applied: %s',
      private.plain(p_copier.max_risk_percent),
      case when v_no_stop = 'It has no stop.' then 'the trade has no stop.' else v_no_stop end);
  elsif p_copier.max_risk_percent is not null and (v_risk > 0 and p_follower.balance > 0) is not true then
    v_explain := v_explain ||
      private.unknown_money_words('follower''s balance', p_follower.balance, s.profit_currency, p_follower.currency)
      || 'The limit on risk cannot be checked.'::text;
    return private.no_order('stale_funds', v_raw, v_warnings, v_explain);
  elsif p_copier.max_risk_percent is not null then
    v_limit := p_follower.balance * p_copier.max_risk_percent / 100;
    if v_num * v_risk > v_limit * v_den * v_rate[2] then
      v_num := v_limit * v_rate[2]; v_den := v_risk; v_raw := v_num / v_den;
      v_warnings := v_warnings || 'risk_capped'::text;
      v_explain := v_explain || format('Cut to %s lots: more would risk over %s %% of the balance, which is %s %s.',
        private.plain(round(v_raw, 6)),
        private.plain(p_copier.max_risk_percent), private.plain(round(v_limit, 2)), p_follower.currency);
    end if;
  end if;
  v_exposure := s.contract_size * v_rate[1]
    * coalesce(case when (p_side = 'buy') <> p_copier.reverse then s.ask else s.bid end, p_price);
  if p_copier.max_leverage is not null then
    if v_exposure is null or p_follower.equity is null or p_follower.equity <= 0 then
      v_explain := v_explain ||
        private.unknown_money_words('follower''s equity', p_follower.equity, s.profit_currency, p_follower.currency)
        || 'The limit on leverage cannot be checked.'::text;
      return private.no_order('stale_funds', v_raw, v_warnings, v_explain);
    end if;
    if v_num * v_exposure > p_copier.max_leverage * p_follower.equity * v_den * v_rate[2] then
      v_explain := v_explain || format('%s lots are worth %s %s: %s times the equity %s, and the limit is %s.',
        private.plain(round(v_raw, 6)),
        private.plain(round(v_raw * v_exposure / v_rate[2], 2)), p_follower.currency,
        private.plain(round(v_raw * v_exposure / (p_follower.equity * v_rate[2]), 2)),
        private.plain(p_follower.equity), private.plain(p_copier.max_leverage));
      if p_copier.max_leverage_policy = 'discard' then
        return private.no_order('max_leverage', v_raw, v_warnings, v_explain);
      end if;
      v_num := p_copier.max_leverage * p_follower.equity * v_rate[2]; v_den := v_exposure; v_raw := v_num / v_den;
      v_warnings := v_warnings || 'leverage_shrunk'::text;
      v_explain := v_explain || format('Shrunk to %s lots.', private.plain(round(v_raw, 6)));
    end if;
  end if;

  -- a size that depends on the value of a stablecoin says so
  if p_copier.sizing_mode like '%ratio' and p_master.currency <> p_follower.currency
    or s.profit_currency <> p_follower.currency and (p_copier.sizing_mode = 'risk_percent'
      or p_copier.max_risk_percent is not null or p_copier.max_leverage is not null) then
    v_par := private.at_par_words(case when p_copier.sizing_mode like '%ratio' then p_master.currency
      else s.profit_currency end, p_follower.currency, p_rates);
    if v_par is not null then
      v_warnings := v_warnings || 'at_par'::text;
      v_explain := v_explain || v_par;
    end if;
  end if;

  -- floor to the step, minimum, maximum
  v_lots := div(v_num, v_den * s.lots_step) * s.lots_step;
  v_explain := v_explain || format('Rounded down to steps of %s: %s lots.', private.plain(s.lots_step),
    private.plain(v_lots));
  if v_lots < s.lots_min then
    v_explain := v_explain || format('The smallest volume of %s is %s lots.', s.name, private.plain(s.lots_min));
    if p_copier.min_policy = 'skip' then
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    if s.lots_min * v_den > p_copier.max_risk_coefficient * v_num then
      v_explain := v_explain || format('That would be %s times the wanted size, and the limit is %s times.',
        coalesce(private.plain(round(s.lots_min * v_den / nullif(v_num, 0), 1)), 'infinitely many'),
          private.plain(p_copier.max_risk_coefficient));
      return private.no_order('risk_coefficient', v_raw, v_warnings, v_explain);
    end if;
    -- the limits on risk and leverage take precedence over the smallest volume
    if s.lots_min * v_exposure > p_copier.max_leverage * p_follower.equity * v_rate[2] then
      v_explain := v_explain || format('It would be more than %s times the equity.',
        private.plain(p_copier.max_leverage));
      return private.no_order('max_leverage', v_raw, v_warnings, v_explain);
    end if;
    if p_copier.max_risk_percent is not null
      and s.lots_min * v_risk * 100 > p_follower.balance * p_copier.max_risk_percent * v_rate[2] then
      v_explain := v_explain || format('It would risk more than %s %% of the balance.',
        private.plain(p_copier.max_risk_percent));
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    v_lots := s.lots_min;
    v_warnings := v_warnings || 'forced_min'::text;
    v_explain := v_explain || format('Raised to it: that is %s times the wanted size.',
      private.plain(round(s.lots_min * v_den / v_num, 1)));
  end if;
  if p_copier.max_lots < v_lots then
    v_lots := div(p_copier.max_lots, s.lots_step) * s.lots_step;
    if v_lots < s.lots_min then
      v_explain := v_explain || format('The copier''s maximum of %s lots is below the smallest volume %s.',
        private.plain(p_copier.max_lots), private.plain(s.lots_min));
      return private.no_order('below_min', v_raw, v_warnings, v_explain);
    end if;
    v_warnings := v_warnings || 'capped'::text;
    v_explain := v_explain || format('Cut to the copier''s maximum: %s lots.', private.plain(v_lots));
  end if;
  v_cap := div(s.lots_max, s.lots_step) * s.lots_step;
  if v_lots > v_cap and v_cap < s.lots_min then
    v_explain := v_explain || format('No step of %s lies between the smallest volume %s and the largest %s.',
      private.plain(s.lots_step),
      private.plain(s.lots_min), private.plain(s.lots_max));
    return private.no_order('below_min', v_raw, v_warnings, v_explain);
  end if;
  if v_lots > v_cap and p_copier.max_policy = 'cap' then
    v_lots := v_cap;
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut to the largest volume of one order: %s lots.', private.plain(v_lots));
  end if;

  -- exposure compared with the master's own
  v_master_rate := private.profit_fraction(p_master_symbol, p_master.currency, p_rates);
  v_master_exposure := p_lots * p_master_symbol.contract_size * v_master_rate[1]
    * coalesce(case p_side when 'buy' then p_master_symbol.ask else p_master_symbol.bid end, p_price);
  if p_copier.sanity_factor is not null and (p_master.equity > 0 and p_follower.equity > 0 and v_exposure > 0
    and v_master_exposure > 0) is not true then
    v_warnings := v_warnings || 'sanity_unchecked'::text;
    v_explain := v_explain ||
      'The exposure could not be compared with the master''s own: an equity or exchange rate is not known.'::text
      || case when v_rate is null then private.missing_rate_words(s.profit_currency, p_follower.currency)
        when v_master_rate is null then private.missing_rate_words(p_master_symbol.profit_currency,
          p_master.currency) end;
  elsif v_lots * v_exposure * v_master_rate[2] * p_master.equity > p_copier.sanity_factor * v_master_exposure *
    v_rate[2] * p_follower.equity then
    v_explain := v_explain ||
      format('The trade would be worth %s %% of the equity, the master''s own %s %%: more than %s times as much.',
      private.plain(round(100 * v_lots * v_exposure / (p_follower.equity * v_rate[2]), 1)),
      private.plain(round(100 * v_master_exposure / (p_master.equity * v_master_rate[2]), 1)),
      private.plain(p_copier.sanity_factor));
    return private.no_order('sanity', v_raw, v_warnings, v_explain);
  end if;

  -- one order, or several
  if v_lots > 100 * v_cap then
    v_lots := 100 * v_cap;
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut to %s lots: a copy is split into 100 orders of %s at most.',
      private.plain(v_lots), private.plain(v_cap));
  end if;
  while v_lots > v_cap loop
    -- the rest must be at least one smallest order
    v_order := least(v_cap, div(v_lots - s.lots_min, s.lots_step) * s.lots_step);
    exit when v_order < s.lots_min;
    v_orders := v_orders || v_order;
    v_lots := v_lots - v_order;
  end loop;
  if v_lots > v_cap then
    v_warnings := array_remove(v_warnings, 'capped') || 'capped'::text;
    v_explain := v_explain || format('Cut by %s lots, which are too few for another order.',
      private.plain(v_lots - v_cap));
  end if;
  v_orders := v_orders || least(v_lots, v_cap);
  if cardinality(v_orders) > 1 then
    v_warnings := v_warnings || 'split'::text;
    v_explain := v_explain || format('Split into %s orders, for one may not exceed %s.', cardinality(v_orders),
      private.plain(v_cap));
  end if;
  return row(v_orders, v_raw, null, v_warnings, v_explain)::private.sizing;
end $$;

-- planner/balance_operation.sql
-- Balance operations move what protection rules measure from, so that money paid in or out is neither profit nor loss.

-- The deposits and withdrawals of a report that are of the documented form; everything else of it is left out.
create function private.readable_operations(p_operations jsonb, p_at timestamptz)
returns table (number text, kind text, amount numeric, at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  return query
    select distinct on (e ->> 'number') e ->> 'number', e ->> 'kind',
      case e ->> 'kind' when 'withdrawal' then -abs((e ->> 'amount')::numeric) else abs((e ->> 'amount')::numeric) end,
      coalesce(case when pg_input_is_valid(e ->> 'at', 'timestamptz') then least((e ->> 'at')::timestamptz, p_at) end,
        p_at)
    from jsonb_array_elements(p_operations) e
    where jsonb_typeof(e) = 'object' and e ->> 'kind' in ('deposit', 'withdrawal')
      and length(e ->> 'number') between 1 and 64 and private.is_number(e -> 'amount')
      and abs((case when private.is_number(e -> 'amount') then e ->> 'amount' end)::numeric) between 1e-8 and 1e14
    order by e ->> 'number';
end $$;

-- A rule's figures after an operation of this amount.
create function private.move_rule(r public.protection_rules, p_amount numeric, p_number text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.protection_rules x set day_start_equity = x.day_start_equity + p_amount,
    high_water_mark = x.high_water_mark + p_amount
  where x.id = r.id;
  perform private.write_audit('moved_by_balance_operation', 'protection_rules', r.id::text, r.user_id,
    jsonb_build_object('number', p_number, 'amount', p_amount,
      'day_start_equity', jsonb_build_array(r.day_start_equity, r.day_start_equity + p_amount),
      'high_water_mark', jsonb_build_array(r.high_water_mark, r.high_water_mark + p_amount)));
end $$;

-- Books the operations of a report that are not booked yet. By contract they are in the report's own figures and in no
-- earlier ones; so everything that was measured before them moves by their amount. One that is told late moves only
-- what is older than itself. Returns by how much the account's last figures must be moved to compare with the new
-- ones. The caller holds the plan locks of the account and its neighbours and no lock on its row.
create function private.book_balance_operations(p_account uuid, p_operations jsonb, p_at timestamptz) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  o record;
  r public.protection_rules;
  v_slack interval := interval '10 s';  -- a broker's times may be whole seconds, or of another clock
  v_sum numeric := 0;
begin
  select * into a from public.trading_accounts x where x.id = p_account;
  for o in select * from private.readable_operations(p_operations, p_at) x order by x.at, x.number loop
    insert into public.balance_operations (account_id, number, user_id, kind, amount, made_at, counted)
    values (p_account, o.number, a.user_id, o.kind, o.amount, o.at, a.funds_at is not null)
    on conflict (account_id, number) do nothing;
    -- what is told with the very first figures is the account's history
    continue when not found or a.funds_at is null;
    if o.at >= a.funds_at - v_slack then v_sum := v_sum + o.amount; end if;
    update public.trading_accounts x set initial_balance = x.initial_balance + o.amount,
      initial_moved = x.initial_moved + o.amount
    where x.id = p_account and x.initial_balance is not null
      and o.at >= coalesce(x.initial_balance_at, '-infinity') - v_slack;
    for r in
      select * from public.protection_rules x
      where x.account_id = p_account and not x.count_balance_operations
        and o.at >= coalesce(x.day_start_at, '-infinity') - v_slack
        and coalesce(x.day_start_equity, x.high_water_mark) is not null
      order by x.id for no key update
    loop
      perform private.move_rule(r, o.amount, o.number);
    end loop;
  end loop;
  return v_sum;
end $$;

-- The operations of a report, if it tells any that are not booked yet: then by how much the last figures move.
create function private.take_balance_operations(p_account uuid, p_session bigint, p_vps uuid, p_operations jsonb,
  p_at timestamptz) returns numeric
language plpgsql security definer set search_path = '' as $$
begin
  if jsonb_typeof(p_operations) <> 'array' or jsonb_array_length(p_operations) > 1000 then
    raise exception using errcode = 'TC001', message = 'balance_operations: expected an array of at most 1000 entries';
  end if;
  if not exists (select 1 from public.trading_accounts a where a.id = p_account and a.session = p_session
      and a.session_vps_id = p_vps)
    or not exists (select 1 from jsonb_array_elements(p_operations) e where not exists (
      select 1 from public.balance_operations b where b.account_id = p_account and b.number = e ->> 'number')) then
    return 0;
  end if;
  perform private.lock_accounts(private.with_neighbours(p_account));
  return private.book_balance_operations(p_account, p_operations, p_at);
end $$;

-- planner/candidate.sql
-- Pairs of a copier and a master position that wait for a decision, and what a decision needs to know of them.

-- Whether an account can be traded now; null: yes, else the reason.
create function private.unreachable_reason(p_account public.trading_accounts, p_lease_ends timestamptz,
  p_now timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_account.removed_at is not null then 'account_removed'
    when p_account.status = 'halted' then 'account_halted'
    when p_lease_ends is null then 'follower_unassigned'
    when p_lease_ends <= p_now or p_account.status = 'pending' then 'follower_offline' end;
end $$;

-- An account's money for sizing; unknown if it was measured before p_since.
create function private.fresh_funds(p_account public.trading_accounts, p_since timestamptz) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  if p_account.funds_at > p_since then
    return row(p_account.currency, p_account.balance, p_account.equity, p_account.free_margin)::private.funds;
  end if;
  return row(p_account.currency, null, null, null)::private.funds;
end $$;

-- The type of a copied pending order; under reverse a buy limit becomes a sell stop.
create function private.copied_order_type(p_type text, p_reverse boolean) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when p_type is null then 'market' when not p_reverse then p_type when p_type = 'limit'
    then 'stop' else 'limit' end;
end $$;

-- Pairs (copier, master position) that wait for a decision: new, flipped, increased, or requested by the user.
-- p_copiers null: all copiers of the masters. p_kinds null: the order and the position of each number. The
-- old generation of a flip must have ended or have its close in flight.
-- p_asked: exactly these positions are requested, however old: 'existing' when a copier starts, 'resync' by its user. A
-- requested position that was decided before and is not held gets a new generation. asked_lots: the lots that a live
-- copy must get because its user requested them.
create function private.undecided(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_asked text default null,
  p_kinds text[] default null)
returns table (copier_id uuid, master_account_id uuid, ticket text, position_kind text, kind text,
  link_id bigint, generation integer,
  delta numeric, close_step bigint,
  asked_lots numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select c.id, m.account_id, m.ticket, m.kind,
    case when l.id is null or p_asked is not null then 'new' when l.master_side <> m.side
      then 'flip' else 'increase' end,
    l.id, coalesce(l.generation, 0) + 1,
    case when l.id is null or p_asked is not null or l.master_side <> m.side or l.resync_lots is not null then m.lots
      else m.lots - l.seen_master_lots end,
    case when l.state = 'live' then f.close_step end, l.resync_lots
  from (select distinct u.master, u.ticket, u.kind
    from unnest(p_masters, p_tickets, p_kinds) as u (master, ticket, kind)) x
  join public.positions m on m.account_id = x.master and m.ticket = x.ticket and m.lots > 0
    and (x.kind is null or m.kind = x.kind)
  join public.copiers c on c.master_account_id = x.master and c.removed_at is null
    and (p_copiers is null or c.id = any (p_copiers))
  join public.trading_accounts fa on fa.id = c.follower_account_id
  left join lateral (
    select pl.* from public.position_links pl
    where pl.master_account_id = x.master and pl.master_ticket = x.ticket and pl.master_kind = m.kind
      and pl.copier_id = c.id
    order by pl.generation desc limit 1
  ) l on true
  left join lateral (
    select count(*) as executions, max(q.step_id) filter (where q.action in ('close', 'cancel')) as close_step
    from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
  ) f on true
  where case
    when p_asked is not null then (l.id is null or l.state = 'ended' and f.executions = 0)
      and (m.kind = 'position' or c.copy_pending and fa.mode = 'hedging')
    -- what was there before the copier is not copied, except the fill of an order if orders are copied at their fill
    when l.id is null and c.copy_pending and fa.mode = 'hedging' then not m.existing and m.first_seen_at >= c.started_at
    when l.id is null then m.kind = 'position'
      and (not m.existing and m.first_seen_at >= c.started_at or coalesce(m.filled_at >= c.started_at, false))
    when l.master_side <> m.side then m.kind = 'position'
      and (l.state = 'ended' or f.close_step is not null or fa.mode = 'netting')
    else l.state = 'live' and m.kind = 'position' and (m.lots > l.seen_master_lots or l.resync_lots is not null)
      and f.executions = 0 and l.wanted_lots is null
      -- a deal may be its reduction, whichever link it is queued for
      and l.base_lots is not null and (fa.mode = 'hedging' or not exists (
        select 1 from public.trade_execution_queue q where q.account_id = fa.id and q.symbol = l.symbol and q.in_flight
          and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text)))) end;
end $$;

-- The copier, set to size exactly the lots that its user requested; limits still apply.
create function private.sized_by(p_copier public.copiers, p_lots numeric) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sizing_mode := 'fixed';
  p_copier.sizing_value := p_lots;
  return p_copier;
end $$;

-- The copier, set to size this many times as much: the factor of a mapping.
create function private.times_factor(p_copier public.copiers, p_factor numeric) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sizing_value := p_copier.sizing_value * p_factor;
  return p_copier;
end $$;

-- The price that slippage is measured from when a user requests a copy long after the master's open: the present one.
create function private.entry_price(p_symbol public.account_symbols, p_side text, p_master_price numeric,
  p_now timestamptz) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  if p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s') then
    return coalesce(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end, p_master_price);
  end if;
  return null;  -- no fresh quote: the agent measures from the price it finds
end $$;

-- The stop of an increase if the copier sets its own stops. The stop is measured from the copy's average price, which
-- the increase moves to between the present one and its own price. The farther of both stops, so that no risk is
-- missed.
create function private.stop_of_increase(
  p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols, p_side text, p_link bigint,
    p_now timestamptz
) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_held numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, private.open_price(p_link), p_now)).sl;
  v_new numeric := (private.first_levels(p_copier, p_master, p_symbol, p_side, null, p_now)).sl;
begin
  return case p_side when 'buy' then least(v_held, v_new) else greatest(v_held, v_new) end;
end $$;

-- The copier, with the stop known: the master's level that it is sized with is the stop.
create function private.at_stop(p_copier public.copiers) returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  p_copier.sl_mode := 'price';
  p_copier.max_sl_points := null;
  return p_copier;
end $$;

-- Why no open may be made in this symbol, as far as the symbol itself says it; null: it may.
create function private.symbol_refusal(p_symbol public.account_symbols, p_side text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_symbol.contract_size is null or p_symbol.lots_step is null or p_symbol.lots_min is null
      or p_symbol.lots_max is null then 'symbol_unmapped'
    when p_symbol.trade_mode in ('close_only', 'disabled')
      or p_symbol.trade_mode = 'long_only' and p_side = 'sell'
      or p_symbol.trade_mode = 'short_only' and p_side = 'buy' then 'trade_disabled'
  end;
end $$;

-- Why a requested position is not opened now, or null. A position of unknown state is not open: a master that nobody
-- watches may have closed it.
create function private.asked_too_late(p_asked text, p_copier public.copiers, p_position public.positions,
  p_master public.trading_accounts,
  p_symbol public.account_symbols, p_side text, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_master.status <> 'connected' or not exists (
    select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
    where a.account_id = p_master.id and v.retired_at is null and v.lease_expires_at > p_now) then
    return 'master_offline';
  end if;
  if p_asked = 'existing' and p_copier.copy_existing = 'near' and p_position.kind = 'position' then
    if not private.quote_is_fresh(p_symbol, p_now) then return 'no_quote'; end if;
    if abs(case p_side when 'buy' then p_symbol.ask else p_symbol.bid end - p_position.price)
      > p_copier.copy_existing_points * power(10::numeric, -p_symbol.digits) then
      return 'price_moved';
    end if;
  end if;
  return null;
end $$;

create function private.quote_is_fresh(p_symbol public.account_symbols, p_now timestamptz) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce(p_symbol.bid > 0 and p_symbol.ask > 0
    and p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s'), false);
end $$;

-- planner/copy_symbol.sql
-- Explanations for a symbol that could not be copied: which symbols the follower has instead.

-- Symbols of the follower that might be the master's, likeliest first: [{"name", "contract_size", "profit_currency",
-- "why_not"}]. Finding similar names means reading the whole list, which planning does only for a refusal.
create function private.symbol_alternatives(p_follower public.trading_accounts,
  p_master public.account_symbols) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_names text[] := private.names_of(p_master);
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', x.name, 'contract_size', trim_scale(x.contract_size)::text,
      'profit_currency', x.profit_currency, 'why_not', x.misfit) order by x.rank, x.name), '[]')
    from (
      select s.name, s.contract_size, s.profit_currency, coalesce(c.rank, 5) as rank,
        case when c.name is null then coalesce(private.misfit(p_master, s), 'its name is only similar')
          else c.misfit end as misfit
      from public.account_symbols s
      left join private.symbol_candidates(p_follower, p_master) c on c.name = s.name
      where s.account_id = p_follower.id
        and (c.name is not null or exists (select 1 from unnest(v_names) n where strpos(upper(s.name), n) > 0))
      order by 4, s.name limit 8
    ) x);
end $$;

-- Why a copier has no symbol for the master's, as a sentence: the detail of the outcome symbol_unmapped.
create function private.unmapped_detail(p_copier uuid, p_symbol text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_mapped text;
  v_others jsonb;
begin
  select s.* into v_master from public.copiers c
  join public.account_symbols s on s.account_id = c.master_account_id and s.name = p_symbol
  where c.id = p_copier;
  if v_master.name is null then
    return format('The master''s agent has not yet said what %s is (contract size, currency).', p_symbol);
  end if;
  v_mapped := (private.mapping_of(p_copier, p_symbol)).follower_symbol;
  select a.* into v_follower from public.copiers c join public.trading_accounts a on a.id = c.follower_account_id
  where c.id = p_copier;
  v_others := private.symbol_alternatives(v_follower, v_master);
  if v_mapped is null and not v_follower.symbols_complete then
    return format('The follower''s list of symbols is not told completely yet, and has no %s so far: map it, or resync '
      'the copier when it is.', p_symbol);
  end if;
  return case when v_mapped is null then ''
    else format('%s is mapped to %s, which the follower does not have. ', p_symbol, v_mapped) end || case
    when v_others = '[]'
      then format('The follower has nothing like %s: map it by hand if it has it under another name.', p_symbol)
    else format('For %s the follower has: %s. Choose one of them in the copier''s symbols.', p_symbol, (
      select string_agg(format('%s (%s)', e ->> 'name', coalesce(e ->> 'why_not', 'it fits, and so does another')),
        ', ')
      from jsonb_array_elements(v_others) e)) end;
end $$;

-- planner/decision.sql
-- Decisions about opens and increases: made once per copier, master position, generation and increase, and final.

-- Decides one position after the other, in the given order.
create function private.decide_in_turn(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz,
  p_asked text, p_kinds text[]) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_one record;
begin
  for v_one in
    select u.master, u.ticket, m.kind
    from unnest(p_masters, p_tickets, p_kinds) with ordinality as u (master, ticket, kind, n)
    join public.positions m on m.account_id = u.master and m.ticket = u.ticket and m.lots > 0
      and (u.kind is null or m.kind = u.kind)
    order by u.n, m.first_seen_at, m.kind
  loop
    v_new := v_new || coalesce(private.decide_kinds(array[v_one.master], array[v_one.ticket], array[v_one.kind],
      p_copiers, p_now, p_asked), '{}');
  end loop;
  return v_new;
end $$;

-- Decides every waiting pair, for any number of followers in one statement, and queues the orders of hedging followers.
-- What a netting follower must open is latched as wanted_lots of its link, for planner/net_plan.sql. Returns the new
-- executions. p_asked, p_kinds: see private.undecided; the age of a requested copy is measured from the request. It is
-- one statement, therefore longer than forty lines.
create function private.decide_kinds(p_masters uuid[], p_tickets text[], p_kinds text[], p_copiers uuid[],
  p_now timestamptz, p_asked text) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_fresh_since timestamptz := p_now - private.setting_s('funds_max_age_s');
  v_quoted_since timestamptz := p_now - private.setting_s('symbol_quote_max_age_s');
  v_drafts private.execution_draft[];
  v_refusals private.outcome[];
  v_waits private.symbol_waits[];
  v_settled private.symbol_waits[];
  v_trading text := private.trading_state();
  v_quiet boolean := private.any_quiet(p_now);
begin
  if cardinality(p_tickets) > 1 and private.limits_count(p_masters) then  -- each counts against the limits of the next
    return private.decide_in_turn(p_masters, p_tickets, p_copiers, p_now, p_asked, p_kinds);
  end if;
  -- The stages:
  --   pairs    what waits for a decision, with its accounts, symbols and side
  --   checked  why it is refused before it is sized (verdict)
  --   sized    its orders and levels
  --   decided  its reason, or none; the numbers of its step and link
  --   made     the links of new pairs and flips
  --   grown    the links that increase
  --   drafts   the executions of hedging followers
  --   refused  the outcomes of all others
  --   waiting  the pairs that need a symbol or quote that is not told yet (planner/symbol_wait.sql)
  with pairs as (
    select
      pair.kind,
      pair.link_id,
      pair.generation,
      pair.delta,
      pair.close_step,
      pair.asked_lots,
      copier,
      opened,
      master,
      follower,
      masters_symbol,
      private.opening_blocked_reason(v_trading, follower.copy_state, follower.copy_state_reason, copier.mode,
        copier.removal) as blocked,
      private.unreachable_reason(follower, vps.lease_expires_at, p_now) as unreachable,
      private.filter_refusal(copier, opened, (private.fresh_funds(follower, v_fresh_since)).equity,
        pair.kind <> 'increase', case pair.kind when 'flip' then pair.link_id end, p_now) as refusal,
      -- the user's mapping; else the same name with the same figures; else copier/symbol.sql decides
      case
        when masters_symbol.contract_size is null then null::public.account_symbols
        when mapping.copier_id is not null and named.name is null then
          private.symbol_named(follower.id, mapping.follower_symbol)
        when mapping.copier_id is not null
          or named.contract_size = masters_symbol.contract_size
          and named.profit_currency = masters_symbol.profit_currency
          and named.trade_mode not in ('close_only', 'disabled') then named
        else private.choose_symbol(follower, masters_symbol)
      end as symbol,
      mapping.copier_id is not null as mapped,
      mapping.mode as mapping_mode,
      mapping.lots_factor,
      case when (opened.side = 'buy') = copier.reverse then 'sell' else 'buy' end as side,
      case
        when wait.copier_id is not null and wait.asked is not distinct from p_asked then wait.news_at
        when p_asked is null and pair.asked_lots is null then opened.unseen_at
        else p_now
      end as news_at,
      wait,
      coalesce(wait.event_id, opened.last_event_id) as event_id,
      mapping.follower_symbol as mapped_to,
      coalesce(p_asked = 'resync', false) or pair.asked_lots is not null as by_user
    from private.undecided(p_masters, p_tickets, p_copiers, p_asked, p_kinds) pair
    join public.copiers copier on copier.id = pair.copier_id
    join public.positions opened on opened.account_id = pair.master_account_id and opened.ticket = pair.ticket
      and opened.kind = pair.position_kind
    join public.trading_accounts master on master.id = copier.master_account_id
    join public.trading_accounts follower on follower.id = copier.follower_account_id
    left join public.account_symbols masters_symbol on masters_symbol.account_id = master.id
      and masters_symbol.name = opened.symbol
    left join public.symbol_mappings mapping on mapping.copier_id = copier.id
      and mapping.master_key = upper(btrim(opened.symbol))
    left join public.account_symbols named on named.account_id = follower.id
      and named.name = coalesce(mapping.follower_symbol, opened.symbol)
    left join private.symbol_waits wait on wait.copier_id = copier.id and wait.kind = opened.kind
      and wait.ticket = opened.ticket and wait.side = opened.side
    left join public.account_vps_assignments assignment on assignment.account_id = follower.id
    left join public.vps_instances vps on vps.id = assignment.vps_id and vps.retired_at is null
    offset 0  -- here and below: a fence, so that each row's functions are called once, without storing the wide rows
  ), checked as (
    select
      pair.*,
      coalesce(
        pair.blocked,
        case when private.must_be_flat(pair.follower, p_now) then 'flat_by' end,
        case when pair.news_at < p_now - make_interval(secs => (pair.copier).max_age_ms / 1000.0)
          then coalesce((pair.wait).ends_as, 'too_old') end,
        pair.unreachable,
        pair.refusal,
        case when v_quiet and private.quiet_until(pair.follower, pair.symbol, (pair.opened).symbol, p_now) is not null
          then 'news_window' end,
        case when pair.mapping_mode <> 'on' then 'symbol_off' end,
        case when (pair.symbol).contract_size is null then
          private.loading_refusal(pair.master, pair.masters_symbol, pair.follower) end,
        private.symbol_refusal(pair.symbol, pair.side),
        case when (pair.symbol).name <> (pair.opened).symbol and not pair.mapped and pair.kind <> 'increase' then
          private.proof_refusal(pair.masters_symbol, pair.symbol, (pair.opened).price, p_now) end,
        case when p_asked is not null or pair.by_user then
          private.asked_too_late(coalesce(p_asked, 'resync'), pair.copier, pair.opened, pair.master, pair.symbol,
            pair.side, p_now)
        end) as verdict,
      pair.kind = 'increase' and (pair.opened).kind = 'position'
        and ((pair.copier).sl_mode in ('distance', 'fixed') or (pair.copier).max_sl_points is not null) as own_stop
    from pairs pair
    offset 0
  ), sized as (
    select
      pair.*,
      case when pair.verdict is null then
        private.size_order(
          case when pair.own_stop then private.at_stop(sizing.copier) else sizing.copier end,
          case (pair.copier).sizing_mode when 'free_margin_ratio'
            then private.funds_left(pair.copier, pair.master, pair.opened, v_fresh_since, p_now)
            else private.fresh_funds(pair.master, v_fresh_since) end,
          case (pair.copier).sizing_mode when 'free_margin_ratio'
            then private.funds_left(pair.copier, pair.follower, pair.opened, v_fresh_since, p_now)
            else private.fresh_funds(pair.follower, v_fresh_since) end,
          case when (pair.masters_symbol).quoted_at > v_quoted_since then pair.masters_symbol
            else private.unquoted(pair.masters_symbol) end,
          case when (pair.symbol).quoted_at > v_quoted_since then pair.symbol else private.unquoted(pair.symbol) end,
          (pair.opened).side,
          pair.delta,
          -- what is bought today loses from today's price to the stop, wherever the master began; a stop by distance
          -- goes along with the price
          case
            when (pair.kind = 'increase' or p_asked is not null and (pair.copier).sl_mode <> 'distance')
              and (pair.opened).kind = 'position'
              then coalesce(private.entry_price(pair.symbol, pair.side, (pair.opened).price, p_now),
                (pair.opened).price)
            else (pair.opened).price
          end,
          case
            when pair.own_stop and not (pair.copier).reverse then
              private.stop_of_increase(pair.copier, pair.opened, pair.symbol, pair.side, pair.link_id, p_now)
            else (pair.opened).sl
          end,
          case
            when pair.own_stop and (pair.copier).reverse then
              private.stop_of_increase(pair.copier, pair.opened, pair.symbol, pair.side, pair.link_id, p_now)
            else (pair.opened).tp
          end,
          case
            when (pair.master).currency = (pair.follower).currency
              and (pair.symbol).profit_currency = (pair.follower).currency
              and (pair.masters_symbol).profit_currency = (pair.master).currency then '{}'::jsonb
            else private.quoted_rates(array[(pair.follower).id, (pair.master).id],
              array[(pair.master).currency, (pair.follower).currency, (pair.masters_symbol).profit_currency,
                (pair.symbol).profit_currency, private.quoted_currency((pair.masters_symbol).name),
                private.quoted_currency((pair.symbol).name)])
          end)
      end as size,
      case
        when pair.verdict is not null then null
        when (pair.copier).sl_mode = 'price' and (pair.copier).tp_mode = 'price'
          and (pair.copier).max_sl_points is null
          and (pair.symbol).stops_level_points = 0 and (pair.symbol).freeze_level_points = 0
          then private.price_levels(
            case when (pair.copier).reverse then (pair.opened).tp else (pair.opened).sl end,
            case when (pair.copier).reverse then (pair.opened).sl else (pair.opened).tp end,
            (pair.symbol).tick_size)
        else private.first_levels(pair.copier, pair.opened, pair.symbol, pair.side,
          case when pair.kind = 'increase' then private.open_price(pair.link_id) end, p_now)
      end as levels,
      case when pair.verdict is null and (pair.copier).max_open_lots is not null then
        (private.copier_load(pair.copier, case pair.kind when 'flip' then pair.link_id end, p_now)).lots
      end as held_lots,
      private.on_tick((pair.opened).price, (pair.symbol).tick_size) as order_price
    from checked pair
    cross join lateral (
      select case
        when pair.asked_lots is not null then private.sized_by(pair.copier, pair.asked_lots)
        when (pair.copier).lots_jitter_percent > 0 then
          private.jittered(pair.copier, (pair.opened).ticket, pair.generation)
        else pair.copier
      end as copier
    ) drawn
    cross join lateral (
      select case when pair.lots_factor <> 1 and pair.asked_lots is null
        then private.times_factor(drawn.copier, pair.lots_factor) else drawn.copier end as copier
    ) sizing
    offset 0
  ), decided as materialized (
    select
      pair.*,
      coalesce(
        pair.verdict,
        (pair.size).reason,
        case when pair.held_lots + (select sum(lots) from unnest((pair.size).orders) lots)
          > (pair.copier).max_open_lots then 'max_open_lots' end) as reason,
      (pair.follower).mode = 'netting' as netting,
      nextval('public.trade_execution_queue_id_seq') as step_id,
      case pair.kind when 'increase' then pair.link_id else nextval('public.position_links_id_seq') end as its_link
    from sized pair
  ), made as (
    insert into public.position_links (
      id,
      user_id,
      copier_id,
      master_account_id,
      follower_account_id,
      master_ticket,
      master_kind,
      master_side,
      generation,
      symbol,
      side,
      state,
      reason,
      seen_master_lots,
      sized_master_lots,
      sized_lots,
      wanted_lots,
      wanted_until,
      asked_price,
      asked_sl,
      asked_tp,
      asked_expires_at,
      order_due_at,
      warnings,
      event_id,
      created_at,
      ended_at)
    overriding system value
    select
      pair.its_link,
      (pair.copier).user_id,
      (pair.copier).id,
      (pair.copier).master_account_id,
      (pair.copier).follower_account_id,
      (pair.opened).ticket,
      (pair.opened).kind,
      (pair.opened).side,
      pair.generation,
      (pair.symbol).name,
      pair.side,
      case when pair.reason is null then 'live' else 'ended' end,
      pair.reason,
      (pair.opened).lots,
      (pair.opened).lots,
      (select sum(lots) from unnest((pair.size).orders) lots),
      case when pair.reason is null and pair.netting then
        (select sum(lots) from unnest((pair.size).orders) lots) end,
      case when pair.reason is null and pair.netting then
        pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) end,
      case when (pair.opened).kind = 'order' then pair.order_price end,
      (pair.levels).sl,
      (pair.levels).tp,
      case when (pair.opened).kind = 'order' then (pair.opened).expires_at end,
      case when (pair.opened).kind = 'order' then (pair.opened).expires_at + interval '1 s' end,
      coalesce((pair.size).warnings || (pair.levels).warnings, '{}'),
      pair.event_id,
      p_now,
      case when pair.reason is not null then p_now end
    from decided pair
    where pair.kind in ('new', 'flip') and pair.reason is distinct from 'symbol_loading'
  ), grown as (
    update public.position_links link set
      seen_master_lots = (pair.opened).lots,
      reason = pair.reason,
      resync_lots = null,
      sized_lots = case
        when pair.reason is null and pair.asked_lots is null then link.sized_lots * link.seen_master_lots
          + link.sized_master_lots * (select sum(lots) from unnest((pair.size).orders) lots)
        else link.sized_lots
      end,
      sized_master_lots = case
        when pair.reason is null and pair.asked_lots is null then link.sized_master_lots * (pair.opened).lots
        else link.sized_master_lots
      end,
      asked_sl = case when pair.reason is null then (pair.levels).sl else link.asked_sl end,
      asked_tp = case when pair.reason is null then (pair.levels).tp else link.asked_tp end,
      asked_unknown = pair.reason is not null and link.asked_unknown,
      wanted_lots = case when pair.reason is null and pair.netting then
        (select sum(lots) from unnest((pair.size).orders) lots) end,
      wanted_until = case when pair.reason is null and pair.netting then
        pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) end,
      -- a skipped increase rebases the pair
      base_master_lots = case when pair.reason is null then link.base_master_lots else (pair.opened).lots end,
      base_lots = case
        when pair.reason is null then link.base_lots
        else coalesce((
          select sum(leg.lots) from private.link_legs leg where leg.link_id = link.id and leg.kind = 'position'), 0)
      end
    from decided pair
    where pair.kind = 'increase' and link.id = pair.link_id and pair.reason is distinct from 'symbol_loading'
      and link.id = any (array(select i.link_id from decided i where i.kind = 'increase'))
  ), drafts as (
    select
      pair.step_id,
      case when pair.kind = 'flip' then pair.close_step end as after_id,
      pair.its_link as link_id,
      pair.its_link::text as lane,
      (pair.copier).id as copier_id,
      (pair.copier).user_id,
      (pair.follower).id as account_id,
      (pair.master).id as master_account_id,
      pair.event_id,
      case
        when pair.kind = 'increase' then 'increase'
        when (pair.opened).kind = 'order' then 'place'
        else 'open'
      end as action,
      (pair.symbol).name as symbol,
      pair.side,
      private.copied_order_type((pair.opened).order_type, (pair.copier).reverse) as order_type,
      an_order.lots,
      null::numeric as target_lots,
      null::text as ticket,
      case when (pair.opened).kind = 'order' then pair.order_price end as price,
      (pair.levels).sent_sl as sl,
      (pair.levels).sent_tp as tp,
      (pair.copier).max_slippage_points,
      case
        when pair.by_user then private.entry_price(pair.symbol, pair.side, (pair.opened).price, p_now)
        else (pair.opened).price
      end as master_price,
      (pair.opened).lots as master_lots,
      (pair.opened).expires_at,
      case
        when (pair.copier).comment like '%{%' then private.copy_comment(pair.copier, (pair.opened).ticket)
        else (pair.copier).comment
      end as comment,
      null::jsonb as parts,
      (pair.size).warnings || (pair.levels).warnings as warnings,
      p_now + make_interval(secs => (pair.copier).retry_window_s) as retry_until,
      pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) as send_until,
      case when pair.by_user then p_now else (pair.opened).detected_at end as detected_at
    from decided pair
    cross join lateral unnest((pair.size).orders) as an_order (lots)
    where pair.reason is null and not pair.netting
  ), refused as (  -- or, of a netting follower, left to its symbol's next deal
    select
      pair.event_id,
      (pair.copier).id as copier_id,
      (pair.copier).user_id,
      case when pair.reason is distinct from 'symbol_loading' then pair.its_link else pair.link_id end as link_id,
      null::bigint as execution_id,
      coalesce(pair.reason, 'coalesced') as reason,
      case
        when pair.reason = 'symbol_loading' then
          private.loading_words(coalesce(pair.mapped_to, (pair.opened).symbol), pair.masters_symbol, pair.symbol)
        when pair.reason = 'symbol_unmapped' and (pair.symbol).name is not null then
          private.told_late_words(pair.copier, (pair.symbol).name)
        when pair.reason = 'symbol_unmapped' then private.unmapped_detail((pair.copier).id, (pair.opened).symbol)
        when pair.reason = 'symbol_unproven' then
          coalesce(private.price_doubt(pair.masters_symbol, pair.symbol, (pair.opened).price, p_now)
              || ' Choose it in the copier''s symbols if it is right.',
            private.told_late_words(pair.copier, 'The quote of ' || (pair.symbol).name))
        when pair.verdict is not null then
          private.refusal_words(pair.copier, pair.opened, pair.follower, pair.symbol, pair.reason, p_now)
        when pair.reason = 'max_open_lots' then
          format('max_open_lots is %s: %s lots are held or under way, and this would be %s more.',
            trim_scale((pair.copier).max_open_lots), trim_scale(pair.held_lots),
            (select trim_scale(sum(lots)) from unnest((pair.size).orders) lots))
        when pair.reason is not null then array_to_string((pair.size).explain, ' ')
      end as detail
    from decided pair
    where (pair.reason is not null or pair.netting) and pair.event_id is not null
  ), waiting as (
    select
      (pair.copier).id as copier_id,
      (pair.master).id as master_account_id,
      (pair.follower).id as follower_account_id,
      (pair.opened).kind,
      (pair.opened).ticket,
      (pair.opened).side,
      pair.event_id,
      p_asked as asked,
      pair.news_at,
      pair.news_at + make_interval(secs => (pair.copier).max_age_ms / 1000.0) as ends_at,
      case when (pair.symbol).name is null then 'symbol_unmapped' else 'symbol_unproven' end as ends_as,
      private.symbols_in_question(pair.follower, pair.masters_symbol, (pair.opened).symbol,
        coalesce((pair.symbol).name, pair.mapped_to)) as symbols
    from decided pair
    where pair.reason = 'symbol_loading'
  )
  select
    (select array_agg(draft::private.execution_draft) from drafts draft),
    (select array_agg(refusal::private.outcome) from refused refusal),
    (select array_agg(wait::private.symbol_waits) from waiting wait),
    (select array_agg(pair.wait) from decided pair
      where (pair.wait).copier_id is not null and pair.reason is distinct from 'symbol_loading')
  into v_drafts, v_refusals, v_waits, v_settled;
  v_new := private.queue_executions(v_drafts, true, p_now);
  if v_refusals is not null then
    perform private.store_outcomes(v_refusals);
  end if;
  if v_waits is not null then
    perform private.begin_waits(v_waits);
  end if;
  if v_settled is not null then
    perform private.settle_waits(v_settled);
  end if;
  if v_new is not null and exists (select 1 from public.copiers c
    where c.master_account_id = any (p_masters) and c.removed_at is null
    and (c.delay_max_ms > 0 or c.lots_jitter_percent > 0)) then
    v_new := private.hold_back(v_new, p_now);
  end if;
  return v_new;
end $$;

-- Decides whatever of these numbers waits, order or position.
create function private.decide(p_masters uuid[], p_tickets text[], p_copiers uuid[], p_now timestamptz,
  p_asked text default null) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  return private.decide_kinds(p_masters, p_tickets, null, p_copiers, p_now, p_asked);
end $$;

-- planner/due.sql
-- Links and executions that are due because time has passed.

-- Overdue executions. Handed out, past their deadline, and the agent is gone: the outcome is unknown. Opens that were
-- never handed out: expired. Returns the links of the expired ones.
create function private.judge_overdue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'unknown', updated_at = p_now
  where x.account_id = any (p_accounts) and x.status = 'queued' and x.offered_at is not null
    and x.send_before < p_now - interval '5 s'
    and not exists (
      select 1 from public.account_vps_assignments a join public.vps_instances v on v.id = a.vps_id
      where a.account_id = x.account_id and a.epoch = x.epoch and v.lease_expires_at > p_now);
  for q in
    update public.trade_execution_queue x set status = 'expired', reason = 'follower_offline', finalized_at = p_now,
      updated_at = p_now
    where x.account_id = any (p_accounts) and x.status = 'queued' and x.offered_at is null and private.opens(x)
      and x.queued_at < p_now - interval '5 s'
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id;
  end loop;
  return v_links;
end $$;

-- Live links that must be planned because of the time or their account's state; for a netting account's surplus, the
-- link that left it.
create function private.links_due(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(select l.id from public.position_links l
  where l.follower_account_id = any (p_accounts) and l.state = 'live'
    and (l.replan_at <= p_now or l.wanted_until <= p_now or l.order_due_at <= p_now
      or exists (select 1 from private.net_ledgers n
        where n.account_id = l.follower_account_id and n.symbol = l.symbol and n.replan_at <= p_now)
      or exists (select 1 from public.trading_accounts a
        where a.id = l.follower_account_id and a.copy_state = 'flattening')))
  || array(select n.surplus_link_id from private.net_ledgers n
    where n.account_id = any (p_accounts) and n.surplus_lots <> 0 and n.replan_at <= p_now);
end $$;

-- planner/existing.sql
-- Positions that the master already holds when a copier is made: decided once, at once or when quotes are available.

-- The follower's symbols of which a copier needs a quote: those of the positions its master held when it was made.
create function private.symbols_of_existing(p_copier public.copiers) returns setof public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
begin
  select * into v_follower from public.trading_accounts where id = p_copier.follower_account_id;
  return query
  select s.* from (
    select distinct p.symbol from public.positions p
    where p.account_id = p_copier.master_account_id and p.closed_at is null and p.kind = 'position'
      and p.first_seen_at < p_copier.started_at
  ) p
  join public.account_symbols m on m.account_id = p_copier.master_account_id and m.name = p.symbol
  left join public.symbol_mappings y on y.copier_id = p_copier.id and y.master_key = upper(btrim(p.symbol))
  join lateral (select (private.follower_symbol(v_follower, m)).name) f (name) on true
  join public.account_symbols s on s.account_id = v_follower.id
    and s.name = case when y.id is null then f.name
      else (private.symbol_named(v_follower.id, y.follower_symbol)).name end;
end $$;

-- For a new copier; the caller holds the locks of its accounts.
create function private.copy_existing(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_copier.copy_existing = 'none' then return; end if;
  if p_copier.copy_existing = 'near' and exists (
    select 1 from private.symbols_of_existing(p_copier) s where not private.quote_is_fresh(s, p_now)) then
    -- the follower's agent quotes watched symbols: it is asked now, and the next maintain() looks again
    update public.copiers set existing_until = p_now + private.setting_s('existing_wait_s') where id = p_copier.id;
    return;
  end if;
  perform private.offer(private.decide_existing(p_copier, p_now), null, clock_timestamp());
end $$;

create function private.decide_existing(p_copier public.copiers, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_kinds text[];
  v_new bigint[];
begin
  update public.copiers set existing_until = null where id = p_copier.id and existing_until is not null;
  select array_agg(p.account_id order by p.first_seen_at, p.ticket),
    array_agg(p.ticket order by p.first_seen_at, p.ticket),
    array_agg(p.kind order by p.first_seen_at, p.ticket)
  into v_masters, v_tickets, v_kinds from public.positions p
  where p.account_id = p_copier.master_account_id and p.closed_at is null and p.first_seen_at < p_copier.started_at;
  if v_masters is null then return '{}'; end if;
  v_new := private.decide_kinds(v_masters, v_tickets, v_kinds, array[p_copier.id], p_now, 'existing');
  return coalesce(v_new, '{}') || coalesce(private.plan_nets(array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id),
      p_now), '{}');
end $$;

-- Copiers whose quotes have arrived, or whose wait is over; the caller holds the followers' locks.
create function private.decide_waiting_existing(p_followers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_new bigint[] := '{}';
begin
  for v_copier in
    select c.* from public.copiers c where c.follower_account_id = any (p_followers) and c.existing_until is not null
    order by c.id
  loop
    if v_copier.removed_at is not null then
      update public.copiers set existing_until = null where id = v_copier.id;
    elsif v_copier.existing_until <= p_now or not exists (
      select 1 from private.symbols_of_existing(v_copier) s where not private.quote_is_fresh(s, p_now)) then
      v_new := v_new || private.decide_existing(v_copier, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- planner/filter.sql
-- Filters: what a copier opens. They apply only to opens and increases; nothing here can block a close.

-- Whether trades may be opened now: weekday and time of day in the copier's time zone. Hours past midnight belong to
-- the day on which they began.
create function private.within_hours(p_copier public.copiers, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  v_local timestamp := p_now at time zone p_copier.time_zone;
  v_overnight boolean := p_copier.open_until < p_copier.open_from;
  v_day integer := extract(isodow from case
    when v_overnight and v_local::time < p_copier.open_until then v_local - interval '1 day' else v_local end);
begin
  return v_day = any (p_copier.weekdays) and (p_copier.open_from is null
    or case when v_overnight then v_local::time >= p_copier.open_from or v_local::time < p_copier.open_until
      else v_local::time >= p_copier.open_from and v_local::time < p_copier.open_until end);
end $$;

-- What this copier holds now or is about to, and has opened since midnight in its time zone. p_leaving: the link whose
-- close a flip's open waits for (null: none); it and the master's old position do not count.
create function private.copier_load(p_copier public.copiers, p_leaving bigint, p_now timestamptz, out positions bigint,
  out lots numeric, out today bigint)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a
    where a.id = p_copier.follower_account_id);
  v_leaves public.position_links;
begin
  if p_leaving is not null then
    select * into v_leaves from public.position_links l where l.id = p_leaving;
  end if;
  -- a pending order to be opened at the market instead is both held and wanted; what netting followers want is added to
  -- what they hold
  select count(*), coalesce(sum(case when v_netting then coalesce(h.lots, 0) + coalesce(l.wanted_lots, 0)
    else greatest(coalesce(h.lots, 0), coalesce(l.wanted_lots, 0)) end + coalesce(f.lots, d.lots, 0)),
      0) into positions, lots
  from public.position_links l
  left join lateral (select sum(g.lots) as lots from private.link_legs g where g.link_id = l.id) h on true
  left join lateral (
    select sum(q.lots) as lots from public.trade_execution_queue q
    where not v_netting and q.link_id = l.id and q.finalized_at is null and q.action in ('open', 'increase', 'place')) f
      on true
  left join lateral (
    select sum((e ->> 'lots')::numeric) as lots from public.trade_execution_queue q
    cross join lateral jsonb_array_elements(q.parts) e
    where v_netting and q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight
      and e ->> 'link_id' = l.id::text and (e ->> 'lots')::numeric > 0) d on true
  where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id
    and (l.master_ticket, l.master_kind) is distinct from (v_leaves.master_ticket, v_leaves.master_kind);
  if p_copier.max_trades_per_day is not null then
    select count(*) into today from public.position_links l
    where l.user_id = p_copier.user_id and l.copier_id = p_copier.id and l.symbol is not null
      and l.created_at >= date_trunc('day', p_now at time zone p_copier.time_zone) at time zone p_copier.time_zone
      and (l.state = 'live' or l.base_lots is not null);
  end if;
end $$;

-- The copier's rule that refuses an open or increase now, whatever its size, or null. p_new: it is a new position, not
-- an increase; p_equity may be unknown; p_leaving: see copier_load.
create function private.filter_refusal(
  p_copier public.copiers, p_position public.positions, p_equity numeric, p_new boolean, p_leaving bigint,
    p_now timestamptz
)
returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_load record;
  v_filter private.copier_filters;
begin
  -- most copiers filter nothing: one check
  if p_copier.sides = 'both' and p_copier.open_from is null and p_copier.weekdays @> '{1,2,3,4,5,6,7}'
    and p_copier.min_equity is null
    and p_copier.symbols_only = '{}' and p_copier.symbols_except = '{}' and p_copier.magic_only = '{}'
      and p_copier.magic_except = '{}'
    and p_copier.comment_only = '{}' and p_copier.comment_except = '{}' and p_copier.max_open_positions is null
    and p_copier.max_open_lots is null and p_copier.max_trades_per_day is null then
    return null;
  end if;
  if p_copier.sides not in ('both', p_position.side) then return 'side_filtered'; end if;
  select * into v_filter from private.copier_filters f where f.copier_id = p_copier.id;
  if cardinality(p_copier.symbols_only) > 0 and not private.matches(p_position.symbol, v_filter.symbols_only)
    or cardinality(p_copier.symbols_except) > 0 and private.matches(p_position.symbol, v_filter.symbols_except) then
    return 'symbol_filtered';
  end if;
  if cardinality(p_copier.magic_only) > 0 and not coalesce(p_position.magic, '0') = any (p_copier.magic_only)
    or coalesce(p_position.magic, '0') = any (p_copier.magic_except) then
    return 'magic_filtered';
  end if;
  if cardinality(p_copier.comment_only) > 0 and not private.matches(p_position.comment, v_filter.comment_only)
    or cardinality(p_copier.comment_except) > 0 and private.matches(p_position.comment, v_filter.comment_except) then
    return 'comment_filtered';
  end if;
  if not private.within_hours(p_copier, p_now) then return 'outside_hours'; end if;
  if p_copier.min_equity is not null and (p_equity is null or p_equity < p_copier.min_equity) then
    return 'min_equity';
  end if;
  if coalesce(p_copier.max_open_positions, p_copier.max_trades_per_day) is not null
    or p_copier.max_open_lots is not null then
    v_load := private.copier_load(p_copier, p_leaving, p_now);
    if p_new and v_load.positions >= p_copier.max_open_positions then return 'max_open_positions'; end if;
    if v_load.lots >= p_copier.max_open_lots then return 'max_open_lots'; end if;
    if p_new and v_load.today >= p_copier.max_trades_per_day then return 'max_trades_per_day'; end if;
  end if;
  return null;
end $$;

-- Whether a copier of these masters limits what it holds or opens, or sizes by the margin that is left: decisions made
-- together then count against each other.
create function private.limits_count(p_masters uuid[]) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.copiers c
    where c.master_account_id = any (p_masters) and c.removed_at is null
      and (c.max_open_positions is not null or c.max_open_lots is not null or c.max_trades_per_day is not null
        or c.sizing_mode = 'free_margin_ratio'));
end $$;

-- planner/flattening.sql
-- Flattening: a state of an account, not a list of positions. It outranks every mode, refuses opens, and closes
-- whatever appears until two complete snapshots in a row show nothing left. Then it sets the account to off, or to
-- flatten_then.

-- Begins flattening, or makes one in progress stricter: what it was to close, and to switch off, stays so. p_then null:
-- back to the previous state. The caller holds the plan locks of the account and its neighbours and updated no row of
-- trading_accounts before it took them.
create function private.start_flattening(p_account uuid, p_manual boolean, p_then text, p_reason text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  update public.trading_accounts a set copy_state = 'flattening', flat_snapshots = 0,
    -- what stopped the account before its flat time still says so
    copy_state_reason = case when p_reason = 'flat_by' and a.copy_state <> 'on' then a.copy_state_reason else p_reason
      end,
    flattened_at = p_now,
    flatten_manual = p_manual or p_reason is not null and a.copy_state = 'flattening' and a.flatten_manual,
    flatten_then = case when a.copy_state <> 'flattening' then coalesce(p_then, a.copy_state)
      when p_then = 'off' or a.flatten_then = 'off' then 'off' else coalesce(p_then, a.flatten_then) end,
    resumes_at = case when p_then is null then a.resumes_at end
  where a.id = p_account;
  -- opens that are queued and unsent need not be sent
  update public.trade_execution_queue q set cancel_requested_at = p_now, updated_at = p_now
  where q.account_id = p_account and q.in_flight and private.opens(q) and q.cancel_requested_at is null;
  select array_agg(l.id) into v_links from public.position_links l
  where l.follower_account_id = p_account and l.state = 'live';
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(coalesce(private.plan_again(v_links, p_now), '{}') || private.plan_flatten(p_account, p_now),
    null, clock_timestamp());
end $$;

-- Closes what is open on the account and no link holds: on hedging accounts positions with our tag that were not
-- released; with flatten_manual also the user's own trades.
create function private.plan_flatten(p_account uuid, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_loose public.positions;
  v_draft private.execution_draft;
  v_drafts private.execution_draft[];
begin
  if private.trading_state() = 'off' then return '{}'; end if;
  for v_loose in
    select p.*
    from public.positions p
    join public.trading_accounts a on a.id = p.account_id and a.copy_state = 'flattening'
      -- of a net position, only what links hold is ours
      and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released)
    where p.account_id = p_account and p.closed_at is null
      and not exists (
        select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
        where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol)
          and (g.ticket <> p.ticket or g.ticket_kind = p.kind))
      and not exists (
        select 1 from public.trade_execution_queue q
        where q.account_id = p.account_id and q.symbol = p.symbol and q.in_flight
          and (q.ticket = p.ticket and private.kind_of(q.action) = p.kind or a.mode = 'netting'))
  loop
    v_draft.lane := 'flatten:' || v_loose.ticket || case v_loose.kind when 'order' then ':order' else '' end;
    v_draft.user_id := v_loose.user_id;
    v_draft.account_id := v_loose.account_id;
    v_draft.action := case v_loose.kind when 'order' then 'cancel' else 'close' end;
    v_draft.symbol := v_loose.symbol;
    v_draft.side := v_loose.side;
    v_draft.lots := v_loose.lots;
    v_draft.target_lots := 0;
    v_draft.ticket := v_loose.ticket;
    v_drafts := v_drafts || v_draft;
  end loop;
  return coalesce(private.queue_executions(v_drafts, false, p_now), '{}');
end $$;

-- Counts a complete snapshot that shows nothing left to close; the second in a row ends the flattening.
create function private.count_flat_snapshot(p_account uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_left boolean;
begin
  select exists (select 1 from public.trade_execution_queue q where q.account_id = p_account and q.in_flight)
    or exists (
      select 1 from public.positions p join public.trading_accounts a on a.id = p.account_id
      where p.account_id = p_account and p.closed_at is null
        and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released
        or exists (select 1 from private.link_legs g
          where g.account_id = p.account_id and g.ticket in (p.ticket, p.symbol)
            and (g.ticket <> p.ticket or g.ticket_kind = p.kind))))
    or exists (select 1 from private.net_ledgers n where n.account_id = p_account and n.surplus_lots <> 0)
  into v_left;
  update public.trading_accounts a set flat_snapshots = case when v_left then 0 else a.flat_snapshots + 1 end,
    copy_state = case when not v_left and a.flat_snapshots >= 1 then a.flatten_then else a.copy_state end,
    copy_state_reason = case when not v_left and a.flat_snapshots >= 1 and a.flatten_then = 'on'
      then null else a.copy_state_reason end
  where a.id = p_account and a.copy_state = 'flattening';
end $$;

-- planner/free_margin.sql
-- The free margin that a size may be computed from: figures are read every few seconds, so what was opened since then
-- is deducted. Closes give nothing back until the broker's own figures say so.

-- The margin for one lot, in the account's currency: contract x price / leverage. Null if a figure is unknown or old.
create function private.margin_per_lot(p_account public.trading_accounts, p_symbol public.account_symbols, p_side text,
  p_price numeric, p_now timestamptz)
returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_rate numeric[] := private.profit_fraction(p_symbol, p_account.currency, case
    when p_symbol.profit_currency = p_account.currency then '{}'::jsonb
    else private.quoted_rates(array[p_account.id], array[p_symbol.profit_currency,
      private.quoted_currency(p_symbol.name), p_account.currency]) end);
begin
  return p_symbol.contract_size
    * coalesce(case when p_symbol.quoted_at > p_now - private.setting_s('symbol_quote_max_age_s')
      then case p_side when 'buy' then p_symbol.ask else p_symbol.bid end end, p_price)
    * v_rate[1] / (v_rate[2] * p_account.leverage);
end $$;

-- What the account opens or has opened since its figures were read: orders in flight, orders filled later than that,
-- and what a netting account is about to be given. p_before: only what may be sent before this execution.
create function private.opened_since(p_account public.trading_accounts, p_before bigint)
returns table (symbol text, side text, lots numeric, price numeric)
language sql stable security definer set search_path = '' as $$
  select q.symbol, q.side, case when q.parts is null then q.lots else least(q.lots, (
      select sum((e ->> 'lots')::numeric) from jsonb_array_elements(q.parts) e where (e ->> 'lots')::numeric > 0)) end,
    q.master_price
  from public.trade_execution_queue q
  where q.account_id = p_account.id and q.in_flight and q.action in ('open', 'increase') and private.opens(q)
    and (p_before is null or q.id <> p_before and (q.status <> 'retrying' or q.id < p_before))
  union all
  select q.symbol, q.side, coalesce(q.filled_lots, q.lots), coalesce(q.fill_price, q.master_price)
  from public.trade_execution_queue q
  where q.account_id = p_account.id and q.status = 'completed' and q.action in ('open', 'increase')
    and q.finalized_at > p_account.funds_at - interval '10 s'
    and coalesce(q.done_at, q.finalized_at) > p_account.funds_at and private.opens(q)
  union all
  select l.symbol, l.side, l.wanted_lots, m.price
  from public.position_links l
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
    and m.kind = l.master_kind
  where l.follower_account_id = p_account.id and l.state = 'live' and l.wanted_lots > 0
    and p_account.mode = 'netting'
$$;
comment on function private.opened_since(public.trading_accounts, bigint) is
  'Volumes that an account''s last figures do not contain yet.';

-- The estimated margin of all that; 0: there is nothing, null: it cannot be estimated (no leverage, no rate).
create function private.margin_since(p_account public.trading_accounts, p_before bigint,
  p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select case when count(*) = count(m.margin) then coalesce(sum(m.margin), 0) end
    from (
      select o.lots * private.margin_per_lot(p_account, s, o.side, o.price, p_now) as margin
      from private.opened_since(p_account, p_before) o
      left join public.account_symbols s on s.account_id = p_account.id and s.name = o.symbol
    ) m);
end $$;

-- The same for a master: positions that are newer than its figures and came before the one that is being copied. What
-- cannot be estimated is left out.
create function private.masters_margin_since(p_master public.trading_accounts, p_copied public.positions,
  p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(sum(p.lots * private.margin_per_lot(p_master, s, p.side, p.price, p_now)), 0)
    from public.positions p
    join public.account_symbols s on s.account_id = p.account_id and s.name = p.symbol
    where p.account_id = p_master.id and p.closed_at is null and p.kind = 'position' and p.lots > 0
      and p.ticket <> p_copied.ticket and not p.existing and p.last_event_id < p_copied.last_event_id
      and least(p.detected_at, p.first_seen_at) > p_master.funds_at);
end $$;

-- An account's money for a copy that is sized by free margin: the figures, less what was opened since.
create function private.funds_left(p_copier public.copiers, p_account public.trading_accounts,
  p_copied public.positions, p_since timestamptz, p_now timestamptz) returns private.funds
language plpgsql stable security definer set search_path = '' as $$
declare
  f private.funds := private.fresh_funds(p_account, p_since);
begin
  if f.free_margin is null then return f; end if;
  f.free_margin := f.free_margin - case when p_account.id = p_copier.follower_account_id
    then private.margin_since(p_account, null, p_now)
    else private.masters_margin_since(p_account, p_copied, p_now) end;
  return f;
end $$;

-- planner/jitter.sql
-- Jitter, for users whose rules allow it: opens are a little later and a little smaller, differently for every follower
-- and trade, but always the same for the same one. Closes, reductions and levels are never changed. A size is only ever
-- reduced, so every limit still holds.

-- A number from 0 to below 1 that depends only on the name.
create function private.stable_random(p_name text) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return ((hashtextextended(p_name, 0) % 1000000 + 1000000) % 1000000) / 1000000.0;
end $$;

-- The copier, with its size reduced by up to lots_jitter_percent.
create function private.jittered(p_copier public.copiers, p_ticket text, p_generation integer) returns public.copiers
language plpgsql immutable set search_path = '' as $$
declare
  c public.copiers := p_copier;
begin
  c.sizing_value := c.sizing_value * (1 - c.lots_jitter_percent / 100 * private.stable_random(format('lots %s %s %s',
    c.id, p_ticket, p_generation)));
  return c;
end $$;

-- Stores which sizes were reduced, and holds back opens that must wait: they are not handed out until their time comes,
-- so a close ends them at once. Returns the executions that go out now.
create function private.hold_back(p_new bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  update public.trade_execution_queue q set warnings = q.warnings || 'lots_jittered'::text
  from public.copiers c where q.id = any (p_new) and c.id = q.copier_id and c.lots_jitter_percent > 0;
  update public.trade_execution_queue q set status = 'retrying', attempt = 0, next_attempt_at = w.at, queued_at = w.at,
    offered_at = null,
    vps_id = null, epoch = null, warnings = q.warnings || 'delayed'::text
  from public.copiers c
  cross join lateral (
    select x.id, p_now +
      make_interval(secs =>
      (c.delay_min_ms + (c.delay_max_ms - c.delay_min_ms) * private.stable_random(format('delay %s %s', c.id,
      x.link_id))) / 1000.0) as at
    from public.trade_execution_queue x where x.id = any (p_new) and x.copier_id = c.id
  ) w
  where q.id = w.id and c.delay_max_ms > 0;
  return array(select q.id from public.trade_execution_queue q where q.id = any (p_new) and q.offered_at is not null);
end $$;

-- planner/limit_of_rule.sql
-- What a rule's limit is, from its own figures and the account's initial balance. Everything is computed by
-- multiplication, so that comparisons are exact.

create type private.look as (at timestamptz, equity numeric, balance numeric, margin numeric);
comment on type private.look is 'Figures of an account that protection rules are judged by.';

-- What the rule does. close_all of a daily rule would be undone by the next copy, so it stops until the next day.
create function private.rule_action(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case when r.action = 'close_all' and r.kind in ('daily_loss', 'daily_profit') then 'close_all_until_next_day'
    else r.action end;
end $$;

-- What the threshold is: percent of day_start, high or initial, or an amount.
create function private.rule_of(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(r.of, case
    when r.kind in ('daily_loss', 'daily_profit') then 'day_start'
    when r.kind = 'trailing_drawdown' and r.moves_with = 'day_end_balance' then 'initial'
    when r.kind = 'trailing_drawdown' then 'high'
    else 'amount' end);
end $$;

-- The amount that a loss or profit is measured from; null: not known, or not above 0.
create function private.rule_base(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_base numeric := case
    when r.kind in ('daily_loss', 'daily_profit') then r.day_start_equity
    when r.kind = 'trailing_drawdown' then r.high_water_mark
    else p_initial end;
begin
  return case when v_base > 0 then v_base end;
end $$;

-- The threshold in money (max_margin_use: in percent).
create function private.rule_threshold(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case private.rule_of(r)
    when 'amount' then r.threshold
    when 'initial' then case when p_initial > 0 then p_initial * r.threshold * 0.01 end
    else private.rule_base(r, p_initial) * r.threshold * 0.01 end;
end $$;

-- The limit itself, without the cushion.
create function private.whole_limit(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_base numeric := private.rule_base(r, p_initial);
  v_threshold numeric := private.rule_threshold(r, p_initial);
begin
  return trim_scale(case r.kind
    when 'daily_loss' then v_base - v_threshold
    when 'daily_profit' then v_base + v_threshold
    when 'trailing_drawdown' then case when v_base > 0 then least(v_base - v_threshold, r.locks_at) end
    else v_threshold end);
end $$;

-- How much may be used before the limit is reached; null: the rule knows no allowance.
create function private.rule_allowance(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'equity_target' then null
    when 'equity_floor' then case when p_initial > private.whole_limit(r, p_initial)
      then p_initial - private.whole_limit(r, p_initial) end
    else private.rule_threshold(r, p_initial) end;
end $$;

-- The value at which this percentage of the allowance is used (100: the limit itself); null while it is not known.
create function private.limit_at(r public.protection_rules, p_initial numeric, p_percent numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
declare
  v_limit numeric := private.whole_limit(r, p_initial);
  v_rest numeric := private.rule_allowance(r, p_initial) * (100 - p_percent) * 0.01;
begin
  return trim_scale(case
    when p_percent = 100 then v_limit
    when r.kind in ('daily_profit', 'max_margin_use') then v_limit - v_rest
    else v_limit + v_rest end);
end $$;

-- The value that equity (max_margin_use: the percentage) is compared with; null while it is not known.
create function private.rule_limit(r public.protection_rules, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(private.limit_at(r, p_initial, 100 - r.cushion_percent), private.whole_limit(r, p_initial));
end $$;

-- Whether these figures have reached a value of the rule; null if a needed figure is unknown.
create function private.value_reached(r public.protection_rules, p_value numeric, p_equity numeric, p_margin numeric)
returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind
    when 'max_margin_use' then p_margin > 0 and p_margin * 100 >= p_equity * p_value
    when 'daily_profit' then p_equity >= p_value
    when 'equity_target' then p_equity >= p_value
    else p_equity <= p_value end;
end $$;

-- Whether these figures have reached the rule's limit; null if a needed figure is unknown.
create function private.limit_reached(r public.protection_rules, p_initial numeric, p_equity numeric, p_margin numeric)
returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return private.value_reached(r, private.rule_limit(r, p_initial), p_equity, p_margin);
end $$;

-- The rule's day at this time: the date on which it began in the rule's zone. When the clocks go back, a day that
-- has begun does not end again: callers only go forward.
create function private.rule_day(r public.protection_rules, p_at timestamptz) returns date
language plpgsql stable set search_path = '' as $$
begin
  return ((p_at at time zone r.time_zone) - r.day_begins::interval)::date;
end $$;

-- When the rule's day that holds p_at ends: the first minute of a later day, also where the clocks change at it.
create function private.rule_day_ends(r public.protection_rules, p_at timestamptz) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
  v_day date := greatest(private.rule_day(r, p_at), r.day);
  v_about timestamptz := ((v_day + 1) + r.day_begins) at time zone r.time_zone;
begin
  return (select min(m) from generate_series(v_about - interval '3 hours', v_about + interval '3 hours',
    interval '1 minute') m where m > p_at and private.rule_day(r, m) > v_day);
end $$;

-- planner/link_plan.sql
-- The plan of hedging followers: each live link is brought to what its master holds now. Closes, reductions, cancels
-- and levels are planned from the state alone; opens and increases are decided once, in decision.sql.

-- After a refusal the planner retries at replan_at or when the target changes. The target of these links has changed,
-- so their closes and reductions are retried now.
create function private.wait_no_longer(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set replan_at = p_now
  where l.id = any (p_links) and l.ended_at is null and l.close_failures > 0 and l.replan_at > p_now;
  update private.net_ledgers n set replan_at = p_now
  from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and n.account_id = l.follower_account_id and n.symbol = l.symbol
    and n.failures > 0
    and n.replan_at > p_now;
end $$;

-- After a report most links are either in their target state or over. Ends those that are over and returns those that
-- the planner must look at; for every other link it would do nothing.
create function private.links_to_plan(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_over bigint[];
  v_calm bigint[];
begin
  select array_agg(s.id) filter (where s.legs = 0), array_agg(s.id) filter (where s.legs > 0) into v_over, v_calm
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.executions = 0
    and s.wanted_lots is null
    and not s.frozen and s.replan_at is null and case when s.legs = 0 then s.doomed and s.master_lots = 0
      else not s.doomed and s.master_kind = 'position' and s.order_lots = 0 and s.master_lots = s.seen_master_lots
        and s.position_lots - s.target_lots < s.lots_min
        and not s.asked_unknown and (s.wanted_sl, s.wanted_tp) is not distinct from (s.asked_sl, s.asked_tp)
        and not exists (
          select 1 from private.link_legs g join public.positions p on p.account_id = g.account_id
            and p.ticket = g.ticket and p.kind = g.ticket_kind
          where g.link_id = s.id and (p.lots < g.lots or p.kind <> g.kind)) end;
  if v_over is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, reason = 'closed' where l.id = any (v_over);
  end if;
  return array(select id from unnest(p_links) as u (id)
    where id <> all (coalesce(v_over, '{}') || coalesce(v_calm, '{}')));
end $$;

-- Steps that wait for another attempt are not handed out. Steps that are no longer wanted end here, so that they do not
-- delay the wanted ones: on a doomed link everything except its close, else a change or reduction to another value. For
-- netting symbols see planner/net_plan.sql.
create function private.drop_waiting(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  with dropped as (
    update public.trade_execution_queue q set status = 'cancelled', finalized_at = p_now, updated_at = p_now,
      reason = case when q.action in ('open', 'increase', 'place') then 'already_closed' else 'superseded' end
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and q.link_id = s.id
      and q.finalized_at is null
      and q.status = 'retrying' and q.parts is null
      and case
        -- frozen by its copier or account: dropped now, planned again when it is no longer frozen (while all trading is
        -- off, nothing is requeued)
        when s.frozen and q.action not in ('open', 'increase', 'place') and private.trading_state() <> 'off' then true
        when s.doomed then q.action not in ('close', 'cancel')
        when q.action = 'close' then true  -- it is to be removed gracefully after all, or its master was not closed
        when q.action = 'modify' then s.asked_unknown
          or (s.asked_sl, s.asked_tp) is distinct from (s.wanted_sl, s.wanted_tp)
        when q.action = 'amend' then s.asked_unknown
          or (s.asked_price, s.asked_sl, s.asked_tp) is distinct from (s.wanted_price, s.wanted_sl, s.wanted_tp)
        when q.action = 'reduce' then s.waiting = s.executions and not s.position_lots - s.reducing
          - s.target_lots between 0 and s.lots_min - s.lots_step
        else false end
    returning q.link_id, q.account_id, q.ticket, q.action, s.legs
  )
  -- Levels and prices that the broker never took count as not asked for. Where the copy has other positions, which may
  -- have them, nobody knows what was asked last.
  update public.position_links l set
    asked_sl = case when d.legs = 1 then p.sl end,
    asked_tp = case when d.legs = 1 then p.tp end,
    asked_price = case when d.action = 'amend' and d.legs = 1 then p.price else l.asked_price end,
    asked_unknown = d.legs <> 1
  from dropped d
  join public.positions p on p.account_id = d.account_id and p.ticket = d.ticket and p.kind = private.kind_of(d.action)
  where l.id = any (p_links) and d.action in ('modify', 'amend') and l.id = d.link_id;
end $$;

-- Plans one step for every link that needs one and has none in flight; a close is also planned beside an open step. One
-- statement for any number of links, therefore longer than forty lines. Returns the new executions.
create function private.plan_links(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_orders bigint[];
  v_reduced bigint[];
  v_volumes numeric[];
  v_drafts private.execution_draft[];
begin
  if exists (
    select 1 from public.trade_execution_queue q
    where q.link_id = any (p_links) and q.finalized_at is null and q.status = 'retrying')
  then
    perform private.drop_waiting(p_links, p_now);
  end if;
  if exists (select 1 from public.position_links l
    where l.id = any (p_links) and l.ended_at is null and l.asked_price is not null) then
    v_orders := private.handle_orders(p_links, p_now);
  end if;
  -- a reduction of the master counts as seen once it is carried out; increasing back to the old volume is then an
  -- increase
  if exists (
    select 1 from public.position_links l
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind and m.lots > 0
    where l.id = any (p_links) and l.ended_at is null and m.lots < l.seen_master_lots)
  then
    select array_agg(s.id), array_agg(s.master_lots) into v_reduced, v_volumes from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.master_kind = 'position'
      and not s.doomed
      and s.master_lots < s.seen_master_lots and s.base_lots is not null and s.executions = 0
      and s.position_lots <= s.target_lots;
    if v_reduced is not null then
      update public.position_links l set seen_master_lots = u.lots
      from unnest(v_reduced, v_volumes) as u (id, lots) where l.id = any (v_reduced) and l.id = u.id;
    end if;
  end if;

  -- The stages:
  --   states   what each link holds and must hold
  --   choices  what is to be done about it, if anything
  --   steps    what is done, with the number of its step and the levels to ask for
  --   over     links that hold nothing, want nothing and have nothing in flight
  --   ended    these links, ended
  --   asked    the levels and prices that the steps ask for, remembered
  --   drafts   the executions of the steps
  with states as (  -- no column more than is needed below: each costs in every step
    select
      state.id,
      state.copier_id,
      state.user_id,
      state.follower_account_id,
      state.master_account_id,
      state.symbol,
      state.side,
      state.wanted_lots,
      state.doomed,
      state.frozen,
      state.close_failures,
      state.modify_failures,
      state.replan_at,
      state.asked_price,
      state.asked_sl,
      state.asked_tp,
      state.asked_expires_at,
      state.asked_unknown,
      state.wanted_price,
      state.wanted_sl,
      state.wanted_tp,
      state.master_kind,
      state.master_lots,
      state.master_event_id,
      state.master_detected_at,
      state.master_price,
      state.master_expires_at,
      state.lots_min,
      state.position_lots,
      state.order_lots,
      state.legs,
      state.executions,
      state.opens,
      state.open_step,
      state.target_lots
    from private.link_states state
    where state.id = any (p_links) and state.ended_at is null and state.account_mode = 'hedging'
    offset 0  -- a fence: each row is computed once
  ), choices as materialized (
    select
      state.*,
      case
        when state.frozen then null
        when state.doomed and state.executions > 0 and state.executions = state.opens then 'close_beside'
        when state.executions > 0 then null
        when state.doomed and state.legs > 0
          and (state.close_failures = 0 or state.replan_at is null or state.replan_at <= p_now) then 'close'
        when state.doomed then null
        when state.master_kind = 'position' and state.position_lots - state.target_lots >= state.lots_min
          and (state.close_failures = 0 or state.replan_at is null or state.replan_at <= p_now) then 'reduce'
        when state.master_kind = 'order' and state.order_lots > 0
          and (state.asked_unknown
            or (state.wanted_price, state.wanted_sl, state.wanted_tp, state.master_expires_at)
              is distinct from (state.asked_price, state.asked_sl, state.asked_tp, state.asked_expires_at)
            or state.modify_failures between 1 and 2 and state.replan_at <= p_now) then 'amend'
        when state.position_lots > 0
          and (state.asked_unknown
            or (state.wanted_sl, state.wanted_tp) is distinct from (state.asked_sl, state.asked_tp)
            or state.modify_failures between 1 and 2 and state.replan_at <= p_now) then 'modify'
      end as choice
    from states state
  ), steps as materialized (
    select
      choice.*,
      nextval('public.trade_execution_queue_id_seq') as step_id,
      case when choice.choice in ('modify', 'amend') then
        private.levels_to_ask(choice.follower_account_id, choice.symbol, choice.side,
          case when choice.choice = 'amend' then choice.wanted_price end, choice.wanted_sl, choice.wanted_tp,
          choice.modify_failures, p_now)
      end as levels
    from choices choice
    where choice.choice is not null
  ), over as materialized (
    select choice.id, choice.doomed
    from choices choice
    where choice.choice is null and choice.legs = 0 and choice.executions = 0 and choice.wanted_lots is null
  ), ended as (
    update public.position_links link set
      state = 'ended',
      ended_at = p_now,
      replan_at = null,
      reason = case
        when over.doomed then 'closed'
        when link.stopped_out then 'stop_out'
        else 'closed_by_follower'
      end
    from over
    where link.id = over.id and link.id = any (array(select i.id from over i))
  ), asked as (
    update public.position_links link set
      asked_sl = step.wanted_sl,
      asked_tp = step.wanted_tp,
      asked_price = case when step.choice = 'amend' then step.wanted_price else link.asked_price end,
      asked_expires_at = case when step.choice = 'amend' then step.master_expires_at else link.asked_expires_at end,
      asked_unknown = false,
      order_due_at = case
        when step.choice = 'amend' then step.master_expires_at + interval '1 s'
        else link.order_due_at
      end,
      modify_failures = case
        when link.asked_unknown
          or (step.wanted_price, step.wanted_sl, step.wanted_tp) is distinct from
            (case when step.choice = 'amend' then link.asked_price else step.wanted_price end, link.asked_sl,
              link.asked_tp) then 0
        else link.modify_failures
      end,
      replan_at = null,
      warnings = private.with_level_warnings(link.warnings, (step.levels).warnings)
    from steps step
    where link.id = step.id and step.choice in ('modify', 'amend')
      and link.id = any (array(select i.id from steps i where i.choice in ('modify', 'amend')))
  ), drafts as (
    select
      step.step_id,
      an_order.after_id,
      step.id as link_id,
      step.id::text as lane,
      step.copier_id,
      step.user_id,
      step.follower_account_id as account_id,
      step.master_account_id,
      step.master_event_id as event_id,
      an_order.action,
      step.symbol,
      step.side,
      'market' as order_type,
      an_order.lots,
      an_order.target_lots,
      an_order.ticket,
      case when an_order.action = 'amend' then step.wanted_price end as price,
      (step.levels).sent_sl as sl,
      (step.levels).sent_tp as tp,
      null::integer as max_slippage_points,
      step.master_price,
      step.master_lots,
      step.master_expires_at as expires_at,
      null::text as comment,
      null::jsonb as parts,
      (step.levels).warnings,
      null::timestamptz as retry_until,
      null::timestamptz as send_until,
      step.master_detected_at as detected_at
    from steps step
    -- an order for each leg that the step concerns; beside an open, one more for whatever that leaves behind
    cross join lateral (
      select
        leg.ticket,
        null::bigint as after_id,
        case
          when step.choice not in ('close', 'close_beside') then step.choice
          when leg.kind = 'position' then 'close'
          else 'cancel'
        end as action,
        case step.choice
          when 'reduce' then least(leg.lots, step.position_lots - step.target_lots - leg.newer_lots)
          else leg.lots
        end as lots,
        case
          when step.choice in ('close', 'close_beside') then 0::numeric
          when step.choice = 'reduce' then
            leg.lots - least(leg.lots, step.position_lots - step.target_lots - leg.newer_lots)
        end as target_lots
      from (
        select i.ticket, i.kind, i.lots, sum(i.lots) over (order by i.ticket desc) - i.lots as newer_lots
        from private.link_legs i where i.link_id = step.id
      ) leg
      where step.choice in ('close', 'close_beside')
        -- the newest legs are reduced first
        or step.choice = 'reduce' and leg.kind = 'position'
          and step.position_lots - step.target_lots > leg.newer_lots
          -- a reduction smaller than the minimum is only possible by closing the whole position
          and step.position_lots - step.target_lots - leg.newer_lots >= least(leg.lots, step.lots_min)
        or step.choice = 'modify' and leg.kind = 'position'
        or step.choice = 'amend' and leg.kind = 'order'
      union all
      select null, step.open_step, 'close', 0, 0 where step.choice = 'close_beside'
    ) an_order
  )
  select array_agg(draft::private.execution_draft) into v_drafts from drafts draft;
  v_new := private.queue_executions(v_drafts, true, p_now);
  if v_orders is not null then
    v_new := nullif(coalesce(v_new, '{}') || v_orders, '{}');
  end if;
  return v_new;
end $$;

-- planner/net_plan.sql
-- The plan of netting followers: one order in flight per (account, symbol). The changes that a symbol's links want are
-- summed to one deal, reductions first. Before planning, the difference between the broker's net position and the
-- ledger is booked (ledger/net_ledger.sql).

-- The change that each live link of a netting symbol wants, in lots of the link (+ more, - less); reduced_to: the
-- volume that its master holds.
create function private.net_deltas(p_account uuid, p_symbol text, p_now timestamptz)
returns table (link_id bigint, side text, delta numeric, opens boolean, wanted_sl numeric, wanted_tp numeric,
  held numeric, reduced_to numeric, frozen boolean)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select s.id, s.side, case
      when s.frozen then 0
      when s.doomed then -s.position_lots
      else coalesce(s.wanted_lots, 0) - case when s.base_lots is null or s.master_kind <> 'position' then 0
        else greatest(0, s.position_lots - s.target_lots) end
    end,
    s.wanted_lots is not null and not s.doomed and not s.frozen, s.wanted_sl, s.wanted_tp, s.position_lots,
    case when not s.doomed and s.master_kind = 'position' then s.master_lots end, s.frozen
  from private.link_states s
  where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live';
end $$;

-- Drops what was decided but not dealt in time, or is no longer wanted.
create function private.drop_wanted(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_reason text;
  v_trading text := private.trading_state();
  v_why text := (select a.copy_state_reason from public.trading_accounts a where a.id = p_account);
begin
  for v_link in
    select s.id, s.copier_id, s.master_event_id, s.doomed, s.removal, x.shut, s.legs, s.master_lots, s.position_lots
    from private.link_states s
    cross join lateral (select coalesce(private.opening_blocked_reason(v_trading, s.copy_state, v_why, s.copier_mode,
      s.removal), private.time_refusal(p_account, p_symbol, (select m.symbol from public.positions m
        where m.account_id = s.master_account_id and m.ticket = s.master_ticket and m.kind = s.master_kind), p_now))
      as shut) x
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.wanted_lots is not null
      and (s.doomed or x.shut is not null or s.wanted_until <= p_now)
  loop
    v_reason := case when v_link.doomed and v_link.removal is null
      then 'already_closed' else coalesce(v_link.shut, 'too_old') end;
    update public.position_links l set wanted_lots = null, wanted_until = null, rest_lots = null,
      base_lots = case when v_link.legs > 0 then v_link.position_lots end,
      -- one cannot divide by a closed master's 0
      base_master_lots = coalesce(nullif(v_link.master_lots, 0), l.base_master_lots),
      state = case when v_link.legs = 0 then 'ended' else 'live' end,
      reason = case when v_link.legs = 0 then v_reason else l.reason end,
      ended_at = case when v_link.legs = 0 then p_now end
    where l.id = v_link.id;
    update public.copy_outcomes set reason = v_reason
    where event_id = v_link.master_event_id and copier_id = v_link.copier_id and execution_id is null
      and reason = 'coalesced';
  end loop;
end $$;

-- Reduces the rest of an open in several orders when its master is reduced: held volume and rest together follow the
-- master, as if everything had been dealt at once.
create function private.shrink_rests(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link record;
  v_rest numeric;
  v_any boolean := false;
begin
  for v_link in
    select s.id, s.rest_lots, s.wanted_lots, s.position_lots,
      private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.base_lots) as lots
    from private.link_states s
    where s.follower_account_id = p_account and s.symbol = p_symbol and s.state = 'live' and s.rest_lots is not null
      and s.base_lots is not null and s.master_kind = 'position' and not s.doomed and not s.frozen
  loop
    v_rest := least(v_link.rest_lots, v_link.wanted_lots, greatest(0, v_link.lots - v_link.position_lots));
    update public.position_links l set rest_lots = nullif(v_rest, 0),
      wanted_lots = nullif(l.wanted_lots - v_link.rest_lots + v_rest, 0),
      wanted_until = case when l.wanted_lots > v_link.rest_lots - v_rest then l.wanted_until end
    where l.id = v_link.id and v_rest < v_link.rest_lots;
    v_any := true;
  end loop;
  -- the copy may already be as small as its master
  if v_any then perform private.mark_reductions_done(p_account, p_symbol); end if;
end $$;

-- What a deal opens is no longer wanted, nor what the wanted change reduces; the rest of a part that was cut still is.
-- p_target: the wanted changes, p_parts: the parts of them that are dealt.
create function private.take_from_wanted(p_target jsonb, p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set wanted_lots = nullif(w.rest, 0), wanted_until = case
    when w.rest > 0 then l.wanted_until end,
    rest_lots = case when e is not null then nullif(w.rest, 0) when l.rest_lots is not null
      then nullif(least(l.rest_lots, w.rest), 0) end
  from jsonb_array_elements(p_target) x
  -- no row: there was no room for it
  left join jsonb_array_elements(p_parts) e on e ->> 'link_id' = x ->> 'link_id' and (e ->> 'lots')::numeric > 0
  cross join lateral (select greatest((x ->> 'lots')::numeric, 0) - coalesce((e ->> 'lots')::numeric, 0) as rest) w
  where l.id = (x ->> 'link_id')::bigint;
end $$;

-- The lots that our deals moved and no link has, as far as they can be moved back now.
create function private.surplus_to_deal(p_account uuid, p_symbol text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce((
    select n.surplus_lots from private.net_ledgers n join public.trading_accounts a on a.id = n.account_id
    where n.account_id = p_account and n.symbol = p_symbol and a.copy_state <> 'off'
      and private.trading_state() <> 'off'), 0);
end $$;

create type private.net_target as (parts jsonb, sum numeric, opens boolean, shares integer, sl numeric, tp numeric,
  virtual boolean, frozen boolean);
comment on type private.net_target is 'What the links of a netting symbol want together.';

-- What a netting symbol's links want together. parts: the changes; sum: signed lots of the deal that makes them;
-- shares: links that will hold something; sl and tp: the levels of the position (none if it has several owners;
-- virtual: one of them wants some); frozen: all of them are off, so the levels stay as they are.
create function private.net_target_of(p_account uuid, p_symbol text, p_net numeric, p_now timestamptz)
returns private.net_target
language plpgsql security definer set search_path = '' as $$
declare
  w private.net_target;
  v_after numeric;
  v_surplus numeric := private.surplus_to_deal(p_account, p_symbol);
begin
  select coalesce(sum(d.delta * private.sign_of(d.side)), 0),
    coalesce(jsonb_agg(jsonb_build_object('link_id', d.link_id::text, 'side', d.side, 'lots', d.delta::text,
      'reduced_to', case when d.delta < 0 then d.reduced_to::text end, 'until', l.wanted_until, 'counted',
        l.rest_lots::text,
      'master_lots', case when l.rest_lots is not null
        then least(l.seen_master_lots, d.reduced_to) else l.seen_master_lots end::text)
        order by d.link_id) filter (where d.delta <> 0), '[]'),
    coalesce(bool_or(d.delta > 0), false), count(*) filter (where d.held + d.delta > 0),
    coalesce(sum((d.held + d.delta) * private.sign_of(d.side)), 0),
    min(d.wanted_sl) filter (where d.held + d.delta > 0), min(d.wanted_tp) filter (where d.held + d.delta > 0),
    coalesce(bool_and(d.frozen) filter (where d.held + d.delta > 0), false)
  into w.sum, w.parts, w.opens, w.shares, v_after, w.sl, w.tp, w.frozen
  from private.net_deltas(p_account, p_symbol, p_now) d join public.position_links l on l.id = d.link_id;
  if v_surplus <> 0 then
    w.sum := w.sum - v_surplus;
    w.parts := w.parts || jsonb_build_object('link_id', null, 'side', case
      when v_surplus > 0 then 'buy' else 'sell' end, 'lots', (-abs(v_surplus))::text,
      'surplus_of', (select n.surplus_link_id::text from private.net_ledgers n
        where n.account_id = p_account and n.symbol = p_symbol));
  end if;
  w.virtual := false;
  if w.shares <> 1 or p_net + w.sum <> v_after then
    w.virtual := w.sl is not null or w.tp is not null;
    w.sl := null;
    w.tp := null;
  end if;
  return w;
end $$;

-- Queues the deal for these parts; what it opens is no longer wanted. Returns its number.
create function private.queue_deal(
  p_account uuid, p_symbol text, p_side text, p_lots numeric, p_net numeric, p_ticket text, p_parts jsonb,
    p_target private.net_target, p_now timestamptz
) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_link public.position_links;
  v_opens boolean;
  v_levels private.levels;
  v_action text;
  v_copier public.copiers;
  v_master public.positions;
  v_draft private.execution_draft;
  v_new bigint;
begin
  select coalesce(bool_or((e ->> 'lots')::numeric > 0), false) into v_opens from jsonb_array_elements(p_parts) e;
  select l.* into v_link from jsonb_array_elements(p_parts) e
  join public.position_links l on l.id = (e ->> 'link_id')::bigint
  order by (e ->> 'lots')::numeric > 0 desc, l.id desc limit 1;
  -- "open" if the position may grow or a new one may result (the end of a short copy buys); a pure reduction names the
  -- position
  v_action := case when v_opens or private.sign_of(p_side) = sign(p_net) or p_lots > abs(p_net) or p_ticket is null
    then 'open' when p_lots = abs(p_net) then 'close' else 'reduce' end;
  v_levels := private.levels_to_ask(p_account, p_symbol, p_side, null, p_target.sl, p_target.tp, 0, p_now);
  select a.user_id into v_draft.user_id from public.trading_accounts a where a.id = p_account;
  select c.* into v_copier from public.copiers c where c.id = v_link.copier_id;  -- none when a surplus is all of it
  select m.* into v_master from public.positions m
  where m.account_id = v_link.master_account_id and m.ticket = v_link.master_ticket and m.kind = v_link.master_kind;
  v_draft.link_id := v_link.id;
  v_draft.lane := p_account || ':' || p_symbol;
  v_draft.copier_id := v_link.copier_id;
  v_draft.account_id := p_account;
  v_draft.master_account_id := v_link.master_account_id;
  v_draft.event_id := v_master.last_event_id;
  v_draft.action := v_action;
  v_draft.symbol := p_symbol;
  v_draft.side := case when v_action = 'open' then p_side when p_side = 'buy' then 'sell' else 'buy' end;
  v_draft.lots := p_lots;
  if v_action <> 'open' then
    v_draft.target_lots := abs(p_net) - p_lots;
    v_draft.ticket := p_ticket;
  end if;
  if v_opens then
    v_draft.sl := v_levels.sent_sl;
    v_draft.tp := v_levels.sent_tp;
    v_draft.max_slippage_points := v_copier.max_slippage_points;
  end if;
  v_draft.master_price := v_master.price;
  v_draft.master_lots := v_link.seen_master_lots;
  v_draft.comment := private.copy_comment(v_copier, v_link.master_ticket);
  v_draft.parts := p_parts;
  v_draft.warnings := case
    when p_target.shares > 1 or p_target.virtual then array['netting_sltp_virtual']
    when v_opens then v_levels.warnings
  end;
  v_draft.retry_until := p_now + make_interval(secs => v_copier.retry_window_s);
  v_draft.detected_at := v_master.detected_at;
  v_new := (private.queue_executions(array[v_draft], false, p_now))[1];
  perform private.take_from_wanted(p_target.parts, p_parts);
  -- every link of the deal is explained by it; of a flip's two links, the one that it reduces
  perform private.store_outcomes(array(
    select row(m.last_event_id, l.copier_id, l.user_id, l.id, v_new, null, null)::private.outcome
    from jsonb_array_elements(p_parts) e
    join public.position_links l on l.id = (e ->> 'link_id')::bigint
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind
    order by (e ->> 'lots')::numeric < 0 desc, l.id));
  return v_new;
end $$;

-- A stop loss that cannot be set at the broker protects only while its master's account is watched, so its user gets an
-- alert.
create function private.alert_virtual_levels(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(p_account, 'levels', 'netting_sltp_virtual', 'warning',
    format('%s: the position belongs to several copies (or in part to '
    'you), so their stop loss and take profit cannot stand on it. Each copy is closed when its master closes, by its '
    'stop too. '
    'Use a hedging account if every copy needs its own stop at the broker.', p_symbol),
      jsonb_build_object('symbol', p_symbol));
end $$;

-- Asks for the levels that the position must have. Returns the new execution.
create function private.queue_levels(p_account uuid, p_symbol text, p_net numeric, p_ticket text, p_sl numeric,
  p_tp numeric, p_now timestamptz)
returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_draft private.execution_draft;
  v_side text := case when p_net > 0 then 'buy' else 'sell' end;
  v_levels private.levels := private.levels_to_ask(p_account, p_symbol, v_side, null, p_sl, p_tp,
    (select n.modify_failures from private.net_ledgers n where n.account_id = p_account and n.symbol = p_symbol),
      p_now);
begin
  update private.net_ledgers n set modify_failures = case
    when (n.asked_sl, n.asked_tp) is distinct from (p_sl, p_tp) then 0 else n.modify_failures end,
    asked_sl = p_sl, asked_tp = p_tp, replan_at = null
  where n.account_id = p_account and n.symbol = p_symbol;
  select l.id, l.copier_id, l.user_id, l.master_account_id, m.last_event_id, m.detected_at
  into v_draft.link_id, v_draft.copier_id, v_draft.user_id, v_draft.master_account_id, v_draft.event_id,
    v_draft.detected_at
  from public.position_links l
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live'
  order by l.id desc limit 1;
  if not found then return null; end if;
  v_draft.lane := p_account || ':' || p_symbol;
  v_draft.account_id := p_account;
  v_draft.action := 'modify';
  v_draft.symbol := p_symbol;
  v_draft.side := v_side;
  v_draft.lots := abs(p_net);
  v_draft.ticket := p_ticket;
  v_draft.sl := v_levels.sent_sl;
  v_draft.tp := v_levels.sent_tp;
  v_draft.warnings := v_levels.warnings;
  return (private.queue_executions(array[v_draft], false, p_now))[1];
end $$;

-- Plans one netting symbol: nothing while a deal is handed out; else one deal, or the levels. Returns the new execution
-- or null. It is one decision, therefore a little over forty lines.
create function private.plan_net(p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_waiting public.trade_execution_queue;
  v_ledger private.net_ledgers;
  v_target private.net_target;
  v_ticket text;
  v_min numeric;
  v_max numeric;
  v_side text;
  v_lots numeric;
  v_parts jsonb;
begin
  select q.* into v_waiting from public.trade_execution_queue q
  where q.account_id = p_account and q.symbol = p_symbol and q.in_flight order by q.status = 'retrying' limit 1;
  if v_waiting.status <> 'retrying' then return null; end if;
  perform private.book_net(p_account, p_symbol, private.mirror_net(p_account, p_symbol), p_now);
  if v_waiting.parts is not null then perform private.give_back(v_waiting); end if;
  perform private.drop_wanted(p_account, p_symbol, p_now);
  perform private.shrink_rests(p_account, p_symbol);
  select * into v_ledger from private.net_ledgers where account_id = p_account and symbol = p_symbol;
  v_target := private.net_target_of(p_account, p_symbol, v_ledger.net_lots, p_now);
  if v_ledger.surplus_lots <> private.surplus_to_deal(p_account, p_symbol) then  -- nothing else would return to it
    update private.net_ledgers set replan_at = p_now + interval '30 s'
    where account_id = p_account and symbol = p_symbol;
  end if;
  select p.ticket into v_ticket from public.positions p
  where p.account_id = p_account and p.symbol = p_symbol and p.closed_at is null and p.kind = 'position'
  order by p.session desc, p.seq desc limit 1;  -- the last reported: an older one may not be known to be gone
  -- the levels are gone with the position
  if v_ticket is null and (v_ledger.asked_sl, v_ledger.asked_tp) is distinct from (null, null) then
    update private.net_ledgers set asked_sl = null, asked_tp = null, modify_failures = 0
    where account_id = p_account and symbol = p_symbol
    returning * into v_ledger;
  end if;
  select s.lots_min, div(s.lots_max, s.lots_step) * s.lots_step into v_min, v_max
  from public.account_symbols s where s.account_id = p_account and s.name = p_symbol;
  v_side := case when v_target.sum > 0 then 'buy' else 'sell' end;
  v_lots := least(abs(v_target.sum), v_max);
  v_parts := private.cut_parts(v_target.parts, v_side, v_lots);

  -- brokers accept a close of everything, however small
  if v_target.sum <> 0 and (v_lots >= v_min or v_ticket is not null and not v_target.opens
    and v_target.sum = -v_ledger.net_lots) then
    if v_waiting.parts = v_parts then  -- nothing has changed: it keeps waiting for its next attempt
      perform private.take_from_wanted(v_target.parts, v_parts);
      return null;
    end if;
    if v_waiting.id is not null then return private.plan_behind(v_waiting.id, p_account, p_symbol, p_now); end if;
    if not v_target.opens and v_ledger.failures > 0 and v_ledger.replan_at > p_now then return null; end if;
    if v_target.virtual then perform private.alert_virtual_levels(p_account, p_symbol); end if;
    return private.queue_deal(p_account, p_symbol, v_side, v_lots, v_ledger.net_lots, v_ticket, v_parts, v_target,
      p_now);
  end if;
  if v_target.sum = 0 and v_target.parts <> '[]' then  -- the links settle among themselves
    perform private.supersede(v_waiting.id, p_now);
    perform private.take_from_wanted(v_target.parts, v_target.parts);
    perform private.book_deal(p_account, p_symbol, 1, 0, null, v_target.parts);
    perform private.decide_for_symbol(p_account, p_symbol, p_now);
    return private.plan_net(p_account, p_symbol, p_now);
  end if;
  -- what waits is planned again when it is no longer frozen; while all trading is off nothing is requeued, but what a
  -- deal was to open is dropped
  if v_target.frozen then
    if v_waiting.parts is not null or private.trading_state() <> 'off' then
      perform private.supersede(v_waiting.id, p_now);
    end if;
    return null;
  end if;
  if v_waiting.action = 'modify'
    and (v_ledger.asked_sl, v_ledger.asked_tp) is not distinct from (v_target.sl, v_target.tp)
    and v_ticket is not null then
    return null;
  end if;
  if v_waiting.id is not null then return private.plan_behind(v_waiting.id, p_account, p_symbol, p_now); end if;
  if v_ticket is not null and v_target.shares > 0
    and ((v_target.sl, v_target.tp) is distinct from (v_ledger.asked_sl, v_ledger.asked_tp)
    or v_ledger.modify_failures between 1 and 2 and v_ledger.replan_at <= p_now) then
    if v_target.virtual then perform private.alert_virtual_levels(p_account, p_symbol); end if;
    return private.queue_levels(p_account, p_symbol, v_ledger.net_lots, v_ticket, v_target.sl, v_target.tp, p_now);
  end if;
  return null;
end $$;

-- Ends an execution that waits for another attempt because something else is wanted now. Its levels were never set, so
-- they count as not asked for and are asked for again.
create function private.supersede(p_id bigint, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
begin
  update public.trade_execution_queue x set status = 'cancelled', reason = 'superseded', finalized_at = p_now,
    updated_at = p_now
  where x.id = p_id and x.status = 'retrying' returning * into q;
  if q.action = 'modify' then
    update private.net_ledgers n set asked_sl = p.sl, asked_tp = p.tp
    from public.positions p
    where n.account_id = q.account_id and n.symbol = q.symbol and p.account_id = q.account_id and p.ticket = q.ticket
      and p.kind = 'position';
  end if;
end $$;

-- Plans a netting symbol without the execution that waits for another attempt; increases may have waited behind it.
create function private.plan_behind(p_id bigint, p_account uuid, p_symbol text, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
begin
  perform private.supersede(p_id, p_now);
  perform private.decide_for_symbol(p_account, p_symbol, p_now);
  return private.plan_net(p_account, p_symbol, p_now);
end $$;

-- Decides the increases that waited behind a deal of this symbol.
create function private.decide_for_symbol(p_account uuid, p_symbol text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_copiers uuid[];
begin
  select array_agg(l.master_account_id), array_agg(l.master_ticket), array_agg(distinct l.copier_id) into v_masters,
    v_tickets, v_copiers
  from public.position_links l where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live';
  perform private.decide(v_masters, v_tickets, v_copiers, p_now);
end $$;

-- Plans the netting symbols of the links, ended links included: what waited behind their deal may belong to other
-- links.
create function private.plan_nets(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_unit record;
  v_new bigint[] := '{}';
  v_one bigint;
begin
  for v_unit in
    select distinct l.follower_account_id, l.symbol from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'netting'
    where l.id = any (p_links) and l.symbol is not null
  loop
    perform private.mark_reductions_done(v_unit.follower_account_id, v_unit.symbol);
    v_one := private.plan_net(v_unit.follower_account_id, v_unit.symbol, p_now);
    if v_one is not null then v_new := v_new || v_one; end if;
    perform private.end_links(array(
      select l.id from public.position_links l
      where l.follower_account_id = v_unit.follower_account_id and l.symbol = v_unit.symbol and l.state = 'live'),
        p_now);
  end loop;
  return v_new;
end $$;

-- A reduction of the master counts as seen once it is carried out, as in plan_links.
create function private.mark_reductions_done(p_account uuid, p_symbol text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = s.master_lots
  from private.link_states s
  where l.follower_account_id = p_account and l.symbol = p_symbol and l.state = 'live' and s.id = l.id
    and s.master_kind = 'position'
    and not s.doomed and s.master_lots < l.seen_master_lots and l.base_lots is not null and l.wanted_lots is null
    and s.position_lots <= s.target_lots
    and not exists (select 1 from public.trade_execution_queue q
      where q.account_id = p_account and q.symbol = p_symbol and q.in_flight
        and (q.status <> 'retrying' or private.opens(q)));
end $$;

-- planner/pending_order.sql
-- Pending orders: what the copier does with the copy of an order besides following the master's order. The planner
-- calls it for links that were made from an order, when something has changed and at order_due_at.

-- The text that a broker shows with a copy: {master}, {ticket} and {copier} are replaced. Platforms cut it as they
-- must; nothing depends on it, because copies are recognised by their tags.
create function private.copy_comment(p_copier public.copiers, p_ticket text) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_copier.comment not like '%{%' then return p_copier.comment; end if;
  return left(replace(replace(replace(p_copier.comment, '{ticket}', p_ticket), '{copier}', p_copier.name), '{master}',
    (select coalesce(nullif(a.name, ''), a.login) from public.trading_accounts a
      where a.id = p_copier.master_account_id)), 100);
end $$;

-- Why the copy of an order that has filled at the master may not be opened at the market now; null: it may.
create function private.no_conversion(p_copier public.copiers, p_master public.positions,
  p_symbol public.account_symbols, p_side text, p_now timestamptz)
returns text
language plpgsql stable set search_path = '' as $$
declare
  v_adverse numeric;
  v_shut text;
begin
  select coalesce(private.opening_blocked_reason(private.trading_state(), a.copy_state, a.copy_state_reason,
    p_copier.mode, p_copier.removal), private.time_refusal(a.id, p_symbol.name, p_master.symbol, p_now)) into v_shut
  from public.trading_accounts a where a.id = p_copier.follower_account_id;
  if v_shut is not null then return v_shut; end if;
  -- the grace period was our own wait, so it does not count towards the age
  if p_now > private.convertible_until(p_copier, p_master) then return 'too_old'; end if;
  if p_copier.max_slippage_points is not null then
    if not private.is_fresh(p_symbol, p_now) then return 'no_quotes'; end if;
    v_adverse := case p_side when 'buy' then p_symbol.ask - p_master.price else p_master.price - p_symbol.bid end;
    if v_adverse > p_copier.max_slippage_points * 10::numeric ^ -p_symbol.digits then return 'slippage'; end if;
  end if;
  return null;
end $$;

create function private.convertible_until(p_copier public.copiers, p_master public.positions) returns timestamptz
language plpgsql immutable set search_path = '' as $$
begin
  return p_master.unseen_at + make_interval(secs => (p_copier.max_age_ms + p_copier.pending_grace_ms) / 1000.0);
end $$;

-- Queues the cancelling of every pending order that a link holds.
create function private.queue_cancel(p_link public.position_links, p_event bigint, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_order private.link_legs;
  v_draft private.execution_draft;
  v_drafts private.execution_draft[];
begin
  v_draft.step_id := nextval('public.trade_execution_queue_id_seq');
  v_draft.link_id := p_link.id;
  v_draft.copier_id := p_link.copier_id;
  v_draft.user_id := p_link.user_id;
  v_draft.account_id := p_link.follower_account_id;
  v_draft.master_account_id := p_link.master_account_id;
  v_draft.event_id := p_event;
  v_draft.action := 'cancel';
  v_draft.symbol := p_link.symbol;
  v_draft.side := p_link.side;
  v_draft.target_lots := 0;
  for v_order in select * from private.link_legs g where g.link_id = p_link.id and g.kind = 'order' loop
    v_draft.lots := v_order.lots;
    v_draft.ticket := v_order.ticket;
    v_drafts := v_drafts || v_draft;
  end loop;
  return private.queue_executions(v_drafts, false, p_now);
end $$;

-- Queues the market order that replaces a cancelled order.
create function private.queue_conversion(
  p_link public.position_links, p_copier public.copiers, p_master public.positions, p_symbol public.account_symbols,
    p_now timestamptz
) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.first_levels(p_copier, p_master, p_symbol, p_link.side, null, p_now);
  v_draft private.execution_draft;
begin
  v_draft.link_id := p_link.id;
  v_draft.copier_id := p_link.copier_id;
  v_draft.user_id := p_link.user_id;
  v_draft.account_id := p_link.follower_account_id;
  v_draft.master_account_id := p_link.master_account_id;
  v_draft.event_id := p_master.last_event_id;
  v_draft.action := 'open';
  v_draft.symbol := p_link.symbol;
  v_draft.side := p_link.side;
  v_draft.lots := p_link.wanted_lots;
  v_draft.sl := v_levels.sent_sl;
  v_draft.tp := v_levels.sent_tp;
  v_draft.max_slippage_points := p_copier.max_slippage_points;
  v_draft.master_price := p_master.price;
  v_draft.master_lots := p_master.lots;
  v_draft.comment := private.copy_comment(p_copier, p_master.ticket);
  v_draft.warnings := v_levels.warnings;
  v_draft.retry_until := p_now + make_interval(secs => p_copier.retry_window_s);
  v_draft.detected_at := p_master.detected_at;
  update public.position_links l set wanted_lots = null, wanted_until = null, asked_price = null,
    asked_sl = v_levels.sl, asked_tp = v_levels.tp, asked_unknown = false
  where l.id = p_link.id;
  return (private.queue_executions(array[v_draft], false, p_now))[1];
end $$;

create function private.end_order(p_link bigint, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set state = 'ended', reason = p_reason, ended_at = p_now, replan_at = null,
    order_due_at = null,
    wanted_lots = null, wanted_until = null
  where l.id = p_link and l.ended_at is null;
end $$;

-- The master's order has filled into a position that its netting account already held. If that position is copied and
-- grew by the fill, what the order's copy has filled becomes part of that copy, and the increase is done: returns true.
-- Otherwise the order's copy is closed or cancelled like that of any order that is gone, and the position's own copy
-- follows its position.
create function private.join_filled_order(p_link public.position_links, p_filled numeric,
  p_now timestamptz) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_into public.position_links;
  v_master numeric;
  v_base numeric;
  v_asked boolean;  -- whether its levels are as wanted: those of the order's copy may not be
begin
  select l.* into v_into
  from public.positions o
  join public.position_links l on l.master_account_id = o.account_id and l.master_ticket = o.replaced_by
    and l.master_kind = o.replaced_by_kind and l.ended_at is null
  where o.account_id = p_link.master_account_id and o.ticket = p_link.master_ticket and o.kind = p_link.master_kind
    and l.copier_id = p_link.copier_id
    and l.side = p_link.side
    and l.symbol = p_link.symbol and l.base_lots is not null and l.wanted_lots is null and l.asked_price is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
  select m.lots into v_master from public.positions m
  where m.account_id = v_into.master_account_id and m.ticket = v_into.master_ticket and m.kind = v_into.master_kind;
  if v_into.id is null or v_master <= v_into.seen_master_lots is not false then return false; end if;
  select not s.asked_unknown and (s.asked_sl, s.asked_tp) is not distinct from (s.wanted_sl, s.wanted_tp),
    private.target_lots(s.base_lots, s.seen_master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots)
  into v_asked, v_base from private.link_states s where s.id = v_into.id;
  -- like every fill it rebases the pair: the order may have been copied at another ratio
  update public.position_links l set base_lots = v_base + p_filled,
    base_master_lots = least(v_master, l.seen_master_lots + p_link.seen_master_lots),
    seen_master_lots = least(v_master, l.seen_master_lots + p_link.seen_master_lots),
    asked_sl = case when v_asked then p_link.asked_sl else l.asked_sl end,
    asked_tp = case when v_asked then p_link.asked_tp else l.asked_tp end,
    asked_unknown = case when v_asked then p_link.asked_unknown else l.asked_unknown end
  where l.id = v_into.id;
  update private.link_legs g set link_id = v_into.id where g.link_id = p_link.id;
  perform private.end_order(p_link.id, 'coalesced', p_now);
  return true;
end $$;

-- Handles the orders of these links that have nothing in flight. Returns new executions.
create function private.handle_orders(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_state record;
  v_link public.position_links;
  v_new bigint[] := '{}';
begin
  for v_state in
    select s.id, s.master_kind, s.master_lots, s.doomed, s.frozen, s.copy_state, s.position_lots, s.order_lots,
      s.master_event_id,
      exists (select 1 from public.positions o
        where o.account_id = s.master_account_id and o.ticket = s.master_ticket and o.kind = 'order'
          and s.master_kind = 'order'
          and o.replaced_by is not null) as replaced
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.asked_price is not null
      and s.executions = 0
  loop
    select * into v_link from public.position_links l where l.id = v_state.id;
    if v_state.replaced then  -- it has filled: the policies for unfilled orders do not apply
      if v_state.position_lots > 0 and v_state.order_lots = 0 and not v_state.frozen
        and v_state.copy_state <> 'flattening' then
        perform private.join_filled_order(v_link, v_state.position_lots, p_now);
      end if;
      update public.position_links l set order_due_at = null
      where l.id = v_state.id and l.ended_at is null and l.order_due_at <= p_now;
    elsif v_state.master_kind = 'order' then
      v_new := v_new || private.handle_waiting_order(v_link, v_state.master_event_id, v_state.master_lots = 0,
        v_state.doomed or v_state.frozen,
        v_state.copy_state = 'flattening', v_state.position_lots, v_state.order_lots, p_now);
    else
      v_new := v_new || private.handle_filled_order(v_link, v_state.doomed
        or v_state.frozen, v_state.position_lots, v_state.order_lots, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- While the master's order waits (p_gone: was cancelled): its expiry, even if nobody reports it, and a copy that has
-- filled first.
create function private.handle_waiting_order(
  p_link public.position_links, p_event bigint, p_gone boolean, p_stop boolean, p_flattening boolean, p_filled numeric,
    p_orders numeric,
  p_now timestamptz
) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_policy text;
  v_new bigint[];
begin
  if p_gone and p_filled > 0 and p_orders = 0 and not p_flattening then
    select c.early_fill_policy into v_policy from public.copiers c where c.id = p_link.copier_id;
    if v_policy = 'keep' then
      perform private.end_order(p_link.id, 'master_never_filled', p_now);
    elsif not 'master_never_filled' = any (p_link.warnings) then
      update public.position_links l set warnings = l.warnings || 'master_never_filled'::text where l.id = p_link.id;
    end if;
  elsif not p_stop and p_filled = 0 and p_link.asked_expires_at <= p_now + interval '2 s' then
    if p_orders = 0 then  -- its broker's clock may be a little ahead
      perform private.end_order(p_link.id, 'order_expired', p_now);
    elsif p_link.asked_expires_at + interval '1 s' <= p_now
      and (p_link.replan_at is null or p_link.replan_at <= p_now) then
      v_new := private.queue_cancel(p_link, p_event, p_now);
    end if;
  end if;
  if p_link.order_due_at <= p_now then
    update public.position_links l set order_due_at = null where l.id = p_link.id and l.ended_at is null;
  end if;
  return coalesce(v_new, '{}');
end $$;

-- The master's order has filled. The copy gets its grace period; then it is opened at the market instead. The order is
-- cancelled first, and the market order is queued only when the order is known to be gone unfilled, so that there is
-- never more than one position.
create function private.handle_filled_order(p_link public.position_links, p_stop boolean, p_filled numeric,
  p_orders numeric, p_now timestamptz)
returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_master public.positions;
  v_symbol public.account_symbols;
  v_why text;
begin
  if p_filled > 0 or p_stop then  -- it has filled by itself, or nothing of it is wanted
    update public.position_links l set wanted_lots = null, wanted_until = null, order_due_at = null,
      asked_expires_at = null, asked_price = case when p_filled = 0 or p_orders > 0 then l.asked_price end
    where l.id = p_link.id;
    return '{}';
  end if;
  select * into v_copier from public.copiers c where c.id = p_link.copier_id;
  select * into v_master from public.positions m
  where m.account_id = p_link.master_account_id and m.ticket = p_link.master_ticket and m.kind = p_link.master_kind;
  select * into v_symbol from public.account_symbols s
  where s.account_id = p_link.follower_account_id and s.name = p_link.symbol;
  if p_orders = 0 and p_link.wanted_lots is null then return '{}'; end if;  -- its user cancelled it
  if p_orders > 0 and (p_link.order_due_at is null or p_link.asked_expires_at is not null)
    and p_link.wanted_lots is null
    and not 'order_not_filled' = any (p_link.warnings) then
    update public.position_links l set asked_expires_at = null,
      order_due_at = p_now + make_interval(secs => v_copier.pending_grace_ms / 1000.0)
    where l.id = p_link.id returning * into p_link;
  end if;
  if p_link.wanted_lots is null and coalesce(p_link.order_due_at, 'infinity') > p_now or p_link.replan_at > p_now then
    return '{}';
  end if;
  v_why := private.no_conversion(v_copier, v_master, v_symbol, p_link.side, p_now);
  if p_orders = 0 then
    if v_why is null then return array[private.queue_conversion(p_link, v_copier, v_master, v_symbol, p_now)]; end if;
    perform private.end_order(p_link.id, v_why, p_now);
    update public.copy_outcomes o set execution_id = null, reason = v_why
    where o.event_id = v_master.last_event_id and o.copier_id = v_copier.id;
    return '{}';
  end if;
  if v_why is not null then
    update public.position_links l set warnings = l.warnings || 'order_not_filled'::text, order_due_at = null,
      wanted_lots = null, wanted_until = null
    where l.id = p_link.id and not 'order_not_filled' = any (l.warnings);
    perform private.raise_alert(p_link.follower_account_id, 'pending', 'order_not_filled', 'warning', format(
      'The master''s order in %s has filled at %s, its copy of %s lots has not, and the market is not taken instead '
      '(%s). The copy''s order stays.',
      p_link.symbol, v_master.price, private.plain(p_orders), v_why),
        jsonb_build_object('link_id', p_link.id::text, 'why', v_why));
    return '{}';
  end if;
  update public.position_links l set wanted_lots = p_orders,
    wanted_until = private.convertible_until(v_copier, v_master), order_due_at = null
  where l.id = p_link.id;
  return private.queue_cancel(p_link, v_master.last_event_id, p_now);
end $$;

-- planner/plan.sql
-- plan(): the planner's entry point. It decides opens and increases, then plans links and net positions.

-- The whole planner. p_links: live links to look at; p_masters and p_tickets: master positions and orders that may wait
-- for a decision (a number may be one of each), of the copiers p_copiers (null: all). The caller holds the plan locks.
-- Returns the new executions, not yet handed out.
create function private.plan(p_links bigint[], p_masters uuid[], p_tickets text[], p_copiers uuid[],
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_decided bigint[];
begin
  if p_links is not null then
    perform private.book_links(p_links);
    v_new := private.plan_links(p_links, p_now);
  end if;
  -- a position that the master has closed waits for no decision; after a report there is rarely one either: checking
  -- first is cheaper than deciding nothing
  if p_links is null or exists (
      select 1 from unnest(p_masters, p_tickets) as u (master, ticket)
      join public.positions m on m.account_id = u.master and m.ticket = u.ticket and m.lots > 0)
    and exists (select 1 from private.undecided(p_masters, p_tickets, p_copiers)) then
    v_new := coalesce(v_new, '{}') || coalesce(private.decide(p_masters, p_tickets, p_copiers, p_now), '{}');
  end if;
  if exists (select from private.symbol_waits w
    where w.master_account_id = any (p_masters) and w.ticket = any (p_tickets)) then
    perform private.end_waits(p_masters, p_tickets, p_now);
  end if;
  select array_agg(l.id) into v_decided from public.position_links l
  where l.master_account_id = any (p_masters) and l.master_ticket = any (p_tickets) and l.ended_at is null
    and (p_copiers is null or l.copier_id = any (p_copiers));
  return coalesce(v_new, '{}') || coalesce(private.plan_nets(coalesce(p_links, '{}') || coalesce(v_decided, '{}'),
    p_now), '{}');
end $$;

-- Plans links and the decisions that wait for them; the caller holds their locks.
create function private.plan_again(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_copiers uuid[];
begin
  if p_links is null or cardinality(p_links) = 0 then return null; end if;
  select array_agg(l.master_account_id), array_agg(l.master_ticket), array_agg(distinct l.copier_id) into v_masters,
    v_tickets, v_copiers
  from public.position_links l where l.id = any (p_links);
  if v_masters is null then return null; end if;
  return private.plan(p_links, v_masters, v_tickets, v_copiers, p_now);
end $$;

-- Whether a change of a position may be the fill of a pending order. Copies of that order must be planned too, because
-- they continue under the order's ticket.
create function private.order_filled_into(p_position jsonb, p_previous_lots numeric) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_previous_lots > 0 and p_position ->> 'replaces' <> p_position ->> 'ticket', false);
end $$;

-- Links that a change of these tickets concerns, of either kind: with the account as master, and as follower.
create function private.links_of_tickets(p_account uuid, p_tickets text[]) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select array_agg(id) from (
      select l.id from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = any (p_tickets) and l.ended_at is null
      union
      select l.id from private.link_legs g join public.position_links l on l.id = g.link_id
      where g.account_id = p_account and g.ticket = any (p_tickets) and l.ended_at is null
      union
      select l.id from public.positions p
      join public.trading_accounts a on a.id = p_account and (a.mode = 'netting' or a.copy_state = 'flattening')
      join public.position_links l on l.follower_account_id = p_account and l.symbol = p.symbol and l.state = 'live'
      where p.account_id = p_account and p.ticket = any (p_tickets)
    ) x);
end $$;

-- Plans what events changed, and gives each of their pairs its reason.
create function private.plan_events(p_account uuid, p_events bigint[], p_types text[], p_tickets text[],
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.links_of_tickets(p_account, p_tickets);
  v_new bigint[];
begin
  if v_links is not null and p_types && array['reduced', 'closed', 'cancelled', 'opened'] then
    perform private.wait_no_longer(array(
      select l.id from unnest(p_types, p_tickets) as e (type, ticket)
      join public.position_links l on l.master_account_id = p_account and l.master_ticket = e.ticket
        and l.id = any (v_links)
      where e.type in ('reduced', 'closed', 'cancelled', 'opened')), p_now);
  end if;
  v_new := private.plan(v_links, array_fill(p_account, array[cardinality(p_tickets)]), p_tickets, null, p_now);
  -- a decision may have waited for this: an increase for the fill of one of our orders, a flip for the end of the old
  -- copy
  v_new := coalesce(v_new, '{}') || coalesce(private.plan_again(array(
    select l.id from public.position_links l where l.id = any (v_links) and l.follower_account_id = p_account), p_now),
      '{}');
  perform private.explain_rest(p_account, p_events, p_types, p_tickets);
  return v_new;
end $$;

-- Records the changes that reports made on an account that is itself a master, as events, and plans them.
create function private.plan_changes(p_account uuid, p_changes jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_change jsonb;
  v_id bigint;
  v_events bigint[] := '{}';
  v_tickets text[] := '{}';
  v_types text[] := '{}';
  v_new bigint[];
begin
  if not exists (select 1 from public.copiers c where c.master_account_id = p_account and c.removed_at is null) then
    return null;
  end if;
  select * into v_account from public.trading_accounts where id = p_account;
  for v_change in select value from jsonb_array_elements(p_changes) loop
    v_id := nextval('public.trade_events_id_seq');
    perform private.record_event(v_account, v_id, jsonb_build_object('detected_at', p_now, 'unchanged_at', p_now,
      'deal_price', v_change -> 'price'), 'report', v_change ->> 'type',
      'accepted', null, null, v_change -> 'position', (v_change ->> 'previous_lots')::numeric, v_change -> 'position');
    update public.positions set last_event_id = v_id, detected_at = p_now
    where account_id = p_account and ticket = v_change #>> '{position,ticket}'
      and kind = v_change #>> '{position,kind}';
    v_events := v_events || v_id;
    v_tickets := v_tickets || (v_change #>> '{position,ticket}');
    v_types := v_types || (v_change ->> 'type');
    if private.order_filled_into(v_change -> 'position', (v_change ->> 'previous_lots')::numeric) then
      v_events := v_events || v_id;
      v_tickets := v_tickets || (v_change #>> '{position,replaces}');
      v_types := v_types || (v_change ->> 'type');
    end if;
  end loop;
  if cardinality(v_tickets) = 0 then return null; end if;
  v_new := private.plan(private.links_of_tickets(p_account, v_tickets),
    array_fill(p_account, array[cardinality(v_tickets)]), v_tickets, null, p_now);
  perform private.explain_rest(p_account, v_events, v_types, v_tickets);
  return v_new;
end $$;

-- Decides the pairs of these followers that wait for symbols, if what they wait for was told or their time is over. The
-- caller holds the followers' locks. Returns the new executions, not yet handed out.
create function private.decide_waiting_symbols(p_followers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  w record;
  v_new bigint[] := '{}';
begin
  for w in
    select s.asked, array_agg(s.master_account_id order by s.news_at, s.ticket) as masters,
      array_agg(s.ticket order by s.news_at, s.ticket) as tickets,
      array_agg(s.kind order by s.news_at, s.ticket) as kinds, array_agg(distinct s.copier_id) as copiers
    from private.symbol_waits s where s.follower_account_id = any (p_followers)
    -- what a user asked of one copier is asked of no other
    group by s.asked, case when s.asked is not null then s.copier_id end order by min(s.news_at)
  loop
    if w.asked is null then
      v_new := v_new || private.plan(null, w.masters, w.tickets, w.copiers, p_now);
    else
      v_new := v_new || coalesce(private.decide_kinds(w.masters, w.tickets, w.kinds, w.copiers, p_now, w.asked),
        '{}');
      v_new := v_new || coalesce(private.plan_nets(array(
        select l.id from public.position_links l
        where l.master_account_id = any (w.masters) and l.master_ticket = any (w.tickets)
          and l.copier_id = any (w.copiers) and l.ended_at is null), p_now), '{}');
    end if;
    perform private.end_waits(w.masters, w.tickets, p_now);
  end loop;
  return v_new;
end $$;

-- Plans everything of a copier after a change of its settings or mode; a copier that is resumed catches up on closes
-- and levels. The caller has locked both its accounts.
create function private.replan_copier(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  perform private.withdraw_opens(p_copier, p_now);
  select array_agg(l.id) into v_links from public.copiers c
  join public.position_links l on l.follower_account_id = c.follower_account_id and l.copier_id = c.id
    and l.state = 'live'
  where c.id = p_copier;
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(private.plan_again(v_links, p_now)
    || private.decide_waiting_symbols(array(select c.follower_account_id from public.copiers c where c.id = p_copier),
      p_now), null, clock_timestamp());
end $$;

-- planner/protection.sql
-- Protection: every report of an account's funds is checked against its rules. A limit that two reports have reached
-- triggers the rule's action. Unknown or late funds do not count: they neither trigger a rule nor rearm it.

-- The rule, measuring from now: the day's start or the high-water mark is this figure (null: the next that is known),
-- and nothing is triggered.
create function private.rearmed(r public.protection_rules, p_at timestamptz, p_equity numeric,
  p_balance numeric) returns public.protection_rules
language plpgsql stable set search_path = '' as $$
declare
  v_day date := private.rule_day(r, clock_timestamp());
begin
  r.day := null;
  r.day_start_equity := null;
  r.day_start_at := null;
  r.high_water_mark := null;
  r.breached_at := null;
  r.breached_equity := null;
  r.triggered_at := null;
  if p_equity is not null and r.kind in ('daily_loss', 'daily_profit') then
    r.day := v_day;
    r.day_start_equity := case r.basis when 'equity' then p_equity when 'balance' then p_balance
      else greatest(p_equity, p_balance) end;
    r.day_start_at := p_at;
  elsif p_equity is not null and r.kind = 'trailing_drawdown' then
    r.high_water_mark := case r.moves_with when 'day_end_balance' then p_balance else p_equity end;
    r.day_start_at := p_at;
    r.day := case when r.moves_with = 'day_end_balance' then v_day end;
  end if;
  return r;
end $$;

-- A high-water mark that begins: with a fixed allowance it is never below the initial balance.
create function private.first_high(r public.protection_rules, p_figure numeric, p_initial numeric) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case when private.rule_of(r) in ('initial', 'amount') then greatest(p_figure, p_initial) else p_figure end;
end $$;

-- The rule after the look's time has moved its day and its high-water mark.
create function private.moved_on(r public.protection_rules, p_look private.look, p_before private.look,
  p_initial numeric) returns public.protection_rules
language plpgsql stable set search_path = '' as $$
declare
  v_day date := private.rule_day(r, p_look.at);
  -- The last figures before the day began, if the account was seen on both sides of that time: the first ones after it
  -- may be a tick of the rollover.
  v_at_end private.look := case when r.day is not null
    and p_look.at - p_before.at <= private.setting_s('funds_max_age_s') then p_before else p_look end;
begin
  if r.kind in ('daily_loss', 'daily_profit') and (r.day is null or v_day > r.day) then
    r := private.rearmed(r, v_at_end.at, v_at_end.equity, v_at_end.balance);
    r.day := v_day;
  elsif r.kind = 'trailing_drawdown' and r.moves_with = 'day_end_balance' then
    if r.high_water_mark is null then
      r.high_water_mark := private.first_high(r, coalesce(p_before.balance, p_look.balance), p_initial);
      r.day_start_at := coalesce(p_before.at, p_look.at);
    elsif v_day > r.day then
      r.high_water_mark := greatest(r.high_water_mark, v_at_end.balance);
    end if;
    r.day := greatest(r.day, v_day);
  elsif r.kind = 'trailing_drawdown' then
    if r.high_water_mark is null then
      r.high_water_mark := private.first_high(r, p_look.equity, p_initial);
      r.day_start_at := p_look.at;
    -- a high counts when two consecutive looks have reached it; not confirm_ms apart, because looks a second apart
    -- would then never make one
    elsif p_look.at - p_before.at >= interval '250 ms' then
      r.high_water_mark := greatest(r.high_water_mark, least(p_look.equity, p_before.equity));
    end if;
  end if;
  return r;
end $$;

-- One look. Returns the rule after it and the verdict: null (not past the limit), first, waiting (too soon after the
-- first), contradicted, confirmed; and whether to warn that much of the allowance is used. p_before: the account's
-- previous look.
create function private.judge_rule(
  inout r public.protection_rules, p_look private.look, p_before private.look, p_initial numeric,
  out verdict text, out warns boolean
) language plpgsql stable set search_path = '' as $$
declare
  v_reached boolean;
  v_warn_at numeric;
begin
  r := private.moved_on(r, p_look, p_before, p_initial);
  v_reached := private.limit_reached(r, p_initial, p_look.equity, p_look.margin);
  if r.triggered_at is not null or v_reached is null then
    return;
  end if;
  if r.warn_percent > 0 and r.warned_day is distinct from private.rule_day(r, p_look.at) then
    v_warn_at := private.limit_at(r, p_initial, r.warn_percent);
    warns := private.value_reached(r, v_warn_at, p_look.equity, p_look.margin)
      and private.value_reached(r, v_warn_at, p_before.equity, p_before.margin);
    if warns then r.warned_day := private.rule_day(r, p_look.at); end if;
  end if;
  if not v_reached then
    if r.breached_at is not null then
      verdict := 'contradicted';
    end if;
    r.breached_at := null;
    r.breached_equity := null;
  elsif r.breached_at is null then
    verdict := 'first';
    r.breached_at := p_look.at;
    r.breached_equity := p_look.equity;
  elsif p_look.at - r.breached_at < make_interval(secs => r.confirm_ms / 1000.0) then
    verdict := 'waiting';
  else
    verdict := 'confirmed';
  end if;
end $$;

-- Carries out a rule whose limit two looks have reached. The caller holds the plan locks of the account and its
-- neighbours.
create function private.trigger_rule(r public.protection_rules, p_initial numeric, p_look private.look,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_action text := private.rule_action(r);
begin
  update public.protection_rules set triggered_at = p_look.at where id = r.id;
  perform private.raise_alert(r.account_id, 'protection', r.kind,
    case v_action when 'notify' then 'warning' else 'critical' end,
    private.protection_message(r, (select a.currency from public.trading_accounts a where a.id = r.account_id),
      p_initial, p_look),
    jsonb_build_object('rule_id', r.id, 'action', v_action, 'threshold', r.threshold::text, 'limit',
      private.rule_limit(r, p_initial)::text,
      'looks', jsonb_build_array(
        jsonb_build_object('at', private.rfc3339(r.breached_at), 'equity', r.breached_equity::text),
        jsonb_build_object('at', private.rfc3339(p_look.at), 'equity', p_look.equity::text, 'margin',
          p_look.margin::text))));
  case v_action
    when 'notify' then null;
    when 'monitor' then perform private.stop_opening(r.account_id, r.kind, p_now);
    when 'close_all' then perform private.start_flattening(r.account_id, r.close_manual, null, r.kind, p_now);
    when 'close_all_until_next_day' then perform private.stop_until_next_day(r, p_look.at, p_now);
    when 'close_all_and_off' then perform private.start_flattening(r.account_id, r.close_manual, 'off', r.kind, p_now);
  end case;
end $$;

-- The initial balance of an account, or the first balance that is known.
create function private.initial_balance(p_account uuid, p_balance numeric) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select coalesce(a.initial_balance, case when p_balance > 0 then p_balance end)
    from public.trading_accounts a where a.id = p_account);
end $$;

-- The same for a rule: one that counts balance operations as profits and losses keeps the balance without them.
create function private.initial_for(r public.protection_rules, p_balance numeric) returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return private.initial_balance(r.account_id, p_balance) - case when r.count_balance_operations
    then (select a.initial_moved from public.trading_accounts a where a.id = r.account_id) else 0 end;
end $$;

-- Checks an account's funds against its rules, before the account's own row is updated. Returns the milliseconds after
-- which the funds must be read again; null: at the usual pace. Figures of another session, or older than what is known,
-- are not a look.
-- p_moved: balance operations that these figures contain and the last ones did not.
create function private.check_protection(p_vps uuid, p_account uuid, p_session bigint, p_look private.look,
  p_moved numeric) returns integer
language plpgsql security definer set search_path = '' as $$
declare
  v_before private.look;
  v_initial numeric;
  v_rule public.protection_rules;
  v_look record;
  v_now timestamptz;
  v_again integer;
begin
  -- Plan locks come before every row lock of this transaction, and only a second look or a new day can need them.
  if exists (
    select 1 from public.protection_rules r
    where r.account_id = p_account and r.enabled and r.breached_at is not null and r.triggered_at is null)
    or exists (select 1 from public.trading_accounts a where a.id = p_account and a.resumes_at <= p_look.at)
  then
    v_now := private.lock_accounts(private.with_neighbours(p_account));
  end if;
  select a.funds_at, a.equity + p_moved, a.balance + p_moved, a.margin into v_before from public.trading_accounts a
  where a.id = p_account and a.session = p_session and a.session_vps_id = p_vps and a.removed_at is null
    and p_look.at >= coalesce(a.funds_at, '-infinity');
  if not found or p_look.at < clock_timestamp() - private.setting_s('protection_max_age_s') then
    return null;
  end if;
  if v_now is not null then
    perform private.resume_account(p_account, p_look.at, v_now);
  end if;
  for v_rule in
    -- The mildest action first: rules of one kind share an alert, and the last one's message stands.
    select * from public.protection_rules r where r.account_id = p_account and r.enabled
    order by array_position(array['notify', 'monitor', 'close_all', 'close_all_until_next_day', 'close_all_and_off'],
      private.rule_action(r)), r.id
    for no key update
  loop
    v_initial := private.initial_for(v_rule, p_look.balance);
    select * into v_look from private.judge_rule(v_rule, p_look, v_before, v_initial);
    if v_look.verdict = 'confirmed' and v_now is null then  -- another call made the first look meanwhile
      v_look.verdict := 'waiting';
    end if;
    perform private.keep_look(v_rule, v_look.r, v_look.verdict, v_initial, p_look);
    if v_look.verdict = 'confirmed' then
      perform private.trigger_rule(v_look.r, v_initial, p_look, v_now);
    elsif v_look.warns then
      perform private.warn_of_rule(v_look.r, v_initial, p_look);
    end if;
    if v_look.verdict in ('first', 'waiting') then
      v_again := least(v_again, (v_look.r).confirm_ms + 10);
    end if;
  end loop;
  return v_again;
end $$;

-- Stores the rule after a look, and the look itself if it was past the limit or contradicted the one before.
create function private.keep_look(p_old public.protection_rules, p_new public.protection_rules, p_verdict text,
  p_initial numeric, p_look private.look) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_old is distinct from p_new then
    update public.protection_rules r set day = p_new.day, day_start_equity = p_new.day_start_equity,
      day_start_at = p_new.day_start_at, warned_day = p_new.warned_day,
      high_water_mark = p_new.high_water_mark, breached_at = p_new.breached_at, breached_equity = p_new.breached_equity
    where r.id = p_old.id;
    if p_old.triggered_at is distinct from p_new.triggered_at then
      update public.protection_rules r set triggered_at = p_new.triggered_at where r.id = p_old.id;
    end if;
  end if;
  if p_verdict in ('first', 'contradicted', 'confirmed') then
    insert into public.protection_looks (rule_id, user_id, account_id, kind, at, equity, margin, reached, outcome)
    values (p_old.id, p_old.user_id, p_old.account_id, p_old.kind, p_look.at, p_look.equity, p_look.margin,
      private.rule_limit(p_new, p_initial), p_verdict);
  end if;
end $$;

-- planner/protection_message.sql
-- What protection rules tell people.

-- How a rule's limit came about.
create function private.limit_words(r public.protection_rules, p_initial numeric) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_limit text := private.rule_limit(r, p_initial)::text;
  v_percent text := trim_scale(r.threshold)::text;
  v_allowance text := case private.rule_of(r)
    when 'amount' then v_percent
    when 'initial' then format('%s %% of the initial balance %s', v_percent, trim_scale(p_initial))
    else v_percent || ' %' end;
begin
  return v_limit || case
      when r.kind = 'daily_loss' then format(' (%s under the %s of the day''s start)', v_allowance, r.day_start_equity)
      when r.kind = 'daily_profit' then format(' (%s above the %s of the day''s start)', v_allowance,
        r.day_start_equity)
      when r.kind = 'trailing_drawdown' and private.whole_limit(r, p_initial) = r.locks_at then ' (where it is locked)'
      when r.kind = 'trailing_drawdown' then format(' (%s under the high of %s)', v_allowance, r.high_water_mark)
      when private.rule_of(r) = 'initial' then format(' (%s)', v_allowance)
      else '' end
    || case when r.cushion_percent > 0 then format(', with a cushion of %s %%', trim_scale(r.cushion_percent))
      else '' end;
end $$;

create function private.rule_title(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case r.kind when 'daily_loss' then 'Daily loss' when 'daily_profit' then 'Daily profit'
    when 'trailing_drawdown' then 'Trailing drawdown' when 'equity_floor' then 'Equity floor'
    when 'equity_target' then 'Equity target' else 'Margin use' end;
end $$;

-- The message of a rule that has triggered.
create function private.protection_message(r public.protection_rules, p_currency text, p_initial numeric,
  p_look private.look) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_limit text := private.limit_words(r, p_initial);
begin
  return case r.kind
      when 'equity_floor' then format('Equity floor: equity is %s %s, the floor is %s.', p_look.equity, p_currency,
        v_limit)
      when 'equity_target' then format('Equity target: equity is %s %s, the target is %s.', p_look.equity, p_currency,
        v_limit)
      when 'max_margin_use' then format('Margin use: %s %s of margin at %s of equity have reached %s %%.',
        p_look.margin, p_currency, p_look.equity, v_limit)
      else format('%s: equity is %s %s, the limit is %s.', private.rule_title(r), p_look.equity, p_currency,
        v_limit) end
    || case private.rule_action(r)
      when 'notify' then ' Nothing was changed.'
      when 'monitor' then ' Nothing is opened on the account any more; closes go on. Switch it on again when you want '
        'to go on.'
      when 'close_all' then ' Everything on the account is being closed; when it is flat, copying goes on as before.'
      when 'close_all_until_next_day' then format(' Everything on the account is being closed and nothing is opened '
        'until %s %s (%s); then copying goes on by itself.', to_char(private.rule_day_ends(r, p_look.at)
        at time zone r.time_zone, 'YYYY-MM-DD HH24:MI'), r.time_zone, private.rfc3339(private.rule_day_ends(r,
        p_look.at)))
      else ' Everything on the account is being closed, then it is off. Switch it on again when you want to go on.' end
    || case when r.kind in ('daily_loss', 'daily_profit') then ' The rule watches again from the next day''s start, or '
      'once it is reset.' else ' The rule watches again once it is reset.' end;
end $$;

-- An alert, once a day, that much of a rule's allowance is used.
create function private.warn_of_rule(r public.protection_rules, p_initial numeric, p_look private.look) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(r.account_id, 'protection_near', r.kind, 'warning',
    format('%s: %s %% of the allowance is used: equity is %s, margin %s, and the limit is %s. Close or reduce '
      'positions if the rule must not act (%s).', private.rule_title(r), trim_scale(r.warn_percent), p_look.equity,
      coalesce(p_look.margin::text, 'unknown'), private.limit_words(r, p_initial), private.rule_action(r)),
    jsonb_build_object('rule_id', r.id, 'action', private.rule_action(r), 'warn_percent', r.warn_percent::text,
      'limit', private.rule_limit(r, p_initial)::text, 'equity', p_look.equity::text, 'at',
      private.rfc3339(p_look.at)));
end $$;

-- planner/quiet_window.sql
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

-- planner/refusal.sql
-- Refusals in words: the figures that led to a refusal. docs/errors.md explains each code.

-- The figures behind a refusal that was decided before sizing; null if the code says everything. p_symbol: the
-- follower's.
create function private.refusal_words(
  p_copier public.copiers, p_position public.positions, p_follower public.trading_accounts,
    p_symbol public.account_symbols, p_reason text,
  p_now timestamptz
) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case p_reason
    when 'too_old' then format('The account was last seen without the trade %s s ago; max_age_ms allows %s s.',
      round(extract(epoch from p_now - p_position.unseen_at), 1), trim_scale(p_copier.max_age_ms / 1000.0))
    when 'side_filtered' then format('The master''s side is %s; sides is %s.', p_position.side, p_copier.sides)
    when 'symbol_filtered' then case when private.matches(p_position.symbol, private.compiled(p_copier.symbols_except))
      then format('%s is left out by symbols_except (%s).', p_position.symbol, private.listed(p_copier.symbols_except))
      else format('%s is not among symbols_only (%s).', p_position.symbol, private.listed(p_copier.symbols_only)) end
    when 'magic_filtered' then format('The magic number is %s; magic_only is (%s), magic_except is (%s).',
      coalesce(p_position.magic, '0'),
      private.listed(p_copier.magic_only), private.listed(p_copier.magic_except))
    when 'comment_filtered' then format('The comment is "%s"; comment_only is (%s), comment_except is (%s).',
      p_position.comment,
      private.listed(p_copier.comment_only), private.listed(p_copier.comment_except))
    when 'outside_hours' then format('It was %s in %s; trades are opened on weekdays %s%s.',
      to_char(p_now at time zone p_copier.time_zone, 'FMDay HH24:MI'), p_copier.time_zone,
        array_to_string(p_copier.weekdays, ', '),
      case when p_copier.open_from is not null
        then format(' from %s until %s', to_char(p_copier.open_from, 'HH24:MI'),
          to_char(p_copier.open_until, 'HH24:MI')) else '' end)
    when 'flat_by' then format('%s must be flat from %s until %s (flat_by).', p_follower.name,
      to_char(p_follower.flat_from at time zone 'UTC', 'YYYY-MM-DD HH24:MI'),
      to_char(p_follower.flat_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
    when 'news_window' then private.quiet_words(p_follower, p_symbol, p_position.symbol, p_now)
    when 'min_equity' then format('The equity is %s %s (reported %s); min_equity is %s.',
      coalesce(trim_scale(p_follower.equity)::text, 'unknown'),
      p_follower.currency, coalesce(to_char(p_follower.funds_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
        'never'),
      trim_scale(p_copier.min_equity))
    when 'max_open_positions' then format('max_open_positions is %s, and so many copies are held or under way.',
      p_copier.max_open_positions)
    when 'max_open_lots' then format('max_open_lots is %s, and so many lots are held or under way.',
      trim_scale(p_copier.max_open_lots))
    when 'max_trades_per_day'
      then format('max_trades_per_day is %s, and so many trades were opened since midnight in %s.',
      p_copier.max_trades_per_day, p_copier.time_zone)
    when 'trade_disabled' then format('%s is %s at the follower.', p_symbol.name,
      replace(p_symbol.trade_mode, '_', ' '))
    when 'account_halted' then p_follower.status_reason
    when 'follower_offline' then format('The follower''s status is %s, its last heartbeat was %s.',
      p_follower.status,
      coalesce(to_char(p_follower.seen_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'))
  end;
end $$;

-- planner/removal.sql
-- The end of a copier: what is not yet sent is called back; what is held is released, followed to its end or closed.

-- Whether an execution (p_all), or what it opens, belongs to this copier alone; a netting deal may serve several.
create function private.is_of_copier(q public.trade_execution_queue, p_copier uuid, p_all boolean) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  if q.parts is null then
    return q.copier_id = p_copier;
  end if;
  return not exists (
    select 1 from jsonb_array_elements(q.parts) e left join public.position_links l on l.id = (e ->> 'link_id')::bigint
    where l.copier_id is distinct from p_copier and (p_all or (e ->> 'lots')::numeric > 0));
end $$;

-- Calls back what is queued and not yet sent: opens, or with p_all everything. What is not handed out ends here with
-- p_reason; for what an agent has, the agent is asked at once to drop it. p_copier null: all copiers. The caller holds
-- the plan locks of the accounts.
create function private.withdraw(p_accounts uuid[], p_copier uuid, p_all boolean, p_reason text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_message record;
begin
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = p_reason, finalized_at = p_now,
      updated_at = p_now
    where x.account_id = any (p_accounts) and x.in_flight and x.parts is null
      and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null)
      and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
    returning x.*
  loop
    perform private.book_failure(q, p_now);
  end loop;
  -- a netting deal that is not handed out is taken apart by plan_net, like one that waits for another attempt
  update public.trade_execution_queue x set status = 'retrying', next_attempt_at = p_now, updated_at = p_now
  where x.account_id = any (p_accounts) and x.in_flight and x.parts is not null and x.status = 'queued'
    and x.offered_at is null;
  for v_message in
    with asked as (
      update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
      where x.account_id = any (p_accounts) and x.in_flight and x.status <> 'retrying' and x.cancel_requested_at is null
        and (p_all or private.opens(x)) and (p_copier is null or private.is_of_copier(x, p_copier, p_all))
      returning x.id, x.vps_id
    )
    select a.vps_id, jsonb_agg(a.id::text) as ids from asked a where a.vps_id is not null group by a.vps_id, a.id / 5000
  loop
    perform private.broadcast('vps:' || v_message.vps_id, 'cancel', jsonb_build_object('ids', v_message.ids));
  end loop;
end $$;

-- Calls back the unsent opens of a copier that may open nothing now. The caller has locked both its accounts.
create function private.withdraw_opens(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follower uuid;
  v_shut text;
begin
  select fa.id, private.opening_blocked_reason(private.trading_state(), fa.copy_state, fa.copy_state_reason, c.mode,
    c.removal) into v_follower, v_shut
  from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id where c.id = p_copier;
  if v_shut is not null then
    perform private.withdraw(array[v_follower], p_copier, false, v_shut, p_now);
  end if;
end $$;

create function private.refuse_leaving(p_copier uuid) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_removal text;
begin
  select c.removal into v_removal from public.copiers c where c.id = p_copier;
  if v_removal is not null then
    raise exception using errcode = 'TC307',
      message = format('copier %s is being removed (%s): it cannot be changed any more', p_copier, v_removal),
      hint = 'Change how it is removed with remove_copier, or make a new copier for the two accounts.';
  end if;
end $$;

-- Releases a copier's live copies to the user: their links end, and their tickets are the user's own.
create function private.release_copies(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id);
begin
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.ticket = g.ticket
    and p.kind = g.ticket_kind and p.closed_at is null;
  -- on a netting account a leg is a share of the symbol's position: the whole position is the user's only if no other
  -- copier has a share
  update public.positions p set released = true from private.link_legs g
  where g.link_id = any (v_links) and p.account_id = g.account_id and p.symbol = g.ticket and p.closed_at is null
    and p.kind = 'position'
    and exists (select 1 from public.trading_accounts a where a.id = g.account_id and a.mode = 'netting')
    and not exists (
      select 1 from private.link_legs o where o.account_id = g.account_id and o.ticket = g.ticket
        and not o.link_id = any (v_links));
  delete from private.link_legs g where g.link_id = any (v_links);
  update public.position_links l set state = 'ended', reason = 'released', ended_at = p_now, wanted_lots = null,
    wanted_until = null, replan_at = null
  where l.id = any (v_links);
  perform private.withdraw(array[p_copier.follower_account_id], p_copier.id, true, 'released', p_now);
  -- a deal that included the released copies is made again without them
  perform private.offer(private.plan_nets(v_links, p_now), null, clock_timestamp());
end $$;

-- Whether a report is about a released copy: then what it opened is also the user's own, and the row says so. Or about
-- a copy that has ended, and whose position its user has linked to another copy (resync): it stays there and is not
-- booked twice.
create function private.left_to_user(q public.trade_execution_queue, r jsonb) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  if q.parts is not null or not exists (select 1 from public.position_links l
    where l.id = q.link_id and l.state = 'ended') then
    return false;
  end if;
  if not exists (select 1 from public.position_links l where l.id = q.link_id and l.reason = 'released') then
    return exists (
      select 1 from jsonb_array_elements(case
        when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
      join private.link_legs g on g.account_id = q.account_id and g.ticket = e ->> 'ticket'
        and g.ticket_kind = e ->> 'kind' and g.link_id <> q.link_id
      join public.position_links l on l.id = g.link_id and l.ended_at is null);
  end if;
  update public.positions p set released = true
  from jsonb_array_elements(case when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end) e
  where p.account_id = q.account_id and p.ticket = e ->> 'ticket' and p.kind = e ->> 'kind' and p.closed_at is null;
  if found and private.opens(q) then
    update public.trade_execution_queue x set warnings = array_append(array_remove(x.warnings, 'filled_after_release'),
      'filled_after_release')
    where x.id = q.id;
    update public.position_links l set warnings = array_append(array_remove(l.warnings, 'filled_after_release'),
      'filled_after_release')
    where l.id = q.link_id;
  end if;
  return true;
end $$;

-- Deletes what a deal has booked to links whose copies were released meanwhile: that part of the net position is the
-- user's own.
create function private.drop_released_shares(p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.link_legs g using public.position_links l
  where g.link_id = any (array(select (e ->> 'link_id')::bigint from jsonb_array_elements(p_parts) e))
    and l.id = g.link_id and l.state = 'ended' and l.reason = 'released';
end $$;

-- Sets removed_at when nothing is left to do. The caller holds the follower's plan lock; a master's event that this
-- copier must still explain holds it too.
create function private.finish_removal(p_copier uuid, p_follower uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.copiers c set removed_at = p_now, updated_at = clock_timestamp()
  where c.id = p_copier and c.removal is not null and c.removed_at is null
    and not exists (
      select 1 from public.position_links l where l.follower_account_id = p_follower and l.state = 'live'
        and l.copier_id = p_copier)
    and not exists (
      select 1 from public.trade_execution_queue q
      where q.account_id = p_follower and q.in_flight and q.copier_id = p_copier);
end $$;

-- Upkeep: completes the removals whose last copy has ended. Accounts that are being planned wait for the next run.
create function private.finish_removals() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_copier record;
begin
  for v_copier in select c.id, c.follower_account_id from public.copiers c
    where c.removal is not null and c.removed_at is null loop
    perform 1 from private.plan_locks k where k.account_id = v_copier.follower_account_id for no key update skip locked;
    if found then
      perform private.finish_removal(v_copier.id, v_copier.follower_account_id, clock_timestamp());
    end if;
  end loop;
end $$;

-- planner/stopping.sql
-- How a protection rule or a stop-out stops an account, for good or until the next day.

-- From now on copying into the account only closes; a stricter state is kept. The caller holds its plan lock. Opens
-- that wait for another attempt or for an agent end here, because they are not handed out.
create function private.stop_opening(p_account uuid, p_reason text, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_links bigint[] := '{}';
begin
  update public.trading_accounts a set copy_state_reason = p_reason,
    copy_state = case a.copy_state when 'on' then 'monitor' else a.copy_state end,
    flatten_then = case when a.copy_state = 'flattening' then 'monitor' else a.flatten_then end
  where a.id = p_account and (a.copy_state = 'on' or a.copy_state = 'flattening' and a.flatten_then = 'on');
  -- what was stopped until the next day now stays stopped
  update public.trading_accounts a set copy_state_reason = p_reason, resumes_at = null
  where a.id = p_account and a.resumes_at is not null;
  for q in
    update public.trade_execution_queue x set status = 'cancelled', reason = 'account_protected',
      next_attempt_at = null, finalized_at = p_now,
      updated_at = p_now
    where x.account_id = p_account and x.in_flight
      and (x.status = 'retrying' or x.status = 'queued' and x.offered_at is null) and private.opens(x)
    returning x.*
  loop
    perform private.book_failure(q, p_now);
    v_links := v_links || q.link_id || array(select (e ->> 'link_id')::bigint
      from jsonb_array_elements(coalesce(q.parts, '[]')) e);
  end loop;
  update public.trade_execution_queue x set cancel_requested_at = p_now, updated_at = p_now
  where x.account_id = p_account and x.in_flight and private.opens(x) and x.cancel_requested_at is null;
  if cardinality(v_links) > 0 then
    perform private.offer(private.plan_again(array_remove(v_links, null), p_now), null, clock_timestamp());
  end if;
end $$;

-- Flattens the account and opens nothing until the rule's day is over; resume_accounts() then switches it on again. An
-- account that was not on stays as it was. The caller holds the plan locks of the account and its neighbours.
create function private.stop_until_next_day(r public.protection_rules, p_at timestamptz, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_until timestamptz;
  v_was_on boolean;
begin
  select a.resumes_at, a.resumes_at is not null or a.copy_state = 'on'
    or a.copy_state = 'flattening' and a.flatten_then = 'on'
  into v_until, v_was_on from public.trading_accounts a where a.id = r.account_id;
  perform private.start_flattening(r.account_id, r.close_manual, case when v_was_on then 'monitor' end, r.kind, p_now);
  update public.trading_accounts a set resumes_at = greatest(v_until, private.rule_day_ends(r, p_at))
  where a.id = r.account_id and v_was_on and a.flatten_then = 'monitor';
end $$;

-- Switches an account on whose rule stopped it until this time. The caller holds the plan locks of the account and its
-- neighbours.
create function private.resume_account(p_account uuid, p_at timestamptz, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_copier uuid;
begin
  update public.trading_accounts a set resumes_at = null,
    copy_state = case a.copy_state when 'monitor' then 'on' else a.copy_state end,
    flatten_then = case a.copy_state when 'flattening' then 'on' else a.flatten_then end,
    copy_state_reason = case a.copy_state when 'monitor' then null else a.copy_state_reason end
  where a.id = p_account and a.resumes_at <= p_at;
  if not found then return; end if;
  for v_copier in select c.id from public.copiers c
    where c.follower_account_id = p_account and c.removed_at is null loop
    perform private.replan_copier(v_copier, p_now);
  end loop;
end $$;

-- A part of maintain(): the accounts whose day has begun. In the order of their ids, like every other lock of plans.
create function private.resume_accounts() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array(select a.id from public.trading_accounts a where a.resumes_at <= clock_timestamp()
    and a.removed_at is null order by a.id limit 100);
  v_account uuid;
  v_now timestamptz;
begin
  if v_accounts = '{}' then return; end if;
  v_now := private.lock_accounts(array(select distinct n from unnest(v_accounts) a
    cross join lateral unnest(private.with_neighbours(a)) n));
  foreach v_account in array v_accounts loop
    perform private.resume_account(v_account, clock_timestamp(), v_now);
  end loop;
end $$;

-- A follower's broker closed a position for lack of margin: its copy ends, nothing more is opened there, and its user
-- gets an alert. Called with the event before it is planned, while the links still know what they held.
create function private.note_stop_out(p_account public.trading_accounts, p_position jsonb, p_lots numeric,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_follows boolean := exists (select 1 from public.copiers c
    where c.follower_account_id = p_account.id and c.removed_at is null);
begin
  update public.position_links l set stopped_out = true
  where l.ended_at is null and l.id = any (array(
    select g.link_id from private.link_legs g
    where g.account_id = p_account.id and g.ticket in (p_position ->> 'ticket', p_position ->> 'symbol')
      and (g.ticket <> p_position ->> 'ticket' or g.ticket_kind = p_position ->> 'kind')));
  if v_follows then
    perform private.stop_opening(p_account.id, 'stop_out', p_now);
  end if;
  perform private.raise_alert(p_account.id, 'stop_out', 'stop_out', 'critical',
    format('Stop-out: the broker of %s closed %s %s %s for lack of margin.', p_account.name, p_position ->> 'side',
      trim_scale(p_lots),
      p_position ->> 'symbol')
    || case when v_follows then ' Nothing is opened there any more and the copy stays closed; closes go on.'
      || ' Add funds or copy smaller, then switch the account on again.' else ' Add funds or reduce what is held.' end,
    jsonb_build_object('ticket', p_position ->> 'ticket', 'symbol', p_position ->> 'symbol', 'side',
      p_position ->> 'side', 'lots', p_lots::text));
end $$;

-- planner/symbol_proof.sql
-- Proof by price: before the first trade under another name the prices of both symbols must agree within 5 %.

-- Why the prices do not show that the follower's symbol is the master's; null: they agree. p_price: the price of the
-- master's trade, which counts where its symbol has no current quote.
create function private.price_doubt(p_master public.account_symbols, p_symbol public.account_symbols, p_price numeric,
  p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_master numeric := case when private.quote_is_fresh(p_master, p_now) then (p_master.bid + p_master.ask) / 2
    else p_price end;
  v_follower numeric := (p_symbol.bid + p_symbol.ask) / 2;
begin
  if not private.quote_is_fresh(p_symbol, p_now) then
    return format('%s seems to be the follower''s name for %s, but there is no current quote of it that proves it.',
      p_symbol.name, p_master.name);
  end if;
  if abs(v_master - v_follower) <= 0.05 * least(abs(v_master), abs(v_follower)) then return null; end if;
  return format('%s seems to be the follower''s name for %s, but its price is %s, the master''s %s.', p_symbol.name,
    p_master.name, private.plain(v_follower), coalesce(private.plain(v_master), 'unknown'));
end $$;

-- Whether both names mean the same pair of currencies, metal or listed alias: such a name is trusted until a quote is
-- there, for their first trade would otherwise always be refused.
create function private.well_known_alike(p_master public.account_symbols, p_symbol public.account_symbols)
returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select from public.trading_accounts m
    join public.trading_accounts f on f.id = p_symbol.account_id
    cross join lateral unnest(private.meanings(p_master.name, m)) meaning
    where m.id = p_master.account_id and starts_with(meaning, '=')
      and meaning = any (private.meanings(p_symbol.name, f)));
end $$;

-- symbol_unproven if current quotes of both do not prove that the follower's symbol of another name is the master's;
-- symbol_loading if such quotes are missing; null: they did once, or do now, or there is no quote yet and both names
-- are well known. The symbols of an unproven choice are watched (planner/watch.sql), so that quotes arrive.
create function private.proof_refusal(p_master public.account_symbols, p_symbol public.account_symbols,
  p_price numeric, p_now timestamptz) returns text
language plpgsql volatile security definer set search_path = '' as $$
begin
  if exists (select from private.symbol_choices c
    where c.follower_account_id = p_symbol.account_id and c.master_account_id = p_master.account_id
      and c.master_symbol = p_master.name and c.follower_symbol = p_symbol.name and c.proven) then
    return null;
  end if;
  if private.price_doubt(p_master, p_symbol, p_price, p_now) is not null then
    if not private.quote_is_fresh(p_symbol, p_now) and private.well_known_alike(p_master, p_symbol) then
      return null;
    end if;
    return case when private.quote_is_fresh(p_symbol, p_now) and private.quote_is_fresh(p_master, p_now)
      then 'symbol_unproven' else 'symbol_loading' end;
  end if;
  update private.symbol_choices c set proven = true
  where c.follower_account_id = p_symbol.account_id and c.master_account_id = p_master.account_id
    and c.master_symbol = p_master.name and c.follower_symbol = p_symbol.name;
  return null;
end $$;

-- The symbol without its quote, which is too old to value anything by.
create function private.unquoted(p_symbol public.account_symbols) returns public.account_symbols
language plpgsql immutable set search_path = '' as $$
begin
  p_symbol.bid := null;
  p_symbol.ask := null;
  return p_symbol;
end $$;

-- planner/symbol_wait.sql
-- The wait for a symbol or a quote: a pair is decided when it is told, or refused when max_age_ms is over (ADR 0028).

-- Whether an account's symbols are still being told: a symbol that is missing may come. An account that never said
-- whether its list is complete is loading while it logs in for the first time.
create function private.list_is_loading(p_account public.trading_accounts) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return case when p_account.symbols_complete is null
    then p_account.status = 'connecting'
      and not exists (select from public.account_symbols s where s.account_id = p_account.id)
    else not p_account.symbols_complete end;
end $$;

-- symbol_loading if the symbol of a copy was not found because a list is still being told; null: nothing more will
-- come.
create function private.loading_refusal(p_master public.trading_accounts, p_masters_symbol public.account_symbols,
  p_follower public.trading_accounts) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return case when private.list_is_loading(
    case when p_masters_symbol.contract_size is null then p_master else p_follower end) then 'symbol_loading' end;
end $$;

-- The follower's names that a copy may need, to be told before all others: the mapped or found name, else the master's
-- own name and the other names of its instrument, as the follower's broker would write them.
create function private.symbols_in_question(p_follower public.trading_accounts,
  p_masters_symbol public.account_symbols, p_name text, p_found text) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_found is not null then return array[p_found]; end if;
  if p_masters_symbol.name is null then return array[p_name]; end if;
  return array(select distinct x.name from unnest(private.names_of(p_masters_symbol)) n,
    lateral (values (p_name), (n), (p_follower.symbol_prefix || n || p_follower.symbol_suffix)) x (name)
    order by x.name);
end $$;

-- What a pair waits for, in words: the detail of symbol_loading.
create function private.loading_words(p_name text, p_masters_symbol public.account_symbols,
  p_symbol public.account_symbols) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_masters_symbol.name is null
      then format('The master''s list of symbols is still being told, and has no %s so far: it was asked for.', p_name)
    when p_symbol.name is null
      then format('The follower''s list of symbols is still being told, and has no %s so far: it was asked for.',
        p_name)
    else format('Quotes that prove that %s is the follower''s name for %s were asked for.', p_symbol.name, p_name) end;
end $$;

-- What was told after the pair's time was over: the detail of a refusal that ends a wait.
create function private.told_late_words(p_copier public.copiers, p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return format('%s was told too late: max_age_ms allows %s s. Resync the copier to copy the trade now.', p_name,
    trim_scale(p_copier.max_age_ms / 1000.0));
end $$;

-- Stores pairs that wait, and asks the agents of both accounts for what is missing: each heartbeat names the symbols to
-- watch, and the message makes it come at once. A pair that waits for the same thing again is not asked for again.
create function private.begin_waits(p_waits private.symbol_waits[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_vps uuid;
  v_accounts uuid[] := array(
    select unnest(array[n.follower_account_id, n.master_account_id]) from unnest(p_waits) n
    where not exists (select from private.symbol_waits w
      where (w.copier_id, w.kind, w.ticket, w.side) = (n.copier_id, n.kind, n.ticket, n.side)
        and (w.ends_as, w.symbols) = (n.ends_as, n.symbols)));
begin
  insert into private.symbol_waits as w select * from unnest(p_waits)
  on conflict (copier_id, kind, ticket, side) do update set asked = excluded.asked, news_at = excluded.news_at,
    ends_at = excluded.ends_at, ends_as = excluded.ends_as, symbols = excluded.symbols
  where (w.asked, w.news_at, w.ends_at, w.ends_as, w.symbols)
    is distinct from (excluded.asked, excluded.news_at, excluded.ends_at, excluded.ends_as, excluded.symbols);
  for v_vps in
    select distinct a.vps_id from public.account_vps_assignments a where a.account_id = any (v_accounts) order by 1
  loop
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end loop;
end $$;

-- Deletes waits whose pairs have got their decision.
create function private.settle_waits(p_waits private.symbol_waits[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.symbol_waits w using unnest(p_waits) o
  where (w.copier_id, w.kind, w.ticket, w.side) = (o.copier_id, o.kind, o.ticket, o.side);
end $$;

-- Why nothing is left to decide for a pair that waits; null: it still waits. A decision that is held up by the link's
-- own orders is made when they end, at the latest a minute after the wait.
create function private.wait_is_over(w private.symbol_waits, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  m public.positions;
begin
  select * into m from public.positions p
  where p.account_id = w.master_account_id and p.ticket = w.ticket and p.kind = w.kind;
  if m.closed_at is null and m.lots > 0 and m.side = w.side then
    return case
      when w.ends_at >= p_now then null
      when exists (select from public.copiers c where c.id = w.copier_id and c.removed_at is not null)
        then 'copier_removed'
      when exists (select from public.position_links l
        where l.master_account_id = w.master_account_id and l.master_ticket = w.ticket and l.master_kind = w.kind
          and l.copier_id = w.copier_id and l.state = 'live' and l.master_side = m.side
          and m.lots <= l.seen_master_lots) then 'no_change'
      when w.ends_at < p_now - interval '1 minute' then w.ends_as end;
  end if;
  return case when w.kind = 'order' and m.replaced_by is not null
    then 'copied_at_fill' else 'already_closed' end;
end $$;

-- Ends the waits of these master positions that have nothing left to decide: each pair gets its reason.
create function private.end_waits(p_masters uuid[], p_tickets text[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_over record;
begin
  for v_over in
    select w as wait, o.reason from private.symbol_waits w
    cross join lateral private.wait_is_over(w, p_now) o (reason)
    where w.master_account_id = any (p_masters) and w.ticket = any (p_tickets) and o.reason is not null
  loop
    perform private.settle_waits(array[v_over.wait]::private.symbol_waits[]);
    update public.copy_outcomes o set reason = v_over.reason, detail = null
    where o.event_id = (v_over.wait).event_id and o.copier_id = (v_over.wait).copier_id
      and o.reason = 'symbol_loading';
  end loop;
end $$;

-- planner/watch.sql
-- What an agent must watch besides its accounts' positions: symbols, funds, snapshots.

-- Symbols whose quotes an account's agent should report: those of open links and of its masters' open positions, those
-- whose prices must still prove that two names mean one instrument, and those that a copy waits for.
create function private.watched_symbols(p_account uuid) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(array_agg(distinct symbol), '{}') from (
      select l.symbol from public.position_links l where l.follower_account_id = p_account and l.state = 'live'
      union all
      select p.symbol from public.positions p where p.account_id = p_account and p.closed_at is null
      union all
      select w.name from public.copiers c cross join lateral private.symbols_of_existing(c) w
      where c.follower_account_id = p_account and c.existing_until is not null
      union all
      select x.follower_symbol from private.symbol_choices x where x.follower_account_id = p_account and not x.proven
      union all
      select x.master_symbol from private.symbol_choices x where x.master_account_id = p_account and not x.proven
      union all
      select unnest(w.symbols) from private.symbol_waits w where w.follower_account_id = p_account
    ) s);
end $$;

-- Whether the account's agent must send another complete snapshot: a position is missing for the first time, or the
-- account is being flattened.
create function private.wants_snapshot(p_account uuid, p_copy_state text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_copy_state = 'flattening'
    or exists (select 1 from public.positions p
      where p.account_id = p_account and p.closed_at is null and p.absent_snapshots > 0);
end $$;

-- Whether the agent must report the account's funds every second: something is open and a rule watches it.
create function private.watches_funds(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.protection_rules r where r.account_id = p_account and r.enabled)
    and exists (select 1 from public.positions p where p.account_id = p_account and p.closed_at is null);
end $$;

-- Whether sizes of copies depend on the account's money, so that its agent must report the funds right behind each
-- fill.
create function private.sizes_by_funds(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from (
      select * from public.copiers f where f.follower_account_id = p_account and f.removed_at is null
      union all
      select * from public.copiers m where m.master_account_id = p_account and m.removed_at is null
    ) c
    where c.sizing_mode in ('balance_ratio', 'equity_ratio', 'free_margin_ratio', 'risk_percent')
      or c.no_money_policy = 'shrink'
      or coalesce(c.max_risk_percent, c.max_leverage, c.min_equity) is not null);
end $$;

-- p_account: only this one. p_blind: without the parts that the planner computes; funds are then always requested, in
-- case a rule watches them.
create function private.assignments_of(p_vps uuid, p_account uuid default null,
  p_blind boolean default false) returns jsonb
language sql stable
set search_path = ''
as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'account_id', a.id, 'epoch', s.epoch, 'platform', a.platform, 'server', a.server, 'login', a.login, 'mode', a.mode,
    'currency', a.currency, 'owner', private.owner_mark(a.user_id), 'revision', a.revision, 'begins_at',
      private.rfc3339(s.begins_at),
    'watch_symbols', case when p_blind then '[]' else to_jsonb(private.watched_symbols(a.id)) end,
    'watch_funds', p_blind or private.watches_funds(a.id), 'funds_after_fills', p_blind
      or private.sizes_by_funds(a.id), 'resync', not p_blind
      and private.wants_snapshot(a.id, a.copy_state)) order by a.id), '[]')
  from public.account_vps_assignments s
  join public.trading_accounts a on a.id = s.account_id
  where s.vps_id = p_vps and a.removed_at is null and (p_account is null or a.id = p_account)
    and a.id <> all ((select private.released_accounts(p_vps))::uuid[])
$$;
comment on function private.assignments_of(uuid, uuid, boolean) is
  'The accounts of a VPS, as vps_heartbeat returns them.';

-- booking/event.sql
-- Booking of an account's events.

-- What is wrong with an event, compared with docs/protocol.md; null: nothing is.
create function private.event_error(e jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(e) is distinct from 'object' then 'the event is not an object'
    when jsonb_typeof(e -> 'session') is distinct from 'number' or not pg_input_is_valid(e ->> 'session', 'bigint')
      or (e ->> 'session')::bigint < 1 then 'session must be a whole number above 0'
    when jsonb_typeof(e -> 'seq') is distinct from 'number' or not pg_input_is_valid(e ->> 'seq', 'bigint')
      or (e ->> 'seq')::bigint < 1
      then 'seq must be a whole number above 0'
    when coalesce(e ->> 'type', '') not in
      ('opened', 'increased', 'reduced', 'modified', 'closed', 'ordered', 'amended', 'cancelled', 'snapshot')
      then 'type is not one of the known event types'
    when e ->> 'detected_at' is null then 'detected_at is missing'
    when not pg_input_is_valid(e ->> 'detected_at', 'timestamptz')
      then 'detected_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz'), true)
      then 'unchanged_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(e ->> 'dealt_at', 'timestamptz'), true)
      then 'dealt_at must be a time such as 2026-01-31T12:00:00Z'
    when e ->> 'deal_price' is not null and not coalesce(case when pg_input_is_valid(e ->> 'deal_price', 'numeric')
      then (e ->> 'deal_price')::numeric between 0 and 1e12 end, false)
        then 'deal_price must be a decimal number, not negative (or above 1e12)'
    when e ->> 'type' = 'snapshot' then
      case when jsonb_typeof(e -> 'positions') is distinct from 'array'
        then 'positions of a snapshot must be an array' end
    when private.position_error(e -> 'position') is not null then private.position_error(e -> 'position')
    when e ->> 'type' in ('closed', 'cancelled') <> ((e #>> '{position,lots}')::numeric = 0)
      then 'position.lots must be 0 for closed and cancelled, and above 0 for everything else'
    when e ->> 'type' in ('closed', 'cancelled') and coalesce(e ->> 'evidence', '') not in ('deal', 'snapshots')
      then 'evidence of a close must be "deal" or "snapshots"'
  end;
  if v_error is null and e ->> 'type' = 'snapshot' then
    for p in select value from jsonb_array_elements(e -> 'positions') loop
      v_error := coalesce(private.position_error(p),
        case when (p ->> 'lots')::numeric = 0
          then 'a snapshot holds only what is open: position.lots must be above 0' end);
      exit when v_error is not null;
    end loop;
  end if;
  return v_error;
end $$;

-- Stores and applies one event. Returns the result as in docs/protocol.md, and what it changed: parallel arrays
-- "tickets", "events", "types".
create function private.take_event(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint := nextval('public.trade_events_id_seq');
  v_error text;
  v_key jsonb := jsonb_build_object('event_key', (e ->> 'session') || ':' || (e ->> 'seq'));
  v_session bigint;
  v_seq bigint;
  v_known bigint;
  v_detected timestamptz;
  v_unseen timestamptz;
  v_position jsonb;
  v_change private.change;
  v_status text := 'accepted';
  v_snapshot record;
  v_found jsonb;
  v_tickets jsonb := '[]';
  v_events jsonb := '[]';
  v_types jsonb := '[]';
  v_told integer := case when e ->> 'type' = 'snapshot' and jsonb_typeof(e -> 'positions') = 'array'
    then jsonb_array_length(e -> 'positions') end;
begin
  if v_told is not null or pg_column_size(e) > 1500 or private.is_odd_position(e -> 'position')
    or jsonb_typeof(e -> 'close_reason') in ('object', 'array')
  then
    e := private.cut_event(e);
  end if;
  if v_told is not null then
    perform private.alert_left_out(p_account.id, 'positions', v_told - jsonb_array_length(e -> 'positions'));
  end if;
  v_error := private.event_error(e);
  if v_error is not null then
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC401', v_error, e -> 'position', null,
      case when octet_length(e::text) < 10000 then e else to_jsonb(left(e::text, 1000)) end);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC401', 'error', v_error);
  end if;
  v_session := (e ->> 'session')::bigint;
  v_seq := (e ->> 'seq')::bigint;
  if v_session > p_account.session then
    v_error := format('session %s was never issued for this account; its newest is %s', v_session, p_account.session);
    perform private.record_event(p_account, v_id, e, 'agent', null, 'refused', 'TC402', v_error, e -> 'position', null,
      e);
    return v_key || jsonb_build_object('status', 'refused', 'code', 'TC402', 'error', v_error);
  end if;
  insert into private.event_keys (account_id, session, seq, event_id) values (p_account.id, v_session, v_seq, v_id)
  on conflict do nothing returning event_id into v_known;
  if v_known is null then
    select event_id into v_known from private.event_keys
    where account_id = p_account.id and session = v_session and seq = v_seq;
    return v_key || jsonb_build_object('status', 'duplicate', 'code', null, 'error', null, 'events',
      jsonb_build_array(v_known));
  end if;
  v_detected := least((e ->> 'detected_at')::timestamptz, p_now);
  v_unseen := least(coalesce((e ->> 'unchanged_at')::timestamptz, p_account.seen_at, p_account.created_at), v_detected);

  if v_session < p_account.snapshot_session then  -- a newer session's snapshot was applied: history
    v_status := 'history';
    perform private.record_event(p_account, v_id, e, 'agent', null, v_status, null, null, e -> 'position', null, e);
  elsif e ->> 'type' = 'snapshot' then
    select * into v_snapshot from private.apply_snapshot(p_account, v_session, v_seq, e -> 'positions', v_detected,
      v_unseen, p_now);
    perform private.record_event(p_account, v_id, e, 'agent', 'snapshot', v_status, null, null, null, null,
      jsonb_build_object('positions', jsonb_array_length(e -> 'positions')));
    for v_found in select value from jsonb_array_elements(v_snapshot.changes) loop
      v_id := nextval('public.trade_events_id_seq');
      perform private.record_event(p_account, v_id, e, 'snapshot', v_found ->> 'type', v_status, null, null,
        v_found -> 'position',
        (v_found ->> 'previous_lots')::numeric, v_found -> 'position');
      update public.positions set last_event_id = v_id
      where account_id = p_account.id and ticket = v_found #>> '{position,ticket}'
        and kind = v_found #>> '{position,kind}';
      v_tickets := v_tickets || jsonb_build_array(v_found #>> '{position,ticket}');
      v_events := v_events || to_jsonb(v_id);
      v_types := v_types || (v_found -> 'type');
      if private.order_filled_into(v_found -> 'position', (v_found ->> 'previous_lots')::numeric) then
        v_tickets := v_tickets || (v_found #> '{position,replaces}');
        v_events := v_events || to_jsonb(v_id);
        v_types := v_types || (v_found -> 'type');
      end if;
    end loop;
    v_key := v_key || jsonb_build_object('missing', v_snapshot.missing);
    if p_account.copy_state = 'flattening' then
      perform private.count_flat_snapshot(p_account.id, p_now);
    end if;
  else
    v_position := e -> 'position';
    v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id,
      e ->> 'close_reason', p_now);
    -- an outdated event, but the ticket that it replaced is gone all the same
    if not v_change.applied and e #>> '{position,replaces}' is not null then
      v_position := v_position || jsonb_build_object('ticket', e #>> '{position,replaces}', 'lots', '0', 'replaces',
        null, 'replaces_kind', null, 'kind', coalesce((private.continued(p_account.id, v_position)).kind,
        (private.replaced_kinds(v_position))[1], 'position'));
      v_change := private.apply_position(p_account, v_session, v_seq, v_position, v_detected, v_unseen, false, v_id,
        'replaced', p_now);
      v_change.applied := v_change.applied and v_change.previous_lots > 0;
    end if;
    v_status := case when v_change.applied then 'accepted' else 'history' end;
    perform private.record_event(p_account, v_id, e, 'agent', v_change.type, v_status, null, null, v_position,
      v_change.previous_lots, e);
    if v_change.applied and e ->> 'close_reason' = 'stop_out' then
      perform private.note_stop_out(p_account, v_position, v_change.previous_lots, p_now);
    end if;
    if v_change.applied then
      v_tickets := jsonb_build_array(v_position ->> 'ticket');
      v_events := jsonb_build_array(v_id);
      v_types := jsonb_build_array(v_change.type);
      if private.order_filled_into(v_position, v_change.previous_lots) then
        v_tickets := v_tickets || (v_position -> 'replaces');
        v_events := v_events || to_jsonb(v_id);
        v_types := v_types || to_jsonb(v_change.type);
      end if;
    end if;
  end if;
  return v_key || jsonb_build_object('status', v_status, 'code', null, 'error', null, 'tickets', v_tickets, 'events',
    v_events,
    'types', v_types);
end $$;

-- booking/fifo.sql
-- Brokers that close positions of one symbol only in the order of their opening (reason "fifo").

-- The close of one of our tickets was refused with fifo. If an older ticket of the same volume belongs to another copy,
-- the two copies exchange tickets. The volume of each stays the same, and the close that is planned again names the
-- older ticket. A copy of another volume waits for its turn.
create function private.exchange_for_oldest(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_mine public.positions;
  v_oldest public.positions;
  v_other bigint;
begin
  select p.* into v_mine from private.link_legs g
  join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.kind = g.ticket_kind
    and p.lots > 0
  where g.link_id = q.link_id and g.ticket = q.ticket and g.ticket_kind = 'position' and g.kind = 'position'
    and g.lots = p.lots;
  if not found then return; end if;
  select p.* into v_oldest from public.positions p
  join private.link_legs g on g.account_id = p.account_id and g.ticket = p.ticket and g.ticket_kind = p.kind
  where p.account_id = q.account_id and p.lots > 0 and p.kind = 'position'
    and (p.symbol, p.side, p.lots) = (v_mine.symbol, v_mine.side, v_mine.lots)
    and g.lots = p.lots and g.link_id <> q.link_id
    and (coalesce(p.opened_at, '-infinity'), length(p.ticket), p.ticket) < (coalesce(v_mine.opened_at, '-infinity'),
      length(v_mine.ticket), v_mine.ticket)
    and not exists (select 1 from public.trade_execution_queue o where o.link_id = g.link_id and o.finalized_at is null)
  order by coalesce(p.opened_at, '-infinity'), length(p.ticket), p.ticket limit 1;
  if not found then return; end if;
  select g.link_id into v_other from private.link_legs g
  where g.account_id = q.account_id and g.ticket = v_oldest.ticket and g.ticket_kind = 'position';
  update private.link_legs g set ticket = v_oldest.ticket, price = v_oldest.price
  where g.link_id = q.link_id and g.ticket = v_mine.ticket and g.ticket_kind = 'position';
  update private.link_legs g set ticket = v_mine.ticket, price = v_mine.price
  where g.link_id = v_other and g.ticket = v_oldest.ticket and g.ticket_kind = 'position';
  -- the ticket that each holds now has the levels of the other copy, so its own levels are asked for again
  update public.position_links l set asked_sl = v_mine.sl, asked_tp = v_mine.tp, asked_unknown = false,
    replan_at = p_now
  where l.id = v_other and (l.asked_unknown or (l.asked_sl, l.asked_tp) is distinct from (v_mine.sl, v_mine.tp));
  -- after a reduction a part of it stays
  update public.position_links l set asked_sl = v_oldest.sl, asked_tp = v_oldest.tp, asked_unknown = false
  where l.id = q.link_id and l.ended_at is null
    and (l.asked_unknown or (l.asked_sl, l.asked_tp) is distinct from (v_oldest.sl, v_oldest.tp));
end $$;

-- booking/refused_levels.sql
-- Levels that a broker refused: when they are asked for again, and which alerts the user gets.

-- Whether an order that was refused for its levels must be sent again with the nearest levels that the broker may
-- accept; limited in number.
create function private.may_adjust_levels(q public.trade_execution_queue, p_reason text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return p_reason = 'invalid_stops' and q.attempt < 3 and coalesce(q.sl, q.tp) is not null
    and q.action in ('open', 'increase', 'place');
end $$;

create function private.adjust_levels(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.levels_to_ask(q.account_id, q.symbol, q.side, case
    when q.action = 'place' then q.price end, q.sl, q.tp,
    q.attempt, p_now);
begin
  update public.trade_execution_queue x set sl = v_levels.sent_sl, tp = v_levels.sent_tp,
    warnings = private.with_level_warnings(x.warnings, v_levels.warnings)
  where x.id = q.id;
  update public.position_links l set warnings = private.with_level_warnings(l.warnings, v_levels.warnings)
  where l.id = q.link_id;
end $$;

-- An order that was filled without its levels counts as if none had been asked for, so that the planner asks for them
-- at once. A change of levels that was carried out ends the warning of an earlier refusal.
create function private.handle_protection(q public.trade_execution_queue, r jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if q.action in ('modify', 'amend') then
    update public.position_links l set warnings = array_remove(l.warnings, 'protection_dropped')
    where l.id = q.link_id and 'protection_dropped' = any (l.warnings);
  elsif coalesce(q.sl, q.tp) is not null and q.action in ('open', 'increase', 'place') and exists (
    select 1 from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    where (e ->> 'lots')::numeric > 0 and (q.sl is not null and coalesce((e ->> 'sl')::numeric, 0) = 0
      or q.tp is not null and coalesce((e ->> 'tp')::numeric, 0) = 0))
  then
    if exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting') then
      update private.net_ledgers n set asked_sl = null, asked_tp = null
      where n.account_id = q.account_id and n.symbol = q.symbol;
    else
      update public.position_links l set asked_sl = null, asked_tp = null, asked_unknown = false where l.id = q.link_id;
    end if;
  end if;
end $$;

-- booking/report.sql
-- Booking of execution reports. Reports are facts: they are accepted late and from any epoch, and then planned.

-- What is wrong with a report, compared with docs/protocol.md; null: nothing is. One expression, because every report
-- is checked here.
create function private.report_error(r jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_error text;
  p jsonb;
begin
  v_error := case
    when jsonb_typeof(r) is distinct from 'object' then 'the report is not an object'
    when not coalesce(pg_input_is_valid(r ->> 'execution_id', 'bigint'), false)
      then 'execution_id must be an execution number'
    when not coalesce(pg_input_is_valid(r ->> 'attempt', 'integer'), false) then 'attempt must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'session', 'bigint'), false) then 'session must be a whole number'
    when not coalesce(pg_input_is_valid(r ->> 'seq', 'bigint'), false) then 'seq must be a whole number'
    when coalesce(jsonb_typeof(r -> 'retryable'), 'null') not in ('null', 'boolean')
      then 'retryable must be true or false'
    when coalesce(jsonb_typeof(r -> 'adopted'), 'null') not in ('null', 'boolean') then 'adopted must be true or false'
    when coalesce(jsonb_typeof(r -> 'reason'), 'null') not in ('null', 'string') then 'reason must be a text'
    when coalesce(jsonb_typeof(r -> 'message'), 'null') not in ('null', 'string') then 'message must be a text'
    when coalesce(r ->> 'outcome', '') not in ('completed', 'rejected', 'expired', 'cancelled', 'unknown')
      then 'outcome is not one of completed, rejected, expired, cancelled, unknown'
    when not pg_input_is_valid(r ->> 'filled_lots', 'numeric') or (r ->> 'filled_lots')::numeric not between 0 and 1e12
      then 'filled_lots must be a decimal number, not negative'
    when not pg_input_is_valid(r ->> 'price', 'numeric') or (r ->> 'price')::numeric not between 0 and 1e12
      then 'price must be a decimal number, not negative'
    when not coalesce(pg_input_is_valid(r ->> 'received_at', 'timestamptz'), true)
      then 'received_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'sent_at', 'timestamptz'), true)
      then 'sent_at must be a time such as 2026-01-31T12:00:00Z'
    when not coalesce(pg_input_is_valid(r ->> 'done_at', 'timestamptz'), true)
      then 'done_at must be a time such as 2026-01-31T12:00:00Z'
    when r ? 'quote' and not private.is_quote(r -> 'quote') then 'quote must be an object with bid and ask above 0'
    when coalesce(jsonb_typeof(r -> 'positions'), 'null') not in ('null', 'array') then 'positions must be an array'
  end;
  if v_error is null and jsonb_typeof(r -> 'positions') = 'array' then
    for p in select value from jsonb_array_elements(r -> 'positions') loop
      v_error := private.position_error(p);
      exit when v_error is not null;
    end loop;
  end if;
  return v_error;
end $$;

-- Whether a VPS may report on an execution: it works the account, or was handed the execution when it did.
create function private.was_given(q public.trade_execution_queue, p_vps uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return q.vps_id = p_vps or exists (select 1 from public.account_vps_assignments a
    where a.account_id = q.account_id and a.vps_id = p_vps);
end $$;

-- Takes one report; returns its result, the links to plan and the changes on the account.
create function private.take_report(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb, out link_ids bigint[],
  out changes jsonb)
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_was public.trade_execution_queue;
  v_account public.trading_accounts;
  n record;
  p jsonb;
  c private.change;
  v_late boolean;
  v_ended boolean;
  v_shown numeric;
begin
  link_ids := '{}';
  changes := '[]';
  if jsonb_typeof(r -> 'positions') = 'array' and (pg_column_size(r) > 2000 or exists (
    select 1 from jsonb_array_elements(r -> 'positions') e where private.is_odd_position(e)))
  then
    r := jsonb_set(r, '{positions}', (select coalesce(jsonb_agg(private.cut_position(e.value) order by e.n), '[]')
      from jsonb_array_elements(r -> 'positions') with ordinality e (value, n)));
  end if;
  result := jsonb_build_object('execution_id', r ->> 'execution_id', 'status', 'refused', 'code', 'TC411', 'error',
    private.report_error(r));
  if result ->> 'error' is not null then return; end if;
  select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := result || jsonb_build_object('code', 'TC106', 'error',
      format('execution %s was never given to this VPS', r ->> 'execution_id'));
    return;
  end if;
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then
    result := result || jsonb_build_object('code', 'TC402', 'error',
      format('session %s was never issued for this account', r ->> 'session'));
    return;
  end if;
  result := jsonb_build_object('execution_id', q.id::text, 'status', 'accepted', 'code', null, 'error', null);

  if q.parts is not null then v_shown := private.mirror_net(q.account_id, q.symbol); end if;
  -- the mirror takes the report's view of the account, whatever the outcome of the execution
  for p in
    select value from jsonb_array_elements(case
      when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
    -- a ticket that continues under another one is not gone
    order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0
  loop
    c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
      coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null,
        null, p_now);
    if c.applied and (c.type <> 'modified' or q.action = 'modify') then
      changes := changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots, 'price',
        r -> 'price');
    end if;
  end loop;

  if jsonb_typeof(r -> 'quote') = 'object' then
    perform private.note_quote(q.account_id, q.symbol, r -> 'quote', p_now);
  end if;
  v_late := (r ->> 'attempt')::integer < q.attempt;
  if q.status = 'completed' or (q.finalized_at is not null or v_late) and r ->> 'outcome' <> 'completed'
    or (r ->> 'attempt')::integer > q.attempt then
    result := result || jsonb_build_object('status', 'duplicate');
    -- two attempts may both have filled after all: the link holds what each opened
    if r ->> 'outcome' = 'completed' and v_account.mode = 'hedging' and private.opens(q)
      and not private.left_to_user(q, r) then
      perform private.revive_link(q);
      perform private.book_filled_again(q, r, p_now);
      perform private.forget_asked_levels(q);
      link_ids := array[q.link_id];
    elsif r ->> 'outcome' = 'completed' and q.parts is not null then
      link_ids := private.book_second_fill(q, r);
    end if;
    return;
  end if;
  n := private.next_status(q, r, p_now);
  v_was := q;
  update public.trade_execution_queue x set status = n.status, reason = left(n.reason, 100),
    message = left(r ->> 'message', 500),
    attempt = case when n.status = 'completed' and q.parts is not null
      then (r ->> 'attempt')::integer else x.attempt end,
    next_attempt_at = n.next_at, adopted = x.adopted or coalesce((r ->> 'adopted')::boolean, false),
    filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots),
      fill_price = coalesce((r ->> 'price')::numeric, x.fill_price),
    (point_size, point_money) = (select coalesce(w.size, x.point_size), coalesce(w.money, x.point_money)
      from private.point_worth(v_account.id, v_account.currency, x.symbol, (r ->> 'filled_lots')::numeric) w),
    received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at),
      sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at),
    done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    finalized_at = case when n.status in ('completed', 'rejected', 'expired', 'cancelled') then p_now end,
      updated_at = p_now
  where x.id = q.id returning * into q;
  if q.reason = 'invalid_stops' and q.status = 'retrying' then perform private.adjust_levels(q, p_now); end if;

  v_ended := exists (select 1 from public.position_links l where l.id = q.link_id and l.state = 'ended');
  if v_ended and private.left_to_user(q, r) then
    null;
  elsif q.status = 'completed' then
    if v_ended and q.parts is null then
      perform private.revive_link(q);
    end if;
    if q.parts is not null then
      perform private.book_fill_of_net(q, v_was, v_late, v_shown, p_now);
      perform private.drop_released_shares(q.parts);
      update private.net_ledgers k set asked_sl = coalesce(q.sl, k.asked_sl), asked_tp = coalesce(q.tp, k.asked_tp),
        failures = 0,
        replan_at = case when k.modify_failures between 1 and 2 then k.replan_at end
      where k.account_id = q.account_id and k.symbol = q.symbol;
    elsif v_account.mode = 'hedging' then
      perform private.book_fill(q, r, p_now);
      if v_was.finalized_at is not null then perform private.forget_asked_levels(q); end if;
    else
      update private.net_ledgers k set modify_failures = 0, replan_at = null
      where k.account_id = q.account_id and k.symbol = q.symbol;
    end if;
  else
    -- a close of several tickets may be refused for one of them: what was done is booked all the same
    if v_account.mode = 'hedging' and q.parts is null and jsonb_typeof(r -> 'positions') = 'array'
      and jsonb_array_length(r -> 'positions') > 0 then
      perform private.book_fill(q, r, p_now);
    end if;
    if q.status in ('rejected', 'expired', 'cancelled') then
      perform private.book_failure(q, p_now);
      if q.reason = 'fifo' then perform private.exchange_for_oldest(q, p_now); end if;
    end if;
  end if;
  if q.status = 'completed' then perform private.handle_protection(q, r); end if;
  link_ids := array[q.link_id];
  if q.parts is not null then
    link_ids := link_ids || array(select coalesce(e ->> 'link_id', e ->> 'surplus_of')::bigint
      from jsonb_array_elements(q.parts) e);
  end if;
end $$;

-- booking/report_fast_path.sql
-- The fast path for reports, many at once. Nearly every report is the first report of an order of a hedging follower
-- that was carried out: a new position opened, or the only position of a copy closed or given other levels. take_report
-- handles these one statement at a time; here one statement handles all of them. It is a shortcut, not a rule of its
-- own: any other report is left to take_report. tests/sql/booking/test_report_fast_path.py gives both the same reports
-- and compares every row. A change to take_report, apply_position, next_status, book_fill or handle_protection must be
-- made here too.

-- Returns which reports (numbers from 1) were taken, their results in order, and their links, to be planned. Raises an
-- error for a value of the wrong type; the caller then takes each report separately, as after a fault. It is one
-- statement, therefore longer than forty lines.
create function private.take_reports_fast(p_vps uuid, p_reports jsonb, p_now timestamptz, out taken bigint[],
  out results jsonb, out link_ids bigint[])
language plpgsql security definer set search_path = '' as $$
declare
  v_many boolean := jsonb_array_length(p_reports) > 1;
begin
  with told as (
    select t.*, t.positions -> 0 as p
    from rows from (jsonb_to_recordset(p_reports) as (account_id text, execution_id bigint, attempt integer,
      session bigint, seq bigint, outcome text,
      retryable jsonb, adopted jsonb, reason jsonb, message jsonb, filled_lots numeric, price numeric, positions jsonb,
        quote jsonb,
      received_at timestamptz, sent_at timestamptz, done_at timestamptz)) with ordinality as t (account_id,
        execution_id, attempt, session, seq, outcome,
      retryable, adopted, reason, message, filled_lots, price, positions, quote, received_at, sent_at, done_at, n)
  ), looks as materialized (
    select t.*, q.link_id, q.master_lots, q.symbol, q.action in ('open', 'increase') as opens,
      q.action = 'close' as closes,
      a.id as follower, a.user_id, a.currency, h.lots as held_lots,
      coalesce(t.filled_lots, q.filled_lots, q.lots) as booked_lots, s.ticket, s.lots, s.price as open_price, s.side,
        nullif(s.sl, 0) as sl,
      nullif(s.tp, 0) as tp, s.tag, s.opened_at, s.expires_at, s.magic, s.comment,
        t.account_id || ' ' || s.ticket as position_key,
      case when coalesce(
        -- well-formed in everything that take_report checks; least() and greatest() ignore nulls
        t.outcome = 'completed' and jsonb_typeof(t.positions) = 'array' and jsonb_array_length(t.positions) = 1
        and coalesce(jsonb_typeof(t.quote), 'null') = 'null' and t.session is not null and t.seq is not null
        and coalesce(jsonb_typeof(t.retryable), 'null') in ('null', 'boolean')
          and coalesce(jsonb_typeof(t.adopted), 'null') in ('null', 'boolean')
        and coalesce(jsonb_typeof(t.reason), 'null') = 'null'
          and coalesce(jsonb_typeof(t.message), 'null') in ('null', 'string')
        and least(t.filled_lots, t.price, s.lots, s.price, s.sl, s.tp) >= 0
          and greatest(t.filled_lots, t.price, s.lots, s.price, s.sl, s.tp) <= 1e12
        and not private.is_odd_position(t.p) and s.lots is not null and s.price is not null and s.kind = 'position'
          and s.replaces is null
        and jsonb_typeof(t.p -> 'ticket') = 'string'
          and length(s.ticket) between 1 and 64 and t.p -> 'symbol' = to_jsonb(q.symbol)
        -- for an order in flight, from an agent that was handed it
        and q.account_id::text = t.account_id and q.attempt = t.attempt
          and q.status in ('queued', 'unknown') and q.parts is null
        and (q.vps_id = p_vps or private.was_given(q, p_vps)) and a.mode = 'hedging' and t.session <= a.session
        and c.masters is null and s.side = q.side and l.state = 'live' and l.close_failures + l.modify_failures = 0
        and case
          -- its levels are as asked for
          when q.action in ('open', 'increase') then s.lots > 0 and m.ticket is null and h.found = 0
            and (q.sl is null or s.sl > 0) and (q.tp is null or s.tp > 0)
          when q.action in ('close', 'modify') then q.ticket = s.ticket and m.closed_at is null and m.kind = 'position'
            and m.side = q.side
            and (m.session, m.seq) < (t.session, t.seq) and h.legs = 1 and h.found = 1
            and case q.action when 'close' then s.lots = 0
              else s.lots = m.lots and h.lots = m.lots and not 'protection_dropped' = any (l.warnings) end
          else false end, false) then 'usual' end as verdict
    from told t
    left join lateral jsonb_to_record(t.p) as s (ticket text, kind text, side text, lots numeric, price numeric,
      sl numeric, tp numeric,
      magic text, comment text, tag bigint, opened_at timestamptz, expires_at timestamptz, replaces text) on true
    left join public.trade_execution_queue q on q.id = t.execution_id
    left join public.trading_accounts a on a.id = q.account_id
    left join public.position_links l on l.id = q.link_id
    left join lateral (select * from public.positions i
      where i.account_id = q.account_id and i.ticket = s.ticket
      order by i.kind = 'position' desc limit 1) m on true
    left join lateral (select true as masters from public.copiers i
      where i.master_account_id = a.id and i.removed_at is null limit 1) c on true
    left join lateral (
      select count(*) as legs,
        count(*) filter (where g.ticket = s.ticket and g.ticket_kind = 'position' and g.kind = 'position') as found,
        coalesce(sum(g.lots) filter (where g.kind = 'position'), 0) as lots
      from private.link_legs g where g.link_id = q.link_id
    ) h on true
  ), usual as materialized (
    select k.*, w.size as point_size, w.money as point_money
    from looks k left join lateral private.point_worth(k.follower, k.currency, k.symbol, k.filled_lots) w on true
    -- the planner of Postgres expects one row here, so what is joined is looked up by its key, even in a small table
    where k.verdict = 'usual'
      -- two reports about the same copy or position are taken in order
      and k.link_id <> all (case when v_many
        then array(select d.link_id from looks d group by d.link_id having count(*) > 1) else '{}' end)
      and k.position_key <> all (case when v_many
        then array(select d.position_key from looks d group by d.position_key having count(*) > 1) else '{}' end)
  ), seen as (
    insert into public.positions as m (account_id, ticket, user_id, kind, symbol, side, lots, price, sl, tp, magic,
      comment, tag, opened_at, expires_at,
      session, seq, unseen_at, detected_at, first_seen_at, changed_at, closed_at, close_reason)
    select u.follower, u.ticket, u.user_id, 'position', u.symbol, u.side, u.lots, u.open_price, u.sl, u.tp,
      left(u.magic, 100), left(u.comment, 200), u.tag,
      u.opened_at, u.expires_at, u.session, u.seq, coalesce(u.sent_at, p_now), coalesce(u.done_at, p_now), p_now, p_now,
      case when u.closes then p_now end, case when u.closes then 'client' end
    from usual u
    on conflict (account_id, ticket, kind) do update set symbol = excluded.symbol, lots = excluded.lots,
      price = excluded.price, sl = excluded.sl,
      tp = excluded.tp, order_type = null, magic = excluded.magic, comment = excluded.comment,
        tag = coalesce(excluded.tag, m.tag),
      opened_at = coalesce(excluded.opened_at, m.opened_at), expires_at = excluded.expires_at,
        session = excluded.session, seq = excluded.seq,
      absent_snapshots = 0, detected_at = excluded.detected_at, changed_at = excluded.changed_at,
        closed_at = excluded.closed_at,
      close_reason = excluded.close_reason, replaced_by = null, replaced_by_kind = null
  ), done as (
    update public.trade_execution_queue x set status = 'completed', reason = null,
      message = left(u.message #>> '{}', 500), next_attempt_at = null,
      adopted = x.adopted or coalesce(u.adopted::boolean, false), filled_lots = coalesce(u.filled_lots, x.filled_lots),
      fill_price = coalesce(u.price, x.fill_price), point_size = coalesce(u.point_size, x.point_size),
      point_money = coalesce(u.point_money, x.point_money), received_at = coalesce(u.received_at, x.received_at),
      sent_at = coalesce(u.sent_at, x.sent_at), done_at = coalesce(u.done_at, x.done_at), finalized_at = p_now,
        updated_at = p_now
    from usual u where x.id = u.execution_id
  ), held as (
    insert into private.link_legs (link_id, account_id, ticket, ticket_kind, kind, lots, price)
    select u.link_id, u.follower, u.ticket, 'position', 'position', u.lots, u.open_price from usual u where u.opens
  ), given as (
    delete from private.link_legs g where g.link_id = any (array(select u.link_id from usual u where u.closes))
  ), based as (
    update public.position_links l set base_master_lots = coalesce(u.master_lots, l.base_master_lots),
      base_lots = least(u.held_lots + u.lots, l.base_lots + u.booked_lots)
    from usual u where u.opens and l.id = u.link_id
  )
  select array_agg(u.n order by u.n), array_agg(u.link_id),
    jsonb_agg(jsonb_build_object('execution_id', u.execution_id::text, 'status', 'accepted', 'code', null, 'error',
      null) order by u.n)
  into taken, link_ids, results from usual u;
end $$;

-- booking/retry.sql
-- What follows a report: the execution's next status, and whether it is queued again.

-- Status after a report: final, or another attempt. Closes, reductions and level changes are retried without end; opens
-- within their limits.
create function private.next_status(q public.trade_execution_queue, r jsonb, p_now timestamptz, out status text,
  out reason text, out next_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_opens boolean := private.opens(q);
  v_limit timestamptz;
begin
  reason := coalesce(r ->> 'reason', case when r ->> 'outcome' = 'completed' then null else r ->> 'outcome' end);
  case r ->> 'outcome'
    when 'completed' then
      -- a deal that filled something must show the result: until then it is looked for by its tag. A deal that was
      -- looked for (adopted) and shows nothing is no longer held.
      if not coalesce((r ->> 'adopted')::boolean, false)
        and (q.action in ('open', 'increase', 'place') or q.parts is not null)
        and (q.action = 'place' or coalesce((r ->> 'filled_lots')::numeric, 0) > 0)
        and coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) = 0
      then
        status := 'unknown';
      else
        status := 'completed'; reason := null;
      end if;
    when 'unknown' then status := 'unknown';
    when 'cancelled' then status := 'cancelled';
    when 'expired' then
      status := case when v_opens then 'expired' else 'retrying' end;
      next_at := case when q.attempt = 1 then p_now else p_now + private.retry_delay(q.attempt, 5) end;
    when 'rejected' then
      v_limit := case when reason = 'market_closed' then q.retry_until
        else q.queued_at + coalesce((select make_interval(secs => c.max_age_ms / 1000.0) from public.copiers c
          where c.id = q.copier_id), interval '5 s') end;
      next_at := p_now + private.retry_delay(q.attempt, case when v_opens then 5 else 30 end);
      -- it was asked to be dropped: not retried
      if v_opens and q.cancel_requested_at is not null then status := 'rejected';
      elsif v_opens and reason in ('no_money', 'invalid_volume') then
        next_at := private.second_attempt_at(q, reason, p_now);
        status := case when next_at is null then 'rejected' else 'retrying' end;
      elsif private.may_adjust_levels(q, reason) and p_now <= v_limit then status := 'retrying'; next_at := p_now;
      elsif not coalesce((r ->> 'retryable')::boolean, false) then status := 'rejected';
      elsif v_opens and next_at > v_limit then status := 'expired'; reason := case reason
        when 'price_changed' then 'slippage' else 'too_old' end;
      elsif q.action in ('modify', 'amend') and q.attempt >= 3 then status := 'rejected';
      else status := 'retrying'; end if;
  end case;
  -- a close of whatever a step left behind has done its work once the step is over; what is held now is closed by
  -- ticket
  if q.action = 'close' and q.ticket is null and status in ('retrying', 'rejected') and not exists (
    select 1 from public.trade_execution_queue o where o.step_id = q.after_id and o.finalized_at is null)
  then
    status := 'completed';
    reason := null;
  end if;
  if status <> 'retrying' then next_at := null; end if;
end $$;

-- Opens that wait for another attempt end here if the time forbids them now. Those of netting symbols are taken apart
-- by plan_net.
create function private.end_barred_opens(p_accounts uuid[], p_now timestamptz) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
begin
  if not private.any_quiet(p_now) and not exists (select 1 from public.trading_accounts a
    where a.id = any (p_accounts) and private.must_be_flat(a, p_now)) then
    return;
  end if;
  for q in
    with barred as materialized (
      select x.id, private.time_refusal(x.account_id, x.symbol, coalesce(m.symbol, x.symbol), p_now) as reason
      from public.trade_execution_queue x
      left join public.position_links l on l.id = x.link_id
      left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
        and m.kind = l.master_kind
      where x.status = 'retrying' and x.next_attempt_at <= p_now and x.account_id = any (p_accounts)
        and x.parts is null and private.opens(x)
    )
    update public.trade_execution_queue x set status = 'cancelled', reason = b.reason, next_attempt_at = null,
      finalized_at = p_now, updated_at = p_now
    from barred b where x.id = b.id and b.reason is not null
    returning x.*
  loop
    perform private.book_failure(q, p_now);
  end loop;
end $$;

-- Queues retries that are due again, under the next attempt number.
create function private.requeue(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_ids bigint[];
begin
  if not exists (select 1 from public.trade_execution_queue q
    where q.status = 'retrying' and q.next_attempt_at <= p_now) then
    return null;
  end if;
  if private.trading_state() = 'off' then return null; end if;
  perform private.end_barred_opens(p_accounts, p_now);
  perform private.fit_second_attempts(p_accounts, p_now);
  with due as (
    update public.trade_execution_queue q set status = 'queued', attempt = q.attempt + 1, next_attempt_at = null,
      offered_at = null, updated_at = p_now
    where q.status = 'retrying' and q.next_attempt_at <= p_now and q.account_id = any (p_accounts)
    returning q.id
  )
  select array_agg(id) into v_ids from due;
  return v_ids;
end $$;

-- booking/second_attempt.sql
-- Second attempts of opens that a broker refused for their size: one attempt, after a pause, with figures and
-- specifications read again.

-- Lots that the free margin allows beside what was opened since it was read, rounded to the symbol's step; null:
-- unknown.
create function private.affordable_lots(q public.trade_execution_queue, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  s public.account_symbols;
  v_free numeric;
  v_margin numeric;
begin
  select * into a from public.trading_accounts where id = q.account_id;
  select * into s from public.account_symbols x where x.account_id = q.account_id and x.name = q.symbol;
  v_free := (private.fresh_funds(a, p_now - private.setting_s('funds_max_age_s'))).free_margin
    - coalesce(private.margin_since(a, q.id, p_now), 0);
  v_margin := private.margin_per_lot(a, s, q.side, q.master_price, p_now);
  if v_free is null or v_margin is null or v_margin <= 0 then return null; end if;
  return div(greatest(v_free, 0), v_margin * s.lots_step) * s.lots_step;
end $$;

-- When an open that was refused for lack of money, or for its volume, is tried once more; null: never.
create function private.second_attempt_at(q public.trade_execution_queue, p_reason text,
  p_now timestamptz) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers;
  v_at timestamptz := p_now + private.setting_s('second_attempt_s');
begin
  select * into c from public.copiers where id = q.copier_id;
  if q.attempt > 1 or v_at > q.queued_at + make_interval(secs => coalesce(c.max_age_ms, 5000) / 1000.0) then
    return null;
  end if;
  if p_reason = 'no_money' and c.no_money_policy = 'shrink' and private.affordable_lots(q, p_now) < (
    select s.lots_min from public.account_symbols s where s.account_id = q.account_id and s.name = q.symbol) then
    return null;  -- not even the smallest volume is possible
  end if;
  return v_at;
end $$;

-- Gives due second attempts the volume that is possible: what the free margin allows (no_money_policy shrink), or what
-- the symbol's newest specification allows. Never more than before. A netting deal is cut only if all of it opens; the
-- part that is cut off is not made up for.
create function private.fit_second_attempts(p_accounts uuid[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  s public.account_symbols;
  v_lots numeric;
begin
  for q in
    select x.* from public.trade_execution_queue x
    where x.status = 'retrying' and x.next_attempt_at <= p_now and x.account_id = any (p_accounts)
      and x.reason in ('no_money', 'invalid_volume')
    order by x.id  -- each counts against the next
  loop
    continue when not private.opens(q) or exists (select 1 from jsonb_array_elements(q.parts) e
      where (e ->> 'lots')::numeric < 0 or e ->> 'side' <> q.side);
    select * into s from public.account_symbols x where x.account_id = q.account_id and x.name = q.symbol;
    v_lots := null;
    if q.reason = 'invalid_volume' then
      v_lots := div(least(q.lots, s.lots_max), s.lots_step) * s.lots_step;
    elsif (select c.no_money_policy from public.copiers c where c.id = q.copier_id) = 'shrink' then
      v_lots := private.affordable_lots(q, p_now);
    end if;
    if v_lots >= s.lots_min and v_lots < q.lots then
      update public.trade_execution_queue x set lots = v_lots,
        warnings = x.warnings || case q.reason when 'no_money' then 'margin_shrunk' else 'volume_refitted' end,
        parts = case when q.parts is not null then private.cut_parts(q.parts, q.side, v_lots) end
      where x.id = q.id;
    end if;
  end loop;
end $$;

-- upkeep/doorbell.sql
-- Doorbells and ticks: empty broadcasts that say "read again". They are only hints; the rows are authoritative.

-- Idle agents send a heartbeat every few seconds anyway; ticks also reach an agent whose heartbeats fail.
create function private.send_ticks() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid;
begin
  for v_vps in
    update public.vps_instances v set last_tick_at = now()
    where v.id = any (array(
      select w.id from public.vps_instances w
      where w.status in ('online', 'draining', 'offline')
        and coalesce(w.last_tick_at, '-infinity') <= now() - private.setting_s('tick_s')
      for no key update skip locked))
    returning v.id
  loop
    perform private.broadcast('vps:' || v_vps, 'tick', jsonb_build_object('at', private.rfc3339(now())));
  end loop;
end
$$;
comment on function private.send_ticks() is 'Sends a tick to every VPS topic that has had none for tick_s.';

-- Finds the users for whom something changed since the last ring, without any write where trades are made. A change is
-- found by its updated_at and by the ID of its transaction. updated_at is the time at which the transaction began, so
-- the time window reaches back further than a statement of the API may take (8 s); the transaction ID tells whether the
-- last ring can have seen the change.
create function private.changed_topics(p_since timestamptz, p_xmin bigint) returns table (topic text)
language sql stable
set search_path = ''
as $$
  with snapshot (xmax) as (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint),
  fresh (user_id, xid) as (
    select q.user_id, q.xmin from public.trade_execution_queue q where q.updated_at > p_since
    union all
    select e.user_id, e.xmin from public.trade_events e where e.received_at > p_since
    union all
    select a.user_id, a.xmin from public.trading_accounts a where a.updated_at > p_since
    union all
    select c.user_id, c.xmin from public.copiers c where c.updated_at > p_since
    union all
    select r.user_id, r.xmin from public.protection_rules r where r.updated_at > p_since
    union all
    select l.user_id, l.xmin from public.alerts l where l.updated_at > p_since
    union all
    select null, h.xmin from public.connection_health_logs h where h.at > p_since and h.kind = 'state'
  ),
  -- xmin has 32 bits, the snapshot 64: compare modulo 2^32, and never above the snapshot.
  unseen as (
    select f.user_id from fresh f, snapshot s
    where s.xmax - mod(s.xmax - f.xid::text::bigint + 4294967296, 4294967296) >= p_xmin
    group by f.user_id
  )
  select 'user:' || u.user_id from unseen u where u.user_id is not null
  union all
  select 'operators' where exists (select from unseen)
$$;
comment on function private.changed_topics(timestamptz, bigint) is
  'Topics of dashboards with something new: changed after p_since by a transaction that may not have ended at the last '
  'ring.';

-- Security definer: pg_cron and agents' heartbeats run it.
create function private.ring_doorbells() returns integer
language plpgsql security definer
set search_path = ''
as $$
declare
  v_last private.clockwork;
  v_xmin bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  v_topic text;
  v_rung integer := 0;
begin
  if not private.take_turn('doorbells') then
    return 0;
  end if;
  select c.* into v_last from private.clockwork c where c.name = 'doorbells';
  -- Slightly under a second: a scheduler that runs a little early must not turn one second into two.
  if v_last.last_run_at > clock_timestamp() - interval '0.9 seconds' then
    return 0;
  end if;
  insert into private.doorbells as d (topic, changed_at, due)
  select n.topic, clock_timestamp(), true
  from private.changed_topics(greatest(v_last.last_run_at,
    clock_timestamp() - interval '1 minute') - interval '15 seconds', v_last.last_xmin) n
  on conflict (topic) do update set due = true, changed_at = excluded.changed_at where not d.due;
  for v_topic in
    update private.doorbells d set due = false, rung_at = clock_timestamp()
    where d.topic = any (array(
      select e.topic from private.doorbells e where e.due order by e.topic <> 'operators', e.changed_at
      limit (private.setting('doorbells_max') #>> '{}')::integer))
    returning d.topic
  loop
    perform private.broadcast(v_topic, 'changed', '{}');
    v_rung := v_rung + 1;
  end loop;
  update private.clockwork set last_run_at = clock_timestamp(), last_xmin = v_xmin where name = 'doorbells';
  return v_rung;
end
$$;
comment on function private.ring_doorbells() is
  'Rings every dashboard topic with something new, at most once per second each. Returns the number of topics rung.';

-- upkeep/executions.sql
-- Upkeep of executions and links: work that is due because time has passed, one owner at a time.

-- Accounts with work that is due, one row per owner, the owner with the most first. p_held_back: only accounts with
-- opens that were held back.
create function private.due_by_owner(p_held_back boolean, p_now timestamptz) returns table (accounts uuid[])
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_held_back then
    return query
    select array_agg(distinct q.account_id) from public.trade_execution_queue q
    where q.status = 'retrying' and q.next_attempt_at <= p_now and q.attempt = 0 group by q.user_id
      order by count(distinct q.account_id) desc;
    return;
  end if;
  return query
  select array_agg(a.id) from public.trading_accounts a where a.id in (
    select q.account_id from public.trade_execution_queue q where q.status = 'retrying' and q.next_attempt_at <= p_now
    union
    select q.account_id from public.trade_execution_queue q
    where q.in_flight and q.status = 'queued' and q.send_before < p_now - interval '5 s'
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.replan_at <= p_now
    union
    select l.follower_account_id from public.position_links l
    where l.wanted_lots is not null and l.wanted_until <= p_now
    union
    select l.follower_account_id from public.position_links l where l.state = 'live' and l.order_due_at <= p_now
    union
    select n.account_id from private.net_ledgers n where n.replan_at <= p_now
    union
    select a.id from public.trading_accounts a where a.copy_state = 'flattening'
    union
    select c.follower_account_id from public.copiers c where c.existing_until is not null
    union
    select w.follower_account_id from private.symbol_waits w
    union
    select unnest(private.with_followers(array(select f.account_id from private.quarantine f
      where f.retry_at <= p_now)))
  )
  group by a.user_id order by count(*) desc;
end $$;

-- Locks those of these accounts that no other transaction is planning now, and returns them.
create function private.lock_free(p_accounts uuid[]) returns uuid[]
language plpgsql security definer set search_path = '' as $$
begin
  perform private.check_start();
  return array(select account_id from private.plan_locks where account_id = any (p_accounts)
    order by account_id for no key update skip locked);
end $$;

create function private.keep_up(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[] := private.judge_overdue(p_accounts, p_now);
  v_new bigint[];
  v_account uuid;
begin
  v_links := coalesce(v_links, '{}') || private.links_due(p_accounts, p_now);
  v_new := coalesce(private.requeue(p_accounts, p_now), '{}') || coalesce(private.plan_again(v_links, p_now), '{}');
  for v_account in select a.id from public.trading_accounts a
    where a.id = any (p_accounts) and a.copy_state = 'flattening' loop
    v_new := v_new || private.plan_flatten(v_account, p_now);
  end loop;
  return v_new || private.decide_waiting_existing(p_accounts, p_now)
    || private.decide_waiting_symbols(p_accounts, p_now);
end $$;

-- The due work for these accounts of one owner: all at once, or part by part if the planner fails or has failed
-- recently.
create function private.maintain_owner(p_accounts uuid[]) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_accounts uuid[] := private.lock_free(p_accounts);
  v_now timestamptz := clock_timestamp();
  v_new bigint[];
  v_whole boolean;
begin
  if cardinality(v_accounts) = 0 then return; end if;
  v_whole := not exists (select 1 from private.quarantine f where f.account_id = any (v_accounts));
  if v_whole then
    begin
      v_new := private.keep_up(v_accounts, v_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      raise warning 'maintain_executions: part by part, for %: %', sqlstate, sqlerrm;
      v_whole := false;
    end;
  end if;
  if not v_whole then
    v_new := private.keep_up_isolated(v_accounts, v_now) || private.retry_quarantine(v_accounts, v_now);
  end if;
  perform private.offer_isolated(v_new, null, clock_timestamp());
end $$;

-- The due work of all accounts: retries, deadlines, waiting links, flattening. Called by maintain() and by heartbeats;
-- concurrent runs are safe. It goes owner by owner, the one with the most work first. Locks are held to the end, so
-- this order keeps no account locked while another owner's larger work is done.
create function private.maintain_executions(p_held_back boolean default false) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_accounts uuid[];
begin
  for v_accounts in select d.accounts from private.due_by_owner(p_held_back, clock_timestamp()) d loop
    begin
      perform private.maintain_owner(v_accounts);
    exception when others then  -- undone for this owner only; the next run tries again
      raise warning 'maintain_executions: one owner''s waits for the next run: % (%)', sqlerrm, sqlstate;
    end;
  end loop;
end $$;

-- Takes the plan locks for a report that tells symbols, before anything else: a plan that just missed them has ended
-- then, and its wait is seen. All locks that planning after the report may need are taken in this one call.
create function private.lock_for_symbols(p_account uuid, p_state jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if exists (select from private.symbol_waits w where w.follower_account_id = p_account)
    or exists (select from private.symbol_waits w where w.master_account_id = p_account) then
    perform private.lock_accounts(private.with_neighbours(p_account));
  elsif p_state -> 'symbols_complete' = 'true'
    or jsonb_path_exists(p_state, '$.symbols[*].contract_size ? (@ != null)') then
    perform private.lock_accounts(case
      when exists (select from public.protection_rules r where r.account_id = p_account and r.enabled)
        then private.with_neighbours(p_account)
      else array[p_account] end);
  end if;
end $$;

-- Decides what waits for symbols or quotes of this account, which has just told some. The caller has called
-- lock_for_symbols(); of followers that were locked by nobody in time, the next upkeep decides.
create function private.decide_told_symbols(p_account uuid) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_followers uuid[] := array(
    select w.follower_account_id from private.symbol_waits w where w.follower_account_id = p_account
    union
    select w.follower_account_id from private.symbol_waits w where w.master_account_id = p_account);
begin
  if cardinality(v_followers) = 0 then return; end if;
  v_followers := private.lock_free(v_followers);
  perform private.offer_isolated(private.decide_waiting_symbols(v_followers, clock_timestamp()), null,
    clock_timestamp());
exception when others then  -- the report stands; the upkeep decides, part by part
  if not private.is_fault(sqlstate) then raise; end if;
  raise warning 'decide_told_symbols: left to the upkeep, for %: %', sqlstate, sqlerrm;
end $$;

-- upkeep/fitness.sql
-- Fitness: an agent that cannot do the work does not hold the lease. Each heartbeat says what is wrong ("unfit"). The
-- heartbeat is then answered, but renews no lease and hands nothing out; the accounts move when the lease ends.
--
-- With low memory, low disk or a drifting clock the agent keeps its lease while no other fit VPS can take one of its
-- accounts. If most VPSes differ from the database's clock at the same time, the database's clock is wrong.

-- The explanations of the codes in docs/errors.md, for alerts.
create function private.unfit_words(p_unfit text) returns text
language sql immutable
set search_path = ''
as $$
  select case p_unfit
    when 'journal_unwritable'
      then 'its agent cannot write its journal: free disk space, or check the owner of its data directory'
    when 'loop_stalled' then
      'its agent stood still for over two seconds three times in a minute: see what else runs on the machine'
    when 'low_disk' then 'it has under 50 MB of disk left where its agent keeps the journal: free some'
    when 'low_memory' then 'it has under 50 MB of memory left: see what uses it'
    when 'clock_drift' then 'its wall clock drifts by over a second a minute: see its time service'
  end
$$;
comment on function private.unfit_words(text) is
  'What is wrong with an agent that is unfit for this reason, and what to do; null: there is no such reason.';

create function private.unfit_of(p_heartbeat jsonb) returns text
language plpgsql stable
set search_path = ''
as $$
declare
  v_unfit text := private.text_of(p_heartbeat, 'unfit', 50);
begin
  if v_unfit is not null and private.unfit_words(v_unfit) is null then
    raise exception using errcode = 'TC001',
      message = 'unfit: expected null, journal_unwritable, loop_stalled, low_disk, low_memory or clock_drift',
        detail = v_unfit;
  end if;
  return v_unfit;
end
$$;
comment on function private.unfit_of(jsonb) is
  'Why the agent that sent this heartbeat is unfit, a code; null: it is fit. TC001 for an unknown code.';

-- p_vps is reporting p_offset_ms now (null: no VPS is).
create function private.database_clock_is_off(p_vps uuid, p_offset_ms numeric) returns boolean
language sql stable
set search_path = ''
as $$
  select count(*) >= 3 and count(*) filter (where abs(o.offset_ms) > 1000) * 2 > count(*)
  from (
    select case when v.id = p_vps then p_offset_ms else v.clock_offset_ms end as offset_ms
    from public.vps_instances v
    where v.retired_at is null and (v.id = p_vps or v.last_heartbeat_at > now() - interval '30 seconds')
  ) o
$$;
comment on function private.database_clock_is_off(uuid, numeric) is
  'Whether over half of at least three VPSes reported an offset of over a second within 30 s; then the database''s '
  'clock is wrong.';

create function private.has_substitute(p_vps public.vps_instances) returns boolean
language sql stable
set search_path = ''
as $$
  with mine as materialized (
    select a.id, a.platform from public.account_vps_assignments s join public.trading_accounts a on a.id = s.account_id
    where s.vps_id = p_vps.id and a.removed_at is null
  )
  select exists (
    select from public.vps_instances o
    where o.id <> p_vps.id and o.status = 'online' and o.unfit is null and o.lease_expires_at > clock_timestamp()
      and o.capacity > (select count(*) from public.account_vps_assignments t where t.vps_id = o.id)
      and case when exists (select from mine)
        then exists (select from mine m where m.platform = any (o.platforms)
          and m.id <> all (private.released_accounts(o.id)))
        else o.platforms && p_vps.platforms end)
$$;
comment on function private.has_substitute(public.vps_instances) is
  'Whether another fit VPS can take an account of this one; for a VPS without accounts, any of its platforms.';

create function private.may_hold_lease(p_vps public.vps_instances, p_unfit text, p_offset_ms numeric) returns boolean
language sql stable
set search_path = ''
as $$
  select case
    when p_unfit is null then true
    when p_unfit not in ('low_disk', 'low_memory', 'clock_drift') then false
    when p_unfit = 'clock_drift' and private.database_clock_is_off(p_vps.id, p_offset_ms) then true
    else not private.has_substitute(p_vps) end
$$;
comment on function private.may_hold_lease(public.vps_instances, text, numeric) is
  'Whether a heartbeat renews the lease of an agent that is unfit for this reason.';

-- Each heartbeat calls this before it renews anything. It writes only when something has changed. p_vps: the row before
-- the heartbeat.
create function private.judge_fitness(p_vps public.vps_instances, p_heartbeat jsonb) returns boolean
language plpgsql
set search_path = ''
as $$
declare
  v_unfit text := private.unfit_of(p_heartbeat);
  v_holds boolean := private.may_hold_lease(p_vps, v_unfit, private.numeric_of(p_heartbeat, 'offset_ms'));
begin
  if (p_vps.unfit, p_vps.unfit_works) is not distinct from (v_unfit, v_unfit is not null and v_holds) then
    return v_holds;
  end if;
  update public.vps_instances v
  set unfit = v_unfit, unfit_works = v_unfit is not null and v_holds,
      unfit_since = case when v_unfit is null then null when v.unfit = v_unfit then v.unfit_since else now() end
  where v.id = p_vps.id;
  if v_unfit is not null then
    perform private.alert_operators(p_vps.id, 'vps', v_unfit, case when v_holds then 'warning' else 'critical' end,
      format('VPS %s is unfit (%s): %s. %s', p_vps.name, v_unfit, private.unfit_words(v_unfit),
        case when v_holds then 'It goes on working, because no other VPS can take its accounts.'
          else 'Its lease is not renewed; its accounts move to other VPSes that can take them.' end),
      jsonb_build_object('goes_on', v_holds));
  end if;
  return v_holds;
end
$$;
comment on function private.judge_fitness(public.vps_instances, jsonb) is
  'Stores whether the agent of this VPS is fit and alerts operators. Returns whether its heartbeat renews the lease.';

-- An agent that cannot work one account (the platform's library is missing, the credentials cannot be read) reports it
-- in that account's entry.
create function private.release_unfit(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_said record;
begin
  for v_said in
    select t.account_id, t.unfit, coalesce(t.error, 'its agent does not say more') as error
    from jsonb_to_recordset(p_accounts) as t (account_id uuid, revision bigint, unfit text, error text)
    join public.trading_accounts a on a.id = t.account_id
    -- A problem with earlier settings or an earlier password says nothing about the current ones.
    where t.unfit in ('platform_missing', 'credentials_unreadable') and coalesce(t.revision = a.revision, true)
    order by t.account_id
  loop
    perform private.release_account(p_vps, v_said.account_id,
      case when starts_with(v_said.error, v_said.unfit || ': ')
        then v_said.error else v_said.unfit || ': ' || v_said.error end);
  end loop;
end
$$;
comment on function private.release_unfit(uuid, jsonb) is
  'Releases the accounts that their agent reports it cannot work, each with its reason.';

-- Decides whether the VPS or the broker is at fault. An account counts as connected if it was connected before the
-- trouble began, or for longer than agents wait between two attempts: when a broker comes back, some agents connect
-- sooner than others.
create function private.is_broker_down(p_platform text, p_server_key text, p_unreachable uuid[]) returns boolean
language sql stable
set search_path = ''
as $$
  select count(distinct s.vps_id) >= 2 and not coalesce(bool_or(
    a.status in ('connected', 'degraded') and a.session_vps_id = s.vps_id and a.id <> all (p_unreachable)
    and a.session_opened_at < greatest(clock_timestamp() - interval '90 seconds',
      (select max(u.seen_at) from public.trading_accounts u where u.id = any (p_unreachable)))), false)
  from public.trading_accounts a
  join public.account_vps_assignments s on s.account_id = a.id
  join public.vps_instances v on v.id = s.vps_id
  where a.platform = p_platform and a.server_key = p_server_key and a.removed_at is null
    and a.status <> 'halted'  -- not tried at present
    and v.lease_expires_at > clock_timestamp()
    and not exists (select from private.releases r
      where r.vps_id = s.vps_id and r.account_id = a.id and r.reason like 'broker_unreachable: %'
                    and r.released_at > clock_timestamp() - (select private.setting_s('release_s')))
$$;
comment on function private.is_broker_down(text, text, uuid[]) is
  'Whether at least two VPSes work accounts of this server and no account is connected, apart from the given ones, '
  'which have just been reported as not connected.';

create function private.has_room_elsewhere(p_account uuid, p_vps uuid) returns boolean
language sql stable
set search_path = ''
as $$
  select coalesce(sum(greatest(0, o.capacity - (select count(*) from public.account_vps_assignments t
    where t.vps_id = o.id))), 0) > (
    select count(*) from private.releases r
    join public.account_vps_assignments s on s.account_id = r.account_id and s.vps_id = r.vps_id
    join public.trading_accounts w on w.id = r.account_id
    where r.reason like 'broker_unreachable: %' and r.released_at > clock_timestamp() - private.setting_s('release_s')
      and w.platform = (select a.platform from public.trading_accounts a where a.id = p_account))
  from public.vps_instances o join public.trading_accounts a on a.id = p_account
  where o.id <> p_vps and o.status = 'online' and o.unfit is null and o.lease_expires_at > clock_timestamp()
    and a.platform = any (o.platforms)
    and p_account <> all (private.released_accounts(o.id))
$$;
comment on function private.has_room_elsewhere(uuid, uuid) is
  'Whether other VPSes have room for this account, not counting the places needed by accounts that wait because their '
  'broker is unreachable.';

-- Accounts whose broker cannot be reached from this VPS. Nobody works a released account until another VPS takes it, so
-- an account that no other VPS can take is not released: its agent keeps trying. At most once an hour per account and
-- VPS; otherwise accounts of a broker that is down would move around all the time.
create function private.release_unreachable(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_said record;
begin
  for v_said in
    with told as materialized (
      select a.id, a.name, a.platform, a.server_key, t.error, exists (
        select from public.alerts l
        where l.account_id = a.id and l.reason = 'broker_unreachable'
          and l.updated_at > now() - interval '1 hour') as alerted
      from jsonb_to_recordset(p_accounts) as t (account_id uuid, revision bigint, unfit text, error text)
      join public.trading_accounts a on a.id = t.account_id
      join public.account_vps_assignments s on s.account_id = a.id and s.vps_id = p_vps
      where t.unfit = 'broker_unreachable' and starts_with(t.error, 'broker_unreachable: ')
        and coalesce(t.revision = a.revision, true)
        and not exists (select from private.releases r
          where r.vps_id = p_vps and r.account_id = a.id and r.reason like 'broker_unreachable: %'
                        and r.released_at > clock_timestamp() - interval '1 hour')
    ),
    cut_off as materialized (
      select platform, server_key from told group by platform, server_key
      having not private.is_broker_down(platform, server_key, array_agg(id))
    )
    select t.id, t.name, t.error, t.alerted from told t join cut_off using (platform, server_key) order by t.id
  loop
    if private.has_room_elsewhere(v_said.id, p_vps) then
      perform private.release_account(p_vps, v_said.id, v_said.error);
    elsif not v_said.alerted then
      perform private.raise_alert(v_said.id, 'account', 'broker_unreachable', 'critical',
        format('Account %s is not traded, and no other VPS can take it now: %s', v_said.name, left(v_said.error, 500)),
        jsonb_build_object('vps_id', p_vps));
    end if;
  end loop;
end
$$;
comment on function private.release_unreachable(uuid, jsonb) is
  'Releases the accounts whose broker cannot be reached from this VPS, if another VPS can take them and the broker '
  'itself is not down.';

-- Accounts that nobody works: their VPS has no lease, and no other VPS can take them. maintain() runs this last: it
-- locks account rows that others lock after plan locks, so it waits for no lock.
create function private.alert_stranded() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account record;
begin
  for v_account in
    update public.trading_accounts a
    set status = 'disconnected', status_reason = w.code || ': ' || w.words
    from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id,
      lateral (select coalesce(v.unfit, 'vps_lost') as code,
        coalesce(private.unfit_words(v.unfit),
          'its VPS sends no heartbeats') || '; no other VPS can take the account now' as words) w
    where s.account_id = a.id and a.id = any (array(
      select b.id from public.trading_accounts b
      join public.account_vps_assignments t on t.account_id = b.id join public.vps_instances o on o.id = t.vps_id
      where b.removed_at is null and b.status not in ('disconnected', 'halted')
        and o.status in ('offline', 'draining', 'retired') and o.lease_expires_at < clock_timestamp()
      for no key update of b skip locked))
    returning a.id, a.name, w.code, w.words
  loop
    perform private.raise_alert(v_account.id, 'account', v_account.code, 'critical',
      format('Account %s is not traded: %s', v_account.name, v_account.words), '{}');
  end loop;
end
$$;
comment on function private.alert_stranded() is
  'Sets accounts that nobody works to disconnected, with the reason, and alerts their users.';

create function private.watch_database_clock() returns void
language plpgsql
set search_path = ''
as $$
begin
  if private.database_clock_is_off(null, null) and not exists (
    select from public.alerts l
    where l.account_id is null and l.vps_id is null and l.reason = 'database_clock'
      and l.updated_at > now() - interval '1 hour')
  then
    perform private.alert_operators(null, 'database', 'database_clock', 'critical',
      'The clocks of most VPSes differ from the database''s by over a second at once: check the time service of the '
      'database''s machine. Until then no VPS loses its lease because of its clock.',
      (select jsonb_object_agg(v.name, v.clock_offset_ms) from public.vps_instances v where v.retired_at is null));
  end if;
end
$$;
comment on function private.watch_database_clock() is
  'Alerts operators while the database''s own clock is wrong, at most once an hour.';

-- upkeep/flat_time.sql
-- Flat by at work: warns half an hour before, closes the account at the time, begins the next week's period. A run
-- that is late, because the database or a VPS was away, does the same once, as long as the period lasts.

-- Whether copies go into this account: an account that follows nobody is not traded.
create function private.is_follower(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.copiers c where c.follower_account_id = p_account and c.removed_at is null)
    or exists (select 1 from public.position_links l where l.follower_account_id = p_account and l.state = 'live');
end $$;

-- Sets the period that lasts now or comes next, and when the upkeep must look at it.
create function private.begin_flat_period(r public.flat_times, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_period record := private.flat_period(r, p_now);
begin
  update public.trading_accounts set flat_from = v_period.begins, flat_until = v_period.ends where id = r.account_id;
  update public.flat_times f set due_at = case when v_period.begins = f.closed_for then v_period.ends
    else v_period.begins - interval '30 minutes' end
  where f.account_id = r.account_id;
end $$;

create function private.alert_flat_time(r public.flat_times, a public.trading_accounts, p_reason text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_until text := private.weekly_words(r.until_weekday, r.until_at, r.until_time_zone);
  v_at text := private.weekly_words(r.weekday, r.flat_at, r.time_zone);
begin
  perform private.raise_alert(a.id, 'flat_by', p_reason, case p_reason when 'flat_by_missed' then 'critical'
      else 'warning' end,
    case p_reason
      when 'flat_by_soon' then format('Flat by: everything on %s is closed at %s. Nothing is opened on it until %s; '
        'then copying goes on. To keep what it holds, change or remove its flat_by before.', a.name, v_at, v_until)
      when 'flat_by_missed' then format('Flat by: %s was not closed at %s, because the database did not run until %s. '
        'Close by hand what must not be held.', a.name, v_at, v_until)
      else format('Flat by: everything on %s is being closed, as its flat_by says (%s). Nothing is opened on it until '
        '%s; then copying goes on by itself.', a.name, v_at, v_until) end,
    jsonb_build_object('flat_from', private.rfc3339(a.flat_from), 'flat_until', private.rfc3339(a.flat_until)));
end $$;

-- Closes the account for its period. The caller holds the plan locks of the account and its neighbours.
create function private.close_for_flat_time(r public.flat_times, a public.trading_accounts, p_now timestamptz)
returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.flat_times f set closed_for = a.flat_from, due_at = a.flat_until where f.account_id = a.id;
  if not private.is_follower(a.id) then return; end if;
  perform private.withdraw(array[a.id], null, false, 'flat_by', p_now);
  perform private.start_flattening(a.id, r.close_manual, null, 'flat_by', p_now);
  perform private.alert_flat_time(r, a, 'flat_by');
end $$;

-- Does what is due for one account. If somebody else is planning it, the next run does it.
create function private.keep_flat_time(p_account uuid) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_wanted uuid[] := private.with_neighbours(p_account);
  v_free uuid[] := private.lock_free(v_wanted);
  v_now timestamptz := clock_timestamp();
  r public.flat_times;
  a public.trading_accounts;
begin
  if not v_wanted <@ v_free then raise lock_not_available; end if;  -- gives back what was locked
  select * into r from public.flat_times f where f.account_id = p_account and f.due_at <= v_now for update;
  if not found then return; end if;
  select * into a from public.trading_accounts where id = p_account;
  if a.removed_at is not null then
    delete from public.flat_times f where f.account_id = p_account;
  elsif v_now >= a.flat_until then
    if r.closed_for is distinct from a.flat_from and private.is_follower(a.id) then
      perform private.alert_flat_time(r, a, 'flat_by_missed');
    end if;
    perform private.begin_flat_period(r, v_now);
  elsif v_now >= a.flat_from then
    perform private.close_for_flat_time(r, a, v_now);
  else
    if r.warned_for is distinct from a.flat_from and private.is_follower(a.id) then
      perform private.alert_flat_time(r, a, 'flat_by_soon');
    end if;
    update public.flat_times f set warned_for = a.flat_from, due_at = a.flat_from where f.account_id = p_account;
  end if;
end $$;

-- Upkeep: all accounts whose flat time is due, each by itself.
create function private.keep_flat_times() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid;
begin
  for v_account in
    select f.account_id from public.flat_times f where f.due_at <= clock_timestamp() order by f.due_at, f.account_id
  loop
    begin
      perform private.keep_flat_time(v_account);
    exception
      when lock_not_available then null;
      when others then raise warning 'keep_flat_times: account % waits for the next run: % (%)', v_account, sqlerrm,
        sqlstate;
    end;
  end loop;
end $$;

-- upkeep/lease.sql
-- Leases that have ended: which VPS is offline.

-- A VPS is judged only if the database was up to receive its heartbeats. After a gap in the runs all leases are
-- extended once; otherwise a database outage would move the whole farm. A row that is locked belongs to a heartbeat in
-- progress.
create function private.judge_leases(p_gap interval) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_lease interval := private.setting_s('lease_s');
begin
  -- If the clock was set back: no lease may last longer than lease_s from now.
  update public.vps_instances v set lease_expires_at = clock_timestamp() + v_lease
  where v.id = any (array(
    select w.id from public.vps_instances w
    where w.lease_expires_at > clock_timestamp() + v_lease for no key update skip locked));
  if p_gap > v_lease / 2 then
    update public.vps_instances v
    set lease_expires_at = clock_timestamp() + v_lease
    where v.id = any (array(
      select w.id from public.vps_instances w
      where w.status in ('online', 'draining') and w.lease_expires_at < clock_timestamp() + v_lease
        and (w.unfit is null or w.unfit_works)
      for no key update skip locked));
    return;
  end if;
  update public.vps_instances v set status = 'offline'
  where v.id = any (array(
    select w.id from public.vps_instances w
    where w.status = 'online' and w.lease_expires_at < clock_timestamp()
    for no key update skip locked));
end
$$;
comment on function private.judge_leases(interval) is
  'Marks VPSes offline whose lease is over; after a gap in the runs it extends the leases instead.';

-- upkeep/maintain.sql
-- maintain(): scheduled work of the farm. pg_cron runs it; a heartbeat runs it if pg_cron did not (on hosted Supabase
-- pg_cron has stood still for weeks). One run at a time; a part that fails does not stop the others; every part may be
-- repeated at once.

create function private.log_health() returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into public.connection_health_logs (at, kind, vps_id, status, accounts, heartbeat_age_ms, rtt_ms,
    clock_offset_ms,
    cpu_percent, memory_percent, disk_percent, rss_mb)
  select date_trunc('minute', clock_timestamp()), 'minute', v.id, v.status,
    (select count(*) from public.account_vps_assignments s where s.vps_id = v.id),
    round(extract(epoch from clock_timestamp() - v.last_heartbeat_at) * 1000, 1), v.rtt_ms, v.clock_offset_ms,
    v.cpu_percent, v.memory_percent, v.disk_percent, v.rss_mb
  from public.vps_instances v
  where v.retired_at is null
  on conflict (vps_id, at) where kind = 'minute' do nothing;
end
$$;
comment on function private.log_health() is 'Writes one health row per VPS for this minute.';

-- Refreshes the statistics of the planner's tables when they have doubled. Autovacuum runs at most once a minute; until
-- then, on a new installation or after a burst, Postgres plans for tables that it believes to be tiny. Not more often,
-- because new statistics make every session plan again.
create function private.refresh_statistics() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_table regclass;
begin
  for v_table in
    select c.oid from pg_catalog.pg_class c
    join pg_catalog.pg_stat_user_tables s on s.relid = c.oid
    where c.oid = any (array['public.positions', 'public.position_links', 'private.link_legs',
      'public.trade_execution_queue',
        'public.copy_outcomes', 'private.event_keys', 'public.copiers', 'public.trading_accounts',
          'public.account_symbols']::regclass[])
      and s.n_mod_since_analyze > 2000 + greatest(c.reltuples, 0)
  loop
    execute format('analyze %s', v_table);
  end loop;
end
$$;
comment on function private.refresh_statistics() is
  'Analyses those of the planner''s tables that have doubled since their last analysis.';

create function private.note_run(p_name text, p_error text) returns void
language sql
set search_path = ''
as $$ update private.clockwork set last_run_at = clock_timestamp(), last_error = p_error where name = p_name $$;
comment on function private.note_run(text, text) is
  'Stores that a part of the clockwork ran, and its error (null: none).';

-- A part that fails is rolled back, its error is stored, and the next run tries it again; the other parts go on.
create function private.run_part(p_part text, p_gap interval) returns text
language plpgsql
set search_path = ''
as $$
begin
  case p_part
    when 'leases' then
      perform private.judge_leases(p_gap);
    when 'executions' then
      perform private.maintain_executions();
    when 'trading' then
      perform private.settle_trading();
    when 'flat times' then
      perform private.keep_flat_times();
    when 'resumes' then
      perform private.resume_accounts();
    when 'removals' then
      perform private.finish_removals();
    when 'claims' then
      perform private.alert_absurd_claim();
    when 'ticks' then
      perform private.send_ticks();
    when 'health' then
      perform private.log_health();
      perform private.note_run('health', null);
    when 'retention' then
      perform private.delete_expired();
      perform private.note_run('retention', null);
    when 'fitness' then
      perform private.watch_database_clock();
      perform private.alert_stranded();
    when 'statistics' then
      perform private.refresh_statistics();
    when 'partitions' then
      perform private.make_partitions();
      perform private.learn_time_zones();
      perform private.note_run('partitions', null);
  end case;
  return null;
exception when others then
  raise warning 'maintain: part % failed: % (%)', p_part, sqlerrm, sqlstate;
  return format('%s: %s (%s)', p_part, sqlerrm, sqlstate);
end
$$;
comment on function private.run_part(text, interval) is
  'Runs one part of maintain(). Returns its error, or null.';

create function private.place_part() returns integer
language plpgsql
set search_path = ''
as $$
begin
  return private.place_homeless(500);
exception when others then
  raise warning 'maintain: placing accounts failed: % (%)', sqlerrm, sqlstate;
  return 0;
end
$$;
comment on function private.place_part() is
  'place_homeless() as a part of maintain(): a failure becomes a warning. Returns the number of accounts moved.';

-- Security definer: pg_cron and agents' heartbeats run it.
create function private.maintain() returns jsonb
language plpgsql security definer
set search_path = ''
set lock_timeout = '3s'
as $$
declare
  v_last_run_at timestamptz;
  v_errors text[] := '{}';
  v_moved integer := 0;
begin
  if not private.take_turn('maintain') then
    return jsonb_build_object('ran', false);
  end if;
  select c.last_run_at into v_last_run_at from private.clockwork c where c.name = 'maintain';
  v_errors := v_errors || private.run_part('trading', null);
  v_errors := v_errors || private.run_part('leases', clock_timestamp() - v_last_run_at);
  -- Only if no other placement is running: a heartbeat holds its own row, which that placement may wait for.
  if private.take_turn('assign') then
    v_moved := private.place_part();
  end if;
  v_errors := v_errors || private.run_part('claims', null);
  v_errors := v_errors || private.run_part('fitness', null);
  v_errors := v_errors || private.run_part('ticks', null);
  if private.is_due('health', '15 seconds') then
    v_errors := v_errors || private.run_part('health', null);
  end if;
  v_errors := v_errors || private.run_part('statistics', null);
  if private.is_due('retention', '1 minute') then
    v_errors := v_errors || private.run_part('retention', null);
  end if;
  if private.is_due('partitions', '1 hour') then
    v_errors := v_errors || private.run_part('partitions', null);
  end if;
  -- Last: what these parts lock stays locked until the end, and nobody can plan with it meanwhile. Placement and these
  -- parts each lock accounts in order, but not when one follows the other; so after a move they wait for the next run.
  if v_moved = 0 then
    v_errors := v_errors || private.run_part('flat times', null);
    v_errors := v_errors || private.run_part('executions', null);
    v_errors := v_errors || private.run_part('resumes', null);
  end if;
  v_errors := v_errors || private.run_part('removals', null);
  v_errors := array_remove(v_errors, null);
  perform private.note_run('maintain', nullif(array_to_string(v_errors, '; '), ''));
  return jsonb_build_object('ran', true, 'moved', v_moved, 'errors', to_jsonb(v_errors));
end
$$;
comment on function private.maintain() is
  'Runs leases, failover, executions, ticks, health, retention and partitions: {"ran", "moved", "errors"}. Safe to run '
  'at any time, also concurrently.';

-- Runs in every heartbeat; costs two look-ups while pg_cron works.
create function private.stand_in_for_scheduler() returns void
language plpgsql
set search_path = ''
as $$
begin
  if private.is_due('maintain', private.setting_s('maintain_s')) then
    perform private.maintain();
  end if;
  if private.is_due('doorbells', private.setting_s('doorbells_s')) then
    perform private.ring_doorbells();
  end if;
exception when others then
  -- The lease must be renewed even if this work fails.
  raise warning 'stand_in_for_scheduler: % (%)', sqlerrm, sqlstate;
end
$$;
comment on function private.stand_in_for_scheduler() is
  'Runs maintain() and ring_doorbells() if their last run is too long ago; never raises an error.';

create function public.maintain() returns jsonb
language sql
set search_path = ''
as $$ select private.maintain() $$;
comment on function public.maintain() is
  'Service key: runs the upkeep now: leases, failover, executions, health, retention. It also runs automatically every '
  'few seconds.
Request: none
Answer:
- ran (boolean): false: another run was in progress, and the answer has no other keys
- moved (integer): accounts that were placed on a VPS
- errors (list of texts): parts that failed; the others ran
Errors: none
Example: {} -> {"ran": true, "moved": 0, "errors": []}';
grant execute on function private.maintain(), public.maintain() to service_role;

-- upkeep/placement.sql
-- Placement: which VPS works which account.
--
-- Locks, always in this order: the turn "assign" (one placement at a time, so that capacity is never exceeded), the
-- plan locks of the accounts (nothing is planned while an account moves), rows.

create function private.await_turn(p_name text) returns void
language sql
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.await_turn(text) is 'Like take_turn(), but waits for it.';

-- Required: the platform, fit, a live lease, spare capacity. Preferred: most copy partners there, then the lowest load.
create function private.choose_vps(p_account uuid, p_only uuid) returns uuid
language sql stable
set search_path = ''
as $$
  with partners as (
    select case c.master_account_id when p_account then c.follower_account_id else c.master_account_id end as account_id
    from public.copiers c
    where c.removed_at is null and p_account in (c.master_account_id, c.follower_account_id)
  )
  select v.id
  from public.vps_instances v
  join public.trading_accounts a on a.id = p_account
  cross join lateral (
    select count(*) filter (where s.account_id <> p_account) as accounts,
           count(*) filter (where s.account_id in (select p.account_id from partners p)) as partners
    from public.account_vps_assignments s where s.vps_id = v.id
  ) load
  where v.status = 'online' and v.unfit is null and v.lease_expires_at > clock_timestamp()
    and a.platform = any (v.platforms)
    and load.accounts < v.capacity and (p_only is null or v.id = p_only)
      and p_account <> all (private.released_accounts(v.id))
  order by load.partners desc, load.accounts::numeric / v.capacity, v.name
  limit 1
$$;
comment on function private.choose_vps(uuid, uuid) is
  'The best VPS for an account, or p_only if it can take the account; null: there is none.';

-- Moves the account if it must move or p_only says so. The caller holds the turn "assign".
create function private.place_account(p_account uuid, p_only uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid := private.choose_vps(p_account, p_only);
  v_old public.account_vps_assignments;
  v_new public.account_vps_assignments;
  v_last_session_vps uuid;
  v_old_lease timestamptz;
  v_send_before timestamptz;
begin
  if v_vps is null then
    return null;
  end if;
  perform private.lock_accounts(array[p_account]);
  select s.* into v_old from public.account_vps_assignments s where s.account_id = p_account;
  if v_old.vps_id = v_vps then
    return v_old;
  end if;
  select a.session_vps_id into v_last_session_vps from public.trading_accounts a
  where a.id = p_account and a.removed_at is null and a.claim <> 'ended';
  if not found then
    return null;
  end if;
  -- Only a VPS that opened a session for the account may still send orders. Another one cannot open a session now: that
  -- needs the lock that is held here.
  if v_old.vps_id is not null and v_last_session_vps = v_old.vps_id then
    select v.lease_expires_at into v_old_lease from public.vps_instances v where v.id = v_old.vps_id;
    select max(q.send_before) into v_send_before from public.trade_execution_queue q
    where q.account_id = p_account and q.in_flight and q.offered_at is not null;
  end if;
  insert into public.account_vps_assignments as s (account_id, vps_id, epoch, begins_at, assigned_at)
  values (p_account, v_vps, coalesce(v_old.epoch, 0) + 1,
    greatest(clock_timestamp(), v_old.begins_at, v_old_lease, v_send_before), clock_timestamp())
  on conflict (account_id) do update
  set vps_id = excluded.vps_id, epoch = excluded.epoch, begins_at = excluded.begins_at,
    assigned_at = excluded.assigned_at,
      -- If two VPSes must still give the account up, the wait runs its full length.
      previous_vps_id = case when v_old_lease is not null and s.begins_at <= clock_timestamp() then s.vps_id end
  returning s.* into v_new;
  perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  if v_old.vps_id is not null then
    perform private.broadcast('vps:' || v_old.vps_id, 'assignments', '{}');
  end if;
  return v_new;
end
$$;
comment on function private.place_account(uuid, uuid) is
  'Assigns the account to the best VPS (or p_only) with a new epoch; null: no VPS can take it.';

create function private.place_or_refuse(p_account uuid, p_vps uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_placed public.account_vps_assignments := private.place_account(p_account, p_vps);
begin
  if v_placed.vps_id is null and p_vps is null then
    raise exception using errcode = 'TC206', message = 'no VPS can take the account now', detail = p_account::text,
      hint = 'It is placed automatically as soon as one can. An operator can add a VPS or capacity.';
  elsif v_placed.vps_id is null then
    raise exception using errcode = 'TC207', message = 'this VPS cannot take the account', detail = p_vps::text,
      hint = 'The VPS must be online and fit, support the platform and have capacity left.';
  end if;
  return v_placed;
end
$$;
comment on function private.place_or_refuse(uuid, uuid) is
  'place_account() that raises TC206 or TC207 instead of returning null.';

-- Moves accounts whose VPS may not keep them, and places accounts without a VPS. The caller holds the turn "assign".
-- All account locks are taken at once, in the planner's order. An account that is being planned now is left for the
-- next run, because all others would wait for it.
create function private.place_homeless(p_limit integer) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_homeless uuid[];
  v_account uuid;
  v_moved integer := 0;
begin
  select array_agg(h.id) into v_homeless from (
    with farm as materialized (select v.*, private.released_accounts(v.id) as released from public.vps_instances v)
    select a.id
    from public.trading_accounts a
    left join public.account_vps_assignments s on s.account_id = a.id
    left join farm v on v.id = s.vps_id
    where a.removed_at is null and a.claim <> 'ended'
      and (v.id is null or v.status in ('offline', 'draining', 'retired') or a.id = any (v.released))
      and exists (select from farm o
                  where o.status = 'online' and o.unfit is null and o.lease_expires_at > clock_timestamp()
                    and a.platform = any (o.platforms)
                    and o.capacity > (select count(*) from public.account_vps_assignments t where t.vps_id = o.id)
                    and a.id <> all (o.released))
    order by a.id
    limit p_limit
  ) h;
  if v_homeless is null then
    return 0;
  end if;
  foreach v_account in array private.lock_free(v_homeless) loop
    v_moved := v_moved + ((private.place_account(v_account, null)).vps_id is not null)::integer;
  end loop;
  return v_moved;
end
$$;
comment on function private.place_homeless(integer) is
  'Moves accounts of lost, draining and retired VPSes, and places unassigned ones. Returns how many were moved.';

-- upkeep/proof.sql
-- What happens to the claims on a login when an agent has logged in: one is proven, the others end or give way.

-- Accounts whose plans may change with a proof; the caller must lock them first. This function locks the login.
create function private.accounts_of_proof(p_account uuid) returns uuid[]
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_accounts uuid[];
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.id is null or v_account.claim = 'trading' then
    return array[p_account];
  end if;
  perform private.lock_login(v_account.platform, v_account.server_key, v_account.login_key);
  select array_agg(a.id) into v_accounts from public.trading_accounts a
  where a.platform = v_account.platform and a.server_key = v_account.server_key and a.login_key = v_account.login_key
    and a.removed_at is null;
  return v_accounts || array(
    select n from public.trading_accounts a cross join unnest(private.with_neighbours(a.id)) n
    where a.id = any (v_accounts) and a.id <> p_account and a.claim = 'investor');
end
$$;
comment on function private.accounts_of_proof(uuid) is
  'The accounts to lock before prove_claim(): all claims on the login, and the copy partners of a claim that may give '
  'way.';

-- While its login works, its copies are still closed with their master's; nothing new is opened.
create function private.give_way(p_account public.trading_accounts, p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_copier uuid;
begin
  update public.trading_accounts a set claim = 'given_way', proven_at = null where a.id = p_account.id;
  for v_copier in
    update public.copiers c set mode = 'monitor', updated_at = p_now
    where c.removed_at is null and c.mode = 'on' and p_account.id in (c.master_account_id, c.follower_account_id)
    returning c.id
  loop
    perform private.replan_copier(v_copier, p_now);
  end loop;
  perform private.raise_alert(p_account.id, 'account', 'claim_given_way', 'critical',
    format('Account %s gives way: another user has logged in to it with its trading password, you with its investor '
      'password.'
      ' Its copiers open nothing any more (mode monitor); closes are copied as long as your login works. Take care of '
      'the open copies,'
      ' then remove the account.', p_account.name), '{}');
end
$$;
comment on function private.give_way(public.trading_accounts, timestamptz) is
  'A claim proven with the investor password gives way to the trading password: alert, copiers to monitor.';

create function private.end_claims(p_account public.trading_accounts) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_ended uuid;
  v_vps uuid;
begin
  for v_ended in
    update public.trading_accounts a
    set claim = 'ended', status = 'halted',
        status_reason = 'claim_ended: another user has logged in to this account with its trading password; remove it '
          'here'
    where a.platform = p_account.platform and a.server_key = p_account.server_key and a.login_key = p_account.login_key
      and a.id <> p_account.id and a.removed_at is null and a.claim = 'unproven'
    returning a.id
  loop
    delete from public.account_vps_assignments s where s.account_id = v_ended returning s.vps_id into v_vps;
    if v_vps is not null then
      perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
    end if;
  end loop;
end
$$;
comment on function private.end_claims(public.trading_accounts) is
  'Ends other users'' unproven claims on a login that was proved with its trading password.';

-- Called when an agent has logged in, with the trading or the investor password. The caller has locked
-- accounts_of_proof.
create function private.prove_claim(p_account uuid, p_trading boolean, p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_other public.trading_accounts;
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.claim = 'trading' or v_account.claim = 'investor' and not p_trading then
    return;
  end if;
  v_other := private.proven_claim(v_account.platform, v_account.server_key, v_account.login_key);
  if v_account.claim = 'ended' then
    perform private.refuse_ended('open_session', v_account.name);
  elsif v_other.claim = 'trading' then
    if v_account.claim = 'given_way' and not p_trading then
      return;  -- it may keep watching, so that closes go on
    end if;
    perform private.refuse_claimed('open_session', v_account.platform, v_account.server, v_account.login);
  elsif v_other.id <> v_account.id and not p_trading then
    raise exception using errcode = 'TC226',
      message = format('open_session: another user has logged in to account %s with its investor password',
      v_account.name),
      hint = 'Give the trading password with update_account: it takes precedence over the investor password.';
  elsif v_other.id <> v_account.id then
    perform private.give_way(v_other, p_now);
  end if;
  update public.trading_accounts a
  set claim = case when p_trading then 'trading' else 'investor' end, proven_at = coalesce(a.proven_at, p_now),
    password_is_new = false
  where a.id = v_account.id;
  if p_trading then
    perform private.end_claims(v_account);
  end if;
end
$$;
comment on function private.prove_claim(uuid, boolean, timestamptz) is
  'A login proves the claim on it: (account, whether with the trading password, now). TC202, TC225 or TC226 if another '
  'user''s claim takes precedence.';

-- Runs for every writer: the master or the follower belongs to another user with a better password.
create function private.keep_given_way() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  if exists (select from public.trading_accounts a
    where a.id in (new.master_account_id, new.follower_account_id) and a.claim = 'given_way') then
    raise exception using errcode = 'TC227',
      message = 'the copier cannot be on: one of its accounts was logged in to by another user with the trading '
        'password',
      hint = 'Give your own trading password with update_account, or remove the copier.';
  end if;
  return new;
end
$$;
comment on function private.keep_given_way() is
  'Trigger: a copier with an account whose claim gave way cannot be switched on (TC227).';
create trigger keep_given_way before insert or update of mode on public.copiers for each row
  when (new.mode = 'on' and new.removed_at is null) execute function private.keep_given_way();

-- upkeep/quarantine.sql
-- Quarantine: how calls and upkeep continue when the planner's own code fails. The work is first tried as a whole. If
-- that raises an error, it is repeated in parts, each in a subtransaction. A part that still fails is set aside
-- (trade/fault.sql) and retried by the upkeep.

-- Plans links and isolates those that fail, by halving, so that one failure among many links costs little. Returns the
-- executions made.
create function private.plan_links_isolated(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_half integer := cardinality(p_links) / 2;
  v_account uuid;
  v_context text;
begin
  if coalesce(cardinality(p_links), 0) = 0 then return '{}'; end if;
  begin
    v_new := private.plan_again(private.links_to_plan(p_links, p_now), p_now);
    delete from private.quarantine f where f.kind = 'link' and f.subject = any (p_links::text[]);
    return coalesce(v_new, '{}');
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    if v_half = 0 then
      get stacked diagnostics v_context = pg_exception_context;
      select l.follower_account_id into v_account from public.position_links l where l.id = p_links[1];
      perform private.note_fault(v_account, 'link', p_links[1]::text, null, v_account, format('copy %s', p_links[1]),
        sqlerrm, v_context, p_now);
      return '{}';
    end if;
  end;
  return private.plan_links_isolated(p_links[:v_half], p_now) || private.plan_links_isolated(p_links[v_half + 1:],
    p_now);
end $$;

-- Plans what a position of a master means for these copiers, and isolates those that fail. Returns the executions made.
create function private.decide_isolated(p_account uuid, p_ticket text, p_copiers uuid[],
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_half integer := cardinality(p_copiers) / 2;
  v_follower uuid;
  v_context text;
begin
  if coalesce(cardinality(p_copiers), 0) = 0 then return '{}'; end if;
  begin
    v_new := private.plan((
      select array_agg(l.id) from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = p_ticket and l.copier_id = any (p_copiers)
        and l.ended_at is null),
      array[p_account], array[p_ticket], p_copiers, p_now);
    delete from private.quarantine f
    where f.account_id = p_account and f.kind = 'decision'
      and f.subject = any (array(select p_ticket || ' ' || c from unnest(p_copiers) c));
    return coalesce(v_new, '{}');
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    if v_half = 0 then
      get stacked diagnostics v_context = pg_exception_context;
      select c.follower_account_id into v_follower from public.copiers c where c.id = p_copiers[1];
      perform private.note_fault(p_account, 'decision', p_ticket || ' ' || p_copiers[1],
        jsonb_build_object('ticket', p_ticket, 'copier_id', p_copiers[1]), v_follower,
          format('the copy of position %s', p_ticket), sqlerrm, v_context, p_now);
      return '{}';
    end if;
  end;
  return private.decide_isolated(p_account, p_ticket, p_copiers[:v_half], p_now) || private.decide_isolated(p_account,
    p_ticket, p_copiers[v_half + 1:], p_now);
end $$;

-- Plans what one event changed: {"tickets", "events", "types"} from take_event. Reasons are stored once every decision
-- about the ticket has been made. Returns the executions made.
create function private.plan_event_isolated(p_account uuid, p_taken jsonb, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_ticket text;
begin
  for v_ticket in  -- in their order: a replacement comes after the ticket that it replaces
    select t.value from jsonb_array_elements_text(p_taken -> 'tickets') with ordinality as t (value, n) group by t.value
    order by min(t.n)
  loop
    v_new := v_new || private.decide_isolated(p_account, v_ticket, array(
      select c.id from public.copiers c where c.master_account_id = p_account and c.removed_at is null
      union
      select l.copier_id from public.position_links l
      where l.master_account_id = p_account and l.master_ticket = v_ticket and l.ended_at is null), p_now);
    v_new := v_new || private.plan_links_isolated(array(
      select l.id from public.position_links l
      where l.id = any (private.links_of_tickets(p_account, array[v_ticket])) and l.follower_account_id = p_account),
        p_now);
    insert into private.quarantine as f (account_id, kind, subject, body, error, first_at, last_at, retry_at)
    select p_account, 'explain', v_ticket, jsonb_object_agg(u.event, u.type), 'waits for its decisions', p_now, p_now,
      p_now
    from jsonb_array_elements_text(p_taken -> 'events') with ordinality as n (event, i)
    join lateral (select n.event, p_taken -> 'types' ->> (n.i - 1)::integer,
      p_taken -> 'tickets' ->> (n.i - 1)::integer) u (event, type, ticket) on true
    where u.ticket = v_ticket
    on conflict (account_id, kind, subject) do update set body = f.body || excluded.body;
    v_new := v_new || private.try_step(p_account, 'explain', v_ticket, null, p_now);
  end loop;
  return v_new;
end $$;

-- Does one part of the work on an account. Returns its result, with the executions made in "executions"; raises any
-- error. It lists every kind of part, so it is longer than forty lines.
create function private.do_step(p_account uuid, p_kind text, p_subject text, p_body jsonb,
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_body jsonb := p_body;
  v_done jsonb := '{}';
  v_taken record;
  v_new bigint[];
begin
  case p_kind
    when 'event' then
      select * into v_account from public.trading_accounts where id = p_account;
      v_done := private.take_event(v_account, p_body, p_now);
      if v_done ? 'tickets' then v_new := private.plan_event_isolated(p_account, v_done, p_now); end if;
    when 'report' then
      -- checked against the VPS that was given the execution: the account may have moved since
      v_taken := private.take_report(coalesce((select q.vps_id from public.trade_execution_queue q
        where q.id = (p_body #>> '{report,execution_id}')::bigint), (p_body ->> 'vps_id')::uuid), p_body -> 'report',
          p_now);
      v_done := v_taken.result;
      v_new := private.plan_links_isolated(array(select distinct x from unnest(v_taken.link_ids) x where x is not null),
        p_now);
      if v_taken.changes <> '[]' then
        v_new := v_new || private.try_step(p_account, 'changes', p_subject, v_taken.changes, p_now);
      end if;
    when 'changes' then
      v_new := private.plan_changes(p_account, p_body, p_now);
    when 'explain' then
      if not exists (select 1 from private.quarantine f
        where f.account_id = p_account and f.kind = 'decision' and f.body ->> 'ticket' = p_subject) then
        select f.body into v_body from private.quarantine f
        where f.account_id = p_account and f.kind = 'explain' and f.subject = p_subject;
        perform private.explain_rest(p_account, array_agg(e.key::bigint), array_agg(e.value), array_agg(p_subject))
          from jsonb_each_text(v_body) e;
      else
        v_done := '{"waits": true}';
      end if;
    when 'offer' then
      perform private.offer(array[p_subject::bigint], null, clock_timestamp());
    when 'overdue' then
      v_new := private.plan_links_isolated(private.judge_overdue(array[p_account], p_now), p_now);
    when 'retries' then
      v_new := private.requeue(array[p_account], p_now);
    when 'flatten' then
      v_new := private.plan_flatten(p_account, p_now);
    when 'watch' then
      perform private.assignments_of(s.vps_id, p_account) from public.account_vps_assignments s
        where s.account_id = p_account;
    when 'existing' then
      v_new := private.decide_waiting_existing(array[p_account], p_now);
    when 'symbols' then
      v_new := private.decide_waiting_symbols(array[p_account], p_now);
  end case;
  return v_done || jsonb_build_object('executions', to_jsonb(coalesce(v_new, '{}')));
end $$;

-- do_step() in a subtransaction. If it fails, the work is set aside with an alert and the result is null; if it
-- succeeds, the work is no longer set aside.
create function private.attempt(p_account uuid, p_kind text, p_subject text, p_body jsonb,
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_done jsonb;
  v_context text;
begin
  v_done := private.do_step(p_account, p_kind, p_subject, p_body, p_now);
  if not v_done ? 'waits' then
    delete from private.quarantine f where f.account_id = p_account and f.kind = p_kind and f.subject = p_subject;
  end if;
  return v_done;
exception when others then
  if not private.is_fault(sqlstate) then raise; end if;
  get stacked diagnostics v_context = pg_exception_context;
  perform private.note_fault(p_account, p_kind, p_subject,
    coalesce(p_body, (select f.body from private.quarantine f
      where f.account_id = p_account and f.kind = p_kind and f.subject = p_subject)), p_account,
    case p_kind when 'report' then format('the report of execution %s', p_body -> 'report' ->> 'execution_id')
      when 'event' then format('event %s', p_subject)
      when 'changes' then 'the changes that its own copies made' when 'explain'
        then format('the reasons of position %s', p_subject)
      when 'offer' then format('handing out execution %s', p_subject)
        else format('the upkeep of the account (%s)', p_kind) end,
    sqlerrm, v_context, p_now);
  return null;
end $$;

create function private.try_step(p_account uuid, p_kind text, p_subject text, p_body jsonb,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
begin
  return array(select jsonb_array_elements_text(private.attempt(p_account, p_kind, p_subject, p_body,
    p_now) -> 'executions')::bigint);
end $$;

-- Takes one event. An event that the mirror cannot take is stored whole and taken later under its own number and times;
-- by then it may be outdated. Only the newest snapshot is kept.
create function private.take_event_isolated(p_account public.trading_accounts, e jsonb, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_key text := coalesce((e ->> 'session') || ':' || (e ->> 'seq'), md5(e::text));
begin
  return coalesce(private.attempt(p_account.id, 'event', case
    when e ->> 'type' = 'snapshot' then 'snapshot' else v_key end, e, p_now),
    jsonb_build_object('event_key', v_key, 'status', 'kept', 'code', 'TC420',
    'error', 'the planner failed on this event; it is kept and retried automatically'));
end $$;

-- Stores what can be used of a report that cannot be booked: the mirror, and what the broker did. An open, or a netting
-- deal, stays in flight, so that nothing is planned on top of it. A step that opens nothing must not delay the close of
-- its copy: it ends once the mirror shows its effect (its legs follow the mirror), and a step without an effect waits
-- for its next attempt.
create function private.keep_facts(q public.trade_execution_queue, r jsonb, p_subject text,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  p jsonb;
  c private.change;
  v_changes jsonb := '[]';
  v_freed boolean := false;
begin
  select * into v_account from public.trading_accounts where id = q.account_id;
  if (r ->> 'session')::bigint > v_account.session then return '{}'; end if;
  update public.trade_execution_queue x set filled_lots = coalesce((r ->> 'filled_lots')::numeric, x.filled_lots),
    fill_price = coalesce((r ->> 'price')::numeric, x.fill_price),
      received_at = coalesce((r ->> 'received_at')::timestamptz, x.received_at),
    sent_at = coalesce((r ->> 'sent_at')::timestamptz, x.sent_at),
      done_at = coalesce((r ->> 'done_at')::timestamptz, x.done_at),
    message = format('reported %s; the planner failed on the report, which is kept and retried', r ->> 'outcome'),
      updated_at = p_now
  where x.id = q.id and x.finalized_at is null;
  begin
    for p in
      select value from jsonb_array_elements(case
        when jsonb_typeof(r -> 'positions') = 'array' then r -> 'positions' else '[]' end)
      order by value ->> 'replaces' is null or (value ->> 'lots')::numeric = 0
    loop
      c := private.apply_position(v_account, (r ->> 'session')::bigint, (r ->> 'seq')::bigint, p,
        coalesce((r ->> 'done_at')::timestamptz, p_now), coalesce((r ->> 'sent_at')::timestamptz, p_now), false, null,
          null, p_now);
      if c.applied and (c.type <> 'modified' or q.action = 'modify') then
        v_changes := v_changes || jsonb_build_object('position', p, 'type', c.type, 'previous_lots', c.previous_lots,
          'price', r -> 'price');
      end if;
    end loop;
    update public.trade_execution_queue x set
      status = case r ->> 'outcome' when 'completed' then 'completed' else 'retrying' end,
      reason = case r ->> 'outcome' when 'completed' then null else coalesce(r ->> 'reason', r ->> 'outcome') end,
      finalized_at = case r ->> 'outcome' when 'completed' then p_now end,
      next_attempt_at = case r ->> 'outcome' when 'completed'
        then null else p_now + private.retry_delay(x.attempt, 30) end
    where x.id = q.id and x.status in ('queued', 'unknown') and x.attempt = (r ->> 'attempt')::integer
      and x.parts is null and not private.opens(x)
      and case r ->> 'outcome' when 'completed'
        then coalesce(jsonb_array_length(nullif(r -> 'positions', 'null')), 0) > 0
        else r ->> 'outcome' in ('rejected', 'expired') end;
    v_freed := found;
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    return '{}';
  end;
  -- planned only once: when the report itself is taken later, the mirror already has the change
  return case when v_changes = '[]' then '{}'
    else private.try_step(q.account_id, 'changes', p_subject, v_changes, p_now) end
    || case when v_freed and q.link_id is not null
      then private.plan_links_isolated(array[q.link_id], p_now) else '{}' end;
end $$;

-- Takes one report. A report that cannot be booked is stored whole, and its execution stays in flight until it is
-- booked.
create function private.take_report_isolated(p_vps uuid, r jsonb, p_now timestamptz, out result jsonb,
  out executions bigint[])
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  v_subject text := format('%s:%s %s:%s', r ->> 'execution_id', r ->> 'attempt', r ->> 'session', r ->> 'seq');
  v_done jsonb;
begin
  executions := '{}';
  if pg_input_is_valid(r ->> 'execution_id', 'bigint') then
    select * into q from public.trade_execution_queue where id = (r ->> 'execution_id')::bigint for update;
  end if;
  if q.id is null or q.account_id::text is distinct from r ->> 'account_id' or not private.was_given(q, p_vps) then
    result := (private.take_report(p_vps, r, p_now)).result;  -- refused
    return;
  end if;
  v_done := private.attempt(q.account_id, 'report', v_subject, jsonb_build_object('vps_id', p_vps, 'report', r), p_now);
  if v_done is null then
    begin
      executions := private.keep_facts(q, r, v_subject, p_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;  -- the report is stored, which is enough
    end;
    result := jsonb_build_object('execution_id', q.id::text, 'status', 'kept', 'code', 'TC420',
      'error', 'the planner failed on this report; it is kept and retried automatically');
  else
    executions := array(select jsonb_array_elements_text(v_done -> 'executions')::bigint);
    result := v_done - 'executions';
  end if;
end $$;

create function private.requeue_isolated(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_account uuid;
begin
  for v_account in select distinct a from unnest(p_accounts) a loop
    v_new := v_new || private.try_step(v_account, 'retries', '', null, p_now);
  end loop;
  return v_new;
end $$;

-- offer() for executions of which some may fail: such an execution is handed to nobody and is retried.
create function private.offer_isolated(p_executions bigint[], p_caller uuid, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own jsonb := '[]';
  v_id bigint;
  v_account uuid;
  v_context text;
begin
  begin
    return private.offer(p_executions, p_caller, p_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
  end;
  foreach v_id in array p_executions loop
    begin
      v_own := v_own || private.offer(array[v_id], p_caller, p_now);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      get stacked diagnostics v_context = pg_exception_context;
      select q.account_id into v_account from public.trade_execution_queue q where q.id = v_id;
      perform private.note_fault(v_account, 'offer', v_id::text, null, v_account,
        format('handing out execution %s', v_id), sqlerrm, v_context, p_now);
    end;
  end loop;
  return v_own;
end $$;

-- Executions that heartbeats leave out: their report waits to be booked, or they could not be handed out.
create function private.set_aside_executions() returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(
    select case f.kind when 'report' then (f.body -> 'report' ->> 'execution_id')::bigint else f.subject::bigint end
    from private.quarantine f
    -- a later attempt has no report yet
    where f.kind = 'offer' or f.kind = 'report' and (f.body #>> '{report,outcome}' = 'completed' or exists (
      select 1 from public.trade_execution_queue q
      where q.id = (f.body #>> '{report,execution_id}')::bigint
        and q.attempt = (f.body #>> '{report,attempt}')::integer)));
end $$;

-- The upkeep of accounts, part by part; what was set aside is left until its retry is due.
create function private.keep_up_isolated(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  v_account uuid;
  v_part text;
begin
  foreach v_account in array p_accounts loop
    foreach v_part in array array['overdue', 'retries', 'flatten', 'existing', 'symbols'] loop
      continue when exists (select 1 from private.quarantine f where f.account_id = v_account and f.kind = v_part)
        or v_part = 'flatten' and not exists (select 1 from public.trading_accounts a
          where a.id = v_account and a.copy_state = 'flattening');
      v_new := v_new || private.try_step(v_account, v_part, '', null, p_now);
    end loop;
    v_new := v_new || private.plan_links_isolated(array(
      select l from unnest(private.links_due(array[v_account], p_now)) l
      where not exists (select 1 from private.quarantine f
        where f.account_id = v_account and f.kind = 'link' and f.subject = l::text)), p_now);
  end loop;
  return v_new;
end $$;

-- Retries what was set aside and is due. The caller holds the locks of these accounts and of their followers. Reports
-- and events are retried in the order in which they failed; reasons last.
create function private.retry_quarantine(p_accounts uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[] := '{}';
  f private.quarantine;
begin
  if not exists (select 1 from private.quarantine x where x.retry_at <= p_now) then return v_new; end if;
  for f in
    select * from private.quarantine x where x.account_id = any (p_accounts) and x.retry_at <= p_now
    order by x.kind = 'explain', x.first_at, x.subject limit 200
  loop
    continue when not private.with_followers(array[f.account_id]) <@ p_accounts;
    if f.kind = 'link' then
      v_new := v_new || private.plan_links_isolated(array[f.subject::bigint], p_now);
      delete from private.quarantine x
      where x.kind = 'link' and x.subject = f.subject
        and not exists (select 1 from public.position_links l where l.id = f.subject::bigint);
    elsif f.kind = 'decision' then
      v_new := v_new || private.decide_isolated(f.account_id, f.body ->> 'ticket',
        array[(f.body ->> 'copier_id')::uuid], p_now);
    else
      v_new := v_new || private.try_step(f.account_id, f.kind, f.subject, f.body, p_now);
    end if;
  end loop;
  return v_new;
end $$;

-- upkeep/retention.sql
-- Deletes rows that are past their retention.

-- Small batches: a table that has fallen behind catches up over many runs instead of being locked for long.
create function private.delete_expired() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_batch integer := (private.setting('retention_batch') #>> '{}')::integer;
begin
  delete from public.connection_health_logs where id = any (array(
    select l.id from public.connection_health_logs l
    where l.at < now() - private.setting_days('retention_days.connection_health_logs') order by l.at limit v_batch));
  delete from public.account_snapshots where ctid = any (array(
    select s.ctid from public.account_snapshots s
    where s.at < now() - private.setting_days('retention_days.account_snapshots') order by s.at limit v_batch));
  delete from public.alerts where id = any (array(
    select a.id from public.alerts a
    where a.updated_at < now() - private.setting_days('retention_days.alerts') order by a.updated_at limit v_batch));
  delete from public.protection_looks where id = any (array(
    select l.id from public.protection_looks l
    where l.created_at < now() - private.setting_days('retention_days.protection_looks')
      order by l.created_at limit v_batch));
  delete from public.quiet_windows where id = any (array(
    select w.id from public.quiet_windows w
    where w.ends_at < now() - private.setting_days('retention_days.quiet_windows') order by w.ends_at limit v_batch));
  delete from public.audit_log where id = any (array(
    select l.id from public.audit_log l
    where l.at < now() - private.setting_days('retention_days.audit_log') order by l.at limit v_batch));
  delete from public.enrollment_tokens where id = any (array(
    select t.id from public.enrollment_tokens t
    where t.expires_at < now() - private.setting_days('retention_days.enrollment_tokens') limit v_batch));
  delete from private.login_attempts where id = any (array(
    select t.id from private.login_attempts t
    where t.at < now() - private.setting_days('retention_days.login_attempts') order by t.at limit v_batch));
  delete from private.event_keys where ctid = any (array(
    select k.ctid from private.event_keys k
    where k.received_at < now() - private.setting_days('retention_days.event_keys')
      order by k.received_at limit v_batch));
  delete from public.copy_outcomes where ctid = any (array(
    select o.ctid from public.copy_outcomes o
    where o.decided_at < now() - private.setting_days('retention_days.copy_outcomes')
      order by o.decided_at limit v_batch));
  delete from public.trade_execution_queue where id = any (array(
    select q.id from public.trade_execution_queue q
    where q.finalized_at is not null
      and q.updated_at < now() - private.setting_days('retention_days.trade_execution_queue')
    order by q.updated_at limit v_batch));
  -- An ended link latches its decision for as long as the master holds the position.
  delete from public.position_links where id = any (array(
    select k.id from public.position_links k
    where k.state = 'ended' and k.ended_at < now() - private.setting_days('retention_days.positions')
      and not exists (select from public.positions p where p.account_id = k.master_account_id
                      and p.ticket = k.master_ticket and p.kind = k.master_kind and p.closed_at is null)
    order by k.ended_at limit v_batch));
  delete from public.positions where ctid = any (array(
    select p.ctid from public.positions p
    where p.closed_at < now() - private.setting_days('retention_days.positions')
      and not exists (select from public.position_links k
        where k.master_account_id = p.account_id and k.master_ticket = p.ticket
                      and k.master_kind = p.kind
                      and k.ended_at is null)  -- a frozen copy must still be closed
    order by p.closed_at limit v_batch));
end
$$;
comment on function private.delete_expired() is
  'Deletes one batch of expired rows from every growing table; of trade_events it drops whole partitions.';

-- upkeep/schedule.sql
-- The schedule of pg_cron. If pg_cron stands still, heartbeats do the same work (maintain.sql), so that a dead
-- scheduler costs only seconds.

create extension if not exists pg_cron with schema pg_catalog;

-- The job's name makes this repeatable: scheduling it again replaces the job.
select cron.schedule('tradecopier-maintain', '3 seconds', 'select private.maintain()');

select cron.schedule('tradecopier-doorbells', '1 second', 'select private.ring_doorbells()');

-- pg_cron logs every run and never deletes: 120,000 rows a day.
select cron.schedule('tradecopier-cron-history', '17 * * * *',
  $$delete from cron.job_run_details where end_time < now() - interval '1 day'$$);

-- upkeep/trading_switch.sql
-- The global switch at work: when trading stops, executions that have not been sent are called back.

-- Applies the switch to all accounts. monitor: calls back unsent opens; off: calls back everything unsent; on: does the
-- closes that were missed. The caller has set the switch: every plan made before has ended, every later one reads the
-- new state.
create function private.sweep_trading(p_state text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array(select k.account_id from private.plan_locks k);
  v_now timestamptz := private.lock_accounts(v_accounts);
begin
  if p_state = 'on' then
    -- executions that were called back and not yet dropped go on
    update public.trade_execution_queue q set cancel_requested_at = null, updated_at = v_now
    where q.account_id = any (v_accounts) and q.in_flight and q.cancel_requested_at is not null
      and not private.opens(q);
  else
    perform private.withdraw(v_accounts, null, p_state = 'off',
      case p_state when 'off' then 'trading_stopped' else 'trading_monitor' end, v_now);
  end if;
  perform private.offer_isolated(private.plan_links_isolated(array(select l.id from public.position_links l
    where l.state = 'live'), v_now), null, clock_timestamp());
  update public.trading_switch t set settled = true where t.one and not t.settled;
end $$;

-- Upkeep: does what a change of the switch could not do because a plan kept its locks. It is the first of all parts,
-- because it waits for locks.
create function private.settle_trading() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_state text;
begin
  select t.state into v_state from public.trading_switch t where t.one and not t.settled for no key update;
  if found then
    perform private.sweep_trading(v_state);
  end if;
end $$;

-- upkeep/turn.sql
-- Turns: each part of the upkeep runs at most once at a time, and not too often.

-- A turn lasts until the transaction ends; false: another transaction has it.
create function private.take_turn(p_name text) returns boolean
language sql
set search_path = ''
as $$ select pg_try_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.take_turn(text) is
  'Whether the caller may run this part of the clockwork now; the turn ends with its transaction.';

create function private.is_due(p_name text, p_every interval) returns boolean
language sql
set search_path = ''
as $$ select c.last_run_at not between clock_timestamp() - p_every and clock_timestamp() from private.clockwork c
  where c.name = p_name $$;
comment on function private.is_due(text, interval) is
  'Whether this part of the clockwork last ran longer than p_every ago, or in the future (the clock was set back).';

-- agents/account_state.sql
-- report_account_state: an agent reports status, funds, symbols and quotes of an account.

-- Stores symbols that the account does not have yet, until it has 10,000.
create function private.add_symbols(p_account uuid, p_symbols jsonb) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_added integer;
begin
  insert into public.account_symbols (account_id, name, contract_size, tick_size, digits, profit_currency,
    margin_currency,
    lots_min, lots_max, lots_step, stops_level_points, freeze_level_points, trade_mode, bid, ask, quoted_at)
  select distinct on (s.name) p_account, s.name, s.contract_size, s.tick_size, s.digits, s.profit_currency,
    coalesce(s.margin_currency, s.profit_currency), s.lots_min, s.lots_max, s.lots_step,
    coalesce(s.stops_level_points, 0), coalesce(s.freeze_level_points, 0), coalesce(s.trade_mode, 'full'), s.bid, s.ask,
      s.quoted_at
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  where not exists (select from public.account_symbols t where t.account_id = p_account and t.name = s.name)
  order by s.name
  limit greatest(0, 10000 - (select count(*) from public.account_symbols k where k.account_id = p_account));
  get diagnostics v_added = row_count;
  return v_added;
end
$$;
comment on function private.add_symbols(uuid, jsonb) is
  'Stores new symbols of an account, which may have 10,000. Returns how many symbols of the call were new and stored.';

-- A symbol that is new to the account needs its whole specification, a known one only its name.
create function private.save_symbols(p_account uuid, p_symbols jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_told integer := (select count(distinct e.value ->> 'name') from jsonb_array_elements(p_symbols) e);
  v_known integer;
begin
  -- A symbol with such a name or currency cannot be traded; the others of the call are saved all the same.
  p_symbols := coalesce((
    select jsonb_agg(e.value) from jsonb_array_elements(p_symbols) e
    where coalesce(length(e.value ->> 'name') <= 64, true)
      and coalesce(greatest(length(e.value ->> 'profit_currency'), length(e.value ->> 'margin_currency')) <= 10, true)),
        '[]');
  update public.account_symbols t
  set contract_size = coalesce(s.contract_size, t.contract_size), tick_size = coalesce(s.tick_size, t.tick_size),
      digits = coalesce(s.digits, t.digits), profit_currency = coalesce(s.profit_currency, t.profit_currency),
      margin_currency = coalesce(s.margin_currency, t.margin_currency), lots_min = coalesce(s.lots_min, t.lots_min),
      lots_max = coalesce(s.lots_max, t.lots_max), lots_step = coalesce(s.lots_step, t.lots_step),
      stops_level_points = coalesce(s.stops_level_points, t.stops_level_points),
      freeze_level_points = coalesce(s.freeze_level_points, t.freeze_level_points),
      trade_mode = coalesce(s.trade_mode, t.trade_mode),
      bid = case when newer.quote then s.bid else t.bid end, ask = case when newer.quote then s.ask else t.ask end,
      quoted_at = case when newer.quote then s.quoted_at else t.quoted_at end
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  cross join lateral (select s.quoted_at is not null and s.bid is not null and s.ask is not null) as given (quote),
    lateral (select given.quote and s.quoted_at >= coalesce((
      select old.quoted_at from public.account_symbols old where old.account_id = p_account and old.name = s.name),
        '-infinity')) as newer (quote)
  where t.account_id = p_account and t.name = s.name;
  get diagnostics v_known = row_count;
  v_told := v_told - v_known;
  if v_known < jsonb_array_length(p_symbols) then
    v_told := v_told - private.add_symbols(p_account, p_symbols);
  end if;
  perform private.alert_left_out(p_account, 'symbols', v_told);
exception
  when data_exception or check_violation or not_null_violation then
    raise exception using errcode = 'TC001', message = 'symbols: an entry is not of the documented form',
      detail = left(sqlerrm, 500),
      hint = 'Send the whole specification of a symbol that is new to the account.';
end
$$;
comment on function private.save_symbols(uuid, jsonb) is
  'Stores specifications and quotes of an account''s symbols; an older quote never replaces a newer one.';

-- Security definer: agents have no right on any table.
create function private.report_account_state(p_state jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account uuid := private.uuid_of(p_state, 'account_id');
  v_session bigint := private.int_of(p_state, 'session', 0, 9223372036854775807);
  v_status text := private.text_of(p_state, 'status', 20);
  v_equity numeric := private.numeric_of(p_state, 'equity');
  v_balance numeric := private.numeric_of(p_state, 'balance');
  v_symbols jsonb := coalesce(nullif(p_state -> 'symbols', 'null'), '[]');
  v_measured_at timestamptz := least(coalesce(private.time_of(p_state, 'measured_at'), now()), now());
  v_look_again_ms integer;
  v_moved numeric := 0;
  v_found uuid;
  v_is_first boolean;
begin
  if octet_length(p_state::text) > 4000000 then
    raise exception using errcode = 'TC002', message = 'the payload is over 4 MB', hint = 'Send fewer symbols at once.';
  end if;
  perform private.require_assignment(v_vps, v_account, private.int_of(p_state, 'epoch', 1, 9223372036854775807));
  perform private.warm_up(false);
  if v_status is not null and v_status not in ('connecting', 'connected', 'degraded', 'disconnected', 'halted') then
    raise exception using errcode = 'TC001',
      message = 'status: expected connecting, connected, degraded, disconnected or halted', detail = v_status;
  end if;
  if jsonb_typeof(v_symbols) <> 'array' then
    raise exception using errcode = 'TC001', message = 'symbols: expected an array';
  end if;

  -- before any account row is locked: a rule that triggers, and what waits for symbols, is planned under the plan locks
  perform private.lock_for_symbols(v_account, p_state);
  -- first of all: the figures of this report contain them, and what rules measure from must not lack them
  if nullif(p_state -> 'balance_operations', 'null') <> '[]' then
    v_moved := private.take_balance_operations(v_account, v_session, v_vps, p_state -> 'balance_operations',
      v_measured_at);
  end if;
  -- before any account row is locked: a rule that triggers is planned under the plan locks
  if v_balance is not null and v_equity is not null
    and exists (select 1 from public.protection_rules r where r.account_id = v_account and r.enabled)
  then
    v_look_again_ms := private.check_protection(v_vps, v_account, v_session,
      row(v_measured_at, v_equity, v_balance, private.numeric_of(p_state, 'margin'))::private.look, v_moved);
  end if;

  begin
    -- Figures of an older reading change nothing. Without a session (the login failed) only the status is stored.
    update public.trading_accounts a
    set status = coalesce(v_status, a.status),
        status_reason = case when v_status is null then a.status_reason else left(p_state ->> 'error', 500) end,
        -- an unknown currency or leverage must not make the call fail
        currency = coalesce(private.currency_of(p_state -> 'currency'), a.currency),
        leverage = case when p_state ->> 'leverage' is null
          then a.leverage else private.leverage_of(p_state -> 'leverage') end,
        mode = coalesce(private.text_of(p_state, 'mode', 10), a.mode),
        -- a list that was complete once stays so when it is told again after a login
        symbols_complete = case p_state -> 'symbols_complete' when 'true' then true
          when 'false' then coalesce(a.symbols_complete, false) else a.symbols_complete end,
        balance = case when f.fresh then v_balance else a.balance end,
        equity = case when f.fresh then v_equity else a.equity end,
        margin = case when f.fresh then private.numeric_of(p_state, 'margin') else a.margin end,
        free_margin = case when f.fresh then private.numeric_of(p_state, 'free_margin') else a.free_margin end,
        funds_at = case when f.fresh then v_measured_at else a.funds_at end
    from (select b.id, v_balance is not null and v_equity is not null
      and v_measured_at >= coalesce(b.funds_at, '-infinity') as fresh
          from public.trading_accounts b where b.id = v_account) f
    where a.id = f.id and (v_session is null or (v_session = a.session and a.session_vps_id = v_vps))
    returning a.id, v_session is not null and v_balance > 0 and a.initial_balance is null into v_found, v_is_first;
  exception when check_violation then
    raise exception using errcode = 'TC001', message = 'mode: not of the documented form', detail = left(sqlerrm, 500);
  end;
  if v_found is null then
    raise exception using errcode = 'TC208', message = 'this session of the account is over',
      detail = format('account %s, session %s', v_account, v_session),
        hint = 'A newer session was opened: stop using this one.';
  end if;
  if v_is_first then
    update public.trading_accounts a set initial_balance = v_balance, initial_balance_at = v_measured_at
    where a.id = v_account and v_balance < 1e15;
  end if;
  if v_symbols <> '[]' then
    perform private.save_symbols(v_account, v_symbols);
  end if;
  perform private.decide_told_symbols(v_account);
  perform private.alert_left_out(v_account, 'symbols', private.int_of(p_state, 'symbols_left_out', 0, 1000000));
  perform private.alert_left_out(v_account, 'positions', private.int_of(p_state, 'positions_left_out', 0, 1000000));
  if v_balance is not null and v_equity is not null then
    insert into public.account_snapshots (account_id, at, balance, equity, margin, free_margin)
    values (v_account, date_bin(private.setting_s('snapshot_every_s'), v_measured_at, '2000-01-01'), v_balance,
      v_equity,
            private.numeric_of(p_state, 'margin'), private.numeric_of(p_state, 'free_margin'))
    on conflict (account_id, at) do nothing;
  end if;
  return jsonb_strip_nulls(jsonb_build_object('ok', true, 'look_again_ms', v_look_again_ms)) || private.number_state();
end
$$;
comment on function private.report_account_state(jsonb) is
  'Agents: status, funds, symbols and quotes of an account (docs/protocol.md).';

create function public.report_account_state(p_state jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.report_account_state(p_state) $$;
comment on function public.report_account_state(jsonb) is 'Agents: status, funds, symbols and quotes of an account.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required; 1 or more): number of the assignment
- session (integer; 0 or more): session that this is about; left out or null: the login failed
- status (text; connecting, connected, degraded, disconnected or halted): state of the connection; left out or null:
  unchanged
- error (text; cut after 500 characters): why, in words
- currency (text): currency of the account
- leverage (number; 1 to 100000, else it counts as unknown): leverage of the account
- mode (text; hedging or netting): position per trade, or one per symbol
- balance, equity, margin, free_margin (number): funds, in the account''s currency
- measured_at (time): when the funds were read; left out or null: now
- symbols (list of objects): specifications and quotes; a new symbol needs all of it, a known one its name
- symbols_complete (boolean): whether all symbols of the account are told with this report; until then only symbols of
  the same name are copied into, and other trades wait; left out or null: unchanged
  the same name are copied into; left out or null: unchanged
- balance_operations (list of objects; at most 1000): deposits and withdrawals, each with number (the broker''s own),
  amount, at and kind (deposit or withdrawal; any other kind is ignored). One travels in the first report whose figures
  contain it; one that was told before may be told again, it is booked once; left out or null: none
- symbols_left_out, positions_left_out (integer; 0 to 1000000): how many were beyond the limits
Answer:
- ok (boolean; true): the report was stored
- look_again_ms (integer): only if a protection rule needs a second look: read the funds again this long after
  the answer
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
Errors: TC001 TC002 TC101 TC102 TC103 TC104 TC208
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3, "session": 12, "status": "connected",
  "error": null,
"currency": "USD", "leverage": 100, "mode": "hedging", "balance": "10000", "equity": "10012.5", "margin": "110",
"free_margin": "9902.5", "measured_at": "2026-12-01T09:30:00.000Z", "symbols": [{"name": "EURUSD", "bid": "1.10040",
"ask": "1.10042", "quoted_at": "2026-12-01T09:30:00.000Z"}]}
-> {"ok": true, "last_execution_id": "123", "generation": 1}';
grant execute on function
  private.report_account_state(jsonb), public.report_account_state(jsonb)
to authenticated;

-- agents/enrollment.sql
-- Enrolment: how a machine becomes a VPS of the farm, and how its agent signs in again.
--
-- The contract with the Edge Function "enroll", the only caller of the three functions for the service key:
--
--   POST enroll {"token", "name", "platforms": ["mt5"], "region"?, "capacity"?}
--     1. check_enrollment({"token", "name", "platforms"})    -> {"name"}    raises TC210, TC211, TC001; changes nothing
--     2. Auth admin API: create a confirmed user for the agent, e-mail agent-<random>@<something>.invalid
--     3. make a secret of 32 random bytes (hex or base64url); secret_hash = lower-case hex of the SHA-256 of its UTF-8
--        text
--     4. enroll_vps({"token", "name", "platforms", "region"?, "capacity"?, "user_id", "secret_hash"})
--        -> {"vps_id", "name"}; uses up the token. If it raises an error: delete the user of step 2.
--     5. answer {"vps_id", "name", "secret", session of the user}. The secret is shown only this once.
--   POST enroll {"vps_id", "secret"}     (an agent without a usable session; a CAPTCHA may guard the password grant)
--     1. agent_session({"vps_id", "secret"}) -> {"vps_id", "name", "user_id", "email"}; raises TC102 (retired), TC212
--     2. Auth admin API: a session for that user (generateLink "magiclink", then verifyOtp), answer it.

-- Security definer: it writes enrollment_tokens, which no API role may.
create function private.create_enrollment_token(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_token text := 'tce_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
  v_name text := nullif(trim(p_request ->> 'name'), '');
  v_expires_at timestamptz := now() + private.setting_s('enrollment_token_s');
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'create_enrollment_token', array['name']);
  if v_name is not null then
    perform private.require_free_name(v_name);
  end if;
  insert into public.enrollment_tokens (token_hash, name, created_by, expires_at)
  values (private.sha256_hex(v_token), v_name, auth.uid(), v_expires_at);
  return jsonb_build_object('token', v_token, 'name', v_name, 'expires_at', v_expires_at);
end
$$;
comment on function private.create_enrollment_token(jsonb) is
  'Operators: {"name"?} -> {"token", "name", "expires_at"}. The token enrols one VPS and is shown only here.';

create function private.require_free_name(p_name text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' then
    raise exception using errcode = 'TC001',
      message = 'name: expected 1 to 63 letters, digits, dots, dashes or underscores',
      detail = coalesce(left(p_name, 100), 'null');
  end if;
  if exists (select from public.vps_instances v where v.name = p_name and v.retired_at is null) then
    raise exception using errcode = 'TC211', message = format('there is already a VPS named %s', p_name),
      hint = 'Choose another name, or retire that VPS first.';
  end if;
end
$$;
comment on function private.require_free_name(text) is
  'Raises TC001 if this is not a valid name for a VPS, TC211 if a VPS has it.';

-- Locks the token's row: if two machines use one token, the second waits and is refused.
create function private.require_enrollment(p_request jsonb) returns public.enrollment_tokens
language plpgsql
set search_path = ''
as $$
declare
  v_token public.enrollment_tokens;
  v_platforms jsonb := p_request -> 'platforms';
  v_unknown text;
begin
  select t.* into v_token from public.enrollment_tokens t
  where t.token_hash = private.sha256_hex(coalesce(p_request ->> 'token', '')) for update;
  if not found or v_token.used_at is not null or v_token.expires_at <= now() then
    raise exception using errcode = 'TC210',
      message = case when v_token.used_at is not null then 'this enrolment token was already used'
                     when v_token.expires_at <= now() then 'this enrolment token has expired'
                     else 'there is no such enrolment token' end,
      hint = 'Ask an operator for a new one; each is good for one VPS.';
  end if;
  if jsonb_typeof(v_platforms) is distinct from 'array' or jsonb_array_length(v_platforms) = 0 then
    raise exception using errcode = 'TC001', message = 'platforms: expected an array with at least one platform';
  end if;
  select p.name into v_unknown from jsonb_array_elements_text(v_platforms) as p (name)
  where not private.setting('platforms') ? p.name limit 1;
  if found then
    raise exception using errcode = 'TC001', message = format('platforms: %s is not a platform', left(v_unknown, 50));
  end if;
  v_token.name := coalesce(v_token.name, p_request ->> 'name');
  perform private.require_free_name(v_token.name);
  return v_token;
end
$$;
comment on function private.require_enrollment(jsonb) is
  'The token row of an enrolment, with the name that the VPS will have in "name"; TC210, TC211 or TC001.';

-- Security definer: it reads enrollment_tokens.
create function private.check_enrollment(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_token public.enrollment_tokens;
begin
  perform private.require_service();
  v_token := private.require_enrollment(p_request);
  return jsonb_build_object('name', v_token.name, 'expires_at', v_token.expires_at);
end
$$;
comment on function private.check_enrollment(jsonb) is
  'Service key: raises the error that enroll_vps would raise for this request, else {"name", "expires_at"}; changes '
  'nothing.';

-- Security definer: it writes vps_instances and the secret.
create function private.enroll_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_token public.enrollment_tokens;
  v_user uuid;
  v_vps uuid;
begin
  perform private.require_service();
  v_token := private.require_enrollment(p_request);
  v_user := private.uuid_of(p_request, 'user_id');
  if coalesce(p_request ->> 'secret_hash', '') !~ '^[0-9a-f]{64}$' then
    raise exception using errcode = 'TC001', message = 'secret_hash: expected 64 hexadecimal digits in lower case';
  end if;
  if not exists (select from auth.users u where u.id = v_user)
    or exists (select from public.operators o where o.user_id = v_user)
    or exists (select from public.trading_accounts a where a.user_id = v_user)
    or exists (select from public.vps_instances v where v.user_id = v_user) then
    raise exception using errcode = 'TC213', message = 'an agent needs an auth user of its own', detail = v_user::text,
      hint = 'Create a new user for the agent; a person, an operator or another agent cannot be one.';
  end if;
  insert into public.vps_instances (name, user_id, region, platforms, capacity)
  values (v_token.name, v_user, coalesce(private.name_of(p_request, 'region', 100), ''),
          array(select distinct jsonb_array_elements_text(p_request -> 'platforms') order by 1),
          coalesce(private.int_of(p_request, 'capacity', 1, 10000), 50))
  returning id into v_vps;
  insert into private.vps_secrets (vps_id, secret_hash) values (v_vps, p_request ->> 'secret_hash');
  update public.enrollment_tokens set used_at = now(), vps_id = v_vps where id = v_token.id and used_at is null;
  return jsonb_build_object('vps_id', v_vps, 'name', v_token.name);
end
$$;
comment on function private.enroll_vps(jsonb) is
  'Service key: {"token", "name", "platforms", "region"?, "capacity"?, "user_id", "secret_hash"} -> {"vps_id", '
  '"name"}; uses up the token.';

-- Security definer: it reads secrets and auth.users.
create function private.agent_session(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_email text;
begin
  perform private.require_service();
  select v.* into v_vps from public.vps_instances v join private.vps_secrets s on s.vps_id = v.id
  where v.id::text = p_request ->> 'vps_id'
    and s.secret_hash = private.sha256_hex(coalesce(p_request ->> 'secret', ''));
  select u.email into v_email from auth.users u where u.id = v_vps.user_id;
  if v_vps.retired_at is not null then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps.id::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  if v_email is null then
    raise exception using errcode = 'TC212', message = 'there is no VPS with this id and secret',
      hint = 'Enrol the VPS again with a new token.';
  end if;
  return jsonb_build_object('vps_id', v_vps.id, 'name', v_vps.name, 'user_id', v_vps.user_id, 'email', v_email);
end
$$;
comment on function private.agent_session(jsonb) is
  'Service key: {"vps_id", "secret"} -> {"vps_id", "name", "user_id", "email"} of the agent''s auth user; TC212 if '
  'they do not match, TC102 if the VPS is retired.';

create function public.create_enrollment_token(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.create_enrollment_token(p_request) $$;
comment on function public.create_enrollment_token(jsonb) is
  'Operators: makes a token with which one VPS can be enrolled. The token is shown only in this answer.
Request:
- name (text; 1 to 63 letters, digits, dots, dashes or underscores): name that the VPS will have; left out: the VPS
  chooses it
Answer:
- token (text): for tradecopier agent enroll
- name (text or null): the name, if one was given
- expires_at (time): until when the token can be used
Errors: TC001 TC107 TC211 TC301
Example: {"name": "vps-frankfurt-1"}
-> {"token": "tce_0f4e8c1b9a7d4e2f8b6c3d5a1e9f7b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f2a", "name": "vps-frankfurt-1",
"expires_at": "2026-12-01T10:30:00.123456+00:00"}';

create function public.check_enrollment(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.check_enrollment(p_request) $$;
comment on function public.check_enrollment(jsonb) is
  'Service key: whether enroll_vps would accept this request. Changes nothing; the Edge Function enroll calls it.
Request:
- token (text; required; unused and not expired): token of create_enrollment_token
- name (text; required unless the token has one; 1 to 63 letters, digits, dots, dashes or underscores): name of the VPS
- platforms (list of texts; required; 1 or more platforms of the setting platforms): what the VPS can work
Answer:
- name (text): name that the VPS would have
- expires_at (time): until when the token can be used
Errors: TC001 TC109 TC210 TC211
Example: {"token": "tce_0f4e8c1b9a7d4e2f8b6c3d5a1e9f7b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f2a", "name": "vps-frankfurt-1",
  "platforms": ["mt5"]}
-> {"name": "vps-frankfurt-1", "expires_at": "2026-12-01T10:30:00.123456+00:00"}';

create function public.enroll_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.enroll_vps(p_request) $$;
comment on function public.enroll_vps(jsonb) is
  'Service key: makes a VPS from a token and an auth user, and uses up the token. The Edge Function enroll calls it.
Request:
- token (text; required; unused and not expired): token of create_enrollment_token
- name (text; required unless the token has one; 1 to 63 letters, digits, dots, dashes or underscores): name of the VPS
- platforms (list of texts; required; 1 or more platforms of the setting platforms): what the VPS can work
- region (text; at most 100 characters): where the VPS is; left out: empty
- capacity (integer; 1 to 10000): the most accounts that it takes; left out: 50
- user_id (uuid; required): auth user of the agent, used by nobody else
- secret_hash (text; required; 64 hexadecimal digits in lower case): SHA-256 of the secret that the agent signs in with
Answer:
- vps_id (uuid): the new VPS
- name (text): its name
Errors: TC001 TC109 TC210 TC211 TC213
Example: {"token": "tce_0f4e8c1b9a7d4e2f8b6c3d5a1e9f7b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f2a", "name": "vps-frankfurt-1",
  "platforms": ["mt5"],
"region": "Frankfurt", "capacity": 20, "user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a02",
"secret_hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "name": "vps-frankfurt-1"}';

create function public.agent_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.agent_session(p_request) $$;
comment on function public.agent_session(jsonb) is
  'Service key: the auth user of a VPS that presents its secret. The Edge Function enroll calls it.
Request:
- vps_id (uuid; required): the VPS
- secret (text; required): its secret, as shown at enrolment
Answer:
- vps_id (uuid): the VPS
- name (text): its name
- user_id (uuid): the agent''s auth user
- email (text): e-mail address of that user
Errors: TC102 TC109 TC212
Example: {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "secret": "the secret of the VPS"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "name": "vps-frankfurt-1", "user_id":
  "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a02",
"email": "agent-1f2e3d@agents.invalid"}';
grant execute on function private.create_enrollment_token(jsonb),
  public.create_enrollment_token(jsonb) to authenticated, service_role;
grant execute on function
  private.check_enrollment(jsonb), public.check_enrollment(jsonb),
  private.enroll_vps(jsonb), public.enroll_vps(jsonb),
  private.agent_session(jsonb), public.agent_session(jsonb)
to service_role;

-- agents/heartbeat.sql
-- vps_heartbeat: an agent renews its lease and learns what to do. docs/protocol.md describes request and answer.

-- Executions as agents read them, for a heartbeat. An execution that cannot be read is left out, so that it does not
-- keep the VPS from renewing its lease.
create function private.executions_isolated(p_executions bigint[]) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rows jsonb := '[]';
  v_context text;
  q public.trade_execution_queue;
begin
  for q in select * from public.trade_execution_queue x where x.id = any (p_executions) order by x.priority, x.id loop
    begin
      v_rows := v_rows || private.execution_json(q);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      get stacked diagnostics v_context = pg_exception_context;
      perform private.note_fault(q.account_id, 'offer', q.id::text, null, q.account_id,
        format('handing out execution %s', q.id), sqlerrm, v_context,
        clock_timestamp());
    end;
  end loop;
  return v_rows;
end $$;

-- The assignments of a VPS, for a heartbeat. An account is included even if the planner fails on what to watch for it.
create function private.assignments_isolated(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_all jsonb := '[]';
  v_account uuid;
begin
  begin
    return private.assignments_of(p_vps);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
  end;
  for v_account in select s.account_id from public.account_vps_assignments s where s.vps_id = p_vps order by 1 loop
    v_all := v_all || private.assignments_of(p_vps, v_account,
      exists (select 1 from private.quarantine f where f.account_id = v_account and f.kind = 'watch')
      or private.attempt(v_account, 'watch', '', null, clock_timestamp()) is null);
  end loop;
  return v_all;
end $$;

-- All outstanding executions of the accounts that a VPS works now. Executions not yet handed out are handed out here.
create function private.outstanding_executions(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_unoffered bigint[];
  v_aside bigint[];
  v_rows jsonb;
begin
  if exists (select 1 from public.trade_execution_queue q
    where q.status = 'retrying' and q.next_attempt_at <= v_now and q.attempt = 0) then
    begin
      perform private.maintain_executions(true);  -- opens that were held back: they are due within seconds
    exception when others then  -- the lease must be renewed even if this fails
      raise warning 'outstanding_executions: % (%)', sqlerrm, sqlstate;
    end;
  end if;
  v_aside := private.set_aside_executions();
  select array_agg(q.id) into v_unoffered
  from public.account_vps_assignments a
  join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
  where a.vps_id = p_vps and q.status = 'queued' and q.offered_at is null
    and (not private.opens(q) or q.queued_at > v_now - interval '5 s') and q.id <> all (v_aside);
  if v_unoffered is not null then
    perform private.offer_isolated(v_unoffered, p_vps, v_now);
  end if;
  begin
    select coalesce(jsonb_agg(private.execution_json(q) order by q.priority, q.id), '[]') into v_rows
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.status in ('queued', 'unknown') and q.offered_at is not null
      and q.id <> all (v_aside);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    v_rows := private.executions_isolated(array(
      select q.id from public.account_vps_assignments a
      join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
      where a.vps_id = p_vps and q.status in ('queued', 'unknown') and q.offered_at is not null
        and q.id <> all (v_aside)));
  end;
  return v_rows;
end $$;

create function private.cancel_requests(p_vps uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(q.id::text), '[]')
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.cancel_requested_at is not null);
end $$;

-- If a VPS that lost an account reports {"status": "released"} for its last session, it can send no more orders for it,
-- and the next VPS need not wait for the old lease. A VPS that reports nothing may still be trading.
create function private.note_releases(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_next uuid;
begin
  for v_next in
    with released as (
      update public.account_vps_assignments s
      set begins_at = least(s.begins_at, clock_timestamp()), previous_vps_id = null
      from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
      join public.trading_accounts a on a.id = said.account_id
      where s.account_id = said.account_id and s.previous_vps_id = p_vps and s.vps_id <> p_vps
        and said.status = 'released' and said.session = a.session and a.session_vps_id = p_vps
      returning s.vps_id
    )
    select distinct r.vps_id from released r
  loop
    perform private.broadcast('vps:' || v_next, 'assignments', '{}');
  end loop;
end
$$;
comment on function private.note_releases(uuid, jsonb) is
  'Lets the next VPS begin at once where this one reports that it has given up an account.';

-- p_vps: the row before this heartbeat. Only while the lease runs: afterwards the VPS is offline, which has an alert of
-- its own. Not after a silence: then the last answer is old too, and the next heartbeat names a newer one.
create function private.alert_stalled_agent(p_vps public.vps_instances, p_lease interval) returns void
language plpgsql
set search_path = ''
as $$
begin
  perform private.alert_operators(p_vps.id, 'vps', 'answers_not_worked_through', 'critical', format(
    'VPS %s sends heartbeats but works through none of the answers: its lease is not renewed, its accounts move when '
    'it ends. See the agent''s log.', p_vps.name),
    jsonb_build_object('since', private.rfc3339(p_vps.worked_at), 'agent_version', p_vps.agent_version))
  where p_vps.last_heartbeat_at > now() - p_lease / 2 and p_vps.lease_expires_at > now();
end
$$;
comment on function private.alert_stalled_agent(public.vps_instances, interval) is
  'Alerts operators about an agent that sends heartbeats but cannot work through the answers.';

-- Security definer: agents have no right on any table. This is the hot path of an idle farm: one row update per call.
create function private.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_heard record := private.check_witness(v_vps, p_heartbeat);
  v_accounts jsonb := coalesce(p_heartbeat -> 'accounts', '[]');
  v_lease interval := private.setting_s('lease_s');
  v_tick interval := private.setting_s('tick_s');
  v_row public.vps_instances;
  v_begins_at timestamptz;
  v_worked_at timestamptz;
  v_renews boolean;
  v_trades boolean;
begin
  perform private.check_protocol(p_heartbeat);
  if jsonb_typeof(v_accounts) <> 'array' or jsonb_array_length(v_accounts) > 10000 then
    raise exception using errcode = 'TC001', message = 'accounts: expected an array of at most 10000';
  end if;
  perform private.warm_up(true);  -- before any lock is taken
  v_begins_at := private.admit_process(v_vps, p_heartbeat -> 'process');
  select v.* into v_row from public.vps_instances v where v.id = v_vps;
  v_worked_at := private.given_at(v_row, private.int_of(p_heartbeat, 'worked_through', 0, 9223372036854775807));
  v_renews := private.judge_fitness(v_row, p_heartbeat);
  if coalesce(v_worked_at, v_row.worked_at) < now() - v_lease then
    v_renews := false;
    perform private.alert_stalled_agent(v_row, v_lease);
  end if;
  v_trades := v_renews and v_begins_at <= clock_timestamp();

  update public.vps_instances v
  set lease_expires_at = case when v_renews then now() + v_lease else v.lease_expires_at end,
      worked_at = coalesce(v_worked_at, least(v.worked_at, now())),
      process_worked = v.process_worked or v_worked_at is not null,
      answer_id = private.next_answer(v.answer_id),
      last_heartbeat_at = now(),
      status = case when v_renews and v.status in ('enrolled', 'offline') then 'online' else v.status end,
      last_tick_at = case when v.last_tick_at > now() - v_tick then v.last_tick_at else now() end,
      agent_version = coalesce(private.text_of(p_heartbeat, 'agent_version', 50), v.agent_version),
      cpu_percent = private.numeric_of(p_heartbeat, 'cpu_percent'),
      memory_percent = private.numeric_of(p_heartbeat, 'memory_percent'),
      disk_percent = private.numeric_of(p_heartbeat, 'disk_percent'),
      rss_mb = private.numeric_of(p_heartbeat, 'rss_mb'),
      clock_offset_ms = private.numeric_of(p_heartbeat, 'offset_ms'),
      rtt_ms = private.numeric_of(p_heartbeat, 'rtt_ms'),
      process_beat = coalesce(private.int_of(p_heartbeat -> 'process', 'beat', 0, 9223372036854775807), v.process_beat)
  where v.id = v_vps and v.retired_at is null
  returning v.* into v_row;
  if not found then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  if v_row.last_tick_at = now() then
    perform private.broadcast('vps:' || v_vps, 'tick', jsonb_build_object('at', private.rfc3339(v_row.last_tick_at)));
  end if;

  -- Before any account row is locked: maintain() locks accounts in the planner's order.
  perform private.stand_in_for_scheduler();

  if v_accounts <> '[]' then
    begin
      perform private.release_unfit(v_vps, v_accounts);
      perform private.release_unreachable(v_vps, v_accounts);
      perform private.note_account_states(v_vps, v_accounts);
      perform private.note_releases(v_vps, v_accounts);
    exception when data_exception then
      raise exception using errcode = 'TC001', message = 'accounts: an entry is not of the documented form',
        detail = left(sqlerrm, 500);
    end;
  end if;
  perform private.release_unreadable(v_vps, p_heartbeat -> 'unreadable');
  perform private.show_releases(v_vps);

  return jsonb_build_object(
    'protocol_version', private.protocol_version(), 'answer_id', v_row.answer_id::text,
    'vps_id', v_vps, 'name', v_row.name, 'status', v_row.status, 'topic', 'vps:' || v_vps,
    'server_time', private.rfc3339(clock_timestamp()),
    'lease_ms', case when v_trades then round(extract(epoch from v_lease) * 1000)::integer else 0 end,
    'begins_at', private.rfc3339(nullif(v_begins_at, '-infinity')),
    'heartbeat_ms', round(extract(epoch from private.setting_s('heartbeat_s')) * 1000)::integer,
    'last_tick_at', private.rfc3339(v_row.last_tick_at),
    'assignments', private.assignments_isolated(v_vps),
    'executions', case when v_trades then private.outstanding_executions(v_vps) else '[]' end,
    'cancel', private.cancel_requests(v_vps)) || private.number_state();
end
$$;
comment on function private.vps_heartbeat(jsonb) is
  'Agents: renews the lease, returns assignments and everything outstanding (docs/protocol.md).';

create function public.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.vps_heartbeat(p_heartbeat) $$;
comment on function public.vps_heartbeat(jsonb) is
  'Agents: renews the lease, and returns the assignments and everything outstanding.
Request:
- protocol_version (integer; required; 2): protocol that the agent speaks; left out: 1, which is refused
- worked_through (text or null): answer_id of the last answer whose entries were all processed
- unreadable (list of uuids): accounts whose entries the agent could not read
- unfit (text or null; journal_unwritable, loop_stalled, low_disk, low_memory or clock_drift): why the agent cannot work
- agent_version (text; at most 50 characters): version of the agent
- cpu_percent, memory_percent, disk_percent, rss_mb, offset_ms, rtt_ms (number): figures of the machine and of the
  connection
- process (object): id, machine, beat and new of the agent''s process
- accounts (list of objects; at most 10000): account_id, session, revision, status, error and unfit of each account
- highest_execution_id (text or null): highest execution number that the agent was ever sent
- generation (integer or null): generation of the database that the agent knows
Answer:
- protocol_version (integer): protocol that the database speaks
- answer_id (text): number of this answer
- vps_id (uuid): the VPS
- name (text): its name
- status (text): its status
- topic (text): topic of its broadcasts
- server_time (time): the database''s clock
- lease_ms (integer): how long the agent may trade; 0: not at all
- begins_at (time or null): from when on this process of the agent may trade
- heartbeat_ms (integer): how often an idle agent sends a heartbeat
- last_tick_at (time): when the last tick was sent to the topic
- assignments (list of objects): accounts that the agent must work
- executions (list of objects): outstanding executions
- cancel (list of texts): executions to drop if they are unsent
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
Errors: TC001 TC101 TC102 TC110 TC111 TC150
Example: {"protocol_version": 2, "worked_through": "1764342000000000", "unreadable": [], "unfit": null, "agent_version":
  "0.1.0",
"cpu_percent": 12.5, "memory_percent": 40, "disk_percent": 55, "rss_mb": 180, "offset_ms": 3.2, "rtt_ms": 14.8,
"process": {"id": "8f0c2d", "machine": "5b1e7a", "beat": 812, "new": false},
"accounts": [{"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "session": 12, "revision": 4, "status": "connected",
"error": null}], "highest_execution_id": "123", "generation": 1}
-> {"protocol_version": 2, "answer_id": "1764342002000000", "vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "name":
  "vps-frankfurt-1",
"status": "online", "topic": "vps:c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "server_time": "2026-12-01T09:30:00.000000Z",
"lease_ms": 15000, "begins_at": "2026-12-01T09:00:00.000000Z", "heartbeat_ms": 2000, "last_tick_at":
"2026-12-01T09:29:40.000000Z", "assignments": [{"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3,
"platform": "mt5", "server": "Broker-Demo", "login": "51234567", "mode": "hedging", "currency": "USD", "owner":
"4f1c8e2a9b3d7056", "revision": 4, "begins_at": "2026-12-01T09:00:00.000000Z", "watch_symbols": ["EURUSD"],
"watch_funds": false, "funds_after_fills": false,
"resync": false}], "executions": [], "cancel": [], "last_execution_id": "123", "generation": 1}';
grant execute on function
  private.vps_heartbeat(jsonb), public.vps_heartbeat(jsonb)
to authenticated;

-- agents/queue_trade_copy.sql
-- queue_trade_copy: takes trade events of one account and returns executions for its followers, in one round trip.

-- Unfinished executions of events that this call repeats: they are handed out again.
create function private.offer_repeated(p_events bigint[], p_vps uuid) returns jsonb
language plpgsql set search_path = '' as $$
begin
  if cardinality(p_events) = 0 then
    return '[]';
  end if;
  return (
    select coalesce(jsonb_agg(private.execution_json(q)), '[]')
    from public.trade_execution_queue q
    where q.event_id = any (p_events) and q.finalized_at is null and q.vps_id = p_vps);
end $$;
comment on function private.offer_repeated(bigint[], uuid) is
  'The executions of this VPS that belong to these events and are not final, a JSON array.';

-- Takes events and plans them together; returns the whole answer. p_outdated: the agent knows only a database that was
-- lost since (trade/generation.sql), so all of its events are history.
create function private.take_events(p_vps uuid, p_account uuid, p_events jsonb, p_now timestamptz,
  p_outdated boolean default false) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_results jsonb[] := '{}';  -- an array grows in place, a JSON list is copied at each append
  v_result jsonb;
  v_event jsonb;
  v_tickets text[] := '{}';
  v_events bigint[] := '{}';
  v_types text[] := '{}';
  v_repeated bigint[] := '{}';
  v_new bigint[];
begin
  select * into v_account from public.trading_accounts where id = p_account;
  if p_outdated then
    v_account.snapshot_session := 9223372036854775807;
  end if;
  for v_event in select value from jsonb_array_elements(p_events) loop
    v_result := private.take_event(v_account, v_event, p_now);
    if v_result ->> 'status' = 'duplicate' then
      v_repeated := v_repeated || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
    elsif v_result ? 'tickets' then
      v_tickets := v_tickets || array(select jsonb_array_elements_text(v_result -> 'tickets'));
      v_events := v_events || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
      v_types := v_types || array(select jsonb_array_elements_text(v_result -> 'types'));
      if v_event ->> 'type' = 'snapshot' then
        v_account.snapshot_session := greatest(v_account.snapshot_session, (v_event ->> 'session')::bigint);
      end if;
    end if;
    v_results := array_append(v_results, v_result - array['tickets', 'events', 'types', 'executions']);
  end loop;
  if cardinality(v_tickets) > 0 then
    v_new := private.plan_events(p_account, v_events, v_types, v_tickets, p_now);
  end if;
  if v_account.copy_state = 'flattening' and not p_outdated then
    v_new := coalesce(v_new, '{}') || private.plan_flatten(p_account, p_now);
  end if;
  return jsonb_build_object(
    'results', to_jsonb(v_results),
    'executions', private.offer(v_new, p_vps, clock_timestamp()) || private.offer_repeated(v_repeated, p_vps),
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

-- Takes and plans each event separately after the planner failed on some of them (upkeep/quarantine.sql); returns the
-- whole answer.
create function private.take_events_isolated(p_vps uuid, p_account uuid, p_events jsonb,
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account public.trading_accounts;
  v_results jsonb[] := '{}';
  v_result jsonb;
  v_event jsonb;
  v_repeated bigint[] := '{}';
  v_new bigint[] := '{}';
begin
  select * into v_account from public.trading_accounts where id = p_account;
  for v_event in select value from jsonb_array_elements(p_events) loop
    v_result := private.take_event_isolated(v_account, v_event, p_now);
    v_new := v_new || array(select jsonb_array_elements_text(v_result -> 'executions')::bigint);
    if v_result ->> 'status' = 'duplicate' then
      v_repeated := v_repeated || array(select jsonb_array_elements_text(v_result -> 'events')::bigint);
    elsif v_result ? 'tickets' and v_event ->> 'type' = 'snapshot' then
      v_account.snapshot_session := greatest(v_account.snapshot_session, (v_event ->> 'session')::bigint);
    end if;
    v_results := array_append(v_results, v_result - array['tickets', 'events', 'types', 'executions']);
  end loop;
  if v_account.copy_state = 'flattening' then
    v_new := v_new || private.try_step(p_account, 'flatten', '', '{}', p_now);
  end if;
  return jsonb_build_object(
    'results', to_jsonb(v_results),
    'executions', private.offer_isolated(v_new, p_vps, clock_timestamp()) || private.offer_repeated(v_repeated, p_vps),
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

-- Events that the agent stored before it knew the database's present generation. They change nothing: the agent now
-- begins a new session, whose snapshot shows the account's present state. Only the VPS that works the account may send
-- them.
create function private.take_history(p_vps uuid, p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := (p_request ->> 'account_id')::uuid;
  v_now timestamptz := private.lock_accounts(array[v_account]);
begin
  if exists (select from public.account_vps_assignments s where s.account_id = v_account and s.vps_id = p_vps) then
    return private.take_events(p_vps, v_account, p_request -> 'events', v_now, true);
  end if;
  return jsonb_build_object('executions', '[]'::jsonb, 'server_time', private.rfc3339(v_now), 'results', (
    select coalesce(jsonb_agg(jsonb_build_object('event_key', (e ->> 'session') || ':' || (e ->> 'seq'), 'status',
      'refused', 'code', 'TC103',
      'error', 'the account is not assigned to this VPS') order by n), '[]')
    from jsonb_array_elements(p_request -> 'events') with ordinality as x (e, n)));
end $$;

-- The settings below apply to all functions that it calls: plans are cached while tables may be tiny, and must still
-- serve when the tables are large.
create function private.queue_trade_copy(p_events jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
  v_heard record;
  v_answer jsonb;
begin
  if octet_length(p_events::text) > 1000000 then
    raise exception using errcode = 'TC002', message = 'queue_trade_copy: the payload is over 1 MB',
      hint = 'Send fewer events in one call.';
  end if;
  if jsonb_typeof(p_events -> 'events') is distinct from 'array'
    or not coalesce(pg_input_is_valid(p_events ->> 'account_id', 'uuid'), false)
    or not coalesce(pg_input_is_valid(p_events ->> 'epoch', 'bigint'), false) then
    raise exception using errcode = 'TC001',
      message = 'queue_trade_copy: account_id, epoch or the array "events" is missing or malformed',
      hint = 'See docs/protocol.md for the form of the call.';
  end if;
  if jsonb_array_length(p_events -> 'events') > 1000 then
    raise exception using errcode = 'TC002',
      message = format('queue_trade_copy: %s events in one call, at most 1000 are allowed',
      jsonb_array_length(p_events -> 'events')), hint = 'Send fewer events in one call.';
  end if;
  v_heard := private.check_witness(v_vps, p_events);
  if v_heard.outdated then
    return private.take_history(v_vps, p_events) || private.number_state();
  end if;
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);
  v_now := private.lock_with_followers(array[(p_events ->> 'account_id')::uuid]);
  -- the account may have moved while this call waited for the lock
  perform private.require_assignment(v_vps, (p_events ->> 'account_id')::uuid, (p_events ->> 'epoch')::bigint);
  begin
    v_answer := private.take_events(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'queue_trade_copy: one by one, for %: %', sqlstate, sqlerrm;
    v_answer := private.take_events_isolated(v_vps, (p_events ->> 'account_id')::uuid, p_events -> 'events', v_now);
  end;
  perform private.count_on(v_heard.last_execution_id);
  return v_answer || private.number_state();
end $$;

create function public.queue_trade_copy(p_events jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.queue_trade_copy(p_events) $$;
comment on function public.queue_trade_copy(jsonb) is
  'Agents: stores and plans trade events of one account, each once, and returns executions for the calling VPS.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required): number of the assignment
- events (list of objects; required; at most 1000, and 1 MB in all): what changed, in order
- highest_execution_id (text or null): highest execution number that the agent was ever sent
- generation (integer or null): generation of the database that the agent knows
Answer:
- results (list of objects): one per event, in the same order
- results[].event_key (text): session and number of the event
- results[].status (text; accepted, duplicate, history, refused or kept): what the database did with the event
- results[].code (text or null; TC103, TC401, TC402 or TC420): why it was refused or kept; the call itself
  still succeeds
- results[].error (text or null): the same in words
- results[].missing (list of texts): only for a snapshot: open tickets of the database that the snapshot lacks
- executions (list of objects): executions of the calling VPS
- server_time (time): the database''s clock
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
Errors: TC001 TC002 TC101 TC102 TC103 TC104 TC150
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3, "events": [{"session": 12, "seq": 345,
  "type": "opened",
"position": {"ticket": "5001", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": "1.00", "price":
"1.10000", "sl": "1.09500", "tp": null, "order_type": null, "magic": "0", "comment": "", "opened_at":
"2026-12-01T09:29:59.900Z", "expires_at": null, "tag": null, "replaces": null}, "detected_at":
"2026-12-01T09:29:59.950Z", "unchanged_at": "2026-12-01T09:29:59.850Z"}], "highest_execution_id": "123", "generation":
1}
-> {"results": [{"event_key": "12:345", "status": "accepted", "code": null, "error": null}], "executions": [],
"server_time": "2026-12-01T09:30:00.000000Z", "last_execution_id": "124", "generation": 1}';

revoke all on function public.queue_trade_copy(jsonb) from public, anon;
grant execute on function public.queue_trade_copy(jsonb) to authenticated;
grant execute on function private.queue_trade_copy(jsonb) to authenticated;

-- agents/report_executions.sql
-- report_executions: agents report the outcomes of executions.

-- Takes reports and plans together what follows from them; returns the whole answer.
create function private.take_reports(p_vps uuid, p_reports jsonb, p_accounts uuid[], p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_taken_at_once bigint[] := '{}';
  v_report jsonb;
  v_number bigint;
  v_taken record;
  v_numbers bigint[];  -- the index of the report that each result belongs to
  v_results jsonb[] := '{}';
  v_answer jsonb;
  v_links bigint[] := '{}';
  v_changes jsonb := '{}';
  v_account text;
  v_new bigint[];
begin
  if p_reports @> '[{"outcome": "completed"}]' then
    select coalesce(u.taken, '{}'), array(select jsonb_array_elements(u.results)), coalesce(u.link_ids, '{}')
    into v_taken_at_once, v_results, v_links
    from private.take_reports_fast(p_vps, p_reports, p_now) u;
  end if;
  v_numbers := v_taken_at_once;
  for v_report, v_number in
    select value, ordinality
    from jsonb_array_elements(case when cardinality(v_taken_at_once) < jsonb_array_length(p_reports)
      then p_reports else '[]' end)
      with ordinality
    where ordinality <> all (v_taken_at_once)
  loop
    v_taken := private.take_report(p_vps, v_report, p_now);
    v_links := v_links || v_taken.link_ids;
    if v_taken.changes <> '[]' then
      v_account := v_report ->> 'account_id';
      v_changes := v_changes || jsonb_build_object(v_account,
        coalesce(v_changes -> v_account, '[]') || v_taken.changes);
    end if;
    v_numbers := array_append(v_numbers, v_number);
    v_results := array_append(v_results, v_taken.result);
  end loop;
  select coalesce(jsonb_agg(x.result order by x.n), '[]') into v_answer
  from unnest(v_numbers, v_results) as x (n, result);
  v_new := coalesce(private.plan_again(private.links_to_plan(v_links, p_now), p_now), '{}')
    || coalesce(private.requeue(p_accounts, p_now), '{}');
  if v_changes <> '{}' then
    for v_account in select jsonb_object_keys(v_changes) loop
      v_new := v_new || coalesce(private.plan_changes(v_account::uuid, v_changes -> v_account, p_now), '{}');
    end loop;
  end if;
  return jsonb_build_object(
    'results', v_answer,
    'executions', private.offer(v_new, p_vps, clock_timestamp()),
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

-- Takes and plans each report separately after the planner failed on some of them (upkeep/quarantine.sql); returns the
-- whole answer.
create function private.take_reports_isolated(p_vps uuid, p_reports jsonb, p_accounts uuid[],
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_report jsonb;
  v_taken record;
  v_results jsonb[] := '{}';
  v_new bigint[] := '{}';
begin
  for v_report in select value from jsonb_array_elements(p_reports) loop
    v_taken := private.take_report_isolated(p_vps, v_report, p_now);
    v_new := v_new || v_taken.executions;
    v_results := array_append(v_results, v_taken.result);
  end loop;
  v_new := v_new || private.requeue_isolated(p_accounts, p_now);
  return jsonb_build_object(
    'results', to_jsonb(v_results),
    'executions', private.offer_isolated(v_new, p_vps, clock_timestamp()),
    'server_time', private.rfc3339(clock_timestamp()));
end $$;

create function private.report_executions(p_reports jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
  v_accounts uuid[];
  v_answer jsonb;
begin
  -- a character of the text takes at most six bytes, so a small value needs no exact measurement
  if pg_column_size(p_reports) > 150000 and octet_length(p_reports::text) > 1000000 then
    raise exception using errcode = 'TC002', message = 'report_executions: the payload is over 1 MB',
      hint = 'Send fewer reports in one call.';
  end if;
  if jsonb_typeof(p_reports -> 'reports') is distinct from 'array' then
    raise exception using errcode = 'TC001', message = 'report_executions: the array "reports" is missing',
      hint = 'See docs/protocol.md.';
  end if;
  if jsonb_array_length(p_reports -> 'reports') > 1000 then
    raise exception using errcode = 'TC002',
      message = format('report_executions: %s reports in one call, at most 1000 are allowed',
      jsonb_array_length(p_reports -> 'reports')), hint = 'Send fewer reports in one call.';
  end if;
  perform private.check_witness(v_vps, p_reports);
  v_accounts := array(
    select (e ->> 'account_id')::uuid from jsonb_array_elements(p_reports -> 'reports') e
    where pg_input_is_valid(e ->> 'account_id', 'uuid'));
  v_now := private.lock_with_followers(v_accounts);
  begin
    v_answer := private.take_reports(v_vps, p_reports -> 'reports', v_accounts, v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'report_executions: one by one, for %: %', sqlstate, sqlerrm;
    v_answer := private.take_reports_isolated(v_vps, p_reports -> 'reports', v_accounts, v_now);
  end;
  return v_answer || private.number_state();
end $$;

create function public.report_executions(p_reports jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.report_executions(p_reports) $$;
comment on function public.report_executions(jsonb) is
  'Agents: outcomes of executions that were handed to the agent; late reports count as well.
Request:
- reports (list of objects; required; at most 1000, and 1 MB in all): outcomes, for accounts of one owner
- highest_execution_id (text or null): highest execution number that the agent was ever sent
- generation (integer or null): generation of the database that the agent knows
Answer:
- results (list of objects): one per report, in the same order
- results[].execution_id (text): the execution
- results[].status (text; accepted, duplicate, refused or kept): what the database did with the report
- results[].code (text or null; TC106, TC402, TC411 or TC420): why it was refused or kept; the call itself
  still succeeds
- results[].error (text or null): the same in words
- executions (list of objects): executions for the calling VPS that follow from the reports
- server_time (time): the database''s clock
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
Errors: TC001 TC002 TC101 TC102 TC150
Example: {"reports": [{"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "session": 7, "seq": 346, "execution_id":
  "124", "attempt": 1,
"outcome": "completed", "reason": null, "retryable": false, "message": "", "adopted": false, "filled_lots": "0.50",
"price": "1.10023", "positions": [{"ticket": "9001", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots":
"0.50", "price": "1.10023", "sl": "1.09500", "tp": null, "order_type": null, "magic": "0", "comment": "", "opened_at":
"2026-12-01T09:30:00.200Z", "expires_at": null, "tag": "124", "replaces": null}], "quote": null, "received_at":
"2026-12-01T09:30:00.050Z", "sent_at": "2026-12-01T09:30:00.060Z", "done_at": "2026-12-01T09:30:00.210Z"}],
"highest_execution_id": "124", "generation": 1}
-> {"results": [{"execution_id": "124", "status": "accepted", "code": null, "error": null}], "executions": [],
"server_time": "2026-12-01T09:30:00.300000Z", "last_execution_id": "124", "generation": 1}';

revoke all on function public.report_executions(jsonb) from public, anon;
grant execute on function public.report_executions(jsonb) to authenticated;
grant execute on function private.report_executions(jsonb) to authenticated;

-- agents/session.sql
-- open_session and account_credentials: an agent logs in to an account and begins to work it.

-- Security definer: agents have no right on any table.
create function private.open_session(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account uuid := private.uuid_of(p_request, 'account_id');
  v_epoch bigint := private.int_of(p_request, 'epoch', 1, 9223372036854775807);
  v_session bigint;
  v_continues bigint;
  v_begins_at timestamptz;
  v_last_execution_id bigint;
  v_now timestamptz;
begin
  if jsonb_typeof(p_request -> 'can_trade') not in ('boolean', 'null') then
    raise exception using errcode = 'TC001', message = 'can_trade: expected true or false';
  end if;
  perform private.check_start();
  v_last_execution_id := private.last_execution_id();
  -- Statements after this lock see a move of the account either complete or not begun.
  v_now := private.lock_accounts(private.accounts_of_proof(v_account));
  perform private.require_assignment(v_vps, v_account, v_epoch);
  perform private.prove_claim(v_account, coalesce((p_request ->> 'can_trade')::boolean, true), v_now);
  select case when a.session_vps_id = v_vps then nullif(a.session, 0) end, s.begins_at
  into v_continues, v_begins_at
  from public.trading_accounts a join public.account_vps_assignments s on s.account_id = a.id
  where a.id = v_account;
  update public.trading_accounts a
  set session = a.session + 1, session_vps_id = v_vps, session_opened_at = clock_timestamp(),
      status = 'connected', status_reason = null
  where a.id = v_account
  returning a.session into v_session;
  perform private.count_on(v_last_execution_id);
  return jsonb_build_object('session', v_session, 'continues', v_continues, 'begins_at',
    private.rfc3339(v_begins_at)) || private.number_state();
end
$$;
comment on function private.open_session(jsonb) is
  'Agents: {"account_id", "epoch", "can_trade"} -> {"session", "continues", "begins_at"} (docs/protocol.md).';

-- Security definer: it reads Vault, which no API role may.
create function private.account_credentials(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account record;
begin
  perform private.require_assignment(v_vps, private.uuid_of(p_request, 'account_id'),
                                     private.int_of(p_request, 'epoch', 1, 9223372036854775807));
  perform private.take_attempt(private.uuid_of(p_request, 'account_id'));
  -- Settings over the limits are never sent to an agent, however they got into the table. One statement reads all, so
  -- that the revision matches the settings and the password.
  select a.id, a.user_id, a.platform, a.login, a.server, a.settings, a.revision,
    s.decrypted_secret as password into v_account
  from public.trading_accounts a left join vault.decrypted_secrets s on s.id = a.secret_id
  where a.id = private.uuid_of(p_request, 'account_id');
  perform private.check_document(jsonb_build_object('settings', v_account.settings), 'settings');
  perform private.write_audit('credentials_read', 'trading_accounts', v_account.id::text, v_account.user_id,
                              jsonb_build_object('vps_id', v_vps, 'epoch', p_request -> 'epoch'));
  return jsonb_build_object('login', v_account.login, 'server', v_account.server, 'password',
    coalesce(v_account.password, ''),
                            'settings', v_account.settings, 'revision', v_account.revision,
                            'address', (private.broker_server(v_account.platform,
                              v_account.server)).address) || private.number_state();
end
$$;
comment on function private.account_credentials(jsonb) is
  'Agents: {"account_id", "epoch"} of an account that is assigned to the caller -> its broker login; audited.';

create function public.open_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.open_session(p_request) $$;
comment on function public.open_session(jsonb) is
  'Agents: begins a session of an account after a verified login, which proves the user''s claim on the login.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required; 1 or more): number of the assignment
- can_trade (boolean): false: the password is an investor password; left out or null: true
Answer:
- session (integer): number of the session
- continues (integer or null): number of the previous session, if the same VPS held it
- begins_at (time): from when on the agent may trade
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
Errors: TC001 TC101 TC102 TC103 TC104 TC202 TC225 TC226
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3, "can_trade": true}
-> {"session": 12, "continues": 11, "begins_at": "2026-12-01T09:30:00.000000Z", "last_execution_id": "123",
  "generation": 1}';

create function public.account_credentials(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.account_credentials(p_request) $$;
comment on function public.account_credentials(jsonb) is
  'Agents: the broker login of an account that is assigned to the caller; each call is recorded in the audit log.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required; 1 or more): number of the assignment
Answer:
- login (text): login at the broker
- server (text): broker''s server
- password (text): its password, or empty
- settings (object): settings for the platform
- revision (integer): grows with each change of settings or password
- address (text or null): host:port of the server; null: the platform finds the server by its name
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
Errors: TC001 TC101 TC102 TC103 TC104 TC202 TC224 TC225 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3}
-> {"login": "51234567", "server": "Broker-Demo", "password": "trading password", "settings": {}, "revision": 4,
  "address": null,
"last_execution_id": "123", "generation": 1}';
grant execute on function
  private.open_session(jsonb),
  public.open_session(jsonb),
  private.account_credentials(jsonb),
  public.account_credentials(jsonb)
to authenticated;

-- agents/warm_up.sql


-- A database session that has never planned compiles and plans some eighty statements at its first trade, which takes
-- several times as long as planning the trade; and again whenever a table's statistics change. So it is done
-- beforehand, with no real data: once in every session that gets a report of an account, and at each heartbeat
-- (p_again). It writes and locks nothing, because no row matches. The settings must equal those of the entry functions,
-- or their cached plans would differ from these.
create function private.warm_up(p_again boolean) returns void
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_nobody constant uuid := '00000000-0000-0000-0000-000000000000';
  v_now constant timestamptz := clock_timestamp();
begin
  if current_setting('tradecopier.warm', true) = 'yes' and not p_again then return; end if;
  perform set_config('tradecopier.warm', 'yes', false);
  begin
    perform private.event_error('{}'), private.report_error('{}');
    perform private.lock_with_followers(array[v_nobody]);
    perform private.links_of_tickets(v_nobody, array['']);
    perform private.plan(array[0], array[v_nobody], array[''], null, v_now);
    perform private.decide(array[v_nobody], array[''], null, v_now);
    perform private.explain_rest(v_nobody, array[0], array['opened'], array['']);
    perform private.book_fill(null, '{"positions": []}', v_now);
    perform private.take_reports_fast(v_nobody, '[]', v_now);
    perform private.links_to_plan(array[0], v_now);
    perform private.requeue(array[v_nobody], v_now);
    perform private.offer(array[0], v_nobody, v_now);
  exception when others then  -- a fault of the planner shows where it plans; it must not cost an agent its lease
    raise warning 'warm_up: %', sqlerrm;
  end;
end $$;
comment on function private.warm_up(boolean) is
  'Makes this session compile and plan the planner''s statements before a trade needs them.';

-- users/account.sql
-- Functions by which users manage their accounts.

create function private.own_account(p_account uuid, p_operators_too boolean) returns public.trading_accounts
language plpgsql stable
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_service boolean := coalesce(auth.role(), '') = 'service_role';
  v_user uuid;
begin
  if not v_service then
    v_user := private.require_user();
  end if;
  select a.* into v_account from public.trading_accounts a where a.id = p_account and a.removed_at is null;
  if not found or not (v_service or v_account.user_id = v_user or (p_operators_too and private.is_operator())) then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours',
      detail = p_account::text,
      hint = 'Check the id.';
  end if;
  return v_account;
end
$$;
comment on function private.own_account(uuid, boolean) is
  'The account, if the caller owns it or holds the service key (with p_operators_too, also for operators); TC106 '
  'otherwise.';

-- The service key acts on behalf of the user that the request names.
create function private.acting_user(p_request jsonb) returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_user uuid;
begin
  if auth.role() = 'service_role' then
    v_user := private.uuid_of(p_request, 'user_id');
    if not exists (select from auth.users u where u.id = v_user) then
      raise exception using errcode = 'TC001', message = 'user_id: there is no such user', detail = v_user::text;
    end if;
    return v_user;
  end if;
  return private.require_user();
end
$$;
comment on function private.acting_user(jsonb) is
  'The user that the call acts for: the caller, or with the service key the user in user_id. TC001 if there is none.';

create function private.initial_balance_of(p_function text, p_request jsonb) returns numeric
language plpgsql immutable
set search_path = ''
as $$
declare
  v_initial numeric := private.numeric_of(p_request, 'initial_balance');
begin
  if v_initial <= 0 or v_initial >= 1e15 then
    raise exception using errcode = 'TC303',
      message = format('%s: initial_balance is %s, but must be above 0 and below 1e15', p_function, v_initial),
      hint = 'It is what the account began with, in its own currency, such as "100000".';
  end if;
  return v_initial;
end
$$;
comment on function private.initial_balance_of(text, jsonb) is
  'The initial_balance of a request, or null; TC303 if it is out of range.';

-- Security definer: it writes trading_accounts and Vault.
create function private.connect_account(p_account jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.acting_user(p_account);
  v_platform text := private.name_of(p_account, 'platform', 50);
  v_server text := private.name_of(p_account, 'server', 100);
  v_login text := private.name_of(p_account, 'login', 100);
  v_name text := private.name_of(p_account, 'name', 100);
  v_password text := private.verbatim_of(p_account, 'password', 1000);
  v_settings jsonb := coalesce(private.check_document(p_account, 'settings'), '{}');
  v_mode text := coalesce(private.text_of(p_account, 'mode', 100), 'hedging');
  v_currency text := coalesce(private.text_of(p_account, 'currency', 100), 'USD');
  v_initial numeric := private.initial_balance_of('connect_account', p_account);
  v_listed public.broker_servers;
  v_account uuid;
  v_placed public.account_vps_assignments;
begin
  perform private.refuse_unknown(p_account, 'connect_account',
    array['platform', 'server', 'login', 'password', 'name', 'mode', 'currency',
                                 'settings', 'user_id', 'vps_id', 'initial_balance']);
  if v_platform is null or v_server is null or v_login is null then
    raise exception using errcode = 'TC001', message = 'platform, server and login are required';
  elsif v_mode not in ('hedging', 'netting') then
    raise exception using errcode = 'TC001',
      message = format('connect_account: mode is %s, but must be hedging or netting', v_mode),
      hint = 'hedging: a position per trade. netting: one position per symbol.';
  elsif v_currency !~ '^[A-Z0-9]{2,10}$' then
    raise exception using errcode = 'TC001',
      message = format('connect_account: currency is %s, but must be 2 to 10 capital letters or digits', v_currency),
      hint = 'For example USD.';
  end if;
  if (private.platform_rules(v_platform) -> 'password') = 'true' and v_password is null then
    raise exception using errcode = 'TC203',
      message = format('connect_account: a %s account requires its password', v_platform),
      hint = 'Give the broker''s trading password, not the investor password.';
  end if;
  perform private.refuse_addressing('connect_account', v_settings);
  v_listed := private.require_broker_server('connect_account', v_platform, v_server);
  -- before anything is counted; a trigger enforces the limit of accounts (copier/quota.sql)
  perform private.hold_user(v_user);
  perform private.lock_login(v_platform, v_listed.server_key, private.plain_name(v_login));
  if (private.proven_claim(v_platform, v_listed.server_key, private.plain_name(v_login))).claim = 'trading' or exists (
    select from public.trading_accounts a
    where a.platform = v_platform and a.server_key = v_listed.server_key and a.login_key = private.plain_name(v_login)
      and a.user_id = v_user
      and a.removed_at is null)
  then
    perform private.refuse_claimed('connect_account', v_platform, v_listed.server, v_login);
  end if;
  perform private.require_free_claim(v_user);

  insert into public.trading_accounts (user_id, platform, server, login, name, mode, currency, settings,
    initial_balance)
  values (v_user, v_platform, v_listed.server, v_login,
    coalesce(v_name, left(v_login || ' · ' || v_listed.server, 100)), v_mode, v_currency, v_settings,
    v_initial)
  returning id into v_account;
  if v_password is not null then
    update public.trading_accounts
    set secret_id = vault.create_secret(v_password, 'account:' || v_account, 'Broker password of a trading account')
    where id = v_account;
  end if;

  perform private.await_turn('assign');
  if p_account ? 'vps_id' then
    perform private.require_operator();
    v_placed := private.place_or_refuse(v_account, private.uuid_of(p_account, 'vps_id'));
  else
    v_placed := private.place_account(v_account, null);
  end if;
  return jsonb_build_object('account_id', v_account, 'vps_id', v_placed.vps_id);
end
$$;
comment on function private.connect_account(jsonb) is
  'Users: {"platform", "server", "login", "password", "name"?, "mode"?, "currency"?, "settings"?} -> {"account_id", '
  '"vps_id"}; vps_id null: placed as soon as a VPS can take it. The service key may add "user_id" and "vps_id".';

-- Security definer: it writes account_vps_assignments.
create function private.assign_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
set lock_timeout = '3s'  -- it holds the turn "assign", which every placement waits for
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), true);
  v_vps uuid := case when p_request ->> 'vps_id' is not null then private.uuid_of(p_request, 'vps_id') end;
  v_placed public.account_vps_assignments;
begin
  perform private.refuse_unknown(p_request, 'assign_account', array['account_id', 'vps_id']);
  if v_vps is not null then
    perform private.require_operator();
  end if;
  if v_account.claim = 'ended' then
    perform private.refuse_ended('assign_account', v_account.name);
  end if;
  perform private.await_turn('assign');
  -- If no VPS was requested, an account on a healthy VPS stays there: each move costs a pause.
  select s.* into v_placed from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id
  where s.account_id = v_account.id and v_vps is null and v.status = 'online'
    and v.lease_expires_at > clock_timestamp();
  if not found then
    v_placed := private.place_or_refuse(v_account.id, v_vps);
  end if;
  return jsonb_build_object('account_id', v_account.id, 'vps_id', v_placed.vps_id, 'epoch', v_placed.epoch,
                            'begins_at', private.rfc3339(v_placed.begins_at));
end
$$;
comment on function private.assign_account(jsonb) is
  'The owner or an operator: {"account_id"} -> {"account_id", "vps_id", "epoch", "begins_at"}. Operators may add '
  '"vps_id".';

-- Security definer: it writes trading_accounts and Vault.
create function private.update_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_password text := private.verbatim_of(p_request, 'password', 1000);
  v_settings jsonb := private.check_document(p_request, 'settings');
  v_initial numeric := private.initial_balance_of('update_account', p_request);
  v_retried boolean := v_password is not null or v_settings is distinct from v_account.settings
    and v_settings is not null;
begin
  perform private.refuse_unknown(p_request, 'update_account', array['account_id', 'name', 'password', 'settings',
    'initial_balance']);
  perform private.refuse_addressing('update_account', v_settings);
  if p_request ->> 'password' = '' then
    raise exception using errcode = 'TC203', message = 'update_account: the password is empty',
      hint = 'Give the broker''s trading password, or leave the field out to keep the stored one.';
  end if;
  perform private.renew_claim(v_account.id, v_password);
  if v_password is not null and v_account.secret_id is null then
    v_account.secret_id := vault.create_secret(v_password, 'account:' || v_account.id,
      'Broker password of a trading account');
  elsif v_password is not null then
    perform vault.update_secret(v_account.secret_id, v_password);
  end if;
  update public.trading_accounts a
  set name = coalesce(private.name_of(p_request, 'name', 100), a.name), settings = coalesce(v_settings, a.settings),
      initial_balance = coalesce(v_initial, a.initial_balance),
      initial_balance_at = case when v_initial is null then a.initial_balance_at else a.funds_at end,
      initial_moved = case when v_initial is null then a.initial_moved else 0 end,
      secret_id = v_account.secret_id, revision = a.revision + (v_password is not null)::integer,
      -- The problem may be fixed by the change: the agent logs in again at once and reports the result.
      status = case when v_retried and a.status = 'halted' then 'connecting' else a.status end,
      status_reason = case when v_retried then null else a.status_reason end
  where a.id = v_account.id;
  delete from private.releases r where r.account_id = v_account.id and v_retried;
  if v_password is not null then
    perform private.write_audit('password_changed', 'trading_accounts', v_account.id::text, v_account.user_id, '{}');
  end if;
  perform private.broadcast('vps:' || s.vps_id, 'assignments', '{}')
  from public.account_vps_assignments s where s.account_id = v_account.id;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.update_account(jsonb) is
  'The owner: {"account_id", "name"?, "password"?, "settings"?} -> {"account_id"}.';

-- Security definer: it writes trading_accounts, assignments and Vault.
create function private.remove_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
set lock_timeout = '3s'  -- it holds the turn "assign", which every placement waits for
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_vps uuid;
begin
  perform private.refuse_unknown(p_request, 'remove_account', array['account_id']);
  perform private.await_turn('assign');
  perform private.lock_accounts(array[v_account.id]);
  if exists (select from public.copiers c
             where c.removed_at is null and v_account.id in (c.master_account_id, c.follower_account_id)) then
    raise exception using errcode = 'TC205', message = 'the account is still used by copiers',
      detail = v_account.id::text,
      hint = 'Remove those copiers first. Positions are not changed.';
  end if;
  update public.trading_accounts
  set removed_at = clock_timestamp(), status = 'disconnected', status_reason = 'removed', secret_id = null
  where id = v_account.id and removed_at is null;
  if not found then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours',
      detail = v_account.id::text;
  end if;
  delete from vault.secrets s where s.id = v_account.secret_id;
  delete from public.account_vps_assignments s where s.account_id = v_account.id returning s.vps_id into v_vps;
  if v_vps is not null then
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end if;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.remove_account(jsonb) is
  'The owner: {"account_id"} -> {"account_id"}; disconnects the account and deletes its password. Its history is kept.';

create function public.connect_account(p_account jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.connect_account(p_account) $$;
comment on function public.connect_account(jsonb) is
  'Users: connects a trading account to the farm. The database places it on a VPS, whose agent then logs in.
Request:
- platform (text; required; a platform of the setting platforms, such as paper, mt5, mt4 or ctrader): platform of the
  account
- server (text; required; a server listed in broker_servers): broker''s server, compared without case and blanks
- login (text; required; at most 100 characters): login at the broker
- password (text; required where the platform requires one; at most 1000 characters): trading password, kept in Vault
- name (text; at most 100 characters): name of the account for the user; left out: login and server
- mode (text; hedging or netting): position per trade, or one per symbol; left out: hedging
- currency (text; 2 to 10 capital letters or digits): currency of the account, until its agent reports it; left out: USD
- settings (object; at most 16 kB, 6 levels and 500 keys; no address, host, port or token): settings for the platform
- initial_balance (number; above 0 and below 1e15): what the account began with, for protection rules; left out or null:
  the first balance that is known
- user_id (uuid; required with the service key): the user that the account is for; ignored for other callers
- vps_id (uuid): only operators and the service key: VPS to place it on; null is refused
Answer:
- account_id (uuid): the new account
- vps_id (uuid or null): VPS that it was placed on; null: it is placed as soon as a VPS can take it
Errors: TC001 TC105 TC107 TC108 TC202 TC203 TC204 TC207 TC220 TC222 TC223 TC301 TC303
Example: {"platform": "mt5", "server": "Broker-Demo", "login": "51234567", "password": "trading password", "name":
  "Master"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201"}';

create function public.assign_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.assign_account(p_request) $$;
comment on function public.assign_account(jsonb) is
  'Users and operators: places an account on a VPS. If no VPS is requested, an account on a healthy VPS stays there.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- vps_id (uuid): only operators and the service key: VPS to place it on
Answer:
- account_id (uuid): the account
- vps_id (uuid): the VPS that works it now
- epoch (integer): number of the assignment, which grows with each move
- begins_at (time): from when on its agent may trade
Errors: TC001 TC105 TC106 TC107 TC108 TC206 TC207 TC225 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "epoch": 3,
"begins_at": "2026-12-01T09:30:00.000000Z"}';

create function public.update_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.update_account(p_request) $$;
comment on function public.update_account(jsonb) is
  'Users: changes name, password or settings of an account. A new password or new settings are tried at once.
Request:
- account_id (uuid; required): account of the caller
- name (text; at most 100 characters): new name; left out or null: unchanged
- password (text; 1 to 1000 characters): new trading password; left out or null: unchanged
- settings (object; at most 16 kB, 6 levels and 500 keys; no address, host, port or token): replaces all settings; left
  out or null: unchanged
- initial_balance (number; above 0 and below 1e15): what the account began with, for protection rules; left out or null:
  unchanged
Answer:
- account_id (uuid): the account
Errors: TC001 TC105 TC106 TC108 TC203 TC222 TC223 TC225 TC301 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "password": "new trading password"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}';

create function public.remove_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.remove_account(p_request) $$;
comment on function public.remove_account(jsonb) is
  'Users: disconnects an account and deletes its password. Its history is kept; its positions at the broker stay open.
Request:
- account_id (uuid; required): account of the caller that no copier uses
Answer:
- account_id (uuid): the account that was removed
Errors: TC001 TC105 TC106 TC108 TC205 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"} -> {"account_id":
  "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}';
grant execute on function
  private.connect_account(jsonb),
  public.connect_account(jsonb),
  private.assign_account(jsonb),
  public.assign_account(jsonb),
  private.update_account(jsonb),
  public.update_account(jsonb),
  private.remove_account(jsonb),
  public.remove_account(jsonb)
to authenticated, service_role;

-- users/broker_server.sql
-- Functions by which operators manage broker servers.

-- Security definer: nothing else may write broker_servers.
create function private.save_broker_server(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_platform text;
  v_server text;
  v_address text;
  v_known public.broker_servers;
  v_wants_address boolean;
  v_before text;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'save_broker_server', array['platform', 'server', 'title', 'address']);
  v_platform := private.name_of(p_request, 'platform', 50);
  v_server := private.name_of(p_request, 'server', 100);
  if v_platform is null or v_server is null then
    raise exception using errcode = 'TC001', message = 'save_broker_server: platform and server are required';
  end if;
  v_wants_address := coalesce((private.platform_rules(v_platform) -> 'address') = 'true', false);
  v_known := private.broker_server(v_platform, v_server);
  v_before := v_known.address;
  v_address := coalesce(private.text_of(p_request, 'address', 260), case when v_wants_address then v_known.address end);
  if v_address is null and v_wants_address or not private.is_address(v_address) then
    raise exception using errcode = 'TC303',
      message = format('save_broker_server: address is %s, but must be host:port with a port from 1 to 65535',
      coalesce(v_address, 'missing')),
        hint = 'Give the address at which agents reach the broker, such as 127.0.0.1:7000.';
  elsif v_address is not null and not v_wants_address then
    raise exception using errcode = 'TC303',
      message = format('save_broker_server: address is given, but %s finds its servers by name', v_platform),
      hint = 'Leave the address out.';
  end if;
  insert into public.broker_servers as b (platform, server, title, address)
  values (v_platform, coalesce(v_known.server, v_server),
    coalesce(private.name_of(p_request, 'title', 100), v_known.title, left(v_server, 100)), v_address)
  on conflict (platform, server) do update set title = excluded.title, address = excluded.address
  returning b.* into v_known;
  if v_known.address is distinct from v_before then
    perform private.readdress(v_platform, v_known.server_key);
  end if;
  return jsonb_build_object('platform', v_platform, 'server', v_known.server, 'title', v_known.title, 'address',
    v_known.address);
end
$$;
comment on function private.save_broker_server(jsonb) is
  'Operators: {"platform", "server", "title"?, "address"?} -> the row; lists a server, or changes its title or '
  'address.';

-- Security definer: it writes broker_servers.
create function private.remove_broker_server(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_server public.broker_servers;
  v_accounts bigint;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'remove_broker_server', array['platform', 'server']);
  v_server := private.require_broker_server('remove_broker_server', private.name_of(p_request, 'platform', 50),
    private.name_of(p_request, 'server', 200));
  select count(*) into v_accounts from public.trading_accounts a
  where a.platform = v_server.platform and a.server_key = v_server.server_key and a.removed_at is null;
  if v_accounts > 0 then
    raise exception using errcode = 'TC221',
      message = format('remove_broker_server: %s accounts are connected to %s', v_accounts, v_server.server),
      hint = 'Their users must remove them first. To move the broker, give its new address to save_broker_server.';
  end if;
  delete from public.broker_servers b where b.platform = v_server.platform and b.server = v_server.server;
  return jsonb_build_object('platform', v_server.platform, 'server', v_server.server);
end
$$;
comment on function private.remove_broker_server(jsonb) is
  'Operators: {"platform", "server"} -> {"platform", "server"}; refused while accounts are connected to it.';

-- Security definer: users may not read addresses.
create function private.list_broker_servers(p_request jsonb) returns jsonb
language plpgsql stable security definer
set search_path = ''
as $$
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'list_broker_servers', '{}');
  return jsonb_build_object('servers', (select coalesce(jsonb_agg(jsonb_build_object(
      'platform', b.platform, 'server', b.server, 'title', b.title, 'address', b.address,
      'accounts', (select count(*) from public.trading_accounts a
                   where a.platform = b.platform and a.server_key = b.server_key and a.removed_at is null))
                     order by b.platform, b.server), '[]')
    from public.broker_servers b));
end
$$;
comment on function private.list_broker_servers(jsonb) is
  'Operators: {} -> {"servers": […]}, with addresses and the number of connected accounts.';

create function public.save_broker_server(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.save_broker_server(p_request) $$;
comment on function public.save_broker_server(jsonb) is
  'Operators: lists a server that accounts may connect to, or changes its title or address.
Request:
- platform (text; required; a platform of the setting platforms): platform of the server
- server (text; required; at most 100 characters): broker''s server, as the platform names it
- title (text; at most 100 characters): name that people know it by; left out: unchanged, or the server''s name
- address (text; required where the platform requires one and none is stored; host:port with a port from 1 to 65535):
  address for agents; refused where the platform finds servers by name
Answer:
- platform (text): the platform
- server (text): the server, as listed
- title (text): its title
- address (text or null): its address
Errors: TC001 TC107 TC301 TC303
Example: {"platform": "mt5", "server": "Broker-Demo", "title": "The broker, practice"}
-> {"platform": "mt5", "server": "Broker-Demo", "title": "The broker, practice", "address": null}';

create function public.remove_broker_server(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.remove_broker_server(p_request) $$;
comment on function public.remove_broker_server(jsonb) is
  'Operators: removes a server from the list, if no account is connected to it.
Request:
- platform (text; required; a platform): platform of the server
- server (text; required; a listed server): the server to remove
Answer:
- platform (text): the platform
- server (text): the server that was removed
Errors: TC001 TC107 TC220 TC221 TC301
Example: {"platform": "mt5", "server": "Broker-Demo"} -> {"platform": "mt5", "server": "Broker-Demo"}';

create function public.list_broker_servers(p_request jsonb) returns jsonb
language sql stable
set search_path = ''
as $$ select private.list_broker_servers(p_request) $$;
comment on function public.list_broker_servers(jsonb) is
  'Operators: the servers that accounts may connect to, with addresses and numbers of accounts.
Request: none
Answer:
- servers (list of objects): sorted by platform and name
- servers[].platform, server, title (text): the server, and the name that people know it by
- servers[].address (text or null): address for agents; null: the platform finds the server by its name
- servers[].accounts (integer): number of connected accounts
Errors: TC001 TC107 TC301
Example: {}
-> {"servers": [{"platform": "mt5", "server": "Broker-Demo", "title": "The broker, practice", "address": null,
  "accounts": 3}]}';
grant execute on function
  private.save_broker_server(jsonb), public.save_broker_server(jsonb),
  private.remove_broker_server(jsonb), public.remove_broker_server(jsonb),
  private.list_broker_servers(jsonb), public.list_broker_servers(jsonb)
to authenticated, service_role;

-- users/copier.sql
-- Functions by which users manage copiers. Functions that plan set the planner's settings: a
-- connection keeps the first plan of each statement, and planning these statements costs more than running them.

-- Creates a copier, or with "id" changes the columns given: {"master_account_id", "follower_account_id", any column of
-- copiers, "symbols": {"MASTER": "FOLLOWER"}} -> {"copier_id", "warnings"}
create function private.save_copier(p_copier jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_user uuid := private.require_user();
  v_new public.copiers;
  v_now timestamptz;
  v_unknown text;
  v_rule text;
  v_made boolean := not p_copier ? 'id';
begin
  if jsonb_typeof(p_copier) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_copier: the copier must be an object',
      hint = 'See docs/protocol.md.';
  end if;
  select left(string_agg(k, ', '), 200) into v_unknown from jsonb_object_keys(p_copier) k
  where k <> 'symbols' and k not in (select attname from pg_catalog.pg_attribute
    where attrelid = 'public.copiers'::regclass and attnum > 0
    and attname not in ('user_id', 'started_at', 'existing_until', 'created_at', 'updated_at', 'removal',
      'removed_at'));
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_copier: unknown setting: %s', v_unknown),
      hint = 'The settings are the columns of the table copiers.';
  end if;
  perform private.refuse_long_lists(p_copier);
  perform private.refuse_bad_values(p_copier);
  if p_copier ? 'id' then
    select c.master_account_id, c.follower_account_id into v_new.master_account_id, v_new.follower_account_id
    from public.copiers c
    where c.id = private.uuid_of(p_copier, 'id') and c.user_id = v_user and c.removed_at is null;
    if v_new.master_account_id is null then
      raise exception using errcode = 'TC106',
        message = format('save_copier: copier %s does not exist or is not yours', left(p_copier ->> 'id', 100)),
        hint = 'Check the id, or leave it out to make a new copier.';
    end if;
    perform private.refuse_leaving((p_copier ->> 'id')::uuid);
    foreach v_unknown in array array['master_account_id', 'follower_account_id'] loop
      if p_copier ? v_unknown and private.uuid_of(p_copier, v_unknown)::text <> to_jsonb(v_new) ->> v_unknown then
        raise exception using errcode = 'TC303',
          message = format('save_copier: %s of a copier does not change', v_unknown),
          hint = 'Remove this copier and make a new one.';
      end if;
    end loop;
    p_copier := p_copier - 'master_account_id' - 'follower_account_id';
  else
    v_new.master_account_id := private.uuid_of(p_copier, 'master_account_id');
    v_new.follower_account_id := private.uuid_of(p_copier, 'follower_account_id');
    p_copier := p_copier - 'id';
  end if;
  if v_new.master_account_id = v_new.follower_account_id then
    raise exception using errcode = 'TC305',
      message = format('save_copier: account %s cannot follow itself', v_new.master_account_id),
      hint = 'Choose two different accounts.';
  end if;
  if v_made or p_copier ? 'symbols' then
    perform private.hold_user(v_user);
  end if;
  v_now := private.lock_accounts(array[v_new.master_account_id, v_new.follower_account_id]);
  if (select count(*) from public.trading_accounts a where a.id in (v_new.master_account_id, v_new.follower_account_id)
      and a.user_id = v_user and a.removed_at is null) <> 2 then
    raise exception using errcode = 'TC106',
      message = 'save_copier: the master or the follower account does not exist or is not yours',
      hint = 'Connect both accounts first.';
  end if;
  begin
    if not p_copier ? 'id' then
      perform private.refuse_cycle(v_new.master_account_id, v_new.follower_account_id);
      insert into public.copiers (user_id, master_account_id, follower_account_id, started_at, created_at)
      values (v_user, v_new.master_account_id, v_new.follower_account_id, v_now, v_now) returning id into v_new.id;
      p_copier := p_copier || jsonb_build_object('id', v_new.id);
    end if;
    -- read after the lock, so that concurrent changes to other columns are kept
    select * into v_new from public.copiers c where c.id = (p_copier ->> 'id')::uuid;
    v_new := jsonb_populate_record(v_new, p_copier - 'symbols');
    perform private.refuse_contradictions(p_copier, v_new);
    perform private.refuse_contradicting_levels(p_copier, v_new);
    update public.copiers set name = v_new.name, mode = v_new.mode, sizing_mode = v_new.sizing_mode,
      sizing_value = v_new.sizing_value,
      contract_alignment = v_new.contract_alignment, min_policy = v_new.min_policy,
        max_risk_coefficient = v_new.max_risk_coefficient,
      max_policy = v_new.max_policy, max_lots = v_new.max_lots, max_risk_percent = v_new.max_risk_percent,
        max_leverage = v_new.max_leverage,
      max_leverage_policy = v_new.max_leverage_policy, sanity_factor = v_new.sanity_factor, reverse = v_new.reverse,
        sl_mode = v_new.sl_mode,
      tp_mode = v_new.tp_mode, sl_points = v_new.sl_points, tp_points = v_new.tp_points,
        max_sl_points = v_new.max_sl_points,
      copy_pending = v_new.copy_pending, pending_grace_ms = v_new.pending_grace_ms,
        early_fill_policy = v_new.early_fill_policy,
      copy_existing = v_new.copy_existing, copy_existing_points = v_new.copy_existing_points,
        max_age_ms = v_new.max_age_ms,
      retry_window_s = v_new.retry_window_s, no_money_policy = v_new.no_money_policy,
      delay_min_ms = v_new.delay_min_ms, delay_max_ms = v_new.delay_max_ms,
        lots_jitter_percent = v_new.lots_jitter_percent, max_slippage_points = v_new.max_slippage_points,
      comment = v_new.comment, sides = v_new.sides, symbols_only = v_new.symbols_only,
      symbols_except = v_new.symbols_except, magic_only = v_new.magic_only, magic_except = v_new.magic_except,
      comment_only = v_new.comment_only, comment_except = v_new.comment_except,
        max_open_positions = v_new.max_open_positions,
      max_open_lots = v_new.max_open_lots, max_trades_per_day = v_new.max_trades_per_day, min_equity = v_new.min_equity,
      time_zone = v_new.time_zone, weekdays = v_new.weekdays, open_from = v_new.open_from,
        open_until = v_new.open_until,
      updated_at = clock_timestamp()
    where id = v_new.id;
  exception
    when check_violation or not_null_violation or foreign_key_violation then
      get stacked diagnostics v_rule = constraint_name, v_unknown = column_name;
      perform private.refuse_setting(v_rule, v_unknown, to_jsonb(v_new), left(sqlerrm, 500));
    when unique_violation then
      raise exception using errcode = 'TC304', message = 'save_copier: these two accounts already have a copier',
        hint = 'Change that one instead.';
    when data_exception then
      perform private.refuse_form(p_copier, left(sqlerrm, 500));
  end;
  if jsonb_typeof(p_copier -> 'symbols') = 'object' then
    perform private.save_mappings(v_user, v_new.id, p_copier -> 'symbols');
  end if;
  perform private.replan_copier(v_new.id, v_now);
  if v_made then
    perform private.copy_existing(v_new, v_now);
  end if;
  return jsonb_build_object('copier_id', v_new.id, 'warnings',
    private.settings_warnings(v_new) || private.mapping_warnings(v_new));
end $$;

-- Makes the copier's mappings equal to these. Only changed rows are written, because each goes to the audit log.
create function private.save_mappings(p_user uuid, p_copier uuid, p_symbols jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  delete from public.symbol_mappings y where y.copier_id = p_copier
    and y.master_key <> all (array(select upper(btrim(k)) from jsonb_object_keys(p_symbols) k));
  insert into public.symbol_mappings as y (user_id, copier_id, master_symbol, follower_symbol, lots_factor, mode)
  select p_user, p_copier, coalesce((private.symbol_named(c.master_account_id, m.master)).name, m.master),
    coalesce((private.symbol_named(c.follower_account_id, m.follower)).name, m.follower),
    coalesce(m.lots_factor, before.lots_factor, 1), coalesce(m.mode, before.mode, 'on')
  from private.mappings_in(p_symbols) m
  join public.copiers c on c.id = p_copier
  left join public.symbol_mappings before on before.copier_id = p_copier and before.master_key = upper(m.master)
  on conflict (copier_id, master_key) do update set master_symbol = excluded.master_symbol,
    follower_symbol = excluded.follower_symbol, lots_factor = excluded.lots_factor, mode = excluded.mode
    where (y.master_symbol, y.follower_symbol, y.lots_factor, y.mode) is distinct from
      (excluded.master_symbol, excluded.follower_symbol, excluded.lots_factor, excluded.mode);
end $$;

-- Refuses lists that are too long, by name, before anything iterates over them.
create function private.refuse_long_lists(p_copier jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_long record;
begin
  for v_long in
    select e.key, case jsonb_typeof(e.value) when 'array' then jsonb_array_length(e.value)
      else (select count(*) from jsonb_object_keys(e.value)) end as entries,
      case when e.key = 'weekdays' then 7 else private.list_max() end as most
    from jsonb_each(p_copier) e where jsonb_typeof(e.value) in ('array', 'object')
  loop
    if v_long.entries > v_long.most then
      raise exception using errcode = 'TC303',
        message = format('save_copier: %s has %s entries, but must have at most %s',
          v_long.key, v_long.entries, v_long.most),
        hint = case when v_long.key = 'symbols'
          then 'Map only symbols whose names differ in more than the broker''s prefix and suffix.'
          else 'Use fewer entries: * stands for any text.' end;
    end if;
  end loop;
  select e.key, l.entry #>> '{}' as entry into v_long from jsonb_each(p_copier) e
  cross join lateral jsonb_array_elements(case jsonb_typeof(e.value) when 'array'
    then e.value else '[]' end) as l (entry)
  where jsonb_typeof(l.entry) = 'string' and length(l.entry #>> '{}') > private.entry_max() limit 1;
  if found then
    raise exception using errcode = 'TC303',
      message = format('save_copier: %s holds an entry of %s characters (%s...), but an entry must have at most %s',
        v_long.key, length(v_long.entry), left(v_long.entry, 20), private.entry_max()),
      hint = 'Shorten it: * stands for any text.';
  end if;
  if jsonb_typeof(p_copier -> 'symbols') = 'object' then
    select s.name into v_long from jsonb_each(p_copier -> 'symbols') e
    cross join lateral (values (e.key), (private.mapped_to(e.value))) as s (name)
    where length(s.name) > 64 limit 1;
    if found then
      raise exception using errcode = 'TC303',
        message = format('save_copier: symbols names a symbol of %s characters (%s...), but a name must have at most '
          '64',
          length(v_long.name), left(v_long.name, 20)),
        hint = 'Give the names as the brokers list them.';
    end if;
  end if;
end $$;

-- Refuses values for which a CHECK would give no clear message: text in place of a number, unknown time zones.
create function private.refuse_bad_values(p_copier jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_field record;
begin
  for v_field in
    select e.key, e.value from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
      and a.atttypid = 'numeric'::regtype
    where jsonb_typeof(e.value) <> 'null' and not coalesce(private.is_number(e.value), false)
  loop
    raise exception using errcode = 'TC302', message = format('save_copier: %s is not a number', v_field.key),
      hint = 'Numbers are decimal strings such as "0.5".';
  end loop;
  if p_copier ? 'time_zone' and not private.is_time_zone(p_copier ->> 'time_zone') then
    raise exception using errcode = 'TC303',
      message = format('save_copier: time_zone is %s, but there is no such time zone',
      left(p_copier ->> 'time_zone', 100)),
      hint = 'Zones are named like Europe/Berlin, America/New_York or UTC.';
  end if;
  if not private.is_plain(p_copier ->> 'name') or not private.is_plain(p_copier ->> 'comment') then
    raise exception using errcode = 'TC303',
      message = format('save_copier: %s holds a control character or a mark of writing direction',
        case when private.is_plain(p_copier ->> 'name') is false then 'name' else 'comment' end),
      hint = 'Type it by hand: the pasted text contains invisible characters.';
  end if;
  -- also text that Postgres would read as a list, such as "{a,b}": its entries would not be checked
  for v_field in
    select e.key, e.value, a.atttypid as type from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
      and a.atttypid in ('text[]'::regtype, 'integer[]'::regtype)
    where jsonb_typeof(e.value) not in ('array', 'null')
  loop
    raise exception using errcode = 'TC302',
      message = format('save_copier: %s is %s, but must be a list of %s', v_field.key, left(v_field.value::text, 100),
        case when v_field.type = 'text[]'::regtype
          then 'texts such as ["EURUSD"]' else 'whole numbers such as [1, 2]' end),
      hint = 'An empty list, [], is no filter.';
  end loop;
  -- an entry that is not text, or cannot be a magic number, would match nothing: the filter would let through
  -- everything or nothing
  for v_field in
    select e.key, l.entry from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
      and a.atttypid = 'text[]'::regtype
    cross join lateral jsonb_array_elements(case jsonb_typeof(e.value) when 'array'
      then e.value else '[]' end) as l (entry)
    where not coalesce(case when e.key like 'magic%'
      then jsonb_typeof(l.entry) in ('string', 'number') and (l.entry #>> '{}') ~ '^-?[0-9]{1,20}$'
      else jsonb_typeof(l.entry) = 'string'
        and length(l.entry #>> '{}') between case when e.key like 'comment%' then 0 else 1 end and 100 end, false)
  loop
    raise exception using errcode = 'TC302',
      message = format('save_copier: %s holds %s, but must be a list of %s', v_field.key,
        left(v_field.entry::text, 100), case when v_field.key like 'magic%'
          then 'whole numbers such as ["42"]' else 'texts of up to 100 characters such as ["EURUSD"]' end),
      hint = 'An empty list is no filter.';
  end loop;
  if coalesce(jsonb_typeof(p_copier -> 'symbols'), 'null') not in ('null', 'object')
    or jsonb_typeof(p_copier -> 'symbols') = 'object' and exists (
    select 1 from jsonb_each(p_copier -> 'symbols') e
    where private.mapped_to(e.value) is null or length(btrim(private.mapped_to(e.value))) not between 1 and 64
      or length(btrim(e.key)) not between 1 and 64 or not private.is_plain(btrim(e.key))
        or not private.is_plain(btrim(private.mapped_to(e.value)))) then
    raise exception using errcode = 'TC302',
      message = 'save_copier: symbols must name a symbol of the follower for each of the master''s',
      hint = 'For example {"GOLD": "XAUUSD"}, or {"GOLD": {"to": "XAUUSD", "lots_factor": "0.5", "mode": "on"}}.';
  end if;
  perform private.refuse_bad_mappings(p_copier -> 'symbols');
end $$;

-- Refuses a copier that would complete a circle; copiers that are off count too. The caller holds the user's lock
-- (copier/quota.sql), so two calls cannot complete a circle together: copiers only connect accounts of one user.
create function private.refuse_cycle(p_master uuid, p_follower uuid) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if exists (
    with recursive downstream (id) as (
      select p_follower
      union
      select c.follower_account_id from downstream d
      join public.copiers c on c.master_account_id = d.id and c.removed_at is null
    )
    select 1 from downstream where id = p_master
  ) then
    raise exception using errcode = 'TC305',
      message = 'save_copier: the follower''s trades already reach the master, directly or through other copiers',
      detail = 'Such a circle would copy its own copies for ever.', hint = 'Remove a copier of the circle first.';
  end if;
end $$;

-- {"copier_id", "mode": "on|monitor|off"} -> {"copier_id", "mode"}
create function private.set_copier_mode(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_copier public.copiers;
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'set_copier_mode', array['copier_id', 'mode']);
  if coalesce(p_request ->> 'mode', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303',
      message = format('set_copier_mode: mode is %s, but must be on, monitor or off',
      coalesce(left(p_request ->> 'mode', 100), 'missing')),
      hint = 'off freezes open copies; on and monitor keep them in step with the master.';
  end if;
  select * into v_copier from public.copiers c
  where c.id = v_id and (c.user_id = v_user or private.is_operator()) and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106',
      message = format('set_copier_mode: copier %s does not exist or is not yours', v_id),
      hint = 'Check the id.';
  end if;
  perform private.refuse_leaving(v_copier.id);
  v_now := private.lock_accounts(array[v_copier.master_account_id, v_copier.follower_account_id]);
  update public.copiers set mode = p_request ->> 'mode', updated_at = clock_timestamp() where id = v_copier.id;
  perform private.replan_copier(v_copier.id, v_now);
  return jsonb_build_object('copier_id', v_copier.id, 'mode', p_request ->> 'mode');
end $$;

create function public.save_copier(p_copier jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_copier(p_copier) $$;
comment on function public.save_copier(jsonb) is
  'Users: makes a copier, or changes one. Columns that are left out keep their value, or get their default if it is new.
Request:
- id (uuid): copier of the caller to change; left out: a new one
- master_account_id (uuid; required for a new copier): account of the caller whose trades are copied; cannot be changed
  later
- follower_account_id (uuid; required for a new copier): account of the caller that copies; cannot be changed later
- symbols (object; at most 500 symbols, names of 1 to 64 characters): name at the follower for each name at the master,
  or {"to": name, "lots_factor": 0.01 to 100, "mode": on, closes_only or off}, where lots_factor and mode left out keep
  their value (1 and on if new); upper and lower case and surrounding blanks are the same; replaces all mappings; left
  out or null: unchanged
- (any other column of copiers): a setting; the table of copiers in docs/api.md lists them
Answer:
- copier_id (uuid): the copier
- warnings (list of texts): settings that are allowed but may surprise, and mapped names that an account does not have
  with the nearest ones, one sentence each
Errors: TC001 TC105 TC106 TC108 TC227 TC301 TC302 TC303 TC304 TC305 TC306 TC307 TC330 TC331
Example: {"master_account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "follower_account_id":
  "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02",
"name": "Gold at half size", "sizing_mode": "multiplier", "sizing_value": "0.5", "max_lots": "5", "symbols": {"GOLD":
"XAUUSD"}}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "warnings": []}';

create function public.set_copier_mode(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_copier_mode(p_request) $$;
comment on function public.set_copier_mode(jsonb) is 'Users and operators: switches a copier: on, monitor or off.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- mode (text; required; on, monitor or off): on copies; monitor follows closes only; off is frozen, closes included
Answer:
- copier_id (uuid): the copier
- mode (text; on, monitor or off): the new mode
Errors: TC001 TC105 TC106 TC108 TC227 TC301 TC303 TC307
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "monitor"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "monitor"}';

revoke all on function public.save_copier(jsonb), public.set_copier_mode(jsonb) from public, anon;
grant execute on function public.save_copier(jsonb), public.set_copier_mode(jsonb), private.save_copier(jsonb),
  private.set_copier_mode(jsonb) to authenticated;

-- users/copier_settings.sql
-- Messages about a copier's settings: which value is wrong and what is allowed, which settings contradict each other,
-- and which may surprise.

-- Raises the error for a broken rule of copiers (TC303; TC306 if it is about several settings): the settings, their
-- values, and the rule's words (the comments on the constraints).
create function private.refuse_setting(p_constraint text, p_column text, p_copier jsonb, p_error text) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_settings text[];
  v_values text;
  v_words text;
begin
  select array_agg(a.attname::text order by a.attnum), obj_description(k.oid, 'pg_constraint') into v_settings, v_words
  from pg_catalog.pg_constraint k join pg_catalog.pg_attribute a on a.attrelid = k.conrelid
    and a.attnum = any (k.conkey)
  where k.conrelid = 'public.copiers'::regclass and k.conname = p_constraint group by k.oid;
  if v_settings is null then
    v_settings := array[coalesce(nullif(p_column, ''), 'a setting')];
    v_words := case when p_column <> '' then 'must have a value' end;
  end if;
  select string_agg(format('%s is %s', s, left(coalesce(p_copier ->> s, 'null'), 100)), ' and ') into v_values
  from unnest(v_settings) s;
  raise exception using errcode = case when cardinality(v_settings) > 1 then 'TC306' else 'TC303' end,
    message = format('save_copier: %s, but %s', v_values, coalesce(v_words, 'that is not allowed: ' || p_error)),
    hint = case when cardinality(v_settings) > 1 then 'Change one of them.' else 'Choose another value.' end;
end $$;

-- Raises TC302 for a value of the wrong form, with the form that it must have.
create function private.refuse_form(p_copier jsonb, p_error text) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_setting record;
begin
  for v_setting in
    select e.key, e.value, a.atttypid as type from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
  loop
    begin
      perform jsonb_populate_record(null::public.copiers, jsonb_build_object(v_setting.key, v_setting.value));
    exception when data_exception then
      raise exception using errcode = 'TC302',
        message = format('save_copier: %s is %s, but must be %s', v_setting.key, left(v_setting.value::text, 100),
        case v_setting.type when 'integer'::regtype then 'a whole number below 2147483648' when 'boolean'::regtype
          then 'true or false'
          when 'time'::regtype then 'a time of day such as "08:30"' when 'text[]'::regtype
            then 'a list of texts such as ["EURUSD"]'
          when 'integer[]'::regtype then 'a list of whole numbers such as [1, 2]' else 'of another form' end),
        hint = 'Give it in that form, or leave it out.';
    end;
  end loop;
  raise exception using errcode = 'TC302', message = 'save_copier: a value has the wrong form: ' || p_error,
    hint = 'Numbers are decimal strings such as "0.5".';
end $$;

-- Raises TC306 if an entry of one list is excluded by another: it could never be copied. p_given: the keys of the
-- request; lists that are not in it were checked before.
create function private.refuse_contradictions(p_given jsonb, p_copier public.copiers) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_pair record;
begin
  for v_pair in
    select x.only_name, x.except_name, private.listed(array_agg(w order by n)) as both_name
    from (values ('symbols_only', 'symbols_except', p_copier.symbols_only, p_copier.symbols_except),
      ('magic_only', 'magic_except', p_copier.magic_only, p_copier.magic_except),
      ('comment_only', 'comment_except', p_copier.comment_only, p_copier.comment_except)) x (only_name, except_name,
        wanted, unwanted)
    cross join lateral (select private.compiled(x.unwanted) as unwanted offset 0) c
    cross join lateral unnest(x.wanted) with ordinality as u (w, n)
    -- a pattern is covered by a wider one: EUR* by *, EURUSD by EUR*
    where p_given ?| array[x.only_name, x.except_name]
      and case when x.only_name = 'magic_only' then w = any (x.unwanted) else private.matches(w, c.unwanted) end
    group by 1, 2
  loop
    raise exception using errcode = 'TC306',
      message = format('save_copier: %s of %s is excluded by %s', v_pair.both_name, v_pair.only_name,
        v_pair.except_name),
      hint = 'Remove it from one of the two.';
  end loop;
end $$;

-- Warnings about settings that are allowed but may surprise, a list with one sentence each.
create function private.settings_warnings(p_copier public.copiers) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_warnings text[] := '{}';
  v_small text;
begin
  if p_copier.max_lots is not null then
    select string_agg(x.name, ', ') into v_small from (
      select s.name from public.account_symbols s
      where s.account_id = p_copier.follower_account_id and s.lots_min > p_copier.max_lots order by s.name limit 5) x;
    if v_small is not null then
      v_warnings := v_warnings ||
        format('max_lots is %s, below the smallest volume of %s: nothing of it will be copied.',
        private.plain(p_copier.max_lots), v_small);
    end if;
    if p_copier.sizing_mode = 'fixed' and p_copier.sizing_value > p_copier.max_lots then
      v_warnings := v_warnings ||
        format('sizing_value is %s fixed lots and max_lots %s: every copy is cut to max_lots.',
        private.plain(p_copier.sizing_value), private.plain(p_copier.max_lots));
    end if;
  end if;
  if p_copier.sizing_mode = 'risk_percent' and p_copier.sizing_value > p_copier.max_risk_percent then
    v_warnings := v_warnings ||
      format('sizing_value is %s %% of risk and max_risk_percent %s %%: every copy is cut to max_risk_percent.',
      private.plain(p_copier.sizing_value), private.plain(p_copier.max_risk_percent));
  end if;
  if '*' = any (p_copier.symbols_except) then
    v_warnings := v_warnings || 'symbols_except has "*": nothing will be opened.'::text;
  end if;
  return to_jsonb(v_warnings);
end $$;

-- users/currency_unit.sql
-- Operators say what a currency without a quote counts as.

-- {"currency", "counts_as", "amount"} -> the same: operators add, change or (counts_as null) remove a row.
create function private.set_currency_unit(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_currency text := upper(private.text_of(p_request, 'currency', 10));
  v_counts_as text := upper(private.text_of(p_request, 'counts_as', 10));
  v_amount numeric := coalesce(private.numeric_of(p_request, 'amount'), 1);
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_currency_unit', array['currency', 'counts_as', 'amount']);
  if coalesce(v_currency, '') !~ '^[A-Z0-9]{2,10}$' or v_counts_as !~ '^[A-Z0-9]{2,10}$' or v_currency = v_counts_as
    or v_amount <= 0 or v_amount > 1000000 then
    raise exception using errcode = 'TC001',
      message = 'set_currency_unit: currency and counts_as are two different codes of 2 to 10 letters and digits, '
        'amount is above 0 and at most 1000000',
      hint = 'For example {"currency": "USDT", "counts_as": "USD", "amount": "1"}; counts_as null removes the row.';
  end if;
  if exists (select from public.currency_units u where u.currency = v_counts_as)
    or v_counts_as is not null and exists (select from public.currency_units u where u.counts_as = v_currency) then
    raise exception using errcode = 'TC001',
      message = format('set_currency_unit: %s counts as %s, but one of them already stands between other currencies',
        v_currency, v_counts_as),
      hint = 'Name the currency that is quoted (USD, EUR, BTC) in counts_as; see the table currency_units.';
  end if;
  if v_counts_as is null then
    delete from public.currency_units where currency = v_currency;
    v_amount := null;
  else
    insert into public.currency_units as u (currency, counts_as, amount) values (v_currency, v_counts_as, v_amount)
    on conflict (currency) do update set counts_as = excluded.counts_as, amount = excluded.amount, assumed = true;
  end if;
  return jsonb_build_object('currency', v_currency, 'counts_as', v_counts_as, 'amount', private.plain(v_amount));
end $$;

create function public.set_currency_unit(p_request jsonb) returns jsonb
language sql security invoker set search_path = '' as $$ select private.set_currency_unit(p_request) $$;
comment on function public.set_currency_unit(jsonb) is
  'Operators: says what a currency counts as where no broker quotes it, or removes what was said.
Request:
- currency (text; required; 2 to 10 letters or digits): the currency, such as USDT
- counts_as (text; 2 to 10 letters or digits): the currency that it counts as; null or left out: removes the row
- amount (number; above 0, at most 1000000): how many units of it; left out: 1
Answer:
- currency (text): in capital letters
- counts_as (text or null): null: the row was removed
- amount (text or null): how many units
Errors: TC001 TC107 TC301
Example: {"currency": "USDT", "counts_as": "USD", "amount": "0.999"}
-> {"currency": "USDT", "counts_as": "USD", "amount": "0.999"}';
revoke all on function public.set_currency_unit(jsonb) from public, anon;
grant execute on function private.set_currency_unit(jsonb), public.set_currency_unit(jsonb)
to authenticated, service_role;

-- users/drift.sql
-- Drift: what a copier's follower holds but should not, or should hold but does not, as users see it. Nothing here
-- changes a position.

create table private.drift_dismissals (
  copier_id uuid not null references public.copiers (id) on delete cascade,
  kind text not null,
  master_ticket text not null,
  master_kind text not null,
  ticket text not null,
  ticket_kind text not null,
  seen text not null,
  dismissed_at timestamptz not null,
  primary key (copier_id, kind, master_ticket, master_kind, ticket, ticket_kind)
);
comment on table private.drift_dismissals is
  'Drift entries that a user has dismissed; they stay hidden until something about them changes.';
comment on column private.drift_dismissals.seen is
  'state of the difference when it was dismissed; another state is shown';
alter table private.drift_dismissals enable row level security;

create type private.drift as (
  kind text, master_ticket text, ticket text, link_id bigint, symbol text, side text, lots numeric, held_lots numeric,
    target_lots numeric,
  price numeric, price_now numeric, digits integer, reason text, actions text[], adoptable text[], seen text,
    master_kind text, ticket_kind text
);
comment on type private.drift is
  'One difference between what a copier''s follower holds and what it should hold.';

-- The follower's symbol for a trade of the master, chosen as decide() does.
create function private.copied_symbol(p_copier public.copiers, p_symbol text) returns public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_named public.account_symbols;
  v_mapped text;
begin
  select * into v_master from public.account_symbols s
  where s.account_id = p_copier.master_account_id and s.name = p_symbol;
  v_mapped := (private.mapping_of(p_copier.id, p_symbol)).follower_symbol;
  if v_mapped is not null then return private.symbol_named(p_copier.follower_account_id, v_mapped); end if;
  select * into v_named from public.account_symbols s
  where s.account_id = p_copier.follower_account_id and s.name = p_symbol;
  if v_named.contract_size = v_master.contract_size
    and v_named.profit_currency = v_master.profit_currency
    and v_named.trade_mode not in ('close_only', 'disabled') then
    return v_named;
  end if;
  select * into v_follower from public.trading_accounts a where a.id = p_copier.follower_account_id;
  return private.follower_symbol(v_follower, v_master);
end $$;

-- The present price of an open, from the follower's quote or else the master's; null: neither has a fresh one.
create function private.price_now(p_copier public.copiers, p_symbol public.account_symbols, p_master_symbol text,
  p_side text) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  v_since timestamptz := clock_timestamp() - private.setting_s('symbol_quote_max_age_s');
begin
  if p_symbol.quoted_at > v_since then
    return case p_side when 'buy' then p_symbol.ask else p_symbol.bid end;
  end if;
  return (
    select case p_side when 'buy' then s.ask else s.bid end from public.account_symbols s
    where s.account_id = p_copier.master_account_id and s.name = p_master_symbol and s.quoted_at > v_since);
end $$;

-- Whether a live link holds the position, or an execution for it is in flight.
create function private.is_taken(p public.positions) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
      select 1 from private.link_legs g join public.position_links l on l.id = g.link_id and l.state = 'live'
      where g.account_id = p.account_id and g.ticket = p.ticket and g.ticket_kind = p.kind)
    or exists (
      select 1 from public.trade_execution_queue q
      where q.account_id = p.account_id and q.in_flight
        and (q.id = p.tag or q.ticket = p.ticket and private.kind_of(q.action) = p.kind));
end $$;

-- Whether this copier opened a position of the follower for this position of the master.
create function private.is_copy_of(p public.positions, p_copier uuid, p_master_ticket text,
  p_master_kind text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from public.trade_execution_queue q join public.position_links l on l.id = q.link_id
    where q.id = p.tag and q.account_id = p.account_id and l.copier_id = p_copier
      and l.master_ticket = p_master_ticket and l.master_kind = p_master_kind);
end $$;

-- The master's positions that have no live copy, each with the reason.
create function private.missing_copies(p_copier public.copiers, p_netting boolean) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
declare
  m record;
  s public.account_symbols;
  v_side text;
  v_adoptable text[];
  v_held boolean;
begin
  for m in
    select p.*, l.id as link_id, case
        when exists (select from private.symbol_waits w where w.copier_id = p_copier.id
          and w.master_account_id = p.account_id and w.ticket = p.ticket and w.kind = p.kind) then 'symbol_loading'
        when l.id is null then 'existing'
        else l.reason end as why
    from public.positions p
    left join lateral (
      select k.id, k.state, k.reason from public.position_links k
      where k.master_account_id = p.account_id and k.master_ticket = p.ticket and k.master_kind = p.kind
        and k.copier_id = p_copier.id
      order by k.generation desc limit 1
    ) l on true
    where p.account_id = p_copier.master_account_id and p.closed_at is null and coalesce(l.state, 'ended') = 'ended'
      and (p.kind = 'position' or p_copier.copy_pending and not p_netting)
    order by p.first_seen_at, p.ticket
  loop
    s := private.copied_symbol(p_copier, m.symbol);
    v_side := case when (m.side = 'buy') = p_copier.reverse then 'sell' else 'buy' end;
    select coalesce(array_agg(p.ticket order by p.opened_at, p.ticket), '{}'),
      coalesce(bool_or(private.is_copy_of(p, p_copier.id, m.ticket, m.kind)), false)
    into v_adoptable, v_held
    from public.positions p
    where p.account_id = p_copier.follower_account_id and p.closed_at is null and p.kind = 'position'
      and m.kind = 'position'
      and not p_netting and p.symbol = s.name and p.side = v_side and not private.is_taken(p);
    return next row('missing', m.ticket, null, m.link_id, m.symbol, m.side, m.lots, null, null, m.price,
      private.price_now(p_copier, s, m.symbol, v_side), s.digits, case when v_held then 'held_already' else m.why end,
      case when v_held then '{}' else array['copy'] end || case
        when v_adoptable <> '{}' then array['adopt'] else '{}' end || array['dismiss'],
      v_adoptable, concat_ws('|', m.side, m.lots, m.link_id, v_held), m.kind, null)::private.drift;
  end loop;
end $$;

-- Positions that a copier opened, that no link holds any more, and whose master position is closed. Positions that were
-- left to the user (preserve) do not count.
create function private.orphans(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'orphan', coalesce(l.master_ticket, ''), p.ticket, l.id, p.symbol, p.side, p.lots, p.lots, 0::numeric, p.price,
    null::numeric,
    null::integer, 'closed', array['close', 'dismiss'], null::text[], concat_ws('|', p.side, p.lots),
    coalesce(l.master_kind, ''), p.kind
  from public.positions p
  join public.trade_execution_queue q on q.id = p.tag and q.account_id = p.account_id and q.copier_id = p_copier.id
  left join public.position_links l on l.id = q.link_id
  where p.account_id = p_copier.follower_account_id and p.closed_at is null and not p.released
    and not private.is_taken(p)
    and l.reason is distinct from 'master_never_filled'  -- early_fill_policy keep
    and not exists (
      select 1 from public.positions m where m.account_id = l.master_account_id and m.ticket = l.master_ticket
        and m.kind = l.master_kind and m.closed_at is null)
  order by p.ticket;
end $$;

-- Live copies whose size differs from the settings' result when the position was copied: reduced by hand, or an
-- increase that was refused. Not copies with something in flight, nor differences below the follower's minimum.
create function private.size_mismatches(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 'size_mismatch', s.master_ticket, (select min(g.ticket) from private.link_legs g where g.link_id = s.id), s.id,
    m.symbol, m.side,
    m.lots, s.position_lots, t.lots, m.price, private.price_now(p_copier, f, m.symbol, s.side), f.digits,
    case when s.position_lots > t.lots then coalesce(private.frozen_by(p_copier), 'coalesced')
      when s.position_lots < private.target_lots(s.base_lots, m.lots, s.base_master_lots, s.lots_step, s.lots_min, 1e12)
        then 'closed_by_follower'
      else coalesce(s.reason, 'not_copied') end,
    array['copy', 'dismiss'], null::text[], concat_ws('|', s.position_lots, t.lots),
    s.master_kind, 'position'
  from private.link_states s
  join public.positions m on m.account_id = s.master_account_id and m.ticket = s.master_ticket
    and m.kind = s.master_kind and m.closed_at is null and m.kind = 'position'
  join public.account_symbols f on f.account_id = s.follower_account_id and f.name = s.symbol
  cross join lateral (
    select private.target_lots(s.sized_lots, m.lots, s.sized_master_lots, f.lots_step, f.lots_min, 1e12) as lots) t
  where s.follower_account_id = p_copier.follower_account_id and s.state = 'live' and s.copier_id = p_copier.id
    and not s.doomed
    and s.executions = 0 and s.wanted_lots is null and s.base_lots is not null and s.sized_lots is not null
    and (t.lots - s.position_lots >= f.lots_min or s.position_lots - t.lots >= f.lots_min and s.position_lots
      > s.target_lots)
    and not exists (  -- a netting deal in flight may include this link
      select 1 from public.trade_execution_queue q
      where s.account_mode = 'netting' and q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight)
  order by s.id;
end $$;

-- Why not even closes and reductions of a copier can be made now, or null.
create function private.frozen_by(p_copier public.copiers) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select case when private.trading_state() = 'off' then 'trading_stopped' when a.copy_state = 'off' then 'account_off'
      when p_copier.mode = 'off' and p_copier.removal is null then 'copier_off' end
    from public.trading_accounts a where a.id = p_copier.follower_account_id);
end $$;

create function private.drift_of(p_copier public.copiers) returns setof private.drift
language plpgsql stable security definer set search_path = '' as $$
declare
  v_netting boolean := (select a.mode = 'netting' from public.trading_accounts a
    where a.id = p_copier.follower_account_id);
begin
  return query select d.* from private.missing_copies(p_copier, v_netting) d;
  if not v_netting then  -- nobody can tell which part of a net position no link holds
    return query select d.* from private.orphans(p_copier) d;
  end if;
  return query select d.* from private.size_mismatches(p_copier) d;
end $$;

-- The caller's copier, or any copier for an operator; TC106 otherwise.
create function private.require_copier(p_function text, p_request jsonb) returns public.copiers
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  c public.copiers;
begin
  select * into c from public.copiers x
  where x.id = private.uuid_of(p_request, 'copier_id') and (x.user_id = v_user or private.is_operator())
    and x.removed_at is null;
  if c.id is null then
    raise exception using errcode = 'TC106',
      message = format('%s: copier %s does not exist or is not yours', p_function, p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  return c;
end $$;

-- Distance of the present price from the master's in points, always positive; null: unknown.
create function private.distance_points(d private.drift) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return trim_scale(round(abs(d.price_now - d.price) * 10::numeric ^ d.digits, 1));
end $$;

-- {"copier_id", "dismissed": false} -> {"copier_id", "items": […]}, see docs/protocol.md. "dismissed": true also
-- returns dismissed items.
create function private.copier_drift(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers := private.require_copier('copier_drift', p_request);
begin
  perform private.refuse_unknown(p_request, 'copier_drift', array['copier_id', 'dismissed']);
  if coalesce(jsonb_typeof(p_request -> 'dismissed'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'copier_drift: dismissed must be true or false',
      hint = 'See docs/protocol.md.';
  end if;
  return jsonb_build_object('copier_id', c.id, 'items', (
    select coalesce(jsonb_agg(jsonb_build_object('kind', d.kind, 'master_ticket', nullif(d.master_ticket, ''),
      'master_kind', nullif(d.master_kind, ''), 'ticket', d.ticket, 'ticket_kind', d.ticket_kind,
        'symbol', d.symbol, 'side', d.side, 'lots', trim_scale(d.lots)::text, 'held_lots',
          trim_scale(d.held_lots)::text,
        'target_lots', trim_scale(d.target_lots)::text, 'price', trim_scale(d.price)::text, 'price_now',
          trim_scale(d.price_now)::text,
        'distance_points', private.distance_points(d), 'reason', d.reason, 'actions', to_jsonb(d.actions),
        'adoptable', to_jsonb(coalesce(d.adoptable, '{}')), 'dismissed', x.copier_id is not null)), '[]')
    from private.drift_of(c) d
    left join private.drift_dismissals x on x.copier_id = c.id and x.kind = d.kind and x.master_ticket = d.master_ticket
      and x.master_kind = coalesce(d.master_kind, '') and x.ticket = coalesce(d.ticket, '')
      and x.ticket_kind = coalesce(d.ticket_kind, '') and x.seen = d.seen
    where x.copier_id is null or coalesce((p_request ->> 'dismissed')::boolean, false)));
end $$;

create function public.copier_drift(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.copier_drift(p_request) $$;
comment on function public.copier_drift(jsonb) is
  'Users and operators: the differences between what a copier''s follower holds and what it should hold. Nothing is '
  'corrected automatically.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- dismissed (boolean): true also lists dismissed items; left out or null: false
Answer:
- copier_id (uuid): the copier
- items (list of objects): one per difference
- items[].kind (text; missing, orphan or size_mismatch): a position without a copy, a copy without a master, or a copy
  of another size
- items[].master_ticket (text or null): position of the master
- items[].master_kind (text or null; position or order): what the master''s ticket is
- items[].ticket (text or null): position of the follower
- items[].ticket_kind (text or null; position or order): what the follower''s ticket is
- items[].symbol, side, lots (text): of the master''s position; for an orphan, of the follower''s
- items[].held_lots, target_lots (text or null): lots that the copy holds, and lots that it should hold
- items[].price, price_now (text or null): the master''s open price, and the present price of an open
- items[].distance_points (number or null): distance between the two prices
- items[].reason (text): why there is a difference, a reason of docs/errors.md
- items[].actions (list of texts; copy, adopt, close, dismiss): actions that resync_copier accepts for it
- items[].adoptable (list of texts): positions of the follower that can be adopted
- items[].dismissed (boolean): whether it was dismissed
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "items": [{"kind": "missing", "master_ticket": "5001",
  "ticket": null,
"symbol": "EURUSD", "side": "buy", "lots": "1", "held_lots": null, "target_lots": null, "price": "1.1", "price_now":
"1.10042", "distance_points": 42, "reason": "follower_offline", "actions": ["copy", "dismiss"], "adoptable": [],
"dismissed": false}]}';

revoke all on function public.copier_drift(jsonb) from public, anon;
grant execute on function public.copier_drift(jsonb), private.copier_drift(jsonb) to authenticated;

-- users/flat_time.sql
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

-- users/generation.sql
-- The function by which operators declare that a backup was restored.

-- {"highest": "123" | null} -> what it changed. Needed when no agent can tell: every agent was enrolled again, or the
-- backup is older than 10,000,000 executions, beyond which an agent is not believed.
create function private.note_restored(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_highest bigint;
begin
  perform private.require_service();
  perform private.refuse_unknown(p_request, 'note_restored', array['highest']);
  v_highest := private.int_of(p_request, 'highest', 0, 1000000000000000);
  perform private.check_start();
  perform private.lock_generation();
  return private.begin_generation(v_highest, null, 'operator', '{}');
end
$$;
comment on function private.note_restored(jsonb) is
  'Service key: declares that a backup was restored: {"highest"} -> what it changed (see public.note_restored).';

create function public.note_restored(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.note_restored(p_request) $$;
comment on function public.note_restored(jsonb) is
  'Service key: declares that a backup was restored: execution numbers, sessions and epochs jump, trading goes to '
  'monitor, nothing is opened.
Request:
- highest (integer; 0 to 1000000000000000): highest execution number known from elsewhere; left out or null: none
Answer:
- generation (integer): the new generation
- reason (text; operator): who reported it
- last_execution_id_before (text): last execution number of the backup
- highest_execution_id (text or null): the value of highest
- last_execution_id (text): the number after which new ones continue
- accounts (integer): accounts whose session and epoch jumped
- executions (integer): executions whose outcome is now unknown and is looked for
- trading (text; monitor or off): the new state of the trading switch
Errors: TC001 TC109 TC301
Example: {"highest": 52341}
-> {"generation": 2, "reason": "operator", "last_execution_id_before": "51200", "highest_execution_id": "52341",
"last_execution_id": "1052341", "accounts": 14, "executions": 3, "trading": "monitor"}';
grant execute on function private.note_restored(jsonb), public.note_restored(jsonb) to service_role;

-- users/operator.sql
-- Functions for granting operators, and for changing settings.

-- Who would become an operator. An unconfirmed address is refused: anybody may have signed up with it. Security
-- definer: it reads auth.users, which no API role may.
create function private.operator_candidate(p_email text) returns jsonb
language plpgsql stable security definer
set search_path = ''
as $$
declare
  v_email text := left(trim(p_email), 320);
  v_found bigint;
  v_user record;
begin
  perform private.require_service();
  select count(*) into v_found from auth.users u where lower(u.email) = lower(v_email);
  select u.id, u.email, u.created_at, u.email_confirmed_at into v_user from auth.users u
  where lower(u.email) = lower(v_email);
  if v_found = 0 then
    raise exception using errcode = 'TC201', message = format('there is no user with the e-mail address %s', v_email),
      hint = 'Sign up first, then grant.';
  end if;
  -- single sign-on may add a second user with the same address
  if v_found > 1 then
    raise exception using errcode = 'TC218',
      message = format('there are %s users with the e-mail address %s', v_found, v_email),
      hint = 'In Auth, delete the user that is not meant, or give it another address.';
  end if;
  if exists (select from public.vps_instances v where v.user_id = v_user.id) then
    raise exception using errcode = 'TC105', message = 'an agent cannot be an operator',
      hint = 'Use the e-mail address of a person.';
  end if;
  if v_user.email_confirmed_at is null then
    raise exception using errcode = 'TC217',
      message = format('the e-mail address %s is not confirmed: anybody may have signed up with it', v_email),
      detail = v_user.id::text, hint = 'Let its owner open the link in the confirmation mail, then grant again.';
  end if;
  return jsonb_build_object('user_id', v_user.id, 'email', v_user.email, 'signed_up_at', v_user.created_at,
    'confirmed_at', v_user.email_confirmed_at,
    'operator', exists (select from public.operators o where o.user_id = v_user.id));
end
$$;
comment on function private.operator_candidate(text) is
  'Who has this e-mail address, and since when; raises what grant_operator raises (TC201, TC105, TC217, TC218). '
  'Service key only.';

-- Security definer: it writes operators, which no API role may.
create function private.grant_operator(p_email text, p_user_id uuid) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user jsonb := private.operator_candidate(p_email);
begin
  if p_user_id <> (v_user ->> 'user_id')::uuid then
    raise exception using errcode = 'TC218',
      message = format('the e-mail address %s belongs to another user than the one that was shown', v_user ->> 'email'),
      detail = v_user ->> 'user_id', hint = 'Check in Auth who it is now, then grant again.';
  end if;
  insert into public.operators (user_id) values ((v_user ->> 'user_id')::uuid) on conflict (user_id) do nothing;
  return v_user || '{"operator": true}';
end
$$;
comment on function private.grant_operator(text, uuid) is
  'Makes the user with this confirmed e-mail address an operator; with an ID, only if the address still belongs to '
  'that user. Service key only.';

create function public.operator_candidate(p_email text) returns jsonb
language sql stable
set search_path = ''
as $$ select private.operator_candidate(p_email) $$;
comment on function public.operator_candidate(text) is
  'Service key: who would become an operator by this e-mail address. Changes nothing.
Request:
- p_email (text; required; a confirmed address of one user who is no agent): the user''s e-mail address; case is ignored
Answer:
- user_id (uuid): the user
- email (text): the address, as given at sign-up
- signed_up_at (time): when the user signed up
- confirmed_at (time): when the address was confirmed
- operator (boolean): whether the user is already an operator
Errors: TC105 TC109 TC201 TC217 TC218
Example: {"p_email": "you@example.org"}
-> {"user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a01", "email": "you@example.org", "signed_up_at":
  "2026-11-30T08:00:00.123456+00:00",
"confirmed_at": "2026-11-30T08:02:00.123456+00:00", "operator": false}';

create function public.grant_operator(p_email text, p_user_id uuid default null) returns jsonb
language sql
set search_path = ''
as $$ select private.grant_operator(p_email, p_user_id) $$;
comment on function public.grant_operator(text, uuid) is
  'Service key: makes the user with this confirmed e-mail address an operator.
Request:
- p_email (text; required; a confirmed address of one user who is no agent): the user''s e-mail address; case is ignored
- p_user_id (uuid): the user that operator_candidate showed; another one is refused; left out or null: not compared
Answer:
- user_id (uuid): the user
- email (text): the address, as given at sign-up
- signed_up_at (time): when the user signed up
- confirmed_at (time): when the address was confirmed
- operator (boolean; true): the user is now an operator
Errors: TC105 TC109 TC201 TC217 TC218
Example: {"p_email": "you@example.org", "p_user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a01"}
-> {"user_id": "e1a4b7c0-2d35-4f68-9a0b-1c2d3e4f5a01", "email": "you@example.org", "signed_up_at":
  "2026-11-30T08:00:00.123456+00:00",
"confirmed_at": "2026-11-30T08:02:00.123456+00:00", "operator": true}';

-- Security definer: nothing else may write system_config. The table's own triggers check the value.
create function private.set_setting(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_key text := p_request ->> 'key';
  v_value jsonb;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_setting', array['key', 'value']);
  perform private.setting(v_key);
  update public.system_config set value = p_request -> 'value' where key = v_key returning value into v_value;
  return jsonb_build_object('key', v_key, 'value', v_value);
end
$$;
comment on function private.set_setting(jsonb) is
  'Operators: {"key", "value"} -> {"key", "value"}; the value must have the setting''s type and be within its range.';

create function public.set_setting(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.set_setting(p_request) $$;
comment on function public.set_setting(jsonb) is
  'Operators: changes a setting of the whole installation. The table system_config lists them with type, range and '
  'meaning.
Request:
- key (text; required; a key of system_config): the setting
- value (number or object; required; of the setting''s type and within its range): the new value, a JSON number without
  quotes
Answer:
- key (text): the setting
- value (number or object): its new value
Errors: TC001 TC107 TC200 TC215 TC301 TC302 TC303
Example: {"key": "lease_s", "value": 20} -> {"key": "lease_s", "value": 20}';
grant execute on function
  private.operator_candidate(text), public.operator_candidate(text),
  private.grant_operator(text, uuid), public.grant_operator(text, uuid)
to service_role;
grant execute on function private.set_setting(jsonb), public.set_setting(jsonb) to authenticated, service_role;

-- users/pause.sql
-- Functions by which users pause or flatten an account.

-- The ID of the caller's account, or of any account for an operator; TC106 otherwise.
create function private.require_account(p_request jsonb) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_account uuid;
begin
  select a.id into v_account from public.trading_accounts a
  where a.id = private.uuid_of(p_request, 'account_id') and (a.user_id = v_user or private.is_operator())
    and a.removed_at is null;
  if v_account is null then
    raise exception using errcode = 'TC106',
      message = format('account %s does not exist or is not yours', p_request ->> 'account_id'),
      hint = 'Check the id.';
  end if;
  return v_account;
end $$;

-- {"account_id", "include_manual": false} -> {"account_id", "copy_state"}. A second call can only change
-- include_manual.
create function private.flatten_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_account uuid := private.require_account(p_request);
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'flatten_account', array['account_id', 'include_manual']);
  if coalesce(jsonb_typeof(p_request -> 'include_manual'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'flatten_account: include_manual must be true or false';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  perform private.start_flattening(v_account, coalesce((p_request ->> 'include_manual')::boolean, false), 'off', null,
    v_now);
  return jsonb_build_object('account_id', v_account, 'copy_state', 'flattening');
end $$;

-- {"account_id", "state": "on|monitor|off"} -> {"account_id", "copy_state"}. monitor: closes only; off: frozen.
create function private.pause_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_account uuid := private.require_account(p_request);
  v_copier uuid;
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'pause_account', array['account_id', 'state']);
  if coalesce(p_request ->> 'state', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'pause_account: state must be on, monitor or off';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  update public.trading_accounts set copy_state = p_request ->> 'state', copy_state_reason = null, flat_snapshots = 0,
    resumes_at = null
  where id = v_account;
  for v_copier in select c.id from public.copiers c
    where c.follower_account_id = v_account and c.removed_at is null loop
    perform private.replan_copier(v_copier, v_now);
  end loop;
  return jsonb_build_object('account_id', v_account, 'copy_state', p_request ->> 'state');
end $$;

create function public.flatten_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.flatten_account(p_request) $$;
comment on function public.flatten_account(jsonb) is
  'Users and operators: closes every copy on an account until it is flat, then switches copying into it off.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- include_manual (boolean): true also closes positions that the user opened by hand; left out or null: false
Answer:
- account_id (uuid): the account
- copy_state (text; flattening): becomes off when the account is flat
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "include_manual": false}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "copy_state": "flattening"}';

create function public.pause_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.pause_account(p_request) $$;
comment on function public.pause_account(jsonb) is
  'Users and operators: switches copying into an account: on, monitor or off.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- state (text; required; on, monitor or off): on copies; monitor follows closes only; off is frozen, closes included
Answer:
- account_id (uuid): the account
- copy_state (text; on, monitor or off): the new state
Errors: TC001 TC105 TC106 TC108 TC301 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "state": "monitor"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "copy_state": "monitor"}';

revoke all on function public.flatten_account(jsonb), public.pause_account(jsonb) from public, anon;
grant execute on function public.flatten_account(jsonb), public.pause_account(jsonb), private.flatten_account(jsonb),
  private.pause_account(jsonb) to authenticated;

-- users/preview.sql
-- preview_copy: users ask the planner's own sizing function how large a copy would be, and why.

-- A copier with default settings: the defaults of the table's sizing columns (a test compares the two).
create function private.default_copier() returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::public.copiers,
    '{"sizing_mode": "multiplier", "sizing_value": 1, "contract_alignment": true,
    "min_policy": "skip", "max_risk_coefficient": 5, "max_policy": "cap", "max_leverage_policy": "discard",
    "sanity_factor": 3,
    "reverse": false}'::jsonb);
end $$;

create function private.symbol_of(p jsonb) returns public.account_symbols
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::public.account_symbols, p);
end $$;

create function private.funds_of(p jsonb) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::private.funds, p);
end $$;

-- Raises TC001 for a wrong word or range in the request's copier, as the table's CHECKs do for a saved one.
create function private.check_sizing_words(c public.copiers) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_wrong text := case
    when (c.sizing_mode = any (private.sizing_modes())) is not true
      then 'sizing_mode must be ' || private.one_of(private.sizing_modes())
    when (c.sizing_value > 0 and c.sizing_value <= case c.sizing_mode when 'risk_percent' then 100 when 'percentage'
      then 100000 else 1000 end) is not true
      then 'sizing_value must be above 0 and at most 1000 (percentage: 100000, risk_percent: 100)'
    when c.min_policy in ('skip', 'force_min') is not true then 'min_policy must be skip or force_min'
    when c.max_policy in ('cap', 'split') is not true then 'max_policy must be cap or split'
    when c.max_leverage_policy in ('discard', 'shrink') is not true then 'max_leverage_policy must be discard or shrink'
    when c.sl_mode in ('price', 'distance', 'fixed', 'none') is false
      then 'sl_mode must be price, distance, fixed or none'
    when c.max_risk_coefficient between 1 and 1000 is not true then 'max_risk_coefficient must be 1 to 1000'
    when c.max_lots <= 0 then 'max_lots must be above 0'
    when c.max_risk_percent <= 0 or c.max_risk_percent > 100 then 'max_risk_percent must be above 0 and at most 100'
    when c.max_leverage <= 0 then 'max_leverage must be above 0' when c.sanity_factor < 1
      then 'sanity_factor must be 1 or more'
    when c.reverse is null or c.contract_alignment is null
      then 'reverse and contract_alignment must be true or false' end;
begin
  if v_wrong is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: copier.' || v_wrong,
      hint = 'See docs/protocol.md for the form of a request.';
  end if;
end $$;

-- Raises TC001 for a value that is not a number (null means unknown, or none) or a wrong word, and TC301 for a setting
-- that copiers do not have.
create function private.check_preview(p_request jsonb) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_wrong text;
begin
  select left(string_agg(format('copier.%s is no setting of a copier', k), '; '), 300) into v_wrong
  from jsonb_object_keys(coalesce(nullif(p_request -> 'copier', 'null'), '{}')) k
  where k not in (select jsonb_object_keys(to_jsonb(private.default_copier())));
  if v_wrong is null then
    select format('%s is %s, but must be a number%s', left(array_to_string(x.path, '.'), 100), left(x.value::text, 60),
      case when x.above then ' above 0' else '' end)
    into v_wrong
    from (
      select array[o.name, f], p_request #> array[o.name, f], false
      from (values ('copier', array['sizing_value', 'max_risk_coefficient', 'max_lots', 'max_risk_percent',
        'max_leverage', 'sanity_factor']),
        ('master', array['balance', 'equity', 'free_margin']), ('follower', array['balance', 'equity', 'free_margin']),
        ('trade', array['sl', 'tp'])) o (name, fields) cross join unnest(o.fields) f
      union all
      select array['follower', 'symbol', f], p_request #> array['follower', 'symbol', f], false
      from unnest(array['bid', 'ask']) f
      union all
      select array[o, 'symbol', f], p_request #> array[o, 'symbol', f], true
      from unnest(array['master', 'follower']) o cross join unnest(array['contract_size', 'tick_size']) f
      union all
      select array['rates', e.key], e.value, false
      from jsonb_each(case jsonb_typeof(p_request -> 'rates') when 'object' then p_request -> 'rates' end) e
    ) x (path, value, above)
    where case when x.value is null or x.value = 'null' and not x.above then false
      when private.is_number(x.value) then x.above and (x.value #>> '{}')::numeric <= 0 else true end
    limit 1;
  end if;
  v_wrong := coalesce(v_wrong, case
    when coalesce(jsonb_typeof(p_request -> 'rates'), 'null') not in ('null', 'object')
      then 'rates must be an object such as {"EURUSD": "1.0850"}'
    when p_request #>> '{trade,side}' not in ('buy', 'sell') then 'trade.side must be buy or sell'
    when greatest((p_request #>> '{follower,symbol,lots_min}')::numeric,
      (p_request #>> '{follower,symbol,lots_step}')::numeric)
      > (p_request #>> '{follower,symbol,lots_max}')::numeric
        then 'follower.symbol: lots_min and lots_step must not be above lots_max' end);
  if v_wrong is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: ' || v_wrong,
      hint = 'Numbers are decimal strings such as "0.5"; null = unknown.';
  end if;
end $$;

-- The answer of preview_copy; TC001 names the field that is missing or malformed. Security definer: the parts that it
-- calls are granted to nobody.
create function private.preview_copy(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_master_symbol public.account_symbols;
  v_follower_symbol public.account_symbols;
  v_trade jsonb := p_request -> 'trade';
  v_mapping jsonb := p_request -> 'mapping';
  v_sizing private.sizing;
  v_field text;
begin
  perform private.refuse_unknown(p_request, 'preview_copy',
    array['copier', 'master', 'follower', 'trade', 'rates', 'mapping']);
  foreach v_field in array array['master', 'follower', 'trade'] loop
    if jsonb_typeof(p_request -> v_field) is distinct from 'object' then
      raise exception using errcode = 'TC001',
        message = format('preview_copy: "%s" is missing or not an object', v_field),
        hint = 'See docs/protocol.md for the form of a request.';
    end if;
  end loop;
  if jsonb_typeof(p_request #> '{follower,symbol}') is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'preview_copy: "follower.symbol" is missing or not an object',
      hint = 'Give at least name, contract_size, digits, tick_size, profit_currency, lots_min, lots_max and lots_step.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'copier'), 'null') not in ('null', 'object')
    or coalesce(jsonb_typeof(p_request #> '{master,symbol}'), 'null') not in ('null', 'object') then
    raise exception using errcode = 'TC001', message = 'preview_copy: "copier" and "master.symbol" must be objects',
      hint = 'See docs/protocol.md for the form of a request.';
  end if;
  foreach v_field in array array['contract_size', 'lots_min', 'lots_max', 'lots_step'] loop
    if not coalesce(private.is_number(p_request #> array['follower', 'symbol', v_field]), false)
      or (p_request #>> array['follower', 'symbol', v_field])::numeric <= 0 then
      raise exception using errcode = 'TC001',
        message = format('preview_copy: "follower.symbol.%s" must be a number above 0', v_field),
        hint = 'Numbers are decimal strings such as "0.01".';
    end if;
  end loop;
  foreach v_field in array array['lots', 'price'] loop
    if not coalesce(private.is_number(v_trade -> v_field), false) or (v_trade ->> v_field)::numeric <= 0 then
      raise exception using errcode = 'TC001',
        message = format('preview_copy: "trade.%s" must be a number above 0', v_field),
        hint = 'Numbers are decimal strings such as "1.00".';
    end if;
  end loop;
  perform private.check_preview(p_request);
  if coalesce(jsonb_typeof(v_mapping), 'null') not in ('null', 'object') then
    raise exception using errcode = 'TC001', message = 'preview_copy: "mapping" must be an object',
      hint = 'For example {"lots_factor": "1", "mode": "on"}.';
  end if;
  v_field := private.mapping_fault(nullif(v_mapping, 'null'), array['lots_factor', 'mode']);
  if v_field is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: "mapping" ' || v_field,
      hint = 'For example {"lots_factor": "1", "mode": "on"}.';
  end if;
  begin
    v_copier := jsonb_populate_record(private.default_copier(), coalesce(nullif(p_request -> 'copier', 'null'), '{}'));
    perform private.check_sizing_words(v_copier);
    v_copier.sizing_value := v_copier.sizing_value * coalesce((v_mapping ->> 'lots_factor')::numeric, 1);
    v_follower_symbol := private.symbol_of(p_request #> '{follower,symbol}');
    v_master_symbol := jsonb_populate_record(private.unquoted(v_follower_symbol),
      coalesce(nullif(p_request #> '{master,symbol}', 'null'), '{}'));
    v_sizing := private.size_order(v_copier, private.funds_of(p_request -> 'master'),
      private.funds_of(p_request -> 'follower'),
      v_master_symbol, v_follower_symbol, coalesce(v_trade ->> 'side', 'buy'), (v_trade ->> 'lots')::numeric,
      (v_trade ->> 'price')::numeric, nullif((v_trade ->> 'sl')::numeric, 0), nullif((v_trade ->> 'tp')::numeric, 0),
      coalesce(nullif(p_request -> 'rates', 'null'), '{}'));
    if v_mapping ->> 'mode' <> 'on' then
      v_sizing := private.no_order('symbol_off', null, '{}',
        array[format('The mapping of the symbol is %s: nothing is opened.', v_mapping ->> 'mode')]);
    end if;
  exception when data_exception or case_not_found then
    raise exception using errcode = 'TC001',
      message = 'preview_copy: a value does not have its documented form: ' || left(sqlerrm, 500),
      hint = 'Numbers are decimal strings; see docs/protocol.md for the allowed words.';
  end;
  return jsonb_build_object('orders', (select coalesce(jsonb_agg(private.plain(o)), '[]'::jsonb)
    from unnest(v_sizing.orders) o),
    'raw_lots', private.plain(v_sizing.raw_lots), 'reason', v_sizing.reason, 'warnings', to_jsonb(v_sizing.warnings),
    'explain', to_jsonb(v_sizing.explain));
end $$;

create function public.preview_copy(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.preview_copy(p_request) $$;
comment on function public.preview_copy(jsonb) is
  'Everybody who is signed in: how large a copy would be, and why, computed by the planner''s own sizing function. '
  'Nothing is stored.
Request:
- copier (object): columns of copiers; those left out have their default
- master (object; required): funds of the master
- master.currency, follower.currency (text): currency of the account; left out: unknown
- master.balance, master.equity, master.free_margin (number): in its currency; left out or null: unknown
- master.symbol (object): columns of account_symbols that differ from the follower''s symbol
- follower (object; required): funds of the follower, and its symbol
- follower.balance, follower.equity, follower.free_margin (number): in its currency; left out or null: unknown
- follower.symbol (object; required): columns of account_symbols
- follower.symbol.contract_size, lots_min, lots_max, lots_step (number; required; above 0): units per lot; smallest and
  largest volume and volume step of an order; lots_min and lots_step at most lots_max
- follower.symbol.name, digits, tick_size, profit_currency (as in account_symbols): without them less can be computed
- follower.symbol.bid, ask (number): its quote, by which leverage and sanity are valued; left out or null: trade.price
- trade (object; required): the master''s trade
- trade.side (text; required; buy or sell): its side
- trade.lots, trade.price (number; required; above 0): its size and its open price
- trade.sl, trade.tp (number): its levels; left out, null or 0: none
- mapping (object): the symbol''s mapping; left out or null: none
- mapping.lots_factor (number; 0.01 to 100): multiplies the size; left out or null: 1
- mapping.mode (text; on, closes_only or off): off and closes_only open nothing (symbol_off); left out or null: on
- rates (object; numbers above 0): exchange rates such as {"EURUSD": "1.0850"}
Answer:
- orders (list of texts): lots of each order; empty if nothing would be placed
- raw_lots (text or null): the size before limits and rounding
- reason (text or null): a reason of docs/errors.md, if nothing would be placed
- warnings (list of texts): warnings of docs/errors.md
- explain (list of texts): how the size was computed, step by step
Errors: TC001 TC301
Example: {"copier": {"sizing_mode": "multiplier", "sizing_value": "0.5"}, "master": {"currency": "USD", "balance":
  "10000", "equity": "10000",
"free_margin": "10000"}, "follower": {"currency": "USD", "balance": "5000", "equity": "5000", "free_margin": "5000",
"symbol": {"name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD",
"lots_min": "0.01", "lots_max": "50", "lots_step": "0.01"}}, "trade": {"side": "buy", "lots": "1.00", "price":
"1.10000", "sl": null, "tp": null}, "rates": {}}
-> {"orders": ["0.5"], "raw_lots": "0.5",
"reason": null, "warnings": [], "explain": ["The master trades 1 lots of EURUSD.",
"Times the multiplier 0.5: 0.5 lots.",
"Rounded down to steps of 0.01: 0.5 lots."]}';

revoke all on function public.preview_copy(jsonb) from public, anon;
grant execute on function public.preview_copy(jsonb) to authenticated, service_role;
grant execute on function private.preview_copy(jsonb) to authenticated, service_role;

-- users/protection_rule.sql
-- Functions by which users manage protection rules.

-- The funds of an account if they are known and fresh; otherwise all results are null.
create function private.known_funds(p_account uuid, out measured_at timestamptz, out equity numeric, out margin numeric,
  out balance numeric)
language plpgsql stable security definer set search_path = '' as $$
begin
  select a.funds_at, a.equity, a.margin, a.balance into measured_at, equity, margin, balance
  from public.trading_accounts a
  where a.id = p_account and a.funds_at > clock_timestamp() - private.setting_s('funds_max_age_s');
end $$;

-- Refuses a rule that would trigger at once (TC321): a typing error must not close everything.
create function private.refuse_reached(p_function text, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_funds record;
  v_initial numeric;
begin
  select * into v_funds from private.known_funds(r.account_id);
  v_initial := private.initial_for(r, v_funds.balance);
  if r.enabled and r.triggered_at is null and private.limit_reached(r, v_initial, v_funds.equity,
    v_funds.margin) then
    raise exception using errcode = 'TC321',
      message = format('%s: the account is already past this limit: %s of %s, equity %s, margin %s', p_function, r.kind,
        private.rule_limit(r, v_initial), v_funds.equity, coalesce(v_funds.margin::text, 'unknown')),
      hint = 'The rule would trigger at once. Choose another threshold, or close positions first (flatten_account).';
  end if;
end $$;

-- What is wrong with how a rule measures; null: nothing.
create function private.bad_measure(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when r.of not in ('day_start', 'high', 'initial', 'amount')
      then 'of must be day_start, high, initial or amount'
    when r.basis is null or r.basis not in ('equity', 'balance', 'higher')
      then 'basis must be equity, balance or higher'
    when r.moves_with is null or r.moves_with not in ('equity', 'day_end_balance')
      then 'moves_with must be equity or day_end_balance'
    when not (r.locks_at > 0 and r.locks_at < 1e12) then 'locks_at must be above 0 and below 1e12, or null'
    when r.cushion_percent is null or not (r.cushion_percent >= 0 and r.cushion_percent < 100)
      then 'cushion_percent must be from 0 to below 100'
    when r.warn_percent is null or not (r.warn_percent >= 0 and r.warn_percent < 100)
      then 'warn_percent must be from 0 (no warning) to below 100'
    when r.day_begins is null then 'day_begins must be a time of day from 00:00 to 23:59' end;
end $$;

-- Raises TC306 for two settings of a rule that contradict each other; both are named.
create function private.refuse_bad_pair(r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_daily boolean := r.kind in ('daily_loss', 'daily_profit');
  v_trails boolean := r.kind = 'trailing_drawdown';
  v_pair text := case
    when r.of = 'day_start' and not v_daily or r.of = 'high' and not v_trails
      or r.of is not null and r.kind = 'max_margin_use' then format('of %s does not go with kind %s', r.of, r.kind)
    when r.basis <> 'equity' and not v_daily then format('basis %s does not go with kind %s', r.basis, r.kind)
    when r.moves_with <> 'equity' and not v_trails
      then format('moves_with %s does not go with kind %s', r.moves_with, r.kind)
    when r.locks_at is not null and not v_trails
      then format('locks_at %s does not go with kind %s', trim_scale(r.locks_at), r.kind)
    when r.cushion_percent > 0 and r.kind = 'equity_target'
      then format('cushion_percent %s does not go with kind %s', trim_scale(r.cushion_percent), r.kind)
    when r.action = 'close_all_until_next_day' and not v_daily
      then format('action %s does not go with kind %s, which has no next day', r.action, r.kind)
    when r.warn_percent > 100 - r.cushion_percent
      then format('warn_percent %s is above %s, where the rule acts with cushion_percent %s',
        trim_scale(r.warn_percent), trim_scale(100 - r.cushion_percent), trim_scale(r.cushion_percent)) end;
begin
  if v_pair is not null then
    raise exception using errcode = 'TC306', message = 'save_protection_rule: ' || v_pair,
      hint = 'Change one of the two.';
  end if;
end $$;

-- What is wrong with a rule's threshold; null: nothing.
create function private.bad_threshold(r public.protection_rules) returns text
language plpgsql immutable set search_path = '' as $$
declare
  v_of text := private.rule_of(r);
begin
  return case
    when r.threshold is null then 'threshold is missing'
    when r.kind = 'max_margin_use' then case when not (r.threshold > 0 and r.threshold <= 1000)
      then format('threshold of max_margin_use must be above 0 and at most 1000 (percent of equity), not %s',
        r.threshold) end
    when v_of = 'amount' then case when not (r.threshold > 0 and r.threshold < 1e12)
      then format('threshold of %s must be above 0 and below 1e12 (money of the account), not %s', r.kind,
        r.threshold) end
    when r.kind in ('daily_loss', 'trailing_drawdown') then case when not (r.threshold > 0 and r.threshold < 100)
      then format('threshold of %s must be above 0 and below 100 (percent), not %s', r.kind, r.threshold) end
    when not (r.threshold > 0 and r.threshold <= 1000)
      then format('threshold of %s must be above 0 and at most 1000 (percent), not %s', r.kind, r.threshold) end;
end $$;

-- Raises TC303 for a wrong setting of a rule; the message says what is allowed.
create function private.refuse_bad_rule(p_rule jsonb, r public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_what text;
begin
  v_what := case
    when r.kind is null or r.kind not in ('daily_loss', 'trailing_drawdown', 'equity_floor', 'equity_target',
      'max_margin_use', 'daily_profit')
      then 'kind must be daily_loss, trailing_drawdown, equity_floor, equity_target, max_margin_use or daily_profit'
    when r.action is null or r.action not in ('notify', 'monitor', 'close_all', 'close_all_until_next_day',
      'close_all_and_off')
      then 'action must be notify, monitor, close_all or close_all_and_off; daily_loss and daily_profit also take '
        'close_all_until_next_day'
    when r.confirm_ms is null or r.confirm_ms not between 250 and 60000 then 'confirm_ms must be from 250 to 60000'
    when r.close_manual is null or r.enabled is null then 'close_manual and enabled must be true or false'
    when r.count_balance_operations is null then 'count_balance_operations must be true or false'
    when r.time_zone is null or not private.is_time_zone(r.time_zone)
      then format('there is no time zone %s: time_zone must be named like Europe/Berlin, America/New_York or UTC',
        left(coalesce(r.time_zone, 'null'), 100))
    else coalesce(private.bad_measure(r), private.bad_threshold(r)) end;
  if v_what is not null then
    raise exception using errcode = 'TC303', message = 'save_protection_rule: ' || v_what,
      hint = 'See docs/protocol.md.';
  end if;
end $$;

-- A rule of the caller, locked together with its account's plan; TC106 if there is none.
create function private.own_rule(p_function text, p_rule uuid) returns public.protection_rules
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_rule public.protection_rules;
begin
  perform private.lock_accounts(array(select r.account_id from public.protection_rules r
    where r.id = p_rule and r.user_id = v_user));
  select * into v_rule from public.protection_rules r where r.id = p_rule and r.user_id = v_user for update;
  if v_rule.id is null then
    raise exception using errcode = 'TC106',
      message = format('%s: rule %s does not exist or is not yours', p_function, p_rule), hint = 'Check the id.';
  end if;
  return v_rule;
end $$;

-- Refuses settings of the wrong form (TC302).
create function private.refuse_malformed_rule(p_rule jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_wrong text;
begin
  select k into v_wrong from unnest(array['threshold', 'cushion_percent', 'warn_percent', 'locks_at']) k
  where p_rule ? k and not coalesce(private.is_number(p_rule -> k), false)
    and not (k = 'locks_at' and p_rule -> k = 'null') limit 1;
  if v_wrong is not null then
    raise exception using errcode = 'TC302', message = format('save_protection_rule: %s is not a number', v_wrong),
      hint = 'Numbers are decimal strings such as "5".';
  end if;
  select format('%s is %s, but must be %s', e.key, left(e.value::text, 100), case e.key
    when 'confirm_ms' then 'a whole number from 250 to 60000'
    when 'day_begins' then 'a time of day such as "17:00"' else 'true or false' end) into v_wrong
  from jsonb_each(p_rule) e
  where case when e.key = 'confirm_ms' then not pg_input_is_valid(e.value #>> '{}', 'integer')
    when e.key in ('close_manual', 'enabled', 'count_balance_operations')
      then not pg_input_is_valid(e.value #>> '{}', 'boolean')
    when e.key = 'day_begins' then coalesce(e.value #>> '{}', '') !~ '^([01][0-9]|2[0-3]):[0-5][0-9](:00)?$' end
  limit 1;
  if v_wrong is not null then
    raise exception using errcode = 'TC302', message = 'save_protection_rule: ' || v_wrong,
      hint = 'See docs/protocol.md.';
  end if;
end $$;

-- A new rule of the caller's account with the default of each setting; the account's plan is locked.
create function private.new_rule(p_rule jsonb) returns public.protection_rules
language plpgsql volatile security definer set search_path = '' as $$
declare
  r public.protection_rules;
begin
  r.user_id := private.require_user();
  select a.id into r.account_id from public.trading_accounts a
  where a.id = private.uuid_of(p_rule, 'account_id') and a.user_id = r.user_id and a.removed_at is null;
  if r.account_id is null then
    raise exception using errcode = 'TC106',
      message = format('save_protection_rule: account %s does not exist or is not yours', p_rule ->> 'account_id'),
      hint = 'Check the id.';
  end if;
  perform private.hold_user(r.user_id);
  perform private.lock_accounts(array[r.account_id]);
  r.action := 'close_all_and_off';
  r.close_manual := true;
  r.confirm_ms := 250;
  r.time_zone := 'UTC';
  r.enabled := true;
  r.basis := 'equity';
  r.day_begins := '00:00';
  r.cushion_percent := 0;
  r.moves_with := 'equity';
  r.warn_percent := 70;
  r.count_balance_operations := false;
  -- a cushion that acts earlier than that is warned of when it acts
  if private.is_number(p_rule -> 'cushion_percent') then
    r.warn_percent := greatest(least(70, 100 - (p_rule ->> 'cushion_percent')::numeric), 0);
  end if;
  return r;
end $$;

-- {"id" of the rule to change, or "account_id" and "kind" of a new one; the settings} -> {"rule_id", "action"}
create function private.save_protection_rule(p_rule jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_old public.protection_rules;
  v_new public.protection_rules;
  v_unknown text;
begin
  if jsonb_typeof(p_rule) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_protection_rule: the rule must be an object',
      hint = 'See docs/protocol.md.';
  end if;
  select left(string_agg(k, ', '), 200) into v_unknown from jsonb_object_keys(p_rule) k
  where k not in ('id', 'account_id', 'kind', 'threshold', 'action', 'close_manual', 'confirm_ms', 'time_zone',
    'enabled', 'of', 'basis', 'day_begins', 'cushion_percent', 'warn_percent', 'moves_with', 'locks_at',
    'count_balance_operations');
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_protection_rule: unknown setting: %s', v_unknown),
      hint = 'The settings are account_id, kind, threshold, of, basis, day_begins, time_zone, cushion_percent, '
        'warn_percent, moves_with, locks_at, count_balance_operations, action, close_manual, confirm_ms and enabled.';
  end if;
  perform private.refuse_malformed_rule(p_rule);
  if p_rule ? 'id' then
    v_old := private.own_rule('save_protection_rule', private.uuid_of(p_rule, 'id'));
  else
    v_old := private.new_rule(p_rule);
  end if;
  begin
    v_new := jsonb_populate_record(v_old, p_rule - array['id', 'account_id']);
  exception when data_exception then
    raise exception using errcode = 'TC302',
      message = 'save_protection_rule: a value has the wrong form: ' || left(sqlerrm, 500),
      hint = 'Numbers are decimal strings such as "5", confirm_ms is a whole number, close_manual and enabled are true '
        'or false.';
  end;
  v_new.action := private.rule_action(v_new);
  perform private.refuse_bad_rule(p_rule, v_new);
  perform private.refuse_bad_pair(v_new);
  perform private.refuse_contradiction(p_rule, v_old, v_new);
  return jsonb_build_object('rule_id', private.put_rule(v_old, v_new), 'action', v_new.action);
end $$;

-- Refuses a change of kind or account, and two rules that contradict each other.
create function private.refuse_contradiction(p_rule jsonb, p_old public.protection_rules,
  p_new public.protection_rules) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_other numeric;
  v_initial numeric := private.initial_balance(p_new.account_id, null);
  v_limit numeric := private.whole_limit(p_new, v_initial);
begin
  if p_old.id is not null and (p_new.kind <> p_old.kind
    or coalesce(p_rule ->> 'account_id', p_old.account_id::text) <> p_old.account_id::text) then
    raise exception using errcode = 'TC303',
      message = 'save_protection_rule: kind and account_id of a rule cannot be changed',
      hint = 'Remove the rule and save another.';
  end if;
  -- of several, the one that is nearest: the lowest target of a floor, the highest floor of a target
  select case p_new.kind when 'equity_floor' then min(private.whole_limit(r, v_initial))
    else max(private.whole_limit(r, v_initial)) end into v_other
  from public.protection_rules r
  where r.account_id = p_new.account_id and r.kind = case p_new.kind when 'equity_floor'
    then 'equity_target' when 'equity_target' then 'equity_floor' end;
  if p_new.kind = 'equity_floor' and v_limit >= v_other or p_new.kind = 'equity_target' and v_limit <= v_other then
    raise exception using errcode = 'TC306',
      message = format('save_protection_rule: equity_floor %s is not below equity_target %s',
        case p_new.kind when 'equity_floor' then v_limit else v_other end,
        case p_new.kind when 'equity_floor' then v_other else v_limit end),
      hint = 'Change one of the two first.';
  end if;
end $$;

-- Stores a rule that passed all checks. A new rule, one that is enabled again, and one that measures another way start
-- their measurements from now.
create function private.put_rule(p_old public.protection_rules, p_new public.protection_rules) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_new public.protection_rules := p_new;
  v_funds record;
begin
  if p_old.id is null or p_new.enabled and not p_old.enabled or (p_new.time_zone, p_new.day_begins, p_new.basis,
    p_new.moves_with) is distinct from (p_old.time_zone, p_old.day_begins, p_old.basis, p_old.moves_with) then
    select * into v_funds from private.known_funds(p_new.account_id);
    v_new := private.rearmed(v_new, v_funds.measured_at, v_funds.equity, v_funds.balance);
    if v_new.high_water_mark is not null then
      v_new.high_water_mark := private.first_high(v_new, v_new.high_water_mark,
        private.initial_for(v_new, v_funds.balance));
    end if;
  end if;
  v_new.breached_at := null;  -- it may be about another limit
  v_new.breached_equity := null;
  perform private.refuse_reached('save_protection_rule', v_new);
  if p_old.id is null then
    v_new.id := gen_random_uuid();
    v_new.created_at := clock_timestamp();
    v_new.updated_at := v_new.created_at;
    insert into public.protection_rules select v_new.*;
  else
    update public.protection_rules r set threshold = v_new.threshold, action = v_new.action,
      close_manual = v_new.close_manual,
      confirm_ms = v_new.confirm_ms, time_zone = v_new.time_zone, enabled = v_new.enabled, of = v_new.of,
      basis = v_new.basis, day_begins = v_new.day_begins, cushion_percent = v_new.cushion_percent,
      warn_percent = v_new.warn_percent, moves_with = v_new.moves_with, locks_at = v_new.locks_at,
      count_balance_operations = v_new.count_balance_operations, day = v_new.day,
      day_start_equity = v_new.day_start_equity, day_start_at = v_new.day_start_at,
        high_water_mark = v_new.high_water_mark,
      breached_at = null, breached_equity = null, triggered_at = v_new.triggered_at
    where r.id = p_old.id;
  end if;
  return v_new.id;
end $$;

-- {"rule_id"} -> {"rule_id"}
create function private.remove_protection_rule(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('remove_protection_rule', private.uuid_of(p_request, 'rule_id'));
begin
  perform private.refuse_unknown(p_request, 'remove_protection_rule', array['rule_id']);
  delete from public.protection_rules where id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id);
end $$;

-- {"rule_id"} -> {"rule_id", "day_start_equity", "high_water_mark"}. The rule can trigger again and measures from now:
-- day_start_equity and high_water_mark become the present equity, or the next that is known. What the rule did to the
-- account is not undone.
create function private.reset_protection(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rule public.protection_rules := private.own_rule('reset_protection', private.uuid_of(p_request, 'rule_id'));
  v_funds record;
begin
  perform private.refuse_unknown(p_request, 'reset_protection', array['rule_id']);
  select * into v_funds from private.known_funds(v_rule.account_id);
  v_rule := private.rearmed(v_rule, v_funds.measured_at, v_funds.equity, v_funds.balance);
  perform private.refuse_reached('reset_protection', v_rule);
  update public.protection_rules r set day = v_rule.day, day_start_equity = v_rule.day_start_equity,
    day_start_at = v_rule.day_start_at,
    high_water_mark = v_rule.high_water_mark, breached_at = null, breached_equity = null, triggered_at = null
  where r.id = v_rule.id;
  return jsonb_build_object('rule_id', v_rule.id, 'day_start_equity', v_rule.day_start_equity::text, 'high_water_mark',
    v_rule.high_water_mark::text);
end $$;

create function public.save_protection_rule(p_rule jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_protection_rule(p_rule) $$;
comment on function public.save_protection_rule(jsonb) is
  'Users: makes a protection rule for an account, or changes one. Keys that are left out keep their value.
Request:
- id (uuid): rule of the caller to change; left out: a new one
- account_id (uuid; required for a new rule): account of the caller; cannot be changed later
- kind (text; required for a new rule; daily_loss, trailing_drawdown, equity_floor, equity_target, max_margin_use or
  daily_profit): cannot be changed later; an account may have several rules of a kind
- threshold (number; required for a new rule; percent above 0 and below 100, daily_profit and max_margin_use up to
  1000; where of is amount: money above 0 and below 1e12): reaching it exactly triggers
- of (text; day_start, high, initial or amount): what the threshold is: percent of the day''s start (daily rules), of
  the high (trailing_drawdown) or of the account''s initial balance, or money; equity_floor and equity_target with
  initial stand at that percentage of it. Left out or null: day_start for daily rules, high for trailing_drawdown
  (initial if it moves with day_end_balance), amount for equity_floor and equity_target
- basis (text; equity, balance or higher): daily rules: what the day''s start is; default equity
- day_begins (text; a time of day from 00:00 to 23:59): when the day begins in time_zone; default 00:00
- cushion_percent (number; from 0 to below 100): the rule acts when 100 minus this percentage of its allowance is used;
  not for equity_target; default 0: at the limit itself
- warn_percent (number; from 0 to below 100, at most 100 minus cushion_percent): an alert, once a day, when this
  percentage of the allowance is used; 0: none; default 70, or what the cushion leaves
- moves_with (text; equity or day_end_balance): trailing_drawdown: what its limit follows; default equity
- locks_at (number or null; above 0 and below 1e12): trailing_drawdown: the limit stops rising there; default: never
- action (text; notify, monitor, close_all, close_all_until_next_day or close_all_and_off): what the rule does; default
  close_all_and_off. close_all_until_next_day is for daily_loss and daily_profit: it opens nothing until the next day
  begins, then copying goes on by itself. close_all of these two is stored as close_all_until_next_day
- close_manual (boolean): whether closing includes positions that the user opened by hand; default true
- confirm_ms (integer; 250 to 60000): a second look at least this long after the first must agree; default 250
- count_balance_operations (boolean): whether deposits and withdrawals count as profits and losses; default false: they
  move the day''s start, the high and the initial balance by their amount
- time_zone (text; a time zone such as Europe/Berlin): the time zone of day_begins; default UTC
- enabled (boolean): whether the rule is checked; default true
Answer:
- rule_id (uuid): the rule
- action (text): what it does, as stored
Errors: TC001 TC105 TC106 TC108 TC301 TC302 TC303 TC306 TC321 TC332
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "kind": "daily_loss", "threshold": "5", "action":
  "close_all_and_off",
"time_zone": "Europe/Berlin"}
-> {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401", "action": "close_all_and_off"}';

create function public.remove_protection_rule(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_protection_rule(p_request) $$;
comment on function public.remove_protection_rule(jsonb) is
  'Users: removes a protection rule. What it did to the account is not undone.
Request:
- rule_id (uuid; required): rule of the caller
Answer:
- rule_id (uuid): the rule that was removed
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401"} -> {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401"}';

create function public.reset_protection(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.reset_protection(p_request) $$;
comment on function public.reset_protection(jsonb) is
  'Users: lets a protection rule trigger again; it measures from the present equity, or from the next that is known.
Request:
- rule_id (uuid; required): rule of the caller
Answer:
- rule_id (uuid): the rule
- day_start_equity (text or null): for daily rules: the amount that the day is measured from
- high_water_mark (text or null): for trailing_drawdown: the highest equity or day-end balance
Errors: TC001 TC105 TC106 TC108 TC301 TC321
Example: {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401"}
-> {"rule_id": "5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401", "day_start_equity": "5000.00", "high_water_mark": null}';

revoke all on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb),
  public.reset_protection(jsonb) from public, anon;
grant execute on function public.save_protection_rule(jsonb), public.remove_protection_rule(jsonb),
  public.reset_protection(jsonb),
  private.save_protection_rule(jsonb), private.remove_protection_rule(jsonb),
    private.reset_protection(jsonb) to authenticated;

-- users/quiet_window.sql
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

-- users/removal.sql
-- remove_copier: how a user ends a copier.

-- {"copier_id", "mode": "preserve|close_gracefully|close_now"} -> {"copier_id", "mode", "state": "removing|removed",
-- "copies", "waits_for"}. The mode may be changed until the removal is complete; repeating a call changes nothing.
create function private.remove_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_mode text := p_request ->> 'mode';
  c public.copiers;
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'remove_copier', array['copier_id', 'mode']);
  if coalesce(v_mode, '') not in ('preserve', 'close_gracefully', 'close_now') then
    raise exception using errcode = 'TC303',
      message = 'remove_copier: mode must be preserve, close_gracefully or close_now',
      hint = 'preserve: its copies become your own trades. close_gracefully: they end with their master''s. close_now: '
        'they are closed now.';
  end if;
  select * into c from public.copiers x where x.id = v_id and (x.user_id = v_user or private.is_operator());
  if c.id is null then
    raise exception using errcode = 'TC106',
      message = format('remove_copier: copier %s does not exist or is not yours', v_id), hint = 'Check the id.';
  end if;
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  update public.copiers x set removal = v_mode, updated_at = clock_timestamp()
  where x.id = v_id and x.removed_at is null and x.removal is distinct from v_mode;
  if found then
    select * into c from public.copiers x where x.id = v_id;
    if v_mode = 'preserve' then
      perform private.release_copies(c, v_now);
    end if;
    perform private.replan_copier(v_id, v_now);
  end if;
  perform private.finish_removal(v_id, c.follower_account_id, v_now);
  return private.removal_of(v_id);
end $$;

-- The progress of a removal, as in remove_copier's answer. waits_for: what keeps the copies from being closed.
create function private.removal_of(p_copier uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select jsonb_build_object('copier_id', c.id, 'mode', c.removal, 'state', case
      when c.removed_at is null then 'removing' else 'removed' end,
      'copies', x.copies, 'waits_for', case when x.copies = 0 then null when private.trading_state() = 'off'
        then 'trading_stopped'
        when fa.copy_state = 'off' then 'account_off' end)
    from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id
    cross join lateral (
      select count(*) as copies from public.position_links l
      where l.follower_account_id = c.follower_account_id and l.state = 'live' and l.copier_id = c.id) x
    where c.id = p_copier);
end $$;

create function public.remove_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_copier(p_request) $$;
comment on function public.remove_copier(jsonb) is
  'Users and operators: removes a copier. It opens nothing more; until its copies have ended, another call may change '
  'the mode.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- mode (text; required; preserve, close_gracefully or close_now): its copies are left to the user, or are closed with
  their master''s, or are closed now
Answer:
- copier_id (uuid): the copier
- mode (text; preserve, close_gracefully or close_now): how the copier is being removed
- state (text; removing or removed): whether all its copies have ended
- copies (integer): copies that have not ended
- waits_for (text or null; account_off or trading_stopped): what keeps them from being closed now
Errors: TC001 TC105 TC106 TC108 TC301 TC303
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "close_now"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "close_now", "state": "removing", "copies": 2,
  "waits_for": null}';

revoke all on function public.remove_copier(jsonb) from public, anon;
grant execute on function public.remove_copier(jsonb), private.remove_copier(jsonb) to authenticated;

-- users/resync.sql
-- Resync: the user's action on each entry of a copier's drift (users/drift.sql). Nothing here runs automatically.

-- What is wrong with a request of resync_copier, one sentence; null: nothing is.
create function private.resync_error(p_request jsonb) returns text
language plpgsql immutable set search_path = '' as $$
declare
  e jsonb;
  v_field text;
begin
  if jsonb_typeof(p_request -> 'items') is distinct from 'array'
    or jsonb_array_length(p_request -> 'items') not between 1 and 200 then
    return '"items" must be an array of 1 to 200 items';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'max_distance_points'), 'null') <> 'null'
    and coalesce(not private.is_number(p_request -> 'max_distance_points')
      or (p_request ->> 'max_distance_points')::numeric < 0, true) then
    return 'max_distance_points must be a number, not negative';
  end if;
  for e in select value from jsonb_array_elements(p_request -> 'items') loop
    if jsonb_typeof(e) is distinct from 'object' then return 'an item is not an object'; end if;
    if not coalesce(case e ->> 'kind' when 'missing' then e ->> 'action' in ('copy', 'adopt', 'dismiss')
      when 'orphan' then e ->> 'action' in ('close', 'dismiss') when 'size_mismatch'
        then e ->> 'action' in ('copy', 'dismiss') end, false) then
      return format('there is no action %s for an item of kind %s: missing takes copy, adopt and dismiss; orphan close '
        'and dismiss; '
        'size_mismatch copy and dismiss', coalesce(left(e ->> 'action', 50), '(none)'),
          coalesce(left(e ->> 'kind', 50), '(none)'));
    end if;
    foreach v_field in array case when e ->> 'kind' = 'orphan' then array['ticket']
      when e ->> 'action' = 'adopt' then array['master_ticket', 'ticket'] else array['master_ticket'] end
    loop
      if jsonb_typeof(e -> v_field) is distinct from 'string' or length(e ->> v_field) > 64 then
        return format('an item of kind %s with action %s needs %s, a text of at most 64 characters', e ->> 'kind',
          e ->> 'action', v_field);
      end if;
    end loop;
  end loop;
  return null;
end $$;

-- Links a position of the follower to the master's without an order. Its levels count as the levels last asked for.
create function private.adopt_position(p_copier public.copiers, d private.drift, p_ticket text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_link bigint;
  v_wanted record;
begin
  insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket,
    master_kind, master_side, generation, symbol,
    side, state, seen_master_lots, base_master_lots, base_lots, sized_lots, sized_master_lots, warnings, event_id,
      created_at)
  select p_copier.user_id, p_copier.id, m.account_id, p.account_id, m.ticket, m.kind, m.side, coalesce((
      select max(o.generation) from public.position_links o
      where o.master_account_id = m.account_id and o.master_ticket = m.ticket and o.master_kind = m.kind
        and o.copier_id = p_copier.id), 0) + 1,
    p.symbol, p.side, 'live', m.lots, m.lots, p.lots, p.lots, m.lots, array['adopted'], m.last_event_id, p_now
  from public.positions m, public.positions p
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket and m.kind = d.master_kind
    and p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.kind = 'position'
  returning id into v_link;
  insert into private.link_legs (link_id, account_id, ticket, ticket_kind, kind, lots, price)
  select v_link, p.account_id, p.ticket, p.kind, p.kind, p.lots, p.price from public.positions p
  where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.kind = 'position';
  update public.positions p set released = false
  where p.account_id = p_copier.follower_account_id and p.ticket = p_ticket and p.kind = 'position'
    and p.released;
  select s.wanted_sl, s.wanted_tp into v_wanted from private.link_states s where s.id = v_link;
  update public.position_links l set asked_sl = v_wanted.wanted_sl, asked_tp = v_wanted.wanted_tp, asked_unknown = false
  where l.id = v_link;
end $$;

-- Queues the close of a copy that no link holds. Returns the new execution.
create function private.close_orphan(p_copier public.copiers, d private.drift, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_orphan public.positions;
  v_draft private.execution_draft;
begin
  select p.* into v_orphan from public.positions p
  where p.account_id = p_copier.follower_account_id and p.ticket = d.ticket and p.kind = d.ticket_kind;
  v_draft.lane := 'orphan:' || v_orphan.ticket || case v_orphan.kind when 'order' then ':order' else '' end;
  v_draft.copier_id := p_copier.id;
  v_draft.user_id := v_orphan.user_id;
  v_draft.account_id := v_orphan.account_id;
  v_draft.action := case v_orphan.kind when 'order' then 'cancel' else 'close' end;
  v_draft.symbol := v_orphan.symbol;
  v_draft.side := v_orphan.side;
  v_draft.lots := v_orphan.lots;
  v_draft.target_lots := 0;
  v_draft.ticket := v_orphan.ticket;
  return (private.queue_executions(array[v_draft], false, p_now))[1];
end $$;

create function private.resync_answer(p_item jsonb, p_result text, p_reason text, p_message text,
  p_executions bigint[]) returns jsonb
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_build_object('kind', p_item ->> 'kind', 'action', p_item ->> 'action', 'master_ticket',
    p_item ->> 'master_ticket',
    'ticket', p_item ->> 'ticket', 'result', p_result, 'reason', p_reason, 'message', p_message,
    'executions', coalesce((select jsonb_agg(x::text) from unnest(p_executions) x), '[]'));
end $$;

-- Why a copy is refused before any decision, or null: the follower still holds one, or the price has moved too far.
create function private.copy_refused(d private.drift, p_max_distance numeric, out reason text, out message text)
language plpgsql immutable set search_path = '' as $$
begin
  if not 'copy' = any (d.actions) then
    reason := 'held_already';
    message := format('The follower still holds a position that was opened for %s: adopt it, or close it first.',
      d.master_ticket);
  elsif p_max_distance is not null and private.distance_points(d) is null then
    reason := 'no_quote';
    message := format('The price of %s is not known now, so its distance from %s cannot be computed.', d.symbol,
      private.plain(d.price));
  elsif private.distance_points(d) > p_max_distance then
    reason := 'price_moved';
    message := format('The price is %s, %s points from the master''s %s; at most %s were allowed.',
      private.plain(d.price_now),
      private.distance_points(d), private.plain(d.price), private.plain(p_max_distance));
  end if;
end $$;

-- The answer for a copy that was handed to the planner: its new executions, or the reason why there are none.
create function private.copy_answer(p_copier public.copiers, p_item jsonb, d private.drift) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  l public.position_links;
  v_executions bigint[];
  v_detail text;
begin
  select * into l from public.position_links k
  where k.master_account_id = p_copier.master_account_id and k.master_ticket = d.master_ticket
    and k.master_kind = d.master_kind and k.copier_id = p_copier.id
  order by k.generation desc limit 1;
  select array_agg(q.id order by q.id) into v_executions from public.trade_execution_queue q
  where q.link_id = l.id and q.finalized_at is null;
  if exists (select from private.symbol_waits w where w.copier_id = p_copier.id
    and w.master_account_id = p_copier.master_account_id and w.ticket = d.master_ticket
      and w.kind = d.master_kind) then
    return private.resync_answer(p_item, 'queued', 'symbol_loading', null, v_executions);
  end if;
  if l.state = 'live' and (v_executions is not null or l.wanted_lots is not null or exists (
    select 1 from public.trade_execution_queue q
    where q.account_id = l.follower_account_id and q.symbol = l.symbol and q.in_flight
      and q.parts @> jsonb_build_array(jsonb_build_object('link_id', l.id::text))))
  then
    return private.resync_answer(p_item, 'queued', null, null, v_executions);
  end if;
  select o.detail into v_detail from public.positions m
  join public.copy_outcomes o on o.event_id = m.last_event_id and o.copier_id = p_copier.id and o.reason = l.reason
  where m.account_id = p_copier.master_account_id and m.ticket = d.master_ticket
    and m.kind = d.master_kind;
  return private.resync_answer(p_item, 'refused', coalesce(l.reason, private.frozen_by(p_copier), 'no_change'),
    v_detail, null);
end $$;

-- Whether a drift entry is the one that an item of a request names.
create function private.is_meant(d private.drift, p_item jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return d.kind = p_item ->> 'kind' and case d.kind
    when 'orphan' then d.ticket = p_item ->> 'ticket'
      and d.ticket_kind = coalesce(p_item ->> 'ticket_kind', d.ticket_kind)
    else d.master_ticket = p_item ->> 'master_ticket'
      and d.master_kind = coalesce(p_item ->> 'master_kind', d.master_kind) end;
end $$;

-- {"copier_id", "items": [{"kind", "master_ticket", "ticket", "action"}], "max_distance_points": null} -> {"copier_id",
-- "items": [{…, "result": "queued|adopted|dismissed|refused|nothing_to_do", "reason", "message", "executions"}]}, one
-- per item, in order. One loop over the items, therefore longer than forty lines.
create function private.resync_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  c public.copiers := private.require_copier('resync_copier', p_request);
  v_error text := private.resync_error(p_request);
  v_now timestamptz;
  v_netting boolean;
  v_items jsonb := '[]';
  v_item jsonb;
  d private.drift;
  v_refused record;
  v_answers jsonb := '{}';
  v_links bigint[] := '{}';
  v_tickets text[] := '{}';
  v_kinds text[] := '{}';
  v_missing text[] := '{}';
  v_missing_kinds text[] := '{}';
  v_new bigint[] := '{}';
  n integer := 0;
begin
  perform private.refuse_unknown(p_request, 'resync_copier', array['copier_id', 'items', 'max_distance_points']);
  if v_error is not null then
    raise exception using errcode = 'TC001', message = 'resync_copier: ' || v_error,
      hint = 'copier_drift lists the items and their actions.';
  end if;
  perform private.refuse_leaving(c.id);
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  c := private.require_copier('resync_copier', p_request);  -- it may have changed while this call waited for the lock
  perform private.refuse_leaving(c.id);
  v_netting := (select a.mode = 'netting' from public.trading_accounts a where a.id = c.follower_account_id);

  for v_item in select value from jsonb_array_elements(p_request -> 'items') loop
    n := n + 1;
    if v_netting and (v_item ->> 'action' = 'adopt' or v_item ->> 'kind' = 'orphan') then
      raise exception using errcode = 'TC308',
        message = format('resync_copier: a netting account has one position per symbol, so %s is not possible',
          case when v_item ->> 'action' = 'adopt' then 'adopting one' else 'closing what no copy holds' end),
        hint = 'Trade by hand on the follower''s account; the copier never touches what no copy holds.';
    end if;
    d := null;
    select x.* into d from private.drift_of(c) x where private.is_meant(x, v_item)
    order by coalesce(x.master_kind, x.ticket_kind) = 'position' desc limit 1;
    v_refused := private.copy_refused(d, (p_request ->> 'max_distance_points')::numeric);
    v_item := v_item || jsonb_build_object('n', n);
    if d.kind is null or exists (
      select 1 from unnest(v_tickets, v_kinds) u (ticket, kind)
      where u.ticket = d.master_ticket and u.kind = d.master_kind) then
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'nothing_to_do', null,
        'There is no such difference now: it is copied, closed or in progress.', null));
    elsif v_item ->> 'action' = 'dismiss' then
      insert into private.drift_dismissals as x (copier_id, kind, master_ticket, master_kind, ticket, ticket_kind, seen,
        dismissed_at)
      values (c.id, d.kind, d.master_ticket, coalesce(d.master_kind, ''), coalesce(d.ticket, ''),
        coalesce(d.ticket_kind, ''), d.seen, v_now)
      on conflict (copier_id, kind, master_ticket, master_kind, ticket, ticket_kind) do update set seen = excluded.seen,
        dismissed_at = excluded.dismissed_at;
      v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'dismissed', null, null, null));
    elsif v_item ->> 'action' = 'adopt' then
      if v_item ->> 'ticket' = any (d.adoptable) then
        perform private.adopt_position(c, d, v_item ->> 'ticket', v_now);
        v_answers := v_answers || jsonb_build_object(n, private.resync_answer(v_item, 'adopted', null, null, null));
      else
        v_answers := v_answers || jsonb_build_object(n,
          private.resync_answer(v_item, 'refused', 'not_adoptable', format(
          'Position %s of the follower is closed, held by another copy, being worked on, or not of the symbol and side '
          'of %s.',
          v_item ->> 'ticket', d.master_ticket), null));
      end if;
    elsif v_item ->> 'action' = 'close' then
      if private.frozen_by(c) in ('trading_stopped', 'account_off') then
        v_answers := v_answers || jsonb_build_object(n,
          private.resync_answer(v_item, 'refused', private.frozen_by(c), null, null));
      else
        v_new := v_new || private.close_orphan(c, d, v_now);
        v_answers := v_answers || jsonb_build_object(n,
          private.resync_answer(v_item, 'queued', null, null, v_new[cardinality(v_new):]));
      end if;
    elsif v_refused.reason is not null and (d.kind = 'missing' or d.held_lots < d.target_lots) then
      v_answers := v_answers || jsonb_build_object(n,
        private.resync_answer(v_item, 'refused', v_refused.reason, v_refused.message, null));
    else
      update public.position_links l set resync_lots = d.target_lots - d.held_lots
      where l.id = d.link_id and l.ended_at is null and d.held_lots < d.target_lots;
      v_tickets := v_tickets || d.master_ticket;
      v_kinds := v_kinds || d.master_kind;
      v_links := v_links || case when d.kind = 'size_mismatch' then d.link_id end;
      if d.kind = 'missing' then
        v_missing := v_missing || d.master_ticket;
        v_missing_kinds := v_missing_kinds || d.master_kind;
      end if;
      v_items := v_items || jsonb_build_array(v_item || jsonb_build_object('drift', to_jsonb(d)));
    end if;
  end loop;

  v_links := array_remove(v_links, null);
  if cardinality(v_missing) > 0 then
    v_new := v_new || coalesce(private.decide_kinds(
      array_fill(c.master_account_id, array[cardinality(v_missing)]), v_missing, v_missing_kinds, array[c.id], v_now,
      'resync'), '{}');
  end if;
  if cardinality(v_tickets) > 0 then
    v_new := v_new || coalesce(private.plan(v_links, array_fill(c.master_account_id, array[cardinality(v_tickets)]),
      v_tickets, array[c.id], v_now), '{}');
  end if;
  for v_item in select value from jsonb_array_elements(v_items) loop
    v_answers := v_answers || jsonb_build_object(v_item ->> 'n', private.copy_answer(c, v_item,
      jsonb_populate_record(null::private.drift, v_item -> 'drift')));
  end loop;
  -- a request that could not be decided now is not decided later
  update public.position_links l set resync_lots = null where l.id = any (v_links) and l.resync_lots is not null;
  perform private.offer(v_new, null, clock_timestamp());
  delete from private.drift_dismissals x where x.copier_id = c.id and not exists (
    select 1 from private.drift_of(c) y
    where y.kind = x.kind and y.master_ticket = x.master_ticket and coalesce(y.master_kind, '') = x.master_kind
      and coalesce(y.ticket, '') = x.ticket and coalesce(y.ticket_kind, '') = x.ticket_kind
      and y.seen = x.seen);
  return jsonb_build_object('copier_id', c.id, 'items', (
    select jsonb_agg(v_answers -> i::text order by i) from generate_series(1, n) i));
end $$;

create function public.resync_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.resync_copier(p_request) $$;
comment on function public.resync_copier(jsonb) is
  'Users and operators: acts on differences that copier_drift lists. A second call finds nothing to do and says so.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- items (list of objects; required; 1 to 200 items): the differences and actions
- items[].kind (text; required; missing, orphan or size_mismatch): kind of the item in copier_drift
- items[].action (text; required; one of the item''s actions in copier_drift): copy, adopt, close or dismiss
- items[].master_ticket (text; required except for orphans; at most 64 characters): position of the master
- items[].ticket (text; required for orphans and adopt; at most 64 characters): position of the follower
- items[].master_kind, ticket_kind (text; position or order): which one is meant where an order and a position carry the
  number; left out or null: the position
- max_distance_points (number; 0 or more): copy only if the price is not further than this from the master''s; left out
  or null: any
Answer:
- copier_id (uuid): the copier
- items (list of objects): one per item of the request, in the same order
- items[].kind, action, master_ticket, ticket (text or null): as in the request
- items[].result (text; queued, adopted, dismissed, refused or nothing_to_do): what was done
- items[].reason (text or null): a reason of docs/errors.md, if it was refused
- items[].message (text or null): the same in a sentence
- items[].executions (list of texts): numbers of the executions that were queued
Errors: TC001 TC105 TC106 TC108 TC301 TC307 TC308
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "items": [{"kind": "missing", "master_ticket": "5001",
  "action": "copy"}],
"max_distance_points": "50"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "items": [{"kind": "missing", "action": "copy",
  "master_ticket": "5001",
"ticket": null, "result": "queued", "reason": null, "message": null, "executions": ["123"]}]}';

revoke all on function public.resync_copier(jsonb) from public, anon;
grant execute on function public.resync_copier(jsonb), private.resync_copier(jsonb) to authenticated;

-- users/symbol.sql
-- Functions for symbols: what is chosen for a master's symbol, the alternatives, and what to save.

-- {"copier_id", "symbols": [names of the master] or left out} -> {"copier_id", "prefix", "suffix", "symbols":
-- [{"master_symbol", "follower_symbol", "how", "why", "candidates", "save"}]}. "save" is the argument for save_copier
-- if the user agrees.
create function private.symbol_suggestions(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_copier public.copiers;
  v_follower public.trading_accounts;
  v_mapped jsonb;
  v_answers jsonb;
begin
  perform private.refuse_unknown(p_request, 'symbol_suggestions', array['copier_id', 'symbols']);
  select * into v_copier from public.copiers c
  where c.id = private.uuid_of(p_request, 'copier_id') and (c.user_id = v_user or private.is_operator())
    and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106',
      message = format('symbol_suggestions: copier %s does not exist or is not yours', p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'symbols'), 'null') not in ('null', 'array') then
    raise exception using errcode = 'TC001',
      message = 'symbol_suggestions: "symbols" must be an array of the master''s symbols';
  end if;
  if jsonb_array_length(nullif(p_request -> 'symbols', 'null')) > 500 then
    raise exception using errcode = 'TC001',
      message = format('symbol_suggestions: "symbols" has %s names, but must have at most 500',
      jsonb_array_length(p_request -> 'symbols')), hint = 'Ask for fewer at once.';
  end if;
  if exists (select 1 from jsonb_array_elements(coalesce(nullif(p_request -> 'symbols', 'null'), '[]')) s
             where jsonb_typeof(s) <> 'string' or length(s #>> '{}') > 64) then
    raise exception using errcode = 'TC001',
      message = 'symbol_suggestions: an entry of "symbols" is not a text of at most 64 characters',
      hint = 'Give the names as the master''s broker lists them.';
  end if;
  select * into v_follower from public.trading_accounts where id = v_copier.follower_account_id;
  select coalesce(jsonb_object_agg(y.master_symbol, y.follower_symbol), '{}') into v_mapped
  from public.symbol_mappings y where y.copier_id = v_copier.id;
  select jsonb_agg(private.suggest_symbol(v_copier.id, v_follower, s, v_mapped) order by s.name) into v_answers
  from (
    select x.* from public.account_symbols x
    where x.account_id = v_copier.master_account_id
      and (jsonb_typeof(p_request -> 'symbols') is distinct from 'array' or p_request -> 'symbols' ? x.name)
    order by x.name in (select p.symbol from public.positions p where p.account_id = v_copier.master_account_id) desc,
      x.name limit 500
  ) s;
  return jsonb_build_object('copier_id', v_copier.id, 'prefix', v_follower.symbol_prefix, 'suffix',
    v_follower.symbol_suffix,
    'symbols', coalesce(v_answers, '[]'));
end $$;

create function private.suggest_symbol(p_copier uuid, p_follower public.trading_accounts,
  p_master public.account_symbols, p_mapped jsonb)
returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_others jsonb := private.symbol_alternatives(p_follower, p_master);
  v_chosen public.account_symbols;
  v_how text := 'mapped';
  v_best text;
begin
  if p_mapped ? p_master.name then
    v_chosen := private.symbol_named(p_follower.id, p_mapped ->> p_master.name);
  else
    v_chosen := private.follower_symbol(p_follower, p_master);
    select case when v_chosen.name = p_master.name then 'exact' when c.rank = 1 then 'affix' when c.rank = 2
      then 'root' else 'alias' end into v_how
    from private.symbol_candidates(p_follower, p_master) c where c.name = v_chosen.name;
  end if;
  v_best := coalesce(v_chosen.name, (
    select e ->> 'name' from jsonb_array_elements(v_others) with ordinality as o (e, n)
    order by e ->> 'why_not' is not null, n limit 1));
  return jsonb_build_object('master_symbol', p_master.name, 'follower_symbol', v_chosen.name,
    'how', case when v_chosen.name is not null then v_how end,
    'why', case when v_chosen.name is null then private.unmapped_detail(p_copier, p_master.name)
      when v_how = 'mapped' then format('You have mapped it to %s.', v_chosen.name)
      when v_how = 'exact' then 'The follower has a symbol of the same name.'
      when v_how = 'affix' then format('%s carries the prefix and suffix that most of the follower''s symbols carry.',
        v_chosen.name)
      when v_how = 'root' then format('%s is the only one with this name inside.', v_chosen.name)
      else format('%s is another name of the same instrument.', v_chosen.name) end,
    'candidates', v_others,
    'save', case when v_best is not null then
      jsonb_build_object('id', p_copier, 'symbols', p_mapped || jsonb_build_object(p_master.name, v_best)) end);
end $$;

-- {"name", "instrument"} -> {"name", "instrument"}: operators add a name of an instrument, or remove one (instrument
-- null).
create function private.set_symbol_alias(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_name text := upper(private.text_of(p_request, 'name', 20));
  v_instrument text := upper(private.text_of(p_request, 'instrument', 20));
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_symbol_alias', array['name', 'instrument']);
  if coalesce(v_name, '') !~ '^[A-Z0-9]+$' or v_instrument !~ '^[A-Z0-9]+$' then
    raise exception using errcode = 'TC001',
      message = 'set_symbol_alias: a name has 1 to 20 letters and digits, without the broker''s prefix and suffix',
      hint = 'For example {"name": "GOLD", "instrument": "XAUUSD"}; instrument null removes the name.';
  end if;
  if v_instrument is null then
    delete from public.symbol_aliases where name = v_name;
  else
    -- the instrument may itself be given by one of its other names
    v_instrument := coalesce((select a.instrument from public.symbol_aliases a where a.name = v_instrument),
      v_instrument);
    insert into public.symbol_aliases (name, instrument)
    values (v_instrument, v_instrument) on conflict (name) do nothing;
    insert into public.symbol_aliases (name, instrument) values (v_name, v_instrument)
    on conflict (name) do update set instrument = excluded.instrument;
  end if;
  delete from private.symbol_choices where master_symbol is not null;
  return jsonb_build_object('name', v_name, 'instrument', v_instrument);
end $$;

-- Alerts the user to refusals that only the user can resolve.
create function private.tell_refusal() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(c.follower_account_id, 'copy', new.reason, 'warning', case new.reason
      when 'sanity' then format('A trade of %s was not copied: it would have been far larger, measured by the equity, '
        'than the master''s own. Check the copier''s sizing.',
        (select l.symbol from public.position_links l where l.id = new.link_id))
      else format('A trade was not copied. %s',
        coalesce(new.detail, 'The follower has no symbol for it: map it in the copier.')) end,
    jsonb_build_object('copier_id', c.id, 'event_id', new.event_id::text))
  from public.copiers c where c.id = new.copier_id;
  return null;
end $$;
create trigger tell_refusal after insert on public.copy_outcomes for each row
  when (new.reason in ('sanity', 'symbol_unmapped', 'symbol_unproven')) execute function private.tell_refusal();
-- a decision that waited for a symbol replaces the outcome
create trigger tell_refusal_after_wait after update of reason on public.copy_outcomes for each row
  when (old.reason = 'symbol_loading' and new.reason in ('sanity', 'symbol_unmapped', 'symbol_unproven'))
  execute function private.tell_refusal();

create function public.symbol_suggestions(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.symbol_suggestions(p_request) $$;
comment on function public.symbol_suggestions(jsonb) is
  'Users and operators: for each symbol of a copier''s master: the symbol it is copied into, alternatives, what to save.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- symbols (list of texts; at most 500 names of at most 64 characters): symbols of the master; left out or null: all of
  them, up to 500
Answer:
- copier_id (uuid): the copier
- prefix, suffix (text): prefix and suffix of most of the follower''s symbols
- symbols (list of objects): one per symbol that the master has; those with open positions first
- symbols[].master_symbol (text): symbol of the master
- symbols[].follower_symbol (text or null): symbol that it is copied into; null: none
- symbols[].how (text or null; mapped, exact, affix, root or alias): how that symbol was found
- symbols[].why (text): the same in a sentence
- symbols[].candidates (list of objects): alternatives, with name, contract_size, profit_currency and why_not
- symbols[].save (object or null): argument for save_copier if the user agrees with the likeliest candidate
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "symbols": ["EURUSD"]}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "prefix": "", "suffix": ".r", "symbols": [{
  "master_symbol": "EURUSD", "follower_symbol": "EURUSD.r", "how": "affix",
  "why": "EURUSD.r carries the prefix and suffix that most of the follower''s symbols carry.", "candidates": [],
  "save": {"id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "symbols": {"EURUSD": "EURUSD.r"}}}]}';

create function public.set_symbol_alias(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_symbol_alias(p_request) $$;
comment on function public.set_symbol_alias(jsonb) is 'Operators: adds another name of an instrument, or removes one.
Request:
- name (text; required; 1 to 20 letters and digits): the name, without a broker''s prefix and suffix
- instrument (text; 1 to 20 letters and digits): the instrument that it names; left out or null: the name is removed
Answer:
- name (text): the name, in capital letters
- instrument (text or null): the instrument, by its main name
Errors: TC001 TC107 TC301
Example: {"name": "YANKEE30", "instrument": "US30"} -> {"name": "YANKEE30", "instrument": "US30"}';

revoke all on function public.symbol_suggestions(jsonb), public.set_symbol_alias(jsonb) from public, anon;
grant execute on function public.symbol_suggestions(jsonb), private.symbol_suggestions(jsonb) to authenticated;
grant execute on function public.set_symbol_alias(jsonb), private.set_symbol_alias(jsonb) to authenticated,
  service_role;

-- users/symbol_mapping.sql
-- Mappings as users save them: their form, and warnings of names that an account does not have.

-- The follower's symbol in an entry of "symbols", which is a text or an object; null: there is none.
create function private.mapped_to(p_entry jsonb) returns text
language sql immutable set search_path = '' as $$
  select case jsonb_typeof(p_entry) when 'string' then p_entry #>> '{}'
    when 'object' then case when jsonb_typeof(p_entry -> 'to') = 'string' then p_entry ->> 'to' end end
$$;

create function private.mappings_in(p_symbols jsonb)
returns table (master text, follower text, lots_factor numeric, mode text)
language sql stable set search_path = '' as $$
  select btrim(e.key), btrim(private.mapped_to(e.value)),
    case when jsonb_typeof(e.value) = 'object' then (e.value ->> 'lots_factor')::numeric end,
    case when jsonb_typeof(e.value) = 'object' then e.value ->> 'mode' end
  from jsonb_each(p_symbols) e
$$;

-- What is wrong with a mapping's factor or mode, as the end of a sentence; null: nothing.
create function private.mapping_fault(p_mapping jsonb, p_allowed text[]) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when exists (select from jsonb_object_keys(p_mapping) k where k <> all (p_allowed))
      then 'may have only ' || private.one_of(p_allowed)
    when jsonb_typeof(p_mapping -> 'lots_factor') <> 'null'
      and private.is_number(p_mapping -> 'lots_factor') is not true
      then 'has a lots_factor that is not a number'
    when (p_mapping ->> 'lots_factor')::numeric not between 0.01 and 100
      then 'has a lots_factor that is not between 0.01 and 100'
    when jsonb_typeof(p_mapping -> 'mode') <> 'null' and (p_mapping ->> 'mode') not in ('on', 'closes_only', 'off')
      then 'has a mode that is not on, closes_only or off' end;
end $$;

-- Raises TC302 for a mapping with a wrong factor or mode, or for two of the same symbol.
create function private.refuse_bad_mappings(p_symbols jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_wrong text;
begin
  if coalesce(jsonb_typeof(p_symbols), 'null') <> 'object' then return; end if;
  select format('the mapping of %s %s', left(e.key, 64),
    private.mapping_fault(e.value, array['to', 'lots_factor', 'mode']))
  into v_wrong from jsonb_each(p_symbols) e
  where jsonb_typeof(e.value) = 'object'
    and private.mapping_fault(e.value, array['to', 'lots_factor', 'mode']) is not null limit 1;
  if v_wrong is null then
    select format('%s are one symbol, mapped twice', string_agg(k, ' and ' order by k)) into v_wrong
    from jsonb_object_keys(p_symbols) k group by upper(btrim(k)) having count(*) > 1 limit 1;
  end if;
  if v_wrong is not null then
    raise exception using errcode = 'TC302', message = 'save_copier: symbols: ' || v_wrong,
      hint = 'For example {"GOLD": {"to": "XAUUSD", "lots_factor": "0.5", "mode": "on"}}.';
  end if;
end $$;

-- The symbols of an account whose names are most like this one, at most three.
create function private.nearest_symbols(p_account uuid, p_name text) returns text
language sql stable security definer set search_path = '' as $$
  select string_agg(x.name, ', ') from (
    select s.name from public.account_symbols s
    cross join lateral (select count(*) filter (where strpos(upper(s.name), substr(upper(p_name), n, 2)) > 0) as shared
      from generate_series(1, greatest(1, length(p_name) - 1)) n) alike
    where s.account_id = p_account and alike.shared > 0
    order by alike.shared desc, abs(length(s.name) - length(p_name)), s.name limit 3
  ) x
$$;

-- A sentence for each mapped name that its account does not have, at most ten. An account that has told no symbol yet
-- is not judged.
create function private.mapping_warnings(p_copier public.copiers) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(format('symbols: the %s has no symbol %s%s.', x.side, x.name,
    coalesce('; the nearest are ' || private.nearest_symbols(x.account_id, x.name), ''))), '[]')
  from (
    select o.side, o.name, o.account_id from public.symbol_mappings y
    cross join lateral (values ('master', y.master_symbol, p_copier.master_account_id),
      ('follower', y.follower_symbol, p_copier.follower_account_id)) o (side, name, account_id)
    where y.copier_id = p_copier.id and exists (select from public.account_symbols s where s.account_id = o.account_id)
      and not exists (select from public.account_symbols s where s.account_id = o.account_id and s.name = o.name)
    order by o.side desc, o.name limit 10
  ) x
$$;

-- users/trading_switch.sql
-- set_trading: how operators stop and start all trading.

-- Operators: {"state": "on|monitor|off", "reason"} -> {"state", "reason", "changed_at", "settled"}. settled false: a
-- plan kept its locks too long. The switch applies to everything planned from now on, and the upkeep does the rest.
create function private.set_trading(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' set lock_timeout = '3s' set jit = off as $$
declare
  v_state text := p_request ->> 'state';
  v_reason text := coalesce(private.text_of(p_request, 'reason', 200), '');
  v_switch public.trading_switch;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_trading', array['state', 'reason']);
  if coalesce(v_state, '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'set_trading: state must be on, monitor or off',
      hint = 'monitor: nothing is opened anywhere, closes go on. off: frozen, closes included.';
  end if;
  if v_state <> 'on' and length(v_reason) < 3 then
    raise exception using errcode = 'TC303',
      message = format('set_trading: %s needs a reason of 3 to 200 characters', v_state),
      hint = 'All users read it.';
  end if;
  update public.trading_switch t set state = v_state, reason = v_reason, settled = false,
    changed_at = case when t.state = v_state then t.changed_at else clock_timestamp() end
  where t.one;
  begin
    perform private.sweep_trading(v_state);
  exception when lock_not_available or deadlock_detected then
    raise warning 'set_trading: an account is being planned now; the upkeep does the rest';
  end;
  select * into v_switch from public.trading_switch t where t.one;
  insert into private.doorbells as d (topic, changed_at, due)
  select 'user:' || a.user_id, clock_timestamp(), true from public.trading_accounts a where a.removed_at is null
  group by a.user_id
  union all select 'operators', clock_timestamp(), true
  on conflict (topic) do update set due = true, changed_at = excluded.changed_at where not d.due;
  return jsonb_build_object('state', v_switch.state, 'reason', v_switch.reason, 'changed_at',
    private.rfc3339(v_switch.changed_at),
    'settled', v_switch.settled);
end $$;

create function public.set_trading(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_trading(p_request) $$;
comment on function public.set_trading(jsonb) is
  'Operators: switches trading for everybody: on, monitor (closes only) or off (frozen), with a reason that users read.
Request:
- state (text; required; on, monitor or off): monitor opens nothing anywhere; off is frozen, closes included
- reason (text; required unless state is on; 3 to 200 characters): all users read it
Answer:
- state (text; on, monitor or off): the new state
- reason (text): the reason
- changed_at (time): when it was changed
- settled (boolean): false: an account was being planned; the switch applies all the same, and the upkeep does the rest
Errors: TC001 TC107 TC301 TC303
Example: {"state": "monitor", "reason": "News at 14:30"}
-> {"state": "monitor", "reason": "News at 14:30", "changed_at": "2026-12-01T09:30:00.000000Z", "settled": true}';

revoke all on function public.set_trading(jsonb) from public, anon;
grant execute on function public.set_trading(jsonb), private.set_trading(jsonb) to authenticated, service_role;

-- users/vps.sql
-- Functions by which operators drain and retire VPSes.

create function private.farm_vps(p_request jsonb) returns public.vps_instances
language plpgsql stable
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
begin
  select v.* into v_vps from public.vps_instances v
  where v.id = private.uuid_of(p_request, 'vps_id') and v.retired_at is null;
  if not found then
    raise exception using errcode = 'TC214', message = 'there is no such VPS, or it is retired',
      detail = p_request ->> 'vps_id',
      hint = 'Check the id.';
  end if;
  return v_vps;
end
$$;
comment on function private.farm_vps(jsonb) is
  'The VPS that the request names in vps_id; TC214 if it does not exist or is retired.';

-- Security definer: it writes vps_instances.
create function private.drain_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer := 0;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'drain_vps', array['vps_id', 'drain']);
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  if coalesce(p_request ->> 'drain', 'true') = 'true' then
    update public.vps_instances set status = 'draining'
    where id = v_vps.id and status in ('enrolled', 'online', 'offline', 'draining');
    v_moved := private.place_homeless(500);
  else
    -- One that is offline comes back with its next heartbeat.
    update public.vps_instances set status = case when lease_expires_at > now() then 'online' else 'offline' end
    where id = v_vps.id and status = 'draining';
  end if;
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.drain_vps(jsonb) is
  'Operators: {"vps_id", "drain": true} -> {"vps_id", "moved", "left"}. Its accounts move as other VPSes can take '
  'them; "drain": false ends the draining.';

-- Security definer: it writes vps_instances.
create function private.retire_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'retire_vps', array['vps_id']);
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  update public.vps_instances set status = 'retired', retired_at = clock_timestamp()
  where id = v_vps.id and retired_at is null;
  delete from private.vps_secrets s where s.vps_id = v_vps.id;
  v_moved := private.place_homeless(500);
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.retire_vps(jsonb) is
  'Operators: {"vps_id"} -> {"vps_id", "moved", "left"}. Permanent and immediate: its agent is refused from now on.';

create function public.drain_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.drain_vps(p_request) $$;
comment on function public.drain_vps(jsonb) is
  'Operators: drains a VPS: it gets no new accounts, and those on it move as other VPSes can take them. Also ends the '
  'draining.
Request:
- vps_id (uuid; required): VPS that is not retired
- drain (boolean): false ends the draining; left out or null: true
Answer:
- vps_id (uuid): the VPS
- moved (integer): accounts that were moved by this call
- left (integer): accounts that are still on it
Errors: TC001 TC107 TC214 TC301
Example: {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "moved": 12, "left": 0}';

create function public.retire_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.retire_vps(p_request) $$;
comment on function public.retire_vps(jsonb) is
  'Operators: removes a VPS from the farm, permanently and at once: its agent is refused from now on.
Request:
- vps_id (uuid; required): VPS that is not retired
Answer:
- vps_id (uuid): the VPS
- moved (integer): accounts that were moved by this call
- left (integer): accounts that are still on it; they move as soon as another VPS can take them
Errors: TC001 TC107 TC214 TC301
Example: {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "moved": 12, "left": 0}';
grant execute on function
  private.drain_vps(jsonb),
  public.drain_vps(jsonb),
  private.retire_vps(jsonb),
  public.retire_vps(jsonb)
to authenticated, service_role;

-- views/views.sql
-- Views for people: Studio, the dashboard, checks.

create view public.unexplained_pairs with (security_invoker = true) as
select e.id as event_id, e.received_at, e.account_id, e.type, e.ticket, c.id as copier_id, c.follower_account_id
from public.trade_events e
join public.copiers c on c.master_account_id = e.account_id and c.created_at <= e.received_at
  and (c.removed_at is null or c.removed_at > e.received_at)
left join public.copy_outcomes o on o.event_id = e.id and o.copier_id = c.id
-- outcomes of older events may have been deleted
where e.status = 'accepted' and e.type <> 'snapshot' and e.received_at > now() - interval '30 days'
  and (o.event_id is null
    or (o.execution_id is not null and not exists (select 1 from public.trade_execution_queue q
      where q.id = o.execution_id)));
comment on view public.unexplained_pairs is
  'Every (event, copier) pair that has neither a copy nor a reason. It must be empty; a row here is a bug.';
grant select on public.unexplained_pairs to authenticated, service_role;

-- Times, prices and units are described in the comments below. Every join is an index look-up from the requested
-- outcomes, newest first by user (copy_outcomes_of_user) or for operators (copy_outcomes_decided). Two time windows
-- limit the event's look-up to a few partitions; for an outcome decided later than that, the missing columns come from
-- the mirror.
create view public.copied_trades with (security_invoker = true) as
select o.event_id, o.copier_id, o.user_id, o.link_id, o.decided_at,
  c.name as copier, c.master_account_id, c.follower_account_id,
  e.type as event, coalesce(e.ticket, l.master_ticket) as master_ticket, coalesce(e.symbol, m.symbol) as master_symbol,
  coalesce(e.side, l.master_side) as master_side, e.lots as master_lots, e.previous_lots as master_previous_lots,
  coalesce(e.deal_price, case when x.action = 'open' and x.parts is null then x.master_price end) as master_price,
  coalesce(x.symbol, l.symbol) as symbol, coalesce(case when x.parts is null then x.side end, l.side) as side,
  case
    when o.reason = 'symbol_loading' then 'in_flight'
    when x.id is null then 'not_copied'
    when d.waiting > 0 then 'in_flight'
    when d.failed = 0 and not d.short and t.reason is null then 'copied'
    when d.filled_lots > 0 or d.short and d.filled_lots is null then 'partly'
    when d.failed < d.orders then 'copied'
    else 'not_copied' end as status,
  coalesce(o.reason, d.reason, t.reason) as reason, o.detail, d.message,
  array(select distinct w from unnest(coalesce(x.warnings, '{}') || coalesce(l.warnings, '{}')) w
    order by w) as warnings,
  d.orders, d.attempts, d.filled_lots, d.fill_price,
  round(d.slippage_points, 2) as slippage_points, round(d.slippage_money, 4) as slippage_money, fa.currency,
  e.detect_ms, d.decide_ms, d.transport_ms, d.lane_ms, d.broker_ms, d.total_ms
from public.copy_outcomes o
left join public.copiers c on c.id = o.copier_id
left join public.trading_accounts fa on fa.id = c.follower_account_id
left join public.position_links l on l.id = o.link_id
-- why the other side of a flip was refused by a rule
left join public.position_links t on t.copier_id = l.copier_id and t.master_ticket = l.master_ticket
  and t.master_kind = l.master_kind
  and t.generation = l.generation + 1
  and t.event_id = o.event_id and t.ended_at = t.created_at
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
  and m.kind = l.master_kind
left join public.trade_events e on e.id = o.event_id and e.received_at > o.decided_at - interval '7 days'
  and e.received_at < o.decided_at + interval '1 day'
left join public.trade_execution_queue x on x.id = o.execution_id
left join lateral (
  select count(*) as orders, count(*) filter (where q.finalized_at is null) as waiting,
    -- an order that was refused or partly filled is no failure if another order has completed the step since
    count(*) filter (where q.status in ('rejected', 'expired', 'cancelled')
      and q.step_id >= coalesce(q.done_step, 0)) as failed,
    coalesce(bool_or(q.finalized_at is not null and q.filled_lots < q.lots
      and q.action in ('open', 'increase', 'reduce', 'close')
      and q.status = 'completed' and q.step_id >= coalesce(q.done_step, 0)), false) as short,
    max(q.attempt) as attempts,
    (array_agg(q.reason order by q.finalized_at is null desc, q.id desc) filter (where q.reason is not null
      and q.step_id >= coalesce(q.done_step, 0)))[1] as reason,
    (array_agg(q.message order by q.finalized_at is null desc, q.id desc) filter (where q.reason is not null
      and q.step_id >= coalesce(q.done_step, 0)))[1] as message,
    sum(f.lots) as filled_lots, sum(f.lots * q.fill_price) / nullif(sum(f.lots), 0) as fill_price,
    -- null if one fill cannot be compared: the sum would be too small
    case when bool_and(s.points is not null) filter (where f.lots > 0)
      then sum(f.lots * s.points) / nullif(sum(f.lots), 0) end
      as slippage_points,
    case when bool_and(s.points * q.point_money is not null) filter (where f.lots > 0)
      then sum(f.lots * s.points * q.point_money) end
      as slippage_money,
    max(case when q.queued_at >= q.detected_at
      then extract(epoch from q.queued_at - q.detected_at) * 1000 end) as decide_ms,
    max(case when q.received_at >= coalesce(q.offered_at, q.queued_at)
      then extract(epoch from q.received_at - coalesce(q.offered_at, q.queued_at)) * 1000 end) as transport_ms,
    max(case when q.sent_at >= q.received_at then extract(epoch from q.sent_at - q.received_at) * 1000 end) as lane_ms,
    max(case when q.done_at >= q.sent_at then extract(epoch from q.done_at - q.sent_at) * 1000 end) as broker_ms,
    max(case when q.sent_at >= q.detected_at then extract(epoch from q.sent_at - q.detected_at) * 1000 end) as total_ms
  from (
    -- the step; the open of a flip, which names the step that closed; what was queued again after a refusal
    select y.*, max(y.step_id) filter (where y.status = 'completed') over (partition by y.action) as done_step
    from public.trade_execution_queue y
    where y.id = x.id or y.event_id = x.event_id and y.copier_id = x.copier_id and (y.step_id = x.step_id
      or y.after_id = x.step_id and x.action in ('close', 'cancel') or y.action = x.action and y.link_id = x.link_id)
  ) q
  -- this copier's part of the order; of a netting deal its own part, which is unknown only if several parts shared a
  -- partial fill
  left join lateral (
    select case when (p.value ->> 'lots')::numeric < 0 then -1 else 1 end * case p.value ->> 'side' when 'buy'
      then 1 else -1 end as direction,
      case when jsonb_array_length(q.parts) = 1 then q.filled_lots when q.filled_lots = q.lots
        then abs((p.value ->> 'lots')::numeric) end as lots
    from jsonb_array_elements(q.parts) p where p.value ->> 'link_id' = o.link_id::text
  ) part on q.parts is not null
  cross join lateral (
    select case when q.parts is null then q.filled_lots else part.lots end as lots,
      case when q.parts is not null then part.direction
        else case q.side when 'buy' then 1 else -1 end * case
          when q.action in ('open', 'increase') then 1 else -1 end end as direction
  ) f
  cross join lateral (
    select f.direction * (q.fill_price
      - coalesce(e.deal_price, case when q.action = 'open' and q.parts is null
        then q.master_price end)) / q.point_size as points
  ) s
  where q.parts is null or part.direction is not null
) d on x.id is not null;
comment on view public.copied_trades is
  'The result of every trade event for every copier: what was traded, at what price, how late and how far from the '
  'master''s price; or the one reason why not.';
comment on column public.copied_trades.event is
  'what the master did: opened, increased, reduced, modified, closed, ordered, amended, cancelled';
comment on column public.copied_trades.master_lots is 'lots of the master''s position after the event';
comment on column public.copied_trades.master_price is 'price of the master''s deal; null = not reported, or no deal';
comment on column public.copied_trades.symbol is 'the follower''s symbol';
comment on column public.copied_trades.side is 'side of the follower''s position';
comment on column public.copied_trades.status is
  'copied; partly (less was filled than ordered); in_flight; not_copied (see reason)';
comment on column public.copied_trades.reason is
  'code of docs/errors.md: why nothing, or only a part, was copied, or what the order waits for';
comment on column public.copied_trades.detail is 'the steps of the size calculation, in words';
comment on column public.copied_trades.message is 'the message of the broker or the agent';
comment on column public.copied_trades.warnings is
  'how the copy differs from the settings: capped, split, forced_min, …';
comment on column public.copied_trades.orders is 'number of orders for the copy';
comment on column public.copied_trades.filled_lots is
  'lots traded at the follower; null = not known (a partly filled netting deal of several copies)';
comment on column public.copied_trades.fill_price is 'average price of the fills, weighted by lots';
comment on column public.copied_trades.slippage_points is
  'points of the follower''s symbol between the master''s deal and the fills, weighted by lots; above 0 = worse for '
  'the follower';
comment on column public.copied_trades.slippage_money is
  'the same for all lots in the follower''s currency, by the exchange rate at the fill; above 0 = lost. Without '
  'commission and swap';
comment on column public.copied_trades.currency is 'currency of the follower''s account';
comment on column public.copied_trades.detect_ms is
  'ms from the deal at the master''s broker to its detection by the agent; null = not reported';
comment on column public.copied_trades.decide_ms is
  'ms from the detection to the decision; for this and the following columns the slowest order counts; null = not '
  'known';
comment on column public.copied_trades.transport_ms is
  'ms from the decision (or the new attempt) to the follower''s agent';
comment on column public.copied_trades.lane_ms is 'ms that the order waited at the agent before it was sent';
comment on column public.copied_trades.broker_ms is 'ms that the broker took to answer';
comment on column public.copied_trades.total_ms is 'ms from the detection until the order was sent';
grant select on public.copied_trades to authenticated, service_role;
