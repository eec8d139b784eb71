-- A broker renames a symbol: what is known under the old name goes on under the new one.

-- Whether the broker has renamed the symbol of this order or position. A ticket, a side and an open price that stay are
-- the proof; anything else is another trade.
create function private.is_renamed(p_old public.positions, p jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return coalesce(p_old.closed_at is null and p_old.symbol <> p ->> 'symbol'
    and (p_old.ticket, p_old.kind, p_old.side) = (p ->> 'ticket', p ->> 'kind', p ->> 'side')
    and p_old.price <> 0 and p_old.price = (p ->> 'price')::numeric, false);
end $$;

-- The specification goes to the new name; while other trades still have the old one, both names have it. What was
-- chosen because of the old name is chosen anew.
create function private.rename_specification(p_account uuid, p_old text, p_new text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  s public.account_symbols;
  v_left boolean := exists (
    select 1 from public.positions m where m.account_id = p_account and m.symbol = p_old and m.closed_at is null);
begin
  select * into s from public.account_symbols x where x.account_id = p_account and x.name = p_old;
  if found and not exists (
    select 1 from public.account_symbols x where x.account_id = p_account and x.name = p_new)
  then
    s.name := p_new;
    insert into public.account_symbols select (s).*;
  end if;
  if not v_left then
    delete from public.account_symbols x where x.account_id = p_account and x.name = p_old;
  end if;
  delete from private.symbol_choices c
  where c.follower_account_id = p_account and c.follower_symbol in (p_old, p_new)
    or c.master_account_id = p_account and c.master_symbol in (p_old, p_new);
end $$;

-- The copies that the follower's trade belongs to follow it, and so do orders that are not done yet. On a netting
-- account these are all copies in the symbol, and its ledger.
create function private.rename_copies(p_account public.trading_accounts, p jsonb, p_old text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_new text := p ->> 'symbol';
  v_links bigint[];
begin
  if p_account.mode = 'netting' then
    v_links := array(select l.id from public.position_links l
      where l.follower_account_id = p_account.id and l.symbol = p_old and l.state = 'live');
    update private.link_legs g set ticket = v_new where g.account_id = p_account.id and g.ticket = p_old;
    delete from private.net_ledgers n where n.account_id = p_account.id and n.symbol = v_new and exists (
      select 1 from private.net_ledgers o where o.account_id = p_account.id and o.symbol = p_old);
    update private.net_ledgers n set symbol = v_new where n.account_id = p_account.id and n.symbol = p_old;
    update public.trade_execution_queue q set symbol = v_new
    where q.account_id = p_account.id and q.symbol = p_old and q.finalized_at is null;
  else
    v_links := array(select g.link_id from private.link_legs g
      where g.account_id = p_account.id and g.ticket = p ->> 'ticket' and g.ticket_kind = p ->> 'kind');
    update public.trade_execution_queue q set symbol = v_new
    where q.link_id = any (v_links) and q.symbol = p_old and q.finalized_at is null;
  end if;
  update public.position_links l set symbol = v_new where l.id = any (v_links) and l.symbol = p_old;
end $$;

-- The account's owner hears of it, once for all trades in the symbol, with the mappings that name the old one.
create function private.alert_renamed(p_account public.trading_accounts, p_old text, p_new text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_mapped text := (
    select string_agg(c.name, ', ' order by c.name) from public.symbol_mappings y
    join public.copiers c on c.id = y.copier_id and c.removed_at is null
    where c.master_account_id = p_account.id and y.master_key = upper(btrim(p_old))
      or c.follower_account_id = p_account.id and upper(btrim(y.follower_symbol)) = upper(btrim(p_old)));
begin
  if exists (select 1 from public.alerts x where x.account_id = p_account.id and x.kind = 'symbol'
    and x.reason = 'symbol_renamed' and x.seen_at is null and x.detail ->> 'old' = p_old
    and x.detail ->> 'new' = p_new) then
    return;
  end if;
  perform private.raise_alert(p_account.id, 'symbol', 'symbol_renamed', 'warning', format(
    'The broker of %s has renamed %s to %s. What is open and its copies go on under the new name. ', p_account.name,
    p_old, p_new) || coalesce(format('These copiers map the old name and no longer find it: %s. Change their mappings.',
    v_mapped), 'Nothing needs to be done, unless filters or settings of yours name the old one.'),
    jsonb_build_object('old', p_old, 'new', p_new, 'copiers', v_mapped));
end $$;

-- Called when the mirror has taken the trade under its new name.
create function private.follow_rename(p_account public.trading_accounts, p_old public.positions, p jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.rename_specification(p_account.id, p_old.symbol, p ->> 'symbol');
  perform private.rename_copies(p_account, p, p_old.symbol);
  perform private.alert_renamed(p_account, p_old.symbol, p ->> 'symbol');
end $$;
