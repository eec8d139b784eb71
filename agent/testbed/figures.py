"""The figures of a run: what was copied, what was not and why, how fast, and whether every book is as it should be.

Counts and times come from the database; `divergence` and `duplicates` come from the brokers' books and request records.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.paper.client import PaperClient
from agent.paper.records import RequestRecord
from agent.testbed.divergence import Book, Divergence, Settings, compare, wanted_by
from agent.testbed.quiescence import Observer, Worked


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """A copier of a run: master, follower and settings."""

    master: Worked
    follower: Worked
    settings: Settings


#: the stages of a latency, in their order (docs/latency.md)
STAGES = ("detect", "request", "lock", "plan", "deliver", "lane", "broker")

#: of everything in the database, which is of this run alone: what the dashboard and the live table count, too
FIGURES = "select private.figures_of(null, null, null, null, 0) as figures"
COMPLETED = """
  select a.platform, count(*)::integer as n
  from public.trade_execution_queue q join public.trading_accounts a on a.id = q.account_id
  where q.account_id = any(%(accounts)s::uuid[]) and q.status = 'completed' group by 1"""
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
    counted = await copy_figures(observer, FIGURES)
    stages = mapping(counted["stages_ms"])
    apart = await divergence(paper, copiers)
    return {
        "seconds": round(seconds, 3),
        "events": events if events is not None else await _count(observer, EVENTS, parameters),
        "trades": counted["trades"],
        "executions": counted["orders"],
        "not_copied": counted["not_copied"],
        "skipped": counted["skipped"],
        "success_rate": counted["success_rate"],
        "latency_ms": counted["latency_ms"],
        "ours_ms": counted["ours_ms"],
        "whole_ms": counted["whole_ms"],
        "stages_ms": {stage: stages[stage] for stage in STAGES},
        "divergence": {"missing": apart.missing, "orphan": apart.orphan, "volume_mismatch": apart.volume_mismatch},
        "duplicates": await duplicates(paper, [account.login for account in followers.values()]),
        "unexplained": await _count(observer, UNEXPLAINED, {}),
        "platforms": _platforms(await observer.rows(ACCOUNTS, parameters), await observer.rows(COMPLETED, parameters)),
        "vps": await _count(observer, FARM, {}),
        "verdict": await verdict(observer),
    }


async def copy_figures(observer: Observer, statement: str) -> Mapping[str, object]:
    """The database's own count of trades, orders and times (docs/api.md, `copy_figures`), by a call of `figures_of`."""
    [row] = await observer.rows(statement)
    return mapping(row["figures"])


def mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"the database returned {value!r} instead of an object")
    return value


def counts(value: object) -> dict[str, int]:
    """Counts by name."""
    return {name: _integer(n) for name, n in mapping(value).items()}


async def _count(observer: Observer, statement: str, parameters: Mapping[str, object]) -> int:
    [row] = await observer.rows(statement, parameters)
    return _integer(row["n"])


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"the database returned {value!r} instead of a count")
    return value


def _platforms(
    accounts: Iterable[Mapping[str, object]], completed: Iterable[Mapping[str, object]]
) -> dict[str, dict[str, int]]:
    done = {str(row["platform"]): _integer(row["n"]) for row in completed}
    return {
        str(row["platform"]): {"accounts": _integer(row["n"]), "completed": done.get(str(row["platform"]), 0)}
        for row in accounts
    }
