-- Latency: how long each order took, stage by stage (docs/latency.md). Everything that shows a latency reads it here.

-- The stages of an order follow each other without a gap, so that request to lane add up to ours_ms, and all of them to
-- whole_ms. Where two clocks disagree, a stage is null, never negative and never 0.
create view public.execution_latencies with (security_invoker = true) as
select
  execution.id,
  execution.user_id,
  execution.account_id,
  execution.event_id,
  execution.queued_at,
  coalesce(execution.sent_at >= execution.detected_at and execution.status = 'completed' and not execution.adopted,
    false) as measured,
  stage.detect_ms,
  stage.request_ms,
  stage.lock_ms,
  stage.plan_ms,
  stage.deliver_ms,
  stage.lane_ms,
  stage.broker_ms,
  stage.ours_ms,
  stage.whole_ms
from public.trade_execution_queue execution
left join public.trade_events event on event.id = execution.event_id
  and event.received_at > execution.queued_at - interval '7 days'
  and event.received_at < execution.queued_at + interval '1 day'
left join lateral (
  select
    event.detect_ms,
    event.request_ms,
    event.lock_ms,
    case when execution.planned_at >= event.locked_at
      then extract(epoch from execution.planned_at - event.locked_at) * 1000 end as plan_ms,
    case when execution.received_at >= execution.planned_at
      then extract(epoch from execution.received_at - execution.planned_at) * 1000 end as deliver_ms,
    case when execution.sent_at >= execution.received_at
      then extract(epoch from execution.sent_at - execution.received_at) * 1000 end as lane_ms,
    -- of an order that was found later, only the time of finding it is known
    case when execution.done_at >= execution.sent_at and not execution.adopted
      then extract(epoch from execution.done_at - execution.sent_at) * 1000 end as broker_ms,
    case when execution.sent_at >= execution.detected_at
      then extract(epoch from execution.sent_at - execution.detected_at) * 1000 end as ours_ms,
    case when execution.done_at >= event.dealt_at and execution.sent_at is not null and execution.status = 'completed'
      and not execution.adopted then extract(epoch from execution.done_at - event.dealt_at) * 1000 end as whole_ms
) stage on execution.detected_at is not null;
comment on view public.execution_latencies is
  'The latency of every order. All of it is null for an order that no event of a master caused: a flattening, a close '
  'by hand, a resync, a correction. An order that was tried again has the times of its last attempt, and plan_ms '
  'contains the attempts before.';
comment on column public.execution_latencies.id is 'the execution';
comment on column public.execution_latencies.measured is
  'true: percentiles count it. It is a copy of a master''s event that was sent and completed, and was not found later';
comment on column public.execution_latencies.detect_ms is
  'ms from the master''s fill at its broker until its agent saw it; null = the fill''s time was not reported';
comment on column public.execution_latencies.request_ms is 'ms from then until the database received the event';
comment on column public.execution_latencies.lock_ms is
  'ms from then until the accounts concerned were locked for planning';
comment on column public.execution_latencies.plan_ms is
  'ms from then to the last statement of the transaction that planned the order';
comment on column public.execution_latencies.deliver_ms is
  'ms from then until the follower''s agent had the order; the commit is in it';
comment on column public.execution_latencies.lane_ms is 'ms that the order waited at the agent before it was sent';
comment on column public.execution_latencies.broker_ms is
  'ms until the broker had answered; null also if the order was found later';
comment on column public.execution_latencies.ours_ms is
  'ms from the moment at which the master''s agent saw the change until the order was sent: request to lane';
comment on column public.execution_latencies.whole_ms is
  'ms from the master''s fill to the follower''s fill: all stages; null = one of the two is not known';
grant select on public.execution_latencies to authenticated, service_role;
