"""Who cannot do the work does not hold the lease: unfit agents, accounts that a VPS cannot work, the database's own
clock."""

from datetime import timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from api_actors import Actor, Farm, Json

HARD = ("journal_unwritable", "loop_stalled")
SOFT = ("low_disk", "low_memory", "clock_drift")

pytestmark = pytest.mark.own_database


def beat(agent: Actor, **figures: object) -> Json:
    return agent.can("vps_heartbeat", {"protocol_version": 2, **figures})


def vps_alerts(farm: Farm) -> list[tuple[str, str, str]]:
    rows = farm.rows(
        "select v.name, l.reason, l.severity from public.alerts l join public.vps_instances v on v.id = l.vps_id"
        " order by l.id"
    )
    return [(row["name"], row["reason"], row["severity"]) for row in rows]


def account(farm: Farm, account_id: UUID) -> Json:
    return farm.row("select status, status_reason from public.trading_accounts where id = %s", (account_id,))


def queue_close(farm: Farm, user: Actor, account_id: UUID) -> None:
    farm.rows(
        "insert into public.trade_execution_queue (step_id, lane, user_id, account_id, action, priority, symbol,"
        " side, lots,"
        " send_before, queued_at, updated_at)"
        " values (1, '1', %s, %s, 'close', 10, 'EURUSD', 'buy', 1, now() + interval '4 seconds', now(), now())",
        (user.user_id, account_id),
    )


@pytest.mark.parametrize("reason", HARD + SOFT)
def test_an_unfit_agent_is_answered_but_gets_no_lease_and_no_work(farm: Farm, reason: str) -> None:
    a, user = farm.agent("a"), farm.user()
    held = farm.account(user)
    farm.session(a, held)
    queue_close(farm, user, held)
    farm.agent("b")
    lease = farm.vps(a)["lease_expires_at"]
    answer = beat(a, unfit=reason)
    assert (answer["lease_ms"], answer["executions"]) == (0, [])
    assert [each["account_id"] for each in answer["assignments"]] == [str(held)], (
        "until its lease ends it keeps what it has"
    )
    row = farm.vps(a)
    assert (row["lease_expires_at"], row["unfit"], row["unfit_works"]) == (lease, reason, False)
    assert vps_alerts(farm) == [("a", reason, "critical")]
    beat(a, unfit=reason)
    assert farm.row("select times from public.alerts")["times"] == 1, "told once, not with every heartbeat"


@pytest.mark.parametrize("reason", HARD + SOFT)
def test_the_accounts_of_an_unfit_agent_move_when_its_lease_ends(farm: Farm, reason: str) -> None:
    a = farm.agent("a")
    held = farm.account(farm.user())
    session = farm.session(a, held)
    b = farm.agent("b")
    told = [{"account_id": held, "session": session, "status": "connected", "error": None}]
    beat(a, unfit=reason, accounts=told)
    assert farm.maintain()["moved"] == 0
    farm.lose_lease(a)
    beat(a, unfit=reason, accounts=told)
    assert farm.maintain()["moved"] == 1
    assert farm.assignment(held)["vps_id"] == b.vps_id
    assert farm.vps(a)["status"] == "offline"
    assert beat(a, unfit=reason)["assignments"] == []
    assert beat(a)["lease_ms"] == 15_000, "fit again"
    assert (farm.vps(a)["status"], farm.vps(a)["unfit"], farm.vps(a)["unfit_since"]) == ("online", None, None)


def test_an_unfit_agent_is_given_no_account(farm: Farm) -> None:
    a = farm.agent("a")
    beat(a, unfit="low_disk")
    assert farm.vps(a)["unfit_works"], "it has nothing to give up for"
    new = farm.account(farm.user())
    assert farm.rows("select from public.account_vps_assignments") == []
    farm.service.cannot("assign_account", {"account_id": new, "vps_id": a.vps_id}, "TC207")
    assert farm.maintain()["moved"] == 0
    beat(a)
    assert farm.maintain()["moved"] == 1


