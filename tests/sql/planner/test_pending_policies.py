"""Pending orders that fill here and not there, that expire, and that are not copied as such; and the text of copies."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from netting_harness import NettingWorld

D = Decimal


def ordered(world: NettingWorld, **more: Any) -> dict[str, Any]:
    """The master places a buy limit at 1.09000; its copies are placed."""
    order = world.position(kind="order", order_type="limit", price="1.09000", **more)
    world.send("M", world.event("ordered", order))
    world.settle()
    return order


def mine(world: NettingWorld) -> str:
    return str(world.one("select ticket from private.link_legs"))


def master_fills(world: NettingWorld, order: dict[str, Any], age_s: float = 0.0) -> dict[str, Any]:
    position = world.position(price=order["price"], replaces=order["ticket"], sl=order["sl"])
    world.send("M", world.event("opened", position, age_s=age_s))
    return position


def copy_fills(world: NettingWorld, price: str = "1.09000") -> None:
    ticket = mine(world)
    world.send("F", world.event("opened", world.position(price=price, ticket="f" + ticket, replaces=ticket)))


def quote(world: NettingWorld, bid: str | None, ask: str | None) -> None:
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s, quoted_at = now() where account_id = %s",
        (bid, ask, world.accounts["F"]),
    )


def grace_over(world: NettingWorld) -> None:
    """The time of every order that waits has come."""
    world.db.execute("update public.position_links set order_due_at = '-infinity' where order_due_at is not null")
    world.come_due()


def link(world: NettingWorld) -> dict[str, Any]:
    (row,) = world.rows("select * from public.position_links order by id desc limit 1")
    return row


def pending(world: NettingWorld) -> list[dict[str, Any]]:
    return [e for e in world.open_executions("F") if e["status"] == "queued"]


#: what an agent says of a cancel whose order is gone: an older one that it was refused, a newer one that there was
#: nothing to do
FOUND_NOTHING = pytest.mark.parametrize(
    "said", [{"outcome": "rejected", "reason": "order_not_found"}, {"outcome": "completed", "filled_lots": "0"}]
)


@pytest.mark.covers("S14")
def test_an_order_is_moved_and_deleted_with_its_masters(world: NettingWorld) -> None:
    world.copy("M", "F")
    order = ordered(world)
    world.send("M", world.event("amended", order | {"price": "1.08500"}))
    (amend,) = pending(world)
    assert (amend["action"], amend["price"], amend["ticket"]) == ("amend", D("1.08500"), mine(world))
    world.settle()
    world.send("M", world.event("cancelled", order | {"price": "1.08500", "lots": "0"}))
    (cancel,) = pending(world)
    assert (cancel["action"], cancel["ticket"]) == ("cancel", amend["ticket"])
    world.settle()
    assert world.book("F") == []


def test_under_reverse_a_buy_limit_becomes_a_sell_stop(world: NettingWorld) -> None:
    world.copy("M", "F", reverse=True)
    world.send(
        "M",
        world.event("ordered", world.position(kind="order", order_type="limit", price="1.09000", sl="1.08", tp="1.11")),
    )
    (place,) = pending(world)
    assert (place["side"], place["order_type"], place["sl"], place["tp"]) == ("sell", "stop", D("1.11"), D("1.08"))


@pytest.mark.covers("S15")
def test_a_copy_that_filled_before_its_master_cancelled_is_closed_and_says_why(world: NettingWorld) -> None:
    world.copy("M", "F")
    order = ordered(world)
    copy_fills(world)
    world.send("M", world.event("cancelled", order | {"lots": "0"}))
    (close,) = pending(world)
    assert close["action"] == "close"
    assert link(world)["warnings"] == ["master_never_filled"]
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("S15")
def test_a_copy_that_filled_first_is_left_to_its_user_where_he_says_so(world: NettingWorld) -> None:
    world.copy("M", "F", early_fill_policy="keep")
    order = ordered(world)
    copy_fills(world)
    world.send("M", world.event("cancelled", order | {"lots": "0"}))
    assert pending(world) == []
    assert world.book("F") == [("buy", "1.00")]
    assert (link(world)["state"], link(world)["reason"]) == ("ended", "master_never_filled")
    assert world.reasons("F")["master_never_filled"] == 1


def test_a_kept_copy_does_not_survive_flattening(world: NettingWorld) -> None:
    world.copy("M", "F", early_fill_policy="keep")
    order = ordered(world)
    copy_fills(world)
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    world.send("M", world.event("cancelled", order | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("S16")
def test_a_copy_that_does_not_fill_is_cancelled_then_opened_at_the_market(world: NettingWorld) -> None:
    world.copy("M", "F", max_slippage_points=50)
    order = ordered(world, sl="1.08000")
    master_fills(world, order)
    assert pending(world) == []  # its grace
    quote(world, "1.09030", "1.09040")
    grace_over(world)
    (cancel,) = pending(world)
    assert (cancel["action"], cancel["ticket"]) == ("cancel", mine(world))
    world.fill(cancel)
    (opened,) = pending(world)
    assert (opened["action"], opened["order_type"], opened["lots"]) == ("open", "market", D("1.00"))
    assert (opened["master_price"], opened["max_slippage_points"], opened["sl"]) == (D("1.09000"), 50, D("1.08000"))
    world.fill(opened)
    grace_over(world)
    assert pending(world) == []
    assert world.book("F") == [("buy", "1.00")]
    assert link(world)["state"] == "live"


@pytest.mark.covers("S16")
@FOUND_NOTHING
def test_a_cancel_that_finds_the_order_filled_opens_nothing_more(world: NettingWorld, said: dict[str, Any]) -> None:
    world.copy("M", "F")
    order = ordered(world)
    position = master_fills(world, order)
    grace_over(world)
    (cancel,) = pending(world)
    world.report(cancel, **said)
    copy_fills(world)
    grace_over(world)
    assert pending(world) == []
    assert world.book("F") == [("buy", "1.00")]
    world.send("M", world.event("closed", position | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("S16")
@FOUND_NOTHING
def test_a_fill_that_comes_before_the_cancels_report_opens_nothing_more(
    world: NettingWorld, said: dict[str, Any]
) -> None:
    world.copy("M", "F")
    master_fills(world, ordered(world))
    grace_over(world)
    (cancel,) = pending(world)
    copy_fills(world)
    world.report(cancel, **said)
    grace_over(world)
    assert pending(world) == []
    assert world.book("F") == [("buy", "1.00")]


@pytest.mark.covers("S16")
def test_a_copy_that_fills_within_its_grace_is_left_alone(world: NettingWorld) -> None:
    world.copy("M", "F")
    master_fills(world, ordered(world))
    copy_fills(world)
    grace_over(world)
    assert [a for a, *_ in world.acts()] == ["place"]
    assert link(world)["order_due_at"] is None


@pytest.mark.covers("S16")
@pytest.mark.parametrize(
    ("settings", "bid", "age_s", "why"),
    [
        ({"max_slippage_points": 50}, "1.09100", 0.0, "slippage"),
        ({"max_slippage_points": 50}, None, 0.0, "no_quotes"),
        ({"max_age_ms": 5000, "pending_grace_ms": 2000}, "1.09000", 7.5, "too_old"),
    ],
)
def test_where_the_market_is_forbidden_the_order_stays_and_warns_once(
    world: NettingWorld, settings: dict[str, Any], bid: str | None, age_s: float, why: str
) -> None:
    world.copy("M", "F", **settings)
    order = ordered(world)
    position = master_fills(world, order, age_s)
    quote(world, bid, bid)
    grace_over(world)
    grace_over(world)
    assert pending(world) == []
    assert link(world)["warnings"] == ["order_not_filled"]
    (alert,) = world.rows("select reason, times, detail ->> 'why' as why from public.alerts")
    assert alert == {"reason": "order_not_filled", "times": 1, "why": why}
    world.send("M", world.event("closed", position | {"lots": "0"}))
    assert [e["action"] for e in pending(world)] == ["cancel"]


def test_a_paused_copier_does_not_open_in_place_of_an_order(world: NettingWorld) -> None:
    copier = world.copy("M", "F")
    master_fills(world, ordered(world))
    world.as_user("set_copier_mode", {"copier_id": copier, "mode": "monitor"})
    grace_over(world)
    assert pending(world) == []
    assert link(world)["warnings"] == ["order_not_filled"]


def test_a_master_that_closes_while_the_order_is_cancelled_gets_no_market_order(world: NettingWorld) -> None:
    world.copy("M", "F")
    position = master_fills(world, ordered(world))
    grace_over(world)
    world.send("M", world.event("closed", position | {"lots": "0"}))
    world.settle()
    assert [a for a, *_ in world.acts()] == ["place", "cancel"]
    assert (link(world)["state"], link(world)["reason"]) == ("ended", "closed")


def test_news_that_grew_old_while_the_order_was_cancelled_opens_nothing(world: NettingWorld) -> None:
    world.copy("M", "F")
    position = master_fills(world, ordered(world))
    grace_over(world)
    world.db.execute("update public.positions set unseen_at = '2020-01-01' where ticket = %s", (position["ticket"],))
    world.settle()
    assert [a for a, *_ in world.acts()] == ["place", "cancel"]
    assert world.reasons("F") == {"too_old": 1}


@pytest.mark.covers("S17")
@pytest.mark.parametrize(("age_s", "copied"), [(0.0, True), (7.0, False)])
def test_an_order_that_is_not_copied_is_copied_at_its_fill_whose_age_counts(
    world: NettingWorld, age_s: float, copied: bool
) -> None:
    world.copy("M", "F", copy_pending=False)
    order = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", order, age_s=3600))
    assert world.reasons("F") == {"copied_at_fill": 1}
    master_fills(world, order, age_s)
    assert [e["action"] for e in pending(world)] == (["open"] if copied else [])
    assert world.reasons("F").get("too_old", 0) == (0 if copied else 1)


@pytest.mark.covers("S18")
def test_an_expired_order_is_cancelled_though_nobody_tells_of_it(world: NettingWorld) -> None:
    world.copy("M", "F")
    until = datetime.now(UTC) + timedelta(hours=1)
    order = ordered(world, expires_at=until.isoformat())
    (place,) = world.executions("F")
    assert place["expires_at"] == until
    assert link(world)["order_due_at"] == until + timedelta(seconds=1)
    past = "2020-01-01T00:00:00Z"
    world.db.execute("update public.position_links set asked_expires_at = %s, order_due_at = %s", (past, past))
    world.db.execute("update public.positions set expires_at = %s where ticket = %s", (past, order["ticket"]))
    world.come_due()
    (cancel,) = pending(world)
    assert cancel["action"] == "cancel"
    world.fill(cancel)
    assert (link(world)["state"], link(world)["reason"]) == ("ended", "order_expired")
    world.send("M", world.event("cancelled", order | {"lots": "0"}, close_reason="expired"))
    assert world.reasons("F") == {"order_expired": 1}


@pytest.mark.covers("S18")
def test_an_order_whose_expiry_moves_is_amended(world: NettingWorld) -> None:
    world.copy("M", "F")
    first, later = (datetime.now(UTC) + timedelta(hours=n) for n in (1, 2))
    order = ordered(world, expires_at=first.isoformat())
    world.send("M", world.event("amended", order | {"expires_at": later.isoformat()}))
    (amend,) = pending(world)
    assert (amend["action"], amend["expires_at"]) == ("amend", later)
    assert link(world)["order_due_at"] == later + timedelta(seconds=1)


def test_an_expired_order_that_has_filled_here_waits_for_its_master(world: NettingWorld) -> None:
    world.copy("M", "F")
    ordered(world, expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    copy_fills(world)
    past = "2020-01-01T00:00:00Z"
    world.db.execute("update public.position_links set asked_expires_at = %s, order_due_at = %s", (past, past))
    world.come_due()
    assert pending(world) == []
    assert (link(world)["state"], link(world)["order_due_at"]) == ("live", None)


@pytest.mark.covers("X13")
def test_news_of_seven_seconds_is_too_old_for_five(world: NettingWorld) -> None:
    world.copy("M", "F", max_age_ms=5000)
    world.send("M", world.event("opened", world.position(), age_s=7))
    assert pending(world) == []
    assert world.reasons("F") == {"too_old": 1}


@pytest.mark.covers("X12")
def test_an_open_whose_price_stays_too_far_away_ends_as_slippage(world: NettingWorld) -> None:
    world.copy("M", "F", max_slippage_points=10, max_age_ms=200)
    world.opened("M")
    (execution,) = pending(world)
    assert (execution["master_price"], execution["max_slippage_points"]) == (D("1.10000"), 10)
    world.report(execution, "rejected", reason="price_changed", retryable=True)
    assert link(world)["reason"] == "slippage"


def test_a_comment_names_what_is_copied(world: NettingWorld) -> None:
    world.copy("M", "F", comment="{copier}: {master} #{ticket}", name="night")
    position = world.opened("M")
    (execution,) = pending(world)
    assert execution["comment"] == f"night: M #{position['ticket']}"
