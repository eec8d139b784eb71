"""Decides which callers are trusted (agents and holders of the secret key), whose requests are not limited."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import psycopg

from agent.stack.connection_pool import DatabaseAway, PoolBusy, Sessions

log = logging.getLogger(__name__)

REMEMBERED: Final = 10_000
#: how long an answer is cached; a retired agent or a new one is noticed after that time
TRUST_SECONDS: Final = 60.0
DOUBT_SECONDS: Final = 10.0
LOOKUPS_AT_ONCE: Final = 2
IS_AGENT: Final = (
    "select exists (select from public.vps_instances v where v.user_id::text = %s and v.retired_at is null)"
)


class TrustedCallers:
    """Queries the database once per user and caches the answer; while the database is away, cached answers stay."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        #: user id → (is an agent, monotonic time after which to query again)
        self._known: OrderedDict[str, tuple[bool, float]] = OrderedDict()
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    def known(self, claims: Mapping[str, object]) -> bool | None:
        """The cached answer for verified claims; None when the database must be queried."""
        role = claims.get("role")
        if role == "service_role":
            return True
        user = claims.get("sub")
        if role != "authenticated" or not isinstance(user, str):
            return False
        found = self._known.get(user)
        return found[0] if found is not None and found[1] > time.monotonic() else None

    async def is_trusted(self, claims: Mapping[str, object]) -> bool:
        """Whether these verified claims belong to an agent or to the secret key."""
        answer = self.known(claims)
        return await self._ask(str(claims["sub"]), claims) if answer is None else answer

    async def _ask(self, user: str, claims: Mapping[str, object]) -> bool:
        async with self._lookups:
            # another task may have queried meanwhile
            answer = self.known(claims)
            if answer is not None:
                return answer
            before = self._known.get(user, (False, 0.0))[0]
            try:
                is_agent, trust = await self._lookup(user), TRUST_SECONDS
            except (DatabaseAway, PoolBusy, psycopg.Error) as error:
                log.warning("agent_lookup_failed", extra={"reason": str(error)})
                is_agent, trust = before, 1.0
            self._known.pop(user, None)
            self._known[user] = is_agent, time.monotonic() + (trust if is_agent else min(trust, DOUBT_SECONDS))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return is_agent

    async def _lookup(self, user: str) -> bool:
        try:
            async with self._sessions.lease("trusted callers") as connection, connection.transaction():
                await connection.execute("set local role service_role")
                cursor = await connection.execute(IS_AGENT, (user,))
                row = await cursor.fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
            # a database without this project's schema
            return False
        return row is not None and row[0] is True
