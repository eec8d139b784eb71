"""Pending orders that their master changes, on an account with limits (R45)."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    """F may lose 5,000."""
    for w in make(connection):
        w.looks_count_until(1_000_000_000)
        w.copy("M", "F")
        w.db.execute(
            "update public.trading_accounts set funds_at = now(), equity = 100000, initial_balance = 100000"
            " where name = 'F'"
        )
        yield w


def ordered(world: ProtectionWorld, lots: str = "2.00", sl: str | None = "1.07000") -> dict[str, Any]:
    """A limit at 1.09 is copied; its stop can lose 4,000."""
    o = world.position(lots, kind="order", order_type="limit", price="1.09000", sl=sl)
    world.send("M", world.event("ordered", o))
    world.settle()
    return o


def acts(world: ProtectionWorld) -> list[str]:
    return [e["action"] for e in world.executions("F")]


def amend(world: ProtectionWorld, o: dict[str, Any], **change: Any) -> None:
    world.send("M", world.event("amended", o | change))


WIDER = [{"sl": "1.06000"}, {"price": "1.09900"}, {"price": "1.09500", "sl": "1.06900"}]


@pytest.mark.covers("R45")
@pytest.mark.parametrize("policy", ["refuse", "shrink"])
@pytest.mark.parametrize("change", WIDER)
def test_an_order_that_could_now_cross_a_limit_is_cancelled_for_good(
    world: ProtectionWorld, change: dict[str, Any], policy: str
) -> None:
    world.rule("equity_floor", "95000", would_breach=policy)
    o = ordered(world)
    amend(world, o, **change)
    world.settle()
    assert acts(world) == ["place", "cancel"]
    assert world.reasons("F") == {"would_breach": 1}
    assert world.alerts() == {"order_withdrawn": 1}
    assert world.rows("select state, reason from public.position_links") == [
        {"state": "ended", "reason": "would_breach"}
    ]
    amend(world, o)
    filled = world.position("2.00", price="1.09000", sl="1.07000", replaces=o["ticket"])
    world.send("M", world.event("opened", filled))
    world.settle()
    assert acts(world) == ["place", "cancel"], "neither placed nor opened again"


@pytest.mark.covers("R45")
@pytest.mark.parametrize("change", [{"sl": "1.08000"}, {"price": "1.08000"}, {"tp": "1.20000"}, {"sl": "1.06600"}])
def test_a_change_that_keeps_the_limit_is_made(world: ProtectionWorld, change: dict[str, Any]) -> None:
    world.rule("equity_floor", "95000")
    amend(world, ordered(world), **change)
    world.settle()
    assert acts(world) == ["place", "amend"]
    assert (world.reasons("F"), world.alerts()) == ({}, {})


@pytest.mark.covers("R45")
def test_a_change_that_can_lose_no_more_is_made_though_the_limit_is_crossed(world: ProtectionWorld) -> None:
    o = ordered(world, "9.00")
    world.rule("equity_floor", "95000")
    amend(world, o, sl="1.07100")
    world.settle()
    first = ordered(world, "1.00", sl=None)
    amend(world, first, sl="1.07000")  # from no stop at all
    world.settle()
    assert acts(world) == ["place", "amend", "place", "amend"]
    assert world.reasons("F") == {}


@pytest.mark.covers("R45")
def test_without_such_a_rule_every_change_is_made(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000", would_breach="ignore")
    amend(world, ordered(world), sl="1.01000")
    world.settle()
    assert acts(world) == ["place", "amend"]


@pytest.mark.covers("R45")
def test_one_that_fills_before_it_is_cancelled_goes_on_as_a_copy(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000")
    o = ordered(world)
    amend(world, o, sl="1.06000")
    (cancel,) = world.open_executions("F")
    mine = world.position("2.00", ticket=cancel["ticket"], price="1.09000", sl="1.07000")
    world.report(cancel, "rejected", reason="position_not_found", positions=[mine])
    world.come_due()
    world.settle()
    assert world.book("F") == [("buy", "2.00")]
    world.send("M", world.event("cancelled", o | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("R45")
def test_a_cancelling_that_is_refused_is_asked_for_again_and_never_amended(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000")
    o = ordered(world)
    amend(world, o, sl="1.06000")
    (cancel,) = world.open_executions("F")
    world.report(cancel, "rejected", reason="market_closed")
    amend(world, o, sl="1.05000")
    assert "amend" not in acts(world)
    world.come_due()
    world.settle()
    assert set(acts(world)) == {"place", "cancel"}
    assert world.rows("select reason from public.position_links") == [{"reason": "would_breach"}]
    assert world.alerts() == {"order_withdrawn": 1}


@pytest.mark.covers("R45")
def test_one_that_is_changed_back_before_it_is_cancelled_stays(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000")
    o = ordered(world)
    amend(world, o, sl="1.06000")
    (cancel,) = world.open_executions("F")
    world.report(cancel, "rejected", reason="market_closed")
    amend(world, o, sl="1.07500")
    world.come_due()
    world.settle()
    held = world.one("select sl from public.positions where account_id = %s and lots > 0", world.accounts["F"])
    assert held == Decimal("1.07500")
    assert world.rows("select state, reason from public.position_links") == [{"state": "live", "reason": None}]
