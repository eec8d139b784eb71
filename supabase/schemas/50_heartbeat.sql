-- What agents call about themselves and their accounts: vps_heartbeat, open_session, report_account_state,
-- account_credentials. docs/protocol.md says what goes in and out.

-- The only way to a topic: payload is always an object (realtime.send loses everything else without an error).
-- Security definer: its owner bypasses the policies of realtime.messages, by which nobody may write there.
create function private.broadcast(p_topic text, p_event text, p_payload jsonb) returns void
language plpgsql security definer
set search_path = ''
as $$
begin
  if jsonb_typeof(p_payload) is distinct from 'object' then
    raise exception 'broadcast payload: expected an object';
  end if;
  perform realtime.send(p_payload, p_event, p_topic, true);
end
$$;
comment on function private.broadcast(text, text, jsonb) is 'Sends an event to the private topic; a lost one is no error (the row is the truth).';


-- Holds for the transaction; false if another one runs this part just now.
create function private.take_turn(p_name text) returns boolean
language sql
set search_path = ''
as $$ select pg_try_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.take_turn(text) is 'Whether the caller may run this part of the clockwork now; the turn ends with its transaction.';


create function private.is_due(p_name text, p_every interval) returns boolean
language sql
set search_path = ''
as $$ select c.last_run_at < clock_timestamp() - p_every from private.clockwork c where c.name = p_name $$;
comment on function private.is_due(text, interval) is 'Whether this part of the clockwork last ran longer ago than that.';


-- What a heartbeat says about accounts. Only a change of state touches a row.
create function private.note_account_states(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
begin
  update public.trading_accounts a
  set status = told.status, status_reason = told.error
  from (
    select said.account_id, said.session, said.status, left(said.error, 500) as error
    from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text, error text)
    where said.status in ('connecting', 'connected', 'degraded', 'disconnected', 'halted')
  ) told
  join public.account_vps_assignments s on s.account_id = told.account_id
  join public.vps_instances v on v.id = s.vps_id
  where a.id = told.account_id and s.vps_id = p_vps
    -- An agent that names no session has opened none since it was started: what it says is older than a session that was opened since.
    and case when told.session is null then a.session_vps_id is distinct from p_vps or coalesce(a.session_opened_at < v.process_since, true)
      else told.session = a.session end
    and (a.status, a.status_reason) is distinct from (told.status, told.error);

  -- Every few seconds, and last of all: the row of a connected account says when it was last seen. Only when its session has told
  -- what it holds: a login is not a look, and a position opened during an outage would pass for new.
  update public.trading_accounts a set seen_at = now()
  from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
  join public.account_vps_assignments s on s.account_id = said.account_id
  where a.id = said.account_id and s.vps_id = p_vps and said.session = a.session and said.status in ('connected', 'degraded')
    and a.snapshot_session = said.session and (a.seen_at is null or a.seen_at < now() - interval '1 second');
end
$$;
comment on function private.note_account_states(uuid, jsonb) is 'Writes down what a heartbeat says about the connections of the VPS''s accounts.';


-- Trouble that only a person can mend. An agent's words begin with the code of what it found, or the login shows another account;
-- everything else mends itself.
create function private.alert_account_trouble() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_reason text := coalesce(substring(new.status_reason from '^([a-z][a-z_]{1,38}): '), case when new.status = 'halted' then 'account_halted' end);
begin
  if v_reason is not null then
    perform private.raise_alert(new.id, 'account', v_reason, 'critical',
      format('Account %s cannot trade: %s', new.name, coalesce(new.status_reason, 'the broker refused its login')),
      jsonb_build_object('status', new.status));
  end if;
  return null;
end
$$;
comment on function private.alert_account_trouble() is 'One alert when an account becomes degraded or halted; it is counted, not repeated, until it is seen.';

create trigger alert_trouble after update of status on public.trading_accounts for each row
  when (new.status in ('degraded', 'halted') and old.status is distinct from new.status and new.removed_at is null)
  execute function private.alert_account_trouble();


-- A VPS that lost an account and says {"status": "released"} for its last session has nothing in hand any more: the
-- next one need not wait for the old lease. Silence is no evidence.
create function private.note_releases(p_vps uuid, p_accounts jsonb) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_next uuid;
begin
  for v_next in
    with released as (
      update public.account_vps_assignments s
      set begins_at = least(s.begins_at, clock_timestamp()), previous_vps_id = null
      from jsonb_to_recordset(p_accounts) as said (account_id uuid, session bigint, status text)
      join public.trading_accounts a on a.id = said.account_id
      where s.account_id = said.account_id and s.previous_vps_id = p_vps and s.vps_id <> p_vps
        and said.status = 'released' and said.session = a.session and a.session_vps_id = p_vps
      returning s.vps_id
    )
    select distinct r.vps_id from released r
  loop
    perform private.broadcast('vps:' || v_next, 'assignments', '{}');
  end loop;
