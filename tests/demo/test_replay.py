from decimal import Decimal

import pytest

from agent.demo.accounts import replaying_cast, trading_cast
from agent.demo.replay import Levels, needed_balance, safe_levels, specs_of
from agent.demo.statement import Statement, parse_statement, read_statement
from agent.demo.statement_rows import COLUMNS
from agent.testbed.figures import percentile, spread

HEADER = ",".join(COLUMNS)


def statement(*rows: str) -> Statement:
    return parse_statement("s.csv", "\n".join((HEADER, *rows)))


def row(
    ticket: int, opened: str, closed: str, *, price: str, close: str, sl: str = "0", tp: str = "0", side: str = "buy"
) -> str:
    return f"{ticket},2025.01.02 {opened},{side},0.10,EURUSD,{price},{sl},{tp},2025.01.02 {closed},{close},0,0,0,"


def test_a_stop_that_another_price_would_hit_too_early_is_left_out() -> None:
    safe = row(1, "10:00:00", "12:00:00", price="1.1000", close="1.0900", sl="1.0900", tp="1.2000")
    early = row(2, "10:00:01", "13:00:00", price="1.1000", close="1.1000", sl="1.0950")
    levels = safe_levels(statement(safe, early).actions)
    assert levels == {"1": Levels(Decimal("1.0900"), Decimal("1.2000")), "2": Levels(None, None)}


def test_levels_of_a_sell_stand_on_the_other_sides() -> None:
    [level] = safe_levels(
        statement(row(1, "10:00:00", "12:00:00", price="1.1", close="1.1", sl="1.2", tp="1.0", side="sell")).actions
    ).values()
    assert level == Levels(Decimal("1.2"), Decimal("1.0"))


def test_a_level_at_the_open_price_is_left_out() -> None:
    [level] = safe_levels(
        statement(row(1, "10:00:00", "12:00:00", price="1.1", close="1.2", sl="1.1", tp="1.1")).actions
    ).values()
    assert level == Levels(None, None)


def test_digits_come_from_the_prices() -> None:
    specs = specs_of(statement(row(1, "10:00:00", "12:00:00", price="1.10000", close="1.1")))
    assert (specs["EURUSD"].digits, specs["EURUSD"].tick_size) == (5, Decimal("0.00001"))


def traded(symbol: str, price: str, *volumes: str) -> Statement:
    return statement(
        *(
            f"{n},2025.01.02 10:00:00,buy,{lots},{symbol},{price},0,0,2025.01.02 11:00:00,{price},0,0,0,"
            for n, lots in enumerate(volumes, 1)
        )
    )


@pytest.mark.parametrize(
    ("symbol", "price", "volumes", "limits"),
    [
        ("AAPL.US", "190.10", ("2500", "10"), ("0.01", "0.01", "2500")),
        ("BTCUSD", "68250.10", ("0.001", "0.020"), ("0.001", "0.001", "100")),
        ("ETHUSD", "3890.55", ("0.0125",), ("0.0001", "0.01", "100")),
        ("US30", "40000.0", ("300",), ("0.01", "0.01", "300")),
        ("EURUSD", "1.10000", ("0.10", "5.00"), ("0.01", "0.01", "100")),
        ("SHIBUSD", "0.00001", ("1500000.5",), ("0.01", "0.01", "1500000.5")),
    ],
)
def test_step_minimum_and_maximum_fit_the_volumes(
    symbol: str, price: str, volumes: tuple[str, ...], limits: tuple[str, str, str]
) -> None:
    spec = specs_of(traded(symbol, price, *volumes))[symbol]
    assert (spec.lots_step, spec.lots_min, spec.lots_max) == tuple(map(Decimal, limits))


def test_the_sum_of_partial_closes_is_a_volume_too() -> None:
    first = row(1, "10:00:00", "11:00:00", price="1.1000", close="1.1000") + "to #2"
    rest = row(2, "10:00:00", "12:00:00", price="1.1000", close="1.1000").replace("0.10", "99.95")
    assert specs_of(statement(first, rest))["EURUSD"].lots_max == Decimal("100.05")


def test_a_follower_takes_twice_the_masters_volume_in_finer_steps_too() -> None:
    for follower in replaying_cast(traded("BTCUSD", "68250.10", "0.001", "250")).followers:
        assert follower.opening.symbols is not None
        [spec] = follower.opening.symbols
        assert spec.lots_max == 500
        assert spec.lots_step == spec.lots_min == follower.role.lots_step / 10


def test_the_balance_covers_the_worst_that_the_prices_can_do() -> None:
    loss = Decimal("0.10") * 100_000 * (Decimal("1.2") - Decimal("1.0"))
    assert needed_balance(statement(row(1, "10:00:00", "12:00:00", price="1.2", close="1.0"))) > loss


def test_every_symbol_of_a_statement_exists_at_every_follower_under_its_own_name() -> None:
    cast = replaying_cast(read_statement("example"))
    for follower in cast.followers:
        assert follower.opening.symbols is not None
        offered = {spec.name for spec in follower.opening.symbols}
        assert {follower.settings.symbols[name] for name in specs_of(read_statement("example"))} == offered


def test_followers_differ_in_currency_suffix_and_step() -> None:
    roles = [follower.role for follower in trading_cast().followers]
    assert len({role.currency for role in roles}) >= 4
    assert len({role.suffix for role in roles}) >= 4
    assert len({role.lots_step for role in roles}) >= 2
    assert {role.vps for role in roles} == {0, 1, 2}


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert spread([]) == {"p50": None, "p95": None, "p99": None, "max": None, "n": 0}
