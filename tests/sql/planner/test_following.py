"""How a copy follows its master: partial closes, increases, re-ticketing, bulk closes, and what comes during an
open."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from planner_harness import World


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    yield w
    assert w.unexplained() == 0


def orders(world: World, account: str = "F") -> list[tuple[str, str, str]]:
    """Every order that the account was told: action, side, lots."""
    return [(e["action"], e["side"], f"{e['lots']:.2f}") for e in world.executions(account)]


@pytest.mark.covers("P1")
def test_a_partial_close_takes_the_same_share_of_the_copy(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.0")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.7"}))
    (reduction,) = world.open_executions("F")
    assert (reduction["action"], f"{reduction['lots']:.2f}", f"{reduction['target_lots']:.2f}") == (
        "reduce",
        "0.15",
        "0.35",
    )
    world.settle()
    assert world.book("F") == [("buy", "0.35")]


@pytest.mark.covers("P4")
def test_a_copy_at_the_minimum_is_held_until_the_master_is_out(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "0.03")
    world.settle()
    assert world.book("F") == [("buy", "0.01")]
    world.send("M", world.event("reduced", p | {"lots": "0.02"}))
    world.settle()
    assert world.book("F") == [("buy", "0.01")]
    assert world.reasons("F") == {"residual_hold": 1}
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    assert orders(world) == [("open", "buy", "0.01"), ("close", "buy", "0.01")]


@pytest.mark.covers("P5")
def test_a_rest_under_a_new_ticket_is_one_reduction_of_the_same_copy(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00", ticket="100")
    world.settle()
    world.send("M", world.event("reduced", world.position("0.70", ticket="101", replaces="100", comment="from #100")))
    world.settle()
    assert world.book("F") == [("buy", "0.70")]
    assert orders(world) == [("open", "buy", "1.00"), ("reduce", "buy", "0.30")]
    assert world.rows("select master_ticket, generation, state from public.position_links") == [
        {"master_ticket": "101", "generation": 1, "state": "live"}
    ]
    # the old ticket's own end, should it still be told, closes nothing
    world.send("M", world.event("closed", world.position("0", ticket="100")))
    assert world.open_executions() == []
    world.send("M", world.event("closed", world.position("0", ticket="101")))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("P7")
@pytest.mark.parametrize("told", ["the new ticket", "both"])
def test_a_partial_close_that_gives_the_copy_a_new_ticket_is_one_booking(world: World, told: str) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (opened,) = world.open_executions("F")
    world.fill(opened, ticket="500")
    world.send("M", world.event("reduced", p | {"lots": "0.70"}))
    (reduction,) = world.open_executions("F")
    assert reduction["ticket"] == "500"
    rest = world.position("0.70", ticket="501", replaces="500", comment="from #500")
    gone = world.position("0", ticket="500")
    world.report(reduction, positions=[gone, rest] if told == "both" else [rest], filled_lots="0.30", price="1.10050")
    # one call: the fill and the copy's ticket stand side by side
    assert world.rows("select ticket, lots::text from private.link_legs") == [{"ticket": "501", "lots": "0.70"}]
    booked = world.rows(
        "select status, filled_lots::text from public.trade_execution_queue where id = %s", reduction["id"]
    )
    assert booked == [{"status": "completed", "filled_lots": "0.30"}]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (close,) = world.open_executions("F")
    assert (close["action"], close["ticket"], f"{close['lots']:.2f}") == ("close", "501", "0.70")
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("P8")
def test_a_second_position_of_the_symbol_is_a_copy_of_its_own(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    first, second = world.opened("M", "1.00"), world.opened("M", "0.40")
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "0.50")]
    assert world.one("select count(*) from public.position_links where state = 'live'") == 2
    world.send("M", world.event("closed", first | {"lots": "0"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20")]
    world.send("M", world.event("closed", second | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("P9")
def test_an_increase_of_the_position_is_sized_by_the_settings_of_now(world: World) -> None:
    copier = world.copy("M", "F")
    p = world.opened("M", "1.0")
    world.settle()
    world.as_user("save_copier", {"id": copier, "sizing_value": "0.5"})
    world.send("M", world.event("increased", p | {"lots": "2.0"}))
    world.settle()
    assert orders(world) == [("open", "buy", "1.00"), ("increase", "buy", "0.50")]
    assert world.one("select count(*) from public.position_links") == 1
    # one copy: half of the master's 2.0 gone is half of the 1.50
    world.send("M", world.event("reduced", p | {"lots": "1.0"}))
    world.settle()
    assert sum(Decimal(lots) for _, lots in world.book("F")) == Decimal("0.75")


@pytest.mark.covers("P14")
def test_twelve_positions_closed_in_one_call_are_twelve_closes(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    winners = [world.opened("M", "0.10") for _ in range(6)]
    losers = [world.opened("M", "0.20", "sell") for _ in range(6)]
    world.settle()
    world.send("M", *(world.event("closed", p | {"lots": "0"}) for p in winners + losers))
    closes = world.open_executions("F")
    assert [e["action"] for e in closes] == ["close"] * 12
    # all at once: none waits for another, each has a lane of its own
    assert len({e["lane"] for e in closes}) == 12
    assert {e["after_id"] for e in closes} == {None}
    assert all(e["offered_at"] is not None for e in closes)
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("P16")
def test_a_part_closed_while_the_open_is_under_way_is_not_lost_to_a_later_change(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.0")
    world.send("M", world.event("reduced", p | {"lots": "0.7"}))
    world.send("M", world.event("modified", p | {"lots": "0.7", "sl": "1.09"}))
    assert [e["action"] for e in world.open_executions("F")] == ["open"]
    world.settle()
    assert world.book("F") == [("buy", "0.70")]
    assert orders(world)[1] == ("reduce", "buy", "0.30")
    assert world.one("select asked_sl::text from public.position_links") == "1.09000"


@pytest.mark.covers("P17")
def test_an_open_whose_close_comes_with_it_is_never_sent(world: World) -> None:
    world.copy("M", "F")
    p = world.position()
    world.send("M", world.event("opened", p), world.event("closed", p | {"lots": "0"}))
    assert world.executions("F") == []
    reasons = world.rows(
        "select e.type, o.reason from public.copy_outcomes o join public.trade_events e on e.id = o.event_id"
    )
    assert {"type": "opened", "reason": "already_closed"} in reasons


@pytest.mark.covers("P17")
def test_an_open_that_was_sent_is_closed_when_it_is_answered(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    opened, close = world.open_executions("F")
    assert (close["action"], close["after_id"]) == ("close", opened["step_id"])
    ticket = world.fill(opened)
    world.report(close, positions=[world.position("0", ticket=ticket)], filled_lots="1.00")
    assert world.book("F") == []
    assert orders(world) == [("open", "buy", "1.00"), ("close", "buy", "0.00")]


@pytest.mark.covers("R2")
def test_a_close_of_number_five_before_the_open_of_number_four(world: World) -> None:
    world.copy("M", "F")
    p = world.position(ticket="900")
    answer = world.send("M", world.event("closed", p | {"lots": "0"}, seq=5))
    assert answer["results"][0]["status"] == "accepted"
    late = world.send("M", world.event("opened", p, seq=4))
    assert late["results"][0]["status"] == "history"
    assert world.executions("F") == []
    assert world.book("M") == []


@pytest.mark.covers("R1")
def test_an_event_told_twice_is_acknowledged_and_makes_one_order(world: World) -> None:
    world.copy("M", "F")
    event = world.event("opened", world.position())
    first = world.send("M", event)
    again = world.send("M", event)
    result = again["results"][0]
    assert (first["results"][0]["status"], result["status"], result["code"]) == ("accepted", "duplicate", None)
    assert len(world.executions("F")) == 1
