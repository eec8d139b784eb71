"""What protection rules and stop-outs do to an account, and what its user may say (R10)."""

from collections.abc import Iterator
from threading import Thread
from typing import Any

import psycopg
import pytest
from protection_harness import ProtectionWorld, make

from agent.stack.database import Database


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    yield from make(connection)


def holding(world: ProtectionWorld, **copier: Any) -> dict[str, Any]:
    """F holds a copy of 1.00 and 0.20 of its own; returns the master's position."""
    world.copy("M", "F", **copier)
    position = world.opened("M")
    world.settle()
    world.send("F", world.event("opened", world.position("0.20")))
    return position


def breach(world: ProtectionWorld) -> None:
    world.look("9000")
    world.look("9000")


def test_close_all_and_off_is_the_default_and_takes_manual_trades_along(world: ProtectionWorld) -> None:
    holding(world)
    world.rule("equity_floor", "9000")
    breach(world)
    assert world.copy_state() == "flattening"
    world.settle()
    assert world.book("F") == []
    world.opened("M")
    world.flat()
    assert world.copy_state() == "off"
    world.opened("M")
    assert (world.book("F"), world.open_executions("F")) == ([], [])
    assert world.reasons("F") == {"account_protected": 2}


def test_what_the_user_opened_may_be_left_alone(world: ProtectionWorld) -> None:
    holding(world)
    world.rule("equity_floor", "9000", close_manual=False)
    breach(world)
    world.settle()
    assert world.book("F") == [("buy", "0.20")]


def test_close_all_closes_once_and_copies_again_when_flat(world: ProtectionWorld) -> None:
    holding(world)
    world.rule("equity_floor", "9000", action="close_all")
    breach(world)
    world.settle()
    world.flat()
    assert (world.copy_state(), world.book("F")) == ("on", [])
    world.opened("M", "0.50")
    world.settle()
    assert world.book("F") == [("buy", "0.50")], "new trades are copied, the old one stays closed"
    assert world.one("select copy_state_reason from public.trading_accounts where name = 'F'") is None


def test_close_all_gives_an_account_that_was_off_back_as_it_was(world: ProtectionWorld) -> None:
    holding(world)
    world.rule("equity_floor", "9000", action="close_all")
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "off"})
    breach(world)
    world.settle()
    world.flat()
    assert (world.copy_state(), world.book("F")) == ("off", [])


def test_monitor_opens_nothing_more_and_goes_on_closing(world: ProtectionWorld) -> None:
    p = holding(world)
    world.rule("equity_floor", "9000", action="monitor")
    world.opened("M", "0.30")
    (unsent,) = world.open_executions("F")
    breach(world)
    assert world.copy_state() == "monitor"
    assert world.one(
        "select cancel_requested_at is not null from public.trade_execution_queue where id = %s", unsent["id"]
    )
    world.report(unsent, "cancelled", reason="cancel_requested")
    world.opened("M")
    assert world.reasons("F") == {"account_protected": 1}
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == [("buy", "0.20")]


@pytest.mark.parametrize("follower", ["F", "N"])
def test_an_open_that_waits_for_another_attempt_is_not_tried_again(world: ProtectionWorld, follower: str) -> None:
    if follower == "N":
        world.add_account("N", vps="b", mode="netting")
        world.db.execute("update public.trading_accounts set session_vps_id = %s, funds_at = null", (world.vps["b"],))
    world.copy("M", follower)
    world.opened("M")
    (execution,) = world.open_executions(follower)
    world.report(execution, "rejected", reason="market_closed", retryable=True)
    assert [e["status"] for e in world.open_executions(follower)] == ["retrying"]
    world.rule("equity_floor", "9000", action="monitor", account=follower)
    world.look("9000", account=follower)
    world.look("9000", account=follower)
    assert [(e["status"], e["reason"]) for e in world.executions(follower)] == [("cancelled", "account_protected")]
    assert world.rows("select state, reason from public.position_links") == [
        {"state": "ended", "reason": "account_protected"}
    ]


def test_notify_changes_nothing_but_tells(world: ProtectionWorld) -> None:
    holding(world)
    world.rule("equity_floor", "9000", action="notify")
    breach(world)
    assert (world.copy_state(), world.open_executions("F")) == ("on", [])
    assert world.rows("select kind, reason, severity from public.alerts") == [
        {"kind": "protection", "reason": "equity_floor", "severity": "warning"}
    ]


