"""Drift between a copier's follower and its master, and what its user does about each difference, one by one."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld as World

Json = dict[str, Any]


def drift(world: World, pair: str = "M>F", **more: Any) -> list[Json]:
    items: list[Json] = world.as_user("copier_drift", {"copier_id": world.copiers[pair]} | more)["items"]
    return items


def said(items: Sequence[Json], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(item[key] for key in keys) for item in items]


def resync(world: World, *items: Json, pair: str = "M>F", **more: Any) -> list[Json]:
    answer: Json = world.as_user("resync_copier", {"copier_id": world.copiers[pair], "items": list(items)} | more)
    return list(answer["items"])


def copy(p: Json, kind: str = "missing") -> Json:
    return {"kind": kind, "master_ticket": p["ticket"], "action": "copy"}


def by_hand(world: World, lots: str = "1.00", side: str = "buy", **more: Any) -> Json:
    """A trade of the follower's own."""
    position = world.position(lots, side, **more)
    world.send("F", world.event("opened", position))
    return position


def close_by_hand(world: World, account: str = "F", lots: str = "0") -> None:
    """The user closes (or trims) the copies that the account holds."""
    copies = "select * from public.positions where account_id = %s and closed_at is null and tag is not null"
    for row in world.rows(copies, world.accounts[account]):
        state = world.position(lots, row["side"], row["ticket"], tag=None if row["tag"] is None else str(row["tag"]))
        world.send(account, world.event("closed" if lots == "0" else "reduced", state))


