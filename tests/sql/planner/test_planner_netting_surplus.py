"""Netting followers: what deals moved and no copy can have. It is nobody's by right, so the next deal moves it back."""

from decimal import Decimal
from typing import Any

from netting_harness import NettingWorld
from test_planner_netting_late import closes, confess, fill_silently, given_up, nothing_of_ours_is_left


def surplus(world: NettingWorld) -> Decimal:
    return Decimal(world.one("select coalesce(sum(surplus_lots), 0) from private.net_ledgers"))


def flips(world: NettingWorld, master: str, position: dict[str, Any], side: str, lots: str) -> dict[str, Any]:
    turned = position | {"side": side, "lots": lots}
    world.send(master, world.event("modified", turned))
    return turned


def dealt_twice(world: NettingWorld) -> dict[str, Any]:
    """A broker says "requote" and deals, and deals the next attempt as well: 1.00 too much. Returns the master's
    position."""
    p = world.opened("M", "1.00")
    (one,) = world.open_executions("N")
    world.report(one, "rejected", reason="requote", retryable=True)
    world.come_due()
    (two,) = world.open_executions("N")
    for attempt in (one, two):
        fill_silently(world, attempt)
        confess(world, attempt)
    assert surplus(world) == Decimal("1.00")
    return p


def test_a_close_dealt_twice_because_the_first_filled_after_all_is_bought_back(world: NettingWorld) -> None:
    """No other copy pays for it, and nothing of it is left as if it were the user's."""
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    r = world.opened("M", "0.30")
    world.run()
    q = world.opened("M2", "1.50", "sell")
    world.run()
    p = flips(world, "M", p, "sell", "0.20")
    turn = given_up(world)
    (again,) = world.open_executions("N")
    assert (f"{turn['lots']:.2f}", f"{again['lots']:.2f}") == ("1.20", "1.00")
    fill_silently(world, turn)
    confess(world, turn)
    world.deal(again)
    assert (world.net, surplus(world)) == (Decimal("-2.40"), Decimal("-1.00"))
    world.run()
    assert (world.net, world.shares()) == (Decimal("-1.40"), {"M": Decimal("0.50"), "M2": Decimal("1.50")}), world.acts(
        "N"
    )
    assert surplus(world) == 0
    closes(world, ("M", p), ("M", r), ("M2", q))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_close_dealt_twice_of_the_only_copy_leaves_nothing(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "0.40", "sell")
    world.run()
    p = flips(world, "M", p, "buy", "0.10")
    turn = given_up(world)
    (again,) = world.open_executions("N")
    fill_silently(world, turn)
    confess(world, turn)
    world.net += again["lots"]
    confess(world, again)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.10"), {"M": Decimal("0.10")}), world.acts("N")
    closes(world, ("M", p))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_late_reduction_that_the_master_took_back_meanwhile_takes_nothing(world: NettingWorld) -> None:
    """The increase since was decided from what the copy holds: had the reduction counted, it would be copied twice."""
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "0.20")
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    q = world.opened("M2", "0.10", "sell")
    world.deal(world.open_executions("N")[0])
    world.send("M", world.event("increased", p | {"lots": "0.20"}))
    world.send("M", world.event("increased", p | {"lots": "0.30"}))
    both = given_up(world)
    fill_silently(world, both)
    confess(world, both)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.20"), {"M": Decimal("0.30"), "M2": Decimal("0.10")}), world.acts(
        "N"
    )
    closes(world, ("M", p), ("M2", q))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_an_increase_decided_while_a_reduction_is_under_way_is_copied_once(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "0.20")
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    world.opened("M2", "0.10", "sell")
    world.deal(world.open_executions("N")[0])
    (both,) = world.open_executions("N")
    assert len(both["parts"]) == 2
    world.send("M", world.event("increased", p | {"lots": "0.20"}))
    world.send("M", world.event("increased", p | {"lots": "0.30"}))
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.20"), {"M": Decimal("0.30"), "M2": Decimal("0.10")}), world.acts(
        "N"
    )


def test_an_increase_that_filled_while_it_waited_for_another_attempt_is_reduced_like_any(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = world.opened("M", "0.10")
    world.run()
    world.send("M", world.event("increased", p | {"lots": "0.20"}))
    (increase,) = world.open_executions("N")
    world.report(increase, "rejected", reason="requote", retryable=True)
    fill_silently(world, increase)
    confess(world, increase)
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.10"), {"M": Decimal("0.10")}), world.acts("N")


def test_a_surplus_is_dealt_back_though_no_copy_is_left_and_the_broker_refuses_at_first(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = dealt_twice(world)
    closes(world, ("M", p))
    (refused,) = world.open_executions("N")
    world.report(refused, "rejected", reason="trade_disabled")
    world.come_due()
    (close,) = world.open_executions("N")
    assert f"{close['lots']:.2f}" == "2.00"  # the copy's own close and the surplus in one deal
    world.deal(close, Decimal("1.00"))
    (back,) = world.open_executions("N")
    world.report(back, "rejected", reason="trade_disabled")
    assert surplus(world) == Decimal("1.00")
    assert not world.rows("select 1 from public.position_links where state = 'live'")
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_surplus_that_the_user_takes_off_himself_is_not_dealt_again(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = dealt_twice(world)
    (back,) = world.open_executions("N")
    world.report(back, "rejected", reason="trade_disabled")
    world.net -= Decimal("1.00")
    world.send("N", world.event("reduced", world.state()[0]))
    world.come_due()
    assert (world.open_executions("N"), surplus(world), world.shares()) == ([], 0, {"M": Decimal("1.00")})
    closes(world, ("M", p))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_surplus_waits_while_its_account_is_off(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = world.opened("M", "1.00")
    first = given_up(world)
    closes(world, ("M", p))
    world.as_user("pause_account", {"account_id": world.accounts["N"], "state": "off"})
    fill_silently(world, first)
    confess(world, first)
    world.come_due()
    assert world.open_executions("N") == []
    world.as_user("pause_account", {"account_id": world.accounts["N"], "state": "on"})
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_an_increase_is_served_from_a_surplus(world: NettingWorld) -> None:
    """The deal that would take it back waits for another attempt: nothing is dealt for either."""
    world.copy("M", "N", max_age_ms=60000)
    p = dealt_twice(world)
    (back,) = world.open_executions("N")
    world.report(back, "rejected", reason="requote", retryable=True)
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    assert (world.net, world.shares(), surplus(world)) == (Decimal("2.00"), {"M": Decimal("2.00")}, 0)
    assert world.open_executions("N") == []
