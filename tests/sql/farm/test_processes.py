"""One identity, one working process: what heartbeats say of the process behind them (farm/process.sql)."""

from typing import Any
from uuid import UUID

import pytest
from api_actors import Actor, Farm

pytestmark = pytest.mark.own_database


def beat(name: str, number: int, *, machine: str = "m1", new: bool = False) -> dict[str, Any]:
    return {"process": {"id": name, "machine": machine, "beat": number, "new": new}}


@pytest.fixture
def agent(farm: Farm) -> Actor:
    return farm.agent("a", beating=False)


def test_a_restarted_agent_begins_at_once(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("first", 1, new=True))
    agent.can("vps_heartbeat", beat("first", 2))
    for number, name in enumerate(["second", "third", "fourth"]):
        answer = agent.can("vps_heartbeat", beat(name, 1, new=True))
        assert answer["lease_ms"] == 15000, number
    agent.cannot("vps_heartbeat", beat("first", 3), "TC110")
    agent.cannot("vps_heartbeat", beat("third", 2), "TC110")
    assert farm.rows("select 1 from public.audit_log where action = 'process_replaced'") == []


def test_a_first_heartbeat_whose_answer_was_lost_may_be_said_again(agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("first", 1, new=True))
    assert agent.can("vps_heartbeat", beat("first", 2, new=True))["lease_ms"] == 15000


@pytest.mark.covers("R11")
def test_a_clone_takes_over_only_when_the_lease_of_the_one_before_is_over(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("original", 1, new=True))
    farm.clear_broadcasts()
    waiting = agent.can("vps_heartbeat", beat("clone", 1, machine="m2", new=True))
    assert (waiting["lease_ms"], waiting["executions"]) == (0, [])
    assert farm.sent(f"vps:{agent.vps_id}", "assignments"), "the original is not rung"
    message = agent.cannot("vps_heartbeat", beat("original", 2), "TC110")
    assert "identity" in message or "another process" in message
    assert agent.can("vps_heartbeat", beat("clone", 2, machine="m2"))["lease_ms"] == 0
    farm.rows("update public.vps_instances set process_begins_at = now() - interval '1 s' where true")
    assert agent.can("vps_heartbeat", beat("clone", 3, machine="m2"))["lease_ms"] == 15000
    assert farm.row("select count(*) from public.audit_log where action = 'process_replaced'")["count"] == 1


def test_a_third_machine_waits_for_the_second_as_well(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("original", 1, new=True))
    agent.can("vps_heartbeat", beat("clone", 1, machine="m2", new=True))
    agent.can("vps_heartbeat", beat("clone", 2, machine="m2"))
    assert agent.can("vps_heartbeat", beat("another", 1, machine="m3", new=True))["lease_ms"] == 0
    row = farm.vps(agent)
    assert row["process_begins_at"] > row["process_since"]


def test_a_restarted_clone_goes_on_waiting(agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("original", 1, new=True))
    agent.can("vps_heartbeat", beat("clone", 1, machine="m2", new=True))
    assert agent.can("vps_heartbeat", beat("clone restarted", 1, machine="m2", new=True))["lease_ms"] == 0


def test_a_copy_of_a_running_process_is_noticed_by_its_number(agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("both", 1, new=True))
    agent.can("vps_heartbeat", beat("both", 2))
    agent.cannot("vps_heartbeat", beat("both", 2), "TC110")
    agent.can("vps_heartbeat", beat("both", 3))


def test_who_was_refused_comes_back_when_the_other_one_has_gone(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("original", 1, new=True))
    agent.can("vps_heartbeat", beat("clone", 1, machine="m2", new=True))
    agent.cannot("vps_heartbeat", beat("original", 2), "TC110")
    farm.lose_lease(agent)
    assert agent.can("vps_heartbeat", beat("original", 3))["lease_ms"] == 15000
    agent.cannot("vps_heartbeat", beat("clone", 2, machine="m2"), "TC110")


@pytest.mark.parametrize("broken", [{"id": 5, "beat": 1}, {"id": "x", "beat": "soon"}, {"id": "x" * 65, "beat": 1}])
def test_a_process_that_is_none_is_refused(agent: Actor, broken: dict[str, object]) -> None:
    agent.cannot("vps_heartbeat", {"process": broken}, "TC001")


# -- what a heartbeat says of an account without naming a session ---------------------------------------------------


def says(farm: Farm, account: UUID, status: str, session: int | None) -> dict[str, Any]:
    return {"accounts": [{"account_id": str(account), "session": session, "status": status, "error": None}]}


def status(farm: Farm, account: UUID) -> str:
    return str(farm.row("select status from public.trading_accounts where id = %s", (account,))["status"])


def test_what_was_said_before_a_session_was_opened_does_not_undo_it(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("first", 1, new=True))
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    agent.can("vps_heartbeat", beat("first", 2) | says(farm, account, "connecting", None))
    assert status(farm, account) == "connected"
    agent.can("vps_heartbeat", beat("first", 3) | says(farm, account, "disconnected", session - 1))
    assert status(farm, account) == "connected"
    agent.can("vps_heartbeat", beat("first", 4) | says(farm, account, "disconnected", session))
    assert status(farm, account) == "disconnected"


def test_a_restarted_agent_may_say_that_the_broker_refuses_the_login(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat("first", 1, new=True))
    account = farm.account(farm.user())
    farm.session(agent, account)
    agent.can("vps_heartbeat", beat("second", 1, new=True) | says(farm, account, "halted", None))
    assert status(farm, account) == "halted"


# -- trouble that a person has to mend -------------------------------------------------------------------------------


def trouble(account: UUID, session: int, error: str | None, state: str = "degraded") -> dict[str, Any]:
    return {"accounts": [{"account_id": str(account), "session": session, "status": state, "error": error}]}


@pytest.mark.covers("X10")
def test_an_account_that_may_not_trade_is_one_alert_however_often_it_is_said(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", {})
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    for _ in range(3):
        agent.can("vps_heartbeat", trouble(account, session, "autotrading_off: switched off"))
    assert status(farm, account) == "degraded"
    [alert] = farm.rows("select kind, reason, severity, times, message from public.alerts")
    assert (alert["kind"], alert["reason"], alert["severity"], alert["times"]) == (
        "account",
        "autotrading_off",
        "critical",
        1,
    )
    assert "switched off" in alert["message"]
    agent.can("vps_heartbeat", trouble(account, session, None, "connected"))
    assert status(farm, account) == "connected"
    agent.can("vps_heartbeat", trouble(account, session, "autotrading_off: switched off"))
    assert [row["times"] for row in farm.rows("select times from public.alerts")] == [2]


def test_what_mends_itself_is_no_alert(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", {})
    account = farm.account(farm.user())
    session = farm.session(agent, account)
    agent.can("vps_heartbeat", trouble(account, session, "the database does not answer"))
    agent.can("vps_heartbeat", trouble(account, session, "connection lost", "disconnected"))
    assert farm.rows("select 1 from public.alerts") == []


@pytest.mark.covers("R7")
def test_another_account_in_the_terminal_is_an_alert(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", {})
    account = farm.account(farm.user())
    agent.can(
        "vps_heartbeat", trouble(account, 0, "account_mismatch: the terminal is logged in to another account", "halted")
    )
    assert [row["reason"] for row in farm.rows("select reason from public.alerts")] == ["account_mismatch"]
