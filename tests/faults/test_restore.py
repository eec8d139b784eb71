"""Law 4.5: the database is restored while agents run. They report it; numbers and sessions jump, closes go on.

The backup is a cold copy of the cluster's data directory, as of a stopped server; what happens after it is lost.
Each rule by itself, and claims that are none: tests/sql/trade/test_generation.py.
"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from fault_harness import Desk, Ground, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# The jump of the sequence becomes visible a moment after its commit: the row holds the new number.
STATE = """
  select g.generation, greatest(s.last_value, g.jumped_to) as number, t.state, t.reason
  from private.database_generation g, public.trade_execution_queue_id_seq s, public.trading_switch t"""
ALERTS = (
    "select severity, message from public.alerts where kind = 'database' and reason = 'restored' and account_id is null"
)
AUDIT = "select details from public.audit_log where action = 'restored' order by id"
SEEN_BY = """
  select 1 from public.trading_accounts a join public.account_vps_assignments s on s.account_id = a.id
  where a.id = any(%(accounts)s::uuid[]) and s.vps_id = %(vps)s::uuid and a.session_vps_id = s.vps_id
    and a.snapshot_session = a.session"""
TOLD = """
  select e.status from public.trade_events e
  where e.account_id = %(account)s::uuid and e.ticket = %(ticket)s and e.type = 'closed'"""


class Backup:
    """A cold copy of the data directory."""

    def __init__(self, ground: Ground, copy: Path) -> None:
        self._ground = ground
        self._copy = copy

    async def put_back(self) -> None:
        """Stop the server, replace its data by the copy, and start it again."""
        stack = self._ground.testbed.stack
        await stack.stop_database()
        data = (stack.data / "postgres").resolve()
        await asyncio.to_thread(shutil.rmtree, data)
        await asyncio.to_thread(_copy, self._copy, data)
        await stack.start_database()
        await answering(self._ground)


def _copy(source: Path, target: Path) -> None:
    """Copy with owner and group: the server may run as another user."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


async def answering(ground: Ground) -> None:
    """Connect again: the restore cut the test's own connection too."""

    async def answers() -> bool:
        return bool(await ground.rows("select 1"))

    await until(answers, "the database to answer again")


@asynccontextmanager
async def backup(ground: Ground) -> AsyncIterator[Backup]:
    stack = ground.testbed.stack
    copy = stack.data / "backup"
    await stack.stop_database()
    await asyncio.to_thread(_copy, (stack.data / "postgres").resolve(), copy)
    await stack.start_database()
    await answering(ground)
    try:
        yield Backup(ground, copy)
    finally:
        await asyncio.to_thread(shutil.rmtree, copy)


async def state(ground: Ground) -> dict[str, object]:
    [row] = await ground.rows(STATE)
    return row


async def noticed(ground: Ground, before: int) -> None:
    """Wait for a generation after `before` in which every worked account has reported its snapshot."""

    async def begun() -> bool:
        return cast(int, (await state(ground))["generation"]) > before

    await until(begun, "the database to notice that it has gone back")


async def shown_anew(desk: Desk) -> None:
    """Each account has a new session with a snapshot since the restore was noticed."""

    async def shown() -> bool:
        rows = await desk.ground.rows(
            "select 1 from public.trading_accounts a where a.id = any(%(accounts)s::uuid[]) and a.status = 'connected'"
            " and a.session %% 1000000 > 0 and a.snapshot_session = a.session and a.session > 1000000",
            accounts=[account.account_id for account in desk.accounts],
        )
        return len(rows) == len(desk.accounts)

    await until(shown, "every account to open a session of the new generation", limit_s=60)


async def trading_on(ground: Ground) -> None:
    await ground.testbed.stack.call("set_trading", {"p_request": {"state": "on", "reason": "checked"}})


async def lost_trade(desk: Desk) -> str:
    """Copy a trade and leave it open; the database that knows it is lost afterwards."""
    ticket = await desk.open("USDJPY", "0.20")
    await desk.holds(2)
    await desk.settled(30)
    await desk.keep_numbers()
    return ticket


async def adopt(desk: Desk, ticket: str) -> None:
    """The owner links the copy that the lost database made to its master again."""
    [copy] = desk.copies
    farm = desk.ground.farm

    async def listed() -> bool:
        items = await farm.copier_drift(desk.ground.owner, copy.copier_id)
        return any(item["master_ticket"] == ticket and item["adoptable"] for item in items)

    await until(listed, "the copy of the lost time to be offered for adoption")
    items = await farm.copier_drift(desk.ground.owner, copy.copier_id)
    [item] = [item for item in items if item["master_ticket"] == ticket]
    [held] = cast("list[str]", item["adoptable"])
    wanted = {"kind": "missing", "master_ticket": ticket, "ticket": held, "action": "adopt"}
    await farm.resync_copier(desk.ground.owner, copy.copier_id, [wanted], None)


