"""What the masters, followers and brokers of the random test share: names, pairs, doubts, and a world of one
transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from planner_harness import World

MASTERS = ("M1", "M2")
#: nothing is opened anywhere while a quiet window lasts
QUIET = ("a quiet window", "")
#: a symbol that is never renamed: an order or position may have a number that another in EURUSD has, too
OTHER = "EURCHF"
#: kind and number of an order or position
Key = tuple[str, str]
#: of an open that has a stop
STOP = {"buy": "1.05", "sell": "1.15"}
PENDING = {"kind": "order", "order_type": "limit", "price": "1.05000"}
T = TypeVar("T")


class Pair(NamedTuple):
    """One copy: of which lineage of tickets (named after its first one) of which master, at which follower."""

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

    def tell_renamed(self, account: str, old: str, new: str) -> None:
        """The account's agent tells a symbol under its new name; then come the positions."""
        [row] = self.rows(
            "select to_jsonb(s) - '{account_id,updated_at,quoted_at}'::text[] as spec from public.account_symbols s"
            " where account_id = %s and name = %s", self.accounts[account], old,
        )  # fmt: skip
        symbol = row["spec"] | {"name": new, "quoted_at": self.one("select now()").isoformat()}
        report = {"account_id": self.accounts[account], "epoch": self.epochs[account], "symbols": [symbol]}
        self.as_agent(account, "report_account_state", report)

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
