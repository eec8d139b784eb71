"""Looks up the outcome of an order that may have been sent (law 4.5: an unknown outcome is not a failure).

Every method repeats its reads, with a growing pause, until the outcome is certain, and never sends anything. An order
counts as absent only when the adapter calls its absence conclusive and the platform's settle time after the order's
deadline is over. A failed read proves nothing.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import assert_never

from agent.account.book import Key, gone
from agent.account.session import AccountSession
from agent.clock import DatabaseClock
from agent.execution.orders import kind_of_ticket, order_of
from agent.execution.outcome import Outcome, expired
from agent.model import Execution, Found, NotFound, Position
from agent.platforms.adapter import AdapterError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Pauses between two reads: `first`, doubling up to `longest`."""

    first: timedelta = timedelta(milliseconds=100)
    longest: timedelta = timedelta(seconds=5)
    #: timeout of one read
    read_timeout: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class OutcomeResolver:
    session: AccountSession
    clock: DatabaseClock
    pace: Pace

    async def resolve(self, execution: Execution) -> Outcome:
        """Wait until the outcome is known. The caller cancels this when the session ends."""
        match execution.action:
            case "open" | "increase" | "place":
                return await self._adopt(execution)
            case "reduce":
                return await self._reduced(execution)
            case "close" | "modify" | "amend" | "cancel":
                return await self._applied(execution)
            case _:
                assert_never(execution.action)

    async def find_positions(self, execution: Execution, done: Outcome) -> Outcome:
        """The broker confirmed the order (`done`) without positions: wait until its tag shows them."""
        pause = self.pace.first
        while True:
            answer = await self._find_now(execution)
            if isinstance(answer, Found) and answer.positions:
                return replace(done, adopted=True, positions=answer.positions)
            if answer is not None and self._settled(execution) and (read := await self._read()) is not None:
                return self._last_resort(execution, done, answer, read)
            pause = await self._pause(pause)

    def _last_resort(
        self, execution: Execution, done: Outcome, answer: Found | NotFound, read: tuple[Position, ...]
    ) -> Outcome:
        """The best answer once the settle time is over and the tag showed no position."""
        if (position := self._named(execution, read)) is not None:
            return replace(done, adopted=True, positions=(position,))
        if isinstance(answer, Found) or execution.ticket is not None:
            # filled, and closed since
            key = None if execution.ticket is None else Key(kind_of_ticket(execution.action), execution.ticket)
            known = None if key is None else self.session.book.get(key)
            return replace(done, adopted=True, positions=() if known is None else (gone(known.position),))
        message = f"the broker confirmed {done.lots} lots, but nothing carries the order's tag; check the account"
        return replace(expired("not_found_after_unknown", message), lots=done.lots, price=done.price)

    async def find_once(self, execution: Execution) -> Outcome | None:
        """The outcome if one read finds the order now, else None."""
        answer = await self._find_now(execution)
        return _as_adopted(answer) if isinstance(answer, Found) else None

    async def _adopt(self, execution: Execution) -> Outcome:
        """Adopt the order with our tag, or make sure that there is none. It is never sent again."""
        found = await self._find(execution)
        if found is None:
            return expired(
                "not_found_after_unknown", "no position, order or deal carries its tag, and the settle time is over"
            )
        return _as_adopted(found)

    async def _reduced(self, execution: Execution) -> Outcome:
        """Was the reduction executed? If certainly not, the database plans a new one; the agent never repeats it."""
        pause = self.pace.first
        while True:
            answer = await self._find_now(execution)
            if isinstance(answer, Found):
                return _as_adopted(answer)
            position = self._named(execution, await self._read())
            if position is not None and execution.target_lots is not None and position.lots <= execution.target_lots:
                return Outcome(status="completed", adopted=True, lots=execution.lots, positions=(position,))
            if answer is not None and self._settled(execution):
                return _gone() if position is None else _not_done(position)
            pause = await self._pause(pause)

    async def _applied(self, execution: Execution) -> Outcome:
        """A close, modify, amend or cancel: the account shows whether it was executed."""
        pause = self.pace.first
        while True:
            answer = await self._find_now(execution)
            if isinstance(answer, Found):
                return _as_adopted(answer)
            read = await self._read()
            if read is not None and answer is not None and execution.ticket is not None:
                position = self._named(execution, read)
                if position is not None and _is_as_wanted(position, execution):
                    return Outcome(status="completed", adopted=True, positions=(position,))
                if self._settled(execution):
                    return _gone() if position is None else _not_done(position)
            elif read is not None and answer is not None and self._settled(execution):
                return expired("not_found_after_unknown", "a close by step left no trace")
            pause = await self._pause(pause)

    async def _find(self, execution: Execution) -> Found | None:
        pause = self.pace.first
        while True:
            answer = await self._find_now(execution)
            if isinstance(answer, Found):
                return answer
            if answer is not None and self._settled(execution):
                return None
            pause = await self._pause(pause)

    async def _find_now(self, execution: Execution) -> Found | NotFound | None:
        """None: not certain now (an error, a timeout, an absence that is not conclusive)."""
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
        kind = kind_of_ticket(execution.action)
        return next((held for held in read or () if (held.kind, held.ticket) == (kind, execution.ticket)), None)

    def _settled(self, execution: Execution) -> bool:
        """Whether an order sent before its deadline would have shown up by now."""
        return self.clock.now() - self.session.adapter.capabilities().settle >= execution.send_before

    async def _pause(self, pause: timedelta) -> timedelta:
        await asyncio.sleep(pause.total_seconds())
        return min(pause * 2, self.pace.longest)


def _as_adopted(found: Found) -> Outcome:
    return Outcome(status="completed", adopted=True, lots=found.lots, price=found.price, positions=found.positions)


def _gone() -> Outcome:
    """The ticket is not open any more. The account's own events report what ended it."""
    return Outcome(status="rejected", reason="position_not_found", message="the ticket is not open any more")


def _not_done(position: Position) -> Outcome:
    return Outcome(
        status="expired", reason="not_found_after_unknown", message="it was not carried out", positions=(position,)
    )


def _is_as_wanted(position: Position, execution: Execution) -> bool:
    if execution.action == "modify":
        return (position.sl, position.tp) == (execution.sl, execution.tp)
    if execution.action == "amend":
        return (position.price, position.sl, position.tp) == (execution.price, execution.sl, execution.tp)
    return position.lots == Decimal(0)
