-- Executions: what agents are told to do, one row each, and how it went.

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
  -- what to do
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
  -- where it stands
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
  -- what came of it
  filled_lots numeric,
  fill_price numeric,
  point_size numeric,
  point_money numeric,
  -- when
  detected_at timestamptz,
  queued_at timestamptz not null,
  received_at timestamptz,
  sent_at timestamptz,
  done_at timestamptz,
  finalized_at timestamptz,
  updated_at timestamptz not null,
  in_flight boolean not null generated always as (finalized_at is null) stored,
  constraint action_is_known check (action in ('open', 'increase', 'reduce', 'close', 'modify', 'place', 'amend', 'cancel')),
  constraint side_is_known check (side in ('buy', 'sell')),
  constraint lots_not_negative check (lots >= 0),
  constraint status_is_known check (status in
    ('queued', 'executing', 'retrying', 'unknown', 'completed', 'rejected', 'expired', 'cancelled')),
  constraint final_means_finalized_at check
    ((status in ('completed', 'rejected', 'expired', 'cancelled')) = (finalized_at is not null)),
  constraint failure_says_why check (status not in ('rejected', 'expired', 'cancelled') or reason is not null),
  constraint retrying_knows_when check (status <> 'retrying' or next_attempt_at is not null)
);
comment on table public.trade_execution_queue is
  'One row per order to a broker. id is the execution number: at most one broker order ever carries it per attempt that was reported as refused.';
comment on column public.trade_execution_queue.step_id is 'executions of one step (a split open, all legs of a close) share it';
comment on column public.trade_execution_queue.after_id is 'step that must have ended first';
comment on column public.trade_execution_queue.lane is 'executions of one lane run in order: a link, or the symbol of a netting account';
comment on column public.trade_execution_queue.parts is 'netting deal: [{"link_id","lots"}], lots signed: + more of the link, - less of it; without a link: the account''s surplus';
comment on column public.trade_execution_queue.master_lots is 'master volume that the size was computed from';
comment on column public.trade_execution_queue.offered_at is 'when an agent could have received it; from then on only a report finalises it';
comment on column public.trade_execution_queue.send_before is 'deadline of this attempt, checked by the last process before the broker';
comment on column public.trade_execution_queue.in_flight is 'not final yet; look-ups by account use it, look-ups by link say finalized_at is null, so that each fits one index';
comment on column public.trade_execution_queue.point_size is 'price of one point of the symbol when it was filled (0.00001 of EURUSD with five digits)';
comment on column public.trade_execution_queue.point_money is
  'what one point of one lot was worth when it was filled, in the account''s currency; null = no rate was known';
comment on column public.trade_execution_queue.retry_until is 'opens: no new attempt after this';

-- No index beside these begins with a column that the planner looks up by: Postgres might choose it while the tables are small.
-- the planner: what is in flight for a link ("finalized_at is null"), for an account or netting symbol ("in_flight"): each look-up fits one
create index executions_open_of_link on public.trade_execution_queue (link_id) where finalized_at is null;
create index executions_open_of_account on public.trade_execution_queue (account_id, symbol) where in_flight;
create index executions_of_step on public.trade_execution_queue (step_id);
-- the agent's repeated call: open executions of an event; copied_trades: executions of an event for a copier
create index executions_of_event on public.trade_execution_queue (event_id, copier_id);
-- maintain: retries that are due; doorbells; retention
create index executions_due on public.trade_execution_queue (next_attempt_at) where status = 'retrying';
create index executions_updated on public.trade_execution_queue (updated_at);
create index executions_of_user on public.trade_execution_queue (user_id, queued_at desc);

alter table public.trade_execution_queue enable row level security;
create policy "own executions are readable" on public.trade_execution_queue for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_execution_queue to authenticated, service_role;

create function private.rfc3339(p_at timestamptz) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
end $$;

