"""Claims on logins: who shows the password has it, not who typed it first; and nobody locks a login out by guessing."""

import json
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg
import pytest
from api_actors import Actor, Farm
from two_connections import in_background

#: leases and attempts are a matter of a clock that moves on
pytestmark = pytest.mark.own_database

LOGIN: dict[str, Any] = {"platform": "paper", "server": "Paper", "login": "77", "password": "p"}
USED_UP = "login attempts used up until"


def claim(farm: Farm, account: UUID) -> dict[str, Any]:
    return farm.row(
        "select claim, proven_at, status, status_reason from public.trading_accounts where id = %s", (account,)
    )


def credentials(farm: Farm, account: UUID) -> dict[str, Any]:
    return {"account_id": account, "epoch": farm.assignment(account)["epoch"]}


def attempt(farm: Farm, agent: Actor, account: UUID) -> None:
    agent.can("account_credentials", credentials(farm, account))


def no_attempt(farm: Farm, agent: Actor, account: UUID) -> str:
    return agent.cannot("account_credentials", credentials(farm, account), "TC224")


def prove(farm: Farm, agent: Actor, account: UUID, *, can_trade: bool = True) -> int:
    return int(agent.can("open_session", credentials(farm, account) | {"can_trade": can_trade})["session"])


def claimants(farm: Farm, count: int) -> list[tuple[Actor, UUID]]:
    """Users with a claim on the same login each."""
    users = [farm.user() for _ in range(count)]
    return [(user, farm.account(user, **LOGIN)) for user in users]


def pass_time(farm: Farm, minutes: int) -> None:
    farm.rows("update private.login_attempts set at = at - make_interval(mins => %s) where true", (minutes,))


def waits(farm: Farm, agent: Actor, account: UUID) -> None:
    """What an agent does that got no credentials: it says so, and asks again every minute."""
    said = no_attempt(farm, agent, account).splitlines()[0]
    agent.can("vps_heartbeat", {"accounts": [
        {"account_id": account, "session": None, "status": "disconnected", "error": said},
    ]})  # fmt: skip
    assert str(claim(farm, account)["status_reason"]).startswith(USED_UP)


# --- who has a login
# --------------------------------------------------------------------------------------------------------


def test_several_users_claim_a_login_and_the_one_who_logs_in_has_it(farm: Farm) -> None:
    agent = farm.agent("a")
    (squatter, squatted), (_, owned), (_, third) = claimants(farm, 3)
    assert claim(farm, owned)["claim"] == "unproven"
    squatter.cannot("connect_account", LOGIN, "TC202")  # his own
    farm.clear_broadcasts()
    prove(farm, agent, owned)
    assert claim(farm, owned)["claim"] == "trading"
    assert claim(farm, owned)["proven_at"] is not None
    for ended in (squatted, third):
        row = claim(farm, ended)
        assert (row["claim"], row["status"]) == ("ended", "halted")
        assert str(row["status_reason"]).startswith("claim_ended: another user has logged in")
        assert farm.rows("select from public.account_vps_assignments where account_id = %s", (ended,)) == []
        assert farm.rows("select from public.alerts where account_id = %s and reason = 'claim_ended'", (ended,)) != []
    assert farm.sent(f"vps:{agent.vps_id}", "assignments")
    assert farm.maintain()["moved"] == 0
    assert [a["account_id"] for a in agent.can("vps_heartbeat", {})["assignments"]] == [str(owned)]
    farm.user().cannot("connect_account", LOGIN, "TC202")
    squatter.cannot("update_account", {"account_id": squatted, "password": "guess"}, "TC225")
    squatter.cannot("assign_account", {"account_id": squatted}, "TC225")


def test_nothing_is_said_of_an_unproven_claim_of_somebody_else(farm: Farm) -> None:
    farm.agent("a")
    claimants(farm, 6)


