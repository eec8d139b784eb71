"""One tenant's work delays another's nowhere in the database: heartbeats, failover and upkeep wait for nobody's
accounts."""

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from api_actors import Actor, Farm
from netting_harness import NettingWorld
from psycopg.rows import dict_row

from agent.stack.database import Database

pytestmark = pytest.mark.own_database


@pytest.fixture
def busy(database: Database) -> Iterator[psycopg.Connection[dict[str, object]]]:
    """Somebody's long transaction."""
    with psycopg.connect(database.dsn, row_factory=dict_row) as connection:
        yield connection
        connection.rollback()


def says(farm: Farm, agent: Actor, account: UUID, session: int, status: str = "degraded") -> None:
    agent.can(
        "vps_heartbeat", {"accounts": [{"account_id": account, "session": session, "status": status, "error": "told"}]}
    )


def test_assignments_say_whose_accounts_are_one_owners_and_nothing_else(farm: Farm) -> None:
    agent = farm.agent("a")
    ann, ben = farm.user(), farm.user()
    accounts = {farm.account(ann): "ann", farm.account(ben): "ben", farm.account(ann): "ann"}
    owners = {UUID(a["account_id"]): a["owner"] for a in agent.can("vps_heartbeat", {})["assignments"]}
    assert len({owners[account] for account, who in accounts.items() if who == "ann"}) == 1
    assert len(set(owners.values())) == 2
    assert not {str(ann.user_id), str(ben.user_id)} & set(owners.values())


def test_a_heartbeat_does_not_wait_for_an_account_that_is_being_changed(
    farm: Farm, busy: psycopg.Connection[dict[str, object]]
) -> None:
    agent = farm.agent("a")
    mine, other = farm.account(farm.user()), farm.account(farm.user())
    session = farm.session(agent, mine)
    other_session = farm.session(agent, other)
    busy.execute("update public.trading_accounts set name = 'slow' where id = %s", (mine,))
    farm._api.execute("set lock_timeout = '2s'")
    says(farm, agent, mine, session)
    says(farm, agent, other, other_session)
    status = "select id, status from public.trading_accounts"
    assert {row["id"]: row["status"] for row in farm.rows(status)} == {mine: "connected", other: "degraded"}
    busy.rollback()
    says(farm, agent, mine, session)
    assert {row["status"] for row in farm.rows(status)} == {"degraded"}


def test_a_lost_vps_gives_away_what_nobody_is_planning_at_once(
    farm: Farm, busy: psycopg.Connection[dict[str, object]]
) -> None:
    lost, spare = farm.agent("a"), farm.agent("b", beating=False)
    planned, free = farm.account(farm.user()), farm.account(farm.user())
    spare.can("vps_heartbeat", {})
    farm.lose_lease(lost)
    busy.execute("select 1 from private.plan_locks where account_id = %s for no key update", (planned,))
    assert farm.maintain()["moved"] == 1
    assert (farm.assignment(free)["vps_id"], farm.assignment(planned)["vps_id"]) == (spare.vps_id, lost.vps_id)
    busy.rollback()
    assert farm.maintain()["moved"] == 1
    assert farm.assignment(planned)["vps_id"] == spare.vps_id


def test_a_move_does_not_keep_the_turn_of_everybody_for_long(
    farm: Farm, busy: psycopg.Connection[dict[str, object]]
) -> None:
    """The turn is for all placements; an account that is being planned gives up after three seconds."""
    farm.agent("a")
    ann = farm.user()
    account = farm.account(ann)
    busy.execute("select 1 from private.plan_locks where account_id = %s for no key update", (account,))
    ann.cannot("remove_account", {"account_id": account}, "55P03")


def two_tenants(world: NettingWorld) -> None:
    """M, M2 and F are of one user, N of another."""
    other = world._user("other@example.test")
    world.db.execute("update public.trading_accounts set user_id = %s where id = %s", (other, world.accounts["N"]))


def test_upkeep_locks_the_accounts_of_who_has_most_to_do_before_anybody_elses(world: NettingWorld) -> None:
    two_tenants(world)
    world.db.execute("update public.trading_accounts set copy_state = 'flattening' where true")
    due = world.rows("select accounts from private.due_by_owner(false, now())")
    names = {account: name for name, account in world.accounts.items()}
    assert [sorted(names[str(account)] for account in row["accounts"]) for row in due] == [["F", "M", "M2"], ["N"]]


