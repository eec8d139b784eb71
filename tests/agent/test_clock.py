"""The agent's clock: the offset from four stamps, and what a clock that is set does to it."""

from datetime import UTC, datetime, timedelta

import pytest

from agent import clock as clocks
from agent.clock import DatabaseClock

HOUR = timedelta(hours=1)
MS = timedelta(milliseconds=1)


class Machine:
    """A machine with a boot clock that moves only here, a wall clock, and a database whose clock is `ahead` of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = 5_000.0
        #: the wall clock when the boot clock was 0, and the database's clock then
        self.wall = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.database = self.wall
        monkeypatch.setattr(clocks, "boot_time", lambda: self.boot)
        monkeypatch.setattr(clocks, "datetime", self)

    def now(self, zone: object = None) -> datetime:
        return self.wall + timedelta(seconds=self.boot)

    def call(self, clock: DatabaseClock, *, there: float, back: float, inside: float = 0) -> None:
        """One call, in ms: `there` until the database received it, `inside` until it sent the answer, `back` until
        that was here."""
        left = self.boot
        received = self.database + timedelta(seconds=left) + there * MS
        self.boot += (there + inside + back) / 1000
        clock.measure(left, received, received + inside * MS, self.boot)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_the_offset_is_that_of_four_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5905: ((t1 − t0) + (t2 − t3)) / 2 with t0 = 10.000, t1 = noon + 10.102, t2 = noon + 10.150, t3 = 10.060."""
    monkeypatch.setattr(clocks, "boot_time", lambda: 10.0)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    clock = DatabaseClock()
    clock.measure(10.0, noon + timedelta(seconds=10.102), noon + timedelta(seconds=10.150), 10.06)
    assert clock.now() == noon + timedelta(seconds=10 + (0.102 + 0.090) / 2)


def test_the_time_that_the_database_works_is_no_part_of_the_error(machine: Machine) -> None:
    """A call that was planned for 80 ms measures as well as an empty one."""
    clock = DatabaseClock()
    machine.database += 3 * MS
    machine.call(clock, there=1, inside=80, back=1)
    assert clock.offset_ms == pytest.approx(3)


def test_the_shortest_time_under_way_counts(machine: Machine) -> None:
    clock = DatabaseClock()
    machine.database += 100 * MS
    machine.call(clock, there=72, back=8)
    machine.call(clock, there=1, inside=500, back=1)
    machine.call(clock, there=9, back=81)
    assert clock.offset_ms == pytest.approx(100)


def test_the_last_eight_count(machine: Machine) -> None:
    clock = DatabaseClock()
    machine.call(clock, there=0.1, back=0.1)
    for _ in range(7):
        machine.call(clock, there=3, back=1)
    assert clock.offset_ms == pytest.approx(0)
    machine.call(clock, there=3, back=1)
    assert clock.offset_ms == pytest.approx(1), "half of the difference between the two ways"


@pytest.mark.covers("R19")
@pytest.mark.parametrize("step", [HOUR, -HOUR, 40 * MS])
def test_the_databases_clock_that_was_set_counts_at_once(machine: Machine, step: timedelta) -> None:
    clock = DatabaseClock()
    for _ in range(8):
        machine.call(clock, there=1, back=1)
    machine.database += step
    machine.call(clock, there=15, back=15)
    assert clock.offset_ms == pytest.approx(step / MS)
    machine.call(clock, there=16, back=16)
    assert clock.offset_ms == pytest.approx(step / MS), "nothing measured before the step counts again"


@pytest.mark.covers("R19")
@pytest.mark.parametrize("step", [HOUR, -HOUR, 40 * MS])
def test_this_machines_wall_clock_that_was_set_changes_no_time(machine: Machine, step: timedelta) -> None:
    """NTP steps the clock between two calls: what was measured before stays right, and the next heartbeat reports the
    new offset."""
    clock = DatabaseClock()
    machine.call(clock, there=1, back=1)
    before = clock.now()
    machine.wall += step
    assert clock.now() == before
    assert clock.offset_ms == pytest.approx(-step / MS)


def test_a_clock_that_was_set_during_the_call_measures_nothing(machine: Machine) -> None:
    clock = DatabaseClock()
    machine.call(clock, there=2, back=2)
    known = clock.now()
    received = known + HOUR
    clock.measure(machine.boot, received, received - 10 * MS, machine.boot + 0.02)  # set back
    clock.measure(machine.boot, received, received + HOUR, machine.boot + 0.02)  # set forward
    assert clock.now() == known


def test_before_the_first_call_it_is_this_machines_own(machine: Machine) -> None:
    clock = DatabaseClock()
    assert (clock.offset_ms, clock.now()) == (0, machine.now())
