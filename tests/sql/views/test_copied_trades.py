"""`copied_trades`: what came of a trade for a copier, at what price, how late, how far from the master, in exact
figures."""

import json
import re
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld

from agent.stack.schema import project_root

LATENCIES = (
    "detect_ms", "request_ms", "lock_ms", "plan_ms", "deliver_ms", "lane_ms", "broker_ms", "ours_ms", "whole_ms",
)  # fmt: skip


def trades(world: NettingWorld, follower: str = "F") -> list[dict[str, Any]]:
    """Every row of a follower, in the order of the events."""
    return world.rows(
        "select * from public.copied_trades where follower_account_id = %s order by event_id, copier_id",
        world.accounts[follower],
    )


def dealt(
    world: NettingWorld, execution: dict[str, Any], price: str, lots: str | None = None, ticket: str | None = None
) -> str:
    """The broker fills an open or a close at this price; returns the ticket."""
    opens = execution["action"] in ("open", "increase")
    volume = Decimal(lots or str(execution["lots"]))
    ticket = ticket or execution["ticket"] or world.ticket()
    held = world.one(
        "select lots from public.positions where account_id = %s and ticket = %s", execution["account_id"], ticket
    ) or Decimal(0)
    state = world.position(
        str(held + volume if opens else held - volume),
        execution["side"],
        ticket,
        symbol=execution["symbol"],
        price=price,
    )
    world.report(execution, positions=[state], filled_lots=str(volume), price=price)
    return str(ticket)


def shown(row: dict[str, Any], *names: str) -> tuple[str | None, ...]:
    return tuple(
        None if row[n] is None else f"{row[n].normalize():f}" if isinstance(row[n], Decimal) else str(row[n])
        for n in names
    )


FIGURES = ("filled_lots", "fill_price", "slippage_points", "slippage_money", "currency")


@pytest.mark.parametrize(
    ("side", "reverse", "price", "points", "money"),
    [
        ("buy", False, "1.10012", "12", "6"),
        ("buy", False, "1.09995", "-5", "-2.5"),  # bought cheaper than the master: better
        ("sell", False, "1.09990", "10", "5"),
        ("sell", False, "1.10004", "-4", "-2"),
        # the master buys, the copy sells: lower is worse, but for the spread of 10 points
        ("buy", True, "1.09985", "5", "2.5"),
        ("buy", True, "1.09993", "-3", "-1.5"),
        ("sell", True, "1.10020", "10", "5"),
    ],
)
def test_slippage_is_positive_where_the_follower_is_worse_off(
    world: NettingWorld, side: str, reverse: bool, price: str, points: str, money: str
) -> None:
    world.copy("M", "F", sizing_value="0.5", reverse=reverse)
    world.opened("M", "1.00", side)  # at 1.10000
    dealt(world, world.open_executions("F")[0], price)
    (row,) = trades(world)
    assert (row["status"], row["reason"], row["orders"]) == ("copied", None, 1)
    assert shown(row, "master_symbol", "master_side", "master_lots", "master_price") == ("EURUSD", side, "1", "1.1")
    assert shown(row, *FIGURES) == ("0.5", price.rstrip("0"), points, money, "USD")


@pytest.mark.parametrize(("side", "price", "points"), [("buy", "1.10490", "10"), ("sell", "1.10530", "30")])
def test_a_close_is_compared_with_the_masters_closing_deal(
    world: NettingWorld, side: str, price: str, points: str
) -> None:
    world.copy("M", "F")
    p = world.opened("M", "0.10", side)
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("closed", p | {"lots": "0"}, deal_price="1.10500"))
    dealt(world, world.open_executions("F")[0], price)
    opened, closed = trades(world)
    assert shown(opened, "event", "slippage_points") == ("opened", "0")
    assert shown(closed, "event", "status", "master_price", "master_lots", "master_previous_lots") == (
        "closed", "copied", "1.105", "0", "0.1",
    )  # fmt: skip
    assert shown(closed, "filled_lots", "slippage_points", "slippage_money") == ("0.1", points, f"{int(points) / 10:g}")


def quote(world: NettingWorld, account: str, bid: str | None, ask: str | None) -> None:
    world.db.execute(
        "update public.account_symbols set bid = %s, ask = %s where account_id = %s",
        (bid, ask, world.accounts[account]),
    )


