"""What only the paper adapter does: accounts that open themselves, absences that settle, age of a change."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from connected import connected
from counterparties import TOKEN, PaperCounterparty

from agent.clock import boot_time
from agent.model import AccountId, Changed, Login, NotFound, Unknown
from agent.paper.profile import Profile
from agent.platforms.paper.adapter import PaperAdapter
from agent.platforms.protocol import AdapterError, LoginRefused

D = Decimal


@pytest.fixture
async def paper() -> AsyncIterator[PaperCounterparty]:
    async with PaperCounterparty.running() as counterparty:
        yield counterparty


async def fresh_login(paper: PaperCounterparty, **settings: object) -> Login:
    known = await paper.open_account("700100")
    return replace(known, login="700900", settings={"paper": settings})


async def test_an_account_with_a_balance_opens_itself_once(paper: PaperCounterparty) -> None:
    login = replace(await fresh_login(paper, balance="2500", leverage=30), currency="EUR", mode="netting")
    adapter = PaperAdapter()
    first = await adapter.connect(login, lambda: 1)
    assert (first.balance, first.leverage, first.currency, first.mode) == (D(2500), 30, "EUR", "netting")
    again = await adapter.connect(replace(login, settings={"paper": {"balance": "9999"}}), lambda: 1)
    await adapter.close()
    assert again.balance == D(2500)


async def test_address_and_token_may_stand_in_the_settings(paper: PaperCounterparty) -> None:
    login = await fresh_login(paper, balance="1000")
    named = {"paper": {"balance": "1000", "address": login.server, "token": TOKEN}}
    adapter = PaperAdapter()
    state = await adapter.connect(replace(login, server="Paper-Demo", password="", settings=named), lambda: 1)
    await adapter.close()
    assert state.server == "Paper-Demo"


@pytest.mark.parametrize("wrong", [{"balance": "much"}, {"balance": "-1"}, {"balance": "1", "leverage": 0}, {"ping_s": "x"}])
async def test_senseless_settings_are_refused_for_good(paper: PaperCounterparty, wrong: dict[str, object]) -> None:
    with pytest.raises(LoginRefused):
        await PaperAdapter().connect(await fresh_login(paper, **wrong), lambda: 1)


@pytest.mark.parametrize("server", ["127.0.0.1:1", "nowhere", "127.0.0.1:http"])
async def test_an_address_where_nobody_answers_is_no_refusal(server: str) -> None:
    login = Login(account_id=AccountId("a"), platform="paper", server=server, login="1")
    with pytest.raises(AdapterError, match="tradecopier paper") as raised:
        await PaperAdapter().connect(login, lambda: 1)
    assert not isinstance(raised.value, LoginRefused)


async def test_a_re_ticketed_rest_arrives_as_one_change_that_names_the_old_ticket(paper: PaperCounterparty) -> None:
    known = await paper.open_account("700100")
    await paper.operator.open_book("700300", profile=Profile(retickets=True))
    adapter = PaperAdapter()
    await adapter.connect(replace(known, login="700300"), lambda: 1)
    try:
        changes = adapter.changes()
        ticket = await paper.open_by_hand("700300", "EURUSD", "buy", "0.50")
        await paper.close_by_hand("700300", ticket, "0.20")
        async with asyncio.timeout(5):
            opened, rest = await anext(changes), await anext(changes)
        assert isinstance(opened, Changed)
        assert isinstance(rest, Changed)
        assert opened.position.ticket == ticket
        assert (rest.position.replaces, rest.position.lots) == (ticket, D("0.30"))
        assert await adapter.positions() == (rest.position,)
    finally:
        await adapter.close()


async def test_an_absence_is_conclusive_once_the_settle_time_is_over(
    paper: PaperCounterparty, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(paper) as terminal:
        await paper.fail_order("700100", "timeout_lost")
        order = terminal.order("market")
        assert isinstance(await terminal.adapter.place(order), Unknown)
        assert await terminal.adapter.find(order) == NotFound(conclusive=False)
        late = boot_time() + 1.5
        monkeypatch.setattr("agent.platforms.paper.adapter.boot_time", lambda: late)
        assert await terminal.adapter.find(order) == NotFound(conclusive=True)


async def test_a_change_is_dated_between_the_last_sign_of_life_and_now(paper: PaperCounterparty) -> None:
    async with connected(paper) as terminal:
        asked = datetime.now(UTC)
        await terminal.adapter.positions()
        await paper.open_by_hand("700100", "EURUSD", "buy", "0.10")
        change = await terminal.change()
        assert asked <= change.unchanged_at <= change.detected_at <= datetime.now(UTC)


async def test_the_deal_that_made_a_change_is_told_with_its_price(paper: PaperCounterparty) -> None:
    async with connected(paper) as terminal:
        login = terminal.login.login
        await paper.set_price("EURUSD", "1.10000", "1.10010")
        ticket = await paper.open_by_hand(login, "EURUSD", "buy", "0.30")
        opened = await terminal.change(ticket)
        await paper.set_price("EURUSD", "1.10200", "1.10210")
        await paper.close_by_hand(login, ticket, "0.10")
        reduced = await terminal.change(ticket)
        await paper.set_price("EURUSD", "1.10300", "1.10310")
        await paper.close_by_hand(login, ticket)
        closed = await terminal.change(ticket, gone=True)
        assert [c.deal_price for c in (opened, reduced, closed)] == [D("1.10010"), D("1.10200"), D("1.10300")]
        assert [c.position.price for c in (reduced, closed)] == [D("1.10010")] * 2  # where it was opened
        assert {change.dealt_at for change in (opened, reduced, closed)} == {await paper.now()}


async def test_a_change_without_a_deal_names_none(paper: PaperCounterparty) -> None:
    async with connected(paper) as terminal:
        position = await terminal.open()
        await terminal.change(position.ticket)
        await terminal.place("modify", ticket=position.ticket, lots=position.lots, sl=D("1.05"), tp=None)
        modified = await terminal.change(position.ticket)
        assert (modified.position.sl, modified.deal_price, modified.dealt_at) == (D("1.05"), None, None)
