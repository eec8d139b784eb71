-- report_account_state: an agent reports status, funds, symbols and quotes of an account.

-- Stores symbols that the account does not have yet, until it has 10,000.
create function private.add_symbols(p_account uuid, p_symbols jsonb) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_added integer;
begin
  insert into public.account_symbols (account_id, name, contract_size, tick_size, digits, profit_currency,
    margin_currency,
    lots_min, lots_max, lots_step, stops_level_points, freeze_level_points, trade_mode, allow_negative, bid, ask,
    quoted_at)
  select distinct on (s.name) p_account, s.name, s.contract_size, s.tick_size, s.digits, s.profit_currency,
    coalesce(s.margin_currency, s.profit_currency), s.lots_min, s.lots_max, s.lots_step,
    coalesce(s.stops_level_points, 0), coalesce(s.freeze_level_points, 0), coalesce(s.trade_mode, 'full'),
    coalesce(s.allow_negative, false), s.bid, s.ask, s.quoted_at
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  where not exists (select from public.account_symbols t where t.account_id = p_account and t.name = s.name)
  order by s.name
  limit greatest(0, 10000 - (select count(*) from public.account_symbols k where k.account_id = p_account));
  get diagnostics v_added = row_count;
  return v_added;
end
$$;
comment on function private.add_symbols(uuid, jsonb) is
  'Stores new symbols of an account, which may have 10,000. Returns how many symbols of the call were new and stored.';

