"""A copy whose symbol or quote is not told yet waits for it, is decided once, and never later than max_age_ms."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld

SPEC = {
    "contract_size": "100000", "tick_size": "0.00001", "digits": 5, "profit_currency": "USD", "margin_currency": "EUR",
    "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01",
}  # fmt: skip


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[NettingWorld]:
    """F's broker is still telling its list; M knows ZZTOP."""
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.add_account("N", vps="b", mode="netting")
    w.add_symbol("M", "ZZTOP")
    for name in ("F", "N"):
        w.db.execute("delete from public.account_symbols where account_id = %s", (w.accounts[name],))
        tell(w, name, complete=False)
    yield w
    assert w.unexplained() == 0


def tell(world: NettingWorld, account: str, *symbols: dict[str, Any] | str, complete: bool | None = None) -> None:
    """The account's agent tells symbols: names with the usual specification, or whole entries."""
    entries = [{"name": s} | SPEC if isinstance(s, str) else s for s in symbols]
    report = {"account_id": world.accounts[account], "epoch": 1, "symbols": entries, "symbols_complete": complete}
    world.as_agent(account, "report_account_state", report)


def quote(name: str, bid: str) -> dict[str, Any]:
    return {"name": name, "bid": bid, "ask": bid, "quoted_at": "2999-01-01T00:00:00Z"}


def quoted(world: NettingWorld, account: str, name: str, bid: str) -> None:
    """The account's agent tells a quote of now."""
    now = world.one("select clock_timestamp()::text as now")
    tell(world, account, quote(name, bid) | {"quoted_at": now})


def without_quotes(world: NettingWorld, *names: str) -> None:
    world.db.execute("update public.account_symbols set quoted_at = null where name = any(%s)", (list(names),))


def time_over(world: NettingWorld) -> None:
    """max_age_ms goes by; the clock ends what waits."""
    world.db.execute(
        "update private.symbol_waits set news_at = news_at - interval '10 s', ends_at = ends_at - interval '10 s'"
    )
    world.db.execute("select private.maintain_executions()")


def outcomes(world: NettingWorld) -> list[tuple[str, str | None]]:
    """Reason (copy: "copied") of every pair with the type of its event, oldest first."""
    found = world.rows(
        "select e.type, case when o.execution_id is null then o.reason else 'copied' end as reason"
        " from public.copy_outcomes o join public.trade_events e on e.id = o.event_id order by e.id, o.copier_id"
    )
    return [(row["type"], row["reason"]) for row in found]


def opens(world: NettingWorld, account: str = "F") -> list[tuple[str, str]]:
    return [(e["symbol"], str(e["lots"].normalize())) for e in world.executions(account)]


def waiting(world: NettingWorld) -> int:
    return int(world.one("select count(*) from private.symbol_waits"))


