"""A burst: many positions of one master within a second, copied to many followers at once, then all of them closed.

Whether an order was lost or made twice is counted from the brokers' own journals, request by request; the database is asked
for times only. Each follower's journal of a wave must hold as many orders as the master had events, each under a number
(execution) of its own.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from agent.bench.arrivals import arrive
from agent.bench.copying import NEWEST, Field, Order, Trades, finished_since, orders_of, settle, summarise, wait_finished
from agent.bench.histogram import describe
from agent.demo.shelter import Shelter
from agent.failure import Failure
from agent.paper.records import RequestRecord


@dataclass(frozen=True, slots=True)
class Count:
    """Orders of a wave by the brokers' journals. `lost`: never carried out; `twice`: beyond the first for one copy."""

    expected: int
    carried_out: int
    lost: int
    twice: int
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class Wave:
    """From the moment the first event was due, in ms: → last order at its broker, → last report booked in the database."""

    count: Count
    sent_ms: float
    done_ms: float
    orders: list[Order]


async def run_burst(shelter: Shelter, field: Field, positions: int, per_second: float) -> tuple[Wave, Wave]:
    """Open `positions` on the master at `per_second`, wait for every copy, then close them the same way. (opens, closes)"""
    trades = Trades(shelter, field.master, per_second)
    opens = await _wave(shelter, field, trades, "market", positions, per_second)
    closes = await _wave(shelter, field, trades, "close", positions, per_second)
    return opens, closes


async def _wave(
    shelter: Shelter, field: Field, trades: Trades, kind: Literal["market", "close"], positions: int, per_second: float
) -> Wave:
    observer, first = shelter.farm.observer, 0 if kind == "market" else positions
    act = trades.open if kind == "market" else trades.close
    seen = {follower.login: await _last_request(shelter, follower.login) for follower in field.followers}
    [newest] = await observer.rows(NEWEST)
    arrivals = await arrive(positions, per_second, _numbered(act, first))
    await wait_finished(shelter, field, newest["id"], positions * len(field.followers))
    in_flight = await settle(shelter, field)
    _, done_at = await finished_since(shelter, field, newest["id"])
    journals = {login: await _orders_since(shelter, login, kind, after) for login, after in seen.items()}
    count = count_orders(journals, positions)
    check(count, in_flight)
    start = arrivals[0].due_at
    orders = await orders_of(shelter, field, trades, {first + arrival.number: arrival for arrival in arrivals})
    return Wave(count, _ms(start, count.last_at), _ms(start, done_at), orders)


def _numbered(act: Callable[[int, int], Awaitable[None]], first: int) -> Callable[[int], Awaitable[None]]:
    async def deed(number: int) -> None:
        await act(first + number, number)

    return deed


async def _last_request(shelter: Shelter, login: str) -> int:
    return max((record.number for record in await shelter.farm.paper.requests(login)), default=0)


async def _orders_since(shelter: Shelter, login: str, kind: str, after: int) -> list[RequestRecord]:
    """What agents asked of this broker since then; a human's own requests carry no execution number."""
    records = await shelter.farm.paper.requests(login)
    return [record for record in records if record.number > after and record.kind == kind and record.origin == "expert"]


def count_orders(journals: Mapping[str, Sequence[RequestRecord]], per_follower: int) -> Count:
    """Compare each follower's journal with the number of orders that it was to be sent."""
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
    """Raises `Failure` (TC660) when an order was lost or made twice, or something is in flight without end."""
    if count.lost or count.twice or in_flight:
        raise Failure(
            f"by the brokers' journals {count.lost} of {count.expected} orders were lost and {count.twice} made twice"
            + (f"; a minute later {in_flight[:300]}" if in_flight else ""),
            "the benchmark is void; look for the cause with `tradecopier demo`",
            code="TC660",
        )


def _ms(start: datetime, end: datetime | None) -> float:
    return float("inf") if end is None else (end - start) / timedelta(milliseconds=1)


def summarise_waves(waves: Sequence[Wave]) -> dict[str, object]:
    """Counts over all waves, times from the first event due, and what each order took."""
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
