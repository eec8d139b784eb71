"""The journal: what is on the disk before an order is sent, and the consequences of a lost or damaged file."""

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import ACCOUNT, execution, position

from agent.journal import refused
from agent.journal import writer as journal_writer
from agent.journal.file import boot_mark, same_boot
from agent.journal.journal import Journal, JournalBusy, JournalError
from agent.journal.rows import EVENT, REPORT
from agent.model import Event, Report, Ticket


def report_of(number: int, outcome: str = "completed") -> Report:
    return Report(
        account_id=ACCOUNT, session=1, seq=number, execution_id=execution(number).id, attempt=1,
        outcome=outcome, filled_lots=Decimal("0.50"), positions=(position(f"T{number}"),),  # type: ignore[arg-type]
    )  # fmt: skip


def event_of(session: int, seq: int) -> Event:
    return Event(
        account_id=ACCOUNT,
        session=session,
        seq=seq,
        type="opened",
        position=position(str(seq)),
        detected_at=datetime.now(UTC),
    )


async def test_an_execution_is_known_after_it_was_begun_and_keeps_every_digit(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    told = execution(1, lots=Decimal("0.10"), sl=Decimal("1.09500"))
    assert await journal.begin(told) is None
    again = await journal.begin(told)
    assert again is not None
    assert (again.execution, again.state, again.report) == (told, "begun", None)
    assert str(again.execution.sl) == "1.09500"
    assert await journal.begin(replace(told, attempt=2)) is None
    await journal.close()


async def test_what_is_begun_and_not_answered_is_unresolved_after_a_restart(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    identity = journal.identity
    for number in (1, 2, 3):
        await journal.begin(execution(number))
    journal.answered(execution(3), report_of(3))
    await journal.remember_session(ACCOUNT, 7, datetime.now(UTC))
    await journal.close()

    journal = await Journal.open(tmp_path / "journal.sqlite")
    assert journal.identity == identity
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1, 2]
    assert await journal.undelivered_reports() == [report_of(3)]
    assert journal.knows_session(ACCOUNT, 7)
    assert not journal.knows_session(ACCOUNT, 8)
    journal.reported([report_of(3)])
    assert await journal.undelivered_reports() == []
    assert [entry.report for entry in await journal.step(ACCOUNT, "3")] == [report_of(3)]
    await journal.close()


async def test_a_row_survives_a_kill_at_the_instruction_after_begin(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    code = (
        "import asyncio, sys, pathlib\n"
        "from agent.journal.journal import Journal\n"
        "from engine_harness import execution\n"
        "async def main():\n"
        "    journal = await Journal.open(pathlib.Path(sys.argv[1]))\n"
        "    await asyncio.gather(*(journal.begin(execution(n)) for n in range(1, 51)))\n"
        "    print('begun', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert await child.stdout.readline() == b"begun\n"
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    journal = await Journal.open(path)
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == list(range(1, 51))
    await journal.close()


async def test_a_deleted_journal_is_a_fresh_identity_that_knows_no_session(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = await Journal.open(path)
    await journal.remember_session(ACCOUNT, 1, datetime.now(UTC))
    first = journal.identity
    await journal.close()
    for part in tmp_path.iterdir():
        part.unlink()
    journal = await Journal.open(path)
    assert journal.identity != first
    assert not journal.knows_session(ACCOUNT, 1)
    await journal.close()


@pytest.mark.parametrize("damage", ["garbage", "middle", "other_layout", "no_identity"])
async def test_a_damaged_journal_is_set_aside_and_logged(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = await Journal.open(path)
    for number in range(1, 200):
        journal.answered(execution(number), report_of(number))
    await journal.close()
    match damage:
        case "garbage":
            path.write_bytes(b"this is not a database" * 100)
        case "middle":
            whole = bytearray(path.read_bytes())
            for page in range(4096 * 2, len(whole) - 4096, 4096):
                whole[page : page + 400] = b"\xff" * 400
            path.write_bytes(bytes(whole))
        case _:
            with sqlite3.connect(path) as connection:
                connection.execute("pragma user_version = 99" if damage == "other_layout" else "delete from meta")
            connection.close()
    journal = await Journal.open(path)
    assert await journal.undelivered_reports() == []
    await journal.close()
    assert "journal_damaged" in caplog.text
    assert list(tmp_path.glob("journal.sqlite.damaged-*"))


@pytest.mark.parametrize("clean", [True, False])
async def test_after_a_power_cut_the_journal_does_not_vouch_for_its_sessions(
    clean: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = await Journal.open(path)
    await journal.remember_session(ACCOUNT, 1, datetime.now(UTC))
    await journal.begin(execution(1))
    await journal.flush()
    if clean:
        await journal.close()
    else:
        # as after a power cut: the files as they are, without a clean close
        for part in list(tmp_path.iterdir()):
            shutil.copy(part, part.with_name(part.name.replace("journal", "after")))
        await journal.close()
        path = tmp_path / "after.sqlite"
    monkeypatch.setattr("agent.journal.file.boot_mark", lambda: "another boot")
    journal = await Journal.open(path)
    assert journal.knows_session(ACCOUNT, 1) is clean
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1]
    await journal.close()


def test_boots_differ_by_their_id_or_by_their_moment() -> None:
    assert same_boot("a", "a")
    assert not same_boot("a", "b")
    assert not same_boot(None, None)
    assert same_boot("at 1000", "at 1001")
    assert not same_boot("at 1000", "at 1100")
    assert boot_mark() == boot_mark()


async def test_a_second_agent_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    with pytest.raises(JournalBusy, match="another agent"):
        await Journal.open(tmp_path / "journal.sqlite")
    await journal.close()


async def test_a_journal_that_cannot_be_created_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file"):
        await Journal.open(tmp_path / "file" / "journal.sqlite")


async def test_a_failing_write_fails_alone_and_makes_the_journal_unhealthy(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("insert into nowhere values (1)")

    bad = asyncio.ensure_future(journal._writer.execute(fail))
    good = asyncio.ensure_future(journal.begin(execution(1)))
    with pytest.raises(JournalError):
        await bad
    assert await good is None
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1]
    await journal.close()


async def test_a_row_is_written_on_the_spot_while_the_thread_is_idle(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    await journal.flush()
    begun = journal.begin(execution(1))
    with pytest.raises(StopIteration) as done:
        begun.send(None)
    assert done.value.value is None
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1]
    await journal.close()


async def test_a_row_waits_for_what_was_enqueued_before_it(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    go_on = threading.Event()
    journal._writer.enqueue(lambda _: go_on.wait(20))
    journal.answered(execution(1), report_of(1))
    begun = asyncio.ensure_future(journal.begin(execution(1)))
    await asyncio.sleep(0)
    assert not begun.done()
    go_on.set()
    known = await begun
    assert known is not None
    assert known.report == report_of(1)
    await journal.close()


async def test_a_row_that_cannot_be_written_on_the_spot_is_an_error(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    await journal.flush()
    with pytest.raises(JournalError, match="nowhere"):
        await journal._writer.execute_now(lambda connection: connection.execute("insert into nowhere values (1)"))
    broken = journal.healthy
    assert await journal.begin(execution(1)) is None
    assert (broken, journal.healthy) == (False, True)
    await journal.close()


async def test_the_thread_checkpoints_the_write_ahead_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_writer, "CHECKPOINT_AFTER", 10)
    journal = await Journal.open(tmp_path / "journal.sqlite")
    for number in range(1, 201):
        await journal.begin(execution(number))
        journal.answered(execution(number), report_of(number))
    await journal.flush()
    log, file = (tmp_path / f"journal.sqlite{suffix}" for suffix in ("-wal", ""))
    assert log.stat().st_size < file.stat().st_size
    await journal.close()


async def test_a_disk_that_does_not_answer_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    monkeypatch.setattr(journal_writer, "ANSWER_TIMEOUT", 0.05)
    stuck = threading.Event()
    slow = asyncio.ensure_future(journal._writer.execute(lambda _: stuck.wait(20)))
    await asyncio.sleep(0)  # it is enqueued
    with pytest.raises(JournalError, match="did not answer"):
        await journal.begin(execution(1))
    stuck.set()
    with suppress(JournalError):
        await slow
    monkeypatch.undo()
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1]
    await journal.close()


async def test_events_of_older_sessions_are_kept_until_they_are_delivered(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    journal.put_events([event_of(1, 1), event_of(1, 2), event_of(2, 1)])
    assert [each.seq for each in await journal.undelivered_events(ACCOUNT, 2)] == [1, 2]
    journal.drop_events([(ACCOUNT, 1, 1)])
    assert [each.seq for each in await journal.undelivered_events(ACCOUNT, 2)] == [2]
    await journal.close()


async def test_what_was_last_seen_survives_a_restart(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    assert journal.last_seen(ACCOUNT) is None
    moment = datetime.now(UTC)
    journal.saw(ACCOUNT, moment, [Ticket("1"), Ticket("2")])
    await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    seen = journal.last_seen(ACCOUNT)
    assert seen is not None
    assert seen.at == moment
    assert sorted(seen.tickets) == ["1", "2"]
    await journal.close()


async def test_pruning_forgets_what_is_finished_and_old_and_nothing_else(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    for number in (1, 2):
        await journal.begin(execution(number))
    journal.answered(execution(1), report_of(1))
    journal.reported([report_of(1)])
    await journal.remember_session(ACCOUNT, 1, datetime.now(UTC))
    await journal.remember_session(ACCOUNT, 2, datetime.now(UTC))
    old = (datetime.now(UTC) - timedelta(days=8)).isoformat(timespec="microseconds")

    def age(connection: sqlite3.Connection) -> None:
        connection.execute("update executions set begun_at = ?", (old,))
        connection.execute("update sessions set opened_at = ?", (old,))

    await journal._writer.execute(age)
    await journal.prune()
    assert await journal.step(ACCOUNT, "1") == []
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [2]
    assert not journal.knows_session(ACCOUNT, 1)
    assert journal.knows_session(ACCOUNT, 2)
    await journal.close()


async def test_what_the_database_refused_is_kept_the_newest_rows_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused, "ROWS_MAX", 3)
    journal = await Journal.open(tmp_path / "journal.sqlite")
    for number in range(1, 5):
        journal.keep_refused(event_of(1, number), f"22P05: {number}")
    journal.keep_refused(report_of(7), "TC001: lots")
    await journal.close()
    file = sqlite3.connect(tmp_path / "journal.sqlite")
    rows = file.execute("select account_id, kind, reason, body from refused order by rowid").fetchall()
    file.close()
    assert [row[:3] for row in rows] == [
        (ACCOUNT, "event", "22P05: 3"), (ACCOUNT, "event", "22P05: 4"), (ACCOUNT, "report", "TC001: lots"),
    ]  # fmt: skip
    assert EVENT.validate_json(rows[1][3]).seq == 4
    assert REPORT.validate_json(rows[2][3]) == report_of(7)
