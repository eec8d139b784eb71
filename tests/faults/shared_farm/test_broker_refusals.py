"""Orders that a broker refuses, delays or fills in part, and the outcome: real agents at the paper broker.

Covered elsewhere with the real parts, and not repeated here:
* a close that finds the market closed is tried until it is done: tests/scenarios/market_closed.yaml
* answers that are lost: tests/scenarios/timeout_executed.yaml, timeout_lost.yaml, bare_answer.yaml
"""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import cast

import pytest
from fault_harness import Desk, Ground, until

from agent.paper.profile import Profile
from agent.paper.records import RequestRecord
from agent.testbed.quiescence import Worked

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

D = Decimal
ALERTS = "select reason, severity, times from public.alerts where account_id = %(account)s::uuid"


def story(records: Sequence[RequestRecord]) -> list[tuple[str, str, str | None]]:
    return [(record.kind, record.outcome, record.reason) for record in records]


async def status(desk: Desk) -> str:
    return str((await desk.ground.assigned(desk.follower))["account_status"])


async def refused_with(desk: Desk, ticket: str) -> list[object]:
    """The reason why the follower has no copy of a ticket, once it is decided."""
    found: list[object] = []

    async def decided() -> bool:
        rows = await desk.ground.executions(desk.follower)
        found[:] = [
            row["reason"] for row in rows if row["action"] == "open" and row["status"] in ("rejected", "expired")
        ]
        return bool(found)

    await until(decided, f"the open of {ticket} to be refused for good")
    return found


@pytest.mark.covers("X1")
async def test_a_requote_and_a_moved_price_are_tried_again_with_the_same_number(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], max_age_ms=60000) as desk:
        await ground.paper.fault(desk.follower.login, "requote")
        await ground.paper.fault(desk.follower.login, "price_changed")
        ticket = await desk.open(lots="0.20")
        await desk.holds(1)
        sent = await desk.sent()
        # the broker refused it each time before it was sent again
        assert story(sent) == [
            ("market", "refused", "requote"),
            ("market", "refused", "price_changed"),
            ("market", "executed", None),
        ]
        assert len({record.tag for record in sent}) == 1
        await desk.close(ticket)
        await desk.assert_money_laws()


@pytest.mark.covers("X1")
async def test_endless_requotes_are_given_up_when_the_event_is_too_old(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], max_age_ms=2500) as desk:
        await ground.paper.fault(desk.follower.login, "requote", next_orders=1000)
        ticket = await desk.open(lots="0.20")
        assert await refused_with(desk, ticket) == ["too_old"]
        assert 1 < len(await desk.sent()) < 10
        await ground.paper.clear_faults(desk.follower.login)
        await desk.assert_money_laws(not_copied=[ticket])
        await desk.close(ticket)


@pytest.mark.covers("X3")
async def test_later_reductions_are_measured_by_what_was_filled(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        await ground.paper.fault(desk.follower.login, "partial", share=D("0.6"))
        ticket = await desk.open(lots="1.00")
        await desk.holds(1)
        [copy] = (await ground.paper.book(desk.follower.login)).positions
        assert copy.lots == D("0.60")
        await desk.close(ticket, "0.50")

        async def reduced() -> bool:
            return [held.lots for held in (await ground.paper.book(desk.follower.login)).positions] == [D("0.30")]

        await until(reduced, "half of what was filled to be taken off")
        await desk.close(ticket)
        await desk.assert_money_laws()


@pytest.mark.covers("X5")
async def test_a_closed_market_is_waited_for_and_a_close_goes_first_when_it_opens(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], max_age_ms=1000) as desk:
        kept = await desk.open(lots="0.20")
        await desk.holds(1)
        await desk.assert_money_laws()
        before = len(await desk.sent())
        await ground.paper.fault(desk.follower.login, "market_closed", next_orders=4)
        opened = await desk.open("XAUUSD", "0.10")
        await desk.close(kept)

        async def copied() -> bool:
            return [held.symbol for held in (await ground.paper.book(desk.follower.login)).positions] == ["XAUUSD"]

        # held for its retry window, well past the age at which other refusals are given up
        await until(copied, "the close and the open to be done when the market is open again")
        later = (await desk.sent())[before:]
        assert [record.outcome for record in later].count("refused") == 4
        assert len({record.tag for record in later if record.symbol == "XAUUSD"}) == 1
        await desk.close(opened)
        await desk.assert_money_laws()


@pytest.mark.covers("X5")
async def test_an_open_is_given_up_when_the_market_stays_closed(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], retry_window_s=2) as desk:
        await ground.paper.fault(desk.follower.login, "market_closed", next_orders=1000)
        ticket = await desk.open(lots="0.20")
        assert await refused_with(desk, ticket) == ["too_old"]
        await ground.paper.clear_faults(desk.follower.login)
        await desk.assert_money_laws(not_copied=[ticket])
        await desk.close(ticket)


