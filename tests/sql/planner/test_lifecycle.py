"""The end of a copier, in its three ways: what its copies become, what is called back, what can never be opened
again."""

from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld as World

MODES = ("preserve", "close_gracefully", "close_now")


def remove(world: World, mode: str, pair: str = "M>F") -> Any:
    return world.as_user("remove_copier", {"copier_id": world.copiers[pair], "mode": mode})


def changed(world: World, p: dict[str, Any], kind: str = "modified", **more: Any) -> None:
    p.update(more)
    world.send("M", world.event(kind, p))


def copier(world: World, pair: str = "M>F") -> dict[str, Any]:
    return world.rows("select * from public.copiers where id = %s", world.copiers[pair])[0]


def links(world: World) -> list[tuple[str, str | None]]:
    return [
        (r["state"], r["reason"]) for r in world.rows("select state, reason from public.position_links order by id")
    ]


# -- close_now ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("R16")
def test_close_now_closes_every_copy_and_then_the_copier_is_removed(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.opened("M", "0.40", "sell")
    world.settle()
    assert remove(world, "close_now") | {"copier_id": None} == {
        "copier_id": None, "mode": "close_now", "state": "removing", "copies": 2, "waits_for": None,
    }  # fmt: skip
    world.settle()
    assert world.book("F") == []
    world.db.execute("select private.finish_removals()")
    assert copier(world)["removed_at"] is not None
    assert {e["action"] for e in world.executions("F")[2:]} == {"close"}


def test_close_now_works_on_a_copier_that_is_off(world: World) -> None:
    """The user asked for it to be closed: that it was frozen before does not count."""
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    world.as_user("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "off"})
    remove(world, "close_now")
    world.settle()
    assert world.book("F") == []


def test_close_now_says_that_it_waits_for_an_account_that_is_off(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.settle()
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
    assert remove(world, "close_now")["waits_for"] == "account_off"
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "on"})
    world.settle()
    assert world.book("F") == []


def test_close_now_closes_what_an_open_in_flight_fills(world: World) -> None:
    world.copy("M", "F")
    world.opened("M")
    (opening,) = world.open_executions("F")
    remove(world, "close_now")
    close = next(e for e in world.open_executions("F") if e["action"] == "close")
    assert (close["after_id"], close["ticket"]) == (opening["step_id"], None)
    world.fill(opening)
    world.report(close, "completed", filled_lots="0")
    world.settle()
    assert world.book("F") == []


# -- close_gracefully --------------------------------------------------------------------------------------------


@pytest.mark.covers("R16")
def test_close_gracefully_follows_the_master_to_the_end_and_opens_nothing(world: World) -> None:
    world.copy("M", "F", sizing_value="0.5")
    p = world.opened("M", "1.00")
    world.settle()
    assert remove(world, "close_gracefully")["state"] == "removing"
    world.opened("M", "1.00")
    world.settle()
    assert world.reasons("F") == {"copier_removed": 1}
    changed(world, p, sl="1.09000")
    (modify,) = world.open_executions("F")
    assert (modify["action"], str(modify["sl"])) == ("modify", "1.09000")
    world.settle()
    changed(world, p, "reduced", lots="0.40")
    world.settle()
    assert world.book("F") == [("buy", "0.20")]
    world.db.execute("select private.finish_removals()")
    assert copier(world)["removed_at"] is None
    changed(world, p, "closed", lots="0")
    world.settle()
    assert world.book("F") == []
    world.db.execute("select private.finish_removals()")
    assert copier(world)["removed_at"] is not None


def test_close_gracefully_refuses_an_increase(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    remove(world, "close_gracefully")
    changed(world, p, "increased", lots="2.00")
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    assert world.reasons("F") == {"copier_removed": 1}
    changed(world, p, "reduced", lots="1.00")  # half of what the master holds now
    world.settle()
    assert world.book("F") == [("buy", "0.50")]


def test_close_gracefully_takes_back_a_pending_order_but_keeps_a_position(world: World) -> None:
    world.copy("M", "F")
    order = world.position("0.30", kind="order", order_type="limit", price="1.05000")
    world.send("M", world.event("ordered", order))
    world.opened("M", "1.00")
    world.settle()
    remove(world, "close_gracefully")
    assert [e["action"] for e in world.open_executions("F")] == ["cancel"]
    world.settle()
    assert world.book("F") == [("buy", "1.00")]


@pytest.mark.parametrize("first", ["close_gracefully", "close_now"])
def test_the_way_of_removal_may_change_on_the_way(world: World, first: str) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    remove(world, first)
    assert remove(world, "preserve")["state"] == ("removed" if first == "close_gracefully" else "removing")
    for e in world.open_executions("F"):  # the close was on its way: its agent could still drop it
        assert e["cancel_requested_at"] is not None
        world.report(e, "cancelled", reason="cancel_requested")
    world.db.execute("select private.finish_removals()")
    assert world.book("F") == [("buy", "1.00")]
    assert copier(world)["removed_at"] is not None
    assert world.open_executions() == []


def test_gracefully_may_become_now(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    remove(world, "close_gracefully")
    remove(world, "close_now")
    world.settle()
    assert world.book("F") == []


# -- preserve ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("R16")
def test_preserve_leaves_the_copies_to_the_user_and_never_touches_them_again(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    assert remove(world, "preserve")["state"] == "removed"
    assert links(world) == [("ended", "released")]
    changed(world, p, sl="1.09000")
    changed(world, p, "reduced", lots="0.40")
    changed(world, p, "closed", lots="0")
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    assert len(world.executions("F")) == 1


def test_flattening_leaves_preserved_copies_alone_unless_manual_trades_count(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    remove(world, "preserve")
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    assert world.open_executions("F") == []
    for _ in range(2):
        held = world.rows(
            "select * from public.positions where account_id = %s and closed_at is null", world.accounts["F"]
        )
        snapshot = [world.position(str(h["lots"]), h["side"], h["ticket"], tag=str(h["tag"])) for h in held]
        world.send("F", world.event("snapshot", positions=snapshot))
    assert world.one("select copy_state from public.trading_accounts where id = %s", world.accounts["F"]) == "off"
    world.as_user("flatten_account", {"account_id": world.accounts["F"], "include_manual": True})
    assert [e["action"] for e in world.open_executions("F")] == ["close"]


def test_a_preserved_ticket_that_is_renamed_stays_the_users(world: World) -> None:
    """MT4 gives a partly closed trade a new ticket: it is the user's all the same."""
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    remove(world, "preserve")
    ticket = world.one("select ticket from public.positions where account_id = %s", world.accounts["F"])
    world.send("F", world.event("reduced", world.position("0.60", ticket="7777", replaces=ticket)))
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    assert world.open_executions("F") == []


def test_an_open_that_fills_after_preserve_is_the_users_and_is_said_to_be(world: World) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    assert opening["cancel_requested_at"] is None
    assert remove(world, "preserve")["state"] == "removing"
    (asked,) = world.open_executions("F")
    assert asked["cancel_requested_at"] is not None
    world.fill(opening)  # too late: it was at the broker already
    assert links(world) == [("ended", "released")]
    (row,) = world.executions("F")
    assert row["warnings"] == ["filled_after_release"]
    changed(world, p, "closed", lots="0")
    assert world.open_executions("F") == []
    assert world.book("F") == [("buy", "1.00")]
    world.db.execute("select private.finish_removals()")
    assert copier(world)["removed_at"] is not None
    assert world.rows("select * from private.link_legs") == []


def test_preserve_ends_an_open_that_waits_for_another_attempt(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    world.report(opening, "rejected", reason="market_closed", retryable=True)
    remove(world, "preserve")
    (row,) = world.executions("F")
    assert (row["status"], row["reason"]) == ("cancelled", "released")
    world.come_due()
    assert world.open_executions("F") == []


def test_an_open_that_was_called_back_is_not_tried_again(world: World) -> None:
    """Refused for now after the removal: trying again would open something nobody wants any more."""
    world.copy("M", "F")
    world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    remove(world, "close_gracefully")
    world.report(opening, "rejected", reason="requote", retryable=True)
    assert [e["status"] for e in world.executions("F")] == ["rejected"]
    world.come_due()
    assert world.open_executions("F") == []


def test_what_fills_after_a_graceful_removal_was_over_is_closed(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    (opening,) = world.open_executions("F")
    remove(world, "close_gracefully")
    world.report(opening, "expired", reason="too_late")
    world.db.execute("select private.finish_removals()")
    assert copier(world)["removed_at"] is not None
    world.fill(opening)  # the report overrules: it was sent after all
    world.settle()
    assert world.book("F") == []


# -- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_removing_twice_changes_nothing(world: World, mode: str) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    first = remove(world, mode)
    before = world.rows("select id, status, cancel_requested_at from public.trade_execution_queue order by id")
    assert remove(world, mode) == first
    assert world.rows("select id, status, cancel_requested_at from public.trade_execution_queue order by id") == before
    world.settle()
    for p in world.rows(
        "select ticket from public.positions where account_id = %s and closed_at is null", world.accounts["M"]
    ):
        world.send("M", world.event("closed", world.position("0", ticket=p["ticket"])))
    world.settle()
    world.db.execute("select private.finish_removals()")
    assert [remove(world, other)["state"] for other in MODES] == ["removed"] * 3
    assert copier(world)["removal"] == mode


@pytest.mark.parametrize("mode", MODES)
def test_a_removed_copier_opens_nothing_and_needs_no_reason(world: World, mode: str) -> None:
    world.copy("M", "F")
    assert remove(world, mode)["state"] == "removed"
    world.opened("M", "1.00")
    assert world.executions("F") == []
    assert world.reasons("F") == {}


def test_another_copier_of_the_same_accounts_may_begin_while_the_first_one_leaves(world: World) -> None:
    old = world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    remove(world, "close_gracefully")
    new = world.copy("M", "F", sizing_value="2")
    assert new != old
    world.opened("M", "0.10")
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "1.00")]
    changed(world, p, "closed", lots="0")
    world.settle()
    assert world.book("F") == [("buy", "0.20")]


def test_a_copier_that_is_being_removed_cannot_be_changed(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    world.settle()
    remove(world, "close_gracefully")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("save_copier", {"id": world.copiers["M>F"], "sizing_value": "2"}),
        ("set_copier_mode", {"copier_id": world.copiers["M>F"], "mode": "on"}),
    ]
    for function, argument in calls:
        with pytest.raises(psycopg.Error, match="is being removed") as refused:
            world.as_user(function, argument)
        assert refused.value.sqlstate == "TC307"


@pytest.mark.parametrize(
    ("request_", "code"),
    [({"mode": "now"}, "TC303"), ({}, "TC303"), ({"copier_id": "x", "mode": "preserve"}, "TC001"),
     ({"copier_id": "00000000-0000-0000-0000-000000000000", "mode": "preserve"}, "TC106")],
)  # fmt: skip
def test_a_removal_that_makes_no_sense_is_refused(world: World, request_: dict[str, Any], code: str) -> None:
    world.copy("M", "F")
    with pytest.raises(psycopg.Error) as refused:
        world.as_user("remove_copier", {"copier_id": world.copiers["M>F"]} | request_)
    assert refused.value.sqlstate == code


# -- netting followers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "net"), [("preserve", "0.60"), ("close_gracefully", "0.60"), ("close_now", "-0.40")])
def test_a_share_of_a_netting_account_is_kept_followed_or_closed(world: World, mode: str, net: str) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    world.run()
    q = world.position("0.40", "sell")
    world.send("M2", world.event("opened", q))
    world.run()
    assert f"{world.net:.2f}" == "0.60"
    remove(world, mode, "M>N")
    world.run()
    assert f"{world.net:.2f}" == net
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.run()
    assert f"{world.net:.2f}" == ("0.60" if mode == "preserve" else "-0.40")
    world.send("M2", world.event("closed", q | {"lots": "0"}))
    world.run()
    assert f"{world.net:.2f}" == ("1.00" if mode == "preserve" else "0.00")
    assert world.shares() == {}


def test_what_a_netting_account_still_wants_is_not_dealt_after_the_removal(world: World) -> None:
    """The open waits behind a deal in flight: nobody has it yet, so it ends with the removal's reason."""
    world.copy("M", "N")
    world.copy("M2", "N")
    world.send("M2", world.event("opened", world.position("0.40")))
    world.opened("M", "1.00")
    remove(world, "close_gracefully", "M>N")
    world.run()
    assert f"{world.net:.2f}" == "0.40"
    assert world.reasons("N") == {"copier_removed": 1}


def test_a_deal_in_flight_leaves_its_share_to_the_user_after_preserve(world: World) -> None:
    world.copy("M", "N")
    world.opened("M", "1.00")
    (deal,) = world.open_executions("N")
    remove(world, "preserve", "M>N")
    world.deal(deal)
    assert world.shares() == {}
    assert links(world) == [("ended", "released")]
    assert world.open_executions("N") == []
