"""Assignments become running sessions: the real paper broker, engine and journal, and a database that the test
plays."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fake_supabase import Answer, Supabase, supabase_server

from agent.clock import DatabaseClock, Lease, boot_time
from agent.connection import account_fitness
from agent.connection.account_state import FIGURES_REPORTED_EVERY, SPECS_PER_LOOK
from agent.connection.connection import ConnectionSettings, Parts
from agent.connection.connections import VPSConnectionManager
from agent.control_plane.client import ControlPlane
from agent.execution.engine import TradeCopyEngine
from agent.journal.journal import Journal
from agent.model import AccountId, AccountState, Assignment, Login, SymbolSpec
from agent.paper.client import PaperClient
from agent.paper.process import PaperProcess
from agent.platforms.factory import PlatformFactory
from agent.platforms.paper.adapter import PaperAdapter
from agent.settings import Settings

LONG_AGO = datetime.now(UTC) - timedelta(minutes=5)


class Bench:
    """A connection manager with its own journal; `server` keeps what the database received."""

    def __init__(
        self, server: Supabase, broker: PaperProcess, paper: PaperClient, manager: VPSConnectionManager
    ) -> None:
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
        self.password = "right"
        self.address = broker.address
        self.revision = 1

    def _credentials(self, request: dict[str, Any]) -> Answer:
        login = self.logins[request["account_id"]]
        return 200, {
            "login": login, "server": "Paper", "address": self.address, "password": self.password, "settings": {},
            "revision": self.revision,
        }  # fmt: skip

    def _open_session(self, _: dict[str, Any]) -> Answer:
        self.sessions += 1
        return 200, {"session": self.sessions, "continues": None, "begins_at": LONG_AGO.isoformat()}

    def _accept_events(self, request: dict[str, Any]) -> Answer:
        results = [{"event_key": f"{e['session']}:{e['seq']}", "status": "accepted"} for e in request["events"]]
        return 200, {"results": results, "executions": []}

    async def account(self, login: str, *, platform: str = "paper", currency: str = "USD") -> Assignment:
        """An account at the broker, assigned to this agent."""
        await self.paper.open_book(login, balance=Decimal(10_000), currency=currency)
        await self.paper.set_passwords(login, password="right")
        self.logins[f"account-{login}"] = login
        return Assignment(
            account_id=AccountId(f"account-{login}"), epoch=1, platform=platform, server="Paper", login=login,
            mode="hedging", currency=currency, revision=1, begins_at=LONG_AGO, watch_symbols=("EURUSD",),
        )  # fmt: skip

    def status(self, assignment: Assignment) -> dict[str, object]:
        return next(
            (s for s in self.manager.statuses() if s["account_id"] == assignment.account_id), {"status": "gone"}
        )

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
        manager = VPSConnectionManager(parts, quick, on_change=lambda: running.news.set())
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


async def test_unchanged_figures_are_reported_again_at_the_database_s_request(bench: Bench) -> None:
    """A protection rule needs a second look, which must not wait for a change."""
    asked: list[Answer] = [(200, {"ok": True, "look_again_ms": 1})] * 3
    bench.server.rpc["report_account_state"] = lambda _: asked.pop() if asked else (200, {"ok": True})
    bench.manager.want([await bench.account("121")])
    await bench.server.until(lambda: len(funds(bench)) == 4)
    looks = funds(bench)
    assert {look["equity"] for look in looks} == {"10000.00"}
    assert len({look["measured_at"] for look in looks}) == 4


async def test_figures_that_never_change_are_reported_from_time_to_time(bench: Bench) -> None:
    """The database relies only on recent figures: an idle account must not look like a disconnected one."""
    looks = 0

    async def next_look(_: float) -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)

    bench.manager._sleep = next_look
    bench.manager.want([await bench.account("123")])
    await bench.server.until(lambda: len(funds(bench)) == 3)
    assert looks >= 2 * FIGURES_REPORTED_EVERY
    assert {figures["equity"] for figures in funds(bench)} == {"10000.00"}


async def test_figures_under_a_protection_rule_are_reported_at_every_look(bench: Bench) -> None:
    account = await bench.account("122")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    assert len(funds(bench)) == 1
    bench.manager.want([replace(account, watch_funds=True)])
    await bench.server.until(lambda: len(funds(bench)) == 3)
    assert bench.sessions == 1, "watching is no reason for another session"


@pytest.mark.covers("L37")
async def test_figures_follow_each_fill_where_sizes_depend_on_them(bench: Bench) -> None:
    account = replace(await bench.account("124"), funds_after_fills=True)
    await bench.paper.set_prices({"EURUSD": (Decimal("1.1"), Decimal("1.1001"))})
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    await bench.server.until(lambda: bool(bench.server.called("queue_trade_copy")))
    told = len(funds(bench))
    await bench.paper.market("124", "EURUSD", "buy", Decimal("0.10"))
    await bench.server.until(lambda: len(funds(bench)) > told)
    assert Decimal(funds(bench)[-1]["margin"]) > 0


@pytest.mark.covers("R7")
async def test_another_accounts_terminal_is_halted_and_never_traded(bench: Bench) -> None:
    account = await bench.account("103")
    other = await bench.account("104")
    bench.logins[account.account_id] = other.login
    bench.manager.want([account])
    status = await bench.until_status(account, "halted")
    assert "login differs" in str(status["error"])
    assert str(status["error"]).startswith("account_mismatch: ")  # the database uses it as the reason of the alert
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


async def test_a_corrected_password_ends_the_long_pause(bench: Bench) -> None:
    """`halted_wait` is ten minutes here, as in production: only the new revision can end it."""
    account = await bench.account("130")
    bench.password = "wrong"
    bench.manager.want([account])
    assert (await bench.until_status(account, "halted"))["revision"] == 1
    bench.password, bench.revision = "right", 2
    bench.manager.want([account])
    assert bench.status(account)["status"] == "halted"
    bench.manager.want([replace(account, revision=2)])
    assert (await bench.until_status(account, "connected"))["revision"] == 2


async def test_a_login_that_has_the_new_password_already_is_not_ended_for_it(bench: Bench) -> None:
    account = await bench.account("131")
    bench.revision = 2  # changed between the heartbeat and the read of the credentials
    bench.manager.want([account])
    assert (await bench.until_status(account, "connected"))["revision"] == 2
    bench.manager.want([replace(account, revision=2)])
    bench.manager.want([replace(account, revision=2)])
    bench.revision = 3
    bench.manager.want([replace(account, revision=3)])
    await bench.until(lambda: bench.status(account)["session"] == 2)
    assert len(bench.server.called("account_credentials")) == 2


async def test_a_bug_with_one_assignment_does_not_stop_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = await bench.account("132"), await bench.account("133")
    take = VPSConnectionManager._take

    def stumble(self: VPSConnectionManager, account_id: AccountId, assignment: Assignment) -> None:
        if account_id == bad.account_id:
            raise KeyError(account_id)
        take(self, account_id, assignment)

    monkeypatch.setattr(VPSConnectionManager, "_take", stumble)
    assert bench.manager.want([bad, good]) == {bad.account_id}
    await bench.until_status(good, "connected")


async def test_a_missing_platform_is_reported_for_its_account_only(bench: Bench) -> None:
    good, bad = await bench.account("107"), await bench.account("108", platform="abacus")
    bench.manager.want([bad, good])
    status = await bench.until_status(bad, "disconnected")
    assert status["unfit"] == "platform_missing"
    assert str(status["error"]).startswith("platform_missing: ")
    assert "abacus" in str(status["error"])
    assert "unfit" not in await bench.until_status(good, "connected")


async def test_a_library_that_is_missing_only_at_first_use_is_reported_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await bench.account("134")

    async def connect(self: PaperAdapter, *_: object) -> AccountState:
        raise ModuleNotFoundError("No module named 'MetaTrader9'")

    monkeypatch.setattr(PaperAdapter, "connect", connect)
    bench.manager.want([account])
    assert (await bench.until_status(account, "disconnected"))["unfit"] == "platform_missing"


@pytest.mark.parametrize(
    "answer",
    [
        (400, {"code": "22023", "message": "the secret cannot be decrypted"}),
        (200, {"login": 7, "password": "p", "revision": 1}),
        (200, {"login": "135", "password": "p", "revision": 1, "settings": "no object"}),
        (200, None),
        (200, []),
    ],
)
async def test_unreadable_credentials_are_reported_for_their_account_only(bench: Bench, answer: Answer) -> None:
    bad, good = await bench.account("135"), await bench.account("136")
    credentials = bench._credentials
    bench.server.rpc["account_credentials"] = lambda said: (
        answer if said["account_id"] == bad.account_id else credentials(said)
    )
    bench.manager.want([bad, good])
    assert (await bench.until_status(bad, "disconnected"))["unfit"] == "credentials_unreadable"
    assert "unfit" not in await bench.until_status(good, "connected")
    bench.server.rpc["account_credentials"] = credentials
    bench.manager.want([replace(bad, revision=2), good])
    assert "unfit" not in await bench.until_status(bad, "connected"), "new settings end it"


async def test_an_account_that_was_taken_away_is_no_longer_reported_as_unfit(bench: Bench) -> None:
    """The database would store the reason again, without its text."""
    account = await bench.account("137")
    told: list[dict[str, object]] = []

    def changed() -> None:
        told.append(bench.status(account))
        bench.news.set()

    bench.manager._on_change = changed
    bench.server.rpc["account_credentials"] = lambda _: (400, {"code": "TC303", "message": "settings: too deep"})
    bench.manager.want([account])
    assert (await bench.until_status(account, "disconnected"))["unfit"] == "credentials_unreadable"
    told.clear()
    bench.manager.want([])
    await bench.until(lambda: bool(told))
    assert (told[0]["status"], told[0]["error"], told[0].get("unfit")) == ("disconnected", None, None)


@pytest.mark.parametrize("code", ["TC103", "TC104"])
async def test_credentials_that_are_refused_to_this_agent_are_not_unreadable(bench: Bench, code: str) -> None:
    account = await bench.account("137")
    bench.server.rpc["account_credentials"] = lambda _: (400, {"code": code, "message": "not now"})
    bench.manager.want([account])
    assert "unfit" not in await bench.until_status(account, "degraded")


async def test_a_broker_out_of_reach_for_long_is_reported_until_it_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = boot_time()
    monkeypatch.setattr(account_fitness, "boot_time", lambda: now)
    account = await bench.account("139")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    address, bench.address = bench.address, "127.0.0.1:1"
    reach = PaperAdapter.connect

    async def connect(self: PaperAdapter, login: Login, take_seq: Callable[[], int]) -> AccountState:
        return await reach(self, replace(login, address=bench.address), take_seq)

    monkeypatch.setattr(PaperAdapter, "connect", connect)
    await bench.paper.disconnect(account.login)
    await bench.until_status(account, "disconnected")
    now += 29
    assert "unfit" not in bench.status(account)
    now += 2
    status = bench.status(account)
    assert (status["unfit"], status["status"], status["session"]) == ("broker_unreachable", "disconnected", 1)
    assert str(status["error"]).startswith("broker_unreachable: ")
    bench.address = address
    assert "unfit" not in await bench.until_status(account, "connected")
    await bench.paper.disconnect(account.login)
    await bench.until(lambda: bench.sessions == 3)
    assert "unfit" not in bench.status(account), "what was before does not count"


async def test_a_refused_login_is_no_broker_out_of_reach(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = boot_time()
    monkeypatch.setattr(account_fitness, "boot_time", lambda: now)
    account = await bench.account("140")
    address, bench.address = bench.address, "127.0.0.1:1"
    bench.manager.want([account])
    await bench.until_status(account, "disconnected")
    bench.password, bench.address, bench.revision = "wrong", address, 2
    bench.manager.want([replace(account, revision=2)])
    await bench.until_status(account, "halted")
    now += 600
    assert (bench.status(account)["status"], bench.status(account).get("unfit")) == ("halted", None)


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


async def test_an_account_that_is_no_longer_assigned_is_released_and_reported_so(bench: Bench) -> None:
    account = await bench.account("113")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    bench.manager.want([])
    status = await bench.until_status(account, "released")
    assert status["session"] == 1
    bench.manager.statuses_delivered(bench.manager.statuses())
    assert bench.manager.statuses() == []


async def test_an_unreadable_assignment_leaves_its_account_alone(bench: Bench) -> None:
    account = await bench.account("114")
    await bench.paper.set_prices({"EURUSD": (Decimal("1.1"), Decimal("1.1001"))})
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    await bench.server.until(lambda: bool(bench.server.called("queue_trade_copy")))
    bench.manager.want([], frozenset({account.account_id}))
    # It goes on working: trades on it are still reported, in the same session.
    await bench.paper.market("114", "EURUSD", "buy", Decimal("0.10"))
    await bench.server.until(lambda: "'opened'" in str(bench.server.called("queue_trade_copy")))
    assert (bench.status(account)["status"], bench.sessions) == ("connected", 1)


async def test_an_account_assigned_again_while_it_is_released_gets_a_new_session(bench: Bench) -> None:
    account = await bench.account("115")
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    bench.manager.want([])
    bench.manager.want([account])
    await bench.until(lambda: bench.status(account)["session"] == 2)


async def test_an_account_that_the_database_refuses_stops_and_tries_again(bench: Bench) -> None:
    account = await bench.account("116")
    refusal = {"code": "TC103", "message": "not assigned", "details": None, "hint": None}
    bench.server.script("queue_trade_copy", (400, refusal))
    bench.manager.want([account])
    await bench.until(lambda: bench.status(account)["session"] == 2)
    assert bench.server.called("open_session")[-1]["p_request"]["account_id"] == account.account_id


async def test_a_session_that_another_login_ended_is_opened_anew(bench: Bench) -> None:
    account = await bench.account("117")
    bench.server.script(
        "report_account_state", (400, {"code": "TC208", "message": "over", "details": None, "hint": None})
    )
    bench.manager.want([account])
    await bench.until(lambda: bench.status(account)["session"] == 2)


async def test_a_clean_stop_disconnects_every_account(bench: Bench) -> None:
    accounts = [await bench.account(str(118 + n)) for n in range(3)]
    bench.manager.want(accounts)
    for account in accounts:
        await bench.until_status(account, "connected")
    assert await bench.manager.drain(10)
    assert bench.manager.connected == 0
    bench.manager.want(accounts)
    assert all(status["status"] == "released" for status in bench.manager.statuses())


async def test_a_symbol_that_the_database_refuses_does_not_stop_the_account(bench: Bench) -> None:
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


async def test_after_a_refused_volume_the_symbol_is_described_again(bench: Bench) -> None:
    """The broker's limits have changed: the new ones reach the database before it tries again."""
    # queued after the login: an execution queued before it would count as possibly sent
    soon = datetime.now(UTC) + timedelta(seconds=30)
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
    """The symbols in the reports that come with a specification."""
    told = [[s for s in state["p_state"].get("symbols", []) if s.get("lots_step")] for state in states(bench)]
    return [symbols for symbols in told if symbols]


