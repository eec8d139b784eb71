"""The database that the SQL tests share: nothing of one test reaches the next, and whoever breaks that is told."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from api_actors import Farm
from planner_harness import World
from shared_database import SharedDatabase

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer

FAULT = (
    "insert into public.alerts (user_id, account_id, kind, reason, message)"
    " values (%s, %s, 'planner', 'planner_error', 'a planted fault')"
)


@pytest.fixture
def shared(postgres_server: PostgresServer, template_database: Database) -> Iterator[SharedDatabase]:
    """One that only this test breaks."""
    own = SharedDatabase(postgres_server, template_database)
    yield own
    own.close()


def play(shared: SharedDatabase, test: Callable[[World], object]) -> None:
    """As pytest would run this test."""
    with shared.rolled_back() as connection:
        test(World(connection))


def commits_and_goes_on(world: World) -> None:
    world.db.execute("commit")
    world.db.execute("begin")
    world.add_account("M")


def forgets_a_savepoint(world: World) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        world.one("select 1 / 0")


def writes_elsewhere(world: World) -> None:
    with psycopg.connect(world.db.info.dsn, password=world.db.info.password, autocommit=True) as other:
        other.execute("insert into auth.users (id, email) values (gen_random_uuid(), 'somebody.else@example.test')")


def meets_a_fault(world: World) -> None:
    world.add_account("M")
    world.db.execute(FAULT, (world.user, world.accounts["M"]))


def is_clean(world: World) -> None:
    """The user is this world's own."""
    assert world.rows("select id::text from auth.users") == [{"id": world.user}]
    assert world.rows("select id from public.trading_accounts union all select account_id from public.alerts") == []


def test_nothing_of_a_test_is_left_and_the_next_has_the_same_connection(shared: SharedDatabase) -> None:
    with shared.rolled_back() as first:
        world = World(first)
        world.add_account("M")
        world.db.execute("update public.system_config set value = '13.5' where key = 'lease_s'")
        world.db.execute("create table public.of_a_test ()")
    with shared.rolled_back() as second:
        assert second is first
        world = World(second)
        is_clean(world)
        assert world.one("select count(*) from public.system_config where value = '13.5'") == 0
        assert world.one("select to_regclass('public.of_a_test')") is None


@pytest.mark.parametrize(
    "test", [lambda world: world.db.commit(), commits_and_goes_on], ids=["at the end", "under way"]
)
def test_a_test_that_commits_fails_and_the_next_gets_a_clean_database(
    shared: SharedDatabase, test: Callable[[World], object]
) -> None:
    with pytest.raises(AssertionError, match=r"its transaction was committed.*own_database"):
        play(shared, test)
    play(shared, is_clean)


def test_rows_of_another_connection_are_noticed(shared: SharedDatabase) -> None:
    with pytest.raises(AssertionError, match="users that another connection made"):
        play(shared, writes_elsewhere)
    play(shared, is_clean)


def test_a_lock_of_the_session_is_noticed(shared: SharedDatabase) -> None:
    with pytest.raises(AssertionError, match="a lock of the session"):
        play(shared, lambda world: world.db.execute("select pg_advisory_lock(1)"))


def test_a_test_that_rolls_back_by_itself_fails(shared: SharedDatabase) -> None:
    with pytest.raises(AssertionError, match="has ended the transaction"):
        play(shared, lambda world: world.db.rollback())


def test_a_statement_that_fails_outside_a_savepoint_is_told(shared: SharedDatabase) -> None:
    with pytest.raises(AssertionError, match=r"broke the transaction .* savepoint"):
        play(shared, forgets_a_savepoint)
    play(shared, is_clean)


def test_a_fault_of_the_planner_fails_the_test_before_it_is_rolled_back(shared: SharedDatabase) -> None:
    with pytest.raises(AssertionError, match="the planner's own code failed"):
        play(shared, meets_a_fault)
    play(shared, is_clean)


def test_a_session_that_ended_is_replaced(shared: SharedDatabase) -> None:
    with pytest.raises(psycopg.OperationalError):
        play(shared, lambda world: world.db.execute("select pg_terminate_backend(pg_backend_pid())"))
    play(shared, is_clean)


def test_role_and_claims_end_with_each_call(farm: Farm, world: World) -> None:
    who = "select current_user::text as role, current_setting('request.jwt.claims', true) as claims"
    farm.agent("c")
    assert farm.row(who) == {"role": "supabase_admin", "claims": ""}
    world.copy("M", "F")
    assert farm.row(who) == {"role": "supabase_admin", "claims": ""}


def test_a_database_of_its_own_wants_the_mark(request: pytest.FixtureRequest, farm: Farm) -> None:
    with pytest.raises(pytest.fail.Exception, match="own_database"):
        request.getfixturevalue("database")
    with pytest.raises(pytest.fail.Exception, match="own_database"):
        farm.elsewhere(farm.service)


@pytest.mark.own_database
def test_the_mark_gives_a_database_to_which_others_may_connect(database: Database, farm: Farm, world: World) -> None:
    assert farm.database is database
    with database.connect() as other:
        assert len(other.execute("select from public.trading_accounts").fetchall()) == len(world.accounts)
