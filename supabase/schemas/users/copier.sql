-- Functions by which users manage copiers. Functions that plan set the planner's settings: a
-- connection keeps the first plan of each statement, and planning these statements costs more than running them.

-- Creates a copier, or with "id" changes the columns given: {"master_account_id", "follower_account_id", any column of
-- copiers, "symbols": {"MASTER": "FOLLOWER"}} -> {"copier_id", "warnings"}
create function private.save_copier(p_copier jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_user uuid := private.require_user();
  v_new public.copiers;
  v_now timestamptz;
  v_unknown text;
  v_rule text;
  v_made boolean := not p_copier ? 'id';
begin
  if jsonb_typeof(p_copier) is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'save_copier: the copier must be an object',
      hint = 'See docs/protocol.md.';
  end if;
  select left(string_agg(k, ', '), 200) into v_unknown from jsonb_object_keys(p_copier) k
  where k <> 'symbols' and k not in (select attname from pg_catalog.pg_attribute
    where attrelid = 'public.copiers'::regclass and attnum > 0
    and attname not in ('user_id', 'started_at', 'existing_until', 'created_at', 'updated_at', 'removal',
      'removed_at'));
  if v_unknown is not null then
    raise exception using errcode = 'TC301', message = format('save_copier: unknown setting: %s', v_unknown),
      hint = 'The settings are the columns of the table copiers.';
  end if;
  perform private.refuse_long_lists(p_copier);
  perform private.refuse_bad_values(p_copier);
  if p_copier ? 'id' then
    select c.master_account_id, c.follower_account_id into v_new.master_account_id, v_new.follower_account_id
    from public.copiers c
    where c.id = private.uuid_of(p_copier, 'id') and c.user_id = v_user and c.removed_at is null;
    if v_new.master_account_id is null then
      raise exception using errcode = 'TC106',
        message = format('save_copier: copier %s does not exist or is not yours', left(p_copier ->> 'id', 100)),
        hint = 'Check the id, or leave it out to make a new copier.';
    end if;
    perform private.refuse_leaving((p_copier ->> 'id')::uuid);
    foreach v_unknown in array array['master_account_id', 'follower_account_id'] loop
      if p_copier ? v_unknown and private.uuid_of(p_copier, v_unknown)::text <> to_jsonb(v_new) ->> v_unknown then
        raise exception using errcode = 'TC303',
          message = format('save_copier: %s of a copier does not change', v_unknown),
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
    raise exception using errcode = 'TC305',
      message = format('save_copier: account %s cannot follow itself', v_new.master_account_id),
      hint = 'Choose two different accounts.';
  end if;
  if v_made or p_copier ? 'symbols' then
    perform private.hold_user(v_user);
  end if;
  v_now := private.lock_accounts(array[v_new.master_account_id, v_new.follower_account_id]);
  if (select count(*) from public.trading_accounts a where a.id in (v_new.master_account_id, v_new.follower_account_id)
      and a.user_id = v_user and a.removed_at is null) <> 2 then
    raise exception using errcode = 'TC106',
      message = 'save_copier: the master or the follower account does not exist or is not yours',
      hint = 'Connect both accounts first.';
  end if;
  begin
    if not p_copier ? 'id' then
      perform private.refuse_cycle(v_new.master_account_id, v_new.follower_account_id);
      insert into public.copiers (user_id, master_account_id, follower_account_id, started_at, created_at)
      values (v_user, v_new.master_account_id, v_new.follower_account_id, v_now, v_now) returning id into v_new.id;
      p_copier := p_copier || jsonb_build_object('id', v_new.id);
    end if;
    -- read after the lock, so that concurrent changes to other columns are kept
    select * into v_new from public.copiers c where c.id = (p_copier ->> 'id')::uuid;
    v_new := jsonb_populate_record(v_new, p_copier - 'symbols');
    perform private.refuse_contradictions(p_copier, v_new);
    perform private.refuse_contradicting_levels(p_copier, v_new);
    update public.copiers set name = v_new.name, mode = v_new.mode, sizing_mode = v_new.sizing_mode,
      sizing_value = v_new.sizing_value,
      contract_alignment = v_new.contract_alignment, min_policy = v_new.min_policy,
        max_risk_coefficient = v_new.max_risk_coefficient,
      max_policy = v_new.max_policy, max_lots = v_new.max_lots, max_risk_percent = v_new.max_risk_percent,
        max_leverage = v_new.max_leverage,
      max_leverage_policy = v_new.max_leverage_policy, sanity_factor = v_new.sanity_factor, reverse = v_new.reverse,
        sl_mode = v_new.sl_mode,
      tp_mode = v_new.tp_mode, sl_points = v_new.sl_points, tp_points = v_new.tp_points,
        max_sl_points = v_new.max_sl_points,
      copy_pending = v_new.copy_pending, pending_grace_ms = v_new.pending_grace_ms,
        early_fill_policy = v_new.early_fill_policy,
      copy_existing = v_new.copy_existing, copy_existing_points = v_new.copy_existing_points,
        max_age_ms = v_new.max_age_ms,
      retry_window_s = v_new.retry_window_s, no_money_policy = v_new.no_money_policy,
      delay_min_ms = v_new.delay_min_ms, delay_max_ms = v_new.delay_max_ms,
        lots_jitter_percent = v_new.lots_jitter_percent, max_slippage_points = v_new.max_slippage_points,
      comment = v_new.comment, sides = v_new.sides, symbols_only = v_new.symbols_only,
      symbols_except = v_new.symbols_except, magic_only = v_new.magic_only, magic_except = v_new.magic_except,
      comment_only = v_new.comment_only, comment_except = v_new.comment_except,
        max_open_positions = v_new.max_open_positions,
      max_open_lots = v_new.max_open_lots, max_trades_per_day = v_new.max_trades_per_day, min_equity = v_new.min_equity,
      time_zone = v_new.time_zone, weekdays = v_new.weekdays, open_from = v_new.open_from,
        open_until = v_new.open_until,
      updated_at = clock_timestamp()
    where id = v_new.id;
  exception
    when check_violation or not_null_violation or foreign_key_violation then
      get stacked diagnostics v_rule = constraint_name, v_unknown = column_name;
      perform private.refuse_setting(v_rule, v_unknown, to_jsonb(v_new), left(sqlerrm, 500));
    when unique_violation then
      raise exception using errcode = 'TC304', message = 'save_copier: these two accounts already have a copier',
        hint = 'Change that one instead.';
    when data_exception then
      perform private.refuse_form(p_copier, left(sqlerrm, 500));
  end;
  if jsonb_typeof(p_copier -> 'symbols') = 'object' then
    perform private.save_mappings(v_user, v_new.id, p_copier -> 'symbols');
  end if;
  perform private.replan_copier(v_new.id, v_now);
  if v_made then
    perform private.copy_existing(v_new, v_now);
  end if;
  return jsonb_build_object('copier_id', v_new.id, 'warnings',
    private.settings_warnings(v_new) || private.mapping_warnings(v_new));
end $$;

-- Makes the copier's mappings equal to these. Only changed rows are written, because each goes to the audit log.
create function private.save_mappings(p_user uuid, p_copier uuid, p_symbols jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  delete from public.symbol_mappings y where y.copier_id = p_copier
    and y.master_key <> all (array(select upper(btrim(k)) from jsonb_object_keys(p_symbols) k));
  insert into public.symbol_mappings as y (user_id, copier_id, master_symbol, follower_symbol, lots_factor, mode)
  select p_user, p_copier, coalesce((private.symbol_named(c.master_account_id, m.master)).name, m.master),
    coalesce((private.symbol_named(c.follower_account_id, m.follower)).name, m.follower),
    coalesce(m.lots_factor, before.lots_factor, 1), coalesce(m.mode, before.mode, 'on')
  from private.mappings_in(p_symbols) m
  join public.copiers c on c.id = p_copier
  left join public.symbol_mappings before on before.copier_id = p_copier and before.master_key = upper(m.master)
  on conflict (copier_id, master_key) do update set master_symbol = excluded.master_symbol,
    follower_symbol = excluded.follower_symbol, lots_factor = excluded.lots_factor, mode = excluded.mode
    where (y.master_symbol, y.follower_symbol, y.lots_factor, y.mode) is distinct from
      (excluded.master_symbol, excluded.follower_symbol, excluded.lots_factor, excluded.mode);
end $$;

-- Refuses lists that are too long, by name, before anything iterates over them.
create function private.refuse_long_lists(p_copier jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_long record;
begin
  for v_long in
    select e.key, case jsonb_typeof(e.value) when 'array' then jsonb_array_length(e.value)
      else (select count(*) from jsonb_object_keys(e.value)) end as entries,
      case when e.key = 'weekdays' then 7 else private.list_max() end as most
    from jsonb_each(p_copier) e where jsonb_typeof(e.value) in ('array', 'object')
  loop
    if v_long.entries > v_long.most then
      raise exception using errcode = 'TC303',
        message = format('save_copier: %s has %s entries, but must have at most %s',
          v_long.key, v_long.entries, v_long.most),
        hint = case when v_long.key = 'symbols'
          then 'Map only symbols whose names differ in more than the broker''s prefix and suffix.'
          else 'Use fewer entries: * stands for any text.' end;
    end if;
  end loop;
  select e.key, l.entry #>> '{}' as entry into v_long from jsonb_each(p_copier) e
  cross join lateral jsonb_array_elements(case jsonb_typeof(e.value) when 'array'
    then e.value else '[]' end) as l (entry)
  where jsonb_typeof(l.entry) = 'string' and length(l.entry #>> '{}') > private.entry_max() limit 1;
  if found then
    raise exception using errcode = 'TC303',
      message = format('save_copier: %s holds an entry of %s characters (%s...), but an entry must have at most %s',
        v_long.key, length(v_long.entry), left(v_long.entry, 20), private.entry_max()),
      hint = 'Shorten it: * stands for any text.';
  end if;
  if jsonb_typeof(p_copier -> 'symbols') = 'object' then
    select s.name into v_long from jsonb_each(p_copier -> 'symbols') e
    cross join lateral (values (e.key), (private.mapped_to(e.value))) as s (name)
    where length(s.name) > 64 limit 1;
    if found then
      raise exception using errcode = 'TC303',
        message = format('save_copier: symbols names a symbol of %s characters (%s...), but a name must have at most '
          '64',
          length(v_long.name), left(v_long.name, 20)),
        hint = 'Give the names as the brokers list them.';
    end if;
  end if;
end $$;

-- Refuses values for which a CHECK would give no clear message: text in place of a number, unknown time zones.
create function private.refuse_bad_values(p_copier jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_field record;
begin
  for v_field in
    select e.key, e.value from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
      and a.atttypid = 'numeric'::regtype
    where jsonb_typeof(e.value) <> 'null' and not coalesce(private.is_number(e.value), false)
  loop
    raise exception using errcode = 'TC302', message = format('save_copier: %s is not a number', v_field.key),
      hint = 'Numbers are decimal strings such as "0.5".';
  end loop;
  if p_copier ? 'time_zone' and not private.is_time_zone(p_copier ->> 'time_zone') then
    raise exception using errcode = 'TC303',
      message = format('save_copier: time_zone is %s, but there is no such time zone',
      left(p_copier ->> 'time_zone', 100)),
      hint = 'Zones are named like Europe/Berlin, America/New_York or UTC.';
  end if;
  if not private.is_plain(p_copier ->> 'name') or not private.is_plain(p_copier ->> 'comment') then
    raise exception using errcode = 'TC303',
      message = format('save_copier: %s holds a control character or a mark of writing direction',
        case when private.is_plain(p_copier ->> 'name') is false then 'name' else 'comment' end),
      hint = 'Type it by hand: the pasted text contains invisible characters.';
  end if;
  -- also text that Postgres would read as a list, such as "{a,b}": its entries would not be checked
  for v_field in
    select e.key, e.value, a.atttypid as type from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
      and a.atttypid in ('text[]'::regtype, 'integer[]'::regtype)
    where jsonb_typeof(e.value) not in ('array', 'null')
  loop
    raise exception using errcode = 'TC302',
      message = format('save_copier: %s is %s, but must be a list of %s', v_field.key, left(v_field.value::text, 100),
        case when v_field.type = 'text[]'::regtype
          then 'texts such as ["EURUSD"]' else 'whole numbers such as [1, 2]' end),
      hint = 'An empty list, [], is no filter.';
  end loop;
  -- an entry that is not text, or cannot be a magic number, would match nothing: the filter would let through
  -- everything or nothing
  for v_field in
    select e.key, l.entry from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
      and a.atttypid = 'text[]'::regtype
    cross join lateral jsonb_array_elements(case jsonb_typeof(e.value) when 'array'
      then e.value else '[]' end) as l (entry)
    where not coalesce(case when e.key like 'magic%'
      then jsonb_typeof(l.entry) in ('string', 'number') and (l.entry #>> '{}') ~ '^-?[0-9]{1,20}$'
      else jsonb_typeof(l.entry) = 'string'
        and length(l.entry #>> '{}') between case when e.key like 'comment%' then 0 else 1 end and 100 end, false)
  loop
    raise exception using errcode = 'TC302',
      message = format('save_copier: %s holds %s, but must be a list of %s', v_field.key,
        left(v_field.entry::text, 100), case when v_field.key like 'magic%'
          then 'whole numbers such as ["42"]' else 'texts of up to 100 characters such as ["EURUSD"]' end),
      hint = 'An empty list is no filter.';
  end loop;
  perform private.refuse_bad_mappings(p_copier -> 'symbols');
end $$;

-- Refuses a copier that would complete a circle; copiers that are off count too. The caller holds the user's lock
-- (copier/quota.sql), so two calls cannot complete a circle together: copiers only connect accounts of one user.
create function private.refuse_cycle(p_master uuid, p_follower uuid) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if exists (
    with recursive downstream (id) as (
      select p_follower
      union
      select c.follower_account_id from downstream d
      join public.copiers c on c.master_account_id = d.id and c.removed_at is null
    )
    select 1 from downstream where id = p_master
  ) then
    raise exception using errcode = 'TC305',
      message = 'save_copier: the follower''s trades already reach the master, directly or through other copiers',
      detail = 'Such a circle would copy its own copies for ever.', hint = 'Remove a copier of the circle first.';
  end if;
end $$;

-- {"copier_id", "mode": "on|monitor|off"} -> {"copier_id", "mode"}
create function private.set_copier_mode(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_copier public.copiers;
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'set_copier_mode', array['copier_id', 'mode']);
  if coalesce(p_request ->> 'mode', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303',
      message = format('set_copier_mode: mode is %s, but must be on, monitor or off',
      coalesce(left(p_request ->> 'mode', 100), 'missing')),
      hint = 'off freezes open copies; on and monitor keep them in step with the master.';
  end if;
  select * into v_copier from public.copiers c
  where c.id = v_id and (c.user_id = v_user or private.is_operator()) and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106',
      message = format('set_copier_mode: copier %s does not exist or is not yours', v_id),
      hint = 'Check the id.';
  end if;
  perform private.refuse_leaving(v_copier.id);
  v_now := private.lock_accounts(array[v_copier.master_account_id, v_copier.follower_account_id]);
  update public.copiers set mode = p_request ->> 'mode', updated_at = clock_timestamp() where id = v_copier.id;
  perform private.replan_copier(v_copier.id, v_now);
  return jsonb_build_object('copier_id', v_copier.id, 'mode', p_request ->> 'mode');
end $$;

create function public.save_copier(p_copier jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.save_copier(p_copier) $$;
comment on function public.save_copier(jsonb) is
  'Users: makes a copier, or changes one. Columns that are left out keep their value, or get their default if it is new.
Request:
- id (uuid): copier of the caller to change; left out: a new one
- master_account_id (uuid; required for a new copier): account of the caller whose trades are copied; cannot be changed
  later
- follower_account_id (uuid; required for a new copier): account of the caller that copies; cannot be changed later
- symbols (object; at most 500 symbols, names of 1 to 64 characters): name at the follower for each name at the master,
  or {"to": name, "lots_factor": 0.01 to 100, "mode": on, closes_only or off}, where lots_factor and mode left out keep
  their value (1 and on if new); upper and lower case and surrounding blanks are the same; replaces all mappings; left
  out or null: unchanged
- (any other column of copiers): a setting; the table of copiers in docs/api.md lists them
Answer:
- copier_id (uuid): the copier
- warnings (list of texts): settings that are allowed but may surprise, and mapped names that an account does not have
  with the nearest ones, one sentence each
Errors: TC001 TC105 TC106 TC108 TC227 TC301 TC302 TC303 TC304 TC305 TC306 TC307 TC330 TC331
Example: {"master_account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "follower_account_id":
  "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02",
"name": "Gold at half size", "sizing_mode": "multiplier", "sizing_value": "0.5", "max_lots": "5", "symbols": {"GOLD":
"XAUUSD"}}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "warnings": []}';

create function public.set_copier_mode(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_copier_mode(p_request) $$;
comment on function public.set_copier_mode(jsonb) is 'Users and operators: switches a copier: on, monitor or off.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- mode (text; required; on, monitor or off): on copies; monitor follows closes only; off is frozen, closes included
Answer:
- copier_id (uuid): the copier
- mode (text; on, monitor or off): the new mode
Errors: TC001 TC105 TC106 TC108 TC227 TC301 TC303 TC307
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "monitor"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "monitor"}';

revoke all on function public.save_copier(jsonb), public.set_copier_mode(jsonb) from public, anon;
grant execute on function public.save_copier(jsonb), public.set_copier_mode(jsonb), private.save_copier(jsonb),
  private.set_copier_mode(jsonb) to authenticated;
