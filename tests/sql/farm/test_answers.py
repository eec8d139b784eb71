"""Protocol versions, answers that are not worked through, accounts that a VPS cannot read."""

from uuid import UUID

import pytest
from api_actors import Actor, Farm, Json, Row


def beat(number: int, *, name: str = "p", new: bool = False, through: object = None) -> Json:
    return {"process": {"id": name, "machine": "m", "beat": number, "new": new}, "worked_through": through}


def age(farm: Farm, agent: Actor, seconds: float) -> None:
    """Everything that was said between the VPS and the database is `seconds` older."""
    farm.rows(
        "update public.vps_instances set worked_at = worked_at - s.by, process_since = process_since - s.by,"
        " created_at = created_at - s.by, answer_id = answer_id - %s * 1000000"
        " from (select make_interval(secs => %s) as by) s where id = %s",
        (int(seconds), seconds, agent.vps_id),
    )


def of(account: UUID, session: int | None, status: str, **more: object) -> Json:
    return {"accounts": [{"account_id": account, "session": session, "status": status, "error": None} | more]}


def seen(farm: Farm, account: UUID) -> Row:
    return farm.row("select status, status_reason, revision from public.trading_accounts where id = %s", (account,))


@pytest.fixture
def agent(farm: Farm) -> Actor:
    return farm.agent("a", beating=False)


@pytest.mark.parametrize("version", [1, None, "1"])
def test_an_agent_of_an_older_protocol_is_told_to_update(farm: Farm, agent: Actor, version: object) -> None:
    message = agent.cannot("vps_heartbeat", {"protocol_version": version}, "TC111")
    assert "update the agent" in message
    assert farm.vps(agent)["status"] == "enrolled"


@pytest.mark.parametrize("version", [2, 3, "2", 1_000_000])
def test_a_newer_agent_learns_the_version_of_the_database(agent: Actor, version: object) -> None:
    assert agent.can("vps_heartbeat", {"protocol_version": version})["protocol_version"] == 2


@pytest.mark.parametrize("version", [0, -1, 1_000_001, "two", 2.5, 10**30, [], {}])
def test_a_senseless_version_is_refused_by_name(agent: Actor, version: object) -> None:
    assert "protocol_version" in agent.cannot("vps_heartbeat", {"protocol_version": version}, "TC001")


def test_answers_have_growing_numbers(agent: Actor) -> None:
    ids = [int(agent.can("vps_heartbeat", {})["answer_id"]) for _ in range(5)]
    assert ids == sorted(set(ids))


def test_after_the_clock_was_set_back_answers_are_numbered_by_the_new_time(farm: Farm, agent: Actor) -> None:
    before = agent.can("vps_heartbeat", beat(1, new=True))
    farm.rows("update public.vps_instances set answer_id = answer_id + 3600000000 where true")
    answer = agent.can("vps_heartbeat", beat(2, through=before["answer_id"]))
    assert answer["lease_ms"] == 15000
    assert int(answer["answer_id"]) < int(before["answer_id"]) + 600_000_000


def test_an_agent_that_works_its_answers_through_keeps_its_lease(farm: Farm, agent: Actor) -> None:
    last = agent.can("vps_heartbeat", beat(1, new=True))
    for number in range(2, 6):
        age(farm, agent, 10)
        last = agent.can("vps_heartbeat", beat(number, through=int(last["answer_id"]) - 10_000_000))
        assert last["lease_ms"] == 15000


