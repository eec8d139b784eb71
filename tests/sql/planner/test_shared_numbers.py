"""An order and a position of one account that carry the same number, as on MT5 and cTrader: two different things,
unless the order has become the position."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from planner_harness import World


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    for account in ("M", "F"):
        w.add_symbol(account, "GBPUSD")
    yield w
    assert w.unexplained() == 0


def order(world: World, ticket: str = "7", **more: Any) -> dict[str, Any]:
    return world.position(ticket=ticket, kind="order", order_type="limit", price="1.09000") | more


def held(world: World, account: str) -> list[tuple[str, str, str, str]]:
    """What the mirror shows: kind, symbol, ticket, lots."""
    return [
        (r["kind"], r["symbol"], r["ticket"], f"{r['lots']:.2f}")
        for r in world.rows(
            "select kind, symbol, ticket, lots from public.positions where account_id = %s and lots > 0"
            " order by kind, symbol, ticket",
            world.accounts[account],
        )
    ]


def acts(world: World, account: str = "F") -> list[tuple[str, str]]:
    return [(e["action"], e["symbol"]) for e in world.executions(account)]


def copies(world: World) -> list[tuple[str, str, str]]:
    """The follower's live copies: kind and number at the master, symbol."""
    return [
        (r["master_kind"], r["master_ticket"], r["symbol"])
        for r in world.rows(
            "select master_kind, master_ticket, symbol from public.position_links where state = 'live'"
            " order by master_kind, master_ticket"
        )
    ]


@pytest.mark.covers("P18")
@pytest.mark.parametrize("first", ["order", "position"])
def test_a_masters_order_beside_a_position_of_its_number_is_copied_apart(world: World, first: str) -> None:
    world.copy("M", "F")
    o = order(world)
    p = world.position("0.30", "sell", "7", symbol="GBPUSD")
    events = [world.event("ordered", o), world.event("opened", p)]
    for event in events if first == "order" else reversed(events):
        world.send("M", event)
        world.settle()
    assert held(world, "M") == [("order", "EURUSD", "7", "1.00"), ("position", "GBPUSD", "7", "0.30")]
    assert copies(world) == [("order", "7", "EURUSD"), ("position", "7", "GBPUSD")]
    assert sorted(acts(world)) == [("open", "GBPUSD"), ("place", "EURUSD")]

    world.send("M", world.event("cancelled", o | {"lots": "0"}))
    world.settle()
    assert copies(world) == [("position", "7", "GBPUSD")]
    assert acts(world)[2:] == [("cancel", "EURUSD")]
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert acts(world)[3:] == [("reduce", "GBPUSD"), ("close", "GBPUSD")]
    assert held(world, "F") == []


def test_the_close_of_a_position_leaves_the_order_of_its_number(world: World) -> None:
    world.copy("M", "F")
    o = order(world)
    p = world.position("0.30", ticket="7", symbol="GBPUSD")
    world.send("M", world.event("ordered", o), world.event("opened", p))
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert held(world, "M") == [("order", "EURUSD", "7", "1.00")]
    assert copies(world) == [("order", "7", "EURUSD")]
    assert [(kind, symbol) for kind, symbol, _, _ in held(world, "F")] == [("order", "EURUSD")]
    world.send("M", world.event("amended", o | {"price": "1.08000"}))
    world.settle()
    assert acts(world)[2:] == [("close", "GBPUSD"), ("amend", "EURUSD")]


@pytest.mark.covers("P19")
@pytest.mark.parametrize("named", ["kind and number", "number", "nothing"])
@pytest.mark.parametrize("told", ["event", "snapshot"])
def test_an_order_that_fills_under_its_number_is_one_copy(world: World, named: str, told: str) -> None:
    """An agent that names no kind, or nothing at all, means the order of this number."""
    world.copy("M", "F", sizing_value="0.5")
    o = order(world)
    world.send("M", world.event("ordered", o))
    world.settle()
    link = world.one("select id from public.position_links")
    p = world.position(ticket="7", price="1.09000")
    p |= {"nothing": {}, "number": {"replaces": "7"}, "kind and number": {"replaces": "7", "replaces_kind": "order"}}[
        named
    ]
    event = world.event("opened", p) if told == "event" else world.event("snapshot", positions=[p])
    world.send("M", event)
    assert held(world, "M") == [("position", "EURUSD", "7", "1.00")]
    assert copies(world) == [("position", "7", "EURUSD")]
    assert world.rows("select id, generation from public.position_links") == [{"id": link, "generation": 1}]
    assert acts(world) == [("place", "EURUSD")]
    row = world.rows("select replaced_by, replaced_by_kind from public.positions where kind = 'order' and ticket = '7'")
    assert row == [{"replaced_by": "7", "replaced_by_kind": "position"}]


