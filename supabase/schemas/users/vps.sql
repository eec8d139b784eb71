-- Functions by which operators drain and retire VPSes.

create function private.farm_vps(p_request jsonb) returns public.vps_instances
language plpgsql stable
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
begin
  select v.* into v_vps from public.vps_instances v
  where v.id = private.uuid_of(p_request, 'vps_id') and v.retired_at is null;
  if not found then
    raise exception using errcode = 'TC214', message = 'there is no such VPS, or it is retired',
      detail = p_request ->> 'vps_id',
      hint = 'Check the id.';
  end if;
  return v_vps;
end
$$;
comment on function private.farm_vps(jsonb) is
  'The VPS that the request names in vps_id; TC214 if it does not exist or is retired.';

-- Security definer: it writes vps_instances.
create function private.drain_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer := 0;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'drain_vps', array['vps_id', 'drain']);
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  if coalesce(p_request ->> 'drain', 'true') = 'true' then
    update public.vps_instances set status = 'draining'
    where id = v_vps.id and status in ('enrolled', 'online', 'offline', 'draining');
    v_moved := private.place_homeless(500);
  else
    -- One that is offline comes back with its next heartbeat.
    update public.vps_instances set status = case when lease_expires_at > now() then 'online' else 'offline' end
    where id = v_vps.id and status = 'draining';
  end if;
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.drain_vps(jsonb) is
  'Operators: {"vps_id", "drain": true} -> {"vps_id", "moved", "left"}. Its accounts move as other VPSes can take '
  'them; "drain": false ends the draining.';

-- Security definer: it writes vps_instances.
create function private.retire_vps(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_vps public.vps_instances;
  v_moved integer;
begin
  perform private.require_operator();
  perform private.refuse_unknown(p_request, 'retire_vps', array['vps_id']);
  perform private.await_turn('assign');
  v_vps := private.farm_vps(p_request);
  update public.vps_instances set status = 'retired', retired_at = clock_timestamp()
  where id = v_vps.id and retired_at is null;
  delete from private.vps_secrets s where s.vps_id = v_vps.id;
  v_moved := private.place_homeless(500);
  return jsonb_build_object('vps_id', v_vps.id, 'moved', v_moved,
    'left', (select count(*) from public.account_vps_assignments s where s.vps_id = v_vps.id));
end
$$;
comment on function private.retire_vps(jsonb) is
  'Operators: {"vps_id"} -> {"vps_id", "moved", "left"}. Permanent and immediate: its agent is refused from now on.';

create function public.drain_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.drain_vps(p_request) $$;
comment on function public.drain_vps(jsonb) is
  'Operators: drains a VPS: it gets no new accounts, and those on it move as other VPSes can take them. Also ends the '
  'draining.
Request:
- vps_id (uuid; required): VPS that is not retired
- drain (boolean): false ends the draining; left out or null: true
Answer:
- vps_id (uuid): the VPS
- moved (integer): accounts that were moved by this call
- left (integer): accounts that are still on it
Errors: TC001 TC107 TC214 TC301
Example: {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "moved": 12, "left": 0}';

create function public.retire_vps(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.retire_vps(p_request) $$;
comment on function public.retire_vps(jsonb) is
  'Operators: removes a VPS from the farm, permanently and at once: its agent is refused from now on.
Request:
- vps_id (uuid; required): VPS that is not retired
Answer:
- vps_id (uuid): the VPS
- moved (integer): accounts that were moved by this call
- left (integer): accounts that are still on it; they move as soon as another VPS can take them
Errors: TC001 TC107 TC214 TC301
Example: {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201"}
-> {"vps_id": "c2a1e6d0-58f7-4b3c-8d1e-7a90b4f3d201", "moved": 12, "left": 0}';
grant execute on function
  private.drain_vps(jsonb),
  public.drain_vps(jsonb),
  private.retire_vps(jsonb),
  public.retire_vps(jsonb)
to authenticated, service_role;
