-- The protocol version, and which answers to heartbeats an agent has worked through. An agent that sends heartbeats but
-- fails on every answer would otherwise hold its accounts and trade none of them.
--
-- Each answer has a number, and each heartbeat names the last answer that was worked through. If that answer is older
-- than a lease, the heartbeat renews no lease and hands out nothing until the agent has worked through an answer again.

create function private.protocol_version() returns integer
language sql immutable
set search_path = ''
as $$ select 2 $$;
comment on function private.protocol_version() is
  'Version of docs/protocol.md that this database speaks. Agents with an older version are refused.';

create function private.check_protocol(p_heartbeat jsonb) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_version bigint := coalesce(private.int_of(p_heartbeat, 'protocol_version', 1, 1000000), 1);
begin
  if v_version < private.protocol_version() then
    raise exception using errcode = 'TC111',
      message = format('this agent speaks protocol %s, the database needs %s', v_version, private.protocol_version()),
      hint = 'On this VPS, update the agent to the version of the database and restart it; until then it trades '
        'nothing.';
  end if;
end
$$;
comment on function private.check_protocol(jsonb) is
  'Raises TC111 if the agent speaks an older protocol. A newer agent decides by the version in the answer.';

-- The number is the time in microseconds, and grows. If the clock was set back, the numbers start again from the new
-- time; an answer given before is then in the future and counts as never given.
create function private.next_answer(p_last bigint) returns bigint
language sql volatile
set search_path = ''
as $$
  select case when p_last between n.now and n.now + 1000000 then p_last + 1 else n.now end
  from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as now) n
$$;
comment on function private.next_answer(bigint) is 'The number of the answer after the one with this number.';

create function private.given_at(p_vps public.vps_instances, p_answer bigint) returns timestamptz
language sql stable
set search_path = ''
as $$
  select g.at from (select 'epoch'::timestamptz + p_answer * interval '1 microsecond' as at) g
  where p_answer <= p_vps.answer_id and g.at >= coalesce(p_vps.process_since, p_vps.created_at)
$$;
comment on function private.given_at(public.vps_instances, bigint) is
  'When this answer was given to the current process of the VPS; null: it never was.';
