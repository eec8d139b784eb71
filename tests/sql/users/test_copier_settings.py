"""What save_copier refuses, and in which words: the setting, its value, and what it may be."""

from typing import Any

import psycopg
import pytest
from planner_harness import World


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> World:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    return w


#: a value that breaks the rule, by the rule's name; what the message says then
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "name_is_short": ({"name": "x" * 101}, "must have at most 100 characters"),
    "mode_is_known": ({"mode": "of"}, "mode is of, but must be on, monitor or off"),
    "sizing_mode_is_known": (
        {"sizing_mode": "martingale"},
        "sizing_mode is martingale, but must be multiplier, percentage, fixed,",
    ),
    "sizing_value_in_range": ({"sizing_value": "0"}, "sizing_value is 0, but must be above 0 and at most 1000"),
    "sizing_value_fits_sizing_mode": (
        {"sizing_mode": "risk_percent", "sizing_value": "101"},
        "sizing_mode is risk_percent and sizing_value is 101, but must fit together: at most 100 for risk_percent",
    ),
    "min_policy_is_known": ({"min_policy": "round"}, "min_policy is round, but must be skip or force_min"),
    "max_policy_is_known": ({"max_policy": "half"}, "max_policy is half, but must be cap or split"),
    "max_leverage_policy_is_known": (
        {"max_leverage_policy": "x"},
        "max_leverage_policy is x, but must be discard or shrink",
    ),
    "max_risk_coefficient_in_range": (
        {"max_risk_coefficient": "0.5"},
        "max_risk_coefficient is 0.5, but must be 1 to 1000",
    ),
    "max_lots_in_range": (
        {"max_lots": "0"},
        "max_lots is 0, but must be above 0 and at most 1000000, or null for no limit",
    ),
    "max_risk_percent_in_range": (
        {"max_risk_percent": "100.1"},
        "max_risk_percent is 100.1, but must be above 0 and at most 100",
    ),
    "max_leverage_in_range": ({"max_leverage": "-1"}, "max_leverage is -1, but must be above 0"),
    "sanity_factor_in_range": ({"sanity_factor": "0.9"}, "sanity_factor is 0.9, but must be 1 to 1000000"),
    "sl_mode_is_known": ({"sl_mode": "x"}, "sl_mode is x, but must be "),
    "tp_mode_is_known": ({"tp_mode": "x"}, "tp_mode is x, but must be "),
    "sl_points_in_range": ({"sl_mode": "fixed", "sl_points": 0}, "sl_points is 0, but must be 1 to 1000000 points"),
    "tp_points_in_range": ({"tp_mode": "fixed", "tp_points": 0}, "tp_points is 0, but must be 1 to 1000000 points"),
    "max_sl_points_in_range": ({"max_sl_points": -1}, "max_sl_points is -1, but must be 1 to 1000000 points"),
    "fixed_sl_has_points": ({"sl_mode": "fixed"}, "sl_mode is fixed, but sl_points is missing"),
    "fixed_tp_has_points": ({"tp_mode": "fixed"}, "tp_mode is fixed, but tp_points is missing"),
    "pending_grace_in_range": (
        {"pending_grace_ms": 60001},
        "pending_grace_ms is 60001, but must be 0 to 60000 milliseconds",
    ),
    "early_fill_policy_is_known": ({"early_fill_policy": "ask"}, "early_fill_policy is ask, but must be close or keep"),
    "copy_existing_is_known": ({"copy_existing": "some"}, "copy_existing is some, but must be none, all or near"),
    "copy_existing_points_not_negative": (
        {"copy_existing_points": -1},
        "copy_existing_points is -1, but must be 0 or more points",
    ),
    "near_says_how_near": (
        {"copy_existing": "near"},
        "copy_existing is near and copy_existing_points is null, but must go together: near needs a number of points",
    ),
    "max_age_in_range": ({"max_age_ms": 99}, "max_age_ms is 99, but must be 100 to 600000 milliseconds"),
    "retry_window_in_range": ({"retry_window_s": 3601}, "retry_window_s is 3601, but must be 0 to 3600 seconds"),
    "delay_in_range": ({"delay_max_ms": 3001}, "delay_max_ms is 3001, but must be 0 to 3000 milliseconds"),
    "delay_min_within_max": (
        {"delay_min_ms": 500},
        "delay_min_ms is 500 and delay_max_ms is 0, but must fit together: delay_min_ms from 0 to delay_max_ms",
    ),
    "lots_jitter_in_range": ({"lots_jitter_percent": "51"}, "lots_jitter_percent is 51, but must be 0 to 50 percent"),
    "no_money_policy_is_known": ({"no_money_policy": "x"}, "no_money_policy is x, but must be skip or shrink"),
    "max_slippage_not_negative": (
        {"max_slippage_points": -1},
        "max_slippage_points is -1, but must be 0 or more points",
    ),
    "comment_is_short": ({"comment": "x" * 61}, "must have at most 60 characters"),
    "comment_placeholders_are_known": (
        {"comment": "{lots}"},
        "comment is {lots}, but must have no braces but {master}",
    ),
    "sides_are_known": ({"sides": "left"}, "sides is left, but must be both, buy or sell"),
    "max_open_positions_is_positive": ({"max_open_positions": 0}, "max_open_positions is 0, but must be 1 or more"),
    "max_open_lots_in_range": ({"max_open_lots": "0"}, "max_open_lots is 0, but must be above 0"),
    "max_trades_per_day_is_positive": ({"max_trades_per_day": 0}, "max_trades_per_day is 0, but must be 1 or more"),
    "min_equity_in_range": ({"min_equity": "-0.01"}, "min_equity is -0.01, but must be 0 or more"),
    "weekdays_are_1_to_7": (
        {"weekdays": [0, 1]},
        "weekdays is [0, 1], but must be one or more of 1 (Monday) to 7 (Sunday)",
    ),
    "hours_come_in_pairs": (
        {"open_from": "08:00"},
        "open_from is 08:00:00 and open_until is null, but must both be given and differ, or both be left out",
    ),
}

