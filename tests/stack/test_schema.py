"""Schema files, migrations and the databases made from them."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agent.failure import Failure
from agent.local.database import Database
from agent.local.postgres import PostgresServer
from agent.local.schema import MIGRATION, apply_migrations, joined_schema, migrations, write_migration


@pytest.fixture
def root(tmp_path: Path) -> Path:
    schemas = tmp_path / "supabase" / "schemas"
    schemas.mkdir(parents=True)
    (schemas / "20_second.sql").write_text("create table public.second (id integer references public.first (id));\n")
    (schemas / "10_first.sql").write_text("create table public.first (id integer primary key);\n")
    (tmp_path / "supabase" / "seed.sql").write_text("insert into public.first values (1) on conflict do nothing;\n")
    return tmp_path


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
    assert text.index("10_first.sql") < text.index("20_second.sql")


def test_migrations_run_once_and_as_postgres(root: Path, postgres_server: PostgresServer, name: str) -> None:
    write_migration(root)
    (root / "supabase" / "migrations" / "20261201000000_later.sql").write_text("create table public.later ();\n")
    database = Database.prepared(postgres_server, name, root)
    with database.connect() as connection:
        owners = connection.execute(
            "select tablename, tableowner from pg_tables where schemaname = 'public' order by 1"
        ).fetchall()
        assert owners == [("first", "postgres"), ("later", "postgres"), ("second", "postgres")]
        versions = connection.execute("select version, name from supabase_migrations.schema_migrations order by 1").fetchall()
        assert versions == [("20261122000000", "tradecopier"), ("20261201000000", "later")]
        assert apply_migrations(connection, migrations(root)) == []
        connection.execute("insert into public.first values (2)")
    Database.prepared(postgres_server, name, root)
    with database.connect() as connection:
        assert connection.execute("select count(*) from public.first").fetchone() == (2,)


def test_a_new_migration_is_applied_to_the_same_database(root: Path, postgres_server: PostgresServer, name: str) -> None:
    Database.prepared(postgres_server, name, root)
    with Database(postgres_server, name).connect() as connection:
        connection.execute("insert into public.first values (2)")
    (root / "supabase" / "migrations").mkdir()
    (root / "supabase" / "migrations" / "20261201000000_later.sql").write_text("create table public.later ();\n")
    with Database.prepared(postgres_server, name, root).connect() as connection:
        assert connection.execute("select count(*), to_regclass('public.later') is not null from public.first").fetchone() == (
            2,
            True,
        )


def test_an_edited_migration_sets_the_old_database_aside(root: Path, postgres_server: PostgresServer, name: str) -> None:
    Database.prepared(postgres_server, name, root)
    with Database(postgres_server, name).connect() as connection:
        connection.execute("insert into public.first values (2)")
    (root / "supabase" / "schemas" / "20_second.sql").write_text("create table public.other ();\n")
    with Database.prepared(postgres_server, name, root).connect() as connection:
        assert connection.execute("select count(*), to_regclass('public.other') is not null from public.first").fetchone() == (
            1,
            True,
        )
    with Database(postgres_server, f"{name}_previous").connect() as connection:
        assert connection.execute("select count(*) from public.first").fetchone() == (2,)


def test_a_refused_migration_names_its_place_and_leaves_nothing(root: Path, postgres_server: PostgresServer, name: str) -> None:
    (root / "supabase" / "schemas" / "20_second.sql").write_text("create table public.good ();\n\nselect nothing_such;\n")
    with pytest.raises(Failure, match=r"TC625.*20_second\.sql line 3.*nothing_such"):
        Database.prepared(postgres_server, name, root)
    with Database(postgres_server, name).connect() as connection:
        assert connection.execute("select to_regclass('public.first')").fetchone() == (None,)


def test_migrations_cannot_do_what_hosted_refuses(root: Path, postgres_server: PostgresServer, name: str) -> None:
    (root / "supabase" / "schemas" / "20_second.sql").write_text("alter table realtime.messages enable row level security;\n")
    with pytest.raises(Failure, match="must be owner") as raised:
        Database.prepared(postgres_server, name, root)
    assert isinstance(raised.value.__cause__, psycopg.errors.InsufficientPrivilege)