@pytest.mark.parametrize("reason", HARD)
def test_who_cannot_trade_gives_up_the_lease_even_if_nobody_takes_over(farm: Farm, reason: str) -> None:
    a = farm.agent("a")
    held = farm.account(farm.user())
    session = farm.session(a, held)
    assert beat(a, unfit=reason)["lease_ms"] == 0
    farm.lose_lease(a)
    farm.maintain()
    told = [{"account_id": held, "session": session, "status": "connected", "error": None}]
    beat(a, unfit=reason, accounts=told)
    now = account(farm, held)
    assert now["status"] == "disconnected"
    assert now["status_reason"].startswith(f"{reason}: ")
    assert farm.row("select seen_at from public.trading_accounts")["seen_at"] is None, (
        "nobody who may tell of it has seen it"
    )
    alert = farm.row("select kind, reason, severity, message from public.alerts where account_id = %s", (held,))
    assert (alert["kind"], alert["reason"], alert["severity"]) == ("account", reason, "critical")
    assert "no other VPS" in alert["message"]
    farm.maintain()
    assert farm.row("select times from public.alerts where account_id = %s", (held,))["times"] == 1
    beat(a, accounts=told)
    assert account(farm, held) == {"status": "connected", "status_reason": None}


@pytest.mark.parametrize("reason", SOFT)
def test_with_little_left_it_goes_on_where_nobody_takes_over(farm: Farm, reason: str) -> None:
    a, user = farm.agent("a"), farm.user()
    held = farm.account(user)
    farm.session(a, held)
    queue_close(farm, user, held)
    farm.agent("other", platforms=["mt5"])
    full = farm.agent("full", capacity=1)
    farm.service.can("assign_account", {"account_id": farm.account(user), "vps_id": full.vps_id})
    ill = farm.agent("ill")
    beat(ill, unfit="low_memory")
    farm.agent("drained", beating=True)
    farm.rows("update public.vps_instances set status = 'draining' where name = 'drained'")
    farm.lose_lease(farm.agent("lost"))
    answer = beat(a, unfit=reason)
    assert answer["lease_ms"] == 15_000
    assert len(answer["executions"]) == 1
    assert farm.vps(a)["unfit_works"]
    assert ("a", reason, "warning") in vps_alerts(farm)
    farm.agent("spare")
    assert beat(a, unfit=reason)["lease_ms"] == 0, "now another fit VPS can take it"
    assert vps_alerts(farm)[-1] == ("a", reason, "critical") or ("a", reason, "critical") in vps_alerts(farm)


def test_what_the_others_cannot_take_stays_with_an_agent_that_can_go_on(farm: Farm) -> None:
    a, user = farm.agent("a"), farm.user()
    accounts = [farm.account(user) for _ in range(3)]
    for one in accounts:
        farm.session(a, one)
    b = farm.agent("b", capacity=2)
    assert beat(a, unfit="low_disk")["lease_ms"] == 0
    farm.lose_lease(a)
    assert farm.maintain()["moved"] == 2
    answer = beat(a, unfit="low_disk")
    assert answer["lease_ms"] == 15_000
    [left] = answer["assignments"]
    assert farm.vps(a)["status"] == "online"
    assert sorted(str(farm.assignment(one)["vps_id"]) for one in accounts) == sorted(
        [str(a.vps_id), *[str(b.vps_id)] * 2]
    )
    assert farm.maintain()["moved"] == 0
    assert farm.assignment(UUID(left["account_id"]))["vps_id"] == a.vps_id


def test_a_lost_vps_that_nobody_stands_in_for_shows_on_its_accounts(farm: Farm) -> None:
    a = farm.agent("a")
    held, pending = farm.account(farm.user()), farm.account(farm.user())
    session = farm.session(a, held)
    farm.lose_lease(a)
    farm.maintain()
    for one in (held, pending):
        assert account(farm, one)["status"] == "disconnected"
        assert account(farm, one)["status_reason"].startswith("vps_lost: ")
    beat(a, accounts=[{"account_id": held, "session": session, "status": "connected", "error": None}])
    assert account(farm, held)["status"] == "connected"


def test_after_a_gap_of_the_database_an_unfit_agent_gets_no_lease_for_free(farm: Farm) -> None:
    a = farm.agent("a")
    farm.session(a, farm.account(farm.user()))
    beat(a, unfit="journal_unwritable")
    farm.lose_lease(a, 120)
    farm.maintain(gap=120)
    assert farm.row("select lease_expires_at < now() as over from public.vps_instances")["over"]