@pytest.mark.parametrize("through", [None, "last"])
def test_a_heartbeat_that_works_nothing_through_renews_nothing(farm: Farm, agent: Actor, through: str | None) -> None:
    account = farm.account(farm.user())
    first = agent.can("vps_heartbeat", beat(1, new=True))
    named = None if through is None else int(first["answer_id"])
    age(farm, agent, 14)
    named = named and named - 14_000_000
    assert agent.can("vps_heartbeat", beat(2, through=named))["lease_ms"] == 15000
    age(farm, agent, 2)
    named = named and named - 2_000_000
    before = farm.vps(agent)["lease_expires_at"]
    answer = agent.can("vps_heartbeat", beat(3, through=named) | of(account, None, "connecting"))
    assert (answer["lease_ms"], answer["executions"]) == (0, [])
    assert farm.vps(agent)["lease_expires_at"] == before
    alerts = farm.operator().sees("select vps_id, kind, reason, severity from public.alerts")
    assert alerts == [
        {"vps_id": agent.vps_id, "kind": "vps", "reason": "answers_not_worked_through", "severity": "critical"}
    ]
    # when its lease ends it is offline however often it is heard of, and its accounts move
    spare = farm.agent("spare")
    farm.lose_lease(agent)
    agent.can("vps_heartbeat", beat(4, through=named))
    farm.maintain()
    assert farm.vps(agent)["status"] == "offline"
    assert farm.row("select vps_id from public.account_vps_assignments") == {"vps_id": spare.vps_id}
    answer = agent.can("vps_heartbeat", beat(5, through=named))
    assert (answer["status"], answer["lease_ms"]) == ("offline", 0)
    # the first answer that is worked through ends it
    answer = agent.can("vps_heartbeat", beat(6, through=answer["answer_id"]))
    assert (answer["status"], answer["lease_ms"]) == ("online", 15000)


def test_processes_that_die_of_their_first_answer_get_no_lease_each(farm: Farm, agent: Actor) -> None:
    agent.can("vps_heartbeat", beat(1, name="0", new=True))
    for name in "12":
        age(farm, agent, 6)
        assert agent.can("vps_heartbeat", beat(1, name=name, new=True))["lease_ms"] == 15000, name
    age(farm, agent, 6)
    answer = agent.can("vps_heartbeat", beat(1, name="3", new=True))
    assert answer["lease_ms"] == 0
    assert agent.can("vps_heartbeat", beat(2, name="3", through=answer["answer_id"]))["lease_ms"] == 15000
    # one that could read its answers has a successor with time of its own
    age(farm, agent, 60)
    assert agent.can("vps_heartbeat", beat(1, name="4", new=True))["lease_ms"] == 15000


@pytest.mark.parametrize("never", [0, 1, 9_223_372_036_854_775_807, "later", "of the process before"])
def test_an_answer_that_was_never_given_to_this_process_is_no_answer(farm: Farm, agent: Actor, never: object) -> None:
    old = agent.can("vps_heartbeat", beat(1, name="old", new=True))
    agent.can("vps_heartbeat", beat(1, name="new", new=True))
    farm.rows("update public.vps_instances set worked_at = worked_at - interval '16 s' where true")
    last = farm.vps(agent)["answer_id"]
    through = {"later": last + 1, "of the process before": old["answer_id"]}.get(str(never), never)
    assert agent.can("vps_heartbeat", beat(2, name="new", through=through))["lease_ms"] == 0


@pytest.mark.parametrize("broken", ["x", "1.5", -1, 2**63, [], {}])
def test_a_senseless_answer_number_is_refused_by_name(agent: Actor, broken: object) -> None:
    assert "worked_through" in agent.cannot("vps_heartbeat", {"worked_through": broken}, "TC001")


# -- what one VPS cannot read ------------------------------------------------------------------------------


