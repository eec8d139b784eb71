-- The planner, level-triggered half: what live links hold is brought to what their master holds now.
-- Closes, reductions, cancels and SL/TP are planned here from the state alone; opens and increases are decided once, in 44_decide.sql.

-- A link with everything a plan needs to know of it. "doomed": nothing of it shall be left. "frozen": its copier, its account or all trading is off.
-- Look-ups by id say "ended_at is null", look-ups by follower "state = 'live'"; of positions, "lots > 0" and "closed_at is null" likewise: so
-- each fits only the index that it needs, whatever Postgres believes of a table that was empty when it planned.
create view private.link_states with (security_invoker = true) as
select l.*, c.mode as copier_mode, c.removal, fa.mode as account_mode, fa.copy_state,
  coalesce(fa.copy_state = 'flattening' or l.created_at <= fa.flattened_at or m.closed_at is not null or m.side <> l.master_side
    or c.removal = 'close_now'  -- gracefully: what has not filled yet is not waited for, nor what fills after all was over
    or c.removal = 'close_gracefully' and (c.removed_at is not null or held.order_lots > 0 and held.position_lots = 0), false)
    or newer.generation is not null as doomed,
  (fa.copy_state <> 'flattening' and l.created_at > coalesce(fa.flattened_at, '-infinity')
    and (c.mode = 'off' and c.removal is null or fa.copy_state = 'off'))
    or (select t.state from public.trading_switch t where t.one) = 'off' as frozen,
  m.kind as master_kind, m.lots as master_lots, m.last_event_id as master_event_id, m.detected_at as master_detected_at,
  m.price as master_price, m.expires_at as master_expires_at,
  s.lots_min, s.lots_step,
  private.wanted_level(c.sl_mode, case when c.reverse then m.tp else m.sl end, m.price, held.open_price,
    case l.side when 'buy' then -1 else 1 end, c.sl_points, c.max_sl_points, s.digits, s.tick_size) as wanted_sl,
  private.wanted_level(c.tp_mode, case when c.reverse then m.sl else m.tp end, m.price, held.open_price,
    case l.side when 'buy' then 1 else -1 end, c.tp_points, null, s.digits, s.tick_size) as wanted_tp,
  private.on_tick(m.price, s.tick_size) as wanted_price,
  held.position_lots, held.order_lots, held.legs,
  flight.executions, flight.opens, flight.waiting, flight.reducing, flight.open_step
from public.position_links l
join public.copiers c on c.id = l.copier_id
join public.trading_accounts fa on fa.id = l.follower_account_id
left join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
left join public.account_symbols s on s.account_id = l.follower_account_id and s.name = l.symbol
left join lateral (
  select n.generation from public.position_links n
  where n.master_account_id = l.master_account_id and n.master_ticket = l.master_ticket and n.copier_id = l.copier_id
    and n.generation > l.generation limit 1
) newer on true
cross join lateral (
  select coalesce(sum(g.lots) filter (where g.kind = 'position'), 0) as position_lots,
    coalesce(sum(g.lots) filter (where g.kind = 'order'), 0) as order_lots, count(*) as legs,
    sum(g.lots * g.price) filter (where g.kind = 'position')
      / nullif(sum(g.lots) filter (where g.kind = 'position' and g.price is not null), 0) as open_price
  from private.link_legs g where g.link_id = l.id
) held
cross join lateral (
  select count(*) as executions, count(*) filter (where q.action in ('open', 'increase', 'place')) as opens,
    count(*) filter (where q.status = 'retrying') as waiting,
    coalesce(sum(q.lots) filter (where q.action = 'reduce'), 0) as reducing,
    max(q.step_id) filter (where q.action in ('open', 'increase', 'place')) as open_step
  from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null
) flight;
comment on view private.link_states is 'Links with their master''s mirror, their copier, what they hold and what is in flight for them.';

-- Volume that a link shall hold after its master was reduced: the share of what it was opened with, exact, floored to the step;
-- never rounded to nothing while the master is open (residual_hold).
create function private.target_lots(p_base numeric, p_master_now numeric, p_master_base numeric, p_step numeric, p_min numeric, p_held numeric)
returns numeric
language plpgsql immutable set search_path = '' as $$
begin
  return least(p_held, greatest(div(p_base * p_master_now, p_master_base * p_step) * p_step, p_min));
end $$;

