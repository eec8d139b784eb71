"""The agent's memory on disk: what was begun, what came of it, and what the database does not know yet.

SQLite in WAL mode, owned by one process; who writes, and when, says `agent/journal_writer.py`. The row of an execution is
committed before its order is sent and outlives any kill; about a power cut see `agent/journal_file.py`.

A missing journal is a fresh one with a new identity: then nothing is known, and what was queued before is looked for at
the broker. A damaged one is set aside beside it, loudly, and counts as missing.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar, cast

from pydantic import TypeAdapter

from agent.journal_file import JournalBusy, JournalError, boot_mark, open_file
from agent.journal_writer import JournalWriter
from agent.model import AccountId, Event, Execution, ExecutionId, Report, Ticket

__all__ = ["Entry", "Journal", "JournalBusy", "JournalError", "LastSeen"]

T = TypeVar("T")
State = Literal["begun", "answered", "reported"]
EventKey = tuple[AccountId, int, int]

KEEP = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the journal knows of one attempt. `report` is there once the state is `answered` or `reported`."""

    execution: Execution
    state: State
    report: Report | None


@dataclass(frozen=True, slots=True)
class LastSeen:
    """When an account was last seen, and which tickets (positions and orders) it held then."""

    at: datetime
    tickets: frozenset[Ticket]


EXECUTION = TypeAdapter(Execution)
REPORT = TypeAdapter(Report)
EVENT = TypeAdapter(Event)


def _write(codec: TypeAdapter[T], value: T) -> str:
    return codec.dump_json(value).decode()


