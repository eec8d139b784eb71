"""Which symbol of the follower is the master's: never a wrong one; where it is not plain, the user is asked."""

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from planner_harness import World

US30 = {"contract_size": "10", "digits": 1, "tick_size": "0.1", "margin_currency": "USD"}
GOLD = {"contract_size": "100", "digits": 2, "tick_size": "0.01"}


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.db.execute("delete from public.account_symbols where account_id = %s", (w.accounts["F"],))
    yield w
    assert w.unexplained() == 0


def has(world: World, account: str, *symbols: str | tuple[str, dict[str, Any]]) -> None:
    for symbol in symbols:
        name, spec = (symbol, {}) if isinstance(symbol, str) else symbol
        world.add_symbol(account, name, **spec)


def copied_into(world: World, symbol: str) -> str | None:
    """The master trades the symbol; where the follower's order goes."""
    before = len(world.executions("F"))
    world.opened("M", "0.10", symbol=symbol)
    orders = world.executions("F")[before:]
    return orders[0]["symbol"] if orders else None


DISABLED = ("EURUSD", {"trade_mode": "disabled"})


@pytest.mark.covers("X11")
@pytest.mark.parametrize(
    ("follower", "chosen"),
    [
        (["EURUSD"], "EURUSD"),
        (["EURUSD", "EURUSD.r", "GBPUSD.r", "XAUUSD.r"], "EURUSD"),  # its own name is never second
        (["eurusd"], "eurusd"),
        (["#EURUSD"], "#EURUSD"),
        (["EURUSDpro"], "EURUSDpro"),
        (["EURUSD.r", "EURUSD.pro"], None),  # one is as good as the other
        (["EURUSD.r", "EURUSD.pro", "GBPUSD.r", "USDJPY.r"], "EURUSD.r"),  # what most symbols of this account carry
        (["EURUSD.r", "EURUSD.pro", "GBPUSD.r", "USDJPY.pro"], None),  # no suffix has the majority
        (["m.EURUSD.x", "EURUSD.x", "m.GBPUSD.x", "m.XAUUSD.x"], "m.EURUSD.x"),  # a prefix and a suffix
        ([DISABLED, "EURUSD.r"], "EURUSD.r"),  # a listed name that cannot be traded gives way
        ([("EURUSD.m", {"contract_size": "1000"})], None),  # another contract size
        ([("EURUSD.m", {"profit_currency": "EUR"})], None),  # another currency
        (["EURUSD_Z6"], None),  # a future
        (["GBPUSD"], None),
        ([], None),
    ],
)
def test_the_symbol_of_the_follower(world: World, follower: Sequence[Any], chosen: str | None) -> None:
    has(world, "F", *follower)
    world.copy("M", "F")
    assert copied_into(world, "EURUSD") == chosen
    assert world.reasons("F") == ({} if chosen else {"symbol_unmapped": 1})


@pytest.mark.covers("X11")
@pytest.mark.parametrize(
    ("master", "follower", "chosen"),
    [
        (("GOLD", GOLD), [("XAUUSD", GOLD)], "XAUUSD"),
        (("XAUUSD", GOLD), [("GOLD.r", GOLD)], "GOLD.r"),
        (("XAUUSD", GOLD), [("GOLDm", GOLD), "EURUSDm", "GBPUSDm"], "GOLDm"),  # the suffix of the others
        (("XAUUSD", GOLD), [("GOLDm", GOLD)], None),  # nothing says that m is a suffix here
        (("XAUUSD", GOLD), [("GOLD", GOLD), ("XAUUSD.r", GOLD)], "XAUUSD.r"),  # its own root before another name
        (("XAUUSD", GOLD), [("GOLD", GOLD), ("GOLD.x", GOLD)], "GOLD"),
        (("DJ30", US30), [("US30", US30)], "US30"),
        (("US30", US30), [("WS30", US30), ("DJ30", US30)], None),  # two names of it
        (("US30", US30), [("US30ft", US30)], None),
        (("US30", US30), [("US30.ft", US30)], None),
        (("US30", US30), [("US30.cash", US30 | {"contract_size": "1"})], None),
        (("US30", US30), [("US30", US30 | {"contract_size": "1"})], "US30"),  # the same name: sizes are aligned
        # a namesake of another contract size beside one that fits in everything
        (("US30", US30), [("US30", US30 | {"contract_size": "1"}), ("DJ30", US30)], None),
        (("GOLD", GOLD), [("GOLD", GOLD | {"profit_currency": "AUD"})], None),
        (("US30m", US30), [("DJ30", US30)], None),
    ],
)  # fmt: skip
def test_other_names_of_an_instrument(
    world: World, master: tuple[str, dict[str, Any]], follower: Sequence[Any], chosen: str | None
) -> None:
    has(world, "M", master)
    has(world, "F", *follower)
    world.copy("M", "F")
    assert copied_into(world, master[0]) == chosen


