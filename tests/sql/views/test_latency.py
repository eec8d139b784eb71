"""`execution_latencies`: the stages of every order, what they add up to, and which orders have none."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld
from protection_harness import ProtectionWorld, make

STAGES = ("detect_ms", "request_ms", "lock_ms", "plan_ms", "deliver_ms", "lane_ms", "broker_ms")
SUMS = ("ours_ms", "whole_ms")
#: when each stage ends, in ms after the master's fill
MOMENTS = {
    "detected_at": 3, "requested_at": 5, "locked_at": 6, "planned_at": 10, "received_at": 14, "sent_at": 15,
    "done_at": 55,
}  # fmt: skip


@pytest.fixture
def protection(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


def latencies(world: NettingWorld, follower: str = "F") -> list[dict[str, Any]]:
    return world.rows(
        "select t.*, q.action from public.execution_latencies t join public.trade_execution_queue q on q.id = t.id"
        " where t.account_id = %s order by t.id",
        world.accounts[follower],
    )


def times(row: dict[str, Any], *names: str) -> tuple[float | None, ...]:
    return tuple(None if row[name] is None else float(row[name]) for name in names or (*STAGES, *SUMS))


def put(world: NettingWorld, **moments: int) -> None:
    """Sets every event's and order's times, in ms after the master's fill."""
    tables: dict[str, dict[str, int]] = {"trade_events": {"dealt_at": 0}, "trade_execution_queue": {}}
    for name, ms in (MOMENTS | moments).items():
        if name in ("dealt_at", "detected_at", "requested_at", "locked_at"):
            tables["trade_events"][name] = ms
        if name not in ("dealt_at", "requested_at", "locked_at"):
            tables["trade_execution_queue"][name] = ms
    for table, columns in tables.items():
        values = ", ".join(f"{name} = date_trunc('second', now()) + interval '{ms} ms'" for name, ms in columns.items())
        world.db.execute(f"update public.{table} set {values} where true")


def test_the_stages_follow_each_other_and_add_up(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    put(world)
    (row,) = latencies(world)
    assert times(row) == (3, 2, 1, 4, 4, 1, 40, 12, 55)
    assert sum(row[name] for name in STAGES) == row["whole_ms"]
    assert sum(row[name] for name in STAGES[1:6]) == row["ours_ms"]
    assert row["measured"]
    (trade,) = world.rows("select * from public.copied_trades")
    assert times(trade) == times(row)


def test_where_two_clocks_disagree_a_stage_is_null_and_never_negative_or_zero(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    put(world, dealt_at=4, received_at=9)
    assert times(latencies(world)[0]) == (None, 2, 1, 4, None, 6, 40, 12, 51)
    put(world, detected_at=20, done_at=14)
    (row,) = latencies(world)
    assert times(row) == (20, None, 1, 4, 4, 1, None, None, 14)
    assert not row["measured"]


def test_a_real_call_is_timed_by_the_database_itself(world: NettingWorld) -> None:
    """Planning is planning: the order's plan stage ends after its decision, not before it."""
    world.copy("M", "F")
    filled = datetime.now(UTC) - timedelta(milliseconds=30)
    seen = filled + timedelta(milliseconds=10)
    world.send("M", world.event("opened", world.position(), detected_at=seen.isoformat(), dealt_at=filled.isoformat()))
    (order,) = world.open_executions("F")
    (event,) = world.rows("select * from public.trade_events where type = 'opened'")
    moments = [
        event["dealt_at"], event["detected_at"], event["requested_at"], event["locked_at"], order["queued_at"],
        order["planned_at"],
    ]  # fmt: skip
    assert moments == sorted(moments)
    assert event["locked_at"] == order["queued_at"] < order["planned_at"]
    world.fill(order)
    assert None not in times(latencies(world)[0])


def test_the_agent_says_when_the_message_that_it_got_was_planned(world: NettingWorld) -> None:
    """The row cannot know the last statement of its own transaction; the message does."""
    world.copy("M", "F")
    world.opened("M")
    (order,) = world.open_executions("F")
    payload = world.one(
        "select payload from realtime.messages where event = 'executions' order by inserted_at desc limit 1"
    )
    message = payload if isinstance(payload, dict) else json.loads(payload)
    planned = datetime.fromisoformat(message["planned_at"])
    assert planned > order["planned_at"]
    world.report(order, positions=[world.position(ticket="9")], filled_lots="1.00", planned_at=planned.isoformat())
    assert world.executions("F")[0]["planned_at"] == planned


@pytest.mark.parametrize("planned", ["soon", 7, {}, None])
def test_a_planned_at_that_is_no_time_costs_no_report(world: NettingWorld, planned: object) -> None:
    world.copy("M", "F")
    world.opened("M")
    (order,) = world.open_executions("F")
    answer = world.report(order, positions=[world.position(ticket="9")], filled_lots="1.00", planned_at=planned)
    assert answer["results"][0]["status"] == "accepted"
    (row,) = world.executions("F")
    assert (row["status"], row["planned_at"]) == ("completed", order["planned_at"])


# --- orders that no event of a master caused ------------------------------------------------------------------


def flatten(world: NettingWorld, p: dict[str, Any]) -> None:
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})


