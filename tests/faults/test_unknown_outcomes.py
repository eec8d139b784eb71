"""Law 4.5: an unknown outcome is not a failure, and no execution number becomes two orders.

Covered elsewhere with the real parts, and not repeated here:
* the same at the moments "journalled, not sent" and "answered, while reporting" with the real engine, journal and
  broker and a scripted database: tests/execution/test_engine_killed.py
* an order whose answer was lost is adopted: tests/scenarios/timeout_executed.yaml
* an agent killed between trades: tests/scenarios/agent_killed.yaml
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

import psycopg
import pytest
from fault_harness import Desk, Ground, until

from agent.paper.profile import Profile
from agent.testbed.farm import Vps
from agent.testbed.quiescence import Worked

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

#: the broker also changes every comment: only the number in an order identifies it
SLOW = Profile(latency_ms_min=600, latency_ms_max=600, keeps_comments=False)
BLOCKED = """
  select pid from pg_stat_activity
  where datname = current_database() and wait_event_type = 'Lock' and query like '%%report_executions%%'"""
END = "select pg_terminate_backend(pid) from pg_stat_activity where pid = any(%(pids)s)"


@asynccontextmanager
async def planning_held(ground: Ground, account: Worked) -> AsyncIterator[None]:
    """Lock the account, so that no report about it can be accepted."""
    async with await psycopg.AsyncConnection.connect(ground.testbed.stack.dsn) as other:
        await other.execute(
            "select 1 from private.plan_locks where account_id = %s for no key update", (account.account_id,)
        )
        yield


async def killed_before_the_answer(ground: Ground, desk: Desk, vps: Vps, number: int) -> None:
    """The broker is slow; the agent is killed while it waits for the answer."""
    await ground.kill(vps)


async def killed_after_the_answer(ground: Ground, desk: Desk, vps: Vps, number: int) -> None:
    """The order is filled and the agent knows it; it is killed while its report waits in the database."""
    async with planning_held(ground, desk.follower):
        await desk.holds(1)
        pids: list[object] = []

        async def blocked() -> bool:
            pids[:] = [row["pid"] for row in await ground.rows(BLOCKED)]
            return bool(pids)

        await until(blocked, "the report to wait for the plan lock")
        await ground.kill(vps)
        await ground.rows(END, pids=pids)
    [execution] = await ground.executions(desk.follower)
    assert execution["finalized_at"] is None


@pytest.mark.covers("X2", "R5", "R12")
@pytest.mark.parametrize("journal", ["kept", "deleted"])
@pytest.mark.parametrize("killed", [killed_before_the_answer, killed_after_the_answer])
async def test_an_agent_killed_between_sending_and_reporting_adopts_its_order_and_never_sends_it_twice(
    ground: Ground, killed: Callable[[Ground, Desk, Vps, int], Awaitable[None]], journal: str
) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=SLOW) as desk:
        ticket = await desk.open(lots="0.40")
        number = await desk.first_execution()
        await ground.paper.wait_for_request(desk.follower.login, number)
        await killed(ground, desk, away, number)
        if journal == "deleted":
            for file in away.data_dir.glob("journal*"):
                file.unlink()
        ground.farm.start(away)

        async def settled() -> bool:
            [execution] = await ground.executions(desk.follower)
            return execution["status"] == "completed"

        await until(settled, "the order to be adopted")
        assert len(await desk.sent()) == 1
        await desk.close(ticket, "0.10")
        await desk.assert_money_laws()
        [copy] = (await ground.paper.book(desk.follower.login)).positions
        assert copy.lots == Decimal("0.30")


@pytest.mark.covers("X16")
async def test_a_broker_that_hangs_on_one_order_delays_no_other_account(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away, away]) as desk:
        hanging, other = desk.followers
        patient = {"paper": {"order_timeout_s": 60, "read_timeout_s": 60}}
        before = (await ground.assigned(hanging))["session"]
        await ground.farm.backend.rpc(
            "update_account",
            "p_request",
            {"account_id": hanging.account_id, "settings": patient},
            token=ground.owner.token,
        )

        async def again() -> bool:
            now = await ground.assigned(hanging)
            return now["session"] != before and now["account_status"] == "connected"

        await until(again, "the session with the patient settings")
        await ground.paper.fault(hanging.login, "hang")
        first = await desk.open(lots="0.20")
        number = await desk.first_execution(hanging)
        await ground.paper.wait_for_request(hanging.login, number)
        second = await desk.open("USDJPY", "0.10")
        await desk.holds(2, of=[other])
        await desk.close(second)
        await desk.close(first, "0.10")
        await ground.paper.wait_for(other.login, positions=1)
        [hangs] = [row for row in await ground.executions(hanging) if row["id"] == number]
        assert hangs["finalized_at"] is None
        await ground.paper.disconnect(hanging.login)  # else the broker would be found dead after a minute
        await desk.close(first)
        third = await desk.open("GBPUSD", "0.20")
        await desk.holds(1)
        await desk.assert_money_laws()
        [hung] = [row for row in await ground.executions(hanging) if row["id"] == number]
        assert (hung["status"], hung["reason"]) == ("expired", "not_found_after_unknown")
        assert [record.tag for record in await desk.sent(hanging)].count(number) == 1
        await desk.close(third)
