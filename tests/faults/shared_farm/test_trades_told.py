"""The view `copied_trades` agrees with the brokers' own books."""

from decimal import Decimal

import pytest
from fault_harness import Ground

from agent.model import Side

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

ROWS = """
  select event, status, reason, master_price, filled_lots, fill_price, slippage_points, slippage_money, currency,
    detect_ms, request_ms, lock_ms, plan_ms, deliver_ms, lane_ms, broker_ms, ours_ms, whole_ms
  from public.copied_trades where follower_account_id = %(account)s::uuid order by event_id"""
OURS = ("request_ms", "lock_ms", "plan_ms", "deliver_ms", "lane_ms")
WHOLE = ("detect_ms", *OURS, "broker_ms")


@pytest.mark.parametrize(("side", "reverse"), [("buy", False), ("sell", False), ("buy", True)])
async def test_a_trade_is_shown_as_both_brokers_booked_it(ground: Ground, side: Side, reverse: bool) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], ratio=Decimal("0.5"), reverse=reverse) as desk:
        ticket = await desk.open(lots="0.40", side=side)
        await desk.holds(1)
        await desk.close(ticket, "0.20")
        await desk.settled(20)
        await desk.close(ticket)
        await desk.holds(0)
        await desk.settled(20)
        rows = await ground.rows(ROWS, account=desk.follower.account_id)
        masters = [deal for deal in (await ground.paper.book(desk.master.login)).deals if deal.ticket]
        followers = [deal for deal in (await ground.paper.book(desk.follower.login)).deals if deal.ticket]
        assert [row["event"] for row in rows] == ["opened", "reduced", "closed"]
        assert {(row["status"], row["reason"], row["currency"]) for row in rows} == {("copied", None, "USD")}
        bought = side if not reverse else "sell" if side == "buy" else "buy"
        for row, master, follower in zip(rows, masters, followers, strict=True):
            # a reverse copy deals at the other side of the market, which is a spread away
            spread = Decimal("0.00010") if reverse else 0
            worse = (follower.price - master.price) * (
                1 if (bought == "buy") == (row["event"] == "opened") else -1
            ) - spread
            assert (row["master_price"], row["fill_price"], row["filled_lots"]) == (
                master.price,
                follower.price,
                follower.lots,
            )
            assert row["slippage_points"] == worse / Decimal("0.00001")
            assert row["slippage_money"] == worse * 100_000 * follower.lots
            assert None not in [row[name] for name in WHOLE]
            told = {name: Decimal(str(row[name])) for name in WHOLE}
            assert min(told.values()) >= 0
            assert sum(told.values()) == row["whole_ms"]
            assert sum(told[name] for name in OURS) == row["ours_ms"]
