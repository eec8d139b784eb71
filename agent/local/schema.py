"""Puts the schema into a database: the platform's slice, the project's migrations unchanged and as `postgres`, the seed.

`python -m agent.local.schema [write]` joins supabase/schemas/*.sql into the one migration; `check` says whether it is current.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import psycopg
from psycopg import sql
from psycopg.abc import Query

from agent.failure import Failure

PLATFORM: Final = Path(__file__).with_name("platform.sql")
MIGRATION: Final = "20261122000000_tradecopier.sql"


def project_root() -> Path:
    """The checkout (the folder that holds `supabase/`)."""
    return Path(__file__).resolve().parents[2]


def schema_files(root: Path | None = None) -> list[Path]:
    """supabase/schemas/*.sql in the order in which they apply."""
    return sorted((root or project_root()).glob("supabase/schemas/*.sql"))


def joined_schema(root: Path | None = None) -> str:
    """The text of the one migration: every schema file after a line that names it."""
    parts = [f"-- {file.name}\n{file.read_text().rstrip()}\n" for file in schema_files(root)]
    return "-- Made by `make migration` from supabase/schemas/. Edit those.\n\n" + "\n".join(parts)


def write_migration(root: Path | None = None) -> Path:
    """Write the migration, only if it changes. Returns its path."""
    path = (root or project_root()) / "supabase" / "migrations" / MIGRATION
    path.parent.mkdir(parents=True, exist_ok=True)
    text = joined_schema(root)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration: `version` is the number in its file name."""

    version: str
    name: str
    text: str


def migrations(root: Path | None = None) -> list[Migration]:
    """supabase/migrations/*.sql, oldest first.

    The one that is made from supabase/schemas/ is taken from there, so that an edited schema counts at once; `check`
    (part of `make check`) sees to it that the committed file says the same.
    """
    base = root or project_root()
    found = {file.name: file.read_text() for file in base.glob("supabase/migrations/*.sql")}
    if schema_files(base):
        found[MIGRATION] = joined_schema(base)
    numbered = [(Path(name).stem.partition("_"), text) for name, text in sorted(found.items())]
    return [Migration(version, name, text) for (version, _, name), text in numbered]


def fingerprint(wanted: Sequence[Migration]) -> str:
    """Changes whenever the platform's slice or one of the migrations does."""
    digest = hashlib.sha256(PLATFORM.read_bytes())
    for migration in wanted:
        digest.update(f"\0{migration.version}\0{migration.text}".encode())
    return digest.hexdigest()[:16]


def apply_platform(connection: psycopg.Connection) -> None:
    """Run platform.sql as the superuser (autocommit). Roles are the cluster's: a race with another database is run again."""
    for attempt in range(5):
        try:
            connection.execute(_text(PLATFORM.read_text()))
            break
        except psycopg.errors.InternalError_ as error:
            if "concurrently updated" not in str(error) or attempt == 4:
                raise
            time.sleep(0.1 * (attempt + 1))
    owner = connection.execute("select pg_get_userbyid(datdba) from pg_database where datname = current_database()").fetchone()
    if owner is not None and owner[0] != "postgres":
        connection.execute(sql.SQL("alter database {} owner to postgres").format(sql.Identifier(connection.info.dbname)))


def apply_migrations(connection: psycopg.Connection, wanted: Sequence[Migration]) -> list[str]:
    """Apply what `supabase_migrations.schema_migrations` does not list yet, each in one transaction. Returns the versions.

    `connection` is autocommit and a superuser's; the migrations themselves run as `postgres`, as on hosted.
    """
    connection.execute("set role postgres")
    connection.execute("set search_path to public, extensions")
    connection.execute(
        "create table if not exists supabase_migrations.schema_migrations "
        "(version text primary key, statements text[], name text, created_by text, idempotency_key text, rollback text[])"
    )
    known = {row[0] for row in connection.execute("select version from supabase_migrations.schema_migrations").fetchall()}
    applied = []
    for migration in wanted:
        if migration.version in known:
            continue
        try:
            with connection.transaction():
                connection.execute(_text(migration.text))
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)",
                    (migration.version, migration.name, [migration.text]),
                )
        except psycopg.Error as error:
            place = _place(migration.text, error)
            raise Failure(
                f"migration {migration.version}{place}: {_first_line(error)}", "mend the SQL, then run it again", code="TC625"
            ) from error
        applied.append(migration.version)
    connection.execute("reset search_path")
    connection.execute("reset role")
    return applied


def apply_seed(connection: psycopg.Connection, root: Path | None = None) -> None:
    """Run supabase/seed.sql (reference data, written to be run again) as `postgres`."""
    file = (root or project_root()) / "supabase" / "seed.sql"
    if not file.exists():
        return
    connection.execute("set role postgres")
    try:
        with connection.transaction():
            connection.execute(_text(file.read_text()))
    except psycopg.Error as error:
        raise Failure(f"seed.sql{_place(file.read_text(), error)}: {_first_line(error)}", "mend the SQL", code="TC625") from error
    finally:
        connection.execute("reset role")


def prepare_database(connection: psycopg.Connection, root: Path | None = None) -> list[str]:
    """Platform, migrations and seed on one database. Returns the versions that were new to it."""
    apply_platform(connection)
    applied = apply_migrations(connection, migrations(root))
    apply_seed(connection, root)
    return applied


def _text(text: str) -> Query:
    # Files of this project, no input: psycopg's LiteralString rule guards against anything else. Bytes skip its parameters.
    return cast("Query", text.encode())


def _place(text: str, error: psycopg.Error) -> str:
    position = error.diag.statement_position
    if not position:
        return ""
    before = text[: int(position)].splitlines()
    file = next((line[3:] for line in reversed(before) if line.startswith("-- ") and line.endswith(".sql")), None)
    if file is None:
        return f" line {len(before)}"
    return f" ({file} line {len(before) - before.index(f'-- {file}') - 1})"


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or (str(error).splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str]) -> int:
    """`write` or `check`."""
    match list(arguments):
        case [] | ["write"]:
            print(write_migration())  # noqa: T201
        case ["check"]:
            path = project_root() / "supabase" / "migrations" / MIGRATION
            if not path.exists() or path.read_text() != joined_schema():
                print(f"{path.name} differs from supabase/schemas/: run `make migration`", file=sys.stderr)  # noqa: T201
                return 1
        case _:
            print("usage: python -m agent.local.schema [write|check]", file=sys.stderr)  # noqa: T201
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
