-- The global trading switch: whether copies are traded at all. One row, read once per planning call.

create table public.trading_switch (
  one boolean primary key default true,
  state text not null default 'on',
  reason text not null default '',
  changed_at timestamptz not null default now(),
  settled boolean not null default true,
  constraint there_is_one_switch check (one),
  constraint state_is_known check (state in ('on', 'monitor', 'off')),
  constraint stopping_says_why check (state = 'on' or length(reason) between 3 and 200)
);
comment on table public.trading_switch is
  'Whether copies are traded at all, for everybody. Operators change it with set_trading().';
comment on column public.trading_switch.state is
  'on = copies are traded; monitor = nothing is opened anywhere, closes go on; off = frozen, closes included';
comment on column public.trading_switch.reason is 'why it is not on; all users can read it';
comment on column public.trading_switch.changed_at is 'when it was last changed';
comment on column public.trading_switch.settled is
  'whether every account has been updated after the last change; the upkeep does what is left';

insert into public.trading_switch default values;
alter table public.trading_switch enable row level security;
create policy "everybody sees whether copies are traded"
  on public.trading_switch for select to authenticated using (true);
grant select on public.trading_switch to authenticated, service_role;
create trigger audited after insert or update or delete on public.trading_switch for each row
  execute function private.audit('one', '', 'state', 'reason');

create function private.trading_state() returns text
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select t.state from public.trading_switch t where t.one);
end $$;

-- Why opens are blocked, or null; one precedence for the planner, waiting opens and the UI.
create function private.opening_blocked_reason(p_trading text, p_copy_state text, p_copy_state_reason text, p_mode text,
  p_removal text) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return case
    when p_trading = 'off' then 'trading_stopped'
    when p_trading = 'monitor' then 'trading_monitor'
    when p_copy_state <> 'on' and p_copy_state_reason = 'flat_by' then 'flat_by'
    when p_copy_state <> 'on' and p_copy_state_reason is not null then 'account_protected'
    when p_copy_state = 'flattening' then 'account_flattening'
    when p_copy_state = 'off' then 'account_off'
    when p_copy_state = 'monitor' then 'account_monitor'
    when p_removal is not null then 'copier_removed'
    when p_mode = 'off' then 'copier_off'
    when p_mode = 'monitor' then 'copier_monitor' end;
end $$;
