"""Sizes by free margin: what was opened since the figures were read is deducted; closes give nothing back before the
broker says so."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from planner_harness import World


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    # one lot of EURUSD at 1.1001 needs 3,667 at the follower; the master hardly needs any margin
    funds(w, "M", "10000", leverage=100000)
    funds(w, "F", "1000", leverage=30)
    yield w
    assert w.unexplained() == 0


def funds(world: World, account: str, amount: str | None, leverage: int | None = None) -> None:
    world.db.execute(
        "update public.trading_accounts set balance = %(x)s, equity = %(x)s, free_margin = %(x)s,"
        " leverage = %(leverage)s, funds_at = now() - interval '4 s' where id = %(id)s",
        {"x": amount, "leverage": leverage, "id": world.accounts[account]},
    )


def sent(world: World, account: str = "F") -> list[str]:
    return [f"{e['lots']:.2f}" for e in world.executions(account) if e["action"] in ("open", "increase")]


RATIO = {"sizing_mode": "free_margin_ratio", "sanity_factor": None}


@pytest.mark.covers("L37")
def test_the_second_of_two_trades_is_sized_by_what_is_left(world: World) -> None:
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    world.opened("M", "1.00")
    assert sent(world) == ["0.10", "0.06"]  # 1,000, then 633.30 of 10,000
    world.opened("M", "1.00")
    assert sent(world)[2] == "0.04"


@pytest.mark.covers("L37")
def test_a_fill_counts_until_figures_are_read_after_it(world: World) -> None:
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    world.settle()
    world.opened("M", "1.00")
    assert sent(world) == ["0.10", "0.06"]
    world.settle()
    world.db.execute(
        "update public.trading_accounts set free_margin = 400, funds_at = clock_timestamp() where id = %s",
        (world.accounts["F"],),
    )
    world.opened("M", "1.00")
    assert sent(world)[2] == "0.04"


@pytest.mark.covers("L37")
def test_two_trades_of_one_call_count_against_each_other(world: World) -> None:
    world.copy("M", "F", **RATIO)
    trades = [world.event("opened", world.position("1.00")) for _ in range(2)]
    world.send("M", *trades)
    assert sorted(sent(world)) == ["0.06", "0.10"]


@pytest.mark.covers("L37")
def test_a_close_gives_nothing_back_before_the_broker_says_so(world: World) -> None:
    world.copy("M", "F", **RATIO)
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    world.opened("M", "1.00")
    assert sent(world) == ["0.10", "0.06"]


@pytest.mark.covers("L37")
def test_trades_of_the_master_that_its_figures_do_not_show_are_deducted_too(world: World) -> None:
    funds(world, "M", "10000", leverage=50)
    funds(world, "F", "1000", leverage=30)
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    world.opened("M", "1.00")
    assert sent(world) == ["0.10", "0.08"]  # 633 of 7,800; 2,200 are the first trade's margin


@pytest.mark.covers("L37")
@pytest.mark.parametrize("mode", ["multiplier", "balance_ratio", "equity_ratio"])
def test_other_modes_do_not_look_at_margin(world: World, mode: str) -> None:
    funds(world, "F", "10000", leverage=None)
    world.copy("M", "F", sizing_mode=mode, sanity_factor=None)
    world.opened("M", "0.10")
    world.opened("M", "0.10")
    assert sent(world) == ["0.10", "0.10"]


@pytest.mark.covers("L37")
def test_margin_that_cannot_be_estimated_makes_the_free_margin_unknown(world: World) -> None:
    funds(world, "F", "1000", leverage=None)
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    assert sent(world) == ["0.10"]  # nothing is under way
    world.opened("M", "1.00")
    assert sent(world) == ["0.10"]
    assert world.reasons("F") == {"stale_funds": 1}
    detail = world.one("select detail from public.copy_outcomes where reason = 'stale_funds'")
    assert "free margin is not known" in detail
    assert "leverage" in detail


@pytest.mark.covers("L37", "X4")
def test_a_shrunk_attempt_fits_beside_what_is_under_way(world: World) -> None:
    world.copy("M", "F", sizing_value="0.1", no_money_policy="shrink", sanity_factor=None)
    world.opened("M", "1.00")
    world.opened("M", "2.00")
    first, second = world.executions("F")
    affordable = "select private.affordable_lots(q, now()) from public.trade_execution_queue q where q.id = %s"
    assert world.one(affordable, second["id"]) == Decimal("0.17")  # 1,000 less 366.70, at 3,667 a lot
    assert world.one(affordable, first["id"]) == Decimal("0.07")  # the second is on its way too


@pytest.mark.covers("L37")
def test_a_netting_follower_counts_what_it_is_about_to_be_given(world: World) -> None:
    world.db.execute("update public.trading_accounts set mode = 'netting' where id = %s", (world.accounts["F"],))
    world.copy("M", "F", **RATIO)
    trades = [world.event("opened", world.position("1.00")) for _ in range(2)]
    world.send("M", *trades)
    world.settle()
    assert sorted(world.one("select array_agg(sized_lots) from public.position_links")) == [
        Decimal("0.06"),
        Decimal("0.10"),
    ]


@pytest.mark.covers("L37")
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, False),
        ({"sizing_mode": "fixed"}, False),
        ({"sizing_mode": "free_margin_ratio"}, True),
        ({"sizing_mode": "balance_ratio"}, True),
        ({"sizing_mode": "risk_percent"}, True),
        ({"no_money_policy": "shrink"}, True),
        ({"max_leverage": "10"}, True),
    ],
)
def test_figures_behind_each_fill_are_wanted_where_sizes_depend_on_them(
    world: World, settings: dict[str, Any], wanted: bool
) -> None:
    world.copy("M", "F", **settings)
    for account in "MF":
        beat = world.as_agent(account, "vps_heartbeat", {})
        assert [a["funds_after_fills"] for a in beat["assignments"] if a["login"] == account] == [wanted]
