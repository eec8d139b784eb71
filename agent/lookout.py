"""Finding out what became of an order that may have been sent (DESIGN §4.5: an unknown outcome is not a failure).

Every function asks until it knows, with a growing pause, and never sends anything. Absence is believed only when the
adapter calls it conclusive and the order's last possible moment plus the platform's settle time is over. Reads that
fail say nothing.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import assert_never

from agent.book import gone
from agent.clock import DatabaseClock
from agent.model import Execution, Found, NotFound, Position
from agent.orders import Ending, expired, order_of
from agent.platforms.protocol import AdapterError
from agent.session import AccountSession

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to look: from `first` on, doubling up to `longest`."""

    first: timedelta = timedelta(milliseconds=100)
    longest: timedelta = timedelta(seconds=5)
    #: one read must answer within this
    read_timeout: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Lookout:
    session: AccountSession
    clock: DatabaseClock
    pace: Pace

    async def look(self, execution: Execution) -> Ending:
        """Wait until the outcome is known. Cancel it when the session ends."""
        match execution.action:
            case "open" | "increase" | "place":
                return await self._adopt(execution)
            case "reduce":
                return await self._reduced(execution)
            case "close" | "modify" | "amend" | "cancel":
                return await self._applied(execution)
            case _:
                assert_never(execution.action)

    async def show(self, execution: Execution, done: Ending) -> Ending:
        """The broker said that it dealt (`done`), but not what is held now: wait until the order's own traces show it."""
        pause = self.pace.first
        while True:
            answer = await self._ask_once(execution)
            if isinstance(answer, Found) and answer.positions:
                return replace(done, adopted=True, positions=answer.positions)
            if answer is not None and self._settled(execution) and (read := await self._read()) is not None:
                return self._shown(execution, done, answer, read)
            pause = await self._pause(pause)

    def _shown(self, execution: Execution, done: Ending, answer: Found | NotFound, read: tuple[Position, ...]) -> Ending:
        """All that can be known, once nothing new can turn up."""
        if (position := self._named(execution, read)) is not None:
            return replace(done, adopted=True, positions=(position,))
        if isinstance(answer, Found) or execution.ticket is not None:
            # it was filled and has been closed since
            known = None if execution.ticket is None else self.session.book.by_ticket(execution.ticket)
            return replace(done, adopted=True, positions=() if known is None else (gone(known),))
        message = f"the broker confirmed {done.lots} lots, but nothing at the account carries its tag: look at the account"
        return replace(expired("not_found_after_unknown", message), lots=done.lots, price=done.price)

    async def look_once(self, execution: Execution) -> Ending | None:
        """Has its order turned up by now?"""
        answer = await self._ask_once(execution)
        return _adopted(answer) if isinstance(answer, Found) else None

    async def _adopt(self, execution: Execution) -> Ending:
        """An order with our tag: adopt it, or be sure that there is none. It is never sent again."""
        found = await self._find(execution)
        if found is None:
            return expired("not_found_after_unknown", "no position, order or deal carries its tag, and the settle time is over")
        return _adopted(found)

    async def _reduced(self, execution: Execution) -> Ending:
        """Was it taken off? If surely not, the database plans what is missing anew: only it may send twice."""
        pause = self.pace.first
        while True:
            answer = await self._ask_once(execution)
            if isinstance(answer, Found):
                return _adopted(answer)
            position = self._named(execution, await self._read())
            if position is not None and execution.target_lots is not None and position.lots <= execution.target_lots:
                return Ending(outcome="completed", adopted=True, lots=execution.lots, positions=(position,))
            if answer is not None and self._settled(execution):
                return _gone() if position is None else _not_done(position)
            pause = await self._pause(pause)

    async def _applied(self, execution: Execution) -> Ending:
        """A close, a new SL/TP, a changed or cancelled order: the book shows whether it is so."""
        pause = self.pace.first
        while True:
            answer = await self._ask_once(execution)
            if isinstance(answer, Found):
                return _adopted(answer)
            read = await self._read()
            if read is not None and answer is not None and execution.ticket is not None:
                position = self._named(execution, read)
                if position is not None and _is_as_wanted(position, execution):
                    return Ending(outcome="completed", adopted=True, positions=(position,))
                if self._settled(execution):
                    return _gone() if position is None else _not_done(position)
            elif read is not None and answer is not None and self._settled(execution):
                return expired("not_found_after_unknown", "a close by step left no trace")
            pause = await self._pause(pause)

    async def _find(self, execution: Execution) -> Found | None:
        pause = self.pace.first
        while True:
            answer = await self._ask_once(execution)
            if isinstance(answer, Found):
                return answer
            if answer is not None and self._settled(execution):
                return None
            pause = await self._pause(pause)

    async def _ask_once(self, execution: Execution) -> Found | NotFound | None:
        """None: the adapter cannot tell now (an error, a time-out, not conclusive)."""
        try:
            async with asyncio.timeout(self.pace.read_timeout.total_seconds()):
                answer = await self.session.adapter.find(order_of(execution))
                if not isinstance(answer, Found):
                    await self.session.verify_login()
        except (AdapterError, TimeoutError) as error:
            log.warning("look_failed", extra={"execution_id": execution.id, "error": str(error)})
            return None
        return answer if isinstance(answer, Found) or answer.conclusive else None

    async def _read(self) -> tuple[Position, ...] | None:
        try:
            async with asyncio.timeout(self.pace.read_timeout.total_seconds()):
                orders = await self.session.adapter.orders()
                return orders + await self.session.adapter.positions()
        except (AdapterError, TimeoutError):
            return None

    def _named(self, execution: Execution, read: tuple[Position, ...] | None) -> Position | None:
        return next((position for position in read or () if position.ticket == execution.ticket), None)

    def _settled(self, execution: Execution) -> bool:
        """Nothing that was sent in time can still turn up."""
        return self.clock.now() >= execution.send_before + self.session.adapter.capabilities().settle

    async def _pause(self, pause: timedelta) -> timedelta:
        await asyncio.sleep(pause.total_seconds())
        return min(pause * 2, self.pace.longest)


def _adopted(found: Found) -> Ending:
    return Ending(outcome="completed", adopted=True, lots=found.lots, price=found.price, positions=found.positions)


def _gone() -> Ending:
    """Something ended it; the account's own events say what. Nothing is claimed about the ticket here."""
    return Ending(outcome="rejected", reason="position_not_found", message="the ticket is not open any more")


def _not_done(position: Position) -> Ending:
    return Ending(outcome="expired", reason="not_found_after_unknown", message="it was not carried out", positions=(position,))


def _is_as_wanted(position: Position, execution: Execution) -> bool:
    if execution.action == "modify":
        return (position.sl, position.tp) == (execution.sl, execution.tp)
    if execution.action == "amend":
        return (position.price, position.sl, position.tp) == (execution.price, execution.sl, execution.tp)
    return position.lots == Decimal(0)
