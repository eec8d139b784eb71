"""A copier's lists: their limits, whoever writes them, and what their patterns mean to the planner."""

from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld

LISTS = ["symbols_only", "symbols_except", "magic_only", "magic_except", "comment_only", "comment_except"]


def entries(name: str, count: int) -> list[str]:
    return [str(number) if name.startswith("magic") else f"*NONE{number}" for number in range(count)]


def refusal(world: NettingWorld, **settings: Any) -> tuple[str | None, str]:
    with pytest.raises(psycopg.Error) as error:
        world.copy("M", "F", **settings)
    return error.value.sqlstate, error.value.diag.message_primary or ""


@pytest.mark.parametrize("name", LISTS)
def test_a_list_may_have_five_hundred_entries(world: NettingWorld, name: str) -> None:
    copier = world.copy("M", "F", **{name: entries(name, 500)})
    assert world.one(f"select cardinality({name}) from public.copiers where id = %s", copier) == 500


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("count", [501, 20_000])
def test_a_longer_list_is_refused_with_its_name(world: NettingWorld, name: str, count: int) -> None:
    expected = f"save_copier: {name} has {count} entries, but must have at most 500"
    assert refusal(world, **{name: entries(name, count)}) == ("TC303", expected)


def test_weekdays_are_seven_at_most(world: NettingWorld) -> None:
    expected = "save_copier: weekdays has 8 entries, but must have at most 7"
    assert refusal(world, weekdays=[1, 2, 3, 4, 5, 6, 7, 7]) == ("TC303", expected)


@pytest.mark.parametrize("name", [name for name in LISTS if not name.startswith("magic")])
def test_an_entry_has_a_hundred_characters_at_most(world: NettingWorld, name: str) -> None:
    world.copy("M", "F", **{name: ["x" * 100]})
    code, message = refusal(world, **{name: ["*", "y" * 101]})
    assert code == "TC303"
    assert (
        message
        == f"save_copier: {name} holds an entry of 101 characters ({'y' * 20}...), but an entry must have at most 100"
    )
    assert refusal(world, **{name: ["y" * 100_000]})[0] == "TC303"


def test_a_copier_maps_five_hundred_symbols_of_sixty_four_characters_at_most(world: NettingWorld) -> None:
    world.copy("M", "F", symbols={f"{n}".rjust(64, "S"): "T" * 64 for n in range(500)})
    assert world.one("select count(*) from public.symbol_mappings") == 500
    expected = "save_copier: symbols has 501 entries, but must have at most 500"
    assert refusal(world, symbols={f"S{n}": "T" for n in range(501)}) == ("TC303", expected)
    assert refusal(world, symbols={"S" * 65: "T"})[0] == "TC303"
    assert refusal(world, symbols={"S": "T" * 65})[0] == "TC303"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("symbols_only = array(select 'S' || n from generate_series(1, 501) n)", "symbols_only_is_short"),
        ("symbols_except = array[repeat('x', 101)]", "symbols_except_is_short"),
        ("magic_only = array(select n::text from generate_series(1, 501) n)", "magic_only_is_short"),
        ("magic_except = array['7', null]", "magic_except_is_short"),
        ("comment_only = array[['a', 'b'], ['c', 'd']]", "comment_only_is_short"),
        ("comment_except = array(select 'C' || n from generate_series(1, 501) n)", "comment_except_is_short"),
        ("weekdays = array[1, 2, 3, 4, 5, 6, 7, 1]", "weekdays_are_1_to_7"),
    ],
)
def test_the_table_itself_refuses_long_lists(world: NettingWorld, change: str, rule: str) -> None:
    world.copy("M", "F")
    with pytest.raises(psycopg.errors.CheckViolation) as error, world.db.transaction():
        world.db.execute(f"update public.copiers set {change}")
    assert error.value.diag.constraint_name == rule


def test_the_table_itself_refuses_long_names_of_symbols(world: NettingWorld) -> None:
    copier = world.copy("M", "F")
    with pytest.raises(psycopg.errors.CheckViolation, match="symbols_are_short"), world.db.transaction():
        world.db.execute(
            "insert into public.symbol_mappings (user_id, copier_id, master_symbol, follower_symbol)"
            " values (%s, %s, repeat('x', 65), 'y')",
            (world.user, copier),
        )


