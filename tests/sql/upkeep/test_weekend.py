"""Weekends: an account whose symbols stood still in the last weekend that was watched is closed, not lost."""

import json
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld as World


@pytest.fixture
def weekend(world: World) -> World:
    """It is Saturday, M leads F in EURUSD, and M's broker has gone to sleep."""
    world.set_weekend(-timedelta(days=1), timedelta(days=1))
    world.copy("M", "F")
    world.opened("M", "0.30")
    world.settle()
    go_silent(world, "M")
    return world


def go_silent(world: World, account: str, status: str = "disconnected") -> None:
    world.db.execute("update public.trading_accounts set status = %s where id = %s", (status, world.accounts[account]))
    world.db.execute(
        "update public.trading_accounts set status_at = now() - interval '1 minute',"
        " seen_at = now() - interval '1 minute', funds_at = now() - interval '1 minute' where id = %s",
        (world.accounts[account],),
    )


def status_of(world: World, account: str) -> str:
    return str(
        world.one(
            "select s.status from public.trading_accounts a"
            " cross join private.account_status_now(a, clock_timestamp()) s where a.id = %s",
            world.accounts[account],
        )
    )


def watched(world: World, account: str, symbol: str, weeks_ago: int, hours: int, *, moved: bool) -> None:
    world.db.execute(
        "insert into private.weekend_watches (account_id, symbol, begins, bid, ask, looked_at, watched, moved)"
        " select %s, %s, w.begins - make_interval(weeks => %s), 1, 1, now(), make_interval(hours => %s), %s"
        " from private.weekend_at(now()) w",
        (world.accounts[account], symbol, weeks_ago, hours, moved),
    )


def alerts(world: World) -> list[str]:
    world.db.execute("select private.raise_alarms()")
    return [row["reason"] for row in world.rows("select reason from public.alerts order by id")]


def test_silence_at_the_weekend_is_no_fault(weekend: World) -> None:
    assert status_of(weekend, "M") == "weekend"
    said = weekend.as_user("verdict", {})
    assert (said["tone"], said["findings"]) == ("idle", [])
    assert "3 of 4 accounts connected, 1 closed for the weekend" in said["text"]
    assert alerts(weekend) == []


def test_a_lost_agent_is_no_rest(weekend: World) -> None:
    """Nobody would notice when the markets open again."""
    weekend.db.execute("update public.vps_instances set lease_expires_at = now() - interval '1 hour' where true")
    assert {status_of(weekend, account) for account in weekend.accounts} == {"disconnected"}
    assert weekend.as_user("verdict", {})["tone"] == "bad"


@pytest.mark.parametrize(("reason", "tone"), [("market_closed", "warn"), ("trade_disabled", "bad")])
def test_a_close_that_waits_for_the_market_to_open_is_no_alarm(world: World, reason: str, tone: str) -> None:
    """Only while the broker itself calls the market closed."""
    world.set_weekend(-timedelta(days=1), timedelta(days=1))
    world.copy("M", "F")
    position = world.opened("M", "0.30")
    world.settle()
    world.send("M", world.event("closed", position | {"lots": "0"}))
    (close,) = world.open_executions("F")
    held = world.position("0.30", "buy", close["ticket"])
    world.report(close, "rejected", [held], reason=reason, retryable=True, message="no")
    world.db.execute(
        "update public.trade_execution_queue set queued_at = now() - interval '1 hour' where finalized_at is null"
    )
    said = world.as_user("verdict", {})
    assert (said["tone"], said["findings"][0]["code"]) == (tone, "close_overdue")
    assert alerts(world) == ([] if tone == "warn" else ["close_overdue"])
    world.set_weekend(timedelta(days=2), timedelta(days=3))
    assert world.as_user("verdict", {})["tone"] == "bad"


def test_an_account_without_symbols_says_nothing_about_rest(weekend: World) -> None:
    go_silent(weekend, "M2")
    assert status_of(weekend, "M2") == "disconnected"


@pytest.mark.parametrize(("minutes", "status"), [(16, "weekend"), (14, "disconnected"), (-1, "disconnected")])
def test_a_quarter_of_an_hour_before_the_end_it_is_as_always(weekend: World, minutes: int, status: str) -> None:
    weekend.set_weekend(-timedelta(days=1), timedelta(minutes=minutes + 0.5))
    assert status_of(weekend, "M") == status
    assert (alerts(weekend) == []) == (status == "weekend")


