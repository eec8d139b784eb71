"""Opens whose stops could cross a limit of the account, and how much room is left (R32)."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make

#: EURUSD is quoted at 1.1 / 1.1001: a lot bought at the master's 1.10000 loses 10 per pip of 0.0001
STOP_200 = "1.08000"  # 2,000 a lot


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    for w in make(connection):
        w.looks_count_until(1_000_000_000)
        w.copy("M", "F")
        fresh(w)
        yield w


def fresh(world: ProtectionWorld, equity: str = "100000") -> None:
    """F's figures are of now, which decisions need."""
    world.db.execute(
        "update public.trading_accounts set funds_at = now(), equity = %s, balance = 100000,"
        " initial_balance = 100000 where name = 'F'",
        (equity,),
    )


def room(world: ProtectionWorld) -> dict[str, Any]:
    return dict(world.as_user("protection_room", {"account_id": world.accounts["F"]}))


def sent(world: ProtectionWorld) -> list[str]:
    return [str(e["lots"]) for e in world.executions("F") if e["action"] != "close"]


@pytest.mark.covers("R32")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("daily_loss", {"threshold": "5"}),
        ("daily_loss", {"threshold": "5", "of": "initial", "basis": "balance"}),
        ("trailing_drawdown", {"threshold": "5"}),
        ("equity_floor", {"threshold": "95000"}),
        ("equity_floor", {"threshold": "93750", "cushion_percent": "20"}),
    ],
)
def test_an_open_whose_stop_would_cross_a_limit_is_refused(
    world: ProtectionWorld, kind: str, settings: dict[str, Any]
) -> None:
    world.rule(kind, **settings)
    world.opened("M", "2.49", sl=STOP_200)
    assert sent(world) == ["2.49"], "it can lose 4,980 of 5,000"
    world.opened("M", "0.01", sl=STOP_200)
    assert world.reasons("F") == {"would_breach": 1}, "what is on its way counts, and reaching the limit crosses it"