@pytest.mark.covers("X9")
async def test_a_symbol_that_may_only_be_closed_is_closed_and_not_opened(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        held = await desk.open(lots="0.20")
        await desk.holds(1)
        login = desk.follower.login
        [spec] = [one for one in (await ground.paper.book(login)).symbols if one.name == "EURUSD"]
        await ground.paper.put_symbols(login, [replace(spec, trade_mode="close_only")])
        refused = await desk.open(lots="0.10")
        assert await refused_with(desk, refused) == ["close_only"]
        await desk.close(held, "0.10")
        await desk.close(held)
        await desk.assert_money_laws(not_copied=[refused])
        await desk.close(refused)


@pytest.mark.covers("X10")
@pytest.mark.parametrize("reason", ["autotrading_off", "investor_password"])
async def test_an_account_that_may_not_trade_is_degraded_with_one_alert_and_recovers_by_itself(
    ground: Ground, reason: str
) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        account = desk.follower.account_id
        held = await desk.open(lots="0.20")
        await desk.holds(1)
        await ground.paper.fault(desk.follower.login, cast("object", reason), next_orders=3)  # type: ignore[arg-type]
        refused = await desk.open("XAUUSD", "0.10")
        assert await refused_with(desk, refused) == [reason]

        async def degraded() -> bool:
            return await status(desk) == "degraded"

        await until(degraded, "the account to say that it cannot trade")
        await desk.close(held)  # refused twice more, then done: closes are tried for ever

        async def recovered() -> bool:
            return await status(desk) == "connected"

        await desk.holds(0)
        await until(recovered, "the account to recover with the first success")
        assert [
            (row["reason"], row["severity"], row["times"]) for row in await ground.rows(ALERTS, account=account)
        ] == [(reason, "critical", 1)]
        await desk.assert_money_laws(not_copied=[refused])
        await desk.close(refused)


@pytest.mark.covers("X14")
async def test_an_opposite_open_at_a_broker_without_hedging_is_refused_with_that_reason(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=Profile(no_hedging=True)) as desk:
        bought = await desk.open(lots="0.20")
        await desk.holds(1)
        sold = await desk.open(lots="0.10", side="sell")
        assert await refused_with(desk, sold) == ["no_hedging"]
        await desk.close(sold)
        await desk.close(bought)
        await desk.assert_money_laws()


@pytest.mark.covers("X14")
async def test_at_a_fifo_broker_the_oldest_of_the_same_volume_goes_and_each_copy_keeps_its_own(
    ground: Ground,
) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=Profile(fifo=True)) as desk:
        older = await desk.open(lots="0.20")
        await desk.holds(1)
        newer = await desk.open(lots="0.20")
        await desk.holds(2)
        [_, second] = (await ground.paper.book(desk.follower.login)).positions
        await desk.close(newer)
        await desk.holds(1)
        [left] = (await ground.paper.book(desk.follower.login)).positions
        assert left.ticket == second.ticket
        await desk.assert_money_laws()
        await desk.close(older, "0.10")

        async def halved() -> bool:
            return [held.lots for held in (await ground.paper.book(desk.follower.login)).positions] == [D("0.10")]

        await until(halved, "the older copy to be reduced on the ticket that it holds now")
        await desk.close(older)
        await desk.assert_money_laws()


async def test_a_close_out_of_order_at_a_fifo_broker_says_why_and_is_done_when_it_may(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=Profile(fifo=True)) as desk:
        older = await desk.open(lots="0.20")
        await desk.holds(1)
        newer = await desk.open(lots="0.30")
        await desk.holds(2)
        await desk.close(newer)

        async def refused() -> bool:
            return any(row["reason"] == "fifo" for row in await ground.executions(desk.follower))

        await until(refused, "the broker's reason")
        await desk.close(older)
        await desk.holds(0)
        await desk.assert_money_laws()


@pytest.mark.covers("X15")
async def test_a_connection_that_knows_its_rate_is_never_refused_for_too_many_orders(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=Profile(orders_per_second_max=6)) as desk:
        before = (await ground.assigned(desk.follower))["session"]
        await ground.farm.backend.rpc(
            "update_account", "p_request",
            {"account_id": desk.follower.account_id, "settings": {"paper": {"orders_per_second": 5}}},
            token=ground.owner.token,
        )  # fmt: skip

        async def again() -> bool:
            now = await ground.assigned(desk.follower)
            return now["session"] != before and now["account_status"] == "connected"

        await until(again, "the session that keeps to the rate")
        tickets = [await desk.open(lots="0.10") for _ in range(12)]
        await desk.holds(12)
        for ticket in tickets:
            await desk.close(ticket)
        await desk.holds(0)
        assert {record.outcome for record in await desk.sent()} == {"executed"}
        await desk.assert_money_laws()


@pytest.mark.covers("R23")
async def test_a_follower_without_a_quote_of_the_symbol_says_so(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        [spec] = [one for one in (await ground.paper.book(desk.master.login)).symbols if one.name == "EURUSD"]
        for account in desk.accounts:
            before = (await ground.assigned(account))["session"]
            await ground.paper.put_symbols(account.login, [replace(spec, name="NZDCHF")])
            await ground.paper.disconnect(account.login)  # specifications are reported at each login

            async def again(account: Worked = account, before: object = before) -> bool:
                now = await ground.assigned(account)
                return now["session"] != before and now["account_status"] == "connected"

            await until(again, f"the next session of {account.name}")
        await ground.paper.set_prices({"NZDCHF": (D("0.52000"), D("0.52010"))}, login=desk.master.login)
        ticket = await desk.open("NZDCHF", "0.20")
        reasons = await refused_or_unmapped(desk)
        assert reasons == ["no_quotes"]
        await desk.assert_money_laws(not_copied=[ticket])
        await desk.close(ticket)


async def refused_or_unmapped(desk: Desk) -> list[object]:
    """The reasons of the follower, those of the database included."""
    found: list[object] = []

    async def decided() -> bool:
        rows = await desk.ground.rows(
            """select o.reason from public.copy_outcomes o join public.copiers c on c.id = o.copier_id
               where c.follower_account_id = %(account)s::uuid and o.reason is not null
               union all select q.reason from public.trade_execution_queue q
               where q.account_id = %(account)s::uuid and q.status in ('rejected', 'expired')""",
            account=desk.follower.account_id,
        )
        found[:] = [row["reason"] for row in rows]
        return bool(found)

    await until(decided, "a reason")
    return found
