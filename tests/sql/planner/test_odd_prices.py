"""Prices of 0 and below, and entries that cannot be taken: what is known of the others counts, what is unknown is not
closed.

Oil was quoted below 0 on 20 April 2020, so a negative price is one where the symbol allows it or its own quote is
negative. An open price of 0 is none.
"""

from decimal import Decimal
from typing import Any

import psycopg
import pytest
from planner_harness import World

D = Decimal
OIL = {"contract_size": "100", "tick_size": "0.01", "digits": 2, "profit_currency": "USD", "margin_currency": "USD"}


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> World:
    w = World(connection)
    for name, vps in (("M", "a"), ("F", "b")):
        w.add_account(name, vps=vps)
        w.add_symbol(name, "USOIL", **OIL)
        quote(w, name, "-37.02", "-37.00", allow_negative=True)
    return w


def quote(
    world: World, account: str, bid: str | None, ask: str | None, symbol: str = "USOIL", *, allow_negative: bool = False
) -> None:
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s, allow_negative = %s, quoted_at = now()"
        " where account_id = %s and name = %s",
        (bid, ask, allow_negative, world.accounts[account], symbol),
    )


def sent(world: World) -> list[dict[str, Any]]:
    return world.executions("F")


def snapshot(world: World, *entries: Any, account: str = "M") -> dict[str, Any]:
    answer = world.send(account, world.event("snapshot", positions=list(entries)))
    return dict(answer["results"][0])


def held(world: World, account: str = "M") -> set[str]:
    return {
        row["ticket"]
        for row in world.rows(
            "select ticket from public.positions where account_id = %s and closed_at is null", world.accounts[account]
        )
    }


def oil(world: World, lots: str = "1.00", **more: Any) -> dict[str, Any]:
    return world.position(lots, symbol="USOIL", **{"price": "-37.00"} | more)


# --- negative prices -----------------------------------------------------------------------------------------


@pytest.mark.covers("X30")
@pytest.mark.parametrize("allowed", [True, False], ids=["the symbol allows it", "its own quote is negative"])
def test_a_trade_below_zero_is_copied_with_its_levels(world: World, allowed: bool) -> None:
    for name in ("M", "F"):
        quote(world, name, "-37.02", "-37.00", allow_negative=allowed)
    world.copy("M", "F")
    position = oil(world, sl="-38.50", tp="1.00")
    world.send("M", world.event("opened", position))
    [opened] = sent(world)
    assert (opened["lots"], opened["sl"], opened["tp"], opened["master_price"]) == (1, D("-38.50"), 1, -37)
    world.fill(opened)
    world.send("M", world.event("modified", position | {"sl": "-38.00"}))
    assert [row["sl"] for row in world.open_executions("F")] == [-38]
    world.settle()
    world.send("M", world.event("closed", position | {"lots": "0"}))
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("X30")
@pytest.mark.parametrize(
    ("settings", "side", "sl"),
    [
        ({"sl_mode": "distance"}, "buy", "-38.50"),
        ({"sl_mode": "fixed", "sl_points": 50}, "buy", "-37.50"),
        ({"sl_mode": "fixed", "sl_points": 50}, "sell", "-36.52"),
        ({"max_sl_points": 100}, "buy", "-38.00"),
    ],
)
def test_distances_are_measured_below_zero_too(world: World, settings: dict[str, Any], side: str, sl: str) -> None:
    world.copy("M", "F", **settings)
    world.send("M", world.event("opened", oil(world, side=side, sl="-38.50" if side == "buy" else "-30")))
    [opened] = sent(world)
    assert opened["sl"] == D(sl)


def test_prices_below_zero_are_rounded_to_the_nearest_tick(world: World) -> None:
    for price, rounded in (("-37.634", "-37.63"), ("-37.636", "-37.64"), ("-0.004", "0"), ("37.636", "37.64")):
        assert world.one("select private.on_tick(%s, 0.01)", D(price)) == D(rounded)
        assert world.one("select (private.price_levels(%s, null, 0.01)).sl", D(price)) == D(rounded)


