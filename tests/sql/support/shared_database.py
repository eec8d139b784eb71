"""One database for all tests that need no commit: each of them is a transaction that is rolled back."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer

_numbers = itertools.count(1)
ADVICE = "Put it into a savepoint (`with world.db.transaction():`), or mark the test @pytest.mark.own_database."


class SharedDatabase:
    """Made when the first test wants it; its one connection stays, so that plans and catalogs are read once."""

    def __init__(self, server: PostgresServer, template: Database) -> None:
        self._server, self._template = server, template
        self._database: Database | None = None
        self._connection: psycopg.Connection[Any] | None = None

    @contextmanager
    def rolled_back(self) -> Iterator[psycopg.Connection[Any]]:
        """A superuser's connection inside a transaction, of which nothing is left afterwards.

        It is an error to end the transaction, to break it, or to leave a fault of the planner's own code.
        """
        connection = self._warm()
        connection.row_factory = tuple_row
        connection.execute("begin")
        number = _one(connection, "select pg_current_xact_id()::text")
        try:
            yield connection
            _check(connection, number)
        finally:
            self._undo(connection, number)

    def close(self) -> None:
        """The connection and the database are gone; the next test gets new ones."""
        if self._connection is not None:
            self._connection.close()
        if self._database is not None:
            self._database.drop()
        self._connection = self._database = None

    def _warm(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self.close()
        self._database = Database.create(self._server, f"shared_{getpid()}_{next(_numbers)}", self._template)
        self._connection = self._database.connect()
        return self._connection

    def _undo(self, connection: psycopg.Connection[Any], number: str) -> None:
        try:
            connection.rollback()
            connection.row_factory = tuple_row
            left = _left_behind(connection, number)
        except psycopg.OperationalError:
            # the server was restarted or ended the session: this test fails, not the next one
            connection.close()
            raise
        if left:
            self.close()
            raise AssertionError(f"the test left something in the database that all tests share: {left}. {ADVICE}")


def _check(connection: psycopg.Connection[Any], number: str) -> None:
    if connection.info.transaction_status == TransactionStatus.INERROR:
        raise AssertionError(f"a statement failed and broke the transaction that the test runs in. {ADVICE}")
    connection.row_factory = tuple_row
    if _one(connection, "select pg_current_xact_id_if_assigned()::text") != number:
        raise AssertionError(f"the test has ended the transaction that it runs in. {ADVICE}")
    faults = connection.execute("select message from public.alerts where kind = 'planner'").fetchall()
    assert not faults, "the planner's own code failed"


def _left_behind(connection: psycopg.Connection[Any], number: str) -> str:
    """What of a test is still there after the rollback; every test makes users."""
    if _one(connection, "select pg_xact_status(%s::text::xid8)", number) != "aborted":
        return "its transaction was committed"
    if _one(connection, "select exists (select from auth.users)"):
        return "users that another connection made"
    if _one(connection, "select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())"):
        return "a lock of the session"
    return ""


def _one(connection: psycopg.Connection[Any], query: str, *parameters: object) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    return None if row is None else row[0]
