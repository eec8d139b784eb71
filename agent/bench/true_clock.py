"""The same latency by one clock: what the brokers of a benchmark wrote down, without any agent's idea of the time.

All processes of a benchmark run on one machine, whose clock both brokers read. The stage `detect` begins and ends on
the master's agent, so its offset cancels out of it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from agent.bench.copying import Field, Order, Trades
from agent.paper.records import Deal, RequestRecord
from agent.testbed.testbed import Testbed

OFFSETS = """
  select v.name, v.clock_offset_ms::double precision as ms from public.vps_instances v
  where v.retired_at is null order by v.name"""


async def ours_by_true_clock(testbed: Testbed, field: Field, trades: Trades, orders: Sequence[Order]) -> list[float]:
    """For each order, ms from the moment at which the master's agent saw the change until the order was at its broker.
    It contains the way from the agent to the broker, which `ours_ms` does not."""
    book = await testbed.farm.paper.book(field.master.login)
    filled = fills(book.deals, trades)
    arrived: dict[int, datetime] = {}
    for follower in field.followers:
        arrived |= arrivals_of(await testbed.farm.paper.requests(follower.login))
    return [
        (arrived[order.number] - filled[order.event]) / timedelta(milliseconds=1) - detect
        for order in orders
        if order.number in arrived and order.event in filled and (detect := order.stages["detect"]) is not None
    ]


def fills(deals: Sequence[Deal], trades: Trades) -> dict[int, datetime]:
    """When the master's broker made the deal of each event."""
    actions = {"in": "open", "out": "close"}
    found: dict[int, datetime] = {}
    for deal in deals:
        event = trades.events.get((deal.ticket or "", actions.get(deal.entry, "")))
        if event is not None:
            found[event] = deal.at
    return found


def arrivals_of(requests: Sequence[RequestRecord]) -> dict[int, datetime]:
    """When the first request with each execution number arrived at a broker."""
    found: dict[int, datetime] = {}
    for request in requests:
        if request.tag is not None:
            found.setdefault(request.tag, request.at)
    return found


async def offsets(testbed: Testbed) -> Mapping[str, object]:
    """What each agent believes that the database's clock is ahead of this machine's, in ms; the truth is 0."""
    return {str(row["name"]): row["ms"] for row in await testbed.farm.observer.rows(OFFSETS)}
