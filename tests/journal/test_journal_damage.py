"""Damage to the journal: what cannot be read is set aside and counts as unknown; the agent starts, and nothing is sent
twice."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import ACCOUNT, execution, position

from agent.journal.journal import Journal
from agent.model import Event, Report

OTHER = 2
#: contents that replace the body of row 1
BODIES: dict[str, object] = {
    "half": '{"id": 1, "attempt"',
    "empty": "",
    "null": "null",
    "list": "[]",
    "no_fields": "{}",
    "one_field": '{"id": 1}',
    "number": 7,
    "no_text": b"\xff\xfe",
    "deep": "[" * 5_000,
}


def report_of(number: int) -> Report:
    return Report(
        account_id=ACCOUNT, session=1, seq=number, execution_id=execution(number).id, attempt=1,
        outcome="completed", filled_lots=Decimal("0.50"), positions=(position(f"T{number}"),),
    )  # fmt: skip


def event_of(seq: int) -> Event:
    return Event(
        account_id=ACCOUNT,
        session=1,
        seq=seq,
        type="opened",
        position=position(str(seq)),
        detected_at=datetime.now(UTC),
    )


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A closed journal: a session, two attempts that were begun, two outcomes and two events to be reported."""
    path = tmp_path / "journal.sqlite3"
    journal = await Journal.open(path)
    await journal.remember_session(ACCOUNT, 1, datetime.now(UTC) - timedelta(hours=1))
    for number in (1, 2, 3, 4):
        await journal.begin(execution(number))
    for number in (3, 4):
        journal.answered(execution(number), report_of(number))
    journal.put_events([event_of(1), event_of(2)])
    journal.saw(ACCOUNT, datetime.now(UTC), [])
    await journal.close()
    return path


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def set_aside(path: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("select source, content from damaged order by at").fetchall()
    connection.close()
    return rows


@pytest.mark.parametrize("body", BODIES)
async def test_an_order_that_cannot_be_read_is_set_aside_and_counts_as_unknown(
    body: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(path, "update executions set body = ? where execution_id = 1", BODIES[body])
    journal = await Journal.open(path)
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [OTHER]
    assert not journal.knows_session(ACCOUNT, 1), "executions queued before are looked up"
    assert await journal.undelivered_reports() == [report_of(3), report_of(4)]
    await journal.close()
    [(source, content)] = set_aside(path)
    assert (source, json.loads(content)[0]) == ("executions", 1)
    assert "journal_rows_damaged" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "update executions set body = (select body from executions where execution_id = 2) where execution_id = 1",
        "update executions set body = json_remove(body, '$.send_before') where execution_id = 1",
        "update executions set body = json_set(body, '$.lots', 'many') where execution_id = 1",
        "update executions set body = json_set(body, '$.action', 'explode') where execution_id = 1",
        "update executions set account_id = 'another' where execution_id = 1",
        "update executions set step_id = 'another' where execution_id = 1",
        "update executions set begun_at = 'yesterday' where execution_id = 1",
    ],
)
async def test_an_order_that_contradicts_itself_is_damage(damage: str, path: Path) -> None:
    change(path, damage)
    journal = await Journal.open(path)
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [OTHER]
    assert not journal.knows_session(ACCOUNT, 1)
    await journal.close()
    assert len(set_aside(path)) == 1


@pytest.mark.parametrize("report", BODIES)
async def test_an_outcome_that_cannot_be_read_is_looked_up(report: str, path: Path) -> None:
    change(path, "update executions set report = ? where execution_id = 3", BODIES[report])
    journal = await Journal.open(path)
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1, 2, 3]
    assert await journal.undelivered_reports() == [report_of(4)]
    assert not journal.knows_session(ACCOUNT, 1)
    known = await journal.begin(execution(3))
    assert known is not None
    assert known.report is None
    await journal.close()
    assert [source for source, _ in set_aside(path)] == ["reports"]


@pytest.mark.parametrize("body", BODIES)
async def test_an_event_that_cannot_be_read_holds_up_no_other(body: str, path: Path) -> None:
    change(path, "update events set body = ? where seq = 1", BODIES[body])
    journal = await Journal.open(path)
    assert [each.seq for each in await journal.undelivered_events(ACCOUNT, 2)] == [2]
    assert journal.knows_session(ACCOUNT, 1), "it says nothing about orders"
    await journal.close()
    assert [source for source, _ in set_aside(path)] == ["events"]


@pytest.mark.parametrize(
    "damage",
    [
        "update sessions set vouches_from = 'soon' where session = 1",
        "update sessions set vouches_from = x'ff' where session = 1",
        "update sessions set vouches_from = '2026-11-22T12:00:00' where session = 1",
        "update sessions set session = 'first' where session = 1",
        "update sessions set account_id = cast(x'ff' as text) where session = 1",
    ],
)
async def test_a_session_that_cannot_be_read_is_not_known(damage: str, path: Path) -> None:
    change(path, damage)
    journal = await Journal.open(path)
    assert not journal.knows_session(ACCOUNT, 1)
    assert journal.vouches_from(ACCOUNT) is None
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1, 2]
    await journal.close()
    journal = await Journal.open(path)
    await journal.close()
    assert len(set_aside(path)) == 1, "it is not found again"


