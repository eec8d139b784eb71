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

-- Whether an order makes a copy smaller, or ends it.
create function private.shrinks(q public.trade_execution_queue, p_link bigint) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if q.parts is null then return q.link_id = p_link and q.action in ('close', 'reduce', 'cancel'); end if;
  return exists (select from jsonb_array_elements(q.parts) e
    where (e.value ->> 'lots')::numeric < 0 and e.value ->> 'link_id' = p_link::text);
end $$;

-- Orders in flight that close something. Of a netting deal, the part that closes; a close that waits for its open to be
-- answered closes what that opens.
create function private.overdue_orders(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  act text, symbol text, lots numeric, why text, closed boolean, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select q.account_id, q.user_id, q.action, q.symbol,
    coalesce((select sum(-(e.value ->> 'lots')::numeric) from jsonb_array_elements(q.parts) e
      where (e.value ->> 'lots')::numeric < 0), nullif(q.lots, 0),
      (select sum(o.lots) from public.trade_execution_queue o where o.step_id = q.after_id), q.lots),
    private.waiting_words(q.status, q.reason, q.message), coalesce(q.reason in ('market_closed', 'no_quotes'), false),
    -- an order that was queued again after a refusal: since its master closed
    least(q.queued_at, case when l.close_failures > 0 or n.failures > 0 then m.closed_at end)
  from public.trade_execution_queue q
  left join public.position_links l on l.id = q.link_id
  left join private.net_ledgers n on n.account_id = q.account_id and n.symbol = q.symbol and q.parts is not null
  left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
    and m.kind = l.master_kind
  where q.in_flight and (p_user is null or q.user_id = p_user)
    and (q.action in ('close', 'reduce', 'cancel') or exists (select from jsonb_array_elements(q.parts) e
      where (e.value ->> 'lots')::numeric < 0))
    and least(q.queued_at, case when l.close_failures > 0 or n.failures > 0 then m.closed_at end)
      <= p_now - interval '10 seconds';
end $$;

-- Copies that may have to shrink while no order for it is in flight: it was refused and waits for its next attempt,
-- another order of the copy (where positions net: of the symbol) has not been answered for 10 s, or the planner's own
-- code failed on it (trade/fault.sql).
create function private.links_held_up(p_user uuid, p_now timestamptz) returns bigint[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return array(
    select w.id from public.position_links w
    where w.state = 'live' and w.replan_at is not null and w.close_failures > 0
      and (p_user is null or w.user_id = p_user)
    union
    select w.id from private.net_ledgers n
    join public.position_links w on w.follower_account_id = n.account_id and w.symbol = n.symbol and w.state = 'live'
    where n.replan_at is not null and n.failures > 0 and (p_user is null or w.user_id = p_user)
    union
    select w.id from public.trade_execution_queue q
    join public.trading_accounts a on a.id = q.account_id
    join public.position_links w on w.follower_account_id = q.account_id and w.symbol = q.symbol and w.state = 'live'
    where q.in_flight and q.queued_at <= p_now - interval '10 seconds' and (p_user is null or q.user_id = p_user)
      and (w.id = q.link_id or a.mode = 'netting')
    union
    select w.id from private.quarantine f
    join public.position_links w on w.id = case f.kind when 'link' then f.subject::bigint end and w.state = 'live'
    where p_user is null or w.user_id = p_user
    union
    select w.id from private.quarantine f
    join public.position_links w on w.master_account_id = f.account_id and w.master_ticket = f.body ->> 'ticket'
      and w.state = 'live'
    where f.kind = 'decision' and (p_user is null or w.user_id = p_user));
end $$;

-- Copies whose close or reduction is held up. Since: the first refusal after the last success, else when the master
-- changed or the account began to flatten.
create function private.overdue_links(p_user uuid, p_now timestamptz) returns table (account_id uuid, user_id uuid,
  act text, symbol text, lots numeric, why text, closed boolean, since timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_links bigint[] := private.links_held_up(p_user, p_now);
begin
  if cardinality(v_links) = 0 then return; end if;
  return query
  select s.follower_account_id, s.user_id, case when s.doomed then 'close' else 'reduce' end, s.symbol,
    case when s.doomed then s.position_lots + s.order_lots else s.position_lots - s.target_lots end,
    case when f.since is not null then private.waiting_words('retrying', f.reason, f.message)
      when flight.since is not null then 'an earlier order of it has not been answered'
      else 'it could not be planned and is tried again' end,
    coalesce(f.reason in ('market_closed', 'no_quotes'), false), w.since
  from private.link_states s
  join public.trading_accounts a on a.id = s.follower_account_id
  left join lateral (
    select (array_agg(q.reason order by q.id desc))[1] as reason, (array_agg(q.message order by q.id desc))[1]
      as message, min(q.queued_at) filter (where q.queued_at > done.at) as since
    from public.trade_execution_queue q
    cross join lateral (
      select coalesce(max(d.finalized_at), '-infinity') as at from public.trade_execution_queue d
      where d.user_id = s.user_id and d.account_id = s.follower_account_id and d.symbol = s.symbol
        and d.status = 'completed' and d.queued_at > p_now - interval '1 hour' and private.shrinks(d, s.id)) done
    where q.user_id = s.user_id and q.account_id = s.follower_account_id and q.symbol = s.symbol
      and q.status <> 'completed' and q.queued_at > p_now - interval '1 hour' and private.shrinks(q, s.id)
  ) f on true
  cross join lateral (
    select min(q.queued_at) as since from public.trade_execution_queue q
    where q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight
  ) flight
  cross join lateral (
    select coalesce(f.since, case when s.master_gone or not s.doomed then s.master_changed_at
      when a.copy_state = 'flattening' then a.flattened_at end, flight.since, s.created_at) as since
  ) w
  where s.id = any (v_links) and s.ended_at is null and not s.frozen
    and (s.doomed and s.legs > 0 or s.position_lots - s.target_lots >= s.lots_min)
    and w.since <= p_now - interval '10 seconds'
    and not exists (select from public.trade_execution_queue q
      where q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight and private.shrinks(q, s.id));
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
