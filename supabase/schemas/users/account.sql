-- Functions by which users manage their accounts.

create function private.own_account(p_account uuid, p_operators_too boolean) returns public.trading_accounts
language plpgsql stable
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_service boolean := coalesce(auth.role(), '') = 'service_role';
  v_user uuid;
begin
  if not v_service then
    v_user := private.require_user();
  end if;
  select a.* into v_account from public.trading_accounts a where a.id = p_account and a.removed_at is null;
  if not found or not (v_service or v_account.user_id = v_user or (p_operators_too and private.is_operator())) then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours',
      detail = p_account::text,
      hint = 'Check the id.';
  end if;
  return v_account;
end
$$;
comment on function private.own_account(uuid, boolean) is
  'The account, if the caller owns it or holds the service key (with p_operators_too, also for operators); TC106 '
  'otherwise.';

-- The service key acts on behalf of the user that the request names.
create function private.acting_user(p_request jsonb) returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_user uuid;
begin
  if auth.role() = 'service_role' then
    v_user := private.uuid_of(p_request, 'user_id');
    if not exists (select from auth.users u where u.id = v_user) then
      raise exception using errcode = 'TC001', message = 'user_id: there is no such user', detail = v_user::text;
    end if;
    return v_user;
  end if;
  return private.require_user();
end
$$;
comment on function private.acting_user(jsonb) is
  'The user that the call acts for: the caller, or with the service key the user in user_id. TC001 if there is none.';

create function private.initial_balance_of(p_function text, p_request jsonb) returns numeric
language plpgsql immutable
set search_path = ''
as $$
declare
  v_initial numeric := private.numeric_of(p_request, 'initial_balance');
begin
  if v_initial <= 0 or v_initial >= 1e15 then
    raise exception using errcode = 'TC303',
      message = format('%s: initial_balance is %s, but must be above 0 and below 1e15', p_function, v_initial),
      hint = 'It is what the account began with, in its own currency, such as "100000".';
  end if;
  return v_initial;
end
$$;
comment on function private.initial_balance_of(text, jsonb) is
  'The initial_balance of a request, or null; TC303 if it is out of range.';

