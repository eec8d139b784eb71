"""The journal's file: its layout, how it is opened, and what happens to one that is damaged or may lack its end.

What a process wrote outlives its kill in the system's cache, but a power cut takes what was not flushed. Flushing before
every order would cost milliseconds of each copy (4 ms at the median on a cloud disk). So the journal notes which boot of
the machine it was written in: if the machine has been started anew since, without a clean close, its end may be missing,
and it forgets the sessions that it knew. Then what was queued before is looked for, not sent (DESIGN §4.5). Where the boot
cannot be told, every order waits for the flush.
"""

import logging
import os
import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

LAYOUT = 2
SCHEMA = """
create table meta (name text primary key, value text not null) without rowid;
create table sessions (
  account_id text not null, session integer not null, opened_at text not null, vouches_from text not null,
  primary key (account_id, session)) without rowid;
create table accounts (account_id text primary key, seen_at text not null, tickets text not null) without rowid;
create table executions (
  execution_id integer not null, attempt integer not null, account_id text not null, step_id text not null,
  body text not null, report text, begun_at text not null,
  state text not null check (state in ('begun', 'answered', 'reported')),
  primary key (execution_id, attempt)) without rowid;
create index executions_by_step on executions (account_id, step_id);
create index executions_unfinished on executions (state) where state <> 'reported';
create table events (
  account_id text not null, session integer not null, seq integer not null, body text not null, at text not null,
  primary key (account_id, session, seq)) without rowid;
"""


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: a machine cannot lose its power and run an agent again within this many seconds
SAME_BOOT_S = 10.0


class JournalError(Exception):
    """The journal could not be written. Nothing that depends on the row may be sent."""


class JournalBusy(JournalError):
    """Another process owns this journal: a second agent must not run beside it."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open or create; blocks. Raises `JournalBusy` or `JournalError`; a damaged file is set aside."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except JournalBusy:
            raise
        except (sqlite3.DatabaseError, _Damaged) as error:
            _set_aside(path, error)
            return _connect(path)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"the journal {path} cannot be opened: {error}; check the folder's owner and free space") from error


class _Damaged(Exception):
    """The file is readable, but it is not a journal of this layout."""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
    try:
        # Exclusive: one agent per journal, and no shared-memory file that could outlive a kill.
        connection.execute("pragma locking_mode = exclusive")
        connection.execute("pragma journal_mode = wal")
        connection.execute("begin immediate")
        connection.execute("commit")
        verdict = connection.execute("pragma quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _Damaged(verdict)
        _lay_out(connection)
        _begin_run(connection, boot_mark())
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise JournalBusy(f"the journal {path} is in use: another agent runs with it; stop that one first") from error
        raise
    except BaseException:
        connection.close()
        raise
    os.chmod(path, 0o600)
    return connection


def _lay_out(connection: sqlite3.Connection) -> None:
    layout = connection.execute("pragma user_version").fetchone()[0]
    tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
    if tables == 0:
        connection.executescript(
            f"begin immediate; {SCHEMA} insert into meta values ('identity', '{uuid.uuid4()}'); "
            f"pragma user_version = {LAYOUT}; commit;"
        )
    elif layout != LAYOUT:
        raise _Damaged(f"its layout is {layout}, this agent writes {LAYOUT}")
    elif connection.execute("select value from meta where name = 'identity'").fetchone() is None:
        raise _Damaged("it has no identity")


def boot_mark() -> str | None:
    """Which boot of the machine this is; None if that cannot be told."""
    try:
        return BOOT_ID.read_text().strip() or None
    except OSError:
        pass
    try:
        return f"at {psutil.boot_time():.0f}"
    except (OSError, RuntimeError, psutil.Error):
        return None


def same_boot(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return False
    if one.startswith("at ") and other.startswith("at "):
        return abs(float(one[3:]) - float(other[3:])) < SAME_BOOT_S
    return one == other


def _begin_run(connection: sqlite3.Connection, boot: str | None) -> None:
    """Was everything that the last run wrote kept? If not, no session is known any more."""
    notes = dict(connection.execute("select name, value from meta").fetchall())
    kept = notes.get("closed") == "clean" or "boot" not in notes or same_boot(notes["boot"] or None, boot)
    connection.execute("pragma synchronous = full")
    connection.execute("begin immediate")
    if not kept:
        connection.execute("delete from sessions where true")
        log.warning("journal_may_lack_its_end", extra={"effect": "what was queued before is looked for, not sent"})
    note = "insert into meta values (?, ?) on conflict (name) do update set value = excluded.value"
    connection.executemany(note, [("boot", boot or ""), ("closed", "no")])
    connection.execute("commit")


def close_file(connection: sqlite3.Connection) -> None:
    """Flush everything and note that nothing is missing."""
    try:
        connection.execute("pragma synchronous = full")
        connection.execute("update meta set value = 'clean' where name = 'closed'")
        connection.execute("pragma wal_checkpoint(truncate)")
    except sqlite3.Error as error:
        log.warning("journal_not_closed_cleanly", extra={"error": str(error)})
    connection.close()


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    log.critical(
        "journal_damaged",
        extra={"path": str(path), "set_aside": str(aside), "error": str(error), "effect": "what was queued before is looked for"},
    )
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
