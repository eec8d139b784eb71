"""What an account reports repeatedly, because the database relies only on recent values."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.account.session import AccountSession
from agent.clock import DatabaseClock
from agent.connection.account_state import AccountReports
from agent.control_plane.retry import Refused, Unreachable
from agent.model import AccountState, BalanceOperation, Quote, SymbolSpec

PAIRS = ("EURUSD", "USDJPY", "GBPUSD")


def spec(name: str) -> SymbolSpec:
    return SymbolSpec(
        name=name, contract_size=Decimal(100_000), digits=5, tick_size=Decimal("0.00001"),
        profit_currency=name[3:], margin_currency=name[:3],
        lots_min=Decimal("0.01"), lots_max=Decimal(50), lots_step=Decimal("0.01"),
    )  # fmt: skip


class Desk:
    """An account in euros whose prices never move, and the database that it reports to. One look is one turn of the
    clock."""

    def __init__(self, deaf: range) -> None:
        self.look = 0
        self.deaf = deaf
        #: what the broker calls the base of every pair; "": the truth
        self.margin_currency = ""
        self.names: tuple[str, ...] = PAIRS
        #: the reason with which the database refuses a report
        self.refuse: Callable[[dict[str, Any]], bool] = lambda _: False
        self.reports_taken: list[dict[str, Any]] = []
        self.left_out: list[object] = []
        self.reported: dict[str, list[int]] = {name: [] for name in PAIRS}
        adapter = SimpleNamespace(
            symbols=self.symbols, symbol=self.symbol, quote=self.quote, positions=self.positions, account=self.account
        )
        session = SimpleNamespace(
            adapter=adapter, account_id="a", epoch=1, session=1, outdated_specs=set[str](), left_out=set[str](),
            filled=asyncio.Event(),
            health=lambda: ("connected", None),
            check_login=lambda _: None, clear_problem=lambda _: None, set_problem=lambda *_: None,
        )  # fmt: skip
        self.filled = session.filled
        self.news = asyncio.Event()
        self.refused = asyncio.Event()
        self.reports = AccountReports(cast(AccountSession, session), self, DatabaseClock(), (), sleep=self.sleep)
        self.state = AccountState(
            login="1", server="s", currency="EUR", mode="hedging", leverage=100, balance=Decimal(1),
            equity=Decimal(1), margin=Decimal(0), free_margin=Decimal(1),
        )  # fmt: skip

    async def symbols(self) -> tuple[str, ...]:
        return self.names

    async def symbol(self, name: str) -> SymbolSpec | None:
        if name not in self.names:
            return None
        return replace(spec(name), margin_currency=self.margin_currency or name[:3])

    async def quote(self, name: str) -> Quote:
        return Quote(name, Decimal("1.1"), Decimal("1.1001"), DatabaseClock().now())

    async def positions(self) -> tuple[()]:
        return ()

    async def account(self) -> AccountState:
        return self.state

    async def sleep(self, _: float) -> None:
        self.look += 1
        if self.look == 200:
            raise asyncio.CancelledError

    async def report_account_state(self, state: dict[str, Any]) -> int | None:
        if self.look in self.deaf:
            self.refused.set()
            raise Unreachable("report_account_state", "no answer")
        if self.refuse(state):
            raise Refused("report_account_state", "balance: a number is wanted", code="TC001")
        self.reports_taken.append(state)
        self.news.set()
        self.left_out.append(state.get("symbols_left_out"))
        for symbol in state.get("symbols", ()):
            assert len(symbol["name"]) <= 64
            if "bid" in symbol:
                self.reported[symbol["name"]].append(self.look)
        return None


@pytest.mark.parametrize("deaf", [range(0), range(20, 22), range(60, 61), range(35, 45)])
async def test_quotes_for_conversion_are_never_too_old(deaf: range) -> None:
    """The next look repeats a lost report: until then copies would be refused as `stale_funds`."""
    desk = Desk(deaf)
    await desk.reports.first(desk.state)
    with pytest.raises(asyncio.CancelledError):
        await desk.reports.keep()
    for looks in desk.reported.values():
        assert max(b - a for a, b in zip(looks, [*looks[1:], 200], strict=True)) <= 31, desk.reported


@pytest.mark.covers("L37")
async def test_figures_are_reported_right_behind_a_fill_where_sizes_depend_on_them() -> None:
    desk = Desk(range(0))
    await desk.reports.first(desk.state)
    desk.reports.watch((), after_fills=True)
    desk.news.clear()
    task = asyncio.create_task(desk.reports.after_fills())
    desk.state = replace(desk.state, free_margin=Decimal("0.6"))
    desk.filled.set()
    async with asyncio.timeout(5):
        await desk.news.wait()
    assert desk.reports_taken[-1]["free_margin"] == Decimal("0.6")
    assert desk.reports_taken[-1]["measured_at"] <= DatabaseClock().now()
    task.cancel()


@pytest.mark.covers("L37")
async def test_a_failed_report_behind_a_fill_ends_nothing() -> None:
    desk = Desk(range(0))
    await desk.reports.first(desk.state)
    desk.reports.watch((), after_fills=True)
    desk.deaf = range(1)
    desk.news.clear()
    task = asyncio.create_task(desk.reports.after_fills())
    desk.filled.set()
    async with asyncio.timeout(5):
        await desk.refused.wait()
    desk.deaf = range(0)
    desk.filled.set()
    async with asyncio.timeout(5):
        await desk.news.wait()
    assert not task.done()
    task.cancel()


@pytest.mark.covers("L34")
@pytest.mark.parametrize(
    ("currency", "margin", "names", "quoted"),
    [
        ("USD", "AUD", ("EURUSD", "USDJPY", "AUDUSD", "EURGBP"), {"EURUSD", "USDJPY", "AUDUSD"}),
        ("EUR", "AUD", ("EUR/USD", "m.USDJPY.x", "EURGBP_i", "GBP-USD"), {"EUR/USD", "m.USDJPY.x", "EURGBP_i"}),
        ("USDT", "AUD", ("EURUSD", "USDJPY", "EURGBP"), {"EURUSD", "USDJPY"}),
        ("USC", "USD", ("eurusd", "usdjpyc"), {"eurusd", "usdjpyc"}),
        ("USD", "USD", ("US30", "AAPL", "EURUSD"), {"EURUSD"}),
        ("BRL", "USD", ("USDBRL", "EURUSD"), {"USDBRL", "EURUSD"}),
        ("USD", "USD", ("XAUUSD", "BTCUSD", "GBPUSD"), {"GBPUSD"}),
        ("BTC", "USD", ("BTCUSD", "EURUSD", "ETHUSD"), {"BTCUSD", "EURUSD"}),
    ],
)
async def test_pairs_for_conversion_are_known_by_their_names(
    currency: str, margin: str, names: tuple[str, ...], quoted: set[str]
) -> None:
    """Some brokers say that the base of every pair is the account's own currency, or AUD."""
    desk = Desk(range(0))
    desk.names = names
    desk.reported = {name: [] for name in names}
    desk.margin_currency = margin
    desk.state = replace(desk.state, currency=currency)
    await desk.reports.first(desk.state)
    assert {name for name, looks in desk.reported.items() if looks} == quoted


