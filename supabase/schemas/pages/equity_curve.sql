-- equity_curve: equity and balance of an account over time, thinned so that no low or high is lost.

-- Security definer: users may not read settings.
create function private.curve_bucket(p_from timestamptz, p_to timestamptz, p_points bigint) returns interval
language plpgsql stable security definer set search_path = '' as $$
begin
  return greatest((p_to - p_from) / p_points, private.setting_s('snapshot_every_s'));
end $$;
comment on function private.curve_bucket(timestamptz, timestamptz, bigint) is
  'The width of a bucket: as many as asked for, but none shorter than the distance of two snapshots.';

-- Long buckets are made of days, because a year has half a million snapshots.
create function private.curve_points(p_account uuid, p_from timestamptz, p_to timestamptz, p_bucket interval)
returns table (at timestamptz, first_equity numeric, min_equity numeric, max_equity numeric, last_equity numeric,
  last_balance numeric)
language plpgsql stable security invoker set search_path = '' as $$
begin
  if p_bucket >= interval '1 day' then
    return query
      select date_bin(p_bucket, d.first_at, p_from), (array_agg(d.first_equity order by d.day))[1], min(d.min_equity),
        max(d.max_equity), (array_agg(d.last_equity order by d.day desc))[1],
        (array_agg(d.last_balance order by d.day desc))[1]
      from public.account_days d
      where d.account_id = p_account and d.day between p_from::date - 1 and p_to::date + 1
        and d.first_at >= p_from and d.first_at < p_to
      group by 1;
    return;
  end if;
  return query
    select date_bin(p_bucket, s.at, p_from), (array_agg(s.equity order by s.at))[1], min(s.equity), max(s.equity),
      (array_agg(s.equity order by s.at desc))[1], (array_agg(s.balance order by s.at desc))[1]
    from public.account_snapshots s
    where s.account_id = p_account and s.at >= p_from and s.at < p_to
    group by 1;
end $$;
comment on function private.curve_points(uuid, timestamptz, timestamptz, interval) is
  'First, lowest, highest and last equity, and last balance, of each bucket that has figures.';

create function private.equity_curve(p_request jsonb) returns jsonb
language plpgsql stable security invoker set search_path = '' as $$
declare
  v_user uuid := private.page_user();
  v_account public.trading_accounts := private.own_account(private.uuid_of(p_request, 'account_id'), true);
  v_to timestamptz := coalesce(private.time_of(p_request, 'to'), now());
  v_from timestamptz := coalesce(private.time_of(p_request, 'from'), v_to - interval '1 day');
  v_points bigint := coalesce(private.int_of(p_request, 'points', 2, 500), 300);
  v_bucket interval;
begin
  perform private.refuse_unknown(p_request, 'equity_curve', array['account_id', 'from', 'to', 'points']);
  if v_from >= v_to or v_to - v_from > interval '20 years' then
    raise exception using errcode = 'TC303',
      message = format('equity_curve: from is %s and to is %s', private.rfc3339(v_from), private.rfc3339(v_to)),
      hint = 'from must be before to, by at most 20 years.';
  end if;
  v_bucket := private.curve_bucket(v_from, v_to, v_points);
  return jsonb_build_object(
    'server_time', private.server_time(),
    'account_id', v_account.id,
    'currency', v_account.currency,
    'from', private.rfc3339(v_from),
    'to', private.rfc3339(v_to),
    'bucket_s', round(extract(epoch from v_bucket)),
    'points', coalesce((
      select jsonb_agg(jsonb_build_object('at', private.rfc3339(p.at),
        'equity', jsonb_build_array(private.plain(p.first_equity), private.plain(p.min_equity),
          private.plain(p.max_equity), private.plain(p.last_equity)),
        'balance', private.plain(p.last_balance)) order by p.at)
      from private.curve_points(v_account.id, v_from, v_to, v_bucket) p), '[]'));
end $$;

create function public.equity_curve(p_request jsonb) returns jsonb
language sql stable security invoker set search_path = '' as $$ select private.equity_curve(p_request) $$;
comment on function public.equity_curve(jsonb) is
  'Users and operators: equity and balance of an account over time.
Request:
- account_id (uuid; required): account of the caller; operators: any account
- from (time): left out: a day before to
- to (time): left out: now
- points (integer; 2 to 500): into how many buckets the time is divided at most; left out: 300
Answer:
- server_time (time): the database''s clock
- account_id (uuid): the account
- currency (text): currency of the amounts
- from, to (time): the time that was asked for
- bucket_s (integer): seconds of a bucket; from a day on they are made of the days of account_days
- points (list of objects): the buckets that have figures, in order; in a gap nothing was measured
- points[].at (time): when the bucket begins
- points[].equity (list of 4 texts): first, lowest, highest and last measured equity
- points[].balance (text): last measured balance
Errors: TC001 TC105 TC106 TC108 TC301 TC303
Example: {"account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02", "from": "2026-12-01T00:00:00Z",
"to": "2026-12-02T00:00:00Z", "points": 2}
-> {"server_time": "2026-12-02T09:30:00.000000Z", "account_id": "0b9f4a52-6c1d-4e0b-9a57-2f6f0c8e1a02",
"currency": "USD", "from": "2026-12-01T00:00:00.000000Z", "to": "2026-12-02T00:00:00.000000Z", "bucket_s": 43200,
"points": [{"at": "2026-12-01T00:00:00.000000Z", "equity": ["1000", "990.5", "1010", "1004"], "balance": "1000"}]}';
revoke all on function public.equity_curve(jsonb) from public, anon;
grant execute on function public.equity_curve(jsonb), private.equity_curve(jsonb),
  private.curve_bucket(timestamptz, timestamptz, bigint),
  private.curve_points(uuid, timestamptz, timestamptz, interval)
to authenticated;
