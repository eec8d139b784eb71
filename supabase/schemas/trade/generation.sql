-- Generations: how a database notices that it has gone back in time (a backup was restored), and what it does then.
--
-- A restored row cannot know that it is old. Agents are the witnesses: every answer to them contains the last execution
-- number given out and the generation; every agent keeps the highest number that it was sent on disk, and sends it with
-- every heartbeat, event and report call. A number that an agent was sent and that is not known here was sent by a
-- database that was lost since.
--
-- Three things are proof: a number above the sequence; a number that was jumped over (this database never sent it to
-- anybody); a generation that never began here. So are the cluster's own marks: another system identifier or timeline
-- than the stored ones, this table created anew (as a dump does), or another database around it (as a copy is:
-- `create database … template`), which needs no restart.

create table private.database_generation (
  one boolean primary key default true,
  generation bigint not null default 1,
  system_identifier text,
  timeline bigint,
  postmaster_started_at timestamptz not null,
  table_oid oid not null,
  database_oid oid not null,
  -- numbers above jumped_from and below jumped_to: the newest row of number_jumps, repeated here because every call
  -- reads it
  jumped_from bigint not null default 0,
  jumped_to bigint not null default 0,
  noted_at timestamptz not null default now(),
  began_at timestamptz not null default now(),
  reason text not null default 'installed',
  constraint there_is_one_generation check (one),
  constraint generation_counts_from_one check (generation >= 1)
);
comment on table private.database_generation is
  'One row: how often this database has gone back in time (1 = never), and the marks by which it notices that.';
comment on column private.database_generation.generation is
  'Part of every answer to an agent; when it is higher than before, agents begin new sessions.';
comment on column private.database_generation.system_identifier is
  'pg_control_system() when last stored; null: not readable here.';
comment on column private.database_generation.timeline is
  'Timeline that the cluster was writing when last stored; null: not readable here.';
comment on column private.database_generation.postmaster_started_at is
  'pg_postmaster_start_time() when last stored. Another value means that the server was started since, perhaps on an '
  'older copy of its data.';
comment on column private.database_generation.table_oid is
  'OID of this table when last stored. Another one means that a dump was restored.';
comment on column private.database_generation.database_oid is
  'OID of this database when last stored. Another one means that a copy of the database took its place.';
comment on column private.database_generation.jumped_from is 'Last execution number before the newest jump.';
comment on column private.database_generation.jumped_to is 'Last execution number after the newest jump.';
comment on column private.database_generation.noted_at is 'When the marks were stored.';
comment on column private.database_generation.began_at is 'When this generation began.';
comment on column private.database_generation.reason is
  'Why it began: installed; number, gap, generation (an agent''s claim); system, timeline, dump, copy; operator.';
alter table private.database_generation enable row level security;

create table private.number_jumps (
  from_id bigint primary key,
  to_id bigint not null,
  generation bigint not null,
  reason text not null,
  jumped_at timestamptz not null default clock_timestamp(),
  constraint a_jump_goes_up check (to_id > from_id)
);
comment on table private.number_jumps is
  'Execution numbers that this database has skipped: nobody was ever sent a number above from_id and below to_id. One '
  'row per start of the server.';
alter table private.number_jumps enable row level security;

-- A refused call leaves nothing behind except what it wrote to a sequence: the absurd number that was claimed, and the
-- first 60 bits of the ID of the VPS. The upkeep turns them into an alert.
create sequence private.absurd_claim_number;

create sequence private.absurd_claim_vps minvalue 0;

-- The marks of a cluster and of its history. A host may refuse a function; that mark is then unknown and not compared.
-- The timeline is that of the WAL file being written, because right after a promotion the control file still names the
-- previous one.
create function private.cluster_marks(out system_identifier text, out timeline bigint)
language plpgsql
set search_path = ''
as $$
begin
  begin
    select s.system_identifier::text into system_identifier from pg_catalog.pg_control_system() s;
  exception when others then
    raise warning 'cluster_marks: %', sqlerrm;
  end;
  begin
    timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint;
  exception when others then
    begin
      select c.timeline_id into timeline from pg_catalog.pg_control_checkpoint() c;
    exception when others then
      raise warning 'cluster_marks: %', sqlerrm;
    end;
  end;
end
$$;
comment on function private.cluster_marks() is
  'System identifier and timeline of this cluster; null where they cannot be read.';

-- Costs one index look-up in the catalog. A database can only be renamed while nobody is connected to it.
create function private.this_database() returns oid
language sql stable
set search_path = ''
return (select d.oid from pg_catalog.pg_database d where d.datname = current_database());
comment on function private.this_database() is
  'OID of the current database; a copy of it has another one, whatever its name.';

insert into private.database_generation (system_identifier, timeline, postmaster_started_at, table_oid, database_oid)
select m.system_identifier, m.timeline, pg_postmaster_start_time(), 'private.database_generation'::regclass,
  private.this_database()
from private.cluster_marks() m;

create function private.last_execution_id() returns bigint
language plpgsql
set search_path = ''
as $$
begin
  return (select s.last_value from public.trade_execution_queue_id_seq s);
