"""A report that the planner's own code fails on is kept, and holds up no close, no other attempt, and no move of the
account."""

from typing import Any

import pytest
from netting_harness import NettingWorld
from planted_faults import farm_of_three, faults, filled, is_account, planted, tell, upkeep

__all__ = ["farm_of_three"]
pytestmark = [pytest.mark.plants_faults, pytest.mark.own_database]


def modified(world: NettingWorld, execution: dict[str, Any]) -> dict[str, Any]:
    report = filled(world, execution)
    report["positions"][0] |= {"lots": "1.00", "sl": str(execution["sl"]), "tp": None}
    return report


def test_a_close_goes_out_behind_a_modify_whose_report_is_kept(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    master = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("modified", master | {"sl": "1.05"}))
    reports = [modified(world, e) for name in "FGH" for e in world.open_executions(name)]
    with planted(world, "point_worth", is_account(world, "p_account", "G")):
        assert tell(world, reports) == [("accepted", None), ("kept", "TC420"), ("accepted", None)]
        world.send("M", world.event("closed", master | {"lots": "0"}))
        upkeep(world)
        assert [[e["action"] for e in world.open_executions(name)] for name in "FGH"] == [["close"]] * 3


def test_a_close_that_was_refused_is_tried_again_though_its_report_is_kept(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    master = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("closed", master | {"lots": "0"}))
    with planted(world, "point_worth", is_account(world, "p_account", "G")):
        for name in "FGH":
            (close,) = world.open_executions(name)
            world.report(close, "rejected", reason="requote", retryable=True)
        world.db.execute("update public.trade_execution_queue set next_attempt_at = now() where status = 'retrying'")
        world.db.execute("update public.position_links set replan_at = now() where replan_at is not null")
        upkeep(world)
        handed = world.as_agent("G", "vps_heartbeat", {"accounts": []})["executions"]
        assert {e["account_id"] for e in handed} == {world.accounts[name] for name in "FGH"}


def test_a_kept_report_is_booked_though_its_account_has_moved_on_twice(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    world.opened("M", "1.00")
    (opened,) = world.open_executions("G")
    move(world, "c")  # its agent finds the order by its tag
    with planted(world, "point_worth", is_account(world, "p_account", "G")):
        answer = world.as_agent("G", "report_executions", {"reports": [filled(world, opened) | {"adopted": True}]})
        assert answer["results"][0]["status"] == "kept"
        move(world, "d")
    upkeep(world)
    assert (faults(world), world.executions("G")[0]["status"]) == ([], "completed")


def move(world: NettingWorld, vps: str) -> None:
    world.add_vps(vps)
    world.db.execute(
        "update public.account_vps_assignments set vps_id = %s, epoch = epoch + 1 where account_id = %s",
        (world.vps[vps], world.accounts["G"]),
    )
    world.homes["G"] = vps


def test_another_attempt_is_handed_out_though_a_late_report_of_the_first_is_kept(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    master = world.opened("M", "1.00")
    world.settle()
    world.send("M", world.event("closed", master | {"lots": "0"}))
    (first,) = world.open_executions("G")
    world.report(first, "rejected", reason="requote", retryable=True)
    world.db.execute("update public.trade_execution_queue set next_attempt_at = now() where status = 'retrying'")
    world.db.execute("select private.maintain_executions()")
    (again,) = world.open_executions("G")
    assert (again["attempt"], again["status"]) == (2, "queued")
    refusal = {"outcome": "rejected", "reason": "requote", "filled_lots": "0"}
    report = filled(world, first) | refusal | {"positions": [world.position("1.00", "buy", first["ticket"])]}
    with planted(world, "apply_position", is_account(world, "p_account.id", "G")):
        assert world.as_agent("G", "report_executions", {"reports": [report]})["results"][0]["status"] == "kept"
        handed = world.as_agent("G", "vps_heartbeat", {"accounts": []})["executions"]
        assert [(e["id"], e["attempt"]) for e in handed if e["account_id"] == world.accounts["G"]] == [
            (str(first["id"]), 2)
        ]
