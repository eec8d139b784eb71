"""Schema files, migrations and the databases made from them."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agent.failure import Failure
from agent.stack import schema
from agent.stack.database import Database
from agent.stack.passwords import OWNER
from agent.stack.postgres import PostgresServer
from agent.stack.schema import MIGRATION, apply_migrations, joined_schema, migrations, write_migration


@pytest.fixture
def root(tmp_path: Path) -> Path:
    schemas = tmp_path / "supabase" / "schemas"
    (schemas / "base").mkdir(parents=True)
    (schemas / "base" / "second.sql").write_text(
        "create table public.second (id integer references public.first (id));\n"
    )
    (schemas / "base" / "zero_first.sql").write_text("create table public.first (id integer primary key);\n")
    order(tmp_path, "./schemas/base/zero_first.sql", "./schemas/base/*.sql")
    (tmp_path / "supabase" / "seed.sql").write_text("insert into public.first values (1) on conflict do nothing;\n")
    return tmp_path


def order(root: Path, *patterns: str) -> None:
    paths = ", ".join(f'"{pattern}"' for pattern in patterns)
    (root / "supabase" / "config.toml").write_text(f"[db.migrations]\nschema_paths = [{paths}]\n")


@pytest.fixture
def name(postgres_server: PostgresServer) -> Iterator[str]:
    yield "test_schema"
    for database in ("test_schema", "test_schema_previous"):
        Database(postgres_server, database).drop()


def test_schema_files_are_joined_in_order(root: Path) -> None:
    path = write_migration(root)
    text = path.read_text()
    assert path.name == MIGRATION
    assert text == joined_schema(root)
    assert text.index("-- base/zero_first.sql\n") < text.index("-- base/second.sql\n")
    assert text.count("-- base/zero_first.sql\n") == 1


@pytest.mark.parametrize("pattern", ["./schemas/base/missing.sql", "./schemas/nowhere/*.sql", "./schema/base/*.sql"])
def test_a_path_that_fits_no_file_is_named(root: Path, pattern: str) -> None:
    order(root, "./schemas/base/zero_first.sql", "./schemas/base/*.sql", pattern)
    with pytest.raises(Failure, match=f"schema_paths.*{re.escape(pattern)}"):
        joined_schema(root)


@pytest.mark.parametrize("file", ["stray.sql", "later/third.sql", "base/deep/third.sql"])
def test_a_file_that_no_path_fits_is_named(root: Path, file: str) -> None:
    stray = root / "supabase" / "schemas" / file
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("create table public.third ();\n")
    with pytest.raises(Failure, match=f"schemas/{re.escape(file)} is not part of the schema"):
        joined_schema(root)


@pytest.mark.parametrize("command", ["check", "write"])
def test_the_command_says_so_in_one_line(
    root: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema, "project_root", lambda: root)
    write_migration(root)
    order(root, "./schemas/base/*.sql", "./schemas/nowhere/*.sql")
    assert schema.main([command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("TC625: supabase/config.toml: schema_paths contains ./schemas/nowhere/*.sql")


def test_migrations_run_once_and_as_postgres(root: Path, postgres_server: PostgresServer, name: str) -> None:
    write_migration(root)
    (root / "supabase" / "migrations" / "20261201000000_later.sql").write_text("create table public.later ();\n")
    database = Database.prepared(postgres_server, name, root)
    with database.connect() as connection:
        owners = connection.execute(
            "select tablename, tableowner from pg_tables where schemaname = 'public' order by 1"
        ).fetchall()
        assert owners == [("first", "postgres"), ("later", "postgres"), ("second", "postgres")]
        versions = connection.execute(
            "select version, name from supabase_migrations.schema_migrations order by 1"
        ).fetchall()
        assert versions == [("20261122000000", "tradecopier"), ("20261201000000", "later")]
        connection.execute("insert into public.first values (2)")
    with database.connect(OWNER) as connection:
        assert apply_migrations(connection, migrations(root)) == []
    Database.prepared(postgres_server, name, root)
    with database.connect() as connection:
        assert connection.execute("select count(*) from public.first").fetchone() == (2,)


def test_a_new_migration_is_applied_to_the_same_database(
    root: Path, postgres_server: PostgresServer, name: str
) -> None:
    Database.prepared(postgres_server, name, root)
    with Database(postgres_server, name).connect() as connection:
        connection.execute("insert into public.first values (2)")
    (root / "supabase" / "migrations").mkdir()
    (root / "supabase" / "migrations" / "20261201000000_later.sql").write_text("create table public.later ();\n")
    with Database.prepared(postgres_server, name, root).connect() as connection:
        assert connection.execute(
            "select count(*), to_regclass('public.later') is not null from public.first"
        ).fetchone() == (
            2,
            True,
        )


def test_an_edited_migration_sets_the_old_database_aside(
    root: Path, postgres_server: PostgresServer, name: str
) -> None:
    Database.prepared(postgres_server, name, root)
    with Database(postgres_server, name).connect() as connection:
        connection.execute("insert into public.first values (2)")
    (root / "supabase" / "schemas" / "base" / "second.sql").write_text("create table public.other ();\n")
    with Database.prepared(postgres_server, name, root).connect() as connection:
        assert connection.execute(
            "select count(*), to_regclass('public.other') is not null from public.first"
        ).fetchone() == (
            1,
            True,
        )
    with Database(postgres_server, f"{name}_previous").connect() as connection:
        assert connection.execute("select count(*) from public.first").fetchone() == (2,)


def test_a_refused_migration_names_its_place_and_leaves_nothing(
    root: Path, postgres_server: PostgresServer, name: str
) -> None:
    (root / "supabase" / "schemas" / "base" / "second.sql").write_text(
        "create table public.good ();\n\nselect nothing_such;\n"
    )
    with pytest.raises(Failure, match=r"TC625.*base/second\.sql line 3.*nothing_such"):
        Database.prepared(postgres_server, name, root)
    with Database(postgres_server, name).connect() as connection:
        assert connection.execute("select to_regclass('public.first')").fetchone() == (None,)


def test_migrations_cannot_do_what_hosted_refuses(root: Path, postgres_server: PostgresServer, name: str) -> None:
    (root / "supabase" / "schemas" / "base" / "second.sql").write_text(
        "alter table realtime.messages enable row level security;\n"
    )
    with pytest.raises(Failure, match="must be owner") as raised:
        Database.prepared(postgres_server, name, root)
    assert isinstance(raised.value.__cause__, psycopg.errors.InsufficientPrivilege)