@pytest.mark.covers("P19")
@pytest.mark.parametrize("number", ["its own", "another"])
def test_a_copied_order_that_fills_under_its_number_stays_the_copy(world: World, number: str) -> None:
    world.copy("M", "F", sizing_value="0.5")
    o = order(world)
    world.send("M", world.event("ordered", o))
    (place,) = world.open_executions("F")
    world.fill(place, ticket="900")
    world.send("M", world.event("opened", world.position(ticket="7", price="1.09000", replaces="7")))
    ticket = "900" if number == "its own" else "901"
    filled = world.position("0.50", ticket=ticket, price="1.09000", tag=str(place["id"]))
    world.send("F", world.event("opened", filled | {"replaces": "900", "replaces_kind": "order"}))
    assert world.open_executions() == []
    assert world.rows("select ticket, ticket_kind, kind, lots from private.link_legs") == [
        {"ticket": ticket, "ticket_kind": "position", "kind": "position", "lots": world.one("select 0.50")}
    ]
    world.send("M", world.event("closed", world.position("0", ticket="7")))
    (close,) = world.open_executions("F")
    assert (close["action"], close["ticket"]) == ("close", ticket)
    world.settle()
    assert held(world, "F") == []
    assert acts(world) == [("place", "EURUSD"), ("close", "EURUSD")]


@pytest.mark.covers("P18")
def test_a_followers_own_position_with_the_number_of_a_copied_order_is_not_the_copy(world: World) -> None:
    world.copy("M", "F")
    world.send("M", world.event("ordered", order(world)))
    (place,) = world.open_executions("F")
    world.fill(place, ticket="900")
    own = world.position("0.20", ticket="900", symbol="GBPUSD")
    world.send("F", world.event("opened", own))
    assert held(world, "F") == [("order", "EURUSD", "900", "1.00"), ("position", "GBPUSD", "900", "0.20")]
    world.send("F", world.event("closed", own | {"lots": "0"}))
    assert world.rows("select ticket_kind, kind from private.link_legs") == [{"ticket_kind": "order", "kind": "order"}]
    world.send("F", world.event("opened", own | {"lots": "0.40"}))
    world.send("M", world.event("cancelled", order(world) | {"lots": "0"}))
    (cancel,) = world.open_executions("F")
    assert (cancel["action"], cancel["ticket"]) == ("cancel", "900")
    world.settle()
    assert held(world, "F") == [("position", "GBPUSD", "900", "0.40")]


def test_a_copy_whose_position_carries_the_number_of_a_users_order(world: World) -> None:
    world.copy("M", "F")
    world.send("F", world.event("ordered", order(world, "900", symbol="GBPUSD")))
    p = world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    world.fill(opening, ticket="900")
    assert held(world, "F") == [("order", "GBPUSD", "900", "1.00"), ("position", "EURUSD", "900", "1.00")]
    world.send("F", world.event("cancelled", order(world, "900", symbol="GBPUSD", lots="0")))
    assert [leg["ticket_kind"] for leg in world.rows("select ticket_kind from private.link_legs")] == ["position"]
    world.send("M", world.event("modified", p | {"sl": "1.05000"}))
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert acts(world) == [("open", "EURUSD"), ("modify", "EURUSD"), ("close", "EURUSD")]
    assert held(world, "F") == []


def test_a_snapshot_shows_an_order_and_a_position_of_one_number(world: World) -> None:
    """The order of this number still waits, so it has not become the position, even of the same symbol and side."""
    world.copy("M", "F")
    o, p = order(world), world.position("0.30", ticket="7")
    world.send("M", world.event("ordered", o))
    world.settle()
    world.send("M", world.event("snapshot", positions=[o, p]))
    world.settle()
    for _ in range(2):
        answer = world.send("M", world.event("snapshot", positions=[o, p]))
        assert answer["results"][0]["missing"] == []
    assert held(world, "M") == [("order", "EURUSD", "7", "1.00"), ("position", "EURUSD", "7", "0.30")]
    assert acts(world) == [("place", "EURUSD"), ("open", "EURUSD")]
    for _ in range(2):
        world.send("M", world.event("snapshot", positions=[p]))
    world.settle()
    assert acts(world)[2:] == [("cancel", "EURUSD")]


@pytest.mark.parametrize("kind", ["position", "order"])
def test_a_re_ticketing_names_which_of_two_equal_numbers_it_continues(world: World, kind: str) -> None:
    world.copy("M", "F", sizing_value="0.5")
    o, p = order(world), world.position("1.00", ticket="7")
    world.send("M", world.event("opened", p), world.event("snapshot", positions=[o, p]))
    world.settle()
    rest = world.position("0.40" if kind == "position" else "1.00", ticket="8", replaces="7", replaces_kind=kind)
    world.send("M", world.event("opened", rest))
    world.settle()
    others = ("order", "7", "EURUSD") if kind == "position" else ("position", "7", "EURUSD")
    assert sorted(copies(world)) == sorted([others, ("position", "8", "EURUSD")])
    assert [action for action, _ in acts(world)][2:] == (["reduce"] if kind == "position" else [])


