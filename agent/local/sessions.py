"""A pool of database connections for the RPC path: made for one pipelined transaction per request, heals after a restart."""

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
    """JSON text that goes to Postgres as it came."""

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
    """No connection can be had, or it broke while in use (the outcome of the call is then unknown)."""


class PoolBusy(Exception):
    """Every connection was in use for too long; nothing was sent."""


class Sessions:
    """At most `size` connections as the DSN's role, the most recently used first.

    A connection keeps the plans of what it has run, and for the planner's functions making them takes longer than running
    them: so a lease for a `purpose` prefers a connection that served it before.
    """

    def __init__(self, dsn: str, size: int = 16, *, application_name: str = "gateway") -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._idle: list[AsyncConnection] = []
        self._served: WeakKeyDictionary[AsyncConnection, set[str]] = WeakKeyDictionary()
        self._free = asyncio.Semaphore(size)
        self._closed = False

    @contextlib.asynccontextmanager
    async def lease(self, purpose: str = "") -> AsyncIterator[AsyncConnection]:
        """One connection, autocommit. Raises DatabaseAway and PoolBusy."""
        try:
            await asyncio.wait_for(self._free.acquire(), ACQUIRE_SECONDS)
        except TimeoutError as error:
            raise PoolBusy from error
        try:
            connection = await self._take(purpose)
            self._served.setdefault(connection, set()).add(purpose)
            try:
                yield connection
            except asyncio.CancelledError:
                # The client went away: Postgres may still be at work on this connection.
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
        """Drop every idle connection: after a restart of the database all of them are dead."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await _discard(connection)

    async def close(self) -> None:
        """Close what is idle now and what comes back later."""
        self._closed = True
        await self.forget()

    async def _take(self, purpose: str) -> AsyncConnection:
        self._idle = [connection for connection in self._idle if not connection.closed]
        if self._idle:
            served = (n for n in reversed(range(len(self._idle))) if purpose in self._served.get(self._idle[n], ()))
            return self._idle.pop(next(served, -1))
        try:
            connection = await asyncio.wait_for(
                AsyncConnection.connect(self._dsn, autocommit=True, prepare_threshold=0, application_name=self._application_name),
                CONNECT_SECONDS,
            )
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise DatabaseAway(str(error)) from error
        connection.prepared_max = 500
        connection.adapters.register_dumper(JsonBody, _JsonBodyDumper)
        connection.adapters.register_loader("json", _RawLoader)
        return connection


def _lost(error: psycopg.Error | OSError) -> bool:
    """Whether an error took its connection along: Postgres is going down, or the error is not Postgres's own (no SQLSTATE).

    psycopg may not have noticed yet that such a connection is closed. A parameter that cannot be sent is our mistake, not a loss.
    """
    if isinstance(error, OSError):
        return True
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError))
    return error.sqlstate.startswith(("08", "57P0"))


async def _discard(connection: AsyncConnection) -> None:
    with contextlib.suppress(psycopg.Error, OSError):
        await cast("AsyncConnection[object]", connection).close()
