"""The reasons for which the paper broker refuses an order, and which of them are temporary.

The codes are those of docs/errors.md, "Refused by the broker"; a real platform's adapter maps its own texts to them.
"""

from agent.model import Rejected

#: code → the broker's message
MESSAGES = {
    "requote": "Requote",
    "price_changed": "The price moved further than the slippage allowed",
    "no_quotes": "There is no quote for this symbol",
    "no_money": "Not enough free margin",
    "market_closed": "The market is closed",
    "invalid_volume": "The volume is outside the limits or not a multiple of the step",
    "invalid_stops": "Stop loss or take profit is on the wrong side or too close",
    "invalid_price": "The price is missing, on the wrong side or too close",
    "invalid_expiration": "The expiry must be in the future",
    "invalid_request": "The request is invalid",
    "trade_disabled": "Trading in this symbol is disabled",
    "close_only": "Only closing is allowed in this symbol",
    "long_only": "Only buying is allowed in this symbol",
    "short_only": "Only selling is allowed in this symbol",
    "no_hedging": "Opposite positions cannot be held on this account",
    "fifo": "An older position of this symbol must be closed first",
    "unknown_symbol": "The account has no such symbol",
    "position_not_found": "There is no such position, or it was closed",
    "position_reversed": "The position has changed to the opposite side",
    "order_not_found": "There is no such pending order, or it was filled or cancelled",
    "too_many_requests": "Too many requests",
    "autotrading_off": "Automated trading is switched off",
    "investor_password": "The login may read but not trade",
    "rejected": "The broker rejected the order without a reason",
    "not_connected": "The account was not connected, nothing was sent",
}
RETRYABLE = frozenset({"requote", "price_changed", "no_quotes", "market_closed", "too_many_requests", "not_connected"})


class Refusal(Exception):
    """Raised inside the matching engine before the book was changed; becomes a refused answer."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{MESSAGES[reason]}{': ' if detail else ''}{detail}")


def rejected(reason: str, message: str = "") -> Rejected:
    """The order result for a refusal; an unknown code counts as `rejected`."""
    code = reason if reason in MESSAGES else "rejected"
    return Rejected(reason=code, retryable=code in RETRYABLE, message=message or MESSAGES[code])
