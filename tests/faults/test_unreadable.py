"""One user's input, or one account's entry, stops no other account: unreadable answers, settings beyond every
limit.

Covered elsewhere: each limit of each input (tests/sql/base/test_input_limits.py), leases and releases
(tests/sql/farm/test_answers.py).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from fault_harness import Ground, until

from agent.failure import Failure
from agent.testbed.farm import Opening, Vps
from agent.testbed.quiescence import Worked

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DEEP = '{"a":' * 1_020 + "{}" + "}" * 1_020
DEFINITION = "select pg_get_functiondef('private.assignments_isolated(uuid)'::regprocedure) as text"
PLANTED = """
create or replace function private.assignments_isolated(p_vps uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_all jsonb := private.assignments_of(p_vps);
begin
  {fault}
  return v_all;
end $$"""
HEARD_OF = "select now() - v.last_heartbeat_at < interval '5 s' from public.vps_instances v where v.id = %(vps)s::uuid"
STATUS = "select v.status from public.vps_instances v where v.id = %(vps)s::uuid"
WORKED_AT = """
  select a.session_vps_id::text as vps from public.trading_accounts a
  join public.account_vps_assignments s on s.account_id = a.id and s.vps_id = a.session_vps_id
    and s.begins_at <= clock_timestamp()
  where a.id = %(account)s::uuid and a.status = 'connected' and a.snapshot_session = a.session"""
ACCOUNT = "select a.status, a.status_reason from public.trading_accounts a where a.id = %(account)s::uuid"


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def short_leases(ground: Ground) -> AsyncIterator[None]:
    await ground.setting("maintain_s", 1)
    await ground.setting("lease_s", 7)
    yield


@asynccontextmanager
async def planted(ground: Ground, fault: str) -> AsyncIterator[None]:
    """The database sends assignments with an error in them."""
    whole = str(await ground.one(DEFINITION))
    await ground.observer.rows(PLANTED.replace("{fault}", fault))
    try:
        yield
    finally:
        await ground.observer.rows(whole)


async def moves_from(ground: Ground, account: Worked, vps: Vps) -> None:
    """Wait until another VPS works the account."""

    async def moved() -> bool:
        return [row["vps"] for row in await ground.rows(WORKED_AT, account=account.account_id)] not in (
            [],
            [vps.vps_id],
        )

    await until(moved, f"{account.name} to be worked elsewhere")


@asynccontextmanager
async def stranger(ground: Ground, vps: Vps, login: str) -> AsyncIterator[tuple[Worked, str]]:
    """Another user's account on a VPS, and that user's token."""
    person = await ground.farm.backend.sign_up(f"{login.lower()}@faults.test")
    account = await ground.farm.open_account(Opening(name=login, login=login), person.user_id, vps)
    await ground.farm.wait_connected([account])
    yield account, person.token
    await ground.farm.remove_account(person, account)


async def test_one_users_settings_stop_nobody_else(ground: Ground) -> None:
    home, shared = await ground.vps("home"), await ground.vps("shared")
    async with ground.desk(home, [shared]) as desk, stranger(ground, shared, "Deep") as (account, token):
        too_much: list[dict[str, object]] = [{"a": {"b": {"c": {"d": {"e": {"f": {}}}}}}}, {"a": "x" * 200_000}]
        for settings in too_much:
            with pytest.raises(Failure) as refused:
                await ground.farm.backend.rpc(
                    "update_account", "p_request", {"account_id": account.account_id, "settings": settings}, token=token
                )
            assert refused.value.code == "TC303"
            assert "settings" in str(refused.value)
        # and bypass every check
        await ground.rows(
            "update public.trading_accounts set settings = %(deep)s::jsonb where id = %(account)s::uuid",
            deep=DEEP, account=account.account_id,
        )  # fmt: skip
        await ground.rows(
            "update public.account_vps_assignments set epoch = epoch + 1 where account_id = %(a)s::uuid",
            a=account.account_id,
        )

        async def says_why() -> bool:
            [row] = await ground.rows(ACCOUNT, account=account.account_id)
            return "settings" in str(row["status_reason"])

        await until(says_why, "the account to say what is wrong with its settings")
        tickets = [await desk.open(lots="0.10") for _ in range(15)]
        await desk.holds(15)
        for ticket in tickets:
            await desk.close(ticket)
        await desk.holds(0)
        await desk.assert_money_laws()
        assert await ground.one(STATUS, vps=shared.vps_id) == "online"
        [row] = await ground.rows(ACCOUNT, account=desk.follower.account_id)
        assert row == {"status": "connected", "status_reason": None}


async def test_an_entry_that_its_agent_cannot_read_releases_that_account_alone(ground: Ground) -> None:
    home, shared, spare = await ground.vps("home"), await ground.vps("shared"), await ground.vps("spare")
    async with ground.desk(home, [shared]) as desk, stranger(ground, shared, "Broken") as (account, _):
        fault = f"""select jsonb_agg(case when e ->> 'account_id' = '{account.account_id}' and p_vps = '{shared.vps_id}'
            then e || '{{"epoch": "no number"}}' else e end) into v_all from jsonb_array_elements(v_all) e;
            v_all := coalesce(v_all, '[]');"""
        async with planted(ground, fault):
            await moves_from(ground, account, shared)
            await desk.open(lots="0.20")
            await desk.holds(1)
            await desk.assert_money_laws()
            assert await ground.one(STATUS, vps=shared.vps_id) == "online"
            assert (await ground.assigned(desk.follower))["vps_id"] == shared.vps_id
    assert spare.running


async def test_a_vps_that_processes_no_answer_loses_its_accounts(ground: Ground) -> None:
    """Its heartbeats go on: only the missing `worked_through` shows that it trades nothing."""
    home, shared = await ground.vps("home"), await ground.vps("shared")
    await ground.vps("spare")
    async with ground.desk(home, [shared]) as desk:
        fault = f"""if p_vps = '{shared.vps_id}' then
            v_all := v_all || (repeat('[', 1100) || repeat(']', 1100))::jsonb;
          end if;"""
        async with planted(ground, fault):

            async def offline() -> bool:
                return await ground.one(STATUS, vps=shared.vps_id) == "offline"

            await until(offline, "the VPS to be offline")
            await moves_from(ground, desk.follower, shared)
            ticket = await desk.open(lots="0.20")
            await desk.holds(1)
            beat = await ground.one(
                "select now() - last_heartbeat_at < interval '5 s' from public.vps_instances where id = %(v)s",
                v=shared.vps_id,
            )
            assert beat is True, "it is heard of all the time"
            assert await offline()
        await ground.farm.wait_online(shared)
        await desk.close(ticket)
        await desk.holds(0)
        await desk.assert_money_laws()
