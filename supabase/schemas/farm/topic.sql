-- Realtime topics and who may listen to them. There is no policy for insert, so only the database can publish.

-- All broadcasts go through this function. The payload must be an object: realtime.send drops anything else without an
-- error. Security definer: the owner bypasses the policies of realtime.messages, which let nobody write there.
create function private.broadcast(p_topic text, p_event text, p_payload jsonb) returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if jsonb_typeof(p_payload) is distinct from 'object' then
    raise exception 'broadcast payload: expected an object';
  end if;
  perform realtime.send(p_payload, p_event, p_topic, true);
end
$$;
comment on function private.broadcast(text, text, jsonb) is
  'Sends an event to a private topic. A lost broadcast is no error: the row is authoritative.';

-- Security definer: it reads vps_instances, which listeners may not.
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
  'Whether the caller may join a topic: vps:<id>: the agent of that VPS; user:<id>: that user; operators: '
  'operators.';
create policy "agents, users and operators hear their own topic" on realtime.messages for select to authenticated
  using (extension = 'broadcast' and (select private.may_listen((select realtime.topic()))));
grant execute on function private.may_listen(text) to authenticated;