-- Nobody's password is taken for a platform that no VPS can run, online or not.
create function private.refuse_unserved(p_function text, p_platform text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if private.needs_vps(p_platform) and not private.has_vps_for(p_platform) then
    raise exception using errcode = 'TC228',
      message = format('%s: no VPS of this farm can run %s', p_function, p_platform),
      hint = format('An operator must first enrol a VPS that names the platform %s.', p_platform);
  end if;
end
$$;
comment on function private.refuse_unserved(text, text) is
  'Raises TC228 if the platform needs a VPS and no VPS in service names it.';

-- Security definer: it writes trading_accounts and Vault.
create function private.connect_account(p_account jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.acting_user(p_account);
  v_platform text := private.name_of(p_account, 'platform', 50);
  v_server text := private.name_of(p_account, 'server', 100);
  v_login text := private.name_of(p_account, 'login', 100);
  v_name text := private.name_of(p_account, 'name', 100);
  v_password text := private.verbatim_of(p_account, 'password', 1000);
  v_settings jsonb := coalesce(private.check_document(p_account, 'settings'), '{}');
  v_mode text := coalesce(private.text_of(p_account, 'mode', 100), 'hedging');
  v_currency text := coalesce(private.text_of(p_account, 'currency', 100), 'USD');
  v_initial numeric := private.initial_balance_of('connect_account', p_account);
  v_listed public.broker_servers;
  v_account uuid;
  v_placed public.account_vps_assignments;
begin
  perform private.refuse_unknown(p_account, 'connect_account',
    array['platform', 'server', 'login', 'password', 'name', 'mode', 'currency',
                                 'settings', 'user_id', 'vps_id', 'initial_balance']);
  if v_platform is null or v_server is null or v_login is null then
    raise exception using errcode = 'TC001', message = 'platform, server and login are required';
  elsif v_mode not in ('hedging', 'netting') then
    raise exception using errcode = 'TC001',
      message = format('connect_account: mode is %s, but must be hedging or netting', v_mode),
      hint = 'hedging: a position per trade. netting: one position per symbol.';
  elsif v_currency !~ '^[A-Z0-9]{2,10}$' then
    raise exception using errcode = 'TC001',
      message = format('connect_account: currency is %s, but must be 2 to 10 capital letters or digits', v_currency),
      hint = 'For example USD.';
  end if;
  if (private.platform_rules(v_platform) -> 'password') = 'true' and v_password is null then
    raise exception using errcode = 'TC203',
      message = format('connect_account: a %s account requires its password', v_platform),
      hint = 'Give the broker''s trading password, not the investor password.';
  end if;
  perform private.refuse_addressing('connect_account', v_settings);
  v_listed := private.require_broker_server('connect_account', v_platform, v_server);
  -- before anything is counted; a trigger enforces the limit of accounts (copier/quota.sql)
  perform private.hold_user(v_user);
  perform private.lock_login(v_platform, v_listed.server_key, private.plain_name(v_login));
  if (private.proven_claim(v_platform, v_listed.server_key, private.plain_name(v_login))).claim = 'trading' or exists (
    select from public.trading_accounts a
    where a.platform = v_platform and a.server_key = v_listed.server_key and a.login_key = private.plain_name(v_login)
      and a.user_id = v_user
      and a.removed_at is null)
  then
    perform private.refuse_claimed('connect_account', v_platform, v_listed.server, v_login);
  end if;
  perform private.require_free_claim(v_user);
  perform private.refuse_unserved('connect_account', v_platform);

  insert into public.trading_accounts (user_id, platform, server, login, name, mode, currency, settings,
    initial_balance)
  values (v_user, v_platform, v_listed.server, v_login,
    coalesce(v_name, left(v_login || ' · ' || v_listed.server, 100)), v_mode, v_currency, v_settings,
    v_initial)
  returning id into v_account;
  if v_password is not null then
    update public.trading_accounts
    set secret_id = vault.create_secret(v_password, 'account:' || v_account, 'Broker password of a trading account')
    where id = v_account;
  end if;

  perform private.await_turn('assign');
  if p_account ? 'vps_id' then
    perform private.require_operator();
    v_placed := private.place_or_refuse(v_account, private.uuid_of(p_account, 'vps_id'));
  else
    v_placed := private.place_account(v_account, null);
  end if;
  return jsonb_build_object('account_id', v_account, 'vps_id', v_placed.vps_id);
end
$$;
comment on function private.connect_account(jsonb) is
  'Users: {"platform", "server", "login", "password", "name"?, "mode"?, "currency"?, "settings"?} -> {"account_id", '
  '"vps_id"}; vps_id null: placed as soon as a VPS can take it. The service key may add "user_id" and "vps_id".';

-- Security definer: it writes account_vps_assignments.
create function private.assign_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
set lock_timeout = '3s'  -- it holds the turn "assign", which every placement waits for
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), true);
  v_vps uuid := case when p_request ->> 'vps_id' is not null then private.uuid_of(p_request, 'vps_id') end;
  v_placed public.account_vps_assignments;
begin
  perform private.refuse_unknown(p_request, 'assign_account', array['account_id', 'vps_id']);
  if v_vps is not null then
    perform private.require_operator();
  end if;
  if v_account.claim = 'ended' then
    perform private.refuse_ended('assign_account', v_account.name);
  end if;
  perform private.await_turn('assign');
  -- If no VPS was requested, an account on a healthy VPS stays there: each move costs a pause.
  select s.* into v_placed from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id
  where s.account_id = v_account.id and v_vps is null and v.status = 'online'
    and v.lease_expires_at > clock_timestamp();
  if not found then
    v_placed := private.place_or_refuse(v_account.id, v_vps);
  end if;
  return jsonb_build_object('account_id', v_account.id, 'vps_id', v_placed.vps_id, 'epoch', v_placed.epoch,
                            'begins_at', private.rfc3339(v_placed.begins_at));
