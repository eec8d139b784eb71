"""Databases of the embedded server: one per stack or test, cloned from a template that is prepared once."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

from agent.stack.passwords import OWNER, SUPERUSER
from agent.stack.postgres import PostgresServer
from agent.stack.schema import (
    apply_migrations,
    apply_platform,
    apply_seed,
    fingerprint,
    migrations,
    platform_fingerprint,
)


@dataclass(frozen=True, slots=True)
class Database:
    """One database of `server`. Every address contains the password of its role and must never be logged."""

    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        """Connection address of supabase_admin, the superuser."""
        return self.server.dsn(self.name)

    def dsn_of(self, role: str) -> str:
        """Connection address of one of LOGIN_ROLES (agent/stack/passwords.py)."""
        return self.server.dsn(self.name, role)

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection:
        """An autocommit connection; the caller closes it (`with`)."""
        return psycopg.connect(self.server.dsn(self.name, role), autocommit=True)

    async def connect_async(self, role: str = SUPERUSER) -> psycopg.AsyncConnection:
        """An autocommit asyncio connection; the caller closes it (`async with`)."""
        return await psycopg.AsyncConnection.connect(self.server.dsn(self.name, role), autocommit=True)

    def drop(self) -> None:
        """Drop the database and end every connection to it. Does nothing if it does not exist."""
        with self.server.connect_superuser() as admin:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self.name)))

    @classmethod
    def create(cls, server: PostgresServer, name: str, template: Self | None = None) -> Self:
        """Create a database, empty or as a copy of `template` (to which nobody may be connected)."""
        statement = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template.name if template else "template0")
        )
        with server.connect_superuser() as admin:
            for attempt in range(20):
                try:
                    admin.execute(statement)
                    break
                except psycopg.errors.ObjectInUse:
                    if attempt == 19:
                        raise
                    # autovacuum occasionally connects to the template
                    time.sleep(0.1)
            if template is not None:
                # A copied database does not inherit these settings, which platform.sql gave to the template.
                admin.execute(sql.SQL("alter database {} owner to postgres").format(sql.Identifier(name)))
                admin.execute(
                    sql.SQL("grant create on database {} to supabase_auth_admin").format(sql.Identifier(name))
                )
        database = cls(server, name)
        if template is not None:
            # the copied cron jobs must run in the copy
            with server.connect_superuser(name) as connection:
                connection.execute("update cron.job set database = %s where database = %s", (name, template.name))
                generation = connection.execute("select to_regclass('private.database_generation')").fetchone()
            if generation != (None,):
                database._begin_as_itself()
        return database

    @classmethod
    def prepared(cls, server: PostgresServer, name: str, root: Path | None = None) -> Self:
        """The database `name` with the project's schema as it is now.

        Applies new migrations. If an applied migration has changed since (before the first release the only migration
        does), the old database is renamed to `<name>_previous` and a new one is created.
        """
        with server.connect_superuser() as admin:
            exists = (
                admin.execute("select from pg_catalog.pg_database where datname = %s", (name,)).fetchone() is not None
            )
            database = cls(server, name) if exists else cls.create(server, name)
            database._bring_platform()
            if exists and database._is_outdated(root):
                previous = sql.Identifier(f"{name}_previous")
                admin.execute(sql.SQL("drop database if exists {} with (force)").format(previous))
                admin.execute(sql.SQL("alter database {} rename to {}").format(sql.Identifier(name), previous))
                cls.create(server, name)._bring_platform()
        database._bring_schema(root)
        return database

    def _begin_as_itself(self) -> None:
        """Record the copy as a new database; otherwise it would look like a restored backup of its template."""
        with self.connect(OWNER) as connection:
            connection.execute(
                "update private.database_generation set database_oid = private.this_database(),"
                " postmaster_started_at = pg_postmaster_start_time() where one"
            )

    def _bring_platform(self) -> None:
        """Apply platform.sql unless it has been applied.

        The mark that says so is the superuser's: nobody else can reset it.
        """
        wanted = f"platform {platform_fingerprint()}"
        with self.server.connect_superuser(self.name) as connection:
            known = connection.execute(
                "select pg_catalog.obj_description(oid, 'pg_namespace') from pg_catalog.pg_namespace"
                " where nspname = 'vault'"
            ).fetchone()
            if known is not None and known[0] == wanted:
                return
            apply_platform(connection)
            self.server.passwords.give_to(connection)
            connection.execute(sql.SQL("comment on schema vault is {}").format(sql.Literal(wanted)))

    def _bring_schema(self, root: Path | None) -> None:
        """Apply migrations and seed as postgres, unless the database already has them."""
        wanted = f"schema {fingerprint(migrations(root))}"
        with self.connect(OWNER) as connection:
            if _comment(connection) == wanted:
                return
            apply_migrations(connection, migrations(root))
            apply_seed(connection, root)
            connection.execute(
                sql.SQL("comment on database {} is {}").format(sql.Identifier(self.name), sql.Literal(wanted))
            )

    def _is_outdated(self, root: Path | None) -> bool:
        """Whether an applied migration has changed or was removed. Queried as postgres, which owns the table."""
        with self.connect(OWNER) as connection:
            if connection.execute("select to_regclass('supabase_migrations.schema_migrations')").fetchone() == (None,):
                return _comment(connection) is not None
            rows = connection.execute(
                "select version, statements[1] from supabase_migrations.schema_migrations"
            ).fetchall()
        applied: dict[str, str] = dict(rows)
        wanted = {migration.version: migration.text for migration in migrations(root)}
        return any(version not in wanted or wanted[version] != text for version, text in applied.items())


def _comment(connection: psycopg.Connection) -> str | None:
    row = connection.execute(
        "select pg_catalog.shobj_description(oid, 'pg_database') from pg_catalog.pg_database"
        " where datname = current_database()"
    ).fetchone()
    return None if row is None or row[0] is None else str(row[0])
