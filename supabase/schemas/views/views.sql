-- Views for people: Studio, the dashboard, checks.

create view public.unexplained_pairs with (security_invoker = true) as
select e.id as event_id, e.received_at, e.account_id, e.type, e.ticket, c.id as copier_id, c.follower_account_id
from public.trade_events e
join public.copiers c on c.master_account_id = e.account_id and c.created_at <= e.received_at
  and (c.removed_at is null or c.removed_at > e.received_at)
left join public.copy_outcomes o on o.event_id = e.id and o.copier_id = c.id
-- outcomes of older events may have been deleted
where e.status = 'accepted' and e.type <> 'snapshot' and e.received_at > now() - interval '30 days'
  and (o.event_id is null
    or (o.execution_id is not null and not exists (select 1 from public.trade_execution_queue q
      where q.id = o.execution_id)));
comment on view public.unexplained_pairs is
  'Every (event, copier) pair that has neither a copy nor a reason. It must be empty; a row here is a bug.';
grant select on public.unexplained_pairs to authenticated, service_role;

-- Times, prices and units are described in the comments below. Every join is an index look-up from the requested
-- outcomes, newest first by user (copy_outcomes_of_user) or for operators (copy_outcomes_decided). Two time windows
-- limit the event's look-up to a few partitions; for an outcome decided later than that, the missing columns come from
-- the mirror.
create view public.copied_trades with (security_invoker = true) as
select o.event_id, o.copier_id, o.user_id, o.link_id, o.decided_at,
  c.name as copier, c.master_account_id, c.follower_account_id,
  e.type as event, coalesce(e.ticket, l.master_ticket) as master_ticket, coalesce(e.symbol, m.symbol) as master_symbol,
  coalesce(e.side, l.master_side) as master_side, e.lots as master_lots, e.previous_lots as master_previous_lots,
  coalesce(e.deal_price, case when x.action = 'open' and x.parts is null then x.master_price end) as master_price,
  coalesce(x.symbol, l.symbol) as symbol, coalesce(case when x.parts is null then x.side end, l.side) as side,
  case
    when o.reason = 'symbols_loading' then 'in_flight'
    when x.id is null then case when o.reason = any (private.nothing_to_do()) then 'nothing_to_do'
      else 'not_copied' end
    when d.waiting > 0 then 'in_flight'
    when d.failed = 0 and not d.short and t.reason is null then 'copied'
    when d.filled_lots > 0 or d.short and d.filled_lots is null then 'partly'
    when d.failed < d.orders then 'copied'
    when d.refused = 0 and t.reason is null then 'nothing_to_do'
    else 'not_copied' end as status,
  coalesce(o.reason, d.reason, t.reason) as reason, o.detail, d.message,
  array(select distinct w from unnest(coalesce(x.warnings, '{}') || coalesce(l.warnings, '{}')) w
    order by w) as warnings,
  d.orders, d.attempts, d.filled_lots, d.closed_lots, d.fill_price,
  round(d.slippage_points, 2) as slippage_points, round(d.slippage_money, 4) as slippage_money, fa.currency,
  latency.detect_ms, latency.request_ms, latency.lock_ms, latency.plan_ms, latency.deliver_ms, latency.lane_ms,
  latency.broker_ms, latency.ours_ms, latency.whole_ms,
  private.reason_words(coalesce(o.reason, d.reason, t.reason)) as reason_words
from public.copy_outcomes o
left join public.copiers c on c.id = o.copier_id
left join public.trading_accounts fa on fa.id = c.follower_account_id
left join public.position_links l on l.id = o.link_id
-- why the other side of a flip was refused by a rule
left join public.position_links t on t.copier_id = l.copier_id and t.master_ticket = l.master_ticket
  and t.master_kind = l.master_kind
  and t.generation = l.generation + 1
  and t.event_id = o.event_id and t.ended_at = t.created_at
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
  and m.kind = l.master_kind
left join public.trade_events e on e.id = o.event_id and e.received_at > o.decided_at - interval '7 days'
  and e.received_at < o.decided_at + interval '1 day'
