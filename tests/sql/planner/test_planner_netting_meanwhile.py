"""Netting followers: what happens to the position while a deal of ours is on its way to the broker."""

from decimal import Decimal
from typing import Any

import pytest
from netting_harness import NettingWorld


@pytest.fixture
def mixed(world: NettingWorld) -> dict[str, Any]:
    """On its way: a deal that closes M's copy of 1.00 and opens M2's of 0.40. The position has a stop."""
    world.copy("M", "N")
    world.copy("M2", "N")
    first = world.opened("M", "1.00", sl="1.05000")
    (buy,) = world.open_executions("N")
    world.opened("M2", "0.40")
    world.send("M", world.event("closed", first | {"lots": "0"}))
    world.deal(buy)
    (deal,) = world.open_executions("N")
    assert (deal["action"], deal["side"], f"{deal['lots']:.2f}") == ("open", "sell", "0.60")
    return deal


def test_a_stop_that_was_told_before_the_deal_leaves_each_copy_its_own(
    world: NettingWorld, mixed: dict[str, Any]
) -> None:
    world.net = Decimal(0)
    world.send("N", world.event("closed", world.state()[0], close_reason="sl"))
    world.deal(mixed)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.40"), {"M2": Decimal("0.40")}), world.acts("N")


def test_a_stop_that_only_the_deal_s_report_tells_leaves_each_copy_its_own(
    world: NettingWorld, mixed: dict[str, Any]
) -> None:
    world.net = Decimal(0)
    world.deal(mixed)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.40"), {"M2": Decimal("0.40")}), world.acts("N")


def test_a_trade_by_hand_after_the_deal_stays_its_user_s(world: NettingWorld, mixed: dict[str, Any]) -> None:
    world.deal(mixed)
    world.net += Decimal("0.30")
    world.send("N", world.event("increased", world.state()[0]))
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.70"), {"M2": Decimal("0.40")}), world.acts("N")


def test_a_part_that_its_user_sells_before_the_open_is_told_is_not_closed_again(world: NettingWorld) -> None:
    world.copy("M", "N")
    held = world.opened("M", "1.00")
    (buy,) = world.open_executions("N")
    world.net = Decimal("0.50")  # bought 1.00, and 0.50 sold by hand before the agent looked
    world.report(buy, positions=world.state(), filled_lots="1.00", price="1.10000")
    world.run()
    assert world.shares() == {"M": Decimal("0.50")}
    world.send("M", world.event("closed", held | {"lots": "0"}))
    world.run()
    assert (world.net, world.shares()) == (Decimal(0), {})


def test_a_stop_takes_from_every_copy_that_was_there_and_the_deal_s_own_part_is_dealt_back(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "0.50")
    world.run()
    closing = world.opened("M", "1.00")
    (buy,) = world.open_executions("N")
    world.opened("M2", "0.40")
    world.send("M", world.event("closed", closing | {"lots": "0"}))
    world.deal(buy)
    (deal,) = world.open_executions("N")
    assert (deal["action"], deal["side"], f"{deal['lots']:.2f}") == ("open", "sell", "0.60")
    world.net = Decimal(0)
    world.send("N", world.event("closed", world.state()[0], close_reason="sl"))
    world.deal(deal)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.40"), {"M2": Decimal("0.40")}), world.acts("N")
