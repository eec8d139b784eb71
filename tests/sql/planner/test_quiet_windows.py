"""Quiet windows: nothing is opened in them, closes go on."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
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
    gold = {"contract_size": "100", "tick_size": "0.01", "digits": 2, "margin_currency": "USD"}
    for account, name in (("M", "XAUUSD"), ("F", "GOLD"), ("M", "US30"), ("F", "US30")):
        w.add_symbol(account, name, **gold)
    yield w
    assert w.unexplained() == 0


def at(minutes: float) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat(timespec="seconds")


def window(begins: float, ends: float, *currencies: str, symbols: list[str] | None = None) -> dict[str, Any]:
    return {"from": at(begins), "until": at(ends), "currencies": list(currencies), "symbols": symbols or []}


def quiet(world: NettingWorld, *windows: dict[str, Any], **more: Any) -> Any:
    return world.as_user("save_quiet_windows", {"windows": list(windows)} | more)


def minutes(world: NettingWorld, before: int, after: int, account: str = "F", **more: Any) -> None:
    request = {"account_id": world.accounts[account], "minutes_before": before, "minutes_after": after}
    world.as_user("set_quiet_times", request | more)


@pytest.mark.covers("R31")
def test_nothing_is_opened_in_a_window_and_closes_go_on(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    quiet(world, window(-1, 30, "USD"))
    world.opened("M")
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.settle()
    assert world.book("F") == [("buy", "1.00")]
    assert world.reasons("F") == {"news_window": 2}
    detail = world.one("select detail from public.copy_outcomes where reason = 'news_window' limit 1")
    assert "A quiet window: 20" in detail
    world.send("M", world.event("reduced", p | {"lots": "1.00"}))
    world.settle()
    assert world.book("F") == [("buy", "0.50")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []
    world.as_user("remove_quiet_windows", {"all": True})
    world.opened("M")
    world.settle()
    assert world.book("F") == [("buy", "1.00")]


@pytest.mark.parametrize(
    ("given", "symbol", "held_back"),
    [
        (partial(window, -1, 1, "USD"), "EURUSD", True),
        (partial(window, -1, 1, "EUR"), "EURUSD", True),
        (partial(window, -1, 1, "eur "), "EURUSD", True),
        (partial(window, -1, 1, "GBP"), "EURUSD", False),
        (partial(window, -1, 1, "GBP", "USD"), "EURUSD", True),
        (partial(window, -1, 1), "EURUSD", True),  # neither currencies nor symbols: everything
        (partial(window, -1, 1, symbols=["eurusd"]), "EURUSD", True),
        (partial(window, -1, 1, symbols=["EURUSD.pro"]), "EURUSD", True),
        (partial(window, -1, 1, symbols=["EUR/USD"]), "EURUSD", True),
        (partial(window, -1, 1, symbols=["GBPUSD"]), "EURUSD", False),
        (partial(window, -1, 1, symbols=["XAUUSD"]), "XAUUSD", True),  # the follower calls it GOLD
        (partial(window, -1, 1, symbols=["GOLD"]), "XAUUSD", True),
        (partial(window, -1, 1, "XAU"), "XAUUSD", False),  # the follower's GOLD tells USD alone
        (partial(window, -1, 1, "USD"), "XAUUSD", True),
        (partial(window, -1, 1, symbols=["DJ30"]), "US30", True),
        (partial(window, -1, 1, symbols=["US500"]), "US30", False),
        (partial(window, 1, 30, "USD"), "EURUSD", False),
        (partial(window, -30, -1, "USD"), "EURUSD", False),
        (partial(window, -3000, 3000, "USD"), "EURUSD", True),  # over days
    ],
)
def test_what_a_window_concerns(
    world: NettingWorld, given: Callable[[], dict[str, Any]], symbol: str, held_back: bool
) -> None:
    world.copy("M", "F", symbols={"XAUUSD": "GOLD"})
    quiet(world, given())
    world.opened("M", symbol=symbol)
    assert world.reasons("F") == ({"news_window": 1} if held_back else {})


def test_a_broker_that_names_the_wrong_base_is_not_believed(world: NettingWorld) -> None:
    world.db.execute("update public.account_symbols set margin_currency = 'AUD'")
    world.copy("M", "F")
    quiet(world, window(-1, 1, "AUD"))
    world.opened("M")
    assert world.reasons("F") == {}
    quiet(world, window(-1, 1, "EUR"))
    world.opened("M")
    assert world.reasons("F") == {"news_window": 1}


def test_stablecoins_and_cents_count_as_their_money(world: NettingWorld) -> None:
    for account in ("M", "F"):
        world.add_symbol(account, "SOLUSDT", profit_currency="USDT", margin_currency="USDT")
    world.copy("M", "F")
    quiet(world, window(-1, 1, "USD"))
    world.opened("M", symbol="SOLUSDT")
    assert world.reasons("F") == {"news_window": 1}


@pytest.mark.parametrize(
    ("before", "after", "begins", "ends", "held_back"),
    [
        (5, 0, 4, 30, True),
        (5, 0, 6, 30, False),
        (0, 5, -30, -4, True),
        (0, 5, -30, -6, False),
        (1440, 0, 1439, 1500, True),
        (0, 1440, -1500, -1439, True),
        (2, 0, 1, 1, True),  # a moment
        (0, 2, -1, -1, True),
        (0, 0, 0, 0, False),
    ],
)
def test_minutes_before_and_after(
    world: NettingWorld, before: int, after: int, begins: float, ends: float, held_back: bool
) -> None:
    world.copy("M", "F")
    minutes(world, before, after)
    quiet(world, window(begins, ends, "USD"))
    world.opened("M")
    assert world.reasons("F") == ({"news_window": 1} if held_back else {})


def test_windows_that_overlap_hold_back_until_the_last_is_over(world: NettingWorld) -> None:
    world.copy("M", "F")
    quiet(world, window(-30, -1, "USD"), window(-10, 10, "USD"), window(-20, 5, "EUR"))
    world.opened("M")
    assert world.reasons("F") == {"news_window": 1}


def test_windows_for_everybody_are_set_by_operators(world: NettingWorld) -> None:
    world.copy("M", "F")
    with pytest.raises(psycopg.Error) as said:
        quiet(world, window(-1, 1, "USD"), for_all=True)
    assert said.value.sqlstate == "TC107"
    operator = world._user("operator@example.test")
    world.db.execute("insert into public.operators (user_id) values (%s)", (operator,))
    world.call(operator, "save_quiet_windows", {"windows": [window(-1, 1, "USD")], "for_all": True})
    minutes(world, 0, 0, own_windows=False)
    world.opened("M")
    assert world.reasons("F") == {"news_window": 1}
    world.as_user("remove_quiet_windows", {"all": True})  # his own: none
    assert world.one("select count(*) from public.quiet_windows") == 1
    world.call(operator, "remove_quiet_windows", {"all": True, "for_all": True})
    assert world.one("select count(*) from public.quiet_windows") == 0


def test_an_account_may_leave_its_users_windows_aside_and_others_have_none_of_them(world: NettingWorld) -> None:
    world.copy("M", "F")
    quiet(world, window(-1, 1, "USD"))
    minutes(world, 0, 0, own_windows=False)
    world.opened("M")
    assert world.reasons("F") == {}
    minutes(world, 0, 0, own_windows=True)
    world.db.execute("update public.quiet_windows set user_id = %s", (world._user("other@example.test"),))
    world.opened("M")
    assert world.reasons("F") == {}


def test_an_open_that_waits_for_another_attempt_ends(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M")
    world.report(world.open_executions("F")[0], "rejected", reason="price_changed", retryable=True)
    quiet(world, window(-1, 1, "USD"))
    world.come_due()
    assert [(e["status"], e["reason"]) for e in world.executions("F")] == [("cancelled", "news_window")]
    assert world.one("select reason from public.position_links") == "news_window"


def test_a_netting_follower_opens_nothing_and_closes(world: NettingWorld) -> None:
    world.copy("M", "N")
    p = world.opened("M")
    world.run()
    quiet(world, window(-1, 1, "USD"))
    world.opened("M", "0.50")
    world.run()
    assert (f"{world.net:.2f}", world.reasons("N")) == ("1.00", {"news_window": 1})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.run()
    assert world.net == 0


def test_a_pending_order_is_not_placed_and_one_that_filled_is_not_bought_instead(world: NettingWorld) -> None:
    world.copy("M", "F")
    quiet(world, window(-1, 1, "USD"))
    world.send("M", world.event("ordered", world.position(kind="order", order_type="limit", price="1.05000")))
    assert (world.reasons("F"), world.open_executions("F")) == ({"news_window": 1}, [])


def over(world: NettingWorld) -> None:
    """All windows, and the waits for them, are over."""
    world.db.execute("delete from public.quiet_windows")
    world.db.execute(
        "update public.position_links set levels_due_at = '-infinity'"
        " where levels_due_at is not null and state = 'live'"
    )
    world.come_due()


def told(world: NettingWorld, account: str = "F") -> list[tuple[str, str]]:
    return [
        (e["action"], str(e["sl"])) for e in world.executions(account) if e["action"] in ("modify", "amend", "close")
    ]


@pytest.mark.covers("R39")
def test_levels_wait_for_the_end_of_the_window_if_the_account_asks_for_it(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    q = world.opened("M")
    world.settle()
    minutes(world, 0, 5, levels_wait=True)
    quiet(world, window(-1, 30, "USD"))
    for sl in ("1.05000", "1.06000"):
        world.send("M", world.event("modified", p | {"sl": sl}))
    world.come_due()
    assert told(world) == []
    due = world.one("select max(levels_due_at) - now() from public.position_links")
    assert 33 < due.total_seconds() / 60 < 36
    world.send("M", world.event("closed", q | {"lots": "0"}))
    world.settle()
    assert told(world) == [("close", "None")]
    over(world)
    world.settle()
    assert told(world) == [("close", "None"), ("modify", "1.06000")]
    assert (
        world.one("select count(*) from public.position_links where levels_due_at is not null and state = 'live'") == 0
    )
    world.come_due()
    assert len(told(world)) == 2


def test_levels_do_not_wait_unless_the_account_asks_for_it(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    quiet(world, window(-1, 30, "USD"))
    world.send("M", world.event("modified", p | {"sl": "1.05000"}))
    assert told(world) == [("modify", "1.05000")]


def test_a_change_that_was_taken_back_meanwhile_is_not_sent(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    minutes(world, 0, 0, levels_wait=True)
    quiet(world, window(-1, 30, "USD"))
    world.send("M", world.event("modified", p | {"sl": "1.05000"}))
    world.send("M", world.event("modified", p))
    over(world)
    assert told(world) == []
    assert world.one("select count(*) from public.position_links where levels_due_at is not null") == 0


def test_levels_of_a_netting_position_and_of_a_pending_order_wait_too(world: NettingWorld) -> None:
    world.copy("M", "F", copy_pending=True)
    world.copy("M", "N")
    p = world.opened("M")
    order = world.position(kind="order", order_type="limit", price="1.05000")
    world.send("M", world.event("ordered", order))
    world.settle_both()
    for account in ("F", "N"):
        minutes(world, 0, 0, account, levels_wait=True)
    quiet(world, window(-1, 30, "USD"))
    world.send("M", world.event("modified", p | {"sl": "1.04000"}))
    world.send("M", world.event("amended", order | {"price": "1.06000"}))
    world.settle_both()
    assert (told(world), told(world, "N")) == ([], [])
    over(world)
    world.settle_both()
    assert sorted(action for action, _ in told(world)) == ["amend", "modify"]
    assert told(world, "N") == [("modify", "1.04000")]


def test_a_change_that_waits_for_another_attempt_waits_on(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.05000"}))
    world.report(world.open_executions("F")[0], "rejected", reason="price_changed", retryable=True)
    minutes(world, 0, 0, levels_wait=True)
    quiet(world, window(-1, 30, "USD"))
    world.come_due()
    assert [e["status"] for e in world.open_executions("F")] == ["retrying"]
    over(world)
    world.settle()
    assert told(world) == [("modify", "1.05000")]


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"from": "tomorrow"}, "TC303", "window 2 has no time that can be read in from .tomorrow"),
        ({"from": "2099-02-30 10:00"}, "TC303", "in from"),
        ({"from": "infinity"}, "TC303", "in from"),
        ({"from": "04.12.2099 13:30"}, "TC303", "in from"),
        ({}, "TC303", "in from .nothing"),
        ({"from": "2099-12-04 13:30", "until": "soon"}, "TC303", "in until .soon"),
        ({"from": "2099-12-04 13:30", "until": "2099-12-04 13:29"}, "TC303", "before it begins"),
        ({"from": "2099-12-04", "until": "2100-12-04"}, "TC303", "over 31 days"),
        ({"from": "2099-12-04", "currencies": ["US DOLLAR"]}, "TC303", "no code"),
        ({"from": "2099-12-04", "currencies": "USD"}, "TC303", "not lists"),
        ({"from": "2099-12-04", "symbols": [1]}, "TC303", "not lists"),
        ({"from": "2099-12-04", "symbols": ["x" * 65]}, "TC303", "over 64"),
        ({"from": "2099-12-04", "name": "a\u202eb"}, "TC303", "control"),
        ({"from": "2099-12-04", "currency": ["USD"]}, "TC301", "unknown setting: currency"),
    ],
)
def test_one_bad_window_saves_none(world: NettingWorld, given: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=words) as said:
        quiet(world, window(-1, 1), given)
    assert said.value.sqlstate == code
    assert world.one("select count(*) from public.quiet_windows") == 0


def test_times_are_read_in_the_zone_that_is_given(world: NettingWorld) -> None:
    days = [
        {"from": "2099-03-29 01:30", "until": "2099-03-29 03:30"},  # the clocks go forward at 02:00
        {"from": "2099-10-25", "until": "2099-10-25"},  # 25 hours
        {"from": "2099-12-04T13:30:00-05:00"},
        {"from": "2099-12-04T13:30Z", "until": "2099-12-04 13:45 +0000"},
    ]
    assert quiet(world, *days, time_zone="Europe/Berlin")["saved"] == 4
    found = world.rows("select to_json(begins_at at time zone 'UTC') #>> '{}' as b, ends_at - begins_at as d"
                       " from public.quiet_windows order by 1")  # fmt: skip
    assert [(r["b"], r["d"].total_seconds() / 60) for r in found] == [
        ("2099-03-29T00:30:00", 60), ("2099-10-24T22:00:00", 1500),
        ("2099-12-04T13:30:00", 15), ("2099-12-04T18:30:00", 0)]  # fmt: skip


def test_the_same_window_is_stored_once_and_what_is_over_is_left_out(world: NettingWorld) -> None:
    first = window(-1, 60, "USD")
    assert quiet(world, first, first | {"currencies": ["usd", "USD"]}, window(-6000, -5000))["over"] == 1
    assert quiet(world, first | {"name": "again"}) == {"saved": 1, "over": 0, "windows": 1, "warnings": []}
    assert quiet(world, window(-1, 61, "EUR"), replace=True)["windows"] == 1
    assert quiet(world, window(5, 5, "EUR"))["warnings"] != []
    world.db.execute("update public.system_config set value = '3' where key = 'quiet_windows_max'")
    with pytest.raises(psycopg.Error, match="the limit of quiet windows is 3, this would make 4") as said:
        quiet(world, window(1, 2), window(2, 3))
    assert said.value.sqlstate == "TC324"
    ids = [r["id"] for r in world.rows("select id from public.quiet_windows order by id")]
    assert world.as_user("remove_quiet_windows", {"ids": [ids[0]]}) == {"removed": 1}
    with pytest.raises(psycopg.Error, match="give ids"):
        world.as_user("remove_quiet_windows", {})
