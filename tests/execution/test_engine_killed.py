"""An agent killed with -9 in the middle of an order, against the real paper broker: found again, never sent twice."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import ACCOUNT, FakeDatabase, eventually, execution, running_lease

from agent.account.session import AccountSession, SeqCounter
from agent.clock import DatabaseClock
from agent.execution.engine import TradeCopyEngine
from agent.journal.journal import Journal
from agent.journal.rows import EXECUTION
from agent.model import Execution, Login
from agent.paper.process import PaperProcess
from agent.platforms.paper.adapter import PaperAdapter
from agent.watching.watcher import Watcher


@pytest.fixture
async def broker() -> AsyncIterator[PaperProcess]:
    async with PaperProcess() as process, await process.client() as client:
        await client.set_prices({"EURUSD": (Decimal("1.10000"), Decimal("1.10010"))})
        yield process


def login_at(broker: PaperProcess) -> Login:
    return Login(
        account_id=ACCOUNT, platform="paper", server="Paper", address=broker.address, login="7001", password="pw",
        settings={"paper": {"balance": "10000"}},
    )  # fmt: skip


async def killed_agent(moment: str, journal: Path, login: Login, told: Execution) -> None:
    """Run an agent until it kills itself at `moment`."""
    folder = Path(__file__).parent
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(folder / "engine_victim.py"), stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    work = {
        "moment": moment,
        "journal": str(journal),
        "login": asdict(login),
        "execution": EXECUTION.dump_json(told).decode(),
    }
    try:
        async with asyncio.timeout(30):
            await child.communicate(json.dumps(work).encode())
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == -signal.SIGKILL


async def next_agent(
    journal_path: Path, login: Login, told: Execution, *, offered: bool = True
) -> tuple[FakeDatabase, list[str]]:
    """The next agent: it has the journal if there is one, and the database offers it the execution again."""
    journal = await Journal.open(journal_path)
    database, adapter, seq, clock = FakeDatabase(), PaperAdapter(), SeqCounter(), DatabaseClock()
    await adapter.connect(login, seq)
    session = AccountSession(
        account_id=ACCOUNT, epoch=1, session=2, continues=journal.knows_session(ACCOUNT, 1), adapter=adapter, seq=seq,
        opened_at=clock.now(), begins_at=clock.now(),
    )  # fmt: skip
    async with TradeCopyEngine(journal, database, clock, running_lease()) as engine:
        watcher = Watcher(
            session, journal, database, clock, submit=engine.submit, on_refused=lambda _account, _code: None
        )
        watching = asyncio.create_task(watcher.run())
        await engine.attach(session)
        if offered:
            engine.submit([told, told])
        await eventually(lambda: database.outcome(told.id) not in (None, "unknown/unknown"), seconds=20)
        tickets = [position.ticket for position in await adapter.positions()]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await adapter.close()
    await journal.close()
    return database, [str(ticket) for ticket in tickets]


async def orders_received(broker: PaperProcess, told: Execution) -> int:
    async with await broker.client() as client:
        return len((await client.requests_by_tag("7001")).get(told.id, ()))


@pytest.mark.covers("R12")
@pytest.mark.parametrize("offered", [True, False], ids=["offered again", "found in the journal"])
async def test_killed_between_sending_and_reporting_the_order_is_adopted(
    offered: bool, broker: PaperProcess, tmp_path: Path
) -> None:
    told, login = execution(1), login_at(broker)
    await killed_agent("sent", tmp_path / "journal.sqlite", login, told)
    database, tickets = await next_agent(tmp_path / "journal.sqlite", login, told, offered=offered)
    assert len(tickets) == 1
    assert await orders_received(broker, told) == 1
    assert database.outcome(1) == "completed"
    assert database.reports[-1].adopted
    assert [position.ticket for position in database.reports[-1].positions] == tickets


async def test_killed_between_journal_and_sending_the_order_is_never_sent(broker: PaperProcess, tmp_path: Path) -> None:
    told, login = execution(1, seconds=3), login_at(broker)
    await killed_agent("journalled", tmp_path / "journal.sqlite", login, told)
    database, tickets = await next_agent(tmp_path / "journal.sqlite", login, told)
    assert tickets == []
    assert await orders_received(broker, told) == 0
    assert database.outcome(1) == "expired/not_found_after_unknown"


async def test_killed_while_reporting_the_report_is_delivered_by_the_next_run(
    broker: PaperProcess, tmp_path: Path
) -> None:
    told, login = execution(1), login_at(broker)
    await killed_agent("reporting", tmp_path / "journal.sqlite", login, told)
    database, tickets = await next_agent(tmp_path / "journal.sqlite", login, told)
    assert len(tickets) == 1
    assert await orders_received(broker, told) == 1
    assert database.outcome(1) == "completed"


async def test_killed_and_the_journal_deleted_the_order_is_adopted(broker: PaperProcess, tmp_path: Path) -> None:
    told, login = execution(1), login_at(broker)
    await killed_agent("sent", tmp_path / "journal.sqlite", login, told)
    for part in tmp_path.iterdir():
        part.unlink()
    database, tickets = await next_agent(tmp_path / "journal.sqlite", login, told)
    assert len(tickets) == 1
    assert await orders_received(broker, told) == 1
    assert database.outcome(1) == "completed"
    assert database.reports[-1].adopted


async def test_a_copy_at_the_paper_broker_is_reported_once(broker: PaperProcess, tmp_path: Path) -> None:
    told, login = execution(1), login_at(broker)
    journal = await Journal.open(tmp_path / "journal.sqlite")
    await journal.remember_session(ACCOUNT, 1, told.queued_at)
    await journal.close()
    database, tickets = await next_agent(tmp_path / "journal.sqlite", login, told)
    assert len(tickets) == 1
    assert database.outcome(1) == "completed"
    assert [event.type for event in database.events if event.type != "snapshot"] == []
