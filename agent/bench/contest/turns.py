"""The part that all contenders of `bench queue` share, in their own processes.

Standard library only, because it also runs in the peers' environment, where nothing of this project is installed.

Standard input provides `Terms` as a line of JSON, then one line per turn: the number of steps. Standard output answers
with lines of JSON: first {"versions": …}, then {"seconds", "jobs", "stages_ms": {"enqueue": […], "fetch": […],
"finish": […]}} per turn.

A step of one connection: enqueue a batch of jobs, fetch (claim) it, finish it. All connections run at the same time,
each on its own queue, as each agent works its own accounts.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

STAGES = ("enqueue", "fetch", "finish")


@dataclass(frozen=True)
class Terms:
    """The same for every contender, except `dsn` and `lanes` (what a contender must know about each connection)."""

    dsn: str
    connections: int
    batch: int
    #: the payload of a job: an execution as agents read it
    payload: dict[str, Any]
    lanes: list[dict[str, Any]]


class Lane(Protocol):
    """One connection with its own queue. Batches have `Terms.batch` jobs."""

    async def enqueue(self) -> None: ...
    async def fetch(self) -> None:
        """Claim exactly one batch."""
        ...

    async def finish(self) -> int:
        """Finish the fetched jobs; returns their number."""
        ...


class Contender(Protocol):
    """A queue under test. `open` connects, and creates its own schema if it has one."""

    async def open(self, terms: Terms) -> list[Lane]: ...
    def beside(self) -> AbstractAsyncContextManager[None]:
        """Runs next to the lanes, only during a turn; starting and ending it is not measured."""
        ...

    async def close(self) -> None: ...
    def versions(self) -> dict[str, str]: ...


def run(contender: Contender, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run turns until standard input is closed."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_serve(contender))


async def _serve(contender: Contender) -> None:
    terms = Terms(**json.loads(await _line()))
    try:
        lanes = await contender.open(terms)
        _say({"versions": contender.versions()})
        while line := await _line():
            async with contender.beside():
                result = await _turn(lanes, int(line))
            _say(result)
    finally:
        await contender.close()


async def _turn(lanes: list[Lane], steps: int) -> dict[str, object]:
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    start = time.perf_counter()
    jobs = await asyncio.gather(*(_steps(lane, steps, stages) for lane in lanes))
    return {"seconds": time.perf_counter() - start, "jobs": sum(jobs), "stages_ms": stages}


async def _steps(lane: Lane, steps: int, stages: dict[str, list[float]]) -> int:
    jobs = 0

    async def finish() -> None:
        nonlocal jobs
        jobs += await lane.finish()

    calls: dict[str, Callable[[], Awaitable[None]]] = {"enqueue": lane.enqueue, "fetch": lane.fetch, "finish": finish}
    for _ in range(steps):
        for stage, call in calls.items():
            start = time.perf_counter()
            await call()
            stages[stage].append((time.perf_counter() - start) * 1000)
    return jobs


async def _line() -> str:
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