async def test_the_number_of_symbols_beyond_the_limits_is_reported_once() -> None:
    desk = Desk(range(0))
    desk.names = (*PAIRS, "x" * 65, "y" * 1_000_000)
    await desk.reports.first(desk.state)
    with pytest.raises(asyncio.CancelledError):
        await desk.reports.keep()
    assert desk.left_out[0] == 2
    assert set(desk.left_out[1:]) == {None}


async def test_a_report_that_is_refused_without_its_symbols_too_blames_none_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = Desk(range(0))
    asked: list[int] = []

    def refuse(state: dict[str, Any]) -> bool:
        asked.append(len(state.get("symbols", ())))
        return True

    desk.refuse = refuse
    with pytest.raises(Refused, match="balance"):
        await desk.reports.first(desk.state)
    assert asked == [3, 0]
    assert "symbol_refused" not in caplog.text


@pytest.mark.parametrize("bad", [{"USDJPY"}, {"EURUSD", "GBPUSD"}, set(PAIRS)])
async def test_symbols_that_are_refused_are_logged_and_the_others_reported(
    bad: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(range(0))
    desk.refuse = lambda state: any(symbol["name"] in bad for symbol in state.get("symbols", ()))
    await desk.reports.first(desk.state)
    assert [vars(record)["symbol"] for record in caplog.records if record.message == "symbol_refused"] == sorted(bad)
    told = [symbol["name"] for report in desk.reports_taken for symbol in report.get("symbols", ())]
    assert sorted(told) == sorted(set(PAIRS) - bad)
    assert ["balance" in report for report in desk.reports_taken].count(True) == 1
    assert "balance" in desk.reports_taken[0]


@pytest.mark.covers("X23")
@pytest.mark.parametrize(("names", "said"), [(0, [True]), (100, [False, True]), (300, [False, False, False, True])])
async def test_the_last_part_of_a_list_is_told_as_such(names: int, said: list[bool]) -> None:
    desk = Desk(range(0))
    desk.names = (*PAIRS, *(f"ZZ{n}ZZ" for n in range(names)))
    await desk.reports.first(desk.state)
    with pytest.raises(asyncio.CancelledError):
        await desk.reports.keep()
    assert [r["symbols_complete"] for r in desk.reports_taken if "symbols_complete" in r] == said


@pytest.mark.covers("R33")
async def test_a_balance_operation_travels_with_the_figures_that_contain_it_until_it_has_arrived() -> None:
    desk = Desk(range(20, 40))
    await desk.reports.first(desk.state)
    paid_out = BalanceOperation("77", Decimal("-0.4"), DatabaseClock().now())
    desk.state = replace(desk.state, balance=Decimal("0.6"), balance_operations=(paid_out,))
    with pytest.raises(asyncio.CancelledError):
        await desk.reports.keep()
    told = [report for report in desk.reports_taken if "balance_operations" in report]
    assert [(report["balance"], report["balance_operations"]) for report in told] == [
        (
            Decimal("0.6"),
            [{"number": "77", "amount": Decimal("-0.4"), "at": paid_out.at, "kind": "withdrawal"}],
        )
    ], "once, after the reports that were lost"
    assert len(desk.reports_taken) > len(told)


def told(report: dict[str, Any]) -> list[str]:
    return [symbol["name"] for symbol in report.get("symbols", ())]


async def until_told(desk: Desk) -> dict[str, Any]:
    """Runs what answers questions until the next report."""
    desk.news.clear()
    task = asyncio.create_task(desk.reports.asked())
    async with asyncio.timeout(5):
        await desk.news.wait()
    task.cancel()
    await asyncio.wait([task])
    return desk.reports_taken[-1]


@pytest.mark.covers("X25")
async def test_a_name_that_is_asked_for_is_told_at_once_and_those_like_it_first() -> None:
    desk = Desk(range(0))
    desk.names = (*PAIRS, *(f"QQ{n}QQ" for n in range(500)), "zz-top.pro", "ZZTOP")
    desk.reported |= {"ZZTOP": []}
    await desk.reports.first(desk.state)
    desk.reports.watch(["ZZTOP", "NOT.THERE"])
    report = await until_told(desk)
    assert {"ZZTOP", "zz-top.pro"} <= set(told(report))
    assert "symbols_complete" not in report or report["symbols_complete"] is False
    with pytest.raises(asyncio.CancelledError):
        await desk.reports.keep()
    specs = [s["name"] for r in desk.reports_taken for s in r.get("symbols", ()) if "contract_size" in s]
    assert sorted(specs) == sorted(desk.names)  # each once
    assert [r["symbols_complete"] for r in desk.reports_taken if "symbols_complete" in r][-1] is True


@pytest.mark.covers("X26")
async def test_a_quote_that_is_asked_for_is_told_even_if_the_price_stands_still() -> None:
    desk = Desk(range(0))
    await desk.reports.first(desk.state)
    for names in (["EURUSD"], [], ["EURUSD"]):
        desk.reports.watch(names)
    assert told(await until_told(desk)) == ["EURUSD"]


@pytest.mark.covers("X25")
async def test_an_unreadable_answer_to_a_question_ends_nothing() -> None:
    desk = Desk(range(1))
    desk.names = (*PAIRS, *(f"QQ{n}QQ" for n in range(500)), "ZZTOP")
    desk.reported |= {"ZZTOP": []}
    desk.deaf = range(0)
    await desk.reports.first(desk.state)
    desk.deaf = range(1)
    desk.reports.watch(["ZZTOP"])
    task = asyncio.create_task(desk.reports.asked())
    async with asyncio.timeout(5):
        await desk.refused.wait()
    desk.deaf = range(0)
    desk.news.clear()
    desk.reports.watch(["ZZTOP", "GBPUSD"])
    async with asyncio.timeout(5):
        await desk.news.wait()
    task.cancel()
    await asyncio.wait([task])
    assert "ZZTOP" in told(desk.reports_taken[-1])
