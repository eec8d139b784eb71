"""The one interface of every trading platform. A platform's name outside its own folder is a bug."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from agent.model import (
    AccountState,
    Change,
    Found,
    Login,
    NotFound,
    Order,
    Position,
    Quote,
    Result,
    SymbolSpec,
)
from agent.platforms.bucket import OrderBucket


class AdapterError(Exception):
    """The platform could not be read: what it holds is unknown (never: empty)."""


class AccountChanged(AdapterError):
    """The terminal is logged in to another account now. What it shows says nothing about ours."""


class LoginRefused(AdapterError):
    """The broker refused the credentials; trying again with the same ones is useless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a platform can do; contract tests skip what it cannot."""

    netting: bool
    hedging: bool
    pending_orders: bool
    close_by: bool
    #: a partial close gives the rest a new ticket
    retickets: bool
    #: SL and TP may be part of a market order
    protected_market_orders: bool
    #: how long after an order an absence from history still proves nothing
    settle: timedelta
    #: how many orders may be under way at a time
    orders_at_once: int = 8
    #: pending orders may carry an expiry; else they stand until cancelled, and the database has them cancelled in time
    timed_orders: bool = True
    #: longest comment that the broker keeps
    comment_max: int = 31


class Adapter(Protocol):
    """One connection to one account. Reads raise `AdapterError` when the answer is unknown, `AccountChanged` when a terminal
    answers for another account than `connect` named; changes of another account are never yielded."""

    async def connect(self, login: Login, take_seq: Callable[[], int]) -> AccountState:
        """Connect and log in; `take_seq` numbers everything that `changes()` yields. May be called again after `close`."""
        ...

    async def close(self) -> None: ...

    def capabilities(self) -> Capabilities: ...

    def bucket(self) -> OrderBucket | None:
        """How many orders a second the connection bears, the same object for every account on it; None: any number."""
        ...

    async def account(self) -> AccountState: ...

    async def symbol(self, name: str) -> SymbolSpec | None:
        """None: the account has no such symbol."""
        ...

    async def symbols(self) -> tuple[str, ...]:
        """Names of everything tradable."""
        ...

    async def quote(self, symbol: str) -> Quote | None:
        """None: no quote yet. Asking for it subscribes to the symbol where a terminal wants that."""
        ...

    async def positions(self) -> tuple[Position, ...]: ...

    async def orders(self) -> tuple[Position, ...]:
        """Pending orders. Read before `positions`: an order that fills in between is then seen twice, never lost."""
        ...

    def changes(self) -> AsyncIterator[Change]:
        """Every change of a position or order, in order, until `close`. Raises `AdapterError` when the connection is lost."""
        ...

    async def place(self, order: Order) -> Result:
        """Send one order and wait for the broker's definitive answer; `Unknown` when there is none.

        Never raises for a broker's no. An order whose `send_before` is over is not sent: `Rejected("too_late")`. A platform
        with a worker process or an EA checks it there, as the last thing before the broker is called, on the wall clock and
        on a clock that counts suspension. So does a terminal that can be logged in elsewhere check whose account it is:
        `Rejected("not_connected")` when it is not ours.
        """
        ...

    async def find(self, order: Order) -> Found | NotFound:
        """Look for what a sent order left behind (by its tag, symbol, side, lots) in positions, orders and history."""
        ...
