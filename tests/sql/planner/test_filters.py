"""Filters hold back opens and increases, never a close."""

from collections.abc import Iterator
from decimal import Decimal
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
    w.add_symbol("F", "XAUUSD")
    yield w
    assert w.unexplained() == 0


@pytest.mark.parametrize(
    ("settings", "trade", "reason"),
    [
        ({"sides": "sell"}, {}, "side_filtered"),
        ({"sides": "buy"}, {}, None),
        ({"symbols_only": ["XAU*"]}, {}, "symbol_filtered"),
        ({"symbols_only": ["xau*", "eur*"]}, {}, None),
        ({"symbols_except": ["*USD"]}, {}, "symbol_filtered"),
        ({"symbols_except": ["EUR_SD"]}, {}, None),
        ({"magic_only": ["7"]}, {"magic": "8"}, "magic_filtered"),
        ({"magic_only": ["7"]}, {"magic": "7"}, None),
        ({"magic_except": ["0"]}, {}, "magic_filtered"),
        ({"comment_only": ["grid*"]}, {"comment": "scalp 1"}, "comment_filtered"),
        ({"comment_except": ["grid*"]}, {"comment": "Grid 4"}, "comment_filtered"),
        ({"min_equity": "10000.01"}, {}, "min_equity"),
        ({"min_equity": "10000"}, {}, None),
    ],
)
def test_what_a_copier_opens(world: World, settings: dict[str, Any], trade: dict[str, Any], reason: str | None) -> None:
    world.copy("M", "F", **settings)
    world.opened("M", **trade)
    assert world.reasons("F") == ({} if reason is None else {reason: 1})


def test_a_filter_set_later_does_not_hold_back_a_close(world: World) -> None:
    copier = world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.as_user("save_copier", {"id": copier, "symbols_except": ["*"], "sides": "sell", "weekdays": [1]})
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    world.settle()
    assert world.book("F") == [("buy", "0.40")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_limits_on_what_is_held_and_opened(world: World) -> None:
    copier = world.copy("M", "F", max_open_positions=1)
    p = world.opened("M")
    world.opened("M")
    assert world.reasons("F") == {"max_open_positions": 1}
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    world.as_user("save_copier", {"id": copier, "max_open_positions": None, "max_trades_per_day": 1})
    world.opened("M")
    assert world.reasons("F") == {"max_open_positions": 1, "max_trades_per_day": 1}
    world.as_user("save_copier", {"id": copier, "max_trades_per_day": None, "max_open_lots": "2.5"})
    world.opened("M", "1.00")
    world.opened("M", "1.00")
    world.opened("M", "1.00")
    assert world.reasons("F")["max_open_lots"] == 1


@pytest.mark.parametrize("mode", ["hedging", "netting"])
def test_no_copy_makes_it_more_lots_than_the_limit(world: World, mode: str) -> None:
    world.add_account("X", vps="b", mode=mode)
    world.copy("M", "X", max_open_lots="1.00")
    world.opened("M", "1.01")
    assert world.executions("X") == []
    detail = "The limit of open lots is 1: 0 are held or under way, and this would be 1.01 more."
    assert world.one("select detail from public.copy_outcomes") == detail
    p = world.opened("M", "0.60")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "1.01"}))
    assert world.reasons("X") == {"max_open_lots": 2}
    world.opened("M", "0.40")
    world.settle()
    assert sum(Decimal(lots) for _, lots in world.book("X")) == 1


@pytest.mark.parametrize("mode", ["hedging", "netting"])
@pytest.mark.parametrize("limit", [{"max_open_positions": 1}, {"max_open_lots": "1"}])
def test_a_flip_does_not_count_what_it_closes_before(world: World, mode: str, limit: dict[str, Any]) -> None:
    world.add_account("X", vps="b", mode=mode)
    world.copy("M", "X", **limit)
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.80"}))
    world.settle()
    # the netting follower's one deal stands in this book beside the position that it turns
    assert sum(Decimal(lots) * (1 if side == "buy" else -1) for side, lots in world.book("X")) == Decimal("-0.80")
    assert world.reasons("X").get(next(iter(limit))) is None


@pytest.mark.parametrize(
    ("settings", "now", "open_"),
    [
        ({}, "2026-11-22T12:00:00Z", True),
        ({"weekdays": [1, 2, 3, 4, 5]}, "2026-11-22T12:00:00Z", False),  # a Sunday
        ({"weekdays": [7], "time_zone": "Pacific/Auckland"}, "2026-11-22T12:00:00Z", False),  # Monday there
        ({"open_from": "08:00", "open_until": "17:00"}, "2026-11-23T08:00:00Z", True),
        ({"open_from": "08:00", "open_until": "17:00"}, "2026-11-23T17:00:00Z", False),
        ({"open_from": "22:00", "open_until": "02:00"}, "2026-11-24T01:59:59Z", True),
        (
            {"open_from": "22:00", "open_until": "02:00", "weekdays": [1]},
            "2026-11-24T01:00:00Z",
            True,
        ),  # Monday's night
        ({"open_from": "22:00", "open_until": "02:00", "weekdays": [2]}, "2026-11-24T01:00:00Z", False),
        # the clock of Berlin goes back at 03:00 on 25 October 2026: 08:30 is 06:30 UTC on the day before, 07:30 UTC on
        # that day
        ({"open_from": "08:30", "open_until": "09:00", "time_zone": "Europe/Berlin"}, "2026-10-24T06:30:00Z", True),
        ({"open_from": "08:30", "open_until": "09:00", "time_zone": "Europe/Berlin"}, "2026-10-25T06:30:00Z", False),
        ({"open_from": "08:30", "open_until": "09:00", "time_zone": "Europe/Berlin"}, "2026-10-25T07:30:00Z", True),
    ],
)
def test_hours_of_a_time_zone(world: World, settings: dict[str, Any], now: str, open_: bool) -> None:
    copier = world.copy("M", "F", **settings)
    assert world.one("select private.within_hours(c, %s) from public.copiers c where c.id = %s", now, copier) is open_


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"symbols_only": ["EURUSD"], "symbols_except": ["EURUSD"]}, "TC306"),
        ({"time_zone": "Europe/Atlantis"}, "TC303"),
        ({"weekdays": [0]}, "TC303"),
        ({"open_from": "08:00"}, "TC306"),
        ({"sides": "left"}, "TC303"),
        ({"max_open_lots": "NaN"}, "TC302"),
        ({"max_open_positions": 0}, "TC303"),
    ],
)
def test_settings_that_make_no_sense_are_refused(world: World, settings: dict[str, Any], code: str) -> None:
    with pytest.raises(Exception, match="save_copier") as refused:
        world.copy("M", "F", **settings)
    assert getattr(refused.value, "sqlstate", "") == code
    assert world.rows("select 1 from public.copiers") == []
