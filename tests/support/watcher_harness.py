"""A watcher with a fake broker and database: the test sets what it reads and sees what it reports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from engine_harness import Desk, DeskAdapter, FakeDatabase, eventually, open_session

from agent.account.session import AccountSession
from agent.clock import DatabaseClock
from agent.journal.journal import Journal
from agent.model import AccountId, Event, Offered
from agent.platforms.adapter import AdapterError
from agent.watching.watcher import Watcher, WatcherSettings

QUICK = WatcherSettings(
    verify_every=timedelta(seconds=30), confirm_after=timedelta(milliseconds=5), hold_limit=timedelta(milliseconds=100)
)


class Scene:
    def __init__(
        self, desk: Desk, journal: Journal, session: AccountSession, settings: WatcherSettings, database: FakeDatabase
    ) -> None:
        self.desk, self.journal, self.session, self.database = desk, journal, session, database
        self.submitted: list[Offered] = []
        self.refusals: list[tuple[AccountId, str]] = []
        self.watcher = Watcher(
            session, journal, database, DatabaseClock(), submit=self.submitted.extend,
            on_refused=lambda account, code: self.refusals.append((account, code)), settings=settings,
        )  # fmt: skip
        self.running = asyncio.create_task(self.watcher.run())

    @property
    def adapter(self) -> DeskAdapter:
        assert isinstance(self.session.adapter, DeskAdapter)
        return self.session.adapter

    async def told(self, count: int) -> list[Event]:
        await eventually(lambda: len(self.database.events) >= count)
        return self.database.events

    async def reads(self, count: int) -> None:
        """Let the account be read `count` more times."""
        wanted = self.desk.read_count + count
        while self.desk.read_count < wanted:
            before = self.desk.read_count
            self.watcher._read_at = 0.0
            self.session.changed.set()
            await eventually(lambda seen=before: self.desk.read_count > seen)  # type: ignore[misc]
        before = self.desk.read_count
        self.watcher._read_at = 0.0
        self.session.changed.set()
        # one more read: then the last of the counted ones has been processed
        await eventually(lambda: self.desk.read_count > before)


Open = Callable[..., Awaitable[Scene]]


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Open]:
    journal = await Journal.open(folder / "journal.sqlite")
    scenes: list[Scene] = []

    async def open_scene(
        desk: Desk,
        *,
        settings: WatcherSettings = QUICK,
        database: FakeDatabase | None = None,
        number: int = 1,
        ready: bool = True,
    ) -> Scene:
        scene = Scene(desk, journal, await open_session(desk, number=number), settings, database or FakeDatabase())
        scenes.append(scene)
        if ready:
            async with asyncio.timeout(5):
                await scene.watcher.ready()
        return scene

    yield open_scene
    for scene in scenes:
        scene.running.cancel()
        with suppress(asyncio.CancelledError, AdapterError):
            await scene.running
    await journal.close()
