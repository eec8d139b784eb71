"""Authorises private channels by the actual RLS policies on `realtime.messages` (with probe rows, rolled back)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

log = logging.getLogger(__name__)
Extension = Literal["broadcast", "presence"]

_CLAIMS_SQL = """
select set_config('role', %(role)s, true), set_config('realtime.topic', %(topic)s, true),
       set_config('request.jwt.claims', %(claims)s, true), set_config('request.jwt.claim.sub', %(sub)s, true),
       set_config('request.jwt.claim.role', %(role)s, true), set_config('request.headers', %(headers)s, true)
"""


class PolicyError(Exception):
    """A join cannot be authorised now. `code` and message are hosted's."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Subject:
    """The caller: verified claims and the handshake's headers (policies may read both), for one topic."""

    claims: Mapping[str, object]
    headers: Mapping[str, str]
    topic: str

    @property
    def settings(self) -> dict[str, str]:
        return {
            "role": str(self.claims.get("role", "")),
            "topic": self.topic,
            "claims": orjson.dumps(dict(self.claims)).decode(),
            "sub": str(self.claims.get("sub", "")),
            "headers": orjson.dumps(dict(self.headers)).decode(),
        }


@dataclass(frozen=True, slots=True)
class Policies:
    """Evaluates policies in Postgres. They see topic, extension, `realtime.topic()` and the JWT; probes have no event
    or payload."""

    pool: AsyncConnectionPool

    async def readable(self, subject: Subject, extensions: tuple[Extension, ...]) -> frozenset[Extension]:
        """The extensions whose probe row the subject may select. Raises PolicyError when Postgres cannot decide."""
        probes = {str(uuid4()): extension for extension in extensions}
        try:
            async with self.pool.connection(timeout=5) as connection, connection.transaction(force_rollback=True):
                for key, extension in probes.items():
                    await connection.execute(
                        "insert into realtime.messages (id, topic, extension) values (%s, %s, %s)",
                        (key, subject.topic, extension),
                    )
                await connection.execute(_CLAIMS_SQL, subject.settings)
                cursor = await connection.execute(
                    "select id::text from realtime.messages where id = any(%s::uuid[])", (list(probes),)
                )
                return frozenset(probes[key] for (key,) in await cursor.fetchall())
        except (psycopg.Error, PoolTimeout) as error:
            raise _explain(error, subject.topic) from error

    async def writable(self, subject: Subject, extension: Extension) -> bool:
        """Whether the subject may insert. False also when Postgres cannot decide (hosted drops the message then)."""
        try:
            async with self.pool.connection(timeout=5) as connection, connection.transaction(force_rollback=True):
                return await _may_insert(connection, subject, extension)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("realtime_write_policy_failed", extra={"topic": subject.topic, "reason": str(error)})
            return False


async def _may_insert(connection: AsyncConnection[TupleRow], subject: Subject, extension: Extension) -> bool:
    await connection.execute(_CLAIMS_SQL, subject.settings)
    try:
        await connection.execute(
            "insert into realtime.messages (topic, extension, inserted_at, updated_at) values (%s, %s, now(), now())",
            (subject.topic, extension),
        )
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def _explain(error: Exception, topic: str) -> PolicyError:
    if isinstance(error, psycopg.errors.QueryCanceled):
        return PolicyError("QueryCanceled", "The authorization query was canceled")
    if isinstance(error, psycopg.errors.CheckViolation) and "no partition" in str(error):
        return PolicyError("MissingPartition", "Partition for realtime.messages is missing")
    if isinstance(error, psycopg.OperationalError | PoolTimeout) and getattr(error, "sqlstate", None) is None:
        return unreachable()
    if isinstance(error, psycopg.errors.AdminShutdown | psycopg.errors.CannotConnectNow | psycopg.errors.CrashShutdown):
        return unreachable()
    log.warning("realtime_read_policy_failed", extra={"topic": topic, "reason": str(error)})
    return denied(topic)


def denied(topic: str) -> PolicyError:
    """Hosted's refusal of a join without a read right; also its answer to a broken policy or an unknown role."""
    return PolicyError("Unauthorized", f"You do not have permissions to read from this Channel topic: {topic}")


def unreachable() -> PolicyError:
    return PolicyError("UnableToConnectToProject", "Realtime was unable to connect to the project database")
