"""What the server itself keeps in the database: day partitions, the publication, old messages for replay."""

from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from agent.local.realtime.frames import Broadcast

PUBLICATION = "supabase_realtime_messages_publication"

# Hosted's server makes both (nothing in SQL does): partitions for yesterday … +3 days in UTC, and the publication.
# One advisory lock, because two servers may start on one database at the same moment.
PREPARE_SQL = f"""
do $$
declare
  v_day date;
  v_name text;
begin
  perform pg_advisory_xact_lock(hashtext('realtime.messages partitions'));
  if (select relkind from pg_class where oid = 'realtime.messages'::regclass) = 'p' then
    for v_day in select generate_series(-1, 3) + (now() at time zone 'utc')::date loop
      v_name := 'messages_' || to_char(v_day, 'YYYY_MM_DD');
      if to_regclass('realtime.' || v_name) is null then
        execute format('create table realtime.%I partition of realtime.messages for values from (%L) to (%L)',
                       v_name, v_day::timestamp, (v_day + 1)::timestamp);
      end if;
    end loop;
  end if;
  if not exists (select from pg_publication where pubname = '{PUBLICATION}') then
    create publication {PUBLICATION} for table realtime.messages with (publish = 'insert');
  end if;
end
$$
"""

_EXPIRE_SQL = """
select c.relname
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'realtime.messages'::regclass
  and c.relname ~ '^messages_\\d{4}_\\d{2}_\\d{2}$'
  and to_date(right(c.relname, 10), 'YYYY_MM_DD') + 1 < (now() at time zone 'utc') - make_interval(hours => %s)
"""

_REPLAY_SQL = """
select id::text, event, payload::text
from (
  select id, event, payload, inserted_at
  from realtime.messages
  where topic = %s and extension = 'broadcast' and private and payload is not null and event is not null
    and inserted_at >= %s
  order by inserted_at desc
  limit %s
) newest
order by inserted_at
"""


@dataclass(frozen=True, slots=True)
class MessageStore:
    """Reads and keeps `realtime.messages` with the server's own role."""

    pool: AsyncConnectionPool

    async def prepare(self) -> None:
        """Make missing partitions and the publication; may be repeated."""
        async with self.pool.connection(timeout=5) as connection:
            await connection.execute(PREPARE_SQL)

    async def expire(self, hours: int) -> None:
        """Drop the partitions whose newest possible row is older than `hours`."""
        async with self.pool.connection(timeout=5) as connection:
            for (name,) in await (await connection.execute(_EXPIRE_SQL, (hours,))).fetchall():
                await connection.execute(f'drop table realtime."{name}"'.encode())

    async def replay(self, topic: str, since_ms: float, limit: int) -> list[Broadcast]:
        """The newest private broadcasts of a topic since a moment (Unix ms), oldest first."""
        since = datetime.fromtimestamp(since_ms / 1000, UTC).replace(tzinfo=None)
        async with self.pool.connection(timeout=5) as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_REPLAY_SQL, (topic, since, limit))
            rows = await cursor.fetchall()
        return [Broadcast(topic, event, payload.encode(), key, replayed=True) for key, event, payload in rows]
