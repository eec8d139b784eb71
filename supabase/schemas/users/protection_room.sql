-- protection_room: how far an account is from each of its limits.

-- One rule: what it compares now, and how much is left.
create function private.room_of_rule(r public.protection_rules, p_account public.trading_accounts, p_bound numeric,
  p_at timestamptz) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_limit numeric := private.rule_limit(r, private.initial_for(r, p_account.balance));
  v_now numeric := case when r.kind = 'max_margin_use'
    then round(p_account.margin * 100 / nullif(p_account.equity, 0), 4) else p_account.equity end;
  v_falls boolean := r.kind in ('daily_loss', 'trailing_drawdown', 'equity_floor');
begin
  return jsonb_build_object('rule_id', r.id, 'kind', r.kind, 'action', private.rule_action(r), 'enabled', r.enabled,
    'triggered', r.triggered_at is not null, 'limit', private.plain(v_limit),
    'whole_limit', private.plain(private.whole_limit(r, private.initial_for(r, p_account.balance))),
    'now', private.plain(v_now), 'bound', case when v_falls then private.plain(p_bound) end,
    'left', private.plain(case when v_falls then v_now - p_bound - v_limit else v_limit - v_now end),
    'day_ends_at', case when r.kind in ('daily_loss', 'daily_profit') or r.moves_with = 'day_end_balance'
      then private.rfc3339(private.rule_day_ends(r, p_at)) end);
end $$;

-- {"account_id"} -> {"account_id", "currency", "funds_at", "bound", "unknown_stops", "without_stop", "rules"}
create function private.protection_room(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), true);
  v_bound record;
begin
  perform private.refuse_unknown(p_request, 'protection_room', array['account_id']);
  v_bound := private.bound_by_stops(v_account, clock_timestamp(), null);
  return jsonb_build_object('account_id', v_account.id, 'currency', v_account.currency,
    'funds_at', private.rfc3339(v_account.funds_at), 'bound', private.plain(round(v_bound.loss, 2)),
    'unknown_stops', v_bound.unknown, 'without_stop', v_bound.without_stop, 'rules', (
      select coalesce(jsonb_agg(private.room_of_rule(r, v_account, round(v_bound.loss, 2), clock_timestamp())
        order by r.created_at, r.id), '[]')
      from public.protection_rules r where r.account_id = v_account.id));
end $$;

create function public.protection_room(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.protection_room(p_request) $$;
comment on function public.protection_room(jsonb) is
  'Users and operators: how far an account is from the limit of each of its protection rules.
Request:
- account_id (uuid; required): account of the caller; operators and the service key: any account
Answer:
- account_id (uuid): the account
- currency (text): currency of the amounts
- funds_at (text or null): when equity, balance and margin were measured
- bound (text): what is lost from the present prices if the stops of all that is open or on its way are hit
- unknown_stops (integer): stops whose loss cannot be computed, because a rate is missing; they are not in bound
- without_stop (integer): positions and orders without a stop; nothing bounds them
- rules (list of objects): each rule with rule_id, kind, action, enabled and triggered
- rules.limit (text or null): equity (max_margin_use: percent) at which it acts; null: not known yet
- rules.whole_limit (text or null): the same without its cushion
- rules.now (text or null): the present equity (max_margin_use: percent)
- rules.bound (text or null): bound, for daily_loss, trailing_drawdown and equity_floor
- rules.left (text or null): what is left until limit, after bound
- rules.day_ends_at (text or null): when its day ends, where it has days
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "currency": "USD",
"funds_at": "2026-12-01T09:30:00.000000Z", "bound": "800", "unknown_stops": 0, "without_stop": 0, "rules": [{"rule_id":
"5e8b2c90-3d47-4a1f-b6c2-90d1e2f3a401", "kind": "daily_loss", "action": "close_all_and_off", "enabled": true,
"triggered": false, "limit": "95000", "whole_limit": "95000", "now": "99000", "bound": "800", "left": "3200",
"day_ends_at": "2026-12-01T23:00:00.000000Z"}]}';
revoke all on function public.protection_room(jsonb) from public, anon;
grant execute on function public.protection_room(jsonb), private.protection_room(jsonb) to authenticated, service_role;
