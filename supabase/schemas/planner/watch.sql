-- What an agent must watch besides its accounts' positions: symbols, funds, snapshots.

-- Symbols whose quotes an account's agent should report: those of open links and of its masters' open positions, those
-- whose prices must still prove that two names mean one instrument, and those that a copy waits for.
create function private.watched_symbols(p_account uuid) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(array_agg(distinct symbol), '{}') from (
      select l.symbol from public.position_links l where l.follower_account_id = p_account and l.state = 'live'
      union all
      select p.symbol from public.positions p where p.account_id = p_account and p.closed_at is null
      union all
      select w.name from public.copiers c cross join lateral private.symbols_of_existing(c) w
      where c.follower_account_id = p_account and c.existing_until is not null
      union all
      select x.follower_symbol from private.symbol_choices x where x.follower_account_id = p_account and not x.proven
      union all
      select x.master_symbol from private.symbol_choices x where x.master_account_id = p_account and not x.proven
      union all
      select unnest(w.symbols) from private.symbol_waits w where w.follower_account_id = p_account
    ) s);
end $$;

-- Whether the account's agent must send another complete snapshot: a position is missing for the first time, or the
-- account is being flattened.
create function private.wants_snapshot(p_account uuid, p_copy_state text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return p_copy_state = 'flattening'
    or exists (select 1 from public.positions p
      where p.account_id = p_account and p.closed_at is null and p.absent_snapshots > 0);
end $$;

-- Whether the agent must report the account's funds every second: something is open and a rule watches it.
create function private.watches_funds(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from public.protection_rules r where r.account_id = p_account and r.enabled)
    and exists (select 1 from public.positions p where p.account_id = p_account and p.closed_at is null);
end $$;

-- Whether sizes of copies depend on the account's money, so that its agent must report the funds right behind each
-- fill.
create function private.sizes_by_funds(p_account uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (
    select 1 from (
      select * from public.copiers f where f.follower_account_id = p_account and f.removed_at is null
      union all
      select * from public.copiers m where m.master_account_id = p_account and m.removed_at is null
    ) c
    where c.sizing_mode in ('balance_ratio', 'equity_ratio', 'free_margin_ratio', 'risk_percent')
      or c.no_money_policy = 'shrink'
      or coalesce(c.max_risk_percent, c.max_leverage, c.min_equity) is not null);
end $$;

-- p_account: only this one. p_blind: without the parts that the planner computes; funds are then always requested, in
-- case a rule watches them.
create function private.assignments_of(p_vps uuid, p_account uuid default null,
  p_blind boolean default false) returns jsonb
language sql stable
set search_path = ''
as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'account_id', a.id, 'epoch', s.epoch, 'platform', a.platform, 'server', a.server, 'login', a.login, 'mode', a.mode,
    'currency', a.currency, 'owner', private.owner_mark(a.user_id), 'revision', a.revision, 'begins_at',
      private.rfc3339(s.begins_at),
    'watch_symbols', case when p_blind then '[]' else to_jsonb(private.watched_symbols(a.id)) end,
    'watch_funds', p_blind or private.watches_funds(a.id), 'funds_after_fills', p_blind
      or private.sizes_by_funds(a.id), 'resync', not p_blind
      and private.wants_snapshot(a.id, a.copy_state)) order by a.id), '[]')
  from public.account_vps_assignments s
  join public.trading_accounts a on a.id = s.account_id
  where s.vps_id = p_vps and a.removed_at is null and (p_account is null or a.id = p_account)
    and a.id <> all ((select private.released_accounts(p_vps))::uuid[])
$$;
comment on function private.assignments_of(uuid, uuid, boolean) is
  'The accounts of a VPS, as vps_heartbeat returns them.';
