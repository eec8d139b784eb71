/** Every reason code in plain words: [what happened, what to do]. The same words as docs/errors.md; a test compares them. */
export const REASONS = {
  rule: {
    below_min: ["the size is under the follower's minimum", "raise the multiplier, or choose the policy force_min"],
    risk_coefficient: [
      "the minimum would be more than max_risk_coefficient times the wanted size",
      "raise the coefficient, or accept that small trades are left out",
    ],
    no_stop_loss: [
      "sizing by risk needs a stop (under reverse: the take profit) on the losing side of the price, and there is none",
      "size by another mode, or set a stop at the master",
    ],
    max_leverage: ["the trade would exceed the copier's leverage limit", "raise max_leverage, or choose the policy shrink"],
    sanity: [
      "the exposure per equity would be over sanity_factor times the master's own",
      "check the sizing; raise or remove the factor if it is meant",
    ],
    stale_funds: [
      "balance or equity of an account, or a rate between currencies, is unknown, zero or too old",
      "wait until both accounts are connected",
    ],
    symbol_unmapped: ["the follower has no symbol, or several, for the master's", "map it in the copier"],
    trade_disabled: ["the follower's symbol may not be opened in this direction", "ask the broker"],
    side_filtered: ["the copier copies the other side only", "change sides"],
    symbol_filtered: ["the master's symbol is not among symbols_only, or is in symbols_except", "change the lists"],
    magic_filtered: ["the trade's magic number is not wanted", "change magic_only, magic_except"],
    comment_filtered: ["the trade's comment is not wanted", "change comment_only, comment_except"],
    outside_hours: [
      "the copier does not open on this weekday or at this time of day",
      "change weekdays, open_from, open_until, time_zone",
    ],
    min_equity: ["the follower's equity is below min_equity, or unknown", "add funds, or lower the limit"],
    max_open_positions: ["the copier holds as many positions as it may", "raise the limit"],
    max_open_lots: [
      "the copier holds as many lots as it may, or would hold more with this one",
      "raise the limit, or copy smaller",
    ],
    max_trades_per_day: ["the copier has opened as many trades today as it may", "raise the limit"],
    slippage: [
      "the follower's price was worse than the master's by more than max_slippage_points for as long as the open was fresh",
      "allow more, or accept that such trades are left out",
    ],
    too_old: [
      "the news was older than max_age_ms, or the order waited too long",
      "none: late trades are not made; resynchronise if it is wanted",
    ],
    price_moved: [
      "the price is further from the master's open price than copy_existing_points, or than a resync allowed",
      "none: the position is not copied; allow more points in the next copier or resync",
    ],
    no_quote: ["there is no fresh price of the follower's symbol", "see whether its market is open, then resynchronise"],
    master_offline: [
      "nobody watches the master's account now, so what it holds is not known",
      "wait until it is connected, then resynchronise",
    ],
    follower_offline: ["the follower's agent was not there", "see the VPS; the trade is not made up for"],
    follower_unassigned: ["no VPS works the follower", "wait for a place, or ask an operator"],
    account_halted: [
      "the follower is halted (account_mismatch: its terminal shows another account; or its login was refused)",
      "see its status, connect it again",
    ],
    account_removed: ["the follower was removed", "none"],
    account_flattening: ["the follower is being flattened", "switch it on again afterwards"],
    account_off: ["the follower is paused", "switch it on"],
    account_monitor: ["the follower is paused", "switch it on"],
    account_protected: [
      "a protection rule, or the broker's stop-out, has stopped the follower",
      "see its alert; switch the account on again when you want to go on",
    ],
    copier_off: ["the copier is off, or closes only", "switch it on"],
    copier_monitor: ["the copier is off, or closes only", "switch it on"],
    held_already: [
      "the follower still holds a position that was opened for this one of the master",
      "adopt it, or close it first",
    ],
    not_adoptable: [
      "the position to be adopted is closed, held by another copy, being worked on, or of another symbol or side",
      "choose one that copier_drift lists as adoptable",
    ],
    copier_removed: ["the copier is being removed and opens nothing any more", "make a new copier if it is wanted"],
    trading_stopped: [
      "an operator stopped all trading, or all opens; the reason stands on the board",
      "wait for the operators; it is not made up for",
    ],
    trading_monitor: [
      "an operator stopped all trading, or all opens; the reason stands on the board",
      "wait for the operators; it is not made up for",
    ],
  },
  broker: {
    requote: ["the broker offered another price instead of dealing", "retried"],
    price_changed: ["the price moved further than the slippage allowed", "retried; allow more slippage if it happens often"],
    no_quotes: ["there is no price for the symbol", "retried; see whether the market is open and the symbol is subscribed"],
    market_closed: ["the symbol's market is closed", "retried until the copier's retry window ends"],
    too_many_requests: ["the broker limits orders per second", "retried later"],
    not_connected: ["the account was not connected, nothing was sent", "retried once it is connected"],
    no_money: ["not enough free margin", "tried once more (no_money_policy); add funds or copy smaller"],
    invalid_volume: [
      "the volume is outside the symbol's limits or off its step",
      "tried once more by its newest limits; check the symbol's lot limits",
    ],
    invalid_stops: ["stop loss or take profit is on the wrong side, too close, or off the tick grid", "move the level"],
    invalid_price: [
      "a pending order's price is on the wrong side of the market, too close, or off the tick grid",
      "move the price",
    ],
    invalid_expiration: ["the expiry lies in the past", "choose a later one"],
    invalid_request: ["the broker does not understand the order", "report it, with the execution's number"],
    trade_disabled: ["trading is switched off for the symbol or the account", "ask the broker"],
    autotrading_off: [
      "automated trading is switched off in the terminal or by the broker",
      "switch on Algo Trading in MetaTrader, or ask the broker; the account recovers by itself",
    ],
    investor_password: [
      "the account is connected with a password that may only read",
      "enter the trading password in the account's settings",
    ],
    close_only: ["the symbol may only be closed", "nothing can be opened until the broker allows it"],
    long_only: ["the symbol may only be bought", "nothing can be sold short until the broker allows it"],
    short_only: ["the symbol may only be sold", "nothing can be bought until the broker allows it"],
    no_hedging: [
      "the account may not hold opposite positions of one symbol",
      "close the other side first, or use a hedging account",
    ],
    fifo: [
      "the broker closes positions of one symbol only in the order of their opening",
      "none: an older copy of the same volume is closed in its place and the two exchange their parts; any other waits for its turn",
    ],
    unknown_symbol: ["the account has no such symbol", "map the master's symbol to one the account has"],
    position_not_found: ["the position is not there (any more)", "none: it is closed already"],
    position_reversed: ["the net position has meanwhile gone to the other side", "none: what was to be closed is gone"],
    order_not_found: ["the pending order to be changed is gone", "none: it was filled, deleted or has expired"],
    rejected: ["the broker said no without a reason", "look into the terminal's journal, ask the broker"],
  },
  agent: {
    too_late: [
      "its time was over before it could be sent",
      "none; if it happens often, see the agent's load and the distance to the database",
    ],
    lease_over: ["the agent's lease was over right before sending", "see why its heartbeats do not arrive"],
    stale_epoch: ["it was queued before the account moved to this agent", "none"],
    before_begin: ["an earlier agent of the account might still have been trading", "none"],
    journal_failed: [
      "the agent's journal could not be written, so nothing was sent",
      "free disk space, check the folder's owner",
    ],
    agent_error: ["the agent failed before sending", "report it, with the agent's log"],
    cancel_requested: ["it was dropped unsent, as asked", "none"],
    unknown: ["the broker did not answer; the order may have been executed", "none: it is looked for, see the next report"],
    not_found_after_unknown: [
      "it left no trace once the broker's settle time was over",
      "none; it is never sent again by itself",
    ],
    unreadable_order: [
      "the agent cannot read the order (it may be too old for this database)",
      "update the agent; if it is new, report it with the execution's number",
    ],
    no_ticket: ["a change that names neither a ticket nor a step", "report it, with the execution's number"],
    account_unreadable: ["what a step left behind could not be read", "retried"],
  },
  nothing: {
    already_closed: ["the master had closed before the open was sent; nothing was opened", "none"],
    superseded: ["a step waited for another attempt when something else was wanted; that is done instead", "none"],
    coalesced: ["a step was in flight; a newer state of the position is copied when it ends", "none"],
    no_change: ["the change is none that this copier copies", "none"],
    residual_hold: [
      "the reduction is too small for the follower's step or minimum; the copy is held until the master closes",
      "none",
    ],
    existing: ["the master's position was there before the copier, as an order too where orders are copied as such", "none"],
    not_copied: ["the position was not copied; its opening event says why", "none"],
    copied_at_fill: ["pending orders are not copied; their fill will be", "none"],
    master_never_filled: [
      "the copy of an order filled, the master then cancelled its own; early_fill_policy is keep: the position is its user's",
      "none",
    ],
    order_expired: ["the copy of an order has expired with its master's, or was cancelled at that time", "none"],
    closed: ["the copy is closed already", "none"],
    released: ["its copier was removed with preserve: the copy is the user's own trade now", "none"],
    closed_by_follower: ["the copy was closed at the follower (by hand, stop or broker) and stays closed", "none"],
    stop_out: ["the follower's broker closed the copy for lack of margin; it stays closed", "none"],
  },
} as const;

