"""What the planner's own code fails on holds up nothing else, is not lost, and is done once the code is mended."""

from datetime import timedelta

import psycopg
import pytest
from netting_harness import NettingWorld
from planted_faults import alerts, farm_of_three, faults, filled, is_account, planted, tell, upkeep

__all__ = ["farm_of_three"]
pytestmark = [pytest.mark.plants_faults, pytest.mark.own_database]


def test_a_report_that_cannot_be_booked_holds_up_no_other_and_is_booked_once_the_code_is_mended(
    farm_of_three: NettingWorld,
) -> None:
    world = farm_of_three
    master = world.opened("M", "1.00")
    reports = [filled(world, e) for name in "FGH" for e in world.open_executions(name)]
    with planted(world, "point_worth", is_account(world, "p_account", "G")):
        assert tell(world, reports) == [("accepted", None), ("kept", "TC420"), ("accepted", None)]
        assert [world.book(n) for n in "FGH"] == [[("buy", "1.00")]] * 3, "the mirror has what the broker did"
        kept = world.executions("G")[0]
        assert (kept["status"], kept["filled_lots"], kept["in_flight"]) == ("queued", 1, True)
        assert [e["status"] for n in "FH" for e in world.executions(n)] == ["completed", "completed"]
        assert alerts(world) == [("G", "planner_fault", "critical")]
        assert tell(world, reports[1:2]) == [("kept", "TC420")], "told again it is kept again, as one"
        assert faults(world) == [("report", "G")]
        handed = world.as_agent("G", "vps_heartbeat", {"accounts": []})["executions"]
        assert handed == [], "nobody is asked for it again while it waits to be booked"
        upkeep(world)
        assert world.executions("G")[0]["status"] == "queued", "not mended yet"
    upkeep(world)
    assert faults(world) == []
    assert [e["status"] for e in world.executions("G")] == ["completed"]
    world.send("M", world.event("closed", master | {"lots": "0"}))
    world.settle()
    assert [world.book(n) for n in "FGH"] == [[], [], []]
    assert [len(world.executions(n)) for n in "FGH"] == [2, 2, 2], "one open and one close each"


