"""The planner's laws (docs/architecture.md), each forced."""

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


def test_an_open_is_copied_and_offered_to_the_followers_agent(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    world.opened("M", "1.00", sl="1.09500", tp="1.11000")
    (execution,) = world.executions("F")
    assert (execution["action"], execution["side"], f"{execution['lots']:.2f}") == ("open", "buy", "0.50")
    assert (f"{execution['sl']:.5f}", f"{execution['tp']:.5f}") == ("1.09500", "1.11000")
    assert execution["status"] == "queued"
    assert execution["offered_at"] is not None
    sent = world.rows("select topic, event, payload from realtime.messages where event = 'executions'")
    assert [m["topic"] for m in sent] == [f"vps:{world.vps['b']}"]
    assert sent[0]["payload"]["executions"][0]["id"] == str(execution["id"])


def test_a_follower_beside_its_master_gets_its_order_in_the_answer(world: World) -> None:
    world.add_account("N", vps="a")
    world.copy("M", "N")
    answer = world.send("M", world.event("opened", world.position()))
    assert [e["account_id"] for e in answer["executions"]] == [world.accounts["N"]]
    assert world.rows("select 1 from realtime.messages where event = 'executions'") == []


def test_a_full_life_ends_flat(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.00")
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    world.send("M", world.event("reduced", p | {"lots": "0.70"}))
    world.settle()
    assert world.book("F") == [("buy", "0.35")]
    world.send("M", world.event("modified", p | {"lots": "0.70", "sl": "1.09"}))
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    assert [e["action"] for e in world.executions("F")] == ["open", "reduce", "modify", "close"]
    assert world.rows("select reason from public.position_links") == [{"reason": "closed"}]
    assert world.reasons("F") == {}


def test_ten_reductions_do_not_drift(world: World) -> None:
    world.copy("M", "F", sizing_value="0.05")
    p = world.opened("M", "1.00")
    world.settle()
    for left in range(9, 0, -1):
        world.send("M", world.event("reduced", p | {"lots": f"0.{left}0"}))
        world.settle()
        assert world.book("F") == [("buy", f"{max(1, left * 5 // 10) / 100:.2f}")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_the_same_event_twice_makes_one_order(world: World) -> None:
    world.copy("M", "F")
    event = world.event("opened", world.position())
    world.send("M", event)
    again = world.send("M", event)
    assert again["results"][0]["status"] == "duplicate"
    assert len(world.executions("F")) == 1


def test_a_close_that_arrives_before_its_open_leaves_nothing(world: World) -> None:
    world.copy("M", "F")
    p = world.position()
    late = world.event("opened", p)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    answer = world.send("M", late)
    assert answer["results"][0]["status"] == "history"
    assert world.executions("F") == []


def test_an_open_too_small_is_latched_and_never_comes_back(world: World) -> None:
    world.copy("M", "F", sizing_value="0.4")
    p = world.opened("M", "0.01")
    assert world.reasons("F") == {"below_min": 1}
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    world.as_user("save_copier", {"id": world.copiers["M>F"], "sizing_value": "1"})
    world.send("M", world.event("modified", p | {"sl": "1.08"}))
    assert world.executions("F") == []
    assert world.reasons("F") == {"below_min": 1, "not_copied": 2}


def test_a_reduction_while_the_open_is_in_flight_is_planned_when_it_ends(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.send("M", world.event("reduced", p | {"lots": "0.70"}))
    assert [e["action"] for e in world.open_executions("F")] == ["open"]
    world.settle()
    assert world.book("F") == [("buy", "0.70")]
    assert world.reasons("F") == {}


def test_a_close_is_queued_beside_the_open_and_names_it(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    opened, closed = world.open_executions("F")
    assert (closed["action"], closed["after_id"], closed["ticket"]) == ("close", opened["step_id"], None)
    assert closed["lane"] == opened["lane"]
    ticket = world.fill(opened)
    world.report(closed, positions=[world.position("0", ticket=ticket)], filled_lots="1.00")
    assert world.book("F") == []
    assert world.open_executions() == []
    assert world.rows("select state from public.position_links") == [{"state": "ended"}]


def test_an_open_dropped_unsent_by_its_agent_says_already_closed(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    opened, closed = world.open_executions("F")
    world.report(opened, "cancelled", reason="already_closed")
    world.report(closed, filled_lots="0")
    assert [(e["status"], e["reason"]) for e in world.executions("F")] == [
        ("cancelled", "already_closed"),
        ("completed", None),
    ]
    assert world.book("F") == []


def test_an_increase_adds_a_leg_and_later_reductions_share(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.settle()
    assert world.book("F") == [("buy", "0.50"), ("buy", "0.50")]
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    assert world.book("F") == [("buy", "0.25")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_a_flip_closes_first_and_the_open_names_the_close(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    closed, opened = world.open_executions("F")
    assert (closed["action"], opened["action"], opened["side"]) == ("close", "open", "sell")
    assert opened["after_id"] == closed["step_id"]
    world.settle()
    assert world.book("F") == [("sell", "0.50")]


def test_a_follower_closed_by_hand_stays_closed(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    ((ticket,),) = [(r["ticket"],) for r in world.rows("select ticket from private.link_legs")]
    world.send("F", world.event("closed", world.position("0", ticket=ticket)))
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert len(world.executions("F")) == 1
    assert world.reasons("F") == {"closed_by_follower": 2}


def test_a_copy_trimmed_by_hand_is_not_bought_again(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    ticket = world.one("select ticket from private.link_legs")
    world.send("F", world.event("reduced", world.position("0.30", ticket=ticket)))
    world.send("M", world.event("reduced", p | {"lots": "0.60"}))
    assert world.open_executions() == []
    world.send("M", world.event("reduced", p | {"lots": "0.20"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20")]


def test_a_look_older_than_the_report_ends_nothing(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    old = world.event("snapshot", positions=[])
    world.settle()
    world.send("F", old)
    world.send("F", world.event("snapshot", positions=[], seq=old["seq"] - 1 or 1))
    assert world.book("F") == [("buy", "1.00")]


@pytest.mark.covers("R6")
def test_one_good_snapshot_without_it_closes_nothing_two_do(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    answer = world.send("M", world.event("snapshot", positions=[]))
    assert len(answer["results"][0]["missing"]) == 1
    assert world.open_executions() == []
    world.send("M", world.event("snapshot", positions=[]))
    world.settle()
    assert world.book("F") == []


def test_a_refused_modify_is_asked_three_times_at_most(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    for _ in range(5):
        for e in world.open_executions():
            world.report(e, "rejected", reason="invalid_stops")
        world.db.execute(
            "update public.position_links set replan_at = now() - interval '1 s' where replan_at is not null"
        )
        world.db.execute("select private.maintain_executions()")
    assert [e["action"] for e in world.executions("F")] == ["open", "modify", "modify", "modify"]
    world.send("M", world.event("modified", p | {"sl": "1.08"}))
    assert [e["action"] for e in world.open_executions()] == ["modify"]


def test_a_refused_close_is_tried_for_ever(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    for _ in range(6):
        for e in world.open_executions():
            world.report(e, "rejected", reason="market_closed", retryable=True)
        world.db.execute(
            "update public.trade_execution_queue set next_attempt_at = now() - interval '1 s' where status = 'retrying'"
        )
        world.db.execute("select private.maintain_executions()")
    (e,) = world.open_executions()
    assert (e["status"], e["attempt"]) == ("queued", 7)
    world.settle()
    assert world.book("F") == []


def test_a_fill_reported_after_expired_overrules_it(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    (e,) = world.open_executions()
    world.report(e, "expired", reason="too_late")
    assert world.open_executions() == []
    world.fill(e)
    assert world.book("F") == [("buy", "1.00")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_a_fill_after_the_master_closed_is_closed_at_once(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    (e,) = world.open_executions()
    world.report(e, "expired", reason="too_late")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.fill(e)
    world.settle()
    assert world.book("F") == []


def test_an_old_detection_is_refused_as_too_old(world: World) -> None:
    world.copy("M", "F")
    world.send("M", world.event("opened", world.position(), age_s=7))
    assert world.reasons("F") == {"too_old": 1}


def test_one_bad_event_of_ten_does_not_poison_the_others(world: World) -> None:
    world.copy("M", "F")
    events = [world.event("opened", world.position("0.10")) for _ in range(10)]
    events[4]["position"]["lots"] = "NaN"
    answer = world.send("M", *events)
    assert [r["status"] for r in answer["results"]].count("accepted") == 9
    assert answer["results"][4]["code"] == "TC401"
    assert len(world.executions("F")) == 9


def test_a_stale_epoch_is_refused_whole(world: World) -> None:
    with pytest.raises(Exception, match="epoch") as refused:
        world.send("M", world.event("opened", world.position()), epoch=2)
    assert getattr(refused.value, "sqlstate", "") == "TC103"


def test_reverse_swaps_side_and_levels(world: World) -> None:
    world.copy("M", "F", reverse=True)
    world.opened("M", sl="1.09500", tp="1.11000")
    (e,) = world.open_executions()
    assert (e["side"], f"{e['sl']:.5f}", f"{e['tp']:.5f}") == ("sell", "1.11000", "1.09500")


def test_pending_orders_are_placed_amended_and_cancelled(world: World) -> None:
    world.copy("M", "F")
    order = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", order))
    world.settle()
    world.send("M", world.event("amended", order | {"price": "1.08000"}))
    world.settle()
    world.send("M", world.event("cancelled", order | {"lots": "0"}))
    world.settle()
    assert [e["action"] for e in world.executions("F")] == ["place", "amend", "cancel"]
    assert world.book("F") == []


def test_a_filled_pending_carries_its_link_on(world: World) -> None:
    world.copy("M", "F")
    order = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", order))
    world.settle()
    mine = world.one("select ticket from private.link_legs")
    filled = world.position(price="1.09000", replaces=order["ticket"])
    world.send("M", world.event("opened", filled))
    world.send("F", world.event("opened", world.position(ticket=mine, price="1.09000")))
    assert world.open_executions() == []
    world.send("M", world.event("closed", filled | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    assert [e["action"] for e in world.executions("F")] == ["place", "close"]


@pytest.mark.covers("P7")
def test_each_partial_close_gives_the_followers_position_a_new_ticket(world: World) -> None:
    """The closed ticket of the second report still names the one that it had replaced itself, and comes first."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    (held,) = world.rows("select ticket from private.link_legs")
    tickets = [held["ticket"], "F-2", "F-3"]
    for n, left in enumerate(("0.70", "0.40")):
        world.send("M", world.event("reduced", p | {"lots": left}))
        (execution,) = world.open_executions("F")
        old = world.position("0", "buy", tickets[n], replaces=None if n == 0 else tickets[n - 1])
        new = world.position(left, "buy", tickets[n + 1], replaces=tickets[n])
        world.report(execution, positions=[old, new], filled_lots="0.30", price="1.10000")
    assert world.rows("select ticket, lots::text from private.link_legs") == [{"ticket": "F-3", "lots": "0.40"}]
    assert world.one("select state from public.position_links") == "live"
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (execution,) = world.open_executions("F")
    assert (execution["action"], execution["ticket"]) == ("close", "F-3")


def test_re_ticketing_is_one_reduction(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    rest = world.position("0.70", replaces=p["ticket"])
    world.send("M", world.event("reduced", rest))
    world.settle()
    assert world.book("F") == [("buy", "0.70")]
    assert [e["action"] for e in world.executions("F")] == ["open", "reduce"]


def test_a_chain_copies_on_and_refuses_circles(world: World) -> None:
    world.add_account("G", vps="c")
    world.copy("M", "F", sizing_value="0.5")
    world.copy("F", "G", sizing_value="0.5")
    with pytest.raises(Exception, match=r"circle|leads"):
        world.copy("G", "M")
    p = world.opened("M", "0.08")
    world.settle()
    assert (world.book("F"), world.book("G")) == ([("buy", "0.04")], [("buy", "0.02")])
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert (world.book("F"), world.book("G")) == ([], [])


def test_a_monitoring_copier_closes_but_does_not_open(world: World) -> None:
    copier = world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.as_user("set_copier_mode", {"copier_id": copier, "mode": "monitor"})
    world.opened("M")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    assert world.reasons("F") == {"copier_monitor": 1}


def test_a_frozen_copier_catches_up_on_closes_when_it_resumes(world: World) -> None:
    copier = world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.as_user("set_copier_mode", {"copier_id": copier, "mode": "off"})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.opened("M")
    assert world.open_executions() == []
    world.as_user("set_copier_mode", {"copier_id": copier, "mode": "on"})
    world.settle()
    assert world.book("F") == []
    assert world.reasons("F") == {"copier_off": 1}  # the open; the close was caught up on


def test_split_orders_are_one_step_and_reduce_together(world: World) -> None:
    world.add_account("S", vps="b", lots_max="20")
    world.copy("M", "S", max_policy="split")
    p = world.opened("M", "55")
    executions = world.open_executions("S")
    assert [f"{e['lots']:.0f}" for e in executions] == ["20", "20", "15"]
    assert len({e["step_id"] for e in executions}) == 1
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "22"}))
    world.settle()
    assert sum(Decimal(lots) for _, lots in world.book("S")) == 22
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("S") == []


def test_flattening_closes_what_appears_and_ends_in_off(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    world.opened("M")
    (late,) = world.open_executions("F")
    world.send("F", world.event("opened", world.position("0.20")))  # the user's own
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    assert (
        world.one("select cancel_requested_at from public.trade_execution_queue where id = %s", late["id"]) is not None
    )
    closes = [e for e in world.open_executions("F") if e["action"] == "close"]
    assert len(closes) == 2
    world.fill(next(e for e in closes if e["ticket"] is not None))
    ticket = world.fill(late)
    world.report(
        next(e for e in closes if e["ticket"] is None),
        positions=[world.position("0", ticket=ticket)],
        filled_lots="1.00",
    )
    world.opened("M")
    assert world.book("F") == [("buy", "0.20")]
    own = world.rows(
        "select ticket from public.positions where account_id = %s and closed_at is null", world.accounts["F"]
    )[0]["ticket"]
    for state in ("flattening", "off"):
        world.send("F", world.event("snapshot", positions=[world.position("0.20", ticket=own)]))
        assert world.one("select copy_state from public.trading_accounts where id = %s", world.accounts["F"]) == state
    assert world.reasons("F") == {"account_flattening": 1}


def test_flattening_with_manual_trades_closes_them_too(world: World) -> None:
    world.send("F", world.event("opened", world.position("0.20")))
    world.as_user("flatten_account", {"account_id": world.accounts["F"], "include_manual": True})
    world.settle()
    assert world.book("F") == []


def test_malformed_calls_write_nothing(world: World) -> None:
    for argument in (
        {},
        {"account_id": "x", "epoch": 1, "events": []},
        {"account_id": world.accounts["M"], "epoch": 1, "events": {}},
    ):
        with pytest.raises(Exception, match="queue_trade_copy") as refused:
            world.as_agent("M", "queue_trade_copy", argument)
        assert getattr(refused.value, "sqlstate", "") == "TC001"
    with pytest.raises(Exception, match="1 MB"):
        world.send("M", world.event("opened", world.position(comment="x" * 1_100_000)))
    assert world.one("select count(*) from public.trade_events") == 0


def test_a_report_of_someone_elses_execution_is_refused(world: World) -> None:
    world.add_account("S", vps="c")
    world.copy("M", "F")
    world.opened("M")
    (e,) = world.open_executions("F")
    answer = world.as_agent(
        "S",
        "report_executions",
        {
            "reports": [
                {
                    "account_id": world.accounts["F"],
                    "session": 1,
                    "seq": 1,
                    "execution_id": str(e["id"]),
                    "attempt": 1,
                    "outcome": "completed",
                }
            ]
        },
    )
    assert answer["results"][0]["code"] == "TC106"
    assert world.open_executions("F")[0]["status"] == "queued"


def test_preview_says_what_and_why(world: World) -> None:
    symbol = {"name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001",
              "profit_currency": "USD",
              "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01"}  # fmt: skip
    funds = {"currency": "USD", "balance": "5000", "equity": "5000", "free_margin": "5000"}
    request = {
        "copier": {"sizing_mode": "balance_ratio", "sizing_value": "1"},
        "master": funds | {"currency": "EUR", "balance": "10000", "equity": "10000", "symbol": symbol},
        "follower": funds | {"symbol": symbol},
        "trade": {"side": "buy", "lots": "1.00", "price": "1.10000", "sl": None, "tp": None},
        "rates": {"EURUSD": "1.0850"},
    }
    answer = world.as_user("preview_copy", request)
    assert answer["orders"] == ["0.46"]
    assert answer["raw_lots"].startswith("0.460829")
    assert answer["reason"] is None
    assert answer["explain"]
    with pytest.raises(Exception, match=r"trade\.lots"):
        world.as_user("preview_copy", request | {"trade": {"lots": "NaN", "price": "1"}})


def test_what_a_partly_refused_close_did_is_booked(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    (increase,) = world.open_executions()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    beside = next(e for e in world.open_executions() if e["action"] == "close" and e["ticket"] is None)
    first = next(e for e in world.open_executions() if e["action"] == "close" and e["ticket"] is not None)
    ticket = world.fill(increase)
    world.fill(first)
    world.report(
        beside, "rejected", [world.position("0.40", ticket=ticket)], reason="market_closed", filled_lots="0.60"
    )
    assert world.rows("select ticket, lots::text from private.link_legs") == [{"ticket": ticket, "lots": "0.40"}]
    world.db.execute("update public.position_links set replan_at = now() - interval '1 s' where replan_at is not null")
    world.db.execute("select private.maintain_executions()")
    world.settle()
    assert world.book("F") == []


def test_a_fill_that_shows_no_position_is_in_doubt_until_it_was_looked_for(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    [opened] = world.open_executions("F")
    world.report(opened, filled_lots="1.00", price="1.10000")
    assert [row["status"] for row in world.executions("F")] == ["unknown"]
    told = world.as_agent("F", "vps_heartbeat", {})["executions"]
    assert [(one["id"], one["investigate"]) for one in told] == [(str(opened["id"]), True)]
    ticket = world.ticket()
    world.report(
        opened,
        positions=[world.position("1.00", ticket=ticket, tag=str(opened["id"]))],
        filled_lots="1.00",
        adopted=True,
    )
    assert world.rows("select ticket from private.link_legs") == [{"ticket": ticket}]


def test_a_fill_that_was_looked_for_and_is_not_held_any_more_ends_its_copy(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    [opened] = world.open_executions("F")
    world.report(opened, filled_lots="1.00", adopted=True)
    assert [row["status"] for row in world.executions("F")] == ["completed"]
    assert world.rows("select state, reason from public.position_links") == [
        {"state": "ended", "reason": "closed_by_follower"}
    ]


def test_a_close_of_what_a_step_left_ends_when_the_step_has(world: World) -> None:
    """Its agent is gone, another one does not know the step: what is held is closed by ticket, nothing is tried for
    ever."""
    world.copy("M", "F")
    p = world.opened("M")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    opened, close = world.open_executions("F")
    world.report(opened, "expired", reason="not_found_after_unknown")
    world.report(close, "expired", reason="too_late")
    assert world.open_executions("F") == []
    assert world.rows("select state from public.position_links") == [{"state": "ended"}]
    world.fill(opened)  # it was executed after all
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("X14")
def test_at_a_fifo_broker_two_copies_exchange_their_tickets_and_ask_for_their_own_levels(world: World) -> None:
    world.copy("M", "F")
    older = world.opened("M", "0.50", sl="1.09000")
    first = world.fill(world.open_executions("F")[0])
    newer = world.opened("M", "0.50")
    second = world.fill(world.open_executions("F")[0])
    world.settle()
    world.send("M", world.event("closed", newer | {"lots": "0"}))
    [close] = world.open_executions("F")
    assert close["ticket"] == second
    world.report(close, "rejected", reason="fifo")
    world.db.execute("update public.position_links set replan_at = now() - interval '1 s' where replan_at is not null")
    world.db.execute("select private.maintain_executions()")
    asked = {(one["action"], one["ticket"]): one["sl"] for one in world.open_executions("F")}
    assert ("close", first) in asked
    assert asked[("modify", second)] is not None
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    world.send("M", world.event("closed", older | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.parametrize("lots", ["0.40", "0.60"])
def test_at_a_fifo_broker_copies_of_different_volumes_are_not_exchanged(world: World, lots: str) -> None:
    world.copy("M", "F")
    world.opened("M", "0.50")
    world.settle()
    newer = world.opened("M", lots)
    second = world.fill(world.open_executions("F")[0])
    world.send("M", world.event("closed", newer | {"lots": "0"}))
    world.report(world.open_executions("F")[0], "rejected", reason="fifo")
    world.db.execute("update public.position_links set replan_at = now() - interval '1 s' where replan_at is not null")
    world.db.execute("select private.maintain_executions()")
    assert [one["ticket"] for one in world.open_executions("F")] == [second]


def test_no_less_than_the_least_volume_is_taken_off_a_position(world: World) -> None:
    """The older of two positions would give 0.02: it keeps them, as it would if it were alone."""
    world.db.execute("update public.account_symbols set lots_min = 0.05 where account_id = %s", (world.accounts["F"],))
    world.copy("M", "F")
    p = world.opened("M", "0.10")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "0.16"}))
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.08"}))
    (execution,) = world.open_executions("F")
    assert (execution["action"], f"{execution['lots']:.2f}") == ("reduce", "0.06")
    world.report(execution, "rejected", reason="requote", retryable=True)
    assert [e["id"] for e in world.open_executions("F")] == [execution["id"]]  # it waits for its next attempt


@pytest.mark.covers("P7")
def test_a_position_gets_other_tickets_before_the_report_of_its_opening_comes(world: World) -> None:
    """Its user closed a part of it by hand, twice, at a broker that gives new tickets: it is the copy all the same."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (execution,) = world.open_executions("F")
    seq = next(world._seq)
    for n, lots in ((2, "0.70"), (3, "0.40")):
        trimmed = world.position(lots, "buy", f"F-{n}", replaces=f"F-{n - 1}", tag=str(execution["id"]))
        world.send("F", world.event("reduced", trimmed))
    opened = world.position("1.00", "buy", "F-1", tag=str(execution["id"]))
    world.report(execution, positions=[opened], filled_lots="1.00", price="1.10000", seq=seq)
    assert world.rows("select ticket, lots::text from private.link_legs") == [{"ticket": "F-3", "lots": "0.40"}]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (close,) = world.open_executions("F")
    assert (close["action"], close["ticket"]) == ("close", "F-3")
