-- Faults: work on which the planner's own code failed. A report, event or copy that makes it raise an error is stored
-- here with everything needed to repeat it, so that it blocks nothing else and is not lost. The table is usually empty;
-- upkeep/quarantine.sql retries its rows.

create table private.quarantine (
  account_id uuid not null references public.trading_accounts (id) on delete cascade,
  kind text not null,
  subject text not null,
  body jsonb not null default '{}',
  error text not null,
  context text,
  times integer not null default 1,
  first_at timestamptz not null,
  last_at timestamptz not null,
  retry_at timestamptz not null,
  primary key (account_id, kind, subject),
  constraint kind_is_known check (kind in
    ('report', 'event', 'changes', 'decision', 'explain', 'link', 'offer', 'overdue', 'retries', 'flatten', 'existing',
      'symbols', 'watch'))
);
comment on table private.quarantine is
  'Work on which the planner''s own code raised an error: stored, retried automatically, deleted once it succeeds. '
  'Each row raised an alert.';
comment on column private.quarantine.account_id is
  'the account whose plan lock, together with its followers'', a retry needs';
comment on column private.quarantine.kind is
  'report, event: the whole entry is in body. changes: changes of a master by reports. decision: a ticket and a '
  'copier. explain: events that wait for decisions.'
  ' link: a copy. offer: an execution that could not be handed out. overdue, retries, flatten, existing, symbols: '
  'parts of an account''s upkeep. watch: what its agent must watch';
comment on column private.quarantine.subject is
  'the failed item: execution and attempt with their number, session:seq, ticket and copier, link, execution';
comment on column private.quarantine.context is 'where in the code it failed';

-- maintain: rows that are due
create index faults_due on private.quarantine (retry_at);
alter table private.quarantine enable row level security;

-- Whether an error is a fault of our own code. Refusals (TC) are answers; after a transient error (such as a deadlock)
-- the caller repeats the call.
create function private.is_fault(p_state text) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  return left(p_state, 2) not in ('TC', '08', '40', '53', '57', '58') and p_state <> '55P03';
end $$;

-- Sets the work aside, or counts another failure: the first retry is after 5 s, the pause doubles up to a minute. The
-- alert goes to the owner of p_concerns; operators see all alerts.
create function private.note_fault(p_account uuid, p_kind text, p_subject text, p_body jsonb, p_concerns uuid,
  p_what text, p_error text, p_context text,
  p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  raise warning 'planner fault, %: % (account %) %', p_what, p_error, p_account, p_context;
  insert into private.quarantine as f (account_id, kind, subject, body, error, context, first_at, last_at, retry_at)
  values (p_account, p_kind, p_subject, coalesce(p_body, '{}'), p_error, p_context, p_now, p_now,
    p_now + interval '5 s')
  on conflict (account_id, kind, subject) do update set body = excluded.body, error = excluded.error,
    context = excluded.context,
    times = f.times + 1, last_at = p_now, retry_at = p_now + make_interval(secs => least(60,
      5 * 2 ^ least(f.times, 10)));
  perform private.raise_alert(p_concerns, 'planner', 'planner_fault', 'critical', format(
    'The copier''s own code failed on %s. It is kept and tried again by itself, everything else goes on; tell the '
    'operators: %s', p_what, p_error),
    jsonb_build_object('kind', p_kind, 'subject', p_subject, 'error', p_error));
end $$;
