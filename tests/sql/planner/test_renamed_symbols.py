"""A broker renames a symbol: what is open, and its copies, go on under the new name."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld
from planner_harness import World

NEW = "EURUSD.r"


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.db.execute("update public.trading_accounts set symbols_complete = true")
    yield w
    assert w.unexplained() == 0


def acts(world: World, account: str = "F") -> list[tuple[str, str, str]]:
    return [(e["action"], e["symbol"], f"{e['lots']:.2f}") for e in world.executions(account)]


def alerts(world: World, account: str) -> list[dict[str, Any]]:
    return world.rows(
        "select message, detail from public.alerts where account_id = %s and reason = 'symbol_renamed'",
        world.accounts[account],
    )


def own(world: World, account: str = "F") -> list[dict[str, Any]]:
    """What the account's mirror shows, as an agent reports it."""
    return [
        {
            "ticket": r["ticket"], "kind": r["kind"], "symbol": r["symbol"], "side": r["side"],
            "lots": str(r["lots"]), "price": str(r["price"]), "sl": None, "tp": None, "order_type": r["order_type"],
        }
        for r in world.rows(
            "select * from public.positions where account_id = %s and lots > 0 order by ticket",
            world.accounts[account],
        )
    ]  # fmt: skip


def rename(world: World, account: str, *, told: str) -> None:
    states = [state | {"symbol": NEW} for state in own(world, account)]
    if told == "snapshot":
        world.send(account, world.event("snapshot", positions=states))
        return
    for state in states:
        world.send(account, world.event("modified" if state["kind"] == "position" else "amended", state))


TOLD = pytest.mark.parametrize("told", ["event", "snapshot"])


@pytest.mark.covers("P20")
@TOLD
def test_copies_are_closed_under_the_new_name(world: World, told: str) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.00")
    o = world.position("0.40", kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    rename(world, "F", told=told)
    assert world.open_executions() == []
    assert {r["symbol"] for r in world.rows("select symbol from public.position_links")} == {NEW}
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}), world.event("cancelled", o | {"lots": "0"}))
    world.settle()
    assert sorted(acts(world)[2:]) == [("cancel", NEW, "0.20"), ("close", NEW, "0.25"), ("reduce", NEW, "0.25")]
    assert world.book("F") == []


@pytest.mark.covers("P20")
@TOLD
def test_new_copies_go_to_the_new_name(world: World, told: str) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    rename(world, "F", told=told)
    names = [r["name"] for r in world.rows("select name from public.account_symbols where account_id = %s",
        world.accounts["F"])]  # fmt: skip
    assert names == [NEW]
    world.opened("M", "0.30")
    assert acts(world)[1:] == [("open", NEW, "0.30")], world.reasons("F")


@pytest.mark.covers("P21")
@TOLD
def test_a_rename_at_the_master_opens_no_second_copy(world: World, told: str) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    rename(world, "M", told=told)
    assert world.open_executions() == []
    renamed = p | {"symbol": NEW, "sl": "1.05000"}
    world.send("M", world.event("modified", renamed))
    world.settle()
    world.send("M", world.event("reduced", renamed | {"lots": "0.40"}))
    world.settle()
    world.send("M", world.event("closed", renamed | {"lots": "0"}))
    world.settle()
    assert acts(world)[1:] == [("modify", "EURUSD", "1.00"), ("reduce", "EURUSD", "0.60"), ("close", "EURUSD", "0.40")]
    assert world.one("select count(*) from public.position_links") == 1


@pytest.mark.parametrize("account", ["M", "F"])
def test_the_owner_hears_of_a_rename_once_with_the_mappings_of_the_old_name(world: World, account: str) -> None:
    world.copy("M", "F", name="evening", symbols={"EURUSD": "EURUSD"})
    for _ in range(2):
        world.opened("M", "1.00")
    world.settle()
    rename(world, account, told="event")
    (alert,) = alerts(world, account)
    assert alert["detail"] == {"old": "EURUSD", "new": NEW, "copiers": "evening"}
    assert "renamed EURUSD to EURUSD.r" in alert["message"]
    assert "evening" in alert["message"]
    assert alerts(world, "M" if account == "F" else "F") == []


def test_a_rename_is_an_event(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    rename(world, "F", told="event")
    assert [
        (r["type"], r["symbol"])
        for r in world.rows(
            "select type, symbol from public.trade_events where account_id = %s and status = 'accepted' order by id",
            world.accounts["F"],
        )
    ][-1:] == [("modified", NEW)]


@pytest.mark.parametrize("changed", [{"side": "sell"}, {"price": "1.25000"}])
def test_a_ticket_with_another_side_or_price_is_not_renamed(world: World, changed: dict[str, str]) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    (mine,) = own(world)
    world.send("F", world.event("modified", mine | {"symbol": "GBPUSD"} | changed))
    assert alerts(world, "F") == []
    assert [r["symbol"] for r in world.rows("select symbol from public.position_links")] == ["EURUSD"]


def test_an_old_name_that_another_trade_still_has_stays_until_it_is_renamed_too(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.opened("M", "2.00")
    world.settle()
    one, two = own(world)
    world.send("F", world.event("modified", one | {"symbol": NEW}))
    names = "select array_agg(name order by name) from public.account_symbols where account_id = %s"
    assert world.one(names, world.accounts["F"]) == ["EURUSD", NEW]
    world.send("F", world.event("modified", two | {"symbol": NEW}))
    assert world.one(names, world.accounts["F"]) == [NEW]


def test_a_close_that_waits_for_another_attempt_goes_to_the_new_name(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (close,) = world.open_executions("F")
    world.report(close, "rejected", reason="requote", retryable=True)
    rename(world, "F", told="event")
    world.db.execute("update public.trade_execution_queue set next_attempt_at = now() where status = 'retrying'")
    assert [e["symbol"] for e in world.open_executions("F")] == [NEW]


@TOLD
def test_a_netting_followers_position_keeps_its_copies_under_the_new_name(
    connection: psycopg.Connection[Any], told: str
) -> None:
    world = NettingWorld(connection)
    for name, vps, mode in (("M", "a", "hedging"), ("N", "b", "netting")):
        world.add_account(name, vps=vps, mode=mode)
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.settle()
    rename(world, "N", told=told)
    assert world.open_executions() == []
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    assert [(e["action"], e["symbol"], f"{e['lots']:.2f}") for e in world.open_executions("N")] == [
        ("reduce", NEW, "0.60")
    ]
    assert world.rows("select ticket, lots from private.link_legs") == [
        {"ticket": NEW, "lots": world.one("select 1.00")}
    ]


def test_a_copy_whose_report_comes_after_the_rename_has_the_new_name(world: World) -> None:
    """The fill is reported under the old name, and shown by a newer snapshot under the new one."""
    world.copy("M", "F", sizing_value="0.5")
    world.opened("M", "1.00")
    world.settle()
    p = world.opened("M", "2.00")
    (opening,) = world.open_executions("F")
    filled = world.position("1.00", ticket="900", tag=str(opening["id"]))
    shown = [*own(world), filled]
    world.send("F", world.event("snapshot", positions=[state | {"symbol": NEW} for state in shown], seq=9002))
    world.report(opening, positions=[filled], filled_lots="1.00", price="1.10000", seq=9001)
    assert {r["symbol"] for r in world.rows("select symbol from public.position_links")} == {NEW}
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    assert [(e["action"], e["symbol"], f"{e['lots']:.2f}") for e in world.open_executions("F")] == [
        ("reduce", NEW, "0.50")
    ]
