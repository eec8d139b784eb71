"""The schema that the API knows: read again for what is unknown, but not as often as a guest asks."""

import asyncio

from agent.stack.connection_pool import Sessions
from agent.stack.database import Database
from agent.stack.passwords import REST
from agent.stack.rest.cache import SchemaCache
from agent.stack.rest.relation import Schema


async def test_many_who_miss_something_share_one_reading(database: Database) -> None:
    sessions = Sessions(database.dsn_of(REST))
    cache = SchemaCache(sessions)
    await cache.refresh()
    read: list[Schema] = [cache.schema]

    async def miss() -> None:
        await cache.refresh_for_missing()
        read.append(cache.schema)

    await asyncio.gather(*(miss() for _ in range(50)))
    assert len({id(schema) for schema in read}) == 2
    await sessions.close()


async def test_what_was_made_before_the_question_is_found(database: Database) -> None:
    sessions = Sessions(database.dsn_of(REST))
    cache = SchemaCache(sessions)
    await cache.refresh()
    with database.connect("postgres") as connection:
        for n in range(3):
            connection.execute(f"create table public.probe_{n} (id integer)".encode())
            await cache.refresh_for_missing()
            assert ("public", f"probe_{n}") in cache.schema.relations
    await sessions.close()
