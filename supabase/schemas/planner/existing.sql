-- Positions that the master already holds when a copier is made: decided once, at once or when quotes are available.

-- The follower's symbols of which a copier needs a quote: those of the positions its master held when it was made.
create function private.symbols_of_existing(p_copier public.copiers) returns setof public.account_symbols
language plpgsql stable security definer set search_path = '' as $$
declare
  v_follower public.trading_accounts;
begin
  select * into v_follower from public.trading_accounts where id = p_copier.follower_account_id;
  return query
  select s.* from (
    select distinct p.symbol from public.positions p
    where p.account_id = p_copier.master_account_id and p.closed_at is null and p.kind = 'position'
      and p.first_seen_at < p_copier.started_at
  ) p
  join public.account_symbols m on m.account_id = p_copier.master_account_id and m.name = p.symbol
  left join public.symbol_mappings y on y.copier_id = p_copier.id and y.master_key = upper(btrim(p.symbol))
  join lateral (select (private.follower_symbol(v_follower, m)).name) f (name) on true
  join public.account_symbols s on s.account_id = v_follower.id
    and s.name = case when y.id is null then f.name
      else (private.symbol_named(v_follower.id, y.follower_symbol)).name end;
end $$;

-- For a new copier; the caller holds the locks of its accounts.
create function private.copy_existing(p_copier public.copiers, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_copier.copy_existing = 'none' then return; end if;
  if p_copier.copy_existing = 'near' and exists (
    select 1 from private.symbols_of_existing(p_copier) s where not private.quote_is_fresh(s, p_now)) then
    -- the follower's agent quotes watched symbols: it is asked now, and the next maintain() looks again
    update public.copiers set existing_until = p_now + private.setting_s('existing_wait_s') where id = p_copier.id;
    return;
  end if;
  perform private.offer(private.decide_existing(p_copier, p_now), null, clock_timestamp());
end $$;

create function private.decide_existing(p_copier public.copiers, p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_masters uuid[];
  v_tickets text[];
  v_kinds text[];
  v_new bigint[];
begin
  update public.copiers set existing_until = null where id = p_copier.id and existing_until is not null;
  select array_agg(p.account_id order by p.first_seen_at, p.ticket),
    array_agg(p.ticket order by p.first_seen_at, p.ticket),
    array_agg(p.kind order by p.first_seen_at, p.ticket)
  into v_masters, v_tickets, v_kinds from public.positions p
  where p.account_id = p_copier.master_account_id and p.closed_at is null and p.first_seen_at < p_copier.started_at;
  if v_masters is null then return '{}'; end if;
  v_new := private.decide_kinds(v_masters, v_tickets, v_kinds, array[p_copier.id], p_now, 'existing');
  return coalesce(v_new, '{}') || coalesce(private.plan_nets(array(
    select l.id from public.position_links l
    where l.follower_account_id = p_copier.follower_account_id and l.state = 'live' and l.copier_id = p_copier.id),
      p_now), '{}');
end $$;

-- Copiers whose quotes have arrived, or whose wait is over; the caller holds the followers' locks.
create function private.decide_waiting_existing(p_followers uuid[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_copier public.copiers;
  v_new bigint[] := '{}';
begin
  for v_copier in
    select c.* from public.copiers c where c.follower_account_id = any (p_followers) and c.existing_until is not null
    order by c.id
  loop
    if v_copier.removed_at is not null then
      update public.copiers set existing_until = null where id = v_copier.id;
    elsif v_copier.existing_until <= p_now or not exists (
      select 1 from private.symbols_of_existing(v_copier) s where not private.quote_is_fresh(s, p_now)) then
      v_new := v_new || private.decide_existing(v_copier, p_now);
    end if;
  end loop;
  return v_new;
end $$;
