"""Interleavings forced with real connections: a call that holds its transaction open, and one that waits for it."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from planner_harness import World
from psycopg.types.json import Jsonb

from agent.stack.database import Database


class Session:
    """A second connection that calls as an agent or a user and keeps its transaction open until told."""

    def __init__(self, database: Database, world: World) -> None:
        self.db = psycopg.connect(database.dsn, row_factory=psycopg.rows.dict_row)
        self.world = world

    def begin(self, who: str) -> None:
        """The transaction begins here, as this user."""
        self.db.execute(
            "select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{who}", "role": "authenticated"}}',)
        )

    def say(self, function: str, argument: Any) -> Any:
        row = self.db.execute(f"select public.{function}(%s) as answer", (Jsonb(argument),)).fetchone()
        assert row is not None
        return row["answer"]

    def call(self, account: str, function: str, argument: Any) -> Any:
        self.begin(self.world.agents[self.world.homes[account]])
        return self.say(function, argument)

    def finish(self, account: str, function: str, argument: Any) -> Any:
        """The call of an account's agent, and the end of its transaction."""
        answer = self.call(account, function, argument)
        self.db.commit()
        return answer

    def outcome(self, who: str, function: str, argument: Any) -> str:
        """What comes of a whole transaction with this call: "done", or its SQLSTATE."""
        try:
            self.begin(who)
            self.say(function, argument)
            self.db.commit()
        except psycopg.Error as error:
            self.db.rollback()
            return error.sqlstate or ""
        return "done"

    def hold(self, *accounts: str) -> None:
        """Keeps the plan locks of these accounts until the transaction ends."""
        ids = [self.world.accounts[name] for name in accounts]
        self.db.execute("select 1 from private.plan_locks where account_id = any(%s::uuid[]) for no key update", (ids,))


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    return thread, done


def wait_until_blocked(world: World, sessions: int = 1) -> None:
    """Until that many backends wait for a lock: asked of the server, at most ten seconds."""
    for _ in range(2000):
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        if world.one(waiting) >= sessions:
            return
        world.one("select pg_sleep(0.005)")
    raise AssertionError("nobody waits for a lock")


def wait_until_held_up(world: World, waiting: Session, by: Session) -> None:
    """Until the one waits for a lock of the other; at most ten seconds."""
    pids = by.db.info.backend_pid, waiting.db.info.backend_pid
    for _ in range(2000):
        if world.one("select %s = any (pg_blocking_pids(%s))", *pids):
            return
        world.one("select pg_sleep(0.005)")
    raise AssertionError("it goes on without that lock")
