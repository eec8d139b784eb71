"""What an account holds as far as the agent knows, and how two states of it differ."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from agent.model import EventType, ExecutionId, Kind, Position, Ticket

#: closed tickets kept per account, so that a late or stale read does not reopen one
TOMBSTONES = 2_000


class Key(NamedTuple):
    """Identifies a position or order: the two may carry the same number (MT5, cTrader)."""

    kind: Kind
    ticket: Ticket


def key_of(position: Position) -> Key:
    return Key(position.kind, position.ticket)


def replaced_keys(position: Position) -> tuple[Key, ...]:
    """What `position` may continue: one key, or two if the kind of the ticket that it replaces is not known."""
    if position.replaces is None:
        return ()
    if position.replaces_kind is not None:
        return (Key(position.replaces_kind, position.replaces),)
    keys = (Key("order", position.replaces), Key("position", position.replaces))
    return tuple(key for key in keys if key != key_of(position))


@dataclass(frozen=True, slots=True)
class Known:
    """A state and the seq of the message that reported it."""

    position: Position
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """One of our orders in flight: its tag, the tickets that it changes, and its symbol on a netting account."""

    tag: ExecutionId
    tickets: frozenset[Ticket] = frozenset()
    netted_symbol: str | None = None

    def touches(self, position: Position) -> bool:
        return (
            position.tag == self.tag
            or position.ticket in self.tickets
            or position.replaces in self.tickets
            or position.symbol == self.netted_symbol
        )


def same_state(a: Position, b: Position) -> bool:
    """Whether both agree in everything that is copied. (Comments, magic numbers and tags are not copied.)"""
    return (a.symbol, a.side, a.lots, a.price, a.sl, a.tp, a.order_type, a.expires_at) == (
        b.symbol,
        b.side,
        b.lots,
        b.price,
        b.sl,
        b.tp,
        b.order_type,
        b.expires_at,
    )


def event_type(before: Position | None, now: Position) -> EventType:
    """The type of the change. A flip of a netting position is `reduced`: the old side is gone, the event's state shows
    the new side, and unlike `modified` it is never merged with a later event."""
    if now.kind == "order":
        if now.lots == 0:
            return "cancelled"
        return "ordered" if before is None or before.kind != "order" else "amended"
    if now.lots == 0:
        return "closed"
    if before is None or before.kind != "position":
        return "opened"
    if now.side != before.side or now.lots < before.lots:
        return "reduced"
    return "increased" if now.lots > before.lots else "modified"


class Book:
    """Everything open on one account as last known, each state with its seq, and tombstones of what was closed."""

    def __init__(self) -> None:
        self._open: dict[Key, Known] = {}
        self._gone: OrderedDict[Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Known]:
        return iter(tuple(self._open.values()))

    def positions(self) -> tuple[Position, ...]:
        return tuple(known.position for known in self._open.values())

    def get(self, key: Key) -> Known | None:
        return self._open.get(key)

    def seq_of(self, key: Key) -> int:
        """Seq of the last message about this ticket; 0 if there was none."""
        known = self._open.get(key)
        return known.seq if known is not None else self._gone.get(key, 0)

    def ever_knew(self, key: Key) -> bool:
        return key in self._open or key in self._gone

    def before(self, position: Position) -> Position | None:
        """The known state that `position` continues: its own ticket, or the one that it replaces."""
        if (known := self._open.get(key_of(position))) is not None:
            return known.position
        return self._continued(position)

    def named(self, position: Position) -> Position:
        """The same state, with number and kind of what it continues, as far as the book knows them. A position whose
        number is that of an open order of the same symbol and side is that order's fill."""
        if position.replaces_kind is not None or (position.replaces is None and position.lots == 0):
            return position
        known = self._open.get(key_of(position))
        if known is not None:
            kind = known.position.replaces_kind if known.position.replaces == position.replaces else None
            return position if kind is None else replace(position, replaces_kind=kind)
        origin = self._continued(position)
        return position if origin is None else replace(position, replaces=origin.ticket, replaces_kind=origin.kind)

    def _continued(self, position: Position) -> Position | None:
        if position.replaces is None and position.replaces_kind is None and position.kind == "position":
            position = replace(position, replaces=position.ticket)
        found = [self._open[key].position for key in replaced_keys(position) if key in self._open]
        fits = [held for held in found if (held.symbol, held.side) == (position.symbol, position.side)]
        by_number_alone = position.replaces == position.ticket and position.replaces_kind is None
        return next(iter(fits if by_number_alone else fits or found), None)

    def put(self, position: Position, seq: int) -> None:
        """Store a state. A lower seq never overrides a higher one (law 4.1.6)."""
        self._put(position, seq, frozenset())

    def _put(self, position: Position, seq: int, present: Set[Key]) -> None:
        key = key_of(position)
        if seq < self.seq_of(key):
            return
        if position.lots == 0:
            self._bury(key, seq)
        else:
            self._gone.pop(key, None)
            self._open[key] = Known(position, seq)
        for replaced in replaced_keys(position):
            if replaced in self._open and replaced not in present and self.seq_of(replaced) <= seq:
                self._bury(replaced, seq)

    def replace_all(self, positions: Iterable[Position], seq: int) -> None:
        """Store a whole snapshot. What it lacks is gone, unless a message with a higher seq reported it."""
        present = {key_of(position) for position in positions}
        for key, known in tuple(self._open.items()):
            if key not in present and known.seq <= seq:
                self._bury(key, seq)
        for position in positions:
            self._put(position, seq, present)

    def _bury(self, key: Key, seq: int) -> None:
        self._open.pop(key, None)
        self._gone[key] = seq
        self._gone.move_to_end(key)
        while len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)


def gone(position: Position) -> Position:
    """The last known state with 0 lots: the form in which a close or a cancellation is reported."""
    return replace(position, lots=position.lots - position.lots)
