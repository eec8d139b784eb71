-- Trade events: what happened on an account, as its agent reported it; and the outcome of each for every copier.

create table public.trade_events (
  id bigint generated always as identity,
  account_id uuid not null,
  user_id uuid not null,
  session bigint,
  seq bigint,
  event_key text,
  source text not null default 'agent',
  type text not null,
  status text not null,
  code text,
  error text,
  ticket text,
  kind text,
  symbol text,
  side text,
  lots numeric,
  previous_lots numeric,
  deal_price numeric,
  payload jsonb,
  dealt_at timestamptz,
  detected_at timestamptz,
  unchanged_at timestamptz,
  received_at timestamptz not null default clock_timestamp(),
  requested_at timestamptz not null default statement_timestamp(),
  locked_at timestamptz,
  detect_ms numeric generated always as (case
    when detected_at >= dealt_at then extract(epoch from detected_at - dealt_at) * 1000 end) stored,
  request_ms numeric generated always as (case
    when requested_at >= detected_at then extract(epoch from requested_at - detected_at) * 1000 end) stored,
  lock_ms numeric generated always as (case
    when locked_at >= requested_at then extract(epoch from locked_at - requested_at) * 1000 end) stored,
  primary key (id, received_at),
  constraint status_is_known check (status in ('accepted', 'history', 'refused')),
  constraint source_is_known check (source in ('agent', 'snapshot', 'report')),
  constraint refused_says_why check (status <> 'refused' or (code is not null and error is not null))
) partition by range (received_at);
comment on table public.trade_events is
  'Every trade event. Partitions (one a day) are in schema private. private.event_keys makes events idempotent, '
  'because a partitioned table cannot have that key.';
comment on column public.trade_events.status is
  'accepted = applied and planned; history = older than what is known, only stored; refused = malformed';
comment on column public.trade_events.source is
  'agent = reported by itself; snapshot = found in a snapshot; report = made by one of our copies on an account that '
  'is itself a master';
comment on column public.trade_events.kind is 'with ticket: what changed, an order or a position';
comment on column public.trade_events.previous_lots is 'lots before the change; null when the position was not known';
comment on column public.trade_events.deal_price is
  'price of the deal that made the change, which copies are compared with; null = not reported, or no deal (modified, '
  'ordered, amended)';
comment on column public.trade_events.dealt_at is 'when the master''s broker made the deal; null = not reported';
comment on column public.trade_events.detected_at is 'when the account''s agent saw the change';
comment on column public.trade_events.received_at is 'when the row was written; the day''s partition is chosen by it';
comment on column public.trade_events.requested_at is 'when the database received the call that reported the event';
comment on column public.trade_events.locked_at is
  'when the call held the locks of all accounts concerned, and planning began';
comment on column public.trade_events.detect_ms is
  'stage detect: from the deal at the broker until the agent saw it; null = not reported, or the broker''s clock is '
  'ahead';
comment on column public.trade_events.request_ms is
  'stage request: from then until the database received the call; null = the clocks disagree';
comment on column public.trade_events.lock_ms is 'stage lock: from then until all locks were held';
create index trade_events_of_account on public.trade_events (account_id, received_at desc);
create index trade_events_received on public.trade_events (received_at);
create index trade_events_of_user on public.trade_events (user_id, received_at desc);
alter table public.trade_events enable row level security;
create policy "own trade events are readable" on public.trade_events for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.trade_events to authenticated, service_role;

create table private.event_keys (
  account_id uuid not null,
  session bigint not null,
  seq bigint not null,
  event_id bigint not null,
  received_at timestamptz not null default clock_timestamp(),
  primary key (account_id, session, seq)
);
comment on table private.event_keys is
  'One row per numbered event, by which a second delivery of the event is found. Deleted after 7 days.';
create index event_keys_received on private.event_keys (received_at);
alter table private.event_keys enable row level security;

-- Makes partitions for yesterday to three days ahead, and drops those past the retention. maintain() calls it.
create function private.make_partitions() returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_day date;
  v_name text;
  v_keep integer := coalesce((private.setting('retention_days.trade_events') #>> '{}')::integer, 90);
begin
  for v_day in select generate_series(current_date - 1, current_date + 3, interval '1 day')::date loop
    v_name := 'trade_events_' || to_char(v_day, 'YYYY_MM_DD');
    if to_regclass('private.' || v_name) is null then
      execute format('create table private.%I partition of public.trade_events for values from (%L) to (%L)',
        v_name, v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
      execute format('alter table private.%I enable row level security', v_name);
      execute format('revoke all on private.%I from public, anon, authenticated, service_role', v_name);
    end if;
  end loop;
  for v_name in
    select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'public.trade_events'::regclass
      and c.relname < 'trade_events_' || to_char(current_date - v_keep, 'YYYY_MM_DD')
  loop
    execute format('drop table private.%I', v_name);
  end loop;
end $$;

select private.make_partitions();

create table public.copy_outcomes (
  event_id bigint not null,
  copier_id uuid not null,
  user_id uuid not null,
  link_id bigint,
  execution_id bigint,
  reason text,
  detail text,
  decided_at timestamptz not null default clock_timestamp(),
  primary key (event_id, copier_id),
  constraint a_copy_or_one_reason check ((execution_id is null) <> (reason is null))
);
comment on table public.copy_outcomes is
  'The outcome of a trade event for a copier: the first execution of the step that copies it, or exactly one reason of '
  'docs/errors.md.';
create index copy_outcomes_of_user on public.copy_outcomes (user_id, decided_at desc);
create index copy_outcomes_decided on public.copy_outcomes (decided_at);
alter table public.copy_outcomes enable row level security;
create policy "own outcomes are readable" on public.copy_outcomes for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
grant select on public.copy_outcomes to authenticated, service_role;

create function private.record_event(
  p_account public.trading_accounts, p_id bigint, e jsonb, p_source text, p_type text, p_status text, p_code text,
    p_error text, p_position jsonb,
  p_previous numeric, p_payload jsonb, p_now timestamptz
) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.trade_events (id, account_id, user_id, session, seq, event_key, source, type, status, code, error,
    ticket, kind, symbol, side,
    lots, previous_lots, deal_price, payload, dealt_at, detected_at, unchanged_at, locked_at)
  overriding system value
  values (p_id, p_account.id, p_account.user_id,
    case when pg_input_is_valid(e ->> 'session', 'bigint') then (e ->> 'session')::bigint end,
    case when pg_input_is_valid(e ->> 'seq', 'bigint') then (e ->> 'seq')::bigint end,
    (e ->> 'session') || ':' || (e ->> 'seq'), p_source, coalesce(p_type, left(e ->> 'type', 20), '?'), p_status,
      p_code, p_error,
    left(p_position ->> 'ticket', 64), left(p_position ->> 'kind', 20), left(p_position ->> 'symbol', 64),
    p_position ->> 'side',
    case when private.is_number(p_position -> 'lots') then (p_position ->> 'lots')::numeric end, p_previous,
    -- a new position has its own open price
    case when p_status <> 'refused' then coalesce((e ->> 'deal_price')::numeric, case
      when p_type = 'opened' then (p_position ->> 'price')::numeric end) end,
    p_payload, case when p_status <> 'refused' then (e ->> 'dealt_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'detected_at', 'timestamptz') then (e ->> 'detected_at')::timestamptz end,
    case when pg_input_is_valid(e ->> 'unchanged_at', 'timestamptz') then (e ->> 'unchanged_at')::timestamptz end,
    p_now);
end $$;
