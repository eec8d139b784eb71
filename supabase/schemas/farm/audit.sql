-- audit_log: who changed what. Triggers write it, so no caller can forget it; nobody can change an entry.

create table public.audit_log (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  actor text not null,
  actor_id uuid,
  action text not null,
  entity text not null,
  entity_id text not null,
  user_id uuid,
  details jsonb not null default '{}',
  constraint actor_is_known check (actor in ('user', 'operator', 'agent', 'service', 'system')),
  constraint details_are_an_object check (jsonb_typeof(details) = 'object')
);
comment on table public.audit_log is 'Who changed what, and when. Append-only.';
comment on column public.audit_log.id is 'ID of the entry.';
comment on column public.audit_log.at is 'When the change was made.';
comment on column public.audit_log.actor is
  'user, operator, agent, service (the secret key) or system (maintain(), migrations).';
comment on column public.audit_log.actor_id is
  'Auth user who made the change; null: service or system. No foreign key: an entry outlives its user.';
comment on column public.audit_log.action is 'inserted, updated, deleted, or a verb such as credentials_read.';
comment on column public.audit_log.entity is 'Table of the changed row.';
comment on column public.audit_log.entity_id is 'Key of the changed row.';
comment on column public.audit_log.user_id is
  'The user who owns the row and may read the entry; null: the row belongs to the farm.';
comment on column public.audit_log.details is
  'inserted: the values; updated: {"column": [before, after]}; never a secret.';

-- a user's history
create index audit_of_user on public.audit_log (user_id, at) where user_id is not null;

-- the history of one row
create index audit_of_entity on public.audit_log (entity, entity_id, at);

-- retention
create index audit_by_time on public.audit_log (at);
alter table public.audit_log enable row level security;
create policy "users see their history, operators all" on public.audit_log for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));

create function private.actor() returns text
language sql stable
set search_path = ''
as $$
  select case
    when auth.role() = 'service_role' then 'service'
    when auth.uid() is null then 'system'
    when exists (select from public.vps_instances v where v.user_id = auth.uid()) then 'agent'
    when private.is_operator() then 'operator'
    else 'user'
  end
$$;
comment on function private.actor() is 'What kind of caller this is, as in audit_log.actor.';

create function private.write_audit(p_action text, p_entity text, p_entity_id text, p_user uuid, p_details jsonb)
returns void
language sql
set search_path = ''
as $$
  insert into public.audit_log (actor, actor_id, action, entity, entity_id, user_id, details)
  values (private.actor(), auth.uid(), p_action, p_entity, p_entity_id, p_user, private.short_detail(p_details))
$$;
comment on function private.write_audit(text, text, text, uuid, jsonb) is
  'Writes one entry to audit_log in the caller''s name.';

-- Trigger arguments: the key column, the owner ('user_id': that column; 'account': the owner of account_id; '':
-- nobody), then the columns to log. An update that changes none of them leaves no entry.
create function private.audit() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) else '{}' end;
  v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) else '{}' end;
  v_row jsonb := case when tg_op = 'DELETE' then to_jsonb(old) else to_jsonb(new) end;
  v_user uuid;
  v_details jsonb;
begin
  select coalesce(jsonb_object_agg(c.name, case tg_op
      when 'UPDATE' then jsonb_build_array(v_old -> c.name, v_new -> c.name)
      else v_row -> c.name end), '{}')
  into v_details
  from unnest(tg_argv[2:]) as c (name)
  where tg_op <> 'UPDATE' or v_old -> c.name is distinct from v_new -> c.name;
  if tg_op = 'UPDATE' and v_details = '{}' then
    return null;
  end if;
  v_user := case tg_argv[1]
    when '' then null
    when 'account' then (select a.user_id from public.trading_accounts a where a.id = (v_row ->> 'account_id')::uuid)
    else (v_row ->> tg_argv[1])::uuid
  end;
  perform private.write_audit(case tg_op when 'INSERT' then 'inserted' when 'UPDATE' then 'updated' else 'deleted' end,
                              tg_table_name, v_row ->> tg_argv[0], v_user, v_details);
  return null;
end
$$;
comment on function private.audit() is
  'Trigger (key column, owner, columns…): logs inserts, deletes and changes of these columns in audit_log.';

create function private.keep_audit() returns trigger
language plpgsql
set search_path = ''
as $$
begin
  if tg_op = 'DELETE' and old.at < now() - private.setting_days('retention_days.audit_log') then
    return old;
  end if;
  raise exception using errcode = 'TC240', message = 'the audit log is append-only',
    hint = 'Entries are deleted once they are older than the setting retention_days.audit_log, and not before.';
end
$$;
comment on function private.keep_audit() is
  'Trigger: refuses every change of audit_log except the deletion of entries past their retention (TC240).';
create trigger append_only before update or delete
  on public.audit_log for each row execute function private.keep_audit();
create trigger append_only_truncate before truncate
  on public.audit_log for each statement execute function private.keep_audit();
create trigger audited after insert or update or delete on public.broker_servers for each row
  execute function private.audit('server', '', 'platform', 'server', 'title', 'address');
create trigger audited after insert or update or delete on public.system_config for each row
  execute function private.audit('key', '', 'value');
create trigger audited after insert or delete on public.operators for each row
  execute function private.audit('user_id', 'user_id', 'user_id');
create trigger audited after insert or update of name, user_id, platforms, capacity, status or delete
  on public.vps_instances for each row
  execute function private.audit('id', '', 'name', 'user_id', 'region', 'platforms', 'capacity', 'status');
create trigger audited after insert or update of used_at or delete on public.enrollment_tokens for each row
  execute function private.audit('id', '', 'name', 'created_by', 'expires_at', 'used_at', 'vps_id');
create trigger audited
  after insert or update of name, copy_state, secret_id, settings, claim, removed_at, initial_balance or delete
  on public.trading_accounts for each row
  execute function private.audit('id', 'user_id', 'platform', 'server', 'login', 'name', 'copy_state', 'secret_id',
    'settings', 'claim', 'removed_at', 'initial_balance');
create trigger audited after insert or update of vps_id, epoch or delete on public.account_vps_assignments for each row
  execute function private.audit('account_id', 'account', 'vps_id', 'epoch');
grant select on public.audit_log to authenticated, service_role;
