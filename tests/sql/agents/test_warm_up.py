"""What a session prepares before its first trade: plans, and nothing else."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from planner_harness import World

if TYPE_CHECKING:
    from agent.stack.database import Database

pytestmark = pytest.mark.own_database

PLANS = "select coalesce(sum(total_bytes), 0)::bigint from pg_backend_memory_contexts where name = 'CachedPlan'"
BEAT: dict[str, list[object]] = {"accounts": []}


@pytest.fixture
def world(database: "Database") -> Iterator[World]:
    with database.connect() as connection:
        world = World(connection)
        world.add_account("master")
        world.add_account("follower")
        world.copy("master", "follower")
        yield world


def plans_made(world: World, database: "Database", *, warm: bool) -> int:
    """Bytes of plans that a session makes for its first open."""
    with database.connect() as session:
        world.db, first = session, world.db
        try:
            session.row_factory = first.row_factory
            if warm:
                session.execute("select private.warm_up(false)")
            before: int = world.one(PLANS)
            world.opened("master")
            return int(world.one(PLANS)) - before
        finally:
            world.db = first


def test_most_plans_of_a_first_open_are_made_beforehand(world: World, database: "Database") -> None:
    cold, warm = plans_made(world, database, warm=False), plans_made(world, database, warm=True)
    assert 0 < warm < cold * 0.6


def test_it_writes_nothing_and_locks_no_row(world: World) -> None:
    with world.db.transaction():
        world.one("select private.warm_up(true)")
        assert world.one("select pg_current_xact_id_if_assigned()") is None


def test_a_session_does_it_once_by_itself_and_again_at_each_heartbeat(world: World) -> None:
    world.one("select private.warm_up(false)")
    world.db.execute("alter function private.offer(bigint[], uuid, timestamptz) rename to gone")
    heard: list[str] = []
    world.db.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
    world.one("select private.warm_up(false)")
    assert heard == []
    world.one("select private.warm_up(true)")
    assert [text.partition("(")[0] for text in heard] == ["warm_up: function private.offer"]


def test_a_fault_of_the_planner_does_not_cost_the_lease(world: World) -> None:
    world.db.execute("alter function private.decide(uuid[], text[], uuid[], timestamptz, text) rename to gone")
    world.db.execute("update public.vps_instances set lease_expires_at = now() - interval '1 s' where true")
    answer: dict[str, Any] = world.call(world.agents["a"], "vps_heartbeat", BEAT)
    assert answer["lease_ms"] > 0