def test_before_it_begins_it_is_as_always(weekend: World) -> None:
    weekend.set_weekend(timedelta(minutes=2), timedelta(days=1))
    assert status_of(weekend, "M") == "disconnected"


def test_what_moved_in_the_last_weekend_that_was_watched_is_missed_in_this_one(weekend: World) -> None:
    watched(weekend, "M", "EURUSD", 3, 30, moved=False)
    watched(weekend, "M", "EURUSD", 2, 30, moved=True)
    watched(weekend, "M", "EURUSD", 1, 2, moved=False)  # nearly all of it in silence: not watched
    assert status_of(weekend, "M") == "disconnected"
    assert alerts(weekend) == ["master_unseen", "disconnected"]


def test_what_moves_in_this_weekend_is_missed_at_once(weekend: World) -> None:
    watched(weekend, "M", "EURUSD", 1, 40, moved=False)
    watched(weekend, "M", "EURUSD", 0, 1, moved=True)
    assert status_of(weekend, "M") == "disconnected"


@pytest.mark.parametrize(
    "symbol", ["BTCUSD", "ETHBTC.x", "#Bitcoin", "XRP/EUR", "mDOGEUSD", "1000SHIBUSDT", "EURUSDT", "SOLUSD.pro"]
)
def test_a_crypto_currency_that_was_never_watched_trades_at_weekends(weekend: World, symbol: str) -> None:
    """Without a single quote, and not even a specification of the symbol."""
    weekend.db.execute("update public.account_symbols set bid = null, ask = null, quoted_at = null where true")
    weekend.opened("M", "0.10", symbol=symbol)
    go_silent(weekend, "M")
    assert status_of(weekend, "M") == "disconnected"
    watched(weekend, "M", symbol, 1, 40, moved=False)
    assert status_of(weekend, "M") == "weekend", "this broker closes it"


@pytest.mark.parametrize(
    "symbol",
    ["XAUUSD", "US30", "GER40.cash", "AAPL", "USDJPY.m", "USDCAD", "USDCHF.r", "USD/CNH", "USDTRY", "XPTUSD"],
)
def test_other_symbols_rest_without_a_single_quote(weekend: World, symbol: str) -> None:
    weekend.db.execute("update public.account_symbols set bid = null, ask = null, quoted_at = null where true")
    weekend.opened("M", "0.10", symbol=symbol)
    go_silent(weekend, "M")
    assert status_of(weekend, "M") == "weekend"


def test_a_follower_is_missed_while_its_master_holds_what_trades(weekend: World) -> None:
    weekend.opened("M", "0.10", symbol="BTCUSD")
    go_silent(weekend, "F")
    assert weekend.rows("select 1 from public.positions where account_id = %s and symbol = 'BTCUSD'",
                        weekend.accounts["F"]) == []  # fmt: skip
    assert status_of(weekend, "F") == "disconnected"


# -- watching --------------------------------------------------------------------------------------------------------


def look(world: World, bid: str, *, minutes: int, quoted_s_ago: int = 0, status: str = "connected") -> None:
    """One look at M's EURUSD, `minutes` after the last one."""
    world.db.execute(
        "update private.weekend_watches set looked_at = looked_at - make_interval(mins => %s) where true", (minutes,)
    )
    world.db.execute("update public.trading_accounts set status = %s, seen_at = now() where id = %s",
                     (status, world.accounts["M"]))  # fmt: skip
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s::numeric + 0.1,"
        " quoted_at = now() - make_interval(secs => %s) where account_id = %s",
        (bid, bid, quoted_s_ago, world.accounts["M"]),
    )
    world.db.execute("select private.watch_weekend()")


def seen(world: World) -> list[tuple[int, bool]]:
    rows = world.rows(
        "select extract(epoch from watched)::integer / 60 as minutes, moved from private.weekend_watches"
        " where account_id = %s",
        world.accounts["M"],
    )
    return [(row["minutes"], row["moved"]) for row in rows]


