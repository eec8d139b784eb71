"""The broker's side of each platform for the contract suite: prices, trades by hand, faults, time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from agent.model import AccountId, Login, Mode, Placed, Side
from agent.paper.client import PaperClient, ticket_of
from agent.paper.profile import Profile
from agent.paper.records import OrderFault, SnapshotFault
from agent.paper.server import PaperServer, ServerSettings
from agent.platforms.adapter import Adapter
from agent.platforms.factory import PlatformFactory

TOKEN = "contract-token"


class Counterparty(Protocol):
    """One broker with a clock that the test moves. Prices begin at EURUSD 1.10000 / 1.10010."""

    platform: str

    def adapter(self) -> Adapter: ...

    async def open_account(self, login: str, mode: Mode = "hedging", latency_ms: int = 0) -> Login: ...

    async def set_price(self, symbol: str, bid: str, ask: str) -> None: ...

    async def open_by_hand(self, login: str, symbol: str, side: Side, lots: str, magic: int = 0) -> str: ...

    async def close_by_hand(self, login: str, ticket: str, lots: str | None = None) -> None: ...

    async def held(self, login: str) -> int:
        """How many positions the account really has."""
        ...

    async def fail_order(self, login: str, kind: OrderFault) -> None: ...

    async def fail_snapshot(self, login: str, kind: SnapshotFault, times: int = 1) -> None: ...

    async def cut(self, login: str) -> None: ...

    async def received(self, login: str, tag: int) -> None:
        """Return when the broker has received an order of that tag."""
        ...

    async def now(self) -> datetime: ...

    async def advance(self, by: timedelta) -> None: ...


class PaperCounterparty:
    platform = "paper"

    def __init__(self, server: PaperServer, paper: PaperClient) -> None:
        self._server = server
        self._paper = paper

    @property
    def operator(self) -> PaperClient:
        return self._paper

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["PaperCounterparty"]:
        settings = ServerSettings(token=TOKEN, virtual_clock=True)
        async with PaperServer(settings) as server, await PaperClient.connect(server.address, TOKEN) as paper:
            counterparty = cls(server, paper)
            await counterparty.set_price("EURUSD", "1.10000", "1.10010")
            yield counterparty

    def adapter(self) -> Adapter:
        return PlatformFactory().create(self.platform)

    async def open_account(self, login: str, mode: Mode = "hedging", latency_ms: int = 0) -> Login:
        profile = Profile(latency_ms_min=latency_ms, latency_ms_max=latency_ms)
        await self._paper.open_book(login, mode=mode, profile=profile)
        await self._paper.set_passwords(login, password="pw")
        return Login(
            account_id=AccountId(login),
            platform=self.platform,
            server="Paper",
            address=self._server.address,
            login=login,
            password="pw",
            mode=mode,
            settings={"paper": {"order_timeout_s": 0.3, "read_timeout_s": 2}},
        )

    async def set_price(self, symbol: str, bid: str, ask: str) -> None:
        await self._paper.set_prices({symbol: (Decimal(bid), Decimal(ask))})

    async def open_by_hand(self, login: str, symbol: str, side: Side, lots: str, magic: int = 0) -> str:
        return ticket_of(await self._paper.market(login, symbol, side, Decimal(lots), magic=magic))

    async def close_by_hand(self, login: str, ticket: str, lots: str | None = None) -> None:
        closed = await self._paper.close_position(login, ticket, None if lots is None else Decimal(lots))
        assert isinstance(closed, Placed)

    async def held(self, login: str) -> int:
        return len((await self._paper.book(login)).positions)

    async def fail_order(self, login: str, kind: OrderFault) -> None:
        await self._paper.fault(login, kind)

    async def fail_snapshot(self, login: str, kind: SnapshotFault, times: int = 1) -> None:
        await self._paper.fault_snapshot(login, kind, times=times)

    async def cut(self, login: str) -> None:
        assert await self._paper.disconnect(login) == 1

    async def received(self, login: str, tag: int) -> None:
        await self._paper.wait_for_request(login, tag)

    async def now(self) -> datetime:
        return await self._paper.now()

    async def advance(self, by: timedelta) -> None:
        await self._paper.advance(by)
