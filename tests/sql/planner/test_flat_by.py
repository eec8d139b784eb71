"""Flat by: an account is closed at its time of the week, opens nothing until the period is over, then copies again."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make
from psycopg.types.json import Jsonb


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


def weekly(minutes: float) -> dict[str, Any]:
    """The time of the week that is so many minutes from now."""
    at = datetime.now(UTC) + timedelta(minutes=minutes)
    return {"weekday": at.isoweekday(), "time": f"{at:%H:%M}", "time_zone": "UTC"}


def flat_by(world: ProtectionWorld, begins: float, ends: float, account: str = "F", **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = world.as_user(
        "set_flat_by", {"account_id": world.accounts[account], "until": weekly(ends)} | weekly(begins) | more
    )
    return answer


def shift(world: ProtectionWorld, begins: float, ends: float, account: str = "F") -> None:
    """Time passes until the period begins, and ends, so many minutes from now."""
    now = datetime.now(UTC)
    at = [now + timedelta(minutes=begins), now + timedelta(minutes=ends), world.accounts[account]]
    for column in ("warned_for", "closed_for"):
        world.db.execute(
            f"update public.flat_times f set {column} = %s from public.trading_accounts a"
            f" where a.id = f.account_id and f.{column} = a.flat_from and a.id = %s",
            [at[0], at[2]],
        )
    world.db.execute("update public.trading_accounts set flat_from = %s, flat_until = %s where id = %s", at)
    world.db.execute(
        "update public.flat_times set due_at = '-infinity' where account_id = %s", [world.accounts[account]]
    )


def run(world: ProtectionWorld) -> None:
    assert world.one("select private.maintain()")["errors"] == []


def holding(world: ProtectionWorld, follower: str = "F", **copier: Any) -> dict[str, Any]:
    """The follower holds a copy of 1.00, and F 0.20 of its own; returns the master's position."""
    world.copy("M", follower, **copier)
    position = world.opened("M")
    world.settle()
    if follower == "F":
        world.send("F", world.event("opened", world.position("0.20")))
    return position


def period(world: ProtectionWorld, rule: dict[str, Any], now: str) -> tuple[str, str]:
    row = world.rows(
        "select begins at time zone 'UTC' as b, ends at time zone 'UTC' as e"
        " from private.flat_period(jsonb_populate_record(null::public.flat_times, %s), %s)",
        Jsonb({"until_weekday": 7, "until_at": "17:00", "until_time_zone": "America/New_York"} | rule), now,
    )[0]  # fmt: skip
    return f"{row['b']:%m-%d %H:%M}", f"{row['e']:%m-%d %H:%M}"


NEW_YORK = {"weekday": 5, "flat_at": "16:45", "time_zone": "America/New_York"}
BERLIN = NEW_YORK | {"time_zone": "Europe/Berlin", "flat_at": "22:30"}
MONDAY = {"until_weekday": 1, "until_at": "09:00"}


@pytest.mark.parametrize(
    ("rule", "now", "begins", "ends"),
    [
        (NEW_YORK, "2026-12-02T12:00Z", "12-04 21:45", "12-06 22:00"),  # winter
        (NEW_YORK, "2026-07-01T12:00Z", "07-03 20:45", "07-05 21:00"),  # summer
        (NEW_YORK, "2026-03-06T12:00Z", "03-06 21:45", "03-08 21:00"),  # the clocks go forward on Sunday at 02:00
        (NEW_YORK, "2026-10-30T12:00Z", "10-30 20:45", "11-01 22:00"),  # the clocks go back on Sunday at 02:00
        (BERLIN, "2026-03-25T00:00Z", "03-27 21:30", "03-29 21:00"),
        (NEW_YORK, "2026-12-05T12:00Z", "12-04 21:45", "12-06 22:00"),  # in the middle
        (NEW_YORK, "2026-12-04T21:45Z", "12-04 21:45", "12-06 22:00"),  # it begins
        (NEW_YORK, "2026-12-04T21:44Z", "12-04 21:45", "12-06 22:00"),
        (NEW_YORK, "2026-12-06T21:59Z", "12-04 21:45", "12-06 22:00"),
        (NEW_YORK, "2026-12-06T22:00Z", "12-11 21:45", "12-13 22:00"),  # it is over
        # skipped by the clock: 02:30 is 03:30; there twice: the first one
        (NEW_YORK | {"weekday": 7, "flat_at": "02:30"}, "2026-03-07T00:00Z", "03-08 07:30", "03-08 21:00"),
        (NEW_YORK | {"weekday": 7, "flat_at": "01:30"}, "2026-10-31T00:00Z", "11-01 05:30", "11-01 22:00"),
        # over the week's end, and for almost a week
        (NEW_YORK | {"weekday": 7} | MONDAY, "2026-12-07T12:00Z", "12-06 21:45", "12-07 14:00"),
        (NEW_YORK | {"until_weekday": 5, "until_at": "16:44"}, "2026-12-10T12:00Z", "12-04 21:45", "12-11 21:44"),
    ],
)  # fmt: skip
def test_the_period_of_the_week(world: ProtectionWorld, rule: dict[str, Any], now: str, begins: str, ends: str) -> None:
    assert period(world, rule, now) == (begins, ends)


