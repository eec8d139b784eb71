"""A copy that is decided later than its master's trade gets its share of what the master has left."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld

SPEC = {
    "contract_size": "100000", "tick_size": "0.00001", "digits": 5, "profit_currency": "USD", "margin_currency": "EUR",
    "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01",
}  # fmt: skip


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[NettingWorld]:
    """The lists of F and N are being told, without EURUSD so far."""
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    for name, mode in (("F", "hedging"), ("N", "netting")):
        w.add_account(name, vps="b", mode=mode)
        w.db.execute("delete from public.account_symbols where account_id = %s", (w.accounts[name],))
        tell(w, name, complete=False)
    yield w
    assert w.unexplained() == 0


def tell(world: NettingWorld, account: str, *symbols: str, complete: bool | None = None, **spec: Any) -> None:
    entries = [{"name": s} | SPEC | spec for s in symbols]
    report = {"account_id": world.accounts[account], "epoch": 1, "symbols": entries, "symbols_complete": complete}
    world.as_agent(account, "report_account_state", report)


def opens(world: NettingWorld, account: str = "F") -> list[str]:
    return [f"{e['lots']:.2f}" for e in world.executions(account) if e["action"] in ("open", "increase")]


FIXED = {"sizing_mode": "fixed", "sizing_value": "0.10"}


@pytest.mark.covers("X37")
@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize(
    ("settings", "left", "share"),
    [
        (FIXED, "0.10", "0.01"),
        (FIXED, "0.55", "0.05"),
        (FIXED, "0.01", "0.01"),  # the last of a copy is never taken
        ({"sizing_value": "1"}, "0.40", "0.40"),
        ({"sizing_value": "1", "max_lots": "0.50"}, "0.50", "0.25"),
        ({"sizing_mode": "risk_percent", "sizing_value": "1"}, "0.50", "0.05"),
    ],
)
def test_a_copy_that_waited_while_its_master_was_reduced_gets_its_share(
    world: NettingWorld, follower: str, settings: dict[str, Any], left: str, share: str
) -> None:
    world.copy("M", follower, **settings)
    p = world.opened("M", "1.00", sl="1.09000")
    world.send("M", world.event("reduced", p | {"lots": left}))
    tell(world, follower, "EURUSD")
    assert opens(world, follower) == [share]
    assert world.one("select count(*) from private.symbol_waits") == 0


@pytest.mark.covers("X37")
def test_the_share_is_that_of_the_most_that_the_master_had(world: NettingWorld) -> None:
    world.copy("M", "F", **FIXED)
    p = world.opened("M", "0.50")
    for kind, lots in (("increased", "2.00"), ("reduced", "0.20"), ("increased", "0.60")):
        world.send("M", world.event(kind, p | {"lots": lots}))
    tell(world, "F", "EURUSD")
    assert opens(world) == ["0.03"]


@pytest.mark.covers("X37")
@pytest.mark.parametrize("kind", ["position", None])
def test_what_is_left_of_a_trade_under_a_new_ticket_waits_as_the_same_trade(
    world: NettingWorld, kind: str | None
) -> None:
    """As on MT4, where a partial close gives what is left another ticket."""
    world.copy("M", "F", **FIXED)
    p = world.opened("M", "1.00")
    named = {"replaces": p["ticket"]} | ({"replaces_kind": kind} if kind else {})
    world.send("M", world.event("reduced", world.position("0.30") | named))
    assert world.one("select count(*) from private.symbol_waits") == 1
    tell(world, "F", "EURUSD")
    assert opens(world) == ["0.03"]
    reasons = world.rows("select reason from public.copy_outcomes order by event_id")
    assert [row["reason"] for row in reasons] == [None, "coalesced"]


@pytest.mark.covers("X37")
def test_an_increase_that_waited_gets_the_share_that_is_left_of_it(world: NettingWorld) -> None:
    tell(world, "F", "EURUSD")
    world.copy("M", "F", **FIXED)
    p = world.opened("M", "1.00")
    world.settle()
    world.db.execute("delete from public.account_symbols where account_id = %s", (world.accounts["F"],))
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.send("M", world.event("reduced", p | {"lots": "1.20"}))
    tell(world, "F", "EURUSD")
    assert opens(world) == ["0.10", "0.02"]


@pytest.mark.covers("X37")
def test_orders_of_a_split_are_cut_and_none_below_the_smallest_volume_is_sent(world: NettingWorld) -> None:
    world.copy("M", "F", max_policy="split")
    p = world.opened("M", "1.00")
    world.send("M", world.event("reduced", p | {"lots": "0.52"}))
    tell(world, "F", "EURUSD", lots_max="0.25", lots_min="0.05")
    assert opens(world) == ["0.25", "0.25"]


@pytest.mark.covers("X37")
def test_what_a_user_asked_for_and_the_master_reduced_since_gets_its_share(world: NettingWorld) -> None:
    p = world.opened("M", "1.00")
    world.copy("M", "F", copy_existing="all", **FIXED)
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    tell(world, "F", "EURUSD")
    assert opens(world) == ["0.04"]


@pytest.mark.covers("X37")
@pytest.mark.parametrize(("changed", "opened", "then"), [("0.10", "0.05", "0.02"), ("1.50", "0.50", "0.50")])
def test_an_order_that_the_market_is_taken_for_gets_the_share_that_is_left(
    world: NettingWorld, changed: str, opened: str, then: str
) -> None:
    """The master's order fills and is reduced; its copy does not fill within the grace period."""
    tell(world, "F", "EURUSD")
    world.copy("M", "F", sizing_value="0.5", pending_grace_ms=0)
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    p = world.position(price="1.09000", replaces=o["ticket"])
    world.send("M", world.event("opened", p))
    (cancel,) = world.open_executions("F")
    kind = "reduced" if changed < "1.00" else "increased"
    world.send("M", world.event(kind, p | {"lots": changed}))
    world.fill(cancel)
    assert opens(world)[0] == opened
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.05" if changed < "1.00" else "1.00"}))
    world.settle()
    assert world.book("F") == [("buy", then)]


