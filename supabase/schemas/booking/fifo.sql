-- Brokers that close positions of one symbol only in the order of their opening (reason "fifo").

-- The close of one of our tickets was refused with fifo. If an older ticket of the same volume belongs to another copy,
-- the two copies exchange tickets. The volume of each stays the same, and the close that is planned again names the
-- older ticket. A copy of another volume waits for its turn.
create function private.exchange_for_oldest(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_mine public.positions;
  v_oldest public.positions;
  v_other bigint;
begin
  select p.* into v_mine from private.link_legs g
  join public.positions p on p.account_id = g.account_id and p.ticket = g.ticket and p.kind = g.ticket_kind
    and p.lots > 0
  where g.link_id = q.link_id and g.ticket = q.ticket and g.ticket_kind = 'position' and g.kind = 'position'
    and g.lots = p.lots;
  if not found then return; end if;
  select p.* into v_oldest from public.positions p
  join private.link_legs g on g.account_id = p.account_id and g.ticket = p.ticket and g.ticket_kind = p.kind
  where p.account_id = q.account_id and p.lots > 0 and p.kind = 'position'
    and (p.symbol, p.side, p.lots) = (v_mine.symbol, v_mine.side, v_mine.lots)
    and g.lots = p.lots and g.link_id <> q.link_id
    and (coalesce(p.opened_at, '-infinity'), length(p.ticket), p.ticket) < (coalesce(v_mine.opened_at, '-infinity'),
      length(v_mine.ticket), v_mine.ticket)
    and not exists (select 1 from public.trade_execution_queue o where o.link_id = g.link_id and o.finalized_at is null)
  order by coalesce(p.opened_at, '-infinity'), length(p.ticket), p.ticket limit 1;
  if not found then return; end if;
  select g.link_id into v_other from private.link_legs g
  where g.account_id = q.account_id and g.ticket = v_oldest.ticket and g.ticket_kind = 'position';
  update private.link_legs g set ticket = v_oldest.ticket, price = v_oldest.price
  where g.link_id = q.link_id and g.ticket = v_mine.ticket and g.ticket_kind = 'position';
  update private.link_legs g set ticket = v_mine.ticket, price = v_mine.price
  where g.link_id = v_other and g.ticket = v_oldest.ticket and g.ticket_kind = 'position';
  -- the ticket that each holds now has the levels of the other copy, so its own levels are asked for again
  update public.position_links l set asked_sl = v_mine.sl, asked_tp = v_mine.tp, asked_unknown = false,
    replan_at = p_now
  where l.id = v_other and (l.asked_unknown or (l.asked_sl, l.asked_tp) is distinct from (v_mine.sl, v_mine.tp));
  -- after a reduction a part of it stays
  update public.position_links l set asked_sl = v_oldest.sl, asked_tp = v_oldest.tp, asked_unknown = false
  where l.id = q.link_id and l.ended_at is null
    and (l.asked_unknown or (l.asked_sl, l.asked_tp) is distinct from (v_oldest.sl, v_oldest.tp));
end $$;