@pytest.mark.covers("R30")
def test_at_its_time_everything_is_closed_and_copying_goes_on_by_itself(world: ProtectionWorld) -> None:
    holding(world)
    flat_by(world, 120, 240)
    run(world)
    assert (world.copy_state(), world.alerts()) == ("on", {})
    shift(world, 29, 240)
    run(world)
    run(world)
    assert (world.copy_state(), world.alerts()) == ("on", {"flat_by_soon": 1})
    shift(world, 0, 240)
    run(world)
    assert world.copy_state() == "flattening"
    world.settle()
    assert world.book("F") == []
    world.opened("M")
    world.flat()
    assert world.copy_state() == "on"
    world.opened("M")
    run(world)
    assert (world.copy_state(), world.book("F"), world.open_executions("F")) == ("on", [], [])
    assert world.reasons("F") == {"flat_by": 2}
    shift(world, -240, 0)
    world.opened("M")  # at once, before the upkeep has run
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    run(world)
    assert (world.copy_state(), world.book("F")) == ("on", [("buy", "1.00")])
    assert world.alerts() == {"flat_by_soon": 1, "flat_by": 1}
    assert world.one("select flat_from > now() from public.trading_accounts where id = %s", world.accounts["F"])


def test_a_run_that_comes_late_closes_once(world: ProtectionWorld) -> None:
    holding(world)
    flat_by(world, 120, 240)
    shift(world, -100, 20)  # the VPS, and the upkeep, were away at the time
    run(world)
    world.settle()
    world.flat()
    assert (world.book("F"), world.copy_state()) == ([], "on")
    world.send("F", world.event("opened", world.position("0.30")))  # by hand
    run(world)
    assert (world.book("F"), world.copy_state()) == ([("buy", "0.30")], "on")


def test_a_period_that_passed_unseen_closes_nothing_and_is_said(world: ProtectionWorld) -> None:
    holding(world)
    flat_by(world, 120, 240)
    shift(world, -240, -1)
    run(world)
    assert (world.copy_state(), world.alerts()) == ("on", {"flat_by_missed": 1})
    assert world.book("F") == [("buy", "0.20"), ("buy", "1.00")]


def test_positions_opened_by_hand_may_stay(world: ProtectionWorld) -> None:
    holding(world)
    flat_by(world, 120, 240, close_manual=False)
    shift(world, 0, 240)
    run(world)
    world.settle()
    assert world.book("F") == [("buy", "0.20")]


@pytest.mark.parametrize("state", ["monitor", "off"])
def test_an_account_that_was_paused_is_closed_and_stays_paused(world: ProtectionWorld, state: str) -> None:
    holding(world)
    flat_by(world, 120, 240)
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": state})
    shift(world, 0, 240)
    run(world)
    world.settle()
    world.flat()
    assert (world.book("F"), world.copy_state()) == ([], state)
    shift(world, -240, 0)
    world.opened("M")
    assert world.reasons("F") == {f"account_{state}": 1}


def test_what_stopped_the_account_before_is_still_said_afterwards(world: ProtectionWorld) -> None:
    holding(world)
    flat_by(world, 120, 240)
    world.rule("equity_floor", "9000", action="monitor")
    world.look("9000")
    world.look("9000")
    shift(world, 0, 240)
    run(world)
    world.settle()
    world.flat()
    shift(world, -240, 0)
    world.opened("M")
    assert (world.copy_state(), world.reasons("F")) == ("monitor", {"account_protected": 1})


