"""Alarms: closes that are overdue, masters that nobody sees, accounts that are not connected. The verdict computes them
when it is read; the upkeep stores each once."""

from datetime import timedelta
from typing import Any

import pytest
from netting_harness import NettingWorld as World


@pytest.fixture(autouse=True)
def working_day(world: World) -> None:
    world.set_weekend(timedelta(days=2), timedelta(days=3))


def later(world: World, seconds: int) -> None:
    """So much time has passed since everything that was queued or done until now."""
    world.db.execute(
        "update public.trade_execution_queue set queued_at = queued_at - make_interval(secs => %(s)s),"
        " updated_at = updated_at - make_interval(secs => %(s)s) where true",
        {"s": seconds},
    )
    world.db.execute(
        "update public.positions set closed_at = closed_at - make_interval(secs => %(s)s),"
        " first_seen_at = first_seen_at - make_interval(secs => %(s)s) where true",
        {"s": seconds},
    )
    world.db.execute(
        "update public.trading_accounts set flattened_at = flattened_at - make_interval(secs => %s) where true",
        (seconds,),
    )


def verdict(world: World) -> dict[str, Any]:
    return dict(world.as_user("verdict", {}))


def alarms(world: World, kind: str) -> list[dict[str, Any]]:
    world.db.execute("select private.raise_alarms()")
    return world.rows(
        "select a.name, l.* from public.alerts l join public.trading_accounts a on a.id = l.account_id"
        " where l.kind = %s order by l.id",
        kind,
    )


def unseen(world: World, account: str, seconds: int, status: str = "disconnected") -> None:
    world.db.execute(
        "update public.trading_accounts set status = %s, status_reason = 'the broker does not answer' where id = %s",
        (status, world.accounts[account]),
    )
    world.db.execute(
        "update public.trading_accounts set status_at = now() - make_interval(secs => %(s)s),"
        " seen_at = now() - make_interval(secs => %(s)s), funds_at = now() - make_interval(secs => %(s)s)"
        " where id = %(a)s",
        {"s": seconds, "a": world.accounts[account]},
    )


def copied(world: World) -> dict[str, Any]:
    world.copy("M", "F")
    position = world.opened("M", "0.30")
    world.settle()
    assert verdict(world)["tone"] == "ok"
    return position


# -- closes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "lots", "words"),
    [("closed", "0", "the close of EURUSD 0.3"), ("reduced", "0.10", "the reduction of EURUSD 0.2")],
)
def test_a_close_that_is_not_filled_after_ten_seconds_is_the_first_line(
    world: World, event: str, lots: str, words: str
) -> None:
    position = copied(world)
    unseen(world, "M2", 100)
    world.send("M", world.event(event, position | {"lots": lots}))
    later(world, 8)
    assert "EURUSD" not in verdict(world)["text"]
    assert alarms(world, "close_overdue") == []
    later(world, 4)
    said = verdict(world)
    assert said["tone"] == "bad"
    assert said["text"].startswith(f"F: {words} is not filled after 12 s, its agent has not answered; close it at the")
    assert said["findings"][0]["code"] == "close_overdue"
    for _ in range(2):  # a second run counts nothing again
        (alert,) = alarms(world, "close_overdue")
        assert (alert["name"], alert["reason"], alert["severity"], alert["times"]) == (
            "F", "close_overdue", "critical", 1,
        )  # fmt: skip
        assert words in alert["message"]
        assert "close it at the broker if you cannot wait" in alert["message"]
    world.settle()
    assert all(finding["code"] != "close_overdue" for finding in verdict(world)["findings"])


@pytest.mark.parametrize("retryable", [True, False])
def test_a_close_that_the_broker_refuses_is_overdue_and_says_why(world: World, retryable: bool) -> None:
    position = copied(world)
    world.send("M", world.event("closed", position | {"lots": "0"}))
    (close,) = world.open_executions("F")
    held = world.position("0.30", "buy", close["ticket"])
    world.report(close, "rejected", [held], reason="market_closed", retryable=retryable, message="Market closed")
    later(world, 15)
    text = verdict(world)["text"]
    assert text.startswith("F: the close of EURUSD 0.3 is not filled after 15 s, the market is closed; close it")
    assert len(alarms(world, "close_overdue")) == 1


def test_a_close_whose_outcome_is_unknown_is_overdue(world: World) -> None:
    position = copied(world)
    world.send("M", world.event("closed", position | {"lots": "0"}))
    world.report(world.open_executions("F")[0], "unknown")
    later(world, 11)
    assert "the broker did not answer; close it at the broker" in verdict(world)["text"]


def test_what_a_netting_follower_must_close_is_overdue_too(world: World) -> None:
    world.copy("M", "N")
    position = world.opened("M", "0.30")
    world.settle_both()
    world.send("M", world.event("reduced", position | {"lots": "0.10"}))
    later(world, 12)
    assert "N: the reduction of EURUSD 0.2 is not filled after 12 s" in verdict(world)["text"]


