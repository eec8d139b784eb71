"""Decodes rows of the journal. A row that cannot be read raises `UnreadableRow`.

Text comes as bytes: SQLite returns the content of a damaged page unchanged, so invalid UTF-8 must be detected here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from agent.model import AccountId, Event, Execution, ExecutionId, Report, Ticket

T = TypeVar("T")
Field = bytes | str | int | float | None
Row = Sequence[Field]
State = Literal["begun", "answered", "reported"]

EXECUTION = TypeAdapter(Execution)
REPORT = TypeAdapter(Report)
EVENT = TypeAdapter(Event)


class UnreadableRow(ValueError):
    """A row cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class LastSeen:
    """When an account was last seen, and which tickets (positions and orders) it held then."""

    at: datetime
    tickets: frozenset[Ticket]


def write(codec: TypeAdapter[T], value: T) -> str:
    return codec.dump_json(value).decode()


def execution_of(body: Field, execution_id: Field, attempt: Field) -> Execution:
    execution = _read(EXECUTION, body)
    if (execution.id, execution.attempt) != (execution_id, attempt):
        raise UnreadableRow(f"the row of execution {execution_id!r}, attempt {attempt!r} contains another execution")
    return execution


def report_of(body: Field, execution_id: Field, attempt: Field) -> Report:
    report = _read(REPORT, body)
    if (report.execution_id, report.attempt) != (execution_id, attempt):
        raise UnreadableRow(f"the row of execution {execution_id!r}, attempt {attempt!r} contains another report")
    return report


def event_of(body: Field, account_id: Field, session: Field, seq: Field) -> Event:
    event = _read(EVENT, body)
    if (event.account_id, event.session, event.seq) != (text_of(account_id), session, seq):
        raise UnreadableRow("the row of an event contains another event")
    return event


def session_of(account_id: Field, session: Field, vouches_from: Field) -> tuple[tuple[AccountId, int], datetime]:
    if not isinstance(session, int):
        raise UnreadableRow("a session without a number")
    return (AccountId(text_of(account_id)), session), moment_of(vouches_from)


def seen_of(account_id: Field, seen_at: Field, tickets: Field) -> tuple[AccountId, LastSeen]:
    held = frozenset(Ticket(ticket) for ticket in text_of(tickets).split("\n") if ticket)
    return AccountId(text_of(account_id)), LastSeen(moment_of(seen_at), held)


def text_of(field: Field) -> str:
    if isinstance(field, bytes):
        try:
            return field.decode()
        except UnicodeDecodeError as error:
            raise UnreadableRow(f"not UTF-8: {error}") from None
    if not isinstance(field, str):
        raise UnreadableRow(f"must be text, but is {type(field).__name__}")
    return field


def moment_of(field: Field) -> datetime:
    try:
        moment = datetime.fromisoformat(text_of(field))
    except ValueError as error:
        raise UnreadableRow(f"must be a time: {error}") from None
    if moment.tzinfo is None:
        raise UnreadableRow("must be a time with its zone")
    return moment


def _read(codec: TypeAdapter[T], body: Field) -> T:
    if not isinstance(body, bytes | str):
        raise UnreadableRow(f"its body is {type(body).__name__}, not text")
    try:
        return codec.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnreadableRow(f"{where}: {first['msg']}" if where else str(first["msg"])) from None


def execution_number(field: Field) -> ExecutionId | None:
    return ExecutionId(field) if isinstance(field, int) else None
