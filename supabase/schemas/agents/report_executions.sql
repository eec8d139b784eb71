-- report_executions: agents report the outcomes of executions.

-- Takes reports and plans together what follows from them; returns the whole answer.
create function private.take_reports(p_vps uuid, p_reports jsonb, p_accounts uuid[], p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_taken_at_once bigint[] := '{}';
  v_report jsonb;
  v_number bigint;
  v_taken record;
  v_numbers bigint[];  -- the index of the report that each result belongs to
  v_results jsonb[] := '{}';
  v_answer jsonb;
  v_links bigint[] := '{}';
  v_changes jsonb := '{}';
  v_account text;
  v_new bigint[];
begin
  if p_reports @> '[{"outcome": "completed"}]' then
    select coalesce(u.taken, '{}'), array(select jsonb_array_elements(u.results)), coalesce(u.link_ids, '{}')
    into v_taken_at_once, v_results, v_links
    from private.take_reports_fast(p_vps, p_reports, p_now) u;
  end if;
  v_numbers := v_taken_at_once;
  for v_report, v_number in
    select value, ordinality
    from jsonb_array_elements(case when cardinality(v_taken_at_once) < jsonb_array_length(p_reports)
      then p_reports else '[]' end)
      with ordinality
    where ordinality <> all (v_taken_at_once)
  loop
    v_taken := private.take_report(p_vps, v_report, p_now);
    v_links := v_links || v_taken.link_ids;
    if v_taken.changes <> '[]' then
      v_account := v_report ->> 'account_id';
      v_changes := v_changes || jsonb_build_object(v_account,
        coalesce(v_changes -> v_account, '[]') || v_taken.changes);
    end if;
    v_numbers := array_append(v_numbers, v_number);
    v_results := array_append(v_results, v_taken.result);
  end loop;
  select coalesce(jsonb_agg(x.result order by x.n), '[]') into v_answer
  from unnest(v_numbers, v_results) as x (n, result);
  v_new := coalesce(private.plan_again(private.links_to_plan(v_links, p_now), p_now), '{}')
    || coalesce(private.requeue(p_accounts, p_now), '{}');
  if v_changes <> '{}' then
    for v_account in select jsonb_object_keys(v_changes) loop
      v_new := v_new || coalesce(private.plan_changes(v_account::uuid, v_changes -> v_account, p_now), '{}');
    end loop;
  end if;
  return jsonb_build_object(
    'results', v_answer,
    'executions', private.offer(v_new, p_vps, clock_timestamp()));
end $$;

-- Takes and plans each report separately after the planner failed on some of them (upkeep/quarantine.sql); returns the
-- whole answer.
create function private.take_reports_isolated(p_vps uuid, p_reports jsonb, p_accounts uuid[],
  p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_report jsonb;
  v_taken record;
  v_results jsonb[] := '{}';
  v_new bigint[] := '{}';
begin
  for v_report in select value from jsonb_array_elements(p_reports) loop
    v_taken := private.take_report_isolated(p_vps, v_report, p_now);
    v_new := v_new || v_taken.executions;
    v_results := array_append(v_results, v_taken.result);
  end loop;
  v_new := v_new || private.requeue_isolated(p_accounts, p_now);
  return jsonb_build_object(
    'results', to_jsonb(v_results),
    'executions', private.offer_isolated(v_new, p_vps, clock_timestamp()));
end $$;

create function private.report_executions(p_reports jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_vps uuid := private.agent_vps();
  v_now timestamptz;
  v_accounts uuid[];
  v_answer jsonb;
begin
  -- a character of the text takes at most six bytes, so a small value needs no exact measurement
  if pg_column_size(p_reports) > 150000 and octet_length(p_reports::text) > 1000000 then
    raise exception using errcode = 'TC002', message = 'report_executions: the payload is over 1 MB',
      hint = 'Send fewer reports in one call.';
  end if;
  if jsonb_typeof(p_reports -> 'reports') is distinct from 'array' then
    raise exception using errcode = 'TC001', message = 'report_executions: the array "reports" is missing',
      hint = 'See docs/protocol.md.';
  end if;
  if jsonb_array_length(p_reports -> 'reports') > 1000 then
    raise exception using errcode = 'TC002',
      message = format('report_executions: %s reports in one call, at most 1000 are allowed',
      jsonb_array_length(p_reports -> 'reports')), hint = 'Send fewer reports in one call.';
  end if;
  perform private.check_witness(v_vps, p_reports);
  v_accounts := array(
    select (e ->> 'account_id')::uuid from jsonb_array_elements(p_reports -> 'reports') e
    where pg_input_is_valid(e ->> 'account_id', 'uuid'));
  v_now := private.lock_with_followers(v_accounts);
  begin
    v_answer := private.take_reports(v_vps, p_reports -> 'reports', v_accounts, v_now);
  exception when others then
    if not private.is_fault(sqlstate) then raise; end if;
    raise warning 'report_executions: one by one, for %: %', sqlstate, sqlerrm;
    v_answer := private.take_reports_isolated(v_vps, p_reports -> 'reports', v_accounts, v_now);
  end;
  return v_answer || private.answer_state();
end $$;

create function public.report_executions(p_reports jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.report_executions(p_reports) $$;
comment on function public.report_executions(jsonb) is
  'Agents: outcomes of executions that were handed to the agent; late reports count as well.
Request:
- reports (list of objects; required; at most 1000, and 1 MB in all): outcomes, for accounts of one owner
- highest_execution_id (text or null): highest execution number that the agent was ever sent
- generation (integer or null): generation of the database that the agent knows
Answer:
- results (list of objects): one per report, in the same order
- results[].execution_id (text): the execution
- results[].status (text; accepted, duplicate, refused or kept): what the database did with the report
- results[].code (text or null; TC106, TC402, TC411 or TC420): why it was refused or kept; the call itself
  still succeeds
- results[].error (text or null): the same in words
- executions (list of objects): executions for the calling VPS that follow from the reports
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
- received_at, sent_at (time): when the database received the call, and when it sent the answer
Errors: TC001 TC002 TC101 TC102 TC150
Example: {"reports": [{"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "session": 7, "seq": 346, "execution_id":
  "124", "attempt": 1,
"outcome": "completed", "reason": null, "retryable": false, "message": "", "adopted": false, "filled_lots": "0.50",
"price": "1.10023", "positions": [{"ticket": "9001", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots":
"0.50", "price": "1.10023", "sl": "1.09500", "tp": null, "order_type": null, "magic": "0", "comment": "", "opened_at":
"2026-12-01T09:30:00.200Z", "expires_at": null, "tag": "124", "replaces": null}], "quote": null, "received_at":
"2026-12-01T09:30:00.050Z", "sent_at": "2026-12-01T09:30:00.060Z", "done_at": "2026-12-01T09:30:00.210Z"}],
"highest_execution_id": "124", "generation": 1}
-> {"results": [{"execution_id": "124", "status": "accepted", "code": null, "error": null}], "executions": [],
"last_execution_id": "124", "generation": 1,
"received_at": "2026-12-01T09:30:00.000000Z", "sent_at": "2026-12-01T09:30:00.004000Z"}';

revoke all on function public.report_executions(jsonb) from public, anon;
grant execute on function public.report_executions(jsonb) to authenticated;
grant execute on function private.report_executions(jsonb) to authenticated;
