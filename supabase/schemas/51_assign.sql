-- Which VPS works which account; and what users and operators call about accounts and VPSes.
--
-- Locks, always in this order: the turn "assign" (one placement at a time, so capacity cannot be overrun), plan_locks of
-- the accounts (no plan is made while an account moves), rows.

create function private.await_turn(p_name text) returns void
language sql
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended('tradecopier.' || p_name, 0)) $$;
comment on function private.await_turn(text) is 'Like take_turn(), but waits for it.';


-- Right platform, lease alive, spare capacity; then beside most copy partners, then least loaded.
create function private.choose_vps(p_account uuid, p_only uuid) returns uuid
language sql stable
set search_path = ''
as $$
  with partners as (
    select case c.master_account_id when p_account then c.follower_account_id else c.master_account_id end as account_id
    from public.copiers c
    where c.removed_at is null and p_account in (c.master_account_id, c.follower_account_id)
  )
  select v.id
  from public.vps_instances v
  join public.trading_accounts a on a.id = p_account
  cross join lateral (
    select count(*) filter (where s.account_id <> p_account) as accounts,
           count(*) filter (where s.account_id in (select p.account_id from partners p)) as partners
    from public.account_vps_assignments s where s.vps_id = v.id
  ) load
  where v.status = 'online' and v.lease_expires_at > clock_timestamp() and a.platform = any (v.platforms)
    and load.accounts < v.capacity and (p_only is null or v.id = p_only)
  order by load.partners desc, load.accounts::numeric / v.capacity, v.name
  limit 1
$$;
comment on function private.choose_vps(uuid, uuid) is 'The best VPS for an account (or p_only, if it can take it); null: none.';


