"""Two masters that trade at random: their true books, and the events their agents send late, twice and out of order.

Every verb takes three small numbers, which pick what it is done to; a verb with nothing to do does nothing.
"""

import itertools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from quiet_world import MASTERS, OTHER, PENDING, QUIET, STOP, Discrepancies, Key, Pair, QuietWorld, pick
from settings import STEP, Course, Setting


class Masters:
    """`books`: master → its orders and positions, lots a Decimal (0: gone). `root`: what each kind and number began
    as."""

    def __init__(self, world: QuietWorld, doubts: Discrepancies, settings: Mapping[tuple[str, str], Setting]) -> None:
        self.world = world
        self.doubts = doubts
        self.settings = settings
        self.copiers = list(settings)
        self.courses: dict[Pair, Course] = {}
        #: copiers that are off → the last execution queued before
        self.frozen: dict[tuple[str, str], int] = {}
        #: followers that are being flattened, likewise
        self.flattening: dict[str, int] = {}
        self.books: dict[str, list[dict[str, Any]]] = {master: [] for master in MASTERS}
        self.root: dict[Key, str] = {}
        #: orders that filled into a position which was there → that position's lineage: its copy may be one of these
        self.joined: dict[str, str] = {}
        #: followers whose list of symbols is not told yet: copies wait for it
        self.untold: set[str] = set()
        #: orders, and positions of two new tickets since, that were told of after what became of them: new ones until
        #: it is known whose lineage they began
        self.belated: set[str] = set()
        #: every open has a stop
        self.stops = False
        #: what each master's broker calls the symbol now
        self.symbols = dict.fromkeys(MASTERS, "EURUSD")
        self.tickets = itertools.count(5000)
        self._holding = 0
        self._held: list[tuple[str, dict[str, Any]]] = []
        self._sent: list[tuple[str, dict[str, Any]]] = []

    # -- what is open ------------------------------------------------------------------------------------------

    def live(self, master: str, kind: str = "position") -> list[dict[str, Any]]:
        return [p for p in self.books[master] if p["lots"] > 0 and p["kind"] == kind]

    def root_of(self, p: Mapping[str, Any]) -> str:
        return self.root[p["kind"], p["ticket"]]

    def roots(self, master: str) -> list[str]:
        return list(dict.fromkeys(self.root_of(p) for p in self.books[master]))

    def of_root(self, master: str, root: str) -> dict[str, Any] | None:
        """The lineage's open position or order."""
        return next((p for p in self.books[master] if self.root_of(p) == root and p["lots"] > 0), None)

    # -- events ------------------------------------------------------------------------------------------------

    def _tell(self, master: str, kind: str, position: dict[str, Any]) -> None:
        event = self.world.note(master, kind, self._json(position))
        if self._holding:
            self._holding -= 1
            self._held.append((master, event))
        else:
            self._deliver(master, event)

    @staticmethod
    def _json(position: dict[str, Any]) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Decimal) else value for key, value in position.items()}

    def _deliver(self, master: str, event: dict[str, Any]) -> None:
        root = self.root_of(event["position"])
        told = [e["position"] for _, e in self._sent if self.root_of(e["position"]) == root]
        named = {ticket for position in told for ticket in (position["ticket"], position.get("replaces"))}
        if told and (
            event["type"] == "ordered" or (event["type"] == "opened" and event["position"]["ticket"] not in named)
        ):
            self.belated.add(root)
        status = self.world.tell(master, event)
        assert status in ("accepted", "history")
        self._sent.append((master, event))
        if status == "accepted":
            self._accepted(master, event["position"], (event["session"], event["seq"]))

    def _accepted(self, master: str, position: dict[str, Any], seq: tuple[int, int]) -> None:
        root = self.root_of(position)
        for copier in self.copiers:
            if copier[0] == master:
                pair = Pair(*copier, root)
                course = self.courses.setdefault(pair, Course(self.settings[copier], pair.follower))
                # a flip is a new decision; but who turns back while an order is under way may not be seen to have
                # turned
                if course.accept(position, seq) and not self.world.open_executions(pair.follower):
                    self.doubts.pairs.discard(pair)
                if pair.follower in self.untold:  # decided later, and all changes until then as one
                    course.late = True
                if self.doubts.is_silent(pair):
                    self.doubts.pairs.add(pair)

    def hold(self, a: int, b: int, c: int) -> None:
        self._holding = a % 2 + 1

    def deliver(self, a: int, b: int, c: int) -> None:
        if self._held:
            self._deliver(*self._held.pop(a % len(self._held)))

    def deliver_one(self) -> bool:
        """Of what was held back, and nothing is held back any more; False: there was nothing."""
        self._holding = 0
        there_is = bool(self._held)
        self.deliver(0, 0, 0)
        return there_is

    def repeat(self, a: int, b: int, c: int) -> None:
        again = pick(self._sent, a)
        if again:
            assert self.world.tell(*again) == "duplicate"

    def _everything(self, master: str) -> list[dict[str, Any]]:
        return [self._json(p) for p in self.live(master) + self.live(master, "order")]

    def snapshot(self, a: int, b: int, c: int) -> None:
        master = MASTERS[a % 2]
        if not any(name == master for name, _ in self._held):
            self.world.look(master, self._everything(master))

    def blink(self, a: int, b: int, c: int) -> None:
        """A good snapshot that lacks something, once."""
        master = MASTERS[a % 2]
        shown = self._everything(master)
        if shown and not any(name == master for name, _ in self._held):
            del shown[b % len(shown)]
            self.world.look(master, shown)
            self.world.look(master, self._everything(master))

    def move(self, a: int, b: int, c: int) -> None:
        """Another agent works the master: what it sees comes first, what the old one still tells is history."""
        master = MASTERS[a % 2]
        self.world.move(master)
        for _ in range(2):  # what is missing counts when it is missing twice
            event = self.world.note(master, "snapshot", positions=self._everything(master))
            assert self.world.tell(master, event) == "accepted"
            seen = {self.root_of(p): p for p in self.books[master]}  # the newest ticket of each lineage
            for p in seen.values():
                self._accepted(master, self._json(p), (event["session"], event["seq"]))

    # -- trades ------------------------------------------------------------------------------------------------

    def _begin(self, master: str, lots: Decimal, side: str, ticket: str | None = None, **more: Any) -> dict[str, Any]:
        root = f"{ticket}'" if ticket else str(next(self.tickets))
        p = self.world.position(str(lots), side, ticket or root, **({"symbol": self.symbols[master]} | more))
        self.root[p["kind"], p["ticket"]] = root
        self.books[master].append(p | {"lots": lots})
        return self.books[master][-1]

    def open(self, a: int, b: int, c: int) -> None:
        side = ("buy", "sell")[c % 2]
        sl = STOP[side] if self.stops or c >= 4 else None
        self._tell(MASTERS[a % 2], "opened", self._begin(MASTERS[a % 2], STEP * (b % 4 + 1), side, sl=sl))

    def twin(self, a: int, b: int, c: int) -> None:
        """A position in another symbol gets the number of an order that waits, or an order that of a position."""
        master = MASTERS[a % 2]
        first = pick([p for p in self.live(master, "order") + self.live(master) if p["symbol"] != OTHER], b)
        if first is None:
            return
        order = first["kind"] == "position"
        if ("order" if order else "position", first["ticket"]) in self.root:
            return
        more = PENDING if order else {"sl": STOP["sell"]}
        p = self._begin(master, STEP * (c % 4 + 1), "sell", first["ticket"], symbol=OTHER, **more)
        self._tell(master, "ordered" if order else "opened", p)

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
            p["side"], p["sl"], p["tp"] = "sell" if p["side"] == "buy" else "buy", p["tp"], p["sl"]
            p["lots"] = STEP * (c % 3 + 1)
            self._tell(MASTERS[a % 2], "modified", p)

    def level(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2]), b):
            p["sl"], p["tp"] = (None, "1.05", "1.06", "1.07")[c % 4], (None, "1.20")[a // 2 % 2]
            if p["side"] == "sell":  # a stop on the wrong side is moved to the nearest that brokers take
                p["sl"], p["tp"] = p["tp"], p["sl"]
            self._tell(MASTERS[a % 2], "modified", p)

    def close(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2]), b):
            p["lots"] = Decimal(0)
            self._tell(MASTERS[a % 2], "closed", p)

    def order(self, a: int, b: int, c: int) -> None:
        p = self._begin(MASTERS[a % 2], STEP * (b % 4 + 1), ("buy", "sell")[c % 2], **PENDING)
        self._tell(MASTERS[a % 2], "ordered", p)

    def amend(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2], "order"), b):
            p["price"] = f"1.0{c % 5 + 1}000"
            self._tell(MASTERS[a % 2], "amended", p)

    def order_level(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2], "order"), b):
            p["sl"] = (None, *(("1.003", "1.004") if p["side"] == "buy" else ("1.15", "1.16")))[c % 3]
            self._tell(MASTERS[a % 2], "amended", p)

    def cancel(self, a: int, b: int, c: int) -> None:
        if p := pick(self.live(MASTERS[a % 2], "order"), b):
            p["lots"] = Decimal(0)
            self._tell(MASTERS[a % 2], "cancelled", p)

    def _continue(self, master: str, old: dict[str, Any], kind: str, **changes: Any) -> None:
        """The lineage goes on under another ticket."""
        ticket = str(next(self.tickets))
        self.root["position", ticket] = self.root_of(old)
        goes_on = {"kind": "position", "ticket": ticket, "replaces": old["ticket"], "replaces_kind": old["kind"]}
        p = old | goes_on | changes
        self.books[master].append(p)
        old["lots"] = Decimal(0)
        self._tell(master, kind, p)

    def filled(self, a: int, b: int, c: int) -> None:
        master = MASTERS[a % 2]
        if (p := pick(self.live(master, "order"), b)) is None:
            return
        if c % 2 or ("position", p["ticket"]) in self.root:
            self._continue(master, p, "opened", order_type=None)
            return
        # its position keeps its number, as on MT5; agents may say what it was, or only the number, or nothing
        said = ({"replaces": p["ticket"], "replaces_kind": "order"}, {"replaces": p["ticket"]}, {})[c // 2 % 3]
        self.root["position", p["ticket"]] = self.root_of(p)
        p |= {"kind": "position", "order_type": None} | said
        self._tell(master, "opened", p)

    def fills_into(self, a: int, b: int, c: int) -> None:
        """As on a netting account: the order changes the position that is there already."""
        master = MASTERS[a % 2]
        order = pick(self.live(master, "order"), b)
        p = pick([p for p in self.live(master) if order and p["symbol"] == order["symbol"]], c)
        if order is None or p is None or self._holding or any(name == master for name, _ in self._held):
            return
        lots, order["lots"] = order["lots"], Decimal(0)
        kind = "increased" if order["side"] == p["side"] else "reduced" if p["lots"] > lots else "modified"
        if order["side"] != p["side"] and p["lots"] == lots:
            p["lots"] = Decimal(0)
            self._tell(master, "closed", p)
            self._tell(master, "cancelled", order)
            return
        if kind == "modified":
            p["side"], p["sl"], p["tp"] = order["side"], order["sl"], order["tp"]
        elif order["sl"] is not None:
            p["sl"] = order["sl"]
        p["lots"] = p["lots"] + lots if kind == "increased" else abs(p["lots"] - lots)
        p["replaces"], p["replaces_kind"] = order["ticket"], "order"
        self.joined[self.root_of(order)] = self.root_of(p)
        for pair in [pair for pair in self.doubts.pairs if pair.root == self.root_of(order)]:
            self.doubts.pairs.add(pair._replace(root=self.root_of(p)))
        self._tell(master, kind, p)

    def close_by(self, a: int, b: int, c: int) -> None:
        """Two opposite positions are closed by each other; what is left of the larger may get a new ticket."""
        master = MASTERS[a % 2]
        one = pick(self.live(master), b)
        other = pick(
            [p for p in self.live(master) if one and p["side"] != one["side"] and p["symbol"] == one["symbol"]], c
        )
        if one is None or other is None:
            return
        less, more = sorted((one, other), key=lambda p: p["lots"])
        left, less["lots"] = more["lots"] - less["lots"], Decimal(0)
        if left and c % 2:
            self._continue(master, more, "reduced", lots=left)
        else:
            more["lots"] = left
            self._tell(master, "reduced" if left else "closed", more)
        self._tell(master, "closed", less)

    def reticket(self, a: int, b: int, c: int) -> None:
        if (p := pick(self.live(MASTERS[a % 2]), b)) and p["lots"] > STEP:
            self._continue(MASTERS[a % 2], p, "reduced", lots=p["lots"] - STEP)

    def rename(self, a: int, b: int, c: int) -> None:
        """The master's broker renames the symbol: the list is told, then everything under its new name."""
        master = MASTERS[a % 2]
        if c < 6 or any(name == master for name, _ in self._held):
            return
        old, new = self.symbols[master], f"EURUSD.{'abcdefgh'[b]}"
        if old == new:
            return
        self.world.tell_renamed(master, old, new)
        self.symbols[master] = new
        for p in self.live(master) + self.live(master, "order"):
            p["symbol"] = new if p["symbol"] == old else p["symbol"]
        self.world.look(master, self._everything(master))

    # -- settings ----------------------------------------------------------------------------------------------

    def set_mode(self, copier: tuple[str, str], mode: str) -> None:
        if mode != "on":
            self.doubt_waiting(copier)
        self.world.as_user("set_copier_mode", {"copier_id": self.world.copiers[">".join(copier)], "mode": mode})
        self.hear(copier, silent=mode != "on")
        self.frozen.pop(copier, None)
        if mode == "off":
            self.frozen[copier] = self.last_execution()

    def last_execution(self) -> int:
        return int(self.world.one("select coalesce(max(id), 0) from public.trade_execution_queue"))

    def doubt_waiting(self, key: tuple[str, str]) -> None:
        """These copiers are about to stop: an open, an increase or a flip that is not done yet may be refused."""
        if self.world.open_executions(key[1] or None) or self.untold:
            concerned = (pair for pair in self.courses if key in (pair[:2], ("", pair.follower), ("", ""), QUIET))
            self.doubts.pairs.update(concerned)

    def hear(self, key: tuple[str, str], *, silent: bool) -> None:
        """Nothing is opened for these copiers from now on, or is again."""
        if silent:
            self.doubts.silent.add(key)
        else:
            self.doubts.silent.discard(key)

    def mode(self, a: int, b: int, c: int) -> None:
        self.set_mode(self.copiers[a % len(self.copiers)], ("on", "monitor", "off", "on")[b % 4])
