"""Encodes what an agent sends (docs/protocol.md), and decodes the results. What the database sends: `decode.py`.

Hand-written because it is on the hot path. Encoders return input for `dumps`; decoders take the output of `loads` and
raise `WireError`.
"""

from typing import cast, get_args

from agent import limits
from agent.control_plane.contract import EventResult, EventStatus, ReportResult, ReportStatus
from agent.control_plane.json_fields import Json, as_list, as_object, integer, one_of, optional_text
from agent.model import Event, ExecutionId, Position, Quote, Report, SymbolSpec

EVENT_STATUSES = frozenset(get_args(EventStatus))
REPORT_STATUSES = frozenset(get_args(ReportStatus))


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
        "comment": limits.cut(position.comment, limits.COMMENT_MAX),
        "opened_at": position.opened_at,
        "expires_at": position.expires_at,
        "tag": None if position.tag is None else str(position.tag),
        "replaces": position.replaces and limits.cut(position.replaces, limits.NAME_MAX + 1),
        "replaces_kind": position.replaces_kind,
    }


def event_to_json(event: Event) -> dict[str, object]:
    """One element of `events` in `queue_trade_copy`; the account is named once per call."""
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
        "message": limits.cut(report.message),
        "adopted": report.adopted,
        "filled_lots": report.filled_lots,
        "price": report.price,
        "positions": [position_to_json(position) for position in report.positions],
        "quote": None if report.quote is None else quote_to_json(report.quote),
        "planned_at": report.planned_at,
        "received_at": report.received_at,
        "sent_at": report.sent_at,
        "done_at": report.done_at,
    }


def quote_to_json(quote: Quote) -> dict[str, object]:
    return {"symbol": quote.symbol, "bid": quote.bid, "ask": quote.ask, "at": quote.at}


def symbol_to_json(name: str, spec: SymbolSpec | None, quote: Quote | None) -> dict[str, object]:
    """A `Symbol` of `report_account_state`: specification, quote, or both."""
    out: dict[str, object] = {"name": name}
    if spec is not None:
        out |= {
            "contract_size": spec.contract_size,
            "digits": spec.digits,
            "tick_size": spec.tick_size,
            "profit_currency": limits.cut(spec.profit_currency),
            "margin_currency": limits.cut(spec.margin_currency),
            "lots_min": spec.lots_min,
            "lots_max": spec.lots_max,
            "lots_step": spec.lots_step,
            "stops_level_points": spec.stops_level_points,
            "freeze_level_points": spec.freeze_level_points,
            "trade_mode": spec.trade_mode,
            "allow_negative": spec.allow_negative,
        }
    if quote is not None:
        out |= {"bid": quote.bid, "ask": quote.ask, "quoted_at": quote.at}
    return out


def event_results(value: object) -> tuple[EventResult, ...]:
    return tuple(_event_result(as_object(item, "result")) for item in as_list(value, "results"))


def _event_result(raw: Json) -> EventResult:
    return EventResult(
        event_key=optional_text(raw, "event_key") or "",
        status=cast(EventStatus, one_of(raw, "status", EVENT_STATUSES)),
        code=optional_text(raw, "code"),
        error=optional_text(raw, "error"),
        missing=tuple(str(ticket) for ticket in as_list(raw.get("missing") or [], "missing")),
    )


def report_results(value: object) -> tuple[ReportResult, ...]:
    return tuple(_report_result(as_object(item, "result")) for item in as_list(value, "results"))


def _report_result(raw: Json) -> ReportResult:
    return ReportResult(
        execution_id=ExecutionId(integer(raw, "execution_id", 0)),
        status=cast(ReportStatus, one_of(raw, "status", REPORT_STATUSES)),
        code=optional_text(raw, "code"),
        error=optional_text(raw, "error"),
    )
