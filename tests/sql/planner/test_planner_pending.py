"""Pending orders of masters, their copies, and what becomes of both."""

from decimal import Decimal
from typing import Any

from netting_harness import NettingWorld


def test_a_copy_that_fills_after_its_master_filled_and_reduced(world: NettingWorld) -> None:
    world.copy("M", "F")
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    mine = world.one("select ticket from private.link_legs")
    f = world.position(price="1.09000", replaces=o["ticket"])
    world.send("M", world.event("opened", f))
    world.send("M", world.event("reduced", f | {"lots": "0.30"}))
    world.send("F", world.event("opened", world.position(ticket=mine, price="1.09000")))
    world.settle()
    assert world.book("F") == [("buy", "0.30")], world.acts()


def test_a_copy_that_fills_while_its_cancel_is_in_flight(world: NettingWorld) -> None:
    """S15: the fill is pushed first, the cancel is refused after it."""
    world.copy("M", "F")
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    mine = world.one("select ticket from private.link_legs")
    world.send("M", world.event("cancelled", o | {"lots": "0"}))
    (c,) = world.open_executions("F")
    world.send("F", world.event("opened", world.position(ticket=mine, price="1.09000")))
    world.report(c, "rejected", reason="position_not_found")
    for _ in range(3):
        world.come_due()
        for e in world.open_executions("F"):
            if e["action"] == "cancel":
                world.report(e, "rejected", reason="position_not_found")
            elif e["status"] == "queued":
                world.fill(e)
    assert world.book("F") == [], world.acts()


def test_a_refused_amend_is_asked_again(world: NettingWorld) -> None:
    world.copy("M", "F")
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    world.send("M", world.event("amended", o | {"price": "1.08"}))
    (m,) = world.open_executions("F")
    world.report(m, "rejected", reason="invalid_price")
    world.come_due()
    assert [e["action"] for e in world.open_executions("F")] == ["amend"], world.acts()


def test_an_order_amended_in_volume(world: NettingWorld) -> None:
    world.copy("M", "F")
    o = world.position(kind="order", order_type="limit", price="1.09000", lots="2.00")
    world.send("M", world.event("ordered", o))
    world.settle()
    world.send("M", world.event("amended", o | {"lots": "1.00"}))
    world.settle()
    mine = world.one("select ticket from private.link_legs")
    f = world.position("1.00", price="1.09000", replaces=o["ticket"])
    world.send("M", world.event("opened", f))
    world.send(
        "F",
        world.event(
            "opened", world.position(str(world.one("select lots from private.link_legs")), ticket=mine, price="1.09000")
        ),
    )
    world.settle()
    assert world.book("F") == [("buy", "1.00")], world.acts()


def test_a_place_reported_after_its_cancel_leaves_no_phantom(world: NettingWorld) -> None:
    world.copy("M", "F")
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    (place,) = world.open_executions("F")
    world.send("M", world.event("cancelled", o | {"lots": "0"}))
    close = next(e for e in world.open_executions("F") if e["action"] == "close")
    mine = world.position(kind="order", order_type="limit", price="1.09000", ticket="77")
    world.report(close, positions=[mine | {"lots": "0"}], filled_lots="1.00", seq=9001)
    world.report(place, positions=[mine], filled_lots="1.00", seq=9000)  # older number, later delivery
    assert world.rows("select 1 from private.link_legs") == [], world.acts()


def test_a_master_flips_twice_while_the_cancel_of_the_copied_order_is_under_way(world: NettingWorld) -> None:
    world.copy("M", "F")
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    p = world.position(price="1.09000", replaces=o["ticket"])
    world.send("M", world.event("opened", p))
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    world.send("M", world.event("modified", p | {"side": "buy", "lots": "0.70"}))
    for _ in range(6):
        for e in world.open_executions("F"):
            if e["action"] == "close" and e["ticket"] is None:
                world.report(e, filled_lots="0")
            else:
                world.fill(e)
    assert world.book("F") == [("buy", "0.70")], world.acts()