def test_a_login_is_free_again_once_its_owner_removed_it(farm: Farm) -> None:
    agent = farm.agent("a")
    (owner, owned), (other, ended) = claimants(farm, 2)
    prove(farm, agent, owned)
    owner.can("remove_account", {"account_id": owned})
    other.can("update_account", {"account_id": ended, "password": "his own now"})
    assert claim(farm, ended)["claim"] == "unproven"
    farm.maintain()
    prove(farm, agent, ended)
    assert claim(farm, ended)["claim"] == "trading"


def test_a_proof_is_kept_when_the_same_user_logs_in_again(farm: Farm) -> None:
    agent = farm.agent("a")
    ((user, account),) = claimants(farm, 1)
    prove(farm, agent, account)
    first = claim(farm, account)["proven_at"]
    prove(farm, agent, account, can_trade=False)
    user.can("update_account", {"account_id": account, "password": "new"})
    prove(farm, agent, account)
    assert (claim(farm, account)["claim"], claim(farm, account)["proven_at"]) == ("trading", first)


def test_the_same_login_at_another_server_is_another_account(farm: Farm) -> None:
    agent, user = farm.agent("a", platforms=["paper", "mt5"]), farm.user()
    prove(farm, agent, farm.account(user, **LOGIN))
    other = farm.user()
    prove(farm, agent, farm.account(other, **LOGIN | {"platform": "mt5"}))


def test_a_login_written_otherwise_is_the_same_claim(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user(), **LOGIN | {"login": "ABC 1"})
    prove(farm, agent, account)
    for login in ("abc 1", " Abc  1 ", "ABC\u00a01", "ABC\u200b 1", "\uff21BC 1"):
        farm.user().cannot("connect_account", LOGIN | {"login": login, "server": "pAPER"}, "TC202")


def test_of_two_proofs_at_once_one_counts(farm: Farm) -> None:
    one, other = farm.agent("a", capacity=1), farm.agent("b", capacity=1)
    (_, first), (_, second) = claimants(farm, 2)
    agents = {farm.assignment(a)["vps_id"]: a for a in (first, second)}
    mine, theirs = agents[one.vps_id], agents[other.vps_id]
    requests = credentials(farm, mine), credentials(farm, theirs)
    elsewhere = farm.elsewhere(other)
    with one.transaction() as request:
        request.execute("select public.open_session(%s::jsonb)", (json.dumps(requests[0], default=str),))
        thread, refused = in_background(lambda: elsewhere.cannot("open_session", requests[1], "TC103"))
        while not farm.rows("select from pg_locks where locktype = 'advisory' and not granted"):
            assert thread.is_alive()
    thread.join(20)
    assert len(refused) == 1
    assert (claim(farm, mine)["claim"], claim(farm, theirs)["claim"]) == ("trading", "ended")


# --- investors
# --------------------------------------------------------------------------------------------------------------


def test_an_investor_password_proves_where_nobody_has_the_trading_password(farm: Farm) -> None:
    agent = farm.agent("a")
    (_, first), (other, second) = claimants(farm, 2)
    prove(farm, agent, first, can_trade=False)
    assert claim(farm, first)["claim"] == "investor"
    assert claim(farm, second)["claim"] == "unproven"  # who has the trading password may still come
    agent.cannot("open_session", credentials(farm, second) | {"can_trade": False}, "TC226")
    assert claim(farm, second)["claim"] == "unproven"
    other.can("remove_account", {"account_id": second})
    farm.account(farm.user(), **LOGIN)


def test_an_investor_gives_way_to_the_trading_password(farm: Farm) -> None:
    agent = farm.agent("a")
    (investor, watched), (_, owned) = claimants(farm, 2)
    prove(farm, agent, watched, can_trade=False)
    follower = farm.account(investor)
    farm.session(agent, follower)
    copier = investor.can("save_copier", {"master_account_id": watched, "follower_account_id": follower})["copier_id"]
    prove(farm, agent, owned)
    assert (claim(farm, owned)["claim"], claim(farm, watched)["claim"]) == ("trading", "given_way")
    assert farm.row("select mode from public.copiers where id = %s", (copier,))["mode"] == "monitor"
    (alert,) = investor.sees("select severity, message from public.alerts where account_id = %s", (watched,))
    assert alert["severity"] == "critical"
    assert "gives way" in alert["message"]
    for refused in (
        ("set_copier_mode", {"copier_id": copier, "mode": "on"}),
        ("save_copier", {"id": copier, "mode": "on"}),
    ):
        investor.cannot(*refused, "TC227")
    # closes go on: it may still look on, but never trade
    prove(farm, agent, watched, can_trade=False)
    agent.cannot("open_session", credentials(farm, watched) | {"can_trade": True}, "TC202")
    assert claim(farm, watched)["claim"] == "given_way"


