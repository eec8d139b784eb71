"""The matching engine: one order request against one book at the current quotes.

Every path makes all checks before it changes anything: after a `Refusal` the book is unchanged.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import assert_never

from agent.model import ExecutionId, Position, Quote, Side, SymbolSpec
from agent.paper import checks
from agent.paper.book import ZERO, Exposure, opposite
from agent.paper.desk import Desk, Terms
from agent.paper.margin import equity, margin, money
from agent.paper.profile import share_of
from agent.paper.records import Answer, OrderRecord, Request
from agent.paper.refusals import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Random conditions of an execution. `quote` is the quote at the time when the request arrived."""

    slippage_points: int = 0
    fill_share: Decimal = Decimal(1)
    quote: Quote | None = None


CALM = Conditions()


class Matching:
    """Executes requests through a `Desk`; the answer's `positions` lists everything that changed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._book = desk.book
        self._market = desk.market

    def execute(self, request: Request, conditions: Conditions = CALM) -> Answer:
        """Execute the request, or raise `Refusal`."""
        match request.kind:
            case "market":
                return self._market_order(request, conditions)
            case "close":
                return self._close(request, conditions)
            case "close_by":
                return self._close_by(request)
            case "modify":
                return self._modify(request)
            case "pending":
                return self._pending(request)
            case "amend":
                return self._amend(request)
            case "cancel":
                return self._cancel(request)
            case _:
                assert_never(request.kind)

    # --- deals -------------------------------------------------------------------------------------

    def _market_order(self, request: Request, conditions: Conditions) -> Answer:
        spec = checks.symbol_of(self._book, request.symbol)
        quote = checks.quote_of(self._book, self._market, spec.name)
        checks.check_trading_allowed(spec)
        lots = checks.check_volume(spec, request.lots)
        held = self._book.net(spec.name) if self._book.mode == "netting" else None
        reducing = held is not None and held.side != request.side and lots <= held.lots
        if not reducing:
            checks.check_opening_allowed(spec, request.side)
            self._check_hedging(spec, request.side)
        if not self._book.profile.levels_on_open and (request.sl, request.tp) != (None, None):
            raise Refusal("invalid_stops", "a market order cannot carry stop loss or take profit at this broker")
        price = self._price(spec, request, request.side, quote, conditions)
        closing_side_price = quote.bid if request.side == "buy" else quote.ask
        checks.check_levels(spec, request.side, closing_side_price, request.sl, request.tp)
        if conditions.fill_share < 1:
            lots = share_of(lots, conditions.fill_share, spec.lots_step, spec.lots_min)
        self.check_money(spec, request.side, lots, price)
        touched = self._desk.deal(spec, request.side, lots, price, _terms(request))
        return self._done(request, spec.name, request.side, request.lots or lots, lots, price, touched)

    def _close(self, request: Request, conditions: Conditions) -> Answer:
        position = self._position(request.ticket)
        spec = checks.symbol_of(self._book, position.symbol)
        quote = checks.quote_of(self._book, self._market, spec.name)
        checks.check_trading_allowed(spec)
        if request.symbol and (request.symbol, request.side) != (position.symbol, position.side):
            turned = self._book.mode == "netting" and request.symbol == position.symbol
            reason = "position_reversed" if turned else "invalid_request"
            raise Refusal(reason, f"ticket {position.ticket} is a {position.side} position in {position.symbol}")
        self._check_fifo(position)
        asked = checks.check_closing_volume(spec, request.lots, position.lots)
        lots = asked
        if conditions.fill_share < 1:
            lots = share_of(asked, conditions.fill_share, spec.lots_step, min(spec.lots_min, asked))
        price = self._price(spec, request, opposite(position.side), quote, conditions)
        touched = self._desk.take_off(position, lots, price, _terms(request))
        return self._done(request, spec.name, position.side, asked, lots, price, touched)

    def _close_by(self, request: Request) -> Answer:
        one, other = self._position(request.ticket), self._position(request.other_ticket)
        if one.symbol != other.symbol or one.side == other.side:
            raise Refusal("invalid_request", "close-by needs two opposite positions of one symbol")
        checks.check_trading_allowed(checks.symbol_of(self._book, one.symbol))
        lots = min(one.lots, other.lots)
        terms = _terms(request)
        touched = self._desk.take_off(one, lots, other.price, terms, entry="out_by")
        touched += self._desk.settle(other, lots, other.price, terms, entry="out_by", profit=ZERO)
        return self._done(request, one.symbol, one.side, lots, lots, other.price, touched)

    def _price(self, spec: SymbolSpec, request: Request, side: Side, quote: Quote, conditions: Conditions) -> Decimal:
        """Execution price of a buy or sell. Refuses with `price_changed` when slippage exceeds the request's limit."""
        price = (quote.ask if side == "buy" else quote.bid) + conditions.slippage_points * spec.tick_size
        if request.max_slippage_points is None:
            return price
        seen = conditions.quote or quote
        reference = request.reference_price or (seen.ask if side == "buy" else seen.bid)
        adverse = price - reference if side == "buy" else reference - price
        if adverse > request.max_slippage_points * Decimal(1).scaleb(-spec.digits):
            raise Refusal("price_changed", f"{price} instead of {reference}")
        return price

    def _check_hedging(self, spec: SymbolSpec, side: Side) -> None:
        if self._book.mode == "hedging" and self._book.profile.no_hedging:
            held = self._book.positions.values()
            if any(position.symbol == spec.name and position.side != side for position in held):
                raise Refusal("no_hedging", spec.name)

    def _check_fifo(self, position: Position) -> None:
        """Closing must follow the order in which positions were opened, which is their order in the book."""
        if not self._book.profile.fifo:
            return
        oldest = next(
            held
            for held in self._book.positions.values()
            if (held.symbol, held.side) == (position.symbol, position.side)
        )
        if oldest.ticket != position.ticket:
            raise Refusal("fifo", f"{oldest.ticket} was opened before {position.ticket}")

    def check_money(self, spec: SymbolSpec, side: Side, lots: Decimal, price: Decimal) -> None:
        """Refuse with no_money unless the margin is covered; an order that does not raise the margin always passes."""
        book, market = self._book, self._market
        before = margin(book, market)
        after = margin(book, market, {spec.name: self._hypothetical(spec, side, lots, price)})
        if after <= before:
            return
        worth = equity(book, market) - money(book, book.profile.commission_per_lot * lots)
        if worth < after:
            raise Refusal("no_money", f"margin {after} {book.currency} needed, equity {worth}")

    def _hypothetical(self, spec: SymbolSpec, side: Side, lots: Decimal, price: Decimal) -> dict[Side, Exposure]:
        """The exposure in the symbol after a deal."""
        sides = dict(self._book.exposure.get(spec.name, {"buy": Exposure(), "sell": Exposure()}))
        other = opposite(side)
        if self._book.mode == "netting" and (against := sides[other]).lots:
            left = against.lots - lots
            average = against.value / against.lots
            sides[other] = Exposure().plus(max(left, ZERO), average)
            lots = max(-left, ZERO)
        sides[side] = sides[side].plus(lots, price)
        return sides

    # --- levels and pending orders -----------------------------------------------------------------

    def _modify(self, request: Request) -> Answer:
        position = self._position(request.ticket)
        spec = checks.symbol_of(self._book, position.symbol)
        quote = checks.quote_of(self._book, self._market, spec.name)
        checks.check_trading_allowed(spec)
        market = quote.bid if position.side == "buy" else quote.ask
        checks.check_levels(
            spec, position.side, market,
            None if request.sl == position.sl else request.sl,
            None if request.tp == position.tp else request.tp,
        )  # fmt: skip
        checks.check_not_frozen(spec, market, (position.sl, request.sl), (position.tp, request.tp))
        changed = self._hold(position, replace(position, sl=request.sl, tp=request.tp))
        return self._done(request, spec.name, position.side, position.lots, ZERO, None, (changed,))

    def _pending(self, request: Request) -> Answer:
        spec = checks.symbol_of(self._book, request.symbol)
        quote = checks.quote_of(self._book, self._market, spec.name)
        checks.check_opening_allowed(spec, request.side)
        lots = checks.check_volume(spec, request.lots)
        price = checks.check_trigger(spec, request.side, request.order_type, request.price, quote)
        checks.check_levels(spec, request.side, price, request.sl, request.tp)
        checks.check_expiry(request.expires_at, self._desk.now, self._book.profile)
        order = Position(
            ticket=self._desk.ticket("order"), kind="order", symbol=spec.name, side=request.side, lots=lots,
            price=price, sl=request.sl, tp=request.tp, order_type=request.order_type, magic=request.magic,
            comment=request.comment,
            opened_at=self._desk.now, expires_at=request.expires_at,
            tag=None if request.tag is None else ExecutionId(request.tag),
        )  # fmt: skip
        self._book.put(order)
        return self._done(request, spec.name, request.side, lots, ZERO, None, (order,))

    def _amend(self, request: Request) -> Answer:
        order = self._order(request.ticket)
        spec = checks.symbol_of(self._book, order.symbol)
        quote = checks.quote_of(self._book, self._market, spec.name)
        checks.check_trading_allowed(spec)
        price = order.price if request.price in (None, order.price) else request.price
        if price != order.price:
            checks.check_trigger(spec, order.side, order.order_type or "limit", price, quote)
        assert price is not None
        checks.check_levels(spec, order.side, price, request.sl, request.tp)
        checks.check_expiry(request.expires_at, self._desk.now, self._book.profile)
        amended = replace(order, price=price, sl=request.sl, tp=request.tp, expires_at=request.expires_at)
        return self._done(request, spec.name, order.side, order.lots, ZERO, None, (self._hold(order, amended),))

    def _cancel(self, request: Request) -> Answer:
        order = self._order(request.ticket)
        gone = self._book.drop(replace(order, lots=ZERO), request.origin)
        return self._done(request, order.symbol, order.side, order.lots, ZERO, None, (gone,))

    # --- shared ------------------------------------------------------------------------------------

    def _hold(self, before: Position, after: Position) -> Position:
        """Publish a change only if there is one."""
        return before if before == after else self._book.put(after)

    def _position(self, ticket: str | None) -> Position:
        position = self._book.positions.get(ticket or "")
        if position is None:
            raise Refusal("position_not_found", ticket or "no ticket")
        return position

    def _order(self, ticket: str | None) -> Position:
        order = self._book.orders.get(ticket or "")
        if order is None:
            raise Refusal("order_not_found", ticket or "no ticket")
        return order

    def _done(
        self,
        request: Request,
        symbol: str,
        side: Side,
        asked: Decimal,
        filled: Decimal,
        price: Decimal | None,
        touched: tuple[Position, ...],
    ) -> Answer:
        record = OrderRecord(
            number=len(self._book.history) + 1, at=self._desk.now, kind=request.kind, symbol=symbol, side=side,
            lots=asked, filled=filled, price=price, tag=request.tag, tickets=tuple(p.ticket for p in touched),
            kinds=tuple(p.kind for p in touched),
        )  # fmt: skip
        self._book.record(record)
        return Answer(status="done", lots=filled, price=price, positions=touched)


def _terms(request: Request) -> Terms:
    return Terms(
        reason=request.origin,
        sl=request.sl,
        tp=request.tp,
        magic=request.magic,
        tag=request.tag,
        comment=request.comment,
    )