end
$$;
comment on function private.last_execution_id() is 'The last execution number given out.';

-- Part of every answer to an agent, and always its last expression, so that sent_at is as late as it can be. When a
-- jump has just been committed, the row shows it a moment before the sequence does (other sessions see the sequence's
-- new file only after the commit). Without greatest(), an agent that was sent the new generation with an old number
-- would look like a witness of a gap.
create function private.answer_state() returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  return (select jsonb_build_object('last_execution_id', greatest(s.last_value, g.jumped_to)::text, 'generation',
    g.generation, 'received_at', private.rfc3339(statement_timestamp()),
    'sent_at', private.rfc3339(clock_timestamp()))
    from private.database_generation g, public.trade_execution_queue_id_seq s where g.one);
end
$$;
comment on function private.answer_state() is
  'The keys that every answer to an agent has: "last_execution_id" (text), the last execution number given out; '
  '"generation"; "received_at" and "sent_at", when the database received the call and sent this answer, by which the '
  'agent measures its clock.';

-- An answer to a call that stored something must have a higher execution number than earlier answers; otherwise the
-- agent could not prove that what it stored was lost. Uses up a number if no execution was made.
create function private.count_on(p_last_execution_id bigint) returns void
language plpgsql
set search_path = ''
as $$
begin
  while private.last_execution_id() = p_last_execution_id loop  -- twice for the very first number
    perform nextval('public.trade_execution_queue_id_seq');
  end loop;
end
$$;
comment on function private.count_on(bigint) is 'Uses up an execution number if none was given out since this one.';

-- Held to the end of the transaction. Taken before plan locks, never after them.
create function private.lock_generation() returns private.database_generation
language plpgsql
set search_path = ''
as $$
declare
  g private.database_generation;
begin
  perform pg_advisory_xact_lock(hashtextextended('tradecopier.generation', 0));
  select * into g from private.database_generation d where d.one for no key update;
  return g;
end
$$;
comment on function private.lock_generation() is
  'Waits for transactions that change the generation or jump numbers, then locks both out; returns the newest row.';

-- ALTER SEQUENCE, unlike setval(), is rolled back with its transaction, and nobody can take a number until it has
-- ended; the first ALTER waits for transactions that are taking one. The caller holds lock_generation(). p_at_least
-- null: the server was started. A restored copy of the data starts with the same numbers as the server that went on
-- after the copy was made. Both must not jump to the same number, so the later one jumps further, by more numbers than
-- a farm can use in the time between.
create function private.jump_numbers(p_at_least bigint, p_reason text) returns bigint
language plpgsql
set search_path = ''
as $$
declare
  v_from bigint;
  v_to bigint;
begin
  execute 'alter sequence public.trade_execution_queue_id_seq no cycle';
  v_from := private.last_execution_id();
  v_to := greatest(v_from, p_at_least) + 1000000 + case when p_at_least is null then (
    select greatest(0, 1000 * extract(epoch from clock_timestamp() - g.noted_at))::bigint
    from private.database_generation g where g.one) else 0 end;
  execute format('alter sequence public.trade_execution_queue_id_seq restart with %s', v_to);
  perform setval('public.trade_execution_queue_id_seq', v_to);
  insert into private.number_jumps (from_id, to_id, generation, reason)
  select v_from, v_to, g.generation, p_reason from private.database_generation g where g.one
  -- the sequence was set back by hand
  on conflict (from_id) do update set to_id = greatest(number_jumps.to_id, excluded.to_id);
  update private.database_generation set jumped_from = v_from, jumped_to = v_to where one;
  return v_to;
end
$$;
comment on function private.jump_numbers(bigint, text) is
  'Skips a million execution numbers above the last one given out, or above p_at_least; after a start (null) also a '
  'thousand for each second since the last jump. Returns the new last number.';

-- What a lost database may have changed cannot be known here. Earlier sessions and epochs become invalid: events with
-- their numbers are history, requests are refused. Nobody trades until every order that the lost database handed out is
-- past its deadline.
create function private.begin_accounts_anew(p_now timestamptz) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_accounts integer;
begin
  perform 1 from private.plan_locks k order by k.account_id for no key update;  -- waits for every plan in progress
  update public.trading_accounts a
  set session = a.session + 1000000,
      snapshot_session = case when a.snapshot_session > 0 then a.session + 1000000 else 0 end
  where a.id is not null;
  get diagnostics v_accounts = row_count;
  update public.account_vps_assignments s
  set epoch = s.epoch + 1000000, begins_at = greatest(s.begins_at, p_now + private.send_within())
  where s.account_id is not null;
  -- The sessions of these keys are over, so an event of theirs is history whether its key is known or not.
  truncate private.event_keys;
  return v_accounts;
end
$$;
comment on function private.begin_accounts_anew(timestamptz) is
  'Gives every account a new session and epoch; returns the number of accounts.';

