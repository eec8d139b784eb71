-- Levels that a broker refused: when they are asked for again, and which alerts the user gets.

-- Whether an order that was refused for its levels must be sent again with the nearest levels that the broker may
-- accept; limited in number.
create function private.may_adjust_levels(q public.trade_execution_queue, p_reason text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return p_reason = 'invalid_stops' and q.attempt < 3 and coalesce(q.sl, q.tp) is not null
    and q.action in ('open', 'increase', 'place');
end $$;

create function private.adjust_levels(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_levels private.levels := private.levels_to_ask(q.account_id, q.symbol, q.side, case
    when q.action = 'place' then q.price end, q.sl, q.tp,
    q.attempt, p_now);
begin
  update public.trade_execution_queue x set sl = v_levels.sent_sl, tp = v_levels.sent_tp,
    warnings = private.with_level_warnings(x.warnings, v_levels.warnings)
  where x.id = q.id;
  update public.position_links l set warnings = private.with_level_warnings(l.warnings, v_levels.warnings)
  where l.id = q.link_id;
end $$;

-- An order that was filled without its levels counts as if none had been asked for, so that the planner asks for them
-- at once. A change of levels that was carried out ends the warning of an earlier refusal.
create function private.handle_protection(q public.trade_execution_queue, r jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if q.action in ('modify', 'amend') then
    update public.position_links l set warnings = array_remove(l.warnings, 'protection_dropped')
    where l.id = q.link_id and 'protection_dropped' = any (l.warnings);
  elsif coalesce(q.sl, q.tp) is not null and q.action in ('open', 'increase', 'place') and exists (
    select 1 from jsonb_array_elements(nullif(r -> 'positions', 'null')) e
    where (e ->> 'lots')::numeric > 0 and (q.sl is not null and coalesce((e ->> 'sl')::numeric, 0) = 0
      or q.tp is not null and coalesce((e ->> 'tp')::numeric, 0) = 0))
  then
    if exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting') then
      update private.net_ledgers n set asked_sl = null, asked_tp = null
      where n.account_id = q.account_id and n.symbol = q.symbol;
    else
      update public.position_links l set asked_sl = null, asked_tp = null, asked_unknown = false where l.id = q.link_id;
    end if;
  end if;
end $$;