-- A reduction to what the master had when it was planned (p_master_lots) has been carried out: what the master adds to that, and be it while the
-- reduction was under way, is an increase. p_seen: what was seen when it was planned; what was decided since is seen still.
create function private.see_reduction(p_link bigint, p_master_lots numeric, p_seen numeric default null) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set seen_master_lots = p_master_lots + greatest(0, l.seen_master_lots - coalesce(p_seen, l.seen_master_lots))
  from public.account_symbols s, (select coalesce(sum(g.lots), 0) as lots from private.link_legs g where g.link_id = p_link) held
  where l.id = p_link and l.ended_at is null and l.seen_master_lots > p_master_lots and l.base_lots is not null
    and s.account_id = l.follower_account_id and s.name = l.symbol
    and held.lots <= private.target_lots(l.base_lots, p_master_lots, l.base_master_lots, s.lots_step, s.lots_min, held.lots);
end $$;

-- Books what a follower's own mirror shows to links that have nothing in flight: trimmed, closed or filled without us. A row of the mirror is
-- never older than the last report on its ticket, for that report wrote it.
create function private.book_links(p_links bigint[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_links bigint[];
begin
  -- as a rule mirror and links agree
  select array_agg(l.id) into v_links from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and (l.base_lots is null or exists (
    select 1 from private.link_legs g join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket
    where g.link_id = l.id and (p.lots < g.lots or p.kind <> g.kind)));
  if v_links is null then return; end if;

  with looks as materialized (
    select g.link_id, g.ticket, p.lots, p.kind, p.price
    from public.position_links l
    join public.trading_accounts a on a.id = l.follower_account_id and a.mode = 'hedging'
    cross join lateral (select * from private.link_legs i where i.link_id = l.id offset 0) g  -- never by all legs there are
    join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket
    where l.id = any (v_links) and l.ended_at is null and (p.lots < g.lots or p.kind <> g.kind)
      and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null and q.status <> 'retrying')
  ), gone as (
    delete from private.link_legs g using looks k where g.link_id = k.link_id and g.ticket = k.ticket and k.lots = 0
  )
  update private.link_legs g set lots = least(g.lots, k.lots), kind = k.kind, price = k.price
  from looks k where g.link_id = k.link_id and g.ticket = k.ticket and k.lots > 0;

  -- an order of ours that filled by itself: from now on there is a volume to reduce from
  update public.position_links l set base_lots = h.lots, base_master_lots = l.seen_master_lots
  from (select link_id, sum(lots) as lots from private.link_legs where link_id = any (v_links) and kind = 'position' group by link_id) h
  where h.link_id = l.id and l.base_lots is null and l.ended_at is null
    and not exists (select 1 from public.trade_execution_queue q where q.link_id = l.id and q.finalized_at is null);
end $$;

-- A copy of a pending order may be several orders, which fill one after the other: each adds to the volume that is reduced from. What the first
-- one begins is above.
create function private.add_filled_order() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set base_lots = l.base_lots + new.lots where l.id = new.link_id and l.base_lots is not null;
  return null;
end $$;
create trigger an_order_has_filled after update of kind on private.link_legs
  for each row when (old.kind = 'order' and new.kind = 'position') execute function private.add_filled_order();

-- Ends links of netting accounts that hold nothing, want nothing and have nothing in flight; plan_links ends the others itself.
create function private.end_links(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_closed bigint[];
  v_given_up bigint[];
begin
  -- read into arrays first: an update joined to the view would compute it once per link and link
  select array_agg(s.id) filter (where s.doomed), array_agg(s.id) filter (where not s.doomed) into v_closed, v_given_up
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.legs = 0 and s.executions = 0 and s.wanted_lots is null
    and (s.account_mode = 'hedging' or not exists (  -- the deal in flight may be this link's, too
      select 1 from public.trade_execution_queue q
      where q.account_id = s.follower_account_id and q.symbol = s.symbol and q.in_flight));
  if v_closed is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = 'closed' where l.id = any (v_closed);
  end if;
  if v_given_up is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null, reason = case when l.stopped_out then 'stop_out' else 'closed_by_follower' end
    where l.id = any (v_given_up);
  end if;
end $$;

-- What was refused waits for its time or for a changed wish: these links are wanted otherwise now, so their closes and reductions wait no longer.
create function private.wait_no_longer(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.position_links l set replan_at = p_now where l.id = any (p_links) and l.ended_at is null and l.close_failures > 0 and l.replan_at > p_now;
  update private.net_ledgers n set replan_at = p_now
  from public.position_links l
  where l.id = any (p_links) and l.ended_at is null and n.account_id = l.follower_account_id and n.symbol = l.symbol and n.failures > 0
    and n.replan_at > p_now;
end $$;

-- After a report most links are as they should be, or over. Ends those that are over and returns those that the planner has to look at; a link
-- left out is one for which it would do nothing.
create function private.settle(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_over bigint[];
  v_calm bigint[];
begin
  select array_agg(s.id) filter (where s.legs = 0), array_agg(s.id) filter (where s.legs > 0) into v_over, v_calm
  from private.link_states s
  where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.executions = 0 and s.wanted_lots is null
    and not s.frozen and s.replan_at is null and case when s.legs = 0 then s.doomed and s.master_lots = 0
      else not s.doomed and s.master_kind = 'position' and s.order_lots = 0 and s.master_lots = s.seen_master_lots
        and s.position_lots - private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) < s.lots_min
        and (s.wanted_sl, s.wanted_tp) is not distinct from (s.asked_sl, s.asked_tp)
        and not exists (
          select 1 from private.link_legs g join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket
          where g.link_id = s.id and (p.lots < g.lots or p.kind <> g.kind)) end;
  if v_over is not null then
    update public.position_links l set state = 'ended', ended_at = p_now, reason = 'closed' where l.id = any (v_over);
  end if;
  return array(select id from unnest(p_links) as u (id) where id <> all (coalesce(v_over, '{}') || coalesce(v_calm, '{}')));
end $$;

-- Steps that wait for another attempt are in nobody's hands. Those that are no longer what is wanted end here, so that they cannot hold up
-- what is: on a doomed link everything but its close, else a change or reduction to another value. Netting symbols: 46_netting.sql.
create function private.drop_waiting(p_links bigint[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  with dropped as (
    update public.trade_execution_queue q set status = 'cancelled', finalized_at = p_now, updated_at = p_now,
      reason = case when q.action in ('open', 'increase', 'place') then 'already_closed' else 'superseded' end
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and q.link_id = s.id and q.finalized_at is null
      and q.status = 'retrying' and q.parts is null
      and case
        -- frozen by its copier or account: nothing is done until it thaws, then it is planned anew (while all trading is off, nothing is requeued)
        when s.frozen and q.action not in ('open', 'increase', 'place') and private.trading_state() <> 'off' then true
        when s.doomed then q.action not in ('close', 'cancel')
        when q.action = 'close' then true  -- its copier is to go gracefully after all, or its master was not closed
        when q.action = 'modify' then (s.asked_sl, s.asked_tp) is distinct from (s.wanted_sl, s.wanted_tp)
        when q.action = 'amend' then (s.asked_price, s.asked_sl, s.asked_tp) is distinct from (s.wanted_price, s.wanted_sl, s.wanted_tp)
        when q.action = 'reduce' then s.waiting = s.executions and not s.position_lots - s.reducing
          - private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) between 0 and s.lots_min - s.lots_step
        else false end
    returning q.link_id, q.account_id, q.ticket, q.action, s.legs
  )
  -- levels and prices that never came to stand count as not asked for. Where the copy has other positions, on which they may stand, nobody
  -- knows what was asked last: NaN, which is never what is wanted
  update public.position_links l set asked_sl = case when d.legs = 1 then p.sl else 'NaN' end, asked_tp = case when d.legs = 1 then p.tp else 'NaN' end,
    asked_price = case when d.action = 'modify' then l.asked_price when d.legs = 1 then p.price else 'NaN' end
  from dropped d join public.positions p on p.account_id = d.account_id and p.ticket = d.ticket
  where l.id = any (p_links) and d.action in ('modify', 'amend') and l.id = d.link_id;
end $$;

-- Records the pairs that new executions explain; a reason given earlier because the link was busy gives way.
create function private.explain_executions(p_executions bigint[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
  select distinct on (q.event_id, q.copier_id) q.event_id, q.copier_id, q.user_id, q.link_id, q.id
  from public.trade_execution_queue q
  where q.id = any (p_executions) and q.event_id is not null and q.copier_id is not null
  order by q.event_id, q.copier_id, q.id
  on conflict (event_id, copier_id) do update
    set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null
    where o.execution_id is null;
end $$;

-- Plans one step for every link that needs one and has none in flight; a close is also planned beside an open step.
-- One statement for any number of links. Returns the new executions. Longer than forty lines because it is that statement.
create function private.plan_links(p_links bigint[], p_now timestamptz) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
  v_new bigint[];
  v_orders bigint[];
  v_reduced bigint[];
  v_volumes numeric[];
  v_send_within interval := private.send_within();
begin
  if exists (
    select 1 from public.trade_execution_queue q where q.link_id = any (p_links) and q.finalized_at is null and q.status = 'retrying')
  then
    perform private.drop_waiting(p_links, p_now);
  end if;
  if exists (select 1 from public.position_links l where l.id = any (p_links) and l.ended_at is null and l.asked_price is not null) then
    v_orders := private.mind_orders(p_links, p_now);
  end if;
  -- a reduction of the master counts as seen once it is carried out: an increase back to the old volume is then none
  if exists (
    select 1 from public.position_links l
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket and m.lots > 0
    where l.id = any (p_links) and l.ended_at is null and m.lots < l.seen_master_lots)
  then
    select array_agg(s.id), array_agg(s.master_lots) into v_reduced, v_volumes from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging' and s.master_kind = 'position' and not s.doomed
      and s.master_lots < s.seen_master_lots and s.base_lots is not null and s.executions = 0
      and s.position_lots <= private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots);
    if v_reduced is not null then
      update public.position_links l set seen_master_lots = u.lots
      from unnest(v_reduced, v_volumes) as u (id, lots) where l.id = any (v_reduced) and l.id = u.id;
    end if;
  end if;

  with states as (  -- no column more than is needed below: each costs in every step
    select s.id, s.copier_id, s.user_id, s.follower_account_id, s.master_account_id, s.symbol, s.side, s.wanted_lots,
      s.doomed, s.frozen, s.close_failures, s.modify_failures, s.replan_at, s.asked_price, s.asked_sl, s.asked_tp, s.asked_expires_at,
      s.wanted_price, s.wanted_sl, s.wanted_tp, s.master_kind, s.master_lots, s.master_event_id, s.master_detected_at, s.master_price,
      s.master_expires_at, s.lots_min, s.position_lots, s.order_lots, s.legs, s.executions, s.opens, s.open_step,
      private.target_lots(s.base_lots, s.master_lots, s.base_master_lots, s.lots_step, s.lots_min, s.position_lots) as target
    from private.link_states s
    where s.id = any (p_links) and s.ended_at is null and s.account_mode = 'hedging'
    offset 0  -- a fence: each row is computed once
  ), choices as materialized (
    select s.*, case
        when s.frozen then null
        when s.doomed and s.executions > 0 and s.executions = s.opens then 'close_beside'
        when s.executions > 0 then null
        when s.doomed and s.legs > 0 and (s.close_failures = 0 or s.replan_at is null or s.replan_at <= p_now) then 'close'
        when s.doomed then null
        when s.master_kind = 'position' and s.position_lots - s.target >= s.lots_min
          and (s.close_failures = 0 or s.replan_at is null or s.replan_at <= p_now) then 'reduce'
        when s.master_kind = 'order' and s.order_lots > 0
          and ((s.wanted_price, s.wanted_sl, s.wanted_tp, s.master_expires_at)
              is distinct from (s.asked_price, s.asked_sl, s.asked_tp, s.asked_expires_at)
            or (s.modify_failures between 1 and 2 and s.replan_at <= p_now)) then 'amend'
        when s.position_lots > 0 and ((s.wanted_sl, s.wanted_tp) is distinct from (s.asked_sl, s.asked_tp)
          or (s.modify_failures between 1 and 2 and s.replan_at <= p_now)) then 'modify'
      end as choice
    from states s
  ), steps as materialized (
    select c.*, nextval('public.trade_execution_queue_id_seq') as step_id,
      case when c.choice in ('modify', 'amend') then private.levels_to_ask(c.follower_account_id, c.symbol, c.side,
        case when c.choice = 'amend' then c.wanted_price end, c.wanted_sl, c.wanted_tp, c.modify_failures, p_now) end as levels
    from choices c where c.choice is not null
  ), over as materialized (  -- holds nothing, wants nothing, has nothing in flight
    select c.id, c.doomed from choices c where c.choice is null and c.legs = 0 and c.executions = 0 and c.wanted_lots is null
  ), ended as (
    update public.position_links l set state = 'ended', ended_at = p_now, replan_at = null,
      reason = case when o.doomed then 'closed' when l.stopped_out then 'stop_out' else 'closed_by_follower' end
    from over o where l.id = o.id and l.id = any (array(select i.id from over i))
  ), asked as (
    update public.position_links l set asked_sl = t.wanted_sl, asked_tp = t.wanted_tp,
      asked_price = case when t.choice = 'amend' then t.wanted_price else l.asked_price end,
      asked_expires_at = case when t.choice = 'amend' then t.master_expires_at else l.asked_expires_at end,
      order_due_at = case when t.choice = 'amend' then t.master_expires_at + interval '1 s' else l.order_due_at end,
      modify_failures = case when (t.wanted_price, t.wanted_sl, t.wanted_tp) is distinct from
        (case when t.choice = 'amend' then l.asked_price else t.wanted_price end, l.asked_sl, l.asked_tp) then 0 else l.modify_failures end,
      replan_at = null, warnings = private.with_level_warnings(l.warnings, (t.levels).warnings)
    from steps t
    where l.id = t.id and t.choice in ('modify', 'amend') and l.id = any (array(select i.id from steps i where i.choice in ('modify', 'amend')))
  ), placed as (
    insert into public.trade_execution_queue (step_id, after_id, link_id, lane, copier_id, user_id, account_id, master_account_id, event_id,
      action, priority, symbol, side, order_type, lots, target_lots, ticket, price, sl, tp, master_price, master_lots, expires_at,
      warnings, vps_id, epoch, offered_at, send_before, detected_at, queued_at, updated_at)
    select t.step_id, o.after_id, t.id, t.id::text, t.copier_id, t.user_id, t.follower_account_id, t.master_account_id, t.master_event_id,
      o.action, case o.action when 'reduce' then 20 when 'modify' then 30 when 'amend' then 30 else 10 end,
      t.symbol, t.side, 'market', o.lots, o.target_lots, o.ticket, case when o.action = 'amend' then t.wanted_price end,
      (t.levels).sent_sl, (t.levels).sent_tp, t.master_price, t.master_lots, t.master_expires_at, coalesce((t.levels).warnings, '{}'), v.id, case when v.id is not null then a.epoch end,
      case when v.id is not null then p_now end,
      coalesce(least(greatest(p_now, a.begins_at) + v_send_within, v.lease_expires_at), p_now), t.master_detected_at, p_now, p_now
    from steps t
    cross join lateral (  -- an order for each leg that the step concerns; beside an open, one more for whatever that leaves behind
      select g.ticket, null::bigint as after_id,
        case when t.choice in ('close', 'close_beside') then case g.kind when 'position' then 'close' else 'cancel' end else t.choice end as action,
        case t.choice when 'reduce' then least(g.lots, t.position_lots - t.target - g.newer_lots) else g.lots end as lots,
        case when t.choice in ('close', 'close_beside') then 0::numeric
          when t.choice = 'reduce' then g.lots - least(g.lots, t.position_lots - t.target - g.newer_lots) end as target_lots
      from (
        select i.ticket, i.kind, i.lots, sum(i.lots) over (order by i.ticket desc) - i.lots as newer_lots
        from private.link_legs i where i.link_id = t.id
      ) g
      where t.choice in ('close', 'close_beside')
        or t.choice = 'reduce' and g.kind = 'position' and t.position_lots - t.target > g.newer_lots  -- the newest legs give first
          and t.position_lots - t.target - g.newer_lots >= least(g.lots, t.lots_min)  -- less is taken off a position only with all of it
        or t.choice = 'modify' and g.kind = 'position' or t.choice = 'amend' and g.kind = 'order'
      union all
      select null, t.open_step, 'close', 0, 0 where t.choice = 'close_beside'
    ) o
    left join public.account_vps_assignments a on a.account_id = t.follower_account_id
    left join public.vps_instances v on v.id = a.vps_id and v.retired_at is null and v.lease_expires_at > p_now
    returning id, event_id, copier_id, user_id, link_id
  ), copied as (
    insert into public.copy_outcomes as o (event_id, copier_id, user_id, link_id, execution_id)
    select distinct on (p.event_id, p.copier_id) p.event_id, p.copier_id, p.user_id, p.link_id, p.id
    from placed p where p.event_id is not null order by p.event_id, p.copier_id, p.id
    on conflict (event_id, copier_id) do update
      set execution_id = excluded.execution_id, link_id = excluded.link_id, reason = null, detail = null where o.execution_id is null
  )
  select array_agg(id) into v_new from placed;
  if v_orders is not null then
    perform private.explain_executions(v_orders);
    v_new := nullif(coalesce(v_new, '{}') || v_orders, '{}');
  end if;
  return v_new;
end $$;
