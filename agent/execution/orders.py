"""Turns an execution into orders for a broker."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Literal, assert_never

from agent.account.book import Book, Flight, Key, key_of, replaced_keys
from agent.execution.outcome import Outcome
from agent.model import (
    Action,
    Execution,
    Kind,
    Mode,
    Order,
    Position,
    Ticket,
)
from agent.platforms.adapter import Capabilities

OrderKind = Literal["market", "close", "modify", "pending", "amend", "cancel"]
NEEDS_TICKET: frozenset[Action] = frozenset({"reduce", "close", "modify", "amend", "cancel"})


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


def kind_of_ticket(action: Action) -> Kind:
    """What the ticket of an execution is."""
    return "order" if action in ("amend", "cancel") else "position"


def order_of(execution: Execution, *, ticket: Ticket | None = None, lots: Decimal | None = None) -> Order:
    """The order of an execution; `ticket` and `lots` override the execution's own."""
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
    """The order without what the platform does not support. Levels that a market order cannot carry are set afterwards
    (`order_to_protect`)."""
    naked = order.kind == "market" and not capabilities.protected_market_orders
    return replace(
        order,
        sl=None if naked else order.sl,
        tp=None if naked else order.tp,
        expires_at=order.expires_at if capabilities.timed_orders else None,
        comment=order.comment[: capabilities.comment_max],
    )


def order_to_protect(order: Order, position: Position) -> Order:
    """Sets the levels of `order` on a position that it opened, where the order could not carry them."""
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


def orders_of(execution: Execution, book: Book, left: Sequence[Position], mode: Mode) -> list[Order] | Outcome:
    """Every order of an execution: one, except for a close by step, which ends all positions that the step `left` open.
    An `Outcome` when nothing needs to be sent."""
    if execution.action in NEEDS_TICKET and execution.ticket is None:
        ended = [position for position in left if execution.action == "close" or position.kind == "order"]
        return [order_to_end(execution, position) for position in ended] or Outcome(status="completed")
    if execution.action not in ("close", "reduce", "modify"):
        return [order_of(execution)]
    known = None if execution.ticket is None else book.get(Key("position", execution.ticket))
    if known is not None and known.position.side != execution.side:
        return reversed_(execution, known.position)
    if known is None or execution.action == "modify":
        return [order_of(execution)]
    lots = _lots_to_close(execution, known.position.lots, mode)
    if lots <= 0:
        return Outcome(status="completed", message="the target is reached already", positions=(known.position,))
    return [order_of(execution, lots=lots)]


def reversed_(execution: Execution, position: Position) -> Outcome:
    """The net position has changed sides meanwhile. What was to be closed is gone, and another deal would enlarge the
    new side; levels for the old side do not fit the new one."""
    message = f"the position is a {position.side} now; the {execution.side} that the order was for is gone"
    if execution.action == "modify":
        return Outcome(status="rejected", reason="position_reversed", message=message)
    return Outcome(status="completed", message=message, positions=(position,))


def _lots_to_close(execution: Execution, held: Decimal, mode: Mode) -> Decimal:
    """Lots to close. A close takes all that the position holds now (its user may have reduced it), a reduction only
    down to its target. A netting position may hold more than our copies: never more than the planned lots."""
    if execution.action == "close":
        return held if mode == "hedging" else min(held, execution.lots)
    return min(execution.lots, held - (execution.target_lots or Decimal(0)))


def flight_of(execution: Execution, orders: Iterable[Order], mode: Mode) -> Flight:
    return Flight(
        tag=execution.id,
        tickets=frozenset(order.ticket for order in orders if order.ticket is not None),
        netted_symbol=execution.symbol if mode == "netting" else None,
    )


def still_open(endings: Iterable[tuple[Position, ...]], book: Book) -> list[Position]:
    """The positions named in a step's reports that are still open. The book is newer than the reports: it overrides
    their states, knows which tickets have closed, and which position replaced a filled order."""
    left: dict[Key, Position] = {}
    for positions in endings:
        for position in positions:
            known = book.get(key_of(position))
            if known is not None:
                left[key_of(position)] = known.position
            elif position.lots > 0 and not book.ever_knew(key_of(position)):
                left[key_of(position)] = position
    named = left.keys() | {key_of(position) for positions in endings for position in positions}
    for known in book:
        if any(key in named for key in replaced_keys(known.position)):
            left[key_of(known.position)] = known.position
    return list(left.values())
