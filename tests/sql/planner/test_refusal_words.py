"""What a user reads of a trade that a rule refused: the figures that stood against it, beside the code."""

from typing import Any

import pytest
from netting_harness import NettingWorld


def detail(world: NettingWorld, reason: str) -> str:
    (row,) = world.rows(
        "select reason, detail from public.copied_trades where status = 'not_copied' order by event_id desc limit 1"
    )
    assert row["reason"] == reason
    return str(row["detail"])


@pytest.mark.parametrize(
    ("settings", "trade", "reason", "words"),
    [
        ({"sides": "buy"}, {"side": "sell"}, "side_filtered", "The master's side is sell; the copier copies buy only."),
        ({"symbols_except": ["EUR*", "X"]}, {}, "symbol_filtered",
         "EURUSD is among the symbols that the copier leaves out: EUR*, X."),
        ({"symbols_only": ["GBPUSD"]}, {}, "symbol_filtered",
         "EURUSD is not among the symbols that the copier copies: GBPUSD."),
        ({"magic_only": ["7", "8"]}, {"magic": "9"}, "magic_filtered",
         "The magic number is 9; the copier copies only 7, 8."),
        ({"comment_except": ["grid*"]}, {"comment": "grid 3"}, "comment_filtered",
         'The comment is "grid 3"; the copier copies all, but not grid*.'),
        ({"max_trades_per_day": 1}, {}, "max_trades_per_day",
         "The limit of trades a day is 1, and so many were opened since midnight in UTC."),
        ({"max_open_positions": 1}, {}, "max_open_positions",
         "The limit of open positions is 1, and so many are held or under way."),
        ({"max_open_lots": "0.5"}, {}, "max_open_lots",
         "The limit of open lots is 0.5, and so many are held or under way."),
    ],
)  # fmt: skip
def test_a_filter_tells_the_trade_and_its_setting(
    world: NettingWorld, settings: dict[str, Any], trade: dict[str, Any], reason: str, words: str
) -> None:
    copier = world.copy("M", "F")
    world.opened("M", "0.50")
    world.settle()
    world.as_user("save_copier", {"id": copier} | settings)
    world.opened("M", "0.10", **trade)
    assert detail(world, reason) == words


def test_hours_tell_the_time_in_the_copiers_zone(world: NettingWorld) -> None:
    clock = "select to_char(now() at time zone 'Asia/Tokyo', 'FMDay HH24:MI')"
    before = world.one(clock)
    hour = int(before.split()[1][:2])
    opens, closes = f"{(hour + 2) % 24:02}:00", f"{(hour + 4) % 24:02}:30"
    world.copy("M", "F", time_zone="Asia/Tokyo", open_from=opens, open_until=closes)
    world.opened("M")
    told = [
        f"It was {moment} in Asia/Tokyo; trades are opened on weekdays 1, 2, 3, 4, 5, 6, 7 from {opens} until {closes}."
        for moment in (before, world.one(clock))
    ]
    assert detail(world, "outside_hours") in told


def test_equity_is_told_with_its_age(world: NettingWorld) -> None:
    world.copy("M", "F", min_equity="10000.50")
    world.db.execute("update public.trading_accounts set funds_at = date_trunc('second', now())")
    told = world.one(
        "select to_char(max(funds_at) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"') from public.trading_accounts"
    )
    world.opened("M")
    assert detail(world, "min_equity") == f"The equity is 10000 USD (reported {told}); the copier needs 10000.5."


def test_an_old_trade_tells_how_old(world: NettingWorld) -> None:
    world.copy("M", "F", max_age_ms=2500)
    world.send("M", world.event("opened", world.position(), age_s=60))
    assert detail(world, "too_old").startswith("The account was last seen without the trade 6")
    assert detail(world, "too_old").endswith(" s ago; the copier allows 2.5 s.")


def test_a_closed_symbol_is_named_as_the_follower_calls_it(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.db.execute(
        "update public.account_symbols set trade_mode = 'close_only' where account_id = %s", (world.accounts["F"],)
    )
    world.opened("M")
    assert detail(world, "trade_disabled") == "EURUSD is close only at the follower."


def test_a_halted_follower_tells_what_halted_it(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.db.execute(
        "update public.trading_accounts set status = 'halted', status_reason = 'The terminal shows account 5, not 4.'"
        " where id = %s",
        (world.accounts["F"],),
    )
    world.opened("M")
    assert detail(world, "account_halted") == "The terminal shows account 5, not 4."


def test_a_code_that_says_all_there_is_has_no_more_words(world: NettingWorld) -> None:
    copier = world.copy("M", "F")
    world.as_user("set_copier_mode", {"copier_id": copier, "mode": "monitor"})
    world.opened("M")
    assert detail(world, "copier_monitor") == "None"
