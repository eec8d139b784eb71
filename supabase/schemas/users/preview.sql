-- preview_copy: users ask the planner's own sizing function how large a copy would be, and why.

-- A copier with default settings: the defaults of the table's sizing columns (a test compares the two).
create function private.default_copier() returns public.copiers
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::public.copiers,
    '{"sizing_mode": "multiplier", "sizing_value": 1, "contract_alignment": true,
    "min_policy": "skip", "max_risk_coefficient": 5, "max_policy": "cap", "max_leverage_policy": "discard",
    "sanity_factor": 3,
    "reverse": false}'::jsonb);
end $$;

create function private.symbol_of(p jsonb) returns public.account_symbols
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::public.account_symbols, p);
end $$;

create function private.funds_of(p jsonb) returns private.funds
language plpgsql immutable set search_path = '' as $$
begin
  return jsonb_populate_record(null::private.funds, p);
end $$;

-- Raises TC001 for a wrong word or range in the request's copier, as the table's CHECKs do for a saved one.
create function private.check_sizing_words(c public.copiers) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_wrong text := case
    when (c.sizing_mode = any (private.sizing_modes())) is not true
      then 'sizing_mode must be ' || private.one_of(private.sizing_modes())
    when (c.sizing_value > 0 and c.sizing_value <= case c.sizing_mode when 'risk_percent' then 100 when 'percentage'
      then 100000 else 1000 end) is not true
      then 'sizing_value must be above 0 and at most 1000 (percentage: 100000, risk_percent: 100)'
    when c.min_policy in ('skip', 'force_min') is not true then 'min_policy must be skip or force_min'
    when c.max_policy in ('cap', 'split') is not true then 'max_policy must be cap or split'
    when c.max_leverage_policy in ('discard', 'shrink') is not true then 'max_leverage_policy must be discard or shrink'
    when c.sl_mode in ('price', 'distance', 'fixed', 'none') is false
      then 'sl_mode must be price, distance, fixed or none'
    when c.max_risk_coefficient between 1 and 1000 is not true then 'max_risk_coefficient must be 1 to 1000'
    when c.max_lots <= 0 then 'max_lots must be above 0'
    when c.max_risk_percent <= 0 or c.max_risk_percent > 100 then 'max_risk_percent must be above 0 and at most 100'
    when c.max_leverage <= 0 then 'max_leverage must be above 0' when c.sanity_factor < 1
      then 'sanity_factor must be 1 or more'
    when c.reverse is null or c.contract_alignment is null
      then 'reverse and contract_alignment must be true or false' end;
begin
  if v_wrong is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: copier.' || v_wrong,
      hint = 'See docs/protocol.md for the form of a request.';
  end if;
end $$;

