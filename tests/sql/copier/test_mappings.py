"""Mappings: matched without regard to case and blanks, with a factor and a mode of their own."""

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
    w.add_symbol("M", "XAUUSD")
    for name in ("GOLD", "EURUSD.r"):
        w.add_symbol("F", name)
    yield w
    assert w.unexplained() == 0


def answer_of(world: World, symbols: Any) -> Any:
    return world.as_user(
        "save_copier",
        {"master_account_id": world.accounts["M"], "follower_account_id": world.accounts["F"], "symbols": symbols},
    )


def orders(world: World) -> list[tuple[str, str]]:
    return [(e["symbol"], str(e["lots"].normalize())) for e in world.executions("F")]


@pytest.mark.covers("X21")
@pytest.mark.parametrize(
    "symbols", [{"xauusd": "gold"}, {" XAUUSD ": " GOLD "}, {"XauUsd": "Gold"}, {"XAUUSD": {"to": "gold"}}]
)
def test_case_and_blanks_make_no_difference(world: World, symbols: Any) -> None:
    assert answer_of(world, symbols)["warnings"] == []
    assert world.rows("select master_symbol, follower_symbol from public.symbol_mappings") == [
        {"master_symbol": "XAUUSD", "follower_symbol": "GOLD"}
    ]
    world.opened("M", "0.10", symbol="XAUUSD")
    assert orders(world) == [("GOLD", "0.1")]


@pytest.mark.covers("X21")
def test_a_symbol_that_is_told_later_is_matched_too(world: World) -> None:
    answer_of(world, {"us500": "spx500.R"})
    world.add_symbol("M", "US500")
    world.add_symbol("F", "SPX500.r")
    world.opened("M", "0.10", symbol="US500")
    assert orders(world) == [("SPX500.r", "0.1")]


@pytest.mark.covers("X21")
def test_names_that_an_account_does_not_have_are_warned_of(world: World) -> None:
    assert answer_of(world, {"XAUUDS": "GOLDEN"})["warnings"] == [
        "symbols: the master has no symbol XAUUDS; the nearest are XAUUSD.",
        "symbols: the follower has no symbol GOLDEN; the nearest are GOLD.",
    ]


@pytest.mark.covers("X21")
def test_one_symbol_is_not_mapped_twice(world: World) -> None:
    with pytest.raises(psycopg.Error) as refused:
        answer_of(world, {"XAUUSD": "GOLD", "xauusd ": "EURUSD.r"})
    assert refused.value.sqlstate == "TC302"
    assert "are one symbol, mapped twice" in str(refused.value)


@pytest.mark.covers("X22")
@pytest.mark.parametrize(("factor", "lots"), [("0.5", "0.1"), ("2", "0.4"), ("1", "0.2"), (None, "0.2")])
def test_a_factor_multiplies_the_size(world: World, factor: str | None, lots: str) -> None:
    answer_of(world, {"XAUUSD": {"to": "GOLD", "lots_factor": factor}})
    world.opened("M", "0.20", symbol="XAUUSD")
    assert orders(world) == [("GOLD", lots)]


@pytest.mark.covers("X22")
@pytest.mark.parametrize("mode", ["closes_only", "off"])
def test_a_mode_keeps_from_opening_and_never_from_closing(world: World, mode: str) -> None:
    copier = answer_of(world, {"XAUUSD": "GOLD"})["copier_id"]
    position = world.opened("M", "0.20", symbol="XAUUSD")
    world.fill(world.executions("F")[0])
    world.as_user("save_copier", {"id": copier, "symbols": {"XAUUSD": {"to": "GOLD", "mode": mode}}})
    world.opened("M", "0.20", symbol="XAUUSD")
    assert world.reasons("F") == {"symbol_off": 1}
    world.send("M", world.event("closed", position | {"lots": "0"}))
    assert [e["action"] for e in world.executions("F")] == ["open", "close"]


@pytest.mark.covers("X22")
def test_a_short_entry_keeps_factor_and_mode(world: World) -> None:
    copier = answer_of(world, {"XAUUSD": {"to": "GOLD", "lots_factor": "0.5", "mode": "off"}})["copier_id"]
    world.as_user("save_copier", {"id": copier, "symbols": {"xauusd": "GOLD"}})
    row = world.rows("select lots_factor::text, mode from public.symbol_mappings")
    assert row == [{"lots_factor": "0.5", "mode": "off"}]


@pytest.mark.covers("X22")
@pytest.mark.parametrize(
    "entry",
    [{"to": "GOLD", "lots_factor": "0.009"}, {"to": "GOLD", "lots_factor": "100.1"}, {"to": "GOLD", "lots_factor": "x"},
     {"to": "GOLD", "mode": "ON"}, {"to": "GOLD", "more": 1}, {"lots_factor": "1"}, {"to": 7}, {"to": " "}, 7, []],
)  # fmt: skip
def test_a_malformed_mapping_is_refused(world: World, entry: Any) -> None:
    with pytest.raises(psycopg.Error) as refused:
        answer_of(world, {"XAUUSD": entry})
    assert refused.value.sqlstate == "TC302"


REQUEST: dict[str, Any] = {
    "master": {"currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000"},
    "follower": {
        "currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000",
        "symbol": {"name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001",
                   "profit_currency": "USD", "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01"},
    },
    "trade": {"side": "buy", "lots": "0.50", "price": "1.10000"},
}  # fmt: skip


@pytest.mark.covers("X22")
@pytest.mark.parametrize(
    ("mapping", "orders", "reason"),
    [
        (None, ["0.5"], None),
        ({}, ["0.5"], None),
        ({"lots_factor": "0.5", "mode": "on"}, ["0.25"], None),
        ({"mode": "off"}, [], "symbol_off"),
        ({"lots_factor": "1", "mode": "closes_only"}, [], "symbol_off"),
    ],
)
def test_the_preview_knows_mappings(world: World, mapping: Any, orders: list[str], reason: str | None) -> None:
    answer = world.as_user("preview_copy", REQUEST | {"mapping": mapping})
    assert (answer["orders"], answer["reason"]) == (orders, reason)


@pytest.mark.covers("X22")
@pytest.mark.parametrize("mapping", [7, "on", {"lots_factor": "0"}, {"lots_factor": "101"}, {"mode": "x"}, {"to": "X"}])
def test_the_preview_refuses_a_malformed_mapping(world: World, mapping: Any) -> None:
    with pytest.raises(psycopg.Error) as refused:
        world.as_user("preview_copy", REQUEST | {"mapping": mapping})
    assert refused.value.sqlstate == "TC001"


@pytest.mark.covers("X21")
def test_an_increase_goes_where_its_copy_is_whatever_is_mapped_meanwhile(world: World) -> None:
    copier = world.copy("M", "F")
    position = world.opened("M", "1.00")
    world.settle()
    world.add_symbol("F", "GBPUSD")
    world.as_user("save_copier", {"id": copier, "symbols": {"EURUSD": "GBPUSD"}})
    world.send("M", world.event("increased", position | {"lots": "1.50"}))
    assert [(e["symbol"], e["action"]) for e in world.executions("F")] == [("EURUSD", "open"), ("EURUSD", "increase")]
    world.settle()
    world.opened("M", "0.20")
    assert [e["symbol"] for e in world.open_executions("F")] == ["GBPUSD"]
