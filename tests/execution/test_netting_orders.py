"""Orders against a net position that may have changed sides: the real engine, journal and paper broker."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import pytest
from engine_harness import ACCOUNT, FakeDatabase, eventually, execution, running_lease

from agent.account.session import AccountSession, SeqCounter
from agent.clock import DatabaseClock
from agent.execution.engine import TradeCopyEngine
from agent.journal.journal import Journal
from agent.model import Action, Login, Placed, Position, Ticket
from agent.paper.client import PaperClient
from agent.paper.process import PaperProcess
from agent.platforms.paper.adapter import PaperAdapter

D = Decimal
LOGIN = "8001"


class Netting:
    """A netting account that holds 0.50 EURUSD long, and the agent that knows it."""

    def __init__(
        self, paper: PaperClient, engine: TradeCopyEngine, database: FakeDatabase, session: AccountSession
    ) -> None:
        self.paper, self.engine, self.database, self.session = paper, engine, database, session
        self.ticket = Ticket("")

    async def flip(self) -> Position:
        """The user sells 0.80: the net is 0.30 short now. The agent does not know it yet."""
        placed = await self.paper.market(LOGIN, "EURUSD", "sell", D("0.80"))
        assert isinstance(placed, Placed)
        return placed.positions[-1]

    async def net(self) -> tuple[str, Decimal]:
        [position] = (await self.paper.book(LOGIN)).positions
        return position.side, position.lots

    async def sent(self) -> int:
        return sum(record.origin == "expert" for record in await self.paper.requests(LOGIN))


@pytest.fixture
async def netting(tmp_path: Path) -> AsyncIterator[Netting]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(PaperProcess())
        paper = await stack.enter_async_context(await broker.client())
        await paper.set_prices({"EURUSD": (D("1.10000"), D("1.10010"))})
        await paper.open_book(LOGIN, mode="netting")
        bought = await paper.market(LOGIN, "EURUSD", "buy", D("0.50"))
        assert isinstance(bought, Placed)
        journal = await Journal.open(tmp_path / "journal.sqlite")
        stack.push_async_callback(journal.close)
        adapter, seq, clock, database = PaperAdapter(), SeqCounter(), DatabaseClock(), FakeDatabase()
        login = Login(
            account_id=ACCOUNT,
            platform="paper",
            server="Paper",
            address=broker.address,
            login=LOGIN,
            password="pw",
            mode="netting",
        )
        await adapter.connect(login, seq)
        stack.push_async_callback(adapter.close)
        engine = await stack.enter_async_context(TradeCopyEngine(journal, database, clock, running_lease()))
        session = AccountSession(
            account_id=ACCOUNT, epoch=1, session=1, continues=True, adapter=adapter, seq=seq, opened_at=clock.now(),
            begins_at=clock.now(), mode="netting",
        )  # fmt: skip
        session.book.put(bought.positions[0], session.take_seq())
        await engine.attach(session)
        one = Netting(paper, engine, database, session)
        one.ticket = bought.positions[0].ticket
        yield one


@pytest.mark.parametrize("known", [True, False], ids=["the agent has seen it", "the agent has not seen it"])
@pytest.mark.parametrize("action", ["close", "reduce"])
async def test_a_net_that_has_gone_to_the_other_side_is_neither_closed_nor_enlarged(
    netting: Netting, action: Action, known: bool
) -> None:
    turned = await netting.flip()
    if known:
        netting.session.book.put(turned, netting.session.take_seq())
    netting.engine.submit(
        [
            execution(
                1, action, ticket=netting.ticket, lots=D("0.50"), target_lots=D("0.10") if action == "reduce" else None
            )
        ]
    )
    await eventually(lambda: netting.database.outcome(1) == "completed")
    report = netting.database.reports[-1]
    assert report.filled_lots == 0
    assert all(position.lots > 0 for position in report.positions)  # the report does not show the new side as gone
    assert await netting.net() == ("sell", D("0.30"))
    assert await netting.sent() == (0 if known else 1)


async def test_levels_for_a_side_that_is_gone_are_refused(netting: Netting) -> None:
    netting.session.book.put(await netting.flip(), netting.session.take_seq())
    netting.engine.submit([execution(1, "modify", ticket=netting.ticket, lots=D("0.50"), sl=D("1.09"))])
    await eventually(lambda: netting.database.outcome(1) == "rejected/position_reversed")
    assert await netting.sent() == 0


async def test_a_netting_close_that_names_no_position_is_looked_up_and_not_repeated(netting: Netting) -> None:
    await netting.paper.fault(LOGIN, "bare")
    netting.engine.submit([execution(1, "close", ticket=netting.ticket, lots=D("0.20"))])
    await eventually(lambda: netting.database.outcome(1) == "completed")
    assert netting.database.reports[0].outcome == "unknown"
    report = netting.database.reports[-1]
    assert (report.filled_lots, [position.lots for position in report.positions]) == (D("0.20"), [D("0.30")])
    assert await netting.net() == ("buy", D("0.30"))
    assert await netting.sent() == 1
