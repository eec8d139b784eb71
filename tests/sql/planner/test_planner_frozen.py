"""A copier or an account that is off: nothing is done, levels included; what is still wanted is done when it thaws."""

from typing import Any

import pytest
from netting_harness import NettingWorld

FROZEN = [("set_copier_mode", "mode"), ("pause_account", "state")]


def turn(world: NettingWorld, function: str, key: str, follower: str, to: str) -> None:
    what: dict[str, Any] = (
        {"copier_id": world.copiers[f"M>{follower}"]} if key == "mode" else {"account_id": world.accounts[follower]}
    )
    world.as_user(function, what | {key: to})


@pytest.mark.covers("R14")
@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize(("function", "key"), FROZEN)
def test_levels_are_not_moved_while_off_and_are_when_it_is_over(
    world: NettingWorld, follower: str, function: str, key: str
) -> None:
    world.copy("M", follower)
    p = world.opened("M", "0.50", sl="1.09000")
    world.settle_both()
    turn(world, function, key, follower, "off")
    world.send("M", world.event("modified", p | {"sl": "1.09500"}))
    assert world.open_executions() == []
    turn(world, function, key, follower, "on")
    (execution,) = world.open_executions(follower)
    assert (execution["action"], f"{execution['sl']:.5f}") == ("modify", "1.09500")


@pytest.mark.parametrize("follower", ["F", "N"])
@pytest.mark.parametrize(("function", "key"), FROZEN)
def test_a_change_of_levels_that_waits_for_another_attempt_is_asked_anew_when_it_is_over(
    world: NettingWorld, follower: str, function: str, key: str
) -> None:
    world.copy("M", follower)
    p = world.opened("M", "0.50", sl="1.09000")
    world.settle_both()
    world.send("M", world.event("modified", p | {"sl": "1.09500"}))
    (execution,) = world.open_executions(follower)
    world.report(execution, "rejected", reason="market_closed", retryable=True)
    assert [e["status"] for e in world.open_executions(follower)] == ["retrying"]
    turn(world, function, key, follower, "off")
    world.come_due()
    assert [e["status"] for e in world.open_executions(follower) if e["status"] != "retrying"] == []
    turn(world, function, key, follower, "on")
    world.come_due()
    (execution,) = world.open_executions(follower)
    assert (execution["action"], f"{execution['sl']:.5f}", execution["status"]) == ("modify", "1.09500", "queued")
