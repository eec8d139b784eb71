"""Before the first trade under another name, prices prove it; exposure is valued at the follower's own quote."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from planner_harness import World


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.db.execute("delete from public.account_symbols where account_id = %s", (w.accounts["F"],))
    yield w
    assert w.unexplained() == 0


def quoted(world: World, name: str, bid: str, ask: str, age_s: int = 0) -> None:
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s, quoted_at = now() - make_interval(secs => %s)"
        " where name = %s",
        (bid, ask, age_s, name),
    )


def with_affix(world: World) -> None:
    """F's broker adds .r to every name; ZZTOP is no well-known one."""
    for pair in ("EURUSD", "GBPUSD", "USDCHF", "AUDUSD", "NZDUSD"):
        world.add_symbol("F", f"{pair}.r")
    world.add_symbol("M", "ZZTOP")
    world.add_symbol("F", "ZZTOP.r")


@pytest.mark.covers("X19")
@pytest.mark.parametrize(
    ("bid", "ask", "age_s", "reason"),
    [("1.10", "1.10", 0, None), ("1.15", "1.15", 50, None), ("1.05", "1.05", 0, None),
     ("1.17", "1.17", 0, "symbol_unproven"), ("1.03", "1.03", 0, "symbol_unproven"),
     ("1.10", "1.10", 70, "symbols_loading"), ("1.10", "1.10", 86400, "symbols_loading")],
)  # fmt: skip
def test_the_first_trade_under_another_name_needs_agreeing_prices(
    world: World, bid: str, ask: str, age_s: int, reason: str | None
) -> None:
    with_affix(world)
    quoted(world, "ZZTOP.r", bid, ask, age_s)
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert len(world.executions("F")) == (reason is None)
    assert world.reasons("F") == ({} if reason is None else {reason: 1})


@pytest.mark.covers("X19")
@pytest.mark.parametrize(
    ("bid", "ask", "age_s", "reason"),
    [("1.10", "1.10", 0, None), ("1.17", "1.17", 0, "symbol_unproven"), ("1.10", "1.10", 70, "symbols_loading"),
     ("1.10", "1.10", 86400, "symbols_loading")],
)  # fmt: skip
def test_a_pair_of_currencies_needs_a_quote_that_agrees_too(
    world: World, bid: str, ask: str, age_s: int, reason: str | None
) -> None:
    world.add_symbol("F", "EURUSD.r")
    quoted(world, "EURUSD.r", bid, ask, age_s)
    world.copy("M", "F")
    world.opened("M", "0.10")
    assert len(world.executions("F")) == (reason is None)
    assert world.reasons("F") == ({} if reason is None else {reason: 1})
    assert world.one("select proven from private.symbol_choices") == (reason is None)


@pytest.mark.covers("X19")
def test_a_missing_quote_is_asked_for_and_proof_is_remembered(world: World) -> None:
    with_affix(world)
    world.db.execute("update public.account_symbols set quoted_at = null where name = 'ZZTOP.r'")
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert world.one("select detail from public.copy_outcomes where reason = 'symbols_loading'") == (
        "Quotes that prove that ZZTOP.r is the follower's name for ZZTOP were asked for."
    )
    world.db.execute("update private.symbol_waits set news_at = now() - interval '1 min', ends_at = now()")
    world.db.execute("select private.maintain_executions()")
    detail = world.one("select detail from public.copy_outcomes where reason = 'symbol_unproven'")
    assert detail == (
        "ZZTOP.r seems to be the follower's name for ZZTOP, but there is no current quote of it that proves it."
        " Choose it in the copier's symbols if it is right."
    )
    assert "ZZTOP.r" in world.one("select private.watched_symbols(%s)", world.accounts["F"])
    assert world.one("select count(*) from public.alerts where reason = 'symbol_unproven'") == 1
    quoted(world, "ZZTOP.r", "1.1", "1.1")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert len(world.executions("F")) == 1
    quoted(world, "ZZTOP.r", "1.1", "1.1", 3600)
    world.opened("M", "0.10", symbol="ZZTOP")
    assert len(world.executions("F")) == 2


@pytest.mark.covers("X19")
def test_the_same_name_and_a_mapping_need_no_proof(world: World) -> None:
    world.add_symbol("M", "GBPUSD")
    for name in ("EURUSD", "GBPUSD.r"):
        world.add_symbol("F", name)
    world.db.execute("update public.account_symbols set quoted_at = null")
    world.copy("M", "F", symbols={"GBPUSD": "GBPUSD.r"})
    world.opened("M", "0.10")
    world.opened("M", "0.10", symbol="GBPUSD")
    assert [e["symbol"] for e in world.executions("F")] == ["EURUSD", "GBPUSD.r"]


REQUEST = {
    "copier": {"max_leverage": "10", "sanity_factor": "3"},
    "master": {"currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000"},
    "follower": {
        "currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000",
        "symbol": {"name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001",
                   "profit_currency": "USD", "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01"},
    },
    "trade": {"side": "buy", "lots": "0.50", "price": "1.10000"},
    "rates": {},
}  # fmt: skip


@pytest.mark.covers("X20")
@pytest.mark.parametrize(
    ("quote", "side", "reason"),
    [
        ({}, "buy", None),
        ({"bid": None, "ask": None}, "buy", None),
        ({"bid": "1.1", "ask": "1.1"}, "buy", None),
        ({"bid": "1.1", "ask": "2.1"}, "buy", "max_leverage"),
        ({"bid": "1.1", "ask": "2.1"}, "sell", None),
        ({"bid": "2.1", "ask": "2.1"}, "sell", "max_leverage"),
    ],
)
def test_exposure_is_valued_at_the_followers_quote(
    world: World, quote: dict[str, Any], side: str, reason: str | None
) -> None:
    follower = REQUEST["follower"] | {"symbol": REQUEST["follower"]["symbol"] | quote}  # type: ignore[operator, index]
    request = REQUEST | {"follower": follower, "trade": REQUEST["trade"] | {"side": side}}  # type: ignore[operator]
    assert world.as_user("preview_copy", request)["reason"] == reason


@pytest.mark.covers("X20")
def test_every_line_that_explains_a_size_is_a_text(world: World) -> None:
    request = REQUEST | {"copier": {}, "follower": REQUEST["follower"] | {"equity": None}}  # type: ignore[operator]
    answer = world.as_user("preview_copy", request)
    assert answer["warnings"] == ["sanity_unchecked"]
    assert all(isinstance(line, str) for line in answer["explain"])


@pytest.mark.covers("X20")
def test_a_trade_is_valued_at_the_followers_fresh_quote(world: World) -> None:
    world.add_symbol("F", "EURUSD")
    world.copy("M", "F", max_leverage="1")
    quoted(world, "EURUSD", "1.1", "1000", 3600)
    world.opened("M", "0.01")
    assert len(world.executions("F")) == 1
    world.db.execute(
        "update public.account_symbols set quoted_at = now() where account_id = %s", (world.accounts["F"],)
    )
    world.opened("M", "0.01")
    assert world.reasons("F") == {"max_leverage": 1}
