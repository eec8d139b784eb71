"""Databases of the embedded server: one per stack, one per test, cloned from a template that is prepared once."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

from agent.local.postgres import SUPERUSER, PostgresServer, set_passwords
from agent.local.schema import fingerprint, migrations, prepare_database


@dataclass(frozen=True, slots=True)
class Database:
    """One database of `server`. `dsn` is the superuser's; every address holds the password, so none may be logged."""

    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        """Address for supabase_admin, the superuser."""
        return self.server.dsn(self.name)

    def dsn_of(self, role: str) -> str:
        """Address for `postgres`, `authenticator` or `supabase_auth_admin`."""
        return self.server.dsn(self.name, role)

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection:
        """An autocommit connection; the caller closes it (`with`)."""
        return psycopg.connect(self.server.dsn(self.name, role), autocommit=True)

    async def connect_async(self, role: str = SUPERUSER) -> psycopg.AsyncConnection:
        """An autocommit asyncio connection; the caller closes it (`async with`)."""
        return await psycopg.AsyncConnection.connect(self.server.dsn(self.name, role), autocommit=True)

    def drop(self) -> None:
        """Drop the database, ending every connection to it. It may be gone already."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self.name)))

    @classmethod
    def create(cls, server: PostgresServer, name: str, template: Self | None = None) -> Self:
        """A new database, empty or a copy of `template` (to which nobody may be connected)."""
        statement = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template.name if template else "template0")
        )
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            for attempt in range(20):
                try:
                    admin.execute(statement)
                    break
                except psycopg.errors.ObjectInUse:
                    if attempt == 19:
                        raise
                    time.sleep(0.1)  # autovacuum looks into a template now and then
            if template is not None:
                # A copy does not inherit these; platform.sql gave them to the template.
                admin.execute(sql.SQL("alter database {} owner to postgres").format(sql.Identifier(name)))
                admin.execute(sql.SQL("grant create on database {} to supabase_auth_admin").format(sql.Identifier(name)))
        database = cls(server, name)
        if template is not None:
            with database.connect() as connection:  # the jobs of the copy are the copy's
                connection.execute("update cron.job set database = current_database() where database = %s", (template.name,))
        return database

    @classmethod
    def prepared(cls, server: PostgresServer, name: str, root: Path | None = None) -> Self:
        """The database `name` with the project's schema as it is now.

        Migrations that are new are applied. If one that was applied has changed since (before the first release the one
        migration does), the old database is kept as `<name>_previous` and a fresh one is made.
        """
        wanted = fingerprint(migrations(root))
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            exists = admin.execute("select from pg_database where datname = %s", (name,)).fetchone() is not None
            if exists and _is_outdated(server, name, root):
                previous = sql.Identifier(f"{name}_previous")
                admin.execute(sql.SQL("drop database if exists {} with (force)").format(previous))
                admin.execute(sql.SQL("alter database {} rename to {}").format(sql.Identifier(name), previous))
                exists = False
        database = cls(server, name) if exists else cls.create(server, name)
        with database.connect() as connection:
            if _comment(connection) != wanted:
                prepare_database(connection, root)
                set_passwords(connection, server.password)
                connection.execute(
                    sql.SQL("comment on database {} is {}").format(sql.Identifier(name), sql.Literal(f"schema {wanted}"))
                )
        return database


def _comment(connection: psycopg.Connection) -> str | None:
    row = connection.execute(
        "select shobj_description(oid, 'pg_database') from pg_database where datname = current_database()"
    ).fetchone()
    return None if row is None or row[0] is None else str(row[0]).removeprefix("schema ")


def _is_outdated(server: PostgresServer, name: str, root: Path | None) -> bool:
    with psycopg.connect(server.dsn(name), autocommit=True) as connection:
        if connection.execute("select to_regclass('supabase_migrations.schema_migrations')").fetchone() == (None,):
            return _comment(connection) is not None
        rows = connection.execute("select version, statements[1] from supabase_migrations.schema_migrations").fetchall()
    applied: dict[str, str] = dict(rows)
    return any(version in applied and applied[version] != text for version, text in _texts(root)) or bool(
        set(applied) - {version for version, _ in _texts(root)}
    )


def _texts(root: Path | None) -> list[tuple[str, str]]:
    return [(migration.version, migration.text) for migration in migrations(root)]
