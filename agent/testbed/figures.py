"""The figures of a run: what was copied, what was not and why, how fast, and whether every book is as it should be.

Counts and times come from the database; `divergence` and `duplicates` come from the brokers' books and request records.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from agent.paper.client import PaperClient
from agent.paper.records import RequestRecord
from agent.testbed.divergence import Book, Divergence, Settings, compare, wanted_by
from agent.testbed.quiescence import Observer, Worked
from agent.testbed.reasons import NOTHING_TO_DO


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """A copier of a run: master, follower and settings."""

    master: Worked
    follower: Worked
    settings: Settings


EXECUTIONS = """
  select q.status, coalesce(q.reason, '') as reason, a.platform, count(*)::integer as n
  from public.trade_execution_queue q join public.trading_accounts a on a.id = q.account_id
  where q.account_id = any(%(accounts)s::uuid[]) group by 1, 2, 3"""
SKIPPED = """
  select o.reason, count(*)::integer as n from public.copy_outcomes o join public.copiers c on c.id = o.copier_id
  where o.reason is not null and c.follower_account_id = any(%(accounts)s::uuid[]) group by 1"""
TIMES = """
  select greatest(0, extract(epoch from q.sent_at - q.detected_at) * 1000) as latency,
    greatest(0, extract(epoch from q.queued_at - q.detected_at) * 1000) as decide,
    greatest(0, extract(epoch from q.received_at - q.queued_at) * 1000) as transport,
    greatest(0, extract(epoch from q.done_at - q.sent_at) * 1000) as broker
  from public.trade_execution_queue q
  where q.account_id = any(%(accounts)s::uuid[]) and q.status = 'completed' and not q.adopted and q.sent_at is not null
    and q.detected_at is not null order by q.id"""
EVENTS = """
  select count(*)::integer as n from public.trade_events e
  where e.account_id = any(%(masters)s::uuid[]) and e.status = 'accepted'
    and e.type in ('opened', 'increased', 'reduced', 'closed')"""
UNEXPLAINED = "select count(*)::integer as n from public.unexplained_pairs"
ACCOUNTS = """
  select platform, count(*)::integer as n from public.trading_accounts where id = any(%(all)s::uuid[]) group by 1"""
FARM = (
    "select count(*)::integer as n from public.vps_instances where retired_at is null and last_heartbeat_at is not null"
)
VERDICT = "select private.verdict_of(null) as verdict"


async def verdict(observer: Observer) -> dict[str, str]:
    """What the board's first line says of the whole installation now: `text`, and its `tone` (ok, idle, warn, bad)."""
    [row] = await observer.rows(VERDICT)
    said = row["verdict"]
    if not isinstance(said, dict):
        raise TypeError(f"the database returned {said!r} instead of a verdict")
    return {"tone": str(said["tone"]), "text": str(said["text"])}


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile (`share` from 0 to 1) of sorted values; None when there are none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else None


def spread(values: Iterable[float]) -> dict[str, float | int | None]:
    """p50, p95, p99, max and n of values in milliseconds, rounded to a microsecond. Percentiles by nearest rank."""
    ordered = sorted(values)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    found: dict[str, float | int | None] = {}
    for name, share in shares.items():
        value = percentile(ordered, share)
        found[name] = None if value is None else round(value, 3)
    return {**found, "n": len(ordered)}


async def book_of(paper: PaperClient, login: str) -> Book:
    view = await paper.book(login)
    return Book(
        mode=view.state.mode,
        positions=view.positions,
        deals=view.deals,
        symbols={spec.name: spec for spec in view.symbols},
    )


async def divergence(paper: PaperClient, copiers: Iterable[Copying]) -> Divergence:
    """Compare every follower's book with its masters' books and the copiers' settings."""
    by_follower: dict[str, list[Copying]] = {}
    for copier in copiers:
        by_follower.setdefault(copier.follower.login, []).append(copier)
    found = Divergence()
    for login, feeding in by_follower.items():
        follower = await book_of(paper, login)
        wanted = [
            one
            for copier in feeding
            for one in wanted_by(await book_of(paper, copier.master.login), copier.settings, follower)
        ]
        found += compare(wanted, follower)
    return found


