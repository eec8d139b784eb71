"""The laws of execution: once, in order, in time, by the right agent, and never again on a guess."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import (
    ACCOUNT,
    Desk,
    FakeDatabase,
    eventually,
    execution,
    numbers,
    open_session,
    position,
    running_lease,
)

from agent.clock import DatabaseClock, Lease
from agent.control_plane.decode import executions
from agent.execution.engine import EngineSettings, TradeCopyEngine
from agent.execution.orders import order_of
from agent.execution.outcome_resolver import Pace
from agent.journal.journal import Journal
from agent.model import AccountId, ExecutionId, Order, Report, Ticket

QUICK = EngineSettings(
    place_timeout=timedelta(seconds=20), pace=Pace(first=timedelta(milliseconds=5), longest=timedelta(milliseconds=20))
)


class Farm:
    """An engine with its journal, one desk and one database."""

    def __init__(self, journal: Journal, database: FakeDatabase, engine: TradeCopyEngine, lease: Lease) -> None:
        self.journal, self.database, self.engine, self.lease = journal, database, engine, lease
        self.desk = Desk()


@asynccontextmanager
async def running(folder: Path, settings: EngineSettings = QUICK, lease: Lease | None = None) -> AsyncIterator[Farm]:
    journal = await Journal.open(folder / "journal.sqlite")
    database, lease = FakeDatabase(), lease or running_lease()
    async with TradeCopyEngine(journal, database, DatabaseClock(), lease, settings) as engine:
        yield Farm(journal, database, engine, lease)
    await journal.close()


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(farm.desk))
        yield farm


async def test_an_open_is_sent_once_and_reported_with_its_position(farm: Farm) -> None:
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.engine.in_flight == 0)
    (report,) = farm.database.reports
    assert (report.outcome, report.filled_lots, report.price) == ("completed", Decimal("0.50"), Decimal("1.1"))
    assert [(each.ticket, each.tag) for each in report.positions] == [("T1", 1)]
    assert report.received_at is not None
    assert report.sent_at is not None
    assert report.done_at is not None
    assert report.received_at <= report.sent_at <= report.done_at
    assert farm.desk.tags == [1]


async def test_a_report_that_the_database_keeps_is_delivered_and_logged(
    farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    farm.database.report_status = "kept"
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert [report.execution_id for report in farm.database.reports] == [1]
    assert "report_kept" in caplog.text
    assert await farm.journal.undelivered_reports() == []


async def test_duplicates_from_every_source_are_dropped(farm: Farm) -> None:
    gate = farm.desk.gates[1] = asyncio.Event()
    told = execution(1)
    farm.engine.submit([told, told])
    await eventually(lambda: farm.desk.tags)
    farm.engine.submit([told])
    gate.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    farm.engine.submit([told])
    assert farm.engine.in_flight == 0
    assert farm.desk.tags == [1]
    assert farm.database.outcome(1) == "completed"


async def test_a_new_attempt_is_a_new_order(farm: Farm) -> None:
    farm.desk.faults[1] = "reject"
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.database.outcome(1) == "rejected/no_money")
    assert farm.database.reports[-1].retryable
    farm.engine.submit([execution(1, attempt=2)])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.desk.tags == [1, 1]


async def test_submissions_in_reverse_run_in_the_order_of_their_lane(farm: Farm) -> None:
    farm.engine.submit([execution(number, lane="a") for number in (3, 2, 1)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.desk.tags == [1, 2, 3]


async def test_an_execution_that_comes_before_its_account_waits_for_it(tmp_path: Path) -> None:
    async with running(tmp_path) as farm:
        farm.engine.submit([execution(1)])
        farm.engine.submit([execution(1)])
        await farm.engine.attach(await open_session(farm.desk))
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert farm.desk.tags == [1]


# -- deadlines, lease, epoch, begin -----------------------------------------------------------------------


async def test_past_send_before_nothing_is_sent(farm: Farm) -> None:
    farm.engine.submit([execution(1, seconds=-0.001)])
    await eventually(lambda: farm.database.outcome(1) == "expired/too_late")
    assert farm.desk.tags == []


async def test_the_boot_time_deadline_counts_even_if_the_wall_clock_was_set_back(tmp_path: Path) -> None:
    settings = replace(QUICK, longest_wait=timedelta(milliseconds=500))
    async with running(tmp_path, settings) as farm:
        farm.desk.at_once = 1
        await farm.engine.attach(await open_session(farm.desk))
        gate = farm.desk.gates[1] = asyncio.Event()
        farm.engine.submit([execution(1), execution(2, seconds=3600)])
        await eventually(lambda: farm.database.outcome(2) == "expired/too_late")
        gate.set()
        await eventually(lambda: farm.engine.in_flight == 0)
        assert farm.desk.tags == [1]


async def test_without_a_lease_nothing_is_sent(farm: Farm) -> None:
    farm.lease.revoke()
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.database.outcome(1) == "expired/lease_over")
    assert farm.desk.tags == []


async def test_an_execution_of_an_older_epoch_is_not_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(farm.desk, epoch=2))
        farm.engine.submit([execution(1, epoch=1)])
        await eventually(lambda: farm.database.outcome(1) == "expired/stale_epoch")
        assert farm.desk.tags == []


async def test_an_execution_of_a_newer_epoch_waits_for_its_session(farm: Farm) -> None:
    farm.engine.submit([execution(1, epoch=2)])
    assert farm.engine.in_flight == 0
    await farm.engine.attach(await open_session(farm.desk, number=2, epoch=2))
    await eventually(lambda: farm.database.outcome(1) == "completed")


async def test_before_begins_at_the_agent_does_not_trade(tmp_path: Path) -> None:
    async with running(tmp_path) as farm:
        session = await open_session(farm.desk, begins_in=0.1)
        await farm.engine.attach(session)
        farm.engine.submit([execution(1), execution(2, seconds=0.02)])
        await eventually(lambda: farm.engine.in_flight == 0)
        assert farm.database.outcome(1) == "completed"
        assert farm.database.outcome(2) == "expired/too_late"
        sent_at = next(report.sent_at for report in farm.database.reports if report.execution_id == 1)
        assert sent_at is not None
        assert sent_at >= session.begins_at


async def test_an_earlier_begins_at_takes_effect(tmp_path: Path) -> None:
    """The previous agent has released the account, so its lease need not run out."""
    async with running(tmp_path) as farm:
        session = await open_session(farm.desk, begins_in=3600)
        await farm.engine.attach(session)
        farm.engine.submit([execution(1)])
        session.begins_at = session.opened_at
        await eventually(lambda: farm.database.outcome(1) == "completed")


async def test_a_journal_that_cannot_be_written_stops_the_order(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: object) -> list[object]:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(farm.journal._writer, "_transact", full)
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.database.outcome(1) == "expired/journal_failed")
    assert farm.desk.tags == []
    assert not farm.journal.healthy


async def test_a_cancel_request_drops_what_is_unsent_and_only_that(farm: Farm) -> None:
    gate = farm.desk.gates[1] = asyncio.Event()
    farm.engine.submit([execution(1, lane="a"), execution(2, lane="a")])
    await eventually(lambda: farm.desk.tags == [1])
    farm.engine.cancel([ExecutionId(1), ExecutionId(2), ExecutionId(3)])
    farm.engine.submit([execution(3)])
    gate.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.database.outcome(1) == "completed"
    assert farm.database.outcome(2) == "cancelled/cancel_requested"
    assert farm.database.outcome(3) == "cancelled/cancel_requested"
    assert farm.desk.tags == [1]


# -- a close beside an open ----------------------------------------------------------------------------------


async def test_a_close_beside_an_unsent_open_drops_it(tmp_path: Path) -> None:
    async with running(tmp_path) as farm:
        farm.desk.at_once = 1
        await farm.engine.attach(await open_session(farm.desk))
        gate = farm.desk.gates[1] = asyncio.Event()
        farm.engine.submit([execution(1), execution(2, lane="a"), execution(3, "close", lane="a", after_id="2")])
        await eventually(lambda: farm.database.outcome(2) == "cancelled/already_closed")
        gate.set()
        await eventually(lambda: farm.engine.in_flight == 0)
        assert farm.database.outcome(3) == "completed"
        assert {report.execution_id: report.filled_lots for report in farm.database.reports}[ExecutionId(3)] == 0
        assert farm.desk.tags == [1]


async def test_a_close_beside_a_sent_open_closes_its_position(farm: Farm) -> None:
    gate = farm.desk.gates[2] = asyncio.Event()
    farm.engine.submit([execution(2, lane="a")])
    await eventually(lambda: farm.desk.tags == [2])
    farm.engine.submit([execution(3, "close", lane="a", after_id="2")])
    gate.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.database.outcome(2) == "completed"
    assert farm.database.outcome(3) == "completed"
    assert farm.database.reports[-1].filled_lots == Decimal("0.50")
    assert farm.desk.held == {}


async def test_a_close_beside_a_split_open_drops_the_unsent_legs_and_closes_the_others(farm: Farm) -> None:
    legs = [execution(number, lane="a", step_id="1") for number in (1, 2, 3)]
    gate = farm.desk.gates[2] = asyncio.Event()
    farm.engine.submit(legs)
    await eventually(lambda: farm.desk.tags == [1, 2])
    farm.engine.submit([execution(4, "close", lane="a", after_id="1")])
    gate.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.database.outcome(3) == "cancelled/already_closed"
    assert farm.database.outcome(4) == "completed"
    assert farm.database.reports[-1].filled_lots == Decimal("1.00")
    assert farm.desk.held == {}
    assert farm.desk.tags == [1, 2, 4, 4]


async def test_a_close_that_comes_before_its_open_keeps_it_from_being_sent(farm: Farm) -> None:
    farm.engine.submit([execution(3, "close", lane="a", after_id="2")])
    await eventually(lambda: farm.database.outcome(3) == "completed")
    farm.engine.submit([execution(2, lane="a")])
    await eventually(lambda: farm.database.outcome(2) == "cancelled/already_closed")
    assert farm.desk.tags == []


async def test_a_close_by_step_after_a_restart_finds_the_step_in_the_journal(tmp_path: Path) -> None:
    desk = Desk()
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk))
        farm.engine.submit([execution(2, lane="a")])
        await eventually(lambda: farm.engine.in_flight == 0)
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk, number=2))
        farm.engine.submit([execution(3, "close", lane="a", after_id="2")])
        await eventually(lambda: farm.database.outcome(3) == "completed")
    assert desk.held == {}


async def test_a_close_by_step_without_a_journal_finds_the_step_by_its_tag(tmp_path: Path) -> None:
    desk = Desk()
    desk.put(position("T2", lots="0.50", tag=2))
    desk.put(position("mine", lots="0.50"))
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk, continues=False))
        farm.engine.submit([execution(3, "close", lane="a", after_id="2")])
        await eventually(lambda: farm.database.outcome(3) == "completed")
    assert list(desk.held) == ["mine"]


async def test_the_open_of_a_flip_waits_for_its_close(farm: Farm) -> None:
    farm.desk.put(position("1"))
    gate = farm.desk.gates[10] = asyncio.Event()
    farm.engine.submit(
        [execution(11, lane="b", after_id="10", side="sell"), execution(10, "close", lane="a", ticket=Ticket("1"))]
    )
    await eventually(lambda: farm.desk.tags == [10])
    gate.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.desk.tags == [10, 11]


async def test_a_whole_close_takes_what_the_position_holds_now(farm: Farm) -> None:
    session = await open_session(farm.desk, number=2)
    await farm.engine.attach(session)
    trimmed = position("1", lots="0.30")
    farm.desk.put(trimmed)
    session.book.put(trimmed, session.take_seq())
    farm.engine.submit([execution(1, "close", ticket=Ticket("1"), lots=Decimal("0.50"))])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.desk.sent[0].lots == Decimal("0.30")


# -- unknown is not failed -----------------------------------------------------------------------------------


async def test_an_unknown_open_is_reported_unknown_then_found_and_adopted(farm: Farm) -> None:
    farm.desk.faults[1] = "executed"
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert [report.outcome for report in farm.database.reports][-1] == "completed"
    assert farm.database.reports[-1].adopted
    assert farm.database.reports[-1].filled_lots == Decimal("0.50")
    assert farm.desk.tags == [1]


async def test_a_fill_that_names_no_position_is_looked_up_before_it_counts_as_completed(farm: Farm) -> None:
    farm.desk.faults[1] = "bare"
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.database.outcome(1) == "completed"
    report = farm.database.reports[-1]
    assert (report.adopted, report.filled_lots) == (True, Decimal("0.50"))
    assert [(each.ticket, each.lots) for each in report.positions] == [("T1", Decimal("0.50"))]
    assert farm.desk.tags == [1]


async def test_a_fill_that_was_reported_without_its_position_is_looked_up_when_the_database_asks(
    tmp_path: Path,
) -> None:
    """An earlier run reported it that way. The database cannot book it and repeats the offer until it can."""
    desk, told = Desk(), execution(1)
    desk.execute(_order(ExecutionId(1)))
    async with running(tmp_path) as farm:
        bare = Report(
            account_id=ACCOUNT, session=1, seq=1, execution_id=ExecutionId(1), attempt=1, outcome="completed",
            filled_lots=Decimal("0.50"), price=Decimal("1.1"),
        )  # fmt: skip
        await farm.journal.begin(told)
        farm.journal.answered(told, bare)
        farm.journal.reported([bare])
        await farm.engine.attach(await open_session(desk))
        farm.engine.submit([replace(told, investigate=True)])
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert [each.ticket for each in farm.database.reports[-1].positions] == ["T1"]
    assert desk.tags == []


async def test_a_fill_whose_position_is_gone_by_the_lookup_is_reported_as_gone(farm: Farm) -> None:
    gate = farm.desk.gates[1] = asyncio.Event()
    farm.desk.faults[1] = "bare"
    farm.engine.submit([execution(1, seconds=0.3)])
    await eventually(lambda: farm.desk.held)
    farm.desk.put(replace(farm.desk.held[Ticket("T1")], lots=Decimal(0)), push=False)  # its stop was hit at once
    gate.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    report = farm.database.reports[-1]
    assert (report.outcome, report.adopted, report.filled_lots, report.positions) == (
        "completed",
        True,
        Decimal("0.50"),
        (),
    )


async def test_an_open_that_hangs_is_unknown_after_its_time_and_then_adopted(tmp_path: Path) -> None:
    async with running(tmp_path, replace(QUICK, place_timeout=timedelta(milliseconds=50))) as farm:
        await farm.engine.attach(await open_session(farm.desk))
        farm.desk.faults[1] = "hang"
        farm.engine.submit([execution(1)])
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert farm.database.reports[-1].adopted
        assert farm.desk.tags == [1]


async def test_an_unknown_open_that_is_not_found_is_never_sent_again(farm: Farm) -> None:
    farm.desk.faults[1] = "lost"
    told = execution(1, seconds=1.5)
    farm.engine.submit([told])
    await eventually(lambda: farm.database.outcome(1) == "expired/not_found_after_unknown")
    farm.engine.submit([replace(told, investigate=True)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.desk.tags == [1]


async def test_an_order_that_turns_up_after_it_was_given_up_is_adopted(tmp_path: Path) -> None:
    settings = replace(QUICK, late_lookups=(timedelta(milliseconds=5),) * 1000)
    async with running(tmp_path, settings) as farm:
        await farm.engine.attach(await open_session(farm.desk))
        farm.desk.faults[1] = "lost"
        farm.engine.submit([execution(1, seconds=1.5)])
        await eventually(lambda: farm.database.outcome(1) == "expired/not_found_after_unknown")
        farm.desk.execute(_order(ExecutionId(1)))
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert farm.database.reports[-1].adopted
        assert farm.desk.tags == [1]


async def test_absence_proves_nothing_until_it_is_conclusive(farm: Farm) -> None:
    farm.desk.conclusive = False
    farm.desk.faults[1] = "lost"
    farm.engine.submit([execution(1, seconds=1.5)])
    await eventually(lambda: farm.database.outcome(1) == "unknown/unknown")
    late = execution(1)
    farm.desk.execute(_order(late.id))
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.database.reports[-1].adopted


def _order(number: ExecutionId) -> Order:
    return order_of(execution(number))


async def test_the_lane_of_an_unknown_waits_while_other_lanes_go_on(farm: Farm) -> None:
    farm.desk.at_once = 1
    await farm.engine.attach(await open_session(farm.desk, number=2))
    farm.desk.conclusive = False
    farm.desk.faults[1] = "lost"
    farm.engine.submit([execution(1, lane="a")])
    await eventually(lambda: farm.desk.tags == [1])
    farm.engine.submit([execution(2, "close", lane="a", after_id="1"), execution(3, lane="b")])
    await eventually(lambda: farm.database.outcome(3) == "completed")
    assert farm.database.outcome(2) is None
    farm.desk.execute(_order(ExecutionId(1)))
    await eventually(lambda: farm.database.outcome(2) == "completed")
    assert list(farm.desk.held) == ["T3"]


async def test_an_unknown_close_is_repeated_at_once(farm: Farm) -> None:
    farm.desk.put(position("1", lots="0.50"))
    farm.desk.faults[1] = "lost"
    farm.engine.submit([execution(1, "close", ticket=Ticket("1"))])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.desk.held == {}
    assert farm.desk.tags == [1, 1]


async def test_an_unknown_reduction_is_resolved_by_reading_and_not_repeated(farm: Farm) -> None:
    farm.desk.put(position("1", lots="1.00"))
    farm.desk.faults[1] = "lost"
    farm.engine.submit(
        [execution(1, "reduce", seconds=1.5, ticket=Ticket("1"), lots=Decimal("0.40"), target_lots=Decimal("0.60"))]
    )
    await eventually(lambda: farm.database.outcome(1) == "expired/not_found_after_unknown")
    assert farm.database.reports[-1].positions[0].lots == Decimal("1.00")
    assert farm.desk.tags == [1]


async def test_an_unknown_reduction_already_at_its_target_is_completed(tmp_path: Path) -> None:
    desk = Desk(conclusive=False)
    desk.put(position("1", lots="0.60"))
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk))
        farm.engine.submit(
            [
                execution(
                    1, "reduce", ticket=Ticket("1"), lots=Decimal("0.40"), target_lots=Decimal("0.60"), investigate=True
                )
            ]
        )
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert desk.tags == []


async def test_an_open_under_investigation_is_looked_up_and_not_sent(tmp_path: Path) -> None:
    desk = Desk()
    desk.execute(_order(ExecutionId(1)))
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk))
        farm.engine.submit([execution(1, investigate=True), execution(2, investigate=True, seconds=0)])
        await eventually(lambda: farm.engine.in_flight == 0)
        assert farm.database.outcome(1) == "completed"
        assert farm.database.outcome(2) == "expired/not_found_after_unknown"
        assert desk.tags == []


async def test_without_a_journal_what_was_queued_before_the_session_is_unknown(tmp_path: Path) -> None:
    desk = Desk()
    before = execution(1, seconds=0.1)
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk, continues=False))
        farm.engine.submit([before, execution(2)])
        await eventually(lambda: farm.engine.in_flight == 0)
        assert farm.database.outcome(1) == "expired/not_found_after_unknown"
        assert farm.database.outcome(2) == "completed"
        assert desk.tags == [2]


async def test_a_journal_vouches_only_for_what_was_queued_since_its_row_of_sessions_began(tmp_path: Path) -> None:
    desk, before = Desk(), execution(1, seconds=0.2)
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk, continues=False))
        since = execution(2)
        await farm.engine.attach(await open_session(desk, number=2, continues=farm.journal.knows_session(ACCOUNT, 1)))
        farm.engine.submit([before, since])
        await eventually(lambda: farm.engine.in_flight == 0)
        assert farm.database.outcome(1) == "expired/not_found_after_unknown"
        assert farm.database.outcome(2) == "completed"
        assert desk.tags == [2]


# -- accounts, sessions, reports -------------------------------------------------------------------------------


async def test_an_account_that_hangs_does_not_delay_another(farm: Farm) -> None:
    other, desk = AccountId("00000000-0000-4000-8000-000000000002"), Desk()
    await farm.engine.attach(await open_session(desk, account=other))
    for number in range(1, 9):
        farm.desk.gates[number] = asyncio.Event()
    farm.engine.submit([execution(number) for number in range(1, 10)])
    await eventually(lambda: len(farm.desk.tags) == 8)
    farm.engine.submit([execution(20, account_id=other)])
    await eventually(lambda: farm.database.outcome(20) == "completed")
    assert farm.database.outcome(1) is None


async def test_a_drained_account_finishes_what_it_has_and_takes_no_more(farm: Farm) -> None:
    gate = farm.desk.gates[1] = asyncio.Event()
    farm.engine.submit([execution(1, lane="a"), execution(2, lane="a")])
    await eventually(lambda: farm.desk.tags == [1])
    draining = asyncio.create_task(farm.engine.detach(ACCOUNT, drain=True))
    await asyncio.sleep(0)
    farm.engine.submit([execution(3)])
    gate.set()
    await draining
    await eventually(lambda: farm.engine.in_flight == 0)
    assert numbers(farm.database.reports) == [1, 2]


async def test_a_lost_connection_reports_what_was_sent_as_unknown_and_the_next_session_finds_it(farm: Farm) -> None:
    farm.desk.gates[1] = asyncio.Event()
    farm.engine.submit([execution(1, lane="a"), execution(2, lane="a")])
    await eventually(lambda: farm.desk.tags == [1])
    await farm.engine.detach(ACCOUNT, drain=False)
    await eventually(lambda: farm.database.outcome(1) == "unknown/unknown")
    await farm.engine.attach(await open_session(farm.desk, number=2))
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.database.outcome(2) is None
    assert farm.desk.tags == [1]


async def test_outcomes_gather_while_a_report_is_under_way(farm: Farm) -> None:
    farm.database.hold_reports = asyncio.Event()
    farm.engine.submit([execution(1)])
    await eventually(lambda: len(farm.desk.tags) == 1)
    farm.engine.submit([execution(number) for number in range(2, 7)])
    await eventually(lambda: farm.engine._outbox.pending == 6)
    farm.database.hold_reports.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.database.calls == [1, 5]


async def test_a_report_that_was_not_delivered_is_delivered_by_the_next_run(tmp_path: Path) -> None:
    desk = Desk()
    async with running(tmp_path) as farm:
        farm.database.hold_reports = asyncio.Event()
        await farm.engine.attach(await open_session(desk))
        farm.engine.submit([execution(1)])
        await eventually(lambda: farm.engine._outbox.pending == 1)
    async with running(tmp_path) as farm:
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert farm.database.reports[0].session == 1
    assert desk.tags == [1]


async def test_an_attempt_that_the_journal_knows_is_reported_again_and_not_sent(tmp_path: Path) -> None:
    desk, told = Desk(), execution(1)
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk))
        farm.engine.submit([told])
        await eventually(lambda: farm.engine.in_flight == 0)
        first = farm.database.reports
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk, number=2))
        farm.engine.submit([told])
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert farm.database.reports == first
    assert desk.tags == [1]


async def test_numbers_of_reports_are_taken_after_the_answer_and_never_twice(farm: Farm) -> None:
    farm.engine.submit([execution(number) for number in range(1, 30)])
    await eventually(lambda: farm.engine.in_flight == 0)
    taken = [report.seq for report in farm.database.reports]
    assert len(set(taken)) == len(taken)


async def test_modify_amend_place_and_cancel_reach_the_broker_as_such(farm: Farm) -> None:
    farm.desk.put(position("1"))
    farm.engine.submit(
        [
            execution(1, "modify", ticket=Ticket("1"), sl=Decimal("1.05")),
            execution(2, "place", order_type="limit", price=Decimal("1.0"), lane="p"),
            execution(3, "amend", ticket=Ticket("T2"), price=Decimal("1.01"), lane="p"),
            execution(4, "cancel", ticket=Ticket("T2"), lane="p"),
        ]
    )
    await eventually(lambda: farm.engine.in_flight == 0)
    assert {report.outcome for report in farm.database.reports} == {"completed"}
    assert sorted(order.kind for order in farm.desk.sent) == ["amend", "cancel", "modify", "pending"]
    assert farm.desk.held[Ticket("1")].sl == Decimal("1.05")


async def test_a_cancel_whose_order_is_gone_is_completed_without_positions(farm: Farm) -> None:
    """The account's own events report what became of the order (filled, expired, deleted by hand)."""
    farm.desk.put(position("1", kind="order"))
    farm.desk.refusals = {1: "order_not_found", 2: "trade_disabled"}
    farm.engine.submit([execution(1, "cancel", ticket=Ticket("1")), execution(2, "cancel", ticket=Ticket("1"))])
    await eventually(lambda: farm.engine.in_flight == 0)
    report = next(report for report in farm.database.reports if report.execution_id == 1)
    assert (report.outcome, report.reason, report.filled_lots, report.positions) == ("completed", None, Decimal(0), ())
    assert farm.database.outcome(2) == "rejected/trade_disabled"


