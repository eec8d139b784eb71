"""`Watcher`: what happens on an account, as numbered trade events (DESIGN §4.1 laws 5–7, 10)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from agent.clock import DatabaseClock
from agent.journal import Journal
from agent.model import AccountId
from agent.session import AccountSession, Backbone, OnRefused, Submit


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherSettings:
    """How often the account is read although nothing was pushed, and how sure a read must be before it is believed."""

    verify_every: timedelta = timedelta(seconds=10)
    #: a difference that only reads show must be seen by so many good reads ...
    reads_to_confirm: int = 3
    #: ... this far apart
    confirm_after: timedelta = timedelta(milliseconds=300)
    #: a change that an order of ours may have caused is held for its report, but not longer than this
    hold_limit: timedelta = timedelta(seconds=3)
    events_per_call: int = 200


class Watcher:
    def __init__(
        self,
        session: AccountSession,
        journal: Journal,
        backbone: Backbone,
        clock: DatabaseClock,
        *,
        submit: Submit,
        on_refused: OnRefused,
        settings: WatcherSettings | None = None,
    ) -> None:
        """`submit` takes the executions that answers carry (`TradeCopyEngine.submit`); `on_refused(account_id, code)` is called
        once when the database refuses the account (TC103, TC104), and `run` then returns."""
        raise NotImplementedError

    async def run(self) -> None:
        """Watch until cancelled. Raises `AdapterError` when the connection is lost: log in again with a new session."""
        raise NotImplementedError

    async def ready(self) -> None:
        """Wait until the database has accepted the first snapshot of this session. (Bound the wait yourself.)"""
        raise NotImplementedError

    def resync(self) -> None:
        """Read everything again now, and tell the database the whole state even if nothing differs. Never blocks."""
        raise NotImplementedError
