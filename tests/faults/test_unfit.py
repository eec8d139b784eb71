"""An agent that cannot work loses its lease: a full disk, a missing library, no route to the broker (law 4.3).

The disk is full for one process: the system lets it write no file any more (RLIMIT_FSIZE). Its network and its memory
are well, so it goes on sending heartbeats. The route to the broker is missing for one process as well: while a file is
there, an audit hook of its Python fails every connect to the broker's port as a machine without a route does.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
from fault_harness import Desk, Ground, until

from agent.testbed.farm import Vps
from agent.testbed.quiescence import Worked

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the limits of another process"),
]

#: five seconds until the agent is unfit, a lease, and a margin for the move and the close
MOVED_S = 5 + 15 + 20
#: half a minute without the fault, and a margin
FIT_AGAIN_S = 30 + 15
#: half a minute without the broker, the longest pause between two attempts, a lease, and a margin for move and close
REROUTED_S = 30 + 60 + 15 + 20

#: a minute of tomorrow
WORKING_DAY = '{{"weekday": {day}, "time": "12:00", "until_weekday": {day}, "until_time": "12:01", "time_zone": "UTC"}}'
DISCONNECTED = "select message from public.alerts where account_id = %(account)s::uuid and reason = 'disconnected'"
UNFIT = "select unfit, unfit_works, status from public.vps_instances where id = %(vps)s::uuid"
ALERTS = "select reason from public.alerts where vps_id = %(vps)s::uuid or account_id = any(%(accounts)s::uuid[])"
ACCOUNT = "select status, status_reason from public.trading_accounts where id = %(account)s::uuid"
FILL = """
  update public.vps_instances v
  set capacity = (select count(*) from public.account_vps_assignments s where s.vps_id = v.id)
  where v.id <> %(vps)s::uuid and exists (select from public.account_vps_assignments s where s.vps_id = v.id)"""
NO_ROOM = (
    "update public.vps_instances set status = 'draining' where id <> all (%(vpses)s::uuid[]) and status = 'online'"
)
ROOM = """
  update public.vps_instances
  set capacity = 50, status = case status when 'draining' then 'online' else status end where true"""
MT5 = """
  insert into public.trading_accounts (user_id, platform, server, login, name)
  values (%(user)s::uuid, 'mt5', 'Nowhere', %(login)s, %(login)s) returning id::text"""


BOTH_CONNECTED = """
  select f.seen_at > m.session_opened_at from public.trading_accounts f, public.trading_accounts m
  where f.id = %(follower)s::uuid and m.id = %(master)s::uuid"""
RELEASES = "select reason from private.releases where account_id = %(account)s::uuid and vps_id = %(vps)s::uuid"
BROKER = "select address from public.broker_servers where platform = 'paper'"
NO_ROUTE = """
import errno, os, sys

def hook(event, arguments):
    if event == "socket.connect" and arguments[1][1:2] == ({port},) and os.path.exists({closed!r}):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

sys.addaudithook(hook)
"""


async def vps_behind(ground: Ground, closed: Path, name: str = "behind") -> Vps:
    """A VPS whose agent has no route to the broker while the file `closed` is there."""
    port = int(str(await ground.one(BROKER)).rpartition(":")[2])
    (closed.parent / "sitecustomize.py").write_text(NO_ROUTE.format(port=port, closed=str(closed)))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(closed.parent), prepend=os.pathsep)
        return await ground.vps(name)


@asynccontextmanager
async def full_disk(ground: Ground, vps: Vps) -> AsyncIterator[None]:
    """Within this context the agent's process can write no file, not even its log."""
    agent = ground.agent_process(vps)
    before = agent.rlimit(psutil.RLIMIT_FSIZE)
    agent.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        agent.rlimit(psutil.RLIMIT_FSIZE, before)


async def is_unfit(ground: Ground, vps: Vps, reason: str | None, *, limit_s: float) -> None:
    async def told() -> bool:
        return await ground.one(UNFIT, vps=vps.vps_id) == reason

    await until(told, f"{vps.name} to be unfit: {reason}", limit_s=limit_s)


