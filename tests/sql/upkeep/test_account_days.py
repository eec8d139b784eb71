"""account_days: first, lowest, highest and last funds of each account and day, in its owner's time zone."""

from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from api_actors import Actor, Farm

Day = tuple[date, str, str, str, str, str, str]


@pytest.fixture
def owner(farm: Farm) -> Actor:
    return farm.user()


@pytest.fixture
def account(farm: Farm, owner: Actor) -> UUID:
    return farm.account(owner)


def measured(farm: Farm, account: UUID, at: str, equity: str, balance: str = "1000") -> None:
    """The account's newest funds, and a turn of the upkeep."""
    farm.rows(
        "update public.trading_accounts set funds_at = %s, equity = %s, balance = %s where id = %s",
        (at, equity, balance, account),
    )
    farm.rows("select private.note_account_days()")


def days(actor: Actor) -> list[tuple[Any, ...]]:
    """Day, its zone, and first, lowest, highest and last equity, as their owner reads them."""
    return [
        (
            str(r["day"]),
            r["time_zone"],
            *(format(r[f"{which}_equity"], "f") for which in ("first", "min", "max", "last")),
        )
        for r in actor.sees("select * from public.account_days order by day")
    ]


def test_a_day_keeps_its_first_lowest_highest_and_last_figures(farm: Farm, owner: Actor, account: UUID) -> None:
    for hour, equity in (("06", "1000"), ("07", "990.5"), ("08", "1020"), ("09", "1010")):
        measured(farm, account, f"2026-12-01T{hour}:00Z", equity, "1000" if hour < "08" else "1005")
    assert days(owner) == [("2026-12-01", "UTC", "1000", "990.5", "1020", "1010")]
    (row,) = owner.sees("select * from public.account_days")
    balances = [row[f"{which}_balance"] for which in ("first", "min", "max", "last")]
    assert balances == [Decimal(1000), Decimal(1000), Decimal(1005), Decimal(1005)]


def test_figures_that_are_not_new_change_nothing(farm: Farm, owner: Actor, account: UUID) -> None:
    measured(farm, account, "2026-12-01T06:00Z", "1000")
    measured(farm, account, "2026-12-01T06:00Z", "1")
    measured(farm, account, "2026-12-01T05:00Z", "1")
    assert days(owner) == [("2026-12-01", "UTC", "1000", "1000", "1000", "1000")]


def test_a_day_without_figures_has_no_row(farm: Farm, owner: Actor, account: UUID) -> None:
    measured(farm, account, "2026-12-01T06:00Z", "1000")
    measured(farm, account, "2026-12-04T06:00Z", "900")
    assert [row[0] for row in days(owner)] == ["2026-12-01", "2026-12-04"]


def test_the_day_begins_at_midnight_of_the_owners_zone_also_when_the_clocks_change(
    farm: Farm, owner: Actor, account: UUID
) -> None:
    owner.can("set_preferences", {"time_zone": "America/New_York"})
    # 1 November 2026 has 25 hours in New York: from 04:00 to 05:00 UTC of the next day
    for at in ("2026-11-01T03:59Z", "2026-11-01T04:00Z", "2026-11-02T04:59Z", "2026-11-02T05:00Z"):
        measured(farm, account, at, "1000")
    ends = owner.sees("select day, ends_at at time zone 'UTC' as ends_at from public.account_days order by day")
    assert [(str(r["day"]), r["ends_at"].isoformat()) for r in ends] == [
        ("2026-10-31", "2026-11-01T04:00:00"),
        ("2026-11-01", "2026-11-02T05:00:00"),
        ("2026-11-02", "2026-11-03T05:00:00"),
    ]


@pytest.mark.parametrize(
    ("zone", "day", "ends"),
    [
        ("America/Havana", "2026-10-31", "2026-11-01T04:00:00"),  # set back from 01:00 to 00:00: midnight comes twice
        ("Africa/Cairo", "2026-04-23", "2026-04-23T22:00:00"),  # set forward at 00:00: the day begins at 01:00
        ("Asia/Kathmandu", "2026-12-01", "2026-12-01T18:15:00"),
    ],
)
def test_a_date_is_over_at_the_first_moment_of_the_next(farm: Farm, zone: str, day: str, ends: str) -> None:
    row = farm.row("select private.end_of_day(%s, %s) at time zone 'UTC' as ends", (day, zone))
    assert row["ends"].isoformat() == ends


def test_a_new_zone_holds_from_the_next_day(farm: Farm, owner: Actor, account: UUID) -> None:
    measured(farm, account, "2026-12-01T06:00Z", "1000")
    owner.can("set_preferences", {"time_zone": "Asia/Tokyo"})
    measured(farm, account, "2026-12-01T20:00Z", "1010")  # the second already in Tokyo
    measured(farm, account, "2026-12-02T00:00Z", "1020")
    assert days(owner) == [
        ("2026-12-01", "UTC", "1000", "1000", "1010", "1010"),
        ("2026-12-02", "Asia/Tokyo", "1020", "1020", "1020", "1020"),
    ]


def test_who_moves_west_has_one_long_day_and_not_the_same_date_twice(farm: Farm, owner: Actor, account: UUID) -> None:
    owner.can("set_preferences", {"time_zone": "Asia/Tokyo"})
    measured(farm, account, "2026-12-01T10:00Z", "1000")
    owner.can("set_preferences", {"time_zone": "America/Los_Angeles"})
    measured(farm, account, "2026-12-01T15:00Z", "900")  # over in Tokyo, still the first in Los Angeles
    measured(farm, account, "2026-12-02T08:00Z", "950")
    assert days(owner) == [
        ("2026-12-01", "America/Los_Angeles", "1000", "900", "1000", "900"),
        ("2026-12-02", "America/Los_Angeles", "950", "950", "950", "950"),
    ]


def test_maintain_writes_the_days(farm: Farm, owner: Actor, account: UUID) -> None:
    farm.rows(
        "update public.trading_accounts set funds_at = now(), equity = 1000, balance = 1000 where id = %s", (account,)
    )
    farm.rows("update private.clockwork set last_run_at = now() - interval '1 hour' where name = 'health'")
    assert farm.maintain()["errors"] == []
    assert len(days(owner)) == 1


def test_old_days_are_deleted(farm: Farm, owner: Actor, account: UUID) -> None:
    measured(farm, account, "2015-12-01T06:00Z", "1000")
    measured(farm, account, "2026-11-20T06:00Z", "1000")
    farm.rows("select private.delete_expired()")
    assert [row[0] for row in days(owner)] == ["2026-11-20"]
