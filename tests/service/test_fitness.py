"""When an agent counts as unfit, and when as fit again: on a virtual clock, with a real journal where it is about
one."""

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from agent.journal import writer as journal_writer
from agent.journal.file import JournalError
from agent.journal.journal import Journal
from agent.service.fitness import BEAT_S, LARGE_PROBE, SMALL_PROBE, Fitness, FitnessWatch, Free, Limits

PLENTY = Free(memory_mb=5_000, disk_mb=5_000)


def refuse(fitness: Fitness, since: float, until: float) -> None:
    """A write fails every second."""
    at = since
    while at <= until:
        fitness.journal(at, written=False)
        at += 1


def test_a_journal_that_refuses_writes_for_five_seconds_makes_unfit() -> None:
    fitness = Fitness()
    refuse(fitness, 100, 104)
    assert fitness.unfit(104.9) is None
    fitness.journal(105, written=False)
    assert fitness.unfit(105) == "journal_unwritable"


def test_a_write_in_between_restarts_the_five_seconds() -> None:
    fitness = Fitness()
    refuse(fitness, 100, 104)
    fitness.journal(104.5, written=True)
    refuse(fitness, 105, 109)
    assert fitness.unfit(109) is None
    fitness.journal(110, written=False)
    assert fitness.unfit(110) == "journal_unwritable"


def test_it_is_fit_after_thirty_seconds_without_the_fault() -> None:
    fitness = Fitness()
    refuse(fitness, 100, 110)
    fitness.journal(111, written=True)
    assert fitness.unfit(139.9) == "journal_unwritable"
    assert fitness.unfit(140) is None


def test_one_more_refusal_while_unfit_restarts_the_thirty_seconds() -> None:
    fitness = Fitness()
    refuse(fitness, 100, 110)
    fitness.journal(111, written=True)
    fitness.journal(130, written=False)
    fitness.journal(131, written=True)
    assert fitness.unfit(159) == "journal_unwritable"
    assert fitness.unfit(160) is None


@pytest.mark.parametrize(
    ("stalls", "unfit"),
    [
        ([(10, 2.1), (20, 2.1), (30, 2.1)], True),
        ([(10, 2.1), (20, 2.1), (70, 2.1)], True),
        ([(10, 2.1), (20, 2.1), (71, 2.1)], False),
        ([(10, 2.1), (20, 2.0), (30, 2.1)], False),
        ([(10, 600), (20, 2.1)], False),
    ],
)
def test_three_stalls_over_two_seconds_within_a_minute_make_unfit(
    stalls: list[tuple[float, float]], unfit: bool
) -> None:
    fitness = Fitness()
    for at, late in stalls:
        fitness.beat(at, late)
    assert fitness.unfit(stalls[-1][0]) == ("loop_stalled" if unfit else None)


def test_after_stalls_it_is_fit_when_there_was_none_for_thirty_seconds() -> None:
    fitness = Fitness()
    for at in (10, 20, 30, 50):
        fitness.beat(at, 3)
    assert fitness.unfit(79) == "loop_stalled"
    assert fitness.unfit(80) is None


@pytest.mark.parametrize(
    ("per_minute", "unfit"), [(0.0, False), (0.9, False), (-0.9, False), (1.1, True), (-1.1, True)]
)
def test_a_wall_clock_that_drifts_over_a_second_a_minute_makes_unfit(per_minute: float, unfit: bool) -> None:
    fitness = Fitness()
    for half_second in range(2 * 180):
        at = half_second / 2
        fitness.clocks(at, 1_000_000 + at * (1 + per_minute / 60))
    assert fitness.unfit(180) == ("clock_drift" if unfit else None)


def test_after_a_step_of_the_wall_clock_it_is_fit_again_once_the_clocks_agree() -> None:
    fitness = Fitness()
    for second in range(300):
        fitness.clocks(second, 1_000_000 + second + (5 if second >= 100 else 0))
        if second == 100:
            assert fitness.unfit(second) == "clock_drift"
    assert fitness.unfit(300) is None


@pytest.mark.parametrize(
    ("free", "reason"),
    [
        (Free(memory_mb=49.9, disk_mb=5_000), "low_memory"),
        (Free(memory_mb=5_000, disk_mb=49.9), "low_disk"),
        (Free(memory_mb=0, disk_mb=0), "low_disk"),
        (Free(memory_mb=50, disk_mb=50), None),
    ],
)
def test_under_fifty_mb_of_memory_or_disk_make_unfit(free: Free, reason: str | None) -> None:
    fitness = Fitness()
    fitness.free(10, free)
    assert fitness.unfit(10) == reason
    fitness.free(12, PLENTY)
    assert fitness.unfit(39) == reason
    assert fitness.unfit(40) is None


