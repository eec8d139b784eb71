"""The outcome of an execution: combines the results of its orders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from agent.account.book import Book, Key, gone, key_of
from agent.model import Execution, OutcomeStatus, Placed, Position, Quote, Rejected, Report, Result, Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one attempt, before it becomes a numbered report. The defaults fit an order that was not sent."""

    status: OutcomeStatus
    reason: str | None = None
    retryable: bool = False
    message: str = ""
    adopted: bool = False
    lots: Decimal = Decimal(0)
    price: Decimal | None = None
    positions: tuple[Position, ...] = ()
    #: the market price when the broker refused the levels
    quote: Quote | None = None


def expired(reason: str, message: str = "") -> Outcome:
    """Not sent: its deadline had passed, or this agent must not send it."""
    return Outcome(status="expired", reason=reason, message=message)


def cancelled(reason: str) -> Outcome:
    """Dropped before it was sent, on request."""
    return Outcome(status="cancelled", reason=reason)


def outcome_of(results: Sequence[Result]) -> Outcome:
    """One outcome of all orders of an execution: unknown if one is unknown, else rejected if one was rejected. `lots`,
    `price` (weighted by lots) and `positions` cover what was executed in any case."""
    placed = [result for result in results if isinstance(result, Placed)]
    lots = sum((result.lots for result in placed), Decimal(0))
    priced = [(result.lots, result.price) for result in placed if result.price is not None and result.lots > 0]
    weight = sum((part for part, _ in priced), Decimal(0))
    if len(priced) == 1:
        price: Decimal | None = priced[0][1]
    elif priced:
        price = sum((part * each for part, each in priced), Decimal(0)) / weight
    else:
        price = next((result.price for result in placed if result.price is not None), None)
    latest = {key_of(position): position for result in placed for position in result.positions}
    done = Outcome(status="completed", lots=lots, price=price, positions=tuple(latest.values()))
    for result in results:
        if isinstance(result, Unknown):
            return replace(done, status="unknown", reason="unknown", message=result.message)
    for result in results:
        if isinstance(result, Rejected):
            status: OutcomeStatus = "expired" if result.reason == "too_late" else "rejected"
            return replace(
                done, status=status, reason=result.reason, retryable=result.retryable, message=result.message
            )
    return done


def completed_if_gone(execution: Execution, outcome: Outcome, book: Book) -> Outcome:
    """Turn a rejection into completion (0 lots) when the goal is reached already:

    - a close or reduction of a position that is gone, for example by its stop loss: the report shows it as gone;
    - a close or reduction of a net position that has changed sides: an event of its own reports that;
    - a cancel of an order that is gone: the report shows nothing, because the order may be a position now, which an
      event of its own reports.

    Any other outcome is returned unchanged."""
    if outcome.status != "rejected" or execution.action not in ("close", "reduce", "cancel"):
        return outcome
    if execution.action == "cancel":
        if outcome.reason != "order_not_found":
            return outcome
        return replace(outcome, status="completed", reason=None, message="the order was gone already")
    if outcome.reason == "position_reversed":
        return replace(outcome, status="completed", reason=None)
    if outcome.reason != "position_not_found":
        return outcome
    known = None if execution.ticket is None else book.get(Key("position", execution.ticket))
    ended = () if known is None else (gone(known.position),)
    others = tuple(p for p in outcome.positions if (p.kind, p.ticket) != ("position", execution.ticket))
    return replace(
        outcome, status="completed", reason=None, message="the position was closed already", positions=(*others, *ended)
    )


def outcome_of_report(report: Report) -> Outcome:
    """The outcome that a report carries."""
    return Outcome(
        status=report.outcome,
        reason=report.reason,
        retryable=report.retryable,
        message=report.message,
        adopted=report.adopted,
        lots=report.filled_lots,
        price=report.price,
        positions=report.positions,
    )


def lacks_positions(execution: Execution, outcome: Outcome) -> bool:
    """The broker confirmed the order without saying which positions resulted. The database could not book that, so the
    positions are looked up."""
    dealt = execution.action == "place" or outcome.lots > 0
    return outcome.status == "completed" and dealt and not outcome.positions and not outcome.adopted