@pytest.mark.covers("R32")
def test_the_refusal_says_the_figures(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    world.opened("M", "3.00", sl=STOP_200)
    detail = world.one("select detail from public.copy_outcomes where reason = 'would_breach'")
    assert "Daily loss: the limit is 95000 and the equity 100000." in detail
    assert "3 lots with the stop 1.08 can lose 6000.00 more" in detail
    assert world.executions("F") == []


@pytest.mark.covers("R32")
def test_open_stops_count_from_the_present_price(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    world.opened("M", "2.00", sl=STOP_200)
    world.settle()
    world.send("F", world.event("opened", world.position("0.20", sl="1.05000")))
    assert room(world)["bound"] == "5000"
    world.opened("M", "0.01", sl="1.09990")
    assert world.reasons("F") == {"would_breach": 1}
    world.db.execute("update public.account_symbols set bid = 1.2, ask = 1.2001")
    assert room(world)["bound"] == "27000"


def test_a_stop_in_profit_binds_nothing_and_one_that_is_missing_is_not_judged(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    world.send("F", world.event("opened", world.position("1.00", sl="1.15000", side="buy")))
    world.send("F", world.event("opened", world.position("9.00")))
    answer = room(world)
    assert (answer["bound"], answer["without_stop"], answer["unknown_stops"]) == ("0", 1, 0)
    world.opened("M", "5.00")
    assert sent(world) == ["5.00"]


@pytest.mark.covers("R32")
def test_shrink_opens_what_fits(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5", would_breach="shrink")
    world.opened("M", "3.00", sl=STOP_200)
    assert sent(world) == ["2.49"]
    assert "breach_shrunk" in world.one("select warnings from public.position_links")
    world.opened("M", "1.00", sl=STOP_200)
    assert world.reasons("F") == {"would_breach": 1}, "not even the smallest volume fits"
    world.as_user("save_protection_rule", {"id": rule, "would_breach": "ignore"})
    world.opened("M", "1.00", sl=STOP_200)
    assert sent(world) == ["2.49", "1.00"]


@pytest.mark.covers("R32")
def test_rules_that_only_notify_and_rules_without_stops_refuse_nothing(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5", action="notify")
    world.rule("daily_profit", "5")
    world.rule("max_margin_use", "50")
    world.opened("M", "9.00", sl=STOP_200)
    assert sent(world) == ["9.00"]
    assert world.one("select guarded from public.trading_accounts where name = 'F'") is False


def test_an_account_is_judged_as_long_as_it_has_such_a_rule(world: ProtectionWorld) -> None:
    guarded = "select guarded from public.trading_accounts where name = 'F'"
    rule = world.rule("daily_loss", "5")
    assert world.one(guarded) is True
    world.as_user("save_protection_rule", {"id": rule, "enabled": False})
    assert world.one(guarded) is False
    world.as_user("save_protection_rule", {"id": rule, "enabled": True})
    assert world.one(guarded) is True
    world.as_user("remove_protection_rule", {"rule_id": rule})
    assert world.one(guarded) is False


@pytest.mark.covers("R32")
def test_two_opens_of_one_call_count_against_each_other(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    world.send("M", *(world.event("opened", world.position("2.00", sl=STOP_200)) for _ in range(2)))
    assert (sent(world), world.reasons("F")) == (["2.00"], {"would_breach": 1})


@pytest.mark.covers("R32")
def test_an_increase_and_a_pending_order_are_held_to_the_limit_too(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    p = world.opened("M", "2.00", sl=STOP_200)
    world.settle()
    world.send("M", world.event("increased", p | {"lots": "3.00"}))
    order = {"kind": "order", "order_type": "limit", "price": "1.09000", "sl": "1.07000"}
    world.send("M", world.event("opened", world.position("0.60") | order))
    assert (sent(world), world.reasons("F")) == (["2.00"], {"would_breach": 2})


@pytest.mark.covers("R32")
def test_a_netting_follower_is_held_to_the_limit_too(world: ProtectionWorld) -> None:
    world.add_account("N", vps="b", mode="netting", balance="100000")
    world.copy("M", "N")
    world.db.execute("update public.trading_accounts set initial_balance = 100000, equity = 100000 where name = 'N'")
    world.rule("equity_floor", "95000", account="N")
    world.opened("M", "2.00", sl=STOP_200)
    world.opened("M", "1.00", sl=STOP_200)
    assert world.reasons("N") == {"would_breach": 1}


@pytest.mark.covers("R32")
def test_a_loss_in_another_currency_is_converted_and_without_a_rate_nothing_is_opened(world: ProtectionWorld) -> None:
    world.db.execute("update public.trading_accounts set currency = 'EUR' where name = 'F'")
    world.rule("equity_floor", "95000")
    world.opened("M", "2.74", sl=STOP_200)  # 5,480 USD at 1.10005 are 4,981.59 EUR
    assert sent(world) == ["2.74"]
    assert room(world)["bound"] == "4981.59"
    world.opened("M", "0.02", sl=STOP_200)
    world.db.execute("update public.account_symbols set quoted_at = now() - interval '1 day'")
    world.opened("M", "0.01", sl=STOP_200)
    assert world.reasons("F") == {"would_breach": 1, "stale_funds": 1}
    assert room(world)["unknown_stops"] == 1


def test_old_figures_refuse_what_they_show_and_allow_nothing(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    world.db.execute("update public.trading_accounts set funds_at = now() - interval '2 min' where name = 'F'")
    world.opened("M", "3.00", sl=STOP_200)
    world.opened("M", "0.10", sl=STOP_200)
    world.opened("M", "0.10")
    assert world.reasons("F") == {"would_breach": 1, "stale_funds": 1}
    assert sent(world) == ["0.10"]


@pytest.mark.covers("R32")
def test_the_room_of_each_rule(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5", cushion_percent="10", time_zone="America/New_York", day_begins="17:00")
    world.rule("equity_target", "110000")
    world.rule("max_margin_use", "50")
    world.opened("M", "1.00", sl=STOP_200)
    world.settle()
    fresh(world, "99000")
    world.db.execute("update public.trading_accounts set margin = 9900 where name = 'F'")
    answer = room(world)
    loss, target, margin = answer["rules"]
    assert (answer["currency"], answer["bound"]) == ("USD", "2000")
    assert [loss[k] for k in ("limit", "whole_limit", "now", "bound", "left")] == [
        "95500", "95000", "99000", "2000", "1500",
    ]  # fmt: skip
    assert [target[k] for k in ("limit", "now", "bound", "left", "day_ends_at")] == [
        "110000", "99000", None, "11000", None,
    ]  # fmt: skip
    assert [margin[k] for k in ("limit", "now", "left")] == ["50", "10", "40"]
    ends = "select (%s::timestamptz at time zone 'America/New_York')::time = '17:00' and %s::timestamptz > now()"
    assert world.one(ends, loss["day_ends_at"], loss["day_ends_at"])


@pytest.mark.covers("R32")
@pytest.mark.parametrize(
    ("zone", "begins", "within", "ends"),
    [
        ("America/New_York", "17:00", "2026-03-07T23:00:00+00:00", "2026-03-08T21:00:00+00:00"),
        ("America/New_York", "17:00", "2026-10-31T22:00:00+00:00", "2026-11-01T22:00:00+00:00"),
        ("Europe/Prague", "00:00", "2026-03-29T12:00:00+00:00", "2026-03-29T22:00:00+00:00"),
        ("Europe/Prague", "02:30", "2026-03-28T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),
        ("Europe/Prague", "02:30", "2026-10-24T12:00:00+00:00", "2026-10-25T00:30:00+00:00"),
        ("Europe/Prague", "02:30", "2026-10-25T01:10:00+00:00", "2026-10-26T01:30:00+00:00"),
    ],
)
def test_a_day_ends_where_the_next_begins_also_when_the_clocks_change(
    world: ProtectionWorld, zone: str, begins: str, within: str, ends: str
) -> None:
    rule = world.rule("daily_loss", "5", time_zone=zone, day_begins=begins)
    world.db.execute("update public.protection_rules set day = null where true")
    if within == "2026-10-25T01:10:00+00:00":  # 02:10 for the second time: the day has begun 40 minutes ago
        world.db.execute("update public.protection_rules set day = '2026-10-25' where true")
    same = (
        "select private.rule_day_ends(r, %s::timestamptz) = %s::timestamptz from public.protection_rules r"
        " where r.id = %s"
    )
    assert world.one(same, within, ends, rule)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"kind": "daily_loss", "would_breach": "warn"}, "would_breach must be refuse, shrink or ignore"),
        ({"kind": "daily_profit", "would_breach": "shrink"}, "would_breach shrink does not go with kind daily_profit"),
    ],
)
def test_a_wrong_would_breach_is_refused(world: ProtectionWorld, rule: dict[str, Any], says: str) -> None:
    with pytest.raises(psycopg.Error, match=says):
        world.rule(threshold="5", **rule)


@pytest.mark.covers("R32")
def test_a_stop_below_zero_is_a_stop(world: ProtectionWorld) -> None:
    for name in "MF":
        world.add_symbol(name, "USOIL", contract_size="100", tick_size="0.01", digits=2, margin_currency="USD")
    world.db.execute(
        "update public.account_symbols set bid = -37.02, ask = -37, allow_negative = true where name = 'USOIL'"
    )
    world.rule("daily_loss", "5")
    world.opened("M", "5.00", symbol="USOIL", price="-37.00", sl="-47.00")  # 998 a lot from the present price
    world.settle()
    answer = room(world)
    assert (answer["bound"], answer["without_stop"]) == ("4990", 0)
    world.opened("M", "0.02", symbol="USOIL", price="-37.00", sl="-47.00")
    assert world.reasons("F") == {"would_breach": 1}


@pytest.mark.covers("R32")
def test_a_stop_that_is_set_after_the_fill_counts_from_the_fill(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    world.opened("M", "2.00", sl=STOP_200)
    [opened] = world.open_executions("F")
    filled = world.position("2.00", tag=str(opened["id"]))
    world.report(opened, positions=[filled], filled_lots="2.00", price="1.10000")
    assert [e["action"] for e in world.open_executions("F")] == ["modify"]
    answer = room(world)
    assert (answer["bound"], answer["without_stop"]) == ("4000", 0)
    world.opened("M", "1.00", sl=STOP_200)
    assert world.reasons("F") == {"would_breach": 1}


@pytest.mark.covers("R32")
def test_a_stop_that_is_being_widened_counts_as_wide(world: ProtectionWorld) -> None:
    world.rule("daily_loss", "5")
    p = world.opened("M", "2.00", sl="1.09900")
    world.settle()
    world.send("M", world.event("modified", p | {"sl": STOP_200}))
    world.opened("M", "1.00", sl=STOP_200)
    assert world.reasons("F") == {"would_breach": 1}


@pytest.mark.covers("R32")
@pytest.mark.parametrize(("ask", "acts"), [("1.2001", ["place"]), ("1.1091", ["place", "cancel", "open"])])
@pytest.mark.parametrize("policy", ["refuse", "shrink"])
def test_the_market_is_not_taken_for_an_order_if_its_stop_is_then_too_far(
    world: ProtectionWorld, ask: str, acts: list[str], policy: str
) -> None:
    """The order's own stop does not count beside the position that replaces it."""
    world.db.execute("update public.copiers set pending_grace_ms = 0")
    world.rule("daily_loss", "5", would_breach=policy)
    o = world.position("2.00", kind="order", order_type="stop", price="1.10500", sl="1.08500")
    world.send("M", world.event("ordered", o))
    world.settle()
    world.db.execute("update public.account_symbols set bid = %s::numeric - 0.0001, ask = %s", (ask, ask))
    world.send("M", world.event("opened", world.position("2.00", price="1.10500", sl="1.08500", replaces=o["ticket"])))
    world.settle()
    assert [e["action"] for e in world.executions("F")] == acts
    assert world.alerts() == ({"order_not_filled": 1} if acts == ["place"] else {})


@pytest.mark.covers("R32")
def test_a_rule_that_only_notifies_goes_on_judging_after_it_has_triggered(world: ProtectionWorld) -> None:
    world.rule("equity_floor", threshold="95000", action="notify", would_breach="refuse")
    world.db.execute("update public.protection_rules set triggered_at = now()")
    fresh(world, "94000")
    world.opened("M", "0.01", sl=STOP_200)
    assert sent(world) == []
    assert world.reasons("F") == {"would_breach": 1}