@pytest.mark.covers("X25")
def test_the_symbol_in_question_is_asked_for_and_copied_as_soon_as_it_is_told(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.db.execute("delete from realtime.messages where true")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert outcomes(world) == [("opened", "symbols_loading")]
    assert world.one("select status from public.copied_trades") == "in_flight"
    assert "ZZTOP" in world.one("select private.watched_symbols(%s)", world.accounts["F"])
    rung = world.rows("select topic from realtime.messages where event = 'assignments' order by topic")
    assert {r["topic"] for r in rung} == {f"vps:{world.vps['a']}", f"vps:{world.vps['b']}"}
    assert world.rows("select 1 from public.alerts") == []
    tell(world, "F", "ABBA")
    assert outcomes(world) == [("opened", "symbols_loading")]
    tell(world, "F", "ZZTOP")
    assert outcomes(world) == [("opened", "copied")]
    assert opens(world) == [("ZZTOP", "0.1")]
    assert waiting(world) == 0
    sent = world.rows("select payload from realtime.messages where event = 'executions'")
    assert len(sent) == 1
    tell(world, "F", "ABBA", complete=True)
    time_over(world)
    assert opens(world) == [("ZZTOP", "0.1")]


@pytest.mark.covers("X25")
@pytest.mark.parametrize(("names", "reason"), [(["ZZTOP.pro"], None), (["ABBA"], "symbol_unmapped")])
def test_the_whole_list_decides(world: NettingWorld, names: list[str], reason: str | None) -> None:
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    tell(world, "F", *names)
    assert outcomes(world) == [("opened", "symbols_loading")]
    tell(world, "F", complete=True)
    if reason is None:  # a name with an unknown ending
        for name in names:
            quoted(world, "F", name, "1.1")
    assert outcomes(world) == [("opened", reason or "copied")]
    assert len(world.executions("F")) == (reason is None)
    assert world.one("select count(*) from public.alerts where reason = 'symbol_unmapped'") == (reason is not None)
    assert waiting(world) == 0


@pytest.mark.covers("X25")
def test_a_wait_ends_when_the_trade_is_too_old(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    world.db.execute("select private.maintain_executions()")
    assert outcomes(world) == [("opened", "symbols_loading")]
    time_over(world)
    assert outcomes(world) == [("opened", "symbol_unmapped")]
    assert world.one("select count(*) from public.alerts where reason = 'symbol_unmapped'") == 1
    tell(world, "F", "ZZTOP", complete=True)
    world.db.execute("select private.maintain_executions()")
    assert outcomes(world) == [("opened", "symbol_unmapped")]
    assert opens(world) == []


@pytest.mark.covers("X25")
def test_what_is_told_after_the_time_is_not_traded(world: NettingWorld) -> None:
    """The report comes between the end of the wait and the clock that ends it."""
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    world.db.execute(
        "update private.symbol_waits set news_at = news_at - interval '10 s', ends_at = ends_at - interval '10 s'"
    )
    tell(world, "F", "ZZTOP")
    assert outcomes(world) == [("opened", "symbol_unmapped")]
    assert "too late" in world.one("select detail from public.copy_outcomes")
    assert opens(world) == []


@pytest.mark.covers("X25")
def test_the_masters_close_ends_the_wait(world: NettingWorld) -> None:
    world.copy("M", "F")
    position = world.opened("M", "0.10", symbol="ZZTOP")
    world.send("M", world.event("closed", position | {"lots": "0"}))
    assert outcomes(world) == [("opened", "already_closed"), ("closed", "not_copied")]
    assert waiting(world) == 0
    tell(world, "F", "ZZTOP", complete=True)
    time_over(world)
    assert opens(world) == []


@pytest.mark.covers("X25")
def test_changes_meanwhile_are_part_of_the_one_decision(world: NettingWorld) -> None:
    world.copy("M", "F")
    position = world.opened("M", "0.10", symbol="ZZTOP")
    world.send("M", world.event("modified", position | {"sl": "1.05"}))
    world.send("M", world.event("increased", position | {"sl": "1.05", "lots": "0.30"}))
    assert outcomes(world) == [("opened", "symbols_loading"), ("modified", "coalesced"), ("increased", "coalesced")]
    tell(world, "F", "ZZTOP")
    assert outcomes(world) == [("opened", "copied"), ("modified", "coalesced"), ("increased", "coalesced")]
    assert [(e["action"], str(e["lots"].normalize()), str(e["sl"].normalize())) for e in world.executions("F")] == [
        ("open", "0.3", "1.05")
    ]


@pytest.mark.covers("X25")
def test_an_increase_does_not_lengthen_the_wait(world: NettingWorld) -> None:
    world.copy("M", "F")
    position = world.opened("M", "0.10", symbol="ZZTOP")
    before = world.one("select ends_at from private.symbol_waits")
    world.send("M", world.event("increased", position | {"lots": "0.30"}))
    assert world.one("select ends_at from private.symbol_waits") == before


@pytest.mark.covers("X25")
def test_an_increase_waits_too_and_its_copy_goes_on_meanwhile(world: NettingWorld) -> None:
    tell(world, "F", "ZZTOP")
    world.copy("M", "F")
    position = world.opened("M", "0.10", symbol="ZZTOP")
    (execution,) = world.open_executions("F")
    filled = world.position("0.10", ticket="9001", symbol="ZZTOP", tag=str(execution["id"]))
    world.report(execution, positions=[filled], filled_lots="0.10", price="1.1")
    world.db.execute("delete from public.account_symbols where account_id = %s", (world.accounts["F"],))
    world.send("M", world.event("increased", position | {"lots": "0.30"}))
    assert outcomes(world)[-1] == ("increased", "symbols_loading")
    tell(world, "F", "ZZTOP")
    assert outcomes(world)[-1] == ("increased", "copied")
    assert [(e["action"], str(e["lots"].normalize())) for e in world.open_executions("F")] == [("increase", "0.2")]
    assert waiting(world) == 0


@pytest.mark.covers("X25")
def test_a_pending_order_waits_too(world: NettingWorld) -> None:
    world.copy("M", "F", copy_pending=True)
    order = world.position("0.10", symbol="ZZTOP") | {"kind": "order", "order_type": "limit", "price": "1.05"}
    world.send("M", world.event("ordered", order))
    assert outcomes(world) == [("ordered", "symbols_loading")]
    tell(world, "F", "ZZTOP")
    assert outcomes(world) == [("ordered", "copied")]
    assert [e["action"] for e in world.executions("F")] == ["place"]


@pytest.mark.covers("X25")
def test_a_cancelled_order_ends_the_wait_and_a_filled_one_goes_on_as_its_position(world: NettingWorld) -> None:
    world.copy("M", "F", copy_pending=True)
    orders = [
        world.position("0.10", symbol="ZZTOP") | {"kind": "order", "order_type": "limit", "price": "1.05"}
        for _ in range(2)
    ]
    for order in orders:
        world.send("M", world.event("ordered", order))
    world.send("M", world.event("cancelled", orders[0] | {"lots": "0"}))
    filled = world.position("0.10", symbol="ZZTOP", replaces=orders[1]["ticket"])
    world.send("M", world.event("opened", filled))
    assert [reason for _, reason in outcomes(world)][:2] == ["already_closed", "copied_at_fill"]
    tell(world, "F", "ZZTOP")
    assert [e["action"] for e in world.executions("F")] == ["open"]
    assert waiting(world) == 0


@pytest.mark.covers("X25")
def test_the_masters_own_list_is_waited_for(world: NettingWorld) -> None:
    tell(world, "F", "ABBA", complete=True)
    tell(world, "F", "NEWCO")
    tell(world, "M", complete=False)
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="NEWCO")
    assert outcomes(world) == [("opened", "symbols_loading")]
    assert "NEWCO" in world.one("select private.watched_symbols(%s)", world.accounts["M"])
    tell(world, "M", "NEWCO")
    assert outcomes(world) == [("opened", "copied")]
    assert opens(world) == [("NEWCO", "0.1")]


@pytest.mark.covers("X25")
def test_a_mapped_name_is_waited_for(world: NettingWorld) -> None:
    world.copy("M", "F", symbols={"ZZTOP": "Z.TOP"})
    world.opened("M", "0.10", symbol="ZZTOP")
    assert "Z.TOP" in world.one("select private.watched_symbols(%s)", world.accounts["F"])
    tell(world, "F", "ZZTOP")
    assert outcomes(world) == [("opened", "symbols_loading")]
    tell(world, "F", "Z.TOP")
    assert opens(world) == [("Z.TOP", "0.1")]


@pytest.mark.covers("X25")
def test_a_netting_follower_waits(world: NettingWorld) -> None:
    world.copy("M", "N")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert outcomes(world) == [("opened", "symbols_loading")]
    tell(world, "N", "ZZTOP")
    assert opens(world, "N") == [("ZZTOP", "0.1")]
    assert outcomes(world) == [("opened", "copied")]


@pytest.mark.covers("X25")
def test_the_same_name_never_waits(world: NettingWorld) -> None:
    tell(world, "F", "ZZTOP")
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert outcomes(world) == [("opened", "copied")]


@pytest.mark.covers("X25")
def test_other_reasons_come_first(world: NettingWorld) -> None:
    world.copy("M", "F", symbols_except=["ZZTOP"])
    world.opened("M", "0.10", symbol="ZZTOP")
    assert outcomes(world) == [("opened", "symbol_filtered")]
    assert waiting(world) == 0


@pytest.mark.covers("X25")
def test_a_copier_that_is_paused_meanwhile_copies_nothing(world: NettingWorld) -> None:
    copier = world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    world.as_user("set_copier_mode", {"copier_id": copier, "mode": "off"})
    assert [reason for _, reason in outcomes(world)] == ["copier_off"]
    tell(world, "F", "ZZTOP")
    assert opens(world) == []
    assert waiting(world) == 0


@pytest.mark.covers("X25")
def test_a_copier_that_is_removed_meanwhile_copies_nothing(world: NettingWorld) -> None:
    copier = world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    world.as_user("remove_copier", {"copier_id": copier, "mode": "close_now"})
    tell(world, "F", "ZZTOP")
    time_over(world)
    assert [reason for _, reason in outcomes(world)] == ["copier_removed"]
    assert (opens(world), waiting(world)) == ([], 0)


@pytest.mark.covers("X25")
def test_what_the_master_holds_when_a_copier_starts_waits_too(world: NettingWorld) -> None:
    world.opened("M", "0.10", symbol="ZZTOP")
    world.copy("M", "F", copy_existing="all")
    assert (opens(world), waiting(world)) == ([], 1)
    tell(world, "F", "ZZTOP")
    assert (opens(world), waiting(world)) == ([("ZZTOP", "0.1")], 0)


@pytest.mark.covers("X25")
def test_a_copy_that_its_user_asks_for_waits_and_is_made_for_no_other_copier(world: NettingWorld) -> None:
    position = world.opened("M", "0.10", symbol="ZZTOP")
    copier = world.copy("M", "F")
    world.copy("M", "N")
    item = {"kind": "missing", "master_ticket": position["ticket"], "action": "copy"}
    answer = world.as_user("resync_copier", {"copier_id": copier, "items": [item]})
    assert [(i["result"], i["reason"]) for i in answer["items"]] == [("queued", "symbols_loading")]
    tell(world, "N", "ZZTOP")
    tell(world, "F", "ZZTOP")
    assert (opens(world), opens(world, "N"), waiting(world)) == ([("ZZTOP", "0.1")], [], 0)


def with_affix(world: NettingWorld) -> None:
    """F's broker adds .r to every name, and its list is complete."""
    names = [f"{pair}.r" for pair in ("EURUSD", "GBPUSD", "USDCHF", "AUDUSD", "NZDUSD", "ZZTOP")]
    tell(world, "F", *names, complete=True)
    without_quotes(world, "ZZTOP.r")


@pytest.mark.covers("X26")
@pytest.mark.parametrize(("bid", "reason"), [("1.1", "copied"), ("1.3", "symbol_unproven")])
def test_the_quote_that_proves_a_name_is_asked_for_and_decides(world: NettingWorld, bid: str, reason: str) -> None:
    with_affix(world)
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert outcomes(world) == [("opened", "symbols_loading")]
    assert "ZZTOP.r" in world.one("select private.watched_symbols(%s)", world.accounts["F"])
    quoted(world, "F", "ZZTOP.r", bid)
    assert outcomes(world) == [("opened", reason)]
    assert len(world.executions("F")) == (reason == "copied")
    assert world.one("select count(*) from public.alerts where reason = 'symbol_unproven'") == (reason != "copied")


@pytest.mark.covers("X26")
def test_a_quote_that_does_not_come_in_time_leaves_the_name_unproven(world: NettingWorld) -> None:
    with_affix(world)
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    time_over(world)
    assert outcomes(world) == [("opened", "symbol_unproven")]
    quoted(world, "F", "ZZTOP.r", "1.1")
    assert opens(world) == []


@pytest.mark.covers("X26")
def test_the_masters_quote_is_waited_for_where_its_trade_does_not_prove_the_name(world: NettingWorld) -> None:
    """An order far from the market says nothing about the price."""
    with_affix(world)
    without_quotes(world, "ZZTOP")
    quoted(world, "F", "ZZTOP.r", "1.1")
    world.copy("M", "F", copy_pending=True)
    order = world.position("0.10", symbol="ZZTOP") | {"kind": "order", "order_type": "limit", "price": "0.90"}
    world.send("M", world.event("ordered", order))
    assert outcomes(world) == [("ordered", "symbols_loading")]
    quoted(world, "M", "ZZTOP", "1.1")
    assert outcomes(world) == [("ordered", "copied")]


@pytest.mark.covers("X26")
def test_the_list_then_the_quote_is_one_wait(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    ends_at = world.one("select ends_at from private.symbol_waits")
    with_affix(world)
    without_quotes(world, "ZZTOP.r")
    assert outcomes(world) == [("opened", "symbols_loading")]
    assert world.one("select ends_at from private.symbol_waits") == ends_at
    assert world.one("select ends_as from private.symbol_waits") == "symbol_unproven"
    quoted(world, "F", "ZZTOP.r", "1.1")
    assert opens(world) == [("ZZTOP.r", "0.1")]
