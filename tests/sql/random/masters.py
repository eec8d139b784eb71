"""Two masters that trade at random: their true books, and the events their agents send late, twice and out of order.

Every verb takes three small numbers, which pick what it is done to; a verb with nothing to do does nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from planner_harness import World
from settings import STEP, Course, Setting

MASTERS = ("M1", "M2")
#: nothing is opened anywhere while a quiet window lasts
QUIET = ("a quiet window", "")
T = TypeVar("T")


class Pair(NamedTuple):
    """One copy: of which lineage of tickets (its first one) of which master, at which follower."""

    master: str
    follower: str
    root: str


@dataclass(slots=True)
class Discrepancies:
    """Pairs of which an open was refused, partly filled, lost or not meant to be: they may hold less, never more."""

    pairs: set[Pair] = field(default_factory=set)
    #: pairs whose levels a broker refused to set
    levels: set[Pair] = field(default_factory=set)
    #: copiers (master, follower) that are not on; ("", follower) of paused or flattening accounts; QUIET in a quiet
    #: window
    silent: set[tuple[str, str]] = field(default_factory=set)

    def is_silent(self, pair: Pair) -> bool:
        return not self.silent.isdisjoint((pair[:2], ("", pair.follower), ("", ""), QUIET))


class QuietWorld(World):
    """Gives the superuser its role back after every call, so that one transaction may hold many; knows who works each
    account."""

    def call(self, who: str, function: str, argument: Any) -> Any:
        try:
            return super().call(who, function, argument)
        finally:
            self.db.execute("reset role")

    def begin(self) -> None:
        self.sessions = dict.fromkeys(self.accounts, 1)
        self.epochs = dict.fromkeys(self.accounts, 1)
        self.home = dict(self.homes)

    def note(self, account: str, kind: str, position: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """An event in the account's session."""
        return self.event(kind, position, session=self.sessions[account], **more)

    def tell(self, account: str, event: dict[str, Any]) -> str:
        """Deliver an event from where the account is worked now; returns what became of it."""
        return str(self.send(account, event, epoch=self.epochs[account])["results"][0]["status"])

    def look(self, account: str, positions: Sequence[dict[str, Any]]) -> None:
        """A good snapshot."""
        assert self.tell(account, self.note(account, "snapshot", positions=list(positions))) == "accepted"

    def move(self, account: str) -> None:
        """Another VPS works the account from now on, in a session of its own."""
        self.homes[account] = {"a": "c", "c": "a", "b": "d", "d": "b"}[self.homes[account]]
        self.epochs[account] += 1
        self.sessions[account] += 1
        self.db.execute(
            "update public.account_vps_assignments set vps_id = %s, epoch = %s where account_id = %s",
            (self.vps[self.homes[account]], self.epochs[account], self.accounts[account]),
        )
        self.db.execute(
            "update public.trading_accounts set session = %s where id = %s",
            (self.sessions[account], self.accounts[account]),
        )

    def end(self) -> None:
        self.homes.update(self.home)


def pick(things: Sequence[T], number: int) -> T | None:
    return things[number % len(things)] if things else None


