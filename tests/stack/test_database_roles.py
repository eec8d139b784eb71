"""Database passwords: each role has its own, and no process that a client can reach has a superuser's."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, LiteralString

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql

from agent.stack.database import Database
from agent.stack.passwords import AUTH, FILE, LOGIN_ROLES, OWNER, REALTIME, REST, SHARED_FILE, SUPERUSER
from agent.stack.postgres import PostgresServer
from agent.stack.schema import apply_platform
from agent.stack.server_user import temporary_folder

if TYPE_CHECKING:
    from agent.stack.stack import Stack

ADDRESS = re.compile(r"postgres(?:ql)?://[^\s\"'\\]+")
FORBIDDEN: tuple[LiteralString, ...] = (
    "copy (select 1) to program 'true'",
    "copy pg_temp.probe from program 'id'",
    "copy pg_temp.probe from '/etc/passwd'",
    "copy (select 1) to '/etc/probe'",
    "select pg_read_file('postgresql.conf')",
    "select pg_read_binary_file('/etc/passwd')",
    "select pg_ls_dir('.')",
    "select pg_stat_file('postgresql.conf')",
    "select lo_import('/etc/passwd')",
    "alter role current_user superuser",
    "create role probe_more superuser",
    "create role probe_more in role supabase_admin",
    "grant supabase_admin to current_user",
    "grant pg_execute_server_program to current_user",
    "grant pg_read_server_files to current_user",
    "grant pg_write_server_files to current_user",
    "alter role supabase_admin password 'mine'",
    "set role supabase_admin",
    "set session authorization supabase_admin",
    "set session_replication_role = replica",
    "alter system set log_connections = on",
    "select rolpassword from pg_authid",
    "select cipher_key from vault.root_key",
    "create function pg_temp.probe_c() returns integer language c as 'x', 'y'",
    "create event trigger probe on ddl_command_end execute function extensions.pgrst_ddl_watch()",
    "update pg_catalog.pg_authid set rolsuper = true where rolname = current_user",
    "load 'auto_explain'",
    "set local shared_preload_libraries = 'x'",
)


def family(stack: "Stack") -> list[psutil.Process]:
    """The gateway's guard, the gateway, and every process behind them."""
    assert stack.gateway_pid is not None
    guard = psutil.Process(stack.gateway_pid)
    return [guard, *guard.children(recursive=True)]


