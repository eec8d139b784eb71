"""Another name is taken only where it can mean nothing but the master's instrument."""

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from planner_harness import World

#: five roots that are known, so that their affix is proven
KNOWN = ("EURUSD", "GBPUSD", "USDJPY", "AUDUSD", "XAUUSD")


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.db.execute("delete from public.account_symbols where account_id = %s", (w.accounts["F"],))
    yield w
    assert w.unexplained() == 0


def copied_into(world: World, master: str, follower: Sequence[str], **spec: Any) -> str | None:
    """The master trades its symbol; where the order of a follower that has these symbols goes."""
    if master != "EURUSD":
        world.add_symbol("M", master, **spec)
    for name in follower:
        world.add_symbol("F", name, **spec)
    world.copy("M", "F")
    world.opened("M", "0.10", symbol=master)
    orders = world.executions("F")
    assert world.reasons("F") == ({} if orders else {"symbol_unmapped": 1})
    return orders[0]["symbol"] if orders else None


@pytest.mark.covers("X17")
@pytest.mark.parametrize(
    ("master", "other"),
    [
        ("Boom 500 Index", "Boom 300 Index"),
        ("Boom 500 Index", "BOOM 1000 INDEX"),
        ("Crash 500 Index", "Crash 500 Index (1s)"),
        ("Volatility 75 Index", "Volatility 75 (1s) Index"),
        ("RDS.A", "RDS.B"),
        ("BRK.B", "BRK.A"),
        ("brk-b", "BRK-A"),
        ("BRK/B", "BRK/A"),
        ("BF.B", "BF"),
        ("ZZTOP", "ZZTOP.old"),
        ("Step_Index", "Step_200"),
        ("US$IDX", "US€IDX"),
        ("$SPX", "€SPX"),
        ("DAX", "DAX Short 3x"),
        ("GOLD", "Gold Fields"),
    ],
)
def test_what_follows_an_odd_character_is_no_suffix(world: World, master: str, other: str) -> None:
    assert copied_into(world, master, [other]) is None


@pytest.mark.covers("X17")
@pytest.mark.parametrize(
    ("master", "follower", "chosen"),
    [
        ("Boom 500 Index", ["Boom 300 Index", "boom 500 index"], "boom 500 index"),
        ("BRK.B", ["BRK.A.r", "BRK.B.r", *(f"{k}.r" for k in KNOWN)], "BRK.B.r"),
        ("ZZTOP", ["ZZTOP.r", *(f"{k}.r" for k in KNOWN)], "ZZTOP.r"),
        ("ZZTOP", ["ZZTOP.r", *(f"{k}.r" for k in KNOWN[:4])], None),  # four roots prove nothing
        ("ZZTOP", ["ZZTOP.r", *(f"{k}.r" for k in KNOWN), *KNOWN], None),  # not more than half of them
        ("ZZTOP", ["ZZTOP.old", *(f"{k}.r" for k in KNOWN)], None),
        ("ZZTOP", ["m.ZZTOP", *(f"m.{k}" for k in KNOWN)], "m.ZZTOP"),
        ("ZZTOP", ["ZZTOP.pro"], "ZZTOP.pro"),  # a listed affix
        ("EURUSD", ["EUR/USD"], "EUR/USD"),
        ("EURUSD", ["EURUSD z"], "EURUSD z"),
        ("GER40", ["DE40.24h"], "DE40.24h"),
    ],
)
def test_an_affix_is_proven_or_listed_or_the_root_is_known(
    world: World, master: str, follower: Sequence[str], chosen: str | None
) -> None:
    assert copied_into(world, master, follower) == chosen


DATED = (
    "US30-DEC25", "US30_JUN26", "US30.DEC", "US30-20251219", "US30-MAR25", "US30 Dec 25", "us30-dec", "US30-19DEC25",
    "US30-DECEMBER-2025", "US30_Z25", "US30.Z5", "US30-Z2025", "US30-Q4-25", "US30.4Q26", "US30-26Q1", "US30-2025",
    "US30 2026", "US30.26", "US30-251219", "US30-19.12.2025", "US30_2025-12", "US30-2512", "US30#Z25", "US30-DEC25.r",
    "US30.fut", "US30-FT", "US30DEC25", "US30DEC25.r", "US30Z6", "US30251219",
)  # fmt: skip


