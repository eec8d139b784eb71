"""Two masters that trade at random: their true books, and the events their agents send late, twice and out of order.

Every verb takes three small numbers, which pick what it is done to; a verb with nothing to do does nothing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from planner_world import World

MASTERS = ("M1", "M2")
STEP = Decimal("0.1")
T = TypeVar("T")


class Pair(NamedTuple):
    """One copy: of which lineage of tickets (its first one) of which master, at which follower."""

    master: str
    follower: str
    root: str


@dataclass(slots=True)
class Doubts:
    """Pairs of which an open was refused, partly filled, lost or not meant to be: they may hold less, never more."""

    pairs: set[Pair] = field(default_factory=set)
    #: pairs whose stop loss a broker refused to set
    levels: set[Pair] = field(default_factory=set)
    #: copiers that are not on now, as (master, follower)
    silent: set[tuple[str, str]] = field(default_factory=set)


class QuietWorld(World):
    """Gives the superuser its role back after every call, so that one transaction may hold many."""

    def call(self, who: str, function: str, argument: Any) -> Any:
        try:
            return super().call(who, function, argument)
        finally:
            self.db.execute("reset role")


def pick(things: Sequence[T], number: int) -> T | None:
    return things[number % len(things)] if things else None


class Masters:
    """`books`: master → ticket → its position, lots a Decimal (0: gone). `root`: ticket → the first of its lineage."""

    def __init__(self, world: World, doubts: Doubts, copiers: Sequence[tuple[str, str]]) -> None:
        self.world = world
        self.doubts = doubts
        self.copiers = copiers
        self.books: dict[str, dict[str, dict[str, Any]]] = {master: {} for master in MASTERS}
        self.root: dict[str, str] = {}
        self.tickets = itertools.count(5000)
        self._holding = 0
        self._held: list[tuple[str, dict[str, Any]]] = []
        self._sent: list[tuple[str, dict[str, Any]]] = []
        self._side: dict[str, str] = {}

    # -- what is open ------------------------------------------------------------------------------------------

    def live(self, master: str, kind: str = "position") -> list[dict[str, Any]]:
        return [p for p in self.books[master].values() if p["lots"] > 0 and p["kind"] == kind]

    def roots(self, master: str) -> list[str]:
        return list(dict.fromkeys(self.root[ticket] for ticket in self.books[master]))

    def of_root(self, master: str, root: str) -> dict[str, Any] | None:
        """The lineage's open position or order."""
        return next((p for t, p in self.books[master].items() if self.root[t] == root and p["lots"] > 0), None)

    # -- events ------------------------------------------------------------------------------------------------

    def _tell(self, master: str, kind: str, position: dict[str, Any]) -> None:
        event = self.world.event(kind, self._json(position))
        if self._holding:
            self._holding -= 1
            self._held.append((master, event))
        else:
            self._deliver(master, event)

    @staticmethod
    def _json(position: dict[str, Any]) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Decimal) else value for key, value in position.items()}

    def _deliver(self, master: str, event: dict[str, Any]) -> None:
        position = event["position"]
        root = self.root[position["ticket"]]
        status = self.world.send(master, event)["results"][0]["status"]
        assert status in ("accepted", "history")
        self._sent.append((master, event))
        pairs = [Pair(*copier, root) for copier in self.copiers if copier[0] == master]
        if status == "accepted" and self._side.setdefault(root, position["side"]) != position["side"]:
            self._side[root] = position["side"]  # a flip is a new decision
            self.doubts.pairs.difference_update(pairs)
        self.doubts.pairs.update(pair for pair in pairs if pair[:2] in self.doubts.silent)

    def hold(self, a: int, b: int, c: int) -> None:
        self._holding = a % 2 + 1

    def deliver(self, a: int, b: int, c: int) -> None:
        if self._held:
            self._deliver(*self._held.pop(a % len(self._held)))

    def deliver_everything(self) -> None:
        self._holding = 0
        while self._held:
            self.deliver(0, 0, 0)

    def repeat(self, a: int, b: int, c: int) -> None:
        again = pick(self._sent, a)
        if again:
            assert self.world.send(*again)["results"][0]["status"] == "duplicate"

    def snapshot(self, a: int, b: int, c: int) -> None:
        master = MASTERS[a % 2]
        if not any(name == master for name, _ in self._held):
            everything = [self._json(p) for p in self.live(master) + self.live(master, "order")]
            self.world.send(master, self.world.event("snapshot", positions=everything))

    # -- trades ------------------------------------------------------------------------------------------------

    def _begin(self, master: str, lots: Decimal, side: str, **more: Any) -> dict[str, Any]:
        ticket = str(next(self.tickets))
        self.root[ticket] = ticket
        self.books[master][ticket] = self.world.position(str(lots), side, ticket, **more) | {"lots": lots}
        return self.books[master][ticket]

    def open(self, a: int, b: int, c: int) -> None:
        self._tell(MASTERS[a % 2], "opened", self._begin(MASTERS[a % 2], STEP * (b % 4 + 1), ("buy", "sell")[c % 2]))

    def increase(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2]), b):
            p["lots"] += STEP * (c % 3 + 1)
            self._tell(MASTERS[a % 2], "increased", p)

    def reduce(self, a: int, b: int, c: int) -> None:
        if (p := pick(self.live(MASTERS[a % 2]), b)) and p["lots"] > STEP:
            p["lots"] -= STEP
            self._tell(MASTERS[a % 2], "reduced", p)

    def flip(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2]), b):
            p["side"] = "sell" if p["side"] == "buy" else "buy"
            p["lots"] = STEP * (c % 3 + 1)
            self._tell(MASTERS[a % 2], "modified", p)

    def level(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2]), b):
            p["sl"] = (None, "1.05", "1.06", "1.20")[c % 4]
            self._tell(MASTERS[a % 2], "modified", p)

    def close(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2]), b):
            p["lots"] = Decimal(0)
            self._tell(MASTERS[a % 2], "closed", p)

    def order(self, a: int, b: int, c: int) -> None:
        pending = {"kind": "order", "order_type": "limit", "price": "1.05000"}
        p = self._begin(MASTERS[a % 2], STEP * (b % 4 + 1), ("buy", "sell")[c % 2], **pending)
        self._tell(MASTERS[a % 2], "ordered", p)

    def amend(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2], "order"), b):
            p["price"] = f"1.0{c % 5 + 1}000"
            self._tell(MASTERS[a % 2], "amended", p)

    def cancel(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2], "order"), b):
            p["lots"] = Decimal(0)
            self._tell(MASTERS[a % 2], "cancelled", p)

    def _continue(self, master: str, old: dict[str, Any], kind: str, **changes: Any) -> None:
        """The lineage goes on under another ticket."""
        ticket = str(next(self.tickets))
        self.root[ticket] = self.root[old["ticket"]]
        self.books[master][ticket] = old | {"kind": "position", "ticket": ticket, "replaces": old["ticket"]} | changes
        old["lots"] = Decimal(0)
        self._tell(master, kind, self.books[master][ticket])

    def filled(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2], "order"), b):
            self._continue(MASTERS[a % 2], p, "opened", order_type=None)

    def reticket(self, a: int, b: int, c: int) -> None:
        if (p := pick(self.live(MASTERS[a % 2]), b)) and p["lots"] > STEP:
            self._continue(MASTERS[a % 2], p, "reduced", lots=p["lots"] - STEP)

    # -- settings ----------------------------------------------------------------------------------------------

    def set_mode(self, copier: tuple[str, str], mode: str) -> None:
        self.world.as_user("set_copier_mode", {"copier_id": self.world.copiers[">".join(copier)], "mode": mode})
        if mode == "on":
            self.doubts.silent.discard(copier)
        else:
            self.doubts.silent.add(copier)
            self.doubts.pairs.update(Pair(*copier, root) for root in self.roots(copier[0]))

    def mode(self, a: int, b: int, c: int) -> None:
        self.set_mode(self.copiers[a % len(self.copiers)], ("on", "monitor", "off", "on")[b % 4])
