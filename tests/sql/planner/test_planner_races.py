"""Interleavings in which money was lost or doubled, forced with two real connections."""

from collections.abc import Iterator
from typing import Any

import pytest
from planner_harness import World
from two_connections import Session, in_background, wait_until_blocked, wait_until_held_up

from agent.stack.database import Database

pytestmark = pytest.mark.own_database


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with database.connect() as connection:
        w = World(connection)
        w.add_account("M", vps="a")
        w.add_account("F", vps="b")
        w.add_account("N", vps="b")
        yield w
        assert w.unexplained() == 0


@pytest.fixture
def sessions(database: Database, world: World) -> Iterator[tuple[Session, Session]]:
    pair = Session(database, world), Session(database, world)
    with pair[0].db, pair[1].db:
        yield pair


@pytest.fixture
def gate(database: Database, world: World) -> Iterator[Session]:
    """A third connection, that holds locks so that the others queue up."""
    session = Session(database, world)
    with session.db:
        yield session


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


def test_a_close_that_waits_for_a_report_sees_what_the_report_wrote(
    world: World, sessions: tuple[Session, Session]
) -> None:
    """The lost wake-up: the report plans on a mirror without the close, the close waited and must plan on the
    report."""
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
    thread, done = in_background(
        lambda: reporter.finish("F", "report_executions", fill_report(world, execution, "9001"))
    )
    wait_until_blocked(world)
    master.db.commit()
    thread.join(10)
    assert done
    (reduce,) = world.open_executions("F")
    assert (reduce["action"], f"{reduce['lots']:.2f}") == ("reduce", "0.60")


