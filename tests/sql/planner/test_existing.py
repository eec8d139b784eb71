"""What the master holds when a copier is made: copied or not, decided once, and always with a reason."""

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
    yield w
    assert w.unexplained() == 0


def holds(world: World, *positions: dict[str, Any]) -> None:
    """What the master's very first snapshot shows, an hour before any copier."""
    world.db.execute(
        "update public.trading_accounts set snapshot_session = 0, seen_at = null where id = %s", (world.accounts["M"],)
    )
    world.send("M", world.event("snapshot", positions=list(positions), unchanged_at=None))
    world.db.execute(
        "update public.positions set first_seen_at = now() - interval '1 hour', unseen_at = now() - interval '1 hour'"
        " where account_id = %s",
        (world.accounts["M"],),
    )


def quote(world: World, bid: str, ask: str, age_s: int = 0) -> None:
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s, quoted_at = now() - make_interval(secs => %s)"
        " where account_id = %s",
        (bid, ask, age_s, world.accounts["F"]),
    )


def maintain(world: World) -> None:
    world.one("select private.maintain_executions()")


def opens(world: World) -> list[tuple[str, str]]:
    return [(e["action"], f"{e['lots']:.2f}") for e in world.executions("F")]


def test_nothing_is_copied_by_default(world: World) -> None:
    p = world.position("1.00")
    holds(world, p)
    world.copy("M", "F")
    assert opens(world) == []
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    assert opens(world) == []
    assert world.reasons("F") == {"existing": 1}


def test_all_that_the_master_holds_is_copied_at_the_start(world: World) -> None:
    p = world.position("1.00", sl="1.09000")
    order = world.position("2.00", kind="order", order_type="limit", price="1.05000")
    holds(world, p, order)
    world.copy("M", "F", copy_existing="all", sizing_value="0.5")
    assert sorted(opens(world)) == [("open", "0.50"), ("place", "1.00")]
    assert [e["sl"] is not None for e in world.executions("F") if e["action"] == "open"] == [True]
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "1.00")]


def test_only_the_start_counts(world: World) -> None:
    """Saved later, the setting changes nothing; a position that was refused at the start does not come back."""
    p = world.position("1.00")
    holds(world, p)
    copier = world.copy("M", "F", copy_existing="all", sides="sell")
    assert world.reasons("F") == {"side_filtered": 1}
    world.as_user("save_copier", {"id": copier, "sides": "both", "copy_existing": "all"})
    maintain(world)
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    assert opens(world) == []


def test_limits_hold_for_what_is_copied_at_once(world: World) -> None:
    holds(world, *(world.position("1.00") for _ in range(5)))
    world.copy("M", "F", copy_existing="all", max_open_positions=2)
    assert opens(world) == [("open", "1.00")] * 2
    assert world.reasons("F") == {"max_open_positions": 3}


def test_limits_hold_within_one_call_of_events(world: World) -> None:
    world.copy("M", "F", max_open_lots="2.5")
    world.send("M", *(world.event("opened", world.position("1.00")) for _ in range(5)))
    assert opens(world) == [("open", "1.00")] * 2
    assert world.reasons("F") == {"max_open_lots": 3}


@pytest.mark.parametrize(
    ("side", "bid", "ask", "reason"),
    [
        ("buy", "1.09990", "1.10020", None),  # the ask counts for a buy: 20 points
        ("buy", "1.09991", "1.10021", "price_moved"),
        ("buy", "1.09970", "1.09980", None),  # better counts as well
        ("buy", "1.09969", "1.09979", "price_moved"),
        ("sell", "1.10020", "1.10050", None),  # the bid for a sell
        ("sell", "1.10021", "1.10051", "price_moved"),
    ],
)
def test_near_copies_what_the_price_has_not_left(
    world: World, side: str, bid: str, ask: str, reason: str | None
) -> None:
    holds(world, world.position("1.00", side))  # opened at 1.10000
    quote(world, bid, ask)
    world.copy("M", "F", copy_existing="near", copy_existing_points=20)
    assert opens(world) == ([] if reason else [("open", "1.00")])
    assert world.reasons("F") == ({reason: 1} if reason else {})


