"""`Journal`: the agent's record on disk: executions begun, their outcomes, and what the database has not accepted yet.

SQLite in WAL mode, owned by one process; `agent/journal/writer.py` describes how it is written. The row of an execution
is committed before its order is sent and survives any kill of the process; for power cuts see `agent/journal/file.py`.

Without a journal file, a new one with a new identity is made: executions queued before are then looked up at the
broker. A damaged file is renamed, logged, and counts as missing; for single unreadable rows see
`agent/journal/damage.py`.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast

from agent.journal.damage import set_aside
from agent.journal.file import JournalBusy, JournalError, boot_mark, open_file
from agent.journal.mark import LastBegun
from agent.journal.number import order_under
from agent.journal.refused import Kind, keep
from agent.journal.rows import (
    EVENT,
    EXECUTION,
    REPORT,
    Field,
    LastSeen,
    UnreadableRow,
    execution_number,
    execution_of,
    report_of,
    seen_of,
    session_of,
    text_of,
    write,
)
from agent.journal.writer import JournalWriter
from agent.model import AccountId, Event, Execution, ExecutionId, Report, Ticket

__all__ = ["Attempt", "Entry", "Journal", "JournalBusy", "JournalError", "LastSeen"]

log = logging.getLogger(__name__)

State = Literal["begun", "answered", "reported"]
EventKey = tuple[AccountId, int, int]

KEEP = timedelta(days=7)
#: seconds until a note is written, so that it does not occupy the thread just before an order needs its row written
NOTE_DELAY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the journal knows of one attempt. `report` is set once the state is `answered` or `reported`."""

    execution: Execution
    state: State
    report: Report | None
    #: the journal has another order under the requested number: a restored database has given the number out twice
    is_other: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step. Without a report its outcome is not known."""

    execution_id: ExecutionId
    report: Report | None


class Journal:
    """Opened inside a running event loop with `await Journal.open(path)`, closed with `await close()`."""

    def __init__(
        self, connection: sqlite3.Connection, last: LastBegun, path: Path, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.path = path
        self._last = last
        #: a power cut cannot be detected on this system: every order waits for the flush
        self._flush_orders = boot_mark() is None
        self.identity: str = connection.execute("select value from meta where name = 'identity'").fetchone()[0]
        self._sessions = dict(
            session_of(*row) for row in connection.execute("select account_id, session, vouches_from from sessions")
        )
        self._seen = dict(
            seen_of(*row) for row in connection.execute("select account_id, seen_at, tickets from accounts")
        )
        highest = connection.execute("select max(execution_id) from executions").fetchone()[0]
        #: the highest execution number in the journal
        self.highest_begun = execution_number(highest)
        self.notes = _notes(connection)
        self._loop = loop
        self._noting: asyncio.TimerHandle | None = None
        self._writer = JournalWriter(connection, path, loop)

    @classmethod
    async def open(cls, path: Path) -> "Journal":
        """Open or create. Raises `JournalBusy` when another agent has it open, `JournalError` when it cannot be
        written."""
        loop = asyncio.get_running_loop()
        connection, last = await asyncio.to_thread(open_file, path)
        return cls(connection, last, path, loop)

    @property
    def healthy(self) -> bool:
        """False once a write has failed; an agent in this state does not trade."""
        return self._writer.healthy

    @property
    def refused_writes(self) -> int:
        """How many writes failed since the journal was opened."""
        return self._writer.refused

    async def probe(self, size: int) -> None:
        """Write `size` filler bytes, as a test. Raises `JournalError` when that fails."""
        note = "insert into meta values ('probe', ?) on conflict (name) do update set value = excluded.value"
        filler = f"{time.monotonic_ns():020}".ljust(size, ".")
        await self._writer.execute(lambda connection: connection.execute(note, (filler,)).rowcount)
        try:
            self._last.write_again()
        except OSError as error:
            raise _mark_not_written(error) from error

    # -- executions -----------------------------------------------------------------------------------------

    async def begin(self, execution: Execution) -> Entry | None:
        """Commit an attempt before its order is sent. None: it is new and may be sent. Otherwise the entry of this
        attempt, or of another order under its number (`is_other`; then nothing is written). Raises `JournalError`."""
        body = write(EXECUTION, execution)

        def work(connection: sqlite3.Connection) -> Entry | None:
            if (other := order_under(connection, execution)) is not None:
                return Entry(execution=other, state="begun", report=None, is_other=True)
            added = connection.execute(
                "insert into executions values (?, ?, ?, ?, ?, null, ?, 'begun') on conflict do nothing",
                (execution.id, execution.attempt, execution.account_id, execution.step_id, body, _now()),
            )
            return None if added.rowcount == 1 else _known(connection, execution, body)

        known = await (
            self._writer.execute(work, durable=True) if self._flush_orders else self._writer.execute_now(work)
        )
        if known is None:
            try:
                self._last.note(execution.id, execution.attempt)
            except OSError as error:
                self._writer.refused += 1
                raise _mark_not_written(error) from error
        return known

    def answered(self, execution: Execution, report: Report) -> None:
        """Store a report with a known outcome (not `unknown`), until the database has accepted it."""
        body, outcome = write(EXECUTION, execution), write(REPORT, report)
        self._writer.enqueue(
            lambda connection: connection.execute(
                "insert into executions values (?, ?, ?, ?, ?, ?, ?, 'answered') on conflict (execution_id, attempt) "
                "do update set state = 'answered', report = excluded.report",
                (execution.id, execution.attempt, execution.account_id, execution.step_id, body, outcome, _now()),
            )
        )

    def reported(self, reports: Iterable[Report]) -> None:
        """The database has accepted these reports, or refused them for good."""
        rows = [(report.execution_id, report.attempt) for report in reports if report.outcome != "unknown"]
        self._writer.enqueue(
            lambda connection: connection.executemany(
                "update executions set state = 'reported' where execution_id = ? and attempt = ? and state ="
                " 'answered'",
                rows,
            )
        )

    async def unresolved(self, account_id: AccountId) -> list[Execution]:
        """Executions that may have been sent and have no outcome, in the order of their numbers."""
        rows = await self._rows(
            "select body from executions where state = 'begun' and account_id = ? order by execution_id", account_id
        )
        return [EXECUTION.validate_json(text_of(body)) for (body,) in rows]

    async def undelivered_reports(self) -> list[Report]:
        rows = await self._rows("select report from executions where state = 'answered' order by execution_id, attempt")
        return [REPORT.validate_json(text_of(body)) for (body,) in rows]

    async def step(self, account_id: AccountId, step_id: str) -> list[Attempt]:
        """Every attempt of a step."""
        sql = (
            "select execution_id, attempt, cast(report as blob) from executions where account_id = ? and step_id = ? "
            "order by execution_id, attempt"
        )
        return [_attempt(*row) for row in await self._rows(sql, account_id, step_id)]

    # -- events ---------------------------------------------------------------------------------------------

    def put_events(self, events: Iterable[Event]) -> None:
        rows = [(event.account_id, event.session, event.seq, write(EVENT, event), _now()) for event in events]
        self._writer.enqueue(
            lambda connection: connection.executemany(
                "insert into events values (?, ?, ?, ?, ?) on conflict do nothing", rows
            )
        )

    def drop_events(self, keys: Iterable[EventKey]) -> None:
        """Remove events that were accepted, refused for good, or replaced by a later one."""
        rows = list(keys)
        self._writer.enqueue(
            lambda connection: connection.executemany(
                "delete from events where account_id = ? and session = ? and seq = ?", rows
            )
        )

    def keep_refused(self, item: Event | Report, reason: str) -> None:
        """Keep what the database refused for good, for a person to read (table `refused`)."""
        account = item.account_id
        kind: Kind = "event" if isinstance(item, Event) else "report"
        body = write(EVENT, item) if isinstance(item, Event) else write(REPORT, item)
        self._writer.enqueue(lambda connection: keep(connection, account, kind, reason, body))

    async def undelivered_events(self, account_id: AccountId, before_session: int) -> list[Event]:
        """Events of earlier sessions that were never accepted, at most 7 days old: the database recognises duplicates
        for that long."""
        rows = await self._rows(
            "select body from events where account_id = ? and session < ? and at > ? order by session, seq",
            account_id,
            before_session,
            _stamp(datetime.now(UTC) - KEEP),
        )
        return [EVENT.validate_json(text_of(body)) for (body,) in rows]

    # -- sessions and accounts ------------------------------------------------------------------------------

    def knows_session(self, account_id: AccountId, session: int) -> bool:
        return (account_id, session) in self._sessions

    def vouches_from(self, account_id: AccountId) -> datetime | None:
        """The time (on the database's clock) since which the journal contains every order sent for this account: the
        opening of the first of its uninterrupted sessions. None: it knows no session."""
        known = [(session, moment) for (account, session), moment in self._sessions.items() if account == account_id]
        return max(known)[1] if known else None

    async def remember_session(self, account_id: AccountId, session: int, vouches_from: datetime) -> None:
        """Write a session to the disk before it trades, so that a later session can continue it."""
        row = (account_id, session, _now(), _stamp(vouches_from))
        await self._writer.execute(
            lambda connection: (
                connection.execute("insert into sessions values (?, ?, ?, ?) on conflict do nothing", row).rowcount
            ),
            durable=True,
        )
        self._sessions[(account_id, session)] = vouches_from

    def last_seen(self, account_id: AccountId) -> LastSeen | None:
        return self._seen.get(account_id)

    def saw(self, account_id: AccountId, at: datetime, tickets: Iterable[Ticket]) -> None:
        """Record when the account was last seen and which tickets it held then."""
        seen = LastSeen(at, frozenset(tickets))
        self._seen[account_id] = seen
        row = (account_id, _stamp(at), "\n".join(sorted(seen.tickets)))
        self._writer.enqueue(
            lambda connection: connection.execute(
                "insert into accounts values (?, ?, ?) on conflict (account_id) "
                "do update set seen_at = excluded.seen_at, tickets = excluded.tickets",
                row,
            )
        )

    # -- notes ----------------------------------------------------------------------------------------------

    def note(self, name: str, value: str) -> None:
        """Store a value under a name of at least two words. Notes within `NOTE_DELAY` are one write; closing writes the
        rest."""
        self.notes[name] = value
        if self._noting is None:
            self._noting = self._loop.call_later(NOTE_DELAY, self._write_notes)

    def _write_notes(self) -> None:
        self._noting = None
        rows = list(self.notes.items())
        self._writer.enqueue(
            lambda connection: connection.executemany(
                "insert into meta values (?, ?) on conflict (name) do update set value = excluded.value", rows
            )
        )

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def prune(self) -> None:
        """Delete what is finished and over 7 days old, except the newest session of each account. Call it
        periodically."""
        edge = _stamp(datetime.now(UTC) - KEEP)

        def work(connection: sqlite3.Connection) -> set[tuple[AccountId, int]]:
            connection.execute(
                "delete from executions where state = 'reported' and begun_at < ? and (execution_id, attempt) is not"
                " (?, ?)",
                (edge, *(self._last.order or (None, None))),
            )
            connection.execute("delete from events where at < ?", (edge,))
            connection.execute(
                "delete from sessions where opened_at < ? and exists (select from_later.session from sessions"
                " from_later "
                "where from_later.account_id = sessions.account_id and from_later.session > sessions.session)",
                (edge,),
            )
            return set(connection.execute("select account_id, session from sessions").fetchall())

        left = await self._writer.execute(work)
        self._sessions = {key: moment for key, moment in self._sessions.items() if key in left}

    async def flush(self) -> None:
        """Wait until everything enqueued so far is written."""
        await self._writer.execute(lambda _: None)

    async def close(self) -> None:
        """Write everything enqueued, record a clean close, and close the file."""
        if self._noting is not None:
            self._noting.cancel()
            self._write_notes()
        await self._writer.close()
        self._last.close()

    # -- inside ---------------------------------------------------------------------------------------------

    async def _rows(self, sql: str, *values: object) -> list[tuple[Field, ...]]:
        return await self._writer.execute(lambda connection: connection.execute(sql, values).fetchall())


def _notes(connection: sqlite3.Connection) -> dict[str, str]:
    """All notes; an unreadable one is logged and left out."""
    notes: dict[str, str] = {}
    for name, value in connection.execute(
        "select cast(name as blob), cast(value as blob) from meta where name like '% %'"
    ):
        try:
            notes[text_of(name)] = text_of(value)
        except UnreadableRow as error:
            log.error("journal_row_unreadable", extra={"source": "meta", "error": str(error)})
    return notes


def _now() -> str:
    return _stamp(datetime.now(UTC))


def _mark_not_written(error: OSError) -> JournalError:
    return JournalError(f"the mark beside the journal could not be written: {error}")


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _attempt(execution_id: Field, attempt: Field, report: Field) -> Attempt:
    number = ExecutionId(cast(int, execution_id))
    try:
        return Attempt(number, None if report is None else report_of(report, execution_id, attempt))
    except UnreadableRow as error:
        log.error("journal_row_unreadable", extra={"source": "executions", "execution_id": number, "error": str(error)})
        return Attempt(number, None)


def _known(connection: sqlite3.Connection, execution: Execution, body: str) -> Entry:
    """The entry of this attempt. If its row cannot be read, the attempt counts as begun: it may have been sent."""
    key = (execution.id, execution.attempt)
    sql = (
        "select cast(body as blob), state, cast(report as blob) from executions where execution_id = ? and attempt = ?"
    )
    was, state, report = row = connection.execute(sql, key).fetchone()
    try:
        return Entry(
            execution=execution_of(was, *key),
            state=cast(State, state),
            report=None if report is None else report_of(report, *key),
        )
    except UnreadableRow as error:
        log.error(
            "journal_row_unreadable", extra={"source": "executions", "execution_id": execution.id, "error": str(error)}
        )
        set_aside(connection, "executions", str(error), (*key, *row))
        connection.execute(
            "update executions set body = ?, report = null, state = 'begun' where execution_id = ? and attempt = ?",
            (body, *key),
        )
        return Entry(execution=execution, state="begun", report=None)
