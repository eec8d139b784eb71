"""One identity on two machines: a VPS that was cloned while it ran. Two real agents; only one of them trades at any
time.

Covered elsewhere: who may take over from whom, step by step: tests/sql/farm/test_processes.py
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import pytest_asyncio
from fault_harness import Desk, Ground, until

from agent.testbed.farm import Vps

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

PROCESS = """
  select process, process_begins_at <= clock_timestamp() as begun, lease_expires_at > clock_timestamp() as alive
  from public.vps_instances where id = %(vps)s::uuid"""


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def short_leases(ground: Ground) -> AsyncIterator[None]:
    """A shorter wait before a take-over; all other settings are unchanged."""
    await ground.setting("maintain_s", 1)
    await ground.setting("lease_s", 7)
    yield


@asynccontextmanager
async def cloned(ground: Ground, vps: Vps) -> AsyncIterator[Vps]:
    """A copy of the disk of a running VPS, with its agent started."""
    clone = Vps(f"{vps.name}-clone", vps.vps_id, vps.data_dir.with_name(f"{vps.name}-clone"))
    await asyncio.to_thread(shutil.copytree, vps.data_dir, clone.data_dir)
    clone.log.unlink(missing_ok=True)
    ground.farm.start(clone)
    try:
        yield clone
    finally:
        assert clone.child is not None
        await asyncio.to_thread(clone.child.stop)


async def process_of(ground: Ground, vps: Vps) -> dict[str, object]:
    [row] = await ground.rows(PROCESS, vps=vps.vps_id)
    return row


async def session_of(ground: Ground, desk: Desk) -> int:
    """The newest session of the only follower whose snapshot was accepted."""
    found = await ground.one(
        "select coalesce(snapshot_session, 0) as n from public.trading_accounts where id = %(id)s",
        id=desk.follower.account_id,
    )
    return cast(int, found)


async def reduce_until(desk: Desk, ticket: str, over: asyncio.Event) -> int:
    """The master reduces its position again and again: every agent that receives the copies sends them."""
    count = 0
    while not over.is_set() and count < 80:
        await desk.close(ticket, "0.01")
        count += 1
        await asyncio.sleep(0.2)
    return count


@pytest.mark.covers("R11")
async def test_of_a_clone_and_its_original_only_one_trades(ground: Ground) -> None:
    home, one = await ground.vps("home"), await ground.vps("one")
    async with ground.desk(home, [one]) as desk:
        kept = await desk.open(lots="1.00")
        await desk.holds(1)
        original = (await process_of(ground, one))["process"]
        begun = asyncio.Event()
        trading = asyncio.create_task(reduce_until(desk, kept, begun))
        async with cloned(ground, one) as clone:

            async def clone_works() -> bool:
                row = await process_of(ground, one)
                return row["process"] != original and cast(bool, row["begun"])

            await until(clone_works, "the clone to take over", limit_s=60)
            begun.set()
            assert await trading > 5
            assert '"TC110"' in one.log.read_text(), "the original was not told"
            await desk.assert_money_laws()
            later = await desk.open("GBPUSD", "0.20")
            await desk.holds(2)
            await desk.assert_money_laws()
            assert one.running, "the original must not restart: it would take over again"
            await ground.kill(clone)

        async def original_is_back() -> bool:
            return (await process_of(ground, one)) == {"process": original, "begun": True, "alive": True}

        await until(original_is_back, "the original to go on by itself", limit_s=90)
        last = await desk.open("USDJPY", "0.20")
        await desk.holds(3)
        for ticket in (kept, later, last):
            await desk.close(ticket)
        await desk.assert_money_laws(limit_s=60)


async def test_an_agent_restarted_at_once_trades_at_once(ground: Ground) -> None:
    home, two = await ground.vps("home"), await ground.vps("two")
    async with ground.desk(home, [two]) as desk:
        for _ in range(3):
            before, session = (await process_of(ground, two))["process"], await session_of(ground, desk)
            await ground.kill(two)
            await ground.vps("two")
            row = await process_of(ground, two)
            assert row["process"] != before
            assert row["begun"], "a restarted agent waits for its own lease"

            async def logged_in(old: int = session) -> bool:
                return await session_of(ground, desk) > old

            # an execution queued before that counts as possibly sent, and is never sent
            await until(logged_in, "the restarted agent to log in")
        ticket = await desk.open(lots="0.20")
        await desk.holds(1)
        await desk.close(ticket)
        await desk.assert_money_laws()
