-- Alerts: what a user has to know without looking for it. One place for all of them: whoever finds something calls private.raise_alert().

create table public.alerts (
  id bigint generated always as identity primary key,
  user_id uuid not null references auth.users (id) on delete cascade,
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
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
  constraint detail_is_an_object check (jsonb_typeof(detail) = 'object')
);
comment on table public.alerts is 'What a user has to know of an account. Until it is seen, the same thing (account, kind, reason) stays one row that counts.';
comment on column public.alerts.id is 'Number of the alert.';
comment on column public.alerts.user_id is 'Whose account it is about.';
comment on column public.alerts.account_id is 'The account.';
comment on column public.alerts.kind is 'What spoke up: protection, stop_out, …';
comment on column public.alerts.reason is 'What happened, as a code: the kind of a protection rule, a reason of docs/errors.md, …';
comment on column public.alerts.severity is 'info; warning; critical = positions were closed, or money is at risk until somebody looks.';
comment on column public.alerts.message is 'What happened, to what, and what to do.';
comment on column public.alerts.detail is 'The figures behind it.';
comment on column public.alerts.times is 'How often it happened since it was last seen.';
comment on column public.alerts.created_at is 'When it happened first.';
comment on column public.alerts.updated_at is 'When it happened last, or was seen.';
comment on column public.alerts.seen_at is 'When its user said so; what happens afterwards is a new alert.';

-- raise_alert: the one that is still unseen
create unique index alert_is_one_until_seen on public.alerts (account_id, kind, reason) where seen_at is null;
-- the dashboard; doorbells and retention
create index alerts_of_user on public.alerts (user_id, created_at desc);
create index alerts_updated on public.alerts (updated_at);

alter table public.alerts enable row level security;
create policy "own alerts are readable" on public.alerts for select to authenticated
  using (user_id = (select auth.uid()) or (select private.is_operator()));
create trigger touch before update on public.alerts for each row execute function private.touch();
grant select on public.alerts to authenticated, service_role;


-- Security definer: called wherever something is found, also in an agent's name.
create function private.raise_alert(p_account uuid, p_kind text, p_reason text, p_severity text, p_message text, p_detail jsonb) returns bigint
language plpgsql security definer
set search_path = ''
as $$
declare
  v_id bigint;
begin
  insert into public.alerts as x (user_id, account_id, kind, reason, severity, message, detail)
  select a.user_id, a.id, p_kind, p_reason, p_severity, left(p_message, 1000), coalesce(p_detail, '{}')
  from public.trading_accounts a where a.id = p_account
  on conflict (account_id, kind, reason) where seen_at is null
  do update set times = x.times + 1, severity = excluded.severity, message = excluded.message, detail = excluded.detail
  returning x.id into v_id;
  return v_id;
end
$$;
comment on function private.raise_alert(uuid, text, text, text, text, jsonb) is
  'Tells the account''s user something: (account, kind, reason, severity, message, detail). Unseen, the same thing is counted, not repeated.';


-- {"alert_id"} -> {"alert_id", "seen_at"}. Again changes nothing.
create function private.mark_alert_seen(p_request jsonb) returns jsonb
language plpgsql security definer
set search_path = ''
as $$
declare
  v_user uuid := private.require_user();
  v_id bigint := private.int_of(p_request, 'alert_id', 1, 9223372036854775807);
  v_seen timestamptz;
begin
  update public.alerts a set seen_at = coalesce(a.seen_at, clock_timestamp())
  where a.id = v_id and (a.user_id = v_user or private.is_operator())
  returning a.seen_at into v_seen;
  if v_seen is null then
    raise exception using errcode = 'TC106', message = format('mark_alert_seen: alert %s does not exist or is not yours', p_request ->> 'alert_id'),
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
comment on function public.mark_alert_seen(jsonb) is 'Users: marks an alert of one of their accounts as seen; what happens afterwards is a new alert.';

grant execute on function private.mark_alert_seen(jsonb), public.mark_alert_seen(jsonb) to authenticated;