def test_an_account_that_cannot_be_read_is_released_and_no_other(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    good, bad = farm.account(user), farm.account(user)
    session = farm.session(agent, bad)
    farm.session(agent, good)
    answer = agent.can("vps_heartbeat", {"unreadable": [bad]} | of(bad, session, "connected"))
    assert [entry["account_id"] for entry in answer["assignments"]] == [str(good)]
    assert answer["lease_ms"] == 15000
    assert seen(farm, good)["status"] == "connected"
    for _ in range(2):
        status = seen(farm, bad)
        assert (status["status"], status["status_reason"].split(":")[0]) == ("disconnected", "unreadable_assignment")
        # what its agent still says while it lets go does not hide why, and nobody is given it again at once
        answer = agent.can("vps_heartbeat", of(bad, session, "disconnected"))
        farm.maintain()
        assert [entry["account_id"] for entry in answer["assignments"]] == [str(good)]
    assert user.sees("select reason, times from public.alerts") == [{"reason": "unreadable_assignment", "times": 1}]


def test_a_released_account_is_placed_on_another_vps(farm: Farm) -> None:
    agent, spare = farm.agent("a"), farm.agent("b", beating=False)
    account = farm.account(farm.user())
    spare.can("vps_heartbeat", {})
    agent.can("vps_heartbeat", {"unreadable": [account]})
    assert farm.maintain()["moved"] == 1
    assert farm.assignment(account)["vps_id"] == spare.vps_id
    assert farm.maintain()["moved"] == 0
    spare.can("vps_heartbeat", {"unreadable": [account]})
    assert farm.maintain()["moved"] == 0, "it must not go to and fro"


@pytest.mark.parametrize("end", ["time", "settings", "password", "restart"])
def test_a_release_ends(farm: Farm, end: str) -> None:
    agent, user = farm.agent("a", beating=False), farm.user()
    account = farm.account(user)
    agent.can("vps_heartbeat", beat(1, new=True))
    agent.can("vps_heartbeat", beat(2))
    farm.maintain()
    assert agent.can("vps_heartbeat", beat(3) | {"unreadable": [account]})["assignments"] == []
    match end:
        case "time":
            farm.rows("update private.releases set released_at = released_at - interval '301 s' where true")
            farm.rows("update public.vps_instances set process_since = process_since - interval '600 s' where true")
        case "settings":
            user.can("update_account", {"account_id": account, "settings": {"a": 1}})
        case "password":
            user.can("update_account", {"account_id": account, "password": "new"})
        case _:
            agent.can("vps_heartbeat", beat(1, name="restarted", new=True))
    number, name = (2, "restarted") if end == "restart" else (4, "p")
    assert len(agent.can("vps_heartbeat", beat(number, name=name))["assignments"]) == 1
    if end in ("settings", "password"):
        assert seen(farm, account)["status_reason"] is None


def test_nobody_releases_what_is_not_his(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    other = farm.agent("b")
    other.can("vps_heartbeat", {"unreadable": [account, "no id", 5, None, {}, "00000000-0000-0000-0000-000000000000"]})
    assert len(agent.can("vps_heartbeat", {"unreadable": "no list"})["assignments"]) == 1
    assert farm.rows("select 1 from private.releases") == []


# -- one revision of settings and password -------------------------------------------------------------------


def test_the_revision_grows_with_settings_and_password_and_stands_in_the_assignment(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    account = farm.account(user)
    changes: list[tuple[Json, int]] = [
        ({"name": "another"}, 1), ({"settings": {"a": 1}}, 2), ({"settings": {"a": 1}}, 2), ({"password": "x"}, 3),
        ({"password": "y", "settings": {}}, 4), ({"settings": None}, 4),
    ]  # fmt: skip
    for change, revision in changes:
        farm.clear_broadcasts()
        user.can("update_account", {"account_id": account} | change)
        (assignment,) = agent.can("vps_heartbeat", {})["assignments"]
        assert assignment["revision"] == revision, change
        assert farm.sent(f"vps:{agent.vps_id}", "assignments"), "its agent is not rung"
    credentials = agent.can("account_credentials", {"account_id": account, "epoch": 1})
    assert (credentials["password"], credentials["settings"], credentials["revision"]) == ("y", {}, 4)


def test_a_corrected_password_clears_the_old_error_for_good(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    account = farm.account(user)
    agent.can("vps_heartbeat", of(account, None, "halted", error="the password is refused", revision=1))
    assert seen(farm, account)["status"] == "halted"
    user.can("update_account", {"account_id": account, "name": "only a name"})
    assert seen(farm, account)["status"] == "halted"
    user.can("update_account", {"account_id": account, "password": "right"})
    assert seen(farm, account) == {"status": "connecting", "status_reason": None, "revision": 2}
    # the agent has not heard of it yet
    agent.can("vps_heartbeat", of(account, None, "halted", error="the password is refused", revision=1))
    assert seen(farm, account)["status"] == "connecting"
    agent.can("vps_heartbeat", of(account, None, "halted", error="still refused", revision=2))
    assert seen(farm, account)["status_reason"] == "still refused"


def test_after_a_silence_nobody_is_alerted(farm: Farm, agent: Actor) -> None:
    last = agent.can("vps_heartbeat", beat(1, new=True))
    age(farm, agent, 600)
    farm.rows("update public.vps_instances set last_heartbeat_at = last_heartbeat_at - interval '600 s' where true")
    answer = agent.can("vps_heartbeat", beat(2, through=int(last["answer_id"]) - 600_000_000))
    assert answer["lease_ms"] == 0
    assert agent.can("vps_heartbeat", beat(3, through=answer["answer_id"]))["lease_ms"] == 15000
    assert farm.rows("select 1 from public.alerts") == []