async def test_a_change_without_ticket_or_step_is_refused_and_not_guessed(farm: Farm) -> None:
    farm.engine.submit([execution(1, "modify")])
    await eventually(lambda: farm.database.outcome(1) == "rejected/no_ticket")
    assert farm.desk.tags == []


async def test_reports_are_sent_in_batches_that_the_database_can_process(farm: Farm) -> None:
    farm.database.bears = 3
    farm.database.hold_reports = asyncio.Event()
    farm.engine.submit([execution(1)])
    await eventually(lambda: len(farm.desk.tags) == 1)
    farm.engine.submit([execution(number) for number in range(2, 21)])
    await eventually(lambda: farm.engine._outbox.pending == 20)
    farm.database.hold_reports.set()
    await eventually(lambda: farm.engine.in_flight == 0)
    assert sorted(numbers(farm.database.reports)) == list(range(1, 21))
    assert max(farm.database.calls) <= 3
    before = farm.database.cut_off
    farm.engine.submit([execution(30)])
    await eventually(lambda: farm.database.outcome(30) == "completed")
    assert farm.database.cut_off == before


async def test_an_order_that_cannot_be_read_is_rejected_and_the_other_nine_are_sent(farm: Farm) -> None:
    rows = [offer(number) for number in range(1, 11)]
    rows[4]["action"] = "teleport"
    read = executions(rows)
    farm.engine.submit(read)
    farm.engine.submit(read)
    await eventually(lambda: farm.engine.in_flight == 0)
    assert sorted(farm.desk.tags) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert farm.database.outcome(5) == "rejected/unreadable_order"
    [report] = [report for report in farm.database.reports if report.execution_id == 5]
    assert "action" in report.message
    assert not report.retryable


