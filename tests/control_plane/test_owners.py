"""One owner's work does not delay another's: no shared calls, few at a time, one account per call where calls time
out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_supabase import Supabase, supabase_server

from agent.clock import DatabaseClock, Lease
from agent.control_plane.client import ControlPlane
from agent.control_plane.owners import AT_ONCE, SLOW_AFTER, WELL_AFTER
from agent.execution.report_outbox import ReportOutbox
from agent.journal.journal import Journal
from agent.model import AccountId, Event, ExecutionId, Report
from agent.settings import Settings

ANSWER: dict[str, Any] = {"results": [], "executions": []}
CUT_OFF = (500, {"code": "57014", "message": "canceling statement due to statement timeout"})
ACCOUNTS = {"a1": "ann", "a2": "ann", "a3": "ann", "b1": "ben", "b2": "ben"}


@pytest.fixture
async def server() -> AsyncIterator[Supabase]:
    async with supabase_server() as running:
        running.rpc["vps_heartbeat"] = lambda _: (200, heartbeat())
        for name in ("report_executions", "queue_trade_copy"):
            running.rpc[name] = lambda _: (200, ANSWER)
        running.rpc["report_account_state"] = lambda _: (200, {"ok": True})
        yield running


@pytest.fixture
async def plane(server: Supabase) -> AsyncIterator[ControlPlane]:
    """An agent that works the accounts of two owners; it knows the owners from a heartbeat."""
    settings = Settings(url=server.url, publishable_key="public", vps_id="vps-1", agent_secret="very-secret")
    async with ControlPlane(settings, DatabaseClock(), sleep=lambda _: asyncio.sleep(0)) as control:
        await control.heartbeat({}, Lease())
        yield control


@pytest.fixture
async def reporter(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[ReportOutbox]:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    made = ReportOutbox(
        journal, plane, owners=plane.owners, submit=lambda _: None, accepted=lambda _: None, batch=200, retry_after=0
    )  # fmt: skip
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await journal.close()


def heartbeat() -> dict[str, object]:
    usual = {
        "epoch": 1, "platform": "paper", "server": "s", "login": "1", "mode": "hedging", "currency": "USD",
        "settings": {}, "revision": 1, "begins_at": "2026-11-22T12:00:00Z", "watch_symbols": [],
    }  # fmt: skip
    assignments = [{**usual, "account_id": account, "owner": owner} for account, owner in ACCOUNTS.items()]
    return {
        "protocol_version": 2, "answer_id": "1", "generation": 1, "last_execution_id": "0",
        "vps_id": "1", "name": "vps-a", "status": "online", "server_time": "2026-11-22T12:00:00Z", "lease_ms": 15000,
        "last_tick_at": None, "topic": "vps:1", "assignments": assignments, "executions": [], "cancel": [],
    }  # fmt: skip


def report(account: str, number: int) -> Report:
    return Report(
        account_id=AccountId(account),
        session=1,
        seq=number,
        execution_id=ExecutionId(number),
        attempt=1,
        outcome="completed",
    )


def snapshot(account: str) -> Event:
    return Event(account_id=AccountId(account), session=1, seq=1, type="snapshot", detected_at=datetime.now(UTC))


def batches(server: Supabase) -> list[list[str]]:
    """The accounts of each call that carried reports."""
    return [[r["account_id"] for r in body["p_reports"]["reports"]] for body in server.called("report_executions")]


def holding(name: str, *accounts: str) -> tuple[Callable[[str, dict[str, Any]], asyncio.Event | None], asyncio.Event]:
    """Calls of this name that are about these accounts are not answered until the event is set."""
    released = asyncio.Event()

    def hold(called: str, argument: dict[str, Any]) -> asyncio.Event | None:
        if called != name:
            return None
        concerned = {argument.get("account_id"), *(each["account_id"] for each in argument.get("reports", ()))}
        return released if concerned & set(accounts) else None

    return hold, released


async def make_slow(plane: ControlPlane, server: Supabase, account: str) -> None:
    server.script("report_executions", *[CUT_OFF] * SLOW_AFTER)
    await plane.report_executions([report(account, 1)])
    server.calls.clear()


async def test_reports_of_two_owners_never_share_a_call(server: Supabase, reporter: ReportOutbox) -> None:
    for number, account in enumerate(["a1", "b1", "a2", "b2", "a1", "b1"], start=1):
        reporter.put(report(account, number))
    await server.until(lambda: sum(map(len, batches(server))) == 6)
    assert sorted(sorted(batch) for batch in batches(server)) == [["a1", "a1", "a2"], ["b1", "b1", "b2"]]


async def test_one_owners_call_that_hangs_does_not_delay_other_owners_reports(
    server: Supabase, reporter: ReportOutbox
) -> None:
    server.hold, released = holding("report_executions", "a1")
    reporter.put(report("a1", 1))
    await server.until(lambda: server.open == 1)
    for number in range(2, 7):
        reporter.put(report("b1", number))
        await server.until(lambda: ["b1"] in batches(server))
    reporter.put(report("a2", 7))
    await server.until(lambda: sum(batch.count("b1") for batch in batches(server)) == 5)
    assert ["a2"] not in batches(server), "an owner's reports stay in order: one call at a time"
    released.set()
    await server.until(lambda: ["a2"] in batches(server))


async def test_an_owner_has_few_calls_in_flight_and_others_get_through(server: Supabase, plane: ControlPlane) -> None:
    server.hold, released = holding("report_account_state", "a1", "a2", "a3")
    states = [asyncio.create_task(plane.report_account_state({"account_id": f"a{n % 3 + 1}"})) for n in range(100)]
    await server.until(lambda: server.open == AT_ONCE)
    for _ in range(3):
        await plane.report_account_state({"account_id": "b1"})
        await plane.queue_trade_copy(AccountId("b2"), 1, [snapshot("b2")])
        await plane.heartbeat({}, Lease())
    assert server.open == AT_ONCE
    released.set()
    await asyncio.gather(*states)


async def test_an_owners_trades_go_before_its_other_calls(server: Supabase, plane: ControlPlane) -> None:
    server.hold, released = holding("report_account_state", "a1", "a2", "a3")
    states = [asyncio.create_task(plane.report_account_state({"account_id": "a1"})) for _ in range(20)]
    await server.until(lambda: server.open == AT_ONCE)
    trade = asyncio.create_task(plane.queue_trade_copy(AccountId("a2"), 1, [snapshot("a2")]))
    await asyncio.sleep(0)
    released.set()
    await trade
    assert [call.name for call in server.calls].index("queue_trade_copy") <= 2 + 2 * AT_ONCE
    await asyncio.gather(*states)


async def test_two_timeouts_in_a_row_make_one_account_per_call(
    server: Supabase, plane: ControlPlane, reporter: ReportOutbox
) -> None:
    await make_slow(plane, server, "a1")
    for number, account in enumerate(["a1", "a2", "b1", "a1", "b2"], start=10):
        reporter.put(report(account, number))
    await server.until(lambda: sum(map(len, batches(server))) == 5)
    assert sorted(map(tuple, batches(server))) == [("a1", "a1"), ("a2",), ("b1", "b2")]


async def test_two_timeouts_in_a_row_make_one_call_at_a_time(server: Supabase, plane: ControlPlane) -> None:
    await make_slow(plane, server, "a1")
    server.hold, released = holding("report_account_state", "a1", "a2", "a3")
    states = [asyncio.create_task(plane.report_account_state({"account_id": f"a{n % 3 + 1}"})) for n in range(9)]
    trade = asyncio.create_task(plane.queue_trade_copy(AccountId("a2"), 1, [snapshot("a2")]))
    await server.until(lambda: server.open == 1)
    await plane.report_account_state({"account_id": "b1"})
    await plane.heartbeat({}, Lease())
    assert (server.open, len(server.called("report_account_state"))) == (1, 2)
    released.set()
    await asyncio.gather(trade, *states)


async def test_one_timeout_or_two_with_an_answer_between_change_nothing(server: Supabase, plane: ControlPlane) -> None:
    for number in range(3):
        server.script("report_executions", CUT_OFF)
        await plane.report_executions([report("a1", number)])
    assert not plane.owners.slow(AccountId("a1"))


async def test_an_owner_is_back_to_normal_after_calls_that_went_well(server: Supabase, plane: ControlPlane) -> None:
    await make_slow(plane, server, "a1")
    assert [plane.owners.slow(AccountId(account)) for account in ("a1", "a3", "b1")] == [True, True, False]
    for number in range(WELL_AFTER - 1):  # the retried call was answered, too
        assert plane.owners.slow(AccountId("a1")), number
        await plane.report_account_state({"account_id": "a2"})
    assert not plane.owners.slow(AccountId("a1"))


@pytest.mark.parametrize("given_up", ["waiting", "under way"])
async def test_a_call_that_is_given_up_gives_its_turn_back(
    server: Supabase, plane: ControlPlane, given_up: str
) -> None:
    await make_slow(plane, server, "a1")
    server.hold, released = holding("report_account_state", "a1")
    states = [asyncio.create_task(plane.report_account_state({"account_id": "a1"})) for _ in range(2)]
    await server.until(lambda: server.open == 1)
    states[0 if given_up == "under way" else 1].cancel()
    released.set()
    await asyncio.gather(*states, return_exceptions=True)
    await plane.report_account_state({"account_id": "a2"})


async def test_reports_stay_in_order_when_an_owner_becomes_known(server: Supabase, tmp_path: Path) -> None:
    """Before the first heartbeat an account counts as an owner of its own; reports in flight then are not overtaken."""
    settings = Settings(url=server.url, publishable_key="public", vps_id="vps-1", agent_secret="very-secret")
    journal = await Journal.open(tmp_path / "early.sqlite")
    async with ControlPlane(settings, DatabaseClock()) as plane:
        reporter = ReportOutbox(
            journal,
            plane,
            owners=plane.owners,
            submit=lambda _: None,
            accepted=lambda _: None,
            batch=200,
        )
        running = asyncio.create_task(reporter.run())
        server.hold, released = holding("report_executions", "a1")
        reporter.put(report("a1", 1))
        await server.until(lambda: server.open == 1)
        await plane.heartbeat({}, Lease())
        reporter.put(report("a1", 2))
        reporter.put(report("a2", 3))
        await server.until(lambda: ["a2"] in batches(server))
        assert batches(server).count(["a1"]) == 1
        released.set()
        await server.until(lambda: batches(server).count(["a1"]) == 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await journal.close()
