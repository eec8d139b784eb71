"""JSON of docs/protocol.md ↔ the dataclasses of `agent.model`. (Long: one format is read and written in one place.)

Hand-written because it is the hot path: an execution costs tens of microseconds. Decoding is strict (a float is no
price, a naive time is no time) and raises `WireError`, which names the field; `executions` drops what is malformed instead,
so that one bad row cannot hold up the others. Decoders take what `orjson.loads` gives, encoders give what `dumps` takes.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar, cast, get_args

from agent.json_fields import (
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
    optional_one_of,
    optional_text,
    text,
)
from agent.model import (
    AccountId,
    Action,
    Assignment,
    CloseReason,
    Event,
    EventType,
    Evidence,
    Execution,
    ExecutionId,
    Kind,
    Mode,
    Offered,
    OrderType,
    Outcome,
    Position,
    Quote,
    Report,
    Side,
    SymbolSpec,
    Ticket,
    Unreadable,
)
from agent.session import EventResult, ReportResult

log = logging.getLogger(__name__)

T = TypeVar("T")

SIDES = frozenset(get_args(Side))
KINDS = frozenset(get_args(Kind))
MODES = frozenset(get_args(Mode))
ACTIONS = frozenset(get_args(Action))
ORDER_TYPES = frozenset(get_args(OrderType))
EVENT_TYPES = frozenset(get_args(EventType))
EVIDENCE = frozenset(get_args(Evidence))
CLOSE_REASONS = frozenset(get_args(CloseReason))
OUTCOMES = frozenset(get_args(Outcome))
EVENT_STATUSES = frozenset({"accepted", "duplicate", "history", "refused"})
REPORT_STATUSES = frozenset({"accepted", "duplicate", "refused"})


# ---------------------------------------------------------------------------------------------------------
# Positions


def position_to_json(position: Position) -> dict[str, object]:
    return {
        "ticket": position.ticket,
        "kind": position.kind,
        "symbol": position.symbol,
        "side": position.side,
        "lots": position.lots,
        "price": position.price,
        "sl": position.sl,
        "tp": position.tp,
        "order_type": position.order_type,
        "magic": str(position.magic),
        "comment": position.comment,
        "opened_at": position.opened_at,
        "expires_at": position.expires_at,
        "tag": None if position.tag is None else str(position.tag),
        "replaces": position.replaces,
    }


def position_from_json(value: object) -> Position:
    raw = as_object(value, "position")
    tag = optional_integer(raw, "tag")
    replaces = optional_text(raw, "replaces")
    return Position(
        ticket=Ticket(text(raw, "ticket")),
        kind=cast(Kind, one_of(raw, "kind", KINDS)),
        symbol=text(raw, "symbol"),
        side=cast(Side, one_of(raw, "side", SIDES)),
        lots=decimal(raw, "lots"),
        price=decimal(raw, "price"),
        sl=optional_decimal(raw, "sl"),
        tp=optional_decimal(raw, "tp"),
        order_type=cast("OrderType | None", optional_one_of(raw, "order_type", ORDER_TYPES)),
        magic=integer(raw, "magic", 0),
        comment=optional_text(raw, "comment") or "",
        opened_at=optional_instant(raw, "opened_at"),
        expires_at=optional_instant(raw, "expires_at"),
        tag=None if tag is None else ExecutionId(tag),
        replaces=None if replaces is None else Ticket(replaces),
    )


# ---------------------------------------------------------------------------------------------------------
# What an agent says


def event_to_json(event: Event) -> dict[str, object]:
    """One element of `events` in `queue_trade_copy`; the account stands beside them."""
    out: dict[str, object] = {
        "session": event.session,
        "seq": event.seq,
        "type": event.type,
        "detected_at": event.detected_at,
        "unchanged_at": event.unchanged_at,
    }
    if event.type == "snapshot":
        out["positions"] = [position_to_json(position) for position in event.positions]
        return out
    out["position"] = None if event.position is None else position_to_json(event.position)
    if event.evidence is not None:
        out["evidence"] = event.evidence
    if event.close_reason is not None:
        out["close_reason"] = event.close_reason
    if event.deal_price is not None:
        out["deal_price"] = event.deal_price
    if event.dealt_at is not None:
        out["dealt_at"] = event.dealt_at
    return out


def event_from_json(account_id: AccountId, value: object) -> Event:
    raw = as_object(value, "event")
    position = raw.get("position")
    return Event(
        account_id=account_id,
        session=integer(raw, "session"),
        seq=integer(raw, "seq"),
        type=cast(EventType, one_of(raw, "type", EVENT_TYPES)),
        position=None if position is None else position_from_json(position),
        positions=tuple(position_from_json(item) for item in as_list(raw.get("positions", []), "positions")),
        evidence=cast("Evidence | None", optional_one_of(raw, "evidence", EVIDENCE)),
        close_reason=cast("CloseReason | None", optional_one_of(raw, "close_reason", CLOSE_REASONS)),
        detected_at=instant(raw, "detected_at"),
        unchanged_at=optional_instant(raw, "unchanged_at"),
        deal_price=optional_decimal(raw, "deal_price"),
        dealt_at=optional_instant(raw, "dealt_at"),
    )


def report_to_json(report: Report) -> dict[str, object]:
    return {
        "account_id": report.account_id,
        "session": report.session,
        "seq": report.seq,
        "execution_id": str(report.execution_id),
        "attempt": report.attempt,
        "outcome": report.outcome,
        "reason": report.reason,
        "retryable": report.retryable,
        "message": report.message,
        "adopted": report.adopted,
        "filled_lots": report.filled_lots,
        "price": report.price,
        "positions": [position_to_json(position) for position in report.positions],
        "quote": None if report.quote is None else quote_to_json(report.quote),
        "received_at": report.received_at,
        "sent_at": report.sent_at,
        "done_at": report.done_at,
    }


def quote_to_json(quote: Quote) -> dict[str, object]:
    return {"symbol": quote.symbol, "bid": quote.bid, "ask": quote.ask, "at": quote.at}


def quote_from_json(value: object) -> Quote:
    raw = as_object(value, "quote")
    return Quote(text(raw, "symbol"), decimal(raw, "bid"), decimal(raw, "ask"), instant(raw, "at"))


def report_from_json(value: object) -> Report:
    raw = as_object(value, "report")
    return Report(
        account_id=AccountId(text(raw, "account_id")),
        session=integer(raw, "session"),
        seq=integer(raw, "seq"),
        execution_id=ExecutionId(integer(raw, "execution_id")),
        attempt=integer(raw, "attempt"),
        outcome=cast(Outcome, one_of(raw, "outcome", OUTCOMES)),
        reason=optional_text(raw, "reason"),
        retryable=flag(raw, "retryable"),
        message=optional_text(raw, "message") or "",
        adopted=flag(raw, "adopted"),
        filled_lots=decimal(raw, "filled_lots"),
        price=optional_decimal(raw, "price"),
        positions=tuple(position_from_json(item) for item in as_list(raw.get("positions", []), "positions")),
        quote=None if raw.get("quote") is None else quote_from_json(raw["quote"]),
        received_at=optional_instant(raw, "received_at"),
        sent_at=optional_instant(raw, "sent_at"),
        done_at=optional_instant(raw, "done_at"),
    )


def symbol_to_json(name: str, spec: SymbolSpec | None, quote: Quote | None) -> dict[str, object]:
    """A `Symbol` of `report_account_state`: specs, a quote, or both."""
    out: dict[str, object] = {"name": name}
    if spec is not None:
        out |= {
            "contract_size": spec.contract_size,
            "digits": spec.digits,
            "tick_size": spec.tick_size,
            "profit_currency": spec.profit_currency,
            "margin_currency": spec.margin_currency,
            "lots_min": spec.lots_min,
            "lots_max": spec.lots_max,
            "lots_step": spec.lots_step,
            "stops_level_points": spec.stops_level_points,
            "freeze_level_points": spec.freeze_level_points,
            "trade_mode": spec.trade_mode,
        }
    if quote is not None:
        out |= {"bid": quote.bid, "ask": quote.ask, "quoted_at": quote.at}
    return out


# ---------------------------------------------------------------------------------------------------------
# What the database says


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


def event_results(value: object) -> tuple[EventResult, ...]:
    return tuple(_event_result(as_object(item, "result")) for item in as_list(value, "results"))


def _event_result(raw: Json) -> EventResult:
    return EventResult(
        event_key=optional_text(raw, "event_key") or "",
        status=cast(Literal["accepted", "duplicate", "history", "refused"], one_of(raw, "status", EVENT_STATUSES)),
        code=optional_text(raw, "code"),
        error=optional_text(raw, "error"),
        missing=tuple(str(ticket) for ticket in as_list(raw.get("missing") or [], "missing")),
    )


def report_results(value: object) -> tuple[ReportResult, ...]:
    return tuple(_report_result(as_object(item, "result")) for item in as_list(value, "results"))


def _report_result(raw: Json) -> ReportResult:
    return ReportResult(
        execution_id=ExecutionId(integer(raw, "execution_id", 0)),
        status=cast(Literal["accepted", "duplicate", "refused"], one_of(raw, "status", REPORT_STATUSES)),
        code=optional_text(raw, "code"),
        error=optional_text(raw, "error"),
    )


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