async def test_all_symbols_of_a_broker_with_many_are_described_a_part_at_a_time(bench: Bench) -> None:
    """Nothing can be copied into a symbol that the database does not know."""
    names = tuple(f"X{number:03}" for number in range(2 * SPECS_PER_LOOK + 10))

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
    assert max(len(told) for told in descriptions(bench)) <= SPECS_PER_LOOK + len(account.watch_symbols)


async def test_the_pairs_that_convert_an_accounts_money_are_quoted_though_nobody_trades_them(bench: Bench) -> None:
    """Without them a copy between currencies could not be sized."""
    prices = {
        "EURUSD": ("1.1", "1.1001"),
        "GBPUSD": ("1.27", "1.2701"),
        "USDJPY": ("150", "150.01"),
        "XAUUSD": ("2400", "2401"),
    }
    await bench.paper.set_prices({name: (Decimal(bid), Decimal(ask)) for name, (bid, ask) in prices.items()})
    account = replace(await bench.account("122"), watch_symbols=())
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    quoted = {symbol["name"] for symbol in states(bench)[0]["p_state"]["symbols"] if symbol.get("bid")}
    assert quoted == {"EURUSD", "GBPUSD", "USDJPY"}


async def test_a_currency_without_a_direct_pair_is_converted_through_the_dollar(bench: Bench) -> None:
    """A euro account without EURJPY: without a quote of USDJPY its first copy of a yen pair would be refused
    (`stale_funds`)."""
    prices = {
        "EURUSD": ("1.1", "1.1001"),
        "GBPUSD": ("1.27", "1.2701"),
        "USDJPY": ("150", "150.01"),
        "XAUUSD": ("2400", "2401"),
    }
    await bench.paper.set_prices({name: (Decimal(bid), Decimal(ask)) for name, (bid, ask) in prices.items()})
    account = replace(await bench.account("123", currency="EUR"), watch_symbols=())
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    quoted = {symbol["name"] for symbol in states(bench)[0]["p_state"]["symbols"] if symbol.get("bid")}
    assert quoted == {"EURUSD", "GBPUSD", "USDJPY"}