class Masters:
    """`books`: master → ticket → its position, lots a Decimal (0: gone). `root`: ticket → the first of its lineage."""

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
        self.books: dict[str, dict[str, dict[str, Any]]] = {master: {} for master in MASTERS}
        self.root: dict[str, str] = {}
        #: orders that filled into a position which was there → that position's lineage: its copy may be one of these
        self.joined: dict[str, str] = {}
        #: followers whose list of symbols is not told yet: copies wait for it
        self.untold: set[str] = set()
        #: orders, and positions of two new tickets since, that were told of after what became of them: new ones until
        #: it is known whose lineage they began
        self.belated: set[str] = set()
        #: what each master's broker calls the symbol now
        self.symbols = dict.fromkeys(MASTERS, "EURUSD")
        self.tickets = itertools.count(5000)
        self._holding = 0
        self._held: list[tuple[str, dict[str, Any]]] = []
        self._sent: list[tuple[str, dict[str, Any]]] = []

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
        root = self.root[event["position"]["ticket"]]
        told = [e["position"] for _, e in self._sent if self.root[e["position"]["ticket"]] == root]
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
        root = self.root[position["ticket"]]
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

    def deliver_everything(self) -> None:
        self._holding = 0
        while self._held:
            self.deliver(0, 0, 0)

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
            seen = {
                self.root[ticket]: p for ticket, p in self.books[master].items()
            }  # the newest ticket of each lineage
            for p in seen.values():
                self._accepted(master, self._json(p), (event["session"], event["seq"]))

    # -- trades ------------------------------------------------------------------------------------------------

    def _begin(self, master: str, lots: Decimal, side: str, **more: Any) -> dict[str, Any]:
        ticket = str(next(self.tickets))
        self.root[ticket] = ticket
        named = {"symbol": self.symbols[master]} | more
        self.books[master][ticket] = self.world.position(str(lots), side, ticket, **named) | {"lots": lots}
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
        pending = {"kind": "order", "order_type": "limit", "price": "1.05000"}
        p = self._begin(MASTERS[a % 2], STEP * (b % 4 + 1), ("buy", "sell")[c % 2], **pending)
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
        self.root[ticket] = self.root[old["ticket"]]
        goes_on = {"kind": "position", "ticket": ticket, "replaces": old["ticket"], "replaces_kind": old["kind"]}
        self.books[master][ticket] = old | goes_on | changes
        old["lots"] = Decimal(0)
        self._tell(master, kind, self.books[master][ticket])

    def filled(self, a: int, b: int, c: int) -> None:
        master = MASTERS[a % 2]
        if (p := pick(self.live(master, "order"), b)) is None:
            return
        if c % 2:
            self._continue(master, p, "opened", order_type=None)
            return
        # its position keeps its number, as on MT5; agents may say what it was, or only the number, or nothing
        said = ({"replaces": p["ticket"], "replaces_kind": "order"}, {"replaces": p["ticket"]}, {})[c // 2 % 3]
        p |= {"kind": "position", "order_type": None} | said
        self._tell(master, "opened", p)

    def fills_into(self, a: int, b: int, c: int) -> None:
        """As on a netting account: the order changes the position that is there already."""
        master = MASTERS[a % 2]
        order, p = pick(self.live(master, "order"), b), pick(self.live(master), c)
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
        self.joined[self.root[order["ticket"]]] = self.root[p["ticket"]]
        for pair in [pair for pair in self.doubts.pairs if pair.root == self.root[order["ticket"]]]:
            self.doubts.pairs.add(pair._replace(root=self.root[p["ticket"]]))
        self._tell(master, kind, p)

    def close_by(self, a: int, b: int, c: int) -> None:
        """Two opposite positions are closed by each other; what is left of the larger may get a new ticket."""
        master = MASTERS[a % 2]
        one = pick(self.live(master), b)
        other = pick([p for p in self.live(master) if one and p["side"] != one["side"]], c)
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
        world, old, new = self.world, self.symbols[master], f"EURUSD.{'abcdefgh'[b]}"
        if old == new:
            return
        [spec] = world.rows(
            "select to_jsonb(s) - '{account_id,updated_at,quoted_at}'::text[] as spec from public.account_symbols s"
            " where account_id = %s and name = %s", world.accounts[master], old,
        )  # fmt: skip
        report = {"account_id": world.accounts[master], "epoch": world.epochs[master]}
        symbol = spec["spec"] | {"name": new, "quoted_at": world.one("select now()").isoformat()}
        world.as_agent(master, "report_account_state", report | {"symbols": [symbol]})
        self.symbols[master] = new
        for p in self.live(master) + self.live(master, "order"):
            p["symbol"] = new
        world.look(master, self._everything(master))

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
