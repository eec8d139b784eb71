"""Whether this agent is fit to trade. An unfit agent loses its lease: each heartbeat reports what is wrong.

`Fitness` decides from measurements and has no clock of its own. `FitnessWatch` measures the journal, the event loop,
the clocks, the memory and the disk of the running agent all the time, so that a full disk is noticed before there is an
order to write.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol, get_args

from agent.clock import boot_time
from agent.journal.file import JournalError

log = logging.getLogger(__name__)

#: the most serious first; explained in docs/errors.md, Unfit
Reason = Literal["journal_unwritable", "loop_stalled", "low_disk", "low_memory", "clock_drift"]

#: seconds between two checks of the event loop, of the journal, and of memory and disk
BEAT_S: Final = 0.5
PROBE_S: Final = 1.0
LOOK_S: Final = 2.0
#: bytes of a test write: few normally; after a failed write more than any order needs
SMALL_PROBE: Final = 16
LARGE_PROBE: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds beyond which an agent is unfit."""

    #: seconds during which all writes of the journal fail
    journal_s: float = 5
    #: `stalls` of the event loop of over `stall_s` seconds each within a minute
    stall_s: float = 2
    stalls: int = 3
    #: seconds by which wall clock and boot clock diverge within a minute
    drift_s: float = 1
    minute_s: float = 60
    memory_mb: float = 50
    disk_mb: float = 50
    #: seconds without the fault after which the agent is fit again
    recover_s: float = 30


@dataclass(frozen=True, slots=True)
class Free:
    """What is free on the machine, in MB of 2^20 bytes: memory, and space on the journal's disk."""

    memory_mb: float
    disk_mb: float


class Fitness:
    """Decides whether the agent is unfit. `at` is the time of a measurement, in seconds since boot."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        #: when each fault was last present
        self._faults: dict[Reason, float] = {}
        self._refused_since: float | None = None
        self._stalls: deque[float] = deque(maxlen=self._limits.stalls)
        #: (time, seconds by which the wall clock is ahead of the boot clock)
        self._clocks: deque[tuple[float, float]] = deque()

    @property
    def journal_refused(self) -> bool:
        """Whether the last write of the journal failed."""
        return self._refused_since is not None

    def journal(self, at: float, *, written: bool) -> None:
        if written:
            self._refused_since = None
            return
        if self._refused_since is None:
            self._refused_since = at
        if at - self._refused_since >= self._limits.journal_s or self._has("journal_unwritable", at):
            self._faults["journal_unwritable"] = at

    def beat(self, at: float, late_s: float) -> None:
        """The event loop woke `late_s` seconds later than scheduled."""
        if late_s <= self._limits.stall_s:
            return
        self._stalls.append(at)
        often = len(self._stalls) == self._limits.stalls and at - self._stalls[0] <= self._limits.minute_s
        if often or self._has("loop_stalled", at):
            self._faults["loop_stalled"] = at

    def clocks(self, at: float, wall: float) -> None:
        ahead = wall - at
        while self._clocks and at - self._clocks[0][0] > self._limits.minute_s:
            self._clocks.popleft()
        self._clocks.append((at, ahead))
        if any(abs(ahead - before) > self._limits.drift_s for _, before in self._clocks):
            self._faults["clock_drift"] = at

    def free(self, at: float, free: Free) -> None:
        if free.memory_mb < self._limits.memory_mb:
            self._faults["low_memory"] = at
        if free.disk_mb < self._limits.disk_mb:
            self._faults["low_disk"] = at

    def unfit(self, at: float) -> Reason | None:
        """The most serious fault within the last `recover_s` seconds, or None."""
        return next((reason for reason in get_args(Reason) if self._has(reason, at)), None)

    def _has(self, reason: Reason, at: float) -> bool:
        last = self._faults.get(reason)
        return last is not None and at - last < self._limits.recover_s


class Probed(Protocol):
    """What `FitnessWatch` needs of the journal."""

    @property
    def refused_writes(self) -> int: ...

    async def probe(self, size: int) -> None: ...


class FitnessWatch:
    """`run` measures until cancelled; the next heartbeat reports `unfit`."""

    def __init__(
        self,
        journal: Probed,
        free: Callable[[], Free],
        *,
        fitness: Fitness | None = None,
        on_change: Callable[[], None] = lambda: None,
        now: Callable[[], float] = boot_time,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`free` is called in a thread and may block."""
        self._journal = journal
        self._free = free
        self._fitness = fitness or Fitness()
        self._on_change = on_change
        self._now = now
        self._wall = wall
        self._sleep = sleep
        self._reported: Reason | None = None
        self._refused_writes = journal.refused_writes

    def unfit(self) -> Reason | None:
        return self._fitness.unfit(self._now())

    async def run(self) -> NoReturn:
        async with asyncio.TaskGroup() as group:
            for work in (self._beat(), self._probe(), self._look()):
                group.create_task(work)
        raise AssertionError("its tasks run for ever")

    async def _beat(self) -> NoReturn:
        while True:
            before = self._now()
            await self._sleep(BEAT_S)
            at = self._now()
            self._fitness.beat(at, at - before - BEAT_S)
            self._fitness.clocks(at, self._wall())
            self._announce(at)

    async def _probe(self) -> NoReturn:
        while True:
            await self.probe_once()
            await self._sleep(PROBE_S)

    async def probe_once(self) -> None:
        """Write once, and check whether any other write failed meanwhile. A disk that does not answer counts as
        failing."""
        size = LARGE_PROBE if self._fitness.journal_refused else SMALL_PROBE
        writing = asyncio.ensure_future(self._journal.probe(size))
        try:
            while not (await asyncio.wait({writing}, timeout=PROBE_S))[0]:
                self._fitness.journal(self._now(), written=False)
            writing.result()
            written = self._journal.refused_writes == self._refused_writes
        except JournalError:
            written = False
        finally:
            writing.cancel()
        self._refused_writes = self._journal.refused_writes
        self._fitness.journal(self._now(), written=written)
        self._announce(self._now())

    async def _look(self) -> NoReturn:
        while True:
            try:
                free = await asyncio.to_thread(self._free)
            except OSError as error:
                log.warning("machine_not_read", extra={"error": str(error)})
            else:
                self._fitness.free(self._now(), free)
                self._announce(self._now())
            await self._sleep(LOOK_S)

    def _announce(self, at: float) -> None:
        unfit = self._fitness.unfit(at)
        if unfit == self._reported:
            return
        if unfit is None:
            log.warning("agent_fit_again", extra={"was": self._reported})
        else:
            log.critical(
                "agent_unfit",
                extra={"reason": unfit, "effect": "the lease is not renewed; docs/operations.md says what to do"},
            )
        self._reported = unfit
        self._on_change()
