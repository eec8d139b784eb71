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

-- A time in messages: 2026-11-29 12:30:05 UTC.
create function private.utc_words(p_at timestamptz) returns text
language sql immutable
set search_path = ''
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') $$;