#: rules that no call of save_copier can break
LISTS = {f"{what}_{which}_is_short" for what in ("symbols", "magic", "comment") for which in ("only", "except")}
#: refused before, with the reason why (TC106); no setting of save_copier; lists are counted before they are read
#: (test_lists.py)
UNREACHABLE = {"accounts_differ", "removal_is_known"} | LISTS


def refused(world: World, settings: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(psycopg.Error, match="save_copier") as error:
        world.copy("M", "F", **settings)
    assert world.rows("select 1 from public.copiers") == []
    return error.value.sqlstate or "", error.value.diag.message_primary or ""


@pytest.mark.parametrize("rule", sorted(BROKEN))
def test_a_broken_rule_is_told_in_words(world: World, rule: str) -> None:
    settings, words = BROKEN[rule]
    columns = world.one(
        "select cardinality(conkey) from pg_constraint where conrelid = 'public.copiers'::regclass and conname = %s",
        rule,
    )
    code, message = refused(world, settings)
    assert words in message
    assert code == ("TC306" if columns > 1 else "TC303")
    if columns > 1:  # both are named
        assert all(f"{name} is " in message for name in world.one(
            "select array_agg(a.attname::text) from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid"
            " and a.attnum = any (k.conkey) where k.conrelid = 'public.copiers'::regclass and k.conname = %s",
            rule))  # fmt: skip


def test_every_rule_has_its_words_and_is_broken_here(world: World) -> None:
    """Who adds a CHECK to copiers says in a comment on it what is allowed, and adds a line to BROKEN."""
    rules = world.rows(
        "select conname::text as name, obj_description(oid, 'pg_constraint') as words from pg_constraint"
        " where conrelid = 'public.copiers'::regclass and contype = 'c'"
    )
    assert [r["name"] for r in rules if not (r["words"] or "").startswith("must ")] == []
    assert {r["name"] for r in rules} == set(BROKEN) | UNREACHABLE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizing_value": "half"}, "sizing_value is not a number"),
        ({"sizing_value": "NaN"}, "sizing_value is not a number"),
        ({"max_age_ms": "soon"}, 'max_age_ms is "soon", but must be a whole number below 2147483648'),
        ({"max_age_ms": 3000000000}, "max_age_ms is 3000000000, but must be a whole number below 2147483648"),
        ({"open_from": "8 o'clock", "open_until": "17:00"}, 'but must be a time of day such as "08:30"'),
        ({"reverse": "perhaps"}, 'reverse is "perhaps", but must be true or false'),
        ({"symbols_only": "EURUSD"}, 'symbols_only is "EURUSD", but must be a list of texts such as ["EURUSD"]'),
        ({"symbols_only": [None]}, "symbols_only holds null, but must be a list of texts"),
        ({"symbols_except": [""]}, 'symbols_except holds "", but must be a list of texts'),
        ({"magic_only": ["EA"]}, 'magic_only holds "EA", but must be a list of whole numbers such as ["42"]'),
        ({"symbols": ["XAUUSD"]}, "symbols must name a symbol of the follower"),
        (
            {"symbols": {"GOLD\t": "XAUUSD"}},
            'symbols: the master\'s symbol "GOLD\\t" holds a tab, a line break or another',
        ),
        ({"symbols": {"GOLD": "XAU\nUSD"}}, 'symbols: the follower\'s symbol "XAU\\nUSD" of GOLD holds a tab, a line'),
        ({"symbols": {"GOLD": {"to": "\u200eXAU\u2028"}}}, "of GOLD holds a tab, a line break or another character"),
        ({"symbols": {" ": "XAUUSD"}}, 'symbols: the master\'s symbol " " is empty'),
        ({"symbols": {"GOLD": 7}}, "symbols: the follower's symbol 7 of GOLD is no name: give it as a text"),
        ({"symbols": {"GOLD": {"mode": "off"}}}, 'of GOLD is no name: give it as a text, or as "to" of an object'),
        ({"weekdays": ["Monday"]}, "but must be a list of whole numbers such as [1, 2]"),
    ],
)
def test_a_value_of_another_form_is_named(world: World, settings: dict[str, Any], message: str) -> None:
    code, said = refused(world, settings)
    assert message in said
    assert code == "TC302"


