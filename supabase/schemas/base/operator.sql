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
