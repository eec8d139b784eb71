"""A master that trades randomly: opens, closes in parts, moves stops, places and cancels orders, at a readable rate.

Everything is drawn from one seed, so that a run can be repeated. An action that the broker refuses is skipped.
"""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, Literal

from agent.model import Placed, Position, Side, SymbolSpec
from agent.paper.client import PaperClient
from agent.paper.records import Holdings

TraderAction = Literal["open", "reduce", "close", "protect", "place", "amend", "cancel"]
WEIGHTS: Final[dict[TraderAction, int]] = {
    "open": 34,
    "reduce": 16,
    "close": 22,
    "protect": 14,
    "place": 6,
    "amend": 4,
    "cancel": 4,
}
MOST_POSITIONS: Final = 10
MOST_ORDERS: Final = 4
#: seconds after which a position may be reduced or closed: its copies may wait that long for the first quote of a
#: symbol of another name, and a copy that is decided later is sized by what is left
SETTLED_S: Final = 5
#: distance of levels and pending orders from the price, as a fraction of it: so large that price moves cause no refusal
NEAR, FAR = 0.006, 0.02


class Trader:
    """Trades book `login` in `symbols`. `actions` counts the actions that the broker accepted."""

    def __init__(self, paper: PaperClient, login: str, symbols: Sequence[str], *, seed: int = 1) -> None:
        self._paper = paper
        self._login = login
        self._symbols = tuple(symbols)
        self._random = random.Random(seed)
        self._specs: dict[str, SymbolSpec] = {}
        self.actions = 0

    async def run(self, *, per_second: float = 3.0) -> None:
        """Trade until cancelled."""
        while True:
            await self.act()
            await asyncio.sleep(self._random.expovariate(per_second))

    async def act(self) -> None:
        """Perform one action, chosen among those that are possible now."""
        if not self._specs:
            self._specs = {spec.name: spec for spec in (await self._paper.book(self._login)).symbols}
        book = await self._paper.holdings(self._login)
        action = self._choose(book)
        if await self._do(action, book):
            self.actions += 1

    async def close_all(self) -> None:
        """Close every position and cancel every order, so that a run ends flat."""
        book = await self._paper.holdings(self._login)
        for order in book.orders:
            await self._paper.cancel(self._login, order.ticket)
        for position in book.positions:
            await self._paper.close_position(self._login, position.ticket)

    def _choose(self, book: Holdings) -> TraderAction:
        possible: dict[TraderAction, int] = dict(WEIGHTS)
        if len(book.positions) >= MOST_POSITIONS:
            del possible["open"]
        if len(book.orders) >= MOST_ORDERS:
            del possible["place"]
        impossible: set[TraderAction] = set() if book.positions else {"protect"}
        impossible |= set() if _settled(book) else {"reduce", "close"}
        impossible |= set() if book.orders else {"amend", "cancel"}
        possible = {action: weight for action, weight in possible.items() if action not in impossible}
        [chosen] = self._random.choices(list(possible), weights=list(possible.values()))
        return chosen

    async def _do(self, action: TraderAction, book: Holdings) -> bool:
        match action:
            case "open" | "place":
                return await self._enter(action, book)
            case "amend" | "cancel":
                return await self._change_order(action, self._random.choice(book.orders), book)
            case "reduce" | "close":
                return await self._change(action, self._random.choice(_settled(book)), book)
            case "protect":
                return await self._change(action, self._random.choice(book.positions), book)

    async def _enter(self, action: Literal["open", "place"], book: Holdings) -> bool:
        spec = self._specs[self._random.choice(self._symbols)]
        quote = await self._paper.quote(self._login, spec.name)
        if quote is None:
            return False
        side: Side = self._random.choice(("buy", "sell"))
        lots = max(spec.lots_min, self._random.randint(10, 100) * spec.lots_step)
        if action == "place":
            price = self._away(quote.bid, spec, "buy" if side == "sell" else "sell")
            result = await self._paper.limit(self._login, spec.name, side, lots, price)
        else:
            sl, tp = self._levels(quote.bid, spec, side) if self._random.random() < 0.5 else (None, None)
            result = await self._paper.market(self._login, spec.name, side, lots, sl=sl, tp=tp)
        return isinstance(result, Placed)

    async def _change(self, action: Literal["reduce", "close", "protect"], position: Position, book: Holdings) -> bool:
        spec = self._specs[position.symbol]
        if action == "protect":
            quote = await self._paper.quote(self._login, position.symbol)
            if quote is None:
                return False
            sl, tp = self._levels(quote.bid, spec, position.side)
            result = await self._paper.modify(self._login, position.ticket, sl=sl, tp=tp)
        else:
            steps = int(position.lots / spec.lots_step)
            part = self._random.randint(1, max(1, steps // 2)) * spec.lots_step
            lots = part if action == "reduce" and part < position.lots else None
            result = await self._paper.close_position(self._login, position.ticket, lots)
        return isinstance(result, Placed)

    async def _change_order(self, action: Literal["amend", "cancel"], order: Position, book: Holdings) -> bool:
        if action == "cancel":
            return isinstance(await self._paper.cancel(self._login, order.ticket), Placed)
        spec = self._specs[order.symbol]
        quote = await self._paper.quote(self._login, order.symbol)
        if quote is None:
            return False
        price = self._away(quote.bid, spec, "buy" if order.side == "sell" else "sell")
        return isinstance(await self._paper.amend(self._login, order.ticket, price=price), Placed)

    def _levels(self, price: Decimal, spec: SymbolSpec, side: Side) -> tuple[Decimal, Decimal]:
        """Stop loss and take profit, each on the correct side of the price."""
        other: Side = "sell" if side == "buy" else "buy"
        return self._away(price, spec, other), self._away(price, spec, side)

    def _away(self, price: Decimal, spec: SymbolSpec, direction: Side) -> Decimal:
        """A price some distance up (`buy`) or down (`sell`), on a tick."""
        share = Decimal(str(round(self._random.uniform(NEAR, FAR), 5)))
        moved = price * (1 + share if direction == "buy" else 1 - share)
        return (moved / spec.tick_size).to_integral_value(ROUND_HALF_EVEN) * spec.tick_size


def _settled(book: Holdings) -> list[Position]:
    before = datetime.now(UTC) - timedelta(seconds=SETTLED_S)
    return [position for position in book.positions if position.opened_at is not None and position.opened_at < before]
