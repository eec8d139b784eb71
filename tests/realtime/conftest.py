"""A Realtime server on a port of its own, and both official clients to talk to it."""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import cast

import psycopg
import pytest
from realtime_hall import POLICIES, Hall, Opener, serving, verify
from realtime_peers import ClientName, Node

from agent.local.database import Database
from agent.local.lodging import temporary_folder
from agent.local.postgres import PostgresServer
from agent.local.realtime import Limits, RealtimeServer
from agent.local.schema import apply_platform

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fact(id, client=None): shows a fact of agent.local.realtime.facts (make parity)")
    # realtime-py reads a deprecated attribute of websockets when a connection is torn; as an error it would kill its listener.
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
    """The platform's slice and the policies above; shared, because every test has topics of its own."""
    database = Database.create(postgres_server, f"realtime_{os.getpid()}_{next(_numbers)}")
    with database.connect() as connection:
        apply_platform(connection)
        connection.execute(POLICIES)
    yield database
    database.drop()


@pytest.fixture
async def open_hall(client: ClientName, realtime_database: Database, node_process: Callable[[], Node]) -> AsyncIterator[Opener]:
    """Open a server with limits, or on a database, of the test's choice."""
    halls: list[Hall] = []
    async with AsyncExitStack() as stack:

        async def opening(limits: Limits | None = None, dsn: str | None = None) -> Hall:
            address = dsn or realtime_database.dsn
            server = RealtimeServer(address, verify, limits, test_hooks=True)
            url = await stack.enter_async_context(serving(server))
            db = await psycopg.AsyncConnection.connect(address, autocommit=True)
            stack.push_async_callback(db.close)
            hall = Hall(server, url, address, db, client, node_process, stack)
            halls.append(hall)
            return hall

        yield opening
    # Whatever the test was about: the Python client must have understood every frame.
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
    """A server of its own, for tests that stop it."""
    with temporary_folder() as folder, PostgresServer(folder, durable=False) as server:
        yield server
