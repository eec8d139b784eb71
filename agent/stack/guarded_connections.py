"""The gateway's TCP connections: timeouts for headers and idle time, and a limit per client that never locks agents
out.

A client is an IP address. Only the first request shows who is behind a connection, so new connections are always
accepted; above the limit, the connection that is least likely to belong to an agent is closed instead.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from agent.stack.token_bucket import TokenBucket

log = logging.getLogger(__name__)

#: from the connection (or the first byte of a later request) to the end of the headers
HEADER_SECONDS: Final = 5.0
#: idle time between two requests; official clients and agents keep connections open for up to 60 s
IDLE_SECONDS: Final = 75.0
SWEEP_SECONDS: Final = 0.5
CONNECTIONS_PER_CLIENT: Final = 256
CONNECTIONS: Final = 512
#: new connections per second from all clients; further ones wait in the kernel's backlog
ACCEPTED_PER_SECOND: Final = 300.0
ACCEPTED_AT_ONCE: Final = 300.0
BACKLOG: Final = 1024


class GuardedConnection(RequestHandler):
    """aiohttp's connection, plus what it is waiting for and since when."""

    __slots__ = ("client", "guard", "is_websocket", "serving", "silent_since", "trusted", "waits_since")

    def __init__(self, guard: "ConnectionGuard", server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, keepalive_timeout=IDLE_SECONDS, lingering_time=0.0)
        self.guard = guard
        self.client = ""
        self.trusted = False
        self.serving = False
        self.is_websocket = False
        #: when the headers now being read began; None while none are being read
        self.waits_since: float | None = None
        self.silent_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        self.silent_since = self.guard.now()
        self.waits_since = self.silent_since
        super().connection_made(transport)
        self.guard.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.waits_since is None and not self.serving:
            self.waits_since = self.guard.now()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.guard.closed(self)
        super().connection_lost(exc)

    def request_begins(self, *, websocket: bool) -> None:
        """Called when the request's headers are complete."""
        self.serving = True
        self.is_websocket = websocket
        self.waits_since = None

    def request_ends(self) -> None:
        """Called when the response was sent."""
        self.serving = False
        self.is_websocket = False
        self.silent_since = self.guard.now()

    def abort(self) -> None:
        """Abort the connection at once."""
        self.force_close()
        if self.transport is not None:
            self.transport.abort()


class ConnectionGuard:
    """Accepts connections. Closes slow ones, and those above a client's limit."""

    def __init__(
        self,
        *,
        per_client: int = CONNECTIONS_PER_CLIENT,
        in_all: int = CONNECTIONS,
        header_seconds: float = HEADER_SECONDS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._per_client = per_client
        self._in_all = in_all
        self._header_seconds = header_seconds
        self._clock = clock
        self._connections: set[GuardedConnection] = set()
        self._accepts = TokenBucket(ACCEPTED_PER_SECOND, ACCEPTED_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: socket.socket | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def listen(self, server: web.Server, host: str, port: int) -> None:
        """Start to listen. Raises OSError when the port is in use."""
        listener = socket.create_server((host, port), backlog=BACKLOG, reuse_port=False)
        listener.setblocking(False)
        self._listener = listener
        self._tasks = [asyncio.create_task(self._accept(listener, server)), asyncio.create_task(self._sweep())]

    async def close(self) -> None:
        """Stop accepting. The runner closes the connections that are open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._listener is not None:
            self._listener.close()

    def opened(self, connection: GuardedConnection) -> None:
        """Count a new connection; close another one if its client, or all clients together, have too many."""
        self._connections.add(connection)
        counted = [c for c in self._connections if not c.trusted and not c.is_websocket]
        of_client = [c for c in counted if c.client == connection.client]
        if len(of_client) > self._per_client:
            self._drop_one(of_client, connection)
        elif len(counted) > self._in_all:
            self._drop_one(counted, connection)

    def closed(self, connection: GuardedConnection) -> None:
        self._connections.discard(connection)

    def _drop_one(self, candidates: list[GuardedConnection], newest: GuardedConnection) -> None:
        """Close first one that has sent no headers yet, then an idle one, then one being served; within each, the
        oldest."""

        def worth(c: GuardedConnection) -> tuple[int, float]:
            return (0, c.waits_since) if c.waits_since is not None else (2 if c.serving else 1, c.silent_since)

        victim = min((c for c in candidates if c is not newest), key=worth, default=newest)
        log.warning("connection_dropped", extra={"client": victim.client, "connections": len(candidates)})
        victim.abort()
        self._connections.discard(victim)

    async def _accept(self, listener: socket.socket, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # no file descriptor is left
                log.error("accept_failed", extra={"reason": str(error)})
                await asyncio.sleep(0.2)
                continue
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(lambda: GuardedConnection(self, server, loop), accepted)
            wait = self._accepts.take(1, longest_wait=1)
            if wait:
                await asyncio.sleep(wait)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            before = self.now() - self._header_seconds
            for connection in [c for c in self._connections if c.waits_since is not None and c.waits_since < before]:
                connection.abort()
                self._connections.discard(connection)
