-- Limits on what one user may have. All users share planning, reading and storage.

-- Serializes a user's own calls that must not overlap; other users do not wait. Taken before any plan lock.
create function private.hold_user(p_user uuid) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('tradecopier.user.' || p_user, 0));
end $$;

-- Raises the error of the limit that the user exceeds: TC204 (accounts), TC330 (copiers), TC331 (symbol_mappings) or
-- TC332 (protection_rules). p_what is the table's name; accounts stands for trading_accounts.
create function private.check_quota(p_what text, p_user uuid) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_setting text := p_what || '_per_user_max';
  v_max integer := (private.setting(v_setting) #>> '{}')::integer;
  v_count bigint;
begin
  perform private.hold_user(p_user);
  -- in a statement of its own after the wait, so that it sees what another call has committed meanwhile
  v_count := case p_what
    when 'accounts' then (select count(*) from public.trading_accounts a
      where a.user_id = p_user and a.removed_at is null)
    when 'copiers' then (select count(*) from public.copiers c where c.user_id = p_user and c.removed_at is null)
    when 'symbol_mappings' then (
      select count(*) from public.symbol_mappings y join public.copiers c on c.id = y.copier_id and c.removed_at is null
      where y.user_id = p_user)
    else (
      select count(*) from public.protection_rules r
      join public.trading_accounts a on a.id = r.account_id and a.removed_at is null
      where r.user_id = p_user) end;
  if v_count > v_max then
    raise exception using
      errcode = case p_what when 'accounts' then 'TC204' when 'copiers' then 'TC330' when 'symbol_mappings'
        then 'TC331' else 'TC332' end,
      message = format('the limit of %s per user is %s, this would make %s', replace(p_what, '_', ' '), v_max, v_count),
      detail = p_user::text, hint = format('Remove some first, or ask an operator to raise %s.', v_setting);
  end if;
end $$;

-- Runs for every writer, Studio included; once per statement, so that a list is counted once.
create function private.keep_quota() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform private.check_quota(replace(tg_table_name, 'trading_', ''), u.user_id)
    from (select distinct n.user_id from new_rows n order by 1) u;
  return null;
end $$;

-- For rows that change owner or are no longer removed; the trigger's arguments name the tables to count, dependent rows
-- included. A row trigger with a condition, so that the many other updates of accounts cost nothing.
create function private.keep_quota_again() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_what text;
begin
  foreach v_what in array tg_argv loop
    perform private.check_quota(v_what, new.user_id);
  end loop;
  return null;
end $$;
create trigger keep_quota after insert on public.trading_accounts
  referencing new table as new_rows for each statement execute function private.keep_quota();
create trigger keep_quota_again after update of user_id, removed_at on public.trading_accounts for each row
  when (new.removed_at is null and (old.removed_at is not null or old.user_id <> new.user_id))
  execute function private.keep_quota_again('accounts', 'protection_rules');
create trigger keep_quota_again after update of user_id, removed_at on public.copiers for each row
  when (new.removed_at is null and (old.removed_at is not null or old.user_id <> new.user_id))
  execute function private.keep_quota_again('copiers', 'symbol_mappings');
create trigger keep_quota_again after update of user_id, copier_id on public.symbol_mappings for each row
  when (old.user_id <> new.user_id
    or old.copier_id <> new.copier_id) execute function private.keep_quota_again('symbol_mappings');
create trigger keep_quota_again after update of user_id, account_id on public.protection_rules for each row
  when (old.user_id <> new.user_id
    or old.account_id <> new.account_id) execute function private.keep_quota_again('protection_rules');
create trigger keep_quota after insert on public.copiers
  referencing new table as new_rows for each statement execute function private.keep_quota();
create trigger keep_quota after insert on public.symbol_mappings
  referencing new table as new_rows for each statement execute function private.keep_quota();
create trigger keep_quota after insert on public.protection_rules
  referencing new table as new_rows for each statement execute function private.keep_quota();

-- Tells agents which accounts have the same owner, without telling who the owner is.
create function private.owner_mark(p_user uuid) returns text
language sql immutable
set search_path = ''
as $$ select left(private.sha256_hex('owner ' || p_user), 16) $$;
comment on function private.owner_mark(uuid) is
  'The "owner" of an assignment, a digest; agents keep the calls for different owners apart.';
