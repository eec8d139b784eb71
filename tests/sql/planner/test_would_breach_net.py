"""Limits on an account that nets: what counts is the net position after the trade (R44)."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make

#: EURUSD is quoted at 1.1 / 1.1001; a lot loses 10 per pip of 0.0001
BELOW, ABOVE = "1.08000", "1.12010"  # 2,000 a lot, long and short


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    """N nets, has 100,000, and may lose 5,000."""
    for w in make(connection):
        w.add_account("M2", vps="a")
        w.add_account("N", vps="b", mode="netting", balance="100000")
        w.add_symbol("M", "GBPUSD")
        w.add_symbol("N", "GBPUSD")
        w.copy("M", "N")
        w.copy("M2", "N")
        w.db.execute("update public.trading_accounts set funds_at = now(), initial_balance = 100000 where name = 'N'")
        yield w


def bound(world: ProtectionWorld) -> str:
    return str(world.as_user("protection_room", {"account_id": world.accounts["N"]})["bound"])


@pytest.mark.covers("R44")
@pytest.mark.parametrize("dealt", [True, False])
def test_a_trade_that_takes_off_the_net_position_is_never_refused(world: ProtectionWorld, dealt: bool) -> None:
    world.rule("equity_floor", "97000", account="N")
    world.opened("M", "1.00", sl=BELOW)
    if dealt:
        world.run()
    world.opened("M2", "0.50", "sell", sl="1.30010")
    world.run()
    assert world.reasons("N") == {}
    assert str(world.net) == "0.50"
    assert bound(world) == "995"  # at 1.08 1.00 has lost 2,000, and 0.50 has gained 1,005
    world.opened("M2", "0.50", "sell", sl=ABOVE)
    world.run()
    assert (world.reasons("N"), world.net) == ({}, 0)


@pytest.mark.covers("R44")
def test_also_where_the_limit_is_crossed_already(world: ProtectionWorld) -> None:
    world.opened("M", "4.00", sl=BELOW)
    world.run()
    world.rule("equity_floor", "97000", account="N")
    world.opened("M", "0.01", sl=BELOW)
    assert world.reasons("N").get("would_breach") == 1
    world.opened("M2", "1.00", "sell", sl=ABOVE)
    world.run()
    assert (str(world.net), world.reasons("N")) == ("3.00", {"would_breach": 1})


@pytest.mark.covers("R44")
@pytest.mark.parametrize(("lots", "refused"), [("3.50", 0), ("3.51", 1)])
def test_of_a_trade_that_turns_the_position_round_the_other_side_counts(
    world: ProtectionWorld, lots: str, refused: int
) -> None:
    """At the stop of the short side 3.50 have lost 7,000, and 1.00 long has gained 2,010."""
    world.rule("equity_floor", "95000", account="N")
    world.opened("M", "1.00", sl=BELOW)
    world.run()
    world.opened("M2", lots, "sell", sl=ABOVE)
    assert world.reasons("N") == ({"would_breach": 1} if refused else {})


@pytest.mark.covers("R44")
def test_a_trade_is_shrunk_to_what_fits_beside_the_net_position(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000", account="N", would_breach="shrink")
    world.opened("M", "1.00", sl=BELOW)
    world.run()
    world.opened("M2", "9.00", "sell", sl=ABOVE)
    world.run()
    assert str(world.net) == "-2.50"


@pytest.mark.covers("R44")
def test_a_master_that_turns_round_counts_once(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000", account="N")
    p = world.opened("M", "2.00", sl=BELOW)
    world.run()
    world.send("M", world.event("modified", p | {"side": "sell", "sl": ABOVE}))
    world.run()
    assert (str(world.net), world.reasons("N")) == ("-2.00", {})


@pytest.mark.covers("R44")
@pytest.mark.parametrize("dealt", [True, False])
def test_stops_of_several_copies_count_though_none_stands_at_the_broker(world: ProtectionWorld, dealt: bool) -> None:
    world.rule("equity_floor", "95000", account="N")
    for master in ("M", "M2"):
        world.opened(master, "1.20", sl=BELOW)
        if dealt:
            world.run()
    assert bound(world) == "4800"
    world.opened("M", "0.10", sl=BELOW)
    assert world.reasons("N").get("would_breach") == 1
    world.opened("M", "0.01", symbol="GBPUSD", sl=BELOW)
    assert world.reasons("N").get("would_breach") == 1, "another symbol has room for 20 beside"
    world.opened("M", "0.10", symbol="GBPUSD", sl=BELOW)
    assert world.reasons("N").get("would_breach") == 2


@pytest.mark.covers("R44")
def test_what_the_user_holds_beside_the_copies_counts(world: ProtectionWorld) -> None:
    world.rule("equity_floor", "95000", account="N")
    own = world.position("2.00", "buy", "net-1", sl=BELOW)
    world.send("N", world.event("opened", own))
    assert bound(world) == "4000"
    world.opened("M", "0.60", sl=BELOW)
    assert world.reasons("N").get("would_breach") == 1
    world.opened("M", "0.60", "sell", sl="1.30010")
    assert world.reasons("N").get("would_breach") == 1


@pytest.mark.covers("R44")
def test_without_a_rate_nothing_is_opened(world: ProtectionWorld) -> None:
    world.db.execute("update public.trading_accounts set currency = 'CHF' where name = 'N'")
    world.rule("equity_floor", "95000", account="N")
    world.opened("M", "0.10", sl=BELOW)
    assert world.reasons("N") == {"stale_funds": 1}
