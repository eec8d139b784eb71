"""One login of one account: its session number, its connection and its book.

The connection manager makes a session: it connects the adapter with a new `SeqCounter`, verifies the login, calls
`open_session` and builds the `AccountSession` with the same counter. A session ends with its connection; the next login
is a new session with a new number.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agent import limits
from agent.account.book import Book, Flight
from agent.model import AccountId, AccountState, ExecutionId, Mode, Position
from agent.platforms.adapter import AccountChanged, Adapter

log = logging.getLogger(__name__)

#: begins the status text of an account whose terminal is logged in to another account (docs/errors.md)
ACCOUNT_MISMATCH = "account_mismatch"


class SeqCounter:
    """Numbers the messages of one session, from 1. `Adapter.connect` and the `AccountSession` share one counter."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last += 1
        return self._last

    def reserve(self, count: int) -> range:
        """Take `count` consecutive numbers, for a read that may cause several messages."""
        first = self._last + 1
        self._last += count
        return range(first, first + count)


@dataclass(slots=True, kw_only=True, eq=False)
class AccountSession:
    """One login of an account: its session number, fencing token, connection and book.

    `continues`: this agent's journal knows the account's previous session
    (`answer.continues is not None and journal.knows_session(account_id, answer.continues)`), so an execution that the
    journal does not contain was never sent. `opened_at` and `begins_at` are on the database's clock.
    """

    account_id: AccountId
    epoch: int
    session: int
    continues: bool
    adapter: Adapter
    begins_at: datetime
    opened_at: datetime
    #: the login that the terminal reported; a read under another login does not belong to this account ("": unchecked)
    login: str = ""
    #: on a netting account every order changes the one position of its symbol
    mode: Mode = "hedging"
    seq: SeqCounter = field(default_factory=SeqCounter)
    #: the watcher and the engine both write it, in one event loop
    book: Book = field(default_factory=Book)
    #: our orders whose outcome is not reported yet
    flights: dict[ExecutionId, Flight] = field(default_factory=dict)
    #: what keeps the account from trading, by kind, as text for its owner; the session goes on
    problems: dict[str, str] = field(default_factory=dict)
    on_problem: Callable[[], None] = lambda: None
    #: symbols whose specification contradicts a broker's refusal: they are read and reported again
    outdated_specs: set[str] = field(default_factory=set)
    #: tickets of positions that the database cannot store (agent/limits.py)
    left_out: set[str] = field(default_factory=set)
    #: set when the watcher has work: a push, a noted report, the end of an order in flight
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    #: set when the database knows of a fill whose effect on the account's figures it does not know yet
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    def take_seq(self) -> int:
        return self.seq()

    def note(self, positions: Iterable[Position], seq: int) -> None:
        """Store the positions of a report, so that the push about our own order causes no event."""
        for position in positions:
            self.book.put(self.book.named(position), seq)
        self.changed.set()

    def begin_flight(self, flight: Flight) -> None:
        """One of our orders is about to be sent: changes that it may cause are held back until `end_flight`."""
        self.flights[flight.tag] = flight

    def end_flight(self, tag: ExecutionId) -> None:
        self.flights.pop(tag, None)
        self.changed.set()

    def in_flight(self, position: Position) -> bool:
        """Whether one of our orders in flight may have caused this state."""
        return bool(self.flights) and any(flight.touches(self.book.named(position)) for flight in self.flights.values())

    async def verify_login(self) -> None:
        """Raises `AccountChanged` if the terminal is now logged in to another account than when this session began."""
        if self.login:
            self.check_login(await self.adapter.account())

    def check_login(self, state: AccountState) -> None:
        if self.login and state.login.strip().casefold() != self.login.strip().casefold():
            raise AccountChanged(
                f"{ACCOUNT_MISMATCH}: the terminal is logged in to another account now; log it in to this account, then"
                " reconnect the account"
            )

    def leave_out(self, position: Position) -> None:
        """Leave a position out of events because the database cannot store its symbol or ticket. It is logged once;
        only the number of such positions is reported."""
        ticket = limits.cut(position.ticket, limits.NAME_MAX + 1)
        if ticket not in self.left_out:
            self.left_out.add(ticket)
            log.error(
                "position_left_out",
                extra={
                    "account_id": self.account_id,
                    "ticket": ticket,
                    "symbol": limits.cut(position.symbol, limits.NAME_MAX + 1),
                },
            )

    def set_problem(self, kind: str, text: str) -> None:
        """Something keeps the account from trading: its status shows it until `clear_problem`."""
        if self.problems.get(kind) != text:
            self.problems[kind] = text
            self.on_problem()

    def clear_problem(self, kind: str) -> None:
        if self.problems.pop(kind, None) is not None:
            self.on_problem()

    def health(self) -> tuple[Literal["connected", "degraded"], str | None]:
        """Status and error text for the database."""
        return ("degraded", "; ".join(self.problems.values())) if self.problems else ("connected", None)
