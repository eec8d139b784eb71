"""The broker behind its port: who may log in, how invalid input is answered, how faults appear to a client."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import orjson
import pytest

from agent.model import AccountId, ExecutionId, Login, Order, Placed, Rejected
from agent.paper.client import PaperClient, PaperRefused, ticket_of
from agent.paper.profile import Profile
from agent.paper.server import PaperServer, ServerSettings
from agent.paper.specs import infer_spec
from agent.platforms.factory import PlatformFactory

D = Decimal
TOKEN = "server-token"


@pytest.fixture
async def server() -> AsyncIterator[PaperServer]:
    async with PaperServer(ServerSettings(token=TOKEN, virtual_clock=True)) as running:
        yield running


@pytest.fixture
async def paper(server: PaperServer) -> AsyncIterator[PaperClient]:
    async with await PaperClient.connect(server.address, TOKEN) as client:
        await client.open_book("1001")
        await client.set_prices({"EURUSD": (D("1.10000"), D("1.10010"))})
        yield client


async def talk(server: PaperServer, *lines: bytes) -> list[dict[str, object]]:
    """Send raw lines and return as many parsed lines."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        replies = []
        for line in lines:
            writer.write(line + b"\n")
            async with asyncio.timeout(5):
                replies.append(orjson.loads(await reader.readline()))
        return replies
    finally:
        writer.close()
        await writer.wait_closed()


async def test_it_listens_on_loopback_only(server: PaperServer) -> None:
    assert server.address.startswith("127.0.0.1:")


async def test_a_wrong_token_does_not_get_in(server: PaperServer) -> None:
    with pytest.raises(PaperRefused, match="token"):
        await PaperClient.connect(server.address, "wrong")


async def test_nothing_is_answered_before_the_token(server: PaperServer, paper: PaperClient) -> None:
    replies = await talk(server, b'{"id":1,"op":"book","login":"1001"}', b'{"id":2,"op":"positions"}')
    assert [reply["error"]["code"] for reply in replies] == ["malformed", "malformed"]  # type: ignore[index]


async def test_nonsense_is_answered_with_what_is_wrong(server: PaperServer, paper: PaperClient) -> None:
    hello = orjson.dumps({"id": 1, "op": "hello", "token": TOKEN})
    replies = await talk(
        server,
        b"this is not JSON",
        b"[1, 2]",
        hello,
        b'{"id":2,"op":"no_such_thing"}',
        b'{"id":3,"op":"order","login":"1001","request":{"kind":"market","symbol":"EURUSD","lots":"NaN"}}',
        b'{"id":4,"op":"order","login":"1001","request":{"kind":"guess"}}',
        b'{"id":5,"op":"order","login":"nobody","request":{"kind":"market"}}',
        b'{"id":6,"op":"book","login":"1001"}',
    )
    errors = [reply.get("error", {}) for reply in replies]
    assert [error.get("code") if isinstance(error, dict) else None for error in errors] == [
        "malformed", "malformed", None, "malformed", "malformed", "malformed", "unknown_login", None,
    ]  # fmt: skip
    assert "lots" in str(errors[4])
    assert (await paper.book("1001")).positions == ()


async def test_a_login_is_taken_once(paper: PaperClient) -> None:
    with pytest.raises(PaperRefused, match="exists already"):
        await paper.open_book("1001")


@pytest.mark.parametrize("wrong", [{"leverage": 0}, {"balance": D(-1)}, {"balance": D("Infinity")}])
async def test_a_book_needs_sensible_figures(paper: PaperClient, wrong: dict[str, object]) -> None:
    with pytest.raises(PaperRefused):
        await paper.open_book("1002", **wrong)  # type: ignore[arg-type]


async def test_the_account_s_human_trades_by_every_order_kind(paper: PaperClient) -> None:
    one = ticket_of(await paper.market("1001", "EURUSD", "buy", D("0.50"), sl=D("1.09000")))
    other = ticket_of(await paper.market("1001", "EURUSD", "sell", D("0.20")))
    assert isinstance(await paper.modify("1001", one, sl=None, tp=D("1.12000")), Placed)
    assert isinstance(await paper.close_by("1001", one, other), Placed)
    limit = ticket_of(await paper.limit("1001", "EURUSD", "buy", D("0.10"), D("1.09000")))
    stop = ticket_of(await paper.stop("1001", "EURUSD", "sell", D("0.10"), D("1.09000")))
    assert isinstance(await paper.amend("1001", limit, price=D("1.08000")), Placed)
    assert isinstance(await paper.cancel("1001", stop), Placed)
    book = await paper.book("1001")
    assert [(held.ticket, held.lots, held.tp) for held in book.positions] == [(one, D("0.30"), D("1.12000"))]
    assert [(order.ticket, order.price) for order in book.orders] == [(limit, D("1.08000"))]
    assert all(isinstance(closed, Placed) for closed in await paper.close_symbol("1001", "EURUSD"))
    book = await paper.book("1001")
    assert book.positions == ()
    assert {deal.reason for deal in book.deals} == {"balance", "client"}
    assert book.balance == sum(deal.profit + deal.commission for deal in book.deals)
    refused = await paper.cancel("1001", stop)
    assert isinstance(refused, Rejected)
    assert refused.reason == "order_not_found"


async def test_the_journal_is_numbered_without_a_gap(paper: PaperClient) -> None:
    await paper.market("1001", "EURUSD", "buy", D("0.50"))
    await paper.market("1001", "NOSUCH", "buy", D("0.50"))
    entries = await paper.journal("1001")
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    events = [entry.event for entry in entries]
    assert events[:2] == ["book_opened", "deal"]
    assert events[2:] == ["order_received", "deal", "order_executed", "order_received", "order_refused"]
    assert [entry.number for entry in await paper.journal("1001", after=5)] == [6, 7]


