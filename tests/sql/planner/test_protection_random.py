"""Whatever an account's equity does, and whenever it is looked at: rules trigger exactly when a plain reading of them
says so."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from protection_harness import ProtectionWorld, make

pytestmark = pytest.mark.own_database

LONG = "PLANNER_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("PLANNER_EXAMPLES", "50"))

#: thresholds in percent, or money
RULES = {"daily_loss": "5", "trailing_drawdown": "10", "equity_floor": "90000", "equity_target": "110000"}
#: zones with the hour before their clocks change, one without
EVES = {
    "Europe/Berlin": ("2026-03-28T22:30:00+00:00", "2026-10-24T21:30:00+00:00"),
    "America/New_York": ("2026-03-08T04:30:00+00:00", "2025-11-02T03:30:00+00:00"),
    "Africa/Cairo": ("2025-04-24T21:30:00+00:00", "2025-10-30T20:30:00+00:00"),
    "UTC": ("2026-01-10T23:30:00+00:00",),
}
#: milliseconds between two looks: a report sent twice, too soon, just late enough, across midnight with and without a
#: gap, days
PAUSES = (0, 1, 249, 250, 251, 1_000, 29_000, 60_000, 60_001, 1_800_000, 3_600_000, 43_200_000, 82_800_000, 90_000_000)
#: steps of 0.01 around every limit
EQUITIES = tuple(
    str(Decimal(base) + Decimal(cents) / 100)
    for base in (85500, 90000, 90250, 95000, 99000, 100000, 104500, 110000, 121000)
    for cents in (-1, 0, 1)
)  # fmt: skip


#: deposits and withdrawals between two looks; mostly none
MOVES = ("0", "0", "0", "5000", "-4500", "-0.01")


@dataclass(slots=True)
class Reading:
    """One rule, read as a person would; `before` is the last look."""

    kind: str
    zone: ZoneInfo
    day: date | None = None
    base: Decimal | None = None
    first: datetime | None = None
    done: bool = False
    triggers: int = 0
    before: tuple[datetime, Decimal] | None = None

    def look(self, at: datetime, equity: Decimal, moved: Decimal) -> None:
        """`moved`: a deposit or withdrawal since the last look, which is no profit or loss."""
        if self.before is not None:
            self.before = (self.before[0], self.before[1] + moved)
            self.base = None if self.base is None else self.base + moved
        self._count(at, equity)
        self.before = (at, equity)
        if self.done:
            return
        if not self._reached(equity):
            self.first = None
        elif self.first is None:
            self.first = at
        elif at - self.first >= timedelta(milliseconds=250):
            self.done, self.triggers = True, self.triggers + 1

    def _count(self, at: datetime, equity: Decimal) -> None:
        today = at.astimezone(self.zone).date()
        if self.kind == "daily_loss" and (self.day is None or today > self.day):
            seen = self.day is not None and self.before is not None and at - self.before[0] <= timedelta(seconds=60)
            self.base = self.before[1] if seen and self.before is not None else equity
            self.day, self.first, self.done = today, None, False
        if self.kind == "trailing_drawdown":
            twice = self.before is not None and at - self.before[0] >= timedelta(milliseconds=250)
            high = min(equity, self.before[1]) if twice and self.before is not None else None
            self.base = equity if self.base is None else max(self.base, high or self.base)

    def _reached(self, equity: Decimal) -> bool:
        limit = Decimal(RULES[self.kind])
        if self.base is not None:
            return equity <= self.base - self.base * limit / 100
        return equity >= limit if self.kind == "equity_target" else equity <= limit


@st.composite
def stories(draw: st.DrawFn) -> tuple[str, datetime, list[tuple[int, str, str]]]:
    zone = draw(st.sampled_from(sorted(EVES)))
    begin = datetime.fromisoformat(draw(st.sampled_from(EVES[zone])))
    return (
        zone,
        begin,
        draw(
            st.lists(
                st.tuples(st.sampled_from(PAUSES), st.sampled_from(EQUITIES), st.sampled_from(MOVES)),
                min_size=2,
                max_size=25,
            )
        ),
    )


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not LONG,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(story=stories())
def test_rules_trigger_exactly_when_a_plain_reading_says_so(
    world: ProtectionWorld, story: tuple[str, datetime, list[tuple[int, str, str]]]
) -> None:
    zone, at, looks = story
    world.db.execute("delete from public.protection_rules where true")
    world.db.execute("delete from public.alerts where true")
    world.db.execute("delete from public.balance_operations where true")
    world.db.execute("update public.trading_accounts set funds_at = null, equity = null where true")
    readings = {kind: Reading(kind, ZoneInfo(zone)) for kind in RULES}
    for kind, threshold in RULES.items():
        world.rule(kind, threshold, action="notify", time_zone=zone)
    for number, (pause, equity, moved) in enumerate(looks):
        at += timedelta(milliseconds=pause)
        kind = "deposit" if Decimal(moved) > 0 else "withdrawal"
        made = [{"number": str(number), "amount": moved, "kind": kind, "at": at.isoformat()}] if moved != "0" else []
        world.look_at(at, equity, balance_operations=made)
        for reading in readings.values():
            reading.look(at, Decimal(equity), Decimal(moved))
        told = world.alerts()
        assert {kind: told.get(kind, 0) for kind in RULES} == {
            kind: reading.triggers for kind, reading in readings.items()
        }
