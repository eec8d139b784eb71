"""Netting followers: deals given up and filled after all. Their volume is their links', whatever was booked
meanwhile."""

from decimal import Decimal
from typing import Any

import pytest
from netting_harness import NettingWorld


def given_up(world: NettingWorld) -> dict[str, Any]:
    """The deal in flight is reported as expired."""
    (deal,) = world.open_executions("N")
    world.report(deal, "expired", reason="too_late")
    return deal


def fill_silently(world: NettingWorld, deal: dict[str, Any]) -> None:
    """The broker fills it and nobody tells."""
    world.net += deal["lots"] if deal["side"] == "buy" else -deal["lots"]


def confess(world: NettingWorld, deal: dict[str, Any], lots: str | None = None) -> None:
    """The agent has found it: it was filled."""
    world.report(deal, positions=world.state(), filled_lots=lots or str(deal["lots"]), price="1.10000", adopted=True)


def closes(world: NettingWorld, *positions: tuple[str, dict[str, Any]]) -> None:
    for master, position in positions:
        world.send(master, world.event("closed", position | {"lots": "0"}))


def nothing_of_ours_is_left(world: NettingWorld) -> bool:
    world.come_due()
    world.run()
    return world.net == 0 and not world.rows("select 1 from public.position_links where state = 'live'")


