-- Who may listen to which topic. There is no policy for insert: only the database itself publishes.

-- Security definer: reads vps_instances, which listeners may not.
create function private.may_listen(p_topic text) returns boolean
language sql stable security definer
set search_path = ''
as $$
  select case
    when p_topic like 'vps:%' then exists (
      select from public.vps_instances v
      where v.user_id = auth.uid() and v.retired_at is null and p_topic = 'vps:' || v.id)
    when p_topic like 'user:%' then p_topic = 'user:' || auth.uid()
    when p_topic = 'operators' then private.is_operator()
    else false
  end
$$;
comment on function private.may_listen(text) is
  'Whether the caller may join a topic: vps:<id> only the agent of that VPS, user:<id> only that user, operators only operators.';

create policy "agents, users and operators hear their own topic" on realtime.messages for select to authenticated
  using (extension = 'broadcast' and (select private.may_listen((select realtime.topic()))));

grant execute on function private.may_listen(text) to authenticated;