def test_the_spread_is_no_slippage_of_a_reverse_copy(world: NettingWorld) -> None:
    """Open and close: the copy deals at the other side of the same market, and loses nothing by it."""
    world.copy("M", "F", reverse=True)
    quote(world, "F", "1.09980", "1.10000")
    p = world.opened("M", "1.00")  # the master buys at the ask
    dealt(world, world.open_executions("F")[0], "1.09980")  # the copy sells at the bid
    quote(world, "F", "1.10500", "1.10535")
    world.send("M", world.event("closed", p | {"lots": "0"}, deal_price="1.10500"))  # the master sells at the bid
    dealt(world, world.open_executions("F")[0], "1.10535")  # the copy buys back at the ask
    quote(world, "F", "1.00000", "1.20000")  # what is stored does not change with the quotes
    opened, closed = trades(world)
    assert shown(opened, "side", "slippage_points", "slippage_money") == ("sell", "0", "0")
    assert shown(closed, "event", "slippage_points", "slippage_money") == ("closed", "0", "0")


def test_without_a_quote_the_slippage_of_a_reverse_copy_is_not_known(world: NettingWorld) -> None:
    world.copy("M", "F", reverse=True)
    world.opened("M", "1.00")
    quote(world, "F", None, None)
    dealt(world, world.open_executions("F")[0], "1.10000")
    assert shown(trades(world)[0], "status", "filled_lots", "slippage_points") == ("copied", "1", None)


@pytest.mark.parametrize(("follower", "factor"), [("F", "0.5"), ("N", "0.5"), ("F", "1"), ("N", "2")])
def test_a_close_shows_the_lots_that_were_closed(world: NettingWorld, follower: str, factor: str) -> None:
    """Neither the master's lots, nor the 0 that it holds afterwards."""
    world.copy("M", follower, sizing_value=factor)
    p = world.opened("M", "1.00")
    world.settle_both()
    world.send("M", world.event("reduced", p | {"lots": "0.40"}, deal_price="1.10000"))
    assert shown(trades(world, follower)[1], "status", "closed_lots") == (
        "in_flight", f"{Decimal(factor) * Decimal('0.6'):f}".rstrip("0"),
    )  # fmt: skip
    world.settle_both()
    world.send("M", world.event("closed", p | {"lots": "0"}, deal_price="1.10000"))
    world.settle_both()
    opened, reduced, closed = trades(world, follower)
    assert opened["closed_lots"] is None
    assert reduced["closed_lots"] == Decimal(factor) * Decimal("0.6")
    assert closed["closed_lots"] == Decimal(factor) * Decimal("0.4")


def test_a_close_that_was_filled_in_part_shows_that_part(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("closed", p | {"lots": "0"}, deal_price="1.10000"))
    (close,) = world.open_executions("F")
    world.report(close, "rejected", reason="trade_disabled")
    assert trades(world)[1]["closed_lots"] == 0
    world.come_due()
    dealt(world, world.open_executions("F")[0], "1.10000", lots="0.30")
    assert trades(world)[1]["closed_lots"] == 1  # 0.30 closed, 0.70 on the way
    dealt(world, world.open_executions("F")[0], "1.10000")
    assert trades(world)[1]["closed_lots"] == 1


def test_a_flip_shows_the_lots_that_it_closed(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("opened", p | {"side": "sell", "lots": "0.50", "price": "1.10200"}))
    world.settle()
    assert shown(trades(world)[1], "filled_lots", "closed_lots") == ("1.5", "1")


def listed() -> set[str]:
    """The codes of docs/errors.md under "Nothing to do"."""
    page = (project_root() / "docs" / "errors.md").read_text()
    section = page.partition("\n### Nothing to do")[2].split("\n#", 1)[0]
    return set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))


def test_the_codes_that_mean_nothing_to_do_are_those_of_the_documentation(world: NettingWorld) -> None:
    assert set(world.one("select private.nothing_to_do()")) == listed()


def test_a_reason_of_each_kind_has_the_status_of_its_kind(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_value="0.0001")
    world.opened("M", "0.50")
    for code in sorted(listed() | {"below_min", "account_off", "too_old"}):
        world.db.execute("update public.copy_outcomes set reason = %s where true", (code,))
        expected = "in_flight" if code == "symbols_loading" else "nothing_to_do" if code in listed() else "not_copied"
        (row,) = trades(world)
        assert row["status"] == expected, code
        assert len(row["reason_words"]) > 10, code
        assert "_" not in row["reason_words"], code


