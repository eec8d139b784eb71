"""Wrong types in every field of every call: only TC codes (or refused results) come out, and nobody calls what is not
his."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from planner_harness import World
from spoiled_json import JUNK, LEFT_OUT, paths, spoiled


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> World:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.add_account("N", vps="b", mode="netting")
    w.copy("M", "F")
    w.copy("M", "N")
    return w


Findings = set[tuple[str, str, str, str]]


def sweep(make: Callable[[], Any], call: Callable[[Any], Any]) -> Findings:
    """Calls with junk in one place at a time: place, junk, SQLSTATE and message of every error that is not one of
    ours."""
    found: Findings = set()
    for path in list(paths(make())):
        for junk in JUNK:
            if not path and junk is LEFT_OUT:
                continue
            try:
                call(spoiled(make(), path, junk))
            except psycopg.Error as error:
                if not (error.sqlstate or "").startswith("TC"):
                    place = ".".join(map(str, path))
                    found.add((place, repr(junk)[:25], str(error.sqlstate), str(error).split("\n")[0][:110]))
    return found


def some_events(world: World) -> dict[str, Any]:
    times: dict[str, Any] = {"opened_at": "2026-01-01T00:00:00Z", "expires_at": None}
    names: dict[str, Any] = {"magic": "1", "comment": "c", "tag": None, "replaces": None, "order_type": None}
    opened = world.event("opened", world.position("0.01", sl="1.0", tp="1.2", **times, **names))
    snapshot = world.event("snapshot", positions=[world.position("0.01")])
    closed = world.event("closed", world.position("0"), close_reason="sl")
    return {"account_id": world.accounts["M"], "epoch": 1, "events": [opened, snapshot, closed]}


def a_report(world: World, action: str) -> dict[str, Any]:
    """A whole report on a fresh open, or on the close of a filled one, of F."""
    world.db.execute("delete from private.link_legs")
    world.db.execute("delete from public.trade_execution_queue")
    world.db.execute("delete from public.position_links")
    p = world.opened("M", "0.10")
    if action == "close":
        for execution in world.open_executions("F"):
            world.fill(execution)
        world.send("M", world.event("closed", p | {"lots": "0"}))
    execution = world.open_executions("F")[0]
    outcome = {"outcome": "rejected" if action == "open" else "completed", "reason": "x", "retryable": False}
    report = {
        "account_id": world.accounts["F"],
        "session": 1,
        "seq": next(world._seq),
        "execution_id": str(execution["id"]),
        "attempt": 1,
        "message": "",
        "adopted": False,
        "filled_lots": "0.10",
        "price": "1.1",
        "positions": [world.position("0.10" if action == "open" else "0")],
        "received_at": "2026-01-01T00:00:00Z",
        "sent_at": None,
        "done_at": None,
    }
    return {"reports": [report | outcome]}


@pytest.mark.own_database  # hundreds of calls: what one transaction deletes stays in its way
def test_junk_in_events(world: World) -> None:
    assert sweep(lambda: some_events(world), lambda call: world.as_agent("M", "queue_trade_copy", call)) == set()


@pytest.mark.own_database  # hundreds of calls: what one transaction deletes stays in its way
@pytest.mark.parametrize("action", ["open", "close"])
def test_junk_in_reports(world: World, action: str) -> None:
    assert sweep(lambda: a_report(world, action), lambda call: world.as_agent("F", "report_executions", call)) == set()


def preview() -> dict[str, Any]:
    symbol = {"contract_size": "100", "digits": 5, "tick_size": "0.1", "profit_currency": "USD"}
    limits = {"lots_min": "0.01", "lots_max": "5", "lots_step": "0.01"}
    money = {"balance": "1", "equity": "1", "free_margin": "1"}
    return {
        "copier": {"sizing_mode": "equity_ratio", "sizing_value": "1", "max_leverage": "3"},
        "master": {"currency": "EUR", "symbol": {"contract_size": "100"}, **money},
        "follower": {"currency": "USD", "symbol": {"name": "E", **symbol, **limits}, **money},
        "trade": {"side": "buy", "lots": "1", "price": "1", "sl": None, "tp": None},
        "rates": {"EURUSD": "1.1"},
    }


def user_calls(world: World) -> dict[str, dict[str, Any]]:
    copier = {"mode": "on", "sizing_value": "1", "max_lots": None, "sanity_factor": "3", "symbols": {"A": "B"}}
    more = {"reverse": False, "max_age_ms": 5000, "comment": "x"}
    return {
        "save_copier": {"id": world.copiers["M>F"], **copier, **more},
        "set_copier_mode": {"copier_id": world.copiers["M>F"], "mode": "on"},
        "pause_account": {"account_id": world.accounts["N"], "state": "on"},
        "flatten_account": {"account_id": world.accounts["N"], "include_manual": False},
        "preview_copy": preview(),
    }


@pytest.mark.own_database  # hundreds of calls: what one transaction deletes stays in its way
@pytest.mark.parametrize(
    "function", ["save_copier", "set_copier_mode", "pause_account", "flatten_account", "preview_copy"]
)
def test_junk_in_calls_of_users(world: World, function: str) -> None:
    call = user_calls(world)[function]
    assert sweep(lambda: call, lambda argument: world.as_user(function, argument)) == set()


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
@pytest.mark.parametrize(
    "limit", ["max_lots", "sanity_factor", "max_leverage", "max_risk_coefficient", "max_risk_percent", "sizing_value"]
)
def test_a_limit_that_is_no_number_is_refused(world: World, limit: str, value: str) -> None:
    with pytest.raises(psycopg.Error) as refusal:
        world.as_user("save_copier", {"id": world.copiers["M>F"], limit: value})
    assert (refusal.value.sqlstate or "").startswith("TC")


def test_a_preview_without_the_step_of_lots_is_refused_or_sized(world: World) -> None:
    call = preview() | {"rates": {}}
    del call["follower"]["symbol"]["lots_step"]
    try:
        answer = world.as_user("preview_copy", call)
    except psycopg.Error as refusal:
        code = refusal.sqlstate
    else:
        code = "TC001" if answer["orders"] != [None] else "no lots"
    assert code == "TC001"


def test_a_report_of_a_session_that_was_never_issued_does_not_freeze_the_mirror(world: World) -> None:
    world.opened("M")
    execution = world.open_executions("F")[0]
    world.report(execution, positions=[world.position("1.00", ticket="77")], filled_lots="1.00", session=10**15)
    world.send("F", world.event("closed", world.position("0", ticket="77")))
    assert world.book("F") == []


@pytest.mark.parametrize(
    "bad",
    [{"attempt": 99999999999}, {"outcome": "rejected", "retryable": "maybe"}, {"positions": None, "adopted": 7}],
    ids=["attempt", "retryable", "adopted"],
)
def test_one_bad_report_does_not_lose_the_others(world: World, bad: dict[str, Any]) -> None:
    world.opened("M")
    (execution,) = world.open_executions("F")
    good: dict[str, Any] = {
        "account_id": world.accounts["F"],
        "session": 1,
        "seq": next(world._seq),
        "execution_id": str(execution["id"]),
        "attempt": 1,
        "outcome": "completed",
        "filled_lots": "1.00",
        "positions": [world.position("1.00")],
    }
    call = {"reports": [good | bad | {"seq": next(world._seq)}, good]}
    results = world.as_agent("F", "report_executions", call)["results"]
    assert [result["status"] for result in results] == ["refused", "accepted"]
    assert world.book("F") == [("buy", "1.00")]


def test_functions_are_closed_to_anon(world: World) -> None:
    open_to_anon = world.rows(
        "select p.oid::regprocedure::text as f from pg_proc p where pronamespace in ('public'::regnamespace,"
        " 'private'::regnamespace) and has_function_privilege('anon', p.oid, 'execute')"
    )
    assert open_to_anon == []


@pytest.mark.parametrize("function", ["queue_trade_copy", "report_executions", "vps_heartbeat", "open_session"])
def test_users_cannot_call_functions_of_agents(world: World, function: str) -> None:
    with pytest.raises(psycopg.Error) as refusal:
        world.as_user(function, {"account_id": world.accounts["M"], "epoch": 1, "events": [], "reports": []})
    assert (refusal.value.sqlstate or "").startswith("TC")


@pytest.mark.parametrize("function", ["save_copier", "set_copier_mode", "pause_account", "flatten_account"])
def test_agents_cannot_call_functions_of_users(world: World, function: str) -> None:
    call = {"account_id": world.accounts["M"], "copier_id": world.copiers["M>F"], "mode": "off", "state": "off"}
    with pytest.raises(psycopg.Error) as refusal:
        world.as_agent("M", function, call)
    assert (refusal.value.sqlstate or "").startswith("TC")
