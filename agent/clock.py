"""The database's time, time since boot, and the lease."""

import time
from collections import deque
from datetime import UTC, datetime, timedelta


def boot_time() -> float:
    """Seconds since boot. Time in suspension counts where the system has such a clock (Linux CLOCK_BOOTTIME); elsewhere
    this is the monotonic clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class DatabaseClock:
    """Wall clock corrected by the measured offset to the database (law 4.8).

    `offset_ms` = database clock − own clock, in ms. A heartbeat measures it: the database is assumed to have read its
    clock in the middle of the round trip, so the error is at most half the round trip. Of the last `KEEP` measurements
    the one with the shortest round trip counts. If a new one differs from it by more than both errors allow, a clock
    was set: then only the new one counts.
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
        """Measure the offset in one round trip. `before`, `after`: this machine's wall clock. Returns the round trip in
        ms."""
        trip = after - before
        if trip < timedelta(0):
            return 0.0  # this machine's clock was set back in between: no measurement
        offset = server_time - (before + trip / 2)
        if self._measured and abs(offset - self._offset) > (trip + min(self._measured)[0]) / 2:
            self._measured.clear()
        self._measured.append((trip, offset))
        self._offset = min(self._measured)[1]
        return trip.total_seconds() * 1000


class Lease:
    """How long this agent may still trade, in boot time. A renewal counts from *before* its request was sent."""

    def __init__(self) -> None:
        self._ends_at = 0.0

    def renew(self, sent_at_boot: float, lease_ms: float) -> None:
        self._ends_at = max(self._ends_at, sent_at_boot + lease_ms / 1000)

    def revoke(self) -> None:
        self._ends_at = 0.0

    def remaining(self) -> float:
        """Seconds left; 0 when the lease is over."""
        return max(0.0, self._ends_at - boot_time())
