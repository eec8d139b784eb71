-- The verdict: is anything wrong now, and what? The first line of the board, of the terminal and of JSON. Everything in
-- it is computed when it is read, so it is right even if nothing runs any more.

create function private.counted(p_count bigint, p_one text, p_most bigint default null) returns text
language sql immutable set search_path = '' as $$
  select format('%s%s %s%s', least(p_count, p_most), case when p_count > p_most then '+' else '' end, p_one,
    case when p_count = 1 then '' else 's' end)
$$;
comment on function private.counted(bigint, text, bigint) is
  'A count with its noun: "1 account", "3 accounts"; more than p_most: "50+ alerts".';

-- A finding: rank (0: the first line), tone (bad or warn), code, words, since when.
create type private.finding as (rank integer, tone text, code text, words text, since timestamptz);

create function private.findings_of_closes(p_user uuid, p_now timestamptz) returns setof private.finding
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select case o.status when 'weekend' then 4 else 0 end, case o.status when 'weekend' then 'warn' else 'bad' end,
    'close_overdue', private.overdue_words(o.account, o.act, o.symbol, o.lots, o.why, o.since, p_now), o.since
  from private.overdue_closes(p_user, p_now) o limit 20;
  return query
  select 1, 'bad', 'master_unseen', format('%s has not been seen for %s s; open on %s: %s', u.master,
    floor(extract(epoch from p_now - u.since)), u.account, private.copies_words(u.links)), u.since
  from (select * from private.unseen_masters(p_user, p_now) m order by m.since, m.account limit 20) u;
end $$;

create function private.findings_of_farm(p_user uuid, p_now timestamptz) returns setof private.finding
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select case t.state when 'off' then 2 else 4 end, case t.state when 'off' then 'bad' else 'warn' end,
    'trading_' || t.state, format('%s by the operators: %s',
      case t.state when 'off' then 'All trading is stopped' else 'Opening trades is stopped' end, t.reason),
    t.changed_at
  from public.trading_switch t where t.state <> 'on';
  return query
  select 2, 'bad', 'vps_lost', case when count(*) = 1 then format('Agent %s is offline', min(v.name))
      else format('%s agents are offline: %s', count(*), private.listed(array_agg(v.name order by v.name))) end,
    min(v.last_heartbeat_at)
  from public.vps_instances v
  where p_user is null and v.retired_at is null
    and (v.status = 'offline' or v.status <> 'enrolled' and private.lease_end(v) <= p_now)
  having count(*) > 0;
end $$;

create function private.findings_of_accounts(p_user uuid, p_now timestamptz) returns setof private.finding
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  with accounts as materialized (
    select s.name, s.status, s.reason, s.waits_for, s.since from private.account_statuses(p_user, p_now) s
  )
  select 2, 'bad', 'not_connected', case when count(*) = 1
      then format('%s is %s%s', min(a.name), min(a.status), 
        coalesce(': ' || min(left(private.without_code(a.reason), 200)), ''))
      else format('%s accounts are not connected: %s', count(*), private.listed(array_agg(a.name order by a.name))) end,
    min(a.since)
  from accounts a where a.status in ('disconnected', 'halted') having count(*) > 0
  union all
  select 4, 'warn', 'unstable', case when count(*) = 1 then format('%s is %s', min(a.name), min(a.status))
      else format('%s accounts are connecting or degraded', count(*)) end, min(a.since)
  from accounts a where a.status in ('connecting', 'degraded') having count(*) > 0
  union all
  select 4, 'warn', 'pending', format('%s pending: %s',
      case when count(*) = 1 then min(a.name) || ' is'
        else format('%s accounts are', count(*)) end, a.waits_for), min(a.since)
  from accounts a where a.status = 'pending' group by a.waits_for;
end $$;

