"""Brokers that give what is left of a position a new ticket, as MetaTrader 4 does: the copy goes on, nothing is opened
again."""

from decimal import Decimal

import pytest
from fault_harness import Ground

from agent.paper.profile import Profile

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

LINKS = """
  select master_ticket, generation, state from public.position_links
  where follower_account_id = %(account)s::uuid order by id"""
LEGS = """
  select g.ticket, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id
  where l.follower_account_id = %(account)s::uuid"""
RETICKETS = Profile(retickets=True)


@pytest.mark.covers("P5", "P7")
@pytest.mark.parametrize(("master", "follower"), [(RETICKETS, None), (None, RETICKETS), (RETICKETS, RETICKETS)])
async def test_what_is_left_goes_on_under_its_new_ticket(
    ground: Ground, master: Profile | None, follower: Profile | None
) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], ratio=Decimal("0.5"), profile=follower, master_profile=master) as desk:
        first = await desk.open(lots="1.00")
        await desk.holds(1)
        await desk.settled(20)
        await desk.close(first, "0.30")
        await desk.assert_money_laws()
        [left] = (await ground.paper.book(desk.master.login)).positions
        [copy] = (await ground.paper.book(desk.follower.login)).positions
        assert (left.lots, copy.lots) == (Decimal("0.70"), Decimal("0.35"))
        assert (left.ticket == first) == (master is None)
        # one copy all along: it belongs to the master's ticket of now and holds the follower's ticket of now
        assert await ground.rows(LINKS, account=desk.follower.account_id) == [
            {"master_ticket": left.ticket, "generation": 1, "state": "live"}
        ]
        assert await ground.rows(LEGS, account=desk.follower.account_id) == [
            {"ticket": copy.ticket, "lots": Decimal("0.35")}
        ]
        assert [record.kind for record in await desk.sent()] == ["market", "close"]
        await desk.close(left.ticket)
        await desk.holds(0)
        await desk.assert_money_laws()
        assert [record.kind for record in await desk.sent()] == ["market", "close", "close"]
