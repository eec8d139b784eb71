"""What a symbol's name means."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.paper.specs import default_specs, infer_spec, instrument

D = Decimal


@pytest.mark.parametrize(
    ("name", "plain", "contract_size", "digits", "profit", "margin"),
    [
        ("EURUSD", "EURUSD", 100000, 5, "USD", "EUR"),
        ("eurgbp-2", "EURGBP", 100000, 5, "GBP", "EUR"),
        ("usdtry", "USDTRY", 100000, 5, "TRY", "USD"),
        ("usdjpy", "USDJPY", 100000, 3, "JPY", "USD"),
        ("usdmxn-2", "USDMXN", 100000, 5, "MXN", "USD"),
        ("m.EURUSD", "EURUSD", 100000, 5, "USD", "EUR"),
        ("EURUSDc", "EURUSD", 100000, 5, "USD", "EUR"),
        ("EUR/USD", "EURUSD", 100000, 5, "USD", "EUR"),
        ("xagusd-2", "XAGUSD", 5000, 3, "USD", "USD"),
        ("XAUUSDm", "XAUUSD", 100, 2, "USD", "USD"),
        ("GOLD", "XAUUSD", 100, 2, "USD", "USD"),
        ("nas100usd-2", "NAS100", 1, 2, "USD", "USD"),
        ("US30.cash", "US30", 1, 2, "USD", "USD"),
        ("GER40", "GER40", 1, 2, "EUR", "EUR"),
        ("JP225", "JP225", 1, 0, "JPY", "JPY"),
        ("BTCUSD.m", "BTCUSD", 1, 2, "USD", "USD"),
        ("SOLUSDT", "SOLUSDT", 1, 4, "USDT", "USDT"),
        ("XTIUSD", "XTIUSD", 1000, 2, "USD", "USD"),
        ("#AAPL", "AAPL", 1, 2, "USD", "USD"),
    ],
)
def test_a_name_gives_the_usual_specification(
    name: str, plain: str, contract_size: int, digits: int, profit: str, margin: str
) -> None:
    spec = infer_spec(name)
    assert instrument(name).plain == plain
    assert (spec.name, spec.contract_size, spec.digits) == (name, D(contract_size), digits)
    assert (spec.profit_currency, spec.margin_currency) == (profit, margin)
    assert (spec.lots_min, spec.lots_step) == (D("0.01"), D("0.01"))


def test_the_digits_of_a_statement_s_prices_go_before_the_usual_ones() -> None:
    spec = infer_spec("EURUSD", 4)
    assert (spec.digits, spec.tick_size) == (4, D("0.0001"))


def test_the_default_symbols_are_the_documented_ones() -> None:
    assert [spec.name for spec in default_specs()] == [
        "EURUSD",
        "GBPUSD",
        "USDJPY",
        "XAUUSD",
        "US30",
        "NAS100",
        "BTCUSD",
    ]


@given(st.text(min_size=1, max_size=20), st.integers(0, 8))
def test_any_name_at_all_gives_a_usable_specification(name: str, digits: int) -> None:
    spec = infer_spec(name, digits)
    assert spec.name == name
    assert spec.contract_size > 0
    assert spec.lots_min <= spec.lots_max
    assert spec.profit_currency
