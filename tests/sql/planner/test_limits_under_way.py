"""max_open_lots counts what is on its way, too: trades come faster than brokers answer."""

from decimal import Decimal

import pytest
from netting_harness import NettingWorld


@pytest.mark.parametrize("follower", ["F", "N"])
def test_an_increase_on_its_way_counts_besides_what_is_held(world: NettingWorld, follower: str) -> None:
    world.copy("M", follower, max_open_lots="3")
    p = world.opened("M", "1.00")
    world.settle_both()
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.opened("M", "1.50")
    world.settle_both()
    assert world.held(follower) == 2
    assert world.reasons(follower)["max_open_lots"] == 1


def test_the_orders_of_a_split_count_until_all_are_held(world: NettingWorld) -> None:
    world.db.execute("update public.account_symbols set lots_max = 1 where account_id = %s", (world.accounts["F"],))
    world.copy("M", "F", max_open_lots="4", max_policy="split")
    world.opened("M", "3.00")
    world.fill(world.open_executions("F")[0])
    world.opened("M", "1.50")
    world.settle_both()
    assert world.held("F") == 3


def test_both_sides_of_a_net_deal_count(world: NettingWorld) -> None:
    world.copy("M", "N", max_open_lots="2")
    world.send(
        "M", world.event("opened", world.position("1.00")), world.event("opened", world.position("0.40", "sell"))
    )
    world.opened("M", "1.00")
    world.run()
    assert sum(world.shares().values()) == Decimal("1.40")


def test_a_net_deal_that_stands_in_another_copiers_name_counts(world: NettingWorld) -> None:
    world.copy("M", "N", max_open_lots="2")
    world.copy("M2", "N")
    world.opened("M2", "0.10")
    world.opened("M", "1.50")  # both wait behind the first deal, and go as one
    world.opened("M2", "0.10")
    world.deal(world.open_executions("N")[0])
    world.opened("M", "1.00")
    world.run()
    assert world.shares() == {"M": Decimal("1.50"), "M2": Decimal("0.20")}


def test_a_master_that_flips_twice_frees_both_places(world: NettingWorld) -> None:
    world.copy("M", "F", max_open_positions=1)
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.80"}))
    world.send("M", world.event("modified", p | {"lots": "0.70"}))
    assert [a[:3] for a in world.acts() if a[0] == "open"] == [
        ("open", "buy", "1.00"),
        ("open", "sell", "0.80"),
        ("open", "buy", "0.70"),
    ]
    assert world.reasons("F") == {}