@pytest.mark.covers("X30")
def test_a_stop_beyond_zero_is_kept_where_prices_may_be_negative(world: World) -> None:
    for name in ("M", "F"):
        quote(world, name, "5.00", "5.02", allow_negative=True)
    world.copy("M", "F", sl_mode="fixed", sl_points=800)
    world.send("M", world.event("opened", oil(world, price="5.02")))
    assert [row["sl"] for row in sent(world)] == [D("-2.98")]


@pytest.mark.covers("X30")
@pytest.mark.parametrize(
    ("limit", "reason"), [({"max_leverage": 100}, "max_leverage"), ({"sanity_factor": 3}, "sanity")]
)
def test_limits_take_the_price_without_its_sign_and_refuse_near_zero(
    world: World, limit: dict[str, Any], reason: str
) -> None:
    world.copy("M", "F", **{"sanity_factor": None} | limit)
    world.send("M", world.event("opened", oil(world)))
    assert [row["lots"] for row in sent(world)] == [1]
    for name in ("M", "F"):
        quote(world, name, "-0.05", "-0.03", allow_negative=True)
    world.send("M", world.event("opened", oil(world, price="-0.03")))
    assert world.reasons("F") == {reason: 1}
    said = world.one("select detail from public.copy_outcomes where reason = %s", reason)
    assert "too near 0" in said


def test_a_limit_on_leverage_holds_below_zero(world: World) -> None:
    world.copy("M", "F", max_leverage=1, sanity_factor=None)  # 100 barrels at 37: 3,700 a lot, and 10,000 of equity
    world.send("M", world.event("opened", oil(world, lots="3.00")))
    assert world.reasons("F") == {"max_leverage": 1}


@pytest.mark.covers("X30")
@pytest.mark.parametrize(("bid", "ask"), [("0", "0"), ("0", "1.1"), ("1.2", "-1"), ("NaN", "NaN"), ("-Infinity", "1")])
def test_a_quote_of_zero_or_of_no_number_is_no_quote(world: World, bid: str, ask: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation), world.db.transaction():
        quote(world, "F", bid, ask)


# --- an open price of 0 --------------------------------------------------------------------------------------


@pytest.mark.covers("X31")
def test_an_open_price_of_zero_is_unknown_and_the_present_quote_stands_for_it(world: World) -> None:
    world.copy("M", "F", sl_mode="fixed", sl_points=100)
    world.opened("M", price="0")
    [opened] = sent(world)
    assert (opened["master_price"], opened["sl"]) == (D("1.1001"), D("1.0991"))
    world.db.execute("update public.account_symbols set quoted_at = now() - interval '1 h' where name = 'EURUSD'")
    world.opened("M", price="0")
    assert world.reasons("F") == {"no_quote": 1}


@pytest.mark.covers("X31")
def test_a_distance_from_an_unknown_price_is_not_copied(world: World) -> None:
    world.copy("M", "F", sl_mode="distance")
    position = world.opened("M", price="0", sl="1.09000")
    [opened] = sent(world)
    assert D("1.08") < opened["sl"] < D("1.0902")
    world.fill(opened)
    world.settle()
    world.send("M", world.event("modified", position | {"sl": "1.08500"}))
    assert all(row["sl"] > D("1.08") for row in world.open_executions("F"))


def test_zero_is_a_price_where_prices_may_be_negative(world: World) -> None:
    for name in ("M", "F"):
        quote(world, name, "-0.01", "0", allow_negative=True)
    world.copy("M", "F", sanity_factor=None)
    world.send("M", world.event("opened", oil(world, price="0")))
    assert [row["master_price"] for row in sent(world)] == [0]


# --- entries that cannot be taken ----------------------------------------------------------------------------

BAD: list[dict[str, Any]] = [
    {"price": "-1.1"}, {"price": "NaN"}, {"price": "much"}, {"price": None}, {"lots": "0"}, {"lots": "Infinity"},
    {"lots": "-1"}, {"side": "up"}, {"symbol": ""}, {"symbol": "x" * 65}, {"sl": "low"}, {"tp": "-1"}, {"tag": "x"},
    {"opened_at": "soon"},
]  # fmt: skip


