-- The queue: the only place that inserts executions. Priority and deadline are computed here, and the outcomes of
-- their events are stored.

create type private.execution_draft as (
  step_id bigint,
  after_id bigint,
  link_id bigint,
  lane text,
  copier_id uuid,
  user_id uuid,
  account_id uuid,
  master_account_id uuid,
  event_id bigint,
  action text,
  symbol text,
  side text,
  order_type text,
  lots numeric,
  target_lots numeric,
  ticket text,
  price numeric,
  sl numeric,
  tp numeric,
  max_slippage_points integer,
  master_price numeric,
  master_lots numeric,
  expires_at timestamptz,
  comment text,
  parts jsonb,
  warnings text[],
  retry_until timestamptz,
  send_until timestamptz,
  detected_at timestamptz
);
comment on type private.execution_draft is
  'What a caller of private.queue_executions says of an execution. Null: a new step_id, the lane of its link, a market '
  'order, no comment, no warnings. send_until: an upper bound of its deadline. detected_at: when the master''s change '
  'was seen that caused it; null: no event of the master did (private.seen_at).';

-- What is sent first when several executions wait: ends, then reductions, then levels, then opens. A deal of a netting
-- symbol comes first if any of its parts reduces.
create function private.execution_priority(p_action text, p_parts jsonb) returns integer
language plpgsql immutable set search_path = '' as $$
begin
  if p_parts is not null then
    return case when exists (select 1 from jsonb_array_elements(p_parts) e where (e ->> 'lots')::numeric < 0)
      then 10 else 40 end;
  end if;
  return case when p_action in ('close', 'cancel') then 10 when p_action = 'reduce' then 20
    when p_action in ('modify', 'amend') then 30 else 40 end;
end $$;

-- Queues these executions, in their order. p_offered: an execution whose account is worked now is offered at once, in
-- the same write; the caller hands it out. Any other execution gets its deadline from private.offer. Each execution is
-- the outcome of its event for its copier, but for a deal with parts, whose caller explains each part. Returns the
-- execution numbers, or null.
create function private.queue_executions(p_drafts private.execution_draft[], p_offered boolean,
  p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_outcomes private.outcome[];
  v_send_within interval;
begin
  if p_drafts is null then return null; end if;
  v_send_within := private.send_within();
  with placed as (
    insert into public.trade_execution_queue (
      id,
      step_id,
      after_id,
      link_id,
      lane,
      copier_id,
      user_id,
      account_id,
      master_account_id,
      event_id,
      action,
      priority,
      symbol,
      side,
      order_type,
      lots,
      target_lots,
      ticket,
      price,
      sl,
      tp,
      max_slippage_points,
      master_price,
      master_lots,
      expires_at,
      comment,
      parts,
      warnings,
      retry_until,
      vps_id,
      epoch,
      offered_at,
      send_before,
      detected_at,
      queued_at,
      planned_at,
      updated_at)
    overriding system value
    select
      draft.id,
      coalesce(draft.step_id, draft.id),
      draft.after_id,
      draft.link_id,
      coalesce(draft.lane, draft.link_id::text),
      draft.copier_id,
      draft.user_id,
      draft.account_id,
      draft.master_account_id,
      draft.event_id,
      draft.action,
      private.execution_priority(draft.action, draft.parts),
      draft.symbol,
      draft.side,
      coalesce(draft.order_type, 'market'),
      draft.lots,
      draft.target_lots,
      draft.ticket,
      draft.price,
      draft.sl,
      draft.tp,
      draft.max_slippage_points,
      draft.master_price,
      draft.master_lots,
      draft.expires_at,
      coalesce(draft.comment, ''),
      draft.parts,
      coalesce(draft.warnings, '{}'),
      draft.retry_until,
      vps.id,
      case when vps.id is not null then assignment.epoch end,
      case when vps.id is not null then p_now end,
      case
        when not p_offered then p_now
        else private.send_deadline(p_now, assignment.begins_at, v_send_within, vps.lease_expires_at, draft.send_until)
      end,
      draft.detected_at,
      p_now,
      clock_timestamp(),
      p_now
    from (
      select listed.*, nextval('public.trade_execution_queue_id_seq') as id
      from unnest(p_drafts) with ordinality as listed
      order by listed.ordinality
    ) draft
    left join public.account_vps_assignments assignment on p_offered and assignment.account_id = draft.account_id
    left join public.vps_instances vps on vps.id = assignment.vps_id and vps.retired_at is null
      and vps.lease_expires_at > p_now
    order by draft.ordinality
    returning id, event_id, copier_id, user_id, link_id, parts
  )
  select
    array_agg(placed.id order by placed.id),
    array_agg(row(placed.event_id, placed.copier_id, placed.user_id, placed.link_id, placed.id, null,
      null)::private.outcome) filter (where placed.parts is null)
  into v_new, v_outcomes
  from placed;
  perform private.store_outcomes(v_outcomes);
  return v_new;
end $$;
