"""The database connections of the RPC path: one pipelined transaction per request; recovers after a database
restart."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.adapt import Buffer, Dumper, Loader

ACQUIRE_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 3.0


class JsonBody(bytes):
    """JSON text that is passed to Postgres unchanged."""

    __slots__ = ()


class _JsonBodyDumper(Dumper):
    oid = psycopg.adapters.types["json"].oid

    def dump(self, obj: JsonBody) -> Buffer | None:
        return bytes(obj)


class _RawLoader(Loader):
    format = pq.Format.TEXT

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class DatabaseAway(Exception):
    """No connection is available, or it broke during use (the outcome of the call is then unknown)."""


class PoolBusy(Exception):
    """All connections stayed in use for too long; nothing was sent."""


class Sessions:
    """At most `size` connections for the DSN's role; the most recently used one is leased first.

    A connection caches its query plans. For the planner's functions, planning takes longer than running, so a lease
    for a `purpose` prefers a connection that has already served that purpose.
    """

    def __init__(self, dsn: str, size: int = 24, *, guests: int = 8, application_name: str = "gateway") -> None:
        """`guests`: how many connections may serve guests at the same time; the rest are reserved for trusted
        callers."""
        self._dsn = dsn
        self._application_name = application_name
        self._idle: list[AsyncConnection] = []
        self._served: WeakKeyDictionary[AsyncConnection, set[str]] = WeakKeyDictionary()
        self._free = asyncio.Semaphore(size)
        self._for_guests = asyncio.Semaphore(guests)
        self._closed = False

    @contextlib.asynccontextmanager
    async def lease(self, purpose: str = "", *, guest: bool = False) -> AsyncIterator[AsyncConnection]:
        """Lease one autocommit connection. Raises DatabaseAway or PoolBusy."""
        if guest:
            await _acquire(self._for_guests)
            try:
                async with self.lease(purpose) as connection:
                    yield connection
            finally:
                self._for_guests.release()
            return
        await _acquire(self._free)
        try:
            connection = await self._take(purpose)
            self._served.setdefault(connection, set()).add(purpose)
            try:
                yield connection
            except asyncio.CancelledError:
                # The client disconnected while Postgres may still be running its statement on this connection.
                await _discard(connection)
                raise
            except (psycopg.Error, OSError) as error:
                if connection.closed or _lost(error):
                    await _discard(connection)
                    await self.forget()
                    raise DatabaseAway(str(error)) from error
                raise
            finally:
                if connection.closed or self._closed:
                    await _discard(connection)
                else:
                    self._idle.append(connection)
        finally:
            self._free.release()

    async def forget(self) -> None:
        """Discard every idle connection: after a database restart all of them are dead."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await _discard(connection)

    async def close(self) -> None:
        """Close the idle connections now, and the leased ones when they are returned."""
        self._closed = True
        await self.forget()

    async def _take(self, purpose: str) -> AsyncConnection:
        self._idle = [connection for connection in self._idle if not connection.closed]
        if self._idle:
            served = (n for n in reversed(range(len(self._idle))) if purpose in self._served.get(self._idle[n], ()))
            return self._idle.pop(next(served, -1))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await AsyncConnection.connect(
                    self._dsn, autocommit=True, prepare_threshold=0, application_name=self._application_name
                )
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise DatabaseAway(str(error)) from error
        connection.prepared_max = 500
        connection.adapters.register_dumper(JsonBody, _JsonBodyDumper)
        connection.adapters.register_loader("json", _RawLoader)
        return connection


async def _acquire(free: asyncio.Semaphore) -> None:
    try:
        async with asyncio.timeout(ACQUIRE_SECONDS):
            await free.acquire()
    except TimeoutError as error:
        raise PoolBusy from error


def _lost(error: psycopg.Error | OSError) -> bool:
    """Whether an error means that the connection is lost: Postgres is shutting down, or the error has no SQLSTATE.

    psycopg may not have marked such a connection as closed yet. A parameter that cannot be encoded is a mistake of the
    caller, not a lost connection.
    """
    if isinstance(error, OSError):
        return True
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError))
    return error.sqlstate.startswith(("08", "57P0"))


async def _discard(connection: AsyncConnection) -> None:
    with contextlib.suppress(psycopg.Error, OSError):
        await cast("AsyncConnection[object]", connection).close()
