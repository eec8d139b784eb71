"""The heartbeat sends the machine's figures and the accounts' statuses, and receives the lease, assignments and
outstanding executions.

It is the agent's safety net (law 4.4): what a lost broadcast would have delivered, the next heartbeat delivers.
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
from agent.control_plane.decode import Heartbeat
from agent.control_plane.json_fields import WireError
from agent.control_plane.retry import CallFailed, Refused
from agent.model import AccountId, Assignment, ExecutionId, Offered
from agent.service.fitness import Free
from agent.service.process_identity import AgentProcess

log = logging.getLogger(__name__)

#: refusals after which this agent must stop: it is no agent (any more), another process works as this VPS, or the
#: protocol versions do not fit
NOT_AN_AGENT: Final = frozenset({"TC101", "TC102", "TC110", "TC111", "TC112"})
#: another process works as this VPS; confirmed by a second heartbeat, because a gateway may have delivered one twice
ANOTHER_PROCESS: Final = "TC110"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """Seconds between heartbeats: `every` when idle; `when_busy` while an execution is in flight, broadcasts may be
    missed or heartbeats fail; `when_refused` after a definitive refusal.

    The next heartbeat finds an open whose broadcast was lost, so when idle it must come well before the open's
    `send_before` (5 s). The database's setting `heartbeat_s`, sent with each answer, overrides `every`.
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
    def may_miss_broadcasts(self) -> bool: ...

    def check_ticks(self, last_tick_at: datetime | None, server_time: datetime) -> None: ...


class Connections(Protocol):
    def want(
        self, assignments: Iterable[Assignment], unreadable: frozenset[AccountId] = frozenset()
    ) -> frozenset[AccountId]: ...

    def resync(self, account_ids: Iterable[AccountId]) -> None: ...

    def statuses_delivered(self, accounts: list[dict[str, object]]) -> None: ...

    def statuses(self) -> list[dict[str, object]]: ...


class Machine:
    """The use of this machine in percent, this process's memory in MB, and what is free."""

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

    def free(self) -> Free:
        """May block, because it reads the state of the disk."""
        memory, disk = psutil.virtual_memory().available, psutil.disk_usage(str(self._data_dir)).free
        return Free(memory_mb=memory / 2**20, disk_mb=disk / 2**20)


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
    """`run` sends heartbeats until cancelled; `beat_now` requests one at once (several requests are one heartbeat).

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
        unfit: Callable[[], str | None] = lambda: None,
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
        self._unfit = unfit
        self._settings = settings or HealthSettings()
        self._wait = wait
        self._requested = asyncio.Event()
        self._rtt_ms: float | None = None
        self._had_lease = False
        self._failures = 0
        self._refused = False
        self._suspected = False
        #: the last answer whose entries were all processed, and the accounts of its unreadable entries
        self._worked_through: str | None = None
        self._unreadable: frozenset[AccountId] = frozenset()
        #: the last answer; never None again after the first one
        self.answer: Heartbeat | None = None
        self.answered = asyncio.Event()

    def beat_now(self) -> None:
        self._requested.set()

    async def run(self) -> NoReturn:
        while True:
            self._requested.clear()
            await self.beat()
            await self._pause()

    async def beat(self) -> None:
        """Send one heartbeat and process the answer. Failures are counted, never raised."""
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
        except Exception:
            # An answer that makes its decoder fail must not end the loop: every account would stop with it.
            self._failures += 1
            log.exception(
                "heartbeat_failed", extra={"failures": self._failures, "lease_s": round(self._lease.remaining(), 1)}
            )
        else:
            self._connections.statuses_delivered(accounts)
            self._on_answer(answer)
        self._watch_lease()

    def _figures(self, accounts: list[dict[str, object]]) -> dict[str, object]:
        process = {} if self._process is None else {"process": self._process.figures()}
        return {
            **self._machine(),
            **process,
            "offset_ms": round(self._clock.offset_ms, 3),
            "rtt_ms": None if self._rtt_ms is None else round(self._rtt_ms, 3),
            "worked_through": self._worked_through,
            "unreadable": sorted(self._unreadable),
            "unfit": self._unfit(),
            "accounts": accounts,
        }

    def _on_answer(self, answer: Heartbeat) -> None:
        if self._failures or self._refused:
            log.info("heartbeat_answered", extra={"failures": self._failures})
        self._failures, self._refused, self._suspected = 0, False, False
        had_lease = self.answer is not None and self.answer.lease_ms > 0
        self.answer = answer
        if self._process is not None:
            self._process.accepted()
        try:
            self._work_through(answer)
        except Exception:
            # The database does not renew the lease of an agent that cannot process its answers: the accounts move.
            log.exception("answer_not_worked_through", extra={"answer": answer.answer_id})
            return
        if answer.lease_ms == 0 and had_lease:
            self._requested.set()  # after an outage: the next heartbeat names this answer and gets the lease
        self.answered.set()

    def _work_through(self, answer: Heartbeat) -> None:
        """Process every entry, or report its account as unreadable. If the answer is not complete, process what can be
        read and release no account."""
        kept = answer.unreadable if answer.complete else answer.unreadable | self._accounts()
        failed = self._connections.want(answer.assignments, kept)
        self._connections.resync(answer.resync)
        self._engine.cancel(answer.cancel)
        self._engine.submit(answer.executions)
        self._events.check_ticks(answer.last_tick_at, answer.server_time)
        if not answer.complete:
            raise WireError("an entry names no account")
        self._worked_through, self._unreadable = answer.answer_id, answer.unreadable | failed

    def _accounts(self) -> frozenset[AccountId]:
        return frozenset(AccountId(str(account["account_id"])) for account in self._connections.statuses())

    def _on_refused(self, error: Refused) -> None:
        self._failures += 1
        log.error("heartbeat_refused", extra={"error": str(error), "code": error.code})
        if error.code in NOT_AN_AGENT:
            self._lease.revoke()
            if error.code == ANOTHER_PROCESS and not self._suspected:
                self._suspected = True
                return
            # An operator has retired this VPS, or a clone works in its place: stop working every account.
            self._refused = True
            self._connections.want(())

    def _watch_lease(self) -> None:
        has_lease = self._lease.remaining() > 0
        if self._had_lease and not has_lease:
            log.critical(
                "lease_over",
                extra={"failures": self._failures, "fix": "no order is sent until a heartbeat is answered"},
            )
        elif has_lease and not self._had_lease:
            log.info("lease_held", extra={"lease_s": round(self._lease.remaining(), 1)})
        self._had_lease = has_lease

    async def _pause(self) -> None:
        """Wait until the next heartbeat; checks every second whether one is needed earlier. During failures, requests
        for a heartbeat are ignored, so that they do not add load to a failing database."""
        if self._failures:
            await self._wait(
                asyncio.Event(), self._settings.when_refused if self._refused else self._settings.when_busy
            )
            return
        every = self._settings.every if self.answer is None else self.answer.heartbeat_ms / 1000
        waited = 0.0
        while waited < every:
            step = min(self._settings.when_busy, every - waited)
            if await self._wait(self._requested, step):
                return
            waited += step
            if self._engine.in_flight > 0 or self._events.may_miss_broadcasts:
                return