def remove(world: NettingWorld, p: dict[str, Any]) -> None:
    world.as_user("remove_copier", {"copier_id": world.copiers["M>F"], "mode": "close_now"})


def close_while_off(world: NettingWorld, p: dict[str, Any]) -> None:
    """The master closes while the account is off; its user switches it on again later."""
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "on"})


def change_levels(world: NettingWorld, p: dict[str, Any]) -> None:
    """Another mode of the stop loss: the copy's stop is moved although the master did nothing."""
    world.as_user("save_copier", {"id": world.copiers["M>F"], "sl_mode": "fixed", "sl_points": 300})


def ask_again(world: NettingWorld, p: dict[str, Any]) -> None:
    """The copy is closed by hand, and its user asks for it again."""
    (held,) = world.rows(
        "select ticket, side from public.positions where account_id = %s and closed_at is null", world.accounts["F"]
    )
    world.send("F", world.event("closed", world.position("0", held["side"], held["ticket"])))
    item = {"kind": "missing", "master_ticket": p["ticket"], "action": "copy"}
    world.as_user("resync_copier", {"copier_id": world.copiers["M>F"], "items": [item]})


def copy_existing(world: NettingWorld, p: dict[str, Any]) -> None:
    """A new copier copies what its master holds already."""
    world.as_user("remove_copier", {"copier_id": world.copiers["M>F"], "mode": "preserve"})
    world.copy("M", "F", copy_existing="all")


