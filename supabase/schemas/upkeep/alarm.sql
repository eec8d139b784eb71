-- Alarms: what the verdict computes when it is read, stored as alerts. Each is raised once for as long as it lasts.

-- Whether the account has an alert of this kind, with one of these reasons and this detail, raised at or after p_since.
create function private.is_alerted(p_account uuid, p_kind text, p_reasons text[], p_since timestamptz,
  p_detail jsonb) returns boolean
language plpgsql stable security definer
set search_path = ''
as $$
begin
  return exists (select from public.alerts l
    where l.account_id = p_account and l.kind = p_kind and l.reason = any (p_reasons) and l.updated_at >= p_since
      and l.detail @> p_detail
      -- marking it as seen changes updated_at, too
      and (l.created_at >= p_since or l.seen_at is null or l.detail ->> 'since' = private.rfc3339(p_since)));
end
$$;

-- Accounts that have not been connected for 30 s, whoever is to blame.
create function private.alert_disconnected(p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account record;
  v_copies text;
begin
  for v_account in
    select a.id, a.name, s.reason, s.since
    from public.trading_accounts a cross join lateral private.account_status_now(a, p_now) s
    where a.removed_at is null and a.claim <> 'ended'
      and (a.status in ('connecting', 'disconnected') or a.status in ('connected', 'degraded')
        and coalesce(greatest(a.seen_at, a.funds_at) < p_now - interval '30 seconds', true))
      and s.status = 'disconnected' and s.since <= p_now - interval '30 seconds'
      and not private.is_alerted(a.id, 'account', array['disconnected', 'vps_lost', 'journal_unwritable',
        'loop_stalled', 'low_disk', 'low_memory', 'clock_drift'], s.since, '{}')
    order by a.id limit 200  -- the others by the next run
  loop
    v_copies := private.open_copies_sentence(v_account.id);
    perform private.raise_alert(v_account.id, 'account', 'disconnected',
      case when v_copies = '' then 'warning' else 'critical' end,
      format('Account %s has not been connected since %s: %s.%s', v_account.name, private.utc_words(v_account.since),
        left(coalesce(private.without_code(v_account.reason), 'its agent cannot reach the broker'), 300),
        case when v_copies = '' then ' It has no open copies.' else v_copies end),
      jsonb_build_object('since', private.rfc3339(v_account.since)));
  end loop;
end
$$;

create function private.alert_unseen_masters(p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_follower record;
begin
  for v_follower in
    with unseen as materialized (select * from private.unseen_masters(null, p_now)),
    followers as (
      select u.account_id, u.account, min(u.since) as since,
        -- no more than an alert's detail holds
        jsonb_path_query_array(jsonb_agg(u.master_account_id order by u.master_account_id), '$[0 to 19]') as masters
      from unseen u group by u.account_id, u.account
    ), new as (
      select f.* from followers f
      where not private.is_alerted(f.account_id, 'master_unseen', array['master_unseen'], f.since,
        jsonb_build_object('masters', f.masters))
      order by f.account_id limit 200  -- the others by the next run
    )
    select n.account_id, n.account, n.masters, n.since, (
      select string_agg(format('%s has not been seen since %s (%s)', u.master, private.utc_words(u.since),
        private.copies_words(u.links)), '; ' order by u.since)
      from unseen u where u.account_id = n.account_id) as words
    from new n
  loop
    perform private.raise_alert(v_follower.account_id, 'master_unseen', 'master_unseen', 'critical', format(
      'Open copies on %s follow a master that nobody sees: %s. What it closes meanwhile stays open here until it is '
      'seen again; close it at the broker if you cannot wait.', v_follower.account, left(v_follower.words, 700)),
      jsonb_build_object('masters', v_follower.masters, 'since', private.rfc3339(v_follower.since)));
  end loop;
end
$$;

create function private.alert_overdue_closes(p_now timestamptz) returns void
language plpgsql
set search_path = ''
as $$
declare
  v_account record;
begin
  for v_account in
    select o.account_id, min(o.since) as since, 
      jsonb_path_query_array(jsonb_agg(distinct o.act || ' ' || o.symbol), '$[0 to 19]') as closes,
      left(string_agg(private.overdue_words(o.account, o.act, o.symbol, o.lots, o.why, o.since, p_now), '. '
        order by o.since), 1000) as words
    from private.overdue_closes(null, p_now) o where o.status <> 'weekend' group by o.account_id order by o.account_id
  loop
    continue when private.is_alerted(v_account.account_id, 'close_overdue', array['close_overdue'], v_account.since,
      jsonb_build_object('closes', v_account.closes));
    perform private.raise_alert(v_account.account_id, 'close_overdue', 'close_overdue', 'critical',
      v_account.words, jsonb_build_object('closes', v_account.closes, 'since', private.rfc3339(v_account.since)));
  end loop;
end
$$;

create function private.raise_alarms() returns void
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  perform private.alert_overdue_closes(v_now);
  perform private.alert_unseen_masters(v_now);
  perform private.alert_disconnected(v_now);
end
$$;
comment on function private.raise_alarms() is
  'Stores as alerts what is wrong for so long that somebody must know: closes that are overdue, masters that nobody '
  'sees, accounts that are not connected.';
