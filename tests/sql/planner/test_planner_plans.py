"""How the planner runs: its hot queries stay on their indexes, and the number of statements does not grow with
followers."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg
import pytest
from planner_harness import World

from agent.stack.database import Database

pytestmark = pytest.mark.own_database

HISTORY = """
insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq,
  unseen_at, detected_at, first_seen_at,
  changed_at, closed_at)
select a.id, 'h' || n, a.user_id, 'position', 'EURUSD', 'buy', 0, 1.1, 1, 1, now(), now(), now(), now(), now()
from public.trading_accounts a, generate_series(1, %(rows)s / 10) n;
insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket,
  master_side, symbol, side, state,
  reason, seen_master_lots, ended_at)
select c.user_id, c.id, c.master_account_id, c.follower_account_id, 'h' || n, 'buy', 'EURUSD', 'buy', 'ended',
'closed', 1, now()
from public.copiers c, generate_series(1, %(rows)s / 10) n;
insert into private.link_legs (link_id, account_id, ticket, kind, lots)
select id, follower_account_id, master_ticket, 'position', 1 from public.position_links where state = 'ended';
insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id,
  master_account_id, event_id, action, priority,
  symbol, side, lots, status, send_before, queued_at, updated_at, finalized_at)
select n, n, n::text, c.id, c.user_id, c.follower_account_id, c.master_account_id, n, 'open', 40, 'EURUSD', 'buy', 1,
'completed',
  now(), now(), now(), now()
from public.copiers c, generate_series(1, %(rows)s / 10) n;
insert into public.copy_outcomes (event_id, copier_id, user_id, execution_id)
select n, c.id, c.user_id, n from public.copiers c, generate_series(1, %(rows)s / 10) n;
insert into public.trade_events (account_id, user_id, type, status) select a.id, a.user_id, 'opened', 'history'
from public.trading_accounts a, generate_series(1, %(rows)s / 10) n;
"""
#: the partition of today is the one with rows in it: scanning the empty ones whole costs nothing
GROWING = ("positions", "position_links", "trade_execution_queue", "copy_outcomes",
    f"trade_events_{datetime.now(UTC):%Y_%m_%d}", "event_keys",
           "link_legs")  # fmt: skip


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with database.connect() as connection:
        yield World(connection)


def build(world: World, followers: int) -> None:
    """One user owns them all: more than a person may by default."""
    world.db.execute("update public.system_config set value = '1000' where key = 'accounts_per_user_max'")
    world.add_account("M", vps="a")
    for n in range(followers):
        world.add_account(f"F{n}", vps="abc"[n % 3])
        world.copy("M", f"F{n}")


def nested_plans(world: World, work: Any) -> list[str]:
    """Plans of every statement that `work` runs inside the functions, by the server's auto_explain."""
    notices: list[str] = []
    world.db.add_notice_handler(lambda d: notices.append(d.message_primary or ""))
    for statement in ("load 'auto_explain'", "set auto_explain.log_min_duration = 0",
        "set auto_explain.log_nested_statements = on",
                      "set auto_explain.log_level = notice", "set client_min_messages = notice"):  # fmt: skip
        world.db.execute(statement)
    work()
    world.db.execute("set auto_explain.log_min_duration = -1")
    return [n for n in notices if "Query Text" in n]


def test_hot_queries_stay_on_their_indexes(world: World) -> None:
    build(world, 12)
    with psycopg.ClientCursor(world.db) as cursor:
        cursor.execute(HISTORY, {"rows": 20000})
    p = world.opened("M")
    world.settle(40)
    world.db.execute("analyze")
    world.opened("M")  # warms the plans of this session
    plans = nested_plans(
        world, lambda: (world.send("M", world.event("reduced", p | {"lots": "0.50"})), world.opened("M"))
    )
    scans = [s for plan in plans for s in re.findall(rf"Seq Scan on (?:{'|'.join(GROWING)})\b", plan)]
    assert scans == []
    assert len(plans) > 10


def test_an_event_takes_the_same_statements_for_any_number_of_followers(world: World) -> None:
    counts = []
    build(world, 5)
    for _ in range(2):
        world.opened("M")
        plans = nested_plans(world, lambda: world.opened("M"))
        inserted = [p for p in plans if "Insert on trade_execution_queue" in p]
        assert len(inserted) == 1
        counts.append(len([p for p in plans if _writes(p)]))
        for n in range(5, 500):
            if f"F{n}" not in world.accounts:
                world.add_account(f"F{n}", vps="abc"[n % 3])
                world.copy("M", f"F{n}")
    assert counts[0] == counts[1]
    assert (
        world.one(
            "select count(*) from public.trade_execution_queue where queued_at = (select max(queued_at) from"
            " public.trade_execution_queue)"
        )
        == 500
    )


def _writes(plan: str) -> bool:
    """Whether a statement writes; messages apart, for a broadcast holds at most 100 executions."""
    return bool(re.search(r"\b(Insert|Update|Delete) on (?!messages)", plan))


def test_a_bulk_close_costs_in_proportion_to_its_links(world: World) -> None:
    """Plans are made while the tables are nearly empty, as in a new installation. The cost is the processor time of the
    connection's own server process, so a busy machine does not matter."""
    build(world, 20)
    cost = {}
    server_process = psutil.Process(world.db.info.backend_pid)

    def spent_s() -> float:
        times = server_process.cpu_times()
        return float(times.user + times.system)

    for positions in (10, 40):
        held = [world.position("0.10") for _ in range(positions)]
        world.send("M", *[world.event("opened", p) for p in held])
        for execution in world.open_executions():
            world.fill(execution)
        begun = spent_s()
        world.send("M", *[world.event("closed", p | {"lots": "0"}) for p in held])
        cost[positions] = spent_s() - begun
        world.settle(positions * 20)
    # linear: 4, quadratic: 16, cubic: 64
    assert cost[40] < 12 * cost[10]


def test_rates_are_looked_up_pair_by_pair_though_no_table_was_ever_analysed(world: World) -> None:
    """A new installation has no statistics for its first minute; reading every symbol of both accounts is a tenth of an
    open."""
    world.add_account("M", vps="a", currency="USD")
    world.add_account("F", vps="b", currency="EUR")
    world.copy("M", "F")
    for account in world.accounts:
        for n in range(100):
            world.add_symbol(account, f"STOCK{n}")
    world.opened("M")
    with world.db.transaction():
        world.db.execute("set local track_functions = 'all'")
        world.opened("M")
        calls = {each["funcname"]: each["calls"] for each in world.rows("select * from pg_stat_xact_user_functions")}
    assert calls["quoted_rates"] == 1
    assert "symbol_root" not in calls
