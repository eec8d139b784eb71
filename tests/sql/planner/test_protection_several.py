"""Several protection rules of one kind on an account (R26)."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


def two_looks(world: ProtectionWorld, equity: str) -> None:
    world.look(equity)
    world.look(equity)


@pytest.mark.covers("R26")
def test_a_notice_at_3_percent_stands_beside_a_close_at_5(world: ProtectionWorld) -> None:
    world.copy("M", "F")
    notice = world.rule("daily_loss", "3", action="notify")
    close = world.rule("daily_loss", "5", action="close_all_and_off")
    world.look("10000")
    assert notice != close
    two_looks(world, "9700.01")
    assert (world.triggered(notice), world.triggered(close)) == (False, False)
    two_looks(world, "9700")
    assert (world.triggered(notice), world.triggered(close), world.copy_state()) == (True, False, "on")
    two_looks(world, "9500")
    assert world.triggered(close)
    assert world.copy_state() != "on"


@pytest.mark.covers("R26")
@pytest.mark.parametrize("stricter_first", [True, False])
def test_reached_at_once_the_alert_tells_the_stricter_rule(world: ProtectionWorld, stricter_first: bool) -> None:
    rules = [("9200", "close_all_and_off"), ("9100", "monitor"), ("9300", "notify")]
    for threshold, action in rules if stricter_first else reversed(rules):
        world.rule("equity_floor", threshold, action=action)
    two_looks(world, "9000")
    assert world.one("select count(*) from public.protection_rules where triggered_at is not null") == 3
    alert = "select severity || ' ' || (detail ->> 'action') from public.alerts where kind = 'protection'"
    assert world.one(alert) == "critical close_all_and_off"


@pytest.mark.covers("R26")
def test_a_rule_is_held_against_the_nearest_of_the_other_kind(world: ProtectionWorld) -> None:
    for kind, threshold in [
        ("equity_floor", "7000"),
        ("equity_floor", "9000"),
        ("equity_target", "15000"),
        ("equity_target", "12000"),
    ]:
        world.rule(kind, threshold)
    with pytest.raises(psycopg.Error, match="equity_floor 9000 is not below equity_target 8000"):
        world.rule("equity_target", "8000")
    with pytest.raises(psycopg.Error, match="equity_floor 13000 is not below equity_target 12000"):
        world.rule("equity_floor", "13000")


@pytest.mark.covers("R26")
def test_a_milder_rule_that_is_reached_later_does_not_replace_the_stricter_ones_alert(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5", action="close_all_and_off")
    world.rule("daily_loss", "8", action="notify")
    world.look("10000")
    two_looks(world, "9500")
    two_looks(world, "9100")
    alerts = "select severity, detail ->> 'action' as action, times from public.alerts where kind = 'protection'"
    assert world.rows(alerts) == [{"severity": "critical", "action": "close_all_and_off", "times": 2}]
