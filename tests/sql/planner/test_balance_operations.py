"""Deposits and withdrawals are no profits or losses (R33)."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


def operation(world: ProtectionWorld, number: str, amount: str, ms: int = 500, **more: Any) -> dict[str, Any]:
    """Made `ms` after the last look."""
    kind = "withdrawal" if amount.startswith("-") else "deposit"
    at = (world.clock + timedelta(milliseconds=ms)).isoformat()
    return {"number": number, "amount": amount, "kind": kind, "at": at} | more


def measured(world: ProtectionWorld, rule: str) -> list[str | None]:
    """Day's start and high of the rule, initial balance of the account."""
    (row,) = world.rows(
        "select trim_scale(r.day_start_equity)::text as start, trim_scale(r.high_water_mark)::text as high,"
        " trim_scale(a.initial_balance)::text as initial"
        " from public.protection_rules r join public.trading_accounts a on a.id = r.account_id where r.id = %s",
        rule,
    )
    return [row["start"], row["high"], row["initial"]]


def two_looks(world: ProtectionWorld, equity: str, **more: Any) -> None:
    world.look(equity, **more)
    world.look(equity, **more)


@pytest.mark.covers("R33")
@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        ("daily_loss", {"threshold": "5"}, "38000"),
        ("daily_loss", {"threshold": "5", "of": "initial", "basis": "balance"}, "38000"),
        ("daily_loss", {"threshold": "2000", "of": "amount", "basis": "higher"}, "38000"),
        ("trailing_drawdown", {"threshold": "5"}, "38000"),
        ("trailing_drawdown", {"threshold": "5", "moves_with": "day_end_balance"}, "38000"),
        ("equity_floor", {"threshold": "95", "of": "initial"}, "38000"),
    ],
)
def test_a_withdrawal_is_no_loss_and_moves_what_a_rule_measures_from(
    world: ProtectionWorld, kind: str, settings: dict[str, Any], limit: str
) -> None:
    world.look("100000", balance="100000")
    rule = world.rule(kind, action="notify", **settings)
    two_looks(world, "100000", balance="100000")
    world.look("40000", balance="40000", balance_operations=[operation(world, "d-1", "-60000")])
    two_looks(world, "40000", balance="40000")
    assert not world.triggered(rule)
    two_looks(world, "38000.01", balance="40000")
    assert (world.triggered(rule), measured(world, rule)[2]) == (False, "40000")
    two_looks(world, limit, balance="40000")
    assert world.triggered(rule)


@pytest.mark.covers("R33")
def test_a_deposit_hides_no_loss(world: ProtectionWorld) -> None:
    world.look("100000")
    rule = world.rule("daily_loss", "5", action="notify", warn_percent="0")
    world.look("100000")
    world.look("150000", balance="150000", balance_operations=[operation(world, "1", "50000")])
    assert measured(world, rule) == ["150000", None, "150000"]
    two_looks(world, "142500", balance="150000")
    assert world.triggered(rule)


@pytest.mark.covers("R33")
def test_an_operation_is_booked_once_however_often_it_is_told(world: ProtectionWorld) -> None:
    world.look("100000")
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    told = operation(world, "4711", "-600")
    for _ in range(3):
        world.look("99400", balance="99400", balance_operations=[told, told])
    assert measured(world, rule) == ["99400", None, "99400"]
    assert world.rows("select number, kind, trim_scale(amount)::text as amount from public.balance_operations") == [
        {"number": "4711", "kind": "withdrawal", "amount": "-600"}
    ]


@pytest.mark.covers("R33")
def test_one_that_nobody_saw_is_booked_by_the_next_report(world: ProtectionWorld) -> None:
    world.look("100000")
    rule = world.rule("daily_loss", "5", action="notify")
    world.look("100000")
    told = operation(world, "7", "-20000", ms=2 * 3600 * 1000)
    world.look("80000", ms=5 * 3600 * 1000, balance="80000", balance_operations=[told])
    world.look("80000", balance="80000")
    assert (world.triggered(rule), measured(world, rule)) == (False, ["80000", None, "80000"])


@pytest.mark.covers("R33")
def test_one_that_is_told_late_moves_what_is_older_than_itself(world: ProtectionWorld) -> None:
    world.look("100000")
    old = world.rule("daily_loss", "50", action="notify")
    world.look("100000")
    told = operation(world, "8", "-20000")
    world.look("80000", balance="80000", ms=60_000)
    young = world.rule("daily_loss", "50", action="notify")
    world.look("80000", balance="80000", ms=60_000)
    world.look("80000", balance="80000", balance_operations=[told])
    assert (measured(world, old)[0], measured(world, young)[0]) == ("80000", "80000")


