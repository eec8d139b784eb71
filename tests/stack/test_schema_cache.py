"""The schema that the API knows: read again for what is unknown, but not as often as a guest asks."""

import asyncio

from agent.stack.connection_pool import Sessions
from agent.stack.database import Database
from agent.stack.passwords import REST
from agent.stack.rest.cache import PAUSE_SECONDS, SchemaCache
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


async def test_who_misses_something_waits_for_a_reading_that_another_began(database: Database) -> None:
    """The notice of a change arrives while a request for what is new waits; its reading takes a while."""
    sessions = Sessions(database.dsn_of(REST), size=1)
    cache = SchemaCache(sessions)
    await cache.refresh()
    with database.connect("postgres") as connection:
        connection.execute("create table public.probe_new (id integer)")

    async def miss() -> bool:
        await cache.refresh_for_missing()
        return ("public", "probe_new") in cache.schema.relations

    missing = asyncio.create_task(miss())
    await asyncio.sleep(0)  # it has asked
    async with sessions.lease():  # the only connection: the reading begins and cannot go on
        reading = asyncio.create_task(cache.refresh())
        await asyncio.wait([missing], timeout=2 * PAUSE_SECONDS)
    assert await missing
    await reading
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