@pytest.mark.covers("X32")
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_entry_is_present_and_unknown_and_the_others_are_booked(world: World, bad: dict[str, Any]) -> None:
    world.copy("M", "F")
    known, other = world.opened("M"), world.opened("M")
    world.settle()
    new = world.position("0.50")
    for _ in range(3):
        assert snapshot(world, known | bad, other, new)["status"] == "accepted"
    assert held(world) == {known["ticket"], other["ticket"], new["ticket"]}
    world.settle()
    assert len(world.book("F")) == 3
    [alert] = world.rows("select * from public.alerts where reason = 'entry_unread'")
    assert known["ticket"] in alert["message"]
    for _ in range(2):
        snapshot(world, other, new)
    world.settle()
    assert len(world.book("F")) == 2, "what is absent is closed"


@pytest.mark.covers("X32")
@pytest.mark.parametrize("entry", [7, None, "text", {}, {"ticket": 7}, {"ticket": ""}], ids=str)
def test_while_an_entry_has_no_ticket_nothing_counts_as_absent(world: World, entry: Any) -> None:
    world.copy("M", "F")
    known, other = world.opened("M"), world.opened("M")
    world.settle()
    for _ in range(3):
        assert snapshot(world, entry, other | {"lots": "0.40"})["status"] == "accepted"
    assert held(world) == {known["ticket"], other["ticket"]}
    world.settle()
    assert sorted(lots for _, lots in world.book("F")) == ["0.40", "1.00"]


@pytest.mark.covers("X32")
def test_what_was_unreadable_for_long_is_not_copied_late(world: World) -> None:
    world.copy("M", "F", max_age_ms=3000)
    bad = world.position()
    snapshot(world, bad | {"side": "up"})
    world.db.execute("update private.unread_entries set unseen_at = now() - interval '10 s'")
    snapshot(world, bad)
    assert sent(world) == []
    assert world.reasons("F") == {"too_old": 1}
    assert world.one("select count(*) from private.unread_entries") == 0


def test_what_becomes_readable_in_time_is_copied_once(world: World) -> None:
    world.copy("M", "F")
    bad = world.position()
    snapshot(world, bad | {"side": "up"})
    snapshot(world, bad)
    snapshot(world, bad)
    assert [row["lots"] for row in sent(world)] == [1]


@pytest.mark.covers("X32")
def test_what_was_unreadable_in_the_first_snapshot_counts_as_existing(world: World) -> None:
    world.db.execute("update public.trading_accounts set snapshot_session = 0 where id = %s", (world.accounts["M"],))
    world.copy("M", "F")
    bad = world.position()
    snapshot(world, bad | {"side": "up"})
    snapshot(world, bad)
    assert sent(world) == []
    assert world.one("select existing from public.positions where ticket = %s", bad["ticket"]) is True


@pytest.mark.covers("X32")
@pytest.mark.parametrize("bad", [bad for bad in BAD if "lots" not in bad and "symbol" not in bad], ids=str)
def test_a_close_is_copied_whatever_stands_beside_it(world: World, bad: dict[str, Any]) -> None:
    world.copy("M", "F")
    known = world.opened("M")
    world.settle()
    bad = {key: value for key, value in bad.items() if key != "side"}
    event = world.event("closed", known | bad | {"lots": "0"}, deal_price="much", dealt_at="soon")
    assert world.send("M", event)["results"][0]["status"] == "accepted"
    world.settle()
    assert world.book("F") == []
    assert world.one("select price from public.positions where ticket = %s", known["ticket"]) == D("1.1")


def test_many_bad_entries_are_one_alert(world: World) -> None:
    entries = [world.position("1.00", side="up", ticket=f"t{n:03}") for n in range(300)]
    assert snapshot(world, *entries)["status"] == "accepted"
    assert snapshot(world, *entries)["status"] == "accepted"
    [alert] = world.rows("select times, message from public.alerts where reason = 'entry_unread'")
    assert alert["times"] == 1
    assert "300 entries" in alert["message"]
    assert "t000" in alert["message"]