async def test_a_backup_restored_while_agents_run_is_noticed_and_closes_go_on(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        kept = await desk.open("EURUSD", "0.30")
        await desk.holds(1)
        await desk.settled(30)
        before = cast(int, (await state(ground))["generation"])
        async with backup(ground) as copy:
            lost = await lost_trade(desk)
            highest = cast(int, (await state(ground))["number"])
            await copy.put_back()
        await noticed(ground, before)
        now = await state(ground)
        assert (now["state"], now["reason"], now["generation"]) == ("monitor", "restored", before + 1)
        assert cast(int, now["number"]) >= highest + 1_000_000
        [alert] = await ground.rows(ALERTS)
        assert alert["severity"] == "critical"
        [entry] = await ground.rows(AUDIT)
        # the restored server jumps at its start, beyond the highest number that the agents received
        assert cast("dict[str, object]", entry["details"])["reason"] == "gap"
        await shown_anew(desk)
        await desk.close(kept)  # closes go on
        await desk.holds(1)
        await adopt(desk, lost)
        await trading_on(ground)
        fresh = await desk.open("GBPUSD", "0.10")
        await desk.holds(2)
        await desk.close(lost)
        await desk.close(fresh)
        await desk.holds(0)
        await desk.assert_money_laws(limit_s=60)
        assert cast(int, (await state(ground))["generation"]) == before + 1, "it was one restore"


async def test_a_vps_that_never_saw_the_lost_numbers_may_call_first(ground: Ground) -> None:
    """At first no agent knows the lost numbers: the restart alone prevents their reuse. A witness comes later."""
    home, away, spare = await ground.vps("home"), await ground.vps("away"), await ground.vps("spare")
    async with ground.desk(home, [away]) as desk:
        before = cast(int, (await state(ground))["generation"])
        await ground.kill(spare)
        async with backup(ground) as copy:
            ticket = await desk.open("USDJPY", "0.20")
            await desk.holds(1)
            await desk.close(ticket)
            await desk.holds(0)
            await desk.settled(30)
            await desk.keep_numbers()
            await ground.kill(home)
            await ground.kill(away)
            await copy.put_back()
        await ground.vps("spare")

        async def moved() -> bool:
            accounts = [account.account_id for account in desk.accounts]
            return len(await ground.rows(SEEN_BY, accounts=accounts, vps=spare.vps_id)) == len(accounts)

        await until(moved, "both accounts to be worked by the VPS that never saw the lost numbers", limit_s=90)
        assert (await state(ground))["generation"] == before
        assert (await state(ground))["state"] == "on"
        copied = await desk.open("EURUSD", "0.30")
        await desk.holds(1)
        await ground.vps("away")  # the witness is back
        await noticed(ground, before)
        assert (await state(ground))["state"] == "monitor"
        await shown_anew(desk)
        await desk.close(copied)
        await desk.holds(0)
        await trading_on(ground)
        await desk.assert_money_laws(limit_s=60)


async def test_a_close_that_waits_in_a_journal_across_the_restore_is_copied(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        kept = await desk.open("EURUSD", "0.30")
        await desk.holds(1)
        await desk.settled(30)
        before = cast(int, (await state(ground))["generation"])
        async with backup(ground) as copy:
            await desk.close(await lost_trade(desk))
            await desk.holds(1)
            await desk.settled(30)
            await desk.keep_numbers()
            await ground.testbed.stop_database()
            logged = home.log.stat().st_size
            await desk.close(kept)

            async def waits() -> bool:
                with home.log.open("rb") as lines:
                    lines.seek(logged)
                    return b"queue_trade_copy" in lines.read()

            await until(waits, "the master's agent to fail to deliver the close")
            await ground.kill(home)
            await copy.put_back()
        await ground.vps("home")
        await noticed(ground, before)
        await desk.holds(0)
        await trading_on(ground)
        await desk.assert_money_laws(limit_s=60)

        async def told() -> bool:
            return {row["status"] for row in await ground.rows(TOLD, account=desk.master.account_id, ticket=kept)} == {
                "accepted",  # by the snapshot
                "history",
            }

        await until(told, "the journalled close to be stored as history")