def offer(number: int) -> dict[str, object]:
    """An execution as the database sends it."""
    now = datetime.now(UTC)
    return {
        "id": str(number), "attempt": 1, "account_id": ACCOUNT, "epoch": 1, "link_id": "1", "lane": str(number),
        "step_id": str(number), "after_id": None, "action": "open", "priority": 40, "symbol": "EURUSD", "side": "buy",
        "order_type": "market", "lots": "0.50", "target_lots": None, "ticket": None, "price": None,
        "sl": None, "tp": None, "max_slippage_points": None, "master_price": None, "expires_at": None,
        "comment": "", "investigate": False,
        "detected_at": now.isoformat(), "queued_at": now.isoformat(),
        "send_before": (now + timedelta(seconds=5)).isoformat(),
    }  # fmt: skip


def test_only_an_entry_without_an_execution_number_is_dropped() -> None:
    assert [one.id for one in executions([{"action": "open"}, "nonsense", offer(3)])] == [3]


async def test_an_account_that_may_not_trade_is_degraded_until_an_order_succeeds(farm: Farm) -> None:
    session = await open_session(farm.desk, number=2)
    told: list[object] = []
    session.on_problem = lambda: told.append(session.health())
    await farm.engine.attach(session)
    farm.desk.refusals = {1: "autotrading_off", 2: "autotrading_off", 3: "no_money"}
    farm.engine.submit([execution(number, lane="a") for number in (1, 2, 3)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert told == [("degraded", "autotrading_off: no")]
    farm.engine.submit([execution(4)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert told[1:] == [("connected", None)]
