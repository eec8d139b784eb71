"""The dealing desk: books executions. Nothing is refused here; the checks have been made before."""

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import count

from agent.model import CloseReason, ExecutionId, Kind, Position, Side, SymbolSpec, Ticket
from agent.paper.book import ZERO, Book
from agent.paper.margin import profit_of
from agent.paper.market import Market
from agent.paper.records import DealEntry, DealReason

#: digits of a netting account's average price beyond the symbol's digits
_AVERAGE_DIGITS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Attributes that a deal inherits from its order."""

    reason: DealReason
    sl: Decimal | None = None
    tp: Decimal | None = None
    magic: int = 0
    tag: int | None = None
    comment: str = ""
    #: the pending order that this deal fills
    replaces: Ticket | None = None


class Desk:
    """Executes deals in one book at one moment. Every method returns all changed positions; closed ones have lots 0."""

    def __init__(self, book: Book, market: Market, now: datetime, numbers: "count[int]") -> None:
        self.book = book
        self.market = market
        self.now = now
        self._numbers = numbers

    def ticket(self, kind: Kind, order: Ticket | None = None) -> Ticket:
        """A new number; `order`: the order that fills."""
        if not self.book.profile.same_numbers:
            return Ticket(str(next(self._numbers)))
        if order is not None and not self.book.knows("position", order):
            return order
        return Ticket(str(self.book.last_number[kind] + 1))

    def deal(self, spec: SymbolSpec, side: Side, lots: Decimal, price: Decimal, terms: Terms) -> tuple[Position, ...]:
        """Buy or sell at the market: opens a position, or on a netting account changes the net position."""
        held = self.book.net(spec.name) if self.book.mode == "netting" else None
        if held is None:
            return (self._open(spec, side, lots, price, terms),)
        if held.side == side:
            return (self._increase(spec, held, lots, price, terms),)
        if terms.replaces is not None:
            held = replace(held, replaces=terms.replaces, replaces_kind="order")
        if lots > held.lots:
            return (self._flip(spec, held, lots, price, terms),)
        return self.take_off(held, lots, price, terms)

    def take_off(
        self, position: Position, lots: Decimal, price: Decimal, terms: Terms, *, entry: DealEntry = "out"
    ) -> tuple[Position, ...]:
        """Close `lots` of a position at `price`."""
        profit = profit_of(self.book, self.market, position, price, lots)
        commission = self._commission(lots) if entry == "out" else ZERO
        return self.settle(position, lots, price, terms, entry=entry, profit=profit, commission=commission)

    def settle(
        self,
        position: Position,
        lots: Decimal,
        price: Decimal,
        terms: Terms,
        *,
        entry: DealEntry,
        profit: Decimal,
        commission: Decimal = ZERO,
    ) -> tuple[Position, ...]:
        """Book a closing deal with the given profit and keep the remaining volume."""
        self.book.book_deal(
            self.now, entry, terms.reason, position=position, lots=lots, price=price, profit=profit,
            commission=commission, tag=terms.tag, magic=terms.magic, comment=terms.comment,
        )  # fmt: skip
        rest = position.lots - lots
        if not rest:
            return (self.book.drop(replace(position, lots=ZERO), _close_reason(terms.reason)),)
        if self.book.mode == "hedging" and self.book.profile.retickets:
            old = self.book.drop(replace(position, lots=ZERO), continued=True)
            new = replace(
                position, ticket=self.ticket("position"), lots=rest, replaces=old.ticket, replaces_kind="position",
                comment=f"from #{old.ticket}",
            )  # fmt: skip
            return (old, self.book.put(new))
        return (self.book.put(replace(position, lots=rest)),)

    def _open(self, spec: SymbolSpec, side: Side, lots: Decimal, price: Decimal, terms: Terms) -> Position:
        position = Position(
            ticket=self.ticket("position", terms.replaces), kind="position", symbol=spec.name, side=side, lots=lots,
            price=price, sl=terms.sl, tp=terms.tp, magic=terms.magic, comment=self._comment(terms), opened_at=self.now,
            tag=_tag(terms.tag), replaces=terms.replaces,
            replaces_kind="position" if terms.replaces is None else "order",
        )  # fmt: skip
        self._book_in(position, lots, price, terms)
        return self.book.put(position)

    def _increase(self, spec: SymbolSpec, held: Position, lots: Decimal, price: Decimal, terms: Terms) -> Position:
        self._book_in(held, lots, price, terms)
        total = held.lots + lots
        exact = (held.price * held.lots + price * lots) / total
        return self.book.put(
            replace(
                held,
                lots=total,
                price=exact.quantize(Decimal(1).scaleb(-spec.digits - _AVERAGE_DIGITS)).normalize() + ZERO,
                # a level that the new order does not set stays unchanged
                sl=held.sl if terms.sl is None else terms.sl,
                tp=held.tp if terms.tp is None else terms.tp,
                replaces=terms.replaces or held.replaces,
                replaces_kind="order" if terms.replaces else held.replaces_kind,
            )
        )

    def _flip(self, spec: SymbolSpec, held: Position, lots: Decimal, price: Decimal, terms: Terms) -> Position:
        """A deal through zero: the position keeps its ticket and changes side, as on a netting terminal."""
        self.book.book_deal(
            self.now, "out", terms.reason, position=held, lots=held.lots, price=price, tag=terms.tag, magic=terms.magic,
            profit=profit_of(self.book, self.market, held, price, held.lots), commission=self._commission(held.lots),
            comment=terms.comment,
        )  # fmt: skip
        turned = replace(
            held, side="sell" if held.side == "buy" else "buy", lots=lots - held.lots, price=price,
            sl=terms.sl, tp=terms.tp, magic=terms.magic, comment=terms.comment, opened_at=self.now, tag=_tag(terms.tag),
        )  # fmt: skip
        self._book_in(turned, turned.lots, price, terms)
        return self.book.put(turned)

    def _book_in(self, position: Position, lots: Decimal, price: Decimal, terms: Terms) -> None:
        self.book.book_deal(
            self.now, "in", terms.reason, position=position, lots=lots, price=price, commission=self._commission(lots),
            order=terms.replaces, tag=terms.tag, magic=terms.magic, comment=terms.comment,
        )  # fmt: skip

    def _comment(self, terms: Terms) -> str:
        return terms.comment if self.book.profile.keeps_comments else "[broker]"

    def _commission(self, lots: Decimal) -> Decimal:
        return -(self.book.profile.commission_per_lot * lots).quantize(self.book.cents)


def _close_reason(reason: DealReason) -> CloseReason:
    return "client" if reason == "balance" else reason


def _tag(tag: int | None) -> ExecutionId | None:
    return None if tag is None else ExecutionId(tag)
