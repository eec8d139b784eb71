"""Deals of a netting follower: what is summed, what waits for its turn, and how large a deal may be."""

from decimal import Decimal

import pytest
from netting_harness import NettingWorld


def test_a_pending_order_of_a_master_is_no_deal(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.send("M", world.event("ordered", world.position(kind="order", order_type="limit", price="1.05000")))
    assert [e for e in world.acts("N") if e[0] in ("open", "increase")] == []


def test_a_master_reduces_what_waits_for_its_turn(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "1.00")
    p = world.opened("M2", "1.00")
    world.send("M2", world.event("reduced", p | {"lots": "0.50"}))
    world.run()
    assert world.net == Decimal("1.50"), world.acts("N")


def test_two_flips_while_a_deal_is_in_flight(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    world.run()
    world.opened("M2", "0.10")  # a deal in flight
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    world.send("M", world.event("modified", p | {"side": "buy", "lots": "0.70"}))
    world.run()
    assert world.net == Decimal("0.80"), world.acts("N")


def test_closes_above_the_largest_order_are_dealt_in_parts(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "40")
    world.run()
    q = world.opened("M2", "40")
    world.run()
    world.opened("M", "0.01")  # one deal in flight so that both closes are summed
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.send("M2", world.event("closed", q | {"lots": "0"}))
    world.run()
    assert world.net == Decimal("0.01")
    assert max(e["lots"] for e in world.executions("N")) <= 50, world.acts("N")


def test_a_flip_above_the_largest_order_is_dealt_in_parts(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "30")
    world.run()
    world.send("M", world.event("modified", p | {"side": "sell"}))
    world.run()
    assert world.net == Decimal(-30)
    assert max(e["lots"] for e in world.executions("N")) <= 50, world.acts("N")


def test_a_reduction_through_zero_has_no_slippage_limit_and_goes_first(world: NettingWorld) -> None:
    world.copy("M", "N", max_slippage_points=3)
    p = world.opened("M", "1.00")
    world.run()
    world.copy("M2", "N")
    world.opened("M2", "2.00", "sell")
    world.run()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (e,) = world.open_executions("N")
    assert (e["max_slippage_points"], e["priority"]) == (None, 10)


@pytest.mark.own_database
def test_planning_reads_live_links_only(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.db.execute(
        "insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id,"
        " master_ticket, master_side, symbol, side, state, reason, seen_master_lots, ended_at)"
        " select c.user_id, c.id, c.master_account_id, c.follower_account_id, 'h'||n, 'buy', 'EURUSD',"
        " 'buy', 'ended', 'closed', 1, now() from public.copiers c, generate_series(1, 20000) n"
    )
    world.db.execute("analyze")
    world.opened("M")
    world.run()
    world.opened("M")
    rows = world.one("select count(*) from private.net_deltas(%s, 'EURUSD', now())", world.accounts["N"])
    assert rows <= 3


def test_an_open_that_came_while_another_trade_is_being_closed_is_not_lost(world: NettingWorld) -> None:
    world.copy("M", "N")
    a = world.opened("M", "1.00")
    world.run()
    world.send("M", world.event("closed", a | {"lots": "0"}))  # the close is in flight
    world.opened("M", "0.50")  # the next trade waits for it
    world.run()
    world.come_due()
    world.run()
    assert world.net == Decimal("0.50"), (world.acts("N"), world.reasons("N"))


def test_an_increase_that_waits_while_links_settle_among_themselves(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "0.10")  # in flight
    world.opened("M", "0.50")
    q = world.opened("M2", "0.50", "sell")
    world.send("M2", world.event("increased", q | {"lots": "0.70"}))
    world.run()
    world.come_due()
    world.run()
    assert world.net == Decimal("-0.10"), world.acts("N")
