"""Rates between currencies: pairs are known by their names, stand-ins by a table, and a missing pair is named."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from planner_harness import World

from agent.connection.conversions import CENTS, CODES, PAIR

RATIO = {"sizing_mode": "balance_ratio", "sizing_value": "1", "sanity_factor": None}


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    yield w
    assert w.unexplained() == 0


def money(world: World, account: str, currency: str, amount: str = "10000") -> None:
    world.db.execute(
        "update public.trading_accounts set currency = %s, balance = %s, equity = %s, free_margin = %s,"
        " funds_at = now() where id = %s",
        (currency, amount, amount, amount, world.accounts[account]),
    )


def spec(world: World, account: str, **columns: str) -> None:
    for column, value in columns.items():
        world.db.execute(
            f"update public.account_symbols set {column} = %s where account_id = %s",
            (value, world.accounts[account]),
        )


def add(world: World, account: str, name: str, price: str, **columns: str) -> None:
    world.add_symbol(account, name, **columns)
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s where account_id = %s and name = %s",
        (price, price, world.accounts[account], name),
    )


def sent(world: World, account: str = "F") -> list[str]:
    return [f"{e['lots']:.2f}" for e in world.executions(account)]


def details(world: World) -> list[str]:
    return [row["detail"] for row in world.rows("select detail from public.copy_outcomes")]


@pytest.mark.covers("L34")
@pytest.mark.parametrize("name", ["EURUSD", "m.EURUSD.x", "EUR/USD", "EUR_USD", "FX:EUR-USD", "#eurusd", "EURUSDpro"])
def test_a_rate_comes_from_a_pair_whatever_its_name_looks_like(world: World, name: str) -> None:
    money(world, "M", "EUR")
    world.db.execute("delete from public.account_symbols where account_id = %s", (world.accounts["F"],))
    for account in "MF":
        add(world, account, "US30", "40000", margin_currency="USD", contract_size="1")
    add(world, "F", name, "1.25", margin_currency="AUD")
    world.db.execute("update public.account_symbols set quoted_at = null where account_id = %s", (world.accounts["M"],))
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00", symbol="US30", price="40000")
    assert sent(world) == ["0.80"]


@pytest.mark.covers("L35")
@pytest.mark.parametrize("coin", ["USDT", "USDC", "BUSD", "FDUSD", "DAI", "TUSD", "USDP"])
def test_a_stablecoin_counts_as_a_dollar_and_the_copy_says_so(world: World, coin: str) -> None:
    money(world, "F", coin, "5000")
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    assert sent(world) == ["0.50"]
    assert "at_par" in world.executions("F")[0]["warnings"]


@pytest.mark.covers("L35")
def test_a_stablecoin_is_converted_across_the_dollar_and_by_its_own_quote_first(world: World) -> None:
    rate = "select private.exchange_rate(%s, %s, %s::jsonb)"
    assert world.one(rate, "USDT", "USD", "{}") == 1
    assert world.one(rate, "EUR", "USDT", '{"EURUSD": "1.25"}') == Decimal("1.25")
    assert world.one(rate, "USDT", "USDC", "{}") == 1
    assert world.one(rate, "USDT", "USC", "{}") == 100
    assert world.one(rate, "usdt", "Usd", "{}") == 1
    assert world.one(rate, "EUR", "USDT", '{"EURUSD": "1.25", "USDTUSD": "0.5"}') == Decimal("2.5")
    assert world.one(rate, "EUR", "USDT", '{"EURUSD": "1.25", "EURUSDT": "1.3"}') == Decimal("1.3")
    assert world.one(rate, "EURT", "JPY", '{"EURJPY": "160"}') == 160
    assert world.one(rate, "GBX", "GBP", "{}") == Decimal("0.01")
    assert world.one(rate, "USDT", "CHF", "{}") is None


@pytest.mark.covers("L35")
def test_an_operator_says_what_a_currency_counts_as(world: World) -> None:
    rate = "select private.exchange_rate('USDX', 'USD', '{}')"
    assert world.one(rate) is None
    world.db.execute("insert into public.operators (user_id) values (%s) on conflict do nothing", (world.user,))
    answer = world.as_user("set_currency_unit", {"currency": "usdx", "counts_as": "USD", "amount": "0.9"})
    assert answer == {"currency": "USDX", "counts_as": "USD", "amount": "0.9"}
    assert world.one(rate) == Decimal("0.9")
    for wrong in (
        {"currency": "USDX", "counts_as": "USDX"},
        {"currency": "USDX", "counts_as": "USDT"},
        {"currency": "USD", "counts_as": "EUR"},
        {"currency": "USDX", "counts_as": "USD", "amount": "0"},
        {"currency": "U S", "counts_as": "USD"},
    ):
        with pytest.raises(psycopg.Error) as refused, world.db.transaction():
            world.as_user("set_currency_unit", wrong)
        assert refused.value.sqlstate == "TC001", wrong
    world.as_user("set_currency_unit", {"currency": "USDX", "counts_as": None})
    assert world.one(rate) is None


@pytest.mark.covers("L36")
@pytest.mark.parametrize(
    ("currency", "named"),
    [
        ("EUR", "EURUSD or USDEUR"),
        ("CHF", "CHFUSD or USDCHF"),
        ("EUC", "EURUSD or USDEUR"),
        ("EURT", "EURUSD or USDEUR"),
    ],
)
def test_a_refusal_names_the_pair_that_is_missing(world: World, currency: str, named: str) -> None:
    money(world, "M", currency)
    world.db.execute("update public.account_symbols set quoted_at = null")
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    assert world.reasons("F") == {"stale_funds": 1}
    assert f"There is no recent quote of {named}: {currency} cannot be converted into USD" in details(world)[0]


@pytest.mark.covers("L36")
@pytest.mark.parametrize(
    ("settings", "sl"),
    [
        ({"sizing_mode": "risk_percent", "sizing_value": "1"}, "1.09"),
        ({"max_risk_percent": "1"}, "1.09"),
        ({"max_leverage": "10"}, None),
    ],
)
def test_every_rule_that_needs_a_rate_names_it(world: World, settings: dict[str, Any], sl: str | None) -> None:
    money(world, "F", "JPY")
    world.db.execute("update public.account_symbols set quoted_at = null")
    world.copy("M", "F", **{"sanity_factor": None} | settings)
    world.opened("M", "1.00", sl=sl)
    assert world.reasons("F") == {"stale_funds": 1}
    assert "no recent quote of USDJPY or JPYUSD" in details(world)[0]
    assert "balance" not in details(world)[0]


@pytest.mark.covers("L36")
def test_money_that_is_unknown_is_not_called_a_missing_rate(world: World) -> None:
    world.db.execute("update public.trading_accounts set balance = null where id = %s", (world.accounts["F"],))
    world.copy("M", "F", **RATIO)
    world.opened("M", "1.00")
    assert "The follower's balance is not known, too old, or not above 0." in details(world)[0]


@pytest.mark.covers("L34")
def test_a_profit_currency_that_nobody_can_convert_is_read_from_the_name(world: World) -> None:
    """The broker says AUD for all its pairs; no quote of AUD exists."""
    for account in "MF":
        spec(world, account, profit_currency="AUD", margin_currency="AUD")
    world.copy("M", "F", sizing_mode="risk_percent", sizing_value="1")
    world.opened("M", "1.00", sl="1.09765")
    assert sent(world) == ["0.42"]


@pytest.mark.covers("L34")
def test_a_plain_name_comes_before_a_future_of_the_same_pair(world: World) -> None:
    add(world, "F", "EURUSD-DEC25", "1.9")
    add(world, "F", "EURUSD.f2", "1.8")
    world.db.execute("update public.account_symbols set bid = 1.1, ask = 1.1 where name = 'EURUSD'")
    rates = world.one("select private.quoted_rates(%s::uuid[], array['EUR', 'USD'])", [world.accounts["F"]])
    assert Decimal(rates["EURUSD"]) == Decimal("1.1")


def test_agent_and_database_know_the_same_pairs_and_cents(world: World) -> None:
    codes = CODES.split("|")
    for a in codes:
        for b in codes:
            assert PAIR.fullmatch(a + b)
            assert world.one("select private.pair_in(%s)", a + b) == a + b
    for cents, whole in CENTS.items():
        assert world.one("select counts_as from public.currency_units where currency = %s", cents) == whole
