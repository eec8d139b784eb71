-- Explanations for a symbol that could not be copied: which symbols the follower has instead.

-- Symbols of the follower that might be the master's, likeliest first: [{"name", "contract_size", "profit_currency",
-- "why_not"}]. Finding similar names means reading the whole list, which planning does only for a refusal.
create function private.symbol_alternatives(p_follower public.trading_accounts,
  p_master public.account_symbols) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_names text[] := private.names_of(p_master);
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', x.name, 'contract_size', trim_scale(x.contract_size)::text,
      'profit_currency', x.profit_currency, 'why_not', x.misfit) order by x.rank, x.name), '[]')
    from (
      select s.name, s.contract_size, s.profit_currency, coalesce(c.rank, 5) as rank,
        case when c.name is null then coalesce(private.misfit(p_master, s), 'its name is only similar')
          else c.misfit end as misfit
      from public.account_symbols s
      left join private.symbol_candidates(p_follower, p_master) c on c.name = s.name
      where s.account_id = p_follower.id
        and (c.name is not null or exists (select 1 from unnest(v_names) n where strpos(upper(s.name), n) > 0))
      order by 4, s.name limit 8
    ) x);
end $$;

-- Why a copier has no symbol for the master's, as a sentence: the detail of the outcome symbol_unmapped.
create function private.unmapped_detail(p_copier uuid, p_symbol text) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
  v_master public.account_symbols;
  v_mapped text;
  v_others jsonb;
begin
  select s.* into v_master from public.copiers c
  join public.account_symbols s on s.account_id = c.master_account_id and s.name = p_symbol
  where c.id = p_copier;
  if v_master.name is null then
    return format('The master''s agent has not yet said what %s is (contract size, currency).', p_symbol);
  end if;
  v_mapped := (private.mapping_of(p_copier, p_symbol)).follower_symbol;
  select a.* into v_follower from public.copiers c join public.trading_accounts a on a.id = c.follower_account_id
  where c.id = p_copier;
  v_others := private.symbol_alternatives(v_follower, v_master);
  if v_mapped is null and not v_follower.symbols_complete then
    return format('The follower''s list of symbols is not told completely yet, and has no %s so far: map it, or resync '
      'the copier when it is.', p_symbol);
  end if;
  return case when v_mapped is null then ''
    else format('%s is mapped to %s, which the follower does not have. ', p_symbol, v_mapped) end || case
    when v_others = '[]'
      then format('The follower has nothing like %s: map it by hand if it has it under another name.', p_symbol)
    else format('For %s the follower has: %s. Choose one of them in the copier''s symbols.', p_symbol, (
      select string_agg(format('%s (%s)', e ->> 'name', coalesce(e ->> 'why_not', 'it fits, and so does another')),
        ', ')
      from jsonb_array_elements(v_others) e)) end;
end $$;
