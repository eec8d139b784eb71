"""Netting followers: one deal per symbol, a ledger share per link."""

from decimal import Decimal

from netting_world import NettingWorld


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
    world.report(execution, "rejected", reason="no_money")
    world.send("M", world.event("modified", p | {"sl": "1.09"}))
    assert world.open_executions("N") == []
    assert world.rows("select reason from public.position_links") == [{"reason": "no_money"}]


def test_an_open_that_waited_too_long_for_its_turn_is_too_old(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N", max_age_ms=100)
    world.opened("M", "1.00")
    world.opened("M2", "1.00")
    world.db.execute("update public.position_links set wanted_until = now() - interval '1 s' where wanted_lots is not null")
    world.run()
    assert world.net == Decimal("1.00")
    assert world.reasons("N") == {"too_old": 1}
