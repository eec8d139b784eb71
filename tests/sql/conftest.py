"""The fixtures of the SQL tests. All tests share one database and one connection: each runs in a transaction that is
rolled back.

Tests that need commits, a second connection, a clock that moves on between calls or the rights of a real login are
marked `own_database`, and get a database of their own.

`connection`: the superuser's, for worlds; `farm`: the verbs of `api_actors`; `world`: masters M and M2, a hedging
follower F and a netting follower N, without copiers; `database`: only for tests with the mark.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from api_actors import Farm
from netting_harness import NettingWorld
from psycopg import pq
from shared_database import SharedDatabase

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer


@pytest.fixture(scope="session")
def shared_database(postgres_server: PostgresServer, template_database: Database) -> Iterator[SharedDatabase]:
    shared = SharedDatabase(postgres_server, template_database)
    yield shared
    shared.close()


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Database:
    if not owns_database(request):
        pytest.fail(
            f"{request.node.name} asks for a database of its own: mark it @pytest.mark.own_database, or use"
            f" `connection`,"
            " `world` or `farm`, which share one database (CONTRIBUTING.md, Tests)",
            pytrace=False,
        )
    own: Database = request.getfixturevalue("database")  # of the folder above
    return own


@pytest.fixture
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's connection, of which nothing is left after the test."""
    if owns_database(request):
        database: Database = request.getfixturevalue("database")
        with database.connect() as own:
            yield own
            refuse_machine_words(own)
    else:
        shared: SharedDatabase = request.getfixturevalue("shared_database")
        with shared.rolled_back() as ours:
            yield ours
            refuse_machine_words(ours)


@pytest.fixture
def farm(request: pytest.FixtureRequest) -> Iterator[Farm]:
    own = owns_database(request)
    verbs = Farm(request.getfixturevalue("database")) if own else Farm.sharing(request.getfixturevalue("connection"))
    yield verbs
    verbs.close()


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[NettingWorld]:
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    w.add_account("M2", vps="a")
    w.add_account("F", vps="b")
    w.add_account("N", vps="b", mode="netting")
    yield w
    assert w.unexplained() == 0


def refuse_machine_words(connection: psycopg.Connection[Any]) -> None:
    """Whatever a test made the database say to people is in words, not in names of the code: max_age_ms, close_all."""
    if connection.info.transaction_status == pq.TransactionStatus.INERROR:
        return  # the test left a refused statement behind
    told = connection.execute(
        """
        select message from public.alerts where message ~ '[a-z]_[a-z]' and kind <> 'planner'  -- which quotes an error
        union all select detail from public.copy_outcomes where detail ~ '[a-z]_[a-z]'
        """
    ).fetchall()
    assert told == [], "people would read names of the code"


def owns_database(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("own_database") is not None
