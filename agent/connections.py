"""`VPSConnectionManager`: desired assignments → running sessions. One account's trouble never touches another."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NoReturn

from agent.connection import AccountConnection, ConnectionSettings, Parts
from agent.model import AccountId, Assignment

log = logging.getLogger(__name__)

RELEASED: Final = "released"


class VPSConnectionManager:
    """Level-triggered: `want` says which accounts are ours now; `run` makes it so until cancelled."""

    def __init__(
        self,
        parts: Parts,
        settings: ConnectionSettings | None = None,
        *,
        on_news: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`on_news` is called when `statuses` changed: the sooner a heartbeat tells it, the sooner the database plans with it."""
        self._parts = parts
        self._settings = settings or ConnectionSettings()
        self._sleep = sleep
        self._connections: dict[AccountId, AccountConnection] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[AccountId, asyncio.Task[None]] = {}
        self._stopping = False
        self._on_news = on_news
        #: accounts let go and their last sessions, until the database was told
        self._released: dict[AccountId, int] = {}

    def want(self, assignments: Iterable[Assignment], unreadable: frozenset[AccountId] = frozenset()) -> None:
        """The accounts of this agent now, whole. Others are drained and disconnected, `unreadable` ones stay as they are."""
        if self._stopping:
            return
        wanted = {assignment.account_id: assignment for assignment in assignments}
        for account_id, assignment in wanted.items():
            known = self._connections.get(account_id)
            if known is None:
                known = self._connections[account_id] = AccountConnection(self._parts, self._settings, self._sleep, self._on_news)
            known.want(assignment)
            self._start(account_id, known)
        for account_id, connection in self._connections.items():
            if account_id not in wanted and account_id not in unreadable:
                connection.want(None)

    def statuses(self) -> list[dict[str, object]]:
        """`accounts` of a heartbeat."""
        current = [connection.status(account_id) for account_id, connection in self._connections.items()]
        released: list[dict[str, object]] = [
            {"account_id": account_id, "session": session, "status": RELEASED, "error": None}
            for account_id, session in self._released.items()
            if account_id not in self._connections
        ]
        return current + released

    def told(self, accounts: list[dict[str, object]]) -> None:
        """The database has received these `statuses`."""
        for account in accounts:
            if account["status"] == RELEASED:
                self._released.pop(AccountId(str(account["account_id"])), None)

    def resync(self, account_ids: Iterable[AccountId]) -> None:
        for account_id in account_ids:
            if (connection := self._connections.get(account_id)) is not None:
                connection.resync()

    @property
    def connected(self) -> int:
        return sum(connection.connected for connection in self._connections.values())

    async def run(self) -> NoReturn:
        """Run the accounts' tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for account_id, connection in self._connections.items():
                self._start(account_id, connection)
            await asyncio.Event().wait()
        raise AssertionError("waited for ever")

    async def drain(self, seconds: float) -> bool:
        """Finish what is queued, report and disconnect everything; false if that took longer than `seconds`."""
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
        """Drop an account that ended; one that was wanted again while it ended is started anew."""
        if self._tasks.get(account_id) is task:
            del self._tasks[account_id]
        connection = self._connections.get(account_id)
        if connection is None:
            return
        if connection.wanted is None:
            del self._connections[account_id]
            if connection.last_session is not None and not task.cancelled():
                self._released[account_id] = connection.last_session
                self._on_news()
        elif not task.cancelled() and not self._stopping:
            self._start(account_id, connection)
