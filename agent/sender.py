"""`Sender`: the only place that hands orders to an adapter. What comes back is a value, whatever happens on the way."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from agent.clock import DatabaseClock
from agent.gate import Gate
from agent.lanes import Work
from agent.model import Order, Rejected, Result, Unknown
from agent.orders import flight_of
from agent.platforms.protocol import AdapterError
from agent.session import AccountSession

log = logging.getLogger(__name__)


class Sender:
    def __init__(self, session: AccountSession, clock: DatabaseClock, gate: Gate, timeout: timedelta) -> None:
        """`timeout`: an order without an answer for so long is unknown."""
        self._session = session
        self._clock = clock
        self._gate = gate
        self._timeout = timeout.total_seconds()

    async def place_all(self, work: Work, orders: Sequence[Order]) -> list[Result]:
        """Send them one after the other. The caller has asked the gate for the first one and not awaited since."""
        results: list[Result] = []
        self._session.take_off(flight_of(work.execution, orders, self._session.mode))
        work.sent_at = work.sent_at or max(work.received_at, self._clock.now())
        for order in orders:
            if results and (why := self._gate.why_not(work)) is not None:
                results.append(Rejected(reason=why.reason or "too_late", retryable=True, message=why.message))
                break
            results.append(await self._place(replace(order, send_before=self._gate.send_before(work))))
        return results

    async def _place(self, order: Order) -> Result:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._session.adapter.place(order)
        except TimeoutError:
            return Unknown(message=f"no answer within {self._timeout:g} s")
        except AdapterError as error:
            return Unknown(message=str(error))
        except Exception as error:
            # The order may be out there whatever went wrong on the way back.
            log.exception("adapter_failed", extra={"execution_id": order.tag})
            return Unknown(message=f"{type(error).__name__}: {error}")
