-- open_session and account_credentials: an agent logs in to an account and begins to work it.

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
  v_last_execution_id bigint;
  v_now timestamptz;
begin
  if jsonb_typeof(p_request -> 'can_trade') not in ('boolean', 'null') then
    raise exception using errcode = 'TC001', message = 'can_trade: expected true or false';
  end if;
  perform private.check_start();
  v_last_execution_id := private.last_execution_id();
  -- Statements after this lock see a move of the account either complete or not begun.
  v_now := private.lock_accounts(private.accounts_of_proof(v_account));
  perform private.require_assignment(v_vps, v_account, v_epoch);
  perform private.prove_claim(v_account, coalesce((p_request ->> 'can_trade')::boolean, true), v_now);
  select case when a.session_vps_id = v_vps then nullif(a.session, 0) end, s.begins_at
  into v_continues, v_begins_at
  from public.trading_accounts a join public.account_vps_assignments s on s.account_id = a.id
  where a.id = v_account;
  update public.trading_accounts a
  set session = a.session + 1, session_vps_id = v_vps, session_opened_at = clock_timestamp(),
      status = 'connected', status_reason = null
  where a.id = v_account
  returning a.session into v_session;
  perform private.count_on(v_last_execution_id);
  return jsonb_build_object('session', v_session, 'continues', v_continues, 'begins_at',
    private.rfc3339(v_begins_at)) || private.answer_state();
end
$$;
comment on function private.open_session(jsonb) is
  'Agents: {"account_id", "epoch", "can_trade"} -> {"session", "continues", "begins_at"} (docs/protocol.md).';

-- Security definer: it reads Vault, which no API role may.
create function private.account_credentials(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps uuid := private.agent_vps();
  v_account record;
begin
  perform private.require_assignment(v_vps, private.uuid_of(p_request, 'account_id'),
                                     private.int_of(p_request, 'epoch', 1, 9223372036854775807));
  perform private.take_attempt(private.uuid_of(p_request, 'account_id'));
  -- Settings over the limits are never sent to an agent, however they got into the table. One statement reads all, so
  -- that the revision matches the settings and the password.
  select a.id, a.user_id, a.platform, a.login, a.server, a.settings, a.revision,
    s.decrypted_secret as password into v_account
  from public.trading_accounts a left join vault.decrypted_secrets s on s.id = a.secret_id
  where a.id = private.uuid_of(p_request, 'account_id');
  perform private.check_document(jsonb_build_object('settings', v_account.settings), 'settings');
  perform private.write_audit('credentials_read', 'trading_accounts', v_account.id::text, v_account.user_id,
                              jsonb_build_object('vps_id', v_vps, 'epoch', p_request -> 'epoch'));
  return jsonb_build_object('login', v_account.login, 'server', v_account.server, 'password',
    coalesce(v_account.password, ''),
                            'settings', v_account.settings, 'revision', v_account.revision,
                            'address', (private.broker_server(v_account.platform,
                              v_account.server)).address) || private.answer_state();
end
$$;
comment on function private.account_credentials(jsonb) is
  'Agents: {"account_id", "epoch"} of an account that is assigned to the caller -> its broker login; audited.';

create function public.open_session(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.open_session(p_request) $$;
comment on function public.open_session(jsonb) is
  'Agents: begins a session of an account after a verified login, which proves the user''s claim on the login.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required; 1 or more): number of the assignment
- can_trade (boolean): false: the password is an investor password; left out or null: true
Answer:
- session (integer): number of the session
- continues (integer or null): number of the previous session, if the same VPS held it
- begins_at (time): from when on the agent may trade
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
- received_at, sent_at (time): when the database received the call, and when it sent the answer
Errors: TC001 TC101 TC102 TC103 TC104 TC202 TC225 TC226
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3, "can_trade": true}
-> {"session": 12, "continues": 11, "begins_at": "2026-12-01T09:30:00.000000Z", "last_execution_id": "123",
  "generation": 1,
"received_at": "2026-12-01T09:30:00.000000Z", "sent_at": "2026-12-01T09:30:00.004000Z"}';

create function public.account_credentials(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.account_credentials(p_request) $$;
comment on function public.account_credentials(jsonb) is
  'Agents: the broker login of an account that is assigned to the caller; each call is recorded in the audit log.
Request:
- account_id (uuid; required): account that is assigned to the caller
- epoch (integer; required; 1 or more): number of the assignment
Answer:
- login (text): login at the broker
- server (text): broker''s server
- password (text): its password, or empty
- settings (object): settings for the platform
- revision (integer): grows with each change of settings or password
- address (text or null): host:port of the server; null: the platform finds the server by its name
- last_execution_id (text): last execution number that the database gave out
- generation (integer): generation of the database
- received_at, sent_at (time): when the database received the call, and when it sent the answer
Errors: TC001 TC101 TC102 TC103 TC104 TC202 TC224 TC225 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "epoch": 3}
-> {"login": "51234567", "server": "Broker-Demo", "password": "trading password", "settings": {}, "revision": 4,
  "address": null,
"last_execution_id": "123", "generation": 1,
"received_at": "2026-12-01T09:30:00.000000Z", "sent_at": "2026-12-01T09:30:00.004000Z"}';
grant execute on function
  private.open_session(jsonb),
  public.open_session(jsonb),
  private.account_credentials(jsonb),
  public.account_credentials(jsonb)
to authenticated;
