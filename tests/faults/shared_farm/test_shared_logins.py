"""One login, several users: real agents, the real broker's passwords. Whoever has the trading password has the
account."""

import pytest
from fault_harness import Ground, until

from agent.failure import Failure
from agent.paper.client import PaperClient
from agent.testbed.farm import PLATFORM, SERVER
from agent.testbed.supabase_client import Person

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

STATE = "select claim, status, status_reason from public.trading_accounts where id = %(account)s::uuid"
ATTEMPTS = "select count(*)::integer as n from private.login_attempts t where t.account_id = %(account)s::uuid"


async def claim(ground: Ground, user: Person, login: str, password: str) -> str:
    request = {"platform": PLATFORM, "server": SERVER, "login": login, "password": password}
    answer = await ground.farm.backend.rpc("connect_account", "p_account", request, token=user.token)
    return str(answer["account_id"])


async def until_state(ground: Ground, account: str, claim: str, status: str, reason: str = "") -> None:
    async def reached() -> bool:
        [row] = await ground.observer.rows(STATE, {"account": account})
        return (row["claim"], row["status"]) == (claim, status) and reason in str(row["status_reason"])

    await until(reached, f"account {account} is {claim} and {status} ({reason})")


async def book(paper: PaperClient, login: str) -> None:
    await paper.open_book(login)
    await paper.set_passwords(login, password="trading", investor_password="look")


async def test_another_user_with_a_wrong_password_does_not_lock_the_owner_out(ground: Ground) -> None:
    await ground.vps("a")
    await book(ground.paper, "claims-1")
    squatter = await ground.farm.backend.sign_up("squatter@faults.test")
    squatted = await claim(ground, squatter, "claims-1", "guess")
    await until_state(ground, squatted, "unproven", "halted", "password")
    owned = await claim(ground, ground.owner, "claims-1", "trading")
    await until_state(ground, owned, "trading", "connected")
    await until_state(ground, squatted, "ended", "halted", "claim_ended")
    assert await ground.paper.sessions("claims-1") == 1


async def test_used_up_attempts_are_reported_and_a_corrected_password_works_at_once(ground: Ground) -> None:
    await ground.vps("a")
    await book(ground.paper, "claims-2")
    account = await claim(ground, ground.owner, "claims-2", "wrong 1")
    for number in (2, 3, 4):
        await until_state(ground, account, "unproven", "halted", "password")
        # one attempt per wrong password; the last one is beyond the three per hour
        [row] = await ground.observer.rows(ATTEMPTS, {"account": account})
        assert row["n"] == number - 1
        request = {"account_id": account, "password": f"wrong {number}"}
        await ground.farm.backend.rpc("update_account", "p_request", request, token=ground.owner.token)
        await until_attempts(ground, account, number)
    await until_state(ground, account, "unproven", "halted", "password")
    settings = {"account_id": account, "settings": {"paper": {"ping_s": 2}}}
    await ground.farm.backend.rpc("update_account", "p_request", settings, token=ground.owner.token)
    await until_state(ground, account, "unproven", "disconnected", "login attempts used up until")
    request = {"account_id": account, "password": "trading"}
    await ground.farm.backend.rpc("update_account", "p_request", request, token=ground.owner.token)
    await until_state(ground, account, "trading", "connected")


async def until_attempts(ground: Ground, account: str, number: int) -> None:
    async def reached() -> bool:
        [row] = await ground.observer.rows(ATTEMPTS, {"account": account})
        return row["n"] == number

    await until(reached, f"{number} attempts at account {account}")


async def test_an_investor_gives_way_and_its_agent_goes_on_reading(ground: Ground) -> None:
    await ground.vps("a")
    await book(ground.paper, "claims-3")
    watcher = await ground.farm.backend.sign_up("watcher@faults.test")
    watched = await claim(ground, watcher, "claims-3", "look")
    await until_state(ground, watched, "investor", "degraded", "trading_off")
    owned = await claim(ground, ground.owner, "claims-3", "trading")
    await until_state(ground, owned, "trading", "connected")
    await until_state(ground, watched, "given_way", "degraded", "trading_off")
    assert await ground.paper.sessions("claims-3") == 2
    request = {"platform": PLATFORM, "server": SERVER, "login": "claims-3", "password": "look"}
    stranger = await ground.farm.backend.sign_up("stranger@faults.test")
    with pytest.raises(Failure, match="already connected"):
        await ground.farm.backend.rpc("connect_account", "p_account", request, token=stranger.token)
