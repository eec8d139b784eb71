"""The rows of sizing once more, through the planner: what a follower's broker is told, and what closes do with it."""

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
    yield w
    assert w.unexplained() == 0


def funds(world: World, account: str, balance: str | None, currency: str = "USD", age_s: int = 0) -> None:
    world.db.execute(
        "update public.trading_accounts set balance = %s, equity = %s, free_margin = %s, currency = %s,"
        " funds_at = now() - make_interval(secs => %s) where id = %s",
        (balance, balance, balance, currency, age_s, world.accounts[account]),
    )


def spec(world: World, account: str, **columns: str) -> None:
    for column, value in columns.items():
        world.db.execute(
            f"update public.account_symbols set {column} = %s where account_id = %s",
            (value, world.accounts[account]),
        )


def lots(world: World, account: str = "F") -> list[str]:
    return [f"{e['lots']:f}".rstrip("0").rstrip(".") for e in world.executions(account)]


@pytest.mark.covers("L9")
def test_a_split_open_is_one_copy(world: World) -> None:
    funds(world, "M", "1000000")
    funds(world, "F", "1000000")
    spec(world, "F", lots_max="20")
    world.copy("M", "F", max_policy="split")
    p = world.opened("M", "55")
    assert lots(world) == ["20", "20", "15"]
    world.settle()
    assert world.one("select count(*) from public.position_links") == 1
    world.send("M", world.event("reduced", p | {"lots": "22"}))  # 40 % are left
    world.settle()
    assert sum(Decimal(held) for _, held in world.book("F")) == 22
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("L11")
def test_the_ratio_of_equity(world: World) -> None:
    funds(world, "M", "50000")
    funds(world, "F", "12500")
    world.copy("M", "F", sizing_mode="equity_ratio")
    world.opened("M", "1.25")
    assert lots(world) == ["0.31"]


@pytest.mark.covers("L12")
def test_the_ratio_of_balances_in_two_currencies_by_the_accounts_own_quotes(world: World) -> None:
    funds(world, "M", "10000", "EUR")
    funds(world, "F", "5000")
    spec(world, "F", bid="1.0850", ask="1.0850")
    spec(world, "M", bid="1.0850", ask="1.0850")
    world.copy("M", "F", sizing_mode="balance_ratio")
    world.opened("M", "1.00")
    assert lots(world) == ["0.46"]


@pytest.mark.parametrize(("cents", "whole"), [("USC", "USD"), ("EUC", "EUR"), ("GBC", "GBP")])
def test_an_account_in_cents_is_converted_by_the_quotes_of_its_money(world: World, cents: str, whole: str) -> None:
    """10 000 of its money at both, and JPY has a quote in that money only."""
    funds(world, "M", "1500000", "JPY")
    funds(world, "F", "1000000", cents)
    for account in "MF":
        spec(world, account, bid="100", ask="100", name=f"{whole}JPY", profit_currency="JPY")
    world.copy("M", "F", sizing_mode="balance_ratio")
    world.opened("M", "0.03", symbol=f"{whole}JPY", price="100")
    assert lots(world) == ["0.02"]


@pytest.mark.parametrize(("ages_s", "rate"), [((0, 61), "1.1"), ((61, 0), "1.2"), ((61, 61), None)])
def test_money_is_converted_by_live_quotes_only(world: World, ages_s: tuple[int, int], rate: str | None) -> None:
    funds(world, "M", "12000", "EUR")
    for account, quote, age_s in zip("FM", ("1.1", "1.2"), ages_s, strict=True):
        spec(world, account, bid=quote, ask=quote)
        world.db.execute(
            "update public.account_symbols set quoted_at = now() - make_interval(secs => %s) where account_id = %s",
            (age_s, world.accounts[account]),
        )
    world.copy("M", "F", sizing_mode="balance_ratio")
    world.opened("M", "1.00")
    size = None if rate is None else str(int(Decimal(10000) / (12000 * Decimal(rate)) * 100) / Decimal(100))
    assert lots(world) == ([] if size is None else [size])
    assert world.reasons("F") == ({} if rate else {"stale_funds": 1})


