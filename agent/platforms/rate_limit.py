"""`RateLimit`: limits the orders per second on one connection, and chooses the next one when several wait.

Closes go before opens, opens before changes; within a class the account that was served longest ago is next. An order
moves up one class per second of waiting, so that many closes on one follower do not starve the other accounts.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from agent.clock import boot_time
from agent.model import AccountId, Order

#: seconds of waiting after which an order moves up one class
PATIENCE = 1.0
#: one token, minus a tolerance for floating-point sums
ONE = 1 - 1e-6


def urgency(order: Order) -> int:
    """Smaller is sooner."""
    match order.kind:
        case "close" | "cancel":
            return 0
        case "market" | "pending":
            return 1
        case "modify" | "amend":
            return 2
        case _:
            assert_never(order.kind)


@dataclass(slots=True, eq=False)
class _Waiting:
    account: AccountId
    urgency: int
    since: float
    turn: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RateLimit:
    """A token bucket, one per connection and shared by all accounts on it: `per_second` tokens flow in, at most `burst`
    are kept."""

    def __init__(self, per_second: float, burst: int = 1, *, now: Callable[[], float] = boot_time) -> None:
        if per_second <= 0 or burst < 1:
            raise ValueError("per_second must be over 0 and burst at least 1")
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._tokens = float(burst)
        self._filled_at = now()
        self._waiting: list[_Waiting] = []
        self._served: dict[AccountId, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, account: AccountId, order: Order) -> None:
        """Wait for this order's turn. Its deadline may have passed by then: check it again afterwards."""
        one = _Waiting(account, urgency(order), self._now())
        self._waiting.append(one)
        self._serve()
        try:
            await one.turn
        finally:
            if one in self._waiting:
                self._waiting.remove(one)

    def _serve(self) -> None:
        now = self._now()
        self._tokens = min(float(self._burst), self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        while self._waiting and self._tokens >= ONE:
            one = min(self._waiting, key=lambda each: self._rank(each, now))
            self._waiting.remove(one)
            if one.turn.cancelled():
                continue
            self._tokens -= 1
            self._served[one.account] = now
            one.turn.set_result(None)
        if self._waiting and self._timer is None:
            wait = (1 - self._tokens) / self._per_second
            self._timer = asyncio.get_running_loop().call_later(wait, self._later)

    def _rank(self, one: _Waiting, now: float) -> tuple[int, float, float]:
        lifted = one.urgency - int((now - one.since) / PATIENCE)
        return (lifted, self._served.get(one.account, 0.0), one.since)

    def _later(self) -> None:
        self._timer = None
        self._serve()
