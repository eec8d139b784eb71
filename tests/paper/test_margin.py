"""Margin, free margin and the stop-out, in figures that can be checked by hand."""

from decimal import Decimal

from trading import LOGIN, Trading

from agent.paper.profile import Profile

D = Decimal


def test_margin_of_a_currency_pair_is_lots_times_size_over_leverage_in_its_base_currency() -> None:
    trading = Trading(leverage=50)
    trading.price("EURUSD", "1.10000", "1.10000")
    trading.open(lots="0.50")
    state = trading.broker.state(LOGIN)
    assert (state.margin, state.equity, state.free_margin) == (D("1100.00"), D(10000), D("8900.00"))


def test_margin_of_usdjpy_needs_no_conversion_in_usd() -> None:
    trading = Trading()
    trading.price("USDJPY", "150.000", "150.012")
    trading.open(lots="1.00", symbol="USDJPY")
    assert trading.broker.state(LOGIN).margin == D("1000.00")


def test_margin_of_an_index_follows_its_price() -> None:
    trading = Trading()
    trading.price("US30", "40000.00", "40002.00")
    trading.open(lots="2.00", symbol="US30")
    assert trading.broker.state(LOGIN).margin == D("800.04")


def test_hedged_volume_needs_margin_once() -> None:
    trading = Trading()
    trading.price("EURUSD", "1.10000", "1.10000")
    trading.open("buy", "1.00")
    trading.open("sell", "0.60")
    assert trading.broker.state(LOGIN).margin == D("1100.00")


def test_an_order_that_the_free_margin_does_not_cover_is_refused() -> None:
    trading = Trading(balance=D(1100))
    trading.price("EURUSD", "1.10000", "1.10000")
    assert trading.send("market", lots="1.01").reason == "no_money"
    assert trading.send("market", lots="1.00").status == "done"
    assert trading.send("market", lots="0.01").reason == "no_money"


def test_commission_counts_against_the_free_margin() -> None:
    trading = Trading(balance=D(1100), profile=Profile(commission_per_lot=D(1)))
    trading.price("EURUSD", "1.10000", "1.10000")
    assert trading.send("market", lots="1.00").reason == "no_money"


def test_reducing_a_netting_position_needs_no_money() -> None:
    trading = Trading(mode="netting", balance=D(1200))
    trading.price("EURUSD", "1.10000", "1.10000")
    trading.open("buy", "1.00")
    trading.price("EURUSD", "1.09500", "1.09500")
    assert trading.broker.state(LOGIN).free_margin < 0
    assert trading.send("market", side="sell", lots="0.50").status == "done"


def test_the_stop_out_comes_at_half_the_margin_and_not_before() -> None:
    trading = Trading(balance=D(2000))
    trading.price("EURUSD", "1.10000", "1.10000")
    trading.open("buy", "1.00")
    # equity 2000 - 1452 = 548 against a margin of 1085.48: 50.48 %
    trading.price("EURUSD", "1.08548", "1.08548")
    assert trading.positions
    # equity 2000 - 1460 = 540 against 1085.40: 49.75 %
    trading.price("EURUSD", "1.08540", "1.08540")
    assert not trading.positions
    deal = trading.book.deals[-1]
    assert (deal.reason, deal.profit, trading.book.balance) == ("stop_out", D("-1460.00"), D("540.00"))


def test_the_stop_out_closes_the_largest_loser_first_and_stops_when_that_is_enough() -> None:
    trading = Trading(balance=D(2000))
    trading.price("EURUSD", "1.10000", "1.10000")
    trading.price("USDJPY", "150.000", "150.000")
    trading.open("buy", "0.10", symbol="USDJPY")
    large = trading.open("buy", "1.00")
    trading.price("EURUSD", "1.08500", "1.08500")
    assert [position.symbol for position in trading.positions] == ["USDJPY"]
    assert trading.announced[-1].position.ticket == large.ticket
    assert trading.announced[-1].close_reason == "stop_out"


def test_a_gap_may_take_the_balance_below_zero() -> None:
    trading = Trading(balance=D(2000))
    trading.open("buy", "1.00")
    trading.price("EURUSD", "1.05000", "1.05010")
    assert trading.book.balance == D(2000) - D("5010.00")


def test_a_withdrawal_may_end_in_a_stop_out() -> None:
    trading = Trading(balance=D(10000))
    trading.open("buy", "1.00")
    trading.broker.deposit(LOGIN, D(-9600))
    assert not trading.positions


def test_figures_tell_deposits_and_withdrawals_by_the_brokers_number_but_no_profit_or_commission() -> None:
    trading = Trading(balance=D(2000))
    trading.close(trading.open())
    trading.broker.deposit(LOGIN, D(-600))
    told = trading.broker.state(LOGIN).balance_operations
    assert [(operation.kind, operation.amount) for operation in told] == [("deposit", D(2000)), ("withdrawal", D(-600))]
    assert len({operation.number for operation in told}) == 2
    for _ in range(200):
        trading.broker.deposit(LOGIN, D(1))
    assert [operation.amount for operation in trading.broker.state(LOGIN).balance_operations] == [D(1)] * 100
