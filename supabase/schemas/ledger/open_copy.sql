-- Open copies, as alerts and the verdict name them.

-- "EURUSD buy 0.3, XAUUSD sell 0.1 and 2 more": what these links hold; null: nothing.
create function private.copies_words(p_links bigint[]) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_all text[] := array(
    select format('%s %s %s', l.symbol, l.side, trim_scale(sum(g.lots)))
    from public.position_links l join private.link_legs g on g.link_id = l.id
    where l.id = any (p_links) group by l.id order by l.symbol, l.id);
begin
  return nullif(array_to_string(v_all[:5], ', '), '')
    || case when cardinality(v_all) > 5 then format(' and %s more', cardinality(v_all) - 5) else '' end;
end $$;

-- A sentence about the copies that depend on an account: those that it holds, and those of its positions elsewhere.
create function private.open_copies_sentence(p_account uuid) returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  v_held text := private.copies_words(array(select l.id from public.position_links l
    where l.follower_account_id = p_account and l.state = 'live'));
  v_led text := private.copies_words(array(select l.id from public.position_links l
    where l.master_account_id = p_account and l.state = 'live'));
begin
  return coalesce(' Open copies on it, which nobody can close meanwhile: ' || v_held || '.', '')
    || coalesce(' Open copies of its positions, whose closes nobody sees meanwhile: ' || v_led || '.', '');
end $$;

-- Masters that nobody has seen for 30 s, with the copies of their positions that are open: a row per follower and
-- master. p_user: whose followers; null: everybody's. A weekend on which the master rests does not count.
create function private.unseen_masters(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  account text, master_account_id uuid, master text, links bigint[], since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  with unseen as materialized (
    select a.id, a.user_id, a.name, s.since
    from public.trading_accounts a cross join lateral private.account_status_now(a, p_now) s
    where a.removed_at is null
      and (a.status <> 'connected' or greatest(a.seen_at, a.funds_at) < p_now - interval '30 seconds'
        or not exists (select from public.account_vps_assignments h join public.vps_instances v on v.id = h.vps_id
          where h.account_id = a.id and v.lease_expires_at > p_now))
      and s.status not in ('connected', 'degraded', 'weekend') and s.since <= p_now - interval '30 seconds'
  ), copied as (
    select l.follower_account_id, u.id as master_id, array_agg(l.id) as links, min(u.since) as since,
      min(u.name) as name, min(u.user_id::text) as owner
    from unseen u join public.position_links l on l.master_account_id = u.id and l.state = 'live'
    where (p_user is null or l.user_id = p_user) and exists (select from private.link_legs g where g.link_id = l.id)
    group by l.follower_account_id, u.id
  )
  select f.id, f.user_id, f.name, c.master_id,
    -- the name of another user's account is his own
    case when c.owner = f.user_id::text then c.name else 'a master' end, c.links, c.since
  from copied c join public.trading_accounts f on f.id = c.follower_account_id and f.removed_at is null;
end $$;
comment on function private.unseen_masters(uuid, timestamptz) is
  'Masters unseen for 30 s whose positions have open copies, per follower account, with the links of these copies.';
