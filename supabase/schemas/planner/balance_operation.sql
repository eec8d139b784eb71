-- Balance operations move what protection rules measure from, so that money paid in or out is neither profit nor loss.

-- The deposits and withdrawals of a report that are of the documented form; everything else of it is left out.
create function private.readable_operations(p_operations jsonb, p_at timestamptz)
returns table (number text, kind text, amount numeric, at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  return query
    select distinct on (e ->> 'number') e ->> 'number', e ->> 'kind',
      case e ->> 'kind' when 'withdrawal' then -abs((e ->> 'amount')::numeric) else abs((e ->> 'amount')::numeric) end,
      coalesce(case when pg_input_is_valid(e ->> 'at', 'timestamptz') then least((e ->> 'at')::timestamptz, p_at) end,
        p_at)
    from jsonb_array_elements(p_operations) e
    where jsonb_typeof(e) = 'object' and e ->> 'kind' in ('deposit', 'withdrawal')
      and length(e ->> 'number') between 1 and 64 and private.is_number(e -> 'amount')
      and abs((case when private.is_number(e -> 'amount') then e ->> 'amount' end)::numeric) between 1e-8 and 1e14
    order by e ->> 'number';
end $$;

-- A rule's figures after an operation of this amount.
create function private.move_rule(r public.protection_rules, p_amount numeric, p_number text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.protection_rules x set day_start_equity = x.day_start_equity + p_amount,
    high_water_mark = x.high_water_mark + p_amount
  where x.id = r.id;
  perform private.write_audit('moved_by_balance_operation', 'protection_rules', r.id::text, r.user_id,
    jsonb_build_object('number', p_number, 'amount', p_amount,
      'day_start_equity', jsonb_build_array(r.day_start_equity, r.day_start_equity + p_amount),
      'high_water_mark', jsonb_build_array(r.high_water_mark, r.high_water_mark + p_amount)));
end $$;

-- Books the operations of a report that are not booked yet. By contract they are in the report's own figures and in no
-- earlier ones; so everything that was measured before them moves by their amount. One that is told late moves only
-- what is older than itself. Returns by how much the account's last figures must be moved to compare with the new
-- ones. The caller holds the plan locks of the account and its neighbours and no lock on its row.
create function private.book_balance_operations(p_account uuid, p_operations jsonb, p_at timestamptz) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  a public.trading_accounts;
  o record;
  r public.protection_rules;
  v_slack interval := interval '10 s';  -- a broker's times may be whole seconds, or of another clock
  v_sum numeric := 0;
begin
  select * into a from public.trading_accounts x where x.id = p_account;
  for o in select * from private.readable_operations(p_operations, p_at) x order by x.at, x.number loop
    insert into public.balance_operations (account_id, number, user_id, kind, amount, made_at, counted)
    values (p_account, o.number, a.user_id, o.kind, o.amount, o.at, a.funds_at is not null)
    on conflict (account_id, number) do nothing;
    -- what is told with the very first figures is the account's history
    continue when not found or a.funds_at is null;
    if o.at >= a.funds_at - v_slack then v_sum := v_sum + o.amount; end if;
    update public.trading_accounts x set initial_balance = x.initial_balance + o.amount,
      initial_moved = x.initial_moved + o.amount
    where x.id = p_account and x.initial_balance is not null
      and o.at >= coalesce(x.initial_balance_at, '-infinity') - v_slack;
    for r in
      select * from public.protection_rules x
      where x.account_id = p_account and not x.count_balance_operations
        and o.at >= coalesce(x.day_start_at, '-infinity') - v_slack
        and coalesce(x.day_start_equity, x.high_water_mark) is not null
      order by x.id for no key update
    loop
      perform private.move_rule(r, o.amount, o.number);
    end loop;
  end loop;
  return v_sum;
end $$;

-- The operations of a report, if it tells any that are not booked yet: then by how much the last figures move.
create function private.take_balance_operations(p_account uuid, p_session bigint, p_vps uuid, p_operations jsonb,
  p_at timestamptz) returns numeric
language plpgsql security definer set search_path = '' as $$
begin
  if jsonb_typeof(p_operations) <> 'array' or jsonb_array_length(p_operations) > 1000 then
    raise exception using errcode = 'TC001', message = 'balance_operations: expected an array of at most 1000 entries';
  end if;
  if not exists (select 1 from public.trading_accounts a where a.id = p_account and a.session = p_session
      and a.session_vps_id = p_vps)
    or not exists (select 1 from jsonb_array_elements(p_operations) e where not exists (
      select 1 from public.balance_operations b where b.account_id = p_account and b.number = e ->> 'number')) then
    return 0;
  end if;
  perform private.lock_accounts(private.with_neighbours(p_account));
  return private.book_balance_operations(p_account, p_operations, p_at);
end $$;
