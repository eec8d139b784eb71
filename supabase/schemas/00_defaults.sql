-- What every later file relies on: nothing is callable or readable unless a line says so by name.
--
-- Three places for a function:
--   private.*  security definer, checks who calls before it does anything. The schema is not exposed by the API, so
--              the caller's role may hold EXECUTE without anybody reaching the function from outside.
--   public.*   one-line security invoker wrappers: the API's surface, granted to roles by name.
--   private.*  without a grant: parts that only other functions call.

create schema if not exists private;
comment on schema private is 'Functions with their owner''s rights, partitions and secrets. Never exposed by the API.';

-- Without "in schema": a default per schema can only add to the global one, and the global one grants to public.
alter default privileges revoke execute on functions from public;

-- Projects created before mid 2026 also grant everything new in public to the API roles by name.
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;

revoke all on schema private from public;
grant usage on schema private to authenticated, service_role;


-- Sets updated_at; the doorbells find what changed by it.
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


-- Reading requests: a field of the wrong kind is an error that names the field (TC001), never a cast's message.
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
comment on function private.uuid_of(jsonb, text) is 'A required field that is a UUID; TC001 otherwise.';


create function private.text_of(p_request jsonb, p_field text, p_max integer) returns text
language plpgsql immutable
set search_path = ''
as $$
declare
  v_text text := nullif(trim(p_request ->> p_field), '');
begin
  if v_text is not null and (jsonb_typeof(p_request -> p_field) <> 'string' or length(v_text) > p_max) then
    raise exception using errcode = 'TC001', message = format('%s: expected a string of at most %s characters', p_field, p_max);
  end if;
  return v_text;
end
$$;
comment on function private.text_of(jsonb, text, integer) is 'An optional string, trimmed; null if it is missing or empty; TC001 if it is too long.';


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
    raise exception using errcode = 'TC001', message = format('%s: expected a whole number from %s to %s', p_field, p_min, p_max),
      detail = left(v_text, 100);
  end if;
  return v_text::bigint;
end
$$;
comment on function private.int_of(jsonb, text, bigint, bigint) is 'An optional whole number within limits; TC001 otherwise.';


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
  -- NaN and the infinities are numeric to Postgres; no account, clock or machine has such a figure.
  if not pg_input_is_valid(v_text, 'numeric') or v_text::numeric in ('NaN', 'Infinity', '-Infinity')
    or abs(v_text::numeric) >= 1e24 then
    raise exception using errcode = 'TC001', message = format('%s: expected a finite number', p_field), detail = left(v_text, 100);
  end if;
  return v_text::numeric;
end
$$;
comment on function private.numeric_of(jsonb, text) is 'An optional finite number, as a JSON string or number; TC001 otherwise.';


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
    raise exception using errcode = 'TC001', message = format('%s: expected a time as RFC 3339', p_field), detail = left(v_text, 100);
  end if;
  return v_text::timestamptz;
end
$$;
comment on function private.time_of(jsonb, text) is 'An optional time; TC001 if it is none.';
