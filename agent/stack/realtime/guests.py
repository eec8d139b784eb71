"""Limits on Realtime for callers other than agents and the secret key, per client (address) and together.

Hosted limits only a project as a whole; here that would let a single client use up what the agents need.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.stack.token_bucket import TokenBucket

CLIENTS_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """Limits: rates per second, and bursts."""

    sockets_per_client: int = 256
    sockets: int = 500
    joins_per_client: tuple[float, float] = (30, 150)
    joins: tuple[float, float] = (100, 400)
    messages_per_client: tuple[float, float] = (400, 2000)
    frame_bytes: int = 256 * 1024
    #: joins whose policies are evaluated in the database at the same time
    questions: int = 3


class Guest(Protocol):
    """A connection, as far as it is counted. `opened_at` is in monotonic time."""

    client: str
    trusted: bool
    has_user: bool
    opened_at: float

    def abort(self) -> None: ...


@dataclass(slots=True)
class _Client:
    joins: TokenBucket
    messages: TokenBucket


class Guests:
    """Counts guests. `is_trusted` decides from verified claims whether a caller is trusted instead."""

    def __init__(
        self, is_trusted: Callable[[Mapping[str, object]], Awaitable[bool]], limits: GuestLimits | None = None
    ) -> None:
        self.is_trusted = is_trusted
        self.limits = limits or GuestLimits()
        #: held while a guest's policies are evaluated in the database
        self.questions = asyncio.Semaphore(self.limits.questions)
        self._joins = TokenBucket(*self.limits.joins)
        self._clients: dict[str, _Client] = {}
        self._sockets: list[Guest] = []

    def opened(self, connection: Guest) -> None:
        """Count a socket.

        New sockets are always accepted, because one may become an agent's; above a limit another is closed.
        """
        self._sockets.append(connection)
        guests = [c for c in self._sockets if not c.trusted]
        of_client = [c for c in guests if c.client == connection.client]
        if len(of_client) > self.limits.sockets_per_client:
            _close_one(of_client)
        elif len(guests) > self.limits.sockets:
            _close_one(guests)

    def closed(self, connection: Guest) -> None:
        self._sockets.remove(connection)

    def may_join(self, client: str) -> bool:
        """Count one more join; returns whether the client's rate and that of all guests allow it."""
        of_client = self._client(client)
        if of_client.joins.wait_for(1) > 0 or self._joins.take(1) is None:
            return False
        return of_client.joins.take(1) is not None

    async def slow_down(self, client: str) -> None:
        """Called before a message of this client is read: waits while the client sends too many."""
        wait = self._client(client).messages.take(1, longest_wait=float("inf"))
        if wait:
            await asyncio.sleep(wait)

    def _client(self, address: str) -> _Client:
        found = self._clients.get(address)
        if found is None:
            if len(self._clients) >= CLIENTS_REMEMBERED:
                self._clients = {a: c for a, c in self._clients.items() if not (c.joins.is_full and c.messages.is_full)}
            found = self._clients[address] = _Client(
                TokenBucket(*self.limits.joins_per_client), TokenBucket(*self.limits.messages_per_client)
            )
        return found


def _close_one(candidates: list[Guest]) -> None:
    """Close the oldest socket that no signed-in user has joined over; if there is none, the oldest."""
    min(candidates, key=lambda c: (c.has_user, c.opened_at)).abort()
