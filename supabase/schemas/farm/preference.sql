-- user_preferences: how a person wants the pages shown. Who never chose anything has no row.

create table public.user_preferences (
  user_id uuid primary key references auth.users (id) on delete cascade,
  time_zone text,
  theme text not null default 'system',
  tour text not null default 'open',
  updated_at timestamptz not null default now(),
  constraint theme_is_known check (theme in ('system', 'light', 'dark')),
  constraint tour_is_known check (tour in ('open', 'left', 'done'))
);
comment on table public.user_preferences is
  'How a person wants the pages shown. Changed with set_preferences(); no row: the defaults.';
comment on column public.user_preferences.user_id is 'The person.';
comment on column public.user_preferences.time_zone is
  'Time zone in which days of accounts begin and times are shown, such as Europe/Berlin; null = not chosen: UTC.';
comment on column public.user_preferences.theme is 'system, light or dark';
comment on column public.user_preferences.tour is
  'the tour of a new user: open = shown while there is no copied trade; left = closed by the user; done = finished';
alter table public.user_preferences enable row level security;
create policy "own preferences are readable" on public.user_preferences for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.user_preferences for each row execute function private.touch();
create trigger audited after insert or update or delete on public.user_preferences for each row
  execute function private.audit('user_id', 'user_id', 'time_zone', 'theme', 'tour');
grant select on public.user_preferences to authenticated, service_role;

create function private.time_zone_of(p_user uuid) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce((select p.time_zone from public.user_preferences p where p.user_id = p_user), 'UTC');
end $$;
comment on function private.time_zone_of(uuid) is 'The time zone that a person has chosen; UTC if none.';
