-- Claims on logins: who owns a broker's login before and after its password is proven, and how often it may be tried.
--
-- A claim is unproven until an agent has logged in with it. Several users may claim one login, because a login belongs
-- to whoever has its password, not to whoever typed it first. Attempts are counted per login and user when credentials
-- are handed out, so neither a new account nor another VPS starts a new count. Brokers lock a login after too many
-- wrong passwords; without the count, a stranger could lock out the owner.

create table private.login_attempts (
  id bigint generated always as identity primary key,
  platform text not null,
  server_key text not null,
  login_key text not null,
  user_id uuid not null,
  account_id uuid not null,
  beyond boolean not null default false,
  at timestamptz not null default clock_timestamp()
);
comment on table private.login_attempts is
  'Logins with unproven claims; a row is written when an agent gets the credentials for one.';
comment on column private.login_attempts.beyond is
  'Granted to a new password although the user''s attempts of that hour were used up.';

-- take_attempt: attempts on a login in the last hour
create index attempts_on_a_login on private.login_attempts (platform, server_key, login_key, at);

-- retention
create index attempts_by_time on private.login_attempts (at);
alter table private.login_attempts enable row level security;

-- Serializes every decision about a login: proofs, attempts, new claims.
create function private.lock_login(p_platform text, p_server_key text, p_login_key text) returns void
language sql
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended(concat_ws(chr(31), 'tradecopier.login', p_platform, p_server_key,
  p_login_key), 0)) $$;
comment on function private.lock_login(text, text, text) is
  'Locks the claims on one login until the transaction ends.';

create function private.proven_claim(p_platform text, p_server_key text,
  p_login_key text) returns public.trading_accounts
language sql stable
set search_path = ''
as $$
  select a from public.trading_accounts a
  where a.platform = p_platform and a.server_key = p_server_key and a.login_key = p_login_key and a.removed_at is null
    and a.claim in ('investor', 'trading')
$$;
comment on function private.proven_claim(text, text, text) is
  'The proven claim on a login; null: there is none. There is at most one.';