def test_a_late_fill_behind_a_later_deal_is_its_links(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    first = given_up(world)
    q = world.opened("M2", "0.50")
    fill_silently(world, first)
    world.run()  # the later deal's report shows both volumes: at this moment one of them is nobody's
    assert world.shares() == {"M2": Decimal("0.50")}
    confess(world, first)
    world.run()
    assert (world.net, world.shares()) == (Decimal("1.50"), {"M": Decimal("1.00"), "M2": Decimal("0.50")})
    closes(world, ("M", p), ("M2", q))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_late_fill_gives_back_what_it_seemed_to_take(world: NettingWorld) -> None:
    """A volume against a link looks like a stop of its position, until it turns out to be a deal of ours."""
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    first = given_up(world)
    q = world.opened("M2", "0.50", "sell")
    world.run()
    fill_silently(world, first)
    world.send("N", world.event("modified", world.state()[0]))
    assert world.shares() == {}
    confess(world, first)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.50"), {"M": Decimal("1.00"), "M2": Decimal("0.50")})
    closes(world, ("M", p))
    world.run()
    assert (world.net, world.shares()) == (Decimal("-0.50"), {"M2": Decimal("0.50")})
    closes(world, ("M2", q))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_late_fill_that_the_mirror_did_not_show_yet_is_booked_once(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    first = given_up(world)
    q = world.opened("M2", "0.50")
    world.run()
    fill_silently(world, first)
    confess(world, first)
    world.run()
    assert (world.net, world.shares()) == (Decimal("1.50"), {"M": Decimal("1.00"), "M2": Decimal("0.50")})
    closes(world, ("M2", q), ("M", p))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_late_fill_told_while_another_deal_is_under_way(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    first = given_up(world)
    q = world.opened("M2", "0.50", "sell")
    (second,) = world.open_executions("N")
    fill_silently(world, second)
    fill_silently(world, first)
    confess(world, first)
    confess(world, second)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.50"), {"M": Decimal("1.00"), "M2": Decimal("0.50")})
    closes(world, ("M", p), ("M2", q))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_users_own_volume_stays_the_users_beside_a_late_fill(world: NettingWorld) -> None:
    world.net = Decimal("0.30")
    world.send("N", world.event("opened", world.state()[0]))
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    first = given_up(world)
    q = world.opened("M2", "0.50")
    fill_silently(world, first)
    world.run()
    confess(world, first)
    closes(world, ("M", p), ("M2", q))
    world.run()
    assert world.net == Decimal("0.30"), world.acts("N")


def test_a_late_fill_of_a_reduction_that_was_repeated_meanwhile_is_undone(world: NettingWorld) -> None:
    """The deal sold for two links. One of them was served by a second deal: what was sold twice is bought back."""
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    world.run()
    first_open = world.opened("M2", "0.30", "sell")
    world.report(world.open_executions("N")[0], "rejected", reason="requote", retryable=True)
    world.send("M", world.event("reduced", p | {"lots": "0.80"}))
    world.come_due()
    both = given_up(world)
    assert f"{both['lots']:.2f}" == "0.50"
    world.run()  # the reduction by itself
    assert (world.net, world.shares()) == (Decimal("0.80"), {"M": Decimal("0.80")})
    fill_silently(world, both)
    confess(world, both)
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.50"), {"M": Decimal("0.80"), "M2": Decimal("0.30")})
    closes(world, ("M", p), ("M2", first_open))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_late_increase_counts_in_full_though_the_master_has_reduced_since(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.run()
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    increase = given_up(world)
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    world.run()
    assert world.net == Decimal("0.50")  # half of what is held, for the increase was skipped
    fill_silently(world, increase)
    confess(world, increase)
    world.run()
    assert (world.net, world.shares()) == (Decimal("1.00"), {"M": Decimal("1.00")})


def test_refused_increases_of_two_masters_rebase_each_by_its_own(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p = world.opened("M", "1.00")
    world.run()
    q = world.opened("M2", "0.40")
    world.run()
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    world.opened("M", "0.10")  # a deal under way, behind which both increases wait
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.send("M2", world.event("increased", q | {"lots": "0.80"}))
    world.deal(world.open_executions("N")[0])
    (both,) = world.open_executions("N")
    assert f"{both['lots']:.2f}" == "1.40"
    world.report(both, "rejected", reason="trade_disabled")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.run()
    assert world.shares()["M"] == Decimal("0.35"), world.acts("N")  # a quarter of 1.00, and the 0.10


def test_an_increase_that_made_a_waiting_reduction_needless_is_decided_at_once(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "0.20")
    world.run()
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    (reduction,) = world.open_executions("N")
    world.send("M", world.event("increased", p | {"lots": "0.40"}))
    world.report(reduction, "rejected", reason="requote", retryable=True)
    world.come_due()
    world.run()
    assert world.net == Decimal("0.40"), world.acts("N")


@pytest.mark.parametrize("first", [1, 2])
def test_two_attempts_that_both_filled_leave_no_more_than_was_wanted(world: NettingWorld, first: int) -> None:
    """A broker that said "requote" and dealt: the second volume is the link's, too, and is sold again."""
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    (one,) = world.open_executions("N")
    world.report(one, "rejected", reason="requote", retryable=True)
    world.come_due()
    (two,) = world.open_executions("N")
    attempts = {1: one, 2: two}
    assert two["attempt"] == 2
    for attempt in (first, 3 - first):
        fill_silently(world, attempts[attempt])
        confess(world, attempts[attempt])
    confess(world, one)
    confess(world, two)  # and all of it told again
    world.run()
    assert (world.net, world.shares()) == (Decimal("1.00"), {"M": Decimal("1.00")}), world.acts("N")
    assert world.executions("N")[0]["warnings"] == ["filled_twice"]
    closes(world, ("M", p))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_a_deal_refused_for_now_that_filled_while_another_took_over_its_part(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = world.opened("M", "0.10")
    (first,) = world.open_executions("N")
    q = world.opened("M", "0.20")
    world.report(first, "rejected", reason="requote", retryable=True)
    (both,) = world.open_executions("N")
    assert f"{both['lots']:.2f}" == "0.30"
    fill_silently(world, first)
    confess(world, first)
    world.run()
    assert world.net == Decimal("0.30"), world.acts("N")
    closes(world, ("M", p), ("M", q))
    assert nothing_of_ours_is_left(world), (world.net, world.acts("N"))


def test_what_a_late_deal_dealt_too_much_serves_an_increase(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = world.opened("M", "0.10")
    world.run()
    world.send("M", world.event("modified", p | {"side": "sell"}))
    world.net -= Decimal("0.10")
    world.send("N", world.event("closed", world.state()[0]))  # the user closes the old side himself
    flip = given_up(world)
    fill_silently(world, flip)
    confess(world, flip)
    (excess,) = world.open_executions("N")
    assert (excess["side"], f"{excess['lots']:.2f}") == ("sell", "0.10")  # a reduction of the sold position
    world.report(excess, "rejected", reason="requote", retryable=True)
    world.send("M", world.event("increased", p | {"side": "sell", "lots": "0.20"}))
    world.run()
    assert (world.net, world.shares()) == (Decimal("-0.20"), {"M": Decimal("0.20")}), world.acts("N")


def test_a_master_that_reduces_while_its_increase_waits_for_another_attempt(world: NettingWorld) -> None:
    world.copy("M", "N", max_age_ms=60000)
    p = world.opened("M", "0.10")
    world.run()
    world.send("M", world.event("increased", p | {"lots": "0.20"}))
    (increase,) = world.open_executions("N")
    world.report(increase, "rejected", reason="requote", retryable=True)
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    world.come_due()
    world.run()
    assert (world.net, world.shares()) == (Decimal("0.10"), {"M": Decimal("0.10")}), world.acts("N")
