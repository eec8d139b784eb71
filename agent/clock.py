"""The database's time, time since boot, and the lease."""

import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

#: how far a machine's clock may run from the database's, in seconds per second (an ordinary quartz is within this)
DRIFT: Final = 1e-4


def boot_time() -> float:
    """Seconds since boot. Time in suspension counts where the system has such a clock (Linux CLOCK_BOOTTIME); elsewhere
    this is the monotonic clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class _Measurement:
    #: the part of the round trip that was spent under way
    under_way: timedelta
    #: the database's time when this machine's boot clock was 0
    zero: datetime
    #: boot time, in seconds
    at: float

    def contradicts(self, other: "_Measurement") -> bool:
        """Whether the two differ by more than both errors and the drift between them allow."""
        errors = (self.under_way + other.under_way) / 2 + timedelta(seconds=DRIFT * abs(self.at - other.at))
        return abs(self.zero - other.zero) > errors


class DatabaseClock:
    """The database's clock as this machine knows it (law 4.8).

    Every answer of the database says when it received the call (t1) and when it sent the answer (t2); this machine
    notes when the call left (t0) and when the answer was there (t3). From these four stamps follow, as in NTP (RFC
    5905, section 8), the offset ((t1 − t0) + (t2 − t3)) / 2 and the time under way (t3 − t0) − (t2 − t1). The offset
    is wrong by at most half the time under way, so of the last `KEEP` measurements the one with the shortest counts.

    t0 and t3 are read from the boot clock, which nobody can set: a step of this machine's wall clock changes nothing.
    If a measurement contradicts the one that counts, the database's clock was set: then only the new one counts.
    """

    KEEP = 8

    def __init__(self) -> None:
        self._measured: deque[_Measurement] = deque(maxlen=self.KEEP)
        self._best: _Measurement | None = None

    @property
    def offset_ms(self) -> float:
        """Database clock − this machine's wall clock, in ms; 0 before the first measurement."""
        if self._best is None:
            return 0.0
        return (self.now() - datetime.now(UTC)) / timedelta(milliseconds=1)

    def now(self) -> datetime:
        """The database's time; before the first measurement this machine's own."""
        if self._best is None:
            return datetime.now(UTC)
        return self._best.zero + timedelta(seconds=boot_time())

    def measure(self, left_at: float, received_at: datetime, sent_at: datetime, back_at: float) -> None:
        """Measure with the four stamps of one call: `left_at` and `back_at` (t0, t3) in seconds of `boot_time`,
        `received_at` and `sent_at` (t1, t2) on the database's clock. Stamps that cannot be true measure nothing: a
        clock was set during the call."""
        in_database = sent_at - received_at
        under_way = timedelta(seconds=back_at - left_at) - in_database
        if in_database < timedelta(0) or under_way < timedelta(0):
            return
        there, back = received_at - timedelta(seconds=left_at), sent_at - timedelta(seconds=back_at)
        new = _Measurement(under_way, there + (back - there) / 2, back_at)
        if self._best is not None and new.contradicts(self._best):
            self._measured.clear()
        self._measured.append(new)
        self._best = min(self._measured, key=lambda one: one.under_way)


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
