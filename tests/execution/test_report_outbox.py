"""Reports that the database refuses: texts are left out, what was filled is told."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from engine_harness import FakeDatabase, eventually, position

from agent.control_plane.contract import BackboneRefused, ReportAnswer
from agent.control_plane.owners import Owners
from agent.execution.report_outbox import ReportOutbox
from agent.journal.journal import Journal
from agent.model import AccountId, ExecutionId, Report


class StrictDatabase(FakeDatabase):
    """Refuses calls with a text that it cannot store, or with this execution."""

    refuses: int | None = None

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer:
        texts = [text for r in reports for text in (r.message, *(p.comment for p in r.positions))]
        if any("\0" in text for text in texts):
            raise BackboneRefused("22P05", "unsupported Unicode escape sequence")
        if any(r.execution_id == self.refuses for r in reports):
            raise BackboneRefused("TC001", "lots")
        return await super().report_executions(reports)


def report(number: int, message: str = "done", comment: str = "copy") -> Report:
    return Report(
        account_id=AccountId("a"), session=1, seq=number, execution_id=ExecutionId(number), attempt=1,
        outcome="completed", message=message, filled_lots=Decimal("0.10"),
        positions=(replace(position("7"), comment=comment),),
    )  # fmt: skip


async def deliver(database: StrictDatabase, folder: Path, *reports: Report) -> tuple[list[Report], list[int]]:
    """What the database took, and the numbers of the reports that are not sent again."""
    journal = await Journal.open(folder / "journal.sqlite")
    ended: list[int] = []
    outbox = ReportOutbox(
        journal, database, owners=Owners(), submit=lambda _: None, accepted=lambda r: ended.append(r.execution_id),
        batch=10,
    )  # fmt: skip
    for each in reports:
        outbox.put(each)
    running = asyncio.create_task(outbox.run())
    try:
        await eventually(lambda: outbox.pending == 0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await journal.close()
    return database.reports, ended


async def test_a_report_with_a_text_that_cannot_be_stored_is_sent_without_texts(tmp_path: Path) -> None:
    for at, bad in enumerate((report(2, message="no\0money"), report(2, comment="a\0b"))):
        folder = tmp_path / str(at)
        folder.mkdir()
        taken, ended = await deliver(StrictDatabase(), folder, report(1), bad, report(3))
        bare = replace(bad, message="", positions=(replace(position("7"), comment=""),))
        assert sorted(taken, key=lambda r: r.execution_id) == [report(1), bare, report(3)]
        assert sorted(ended) == [1, 2, 3]


async def test_a_report_that_is_refused_without_texts_too_holds_up_nobody(tmp_path: Path) -> None:
    database = StrictDatabase()
    database.refuses = 2
    taken, ended = await deliver(database, tmp_path, report(1), report(2), report(3))
    assert sorted(r.execution_id for r in taken) == [1, 3]
    assert sorted(ended) == [1, 2, 3]