CAUSES: dict[str, Callable[[NettingWorld, dict[str, Any]], None]] = {
    "flatten": flatten, "remove": remove, "pause": close_while_off, "levels": change_levels, "resync": ask_again,
    "existing": copy_existing,
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_an_order_that_no_event_caused_has_no_latency(world: NettingWorld, cause: str) -> None:
    """Today's flatten does not show how long ago the master opened."""
    world.copy("M", "F")
    p = world.opened("M", sl="1.09")
    world.settle()
    CAUSES[cause](world, p)
    world.settle()
    first, *later = latencies(world)
    assert first["measured"]
    assert later
    for row in later:
        assert times(row) == (None,) * 9, row["action"]
        assert not row["measured"]
    assert all(row["detected_at"] is None for row in world.executions("F")[1:])


@pytest.mark.parametrize("follower", ["F", "N"])
def test_what_a_netting_or_hedging_account_closes_when_flattened_has_none(world: NettingWorld, follower: str) -> None:
    world.copy("M", follower)
    world.opened("M")
    world.settle_both()
    world.as_user("flatten_account", {"account_id": world.accounts[follower]})
    world.settle_both()
    assert [times(row) for row in latencies(world, follower)[1:]] == [(None,) * 9]


def test_a_limit_that_closes_everything_has_none(protection: ProtectionWorld) -> None:
    protection.copy("M", "F")
    protection.opened("M")
    protection.settle()
    protection.rule("daily_loss", "5")
    protection.look("100000")
    protection.look("90000")
    protection.look("90000")
    closes = [row for row in latencies(protection) if row["action"] == "close"]
    assert closes
    assert [times(row) for row in closes] == [(None,) * 9] * len(closes)


def test_a_flattening_is_not_booked_to_an_event_that_changed_nothing(world: NettingWorld) -> None:
    world.copy("M", "F", sl_mode="none", tp_mode="none")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    world.settle()
    rows = world.rows(
        "select event, reason, whole_ms, ours_ms, filled_lots from public.copied_trades order by event_id"
    )
    assert [(r["event"], r["reason"], r["ours_ms"] is None, r["filled_lots"]) for r in rows] == [
        ("opened", None, False, Decimal(1)), ("modified", "no_change", True, None),
    ]  # fmt: skip


def test_what_a_snapshot_finds_closed_is_an_event_of_the_master(world: NettingWorld) -> None:
    """The master's agent was away: two complete reads show that the position is gone. The copy's close has a latency,
    from the read on."""
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    for _ in range(2):
        world.send("M", world.event("snapshot", positions=[]))
    world.settle()
    row = latencies(world)[1]
    assert (row["action"], row["measured"], row["whole_ms"]) == ("close", True, None)
    assert None not in times(row)[1:6]


def test_a_cancel_of_the_master_has_a_latency_and_one_by_flattening_has_none(world: NettingWorld) -> None:
    world.copy("M", "F")
    order = world.position("1.00", kind="order", order_type="limit", price="1.05")
    world.send("M", world.event("ordered", order))
    world.settle()
    world.send("M", world.event("cancelled", order | {"lots": "0"}))
    world.settle()
    other = world.position("1.00", kind="order", order_type="limit", price="1.05")
    world.send("M", world.event("ordered", other))
    world.settle()
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    world.settle()
    assert [(row["action"], row["ours_ms"] is not None) for row in latencies(world)] == [
        ("place", True), ("cancel", True), ("place", True), ("cancel", False),
    ]  # fmt: skip


# --- waits and retries ------------------------------------------------------------------------------------------


def test_a_step_that_waited_for_an_earlier_order_counts_its_wait(world: NettingWorld) -> None:
    """The reduction came while the open was in flight: it is planned when that has ended, and late all the same."""
    world.copy("M", "F")
    p = world.opened("M")
    (first,) = world.open_executions("F")
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    assert len(world.open_executions("F")) == 1
    world.fill(first)
    (reduction,) = world.open_executions("F")
    world.fill(reduction)
    row = latencies(world)[1]
    assert row["measured"]
    assert None not in times(row)[1:8]
    assert row["plan_ms"] >= 0


def test_a_second_attempt_has_the_times_of_its_own(world: NettingWorld) -> None:
    """Attempt 1 was sent and refused, attempt 2 expired unsent: nothing of attempt 1 is left beside it."""
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (order,) = world.open_executions("F")
    world.report(order, "rejected", reason="requote", retryable=True)
    world.come_due()
    (again,) = world.open_executions("F")
    assert (again["attempt"], again["sent_at"], again["done_at"]) == (2, None, None)
    assert again["planned_at"] > order["planned_at"]
    now = datetime.now(UTC).isoformat()
    world.report(again, "expired", received_at=now, sent_at=None, done_at=now)
    row = latencies(world)[1]
    assert (row["lane_ms"], row["broker_ms"], row["ours_ms"], row["whole_ms"]) == (None,) * 4


def test_a_late_report_of_an_earlier_attempt_makes_no_negative_stage(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (order,) = world.open_executions("F")
    then = datetime.now(UTC)
    world.report(order, "rejected", reason="requote", retryable=True)
    world.come_due()
    state = world.position("0", order["side"], order["ticket"])
    before = {name: (then - timedelta(seconds=2)).isoformat() for name in ("received_at", "sent_at", "done_at")}
    world.report(order, positions=[state], filled_lots="1.00", **before)
    for row in latencies(world):
        assert all(row[name] is None or row[name] >= 0 for name in (*STAGES, *SUMS))


def test_an_order_that_was_completed_without_being_sent_has_neither_sum(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    (order,) = world.open_executions("F")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.report(order, "cancelled", reason="already_closed", sent_at=None)
    (close,) = world.open_executions("F")
    world.report(close, filled_lots="0", sent_at=None)
    row = latencies(world)[1]
    assert (row["ours_ms"], row["whole_ms"], row["broker_ms"], row["measured"]) == (None, None, None, False)


def test_an_order_that_was_found_later_has_no_time_of_its_fill(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.send("M", world.event("opened", world.position(), dealt_at=datetime.now(UTC).isoformat()))
    (order,) = world.open_executions("F")
    world.report(order, positions=[world.position(ticket="9")], filled_lots="1.00", adopted=True)
    (row,) = latencies(world)
    assert (row["broker_ms"], row["whole_ms"], row["measured"]) == (None, None, False)


def test_a_copy_of_a_copy_begins_when_the_first_copys_agent_saw_it(world: NettingWorld) -> None:
    world.add_account("G", vps="c")
    world.copy("M", "F")
    world.copy("F", "G")
    world.opened("M")
    world.fill(world.open_executions("F")[0])
    world.fill(world.open_executions("G")[0])
    (row,) = latencies(world, "G")
    assert None not in times(row)[1:6]
    assert row["whole_ms"] is None, "F's broker did not say when it filled"


def test_only_its_owner_and_operators_read_a_latency(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    stranger = world.one("insert into auth.users (id, email) values (gen_random_uuid(), 'x@y.test') returning id")
    for who, count in ((world.user, 1), (str(stranger), 0)):
        with world.db.transaction():
            world.db.execute(
                "select set_config('request.jwt.claims', %s, true)",
                (json.dumps({"sub": who, "role": "authenticated"}),),
            )
            world.db.execute("set local role authenticated")
            assert world.one("select count(*) from public.execution_latencies") == count
            world.db.execute("reset role")
