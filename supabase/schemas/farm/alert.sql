-- Alerts: what a user or the operators must know. Use private.raise_alert() for an account and
-- private.alert_operators() for a VPS or the whole installation.

create table public.alerts (
  id bigint generated always as identity primary key,
  user_id uuid references auth.users (id) on delete cascade,
  account_id uuid references public.trading_accounts (id) on delete cascade,
  vps_id uuid references public.vps_instances (id) on delete cascade,
  kind text not null,
  reason text not null,
  severity text not null default 'warning',
  message text not null,
  detail jsonb not null default '{}',
  times integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  seen_at timestamptz,
  constraint kind_and_reason_are_codes check (kind ~ '^[a-z][a-z0-9_]{1,39}$' and reason ~ '^[a-z][a-z0-9_]{1,39}$'),
  constraint severity_is_known check (severity in ('info', 'warning', 'critical')),
  constraint message_says_something check (length(message) between 10 and 1000),
  constraint detail_is_an_object check (jsonb_typeof(detail) = 'object'),
  constraint users_have_accounts_operators_have_none check ((user_id is null) = (account_id is null)
    and (account_id is null or vps_id is null))
);
comment on table public.alerts is
  'What a user must know about an account, or operators about a VPS or the installation. Until an alert is seen, '
  'repeats (same account or VPS, kind and reason) are counted in its row.';
comment on column public.alerts.id is 'ID of the alert.';
comment on column public.alerts.user_id is 'The user whose account it is about; null: it is for operators only.';
comment on column public.alerts.account_id is 'The account; null: it is about a VPS or the whole installation.';
comment on column public.alerts.vps_id is
  'The VPS of an alert for operators; null in such an alert: the whole installation.';
comment on column public.alerts.kind is 'What raised it: protection, stop_out, …';
comment on column public.alerts.reason is
  'What happened, as a code: the kind of a protection rule, a reason of docs/errors.md, …';
comment on column public.alerts.severity is
  'info; warning; critical = positions were closed, or money is at risk until somebody looks. Of a removed account: '
  'info, for there is nothing left to do.';
comment on column public.alerts.message is 'What happened, to what, and what to do.';
comment on column public.alerts.detail is 'The figures behind the message.';
comment on column public.alerts.times is 'How often it has happened since it was last seen.';
comment on column public.alerts.created_at is 'When it happened first.';
comment on column public.alerts.updated_at is 'When it happened last, or was seen.';
comment on column public.alerts.seen_at is
  'When its user marked it as seen; what happens afterwards is a new alert.';

-- raise_alert, alert_operators: the unseen alert, if there is one
create unique index alert_is_one_until_seen
  on public.alerts (account_id, vps_id, kind, reason) nulls not distinct where seen_at is null;

-- cascade from vps_instances
create index alerts_of_vps on public.alerts (vps_id) where vps_id is not null;

-- dashboard, doorbells, retention
create index alerts_of_user on public.alerts (user_id, created_at desc);
create index alerts_updated on public.alerts (updated_at);
alter table public.alerts enable row level security;
create policy "own alerts are readable" on public.alerts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.alerts for each row execute function private.touch();
grant select on public.alerts to authenticated, service_role;

create function private.is_milder(p_severity text, p_than text) returns boolean
language sql immutable
set search_path = ''
as $$
  select array_position(array['info', 'warning', 'critical'], p_severity)
    < array_position(array['info', 'warning', 'critical'], p_than)
$$;

-- Security definer: it is called in many places, also on behalf of an agent.
create function private.raise_alert(p_account uuid, p_kind text, p_reason text, p_severity text, p_message text,
  p_detail jsonb) returns bigint
language plpgsql security definer
set search_path = ''
as $$
declare
  v_id bigint;
begin
  insert into public.alerts as x (user_id, account_id, kind, reason, severity, message, detail)
  select a.user_id, a.id, p_kind, p_reason, case when a.removed_at is null then p_severity else 'info' end,
    left(p_message, 1000), private.short_detail(coalesce(p_detail, '{}'))
  from public.trading_accounts a where a.id = p_account
  on conflict (account_id, vps_id, kind, reason) where seen_at is null
  do update set times = x.times + 1,
    (severity, message, detail) = (
      select case when milder then x.severity else excluded.severity end,
        case when milder then x.message else excluded.message end,
        case when milder then x.detail else excluded.detail end
      from private.is_milder(excluded.severity, x.severity) milder)
  returning x.id into v_id;
  return v_id;
