"""The journal's file: its layout, how it is opened, and what happens to one that is damaged or may lack its end.

Written rows survive the kill of the process in the system's cache, but a power cut loses what was not flushed. A flush
before every order would cost each copy milliseconds (4 ms at the median on a cloud disk). Instead the journal records
the boot of the machine in which it is written. If the machine was restarted since without a clean close, the journal's
end may be missing, and it forgets its sessions: executions queued before are then looked up, not sent (law 4.5). On a
system that does not identify its boots, every order waits for the flush.

A journal also forgets its sessions if it lacks the order that was begun last (`agent/journal/mark.py`), or if it has
unreadable rows about orders or sessions (`agent/journal/damage.py`).
"""

import logging
import os
import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psutil

from agent.journal.damage import repair
from agent.journal.mark import LastBegun
from agent.journal.refused import TABLE as REFUSED_TABLE

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


#: SQLite's error codes for a file that is damaged or has another layout. Other errors (a full disk, missing rights) are
#: not about the file, which is then kept
DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_MISMATCH,
    }
)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: seconds within which a machine cannot lose power and run an agent again
SAME_BOOT_S = 10.0


class JournalError(Exception):
    """The journal could not be written. No order that depends on the row may be sent."""


class JournalBusy(JournalError):
    """Another process has this journal open: a second agent must not run beside it."""


def open_file(path: Path) -> tuple[sqlite3.Connection, LastBegun]:
    """Open or create the journal; blocks. A damaged file is renamed and replaced. Raises `JournalBusy` or
    `JournalError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except (sqlite3.Error, _Damaged) as error:
            if not is_damage(error):
                raise
            _set_aside(path, error)
            return _connect(path)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(
            f"the journal {path} cannot be opened: {error}; check the folder's owner and free space"
        ) from error


class _Damaged(Exception):
    """The file is readable but is not a journal with this layout."""


def is_damage(error: Exception) -> bool:
    """Whether the file itself is damaged and must be replaced."""
    if isinstance(error, sqlite3.Error):
        # an error without a code comes from Python: text that is not UTF-8
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGE
    return isinstance(error, _Damaged)


def _connect(path: Path) -> tuple[sqlite3.Connection, LastBegun]:
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
        last = LastBegun(path)
        try:
            _begin_run(connection, boot_mark(), last)
            repair(connection)
            connection.execute(REFUSED_TABLE)
        except BaseException:
            last.close()
            raise
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise JournalBusy(f"the journal {path} is in use by another agent; stop that agent first") from error
        raise
    except BaseException:
        connection.close()
        raise
    os.chmod(path, 0o600)
    return connection, last


def _lay_out(connection: sqlite3.Connection) -> None:
    layout = connection.execute("pragma user_version").fetchone()[0]
    tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
    if tables == 0:
        connection.executescript(
            f"begin immediate; {SCHEMA} insert into meta values ('identity', '{uuid.uuid4()}'); "
            f"pragma user_version = {LAYOUT}; commit;"
        )
    elif layout != LAYOUT:
        raise _Damaged(f"its layout has version {layout}, this agent uses version {LAYOUT}")
    elif connection.execute("select value from meta where name = 'identity'").fetchone() is None:
        raise _Damaged("it has no identity")


def boot_mark() -> str | None:
    """Identifies the current boot of the machine; None if the system cannot tell."""
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
        try:
            return abs(float(one[3:]) - float(other[3:])) < SAME_BOOT_S
        except ValueError:
            return False
    return one == other


def _begin_run(connection: sqlite3.Connection, boot: str | None, last: LastBegun) -> None:
    """Begin a run. If the last run's writes may be incomplete, forget all sessions."""
    notes = dict(connection.execute("select name, value from meta").fetchall())
    kept = notes.get("closed") == "clean" or "boot" not in notes or same_boot(notes["boot"] or None, boot)
    knows = "select 1 from executions where execution_id = ? and attempt = ?"
    kept = kept and (last.order is None or connection.execute(knows, last.order).fetchone() is not None)
    connection.execute("pragma synchronous = full")
    connection.execute("begin immediate")
    if not kept:
        connection.execute("delete from sessions where true")
        log.warning("journal_may_lack_its_end", extra={"effect": "executions queued before are looked up, not sent"})
    note = "insert into meta values (?, ?) on conflict (name) do update set value = excluded.value"
    connection.executemany(note, [("boot", boot or ""), ("closed", "no")])
    connection.execute("commit")
    if not kept:
        last.clear()


def close_file(connection: sqlite3.Connection) -> None:
    """Flush everything and record a clean close."""
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
        extra={
            "path": str(path),
            "set_aside": str(aside),
            "error": str(error),
            "effect": "executions queued before are looked up",
        },
    )
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
