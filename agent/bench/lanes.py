"""The product's side of `bench queue`: for each connection a master and its followers, in a separate database.

Users, VPSes and accounts are inserted as rows, because no agent runs here; copiers are saved by the users' function.
"""

import json
import uuid
from typing import Any

import psycopg

VPS = """
  insert into public.vps_instances (name, user_id, platforms, capacity, status, lease_expires_at, last_heartbeat_at)
  values (%s, %s, '{paper}', 500, 'online', now() + interval '1 hour', now()) returning id"""
ACCOUNT = """
  insert into public.trading_accounts (user_id, platform, server, login, name, mode, currency, status, session,
    snapshot_session, balance, equity, margin, free_margin, funds_at, seen_at)
  values (%s, 'paper', 'bench', %s, %s, 'hedging', 'USD', 'connected', 1, 1,
    1000000, 1000000, 0, 1000000, now(), now()) returning id"""
ASSIGNMENT = """
  insert into public.account_vps_assignments (account_id, vps_id, epoch, begins_at, assigned_at)
  values (%s, %s, 1, now(), now())"""
SYMBOL = """
  insert into public.account_symbols (account_id, name, contract_size, tick_size, digits, profit_currency,
    margin_currency, lots_min, lots_max, lots_step, trade_mode, bid, ask, quoted_at)
  values (%s, 'EURUSD', 100000, 0.00001, 5, 'USD', 'EUR', 0.01, 50, 0.01, 'full', 1.1, 1.1001, now())"""
USER = "insert into auth.users (id, email) values (%s, %s) returning id"
SAVE_COPIER = "select public.save_copier(%s::jsonb)"
CLAIMS = "select set_config('request.jwt.claims', %s, true), set_config('role', 'authenticated', true)"
#: no agent sends heartbeats for these VPSes between the turns
RENEW = (
    "update public.vps_instances set lease_expires_at = now() + interval '1 hour',"
    " last_heartbeat_at = now(), status = 'online'"
)
COMPLETED = "select count(*) from public.trade_execution_queue where status = 'completed'"

#: one user owns all accounts, which may be more than the default allows
ALLOW = """
  update public.system_config set value = to_jsonb(%s::integer)
  where key in ('accounts_per_user_max', 'copiers_per_user_max') and (value #>> '{}')::integer < %s::integer"""

Connection = psycopg.Connection[tuple[Any, ...]]


def make_lanes(connection: Connection, name: str, count: int, followers: int, *, apart: bool) -> list[dict[str, Any]]:
    """Create `count` places for `agent.bench.contest.product`; `apart`: the followers are not on their master's VPS."""
    connection.execute(ALLOW, (followers + 1, followers + 1))
    return [_make_lane(connection, f"{name}-{number + 1}", followers, apart=apart) for number in range(count)]


def _make_lane(connection: Connection, name: str, followers: int, *, apart: bool) -> dict[str, Any]:
    owner = _one(connection, USER, uuid.uuid4(), f"{name}@bench.test")
    agent, vps = _make_vps(connection, f"{name}-a")
    other_agent, other_vps = _make_vps(connection, f"{name}-b") if apart else (agent, vps)
    master = _make_account(connection, owner, f"{name}-master", vps)
    for number in range(followers):
        follower = _make_account(connection, owner, f"{name}-{number + 1}", other_vps)
        copier = {"master_account_id": master, "follower_account_id": follower}
        with connection.transaction():
            connection.execute(CLAIMS, (json.dumps({"sub": owner, "role": "authenticated"}),))
            connection.execute(SAVE_COPIER, (json.dumps(copier),))
    return {
        "apart": apart,
        "master": master,
        "agent": agent,
        "followers_agent": other_agent,
        "followers_vps": other_vps,
    }


def _make_vps(connection: Connection, name: str) -> tuple[str, str]:
    agent = _one(connection, USER, uuid.uuid4(), f"{name}@agents.bench.test")
    return agent, _one(connection, VPS, name, agent)


def _make_account(connection: Connection, owner: str, name: str, vps: str) -> str:
    account = _one(connection, ACCOUNT, owner, name, name)
    connection.execute(ASSIGNMENT, (account, vps))
    connection.execute(SYMBOL, (account,))
    return account


def _one(connection: Connection, statement: str, *values: object) -> str:
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None, "an insert returns its row"
    return str(row[0])
