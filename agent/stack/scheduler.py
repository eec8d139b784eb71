"""Runs the jobs of cron.job as pg_cron does on hosted: in UTC, and never the same job twice at a time.

It logs in as `postgres`, the owner of the jobs that migrations create. A job is SQL written by its owner: in a session
that began as a superuser's, it could become superuser again (`reset session authorization`).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from agent.stack.cron_expression import Schedule, ScheduleError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
LOOK_AGAIN_SECONDS: Final = 2.0
KEPT_RUNS: Final = 200
PRUNE_EVERY: Final = 50
PARTITIONS_SECONDS: Final = 3600.0
JOB_SECONDS: Final = 600.0
CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """An active row of cron.job."""

    job_id: int
    schedule: str
    command: str
    username: str


class Scheduler:
    """`start` and `close`. While the database is away, the scheduler waits; jobs that became due meanwhile run once."""

    def __init__(self, dsn: str) -> None:
        """`dsn` logs in as `postgres`, whose jobs run. No other job owner can log in here: jobs of other roles fail."""
        self._dsn = dsn
        self._main: asyncio.Task[None] | None = None
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._runs = 0

    def start(self) -> None:
        """Start to look for due jobs."""
        self._main = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop; a running job is aborted."""
        tasks = [*self._running.values()] + ([self._main] if self._main is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
        self._main = None

    async def _watch(self) -> None:
        while True:
            try:
                async with self._connected("scheduler") as connection:
                    await self._follow(connection)
            except (psycopg.OperationalError, OSError) as error:
                log.warning(
                    "scheduler_waits_for_database", extra={"reason": str(error).splitlines()[0] if str(error) else ""}
                )
            except psycopg.Error:
                log.exception("scheduler_failed")
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _follow(self, connection: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        partitions_at = loop.time()
        while True:
            if loop.time() >= partitions_at:
                await connection.execute("select realtime.maintain_partitions()")
                partitions_at = loop.time() + PARTITIONS_SECONDS
            cursor = await connection.execute(
                "select jobid, schedule, command, username from cron.job where active and database = %s",
                (connection.info.dbname,),
            )
            wanted = {Job(*row) for row in await cursor.fetchall()}
            for job in self._running.keys() - wanted:
                self._running.pop(job).cancel()
            for job in wanted - self._running.keys():
                self._running[job] = asyncio.create_task(self._repeat(job))
            await asyncio.sleep(LOOK_SECONDS)

    async def _repeat(self, job: Job) -> None:
        try:
            schedule = Schedule.parse(job.schedule)
        except ScheduleError as error:
            log.error("job_schedule_invalid", extra={"job": job.job_id, "reason": str(error)})
            return
        due = schedule.next_after(datetime.now(UTC))
        while True:
            await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
            started = datetime.now(UTC)
            try:
                await self._run(job, started)
            except (psycopg.Error, OSError) as error:
                # The database is away: this run is lost, as it is when pg_cron's server restarts.
                log.warning(
                    "job_not_recorded",
                    extra={"job": job.job_id, "reason": str(error).splitlines()[0] if str(error) else ""},
                )
            # Counted from the start of the last run: a job that takes longer than its interval runs again at once.
            due = schedule.next_after(started)

    async def _run(self, job: Job, started: datetime) -> None:
        async with self._connected(f"cron job {job.job_id}") as connection:
            pid = connection.info.backend_pid
            status, message = "succeeded", ""
            try:
                if job.username != connection.info.user:
                    raise psycopg.errors.InvalidAuthorizationSpecification(
                        f'role "{job.username}" is not permitted to log in'
                    )
                async with asyncio.timeout(JOB_SECONDS):
                    cursor = await connection.execute(job.command.encode())
                message = cursor.statusmessage or ""
            except TimeoutError:
                status, message = "failed", f"cancelled after {JOB_SECONDS:g} seconds"
            except psycopg.OperationalError:
                if connection.closed:
                    raise
                status, message = "failed", "operational error"
            except psycopg.Error as error:
                status, message = "failed", f"ERROR: {error.diag.message_primary or error}"
            if connection.info.transaction_status != TransactionStatus.IDLE:
                # uncommitted work of the job is not part of the record
                await connection.execute("rollback")
            await connection.execute("reset role")
            await connection.execute(
                "insert into cron.job_run_details"
                " (jobid, job_pid, database, username, command, status, return_message, start_time, end_time)"
                " values (%s, %s, current_database(), %s, %s, %s, %s, %s, clock_timestamp())",
                (job.job_id, pid, job.username, job.command, status, message, started),
            )
            self._runs += 1
            if self._runs % PRUNE_EVERY == 0:
                await connection.execute(
                    "delete from cron.job_run_details d where d.runid <= (select runid from cron.job_run_details"
                    " order by runid desc offset %s limit 1)",
                    (KEPT_RUNS,),
                )
        if status == "failed":
            log.warning("job_failed", extra={"job": job.job_id, "reason": message})

    @contextlib.asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[AsyncConnection]:
        """A connection that is closed at the end. psycopg's own context leaves it open if it is cancelled there."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await AsyncConnection.connect(self._dsn, autocommit=True, application_name=name)
        except TimeoutError as error:
            raise psycopg.OperationalError(f"no connection within {CONNECT_SECONDS:g} s") from error
        try:
            yield connection
        finally:
            await connection.close()
