"""Protection rules: when a look at an account's funds triggers one, and when not (R17, R18)."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


@pytest.mark.covers("R17")
def test_a_daily_loss_triggers_once_at_exactly_its_threshold(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    for _ in range(3):
        assert world.look("95000.01") is None
    assert (world.looks(), world.alerts(), world.copy_state()) == ([], {}, "on")
    assert world.look("95000.00") == 260, "the database asks for a second look"
    assert (world.triggered(rule), world.copy_state()) == (False, "on")
    assert world.look("95000.00", ms=250) is None
    assert (world.triggered(rule), world.copy_state()) == (True, "flattening")
    assert world.look("94999.99") is None
    assert world.look("90000") is None
    assert world.alerts() == {"daily_loss": 1}
    assert world.looks() == [("95000", "first"), ("95000", "confirmed")]


@pytest.mark.covers("R17")
def test_94_999_99_triggers(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("94999.99")
    world.look("94999.99")
    assert world.triggered(rule)
    detail = world.one("select detail from public.alerts")
    assert detail["limit"] == "95000"
    assert [look["equity"] for look in detail["looks"]] == ["94999.99", "94999.99"]


@pytest.mark.covers("R18")
def test_one_bad_tick_does_not_trigger_and_both_looks_are_kept(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("80000")
    assert world.look("99990", ms=250) is None
    assert (world.triggered(rule), world.copy_state(), world.alerts()) == (False, "on", {})
    assert world.looks() == [("80000", "first"), ("99990", "contradicted")]
    world.look("80000")
    assert not world.triggered(rule), "the next bad tick is a first look again"


def test_a_second_look_that_comes_too_soon_neither_confirms_nor_contradicts(world: ProtectionWorld) -> None:
    rule = world.rule("equity_floor", "9000", confirm_ms=1000)
    world.look("10000")
    assert world.look("8999") == 1010
    assert world.look("8999", ms=999) == 1010
    assert not world.triggered(rule)
    world.look("8999", ms=1)
    assert world.triggered(rule)
    assert world.looks() == [("8999", "first"), ("8999", "confirmed")]


def test_a_report_sent_twice_is_one_look(world: ProtectionWorld) -> None:
    rule = world.rule("equity_floor", "9000")
    world.look("8000")
    world.look("8000", ms=0)
    assert not world.triggered(rule)


@pytest.mark.parametrize(
    ("kind", "threshold", "before", "reached"),
    [
        ("equity_floor", "9000", "9000.01", "9000.00"),
        ("equity_target", "110000", "109999.99", "110000.00"),
        ("trailing_drawdown", "10", "90000.01", "90000.00"),
        ("daily_loss", "0.1", "99900.01", "99900.00"),
    ],
)
def test_every_limit_triggers_where_it_is_reached_and_not_before(
    world: ProtectionWorld, kind: str, threshold: str, before: str, reached: str
) -> None:
    rule = world.rule(kind, threshold)
    world.look("100000")
    world.look("100000")
    world.look(before)
    world.look(before)
    assert (world.triggered(rule), world.looks()) == (False, [])
    world.look(reached)
    world.look(reached)
    assert world.triggered(rule)


@pytest.mark.parametrize(
    ("equity", "margin", "triggers"),
    [
        ("10000", "4999.99", False),
        ("10000", "5000", True),
        ("-5", "1", True),
        ("0", "0", False),
        ("10000", None, False),
    ],
)
def test_margin_use_is_margin_per_equity_and_unknown_margin_is_no_look(
    world: ProtectionWorld, equity: str, margin: str | None, triggers: bool
) -> None:
    rule = world.rule("max_margin_use", "50")
    world.look(equity, margin=margin)
    world.look(equity, margin=margin)
    assert world.triggered(rule) == triggers


def test_a_high_counts_when_two_looks_in_a_row_have_reached_it(world: ProtectionWorld) -> None:
    rule = world.rule("trailing_drawdown", "10")
    high = "select trim_scale(high_water_mark)::text from public.protection_rules"
    world.look("100000")
    world.look("200000")
    world.look("101000")
    assert world.one(high) == "101000", "one tick of 200 000 is no high"
    world.look("120000")
    world.look("115000")
    assert world.one(high) == "115000"
    world.look("103500.01")
    world.look("103500.01")
    assert not world.triggered(rule)
    world.look("103500")
    world.look("103500")
    assert world.triggered(rule)


def test_a_high_counts_however_long_a_limit_is_confirmed_for(world: ProtectionWorld) -> None:
    rule = world.rule("trailing_drawdown", "10", confirm_ms=5000)
    world.look("100000")
    for equity in ["120000"] * 3 + ["108000"] * 6:
        assert not world.triggered(rule)
        world.look(equity, ms=999)  # the pace of an account with something open
    assert world.one("select trim_scale(high_water_mark)::text from public.protection_rules") == "120000"
    world.look("108000", ms=999)
    assert world.triggered(rule)


def test_funds_that_are_unknown_late_or_of_another_session_neither_trigger_nor_disarm(world: ProtectionWorld) -> None:
    rule = world.rule("equity_floor", "9000")
    world.look("8000")
    agent = world.as_agent
    later = world.clock + timedelta(seconds=5)
    unknown = world.funds("F", later, "8000") | {"equity": None}
    old = world.funds("F", world.clock - timedelta(seconds=5), "20000")
    world.db.execute("update public.trading_accounts set session = 2 where name = 'F'")
    agent("F", "report_account_state", unknown | {"session": 2})
    agent("F", "report_account_state", old | {"session": 2})
    agent("F", "report_account_state", world.funds("F", later, "8000") | {"session": None})
    world.looks_count_until(10)
    agent("F", "report_account_state", world.funds("F", later + timedelta(seconds=1), "20000") | {"session": 2})
    assert (world.triggered(rule), world.looks()) == (False, [("8000", "first")])
    world.looks_count_until(1_000_000_000)
    world.look("8000", ms=60_000, session=2)
    assert world.triggered(rule), "the first look still stands"


# -- the day ------------------------------------------------------------------------------------------------------

#: zone, the day of a DST change, its midnight and the next one
DAYS = [
    pytest.param(
        "Europe/Berlin", "2026-03-28T23:00:00+00:00", "2026-03-29T22:00:00+00:00", 23, id="Berlin springs forward"
    ),
    pytest.param("Europe/Berlin", "2025-10-25T22:00:00+00:00", "2025-10-26T23:00:00+00:00", 25, id="Berlin falls back"),
    pytest.param(
        "America/New_York", "2026-03-08T05:00:00+00:00", "2026-03-09T04:00:00+00:00", 23, id="New York springs forward"
    ),
    pytest.param(
        "America/New_York", "2025-11-02T04:00:00+00:00", "2025-11-03T05:00:00+00:00", 25, id="New York falls back"
    ),
    pytest.param(
        "Africa/Cairo", "2025-04-24T22:00:00+00:00", "2025-04-25T21:00:00+00:00", 23, id="Cairo has no midnight"
    ),
    pytest.param("UTC", "2026-01-10T00:00:00+00:00", "2026-01-11T00:00:00+00:00", 24, id="UTC"),
]


@pytest.mark.covers("R17")
@pytest.mark.parametrize(("zone", "midnight", "next_midnight", "hours"), DAYS)
def test_the_day_of_a_dst_change_is_as_long_as_the_zone_says(
    world: ProtectionWorld, zone: str, midnight: str, next_midnight: str, hours: int
) -> None:
    begins, ends = datetime.fromisoformat(midnight), datetime.fromisoformat(next_midnight)
    assert ends - begins == timedelta(hours=hours)
    rule = world.rule("daily_loss", "5", time_zone=zone, action="notify")
    start = "select trim_scale(day_start_equity)::text from public.protection_rules"
    world.look_at(begins - timedelta(hours=2), "90000")
    world.look_at(begins - timedelta(microseconds=1), "100000")
    assert world.one(start) == "90000"
    world.look_at(begins, "99000")
    assert world.one(start) == "100000", "the last equity before midnight"
    world.look_at(ends - timedelta(seconds=1), "95000.00")
    world.look_at(ends - timedelta(microseconds=1), "95000.00")
    assert (world.one(start), world.triggered(rule)) == ("100000", True)
    world.look_at(ends, "95000.00")
    assert (world.one(start), world.triggered(rule)) == ("95000", False), "re-armed by the new day"
    world.look_at(ends + timedelta(hours=1), "90250.00")
    world.look_at(ends + timedelta(hours=1, seconds=1), "90250.00")
    assert world.triggered(rule)
    assert world.alerts() == {"daily_loss": 2}


@pytest.mark.parametrize(("seconds", "start"), [(60, "100000"), (60.001, "98000")])
def test_the_first_equity_of_the_day_is_its_start_when_nobody_saw_midnight(
    world: ProtectionWorld, seconds: float, start: str
) -> None:
    world.rule("daily_loss", "5")
    midnight = datetime.fromisoformat("2026-01-16T00:00:00+00:00")
    world.look_at(midnight - timedelta(seconds=seconds), "100000")
    world.look_at(midnight, "98000")
    assert world.one("select trim_scale(day_start_equity)::text from public.protection_rules") == start
    assert world.one("select day::text from public.protection_rules") == "2026-01-16"


def test_a_day_without_any_look_changes_nothing_and_the_next_look_begins_one(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("90000", ms=3 * 24 * 3600 * 1000)
    world.look("90000")
    assert not world.triggered(rule), "nobody knows what the account had at the day's start"
    assert world.one("select trim_scale(day_start_equity)::text from public.protection_rules") == "90000"
