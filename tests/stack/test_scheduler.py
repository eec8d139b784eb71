"""Cron schedules and the scheduler that runs cron.job."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from agent.stack.cron_expression import Schedule, ScheduleError
from agent.stack.database import Database
from agent.stack.scheduler import Scheduler


@pytest.mark.parametrize(
    ("text", "after", "due"),
    [
        ("* * * * *", "2026-11-22T10:00:30", "2026-11-22T10:01:00"),
        ("*/5 * * * *", "2026-11-22T10:55:00", "2026-11-22T11:00:00"),
        ("30 4 * * *", "2026-11-22T10:00:00", "2026-11-23T04:30:00"),
        ("0 0 1 jan *", "2026-11-22T10:00:00", "2027-01-01T00:00:00"),
        ("0 12 * * mon-fri", "2026-11-21T13:00:00", "2026-11-23T12:00:00"),
        ("0 12 13 * 5", "2026-11-01T00:00:00", "2026-11-06T12:00:00"),
        ("0 0 $ * *", "2028-02-02T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 29 2 *", "2026-11-22T00:00:00", "2028-02-29T00:00:00"),
        ("15,45 8-9 * * 7", "2026-11-22T08:15:00", "2026-11-22T08:45:00"),
        ("@daily", "2026-11-22T10:00:00", "2026-11-23T00:00:00"),
        ("7 seconds", "2026-11-22T10:00:00", "2026-11-22T10:00:07"),
        ("1 Second", "2026-11-22T10:00:00", "2026-11-22T10:00:01"),
    ],
)
def test_the_next_time_is_that_of_pg_cron(text: str, after: str, due: str) -> None:
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert Schedule.parse(text).next_after(moment) == datetime.fromisoformat(due).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "* * * *", "60 * * * *", "0 seconds", "60 seconds", "*/0 * * * *", "x * * * *", "5-1 * * * *"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        Schedule.parse(text)


def test_a_schedule_is_due_exactly_when_all_its_fields_fit() -> None:
    chance = random.Random(7)
    for _ in range(200):
        minute, hour = chance.randrange(60), chance.randrange(24)
        schedule = Schedule.parse(f"{minute} {hour} * * *")
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=chance.randrange(500_000))
        due = schedule.next_after(moment)
        assert (due.minute, due.hour) == (minute, hour)
        assert timedelta(0) < due - moment <= timedelta(days=1)


async def _wait(database: Database, query: str, seconds: float = 20) -> object:
    async with asyncio.timeout(seconds):
        async with await database.connect_async() as connection:
            while True:
                row = await (await connection.execute(query.encode())).fetchone()
                if row is not None and row[0]:
                    return row[0]
                await asyncio.sleep(0.05)


async def test_jobs_run_as_their_user_and_are_recorded(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create table public.probe_ran (who text, at timestamptz default clock_timestamp())")
        connection.execute(
            "select cron.schedule('good', '1 second', 'insert into public.probe_ran values (current_user)')"
        )
        connection.execute("select cron.schedule('bad', '1 second', 'select 1 / 0')")
        connection.execute("select cron.schedule('other', '* * * * *', 'select 1')")
    scheduler = Scheduler(database.dsn_of("postgres"))
    scheduler.start()
    try:
        await _wait(database, "select count(*) >= 2 from public.probe_ran")
        await _wait(
            database,
            "select count(*) > 0 from cron.job_run_details d join cron.job using (jobid) where jobname = 'bad'",
        )
        with database.connect("postgres") as connection:
            assert connection.execute("select distinct who from public.probe_ran").fetchall() == [("postgres",)]
            rows = connection.execute(
                "select distinct jobname, status, return_message, d.username from cron.job_run_details d"
                " join cron.job using (jobid) where jobname in ('good', 'bad') order by 1"
            ).fetchall()
            assert rows == [
                ("bad", "failed", "ERROR: division by zero", "postgres"),
                ("good", "succeeded", "INSERT 0 1", "postgres"),
            ]
            connection.execute("select cron.unschedule('good')")
    finally:
        await scheduler.close()


async def test_a_job_cannot_become_more_than_its_user(database: Database) -> None:
    names = "('climb', 'command', 'left open', 'of another')"
    jobs = {
        "climb": "reset session authorization; reset role;"
        " insert into public.probe_ran select usename, usesuper from pg_user where usename = session_user",
        "command": "copy public.probe_ran (who) from program 'id'",
        "left open": "set role anon; begin",
    }
    with database.connect("postgres") as connection:
        connection.execute("create table public.probe_ran (who text, super boolean)")
        for name, command in jobs.items():
            connection.execute("select cron.schedule(%s, '1 second', %s)", (name, command))
    with database.connect() as connection:
        connection.execute(
            "select cron.schedule('of another', '1 second', $$insert into public.probe_ran values ('x', true)$$)"
        )
    scheduler = Scheduler(database.dsn_of("postgres"))
    scheduler.start()
    try:
        await _wait(database, "select count(*) > 0 from public.probe_ran")
        await _wait(
            database,
            f"select count(distinct jobid) = 4 from cron.job_run_details d join cron.job using (jobid) where jobname"
            f" in {names}",
        )
        with database.connect() as connection:
            assert connection.execute("select distinct who, super from public.probe_ran").fetchall() == [
                ("postgres", False)
            ]
            rows = connection.execute(
                "select distinct jobname, status, d.username from cron.job_run_details d join cron.job using (jobid)"
                f" where jobname in {names} order by 1".encode()
            ).fetchall()
        assert rows == [
            ("climb", "succeeded", "postgres"),
            ("command", "failed", "postgres"),
            ("left open", "succeeded", "postgres"),
            ("of another", "failed", "supabase_admin"),
        ]
    finally:
        await scheduler.close()


async def test_a_job_never_overlaps_itself(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create table public.probe_span (started timestamptz, ended timestamptz)")
        connection.execute(
            "select cron.schedule('slow', '1 second',"
            " 'with s as (select clock_timestamp() t, pg_sleep(1.5))"
            " insert into public.probe_span select t, clock_timestamp() from s')"
        )
    scheduler = Scheduler(database.dsn_of("postgres"))
    scheduler.start()
    try:
        await _wait(database, "select count(*) >= 3 from public.probe_span")
    finally:
        await scheduler.close()
    with database.connect() as connection:
        overlaps = connection.execute(
            "select count(*) from public.probe_span a join public.probe_span b on a.ctid <> b.ctid"
            " and tstzrange(a.started, a.ended) && tstzrange(b.started, b.ended)"
        ).fetchone()
    assert overlaps == (0,)


async def test_a_scheduler_closes_whatever_its_jobs_do_at_that_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With jobs running all the time: asyncio.wait_for lost a cancellation at the moment when a connection was made."""
    monkeypatch.setattr(Schedule, "next_after", lambda self, moment: moment)
    with database.connect("postgres") as connection:
        connection.execute("select cron.schedule('short', '1 second', 'select 1')")
        connection.execute("select cron.schedule('bad', '1 second', 'select 1 / 0')")
    recorded = "select coalesce(max(runid), 0) > {} from cron.job_run_details"
    runs = 0
    for _ in range(10):
        scheduler = Scheduler(database.dsn_of("postgres"))
        scheduler.start()
        await _wait(database, recorded.format(runs))
        async with asyncio.timeout(20):
            await scheduler.close()
        with database.connect() as connection:
            row = connection.execute("select coalesce(max(runid), 0) from cron.job_run_details").fetchone()
        assert row is not None
        runs = row[0]


async def test_jobs_go_on_after_a_database_restart(database: Database) -> None:
    with database.connect("postgres") as connection:
        connection.execute("create table public.probe_ran (n integer)")
        connection.execute("select cron.schedule('good', '1 second', 'insert into public.probe_ran values (1)')")
    scheduler = Scheduler(database.dsn_of("postgres"))
    scheduler.start()
    try:
        await _wait(database, "select count(*) > 0 from public.probe_ran")
        await asyncio.to_thread(database.server.restart)
        with database.connect() as connection:
            connection.execute("delete from public.probe_ran")
        await _wait(database, "select count(*) > 0 from public.probe_ran")
    finally:
        await scheduler.close()
