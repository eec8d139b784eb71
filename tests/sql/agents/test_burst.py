"""A burst of one master for many followers: nothing lost, nothing twice."""

import pytest
from planner_harness import World

from agent.stack.database import Database

pytestmark = pytest.mark.own_database

POSITIONS, FOLLOWERS = 50, 40


@pytest.mark.covers("R21")
def test_fifty_positions_for_forty_followers_are_two_thousand_orders(database: Database) -> None:
    with database.connect() as connection:
        world = World(connection)
        world.add_account("M", vps="a")
        for number in range(FOLLOWERS):
            world.add_account(f"F{number}", vps="b", balance="1000000")
            world.copy("M", f"F{number}", sizing_value="0.5")
        positions = [world.position("0.10") for _ in range(POSITIONS)]
        events = [world.event("opened", p) for p in positions]
        for start in range(0, POSITIONS, 5):  # as an agent does: what happens during a call goes with the next one
            world.send("M", *events[start : start + 5])
            world.send("M", *events[start : start + 5])  # and all of it is delivered twice
        queued = world.rows("select account_id, link_id, action, lots::text from public.trade_execution_queue")
        assert len(queued) == POSITIONS * FOLLOWERS
        assert len({(row["account_id"], row["link_id"]) for row in queued}) == POSITIONS * FOLLOWERS
        assert {(row["action"], row["lots"]) for row in queued} == {("open", "0.05")}
        # every order was put into a message of its VPS, once
        offered = world.rows(
            "select (x ->> 'id')::bigint as id, count(*) as n from realtime.messages m,"
            " jsonb_array_elements(m.payload -> 'executions') x where m.event = 'executions' group by 1"
        )
        assert len(offered) == POSITIONS * FOLLOWERS
        assert {row["n"] for row in offered} == {1}
        copied = world.one(
            "select count(*) from public.copy_outcomes where execution_id is not null and reason is null"
        )
        assert copied == POSITIONS * FOLLOWERS
        assert world.unexplained() == 0