def test_near_waits_for_a_quote_and_then_decides(world: World) -> None:
    holds(world, world.position("1.00"))
    quote(world, "1.09990", "1.10010", age_s=61)
    world.copy("M", "F", copy_existing="near", copy_existing_points=20)
    maintain(world)
    assert (opens(world), world.reasons("F")) == ([], {})
    beat = world.call(world.agents["b"], "vps_heartbeat", {})
    (mine,) = [a for a in beat["assignments"] if a["account_id"] == world.accounts["F"]]
    assert mine["watch_symbols"] == ["EURUSD"]  # its agent is asked to quote it
    quote(world, "1.09990", "1.10010")
    maintain(world)
    assert opens(world) == [("open", "1.00")]
    maintain(world)
    assert opens(world) == [("open", "1.00")]
    assert world.one("select existing_until from public.copiers") is None


def test_near_without_a_quote_is_refused_when_the_wait_is_over(world: World) -> None:
    p = world.position("1.00")
    holds(world, p)
    quote(world, "1.09990", "1.10010", age_s=61)
    world.copy("M", "F", copy_existing="near", copy_existing_points=20)
    world.db.execute("update public.copiers set existing_until = now() where true")
    maintain(world)
    assert world.reasons("F") == {"no_quote": 1}
    quote(world, "1.09990", "1.10010")
    maintain(world)
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    assert opens(world) == []


def test_what_is_closed_before_the_quote_comes_is_not_opened(world: World) -> None:
    p = world.position("1.00")
    holds(world, p)
    quote(world, "1.09990", "1.10010", age_s=61)
    world.copy("M", "F", copy_existing="near", copy_existing_points=20)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    quote(world, "1.09990", "1.10010")
    maintain(world)
    assert opens(world) == []


def test_a_master_that_nobody_watches_may_have_closed_long_ago(world: World) -> None:
    holds(world, world.position("1.00"))
    world.db.execute("update public.vps_instances set lease_expires_at = now() where name = 'a'")
    world.copy("M", "F", copy_existing="all")
    assert world.reasons("F") == {"master_offline": 1}


def test_a_netting_follower_gets_the_sum(world: World) -> None:
    world.add_account("N", vps="b", mode="netting")
    holds(world, world.position("1.00"), world.position("0.40", "sell"))
    world.copy("M", "N", copy_existing="all")
    assert [(e["side"], f"{e['lots']:.2f}") for e in world.executions("N")] == [("buy", "0.60")]


@pytest.mark.parametrize("copy_existing", ["none", "all"])
@pytest.mark.parametrize("mode", ["hedging", "netting"])
def test_an_order_that_stood_at_the_start_is_copied_at_its_fill_where_orders_are_not(
    world: World, mode: str, copy_existing: str
) -> None:
    world.db.execute("update public.trading_accounts set mode = %s where id = %s", (mode, world.accounts["F"]))
    order = world.position("1.00", kind="order", order_type="limit", price="1.05000")
    holds(world, order, world.position("2.00"))
    world.copy("M", "F", copy_existing=copy_existing, copy_pending=mode == "netting", sanity_factor=None)
    world.settle()
    before = len(opens(world))
    world.send("M", world.event("amended", order | {"price": "1.06000"}))
    assert world.reasons("F") == {"copied_at_fill": 1}
    world.send("M", world.event("opened", world.position("1.00", replaces=order["ticket"])))
    assert opens(world)[before:] == [("open", "1.00")]


def test_an_order_that_stood_at_the_start_is_not_copied_at_its_fill_where_orders_are(world: World) -> None:
    order = world.position("1.00", kind="order", order_type="limit", price="1.05000")
    holds(world, order)
    world.copy("M", "F")
    world.send("M", world.event("opened", world.position("1.00", replaces=order["ticket"])))
    assert opens(world) == []
    assert world.reasons("F") == {"existing": 1}
