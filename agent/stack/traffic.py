"""Limits how much of the gateway one client may use, so that no flood of requests stops trading.

Agents and the secret key are *trusted*: they are never slowed down. Everybody else is a *guest*. Guests are counted by
address, because on one machine nothing else tells a flood from a careful user; all guests together are counted as well.
A guest that is too fast waits a moment; when the wait would be long, the request is refused (429, 503).
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.stack.authentication import Access, AccessRefused
from agent.stack.guarded_connections import GuardedConnection
from agent.stack.postgrest import problem
from agent.stack.request_body import TURN, drain_small, too_many
from agent.stack.token_bucket import TokenBucket
from agent.stack.trusted_callers import TrustedCallers

WEBSOCKET: Final = "/realtime/v1/websocket"
#: a handshake costs the event loop about as much as this many calls
HANDSHAKE_COST: Final = 5
#: the longest wait of a guest that is too fast
PATIENCE_SECONDS: Final = 2.0
SLOT_SECONDS: Final = 5.0
#: an address that was not seen for this long is forgotten
REMEMBERED_SECONDS: Final = 60.0
CLIENTS_REMEMBERED: Final = 1_000


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    """Limits for guests: rates per second, and bursts."""

    requests_per_client: tuple[float, float] = (400, 800)
    requests: tuple[float, float] = (800, 1600)
    bytes_per_client: tuple[float, float] = (8e6, 32e6)
    bytes_in_all: tuple[float, float] = (16e6, 64e6)
    #: requests in progress at the same time; trusted callers have the same number for themselves
    slots: int = 32
    slots_per_client: int = 24
    waiting: int = 256
    #: the longest time that a request may hold a slot; Edge Functions may run for 150 s
    seconds: float = 60
    function_seconds: float = 160


@dataclass(slots=True)
class Client:
    """The recent usage of one address."""

    requests: TokenBucket
    received: TokenBucket
    slots: asyncio.Semaphore
    last_seen: float = field(default_factory=time.monotonic)


class Traffic:
    """The gateway's middleware that counts guests."""

    def __init__(self, access: Access, trusted: TrustedCallers, limits: TrafficLimits | None = None) -> None:
        self._access = access
        self._trusted = trusted
        self.limits = limits or TrafficLimits()
        self._requests = TokenBucket(*self.limits.requests)
        self._received = TokenBucket(*self.limits.bytes_in_all)
        self._slots = asyncio.Semaphore(self.limits.slots)
        self._waiting = 0
        self._clients: dict[str, Client] = {}

    def middleware(self) -> Middleware:
        """The middleware. It belongs behind the checks of Host and path, and before everything else."""

        @web.middleware
        async def limit_guests(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = request.protocol
            if not isinstance(connection, GuardedConnection):
                return await handler(request)
            connection.request_begins(websocket=request.path == WEBSOCKET)
            try:
                if await self._is_trusted(request):
                    connection.trusted = True
                    response = await handler(request)
                else:
                    response = await self._serve_guest(request, handler)
                if not response.prepared:
                    await drain_small(request)
                return response
            finally:
                connection.request_ends()

        return limit_guests

    async def _is_trusted(self, request: web.Request) -> bool:
        claims = self._claims(request)
        if claims is None:
            return False
        known = self._trusted.known(claims)
        return await self._trusted.is_trusted(claims) if known is None else known

    def _claims(self, request: web.Request) -> Mapping[str, object] | None:
        """Claims of a verified key or token. A bad token is reported by the endpoint itself."""
        try:
            return self._access.caller(request).claims
        except AccessRefused:
            return None

    async def _serve_guest(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        client = self._client(request.remote or "")
        is_websocket = request.path == WEBSOCKET
        refused = await self._slow_down(client, HANDSHAKE_COST if is_websocket else 1)
        if refused is not None:
            return refused
        if is_websocket:
            return await handler(request)
        turn = GuestTurn(self, client)
        request[TURN] = turn
        seconds = self.limits.function_seconds if request.path.startswith("/functions/") else self.limits.seconds
        try:
            # The body is read before a slot is taken, so that a slow sender holds none.
            if not request.body_exists and (refused := await turn.enter()) is not None:
                return refused
            async with asyncio.timeout(seconds):
                return await handler(request)
        except TimeoutError:
            if request.writer.output_size > 0:
                # The response has begun. The connection must break, so that a partial response does not look complete.
                raise ConnectionResetError("the client did not read its response in time") from None
            return problem(
                504, "TC638", f"the request did not finish within {seconds:g} s", hint="request less at once"
            )
        finally:
            turn.leave()

    async def _slow_down(self, client: Client, cost: float) -> web.Response | None:
        wait = max(client.requests.wait_for(cost), self._requests.wait_for(cost))
        if wait > PATIENCE_SECONDS:
            return too_many("too many requests from this address", wait)
        client.requests.take(cost, PATIENCE_SECONDS)
        self._requests.take(cost, PATIENCE_SECONDS)
        if wait:
            await asyncio.sleep(wait)
        return None

    def pay(self, client: Client, byte_count: int) -> float | None:
        """Count bytes of a guest. Returns how long it must wait for them, or None when that is too long."""
        wait = max(client.received.wait_for(byte_count), self._received.wait_for(byte_count))
        if wait > PATIENCE_SECONDS:
            return None
        client.received.take(byte_count, PATIENCE_SECONDS)
        self._received.take(byte_count, PATIENCE_SECONDS)
        return wait

    async def enter(self, client: Client) -> web.Response | None:
        """Wait for one of the client's slots and one of all slots; a response means that the request is refused."""
        if self._waiting >= self.limits.waiting:
            return busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                await client.slots.acquire()
                try:
                    await self._slots.acquire()
                except BaseException:
                    client.slots.release()
                    raise
        except TimeoutError:
            return busy()
        finally:
            self._waiting -= 1
        return None

    def leave(self, client: Client) -> None:
        """Return both slots."""
        self._slots.release()
        client.slots.release()

    def _client(self, address: str) -> Client:
        client = self._clients.get(address)
        if client is None:
            self._forget_idle_clients()
            limits = self.limits
            client = self._clients[address] = Client(
                TokenBucket(*limits.requests_per_client), TokenBucket(*limits.bytes_per_client),
                asyncio.Semaphore(limits.slots_per_client),
            )  # fmt: skip
        client.last_seen = time.monotonic()
        return client

    def _forget_idle_clients(self) -> None:
        if len(self._clients) < CLIENTS_REMEMBERED:
            return
        before = time.monotonic() - REMEMBERED_SECONDS
        self._clients = {a: c for a, c in self._clients.items() if c.last_seen > before or not c.requests.is_full}


class GuestTurn:
    """One request of a guest and the slot that it may hold."""

    __slots__ = ("_client", "_inside", "_traffic")

    def __init__(self, traffic: Traffic, client: Client) -> None:
        self._traffic = traffic
        self._client = client
        self._inside = False

    def pay(self, byte_count: int) -> float | None:
        return self._traffic.pay(self._client, byte_count)

    async def enter(self) -> web.Response | None:
        if self._inside:
            return None
        refused = await self._traffic.enter(self._client)
        self._inside = refused is None
        return refused

    def leave(self) -> None:
        if self._inside:
            self._inside = False
            self._traffic.leave(self._client)


def busy() -> web.Response:
    """503 with Retry-After: all slots for guests are in use."""
    response = problem(503, "TC639", "too many requests are in progress", hint="try again in a few seconds")
    response.headers["Retry-After"] = "2"
    response.force_close()
    return response