end
$$;
comment on function private.assign_account(jsonb) is
  'The owner or an operator: {"account_id"} -> {"account_id", "vps_id", "epoch", "begins_at"}. Operators may add '
  '"vps_id".';

-- Security definer: it writes trading_accounts and Vault.
create function private.update_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_password text := private.verbatim_of(p_request, 'password', 1000);
  v_settings jsonb := private.check_document(p_request, 'settings');
  v_initial numeric := private.initial_balance_of('update_account', p_request);
  v_retried boolean := v_password is not null or v_settings is distinct from v_account.settings
    and v_settings is not null;
begin
  perform private.refuse_unknown(p_request, 'update_account', array['account_id', 'name', 'password', 'settings',
    'initial_balance']);
  perform private.refuse_addressing('update_account', v_settings);
  if p_request ->> 'password' = '' then
    raise exception using errcode = 'TC203', message = 'update_account: the password is empty',
      hint = 'Give the broker''s trading password, or leave the field out to keep the stored one.';
  end if;
  perform private.renew_claim(v_account.id, v_password);
  if v_password is not null and v_account.secret_id is null then
    v_account.secret_id := vault.create_secret(v_password, 'account:' || v_account.id,
      'Broker password of a trading account');
  elsif v_password is not null then
    perform vault.update_secret(v_account.secret_id, v_password);
  end if;
  update public.trading_accounts a
  set name = coalesce(private.name_of(p_request, 'name', 100), a.name), settings = coalesce(v_settings, a.settings),
      initial_balance = coalesce(v_initial, a.initial_balance),
      initial_balance_at = case when v_initial is null then a.initial_balance_at else a.funds_at end,
      initial_moved = case when v_initial is null then a.initial_moved else 0 end,
      secret_id = v_account.secret_id, revision = a.revision + (v_password is not null)::integer,
      -- The problem may be fixed by the change: the agent logs in again at once and reports the result.
      status = case when v_retried and a.status = 'halted' then 'connecting' else a.status end,
      status_reason = case when v_retried then null else a.status_reason end
  where a.id = v_account.id;
  delete from private.releases r where r.account_id = v_account.id and v_retried;
  if v_password is not null then
    perform private.write_audit('password_changed', 'trading_accounts', v_account.id::text, v_account.user_id, '{}');
  end if;
  perform private.broadcast('vps:' || s.vps_id, 'assignments', '{}')
  from public.account_vps_assignments s where s.account_id = v_account.id;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.update_account(jsonb) is
  'The owner: {"account_id", "name"?, "password"?, "settings"?} -> {"account_id"}.';

-- Security definer: it writes trading_accounts, assignments and Vault.
create function private.remove_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
set lock_timeout = '3s'  -- it holds the turn "assign", which every placement waits for
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_vps uuid;
begin
  perform private.refuse_unknown(p_request, 'remove_account', array['account_id']);
  perform private.await_turn('assign');
  perform private.lock_accounts(array[v_account.id]);
  if exists (select from public.copiers c
             where c.removed_at is null and v_account.id in (c.master_account_id, c.follower_account_id)) then
    raise exception using errcode = 'TC205', message = 'the account is still used by copiers',
      detail = v_account.id::text,
      hint = 'Remove those copiers first. Positions are not changed.';
  end if;
  update public.trading_accounts
  set removed_at = clock_timestamp(), status = 'disconnected', status_reason = 'removed', secret_id = null
  where id = v_account.id and removed_at is null;
  if not found then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours',
      detail = v_account.id::text;
  end if;
  delete from vault.secrets s where s.id = v_account.secret_id;
  delete from public.account_vps_assignments s where s.account_id = v_account.id returning s.vps_id into v_vps;
  if v_vps is not null then
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end if;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.remove_account(jsonb) is
  'The owner: {"account_id"} -> {"account_id"}; disconnects the account and deletes its password. Its history is kept.';

