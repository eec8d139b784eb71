"""Netting followers: opens that take several orders, and what happens before the last of them is dealt."""

from decimal import Decimal

import pytest
from netting_harness import NettingWorld


@pytest.fixture
def world(world: NettingWorld) -> NettingWorld:
    """N's broker deals no more than 0.40 at once."""
    world.db.execute("update public.account_symbols set lots_max = 0.40 where account_id = %s", (world.accounts["N"],))
    world.copy("M", "N", max_policy="split", max_age_ms=60000)
    return world


def deal_next(world: NettingWorld, lots: str, filled: str | None = None) -> None:
    (execution,) = world.open_executions("N")
    assert f"{execution['lots']:.2f}" == lots
    world.deal(execution, None if filled is None else Decimal(filled))


def holds(world: NettingWorld, lots: str) -> bool:
    return (world.net, world.shares()) == (Decimal(lots), {"M": Decimal(lots)})


@pytest.mark.parametrize("reduced_to", ["0.90", "0.70", "0.50", "0.41", "0.40", "0.30", "0.01"])
@pytest.mark.parametrize("orders_done", [0, 1, 2])
def test_a_master_reduced_before_the_last_order_is_copied_exactly(
    world: NettingWorld, orders_done: int, reduced_to: str
) -> None:
    p = world.opened("M", "1.00")
    for _ in range(orders_done):
        deal_next(world, "0.40")
    world.send("M", world.event("reduced", p | {"lots": reduced_to}))
    world.run()
    assert holds(world, reduced_to), world.acts("N")
    # and what comes after it is measured from there
    world.send("M", world.event("increased", p | {"lots": "1.20"}))
    world.run()
    assert holds(world, "1.20"), world.acts("N")
    world.send("M", world.event("reduced", p | {"lots": "0.60"}))
    world.run()
    assert holds(world, "0.60"), world.acts("N")


def test_a_master_that_reduces_twice_between_the_orders(world: NettingWorld) -> None:
    p = world.opened("M", "1.20")
    deal_next(world, "0.40")
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    deal_next(world, "0.40")
    world.send("M", world.event("reduced", p | {"lots": "0.90"}))
    world.run()
    assert holds(world, "0.90"), world.acts("N")
    world.send("M", world.event("reduced", p | {"lots": "0.30"}))
    world.run()
    assert holds(world, "0.30"), world.acts("N")


def test_an_increase_of_several_orders_shrinks_with_its_master(world: NettingWorld) -> None:
    p = world.opened("M", "0.20")
    world.run()
    world.send("M", world.event("increased", p | {"lots": "1.00"}))
    deal_next(world, "0.40")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.run()
    assert holds(world, "0.50"), world.acts("N")


def test_an_increase_behind_the_last_order_is_copied_beside_it(world: NettingWorld) -> None:
    p = world.opened("M", "0.60")
    deal_next(world, "0.40")
    world.send("M", world.event("increased", p | {"lots": "0.80"}))
    world.run()
    assert holds(world, "0.80"), world.acts("N")
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    world.run()
    assert holds(world, "0.40"), world.acts("N")


def test_the_rest_of_an_open_waits_while_an_order_is_tried_again(world: NettingWorld) -> None:
    world.opened("M", "1.00")
    (first,) = world.open_executions("N")
    world.report(first, "rejected", reason="requote", retryable=True)
    world.come_due()
    world.run()
    assert holds(world, "1.00"), world.acts("N")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_an_order_that_is_refused_leaves_the_copy_in_proportion(world: NettingWorld, order: int) -> None:
    p = world.opened("M", "1.00")
    for _ in range(order - 1):
        deal_next(world, "0.40")
    (refused,) = world.open_executions("N")
    world.report(refused, "rejected", reason="trade_disabled")
    world.run()
    left = {1: "0.60", 2: "0.60", 3: "0.80"}[order]
    assert holds(world, left), world.acts("N")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.run()
    assert holds(world, {"0.60": "0.30", "0.80": "0.40"}[left]), world.acts("N")


def test_an_order_that_fills_in_part_leaves_the_copy_in_proportion(world: NettingWorld) -> None:
    p = world.opened("M", "1.00")
    deal_next(world, "0.40")
    deal_next(world, "0.40", filled="0.20")
    world.run()
    assert holds(world, "0.80"), world.acts("N")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.run()
    assert holds(world, "0.40"), world.acts("N")
