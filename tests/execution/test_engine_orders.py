"""What exactly is sent: its deadline, its lots, and the orders of a close by step."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import ACCOUNT, Desk, eventually, execution, open_session, position, running_lease
from test_engine import QUICK, Farm, farm, running

from agent.execution import sender
from agent.model import Mode, Ticket
from agent.platforms.rate_limit import RateLimit

__all__ = ["farm"]

D = Decimal


# -- deadlines ------------------------------------------------------------------------------------------------


async def test_an_order_that_reaches_the_adapter_too_late_is_not_sent_and_reported_expired(farm: Farm) -> None:
    farm.desk.faults[1] = "slow"
    farm.engine.submit([execution(1, seconds=0.5)])
    await eventually(lambda: farm.database.outcome(1) == "expired/too_late")
    assert farm.desk.held == {}


async def test_an_order_carries_its_deadline(farm: Farm) -> None:
    farm.engine.submit([told := execution(1, seconds=4)])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    (order,) = farm.desk.sent
    assert order.send_before is not None
    assert abs(order.send_before - told.send_before) < timedelta(milliseconds=50)


async def test_an_order_may_not_be_sent_later_than_the_lease(tmp_path: Path) -> None:
    async with running(tmp_path, lease=running_lease(seconds=2)) as farm:
        ends_at = datetime.now(UTC) + timedelta(seconds=2)
        await farm.engine.attach(await open_session(farm.desk))
        farm.engine.submit([execution(1, seconds=60)])
        await eventually(lambda: farm.database.outcome(1) == "completed")
        (order,) = farm.desk.sent
        assert order.send_before is not None
        assert order.send_before <= ends_at


# -- how much ------------------------------------------------------------------------------------------------


async def holding(farm: Farm, lots: str, mode: Mode = "hedging") -> None:
    """A session whose book knows one position, ticket 1."""
    farm.desk.mode = mode
    session = await open_session(farm.desk, number=2)
    await farm.engine.attach(session)
    farm.desk.put(position("1", lots=lots))
    session.book.put(position("1", lots=lots), session.take_seq())


@pytest.mark.parametrize(("held", "sent"), [("1.00", "0.40"), ("0.80", "0.20")])
async def test_a_reduction_never_closes_more_than_its_target_leaves(farm: Farm, held: str, sent: str) -> None:
    await holding(farm, held)
    farm.engine.submit([execution(1, "reduce", ticket=Ticket("1"), lots=D("0.40"), target_lots=D("0.60"))])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert [order.lots for order in farm.desk.sent] == [D(sent)]


async def test_a_reduction_whose_target_is_reached_already_is_completed_unsent(farm: Farm) -> None:
    await holding(farm, "0.60")
    farm.engine.submit([execution(1, "reduce", ticket=Ticket("1"), lots=D("0.40"), target_lots=D("0.60"))])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.desk.sent == []
    assert farm.database.reports[-1].filled_lots == 0
    assert [each.lots for each in farm.database.reports[-1].positions] == [D("0.60")]


@pytest.mark.parametrize(("held", "sent"), [("0.70", "0.50"), ("0.30", "0.30")])
async def test_a_netting_close_leaves_what_its_user_bought_besides(farm: Farm, held: str, sent: str) -> None:
    await holding(farm, held, "netting")
    farm.engine.submit([execution(1, "close", ticket=Ticket("1"), lots=D("0.50"))])
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert [order.lots for order in farm.desk.sent] == [D(sent)]


# -- what a step left ----------------------------------------------------------------------------------------


async def test_a_close_by_a_step_of_another_vps_is_sent_although_this_journal_continues(farm: Farm) -> None:
    farm.desk.put(position("T2", lots="0.50", tag=2))
    farm.engine.submit([execution(3, "close", lane="a", after_id="2")])
    await eventually(lambda: farm.database.outcome(3) == "completed")
    assert farm.desk.held == {}
    assert farm.desk.tags == [3]


async def test_a_close_by_a_step_of_which_a_part_is_unknown_reads_the_account(tmp_path: Path) -> None:
    desk = Desk()
    async with running(tmp_path) as farm:
        await farm.engine.attach(await open_session(desk))
        leg = execution(2, lane="a")
        await farm.journal.begin(leg)
        desk.put(position("T2", lots="0.50", tag=2))
        farm.engine.submit([replace(execution(3, "close", lane="b", after_id="2"))])
        await eventually(lambda: farm.database.outcome(3) == "completed")
    assert desk.held == {}


# -- until the session ends ------------------------------------------------------------------------------------


async def test_an_adapter_that_does_not_cancel_an_order_delays_no_shutdown(tmp_path: Path) -> None:
    quick = replace(QUICK, stop_timeout=timedelta(milliseconds=50))
    async with running(tmp_path, quick) as farm:
        await farm.engine.attach(await open_session(farm.desk))
        farm.desk.faults[1] = "deaf"
        gate = farm.desk.gates[1] = asyncio.Event()
        farm.engine.submit([execution(1, lane="a"), execution(2, lane="a")])
        await eventually(lambda: farm.desk.tags)
        async with asyncio.timeout(10):
            await farm.engine.detach(ACCOUNT, drain=False)
        await eventually(lambda: farm.database.outcome(1) == "unknown/unknown")
        gate.set()
        await farm.engine.attach(await open_session(farm.desk, number=2))
        await eventually(lambda: farm.database.outcome(1) == "completed")
        assert farm.desk.tags == [1]


# -- a symbol without a quote ----------------------------------------------------------------------------------


@pytest.mark.covers("R23")
async def test_a_symbol_that_has_no_quote_yet_is_subscribed_and_waited_for(farm: Farm) -> None:
    farm.desk.looks_without_quote = 3
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.engine.in_flight == 0)
    assert farm.database.outcome(1) == "completed"
    assert farm.desk.tags == [1, 1]  # the broker had refused the first


@pytest.mark.covers("R23")
async def test_a_symbol_that_gets_no_quote_is_given_up_with_that_reason(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "QUOTE_WAIT_S", 0.05)
    farm.desk.looks_without_quote = 1_000_000
    farm.engine.submit([execution(1)])
    await eventually(lambda: farm.database.outcome(1) == "rejected/no_quotes")
    assert not farm.database.reports[-1].retryable
    assert farm.desk.tags == [1]


# -- a connection with a limit of orders per second ------------------------------------------------------------


async def test_an_order_that_waited_for_its_turn_past_its_deadline_is_not_sent(farm: Farm) -> None:
    farm.desk.bucket = RateLimit(2)
    farm.engine.submit([execution(1, seconds=5), execution(2, seconds=0.2, lane="b")])
    await eventually(lambda: farm.database.outcome(2) == "expired/too_late")
    await eventually(lambda: farm.database.outcome(1) == "completed")
    assert farm.desk.tags == [1]


async def test_the_wait_for_a_turn_counts_before_the_sending(farm: Farm) -> None:
    farm.desk.bucket = RateLimit(10)
    farm.engine.submit([execution(number) for number in range(1, 6)])
    await eventually(lambda: farm.engine.in_flight == 0)
    sent = sorted(report.sent_at for report in farm.database.reports if report.sent_at is not None)
    assert sent[-1] - sent[0] >= timedelta(milliseconds=350)
