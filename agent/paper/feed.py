"""A seeded random walk of the paper broker's prices, for demos and for trying things out."""

import random
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal

from agent.paper.broker import Broker
from agent.paper.specs import DEFAULT_PRICES, infer_spec

#: standard deviation of one step, as a fraction of the price
_STEP = 0.00004
_FIRST_BID = Decimal(100)


class RandomWalk:
    """Each `step` moves every symbol slightly and keeps the spread. Equal seeds give equal prices."""

    def __init__(self, broker: Broker, symbols: Iterable[str] | None = None, seed: int = 1) -> None:
        self._broker = broker
        self._random = random.Random(seed)
        self._prices = {name: self._first(name) for name in (DEFAULT_PRICES if symbols is None else symbols)}

    def begin(self) -> None:
        self._broker.set_prices(self._prices)

    def step(self) -> None:
        self._prices = {name: self._moved(name, *prices) for name, prices in self._prices.items()}
        self._broker.set_prices(self._prices)

    def _first(self, name: str) -> tuple[Decimal, Decimal]:
        quote = self._broker.market.quote("", name)
        if quote is not None:
            return quote.bid, quote.ask
        tick = infer_spec(name).tick_size
        return DEFAULT_PRICES.get(name, (_FIRST_BID, _FIRST_BID + 10 * tick))

    def _moved(self, name: str, bid: Decimal, ask: Decimal) -> tuple[Decimal, Decimal]:
        tick, spread = infer_spec(name).tick_size, ask - bid
        moved = bid * (1 + Decimal(repr(self._random.gauss(0, _STEP))))
        on_grid = max(tick, (moved / tick).to_integral_value(ROUND_HALF_EVEN) * tick)
        return on_grid, on_grid + spread
