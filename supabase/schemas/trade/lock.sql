-- The locks that planning transactions take, always in the same order.

-- Locks the accounts and returns the time after the last wait, which plans use as now. Planning takes execution
-- numbers, so a restore is checked for first.
create function private.lock_accounts(p_accounts uuid[]) returns timestamptz
language plpgsql security definer set search_path = '' as $$
begin
  perform private.check_start();
  perform 1 from private.plan_locks where account_id = any (p_accounts) order by account_id for no key update;
  return clock_timestamp();
end $$;

-- The accounts and their followers: whose plan locks a change of the accounts needs. May contain duplicates.
create function private.with_followers(p_accounts uuid[]) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_accounts || array(
    select c.follower_account_id from public.copiers c
    where c.master_account_id = any (p_accounts) and c.removed_at is null);
end $$;

-- Locks the accounts with their followers and returns the time after the last wait. A copier that was made during the
-- wait adds its follower; no other can follow, because saving a copier takes its master's lock.
create function private.lock_with_followers(p_accounts uuid[]) returns timestamptz
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_locked uuid[] := private.with_followers(p_accounts);
  v_now timestamptz := private.lock_accounts(v_locked);
  v_wanted uuid[] := private.with_followers(p_accounts);
begin
  if not v_wanted <@ v_locked then
    v_now := private.lock_accounts(v_wanted);
  end if;
  return v_now;
end $$;

-- The account, its followers and its masters: all accounts whose plans depend on each other. To be locked in one call,
-- because two calls could deadlock.
create function private.with_neighbours(p_account uuid) returns uuid[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return private.with_followers(array[p_account]) || array(
    select c.master_account_id from public.copiers c where c.follower_account_id = p_account and c.removed_at is null);
end $$;
