"""The gateway's pool: which errors mean a lost connection; a lost connection is never leased again."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import psycopg
import pytest

from agent.stack.connection_pool import DatabaseAway, Sessions

if TYPE_CHECKING:
    from agent.stack.database import Database

NUMBER = "select pg_backend_pid()"


@pytest.fixture
async def sessions(database: "Database") -> AsyncIterator[Sessions]:
    pool = Sessions(database.dsn, size=1)
    yield pool
    await pool.close()


async def backend(sessions: Sessions) -> int:
    async with sessions.lease() as connection:
        row = await (await connection.execute(NUMBER)).fetchone()
        assert row is not None
        return int(row[0])


async def test_a_session_that_postgres_ends_is_a_database_away(sessions: Sessions) -> None:
    first = await backend(sessions)
    with pytest.raises(DatabaseAway, match="terminating connection"):
        async with sessions.lease() as connection:
            await connection.execute("select pg_terminate_backend(pg_backend_pid())")
    assert await backend(sessions) != first


@pytest.mark.parametrize(
    "lost", [psycopg.InterfaceError("unusable"), psycopg.OperationalError("lost"), OSError(9, "bad file")]
)
async def test_an_error_that_postgres_did_not_send_takes_the_connection_along(
    sessions: Sessions, lost: Exception
) -> None:
    first = await backend(sessions)
    with pytest.raises(DatabaseAway):
        async with sessions.lease():
            raise lost
    assert await backend(sessions) != first


async def test_an_error_of_a_statement_keeps_the_connection(sessions: Sessions) -> None:
    first = await backend(sessions)
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with sessions.lease() as connection:
            await connection.execute("select 1 / 0")
    assert await backend(sessions) == first


async def test_a_server_that_is_not_there_is_a_database_away() -> None:
    sessions = Sessions("host=127.0.0.1 port=1 dbname=nothing")
    with pytest.raises(DatabaseAway):
        await backend(sessions)
