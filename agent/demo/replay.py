"""The master replays a statement: prices are set as in the statement, and each action is detected before the next.

Time is compressed. A stop from the statement is set only where no price of the statement would hit it too early. Before
a price that hits a stop is set, the copies of earlier actions must be complete: in reality there were minutes between.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_UP, Decimal

from agent.demo.statement import Action, Statement
from agent.failure import Failure
from agent.model import Placed, Rejected, SymbolSpec
from agent.paper.client import PaperClient, ticket_of
from agent.paper.specs import REFERENCE_USD, infer_spec, instrument
from agent.testbed.quiescence import Observer, Worked

DETECT_S = 10.0
LEVERAGE = 100
SMALLEST_BALANCE = Decimal(1000)

SEEN = """
  select p.lots, p.closed_at is not null as gone from public.positions p
  where p.account_id = %(account)s::uuid and p.ticket = %(ticket)s"""


def specs_of(statement: Statement) -> dict[str, SymbolSpec]:
    """The specification of each symbol in the statement, from its name, the digits of its prices and its volumes."""
    return {
        name: _with_volumes(infer_spec(name, max(-_exponent(price) for price in prices)), statement.volumes[name])
        for name, prices in statement.symbols.items()
    }


def _with_volumes(spec: SymbolSpec, volumes: Sequence[Decimal]) -> SymbolSpec:
    """The specification under which a broker takes these volumes: the usual one, with a finer step, a lower minimum and
    a higher maximum where a volume needs it. Whole lots do not prove that their broker took nothing less."""
    step = min(spec.lots_step, Decimal(1).scaleb(min(_exponent(lots.normalize()) for lots in volumes)))
    return replace(spec, lots_step=step, lots_min=min(spec.lots_min, *volumes), lots_max=max(spec.lots_max, *volumes))


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return min(0, exponent) if isinstance(exponent, int) else 0


def needed_balance(statement: Statement, size: Callable[[Decimal], Decimal] = lambda lots: lots) -> Decimal:
    """A balance in USD without a stop-out when every trade has `size(lots)`, whatever the order of the prices."""
    specs = specs_of(statement)
    held: dict[str, Decimal] = {}
    peak = notional = at_risk = Decimal(0)
    for action in statement.actions:
        spec = specs[action.symbol]
        per_price = spec.contract_size * REFERENCE_USD.get(spec.profit_currency, Decimal(1))
        prices = statement.symbols[action.symbol]
        match action.kind:
            case "open":
                held[action.key] = size(action.lots) * per_price * max(prices)
                at_risk += size(action.lots) * per_price * (max(prices) - min(prices))
            case "reduce":
                continue
            case "close":
                notional -= held.pop(action.key)
                continue
        notional += held[action.key]
        peak = max(peak, notional)
    return _round_up(max(SMALLEST_BALANCE, 2 * (at_risk + 2 * peak / LEVERAGE)))


def _round_up(number: Decimal) -> Decimal:
    """Round up to two significant digits."""
    unit = Decimal(1).scaleb(number.adjusted() - 1)
    return Decimal(f"{(number / unit).to_integral_value(ROUND_UP) * unit:f}")


@dataclass(frozen=True, slots=True)
class Levels:
    sl: Decimal | None
    tp: Decimal | None


def safe_levels(actions: Sequence[Action]) -> dict[str, Levels]:
    """The statement's levels of every position, without those that one of its prices reaches before the position's
    close."""
    ends = {action.key: n for n, action in enumerate(actions) if action.kind == "close"}
    paths: dict[str, list[tuple[int, Decimal]]] = {}
    for n, action in enumerate(actions):
        paths.setdefault(instrument(action.symbol).plain, []).append((n, action.price))
    safe: dict[str, Levels] = {}
    for n, action in enumerate(actions):
        if action.kind != "open" or (action.sl is None and action.tp is None):
            continue
        end = ends.get(action.key, len(actions))
        prices = [price for at, price in paths[instrument(action.symbol).plain] if n <= at < end]
        below, above = (action.sl, action.tp) if action.side == "buy" else (action.tp, action.sl)
        below = below if below is not None and below < min(prices) else None
        above = above if above is not None and above > max(prices) else None
        safe[action.key] = Levels(below, above) if action.side == "buy" else Levels(above, below)
    return safe


class Replay:
    """Replays a statement in book `master.login`. `detected`: the actions that the master's agent has reported."""

    def __init__(self, statement: Statement, paper: PaperClient, observer: Observer, master: Worked) -> None:
        self._statement = statement
        self._paper = paper
        self._observer = observer
        self._master = master
        self._levels = safe_levels(statement.actions)
        self._tickets: dict[str, str] = {}
        self._left: dict[str, Decimal] = {}
        self.detected = 0

    async def set_first_prices(self) -> None:
        """Set the first price of every symbol, so that all currencies can be converted from the start."""
        first = {instrument(name).plain: (prices[0], prices[0]) for name, prices in self._statement.symbols.items()}
        await self._paper.set_prices(first)

    async def run(self, *, speed: float | None, settle: Callable[[], Awaitable[None]]) -> None:
        """Perform every action, `speed` times as fast as in reality, but each one after the previous one was detected.

        None: as fast as they are copied, one after the other. `settle` waits until the copies so far are complete.
        """
        begun, start = time.monotonic(), self._statement.actions[0].at
        for action in self._statement.actions:
            if speed is not None:
                due = begun + (action.at - start).total_seconds() / speed
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._act(action, settle)
            await self._detect(action)
            self.detected += 1
            if speed is None:
                await settle()

    async def _act(self, action: Action, settle: Callable[[], Awaitable[None]]) -> None:
        if action.kind == "close" and self._hits_a_level(action):
            await settle()
        await self._paper.set_prices({instrument(action.symbol).plain: (action.price, action.price)})
        if action.kind == "open":
            level = self._levels.get(action.key, Levels(None, None))
            result = await self._paper.market(
                self._master.login, action.symbol, action.side, action.lots, sl=level.sl, tp=level.tp
            )
            if isinstance(result, Rejected):
                raise self._refused(action, result)
            self._tickets[action.key] = ticket_of(result)
            self._left[action.key] = action.lots
            return
        ticket = self._tickets[action.key]
        if action.kind == "close" and not await self._holds(ticket):
            self._left[action.key] = Decimal(0)
            # this price has hit the position's own stop
            return
        self._left[action.key] = Decimal(0) if action.kind == "close" else self._left[action.key] - action.lots
        result = await self._paper.close_position(
            self._master.login, ticket, None if action.kind == "close" else action.lots
        )
        match result:
            case Placed(positions=positions):
                rest = [position for position in positions if position.lots]
                if rest:
                    self._tickets[action.key] = rest[-1].ticket
            case Rejected():
                raise self._refused(action, result)

    def _hits_a_level(self, action: Action) -> bool:
        level = self._levels.get(action.key)
        if level is None:
            return False
        below, above = (level.sl, level.tp) if action.side == "buy" else (level.tp, level.sl)
        return (below is not None and action.price <= below) or (above is not None and action.price >= above)

    async def _holds(self, ticket: str) -> bool:
        return any(position.ticket == ticket for position in (await self._paper.holdings(self._master.login)).positions)

    async def _detect(self, action: Action) -> None:
        """Wait until the database shows what the action left of its position."""
        parameters: Mapping[str, object] = {"account": self._master.account_id, "ticket": self._tickets[action.key]}
        end = time.monotonic() + DETECT_S
        while True:
            rows = await self._observer.rows(SEEN, parameters)
            if rows and rows[0]["lots"] == self._left[action.key]:
                return
            if time.monotonic() > end:
                raise Failure(
                    f"line {action.line} of the statement ({action.kind} {action.symbol}) was not detected within"
                    f" {DETECT_S:.0f} s",
                    "read the log of the master's agent in the folder that the demo printed",
                    code="TC652",
                )
            await asyncio.sleep(0.005)

    def _refused(self, action: Action, result: Rejected) -> Failure:
        return Failure(
            f"line {action.line} of the statement ({action.kind} {action.lots} {action.symbol} at {action.price}) "
            f"was refused by the master's broker: {result.reason} {result.message}".rstrip(),
            "correct that line: the statement must contain only trades that its broker would accept",
            code="TC651",
        )
