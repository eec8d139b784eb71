"""Interleavings in which money was lost or doubled, forced with two real connections."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from planner_world import World
from psycopg.types.json import Jsonb

from agent.local.database import Database


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with database.connect() as connection:
        w = World(connection)
        w.add_account("M", vps="a")
        w.add_account("F", vps="b")
        yield w
        assert w.unexplained() == 0


class Session:
    """A second connection that calls as an agent and keeps its transaction open until told."""

    def __init__(self, database: Database, world: World) -> None:
        self.db = psycopg.connect(database.dsn, row_factory=psycopg.rows.dict_row)
        self.world = world

    def call(self, account: str, function: str, argument: Any) -> Any:
        agent = self.world.agents[self.world.homes[account]]
        self.db.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{agent}", "role": "authenticated"}}',))
        row = self.db.execute(f"select public.{function}(%s) as answer", (Jsonb(argument),)).fetchone()
        assert row is not None
        return row["answer"]

    def finish(self, account: str, function: str, argument: Any) -> Any:
        """The call, and the end of its transaction."""
        answer = self.call(account, function, argument)
        self.db.commit()
        return answer


@pytest.fixture
def sessions(database: Database, world: World) -> Iterator[tuple[Session, Session]]:
    pair = Session(database, world), Session(database, world)
    with pair[0].db, pair[1].db:
        yield pair


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    return thread, done


def wait_until_blocked(world: World) -> None:
    """Until some backend waits for a lock: asked of the server, at most ten seconds."""
    for _ in range(2000):
        if world.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"):
            return
        world.one("select pg_sleep(0.005)")
    raise AssertionError("nobody waits for a lock")


def fill_report(world: World, execution: dict[str, Any], ticket: str) -> dict[str, Any]:
    lots = str(execution["lots"])
    report = {
        "account_id": world.accounts["F"],
        "session": 1,
        "seq": 5000,
        "execution_id": str(execution["id"]),
        "attempt": 1,
        "outcome": "completed",
        "filled_lots": lots,
        "price": "1.1",
        "positions": [world.position(lots, execution["side"], ticket)],
    }
    return {"reports": [report]}


def test_a_close_that_waits_for_a_report_sees_what_the_report_wrote(world: World, sessions: tuple[Session, Session]) -> None:
    """The lost wake-up: the report plans on a mirror without the close, the close waited and must plan on the report."""
    world.copy("M", "F")
    p = world.opened("M")
    (execution,) = world.open_executions("F")
    reporter, master = sessions
    reporter.call("F", "report_executions", fill_report(world, execution, "9001"))
    closing = {"account_id": world.accounts["M"], "epoch": 1, "events": [world.event("closed", p | {"lots": "0"})]}
    thread, done = in_background(lambda: master.finish("M", "queue_trade_copy", closing))
    wait_until_blocked(world)
    reporter.db.commit()
    thread.join(10)
    assert done
    (close,) = world.open_executions("F")
    assert (close["action"], close["ticket"]) == ("close", "9001")


def test_a_report_that_waits_for_a_close_plans_on_it(world: World, sessions: tuple[Session, Session]) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (execution,) = world.open_executions("F")
    reporter, master = sessions
    reduced = {"account_id": world.accounts["M"], "epoch": 1, "events": [world.event("reduced", p | {"lots": "0.40"})]}
    master.call("M", "queue_trade_copy", reduced)
    thread, done = in_background(lambda: reporter.finish("F", "report_executions", fill_report(world, execution, "9001")))
    wait_until_blocked(world)
    master.db.commit()
    thread.join(10)
    assert done
    (reduce,) = world.open_executions("F")
    assert (reduce["action"], f"{reduce['lots']:.2f}") == ("reduce", "0.60")


def test_the_same_event_on_two_connections_makes_one_order(world: World, sessions: tuple[Session, Session]) -> None:
    world.copy("M", "F")
    call = {"account_id": world.accounts["M"], "epoch": 1, "events": [world.event("opened", world.position())]}
    first, second = sessions
    first.call("M", "queue_trade_copy", call)
    thread, done = in_background(lambda: second.finish("M", "queue_trade_copy", call))
    wait_until_blocked(world)
    first.db.commit()
    thread.join(10)
    assert done[0]["results"][0]["status"] == "duplicate"
    assert len(world.executions("F")) == 1


def test_two_copiers_cannot_close_a_circle_together(world: World, sessions: tuple[Session, Session]) -> None:
    first, second = sessions

    def ends(master: str, follower: str) -> dict[str, str]:
        return {"master_account_id": world.accounts[master], "follower_account_id": world.accounts[follower]}

    def save(session: Session, copier: dict[str, str]) -> str:
        session.db.execute(
            "select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{world.user}", "role": "authenticated"}}',)
        )
        try:
            session.db.execute("select public.save_copier(%s)", (Jsonb(copier),))
            session.db.commit()
        except psycopg.Error as error:
            session.db.rollback()
            return error.sqlstate or ""
        return "saved"

    session_user = f'{{"sub": "{world.user}", "role": "authenticated"}}'
    first.db.execute("select set_config('request.jwt.claims', %s, true)", (session_user,))
    first.db.execute("select public.save_copier(%s)", (Jsonb(ends("M", "F")),))
    thread, done = in_background(lambda: save(second, ends("F", "M")))
    wait_until_blocked(world)
    first.db.commit()
    thread.join(10)
    assert done == ["TC305"]