-- Moves the account if it has to or p_only says so; null: nobody can take it now. The caller holds the turn "assign".
create function private.place_account(p_account uuid, p_only uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_vps uuid := private.choose_vps(p_account, p_only);
  v_old public.account_vps_assignments;
  v_new public.account_vps_assignments;
  v_last_session_vps uuid;
  v_old_lease timestamptz;
  v_send_before timestamptz;
begin
  if v_vps is null then
    return null;
  end if;
  perform private.lock_accounts(array[p_account]);
  select s.* into v_old from public.account_vps_assignments s where s.account_id = p_account;
  if v_old.vps_id = v_vps then
    return v_old;
  end if;
  select a.session_vps_id into v_last_session_vps from public.trading_accounts a where a.id = p_account and a.removed_at is null;
  if not found then
    return null;
  end if;
  -- A VPS that never opened a session for the account (and no longer can: it needs the lock that is held here) has
  -- nothing to wait for.
  if v_old.vps_id is not null and v_last_session_vps = v_old.vps_id then
    select v.lease_expires_at into v_old_lease from public.vps_instances v where v.id = v_old.vps_id;
    select max(q.send_before) into v_send_before from public.trade_execution_queue q
    where q.account_id = p_account and q.in_flight and q.offered_at is not null;
  end if;
  insert into public.account_vps_assignments as s (account_id, vps_id, epoch, begins_at, assigned_at)
  values (p_account, v_vps, coalesce(v_old.epoch, 0) + 1,
    greatest(clock_timestamp(), v_old.begins_at, v_old_lease, v_send_before), clock_timestamp())
  on conflict (account_id) do update
  set vps_id = excluded.vps_id, epoch = excluded.epoch, begins_at = excluded.begins_at, assigned_at = excluded.assigned_at,
      -- Two still to let go: the wait runs its full length.
      previous_vps_id = case when v_old_lease is not null and s.begins_at <= clock_timestamp() then s.vps_id end
  returning s.* into v_new;
  perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  if v_old.vps_id is not null then
    perform private.broadcast('vps:' || v_old.vps_id, 'assignments', '{}');
  end if;
  return v_new;
end
$$;
comment on function private.place_account(uuid, uuid) is 'Gives the account to the best VPS (or p_only) with a new epoch; null: none can take it.';


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
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours', detail = p_account::text,
      hint = 'Check the id.';
  end if;
  return v_account;
end
$$;
comment on function private.own_account(uuid, boolean) is 'The account, if the caller owns it or holds the service key (or is an operator, where they may); TC106 otherwise.';


-- A user, or the service key on behalf of the user named in the request.
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
comment on function private.acting_user(jsonb) is 'The user for whom the caller acts: himself, or with the service key the one named by user_id.';


-- Security definer: writes trading_accounts and Vault.
create function private.connect_account(p_account jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.acting_user(p_account);
  v_platform text := private.text_of(p_account, 'platform', 50);
  v_server text := private.text_of(p_account, 'server', 200);
  v_login text := private.text_of(p_account, 'login', 100);
  v_password text := p_account ->> 'password';
  v_rules jsonb;
  v_account uuid;
  v_placed public.account_vps_assignments;
begin
  if v_platform is null or v_server is null or v_login is null then
    raise exception using errcode = 'TC001', message = 'platform, server and login are required';
  end if;
  v_rules := private.setting('platforms') -> v_platform;
  if v_rules is null then
    raise exception using errcode = 'TC001', message = format('platform: %s is not a platform', v_platform),
      hint = format('Use one of: %s.', (select string_agg(k, ', ' order by k) from jsonb_object_keys(private.setting('platforms')) k));
  end if;
  if (v_rules -> 'password') = 'true' and coalesce(v_password, '') = '' then
    raise exception using errcode = 'TC203', message = format('a %s account wants its password', v_platform),
      hint = 'Give the broker''s trading password, not the investor password.';
  end if;
  if length(v_password) > 1000 then
    raise exception using errcode = 'TC001', message = 'password: expected a string of at most 1000 characters';
  end if;
  if (select count(*) from public.trading_accounts a where a.user_id = v_user and a.removed_at is null)
     >= (private.setting('accounts_per_user_max') #>> '{}')::integer then
    raise exception using errcode = 'TC204', message = 'the limit of accounts per user is reached',
      detail = private.setting('accounts_per_user_max') #>> '{}', hint = 'Remove an account first.';
  end if;

  begin
    insert into public.trading_accounts (user_id, platform, server, login, name, mode, currency, settings)
    values (v_user, v_platform, v_server, v_login,
            coalesce(private.text_of(p_account, 'name', 100), left(v_login || ' · ' || v_server, 100)),
            coalesce(private.text_of(p_account, 'mode', 10), 'hedging'),
            coalesce(private.text_of(p_account, 'currency', 10), 'USD'),
            coalesce(nullif(p_account -> 'settings', 'null'), '{}'))
    returning id into v_account;
  exception
    when unique_violation then
      raise exception using errcode = 'TC202', message = 'this account is already connected',
        detail = format('%s, login %s at %s', v_platform, v_login, v_server),
        hint = 'An account can be connected once. To change its password call update_account.';
    when check_violation then
      raise exception using errcode = 'TC001', message = 'mode, currency or settings: not of the documented form', detail = sqlerrm;
  end;
  if coalesce(v_password, '') <> '' then
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
  'Users: {"platform", "server", "login", "password", "name"?, "mode"?, "currency"?, "settings"?} -> {"account_id", "vps_id"}; vps_id null: placed as soon as a VPS can take it. With the service key also "user_id" and "vps_id".';


create function private.place_or_refuse(p_account uuid, p_vps uuid) returns public.account_vps_assignments
language plpgsql
set search_path = ''
as $$
declare
  v_placed public.account_vps_assignments := private.place_account(p_account, p_vps);
begin
  if v_placed.vps_id is null and p_vps is null then
    raise exception using errcode = 'TC206', message = 'no VPS can take the account now', detail = p_account::text,
      hint = 'It is placed by itself as soon as one can. An operator adds a VPS or capacity.';
  elsif v_placed.vps_id is null then
    raise exception using errcode = 'TC207', message = 'this VPS cannot take the account', detail = p_vps::text,
      hint = 'It must be online, know the platform and have capacity left.';
  end if;
  return v_placed;
end
$$;
comment on function private.place_or_refuse(uuid, uuid) is 'place_account() that raises TC206 or TC207 instead of returning null.';


-- Security definer: writes account_vps_assignments.
create function private.assign_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), true);
  v_vps uuid := case when p_request ->> 'vps_id' is not null then private.uuid_of(p_request, 'vps_id') end;
  v_placed public.account_vps_assignments;
begin
  if v_vps is not null then
    perform private.require_operator();
  end if;
  perform private.await_turn('assign');
  -- Without a wish an account on a healthy VPS stays where it is: each move costs a pause.
  select s.* into v_placed from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id
  where s.account_id = v_account.id and v_vps is null and v.status = 'online' and v.lease_expires_at > clock_timestamp();
  if not found then
    v_placed := private.place_or_refuse(v_account.id, v_vps);
  end if;
  return jsonb_build_object('account_id', v_account.id, 'vps_id', v_placed.vps_id, 'epoch', v_placed.epoch,
                            'begins_at', private.rfc3339(v_placed.begins_at));
end
$$;
comment on function private.assign_account(jsonb) is
  'The owner or an operator: {"account_id"} -> {"account_id", "vps_id", "epoch", "begins_at"}. Operators may name a "vps_id".';


-- Security definer: writes trading_accounts and Vault.
create function private.update_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_password text := nullif(p_request ->> 'password', '');
  v_settings jsonb := nullif(p_request -> 'settings', 'null');
begin
  if length(v_password) > 1000 or jsonb_typeof(v_settings) <> 'object' then
    raise exception using errcode = 'TC001', message = 'password: expected a string of at most 1000 characters; settings: expected an object';
  end if;
  if v_password is not null and v_account.secret_id is null then
    v_account.secret_id := vault.create_secret(v_password, 'account:' || v_account.id, 'Broker password of a trading account');
  elsif v_password is not null then
    perform vault.update_secret(v_account.secret_id, v_password);
  end if;
  update public.trading_accounts
  set name = coalesce(private.text_of(p_request, 'name', 100), name), settings = coalesce(v_settings, settings),
      secret_id = v_account.secret_id
  where id = v_account.id;
  if v_password is not null then
    perform private.write_audit('password_changed', 'trading_accounts', v_account.id::text, v_account.user_id, '{}');
  end if;
  perform private.broadcast('vps:' || s.vps_id, 'assignments', '{}')
  from public.account_vps_assignments s where s.account_id = v_account.id;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.update_account(jsonb) is 'The owner: {"account_id", "name"?, "password"?, "settings"?} -> {"account_id"}.';


-- Security definer: writes trading_accounts, assignments and Vault.
create function private.remove_account(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), false);
  v_vps uuid;
