-- Refusals in words: the figures that led to a refusal. docs/errors.md explains each code.

-- What a pair of lists lets through: "only a, b", "all but c".
create function private.filter_words(p_only text[], p_except text[]) returns text
language plpgsql immutable set search_path = '' as $$
begin
  return concat_ws(', ', case when cardinality(p_only) > 0 then 'only ' || private.listed(p_only) else 'all' end,
    case when cardinality(p_except) > 0 then 'but not ' || private.listed(p_except) end);
end $$;

-- The figures behind a refusal that was decided before sizing; null if the code says everything. p_symbol: the
-- follower's.
create function private.refusal_words(
  p_copier public.copiers, p_position public.positions, p_follower public.trading_accounts,
    p_symbol public.account_symbols, p_reason text,
  p_now timestamptz
) returns text
language plpgsql stable set search_path = '' as $$
begin
  return case p_reason
    when 'too_old' then format('The account was last seen without the trade %s s ago; the copier allows %s s.',
      round(extract(epoch from p_now - p_position.unseen_at), 1), trim_scale(p_copier.max_age_ms / 1000.0))
    when 'side_filtered' then format('The master''s side is %s; the copier copies %s only.', p_position.side,
      p_copier.sides)
    when 'symbol_filtered' then case when private.matches(p_position.symbol, private.compiled(p_copier.symbols_except))
      then format('%s is among the symbols that the copier leaves out: %s.', p_position.symbol,
        private.listed(p_copier.symbols_except))
      else format('%s is not among the symbols that the copier copies: %s.', p_position.symbol,
        private.listed(p_copier.symbols_only)) end
    when 'magic_filtered' then format('The magic number is %s; the copier copies %s.', coalesce(p_position.magic, '0'),
      private.filter_words(p_copier.magic_only, p_copier.magic_except))
    when 'comment_filtered' then format('The comment is "%s"; the copier copies %s.', p_position.comment,
      private.filter_words(p_copier.comment_only, p_copier.comment_except))
    when 'outside_hours' then format('It was %s in %s; trades are opened on weekdays %s%s.',
      to_char(p_now at time zone p_copier.time_zone, 'FMDay HH24:MI'), p_copier.time_zone,
        array_to_string(p_copier.weekdays, ', '),
      case when p_copier.open_from is not null
        then format(' from %s until %s', to_char(p_copier.open_from, 'HH24:MI'),
          to_char(p_copier.open_until, 'HH24:MI')) else '' end)
    when 'flat_by' then format('%s must be flat from %s until %s.', p_follower.name,
      to_char(p_follower.flat_from at time zone 'UTC', 'YYYY-MM-DD HH24:MI'),
      to_char(p_follower.flat_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
    when 'news_window' then private.quiet_words(p_follower, p_symbol, p_position.symbol, p_now)
    when 'min_equity' then format('The equity is %s %s (reported %s); the copier needs %s.',
      coalesce(trim_scale(p_follower.equity)::text, 'unknown'),
      p_follower.currency, coalesce(to_char(p_follower.funds_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
        'never'),
      trim_scale(p_copier.min_equity))
    when 'max_open_positions' then format('The limit of open positions is %s, and so many are held or under way.',
      p_copier.max_open_positions)
    when 'max_open_lots' then format('The limit of open lots is %s, and so many are held or under way.',
      trim_scale(p_copier.max_open_lots))
    when 'max_trades_per_day'
      then format('The limit of trades a day is %s, and so many were opened since midnight in %s.',
      p_copier.max_trades_per_day, p_copier.time_zone)
    when 'trade_disabled' then format('%s is %s at the follower.', p_symbol.name,
      replace(p_symbol.trade_mode, '_', ' '))
    when 'account_halted' then private.without_code(p_follower.status_reason)
    when 'account_protected' then case when p_follower.resumes_at is not null
      then format('The rule "%s" has stopped the account; copying goes on by itself at %s.',
        replace(p_follower.copy_state_reason, '_', ' '),
        to_char(p_follower.resumes_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')) end
    when 'follower_offline' then format('The follower''s status is %s, its last heartbeat was %s.',
      p_follower.status,
      coalesce(to_char(p_follower.seen_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'))
  end;
end $$;