@pytest.mark.covers("X11")
def test_a_namesake_at_another_price_is_another_instrument(world: World) -> None:
    """GOLD may be the metal, or a share of a gold mine."""
    has(world, "M", ("GOLD", GOLD))
    has(world, "F", ("GOLD", GOLD | {"contract_size": "1"}))
    world.db.execute(
        "update public.account_symbols set bid = 2400, ask = 2401 where account_id = %s and name = 'GOLD'",
        (world.accounts["M"],),
    )
    world.copy("M", "F")
    assert copied_into(world, "GOLD") is None
    world.db.execute("update public.account_symbols set quoted_at = null where account_id = %s", (world.accounts["F"],))
    assert copied_into(world, "GOLD") is None  # no price to tell by, and a hundred times the contract
    world.db.execute(
        "update public.account_symbols set bid = 2399, ask = 2400, quoted_at = now() where account_id = %s",
        (world.accounts["F"],),
    )
    assert copied_into(world, "GOLD") == "GOLD"


@pytest.mark.covers("X11")
@pytest.mark.parametrize(("contract_size", "chosen"), [("0.2", "US30"), ("0.19", None)])
def test_without_a_price_a_namesake_may_be_fifty_times_smaller(
    world: World, contract_size: str, chosen: str | None
) -> None:
    has(world, "M", ("US30", US30))
    has(world, "F", ("US30", US30 | {"contract_size": contract_size}))
    world.db.execute("update public.account_symbols set quoted_at = null where account_id = %s", (world.accounts["F"],))
    world.copy("M", "F")
    assert copied_into(world, "US30") == chosen


@pytest.mark.covers("X11")
def test_a_masters_own_suffix_is_learned_too(world: World) -> None:
    has(world, "M", ("US30m", US30), "GBPUSDm", "EURUSDm", "USDJPYm")
    has(world, "F", ("DJ30.r", US30))
    world.copy("M", "F")
    assert copied_into(world, "US30m") == "DJ30.r"


@pytest.mark.covers("X11")
def test_the_users_word_outranks_everything(world: World) -> None:
    has(world, "M", ("US30", US30))
    has(world, "F", ("US30", US30), ("US30ft", US30 | {"contract_size": "1"}))
    copier = world.copy("M", "F", symbols={"US30": "US30ft"})
    assert copied_into(world, "US30") == "US30ft"
    assert world.executions("F")[-1]["lots"] == 1  # 0.10 of 10 units
    world.as_user("save_copier", {"id": copier, "symbols": {"US30": "US30.gone"}})
    assert copied_into(world, "US30") is None  # a mapping that leads nowhere is not guessed around


@pytest.mark.covers("X11")
def test_a_refusal_names_the_candidates_and_one_call_confirms_one(world: World) -> None:
    has(world, "M", ("US30", US30))
    has(world, "F", ("US30ft", US30 | {"contract_size": "1"}), "EURUSD")
    copier = world.copy("M", "F", symbols={"GBPUSD": "GBPUSD.x"})
    assert copied_into(world, "US30") is None
    detail = world.one("select detail from public.copy_outcomes where reason = 'symbol_unmapped'")
    assert detail == (
        "For US30 the follower has: US30ft (one lot of it is 1 units, of the master's 10)."
        " Choose one of them in the copier's symbols."
    )
    answer = world.as_user("symbol_suggestions", {"copier_id": copier})
    by_name = {s["master_symbol"]: s for s in answer["symbols"]}
    assert (by_name["EURUSD"]["follower_symbol"], by_name["EURUSD"]["how"]) == ("EURUSD", "exact")
    suggestion = by_name["US30"]
    assert (suggestion["follower_symbol"], suggestion["how"]) == (None, None)
    assert [c["name"] for c in suggestion["candidates"]] == ["US30ft"]
    world.as_user("save_copier", suggestion["save"])
    assert copied_into(world, "US30") == "US30ft"
    kept = world.rows("select master_symbol, follower_symbol from public.symbol_mappings order by 1")
    assert [tuple(k.values()) for k in kept] == [("GBPUSD", "GBPUSD.x"), ("US30", "US30ft")]


