"""Assignments become running sessions: the real paper broker, engine and journal, and a database that the test plays."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from supabase_server import Answer, Supabase, supabase_server

from agent.account_reports import FIGURES_TOLD_EVERY, SPECS_AT_ONCE
from agent.clock import DatabaseClock, Lease, boot_time
from agent.connection import ConnectionSettings, Parts
from agent.connections import VPSConnectionManager
from agent.control_plane import ControlPlane
from agent.engine import TradeCopyEngine
from agent.journal import Journal
from agent.model import AccountId, Assignment, SymbolSpec
from agent.paper.client import PaperClient
from agent.paper.process import PaperProcess
from agent.platforms.factory import PlatformFactory
from agent.platforms.paper.adapter import PaperAdapter
from agent.settings import Settings

LONG_AGO = datetime.now(UTC) - timedelta(minutes=5)


class Bench:
    """A connection manager on its own machine: what the database was told stands in `server`."""

    def __init__(self, server: Supabase, broker: PaperProcess, paper: PaperClient, manager: VPSConnectionManager) -> None:
        self.server = server
        self.broker = broker
        self.paper = paper
        self.manager = manager
        self.news = asyncio.Event()
        self.sessions = 0
        server.rpc |= {
            "account_credentials": self._credentials,
            "open_session": self._open_session,
            "report_account_state": lambda _: (200, {"ok": True}),
            "queue_trade_copy": self._accept_events,
            "report_executions": lambda _: (200, {"results": [], "executions": []}),
        }
        self.logins: dict[str, str] = {}
        self.password = broker.token

    def _credentials(self, request: dict[str, Any]) -> Answer:
        login = self.logins[request["account_id"]]
        return 200, {"login": login, "server": self.broker.address, "password": self.password, "settings": {}}

    def _open_session(self, _: dict[str, Any]) -> Answer:
        self.sessions += 1
        return 200, {"session": self.sessions, "continues": None, "begins_at": LONG_AGO.isoformat()}

    def _accept_events(self, request: dict[str, Any]) -> Answer:
        results = [{"event_key": f"{e['session']}:{e['seq']}", "status": "accepted"} for e in request["events"]]
        return 200, {"results": results, "executions": []}

    async def account(self, login: str, *, platform: str = "paper", currency: str = "USD") -> Assignment:
        """A book at the broker, assigned to this agent."""
        await self.paper.open_book(login, balance=Decimal(10_000), currency=currency)
        self.logins[f"account-{login}"] = login
        return Assignment(
            account_id=AccountId(f"account-{login}"), epoch=1, platform=platform, server=self.broker.address, login=login,
            mode="hedging", currency=currency, settings={}, begins_at=LONG_AGO, watch_symbols=("EURUSD",),
        )  # fmt: skip

    def status(self, assignment: Assignment) -> dict[str, object]:
        return next((s for s in self.manager.statuses() if s["account_id"] == assignment.account_id), {"status": "gone"})

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def until_status(self, assignment: Assignment, status: str) -> dict[str, object]:
        await self.until(lambda: self.status(assignment)["status"] == status)
        return self.status(assignment)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(supabase_server())
        broker = await stack.enter_async_context(PaperProcess())
        paper = await stack.enter_async_context(await broker.client())
        clock, lease = DatabaseClock(), Lease()
        lease.renew(boot_time(), 600_000)
        settings = Settings(url=server.url, publishable_key="k", vps_id="v", agent_secret="s")
        plane = await stack.enter_async_context(ControlPlane(settings, clock))
        journal = await Journal.open(tmp_path / "journal.sqlite3")
        stack.push_async_callback(journal.close)
        engine = await stack.enter_async_context(TradeCopyEngine(journal, plane, clock, lease))
        parts = Parts(plane=plane, engine=engine, journal=journal, clock=clock, create_adapter=PlatformFactory().create)
        quick = ConnectionSettings(first_wait=0.02, longest_wait=0.05)
        manager = VPSConnectionManager(parts, quick, on_news=lambda: running.news.set())
        running = Bench(server, broker, paper, manager)
        task = asyncio.create_task(manager.run())
        yield running
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_an_assigned_account_is_connected_and_described(bench: Bench) -> None:
    account = await bench.account("101")
    await bench.paper.set_prices({"EURUSD": (Decimal("1.1"), Decimal("1.1001"))})
    bench.manager.want([account])
    status = await bench.until_status(account, "connected")
    assert status["session"] == 1
    report = bench.server.called("report_account_state")[0]["p_state"]
    assert (report["status"], report["session"], report["epoch"]) == ("connected", 1, 1)
    assert (report["balance"], report["currency"], report["mode"]) == ("10000", "USD", "hedging")
    symbols = {symbol["name"]: symbol for symbol in report["symbols"]}
    assert symbols["EURUSD"]["lots_step"] == "0.01"
    assert "bid" in symbols["EURUSD"]
    await bench.server.until(lambda: bool(bench.server.called("queue_trade_copy")))
    assert bench.server.called("queue_trade_copy")[0]["p_events"]["events"][0]["type"] == "snapshot"


async def test_quotes_that_moved_are_reported_and_others_not(bench: Bench) -> None:
    account = await bench.account("102")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    await bench.paper.set_prices({"EURUSD": (Decimal("1.2"), Decimal("1.2001"))})
    await bench.server.until(lambda: "1.2001" in str(states(bench)[-1]))
    moved = states(bench)[-1]["p_state"]
    assert [symbol["name"] for symbol in moved["symbols"]] == ["EURUSD"]
    assert "contract_size" not in moved["symbols"][0]


def states(bench: Bench) -> list[dict[str, Any]]:
    return bench.server.called("report_account_state")


def funds(bench: Bench) -> list[dict[str, Any]]:
    return [report["p_state"] for report in states(bench) if "equity" in report["p_state"]]


async def test_figures_that_did_not_change_are_told_again_when_the_database_asks(bench: Bench) -> None:
    """A protection rule is in doubt: the second look must not wait for a change."""
    asked: list[Answer] = [(200, {"ok": True, "look_again_ms": 1})] * 3
    bench.server.rpc["report_account_state"] = lambda _: asked.pop() if asked else (200, {"ok": True})
    bench.manager.want([await bench.account("121")])
    await bench.server.until(lambda: len(funds(bench)) == 4)
    looks = funds(bench)
    assert {look["equity"] for look in looks} == {"10000.00"}
    assert len({look["measured_at"] for look in looks}) == 4


async def test_figures_that_never_change_are_told_now_and_then(bench: Bench) -> None:
    """The database trusts only what was measured lately: an account at rest must not pass for one that nobody knows."""
    looks = 0

    async def next_look(_: float) -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)

    bench.manager._sleep = next_look
    bench.manager.want([await bench.account("123")])
    await bench.server.until(lambda: len(funds(bench)) == 3)
    assert looks >= 2 * FIGURES_TOLD_EVERY
    assert {figures["equity"] for figures in funds(bench)} == {"10000.00"}


async def test_figures_under_a_protection_rule_are_told_at_every_look(bench: Bench) -> None:
    account = await bench.account("122")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    assert len(funds(bench)) == 1
    bench.manager.want([replace(account, watch_funds=True)])
    await bench.server.until(lambda: len(funds(bench)) == 3)
    assert bench.sessions == 1, "watching is no reason for another session"


@pytest.mark.covers("R7")
async def test_another_accounts_terminal_is_halted_and_never_traded(bench: Bench) -> None:
    account = await bench.account("103")
    other = await bench.account("104")
    bench.logins[account.account_id] = other.login
    bench.manager.want([account])
    status = await bench.until_status(account, "halted")
    assert "login differs" in str(status["error"])
    assert str(status["error"]).startswith("account_mismatch: ")  # the database takes it for the alert's reason
    assert bench.server.called("open_session") == []
    assert bench.server.called("queue_trade_copy") == []


async def test_a_halted_account_is_tried_again_when_its_assignment_changes(bench: Bench) -> None:
    account = await bench.account("105")
    bench.manager.want([replace(account, login="999")])
    await bench.until_status(account, "halted")
    bench.manager.want([account])
    await bench.until_status(account, "connected")


async def test_a_refused_password_halts_the_account(bench: Bench) -> None:
    account = await bench.account("106")
    bench.password = "wrong"
    bench.manager.want([account])
    await bench.until_status(account, "halted")


async def test_an_unknown_platform_halts_its_account_and_no_other(bench: Bench) -> None:
    good, bad = await bench.account("107"), await bench.account("108", platform="abacus")
    bench.manager.want([bad, good])
    status = await bench.until_status(bad, "halted")
    assert "abacus" in str(status["error"])
    await bench.until_status(good, "connected")


async def test_a_bug_of_one_adapter_touches_no_other_account(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = await bench.account("109"), await bench.account("110")
    bench.server.script("open_session", (200, {"session": "not a number"}))
    bench.manager.want([bad])
    await bench.until(lambda: "account_failed" in caplog.text or bench.status(bad)["status"] == "connected")
    bench.manager.want([bad, good])
    await bench.until_status(good, "connected")
    await bench.until_status(bad, "connected")
    assert "account_failed" in caplog.text


async def test_a_new_epoch_is_a_new_session(bench: Bench) -> None:
    account = await bench.account("111")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    bench.manager.want([replace(account, epoch=2)])
    await bench.until(lambda: bench.status(account)["session"] == 2)
    assert bench.server.called("open_session")[-1]["p_request"]["epoch"] == 2


async def test_new_watched_symbols_do_not_end_the_session(bench: Bench) -> None:
    account = await bench.account("112")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    bench.manager.want([replace(account, watch_symbols=("EURUSD", "XAUUSD", "NOSUCH"))])
    await bench.paper.set_prices({"XAUUSD": (Decimal("4000"), Decimal("4000.2"))})
    await bench.server.until(lambda: "4000.2" in str(states(bench)[-1]))
    assert bench.sessions == 1


async def test_an_account_that_is_not_assigned_any_more_is_let_go_and_said_to_be(bench: Bench) -> None:
    account = await bench.account("113")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    bench.manager.want([])
    status = await bench.until_status(account, "released")
    assert status["session"] == 1
    bench.manager.told(bench.manager.statuses())
    assert bench.manager.statuses() == []


async def test_an_unreadable_assignment_leaves_its_account_alone(bench: Bench) -> None:
    account = await bench.account("114")
    await bench.paper.set_prices({"EURUSD": (Decimal("1.1"), Decimal("1.1001"))})
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    await bench.server.until(lambda: bool(bench.server.called("queue_trade_copy")))
    bench.manager.want([], frozenset({account.account_id}))
    # It goes on working: what happens on it is still told, in the same session.
    await bench.paper.market("114", "EURUSD", "buy", Decimal("0.10"))
    await bench.server.until(lambda: "'opened'" in str(bench.server.called("queue_trade_copy")))
    assert (bench.status(account)["status"], bench.sessions) == ("connected", 1)


async def test_an_account_assigned_again_while_it_is_let_go_comes_back_in_a_new_session(bench: Bench) -> None:
    account = await bench.account("115")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    bench.manager.want([])
    bench.manager.want([account])
    await bench.until(lambda: bench.status(account)["session"] == 2)


async def test_an_account_that_the_database_refuses_stops_and_asks_again(bench: Bench) -> None:
    account = await bench.account("116")
    refusal = {"code": "TC103", "message": "not assigned", "details": None, "hint": None}
    bench.server.script("queue_trade_copy", (400, refusal))
    bench.manager.want([account])
    await bench.until(lambda: bench.status(account)["session"] == 2)
    assert bench.server.called("open_session")[-1]["p_request"]["account_id"] == account.account_id


async def test_a_session_that_another_login_ended_is_opened_anew(bench: Bench) -> None:
    account = await bench.account("117")
    bench.server.script("report_account_state", (400, {"code": "TC208", "message": "over", "details": None, "hint": None}))
    bench.manager.want([account])
    await bench.until(lambda: bench.status(account)["session"] == 2)


async def test_a_clean_stop_lets_go_of_everything(bench: Bench) -> None:
    accounts = [await bench.account(str(118 + n)) for n in range(3)]
    bench.manager.want(accounts)
    for account in accounts:
        await bench.until_status(account, "connected")
    assert await bench.manager.drain(10)
    assert bench.manager.connected == 0
    bench.manager.want(accounts)
    assert all(status["status"] == "released" for status in bench.manager.statuses())


async def test_a_symbol_that_the_database_refuses_keeps_no_account_from_trading(bench: Bench) -> None:
    def refuse_gold(request: dict[str, Any]) -> Answer:
        if any(symbol["name"] == "XAUUSD" for symbol in request.get("symbols", [])):
            return 400, {"code": "TC001", "message": "symbols: an entry is not of the documented form"}
        return 200, {"ok": True}

    bench.server.rpc["report_account_state"] = refuse_gold
    account = await bench.account("117")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    told = [report["p_state"] for report in states(bench) if "XAUUSD" not in str(report)]
    names = [symbol["name"] for report in told for symbol in report.get("symbols", [])]
    assert {"EURUSD", "GBPUSD"} <= set(names)
    assert "balance" in told[0]


async def test_a_terminal_that_hangs_after_its_login_is_tried_again(bench: Bench) -> None:
    class Hanging(PaperAdapter):
        async def symbols(self) -> tuple[str, ...]:
            if bench.sessions == 1:
                await asyncio.Event().wait()
            return await super().symbols()

    manager = bench.manager
    manager._parts = replace(manager._parts, create_adapter=lambda _: Hanging())
    manager._settings = replace(manager._settings, connect_timeout=timedelta(seconds=0.5))
    account = await bench.account("118")
    manager.want([account])
    assert (await bench.until_status(account, "connected"))["session"] == 2


async def test_a_refused_volume_has_the_symbol_described_again(bench: Bench) -> None:
    """The broker's limits have changed: the database is told the newest before it tries once more."""
    soon = datetime.now(UTC) + timedelta(seconds=30)  # after the login: what was queued before it might have been sent already
    order: dict[str, Any] = {
        "id": "1", "attempt": 1, "account_id": "account-120", "epoch": 1, "link_id": "1", "lane": "1", "step_id": "1",
        "after_id": None, "action": "open", "priority": 40, "symbol": "EURUSD", "side": "buy", "order_type": "market",
        "lots": "0.015", "target_lots": None, "ticket": None, "price": None, "sl": None, "tp": None,
        "max_slippage_points": None, "master_price": "1.1", "expires_at": None, "comment": "", "investigate": False,
        "detected_at": soon.isoformat(), "queued_at": soon.isoformat(), "send_before": soon.isoformat(),
    }  # fmt: skip
    bench.server.rpc["queue_trade_copy"] = lambda request: (200, {
        "results": [{"event_key": f"{e['session']}:{e['seq']}", "status": "accepted"} for e in request["events"]],
        "executions": [order],
    })  # fmt: skip
    account = await bench.account("120")
    await bench.paper.set_prices({"EURUSD": (Decimal("1.1"), Decimal("1.1001"))})
    bench.manager.want([account])
    await bench.server.until(lambda: "invalid_volume" in str(bench.server.called("report_executions")))
    await bench.server.until(lambda: len(descriptions(bench)) > 1)
    assert [(symbol["name"], symbol["lots_step"]) for symbol in descriptions(bench)[-1]] == [("EURUSD", "0.01")]