begin
  perform private.await_turn('assign');
  perform private.lock_accounts(array[v_account.id]);
  if exists (select from public.copiers c
             where c.removed_at is null and v_account.id in (c.master_account_id, c.follower_account_id)) then
    raise exception using errcode = 'TC205', message = 'the account still takes part in copiers', detail = v_account.id::text,
      hint = 'Remove those copiers first; positions stay as they are.';
  end if;
  update public.trading_accounts
  set removed_at = clock_timestamp(), status = 'disconnected', status_reason = 'removed', secret_id = null
  where id = v_account.id and removed_at is null;
  if not found then
    raise exception using errcode = 'TC106', message = 'there is no such account, or it is not yours', detail = v_account.id::text;
  end if;
  delete from vault.secrets s where s.id = v_account.secret_id;
  delete from public.account_vps_assignments s where s.account_id = v_account.id returning s.vps_id into v_vps;
  if v_vps is not null then
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end if;
  return jsonb_build_object('account_id', v_account.id);
end
$$;
comment on function private.remove_account(jsonb) is 'The owner: {"account_id"} -> {"account_id"}; disconnects it and forgets its password. Its history stays.';


create function private.farm_vps(p_request jsonb) returns public.vps_instances
language plpgsql stable
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
begin
  select v.* into v_vps from public.vps_instances v where v.id = private.uuid_of(p_request, 'vps_id') and v.retired_at is null;
  if not found then
    raise exception using errcode = 'TC214', message = 'there is no such VPS, or it is retired', detail = p_request ->> 'vps_id',
      hint = 'Check the id.';
  end if;
  return v_vps;
end
$$;
comment on function private.farm_vps(jsonb) is 'The VPS that the request names by vps_id, not a retired one; TC214 otherwise.';


