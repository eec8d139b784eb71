

-- A database session that has never planned compiles and plans some eighty statements at its first trade, which takes
-- several times as long as planning the trade; and again whenever a table's statistics change. So it is done
-- beforehand, with no real data: once in every session that gets a report of an account, and at each heartbeat
-- (p_again). It writes and locks nothing, because no row matches. The settings must equal those of the entry functions,
-- or their cached plans would differ from these.
create function private.warm_up(p_again boolean) returns void
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_nobody constant uuid := '00000000-0000-0000-0000-000000000000';
  v_now constant timestamptz := clock_timestamp();
begin
  if current_setting('tradecopier.warm', true) = 'yes' and not p_again then return; end if;
  perform set_config('tradecopier.warm', 'yes', false);
  begin
    perform private.event_error(v_nobody, '{}'), private.report_error('{}');
    perform private.lock_with_followers(array[v_nobody]);
    perform private.links_of_tickets(v_nobody, array['']);
    perform private.plan(array[0], array[v_nobody], array[''], null, v_now);
    perform private.decide(array[v_nobody], array[''], null, v_now);
    perform private.explain_rest(v_nobody, array[0], array['opened'], array['']);
    perform private.seen_at(0, v_nobody, '', v_now, null, v_now);
    perform private.book_fill(null, '{"positions": []}', v_now);
    perform private.take_reports_fast(v_nobody, '[]', v_now);
    perform private.links_to_plan(array[0], v_now);
    perform private.requeue(array[v_nobody], v_now);
    perform private.offer(array[0], v_nobody, v_now);
  exception when others then  -- a fault of the planner shows where it plans; it must not cost an agent its lease
    raise warning 'warm_up: %', sqlerrm;
  end;
end $$;
comment on function private.warm_up(boolean) is
  'Makes this session compile and plan the planner''s statements before a trade needs them.';