end
$$;
comment on function private.note_releases(uuid, jsonb) is 'Lets the next VPS begin where this one says that it let go of an account.';


-- p_account: this one only. p_blind: without what must be worked out; its figures are asked for then, in case a rule watches them.
create function private.assignments_of(p_vps uuid, p_account uuid default null, p_blind boolean default false) returns jsonb
language sql stable
set search_path = ''
as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'account_id', a.id, 'epoch', s.epoch, 'platform', a.platform, 'server', a.server, 'login', a.login, 'mode', a.mode,
    'currency', a.currency, 'settings', a.settings, 'begins_at', private.rfc3339(s.begins_at),
    'watch_symbols', case when p_blind then '[]' else to_jsonb(private.watched_symbols(a.id)) end,
    'watch_funds', p_blind or private.watches_funds(a.id), 'resync', not p_blind and private.wants_snapshot(a.id, a.copy_state)) order by a.id), '[]')
  from public.account_vps_assignments s
  join public.trading_accounts a on a.id = s.account_id
  where s.vps_id = p_vps and a.removed_at is null and (p_account is null or a.id = p_account)
$$;
comment on function private.assignments_of(uuid, uuid, boolean) is 'The accounts of a VPS as vps_heartbeat tells them.';


-- Security definer: agents have no right on any table. The hot path of an idle farm: one row is updated per call.
create function private.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_accounts jsonb := coalesce(p_heartbeat -> 'accounts', '[]');
  v_lease interval := private.setting_s('lease_s');
  v_tick interval := private.setting_s('tick_s');
  v_row public.vps_instances;
  v_begins_at timestamptz := private.admit_process(v_vps, p_heartbeat -> 'process');
  v_waits boolean := v_begins_at > clock_timestamp();
begin
  if jsonb_typeof(v_accounts) <> 'array' then
    raise exception using errcode = 'TC001', message = 'accounts: expected an array';
  end if;
  perform private.warm_up(true);  -- before anything is locked

  update public.vps_instances v
  set lease_expires_at = now() + v_lease,
      last_heartbeat_at = now(),
      status = case when v.status in ('enrolled', 'offline') then 'online' else v.status end,
      last_tick_at = case when v.last_tick_at > now() - v_tick then v.last_tick_at else now() end,
      agent_version = coalesce(private.text_of(p_heartbeat, 'agent_version', 50), v.agent_version),
      cpu_percent = private.numeric_of(p_heartbeat, 'cpu_percent'),
      memory_percent = private.numeric_of(p_heartbeat, 'memory_percent'),
      disk_percent = private.numeric_of(p_heartbeat, 'disk_percent'),
      rss_mb = private.numeric_of(p_heartbeat, 'rss_mb'),
      clock_offset_ms = private.numeric_of(p_heartbeat, 'offset_ms'),
      rtt_ms = private.numeric_of(p_heartbeat, 'rtt_ms'),
      process_beat = coalesce(private.int_of(p_heartbeat -> 'process', 'beat', 0, 9223372036854775807), v.process_beat)
  where v.id = v_vps and v.retired_at is null
  returning v.* into v_row;
  if not found then
    raise exception using errcode = 'TC102', message = 'this VPS is retired', detail = v_vps::text,
      hint = 'Enrol the VPS again with a new token, or stop its agent.';
  end if;
  if v_row.last_tick_at = now() then
    perform private.broadcast('vps:' || v_vps, 'tick', jsonb_build_object('at', private.rfc3339(v_row.last_tick_at)));
  end if;

  -- Before any row of an account is touched: maintain() locks accounts in the planner's order.
  perform private.stand_in_for_scheduler();

  if v_accounts <> '[]' then
    begin
      perform private.note_account_states(v_vps, v_accounts);
      perform private.note_releases(v_vps, v_accounts);
    exception when data_exception then
      raise exception using errcode = 'TC001', message = 'accounts: an entry is not of the documented form', detail = sqlerrm;
    end;
  end if;

  return jsonb_build_object(
    'vps_id', v_vps, 'name', v_row.name, 'status', v_row.status, 'topic', 'vps:' || v_vps,
    'server_time', private.rfc3339(clock_timestamp()),
    'lease_ms', case when v_waits then 0 else round(extract(epoch from v_lease) * 1000)::integer end,
    'begins_at', private.rfc3339(nullif(v_begins_at, '-infinity')),
    'heartbeat_ms', round(extract(epoch from private.setting_s('heartbeat_s')) * 1000)::integer,
    'last_tick_at', private.rfc3339(v_row.last_tick_at),
    'assignments', private.assignments_apart(v_vps),
    'executions', case when v_waits then '[]' else private.outstanding_executions(v_vps) end,
    'cancel', private.cancel_requests(v_vps));