async def test_faults_strike_programs_and_never_the_human(paper: PaperClient) -> None:
    await paper.fault("1001", "reject", next_orders=2)
    assert isinstance(await paper.market("1001", "EURUSD", "buy", D("0.50")), Placed)


async def test_symbols_can_be_added_to_a_running_book(paper: PaperClient) -> None:
    await paper.put_symbols("1001", [infer_spec("nas100usd-2")])
    await paper.set_prices({"nas100usd-2": (D(19000), D(19001))})
    assert isinstance(await paper.market("1001", "nas100usd-2", "buy", D(1)), Placed)


async def test_waiting_for_a_book_is_woken_by_its_changes(paper: PaperClient) -> None:
    waiting = asyncio.create_task(paper.wait_for("1001", positions=2))
    await paper.market("1001", "EURUSD", "buy", D("0.50"))
    await paper.market("1001", "EURUSD", "buy", D("0.50"))
    assert len((await waiting).positions) == 2


async def test_the_virtual_clock_moves_only_when_told(paper: PaperClient) -> None:
    began = await paper.now()
    assert await paper.advance(timedelta(hours=3)) == began + timedelta(hours=3)
    with pytest.raises(PaperRefused):
        await paper.advance(timedelta(seconds=-1))


async def test_the_feed_moves_prices(server: PaperServer, paper: PaperClient) -> None:
    await paper.start_feed(symbols=["GBPUSD"], interval=timedelta(seconds=1))
    first = await paper.quote("1001", "GBPUSD")
    for _ in range(5):
        await paper.advance(timedelta(seconds=1))
    assert first is not None
    assert await paper.quote("1001", "GBPUSD") != first
    await paper.stop_feed()


async def test_on_the_real_clock_orders_expire_and_latencies_end_by_themselves() -> None:
    async with (
        PaperServer(ServerSettings(token=TOKEN)) as server,
        await PaperClient.connect(server.address, TOKEN) as paper,
    ):
        await paper.open_book("1001", profile=Profile(latency_ms_min=1, latency_ms_max=3))
        await paper.set_prices({"EURUSD": (D("1.10000"), D("1.10010"))})
        soon = await paper.now() + timedelta(milliseconds=50)
        await paper.limit("1001", "EURUSD", "buy", D("0.10"), D("1.09000"), expires_at=soon)
        later = soon + timedelta(days=1)
        await paper.limit("1001", "EURUSD", "buy", D("0.20"), D("1.09000"), expires_at=later)
        adapter = PlatformFactory().create("paper")
        login = Login(
            account_id=AccountId("a"),
            platform="paper",
            server="Paper",
            address=server.address,
            login="1001",
            password="pw",
        )
        await adapter.connect(login, lambda: 1)
        order = Order(tag=ExecutionId(5), kind="market", symbol="EURUSD", side="buy", lots=D("0.10"))
        assert isinstance(await adapter.place(order), Placed)
        book = await paper.wait_for("1001", positions=1, orders=1)
        await adapter.close()
        assert [left.lots for left in book.orders] == [D("0.20")]
        assert "order_expired" in [entry.event for entry in await paper.journal("1001")]


async def test_a_session_that_goes_away_with_orders_under_way_has_them_carried_out(
    server: PaperServer, paper: PaperClient
) -> None:
    await paper.open_book("1002", profile=Profile(latency_ms_min=20, latency_ms_max=20))
    host, _, port = server.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(orjson.dumps({"id": 1, "op": "login", "password": "pw", "login": "1002"}) + b"\n")
    request = {"kind": "market", "symbol": "EURUSD", "side": "buy", "lots": "0.10", "tag": 9}
    writer.write(orjson.dumps({"id": 2, "op": "order", "request": request}) + b"\n")
    writer.close()
    await writer.wait_closed()
    await paper.wait_for_request("1002", 9)
    await paper.advance(timedelta(milliseconds=20))
    book = await paper.wait_for("1002", positions=1)
    assert book.positions[0].tag == 9


async def test_of_two_first_logins_at_once_one_sets_the_password(server: PaperServer, paper: PaperClient) -> None:
    async def log_in(password: str) -> str:
        line = orjson.dumps({"id": 1, "op": "login", "login": "1001", "password": password})
        (reply,) = await talk(server, line)
        return "ok" if "ok" in reply else str(reply["error"]["code"])  # type: ignore[index]

    answers = await asyncio.gather(*(log_in(f"password-{n}") for n in range(4)))
    assert sorted(answers) == ["ok", "wrong_password", "wrong_password", "wrong_password"]
    assert await log_in(f"password-{answers.index('ok')}") == "ok"


async def test_a_program_has_no_right_to_the_token_and_none_by_it(server: PaperServer, paper: PaperClient) -> None:
    login = {"op": "login", "login": "1001", "password": "pw"}
    replies = await talk(
        server,
        orjson.dumps({"id": 1, "op": "login", "login": "1001", "token": TOKEN}),
        orjson.dumps({"id": 2, **login}),
        orjson.dumps({"id": 3, "op": "set_passwords", "login": "1001", "password": "x"}),
        orjson.dumps({"id": 4, "op": "hello", "token": TOKEN}),
    )
    assert ["ok" in reply for reply in replies] == [False, True, False, False]
    assert await talk(server, orjson.dumps({"id": 5, **login, "password": ""})) != []
    assert not any("pw" in str(entry.fields) or TOKEN in str(entry.fields) for entry in await paper.journal("1001"))
