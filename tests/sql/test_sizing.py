"""How large a copy is: preview_copy, the very function that the planner sizes with."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from planner_world import World

from agent.local.database import Database

EURUSD = {
    "name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD",
    "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01",
}  # fmt: skip
FUNDS = {"currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000"}


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with database.connect() as connection:
        yield World(connection)


def preview(world: World, copier: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`lots`, `sl`, `tp`, `price`: the master's trade; `master`, `follower`: funds; `symbol`, `master_symbol`: specifications."""
    trade = {"side": "buy", "lots": "1.00", "price": "1.10000", "sl": None, "tp": None}
    request = {
        "copier": copier,
        "master": FUNDS | more.get("master", {}) | {"symbol": EURUSD | more.get("master_symbol", more.get("symbol", {}))},
        "follower": FUNDS | more.get("follower", {}) | {"symbol": EURUSD | more.get("symbol", {})},
        "trade": trade | {k: more[k] for k in ("lots", "sl", "tp", "price") if k in more},
        "rates": more.get("rates", {}),
    }
    answer = world.as_user("preview_copy", request)
    assert isinstance(answer, dict)
    assert (answer["reason"] is None) == bool(answer["orders"])
    return answer


def row(name: str, *example: Any) -> Any:
    """An example that shows this row of docs/scenarios.md."""
    return pytest.param(*example, marks=pytest.mark.covers(name))


MULTIPLIER = {"sizing_mode": "multiplier"}
US30 = {"contract_size": "1", "lots_min": "0.1", "lots_step": "0.1"}


@pytest.mark.parametrize(
    ("copier", "more", "orders"),
    [
        row("L1", MULTIPLIER | {"sizing_value": "0.5"}, {}, ["0.5"]),
        row("L2", MULTIPLIER | {"sizing_value": "1"}, {"lots": "0.29"}, ["0.29"]),
        row("L2", MULTIPLIER | {"sizing_value": "1"}, {"lots": "0.57"}, ["0.57"]),
        row("L4", MULTIPLIER | {"sizing_value": "3"}, {"lots": "0.07"}, ["0.21"]),
        row("L5", MULTIPLIER | {"sizing_value": "0.5"}, {"lots": "0.03"}, ["0.01"]),
        row("L6", MULTIPLIER | {"sizing_value": "0.4", "min_policy": "force_min"}, {"lots": "0.01"}, ["0.01"]),
        row("L8", MULTIPLIER | {"sizing_value": "1"}, {"lots": "55"}, ["50"]),
        row("L9", MULTIPLIER | {"max_policy": "split"}, {"lots": "55", "symbol": {"lots_max": "20"}}, ["20", "20", "15"]),
        row("L11", {"sizing_mode": "equity_ratio", "sizing_value": "1"},
         {"lots": "1.25", "master": {"equity": "50000"}, "follower": {"equity": "12500"}}, ["0.31"]),
        row("L12", {"sizing_mode": "balance_ratio", "sizing_value": "1"},
         {"master": {"currency": "EUR"}, "follower": {"balance": "5000", "equity": "5000"}, "rates": {"EURUSD": "1.0850"}},
         ["0.46"]),
        row("L15", MULTIPLIER | {"sizing_value": "1"},
         {"lots": "0.5", "symbol": US30, "master_symbol": US30 | {"contract_size": "10"}}, ["5"]),
        row("L18", MULTIPLIER | {"sizing_value": "1", "contract_alignment": False},
         {"lots": "0.5", "symbol": US30, "master_symbol": US30 | {"contract_size": "10"}}, ["0.5"]),
        ({"sizing_mode": "fixed", "sizing_value": "0.10"}, {"lots": "2.00"}, ["0.1"]),
        row("L20", {"sizing_mode": "risk_percent", "sizing_value": "1"}, {"sl": "1.09765"}, ["0.42"]),
        row("L26", MULTIPLIER | {"sizing_value": "0.5", "max_leverage": "10", "max_leverage_policy": "shrink"},
         {"follower": {"equity": "1000"}, "master": {"equity": "1000"}}, ["0.09"]),
        (MULTIPLIER | {"sizing_value": "1", "max_lots": "0.30"}, {}, ["0.3"]),
        (MULTIPLIER | {"sizing_value": "1"},  # a cent account: 100,000 USC are 1,000 USD
         {"lots": "0.10", "follower": {"currency": "USC", "equity": "1000000", "balance": "1000000"}}, ["0.1"]),
    ],
)  # fmt: skip
def test_a_size_is_exact(world: World, copier: dict[str, Any], more: dict[str, Any], orders: list[str]) -> None:
    answer = preview(world, copier, **more)
    assert [Decimal(o) for o in answer["orders"]] == [Decimal(o) for o in orders]
    assert answer["explain"]