create function private.findings_of_alerts(p_user uuid) returns setof private.finding
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select case u.severity when 'critical' then 3 else 5 end, case u.severity when 'critical' then 'bad' else 'warn' end,
    'alerts', case when count(*) = 1 then 'One unread ' || min(u.word)
      else private.counted(count(*), 'unread ' || min(u.word), 50) end, min(u.created_at)
  from (
    select l.severity, l.created_at, case l.severity when 'critical' then 'critical alert' else 'alert' end as word
    from public.alerts l
    where l.seen_at is null and l.severity in ('critical', 'warning') and (p_user is null or l.user_id = p_user)
    limit 1000
  ) u group by u.severity;
end $$;

create function private.findings_of_orders(p_user uuid, p_now timestamptz) returns setof private.finding
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select 3, 'bad', 'unknown', case when count(*) = 1
      then 'One order has an unknown outcome; the agent is looking for it'
      else format('%s have an unknown outcome; the agent is looking for them', private.counted(count(*), 'order', 200))
    end, min(q.queued_at)
  from public.trade_execution_queue q
  where q.in_flight and q.status = 'unknown' and (p_user is null or q.user_id = p_user) having count(*) > 0;
  return query  -- what closes has findings of its own, sooner
  select 3, 'bad', 'stuck', case when count(*) = 1 then 'One execution is stuck past the deadline'
      else private.counted(count(*), 'execution', 200) || ' are stuck past the deadline' end, min(q.queued_at)
  from public.trade_execution_queue q
  where q.in_flight and q.status <> 'unknown' and (p_user is null or q.user_id = p_user)
    and q.action not in ('close', 'reduce', 'cancel')
    and case when q.status = 'retrying' then q.next_attempt_at else q.send_before end < p_now - interval '5 seconds'
  having count(*) > 0;
  return query
  select 5, 'warn', 'rejected', case when count(*) = 1 then 'One order was rejected within the last hour'
      else private.counted(count(*), 'order', 200) || ' were rejected within the last hour' end, max(r.at)
  from (
    select coalesce(q.finalized_at, q.updated_at) as at from public.trade_execution_queue q
    where q.status = 'rejected' and q.updated_at > p_now - interval '1 hour'
      and coalesce(q.finalized_at, q.updated_at) > p_now - interval '1 hour' and (p_user is null or q.user_id = p_user)
    limit 201
  ) r having count(*) > 0;
  return query  -- opens that their agent could not send; what a copier's own limits ended is no fault
  select 5, 'warn', 'not_sent', case when count(*) = 1 then 'One order could not be sent in time within the last hour'
      else private.counted(count(*), 'order', 200) || ' could not be sent in time within the last hour' end, max(r.at)
  from (
    select q.finalized_at as at from public.trade_execution_queue q
    where q.status = 'expired' and q.updated_at > p_now - interval '1 hour'
      and q.finalized_at > p_now - interval '1 hour' and q.reason not in ('slippage', 'too_old')
      and (p_user is null or q.user_id = p_user)
    limit 201
  ) r having count(*) > 0;
end $$;

-- What is said when nothing is wrong. It is "ok" only if every account is connected.
create function private.calm_words(p_user uuid, p_now timestamptz, out tone text, out words text)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_all bigint;
  v_connected bigint;
  v_resting bigint;
  v_on bigint;
  v_agents bigint;
begin
  select count(*), count(*) filter (where s.status = 'connected'), count(*) filter (where s.status = 'weekend')
  into v_all, v_connected, v_resting from private.account_statuses(p_user, p_now) s;
  select count(*) into v_agents from public.vps_instances v
  where p_user is null and v.retired_at is null and v.status <> 'enrolled';
  select count(*) into v_on from public.copiers c
  where c.mode = 'on' and c.removal is null and c.removed_at is null and (p_user is null or c.user_id = p_user);
  tone := case when v_all > 0 and v_connected = v_all then 'ok' else 'idle' end;
  words := case
    when v_all = 0 and v_agents > 0 then 'Nothing is wrong; no account is connected yet'
    when v_all = 0 then 'No account is connected yet'
    else format('All is well:%s %s of %s connected%s, %s on',
      case when p_user is null then ' ' || private.counted(v_agents, 'agent') || ' online,' else '' end, v_connected,
      private.counted(v_all, 'account'), case when v_resting > 0 then format(', %s closed for the weekend', v_resting)
        else '' end, private.counted(v_on, 'copier')) end;
