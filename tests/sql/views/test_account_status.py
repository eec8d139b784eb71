"""`account_status` and `verdict`: what people see is true when it is read, whatever runs or does not run."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from api_actors import Actor, Farm


def status_of(actor: Actor, account: UUID) -> tuple[Any, ...]:
    (row,) = actor.sees("select status, reason, waits_for from public.account_status where account_id = %s", (account,))
    return tuple(row.values())


def beat(agent: Actor, account: UUID, session: int | None, status: str = "connected", error: str | None = None) -> None:
    agent.can(
        "vps_heartbeat",
        {"accounts": [{"account_id": account, "session": session, "status": status, "error": error}]},
    )


def snapshot(farm: Farm, agent: Actor, account: UUID, session: int) -> None:
    event = {
        "session": session, "seq": 1, "type": "snapshot", "positions": [], "unchanged_at": None,
        "detected_at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    epoch = farm.assignment(account)["epoch"]
    agent.can("queue_trade_copy", {"account_id": account, "epoch": epoch, "events": [event]})


@pytest.fixture
def owner(farm: Farm) -> Actor:
    return farm.user()


@pytest.fixture
def agent(farm: Farm) -> Actor:
    return farm.agent("home")


@pytest.fixture
def account(farm: Farm, owner: Actor, agent: Actor) -> UUID:
    """Connected, seen, its book read."""
    made = farm.account(owner, name="prop-1")
    session = farm.session(agent, made)
    snapshot(farm, agent, made, session)
    beat(agent, made, session)
    assert status_of(owner, made) == ("connected", None, None)
    assert owner.can("verdict", {})["tone"] == "ok"
    return made


def test_an_account_whose_lease_is_over_reads_as_disconnected_though_nothing_has_run(
    farm: Farm, owner: Actor, agent: Actor, account: UUID
) -> None:
    farm.lose_lease(agent)
    stored = farm.row("select status from public.trading_accounts")
    assert stored["status"] == "connected", "neither agent nor upkeep has written anything"
    status, reason, _ = status_of(owner, account)
    assert status == "disconnected"
    assert reason.startswith("vps_lost: its VPS sends no heartbeats")
    verdict = owner.can("verdict", {})
    assert verdict["tone"] == "bad"
    assert verdict["text"].startswith("prop-1 is disconnected: its VPS sends no heartbeats")
    assert verdict["findings"][0]["code"] == "not_connected"
    everything = farm.operator().can("verdict", {"all": True})
    assert [finding["code"] for finding in everything["findings"]] == ["vps_lost", "not_connected"]


@pytest.mark.usefixtures("account")
def test_the_alert_rows_are_written_by_the_next_upkeep(farm: Farm, owner: Actor, agent: Actor) -> None:
    farm.lose_lease(agent)
    farm.maintain()
    farm.maintain()
    assert [row["reason"] for row in owner.sees("select reason from public.alerts")] == ["vps_lost"]
    seen = farm.operator().sees("select vps_id, account_id is null as of_farm, times from public.alerts order by 2")
    assert [(row["vps_id"], row["of_farm"], row["times"]) for row in seen] == [
        (None, False, 1), (agent.vps_id, True, 1),
    ]  # fmt: skip


def test_a_lease_that_the_upkeep_extends_makes_nothing_green_again(
    farm: Farm, owner: Actor, agent: Actor, account: UUID
) -> None:
    """After a gap in its runs maintain() extends all leases, so that an outage of the database moves nothing."""
    farm.rows(
        "update public.vps_instances set lease_expires_at = now() - interval '1 s',"
        " last_heartbeat_at = now() - interval '16 s' where true"
    )
    farm.maintain(gap=10)
    assert farm.row("select lease_expires_at > clock_timestamp() as extended from public.vps_instances")["extended"]
    assert status_of(owner, account)[0] == "disconnected"
    assert owner.can("verdict", {})["tone"] == "bad"
    agent.can("vps_heartbeat", {})
    assert status_of(owner, account)[0] == "connected"


def test_an_unfit_agent_is_named_as_the_reason(farm: Farm, owner: Actor, agent: Actor, account: UUID) -> None:
    farm.lose_lease(agent)
    farm.rows("update public.vps_instances set unfit = 'journal_unwritable' where id = %s", (agent.vps_id,))
    assert "its agent cannot write its journal" in status_of(owner, account)[1]


@pytest.mark.parametrize("told", ["no session", "no snapshot", "never shown again", "another vps"])
def test_what_an_agent_claims_counts_only_with_a_session_and_a_book(
    farm: Farm, owner: Actor, agent: Actor, told: str
) -> None:
    account = farm.account(owner)
    if told == "no session":
        beat(agent, account, None)
    else:
        session = farm.session(agent, account)
        if told != "no snapshot":
            snapshot(farm, agent, account, session)
        beat(agent, account, session)
    if told == "never shown again":  # the lease is renewed, the account is left out
        farm.rows("update public.trading_accounts set seen_at = now() - interval '31 seconds' where true")
        agent.can("vps_heartbeat", {"accounts": []})
    elif told == "another vps":
        farm.rows(
            "update public.account_vps_assignments set vps_id = %s, epoch = epoch + 1 where account_id = %s",
            (farm.agent("other").vps_id, account),
        )
    assert farm.row("select status from public.trading_accounts")["status"] == "connected"
    status, reason, _ = status_of(owner, account)
    assert status == ("disconnected" if told == "never shown again" else "connecting")
    assert reason
    assert owner.can("verdict", {})["tone"] == ("bad" if told == "never shown again" else "warn")


def test_an_account_that_another_user_owns_now_is_never_green(
    farm: Farm, owner: Actor, agent: Actor, account: UUID
) -> None:
    farm.rows("update public.trading_accounts set claim = 'ended' where true")
    beat(agent, account, farm.row("select session from public.trading_accounts")["session"])
    assert status_of(owner, account)[0] == "halted"
    assert owner.can("verdict", {})["tone"] == "bad"


def test_an_agent_that_tries_again_and_again_is_disconnected_not_connecting(
    farm: Farm, owner: Actor, agent: Actor, account: UUID
) -> None:
    session = farm.row("select session from public.trading_accounts")["session"]
    beat(agent, account, session, "disconnected", "no answer")
    farm.rows("update public.connection_health_logs set at = now() - interval '40 s' where account_id is not null")
    farm.rows("update public.trading_accounts set seen_at = now() - interval '40 seconds' where true")
    beat(agent, account, session, "connecting", None)
    assert status_of(owner, account)[0] == "disconnected"
    farm.maintain()
    assert [row["reason"] for row in owner.sees("select reason from public.alerts")] == ["disconnected"]


def test_a_new_account_that_is_logging_in_is_not_disconnected(farm: Farm, owner: Actor, agent: Actor) -> None:
    account = farm.account(owner)
    beat(agent, account, None, "connecting")
    farm.rows("update public.trading_accounts set status_at = now() - interval '50 seconds' where true")
    assert status_of(owner, account)[0] == "connecting"


def test_pending_says_what_it_waits_for_and_is_never_green(farm: Farm, owner: Actor) -> None:
    account = farm.account(owner, name="prop-1", platform="mt5")
    assert status_of(owner, account)[2] == "every VPS that can run mt5 is offline"
    farm.rows("update public.vps_instances set status = 'retired', retired_at = now() where true")
    assert status_of(owner, account) == ("pending", None, "no VPS of this farm can run mt5")
    verdict = owner.can("verdict", {})
    assert (verdict["tone"], verdict["text"]) == ("warn", "prop-1 is pending: no VPS of this farm can run mt5")
    full = farm.agent("small", platforms=["mt5"], capacity=1)
    other = farm.account(owner, platform="mt5")
    assert status_of(owner, account) == ("pending", None, "its agent has not logged in yet")
    assert status_of(owner, other)[2] == "every VPS that can run mt5 is full"
    farm.rows("update public.vps_instances set unfit = 'low_disk' where id = %s", (full.vps_id,))
    assert status_of(owner, other)[2] == "every VPS that can run mt5 is unfit"


def test_a_platform_that_no_vps_names_is_refused_before_a_password_is_stored(farm: Farm, owner: Actor) -> None:
    request = {"platform": "mt5", "server": "Paper", "login": "1", "password": "swordfish"}
    before = farm.row("select count(*) as n from vault.secrets")
    assert "no VPS of this farm can run mt5" in owner.cannot("connect_account", request, "TC228")
    assert farm.rows("select id from public.trading_accounts") == []
    assert farm.row("select count(*) as n from vault.secrets") == before
    agent = farm.agent("a", platforms=["mt5"])
    farm.rows("update public.vps_instances set status = 'offline' where id = %s", (agent.vps_id,))
    assert owner.can("connect_account", request)["vps_id"] is None, "offline is in service"
    farm.rows("update public.vps_instances set status = 'retired', retired_at = now() where true")
    owner.cannot("connect_account", request | {"login": "2"}, "TC228")


def test_a_platform_that_needs_no_vps_is_taken_without_one(farm: Farm, owner: Actor) -> None:
    platforms = {"paper": {"password": True, "address": True}, "signal": {"password": False, "vps": False}}
    farm.operator().can("set_setting", {"key": "platforms", "value": platforms})
    farm.rows("insert into public.broker_servers (platform, server, title) values ('signal', 'Own', 'Own signals')")
    made = owner.can("connect_account", {"platform": "signal", "server": "Own", "login": "1"})
    assert status_of(owner, UUID(made["account_id"]))[0] == "connected"
    platforms["signal"]["vps"] = "no"  # type: ignore[assignment]
    farm.operator().cannot("set_setting", {"key": "platforms", "value": platforms}, "TC302")


@pytest.mark.usefixtures("account")
def test_everybody_sees_his_own_verdict_and_only_operators_that_of_all(farm: Farm, owner: Actor, agent: Actor) -> None:
    stranger = farm.user("stranger")
    assert stranger.can("verdict", {})["text"] == "No account is connected yet"
    farm.lose_lease(agent)
    assert stranger.can("verdict", {})["tone"] == "idle"
    assert stranger.sees("select * from public.account_status") == []
    stranger.cannot("verdict", {"all": True}, "TC107")
    owner.cannot("verdict", {"all": "yes"}, "TC001")
    owner.cannot("verdict", {"everything": True}, "TC301")


def test_a_database_clock_that_was_set_back_hides_no_silence(
    farm: Farm, owner: Actor, agent: Actor, account: UUID
) -> None:
    """What was stored before is an hour ahead: the next look replaces it, or an old equity and an old sight would count
    as fresh for an hour."""
    farm.rows(
        "update public.trading_accounts set seen_at = now() + interval '1 hour', funds_at = now() + interval '1 hour',"
        " balance = 1000, equity = 1000 where id = %s",
        (account,),
    )
    session = farm.row("select session from public.trading_accounts where id = %s", (account,))["session"]
    beat(agent, account, session)
    agent.can(
        "report_account_state",
        {
            "account_id": account, "epoch": farm.assignment(account)["epoch"], "session": session, "balance": "900",
            "equity": "800", "measured_at": datetime.now(UTC).isoformat(),
        },
    )  # fmt: skip
    stored = farm.row(
        "select equity, seen_at <= clock_timestamp() as seen, funds_at <= clock_timestamp() as measured"
        " from public.trading_accounts where id = %s", (account,),
    )  # fmt: skip
    assert (stored["equity"], stored["seen"], stored["measured"]) == (800, True, True)
