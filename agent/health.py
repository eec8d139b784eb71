"""The heartbeat: machine figures out; lease, assignments and outstanding work in.

It is the agent's safety net (DESIGN §4.4): whatever a broadcast lost, the next heartbeat brings.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NoReturn, Protocol

import psutil

from agent.clock import DatabaseClock, Lease
from agent.json_fields import WireError
from agent.model import AccountId, Assignment, ExecutionId, Offered
from agent.offers import Heartbeat
from agent.process import AgentProcess
from agent.retry import CallFailed, Refused

log = logging.getLogger(__name__)

#: refusals that mean that this agent is not (or no longer) one, or not the one that works as this VPS
NOT_AN_AGENT: Final = frozenset({"TC101", "TC102", "TC110"})
#: another process works as this VPS; asked again once, for a gateway may have delivered one heartbeat twice
ANOTHER_PROCESS: Final = "TC110"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """Seconds between heartbeats: at rest; while something is in flight, in doubt or failing; when refused for good.

    At rest: an open whose broadcast was lost is found by the next heartbeat, which must come well before its `send_before` (5 s).
    The database's own `heartbeat_s`, which comes with each answer, overrules it.
    """

    every: float = 2
    when_busy: float = 1
    when_refused: float = 30


class Plane(Protocol):
    async def heartbeat(self, figures: Mapping[str, object], lease: Lease) -> tuple[Heartbeat, float]: ...


class Engine(Protocol):
    @property
    def in_flight(self) -> int: ...

    def submit(self, executions: Iterable[Offered]) -> None: ...

    def cancel(self, ids: Iterable[ExecutionId]) -> None: ...


class Events(Protocol):
    @property
    def in_doubt(self) -> bool: ...

    def heartbeat_said(self, last_tick_at: datetime | None, server_time: datetime) -> None: ...


class Connections(Protocol):
    def want(self, assignments: Iterable[Assignment], unreadable: frozenset[AccountId] = frozenset()) -> None: ...

    def resync(self, account_ids: Iterable[AccountId]) -> None: ...

    def told(self, accounts: list[dict[str, object]]) -> None: ...

    def statuses(self) -> list[dict[str, object]]: ...


class Machine:
    """Use of this machine, in percent, and this process's memory."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._process = psutil.Process()
        psutil.cpu_percent(interval=None)

    def figures(self) -> dict[str, object]:
        """Never blocks: the CPU figure is the average since the last call."""
        return {
            "agent_version": agent_version(),
            "cpu_percent": psutil.cpu_percent(interval=None),
            "memory_percent": psutil.virtual_memory().percent,
            "disk_percent": psutil.disk_usage(str(self._data_dir)).percent,
            "rss_mb": round(self._process.memory_info().rss / 2**20, 1),
        }


def agent_version() -> str:
    try:
        return version("tradecopier")
    except PackageNotFoundError:
        return "unknown"


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """True if the event was set within `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class HeartbeatLoop:
    """`run` beats until cancelled; `beat_now` asks for one at once (asked twice before it goes out, it is one).

    `wait(event, seconds)` is the loop's only clock.
    """

    def __init__(
        self,
        plane: Plane,
        engine: Engine,
        events: Events,
        connections: Connections,
        *,
        lease: Lease,
        clock: DatabaseClock,
        machine: Callable[[], Mapping[str, object]],
        process: AgentProcess | None = None,
        settings: HealthSettings | None = None,
        wait: Callable[[asyncio.Event, float], Awaitable[bool]] = wait_for_event,
    ) -> None:
        self._plane = plane
        self._engine = engine
        self._events = events
        self._connections = connections
        self._lease = lease
        self._clock = clock
        self._machine = machine
        self._process = process
        self._settings = settings or HealthSettings()
        self._wait = wait
        self._asked = asyncio.Event()
        self._rtt_ms: float | None = None
        self._had_lease = False
        self._failures = 0
        self._refused = False
        self._doubted = False
        #: the last answer; set for good once there was one
        self.answer: Heartbeat | None = None
        self.answered = asyncio.Event()

    def beat_now(self) -> None:
        self._asked.set()

    async def run(self) -> NoReturn:
        while True:
            self._asked.clear()
            await self.beat()
            await self._pause()

    async def beat(self) -> None:
        """One heartbeat; what it brings is handed on. Failures are counted, never raised."""
        accounts = self._connections.statuses()
        try:
            answer, self._rtt_ms = await self._plane.heartbeat(self._figures(accounts), self._lease)
        except Refused as error:
            self._on_refused(error)
        except (CallFailed, WireError) as error:
            self._failures += 1
            log.warning(
                "heartbeat_failed",
                extra={"error": str(error), "failures": self._failures, "lease_s": round(self._lease.remaining(), 1)},
            )
        else:
            self._connections.told(accounts)
            self._on_answer(answer)
        self._watch_lease()

    def _figures(self, accounts: list[dict[str, object]]) -> dict[str, object]:
        process = {} if self._process is None else {"process": self._process.figures()}
        return {
            **self._machine(),
            **process,
            "offset_ms": round(self._clock.offset_ms, 3),
            "rtt_ms": None if self._rtt_ms is None else round(self._rtt_ms, 3),
            "accounts": accounts,
        }

    def _on_answer(self, answer: Heartbeat) -> None:
        if self._failures or self._refused:
            log.info("heartbeat_answered", extra={"failures": self._failures})
        self._failures, self._refused, self._doubted = 0, False, False
        self.answer = answer
        if self._process is not None:
            self._process.accepted()
        self._connections.want(answer.assignments, answer.unreadable)
        self._connections.resync(answer.resync)
        self._engine.cancel(answer.cancel)
        self._engine.submit(answer.executions)
        self._events.heartbeat_said(answer.last_tick_at, answer.server_time)
        self.answered.set()

    def _on_refused(self, error: Refused) -> None:
        self._failures += 1
        log.error("heartbeat_refused", extra={"error": str(error), "code": error.code})
        if error.code in NOT_AN_AGENT:
            self._lease.revoke()
            if error.code == ANOTHER_PROCESS and not self._doubted:
                self._doubted = True
                return
            # Retired by an operator, or a clone works in its place: whatever is still running here is somebody else's now.
            self._refused = True
            self._connections.want(())

    def _watch_lease(self) -> None:
        has_lease = self._lease.remaining() > 0
        if self._had_lease and not has_lease:
            log.critical(
                "lease_over", extra={"failures": self._failures, "mend": "no order is sent until a heartbeat is answered"}
            )
        elif has_lease and not self._had_lease:
            log.info("lease_held", extra={"lease_s": round(self._lease.remaining(), 1)})
        self._had_lease = has_lease

    async def _pause(self) -> None:
        """Up to the next beat, looking every second whether there is reason for it. An outage is not hammered on demand."""
        if self._failures:
            await self._wait(asyncio.Event(), self._settings.when_refused if self._refused else self._settings.when_busy)
            return
        every = self._settings.every if self.answer is None else self.answer.heartbeat_ms / 1000
        waited = 0.0
        while waited < every:
            step = min(self._settings.when_busy, every - waited)
            if await self._wait(self._asked, step):
                return
            waited += step
            if self._engine.in_flight > 0 or self._events.in_doubt:
                return