def test_the_strictest_of_two_rules_that_trigger_together_wins(world: ProtectionWorld) -> None:
    holding(world)
    world.rule("daily_loss", "5", action="close_all_and_off", close_manual=False)
    world.rule("trailing_drawdown", "5", action="close_all")
    world.rule("equity_floor", "9000", action="monitor")
    world.look("10000")
    breach(world)
    assert world.alerts().keys() == {"daily_loss", "trailing_drawdown", "equity_floor"}
    world.settle()
    assert world.book("F") == []
    world.flat()
    assert world.copy_state() == "off"


def test_a_netting_account_is_closed_too(world: ProtectionWorld) -> None:
    world.add_account("N", vps="b", mode="netting")
    world.db.execute("update public.trading_accounts set session_vps_id = %s, funds_at = null", (world.vps["b"],))
    world.copy("M", "N")
    world.opened("M", "1.00")
    world.run()
    world.rule("equity_floor", "9000", account="N")
    world.look("9000", account="N")
    world.look("9000", account="N")
    world.run()
    assert (world.net, world.copy_state("N")) == (0, "flattening")


def test_a_reset_counts_from_the_present_equity(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5", action="notify")
    world.look("100000")
    for _ in range(4):
        world.look("95000")
    world.db.execute("update public.trading_accounts set funds_at = now() where name = 'F'")
    answer = world.as_user("reset_protection", {"rule_id": rule})
    assert answer["day_start_equity"] == "95000"
    assert not world.triggered(rule)
    world.db.execute("update public.trading_accounts set funds_at = null where name = 'F'")
    world.db.execute("update public.protection_rules set day = '2026-01-15'")
    world.look("90250.01")
    world.look("90250.01")
    assert not world.triggered(rule)
    world.look("90250")
    world.look("90250")
    assert (world.triggered(rule), world.alerts()) == (True, {"daily_loss": 2})


def test_switching_the_account_on_does_not_arm_the_rule(world: ProtectionWorld) -> None:
    rule = world.rule("equity_floor", "9000", action="monitor")
    breach(world)
    world.as_user("pause_account", {"account_id": world.accounts["F"], "state": "on"})
    breach(world)
    assert (world.copy_state(), world.alerts(), world.triggered(rule)) == ("on", {"equity_floor": 1}, True)


# -- together with others -------------------------------------------------------------------------------------------


def report(database: Database, world: ProtectionWorld, equity: str, ms: int) -> Thread:
    """F's agent reports on a connection of its own."""
    state = world.funds("F", world.clock.replace(microsecond=ms * 1000), equity)
    vps = world.agents["b"]

    def run() -> None:
        with database.connect() as connection:
            other = ProtectionWorld.__new__(ProtectionWorld)
            other.db = connection
            connection.row_factory = world.db.row_factory
            other.call(vps, "report_account_state", state)

    return Thread(target=run)


@pytest.mark.own_database
def test_two_reports_that_confirm_at_once_trigger_once(database: Database, world: ProtectionWorld) -> None:
    world.rule("equity_floor", "9000", action="notify")
    world.look("8000")
    threads = [report(database, world, "8000", ms) for ms in (400, 500)]
    with world.db.transaction():
        world.db.execute("select private.lock_accounts(array[%s]::uuid[])", (world.accounts["F"],))
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(20)
    assert world.alerts() == {"equity_floor": 1}
    assert world.looks() == [("8000", "first"), ("8000", "confirmed")]


@pytest.mark.own_database
def test_a_rule_waits_for_the_plan_lock_before_it_holds_any_row(database: Database, world: ProtectionWorld) -> None:
    holding(world)
    rule = world.rule("equity_floor", "9000")
    world.look("8000")
    thread = report(database, world, "8000", 400)
    with world.db.transaction():
        world.db.execute("select private.lock_accounts(array[%s]::uuid[])", (world.accounts["M"],))
        thread.start()
        for _ in range(2000):
            if world.rows("select from pg_locks where not granted"):
                break
            world.one("select pg_sleep(0.005)")
        else:
            raise AssertionError("nobody waits for the plan lock of a neighbour")
        world.db.execute("set local lock_timeout = '1s'")
        world.db.execute("update public.trading_accounts set name = name where name = 'F'")
        world.db.execute("update public.protection_rules set enabled = enabled where id = %s", (rule,))
    thread.join(20)
    assert (world.triggered(rule), world.copy_state()) == (True, "flattening")


# -- users ---------------------------------------------------------------------------------------------------------


def refusal(world: ProtectionWorld, function: str, argument: dict[str, Any]) -> str:
    with pytest.raises(psycopg.Error) as caught:
        world.as_user(function, argument)
    return f"{caught.value.sqlstate} {caught.value.diag.message_primary}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "weekly_loss"}, "TC303 save_protection_rule: kind must be daily_loss, trailing_drawdown"),
        (
            {"threshold": "0"},
            "TC303 save_protection_rule: threshold of daily_loss must be above 0 and below 100 (percent), not 0",
        ),
        ({"threshold": "100"}, "TC303 save_protection_rule: threshold of daily_loss must be above 0 and below 100"),
        (
            {"kind": "max_margin_use", "threshold": "1001"},
            "TC303 save_protection_rule: threshold of max_margin_use must be above 0",
        ),
        (
            {"kind": "equity_floor", "threshold": "1e12"},
            "TC303 save_protection_rule: threshold of equity_floor must be above 0",
        ),
        ({"threshold": "NaN"}, "TC302 save_protection_rule: threshold is not a number"),
        ({"threshold": None}, "TC302 save_protection_rule: threshold is not a number"),
        (
            {"action": "panic"},
            "TC303 save_protection_rule: action must be notify, monitor, close_all or close_all_and_off",
        ),
        ({"confirm_ms": 249}, "TC303 save_protection_rule: confirm_ms must be from 250 to 60000"),
        ({"confirm_ms": 60001}, "TC303 save_protection_rule: confirm_ms must be from 250 to 60000"),
        ({"time_zone": "Mars/Olympus"}, "TC303 save_protection_rule: there is no time zone Mars/Olympus"),
        (
            {"confirm_ms": "soon"},
            'TC302 save_protection_rule: confirm_ms is "soon", but must be a whole number from 250 to 60000',
        ),
        ({"enabled": "maybe"}, 'TC302 save_protection_rule: enabled is "maybe", but must be true or false'),
        ({"enabled": None}, "TC303 save_protection_rule: close_manual and enabled must be true or false"),
        ({"treshold": "5"}, "TC301 save_protection_rule: unknown setting: treshold"),
    ],
)
def test_a_bad_setting_is_refused_with_what_is_allowed(
    world: ProtectionWorld, settings: dict[str, Any], says: str
) -> None:
    good = {"account_id": world.accounts["F"], "kind": "daily_loss", "threshold": "5"}
    assert refusal(world, "save_protection_rule", good | settings).startswith(says)
    assert world.rows("select 1 from public.protection_rules") == []


