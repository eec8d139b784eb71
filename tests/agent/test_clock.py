from datetime import UTC, datetime, timedelta

from agent.clock import DatabaseClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def measure(clock: DatabaseClock, *, trip_ms: float, offset_ms: float, server_share: float = 0.5) -> None:
    """One heartbeat; `server_share`: the part of the round trip after which the database read its clock."""
    trip = timedelta(milliseconds=trip_ms)
    clock.measure(NOON, NOON + trip * server_share + timedelta(milliseconds=offset_ms), NOON + trip)


def test_the_shortest_round_trip_counts() -> None:
    clock = DatabaseClock()
    measure(clock, trip_ms=80, offset_ms=100, server_share=0.9)
    measure(clock, trip_ms=2, offset_ms=100)
    measure(clock, trip_ms=90, offset_ms=100, server_share=0.1)
    assert clock.offset_ms == 100


def test_a_clock_that_was_set_counts_at_once() -> None:
    clock = DatabaseClock()
    measure(clock, trip_ms=2, offset_ms=0)
    measure(clock, trip_ms=30, offset_ms=-500)
    assert clock.offset_ms == -500


def test_old_measurements_are_forgotten() -> None:
    clock = DatabaseClock()
    measure(clock, trip_ms=1, offset_ms=5)
    for _ in range(DatabaseClock.KEEP):
        measure(clock, trip_ms=4, offset_ms=6)
    assert clock.offset_ms == 6


def test_a_round_trip_that_ended_before_it_began_is_ignored() -> None:
    clock = DatabaseClock()
    measure(clock, trip_ms=4, offset_ms=7)
    measure(clock, trip_ms=-1000, offset_ms=7)
    assert clock.offset_ms == 7
