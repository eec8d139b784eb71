// Made by `make api` from docs/errors.md. Do not edit.

/** Every reason code: [what happened, what to do]. */
export const REASONS = {
  rule: {
    below_min: [
      "the size is under the follower's minimum",
      "raise the multiplier, or let small copies be raised to the minimum",
    ],
    risk_coefficient: [
      "the minimum would be more times the wanted size than the copier allows",
      "raise the coefficient, or accept that small trades are not copied",
    ],
    no_stop_loss: [
      "sizing by risk needs a stop loss on the losing side of the price (for a reversed copy: the master's take profit), and there is none",
      "choose another sizing mode, or set a stop loss at the master",
    ],
    max_leverage: [
      "the trade would exceed the copier's leverage limit",
      "raise the limit, or let copies be made smaller instead",
    ],
    sanity: [
      "the exposure per equity would be more times the master's than the copier allows",
      "check the sizing; raise or remove the factor if this size is intended",
    ],
    stale_funds: [
      "balance or equity of an account, or a rate between currencies, is unknown, zero or too old",
      "the detail says which: wait until both accounts are connected, or let a broker show the pair that it names",
    ],
    symbol_unmapped: [
      "no symbol of the follower, or more than one, matches the master's symbol, or it was not told before the trade was too old",
      "map the symbol in the copier",
    ],
    symbol_unproven: [
      "the follower has the master's symbol under another name, but no current quotes prove it, or they contradict it: before the first trade both prices must agree within 5 %",
      "map the symbol in the copier if it is right, or resync the copier once quotes have arrived: a trade waits for them until it is too old",
    ],
    symbol_off: ["the copier's mapping of the symbol is off, or only closes", "set its mode to on to open in it again"],
    trade_disabled: ["the broker does not allow opening the follower's symbol in this direction", "ask the broker"],
    side_filtered: ["the copier copies only trades of the other side", "change the copier's sides"],
    symbol_filtered: ["the copier leaves the master's symbol out", "change its lists of symbols"],
    magic_filtered: ["the trade's magic number is excluded by the copier", "change its lists of magic numbers"],
    comment_filtered: ["the trade's comment is excluded by the copier", "change its lists of comments"],
    outside_hours: [
      "the copier does not open on this weekday or at this time of day",
      "change its weekdays, hours or time zone",
    ],
    min_equity: ["the follower's equity is below the copier's minimum, or unknown", "add funds, or lower the limit"],
    max_open_positions: ["the copier holds the maximum number of open positions", "raise the limit"],
    max_open_lots: [
      "with this trade the copier would hold more than the maximum number of lots",
      "raise the limit, or copy smaller sizes",
    ],
    max_trades_per_day: ["the copier has opened the maximum number of trades for today", "raise the limit"],
    slippage: [
      "the follower's price stayed worse than the master's by more than the copier allows until the open was too old",
      "raise the limit, or accept that such trades are not copied",
    ],
    too_old: [
      "the master's trade was older than the copier allows when it was detected, or the order waited too long",
      "none: late trades are not opened; resync the copier if you want this one",
    ],
    price_moved: [
      "the price is further from the master's open price than the copier, or the limit of the resync, allows",
      "none: the position is not copied; allow more points in a resync",
    ],
    no_quote: [
      "there is no current price for the follower's symbol",
      "check that the market is open, then resync the copier",
    ],
    master_offline: [
      "no agent is connected to the master's account, so its positions are unknown",
      "wait until it is connected, then resync the copier",
    ],
    follower_offline: ["the follower's agent was offline", "check the VPS; the trade is not opened later"],
    follower_unassigned: ["the follower is not assigned to a VPS", "wait until a VPS has capacity, or ask an operator"],
    account_halted: [
      "the follower is halted: its terminal shows another account, or its login was refused",
      "check the account's status and connect it again",
    ],
    account_removed: ["the follower was removed", "none"],
    account_flattening: ["the follower is being flattened", "switch the account on again afterwards"],
    flat_by: [
      "it is the time at which the account must be flat",
      "none: copying goes on by itself afterwards; change the time if it is wrong",
    ],
    news_window: [
      "a quiet window lasts for the symbol, its currency or everything, with the account's minutes before and after",
      "none: the trade is not opened later; remove the window if it is wrong",
    ],
    account_off: ["the follower account is paused", "switch it on"],
    account_monitor: ["the follower account is paused", "switch it on"],
    account_protected: [
      "a protection rule, or the broker's stop-out, has stopped the follower",
      "read its alert; switch the account on again to continue, or wait where the alert says until when",
    ],
    would_breach: [
      "its stop, hit together with those already open, would cross a limit of a protection rule of the follower; the copy of a pending order is cancelled if its master's change of price or stop would do that",
      "trade smaller or with a nearer stop, close something, or let the rule shrink or ignore such trades",
    ],
    copier_off: ["the copier is off, or in mode monitor (it only closes)", "switch it on"],
    copier_monitor: ["the copier is off, or in mode monitor (it only closes)", "switch it on"],
    held_already: ["the follower still holds a copy of this master position", "adopt that copy, or close it first"],
    not_adoptable: [
      "the position to adopt is closed, belongs to another copy, has an order in flight, or has another symbol or side",
      "choose a position that is listed as adoptable",
    ],
    copier_removed: [
      "the copier is being removed and no longer opens trades",
      "create a new copier if you want to continue copying",
    ],
    trading_stopped: [
      "an operator has stopped all trading, or all opens; the board shows the operator's reason",
      "wait until trading is on again; this trade is not opened later",
    ],
    trading_monitor: [
      "an operator has stopped all trading, or all opens; the board shows the operator's reason",
      "wait until trading is on again; this trade is not opened later",
    ],
  },
  broker: {
    requote: ["the broker offered another price instead of executing the order", "retried"],
    price_changed: [
      "the price moved further than the slippage allowed",
      "retried; allow more slippage if it happens often",
    ],
    no_quotes: [
      "there is no price for the symbol",
      "retried; check that the market is open and the symbol is enabled in the terminal",
    ],
    market_closed: ["the symbol's market is closed", "retried until the copier's retry window ends"],
    too_many_requests: ["the broker limits orders per second", "retried later"],
    not_connected: ["the account was not connected, so nothing was sent", "retried once it is connected"],
    no_money: ["not enough free margin", "tried once more; add funds or copy smaller sizes"],
    invalid_volume: [
      "the volume is outside the symbol's limits or not a multiple of its step",
      "tried once more with the symbol's current limits; check them at the broker",
    ],
    invalid_stops: [
      "stop loss or take profit is on the wrong side, too close, or off the tick grid",
      "change the level",
    ],
    invalid_price: [
      "a pending order's price is on the wrong side of the market, too close, or off the tick grid",
      "change the price",
    ],
    invalid_expiration: ["the expiry is in the past", "choose a later expiry"],
    invalid_request: ["the broker reports that the order is malformed", "report it, with the execution's number"],
    trade_disabled: ["trading is switched off for the symbol or the account", "ask the broker"],
    autotrading_off: [
      "automated trading is switched off in the terminal or by the broker",
      "switch on Algo Trading in MetaTrader, or ask the broker; the account recovers by itself",
    ],
    investor_password: [
      "the account is connected with the read-only (investor) password",
      "enter the trading password in the account's settings",
    ],
    close_only: ["only closing is allowed for the symbol", "nothing can be opened until the broker allows it"],
    long_only: ["only buying is allowed for the symbol", "short positions cannot be opened until the broker allows it"],
    short_only: [
      "only selling is allowed for the symbol",
      "long positions cannot be opened until the broker allows it",
    ],
    no_hedging: [
      "the account cannot hold opposite positions in one symbol",
      "close the opposite position first, or use a hedging account",
    ],
    fifo: [
      "the broker closes positions in one symbol only in the order in which they were opened",
      "none: if an older copy has the same volume, it is closed instead and the two copies swap positions; otherwise the close waits for its turn",
    ],
    unknown_symbol: ["the account has no such symbol", "map the master's symbol to a symbol that the account has"],
    position_not_found: ["the position does not exist, or was closed", "none: it is closed already"],
    position_reversed: [
      "the net position has changed to the opposite side",
      "none: the position to close no longer exists",
    ],
    order_not_found: [
      "the pending order to modify or cancel does not exist any more",
      "none: it was filled, cancelled or has expired",
    ],
    rejected: ["the broker rejected the order without a reason", "read the terminal's journal, or ask the broker"],
  },
  agent: {
    too_late: [
      "its deadline passed before it could be sent",
      "none; if it happens often, check the agent's load and its latency to the database",
    ],
    lease_over: [
      "the agent's lease had ended when the order was about to be sent",
      "find out why its heartbeats do not reach the database",
    ],
    stale_epoch: ["it was queued before the account moved to this agent", "none"],
    before_begin: ["an earlier agent of the account might still have been trading", "none"],
    number_taken: [
      "a restored database assigned an execution number that this agent has used for another order; nothing was sent",
      "none: a close is queued again with a new number. If it happens, run tradecopier restored",
    ],
    journal_failed: [
      "the agent's journal could not be written, so nothing was sent",
      "free disk space, check the folder's owner; after 5 s the agent is unfit and its accounts move",
    ],
    agent_error: ["the agent failed before sending", "report it, with the agent's log"],
    cancel_requested: ["it was cancelled on request before it was sent", "none"],
    unknown: [
      "the broker did not answer; the order may have been executed",
      "none: the agent looks for the order; wait for its next report",
    ],
    not_found_after_unknown: [
      "the order was not found at the broker by the end of the settle time",
      "none; it is never sent again automatically",
    ],
    unreadable_order: [
      "the agent cannot read the order (it may be too old for this database)",
      "update the agent; if it is new, report it with the execution's number",
    ],
    no_ticket: ["the order has neither a ticket nor a step to change", "report it, with the execution's number"],
    account_unreadable: ["the remainder of the step could not be read at the broker", "retried"],
  },
  nothing: {
    already_closed: ["the master had closed before the open was sent; nothing was opened", "none"],
    superseded: [
      "a step was waiting for another attempt when the target changed; the new target is executed instead",
      "none",
    ],
    symbols_loading: [
      "the symbol of the copy, or the quote that proves its name, is not told yet and was asked for: it is decided when it is told, and refused when the trade is too old",
      "none",
    ],
    coalesced: ["a step is in flight; when it ends, the position's latest state is copied", "none"],
    no_change: ["the copier does not copy this kind of change", "none"],
    residual_hold: [
      "the reduction is too small for the follower's step or minimum; the copy is held until the master closes",
      "none",
    ],
    existing: [
      "the master's position, or its pending order if the copier copies those, is older than the copier",
      "none",
    ],
    not_copied: ["the position was not copied; the reason is at its opening", "none"],
    copied_at_fill: [
      "this copier does not copy pending orders; the position is copied when the order is filled",
      "none",
    ],
    master_never_filled: [
      "the copied pending order was filled and the master then cancelled its own; the copier keeps such copies, so the position now belongs to the user",
      "none",
    ],
    order_expired: ["the copied pending order expired with the master's, or was cancelled at that time", "none"],
    closed: ["the copy is closed already", "none"],
    released: ["the copier was removed with preserve: the position now belongs to the user", "none"],
    closed_by_follower: [
      "the copy was closed at the follower (manually, by a stop or by the broker) and stays closed",
      "none",
    ],
    stop_out: [
      "the follower's broker closed the copy because of insufficient margin (stop-out); it stays closed",
      "none",
    ],
  },
} as const;

