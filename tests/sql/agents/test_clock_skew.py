"""Clocks that disagree: no latency below zero is ever stored, and nothing is decided by a clock that runs ahead."""

from datetime import UTC, datetime, timedelta

import pytest
from netting_harness import NettingWorld


@pytest.mark.covers("R19")
@pytest.mark.parametrize("ahead", [timedelta(hours=3), timedelta(milliseconds=40), -timedelta(hours=3)])
def test_a_master_whose_clock_is_wrong_leaves_no_negative_latency(world: NettingWorld, ahead: timedelta) -> None:
    """Three hours are a broker's GMT+3 that an adapter has forgotten to convert."""
    world.copy("M", "F")
    told = (datetime.now(UTC) + ahead).isoformat()
    world.send("M", world.event("opened", world.position(), detected_at=told, unchanged_at=told))
    for execution in world.open_executions("F"):
        now = datetime.now(UTC)
        world.report(
            execution, positions=[world.position(ticket="9")], filled_lots="1.00", received_at=now.isoformat(),
            sent_at=(now - timedelta(seconds=1)).isoformat(), done_at=(now - timedelta(seconds=2)).isoformat(),
        )  # fmt: skip
    for stored in (world.rows("select * from public.trade_events"), world.rows("select * from public.copied_trades")):
        assert stored
        latencies = [row[name] for row in stored for name in row if name.endswith("_ms")]
        assert latencies
        assert all(value is None or value >= 0 for value in latencies)
