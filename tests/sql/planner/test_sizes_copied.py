"""Sizes as the planner takes them: frozen at the open, followed at the close, and refused for good where they make no
sense."""

from decimal import Decimal
from typing import Any

import pytest
from netting_harness import NettingWorld


def fund(world: NettingWorld, account: str, amount: str | None, age_s: float = 0) -> None:
    world.db.execute(
        "update public.trading_accounts set balance = %(x)s, equity = %(x)s, free_margin = %(x)s,"
        " funds_at = now() - make_interval(secs => %(age)s) where id = %(id)s",
        {"x": amount, "age": age_s, "id": world.accounts[account]},
    )


def orders(world: NettingWorld, account: str = "F") -> list[tuple[str, str]]:
    return [(e["action"], f"{e['lots']:.2f}") for e in world.executions(account)]


@pytest.mark.covers("L9")
def test_a_split_copy_is_reduced_and_closed_as_one(world: NettingWorld) -> None:
    world.add_account("S", vps="b", lots_max="20", balance="1000000")
    world.copy("M", "S", max_policy="split", sanity_factor=None)
    p = world.opened("M", "55")
    assert orders(world, "S") == [("open", "20.00"), ("open", "20.00"), ("open", "15.00")]
    assert world.one("select count(*) from public.position_links") == 1
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "22"}))  # 40 %
    world.settle()
    assert world.held("S") == Decimal(22)
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("S") == []


@pytest.mark.covers("L9")
def test_a_split_copy_that_is_closed_whole_closes_all_three(world: NettingWorld) -> None:
    world.add_account("S", vps="b", lots_max="20", balance="1000000")
    world.copy("M", "S", max_policy="split", sanity_factor=None)
    p = world.opened("M", "55")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert sorted(orders(world, "S")[3:]) == [("close", "15.00"), ("close", "20.00"), ("close", "20.00")]
    world.settle()
    assert world.book("S") == []


@pytest.mark.covers("L19")
def test_a_fixed_size_is_halved_with_the_master(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_mode="fixed", sizing_value="0.10")
    p = world.opened("M", "2.00")
    world.settle()
    assert world.book("F") == [("buy", "0.10")]
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    world.settle()
    assert world.book("F") == [("buy", "0.05")]


@pytest.mark.covers("L24")
def test_a_stop_set_later_does_not_bring_a_trade_without_one_back(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_mode="risk_percent", sizing_value="1")
    p = world.opened("M", "1.00")
    assert world.reasons("F") == {"no_stop_loss": 1}
    world.send("M", world.event("modified", p | {"sl": "1.09765"}))
    assert world.executions("F") == []
    assert world.reasons("F") == {"no_stop_loss": 1, "not_copied": 1}
    world.opened("M", "1.00", sl="1.09765")
    assert orders(world) == [("open", "0.42")]


@pytest.mark.covers("L27")
def test_a_size_that_makes_no_sense_is_refused_and_its_user_told(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_value="3")  # exactly three times the master's exposure per equity
    world.opened("M", "0.10")
    assert orders(world) == [("open", "0.30")]
    fund(world, "F", "9999")
    world.opened("M", "0.10")
    world.opened("M", "0.10")
    assert orders(world) == [("open", "0.30")]
    assert world.reasons("F") == {"sanity": 2}
    (alert,) = world.rows("select account_id::text, kind, reason, times, message from public.alerts")
    assert (alert["account_id"], alert["kind"], alert["reason"], alert["times"]) == (
        world.accounts["F"],
        "copy",
        "sanity",
        2,
    )
    assert "far larger" in alert["message"]


@pytest.mark.covers("L28")
@pytest.mark.parametrize("mode", ["balance_ratio", "equity_ratio", "free_margin_ratio"])
@pytest.mark.parametrize("whose", ["M", "F"])
@pytest.mark.parametrize(("amount", "age_s"), [("0", 0), ("-5", 0), (None, 0), ("10000", 61)])
def test_a_ratio_of_money_that_is_not_known_is_no_ratio(
    world: NettingWorld, mode: str, whose: str, amount: Any, age_s: float
) -> None:
    world.copy("M", "F", sizing_mode=mode)
    fund(world, whose, amount, age_s)
    world.opened("M", "1.00")
    assert world.executions("F") == []
    assert world.reasons("F") == {"stale_funds": 1}
    fund(world, "M", "10000", 50)
    fund(world, "F", "5000", 50)
    world.opened("M", "1.00")
    assert orders(world) == [("open", "0.50")]


@pytest.mark.covers("L31")
def test_a_chain_sizes_each_hop_and_refuses_a_circle(world: NettingWorld) -> None:
    world.add_account("G", vps="c")
    world.copy("M", "F", sizing_value="0.5")
    world.copy("F", "G", sizing_value="0.5")
    with pytest.raises(Exception, match="circle") as refused:
        world.copy("G", "M")
    assert getattr(refused.value, "sqlstate", "") == "TC305"
    with pytest.raises(Exception, match="cannot follow itself") as refused:
        world.copy("M", "M")
    assert getattr(refused.value, "sqlstate", "") == "TC305"
    world.opened("M", "0.03")
    world.settle()
    assert (world.book("F"), world.book("G")) == ([("buy", "0.01")], [])
    assert world.reasons("G") == {"below_min": 1}


@pytest.mark.covers("L32")
def test_a_deposit_changes_the_next_open_and_no_close(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_mode="balance_ratio")
    fund(world, "F", "5000")
    p = world.opened("M", "1.00")
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    fund(world, "F", "20000")
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    assert world.book("F") == [("buy", "0.25")]
    world.opened("M", "0.10")
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "0.25")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20")]
