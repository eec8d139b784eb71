-- remove_copier: how a user ends a copier.

-- {"copier_id", "mode": "preserve|close_gracefully|close_now"} -> {"copier_id", "mode", "state": "removing|removed",
-- "copies", "waits_for"}. The mode may be changed until the removal is complete; repeating a call changes nothing.
create function private.remove_copier(p_request jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
  set enable_material = off set jit = off as $$
declare
  v_user uuid := private.require_user();
  v_id uuid := private.uuid_of(p_request, 'copier_id');
  v_mode text := p_request ->> 'mode';
  c public.copiers;
  v_now timestamptz;
begin
  perform private.refuse_unknown(p_request, 'remove_copier', array['copier_id', 'mode']);
  if coalesce(v_mode, '') not in ('preserve', 'close_gracefully', 'close_now') then
    raise exception using errcode = 'TC303',
      message = 'remove_copier: mode must be preserve, close_gracefully or close_now',
      hint = 'preserve: its copies become your own trades. close_gracefully: they end with their master''s. close_now: '
        'they are closed now.';
  end if;
  select * into c from public.copiers x where x.id = v_id and (x.user_id = v_user or private.is_operator());
  if c.id is null then
    raise exception using errcode = 'TC106',
      message = format('remove_copier: copier %s does not exist or is not yours', v_id), hint = 'Check the id.';
  end if;
  v_now := private.lock_accounts(array[c.master_account_id, c.follower_account_id]);
  update public.copiers x set removal = v_mode, updated_at = clock_timestamp()
  where x.id = v_id and x.removed_at is null and x.removal is distinct from v_mode;
  if found then
    select * into c from public.copiers x where x.id = v_id;
    if v_mode = 'preserve' then
      perform private.release_copies(c, v_now);
    end if;
    perform private.replan_copier(v_id, v_now);
  end if;
  perform private.finish_removal(v_id, c.follower_account_id, v_now);
  return private.removal_of(v_id);
end $$;

-- The progress of a removal, as in remove_copier's answer. waits_for: what keeps the copies from being closed.
create function private.removal_of(p_copier uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select jsonb_build_object('copier_id', c.id, 'mode', c.removal, 'state', case
      when c.removed_at is null then 'removing' else 'removed' end,
      'copies', x.copies, 'waits_for', case when x.copies = 0 then null when private.trading_state() = 'off'
        then 'trading_stopped'
        when fa.copy_state = 'off' then 'account_off' end)
    from public.copiers c join public.trading_accounts fa on fa.id = c.follower_account_id
    cross join lateral (
      select count(*) as copies from public.position_links l
      where l.follower_account_id = c.follower_account_id and l.state = 'live' and l.copier_id = c.id) x
    where c.id = p_copier);
end $$;

create function public.remove_copier(p_request jsonb) returns jsonb
language sql volatile security invoker set search_path = '' as $$ select private.remove_copier(p_request) $$;
comment on function public.remove_copier(jsonb) is
  'Users and operators: removes a copier. It opens nothing more; until its copies have ended, another call may change '
  'the mode.
Request:
- copier_id (uuid; required): copier of the caller; operators: any copier
- mode (text; required; preserve, close_gracefully or close_now): its copies are left to the user, or are closed with
  their master''s, or are closed now
Answer:
- copier_id (uuid): the copier
- mode (text; preserve, close_gracefully or close_now): how the copier is being removed
- state (text; removing or removed): whether all its copies have ended
- copies (integer): copies that have not ended
- waits_for (text or null; account_off or trading_stopped): what keeps them from being closed now
Errors: TC001 TC105 TC106 TC108 TC301 TC303
Example: {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "close_now"}
-> {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "close_now", "state": "removing", "copies": 2,
  "waits_for": null}';

revoke all on function public.remove_copier(jsonb) from public, anon;
grant execute on function public.remove_copier(jsonb), private.remove_copier(jsonb) to authenticated;