end $$;

-- p_user null: of the whole installation, as operators and the terminal see it.
create function private.verdict_of(p_user uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_found private.finding[] := array(
    select row(f.rank, f.tone, f.code, f.words, f.since)::private.finding from (
      select * from private.findings_of_closes(p_user, v_now)
      union all
      select * from private.findings_of_farm(p_user, v_now)
      union all
      select * from private.findings_of_accounts(p_user, v_now)
      union all
      select * from private.findings_of_alerts(p_user)
      union all
      select * from private.findings_of_orders(p_user, v_now)
    ) f order by f.rank, f.since, f.words);
  v_tone text := v_found[1].tone;
  v_words text := v_found[1].words;
begin
  if cardinality(v_found) = 0 then
    select c.tone, c.words into v_tone, v_words from private.calm_words(p_user, v_now) c;
  elsif cardinality(v_found) > 1 then
    v_words := format('%s, and %s', v_words, private.counted(cardinality(v_found) - 1, 'more problem'));
  end if;
  return jsonb_build_object(
    'tone', v_tone,
    'text', v_words,
    'since', private.rfc3339(case cardinality(v_found) when 1 then v_found[1].since end),
    'findings', (select coalesce(jsonb_agg(jsonb_build_object('tone', f.tone, 'code', f.code, 'text', f.words, 'since',
      private.rfc3339(f.since)) order by n), '[]') from unnest(v_found) with ordinality as f (rank, tone, code, words,
        since, n)),
    'server_time', private.rfc3339(v_now));
end $$;
comment on function private.verdict_of(uuid) is
  'Is anything wrong now with this user''s accounts (null: with the installation)? See verdict().';

create function private.verdict(p_request jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := private.require_user();
begin
  perform private.refuse_unknown(p_request, 'verdict', array['all']);
  if coalesce(jsonb_typeof(p_request -> 'all'), 'null') not in ('null', 'boolean') then
    raise exception using errcode = 'TC001', message = 'verdict: all must be true or false';
  elsif (p_request ->> 'all')::boolean then
    perform private.require_operator();
    v_user := null;
  end if;
  return private.verdict_of(v_user);
end $$;
comment on function private.verdict(jsonb) is
  'Users: {"all"?} -> {"tone", "text", "since", "findings", "server_time"}.';

create function public.verdict(p_request jsonb) returns jsonb
language sql stable
set search_path = ''
as $$ select private.verdict(p_request) $$;
comment on function public.verdict(jsonb) is
  'Users: is anything wrong now, and what? Computed when it is called, so it is right even if agents and upkeep stand
  still.
Request:
- all (boolean): only operators: of the whole installation; left out or null: of the caller''s own accounts
Answer:
- tone (text; ok, idle, warn or bad): ok: every account is connected and nothing is wrong; idle: nothing is wrong, but
  not every account is connected; warn: look soon; bad: look now
- text (text): the verdict in one sentence, without a full stop
- since (time or null): since when, if there is a single finding
- findings (list of objects): what is wrong, the most urgent first: tone, code, text and since of each
- server_time (time): the database''s clock
Errors: TC001 TC105 TC107 TC108 TC301
Example: {} -> {"tone": "bad", "text": "prop-1 is disconnected: its VPS sends no heartbeats", "since":
  "2026-12-01T09:30:00.000000Z", "findings": [{"tone": "bad", "code": "not_connected", "text":
  "prop-1 is disconnected: its VPS sends no heartbeats", "since": "2026-12-01T09:30:00.000000Z"}], "server_time":
  "2026-12-01T09:31:00.000000Z"}';
grant execute on function private.verdict(jsonb), public.verdict(jsonb) to authenticated;