@pytest.mark.parametrize("senseless", ["tired", "Low_disk", "lost", 7, True, {}, [], "x" * 50, "x" * 1_000_000])
def test_a_reason_that_is_none_is_refused_by_name(farm: Farm, senseless: object) -> None:
    a = farm.agent("a")
    assert "unfit" in a.cannot("vps_heartbeat", {"protocol_version": 2, "unfit": senseless}, "TC001")
    assert farm.vps(a)["unfit"] is None


# -- the database's own clock -----------------------------------------------------------------------------------


def test_where_most_clocks_differ_it_is_the_databases_and_nobody_gives_up_a_lease(farm: Farm) -> None:
    agents = [farm.agent(name) for name in "abc"]
    farm.session(agents[0], farm.account(farm.user()))
    beat(agents[1], offset_ms="1001")
    assert beat(agents[0], offset_ms="1000", unfit="clock_drift")["lease_ms"] == 0, "one of three"
    assert beat(agents[0], offset_ms="-1001", unfit="clock_drift")["lease_ms"] == 15_000, "two of three"
    assert beat(agents[0], offset_ms="-1001", unfit="journal_unwritable")["lease_ms"] == 0, (
        "that has nothing to do with clocks"
    )
    farm.maintain()
    farm.maintain()
    alert = farm.row(
        "select kind, reason, severity, times from public.alerts where vps_id is null and account_id is null"
    )
    assert alert == {"kind": "database", "reason": "database_clock", "severity": "critical", "times": 1}


