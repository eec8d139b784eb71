"""Law 4.3: who may execute. One agent per account; whoever held it before does not send.

Covered elsewhere with the real parts, and not repeated here:
* every function refuses an old epoch, and anything without a lease: tests/sql/upkeep/test_lease.py
* an execution of an older epoch, past its deadline or without a lease is not sent: tests/execution/test_engine.py
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import cast

import psutil
import pytest
import pytest_asyncio
from fault_harness import Desk, Ground, until

from agent.failure import Failure
from agent.model import Placed
from agent.paper.records import Request
from agent.testbed.farm import Vps
from agent.testbed.quiescence import Worked

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

BEAT = "select last_heartbeat_at from public.vps_instances where id = %(vps)s::uuid"
NOW = "select clock_timestamp()"
SYMBOLS = ("EURUSD", "USDJPY", "XAUUSD", "GBPUSD")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def short_leases(ground: Ground) -> AsyncIterator[None]:
    """A lost agent is found sooner; all other settings are unchanged."""
    await ground.setting("maintain_s", 1)
    await ground.setting("lease_s", 7)
    yield


async def move(ground: Ground, account: Worked, vps: Vps) -> Mapping[str, object]:
    """An operator assigns the account to another VPS."""
    request = {"account_id": account.account_id, "vps_id": vps.vps_id}
    return await ground.farm.backend.rpc("assign_account", "p_request", request)


async def works_at(ground: Ground, account: Worked, vps: Vps, *, limit_s: float = 60) -> None:
    async def there() -> bool:
        now = await ground.assigned(account)
        [session] = await ground.rows(
            "select session_vps_id::text as vps from public.trading_accounts where id = %(account)s::uuid",
            account=account.account_id,
        )
        # before begins_at the new agent may only read
        begun = cast(datetime, now["begins_at"]) <= cast(datetime, await ground.one(NOW))
        return begun and (now["vps_id"], session["vps"], now["account_status"]) == (vps.vps_id, vps.vps_id, "connected")

    await until(there, f"{account.name} to be worked by {vps.name}", limit_s=limit_s)


async def has_beaten(ground: Ground, vps: Vps) -> None:
    """Wait for a heartbeat that is received after this call."""
    since = cast(datetime, await ground.one(NOW))

    async def beaten() -> bool:
        last = await ground.one(BEAT, vps=vps.vps_id)
        return isinstance(last, datetime) and last > since

    await until(beaten, f"a heartbeat of {vps.name}")


@pytest.mark.covers("R11")
async def test_an_account_that_moves_under_load_is_traded_by_one_agent_at_a_time(ground: Ground) -> None:
    home, one, two = await ground.vps("home"), await ground.vps("one"), await ground.vps("two")
    async with ground.desk(home, [one], max_age_ms=60000) as desk:
        held = [await desk.open("EURUSD", "0.20")]
        epochs = []
        for vps in (two, one):
            for step in range(6):
                held.append(await desk.open(SYMBOLS[step % 4], "0.20"))
                if step == 2:
                    epochs.append((await move(ground, desk.follower, vps))["epoch"])
                if step % 2:
                    await desk.close(held.pop(0), None)
            await works_at(ground, desk.follower, vps)
        assert epochs == [2, 3]
        for ticket in held[:-1]:
            await desk.close(ticket)
        await has_beaten(ground, one)
        await has_beaten(ground, two)
        for ticket in held[-1:]:
            await desk.close(ticket)
        await desk.assert_money_laws()
        kept = await desk.open("GBPUSD", "0.30")
        await desk.holds(1)
        await desk.assert_money_laws()
        await desk.close(kept)


async def test_the_epoch_before_is_refused_while_its_agent_lives(ground: Ground) -> None:
    home, one, two = await ground.vps("home"), await ground.vps("one"), await ground.vps("two")
    async with ground.desk(home, [one]) as desk:
        before = await ground.assigned(desk.follower)
        await move(ground, desk.follower, two)
        await works_at(ground, desk.follower, two)
        old: dict[str, object] = {"account_id": desk.follower.account_id, "epoch": before["epoch"]}
        calls: list[tuple[str, str, dict[str, object]]] = [
            ("open_session", "p_request", old),
            ("account_credentials", "p_request", old),
            ("queue_trade_copy", "p_events", {**old, "events": []}),
            ("report_account_state", "p_state", {**old, "session": before["session"], "status": "connected"}),
        ]
        for function, parameter, argument in calls:
            with pytest.raises(Failure) as refused:
                await ground.testbed.call_as(str(before["agent"]), function, parameter, argument)
            assert refused.value.code == "TC103", function
        # with the new epoch, but not its own
        now = await ground.assigned(desk.follower)
        with pytest.raises(Failure) as refused:
            await ground.testbed.call_as(
                str(before["agent"]), "queue_trade_copy", "p_events", {**old, "epoch": now["epoch"], "events": []}
            )
        assert refused.value.code == "TC103"
        ticket = await desk.open(lots="0.20")
        await desk.holds(1)
        await desk.assert_money_laws()
        await desk.close(ticket)


@pytest.mark.covers("R11")
async def test_an_agent_that_was_paused_past_its_lease_sends_nothing_when_it_wakes(ground: Ground) -> None:
    home, one, _ = await ground.vps("home"), await ground.vps("one"), await ground.vps("two")
    async with ground.desk(home, [one], ratio=Decimal("0.5")) as desk:
        closed, reduced = await desk.open(lots="0.40"), await desk.open("USDJPY", "0.40")
        await desk.holds(2)
        await desk.assert_money_laws()
        async with ground.frozen(one):
            # sent to a socket that is not read: the paused agent receives all of it when it resumes
            await desk.close(closed)
            await desk.close(reduced, "0.20")
            lost = await desk.open("XAUUSD", "0.40")
            new_home = await rehoused(ground, desk, one)
            await desk.holds(1)
            later = await desk.open("GBPUSD", "0.20")
            await desk.holds(2)
            await desk.assert_money_laws(not_copied=[lost])
            sent = await desk.sent()
            woken = ground.agent_process(one)
        assert woken.status() != psutil.STATUS_STOPPED
        await has_beaten(ground, one)
        await has_beaten(ground, one)
        assert await desk.sent() == sent
        await desk.close(later)
        await desk.close(lost)
        await desk.assert_money_laws()
        assert (await ground.assigned(desk.follower))["vps_id"] == new_home
        await desk.close(reduced)
        await desk.assert_money_laws()


async def rehoused(ground: Ground, desk: Desk, lost: Vps) -> str:
    """Wait until the follower's account has another VPS than `lost`, which works it; returns its id."""

    async def elsewhere() -> bool:
        now = await ground.assigned(desk.follower)
        return now["vps_id"] != lost.vps_id and now["account_status"] == "connected"

    await until(elsewhere, "the account to have another VPS", limit_s=60)
    return str((await ground.assigned(desk.follower))["vps_id"])