/** What was done differently about a copy that was made, in the words of docs/errors.md. */
export const WARNINGS = {
  capped: "the copy is smaller than the sizing mode says, by a limit of the copier or of the symbol",
  risk_capped: "the copy is smaller than the sizing mode says, by a limit of the copier or of the symbol",
  leverage_shrunk: "the copy is smaller than the sizing mode says, by a limit of the copier or of the symbol",
  forced_min: "the copy was raised to the follower's minimum",
  split: "the copy is more than one order may be, and was split into several",
  contract_sizes_differ: "one lot means something else at the follower, and contract_alignment is off",
  risk_unknown: "the trade has no stop that limits a loss, so max_risk_percent could not be applied",
  sanity_unchecked: "an equity or exchange rate is not known, so sanity_factor could not be applied",
  netting_sltp_virtual: "several copies share one net position: none of their levels stands on it",
  sl_adjusted: "the level lay inside the broker's stops or freeze distance; the nearest legal one was sent",
  tp_adjusted: "the level lay inside the broker's stops or freeze distance; the nearest legal one was sent",
  protection_dropped: "the broker refused the levels three times; an alert was raised, the position stands as it was",
  master_never_filled: "the copy of an order filled, the master then cancelled its own; the copy was closed",
  order_not_filled:
    "the master's order filled, its copy has not, and slippage, age or a pause forbids the market; the copy's order stays",
} as const;

