"""`TradeCopyEngine`: executions → lanes → orders → reports. The only part of the agent that sends orders.

An execution is known by (id, attempt) and is sent at most once, journalled before. What cannot be known is reported `unknown`
and looked for; it is never sent again on a guess (DESIGN §4.5).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from agent.clock import DatabaseClock, Lease
from agent.journal import Journal
from agent.model import AccountId, Execution, ExecutionId
from agent.session import AccountSession, Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`place_timeout`: an order without an answer for so long is unknown. `longest_wait`: no order waits longer, whatever it says."""

    place_timeout: timedelta = timedelta(seconds=30)
    longest_wait: timedelta = timedelta(seconds=10)
    drain_timeout: timedelta = timedelta(seconds=35)
    report_batch: int = 100


class TradeCopyEngine:
    """Construct it inside a running event loop; use as `async with TradeCopyEngine(...) as engine`, or call `close()`."""

    def __init__(
        self, journal: Journal, backbone: Backbone, clock: DatabaseClock, lease: Lease, settings: EngineSettings | None = None
    ) -> None:
        raise NotImplementedError

    async def attach(self, session: AccountSession) -> None:
        """Start (or take over, on a new session) the trading of an account; what the journal left open is looked for first."""
        raise NotImplementedError

    async def detach(self, account_id: AccountId, *, drain: bool) -> None:
        """Stop trading an account. `drain`: let what is queued finish first. Otherwise what was sent is reported unknown and
        what was not sent is forgotten (the database offers it again). Unknown accounts are ignored."""
        raise NotImplementedError

    def submit(self, executions: Iterable[Execution]) -> None:
        """Take executions from any source, in any order, any number of times. Never blocks, never raises for bad timing."""
        raise NotImplementedError

    def cancel(self, ids: Iterable[ExecutionId]) -> None:
        """The database asks to drop these if they are unsent; each one dropped is reported `cancelled`."""
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """Executions not ended plus reports not accepted: while this is above 0 the agent asks for what is outstanding every second."""
        raise NotImplementedError

    async def close(self) -> None:
        """Detach everything without draining, then stop reporting. Reports not accepted stay in the journal."""
        raise NotImplementedError
