"""How large a copy is: preview_copy, the very function that the planner sizes with."""

from decimal import Decimal
from typing import Any

import psycopg
import pytest
from planner_harness import World

EURUSD = {
    "name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD",
    "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01",
}  # fmt: skip
FUNDS = {"currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000"}


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> World:
    return World(connection)


def preview(world: World, copier: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`lots`, `sl`, `tp`, `price`: the master's trade; `master`, `follower`: funds; `symbol`, `master_symbol`:
    specifications."""
    trade = {"side": "buy", "lots": "1.00", "price": "1.10000", "sl": None, "tp": None}
    request = {
        "copier": copier,
        "master": FUNDS
        | more.get("master", {})
        | {"symbol": EURUSD | more.get("master_symbol", more.get("symbol", {}))},
        "follower": FUNDS | more.get("follower", {}) | {"symbol": EURUSD | more.get("symbol", {})},
        "trade": trade | {k: more[k] for k in ("lots", "sl", "tp", "price", "side") if k in more},
        "rates": more.get("rates", {}),
    }
    answer = world.as_user("preview_copy", request)
    assert isinstance(answer, dict)
    assert (answer["reason"] is None) == bool(answer["orders"])
    return answer


MULTIPLIER = {"sizing_mode": "multiplier"}
US30 = {"contract_size": "1", "lots_min": "0.1", "lots_step": "0.1"}


def row(name: str, *values: Any) -> Any:
    """An example that shows a row of docs/scenarios.md with that row's own numbers."""
    return pytest.param(*values, marks=pytest.mark.covers(name), id=name)


RISK = {"sizing_mode": "risk_percent", "sizing_value": "1"}
HALF = MULTIPLIER | {"sizing_value": "0.5"}
ONE = MULTIPLIER | {"sizing_value": "1"}


@pytest.mark.parametrize(
    ("copier", "more", "orders"),
    [
        row("L1", HALF, {}, ["0.5"]),
        row("L2", ONE, {"lots": "0.29"}, ["0.29"]),
        row("L2", ONE, {"lots": "0.57"}, ["0.57"]),
        row("L4", MULTIPLIER | {"sizing_value": "3"}, {"lots": "0.07"}, ["0.21"]),
        row("L5", HALF, {"lots": "0.03"}, ["0.01"]),
        row("L6", MULTIPLIER | {"sizing_value": "0.4", "min_policy": "force_min"}, {"lots": "0.01"}, ["0.01"]),
        row("L8", ONE, {"lots": "55"}, ["50"]),
        row("L9", MULTIPLIER | {"max_policy": "split"}, {"lots": "55", "symbol": {"lots_max": "20"}},
            ["20", "20", "15"]),
        row("L11", {"sizing_mode": "equity_ratio", "sizing_value": "1"},
            {"lots": "1.25", "master": {"equity": "50000"}, "follower": {"equity": "12500"}}, ["0.31"]),
        row("L12", {"sizing_mode": "balance_ratio", "sizing_value": "1"},
            {"master": {"currency": "EUR"}, "follower": {"balance": "5000", "equity": "5000"},
             "rates": {"EURUSD": "1.0850"}},
            ["0.46"]),
        row("L15", ONE, {"lots": "0.5", "symbol": US30, "master_symbol": US30 | {"contract_size": "10"}}, ["5"]),
        row("L18", ONE | {"contract_alignment": False},
            {"lots": "0.5", "symbol": US30, "master_symbol": US30 | {"contract_size": "10"}}, ["0.5"]),
        row("L19", {"sizing_mode": "fixed", "sizing_value": "0.10"}, {"lots": "2.00"}, ["0.1"]),
        row("L20", RISK, {"sl": "1.09765"}, ["0.42"]),
        row("L26", HALF | {"max_leverage": "10", "max_leverage_policy": "shrink"},
            {"follower": {"equity": "1000"}, "master": {"equity": "1000"}}, ["0.09"]),
        # further
        (MULTIPLIER | {"sizing_mode": "percentage", "sizing_value": "50"}, {}, ["0.5"]),
        ({"sizing_mode": "percentage", "sizing_value": "33"}, {"lots": "0.10"}, ["0.03"]),
        ({"sizing_mode": "free_margin_ratio"}, {"follower": {"free_margin": "2500"}}, ["0.25"]),
        ({"sizing_mode": "equity_ratio", "sizing_value": "2"}, {"follower": {"equity": "2500"}}, ["0.5"]),
        (RISK | {"reverse": True}, {"tp": "1.10235"}, ["0.42"]),
        (RISK, {"sl": "1.09765", "follower": {"currency": "EUR"}, "rates": {"EURUSD": "1.1000"}}, ["0.46"]),
        # 100 / 213.64
        # 100 USD of 100,000 / 110: an inverse rate is no decimal number, and the size is exact all the same
        (RISK, {"sl": "109.000", "price": "110.000", "symbol": {"profit_currency": "JPY"}, "rates": {"USDJPY": "110"}},
         ["0.11"]),
        ({"sizing_mode": "balance_ratio"}, {"follower": {"currency": "JPY", "balance": "1100000", "equity": "1100000"},
            "master": {"balance": "20000"}, "lots": "1.02", "rates": {"JPYUSD": "0.0075", "EURJPY": "160"}}, ["0.42"]),
        (ONE | {"max_lots": "0.30"}, {}, ["0.3"]),
        (ONE | {"max_risk_percent": "1"}, {"sl": "1.09000"}, ["0.1"]),  # 1,000 a lot, 100 allowed
        (ONE | {"max_policy": "split"}, {"lots": "100.5", "symbol": {"lots_max": "50"}}, ["50", "50", "0.5"]),
        (ONE, {"lots": "0.37", "symbol": {"lots_step": "0.05", "lots_min": "0.05"}}, ["0.35"]),
        # a cent account: 1,000,000 USC are 10,000 USD
        (ONE, {"lots": "0.10", "follower": {"currency": "USC", "equity": "1000000", "balance": "1000000"}}, ["0.1"]),
        ({"sizing_mode": "balance_ratio"}, {"follower": {"currency": "USC", "equity": "500000", "balance": "500000"}},
         ["0.5"]),
        (RISK, {"sl": "1.09000", "follower": {"currency": "USC", "balance": "1000000", "equity": "1000000"}}, ["0.1"]),
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
        row("L24", RISK, {}, "no_stop_loss"),
        row("L26", HALF | {"max_leverage": "10"}, {"follower": {"equity": "1000"}}, "max_leverage"),
        row("L27", MULTIPLIER | {"sizing_value": "3.01"}, {}, "sanity"),
        row("L28", {"sizing_mode": "balance_ratio", "sizing_value": "1"}, {"master": {"balance": "0"}}, "stale_funds"),
        row("L28", {"sizing_mode": "equity_ratio", "sizing_value": "1"}, {"follower": {"equity": None}}, "stale_funds"),
        row("L28", {"sizing_mode": "free_margin_ratio"}, {"follower": {"free_margin": "-0.01"}}, "stale_funds"),
        row("S12", RISK | {"reverse": True}, {"sl": "1.09"}, "no_stop_loss"),
        (RISK, {"sl": "1.09", "follower": {"balance": None}}, "stale_funds"),
        (RISK, {"sl": "1.09", "follower": {"currency": "CHF"}}, "stale_funds"),  # no rate
        (RISK, {"sl": "1.1001"}, "no_stop_loss"),  # beyond the price: it limits no loss
        (RISK | {"reverse": True}, {"tp": "1.0999"}, "no_stop_loss"),
        (ONE | {"max_leverage": "10"}, {"follower": {"equity": None}}, "stale_funds"),
        (ONE | {"max_risk_percent": "1"}, {"sl": "1.09", "follower": {"balance": None}}, "stale_funds"),
        (ONE | {"max_risk_percent": "1"}, {"sl": "1.09", "follower": {"balance": "0"}}, "stale_funds"),
        (ONE | {"max_risk_percent": "1"}, {"sl": "1.09", "follower": {"currency": "CHF"}}, "stale_funds"),  # no rate
        (MULTIPLIER | {"sizing_value": "0.1", "min_policy": "force_min"}, {"lots": "0.01"}, "risk_coefficient"),
        # the smallest volume is not forced over the other limits
        (MULTIPLIER | {"sizing_value": "0.5", "min_policy": "force_min", "max_leverage": "10"},
         {"lots": "0.01", "follower": {"equity": "109"}}, "max_leverage"),
        (MULTIPLIER | {"sizing_value": "1", "min_policy": "force_min", "max_risk_percent": "1"},
         {"lots": "0.01", "sl": "1.09", "follower": {"balance": "900"}}, "below_min"),
        (ONE | {"max_lots": "0.005"}, {}, "below_min"),
        ({"sizing_mode": "balance_ratio", "sizing_value": "1"}, {"master": {"currency": "EUR"}}, "stale_funds"),
    ],
)  # fmt: skip
def test_nothing_to_place_has_a_reason(world: World, copier: dict[str, Any], more: dict[str, Any], reason: str) -> None:
    assert preview(world, copier, **more)["reason"] == reason


@pytest.mark.parametrize(
    ("lots", "symbol", "orders"),
    [
        ("40.5", {"lots_min": "1", "lots_max": "20", "lots_step": "0.5"}, ["20", "19.5", "1"]),
        ("20.5", {"lots_min": "15", "lots_max": "20", "lots_step": "0.5"}, ["20"]),  # no two orders make it
        ("101.5", {"lots_max": "1"}, ["1"] * 100),
        ("8", {"lots_min": "6", "lots_max": "7.5", "lots_step": "5"}, []),
        ("12", {"lots_min": "6", "lots_max": "7.5", "lots_step": "5"}, []),  # a multiple of 5 from 6 to 7.5
    ],
)
def test_a_split_loses_nothing_in_silence(world: World, lots: str, symbol: dict[str, str], orders: list[str]) -> None:
    answer = preview(world, ONE | {"max_policy": "split"}, lots=lots, symbol=symbol)
    assert answer["orders"] == orders
    if orders:
        assert ("capped" in answer["warnings"]) == (sum(map(Decimal, orders)) < Decimal(lots))
        assert any("Cut " in words for words in answer["explain"]) == ("capped" in answer["warnings"])


@pytest.mark.covers("L27")
def test_the_sanity_factor_is_met_exactly_at_its_edge(world: World) -> None:
    assert preview(world, MULTIPLIER | {"sizing_value": "3"})["orders"] == ["3"]
    assert preview(world, MULTIPLIER | {"sizing_value": "3"}, follower={"equity": "9999"})["reason"] == "sanity"
    assert preview(world, MULTIPLIER | {"sizing_value": "4", "sanity_factor": None})["orders"] == ["4"]


@pytest.mark.parametrize(
    ("copier", "more", "words"),
    [
        (HALF, {}, [
            "The master trades 1 lots of EURUSD.", "Times the multiplier 0.5: 0.5 lots.",
            "Rounded down to steps of 0.01: 0.5 lots."]),
        ({"sizing_mode": "balance_ratio"},
         {"master": {"currency": "EUR"}, "follower": {"balance": "5000", "equity": "5000"},
          "rates": {"EURUSD": "1.0850"}}, [
            "The master trades 1 lots of EURUSD.",
            "The follower's balance is 5000 USD, the master's 10000 EUR (10850 USD): a ratio of 0.460829. 0.460829"
            " lots.",
            "Rounded down to steps of 0.01: 0.46 lots."]),
        (RISK, {"sl": "1.09765"}, [
            "The master trades 1 lots of EURUSD.",
            "1 % of the balance 10000 USD may be lost: 100. From 1.1 to the stop 1.09765 one lot loses 235: 0.425532"
            " lots.",
            "Rounded down to steps of 0.01: 0.42 lots."]),
        (HALF | {"max_leverage": "10"}, {"follower": {"equity": "1000"}}, [
            "The master trades 1 lots of EURUSD.", "Times the multiplier 0.5: 0.5 lots.",
            "0.5 lots are worth 55000 USD: 55 times the equity 1000, and the limit is 10.",
            "Nothing is placed."]),
        (MULTIPLIER | {"sizing_value": "0.1", "min_policy": "force_min"}, {"lots": "0.01"}, [
            "The master trades 0.01 lots of EURUSD.", "Times the multiplier 0.1: 0.001 lots.",
            "Rounded down to steps of 0.01: 0 lots.",
            "The smallest volume of EURUSD is 0.01 lots.",
            "That would be 10 times the wanted size, and the limit is 5 times.",
            "Nothing is placed."]),
        (MULTIPLIER | {"sizing_value": "4"}, {}, [
            "The master trades 1 lots of EURUSD.", "Times the multiplier 4: 4 lots.",
            "Rounded down to steps of 0.01: 4 lots.",
            "The trade would be worth 4400 % of the equity, the master's own 1100 %: more than 3 times as much.",
            "Nothing is placed."]),
        (ONE | {"max_risk_percent": "1"}, {}, [
            "The master trades 1 lots of EURUSD.", "Times the multiplier 1: 1 lots.",
            "The limit of 1 % of risk cannot be applied: the trade has no stop.",
            "Rounded down to steps of 0.01: 1 lots."]),
        (ONE, {"lots": "0.5", "symbol": US30, "master_symbol": US30 | {"contract_size": "10"}}, [
            "The master trades 0.5 lots of EURUSD.", "Times the multiplier 1: 0.5 lots.",
            "One lot is 10 units at the master and 1 at the follower: 5 lots.",
            "Rounded down to steps of 0.1: 5 lots."]),
        (ONE | {"max_policy": "split"}, {"lots": "55", "symbol": {"lots_max": "20"}}, [
            "The master trades 55 lots of EURUSD.", "Times the multiplier 1: 55 lots.",
            "Rounded down to steps of 0.01: 55 lots.",
            "Split into 3 orders, for one may not exceed 20."]),
        (RISK, {"sl": "1.1001"}, [
            "The master trades 1 lots of EURUSD.",
            "The follower's stop 1.1001 is not on the losing side of the price 1.1.",
            "Nothing is placed."]),
        (RISK | {"reverse": True}, {}, [
            "The master trades 1 lots of EURUSD.", "It has no take profit, which would be the follower's stop.",
            "Nothing is placed."]),
    ],
)  # fmt: skip
def test_every_step_is_explained(world: World, copier: dict[str, Any], more: dict[str, Any], words: list[str]) -> None:
    assert preview(world, copier, **more)["explain"] == words


@pytest.mark.parametrize(
    ("copier", "words"),
    [
        ({"sizing_mode": "martingale"}, "copier.sizing_mode must be multiplier, percentage,"),
        ({"sizing_value": "0"}, "copier.sizing_value must be above 0"),
        ({"sizing_value": "1000.01"}, "copier.sizing_value must be above 0 and at most 1000"),
        ({"sizing_value": "NaN"}, 'copier.sizing_value is "NaN", but must be a number'),
        ({"max_lots": "Infinity"}, 'copier.max_lots is "Infinity", but must be a number'),
        ({"max_leverage": ""}, 'copier.max_leverage is "", but must be a number'),
        ({"sizing_vlue": "0.5"}, "copier.sizing_vlue is no setting of a copier"),
        ({"min_policy": None}, "copier.min_policy must be skip or force_min"),
        ({"max_lots": "-1"}, "copier.max_lots must be above 0"),
        ({"sanity_factor": "0.5"}, "copier.sanity_factor must be 1 or more"),
    ],
)
def test_a_setting_that_no_copier_can_have_is_refused(world: World, copier: dict[str, Any], words: str) -> None:
    with pytest.raises(psycopg.Error, match=words) as refused:
        preview(world, copier)
    assert refused.value.sqlstate == "TC001"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"follower": {"balance": "NaN"}}, 'follower.balance is "NaN", but must be a number'),
        ({"master": {"equity": "Infinity"}}, 'master.equity is "Infinity", but must be a number'),
        (
            {"master_symbol": {"contract_size": "NaN"}},
            'master.symbol.contract_size is "NaN", but must be a number above 0',
        ),
        (
            {"master_symbol": {"contract_size": None}},
            "master.symbol.contract_size is null, but must be a number above 0",
        ),
        ({"rates": {"EURUSD": "NaN"}}, 'rates.EURUSD is "NaN", but must be a number'),
        ({"rates": []}, "rates must be an object"),
        ({"sl": "NaN"}, 'trade.sl is "NaN", but must be a number'),
        ({"side": "BUY"}, "trade.side must be buy or sell"),
        ({"symbol": {"lots_min": "51"}}, "lots_min and lots_step must not be above lots_max"),
    ],
)
def test_what_is_no_number_is_named(world: World, more: dict[str, Any], words: str) -> None:
    with pytest.raises(psycopg.Error, match=words) as refused:
        preview(world, ONE, **more)
    assert refused.value.sqlstate == "TC001"