export type Origin = keyof typeof REASONS;
export type Reason = { code: string; origin: Origin | null; what: string; todo: string | null };

/** Outcomes that withheld nothing from the user: no refusals. */
export const NOTHING_TO_DO: readonly string[] = Object.keys(REASONS.nothing);

export const ORIGINS: Readonly<Record<Origin, string>> = {
  rule: "a rule of the copier",
  broker: "the broker",
  agent: "the agent",
  nothing: "nothing to do",
};

const OF_DECISIONS: readonly Origin[] = ["rule", "nothing", "agent", "broker"];
const OF_EXECUTIONS: readonly Origin[] = ["broker", "agent", "rule", "nothing"];

/** A warning in words; one that this page does not know as it is. */
export function explainWarning(code: string): string {
  return Object.entries(WARNINGS).find(([name]) => name === code)?.[1] ?? code;
}

/** A code in words. `trade_disabled` is both a rule and a broker's answer: where it was found decides. */
export function explain(code: string, found: "decision" | "execution"): Reason {
  for (const origin of found === "decision" ? OF_DECISIONS : OF_EXECUTIONS) {
    const entry = Object.entries(REASONS[origin]).find(([name]) => name === code);
    if (entry) {
      const [what, todo] = entry[1];
      return { code, origin, what, todo: todo === "none" ? null : todo };
    }
  }
  return { code, origin: null, what: "this page does not know the code", todo: "see docs/errors.md of the installed version" };
}
