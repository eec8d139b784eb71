-- Entries of snapshots and events: which can be taken, and what becomes of the others (trade/unread_entry.sql).

-- What is wrong with an entry of this account's snapshot or event; null: nothing is.
create function private.entry_error(p_account uuid, p jsonb) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_error text := private.position_error(p);
begin
  if v_error is null and least((p ->> 'price')::numeric, (p ->> 'sl')::numeric, (p ->> 'tp')::numeric) < 0
    and not exists (select from public.account_symbols s
      where s.account_id = p_account and s.name = p ->> 'symbol' and private.may_be_negative(s)) then
    v_error := format('position.price, sl or tp is below 0, and %s neither allows that nor is quoted below 0',
      p ->> 'symbol');
  end if;
  return v_error;
end $$;

-- Sorts the entries of a snapshot. good: those that can be taken; unread: [{"ticket", "kind", "error"}] of the others;
-- nameless: an entry has no ticket, so that no ticket can be called absent.
create function private.sort_entries(p_account uuid, p_entries jsonb, out good jsonb, out unread jsonb,
  out nameless boolean)
language plpgsql stable security definer set search_path = '' as $$
begin
  select coalesce(jsonb_agg(x.entry order by x.n) filter (where x.error is null), '[]'),
    coalesce(jsonb_agg(jsonb_build_object('ticket', x.entry ->> 'ticket', 'kind', case
      when x.entry ->> 'kind' in ('position', 'order') then x.entry ->> 'kind' else '' end, 'error', x.error))
      filter (where x.error is not null and x.named), '[]'),
    coalesce(bool_or(not x.named), false)
  into good, unread, nameless
  from (
    select e.entry, e.n, coalesce(private.entry_error(p_account, e.entry), case
      when (e.entry ->> 'lots')::numeric = 0
        then 'a snapshot holds only what is open: position.lots must be above 0' end) as error,
      coalesce(jsonb_typeof(e.entry -> 'ticket') = 'string' and length(e.entry ->> 'ticket') between 1 and 64, false)
        as named
    from jsonb_array_elements(p_entries) with ordinality e (entry, n)
  ) x;
end $$;

-- Remembers the entries of a snapshot that could not be taken, and confirms what the mirror holds under their tickets:
-- none of it is absent.
create function private.note_unread(p_account public.trading_accounts, p_unread jsonb, p_session bigint, p_seq bigint,
  p_unseen timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_new record;
begin
  if p_unread = '[]' then return; end if;
  with added as (
    insert into private.unread_entries as u (account_id, ticket, kind, error, unseen_at, existing)
    select distinct on (e ->> 'ticket', e ->> 'kind') p_account.id, e ->> 'ticket', e ->> 'kind',
      left(e ->> 'error', 500), p_unseen, p_account.snapshot_session = 0
    from jsonb_array_elements(p_unread) e
    on conflict do nothing returning u.ticket, u.error
  )
  select count(*) as number, min(a.ticket) as ticket, (array_agg(a.error order by a.ticket))[1] as error
  into v_new from added a;
  if v_new.number > 0 then
    perform private.raise_alert(p_account.id, 'account', 'entry_unread', 'warning', format(
      '%s of %s cannot be read, such as ticket %s: %s. It counts as open and unknown: it is neither copied nor closed '
      'until it can be read. Look at it in the terminal; if it is right there, tell the operators.',
      case v_new.number when 1 then 'An entry' else v_new.number || ' entries' end, p_account.name, v_new.ticket,
      replace(v_new.error, '_', ' ')), jsonb_build_object('ticket', v_new.ticket, 'number', v_new.number));
  end if;
  update public.positions m set session = p_session, seq = p_seq, absent_snapshots = 0
  from private.unread_entries u
  where u.account_id = p_account.id and m.account_id = u.account_id and m.ticket = u.ticket
    and u.kind in ('', m.kind) and m.closed_at is null and (m.session, m.seq) < (p_session, p_seq)
    and exists (select from jsonb_array_elements(p_unread) e where e ->> 'ticket' = u.ticket and e ->> 'kind' = u.kind);
end $$;

-- Forgets the entries that this snapshot could read, or no longer has.
create function private.forget_unread(p_account public.trading_accounts, p_unread jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_unread = '[]' and not p_account.has_unread then return; end if;
  delete from private.unread_entries u where u.account_id = p_account.id and not exists (
    select from jsonb_array_elements(p_unread) e where e ->> 'ticket' = u.ticket and e ->> 'kind' = u.kind);
  update public.trading_accounts a set has_unread = p_unread <> '[]' where a.id = p_account.id;
end $$;

-- The event of a close as it must be applied: what stands beside the close and is not what it should be is left out. A
-- close is never refused for its price.
create function private.bare_close(p_account uuid, e jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  p jsonb := e -> 'position';
  o public.positions;
begin
  select * into o from public.positions m where m.account_id = p_account and m.ticket = p ->> 'ticket'
  order by m.closed_at is null desc, m.kind = p ->> 'kind' desc limit 1;
  p := jsonb_build_object('kind', o.kind, 'symbol', o.symbol, 'side', o.side, 'order_type', o.order_type,
      'price', o.price::text, 'sl', o.sl::text, 'tp', o.tp::text)
    || jsonb_strip_nulls(jsonb_build_object('ticket', p -> 'ticket', 'lots', p -> 'lots', 'replaces', p -> 'replaces',
      'replaces_kind', case when p ->> 'replaces_kind' in ('position', 'order') then p -> 'replaces_kind' end));
  return case when o.ticket is null then e
    else (e - array['deal_price', 'dealt_at', 'unchanged_at']) || jsonb_build_object('position', p) end;
end $$;
