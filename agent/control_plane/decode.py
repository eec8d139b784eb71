"""Decodes what the database sends (docs/protocol.md): executions, assignments, the answer to a heartbeat.

Hand-written because it is on the hot path: an execution costs tens of microseconds. Decoding is strict (no floats for
prices, no times without zone) and raises `WireError`, which names the field. One malformed entry never affects the
others.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar, cast, get_args

from agent.control_plane.json_fields import (
    Json,
    WireError,
    as_list,
    as_object,
    decimal,
    flag,
    instant,
    integer,
    one_of,
    optional_decimal,
    optional_instant,
    optional_integer,
    optional_text,
    text,
)
from agent.model import (
    AccountId,
    Action,
    Assignment,
    Execution,
    ExecutionId,
    Mode,
    Offered,
    OrderType,
    Side,
    Ticket,
    Unreadable,
)

log = logging.getLogger(__name__)

#: the version of docs/protocol.md that this agent speaks, and the oldest that it still understands
PROTOCOL_VERSION: Final = 2
OLDEST_PROTOCOL: Final = 2

T = TypeVar("T")

SIDES = frozenset(get_args(Side))
MODES = frozenset(get_args(Mode))
ACTIONS = frozenset(get_args(Action))
ORDER_TYPES = frozenset(get_args(OrderType))


def execution_from_json(value: object) -> Execution:
    raw = as_object(value, "execution")
    ticket = optional_text(raw, "ticket")
    return Execution(
        id=ExecutionId(integer(raw, "id")),
        attempt=integer(raw, "attempt"),
        account_id=AccountId(text(raw, "account_id")),
        epoch=integer(raw, "epoch"),
        link_id=optional_text(raw, "link_id"),
        lane=text(raw, "lane"),
        step_id=text(raw, "step_id"),
        after_id=optional_text(raw, "after_id"),
        action=cast(Action, one_of(raw, "action", ACTIONS)),
        priority=integer(raw, "priority"),
        symbol=text(raw, "symbol"),
        side=cast(Side, one_of(raw, "side", SIDES)),
        order_type=cast(OrderType, one_of(raw, "order_type", ORDER_TYPES, "market")),
        lots=decimal(raw, "lots"),
        target_lots=optional_decimal(raw, "target_lots"),
        ticket=None if ticket is None else Ticket(ticket),
        price=optional_decimal(raw, "price"),
        sl=optional_decimal(raw, "sl"),
        tp=optional_decimal(raw, "tp"),
        max_slippage_points=optional_integer(raw, "max_slippage_points"),
        master_price=optional_decimal(raw, "master_price"),
        expires_at=optional_instant(raw, "expires_at"),
        comment=optional_text(raw, "comment") or "",
        investigate=flag(raw, "investigate"),
        detected_at=optional_instant(raw, "detected_at"),
        queued_at=instant(raw, "queued_at"),
        send_before=instant(raw, "send_before"),
        planned_at=_time_or_none(raw, "planned_at"),
    )


def executions(value: object) -> tuple[Offered, ...]:
    """The executions of a message. One that cannot be decoded becomes `Unreadable`, which is reported as rejected. An
    entry without an execution number is logged and dropped."""
    return _tolerant(value, "executions", _offered)


def executions_of_broadcast(payload: Json) -> tuple[Offered, ...]:
    """The executions of a broadcast; the transaction that planned them ended with its `planned_at`."""
    return executions(_planned(payload.get("executions"), payload.get("planned_at")))


def executions_of_answer(answer: Json) -> tuple[Offered, ...]:
    """The executions of an answer to events or reports. Those that this call planned have its time of sending; one that
    is handed out again was planned by an earlier call."""
    offered, received_at = answer.get("executions"), _time_or_none(answer, "received_at")
    return executions(offered if received_at is None else _planned(offered, answer.get("sent_at"), since=received_at))


def _planned(offered: object, planned_at: object, since: datetime | None = None) -> object:
    """Adds to each execution that was queued at `since` or later when it was planned, as its message says."""
    for item in offered if isinstance(offered, list) else ():
        if isinstance(item, dict):
            queued_at = None if since is None else _time_or_none(item, "queued_at")
            if since is None or (queued_at is not None and queued_at >= since):
                item["planned_at"] = planned_at
    return offered


def _time_or_none(raw: Json, name: str) -> datetime | None:
    """A time that is only shown: one that cannot be read counts as not given."""
    try:
        return optional_instant(raw, name)
    except WireError:
        return None


def _offered(value: object) -> Offered:
    try:
        return execution_from_json(value)
    except Exception as error:
        raw = as_object(value, "execution")
        return Unreadable(
            id=ExecutionId(integer(raw, "id")),
            attempt=integer(raw, "attempt"),
            account_id=AccountId(text(raw, "account_id")),
            why=str(error) or type(error).__name__,
        )


def assignment_from_json(value: object) -> Assignment:
    raw = as_object(value, "assignment")
    return Assignment(
        account_id=AccountId(text(raw, "account_id")),
        epoch=integer(raw, "epoch"),
        platform=text(raw, "platform"),
        server=optional_text(raw, "server") or "",
        login=text(raw, "login"),
        mode=cast(Mode, one_of(raw, "mode", MODES, "hedging")),
        currency=optional_text(raw, "currency") or "",
        revision=integer(raw, "revision"),
        begins_at=instant(raw, "begins_at"),
        watch_symbols=tuple(str(name) for name in as_list(raw.get("watch_symbols") or [], "watch_symbols")),
        watch_funds=raw.get("watch_funds") is True,
        funds_after_fills=raw.get("funds_after_fills") is True,
        owner=optional_text(raw, "owner") or "",
    )


def execution_ids(value: object, name: str = "ids") -> tuple[ExecutionId, ...]:
    """Execution numbers, for example of executions to cancel."""
    return _tolerant(value, name, lambda item: ExecutionId(integer({name: item}, name)))


def _tolerant(value: object, name: str, decode: Callable[[object], T]) -> tuple[T, ...]:
    """Decode a list entry by entry. An entry that fails in any way is logged and left out."""
    decoded: list[T] = []
    for item in as_list(value or [], name):
        try:
            decoded.append(decode(item))
        except Exception as error:
            number = item.get("id") if isinstance(item, dict) else None
            log.error("malformed_message_dropped", extra={"part": name, "error": str(error), "id": number})
    return tuple(decoded)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The database's answer to a heartbeat (docs/protocol.md, `vps_heartbeat`)."""

    #: number of this answer; the next heartbeat names it once every entry was processed
    answer_id: str
    vps_id: str
    name: str
    status: str
    server_time: datetime
    lease_ms: int
    #: pause between two heartbeats of an idle agent
    heartbeat_ms: int
    last_tick_at: datetime | None
    topic: str
    assignments: tuple[Assignment, ...]
    executions: tuple[Offered, ...]
    cancel: tuple[ExecutionId, ...]
    #: accounts of entries that could not be decoded: they stay as they are and are reported to the database
    unreadable: frozenset[AccountId]
    #: accounts whose whole state the database requests again
    resync: frozenset[AccountId]
    #: False: an undecodable entry names no account, so an account that is missing here may still be assigned
    complete: bool = True