@pytest.mark.covers("X18")
@pytest.mark.parametrize("dated", DATED)
@pytest.mark.parametrize("turned", [False, True])
def test_a_dated_contract_is_not_the_instrument_itself(world: World, dated: str, turned: bool) -> None:
    assert copied_into(world, *((dated, ["US30"]) if turned else ("US30", [dated]))) is None


@pytest.mark.covers("X18")
@pytest.mark.parametrize(
    ("master", "other"),
    [("US30-DEC25", "US30-MAR26"), ("US30-DEC25", "DJ30-DEC26"), ("EURUSD_Z5", "EURUSD_H6"), ("EURUSD", "EURUSDZ25"),
     ("EURUSD", "EURUSD251219"), ("EURUSD", "EURUSD20251219"), ("EURUSD", "EURUSDDEC25"), ("XAUUSD", "XAUUSDdec")],
)  # fmt: skip
def test_no_other_date_is_taken(world: World, master: str, other: str) -> None:
    assert copied_into(world, master, [other]) is None


@pytest.mark.covers("X18")
@pytest.mark.parametrize(
    ("master", "follower"),
    [("US30-DEC25", "US30-DEC25"), ("US30-DEC25", "US30-DEC25.r"), ("US30-DEC25", "DJ30_DEC25"), ("GCZ25", "gcz25")],
)
def test_a_dated_contract_matches_itself(world: World, master: str, follower: str) -> None:
    assert copied_into(world, master, [follower, *(f"{k}.r" for k in KNOWN)]) == follower


@pytest.mark.covers("X18")
@pytest.mark.parametrize(
    "name",
    ["XAUUSDm", "EURUSDz", "US500.f", "HK50", "EU50", "CHN50", "STOXX50", "US2000", "JP225", "GER40.24h", "NAS100",
     "UK100", "AUS200", "DAX30", "ESP35", "#EURUSD", "EURUSD.m", "EURUSD.pro", "eurusd", "Boom 500 Index", "BRK.B",
     "600519.SS",     "SH600519", "EURUSDm99", "$SPX", "US30+", "Volatility 75 Index", "EURUSD.M1", "BTCUSD.2"],
)  # fmt: skip
def test_names_that_are_not_dated(world: World, name: str) -> None:
    assert world.one("select private.contract_date(%s, 2026)", name) is None


@pytest.mark.covers("X18")
@pytest.mark.parametrize("name", DATED)
def test_names_that_are_dated(world: World, name: str) -> None:
    assert world.one("select private.contract_date(%s, 2026)", name) is not None


@pytest.mark.covers("X18")
@pytest.mark.parametrize(
    ("dated", "known"),
    [(d, k) for d in ("US30-DEC25m", "US30-20251219m", "US30_JUN26m", "US30-Z25m") for k in (KNOWN, KNOWN[:1])]
    + [("US30-DECm", KNOWN), ("us30-decm", KNOWN)],
)
def test_a_date_before_the_brokers_letter_is_a_date(world: World, dated: str, known: Sequence[str]) -> None:
    assert copied_into(world, "US30", [dated, *(f"{k}m" for k in known)]) is None


@pytest.mark.covers("X18")
@pytest.mark.parametrize("dated", ["EURUSDDEC25m", "EURUSDZ25m", "EURUSD-DECm", "EURUSD251219m"])
def test_a_date_before_the_brokers_letter_is_a_date_of_a_pair_too(world: World, dated: str) -> None:
    assert copied_into(world, "EURUSD", [dated, *(f"{k}m" for k in KNOWN[1:]), "USDCADm"]) is None


@pytest.mark.covers("X18")
def test_dates_are_no_suffix_to_learn(world: World) -> None:
    assert copied_into(world, "ZZTOP", ["ZZTOP-DEC25", *(f"{k}-DEC25" for k in KNOWN)]) is None


@pytest.mark.covers("X17")
def test_a_namesake_that_may_only_be_closed_keeps_its_place(world: World) -> None:
    world.add_symbol("M", "RDS.A")
    world.add_symbol("F", "RDS.A", trade_mode="close_only")
    world.add_symbol("F", "RDS.A.pro")
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="RDS.A")
    assert world.executions("F") == []
    assert world.reasons("F") == {"trade_disabled": 1}
