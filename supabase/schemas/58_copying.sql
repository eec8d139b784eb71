-- What users do with copiers.

-- Saves a copier: without "id" a new one, else the columns given. {"master_account_id", "follower_account_id", any column of copiers,
-- "symbols": {"MASTER": "FOLLOWER"}} -> {"copier_id", "warnings"}
create function private.save_copier(p_copier jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_new public.copiers;
  v_now timestamptz;
  v_unknown text;
  v_rule text;
  v_made boolean := not p_copier ? 'id';
begin
  if jsonb_typeof(p_copier) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_copier: the copier must be an object', hint = 'See docs/protocol.md.';
  end if;
  select string_agg(k, ', ') into v_unknown from jsonb_object_keys(p_copier) k
  where k <> 'symbols' and k not in (select attname from pg_catalog.pg_attribute where attrelid = 'public.copiers'::regclass and attnum > 0
    and attname not in ('user_id', 'started_at', 'existing_until', 'created_at', 'updated_at', 'removal', 'removed_at'));
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_copier: unknown setting: %s', v_unknown),
      hint = 'The settings are the columns of the table copiers.';
  end if;
  perform private.refuse_bad_values(p_copier);
  if p_copier ? 'id' then
    select c.master_account_id, c.follower_account_id into v_new.master_account_id, v_new.follower_account_id from public.copiers c
    where c.id = private.uuid_of(p_copier, 'id') and c.user_id = v_user and c.removed_at is null;
    if v_new.master_account_id is null then
      raise exception using errcode = 'TC106', message = format('save_copier: copier %s does not exist or is not yours', p_copier ->> 'id'),
        hint = 'Check the id, or leave it out to make a new copier.';
    end if;
    perform private.refuse_leaving((p_copier ->> 'id')::uuid);
    foreach v_unknown in array array['master_account_id', 'follower_account_id'] loop
      if p_copier ? v_unknown and private.uuid_of(p_copier, v_unknown)::text <> to_jsonb(v_new) ->> v_unknown then
        raise exception using errcode = 'TC303', message = format('save_copier: %s of a copier does not change', v_unknown),
          hint = 'Remove this copier and make a new one.';
      end if;
    end loop;
    p_copier := p_copier - 'master_account_id' - 'follower_account_id';
  else
    v_new.master_account_id := private.uuid_of(p_copier, 'master_account_id');
    v_new.follower_account_id := private.uuid_of(p_copier, 'follower_account_id');
    p_copier := p_copier - 'id';
  end if;
  if v_new.master_account_id = v_new.follower_account_id then
    raise exception using errcode = 'TC305', message = format('save_copier: account %s cannot follow itself', v_new.master_account_id),
      hint = 'Choose two different accounts.';
  end if;
  v_now := private.lock_accounts(array[v_new.master_account_id, v_new.follower_account_id]);
  if (select count(*) from public.trading_accounts a where a.id in (v_new.master_account_id, v_new.follower_account_id)
      and a.user_id = v_user and a.removed_at is null) <> 2 then
    raise exception using errcode = 'TC106', message = 'save_copier: the master or the follower account does not exist or is not yours',
      hint = 'Connect both accounts first.';
  end if;
  begin
    if not p_copier ? 'id' then
      perform private.refuse_cycle(v_new.master_account_id, v_new.follower_account_id);
      insert into public.copiers (user_id, master_account_id, follower_account_id, started_at, created_at)
      values (v_user, v_new.master_account_id, v_new.follower_account_id, v_now, v_now) returning id into v_new.id;
      p_copier := p_copier || jsonb_build_object('id', v_new.id);
    end if;
    -- read after the lock: what somebody else has just changed stays as it is
    select * into v_new from public.copiers c where c.id = (p_copier ->> 'id')::uuid;
    v_new := jsonb_populate_record(v_new, p_copier - 'symbols');
    perform private.refuse_contradictions(v_new);
    perform private.refuse_contradicting_levels(p_copier, v_new);
    update public.copiers set name = v_new.name, mode = v_new.mode, sizing_mode = v_new.sizing_mode, sizing_value = v_new.sizing_value,
      contract_alignment = v_new.contract_alignment, min_policy = v_new.min_policy, max_risk_coefficient = v_new.max_risk_coefficient,
      max_policy = v_new.max_policy, max_lots = v_new.max_lots, max_risk_percent = v_new.max_risk_percent, max_leverage = v_new.max_leverage,
      max_leverage_policy = v_new.max_leverage_policy, sanity_factor = v_new.sanity_factor, reverse = v_new.reverse, sl_mode = v_new.sl_mode,
      tp_mode = v_new.tp_mode, sl_points = v_new.sl_points, tp_points = v_new.tp_points, max_sl_points = v_new.max_sl_points,
      copy_pending = v_new.copy_pending, pending_grace_ms = v_new.pending_grace_ms, early_fill_policy = v_new.early_fill_policy,
      copy_existing = v_new.copy_existing, copy_existing_points = v_new.copy_existing_points, max_age_ms = v_new.max_age_ms,
      retry_window_s = v_new.retry_window_s, no_money_policy = v_new.no_money_policy,
      delay_min_ms = v_new.delay_min_ms, delay_max_ms = v_new.delay_max_ms, lots_jitter_percent = v_new.lots_jitter_percent, max_slippage_points = v_new.max_slippage_points,
      comment = v_new.comment, sides = v_new.sides, symbols_only = v_new.symbols_only,
      symbols_except = v_new.symbols_except, magic_only = v_new.magic_only, magic_except = v_new.magic_except,
      comment_only = v_new.comment_only, comment_except = v_new.comment_except, max_open_positions = v_new.max_open_positions,
      max_open_lots = v_new.max_open_lots, max_trades_per_day = v_new.max_trades_per_day, min_equity = v_new.min_equity,
      time_zone = v_new.time_zone, weekdays = v_new.weekdays, open_from = v_new.open_from, open_until = v_new.open_until,
      updated_at = clock_timestamp()
    where id = v_new.id;
  exception
    when check_violation or not_null_violation or foreign_key_violation then
      get stacked diagnostics v_rule = constraint_name, v_unknown = column_name;
      perform private.refuse_setting(v_rule, v_unknown, to_jsonb(v_new), sqlerrm);
    when unique_violation then
      raise exception using errcode = 'TC304', message = 'save_copier: these two accounts already have a copier', hint = 'Change that one instead.';
    when data_exception then
      perform private.refuse_form(p_copier, sqlerrm);
  end;
  if jsonb_typeof(p_copier -> 'symbols') = 'object' then
    delete from public.symbol_mappings where copier_id = v_new.id;
    insert into public.symbol_mappings (user_id, copier_id, master_symbol, follower_symbol)
    select v_user, v_new.id, key, value from jsonb_each_text(p_copier -> 'symbols');
  end if;
  perform private.replan_copier(v_new.id, v_now);
  if v_made then
    perform private.copy_existing(v_new, v_now);
  end if;
  return jsonb_build_object('copier_id', v_new.id, 'warnings', private.settings_warnings(v_new));
end $$;

-- Values that a CHECK cannot name well: numbers that are none, zones that do not exist.
create function private.refuse_bad_values(p_copier jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_field record;
begin
  for v_field in
    select e.key, e.value from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key and a.atttypid = 'numeric'::regtype
    where jsonb_typeof(e.value) <> 'null' and not coalesce(private.is_number(e.value), false)
  loop
    raise exception using errcode = 'TC302', message = format('save_copier: %s is not a number', v_field.key),
      hint = 'Numbers are decimal strings such as "0.5".';
  end loop;
  if p_copier ? 'time_zone' and not exists (select 1 from pg_catalog.pg_timezone_names z where z.name = p_copier ->> 'time_zone') then
    raise exception using errcode = 'TC303', message = format('save_copier: time_zone is %s, but there is no such time zone', left(p_copier ->> 'time_zone', 100)),
      hint = 'Zones are named like Europe/Berlin, America/New_York or UTC.';
  end if;
  -- an entry that is no text, or cannot be a magic number, would match nothing: a filter that lets through everything, or nothing at all
  for v_field in
    select e.key, l.entry from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key and a.atttypid = 'text[]'::regtype
    cross join lateral jsonb_array_elements(case jsonb_typeof(e.value) when 'array' then e.value else '[]' end) as l (entry)
    where not coalesce(case when e.key like 'magic%' then jsonb_typeof(l.entry) in ('string', 'number') and (l.entry #>> '{}') ~ '^-?[0-9]{1,20}$'
      else jsonb_typeof(l.entry) = 'string' and length(l.entry #>> '{}') between case when e.key like 'comment%' then 0 else 1 end and 100 end, false)
  loop
    raise exception using errcode = 'TC302', message = format('save_copier: %s holds %s, but must be a list of %s', v_field.key,
        left(v_field.entry::text, 100), case when v_field.key like 'magic%' then 'whole numbers such as ["42"]' else 'texts of up to 100 characters such as ["EURUSD"]' end),
      hint = 'An empty list is no filter.';
  end loop;
  if coalesce(jsonb_typeof(p_copier -> 'symbols'), 'null') not in ('null', 'object') or jsonb_typeof(p_copier -> 'symbols') = 'object' and exists (
    select 1 from jsonb_each(p_copier -> 'symbols') e where jsonb_typeof(e.value) <> 'string' or length(e.value #>> '{}') not between 1 and 64
      or length(e.key) not between 1 and 64) then
    raise exception using errcode = 'TC302', message = 'save_copier: symbols must name a symbol of the follower for each of the master''s',
      hint = 'For example {"GOLD": "XAUUSD"}.';
  end if;
end $$;

-- A copier that would close a circle is refused; copiers that are off count as well. One lock for all, so that two cannot close it together.
create function private.refuse_cycle(p_master uuid, p_follower uuid) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform pg_advisory_xact_lock(hashtext('private.refuse_cycle'));
  if exists (
    with recursive downstream (id) as (
      select p_follower
      union
      select c.follower_account_id from downstream d join public.copiers c on c.master_account_id = d.id and c.removed_at is null
    )
    select 1 from downstream where id = p_master
  ) then
    raise exception using errcode = 'TC305', message = 'save_copier: the follower already leads, directly or through others, to the master',
      detail = 'Such a circle would copy its own copies for ever.', hint = 'Remove a copier of the circle first.';
  end if;
end $$;

-- Plans everything of a copier after a change of its settings or mode: a resumed copier catches up on closes and SL/TP. The caller has
-- locked both its accounts.
create function private.replan_copier(p_copier uuid, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  perform private.withdraw_opens(p_copier, p_now);
  select array_agg(l.id) into v_links from public.copiers c
  join public.position_links l on l.follower_account_id = c.follower_account_id and l.copier_id = c.id and l.state = 'live'
  where c.id = p_copier;
  perform private.wait_no_longer(v_links, p_now);
  perform private.offer(private.plan_again(v_links, p_now), null, clock_timestamp());
end $$;

-- Every account whose plans meet with the account's: itself, its followers, its masters. Taken in one lock, for two could cross.
create function private.with_neighbours(p_account uuid) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return private.with_followers(array[p_account]) || array(
    select c.master_account_id from public.copiers c where c.follower_account_id = p_account and c.removed_at is null);
end $$;

-- {"copier_id", "mode": "on|monitor|off"} -> {"copier_id", "mode"}
create function private.set_copier_mode(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_copier public.copiers;
  v_now timestamptz;
begin
  if coalesce(p_request ->> 'mode', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = format('set_copier_mode: mode is %s, but must be on, monitor or off', coalesce(left(p_request ->> 'mode', 100), 'missing')),
      hint = 'Only off leaves what is open alone; the others follow its closes.';
  end if;
  select * into v_copier from public.copiers c
  where c.id = v_id and (c.user_id = v_user or private.is_operator()) and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106', message = format('set_copier_mode: copier %s does not exist or is not yours', v_id),
      hint = 'Check the id.';
  end if;
  perform private.refuse_leaving(v_copier.id);
  v_now := private.lock_accounts(array[v_copier.master_account_id, v_copier.follower_account_id]);
  update public.copiers set mode = p_request ->> 'mode', updated_at = clock_timestamp() where id = v_copier.id;
  perform private.replan_copier(v_copier.id, v_now);
  return jsonb_build_object('copier_id', v_copier.id, 'mode', p_request ->> 'mode');
end $$;

-- The caller's account, or any for an operator; TC106 otherwise.
create function private.require_account(p_request jsonb) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_account uuid;
begin
  select a.id into v_account from public.trading_accounts a
  where a.id = private.uuid_of(p_request, 'account_id') and (a.user_id = v_user or private.is_operator()) and a.removed_at is null;
  if v_account is null then
    raise exception using errcode = 'TC106', message = format('account %s does not exist or is not yours', p_request ->> 'account_id'),
      hint = 'Check the id.';
  end if;
  return v_account;
end $$;

-- {"account_id", "include_manual": false} -> {"account_id", "copy_state"}. Repeating it changes nothing but include_manual.
create function private.flatten_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := private.require_account(p_request);
  v_now timestamptz;
begin
  if coalesce(jsonb_typeof(p_request -> 'include_manual'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'flatten_account: include_manual must be true or false';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  perform private.start_flattening(v_account, coalesce((p_request ->> 'include_manual')::boolean, false), 'off', null, v_now);
  return jsonb_build_object('account_id', v_account, 'copy_state', 'flattening');
end $$;

-- {"account_id", "state": "on|monitor|off"} -> {"account_id", "copy_state"}: on; monitor = closes only; off = frozen.
create function private.pause_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_account uuid := private.require_account(p_request);
  v_copier uuid;
  v_now timestamptz;
begin
  if coalesce(p_request ->> 'state', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'pause_account: state must be on, monitor or off';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  update public.trading_accounts set copy_state = p_request ->> 'state', copy_state_reason = null, flat_snapshots = 0 where id = v_account;
  for v_copier in select c.id from public.copiers c where c.follower_account_id = v_account and c.removed_at is null loop
    perform private.replan_copier(v_copier, v_now);
  end loop;
  return jsonb_build_object('account_id', v_account, 'copy_state', p_request ->> 'state');
end $$;

create function public.flatten_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.flatten_account(p_request) $$;
comment on function public.flatten_account(jsonb) is 'Closes every copy on an account (and manual trades, if asked), until it is flat; then switches it off.';
create function public.pause_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.pause_account(p_request) $$;
comment on function public.pause_account(jsonb) is 'Copying into an account: on, monitor (closes only) or off (frozen).';
create function public.save_copier(p_copier jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_copier(p_copier) $$;
comment on function public.save_copier(jsonb) is 'Makes or changes a copier of the caller; refuses circles and settings out of range.';
create function public.set_copier_mode(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_copier_mode(p_request) $$;
comment on function public.set_copier_mode(jsonb) is 'Switches a copier: on, monitor (closes only) or off (frozen).';
revoke all on function public.save_copier(jsonb), public.set_copier_mode(jsonb), public.flatten_account(jsonb), public.pause_account(jsonb)
  from public, anon;
grant execute on function public.save_copier(jsonb), public.set_copier_mode(jsonb), public.flatten_account(jsonb), public.pause_account(jsonb),
  private.save_copier(jsonb), private.set_copier_mode(jsonb), private.flatten_account(jsonb), private.pause_account(jsonb) to authenticated;
