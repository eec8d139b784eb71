"""Fixtures for every test: one embedded Postgres per run, a fresh database per test, a running stack on demand."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from agent.local.database import Database
from agent.local.lodging import temporary_folder
from agent.local.postgres import PostgresServer

if TYPE_CHECKING:
    from agent.local.stack import Stack

_numbers = itertools.count(1)


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
    """Copies of the template, each made while the test before it runs."""

    def __init__(self, server: PostgresServer, template: Database, maker: ThreadPoolExecutor) -> None:
        self._server, self._template, self._maker = server, template, maker
        self._next: Future[Database] | None = None

    def take(self) -> Database:
        ready, self._next = self._next or self._begin(), None
        try:
            copy = ready.result()
        except psycopg.OperationalError:  # the test before has restarted the server meanwhile
            copy = self._begin().result()
        self._next = self._begin()
        return copy

    def wait(self) -> None:
        """Until nothing is being made."""
        if self._next is not None:
            self._next.exception()

    def _begin(self) -> Future[Database]:
        return self._maker.submit(Database.create, self._server, f"test_{os.getpid()}_{next(_numbers)}", self._template)


@pytest.fixture(scope="session")
def copies(postgres_server: PostgresServer, template_database: Database) -> Iterator[Copies]:
    with ThreadPoolExecutor(1) as maker:
        yield Copies(postgres_server, template_database, maker)


@pytest.fixture
def database(request: pytest.FixtureRequest, copies: Copies) -> Iterator[Database]:
    """A fresh database with the project's schema: `.dsn` (superuser), `.connect()`, `.connect_async()`, `.dsn_of(role)`.

    The planner survives faults of its own code, so that a test would not see them: at the end there must have been none, but
    where a test plants them (mark `plants_faults`).
    """
    copy = copies.take()
    yield copy
    faults: Sequence[object] = [] if request.node.get_closest_marker("plants_faults") else faults_of(copy)
    copy.drop()
    assert not faults, "the planner's own code failed"


@pytest.fixture
def quiet_server(database: Database, copies: Copies) -> None:
    """No transaction runs in any other database: for what depends on the numbers of transactions, which all databases share."""
    copies.wait()


def faults_of(database: Database) -> Sequence[object]:
    with database.connect() as connection:
        return connection.execute("select message from public.alerts where kind = 'planner'").fetchall()


@pytest.fixture
async def stack(database: Database, tmp_path: Path) -> AsyncIterator["Stack"]:
    """A running embedded stack on a free port, with a database of its own."""
    from agent.local.stack import Stack

    async with Stack(tmp_path / "stack", database=database) as running:
        yield running
