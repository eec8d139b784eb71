"""Faults that an operator injects into a book: failures of its next orders and next reads."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from agent.model import Position
from agent.paper.records import OrderFault, RequestKind, SnapshotFault


@dataclass(slots=True)
class _Planted:
    kind: OrderFault
    left: int
    only: frozenset[RequestKind]
    share: Decimal


@dataclass(frozen=True, slots=True)
class BadRead:
    """One faulty snapshot. `positions` and `orders`: what it shows instead of the actual state (None: unreadable)."""

    kind: SnapshotFault
    positions: tuple[Position, ...] | None = None
    orders: tuple[Position, ...] | None = None


class Faults:
    """Injected faults, used up in the order in which they were added."""

    def __init__(self) -> None:
        self._orders: deque[_Planted] = deque()
        self._reads: deque[BadRead] = deque()

    def plant(self, kind: OrderFault, next_orders: int, only: Iterable[RequestKind], share: Decimal) -> None:
        self._orders.append(_Planted(kind, next_orders, frozenset(only), share))

    def plant_read(self, bad: BadRead, times: int) -> None:
        self._reads.extend([bad] * times)

    def take(self, request: RequestKind) -> tuple[OrderFault, Decimal] | None:
        """The fault for this kind of request, if there is one, and the share that a partial fill executes."""
        for planted in self._orders:
            if not planted.only or request in planted.only:
                planted.left -= 1
                if planted.left <= 0:
                    self._orders.remove(planted)
                return planted.kind, planted.share
        return None

    def take_read(self) -> BadRead | None:
        return self._reads.popleft() if self._reads else None

    def clear(self) -> None:
        self._orders.clear()
        self._reads.clear()
