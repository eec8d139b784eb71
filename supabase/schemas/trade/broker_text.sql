-- Broker texts over a limit are cut instead of refused, because a trade must not be lost for a long comment.
--
-- Limits: symbol names 64 characters · other texts 500 characters · 10,000 symbols per account

-- Brokers write currency codes in different ways.
create function private.currency_of(p jsonb) returns text
language sql immutable
set search_path = ''
as $$
  select c from upper(btrim(case when jsonb_typeof(p) = 'string' then left(p #>> '{}', 100) end)) c
  where c ~ '^[A-Z0-9]{2,10}$'
$$;
comment on function private.currency_of(jsonb) is
  'A currency code in capitals; null if the value is not one.';

-- Some brokers send 0, or two thousand million, for "not limited"; such values are useless for computing.
create function private.leverage_of(p jsonb) returns integer
language sql immutable
set search_path = ''
as $$
  select case when p #>> '{}' ~ '^[0-9]{1,6}$'
    and (p #>> '{}')::integer between 1 and 100000 then (p #>> '{}')::integer end
$$;
comment on function private.leverage_of(jsonb) is 'A leverage from 1 to 100000; null if the value is not one.';

-- Such a position needs cut_position() even if it is short.
create function private.is_odd_position(p jsonb) returns boolean
language sql immutable
set search_path = ''
as $$
  select coalesce(jsonb_typeof(p -> 'magic') in ('object', 'array')
    or jsonb_typeof(p -> 'comment') in ('object', 'array')
    or jsonb_typeof(p -> 'replaces') in ('object', 'array') or length(p ->> 'replaces') > 64
    or coalesce(p ->> 'replaces_kind', 'order') not in ('position', 'order'), false)
$$;
comment on function private.is_odd_position(jsonb) is
  'Whether magic, comment or replaces of a position is not text, or replaces (replaces_kind) is not a ticket (kind).';

-- A position as its broker describes it, with texts cut to their limits. Fields that are not text, and impossible
-- tickets, become null.
create function private.cut_position(p_position jsonb) returns jsonb
language sql immutable
set search_path = ''
as $$
  select case when jsonb_typeof(p_position) = 'object' then (
    select jsonb_object_agg(e.key, case
      when e.key in ('magic', 'comment', 'replaces') and private.is_no_text(e.value) or e.key = 'replaces'
        and length(e.value #>> '{}') > 64
        or e.key = 'replaces_kind' and e.value #>> '{}' not in ('position', 'order') then null
      when jsonb_typeof(e.value) = 'string'
      then to_jsonb(left(e.value #>> '{}', case e.key when 'comment' then 200 else 100 end)) else e.value end)
    from jsonb_each(p_position) e
    where e.key = any (array['ticket', 'kind', 'symbol', 'side', 'lots', 'price', 'sl', 'tp', 'order_type', 'magic',
      'comment', 'opened_at', 'expires_at',
      'tag', 'replaces', 'replaces_kind'])
  ) else p_position end
$$;
comment on function private.cut_position(jsonb) is
  'The documented fields of a position, with texts cut: comments to 200 characters.';

-- For events that are unusually long or odd. Texts are cut and undocumented fields are left out; of a snapshot, also
-- positions whose ticket is too long. A close is never refused because of its comment.
create function private.cut_event(p_event jsonb) returns jsonb
language sql immutable
set search_path = ''
as $$
  select case when jsonb_typeof(p_event) = 'object' then (
    select jsonb_object_agg(e.key, case
      when e.key = 'position' then private.cut_position(e.value)
      when e.key = 'positions' and jsonb_typeof(e.value) = 'array' then (
        select coalesce(jsonb_agg(private.cut_position(p.value) order by p.n), '[]')
        from jsonb_array_elements(e.value) with ordinality p (value, n)
        where private.is_too_long(p.value -> 'ticket') is not true)
      when e.key = 'close_reason' and private.is_no_text(e.value) then null
      when jsonb_typeof(e.value) = 'string' then to_jsonb(left(e.value #>> '{}', 100))
      else e.value end)
    from jsonb_each(p_event) e
    where e.key = any (array['session', 'seq', 'type', 'position', 'positions', 'evidence', 'close_reason',
      'deal_price', 'dealt_at', 'detected_at',
      'unchanged_at'])
  ) else p_event end
$$;
comment on function private.cut_event(jsonb) is 'The event, cut to the limits for broker texts.';
