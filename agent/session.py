"""One login of one account, and what the acting half needs of the control plane.

A session is made by the connection manager: connect the adapter with a fresh `SeqCounter`, verify the login, call
`open_session`, then build the `AccountSession` with the same counter. It ends with the connection; the next login is a
new session with a new number. `Backbone` is implemented by the control plane and, in tests, by a fake server object.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from agent.book import Book, Flight
from agent.model import AccountId, AccountState, Event, ExecutionId, Mode, Offered, Position, Report
from agent.platforms.protocol import AccountChanged, Adapter

EventStatus = Literal["accepted", "duplicate", "history", "refused", "kept"]
ReportStatus = Literal["accepted", "duplicate", "refused", "kept"]

#: refusals that concern the whole account: this agent must stop working it (docs/protocol.md)
ACCOUNT_REFUSALS = frozenset({"TC101", "TC102", "TC103", "TC208"})
#: the lease ran out, after an outage of the database for example: the next heartbeat renews it, and the same call succeeds
LEASE_OVER = "TC104"
#: begins what is said of an account whose terminal shows another one (docs/errors.md)
ACCOUNT_MISMATCH = "account_mismatch"
#: refusals of what was said, not of who says it
MALFORMED = frozenset({"TC001", "TC002"})


class BackboneRefused(Exception):
    """The database refused a whole call for good; sending it again unchanged is useless.

    `code` is a code of docs/errors.md. Lost connections and busy databases never show as this: they are retried inside.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message

    @property
    def concerns_account(self) -> bool:
        """True when the account, the session or the whole agent is not accepted any more: stop the session."""
        return self.code in ACCOUNT_REFUSALS


class BackboneCutOff(Exception):
    """The database cancelled a call of several items after its time: nothing was done, send fewer at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventResult:
    """What became of one event. `refused` carries a code; `history` means stored, not applied; `kept` that the database failed
    on it, holds it and takes it later by itself."""

    event_key: str
    status: EventStatus
    code: str | None = None
    error: str | None = None
    #: a snapshot's: tickets that the database holds open and it lacks; a second good snapshot closes them
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """What became of one report. `kept`: the database failed on it, holds it and takes it later by itself."""

    execution_id: ExecutionId
    status: ReportStatus
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueAnswer:
    """Answer of `queue_trade_copy`: one result per event, in order; executions of this VPS."""

    results: tuple[EventResult, ...]
    executions: tuple[Offered, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAnswer:
    """Answer of `report_executions`: one result per report, in order; executions of this VPS."""

    results: tuple[ReportResult, ...]
    executions: tuple[Offered, ...] = ()


class Backbone(Protocol):
    """The two calls that carry trades. Both retry until delivered, or raise `BackboneRefused`, or `BackboneCutOff` for more than
    one item; cancellation passes through."""

    async def queue_trade_copy(self, account_id: AccountId, epoch: int, events: Sequence[Event]) -> QueueAnswer: ...

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer: ...


#: hands executions to the engine; never blocks, duplicates are harmless
Submit = Callable[[Iterable[Offered]], None]
#: told once that the database refused the account, with the code: stop the session
OnRefused = Callable[[AccountId, str], None]


class SeqCounter:
    """Counts from 1. Give it to `Adapter.connect` and to the `AccountSession` of that connection."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last += 1
        return self._last

    def reserve(self, count: int) -> range:
        """Take `count` consecutive numbers at once (a read that may turn out to say several things)."""
        first = self._last + 1
        self._last += count
        return range(first, first + count)


@dataclass(slots=True, kw_only=True, eq=False)
class AccountSession:
    """One login of an account: its number, its fencing token, its connection, and what is known of its book.

    `continues`: this agent's journal knows the account's previous session
    (`answer.continues is not None and journal.knows_session(account_id, answer.continues)`), so what the journal does not
    contain was never sent. `opened_at` and `begins_at` are on the database's clock.
    """

    account_id: AccountId
    epoch: int
    session: int
    continues: bool
    adapter: Adapter
    begins_at: datetime
    opened_at: datetime
    #: what the terminal said it is logged in to; a read that finds another one there is none of this account ("": unchecked)
    login: str = ""
    #: on a netting account an order of ours changes the one position of its symbol
    mode: Mode = "hedging"
    seq: SeqCounter = field(default_factory=SeqCounter)
    #: what the account is known to hold; the watcher and the engine both write it, in one event loop
    book: Book = field(default_factory=Book)
    #: orders of ours whose outcome is not reported yet
    flights: dict[ExecutionId, Flight] = field(default_factory=dict)
    #: what keeps the account from trading as it should, by kind, in words for its owner; the session goes on
    troubles: dict[str, str] = field(default_factory=dict)
    on_trouble: Callable[[], None] = lambda: None
    #: symbols whose specification a broker's refusal contradicts: read and reported again
    doubtful: set[str] = field(default_factory=set)
    #: set when there is something for the watcher to look at: a push, a report noted, an order of ours that landed
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def take_seq(self) -> int:
        return self.seq()

    def note(self, positions: Iterable[Position], seq: int) -> None:
        """Take over what a report says about positions, so that the push of our own order is not news."""
        for position in positions:
            self.book.put(position, seq)
        self.news.set()

    def take_off(self, flight: Flight) -> None:
        """An order of ours is about to be sent: changes that it may cause are held until `land`."""
        self.flights[flight.tag] = flight

    def land(self, tag: ExecutionId) -> None:
        self.flights.pop(tag, None)
        self.news.set()

    def in_flight(self, position: Position) -> bool:
        """Could an order of ours that is under way have caused this state?"""
        return any(flight.touches(position) for flight in self.flights.values())

    async def verify_login(self) -> None:
        """Raises `AccountChanged` if the terminal is logged in to another account than at the beginning of this session."""
        if self.login:
            self.check_login(await self.adapter.account())

    def check_login(self, state: AccountState) -> None:
        if self.login and state.login.strip().casefold() != self.login.strip().casefold():
            raise AccountChanged(
                f"{ACCOUNT_MISMATCH}: the terminal is logged in to another account now; log it in to this one, then reconnect it"
            )

    def trouble(self, kind: str, text: str) -> None:
        """Something keeps the account from trading; told once, until it is `well` again."""
        if self.troubles.get(kind) != text:
            self.troubles[kind] = text
            self.on_trouble()

    def well(self, kind: str) -> None:
        if self.troubles.pop(kind, None) is not None:
            self.on_trouble()

    def health(self) -> tuple[Literal["connected", "degraded"], str | None]:
        """Status and what is wrong, as the database is told."""
        return ("degraded", "; ".join(self.troubles.values())) if self.troubles else ("connected", None)