@pytest.mark.covers("X37")
@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize(("left", "more"), [("1.10", "0.01"), ("1.55", "0.05"), ("2.00", "0.10")])
def test_an_increase_that_waited_for_an_order_in_flight_gets_the_share_that_is_left_of_it(
    world: NettingWorld, follower: str, left: str, more: str
) -> None:
    tell(world, follower, "EURUSD")
    world.copy("M", follower, **FIXED)
    p = world.opened("M", "1.00")
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    if left < "2.00":
        world.send("M", world.event("reduced", p | {"lots": left}))
    world.settle_both()
    assert opens(world, follower) == ["0.10", more]


@pytest.mark.covers("X37")
def test_a_turn_that_waited_for_an_order_in_flight_gets_the_share_that_is_left_of_it(world: NettingWorld) -> None:
    tell(world, "F", "EURUSD")
    world.copy("M", "F", **FIXED)
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.05000"}))
    turned = p | {"side": "sell", "lots": "2.00"}
    world.send("M", world.event("modified", turned))
    world.send("M", world.event("reduced", turned | {"lots": "0.50"}))
    world.settle()
    assert opens(world) == ["0.10", "0.02"]
    assert world.book("F") == [("sell", "0.02")]


@pytest.mark.covers("X37")
def test_what_grows_again_is_an_increase_of_its_own(world: NettingWorld) -> None:
    tell(world, "F", "EURUSD")
    world.copy("M", "F", **FIXED)
    p = world.opened("M", "1.00")
    for kind, lots in (("increased", "2.00"), ("reduced", "1.00"), ("increased", "1.50")):
        world.settle()
        world.send("M", world.event(kind, p | {"lots": lots}))
    world.settle()
    assert opens(world) == ["0.10", "0.10", "0.10"]


@pytest.mark.covers("X37")
def test_the_market_is_taken_in_orders_of_the_largest_volume(world: NettingWorld) -> None:
    """The copy of one order was several; none of what replaces them may be larger."""
    tell(world, "F", "EURUSD", lots_max="0.25", lots_min="0.05")
    world.copy("M", "F", max_policy="split", pending_grace_ms=0)
    o = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    p = world.position("1.00", price="1.09000", replaces=o["ticket"])
    world.send("M", world.event("opened", p))
    world.send("M", world.event("reduced", p | {"lots": "0.52"}))
    world.settle()
    assert opens(world) == ["0.25", "0.22", "0.05"]
    world.send("M", world.event("reduced", p | {"lots": "0.26"}))
    world.settle()
    assert world.held("F") == Decimal("0.26")
