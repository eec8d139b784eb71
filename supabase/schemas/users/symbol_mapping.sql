-- Mappings as users save them: their form, and warnings of names that an account does not have.

-- The follower's symbol in an entry of "symbols", which is a text or an object; null: there is none.
create function private.mapped_to(p_entry jsonb) returns text
language sql immutable set search_path = '' as $$
  select case jsonb_typeof(p_entry) when 'string' then p_entry #>> '{}'
    when 'object' then case when jsonb_typeof(p_entry -> 'to') = 'string' then p_entry ->> 'to' end end
$$;

create function private.mappings_in(p_symbols jsonb)
returns table (master text, follower text, lots_factor numeric, mode text)
language sql stable set search_path = '' as $$
  select btrim(e.key), btrim(private.mapped_to(e.value)),
    case when jsonb_typeof(e.value) = 'object' then (e.value ->> 'lots_factor')::numeric end,
    case when jsonb_typeof(e.value) = 'object' then e.value ->> 'mode' end
  from jsonb_each(p_symbols) e
$$;

-- What is wrong with a mapping's factor or mode, as the end of a sentence; null: nothing.
create function private.mapping_fault(p_mapping jsonb, p_allowed text[]) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when exists (select from jsonb_object_keys(p_mapping) k where k <> all (p_allowed))
      then 'may have only ' || private.one_of(p_allowed)
    when jsonb_typeof(p_mapping -> 'lots_factor') <> 'null'
      and private.is_number(p_mapping -> 'lots_factor') is not true
      then 'has a lots_factor that is not a number'
    when (p_mapping ->> 'lots_factor')::numeric not between 0.01 and 100
      then 'has a lots_factor that is not between 0.01 and 100'
    when jsonb_typeof(p_mapping -> 'mode') <> 'null' and (p_mapping ->> 'mode') not in ('on', 'closes_only', 'off')
      then 'has a mode that is not on, closes_only or off' end;
end $$;

-- What is wrong with the name of a symbol in a mapping, as the end of a sentence; null: nothing.
create function private.symbol_name_fault(p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_name is null then 'is no name: give it as a text, or as "to" of an object'
    when length(btrim(p_name)) = 0 then 'is empty'
    when length(btrim(p_name)) > 64 then 'has more than 64 characters'
    when not private.is_plain(btrim(p_name)) then 'holds a tab, a line break or another character that cannot be seen: '
      'type it by hand' end;
end $$;

-- Raises TC302 for a mapping with a wrong name, factor or mode, or for two of the same symbol.
create function private.refuse_bad_mappings(p_symbols jsonb) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_wrong text;
begin
  if coalesce(jsonb_typeof(p_symbols), 'null') = 'null' then return; end if;
  if jsonb_typeof(p_symbols) <> 'object' then
    v_wrong := ' must name a symbol of the follower for each of the master''s';
  else
    select case
      when private.symbol_name_fault(e.key) is not null then
        format(': the master''s symbol %s %s', left(to_jsonb(e.key)::text, 100), private.symbol_name_fault(e.key))
      when private.symbol_name_fault(f.name) is not null then
        format(': the follower''s symbol %s of %s %s', left(coalesce(to_jsonb(f.name), e.value)::text, 100),
          left(e.key, 64), private.symbol_name_fault(f.name))
      else format(': the mapping of %s %s', left(e.key, 64), f.fault) end
    into v_wrong
    from jsonb_each(p_symbols) e
    cross join lateral (select private.mapped_to(e.value) as name, case when jsonb_typeof(e.value) = 'object'
      then private.mapping_fault(e.value, array['to', 'lots_factor', 'mode']) end as fault) f
    where private.symbol_name_fault(e.key) is not null or private.symbol_name_fault(f.name) is not null
      or f.fault is not null
    limit 1;
  end if;
  if v_wrong is null then
    select format(': %s are one symbol, mapped twice', string_agg(k, ' and ' order by k)) into v_wrong
    from jsonb_object_keys(p_symbols) k group by upper(btrim(k)) having count(*) > 1 limit 1;
  end if;
  if v_wrong is not null then
    raise exception using errcode = 'TC302', message = 'save_copier: symbols' || v_wrong,
      hint = 'For example {"GOLD": "XAUUSD"}, or {"GOLD": {"to": "XAUUSD", "lots_factor": "0.5", "mode": "on"}}.';
  end if;
end $$;

-- The symbols of an account whose names are most like this one, at most three.
create function private.nearest_symbols(p_account uuid, p_name text) returns text
language sql stable security definer set search_path = '' as $$
  select string_agg(x.name, ', ') from (
    select s.name from public.account_symbols s
    cross join lateral (select count(*) filter (where strpos(upper(s.name), substr(upper(p_name), n, 2)) > 0) as shared
      from generate_series(1, greatest(1, length(p_name) - 1)) n) alike
    where s.account_id = p_account and alike.shared > 0
    order by alike.shared desc, abs(length(s.name) - length(p_name)), s.name limit 3
  ) x
$$;

-- A sentence for each mapped name that its account does not have, at most ten. An account that has told no symbol yet
-- is not judged.
create function private.mapping_warnings(p_copier public.copiers) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(format('symbols: the %s has no symbol %s%s.', x.side, x.name,
    coalesce('; the nearest are ' || private.nearest_symbols(x.account_id, x.name), ''))), '[]')
  from (
    select o.side, o.name, o.account_id from public.symbol_mappings y
    cross join lateral (values ('master', y.master_symbol, p_copier.master_account_id),
      ('follower', y.follower_symbol, p_copier.follower_account_id)) o (side, name, account_id)
    where y.copier_id = p_copier.id and exists (select from public.account_symbols s where s.account_id = o.account_id)
      and not exists (select from public.account_symbols s where s.account_id = o.account_id and s.name = o.name)
    order by o.side desc, o.name limit 10
  ) x
$$;