def test_only_time_with_current_quotes_counts_as_watched(weekend: World) -> None:
    look(weekend, "1.1", minutes=0, quoted_s_ago=90)
    assert seen(weekend) == [], "the quote is old"
    look(weekend, "1.1", minutes=0, status="disconnected")
    assert seen(weekend) == [], "the account is not connected"
    look(weekend, "1.1", minutes=0)
    look(weekend, "1.1", minutes=2)
    look(weekend, "1.1", minutes=2)
    assert seen(weekend) == [(4, False)]
    look(weekend, "1.1", minutes=60)  # its agent was away
    assert seen(weekend) == [(4, False)]
    look(weekend, "1.2", minutes=1)
    look(weekend, "1.2", minutes=1)
    assert seen(weekend) == [(6, True)]


def test_the_edges_of_a_weekend_are_not_watched(weekend: World) -> None:
    for begins, ends in ((-14, 600), (-600, 14), (5, 600)):
        weekend.set_weekend(timedelta(minutes=begins), timedelta(minutes=ends))
        look(weekend, "1.1", minutes=0)
        assert seen(weekend) == []


def test_older_weekends_are_forgotten_once_a_later_one_was_watched(weekend: World) -> None:
    watched(weekend, "M", "EURUSD", 3, 40, moved=True)
    watched(weekend, "M", "EURUSD", 2, 2, moved=False)
    look(weekend, "1.1", minutes=0)
    assert len(seen(weekend)) == 3
    watched(weekend, "M", "EURUSD", 1, 40, moved=False)
    look(weekend, "1.1", minutes=1)
    assert len(seen(weekend)) == 2


def test_the_upkeep_watches(world: World) -> None:
    world.set_weekend(-timedelta(days=1), timedelta(days=1))
    world.opened("M", "0.30")
    world.db.execute("update private.clockwork set last_run_at = now() - interval '3 seconds' where name = 'maintain'")
    assert world.one("select private.maintain()")["errors"] == []
    assert seen(world) == [(0, False)]


# -- the setting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "begins", "ends"),
    [
        ("2026-11-25T12:00Z", "2026-11-27T22:00Z", "2026-11-29T22:00Z"),
        ("2026-11-28T12:00Z", "2026-11-27T22:00Z", "2026-11-29T22:00Z"),
        ("2026-11-29T22:00Z", "2026-12-04T22:00Z", "2026-12-06T22:00Z"),
        ("2026-07-04T12:00Z", "2026-07-03T21:00Z", "2026-07-05T21:00Z"),
        ("2026-03-07T12:00Z", "2026-03-06T22:00Z", "2026-03-08T21:00Z"),  # New York goes to summer time
        ("2026-10-31T12:00Z", "2026-10-30T21:00Z", "2026-11-01T22:00Z"),  # and back
    ],
)
def test_the_weekend_follows_the_clocks_of_new_york(world: World, now: str, begins: str, ends: str) -> None:
    (row,) = world.rows("select begins, ends from private.weekend_at(%s)", now)
    assert (row["begins"], row["ends"]) == (datetime.fromisoformat(begins), datetime.fromisoformat(ends))


def changed(**fields: Any) -> dict[str, Any]:
    usual = {"weekday": 5, "time": "17:00", "until_weekday": 7, "until_time": "17:00", "time_zone": "America/New_York"}
    return {key: value for key, value in (usual | fields).items() if value is not None}


@pytest.mark.parametrize(
    "value",
    [
        changed(weekday=0), changed(weekday="5"), changed(weekday=5.5), changed(until_weekday=8), changed(time="24:00"),
        changed(until_time="5 pm"), changed(time_zone="New York"), changed(time_zone=5), changed(time=None),
        changed(holidays=[]), changed(until_weekday=5), changed(weekday=1), [], "Saturday", 5, None, {},
    ],
)  # fmt: skip
def test_what_is_no_weekend_is_refused(world: World, value: Any) -> None:
    with pytest.raises(psycopg.Error) as refused, world.db.transaction():
        world.db.execute(
            "update public.system_config set value = %s::jsonb where key = 'weekend'", (json.dumps(value),)
        )
    assert refused.value.sqlstate == "TC302"
    assert "weekend" in str(refused.value)