@pytest.mark.covers("L8", "L18")
def test_warnings_name_what_was_changed(world: World) -> None:
    assert preview(world, MULTIPLIER, lots="55")["warnings"] == ["capped"]
    assert preview(world, MULTIPLIER, follower={"equity": None})["warnings"] == ["sanity_unchecked"]
    assert preview(world, ONE | {"max_risk_percent": "1"})["warnings"] == ["risk_unknown"]
    apart = preview(
        world, MULTIPLIER | {"contract_alignment": False}, symbol=US30, master_symbol=US30 | {"contract_size": "10"}
    )
    assert apart["warnings"] == ["contract_sizes_differ"]
    assert "Contract sizes differ 10:1 and are not aligned." in apart["explain"]


def test_a_missing_setting_has_the_tables_default(world: World) -> None:
    columns = {
        r["column_name"]: r["column_default"]
        for r in world.rows(
            "select column_name, column_default from information_schema.columns where table_name = 'copiers'"
        )
    }
    row = world.rows("select (private.default_copier()).*")[0]
    for name in ("sizing_mode", "sizing_value", "contract_alignment", "min_policy", "max_risk_coefficient",
                 "max_policy",
                 "max_leverage_policy", "sanity_factor", "reverse"):  # fmt: skip
        assert str(row[name]).lower() == str(columns[name]).split("::")[0].strip("'"), name


