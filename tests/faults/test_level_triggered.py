"""Law 4.1: closes follow the level, opens are decided once, and what cannot be read is not "closed".

Covered elsewhere with the real parts, and not repeated here:
* events delivered again and in reverse: tests/scenarios/delivered_twice.yaml
* opens too small latched for ever, reductions that do not drift: tests/scenarios/below_min.yaml, partial_closes.yaml
* a follower closed by hand stays closed: tests/scenarios/by_hand.yaml
* a close that overtakes its open: tests/scenarios/close_in_flight.yaml
* two reads without a position are evidence, one is not: tests/sql/planner/test_planner.py,
  tests/watching/test_watcher.py
"""

from decimal import Decimal

import pytest
from fault_harness import Ground, until

from agent.paper.records import SnapshotFault

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

REASONS = """
  select o.reason from public.copy_outcomes o join public.copiers c on c.id = o.copier_id
  where c.follower_account_id = %(account)s::uuid and o.reason is not null order by o.event_id"""


async def test_after_the_master_was_out_of_sight_closes_are_copied_and_old_opens_are_not(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], ratio=Decimal("0.5"), max_age_ms=500) as desk:
        closed, reduced = await desk.open(lots="0.20"), await desk.open("USDJPY", "0.40")
        await desk.holds(2)
        await ground.kill(home)
        await desk.close(closed)
        await desk.close(reduced, "0.20")
        unseen = await desk.open("XAUUSD", "0.10", "sell")
        opened_at = await ground.paper.now()

        async def old() -> bool:
            return (await ground.paper.now() - opened_at).total_seconds() > 0.6

        await until(old, "the open to be too old")
        ground.farm.start(home)
        await desk.holds(1)
        await desk.assert_money_laws(not_copied=[unseen])
        assert [row["reason"] for row in await ground.rows(REASONS, account=desk.follower.account_id)] == ["too_old"]
        # decided once: the next change of the position does not bring the open back
        await ground.paper.modify(desk.master.login, unseen, sl=Decimal("100000"), tp=None)
        await desk.close(unseen, "0.05")
        after = await desk.open("GBPUSD", "0.20")
        await desk.holds(2)
        await desk.assert_money_laws(not_copied=[unseen])
        await desk.close(after)


@pytest.mark.covers("R6")
@pytest.mark.parametrize("fault", ["none", "empty", "error", "stale"])
async def test_a_master_that_cannot_be_read_closes_nothing(ground: Ground, fault: SnapshotFault) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        kept, closed = await desk.open(lots="0.20"), await desk.open("USDJPY", "0.10")
        await desk.holds(2)
        await desk.assert_money_laws()
        sent = len(await desk.sent())
        session = (await ground.assigned(desk.master))["session"]
        await ground.paper.fault_snapshot(desk.master.login, fault, times=3)
        await ground.paper.disconnect(desk.master.login)

        async def back() -> bool:
            now = await ground.assigned(desk.master)
            return now["session"] != session and now["account_status"] == "connected"

        await until(back, "the master's next session")
        # a change after the fault, which only a session that reads correctly can report
        await desk.close(closed, "0.05")
        await ground.paper.modify(desk.master.login, kept, sl=Decimal("1.05"), tp=None)
        await desk.assert_money_laws()
        kinds = sorted(record.kind for record in (await desk.sent())[sent:])
        assert kinds == ["close", "modify"]
        await desk.holds(2)
