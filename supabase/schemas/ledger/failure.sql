-- Failures: what a refused or expired execution means for its link, and when it is retried.

create function private.alert_no_money(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform private.raise_alert(q.account_id, 'copy', 'no_money', 'warning',
    format('%s lots of %s were not opened: the broker says that the free margin does not suffice. Add funds, copy '
      'smaller, or let the copier open less when money is short.',
      trim_scale(q.lots), q.symbol), jsonb_build_object('execution_id', q.id::text, 'copier_id', q.copier_id, 'symbol',
        q.symbol, 'lots', trim_scale(q.lots)::text));
end $$;

-- Called for levels that the broker has finally refused; the user always gets an alert. A change of levels is given up
-- after three refusals; an opening order is not sent again.
create function private.handle_refused_levels(q public.trade_execution_queue) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if coalesce(q.sl, q.tp) is null then return; end if;
  if q.action in ('modify', 'amend') then
    if exists (select 1 from public.position_links l where l.id = q.link_id and l.modify_failures >= 3)
      or exists (select 1 from private.net_ledgers n
        where n.account_id = q.account_id and n.symbol = q.symbol and n.modify_failures >= 3)
    then
      update public.position_links l set warnings = l.warnings || 'protection_dropped'::text
      where l.id = q.link_id and not 'protection_dropped' = any (l.warnings);
      perform private.raise_alert(q.account_id, 'levels', 'protection_dropped', 'critical', format(
        'The broker refused stop loss %s and take profit %s of the copy %s (%s) three times: %s. Set them by hand, or '
        'close the position.',
        coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none'), q.ticket, q.symbol, coalesce(q.message,
          private.reason_words(q.reason))),
        jsonb_build_object('link_id', q.link_id::text, 'ticket', q.ticket, 'symbol', q.symbol, 'sl', q.sl::text, 'tp',
          q.tp::text));
    end if;
  elsif q.status = 'rejected' and q.reason = 'invalid_stops' then
    perform private.raise_alert(q.account_id, 'levels', 'invalid_stops', 'warning', format(
      'A copy of %s lots of %s was not opened: the broker takes neither its levels nor nearer ones (stop loss %s, take '
      'profit %s).',
      private.plain(q.lots), q.symbol, coalesce(q.sl::text, 'none'), coalesce(q.tp::text, 'none')),
      jsonb_build_object('link_id', q.link_id::text, 'symbol', q.symbol, 'sl', q.sl::text, 'tp', q.tp::text));
  end if;
end $$;

-- Pause before the next attempt: doubles each time, limited by p_cap_s and by the setting, with a quarter of jitter.
create function private.retry_delay(p_attempt integer, p_cap_s numeric) returns interval
language plpgsql volatile set search_path = '' as $$
begin
  return make_interval(secs => least(p_cap_s, (private.setting('retry_backoff_max_ms') #>> '{}')::numeric / 1000,
    (private.setting('retry_backoff_ms') #>> '{}')::numeric / 1000 * 2 ^ least(p_attempt - 1,
      16)) * (0.75 + random() * 0.5));
end $$;

-- Books an order that did nothing: an open's link ends with its reason, a close or modify waits for its next attempt.
create function private.book_failure(q public.trade_execution_queue, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_opened bigint[];
  v_modifies boolean := q.action in ('modify', 'amend');
  v_netting boolean := q.parts is not null
    or exists (select 1 from public.trading_accounts a where a.id = q.account_id and a.mode = 'netting');
begin
  if v_netting and (v_modifies or not private.opens(q)) then
    update private.net_ledgers n set failures = n.failures + case when v_modifies then 0 else 1 end,
      modify_failures = n.modify_failures + case when v_modifies then 1 else 0 end,
      replan_at = case when v_modifies and n.modify_failures >= 2
        then null else p_now + private.retry_delay(n.failures + n.modify_failures + 1, 30) end
    where n.account_id = q.account_id and n.symbol = q.symbol;
  elsif q.action in ('close', 'reduce', 'cancel') then
    update public.position_links l set close_failures = l.close_failures + 1,
      replan_at = p_now + private.retry_delay(l.close_failures + 1, 30)
    where l.id = q.link_id;
  elsif v_modifies then
    update public.position_links l set modify_failures = l.modify_failures + 1,
      replan_at = case when l.modify_failures >= 2
        then null else p_now + private.retry_delay(l.modify_failures + 2, 30) end
    where l.id = q.link_id;
  end if;
  if q.reason = 'no_money' and private.opens(q) then
    perform private.alert_no_money(q);
  end if;
  perform private.handle_refused_levels(q);
  if q.parts is not null then
    v_opened := array(select (e ->> 'link_id')::bigint from jsonb_array_elements(q.parts) e
      where (e ->> 'lots')::numeric > 0);
    update public.position_links l set rest_lots = null where l.id = any (v_opened) and l.rest_lots is not null;
  elsif q.action in ('open', 'increase', 'place') then
    v_opened := array[q.link_id];
  end if;
  if q.status in ('rejected', 'expired', 'cancelled') and v_opened is not null then
    update public.position_links l set state = 'ended', reason = q.reason, ended_at = p_now, replan_at = null
    where l.id = any (v_opened) and l.state = 'live' and l.wanted_lots is null
      and not exists (select 1 from private.link_legs g where g.link_id = l.id)
      and not exists (select 1 from public.trade_execution_queue o
        where o.link_id = l.id and o.finalized_at is null and o.id <> q.id);
    -- the link holds a part: the rest that was not filled counts as a skipped increase
    update public.position_links l set base_master_lots = coalesce((select (e ->> 'master_lots')::numeric
      from jsonb_array_elements(q.parts) e
        where (e ->> 'link_id')::bigint = l.id), q.master_lots, l.base_master_lots),
      base_lots = least(l.base_lots, (select sum(g.lots) from private.link_legs g
        where g.link_id = l.id and g.kind = 'position'))
    where l.id = any (v_opened) and l.state = 'live'
      and exists (select 1 from private.link_legs g where g.link_id = l.id and g.kind = 'position');
  end if;
end $$;