def test_what_somebody_writes_into_the_table_counts_like_what_is_saved(world: NettingWorld) -> None:
    copier = world.copy("M", "F", symbols_only=["XAU*"])
    world.opened("M")
    assert world.reasons("F") == {"symbol_filtered": 1}
    world.db.execute("update public.copiers set symbols_only = array['XAU*', 'eurusd'] where id = %s", (copier,))
    world.opened("M")
    assert world.reasons("F") == {"symbol_filtered": 1}
    world.db.execute(
        "update public.copiers set symbols_only = '{}', comment_only = array['grid*'] where id = %s", (copier,)
    )
    world.opened("M")
    world.opened("M", comment="Grid 7")
    assert world.reasons("F") == {"symbol_filtered": 1, "comment_filtered": 1}
    world.db.execute("update public.copiers set comment_only = '{}' where id = %s", (copier,))
    world.opened("M")
    assert world.reasons("F") == {"symbol_filtered": 1, "comment_filtered": 1}
    assert world.one("select count(*) from private.copier_filters") == 0


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ("EURUSD", "EURUSD", True),
        ("EURUSD", "eurusd", True),
        ("EURUSD", "EUR*", True),
        ("EURUSD", "*USD", True),
        ("EURUSD", "E*R*S*D", True),
        ("EURUSD", "***", True),
        ("EURUSD", "EURUSD*", True),
        ("EURUSD", "EUR", False),
        ("EURUSD", "EUR_SD", False),
        ("EUR_SD", "EUR_S*", True),
        ("EURUSD", "EUR_S*", False),
        ("EURUSD", "EUR%", False),
        ("EUR%USD", "EUR%*", True),
        ("EUR\\USD", "EUR\\U*", True),
        ("EUR*USD", "EUR*USD", True),
        ("EURUSD", "", False),
        (None, "", True),
        (None, "*", True),
        (None, "EUR*", False),
        ("ÄÖ", "äö", True),
    ],
)
def test_what_a_pattern_means(world: NettingWorld, text: str | None, pattern: str, found: bool) -> None:
    assert world.one("select private.matches(%s, private.compiled(%s::text[]))", text, [pattern]) is found
    assert world.one("select private.matches(%s, private.compiled(%s::text[]))", text, ["no", "no*", pattern]) is found


def test_patterns_made_to_take_long_are_decided_within_a_second(world: NettingWorld) -> None:
    """Every list at its limit, each pattern as bad as can be; a trade whose texts all but match."""
    bad = [("a*" * 48 + f"{n:04}")[:100] for n in range(400)] + ["*" + "a" * 95 + f"{n:04}" for n in range(100)]
    world.add_symbol("M", "A" * 64)
    world.copy("M", "F", symbols_except=bad, comment_except=bad)
    position = world.position(symbol="A" * 64, comment="a" * 500)
    with world.db.transaction():
        world.db.execute("set local statement_timeout = '1s'")
        world.send("M", world.event("opened", position))
    assert world.reasons("F") == {"symbol_unmapped": 1}


def test_a_refusal_quotes_the_beginning_of_a_long_list(world: NettingWorld) -> None:
    world.copy("M", "F", symbols_only=entries("symbols_only", 500))
    world.opened("M")
    detail = world.one("select detail from public.copy_outcomes where reason = 'symbol_filtered'")
    assert detail.startswith("EURUSD is not among the symbols that the copier copies: *NONE0, *NONE1, ")
    assert detail.endswith(" and 490 more.")


def test_mappings_that_stay_are_not_written_again(world: NettingWorld) -> None:
    copier = world.copy("M", "F", symbols={"GOLD": "XAUUSD", "SILVER": "XAGUSD", "OIL": "WTI"})
    before = world.one("select count(*) from public.audit_log where entity = 'symbol_mappings'")
    world.as_user("save_copier", {"id": copier, "symbols": {"GOLD": "XAUUSD", "SILVER": "XAGUSD.x", "DAX": "GER40"}})
    assert world.rows("select master_symbol, follower_symbol from public.symbol_mappings order by 1") == [
        {"master_symbol": "DAX", "follower_symbol": "GER40"},
        {"master_symbol": "GOLD", "follower_symbol": "XAUUSD"},
        {"master_symbol": "SILVER", "follower_symbol": "XAGUSD.x"},
    ]
    assert world.one("select count(*) from public.audit_log where entity = 'symbol_mappings'") == before + 3


def test_a_list_that_is_no_list_is_refused_by_its_form(world: NettingWorld) -> None:
    for value in ({str(n): 1 for n in range(3)}, "x" * 1000, 7):
        with pytest.raises(psycopg.Error) as error:
            world.as_user(
                "save_copier",
                {
                    "master_account_id": world.accounts["M"],
                    "follower_account_id": world.accounts["F"],
                    "symbols_only": value,
                },
            )
        assert error.value.sqlstate == "TC302"


@pytest.mark.parametrize("name", [*LISTS, "weekdays"])
@pytest.mark.parametrize("value", ["{1}", "{}", "1", "", 1, True, {"a": 1}, {}])
def test_a_list_is_a_json_array(world: NettingWorld, name: str, value: object) -> None:
    copier = world.copy("M", "F")
    with pytest.raises(psycopg.Error, match=f"{name} is ") as error:
        world.as_user("save_copier", {"id": copier, name: value})
    assert error.value.sqlstate == "TC302"
