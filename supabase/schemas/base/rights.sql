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