def test_of_several_faults_the_most_serious_is_reported() -> None:
    fitness = Fitness(Limits(journal_s=0))
    fitness.free(10, Free(memory_mb=1, disk_mb=1))
    fitness.journal(10, written=False)
    assert fitness.unfit(10) == "journal_unwritable"


class Probe:
    """A journal on a disk that the test fills and frees."""

    def __init__(self) -> None:
        self.full = False
        self.sizes: list[int] = []
        self.refused_writes = 0

    async def probe(self, size: int) -> None:
        self.sizes.append(size)
        if self.full:
            self.refused_writes += 1
            raise JournalError("database or disk is full")


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0


async def test_an_idle_agent_notices_a_full_disk_and_reports_it_at_once() -> None:
    journal, clock, told = Probe(), Time(), list[tuple[float, str | None]]()

    def tell() -> None:
        told.append((clock.now, watch.unfit()))

    watch = FitnessWatch(journal, lambda: PLENTY, now=lambda: clock.now, wall=lambda: clock.now, on_change=tell)
    for _ in range(40):
        journal.full = 1_010 <= clock.now < 1_020
        await watch.probe_once()
        clock.now += 1
    [(unfit_at, unfit)] = told
    assert (unfit_at, unfit) == (1_015, "journal_unwritable")
    assert set(journal.sizes[:11]) == {SMALL_PROBE}
    assert set(journal.sizes[11:21]) == {LARGE_PROBE}, (
        "once refused, only what an order needs proves that it can be written again"
    )
    clock.now = 1_049
    await watch.probe_once()
    assert [unfit for _, unfit in told] == ["journal_unwritable", None]


async def test_a_write_that_was_refused_beside_the_probes_counts() -> None:
    journal, clock = Probe(), Time()
    watch = FitnessWatch(journal, lambda: PLENTY, now=lambda: clock.now, wall=lambda: clock.now)
    for _ in range(6):
        journal.refused_writes += 1
        await watch.probe_once()
        clock.now += 1
    assert watch.unfit() == "journal_unwritable"


async def test_while_it_runs_it_measures_the_machine_and_reports() -> None:
    told = asyncio.Event()
    watch = FitnessWatch(Probe(), lambda: Free(memory_mb=1, disk_mb=100), on_change=told.set)
    running = asyncio.ensure_future(watch.run())
    async with asyncio.timeout(20):
        await told.wait()
    assert watch.unfit() == "low_memory"
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_while_it_runs_it_notices_a_loop_that_stalls() -> None:
    """The clock jumps by three seconds whenever the loop sleeps between two checks."""
    clock, told = Time(), asyncio.Event()
    jumps = iter([3.0, 3.0, 3.0])

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)
        clock.now += seconds + (next(jumps, 0.0) if seconds == BEAT_S else 0.0)
        if told.is_set():
            await asyncio.Event().wait()

    watch = FitnessWatch(
        Probe(), lambda: PLENTY, now=lambda: clock.now, wall=lambda: clock.now, sleep=sleep, on_change=told.set
    )  # fmt: skip
    running = asyncio.ensure_future(watch.run())
    async with asyncio.timeout(20):
        await told.wait()
    assert watch.unfit() == "loop_stalled"
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_real_journal_is_probed_and_refuses_when_it_cannot_grow(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite3")
    clock = Time()
    watch = FitnessWatch(journal, lambda: PLENTY, now=lambda: clock.now, wall=lambda: clock.now)

    async def limit(pages: str) -> None:
        sql = f"pragma max_page_count = {pages}"
        await journal._writer.execute(lambda connection: connection.execute(sql).fetchall())

    async def probes() -> None:
        for _ in range(7):
            await watch.probe_once()
            clock.now += 1

    await probes()
    assert watch.unfit() is None
    await limit("1")
    refused = journal._writer.execute(
        lambda connection: connection.execute("create table big as select zeroblob(99999)").rowcount
    )
    with pytest.raises(JournalError):
        await refused
    await probes()
    assert watch.unfit() == "journal_unwritable"
    await limit("1000000")
    await probes()
    clock.now += 30
    assert watch.unfit() is None
    await journal.close()


async def test_a_disk_that_does_not_answer_counts_as_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_writer, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr("agent.service.fitness.PROBE_S", 0.02)
    journal = await Journal.open(tmp_path / "journal.sqlite3")
    clock, go_on = Time(), threading.Event()
    journal._writer.enqueue(lambda _: go_on.wait(20))
    ticks = iter(range(1_000_000))
    watch = FitnessWatch(journal, lambda: PLENTY, now=lambda: clock.now + next(ticks), wall=lambda: clock.now)
    await watch.probe_once()
    assert watch.unfit() == "journal_unwritable"
    go_on.set()
    await journal.close()
