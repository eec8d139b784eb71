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
  return coalesce(jsonb_typeof(p), 'null') = 'null' or jsonb_typeof(p) = 'object'
    and coalesce(private.is_number(p -> 'bid') and private.is_number(p -> 'ask'), false);
end $$;
