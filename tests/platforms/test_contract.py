"""The contract of every platform's adapter (agent/platforms/adapter.py): what an agent may rely on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from connected import WAIT_S, Connected, by_ticket, connected
from counterparties import Counterparty

from agent.model import ExecutionId, Found, NotFound, Placed, Rejected, Unknown
from agent.platforms.adapter import AdapterError, Capabilities, LoginRefused

D = Decimal


@pytest.fixture
async def terminal(broker: Counterparty) -> AsyncIterator[Connected]:
    async with connected(broker) as one:
        yield one


def need(broker: Counterparty, capability: str) -> Capabilities:
    capabilities = broker.adapter().capabilities()
    if not getattr(capabilities, capability):
        pytest.skip(f"{broker.platform} has no {capability}")
    return capabilities


# --- connecting ------------------------------------------------------------------------------------


async def test_connect_says_which_account_it_is(broker: Counterparty) -> None:
    login = await broker.open_account("700200")
    adapter = broker.adapter()
    state = await adapter.connect(login, lambda: 1)
    try:
        assert (state.login, state.server, state.currency, state.mode) == ("700200", login.server, "USD", "hedging")
        assert state == await adapter.account()
    finally:
        await adapter.close()


async def test_a_wrong_password_is_refused_for_good(broker: Counterparty) -> None:
    login = await broker.open_account("700200")
    with pytest.raises(LoginRefused):
        await broker.adapter().connect(replace(login, password="wrong"), lambda: 1)


async def test_an_unknown_account_is_refused_for_good(broker: Counterparty) -> None:
    login = await broker.open_account("700200")
    with pytest.raises(LoginRefused):
        await broker.adapter().connect(replace(login, login="999999"), lambda: 1)


async def test_logging_in_again_finds_everything_as_it_was(terminal: Connected) -> None:
    position = await terminal.open()
    await terminal.adapter.close()
    await terminal.connect()
    assert await terminal.adapter.positions() == (position,)
    closed = await terminal.close(position)
    assert (await terminal.change(position.ticket, gone=True)).position == closed.positions[0]


async def test_the_stream_of_changes_ends_when_the_adapter_is_closed(terminal: Connected) -> None:
    await terminal.adapter.close()
    async with asyncio.timeout(WAIT_S):
        assert [change async for change in terminal.changes] == []


# --- symbols and quotes ----------------------------------------------------------------------------


async def test_a_symbol_is_described_exactly(terminal: Connected) -> None:
    spec = await terminal.adapter.symbol("EURUSD")
    assert spec is not None
    assert (spec.contract_size, spec.digits, spec.tick_size) == (D(100000), 5, D("0.00001"))
    assert (spec.profit_currency, spec.margin_currency) == ("USD", "EUR")
    assert spec.lots_min <= D("0.01") == spec.lots_step
    assert "EURUSD" in await terminal.adapter.symbols()


async def test_an_unknown_symbol_is_none_not_an_error(terminal: Connected) -> None:
    assert await terminal.adapter.symbol("NOSUCH") is None
    assert "NOSUCH" not in await terminal.adapter.symbols()


async def test_a_quote_is_exact_and_absent_before_the_first_price(terminal: Connected) -> None:
    quote = await terminal.adapter.quote("EURUSD")
    assert quote is not None
    assert (str(quote.bid), str(quote.ask)) == ("1.10000", "1.10010")
    assert await terminal.adapter.quote("GBPUSD") is None


# --- opening, closing, changing --------------------------------------------------------------------


async def test_a_market_order_gives_the_whole_position(terminal: Connected) -> None:
    order = terminal.order("market", lots=D("0.30"))
    placed = await terminal.adapter.place(order)
    assert isinstance(placed, Placed)
    assert (placed.lots, placed.price) == (D("0.30"), D("1.10010"))
    (position,) = placed.positions
    assert (position.kind, position.symbol, position.side) == ("position", "EURUSD", "buy")
    assert (position.lots, position.price, position.tag) == (D("0.30"), D("1.10010"), order.tag)
    assert await terminal.adapter.positions() == (position,)


async def test_a_sell_deals_at_the_bid(terminal: Connected) -> None:
    assert (await terminal.open("sell")).price == D("1.10000")


async def test_a_market_order_may_carry_its_levels(terminal: Connected) -> None:
    need(terminal.broker, "protected_market_orders")
    position = await terminal.open(sl=D("1.09500"), tp=D("1.11000"))
    assert (position.sl, position.tp) == (D("1.09500"), D("1.11000"))


async def test_lots_stay_exact_over_many_partial_closes(terminal: Connected) -> None:
    position = await terminal.open(lots="1.00")
    for left in ("0.90", "0.80", "0.70"):
        closed = await terminal.close(position, "0.10")
        position = next(touched for touched in closed.positions if touched.lots)
        assert position.lots == D(left)
    (held,) = await terminal.adapter.positions()
    assert held.lots == D("0.70")


async def test_a_partial_close_keeps_the_ticket_or_names_the_old_one(terminal: Connected) -> None:
    position = await terminal.open()
    closed = await terminal.close(position, "0.20")
    assert (closed.lots, closed.price) == (D("0.20"), D("1.10000"))
    rest = next(touched for touched in closed.positions if touched.lots)
    assert rest.lots == D("0.30")
    if terminal.adapter.capabilities().retickets:
        assert rest.replaces == position.ticket
        assert rest.ticket != position.ticket
    else:
        assert rest.ticket == position.ticket


async def test_a_close_leaves_the_last_state_with_no_lots(terminal: Connected) -> None:
    position = await terminal.open()
    closed = await terminal.close(position)
    gone = by_ticket(closed.positions, position.ticket)
    assert gone is not None
    assert gone.lots == 0
    assert await terminal.adapter.positions() == ()


async def test_levels_can_be_set_and_removed(terminal: Connected) -> None:
    position = await terminal.open()
    fields = {"ticket": position.ticket, "side": "buy", "lots": position.lots}
    assert isinstance(await terminal.place("modify", **fields, sl=D("1.09000"), tp=D("1.12000")), Placed)
    (held,) = await terminal.adapter.positions()
    assert (held.sl, held.tp) == (D("1.09000"), D("1.12000"))
    assert isinstance(await terminal.place("modify", **fields, sl=None, tp=D("1.12000")), Placed)
    (held,) = await terminal.adapter.positions()
    assert (held.sl, held.tp) == (None, D("1.12000"))


async def test_slippage_is_limited_from_the_reference_price(terminal: Connected) -> None:
    far = {"reference_price": D("1.09900"), "max_slippage_points": 20}
    refused = await terminal.place("market", **far)
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.retryable) == ("price_changed", True)
    assert isinstance(await terminal.place("market", **{**far, "max_slippage_points": 110}), Placed)


async def test_sending_an_order_twice_makes_two(terminal: Connected) -> None:
    """No broker promises more: the agent itself must send a tag only once."""
    order = terminal.order("market")
    first, second = await terminal.adapter.place(order), await terminal.adapter.place(order)
    assert isinstance(first, Placed)
    assert isinstance(second, Placed)
    assert len(await terminal.adapter.positions()) == 2


# --- pending orders --------------------------------------------------------------------------------


async def pending(terminal: Connected, **fields: object) -> str:
    need(terminal.broker, "pending_orders")
    placed = await terminal.place("pending", **{"order_type": "limit", "price": D("1.09000"), **fields})
    assert isinstance(placed, Placed), placed
    assert placed.lots == 0
    (order,) = placed.positions
    assert order.kind == "order"
    assert await terminal.adapter.orders() == (order,)
    assert await terminal.adapter.positions() == ()
    return order.ticket


async def test_a_pending_order_can_be_amended_and_cancelled(terminal: Connected) -> None:
    ticket = await pending(terminal, sl=D("1.08000"))
    assert isinstance(await terminal.place("amend", ticket=ticket, price=D("1.08500"), tp=D("1.12000")), Placed)
    (order,) = await terminal.adapter.orders()
    assert (order.ticket, order.price, order.sl, order.tp) == (ticket, D("1.08500"), None, D("1.12000"))
    cancelled = await terminal.place("cancel", ticket=ticket)
    assert isinstance(cancelled, Placed)
    assert by_ticket(cancelled.positions, ticket) is not None
    assert await terminal.adapter.orders() == ()
    gone = await terminal.change(ticket, gone=True)
    assert (gone.evidence, gone.position.kind) == ("deal", "order")


@pytest.mark.parametrize(
    ("order_type", "side", "price", "bid", "ask", "filled"),
    [
        ("limit", "buy", "1.09000", "1.08990", "1.09000", "1.09000"),
        ("limit", "buy", "1.09000", "1.08500", "1.08510", "1.08510"),
        ("limit", "sell", "1.11000", "1.11000", "1.11010", "1.11000"),
        ("stop", "buy", "1.11000", "1.11500", "1.11510", "1.11510"),
        ("stop", "sell", "1.09000", "1.08000", "1.08010", "1.08000"),
    ],
)
async def test_the_position_of_a_filled_pending_order_names_the_order(
    terminal: Connected, order_type: str, side: str, price: str, bid: str, ask: str, filled: str
) -> None:
    ticket = await pending(terminal, order_type=order_type, side=side, price=D(price))
    await terminal.broker.set_price("EURUSD", bid, ask)
    change = await terminal.change()
    while change.position.kind == "order":
        change = await terminal.change()
    assert (change.position.side, change.position.price, change.position.lots) == (side, D(filled), D("0.50"))
    assert ticket in (change.position.replaces, change.position.ticket)
    assert await terminal.adapter.orders() == ()
    assert await terminal.adapter.positions() == (change.position,)


async def test_a_pending_order_expires(terminal: Connected) -> None:
    expires_at = await terminal.broker.now() + timedelta(hours=1)
    ticket = await pending(terminal, expires_at=expires_at)
    await terminal.broker.advance(timedelta(minutes=59))
    (order,) = await terminal.adapter.orders()
    assert order.expires_at == expires_at
    await terminal.broker.advance(timedelta(minutes=1))
    gone = await terminal.change(ticket, gone=True)
    assert (gone.evidence, gone.close_reason) == ("deal", "expired")
    assert await terminal.adapter.orders() == ()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"price": D("1.20000")}, "invalid_price"),
        ({"price": None}, "invalid_price"),
        ({"sl": D("1.09500")}, "invalid_stops"),
        ({"lots": D("0.005")}, "invalid_volume"),
        ({"symbol": "NOSUCH"}, "unknown_symbol"),
    ],
)
async def test_a_senseless_pending_order_is_refused(
    terminal: Connected, fields: dict[str, object], reason: str
) -> None:
    need(terminal.broker, "pending_orders")
    refused = await terminal.place("pending", **{"order_type": "limit", "price": D("1.09000"), **fields})
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.retryable) == (reason, False)


# --- netting ---------------------------------------------------------------------------------------


async def test_netting_adds_reduces_and_flips(broker: Counterparty) -> None:
    need(broker, "netting")
    async with connected(broker, mode="netting") as terminal:
        first = await terminal.open("buy", "0.50")
        await broker.set_price("EURUSD", "1.20000", "1.20010")
        added = await terminal.open("buy", "0.50")
        assert (added.ticket, added.lots, added.price) == (first.ticket, D("1.00"), D("1.15010"))
        reduced = await terminal.open("sell", "0.40")
        assert (reduced.side, reduced.lots, reduced.price) == ("buy", D("0.60"), D("1.15010"))
        flipped = await terminal.open("sell", "1.00")
        assert (flipped.side, flipped.lots, flipped.price) == ("sell", D("0.40"), D("1.20000"))
        assert await terminal.adapter.positions() == (flipped,)
        closed = await terminal.place("market", side="buy", lots=D("0.40"))
        assert isinstance(closed, Placed)
        assert await terminal.adapter.positions() == ()


async def test_hedging_holds_both_sides(terminal: Connected) -> None:
    need(terminal.broker, "hedging")
    await terminal.open("buy")
    await terminal.open("sell")
    assert {position.side for position in await terminal.adapter.positions()} == {"buy", "sell"}


# --- changes: numbers and evidence -----------------------------------------------------------------


async def test_changes_are_numbered_in_order_and_before_any_later_read(terminal: Connected) -> None:
    before = terminal.take_seq()
    ticket = await terminal.broker.open_by_hand(terminal.login.login, "EURUSD", "buy", "0.20")
    opened = await terminal.change(ticket)
    await terminal.broker.close_by_hand(terminal.login.login, ticket, "0.05")
    reduced = await terminal.change()
    after = terminal.take_seq()
    assert before < opened.seq < reduced.seq < after
    assert opened.unchanged_at <= opened.detected_at <= reduced.detected_at
    assert (opened.position.lots, reduced.position.lots) == (D("0.20"), D("0.15"))
    # a read that begins with a higher number shows at least what earlier pushes reported
    assert await terminal.adapter.positions() == (reduced.position,)


async def test_a_close_by_hand_is_seen_with_a_deal_as_evidence(terminal: Connected) -> None:
    ticket = await terminal.broker.open_by_hand(terminal.login.login, "EURUSD", "sell", "0.20")
    await terminal.broker.close_by_hand(terminal.login.login, ticket)
    gone = await terminal.change(ticket, gone=True)
    assert (gone.evidence, gone.close_reason, gone.position.side) == ("deal", "client", "sell")


async def test_a_close_by_the_agent_is_seen_as_an_expert_s(terminal: Connected) -> None:
    position = await terminal.open()
    await terminal.close(position)
    assert (await terminal.change(position.ticket, gone=True)).close_reason == "expert"


@pytest.mark.parametrize(("bid", "ask", "reason"), [("1.09400", "1.09410", "sl"), ("1.11000", "1.11010", "tp")])
async def test_the_broker_s_own_closes_are_seen(terminal: Connected, bid: str, ask: str, reason: str) -> None:
    position = await terminal.open()
    levels = {"sl": D("1.09500"), "tp": D("1.11000")}
    await terminal.place("modify", ticket=position.ticket, lots=position.lots, **levels)
    await terminal.broker.set_price("EURUSD", bid, ask)
    gone = await terminal.change(position.ticket, gone=True)
    assert (gone.evidence, gone.close_reason) == ("deal", reason)
    assert await terminal.adapter.positions() == ()


async def test_a_stop_out_is_seen(terminal: Connected) -> None:
    position = await terminal.open(lots="5.00")
    await terminal.broker.set_price("EURUSD", "1.08300", "1.08310")
    gone = await terminal.change(position.ticket, gone=True)
    assert (gone.evidence, gone.close_reason) == ("deal", "stop_out")


# --- refusals, unknown outcomes, finding -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason", "retryable"),
    [
        ("reject", "rejected", False),
        ("requote", "requote", True),
        ("no_money", "no_money", False),
        ("market_closed", "market_closed", True),
    ],
)
async def test_a_refusal_is_definite(terminal: Connected, kind: str, reason: str, retryable: bool) -> None:
    await terminal.broker.fail_order(terminal.login.login, kind)  # type: ignore[arg-type]
    order = terminal.order("market")
    refused = await terminal.adapter.place(order)
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.retryable) == (reason, retryable)
    assert refused.message
    assert await terminal.broker.held(terminal.login.login) == 0
    assert isinstance(await terminal.adapter.find(order), NotFound)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lots": D("1000")}, "invalid_volume"),
        ({"lots": D("0.015")}, "invalid_volume"),
        ({"lots": D("50")}, "no_money"),
        ({"sl": D("1.20000")}, "invalid_stops"),
        ({"symbol": "NOSUCH"}, "unknown_symbol"),
        ({"symbol": "GBPUSD"}, "no_quotes"),
    ],
)
async def test_an_invalid_order_is_refused(terminal: Connected, fields: dict[str, object], reason: str) -> None:
    refused = await terminal.place("market", **fields)
    assert isinstance(refused, Rejected)
    assert refused.reason == reason


async def test_closing_an_unknown_ticket_is_refused(terminal: Connected) -> None:
    refused = await terminal.place("close", ticket="1")
    assert isinstance(refused, Rejected)
    assert refused.reason == "position_not_found"


async def test_a_partial_fill_reports_its_lots(terminal: Connected) -> None:
    await terminal.broker.fail_order(terminal.login.login, "partial")
    placed = await terminal.place("market", lots=D("0.50"))
    assert isinstance(placed, Placed)
    assert 0 < placed.lots < D("0.50")
    assert placed.positions[0].lots == placed.lots


async def test_an_executed_order_without_an_answer_is_unknown_and_can_be_found(terminal: Connected) -> None:
    await terminal.broker.fail_order(terminal.login.login, "timeout_executed")
    order = terminal.order("market")
    assert isinstance(await terminal.adapter.place(order), Unknown)
    found = await terminal.adapter.find(order)
    assert isinstance(found, Found)
    assert (found.lots, found.price) == (D("0.50"), D("1.10010"))
    assert found.positions == await terminal.adapter.positions()
    assert found.positions[0].tag == order.tag


async def test_a_lost_order_is_unknown_and_its_absence_proves_nothing_yet(terminal: Connected) -> None:
    await terminal.broker.fail_order(terminal.login.login, "timeout_lost")
    order = terminal.order("market")
    assert isinstance(await terminal.adapter.place(order), Unknown)
    assert await terminal.adapter.find(order) == NotFound(conclusive=False)
    assert await terminal.broker.held(terminal.login.login) == 0


async def test_an_order_that_was_closed_meanwhile_is_found_in_history(terminal: Connected) -> None:
    order = terminal.order("market")
    placed = await terminal.adapter.place(order)
    assert isinstance(placed, Placed)
    await terminal.close(placed.positions[0])
    found = await terminal.adapter.find(order)
    assert isinstance(found, Found)
    assert found.lots == D("0.50")
    assert [(position.ticket, position.lots) for position in found.positions] == [(placed.positions[0].ticket, D(0))]


async def test_closes_changes_and_pending_orders_are_found_too(terminal: Connected) -> None:
    position = await terminal.open()
    close = terminal.order("close", ticket=position.ticket, lots=D("0.20"))
    modify = terminal.order("modify", ticket=position.ticket, lots=D("0.30"), sl=D("1.09000"))
    for order, lots in ((close, D("0.20")), (modify, D(0))):
        assert isinstance(await terminal.adapter.place(order), Placed)
        found = await terminal.adapter.find(order)
        assert isinstance(found, Found)
        assert found.lots == lots
        assert by_ticket(found.positions, position.ticket) == (await terminal.adapter.positions())[0]
    if not terminal.adapter.capabilities().pending_orders:
        return
    limit = terminal.order("pending", order_type="limit", price=D("1.09000"))
    assert isinstance(await terminal.adapter.place(limit), Placed)
    found = await terminal.adapter.find(limit)
    assert isinstance(found, Found)
    assert (found.lots, found.positions) == (D(0), await terminal.adapter.orders())
    await terminal.broker.set_price("EURUSD", "1.08900", "1.08910")
    found = await terminal.adapter.find(limit)
    assert isinstance(found, Found)
    assert (found.lots, found.price) == (D("0.50"), D("1.08910"))


async def test_another_program_s_order_with_the_same_tag_is_not_ours(terminal: Connected) -> None:
    order = terminal.order("market")
    await terminal.broker.open_by_hand(terminal.login.login, "EURUSD", "buy", "0.50", magic=order.tag)
    other = await terminal.adapter.place(replace(order, lots=D("0.40")))
    assert isinstance(other, Placed)
    for different in (
        order,
        replace(order, side="sell", lots=D("0.40")),
        replace(order, tag=ExecutionId(order.tag + 1)),
    ):
        assert isinstance(await terminal.adapter.find(different), NotFound)


async def test_a_connection_lost_after_sending_leaves_the_outcome_unknown(broker: Counterparty) -> None:
    async with connected(broker, latency_ms=50) as terminal:
        order = terminal.order("market")
        placing = asyncio.create_task(terminal.adapter.place(order))
        await broker.received(terminal.login.login, order.tag)
        await broker.cut(terminal.login.login)
        assert isinstance(await placing, Unknown)
        await terminal.connect()
        # the broker is still working on it: until it has finished, an absence is not conclusive
        assert await terminal.adapter.find(order) == NotFound(conclusive=False)
        await broker.advance(timedelta(milliseconds=50))
        found = await terminal.adapter.find(order)
        assert isinstance(found, Found)
        assert found.lots == D("0.50")


async def test_without_a_connection_an_order_is_definitely_not_sent(terminal: Connected) -> None:
    await terminal.broker.cut(terminal.login.login)
    with pytest.raises(AdapterError):
        await terminal.change()
    refused = await terminal.place("market")
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.retryable) == ("not_connected", True)
    await terminal.adapter.close()
    refused = await terminal.place("market")
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.retryable) == ("not_connected", True)
    assert await terminal.broker.held(terminal.login.login) == 0


async def test_a_hanging_terminal_ends_as_unknown_and_as_a_lost_connection(terminal: Connected) -> None:
    await terminal.broker.fail_order(terminal.login.login, "hang")
    assert isinstance(await terminal.place("market"), Unknown)
    with pytest.raises(AdapterError):
        await terminal.change()
    with pytest.raises(AdapterError):
        await terminal.adapter.positions()
    await terminal.connect()
    assert await terminal.adapter.positions() == ()


# --- reading what cannot be read -------------------------------------------------------------------


async def test_nothing_can_be_read_before_connecting(broker: Counterparty) -> None:
    adapter = broker.adapter()
    for read in (adapter.account, adapter.positions, adapter.orders, adapter.symbols):
        with pytest.raises(AdapterError):
            await read()


async def test_a_lost_connection_is_an_error_never_an_empty_account(terminal: Connected) -> None:
    await terminal.open()
    await terminal.change()
    await terminal.broker.cut(terminal.login.login)
    with pytest.raises(AdapterError):
        await terminal.change()
    for read in (terminal.adapter.account, terminal.adapter.positions, terminal.adapter.orders):
        with pytest.raises(AdapterError):
            await read()


@pytest.mark.parametrize("kind", ["none", "error"])
async def test_an_unreadable_snapshot_raises(terminal: Connected, kind: str) -> None:
    position = await terminal.open()
    await terminal.broker.fail_snapshot(terminal.login.login, kind, 2)  # type: ignore[arg-type]
    with pytest.raises(AdapterError):
        await terminal.adapter.orders()
    with pytest.raises(AdapterError):
        await terminal.adapter.positions()
    assert await terminal.adapter.positions() == (position,)


async def test_an_empty_snapshot_comes_through_as_it_is(terminal: Connected) -> None:
    position = await terminal.open()
    await terminal.broker.fail_snapshot(terminal.login.login, "empty")
    assert await terminal.adapter.orders() == ()
    assert await terminal.adapter.positions() == ()
    assert await terminal.adapter.positions() == (position,)


async def test_a_stale_snapshot_shows_the_past(terminal: Connected) -> None:
    first = await terminal.open()
    await terminal.broker.fail_snapshot(terminal.login.login, "stale")
    second = await terminal.open()
    assert await terminal.adapter.positions() == (first,)
    assert await terminal.adapter.positions() == (first, second)


# --- deadlines ------------------------------------------------------------------------------------


async def test_an_order_past_its_deadline_is_not_sent(terminal: Connected) -> None:
    late = replace(terminal.order("market"), send_before=datetime.now(UTC))
    refused = await terminal.adapter.place(late)
    assert isinstance(refused, Rejected)
    assert refused.reason == "too_late"
    assert await terminal.broker.held(terminal.login.login) == 0
    assert isinstance(await terminal.adapter.find(late), NotFound)


async def test_an_order_before_its_deadline_is_sent(terminal: Connected) -> None:
    in_time = replace(terminal.order("market"), send_before=datetime.now(UTC) + timedelta(minutes=1))
    assert isinstance(await terminal.adapter.place(in_time), Placed)
