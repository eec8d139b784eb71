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

-- Agents and the database put a code before the words of a status, so that programs can read it; people need the words.
create function private.without_code(p_text text) returns text
language sql immutable
set search_path = ''
as $$ select regexp_replace(p_text, '^[a-z][a-z0-9_]{1,39}: ', '') $$;
comment on function private.without_code(text) is 'The words of "code: words".';

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