def test_a_setting_that_must_have_a_value_is_named(world: World) -> None:
    assert refused(world, {"sizing_mode": None}) == ("TC303", "save_copier: sizing_mode is null, but must have a value")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"symbols_only": ["EURUSD"], "symbols_except": ["EURUSD"]},
            "EURUSD of symbols_only is excluded by symbols_except",
        ),
        (
            {"symbols_only": ["EURUSD", "XAU*"], "symbols_except": ["eur*"]},
            "EURUSD of symbols_only is excluded by symbols_except",
        ),
        (
            {"symbols_only": ["EUR*", "XAU*"], "symbols_except": ["*"]},
            "EUR*, XAU* of symbols_only is excluded by symbols_except",
        ),
        ({"magic_only": ["7"], "magic_except": ["7", "8"]}, "7 of magic_only is excluded by magic_except"),
        (
            {"comment_only": ["grid*"], "comment_except": ["Grid*"]},
            "grid* of comment_only is excluded by comment_except",
        ),
    ],
)
def test_lists_that_contradict_each_other_are_refused_with_both_named(
    world: World, settings: dict[str, Any], message: str
) -> None:
    assert refused(world, settings) == ("TC306", f"save_copier: {message}")


def test_a_contradiction_with_what_is_saved_is_refused_too(world: World) -> None:
    copier = world.copy("M", "F", symbols_only=["EURUSD"])
    with pytest.raises(psycopg.Error, match="EURUSD of symbols_only is excluded by symbols_except") as error:
        world.as_user("save_copier", {"id": copier, "symbols_except": ["*USD"]})
    assert error.value.sqlstate == "TC306"
    assert world.one("select symbols_except from public.copiers where id = %s", copier) == []


def test_a_list_may_narrow_another(world: World) -> None:
    world.copy("M", "F", symbols_only=["EUR*"], symbols_except=["EURUSD"])


def test_what_is_allowed_but_surprises_is_said(world: World) -> None:
    world.add_symbol("F", "US30", lots_min="0.1")

    def warnings(**settings: Any) -> Any:
        world.db.execute("update public.copiers set removed_at = now() where removed_at is null")
        return world.as_user(
            "save_copier",
            {"master_account_id": world.accounts["M"], "follower_account_id": world.accounts["F"]} | settings,
        )["warnings"]

    assert warnings() == []
    assert warnings(max_lots="0.05") == [
        "The maximum of 0.05 lots is below the smallest volume of US30: nothing of it will be copied."
    ]
    assert warnings(sizing_mode="fixed", sizing_value="2", max_lots="1") == [
        "The fixed size of 2 lots is above the maximum of 1: every copy is cut to the maximum."
    ]
    assert warnings(sizing_mode="risk_percent", sizing_value="2", max_risk_percent="1") == [
        "The size of 2 % of risk is above the limit of 1 %: every copy is cut to the limit."
    ]
    assert warnings(symbols_except=["*"]) == ['The list of symbols that are left out has "*": nothing will be opened.']


@pytest.mark.parametrize("setting", ["max_lots", "max_leverage", "sanity_factor", "max_open_lots", "min_equity"])
def test_a_limit_is_never_beyond_all_numbers(world: World, setting: str) -> None:
    code, message = refused(world, {setting: "1e400"})
    assert code == "TC303"
    assert message.startswith(f"save_copier: {setting} is 1000")
    assert len(message) < 250
    copier = world.copy("M", "F")
    for value in ("NaN", "Infinity"):  # by whom no function stands in the way
        with pytest.raises(psycopg.errors.CheckViolation), world.db.transaction():
            world.db.execute(f"update public.copiers set {setting} = %s where id = %s", (value, copier))


@pytest.mark.parametrize("account", ["master_account_id", "follower_account_id"])
def test_the_accounts_of_a_copier_do_not_change(world: World, account: str) -> None:
    """Not even silently: whoever names another account would think that it is copied from now on."""
    world.add_account("X")
    copier = world.copy("M", "F")
    with pytest.raises(psycopg.Error, match=f"{account} of a copier does not change") as refused:
        world.as_user("save_copier", {"id": copier, account: world.accounts["X"]})
    assert refused.value.sqlstate == "TC303"
    world.copy("M", "F", id=copier, sizing_value="2")  # the same two accounts may be named
    assert [str(r["sizing_value"]) for r in world.rows("select sizing_value from public.copiers")] == ["2"]