def test_rates_cross_by_dollar_or_euro(world: World) -> None:
    rate = 'select private.exchange_rate(%s, %s, \'{"EURUSD": "1.25", "USDJPY": "150"}\')'
    assert world.one(rate, "EUR", "USD") == Decimal("1.25")
    assert world.one(rate, "USD", "EUR") == Decimal("0.8")
    assert world.one(rate, "EUR", "JPY") == Decimal("187.5")
    assert world.one(rate, "USD", "USC") == 100
    assert world.one(rate, "CHF", "USD") is None


@pytest.mark.covers("L36")
def test_a_missing_rate_is_named(world: World) -> None:
    ratio = {"sizing_mode": "equity_ratio", "sizing_value": "1"}
    answer = preview(world, ratio, master={"currency": "CHF"}, follower={"currency": "JPY"})
    assert answer["explain"][1] == (
        "There is no recent quote of CHFJPY or JPYCHF, and none of both CHF and JPY with USD or EUR: CHF cannot be "
        "converted into JPY. Let the broker of one of the two accounts show that pair."
    )
    assert preview(world, ratio, master={"currency": None})["explain"][1].startswith("The currency of an account")


@pytest.mark.covers("L35")
def test_a_stablecoin_is_sized_at_par_and_said_so(world: World) -> None:
    answer = preview(world, {"sizing_mode": "balance_ratio", "sizing_value": "0.5"}, follower={"currency": "USDT"})
    assert (answer["orders"], answer["warnings"]) == (["0.5"], ["at_par"])
    assert "USDT counts as 1 USD, because no broker of the two quotes it." in answer["explain"]
    quoted = preview(world, {"sizing_mode": "balance_ratio"}, follower={"currency": "USDT"}, rates={"USDTUSD": "0.5"})
    assert (quoted["orders"], quoted["warnings"]) == (["0.5"], [])


@pytest.mark.covers("L33")
@pytest.mark.parametrize(("equity", "raw"), [("29.7", "29.7"), ("129.6", "129.6"), ("6.25", "6.25"), ("0.25", "0.25")])
def test_a_ratio_is_taken_as_it_is_and_not_in_bands(world: World, equity: str, raw: str) -> None:
    copier = {"sizing_mode": "equity_ratio", "sizing_value": "1", "sanity_factor": None}
    answer = preview(
        world, copier, lots="100", master={"equity": "100"}, follower={"equity": equity}, symbol={"lots_max": "500"}
    )
    assert (Decimal(answer["raw_lots"]), [Decimal(o) for o in answer["orders"]]) == (Decimal(raw), [Decimal(raw)])