def test_a_copier_starts_with_an_order_and_a_position_of_one_number(world: World) -> None:
    o, p = order(world), world.position("0.30", ticket="7", symbol="GBPUSD")
    world.db.execute("update public.trading_accounts set snapshot_session = 0 where name = 'M'")
    world.send("M", world.event("snapshot", positions=[o, p]))
    world.copy("M", "F", copy_existing="all")
    world.settle()
    assert sorted(acts(world)) == [("open", "GBPUSD"), ("place", "EURUSD")]


def test_drift_and_resync_tell_an_order_from_a_position_of_its_number(world: World) -> None:
    o, p = order(world), world.position("0.30", ticket="7", symbol="GBPUSD")
    world.send("M", world.event("snapshot", positions=[o, p]))
    copier = world.copy("M", "F")
    items = world.as_user("copier_drift", {"copier_id": copier})["items"]
    assert sorted((i["kind"], i["master_kind"], i["symbol"]) for i in items) == [
        ("missing", "order", "EURUSD"),
        ("missing", "position", "GBPUSD"),
    ]
    item = {"kind": "missing", "master_ticket": "7", "action": "copy"}
    world.as_user("resync_copier", {"copier_id": copier, "items": [item | {"master_kind": "order"}]})
    world.settle()
    assert acts(world) == [("place", "EURUSD")]
    world.as_user("resync_copier", {"copier_id": copier, "items": [item]})
    world.settle()
    assert acts(world) == [("place", "EURUSD"), ("open", "GBPUSD")]


def test_an_account_is_flattened_of_both(world: World) -> None:
    world.send("F", world.event("ordered", order(world, "900")))
    world.send("F", world.event("opened", world.position("0.20", ticket="900", symbol="GBPUSD")))
    world.as_user("flatten_account", {"account_id": world.accounts["F"], "include_manual": True})
    assert sorted(acts(world)) == [("cancel", "EURUSD"), ("close", "GBPUSD")]
    world.settle()
    assert held(world, "F") == []


def test_limits_count_an_order_and_a_position_of_one_number(world: World) -> None:
    world.copy("M", "F", max_open_positions=1)
    world.send("M", world.event("snapshot", positions=[order(world), world.position("0.30", ticket="7")]))
    world.settle()
    assert len(acts(world)) == 1
    assert world.reasons("F") == {"max_open_positions": 1}


@pytest.mark.parametrize("wrong", ["deal", 7, {"kind": "order"}])
def test_a_kind_that_does_not_exist_never_refuses_the_event(world: World, wrong: Any) -> None:
    world.copy("M", "F")
    world.send("M", world.event("ordered", order(world)))
    world.settle()
    p = world.position(ticket="8", price="1.09000", replaces="7", replaces_kind=wrong)
    answer = world.send("M", world.event("opened", p))
    assert answer["results"][0]["status"] == "accepted"
    assert copies(world) == [("position", "8", "EURUSD")]


@pytest.mark.covers("P19")
@pytest.mark.parametrize("symbol", ["EURUSD", "EURUSD.r"])
def test_a_copied_order_that_has_filled_before_its_placing_is_reported_is_the_position(
    world: World, symbol: str
) -> None:
    """The report was sent before the fill, which names nothing, and comes after it; meanwhile the broker may have given
    the symbol another name."""
    world.copy("M", "F")
    world.send("M", world.event("ordered", order(world)))
    (place,) = world.open_executions("F")
    said = order(world, "900", tag=str(place["id"]))
    filled = world.position(ticket="900", price="1.09000", tag=str(place["id"]), symbol=symbol)
    world.send("F", world.event("opened", filled, seq=9002))
    world.report(place, positions=[said], filled_lots="1.00", price="1.09000", seq=9001)
    assert held(world, "F") == [("position", symbol, "900", "1.00")]
    assert world.rows("select ticket, kind from private.link_legs") == [{"ticket": "900", "kind": "position"}]
    assert world.one("select symbol from public.position_links") == symbol
    world.send("M", world.event("cancelled", order(world, lots="0")))
    assert [(e["action"], e["ticket"]) for e in world.open_executions("F")] == [("close", "900")]


@pytest.mark.covers("P19")
def test_a_masters_order_that_is_told_of_after_its_fill_is_not_placed(world: World) -> None:
    world.copy("M", "F")
    world.send("M", world.event("opened", world.position(ticket="7", price="1.09000"), seq=9002))
    world.send("M", world.event("ordered", order(world), seq=9001))
    assert acts(world) == [("open", "EURUSD")]
    assert held(world, "M") == [("position", "EURUSD", "7", "1.00")]


@pytest.mark.covers("P18")
def test_an_order_that_is_told_of_after_another_trade_of_its_number_is_placed(world: World) -> None:
    world.copy("M", "F")
    world.send("M", world.event("opened", world.position("0.30", "sell", "7", symbol="GBPUSD"), seq=9002))
    world.send("M", world.event("ordered", order(world), seq=9001))
    assert acts(world) == [("open", "GBPUSD"), ("place", "EURUSD")]
