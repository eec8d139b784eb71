"""The queries that every call of an agent or a dashboard makes stay on their indexes, however large the farm."""

import json
from typing import LiteralString

import pytest
from api_actors import Farm

pytestmark = pytest.mark.own_database


@pytest.fixture
def large_farm(farm: Farm) -> Farm:
    """3,000 VPSes, 20,000 accounts of 2,000 users."""
    farm.rows("insert into auth.users (id, email) select gen_random_uuid(), 'u' || n from generate_series(1, 5000) n")
    farm.rows("create temp table numbered as select id, row_number() over () as n from auth.users")
    farm.rows(
        "insert into public.vps_instances (name, user_id, platforms, status)"
        " select 'v' || n, id, '{paper}', 'online' from numbered where n <= 3000"
    )
    farm.rows(
        "insert into public.trading_accounts (user_id, platform, server, login, name)"
        " select u.id, 'paper', 'Paper', g::text, g::text"
        " from generate_series(1, 20000) g join numbered u on u.n = 3001 + g %% 1999"
    )
    farm.rows(
        "insert into public.account_vps_assignments (account_id, vps_id) select a.id, v.id from"
        " (select id, row_number() over () as n from public.trading_accounts) a"
        " join (select id, row_number() over () as n from public.vps_instances) v on v.n = 1 + a.n %% 3000"
    )
    farm.rows("analyze public.vps_instances, public.trading_accounts, public.account_vps_assignments")
    return farm


QUERIES: list[tuple[LiteralString, str]] = [
    ("select id, retired_at from public.vps_instances where user_id = auth.uid()", "vps_instances_user_id_key"),
    (
        "select v.lease_expires_at from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id"
        " where s.account_id = (select id from public.trading_accounts limit 1) and s.epoch = 1",
        "account_vps_assignments_pkey",
    ),
    (
        "select a.* from public.account_vps_assignments s join public.trading_accounts a on a.id = s.account_id"
        " where s.vps_id = (select id from public.vps_instances limit 1)",
        "assignments_of_vps",
    ),
    (
        "select begins_at from public.account_vps_assignments"
        " where previous_vps_id = (select id from public.vps_instances limit 1)",
        "assignments_waiting_for_vps",
    ),
    ("select id from public.trading_accounts where user_id = (select id from auth.users limit 1)", "accounts_of_user"),
]


def test_hot_queries_use_their_indexes(large_farm: Farm) -> None:
    for query, index in QUERIES:
        plan = json.dumps([row["QUERY PLAN"] for row in large_farm.owner.execute(f"explain {query}").fetchall()])
        assert index in plan, plan


def test_a_heartbeat_updates_one_row_on_its_page(farm: Farm) -> None:
    """No index holds what a heartbeat writes: the update is HOT and touches neither accounts nor logs."""
    agent = farm.agent("a")
    for _ in range(3):
        farm.account(farm.user())
    counters = (
        "select relname, n_tup_upd, n_tup_hot_upd, n_tup_ins from pg_stat_user_tables"
        " where schemaname = 'public' order by 1"
    )
    farm.rows("update private.clockwork set last_run_at = now() where true")
    agent.can("vps_heartbeat", {})
    farm.owner.execute("select pg_stat_force_next_flush()")
    agent.connection.execute("select pg_stat_force_next_flush()")
    before = {row["relname"]: row for row in farm.rows(counters)}
    for _ in range(5):
        agent.can("vps_heartbeat", {})
    agent.connection.execute("select pg_stat_force_next_flush()")
    changed = {row["relname"]: row["n_tup_upd"] - before[row["relname"]]["n_tup_upd"] for row in farm.rows(counters)}
    hot = next(row for row in farm.rows(counters) if row["relname"] == "vps_instances")
    assert {name: count for name, count in changed.items() if count} == {"vps_instances": 5}
    assert hot["n_tup_hot_upd"] == hot["n_tup_upd"]