-- An execution as agents read it (docs/protocol.md). Its queued_at is that of the attempt: a retry after a move to another VPS was
-- in nobody's hands before, and an agent that took it for an old one would look for it for ever and never send it.
create function private.execution_json(p public.trade_execution_queue) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'id', p.id::text, 'attempt', p.attempt, 'account_id', p.account_id, 'epoch', p.epoch, 'link_id', p.link_id::text,
    'lane', p.lane, 'step_id', p.step_id::text, 'after_id', p.after_id::text, 'action', p.action, 'priority', p.priority,
    'symbol', p.symbol, 'side', p.side, 'order_type', p.order_type, 'lots', trim_scale(p.lots)::text,
    'target_lots', trim_scale(p.target_lots)::text, 'ticket', p.ticket, 'price', p.price::text, 'sl', p.sl::text,
    'tp', p.tp::text, 'max_slippage_points', p.max_slippage_points, 'master_price', p.master_price::text,
    'expires_at', p.expires_at, 'comment', p.comment, 'investigate', p.status = 'unknown',
    'detected_at', p.detected_at, 'queued_at', coalesce(p.offered_at, p.queued_at),
    'send_before', p.send_before);
end $$;

-- Whether an execution opens something: decided once, never late. A netting deal opens when one of its parts does.
create function private.opens(p public.trade_execution_queue) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  if p.parts is not null then
    return exists (select 1 from jsonb_array_elements(p.parts) e where (e ->> 'lots')::numeric > 0);
  end if;
  return p.action in ('open', 'increase', 'place');
end $$;

create function private.send_within() returns interval
language plpgsql stable set search_path = '' as $$
begin
  return make_interval(secs => (private.setting('send_within_ms') #>> '{}')::numeric / 1000);
end $$;

-- Puts executions into the hands of the agents that work their accounts: stamps epoch and deadline, broadcasts to other VPSes
-- (at most 100 executions and 200 KB a message), and returns the array for the calling VPS.
-- Executions of accounts that nobody works stay unoffered.
create function private.offer(p_executions bigint[], p_caller uuid, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own jsonb := '[]';
  v_message record;
  v_send_within interval;
begin
  if p_executions is null or cardinality(p_executions) = 0 then
    return v_own;
  end if;
  -- most were offered when they were planned
  if exists (select 1 from public.trade_execution_queue q where q.id = any (p_executions) and q.offered_at is null) then
    v_send_within := private.send_within();
    update public.trade_execution_queue q
    set vps_id = v.id, epoch = a.epoch, offered_at = p_now,
        send_before = least(greatest(p_now, a.begins_at) + v_send_within, v.lease_expires_at,
          case when private.opens(q) then coalesce(case when q.attempt > 1 then q.retry_until end, q.queued_at) + v_send_within end)
    from public.account_vps_assignments a
    join public.vps_instances v on v.id = a.vps_id
    where q.id = any (p_executions) and q.offered_at is null and a.account_id = q.account_id and v.retired_at is null
      and v.lease_expires_at > p_now;
  end if;

  for v_message in
    select numbered.vps_id, jsonb_agg(numbered.body order by numbered.priority, numbered.id) as bodies
    from (
      select rendered.*,
        case when rendered.vps_id = p_caller then 0 else (sum(octet_length(rendered.body::text)) over w / 190000)::integer end as part_by_bytes,
        case when rendered.vps_id = p_caller then 0 else ((row_number() over w - 1) / 100)::integer end as part_by_rows
      from (
        select q.id, q.vps_id, q.priority, private.execution_json(q) as body
        from public.trade_execution_queue q
        where q.id = any (p_executions) and q.offered_at is not null
        offset 0  -- each is rendered once
      ) rendered
      window w as (partition by rendered.vps_id order by rendered.priority, rendered.id)
    ) numbered
    group by numbered.vps_id, numbered.part_by_bytes, numbered.part_by_rows
    order by numbered.vps_id, numbered.part_by_rows, numbered.part_by_bytes
  loop
    if v_message.vps_id = p_caller then
      v_own := v_message.bodies;
    else
      perform realtime.send(jsonb_build_object('executions', v_message.bodies), 'executions', 'vps:' || v_message.vps_id, true);
    end if;
  end loop;
  return v_own;
end $$;
