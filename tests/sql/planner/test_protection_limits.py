"""The limits of prop firms: what a rule measures from, when its day begins, its cushion and its warning (R27, R28)."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def limit(world: ProtectionWorld, rule: str) -> str:
    return str(
        world.one(
            "select private.rule_limit(r, private.initial_balance(r.account_id, null))"
            " from public.protection_rules r where r.id = %s",
            rule,
        )
    )


def two_looks(world: ProtectionWorld, equity: str, **more: Any) -> None:
    world.look(equity, **more)
    world.look(equity, **more)


def refusal(world: ProtectionWorld, **rule: Any) -> str:
    with pytest.raises(psycopg.Error) as caught:
        world.as_user("save_protection_rule", {"account_id": world.accounts["F"], "threshold": "5"} | rule)
    return f"{caught.value.sqlstate} {caught.value.diag.message_primary}"


# -- what a limit is measured from -----------------------------------------------------------------------------------


#: zone, time at which the day begins, the last look before it and the first one of the day: in winter, in summer and on
#: the days of a clock change
BEGINNINGS = [
    ("America/New_York", "17:00", "2026-03-06T22:00:00+00:00"),
    ("America/New_York", "17:00", "2026-03-08T21:00:00+00:00"),  # the clocks went forward in the morning
    ("America/New_York", "17:00", "2026-10-31T21:00:00+00:00"),
    ("America/New_York", "17:00", "2026-11-01T22:00:00+00:00"),  # the clocks went back in the morning
    ("Europe/Prague", "00:00", "2026-03-28T23:00:00+00:00"),
    ("Europe/Prague", "00:00", "2026-03-29T22:00:00+00:00"),
    ("Europe/Prague", "00:00", "2026-10-24T22:00:00+00:00"),
    ("Europe/Prague", "00:00", "2026-10-25T23:00:00+00:00"),
    ("Europe/Prague", "02:30", "2026-03-29T01:00:00+00:00"),  # 02:30 does not exist on that day
    ("Europe/Prague", "02:30", "2026-10-25T00:30:00+00:00"),  # 02:30 comes twice: the first counts
]
#: basis, of, threshold, equity and balance at the day's start, the limit
FORMULAS = [
    ("equity", "day_start", "5", "103000", "104000", "97850"),
    ("balance", "day_start", "5", "103000", "104000", "98800"),
    ("balance", "initial", "5", "103000", "104000", "99000"),
    ("higher", "initial", "5", "103000", "104000", "99000"),
    ("higher", "initial", "5", "105000", "104000", "100000"),
    ("higher", "day_start", "4", "105000", "104000", "100800"),
    ("equity", "amount", "2500.50", "103000", "104000", "100499.5"),
]


@pytest.mark.covers("R27")
@pytest.mark.parametrize(("zone", "begins", "moment"), BEGINNINGS)
@pytest.mark.parametrize(("basis", "of", "threshold", "equity", "balance", "expected"), FORMULAS)
def test_each_formula_counts_from_the_last_figures_before_the_day_began(
    world: ProtectionWorld, zone: str, begins: str, moment: str, basis: str, of: str, threshold: str, equity: str,
    balance: str, expected: str,
) -> None:  # fmt: skip
    start = at(moment)
    world.look_at(start - timedelta(hours=20), "100000")
    rule = world.rule(
        "daily_loss",
        threshold,
        of=of,
        basis=basis,
        time_zone=zone,
        day_begins=begins,
        action="notify",
        warn_percent="0",
    )
    world.look_at(start - timedelta(hours=19), "100000")
    world.look_at(start - timedelta(seconds=30), equity, balance=balance)
    world.look_at(start - timedelta(microseconds=1), equity, balance=balance)
    before = limit(world, rule)
    world.look_at(start, "102000", balance="102000")
    assert (limit(world, rule), before == expected) == (expected, False)
    world.look_at(start + timedelta(hours=2), "102000")
    two_looks(world, str(Decimal(expected) + Decimal("0.01")))
    assert not world.triggered(rule)
    two_looks(world, expected)
    assert world.triggered(rule)


@pytest.mark.covers("R27")
def test_a_drawdown_by_the_day_end_balance_follows_balances_at_the_end_of_days_only(world: ProtectionWorld) -> None:
    world.look_at(at("2026-01-15T12:00:00+00:00"), "100000")
    rule = world.rule("trailing_drawdown", "10", moves_with="day_end_balance", action="notify", warn_percent="0")
    world.look_at(at("2026-01-15T13:00:00+00:00"), "109000", balance="109000")
    limits = [limit(world, rule)]
    assert limits == ["90000"], "what a balance is during the day moves nothing"
    for day, balance in [(15, "104000"), (16, "103000")]:
        world.look_at(at(f"2026-01-{day}T23:59:50+00:00"), "111000", balance=balance)
        world.look_at(at(f"2026-01-{day + 1}T00:00:00+00:00"), "99000", balance="99500")
        limits.append(limit(world, rule))
    assert limits == ["90000", "94000", "94000"]
    two_looks(world, "94000.01")
    assert not world.triggered(rule)
    two_looks(world, "94000")
    assert world.triggered(rule)


@pytest.mark.covers("R27")
def test_a_drawdown_stops_rising_where_it_locks(world: ProtectionWorld) -> None:
    world.look("100000")
    rule = world.rule("trailing_drawdown", "2500", of="amount", locks_at="100100", action="notify", warn_percent="0")
    seen = []
    for equity in ["100000", "101000", "102600", "110000"]:
        two_looks(world, equity)
        seen.append(limit(world, rule))
    assert seen == ["97500", "98500", "100100", "100100"]
    two_looks(world, "100100")
    assert world.triggered(rule)


def test_a_drawdown_of_a_fixed_size_never_begins_below_the_initial_balance(world: ProtectionWorld) -> None:
    world.as_user("update_account", {"account_id": world.accounts["F"], "initial_balance": "100000"})
    world.look("97000", balance="97000")
    rule = world.rule("trailing_drawdown", "10", of="initial")
    world.look("97000", balance="97000")
    assert limit(world, rule) == "90000"


@pytest.mark.covers("R27")
def test_the_initial_balance_is_the_first_that_is_known_unless_the_user_says_another(world: ProtectionWorld) -> None:
    world.db.execute("set local session_replication_role = origin")  # looks_count_until() has silenced the audit
    initial = "select trim_scale(initial_balance)::text from public.trading_accounts where name = 'F'"
    world.look("5000", balance="0")
    assert world.one(initial) is None, "an account without money has not begun"
    world.look("99000", balance="98000")
    world.look("99000", balance="120000")
    assert world.one(initial) == "98000"
    rule = world.rule("equity_floor", "90", of="initial")
    assert limit(world, rule) == "88200"
    world.as_user("update_account", {"account_id": world.accounts["F"], "initial_balance": "100000"})
    assert (world.one(initial), limit(world, rule)) == ("100000", "90000")
    changes = "select details -> 'initial_balance' as change from public.audit_log where details ? 'initial_balance'"
    assert [98000, 100000] in [row["change"] for row in world.rows(changes)]
    for wrong in ("0", "-1", "1e15"):
        with pytest.raises(psycopg.Error, match=r"initial_balance is .* must be above 0 and below 1e15"):
            world.as_user("update_account", {"account_id": world.accounts["F"], "initial_balance": wrong})


# -- cushion and warning ---------------------------------------------------------------------------------------------


@pytest.mark.covers("R28")
@pytest.mark.parametrize(
    ("kind", "settings", "before", "acts"),
    [
        ("daily_loss", {"threshold": "5"}, "95500.01", "95500"),
        ("daily_profit", {"threshold": "5"}, "104499.99", "104500"),
        ("trailing_drawdown", {"threshold": "10"}, "91000.01", "91000"),
        ("trailing_drawdown", {"threshold": "10", "locks_at": "80000"}, "81000.01", "81000"),
        ("equity_floor", {"threshold": "90000"}, "91000.01", "91000"),
        ("equity_floor", {"threshold": "90", "of": "initial"}, "91000.01", "91000"),
    ],
)
def test_a_cushion_acts_when_that_much_is_left_of_the_allowance(
    world: ProtectionWorld, kind: str, settings: dict[str, Any], before: str, acts: str
) -> None:
    world.look("100000")
    rule = world.rule(kind, cushion_percent="10", action="notify", **settings)
    world.look("100000")
    two_looks(world, before)
    assert not world.triggered(rule)
    two_looks(world, acts)
    assert world.triggered(rule)
    assert "with a cushion of 10 %" in world.one("select message from public.alerts where kind = 'protection'")


@pytest.mark.covers("R28")
def test_margin_use_acts_earlier_with_a_cushion(world: ProtectionWorld) -> None:
    rule = world.rule("max_margin_use", "50", cushion_percent="10", action="notify")
    two_looks(world, "10000", margin="4499.99")
    assert not world.triggered(rule)
    two_looks(world, "10000", margin="4500")
    assert world.triggered(rule)


@pytest.mark.covers("R28")
def test_a_warning_comes_once_a_day_when_two_looks_show_70_percent_used(world: ProtectionWorld) -> None:
    warned = "select coalesce(sum(times), 0)::integer from public.alerts where kind = 'protection_near'"
    world.rule("daily_loss", "5", time_zone="America/New_York", day_begins="17:00")
    world.look_at(at("2026-01-15T12:00:00+00:00"), "100000")
    two_looks(world, "96500.01")
    world.look("96000")
    world.look("97000")
    assert world.one(warned) == 0, "one bad tick warns of nothing"
    two_looks(world, "96500")
    two_looks(world, "95900")
    assert world.one(warned) == 1
    world.look_at(at("2026-01-15T21:59:59+00:00"), "100000")
    world.look_at(at("2026-01-15T22:00:00+00:00"), "100000")
    two_looks(world, "96500")
    assert world.one(warned) == 2, "the next day begins at 17:00 in New York"
    message = world.one("select message from public.alerts where kind = 'protection_near'")
    assert message.startswith("Daily loss: 70 % of the allowance is used: equity is 96500")
    assert (world.alerts(), world.copy_state()) == ({}, "on")


def test_a_rule_without_warning_warns_of_nothing(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5", warn_percent="0")
    world.look("100000")
    two_looks(world, "95100")
    assert world.one("select count(*) from public.alerts") == 0


# -- the next day ----------------------------------------------------------------------------------------------------


def stopped_for_the_day(world: ProtectionWorld, **rule: Any) -> str:
    """F holds a copy and loses 5 % on 15 January, in the day that ends at 17:00 in New York; it is flat again."""
    world.copy("M", "F")
    world.look_at(at("2026-01-15T12:00:00+00:00"), "100000")
    made = world.rule(
        **{"kind": "daily_loss", "threshold": "5", "time_zone": "America/New_York", "day_begins": "17:00"} | rule
    )
    world.look("100000")
    world.opened("M")
    world.settle()
    two_looks(world, "95000" if rule.get("kind") != "daily_profit" else "105000")
    assert (world.triggered(made), world.copy_state()) == (True, "flattening")
    world.settle()
    world.flat()
    return made


@pytest.mark.covers("R29")
@pytest.mark.parametrize("action", ["close_all_until_next_day", "close_all"])
@pytest.mark.parametrize("kind", ["daily_loss", "daily_profit"])
def test_after_a_daily_limit_nothing_is_opened_until_the_next_day_begins(
    world: ProtectionWorld, kind: str, action: str
) -> None:
    stopped_for_the_day(world, kind=kind, action=action)
    assert (world.book("F"), world.copy_state()) == ([], "monitor")
    world.opened("M")
    assert world.reasons("F") == {"account_protected": 1}
    says = world.one("select detail from public.copy_outcomes where reason = 'account_protected'")
    rule = kind.replace("_", " ")
    assert says == f'The rule "{rule}" has stopped the account; copying goes on by itself at 2026-01-15 22:00 UTC.'
    world.look_at(at("2026-01-15T21:59:59.999+00:00"), "97000")
    assert world.copy_state() == "monitor"
    world.look_at(at("2026-01-15T22:00:00+00:00"), "97000")
    assert world.copy_state() == "on"
    assert world.one("select copy_state_reason from public.trading_accounts where name = 'F'") is None
    world.opened("M", "0.50")
    world.settle()
    assert world.book("F") == [("buy", "0.50")]


@pytest.mark.covers("R29")
def test_close_all_of_a_daily_rule_is_stored_as_what_it_does(world: ProtectionWorld) -> None:
    answer = world.as_user(
        "save_protection_rule",
        {"account_id": world.accounts["F"], "kind": "daily_profit", "threshold": "3", "action": "close_all"},
    )
    assert answer["action"] == "close_all_until_next_day"
    assert world.one("select action from public.protection_rules") == "close_all_until_next_day"
    assert world.rule("equity_floor", "5", action="close_all")
    assert world.one("select action from public.protection_rules where kind = 'equity_floor'") == "close_all"


@pytest.mark.covers("R29")
def test_the_upkeep_switches_an_account_on_that_nobody_looks_at(world: ProtectionWorld) -> None:
    stopped_for_the_day(world, action="close_all_until_next_day")
    assert world.one("select resumes_at from public.trading_accounts where name = 'F'") == at(
        "2026-01-15T22:00:00+00:00"
    )
    world.db.execute("update public.trading_accounts set resumes_at = now() + interval '1 hour' where name = 'F'")
    world.db.execute("select private.resume_accounts()")
    assert world.copy_state() == "monitor"
    world.db.execute("update public.trading_accounts set resumes_at = now() - interval '1 ms' where name = 'F'")
    world.db.execute("select private.resume_accounts()")
    assert world.copy_state() == "on"


@pytest.mark.covers("R29")
@pytest.mark.parametrize("stricter", ["monitor", "off", "user"])
def test_what_stops_the_account_for_longer_is_not_undone_by_the_next_day(world: ProtectionWorld, stricter: str) -> None:
    stopped_for_the_day(world, action="close_all_until_next_day")
    if stricter == "user":
        world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "monitor"})
    else:
        world.rule("equity_floor", "94000", action="monitor" if stricter == "monitor" else "close_all_and_off")
        two_looks(world, "94000")
        world.flat()
    world.look_at(at("2026-01-15T22:00:00+00:00"), "97000")
    assert world.copy_state() == ("off" if stricter == "off" else "monitor")


def test_an_account_that_was_off_stays_off_after_the_day(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5", action="close_all_until_next_day")
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
    world.look("100000")
    two_looks(world, "95000")
    world.flat()
    world.look_at(at("2026-01-16T00:00:00+00:00"), "95000")
    assert world.copy_state() == "off"


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"kind": "equity_floor", "of": "day_start"}, "TC306 save_protection_rule: of day_start does not go with kind"),
        ({"kind": "daily_loss", "of": "high"}, "TC306 save_protection_rule: of high does not go with kind daily_loss"),
        ({"kind": "max_margin_use", "of": "amount"}, "TC306 save_protection_rule: of amount does not go with kind"),
        ({"kind": "trailing_drawdown", "basis": "higher"}, "TC306 save_protection_rule: basis higher does not go with"),
        ({"kind": "daily_loss", "moves_with": "day_end_balance"}, "TC306 save_protection_rule: moves_with day_end_"),
        ({"kind": "daily_loss", "locks_at": "100"}, "TC306 save_protection_rule: locks_at 100 does not go with kind"),
        ({"kind": "equity_target", "cushion_percent": "10"}, "TC306 save_protection_rule: cushion_percent 10 does not"),
        (
            {"kind": "trailing_drawdown", "action": "close_all_until_next_day"},
            "TC306 save_protection_rule: action close_all_until_next_day does not go with kind trailing_drawdown",
        ),
        (
            {"kind": "daily_loss", "cushion_percent": "20", "warn_percent": "81"},
            "TC306 save_protection_rule: warn_percent 81 is above 80, where the rule acts with cushion_percent 20",
        ),
        ({"kind": "daily_loss", "of": "week"}, "TC303 save_protection_rule: of must be day_start, high, initial or"),
        ({"kind": "daily_loss", "basis": None}, "TC303 save_protection_rule: basis must be equity, balance or higher"),
        ({"kind": "trailing_drawdown", "moves_with": "up"}, "TC303 save_protection_rule: moves_with must be equity"),
        ({"kind": "trailing_drawdown", "locks_at": "0"}, "TC303 save_protection_rule: locks_at must be above 0"),
        (
            {"kind": "daily_loss", "cushion_percent": "100"},
            "TC303 save_protection_rule: cushion_percent must be from 0",
        ),
        (
            {"kind": "daily_loss", "cushion_percent": "ten"},
            "TC302 save_protection_rule: cushion_percent is not a number",
        ),
        ({"kind": "daily_loss", "warn_percent": "-1"}, "TC303 save_protection_rule: warn_percent must be from 0"),
        (
            {"kind": "daily_loss", "of": "amount", "threshold": "1e12"},
            "TC303 save_protection_rule: threshold of daily_",
        ),
        *(
            ({"kind": "daily_loss", "day_begins": time}, "TC302 save_protection_rule: day_begins is ")
            for time in ("24:00", "5pm", "now", "17:00:30", "", None, 17)
        ),
    ],
)
def test_settings_that_are_wrong_or_contradict_each_other_are_refused_with_both_named(
    world: ProtectionWorld, rule: dict[str, Any], says: str
) -> None:
    assert refusal(world, **rule).startswith(says)


def test_a_big_cushion_alone_is_taken_and_warns_where_it_acts(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5", cushion_percent="40")
    assert world.one("select warn_percent from public.protection_rules") == 60


def test_floor_and_target_are_compared_in_money_whatever_they_are_of(world: ProtectionWorld) -> None:
    world.look("100000")
    world.rule("equity_floor", "95", of="initial")
    says = refusal(world, kind="equity_target", threshold="95000")
    assert says == "TC306 save_protection_rule: equity_floor 95000 is not below equity_target 95000"


@pytest.mark.parametrize(
    ("rule", "warns"),
    [
        ({"kind": "daily_loss", "of": "amount", "threshold": "200000"}, "a loss of 200000, and the balance is 100000"),
        ({"kind": "daily_loss", "of": "amount", "threshold": "100000"}, "a loss of 100000, and the balance is 100000"),
        ({"kind": "daily_loss", "of": "initial", "threshold": "50"}, "a loss of 125000, and the balance is 100000"),
        (
            {"kind": "trailing_drawdown", "of": "amount", "threshold": "150000", "cushion_percent": "10"},
            "a loss of 135000, and the balance is 100000",
        ),
        ({"kind": "daily_loss", "of": "amount", "threshold": "99999"}, None),
        ({"kind": "daily_loss", "threshold": "99"}, None),
        ({"kind": "daily_profit", "of": "amount", "threshold": "200000"}, None),
        ({"kind": "equity_target", "threshold": "200000"}, None),
    ],
)
def test_a_loss_that_is_more_than_all_there_is_is_warned_of(
    world: ProtectionWorld, rule: dict[str, Any], warns: str | None
) -> None:
    world.look("100000")
    if rule.get("of") == "initial":
        world.db.execute("update public.trading_accounts set initial_balance = 250000 where name = 'F'")
    answer = world.as_user("save_protection_rule", {"account_id": world.accounts["F"]} | rule)
    assert len(answer["warnings"]) == (warns is not None)
    assert warns is None or warns in answer["warnings"][0]
