-- What should have been closed and is not: closes, reductions, cancels and flattening that were not filled within 10 s.

-- What the reason of an order that is not filled means, in words.
create function private.waiting_words(p_status text, p_reason text, p_message text) returns text
language sql immutable set search_path = '' as $$
  select coalesce(case p_reason
      when 'market_closed' then 'the market is closed'
      when 'no_quotes' then 'the broker has no price'
      when 'not_connected' then 'the account is not connected to its broker'
      when 'trade_disabled' then 'the broker does not allow trading'
      when 'autotrading_off' then 'automated trading is switched off'
      when 'investor_password' then 'the account is connected with the read-only password'
      when 'too_many_requests' then 'the broker limits orders per second'
      when 'requote' then 'the broker offers other prices'
      when 'price_changed' then 'the price moves too fast'
      when 'fifo' then 'the broker closes older positions first'
      when 'too_late' then 'its agent could not send it in time'
      when 'expired' then 'its agent could not send it in time'
      when 'lease_over' then 'its agent lost its lease'
      when 'stale_epoch' then 'the account has moved to another agent'
      when 'before_begin' then 'an earlier agent of the account may still trade'
      when 'journal_failed' then 'its agent cannot write its journal'
      when 'unknown' then 'the broker did not answer'
      when 'account_unreadable' then 'the account cannot be read at the broker' end,
    'the broker says: ' || nullif(left(p_message, 120), ''), replace(p_reason, '_', ' '),
    case p_status when 'unknown' then 'nobody knows whether the broker carried it out; its agent looks for it'
      when 'retrying' then 'it is tried again' else 'its agent has not answered' end)
$$;
comment on function private.waiting_words(text, text, text) is
  'Why an order is not filled, in words: its status, the code of its reason, the message of broker or agent.';

