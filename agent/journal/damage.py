"""Repairs a journal with unreadable rows: they are moved to the table `damaged` and logged.

The content of such a row counts as unknown. If it was about orders or sessions, the journal no longer vouches for any
session, as after a power cut: executions queued before are looked up at the broker and not sent again (law 4.5).
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from agent.journal.rows import (
    Field,
    Row,
    UnreadableRow,
    event_of,
    execution_of,
    moment_of,
    report_of,
    seen_of,
    session_of,
    text_of,
)

log = logging.getLogger(__name__)

TABLE: Final = (
    "create table if not exists damaged (at text not null, source text not null, reason text not"
    " null, content text not null)"
)
#: most rows logged one by one; further ones are only counted
LOGGED_ROWS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one table that are checked. `columns` begin with the `key`; `check` raises `UnreadableRow`."""

    source: str
    key: Sequence[str]
    columns: Sequence[str]
    where: str
    check: Callable[[Row], object]
    #: whether a lost row may mean that an order was sent unknown to the journal
    vouches: bool


def _check_execution(row: Row) -> None:
    number, attempt, account, step, body, begun_at, state = row
    execution = execution_of(body, number, attempt)
    if (execution.account_id, execution.step_id) != (text_of(account), text_of(step)):
        raise UnreadableRow("the row of an execution has another account or step than its body")
    moment_of(begun_at)
    if text_of(state) not in ("begun", "answered"):
        raise UnreadableRow(f"{text_of(state)!r} is not a state of an execution")


def _check_event(row: Row) -> None:
    account, session, seq, body, at = row
    event_of(body, account, session, seq)
    moment_of(at)


def _check_session(row: Row) -> None:
    account, session, opened_at, vouches_from = row
    session_of(account, session, vouches_from)
    moment_of(opened_at)


#: rows of reported executions are checked only when they are read (`Journal.begin`, `Journal.step`)
PARTS: Final = (
    _Part(
        source="executions", key=("execution_id", "attempt"), check=_check_execution, vouches=True,
        columns=("execution_id", "attempt", "account_id", "step_id", "body", "begun_at", "state"),
        where="state is not 'reported'",
    ),
    _Part(
        source="events", key=("account_id", "session", "seq"), check=_check_event, vouches=False,
        columns=("account_id", "session", "seq", "body", "at"), where="true",
    ),
    _Part(
        source="sessions", key=("account_id", "session"), check=_check_session, vouches=True,
        columns=("account_id", "session", "opened_at", "vouches_from"), where="true",
    ),
    _Part(
        source="accounts", key=("account_id",), check=lambda row: seen_of(*row), vouches=False,
        columns=("account_id", "seen_at", "tickets"), where="true",
    ),
)  # fmt: skip


def set_aside(connection: sqlite3.Connection, source: str, reason: str, content: Row) -> None:
    """Copy a damaged row to the table `damaged`, for inspection."""
    shown = json.dumps(
        [field.decode(errors="backslashreplace") if isinstance(field, bytes) else field for field in content]
    )
    connection.execute(
        "insert into damaged values (?, ?, ?, ?)", (datetime.now(UTC).isoformat(), source, reason, shown)
    )


def repair(connection: sqlite3.Connection) -> int:
    """Move unreadable rows to `damaged`; returns how many. Raises `sqlite3.Error` when the file itself is damaged."""
    connection.execute(TABLE)
    connection.execute("begin immediate")
    found = {part.source: _repair_table(connection, part) for part in PARTS}
    found["reports"] = _repair_reports(connection)
    forgets = found["reports"] > 0 or any(found[part.source] and part.vouches for part in PARTS)
    if forgets:
        connection.execute("delete from sessions where true")
    connection.execute("commit")
    if total := sum(found.values()):
        effect = "executions queued before are looked up, not sent" if forgets else "the accounts are read again"
        log.critical(
            "journal_rows_damaged",
            extra={"rows": {name: count for name, count in found.items() if count}, "effect": effect},
        )
    return total


def _repair_table(connection: sqlite3.Connection, part: _Part) -> int:
    broken = 0
    for row in _rows(connection, part.source, part.columns, part.where):
        try:
            part.check(row)
        except UnreadableRow as error:
            broken += 1
            _log_row(broken, part.source, error)
            set_aside(connection, part.source, str(error), row)
            where, values = _same_row(part.key, row)
            connection.execute(f"delete from {part.source} where {where}", values)
    return broken


def _repair_reports(connection: sqlite3.Connection) -> int:
    """An execution whose report cannot be read has no outcome: its order may have been sent and is looked up."""
    broken = 0
    for row in _rows(connection, "executions", ("execution_id", "attempt", "report"), "state = 'answered'"):
        number, attempt, report = row
        try:
            report_of(report, number, attempt)
        except UnreadableRow as error:
            broken += 1
            _log_row(broken, "reports", error)
            set_aside(connection, "reports", str(error), row)
            where, values = _same_row(("execution_id", "attempt"), row)
            connection.execute(f"update executions set state = 'begun', report = null where {where}", values)
    return broken


def _rows(connection: sqlite3.Connection, source: str, columns: Sequence[str], where: str) -> list[Row]:
    """All rows at once, because the caller changes the table meanwhile; text as bytes."""
    plain = ", ".join(f"case typeof({name}) when 'text' then cast({name} as blob) else {name} end" for name in columns)
    return connection.execute(f"select {plain} from {source} where {where}").fetchall()


def _same_row(key: Sequence[str], row: Row) -> tuple[str, list[Field]]:
    """A condition, with its values, that finds the row by its key (the first fields; text as bytes)."""
    where = " and ".join(f"({name} is ? or {name} is cast(? as text))" for name in key)
    return where, [field for field in row[: len(key)] for _ in range(2)]


def _log_row(number: int, source: str, error: UnreadableRow) -> None:
    if number <= LOGGED_ROWS_MAX:
        log.error("journal_row_unreadable", extra={"source": source, "error": str(error)})