async def everything_runs(stack: "Stack") -> None:
    """The functions' host starts when a function is first called."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=30) as client:
        await client.post("/functions/v1/enroll", json={})
        await client.get("/rest/v1/copiers", headers={"apikey": stack.secret_key})


def told(process: psutil.Process) -> str:
    """Everything that was passed to a process: its environment and its arguments."""
    return "\n".join([*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())])


async def test_no_server_behind_the_gateway_can_become_superuser(stack: "Stack") -> None:
    await everything_runs(stack)
    processes = family(stack)
    assert len(processes) >= 6  # gateway, Auth and REST, functions, each behind its guard
    addresses = {address for process in processes for address in ADDRESS.findall(told(process))}
    assert {re.sub(r".*//(\w+):.*", r"\1", address) for address in addresses} == {OWNER, REST, AUTH, REALTIME}
    for address in addresses:
        with psycopg.connect(address, autocommit=True) as connection:
            row = connection.execute(
                "select rolsuper, current_setting('is_superuser') from pg_roles where rolname = current_user"
            )
            assert row.fetchone() == (False, "off"), connection.info.user
            connection.execute("create temporary table probe (line text)")
            for statement in FORBIDDEN:
                with pytest.raises(psycopg.Error) as refused:
                    connection.execute(statement)
                # Some operations are refused to every role.
                assert refused.value.sqlstate in ("42501", "55P02"), (connection.info.user, statement, refused.value)


async def test_the_superusers_password_is_where_no_client_gets(stack: "Stack") -> None:
    await everything_runs(stack)
    server = stack.database.server
    password = server.passwords.of(SUPERUSER)
    assert [process.pid for process in family(stack) if password in told(process)] == []
    # The server itself and its parent do not have it in an argument either.
    others = [process for process in psutil.process_iter() if process.pid != 0]
    assert [process.pid for process in others if password in " ".join(_arguments(process))] == []
    for folder in (stack.data, server.data):
        for file in folder.iterdir():
            if file.is_file() and file.name != FILE:
                assert password.encode() not in file.read_bytes(), file.name


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_every_role_has_a_password_of_its_own(postgres_server: PostgresServer, template_database: Database) -> None:
    file = postgres_server.data / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    known = json.loads(file.read_text())
    assert set(known) == set(LOGIN_ROLES)
    assert len(set(known.values())) == len(LOGIN_ROLES)
    assert all(len(password) == 48 for password in known.values())
    for role in LOGIN_ROLES:
        for other in LOGIN_ROLES:
            address = f"postgresql://{role}:{known[other]}@127.0.0.1:{postgres_server.port}/postgres"
            if role == other:
                psycopg.connect(address).close()
            else:
                with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                    psycopg.connect(address)


@pytest.mark.parametrize("role", [REALTIME, OWNER, SUPERUSER])
def test_no_standby_can_be_attached(postgres_server: PostgresServer, role: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry for replication"):
        psycopg.connect(postgres_server.dsn("postgres", role) + "?replication=true")


def test_the_realtime_role_has_the_rights_of_realtime_and_no_more(postgres_server: PostgresServer) -> None:
    database = Database.create(postgres_server, "test_realtime_role")
    try:
        with database.connect() as connection:
            apply_platform(connection)
            postgres_server.passwords.give_to(connection)
            connection.execute("create table public.probe ()")
            granted = connection.execute(
                "select n.nspname || '.' || c.relname, p from pg_class c join pg_namespace n on n.oid = c.relnamespace,"
                " unnest(array['select', 'insert', 'update', 'delete', 'truncate']) p"
                " where c.relkind in ('r', 'p', 'v', 'm') and n.nspname not in ('pg_catalog', 'information_schema')"
                " and has_table_privilege(%s, c.oid, p) and not has_table_privilege('public', c.oid, p) order by 1, 2",
                (REALTIME,),
            ).fetchall()
        assert granted == [("realtime.messages", "insert"), ("realtime.messages", "select")]
        with database.connect(REALTIME) as connection:
            for role in ("anon", "authenticated", "service_role"):
                connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
                connection.execute("reset role")
            for role in (OWNER, AUTH, REST, "supabase_realtime_admin"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
    finally:
        database.drop()


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as made:
        yield made


def _as_an_older_version_left_it(folder: Path, *, interrupted: bool) -> str:
    """Make a cluster with one password for all roles, in the old password file. Returns that password."""
    shared = "0123456789abcdef" * 3
    with PostgresServer(folder, durable=False) as server:
        database = Database.create(server, "kept")
        with database.connect() as connection:
            apply_platform(connection)
            connection.execute("create table public.kept ()")
            for role in LOGIN_ROLES:
                connection.execute(
                    sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(shared))
                )
    (folder / SHARED_FILE).write_text(shared)
    # otherwise the new passwords were written, but not yet set in Postgres
    if not interrupted:
        (folder / FILE).unlink()
    (folder / "postgres" / "pg_hba.conf").write_text("host all all all trust\n")
    return shared


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_cluster_with_one_password_gets_one_for_each_role(folder: Path, *, interrupted: bool) -> None:
    shared = _as_an_older_version_left_it(folder, interrupted=interrupted)
    for _ in range(2):
        with PostgresServer(folder, durable=False) as server:
            database = Database(server, "kept")
            for role in LOGIN_ROLES:
                with database.connect(role) as connection:
                    assert connection.execute("select to_regclass('public.kept') is not null").fetchone() == (True,)
                with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                    psycopg.connect(f"postgresql://{role}:{shared}@127.0.0.1:{server.port}/kept")
        assert not (folder / SHARED_FILE).exists()
        assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