def test_the_masters_close_is_not_held_up_by_a_copy_whose_fill_could_not_be_booked(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    master = world.opened("M", "1.00")
    reports = [filled(world, e) for name in "FGH" for e in world.open_executions(name)]
    with planted(world, "point_worth", is_account(world, "p_account", "G")):
        tell(world, reports)
        answer = world.send("M", world.event("closed", master | {"lots": "0"}))
        assert answer["results"][0]["status"] == "accepted"
        closes = {
            str(e["account_id"]): (e["action"], e["ticket"], e["after_id"])
            for e in world.open_executions()
            if e["action"] == "close"
        }
        assert set(closes) == {world.accounts[n] for n in "FGH"}
        assert closes[world.accounts["G"]] == ("close", None, world.executions("G")[0]["step_id"]), (
            "of whatever its open left"
        )
    upkeep(world)
    for execution in world.open_executions():
        gone = world.position("0", "buy", execution["ticket"] or reports[1]["positions"][0]["ticket"])
        world.report(execution, positions=[gone], filled_lots="1.00", price="1.1")
    assert [world.book(n) for n in "FGH"] == [[], [], []]
    assert world.one("select count(*) from public.position_links where state = 'live'") == 0


def test_a_chain_goes_on_behind_a_report_that_cannot_be_booked(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    world.add_account("K", vps="b")
    world.copy("G", "K")
    world.opened("M", "1.00")
    with planted(world, "point_worth", is_account(world, "p_account", "G")):
        tell(world, [filled(world, e) for name in "FGH" for e in world.open_executions(name)])
        assert [(e["action"], e["lots"]) for e in world.open_executions("K")] == [("open", 1)]
    upkeep(world)
    world.settle()
    assert [world.book(n) for n in "FGHK"] == [[("buy", "1.00")]] * 4
    assert len(world.executions("K")) == 1


def test_a_copy_that_cannot_be_decided_holds_up_no_other_and_is_decided_later(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    with planted(world, "unreachable_reason", is_account(world, "p_account.id", "G")):
        result = world.send("M", world.event("opened", world.position("1.00")))["results"][0]
        assert (result["status"], result["code"]) == ("accepted", None)
        assert [len(world.open_executions(n)) for n in "FGH"] == [1, 0, 1]
        assert alerts(world) == [("G", "planner_fault", "critical")]
        assert [r["copier_id"] for r in world.rows("select copier_id from public.unexplained_pairs")][0:1] == [
            world.one("select id from public.copiers where id = %s", world.copiers["M>G"])
        ]
        upkeep(world)
        assert world.open_executions("G") == []
    upkeep(world)
    assert faults(world) == []
    assert [len(world.open_executions(n)) for n in "FGH"] == [1, 1, 1], "still fresh"


def test_what_is_decided_too_late_for_a_fault_is_not_opened_late(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    with planted(world, "unreachable_reason", is_account(world, "p_account.id", "G")):
        world.opened("M", "1.00")
    world.db.execute("update public.positions set unseen_at = now() - interval '1 minute' where true")
    upkeep(world)
    assert world.executions("G") == []
    assert world.reasons("G") == {"too_old": 1}
    assert faults(world) == []


def test_a_link_that_cannot_be_planned_holds_up_no_close(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    master = world.opened("M", "1.00")
    other = world.opened("M", "2.00")
    world.settle()
    link = world.one("select id from public.position_links where follower_account_id = %s and master_ticket = %s",
        world.accounts["G"], master["ticket"])  # fmt: skip
    with planted(world, "plan_links", f"{link} = any (p_links)"):
        world.send("M", world.event("closed", master | {"lots": "0"}), world.event("closed", other | {"lots": "0"}))
        assert [len(world.open_executions(n)) for n in "FGH"] == [2, 1, 2]
        assert alerts(world) == [("G", "planner_fault", "critical")]
        world.settle()
    upkeep(world)
    world.settle()
    assert [world.book(n) for n in "FGH"] == [[], [], []]


def test_a_close_that_cannot_be_planned_is_overdue_though_its_alert_was_seen(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    world.set_weekend(timedelta(days=2), timedelta(days=3))
    master = world.opened("M", "1.00")
    world.settle()
    link = world.one("select id from public.position_links where follower_account_id = %s", world.accounts["G"])
    with planted(world, "plan_links", f"{link} = any (p_links)"):
        world.send("M", world.event("closed", master | {"lots": "0"}))
        world.settle()
        world.db.execute("update public.alerts set seen_at = now() where true")
        world.db.execute(
            "update public.positions set changed_at = changed_at - interval '12 seconds',"
            " closed_at = closed_at - interval '12 seconds' where true"
        )
        assert world.as_user("verdict", {})["text"].startswith(
            "G: the close of EURUSD 1 is not filled after 12 s, it could not be planned and is tried again; close it at"
        )
    upkeep(world)
    world.settle()
    assert world.as_user("verdict", {})["tone"] == "ok"


def test_an_event_that_the_mirror_cannot_take_is_taken_later_with_its_own_number(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    events = [world.event("opened", world.position("1.00", ticket=t)) for t in ("T1", "T2", "T3")]
    with planted(world, "apply_position", "p ->> 'ticket' = 'T2'"):
        results = world.send("M", *events)["results"]
        assert [(r["event_key"], r["status"], r["code"]) for r in results] == [
            (f"1:{events[0]['seq']}", "accepted", None),
            (f"1:{events[1]['seq']}", "kept", "TC420"),
            (f"1:{events[2]['seq']}", "accepted", None),
        ]
        assert [len(world.open_executions(n)) for n in "FGH"] == [2, 2, 2]
        assert alerts(world) == [("M", "planner_fault", "critical")]
    upkeep(world)
    assert [len(world.open_executions(n)) for n in "FGH"] == [3, 3, 3]
    assert world.send("M", events[1])["results"][0]["status"] == "duplicate"


def test_the_upkeep_of_one_account_that_fails_does_not_stop_that_of_others(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    world.opened("M", "1.00")
    world.settle()
    closes = world.send("M", world.event("modified", world.position("1.00", ticket="1001", sl="1.09")))
    assert closes["results"][0]["status"] == "accepted"
    for execution in world.open_executions():
        world.report(execution, "rejected", reason="requote", retryable=True)
    world.db.execute("update public.trade_execution_queue set next_attempt_at = now() where status = 'retrying'")
    waits = "exists (select 1 from public.trade_execution_queue q where q.status = 'retrying' and q.account_id = '{0}')"
    with planted(world, "requeue", ("'{0}' = any (p_accounts) and " + waits).format(world.accounts["G"])):
        world.db.execute("select private.maintain_executions()")
        assert [[e["status"] for e in world.open_executions(n)] for n in "FGH"] == [
            ["queued"],
            ["retrying"],
            ["queued"],
        ]
        assert alerts(world) == [("G", "planner_fault", "critical")]
    upkeep(world)
    assert [e["status"] for e in world.open_executions("G")] == ["queued"]
    assert faults(world) == []


def test_an_execution_that_cannot_be_handed_out_keeps_no_vps_from_its_lease(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    world.opened("M", "1.00")
    with planted(world, "execution_json", is_account(world, "p.account_id", "G")):
        handed = world.as_agent("F", "vps_heartbeat", {"accounts": []})["executions"]
        assert {e["account_id"] for e in handed} == {world.accounts["F"], world.accounts["H"]}
        assert alerts(world) == [("G", "planner_fault", "critical")]
        world.opened("M", "2.00")
        assert [len(world.open_executions(n)) for n in "FGH"] == [2, 2, 2], "planned all the same"
    upkeep(world)
    handed = world.as_agent("F", "vps_heartbeat", {"accounts": []})["executions"]
    assert len(handed) == 6


def test_an_account_whose_watch_list_cannot_be_made_keeps_no_vps_from_its_lease(farm_of_three: NettingWorld) -> None:
    world = farm_of_three

    def assigned() -> dict[str, list[str]]:
        told = world.as_agent("F", "vps_heartbeat", {"accounts": []})["assignments"]
        return {name: a["watch_symbols"] for name in "FGH" for a in told if a["account_id"] == world.accounts[name]}

    usual = assigned()
    with planted(world, "watched_symbols", is_account(world, "p_account", "G")):
        assert assigned() == usual | {"G": []}
        assert assigned() == usual | {"G": []}
        assert alerts(world) == [("G", "planner_fault", "critical")]
        assert faults(world) == [("watch", "G")]
    upkeep(world)
    assert (assigned(), faults(world)) == (usual, [])


def test_a_deal_of_a_netting_account_that_cannot_be_booked_is_booked_later(farm_of_three: NettingWorld) -> None:
    world = farm_of_three
    world.add_account("N", vps="b", mode="netting")
    world.copy("M", "N")
    world.opened("M", "1.00")
    reports = [filled(world, e) for name in "FGHN" for e in world.open_executions(name)]
    with planted(world, "book_deal", "true"):
        assert [status for status, _ in tell(world, reports)] == ["accepted", "accepted", "accepted", "kept"]
        world.opened("M", "0.50")
        assert len(world.open_executions("N")) == 1, "nothing is dealt in a symbol whose deal is not booked"
    upkeep(world)
    assert [(e["status"], e["lots"]) for e in world.executions("N")] == [("completed", 1), ("queued", 0.5)]
    assert world.one("select net_lots from private.net_ledgers") == 1


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "53200", "57P01", "TC104"])
def test_what_only_this_moment_made_fail_is_the_callers_to_repeat(farm_of_three: NettingWorld, state: str) -> None:
    world = farm_of_three
    world.opened("M", "1.00")
    reports = [filled(world, e) for name in "FGH" for e in world.open_executions(name)]
    with planted(world, "point_worth", "true", state), pytest.raises(psycopg.Error) as raised:
        tell(world, reports)
    assert raised.value.sqlstate == state
    assert (faults(world), alerts(world)) == ([], [])
    assert tell(world, reports) == [("accepted", None)] * 3


def test_a_ticket_that_goes_on_under_another_is_explained_by_the_new_one(farm_of_three: NettingWorld) -> None:
    """One by one, the old ticket's turn comes second: no copy goes by its name any more."""
    world = farm_of_three
    world.db.execute(
        "update public.copiers set sizing_value = 0.01 where follower_account_id = %s", (world.accounts["F"],)
    )
    p = world.opened("M", "1.00", ticket="100")
    world.settle()
    with planted(world, "plan_events", "true"):
        world.send("M", world.event("reduced", p | {"ticket": "99", "lots": "0.70", "replaces": "100"}))
    assert world.reasons("F") == {"residual_hold": 1}
    p |= {"lots": "0.70", "ticket": "99"}
    with planted(world, "plan_events", "true"):
        world.send("M", world.event("reduced", p | {"ticket": "101", "lots": "0.60", "replaces": "99"}))
    assert world.reasons("F") == {"residual_hold": 2}
