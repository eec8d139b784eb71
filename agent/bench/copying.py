"""Latency of a copied trade: `copy` (one follower on another VPS) and `fanout` (many followers, until the last
order)."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from agent.bench.arrivals import Arrival, arrive
from agent.bench.histogram import describe
from agent.failure import Failure
from agent.model import Rejected
from agent.paper.client import ticket_of
from agent.paper.specs import DEFAULT_PRICES
from agent.testbed.farm import Opening
from agent.testbed.figures import STAGES
from agent.testbed.quiescence import Hanging, Worked
from agent.testbed.supabase_client import Person
from agent.testbed.testbed import Testbed

LOTS = Decimal("0.10")
BALANCE = Decimal(1_000_000)
SETTLE_S = 60.0
LIMITS_OF_A_USER = ("accounts_per_user_max", "copiers_per_user_max")

ORDERS = """
  select l.master_ticket, q.action, q.status, q.sent_at, t.*
  from public.trade_execution_queue q join public.position_links l on l.id = q.link_id
  join public.execution_latencies t on t.id = q.id
  where q.account_id = any(%(followers)s::uuid[]) order by q.id"""

FINISHED = """
  select count(*)::integer as n, max(q.finalized_at) as last from public.trade_execution_queue q
  where q.account_id = any(%(followers)s::uuid[]) and q.finalized_at is not null and q.id > %(after)s::bigint"""
NEWEST = "select coalesce(max(q.id), 0) as id from public.trade_execution_queue q"
LOOK_S = 0.1


@dataclass(slots=True)
class Trades:
    """The master alternately opens and closes, each close a second after its open. Maps each event to its position."""

    testbed: Testbed
    master: Worked
    per_second: float
    _tickets: dict[int, "asyncio.Future[str]"] = field(default_factory=dict)
    #: (ticket, action) → number of the event
    events: dict[tuple[str, str], int] = field(default_factory=dict)

    def about(self, number: int) -> tuple[Literal["open", "close"], int]:
        """The action of event `number`, and its position (counted from 0)."""
        ahead = math.ceil(self.per_second)
        beyond = number - ahead
        if beyond < 0 or beyond % 2 == 0:
            return "open", number if beyond < 0 else ahead + beyond // 2
        return "close", beyond // 2

    async def action(self, number: int) -> None:
        action, position = self.about(number)
        await (self.open(number, position) if action == "open" else self.close(number, position))

    async def open(self, number: int, position: int) -> None:
        """Event `number`: open `position` (counted from 0)."""
        result = await self.testbed.farm.paper.market(self.master.login, "EURUSD", "buy", LOTS)
        if isinstance(result, Rejected):
            raise _refused(number, result)
        ticket = ticket_of(result)
        self.events[ticket, "open"] = number
        self._ticket(position).set_result(ticket)

    async def close(self, number: int, position: int) -> None:
        """Event `number`: close `position` as soon as it is open."""
        ticket = await self._ticket(position)
        self.events[ticket, "close"] = number
        result = await self.testbed.farm.paper.close_position(self.master.login, ticket)
        if isinstance(result, Rejected):
            raise _refused(number, result)

    def _ticket(self, position: int) -> "asyncio.Future[str]":
        return self._tickets.setdefault(position, asyncio.get_running_loop().create_future())


def _refused(number: int, result: Rejected) -> Failure:
    return Failure(f"the master's broker refused event {number}: {result.reason}", "report it", code="TC660")


@dataclass(frozen=True, slots=True)
class Order:
    """One completed order of a follower; times in ms. All of them are None for an order that was completed without
    being sent, such as a close of what was gone already."""

    number: int
    event: int
    #: seen to sent, and from the master's fill to the follower's
    ours: float | None
    whole: float | None
    #: from the moment at which the event was due until the order was sent
    due: float | None
    stages: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Field:
    """A master, its followers, and their owner."""

    owner: Person
    master: Worked
    followers: Sequence[Worked]


async def prepare(testbed: Testbed, vps_count: int, say: Callable[[str], None]) -> Field:
    """Create VPSes, and a master on the first of them; no followers yet."""
    farm = testbed.farm
    owner = await farm.backend.sign_up("bench@tradecopier.test")
    await farm.add_vpses([f"vps-{number + 1}" for number in range(vps_count)])
    await farm.paper.set_prices(DEFAULT_PRICES)
    vps = next(iter(farm.vpses.values()))
    master = await farm.open_account(Opening(name="master", login="master", balance=BALANCE), owner.user_id, vps)
    await farm.wait_connected([master])
    return Field(owner, master, ())


async def add_followers(
    testbed: Testbed, field: Field, count: int, say: Callable[[str], None], *, beside: bool
) -> Field:
    """Connect followers until there are `count`, distributed over the VPSes (`beside` False: not on the master's)."""
    farm = testbed.farm
    vpses = list(farm.vpses.values())[0 if beside else 1 :]
    added = []
    for number in range(len(field.followers), count):
        name = f"follower-{number + 1}"
        opening = Opening(name=name, login=name, balance=BALANCE)
        added.append(await farm.open_account(opening, field.owner.user_id, vpses[number % len(vpses)]))
        if number % 50 == 49:
            say(f"{number + 1} of {count} followers")
    await farm.wait_connected(added)
    for follower in added:
        await farm.save_copier(field.owner, field.master, follower, {})
    return Field(field.owner, field.master, (*field.followers, *added))


async def allow_accounts(testbed: Testbed, count: int) -> None:
    """Raise the limits: one user owns all accounts, with a copier each, which is more than the default allows."""
    for key in LIMITS_OF_A_USER:
        await testbed.farm.backend.rpc("set_setting", "p_request", {"key": key, "value": count})


async def run_events(testbed: Testbed, field: Field, *, events: int, warm_up: int, per_second: float) -> list[Order]:
    """`run_trades`, only the orders."""
    _, orders = await run_trades(testbed, field, events=events, warm_up=warm_up, per_second=per_second)
    return orders


async def run_trades(
    testbed: Testbed, field: Field, *, events: int, warm_up: int, per_second: float
) -> tuple[Trades, list[Order]]:
    """Warm up, then make `events` changes on a fixed schedule.

    Returns the changes and all orders; `Failure` if one is missing or extra.
    """
    warm = Trades(testbed, field.master, per_second)
    await arrive(warm_up, per_second, warm.action)
    await settle(testbed, field)
    trades = Trades(testbed, field.master, per_second)
    [newest] = await testbed.farm.observer.rows(NEWEST)
    arrivals = await arrive(events, per_second, trades.action)
    await wait_finished(testbed, field, newest["id"], events * len(field.followers))
    in_flight = await settle(testbed, field)
    orders = await orders_of(testbed, field, trades, {arrival.number: arrival for arrival in arrivals})
    expected = events * len(field.followers)
    if len(orders) != expected or in_flight:
        raise Failure(
            f"{expected} orders were expected, {len(orders)} were completed"
            + (f"; a minute later {in_flight[:300]}" if in_flight else ""),
            "discard this result and look for the cause with `tradecopier demo`",
            code="TC660",
        )
    return trades, orders


async def settle(testbed: Testbed, field: Field) -> str | None:
    """Wait until every mirror equals its broker's book and nothing is in flight.

    Describes what is left after a minute.
    """
    try:
        await testbed.farm.observer.wait_quiet([field.master, *field.followers], limit_s=SETTLE_S)
    except Hanging as hanging:
        return str(hanging)
    return None


async def wait_finished(testbed: Testbed, field: Field, after: object, expected: int) -> None:
    """Wait until this many executions above number `after` are final, at most a minute.

    Polls with one cheap query: comparing every book with its mirror meanwhile would be a load of its own.
    """
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        finished, _ = await finished_since(testbed, field, after)
        if finished >= expected:
            return
        await asyncio.sleep(LOOK_S)


async def finished_since(testbed: Testbed, field: Field, after: object) -> tuple[int, datetime | None]:
    """How many executions above number `after` are final, and when the last one was booked."""
    parameters = {"followers": [follower.account_id for follower in field.followers], "after": after}
    [row] = await testbed.farm.observer.rows(FINISHED, parameters)
    finished, last = row["n"], row["last"]
    return finished if isinstance(finished, int) else 0, last if isinstance(last, datetime) else None


async def orders_of(testbed: Testbed, field: Field, trades: Trades, arrivals: Mapping[int, Arrival]) -> list[Order]:
    """The completed orders that resulted from `arrivals` (by event number)."""
    rows = await testbed.farm.observer.rows(
        ORDERS, {"followers": [follower.account_id for follower in field.followers]}
    )
    found = []
    for row in rows:
        event = trades.events.get((str(row["master_ticket"]), str(row["action"])))
        if event is not None and event in arrivals and row["status"] == "completed":
            found.append(order_of(row, event, arrivals[event].due_at))
    return found


def order_of(row: Mapping[str, object], event: int, due_at: datetime) -> Order:
    """`row`: of ORDERS."""
    sent_at = row["sent_at"]
    return Order(
        number=int(str(row["id"])),
        event=event,
        ours=_ms(row["ours_ms"]),
        whole=_ms(row["whole_ms"]),
        due=max(0.0, (sent_at - due_at).total_seconds() * 1000) if isinstance(sent_at, datetime) else None,
        stages={stage: _ms(row[f"{stage}_ms"]) for stage in STAGES},
    )


def _ms(value: object) -> float | None:
    return None if value is None else float(str(value))


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def summarise(orders: Sequence[Order]) -> dict[str, object]:
    """Per order: both sums, the time from the schedule to sending, and each stage. `unsent`: orders without times."""
    ours = describe(known(order.ours for order in orders))
    return {
        "orders": len(orders),
        "unsent": sum(1 for order in orders if order.due is None),
        "latency_ms": ours,
        "ours_ms": ours,
        "whole_ms": describe(known(order.whole for order in orders)),
        "from_schedule_ms": describe(known(order.due for order in orders)),
        "stages_ms": {stage: describe(known(order.stages[stage] for order in orders)) for stage in STAGES},
    }


def summarise_last(orders: Sequence[Order]) -> dict[str, object]:
    """Per event: time until the last of its orders was sent."""
    last: dict[int, Order] = {}
    for order in orders:
        if order.event not in last or (order.ours or 0) > (last[order.event].ours or 0):
            last[order.event] = order
    return {
        "events": len(last),
        "last_sent_ms": describe(known(order.ours for order in last.values())),
        "last_sent_from_schedule_ms": describe(known(order.due for order in last.values())),
    }
