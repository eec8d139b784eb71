-- Outcomes: every (event, copier) pair ends in a copy or in one reason.

create type private.outcome as (
  event_id bigint,
  copier_id uuid,
  user_id uuid,
  link_id bigint,
  execution_id bigint,
  reason text,
  detail text
);
comment on type private.outcome is 'A row of copy_outcomes to be stored: a copy (execution_id) or its one reason.';

-- Stores what came of (event, copier) pairs; nothing else inserts into copy_outcomes. A stored copy stays. A stored
-- reason is replaced, because it was given while the link was busy, unless p_only_new is true. Of several outcomes of a
-- pair the first copy is stored, else the first reason. Without an event or a copier (null) there is no pair.
create function private.store_outcomes(p_outcomes private.outcome[], p_only_new boolean default false) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.copy_outcomes as stored (
    event_id,
    copier_id,
    user_id,
    link_id,
    execution_id,
    reason,
    detail)
  select distinct on (outcome.event_id, outcome.copier_id)
    outcome.event_id,
    outcome.copier_id,
    outcome.user_id,
    outcome.link_id,
    outcome.execution_id,
    outcome.reason,
    outcome.detail
  from unnest(p_outcomes) with ordinality as outcome
  where outcome.event_id is not null and outcome.copier_id is not null
  order by outcome.event_id, outcome.copier_id, outcome.execution_id, outcome.ordinality
  on conflict (event_id, copier_id) do update set
    link_id = excluded.link_id,
    execution_id = excluded.execution_id,
    reason = excluded.reason,
    detail = excluded.detail
  where stored.execution_id is null and not p_only_new;
end $$;

-- When the master's agent saw the change that an order of this action copies; null: no event of the master causes the
-- order, so it has no latency (a flattening, a correction of levels, what a pause held back). An event causes what is
-- planned in the call that brings it (p_changed_at: of the master's position), what had to wait for an earlier order
-- ("coalesced"), and what is planned anew after a refusal or a partial fill. p_event null: only the first.
create function private.seen_at(p_event bigint, p_copier uuid, p_action text, p_seen_at timestamptz,
  p_changed_at timestamptz, p_now timestamptz) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_changed_at = p_now then return p_seen_at; end if;
  return (
    select p_seen_at from public.copy_outcomes o
    left join public.trade_execution_queue x on x.id = o.execution_id
    where o.event_id = p_event and o.copier_id = p_copier
      and (o.reason = 'coalesced' or x.detected_at is not null and x.action = p_action
        and (x.status in ('rejected', 'expired', 'cancelled') or x.filled_lots < x.lots)));
end $$;

-- Gives its one reason to every (event, copier) pair that nothing else has explained. The arrays: ID, type and ticket
-- of accepted events.
create function private.explain_rest(p_account uuid, p_events bigint[], p_types text[], p_tickets text[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_trading text := private.trading_state();
begin
  if not exists (
    select 1 from unnest(p_events) as e (id)
    join public.copiers c on c.master_account_id = p_account and c.removed_at is null
    where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id))
  then
    return;
  end if;
  perform private.store_outcomes(array(
    select row(e.id, c.id, c.user_id, l.id, null, case
        -- a pause withholds openings and changes of copies; of a trade without a copy it withholds nothing more
        when withheld.by is not null and (l.state = 'live' or e.type in ('opened', 'ordered')) then withheld.by
        when l.id is null and c.removal is not null and e.type in ('opened', 'ordered') then 'copier_removed'
        when l.id is null and m.closed_at is not null and e.type in ('opened', 'ordered') then 'already_closed'
        when l.id is null and m.closed_at is null and exists (select from private.symbol_waits w
          where w.copier_id = c.id and w.master_account_id = p_account and w.ticket = e.ticket
            and w.kind = m.kind) then 'coalesced'
        when l.id is null and m.kind = 'order' and (not c.copy_pending or fa.mode = 'netting') then 'copied_at_fill'
        when l.id is null and (m.existing or m.first_seen_at < c.started_at)
          and (c.copy_pending and fa.mode = 'hedging' or m.filled_at is null or m.filled_at < c.started_at)
            then 'existing'
        when l.id is null then 'not_copied'
        when l.state = 'ended' and l.reason in ('closed_by_follower', 'stop_out', 'closed', 'master_never_filled',
          'order_expired', 'released') then l.reason
        when l.state = 'ended' then 'not_copied'
        when exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null)
          then 'coalesced'
        when e.type = 'reduced' then 'residual_hold'
        else 'no_change' end, null)::private.outcome
    from unnest(p_events, p_types, p_tickets) as e (id, type, ticket)
    join public.copiers c on c.master_account_id = p_account and c.removed_at is null
    join public.trading_accounts fa on fa.id = c.follower_account_id
    cross join lateral (
      select case
        when v_trading = 'off' then 'trading_stopped'
        when c.mode = 'off' and c.removal is null then 'copier_off'
        when fa.copy_state = 'off' then 'account_off' end as by
    ) withheld
    left join lateral (  -- an order and a position may carry this number; a filled order has none of the type's kind
      select i.* from public.positions i where i.account_id = p_account and i.ticket = e.ticket
      order by (i.kind = 'order') = (e.type in ('ordered', 'amended', 'cancelled')) desc limit 1
    ) m on true
    left join lateral (
      select pl.id, pl.state, pl.reason from public.position_links pl
      where pl.master_account_id = p_account and pl.master_ticket = e.ticket and pl.copier_id = c.id
        and pl.master_kind = m.kind
      order by pl.generation desc limit 1
    ) l on true
    where not exists (select 1 from public.copy_outcomes o where o.event_id = e.id and o.copier_id = c.id)), true);
end $$;
