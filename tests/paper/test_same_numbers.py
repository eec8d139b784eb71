"""A broker that numbers positions and orders separately, as MetaTrader 5 and cTrader do."""

from pathlib import Path
from typing import Any

from trading import LOGIN, Trading

from agent.paper.broker import Broker
from agent.paper.clocks import VirtualClock
from agent.paper.profile import Profile
from agent.paper.store import Store


def trading_with(**profile: Any) -> Trading:
    return Trading(profile=Profile(same_numbers=True, **profile))


def order(trading: Trading, price: str = "1.09000", **fields: object) -> str:
    placed = trading.send("pending", side="buy", order_type="limit", lots="1.00", price=price, **fields)
    return str(placed.positions[0].ticket)


def test_an_order_and_a_position_may_carry_the_same_number() -> None:
    trading = trading_with()
    ticket = order(trading)
    held = trading.open()
    assert (ticket, held.ticket, held.replaces, held.replaces_kind) == ("1", "1", None, "position")
    assert trading.send("cancel", ticket="1").status == "done"
    assert [position.ticket for position in trading.positions] == ["1"]
    assert trading.close(held).status == "done"
    assert trading.positions == []


def test_a_filled_order_keeps_its_number_where_it_is_free() -> None:
    trading = trading_with()
    ticket = order(trading)
    trading.price("EURUSD", "1.08000", "1.08010")
    (position,) = trading.positions
    assert (position.ticket, position.replaces, position.replaces_kind) == (ticket, ticket, "order")
    assert trading.open().ticket == "2"


def test_a_filled_order_whose_number_a_position_has_gets_another() -> None:
    trading = trading_with()
    ticket = order(trading)
    held = trading.open()
    trading.price("EURUSD", "1.08000", "1.08010")
    filled = trading.positions[1]
    assert (held.ticket, ticket) == ("1", "1")
    assert (filled.ticket, filled.replaces, filled.replaces_kind) == ("2", "1", "order")


def test_what_a_tag_has_done_is_told_by_kind_and_number() -> None:
    trading = trading_with()
    order(trading, tag=71)
    trading.open(tag=72)
    assert [position.kind for position in trading.broker.traces(LOGIN, 71).positions] == ["order"]
    assert [position.kind for position in trading.broker.traces(LOGIN, 72).positions] == ["position"]


def test_both_survive_a_restart_of_the_broker(tmp_path: Path) -> None:
    broker = Broker(VirtualClock())
    store = Store(tmp_path)
    store.attach(broker)
    trading = Trading.__new__(Trading)
    trading.clock, trading.broker, trading.announced = VirtualClock(), broker, []
    broker.open_book(LOGIN, profile=Profile(same_numbers=True))
    trading.price("EURUSD", "1.10000", "1.10010")
    order(trading)
    trading.open()
    store.close()
    again = Broker(VirtualClock())
    store = Store(tmp_path)
    store.attach(again)
    book = again.book(LOGIN)
    assert (list(book.positions), list(book.orders)) == (["1"], ["1"])
    trading.broker = again
    trading.price("EURUSD", "1.10000", "1.10010")
    assert (trading.open().ticket, order(trading)) == ("2", "2")
    store.close()


def test_other_brokers_number_as_before() -> None:
    trading = Trading()
    ticket = order(trading)
    assert trading.open().ticket != ticket
    trading.price("EURUSD", "1.08000", "1.08010")
    assert trading.positions[1].replaces == ticket