async def duplicates(paper: PaperClient, logins: Iterable[str]) -> int:
    """Number of orders that a broker executed beyond the first one with the same tag."""
    return sum([surplus(records) for login in logins for records in (await paper.requests_by_tag(login)).values()])


def surplus(records: Iterable[RequestRecord]) -> int:
    """Number of opening requests beyond the first. Closing several tickets (a split copy) and setting levels may take
    several requests, so they are not counted."""
    opened = sum(1 for record in records if record.outcome == "executed" and record.kind in ("market", "pending"))
    return max(0, opened - 1)


async def measure(
    observer: Observer, paper: PaperClient, copiers: Sequence[Copying], *, seconds: float, events: int | None = None
) -> dict[str, object]:
    """The figures of a run as JSON. `events`: how many actions of masters were detected, if the caller knows it; else
    events are counted."""
    followers = {copier.follower.account_id: copier.follower for copier in copiers}
    masters = {copier.master.account_id: copier.master for copier in copiers}
    parameters = {"accounts": list(followers), "masters": list(masters), "all": [*followers, *masters]}
    executions = await observer.rows(EXECUTIONS, parameters)
    times = await observer.rows(TIMES, parameters)
    counts = _executions(executions)
    stages = {stage: spread(_floats(times, stage))["p50"] for stage in ("decide", "transport", "broker")}
    apart = await divergence(paper, copiers)
    return {
        "seconds": round(seconds, 3),
        "events": events if events is not None else await _count(observer, EVENTS, parameters),
        "executions": counts,
        "skipped": {
            str(row["reason"]): row["n"]
            for row in await observer.rows(SKIPPED, parameters)
            if row["reason"] not in NOTHING_TO_DO
        },
        "success_rate": _success_rate(executions),
        "latency_ms": spread(_floats(times, "latency")),
        "stages_ms": stages,
        "divergence": {"missing": apart.missing, "orphan": apart.orphan, "volume_mismatch": apart.volume_mismatch},
        "duplicates": await duplicates(paper, [account.login for account in followers.values()]),
        "unexplained": await _count(observer, UNEXPLAINED, {}),
        "platforms": _platforms(await observer.rows(ACCOUNTS, parameters), executions),
        "vps": await _count(observer, FARM, {}),
        "verdict": await verdict(observer),
    }


def _floats(rows: Iterable[Mapping[str, object]], column: str) -> list[float]:
    return [float(value) for row in rows if isinstance(value := row[column], Decimal | float | int)]


async def _count(observer: Observer, statement: str, parameters: Mapping[str, object]) -> int:
    [row] = await observer.rows(statement, parameters)
    return _integer(row["n"])


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"the database returned {value!r} instead of a count")
    return value


def _sum(rows: Iterable[Mapping[str, object]], *statuses: str) -> int:
    return sum(_integer(row["n"]) for row in rows if row["status"] in statuses)


def _executions(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    rejected: dict[str, int] = {}
    for row in rows:
        if row["status"] == "rejected":
            reason = str(row["reason"])
            rejected[reason] = rejected.get(reason, 0) + _integer(row["n"])
    return {
        "completed": _sum(rows, "completed"),
        "rejected": rejected,
        "expired": _sum(rows, "expired"),
        "cancelled": _sum(rows, "cancelled"),
        "open": _sum(rows, "queued", "retrying", "unknown"),
    }


def _success_rate(rows: Sequence[Mapping[str, object]]) -> float | None:
    """Completed executions by all that ended; those cancelled because nothing was left to do are left out."""
    completed = _sum(rows, "completed")
    dropped = _sum([row for row in rows if row["reason"] not in NOTHING_TO_DO], "cancelled")
    ended = completed + _sum(rows, "rejected", "expired") + dropped
    return round(completed / ended, 6) if ended else None


def _platforms(
    accounts: Iterable[Mapping[str, object]], executions: Sequence[Mapping[str, object]]
) -> dict[str, dict[str, int]]:
    return {
        str(row["platform"]): {
            "accounts": _integer(row["n"]),
            "completed": _sum([one for one in executions if one["platform"] == row["platform"]], "completed"),
        }
        for row in accounts
    }
