"""Open-loop arrivals: events start when the schedule says, whether or not the previous one has finished.

Latency is also counted from the scheduled moment, so that a system that falls behind cannot hide it (no coordinated
omission).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Arrival:
    """Event `number` was due at `due_at` (wall clock) and started `late_ms` later."""

    number: int
    due_at: datetime
    late_ms: float


async def arrive(count: int, per_second: float, action: Callable[[int], Awaitable[None]]) -> list[Arrival]:
    """Start `action(0)`, `action(1)`, … on a fixed schedule and wait for all of them. The first error ends it."""
    start, start_at = time.monotonic() + 0.05, datetime.now(UTC) + timedelta(seconds=0.05)
    arrivals: list[Arrival] = []
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            offset = number / per_second
            await asyncio.sleep(max(0.0, start + offset - time.monotonic()))
            late_ms = (time.monotonic() - start - offset) * 1000
            arrivals.append(Arrival(number, start_at + timedelta(seconds=offset), late_ms))
            group.create_task(_do(action, number))
    return arrivals


async def _do(action: Callable[[int], Awaitable[None]], number: int) -> None:
    await action(number)
