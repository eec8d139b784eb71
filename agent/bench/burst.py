"""A burst: one master opens many positions within a second, many followers copy them, then all are closed.

Lost and duplicate orders are counted from the brokers' own journals, request by request; only times are read from the
database. In a wave, each follower's journal must contain as many orders as the master had events, each with its own
execution number.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from agent.bench.arrivals import arrive
from agent.bench.copying import (
    NEWEST,
    Field,
    Order,
    Trades,
    finished_since,
    orders_of,
    settle,
    summarise,
    wait_finished,
)
from agent.bench.histogram import describe
from agent.failure import Failure
from agent.paper.records import RequestRecord
from agent.testbed.testbed import Testbed


@dataclass(frozen=True, slots=True)
class Count:
    """Orders of a wave according to the brokers' journals.

    `lost`: never executed; `twice`: beyond the first per copy.
    """

    expected: int
    carried_out: int
    lost: int
    twice: int
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class Wave:
    """Milliseconds from the moment when the first event was due to the last order at its broker, and to the last report
    booked in the database."""

    count: Count
    sent_ms: float
    done_ms: float
    orders: list[Order]


async def run_burst(testbed: Testbed, field: Field, positions: int, per_second: float) -> tuple[Wave, Wave]:
    """Open `positions` on the master at `per_second`, wait for all copies, then close them alike.

    Returns (opens, closes).
    """
    trades = Trades(testbed, field.master, per_second)
    opens = await _wave(testbed, field, trades, "market", positions, per_second)
    closes = await _wave(testbed, field, trades, "close", positions, per_second)
    return opens, closes


async def _wave(
    testbed: Testbed, field: Field, trades: Trades, kind: Literal["market", "close"], positions: int, per_second: float
) -> Wave:
    observer, first = testbed.farm.observer, 0 if kind == "market" else positions
    act = trades.open if kind == "market" else trades.close
    seen = {follower.login: await _last_request(testbed, follower.login) for follower in field.followers}
    [newest] = await observer.rows(NEWEST)
    arrivals = await arrive(positions, per_second, _numbered(act, first))
    await wait_finished(testbed, field, newest["id"], positions * len(field.followers))
    in_flight = await settle(testbed, field)
    _, done_at = await finished_since(testbed, field, newest["id"])
    journals = {login: await _orders_since(testbed, login, kind, after) for login, after in seen.items()}
    count = count_orders(journals, positions)
    check(count, in_flight)
    start = arrivals[0].due_at
    orders = await orders_of(testbed, field, trades, {first + arrival.number: arrival for arrival in arrivals})
    return Wave(count, _ms(start, count.last_at), _ms(start, done_at), orders)


def _numbered(act: Callable[[int, int], Awaitable[None]], first: int) -> Callable[[int], Awaitable[None]]:
    async def action(number: int) -> None:
        await act(first + number, number)

    return action


async def _last_request(testbed: Testbed, login: str) -> int:
    return max((record.number for record in await testbed.farm.paper.requests(login)), default=0)


async def _orders_since(testbed: Testbed, login: str, kind: str, after: int) -> list[RequestRecord]:
    """Requests that agents sent to this broker since then; a human's requests carry no execution number."""
    records = await testbed.farm.paper.requests(login)
    return [record for record in records if record.number > after and record.kind == kind and record.origin == "expert"]


def count_orders(journals: Mapping[str, Sequence[RequestRecord]], per_follower: int) -> Count:
    """Compare each follower's journal with the expected number of orders."""
    lost = twice = carried_out = 0
    last_at: datetime | None = None
    for records in journals.values():
        executed = [record for record in records if record.outcome == "executed"]
        copies = len({record.tag for record in executed})
        lost += max(0, per_follower - copies)
        twice += len(executed) - copies + max(0, copies - per_follower)
        carried_out += len(executed)
        last_at = max([record.at for record in executed] + ([last_at] if last_at else []), default=None)
    return Count(per_follower * len(journals), carried_out, lost, twice, last_at)


def check(count: Count, in_flight: str | None) -> None:
    """Raises `Failure` (TC660) when an order was lost or duplicated, or when something stays in flight."""
    if count.lost or count.twice or in_flight:
        raise Failure(
            f"by the brokers' journals, {count.lost} of {count.expected} orders were lost and {count.twice} duplicated"
            + (f"; a minute later {in_flight[:300]}" if in_flight else ""),
            "discard this result and look for the cause with `tradecopier demo`",
            code="TC660",
        )


def _ms(start: datetime, end: datetime | None) -> float:
    return float("inf") if end is None else (end - start) / timedelta(milliseconds=1)


def summarise_waves(waves: Sequence[Wave]) -> dict[str, object]:
    """Counts over all waves, times from the first due event, and the latency of each order."""
    counts = [wave.count for wave in waves]
    expected, lost, twice = (sum(getattr(count, name) for count in counts) for name in ("expected", "lost", "twice"))
    return {
        "expected": expected,
        "lost": lost,
        "twice": twice,
        "last_sent_ms": describe(wave.sent_ms for wave in waves),
        "done_ms": describe(wave.done_ms for wave in waves),
        **summarise([order for wave in waves for order in wave.orders]),
    }
