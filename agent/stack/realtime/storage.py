"""The server's own data in the database: day partitions, and old messages for replay."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from agent.stack.realtime.frames import Broadcast

PUBLICATION = "supabase_realtime_messages_publication"

# Hosted's server maintains the day partitions when clients join and every four hours; platform.sql has the function.
PREPARE_SQL = "select realtime.maintain_partitions()"

_REPLAY_SQL = """
select id::text, event, coalesce(convert_to(payload::text, 'utf8'), binary_payload), payload is null
from (
  select id, event, payload, binary_payload, inserted_at
  from realtime.messages
  where topic = %s and extension = 'broadcast' and private and event is not null
    and (payload is not null or binary_payload is not null)
    and inserted_at >= %s
  order by inserted_at desc
  limit %s
) newest
order by inserted_at
"""


@dataclass(frozen=True, slots=True)
class MessageStore:
    """Reads and maintains `realtime.messages` with the server's own role."""

    pool: AsyncConnectionPool

    async def prepare(self) -> None:
        """Create missing day partitions and drop outdated ones. Safe to call again."""
        async with self.pool.connection(timeout=5) as connection:
            await connection.execute(PREPARE_SQL)

    async def slot_gone(self, slot: str) -> None:
        """Wait until Postgres has dropped a temporary slot, shortly after its connection ends. Until then the database
        cannot be dropped."""
        async with self.pool.connection(timeout=1) as connection:
            statement = "select from pg_replication_slots where slot_name = %s"
            while (await connection.execute(statement, (slot,))).rowcount:  # noqa: ASYNC110 - the catalogue has no event
                await asyncio.sleep(0.01)

    async def replay(self, topic: str, since_ms: float, limit: int) -> list[Broadcast]:
        """The newest private broadcasts of a topic since a moment (Unix ms), oldest first."""
        since = datetime.fromtimestamp(since_ms / 1000, UTC).replace(tzinfo=None)
        async with self.pool.connection(timeout=5) as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_REPLAY_SQL, (topic, since, limit))
            rows = await cursor.fetchall()
        return [
            Broadcast(topic, event, payload, key, replayed=True, binary=is_binary)
            for key, event, payload, is_binary in rows
        ]
