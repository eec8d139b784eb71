"""Fixtures for every test: one embedded Postgres per run, a fresh database per test, a running stack on demand.

The tests of tests/sql share one database instead, see the conftest.py there.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.server_user import temporary_folder

if TYPE_CHECKING:
    from agent.stack.stack import Stack

_numbers = itertools.count(1)

TESTS = Path(__file__).resolve().parent
#: folders whose tests start the product's processes; those that take longest come first, so that the workers end
#: together
PROCESSES = ("e2e", "scenarios", "faults", "web", "stack", "functions", "service", "connection")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start processes are marked, and go first."""

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(TESTS).parts[0]
        return PROCESSES.index(folder) if folder in PROCESSES else len(PROCESSES)

    items.sort(key=place)
    for item in items:
        if place(item) < len(PROCESSES):
            item.add_marker("processes")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The one server of this test run, in a folder of its own; nothing of it is left afterwards."""
    with temporary_folder() as folder, PostgresServer(folder, durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres_server: PostgresServer) -> Database:
    """Platform, migrations and seed, applied once; nobody connects to it."""
    return Database.prepared(postgres_server, "template_tradecopier")


class Copies:
    """Copies of the template. One worker makes and drops them, so that no test waits for the drop of another's."""

    def __init__(self, server: PostgresServer, template: Database, worker: ThreadPoolExecutor) -> None:
        self._server, self._template, self._worker = server, template, worker
        self._next: Future[Database] | None = None
        self._drops: list[Future[None]] = []

    def take(self) -> Database:
        ready, self._next = self._next or self._begin(), None
        try:
            copy = ready.result()
        except psycopg.OperationalError:  # the test before has restarted the server meanwhile
            copy = self._begin().result()
        self._next = self._begin()
        return copy

    def drop(self, copy: Database) -> None:
        """In the background."""
        self._drops.append(self._worker.submit(copy.drop))

    def wait(self) -> None:
        """Until nothing is being made or dropped."""
        self._worker.submit(lambda: None).result()

    def check(self) -> None:
        """Every drop has worked, but where a test has restarted the server: then the copy goes with the server's
        folder."""
        for drop in self._drops:
            failure = drop.exception()
            if failure is not None and not isinstance(failure, psycopg.OperationalError):
                raise failure

    def _begin(self) -> Future[Database]:
        return self._worker.submit(
            Database.create, self._server, f"test_{os.getpid()}_{next(_numbers)}", self._template
        )


@pytest.fixture(scope="session")
def copies(postgres_server: PostgresServer, template_database: Database) -> Iterator[Copies]:
    with ThreadPoolExecutor(1) as worker:
        made = Copies(postgres_server, template_database, worker)
        yield made
        made.check()


@pytest.fixture
def database(request: pytest.FixtureRequest, copies: Copies) -> Iterator[Database]:
    """A fresh database with the project's schema: `.dsn` (superuser), `.connect()`, `.connect_async()`,
    `.dsn_of(role)`.

    The planner survives faults of its own code, so that a test would not see them: at the end there must have been
    none, but where a test plants them (mark `plants_faults`).
    """
    copy = copies.take()
    yield copy
    dropped_without_faults(copies, copy, planted=request.node.get_closest_marker("plants_faults") is not None)


@pytest.fixture
def quiet_server(database: Database, copies: Copies) -> None:
    """No transaction runs in any other database: for what depends on the numbers of transactions, which all databases
    share."""
    copies.wait()


def dropped_without_faults(copies: Copies, copy: Database, *, planted: bool = False) -> None:
    """Drop a database. Fails if the planner's own code failed in it, unless the test made it fail."""
    faults: Sequence[object] = []
    try:
        if not planted:
            with copy.connect() as connection:
                faults = faults_of(connection)
    finally:
        copies.drop(copy)
    assert not faults, "the planner's own code failed"


def faults_of(connection: psycopg.Connection[Any]) -> Sequence[object]:
    return connection.execute("select message from public.alerts where kind = 'planner'").fetchall()


@pytest.fixture(scope="session")
def serve_tables(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Database], None]:
    """Let a stack serve reads of a database's tables to every role, and stop: rights must be the same afterwards."""
    from agent.stack.stack import Stack

    async def serve(database: Database) -> None:
        with database.connect() as connection:
            tables = connection.execute(
                "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p',"
                " 'v')"
            ).fetchall()
        async with Stack(tmp_path_factory.mktemp("serve") / "stack", database=database) as stack:
            user = stack.keys.sign(
                {"sub": "00000000-0000-4000-8000-000000000001", "role": "authenticated", "exp": 4102444800}
            )
            async with aiohttp.ClientSession(stack.url) as client:
                for headers in (
                    {"apikey": stack.publishable_key},
                    {"apikey": stack.publishable_key, "Authorization": f"Bearer {user}"},
                    {"apikey": stack.secret_key},
                ):
                    for (table,) in [*tables, ("no_such_table",)]:
                        async with client.get(f"/rest/v1/{table}", headers=headers) as response:
                            assert response.status < 500, await response.text()

    return lambda database: asyncio.run(serve(database))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(copies: Copies, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator["Stack"]:
    """The running embedded stack that the tests of a module share, on a free port, with a database of its own.

    A test that stops a part of it, needs it empty, or uses up what a client may do in a minute takes `own_stack`.
    """
    from agent.stack.stack import Stack

    copy = copies.take()
    async with Stack(tmp_path_factory.mktemp("shared") / "stack", database=copy) as running:
        yield running
    dropped_without_faults(copies, copy)


@pytest.fixture
async def own_stack(database: Database, tmp_path: Path) -> AsyncIterator["Stack"]:
    """A running embedded stack of this test alone, with the test's `database`."""
    from agent.stack.stack import Stack

    async with Stack(tmp_path / "stack", database=database) as running:
        yield running
