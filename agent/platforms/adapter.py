"""The interface that every trading platform implements. A platform's name outside its own folder is a bug."""

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
from agent.platforms.rate_limit import RateLimit


class AdapterError(Exception):
    """The platform could not be read: what the account holds is unknown, not empty."""


class AccountChanged(AdapterError):
    """The terminal is logged in to another account now; what it shows is not about ours."""


class NotReached(AdapterError):
    """The server did not answer at all, so the credentials were not sent and this is no login attempt."""


class LoginRefused(AdapterError):
    """The broker refused the credentials; a retry with the same ones is useless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a platform supports; contract tests skip what it does not."""

    netting: bool
    hedging: bool
    pending_orders: bool
    close_by: bool
    #: a partial close gives the rest a new ticket
    retickets: bool
    #: SL and TP may be part of a market order
    protected_market_orders: bool
    #: time after an order during which its absence from history proves nothing yet
    settle: timedelta
    #: most orders in flight at a time
    orders_at_once: int = 8
    #: pending orders may carry an expiry; otherwise the database queues a cancel when it is time
    timed_orders: bool = True
    #: longest comment that the broker keeps
    comment_max: int = 31


class Adapter(Protocol):
    """One connection to one account. Reads raise `AdapterError` when the answer is unknown, and `AccountChanged` when
    the terminal answers for another account than the one given to `connect`; changes of another account are never
    yielded."""

    async def connect(self, login: Login, take_seq: Callable[[], int]) -> AccountState:
        """Connect and log in; `take_seq` numbers everything that `changes()` yields. May be called again after
        `close`."""
        ...

    async def close(self) -> None: ...

    def capabilities(self) -> Capabilities: ...

    def bucket(self) -> RateLimit | None:
        """The connection's limit of orders per second; one object for all accounts on the connection. None: no
        limit."""
        ...

    async def account(self) -> AccountState: ...

    async def symbol(self, name: str) -> SymbolSpec | None:
        """None: the account has no such symbol."""
        ...

    async def symbols(self) -> tuple[str, ...]:
        """Names of everything tradable."""
        ...

    async def quote(self, symbol: str) -> Quote | None:
        """None: no quote yet. A call subscribes to the symbol where the terminal requires that."""
        ...

    async def positions(self) -> tuple[Position, ...]: ...

    async def orders(self) -> tuple[Position, ...]:
        """Pending orders. Read them before `positions`: an order that fills in between is then seen twice, never
        missed."""
        ...

    def changes(self) -> AsyncIterator[Change]:
        """Every change of a position or order, in order, until `close`. Raises `AdapterError` when the connection is
        lost."""
        ...

    async def place(self, order: Order) -> Result:
        """Send one order and wait for the broker's definitive answer; `Unknown` when there is none.

        A refusal is returned, not raised. An order past its `send_before` is not sent: `Rejected("too_late")`. A
        platform with a worker process or an expert advisor checks that there, right before it calls the broker, on the
        wall clock and on a clock that keeps counting during suspension. Where a terminal may be logged in to another
        account, the same place checks that too: `Rejected("not_connected")` if it is not ours.
        """
        ...

    async def find(self, order: Order) -> Found | NotFound:
        """Find a sent order by its tag, symbol, side and lots in positions, pending orders and history."""
        ...