async def test_a_fill_reported_after_expired_and_from_an_old_epoch_is_a_fact(ground: Ground) -> None:
    home, one, two = await ground.vps("home"), await ground.vps("one"), await ground.vps("two")
    async with ground.desk(home, [one]) as desk:
        before = await ground.assigned(desk.follower)
        async with ground.frozen(one):
            ticket = await desk.open(lots="0.30")
            number = await desk.first_execution()
            await move(ground, desk.follower, two)

            async def expired() -> bool:
                [execution] = await ground.executions(desk.follower)
                return execution["status"] == "expired"

            await until(expired, "the order that nobody sent to be given up", limit_s=60)
            # … but it had been sent: it was at the broker all the time
            order = Request(
                kind="market",
                origin="expert",
                symbol="EURUSD",
                side="buy",
                lots=Decimal("0.30"),
                tag=number,
                magic=number,
            )
            placed = await ground.paper.submit(desk.follower.login, order)
            assert isinstance(placed, Placed)
            answer = await ground.testbed.call_as(
                str(before["agent"]),
                "report_executions",
                "p_reports",
                {"reports": [late_report(desk, before, number, placed)]},
            )
            assert [result["status"] for result in cast(dict[str, list[dict[str, str]]], answer)["results"]] == [
                "accepted"
            ]
            [execution] = await ground.executions(desk.follower)
            assert execution["status"] == "completed"
            await desk.assert_money_laws()
            await desk.close(ticket, "0.10")
            await desk.assert_money_laws()
            await desk.close(ticket)
            await desk.assert_money_laws()
        await has_beaten(ground, one)
        await desk.assert_money_laws()


def late_report(desk: Desk, before: Mapping[str, object], number: int, placed: Placed) -> dict[str, object]:
    """The report of the agent with the old epoch: filled."""
    [position] = placed.positions
    now = datetime.now(UTC).isoformat()
    return {
        "account_id": desk.follower.account_id, "session": before["session"], "seq": 9000,
        "execution_id": str(number), "attempt": 1,
        "outcome": "completed", "filled_lots": str(placed.lots), "price": str(placed.price),
        "positions": [{
            "ticket": position.ticket, "kind": "position", "symbol": position.symbol, "side": position.side,
            "lots": str(position.lots), "price": str(position.price), "sl": None, "tp": None, "tag": str(number),
        }],
        "received_at": now, "sent_at": now, "done_at": now,
    }  # fmt: skip
