"""`copy_figures`: one count of trades, orders and times for terminal, dashboard and JSON."""

from collections import Counter
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld


def figures(world: NettingWorld, **request: Any) -> dict[str, Any]:
    answer: dict[str, Any] = world.as_user("copy_figures", request)
    return answer


def of_everybody(world: NettingWorld, most: int | None = None, latest: int | None = None) -> dict[str, Any]:
    """What terminal and JSON read."""
    answer: dict[str, Any] = world.one("select private.figures_of(null, null, %s, %s, 0)", most, latest)
    return answer


def busy(world: NettingWorld) -> None:
    """A trade of each result: copied, partly, in flight, not copied by rule and by broker, nothing to do."""
    world.copy("M", "F")
    world.copy("M2", "N", sizing_value="0.001")
    first = world.opened("M", "1.00")
    world.settle()
    world.opened("M", "0.50")
    (execution,) = world.open_executions("F")
    ticket = world.ticket()
    state = world.position("0.20", "buy", ticket, tag=str(execution["id"]))
    world.report(execution, positions=[state], filled_lots="0.20", price="1.10000")
    world.opened("M", "0.40")
    world.report(world.open_executions("F")[0], "rejected", reason="no_money", message="not enough money")
    world.come_due()
    for again in world.open_executions("F"):
        world.report(again, "rejected", reason="no_money", message="not enough money")
    small = world.opened("M2", "1.00")
    world.send("M2", world.event("closed", small | {"lots": "0"}))
    world.send("M", world.event("modified", first | {"sl": "1.05"}))


def test_every_trade_is_counted_once_by_its_result(world: NettingWorld) -> None:
    busy(world)
    world.opened("M", "0.30")
    counted = figures(world)
    shown = world.rows("select status, reason, orders from public.copied_trades")
    results = Counter(row["status"] for row in shown)
    assert set(results) == {"copied", "partly", "in_flight", "nothing_to_do", "not_copied"}
    assert counted["trades"] == dict(results) | {"all": len(shown)}
    refused = [row for row in shown if row["status"] == "not_copied"]
    assert counted["not_copied"] == Counter(row["reason"] for row in refused) == {"below_min": 1, "no_money": 1}
    assert counted["skipped"] == {"below_min": 1}
    assert [(one["reason"], one["ordered"]) for one in counted["refused"]] == [("below_min", False), ("no_money", True)]


def test_orders_and_their_success_are_counted(world: NettingWorld) -> None:
    busy(world)
    counted = figures(world)
    shown = Counter(row["status"] for row in world.rows("select status from public.trade_execution_queue"))
    orders = counted["orders"]
    assert orders["completed"] == shown["completed"]
    assert orders["rejected"] == {"no_money": shown["rejected"]}
    assert orders["open"] == shown["queued"] + shown["retrying"]
    ended = shown["completed"] + shown["rejected"]
    assert counted["success_rate"] == round(shown["completed"] / ended, 6)


def test_what_was_dropped_because_nothing_was_left_to_do_is_no_failure(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.report(world.open_executions("F")[0], "rejected", reason="market_closed", retryable=True, message="closed")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.opened("M", "0.50")
    world.settle()
    counted = figures(world)
    assert (counted["orders"]["completed"], counted["orders"]["cancelled"], counted["success_rate"]) == (1, 1, 1)
    assert counted["trades"] | {"all": 0} == {
        "all": 0, "copied": 1, "partly": 0, "in_flight": 0, "nothing_to_do": 2, "not_copied": 0,
    }  # fmt: skip


def test_terminal_and_json_count_the_same(world: NettingWorld) -> None:
    busy(world)
    own, all_of_it = figures(world), of_everybody(world)
    for name in ("trades", "not_copied", "skipped", "orders", "success_rate", "latency_ms"):
        assert own[name] == all_of_it[name], name


def test_times_are_nearest_rank_percentiles_of_the_newest_orders(world: NettingWorld) -> None:
    world.copy("M", "F")
    for _ in range(12):
        world.opened("M", "0.10")
        world.settle()
    assert of_everybody(world)["latency_ms"]["n"] == 12
    world.db.execute(
        "update public.trade_execution_queue q set sent_at = q.detected_at + x.n * interval '1 ms'"
        " from (select id, row_number() over (order by id) as n from public.trade_execution_queue) x where x.id = q.id"
    )
    assert of_everybody(world)["latency_ms"] == {"p50": 6, "p95": 12, "p99": 12, "max": 12, "n": 12}
    assert of_everybody(world, latest=5)["latency_ms"] == {"p50": 10, "p95": 12, "p99": 12, "max": 12, "n": 5}
    # what no master caused, or whose clocks disagree, has no latency: null, never 0
    world.db.execute("update public.trade_execution_queue set sent_at = detected_at - interval '1 ms' where true")
    assert of_everybody(world)["latency_ms"] == {"p50": None, "p95": None, "p99": None, "max": None, "n": 0}


def test_today_begins_at_midnight_of_the_readers_zone(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_value="0.001")
    world.opened("M", "1.00")
    at = "date_trunc('day', now(), %s) - interval '1 s'"
    assert figures(world, time_zone="Asia/Tokyo")["trades"]["all"] == 1
    world.db.execute(f"update public.copy_outcomes set decided_at = {at} where true", ("Asia/Tokyo",))
    assert figures(world, time_zone="Asia/Tokyo")["trades"]["all"] == 0
    assert figures(world, time_zone="Asia/Tokyo")["since"] == world.one(
        "select private.rfc3339(date_trunc('day', now(), 'Asia/Tokyo'))"
    )


def test_a_limit_counts_the_newest(world: NettingWorld) -> None:
    world.copy("M", "F")
    for _ in range(4):
        world.opened("M", "0.10")
        world.settle()
    counted = of_everybody(world, most=3)
    assert (counted["most"], counted["trades"]["all"], counted["orders"]["completed"]) == (3, 3, 3)


def test_a_user_sees_own_trades_and_an_operator_all_if_asked(world: NettingWorld) -> None:
    busy(world)
    stranger, operator = world._user("stranger@example.test"), world._user("operator@example.test")
    world.db.execute("insert into public.operators (user_id) values (%s)", (operator,))
    for who in (stranger, operator):
        nothing = world.call(who, "copy_figures", {})
        assert nothing["trades"] == dict.fromkeys(nothing["trades"], 0)
        assert (nothing["not_copied"], nothing["refused"], nothing["success_rate"]) == ({}, [], None)
    assert world.call(operator, "copy_figures", {"all": True})["trades"] == figures(world)["trades"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"all": True}, "TC107"),
        ({"all": "yes"}, "TC001"),
        ({"time_zone": "Mars/Olympus"}, "TC303"),
        ({"time_zone": 5}, "TC001"),
        ({"zone": "UTC"}, "TC301"),
        ([], "TC001"),
    ],
)
def test_what_is_no_request_is_refused(world: NettingWorld, request_: Any, code: str) -> None:
    with pytest.raises(psycopg.Error) as refused, world.db.transaction():
        world.as_user("copy_figures", request_)
    assert refused.value.sqlstate == code