-- Raises TC001 for a value that is not a number (null means unknown, or none) or a wrong word, and TC301 for a setting
-- that copiers do not have.
create function private.check_preview(p_request jsonb) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_wrong text;
begin
  select left(string_agg(format('copier.%s is no setting of a copier', k), '; '), 300) into v_wrong
  from jsonb_object_keys(coalesce(nullif(p_request -> 'copier', 'null'), '{}')) k
  where k not in (select jsonb_object_keys(to_jsonb(private.default_copier())));
  if v_wrong is null then
    select format('%s is %s, but must be a number%s', left(array_to_string(x.path, '.'), 100), left(x.value::text, 60),
      case when x.above then ' above 0' else '' end)
    into v_wrong
    from (
      select array[o.name, f], p_request #> array[o.name, f], false
      from (values ('copier', array['sizing_value', 'max_risk_coefficient', 'max_lots', 'max_risk_percent',
        'max_leverage', 'sanity_factor']),
        ('master', array['balance', 'equity', 'free_margin']), ('follower', array['balance', 'equity', 'free_margin']),
        ('trade', array['sl', 'tp'])) o (name, fields) cross join unnest(o.fields) f
      union all
      select array['follower', 'symbol', f], p_request #> array['follower', 'symbol', f], false
      from unnest(array['bid', 'ask']) f
      union all
      select array[o, 'symbol', f], p_request #> array[o, 'symbol', f], true
      from unnest(array['master', 'follower']) o cross join unnest(array['contract_size', 'tick_size']) f
      union all
      select array['rates', e.key], e.value, false
      from jsonb_each(case jsonb_typeof(p_request -> 'rates') when 'object' then p_request -> 'rates' end) e
    ) x (path, value, above)
    where case when x.value is null or x.value = 'null' and not x.above then false
      when private.is_number(x.value) then x.above and (x.value #>> '{}')::numeric <= 0 else true end
    limit 1;
  end if;
  v_wrong := coalesce(v_wrong, case
    when coalesce(jsonb_typeof(p_request -> 'rates'), 'null') not in ('null', 'object')
      then 'rates must be an object such as {"EURUSD": "1.0850"}'
    when p_request #>> '{trade,side}' not in ('buy', 'sell') then 'trade.side must be buy or sell'
    when greatest((p_request #>> '{follower,symbol,lots_min}')::numeric,
      (p_request #>> '{follower,symbol,lots_step}')::numeric)
      > (p_request #>> '{follower,symbol,lots_max}')::numeric
        then 'follower.symbol: lots_min and lots_step must not be above lots_max' end);
  if v_wrong is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: ' || v_wrong,
      hint = 'Numbers are decimal strings such as "0.5"; null = unknown.';
  end if;
end $$;

-- The answer of preview_copy; TC001 names the field that is missing or malformed. Security definer: the parts that it
-- calls are granted to nobody.
create function private.preview_copy(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_master_symbol public.account_symbols;
  v_follower_symbol public.account_symbols;
  v_trade jsonb := p_request -> 'trade';
  v_mapping jsonb := p_request -> 'mapping';
  v_sizing private.sizing;
  v_field text;
begin
  perform private.refuse_unknown(p_request, 'preview_copy',
    array['copier', 'master', 'follower', 'trade', 'rates', 'mapping']);
  foreach v_field in array array['master', 'follower', 'trade'] loop
    if jsonb_typeof(p_request -> v_field) is distinct from 'object' then
      raise exception using errcode = 'TC001',
        message = format('preview_copy: "%s" is missing or not an object', v_field),
        hint = 'See docs/protocol.md for the form of a request.';
    end if;
  end loop;
  if jsonb_typeof(p_request #> '{follower,symbol}') is distinct from 'object' then
    raise exception using errcode = 'TC001', message = 'preview_copy: "follower.symbol" is missing or not an object',
      hint = 'Give at least name, contract_size, digits, tick_size, profit_currency, lots_min, lots_max and lots_step.';
  end if;
  if coalesce(jsonb_typeof(p_request -> 'copier'), 'null') not in ('null', 'object')
    or coalesce(jsonb_typeof(p_request #> '{master,symbol}'), 'null') not in ('null', 'object') then
    raise exception using errcode = 'TC001', message = 'preview_copy: "copier" and "master.symbol" must be objects',
      hint = 'See docs/protocol.md for the form of a request.';
  end if;
  foreach v_field in array array['contract_size', 'lots_min', 'lots_max', 'lots_step'] loop
    if not coalesce(private.is_number(p_request #> array['follower', 'symbol', v_field]), false)
      or (p_request #>> array['follower', 'symbol', v_field])::numeric <= 0 then
      raise exception using errcode = 'TC001',
        message = format('preview_copy: "follower.symbol.%s" must be a number above 0', v_field),
        hint = 'Numbers are decimal strings such as "0.01".';
    end if;
  end loop;
  foreach v_field in array array['lots', 'price'] loop
    if not coalesce(private.is_number(v_trade -> v_field), false) or (v_trade ->> v_field)::numeric <= 0
      and not (v_field = 'price' and private.may_be_negative(private.symbol_of(p_request #> '{follower,symbol}'))) then
      raise exception using errcode = 'TC001',
        message = format('preview_copy: "trade.%s" must be a number above 0', v_field),
        hint = 'Numbers are decimal strings such as "1.00".';
    end if;
  end loop;
  perform private.check_preview(p_request);
  if coalesce(jsonb_typeof(v_mapping), 'null') not in ('null', 'object') then
    raise exception using errcode = 'TC001', message = 'preview_copy: "mapping" must be an object',
      hint = 'For example {"lots_factor": "1", "mode": "on"}.';
  end if;
  v_field := private.mapping_fault(nullif(v_mapping, 'null'), array['lots_factor', 'mode']);
  if v_field is not null then
    raise exception using errcode = 'TC001', message = 'preview_copy: "mapping" ' || v_field,
      hint = 'For example {"lots_factor": "1", "mode": "on"}.';
  end if;
  begin
    v_copier := jsonb_populate_record(private.default_copier(), coalesce(nullif(p_request -> 'copier', 'null'), '{}'));
    perform private.check_sizing_words(v_copier);
    v_copier.sizing_value := v_copier.sizing_value * coalesce((v_mapping ->> 'lots_factor')::numeric, 1);
    v_follower_symbol := private.symbol_of(p_request #> '{follower,symbol}');
    v_master_symbol := jsonb_populate_record(private.unquoted(v_follower_symbol),
      coalesce(nullif(p_request #> '{master,symbol}', 'null'), '{}'));
    v_sizing := private.size_order(v_copier, private.funds_of(p_request -> 'master'),
      private.funds_of(p_request -> 'follower'),
      v_master_symbol, v_follower_symbol, coalesce(v_trade ->> 'side', 'buy'), (v_trade ->> 'lots')::numeric,
      (v_trade ->> 'price')::numeric, nullif((v_trade ->> 'sl')::numeric, 0), nullif((v_trade ->> 'tp')::numeric, 0),
      coalesce(nullif(p_request -> 'rates', 'null'), '{}'));
    if v_mapping ->> 'mode' <> 'on' then
      v_sizing := private.no_order('symbol_off', null, '{}',
        array[format('The mapping of the symbol is %s: nothing is opened.', v_mapping ->> 'mode')]);
    end if;
  exception when data_exception or case_not_found then
    raise exception using errcode = 'TC001',
      message = 'preview_copy: a value does not have its documented form: ' || left(sqlerrm, 500),
      hint = 'Numbers are decimal strings; see docs/protocol.md for the allowed words.';
  end;
  return jsonb_build_object('orders', (select coalesce(jsonb_agg(private.plain(o)), '[]'::jsonb)
    from unnest(v_sizing.orders) o),
    'raw_lots', private.plain(v_sizing.raw_lots), 'reason', v_sizing.reason, 'warnings', to_jsonb(v_sizing.warnings),
    'explain', to_jsonb(v_sizing.explain));
end $$;

create function public.preview_copy(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.preview_copy(p_request) $$;
comment on function public.preview_copy(jsonb) is
  'Everybody who is signed in: how large a copy would be, and why, computed by the planner''s own sizing function. '
  'Nothing is stored.
Request:
- copier (object): columns of copiers; those left out have their default
- master (object; required): funds of the master
- master.currency, follower.currency (text): currency of the account; left out: unknown
- master.balance, master.equity, master.free_margin (number): in its currency; left out or null: unknown
- master.symbol (object): columns of account_symbols that differ from the follower''s symbol
- follower (object; required): funds of the follower, and its symbol
- follower.balance, follower.equity, follower.free_margin (number): in its currency; left out or null: unknown
- follower.symbol (object; required): columns of account_symbols
- follower.symbol.contract_size, lots_min, lots_max, lots_step (number; required; above 0): units per lot; smallest and
  largest volume and volume step of an order; lots_min and lots_step at most lots_max
- follower.symbol.name, digits, tick_size, profit_currency (as in account_symbols): without them less can be computed
- follower.symbol.bid, ask (number): its quote, by which leverage and sanity are valued; left out or null: trade.price
- trade (object; required): the master''s trade
- trade.side (text; required; buy or sell): its side
- trade.lots, trade.price (number; required; above 0): its size and its open price
- trade.sl, trade.tp (number): its levels; left out, null or 0: none
- mapping (object): the symbol''s mapping; left out or null: none
- mapping.lots_factor (number; 0.01 to 100): multiplies the size; left out or null: 1
- mapping.mode (text; on, closes_only or off): off and closes_only open nothing (symbol_off); left out or null: on
- rates (object; numbers above 0): exchange rates such as {"EURUSD": "1.0850"}
Answer:
- orders (list of texts): lots of each order; empty if nothing would be placed
- raw_lots (text or null): the size before limits and rounding
- reason (text or null): a reason of docs/errors.md, if nothing would be placed
- warnings (list of texts): warnings of docs/errors.md
- explain (list of texts): how the size was computed, step by step
Errors: TC001 TC301
Example: {"copier": {"sizing_mode": "multiplier", "sizing_value": "0.5"}, "master": {"currency": "USD", "balance":
  "10000", "equity": "10000",
"free_margin": "10000"}, "follower": {"currency": "USD", "balance": "5000", "equity": "5000", "free_margin": "5000",
"symbol": {"name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD",
"lots_min": "0.01", "lots_max": "50", "lots_step": "0.01"}}, "trade": {"side": "buy", "lots": "1.00", "price":
"1.10000", "sl": null, "tp": null}, "rates": {}}
-> {"orders": ["0.5"], "raw_lots": "0.5",
"reason": null, "warnings": [], "explain": ["The master trades 1 lots of EURUSD.",
"Times the multiplier 0.5: 0.5 lots.",
"Rounded down to steps of 0.01: 0.5 lots."]}';

revoke all on function public.preview_copy(jsonb) from public, anon;
grant execute on function public.preview_copy(jsonb) to authenticated, service_role;
grant execute on function private.preview_copy(jsonb) to authenticated, service_role;