async def alerts(ground: Ground, vps: Vps, desk: Desk) -> set[object]:
    accounts = [account.account_id for account in desk.accounts]
    return {row["reason"] for row in await ground.rows(ALERTS, vps=vps.vps_id, accounts=accounts)}


async def closed(ground: Ground, follower: Worked) -> bool:
    return not (await ground.paper.book(follower.login)).positions


async def test_a_full_disk_moves_the_accounts_to_a_spare_vps_which_copies_the_close(ground: Ground) -> None:
    home, one, _ = await ground.vps("home"), await ground.vps("one"), await ground.vps("spare")
    async with ground.desk(home, [one], ratio=Decimal("0.5")) as desk:
        ticket = await desk.open(lots="0.40")
        await desk.holds(1)
        await desk.assert_money_laws()
        async with full_disk(ground, one):
            await desk.close(ticket)
            await until(lambda: closed(ground, desk.follower), "the close to be copied elsewhere", limit_s=MOVED_S)
            assert (await ground.assigned(desk.follower))["vps_id"] != one.vps_id
            assert await ground.one(UNFIT, vps=one.vps_id) == "journal_unwritable"
            assert "journal_unwritable" in await alerts(ground, one, desk)
            later = await desk.open("USDJPY", "0.40")
            await desk.holds(1)
            await desk.assert_money_laws()
        await is_unfit(ground, one, None, limit_s=FIT_AGAIN_S)
        [row] = await ground.rows(UNFIT, vps=one.vps_id)
        assert row["status"] == "online"
        await desk.close(later)
        await desk.assert_money_laws()


async def test_an_idle_agent_notices_a_full_disk_and_without_a_spare_vps_its_account_says_why(ground: Ground) -> None:
    home, one = await ground.vps("home"), await ground.vps("one")
    async with ground.desk(home, [one], ratio=Decimal("0.5")) as desk:
        ticket = await desk.open(lots="0.40")
        await desk.holds(1)
        await desk.assert_money_laws()
        await ground.rows(NO_ROOM, vpses=[home.vps_id, one.vps_id])
        await ground.rows(FILL, vps=one.vps_id)
        try:
            async with full_disk(ground, one):
                await is_unfit(ground, one, "journal_unwritable", limit_s=20)

                async def says_why() -> bool:
                    [row] = await ground.rows(ACCOUNT, account=desk.follower.account_id)
                    return row["status"] == "disconnected" and str(row["status_reason"]).startswith(
                        "journal_unwritable: "
                    )

                await until(says_why, "the account to read disconnected with the reason", limit_s=MOVED_S)
                assert "journal_unwritable" in await alerts(ground, one, desk)
                await desk.close(ticket)
            await until(
                lambda: closed(ground, desk.follower), "the close to be copied once the disk is free", limit_s=60
            )
            assert (await ground.assigned(desk.follower))["vps_id"] == one.vps_id
            await desk.assert_money_laws()
        finally:
            await ground.rows(ROOM)


async def test_an_account_whose_library_is_missing_is_released_and_the_others_stay(ground: Ground) -> None:
    home, one = await ground.vps("home"), await ground.vps("one")
    both = [home.vps_id, one.vps_id]
    await ground.rows(
        "update public.vps_instances set platforms = '{paper,mt5}' where id = any(%(both)s::uuid[])", both=both
    )
    try:
        async with ground.desk(home, [one], ratio=Decimal("0.5")) as desk:
            ticket = await desk.open(lots="0.40")
            await desk.holds(1)
            account = str(await ground.one(MT5, user=ground.owner.user_id, login="mt5-without-library"))
            await ground.rows(
                "select private.place_account(%(account)s::uuid, %(vps)s::uuid)", account=account, vps=one.vps_id
            )

            async def tried_everywhere() -> bool:
                released = await ground.rows(
                    "select vps_id::text from private.releases where account_id = %(a)s::uuid", a=account
                )
                [row] = await ground.rows(ACCOUNT, account=account)
                words = str(row["status_reason"])
                return {r["vps_id"] for r in released} == set(both) and words.startswith("platform_missing: ")

            await until(tried_everywhere, "both agents to say that they have no such platform", limit_s=40)
            [row] = await ground.rows(ACCOUNT, account=account)
            assert row["status"] == "disconnected"
            assert (await ground.assigned(desk.follower))["vps_id"] == one.vps_id
            await desk.close(ticket)
            await desk.assert_money_laws()
            await ground.rows(
                "update public.trading_accounts set removed_at = now() where id = %(account)s::uuid", account=account
            )
    finally:
        await ground.rows(
            "update public.vps_instances set platforms = '{paper}' where id = any(%(both)s::uuid[])", both=both
        )


