-- The wait for a symbol or a quote: a pair is decided when it is told, or refused when max_age_ms is over (ADR 0028).

-- Whether an account's symbols are still being told: a symbol that is missing may come. An account that never said
-- whether its list is complete is loading while it logs in for the first time.
create function private.list_is_loading(p_account public.trading_accounts) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return case when p_account.symbols_complete is null
    then p_account.status = 'connecting'
      and not exists (select from public.account_symbols s where s.account_id = p_account.id)
    else not p_account.symbols_complete end;
end $$;

-- symbols_loading if the symbol of a copy was not found because a list is still being told; null: nothing more will
-- come.
create function private.loading_refusal(p_master public.trading_accounts, p_masters_symbol public.account_symbols,
  p_follower public.trading_accounts) returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return case when private.list_is_loading(
    case when p_masters_symbol.contract_size is null then p_master else p_follower end) then 'symbols_loading' end;
end $$;

-- The follower's names that a copy may need, to be told before all others: the mapped or found name, else the master's
-- own name and the other names of its instrument, as the follower's broker would write them.
create function private.symbols_in_question(p_follower public.trading_accounts,
  p_masters_symbol public.account_symbols, p_name text, p_found text) returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_found is not null then return array[p_found]; end if;
  if p_masters_symbol.name is null then return array[p_name]; end if;
  return array(select distinct x.name from unnest(private.names_of(p_masters_symbol)) n,
    lateral (values (p_name), (n), (p_follower.symbol_prefix || n || p_follower.symbol_suffix)) x (name)
    order by x.name);
end $$;

-- What a pair waits for, in words: the detail of symbols_loading.
create function private.loading_words(p_name text, p_masters_symbol public.account_symbols,
  p_symbol public.account_symbols) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_masters_symbol.name is null
      then format('The master''s list of symbols is still being told, and has no %s so far: it was asked for.', p_name)
    when p_symbol.name is null
      then format('The follower''s list of symbols is still being told, and has no %s so far: it was asked for.',
        p_name)
    else format('Quotes that prove that %s is the follower''s name for %s were asked for.', p_symbol.name, p_name) end;
end $$;

-- What was told after the pair's time was over: the detail of a refusal that ends a wait.
create function private.told_late_words(p_copier public.copiers, p_name text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return format('%s was told too late: the copier allows %s s. Resync the copier to copy the trade now.', p_name,
    trim_scale(p_copier.max_age_ms / 1000.0));
end $$;

-- Stores pairs that wait, and asks the agents of both accounts for what is missing: each heartbeat names the symbols to
-- watch, and the message makes it come at once. A pair that waits for the same thing again is not asked for again.
create function private.begin_waits(p_waits private.symbol_waits[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_vps uuid;
  v_accounts uuid[] := array(
    select unnest(array[n.follower_account_id, n.master_account_id]) from unnest(p_waits) n
    where not exists (select from private.symbol_waits w
      where (w.copier_id, w.kind, w.ticket, w.side) = (n.copier_id, n.kind, n.ticket, n.side)
        and (w.ends_as, w.symbols) = (n.ends_as, n.symbols)));
begin
  insert into private.symbol_waits as w select * from unnest(p_waits)
  on conflict (copier_id, kind, ticket, side) do update set asked = excluded.asked, news_at = excluded.news_at,
    ends_at = excluded.ends_at, ends_as = excluded.ends_as, symbols = excluded.symbols,
    lots = excluded.lots
  where (w.asked, w.news_at, w.ends_at, w.ends_as, w.symbols, w.lots) is distinct from
    (excluded.asked, excluded.news_at, excluded.ends_at, excluded.ends_as, excluded.symbols, excluded.lots);
  for v_vps in
    select distinct a.vps_id from public.account_vps_assignments a where a.account_id = any (v_accounts) order by 1
  loop
    perform private.broadcast('vps:' || v_vps, 'assignments', '{}');
  end loop;
end $$;

-- Deletes waits whose pairs have got their decision.
create function private.settle_waits(p_waits private.symbol_waits[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  delete from private.symbol_waits w using unnest(p_waits) o
  where (w.copier_id, w.kind, w.ticket, w.side) = (o.copier_id, o.kind, o.ticket, o.side);
end $$;

-- Why nothing is left to decide for a pair that waits; null: it still waits. A decision that is held up by the link's
-- own orders is made when they end, at the latest a minute after the wait.
create function private.wait_is_over(w private.symbol_waits, p_now timestamptz) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  m public.positions;
begin
  select * into m from public.positions p
  where p.account_id = w.master_account_id and p.ticket = w.ticket and p.kind = w.kind;
  if m.closed_at is null and m.lots > 0 and m.side = w.side then
    return case
      when w.ends_at >= p_now then null
      when exists (select from public.copiers c where c.id = w.copier_id and c.removed_at is not null)
        then 'copier_removed'
      when exists (select from public.position_links l
        where l.master_account_id = w.master_account_id and l.master_ticket = w.ticket and l.master_kind = w.kind
          and l.copier_id = w.copier_id and l.state = 'live' and l.master_side = m.side
          and m.lots <= l.seen_master_lots) then 'no_change'
      when w.ends_at < p_now - interval '1 minute' then w.ends_as end;
  end if;
  return case when w.kind = 'order' and m.replaced_by is not null
    then 'copied_at_fill' else 'already_closed' end;
end $$;

-- Ends the waits of these master positions that have nothing left to decide: each pair gets its reason.
create function private.end_waits(p_masters uuid[], p_tickets text[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_over record;
begin
  for v_over in
    select w as wait, o.reason from private.symbol_waits w
    cross join lateral private.wait_is_over(w, p_now) o (reason)
    where w.master_account_id = any (p_masters) and w.ticket = any (p_tickets) and o.reason is not null
  loop
    perform private.settle_waits(array[v_over.wait]::private.symbol_waits[]);
    update public.copy_outcomes o set reason = v_over.reason, detail = null
    where o.event_id = (v_over.wait).event_id and o.copier_id = (v_over.wait).copier_id
      and o.reason = 'symbols_loading';
  end loop;
end $$;
