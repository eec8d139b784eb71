"""pgqueuer in `bench queue`: its `Queries` on asyncpg and uvloop, everything in bulk, which is the fastest that it documents.

enqueue: one `enqueue` with lists · fetch: `dequeue` with the whole batch as batch_size · finish: one `log_jobs` for the batch.
Its own worker adds tasks, heartbeats and buffers to these very calls; leaving it out is in its favour. Schema and durability are
the defaults of its own installation (logged tables, finished jobs moved to its log table).
"""

import json
import uuid
from datetime import timedelta
from importlib import metadata

import asyncpg
import uvloop
from pgqueuer.models import Job
from pgqueuer.queries import EntrypointExecutionParameter, Queries

from agent.bench.contest.turns import Lane, Terms, run

STALE = timedelta(seconds=30)


class PgqueuerLane:
    def __init__(self, connection: asyncpg.Connection, number: int, terms: Terms) -> None:
        self._queries = Queries.from_asyncpg_connection(connection)
        self._batch = terms.batch
        self._entrypoint = f"lane_{number}"
        self._entrypoints = {self._entrypoint: EntrypointExecutionParameter(0)}
        self._payload = json.dumps(terms.payload).encode()
        self._worker = uuid.uuid4()
        self._jobs: list[Job] = []

    async def enqueue(self) -> None:
        size = self._batch
        await self._queries.enqueue([self._entrypoint] * size, [self._payload] * size, [0] * size)

    async def fetch(self) -> None:
        while len(self._jobs) < self._batch:
            wanted = self._batch - len(self._jobs)
            self._jobs += await self._queries.dequeue(wanted, self._entrypoints, self._worker, None, STALE)

    async def finish(self) -> int:
        done, self._jobs = self._jobs, []
        await self._queries.log_jobs([(job, "successful", None) for job in done])
        return len(done)


class Pgqueuer:
    def __init__(self) -> None:
        self._connections: list[asyncpg.Connection] = []

    async def open(self, terms: Terms) -> list[Lane]:
        for _ in range(terms.connections):
            self._connections.append(await asyncpg.connect(terms.dsn))
        await Queries.from_asyncpg_connection(self._connections[0]).install()
        return [PgqueuerLane(connection, number, terms) for number, connection in enumerate(self._connections)]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in ("pgqueuer", "asyncpg", "uvloop")}


if __name__ == "__main__":
    run(Pgqueuer(), uvloop.new_event_loop)
