"""pgqueuer in `bench queue`: its `Queries` on asyncpg and uvloop, all in bulk, the fastest way that it documents.

enqueue: one `enqueue` with lists · fetch: `dequeue` with the whole batch as batch_size · finish: one `log_jobs` for the
batch. Its own worker adds tasks, heartbeats and buffers to these calls; leaving them out is in its favour. Schema and
durability are the defaults of its own installation (logged tables, finished jobs moved to its log table).

With lanes of the product (`pgqueuer_same_work`) its jobs are the executions that the product's planner created, and the
work of a job is the product's report. Both are in one transaction with the queue's own call; otherwise an execution
could be lost.
"""

import json
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import timedelta
from importlib import metadata
from typing import Any

import asyncpg
import uvloop
from pgqueuer.models import Job
from pgqueuer.queries import EntrypointExecutionParameter, Queries

from agent.bench.contest.copies import CLAIMS, PLAN, REPORT, Copies, accepted, claims_of
from agent.bench.contest.turns import Lane, Terms, run

STALE = timedelta(seconds=30)


class PgqueuerLane:
    """Jobs without any work."""

    def __init__(self, connection: asyncpg.Connection, number: int, terms: Terms) -> None:
        self._queries = Queries.from_asyncpg_connection(connection)
        self._batch = terms.batch
        self._entrypoint = f"lane_{number}"
        self._entrypoints = {self._entrypoint: EntrypointExecutionParameter(0)}
        self._payload = json.dumps(terms.payload).encode()
        self._worker = uuid.uuid4()
        self._jobs: list[Job] = []

    async def enqueue(self) -> None:
        await self._put([self._payload] * self._batch)

    async def fetch(self) -> None:
        while len(self._jobs) < self._batch:
            wanted = self._batch - len(self._jobs)
            self._jobs += await self._queries.dequeue(wanted, self._entrypoints, self._worker, None, STALE)

    async def finish(self) -> int:
        done, self._jobs = self._jobs, []
        await self._end(done)
        return len(done)

    async def _put(self, payloads: Sequence[bytes]) -> None:
        size = len(payloads)
        await self._queries.enqueue([self._entrypoint] * size, list(payloads), [0] * size)

    async def _end(self, jobs: Sequence[Job]) -> None:
        await self._queries.log_jobs([(job, "successful", None) for job in jobs])


class CopyingLane(PgqueuerLane):
    """Jobs that are executions of the product. `connection` has the agent's claims set."""

    def __init__(self, connection: asyncpg.Connection, number: int, terms: Terms) -> None:
        super().__init__(connection, number, terms)
        self._connection = connection
        self._copies = Copies(terms.lanes[number]["master"])

    async def enqueue(self) -> None:
        request = json.dumps(self._copies.event())
        async with self._connection.transaction():
            answer = json.loads(await self._connection.fetchval(PLAN.format("$1"), request))
            await self._put([json.dumps(execution).encode() for execution in answer["executions"]])

    async def finish(self) -> int:
        done, self._jobs = self._jobs, []
        executions: list[dict[str, Any]] = [json.loads(job.payload or b"") for job in done]
        request = json.dumps(self._copies.reports(executions))
        async with self._connection.transaction():
            answer = json.loads(await self._connection.fetchval(REPORT.format("$1"), request))
            await self._end(done)
        return accepted(answer)


class Pgqueuer:
    def __init__(self) -> None:
        self._connections: list[asyncpg.Connection] = []

    async def open(self, terms: Terms) -> list[Lane]:
        for number in range(terms.connections):
            connection = await asyncpg.connect(terms.dsn)
            self._connections.append(connection)
            if terms.lanes:
                await connection.fetchval(CLAIMS.format("$1"), claims_of(terms.lanes[number]))
        await Queries.from_asyncpg_connection(self._connections[0]).install()
        lane = CopyingLane if terms.lanes else PgqueuerLane
        return [lane(connection, number, terms) for number, connection in enumerate(self._connections)]

    def beside(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in ("pgqueuer", "asyncpg", "uvloop")}


if __name__ == "__main__":
    run(Pgqueuer(), uvloop.new_event_loop)