def test_two_vpses_are_too_few_to_blame_the_database(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    farm.session(a, farm.account(farm.user()))
    beat(b, offset_ms="5000")
    assert beat(a, offset_ms="5000", unfit="clock_drift")["lease_ms"] == 0


def test_only_what_was_reported_within_half_a_minute_counts(farm: Farm) -> None:
    agents = [farm.agent(name) for name in "abc"]
    farm.session(agents[0], farm.account(farm.user()))
    beat(agents[1], offset_ms="5000")
    farm.rows("update public.vps_instances set last_heartbeat_at = now() - interval '31 seconds' where name = 'b'")
    assert beat(agents[0], offset_ms="5000", unfit="clock_drift")["lease_ms"] == 0


def test_a_clock_that_was_set_back_hides_no_lost_vps(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b", beating=False)
    held = farm.account(farm.user())
    farm.session(a, held)
    farm.rows("update public.vps_instances set lease_expires_at = now() + interval '1 hour' where name = 'a'")
    farm.rows("update private.clockwork set last_run_at = now() + interval '1 hour' where true")
    beat(b)
    lease = farm.row("select lease_expires_at - now() as left from public.vps_instances where name = 'a'")["left"]
    assert lease < timedelta(seconds=16)
    farm.lose_lease(a)
    farm.rows("update private.clockwork set last_run_at = now() - interval '5 seconds' where true")
    beat(b)
    assert farm.assignment(held)["vps_id"] == b.vps_id


def test_a_clock_that_was_set_forward_moves_no_account(farm: Farm) -> None:
    agents = [farm.agent(name) for name in "abc"]
    held = [farm.account(farm.user()) for _ in range(3)]
    before = [farm.assignment(one) for one in held]
    for agent in agents:
        farm.lose_lease(agent, 3_600)
    farm.rows("update private.clockwork set last_run_at = now() - interval '1 hour' where true")
    beat(agents[0])
    assert [farm.assignment(one) for one in held] == before
    assert {farm.vps(agent)["status"] for agent in agents} == {"online"}


# -- one account ------------------------------------------------------------------------------------------------


def unfit_entry(held: UUID, unfit: object, error: str | None, **more: object) -> Json:
    return {"account_id": held, "session": None, "status": "disconnected", "error": error, "unfit": unfit, **more}


@pytest.mark.parametrize("reason", ["platform_missing", "credentials_unreadable"])
def test_an_account_that_one_vps_cannot_work_is_placed_elsewhere_and_the_others_stay(farm: Farm, reason: str) -> None:
    a, user = farm.agent("a"), farm.user()
    ill, well = farm.account(user), farm.account(user)
    b = farm.agent("b")
    answer = beat(a, accounts=[unfit_entry(ill, reason, f"{reason}: there is no library")])
    assert answer["lease_ms"] == 15_000
    assert [each["account_id"] for each in answer["assignments"]] == [str(well)]
    assert account(farm, ill) == {"status": "disconnected", "status_reason": f"{reason}: there is no library"}
    assert farm.maintain()["moved"] == 1
    assert farm.assignment(ill)["vps_id"] == b.vps_id
    assert farm.assignment(well)["vps_id"] == a.vps_id
    alert = farm.row("select reason, severity from public.alerts where account_id = %s", (ill,))
    assert alert == {"reason": reason, "severity": "critical"}
    beat(b, accounts=[unfit_entry(ill, reason, None)])
    assert farm.maintain()["moved"] == 0, "not to the one that could not work it a moment ago"
    assert farm.assignment(ill)["vps_id"] == b.vps_id
    assert account(farm, ill)["status_reason"].startswith(f"{reason}: ")


def test_without_another_vps_the_account_waits_with_its_reason(farm: Farm) -> None:
    a = farm.agent("a")
    ill = farm.account(farm.user())
    beat(a, accounts=[unfit_entry(ill, "platform_missing", "platform_missing: no library")])
    assert farm.maintain()["moved"] == 0
    assert account(farm, ill) == {"status": "disconnected", "status_reason": "platform_missing: no library"}
    assert beat(a)["assignments"] == []


@pytest.mark.parametrize("unfit", [None, "", "tired", "journal_unwritable"])
def test_an_entry_without_a_known_reason_releases_nothing(farm: Farm, unfit: str | None) -> None:
    a = farm.agent("a")
    held = farm.account(farm.user())
    assert len(beat(a, accounts=[unfit_entry(held, unfit, "broken")])["assignments"]) == 1


def test_nobody_releases_what_is_not_his_or_what_was_mended_meanwhile(farm: Farm) -> None:
    a, user = farm.agent("a"), farm.user()
    held = farm.account(user)
    b = farm.agent("b")
    beat(b, accounts=[unfit_entry(held, "platform_missing", None), unfit_entry(uuid4(), "platform_missing", None)])
    user.can("update_account", {"account_id": held, "password": "another"})
    beat(a, accounts=[unfit_entry(held, "credentials_unreadable", None, revision=1)])
    assert farm.rows("select from private.releases") == []
    assert farm.assignment(held)["vps_id"] == a.vps_id


# -- a broker that cannot be reached --------------------------------------------------------------------------------

UNREACHABLE = "broker_unreachable: nobody answers"


def worked(farm: Farm, agent: Actor, account_id: UUID, seen: str = "0 s", opened: str = "10 minutes") -> None:
    """The agent has had the account connected since then, and until `seen` ago."""
    farm.rows("select private.place_account(%s, %s)", (account_id, agent.vps_id))
    farm.session(agent, account_id)
    farm.rows(
        "update public.trading_accounts set session_opened_at = now() - %s::interval, seen_at = now() - %s::interval"
        " where id = %s",
        (opened, seen, account_id),
    )


def cut_off(farm: Farm, agent: Actor, *accounts: UUID) -> Json:
    said = [
        unfit_entry(each, "broker_unreachable", UNREACHABLE)
        | {"session": farm.row("select session from public.trading_accounts where id = %s", (each,))["session"]}
        for each in accounts
    ]
    return beat(agent, accounts=said)


def released(farm: Farm) -> list[UUID]:
    return [row["account_id"] for row in farm.rows("select account_id from private.releases order by released_at")]


def test_where_others_reach_the_broker_the_account_moves_and_says_why(farm: Farm) -> None:
    a, b, user = farm.agent("a"), farm.agent("b"), farm.user()
    ill, other = farm.account(user), farm.account(user)
    worked(farm, a, ill, seen="40 s")
    worked(farm, b, other)
    answer = cut_off(farm, a, ill)
    assert (answer["lease_ms"], answer["assignments"]) == (15_000, [])
    assert account(farm, ill) == {"status": "disconnected", "status_reason": UNREACHABLE}
    alert = farm.row("select kind, reason, severity from public.alerts where account_id = %s", (ill,))
    assert alert == {"kind": "account", "reason": "broker_unreachable", "severity": "critical"}
    before = farm.assignment(ill)
    assert farm.maintain()["moved"] == 1
    after = farm.assignment(ill)
    assert (after["vps_id"], after["epoch"]) == (b.vps_id, before["epoch"] + 1)
    assert after["begins_at"] > before["begins_at"], "the lease of the old VPS is waited for"


def test_while_nobody_anywhere_reaches_the_broker_everybody_stays(farm: Farm) -> None:
    a, b, user = farm.agent("a"), farm.agent("b"), farm.user()
    farm.agent("spare")
    one, two = farm.account(user), farm.account(user)
    worked(farm, a, one, seen="40 s")
    worked(farm, b, two, seen="40 s")
    beat(b, accounts=[{"account_id": two, "session": 1, "status": "disconnected", "error": "lost"}])
    assert len(cut_off(farm, a, one)["assignments"]) == 1
    assert account(farm, one) == {"status": "disconnected", "status_reason": UNREACHABLE}
    assert len(cut_off(farm, b, two)["assignments"]) == 1
    assert released(farm) == []
    assert farm.maintain()["moved"] == 0


def test_who_was_quicker_to_reach_a_broker_that_came_back_makes_nobody_move(farm: Farm) -> None:
    a, b, user = farm.agent("a"), farm.agent("b"), farm.user()
    one, two = farm.account(user), farm.account(user)
    worked(farm, a, one, seen="5 minutes")
    worked(farm, b, two, opened="60 s")
    cut_off(farm, a, one)
    assert released(farm) == []
    farm.rows("update public.trading_accounts set session_opened_at = now() - interval '91 s' where id = %s", (two,))
    cut_off(farm, a, one)
    assert released(farm) == [one], "no agent waits that long between two attempts"


@pytest.mark.parametrize("silent", ["its VPS is lost", "its login is refused", "another server"])
def test_who_says_nothing_of_the_broker_keeps_nobody(farm: Farm, silent: str) -> None:
    a, b, user = farm.agent("a"), farm.agent("b"), farm.user()
    farm.agent("spare")
    one, two = farm.account(user), farm.account(user)
    worked(farm, a, one, seen="40 s")
    worked(farm, b, two, seen="40 s")
    status = "halted" if silent == "its login is refused" else "disconnected"
    beat(b, accounts=[{"account_id": two, "session": 1, "status": status, "error": "no"}])
    if silent == "its VPS is lost":
        farm.lose_lease(b)
    elif silent == "another server":
        farm.rows("update public.trading_accounts set server = 'Another' where id = %s", (two,))
    cut_off(farm, a, one)
    assert released(farm) == [one]


def test_without_room_elsewhere_it_stays_is_tried_and_told_of_once(farm: Farm) -> None:
    a, user = farm.agent("a"), farm.user()
    accounts = [farm.account(user) for _ in range(3)]
    for each in accounts:
        worked(farm, a, each, seen="40 s")
    assert len(cut_off(farm, a, *accounts)["assignments"]) == 3
    assert len(cut_off(farm, a, *accounts)["assignments"]) == 3
    told = farm.rows("select reason, severity, times from public.alerts where account_id is not null")
    assert told == [{"reason": "broker_unreachable", "severity": "critical", "times": 1}] * 3
    farm.agent("spare", capacity=2)
    assert len(cut_off(farm, a, *accounts)["assignments"]) == 1, "as many as find a place"
    assert farm.maintain()["moved"] == 2
    assert len(cut_off(farm, a, *accounts)["assignments"]) == 1


def test_a_vps_releases_an_account_for_it_once_an_hour(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    one = farm.account(farm.user())
    places = [a, b, a, b]
    for here, there in pairwise(places):
        worked(farm, here, one, seen="40 s")
        farm.rows(
            "update private.releases set released_at = now() - interval '59 minutes' where vps_id = %s", (there.vps_id,)
        )
        cut_off(farm, here, one)
        farm.maintain()
    assert farm.assignment(one)["vps_id"] == a.vps_id, "it was on both and stays with the first"
    farm.rows("update private.releases set released_at = now() - interval '61 minutes'")
    cut_off(farm, a, one)
    farm.maintain()
    assert farm.assignment(one)["vps_id"] == b.vps_id
