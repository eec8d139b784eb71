"""From an execution to the orders that a broker understands, and from their results to one outcome."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal, assert_never

from agent.book import Book, Flight, Key, gone, key_of
from agent.model import (
    Action,
    Execution,
    Mode,
    Order,
    Outcome,
    Placed,
    Position,
    Quote,
    Rejected,
    Report,
    Result,
    Ticket,
    Unknown,
)
from agent.platforms.protocol import Capabilities

OrderKind = Literal["market", "close", "modify", "pending", "amend", "cancel"]
NEEDS_TICKET: frozenset[Action] = frozenset({"reduce", "close", "modify", "amend", "cancel"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What came of one attempt, before it is numbered as a report. The defaults are an order that was never sent."""

    outcome: Outcome
    reason: str | None = None
    retryable: bool = False
    message: str = ""
    adopted: bool = False
    lots: Decimal = Decimal(0)
    price: Decimal | None = None
    positions: tuple[Position, ...] = ()
    #: what the market was when the broker refused the levels
    quote: Quote | None = None


def expired(reason: str, message: str = "") -> Ending:
    """Its time was over, or it was never ours to send; the broker has not heard of it."""
    return Ending(outcome="expired", reason=reason, message=message)


def cancelled(reason: str) -> Ending:
    """Dropped before it was sent, because somebody asked for that."""
    return Ending(outcome="cancelled", reason=reason)


def kind_of(action: Action) -> OrderKind:
    match action:
        case "open" | "increase":
            return "market"
        case "reduce" | "close":
            return "close"
        case "modify":
            return "modify"
        case "place":
            return "pending"
        case "amend":
            return "amend"
        case "cancel":
            return "cancel"
        case _:
            assert_never(action)


def order_of(execution: Execution, *, ticket: Ticket | None = None, lots: Decimal | None = None) -> Order:
    """The order of an execution; `ticket` and `lots` overrule what it says."""
    return Order(
        tag=execution.id,
        kind=kind_of(execution.action),
        symbol=execution.symbol,
        side=execution.side,
        lots=execution.lots if lots is None else lots,
        order_type=execution.order_type,
        ticket=execution.ticket if ticket is None else ticket,
        price=execution.price,
        sl=execution.sl,
        tp=execution.tp,
        expires_at=execution.expires_at,
        max_slippage_points=execution.max_slippage_points,
        reference_price=execution.master_price,
        comment=execution.comment,
    )


def fitted(order: Order, capabilities: Capabilities) -> Order:
    """What the platform can take of an order. Levels that a market order may not bring follow it as a change."""
    naked = order.kind == "market" and not capabilities.protected_market_orders
    return replace(
        order,
        sl=None if naked else order.sl,
        tp=None if naked else order.tp,
        expires_at=order.expires_at if capabilities.timed_orders else None,
        comment=order.comment[: capabilities.comment_max],
    )


def order_to_protect(order: Order, position: Position) -> Order:
    """Give a position that `order` has opened the levels that it could not bring."""
    return Order(
        tag=order.tag,
        kind="modify",
        symbol=position.symbol,
        side=position.side,
        lots=position.lots,
        ticket=position.ticket,
        sl=order.sl,
        tp=order.tp,
        send_before=order.send_before,
    )


def order_to_end(execution: Execution, position: Position) -> Order:
    """Close this position, or cancel this pending order, whole."""
    return Order(
        tag=execution.id,
        kind="cancel" if position.kind == "order" else "close",
        symbol=position.symbol,
        side=position.side,
        lots=position.lots,
        order_type=position.order_type or "market",
        ticket=position.ticket,
        price=None,
        max_slippage_points=execution.max_slippage_points,
        reference_price=execution.master_price,
        comment=execution.comment,
    )


def orders_of(execution: Execution, book: Book, left: Sequence[Position], mode: Mode) -> list[Order] | Ending:
    """Every order of an execution: one, except for a close by step, which ends all that the step `left`. An `Ending` when
    nothing is left to be sent."""
    if execution.action in NEEDS_TICKET and execution.ticket is None:
        ended = [position for position in left if execution.action == "close" or position.kind == "order"]
        return [order_to_end(execution, position) for position in ended] or Ending(outcome="completed")
    if execution.action not in ("close", "reduce", "modify"):
        return [order_of(execution)]
    known = None if execution.ticket is None else book.get(Key("position", execution.ticket))
    if known is not None and known.position.side != execution.side:
        return reversed_(execution, known.position)
    if known is None or execution.action == "modify":
        return [order_of(execution)]
    lots = _to_take_off(execution, known.position.lots, mode)
    if lots <= 0:
        return Ending(outcome="completed", message="the target is reached already", positions=(known.position,))
    return [order_of(execution, lots=lots)]