def test_upkeep_of_one_owner_that_fails_leaves_the_others_work_done(world: NettingWorld) -> None:
    """A transaction that loses a deadlock, say: undone for its owner, tried again by the next run."""
    world.copy("M", "F")
    two_tenants(world)
    world.opened("M")
    world.settle()
    world.opened("N")
    world.db.execute(
        "create function private.lose_a_deadlock() returns trigger language plpgsql as $$ begin"
        " raise exception 'deadlock detected' using errcode = '40P01'; end $$"
    )
    world.db.execute(
        "create trigger lose_a_deadlock before insert on public.trade_execution_queue for each row"
        f" when (new.account_id = '{world.accounts['N']}') execute function private.lose_a_deadlock()"
    )
    flattening = (
        "update public.trading_accounts set copy_state = 'flattening', flatten_manual = true where id = any(%s::uuid[])"
    )
    world.db.execute(flattening, ([world.accounts[name] for name in ("F", "N")],))
    world.db.execute("update public.position_links set replan_at = now() where true")
    world.db.execute("select private.maintain_executions()")
    assert [e["action"] for e in world.open_executions("F")] == ["close"]
    assert world.open_executions("N") == []
    world.db.execute("drop trigger lose_a_deadlock on public.trade_execution_queue")
    world.db.execute("select private.maintain_executions()")
    assert [e["action"] for e in world.open_executions("N")] == ["close"]


def test_upkeep_of_held_back_opens_is_that_of_their_accounts(world: NettingWorld) -> None:
    """What a heartbeat does itself is little: opens whose delay is over."""
    world.copy("M", "F", delay_min_ms=100, delay_max_ms=100)
    world.opened("M")
    world.db.execute(
        "update public.trading_accounts set copy_state = 'flattening' where id = %s", (world.accounts["N"],)
    )
    later = "now() + interval '1 s'"
    accounts = world.rows(f"select accounts from private.due_by_owner(true, {later})")
    assert [[str(account) for account in row["accounts"]] for row in accounts] == [[world.accounts["F"]]]


def test_in_maintain_nobodys_accounts_are_locked_while_tables_are_tidied(world: NettingWorld) -> None:
    """The order of its parts: what locks accounts for the rest of the transaction comes last."""
    body = str(world.one("select prosrc from pg_proc where oid = 'private.maintain()'::regprocedure"))
    parts = [line.split("run_part('")[1].split("'")[0] for line in body.splitlines() if "run_part('" in line]
    assert parts[-4:] == ["flat times", "executions", "resumes", "removals"]


def test_a_time_zone_is_looked_up_in_a_table(world: NettingWorld) -> None:
    """The view that lists them reads hundreds of files at each look: fifty calls a second held a core, and everybody's
    closes."""
    assert world.one("select count(*) from private.time_zones") == world.one("select count(*) from pg_timezone_names")
    body = (
        "select string_agg(prosrc, ' ') from pg_proc where pronamespace = 'private'::regnamespace and proname = any(%s)"
    )
    assert "pg_timezone_names" not in world.one(body, ["refuse_bad_values", "refuse_bad_rule", "is_time_zone"])
    world.copy("M", "F", time_zone="America/New_York")
    world.db.execute("delete from private.time_zones where name = 'Asia/Tokyo'")
    with pytest.raises(psycopg.Error, match="there is no such time zone"):
        world.copy("M", "N", time_zone="Asia/Tokyo")
    world.db.execute("select private.run_part('partitions', null)")
    world.copy("M", "N", time_zone="Asia/Tokyo")


def test_what_users_call_plans_with_the_planners_settings(world: NettingWorld) -> None:
    """A connection keeps the first plan of each statement: one made for a user must serve an agent's next event."""
    rows = world.rows(
        "select proname::text as name, proconfig as config from pg_proc where pronamespace = 'private'::regnamespace"
        " and proname = any(%s)",
        [
            "queue_trade_copy",
            "save_copier",
            "set_copier_mode",
            "flatten_account",
            "pause_account",
            "resync_copier",
            "remove_copier",
        ],
    )
    assert len(rows) == 7
    (agents,) = (row["config"] for row in rows if row["name"] == "queue_trade_copy")
    assert [row["name"] for row in rows if row["config"] != agents] == []
