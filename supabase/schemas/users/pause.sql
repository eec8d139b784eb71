-- Functions by which users pause or flatten an account.

-- The ID of the caller's account, or of any account for an operator; TC106 otherwise.
create function private.require_account(p_request jsonb) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
  v_account uuid;
begin
  select a.id into v_account from public.trading_accounts a
  where a.id = private.uuid_of(p_request, 'account_id') and (a.user_id = v_user or private.is_operator())
    and a.removed_at is null;
  if v_account is null then
    raise exception using errcode = 'TC106',
      message = format('account %s does not exist or is not yours', p_request ->> 'account_id'),
      hint = 'Check the id.';
  end if;
  return v_account;
end $$;

-- {"account_id", "include_manual": false} -> {"account_id", "copy_state"}. A second call can only change
-- include_manual.
create function private.flatten_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_account uuid := private.require_account(p_request);
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'flatten_account', array['account_id', 'include_manual']);
  if coalesce(jsonb_typeof(p_request -> 'include_manual'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'flatten_account: include_manual must be true or false';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  perform private.start_flattening(v_account, coalesce((p_request ->> 'include_manual')::boolean, false), 'off', null,
    v_now);
  return jsonb_build_object('account_id', v_account, 'copy_state', 'flattening');
end $$;

-- {"account_id", "state": "on|monitor|off"} -> {"account_id", "copy_state"}. monitor: closes only; off: frozen.
create function private.pause_account(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_account uuid := private.require_account(p_request);
  v_copier uuid;
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'pause_account', array['account_id', 'state']);
  if coalesce(p_request ->> 'state', '') not in ('on', 'monitor', 'off') then
    raise exception using errcode = 'TC303', message = 'pause_account: state must be on, monitor or off';
  end if;
  v_now := private.lock_accounts(private.with_neighbours(v_account));
  update public.trading_accounts set copy_state = p_request ->> 'state', copy_state_reason = null, flat_snapshots = 0,
    resumes_at = null
  where id = v_account;
  for v_copier in select c.id from public.copiers c
    where c.follower_account_id = v_account and c.removed_at is null loop
    perform private.replan_copier(v_copier, v_now);
  end loop;
  return jsonb_build_object('account_id', v_account, 'copy_state', p_request ->> 'state');
end $$;

create function public.flatten_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.flatten_account(p_request) $$;
comment on function public.flatten_account(jsonb) is
  'Users and operators: closes every copy on an account until it is flat, then switches copying into it off.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- include_manual (boolean): true also closes positions that the user opened by hand; left out or null: false
Answer:
- account_id (uuid): the account
- copy_state (text; flattening): becomes off when the account is flat
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "include_manual": false}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "copy_state": "flattening"}';

create function public.pause_account(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.pause_account(p_request) $$;
comment on function public.pause_account(jsonb) is
  'Users and operators: switches copying into an account: on, monitor or off.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- state (text; required; on, monitor or off): on copies; monitor follows closes only; off is frozen, closes included
Answer:
- account_id (uuid): the account
- copy_state (text; on, monitor or off): the new state
Errors: TC001 TC105 TC106 TC108 TC301 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "state": "monitor"}
-> {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "copy_state": "monitor"}';

revoke all on function public.flatten_account(jsonb), public.pause_account(jsonb) from public, anon;
grant execute on function public.flatten_account(jsonb), public.pause_account(jsonb), private.flatten_account(jsonb),
  private.pause_account(jsonb) to authenticated;
