"""A paper broker that gives a symbol another name."""

import pytest
from trading import LOGIN, D, Trading

from agent.paper.broker import BrokerError


def test_quotes_positions_and_orders_follow_a_rename() -> None:
    trading = Trading()
    held = trading.open()
    order = trading.send("pending", side="buy", order_type="limit", lots="1.00", price="1.09000").positions[0]
    trading.broker.rename(LOGIN, "EURUSD", "EURUSD.r")
    assert "EURUSD" not in trading.book.symbols
    assert trading.book.symbols["EURUSD.r"].name == "EURUSD.r"
    told = [(change.position.ticket, change.position.symbol) for change in trading.announced[-2:]]
    assert told == [(held.ticket, "EURUSD.r"), (order.ticket, "EURUSD.r")]
    assert trading.send("market", side="buy", lots="1.00").reason == "unknown_symbol"
    trading.price("EURUSD", "1.08000", "1.08010")
    assert [position.symbol for position in trading.positions] == ["EURUSD.r", "EURUSD.r"]
    assert trading.book.exposure["EURUSD.r"]["buy"].lots == D("2.00")
    assert trading.close(trading.positions[0]).status == "done"


@pytest.mark.parametrize(("old", "new"), [("NONE", "X"), ("EURUSD", "GBPUSD")])
def test_a_rename_of_nothing_or_to_a_name_that_is_taken_is_refused(old: str, new: str) -> None:
    with pytest.raises(BrokerError, match="has no symbol"):
        Trading().broker.rename(LOGIN, old, new)
