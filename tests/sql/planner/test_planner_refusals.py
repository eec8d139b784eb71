"""What is refused or waits for another attempt holds up nothing else, and is not forgotten."""

from decimal import Decimal

import pytest
from netting_harness import NettingWorld


def test_a_waiting_modify_does_not_block_a_close(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    (m,) = world.open_executions("F")
    world.report(m, "rejected", reason="off_quotes", retryable=True)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert "close" in [e["action"] for e in world.open_executions("F")]


def test_a_retryable_modify_is_tried_three_times_and_never_blocks_for_ever(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    world.send("M", world.event("closed", p | {"lots": "0"}))
    for _ in range(8):
        for e in world.open_executions("F"):
            if e["action"] == "modify" and e["status"] == "queued":
                world.report(e, "rejected", reason="off_quotes", retryable=True)
        world.come_due()
    assert "close" in [e["action"] for e in world.executions("F")], world.acts()


def test_a_waiting_reduction_does_not_block_a_close(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.5"}))
    (m,) = world.open_executions("F")
    world.report(m, "rejected", reason="off_quotes", retryable=True)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert "close" in [e["action"] for e in world.open_executions("F")], world.acts()


def test_an_open_waiting_for_one_master_does_not_block_the_close_of_another(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N", max_age_ms=600000)
    p = world.opened("M")
    world.run()
    world.opened("M2", "3.00")
    (m,) = world.open_executions("N")
    world.report(m, "rejected", reason="no_money", retryable=True)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert [e for e in world.open_executions("N") if e["status"] == "queued"], world.acts("N")


def test_an_increase_after_a_refused_reduction(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    (r,) = world.open_executions("F")
    world.report(r, "rejected", reason="invalid_volume")
    world.send("M", world.event("increased", p | {"lots": "1.00"}))
    world.come_due()
    world.settle()
    world.come_due()
    world.settle()
    assert world.held("F") == Decimal("1.00"), world.acts()


def test_a_second_flip_after_the_close_of_the_first_was_refused(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    c = next(e for e in world.open_executions("F") if e["action"] == "close")
    o = next(e for e in world.open_executions("F") if e["action"] == "open")
    world.send("M", world.event("modified", p | {"side": "buy", "lots": "0.70"}))
    world.report(c, "rejected", reason="trade_disabled")
    world.report(o, "cancelled", reason="already_closed")
    for _ in range(3):
        for e in world.open_executions("F"):
            if e["status"] != "queued":
                continue
            if e["ticket"] is None and e["action"] == "close":
                world.report(e, filled_lots="0")
            else:
                world.fill(e)
        world.come_due()
    assert world.held("F") == Decimal("0.70"), (world.book("F"), world.acts())


def test_refused_levels_of_a_net_position_are_asked_again(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M")
    world.run()
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    (m,) = world.open_executions("N")
    world.report(m, "rejected", reason="invalid_stops")
    world.come_due()
    assert [e["action"] for e in world.open_executions("N")] == ["modify"], world.acts("N")


def test_new_levels_are_asked_whatever_was_refused_before(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M")
    world.run()
    for sl in ("1.091", "1.092", "1.093"):
        world.send("M", world.event("modified", p | {"sl": sl}))
        (m,) = world.open_executions("N")
        world.report(m, "rejected", reason="invalid_stops")
        world.come_due()
        for e in world.open_executions("N"):
            world.deal(e)
        world.db.execute(
            "update public.position_links set replan_at = now() - interval '1 s' where replan_at is not null"
        )
    world.send("M", world.event("modified", p | {"sl": "1.08"}))
    assert [e["action"] for e in world.open_executions("N")] == ["modify"], world.acts("N")


def test_a_stop_carried_by_a_refused_increase_is_still_set(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00", sl="1.09")
    world.run()
    world.send("M", world.event("increased", p | {"lots": "2.00", "sl": "1.095"}))
    (d,) = world.open_executions("N")
    world.report(d, "rejected", reason="trade_disabled", positions=world.state(sl="1.09"))
    assert [(e["action"], f"{e['sl']:.3f}") for e in world.open_executions("N")] == [("modify", "1.095")], world.acts(
        "N"
    )


def test_a_waiting_deal_of_two_links_survives_the_close_of_one(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    world.copy("M2", "N", max_age_ms=60000)
    world.opened("M", "0.10")  # in flight: the next two are summed
    world.opened("M", "1.00")
    p = world.opened("M2", "0.50")
    (d,) = world.open_executions("N")
    world.deal(d)
    (d,) = world.open_executions("N")
    assert f"{d['lots']:.2f}" == "1.50"
    world.report(d, "rejected", reason="requote", retryable=True)
    world.send("M2", world.event("closed", p | {"lots": "0"}))
    world.come_due()
    world.run()
    assert world.net == Decimal("1.10"), world.acts("N")


def test_a_refused_reduction_through_zero_is_not_resent_at_network_speed(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.run()
    world.copy("M2", "N")
    world.opened("M2", "2.00", "sell")
    world.run()  # net -1.00
    world.send("M", world.event("closed", p | {"lots": "0"}))  # sell 1.00 more: action 'open'
    for _ in range(10):
        for e in world.open_executions("N"):
            if e["status"] == "queued":
                world.report(e, "rejected", reason="trade_disabled")
    n = len([e for e in world.executions("N") if e["reason"] == "trade_disabled"])
    assert n <= 2, n


def test_a_refused_deal_of_one_does_not_block_the_close_of_another(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M")
    world.run()
    world.opened("M2", "0.50")
    (d,) = world.open_executions("N")
    world.send("M", world.event("closed", p | {"lots": "0"}))  # waits for the deal in flight
    world.report(d, "rejected", reason="trade_disabled")
    world.come_due()
    assert [e["action"] for e in world.open_executions("N")] == ["close"], world.acts("N")


def test_a_refused_deal_of_one_does_not_lose_the_open_of_another(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M")
    world.opened("M2", "0.50")
    (d,) = world.open_executions("N")
    world.report(d, "rejected", reason="off_quotes")
    assert [f"{e['lots']:.2f}" for e in world.open_executions("N")] == ["0.50"], world.acts("N")


def test_an_opposite_open_on_netting_has_an_age_limit(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "1.00")
    world.run()
    world.opened("M2", "0.40", "sell")  # dealt as 'reduce'
    (e,) = world.open_executions("N")
    world.db.execute(
        "update public.trade_execution_queue set queued_at = now() - interval '2 days', retry_until = now()"
        " - interval '2 days' where id = %s",
        (e["id"],),
    )
    world.report(e, "rejected", reason="market_closed", retryable=True)
    world.come_due()
    assert world.open_executions("N") == [], world.acts("N")  # two days later: too old, not sent again


def test_an_opposite_open_that_waits_is_dropped_when_its_master_closes(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "1.00")
    world.run()
    p = world.opened("M2", "0.40", "sell")
    (e,) = world.open_executions("N")
    world.report(e, "rejected", reason="market_closed", retryable=True)
    world.send("M2", world.event("closed", p | {"lots": "0"}))
    world.come_due()
    assert [x for x in world.open_executions("N") if x["status"] == "queued"] == [], world.acts("N")


@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize("wish", ["reduced", "closed", "removed", "flattened"])
def test_a_changed_wish_does_not_wait_for_the_pause_after_a_refusal(
    world: NettingWorld, follower: str, wish: str
) -> None:
    world.copy("M", follower)
    p = world.opened("M", "1.00")
    world.settle_both()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.report(world.open_executions(follower)[0], "rejected", reason="trade_disabled")
    world.send("M", world.event("modified", p | {"lots": "0.50"}))
    assert world.open_executions(follower) == []  # the same wish waits
    if wish == "reduced":
        world.send("M", world.event("reduced", p | {"lots": "0.30"}))
    elif wish == "closed":
        world.send("M", world.event("closed", p | {"lots": "0"}))
    elif wish == "removed":
        world.as_user("remove_copier", {"copier_id": world.copiers[f"M>{follower}"], "mode": "close_now"})
    else:
        world.as_user("flatten_account", {"account_id": world.accounts[follower]})
    expected = ("reduce", "0.70") if wish == "reduced" else ("close", "1.00")
    assert [(e["action"], f"{e['lots']:.2f}") for e in world.open_executions(follower)] == [expected]
