"""The paper broker's executions: what is refused, what remains afterwards, what it costs."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from trading import LOGIN, Trading

from agent.model import SymbolSpec
from agent.paper.broker import BrokerError
from agent.paper.profile import Profile
from agent.paper.records import Request
from agent.paper.specs import infer_spec

D = Decimal


def spec(**fields: Any) -> SymbolSpec:
    base = infer_spec("EURUSD")
    return SymbolSpec(**{**{name: getattr(base, name) for name in base.__slots__}, **fields})


def test_a_round_trip_costs_the_spread() -> None:
    trading = Trading()
    trading.close(trading.open(lots="1.00"))
    assert trading.book.balance == D("9990.00")


def test_profit_in_another_currency_is_converted_by_the_book_s_own_quotes() -> None:
    trading = Trading(currency="EUR")
    position = trading.open("sell", "1.00")
    trading.price("EURUSD", "1.04990", "1.05010")
    trading.close(position)
    # (1.10000 - 1.05010) x 100000 USD at the mid of 1.05000
    assert trading.book.balance == D(10000) + D("4752.38")


def test_a_cross_is_converted_over_usd() -> None:
    trading = Trading(currency="USD", symbols=[infer_spec("EURGBP")])
    trading.price("EURGBP", "0.85000", "0.85010")
    trading.price("GBPUSD", "1.24990", "1.25010")
    position = trading.open("sell", "1.00", symbol="EURGBP")
    trading.price("EURGBP", "0.84890", "0.84900")
    trading.close(position)
    assert trading.book.balance == D(10000) + D(100) * D("1.25")


def test_a_suffixed_symbol_takes_the_plain_price_and_keeps_its_name() -> None:
    trading = Trading(symbols=[infer_spec("eurusd-2")])
    position = trading.open(symbol="eurusd-2")
    assert (position.symbol, position.price) == ("eurusd-2", D("1.10010"))


def test_a_price_of_its_own_goes_before_everybody_s() -> None:
    trading = Trading()
    trading.broker.set_prices({"EURUSD": (D("1.30000"), D("1.30010"))}, LOGIN)
    trading.price("EURUSD", "1.20000", "1.20010")
    assert trading.open().price == D("1.30010")


def test_commission_is_charged_on_both_sides_and_no_swap_ever() -> None:
    trading = Trading(profile=Profile(commission_per_lot=D("3.50")))
    position = trading.open(lots="2.00")
    trading.clock.advance(timedelta(days=7))
    trading.broker.pass_time()
    trading.close(position)
    assert [deal.commission for deal in trading.book.deals] == [0, D("-7.00"), D("-7.00")]
    assert trading.book.balance == D(10000) - 20 - 14


def test_a_partial_close_keeps_the_ticket() -> None:
    trading = Trading()
    position = trading.open(lots="1.00")
    trading.close(position, "0.30")
    assert [(held.ticket, held.lots) for held in trading.positions] == [(position.ticket, D("0.70"))]


def test_a_retickets_book_gives_the_rest_a_new_ticket_that_names_the_old() -> None:
    trading = Trading(profile=Profile(retickets=True))
    position = trading.open(lots="1.00")
    answer = trading.close(position, "0.30")
    (held,) = trading.positions
    assert held.ticket != position.ticket
    assert (held.replaces, held.lots, held.price) == (position.ticket, D("0.70"), position.price)
    assert held.comment == f"from #{position.ticket}"
    assert [(touched.ticket, touched.lots) for touched in answer.positions] == [
        (position.ticket, 0),
        (held.ticket, D("0.70")),
    ]
    # no close of the old ticket is published: the position continues under another number
    assert [change.position.ticket for change in trading.announced] == [position.ticket, held.ticket]


@pytest.mark.parametrize("lots", ["0.001", "0.015", "51", "0", "-1"])
def test_volumes_off_the_grid_are_refused(lots: str) -> None:
    trading = Trading(balance=D(10_000_000), symbols=[spec(lots_max=D(50))])
    assert trading.send("market", lots=lots).reason == "invalid_volume"
    assert trading.positions == []


@pytest.mark.parametrize("lots", ["1.01", "0.005", "0"])
def test_a_close_of_more_or_of_a_crumb_is_refused(lots: str) -> None:
    trading = Trading()
    position = trading.open(lots="1.00")
    assert trading.close(position, lots).reason == "invalid_volume"
    assert trading.positions == [position]


def test_a_position_smaller_than_the_minimum_can_still_be_closed() -> None:
    trading = Trading()
    position = trading.open(lots="0.05")
    trading.broker.put_symbols(LOGIN, [spec(lots_min=D("0.10"), lots_step=D("0.10"))])
    assert trading.close(position).status == "done"


@pytest.mark.parametrize(
    ("mode", "side", "reason"),
    [
        ("disabled", "buy", "trade_disabled"),
        ("close_only", "buy", "close_only"),
        ("long_only", "sell", "long_only"),
        ("short_only", "buy", "short_only"),
    ],
)
def test_trade_modes_refuse_what_they_forbid(mode: str, side: str, reason: str) -> None:
    trading = Trading(symbols=[spec(trade_mode=mode)])
    assert trading.send("market", side=side, lots="1").reason == reason


def test_close_only_lets_positions_go() -> None:
    trading = Trading()
    position = trading.open()
    trading.broker.put_symbols(LOGIN, [spec(trade_mode="close_only")])
    assert trading.close(position).status == "done"


@pytest.mark.parametrize(
    ("side", "levels"),
    [
        ("buy", {"sl": "1.10000"}),
        ("buy", {"sl": "1.09996"}),
        ("buy", {"tp": "1.10004"}),
        ("buy", {"sl": "1.089995"}),
        ("sell", {"sl": "1.10014"}),
        ("sell", {"tp": "1.10006"}),
        ("sell", {"tp": "0"}),
    ],
)
def test_levels_too_close_on_the_wrong_side_or_off_the_grid_are_refused(side: str, levels: dict[str, str]) -> None:
    trading = Trading(symbols=[spec(stops_level_points=5)])
    assert trading.send("market", side=side, lots="1", **levels).reason == "invalid_stops"


def test_a_level_that_is_already_set_may_stay_when_the_market_came_close() -> None:
    trading = Trading(symbols=[spec(stops_level_points=50)])
    position = trading.open(sl="1.09500")
    trading.price("EURUSD", "1.09510", "1.09520")
    assert trading.send("modify", ticket=position.ticket, sl="1.09500", tp="1.12000").status == "done"


def test_a_frozen_level_cannot_be_changed_any_more() -> None:
    trading = Trading(symbols=[spec(freeze_level_points=20)])
    position = trading.open(sl="1.09500")
    trading.price("EURUSD", "1.09515", "1.09525")
    assert trading.send("modify", ticket=position.ticket, sl="1.09000").reason == "invalid_stops"
    trading.price("EURUSD", "1.09530", "1.09540")
    assert trading.send("modify", ticket=position.ticket, sl="1.09000").status == "done"


def test_a_market_execution_broker_takes_levels_only_afterwards() -> None:
    trading = Trading(profile=Profile(levels_on_open=False))
    assert trading.send("market", lots="1", sl="1.09000").reason == "invalid_stops"
    position = trading.open()
    assert trading.send("modify", ticket=position.ticket, sl="1.09000").status == "done"


def test_a_broker_without_timed_orders_refuses_an_expiry() -> None:
    trading = Trading(profile=Profile(timed_orders=False))
    order = {"order_type": "limit", "lots": "1", "price": "1.09000"}
    until = trading.clock.now() + timedelta(hours=1)
    assert trading.send("pending", **order, expires_at=until).reason == "invalid_expiration"
    assert trading.send("pending", **order).status == "done"


def test_an_account_without_hedging_refuses_the_opposite_side() -> None:
    trading = Trading(profile=Profile(no_hedging=True))
    trading.open("buy")
    assert trading.send("market", side="sell", lots="1").reason == "no_hedging"


@pytest.mark.parametrize(
    ("first", "second", "left"), [("1.00", "0.40", "buy"), ("0.40", "1.00", "sell"), ("0.70", "0.70", None)]
)
def test_close_by_leaves_the_difference(first: str, second: str, left: str | None) -> None:
    trading = Trading()
    long, short = trading.open("buy", first), trading.open("sell", second)
    before = trading.book.balance
    assert trading.send("close_by", ticket=long.ticket, other_ticket=short.ticket).status == "done"
    assert trading.book.balance == before + (short.price - long.price) * min(D(first), D(second)) * 100_000
    assert [position.side for position in trading.positions] == ([left] if left else [])
    assert [deal.entry for deal in trading.book.deals][-2:] == ["out_by", "out_by"]


def test_close_by_needs_two_opposite_positions_of_one_symbol() -> None:
    trading = Trading()
    one, other = trading.open("buy"), trading.open("buy")
    assert trading.send("close_by", ticket=one.ticket, other_ticket=other.ticket).reason == "invalid_request"
    assert trading.send("close_by", ticket=one.ticket, other_ticket="1").reason == "position_not_found"


def test_a_close_that_names_the_wrong_symbol_or_side_is_refused() -> None:
    trading = Trading()
    position = trading.open("buy")
    assert trading.send("close", ticket=position.ticket, side="sell").reason == "invalid_request"
    assert trading.positions == [position]


def test_a_refusal_leaves_no_trace_but_its_record() -> None:
    trading = Trading()
    deals = list(trading.book.deals)
    trading.send("market", lots="1", sl="2.0", tag=7)
    assert (trading.book.deals, trading.book.history, trading.announced) == (deals, [], [])
    assert [(record.tag, record.outcome, record.reason) for record in trading.book.requests] == [
        (7, "refused", "invalid_stops")
    ]


def test_tickets_never_repeat_between_books() -> None:
    trading = Trading()
    trading.broker.open_book("200")
    trading.open()
    trading.broker.submit("200", trading_request())
    assert len(set(trading.book.positions) | set(trading.broker.book("200").positions)) == 2


def trading_request() -> Any:
    return Request(kind="market", symbol="EURUSD", lots=D("0.1"))


# --- netting ---------------------------------------------------------------------------------------


def test_netting_keeps_levels_unless_an_increase_names_new_ones() -> None:
    trading = Trading(mode="netting")
    trading.open(lots="0.50", sl="1.09000", tp="1.12000")
    added = trading.open(lots="0.50", sl="1.08000")
    assert (added.lots, added.sl, added.tp) == (D("1.00"), D("1.08000"), D("1.12000"))


def test_a_flip_is_one_change_of_the_same_ticket() -> None:
    trading = Trading(mode="netting")
    long = trading.open("buy", "0.50")
    answer = trading.send("market", side="sell", lots="0.80")
    (short,) = answer.positions
    assert (short.ticket, short.side, short.lots) == (long.ticket, "sell", D("0.30"))
    assert [(deal.entry, deal.lots) for deal in trading.book.deals[1:]] == [
        ("in", D("0.50")),
        ("out", D("0.50")),
        ("in", D("0.30")),
    ]


def test_a_pending_order_that_fills_on_a_netting_account_is_netted() -> None:
    trading = Trading(mode="netting")
    held = trading.open("buy", "1.00")
    order = trading.send("pending", side="sell", order_type="limit", lots="0.40", price="1.11000").positions[0]
    trading.price("EURUSD", "1.11000", "1.11010")
    (rest,) = trading.positions
    assert (rest.ticket, rest.lots, rest.replaces) == (held.ticket, D("0.60"), order.ticket)


def test_close_only_still_lets_a_netting_account_reduce() -> None:
    trading = Trading(mode="netting")
    trading.open("buy", "1.00")
    trading.broker.put_symbols(LOGIN, [spec(trade_mode="close_only")])
    assert trading.send("market", side="sell", lots="1.50").reason == "close_only"
    assert trading.send("market", side="sell", lots="1.00").status == "done"


# --- triggered by prices and time ------------------------------------------------------------------


def test_a_gap_through_the_stop_loss_fills_at_the_market() -> None:
    trading = Trading()
    trading.open(sl="1.09500")
    trading.price("EURUSD", "1.08000", "1.08010")
    deal = trading.book.deals[-1]
    assert (deal.reason, deal.price, deal.comment) == ("sl", D("1.08000"), "[sl 1.09500]")


def test_a_sell_is_protected_by_the_ask() -> None:
    trading = Trading()
    trading.open("sell", sl="1.10500")
    trading.price("EURUSD", "1.10495", "1.10499")
    assert trading.positions
    trading.price("EURUSD", "1.10496", "1.10500")
    assert not trading.positions


def test_a_pending_order_without_money_is_deleted_when_it_triggers() -> None:
    trading = Trading(balance=D(100))
    trading.send("pending", order_type="limit", lots="5", price="1.09000")
    trading.price("EURUSD", "1.08990", "1.09000")
    assert (trading.positions, trading.book.orders) == ([], {})
    assert trading.announced[-1].position.lots == 0
    assert trading.book.journal[-1].event == "order_deleted"


def test_a_filled_pending_order_carries_its_levels_tag_and_comment() -> None:
    trading = Trading()
    trading.send(
        "pending", order_type="stop", lots="0.5", price="1.11000", sl="1.10500", tp="1.12000", tag=9, comment="c"
    )
    trading.price("EURUSD", "1.11000", "1.11010")
    (position,) = trading.positions
    assert (position.sl, position.tp, position.tag, position.comment) == (D("1.10500"), D("1.12000"), 9, "c")


def test_an_order_in_the_past_is_refused() -> None:
    trading = Trading()
    expires_at = trading.clock.now()
    answer = trading.send("pending", order_type="limit", lots="1", price="1.09", expires_at=expires_at)
    assert answer.reason == "invalid_expiration"


@pytest.mark.parametrize("prices", [("0", "1"), ("1.2", "1.1"), ("-1", "1"), ("NaN", "1"), ("1", "Infinity")])
def test_prices_that_are_none_are_refused_whole(prices: tuple[str, str]) -> None:
    trading = Trading()
    with pytest.raises(BrokerError):
        trading.broker.set_prices({"GBPUSD": (D("1.2"), D("1.3")), "EURUSD": (D(prices[0]), D(prices[1]))})
    assert trading.broker.market.quote(LOGIN, "GBPUSD") is None


def test_a_symbol_that_allows_it_trades_below_zero() -> None:
    oil = SymbolSpec(
        **{**{name: getattr(infer_spec("USOIL"), name) for name in SymbolSpec.__slots__}, "allow_negative": True}
    )
    trading = Trading(symbols=[oil])
    trading.price("USOIL", "-37.02", "-37.00")
    assert trading.send("market", symbol="USOIL", lots="0.10", sl="-38.00", tp="1.00").reason is None
    [position] = trading.positions
    assert (position.price, position.sl) == (D("-37.00"), D("-38.00"))
    assert trading.broker.state(LOGIN).margin == 37
    pending = trading.send("pending", symbol="USOIL", order_type="limit", lots="0.10", price="-39.00")
    assert pending.reason is None
    trading.price("USOIL", "-38.02", "-38.00")
    assert trading.positions == []
