-- server_requests: servers that people looked for and did not find. Operators list them, or not.

create table public.server_requests (
  user_id uuid not null references auth.users (id) on delete cascade,
  platform text not null,
  name text not null,
  name_key text not null generated always as (private.plain_name(name)) stored,
  created_at timestamptz not null default now(),
  constraint names_are_short check (length(platform) between 1 and 50 and length(name) between 1 and 100),
  constraint asked_for_once primary key (user_id, platform, name_key)
);
comment on table public.server_requests is
  'Broker servers that people miss in broker_servers, one row per person and name.';
comment on column public.server_requests.name is 'The server''s name, as it was typed.';
comment on column public.server_requests.name_key is 'The name without differences of case and blanks.';
alter table public.server_requests enable row level security;
create policy "own requests are readable" on public.server_requests for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.server_requests to authenticated, service_role;