def netted(world: NettingWorld) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A netting master holds 0.40 and an order of 0.20, both copied. Its position, its order, the ticket of the order's
    copy."""
    world.db.execute("update public.trading_accounts set mode = 'netting' where name = 'M'")
    world.copy("M", "F", sizing_value="0.5", early_fill_policy="keep")
    p = world.opened("M", "0.40", sl="1.08000")
    world.settle()
    o = world.position("0.20", kind="order", order_type="limit", price="1.09000", sl="1.08500")
    world.send("M", world.event("ordered", o))
    world.settle()
    return p, o, world.one("select ticket from private.link_legs where kind = 'order'")


def test_an_order_that_fills_into_a_netting_masters_position_is_copied_once(world: NettingWorld) -> None:
    """The copy of the order has filled before: it becomes part of the position's copy, takes its levels and goes with
    it."""
    p, o, mine = netted(world)
    world.send("F", world.event("opened", world.position("0.10", ticket=mine, price="1.09000", sl="1.08500")))
    grown = p | {"lots": "0.60", "sl": "1.08500", "replaces": o["ticket"]}
    world.send("M", world.event("increased", grown))
    assert [e["action"] for e in world.open_executions("F")] == ["modify", "modify"]
    world.settle()
    assert world.book("F") == [("buy", "0.10"), ("buy", "0.20")]
    world.send("M", world.event("reduced", grown | {"lots": "0.30"}))
    world.settle()
    assert world.book("F") == [("buy", "0.15")], world.acts()
    world.send("M", world.event("closed", grown | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    assert world.rows("select 1 from public.positions m where m.closed_at is null") == []


def test_an_order_that_fills_into_a_netting_masters_position_before_its_copy_does(world: NettingWorld) -> None:
    """The copy of the order is cancelled, and the increase copied as any other."""
    p, o, _ = netted(world)
    world.send("M", world.event("increased", p | {"lots": "0.60", "replaces": o["ticket"]}))
    world.settle()
    assert world.book("F") == [("buy", "0.10"), ("buy", "0.20")], world.acts()
    assert world.rows("select 1 from private.link_legs where kind = 'order'") == []
    assert world.unexplained() == 0


def test_an_order_that_reduces_a_netting_masters_position_leaves_no_opposite_copy(world: NettingWorld) -> None:
    p, o, mine = netted(world)
    world.send("M", world.event("cancelled", o | {"lots": "0"}))
    world.settle()
    s = world.position("0.20", "sell", kind="order", order_type="stop", price="1.08500")
    world.send("M", world.event("ordered", s))
    world.settle()
    mine = world.one("select ticket from private.link_legs where kind = 'order'")
    world.send("F", world.event("opened", world.position("0.10", "sell", ticket=mine, price="1.08500")))
    world.send("M", world.event("reduced", p | {"lots": "0.20", "replaces": s["ticket"]}))
    world.settle()
    assert world.book("F") == [("buy", "0.10")], world.acts()


def test_an_early_fill_is_not_left_behind_though_its_copier_was_off_when_the_masters_order_filled(
    world: NettingWorld,
) -> None:
    """Its order did fill: early_fill_policy has no say. What was missed while off is not copied, so it is closed."""
    p, o, mine = netted(world)
    world.send("F", world.event("opened", world.position("0.10", ticket=mine, price="1.09000", sl="1.08500")))
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "off"})
    world.send("M", world.event("increased", p | {"lots": "0.60", "replaces": o["ticket"]}))
    assert world.rows("select 1 from public.position_links where state <> 'live'") == []
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "on"})
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_a_snapshot_tells_that_an_order_has_filled_into_a_netting_masters_position(world: NettingWorld) -> None:
    """The master's agent was away meanwhile: the copy of the order must not wait for a price for ever."""
    p, o, _ = netted(world)
    grown = p | {"lots": "0.60", "replaces": o["ticket"]}
    world.send("M", world.event("snapshot", positions=[grown]))
    world.settle()
    assert world.book("F") == [("buy", "0.10"), ("buy", "0.20")], world.acts()
    assert world.rows("select 1 from private.link_legs where kind = 'order'") == []


def test_a_report_tells_that_an_order_has_filled_into_a_netting_masters_position(world: NettingWorld) -> None:
    """N nets, copies M2, and leads F: the report of its own deal may be the first to show what its user's order has
    come to."""
    world.copy("M2", "N")
    world.copy("N", "F")
    q = world.opened("M2", "0.40")
    world.settle_both()
    o = world.position("0.20", kind="order", order_type="limit", price="1.09000")
    world.send("N", world.event("ordered", o))
    world.settle_both()
    world.send("M2", world.event("increased", q | {"lots": "0.50"}))
    (execution,) = world.open_executions("N")
    world.net += execution["lots"] + Decimal("0.20")
    world.report(
        execution, positions=world.state(replaces=o["ticket"]), filled_lots=str(execution["lots"]), price="1.10000"
    )
    world.settle_both()
    assert world.held("F") == Decimal("0.70"), world.acts()
    assert world.rows("select 1 from private.link_legs where kind = 'order'") == []


def test_an_order_that_fills_into_a_position_copied_at_another_ratio_is_not_sold_again(world: NettingWorld) -> None:
    """Of a fixed 0.20 each, half of the first is sold, then the order's whole copy joins it."""
    world.db.execute("update public.trading_accounts set mode = 'netting' where name = 'M'")
    world.copy("M", "F", sizing_mode="fixed", sizing_value="0.20")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    o = world.position("0.50", kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    mine = world.one("select ticket from private.link_legs where kind = 'order'")
    world.send("F", world.event("opened", world.position("0.20", ticket=mine, price="1.09000")))
    world.send("M", world.event("increased", p | {"lots": "1.00", "replaces": o["ticket"]}))
    world.settle()
    assert world.book("F") == [("buy", "0.10"), ("buy", "0.20")], world.acts()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    assert world.held("F") == Decimal("0.15"), world.acts()
