-- Flat by at work: warns half an hour before, closes the account at the time, begins the next week's period. A run
-- that is late, because the database or a VPS was away, does the same once, as long as the period lasts.

-- Whether copies go into this account: an account that follows nobody is not traded.
create function private.is_follower(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.copiers c where c.follower_account_id = p_account and c.removed_at is null)
    or exists (select 1 from public.position_links l where l.follower_account_id = p_account and l.state = 'live');
end $$;

-- Sets the period that lasts now or comes next, and when the upkeep must look at it.
create function private.begin_flat_period(r public.flat_times, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_period record := private.flat_period(r, p_now);
begin
  update public.trading_accounts set flat_from = v_period.begins, flat_until = v_period.ends where id = r.account_id;
  update public.flat_times f set due_at = case when v_period.begins = f.closed_for then v_period.ends
    else v_period.begins - interval '30 minutes' end
  where f.account_id = r.account_id;
end $$;

create function private.alert_flat_time(r public.flat_times, a public.trading_accounts, p_reason text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_until text := private.weekly_words(r.until_weekday, r.until_at, r.until_time_zone);
  v_at text := private.weekly_words(r.weekday, r.flat_at, r.time_zone);
begin
  perform private.raise_alert(a.id, 'flat_by', p_reason, case p_reason when 'flat_by_missed' then 'critical'
      else 'warning' end,
    case p_reason
      when 'flat_by_soon' then format('Flat by: everything on %s is closed at %s. Nothing is opened on it until %s; '
        'then copying goes on. To keep what it holds, change or remove its flat time before.', a.name, v_at, v_until)
      when 'flat_by_missed' then format('Flat by: %s was not closed at %s, because the database did not run until %s. '
        'Close by hand what must not be held.', a.name, v_at, v_until)
      else format('Flat by: everything on %s is being closed, as its flat time says (%s). Nothing is opened on it '
        'until %s; then copying goes on by itself.', a.name, v_at, v_until) end,
    jsonb_build_object('flat_from', private.rfc3339(a.flat_from), 'flat_until', private.rfc3339(a.flat_until)));
end $$;

-- Closes the account for its period. The caller holds the plan locks of the account and its neighbours.
create function private.close_for_flat_time(r public.flat_times, a public.trading_accounts, p_now timestamptz)
returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.flat_times f set closed_for = a.flat_from, due_at = a.flat_until where f.account_id = a.id;
  if not private.is_follower(a.id) then return; end if;
  perform private.withdraw(array[a.id], null, false, 'flat_by', p_now);
  perform private.start_flattening(a.id, r.close_manual, null, 'flat_by', p_now);
  perform private.alert_flat_time(r, a, 'flat_by');
end $$;

-- Does what is due for one account. If somebody else is planning it, the next run does it.
create function private.keep_flat_time(p_account uuid) returns void
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_wanted uuid[] := private.with_neighbours(p_account);
  v_free uuid[] := private.lock_free(v_wanted);
  v_now timestamptz := clock_timestamp();
  r public.flat_times;
  a public.trading_accounts;
begin
  if not v_wanted <@ v_free then raise lock_not_available; end if;  -- gives back what was locked
  select * into r from public.flat_times f where f.account_id = p_account and f.due_at <= v_now for update;
  if not found then return; end if;
  select * into a from public.trading_accounts where id = p_account;
  if a.removed_at is not null then
    delete from public.flat_times f where f.account_id = p_account;
  elsif v_now >= a.flat_until then
    if r.closed_for is distinct from a.flat_from and private.is_follower(a.id) then
      perform private.alert_flat_time(r, a, 'flat_by_missed');
    end if;
    perform private.begin_flat_period(r, v_now);
  elsif v_now >= a.flat_from then
    perform private.close_for_flat_time(r, a, v_now);
  else
    if r.warned_for is distinct from a.flat_from and private.is_follower(a.id) then
      perform private.alert_flat_time(r, a, 'flat_by_soon');
    end if;
    update public.flat_times f set warned_for = a.flat_from, due_at = a.flat_from where f.account_id = p_account;
  end if;
end $$;

-- Upkeep: all accounts whose flat time is due, each by itself.
create function private.keep_flat_times() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid;
begin
  for v_account in
    select f.account_id from public.flat_times f where f.due_at <= clock_timestamp() order by f.due_at, f.account_id
  loop
    begin
      perform private.keep_flat_time(v_account);
    exception
      when lock_not_available then null;
      when others then raise warning 'keep_flat_times: account % waits for the next run: % (%)', v_account, sqlerrm,
        sqlstate;
    end;
  end loop;
end $$;
