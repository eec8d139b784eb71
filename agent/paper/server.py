"""The paper broker's process: books behind a loopback TCP port, JSON lines.

Operators authenticate with a token, programs with their account's password.

`python -m agent.paper.server` reads its settings as one JSON line from standard input (so that the token is on no
command line), prints `{"address": …}` and ends when standard input is closed: when its parent ends, for whatever
reason, so does it.
"""

import asyncio
import gc
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from agent.paper.broker import Broker
from agent.paper.clocks import Clock, RealClock, VirtualClock
from agent.paper.feed import RandomWalk
from agent.paper.messages import LINE_LIMIT, encode
from agent.paper.records import BookChange
from agent.paper.session import Session
from agent.paper.store import Store

HOST = "127.0.0.1"


class ServerSettings(BaseModel):
    token: str
    #: 0: any free port
    port: int = 0
    #: folder where the books are stored; None: they are lost when the process ends
    data: Path | None = None
    virtual_clock: bool = False


class PaperServer:
    """Sessions around one `Broker`. Use as `async with PaperServer(settings) as server`."""

    def __init__(self, settings: ServerSettings) -> None:
        clock: Clock = VirtualClock() if settings.virtual_clock else RealClock()
        self.broker = Broker(clock)
        self.token = settings.token
        self._port = settings.port
        self._store = None if settings.data is None else Store(settings.data)
        if self._store is not None:
            self._store.attach(self.broker)
        self.broker.on_changes = self._announce
        self._programs: dict[str, set[Session]] = {}
        self._running: dict[Session, asyncio.Task[None]] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._feed: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "PaperServer":
        self._server = await asyncio.start_server(self._accept, HOST, self._port, limit=LINE_LIMIT)
        self._arm_expiry()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_feed()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._server is not None:
            self._server.close()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._store is not None:
            self._store.close()

    @property
    def address(self) -> str:
        if self._server is None:
            raise RuntimeError("the server has not been started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    # --- sessions ----------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(self, reader, writer)
        task = asyncio.current_task()
        if task is not None:
            self._running[session] = task
        try:
            with suppress(asyncio.CancelledError):
                await session.run()
        finally:
            self._running.pop(session, None)

    def join(self, session: Session) -> None:
        self._programs.setdefault(session.login or "", set()).add(session)

    def leave(self, session: Session) -> None:
        self._programs.get(session.login or "", set()).discard(session)

    def sessions_of(self, login: str) -> tuple[Session, ...]:
        return tuple(self._programs.get(login, ()))

    def disconnect(self, login: str) -> int:
        sessions = self.sessions_of(login)
        for session in sessions:
            self.leave(session)
            session.cut()
        return len(sessions)

    def _announce(self, login: str, changes: tuple[BookChange, ...]) -> None:
        self.settle()
        for session in self.sessions_of(login):
            session.push(changes)
        self.wake(login)
        if any(change.position.kind == "order" for change in changes):
            self._arm_expiry()

    def wake(self, login: str) -> None:
        """Wake everybody who waits for a change of a book."""
        for waiting in self._waiting.pop(login, []):
            if not waiting.done():
                waiting.set_result(None)

    async def changed(self, login: str) -> None:
        """Return when a book has changed."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(login, []).append(waiting)
        await waiting

    def settle(self) -> None:
        """Store the changes of the last operation."""
        if self._store is not None:
            self._store.flush()

    # --- time --------------------------------------------------------------------------------------

    def _arm_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        expiry = self.broker.next_expiry()
        if expiry is not None and isinstance(self.broker.clock, RealClock):
            delay = max(0.0, (expiry - self.broker.clock.now()).total_seconds())
            self._expiry = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self.broker.pass_time()
        self.settle()
        self._arm_expiry()

    def start_feed(self, symbols: Iterable[str] | None, seed: int, interval_s: float) -> None:
        self.stop_feed()
        walk = RandomWalk(self.broker, symbols, seed)
        walk.begin()
        self._feed = asyncio.create_task(self._walk(walk, interval_s), name="paper-feed")

    def stop_feed(self) -> None:
        if self._feed is not None:
            self._feed.cancel()
            self._feed = None

    async def _walk(self, walk: RandomWalk, interval_s: float) -> None:
        while True:
            await self.broker.clock.sleep(max(interval_s, 0.001))
            walk.step()
            self.settle()


async def serve(settings: ServerSettings) -> None:
    """Serve until standard input is closed."""
    loop = asyncio.get_running_loop()
    parent_gone = asyncio.Event()

    def watch_parent() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(parent_gone.set)

    async with PaperServer(settings) as server:
        sys.stdout.buffer.write(encode({"address": server.address}))
        sys.stdout.buffer.flush()
        # a thread, because not every platform's event loop can wait for a pipe; a daemon thread, because nothing ends
        # it
        threading.Thread(target=watch_parent, name="parent-watch", daemon=True).start()
        await parent_gone.wait()


def main() -> None:
    settings = ServerSettings.model_validate_json(sys.stdin.buffer.readline())
    # books only grow, so frequent full garbage collections would only delay orders
    gc.set_threshold(50_000, 50, 1000)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
