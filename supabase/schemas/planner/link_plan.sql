-- The plan of hedging followers: each live link is brought to what its master holds now. Closes, reductions, cancels
-- and levels are planned from the state alone; opens and increases are decided once, in decision.sql.

-- After a refusal the planner retries at replan_at or when the target changes. The target of these links has changed,
-- so their closes and reductions are retried now.
create function private.wait_no_longer(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set replan_at = p_now
  where l.id = any (p_links) and l.ended_at is null and l.close_failures > 0 and l.replan_at > p_now;
  update private.net_ledgers n set replan_at = p_now
  from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and n.account_id = l.follower_account_id and n.symbol = l.symbol
    and n.failures > 0
    and n.replan_at > p_now;
end $$;

-- After a report most links are either in their target state or over. Ends those that are over and returns those that
-- the planner must look at; for every other link it would do nothing.
create function private.links_to_plan(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_over bigint[];
  v_calm bigint[];
begin
  select array_agg(s.id) filter (where s.legs = 0), array_agg(s.id) filter (where s.legs > 0) into v_over, v_calm
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.executions = 0
    and s.wanted_lots is null
    and not s.frozen and s.replan_at is null and case when s.legs = 0 then s.doomed and s.master_lots = 0
      else not s.doomed and s.master_kind = 'position' and s.order_lots = 0 and s.master_lots = s.seen_master_lots
        and s.position_lots - s.target_lots < s.lots_min
        and not s.asked_unknown and (s.wanted_sl, s.wanted_tp) is not distinct from (s.asked_sl, s.asked_tp)
        and not exists (
          select 1 from private.link_legs g join public.positions p on p.account_id = g.account_id
            and p.ticket = g.ticket and p.kind = g.ticket_kind
          where g.link_id = s.id and (p.lots < g.lots or p.kind <> g.kind)) end;
  if v_over is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, reason = 'closed' where l.id = any (v_over);
  end if;
  return array(select id from unnest(p_links) as u (id)
    where id <> all (coalesce(v_over, '{}') || coalesce(v_calm, '{}')));
end $$;

-- Steps that wait for another attempt are not handed out. Steps that are no longer wanted end here, so that they do not
-- delay the wanted ones: on a doomed link everything except its close, else a change or reduction to another value. For
-- netting symbols see planner/net_plan.sql.
create function private.drop_waiting(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  with dropped as (
    update public.trade_execution_queue q set status = 'cancelled', finalized_at = p_now, updated_at = p_now,
      reason = case when q.action in ('open', 'increase', 'place') then 'already_closed' else 'superseded' end
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and q.link_id = s.id
      and q.finalized_at is null
      and q.status = 'retrying' and q.parts is null
      and case
        -- frozen by its copier or account: dropped now, planned again when it is no longer frozen (while all trading is
        -- off, nothing is requeued)
        when s.frozen and q.action not in ('open', 'increase', 'place') and private.trading_state() <> 'off' then true
        when s.doomed then q.action not in ('close', 'cancel')
        when q.action = 'close' then true  -- it is to be removed gracefully after all, or its master was not closed
        when q.action = 'modify' then s.asked_unknown
          or (s.asked_sl, s.asked_tp) is distinct from (s.wanted_sl, s.wanted_tp)
        when q.action = 'amend' then s.asked_unknown
          or (s.asked_price, s.asked_sl, s.asked_tp) is distinct from (s.wanted_price, s.wanted_sl, s.wanted_tp)
        when q.action = 'reduce' then s.waiting = s.executions and not s.position_lots - s.reducing
          - s.target_lots between 0 and s.lots_min - s.lots_step
        else false end
    returning q.link_id, q.account_id, q.ticket, q.action, s.legs
  )
  -- Levels and prices that the broker never took count as not asked for. Where the copy has other positions, which may
  -- have them, nobody knows what was asked last.
  update public.position_links l set
    asked_sl = case when d.legs = 1 then p.sl end,
    asked_tp = case when d.legs = 1 then p.tp end,
    asked_price = case when d.action = 'amend' and d.legs = 1 then p.price else l.asked_price end,
    asked_unknown = d.legs <> 1
  from dropped d
  join public.positions p on p.account_id = d.account_id and p.ticket = d.ticket and p.kind = private.kind_of(d.action)
  where l.id = any (p_links) and d.action in ('modify', 'amend') and l.id = d.link_id;
end $$;

-- Plans one step for every link that needs one and has none in flight; a close is also planned beside an open step. One
-- statement for any number of links, therefore longer than forty lines. Returns the new executions.
create function private.plan_links(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_orders bigint[];
  v_held bigint[];  -- whose levels wait for the end of a quiet window, or must not be set
  v_reduced bigint[];
  v_volumes numeric[];
  v_drafts private.execution_draft[];
begin
  if exists (
    select 1 from public.trade_execution_queue q
    where q.link_id = any (p_links) and q.finalized_at is null and q.status = 'retrying')
  then
    perform private.drop_waiting(p_links, p_now);
  end if;
  if private.any_quiet(p_now) then
    v_held := private.hold_levels(p_links, p_now);
  end if;
  if exists (select 1 from public.position_links l
    where l.id = any (p_links) and l.ended_at is null and l.asked_price is not null) then
    v_orders := private.handle_orders(p_links, p_now);
    v_held := v_held || array(select l.id from public.position_links l
      where l.id = any (p_links) and l.ended_at is null and l.asked_price is not null and l.master_kind = 'order'
        and l.reason is not null);  -- an order that must not follow its master
  end if;
  -- a reduction of the master counts as seen once it is carried out; increasing back to the old volume is then an
  -- increase
  if exists (
    select 1 from public.position_links l
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind and m.lots > 0
    where l.id = any (p_links) and l.ended_at is null and m.lots < l.seen_master_lots)
  then
    select array_agg(s.id), array_agg(s.master_lots) into v_reduced, v_volumes from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.master_kind = 'position'
      and not s.doomed
      and s.master_lots < s.seen_master_lots and s.base_lots is not null and s.executions = 0
      and s.position_lots <= s.target_lots;
    if v_reduced is not null then
      update public.position_links l set seen_master_lots = u.lots
      from unnest(v_reduced, v_volumes) as u (id, lots) where l.id = any (v_reduced) and l.id = u.id;
    end if;
  end if;

  -- The stages:
  --   states   what each link holds and must hold
  --   choices  what is to be done about it, if anything
  --   steps    what is done, with the number of its step and the levels to ask for
  --   over     links that hold nothing, want nothing and have nothing in flight
  --   ended    these links, ended
  --   asked    the levels and prices that the steps ask for, remembered
  --   drafts   the executions of the steps
  with states as (  -- no column more than is needed below: each costs in every step
    select
      state.id,
      state.copier_id,
      state.user_id,
      state.follower_account_id,
      state.master_account_id,
      state.symbol,
      state.side,
      state.wanted_lots,
      state.doomed,
      state.frozen,
      state.close_failures,
      state.modify_failures,
      state.replan_at,
      state.asked_price,
      state.asked_sl,
      state.asked_tp,
      state.asked_expires_at,
      state.asked_unknown,
      state.wanted_price,
      state.wanted_sl,
      state.wanted_tp,
      state.master_kind,
      state.master_lots,
      state.master_event_id,
      state.master_detected_at,
      state.master_changed_at,
      state.master_gone,
      state.master_price,
      state.master_expires_at,
      state.lots_min,
      state.position_lots,
      state.order_lots,
      state.legs,
      state.executions,
      state.opens,
      state.open_step,
      state.target_lots
    from private.link_states state
    where state.id = any (p_links) and state.ended_at is null and state.account_mode = 'hedging'
    offset 0  -- a fence: each row is computed once
  ), choices as materialized (
    select
      state.*,
      case
        when state.frozen then null
        when state.doomed and state.executions > 0 and state.executions = state.opens then 'close_beside'
        when state.executions > 0 then null
        when state.doomed and state.legs > 0
          and (state.close_failures = 0 or state.replan_at is null or state.replan_at <= p_now) then 'close'
        when state.doomed then null
        when state.master_kind = 'position' and state.position_lots - state.target_lots >= state.lots_min
          and (state.close_failures = 0 or state.replan_at is null or state.replan_at <= p_now) then 'reduce'
        when state.id = any (v_held) then null
        when state.master_kind = 'order' and state.order_lots > 0
          and (state.asked_unknown
            or (state.wanted_price, state.wanted_sl, state.wanted_tp, state.master_expires_at)
              is distinct from (state.asked_price, state.asked_sl, state.asked_tp, state.asked_expires_at)
            or state.modify_failures between 1 and 2 and state.replan_at <= p_now) then 'amend'
        when state.position_lots > 0
          and (state.asked_unknown
            or (state.wanted_sl, state.wanted_tp) is distinct from (state.asked_sl, state.asked_tp)
            or state.modify_failures between 1 and 2 and state.replan_at <= p_now) then 'modify'
      end as choice
    from states state
  ), steps as materialized (
    select
      choice.*,
      nextval('public.trade_execution_queue_id_seq') as step_id,
      case when choice.choice in ('modify', 'amend') then
        private.levels_to_ask(choice.follower_account_id, choice.symbol, choice.side,
          case when choice.choice = 'amend' then choice.wanted_price end, choice.wanted_sl, choice.wanted_tp,
          choice.modify_failures, p_now)
      end as levels,
      -- a close of what the master still holds, planned when no event of it came, has another cause: a flattening, a
      -- removal, a limit
      case
        when choice.master_changed_at = p_now or choice.choice not in ('close', 'close_beside')
          or choice.master_gone then choice.master_event_id
      end as event_id
    from choices choice
    where choice.choice is not null
  ), over as materialized (
    select choice.id, choice.doomed
    from choices choice
    where choice.choice is null and choice.legs = 0 and choice.executions = 0 and choice.wanted_lots is null
  ), ended as (
    update public.position_links link set
      state = 'ended',
      ended_at = p_now,
      replan_at = null,
      reason = case
        when over.doomed then 'closed'
        when link.stopped_out then 'stop_out'
        else 'closed_by_follower'
      end
    from over
    where link.id = over.id and link.id = any (array(select i.id from over i))
  ), asked as (
    update public.position_links link set
      asked_sl = step.wanted_sl,
      asked_tp = step.wanted_tp,
      asked_price = case when step.choice = 'amend' then step.wanted_price else link.asked_price end,
      asked_expires_at = case when step.choice = 'amend' then step.master_expires_at else link.asked_expires_at end,
      asked_unknown = false,
      order_due_at = case
        when step.choice = 'amend' then step.master_expires_at + interval '1 s'
        else link.order_due_at
      end,
      modify_failures = case
        when link.asked_unknown
          or (step.wanted_price, step.wanted_sl, step.wanted_tp) is distinct from
            (case when step.choice = 'amend' then link.asked_price else step.wanted_price end, link.asked_sl,
              link.asked_tp) then 0
        else link.modify_failures
      end,
      replan_at = null,
      warnings = private.with_level_warnings(link.warnings, (step.levels).warnings)
    from steps step
    where link.id = step.id and step.choice in ('modify', 'amend')
      and link.id = any (array(select i.id from steps i where i.choice in ('modify', 'amend')))
  ), drafts as (
    select
      step.step_id,
      an_order.after_id,
      step.id as link_id,
      step.id::text as lane,
      step.copier_id,
      step.user_id,
      step.follower_account_id as account_id,
      step.master_account_id,
      step.event_id,
      an_order.action,
      step.symbol,
      step.side,
      'market' as order_type,
      an_order.lots,
      an_order.target_lots,
      an_order.ticket,
      case when an_order.action = 'amend' then step.wanted_price end as price,
      (step.levels).sent_sl as sl,
      (step.levels).sent_tp as tp,
      null::integer as max_slippage_points,
      step.master_price,
      step.master_lots,
      step.master_expires_at as expires_at,
      null::text as comment,
      null::jsonb as parts,
      (step.levels).warnings,
      null::timestamptz as retry_until,
      null::timestamptz as send_until,
      private.seen_at(step.event_id, step.copier_id, an_order.action, step.master_detected_at, step.master_changed_at,
        p_now) as detected_at
    from steps step
    -- an order for each leg that the step concerns; beside an open, one more for whatever that leaves behind
    cross join lateral (
      select
        leg.ticket,
        null::bigint as after_id,
        case
          when step.choice not in ('close', 'close_beside') then step.choice
          when leg.kind = 'position' then 'close'
          else 'cancel'
        end as action,
        case step.choice
          when 'reduce' then least(leg.lots, step.position_lots - step.target_lots - leg.newer_lots)
          else leg.lots
        end as lots,
        case
          when step.choice in ('close', 'close_beside') then 0::numeric
          when step.choice = 'reduce' then
            leg.lots - least(leg.lots, step.position_lots - step.target_lots - leg.newer_lots)
        end as target_lots
      from (
        select i.ticket, i.kind, i.lots, sum(i.lots) over (order by i.ticket desc) - i.lots as newer_lots
        from private.link_legs i where i.link_id = step.id
      ) leg
      where step.choice in ('close', 'close_beside')
        -- the newest legs are reduced first
        or step.choice = 'reduce' and leg.kind = 'position'
          and step.position_lots - step.target_lots > leg.newer_lots
          -- a reduction smaller than the minimum is only possible by closing the whole position
          and step.position_lots - step.target_lots - leg.newer_lots >= least(leg.lots, step.lots_min)
        or step.choice = 'modify' and leg.kind = 'position'
        or step.choice = 'amend' and leg.kind = 'order'
      union all
      select null, step.open_step, 'close', 0, 0 where step.choice = 'close_beside'
    ) an_order
  )
  select array_agg(draft::private.execution_draft) into v_drafts from drafts draft;
  v_new := private.queue_executions(v_drafts, true, p_now);
  if v_orders is not null then
    v_new := nullif(coalesce(v_new, '{}') || v_orders, '{}');
  end if;
  return v_new;
end $$;