def without_list(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """F's agent has told no symbol yet. Returns what its agent and the master's are about to say."""
    columns = "name, contract_size, tick_size, digits, profit_currency, lots_min, lots_max, lots_step"
    (spec,) = world.rows(f"select {columns} from public.account_symbols where account_id = %s", world.accounts["F"])
    world.db.execute("delete from public.account_symbols where account_id = %s", (world.accounts["F"],))
    world.db.execute(
        "update public.trading_accounts set symbols_complete = false where id = %s", (world.accounts["F"],)
    )
    symbol = {key: value if isinstance(value, int) else str(value) for key, value in spec.items()}
    opening = {"account_id": world.accounts["M"], "epoch": 1, "events": [world.event("opened", world.position())]}
    return {"account_id": world.accounts["F"], "epoch": 1, "symbols": [symbol]}, opening


@pytest.mark.covers("X25")
@pytest.mark.parametrize("first", ["opening", "telling"])
def test_a_symbol_that_is_told_while_a_copy_begins_to_wait_for_it_is_seen(
    world: World, sessions: tuple[Session, Session], first: str
) -> None:
    """The lost wake-up: a plan that read the list without the symbol, and a report that saw nothing waiting."""
    world.copy("M", "F")
    telling, opening = without_list(world)
    calls = [("M", "queue_trade_copy", opening), ("F", "report_account_state", telling)]
    (before, after), (one, other) = (calls if first == "opening" else calls[::-1]), sessions
    one.call(*before)
    thread, done = in_background(lambda: other.finish(*after))
    wait_until_blocked(world)
    one.db.commit()
    thread.join(10)
    assert done
    assert [e["action"] for e in world.executions("F")] == ["open"]
    assert world.one("select count(*) from private.symbol_waits") == 0


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

    first.begin(world.user)
    first.say("save_copier", ends("M", "F"))
    thread, done = in_background(lambda: second.outcome(world.user, "save_copier", ends("F", "M")))
    wait_until_blocked(world)
    first.db.commit()
    thread.join(10)
    assert done == ["TC305"]


def copier_to_n(world: World, master: str = "M") -> dict[str, str]:
    return {"master_account_id": world.accounts[master], "follower_account_id": world.accounts["N"]}


def opened(world: World, master: str = "M") -> dict[str, Any]:
    return {"account_id": world.accounts[master], "epoch": 1, "events": [world.event("opened", world.position())]}


def test_an_event_that_came_while_a_copier_was_being_saved_is_explained(
    world: World, sessions: tuple[Session, Session]
) -> None:
    """The copier's transaction began before the event's, and ends after it."""
    world.copy("M", "F")
    agent, user = sessions
    user.begin(world.user)
    agent.call("M", "queue_trade_copy", opened(world))
    thread, done = in_background(lambda: user.say("save_copier", copier_to_n(world)))
    wait_until_blocked(world)
    agent.db.commit()
    thread.join(10)
    user.db.commit()
    assert done
    assert world.unexplained() == 0


def test_pausing_a_follower_and_an_event_of_its_master_do_not_deadlock(
    world: World, sessions: tuple[Session, Session], gate: Session
) -> None:
    """The event has the lock of the master and waits for its follower's, for which the pause waits, too."""
    master, follower = sorted(["M", "F"], key=lambda name: world.accounts[name])
    world.homes[master], world.homes[follower] = "a", "b"
    for name in (master, follower):
        world.db.execute(
            "update public.account_vps_assignments set vps_id = %s where account_id = %s",
            (world.vps[world.homes[name]], world.accounts[name]),
        )
    world.copy(master, follower)
    agent, user = sessions
    gate.hold(follower)
    pause = {"account_id": world.accounts[follower], "state": "monitor"}
    pausing, paused = in_background(lambda: user.outcome(world.user, "pause_account", pause))
    wait_until_blocked(world)
    event = opened(world, master)
    sending, sent = in_background(lambda: agent.outcome(world.agents["a"], "queue_trade_copy", event))
    wait_until_blocked(world, 2)
    gate.db.rollback()
    pausing.join(20)
    sending.join(20)
    assert paused + sent == ["done", "done"]


def test_saving_a_copier_and_setting_its_mode_do_not_deadlock(
    world: World, sessions: tuple[Session, Session], gate: Session
) -> None:
    copier = world.copy("M", "F")
    first, second = sessions
    gate.hold("M", "F")
    saving, saved = in_background(lambda: first.outcome(world.user, "save_copier", {"id": copier, "name": "x"}))
    wait_until_blocked(world)
    switch = {"copier_id": copier, "mode": "off"}
    switching, switched = in_background(lambda: second.outcome(world.user, "set_copier_mode", switch))
    wait_until_blocked(world, 2)
    gate.db.rollback()
    saving.join(20)
    switching.join(20)
    assert saved + switched == ["done", "done"]
    assert world.rows("select name, mode from public.copiers") == [{"name": "x", "mode": "off"}]


@pytest.mark.parametrize("said", ["event", "report"])
def test_a_follower_that_joined_under_a_waiting_call_is_planned_under_its_lock(
    world: World, sessions: tuple[Session, Session], gate: Session, database: Database, said: str
) -> None:
    """The call read F's followers before it waited for one of them, L; when it goes on, N is one, too, and in other
    hands."""
    world.add_account("L", vps="b")
    world.copy("F", "L")
    world.copy("M", "F")
    world.opened("M")
    (execution,) = world.open_executions("F")
    function, argument = {
        "event": ("queue_trade_copy", opened(world, "F")),
        "report": ("report_executions", fill_report(world, execution, "9001")),
    }[said]
    agent, user = sessions
    gate.hold("L")
    user.begin(world.user)
    user.say("save_copier", copier_to_n(world, "F"))
    thread, done = in_background(lambda: agent.call("F", function, argument))
    wait_until_blocked(world)
    user.db.commit()
    reporter = Session(database, world)
    with reporter.db:
        reporter.hold("N")
        gate.db.rollback()
        wait_until_held_up(world, agent, by=reporter)
        reporter.db.rollback()
        thread.join(10)
        agent.db.commit()
    assert done
    assert len(world.executions("N")) == 1