-- Moves what stands on VPSes that must not keep it, and what stands nowhere. The caller holds the turn "assign".
-- All locks of accounts are taken at once, in the planner's order.
create function private.place_homeless(p_limit integer) returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_homeless uuid[];
  v_account uuid;
  v_moved integer := 0;
begin
  select array_agg(h.id) into v_homeless from (
    select a.id
    from public.trading_accounts a
    left join public.account_vps_assignments s on s.account_id = a.id
    left join public.vps_instances v on v.id = s.vps_id
    where a.removed_at is null and (v.id is null or v.status in ('offline', 'draining', 'retired'))
      and exists (select from public.vps_instances o
                  where o.status = 'online' and o.lease_expires_at > clock_timestamp() and a.platform = any (o.platforms)
                    and o.capacity > (select count(*) from public.account_vps_assignments t where t.vps_id = o.id))
    order by a.id
    limit p_limit
  ) h;
  if v_homeless is null then
    return 0;
  end if;
  perform private.lock_accounts(v_homeless);
  foreach v_account in array v_homeless loop
    v_moved := v_moved + ((private.place_account(v_account, null)).vps_id is not null)::integer;
  end loop;
  return v_moved;
end
$$;
comment on function private.place_homeless(integer) is 'Gives accounts of lost, draining and retired VPSes, and unassigned ones, to others; says how many moved.';


-- Security definer: writes vps_instances.
create function private.drain_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer := 0;
begin
  perform private.require_operator();
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  if coalesce(p_request ->> 'drain', 'true') = 'true' then
    update public.vps_instances set status = 'draining' where id = v_vps.id and status in ('enrolled', 'online', 'offline', 'draining');
    v_moved := private.place_homeless(500);
  else
    -- A lost one comes back with its next heartbeat.
    update public.vps_instances set status = case when lease_expires_at > now() then 'online' else 'offline' end
    where id = v_vps.id and status = 'draining';
  end if;
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.drain_vps(jsonb) is
  'Operators: {"vps_id", "drain": true} -> {"vps_id", "moved", "left"}. Accounts move as others can take them; "drain": false takes it back.';


-- Security definer: writes vps_instances.
create function private.retire_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer;
begin
  perform private.require_operator();
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  update public.vps_instances set status = 'retired', retired_at = clock_timestamp() where id = v_vps.id and retired_at is null;
  delete from private.vps_secrets s where s.vps_id = v_vps.id;
  v_moved := private.place_homeless(500);
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.retire_vps(jsonb) is 'Operators: {"vps_id"} -> {"vps_id", "moved", "left"}. For good, and at once: its agent is refused from now on.';


create function public.connect_account(p_account jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.connect_account(p_account) $$;
comment on function public.connect_account(jsonb) is
  'Users: {"platform", "server", "login", "password", "name"?, "mode"?, "currency"?, "settings"?} -> {"account_id", "vps_id"}.';

create function public.assign_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.assign_account(p_request) $$;
comment on function public.assign_account(jsonb) is 'The owner or an operator: {"account_id"} -> {"account_id", "vps_id", "epoch", "begins_at"}.';

create function public.update_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.update_account(p_request) $$;
comment on function public.update_account(jsonb) is 'The owner: {"account_id", "name"?, "password"?, "settings"?} -> {"account_id"}.';

create function public.remove_account(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.remove_account(p_request) $$;
comment on function public.remove_account(jsonb) is 'The owner: {"account_id"} -> {"account_id"}; disconnects it and forgets its password.';

create function public.drain_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.drain_vps(p_request) $$;
comment on function public.drain_vps(jsonb) is 'Operators: {"vps_id", "drain"?} -> {"vps_id", "moved", "left"}.';

create function public.retire_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.retire_vps(p_request) $$;
comment on function public.retire_vps(jsonb) is 'Operators: {"vps_id"} -> {"vps_id", "moved", "left"}; for good.';

grant execute on function
  private.connect_account(jsonb), public.connect_account(jsonb),
  private.assign_account(jsonb), public.assign_account(jsonb),
  private.update_account(jsonb), public.update_account(jsonb),
  private.remove_account(jsonb), public.remove_account(jsonb),
  private.drain_vps(jsonb), public.drain_vps(jsonb),
  private.retire_vps(jsonb), public.retire_vps(jsonb)
to authenticated, service_role;