def test_a_flattening_that_does_not_end_is_overdue(world: World) -> None:
    copied(world)
    world.db.execute("update public.positions set magic = null where true")
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    later(world, 12)
    assert "F: the close of EURUSD 0.3" in verdict(world)["text"]
    # what is no copy: the user's own trade, while no order is under way for it
    world.db.execute("delete from public.trade_execution_queue where finalized_at is null")
    world.db.execute("update public.position_links set state = 'ended', ended_at = now(), reason = 'closed' where true")
    world.db.execute("update public.trading_accounts set flatten_manual = true where true")
    assert "F: the flattening of EURUSD 0.3 is not filled after 12 s" in verdict(world)["text"]


def test_an_open_that_waits_is_no_overdue_close(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "0.30")
    later(world, 60)
    assert all(finding["code"] != "close_overdue" for finding in verdict(world)["findings"])
    assert alarms(world, "close_overdue") == []


def test_opens_that_the_agent_cannot_send_in_time_are_not_well(world: World) -> None:
    world.copy("M", "F")
    world.opened("M", "0.30")
    world.report(world.open_executions("F")[0], "expired", reason="too_late")
    said = verdict(world)
    assert (said["tone"], said["text"]) == ("warn", "One order could not be sent in time within the last hour")


def test_while_trading_is_off_nothing_is_overdue(world: World) -> None:
    position = copied(world)
    world.send("M", world.event("closed", position | {"lots": "0"}))
    later(world, 20)
    world.db.execute("update public.trading_switch set state = 'off', reason = 'wrong prices' where true")
    assert [finding["code"] for finding in verdict(world)["findings"]] == ["trading_off"]
    assert alarms(world, "close_overdue") == []


def test_another_symbol_that_is_overdue_is_told_too(world: World) -> None:
    world.add_symbol("M", "GBPUSD")
    world.add_symbol("F", "GBPUSD")
    position = copied(world)
    other = world.opened("M", "0.20", symbol="GBPUSD")
    world.settle()
    world.send("M", world.event("closed", position | {"lots": "0"}))
    later(world, 12)
    assert alarms(world, "close_overdue")[0]["times"] == 1
    world.send("M", world.event("closed", other | {"lots": "0"}))
    later(world, 12)
    (alert,) = alarms(world, "close_overdue")
    assert alert["times"] == 2
    assert "GBPUSD 0.2" in alert["message"]


# -- masters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["disconnected", "connected", "connecting"])
def test_a_master_that_nobody_sees_alarms_the_users_of_its_followers(world: World, status: str) -> None:
    copied(world)
    stranger = world._user("follower@example.test")
    world.db.execute("update public.trading_accounts set user_id = %s where id = %s", (stranger, world.accounts["F"]))
    world.db.execute("update public.position_links set user_id = %s where true", (stranger,))
    unseen(world, "M", 29, status)
    assert alarms(world, "master_unseen") == []
    unseen(world, "M", 31, status)
    for _ in range(2):
        (alert,) = alarms(world, "master_unseen")
        assert (alert["name"], str(alert["user_id"]), alert["severity"], alert["times"]) == (
            "F", stranger, "critical", 1,
        )  # fmt: skip
        assert "EURUSD buy 0.3" in alert["message"]
        assert "M has" not in alert["message"], "the name of another user's account is his own"
    said = world.call(stranger, "verdict", {})
    assert said["findings"][0]["code"] == "master_unseen"
    assert said["tone"] == "bad"


def test_a_master_without_open_copies_alarms_nobody_else(world: World) -> None:
    world.copy("M", "F")
    unseen(world, "M", 60)
    assert alarms(world, "master_unseen") == []


# -- accounts -------------------------------------------------------------------------------------------------------


def test_an_account_that_is_away_for_thirty_seconds_is_told_with_its_open_copies(world: World) -> None:
    copied(world)
    unseen(world, "F", 29)
    assert alarms(world, "account") == []
    assert verdict(world)["text"].startswith("F is disconnected: the broker does not answer")
    unseen(world, "F", 31)
    for _ in range(2):
        (alert,) = alarms(world, "account")
        assert (alert["name"], alert["reason"], alert["severity"], alert["times"]) == (
            "F", "disconnected", "critical", 1,
        )  # fmt: skip
        assert "EURUSD buy 0.3" in alert["message"]
    # the same outage is told once, even if it was marked as seen
    world.db.execute("update public.alerts set seen_at = now() where true")
    assert len(alarms(world, "account")) == 1


def test_the_next_outage_is_told_though_the_alert_of_the_last_was_seen_meanwhile(world: World) -> None:
    unseen(world, "M2", 31)
    assert len(alarms(world, "account")) == 1
    world.db.execute(
        "update public.alerts set created_at = now() - interval '1 hour', seen_at = now() where true"
    )  # marked as seen now, while the next outage lasts already
    unseen(world, "M2", 40)
    for _ in range(2):
        assert [alert["seen_at"] is None for alert in alarms(world, "account")] == [False, True]


def test_a_master_that_is_away_is_told_with_the_copies_of_its_positions(world: World) -> None:
    copied(world)
    unseen(world, "M", 31)
    (alert,) = alarms(world, "account")
    assert alert["name"] == "M"
    assert "Open copies of its positions" in alert["message"]
    assert "EURUSD buy 0.3" in alert["message"]


def test_an_account_without_copies_that_is_away_is_a_warning(world: World) -> None:
    unseen(world, "M2", 31)
    (alert,) = alarms(world, "account")
    assert (alert["name"], alert["severity"]) == ("M2", "warning")
    assert "no open copies" in alert["message"]
