"""Nothing looks well over a dead copier: agent and scheduler are killed, and what people read is true all the same."""

from collections.abc import Mapping

import pytest
from fault_harness import Ground, no_scheduler, until

from agent.testbed.figures import verdict

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

STATUS = "select s.status, s.reason from public.account_status s where s.account_id = %(account)s::uuid"
OF_FARM = """
  select v.name from public.alerts l join public.vps_instances v on v.id = l.vps_id
  where l.reason = 'vps_lost' and l.user_id is null"""
ALERTS = "select l.reason, l.message from public.alerts l where l.account_id = %(account)s::uuid"


async def test_with_agent_and_scheduler_dead_the_verdict_is_red(ground: Ground) -> None:
    home = await ground.vps("home")

    async def said() -> Mapping[str, object]:
        answer = await ground.testbed.call_as(ground.owner.user_id, "verdict", "p_request", {})
        assert isinstance(answer, dict)
        return answer

    async with ground.desk(home, [home]) as desk:
        ticket = await desk.open("EURUSD", "0.30")
        await desk.holds(1)
        await desk.assert_money_laws()
        async with no_scheduler(ground):
            await ground.kill(home)

            async def red() -> bool:
                return (await said())["tone"] == "bad"

            await until(red, "the verdict to be red")
            for account in desk.accounts:
                [status] = await ground.rows(STATUS, account=account.account_id)
                assert status["status"] == "disconnected"
                assert "its VPS sends no heartbeats" in str(status["reason"])
                stored = await ground.one(
                    "select status from public.trading_accounts where id = %(account)s::uuid",
                    account=account.account_id,
                )
                assert stored == "connected", "nothing has run: this is what the agent said last"
                assert await ground.rows(ALERTS, account=account.account_id) == []
            terminal = await verdict(ground.observer)
            assert terminal["tone"] == "bad"
            assert "Agent home is offline" in terminal["text"]

            async def unseen() -> bool:
                findings = (await said())["findings"]
                assert isinstance(findings, list)
                return bool(findings[0]["code"] == "master_unseen")

            await until(unseen, "the master to be missed", limit_s=40)

        # the scheduler is back, the agent is not
        async def alerted() -> bool:
            rows = await ground.rows(ALERTS, account=desk.follower.account_id)
            return {row["reason"] for row in rows} >= {"master_unseen"} and len(rows) >= 2

        await until(alerted, "the next run of maintain() to write the alerts")
        rows = await ground.rows(ALERTS, account=desk.follower.account_id)
        assert all("EURUSD buy 0.3" in str(row["message"]) for row in rows)

        # after a gap in its runs maintain() first gives every lease its length again
        async def told_operators() -> bool:
            return await ground.rows(OF_FARM) == [{"name": "home"}]

        await until(told_operators, "the operators to be told of the VPS")
        assert (await said())["tone"] == "bad"
        await ground.vps("home")
        await ground.farm.wait_connected(desk.accounts)
        await desk.close(ticket)
        await desk.assert_money_laws()
