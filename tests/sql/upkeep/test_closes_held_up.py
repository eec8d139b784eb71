"""Closes without an order in flight of their own: a refused one of a netting symbol that waits for its next attempt,
and one that waits for another order of the copy. The verdict names them as it names every close that is overdue."""

from datetime import timedelta

import pytest
from netting_harness import NettingWorld as World
from test_alarms import alarms, later, verdict


@pytest.fixture(autouse=True)
def working_day(world: World) -> None:
    world.set_weekend(timedelta(days=2), timedelta(days=3))


def test_a_netting_close_that_was_refused_for_good_stays_overdue_until_it_is_filled(world: World) -> None:
    world.copy("M", "N")
    position = world.opened("M", "0.30")
    world.settle_both()
    world.send("M", world.event("closed", position | {"lots": "0"}))
    later(world, 6)
    (close,) = world.open_executions("N")
    world.report(close, "rejected", [], reason="trade_disabled", retryable=False, message="no")
    later(world, 15)
    words = "N: the close of EURUSD 0.3 is not filled after 21 s"
    assert verdict(world)["text"].startswith(f"{words}, the broker does not allow trading; close it at the broker")
    assert len(alarms(world, "close_overdue")) == 1
    world.come_due()
    assert world.open_executions("N"), "the next attempt is in flight"
    assert verdict(world)["text"].startswith(words)
    assert [alert["times"] for alert in alarms(world, "close_overdue")] == [1]
    world.run()
    assert all(finding["code"] != "close_overdue" for finding in verdict(world)["findings"])


@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize(
    ("event", "lots", "words"),
    [("closed", "0", "the close of EURUSD 0.3"), ("reduced", "0.10", "the reduction of EURUSD 0.2")],
)
def test_a_close_behind_another_order_of_the_copy_is_overdue(
    world: World, follower: str, event: str, lots: str, words: str
) -> None:
    world.copy("M", follower)
    position = world.opened("M", "0.30")
    world.settle_both()
    world.send("M", world.event("modified", position | {"sl": "1.05000"}))
    world.send("M", world.event(event, position | {"lots": lots, "sl": "1.05000"}))
    assert [order["action"] for order in world.open_executions(follower)] == ["modify"]

    def pass_seconds(seconds: int) -> None:
        later(world, seconds)
        world.db.execute(
            "update public.positions set changed_at = changed_at - make_interval(secs => %s) where true", (seconds,)
        )

    pass_seconds(8)
    assert "EURUSD" not in verdict(world)["text"]
    pass_seconds(4)
    assert verdict(world)["text"].startswith(
        f"{follower}: {words} is not filled after 12 s, an earlier order of it has not been answered; close it at"
    )
    assert len(alarms(world, "close_overdue")) == 1
    world.settle_both()
    assert all(finding["code"] != "close_overdue" for finding in verdict(world)["findings"])


def test_a_close_beside_an_open_that_nobody_answers_names_the_lots_of_the_open(world: World) -> None:
    world.copy("M", "F")
    position = world.opened("M", "0.30")
    world.report(world.open_executions("F")[0], "unknown")
    world.send("M", world.event("closed", position | {"lots": "0"}))
    later(world, 12)
    assert "the close of EURUSD 0.3 is not filled after 12 s" in verdict(world)["text"]
