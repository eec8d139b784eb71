-- The function by which operators declare that a backup was restored.

-- {"highest": "123" | null} -> what it changed. Needed when no agent can tell: every agent was enrolled again, or the
-- backup is older than 10,000,000 executions, beyond which an agent is not believed.
create function private.note_restored(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_highest bigint;
begin
  perform private.require_service();
  perform private.refuse_unknown(p_request, 'note_restored', array['highest']);
  v_highest := private.int_of(p_request, 'highest', 0, 1000000000000000);
  perform private.check_start();
  perform private.lock_generation();
  return private.begin_generation(v_highest, null, 'operator', '{}');
end
$$;
comment on function private.note_restored(jsonb) is
  'Service key: declares that a backup was restored: {"highest"} -> what it changed (see public.note_restored).';

create function public.note_restored(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.note_restored(p_request) $$;
comment on function public.note_restored(jsonb) is
  'Service key: declares that a backup was restored: execution numbers, sessions and epochs jump, trading goes to '
  'monitor, nothing is opened.
Request:
- highest (integer; 0 to 1000000000000000): highest execution number known from elsewhere; left out or null: none
Answer:
- generation (integer): the new generation
- reason (text; operator): who reported it
- last_execution_id_before (text): last execution number of the backup
- highest_execution_id (text or null): the value of highest
- last_execution_id (text): the number after which new ones continue
- accounts (integer): accounts whose session and epoch jumped
- executions (integer): executions whose outcome is now unknown and is looked for
- trading (text; monitor or off): the new state of the trading switch
Errors: TC001 TC109 TC301
Example: {"highest": 52341}
-> {"generation": 2, "reason": "operator", "last_execution_id_before": "51200", "highest_execution_id": "52341",
"last_execution_id": "1052341", "accounts": 14, "executions": 3, "trading": "monitor"}';
grant execute on function private.note_restored(jsonb), public.note_restored(jsonb) to service_role;
