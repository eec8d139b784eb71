"""Laws 4.3 and 4.4: copying resumes after outages; heartbeats alone run the upkeep.

Covered elsewhere with the real parts, and not repeated here:
* callers see a database restart as 503 and nothing else: tests/stack/test_stack.py
* the database gone for seconds in a scenario: tests/scenarios/ (drop: {database})
* an outage of the database does not move the farm: tests/sql/upkeep/test_lease.py
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from fault_harness import Desk, Ground, no_scheduler, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SYMBOLS = ("EURUSD", "USDJPY", "XAUUSD", "GBPUSD")
LAST_RUN = "select last_run_at from private.clockwork where name = 'maintain'"
DOUBTFUL = """
  select 1 from public.trade_execution_queue q where q.account_id = any(%(accounts)s::uuid[]) and q.action = 'open'
    and q.status in ('expired', 'unknown') limit 1"""


class Load:
    """A master that opens, trims and closes without a pause. Everything opened is closed again at the end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.trades = 0
        self._moved = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        stop = asyncio.Event()
        task = asyncio.create_task(self._trade(stop))
        try:
            yield self
        finally:
            stop.set()
            await task

    async def more(self, trades: int) -> None:
        """Wait until the given number of further trades were made."""
        goal = self.trades + trades
        async with asyncio.timeout(60):
            while self.trades < goal:
                self._moved.clear()
                await self._moved.wait()

    async def _trade(self, stop: asyncio.Event) -> None:
        held: list[str] = []
        while not stop.is_set():
            held.append(await self._desk.open(SYMBOLS[self.trades % 4], "0.20"))
            if self.trades % 2:
                await self._desk.close(held[-1], "0.10")
            if len(held) > 4:
                await self._desk.close(held.pop(0))
            self.trades += 1
            self._moved.set()
            await asyncio.sleep(0.04)  # the pace of the load
        for ticket in held:
            await self._desk.close(ticket)


async def restart_database(ground: Ground) -> None:
    await ground.testbed.stack.restart_database()


async def restart_gateway(ground: Ground) -> None:
    await ground.testbed.stack.restart_gateway()


@pytest.mark.parametrize("restart", [restart_database, restart_gateway])
async def test_a_restart_under_load_loses_nothing_and_doubles_nothing(
    ground: Ground, restart: Callable[[Ground], Awaitable[None]]
) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [home, away, away]) as desk:
        kept = await desk.open("BTCUSD", "0.40")
        await desk.holds(1)
        async with Load(desk).running() as load:
            await load.more(10)
            await restart(ground)
            await load.more(20)
        await desk.close(kept, "0.20")
        # the load is over and everything of it closed: no follower may hold what the master does not
        await desk.assert_money_laws(limit_s=60)
        after = await desk.open("EURUSD", "0.30")
        await desk.holds(2)
        await desk.assert_money_laws()
        await desk.close(after)


async def test_with_a_dead_scheduler_heartbeats_alone_run_the_upkeep(ground: Ground) -> None:
    home, away, spare = await ground.vps("home"), await ground.vps("away"), await ground.vps("spare")
    async with no_scheduler(ground), ground.desk(home, [away, home]) as desk:
        moved, beside = desk.followers
        stopped_at = await ground.one(LAST_RUN)

        async def ran() -> bool:
            return await ground.one(LAST_RUN) != stopped_at

        # the upkeep retries a refused order …
        await ground.paper.fault(beside.login, "requote", next_orders=2)
        ticket = await desk.open(lots="0.20")
        await desk.holds(1)
        await until(ran, "a heartbeat to run maintain()")
        await desk.assert_money_laws()
        # … and finds a lost VPS
        await ground.kill(away)
        await desk.close(ticket, "0.10")

        async def rehoused() -> bool:
            now = await ground.assigned(moved)
            return now["vps_id"] in (home.vps_id, spare.vps_id) and now["account_status"] == "connected"

        await until(rehoused, "the account of the lost VPS to have a new one", limit_s=60)
        await desk.close(ticket, "0.05")
        await desk.assert_money_laws()
