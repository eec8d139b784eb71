"""Opens that a broker refused for their size get one second attempt, never more: as they were, or as large as they can
be."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[NettingWorld]:
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.add_account("N", vps="b", mode="netting")
    yield w
    assert w.unexplained() == 0


def funds(world: NettingWorld, account: str, free_margin: str, leverage: int | None = 30, age_s: int = 0) -> None:
    world.db.execute(
        "update public.trading_accounts set free_margin = %s, leverage = %s, funds_at = now() - make_interval(secs"
        " => %s)"
        " where id = %s",
        (free_margin, leverage, age_s, world.accounts[account]),
    )
    world.db.execute(
        "update public.account_symbols set bid = 1.0849, ask = 1.0850, quoted_at = now() where account_id = %s",
        (world.accounts[account],),
    )


def attempts(world: NettingWorld, account: str) -> list[tuple[int, str, str, str | None]]:
    return [(e["attempt"], f"{e['lots']:.2f}", e["status"], e["reason"]) for e in world.executions(account)]


def refuse(world: NettingWorld, account: str, reason: str = "no_money", **more: Any) -> None:
    (execution,) = world.open_executions(account)
    world.report(execution, "rejected", reason=reason, **more)


@pytest.mark.covers("X4")
def test_by_default_an_order_without_money_is_tried_once_more_as_it_was(world: NettingWorld) -> None:
    world.copy("M", "F")
    funds(world, "F", "2000")
    world.opened("M", "1.00", price="1.08500")
    refuse(world, "F")
    (waiting,) = world.open_executions("F")
    assert waiting["status"] == "retrying"
    assert timedelta(seconds=1) < waiting["next_attempt_at"] - datetime.now(UTC) < timedelta(seconds=3)
    world.come_due()
    assert attempts(world, "F") == [(2, "1.00", "queued", "no_money")]
    refuse(world, "F", retryable=True)  # whatever the broker says of it: no third
    world.come_due()
    assert attempts(world, "F") == [(2, "1.00", "rejected", "no_money")]
    assert world.rows("select kind, reason, times from public.alerts") == [
        {"kind": "copy", "reason": "no_money", "times": 1}
    ]


@pytest.mark.covers("X4")
def test_shrinking_opens_what_the_free_margin_allows(world: NettingWorld) -> None:
    """One lot needs 100,000 x 1.0850 / 30 = 3,616.67; 2,000 are free: 0.55."""
    world.copy("M", "F", no_money_policy="shrink")
    funds(world, "F", "2000")
    p = world.opened("M", "1.00", price="1.08500")
    refuse(world, "F")
    world.come_due()
    assert attempts(world, "F") == [(2, "0.55", "queued", "no_money")]
    world.settle()
    world.send("M", world.event("reduced", p | {"lots": "0.50"}))
    world.settle()
    assert world.book("F") == [("buy", "0.27")]  # half of what is held, not of what was wanted


@pytest.mark.covers("X4")
@pytest.mark.parametrize(
    ("free_margin", "leverage", "age_s", "status", "lots"),
    [
        ("36.17", 30, 0, "queued", "0.01"),  # just the smallest volume
        ("36.16", 30, 0, "rejected", "1.00"),  # not even that: no second attempt
        ("-5", 30, 0, "rejected", "1.00"),
        ("9000", 30, 0, "queued", "1.00"),  # the broker counts otherwise: as it was, never more
        ("2000", None, 0, "queued", "1.00"),  # the margin of a lot is not known
        ("2000", 30, 61, "queued", "1.00"),  # the figures are old
    ],
)
def test_what_shrinking_does_not_know_it_does_not_guess(
    world: NettingWorld, free_margin: str, leverage: int | None, age_s: int, status: str, lots: str
) -> None:
    world.copy("M", "F", no_money_policy="shrink")
    world.opened("M", "1.00", price="1.08500")
    funds(world, "F", free_margin, leverage, age_s)
    refuse(world, "F")
    world.come_due()
    ((_, now, state, _),) = attempts(world, "F")
    assert (state, now) == (status, lots)


@pytest.mark.covers("X4")
def test_a_netting_deal_that_only_opens_is_shrunk_too(world: NettingWorld) -> None:
    world.copy("M", "N", no_money_policy="shrink")
    funds(world, "N", "2000")
    p = world.opened("M", "1.00", price="1.08500")
    refuse(world, "N")
    world.come_due()
    assert attempts(world, "N") == [(2, "0.55", "queued", "no_money")]
    world.run()
    assert world.one("select base_lots from public.position_links") == world.one("select 0.55")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.run()
    assert world.one("select count(*) from private.link_legs") == 0


def test_a_second_attempt_is_never_late(world: NettingWorld) -> None:
    world.copy("M", "F", max_age_ms=1000)
    world.opened("M", "1.00")
    refuse(world, "F")
    assert attempts(world, "F") == [(1, "1.00", "rejected", "no_money")]


@pytest.mark.covers("X7")
def test_a_volume_that_the_broker_does_not_take_is_fitted_to_the_newest_limits_once(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.27")
    refuse(world, "F", "invalid_volume")
    world.db.execute(
        "update public.account_symbols set lots_step = 0.1, lots_min = 0.1 where account_id = %s",
        (world.accounts["F"],),
    )
    world.come_due()
    assert attempts(world, "F") == [(2, "1.20", "queued", "invalid_volume")]
    refuse(world, "F", "invalid_volume")
    assert attempts(world, "F") == [(2, "1.20", "rejected", "invalid_volume")]


def test_a_master_that_closes_meanwhile_ends_the_wait(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    refuse(world, "F")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.come_due()
    assert [(e["status"], e["reason"]) for e in world.executions("F")] == [("cancelled", "already_closed")]