@pytest.mark.covers("L15", "L18")
@pytest.mark.parametrize(("aligned", "size"), [(True, "5"), (False, "0.5")])
def test_contract_sizes_are_aligned_unless_that_is_off(world: World, aligned: bool, size: str) -> None:
    index = {"digits": 1, "tick_size": "0.1", "lots_min": "0.1", "lots_step": "0.1", "margin_currency": "USD"}
    world.add_symbol("M", "US30", **index, contract_size="10")
    world.add_symbol("F", "US30", **index, contract_size="1")
    world.copy("M", "F", contract_alignment=aligned)
    world.opened("M", "0.5", symbol="US30", price="39000.0")
    assert lots(world) == [size]
    assert world.executions("F")[0]["warnings"] == ([] if aligned else ["contract_sizes_differ"])


@pytest.mark.covers("L19")
def test_a_fixed_size_is_reduced_by_the_masters_share(world: World) -> None:
    world.copy("M", "F", sizing_mode="fixed", sizing_value="0.10")
    p = world.opened("M", "2.00")
    world.settle()
    assert world.book("F") == [("buy", "0.10")]
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    world.settle()
    assert world.book("F") == [("buy", "0.05")]


@pytest.mark.covers("L20")
def test_risk_by_the_distance_of_the_stop(world: World) -> None:
    world.copy("M", "F", sizing_mode="risk_percent", sizing_value="1")
    world.opened("M", "1.00", sl="1.09765")
    assert lots(world) == ["0.42"]


@pytest.mark.parametrize(
    ("settings", "how", "size"),
    [
        ({}, "increased", "0.06"),  # 1500 points
        ({}, "existing", "0.06"),
        ({"sl_mode": "distance"}, "existing", "1"),  # 10 from the price it opens at
        ({"sl_mode": "fixed", "sl_points": 100}, "existing", "1"),
        # from what the copy was opened at, 1.10000, to its stop, and the way to there
        ({"sl_mode": "distance"}, "increased", "0.06"),
        ({"sl_mode": "fixed", "sl_points": 100}, "increased", "0.06"),
        (
            {"sl_mode": "fixed", "sl_points": 100, "reverse": True},
            "increased",
            "1",
        ),  # sold lower, stopped at 1.10100 or 1.11580
        ({"max_sl_points": 50}, "increased", "0.06"),
    ],
)
def test_what_is_opened_later_risks_from_the_price_it_is_opened_at(
    world: World, how: str, settings: dict[str, Any], size: str
) -> None:
    """The stop has come close to where the master began, and the price has gone far away."""
    settings = {"sizing_mode": "risk_percent", "sizing_value": "1", "max_lots": "1", "sanity_factor": None} | settings
    world.db.execute("update public.account_symbols set bid = 1.1148, ask = 1.1149")
    if how == "increased":
        world.copy("M", "F", **settings)
        p = world.opened("M", "1.00", sl="1.09")
        world.settle()
        world.send("M", world.event("increased", p | {"lots": "2.00", "sl": "1.0999"}))
        world.settle()
    else:
        world.opened("M", "1.00", sl="1.0999")
        world.copy("M", "F", copy_existing="all", **settings)
    opened = [e["lots"] for e in world.executions("F") if e["action"] in ("open", "increase")]
    assert opened[-1] == Decimal(size)


@pytest.mark.covers("L24", "S12")
@pytest.mark.parametrize(("reverse", "late"), [(False, {"sl": "1.09"}), (True, {"tp": "1.11"})])
def test_a_stop_that_comes_later_does_not_bring_back_what_was_skipped(
    world: World, reverse: bool, late: dict[str, str]
) -> None:
    world.copy("M", "F", sizing_mode="risk_percent", sizing_value="1", reverse=reverse)
    p = world.opened("M", "1.00")
    assert world.reasons("F") == {"no_stop_loss": 1}
    world.send("M", world.event("modified", p | late))
    assert lots(world) == []
    assert world.reasons("F") == {"no_stop_loss": 1, "not_copied": 1}


