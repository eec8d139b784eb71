"""A copier is removed, or trading stopped, while its master trades: forced with two real connections."""

from collections.abc import Iterator
from typing import Any

import pytest
from planner_harness import World
from two_connections import Session, in_background, wait_until_blocked

from agent.stack.database import Database

pytestmark = pytest.mark.own_database

MODES = ("preserve", "close_gracefully", "close_now")


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with database.connect() as connection:
        w = World(connection)
        w.add_account("M", vps="a")
        w.add_account("F", vps="b")
        w.copy("M", "F")
        yield w
        assert w.unexplained() == 0


@pytest.fixture
def sessions(database: Database, world: World) -> Iterator[tuple[Session, Session]]:
    pair = Session(database, world), Session(database, world)
    with pair[0].db, pair[1].db:
        yield pair


def event(world: World, kind: str = "opened", position: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"account_id": world.accounts["M"], "epoch": 1, "events": [world.event(kind, position or world.position())]}


def removal(world: World, mode: str) -> dict[str, str]:
    return {"copier_id": world.copiers["M>F"], "mode": mode}


@pytest.mark.parametrize("mode", MODES)
def test_an_open_that_waits_for_a_removal_is_refused_by_it(
    world: World, sessions: tuple[Session, Session], mode: str
) -> None:
    world.opened("M")
    world.settle()
    user, master = sessions
    user.begin(world.user)
    user.say("remove_copier", removal(world, mode))
    thread, done = in_background(lambda: master.finish("M", "queue_trade_copy", event(world)))
    wait_until_blocked(world)
    user.db.commit()
    thread.join(10)
    assert done
    assert [e["action"] for e in world.executions("F")] == ["open", *(["close"] if mode == "close_now" else [])]
    # a copier that is gone when its master opens has nothing to explain
    assert world.reasons("F") == ({} if mode == "preserve" else {"copier_removed": 1})


@pytest.mark.parametrize(
    ("mode", "left"), [("preserve", [("buy", "1.00")]), ("close_gracefully", [("buy", "1.00")]), ("close_now", [])]
)
def test_a_removal_that_waits_for_an_open_deals_with_it(
    world: World, sessions: tuple[Session, Session], mode: str, left: list[tuple[str, str]]
) -> None:
    user, master = sessions
    master.call("M", "queue_trade_copy", event(world))
    thread, done = in_background(lambda: user.outcome(world.user, "remove_copier", removal(world, mode)))
    wait_until_blocked(world)
    master.db.commit()
    thread.join(10)
    assert done == ["done"]
    opening = world.open_executions("F")[0]
    assert opening["cancel_requested_at"] is not None
    world.fill(opening)  # the request came too late
    for e in world.open_executions("F"):
        world.report(e, "completed", filled_lots="0") if e["ticket"] is None else world.fill(e)
    world.settle()
    assert world.book("F") == left


def test_a_graceful_removal_does_not_lose_the_close_that_waits_for_it(
    world: World, sessions: tuple[Session, Session]
) -> None:
    p = world.opened("M")
    world.settle()
    user, master = sessions
    user.begin(world.user)
    user.say("remove_copier", removal(world, "close_gracefully"))
    closing = event(world, "closed", p | {"lots": "0"})
    thread, done = in_background(lambda: master.finish("M", "queue_trade_copy", closing))
    wait_until_blocked(world)
    user.db.commit()
    thread.join(10)
    assert done
    world.settle()
    assert world.book("F") == []


def operator(world: World) -> str:
    user = world._user("operator@example.test")
    world.db.execute("insert into public.operators (user_id) values (%s)", (user,))
    return user


def test_no_open_is_planned_once_trading_has_been_stopped(world: World, sessions: tuple[Session, Session]) -> None:
    """The event began first, and waits; when it goes on, the switch counts."""
    switch, master = sessions
    switch.begin(operator(world))
    switch.say("set_trading", {"state": "monitor", "reason": "a bad feed"})
    thread, done = in_background(lambda: master.finish("M", "queue_trade_copy", event(world)))
    wait_until_blocked(world)
    switch.db.commit()
    thread.join(10)
    assert done
    assert world.executions("F") == []
    assert world.reasons("F") == {"trading_monitor": 1}