def test_rules_that_contradict_each_other_are_refused_with_both_named(world: ProtectionWorld) -> None:
    floor = world.rule("equity_floor", "9000")
    target = {"account_id": world.accounts["F"], "kind": "equity_target", "threshold": "9000"}
    both = "TC306 save_protection_rule: equity_floor 9000 is not below equity_target 9000"
    assert refusal(world, "save_protection_rule", target) == both
    world.rule("equity_target", "9000.01")
    assert refusal(world, "save_protection_rule", {"id": floor, "threshold": "9000.01"}).startswith("TC306")
    assert refusal(world, "save_protection_rule", {"id": floor, "kind": "daily_loss"}).startswith("TC303")


def test_a_rule_that_would_act_at_once_is_refused(world: ProtectionWorld) -> None:
    world.look("8000")
    floor = {"account_id": world.accounts["F"], "kind": "equity_floor", "threshold": "8000"}
    world.as_user(
        "remove_protection_rule", {"rule_id": world.rule("equity_floor", "8000")}
    )  # these funds are of long ago
    world.db.execute("update public.trading_accounts set funds_at = now() where name = 'F'")
    assert refusal(world, "save_protection_rule", floor).startswith(
        "TC321 save_protection_rule: the account is already past this limit: equity_floor of 8000, equity 8000"
    )
    rule = world.rule("equity_floor", "7999")
    world.db.execute("update public.protection_rules set triggered_at = now(), threshold = 8000")
    assert refusal(world, "reset_protection", {"rule_id": rule}).startswith("TC321 reset_protection")


def test_changing_a_rule_keeps_its_day_and_another_zone_begins_one(world: ProtectionWorld) -> None:
    rule = world.rule("daily_loss", "5")
    world.look("100000")
    world.look("96000")
    world.as_user("save_protection_rule", {"id": rule, "threshold": "6"})
    assert world.one("select trim_scale(day_start_equity)::text from public.protection_rules") == "100000"
    world.as_user("save_protection_rule", {"id": rule, "time_zone": "Asia/Tokyo"})
    assert world.one("select day_start_equity from public.protection_rules") is None
    world.look("96000")
    assert world.one("select trim_scale(day_start_equity)::text from public.protection_rules") == "96000"


