-- What happens to the claims on a login when an agent has logged in: one is proven, the others end or give way.

-- Accounts whose plans may change with a proof; the caller must lock them first. This function locks the login.
create function private.accounts_of_proof(p_account uuid) returns uuid[]
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_accounts uuid[];
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.id is null or v_account.claim = 'trading' then
    return array[p_account];
  end if;
  perform private.lock_login(v_account.platform, v_account.server_key, v_account.login_key);
  select array_agg(a.id) into v_accounts from public.trading_accounts a
  where a.platform = v_account.platform and a.server_key = v_account.server_key and a.login_key = v_account.login_key
    and a.removed_at is null;
  return v_accounts || array(
    select n from public.trading_accounts a cross join unnest(private.with_neighbours(a.id)) n
    where a.id = any (v_accounts) and a.id <> p_account and a.claim = 'investor');
end
$$;
comment on function private.accounts_of_proof(uuid) is
  'The accounts to lock before prove_claim(): all claims on the login, and the copy partners of a claim that may give '
  'way.';

-- While its login works, its copies are still closed with their master's; nothing new is opened.
create function private.give_way(p_account public.trading_accounts, p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_copier uuid;
begin
  update public.trading_accounts a set claim = 'given_way', proven_at = null where a.id = p_account.id;
  for v_copier in
    update public.copiers c set mode = 'monitor', updated_at = p_now
    where c.removed_at is null and c.mode = 'on' and p_account.id in (c.master_account_id, c.follower_account_id)
    returning c.id
  loop
    perform private.replan_copier(v_copier, p_now);
  end loop;
  perform private.raise_alert(p_account.id, 'account', 'claim_given_way', 'critical',
    format('Account %s gives way: another user has logged in to it with its trading password, you with its investor '
      'password.'
      ' Its copiers open nothing any more (mode monitor); closes are copied as long as your login works. Take care of '
      'the open copies,'
      ' then remove the account.', p_account.name), '{}');
end
$$;
comment on function private.give_way(public.trading_accounts, timestamptz) is
  'A claim proven with the investor password gives way to the trading password: alert, copiers to monitor.';

create function private.end_claims(p_account public.trading_accounts) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_ended uuid;
  v_vps uuid;
begin
  for v_ended in
    update public.trading_accounts a
    set claim = 'ended', status = 'halted',
        status_reason = 'claim_ended: another user has logged in to this account with its trading password; remove it '
          'here'
    where a.platform = p_account.platform and a.server_key = p_account.server_key and a.login_key = p_account.login_key
      and a.id <> p_account.id and a.removed_at is null and a.claim = 'unproven'
    returning a.id
  loop
    delete from public.account_vps_assignments s where s.account_id = v_ended returning s.vps_id into v_vps;
    if v_vps is not null then
      perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
    end if;
  end loop;
end
$$;
comment on function private.end_claims(public.trading_accounts) is
  'Ends other users'' unproven claims on a login that was proved with its trading password.';

-- Called when an agent has logged in, with the trading or the investor password. The caller has locked
-- accounts_of_proof.
create function private.prove_claim(p_account uuid, p_trading boolean, p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_other public.trading_accounts;
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.claim = 'trading' or v_account.claim = 'investor' and not p_trading then
    return;
  end if;
  v_other := private.proven_claim(v_account.platform, v_account.server_key, v_account.login_key);
  if v_account.claim = 'ended' then
    perform private.refuse_ended('open_session', v_account.name);
  elsif v_other.claim = 'trading' then
    if v_account.claim = 'given_way' and not p_trading then
      return;  -- it may keep watching, so that closes go on
    end if;
    perform private.refuse_claimed('open_session', v_account.platform, v_account.server, v_account.login);
  elsif v_other.id <> v_account.id and not p_trading then
    raise exception using errcode = 'TC226',
      message = format('open_session: another user has logged in to account %s with its investor password',
      v_account.name),
      hint = 'Give the trading password with update_account: it takes precedence over the investor password.';
  elsif v_other.id <> v_account.id then
    perform private.give_way(v_other, p_now);
  end if;
  update public.trading_accounts a
  set claim = case when p_trading then 'trading' else 'investor' end, proven_at = coalesce(a.proven_at, p_now),
    password_is_new = false
  where a.id = v_account.id;
  if p_trading then
    perform private.end_claims(v_account);
  end if;
end
$$;
comment on function private.prove_claim(uuid, boolean, timestamptz) is
  'A login proves the claim on it: (account, whether with the trading password, now). TC202, TC225 or TC226 if another '
  'user''s claim takes precedence.';

-- Runs for every writer: the master or the follower belongs to another user with a better password.
create function private.keep_given_way() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  if exists (select from public.trading_accounts a
    where a.id in (new.master_account_id, new.follower_account_id) and a.claim = 'given_way') then
    raise exception using errcode = 'TC227',
      message = 'the copier cannot be on: one of its accounts was logged in to by another user with the trading '
        'password',
      hint = 'Give your own trading password with update_account, or remove the copier.';
  end if;
  return new;
end
$$;
comment on function private.keep_given_way() is
  'Trigger: a copier with an account whose claim gave way cannot be switched on (TC227).';
create trigger keep_given_way before insert or update of mode on public.copiers for each row
  when (new.mode = 'on' and new.removed_at is null) execute function private.keep_given_way();
