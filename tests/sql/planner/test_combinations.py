"""Features that meet: each is tested where it belongs, here two of them want different things of one copy."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld

D = Decimal


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[NettingWorld]:
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    w.add_account("M2", vps="a")
    w.add_account("F", vps="b")
    w.add_account("N", vps="b", mode="netting")
    yield w
    assert w.unexplained() == 0


def remove(world: NettingWorld, mode: str, pair: str = "M>F") -> Any:
    return world.as_user("remove_copier", {"copier_id": world.copiers[pair], "mode": mode})


# -- netting -----------------------------------------------------------------------------------------------------


def test_a_reduction_that_fills_late_is_booked_although_its_master_has_closed_meanwhile(world: NettingWorld) -> None:
    """What its link was sized from stays known, or no report would be taken; what is sold twice is taken from who
    holds."""
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    world.run()
    q = world.opened("M2", "1.00")
    world.run()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    (reduction,) = world.open_executions("N")
    world.report(reduction, "rejected", reason="market_closed", retryable=True)
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    (increase,) = [e for e in world.open_executions("N") if e["id"] != reduction["id"]]
    world.report(increase, "rejected", reason="market_closed", retryable=True)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.deal(reduction)
    world.come_due()
    world.run()
    assert world.shares() == {"M2": world.net}
    world.send("M2", world.event("closed", q | {"lots": "0"}))
    world.run()
    assert world.net == 0


@pytest.mark.parametrize("how", ["pause", "switch", "removal", "copier"])
def test_an_open_that_waits_for_its_deal_is_given_up_when_nothing_may_be_opened(world: NettingWorld, how: str) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M2", "1.00")
    (first,) = world.open_executions("N")
    world.opened("M", "0.40")
    assert len(world.open_executions("N")) == 1
    if how == "pause":
        world.as_user("pause_account", {"account_id": world.accounts["N"], "state": "monitor"})
    elif how == "switch":
        world.db.execute("select private.stop_opening(%s, 'equity_floor', clock_timestamp())", (world.accounts["N"],))
    elif how == "removal":
        remove(world, "close_gracefully", "M>N")
    else:
        world.as_user("set_copier_mode", {"copier_id": world.copiers["M>N"], "mode": "monitor"})
    world.deal(first)
    world.come_due()
    assert world.open_executions("N") == []
    assert world.net == D("1.00")


def test_flattening_leaves_the_users_part_of_a_net_position_that_a_copy_opened(world: NettingWorld) -> None:
    """The position has the tag of the copy, yet the volume beyond the copy's share is its user's own."""
    world.copy("M", "N")
    world.opened("M", "1.00")
    (first,) = world.open_executions("N")
    world.net = D("1.00")
    world.report(first, positions=world.state(tag=str(first["id"])), filled_lots="1.00", price="1.10000")
    world.net = D("1.30")
    world.send("N", world.event("increased", *world.state(tag=str(first["id"]))))
    world.as_user("flatten_account", {"account_id": world.accounts["N"]})
    world.run()
    world.db.execute("select private.maintain_executions()")
    world.run()
    assert world.net == D("0.30")
    for _ in range(2):
        world.send("N", world.event("snapshot", positions=world.state(tag=str(first["id"]))))
    assert world.one("select copy_state from public.trading_accounts where id = %s", world.accounts["N"]) == "off"


# -- removal -----------------------------------------------------------------------------------------------------


def test_a_close_that_waits_is_dropped_when_the_copier_is_to_go_gracefully_after_all(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    remove(world, "close_now")
    (close,) = world.open_executions("F")
    world.report(close, "rejected", reason="market_closed", retryable=True)
    remove(world, "close_gracefully")
    world.come_due()
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


# -- pending orders ----------------------------------------------------------------------------------------------


def test_a_copy_that_was_left_to_its_user_is_not_taken_back_by_a_repeated_report(world: NettingWorld) -> None:
    world.copy("M", "F", early_fill_policy="keep")
    order = world.position("1.00", kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", order))
    (place,) = world.open_executions("F")
    ticket = world.fill(place)
    filled = world.position("1.00", "buy", ticket, tag=str(place["id"]), price="1.09000")
    world.send("F", world.event("opened", filled))
    world.send("M", world.event("cancelled", order | {"lots": "0"}))
    assert world.one("select reason from public.position_links") == "master_never_filled"
    world.report(place, positions=[filled], filled_lots="1.00", price="1.09000")
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    assert world.one("select reason from public.position_links") == "master_never_filled"


# -- brokers that close in order ---------------------------------------------------------------------------------


def test_tickets_exchanged_for_a_reduction_get_the_levels_of_their_new_copies(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00", sl="1.05000")
    first = world.fill(world.open_executions("F")[0])
    p = world.opened("M", "1.00", sl="1.09000")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    (reduction,) = world.open_executions("F")
    world.report(reduction, "rejected", reason="fifo")
    for _ in range(3):
        world.come_due()
        world.settle()
    asked = [(e["ticket"], e["sl"]) for e in world.executions("F") if e["action"] == "modify"]
    assert sorted(asked) == [(first, D("1.09000")), (reduction["ticket"], D("1.05000"))]
    assert world.book("F") == [("buy", "0.40"), ("buy", "1.00")]


# -- heartbeats --------------------------------------------------------------------------------------------------


@pytest.mark.plants_faults
@pytest.mark.own_database
def test_a_heartbeat_goes_on_when_the_upkeep_of_opens_fails(world: NettingWorld) -> None:
    """A lease that is not renewed moves every account of the VPS: no single order may do that."""
    world.copy("M", "F", delay_min_ms=1000, delay_max_ms=3000)
    world.opened("M", "0.10")
    world.db.execute("update public.trade_execution_queue set next_attempt_at = now() where status = 'retrying'")
    world.db.execute(
        "create or replace function private.fit_second_attempts(p_accounts uuid[], p_now timestamptz) returns void"
        " language plpgsql as $$ begin raise division_by_zero; end $$"
    )
    beat = world.call(world.agents["b"], "vps_heartbeat", {})
    assert beat["executions"] == []


# -- switched off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["account", "copier"])
def test_a_close_that_waits_is_frozen_with_its_copy_and_made_when_it_thaws(world: NettingWorld, how: str) -> None:
    """Off leaves everything alone: also what was to be closed as soon as the market opens."""

    def switch(state: str) -> None:
        if how == "account":
            world.as_user("pause_account", {"account_id": world.accounts["F"], "state": state})
        else:
            world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": state})

    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (close,) = world.open_executions("F")
    world.report(close, "rejected", reason="market_closed", retryable=True)
    switch("off")
    world.come_due()
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    switch("on")
    world.come_due()
    world.settle()
    assert world.book("F") == []


# -- resync ------------------------------------------------------------------------------------------------------


def test_a_late_report_does_not_take_an_adopted_copy_from_its_link(world: NettingWorld) -> None:
    """Its open was given up, the user adopted what was there, then its fill is reported: it is held once, nothing is
    closed."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (first,) = world.open_executions("F")
    world.report(first, "expired", reason="too_old")
    mine = world.position("1.00", tag=str(first["id"]))
    world.send("F", world.event("opened", mine))
    item = {"kind": "missing", "master_ticket": p["ticket"], "ticket": mine["ticket"], "action": "adopt"}
    answer = world.as_user("resync_copier", {"copier_id": world.copiers["M>F"], "items": [item]})
    assert answer["items"][0]["result"] == "adopted"
    world.report(first, positions=[mine], filled_lots="1.00", price="1.10000")
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    assert world.one("select count(*)::int from public.position_links where state = 'live'") == 1
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    assert len([e for e in world.executions("F") if e["action"] == "close"]) == 1


# -- protection --------------------------------------------------------------------------------------------------


def test_an_open_that_no_agent_had_yet_is_not_given_to_one_after_protection(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.db.execute(
        "update public.trade_execution_queue set offered_at = null, vps_id = null where finalized_at is null"
    )
    world.db.execute("select private.stop_opening(%s, 'equity_floor', clock_timestamp())", (world.accounts["F"],))
    assert world.call(world.agents["b"], "vps_heartbeat", {})["executions"] == []


# -- second attempts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_attempts_that_both_fill_leave_one_copy(world: NettingWorld, order: tuple[int, int]) -> None:
    """A broker said no and did it all the same: twice the size is not what was asked for, and follows the master no
    better."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (first,) = world.open_executions("F")
    world.report(first, "rejected", reason="price_changed", retryable=True)
    world.come_due()
    (second,) = world.open_executions("F")
    for n in order:
        world.fill((first, second)[n])
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
