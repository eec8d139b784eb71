-- The fast path for reports, many at once. Nearly every report is the first report of an order of a hedging follower
-- that was carried out: a new position opened, or the only position of a copy closed or given other levels. take_report
-- handles these one statement at a time; here one statement handles all of them. It is a shortcut, not a rule of its
-- own: any other report is left to take_report. tests/sql/booking/test_report_fast_path.py gives both the same reports
-- and compares every row. A change to take_report, apply_position, next_status, book_fill or handle_protection must be
-- made here too.

-- Returns which reports (numbers from 1) were taken, their results in order, and their links, to be planned. Raises an
-- error for a value of the wrong type; the caller then takes each report separately, as after a fault. It is one
-- statement, therefore longer than forty lines.
create function private.take_reports_fast(p_vps uuid, p_reports jsonb, p_now timestamptz, out taken bigint[],
  out results jsonb, out link_ids bigint[])
language plpgsql security definer set search_path = '' as $$
declare
  v_many boolean := jsonb_array_length(p_reports) > 1;
begin
  with told as (
    select t.*, t.positions -> 0 as p
    from rows from (jsonb_to_recordset(p_reports) as (account_id text, execution_id bigint, attempt integer,
      session bigint, seq bigint, outcome text,
      retryable jsonb, adopted jsonb, reason jsonb, message jsonb, filled_lots numeric, price numeric, positions jsonb,
        quote jsonb,
      planned_at timestamptz, received_at timestamptz, sent_at timestamptz, done_at timestamptz)) with ordinality as t (
        account_id, execution_id, attempt, session, seq, outcome,
      retryable, adopted, reason, message, filled_lots, price, positions, quote, planned_at, received_at, sent_at,
        done_at, n)
  ), looks as materialized (
    select t.*, q.link_id, q.master_lots, q.symbol, q.action in ('open', 'increase') as opens,
      q.action = 'close' as closes,
      a.id as follower, a.user_id, a.currency, h.lots as held_lots,
      coalesce(t.filled_lots, q.filled_lots, q.lots) as booked_lots, s.ticket, s.lots, s.price as open_price, s.side,
        nullif(s.sl, 0) as sl,
      nullif(s.tp, 0) as tp, s.tag, s.opened_at, s.expires_at, s.magic, s.comment,
        t.account_id || ' ' || s.ticket as position_key,
      case when coalesce(
        -- well-formed in everything that take_report checks; least() and greatest() ignore nulls
        t.outcome = 'completed' and jsonb_typeof(t.positions) = 'array' and jsonb_array_length(t.positions) = 1
        and coalesce(jsonb_typeof(t.quote), 'null') = 'null' and t.session is not null and t.seq is not null
        and coalesce(jsonb_typeof(t.retryable), 'null') in ('null', 'boolean')
          and coalesce(jsonb_typeof(t.adopted), 'null') in ('null', 'boolean')
        and coalesce(jsonb_typeof(t.reason), 'null') = 'null'
          and coalesce(jsonb_typeof(t.message), 'null') in ('null', 'string')
        and least(t.filled_lots, t.price, s.lots, s.price, s.sl, s.tp) >= 0
          and greatest(t.filled_lots, t.price, s.lots, s.price, s.sl, s.tp) <= 1e12
        and not private.is_odd_position(t.p) and s.lots is not null and s.price is not null and s.kind = 'position'
          and s.replaces is null
        and jsonb_typeof(t.p -> 'ticket') = 'string'
          and length(s.ticket) between 1 and 64 and t.p -> 'symbol' = to_jsonb(q.symbol)
        -- for an order in flight, from an agent that was handed it
        and q.account_id::text = t.account_id and q.attempt = t.attempt
          and q.status in ('queued', 'unknown') and q.parts is null
        and (q.vps_id = p_vps or private.was_given(q, p_vps)) and a.mode = 'hedging' and t.session <= a.session
        and c.masters is null and s.side = q.side and l.state = 'live' and l.close_failures + l.modify_failures = 0
        and case
          -- its levels are as asked for
          when q.action in ('open', 'increase') then s.lots > 0 and m.ticket is null and h.found = 0
            and (q.sl is null or s.sl > 0) and (q.tp is null or s.tp > 0)
          when q.action in ('close', 'modify') then q.ticket = s.ticket and m.closed_at is null and m.kind = 'position'
            and m.side = q.side and m.symbol = q.symbol
            and (m.session, m.seq) < (t.session, t.seq) and h.legs = 1 and h.found = 1
            and case q.action when 'close' then s.lots = 0
              else s.lots = m.lots and h.lots = m.lots and not 'protection_dropped' = any (l.warnings) end
          else false end, false) then 'usual' end as verdict
    from told t
    left join lateral jsonb_to_record(t.p) as s (ticket text, kind text, side text, lots numeric, price numeric,
      sl numeric, tp numeric,
      magic text, comment text, tag bigint, opened_at timestamptz, expires_at timestamptz, replaces text) on true
    left join public.trade_execution_queue q on q.id = t.execution_id
    left join public.trading_accounts a on a.id = q.account_id
    left join public.position_links l on l.id = q.link_id
    left join lateral (select * from public.positions i
      where i.account_id = q.account_id and i.ticket = s.ticket
      order by i.kind = 'position' desc limit 1) m on true
    left join lateral (select true as masters from public.copiers i
      where i.master_account_id = a.id and i.removed_at is null limit 1) c on true
    left join lateral (
      select count(*) as legs,
        count(*) filter (where g.ticket = s.ticket and g.ticket_kind = 'position' and g.kind = 'position') as found,
        coalesce(sum(g.lots) filter (where g.kind = 'position'), 0) as lots
      from private.link_legs g where g.link_id = q.link_id
    ) h on true
  ), usual as materialized (
    select k.*, w.size as point_size, w.money as point_money, w.spread
    from looks k left join lateral private.point_worth(k.follower, k.currency, k.symbol, k.filled_lots) w on true
    -- the planner of Postgres expects one row here, so what is joined is looked up by its key, even in a small table
    where k.verdict = 'usual'
      -- two reports about the same copy or position are taken in order
      and k.link_id <> all (case when v_many
        then array(select d.link_id from looks d group by d.link_id having count(*) > 1) else '{}' end)
      and k.position_key <> all (case when v_many
        then array(select d.position_key from looks d group by d.position_key having count(*) > 1) else '{}' end)
  ), seen as (
    insert into public.positions as m (account_id, ticket, user_id, kind, symbol, side, lots, grown_lots, price, sl, tp,
      magic, comment, tag, opened_at, expires_at,
      session, seq, unseen_at, detected_at, first_seen_at, changed_at, closed_at, close_reason)
    select u.follower, u.ticket, u.user_id, 'position', u.symbol, u.side, u.lots, u.lots, u.open_price, u.sl, u.tp,
      left(u.magic, 100), left(u.comment, 200), u.tag,
      u.opened_at, u.expires_at, u.session, u.seq, coalesce(u.sent_at, p_now), coalesce(u.done_at, p_now), p_now, p_now,
      case when u.closes then p_now end, case when u.closes then 'client' end
    from usual u
    on conflict (account_id, ticket, kind) do update set symbol = excluded.symbol, lots = excluded.lots,
      price = excluded.price, sl = excluded.sl,
      tp = excluded.tp, order_type = null, magic = excluded.magic, comment = excluded.comment,
        tag = coalesce(excluded.tag, m.tag),
      opened_at = coalesce(excluded.opened_at, m.opened_at), expires_at = excluded.expires_at,
        session = excluded.session, seq = excluded.seq,
      absent_snapshots = 0, detected_at = excluded.detected_at, changed_at = excluded.changed_at,
        closed_at = excluded.closed_at,
      close_reason = excluded.close_reason, replaced_by = null, replaced_by_kind = null
  ), done as (
    update public.trade_execution_queue x set status = 'completed', reason = null,
      message = left(u.message #>> '{}', 500), next_attempt_at = null,
      adopted = x.adopted or coalesce(u.adopted::boolean, false), filled_lots = coalesce(u.filled_lots, x.filled_lots),
      fill_price = coalesce(u.price, x.fill_price), point_size = coalesce(u.point_size, x.point_size),
      point_money = coalesce(u.point_money, x.point_money), spread = coalesce(u.spread, x.spread),
      planned_at = coalesce(u.planned_at, x.planned_at),
      received_at = coalesce(u.received_at, x.received_at),
      sent_at = coalesce(u.sent_at, x.sent_at), done_at = coalesce(u.done_at, x.done_at), finalized_at = p_now,
        updated_at = p_now
    from usual u where x.id = u.execution_id
  ), held as (
    insert into private.link_legs (link_id, account_id, ticket, ticket_kind, kind, lots, price)
    select u.link_id, u.follower, u.ticket, 'position', 'position', u.lots, u.open_price from usual u where u.opens
  ), given as (
    delete from private.link_legs g where g.link_id = any (array(select u.link_id from usual u where u.closes))
  ), based as (
    update public.position_links l set base_master_lots = coalesce(u.master_lots, l.base_master_lots),
      base_lots = least(u.held_lots + u.lots, l.base_lots + u.booked_lots)
    from usual u where u.opens and l.id = u.link_id
  )
  select array_agg(u.n order by u.n), array_agg(u.link_id),
    jsonb_agg(jsonb_build_object('execution_id', u.execution_id::text, 'status', 'accepted', 'code', null, 'error',
      null) order by u.n)
  into taken, link_ids, results from usual u;
end $$;
