-- Who reads a page. A page function answers one page in one call: jsonb in, jsonb out, lots and money as texts, times
-- in RFC 3339, and server_time, the database's clock, by which the page tells the age of what it shows.

-- Security definer: only so can an agent be told from a person.
create function private.page_user() returns uuid
language sql stable security definer set search_path = '' as $$ select private.require_user() $$;
comment on function private.page_user() is
  'The signed-in person who reads a page; TC108 if nobody is signed in, TC105 if the caller is an agent.';

create function private.page_reader(p_request jsonb) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
begin
  if coalesce(jsonb_typeof(p_request -> 'all'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'all: expected true or false';
  end if;
  if p_request -> 'all' = 'true' then
    perform private.require_operator();
    return null;
  end if;
  return v_user;
end $$;
comment on function private.page_reader(jsonb) is
  'The user whose rows a page shows: the caller; null = everybody''s, for an operator who asks with "all": true (TC107 '
  'from others).';

create function private.server_time() returns text
language sql volatile set search_path = '' as $$ select private.rfc3339(clock_timestamp()) $$;
comment on function private.server_time() is 'The database''s clock now, for server_time of a page.';
grant execute on function private.page_user(), private.page_reader(jsonb), private.server_time() to authenticated;

-- What page functions call with their reader's rights.
grant execute on function private.refuse_unknown(jsonb, text, text[]), private.uuid_of(jsonb, text),
  private.text_of(jsonb, text, integer), private.name_of(jsonb, text, integer),
  private.int_of(jsonb, text, bigint, bigint), private.time_of(jsonb, text), private.is_plain(text),
  private.plain(numeric), private.plain_name(text), private.rfc3339(timestamptz), private.require_user(),
  private.own_account(uuid, boolean)
to authenticated;