# -- missing -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("R9")
def test_a_copy_closed_by_hand_stays_closed_until_its_user_asks_for_it(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.00")
    world.settle()
    close_by_hand(world)
    world.send("M", world.event("modified", p | {"sl": "1.09000"}))
    assert world.book("F") == []
    assert world.open_executions() == []
    assert said(drift(world), "kind", "master_ticket", "reason", "actions") == [
        ("missing", p["ticket"], "closed_by_follower", ["copy", "dismiss"])
    ]
    (answer,) = resync(world, copy(p))
    (opening,) = world.open_executions("F")
    assert (answer["result"], answer["executions"]) == ("queued", [str(opening["id"])])
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    assert drift(world) == []
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("R8")
def test_what_was_missed_in_an_outage_is_shown_and_copied_with_one_click(world: World) -> None:
    world.copy("M", "F")
    b = world.opened("M", "0.40")
    world.settle()
    a = world.position("1.00")
    # the master's agent was away for ten minutes: A was opened and B closed
    world.send("M", world.event("opened", a, age_s=600), world.event("closed", b | {"lots": "0"}, age_s=600))
    world.settle()
    assert world.book("F") == []
    assert said(drift(world), "kind", "master_ticket", "reason", "lots") == [("missing", a["ticket"], "too_old", "1")]
    resync(world, copy(a))
    world.settle()
    assert world.book("F") == [("buy", "1.00")]


def test_a_trade_that_was_there_before_the_copier_can_be_copied(world: World) -> None:
    p = world.opened("M", "1.00")
    world.copy("M", "F")
    assert said(drift(world), "kind", "reason") == [("missing", "existing")]
    resync(world, copy(p))
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    world.send("M", world.event("reduced", p | {"lots": "0.30"}))
    world.settle()
    assert world.book("F") == [("buy", "0.30")]


@pytest.mark.parametrize(("settings", "reason"), [({"sides": "sell"}, "side_filtered"),
                                                  ({"mode": "monitor"}, "copier_monitor"),
    ({"max_open_positions": 1}, "max_open_positions")])  # fmt: skip
def test_filters_modes_and_limits_hold_for_a_resync_too(world: World, settings: Json, reason: str) -> None:
    world.copy("M", "F")
    other = world.opened("M", "0.10")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("F", *(world.event("closed", world.position("0", r["side"], r["ticket"])) for r in world.rows(
        "select side, ticket from public.positions where account_id = %s and lots = 1.00",
        world.accounts["F"])))  # fmt: skip
    assert said(drift(world), "master_ticket") == [(p["ticket"],)]
    world.as_user("save_copier", {"id": world.copiers["M>F"]} | settings)
    assert said(resync(world, copy(p)), "result", "reason") == [("refused", reason)]
    assert world.open_executions() == []
    assert said(drift(world), "reason") == [(reason,)]
    assert other


def test_the_age_of_a_resync_counts_from_the_resync(world: World) -> None:
    world.copy("M", "F", max_age_ms=100)
    p = world.position("1.00")
    world.send("M", world.event("opened", p, age_s=3600))
    assert world.reasons("F") == {"too_old": 1}
    resync(world, copy(p))
    (opening,) = world.open_executions("F")
    assert opening["send_before"] > opening["queued_at"]
    assert opening["detected_at"] is None, "its user caused it, no event of the master"


def test_a_double_click_opens_once(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    close_by_hand(world)
    assert said(resync(world, copy(p), copy(p)), "result") == [("queued",), ("nothing_to_do",)]
    assert said(resync(world, copy(p)), "result") == [("nothing_to_do",)]
    world.settle()
    assert said(resync(world, copy(p)), "result") == [("nothing_to_do",)]
    assert world.book("F") == [("buy", "1.00")]


def test_a_resync_decides_once_and_leaves_nothing_behind(world: World) -> None:
    """A refused one comes back with no later event of the master."""
    world.copy("M", "F", sides="sell")
    p = world.opened("M", "1.00")
    resync(world, copy(p))
    world.as_user("save_copier", {"id": world.copiers["M>F"], "sides": "both"})
    world.send("M", world.event("modified", p | {"sl": "1.05"}))
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    assert world.executions("F") == []
    assert world.rows("select id from public.position_links where resync_lots is not null") == []


def test_what_the_broker_refused_can_be_asked_for_again_and_a_late_fill_of_the_first_is_closed(world: World) -> None:
    """Never two copies of one position of the master in one copier."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (first,) = world.open_executions("F")
    world.report(first, "rejected", reason="trade_disabled")
    assert said(drift(world), "reason") == [("trade_disabled",)]
    resync(world, copy(p))
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    world.fill(first)  # it had been executed after all
    world.settle()
    assert world.book("F") == [("buy", "1.00")]


def test_a_pending_order_can_be_placed_again(world: World) -> None:
    world.copy("M", "F")
    order = world.position("0.30", kind="order", order_type="limit", price="1.05000")
    world.send("M", world.event("ordered", order))
    (place,) = world.open_executions("F")
    world.report(place, "rejected", reason="trade_disabled")
    assert said(drift(world), "kind", "actions") == [("missing", ["copy", "dismiss"])]
    resync(world, copy(order))
    (again,) = world.open_executions("F")
    assert (again["action"], str(again["price"])) == ("place", "1.05000")


@pytest.mark.parametrize(("allowed", "result", "reason"), [("9", "refused", "price_moved"), ("10", "queued", None)])
def test_a_copy_may_be_asked_for_within_a_distance_of_the_price(
    world: World, allowed: str, result: str, reason: str | None
) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")  # at 1.10000; the follower's ask is 1.1001
    world.settle()
    close_by_hand(world)
    assert said(drift(world), "price", "price_now", "distance_points") == [("1.1", "1.1001", 10)]
    assert said(resync(world, copy(p), max_distance_points=allowed), "result", "reason") == [(result, reason)]


def test_a_distance_that_nobody_can_tell_refuses(world: World) -> None:
    p = world.opened("M", "1.00")
    world.copy("M", "F")
    world.db.execute("update public.account_symbols set quoted_at = now() - interval '1 hour' where true")
    assert said(resync(world, copy(p), max_distance_points="10"), "result", "reason") == [("refused", "no_quote")]
    assert said(resync(world, copy(p)), "result") == [("queued",)]


def test_slippage_is_measured_from_the_price_its_user_sees(world: World) -> None:
    p = world.opened("M", "1.00", price="1.05000")
    world.copy("M", "F", max_slippage_points=20)
    resync(world, copy(p))
    (opening,) = world.open_executions("F")
    assert (opening["max_slippage_points"], str(opening["master_price"])) == (20, "1.1001")


# -- adopt -------------------------------------------------------------------------------------------------------


def test_adopting_binds_a_trade_of_the_follower_without_any_order(world: World) -> None:
    world.copy("M", "F", sides="sell")
    p = world.opened("M", "1.00", sl="1.09000")
    own = by_hand(world, "0.50")
    (missing,) = drift(world)
    assert (missing["actions"], missing["adoptable"]) == (["copy", "adopt", "dismiss"], [own["ticket"]])
    adopt = {"kind": "missing", "master_ticket": p["ticket"], "ticket": own["ticket"], "action": "adopt"}
    assert said(resync(world, adopt), "result") == [("adopted",)]
    assert said(resync(world, adopt), "result") == [("nothing_to_do",)]
    assert world.executions("F") == []
    assert drift(world) == []
    world.send("M", world.event("modified", p | {"sl": "1.08000"}))
    (modify,) = world.open_executions("F")
    assert (modify["ticket"], str(modify["sl"])) == (own["ticket"], "1.08000")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_only_a_loose_trade_of_the_same_symbol_and_side_is_adopted(world: World) -> None:
    world.add_symbol("F", "GBPUSD")
    world.copy("M", "F", sides="sell")
    world.copy("M2", "F")
    p = world.opened("M", "1.00")
    world.send("M2", world.event("opened", world.position("0.20")))
    held = world.ticket()
    world.fill(world.open_executions("F")[0], ticket=held)
    wrong = [held, by_hand(world, side="sell")["ticket"], by_hand(world, symbol="GBPUSD")["ticket"], "no such ticket"]
    for ticket in wrong:
        item = {"kind": "missing", "master_ticket": p["ticket"], "ticket": ticket, "action": "adopt"}
        assert said(resync(world, item), "result", "reason") == [("refused", "not_adoptable")]
    assert said(drift(world), "adoptable") == [([],)]


def test_a_position_of_ours_that_lost_its_link_is_adopted_and_never_bought_again(world: World) -> None:
    """A snapshot said it was gone, and then it is there after all: that is no reason to hold it twice."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    ticket = world.fill(opening)
    close_by_hand(world)
    state = world.position("1.00", "buy", ticket, tag=str(opening["id"]))
    world.send("F", world.event("opened", state))
    assert said(drift(world), "kind", "reason", "actions", "adoptable") == [
        ("missing", "held_already", ["adopt", "dismiss"], [ticket])
    ]
    assert said(resync(world, copy(p)), "result", "reason") == [("refused", "held_already")]
    resync(world, {"kind": "missing", "master_ticket": p["ticket"], "ticket": ticket, "action": "adopt"})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


def test_what_was_released_can_be_adopted_by_a_new_copier(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.as_user("remove_copier", {"copier_id": world.copiers["M>F"], "mode": "preserve"})
    world.copy("M", "F")
    (missing,) = drift(world)
    assert missing["reason"] == "existing"
    (ticket,) = missing["adoptable"]
    resync(world, {"kind": "missing", "master_ticket": p["ticket"], "ticket": ticket, "action": "adopt"})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


# -- orphan ------------------------------------------------------------------------------------------------------


def orphan(world: World) -> str:
    """A copy that comes back when its link has ended and its master is closed; its ticket."""
    p = world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    ticket = world.fill(opening)
    close_by_hand(world)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.send("F", world.event("opened", world.position("1.00", "buy", ticket, tag=str(opening["id"]))))
    return ticket


def test_an_orphan_is_shown_and_closed_when_its_user_says_so(world: World) -> None:
    world.copy("M", "F")
    own = by_hand(world, "0.30")
    ticket = orphan(world)
    assert world.open_executions() == []
    assert said(drift(world), "kind", "ticket", "held_lots", "reason", "actions") == [
        ("orphan", ticket, "1", "closed", ["close", "dismiss"])
    ]
    item = {"kind": "orphan", "ticket": ticket, "action": "close"}
    assert said(resync(world, item), "result") == [("queued",)]
    assert said(resync(world, item), "result") == [("nothing_to_do",)]
    world.settle()
    assert world.book("F") == [("buy", "0.30")]
    assert drift(world) == []
    mine = {"kind": "orphan", "ticket": own["ticket"], "action": "close"}
    assert said(resync(world, mine), "result") == [("nothing_to_do",)]
    assert world.open_executions() == []


@pytest.mark.parametrize("state", ["account_off", "trading_stopped"])
def test_an_orphan_is_not_closed_while_closes_are_frozen(world: World, state: str) -> None:
    world.copy("M", "F")
    ticket = orphan(world)
    if state == "account_off":
        world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
    else:
        world.db.execute("update public.trading_switch set state = 'off', reason = 'a test' where one")
    item = {"kind": "orphan", "ticket": ticket, "action": "close"}
    assert said(resync(world, item), "result", "reason") == [("refused", state)]


# -- size mismatch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizing", ["0.5", "2"])
def test_a_copy_trimmed_by_hand_is_brought_back_to_its_target(world: World, sizing: str) -> None:
    """To the share of what it was opened with, whatever the multiplier is now."""
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.00")
    world.settle()
    close_by_hand(world, lots="0.30")
    world.as_user("save_copier", {"id": world.copiers["M>F"], "sizing_value": sizing})
    assert world.open_executions() == []
    assert said(drift(world), "kind", "held_lots", "target_lots", "reason", "actions") == [
        ("size_mismatch", "0.3", "0.5", "closed_by_follower", ["copy", "dismiss"])
    ]
    assert said(resync(world, copy(p, "size_mismatch")), "result") == [("queued",)]
    assert said(resync(world, copy(p, "size_mismatch")), "result") == [("nothing_to_do",)]
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "0.30")]
    assert drift(world) == []
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    assert sum(Decimal(lots) for _, lots in world.book("F")) == Decimal("0.25")


def test_an_increase_that_was_refused_is_made_up_for(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "monitor"})
    world.send("M", world.event("increased", p | {"lots": "3.00"}))
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "on"})
    assert said(drift(world), "held_lots", "target_lots", "reason") == [("1", "3", "copier_monitor")]
    resync(world, copy(p, "size_mismatch"))
    world.settle()
    assert sum(Decimal(lots) for _, lots in world.book("F")) == Decimal("3.00")
    assert drift(world) == []