@pytest.mark.parametrize(
    ("copier", "more", "reason"),
    [
        row("L6", MULTIPLIER | {"sizing_value": "0.4"}, {"lots": "0.01"}, "below_min"),
        (MULTIPLIER | {"sizing_value": "0.1", "min_policy": "force_min"}, {"lots": "0.01"}, "risk_coefficient"),
        row("L24", {"sizing_mode": "risk_percent", "sizing_value": "1"}, {}, "no_stop_loss"),
        ({"sizing_mode": "risk_percent", "sizing_value": "1", "reverse": True}, {"sl": "1.09"}, "no_stop_loss"),
        row("L26", MULTIPLIER | {"sizing_value": "0.5", "max_leverage": "10"}, {"follower": {"equity": "1000"}}, "max_leverage"),
        row("L27", MULTIPLIER | {"sizing_value": "4"}, {}, "sanity"),
        row("L28", {"sizing_mode": "balance_ratio", "sizing_value": "1"}, {"master": {"balance": "0"}}, "stale_funds"),
        row("L28", {"sizing_mode": "equity_ratio", "sizing_value": "1"}, {"follower": {"equity": None}}, "stale_funds"),
        ({"sizing_mode": "balance_ratio", "sizing_value": "1"}, {"master": {"currency": "EUR"}}, "stale_funds"),
    ],
)
def test_nothing_to_place_has_a_reason(world: World, copier: dict[str, Any], more: dict[str, Any], reason: str) -> None:
    assert preview(world, copier, **more)["reason"] == reason


@pytest.mark.covers("L8", "L18")
def test_warnings_name_what_was_changed(world: World) -> None:
    assert preview(world, MULTIPLIER, lots="55")["warnings"] == ["capped"]
    apart = preview(world, MULTIPLIER | {"contract_alignment": False}, symbol=US30, master_symbol=US30 | {"contract_size": "10"})
    assert apart["warnings"] == ["contract_sizes_differ"]
    assert "Contract sizes differ 10:1 and are not aligned." in apart["explain"]


def test_a_missing_setting_has_the_tables_default(world: World) -> None:
    columns = {
        r["column_name"]: r["column_default"]
        for r in world.rows("select column_name, column_default from information_schema.columns where table_name = 'copiers'")
    }
    row = world.rows("select (private.default_copier()).*")[0]
    for name in ("sizing_mode", "sizing_value", "contract_alignment", "min_policy", "max_risk_coefficient", "max_policy",
                 "max_leverage_policy", "sanity_factor", "reverse"):  # fmt: skip
        assert str(row[name]).lower() == str(columns[name]).split("::")[0].strip("'"), name


def test_rates_cross_by_dollar_or_euro(world: World) -> None:
    rate = 'select private.exchange_rate(%s, %s, \'{"EURUSD": "1.25", "USDJPY": "150"}\')'
    assert world.one(rate, "EUR", "USD") == Decimal("1.25")
    assert world.one(rate, "USD", "EUR") == Decimal("0.8")
    assert world.one(rate, "EUR", "JPY") == Decimal("187.5")
    assert world.one(rate, "USD", "USC") == 100
    assert world.one(rate, "CHF", "USD") is None


@pytest.mark.covers("L33")
@pytest.mark.parametrize(("equity", "raw"), [("29.7", "29.7"), ("129.6", "129.6"), ("6.25", "6.25"), ("0.25", "0.25")])
def test_a_ratio_is_taken_as_it_is_and_not_in_bands(world: World, equity: str, raw: str) -> None:
    copier = {"sizing_mode": "equity_ratio", "sizing_value": "1", "sanity_factor": None}
    answer = preview(world, copier, lots="100", master={"equity": "100"}, follower={"equity": equity}, symbol={"lots_max": "500"})
    assert (Decimal(answer["raw_lots"]), [Decimal(o) for o in answer["orders"]]) == (Decimal(raw), [Decimal(raw)])
