-- A part of maintain(): the accounts whose day has begun. It waits for no lock, because earlier parts of the run hold
-- some: an account that somebody is planning now is resumed by the next run.
create function private.resume_accounts() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array(select a.id from public.trading_accounts a where a.resumes_at <= clock_timestamp()
    and a.removed_at is null order by a.id limit 100);
  v_account uuid;
  v_free uuid[];
begin
  if v_accounts = '{}' then return; end if;
  v_free := private.lock_free(array(select distinct n from unnest(v_accounts) a
    cross join lateral unnest(private.with_neighbours(a)) n));
  foreach v_account in array v_accounts loop
    if private.with_neighbours(v_account) <@ v_free then
      perform private.resume_account(v_account, clock_timestamp(), clock_timestamp());
    end if;
  end loop;
end $$;