end
$$;
comment on function private.raise_alert(uuid, text, text, text, text, jsonb) is
  'Raises an alert for the account''s user: (account, kind, reason, severity, message, detail). If the same alert is '
  'still unseen, it is counted there instead, and what a milder one says does not replace what a graver one said.';

create function private.calm_alerts() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
  update public.alerts x set severity = 'info'
  where x.account_id = new.id and x.seen_at is null and x.severity <> 'info';
  return null;
end
$$;
comment on function private.calm_alerts() is
  'Trigger: what was said about an account is for information only once its user has removed it.';
create trigger calm_alerts after update of removed_at on public.trading_accounts for each row
  when (old.removed_at is null and new.removed_at is not null) execute function private.calm_alerts();

-- Security definer: it is called in many places, also on behalf of an agent.
create function private.alert_operators(p_vps uuid, p_kind text, p_reason text, p_severity text, p_message text,
  p_detail jsonb) returns bigint
language sql security definer
set search_path = ''
as $$
  insert into public.alerts as x (vps_id, kind, reason, severity, message, detail)
  values (p_vps, p_kind, p_reason, p_severity, left(p_message, 1000), private.short_detail(coalesce(p_detail, '{}')))
  on conflict (account_id, vps_id, kind, reason) where seen_at is null
  do update set times = x.times + 1, severity = excluded.severity, message = excluded.message, detail = excluded.detail
  returning x.id
$$;
comment on function private.alert_operators(uuid, text, text, text, text, jsonb) is
  'Raises an alert for operators about a VPS (null: the installation): (VPS, kind, reason, severity, message, detail). '
  'Repeats are counted as in raise_alert().';

-- Symbols and positions beyond the limits are left out and cannot be copied; the user gets an alert.
create function private.alert_left_out(p_account uuid, p_what text, p_count bigint) returns void
language plpgsql
set search_path = ''
as $$
begin
  perform private.raise_alert(p_account, 'account', p_what || '_left_out', 'warning', format(
    '%s %s of account %s are left out and cannot be copied: a name has over 64 characters, or the account over 10000 '
    'symbols. '
    'Hide symbols in the terminal, or ask the broker for other names.',
    p_count, p_what, (select a.name from public.trading_accounts a where a.id = p_account)),
      jsonb_build_object('count', p_count))
  where p_count > 0;
end
$$;
comment on function private.alert_left_out(uuid, text, bigint) is
  'Alerts the account''s user that p_count symbols or positions are beyond the limits and were left out; 0: does '
  'nothing.';

