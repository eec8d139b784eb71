-- Reasons in words, and the reasons that refuse nothing. Made by `make api` from docs/errors.md. Do not edit.

create function private.nothing_to_do() returns text[]
language sql immutable
set search_path = ''
as $$
  select array[
    'already_closed', 'closed', 'closed_by_follower', 'coalesced', 'copied_at_fill', 'existing',
    'master_never_filled', 'no_change', 'not_copied', 'order_expired', 'released', 'residual_hold',
    'stop_out', 'superseded', 'symbols_loading']
$$;
comment on function private.nothing_to_do() is
  'The reasons that are no refusals: there was nothing (left) to copy. No other list of them exists.';
-- views ask it in the name of their reader
grant execute on function private.nothing_to_do() to authenticated, service_role;

create function private.reason_words(p_code text) returns text
language sql immutable
set search_path = ''
as $$
  select case p_code
    when 'account_flattening' then
      'the follower is being flattened'
    when 'account_halted' then
      'the follower is halted: its terminal shows another account, or its login was refused'
    when 'account_monitor' then
      'the follower account is paused'
    when 'account_off' then
      'the follower account is paused'
    when 'account_protected' then
      'a protection rule, or the broker''s stop-out, has stopped the follower'
    when 'account_removed' then
      'the follower was removed'
    when 'account_unreadable' then
      'the remainder of the step could not be read at the broker'
    when 'agent_error' then
      'the agent failed before sending'
    when 'already_closed' then
      'the master had closed before the open was sent; nothing was opened'
    when 'autotrading_off' then
      'automated trading is switched off in the terminal or by the broker'
    when 'before_begin' then
      'an earlier agent of the account might still have been trading'
    when 'below_min' then
      'the size is under the follower''s minimum'
    when 'cancel_requested' then
      'it was cancelled on request before it was sent'
    when 'close_only' then
      'only closing is allowed for the symbol'
    when 'closed' then
      'the copy is closed already'
    when 'closed_by_follower' then
      'the copy was closed at the follower (manually, by a stop or by the broker) and stays closed'
    when 'coalesced' then
      'a step is in flight; when it ends, the position''s latest state is copied'
    when 'comment_filtered' then
      'the trade''s comment is excluded by the copier'
    when 'copied_at_fill' then
      'this copier does not copy pending orders; the position is copied when the order is filled'
    when 'copier_monitor' then
      'the copier is off, or in mode monitor (it only closes)'
    when 'copier_off' then
      'the copier is off, or in mode monitor (it only closes)'
    when 'copier_removed' then
      'the copier is being removed and no longer opens trades'
    when 'existing' then
      'the master''s position, or its pending order if the copier copies those, is older than the copier'
    when 'fifo' then
      'the broker closes positions in one symbol only in the order in which they were opened'
    when 'flat_by' then
      'it is the time at which the account must be flat'
    when 'follower_offline' then
      'the follower''s agent was offline'
    when 'follower_unassigned' then
      'the follower is not assigned to a VPS'
    when 'held_already' then
      'the follower still holds a copy of this master position'
    when 'invalid_expiration' then
      'the expiry is in the past'
    when 'invalid_price' then
      'a pending order''s price is on the wrong side of the market, too close, or off the tick grid'
    when 'invalid_request' then
      'the broker reports that the order is malformed'
    when 'invalid_stops' then
      'stop loss or take profit is on the wrong side, too close, or off the tick grid'
    when 'invalid_volume' then
      'the volume is outside the symbol''s limits or not a multiple of its step'
    when 'investor_password' then
      'the account is connected with the read-only (investor) password'
    when 'journal_failed' then
      'the agent''s journal could not be written, so nothing was sent'
    when 'lease_over' then
      'the agent''s lease had ended when the order was about to be sent'
    when 'long_only' then
      'only buying is allowed for the symbol'
    when 'magic_filtered' then
      'the trade''s magic number is excluded by the copier'
    when 'market_closed' then
      'the symbol''s market is closed'
    when 'master_never_filled' then
      'the copied pending order was filled and the master then cancelled its own; the copier keeps such '
      'copies, so the position now belongs to the user'
    when 'master_offline' then
      'no agent is connected to the master''s account, so its positions are unknown'
    when 'max_leverage' then
      'the trade would exceed the copier''s leverage limit'
    when 'max_open_lots' then
      'with this trade the copier would hold more than the maximum number of lots'
    when 'max_open_positions' then
      'the copier holds the maximum number of open positions'
    when 'max_trades_per_day' then
      'the copier has opened the maximum number of trades for today'
    when 'min_equity' then
      'the follower''s equity is below the copier''s minimum, or unknown'
    when 'news_window' then
      'a quiet window lasts for the symbol, its currency or everything, with the account''s minutes before '
      'and after'
    when 'no_change' then
      'the copier does not copy this kind of change'
    when 'no_hedging' then
      'the account cannot hold opposite positions in one symbol'
    when 'no_money' then
      'not enough free margin'
    when 'no_quote' then
      'there is no current price for the follower''s symbol'
    when 'no_quotes' then
      'there is no price for the symbol'
    when 'no_stop_loss' then
      'sizing by risk needs a stop loss on the losing side of the price (for a reversed copy: the master''s'
      ' take profit), and there is none'
    when 'no_ticket' then
      'the order has neither a ticket nor a step to change'
    when 'not_adoptable' then
      'the position to adopt is closed, belongs to another copy, has an order in flight, or has another '
      'symbol or side'
    when 'not_connected' then
      'the account was not connected, so nothing was sent'
    when 'not_copied' then
      'the position was not copied; the reason is at its opening'
    when 'not_found_after_unknown' then
      'the order was not found at the broker by the end of the settle time'
    when 'number_taken' then
      'a restored database assigned an execution number that this agent has used for another order; nothing'
      ' was sent'
    when 'order_expired' then
      'the copied pending order expired with the master''s, or was cancelled at that time'
    when 'order_not_found' then
      'the pending order to modify or cancel does not exist any more'
    when 'outside_hours' then
      'the copier does not open on this weekday or at this time of day'
    when 'position_not_found' then
      'the position does not exist, or was closed'
    when 'position_reversed' then
      'the net position has changed to the opposite side'
    when 'price_changed' then
      'the price moved further than the slippage allowed'
    when 'price_moved' then
      'the price is further from the master''s open price than the copier, or the limit of the resync, '
      'allows'
    when 'rejected' then
      'the broker rejected the order without a reason'
    when 'released' then
      'the copier was removed with preserve: the position now belongs to the user'
    when 'requote' then
      'the broker offered another price instead of executing the order'
    when 'residual_hold' then
      'the reduction is too small for the follower''s step or minimum; the copy is held until the master '
      'closes'
    when 'risk_coefficient' then
      'the minimum would be more times the wanted size than the copier allows'
    when 'sanity' then
      'the exposure per equity would be more times the master''s than the copier allows'
    when 'short_only' then
      'only selling is allowed for the symbol'
    when 'side_filtered' then
      'the copier copies only trades of the other side'
    when 'slippage' then
      'the follower''s price stayed worse than the master''s by more than the copier allows until the open '
      'was too old'
    when 'stale_epoch' then
      'it was queued before the account moved to this agent'
    when 'stale_funds' then
      'balance or equity of an account, or a rate between currencies, is unknown, zero or too old'
    when 'stop_out' then
      'the follower''s broker closed the copy because of insufficient margin (stop-out); it stays closed'
    when 'superseded' then
      'a step was waiting for another attempt when the target changed; the new target is executed instead'
    when 'symbol_filtered' then
      'the copier leaves the master''s symbol out'
    when 'symbol_off' then
      'the copier''s mapping of the symbol is off, or only closes'
    when 'symbol_unmapped' then
      'no symbol of the follower, or more than one, matches the master''s symbol, or it was not told before'
      ' the trade was too old'
    when 'symbol_unproven' then
      'the follower has the master''s symbol under another name, but no current quotes prove it, or they '
      'contradict it: before the first trade both prices must agree within 5 %'
    when 'symbols_loading' then
      'the symbol of the copy, or the quote that proves its name, is not told yet and was asked for: it is '
      'decided when it is told, and refused when the trade is too old'
    when 'too_late' then
      'its deadline passed before it could be sent'
    when 'too_many_requests' then
      'the broker limits orders per second'
    when 'too_old' then
      'the master''s trade was older than the copier allows when it was detected, or the order waited too '
      'long'
    when 'trade_disabled' then
      'trading is switched off for the symbol or the account'
    when 'trading_monitor' then
      'an operator has stopped all trading, or all opens; the board shows the operator''s reason'
    when 'trading_stopped' then
      'an operator has stopped all trading, or all opens; the board shows the operator''s reason'
    when 'unknown' then
      'the broker did not answer; the order may have been executed'
    when 'unknown_symbol' then
      'the account has no such symbol'
    when 'unreadable_order' then
      'the agent cannot read the order (it may be too old for this database)'
    when 'would_breach' then
      'its stop, hit together with those already open, would cross a limit of a protection rule of the '
      'follower; the copy of a pending order is cancelled if its master''s change of price or stop would do'
      ' that'
    else replace(p_code, '_', ' ') end
$$;
comment on function private.reason_words(text) is
  'What a reason means, for sentences; of an unknown code its own words. Null: null.';
grant execute on function private.reason_words(text) to authenticated, service_role;
