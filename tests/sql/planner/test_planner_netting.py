"""Netting followers: one deal per symbol, a ledger share per link."""

from decimal import Decimal

import pytest
from netting_harness import NettingWorld


@pytest.mark.covers("P11")
def test_two_masters_one_net_position(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    p1 = world.opened("M", "1.00")
    world.run()
    p2 = world.opened("M2", "0.40", "sell")
    world.run()
    assert world.net == Decimal("0.60")
    assert world.shares() == {"M": Decimal("1.00"), "M2": Decimal("0.40")}
    world.send("M", world.event("closed", p1 | {"lots": "0"}))
    world.run()
    assert world.net == Decimal("-0.40")
    world.send("M2", world.event("closed", p2 | {"lots": "0"}))
    world.run()
    assert world.net == 0
    assert world.rows("select 1 from public.position_links where state = 'live'") == []


def test_one_deal_in_flight_per_symbol(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "1.00")
    world.opened("M2", "0.50")
    (execution,) = world.open_executions("N")
    assert f"{execution['lots']:.2f}" == "1.00"
    world.run()
    assert world.net == Decimal("1.50")
    assert world.reasons("N") == {}


def test_a_manual_deal_against_the_copy_reduces_it_first(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "0.50")
    world.run()
    world.net -= Decimal("0.20")
    world.send("N", world.event("reduced", world.state()[0]))
    assert world.shares() == {"M": Decimal("0.30")}
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.run()
    assert world.net == 0


@pytest.mark.covers("P15")
def test_a_users_own_volume_is_left_alone(world: NettingWorld) -> None:
    world.net = Decimal("1.00")
    world.send("N", world.event("opened", world.state()[0]))
    world.copy("M", "N")
    p = world.opened("M", "0.50")
    world.run()
    assert world.net == Decimal("1.50")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.run()
    assert world.net == Decimal("1.00")


def test_a_master_flip_is_one_deal(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.run()
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    (execution,) = world.open_executions("N")
    assert (execution["side"], f"{execution['lots']:.2f}") == ("sell", "1.50")
    world.run()
    assert world.net == Decimal("-0.50")
    assert world.shares() == {"M": Decimal("0.50")}


def test_a_flip_is_shown_with_the_copy_that_it_reduces(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "0.40")
    world.run()
    world.send("M", world.event("reduced", p | {"side": "sell", "lots": "0.30"}))
    world.run()
    shown = world.rows("select side, filled_lots from public.copied_trades order by event_id")
    assert [(row["side"], row["filled_lots"]) for row in shown] == [("buy", Decimal("0.40"))] * 2


@pytest.mark.covers("P10")
def test_a_master_flip_closes_before_it_opens_at_a_hedging_follower_and_is_one_deal_at_a_netting_one(
    world: NettingWorld,
) -> None:
    world.copy("M", "F")
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    world.settle_both()
    assert (world.book("F"), world.net) == ([("buy", "1.00")], Decimal("1.00"))
    world.send("M", world.event("modified", p | {"side": "sell", "lots": "0.50"}))
    close, reopen = world.open_executions("F")
    assert [(e["action"], e["side"], f"{e['lots']:.2f}") for e in (close, reopen)] == [
        ("close", "buy", "1.00"),
        ("open", "sell", "0.50"),
    ]
    assert reopen["after_id"] == close["step_id"]
    (deal,) = world.open_executions("N")
    assert (deal["side"], f"{deal['lots']:.2f}") == ("sell", "1.50")
    world.fill(close)
    assert world.book("F") == []
    world.fill(reopen)
    world.run()
    assert (world.book("F"), world.book("N")) == ([("sell", "0.50")], [("sell", "0.50")])


@pytest.mark.covers("P12")
def test_legs_of_a_hedging_master_are_one_net_position_whose_levels_only_the_ledger_keeps(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00", sl="1.09000")
    world.run()
    q = world.opened("M", "0.40", "sell", sl="1.12000")
    (deal,) = world.open_executions("N")
    assert (deal["warnings"], deal["sl"]) == (["netting_sltp_virtual"], None)
    world.run()
    assert world.net == Decimal("0.60")
    assert world.executions("N")[-1]["sl"] is None  # the first leg's level has been taken off the common position
    (alert,) = world.rows("select account_id::text, kind, reason, severity, message from public.alerts")
    assert (alert["account_id"], alert["reason"]) == (world.accounts["N"], "netting_sltp_virtual")
    assert "EURUSD" in alert["message"]
    world.send(
        "M", world.event("closed", q | {"lots": "0"}, close_reason="sl")
    )  # the leg's stop was hit where it stands
    world.run()
    assert world.net == Decimal("1.00")
    assert f"{world.executions('N')[-1]['sl']:.2f}" == "1.09"  # the only one left has its level again
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.run()
    assert world.net == 0


def test_increase_and_reduction_follow_the_master(world: NettingWorld) -> None:
    world.copy("M", "N", sizing_value="0.5")
    p = world.opened("M", "1.00")
    world.run()
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.run()
    assert world.net == Decimal("1.00")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.run()
    assert world.net == Decimal("0.25")


def test_levels_of_the_only_share_stand_on_the_position_and_go_when_another_joins(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "1.00", sl="1.09000")
    (first,) = world.open_executions("N")
    assert f"{first['sl']:.3f}" == "1.090"
    world.run()
    world.opened("M2", "1.00")
    world.run()
    second, modify = world.executions("N")[1:]
    assert second["warnings"] == ["netting_sltp_virtual"]
    assert second["sl"] is None
    assert (modify["action"], modify["sl"]) == ("modify", None)


def test_a_refused_deal_latches_the_open(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M", "1.00")
    (execution,) = world.open_executions("N")
    world.report(execution, "rejected", reason="trade_disabled")
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    assert world.open_executions("N") == []
    assert world.rows("select reason from public.position_links") == [{"reason": "trade_disabled"}]


def test_an_open_that_waited_too_long_for_its_turn_is_too_old(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N", max_age_ms=100)
    world.opened("M", "1.00")
    world.opened("M2", "1.00")
    world.db.execute(
        "update public.position_links set wanted_until = now() - interval '1 s' where wanted_lots is not null"
    )
    world.run()
    assert world.net == Decimal("1.00")
    assert world.reasons("N") == {"too_old": 1}


def least_volume(world: NettingWorld, lots: str) -> None:
    world.db.execute(
        "update public.account_symbols set lots_min = %s where account_id = %s", (lots, world.accounts["N"])
    )


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_a_copy_under_the_least_volume_is_closed_with_its_master(world: NettingWorld, side: str) -> None:
    """Of what was asked for a part was filled, less than may be opened; brokers take a close of all that there is."""
    world.copy("M", "N")
    p = world.opened("M", "0.10", side)
    least_volume(world, "0.10")
    (execution,) = world.open_executions("N")
    world.deal(execution, filled=Decimal("0.04"))
    world.send("M", world.event("closed", p | {"lots": "0"}))
    (close,) = world.open_executions("N")
    assert (close["action"], f"{close['lots']:.2f}", close["ticket"]) == ("close", "0.04", "net-1")
    world.deal(close)
    assert world.net == 0
    assert world.rows("select 1 from public.position_links where state = 'live'") == []


def test_a_part_of_the_position_under_the_least_volume_is_closed_with_the_rest(world: NettingWorld) -> None:
    """Another copy holds the rest of the position: a close of the part alone would be refused."""
    world.copy("M", "N")
    world.copy("M2", "N")
    p, q = world.opened("M", "0.10"), world.opened("M2", "0.50")
    least_volume(world, "0.10")
    (execution,) = world.open_executions("N")
    world.deal(execution, filled=Decimal("0.04"))
    world.run()
    assert world.net == Decimal("0.54")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert world.open_executions("N") == []
    world.send("M2", world.event("closed", q | {"lots": "0"}))
    (close,) = world.open_executions("N")
    assert (close["action"], f"{close['lots']:.2f}") == ("close", "0.54")
    world.deal(close)
    assert world.net == 0
