"""An adapter that is connected to an account, with helpers for tests."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from counterparties import Counterparty

from agent.model import Change, Changed, ExecutionId, Login, Mode, Order, Placed, Position, Result, Side, Ticket
from agent.platforms.adapter import Adapter

WAIT_S = 5.0


class Connected:
    """One logged-in adapter with its counter of numbers and its stream of changes."""

    def __init__(self, broker: Counterparty, adapter: Adapter, login: Login) -> None:
        self.broker = broker
        self.adapter = adapter
        self.login = login
        self._numbers = itertools.count(1)
        self._tags = itertools.count(9001)
        self.changes: AsyncIterator[Change]

    def take_seq(self) -> int:
        return next(self._numbers)

    async def connect(self) -> None:
        await self.adapter.connect(self.login, self.take_seq)
        self.changes = self.adapter.changes()

    def order(self, kind: str, **fields: Any) -> Order:
        defaults: dict[str, Any] = {"symbol": "EURUSD", "side": "buy", "lots": Decimal("0.50")}
        return Order(tag=ExecutionId(next(self._tags)), kind=kind, **{**defaults, **fields})  # type: ignore[arg-type]

    async def place(self, kind: str, **fields: Any) -> Result:
        return await self.adapter.place(self.order(kind, **fields))

    async def open(self, side: Side = "buy", lots: str = "0.50", **fields: Any) -> Position:
        """Open at the market; returns the position."""
        placed = await self.place("market", side=side, lots=Decimal(lots), **fields)
        assert isinstance(placed, Placed), placed
        return next(position for position in placed.positions if position.lots)

    async def close(self, position: Position, lots: str | None = None) -> Placed:
        off = position.lots if lots is None else Decimal(lots)
        closed = await self.place("close", ticket=position.ticket, side=position.side, lots=off)
        assert isinstance(closed, Placed), closed
        return closed

    async def change(self, ticket: str | None = None, *, gone: bool = False) -> Changed:
        """The next change (of `ticket`; to lots 0)."""
        async with asyncio.timeout(WAIT_S):
            async for change in self.changes:
                assert isinstance(change, Changed), change
                if ticket in (None, change.position.ticket) and (not gone or not change.position.lots):
                    return change
        raise AssertionError("the stream of changes ended")


@asynccontextmanager
async def connected(
    broker: Counterparty, login: str = "700100", mode: Mode = "hedging", latency_ms: int = 0
) -> AsyncIterator[Connected]:
    account = await broker.open_account(login, mode, latency_ms)
    terminal = Connected(broker, broker.adapter(), account)
    await terminal.connect()
    try:
        yield terminal
    finally:
        await terminal.adapter.close()


def by_ticket(positions: tuple[Position, ...], ticket: str) -> Position | None:
    return next((position for position in positions if position.ticket == Ticket(ticket)), None)