def test_an_order_that_nothing_was_left_to_do_for_was_not_refused(world: NettingWorld) -> None:
    """The master closes while the open waits for another attempt."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    (execution,) = world.open_executions("F")
    world.report(execution, "rejected", reason="market_closed", retryable=True, message="Market closed")
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    opened, closed = trades(world)
    assert shown(opened, "status", "reason", "orders") == ("nothing_to_do", "already_closed", "1")
    assert closed["status"] == "nothing_to_do"


def flattened(world: NettingWorld, state: str) -> dict[str, Any]:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    for _ in range(3):
        world.settle()
        world.send("F", world.event("snapshot", positions=[]))
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": state})
    return p


@pytest.mark.parametrize("state", ["off", "monitor", "on"])
@pytest.mark.parametrize("event", ["closed", "reduced", "modified"])
def test_what_the_master_does_to_a_copy_that_was_flattened_is_nothing_to_do(
    world: NettingWorld, state: str, event: str
) -> None:
    p = flattened(world, state)
    change = {"closed": {"lots": "0"}, "reduced": {"lots": "0.4"}, "modified": {"sl": "1.05"}}[event]
    world.send("M", world.event(event, p | change))
    row = trades(world)[1]
    assert (row["event"], row["status"]) == (event, "nothing_to_do"), row["reason"]


@pytest.mark.parametrize("event", ["closed", "reduced", "increased", "modified"])
@pytest.mark.parametrize("pause", ["account", "copier", "trading"])
def test_what_the_master_does_to_a_trade_that_was_never_copied_is_nothing_to_do(
    world: NettingWorld, pause: str, event: str
) -> None:
    copier = world.copy("M", "F", sizing_value="0.0001")
    p = world.opened("M", "0.50")
    match pause:
        case "account":
            world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
        case "copier":
            world.as_user("set_copier_mode", {"copier_id": copier, "mode": "off"})
        case _:
            world.db.execute("update public.trading_switch set state = 'off', reason = 'a test' where true")
    change = {"closed": {"lots": "0"}, "reduced": {"lots": "0.4"}, "increased": {"lots": "0.6"},
              "modified": {"sl": "1.05"}}[event]  # fmt: skip
    world.send("M", world.event(event, p | change))
    opened, later = trades(world)
    assert shown(opened, "status", "reason") == ("not_copied", "below_min")
    assert shown(later, "event", "status", "reason") == (event, "nothing_to_do", "not_copied")


def test_a_close_that_a_pause_withholds_from_a_copy_is_still_not_copied(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    world.settle()
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert shown(trades(world)[1], "status", "reason") == ("not_copied", "account_off")


def test_what_cannot_be_compared_is_null_and_not_zero(world: NettingWorld) -> None:
    """The master's agent did not tell at what price it closed; the fill is told all the same."""
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("reduced", p | {"lots": "0.40"}))
    dealt(world, world.open_executions("F")[0], "1.10100")
    world.send("M", world.event("modified", p | {"lots": "0.40", "sl": "1.09"}))
    world.settle()
    _, reduced, modified = trades(world)
    assert shown(reduced, "status", *FIGURES[:4]) == ("copied", "0.6", "1.101", None, None)
    assert shown(modified, "status", "master_price", "slippage_points") == ("copied", None, None)


def test_an_increase_is_compared_with_its_own_deal_not_with_the_average(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("increased", p | {"lots": "2.00", "price": "1.10500"}, deal_price="1.11000"))
    dealt(world, world.open_executions("F")[0], "1.11007")
    assert shown(trades(world)[1], "event", "master_price", "slippage_points", "slippage_money") == (
        "increased",
        "1.11",
        "7",
        "7",
    )


def test_a_split_copy_is_weighted_by_its_fills(world: NettingWorld) -> None:
    world.add_account("S", vps="b", lots_max="20", balance="1000000")
    world.copy("M", "S", max_policy="split", sanity_factor=None)
    world.opened("M", "55")
    for execution, price in zip(world.open_executions("S"), ("1.10010", "1.10020", "1.10030"), strict=True):
        assert trades(world, "S")[0]["status"] == "in_flight"
        dealt(world, execution, price)
    (row,) = trades(world, "S")
    assert (row["orders"], row["status"], row["warnings"]) == (3, "copied", ["split"])
    # (20 × 10 + 20 × 20 + 15 × 30) / 55 points, a dollar each and lot
    assert shown(row, "filled_lots", "slippage_points", "slippage_money") == ("55", "19.09", "1050")
    assert round(row["fill_price"], 7) == Decimal("1.1001909")


