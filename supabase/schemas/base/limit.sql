-- The limit of `detail` of an outcome: 2 kB.

-- Details are for people to read. A detail over 2 kB keeps its short values; a long value is replaced by its size and
-- digest.
create function private.short_detail(p_detail jsonb) returns jsonb
language sql immutable
set search_path = ''
as $$
  select case when octet_length(p_detail::text) <= 2048 then p_detail
    when jsonb_typeof(p_detail) <> 'object' or kept.body is null or octet_length(kept.body::text) > 2048
      then jsonb_build_object('cut', left(p_detail::text, 450))
    else kept.body end
  from (
    select jsonb_object_agg(left(e.key, 64), case when octet_length(e.value::text) <= 200 then e.value
      else jsonb_build_object('bytes', octet_length(e.value::text), 'md5', md5(e.value::text)) end) as body
    from jsonb_each(case when jsonb_typeof(p_detail) = 'object' and octet_length(p_detail::text) > 2048
      then p_detail end) e
  ) kept
$$;
comment on function private.short_detail(jsonb) is
  'The detail, cut to at most 2 kB: a long value is replaced by its size and MD5.';
