"""procrastinate in `bench queue`: its `JobManager` on a psycopg pool and uvloop.

enqueue: one `batch_defer_jobs_async` for the batch, the bulk call that it documents · fetch and finish: `fetch_job` and
`finish_job` for each job, for it offers no bulk form of them. Its own worker adds tasks, heartbeats and listening to these very
calls; leaving it out is in its favour. Schema and settings are the defaults (finished jobs stay in their table).
"""

import logging
from importlib import metadata

import uvloop
from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from agent.bench.contest.turns import Lane, Terms, run


class ProcrastinateLane:
    def __init__(self, manager: JobManager, worker: int, number: int, terms: Terms) -> None:
        self._manager = manager
        self._worker = worker
        self._batch = terms.batch
        self._queue = f"lane_{number}"
        self._job = Job(queue=self._queue, task_name="place", lock=None, queueing_lock=None, task_kwargs=terms.payload)
        self._jobs: list[Job] = []

    async def enqueue(self) -> None:
        await self._manager.batch_defer_jobs_async([self._job] * self._batch)

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
            lanes.append(ProcrastinateLane(app.job_manager, worker, number, terms))
        return lanes

    async def close(self) -> None:
        for app in self._apps:
            await app.close_async()

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in ("procrastinate", "psycopg", "uvloop")}


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it would like to be told where its App is imported from
    run(Procrastinate(), uvloop.new_event_loop)