@pytest.mark.covers("L26")
@pytest.mark.parametrize(
    ("policy", "sent", "reasons"), [("discard", [], {"max_leverage": 1}), ("shrink", ["0.09"], {})]
)
def test_the_limit_on_leverage(world: World, policy: str, sent: list[str], reasons: dict[str, int]) -> None:
    funds(world, "F", "1000")
    funds(world, "M", "1000")
    world.copy("M", "F", sizing_value="0.5", max_leverage="10", max_leverage_policy=policy)
    world.opened("M", "1.00")
    assert lots(world) == sent
    assert world.reasons("F") == reasons


@pytest.mark.covers("L27")
def test_a_size_beyond_all_proportion_is_blocked_and_told(world: World) -> None:
    world.copy("M", "F", sizing_value="3.01")
    world.opened("M", "1.00")
    assert lots(world) == []
    assert world.reasons("F") == {"sanity": 1}
    (alert,) = world.rows("select account_id::text, kind, reason, message from public.alerts")
    assert (alert["account_id"], alert["kind"], alert["reason"]) == (world.accounts["F"], "copy", "sanity")
    assert alert["message"].startswith("A trade of EURUSD was not copied")


@pytest.mark.covers("L28")
@pytest.mark.parametrize("whose", ["M", "F"])
@pytest.mark.parametrize(("balance", "age_s"), [("0", 0), (None, 0), ("-1", 0), ("10000", 61)])
def test_a_ratio_of_unknown_funds_is_no_ratio(world: World, whose: str, balance: str | None, age_s: int) -> None:
    funds(world, whose, balance, age_s=age_s)
    world.copy("M", "F", sizing_mode="balance_ratio")
    world.opened("M", "1.00")
    assert lots(world) == []
    assert world.reasons("F") == {"stale_funds": 1}


@pytest.mark.covers("L31")
def test_a_chain_copies_by_its_own_sizes(world: World) -> None:
    world.add_account("G", vps="b")
    world.copy("M", "F", sizing_value="0.5")
    world.copy("F", "G", sizing_value="0.5")
    world.opened("M", "0.03")
    world.settle()
    assert lots(world) == ["0.01"]
    assert lots(world, "G") == []
    assert world.reasons("G") == {"below_min": 1}
    with pytest.raises(Exception, match="already reach the master"):
        world.copy("G", "M")


@pytest.mark.covers("L32")
def test_a_deposit_changes_new_opens_and_no_reduction(world: World) -> None:
    funds(world, "M", "10000")
    funds(world, "F", "5000")
    world.copy("M", "F", sizing_mode="balance_ratio")
    p = world.opened("M", "1.00")
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    funds(world, "F", "20000")
    world.send("M", world.event("reduced", p | {"lots": "0.60"}))
    world.settle()
    assert world.book("F") == [("buy", "0.30")]
    world.opened("M", "0.10")
    assert lots(world)[-1] == "0.2"


def test_a_percentage_is_a_multiplier(world: World) -> None:
    world.copy("M", "F", sizing_mode="percentage", sizing_value="50")
    world.opened("M", "0.50")
    assert lots(world) == ["0.25"]


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"sizing_mode": "free_margin_ratio"}, ["0.25"]),
        ({"max_risk_percent": "1"}, ["0.02"]),  # 25 of 2,500; 1,000 a lot
        ({"sizing_value": "0.001"}, []),
        ({"sizing_value": "0.005", "min_policy": "force_min"}, ["0.01"]),
        ({"sizing_value": "0.001", "min_policy": "force_min"}, []),  # ten times what was wanted
    ],
)
def test_further_modes_and_policies(world: World, settings: dict[str, Any], sent: list[str]) -> None:
    funds(world, "F", "2500")
    world.copy("M", "F", **{"sanity_factor": None} | settings)
    world.opened("M", "1.00", sl="1.09000")
    assert lots(world) == sent