def test_an_investor_who_gets_the_trading_password_keeps_his_claim(farm: Farm) -> None:
    agent = farm.agent("a")
    (user, account), (_, other) = claimants(farm, 2)
    prove(farm, agent, account, can_trade=False)
    user.can("update_account", {"account_id": account, "password": "trading"})
    prove(farm, agent, account)
    assert (claim(farm, account)["claim"], claim(farm, other)["claim"]) == ("trading", "ended")


@pytest.mark.parametrize("nonsense", ["yes", 1, [], {}])
def test_whether_it_may_trade_is_true_or_false(farm: Farm, nonsense: object) -> None:
    agent = farm.agent("a")
    ((_, account),) = claimants(farm, 1)
    agent.cannot("open_session", credentials(farm, account) | {"can_trade": nonsense}, "TC001")
    assert claim(farm, account)["claim"] == "unproven"


# --- how many claims, how many attempts
# -------------------------------------------------------------------------------------


def test_a_user_has_five_unproven_claims_at_most(farm: Farm) -> None:
    agent, user = farm.agent("a"), farm.user()
    accounts = [farm.account(user) for _ in range(5)]
    user.cannot("connect_account", LOGIN, "TC223")
    assert len(user.sees("select from public.trading_accounts")) == 5
    prove(farm, agent, accounts[0], can_trade=False)
    accounts.append(farm.account(user))
    user.cannot("connect_account", LOGIN, "TC223")
    user.can("remove_account", {"account_id": accounts[1]})
    farm.account(user)
    farm.account(farm.user())  # another user's are his own
    farm.account(farm.service, user_id=user.user_id)  # an operator answers for it


def test_a_user_gets_three_attempts_an_hour_and_a_new_account_none_more(farm: Farm) -> None:
    agent, other = farm.agent("a"), farm.agent("b")
    ((user, account),) = claimants(farm, 1)
    for _ in range(3):
        attempt(farm, agent, account)
    assert USED_UP in no_attempt(farm, agent, account)
    # neither another VPS nor a new account begins a new count
    farm.service.can("assign_account", {"account_id": account, "vps_id": other.vps_id})
    no_attempt(farm, other, account)
    user.can("remove_account", {"account_id": account})
    farm.service.can("drain_vps", {"vps_id": other.vps_id})
    again, elsewhere = farm.account(user, **LOGIN), farm.account(user)
    no_attempt(farm, agent, again)
    attempt(farm, agent, elsewhere)
    pass_time(farm, 59)
    no_attempt(farm, agent, again)
    pass_time(farm, 2)
    attempt(farm, agent, again)


def test_the_time_that_is_said_is_an_hour_after_the_third_last(farm: Farm) -> None:
    agent = farm.agent("a")
    ((_, account),) = claimants(farm, 1)
    for _ in range(3):
        attempt(farm, agent, account)
        pass_time(farm, 10)
    row = farm.row("select private.rfc3339(min(at) + interval '1 hour') as until from private.login_attempts")
    assert f"{USED_UP} {row['until']}" in no_attempt(farm, agent, account)


def test_all_unproven_claims_together_get_nine_an_hour(farm: Farm) -> None:
    agent = farm.agent("a")
    accounts = [account for _, account in claimants(farm, 4)]
    for account in accounts[:3]:
        for _ in range(3):
            attempt(farm, agent, account)
    no_attempt(farm, agent, accounts[3])
    pass_time(farm, 61)
    attempt(farm, agent, accounts[3])


