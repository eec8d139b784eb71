"""Time as the database sees it, and time that keeps counting while a machine sleeps."""

import time
from collections import deque
from datetime import UTC, datetime, timedelta


def boot_time() -> float:
    """Seconds since boot, suspension included where the system can tell (Linux CLOCK_BOOTTIME), else monotonic."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class DatabaseClock:
    """Wall clock corrected by the measured offset to the database (DESIGN §4.8).

    `offset_ms` = database clock − own clock, from a heartbeat whose round trip is halved. Half a round trip is a guess that can
    be wrong by the other half, so of the last few measurements the one with the shortest round trip counts. A measurement
    that contradicts it by more than both can be wrong means that a clock was set: then only the new one counts.
    """

    KEEP = 8

    def __init__(self) -> None:
        self._offset = timedelta(0)
        self._measured: deque[tuple[timedelta, timedelta]] = deque(maxlen=self.KEEP)

    @property
    def offset_ms(self) -> float:
        return self._offset.total_seconds() * 1000

    def now(self) -> datetime:
        return datetime.now(UTC) + self._offset

    def measure(self, before: datetime, server_time: datetime, after: datetime) -> float:
        """Take the offset from one round trip (own wall clock before and after); returns the round trip in ms."""
        trip = after - before
        if trip < timedelta(0):
            return 0.0  # the own clock was set back in between: this says nothing
        offset = server_time - (before + trip / 2)
        if self._measured and abs(offset - self._offset) > (trip + min(self._measured)[0]) / 2:
            self._measured.clear()
        self._measured.append((trip, offset))
        self._offset = min(self._measured)[1]
        return trip.total_seconds() * 1000


class Lease:
    """How long this agent may still trade. Counted on boot time from *before* the renewing request was sent."""

    def __init__(self) -> None:
        self._ends_at = 0.0

    def renew(self, sent_at_boot: float, lease_ms: float) -> None:
        self._ends_at = max(self._ends_at, sent_at_boot + lease_ms / 1000)

    def revoke(self) -> None:
        self._ends_at = 0.0

    def remaining(self) -> float:
        """Seconds left; 0 when over."""
        return max(0.0, self._ends_at - boot_time())
