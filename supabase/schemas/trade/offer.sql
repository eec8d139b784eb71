-- Offers: how an execution is handed to the agent of its account.

-- An execution as agents read it (docs/protocol.md). Its queued_at is that of the present attempt: a retry after a move
-- to another VPS was never handed out before, and an agent that took it for an old order would look for it for ever and
-- never send it. Its detected_at tells an agent two orders apart to which a restored database gave one number; an order
-- that no event of a master caused has the time at which it was queued.
create function private.execution_json(p public.trade_execution_queue) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'id', p.id::text, 'attempt', p.attempt, 'account_id', p.account_id, 'epoch', p.epoch, 'link_id', p.link_id::text,
    'lane', p.lane, 'step_id', p.step_id::text, 'after_id', p.after_id::text, 'action', p.action, 'priority',
      p.priority,
    'symbol', p.symbol, 'side', p.side, 'order_type', p.order_type, 'lots', trim_scale(p.lots)::text,
    'target_lots', trim_scale(p.target_lots)::text, 'ticket', p.ticket, 'price', p.price::text, 'sl', p.sl::text,
    'tp', p.tp::text, 'max_slippage_points', p.max_slippage_points, 'master_price', p.master_price::text,
    'expires_at', p.expires_at, 'comment', p.comment, 'investigate', p.status = 'unknown',
    'detected_at', coalesce(p.detected_at, p.queued_at), 'queued_at', coalesce(p.offered_at, p.queued_at),
    'send_before', p.send_before);
end $$;

create function private.send_within() returns interval
language plpgsql stable set search_path = '' as $$
begin
  return make_interval(secs => (private.setting('send_within_ms') #>> '{}')::numeric / 1000);
end $$;

-- Until when an agent may send what it is given now: for a while, no longer than its lease, and not after p_latest
-- (null: no such bound). An account that moves begins later, when its last agent's lease is over.
create function private.send_deadline(p_now timestamptz, p_begins_at timestamptz, p_send_within interval,
  p_lease_ends timestamptz, p_latest timestamptz) returns timestamptz
language plpgsql immutable set search_path = '' as $$
begin
  return least(greatest(p_now, p_begins_at) + p_send_within, p_lease_ends, p_latest);
end $$;

-- Hands executions to the agents that work their accounts: sets epoch and deadline, broadcasts to other VPSes (at most
-- 100 executions and 200 KB per message), and returns the array for the calling VPS. Executions of accounts that nobody
-- works are not handed out.
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
  -- most were handed out when they were planned
  if exists (select 1 from public.trade_execution_queue q where q.id = any (p_executions) and q.offered_at is null) then
    v_send_within := private.send_within();
    update public.trade_execution_queue q
    set vps_id = v.id, epoch = a.epoch, offered_at = p_now,
        send_before = private.send_deadline(p_now, a.begins_at, v_send_within, v.lease_expires_at,
          case when private.opens(q) then coalesce(case
            when q.attempt > 1 then q.retry_until end, q.queued_at) + v_send_within end)
    from public.account_vps_assignments a
    join public.vps_instances v on v.id = a.vps_id
    where q.id = any (p_executions) and q.offered_at is null and a.account_id = q.account_id and v.retired_at is null
      and v.lease_expires_at > p_now;
  end if;

  for v_message in
    select numbered.vps_id, jsonb_agg(numbered.body order by numbered.priority, numbered.id) as bodies
    from (
      select rendered.*,
        case when rendered.vps_id = p_caller then 0
          else (sum(octet_length(rendered.body::text)) over w / 190000)::integer end as part_by_bytes,
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
      perform realtime.send(jsonb_build_object('executions', v_message.bodies, 'planned_at',
        private.rfc3339(clock_timestamp())), 'executions', 'vps:' || v_message.vps_id, true);
    end if;
  end loop;
  return v_own;
end $$;