def test_opens_that_wait_and_pending_orders_end_at_the_time(world: ProtectionWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.report(world.open_executions("F")[0], "rejected", reason="requote", retryable=True)
    order = world.position(kind="order", order_type="limit", price="1.05000")
    world.send("M", world.event("ordered", order))
    world.fill(world.open_executions("F")[-1])
    flat_by(world, 120, 240)
    shift(world, 0, 240)
    run(world)
    world.settle()
    assert (world.book("F"), world.open_executions("F")) == ([], [])
    assert [(e["action"], e["status"], e["reason"]) for e in world.executions("F")] == [
        ("open", "cancelled", "flat_by"), ("place", "completed", None), ("cancel", "completed", None)]  # fmt: skip


def test_a_netting_follower_is_closed_and_opens_nothing(world: ProtectionWorld) -> None:
    world.db.execute("set local session_replication_role = origin")  # with triggers, which make N's plan lock
    world.add_account("N", vps="b", mode="netting")
    world.copy("M", "N")
    world.opened("M")
    world.run()
    flat_by(world, 120, 240, "N")
    shift(world, 0, 240, "N")
    run(world)
    world.run()
    assert world.net == 0
    world.flat("N")
    world.opened("M")
    world.run()
    assert (world.net, world.reasons("N")) == (0, {"flat_by": 1})
    shift(world, -240, 0, "N")
    world.opened("M", "0.50")
    world.run()
    assert f"{world.net:.2f}" == "0.50"


def test_levels_and_closes_go_on_between_the_time_and_the_run_that_closes(world: ProtectionWorld) -> None:
    p = holding(world)
    flat_by(world, 120, 240)
    shift(world, 0, 240)
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "0.90"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "0.40")]
    assert world.reasons("F") == {"flat_by": 1}


def test_an_account_that_follows_nobody_is_not_traded(world: ProtectionWorld) -> None:
    world.opened("M")
    assert flat_by(world, -60, 240, "M")["warnings"] != []
    shift(world, 0, 240, "M")
    run(world)
    assert (world.copy_state("M"), world.open_executions("M"), world.alerts()) == ("on", [], {})


def test_a_time_that_has_passed_closes_only_if_that_is_wanted(world: ProtectionWorld) -> None:
    holding(world)
    with pytest.raises(psycopg.Error, match="holds 2 positions") as said:
        flat_by(world, -60, 240)
    assert (said.value.sqlstate, world.copy_state()) == ("TC322", "on")
    flat_by(world, -60, 240, close_now=True)
    assert world.copy_state() == "flattening"
    flat_by(world, -60, 240, close_now=True)  # the same again
    assert world.alerts() == {"flat_by": 1}


def test_a_removed_flat_time_blocks_nothing(world: ProtectionWorld) -> None:
    world.copy("M", "F")
    flat_by(world, -60, 240)
    world.opened("M")
    assert world.reasons("F") == {"flat_by": 1}
    world.as_user("remove_flat_by", {"account_id": world.accounts["F"]})
    world.flat()
    world.opened("M")
    world.settle()
    assert world.book("F") == [("buy", "1.00")]


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"weekday": 0}, "TC303", "weekday must be 1"),
        ({"weekday": "Friday"}, "TC303", "weekday must be 1"),
        ({"weekday": None}, "TC303", "weekday must be 1"),
        ({"time": "24:00"}, "TC303", "time of day"),
        ({"time": "4pm"}, "TC303", "time of day"),
        ({"time": 16}, "TC303", "time of day"),
        ({"time_zone": "EST5"}, "TC303", "no time zone EST5"),
        ({"time_zone": None}, "TC303", "no time zone null"),
        ({"until": {"weekday": 8}}, "TC303", "until.weekday"),
        ({"until": {"time": "x"}}, "TC303", "until.time"),
        ({"until": {"day": 1}}, "TC301", "until: unknown setting: day"),
        ({"until": "Sunday"}, "TC001", "must be an object"),
        ({"until": {"weekday": 5, "time": "16:45"}}, "TC306", "same moment"),
        ({"close_manual": "yes"}, "TC001", "true or false"),
        ({"close_now": 1}, "TC001", "true or false"),
    ],
)
def test_what_cannot_be_set_is_refused(world: ProtectionWorld, given: dict[str, Any], code: str, words: str) -> None:
    request = {"account_id": world.accounts["F"], "weekday": 5, "time": "16:45", "time_zone": "Europe/Berlin"}
    with pytest.raises(psycopg.Error, match=words) as said:
        world.as_user("set_flat_by", request | given)
    assert said.value.sqlstate == code
    assert world.rows("select * from public.flat_times") == []
