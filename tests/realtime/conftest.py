"""A Realtime server on its own port, and both official clients to talk to it."""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import cast

import psycopg
import pytest
from realtime_harness import POLICIES, Hall, Opener, serving, verify
from realtime_peers import ClientName, Node

from agent.stack.database import Database
from agent.stack.passwords import REALTIME
from agent.stack.postgres import PostgresServer
from agent.stack.realtime import Limits, RealtimeServer
from agent.stack.schema import apply_platform
from agent.stack.server_user import temporary_folder

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    # When a connection is lost, realtime-py reads a deprecated attribute of websockets; as an error this would end its
    # listener.
    config.addinivalue_line("filterwarnings", "ignore:ConnectionClosed.code is deprecated:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:ConnectionClosed.reason is deprecated:DeprecationWarning")


@pytest.fixture(params=["python", "js"])
def client(request: pytest.FixtureRequest) -> ClientName:
    """The official client under test; every test that asks for it runs with both."""
    return cast(ClientName, request.param)


@pytest.fixture(scope="session")
def node_process() -> Iterator[Callable[[], Node]]:
    """Node, started when the first test needs it."""
    running: list[Node] = []

    def get() -> Node:
        if not running:
            running.append(Node())
        return running[0]

    yield get
    for node in running:
        node.stop()


@pytest.fixture(scope="session")
def realtime_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """platform.sql and the policies above; shared, because every test has its own topics."""
    database = Database.create(postgres_server, f"realtime_{os.getpid()}_{next(_numbers)}")
    with database.connect() as connection:
        apply_platform(connection)
        postgres_server.passwords.give_to(connection)
        connection.execute(POLICIES)
    yield database
    database.drop()


@pytest.fixture
async def open_hall(
    client: ClientName, realtime_database: Database, node_process: Callable[[], Node]
) -> AsyncIterator[Opener]:
    """Open a server with limits, or on a database, that the test chooses."""
    halls: list[Hall] = []
    async with AsyncExitStack() as stack:

        async def opening(limits: Limits | None = None, database: Database = realtime_database) -> Hall:
            address = database.dsn
            server = RealtimeServer(database.dsn_of(REALTIME), verify, limits, test_hooks=True)
            url = await stack.enter_async_context(serving(server))
            db = await psycopg.AsyncConnection.connect(address, autocommit=True)
            stack.push_async_callback(db.close)
            hall = Hall(server, url, address, db, client, node_process, stack)
            halls.append(hall)
            return hall

        yield opening
    # In every test: the Python client must have understood every frame.
    assert [text for hall in halls for peer in hall.peers for text in peer.unreadable] == []


@pytest.fixture
async def hall(open_hall: Opener) -> Hall:
    return await open_hall()


@pytest.fixture
def topic() -> str:
    """A topic that `authenticated` may read and write, used by one test only."""
    return f"room:{next(_numbers)}"


@pytest.fixture(scope="module")
def lone_postgres() -> Iterator[PostgresServer]:
    """A separate server for tests that stop it."""
    with temporary_folder() as folder, PostgresServer(folder, durable=False) as server:
        yield server
