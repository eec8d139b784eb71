-- vps_heartbeat: an agent renews its lease and learns what to do. docs/protocol.md describes request and answer.

-- Executions as agents read them, for a heartbeat. An execution that cannot be read is left out, so that it does not
-- keep the VPS from renewing its lease.
create function private.executions_isolated(p_executions bigint[]) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_rows jsonb := '[]';
  v_context text;
  q public.trade_execution_queue;
begin
  for q in select * from public.trade_execution_queue x where x.id = any (p_executions) order by x.priority, x.id loop
    begin
      v_rows := v_rows || private.execution_json(q);
    exception when others then
      if not private.is_fault(sqlstate) then raise; end if;
      get stacked diagnostics v_context = pg_exception_context;
      perform private.note_fault(q.account_id, 'offer', q.id::text, null, q.account_id,
        format('handing out execution %s', q.id), sqlerrm, v_context,
        clock_timestamp());
    end;
  end loop;
  return v_rows;
end $$;

-- The assignments of a VPS, for a heartbeat. An account is included even if the planner fails on what to watch for it.
create function private.assignments_isolated(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_all jsonb := '[]';
  v_account uuid;
begin
  begin
    return private.assignments_of(p_vps);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
  end;
  for v_account in select s.account_id from public.account_vps_assignments s where s.vps_id = p_vps order by 1 loop
    v_all := v_all || private.assignments_of(p_vps, v_account,
      exists (select 1 from private.quarantine f where f.account_id = v_account and f.kind = 'watch')
      or private.attempt(v_account, 'watch', '', null, clock_timestamp()) is null);
  end loop;
  return v_all;
end $$;

-- All outstanding executions of the accounts that a VPS works now. Executions not yet handed out are handed out here.
create function private.outstanding_executions(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_unoffered bigint[];
  v_aside bigint[];
  v_rows jsonb;
begin
  if exists (select 1 from public.trade_execution_queue q
    where q.status = 'retrying' and q.next_attempt_at <= v_now and q.attempt = 0) then
    begin
      perform private.maintain_executions(true);  -- opens that were held back: they are due within seconds
    exception when others then  -- the lease must be renewed even if this fails
      raise warning 'outstanding_executions: % (%)', sqlerrm, sqlstate;
    end;
  end if;
  v_aside := private.set_aside_executions();
  select array_agg(q.id) into v_unoffered
  from public.account_vps_assignments a
  join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
  where a.vps_id = p_vps and q.status = 'queued' and q.offered_at is null
    and (not private.opens(q) or q.queued_at > v_now - interval '5 s') and q.id <> all (v_aside);
  if v_unoffered is not null then
    perform private.offer_isolated(v_unoffered, p_vps, v_now);
  end if;
  begin
    select coalesce(jsonb_agg(private.execution_json(q) order by q.priority, q.id), '[]') into v_rows
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.status in ('queued', 'unknown') and q.offered_at is not null
      and q.id <> all (v_aside);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    v_rows := private.executions_isolated(array(
      select q.id from public.account_vps_assignments a
      join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
      where a.vps_id = p_vps and q.status in ('queued', 'unknown') and q.offered_at is not null
        and q.id <> all (v_aside)));
  end;
  return v_rows;
end $$;

create function private.cancel_requests(p_vps uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(q.id::text), '[]')
    from public.account_vps_assignments a
    join public.trade_execution_queue q on q.account_id = a.account_id and q.in_flight
    where a.vps_id = p_vps and q.cancel_requested_at is not null);
end $$;

-- If a VPS that lost an account reports {"status": "released"} for its last session, it can send no more orders for it,
-- and the next VPS need not wait for the old lease. A VPS that reports nothing may still be trading.
create function private.note_releases(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_next uuid;
begin
  for v_next in
    with released as (
      update public.account_vps_assignments s
      set begins_at = least(s.begins_at, clock_timestamp()), previous_vps_id = null
      from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
      join public.trading_accounts a on a.id = said.account_id
      where s.account_id = said.account_id and s.previous_vps_id = p_vps and s.vps_id <> p_vps
        and said.status = 'released' and said.session = a.session and a.session_vps_id = p_vps
      returning s.vps_id
    )
    select distinct r.vps_id from released r
  loop
    perform private.broadcast('vps:' || v_next, 'assignments', '{}');
  end loop;
end
$$;
comment on function private.note_releases(uuid, jsonb) is
  'Lets the next VPS begin at once where this one reports that it has given up an account.';

-- p_vps: the row before this heartbeat. Only while the lease runs: afterwards the VPS is offline, which has an alert of
-- its own. Not after a silence: then the last answer is old too, and the next heartbeat names a newer one.
create function private.alert_stalled_agent(p_vps public.vps_instances, p_lease interval) returns void
language plpgsql
set search_path = ''
as $$
begin
  perform private.alert_operators(p_vps.id, 'vps', 'answers_not_worked_through', 'critical', format(
    'VPS %s sends heartbeats but works through none of the answers: its lease is not renewed, its accounts move when '
    'it ends. See the agent''s log.', p_vps.name),
    jsonb_build_object('since', private.rfc3339(p_vps.worked_at), 'agent_version', p_vps.agent_version))
  where p_vps.last_heartbeat_at > now() - p_lease / 2 and p_vps.lease_expires_at > now();
end
$$;
comment on function private.alert_stalled_agent(public.vps_instances, interval) is
  'Alerts operators about an agent that sends heartbeats but cannot work through the answers.';

-- Security definer: agents have no right on any table. This is the hot path of an idle farm: one row update per call.
create function private.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_heard record := private.check_witness(v_vps, p_heartbeat);
  v_accounts jsonb := coalesce(p_heartbeat -> 'accounts', '[]');
  v_lease interval := private.setting_s('lease_s');
  v_tick interval := private.setting_s('tick_s');
  v_row public.vps_instances;
  v_begins_at timestamptz;
  v_worked_at timestamptz;
  v_renews boolean;
  v_trades boolean;
begin
  perform private.check_protocol(p_heartbeat);
  if jsonb_typeof(v_accounts) <> 'array' or jsonb_array_length(v_accounts) > 10000 then
    raise exception using errcode = 'TC001', message = 'accounts: expected an array of at most 10000';
  end if;
  perform private.warm_up(true);  -- before any lock is taken
  v_begins_at := private.admit_process(v_vps, p_heartbeat -> 'process');
  select v.* into v_row from public.vps_instances v where v.id = v_vps;
  v_worked_at := private.given_at(v_row, private.int_of(p_heartbeat, 'worked_through', 0, 9223372036854775807));
  v_renews := private.judge_fitness(v_row, p_heartbeat);
  if coalesce(v_worked_at, v_row.worked_at) < now() - v_lease then
    v_renews := false;
    perform private.alert_stalled_agent(v_row, v_lease);
  end if;
  v_trades := v_renews and v_begins_at <= clock_timestamp();

  update public.vps_instances v
  set lease_expires_at = case when v_renews then now() + v_lease else v.lease_expires_at end,
      worked_at = coalesce(v_worked_at, least(v.worked_at, now())),
      process_worked = v.process_worked or v_worked_at is not null,
      answer_id = private.next_answer(v.answer_id),
      last_heartbeat_at = now(),
      status = case when v_renews and v.status in ('enrolled', 'offline') then 'online' else v.status end,
      last_tick_at = case when v.last_tick_at > now() - v_tick then v.last_tick_at else now() end,
      agent_version = coalesce(private.text_of(p_heartbeat, 'agent_version', 50), v.agent_version),
      cpu_percent = private.numeric_of(p_heartbeat, 'cpu_percent'),
      memory_percent = private.numeric_of(p_heartbeat, 'memory_percent'),
      disk_percent = private.numeric_of(p_heartbeat, 'disk_percent'),
      rss_mb = private.numeric_of(p_heartbeat, 'rss_mb'),
      clock_offset_ms = private.numeric_of(p_heartbeat, 'offset_ms'),
      rtt_ms = private.numeric_of(p_heartbeat, 'rtt_ms'),
      process_beat = coalesce(private.int_of(p_heartbeat -> 'process', 'beat', 0, 9223372036854775807), v.process_beat)
  where v.id = v_vps and v.retired_at is null
  returning v.* into v_row;
  if not found then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  if v_row.last_tick_at = now() then
    perform private.broadcast('vps:' || v_vps, 'tick', jsonb_build_object('at', private.rfc3339(v_row.last_tick_at)));
  end if;

  -- Before any account row is locked: maintain() locks accounts in the planner's order.
  perform private.stand_in_for_scheduler();

  if v_accounts <> '[]' then
    begin
      perform private.release_unfit(v_vps, v_accounts);
      perform private.release_unreachable(v_vps, v_accounts);
      perform private.note_account_states(v_vps, v_accounts);
      perform private.note_releases(v_vps, v_accounts);
    exception when data_exception then
      raise exception using errcode = 'TC001', message = 'accounts: an entry is not of the documented form',
        detail = left(sqlerrm, 500);
    end;
  end if;
  perform private.release_unreadable(v_vps, p_heartbeat -> 'unreadable');
  perform private.show_releases(v_vps);

  return jsonb_build_object(
    'protocol_version', private.protocol_version(), 'answer_id', v_row.answer_id::text,
    'vps_id', v_vps, 'name', v_row.name, 'status', v_row.status, 'topic', 'vps:' || v_vps,
    'server_time', private.rfc3339(clock_timestamp()),
    'lease_ms', case when v_trades then round(extract(epoch from v_lease) * 1000)::integer else 0 end,
    'begins_at', private.rfc3339(nullif(v_begins_at, '-infinity')),
    'heartbeat_ms', round(extract(epoch from private.setting_s('heartbeat_s')) * 1000)::integer,
    'last_tick_at', private.rfc3339(v_row.last_tick_at),
    'assignments', private.assignments_isolated(v_vps),
    'executions', case when v_trades then private.outstanding_executions(v_vps) else '[]' end,
    'cancel', private.cancel_requests(v_vps)) || private.answer_state();
end
$$;
comment on function private.vps_heartbeat(jsonb) is
  'Agents: renews the lease, returns assignments and everything outstanding (docs/protocol.md).';

create function public.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.vps_heartbeat(p_heartbeat) $$;
comment on function public.vps_heartbeat(jsonb) is
  'Agents: renews the lease, and returns the assignments and everything outstanding.
Request:
- protocol_version (integer; required; 2): protocol that the agent speaks; left out: 1, which is refused
- worked_through (text or null): answer_id of the last answer whose entries were all processed
- unreadable (list of uuids): accounts whose entries the agent could not read
- unfit (text or null; journal_unwritable, loop_stalled, low_disk, low_memory or clock_drift): why the agent cannot work
- agent_version (text; at most 50 characters): version of the agent
- cpu_percent, memory_percent, disk_percent, rss_mb, offset_ms, rtt_ms (number): figures of the machine and of the
  connection
- process (object): id, machine, beat and new of the agent''s process
- accounts (list of objects; at most 10000): account_id, session, revision, status, error and unfit of each account
- highest_execution_id (text or null): highest execution number that the agent was ever sent
- generation (integer or null): generation of the database that the agent knows
Answer:
- protocol_version (integer): protocol that the database speaks
- answer_id (text): number of this answer
- vps_id (uuid): the VPS
- name (text): its name
- status (text): its status
- topic (text): topic of its broadcasts
- server_time (time): the database''s clock
- lease_ms (integer): how long the agent may trade; 0: not at all
- begins_at (time or null): from when on this process of the agent may trade
- heartbeat_ms (integer): how often an idle agent sends a heartbeat
- last_tick_at (time): when the last tick was sent to the topic
- assignments (list of objects): accounts that the agent must work
- executions (list of objects): outstanding executions
- cancel (list of texts): executions to drop if they are unsent
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
- received_at, sent_at (time): when the database received the call, and when it sent the answer
Errors: TC001 TC101 TC102 TC110 TC111 TC150
Example: {"protocol_version": 2, "worked_through": "1764342000000000", "unreadable": [], "unfit": null, "agent_version":
  "0.1.0",
"cpu_percent": 12.5, "memory_percent": 40, "disk_percent": 55, "rss_mb": 180, "offset_ms": 3.2, "rtt_ms": 14.8,
"process": {"id": "8f0c2d", "machine": "5b1e7a", "beat": 812, "new": false},
"accounts": [{"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "session": 12, "revision": 4, "status": "connected",
"error": null}], "highest_execution_id": "123", "generation": 1}
-> {"protocol_version": 2, "answer_id": "1764342002000000", "vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "name":
  "vps-frankfurt-1",
"status": "online", "topic": "vps:c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "server_time": "2026-12-01T09:30:00.000000Z",
"lease_ms": 15000, "begins_at": "2026-12-01T09:00:00.000000Z", "heartbeat_ms": 2000, "last_tick_at":
"2026-12-01T09:29:40.000000Z", "assignments": [{"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3,
"platform": "mt5", "server": "Broker-Demo", "login": "51234567", "mode": "hedging", "currency": "USD", "owner":
"4f1c8e2a9b3d7056", "revision": 4, "begins_at": "2026-12-01T09:00:00.000000Z", "watch_symbols": ["EURUSD"],
"watch_funds": false, "funds_after_fills": false,
"resync": false}], "executions": [], "cancel": [], "last_execution_id": "123", "generation": 1,
"received_at": "2026-12-01T09:30:00.000000Z", "sent_at": "2026-12-01T09:30:00.004000Z"}';
grant execute on function
  private.vps_heartbeat(jsonb), public.vps_heartbeat(jsonb)
to authenticated;
