"""Hedging followers: one order of an open that takes several was given up twice, and both attempts had filled."""

from typing import Any

import pytest
from netting_harness import NettingWorld


@pytest.fixture
def orders(world: NettingWorld) -> list[dict[str, Any]]:
    """F's broker deals no more than 0.40 at once: the open of 1.00 is three orders, of which the first has filled
    twice."""
    world.db.execute("update public.account_symbols set lots_max = 0.40 where account_id = %s", (world.accounts["F"],))
    world.copy("M", "F", max_policy="split", max_age_ms=60000)
    world.opened("M", "1.00", ticket="master")
    first, *others = world.open_executions("F")
    world.report(first, "rejected", reason="requote", retryable=True)
    world.come_due()
    again = next(e for e in world.open_executions("F") if e["id"] == first["id"])
    assert again["attempt"] == 2
    world.report(again, "rejected", reason="trade_disabled")
    for attempt in (first, again):
        world.fill(attempt)
    assert world.book("F") == [("buy", "0.40"), ("buy", "0.40")]
    return others


def test_what_filled_twice_is_closed_once_the_other_orders_are_done(
    world: NettingWorld, orders: list[dict[str, Any]]
) -> None:
    world.settle()
    assert f"{world.held('F'):.2f}" == "1.00", world.acts("F")
    world.send("M", world.event("reduced", world.position("0.50", ticket="master")))
    world.settle()
    assert f"{world.held('F'):.2f}" == "0.50", world.acts("F")


def test_what_filled_twice_is_closed_though_the_other_orders_are_refused(
    world: NettingWorld, orders: list[dict[str, Any]]
) -> None:
    for order in orders:
        world.report(order, "rejected", reason="trade_disabled")
    world.settle()
    assert f"{world.held('F'):.2f}" == "0.40", world.acts("F")
