"""Levels that stand no longer, or never came to stand: whatever happens in between, they are asked for anew."""

from decimal import Decimal
from typing import Any

import pytest
from netting_harness import NettingWorld


def test_a_net_position_that_comes_back_gets_its_levels_again(world: NettingWorld) -> None:
    """Another copy took the position to nothing, and its stop loss with it; the end of that copy opens it anew."""
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "0.30", sl="1.05000")
    world.run()
    other = world.opened("M2", "0.30", "sell")
    world.run()
    assert world.net == 0
    world.send("M2", world.event("closed", other | {"lots": "0"}))
    world.run()
    assert (world.net, world.levels) == (Decimal("0.30"), (Decimal("1.05"), None)), world.acts("N")


def refused_change(world: NettingWorld, follower: str) -> dict[str, Any]:
    """A copy of 0.50 with a stop loss whose change its broker refused; returns the master's position."""
    world.copy("M", follower)
    p = world.opened("M", "0.50", sl="1.05000")
    world.settle_both()
    p |= {"sl": "1.06000"}
    world.send("M", world.event("modified", p))
    (change,) = world.open_executions(follower)
    world.report(change, "rejected", reason="trade_disabled")
    return p


@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize("lots", ["0.30", "0.80"])
def test_refused_levels_are_asked_again_though_another_order_was_filled_meanwhile(
    world: NettingWorld, follower: str, lots: str
) -> None:
    p = refused_change(world, follower)
    world.send("M", world.event("reduced" if lots == "0.30" else "increased", p | {"lots": lots}))
    world.settle_both()
    world.come_due()
    assert {(e["action"], f"{e['sl']:.5f}") for e in world.open_executions(follower)} == {("modify", "1.06000")}


def test_levels_refused_for_one_of_two_positions_are_asked_again(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "0.50", sl="1.05000")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "0.80"}))
    world.settle()
    world.send("M", world.event("modified", p | {"lots": "0.80", "sl": "1.06000"}))
    first, second = world.open_executions("F")
    world.report(first, "rejected", reason="trade_disabled")
    world.fill(second)
    world.come_due()
    assert [e["ticket"] for e in world.open_executions("F")] == [first["ticket"], second["ticket"]]


def test_levels_that_were_wanted_again_before_they_ever_stood(world: NettingWorld) -> None:
    """A change that waited gave way to a reduction, and to another change; then the master went back to it."""
    world.copy("M", "F")
    p = world.opened("M", "0.50", sl="1.05000")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.06000"}))
    (change,) = world.open_executions("F")
    world.report(change, "rejected", reason="requote", retryable=True)
    world.send("M", world.event("reduced", p | {"lots": "0.30", "sl": "1.07000"}))
    world.come_due()
    (reduction,) = world.open_executions("F")
    world.send("M", world.event("modified", p | {"lots": "0.30", "sl": "1.06000"}))
    world.fill(reduction)
    world.settle()
    assert world.one("select sl from public.positions where account_id = %s", world.accounts["F"]) == Decimal("1.06"), (
        world.acts()
    )


def test_levels_that_stood_on_one_of_two_positions_go_back_on_both(world: NettingWorld) -> None:
    """While the copier is off the master goes back to the levels that the other position still has."""
    world.copy("M", "F")
    p = world.opened("M", "0.50", sl="1.05000")
    world.settle()
    p |= {"lots": "0.80"}
    world.send("M", world.event("increased", p))
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.06000"}))
    first, second = world.open_executions("F")
    world.fill(first)
    world.report(second, "rejected", reason="requote", retryable=True)
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "off"})
    world.send("M", world.event("modified", p))
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "on"})
    world.settle()
    stand = world.rows("select sl from public.positions where account_id = %s", world.accounts["F"])
    assert [row["sl"] for row in stand] == [Decimal("1.05")] * 2, world.acts()


def test_what_is_filled_after_all_gets_the_levels_that_were_asked_since(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "0.50")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "0.80"}))
    (increase,) = world.open_executions("F")
    world.report(increase, "expired", reason="too_late")
    world.send("M", world.event("modified", p | {"lots": "0.80", "sl": "1.06000"}))
    world.settle()
    world.fill(increase)
    world.settle()
    stand = world.rows("select sl from public.positions where account_id = %s", world.accounts["F"])
    assert [row["sl"] for row in stand] == [Decimal("1.06")] * 2, world.acts()
