-- Whether two names mean the same instrument: what remains of a name beside what is known must be an affix.

-- Affixes that many brokers use and that never tell two instruments apart.
create function private.listed_affixes() returns text[]
language sql immutable set search_path = '' as $$
  select array['.CASH', '.CFD', '.ECN', '.PRO', '.RAW', '.SPOT', '.STD', '.STP']
$$;

-- The listed instrument (a pair of currencies, a metal or an alias) that a name in upper case means, with the date if
-- it is a dated contract: US30 for DJ30.x, US30@DEC25 for DJ30-DEC25. Null: none. A text with a blank is no affix.
create function private.listed_instrument(p_name text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_root text := private.symbol_root(p_name);
  v_pair boolean := private.pair_in(v_root) = v_root;
  v_instrument text := (select a.instrument from public.symbol_aliases a where a.name = v_root);
begin
  if v_instrument is null and not coalesce(v_pair, false) then return null; end if;
  if not coalesce(v_pair, false) and p_name ~ '[A-Z0-9]\s+\S*[A-Z]' and private.contract_date(p_name,
    extract(year from now())::integer) is null then
    return null;
  end if;
  return coalesce(v_instrument, v_root) || coalesce('@' || case when v_root <> p_name then
    private.contract_date(p_name, extract(year from now())::integer) end, '');
end $$;

-- What a name can mean at an account: itself; itself without the affixes that are proven or listed; and "=" with the
-- listed instrument. Two symbols may be the same instrument only if they share a meaning.
create function private.meanings(p_name text, p_account public.trading_accounts) returns text[]
language plpgsql stable security definer set search_path = '' as $$
declare
  v_name text := upper(btrim(p_name));
  v_prefix text := upper(p_account.symbol_prefix);
  v_suffix text := upper(p_account.symbol_suffix);
  v_names text[] := array[v_name];
  v_inner text;
begin
  v_names := v_names || array(select left(v_name, -length(x)) from unnest(private.listed_affixes()) x
    where right(v_name, length(x)) = x and length(v_name) > length(x));
  if v_prefix || v_suffix <> '' and starts_with(v_name, v_prefix) and right(v_name, length(v_suffix)) = v_suffix
    and length(v_name) > length(v_prefix || v_suffix) then
    v_inner := substr(v_name, length(v_prefix) + 1, length(v_name) - length(v_prefix || v_suffix));
    if p_account.symbol_affix_proven then v_names := v_names || v_inner; end if;
  end if;
  -- where the broker adds m to every name, US30-DECm is a contract of December, not US30
  return v_names || array(
    select '=' || i from unnest(case when private.contract_date(v_inner, extract(year from now())::integer) is null
      then v_names || v_inner else array[v_inner] end) n
    cross join lateral private.listed_instrument(n) i where i is not null);
end $$;

-- Why a follower's symbol of another name does not mean the master's instrument; null: it does.
create function private.name_misfit(p_master text, p_master_meanings text[], p_symbol text,
  p_follower public.trading_accounts) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_year integer := extract(year from now());
begin
  return case
    when p_symbol = p_master or p_master_meanings && private.meanings(p_symbol, p_follower) then null
    when private.contract_date(p_master, v_year) is distinct from private.contract_date(p_symbol, v_year)
      then 'one of the two seems to be a future, or they end on different dates'
    else 'its name is only similar' end;
end $$;
