"""Opens that look less alike: later and smaller by chance, never larger; no close waits. A user's own position is left
alone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[NettingWorld]:
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.add_account("N", vps="b", mode="netting")
    yield w
    assert w.unexplained() == 0


def waits(execution: dict[str, Any]) -> timedelta:
    moment = execution["next_attempt_at"]
    assert isinstance(moment, datetime)
    return moment - datetime.now(UTC)


@pytest.mark.covers("R24")
def test_an_open_waits_and_then_goes_out(world: NettingWorld) -> None:
    world.copy("M", "F", delay_min_ms=1000, delay_max_ms=3000)
    seen = datetime.now(UTC)
    for _ in range(5):
        world.opened("M", "0.10")
    waiting = world.open_executions("F")
    assert {(e["status"], e["attempt"], e["offered_at"]) for e in waiting} == {("retrying", 0, None)}
    assert all(e["warnings"] == ["delayed"] for e in waiting)
    moments = [e["next_attempt_at"] - seen for e in waiting]
    assert all(timedelta(seconds=1) <= m < timedelta(seconds=4) for m in moments)
    assert len({e["next_attempt_at"] - e["updated_at"] for e in waiting}) == 5  # each its own
    world.db.execute(
        "update public.trade_execution_queue set next_attempt_at = now(), queued_at = now() where status = 'retrying'"
    )
    beat = world.call(world.agents["b"], "vps_heartbeat", {})
    assert sorted((e["action"], e["attempt"]) for e in beat["executions"]) == [("open", 1)] * 5
    world.settle()
    assert world.book("F") == [("buy", "0.10")] * 5


@pytest.mark.covers("R24")
def test_closes_and_levels_do_not_wait(world: NettingWorld) -> None:
    world.copy("M", "F", delay_max_ms=3000)
    p, q = world.opened("M", "0.10"), world.opened("M", "0.20")
    world.send("M", world.event("closed", p | {"lots": "0"}))  # before its open went out
    assert [(e["status"], e["reason"]) for e in world.executions("F")] == [
        ("cancelled", "already_closed"),
        ("retrying", None),
    ]
    world.come_due()
    world.settle()
    world.send("M", world.event("modified", q | {"sl": "1.09000"}))
    assert [(e["action"], e["status"]) for e in world.open_executions("F")] == [("modify", "queued")]
    world.settle()
    world.send("M", world.event("closed", q | {"lots": "0"}))
    assert [(e["action"], e["status"]) for e in world.open_executions("F")] == [("close", "queued")]


@pytest.mark.covers("R24")
def test_a_jittered_size_is_smaller_and_never_over_a_limit(world: NettingWorld) -> None:
    world.copy("M", "F", sizing_mode="risk_percent", sizing_value="1", max_risk_percent="1", lots_jitter_percent="20")
    for _ in range(10):
        world.opened("M", "1.00", sl="1.09900")  # 100 a lot, 100 allowed: 1.00
    sizes = [e["lots"] for e in world.executions("F")]
    assert all(Decimal("0.80") <= size <= 1 for size in sizes)
    assert len(set(sizes)) > 5
    assert all(e["warnings"] == ["lots_jittered"] for e in world.executions("F"))


@pytest.mark.covers("R24")
def test_nothing_of_this_happens_unasked(world: NettingWorld) -> None:
    world.copy("M", "F")
    world.opened("M", "1.00")
    assert [(e["status"], e["lots"], e["warnings"]) for e in world.executions("F")] == [("queued", 1, [])]


def test_the_dice_fall_the_same_for_the_same_name(world: NettingWorld) -> None:
    throws = [world.one("select private.stable_random(%s)", f"throw {n % 50}") for n in range(100)]
    assert throws[:50] == throws[50:]
    assert all(0 <= throw < 1 for throw in throws)
    assert Decimal("0.3") < sum(throws) / 100 < Decimal("0.7")


@pytest.mark.covers("P15")
def test_a_users_own_position_is_touched_by_no_close_of_a_copy(world: NettingWorld) -> None:
    world.copy("M", "F")
    own = world.position("0.30")
    world.send("F", world.event("opened", own))
    p = world.opened("M", "0.20")
    world.settle()
    assert world.book("F") == [("buy", "0.20"), ("buy", "0.30")]
    world.send("M", world.event("reduced", p | {"lots": "0.10"}))
    world.settle()
    assert world.book("F") == [("buy", "0.10"), ("buy", "0.30")]
    world.send("M", world.event("closed", p | {"lots": "0"}))
    world.settle()
    assert world.book("F") == [("buy", "0.30")]
    assert own["ticket"] not in {e["ticket"] for e in world.executions("F")}
    # and it counts against no limit of the copier
    copier = world.copiers["M>F"]
    world.as_user("save_copier", {"id": copier, "max_open_positions": 1, "max_open_lots": "0.20"})
    world.opened("M", "0.10")
    world.settle()
    world.as_user("flatten_account", {"account_id": world.accounts["F"]})
    world.settle()
    assert world.book("F") == [("buy", "0.30")]
