"""One account at the paper broker: its positions and orders, its deals, and its complete history."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from agent.model import CloseReason, Evidence, Kind, Mode, Position, Side, SymbolSpec
from agent.paper.passwords import Hashed
from agent.paper.profile import Moods, Profile
from agent.paper.records import (
    BookChange,
    Deal,
    DealEntry,
    DealReason,
    JournalEntry,
    OrderRecord,
    RequestRecord,
)

ZERO = Decimal(0)
#: called for every change with (kind of record, key, record or None when it was removed), so that it can be stored
Keep = Callable[[str, str, object | None], None]


@dataclass(frozen=True, slots=True)
class Exposure:
    """The total of all positions of one symbol and side. `value` = Σ lots × open price."""

    lots: Decimal = ZERO
    value: Decimal = ZERO

    def plus(self, lots: Decimal, price: Decimal) -> "Exposure":
        return Exposure(self.lots + lots, self.value + lots * price)


def opposite(side: Side) -> Side:
    return "sell" if side == "buy" else "buy"


class Book:
    """State and bookkeeping only; the trading rules are in `agent.paper.matching`."""

    def __init__(
        self,
        login: str,
        *,
        currency: str,
        leverage: int,
        mode: Mode,
        symbols: Mapping[str, SymbolSpec],
        profile: Profile,
        drawn: int = 0,
    ) -> None:
        self.login = login
        self.currency = currency
        self.leverage = leverage
        self.mode = mode
        self.symbols = dict(symbols)
        self.profile = profile
        self.moods = Moods(profile, drawn)
        #: None: the first login sets the password
        self.password: Hashed | None = None
        #: for read-only logins; None: there is no investor password
        self.investor_password: Hashed | None = None
        self.balance = ZERO
        self.positions: dict[str, Position] = {}
        #: totals of `positions` by symbol and side, so that account figures do not get slower with more positions
        self.exposure: dict[str, dict[Side, Exposure]] = {}
        self.orders: dict[str, Position] = {}
        #: last known state of closed positions and removed orders, with lots 0
        self.gone: dict[tuple[Kind, str], Position] = {}
        #: the highest number given to each kind, where they are numbered separately
        self.last_number: dict[Kind, int] = {"position": 0, "order": 0}
        self.deals: list[Deal] = []
        #: deposits and withdrawals
        self.operations: list[Deal] = []
        self.history: list[OrderRecord] = []
        self.history_by_tag: dict[int, list[OrderRecord]] = {}
        self.requests: list[RequestRecord] = []
        #: tags of requests in progress → number of requests
        self.open_tags: Counter[int] = Counter()
        self.journal: list[JournalEntry] = []
        #: changes made by the current operation, in order; `take_changes` returns and clears them
        self._changes: list[BookChange] = []
        #: the last deal of the current operation, by ticket
        self._dealt: dict[str, Deal] = {}
        self.keep: Keep = lambda _kind, _key, _record: None

    @property
    def cents(self) -> Decimal:
        """The smallest unit of the account's currency."""
        return Decimal(1) if self.currency in ("JPY", "KRW", "HUF") else Decimal("0.01")

    def held(self, ticket: str, kind: Kind | None = None) -> Position | None:
        """The current or last state of a ticket; `kind` None: of the position, else of the order of this number."""
        kinds: tuple[Kind, ...] = ("position", "order") if kind is None else (kind,)
        states = [self._shelf(each).get(ticket) for each in kinds] + [self.gone.get((each, ticket)) for each in kinds]
        return next((state for state in states if state is not None), None)

    def knows(self, kind: Kind, ticket: str) -> bool:
        return self.held(ticket, kind) is not None

    def net(self, symbol: str) -> Position | None:
        """The single position in `symbol` of a netting account."""
        return next((position for position in self.positions.values() if position.symbol == symbol), None)

    def put(self, position: Position) -> Position:
        """Store the new state of a position or order and publish the change."""
        self._shelve(position)
        self.keep("held", self._name(position), position)
        self._changes.append(BookChange(position=position))
        return position

    def drop(
        self,
        position: Position,
        reason: CloseReason | None = None,
        evidence: Evidence | None = "deal",
        *,
        continued: bool = False,
    ) -> Position:
        """Remove a position or order.

        `continued`: another ticket replaces it, and only that ticket's change is published.
        """
        self._shelve(position)
        self.keep("held", self._name(position), position)
        if not continued:
            self._changes.append(BookChange(position=position, evidence=evidence, close_reason=reason))
        return position

    def take_changes(self) -> tuple[BookChange, ...]:
        changes, self._changes = tuple(self._with_deal(change) for change in self._changes), []
        self._dealt.clear()
        return changes

    def _with_deal(self, change: BookChange) -> BookChange:
        position = change.position
        if position.kind == "order":
            return change
        deal = self._dealt.get(position.ticket) or self._dealt.get(position.replaces or "")
        return change if deal is None else replace(change, deal_price=deal.price, dealt_at=deal.at)

    def book_deal(
        self,
        at: datetime,
        entry: DealEntry,
        reason: DealReason,
        *,
        position: Position | None = None,
        lots: Decimal = ZERO,
        price: Decimal = ZERO,
        profit: Decimal = ZERO,
        commission: Decimal = ZERO,
        order: str | None = None,
        tag: int | None = None,
        magic: int = 0,
        comment: str = "",
    ) -> Deal:
        deal = Deal(
            number=len(self.deals) + 1, at=at, entry=entry, reason=reason, order=order, lots=lots, price=price,
            profit=profit, commission=commission, tag=tag, magic=magic, comment=comment,
            ticket=None if position is None else position.ticket,
            symbol="" if position is None else position.symbol,
            side="buy" if position is None else position.side,
        )  # fmt: skip
        self.deals.append(deal)
        if deal.entry == "balance":
            self.operations.append(deal)
        if deal.ticket is not None:
            self._dealt[deal.ticket] = deal
        self.balance += profit + commission
        self.keep("deal", str(deal.number), deal)
        self.note(at, "deal", deal=deal, balance=self.balance)
        return deal

    def note(self, at: datetime, event: str, **fields: Any) -> None:
        entry = JournalEntry(number=len(self.journal) + 1, at=at, event=event, fields=fields)
        self.journal.append(entry)
        self.keep("journal", str(entry.number), entry)

    def record(self, record: OrderRecord) -> None:
        self.history.append(record)
        if record.tag is not None:
            self.history_by_tag.setdefault(record.tag, []).append(record)
        self.keep("history", str(record.number), record)

    def request(self, record: RequestRecord) -> None:
        """Add a request record, or replace the one with the same number."""
        if record.number > len(self.requests):
            self.requests.append(record)
        else:
            self.requests[record.number - 1] = record
        if record.tag is not None:
            self.open_tags[record.tag] += 1 if record.outcome == "open" else -1
        self.keep("request", str(record.number), record)

    def restore_request(self, record: RequestRecord) -> None:
        """Restore a stored request; it counts as decided, whatever its state was."""
        self.requests.append(record)

    def restore_held(self, position: Position) -> None:
        """Restore a stored position or order without publishing a change."""
        self._shelve(position)

    def _shelf(self, kind: Kind) -> dict[str, Position]:
        return self.positions if kind == "position" else self.orders

    def _name(self, position: Position) -> str:
        """Under which a position or order is stored; it begins with the number, by which records are sorted."""
        apart = self.profile.same_numbers and position.kind == "order"
        return f"{position.ticket} order" if apart else position.ticket

    def _shelve(self, position: Position) -> None:
        shelf = self._shelf(position.kind)
        if self.profile.same_numbers:
            self.last_number[position.kind] = max(self.last_number[position.kind], int(position.ticket))
        before = shelf.pop(position.ticket, None) if not position.lots else shelf.get(position.ticket)
        if before is not None and before.kind == "position":
            self._expose(before, -before.lots)
        if not position.lots:
            self.gone[position.kind, position.ticket] = position
            return
        shelf[position.ticket] = position
        if position.kind == "position":
            self._expose(position, position.lots)

    def _expose(self, position: Position, lots: Decimal) -> None:
        sides = self.exposure.setdefault(position.symbol, {"buy": Exposure(), "sell": Exposure()})
        sides[position.side] = sides[position.side].plus(lots, position.price)
        if not sides["buy"].lots and not sides["sell"].lots:
            del self.exposure[position.symbol]
