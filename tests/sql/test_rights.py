"""Who may see and do what: every table and every function × everybody. What is not allowed here is refused.

A table, view or function that is missing from the lists fails the test: whoever adds one says who may use it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
import pytest
from api_actors import EURUSD, Actor, Farm
from psycopg import sql

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer

pytestmark = pytest.mark.own_database

WHO: Final = ("anonymous", "user", "other user", "agent", "other agent", "retired agent", "operator", "service")

# own: exactly the caller's rows; all: every row; none: no row; -: no right on the table at all. Nobody may write any of
# them.
TABLES: Final = """
table                           anonymous user other-user agent other-agent retired-agent operator service
public.account_days             -         own  own        none  none        none          all      all
public.account_status           -         own  own        none  none        none          all      all
public.account_snapshots        -         own  own        none  none        none          all      all
public.account_symbols          -         own  own        none  none        none          all      all
public.account_vps_assignments  -         own  own        none  none        none          all      all
public.alerts                   -         own  own        none  none        none          all      all
public.audit_log                -         own  own        none  none        none          all      all
public.balance_operations       -         own  own        none  none        none          all      all
public.broker_servers           -         -    -          -     -           -             -        all
public.connection_health_logs   -         own  own        none  none        none          all      all
public.copied_trades            -         own  own        none  none        none          all      all
public.execution_latencies      -         own  own        none  none        none          all      all
public.copiers                  -         own  own        none  none        none          all      all
public.copy_outcomes            -         own  own        none  none        none          all      all
public.crypto_currencies        -         all  all        all   all         all           all      all
public.currency_units           -         all  all        all   all         all           all      all
public.enrollment_tokens        -         none none       none  none        none          all      all
public.flat_times               -         own  own        none  none        none          all      all
public.operators                -         none none       none  none        none          all      all
public.position_links           -         own  own        none  none        none          all      all
public.positions                -         own  own        none  none        none          all      all
public.protection_looks         -         own  own        none  none        none          all      all
public.protection_rules         -         own  own        none  none        none          all      all
public.quiet_windows            -         own  own        none  none        none          all      all
public.server_requests          -         own  own        none  none        none          all      all
public.symbol_aliases           -         all  all        all   all         all           all      all
public.symbol_mappings          -         own  own        none  none        none          all      all
public.system_config            -         none none       none  none        none          all      all
public.trade_events             -         own  own        none  none        none          all      all
public.trade_execution_queue    -         own  own        none  none        none          all      all
public.trading_accounts         -         own  own        none  none        none          all      all
public.trading_switch           -         all  all        all   all         all           all      all
public.unexplained_pairs        -         own  own        none  none        none          all      all
public.user_preferences         -         own  own        none  none        none          all      all
public.vps_instances            -         none none       none  none        none          all      all
private.clockwork               -         -    -          -     -           -             -        -
private.database_generation     -         -    -          -     -           -             -        -
private.drift_dismissals        -         -    -          -     -           -             -        -
private.copier_filters          -         -    -          -     -           -             -        -
private.doorbells               -         -    -          -     -           -             -        -
private.event_keys              -         -    -          -     -           -             -        -
private.symbol_waits            -         -    -          -     -           -             -        -
private.quarantine                  -         -    -          -     -           -             -        -
private.unread_entries              -         -    -          -     -           -             -        -
private.link_legs               -         -    -          -     -           -             -        -
private.symbol_choices           -         -    -          -     -           -             -        -
private.login_attempts          -         -    -          -     -           -             -        -
private.link_states             -         -    -          -     -           -             -        -
private.net_ledgers             -         -    -          -     -           -             -        -
private.number_jumps            -         -    -          -     -           -             -        -
private.plan_locks              -         -    -          -     -           -             -        -
private.releases                -         -    -          -     -           -             -        -
private.trade_events_*          -         -    -          -     -           -             -        -
private.time_zones              -         -    -          -     -           -             -        -
private.vps_secrets             -         -    -          -     -           -             -        -
private.weekend_watches         -         -    -          -     -           -             -        -
"""

# ok, or the SQLSTATE of the refusal. The call concerns an account of "user" that "agent" works, or the VPS of "agent".
# 42501: the role may not even call it.
FUNCTIONS: Final = """
function                 anonymous user  other-user agent other-agent retired-agent operator service
account_credentials      42501     TC101 TC101      ok    TC103       TC102         TC101    42501
agent_session            42501     42501 42501      42501 42501       42501         42501    ok
assign_account           42501     ok    TC106      TC105 TC105       TC105         ok       ok
check_enrollment         42501     42501 42501      42501 42501       42501         42501    ok
connect_account          42501     ok    ok         TC105 TC105       TC105         ok       ok
copier_drift             42501     ok    TC106      TC105 TC105       TC105         ok       42501
copy_figures             42501     ok    ok         TC105 TC105       TC105         ok       42501
create_enrollment_token  42501     TC107 TC107      TC107 TC107       TC107         ok       ok
drain_vps                42501     TC107 TC107      TC107 TC107       TC107         ok       ok
enroll_vps               42501     42501 42501      42501 42501       42501         42501    ok
flatten_account          42501     ok    TC106      TC105 TC105       TC105         ok       42501
grant_operator           42501     42501 42501      42501 42501       42501         42501    ok
maintain                 42501     42501 42501      42501 42501       42501         42501    ok
list_broker_servers      42501     TC107 TC107      TC107 TC107       TC107         ok       ok
mark_alert_seen          42501     ok    TC106      TC105 TC105       TC105         ok       42501
mark_alerts_seen         42501     ok    TC106      TC105 TC105       TC105         TC106    42501
note_restored            42501     42501 42501      42501 42501       42501         42501    ok
open_session             42501     TC101 TC101      ok    TC103       TC102         TC101    42501
pause_account            42501     ok    TC106      TC105 TC105       TC105         ok       42501
operator_candidate       42501     42501 42501      42501 42501       42501         42501    ok
preview_copy             42501     ok    ok         ok    ok          ok            ok       ok
protection_room          42501     ok    TC106      TC105 TC105       TC105         ok       ok
queue_trade_copy         42501     TC101 TC101      ok    TC103       TC102         TC101    42501
remove_account           42501     ok    TC106      TC105 TC105       TC105         TC106    ok
remove_broker_server     42501     TC107 TC107      TC107 TC107       TC107         ok       ok
remove_copier            42501     ok    TC106      TC105 TC105       TC105         ok       42501
remove_flat_by           42501     ok    TC106      TC105 TC105       TC105         ok       42501
import_quiet_windows     42501     ok    ok         TC105 TC105       TC105         ok       42501
remove_quiet_windows     42501     ok    ok         TC105 TC105       TC105         ok       42501
remove_protection_rule   42501     ok    TC106      TC105 TC105       TC105         TC106    42501
report_account_state     42501     TC101 TC101      ok    TC103       TC102         TC101    42501
report_executions        42501     TC101 TC101      ok    ok          TC102         TC101    42501
reset_protection         42501     ok    TC106      TC105 TC105       TC105         TC106    42501
resync_copier            42501     ok    TC106      TC105 TC105       TC105         ok       42501
retire_vps               42501     TC107 TC107      TC107 TC107       TC107         ok       ok
save_broker_server       42501     TC107 TC107      TC107 TC107       TC107         ok       ok
save_copier              42501     ok    TC106      TC105 TC105       TC105         TC106    42501
save_protection_rule     42501     ok    TC106      TC105 TC105       TC105         TC106    42501
set_copier_mode          42501     ok    TC106      TC105 TC105       TC105         ok       42501
set_currency_unit        42501     TC107 TC107      TC107 TC107       TC107         ok       ok
set_symbol_alias         42501     TC107 TC107      TC107 TC107       TC107         ok       ok
symbol_suggestions       42501     ok    TC106      TC105 TC105       TC105         ok       42501
set_trading              42501     TC107 TC107      TC107 TC107       TC107         ok       ok
set_flat_by              42501     ok    TC106      TC105 TC105       TC105         ok       42501
save_quiet_windows       42501     ok    ok         TC105 TC105       TC105         ok       42501
equity_curve             42501     ok    TC106      TC105 TC105       TC105         ok       42501
my_session               42501     ok    ok         TC105 TC105       TC105         ok       42501
request_server           42501     ok    ok         TC105 TC105       TC105         ok       42501
search_servers           42501     ok    ok         TC105 TC105       TC105         ok       42501
set_preferences          42501     ok    ok         TC105 TC105       TC105         ok       42501
set_quiet_times          42501     ok    TC106      TC105 TC105       TC105         ok       42501
set_setting              42501     TC107 TC107      TC107 TC107       TC107         ok       ok
update_account           42501     ok    TC106      TC105 TC105       TC105         TC106    ok
verdict                  42501     ok    ok         TC105 TC105       TC105         ok       42501
vps_heartbeat            42501     TC101 TC101      ok    ok          TC102         TC101    42501
"""

# Beside the twins of the functions above: what policies (the first two), page functions
# and views call in the reader's name.
PRIVATE_GRANTS: Final = {
    name: {"authenticated"}
    for name in (
        "is_operator", "may_listen",
        "page_user", "page_reader", "server_time", "curve_bucket", "curve_points",
        "refuse_unknown", "uuid_of", "text_of", "name_of", "int_of", "time_of", "is_plain", "plain", "plain_name",
        "rfc3339", "require_user", "own_account",
    )
} | {
    key: {"authenticated", "service_role"} for key in ("account_status_now", "nothing_to_do", "reason_words")
}  # fmt: skip

# Whose a row is: an expression over the row t.
OWNER: Final[dict[str, LiteralString]] = {
    "public.account_snapshots": "(select a.user_id from public.trading_accounts a where a.id = t.account_id)",
    "public.account_symbols": "(select a.user_id from public.trading_accounts a where a.id = t.account_id)",
    "public.account_vps_assignments": "(select a.user_id from public.trading_accounts a where a.id = t.account_id)",
    "public.connection_health_logs": "(select a.user_id from public.trading_accounts a where a.id = t.account_id)",
    "public.unexplained_pairs": "(select a.user_id from public.trading_accounts a where a.id = t.account_id)",
    "public.operators": "null::uuid",
    "public.crypto_currencies": "null::uuid",
    "public.currency_units": "null::uuid",
    "public.symbol_aliases": "null::uuid",
    "public.trading_switch": "null::uuid",
    "public.broker_servers": "null::uuid",
    "public.system_config": "null::uuid",
    "public.enrollment_tokens": "null::uuid",
    "public.vps_instances": "null::uuid",
}


def parsed(table: str) -> dict[str, dict[str, str]]:
    """`{row: {who: cell}}` of one of the tables above."""
    lines = [line.split() for line in table.strip().splitlines()]
    return {name: dict(zip(WHO, cells, strict=True)) for name, *cells in lines[1:]}


@pytest.fixture(scope="module")
def served_template(
    postgres_server: PostgresServer, template_database: Database, serve_tables: Callable[[Database], None]
) -> Iterator[Database]:
    """The project's schema after a stack has served its tables to every role."""
    served = Database.create(postgres_server, "template_served", template_database)
    serve_tables(served)
    yield served
    served.drop()


