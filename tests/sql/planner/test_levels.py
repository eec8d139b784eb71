"""Stop loss and take profit of copies: which are wanted, which are sent, and what happens when a broker refuses
them."""

from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld

D = Decimal


def levels(row: dict[str, Any]) -> tuple[Decimal | None, Decimal | None]:
    return row["sl"], row["tp"]


def spec(world: NettingWorld, account: str = "F", **columns: Any) -> None:
    for column, value in columns.items():
        world.db.execute(
            f"update public.account_symbols set {column} = %s where account_id = %s", (value, world.accounts[account])
        )


def filled(world: NettingWorld, price: str, account: str = "F", **more: Any) -> dict[str, Any]:
    """The broker fills the account's one open execution at `price` with the levels asked, unless `more` says
    otherwise."""
    (execution,) = world.open_executions(account)
    state = world.position(str(execution["lots"]), execution["side"], world.ticket(), price=price)
    state |= {key: None if execution[key] is None else str(execution[key]) for key in ("sl", "tp")}
    world.report(execution, positions=[state | more], filled_lots=str(execution["lots"]), price=price)
    return state


def only(world: NettingWorld, account: str = "F") -> dict[str, Any]:
    (execution,) = world.open_executions(account)
    return execution


def link(world: NettingWorld) -> dict[str, Any]:
    (row,) = world.rows("select * from public.position_links order by id desc limit 1")
    return row