def test_a_stop_calls_back_the_open_that_it_waited_for(world: World, sessions: tuple[Session, Session]) -> None:
    switch, master = sessions
    who = operator(world)
    master.call("M", "queue_trade_copy", event(world))
    stop = {"state": "off", "reason": "a bad feed"}
    thread, done = in_background(lambda: switch.outcome(who, "set_trading", stop))
    wait_until_blocked(world)
    master.db.commit()
    thread.join(10)
    assert done == ["done"]
    (opening,) = world.open_executions("F")
    assert opening["cancel_requested_at"] is not None


def test_the_switch_turns_even_while_a_plan_hangs_and_the_upkeep_does_the_rest(
    world: World, sessions: tuple[Session, Session]
) -> None:
    switch, hanging = sessions
    who = operator(world)
    p = world.opened("M")
    world.opened("M")
    hanging.hold("F")
    switch.begin(who)
    answer = switch.say("set_trading", {"state": "off", "reason": "a bad feed"})
    switch.db.commit()
    assert (answer["state"], answer["settled"]) == ("off", False)
    hanging.db.rollback()
    assert all(e["cancel_requested_at"] is None for e in world.open_executions("F"))
    world.db.execute("select private.maintain()")
    assert all(e["cancel_requested_at"] is not None for e in world.open_executions("F"))
    assert world.one("select settled from public.trading_switch")
    assert p


def test_the_upkeep_does_not_wait_for_a_follower_that_is_being_planned(
    world: World, sessions: tuple[Session, Session]
) -> None:
    p = world.opened("M")
    world.settle()
    world.as_user("remove_copier", removal(world, "close_gracefully"))
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    sessions[0].hold("F")
    world.db.execute("select private.finish_removals()")
    assert world.one("select removed_at from public.copiers") is None
    sessions[0].db.rollback()
    world.db.execute("select private.finish_removals()")
    assert world.one("select removed_at from public.copiers") is not None


def resync(world: World, p: dict[str, Any]) -> dict[str, Any]:
    return {
        "copier_id": world.copiers["M>F"],
        "items": [{"kind": "missing", "master_ticket": p["ticket"], "action": "copy"}],
    }


def skipped(world: World) -> dict[str, Any]:
    """A position of the master that was not copied."""
    p = world.position()
    world.send("M", world.event("opened", p, age_s=3600))
    return p


def test_two_resyncs_at_once_open_once(world: World, sessions: tuple[Session, Session]) -> None:
    p = skipped(world)
    first, second = sessions
    first.begin(world.user)
    assert first.say("resync_copier", resync(world, p))["items"][0]["result"] == "queued"
    second.begin(world.user)
    thread, done = in_background(lambda: second.say("resync_copier", resync(world, p)))
    wait_until_blocked(world)
    first.db.commit()
    thread.join(10)
    second.db.commit()
    assert done[0]["items"][0]["result"] == "nothing_to_do"
    world.settle()
    assert world.book("F") == [("buy", "1.00")]


def test_a_close_that_waits_for_a_resync_closes_what_it_opens(world: World, sessions: tuple[Session, Session]) -> None:
    p = skipped(world)
    user, master = sessions
    user.begin(world.user)
    user.say("resync_copier", resync(world, p))
    closing = event(world, "closed", p | {"lots": "0"})
    thread, done = in_background(lambda: master.finish("M", "queue_trade_copy", closing))
    wait_until_blocked(world)
    user.db.commit()
    thread.join(10)
    assert done
    opening, close = world.open_executions("F")
    assert (opening["action"], close["action"], close["after_id"]) == ("open", "close", opening["step_id"])


def test_a_resync_that_waits_for_a_close_opens_nothing(world: World, sessions: tuple[Session, Session]) -> None:
    p = skipped(world)
    user, master = sessions
    master.call("M", "queue_trade_copy", event(world, "closed", p | {"lots": "0"}))
    user.begin(world.user)
    thread, done = in_background(lambda: user.say("resync_copier", resync(world, p)))
    wait_until_blocked(world)
    master.db.commit()
    thread.join(10)
    user.db.commit()
    assert done[0]["items"][0]["result"] == "nothing_to_do"
    assert world.executions("F") == []


def test_a_resync_that_waits_for_a_removal_is_refused(world: World, sessions: tuple[Session, Session]) -> None:
    p = skipped(world)
    live = world.opened("M")
    world.settle()
    remover, user = sessions
    remover.begin(world.user)
    remover.say("remove_copier", removal(world, "close_gracefully"))
    thread, done = in_background(lambda: user.outcome(world.user, "resync_copier", resync(world, p)))
    wait_until_blocked(world)
    remover.db.commit()
    thread.join(10)
    assert done == ["TC307"]
    assert live
