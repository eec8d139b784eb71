-- Messages about a copier's settings: which value is wrong and what is allowed, which settings contradict each other,
-- and which may surprise.

-- Raises the error for a broken rule of copiers (TC303; TC306 if it is about several settings): the settings, their
-- values, and the rule's words (the comments on the constraints).
create function private.refuse_setting(p_constraint text, p_column text, p_copier jsonb, p_error text) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_settings text[];
  v_values text;
  v_words text;
begin
  select array_agg(a.attname::text order by a.attnum), obj_description(k.oid, 'pg_constraint') into v_settings, v_words
  from pg_catalog.pg_constraint k join pg_catalog.pg_attribute a on a.attrelid = k.conrelid
    and a.attnum = any (k.conkey)
  where k.conrelid = 'public.copiers'::regclass and k.conname = p_constraint group by k.oid;
  if v_settings is null then
    v_settings := array[coalesce(nullif(p_column, ''), 'a setting')];
    v_words := case when p_column <> '' then 'must have a value' end;
  end if;
  select string_agg(format('%s is %s', s, left(coalesce(p_copier ->> s, 'null'), 100)), ' and ') into v_values
  from unnest(v_settings) s;
  raise exception using errcode = case when cardinality(v_settings) > 1 then 'TC306' else 'TC303' end,
    message = format('save_copier: %s, but %s', v_values, coalesce(v_words, 'that is not allowed: ' || p_error)),
    hint = case when cardinality(v_settings) > 1 then 'Change one of them.' else 'Choose another value.' end;
end $$;

-- Raises TC302 for a value of the wrong form, with the form that it must have.
create function private.refuse_form(p_copier jsonb, p_error text) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_setting record;
begin
  for v_setting in
    select e.key, e.value, a.atttypid as type from jsonb_each(p_copier) e
    join pg_catalog.pg_attribute a on a.attrelid = 'public.copiers'::regclass and a.attname = e.key
  loop
    begin
      perform jsonb_populate_record(null::public.copiers, jsonb_build_object(v_setting.key, v_setting.value));
    exception when data_exception then
      raise exception using errcode = 'TC302',
        message = format('save_copier: %s is %s, but must be %s', v_setting.key, left(v_setting.value::text, 100),
        case v_setting.type when 'integer'::regtype then 'a whole number below 2147483648' when 'boolean'::regtype
          then 'true or false'
          when 'time'::regtype then 'a time of day such as "08:30"' when 'text[]'::regtype
            then 'a list of texts such as ["EURUSD"]'
          when 'integer[]'::regtype then 'a list of whole numbers such as [1, 2]' else 'of another form' end),
        hint = 'Give it in that form, or leave it out.';
    end;
  end loop;
  raise exception using errcode = 'TC302', message = 'save_copier: a value has the wrong form: ' || p_error,
    hint = 'Numbers are decimal strings such as "0.5".';
end $$;

-- Raises TC306 if an entry of one list is excluded by another: it could never be copied. p_given: the keys of the
-- request; lists that are not in it were checked before.
create function private.refuse_contradictions(p_given jsonb, p_copier public.copiers) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_pair record;
begin
  for v_pair in
    select x.only_name, x.except_name, private.listed(array_agg(w order by n)) as both_name
    from (values ('symbols_only', 'symbols_except', p_copier.symbols_only, p_copier.symbols_except),
      ('magic_only', 'magic_except', p_copier.magic_only, p_copier.magic_except),
      ('comment_only', 'comment_except', p_copier.comment_only, p_copier.comment_except)) x (only_name, except_name,
        wanted, unwanted)
    cross join lateral (select private.compiled(x.unwanted) as unwanted offset 0) c
    cross join lateral unnest(x.wanted) with ordinality as u (w, n)
    -- a pattern is covered by a wider one: EUR* by *, EURUSD by EUR*
    where p_given ?| array[x.only_name, x.except_name]
      and case when x.only_name = 'magic_only' then w = any (x.unwanted) else private.matches(w, c.unwanted) end
    group by 1, 2
  loop
    raise exception using errcode = 'TC306',
      message = format('save_copier: %s of %s is excluded by %s', v_pair.both_name, v_pair.only_name,
        v_pair.except_name),
      hint = 'Remove it from one of the two.';
  end loop;
end $$;

-- Warnings about settings that are allowed but may surprise, a list with one sentence each.
create function private.settings_warnings(p_copier public.copiers) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_warnings text[] := '{}';
  v_small text;
begin
  if p_copier.max_lots is not null then
    select string_agg(x.name, ', ') into v_small from (
      select s.name from public.account_symbols s
      where s.account_id = p_copier.follower_account_id and s.lots_min > p_copier.max_lots order by s.name limit 5) x;
    if v_small is not null then
      v_warnings := v_warnings ||
        format('The maximum of %s lots is below the smallest volume of %s: nothing of it will be copied.',
        private.plain(p_copier.max_lots), v_small);
    end if;
    if p_copier.sizing_mode = 'fixed' and p_copier.sizing_value > p_copier.max_lots then
      v_warnings := v_warnings ||
        format('The fixed size of %s lots is above the maximum of %s: every copy is cut to the maximum.',
        private.plain(p_copier.sizing_value), private.plain(p_copier.max_lots));
    end if;
  end if;
  if p_copier.sizing_mode = 'risk_percent' and p_copier.sizing_value > p_copier.max_risk_percent then
    v_warnings := v_warnings ||
      format('The size of %s %% of risk is above the limit of %s %%: every copy is cut to the limit.',
      private.plain(p_copier.sizing_value), private.plain(p_copier.max_risk_percent));
  end if;
  if '*' = any (p_copier.symbols_except) then
    v_warnings := v_warnings || 'The list of symbols that are left out has "*": nothing will be opened.'::text;
  end if;
  return to_jsonb(v_warnings);
end $$;
