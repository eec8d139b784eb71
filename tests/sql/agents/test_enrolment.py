"""Enrolment: one token makes one VPS, and its secret is the agent's way back in."""

import hashlib
from threading import Thread

import psycopg
import pytest
from api_actors import Actor, Farm

SECRET = "a secret of many random bits"


def request(farm: Farm, token: str, name: str = "a", **more: object) -> dict[str, object]:
    return {
        "token": token, "name": name, "platforms": ["paper", "mt5"], "user_id": farm.user("agent").user_id,
        "secret_hash": hashlib.sha256(SECRET.encode()).hexdigest(),
    } | more  # fmt: skip


def test_a_token_makes_one_vps(farm: Farm) -> None:
    operator = farm.operator()
    token = operator.can("create_enrollment_token", {})["token"]
    assert farm.service.can("check_enrollment", {"token": token, "name": "a", "platforms": ["paper"]})["name"] == "a"
    enrolled = farm.service.can("enroll_vps", request(farm, token))
    assert farm.row("select name, platforms, status from public.vps_instances where id = %s",
                    (enrolled["vps_id"],)) == {
        "name": "a", "platforms": ["mt5", "paper"], "status": "enrolled",
    }  # fmt: skip
    assert "used" in farm.service.cannot("enroll_vps", request(farm, token, "b"), "TC210")
    (row,) = operator.sees("select used_at is not null as used, vps_id from public.enrollment_tokens")
    assert (row["used"], str(row["vps_id"])) == (True, enrolled["vps_id"])


@pytest.mark.own_database
def test_two_machines_with_one_token_make_one_vps(farm: Farm) -> None:
    token = farm.token()
    outcomes: list[str] = []

    def enrol(actor: Actor, name: str) -> None:
        try:
            actor.can("enroll_vps", requests[name])
            outcomes.append("enrolled")
        except psycopg.Error as error:
            outcomes.append(str(error.sqlstate))

    requests = {name: request(farm, token, name) for name in "ab"}
    threads = [Thread(target=enrol, args=(farm.elsewhere(farm.service), name)) for name in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["TC210", "enrolled"]


def test_an_expired_or_invented_token_is_refused(farm: Farm) -> None:
    token = farm.token()
    farm.rows(
        "update public.enrollment_tokens set created_at = now() - interval '2 days', expires_at = now() - interval"
        " '1 day'"
        " where true"
    )
    assert "expired" in farm.service.cannot(
        "check_enrollment", {"token": token, "name": "a", "platforms": ["paper"]}, "TC210"
    )
    farm.service.cannot("enroll_vps", request(farm, token), "TC210")
    farm.service.cannot("enroll_vps", request(farm, "tce_" + "0" * 64), "TC210")


def test_a_refused_enrolment_does_not_use_the_token_up(farm: Farm) -> None:
    token = farm.token()
    farm.agent("taken")
    farm.service.cannot("enroll_vps", request(farm, token, "taken"), "TC211")
    farm.service.cannot("enroll_vps", request(farm, token, "no spaces"), "TC001")
    farm.service.cannot("enroll_vps", request(farm, token, platforms=["abacus"]), "TC001")
    farm.service.cannot("enroll_vps", request(farm, token, platforms=[]), "TC001")
    farm.service.cannot("enroll_vps", request(farm, token, secret_hash="short"), "TC001")
    farm.service.cannot("enroll_vps", request(farm, token, capacity=0), "TC001")
    farm.service.can("enroll_vps", request(farm, token))


def test_a_token_may_fix_the_name(farm: Farm) -> None:
    token = farm.token("vps-7")
    assert farm.service.can("enroll_vps", request(farm, token, "something-else"))["name"] == "vps-7"


def test_people_and_agents_cannot_become_agents(farm: Farm) -> None:
    token, operator, trader, agent = farm.token(), farm.operator(), farm.user(), farm.agent("b")
    farm.account(trader)
    for somebody in (operator, trader, agent):
        farm.service.cannot("enroll_vps", request(farm, token, user_id=somebody.user_id), "TC213")


def test_an_agent_cannot_become_an_operator(farm: Farm) -> None:
    agent = farm.agent("a")
    email = farm.row("select email from auth.users where id = %s", (agent.user_id,))["email"]
    farm.service.cannot("grant_operator", email, "TC105")
    farm.service.cannot("grant_operator", "nobody@test.invalid", "TC201")


def test_the_secret_leads_back_to_the_agents_user(farm: Farm) -> None:
    enrolled = farm.service.can("enroll_vps", request(farm, farm.token()))
    answer = farm.service.can("agent_session", {"vps_id": enrolled["vps_id"], "secret": SECRET})
    assert (answer["name"], answer["vps_id"]) == ("a", enrolled["vps_id"])
    assert answer["email"].startswith("agent-")
    for wrong in ({"secret": SECRET + "x"}, {"secret": None}, {"vps_id": "x", "secret": SECRET}):
        farm.service.cannot("agent_session", {"vps_id": enrolled["vps_id"]} | wrong, "TC212")


def test_neither_token_nor_secret_is_stored(farm: Farm) -> None:
    token = farm.token()
    farm.service.can("enroll_vps", request(farm, token))
    text = farm.row(
        "select (select string_agg(t::text, '') from public.enrollment_tokens t)"
        " || (select string_agg(s::text, '') from private.vps_secrets s)"
        " || (select string_agg(l::text, '') from public.audit_log l) as text"
    )["text"]
    assert token not in text
    assert SECRET not in text
