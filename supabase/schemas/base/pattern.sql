-- Lists of patterns: the limits of a copier's lists, and the compiled form that the planner matches trades against.

-- The most entries that a copier's list may have; entry_max(): the most characters of one entry.
create function private.list_max() returns integer
language plpgsql immutable set search_path = '' as $$ begin return 500; end $$;

create function private.entry_max() returns integer
language plpgsql immutable set search_path = '' as $$ begin return 100; end $$;

-- Whether a list is within its limits: one dimension, no nulls, at most 500 entries of at most 100 characters.
create function private.is_list(p_list text[]) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return cardinality(p_list) = 0 or array_ndims(p_list) = 1 and cardinality(p_list) <= private.list_max()
    and not exists (select 1 from unnest(p_list) as e (entry)
      where e.entry is null or length(e.entry) > private.entry_max());
end $$;

create type private.patterns as (exact text[], wild text[]);
comment on type private.patterns is
  'A compiled list: exact names in lower case, and the entries with * as LIKE patterns.';

-- LIKE, not a regular expression: LIKE backtracks no further than to the last *, so no pattern can take long, and LIKE
-- patterns need not be compiled anew by each connection.
create function private.compiled(p_list text[]) returns private.patterns
language plpgsql immutable set search_path = '' as $$
declare
  v_exact text[];
  v_wild text[];
begin
  select array_agg(distinct lower(e.entry)) filter (where strpos(e.entry, '*') = 0),
    array_agg(distinct replace(replace(replace(regexp_replace(lower(e.entry), '\*+', '*', 'g'), '\', '\\'), '%', '\%'),
      '_', '\_'))
      filter (where strpos(e.entry, '*') > 0)
  into v_exact, v_wild from unnest(p_list) as e (entry);
  if '*' = any (v_wild) then  -- * matches everything: the other entries are not needed
    return row('{}'::text[], array['%'])::private.patterns;
  end if;
  return row(coalesce(v_exact, '{}'), coalesce(array(select replace(w, '*', '%') from unnest(v_wild) w),
    '{}'))::private.patterns;
end $$;

-- Whether a text matches one of the patterns. * stands for any text; case is ignored.
create function private.matches(p_text text, p_patterns private.patterns) returns boolean
language plpgsql immutable set search_path = '' as $$
declare
  v_text text := lower(coalesce(p_text, ''));
begin
  return v_text = any (p_patterns.exact) or v_text like any (p_patterns.wild);
end $$;

-- The first entries of a list as text, for use in a message.
create function private.listed(p_list text[]) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return array_to_string(p_list[:10], ', ')
    || case when cardinality(p_list) > 10 then format(' and %s more', cardinality(p_list) - 10) else '' end;
end $$;