def test_a_rule_that_is_disabled_or_removed_is_quiet(world: ProtectionWorld) -> None:
    rule = world.rule("equity_floor", "9000", enabled=False)
    breach(world)
    assert world.looks() == []
    world.as_user("save_protection_rule", {"id": rule, "enabled": True})
    world.as_user("remove_protection_rule", {"rule_id": rule})
    breach(world)
    assert world.alerts() == {}
    assert refusal(world, "remove_protection_rule", {"rule_id": rule}).startswith("TC106")


def test_the_agent_is_asked_to_watch_the_funds_of_what_is_open_and_protected(world: ProtectionWorld) -> None:
    def watched() -> dict[str, bool]:
        beat = world.as_agent("F", "vps_heartbeat", {})
        return {a["login"]: a["watch_funds"] for a in beat["assignments"]}

    rule = world.rule("equity_floor", "9000")
    assert watched() == {"F": False}
    holding(world)
    assert watched() == {"F": True}
    world.as_user("save_protection_rule", {"id": rule, "enabled": False})
    assert watched() == {"F": False}


# -- stop-outs -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R10")
def test_a_stop_out_ends_the_copy_tells_and_opens_nothing_more(world: ProtectionWorld) -> None:
    p = holding(world)
    ticket = world.one("select ticket from private.link_legs")
    world.send("F", world.event("closed", world.position("0", ticket=ticket), close_reason="stop_out"))
    assert world.rows("select state, reason from public.position_links") == [{"state": "ended", "reason": "stop_out"}]
    assert world.copy_state() == "monitor"
    alert = world.rows("select kind, severity, times, message from public.alerts")[0]
    assert (alert["kind"], alert["severity"], alert["times"]) == ("stop_out", "critical", 1)
    assert alert["message"].startswith("Stop-out: the broker of F closed buy 1 EURUSD for lack of margin.")
    world.send("M", world.event("modified", p | {"sl": "1.05"}))
    world.send("M", world.event("increased", p | {"lots": "2.00"}))
    world.opened("M")
    assert world.open_executions("F") == []
    assert world.reasons("F") == {"stop_out": 2, "account_protected": 1}
    assert world.book("F") == [("buy", "0.20")], "what the user holds is his"


def test_a_stop_out_of_several_positions_is_one_alert_that_counts(world: ProtectionWorld) -> None:
    world.copy("M", "F")
    for _ in range(3):
        world.opened("M")
    world.settle()
    tickets = [r["ticket"] for r in world.rows("select ticket from private.link_legs")]
    world.send("F", *(world.event("closed", world.position("0", ticket=t), close_reason="stop_out") for t in tickets))
    assert world.alerts() == {"stop_out": 3}
    assert {r["reason"] for r in world.rows("select reason from public.position_links")} == {"stop_out"}


def test_a_stop_out_of_a_netting_follower(world: ProtectionWorld) -> None:
    world.add_account("N", vps="b", mode="netting")
    world.copy("M", "N")
    world.opened("M", "1.00")
    world.run()
    world.net -= world.net
    world.send("N", world.event("closed", world.position("0", ticket="net-1"), close_reason="stop_out"))
    assert world.rows("select state, reason from public.position_links") == [{"state": "ended", "reason": "stop_out"}]
    assert world.copy_state("N") == "monitor"


def test_a_stop_loss_is_no_stop_out(world: ProtectionWorld) -> None:
    holding(world)
    ticket = world.one("select ticket from private.link_legs")
    world.send("F", world.event("closed", world.position("0", ticket=ticket), close_reason="sl"))
    assert world.rows("select reason from public.position_links") == [{"reason": "closed_by_follower"}]
    assert (world.copy_state(), world.alerts()) == ("on", {})


def test_a_stop_out_of_an_account_that_follows_nobody_pauses_nothing(world: ProtectionWorld) -> None:
    holding(world)
    position = world.opened("M")
    world.settle()
    world.send("M", world.event("closed", position | {"lots": "0"}, close_reason="stop_out"))
    assert (world.copy_state("M"), world.copy_state("F"), world.alerts()) == ("on", "on", {"stop_out": 1})
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "1.00")]


def test_a_rule_of_a_master_closes_its_trades_and_the_followers_follow(world: ProtectionWorld) -> None:
    world.copy("M", "F")
    position = world.opened("M")
    world.settle()
    world.rule("equity_floor", "9000", account="M")
    world.look("9000", account="M")
    world.look("9000", account="M")
    (close,) = world.open_executions("M")
    assert (close["action"], close["ticket"], close["copier_id"]) == ("close", position["ticket"], None)
    world.settle()
    assert (world.book("M"), world.book("F")) == ([], [])
    world.flat("M")
    assert (world.copy_state("M"), world.copy_state("F")) == ("off", "on")