-- A symbol that is new to the account needs its whole specification, a known one only its name.
create function private.save_symbols(p_account uuid, p_symbols jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_told integer := (select count(distinct e.value ->> 'name') from jsonb_array_elements(p_symbols) e);
  v_known integer;
begin
  -- A symbol with such a name or currency cannot be traded; the others of the call are saved all the same.
  p_symbols := coalesce((
    select jsonb_agg(e.value) from jsonb_array_elements(p_symbols) e
    where coalesce(length(e.value ->> 'name') <= 64, true)
      and coalesce(greatest(length(e.value ->> 'profit_currency'), length(e.value ->> 'margin_currency')) <= 10, true)),
        '[]');
  update public.account_symbols t
  set contract_size = coalesce(s.contract_size, t.contract_size), tick_size = coalesce(s.tick_size, t.tick_size),
      digits = coalesce(s.digits, t.digits), profit_currency = coalesce(s.profit_currency, t.profit_currency),
      margin_currency = coalesce(s.margin_currency, t.margin_currency), lots_min = coalesce(s.lots_min, t.lots_min),
      lots_max = coalesce(s.lots_max, t.lots_max), lots_step = coalesce(s.lots_step, t.lots_step),
      stops_level_points = coalesce(s.stops_level_points, t.stops_level_points),
      freeze_level_points = coalesce(s.freeze_level_points, t.freeze_level_points),
      trade_mode = coalesce(s.trade_mode, t.trade_mode),
      allow_negative = coalesce(s.allow_negative, t.allow_negative),
      bid = case when newer.quote then s.bid else t.bid end, ask = case when newer.quote then s.ask else t.ask end,
      quoted_at = case when newer.quote then s.quoted_at else t.quoted_at end
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  cross join lateral (select s.quoted_at is not null and s.bid is not null and s.ask is not null) as given (quote),
    lateral (select given.quote and s.quoted_at >= coalesce((
      select old.quoted_at from public.account_symbols old where old.account_id = p_account and old.name = s.name),
        '-infinity')) as newer (quote)
  where t.account_id = p_account and t.name = s.name;
  get diagnostics v_known = row_count;
  v_told := v_told - v_known;
  if v_known < jsonb_array_length(p_symbols) then
    v_told := v_told - private.add_symbols(p_account, p_symbols);
  end if;
  perform private.alert_left_out(p_account, 'symbols', v_told);
exception
  when data_exception or check_violation or not_null_violation then
    raise exception using errcode = 'TC001', message = 'symbols: an entry is not of the documented form',
      detail = left(sqlerrm, 500),
      hint = 'Send the whole specification of a symbol that is new to the account.';
end
$$;
comment on function private.save_symbols(uuid, jsonb) is
  'Stores specifications and quotes of an account''s symbols; an older quote never replaces a newer one.';

-- Security definer: agents have no right on any table.
create function private.report_account_state(p_state jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account uuid := private.uuid_of(p_state, 'account_id');
  v_session bigint := private.int_of(p_state, 'session', 0, 9223372036854775807);
  v_status text := private.text_of(p_state, 'status', 20);
  v_equity numeric := private.numeric_of(p_state, 'equity');
  v_balance numeric := private.numeric_of(p_state, 'balance');
  v_symbols jsonb := coalesce(nullif(p_state -> 'symbols', 'null'), '[]');
  v_measured_at timestamptz := least(coalesce(private.time_of(p_state, 'measured_at'), now()), now());
  v_look_again_ms integer;
  v_moved numeric := 0;
  v_found uuid;
  v_is_first boolean;
begin
  if octet_length(p_state::text) > 4000000 then
    raise exception using errcode = 'TC002', message = 'the payload is over 4 MB', hint = 'Send fewer symbols at once.';
  end if;
  perform private.require_assignment(v_vps, v_account, private.int_of(p_state, 'epoch', 1, 9223372036854775807));
  perform private.warm_up(false);
  if v_status is not null and v_status not in ('connecting', 'connected', 'degraded', 'disconnected', 'halted') then
    raise exception using errcode = 'TC001',
      message = 'status: expected connecting, connected, degraded, disconnected or halted', detail = v_status;
  end if;
  if jsonb_typeof(v_symbols) <> 'array' then
    raise exception using errcode = 'TC001', message = 'symbols: expected an array';
  end if;

  -- before any account row is locked: a rule that triggers, and what waits for symbols, is planned under the plan locks
  perform private.lock_for_symbols(v_account, p_state);
  -- before the look: its figures contain them, and what rules measure from must not lack them
  if nullif(p_state -> 'balance_operations', 'null') <> '[]' then
    v_moved := private.take_balance_operations(v_account, v_session, v_vps, p_state -> 'balance_operations',
      v_measured_at);
  end if;
  if v_balance is not null and v_equity is not null
    and exists (select 1 from public.protection_rules r where r.account_id = v_account and r.enabled)
  then
    v_look_again_ms := private.check_protection(v_vps, v_account, v_session,
      row(v_measured_at, v_equity, v_balance, private.numeric_of(p_state, 'margin'))::private.look, v_moved);
  end if;

  begin
    -- Figures of an older reading change nothing. Without a session (the login failed) only the status is stored.
    update public.trading_accounts a
    set status = coalesce(v_status, a.status),
        status_reason = case when v_status is null then a.status_reason else left(p_state ->> 'error', 500) end,
        -- an unknown currency or leverage must not make the call fail
        currency = coalesce(private.currency_of(p_state -> 'currency'), a.currency),
        leverage = case when p_state ->> 'leverage' is null
          then a.leverage else private.leverage_of(p_state -> 'leverage') end,
        mode = coalesce(private.text_of(p_state, 'mode', 10), a.mode),
        -- a list that was complete once stays so when it is told again after a login
        symbols_complete = case p_state -> 'symbols_complete' when 'true' then true
          when 'false' then coalesce(a.symbols_complete, false) else a.symbols_complete end,
        balance = case when f.fresh then v_balance else a.balance end,
        equity = case when f.fresh then v_equity else a.equity end,
        margin = case when f.fresh then private.numeric_of(p_state, 'margin') else a.margin end,
        free_margin = case when f.fresh then private.numeric_of(p_state, 'free_margin') else a.free_margin end,
        funds_at = case when f.fresh then v_measured_at else a.funds_at end
    from (select b.id, v_balance is not null and v_equity is not null
      -- a time ahead of now: the database's clock was set back since
      and v_measured_at >= coalesce(case when b.funds_at <= now() + interval '5 s' then b.funds_at end, '-infinity')
        as fresh
          from public.trading_accounts b where b.id = v_account) f
    where a.id = f.id and (v_session is null or (v_session = a.session and a.session_vps_id = v_vps))
    returning a.id, v_session is not null and v_balance > 0 and a.initial_balance is null into v_found, v_is_first;
  exception when check_violation then
    raise exception using errcode = 'TC001', message = 'mode: not of the documented form', detail = left(sqlerrm, 500);
  end;
  if v_found is null then
    raise exception using errcode = 'TC208', message = 'this session of the account is over',
      detail = format('account %s, session %s', v_account, v_session),
        hint = 'A newer session was opened: stop using this one.';
  end if;
  if v_is_first then
    update public.trading_accounts a set initial_balance = v_balance, initial_balance_at = v_measured_at
    where a.id = v_account and v_balance < 1e15;
  end if;
  if v_symbols <> '[]' then
    perform private.save_symbols(v_account, v_symbols);
  end if;
  perform private.decide_told_symbols(v_account);
  perform private.alert_left_out(v_account, 'symbols', private.int_of(p_state, 'symbols_left_out', 0, 1000000));
  perform private.alert_left_out(v_account, 'positions', private.int_of(p_state, 'positions_left_out', 0, 1000000));
  if v_balance is not null and v_equity is not null then
    insert into public.account_snapshots (account_id, at, balance, equity, margin, free_margin)
    values (v_account, date_bin(private.setting_s('snapshot_every_s'), v_measured_at, '2000-01-01'), v_balance,
      v_equity,
            private.numeric_of(p_state, 'margin'), private.numeric_of(p_state, 'free_margin'))
    on conflict (account_id, at) do nothing;
  end if;
  return jsonb_strip_nulls(jsonb_build_object('ok', true, 'look_again_ms', v_look_again_ms)) || private.answer_state();
end
$$;
comment on function private.report_account_state(jsonb) is
  'Agents: status, funds, symbols and quotes of an account (docs/protocol.md).';

create function public.report_account_state(p_state jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.report_account_state(p_state) $$;
comment on function public.report_account_state(jsonb) is 'Agents: status, funds, symbols and quotes of an account.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required; 1 or more): number of the assignment
- session (integer; 0 or more): session that this is about; left out or null: the login failed
- status (text; connecting, connected, degraded, disconnected or halted): state of the connection; left out or null:
  unchanged
- error (text; cut after 500 characters): why, in words
- currency (text): currency of the account
- leverage (number; 1 to 100000, else it counts as unknown): leverage of the account
- mode (text; hedging or netting): position per trade, or one per symbol
- balance, equity, margin, free_margin (number): funds, in the account''s currency
- measured_at (time): when the funds were read; left out or null: now
- symbols (list of objects): specifications and quotes; a new symbol needs all of it, a known one its name
- symbols_complete (boolean): whether all symbols of the account are told with this report; until then only symbols of
  the same name are copied into, and other trades wait; left out or null: unchanged
- balance_operations (list of objects; at most 1000): deposits and withdrawals, each with number (the broker''s own),
  amount, at and kind (deposit or withdrawal; any other kind is ignored). One travels in the first report whose figures
  contain it; one that was told before may be told again, it is booked once; left out or null: none
- symbols_left_out, positions_left_out (integer; 0 to 1000000): how many were beyond the limits
Answer:
- ok (boolean; true): the report was stored
- look_again_ms (integer): only if a protection rule needs a second look: read the funds again this long after
  the answer
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
- received_at, sent_at (time): when the database received the call, and when it sent the answer
Errors: TC001 TC002 TC101 TC102 TC103 TC104 TC208
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3, "session": 12, "status": "connected",
  "error": null,
"currency": "USD", "leverage": 100, "mode": "hedging", "balance": "10000", "equity": "10012.5", "margin": "110",
"free_margin": "9902.5", "measured_at": "2026-12-01T09:30:00.000Z", "symbols": [{"name": "EURUSD", "bid": "1.10040",
"ask": "1.10042", "quoted_at": "2026-12-01T09:30:00.000Z"}]}
-> {"ok": true, "last_execution_id": "123", "generation": 1,
"received_at": "2026-12-01T09:30:00.000000Z", "sent_at": "2026-12-01T09:30:00.004000Z"}';
grant execute on function
  private.report_account_state(jsonb), public.report_account_state(jsonb)
to authenticated;
