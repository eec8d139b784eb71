"""Invariants after any sequence of orders, prices and faults."""

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trading import LOGIN, Trading

from agent.model import Position, Quote
from agent.paper.profile import Profile
from agent.paper.records import Request

D = Decimal
LOTS = st.integers(1, 300).map(lambda steps: D(steps) / 100)
SIDES = st.sampled_from(["buy", "sell"])
POINTS = st.integers(-400, 400)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("market"), SIDES, LOTS, POINTS),
        st.tuples(st.just("close"), st.integers(0, 9), LOTS),
        st.tuples(st.just("close_all"), st.integers(0, 9)),
        st.tuples(st.just("close_by"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("pending"), SIDES, LOTS, POINTS),
        st.tuples(st.just("price"), POINTS),
        st.tuples(
            st.just("fault"), st.sampled_from(["reject", "requote", "partial", "timeout_executed", "timeout_lost"])
        ),
    ),
    max_size=40,
)


def play(trading: Trading, steps: list[tuple[object, ...]]) -> None:
    """Send every step as a program would, each order with its own tag."""
    for tag, step in enumerate(steps, start=1):
        tickets = list(trading.book.positions) or ["1"]
        match step:
            case ("market", side, lots, points):
                level = D("1.10000") + D(points) / 100000  # type: ignore[arg-type]
                send(trading, kind="market", symbol="EURUSD", side=side, lots=lots, sl=level, tag=tag)
            case ("close", index, lots):
                send(trading, kind="close", ticket=tickets[index % len(tickets)], lots=lots, tag=tag)  # type: ignore[operator]
            case ("close_all", index):
                send(trading, kind="close", ticket=tickets[index % len(tickets)], tag=tag)  # type: ignore[operator]
            case ("close_by", one, other):
                pair = (tickets[one % len(tickets)], tickets[other % len(tickets)])  # type: ignore[operator]
                send(trading, kind="close_by", ticket=pair[0], other_ticket=pair[1], tag=tag)
            case ("pending", side, lots, points):
                level = D("1.10000") + D(points) / 100000  # type: ignore[arg-type]
                kind = "limit" if (level < D("1.1")) == (side == "buy") else "stop"
                send(
                    trading,
                    kind="pending",
                    symbol="EURUSD",
                    side=side,
                    order_type=kind,
                    lots=lots,
                    price=level,
                    tag=tag,
                )
            case ("price", points):
                bid = D("1.10000") + D(points) / 100000  # type: ignore[arg-type]
                trading.broker.set_prices({"EURUSD": (bid, bid + D("0.00010"))})
            case ("fault", kind):
                trading.broker.fault(LOGIN, kind)  # type: ignore[arg-type]
            case _:
                raise AssertionError(step)


def worth(held: Position, quote: Quote) -> Decimal:
    """Floating profit of one position in USD."""
    points = quote.bid - held.price if held.side == "buy" else held.price - quote.ask
    return points * held.lots * 100_000


def send(trading: Trading, **fields: object) -> None:
    trading.broker.submit(LOGIN, Request(origin="expert", **fields))  # type: ignore[arg-type]


PROFILE = Profile(seed=3, commission_per_lot=D("2.5"), slippage_points_max=3, reject_rate=0.1, partial_rate=0.2)
BOOKS = pytest.mark.parametrize(
    "book",
    [
        {"mode": "hedging", "profile": PROFILE},
        {"mode": "netting", "profile": PROFILE},
        {"mode": "hedging", "currency": "EUR", "profile": Profile(retickets=True)},
    ],
    ids=["hedging", "netting", "retickets"],
)


@BOOKS
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_the_balance_is_the_sum_of_the_deals(book: dict[str, object], steps: list[tuple[object, ...]]) -> None:
    trading = Trading(**book)
    play(trading, steps)
    assert trading.book.balance == sum(deal.profit + deal.commission for deal in trading.book.deals)
    assert [deal.number for deal in trading.book.deals] == list(range(1, len(trading.book.deals) + 1))


@BOOKS
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_what_is_held_is_what_was_dealt(book: dict[str, object], steps: list[tuple[object, ...]]) -> None:
    trading = Trading(**book)
    play(trading, steps)
    dealt: Counter[tuple[str, str]] = Counter()
    for deal in trading.book.deals:
        if deal.entry != "balance":
            dealt[deal.symbol, deal.side] += deal.lots if deal.entry == "in" else -deal.lots
    held: Counter[tuple[str, str]] = Counter()
    for position in trading.positions:
        held[position.symbol, position.side] += position.lots  # type: ignore[assignment]
    assert {key: lots for key, lots in dealt.items() if lots} == dict(held)
    assert all(position.lots > 0 for position in trading.positions)
    if trading.book.mode == "netting":
        assert len(trading.positions) <= 1


@BOOKS
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_the_pushes_tell_the_whole_story(book: dict[str, object], steps: list[tuple[object, ...]]) -> None:
    """Applying every change, and removing the old ticket that `replaces` names, gives the book's own positions."""
    trading = Trading(**book)
    play(trading, steps)
    mirror: dict[str, object] = {}
    for change in trading.announced:
        position = change.position
        if position.replaces is not None:
            mirror.pop(position.replaces, None)
        if position.lots:
            mirror[position.ticket] = position
        else:
            mirror.pop(position.ticket, None)
            assert change.evidence == "deal"
    assert mirror == {**trading.book.positions, **trading.book.orders}


@BOOKS
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_no_request_is_executed_twice_and_what_was_lost_left_nothing(
    book: dict[str, object], steps: list[tuple[object, ...]]
) -> None:
    trading = Trading(**book)
    play(trading, steps)
    executed = Counter(record.tag for record in trading.book.requests if record.outcome == "executed")
    assert all(times == 1 for times in executed.values())
    orders = Counter((record.tag, record.kind) for record in trading.book.history if record.kind != "pending")
    assert all(times == 1 for times in orders.values())
    traded = {deal.tag for deal in trading.book.deals if deal.tag is not None}
    assert traded <= set(executed)


@BOOKS
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_equity_and_margin_are_recomputed_from_the_positions(
    book: dict[str, object], steps: list[tuple[object, ...]]
) -> None:
    trading = Trading(**book)
    play(trading, steps)
    state = trading.broker.state(LOGIN)
    quote = trading.broker.market.quote(LOGIN, "EURUSD")
    assert quote is not None
    rate = (quote.bid + quote.ask) / 2 if trading.book.currency == "USD" else D(1)
    floating = sum((worth(held, quote) for held in trading.positions), D(0)) * rate / ((quote.bid + quote.ask) / 2)
    assert abs(state.equity - state.balance - floating) <= D("0.01")
    assert state.free_margin == state.equity - state.margin
    longest = max(sum(held.lots for held in trading.positions if held.side == side) for side in ("buy", "sell"))
    assert abs(state.margin - longest * 1000 * rate) <= D("0.01")
    if state.margin:
        assert state.equity * 2 > state.margin, "the stop-out should have closed something"
