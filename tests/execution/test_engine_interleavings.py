"""Whatever comes in whatever order, however often, with whatever faults and restarts: no number opens twice."""

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

from engine_harness import Desk, FakeDatabase, Fault, eventually, execution, open_session, running_lease
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.clock import DatabaseClock
from agent.execution.engine import EngineSettings, TradeCopyEngine
from agent.execution.outcome_resolver import Pace
from agent.journal.journal import Journal
from agent.model import Execution, ExecutionId

QUICK = EngineSettings(
    place_timeout=timedelta(milliseconds=20),
    pace=Pace(first=timedelta(milliseconds=2), longest=timedelta(milliseconds=10)),
)
FINAL = {"completed", "rejected", "expired", "cancelled"}


@dataclass(frozen=True)
class Plan:
    """What the database asks for, what goes wrong at the broker, and when the agent is interrupted."""

    lanes: list[int]
    closes: list[bool]
    faults: list[Fault | None]
    interruptions: list[str | None]
    seed: int

    def executions(self) -> list[Execution]:
        made: list[Execution] = []
        for number, (lane, closed) in enumerate(zip(self.lanes, self.closes, strict=True)):
            opening = execution(10 * number + 1, lane=f"{lane}.{number}", seconds=0.6)
            made.append(opening)
            if closed:
                close = execution(10 * number + 2, "close", lane=opening.lane, after_id=opening.step_id, seconds=0.6)
                made.append(close)
        return made


plans = st.integers(1, 5).flatmap(
    lambda size: st.builds(
        Plan,
        lanes=st.lists(st.integers(0, 2), min_size=size, max_size=size),
        closes=st.lists(st.booleans(), min_size=size, max_size=size),
        faults=st.lists(
            st.sampled_from([None, None, "reject", "lost", "executed", "hang"]), min_size=size, max_size=size
        ),
        interruptions=st.lists(st.sampled_from([None, "reconnect", "restart", "journal lost"]), max_size=3),
        seed=st.integers(0, 10_000),
    )
)


async def live(plan: Plan, folder: Path) -> tuple[Desk, list[FakeDatabase]]:
    """One agent's life (or several lives), until every execution has an outcome."""
    random, desk, session = Random(plan.seed), Desk(), 0
    wanted = plan.executions()
    desk.faults = {10 * number + 1: fault for number, fault in enumerate(plan.faults) if fault is not None}
    databases: list[FakeDatabase] = []
    continues = True
    for interruption in [*plan.interruptions, None]:
        journal, database = await Journal.open(folder / "journal.sqlite"), FakeDatabase()
        databases.append(database)
        async with TradeCopyEngine(journal, database, DatabaseClock(), running_lease(), QUICK) as engine:
            session += 1
            await engine.attach(await open_session(desk, number=session, continues=continues))
            offers = [*wanted, *wanted]
            random.shuffle(offers)
            for cut in range(0, len(offers), 3):
                engine.submit(offers[cut : cut + 3])
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(0)
            if interruption == "reconnect":
                session += 1
                await engine.attach(await open_session(desk, number=session))
                engine.submit(wanted)
            continues = True
            if interruption is None:

                def all_reported() -> bool:
                    ended = {r.execution_id for each in databases for r in each.reports if r.outcome in FINAL}
                    return engine.in_flight == 0 and ended >= {each.id for each in wanted}

                await eventually(all_reported, seconds=20)
        await journal.close()
        if interruption == "journal lost":
            continues = False
            for part in folder.iterdir():
                part.unlink()
    return desk, databases


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans)
def test_no_number_opens_twice_and_everything_gets_an_outcome(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk, databases = asyncio.run(live(plan, Path(folder)))
    opens = Counter(order.tag for order in desk.sent if order.kind == "market")
    assert all(count == 1 for count in opens.values()), opens
    told = [report for database in databases for report in database.reports]
    for tag in opens:
        outcomes = {report.outcome for report in told if report.execution_id == tag}
        if tag in desk.filled:
            assert "completed" in outcomes
        else:
            assert "completed" not in outcomes
    positions = {position.tag for position in desk.held.values()}
    for each in plan.executions():
        if each.action == "close":
            opened = ExecutionId(each.id - 1)
            if any(report.execution_id == each.id and report.filled_lots > 0 for report in told):
                assert opened not in positions


def test_the_same_execution_received_by_every_path_at_once_is_one_order() -> None:
    async def run(folder: Path) -> Desk:
        desk, database, journal = Desk(), FakeDatabase(), await Journal.open(folder / "journal.sqlite")
        async with TradeCopyEngine(journal, database, DatabaseClock(), running_lease(), QUICK) as engine:
            told = [replace(execution(number), lots=Decimal("0.10")) for number in range(1, 21)]
            engine.submit(told)
            await engine.attach(await open_session(desk))
            for _ in range(10):
                engine.submit(reversed(told))
                await asyncio.sleep(0)
            await eventually(lambda: engine.in_flight == 0)
        await journal.close()
        return desk

    with tempfile.TemporaryDirectory() as folder:
        desk = asyncio.run(run(Path(folder)))
    assert sorted(desk.tags) == list(range(1, 21))
