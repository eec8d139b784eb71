"""A restored database gives out a number again: the journal knows it for another order, and nothing is sent under it
twice."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import Desk, FakeDatabase, eventually, execution, open_session, running_lease

from agent.clock import DatabaseClock
from agent.execution.engine import EngineSettings, TradeCopyEngine
from agent.execution.outcome_resolver import Pace
from agent.journal.journal import Journal
from agent.model import Execution

QUICK = EngineSettings(pace=Pace(first=timedelta(milliseconds=5), longest=timedelta(milliseconds=20)))
#: an execution as the database sent it before the restore
LOST = execution(7, lots=Decimal("0.50"))


@dataclass
class Run:
    journal: Journal
    database: FakeDatabase
    engine: TradeCopyEngine


@asynccontextmanager
async def running(folder: Path, desk: Desk, *, session: int = 1) -> AsyncIterator[Run]:
    journal, database = await Journal.open(folder / "journal.sqlite"), FakeDatabase()
    async with TradeCopyEngine(journal, database, DatabaseClock(), running_lease(), QUICK) as engine:
        await engine.attach(await open_session(desk, number=session))
        yield Run(journal, database, engine)
    await journal.close()


async def carry_out(run: Run, *orders: Execution) -> None:
    run.engine.submit(orders)
    await eventually(lambda: run.engine.in_flight == 0)


@pytest.mark.parametrize(
    "other",
    [
        replace(LOST, symbol="USDJPY"),
        replace(LOST, side="sell"),
        replace(LOST, action="close", ticket="T1"),  # type: ignore[arg-type]
        replace(LOST, link_id="9"),
        replace(LOST, detected_at=LOST.queued_at + timedelta(hours=1)),
        replace(LOST, symbol="USDJPY", attempt=2),
    ],
    ids=["symbol", "side", "action", "link", "moment", "attempt"],
)
async def test_a_number_that_the_journal_knows_for_another_order_is_refused(tmp_path: Path, other: Execution) -> None:
    desk = Desk()
    async with running(tmp_path, desk) as run:
        await carry_out(run, _now(LOST))
    async with running(tmp_path, desk, session=2) as run:
        await carry_out(run, _now(other))
        assert run.database.outcome(7) == "rejected/number_taken"
        [told] = run.database.reports
        assert not told.retryable
        entry = await run.journal.begin(LOST)
        assert entry is not None
        assert not entry.is_other
        assert entry.report is not None
        assert entry.report.outcome == "completed", "what is known of the lost order stays known"
    assert desk.tags == [7]


async def test_the_same_order_is_the_same_whatever_its_limits_are_by_now(tmp_path: Path) -> None:
    desk = Desk()
    async with running(tmp_path, desk) as run:
        await carry_out(run, _now(LOST))
    async with running(tmp_path, desk, session=2) as run:
        again = replace(_now(LOST), epoch=1, sl=Decimal("1.05"), lots=Decimal("0.40"), investigate=True)
        await carry_out(run, again)
        assert run.database.outcome(7) == "completed"
    assert desk.tags == [7]


async def test_an_execution_under_investigation_is_looked_up_and_neither_refused_nor_journalled(tmp_path: Path) -> None:
    """Another agent may have sent it: "rejected" would be a guess."""
    desk = Desk()
    async with running(tmp_path, desk) as run:
        await carry_out(run, _now(LOST))
    desk.filled.clear()
    async with running(tmp_path, desk, session=2) as run:
        await carry_out(run, replace(_now(LOST), symbol="USDJPY", investigate=True))
        assert run.database.outcome(7) == "expired/not_found_after_unknown"
        entry = await run.journal.begin(LOST)
        assert entry is not None
        assert entry.report is not None
        assert entry.report.outcome == "completed"
    assert desk.tags == [7]


async def test_after_a_restore_what_was_reported_in_this_run_is_looked_up_in_the_journal(tmp_path: Path) -> None:
    """Otherwise the outcome of the lost order would be reported for the new one."""
    desk = Desk()
    async with running(tmp_path, desk) as run:
        await carry_out(run, _now(LOST))
        run.engine.begin_anew()
        await carry_out(run, replace(_now(LOST), symbol="USDJPY"))
        assert run.database.outcome(7) == "rejected/number_taken"
    assert desk.tags == [7]


def _now(order: Execution) -> Execution:
    """An execution that was queued just now."""
    fresh = execution(7)
    return replace(order, queued_at=fresh.queued_at, send_before=fresh.send_before)