@pytest.mark.covers("S1")
def test_same_price_keeps_the_masters_levels_whatever_the_fill(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", sl="1.09500", tp="1.11000")
    assert levels(only(world)) == (D("1.09500"), D("1.11000"))
    filled(world, "1.10023")
    assert world.open_executions("F") == []


@pytest.mark.covers("S2")
def test_distance_goes_with_the_fill(world: NettingWorld) -> None:
    world.copy("M", "F", sl_mode="distance", tp_mode="distance")
    world.opened("M", sl="1.09500", tp="1.11000")
    assert levels(only(world)) == (
        D("1.09510"),
        D("1.11010"),
    )  # never naked: from the ask 1.10010 until the fill is known
    filled(world, "1.10023")
    change = only(world)
    assert change["action"] == "modify"
    assert levels(change) == (D("1.09523"), D("1.11023"))
    world.fill(change)
    assert world.open_executions("F") == []


def test_distance_without_a_quote_begins_at_the_masters_price(world: NettingWorld) -> None:
    spec(world, bid=None, ask=None, quoted_at=None)
    world.copy("M", "F", sl_mode="distance")
    world.opened("M", sl="1.09500")
    assert only(world)["sl"] == D("1.09500")
    filled(world, "1.10023")
    assert only(world)["sl"] == D("1.09523")


def test_a_master_that_moves_its_stop_moves_the_distance(world: NettingWorld) -> None:
    world.copy("M", "F", sl_mode="distance")
    p = world.opened("M", sl="1.09500")
    filled(world, "1.10023")
    world.fill(only(world))
    world.send("M", world.event("modified", p | {"sl": "1.09700"}))
    assert only(world)["sl"] == D("1.09723")


def test_fixed_levels_lie_in_points_of_the_follower_on_the_right_side(world: NettingWorld) -> None:
    world.copy("M", "F", sl_mode="fixed", sl_points=300, tp_mode="fixed", tp_points=500)
    world.opened("M", side="sell")
    filled(world, "1.10000")
    assert levels(link_asked(world)) == (D("1.10300"), D("1.09500"))


def link_asked(world: NettingWorld) -> dict[str, Any]:
    row = link(world)
    return {"sl": row["asked_sl"], "tp": row["asked_tp"]}


@pytest.mark.covers("S20")
def test_a_stop_is_never_farther_than_the_cap(world: NettingWorld) -> None:
    world.copy("M", "F", max_sl_points=500)
    p = world.opened("M", sl="1.08800")  # 120 pips
    filled(world, "1.10000")
    assert link_asked(world)["sl"] == D("1.09500")  # 50 pips
    world.settle()
    world.send("M", world.event("modified", p | {"sl": "1.09900"}))
    assert only(world)["sl"] == D("1.09900")


@pytest.mark.covers("S7")
def test_a_removed_stop_is_removed_unless_a_cap_keeps_one(world: NettingWorld) -> None:
    world.add_account("G", vps="b")
    world.copy("M", "F")
    world.copy("M", "G", max_sl_points=500)
    p = world.opened("M", sl="1.09900")
    filled(world, "1.10000", "F")
    filled(world, "1.10000", "G")
    world.send("M", world.event("modified", p | {"sl": "0"}))
    assert only(world, "F")["sl"] is None
    assert only(world, "G")["sl"] == D("1.09500")


@pytest.mark.covers("S11")
def test_reverse_swaps_the_levels(world: NettingWorld) -> None:
    world.copy("M", "F", reverse=True)
    world.opened("M", sl="1.09500", tp="1.11000")
    sold = only(world)
    assert (sold["side"], *levels(sold)) == ("sell", D("1.11000"), D("1.09500"))


def test_reverse_with_distance_and_cap_stays_on_its_own_side(world: NettingWorld) -> None:
    world.copy("M", "F", reverse=True, sl_mode="distance", tp_mode="distance", max_sl_points=500)
    world.opened("M", sl="1.09500", tp="1.11000")
    filled(world, "1.10023")
    assert levels(only(world)) == (D("1.10523"), D("1.09523"))


@pytest.mark.covers("S12")
def test_reverse_risk_is_sized_on_the_followers_own_stop(world: NettingWorld) -> None:
    world.copy("M", "F", reverse=True, sizing_mode="risk_percent", sizing_value="1", sanity_factor=None)
    world.opened("M", sl="1.09500", tp="1.10235")  # the copy's stop is 23.5 pips away
    assert only(world)["lots"] == D("0.42")
    world.settle()
    world.opened("M", sl="1.09500")
    assert world.reasons("F") == {"no_stop_loss": 1}


def test_risk_is_sized_on_the_stop_that_the_copier_sets(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_mode="risk_percent", sizing_value="1", max_sl_points=235, sanity_factor=None)
    world.opened("M", sl="1.09000")
    assert only(world)["lots"] == D("0.42")


@pytest.mark.covers("S3")
def test_a_level_is_rounded_to_the_tick(world: NettingWorld) -> None:
    spec(world, tick_size="0.5", digits=1)
    world.copy("M", "F")
    world.opened("M", price="39200", sl="39123.7", tp="39300.8")
    assert levels(only(world)) == (D("39123.5"), D("39301.0"))


@pytest.mark.covers("S3", "S5")
@pytest.mark.parametrize(
    ("side", "sl", "tp", "expected"),
    [
        # bid 39200.0, ask 39210.0, least distance 10.1: a buy is judged by the bid, a sell by the ask
        ("buy", "39195", "39205", ("39189.5", "39210.5")),  # rounded away from the price, or it would be too near again
        ("sell", "39212", "39203", ("39220.5", "39199.5")),
        ("buy", "39180", "39230", ("39180.0", "39230.0")),
        ("buy", "39201", None, ("39189.5", None)),  # on the wrong side already
    ],
)
def test_a_level_inside_the_brokers_distance_goes_to_the_nearest_legal_one(
    world: NettingWorld, side: str, sl: str, tp: str | None, expected: tuple[str, str | None]
) -> None:
    spec(world, "M", bid="39200", ask="39210")
    spec(world, tick_size="0.5", digits=1, stops_level_points=101, bid="39200", ask="39210")
    world.copy("M", "F")
    world.opened("M", side=side, price="39205", sl=sl, tp=tp)
    sent = only(world)
    wanted = (D(expected[0]), None if expected[1] is None else D(expected[1]))
    assert levels(sent) == wanted
    moved = {f"{name}_adjusted" for name, a, b in (("sl", sl, wanted[0]), ("tp", tp, wanted[1])) if a and D(a) != b}
    assert set(sent["warnings"]) == moved
    assert set(link(world)["warnings"]) == moved


@pytest.mark.covers("S5")
def test_an_adjusted_level_is_not_asked_again_and_again(world: NettingWorld) -> None:
    spec(world, freeze_level_points=50)
    world.copy("M", "F")
    p = world.opened("M", sl="1.09990")
    assert only(world)["sl"] == D("1.09950")
    filled(world, "1.10010")
    spec(world, bid="1.10100", ask="1.10110")
    world.send("M", world.event("modified", p | {"tp": None}))
    world.come_due()
    assert [a for a, *_ in world.acts()] == ["open"]
    world.send("M", world.event("modified", p | {"sl": "1.10070"}))
    assert only(world)["sl"] == D("1.10050")
    world.fill(only(world))
    assert world.open_executions("F") == []
    world.send("M", world.event("modified", p | {"sl": "1.10020"}))
    world.fill(only(world))
    assert link(world)["warnings"] == []


def test_a_stale_quote_adjusts_nothing(world: NettingWorld) -> None:
    spec(world, stops_level_points=50, quoted_at="2020-01-01")
    world.copy("M", "F")
    world.opened("M", sl="1.09990")
    assert only(world)["sl"] == D("1.09990")


@pytest.mark.covers("S5")
def test_an_open_refused_for_its_levels_is_sent_again_with_nearer_ones_then_given_up_with_an_alert(
    world: NettingWorld,
) -> None:
    world.copy("M", "F")
    world.opened("M", sl="1.09999")
    sent = []
    for bid in ("1.10000", "1.09990", "1.09990"):
        execution = only(world)
        sent.append(execution["sl"])
        quote = {"bid": bid, "ask": str(D(bid) + D("0.00010"))}
        world.report(execution, "rejected", reason="invalid_stops", quote=quote)
    # the spread is 10 points: kept once, then twice
    assert sent == [D("1.09999"), D("1.09990"), D("1.09970")]
    assert world.open_executions("F") == []
    assert link(world)["reason"] == "invalid_stops"
    assert world.book("F") == []
    assert [a["reason"] for a in world.rows("select reason from public.alerts")] == ["invalid_stops"]


@pytest.mark.covers("S5")
def test_an_open_that_was_mended_warns_and_holds(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", sl="1.09999")
    world.report(only(world), "rejected", reason="invalid_stops", quote={"bid": "1.10000", "ask": "1.10010"})
    assert only(world)["warnings"] == ["sl_adjusted"]
    filled(world, "1.10010")
    assert world.open_executions("F") == []
    assert link(world)["warnings"] == ["sl_adjusted"]


@pytest.mark.covers("S6")
def test_a_fill_without_its_levels_is_followed_by_a_change_at_once(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", sl="1.09500", tp="1.11000")
    filled(world, "1.10010", sl=None, tp=None)
    change = only(world)
    assert change["action"] == "modify"
    assert levels(change) == (D("1.09500"), D("1.11000"))
    world.fill(change)
    assert world.open_executions("F") == []


@pytest.mark.covers("S6")
def test_three_refused_changes_leave_a_warning_that_the_next_success_takes_away(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", sl="1.09500")
    filled(world, "1.10010", sl=None)
    for _ in range(3):
        world.report(only(world), "rejected", reason="invalid_stops")
        world.come_due()
    assert world.open_executions("F") == []
    assert "protection_dropped" in link(world)["warnings"]
    (alert,) = world.rows("select reason, severity from public.alerts")
    assert alert == {"reason": "protection_dropped", "severity": "critical"}
    world.send("M", world.event("modified", p | {"sl": "1.09000"}))
    world.fill(only(world))
    assert link(world)["warnings"] == []


@pytest.mark.covers("S8")
def test_a_trailing_master_costs_one_change_at_a_time_and_ends_at_the_last_value(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", sl="1.09500")
    filled(world, "1.10010")
    for n in range(1, 21):
        world.send("M", world.event("modified", p | {"sl": str(D("1.09500") + n * D("0.00010"))}))
    world.send("M", world.event("reduced", p | {"sl": "1.09700", "lots": "0.40"}))
    first = only(world)
    assert first["sl"] == D("1.09510")
    world.settle()
    assert [a for a, *_ in world.acts()] == ["open", "modify", "reduce", "modify"]
    assert world.executions("F")[-1]["sl"] == D("1.09700")
    assert world.book("F") == [("buy", "0.40")]


@pytest.mark.covers("S9")
def test_without_levels_the_copy_closes_when_the_masters_stop_is_hit(world: NettingWorld) -> None:
    world.copy("M", "F", sl_mode="none", tp_mode="none")
    p = world.opened("M", sl="1.09500", tp="1.11000")
    assert levels(only(world)) == (None, None)
    world.settle()
    world.send("M", world.event("closed", p | {"lots": "0"}, close_reason="sl"))
    assert only(world)["action"] == "close"
    world.settle()
    assert world.book("F") == []


@pytest.mark.covers("S10")
def test_a_copy_that_was_stopped_out_stays_closed(world: NettingWorld) -> None:
    world.copy("M", "F")
    p = world.opened("M", sl="1.09500")
    mine = filled(world, "1.10010")
    world.send("F", world.event("closed", mine | {"lots": "0"}, close_reason="sl"))
    assert link(world)["reason"] == "closed_by_follower"
    world.send("M", world.event("modified", p | {"sl": "1.09000"}))
    world.send("M", world.event("closed", p | {"lots": "0"}))
    assert [a for a, *_ in world.acts()] == ["open"]
    assert world.reasons("F")["closed_by_follower"] == 2


def test_an_increase_brings_every_leg_to_the_distance_from_the_average(world: NettingWorld) -> None:
    world.copy("M", "F", sl_mode="distance")
    p = world.opened("M", sl="1.09500")
    filled(world, "1.10020")
    world.fill(only(world))
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    assert only(world)["sl"] == D("1.09520")
    filled(world, "1.10040")
    assert {(e["action"], e["sl"]) for e in world.open_executions("F")} == {("modify", D("1.09530"))}


def test_a_netting_follower_keeps_the_distance_from_its_own_fill(world: NettingWorld) -> None:
    world.copy("M", "N", sl_mode="distance")
    world.opened("M", sl="1.09500")
    (deal,) = world.open_executions("N")
    assert deal["sl"] == D("1.09500")
    world.net, world.levels = D("1.00"), (deal["sl"], None)
    world.report(deal, positions=world.state(price="1.10023"), filled_lots="1.00", price="1.10023")
    (change,) = world.open_executions("N")
    assert (change["action"], change["sl"]) == ("modify", D("1.09523"))
    world.run()
    assert [a for a, *_ in world.acts("N")] == ["open", "modify"]


def test_a_netting_deal_keeps_the_brokers_distance(world: NettingWorld) -> None:
    spec(world, "N", stops_level_points=50)
    world.copy("M", "N")
    world.opened("M", sl="1.09990")
    (deal,) = world.open_executions("N")
    assert (deal["sl"], deal["warnings"]) == (D("1.09950"), ["sl_adjusted"])


@pytest.mark.parametrize(
    ("settings", "both"),
    [
        ({"sl_mode": "fixed"}, ("sl_mode", "sl_points")),
        ({"tp_mode": "fixed"}, ("tp_mode", "tp_points")),
        ({"sl_points": 50}, ("sl_points", "sl_mode")),
        ({"tp_points": 50, "tp_mode": "distance"}, ("tp_points", "tp_mode")),
        ({"sl_mode": "none", "max_sl_points": 500}, ("sl_mode", "max_sl_points")),
        ({"sl_mode": "fixed", "sl_points": 600, "max_sl_points": 500}, ("sl_points", "max_sl_points")),
    ],
)
def test_contradicting_levels_are_refused_with_both_named(
    world: NettingWorld, settings: dict[str, Any], both: tuple[str, str]
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        world.copy("M", "F", **settings)
    assert refused.value.sqlstate == "TC306"
    assert all(name in str(refused.value) for name in both)
