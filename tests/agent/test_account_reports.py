"""What an account reports again and again, look by look, to a database that forgets what is old."""

import asyncio
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.account_reports import AccountReports
from agent.clock import DatabaseClock
from agent.model import AccountState, Quote, SymbolSpec
from agent.retry import Unreachable
from agent.session import AccountSession

PAIRS = ("EURUSD", "USDJPY", "GBPUSD")


def spec(name: str) -> SymbolSpec:
    return SymbolSpec(
        name=name, contract_size=Decimal(100_000), digits=5, tick_size=Decimal("0.00001"),
        profit_currency=name[3:], margin_currency=name[:3],
        lots_min=Decimal("0.01"), lots_max=Decimal(50), lots_step=Decimal("0.01"),
    )  # fmt: skip


class Desk:
    """An account in euros whose prices never move, and the database that it reports to. One look is one turn of the clock."""

    def __init__(self, deaf: range) -> None:
        self.look = 0
        self.deaf = deaf
        self.told: dict[str, list[int]] = {name: [] for name in PAIRS}
        adapter = SimpleNamespace(
            symbols=self.symbols, symbol=self.symbol, quote=self.quote, positions=self.positions, account=self.account
        )
        session = SimpleNamespace(
            adapter=adapter, account_id="a", epoch=1, session=1, doubtful=set[str](), health=lambda: ("connected", None),
            check_login=lambda _: None, well=lambda _: None, trouble=lambda *_: None,
        )  # fmt: skip
        self.reports = AccountReports(cast(AccountSession, session), self, DatabaseClock(), (), sleep=self.sleep)
        self.state = AccountState(
            login="1", server="s", currency="EUR", mode="hedging", leverage=100, balance=Decimal(1),
            equity=Decimal(1), margin=Decimal(0), free_margin=Decimal(1),
        )  # fmt: skip

    async def symbols(self) -> tuple[str, ...]:
        return PAIRS

    async def symbol(self, name: str) -> SymbolSpec:
        return spec(name)

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
            raise Unreachable("report_account_state", "no answer")
        for symbol in state.get("symbols", ()):
            if "bid" in symbol:
                self.told[symbol["name"]].append(self.look)
        return None


@pytest.mark.parametrize("deaf", [range(0), range(20, 22), range(60, 61), range(35, 45)])
async def test_quotes_that_convert_money_are_never_too_old_to_convert_by(deaf: range) -> None:
    """A report that is lost is made good by the next look: copies would be refused as `stale_funds` till then."""
    desk = Desk(deaf)
    await desk.reports.first(desk.state)
    with pytest.raises(asyncio.CancelledError):
        await desk.reports.keep()
    for looks in desk.told.values():
        assert max(b - a for a, b in zip(looks, [*looks[1:], 200], strict=True)) <= 31, desk.told