class Journal:
    """Open it inside a running event loop with `await Journal.open(path)`; close it with `await close()`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        #: no way to notice a power cut: then every order waits for the flush
        self._flush_orders = boot_mark() is None
        self.identity: str = connection.execute("select value from meta where name = 'identity'").fetchone()[0]
        self._sessions = {
            (AccountId(account), int(session)): datetime.fromisoformat(moment)
            for account, session, moment in connection.execute("select account_id, session, vouches_from from sessions")
        }
        self._seen = {
            AccountId(account): LastSeen(datetime.fromisoformat(at), frozenset(Ticket(t) for t in tickets.split("\n") if t))
            for account, at, tickets in connection.execute("select account_id, seen_at, tickets from accounts")
        }
        self._writer = JournalWriter(connection, path, loop)

    @classmethod
    async def open(cls, path: Path) -> "Journal":
        """Open or create. Raises `JournalBusy` when another agent has it open, `JournalError` when it cannot be written."""
        loop = asyncio.get_running_loop()
        connection = await asyncio.to_thread(open_file, path)
        return cls(connection, path, loop)

    @property
    def healthy(self) -> bool:
        """False once a write has failed; an agent in this state does not trade."""
        return self._writer.healthy

    # -- executions -----------------------------------------------------------------------------------------

    async def begin(self, execution: Execution) -> Entry | None:
        """Commit an attempt before its order is sent. None: it is new, send it. Else: what is known of it already."""
        body = _write(EXECUTION, execution)

        def work(connection: sqlite3.Connection) -> Entry | None:
            added = connection.execute(
                "insert into executions values (?, ?, ?, ?, ?, null, ?, 'begun') on conflict do nothing",
                (execution.id, execution.attempt, execution.account_id, execution.step_id, body, _now()),
            )
            return None if added.rowcount == 1 else _find(connection, execution.id, execution.attempt)

        return await (self._writer.ask(work, durable=True) if self._flush_orders else self._writer.now(work))

    async def entry(self, execution_id: ExecutionId, attempt: int) -> Entry | None:
        return await self._writer.ask(lambda connection: _find(connection, execution_id, attempt))

    def answered(self, execution: Execution, report: Report) -> None:
        """The outcome is known (not `unknown`); kept until the database has accepted it."""
        body, told = _write(EXECUTION, execution), _write(REPORT, report)
        self._writer.tell(
            lambda connection: connection.execute(
                "insert into executions values (?, ?, ?, ?, ?, ?, ?, 'answered') on conflict (execution_id, attempt) "
                "do update set state = 'answered', report = excluded.report",
                (execution.id, execution.attempt, execution.account_id, execution.step_id, body, told, _now()),
            )
        )

    def reported(self, reports: Iterable[Report]) -> None:
        """The database accepted these (or refused them for good)."""
        rows = [(report.execution_id, report.attempt) for report in reports if report.outcome != "unknown"]
        self._writer.tell(
            lambda connection: connection.executemany(
                "update executions set state = 'reported' where execution_id = ? and attempt = ? and state = 'answered'", rows
            )
        )

    async def unresolved(self, account_id: AccountId) -> list[Execution]:
        """Attempts that may have been sent and have no outcome, oldest first."""
        rows = await self._rows(
            "select body from executions where state = 'begun' and account_id = ? order by execution_id", account_id
        )
        return [EXECUTION.validate_json(body) for (body,) in rows]

    async def undelivered_reports(self) -> list[Report]:
        rows = await self._rows("select report from executions where state = 'answered' order by execution_id, attempt")
        return [REPORT.validate_json(body) for (body,) in rows]

    async def step(self, account_id: AccountId, step_id: str) -> list[Entry]:
        """Every attempt of a step."""
        sql = "select body, state, report from executions where account_id = ? and step_id = ? order by execution_id, attempt"
        return [_entry(row) for row in await self._rows(sql, account_id, step_id)]

    # -- events ---------------------------------------------------------------------------------------------

    def put_events(self, events: Iterable[Event]) -> None:
        rows = [(event.account_id, event.session, event.seq, _write(EVENT, event), _now()) for event in events]
        self._writer.tell(
            lambda connection: connection.executemany("insert into events values (?, ?, ?, ?, ?) on conflict do nothing", rows)
        )

    def drop_events(self, keys: Iterable[EventKey]) -> None:
        """Delivered, refused for good, or overtaken by a later one."""
        rows = list(keys)
        self._writer.tell(
            lambda connection: connection.executemany("delete from events where account_id = ? and session = ? and seq = ?", rows)
        )

    async def undelivered_events(self, account_id: AccountId, before_session: int) -> list[Event]:
        """Events of older sessions that were never accepted; nothing older than what the database can recognise."""
        rows = await self._rows(
            "select body from events where account_id = ? and session < ? and at > ? order by session, seq",
            account_id,
            before_session,
            _stamp(datetime.now(UTC) - KEEP),
        )
        return [EVENT.validate_json(body) for (body,) in rows]

    # -- sessions and accounts ------------------------------------------------------------------------------

    def knows_session(self, account_id: AccountId, session: int) -> bool:
        return (account_id, session) in self._sessions

    def vouches_from(self, account_id: AccountId) -> datetime | None:
        """Since this moment (of the database's clock) the journal has seen everything that this account's sessions sent:
        the opening of the first session of an unbroken row. None: it knows no session."""
        known = [(session, moment) for (account, session), moment in self._sessions.items() if account == account_id]
        return max(known)[1] if known else None

    async def remember_session(self, account_id: AccountId, session: int, vouches_from: datetime) -> None:
        """On the disk before the session trades: only then does a later session continue it."""
        row = (account_id, session, _now(), _stamp(vouches_from))
        await self._writer.ask(
            lambda connection: (
                connection.execute("insert into sessions values (?, ?, ?, ?) on conflict do nothing", row).rowcount
            ),
            durable=True,
        )
        self._sessions[(account_id, session)] = vouches_from

    def last_seen(self, account_id: AccountId) -> LastSeen | None:
        return self._seen.get(account_id)

    def saw(self, account_id: AccountId, at: datetime, tickets: Iterable[Ticket]) -> None:
        """The account was seen, and what it held (a good read, or the changes since)."""
        seen = LastSeen(at, frozenset(tickets))
        self._seen[account_id] = seen
        row = (account_id, _stamp(at), "\n".join(sorted(seen.tickets)))
        self._writer.tell(
            lambda connection: connection.execute(
                "insert into accounts values (?, ?, ?) on conflict (account_id) "
                "do update set seen_at = excluded.seen_at, tickets = excluded.tickets",
                row,
            )
        )

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def prune(self) -> None:
        """Forget what is over 7 days old and finished; the newest session of each account stays. Call it now and then."""
        edge = _stamp(datetime.now(UTC) - KEEP)

        def work(connection: sqlite3.Connection) -> set[tuple[AccountId, int]]:
            connection.execute("delete from executions where state = 'reported' and begun_at < ?", (edge,))
            connection.execute("delete from events where at < ?", (edge,))
            connection.execute(
                "delete from sessions where opened_at < ? and exists (select from_later.session from sessions from_later "
                "where from_later.account_id = sessions.account_id and from_later.session > sessions.session)",
                (edge,),
            )
            return set(connection.execute("select account_id, session from sessions").fetchall())

        left = await self._writer.ask(work)
        self._sessions = {key: moment for key, moment in self._sessions.items() if key in left}

    async def flush(self) -> None:
        """Wait until everything handed over so far is written."""
        await self._writer.ask(lambda _: None)

    async def close(self) -> None:
        """Write what was handed over, note that nothing is missing, and let the file go."""
        await self._writer.close()

    # -- inside ---------------------------------------------------------------------------------------------

    async def _rows(self, sql: str, *values: object) -> list[tuple[str, ...]]:
        return await self._writer.ask(lambda connection: connection.execute(sql, values).fetchall())


def _now() -> str:
    return _stamp(datetime.now(UTC))


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _entry(row: Sequence[str | None]) -> Entry:
    body, state, report = row
    return Entry(
        execution=EXECUTION.validate_json(body or ""),
        state=cast(State, state),
        report=None if report is None else REPORT.validate_json(report),
    )


def _find(connection: sqlite3.Connection, execution_id: ExecutionId, attempt: int) -> Entry | None:
    sql = "select body, state, report from executions where execution_id = ? and attempt = ?"
    row = connection.execute(sql, (execution_id, attempt)).fetchone()
    return None if row is None else _entry(row)