@pytest.mark.parametrize("column", ["seen_at", "tickets", "account_id"])
async def test_an_unreadable_last_read_counts_as_missing(column: str, path: Path) -> None:
    change(path, f"update accounts set {column} = cast(x'ff' as text) where account_id = ?", ACCOUNT)
    journal = await Journal.open(path)
    assert journal.last_seen(ACCOUNT) is None
    assert journal.knows_session(ACCOUNT, 1)
    await journal.close()


async def test_a_reported_order_that_cannot_be_read_any_more_is_not_sent_again(path: Path) -> None:
    change(path, "update executions set state = 'reported', report = '{' where execution_id = 3")
    change(path, "update executions set state = 'reported', body = '{' where execution_id = 4")
    journal = await Journal.open(path)
    assert [attempt.report for attempt in await journal.step(ACCOUNT, "3")] == [None]
    for number in (3, 4):
        offered = execution(number)
        known = await journal.begin(offered)
        assert known is not None, "it may have been sent"
        assert (known.state, known.report, known.execution) == ("begun", None, offered)
        assert await journal.begin(offered) == known
    await journal.close()
    assert [source for source, _ in set_aside(path)] == ["executions", "executions"]


async def test_an_unreadable_note_of_the_boot_is_another_boot(path: Path) -> None:
    change(path, "update meta set value = 'no' where name = 'closed'")
    change(path, "update meta set value = 'at noon' where name = 'boot'")
    journal = await Journal.open(path)
    assert not journal.knows_session(ACCOUNT, 1)
    await journal.close()


def garble(log: Path) -> None:
    log.write_bytes(b"\xff" * log.stat().st_size)


def garble_the_middle(log: Path) -> None:
    whole = bytearray(log.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 400] = b"\xff" * 400
    log.write_bytes(whole)


def cut(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def empty(log: Path) -> None:
    os.truncate(log, 0)


@pytest.mark.parametrize("damage", [garble, garble_the_middle, cut, empty, Path.unlink])
async def test_a_journal_whose_log_lost_its_end_does_not_vouch_for_its_sessions(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    """SQLite silently accepts a shortened write-ahead log."""
    journal = await Journal.open(tmp_path / "journal.sqlite3")
    await journal.remember_session(ACCOUNT, 1, datetime.now(UTC))
    for number in range(1, 40):
        await journal.begin(execution(number))
    await journal.flush()
    # the files of an agent that was killed
    killed = tmp_path / "killed"
    killed.mkdir()
    for part in tmp_path.glob("journal.sqlite3*"):
        shutil.copy(part, killed / part.name)
    await journal.close()
    damage(killed / "journal.sqlite3-wal")
    journal = await Journal.open(killed / "journal.sqlite3")
    assert not journal.knows_session(ACCOUNT, 1)
    await journal.remember_session(ACCOUNT, 2, datetime.now(UTC))
    await journal.close()
    journal = await Journal.open(killed / "journal.sqlite3")
    assert journal.knows_session(ACCOUNT, 2), "what came after it counts again"
    await journal.close()


async def test_a_killed_agents_journal_is_whole(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite3")
    await journal.remember_session(ACCOUNT, 1, datetime.now(UTC))
    for number in range(1, 40):
        await journal.begin(execution(number))
    await journal.flush()
    killed = tmp_path / "killed"
    killed.mkdir()
    for part in tmp_path.glob("journal.sqlite3*"):
        shutil.copy(part, killed / part.name)
    await journal.close()
    journal = await Journal.open(killed / "journal.sqlite3")
    assert journal.knows_session(ACCOUNT, 1)
    assert len(await journal.unresolved(ACCOUNT)) == 39
    await journal.close()


async def test_an_unreadable_mark_of_the_last_order_makes_it_unknown(path: Path) -> None:
    path.with_name(f"{path.name}-last").write_bytes(b"\xff" * 64)
    journal = await Journal.open(path)
    assert not journal.knows_session(ACCOUNT, 1)
    await journal.close()


@pytest.mark.parametrize("damage", ["empty", "cut", "first_page"])
async def test_a_damaged_file_is_set_aside_and_the_agent_starts(damage: str, path: Path) -> None:
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case _:
            path.write_bytes(b"\x00" * 4096 + whole[4096:])
    journal = await Journal.open(path)
    assert not journal.knows_session(ACCOUNT, 1)
    assert await journal.begin(execution(9)) is None
    await journal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
async def test_a_full_disk_at_the_start_is_no_damage(path: Path) -> None:
    code = (
        "import asyncio, pathlib, resource, sys\n"
        "from agent.journal.journal import Journal, JournalError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    asyncio.run(Journal.open(pathlib.Path(sys.argv[1])))\n"
        "except JournalError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    run = subprocess.run(  # noqa: ASYNC221 (nobody else waits)
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "refused: the journal" in run.stderr, run.stderr
    assert list(path.parent.glob("*.damaged-*")) == []
    journal = await Journal.open(path)
    assert journal.knows_session(ACCOUNT, 1)
    assert [each.id for each in await journal.unresolved(ACCOUNT)] == [1, 2]
    await journal.close()