/** How a copy differs from its master's trade. */
export const WARNINGS = {
  capped: "a limit of the copier or of the symbol made the copy smaller than the sizing mode's result",
  risk_capped: "a limit of the copier or of the symbol made the copy smaller than the sizing mode's result",
  leverage_shrunk: "a limit of the copier or of the symbol made the copy smaller than the sizing mode's result",
  breach_shrunk:
    "a protection rule made the copy smaller, so that the stops of all that is open cannot cross its limit",
  forced_min: "the copy was raised to the follower's minimum",
  split: "the copy exceeds the maximum volume of one order and was split into several orders",
  contract_sizes_differ: "the contract sizes of master and follower differ, and the copier does not align them",
  risk_unknown: "the trade has no stop loss that limits its risk, so the copier's limit of risk could not be applied",
  at_par:
    "the size depends on the value of a stablecoin that no broker of the two accounts quotes: it counts at its fixed value, USDT as 1 USD",
  sanity_unchecked:
    "an equity or an exchange rate is unknown, so the copy could not be compared with the master's exposure",
  netting_sltp_virtual:
    "several copies share one net position, so none of their stop loss and take profit levels is set on it",
  sl_adjusted: "the level was inside the broker's stops or freeze level; the nearest allowed level was sent",
  tp_adjusted: "the level was inside the broker's stops or freeze level; the nearest allowed level was sent",
  protection_dropped:
    "the broker rejected stop loss or take profit three times; an alert was raised and the position keeps its old levels",
  master_never_filled: "the copied pending order was filled and the master then cancelled its own; the copy was closed",
  order_not_filled:
    "the master's pending order was filled and its copy was not; slippage, age or a pause rules out a market order, so the copied order stays",
} as const;