def test_a_partial_fill_says_so(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10010", lots="0.60")
    (row,) = trades(world)
    assert shown(row, "status", *FIGURES[:4]) == ("partly", "0.6", "1.1001", "10", "6")


def test_a_close_that_was_filled_in_two_parts_is_copied(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("reduced", p | {"lots": "0.40"}, deal_price="1.10000"))
    dealt(world, world.open_executions("F")[0], "1.10010", lots="0.20")
    assert shown(trades(world)[1], "status", "filled_lots") == ("in_flight", "0.2")
    dealt(world, world.open_executions("F")[0], "1.09980")
    # (0.20 × -10 + 0.40 × 20) / 0.60
    assert shown(trades(world)[1], "status", *FIGURES[:4]) == ("copied", "0.6", "1.0999", "10", "6")


def test_copies_that_shared_a_partial_fill_are_not_called_copied(world: NettingWorld) -> None:
    """Whose part was dealt is not known from the order alone."""
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "0.50")
    (first,) = world.open_executions("N")
    world.opened("M2", "0.30")
    world.opened("M", "0.20")
    world.deal(first)
    (both,) = world.open_executions("N")
    world.deal(both, Decimal("0.30"))
    assert [shown(row, "status", "filled_lots") for row in trades(world, "N")] == [
        ("copied", "0.5"), ("partly", None), ("partly", None),
    ]  # fmt: skip


def test_money_is_of_the_followers_account_and_by_the_rate_of_the_fill(world: NettingWorld) -> None:
    world.add_account("E", vps="b", currency="EUR")
    world.copy("M", "E")
    world.db.execute(
        "update public.account_symbols set bid = 1.25, ask = 1.25 where account_id = %s", (world.accounts["E"],)
    )
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("E")[0], "1.10010")
    assert shown(trades(world, "E")[0], "slippage_points", "slippage_money", "currency") == ("10", "8", "EUR")  # 10 USD
    # what is stored does not change with the quotes or the symbol
    world.db.execute(
        "update public.account_symbols set bid = 2, ask = 2, digits = 3, contract_size = 1 where account_id = %s",
        (world.accounts["E"],),
    )
    assert shown(trades(world, "E")[0], "slippage_points", "slippage_money") == ("10", "8")
    world.send("M", world.event("closed", p | {"lots": "0"}))


def test_without_a_rate_the_points_are_told_and_the_money_is_not(world: NettingWorld) -> None:
    world.add_symbol("M", "USDJPY", digits=3, tick_size="0.001", profit_currency="JPY")
    world.add_symbol("F", "USDJPY", digits=3, tick_size="0.001", profit_currency="JPY")
    quote = "update public.account_symbols set bid = %s, ask = %s where name = 'USDJPY'"
    world.copy("M", "F", sanity_factor=None)
    world.db.execute(quote, (150, 150))
    world.opened("M", "0.30", symbol="USDJPY", price="150.000")
    dealt(world, world.open_executions("F")[0], "150.050")
    world.db.execute(quote, (None, None))
    world.opened("M", "0.30", symbol="USDJPY", price="150.000")
    dealt(world, world.open_executions("F")[0], "150.050")
    rated, unrated = trades(world)
    assert shown(rated, "slippage_points", "slippage_money") == ("50", "10")  # 50 × 100 yen × 0.30 lots = 1,500 yen
    assert shown(unrated, "slippage_points", "slippage_money") == ("50", None)


def test_a_refusal_by_a_rule_says_why_with_the_steps(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_value="0.4")
    world.opened("M", "0.01")
    (row,) = trades(world)
    assert (row["status"], row["reason"], row["orders"], row["fill_price"]) == ("not_copied", "below_min", None, None)
    assert "0.004" in row["detail"]
    assert [row[name] for name in LATENCIES] == [None] * 9


