"""One read of everything an account holds, and how a read differs from the book. Unknown is never taken for empty."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from agent.book import Book, Key, gone, key_of
from agent.model import Position, Ticket
from agent.platforms.protocol import AccountChanged, AdapterError
from agent.session import AccountSession

log = logging.getLogger(__name__)

Read = tuple[Position, ...]


async def read_account(session: AccountSession, timeout: timedelta, *, first: bool = False) -> Read | None:  # noqa: ASYNC109
    """Everything open, orders first; None if that cannot be known now. `first`: nothing is remembered to compare it with.

    Raises `AccountChanged` when what it shows is another account: two accounts are never compared with each other."""
    adapter = session.adapter
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            orders = await adapter.orders()
            positions = await adapter.positions()
            expected = first or any(known.position.kind == "position" for known in session.book)
            if not positions and expected and (await adapter.account()).margin > 0:
                raise AdapterError("no positions are shown, but margin is in use")
            if first or {key_of(state) for state in (*orders, *positions)} != {key_of(known.position) for known in session.book}:
                await session.verify_login()
    except AccountChanged:
        raise
    except (AdapterError, TimeoutError) as error:
        log.warning("read_failed", extra={"account_id": session.account_id, "error": str(error)})
        return None
    pending = {order.ticket for order in orders}
    unfilled = (order for order in orders if all(order.ticket != position.replaces for position in positions))
    return (*unfilled, *(_with_lineage(position, pending, session.book) for position in positions))


def _with_lineage(position: Position, pending: set[Ticket], book: Book) -> Position:
    """Where a filled order keeps its ticket, the position continues it."""
    was_order = book.get(Key("order", position.ticket)) is not None
    if position.replaces is None and was_order and position.ticket not in pending:
        return replace(position, replaces=position.ticket)
    return position


def missing(book: Book, read: Read) -> Iterator[Position]:
    """What the book holds and the read lacks, as gone. A ticket that another one continues is not missing."""
    present = {key_of(position) for position in read}
    continued = {position.replaces for position in read}
    for known in book:
        if key_of(known.position) not in present and known.position.ticket not in continued:
            yield gone(known.position)