def test_who_waits_is_served_before_those_who_had_theirs(farm: Farm) -> None:
    agent = farm.agent("a")
    accounts = [account for _, account in claimants(farm, 4)]
    for account in accounts[:3]:
        for _ in range(3):
            attempt(farm, agent, account)
            pass_time(farm, 1)
    waits(farm, agent, accounts[3])
    pass_time(farm, 53)  # the first three are over an hour old now
    no_attempt(farm, agent, accounts[0])
    attempt(farm, agent, accounts[3])
    agent.can("vps_heartbeat", {"accounts": [
        {"account_id": accounts[3], "session": None, "status": "halted", "error": "wrong"},
    ]})  # fmt: skip
    attempt(farm, agent, accounts[0])


def test_who_waits_on_a_dead_vps_holds_up_nobody(farm: Farm) -> None:
    agent, other = farm.agent("a"), farm.agent("b")
    accounts = [account for _, account in claimants(farm, 4)]
    farm.service.can("assign_account", {"account_id": accounts[3], "vps_id": other.vps_id})
    for account in accounts[:3]:
        farm.service.can("assign_account", {"account_id": account, "vps_id": agent.vps_id})
        for _ in range(3):
            attempt(farm, agent, account)
            pass_time(farm, 1)
    waits(farm, other, accounts[3])
    pass_time(farm, 53)
    farm.lose_lease(other)
    attempt(farm, agent, accounts[0])


def test_logins_of_a_proven_claim_are_never_counted(farm: Farm) -> None:
    agent = farm.agent("a")
    for can_trade in (True, False):
        account = farm.account(farm.user(), **LOGIN | {"login": f"proven {can_trade}"})
        attempt(farm, agent, account)
        prove(farm, agent, account, can_trade=can_trade)
        for _ in range(20):
            attempt(farm, agent, account)
            prove(farm, agent, account, can_trade=can_trade)
    assert farm.row("select count(*) from private.login_attempts")["count"] == 2


def test_guesses_of_others_never_keep_the_owner_out(farm: Farm) -> None:
    agent = farm.agent("a")
    (_, owned), *guessers = claimants(farm, 4)
    for _, account in guessers:
        for _ in range(3):
            attempt(farm, agent, account)
    farm.rows("update public.trading_accounts set claim = 'trading', proven_at = now() where id = %s", (owned,))
    for _ in range(12):
        attempt(farm, agent, owned)
        prove(farm, agent, owned)


def test_a_new_password_gets_one_attempt_at_once(farm: Farm) -> None:
    agent = farm.agent("a")
    ((user, account),) = claimants(farm, 1)
    for _ in range(3):
        attempt(farm, agent, account)
    no_attempt(farm, agent, account)
    user.can("update_account", {"account_id": account, "name": "New name"})
    user.can("update_account", {"account_id": account, "password": "p"})  # the same one would fail again
    no_attempt(farm, agent, account)
    user.can("update_account", {"account_id": account, "password": "corrected"})
    attempt(farm, agent, account)
    no_attempt(farm, agent, account)


def test_a_hundred_new_passwords_are_no_hundred_attempts(farm: Farm) -> None:
    agent = farm.agent("a")
    (guesser, guessed), (_, owned) = claimants(farm, 2)
    tried = 0
    for number in range(100):
        guesser.can("update_account", {"account_id": guessed, "password": f"guess {number}"})
        with suppress(psycopg.Error):
            attempt(farm, agent, guessed)
            tried += 1
    assert tried == farm.row("select count(*) from private.login_attempts")["count"] <= 9
    for _ in range(3):  # a whole share is left to whoever else comes
        attempt(farm, agent, owned)


def test_a_new_password_is_tried_even_when_others_used_all_up(farm: Farm) -> None:
    agent = farm.agent("a")
    users = claimants(farm, 4)
    for _, account in users[:3]:
        for _ in range(3):
            attempt(farm, agent, account)
    user, account = users[0]
    user.can("update_account", {"account_id": account, "password": "corrected"})
    attempt(farm, agent, account)
    user.can("update_account", {"account_id": account, "password": "corrected again"})
    no_attempt(farm, agent, account)
