"""What only the paper adapter does: accounts opened at the first login, the settle time, the age of a change."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from connected import connected
from counterparties import TOKEN, PaperCounterparty

from agent.clock import boot_time
from agent.model import AccountId, Changed, Login, NotFound, Rejected, Unknown
from agent.paper.profile import Profile
from agent.platforms.adapter import AdapterError, LoginRefused
from agent.platforms.paper.adapter import PaperAdapter

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


async def test_settings_can_name_neither_address_nor_token(paper: PaperCounterparty) -> None:
    login = await fresh_login(paper)
    named = {"address": login.address, "server": login.address, "host": "127.0.0.1", "token": TOKEN}
    for settings in (named, {"paper": named}):
        with pytest.raises(AdapterError, match="does not answer") as raised:
            await PaperAdapter().connect(replace(login, address="127.0.0.1:1", settings=settings), lambda: 1)
        assert not isinstance(raised.value, LoginRefused)
        with pytest.raises(AdapterError, match="does not answer"):
            await PaperAdapter().connect(replace(login, address="", server=login.address, settings=settings), lambda: 1)


async def test_an_error_message_names_neither_the_address_nor_what_answered_there() -> None:
    async def shout(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Secret-Service-9000\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(shout, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        login = Login(
            account_id=AccountId("a"),
            platform="paper",
            server="Paper",
            login="1",
            password="p",
            address=f"127.0.0.1:{port}",
        )
        for where in (login, replace(login, address="127.0.0.1:1")):
            with pytest.raises(AdapterError) as raised:
                await PaperAdapter().connect(where, lambda: 1)
            assert not isinstance(raised.value, LoginRefused)
            for secret in (str(port), "127.0.0.1", "HTTP", "Secret", "JSON", "refused"):
                assert secret not in str(raised.value)


async def test_the_first_login_sets_the_password_and_another_one_is_refused(paper: PaperCounterparty) -> None:
    login = await fresh_login(paper, balance="1", read_timeout_s=30)
    adapter = PaperAdapter()
    assert (await adapter.connect(login, lambda: 1)).trade_allowed
    await adapter.close()
    for wrong in ("", "PW", "pw ", "x" * 1000, TOKEN):
        with pytest.raises(LoginRefused):
            await PaperAdapter().connect(replace(login, password=wrong), lambda: 1)
    assert (await adapter.connect(login, lambda: 1)).login == login.login
    await adapter.close()


async def test_an_investor_password_reads_and_trades_nothing(paper: PaperCounterparty) -> None:
    async with connected(paper) as terminal:
        await terminal.open()
    login = terminal.login
    await paper.operator.set_passwords(login.login, password="new", investor_password="look")
    adapter = PaperAdapter()
    with pytest.raises(LoginRefused, match="wrong"):
        await adapter.connect(login, lambda: 1)
    assert not (await adapter.connect(replace(login, password="look"), lambda: 1)).trade_allowed
    assert not (await adapter.account()).trade_allowed
    assert len(await adapter.positions()) == 1
    refused = await adapter.place(terminal.order("market"))
    assert isinstance(refused, Rejected)
    assert refused.reason == "investor_password"
    assert await paper.held(login.login) == 1
    await adapter.close()
    assert (await adapter.connect(replace(login, password="new"), lambda: 1)).trade_allowed
    await adapter.close()


async def test_logins_that_differ_in_capitals_are_one(paper: PaperCounterparty) -> None:
    known = replace(await paper.open_account("abc"), settings={"paper": {"balance": "1"}})
    with pytest.raises(LoginRefused, match="exists already"):
        await PaperAdapter().connect(replace(known, login="ABC"), lambda: 1)


@pytest.mark.parametrize(
    "wrong", [{"balance": "much"}, {"balance": "-1"}, {"balance": "1", "leverage": 0}, {"ping_s": "x"}]
)
async def test_senseless_settings_are_refused_for_good(paper: PaperCounterparty, wrong: dict[str, object]) -> None:
    with pytest.raises(LoginRefused):
        await PaperAdapter().connect(await fresh_login(paper, **wrong), lambda: 1)


@pytest.mark.parametrize("address", ["", "127.0.0.1:1", "nowhere", "127.0.0.1:http"])
async def test_an_address_that_does_not_answer_is_no_refusal(address: str) -> None:
    login = Login(account_id=AccountId("a"), platform="paper", server="Paper", address=address, login="1", password="p")
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


async def test_a_change_is_dated_between_the_last_answer_and_now(paper: PaperCounterparty) -> None:
    async with connected(paper) as terminal:
        asked = datetime.now(UTC)
        await terminal.adapter.positions()
        await paper.open_by_hand("700100", "EURUSD", "buy", "0.10")
        change = await terminal.change()
        assert asked <= change.unchanged_at <= change.detected_at <= datetime.now(UTC)


async def test_the_deal_that_made_a_change_is_reported_with_its_price(paper: PaperCounterparty) -> None:
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
