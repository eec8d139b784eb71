-- Second attempts of opens that a broker refused for their size: one attempt, after a pause, with figures and
-- specifications read again.

-- Lots that the free margin allows beside what was opened since it was read, rounded to the symbol's step; null:
-- unknown.
create function private.affordable_lots(q public.trade_execution_queue, p_now timestamptz) returns numeric
language plpgsql stable security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  s public.account_symbols;
  v_free numeric;
  v_margin numeric;
begin
  select * into a from public.trading_accounts where id = q.account_id;
  select * into s from public.account_symbols x where x.account_id = q.account_id and x.name = q.symbol;
  v_free := (private.fresh_funds(a, p_now - private.setting_s('funds_max_age_s'))).free_margin
    - coalesce(private.margin_since(a, q.id, p_now), 0);
  v_margin := private.margin_per_lot(a, s, q.side, q.master_price, p_now);
  if v_free is null or v_margin is null or v_margin <= 0 then return null; end if;
  return div(greatest(v_free, 0), v_margin * s.lots_step) * s.lots_step;
end $$;

-- When an open that was refused for lack of money, or for its volume, is tried once more; null: never.
create function private.second_attempt_at(q public.trade_execution_queue, p_reason text,
  p_now timestamptz) returns timestamptz
language plpgsql stable security definer set search_path = '' as $$
declare
  c public.copiers;
  v_at timestamptz := p_now + private.setting_s('second_attempt_s');
begin
  select * into c from public.copiers where id = q.copier_id;
  if q.attempt > 1 or v_at > q.queued_at + make_interval(secs => coalesce(c.max_age_ms, 5000) / 1000.0) then
    return null;
  end if;
  if p_reason = 'no_money' and c.no_money_policy = 'shrink' and private.affordable_lots(q, p_now) < (
    select s.lots_min from public.account_symbols s where s.account_id = q.account_id and s.name = q.symbol) then
    return null;  -- not even the smallest volume is possible
  end if;
  return v_at;
end $$;

-- Gives due second attempts the volume that is possible: what the free margin allows (no_money_policy shrink), or what
-- the symbol's newest specification allows. Never more than before. A netting deal is cut only if all of it opens; the
-- part that is cut off is not made up for.
create function private.fit_second_attempts(p_accounts uuid[], p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  q public.trade_execution_queue;
  s public.account_symbols;
  v_lots numeric;
begin
  for q in
    select x.* from public.trade_execution_queue x
    where x.status = 'retrying' and x.next_attempt_at <= p_now and x.account_id = any (p_accounts)
      and x.reason in ('no_money', 'invalid_volume')
    order by x.id  -- each counts against the next
  loop
    continue when not private.opens(q) or exists (select 1 from jsonb_array_elements(q.parts) e
      where (e ->> 'lots')::numeric < 0 or e ->> 'side' <> q.side);
    select * into s from public.account_symbols x where x.account_id = q.account_id and x.name = q.symbol;
    v_lots := null;
    if q.reason = 'invalid_volume' then
      v_lots := div(least(q.lots, s.lots_max), s.lots_step) * s.lots_step;
    elsif (select c.no_money_policy from public.copiers c where c.id = q.copier_id) = 'shrink' then
      v_lots := private.affordable_lots(q, p_now);
    end if;
    if v_lots >= s.lots_min and v_lots < q.lots then
      update public.trade_execution_queue x set lots = v_lots,
        warnings = x.warnings || case q.reason when 'no_money' then 'margin_shrunk' else 'volume_refitted' end,
        parts = case when q.parts is not null then private.cut_parts(q.parts, q.side, v_lots) end
      where x.id = q.id;
    end if;
  end loop;
end $$;