@pytest.fixture(params=["as made", "after table reads"])
def farm(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[Farm]:
    """Rights are the same before and after the REST server has read tables: it must grant nothing."""
    if request.param == "as made":
        template: Database = request.getfixturevalue("template_database")
    else:
        template = request.getfixturevalue("served_template")
    database = Database.create(postgres_server, "test_rights", template)
    verbs = Farm(database)
    yield verbs
    verbs.close()
    database.drop()


@dataclass(frozen=True, slots=True)
class World:
    """Two users with the same things each, two agents and a retired one, an operator."""

    farm: Farm
    who: dict[str, Actor]
    account: UUID
    follower: UUID
    copier: UUID
    token: str
    spare_user: UUID


def furnish(farm: Farm, user: Actor, agent: Actor) -> tuple[UUID, UUID, UUID]:
    """A master, a follower and a row in every table that hangs on them; all on `agent`."""
    accounts = [farm.account(user) for _ in range(2)]
    for account in accounts:
        farm.service.can("assign_account", {"account_id": account, "vps_id": agent.vps_id})
        session = farm.session(agent, account)
        agent.can("report_account_state", {
            "account_id": account, "epoch": farm.assignment(account)["epoch"], "session": session, "balance": "1",
            "equity": "1",
            "symbols": [{"name": "EURUSD", "contract_size": "1", "digits": 5, "tick_size": "1",
                         "profit_currency": "USD",
                         "lots_min": "1", "lots_max": "2", "lots_step": "1"}],
        })  # fmt: skip
    master, follower = accounts
    copier = UUID(user.can("save_copier", {
        "master_account_id": master, "follower_account_id": follower, "symbols": {"A": "B"},
    })["copier_id"])  # fmt: skip
    ids = {"user": user.user_id, "master": master, "follower": follower, "copier": copier}
    statements: tuple[LiteralString, ...] = (
        "insert into public.protection_rules (user_id, account_id, kind, threshold)"
        " values (%(user)s, %(master)s, 'daily_loss', 1)",
        "insert into public.balance_operations (account_id, number, user_id, kind, amount, made_at, counted)"
        " values (%(master)s, '1', %(user)s, 'deposit', 1, now(), true)",
        "insert into public.flat_times (account_id, user_id, weekday, flat_at, time_zone, due_at)"
        " values (%(master)s, %(user)s, 5, '16:45', 'UTC', 'infinity')",
        "insert into public.server_requests (user_id, platform, name) values (%(user)s, 'mt5', 'Broker-Live3')",
        "insert into public.user_preferences (user_id) values (%(user)s)",
        "insert into public.account_days (account_id, day, user_id, time_zone, ends_at, first_at, last_at,"
        " first_equity, min_equity, max_equity, last_equity, first_balance, min_balance, max_balance, last_balance)"
        " values (%(master)s, '2026-12-01', %(user)s, 'UTC', 'infinity', now(), now(), 1, 1, 1, 1, 1, 1, 1, 1)",
        "insert into public.quiet_windows (user_id, begins_at, ends_at, span)"
        " values (%(user)s, now(), now(), tstzrange(now(), now()))",
        "insert into public.protection_looks (rule_id, user_id, account_id, kind, at, equity, reached, outcome)"
        " select r.id, r.user_id, r.account_id, r.kind, now(), 1, 1, 'first' from public.protection_rules r"
        " where r.account_id = %(master)s",
        "insert into public.alerts (user_id, account_id, kind, reason, message)"
        " values (%(user)s, %(master)s, 'stop_out', 'stop_out', 'a message that says something')",
        "insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq,"
        " unseen_at, detected_at, first_seen_at, changed_at)"
        " values (%(master)s, '1', %(user)s, 'position', 'EURUSD', 'buy', 1, 1, 1, 1, now(), now(), now(), now())",
        "insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket,"
        " master_side, state, reason, seen_master_lots, ended_at)"
        " values (%(user)s, %(copier)s, %(master)s, %(follower)s, '1', 'buy', 'ended', 'below_min', 1, now())",
        "insert into public.trade_events (account_id, user_id, type, status) values (%(master)s, %(user)s, 'opened',"
        " 'accepted')",
        "insert into public.copy_outcomes (event_id, copier_id, user_id, reason)"
        " values ((select max(id) + 1000 from public.trade_events), %(copier)s, %(user)s, 'below_min')",
        "insert into public.trade_execution_queue (step_id, lane, user_id, account_id, action, priority, symbol,"
        " side, lots,"
        " send_before, queued_at, updated_at, status, reason, finalized_at) values (1, '1', %(user)s, %(follower)s,"
        " 'open', 40,"
        " 'EURUSD', 'buy', 1, now(), now(), now(), 'expired', 'expired', now())",
    )
    for statement in statements:
        farm.owner.execute(statement, ids)
    return master, follower, copier


@pytest.fixture
def world(farm: Farm) -> World:
    agent, other_agent = farm.agent("a"), farm.agent("b")
    user, other, operator = farm.user(), farm.user(), farm.operator()
    account, follower, copier = furnish(farm, user, agent)
    furnish(farm, other, other_agent)
    retired = farm.agent("c")
    operator.can("retire_vps", {"vps_id": retired.vps_id})
    farm.rows(
        "update private.vps_secrets set secret_hash = encode(sha256('secret'), 'hex') where vps_id = %s",
        (agent.vps_id,),
    )
    actors = (farm.anonymous, user, other, agent, other_agent, retired, operator, farm.service)
    spare = farm.user("spare").user_id
    assert spare is not None
    farm.rows("update auth.users set email_confirmed_at = now() where id = %s", (spare,))
    return World(farm, dict(zip(WHO, actors, strict=True)), account, follower, copier, farm.token(), spare)


def payload(world: World, function: str) -> object:
    """A call that nothing but the caller's rights can make fail."""
    account, vps = {"account_id": world.account}, {"vps_id": world.who["agent"].vps_id}
    epoch = world.farm.assignment(world.account)["epoch"]
    rule = world.farm.row("select id from public.protection_rules where account_id = %s", (world.account,))["id"]
    enrolment = {
        "token": world.token,
        "name": "new",
        "platforms": ["paper"],
        "user_id": world.spare_user,
        "secret_hash": "0" * 64,
    }
    money = {"currency": "USD", "balance": "10000", "equity": "10000", "free_margin": "10000"}
    symbol = EURUSD
    payloads: dict[str, object] = {
        "account_credentials": account | {"epoch": epoch},
        "agent_session": vps | {"secret": "secret"},
        "assign_account": account,
        "check_enrollment": enrolment,
        "connect_account": {
            "platform": "paper", "server": "Paper", "login": "new", "password": "p",
            "user_id": world.who["user"].user_id,
        },
        "protection_room": account,
        "copier_drift": {"copier_id": world.copier},
        "copy_figures": {"time_zone": "Europe/Berlin"},
        "create_enrollment_token": {},
        "drain_vps": vps,
        "enroll_vps": enrolment,
        "flatten_account": account,
        "grant_operator": world.farm.row("select email from auth.users where id = %s", (world.spare_user,))["email"],
        "list_broker_servers": {},
        "maintain": None,
        "mark_alert_seen": {
            "alert_id": world.farm.row("select id from public.alerts where account_id = %s", (world.account,))["id"]
        },
        "mark_alerts_seen": {
            "alert_ids": [
                world.farm.row("select id from public.alerts where account_id = %s", (world.account,))["id"]
            ]
        },
        "note_restored": {},
        "open_session": account | {"epoch": epoch},
        "operator_candidate": world.farm.row("select email from auth.users where id = %s",
                                             (world.spare_user,))["email"],
        "pause_account": account | {"state": "monitor"},
        "preview_copy": {
            "copier": {"sizing_mode": "multiplier", "sizing_value": "1"},
            "master": money | {"symbol": symbol},
            "follower": money | {"symbol": symbol},
            "trade": {"side": "buy", "lots": "1.00", "price": "1.10000", "sl": None, "tp": None},
            "rates": {},
        },
        "queue_trade_copy": account | {"epoch": epoch, "events": []},
        "remove_account": account,
        "remove_broker_server": {"platform": "mt5", "server": "Paper"},
        "remove_copier": {"copier_id": world.copier, "mode": "close_now"},
        "remove_flat_by": account,
        "import_quiet_windows": {"text": "2099-12-04"},
        "remove_quiet_windows": {"all": True},
        "remove_protection_rule": {"rule_id": rule},
        "report_account_state": account | {"epoch": epoch, "session": 1, "status": "connected"},
        "report_executions": {"reports": []},
        "reset_protection": {"rule_id": rule},
        "resync_copier": {
            "copier_id": world.copier, "items": [{"kind": "missing", "master_ticket": "1", "action": "copy"}],
        },
        "retire_vps": vps,
        "save_broker_server": {"platform": "paper", "server": "Paper", "title": "Practice"},
        "save_copier": {"id": world.copier, "name": "renamed"},
        "save_protection_rule": {"id": rule, "threshold": "2"},
        "set_copier_mode": {"copier_id": world.copier, "mode": "monitor"},
        "set_flat_by": account | {"weekday": 5, "time": "16:45", "time_zone": "UTC", "close_now": True},
        "save_quiet_windows": {"windows": [{"from": "2099-12-04"}]},
        "equity_curve": account,
        "my_session": {},
        "request_server": {"platform": "mt5", "name": "Broker-Live3"},
        "search_servers": {"platform": "mt5", "query": "b"},
        "set_preferences": {"theme": "dark"},
        "set_quiet_times": account,
        "set_setting": {"key": "lease_s", "value": 16},
        "set_currency_unit": {"currency": "USDX", "counts_as": "USD"},
        "set_symbol_alias": {"name": "XAU", "instrument": "GOLD"},
        "symbol_suggestions": {"copier_id": world.copier},
        "set_trading": {"state": "monitor", "reason": "prices are wrong"},
        "update_account": account | {"name": "renamed"},
        "verdict": {},
        "vps_heartbeat": {"protocol_version": 2},
    }  # fmt: skip
    return payloads[function]


class _Undo(Exception):
    """Rolls a probing call back."""


def outcome(actor: Actor, function: str, argument: object) -> str:
    """ok, or the SQLSTATE; whatever the call did is rolled back."""
    call = sql.SQL("select public.{}({})").format(sql.Identifier(function), sql.SQL("" if argument is None else "%s"))
    text = argument if isinstance(argument, str) else json.dumps(argument, default=str)
    try:
        with actor.transaction() as request:
            request.execute(call, None if argument is None else (text,))
            raise _Undo
    except _Undo:
        return "ok"
    except psycopg.Error as error:
        return error.sqlstate or "?"


def test_every_function_does_what_the_list_says_for_everybody(world: World) -> None:
    world.farm.rows("update public.copiers set removed_at = now() where id <> %s", (world.copier,))
    listed = parsed(FUNCTIONS)
    seen: dict[str, dict[str, str]] = {}
    for function in listed:
        if function == "remove_account":
            world.farm.rows("update public.copiers set removed_at = now() where true")
        argument = payload(world, function)
        seen[function] = {name: outcome(actor, function, argument) for name, actor in world.who.items()}
        if function == "remove_account":
            world.farm.rows("update public.copiers set removed_at = null where id = %s", (world.copier,))
    assert seen == listed


def test_every_function_is_on_the_list_and_granted_as_it_says(farm: Farm) -> None:
    listed = parsed(FUNCTIONS)
    functions = farm.rows(
        "select n.nspname as schema, p.proname as name, p.oid::regprocedure::text as signature, p.prosecdef as definer,"
        " array(select r from unnest(array['anon', 'authenticated', 'service_role']) r"
        " where has_function_privilege(r, p.oid, 'execute')) as granted"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'private')"
    )
    assert {f["name"] for f in functions if f["schema"] == "public"} == set(listed)
    for function in functions:
        cells = listed.get(function["name"])
        if cells is not None:
            expected = {
                role
                for role, name in (("anon", "anonymous"), ("authenticated", "user"), ("service_role", "service"))
                if cells[name] != "42501"
            }
        else:
            expected = PRIVATE_GRANTS.get(function["name"], set())
        assert set(function["granted"]) == expected, function["signature"]