-- Executions that were in flight when the backup was made may have been carried out since, in any attempt. They are
-- looked for, never sent again on a guess.
create function private.set_in_flight_unknown(p_now timestamptz) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_unknown integer;
begin
  update public.trade_execution_queue q
  set status = 'unknown', attempt = greatest(q.attempt, 1), next_attempt_at = null,
    offered_at = coalesce(q.offered_at, q.queued_at),
      epoch = q.epoch + 1000000, updated_at = p_now
  where q.finalized_at is null;
  get diagnostics v_unknown = row_count;
  return v_unknown;
end
$$;
comment on function private.set_in_flight_unknown(timestamptz) is
  'Sets every execution in flight to unknown; returns how many.';

-- The database has gone back in time: nothing is handed out until all of this is done. The caller holds
-- lock_generation(). If an operator has switched trading off, it stays off.
create function private.begin_generation(p_highest bigint, p_generation bigint, p_reason text,
  p_detail jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_accounts integer := private.begin_accounts_anew(v_now);
  v_unknown integer := private.set_in_flight_unknown(v_now);
  v_before bigint := private.last_execution_id();
  v_generation bigint;
  v_number bigint;
  v_trading text;
  v_did jsonb;
begin
  update private.database_generation g
  set generation = greatest(g.generation, coalesce(p_generation, 0)) + 1, began_at = v_now, reason = p_reason
  where g.one returning g.generation into v_generation;
  v_number := private.jump_numbers(coalesce(p_highest, 0), p_reason);
  update public.trading_switch t
  set state = 'monitor', reason = 'restored', settled = false, changed_at = v_now
  where t.one and t.state <> 'off';
  select t.state into v_trading from public.trading_switch t where t.one;
  v_did := jsonb_build_object('generation', v_generation, 'reason', p_reason, 'last_execution_id_before',
    v_before::text,
    'highest_execution_id', p_highest::text, 'last_execution_id', v_number::text, 'accounts', v_accounts, 'executions',
      v_unknown, 'trading', v_trading);
  perform private.write_audit('restored', 'database_generation', v_generation::text, null, v_did || p_detail);
  perform private.alert_operators(null, 'database', 'restored', 'critical', format(
    'The database has gone back in time (%s): a backup was put back. Execution numbers go on at %s, %s accounts begin '
    'anew, trading is %s: nothing is '
    'opened. Check what docs/operations.md lists under "Restore", then switch trading on again.',
      replace(p_reason, '_', ' '), v_number, v_accounts, v_trading), v_did || p_detail);
  perform realtime.send('{}', 'assignments', 'vps:' || v.id, true) from public.vps_instances v
    where v.retired_at is null;
  return v_did;
end
$$;
comment on function private.begin_generation(bigint, bigint, text, jsonb) is
  'Continues after a restore: (highest number and generation that anybody was sent, why, details) -> what it changed.';

-- The server was started since the marks were stored, or this is another database. On the same cluster and timeline
-- this is either a restart, after which numbers may have been lost, or an older copy of the data that no witness has
-- reported yet: a million numbers are skipped. If another mark differs, the database has gone back in time.
create function private.note_start() returns void
language plpgsql security definer
set search_path = ''
as $$
declare
  g private.database_generation := private.lock_generation();
  m record := private.cluster_marks();
  v_table constant oid := 'private.database_generation'::regclass;
  v_database constant oid := private.this_database();
begin
  if g.postmaster_started_at = pg_postmaster_start_time() and g.table_oid = v_table and g.database_oid = v_database then
    return;  -- another session has done it meanwhile
  end if;
  if m.system_identifier <> g.system_identifier or m.timeline <> g.timeline or g.table_oid <> v_table
    or g.database_oid <> v_database then
    perform private.jump_numbers(null, 'start');
    perform private.begin_generation(null, null,
      case when m.system_identifier <> g.system_identifier then 'system' when m.timeline <> g.timeline then 'timeline'
        when g.table_oid <> v_table then 'dump' else 'copy' end,
      jsonb_build_object('system_identifier', jsonb_build_array(g.system_identifier, m.system_identifier),
        'timeline', jsonb_build_array(g.timeline, m.timeline), 'database',
          jsonb_build_array(g.database_oid, v_database)));
  else
    perform private.jump_numbers(null, 'start');
  end if;
  update private.database_generation d
  set system_identifier = coalesce(m.system_identifier, d.system_identifier),
    timeline = coalesce(m.timeline, d.timeline),
      postmaster_started_at = pg_postmaster_start_time(), table_oid = v_table, database_oid = v_database,
      noted_at = clock_timestamp()
  where d.one;
end
$$;
comment on function private.note_start() is
  'Skips execution numbers, or begins a generation, because the server was started since the marks were stored or this '
  'is another database.';

-- Called before any number is taken. Reads one row and the database's OID, unless the server was started since.
create function private.check_start() returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if not exists (select from private.database_generation g
    where g.one and g.postmaster_started_at = pg_postmaster_start_time() and g.table_oid = g.tableoid
      and g.database_oid = (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
  then
    perform private.note_start();
  end if;
end
$$;
comment on function private.check_start() is
  'Calls note_start() if the server was started, or the database copied, since the last call.';