def test_suggestions_say_how_a_symbol_was_found(world: World) -> None:
    has(world, "M", ("GOLD", GOLD), "GBPUSD", "USDJPY", "AUDUSD")
    has(world, "F", ("XAUUSD.r", GOLD), "EURUSD.r", "EURUSD.pro", "USDJPY.r", "GBPUSD.x")
    copier = world.copy("M", "F", symbols={"USDJPY": "USDJPY.r"})
    answer = world.as_user(
        "symbol_suggestions", {"copier_id": copier, "symbols": ["GOLD", "EURUSD", "GBPUSD", "USDJPY", "AUDUSD"]}
    )
    assert (answer["prefix"], answer["suffix"]) == ("", ".r")
    found = {s["master_symbol"]: (s["follower_symbol"], s["how"]) for s in answer["symbols"]}
    assert found == {
        "GOLD": ("XAUUSD.r", "alias"), "EURUSD": ("EURUSD.r", "affix"), "GBPUSD": ("GBPUSD.x", "root"),
        "USDJPY": ("USDJPY.r", "mapped"), "AUDUSD": (None, None),
    }  # fmt: skip
    nothing = next(s for s in answer["symbols"] if s["master_symbol"] == "AUDUSD")
    assert nothing["save"] is None
    assert nothing["why"] == "The follower has nothing like AUDUSD: map it by hand if it has it under another name."


def test_operators_add_names_of_instruments(world: World) -> None:
    has(world, "M", ("US30", US30))
    has(world, "F", ("YANKEE", US30))
    world.copy("M", "F")
    assert copied_into(world, "US30") is None
    with pytest.raises(psycopg.Error) as refused:
        world.as_user("set_symbol_alias", {"name": "YANKEE", "instrument": "US30"})
    assert refused.value.sqlstate == "TC107"
    world.db.execute("insert into public.operators (user_id) values (%s)", (world.user,))
    world.as_user("set_symbol_alias", {"name": "yankee", "instrument": "DJ30"})  # any name of the group will do
    assert copied_into(world, "US30") == "YANKEE"
    world.as_user("set_symbol_alias", {"name": "YANKEE", "instrument": None})
    assert copied_into(world, "US30") is None


def test_aliases_name_one_instrument_each(world: World) -> None:
    """Every group holds its own name, or two groups would meet nowhere; no name is the root of something else."""
    rows = world.rows("select name, instrument, private.symbol_root(name) as root from public.symbol_aliases")
    names = {r["name"] for r in rows}
    assert {r["instrument"] for r in rows} <= names
    assert [r for r in rows if r["root"] != r["name"]] == []


def remembered(world: World) -> list[str]:
    return [row["follower_symbol"] for row in world.rows("select follower_symbol from private.symbol_choices")]


def test_what_was_found_by_name_is_remembered_until_symbols_change(world: World) -> None:
    has(world, "F", "EURUSD.r")
    world.copy("M", "F")
    assert [copied_into(world, "EURUSD"), copied_into(world, "EURUSD")] == ["EURUSD.r", "EURUSD.r"]
    assert remembered(world) == ["EURUSD.r"]
    world.db.execute("update public.account_symbols set bid = bid, quoted_at = now() where name like 'EURUSD%'")
    assert remembered(world) == ["EURUSD.r"]
    has(world, "F", "EURUSD.pro")
    assert remembered(world) == []
    assert copied_into(world, "EURUSD") is None  # now one is as good as the other


@pytest.mark.parametrize(
    "change",
    [
        "update public.account_symbols set contract_size = 1000 where name = 'EURUSD.r'",
        "update public.account_symbols set profit_currency = 'EUR' where name = 'EURUSD.r'",
        "update public.account_symbols set bid = 2.2, ask = 2.2 where name = 'EURUSD.r'",
        "delete from public.account_symbols where name = 'EURUSD.r'",
    ],
)
def test_what_is_remembered_and_fits_no_more_is_not_traded(world: World, change: str) -> None:
    has(world, "F", "EURUSD.r")
    world.copy("M", "F")
    assert copied_into(world, "EURUSD") == "EURUSD.r"
    world.db.execute(change)
    assert copied_into(world, "EURUSD") is None


def test_what_is_remembered_gives_way_when_it_may_be_traded_no_more(world: World) -> None:
    has(world, "F", "EURUSD.r", "GBPUSD.r", "EURUSD.pro")
    world.db.execute("update public.account_symbols set trade_mode = 'disabled' where name = 'EURUSD.pro'")
    world.copy("M", "F")
    assert copied_into(world, "EURUSD") == "EURUSD.r"
    world.db.execute(
        "update public.account_symbols set trade_mode = case name when 'EURUSD.pro' then 'full' else 'disabled' end"
    )
    assert copied_into(world, "EURUSD") == "EURUSD.pro"