-- Orders in flight that close something. Of a netting deal, the part that closes.
create function private.overdue_orders(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  act text, symbol text, lots numeric, why text, closed boolean, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select q.account_id, q.user_id, q.action, q.symbol,
    coalesce((select sum(-(e.value ->> 'lots')::numeric) from jsonb_array_elements(q.parts) e
      where (e.value ->> 'lots')::numeric < 0), q.lots),
    private.waiting_words(q.status, q.reason, q.message), coalesce(q.reason in ('market_closed', 'no_quotes'), false),
    -- an order that was queued again after a refusal: since its master closed
    least(q.queued_at, case when l.close_failures > 0 then m.closed_at end)
  from public.trade_execution_queue q
  left join public.position_links l on l.id = q.link_id
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
    and m.kind = l.master_kind
  where q.in_flight and (p_user is null or q.user_id = p_user)
    and (q.action in ('close', 'reduce', 'cancel') or exists (select from jsonb_array_elements(q.parts) e
      where (e.value ->> 'lots')::numeric < 0))
    and least(q.queued_at, case when l.close_failures > 0 then m.closed_at end) <= p_now - interval '10 seconds';
end $$;

-- Copies whose close or reduction was refused and waits for its next attempt.
create function private.overdue_links(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  act text, symbol text, lots numeric, why text, closed boolean, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select s.follower_account_id, s.user_id, case when s.doomed then 'close' else 'reduce' end, s.symbol,
    case when s.doomed then s.position_lots + s.order_lots else s.position_lots - s.target_lots end,
    private.waiting_words('retrying', f.reason, f.message),
    coalesce(f.reason in ('market_closed', 'no_quotes'), false), coalesce(f.since, s.created_at)
  from public.position_links w
  join private.link_states s on s.id = w.id and s.ended_at is null and not s.frozen and s.executions = 0
    and (s.doomed and s.legs > 0 or s.position_lots - s.target_lots >= s.lots_min)
  left join lateral (
    select (array_agg(q.reason order by q.id desc))[1] as reason, (array_agg(q.message order by q.id desc))[1]
      as message, min(q.queued_at) filter (where q.queued_at > done.at) as since
    from public.trade_execution_queue q
    cross join lateral (
      select coalesce(max(d.finalized_at), '-infinity') as at from public.trade_execution_queue d
      where d.user_id = w.user_id and d.link_id = w.id and d.status = 'completed'
        and d.action in ('close', 'reduce', 'cancel')
        and d.queued_at > p_now - interval '1 hour') done
    where q.user_id = w.user_id and q.link_id = w.id and q.action in ('close', 'reduce', 'cancel')
      and q.status <> 'completed' and q.queued_at > p_now - interval '1 hour'
  ) f on true
  where w.state = 'live' and w.replan_at is not null and w.close_failures > 0
    and (p_user is null or w.user_id = p_user)
    and coalesce(f.since, s.created_at) <= p_now - interval '10 seconds';
end $$;

-- What a flattening should have closed and no copy holds. What copies hold has an order of its own.
create function private.overdue_flattening(p_user uuid, p_now timestamptz) returns table (account_id uuid,
  user_id uuid, act text, symbol text, lots numeric, why text, closed boolean, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select p.account_id, p.user_id, case p.kind when 'order' then 'cancel' else 'flatten' end, p.symbol, p.lots,
    'it is closed as soon as its agent works the account', false, greatest(a.flattened_at, p.first_seen_at)
  from public.trading_accounts a
  join public.positions p on p.account_id = a.id and p.closed_at is null
    and (a.flatten_manual or a.mode = 'hedging' and p.tag is not null and not p.released)
  where a.copy_state = 'flattening' and a.removed_at is null and (p_user is null or a.user_id = p_user)
    and greatest(a.flattened_at, p.first_seen_at) <= p_now - interval '10 seconds'
    and not exists (select from public.trade_execution_queue q
      where q.account_id = p.account_id and q.symbol = p.symbol and q.in_flight)
    and not exists (select from public.position_links l
      where l.follower_account_id = p.account_id and l.symbol = p.symbol and l.state = 'live');
end $$;

-- Everything that should have been closed over 10 s ago, the longest wait first; p_user null: of all users. While all
-- trading is off nothing is closed, by decision of the operators.
create function private.overdue_closes(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  account text, status text, act text, symbol text, lots numeric, why text, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  if private.trading_state() = 'off' then return; end if;
  return query
  select o.account_id, o.user_id, a.name, r.status, o.act, o.symbol, trim_scale(o.lots),
    case r.status when 'disconnected' then 'the account is not connected' when 'halted' then 'the account is halted'
      when 'weekend' then 'the market is closed for the weekend' else o.why end, o.since
  from (
    select * from private.overdue_orders(p_user, p_now)
    union all
    select * from private.overdue_links(p_user, p_now)
    union all
    select * from private.overdue_flattening(p_user, p_now)
  ) o
  join public.trading_accounts a on a.id = o.account_id and a.removed_at is null
  cross join lateral private.account_status_now(a, p_now) s
  -- a broker that calls its market closed at a weekend at which it rests: as if the account rested
  cross join lateral (select case when o.closed and private.closed_for_weekend(a.id, p_now) then 'weekend'
    else s.status end as status) r
  order by o.since, a.name, o.symbol;
end $$;
comment on function private.overdue_closes(uuid, timestamptz) is
  'Closes, reductions, cancels and flattening that were not filled within 10 s: account, its status, what, symbol, '
  'lots, why, since when.';

-- The sentence about one of them.
create function private.overdue_words(p_account text, p_act text, p_symbol text, p_lots numeric, p_why text,
  p_since timestamptz, p_now timestamptz) returns text
language sql immutable set search_path = '' as $$
  select format('%s: the %s of %s %s is not filled after %s s, %s; close it at the broker if you cannot wait',
    p_account, case p_act when 'reduce' then 'reduction' when 'cancel' then 'cancelling'
      when 'flatten' then 'flattening' else 'close' end,
    p_symbol, trim_scale(p_lots), floor(extract(epoch from p_now - p_since)), p_why)
$$;
