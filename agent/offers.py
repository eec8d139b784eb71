"""What the database hands out, from JSON of docs/protocol.md: executions, assignments, the answer to a heartbeat.

Hand-written because it is the hot path: an execution costs tens of microseconds. Decoding is strict (a float is no
price, a naive time is no time) and raises `WireError`, which names the field; one bad row never holds up the others.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast, get_args

from agent.json_fields import (
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
    )


def executions(value: object) -> tuple[Offered, ...]:
    """The executions of a message. One that cannot be read is `Unreadable`: it does not hold up the others, and is refused aloud.
    Only what does not even say which execution it is gets dropped."""
    return _tolerant(value, "executions", _offered)


def _offered(value: object) -> Offered:
    try:
        return execution_from_json(value)
    except WireError as error:
        raw = as_object(value, "execution")
        return Unreadable(
            id=ExecutionId(integer(raw, "id")),
            attempt=integer(raw, "attempt"),
            account_id=AccountId(text(raw, "account_id")),
            why=str(error),
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
        settings=as_object(raw.get("settings") or {}, "settings"),
        begins_at=instant(raw, "begins_at"),
        watch_symbols=tuple(str(name) for name in as_list(raw.get("watch_symbols") or [], "watch_symbols")),
        watch_funds=raw.get("watch_funds") is True,
    )


def execution_ids(value: object, name: str = "ids") -> tuple[ExecutionId, ...]:
    """Numbers of executions whose cancellation is requested."""
    return _tolerant(value, name, lambda item: ExecutionId(integer({name: item}, name)))


def _tolerant(value: object, name: str, decode: Callable[[object], T]) -> tuple[T, ...]:
    decoded: list[T] = []
    for item in as_list(value or [], name):
        try:
            decoded.append(decode(item))
        except WireError as error:
            number = item.get("id") if isinstance(item, dict) else None
            log.error("malformed_message_dropped", extra={"part": name, "error": str(error), "id": number})
    return tuple(decoded)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The database's answer to a heartbeat (docs/protocol.md, `vps_heartbeat`)."""

    vps_id: str
    name: str
    status: str
    server_time: datetime
    lease_ms: int
    #: how often an idle agent shall be heard of
    heartbeat_ms: int
    last_tick_at: datetime | None
    topic: str
    assignments: tuple[Assignment, ...]
    executions: tuple[Offered, ...]
    cancel: tuple[ExecutionId, ...]
    #: accounts whose assignment could not be read; they are kept as they are, never taken for removed
    unreadable: frozenset[AccountId]
    #: accounts whose whole state the database wants to see again
    resync: frozenset[AccountId]


def heartbeat_from_json(value: object) -> Heartbeat:
    raw = as_object(value, "heartbeat")
    listed = as_list(raw.get("assignments", []), "assignments")
    assignments = _tolerant(list(listed), "assignments", assignment_from_json)
    readable = {assignment.account_id for assignment in assignments}
    return Heartbeat(
        vps_id=text(raw, "vps_id"),
        name=optional_text(raw, "name") or "",
        status=text(raw, "status"),
        server_time=instant(raw, "server_time"),
        lease_ms=integer(raw, "lease_ms"),
        heartbeat_ms=max(100, integer(raw, "heartbeat_ms", 2_000)),
        last_tick_at=optional_instant(raw, "last_tick_at"),
        topic=text(raw, "topic"),
        assignments=assignments,
        executions=executions(raw.get("executions", [])),
        cancel=execution_ids(raw.get("cancel", []), "cancel"),
        unreadable=frozenset(_account_ids(listed) - readable),
        resync=frozenset(_account_ids([item for item in listed if isinstance(item, dict) and item.get("resync") is True])),
    )


def _account_ids(listed: Iterable[object]) -> set[AccountId]:
    found = (item.get("account_id") for item in listed if isinstance(item, dict))
    return {AccountId(name) for name in found if isinstance(name, str)}
