-- Refusals in words: the figures that led to a refusal. docs/errors.md explains each code.

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
    when 'too_old' then format('The account was last seen without the trade %s s ago; max_age_ms allows %s s.',
      round(extract(epoch from p_now - p_position.unseen_at), 1), trim_scale(p_copier.max_age_ms / 1000.0))
    when 'side_filtered' then format('The master''s side is %s; sides is %s.', p_position.side, p_copier.sides)
    when 'symbol_filtered' then case when private.matches(p_position.symbol, private.compiled(p_copier.symbols_except))
      then format('%s is left out by symbols_except (%s).', p_position.symbol, private.listed(p_copier.symbols_except))
      else format('%s is not among symbols_only (%s).', p_position.symbol, private.listed(p_copier.symbols_only)) end
    when 'magic_filtered' then format('The magic number is %s; magic_only is (%s), magic_except is (%s).',
      coalesce(p_position.magic, '0'),
      private.listed(p_copier.magic_only), private.listed(p_copier.magic_except))
    when 'comment_filtered' then format('The comment is "%s"; comment_only is (%s), comment_except is (%s).',
      p_position.comment,
      private.listed(p_copier.comment_only), private.listed(p_copier.comment_except))
    when 'outside_hours' then format('It was %s in %s; trades are opened on weekdays %s%s.',
      to_char(p_now at time zone p_copier.time_zone, 'FMDay HH24:MI'), p_copier.time_zone,
        array_to_string(p_copier.weekdays, ', '),
      case when p_copier.open_from is not null
        then format(' from %s until %s', to_char(p_copier.open_from, 'HH24:MI'),
          to_char(p_copier.open_until, 'HH24:MI')) else '' end)
    when 'flat_by' then format('%s must be flat from %s until %s (flat_by).', p_follower.name,
      to_char(p_follower.flat_from at time zone 'UTC', 'YYYY-MM-DD HH24:MI'),
      to_char(p_follower.flat_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
    when 'news_window' then private.quiet_words(p_follower, p_symbol, p_position.symbol, p_now)
    when 'min_equity' then format('The equity is %s %s (reported %s); min_equity is %s.',
      coalesce(trim_scale(p_follower.equity)::text, 'unknown'),
      p_follower.currency, coalesce(to_char(p_follower.funds_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
        'never'),
      trim_scale(p_copier.min_equity))
    when 'max_open_positions' then format('max_open_positions is %s, and so many copies are held or under way.',
      p_copier.max_open_positions)
    when 'max_open_lots' then format('max_open_lots is %s, and so many lots are held or under way.',
      trim_scale(p_copier.max_open_lots))
    when 'max_trades_per_day'
      then format('max_trades_per_day is %s, and so many trades were opened since midnight in %s.',
      p_copier.max_trades_per_day, p_copier.time_zone)
    when 'trade_disabled' then format('%s is %s at the follower.', p_symbol.name,
      replace(p_symbol.trade_mode, '_', ' '))
    when 'account_halted' then p_follower.status_reason
    when 'account_protected' then case when p_follower.resumes_at is not null
      then format('%s has stopped the account; copying goes on by itself at %s.', p_follower.copy_state_reason,
        to_char(p_follower.resumes_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')) end
    when 'follower_offline' then format('The follower''s status is %s, its last heartbeat was %s.',
      p_follower.status,
      coalesce(to_char(p_follower.seen_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'))
  end;
end $$;
