-- Checks of the caller: a user, or the service key.

create function private.require_service() returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if coalesce(auth.role(), '') <> 'service_role' then
    raise exception using errcode = 'TC109', message = 'only the service key may do this',
      hint = 'Call it from an Edge Function or the command line, with the project''s secret key.';
  end if;
end
$$;
comment on function private.require_service() is 'Raises TC109 unless the caller holds the service key.';

create function private.require_user() returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_user uuid := auth.uid();
begin
  if v_user is null then
    raise exception using errcode = 'TC108', message = 'nobody is signed in', hint = 'Sign in and try again.';
  end if;
  if exists (select from public.vps_instances v where v.user_id = v_user) then
    raise exception using errcode = 'TC105', message = 'agents may not call this function',
      hint = 'Sign in as a user.';
  end if;
  return v_user;
end
$$;
comment on function private.require_user() is
  'The signed-in user who is calling; TC108 if nobody is signed in, TC105 if the caller is an agent.';