async def test_used_up_attempts_are_reported_unchanged_and_waited_for(bench: Bench) -> None:
    account = await bench.account("140")
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    bench.manager._sleep = wait
    said = "login attempts used up until 2026-11-28T12:00:00Z"
    bench.server.script("account_credentials", (400, {"code": "TC224", "message": said, "hint": "wait"}))
    told: list[dict[str, object]] = []

    def note() -> None:
        told.append(bench.status(account))
        bench.news.set()

    bench.manager._on_change = note
    bench.manager.want([account])
    await bench.until_status(account, "connected")
    assert 60 in waits
    (waited,) = [status for status in told if status["status"] == "disconnected"]
    assert str(waited["error"]).startswith(said)  # the database recognises the waiting account by it
    assert len(bench.server.called("account_credentials")) == 2


@pytest.mark.parametrize(
    ("function", "code"), [("account_credentials", "TC225"), ("open_session", "TC202"), ("open_session", "TC226")]
)
async def test_a_login_that_belongs_to_another_user_halts_the_account(bench: Bench, function: str, code: str) -> None:
    account = await bench.account("141")
    bench.server.script(function, (400, {"code": code, "message": "another user has logged in"}))
    bench.manager.want([account])
    assert "another user" in str((await bench.until_status(account, "halted"))["error"])
    assert bench.server.called("report_account_state") == []


async def test_a_server_that_does_not_answer_costs_no_attempt(bench: Bench) -> None:
    account = await bench.account("142")
    right, bench.address = bench.broker.address, "127.0.0.1:1"
    bench.manager.want([account])
    await bench.until_status(account, "disconnected")
    await bench.until_status(account, "connecting")
    await bench.until_status(account, "disconnected")
    assert len(bench.server.called("account_credentials")) == 1
    bench.address, bench.revision = right, 2  # the operator gave another address
    bench.manager.want([replace(account, revision=2)])
    await bench.until_status(account, "connected")
    assert len(bench.server.called("account_credentials")) == 2


async def test_the_database_learns_whether_a_login_may_trade(bench: Bench) -> None:
    account = await bench.account("143")
    await bench.paper.set_passwords("143", password="right", investor_password="look")
    bench.password = "look"
    bench.manager.want([account])
    status = await bench.until_status(account, "degraded")
    assert "trading_off" in str(status["error"])
    assert bench.server.called("open_session")[-1]["p_request"]["can_trade"] is False
    bench.password, bench.revision = "right", 2
    bench.manager.want([replace(account, revision=2)])
    await bench.until_status(account, "connected")
    assert bench.server.called("open_session")[-1]["p_request"]["can_trade"] is True