def test_every_table_shows_what_the_list_says_to_everybody(world: World) -> None:
    for table, cells in parsed(TABLES).items():
        if table.startswith("private."):
            continue
        name = sql.Identifier(*table.split("."))
        owner: Any = sql.SQL(OWNER.get(table, "t.user_id"))
        everything = world.farm.owner.execute(
            sql.SQL("select t::text as line, {} as owner from {} t").format(owner, name)
        ).fetchall()
        assert everything, f"{table}: the test needs rows to say anything"
        for who, cell in cells.items():
            actor = world.who[who]
            lines = sorted(
                row["line"] for row in everything if cell == "all" or (cell == "own" and row["owner"] == actor.user_id)
            )
            assert lines or cell not in ("own", "all"), f"{table}: the test needs rows of {who}"
            try:
                with actor.transaction() as request:
                    seen: list[str] | None = sorted(
                        row["line"]
                        for row in request.execute(sql.SQL("select t::text as line from {} t").format(name)).fetchall()
                    )
            except psycopg.errors.InsufficientPrivilege:
                seen = None
            assert seen == (None if cell == "-" else lines), f"{table} as {who}"


def test_every_table_is_on_the_list_and_nobody_may_write_any(farm: Farm) -> None:
    listed = parsed(TABLES)
    tables = farm.rows(
        "select n.nspname || '.' || c.relname as name, c.relkind = 'v' as view, c.relrowsecurity as rls, c.oid,"
        " c.reloptions as options"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm', 'f')"
    )
    names = {"private.trade_events_*" if t["name"].startswith("private.trade_events_") else t["name"] for t in tables}
    assert names == set(listed)
    for table in tables:
        cells = listed.get(table["name"], listed["private.trade_events_*"])
        assert table["view"] or table["rls"], f"{table['name']}: no row level security"
        if table["view"] and table["name"].startswith("public."):
            assert "security_invoker=true" in (table["options"] or []), (
                f"{table['name']}: reads with its owner's rights"
            )
        for role, who in (("anon", "anonymous"), ("authenticated", "user"), ("service_role", "service")):
            row = farm.row(
                "select array(select p"
                " from unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p"
                " where has_table_privilege(%s, %s::oid, p)) || array(select p || ' of a column'"
                " from unnest(array['insert', 'update', 'references']) p"
                " where has_any_column_privilege(%s, %s::oid, p)) as rights",
                (role, table["oid"], role, table["oid"]),
            )
            assert row["rights"] == ([] if cells[who] == "-" else ["select"]), f"{table['name']} for {role}"


def test_nobody_has_rights_on_sequences(farm: Farm) -> None:
    rows = farm.rows(
        "select c.oid::regclass::text as name from pg_class c"
        " where c.relkind = 'S' and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)"
        " and exists (select from unnest(array['anon', 'authenticated', 'service_role']) r"
        " where has_sequence_privilege(r, c.oid, 'usage, select, update'))"
    )
    assert rows == []


def test_what_a_later_migration_adds_is_closed_from_the_start(farm: Farm) -> None:
    farm.rows("set role postgres")
    farm.rows("create table public.later (id int); create sequence public.later_seq")
    farm.rows("create function public.later() returns int language sql as 'select 1'")
    farm.rows("create function private.later() returns int language sql as 'select 1'")
    row = farm.row(
        "select bool_or(has_function_privilege(r, 'public.later()', 'execute')"
        " or has_function_privilege(r, 'private.later()', 'execute')"
        " or has_table_privilege(r, 'public.later', 'select, insert, update, delete')"
        " or has_sequence_privilege(r, 'public.later_seq', 'usage')) as reachable"
        " from unnest(array['anon', 'authenticated', 'service_role']) r"
    )
    assert row["reachable"] is False
