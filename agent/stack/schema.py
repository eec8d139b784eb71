"""Applies the schema to a database: platform.sql, then the project's migrations (unchanged, as `postgres`), then the
seed.

`python -m agent.stack.schema [write]` joins supabase/schemas/ into the one migration; `check` reports whether it is
current.
"""

import hashlib
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import psycopg
from psycopg import sql
from psycopg.abc import Query

from agent.failure import Failure
from agent.stack.passwords import OWNER

PLATFORM: Final = Path(__file__).with_name("platform.sql")
MIGRATION: Final = "20261122000000_tradecopier.sql"


def project_root() -> Path:
    """The checkout (the folder that holds `supabase/`)."""
    return Path(__file__).resolve().parents[2]


def schema_files(root: Path | None = None) -> list[Path]:
    """The schema files in the order in which they apply, read from `schema_paths` of supabase/config.toml as the CLI
    does.

    A pattern stands for its files in alphabetical order; files that an earlier pattern matched are not repeated. Raises
    `Failure` for a pattern that matches no file and for a file that matches no pattern.
    """
    folder = (root or project_root()) / "supabase"
    config = folder / "config.toml"
    if not config.exists():
        return []
    patterns: list[str] = tomllib.loads(config.read_text())["db"]["migrations"]["schema_paths"]
    ordered: dict[Path, None] = {}
    for pattern in patterns:
        found = sorted(folder.glob(pattern.removeprefix("./")))
        if not found:
            raise Failure(
                f"supabase/{config.name}: schema_paths contains {pattern}, which matches no file",
                "correct the path",
                code="TC625",
            )
        ordered.update(dict.fromkeys(found))
    for file in sorted((folder / "schemas").rglob("*.sql")):
        if file not in ordered:
            raise Failure(
                f"supabase/{file.relative_to(folder)} is not part of the schema",
                "move it into a folder listed in schema_paths of supabase/config.toml, or add its folder there",
                code="TC625",
            )
    return list(ordered)


def joined_schema(root: Path | None = None) -> str:
    """The text of the one migration: every schema file, each after a line with its name."""
    folder = (root or project_root()) / "supabase" / "schemas"
    parts = [f"-- {file.relative_to(folder)}\n{file.read_text().rstrip()}\n" for file in schema_files(root)]
    return "-- Made by `make migration` from supabase/schemas/. Edit those.\n\n" + "\n".join(parts)


def write_migration(root: Path | None = None) -> Path:
    """Write the migration if it has changed. Returns its path."""
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

    The migration that is generated from supabase/schemas/ is built from those files, so that an edited schema takes
    effect at once; `check` (part of `make check`) verifies that the committed file is the same.
    """
    base = root or project_root()
    found = {file.name: file.read_text() for file in base.glob("supabase/migrations/*.sql")}
    if schema_files(base):
        found[MIGRATION] = joined_schema(base)
    numbered = [(Path(name).stem.partition("_"), text) for name, text in sorted(found.items())]
    return [Migration(version, name, text) for (version, _, name), text in numbered]


def fingerprint(wanted: Sequence[Migration]) -> str:
    """Changes whenever platform.sql or one of the migrations changes."""
    digest = hashlib.sha256(PLATFORM.read_bytes())
    for migration in wanted:
        digest.update(f"\0{migration.version}\0{migration.text}".encode())
    return digest.hexdigest()[:16]


def platform_fingerprint() -> str:
    """Changes whenever platform.sql changes."""
    return hashlib.sha256(PLATFORM.read_bytes()).hexdigest()[:16]


def apply_platform(connection: psycopg.Connection) -> None:
    """Run platform.sql as the superuser (autocommit).

    Repeated after a race with another database over cluster-wide roles.
    """
    for attempt in range(5):
        try:
            connection.execute(_text(PLATFORM.read_text()))
            break
        except psycopg.errors.InternalError_ as error:
            if "concurrently updated" not in str(error) or attempt == 4:
                raise
            time.sleep(0.1 * (attempt + 1))
    owner = connection.execute(
        "select pg_catalog.pg_get_userbyid(datdba) from pg_catalog.pg_database"
        " where datname = pg_catalog.current_database()"
    ).fetchone()
    if owner is not None and owner[0] != OWNER:
        connection.execute(
            sql.SQL("alter database {} owner to postgres").format(sql.Identifier(connection.info.dbname))
        )


def apply_migrations(connection: psycopg.Connection, wanted: Sequence[Migration]) -> list[str]:
    """Apply the migrations that `supabase_migrations.schema_migrations` does not list, each in a transaction.

    Returns the versions that were applied.

    `connection` is autocommit and logged in as `postgres`, as on hosted: migrations run code of that role, which in a
    superuser's session could become superuser (`reset role`).
    """
    connection.execute("set search_path to public, extensions")
    connection.execute(
        "create table if not exists supabase_migrations.schema_migrations "
        "(version text primary key, statements text[], name text, created_by text, idempotency_key text,"
        " rollback text[])"
    )
    known = {
        row[0] for row in connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
    }
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
                f"migration {migration.version}{place}: {_first_line(error)}",
                "fix the SQL, then run it again",
                code="TC625",
            ) from error
        applied.append(migration.version)
    connection.execute("reset search_path")
    return applied


def apply_seed(connection: psycopg.Connection, root: Path | None = None) -> None:
    """Run supabase/seed.sql (reference data; safe to run again). `connection` is a login of `postgres`."""
    file = (root or project_root()) / "supabase" / "seed.sql"
    if not file.exists():
        return
    try:
        with connection.transaction():
            connection.execute(_text(file.read_text()))
    except psycopg.Error as error:
        raise Failure(
            f"seed.sql{_place(file.read_text(), error)}: {_first_line(error)}", "fix the SQL", code="TC625"
        ) from error


def _text(text: str) -> Query:
    # psycopg's LiteralString rule guards against injected input; these are files of this project. Bytes skip
    # parameters.
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
    try:
        return _run(arguments)
    except Failure as failure:
        print(failure, file=sys.stderr)  # noqa: T201
        return 1


def _run(arguments: Sequence[str]) -> int:
    match list(arguments):
        case [] | ["write"]:
            print(write_migration())  # noqa: T201
        case ["check"]:
            path = project_root() / "supabase" / "migrations" / MIGRATION
            if not path.exists() or path.read_text() != joined_schema():
                print(f"{path.name} differs from supabase/schemas/: run `make migration`", file=sys.stderr)  # noqa: T201
                return 1
        case _:
            print("usage: python -m agent.stack.schema [write|check]", file=sys.stderr)  # noqa: T201
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
