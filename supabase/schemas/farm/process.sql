-- Which agent process works as a VPS. A machine that is cloned while it runs exists twice with one identity, and each
-- copy would send every order. The newest process works; the one before is refused (TC110) and stops.
--
-- A process identifies itself in each heartbeat: {"id", "machine", "beat", "new"}.
--   machine  equal to the previous process's only if the lock on the agent's data directory proves that process ended.
--            Then the new process begins at once. Otherwise it begins when the previous lease is over, because the
--            previous process may not have noticed yet.
--   beat     counts up, so a copy of a running process, which has the same id, is noticed too.
--   new      is set until the process gets its first answer.

create function private.refuse_process(p_vps uuid) returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC110', message = 'another process works as this VPS', detail = p_vps::text,
    hint = 'Two machines run with one identity (a clone?). Stop one of them, or enrol it as a separate VPS; this one '
      'trades nothing until the other is gone.';
end
$$;
comment on function private.refuse_process(uuid) is
  'Raises TC110: the calling process is not, or no longer, the one that works as this VPS.';

-- The caller stores the beat.
create function private.admit_process(p_vps uuid, p_process jsonb) returns timestamptz
language plpgsql
set search_path = ''
as $$
declare
  v_id text := private.text_of(p_process, 'id', 64);
  v_machine text := private.text_of(p_process, 'machine', 64);
  v_beat bigint := private.int_of(p_process, 'beat', 0, 9223372036854775807);
  v_old public.vps_instances;
  v_alive boolean;
  v_begins_at timestamptz := clock_timestamp();
begin
  if v_id is null or v_beat is null then
    return '-infinity';
  end if;
  select v.* into v_old from public.vps_instances v where v.id = p_vps for no key update;
  v_alive := v_old.process is not null and v_old.lease_expires_at > clock_timestamp();
  if v_old.process = v_id and v_beat > v_old.process_beat then
    return v_old.process_begins_at;
  end if;
  if v_alive and (v_old.process = v_id or p_process -> 'new' is distinct from 'true') then
    perform private.refuse_process(p_vps);
  end if;
  if v_alive then
    v_begins_at := greatest(v_begins_at, v_old.process_begins_at);
  end if;
  if v_alive and v_old.process_machine is distinct from v_machine then
    v_begins_at := greatest(v_begins_at, v_old.lease_expires_at);
    perform private.write_audit('process_replaced', 'vps_instances', p_vps::text, null,
      jsonb_build_object('since', v_old.process_since, 'begins_at', private.rfc3339(v_begins_at)));
    -- a process that still listens on the topic sends a heartbeat, and is refused
    perform private.broadcast('vps:' || p_vps, 'assignments', '{}');
  end if;
  update public.vps_instances v
  set process = v_id, process_machine = v_machine, process_since = clock_timestamp(), process_begins_at = v_begins_at,
      -- A new process has one lease's time to work through an answer, but not if the one before never did.
      worked_at = case when v.process_worked then clock_timestamp() else v.worked_at end, process_worked = false
  where v.id = p_vps;
  return v_begins_at;
end
$$;
comment on function private.admit_process(uuid, jsonb) is
  'When the calling process may begin to trade as this VPS; -infinity if it did not identify itself; TC110 if another '
  'one works as the VPS.';
