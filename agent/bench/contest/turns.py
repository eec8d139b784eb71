"""What every contender of `bench queue` does alike, in a process of its own: standard library only, for it also runs in the
environment of the peers, where nothing of this project is installed.

Standard input gives a `Terms` as a line of JSON, then one line for each turn: how many steps. Standard output answers with lines
of JSON: first {"versions": …}, then {"seconds", "jobs", "stages_ms": {"enqueue": […], "fetch": […], "finish": […]}} a turn.

A step of one connection: enqueue a batch of jobs, fetch (claim) it, finish it. All connections step at the same time, each on a
queue of its own, as each agent works on accounts of its own.
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
    """The same for everybody, but for `dsn` and `lanes` (what a contender needs to know of each connection)."""

    dsn: str
    connections: int
    batch: int
    #: what a job carries: an execution as agents read it
    payload: dict[str, Any]
    lanes: list[dict[str, Any]]


class Lane(Protocol):
    """One connection with a queue of its own. Batches are of `Terms.batch` jobs."""

    async def enqueue(self) -> None: ...
    async def fetch(self) -> None:
        """Claim exactly one batch."""
        ...

    async def finish(self) -> int:
        """Finish what was fetched; how many jobs that were."""
        ...


class Contender(Protocol):
    """A queue under test. `open` connects and makes its own schema where it has one."""

    async def open(self, terms: Terms) -> list[Lane]: ...
    def beside(self) -> AbstractAsyncContextManager[None]:
        """What runs beside the lanes during a turn, and only then; to begin and to end it is not measured."""
        ...

    async def close(self) -> None: ...
    def versions(self) -> dict[str, str]: ...


def run(contender: Contender, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Serve turns until standard input ends."""
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

    deeds: dict[str, Callable[[], Awaitable[None]]] = {"enqueue": lane.enqueue, "fetch": lane.fetch, "finish": finish}
    for _ in range(steps):
        for stage, deed in deeds.items():
            start = time.perf_counter()
            await deed()
            stages[stage].append((time.perf_counter() - start) * 1000)
    return jobs


async def _line() -> str:
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