create function public.connect_account(p_account jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.connect_account(p_account) $$;
comment on function public.connect_account(jsonb) is
  'Users: connects a trading account to the farm. The database places it on a VPS, whose agent then logs in.
Request:
- platform (text; required; a platform of the setting platforms, such as paper, mt5, mt4 or ctrader): platform of the
  account
- server (text; required; a server listed in broker_servers): broker''s server, compared without case and blanks
- login (text; required; at most 100 characters): login at the broker
- password (text; required where the platform requires one; at most 1000 characters): trading password, kept in Vault
- name (text; at most 100 characters): name of the account for the user; left out: login and server
- mode (text; hedging or netting): position per trade, or one per symbol; left out: hedging
- currency (text; 2 to 10 capital letters or digits): currency of the account, until its agent reports it; left out: USD
- settings (object; at most 16 kB, 6 levels and 500 keys; no address, host, port or token): settings for the platform
- initial_balance (number; above 0 and below 1e15): what the account began with, for protection rules; left out or null:
  the first balance that is known
- user_id (uuid; required with the service key): the user that the account is for; ignored for other callers
- vps_id (uuid): only operators and the service key: VPS to place it on; null is refused
Answer:
- account_id (uuid): the new account
- vps_id (uuid or null): VPS that it was placed on; null: it is placed as soon as a VPS can take it
Errors: TC001 TC105 TC107 TC108 TC202 TC203 TC204 TC207 TC220 TC222 TC223 TC228 TC301 TC303
Example: {"platform": "mt5", "server": "Broker-Demo", "login": "51234567", "password": "trading password", "name":
  "Master"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201"}';

create function public.assign_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.assign_account(p_request) $$;
comment on function public.assign_account(jsonb) is
  'Users and operators: places an account on a VPS. If no VPS is requested, an account on a healthy VPS stays there.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- vps_id (uuid): only operators and the service key: VPS to place it on
Answer:
- account_id (uuid): the account
- vps_id (uuid): the VPS that works it now
- epoch (integer): number of the assignment, which grows with each move
- begins_at (time): from when on its agent may trade
Errors: TC001 TC105 TC106 TC107 TC108 TC206 TC207 TC225 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "epoch": 3,
"begins_at": "2026-12-01T09:30:00.000000Z"}';

create function public.update_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.update_account(p_request) $$;
comment on function public.update_account(jsonb) is
  'Users: changes name, password or settings of an account. A new password or new settings are tried at once.
Request:
- account_id (uuid; required): account of the caller
- name (text; at most 100 characters): new name; left out or null: unchanged
- password (text; 1 to 1000 characters): new trading password; left out or null: unchanged
- settings (object; at most 16 kB, 6 levels and 500 keys; no address, host, port or token): replaces all settings; left
  out or null: unchanged
- initial_balance (number; above 0 and below 1e15): what the account began with, for protection rules; left out or null:
  unchanged
Answer:
- account_id (uuid): the account
Errors: TC001 TC105 TC106 TC108 TC203 TC222 TC223 TC225 TC301 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01", "password": "new trading password"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}';

create function public.remove_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.remove_account(p_request) $$;
comment on function public.remove_account(jsonb) is
  'Users: disconnects an account and deletes its password. Its history is kept; its positions at the broker stay open.
Request:
- account_id (uuid; required): account of the caller that no copier uses
Answer:
- account_id (uuid): the account that was removed
Errors: TC001 TC105 TC106 TC108 TC205 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"} -> {"account_id":
  "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a01"}';
grant execute on function
  private.connect_account(jsonb),
  public.connect_account(jsonb),
  private.assign_account(jsonb),
  public.assign_account(jsonb),
  private.update_account(jsonb),
  public.update_account(jsonb),
  private.remove_account(jsonb),
  public.remove_account(jsonb)
to authenticated, service_role;
