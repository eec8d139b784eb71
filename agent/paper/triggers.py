"""Events that prices and time trigger: pending orders, stop loss, take profit, expiry and the stop-out."""

from dataclasses import replace
from decimal import Decimal

from agent.model import Position, Quote
from agent.paper import checks
from agent.paper.book import ZERO
from agent.paper.desk import Desk, Terms
from agent.paper.margin import closing_price, equity, floating_profit, margin
from agent.paper.matching import Matching
from agent.paper.records import DealReason, OrderRecord
from agent.paper.refusals import Refusal


class Triggers:
    """Executes everything that is due in one book at one moment."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._book = desk.book
        self._market = desk.market

    def run(self) -> None:
        """Fill orders before levels are checked; the stop-out comes last."""
        for order in list(self._book.orders.values()):
            quote = self._market.quote(self._book.login, order.symbol)
            if quote is not None and _reached(order, quote):
                self._fill(order, quote)
        for position in list(self._book.positions.values()):
            if position.sl is None and position.tp is None:
                continue
            quote = self._market.quote(self._book.login, position.symbol)
            if quote is not None:
                self._protect(position, quote)
        self.stop_out()

    def expire(self) -> None:
        now = self._desk.now
        for order in list(self._book.orders.values()):
            if order.expires_at is not None and order.expires_at <= now:
                self._book.drop(replace(order, lots=ZERO), "expired")
                self._book.note(now, "order_expired", ticket=order.ticket)

    def stop_out(self) -> None:
        """Close the position with the largest loss until the margin level is above the limit (MetaTrader's order)."""
        while self._book.positions:
            book, market = self._book, self._market
            used, worth = margin(book, market), equity(book, market)
            if used <= 0 or worth * 100 > used * book.profile.stop_out_percent:
                return
            floating = {ticket: floating_profit(book, market, held) for ticket, held in book.positions.items()}
            worst = book.positions[min(floating, key=lambda ticket: floating[ticket])]
            quote = market.quote(book.login, worst.symbol)
            if quote is None:
                return
            level = (worth * 100 / used).quantize(Decimal("0.01"))
            self._close(worst, closing_price(worst, quote), "stop_out", f"so {level}%")

    def _fill(self, order: Position, quote: Quote) -> None:
        """A limit order fills at its price or better, a stop order at the market, gaps included; without money it is
        deleted."""
        spec = self._book.symbols[order.symbol]
        price = quote.ask if order.side == "buy" else quote.bid
        terms = Terms(
            reason="client" if order.tag is None else "expert", sl=order.sl, tp=order.tp, magic=order.magic,
            tag=order.tag, comment=order.comment, replaces=order.ticket,
        )  # fmt: skip
        matching = Matching(self._desk)
        try:
            checks.check_opening_allowed(spec, order.side)
            matching.check_money(spec, order.side, order.lots, price)
        except Refusal as refusal:
            self._book.drop(replace(order, lots=ZERO))
            self._book.note(self._desk.now, "order_deleted", ticket=order.ticket, reason=refusal.reason)
            return
        self._book.drop(replace(order, lots=ZERO), continued=True)
        touched = self._desk.deal(spec, order.side, order.lots, price, terms)
        self._book.record(
            OrderRecord(
                number=len(self._book.history) + 1, at=self._desk.now, kind="pending", symbol=order.symbol,
                side=order.side, lots=order.lots, filled=order.lots, price=price, tag=order.tag,
                tickets=(order.ticket, *(position.ticket for position in touched)),
                kinds=("order", *(position.kind for position in touched)),
            )
        )  # fmt: skip

    def _protect(self, position: Position, quote: Quote) -> None:
        price = closing_price(position, quote)
        buy = position.side == "buy"
        if position.sl is not None and (price <= position.sl if buy else price >= position.sl):
            self._close(position, price, "sl", f"[sl {position.sl}]")
        elif position.tp is not None and (price >= position.tp if buy else price <= position.tp):
            self._close(position, price, "tp", f"[tp {position.tp}]")

    def _close(self, position: Position, price: Decimal, reason: DealReason, comment: str) -> None:
        self._desk.take_off(position, position.lots, price, Terms(reason=reason, comment=comment, magic=position.magic))


def _reached(order: Position, quote: Quote) -> bool:
    if order.side == "buy":
        return quote.ask <= order.price if order.order_type == "limit" else quote.ask >= order.price
    return quote.bid >= order.price if order.order_type == "limit" else quote.bid <= order.price
