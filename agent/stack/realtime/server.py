"""The embedded Realtime server: an aiohttp sub-application fed by logical decoding."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence

from aiohttp import web
from psycopg import Error
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from agent.stack.realtime.connection import Connection
from agent.stack.realtime.faults import Faults
from agent.stack.realtime.frames import VERSIONS, Broadcast
from agent.stack.realtime.guests import Guests
from agent.stack.realtime.hooks import TestHooks
from agent.stack.realtime.hub import Hub
from agent.stack.realtime.limits import Limits, RateMeter
from agent.stack.realtime.pgoutput import MessageRow
from agent.stack.realtime.policies import Policies
from agent.stack.realtime.rest import BroadcastApi
from agent.stack.realtime.storage import MessageStore
from agent.stack.realtime.stream import MessageStream
from agent.stack.realtime.tokens import Identity, Refused, Verify, identify

log = logging.getLogger(__name__)
_MAX_FRAME_BYTES = 5_000_000
_JANITOR_S = 3600
_SWEEP_S = 5
_DRAIN_S = 3


class RealtimeServer:
    """Behaves like hosted Realtime towards its official clients, on one database.

    `dsn` must name a role that may replicate, bypasses RLS and may become its callers (`supabase_realtime_server`).
    `verify` turns a JWT or an `sb_…` key into claims and raises TokenInvalid or TokenExpired. Life cycle: `attach` to
    an application, `start` before it serves, `close` afterwards. `test_hooks` also mounts `faults` under
    `/realtime/v1/test/…`, for the service role only.

    Deliberate differences from hosted: no artificial delays before refusals (see Limits), streaming runs before a join
    is answered (hosted starts it on the first join), and it resumes within two seconds after the database is back.
    """

    def __init__(
        self,
        dsn: str,
        verify: Verify,
        limits: Limits | None = None,
        *,
        guests: Guests | None = None,
        test_hooks: bool = False,
    ) -> None:
        """`guests` limits what each client may use; None: only the project's quotas apply."""
        self.verify = verify
        self.guests = guests
        self.limits = limits or Limits()
        self.faults = Faults()
        self.hub = Hub(self.limits)
        self.joins = RateMeter(self.limits.joins_per_second, self.limits.window_s, self.limits.window_buckets)
        self._pool = AsyncConnectionPool(
            dsn, min_size=1, max_size=6, open=False, timeout=5, check=AsyncConnectionPool.check_connection,
            kwargs={"autocommit": True, "application_name": "realtime"}, name="realtime",
        )  # fmt: skip
        self.policies = Policies(self._pool)
        self.store = MessageStore(self._pool)
        self._stream = MessageStream(dsn, self._rows_from_thread, self._state_from_thread)
        self._hooks = TestHooks(self.faults, verify) if test_hooks else None
        self._api = BroadcastApi(self.hub, self.policies, self.limits, verify)
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._live = asyncio.Event()
        self._empty = asyncio.Event()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dropped_said_at = 0.0

    def attach(self, app: web.Application) -> None:
        """Mount the routes under `/realtime/v1`."""
        app.router.add_get("/realtime/v1/websocket", self._websocket)
        self._api.attach(app)
        if self._hooks is not None:
            self._hooks.attach(app)

    async def start(self, timeout_s: float = 60) -> None:
        """Open the pool and start streaming; returns when it runs.

        Raises TimeoutError if the database does not answer.
        """
        self._loop = asyncio.get_running_loop()
        await self._pool.open()
        self._stream.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self._live.wait()
        except TimeoutError:
            await self.close()
            raise TimeoutError(f"Realtime could not stream from the database within {timeout_s:g} s") from None
        self.spawn(self._janitor())
        self.spawn(self._sweeper())

    async def close(self) -> None:
        """Close every socket with 1012 (restart), then end the stream (and its slot) and the pool.

        Safe to call again.
        """
        self._closing = True
        for connection in list(self._connections):
            connection.close(1012)
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self._empty.wait()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=3)
        self._loop = None
        await asyncio.to_thread(self._stream.stop)
        if self._stream.slot is not None and not self._pool.closed:
            with contextlib.suppress(Error, PoolTimeout, TimeoutError):
                async with asyncio.timeout(2):
                    await self.store.slot_gone(self._stream.slot)
        await self._pool.close()

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run a task that is cancelled when the server ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def streaming(self) -> bool:
        """Wait a moment for the stream. False if it does not start (the database is down)."""
        if self._live.is_set():
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.database_wait_s):
                await self._live.wait()
        return self._live.is_set()

    # Called from the stream's thread

    def _rows_from_thread(self, rows: Sequence[MessageRow]) -> None:
        loop = self._loop
        if loop is not None:
            # the loop was closed in between
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._rows, rows)

    def _state_from_thread(self, live: bool) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._live.set if live else self._live.clear)

    def _rows(self, rows: Sequence[MessageRow]) -> None:
        hub, limit = self.hub, self.limits.payload_bytes
        for row in rows:
            if hub.messages.over:
                self._say_dropped("over_quota", row)
                continue
            if len(row.payload) > limit:
                self._say_dropped("oversize", row)
                continue
            hub.messages.count()
            hub.broadcast(row.private, Broadcast(row.topic, row.event, row.payload, row.id, binary=row.binary))

    def _say_dropped(self, reason: str, row: MessageRow) -> None:
        now = time.monotonic()
        if now - self._dropped_said_at > 1:
            self._dropped_said_at = now
            log.warning("realtime_row_dropped", extra={"reason": reason, "topic": row.topic})

    # Maintenance

    async def _janitor(self) -> None:
        while True:
            await asyncio.sleep(_JANITOR_S)
            try:
                await self.store.prepare()
            except (Error, PoolTimeout) as error:
                log.warning("realtime_janitor_failed", extra={"reason": str(error)})

    async def _sweeper(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_S, self.limits.idle_timeout_s / 2, self.limits.no_channel_timeout_s / 2))
            now = time.monotonic()
            for connection in list(self._connections):
                if connection.overdue(now):
                    connection.close(1000)

    # Handshakes

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if self._closing:
            return web.json_response({"error": "The server is stopping"}, status=503)
        if self.faults.refuse_with is not None:
            return web.json_response({"error": "refused by a test"}, status=self.faults.refuse_with)
        try:
            identity = self._handshake(request)
        except Refused as error:
            if self.limits.connect_backoff_ms:
                await asyncio.sleep(self.limits.connect_backoff_ms / 1000)
            status = 429 if error.code == "ConnectionRateLimitReached" else 401
            return web.json_response({"error": str(error)}, status=status)
        vsn = VERSIONS.get(request.query.get("vsn", "1.0.0"))
        if vsn is None:
            return web.json_response({"error": "The requested vsn is not supported"}, status=403)
        trusted = self.guests is None or identity.claims.get("role") == "service_role"
        largest = _MAX_FRAME_BYTES if self.guests is None or trusted else self.guests.limits.frame_bytes
        ws = web.WebSocketResponse(compress=False, max_msg_size=largest, timeout=1.0)
        await ws.prepare(request)
        connection = Connection(self, ws, request, identity, vsn, trusted=trusted)
        self._connections.add(connection)
        if self.guests is not None:
            self.guests.opened(connection)
        self.faults.opened(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            if self.guests is not None:
                self.guests.closed(connection)
            self.faults.closed(connection)
            if not self._connections:
                self._empty.set()
        return ws

    def _handshake(self, request: web.Request) -> Identity:
        token = request.headers.get("x-api-key") or request.query.get("apikey")
        if not token:
            raise Refused("Unauthorized", "API key is missing")
        try:
            identity = identify(self.verify, token)
        except Refused as error:
            if str(error).startswith("Token has expired"):
                raise Refused("Unauthorized", "Token has expired") from error
            raise
        if len(self._connections) >= self.limits.connections:
            raise Refused("ConnectionRateLimitReached", "Too many connected users")
        return identity
