"""What comes late, twice or from the side: fills after the verdict, users who trade beside the copier, forgotten
history."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from netting_harness import NettingWorld


def test_a_master_reduces_and_increases_back_while_the_open_is_in_flight(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.send("M", world.event("increased", p | {"lots": "1.00"}))
    world.settle()
    assert world.held("F") == Decimal("1.00"), world.acts()


def test_a_late_fill_of_a_side_that_was_flipped_twice_since(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (o1,) = world.open_executions("F")
    world.report(o1, "expired", reason="too_late")
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    world.settle()
    world.send("M", world.event("modified", p | {"side": "buy", "lots": "0.70"}))
    world.settle()
    world.fill(o1)
    world.settle()
    world.come_due()
    world.settle()
    assert world.book("F") == [("buy", "0.70")], world.acts()


def test_a_late_fill_of_a_deal_of_two_links_is_closed_with_them(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    z = world.opened("M", "0.10")
    p = world.opened("M", "1.00")
    q = world.opened("M2", "0.50")
    (d,) = world.open_executions("N")
    world.deal(d)
    (d,) = world.open_executions("N")
    world.report(d, "expired", reason="too_late")
    world.deal(d)  # it was filled after all
    for a, x in (("M", z), ("M", p), ("M2", q)):
        world.send(a, world.event("closed", x | {"lots": "0"}))
    world.run()
    assert world.net == 0, (world.net, world.acts("N"))


def test_a_second_attempt_filled_beside_the_first(world: NettingWorld) -> None:
    world.copy("M", "F", max_age_ms=60000)
    p = world.opened("M")
    (e,) = world.open_executions("F")
    world.report(e, "rejected", reason="requote", retryable=True)
    world.come_due()
    (e2,) = world.open_executions("F")
    assert e2["attempt"] == 2
    world.fill(e)
    world.fill(e2)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == [], world.acts()


def test_a_late_open_of_a_ticket_that_was_replaced(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.position("0.20")
    late = world.event("opened", p)
    world.send("M", world.event("reduced", world.position("0.10", replaces=p["ticket"])))
    world.send("M", late)
    world.settle()
    assert world.book("F") == [("buy", "0.10")], world.acts()


def test_a_user_closes_the_copy_during_a_modify_and_the_master_increases(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    t = world.one("select ticket from private.link_legs")
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    (m,) = world.open_executions("F")
    world.send("F", world.event("closed", world.position("0", ticket=t)))
    world.report(m, "rejected", reason="position_not_found")
    world.send("M", world.event("increased", p | {"lots": "2.00", "sl": "1.09"}))
    assert [e["action"] for e in world.executions("F")] == ["open", "modify"], world.acts()


def test_a_user_trims_the_copy_during_a_modify_and_the_master_reduces(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    t = world.one("select ticket from private.link_legs")
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    (m,) = world.open_executions("F")
    world.send("F", world.event("reduced", world.position("0.30", ticket=t)))
    world.report(m, positions=[world.position("0.30", ticket=t, sl="1.09")])
    world.send("M", world.event("reduced", p | {"lots": "0.60", "sl": "1.09"}))
    assert [e["action"] for e in world.open_executions("F")] == [], world.acts()  # 0.30 <= 0.60: nothing to take off


def test_a_stop_hit_while_a_reduction_is_in_flight_ends_the_link(world: NettingWorld) -> None:
    """As the engine reports it: position_not_found of a ticket its book has already seen close -> completed, no
    positions."""
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    t = world.one("select ticket from private.link_legs")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.send("F", world.event("closed", world.position("0", ticket=t), close_reason="sl"))
    for _ in range(5):
        for e in world.open_executions("F"):
            world.report(e, filled_lots="0")
    assert [e["action"] for e in world.executions("F")] == ["open", "reduce"], world.acts()


def test_a_close_of_a_step_that_shows_nothing_drops_nothing_else(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    (inc,) = world.open_executions("F")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    t2 = world.fill(inc)
    c1 = next(e for e in world.open_executions("F") if e["ticket"] is not None)
    c2 = next(e for e in world.open_executions("F") if e["ticket"] is None)
    world.report(c1, "rejected", reason="off_quotes", retryable=True)
    world.report(c2, filled_lots="1.00")
    world.send("F", world.event("closed", world.position("0", ticket=t2)))
    world.come_due()
    world.settle()
    assert world.book("F") == [], world.acts()


def test_a_fill_reported_after_flattening_ended_is_closed(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    (e,) = world.open_executions("F")
    world.report(e, "expired", reason="too_late")
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    for _ in range(2):
        world.send("F", world.event("snapshot", positions=[]))
    assert world.one("select copy_state from public.trading_accounts where name='F'") == "off"
    world.fill(e)
    assert "close" in [x["action"] for x in world.open_executions("F")], world.acts()


def test_retention_does_not_forget_a_close(world: NettingWorld) -> None:
    c = world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.as_user("set_copier_mode", {"copier_id": c, "mode": "off"})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.db.execute("update public.positions set closed_at = now() - interval '31 days' where closed_at is not null")
    world.db.execute("select private.delete_expired()")
    world.as_user("set_copier_mode", {"copier_id": c, "mode": "on"})
    world.settle()
    assert world.book("F") == [], world.acts()


def test_after_a_failover_a_trade_of_ten_minutes_ago_is_too_old(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.db.execute(
        "update public.trading_accounts set seen_at = now() - interval '10 min', session_vps_id = null where name = 'M'"
    )
    s = world.as_agent("M", "open_session", {"account_id": world.accounts["M"], "epoch": 1})["session"]
    world.as_agent(
        "M",
        "vps_heartbeat",
        {
            "agent_version": "1",
            "accounts": [{"account_id": world.accounts["M"], "session": s, "status": "connected", "error": None}],
        },
    )
    e = world.event(
        "snapshot",
        session=s,
        positions=[world.position(opened_at=(datetime.now(UTC) - timedelta(minutes=8)).isoformat())],
    )
    e["unchanged_at"] = None
    world.send("M", e)
    assert world.acts() == []
    assert world.reasons("F") == {"too_old": 1}


def test_an_open_is_not_sent_later_than_its_age_allows_after_a_move(world: NettingWorld) -> None:
    world.copy("M", "F", max_age_ms=5000)
    world.db.execute(
        "update public.account_vps_assignments set begins_at = now() + interval '14 s' where account_id = %s",
        (world.accounts["F"],),
    )
    world.opened("M")
    late = world.rows(
        "select 1 from public.trade_execution_queue where send_before > now() + interval '6 s' and action = 'open'"
    )
    assert late == []


def test_an_increase_while_the_reduction_before_it_is_under_way(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.settle_both()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.send("M", world.event("increased", p | {"lots": "1.00"}))
    world.settle_both()
    assert world.held("F") == Decimal("1.00"), world.acts()
    assert world.net == Decimal("1.00"), world.acts("N")


def test_a_lineage_whose_middle_ticket_comes_late_is_copied_once(world: NettingWorld) -> None:
    world.copy("M", "F")
    first = world.opened("M", "0.40")
    world.settle()
    second = world.position("0.30", replaces=first["ticket"])
    late = world.event("reduced", second)
    world.send("M", world.event("reduced", world.position("0.20", replaces=second["ticket"])))
    world.send("M", late)
    world.settle()
    assert world.book("F") == [("buy", "0.20")], world.acts()


def test_an_increase_that_waited_for_the_fill_of_a_copied_order(world: NettingWorld) -> None:
    world.copy("M", "F")
    o = world.position("1.00", kind="order", order_type="limit", price="1.09000")
    world.send("M", world.event("ordered", o))
    world.settle()
    mine = world.one("select ticket from private.link_legs")
    filled = world.position("1.00", price="1.09000", replaces=o["ticket"])
    world.send("M", world.event("opened", filled))
    world.send("M", world.event("increased", filled | {"lots": "1.50"}))
    world.send("F", world.event("opened", world.position("1.00", ticket=mine, price="1.09000")))
    world.settle()
    assert world.held("F") == Decimal("1.50"), world.acts()


def test_a_flip_goes_on_when_the_user_closes_what_could_not_be_closed(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    ticket = world.one("select ticket from private.link_legs")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    (reduction,) = world.open_executions("F")
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    world.report(reduction, "rejected", reason="trade_disabled")  # the close waits a moment, the flip for the close
    world.send("F", world.event("closed", world.position("0", ticket=ticket)))
    world.settle()
    assert world.book("F") == [("sell", "0.50")], world.acts()