end
$$;
comment on function private.vps_heartbeat(jsonb) is 'Agents: renews the lease, returns assignments and everything outstanding (docs/protocol.md).';


-- Security definer: agents have no right on any table.
create function private.open_session(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account uuid := private.uuid_of(p_request, 'account_id');
  v_epoch bigint := private.int_of(p_request, 'epoch', 1, 9223372036854775807);
  v_session bigint;
  v_continues bigint;
  v_begins_at timestamptz;
begin
  -- After this lock, in statements of their own: a move of the account is either over or has not begun.
  perform private.lock_accounts(array[v_account]);
  perform private.require_assignment(v_vps, v_account, v_epoch);
  select case when a.session_vps_id = v_vps then nullif(a.session, 0) end, s.begins_at
  into v_continues, v_begins_at
  from public.trading_accounts a join public.account_vps_assignments s on s.account_id = a.id
  where a.id = v_account;
  update public.trading_accounts a
  set session = a.session + 1, session_vps_id = v_vps, session_opened_at = clock_timestamp(),
      status = 'connected', status_reason = null
  where a.id = v_account
  returning a.session into v_session;
  return jsonb_build_object('session', v_session, 'continues', v_continues, 'begins_at', private.rfc3339(v_begins_at));
end
$$;
comment on function private.open_session(jsonb) is 'Agents: {"account_id", "epoch"} -> {"session", "continues", "begins_at"} (docs/protocol.md).';


-- Specifications and quotes that an agent sends. A new symbol needs its whole specification, a known one only its name.
create function private.save_symbols(p_account uuid, p_symbols jsonb) returns void
language plpgsql
set search_path = ''
as $$
begin
  update public.account_symbols t
  set contract_size = coalesce(s.contract_size, t.contract_size), tick_size = coalesce(s.tick_size, t.tick_size),
      digits = coalesce(s.digits, t.digits), profit_currency = coalesce(s.profit_currency, t.profit_currency),
      margin_currency = coalesce(s.margin_currency, t.margin_currency), lots_min = coalesce(s.lots_min, t.lots_min),
      lots_max = coalesce(s.lots_max, t.lots_max), lots_step = coalesce(s.lots_step, t.lots_step),
      stops_level_points = coalesce(s.stops_level_points, t.stops_level_points),
      freeze_level_points = coalesce(s.freeze_level_points, t.freeze_level_points),
      trade_mode = coalesce(s.trade_mode, t.trade_mode),
      bid = case when newer.quote then s.bid else t.bid end, ask = case when newer.quote then s.ask else t.ask end,
      quoted_at = case when newer.quote then s.quoted_at else t.quoted_at end
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  cross join lateral (select s.quoted_at is not null and s.bid is not null and s.ask is not null) as given (quote),
    lateral (select given.quote and s.quoted_at >= coalesce((
      select old.quoted_at from public.account_symbols old where old.account_id = p_account and old.name = s.name), '-infinity')) as newer (quote)
  where t.account_id = p_account and t.name = s.name;

  insert into public.account_symbols (account_id, name, contract_size, tick_size, digits, profit_currency, margin_currency,
    lots_min, lots_max, lots_step, stops_level_points, freeze_level_points, trade_mode, bid, ask, quoted_at)
  select distinct on (s.name) p_account, s.name, s.contract_size, s.tick_size, s.digits, s.profit_currency,
    coalesce(s.margin_currency, s.profit_currency), s.lots_min, s.lots_max, s.lots_step,
    coalesce(s.stops_level_points, 0), coalesce(s.freeze_level_points, 0), coalesce(s.trade_mode, 'full'), s.bid, s.ask, s.quoted_at
  from jsonb_populate_recordset(null::public.account_symbols, p_symbols) s
  where not exists (select from public.account_symbols t where t.account_id = p_account and t.name = s.name)
  order by s.name;
exception
  when data_exception or check_violation or not_null_violation then
    raise exception using errcode = 'TC001', message = 'symbols: an entry is not of the documented form', detail = sqlerrm,
      hint = 'A symbol that is new to the account needs its whole specification.';
end
$$;
comment on function private.save_symbols(uuid, jsonb) is 'Writes specifications and quotes of an account''s symbols; an older quote never overrules a newer one.';


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

  -- before any row of an account is touched: what a rule does is planned under the plan locks
  if v_balance is not null and v_equity is not null
    and exists (select 1 from public.protection_rules r where r.account_id = v_account and r.enabled)
  then
    v_look_again_ms := private.check_protection(v_vps, v_account, v_session, v_measured_at, v_equity, private.numeric_of(p_state, 'margin'));
  end if;

  begin
    -- The figures of an older reading change nothing. Without a session (the login failed) only the status counts.
    update public.trading_accounts a
    set status = coalesce(v_status, a.status),
        status_reason = case when v_status is null then a.status_reason else private.text_of(p_state, 'error', 500) end,
        currency = coalesce(private.text_of(p_state, 'currency', 10), a.currency),
        leverage = coalesce(private.int_of(p_state, 'leverage', 1, 100000), a.leverage),
        mode = coalesce(private.text_of(p_state, 'mode', 10), a.mode),
        balance = case when f.fresh then v_balance else a.balance end,
        equity = case when f.fresh then v_equity else a.equity end,
        margin = case when f.fresh then private.numeric_of(p_state, 'margin') else a.margin end,
        free_margin = case when f.fresh then private.numeric_of(p_state, 'free_margin') else a.free_margin end,
        funds_at = case when f.fresh then v_measured_at else a.funds_at end
    from (select b.id, v_balance is not null and v_equity is not null and v_measured_at >= coalesce(b.funds_at, '-infinity') as fresh
          from public.trading_accounts b where b.id = v_account) f
    where a.id = f.id and (v_session is null or (v_session = a.session and a.session_vps_id = v_vps));
  exception when check_violation then
    raise exception using errcode = 'TC001', message = 'currency or mode: not of the documented form', detail = sqlerrm;
  end;
  if not found then
    raise exception using errcode = 'TC208', message = 'this session of the account is over',
      detail = format('account %s, session %s', v_account, v_session), hint = 'A newer login was opened: stop using the old one.';
  end if;
  if v_symbols <> '[]' then
    perform private.save_symbols(v_account, v_symbols);
  end if;
  if v_balance is not null and v_equity is not null then
    insert into public.account_snapshots (account_id, at, balance, equity, margin, free_margin)
    values (v_account, date_bin(private.setting_s('snapshot_every_s'), v_measured_at, '2000-01-01'), v_balance, v_equity,
            private.numeric_of(p_state, 'margin'), private.numeric_of(p_state, 'free_margin'))
    on conflict (account_id, at) do nothing;
  end if;
  return jsonb_strip_nulls(jsonb_build_object('ok', true, 'look_again_ms', v_look_again_ms));
end
$$;
comment on function private.report_account_state(jsonb) is 'Agents: status, funds, symbols and quotes of an account (docs/protocol.md).';


-- Security definer: reads Vault, which no API role may.
create function private.account_credentials(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account public.trading_accounts;
  v_password text;
begin
  perform private.require_assignment(v_vps, private.uuid_of(p_request, 'account_id'),
                                     private.int_of(p_request, 'epoch', 1, 9223372036854775807));
  select a.* into v_account from public.trading_accounts a where a.id = private.uuid_of(p_request, 'account_id');
  select s.decrypted_secret into v_password from vault.decrypted_secrets s where s.id = v_account.secret_id;
  perform private.write_audit('credentials_read', 'trading_accounts', v_account.id::text, v_account.user_id,
                              jsonb_build_object('vps_id', v_vps, 'epoch', p_request -> 'epoch'));
  return jsonb_build_object('login', v_account.login, 'server', v_account.server, 'password', coalesce(v_password, ''),
                            'settings', v_account.settings);
end
$$;
comment on function private.account_credentials(jsonb) is 'Agents: {"account_id", "epoch"} of an account assigned to the caller now -> its broker login; audited.';


create function public.vps_heartbeat(p_heartbeat jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.vps_heartbeat(p_heartbeat) $$;
comment on function public.vps_heartbeat(jsonb) is 'Agents: renews the lease, returns assignments and everything outstanding.';

create function public.open_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.open_session(p_request) $$;
comment on function public.open_session(jsonb) is 'Agents: {"account_id", "epoch"} -> {"session", "continues", "begins_at"}.';

create function public.report_account_state(p_state jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.report_account_state(p_state) $$;
comment on function public.report_account_state(jsonb) is 'Agents: status, funds, symbols and quotes of an account.';

create function public.account_credentials(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.account_credentials(p_request) $$;
comment on function public.account_credentials(jsonb) is 'Agents: the broker login of an account assigned to the caller now.';

grant execute on function
  private.vps_heartbeat(jsonb), public.vps_heartbeat(jsonb),
  private.open_session(jsonb), public.open_session(jsonb),
  private.report_account_state(jsonb), public.report_account_state(jsonb),
  private.account_credentials(jsonb), public.account_credentials(jsonb)
to authenticated;
