"""A random password for each database role that logs in, in a file next to the cluster that only the owner can read."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psycopg
from psycopg import sql

from agent import private_file

SUPERUSER: Final = "supabase_admin"
# The gateway and the servers behind it hold only the passwords of these roles. None of them is a superuser.
OWNER: Final = "postgres"
REST: Final = "authenticator"
AUTH: Final = "supabase_auth_admin"
REALTIME: Final = "supabase_realtime_server"
LOGIN_ROLES: Final = (SUPERUSER, OWNER, REST, AUTH, REALTIME)

FILE: Final = "postgres.passwords"
# Older versions had one password for all roles, and a client could read it.
SHARED_FILE: Final = "postgres.password"


@dataclass(frozen=True, slots=True, repr=False)
class Passwords:
    """Passwords by role. `shared`: the single password of an old cluster whose roles do not have their own yet."""

    by_role: Mapping[str, str]
    shared: str | None = None

    def of(self, role: str) -> str:
        """The role's password. Raises KeyError for a role that cannot log in here."""
        return self.by_role[role]

    @classmethod
    def generate(cls) -> Self:
        """Generate a password of 192 random bits for each role."""
        return cls({role: secrets.token_hex(24) for role in LOGIN_ROLES})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The passwords in `folder`, or None when there are none. Roles that an older version lacked are added."""
        file, shared = folder / FILE, folder / SHARED_FILE
        private_file.tighten(file)
        private_file.tighten(shared)
        known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        if not known and not shared.exists():
            return None
        new = {role: password for role, password in cls.generate().by_role.items() if role not in known}
        passwords = cls(known | new, shared.read_text().strip() if shared.exists() else None)
        if new:
            passwords.save(folder)
        return passwords

    def save(self, folder: Path) -> None:
        """Replace the file atomically: a half-written file would lock everybody out."""
        file = folder / FILE
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        write_secret(partial, json.dumps(dict(self.by_role), indent=1))
        partial.replace(file)

    def give_to(self, connection: psycopg.Connection) -> None:
        """Set the passwords of the roles that exist already. `connection` is the superuser's."""
        found = connection.execute(
            "select rolname from pg_catalog.pg_roles where rolname = any(%s)", (list(self.by_role),)
        )
        for (role,) in found.fetchall():
            statement = sql.SQL("alter role {} password {}").format(
                sql.Identifier(role), sql.Literal(self.by_role[role])
            )
            connection.execute(statement)

    def settled(self, folder: Path) -> Self:
        """Forget the shared password, once the superuser has logged in with its own."""
        if self.shared is None:
            return self
        (folder / SHARED_FILE).unlink(missing_ok=True)
        return type(self)(self.by_role)


def write_secret(path: Path, text: str) -> None:
    """Write a file that only the owner can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