def test_an_increase_at_another_ratio_is_no_drift(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "3.00")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    world.settle()
    world.as_user("save_copier", {"id": world.copiers["M>F"], "sizing_value": "2"})
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.settle()
    assert sum(Decimal(lots) for _, lots in world.book("F")) == Decimal("2.50")
    assert drift(world) == []


@pytest.mark.covers("R15")
def test_another_multiplier_is_no_drift(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    world.as_user("save_copier", {"id": world.copiers["M>F"], "sizing_value": "2"})
    assert drift(world) == []


def test_a_reduction_that_waits_is_shown_with_what_it_waits_for(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "off"})
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    assert said(drift(world), "held_lots", "target_lots", "reason") == [("1", "0.4", "copier_off")]
    assert said(resync(world, copy(p, "size_mismatch")), "result", "reason") == [("refused", "copier_off")]


def test_limits_hold_when_a_copy_is_brought_to_its_target(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    close_by_hand(world, lots="0.30")
    world.as_user("save_copier", {"id": world.copiers["M>F"], "max_open_lots": "0.30"})
    assert said(resync(world, copy(p, "size_mismatch")), "result", "reason") == [("refused", "max_open_lots")]
    assert world.open_executions() == []
    assert said(drift(world), "held_lots", "target_lots") == [("0.3", "1")]


# -- dismiss -----------------------------------------------------------------------------------------------------


def test_what_is_dismissed_is_not_shown_until_it_changes(world: World) -> None:
    world.copy("M", "F", sides="sell")
    p = world.opened("M", "1.00")
    item = {"kind": "missing", "master_ticket": p["ticket"], "action": "dismiss"}
    assert said(resync(world, item), "result") == [("dismissed",)]
    assert drift(world) == []
    assert said(drift(world, dismissed=True), "master_ticket", "dismissed") == [(p["ticket"], True)]
    assert said(resync(world, item), "result") == [("dismissed",)]
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    assert said(drift(world), "master_ticket", "dismissed") == [(p["ticket"], False)]


def test_what_is_dismissed_can_be_copied_all_the_same(world: World) -> None:
    p = world.opened("M", "1.00")
    world.copy("M", "F")
    resync(world, {"kind": "missing", "master_ticket": p["ticket"], "action": "dismiss"})
    assert said(resync(world, copy(p)), "result") == [("queued",)]
    assert world.rows("select * from private.drift_dismissals") == []


# -- netting followers -------------------------------------------------------------------------------------------


def test_a_netting_follower_is_brought_back_to_its_share(world: World) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.run()
    world.net = Decimal("0.40")
    world.send("N", world.event("reduced", world.state()[0]))
    assert said(drift(world, "M>N"), "kind", "held_lots", "target_lots") == [("size_mismatch", "0.4", "1")]
    assert said(resync(world, copy(p, "size_mismatch"), pair="M>N"), "result") == [("queued",)]
    assert said(resync(world, copy(p, "size_mismatch"), pair="M>N"), "result") == [("nothing_to_do",)]
    world.run()
    assert f"{world.net:.2f}" == "1.00"
    assert drift(world, "M>N") == []


def test_a_netting_follower_copies_what_is_missing(world: World) -> None:
    p = world.opened("M", "1.00")
    world.copy("M", "N")
    assert said(drift(world, "M>N"), "kind", "reason", "adoptable") == [("missing", "existing", [])]
    assert said(resync(world, copy(p), pair="M>N"), "result") == [("queued",)]
    assert said(resync(world, copy(p), pair="M>N"), "result") == [("nothing_to_do",)]
    world.run()
    assert f"{world.net:.2f}" == "1.00"
    assert world.shares() == {"M": Decimal("1.00")}


@pytest.mark.parametrize(
    "item", [{"kind": "missing", "master_ticket": "1", "ticket": "net-1", "action": "adopt"},
             {"kind": "orphan", "ticket": "net-1", "action": "close"}],
)  # fmt: skip
def test_a_netting_follower_cannot_adopt_or_close_a_part_of_its_position(world: World, item: Json) -> None:
    world.copy("M", "N")
    with pytest.raises(psycopg.Error, match="one position per symbol") as refused:
        resync(world, item, pair="M>N")
    assert refused.value.sqlstate == "TC308"


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"items": []}, "1 to 200 items"),
        ({"items": "all"}, "1 to 200 items"),
        ({"items": ["x"]}, "not an object"),
        (
            {"items": [{"kind": "missing", "action": "close", "master_ticket": "1"}]},
            "no action close for an item of kind missing",
        ),
        ({"items": [{"kind": "surplus", "action": "close"}]}, "kind surplus"),
        ({"items": [{"kind": "missing", "action": "copy"}]}, "needs master_ticket"),
        ({"items": [{"kind": "missing", "action": "adopt", "master_ticket": "1"}]}, "needs ticket"),
        ({"items": [{"kind": "orphan", "action": "close", "ticket": 5}]}, "needs ticket"),
        (
            {"items": [{"kind": "orphan", "action": "close", "ticket": "5"}], "max_distance_points": "-1"},
            "not negative",
        ),
        (
            {"items": [{"kind": "orphan", "action": "close", "ticket": "5"}], "max_distance_points": "far"},
            "must be a number",
        ),
    ],
)
def test_a_resync_that_makes_no_sense_is_refused(world: World, argument: Json, message: str) -> None:
    world.copy("M", "F")
    with pytest.raises(psycopg.Error, match=message) as refused:
        world.as_user("resync_copier", {"copier_id": world.copiers["M>F"]} | argument)
    assert refused.value.sqlstate == "TC001"


def test_a_copier_that_is_being_removed_is_not_resynced(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.as_user("remove_copier", {"copier_id": world.copiers["M>F"], "mode": "close_gracefully"})
    with pytest.raises(psycopg.Error) as refused:
        resync(world, copy(p))
    assert refused.value.sqlstate == "TC307"