create function private.refuse_claimed(p_function text, p_platform text, p_server text, p_login text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC202', message = format('%s: this account is already connected', p_function),
    detail = format('%s, login %s at %s', p_platform, p_login, p_server),
    hint = 'An account can be connected once. To change its password call update_account.';
end
$$;
comment on function private.refuse_claimed(text, text, text, text) is 'Always raises TC202.';

-- Called before a claim is made or renewed. The service key has no limit: it connects accounts for users as an operator
-- would.
create function private.require_free_claim(p_user uuid) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_max integer := (private.setting('unproven_accounts_max') #>> '{}')::integer;
begin
  if coalesce(auth.role(), '') <> 'service_role' and (
    select count(*) from public.trading_accounts a
    where a.user_id = p_user and a.removed_at is null and a.claim = 'unproven') >= v_max
  then
    raise exception using errcode = 'TC223',
      message = format('%s of your accounts have never been logged in to', v_max),
      hint = 'Correct their passwords with update_account and wait for their logins, or remove some of them.';
  end if;
end
$$;
comment on function private.require_free_claim(uuid) is
  'Raises TC223 if the user has reached the limit of unproven claims (unproven_accounts_max).';

-- When an agent may next try to log in to the account; null: now.
create function private.attempt_waits(p_account public.trading_accounts) returns timestamptz
language plpgsql stable
set search_path = ''
as $$
declare
  v_own_max integer := (private.setting('login_attempts_per_user') #>> '{}')::integer;
  v_all_max integer := (private.setting('login_attempts_per_login') #>> '{}')::integer;
  v_own timestamptz[];
  v_all timestamptz[];
  v_beyond integer;
  v_until timestamptz;
begin
  select coalesce(array_agg(t.at order by t.at desc), '{}'),
    coalesce(array_agg(t.at order by t.at desc) filter (where t.user_id = p_account.user_id), '{}'),
    count(*) filter (where t.user_id = p_account.user_id and t.beyond)
  into v_all, v_own, v_beyond
  from private.login_attempts t
  where t.platform = p_account.platform and t.server_key = p_account.server_key and t.login_key = p_account.login_key
    and t.at > clock_timestamp() - interval '1 hour';
  -- A new password is tried at once: once per hour even if all attempts are used up, and again while that leaves
  -- another user's full share of the login's attempts.
  if p_account.password_is_new and (v_beyond = 0 or cardinality(v_all) < v_all_max - v_own_max) then
    return null;
  end if;
  v_until := greatest(v_own[v_own_max], v_all[v_all_max]) + interval '1 hour';
  if v_until is null and private.others_first(p_account, v_own_max) then
    v_until := clock_timestamp() + interval '1 minute';
  end if;
  return v_until;
end
$$;
comment on function private.attempt_waits(public.trading_accounts) is
  'When an unproven claim may be tried next; null: now.';

-- Users take turns: while others wait for an attempt, the user served last comes last. A user waits as long as the
-- account's agent reports it; the agent asks again every minute.
create function private.others_first(p_account public.trading_accounts, p_own_max integer) returns boolean
language sql stable
set search_path = ''
as $$
  select exists (
    select from public.trading_accounts a
    join public.account_vps_assignments s on s.account_id = a.id
    join public.vps_instances v on v.id = s.vps_id and v.lease_expires_at > clock_timestamp()
    cross join lateral (
      select max(t.at) as last_at, count(*) filter (where t.at > clock_timestamp() - interval '1 hour') as own
      from private.login_attempts t
      where t.platform = a.platform and t.server_key = a.server_key and t.login_key = a.login_key
        and t.user_id = a.user_id
    ) had
    where a.platform = p_account.platform and a.server_key = p_account.server_key and a.login_key = p_account.login_key
      and a.removed_at is null and a.claim in ('unproven', 'given_way') and a.user_id <> p_account.user_id
      and a.status_reason like 'login attempts used up until %' and had.own < p_own_max
      and (coalesce(had.last_at, '-infinity'), a.created_at, a.id) < (
        coalesce((select max(t.at) from private.login_attempts t
          where t.platform = p_account.platform and t.server_key = p_account.server_key
            and t.login_key = p_account.login_key
            and t.user_id = p_account.user_id), '-infinity'), p_account.created_at, p_account.id))
$$;
comment on function private.others_first(public.trading_accounts, integer) is
  'Whether another user who waits for an attempt at this login comes first.';

-- Called before an agent gets the credentials of an account. Logins with a proven claim are not counted: the owner may
-- always log in.
create function private.take_attempt(p_account uuid) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
  v_other public.trading_accounts;
  v_until timestamptz;
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.claim in ('investor', 'trading') then
    return;
  end if;
  perform private.lock_login(v_account.platform, v_account.server_key, v_account.login_key);
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  v_other := private.proven_claim(v_account.platform, v_account.server_key, v_account.login_key);
  if v_account.claim in ('investor', 'trading') then
    return;
  elsif v_account.claim = 'ended' then
    perform private.refuse_ended('account_credentials', v_account.name);
  elsif v_other.claim = 'trading' and v_account.claim <> 'given_way' then
    perform private.refuse_claimed('account_credentials', v_account.platform, v_account.server, v_account.login);
  end if;
  v_until := private.attempt_waits(v_account);
  if v_until is not null then
    raise exception using errcode = 'TC224',
      message = format('login attempts used up until %s', private.rfc3339(v_until)),
      detail = format('account %s', v_account.id),
        hint = 'It is tried again automatically then. A corrected password (update_account) is tried at once.';
  end if;
  v_account.password_is_new := false;
  insert into private.login_attempts (platform, server_key, login_key, user_id, account_id, beyond)
  values (v_account.platform, v_account.server_key, v_account.login_key, v_account.user_id, v_account.id,
          private.attempt_waits(v_account) is not null);
  update public.trading_accounts a set password_is_new = false where a.id = v_account.id and a.password_is_new;
end
$$;
comment on function private.take_attempt(uuid) is
  'Counts a login with an unproven claim. Raises TC224 with the time of the next attempt if none is left now; TC225 or '
  'TC202 if there will never be one.';

create function private.refuse_ended(p_function text, p_name text) returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception using errcode = 'TC225',
    message = format('%s: the claim of account %s has ended: another user has logged in to it with its trading '
      'password', p_function, p_name),
    hint = 'Remove the account. If it is yours, change its trading password at the broker and ask an operator.';
end
$$;
comment on function private.refuse_ended(text, text) is 'Always raises TC225.';

-- With a new password an ended claim starts again if nobody has proved the login since, and the next login need not
-- wait.
create function private.renew_claim(p_account uuid, p_password text) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account public.trading_accounts;
begin
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if p_password is null or v_account.claim in ('investor', 'trading') then
    return;
  end if;
  perform private.lock_login(v_account.platform, v_account.server_key, v_account.login_key);
  select a.* into v_account from public.trading_accounts a where a.id = p_account;
  if v_account.claim = 'ended' then
    if (private.proven_claim(v_account.platform, v_account.server_key, v_account.login_key)).claim = 'trading' then
      perform private.refuse_ended('update_account', v_account.name);
    end if;
    perform private.require_free_claim(v_account.user_id);
    update public.trading_accounts a set claim = 'unproven', status = 'pending', status_reason = null
    where a.id = p_account;
  end if;
  -- Only for a different password: the same one would fail again.
  update public.trading_accounts a set password_is_new = true
  where a.id = p_account and p_password is distinct from (select s.decrypted_secret from vault.decrypted_secrets s
    where s.id = a.secret_id);
end
$$;
comment on function private.renew_claim(uuid, text) is
  'Renews an unproven claim for a new password. Call it before the password is stored.';
