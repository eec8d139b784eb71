-- Functions for symbols: what is chosen for a master's symbol, the alternatives, and what to save.

-- {"copier_id", "symbols": [names of the master] or left out} -> {"copier_id", "prefix", "suffix", "symbols":
-- [{"master_symbol", "follower_symbol", "how", "why", "candidates", "save"}]}. "save" is the argument for save_copier
-- if the user agrees.
create function private.symbol_suggestions(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_copier public.copiers;
  v_follower public.trading_accounts;
  v_mapped jsonb;
  v_answers jsonb;
begin
  perform private.refuse_unknown(p_request, 'symbol_suggestions', array['copier_id', 'symbols']);
  select * into v_copier from public.copiers c
  where c.id = private.uuid_of(p_request, 'copier_id') and (c.user_id = v_user or private.is_operator())
    and c.removed_at is null;
  if v_copier.id is null then
    raise exception using errcode = 'TC106',
      message = format('symbol_suggestions: copier %s does not exist or is not yours', p_request ->> 'copier_id'),
      hint = 'Check the id.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'symbols'), 'null') not in ('null', 'array') then
    raise exception using errcode = 'TC001',
      message = 'symbol_suggestions: "symbols" must be an array of the master''s symbols';
  end if;
  if jsonb_array_length(nullif(p_request -> 'symbols', 'null')) > 500 then
    raise exception using errcode = 'TC001',
      message = format('symbol_suggestions: "symbols" has %s names, but must have at most 500',
      jsonb_array_length(p_request -> 'symbols')), hint = 'Ask for fewer at once.';
  end if;
  if exists (select 1 from jsonb_array_elements(coalesce(nullif(p_request -> 'symbols', 'null'), '[]')) s
             where jsonb_typeof(s) <> 'string' or length(s #>> '{}') > 64) then
    raise exception using errcode = 'TC001',
      message = 'symbol_suggestions: an entry of "symbols" is not a text of at most 64 characters',
      hint = 'Give the names as the master''s broker lists them.';
  end if;
  select * into v_follower from public.trading_accounts where id = v_copier.follower_account_id;
  select coalesce(jsonb_object_agg(y.master_symbol, y.follower_symbol), '{}') into v_mapped
  from public.symbol_mappings y where y.copier_id = v_copier.id;
  select jsonb_agg(private.suggest_symbol(v_copier.id, v_follower, s, v_mapped) order by s.name) into v_answers
  from (
    select x.* from public.account_symbols x
    where x.account_id = v_copier.master_account_id
      and (jsonb_typeof(p_request -> 'symbols') is distinct from 'array' or p_request -> 'symbols' ? x.name)
    order by x.name in (select p.symbol from public.positions p where p.account_id = v_copier.master_account_id) desc,
      x.name limit 500
  ) s;
  return jsonb_build_object('copier_id', v_copier.id, 'prefix', v_follower.symbol_prefix, 'suffix',
    v_follower.symbol_suffix,
    'symbols', coalesce(v_answers, '[]'));
end $$;

create function private.suggest_symbol(p_copier uuid, p_follower public.trading_accounts,
  p_master public.account_symbols, p_mapped jsonb)
returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_others jsonb := private.symbol_alternatives(p_follower, p_master);
  v_chosen public.account_symbols;
  v_how text := 'mapped';
  v_best text;
begin
  if p_mapped ? p_master.name then
    v_chosen := private.symbol_named(p_follower.id, p_mapped ->> p_master.name);
  else
    v_chosen := private.follower_symbol(p_follower, p_master);
    select case when v_chosen.name = p_master.name then 'exact' when c.rank = 1 then 'affix' when c.rank = 2
      then 'root' else 'alias' end into v_how
    from private.symbol_candidates(p_follower, p_master) c where c.name = v_chosen.name;
  end if;
  v_best := coalesce(v_chosen.name, (
    select e ->> 'name' from jsonb_array_elements(v_others) with ordinality as o (e, n)
    order by e ->> 'why_not' is not null, n limit 1));
  return jsonb_build_object('master_symbol', p_master.name, 'follower_symbol', v_chosen.name,
    'how', case when v_chosen.name is not null then v_how end,
    'why', case when v_chosen.name is null then private.unmapped_detail(p_copier, p_master.name)
      when v_how = 'mapped' then format('You have mapped it to %s.', v_chosen.name)
      when v_how = 'exact' then 'The follower has a symbol of the same name.'
      when v_how = 'affix' then format('%s carries the prefix and suffix that most of the follower''s symbols carry.',
        v_chosen.name)
      when v_how = 'root' then format('%s is the only one with this name inside.', v_chosen.name)
      else format('%s is another name of the same instrument.', v_chosen.name) end,
    'candidates', v_others,
    'save', case when v_best is not null then
      jsonb_build_object('id', p_copier, 'symbols', p_mapped || jsonb_build_object(p_master.name, v_best)) end);
end $$;

-- {"name", "instrument"} -> {"name", "instrument"}: operators add a name of an instrument, or remove one (instrument
-- null).
create function private.set_symbol_alias(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_name text := upper(private.text_of(p_request, 'name', 20));
  v_instrument text := upper(private.text_of(p_request, 'instrument', 20));
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'set_symbol_alias', array['name', 'instrument']);
  if coalesce(v_name, '') !~ '^[A-Z0-9]+$' or v_instrument !~ '^[A-Z0-9]+$' then
    raise exception using errcode = 'TC001',
      message = 'set_symbol_alias: a name has 1 to 20 letters and digits, without the broker''s prefix and suffix',
      hint = 'For example {"name": "GOLD", "instrument": "XAUUSD"}; instrument null removes the name.';
  end if;
  if v_instrument is null then
    delete from public.symbol_aliases where name = v_name;
  else
    -- the instrument may itself be given by one of its other names
    v_instrument := coalesce((select a.instrument from public.symbol_aliases a where a.name = v_instrument),
      v_instrument);
    insert into public.symbol_aliases (name, instrument)
    values (v_instrument, v_instrument) on conflict (name) do nothing;
    insert into public.symbol_aliases (name, instrument) values (v_name, v_instrument)
    on conflict (name) do update set instrument = excluded.instrument;
  end if;
  delete from private.symbol_choices where master_symbol is not null;
  return jsonb_build_object('name', v_name, 'instrument', v_instrument);
end $$;

-- Alerts the user to refusals that only the user can resolve.
create function private.tell_refusal() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(c.follower_account_id, 'copy', new.reason, 'warning', case new.reason
      when 'sanity' then format('A trade of %s was not copied: it would have been far larger, measured by the equity, '
        'than the master''s own. Check the copier''s sizing.',
        (select l.symbol from public.position_links l where l.id = new.link_id))
      else format('A trade was not copied. %s',
        coalesce(new.detail, 'The follower has no symbol for it: map it in the copier.')) end,
    jsonb_build_object('copier_id', c.id, 'event_id', new.event_id::text))
  from public.copiers c where c.id = new.copier_id;
  return null;
end $$;
create trigger tell_refusal after insert on public.copy_outcomes for each row
  when (new.reason in ('sanity', 'symbol_unmapped', 'symbol_unproven')) execute function private.tell_refusal();
-- a decision that waited for a symbol replaces the outcome
create trigger tell_refusal_after_wait after update of reason on public.copy_outcomes for each row
  when (old.reason = 'symbols_loading' and new.reason in ('sanity', 'symbol_unmapped', 'symbol_unproven'))
  execute function private.tell_refusal();

create function public.symbol_suggestions(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.symbol_suggestions(p_request) $$;
comment on function public.symbol_suggestions(jsonb) is
  'Users and operators: for each symbol of a copier''s master: the symbol it is copied into, alternatives, what to save.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- symbols (list of texts; at most 500 names of at most 64 characters): symbols of the master; left out or null: all of
  them, up to 500
Answer:
- copier_id (uuid): the copier
- prefix, suffix (text): prefix and suffix of most of the follower''s symbols
- symbols (list of objects): one per symbol that the master has; those with open positions first
- symbols[].master_symbol (text): symbol of the master
- symbols[].follower_symbol (text or null): symbol that it is copied into; null: none
- symbols[].how (text or null; mapped, exact, affix, root or alias): how that symbol was found
- symbols[].why (text): the same in a sentence
- symbols[].candidates (list of objects): alternatives, with name, contract_size, profit_currency and why_not
- symbols[].save (object or null): argument for save_copier if the user agrees with the likeliest candidate
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "symbols": ["EURUSD"]}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "prefix": "", "suffix": ".r", "symbols": [{
  "master_symbol": "EURUSD", "follower_symbol": "EURUSD.r", "how": "affix",
  "why": "EURUSD.r carries the prefix and suffix that most of the follower''s symbols carry.", "candidates": [],
  "save": {"id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "symbols": {"EURUSD": "EURUSD.r"}}}]}';

create function public.set_symbol_alias(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.set_symbol_alias(p_request) $$;
comment on function public.set_symbol_alias(jsonb) is 'Operators: adds another name of an instrument, or removes one.
Request:
- name (text; required; 1 to 20 letters and digits): the name, without a broker''s prefix and suffix
- instrument (text; 1 to 20 letters and digits): the instrument that it names; left out or null: the name is removed
Answer:
- name (text): the name, in capital letters
- instrument (text or null): the instrument, by its main name
Errors: TC001 TC107 TC301
Example: {"name": "YANKEE30", "instrument": "US30"} -> {"name": "YANKEE30", "instrument": "US30"}';

revoke all on function public.symbol_suggestions(jsonb), public.set_symbol_alias(jsonb) from public, anon;
grant execute on function public.symbol_suggestions(jsonb), private.symbol_suggestions(jsonb) to authenticated;
grant execute on function public.set_symbol_alias(jsonb), private.set_symbol_alias(jsonb) to authenticated,
  service_role;