-- {"alert_id"} -> {"alert_id", "seen_at"}. A second call changes nothing.
create function private.mark_alert_seen(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.require_user();
  v_id bigint := private.int_of(p_request, 'alert_id', 1, 9223372036854775807);
  v_seen timestamptz;
begin
  perform private.refuse_unknown(p_request, 'mark_alert_seen', array['alert_id']);
  update public.alerts a set seen_at = coalesce(a.seen_at, clock_timestamp())
  where a.id = v_id and (a.user_id = v_user or private.is_operator())
  returning a.seen_at into v_seen;
  if v_seen is null then
    raise exception using errcode = 'TC106',
      message = format('mark_alert_seen: alert %s does not exist or is not yours', left(p_request ->> 'alert_id', 20)),
      hint = 'Check the id.';
  end if;
  return jsonb_build_object('alert_id', v_id, 'seen_at', private.rfc3339(v_seen));
end
$$;
comment on function private.mark_alert_seen(jsonb) is 'Users: {"alert_id"} -> {"alert_id", "seen_at"}.';

create function public.mark_alert_seen(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.mark_alert_seen(p_request) $$;
comment on function public.mark_alert_seen(jsonb) is
  'Users and operators: marks an alert as seen; what happens afterwards is a new alert. A second call changes nothing.
Request:
- alert_id (integer; required; 1 or more): alert of the caller; operators: any
Answer:
- alert_id (integer): the alert
- seen_at (time): when it was first marked
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"alert_id": 42} -> {"alert_id": 42, "seen_at": "2026-12-01T09:30:00.000000Z"}';
grant execute on function private.mark_alert_seen(jsonb), public.mark_alert_seen(jsonb) to authenticated;

-- A list of at most 1,000 ids; null: none was given.
create function private.alert_ids(p_ids jsonb) returns bigint[]
language plpgsql immutable
set search_path = ''
as $$
begin
  if coalesce(jsonb_typeof(p_ids), 'null') = 'null' then
    return null;
  end if;
  if jsonb_typeof(p_ids) <> 'array' or jsonb_array_length(case jsonb_typeof(p_ids) when 'array' then p_ids
      else '[]' end) > 1000
    or exists (select from jsonb_array_elements(case jsonb_typeof(p_ids) when 'array' then p_ids else '[]' end) e
      where jsonb_typeof(e) <> 'number' or not pg_input_is_valid(e #>> '{}', 'bigint')) then
    raise exception using errcode = 'TC001', message = 'alert_ids: expected a list of at most 1000 whole numbers';
  end if;
  return array(select (e #>> '{}')::bigint from jsonb_array_elements(p_ids) e);
end
$$;
comment on function private.alert_ids(jsonb) is 'The ids of a request, TC001 if they are no list of whole numbers.';

-- {"alert_ids"} or {"until"} -> {"alert_ids"}. Marks only what was not seen yet; a second call marks nothing.
create function private.mark_alerts_seen(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.require_user();
  v_operator boolean := private.is_operator();
  v_until timestamptz := private.time_of(p_request, 'until');
  v_ids bigint[];
  v_strange bigint;
begin
  perform private.refuse_unknown(p_request, 'mark_alerts_seen', array['alert_ids', 'until']);
  if (coalesce(jsonb_typeof(p_request -> 'alert_ids'), 'null') = 'null') = (v_until is null) then
    raise exception using errcode = 'TC001',
      message = 'mark_alerts_seen: alert_ids or until must be given, and not both',
      hint = 'Pass the ids of the alerts that were shown, or the time at which they were read.';
  end if;
  v_ids := private.alert_ids(p_request -> 'alert_ids');
  select i into v_strange from unnest(v_ids) i
  where not exists (select from public.alerts a where a.id = i
    and (a.user_id = v_user or a.user_id is null and v_operator)) limit 1;
  if v_strange is not null then
    raise exception using errcode = 'TC106',
      message = format('mark_alerts_seen: alert %s does not exist or is not yours; none was marked', v_strange),
      hint = 'Check the ids.';
  end if;
  with marked as (
    update public.alerts a set seen_at = clock_timestamp()
    where a.seen_at is null and (a.id = any (v_ids) or a.updated_at <= v_until)
      and (a.user_id = v_user or a.user_id is null and v_operator)
    returning a.id
  )
  select array_agg(m.id order by m.id) into v_ids from marked m;
  return jsonb_build_object('alert_ids', to_jsonb(coalesce(v_ids, '{}')));
end
$$;
comment on function private.mark_alerts_seen(jsonb) is
  'Users: {"alert_ids"} or {"until"} -> {"alert_ids"}: those that were marked now.';

create function public.mark_alerts_seen(p_request jsonb) returns jsonb
language sql
set search_path = ''
as $$ select private.mark_alerts_seen(p_request) $$;
comment on function public.mark_alerts_seen(jsonb) is
  'Users: marks several of the caller''s own alerts as seen, by their ids or all until a time; an
  operator''s own include those for operators. All or none. A second call marks nothing.
Request:
- alert_ids (list of integers; required unless until is given; up to 1000): alerts of the caller
- until (time; required unless alert_ids is given): all that happened last at this time or before
Answer:
- alert_ids (list of integers): the alerts that were marked now
Errors: TC001 TC105 TC106 TC108 TC301
Example: {"alert_ids": [42, 43]} -> {"alert_ids": [42, 43]}';
grant execute on function private.mark_alerts_seen(jsonb), public.mark_alerts_seen(jsonb) to authenticated;
