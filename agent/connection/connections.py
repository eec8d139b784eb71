"""`VPSConnectionManager`: runs one connection per assigned account. A failure of one account never affects another."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NoReturn

from agent.connection.connection import AccountConnection, ConnectionSettings, Parts
from agent.model import AccountId, Assignment

log = logging.getLogger(__name__)

RELEASED: Final = "released"


class VPSConnectionManager:
    """Level-triggered: `want` sets the accounts that this agent works; `run` connects and disconnects accordingly."""

    def __init__(
        self,
        parts: Parts,
        settings: ConnectionSettings | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`on_change` is called when `statuses` changed, so that a heartbeat can report it to the database at once."""
        self._parts = parts
        self._settings = settings or ConnectionSettings()
        self._sleep = sleep
        self._connections: dict[AccountId, AccountConnection] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[AccountId, asyncio.Task[None]] = {}
        self._stopping = False
        self._on_change = on_change
        #: released accounts and their last sessions, until the database has received that
        self._released: dict[AccountId, int] = {}

    def want(
        self, assignments: Iterable[Assignment], unreadable: frozenset[AccountId] = frozenset()
    ) -> frozenset[AccountId]:
        """Set the complete list of this agent's accounts. Others are drained and disconnected, except `unreadable`
        ones, which stay as they are.

        Returns the accounts that could not be started: a bug in one must not stop the others.
        """
        if self._stopping:
            return frozenset()
        wanted = {assignment.account_id: assignment for assignment in assignments}
        failed: set[AccountId] = set()
        for account_id, assignment in wanted.items():
            try:
                self._take(account_id, assignment)
            except Exception:
                log.exception("assignment_not_taken", extra={"account": account_id})
                failed.add(account_id)
        for account_id, connection in self._connections.items():
            if account_id not in wanted and account_id not in unreadable:
                connection.want(None)
        return frozenset(failed)

    def _take(self, account_id: AccountId, assignment: Assignment) -> None:
        known = self._connections.get(account_id)
        if known is None:
            known = self._connections[account_id] = AccountConnection(
                self._parts, self._settings, self._sleep, self._on_change
            )
        known.want(assignment)
        self._start(account_id, known)

    def statuses(self) -> list[dict[str, object]]:
        """The value of `accounts` in a heartbeat."""
        current = [connection.status(account_id) for account_id, connection in self._connections.items()]
        released: list[dict[str, object]] = [
            {"account_id": account_id, "session": session, "status": RELEASED, "error": None}
            for account_id, session in self._released.items()
            if account_id not in self._connections
        ]
        return current + released

    def statuses_delivered(self, accounts: list[dict[str, object]]) -> None:
        """The database has received these statuses."""
        for account in accounts:
            if account["status"] == RELEASED:
                self._released.pop(AccountId(str(account["account_id"])), None)

    def begin_anew(self) -> None:
        """The database was restored from a backup: every account opens a new session and reports what it holds."""
        for connection in self._connections.values():
            connection.begin_anew()

    def resync(self, account_ids: Iterable[AccountId]) -> None:
        for account_id in account_ids:
            if (connection := self._connections.get(account_id)) is not None:
                connection.resync()

    @property
    def connected(self) -> int:
        return sum(connection.connected for connection in self._connections.values())

    async def run(self) -> NoReturn:
        """Run the connections until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for account_id, connection in self._connections.items():
                self._start(account_id, connection)
            await asyncio.Event().wait()
        raise AssertionError("waited for ever")

    async def drain(self, seconds: float) -> bool:
        """Finish and report what is queued, then disconnect every account. False if that took longer than `seconds`."""
        self._stopping = True
        for connection in self._connections.values():
            connection.want(None)
        running = [task for task in self._tasks.values() if not task.done()]
        if not running:
            return True
        _, late = await asyncio.wait(running, timeout=seconds)
        return not late

    def _start(self, account_id: AccountId, connection: AccountConnection) -> None:
        if self._group is None or (account_id in self._tasks and not self._tasks[account_id].done()):
            return
        task = self._group.create_task(connection.run(), name=f"account:{account_id}")
        self._tasks[account_id] = task
        task.add_done_callback(lambda done: self._forget(account_id, done))

    def _forget(self, account_id: AccountId, task: asyncio.Task[None]) -> None:
        """Drop an account whose connection ended; restart one that was assigned again meanwhile."""
        if self._tasks.get(account_id) is task:
            del self._tasks[account_id]
        connection = self._connections.get(account_id)
        if connection is None:
            return
        if connection.wanted is None:
            del self._connections[account_id]
            if connection.last_session is not None and not task.cancelled():
                self._released[account_id] = connection.last_session
                self._on_change()
        elif not task.cancelled() and not self._stopping:
            self._start(account_id, connection)
