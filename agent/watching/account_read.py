"""Reads everything that an account holds, and compares it with the book. A failed read never counts as an empty one."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from agent import limits
from agent.account.book import Book, Key, gone, key_of, replaced_keys
from agent.account.session import AccountSession
from agent.model import Position, Ticket
from agent.platforms.adapter import AccountChanged, AdapterError

log = logging.getLogger(__name__)

Read = tuple[Position, ...]


async def read_account(session: AccountSession, timeout: timedelta, *, first: bool = False) -> Read | None:  # noqa: ASYNC109
    """Everything open, pending orders first; None if the read failed or is not plausible. `first`: the book is empty,
    so there is nothing to compare the read with.

    Raises `AccountChanged` when the terminal shows another account."""
    adapter = session.adapter
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            orders = _known(await adapter.orders(), session)
            positions = _known(await adapter.positions(), session)
            if _may_have_filled(orders, positions):
                orders = _known(await adapter.orders(), session)
            expected = first or any(known.position.kind == "position" for known in session.book)
            if not positions and expected and (await adapter.account()).margin > 0:
                raise AdapterError("no positions are shown, but margin is in use")
            if first or {key_of(state) for state in (*orders, *positions)} != {
                key_of(known.position) for known in session.book
            }:
                await session.verify_login()
    except AccountChanged:
        raise
    except (AdapterError, TimeoutError) as error:
        log.warning("read_failed", extra={"account_id": session.account_id, "error": str(error)})
        return None
    pending = {order.ticket for order in orders}
    named = tuple(_with_lineage(position, pending, session.book) for position in positions)
    filled = {key for position in named for key in replaced_keys(position)}
    return (*(order for order in orders if key_of(order) not in filled), *named)


def _may_have_filled(orders: Read, positions: Read) -> bool:
    """Whether an order filled between the two reads, into a position of its number that does not say so. An order that
    still waits then is another one, or the rest of it."""
    waiting = {(order.ticket, order.symbol, order.side) for order in orders}
    return any(
        position.replaces is None and (position.ticket, position.symbol, position.side) in waiting
        for position in positions
    )


def _known(states: Read, session: AccountSession) -> Read:
    """The states without those that the database cannot store: it would refuse the whole read for one of them."""
    if all(limits.is_known(state) for state in states):
        return states
    for state in states:
        if not limits.is_known(state):
            session.leave_out(state)
    return tuple(state for state in states if limits.is_known(state))


def _with_lineage(position: Position, pending: set[Ticket], book: Book) -> Position:
    """The position with what it continues. Where the position of a filled order keeps the order's number, that is the
    order which no longer waits; if it still waits, the position began by itself."""
    if position.replaces is not None or position.replaces_kind is not None:
        return book.named(position)
    if position.ticket in pending:
        return replace(position, replaces_kind="position")
    known = book.get(key_of(position))
    if known is not None and position.lots <= known.position.lots:  # it has taken in nothing
        return book.named(position)
    order = book.get(Key("order", position.ticket))
    if order is not None and (order.position.symbol, order.position.side) == (position.symbol, position.side):
        return replace(position, replaces=position.ticket, replaces_kind="order")
    return position


def missing(book: Book, read: Read) -> Iterator[Position]:
    """The states that are in the book but not in the read, with 0 lots. A ticket that another one replaces is not
    missing."""
    present = {key_of(position) for position in read}
    continued = {key for position in read for key in replaced_keys(position)}
    for known in book:
        if key_of(known.position) not in present | continued:
            yield gone(known.position)