def stamps(answer: object) -> tuple[datetime, datetime] | None:
    """When the database received a call and when it sent this answer, on its own clock; None if the answer does not
    say. Raises `WireError` for a stamp that is no time."""
    if not isinstance(answer, dict) or "received_at" not in answer or "sent_at" not in answer:
        return None
    return instant(answer, "received_at"), instant(answer, "sent_at")


def protocol_of(value: object) -> int:
    """The protocol version of an answer; 1 if it names none."""
    return integer(as_object(value, "heartbeat"), "protocol_version", 1)


def heartbeat_from_json(value: object) -> Heartbeat:
    """Decode an answer entry by entry. An entry that fails is left out and its account is in `unreadable`; if it names
    no account, `complete` is False."""
    raw = as_object(value, "heartbeat")
    listed = as_list(raw.get("assignments"), "assignments")
    assignments = _tolerant(listed, "assignments", assignment_from_json)
    offered = as_list(raw.get("executions", []), "executions")
    taken = executions(offered)
    broken = _left_out(listed, len(assignments), assignment_from_json) + _left_out(offered, len(taken), _offered)
    return Heartbeat(
        answer_id=text(raw, "answer_id"),
        vps_id=text(raw, "vps_id"),
        name=optional_text(raw, "name") or "",
        status=text(raw, "status"),
        server_time=instant(raw, "server_time"),
        lease_ms=integer(raw, "lease_ms"),
        heartbeat_ms=max(100, integer(raw, "heartbeat_ms", 2_000)),
        last_tick_at=optional_instant(raw, "last_tick_at"),
        topic=text(raw, "topic"),
        assignments=assignments,
        executions=taken,
        cancel=execution_ids(raw.get("cancel", []), "cancel"),
        unreadable=frozenset(_account_ids(broken)),
        resync=frozenset(
            _account_ids([item for item in listed if isinstance(item, dict) and item.get("resync") is True])
        ),
        complete=all(_account_ids([item]) for item in broken),
    )


def _left_out(listed: Sequence[object], readable: int, decode: Callable[[object], object]) -> list[object]:
    """The entries that `decode` cannot read."""
    if readable == len(listed):
        return []
    broken: list[object] = []
    for item in listed:
        try:
            decode(item)
        except Exception:
            broken.append(item)
    return broken


def _account_ids(listed: Iterable[object]) -> set[AccountId]:
    found = (item.get("account_id") for item in listed if isinstance(item, dict))
    return {AccountId(name) for name in found if isinstance(name, str) and name}
