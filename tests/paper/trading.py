"""Short functions to trade in a `Broker` directly, without a server: for tests of the rules themselves."""

from decimal import Decimal
from typing import Any

from agent.model import Position
from agent.paper.broker import Broker
from agent.paper.clocks import VirtualClock
from agent.paper.records import Answer, BookChange, Request

LOGIN = "100"
D = Decimal


class Trading:
    """One broker with one book on a virtual clock, EURUSD at 1.10000 / 1.10010."""

    def __init__(self, **book: Any) -> None:
        self.clock = VirtualClock()
        self.broker = Broker(self.clock)
        self.announced: list[BookChange] = []
        self.broker.on_changes = lambda _login, changes: self.announced.extend(changes)
        self.broker.open_book(LOGIN, **book)
        self.price("EURUSD", "1.10000", "1.10010")

    @property
    def book(self) -> Any:
        return self.broker.book(LOGIN)

    @property
    def positions(self) -> list[Position]:
        return list(self.book.positions.values())

    def price(self, symbol: str, bid: str, ask: str) -> None:
        self.broker.set_prices({symbol: (D(bid), D(ask))})

    def send(self, kind: str, **fields: Any) -> Answer:
        """A request; strings are converted to decimals."""
        for name in ("lots", "price", "sl", "tp", "reference_price"):
            if isinstance(fields.get(name), str):
                fields[name] = D(fields[name])
        return self.broker.submit(LOGIN, Request(kind=kind, **{"symbol": "EURUSD", **fields}))  # type: ignore[arg-type]

    def open(self, side: str = "buy", lots: str = "1.00", **fields: Any) -> Position:
        answer = self.send("market", side=side, lots=lots, **fields)
        assert answer.status == "done", answer
        return next(position for position in reversed(answer.positions) if position.lots)

    def close(self, position: Position, lots: str | None = None) -> Answer:
        return self.send("close", symbol="", ticket=position.ticket, lots=lots)
