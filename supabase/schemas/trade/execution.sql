-- Executions: orders for agents, one row each, and their outcomes.

create table public.trade_execution_queue (
  id bigint generated always as identity primary key,
  step_id bigint not null,
  after_id bigint,
  link_id bigint,
  lane text not null,
  copier_id uuid,
  user_id uuid not null,
  account_id uuid not null,
  master_account_id uuid,
  event_id bigint,
  -- the order
  action text not null,
  priority integer not null,
  symbol text not null,
  side text not null,
  order_type text not null default 'market',
  lots numeric not null,
  target_lots numeric,
  ticket text,
  price numeric,
  sl numeric,
  tp numeric,
  max_slippage_points integer,
  master_price numeric,
  master_lots numeric,
  expires_at timestamptz,
  comment text not null default '',
  parts jsonb,
  warnings text[] not null default '{}',
  -- present state
  status text not null default 'queued',
  reason text,
  message text,
  attempt integer not null default 1,
  next_attempt_at timestamptz,
  retry_until timestamptz,
  send_before timestamptz not null,
  vps_id uuid,
  epoch bigint,
  offered_at timestamptz,
  cancel_requested_at timestamptz,
  adopted boolean not null default false,
  -- outcome
  filled_lots numeric,
  fill_price numeric,
  point_size numeric,
  point_money numeric,
  spread numeric,
  -- times
  detected_at timestamptz,
  queued_at timestamptz not null,
  planned_at timestamptz,
  received_at timestamptz,
  sent_at timestamptz,
  done_at timestamptz,
  finalized_at timestamptz,
  updated_at timestamptz not null,
  in_flight boolean not null generated always as (finalized_at is null) stored,
  constraint action_is_known check (action in ('open', 'increase', 'reduce', 'close', 'modify', 'place', 'amend',
    'cancel')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint lots_not_negative check (lots >= 0),
  constraint status_is_known check (status in
    ('queued', 'retrying', 'unknown', 'completed', 'rejected', 'expired', 'cancelled')),
  constraint final_means_finalized_at check
    ((status in ('completed', 'rejected', 'expired', 'cancelled')) = (finalized_at is not null)),
  constraint failure_says_why check (status not in ('rejected', 'expired', 'cancelled') or reason is not null),
  constraint retrying_knows_when check (status <> 'retrying' or next_attempt_at is not null)
);
comment on table public.trade_execution_queue is
  'One row per order to a broker. id is the execution number: no two orders at the broker carry it, unless the attempt '
  'before was reported as refused.';
comment on column public.trade_execution_queue.step_id is
  'shared by the executions of one step (a split open, all legs of a close)';
comment on column public.trade_execution_queue.after_id is 'the step that must end before this execution is sent';
comment on column public.trade_execution_queue.lane is
  'executions of one lane run in order: a link, or the symbol of a netting account';
comment on column public.trade_execution_queue.parts is
  'netting deal: [{"link_id","lots"}], lots signed: + more of the link, - less of it; without a link: the account''s '
  'surplus';
comment on column public.trade_execution_queue.master_lots is 'master volume that the size was computed from';
comment on column public.trade_execution_queue.detected_at is
  'when the master''s agent saw the change that this order copies; null = no event of the master caused the order (a '
  'flattening, a resync, a correction, a close after a pause), so it has no latency';
comment on column public.trade_execution_queue.planned_at is
  'the last statement of the transaction that planned this attempt: the time in the message to the agent, or, before '
  'its report, the time at which the row was written';
comment on column public.trade_execution_queue.received_at is 'when the agent had received this attempt';
comment on column public.trade_execution_queue.sent_at is 'when the agent sent it to the broker; null = it did not';
comment on column public.trade_execution_queue.done_at is 'when the agent had the broker''s answer';
comment on column public.trade_execution_queue.offered_at is
  'when an agent could have received it; from then on only that agent''s report can close it';
comment on column public.trade_execution_queue.send_before is
  'deadline of this attempt, checked by the last process before the broker';
comment on column public.trade_execution_queue.in_flight is
  'not final yet. Look-ups by account use this column, look-ups by link use finalized_at is null, so that each fits '
  'only one index';
comment on column public.trade_execution_queue.point_size is
  'size of one point of the symbol when the order was filled (0.00001 for EURUSD with five digits)';
comment on column public.trade_execution_queue.point_money is
  'value of one point of one lot when the order was filled, in the account''s currency; null = no exchange rate was '
  'known';
comment on column public.trade_execution_queue.spread is
  'ask less bid of the symbol when the order was filled, in price units; null = no quote was known';
comment on column public.trade_execution_queue.retry_until is 'only for opens: no new attempt after this';

-- Only these indexes begin with a column that the planner looks up by; Postgres might choose another one while the
-- tables are small. The planner looks up what is in flight for a link ("finalized_at is null") and for an account or
-- netting symbol ("in_flight"); each look-up fits only one index.
create index executions_open_of_link on public.trade_execution_queue (link_id) where finalized_at is null;
create index executions_open_of_account on public.trade_execution_queue (account_id, symbol) where in_flight;
-- sizing by free margin: what was filled after an account's figures were read
create index executions_filled on public.trade_execution_queue (account_id, finalized_at)
  where status = 'completed' and action in ('open', 'increase');
create index executions_of_step on public.trade_execution_queue (step_id);

-- an agent's repeated call: open executions of an event; copied_trades: executions of an event for a copier
create index executions_of_event on public.trade_execution_queue (event_id, copier_id);

-- maintain: retries that are due; doorbells; retention
create index executions_due on public.trade_execution_queue (next_attempt_at) where status = 'retrying';
create index executions_updated on public.trade_execution_queue (updated_at);
create index executions_of_user on public.trade_execution_queue (user_id, queued_at desc);
alter table public.trade_execution_queue enable row level security;
create policy "own executions are readable" on public.trade_execution_queue for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_execution_queue to authenticated, service_role;

-- Whether the ticket that an execution names is an order's or a position's.
create function private.kind_of(p_action text) returns text
language sql immutable
set search_path = ''
as $$ select case when p_action in ('cancel', 'amend') then 'order' else 'position' end $$;
comment on function private.kind_of(text) is 'Kind of the ticket that an execution of this action names.';

-- Whether an execution opens something: opens are decided once and never sent late. A netting deal opens if one of its
-- parts does.
create function private.opens(p public.trade_execution_queue) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if p.parts is not null then
    return exists (select 1 from jsonb_array_elements(p.parts) e where (e ->> 'lots')::numeric > 0);
  end if;
  return p.action in ('open', 'increase', 'place');
end $$;

-- The lots that an execution opens: of a netting deal, what its growing parts add to the net position.
create function private.opening_lots(p public.trade_execution_queue) returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return case when p.parts is null then p.lots else least(p.lots, (
    select sum((e ->> 'lots')::numeric) from jsonb_array_elements(p.parts) e where (e ->> 'lots')::numeric > 0)) end;
end $$;
