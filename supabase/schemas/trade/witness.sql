-- What agents prove as witnesses of a database that has gone back in time (trade/generation.sql).

-- Compares what an agent was sent with what this database sent. A witness of an older generation proves nothing new,
-- unless its number is above all of this database's numbers.
create function private.proof_of_return(p_highest bigint, p_generation bigint, g private.database_generation,
  p_last bigint) returns text
language plpgsql
set search_path = ''
as $$
begin
  return case
    when p_generation > g.generation then 'generation'
    when p_highest > p_last then 'number'
    when p_highest < g.jumped_to and coalesce(p_generation, 1) = g.generation
      and exists (select from private.number_jumps j where p_highest > j.from_id and p_highest < j.to_id) then 'gap'
  end;
end
$$;
comment on function private.proof_of_return(bigint, bigint, private.database_generation, bigint) is
  'Why an agent''s highest number and generation prove that the database has gone back in time: number, gap or '
  'generation; null: they do not.';

-- An absurd claim is refused, so that a lying agent cannot use up the numbers. The upkeep raises the alert
-- (alert_absurd_claim).
create function private.refuse_absurd_claim(p_vps uuid, p_highest bigint, p_generation bigint,
  g private.database_generation, p_last bigint) returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if p_highest - p_last > 10000000 or p_generation - g.generation > 1000 then
    perform setval('private.absurd_claim_number', greatest(p_highest, 1)),
      setval('private.absurd_claim_vps', ('x' || left(replace(p_vps::text, '-', ''), 15))::bit(60)::bigint);
    raise exception using errcode = 'TC150',
      message = format('highest_execution_id %s (generation %s) is too far ahead: this database has given out %s '
        '(generation %s)', p_highest, p_generation, p_last, g.generation),
      detail = format('VPS %s', p_vps),
      hint = 'If a backup older than 10,000,000 executions was put back, run `tradecopier restored --highest N`. Else '
        'this VPS is broken, or not yours any more: retire it.';
  end if;
end
$$;
comment on function private.refuse_absurd_claim(uuid, bigint, bigint, private.database_generation, bigint) is
  'Raises TC150 for a number over 10,000,000, or a generation over 1,000, ahead of this database''s own.';

-- Called first in every call that carries a witness: {"highest_execution_id", "generation"}. The whole database begins
-- the new generation at once; if two callers bring the proof, the second finds it done. outdated: the caller does not
-- know the present generation yet.
create function private.check_witness(p_vps uuid, p_request jsonb, out last_execution_id bigint, out outdated boolean)
language plpgsql security definer
set search_path = ''
as $$
declare
  v_highest bigint := private.int_of(p_request, 'highest_execution_id', 0, 9223372036854775807);
  v_generation bigint := private.int_of(p_request, 'generation', 1, 9223372036854775807);
  g private.database_generation;
  r record;
  v_proof text;
begin
  -- on the hot path of every trade: one statement, unless something must be examined
  select d.generation, d.jumped_to, s.last_value, d.postmaster_started_at <> pg_postmaster_start_time()
    or d.table_oid <> d.tableoid
    or d.database_oid <> (select o.oid from pg_catalog.pg_database o where o.datname = current_database()) as started
  into r from private.database_generation d, public.trade_execution_queue_id_seq s where d.one;
  last_execution_id := r.last_value;
  outdated := coalesce(v_generation < r.generation, false);
  if not r.started and not coalesce(v_highest > r.last_value or v_highest < r.jumped_to
    or v_generation > r.generation, false) then
    return;
  end if;
  perform private.check_start();
  select d.* into g from private.database_generation d where d.one;
  last_execution_id := private.last_execution_id();
  if private.proof_of_return(v_highest, v_generation, g, last_execution_id) is not null then
    g := private.lock_generation();
    last_execution_id := private.last_execution_id();
    v_proof := private.proof_of_return(v_highest, v_generation, g, last_execution_id);
    perform private.refuse_absurd_claim(p_vps, v_highest, v_generation, g, last_execution_id);
    if v_proof is not null then
      perform private.begin_generation(v_highest, v_generation, v_proof,
        jsonb_build_object('vps_id', p_vps, 'generation_told', v_generation));
      select d.* into g from private.database_generation d where d.one;
      last_execution_id := private.last_execution_id();
    end if;
  end if;
  outdated := coalesce(v_generation < g.generation, v_proof is not null);
end
$$;
comment on function private.check_witness(uuid, jsonb) is
  'Compares what an agent was sent with what was given out; begins a new generation if the database has gone back in '
  'time.';

-- Run by the upkeep, because a refused call can leave no row.
create function private.alert_absurd_claim() returns void
language plpgsql security definer
set search_path = ''
as $$
declare
  v_number bigint;
  v_vps public.vps_instances;
begin
  select n.last_value into v_number from private.absurd_claim_number n where n.is_called;
  if not found then
    return;
  end if;
  select v.* into v_vps from public.vps_instances v, private.absurd_claim_vps c
  where ('x' || left(replace(v.id::text, '-', ''), 15))::bit(60)::bigint = c.last_value;
  perform setval('private.absurd_claim_number', 1, false);
  perform private.alert_operators(v_vps.id, 'database', 'absurd_claim', 'critical', format(
    'VPS %s says that it was sent execution number %s, but this database has given out %s. It is refused (TC150). If a '
    'very old backup was put back, run '
    '"tradecopier restored --highest N"; else the VPS is broken or in wrong hands: retire it.',
      coalesce(v_vps.name, '?'), v_number, private.last_execution_id()),
    jsonb_build_object('vps_id', v_vps.id, 'highest_execution_id', v_number::text, 'last_execution_id',
      private.last_execution_id()::text));
end
$$;
comment on function private.alert_absurd_claim() is 'Raises the alert for a claim that refuse_absurd_claim() refused.';