def test_the_history_that_comes_with_the_first_figures_moves_nothing(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5")
    world.look("100000", balance_operations=[operation(world, "1", "100000", ms=-1000)])
    assert measured(world, rule) == ["100000", None, "100000"]
    assert world.one("select counted from public.balance_operations") is False


@pytest.mark.covers("R33")
@pytest.mark.parametrize("kind", ["credit", "bonus", "swap", "commission", "correction", None])
def test_nothing_but_deposits_and_withdrawals_is_booked(world: ProtectionWorld, kind: str | None) -> None:
    world.look("100000")
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("100500", balance_operations=[operation(world, "1", "500", kind=kind)])
    assert measured(world, rule) == ["100000", None, "100000"]
    assert world.one("select count(*) from public.balance_operations") == 0


@pytest.mark.parametrize(
    "broken",
    [{"amount": "much"}, {"amount": None}, {"amount": "0"}, {"number": ""}, {"number": "9" * 65}, {"amount": "NaN"}],
)
def test_an_entry_that_cannot_be_read_spoils_nothing_else(world: ProtectionWorld, broken: dict[str, Any]) -> None:
    world.look("100000")
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    told = [operation(world, "1", "-100") | broken, "x", None, operation(world, "2", "-600", at="yesterday's")]
    world.look("99400", balance="99400", balance_operations=told)
    assert measured(world, rule) == ["99400", None, "99400"]
    world.look("99400", balance="99400", balance_operations=None)


def test_the_sign_follows_from_the_kind(world: ProtectionWorld) -> None:
    world.look("100000")
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("99400", balance="99400", balance_operations=[operation(world, "1", "600", kind="withdrawal")])
    assert measured(world, rule)[0] == "99400"


@pytest.mark.covers("R33")
def test_a_rule_may_count_them_as_profits_and_losses(world: ProtectionWorld) -> None:
    world.look("100000")
    counts = world.rule("daily_loss", "5", of="initial", action="notify", count_balance_operations=True)
    other = world.rule("daily_loss", "5", of="initial", action="notify")
    world.look("100000")
    world.look("95000", balance="95000", balance_operations=[operation(world, "1", "-5000")])
    world.look("95000", balance="95000")
    assert (world.triggered(counts), world.triggered(other)) == (True, False)
    assert (measured(world, counts)[0], measured(world, other)[0]) == ("100000", "95000")


@pytest.mark.covers("R33")
def test_the_audit_says_what_an_operation_has_moved(world: ProtectionWorld) -> None:
    world.db.execute("set local session_replication_role = origin")  # looks_count_until() has silenced it
    world.look("100000")
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("99400", balance="99400", balance_operations=[operation(world, "w-1", "-600")])
    details = "select details from public.audit_log where action = %s and entity = %s"
    moved = world.one(details, "moved_by_balance_operation", "protection_rules")
    assert (moved["number"], moved["amount"], moved["day_start_equity"]) == ("w-1", -600, [100000, 99400])
    assert world.one(details, "inserted", "balance_operations")["number"] == "w-1"
    changes = [row["details"].get("initial_balance") for row in world.rows(details, "updated", "trading_accounts")]
    assert [100000, 99400] in changes
    assert world.one("select entity_id from public.audit_log where action = 'moved_by_balance_operation'") == rule


@pytest.mark.covers("R33")
def test_one_at_the_change_of_the_day_is_in_the_day_that_begins(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5", action="notify")
    midnight = world.clock.replace(hour=0) + timedelta(days=1)
    world.look_at(midnight - timedelta(seconds=1), "100000")
    world.look("70000", balance="70000", balance_operations=[operation(world, "1", "-30000")])
    world.look("70000", balance="70000")
    assert (measured(world, rule)[0], world.triggered(rule)) == ("70000", False)


def test_another_session_books_nothing(world: ProtectionWorld) -> None:
    world.look("100000")
    world.db.execute("update public.trading_accounts set session = 2 where name = 'F'")
    with (
        world.db.transaction(),
        pytest.raises(psycopg.Error, match="this session of the account is over"),
        world.db.transaction(),
    ):
        world.look("99400", balance_operations=[operation(world, "1", "-600")])
    assert world.one("select count(*) from public.balance_operations") == 0


def test_a_list_of_another_form_is_refused(world: ProtectionWorld) -> None:
    with pytest.raises(psycopg.Error, match="balance_operations: expected an array of at most 1000 entries"):
        world.look("99400", balance_operations={"number": "1"})


def test_withdrawing_more_than_the_account_began_with_makes_no_rule_act(world: ProtectionWorld) -> None:
    world.look("100000", balance="10000")
    rule = world.rule("daily_loss", "5", of="initial", action="notify")
    world.look("100000")
    world.look("50000", balance="50000", balance_operations=[operation(world, "1", "-50000")])
    two_looks(world, "50000", balance="50000")
    assert (world.triggered(rule), measured(world, rule)[2]) == (False, "-40000")
