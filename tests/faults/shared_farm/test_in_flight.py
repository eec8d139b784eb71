"""Actions of a master while the copy's open is at a slow broker."""

from decimal import Decimal

import pytest
from fault_harness import Desk, Ground

from agent.paper.profile import Profile

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

SLOW = Profile(latency_ms_min=900, latency_ms_max=900)


async def at_the_broker(desk: Desk) -> None:
    """Wait until the agent has sent the open and the broker processes it."""
    await desk.ground.paper.wait_for_request(desk.follower.login, await desk.first_execution(), timeout=20)


async def orders(desk: Desk) -> list[tuple[str, Decimal | None]]:
    return [(record.kind, record.lots) for record in await desk.sent()]


@pytest.mark.covers("P16")
async def test_a_copy_whose_master_closed_meanwhile_is_closed_when_its_open_has_filled(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=SLOW) as desk:
        ticket = await desk.open(lots="1.00")
        await at_the_broker(desk)
        await desk.close(ticket, "0.30")
        await ground.paper.modify(desk.master.login, ticket, sl=Decimal("1.05"), tp=None)
        await desk.assert_money_laws()
        [copy] = (await ground.paper.book(desk.follower.login)).positions
        assert (copy.lots, copy.sl) == (Decimal("0.70"), Decimal("1.05"))
        assert (await orders(desk))[:2] == [("market", Decimal("1.00")), ("close", Decimal("0.30"))]


@pytest.mark.covers("P17")
async def test_an_open_that_its_master_has_left_is_closed_as_soon_as_it_is_answered(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=SLOW) as desk:
        ticket = await desk.open(lots="0.40")
        await at_the_broker(desk)
        await desk.close(ticket)
        await desk.assert_money_laws()
        assert (await ground.paper.book(desk.follower.login)).positions == ()
        assert await orders(desk) == [("market", Decimal("0.40")), ("close", Decimal("0.40"))]