def reversed_(execution: Execution, position: Position) -> Ending:
    """A net that has meanwhile gone through zero. What was to be closed is gone, and another deal would enlarge the other side;
    levels for the old side are none for the new one."""
    message = f"the position is a {position.side} now: the {execution.side} that this is about is gone"
    if execution.action == "modify":
        return Ending(outcome="rejected", reason="position_reversed", message=message)
    return Ending(outcome="completed", message=message, positions=(position,))


def _to_take_off(execution: Execution, held: Decimal, mode: Mode) -> Decimal:
    """A close takes what the position holds now (its user may have trimmed it), a reduction never more than its target leaves.
    A netting position is not ours alone: no more than the deal that was planned."""
    if execution.action == "close":
        return held if mode == "hedging" else min(held, execution.lots)
    return min(execution.lots, held - (execution.target_lots or Decimal(0)))


def flight_of(execution: Execution, orders: Iterable[Order], mode: Mode) -> Flight:
    return Flight(
        tag=execution.id,
        tickets=frozenset(order.ticket for order in orders if order.ticket is not None),
        netted_symbol=execution.symbol if mode == "netting" else None,
    )


def ending_of(results: Sequence[Result]) -> Ending:
    """One outcome of all orders of an execution. Unknown outweighs rejected, rejected outweighs placed: what was done is
    told in any case (`lots`, `positions`)."""
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
    done = Ending(outcome="completed", lots=lots, price=price, positions=tuple(latest.values()))
    for result in results:
        if isinstance(result, Unknown):
            return replace(done, outcome="unknown", reason="unknown", message=result.message)
    for result in results:
        if isinstance(result, Rejected):
            outcome: Outcome = "expired" if result.reason == "too_late" else "rejected"
            return replace(done, outcome=outcome, reason=result.reason, retryable=result.retryable, message=result.message)
    return done


def nothing_left(execution: Execution, ending: Ending, book: Book) -> Ending:
    """A close or reduction whose position the broker does not have any more (its stop was hit on the way) has reached its aim:
    completed with 0 lots, and the position is told as gone; so has one whose net has changed sides, which is told by its own
    event. A cancel whose order is gone is completed and tells nothing: the order may be a position now, of which its own event
    tells. Everything else stays as it is."""
    if ending.outcome != "rejected" or execution.action not in ("close", "reduce", "cancel"):
        return ending
    if execution.action == "cancel":
        if ending.reason != "order_not_found":
            return ending
        return replace(ending, outcome="completed", reason=None, message="the order was gone already")
    if ending.reason == "position_reversed":
        return replace(ending, outcome="completed", reason=None)
    if ending.reason != "position_not_found":
        return ending
    known = None if execution.ticket is None else book.get(Key("position", execution.ticket))
    ended = () if known is None else (gone(known.position),)
    told = tuple(position for position in ending.positions if position.ticket != execution.ticket)
    return replace(ending, outcome="completed", reason=None, message="the position was closed already", positions=(*told, *ended))


def ending_told(report: Report) -> Ending:
    """What a report said, as an ending again."""
    return Ending(
        outcome=report.outcome,
        reason=report.reason,
        retryable=report.retryable,
        message=report.message,
        adopted=report.adopted,
        lots=report.filled_lots,
        price=report.price,
        positions=report.positions,
    )


def shows_nothing(execution: Execution, ending: Ending) -> bool:
    """The broker says that it dealt, but not what is held now: nothing could be booked by that. Such an order is looked up."""
    dealt = execution.action == "place" or ending.lots > 0
    return ending.outcome == "completed" and dealt and not ending.positions and not ending.adopted


def left_behind(endings: Iterable[tuple[Position, ...]], book: Book) -> list[Position]:
    """What is still open of everything that a step's reports spoke of. What the book has since heard overrules the report; a
    ticket that the book saw close is gone; an order that was filled is the position that replaced it."""
    left: dict[tuple[str, Ticket], Position] = {}
    for positions in endings:
        for position in positions:
            known = book.get(key_of(position))
            if known is not None:
                left[key_of(position)] = known.position
            elif position.lots > 0 and not book.ever_knew(key_of(position)):
                left[key_of(position)] = position
    tickets = {ticket for _, ticket in left} | {position.ticket for positions in endings for position in positions}
    for known in book:
        if known.position.replaces in tickets:
            left[key_of(known.position)] = known.position
    return list(left.values())