def test_a_refusal_by_the_broker_says_why_in_its_words(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    (execution,) = world.open_executions("F")
    world.report(execution, "rejected", reason="market_closed", retryable=True, message="Market closed")
    assert shown(trades(world)[0], "status", "reason", "message") == ("in_flight", "market_closed", "Market closed")
    world.db.execute("update public.trade_execution_queue set next_attempt_at = now() - interval '1 s'")
    world.db.execute("select private.maintain_executions()")
    (again,) = world.open_executions("F")
    world.report(again, "rejected", reason="no_money", message="not enough money")
    row = trades(world)[0]
    assert shown(row, "status", "reason", "message") == ("not_copied", "no_money", "not enough money")
    assert row["attempts"] == 2


def test_a_close_that_was_refused_and_done_anew_is_copied(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("closed", p | {"lots": "0"}, deal_price="1.10000"))
    world.report(world.open_executions("F")[0], "rejected", reason="trade_disabled")
    assert shown(trades(world)[1], "status", "reason") == ("not_copied", "trade_disabled")
    world.come_due()
    assert shown(trades(world)[1], "status", "reason") == ("in_flight", "trade_disabled")
    dealt(world, world.open_executions("F")[0], "1.09998")
    row = trades(world)[1]
    assert shown(row, "status", "reason", "filled_lots", "slippage_points") == ("copied", None, "1", "2")


def test_a_flip_is_one_row_with_both_orders(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10000")
    world.send("M", world.event("opened", p | {"side": "sell", "lots": "0.50", "price": "1.10200"}))
    close, opened = world.open_executions("F")
    dealt(world, close, "1.10190")
    dealt(world, opened, "1.10170")
    row = trades(world)[1]
    assert (row["orders"], row["status"]) == (2, "copied")
    # (1.00 × 10 + 0.50 × 30) / 1.50
    assert shown(row, "filled_lots", "slippage_points", "slippage_money") == ("1.5", "16.67", "25")


@pytest.mark.parametrize("follower", ["F", "N"])
def test_a_flip_whose_other_side_was_refused_says_why(world: NettingWorld, follower: str) -> None:
    world.copy("M", follower)
    p = world.opened("M", "1.00")
    world.settle_both()
    world.as_user("pause_account", {"account_id": world.accounts[follower], "state": "monitor"})
    world.send("M", world.event("opened", p | {"side": "sell", "lots": "0.50"}))
    world.settle_both()
    assert world.book(follower) == []
    assert shown(trades(world, follower)[1], "status", "reason", "orders", "filled_lots") == (
        "partly",
        "account_monitor",
        "1",
        "1",
    )


def test_a_later_close_for_another_cause_is_not_booked_to_the_open(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10003")
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    dealt(world, world.open_executions("F")[0], "1.05000")
    (row,) = trades(world)
    assert shown(row, "status", "orders", "filled_lots", "slippage_points") == ("copied", "1", "1", "3")


def test_each_copier_sees_its_own_part_of_a_netting_deal(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.copy("M2", "N")
    world.send("M", world.event("opened", world.position("1.00")))
    (first,) = world.open_executions("N")
    world.send("M2", world.event("opened", world.position("0.40", "sell", price="1.10010")))
    other = world.position("0.50", price="1.09990")
    world.send("M", world.event("opened", other))
    world.net = Decimal("1.00")
    world.report(first, positions=world.state(), filled_lots="1.00", price="1.10005")
    (both,) = world.open_executions("N")  # + 0.50 of M, − 0.40 of M2: one deal of 0.10
    assert (len(both["parts"]), f"{both['lots']:.2f}") == (2, "0.10")
    world.net = Decimal("1.10")
    world.report(both, positions=world.state(), filled_lots="0.10", price="1.10000")
    alone, sold, bought = trades(world, "N")
    assert shown(alone, "side", "filled_lots", "slippage_points") == ("buy", "1", "5")
    assert shown(sold, "side", "filled_lots", "slippage_points", "slippage_money") == ("sell", "0.4", "10", "4")
    assert shown(bought, "side", "filled_lots", "slippage_points", "slippage_money") == ("buy", "0.5", "10", "5")


def test_a_copy_of_a_copy_is_compared_with_the_first_copy(world: NettingWorld) -> None:
    world.add_account("G", vps="c")
    world.copy("M", "F")
    world.copy("F", "G")
    world.opened("M", "1.00")
    dealt(world, world.open_executions("F")[0], "1.10010")
    dealt(world, world.open_executions("G")[0], "1.10012")
    assert shown(trades(world, "F")[0], "slippage_points") == ("10",)
    assert shown(trades(world, "G")[0], "master_price", "slippage_points") == ("1.1001", "2")


def test_the_latency_is_that_of_the_slowest_order_with_its_own_stages(world: NettingWorld) -> None:
    world.add_account("S", vps="b", lots_max="20", balance="1000000")
    world.copy("M", "S", max_policy="split", sanity_factor=None)
    world.opened("M", "55")
    for execution in world.open_executions("S"):
        dealt(world, execution, "1.10010")
    at = "date_trunc('second', now()) + interval '%s ms'"
    for execution, sent in zip(world.executions("S"), (31, 45, 38), strict=True):
        moments = {"detected_at": 20, "planned_at": 26, "received_at": 30, "sent_at": sent, "done_at": 75}
        world.db.execute(
            f"update public.trade_execution_queue set {', '.join(f'{k} = {at % v}' for k, v in moments.items())}"
            " where id = %s",
            (execution["id"],),
        )
    world.db.execute(
        f"update public.trade_events set dealt_at = {at % 5}, detected_at = {at % 20}, requested_at = {at % 22},"
        f" locked_at = {at % 23}"
    )
    assert shown(trades(world, "S")[0], *LATENCIES) == ("15", "2", "1", "3", "4", "15", "30", "25", "70")


@pytest.mark.parametrize(
    ("field", "value"), [("deal_price", "NaN"), ("deal_price", "-1e13"), ("deal_price", []), ("dealt_at", "soon")]
)
def test_a_senseless_deal_is_refused_by_its_name(world: NettingWorld, field: str, value: Any) -> None:
    answer = world.send("M", world.event("opened", world.position(), **{field: value}))
    assert (answer["results"][0]["status"], answer["results"][0]["code"]) == ("refused", "TC401")
    assert answer["results"][0]["error"].startswith(field)


# one of ten is the user's
HISTORY = """
create temporary table made as
select n, c.id as copier, c.follower_account_id as follower, c.master_account_id as master,
  case when n %% 10 = 0 then c.user_id else %(other)s end as owner
from public.copiers c, generate_series(100001, 150000) n;
insert into public.trade_events (id, account_id, user_id, type, status, ticket, symbol, side, lots, deal_price)
overriding system value
select n, master, owner, 'opened', 'accepted', n::text, 'EURUSD', 'buy', 1, 1.1 from made;
insert into public.trade_execution_queue (id, step_id, lane, copier_id, user_id, account_id, event_id, action,
priority, symbol,
  side, lots, status, send_before, queued_at, updated_at, finalized_at, filled_lots, fill_price, point_size,
  point_money)
overriding system value
select n, n, n::text, copier, owner, follower, n, 'open', 40, 'EURUSD', 'buy', 1, 'completed', now(), now(), now(),
now(), 1,
  1.1 + n %% 1000 * 0.00001, 0.00001, 1 from made;
insert into public.copy_outcomes (event_id, copier_id, user_id, execution_id, decided_at)
select n, copier, owner, n, now() - interval '20 hours' + n %% 100000 * interval '1 s' from made;
analyze;
"""


@pytest.mark.own_database
@pytest.mark.parametrize("who", ["user", "operator"])
def test_the_newest_trades_are_found_by_index_among_fifty_thousand(world: NettingWorld, who: str) -> None:
    world.copy("M", "F")
    operator = str(
        world.one("insert into auth.users (id, email) values (gen_random_uuid(), 'ops@example.test') returning id")
    )
    world.db.execute("insert into public.operators (user_id) values (%s)", (operator,))
    with psycopg.ClientCursor(world.db) as cursor:
        cursor.execute(HISTORY, {"other": operator})
    asking, condition = (world.user, f"where user_id = '{world.user}'") if who == "user" else (operator, "")
    query = f"select * from public.copied_trades {condition} order by decided_at desc limit 100"
    with world.db.transaction():
        world.db.execute(
            "select set_config('request.jwt.claims', %s, true)", (json.dumps({"sub": asking, "role": "authenticated"}),)
        )
        world.db.execute("set local role authenticated")
        rows = world.rows(query)
        plan = [r["QUERY PLAN"] for r in world.rows(f"explain (analyze, costs off, timing off) {query}")]
    step = 10 if who == "user" else 1
    assert [r["event_id"] for r in rows] == list(range(150000, 150000 - 100 * step, -step))
    assert shown(rows[1], "status", "filled_lots", "slippage_points") == ("copied", "1", str(1000 - step))
    index = "copy_outcomes_of_user" if who == "user" else "copy_outcomes_decided"
    assert [line for line in plan if f"using {index} on copy_outcomes" in line], plan
    # nothing that grows is read whole: no step yields, or throws away, more rows than were asked for
    counts = [
        int(found) for line in plan for found in re.findall(r"(?:actual rows=|Removed by \w+(?: \w+)?: )(\d+)", line)
    ]
    assert max(counts) <= 100, "\n".join(plan)