def descriptions(bench: Bench) -> list[list[dict[str, Any]]]:
    """What the reports say of symbols, those that say more than a price."""
    told = [[s for s in state["p_state"].get("symbols", []) if s.get("lots_step")] for state in states(bench)]
    return [symbols for symbols in told if symbols]


async def test_all_symbols_of_a_broker_with_many_are_described_a_part_at_a_time(bench: Bench) -> None:
    """Nothing can be copied into a symbol that the database does not know, and nobody watches it before."""
    names = tuple(f"X{number:03}" for number in range(2 * SPECS_AT_ONCE + 10))

    class Many(PaperAdapter):
        async def symbols(self) -> tuple[str, ...]:
            return names

        async def symbol(self, name: str) -> SymbolSpec | None:
            return await super().symbol("EURUSD")

    manager = bench.manager
    manager._parts = replace(manager._parts, create_adapter=lambda _: Many())
    account = await bench.account("121")
    manager.want([account])
    await bench.server.until(lambda: {*names} <= {symbol["name"] for told in descriptions(bench) for symbol in told})
    assert max(len(told) for told in descriptions(bench)) <= SPECS_AT_ONCE + len(account.watch_symbols)


async def test_the_pairs_that_convert_an_accounts_money_are_quoted_though_nobody_trades_them(bench: Bench) -> None:
    """Without them a copy between currencies could not be sized: its master trades something else."""
    prices = {"EURUSD": ("1.1", "1.1001"), "GBPUSD": ("1.27", "1.2701"), "USDJPY": ("150", "150.01"), "XAUUSD": ("2400", "2401")}
    await bench.paper.set_prices({name: (Decimal(bid), Decimal(ask)) for name, (bid, ask) in prices.items()})
    account = replace(await bench.account("122"), watch_symbols=())
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    quoted = {symbol["name"] for symbol in states(bench)[0]["p_state"]["symbols"] if symbol.get("bid")}
    assert quoted == {"EURUSD", "GBPUSD", "USDJPY"}


async def test_a_currency_without_a_pair_of_its_own_is_converted_by_way_of_the_dollar(bench: Bench) -> None:
    """A euro account without EURJPY: without a quote of USDJPY its first copy of a yen pair would be refused (`stale_funds`)."""
    prices = {"EURUSD": ("1.1", "1.1001"), "GBPUSD": ("1.27", "1.2701"), "USDJPY": ("150", "150.01"), "XAUUSD": ("2400", "2401")}
    await bench.paper.set_prices({name: (Decimal(bid), Decimal(ask)) for name, (bid, ask) in prices.items()})
    account = replace(await bench.account("123", currency="EUR"), watch_symbols=())
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    quoted = {symbol["name"] for symbol in states(bench)[0]["p_state"]["symbols"] if symbol.get("bid")}
    assert quoted == {"EURUSD", "GBPUSD", "USDJPY"}
