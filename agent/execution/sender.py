"""`Sender`: the only place that passes orders to an adapter. It returns a result for every failure instead of
raising."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from agent.account.book import key_of
from agent.account.session import AccountSession
from agent.clock import DatabaseClock
from agent.execution.lanes import Work
from agent.execution.orders import fitted, flight_of, order_to_protect
from agent.execution.outcome import Outcome
from agent.execution.send_gate import SendGate
from agent.model import Order, Placed, Quote, Rejected, Result, Unknown
from agent.platforms.adapter import AdapterError

log = logging.getLogger(__name__)

#: seconds an order waits for the first quote of its symbol, and between two checks
QUOTE_WAIT_S = 0.5
QUOTE_LOOK_S = 0.02
#: longest wait for a quote that only explains a refusal
QUOTE_TIMEOUT_S = 1.0


class Sender:
    def __init__(self, session: AccountSession, clock: DatabaseClock, gate: SendGate, timeout: timedelta) -> None:
        """`timeout`: an order without an answer after this time is unknown."""
        self._session = session
        self._clock = clock
        self._gate = gate
        self._timeout = timeout.total_seconds()

    async def place_all(self, work: Work, orders: Sequence[Order]) -> list[Result]:
        """Send orders one after the other. The caller has asked the gate about the first one and not awaited since."""
        results: list[Result] = []
        bucket = self._session.adapter.bucket()
        self._session.begin_flight(flight_of(work.execution, orders, self._session.mode))
        for order in orders:
            if bucket is not None:
                await bucket.take(self._session.account_id, order)
            if (results or bucket is not None) and (why := self._gate.why_not(work)) is not None:
                results.append(_unsent(why))
                break
            work.sent_at = work.sent_at or max(work.received_at, self._clock.now())
            result = await self._place_protected(work, replace(order, send_before=self._gate.send_before(work)))
            if isinstance(result, Rejected) and result.reason == "no_quotes":
                result = await self._with_quote(work, order, result)
            results.append(result)
        return results

    async def _with_quote(self, work: Work, order: Order, refusal: Rejected) -> Result:
        """The broker refused the order because the terminal had no quote yet. Requesting the quote subscribes to it:
        wait for it, then send the order once more."""
        if not await self._quote_comes(order.symbol):
            message = f"no quote of {order.symbol} within {QUOTE_WAIT_S:g} s"
            return replace(refusal, retryable=False, message=message)
        if (why := self._gate.why_not(work)) is not None:
            return _unsent(why)
        return await self._place_protected(work, replace(order, send_before=self._gate.send_before(work)))

    async def _quote_comes(self, symbol: str) -> bool:
        try:
            async with asyncio.timeout(QUOTE_WAIT_S):
                while await self._session.adapter.quote(symbol) is None:  # noqa: ASYNC110 (nothing announces a first quote)
                    await asyncio.sleep(QUOTE_LOOK_S)
        except (AdapterError, TimeoutError):
            return False
        return True

    async def quote(self, symbol: str) -> Quote | None:
        """The market now, if it can be read at once."""
        try:
            async with asyncio.timeout(QUOTE_TIMEOUT_S):
                return await self._session.adapter.quote(symbol)
        except (AdapterError, TimeoutError):
            return None

    async def _place_protected(self, work: Work, order: Order) -> Result:
        """Place an order and, where the platform takes no levels with a market order, set them right after it. The
        reported positions show whether that worked; the database plans what is missing."""
        capabilities = self._session.adapter.capabilities()
        fit = fitted(order, capabilities)
        result = await self._place(fit)
        if not isinstance(result, Placed) or (fit.sl, fit.tp) == (order.sl, order.tp):
            return result
        latest = {key_of(position): position for position in result.positions}
        for position in result.positions:
            if position.kind == "position" and position.lots > 0:
                change = await self._protect(work, order_to_protect(order, position))
                if isinstance(change, Placed):
                    latest |= {key_of(changed): changed for changed in change.positions}
        return replace(result, positions=tuple(latest.values()))

    async def _protect(self, work: Work, change: Order) -> Result | None:
        if (bucket := self._session.adapter.bucket()) is not None:
            await bucket.take(self._session.account_id, change)
        return await self._place(change) if self._gate.why_not(work) is None else None

    async def _place(self, order: Order) -> Result:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._session.adapter.place(order)
        except TimeoutError:
            return Unknown(message=f"no answer within {self._timeout:g} s")
        except AdapterError as error:
            return Unknown(message=str(error))
        except Exception as error:
            # Whatever failed, the order may have been executed.
            log.exception("adapter_failed", extra={"execution_id": order.tag})
            return Unknown(message=f"{type(error).__name__}: {error}")


def _unsent(why: Outcome) -> Rejected:
    return Rejected(reason=why.reason or "too_late", retryable=True, message=why.message)
