"""The stack's work as superuser at start runs nothing that another role has created."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from agent.failure import Failure
from agent.stack import schema
from agent.stack.database import Database
from agent.stack.passwords import AUTH, LOGIN_ROLES, OWNER, REALTIME, SUPERUSER
from agent.stack.postgres import PostgresServer

# Makes postgres a superuser in any superuser session that can be tricked into running it.
BECOME: LiteralString = (
    "begin reset role; exception when others then null; end;"
    " if (select rolsuper from pg_catalog.pg_roles where rolname = current_user)"
    " then execute 'alter role postgres superuser'; end if;"
)
BOOKKEEPING: tuple[LiteralString, ...] = (
    "alter table supabase_migrations.schema_migrations rename to kept_migrations",
    f"create function public.trap(text) returns text language plpgsql as $$ begin {BECOME} return $1; end $$",
    "create view supabase_migrations.schema_migrations as select public.trap(version) as version, statements, name"
    " from supabase_migrations.kept_migrations",
)
SHADOWS: tuple[LiteralString, ...] = (
    f"create function auth.shobj_description(oid, text) returns text language plpgsql as $$ begin {BECOME} return"
    f" null; end $$",
    f"create function auth.obj_description(oid, text) returns text language plpgsql as $$ begin {BECOME} return"
    f" null; end $$",
    f"create function auth.format(text, text) returns text language plpgsql as $$ begin {BECOME} return $2; end $$",
)
FORGET: LiteralString = "do $$ begin execute format('comment on database %I is null', current_database()); end $$"


@pytest.fixture
def database(postgres_server: PostgresServer, template_database: Database) -> Iterator[Database]:
    copy = Database.create(postgres_server, "test_superuser_sessions", template_database)
    yield copy
    with postgres_server.connect_superuser() as connection:
        for role in LOGIN_ROLES:
            if role != SUPERUSER:
                connection.execute(sql.SQL("alter role {} nosuperuser").format(sql.Identifier(role)))
    copy.drop()
    Database(postgres_server, "test_superuser_sessions_previous").drop()


def superusers(database: Database) -> list[str]:
    with database.server.connect_superuser() as connection:
        rows = connection.execute("select rolname from pg_catalog.pg_roles where rolsuper order by 1").fetchall()
    return [row[0] for row in rows]


def start_again(database: Database) -> None:
    """The start itself may fail because of a trap; that is not tested here."""
    with contextlib.suppress(Failure, psycopg.Error):
        Database.prepared(database.server, database.name)


@pytest.mark.parametrize(
    ("role", "traps"),
    [(OWNER, BOOKKEEPING), (AUTH, SHADOWS)],
    ids=["a view for the bookkeeping", "shadows of Postgres' functions"],
)
@pytest.mark.parametrize("newer", [False, True], ids=["same version", "newer platform"])
def test_no_role_becomes_superuser_at_the_next_start(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    role: str,
    traps: tuple[LiteralString, ...],
    *,
    newer: bool,
) -> None:
    with database.connect(role) as connection:
        for statement in traps:
            connection.execute(statement)
    with database.connect(OWNER) as connection:
        # the owner of the database can request its schema again
        connection.execute(FORGET)
    if newer:
        file = tmp_path / "platform.sql"
        file.write_text(f"{schema.PLATFORM.read_text()}\n-- newer\n")
        monkeypatch.setattr(schema, "PLATFORM", file)
    assert superusers(database) == [SUPERUSER]
    start_again(database)
    assert superusers(database) == [SUPERUSER]


@pytest.mark.parametrize("file", ["migrations/20261201000000_later.sql", "seed.sql"])
def test_a_trigger_gains_nothing_from_a_migration(database: Database, tmp_path: Path, file: str) -> None:
    database.drop()
    (tmp_path / "supabase" / "schemas").mkdir(parents=True)
    (tmp_path / "supabase" / "migrations").mkdir()
    (tmp_path / "supabase" / "schemas" / "first.sql").write_text("create table public.first (id integer);\n")
    (tmp_path / "supabase" / "config.toml").write_text('[db.migrations]\nschema_paths = ["./schemas/*.sql"]\n')
    Database.prepared(database.server, database.name, tmp_path)
    with database.connect(OWNER) as connection:
        connection.execute(
            f"create function public.trap() returns trigger language plpgsql as $$ begin {BECOME} return new; end $$"
        )
        connection.execute(
            "create trigger trap before insert on public.first for each row execute function public.trap()"
        )
        connection.execute(FORGET)
    (tmp_path / "supabase" / file).write_text("insert into public.first values (1);\n")
    Database.prepared(database.server, database.name, tmp_path)
    assert superusers(database) == [SUPERUSER]


@pytest.mark.parametrize("role", [OWNER, AUTH])
def test_only_realtime_may_copy_the_cluster(
    postgres_server: PostgresServer, template_database: Database, role: str
) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied to start WAL sender"):
        psycopg.connect(postgres_server.dsn("postgres", role) + "?replication=database")
    with postgres_server.connect_superuser() as connection:
        rows = connection.execute(
            "select rolname from pg_roles where rolreplication and rolcanlogin order by 1"
        ).fetchall()
    assert rows == [(SUPERUSER,), (REALTIME,)]


def test_an_older_cluster_loses_the_right_to_be_copied_by_postgres(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.server.connect_superuser(database.name) as connection:
        connection.execute("alter role postgres replication")
        # as in a database of an older version
        connection.execute("comment on schema vault is null")
    Database.prepared(database.server, database.name)
    with database.server.connect_superuser() as connection:
        row = connection.execute("select rolreplication from pg_roles where rolname = 'postgres'").fetchone()
    assert row == (False,)