async def test_an_account_whose_vps_lost_its_route_to_the_broker_is_worked_by_one_that_has_it(
    ground: Ground, tmp_path: Path
) -> None:
    closed_route = tmp_path / "closed"
    home, behind = await ground.vps("home"), await vps_behind(ground, closed_route)
    async with ground.desk(home, [behind], ratio=Decimal("0.5")) as desk:
        ticket = await desk.open(lots="0.40")
        await desk.holds(1)
        await desk.assert_money_laws()

        async def both_connected() -> bool:
            return (
                await ground.one(BOTH_CONNECTED, follower=desk.follower.account_id, master=desk.master.account_id)
                is True
            )

        await until(both_connected, "the follower to be seen while its master is connected", limit_s=20)
        closed_route.touch()
        assert await ground.paper.disconnect(desk.follower.login) == 1
        await desk.close(ticket)
        await until(lambda: closed(ground, desk.follower), "the close to be copied by another VPS", limit_s=REROUTED_S)
        assert (await ground.assigned(desk.follower))["vps_id"] != behind.vps_id
        assert (await ground.assigned(desk.master))["vps_id"] == home.vps_id, "the others stay"
        [released] = await ground.rows(RELEASES, account=desk.follower.account_id, vps=behind.vps_id)
        assert str(released["reason"]).startswith("broker_unreachable: ")
        assert "broker_unreachable" in await alerts(ground, behind, desk)
        assert await ground.one(UNFIT, vps=behind.vps_id) is None, "it can work everything else"
        later = await desk.open("USDJPY", "0.40")
        await desk.holds(1)
        await desk.assert_money_laws()
        closed_route.unlink()
        await desk.close(later)
        await desk.assert_money_laws()


async def test_while_the_broker_is_away_its_user_is_told_what_is_open(ground: Ground, tmp_path: Path) -> None:
    """The agent lives and says so; the account is away for 30 s, and no other VPS can take it."""
    closed_route = tmp_path / "closed"
    home, cut_off = await ground.vps("home"), await vps_behind(ground, closed_route, "cut-off")
    [usual] = await ground.rows("select value::text from public.system_config where key = 'weekend'")
    await ground.setting("weekend", WORKING_DAY.format(day=datetime.now(UTC).isoweekday() % 7 + 1))
    async with ground.desk(home, [cut_off], ratio=Decimal("0.5")) as desk:
        ticket = await desk.open(lots="0.40")
        await desk.holds(1)
        await desk.assert_money_laws()
        await ground.rows(FILL, vps=cut_off.vps_id)
        closed_route.touch()
        assert await ground.paper.disconnect(desk.follower.login) == 1

        async def told() -> bool:
            rows = await ground.rows(DISCONNECTED, account=desk.follower.account_id)
            return bool(rows) and "EURUSD buy 0.2" in str(rows[0]["message"])

        await until(told, "the alert that names the open copy", limit_s=60)
        said = await ground.testbed.call_as(ground.owner.user_id, "verdict", "p_request", {})
        assert isinstance(said, dict)
        assert said["tone"] == "bad"
        assert await ground.one(UNFIT, vps=cut_off.vps_id) is None, "the agent is well"
        closed_route.unlink()
        await desk.close(ticket)
        await until(lambda: closed(ground, desk.follower), "the close to be copied", limit_s=REROUTED_S)
        await desk.assert_money_laws()
        await ground.rows(ROOM)
    await ground.setting("weekend", usual["value"])