left join public.trade_execution_queue x on x.id = o.execution_id
left join lateral (
  select count(*) as orders, count(*) filter (where q.finalized_at is null) as waiting,
    -- an order that was refused or partly filled is no failure if another order has completed the step since
    count(*) filter (where q.status in ('rejected', 'expired', 'cancelled')
      and q.step_id >= coalesce(q.done_step, 0)) as failed,
    -- and none if nothing was left to do
    count(*) filter (where q.status in ('rejected', 'expired', 'cancelled') and q.step_id >= coalesce(q.done_step, 0)
      and q.reason <> all (private.nothing_to_do())) as refused,
    coalesce(bool_or(q.finalized_at is not null and q.filled_lots < q.lots
      and q.action in ('open', 'increase', 'reduce', 'close')
      and q.status = 'completed' and q.step_id >= coalesce(q.done_step, 0)), false) as short,
    max(q.attempt) as attempts,
    (array_agg(q.reason order by q.finalized_at is null desc, q.reason = any (private.nothing_to_do()), q.id desc)
      filter (where q.reason is not null and q.step_id >= coalesce(q.done_step, 0)))[1] as reason,
    (array_agg(q.message order by q.finalized_at is null desc, q.reason = any (private.nothing_to_do()), q.id desc)
      filter (where q.reason is not null and q.step_id >= coalesce(q.done_step, 0)))[1] as message,
    sum(f.lots) as filled_lots,
    -- one fill that is not known: what was closed is not known
    case when bool_and(c.lots is not null) filter (where c.closes) then sum(c.lots) filter (where c.closes) end
      as closed_lots,
    sum(f.lots * q.fill_price) / nullif(sum(f.lots), 0) as fill_price,
    -- null if one fill cannot be compared: the sum would be too small
    case when bool_and(s.points is not null) filter (where f.lots > 0)
      then sum(f.lots * s.points) / nullif(sum(f.lots), 0) end
      as slippage_points,
    case when bool_and(s.points * q.point_money is not null) filter (where f.lots > 0)
      then sum(f.lots * s.points * q.point_money) end
      as slippage_money,
    array_agg(q.id) as execution_ids
  from (
    -- the step; the open of a flip, which names the step that closed; what was queued again after a refusal
    select y.*, max(y.step_id) filter (where y.status = 'completed') over (partition by y.action) as done_step
    from public.trade_execution_queue y
    where y.id = x.id or y.event_id = x.event_id and y.copier_id = x.copier_id and (y.step_id = x.step_id
      or y.after_id = x.step_id and x.action in ('close', 'cancel') or y.action = x.action and y.link_id = x.link_id)
  ) q
  -- this copier's part of the order; of a netting deal its own part, which is unknown only if several parts shared a
  -- partial fill
  left join lateral (
    select case when (p.value ->> 'lots')::numeric < 0 then -1 else 1 end * case p.value ->> 'side' when 'buy'
      then 1 else -1 end as direction,
      (p.value ->> 'lots')::numeric < 0 as closes, abs((p.value ->> 'lots')::numeric) as ordered,
      case when jsonb_array_length(q.parts) = 1 then q.filled_lots when q.filled_lots = q.lots
        then abs((p.value ->> 'lots')::numeric) end as lots
    from jsonb_array_elements(q.parts) p where p.value ->> 'link_id' = o.link_id::text
  ) part on q.parts is not null
  cross join lateral (
    select case when q.parts is null then q.filled_lots else part.lots end as lots,
      case when q.parts is not null then part.direction
        else case q.side when 'buy' then 1 else -1 end * case
          when q.action in ('open', 'increase') then 1 else -1 end end as direction
  ) f
  -- what it closes: of a final order what was filled, of another what was ordered
  cross join lateral (
    select case when q.parts is null then q.action in ('reduce', 'close') else part.closes end as closes,
      case when q.finalized_at is not null and q.status <> 'completed' then coalesce(f.lots, 0)
        when q.finalized_at is not null then f.lots when q.parts is null then q.lots else part.ordered end as lots
  ) c
  -- Points = (direction × (fill − master's price) − spread of a reverse copy) / point; direction: 1 buys, −1 sells. A
  -- reverse copy deals on the other side of the market: where the master buys at the ask it sells at the bid, which is
  -- a spread lower without being any worse.
  cross join lateral (
    select (f.direction * (q.fill_price
      - coalesce(e.deal_price, case when q.action = 'open' and q.parts is null then q.master_price end))
      - case when l.side <> l.master_side then q.spread else 0 end) / q.point_size as points
  ) s
  where q.parts is null or part.direction is not null
) d on x.id is not null
-- the slowest order of the copy, with its own stages
left join lateral (
  select t.* from public.execution_latencies t where t.id = any (d.execution_ids)
  order by t.ours_ms desc nulls last, t.id limit 1
) latency on d.execution_ids is not null;
comment on view public.copied_trades is
  'The result of every trade event for every copier: what was traded, at what price, how late and how far from the '
  'master''s price; or the one reason why not.';
comment on column public.copied_trades.event is
  'what the master did: opened, increased, reduced, modified, closed, ordered, amended, cancelled';
comment on column public.copied_trades.master_lots is
  'lots of the master''s position after the event; 0 = it closed. closed_lots says what the copy closed';
comment on column public.copied_trades.master_price is 'price of the master''s deal; null = not reported, or no deal';
comment on column public.copied_trades.symbol is 'the follower''s symbol';
comment on column public.copied_trades.side is 'side of the follower''s position';
comment on column public.copied_trades.status is
  'copied; partly (less was filled than ordered); in_flight; not_copied (refused, see reason); nothing_to_do (nothing '
  'was refused, see reason)';
comment on column public.copied_trades.reason is
  'code of docs/errors.md: why nothing, or only a part, was copied, or what the order waits for';
comment on column public.copied_trades.reason_words is 'the reason in words, for people';
comment on column public.copied_trades.detail is 'the steps of the size calculation, in words';
comment on column public.copied_trades.message is 'the message of the broker or the agent';
comment on column public.copied_trades.warnings is
  'how the copy differs from the settings: capped, split, forced_min, …';
comment on column public.copied_trades.orders is 'number of orders for the copy';
comment on column public.copied_trades.filled_lots is
  'lots traded at the follower; null = not known (a partly filled netting deal of several copies)';
comment on column public.copied_trades.closed_lots is
  'the part of it that closed or reduced the copy; while an order is in flight: what it is to close. null = the trade '
  'closes nothing, or it is not known';
comment on column public.copied_trades.fill_price is 'average price of the fills, weighted by lots';
comment on column public.copied_trades.slippage_points is
  'points of the follower''s symbol between the master''s deal and the fills, weighted by lots; above 0 = worse for '
  'the follower. A reverse copy deals on the other side of the market: the follower''s spread at the fill is left out';
comment on column public.copied_trades.slippage_money is
  'the same for all lots in the follower''s currency, by the exchange rate at the fill; above 0 = lost. Without '
  'commission and swap';
comment on column public.copied_trades.currency is 'currency of the follower''s account';
comment on column public.copied_trades.detect_ms is
  'ms from the master''s fill at its broker until its agent saw it. This and the following columns are those of the '
  'slowest order of the copy (execution_latencies); null = not known, or no event of the master caused it';
comment on column public.copied_trades.request_ms is 'ms from then until the database received the event';
comment on column public.copied_trades.lock_ms is 'ms from then until the accounts concerned were locked for planning';
comment on column public.copied_trades.plan_ms is 'ms from then to the last statement of the planning transaction';
comment on column public.copied_trades.deliver_ms is
  'ms from then until the follower''s agent had the order; the commit is in it';
comment on column public.copied_trades.lane_ms is 'ms that the order waited at the agent before it was sent';
comment on column public.copied_trades.broker_ms is 'ms until the broker had answered';
comment on column public.copied_trades.ours_ms is
  'ms from the moment at which the master''s agent saw the change until the order was sent: request to lane';
comment on column public.copied_trades.whole_ms is 'ms from the master''s fill to the follower''s fill: all stages';
grant select on public.copied_trades to authenticated, service_role;
