"""Levels, expiries and comments that a platform cannot take as they are."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from engine_harness import Desk, eventually, execution
from test_engine import Farm, farm

from agent.model import Ticket

__all__ = ["farm"]

D = Decimal
SL, TP = D("1.09"), D("1.12")


async def done(farm: Farm, number: int = 1) -> None:
    await eventually(lambda: farm.database.outcome(number) == "completed")


def held(desk: Desk) -> list[tuple[Decimal | None, Decimal | None]]:
    return [(position.sl, position.tp) for position in desk.held.values()]


@pytest.mark.covers("S6")
async def test_levels_that_a_market_order_cannot_carry_are_set_right_after_it(farm: Farm) -> None:
    farm.desk.obliging = False
    farm.engine.submit([execution(1, sl=SL, tp=TP)])
    await done(farm)
    first, second = farm.desk.sent
    assert (first.kind, first.sl, first.tp) == ("market", None, None)
    assert (second.kind, second.ticket, second.sl, second.tp) == ("modify", Ticket("T1"), SL, TP)
    (report,) = [r for r in farm.database.reports if r.outcome == "completed"]
    assert [(p.sl, p.tp) for p in report.positions] == [(SL, TP)]


async def test_levels_come_with_the_order_where_the_platform_takes_them(farm: Farm) -> None:
    farm.engine.submit([execution(1, sl=SL)])
    await done(farm)
    (order,) = farm.desk.sent
    assert order.sl == SL


@pytest.mark.covers("S6")
async def test_a_fill_whose_levels_were_refused_is_reported_as_it_stands(farm: Farm) -> None:
    """The database asked for the levels and must see that they are missing."""
    farm.desk.obliging = False
    farm.desk.refuses_changes = True
    farm.engine.submit([execution(1, sl=SL)])
    await done(farm)
    assert held(farm.desk) == [(None, None)]
    (report,) = [r for r in farm.database.reports if r.outcome == "completed"]
    assert [p.sl for p in report.positions] == [None]
    assert report.filled_lots == D("0.50")


@pytest.mark.covers("S5")
async def test_a_refusal_of_the_levels_reports_the_market_price(farm: Farm) -> None:
    farm.desk.refusals[1] = "invalid_stops"
    farm.engine.submit([execution(1, sl=SL)])
    await eventually(lambda: farm.database.outcome(1) == "rejected/invalid_stops")
    (report,) = farm.database.reports
    assert report.quote is not None
    assert (report.quote.bid, report.quote.ask) == (D("1.1"), D("1.1001"))


@pytest.mark.covers("S18")
async def test_an_expiry_is_left_out_where_the_platform_knows_none(farm: Farm) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    order: dict[str, Any] = {"order_type": "limit", "price": D("1.05"), "expires_at": until}
    farm.engine.submit([execution(1, "place", **order)])
    await done(farm)
    farm.desk.obliging = False
    farm.engine.submit([execution(2, "place", **order)])
    await done(farm, 2)
    assert [order.expires_at for order in farm.desk.sent] == [until, None]


async def test_a_comment_is_cut_to_what_the_platform_keeps(farm: Farm) -> None:
    farm.engine.submit([execution(1, comment="night: M #1001")])
    await done(farm)
    (order,) = farm.desk.sent
    assert (order.comment, order.tag) == ("night: M #", 1)
