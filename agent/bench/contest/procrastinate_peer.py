"""procrastinate in `bench queue`: its `JobManager` on a psycopg pool and uvloop.

enqueue: one `batch_defer_jobs_async` for the batch, the bulk call that it documents · fetch and finish: `fetch_job` and
`finish_job` for each job, because it has no bulk form of them. Its own worker adds tasks, heartbeats and listening to
these calls; leaving them out is in its favour. Schema and settings are the defaults (finished jobs stay in their
table).

With lanes of the product (`procrastinate_same_work`) its jobs are the executions that the product's planner created,
and the work of a job is the product's report. A whole batch is reported in one call, in its favour: its worker would
report one by one.
"""

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib import metadata
from typing import Any

import uvloop
from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from agent.bench.contest.copies import CLAIMS, PLAN, REPORT, Copies, accepted, claims_of
from agent.bench.contest.turns import Lane, Terms, run


class ProcrastinateLane:
    """Jobs without any work."""

    def __init__(self, manager: JobManager, worker: int, number: int, terms: Terms) -> None:
        self._manager = manager
        self._worker = worker
        self._batch = terms.batch
        self._queue = f"lane_{number}"
        self._payload = terms.payload
        self._jobs: list[Job] = []

    async def enqueue(self) -> None:
        await self._manager.batch_defer_jobs_async([self._job(self._payload)] * self._batch)

    async def fetch(self) -> None:
        while len(self._jobs) < self._batch:
            job = await self._manager.fetch_job([self._queue], self._worker)
            if job is not None:
                self._jobs.append(job)

    async def finish(self) -> int:
        done, self._jobs = self._jobs, []
        for job in done:
            await self._manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
        return len(done)

    def _job(self, payload: dict[str, Any]) -> Job:
        return Job(queue=self._queue, task_name="place", lock=None, queueing_lock=None, task_kwargs=payload)


class CopyingLane(ProcrastinateLane):
    """Jobs that are executions of the product; the connection of `manager` has the agent's claims set."""

    def __init__(self, manager: JobManager, worker: int, number: int, terms: Terms) -> None:
        super().__init__(manager, worker, number, terms)
        self._copies = Copies(terms.lanes[number]["master"])

    async def enqueue(self) -> None:
        answer = await self._call(PLAN, self._copies.event())
        await self._manager.batch_defer_jobs_async([self._job(execution) for execution in answer["executions"]])

    async def finish(self) -> int:
        answer = await self._call(REPORT, self._copies.reports([job.task_kwargs for job in self._jobs]))
        await super().finish()
        return accepted(answer)

    async def _call(self, statement: str, request: dict[str, Any]) -> dict[str, Any]:
        row = await self._manager.connector.execute_query_one_async(statement.format("%(request)s"), request=request)
        answer: dict[str, Any] = row["answer"]
        return answer


class Procrastinate:
    def __init__(self) -> None:
        self._apps: list[App] = []

    async def open(self, terms: Terms) -> list[Lane]:
        lanes: list[Lane] = []
        for number in range(terms.connections):
            app = App(connector=PsycopgConnector(conninfo=terms.dsn, min_size=1, max_size=1))
            await app.open_async()
            self._apps.append(app)
            if number == 0:
                await app.schema_manager.apply_schema_async()
            worker = await app.job_manager.register_worker()
            if terms.lanes:
                claims = claims_of(terms.lanes[number])
                await app.connector.execute_query_one_async(CLAIMS.format("%(claims)s"), claims=claims)
            lane = CopyingLane if terms.lanes else ProcrastinateLane
            lanes.append(lane(app.job_manager, worker, number, terms))
        return lanes

    def beside(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def close(self) -> None:
        for app in self._apps:
            await app.close_async()

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in ("procrastinate", "psycopg", "uvloop")}


if __name__ == "__main__":
    # hides a warning about the module that its App was imported from
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    run(Procrastinate(), uvloop.new_event_loop)
