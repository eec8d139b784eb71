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
