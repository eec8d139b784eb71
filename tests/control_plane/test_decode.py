"""Decoding what the database sends: one malformed entry or value never affects the others."""

from collections.abc import Callable
from decimal import InvalidOperation
from typing import Any

import pytest

from agent.control_plane import decode
from agent.control_plane.decode import (
    execution_ids,
    executions,
    executions_of_answer,
    executions_of_broadcast,
    heartbeat_from_json,
)
from agent.control_plane.json_fields import WireError, instant
from agent.model import Execution, Unreadable

OUT_OF_RANGE = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]
NOON = "2026-11-22T12:00:00Z"


def assignment(account_id: object, **changes: object) -> dict[str, object]:
    return {
        "account_id": account_id, "epoch": 1, "platform": "paper", "server": "s", "login": "1", "mode": "hedging",
        "currency": "USD", "revision": 1, "begins_at": NOON, "watch_symbols": ["EURUSD"], **changes,
    }  # fmt: skip


def offer(number: object, account_id: object = "a", **changes: object) -> dict[str, object]:
    return {
        "id": number, "attempt": 1, "account_id": account_id, "epoch": 1, "link_id": "1", "lane": "1", "step_id": "1",
        "action": "open", "priority": 40, "symbol": "EURUSD", "side": "buy", "lots": "0.50", "queued_at": NOON,
        "send_before": NOON, **changes,
    }  # fmt: skip


def heartbeat(**changes: object) -> dict[str, object]:
    return {
        "protocol_version": 2, "answer_id": "7", "vps_id": "1", "name": "vps-a", "status": "online",
        "server_time": NOON, "lease_ms": 15000, "last_tick_at": None, "topic": "vps:1",
        "assignments": [], "executions": [], "cancel": [], **changes,
    }  # fmt: skip


@pytest.mark.parametrize("moment", OUT_OF_RANGE)
def test_a_time_out_of_range_in_utc_is_malformed(moment: str) -> None:
    with pytest.raises(WireError, match="server_time"):
        instant({"server_time": moment}, "server_time")
    with pytest.raises(WireError):
        heartbeat_from_json(heartbeat(server_time=moment))


@pytest.mark.parametrize("moment", OUT_OF_RANGE)
def test_a_time_out_of_range_affects_only_its_own_entry(moment: str) -> None:
    answer = heartbeat_from_json(
        heartbeat(
            assignments=[assignment("a"), assignment("b", begins_at=moment)],
            executions=[offer("1", queued_at=moment), offer("2", send_before=moment), offer("3")],
        )
    )
    assert [each.account_id for each in answer.assignments] == ["a"]
    assert answer.unreadable == {"b"}
    assert [(each.id, isinstance(each, Unreadable)) for each in answer.executions] == [(1, True), (2, True), (3, False)]


@pytest.mark.parametrize(
    "fault", [ValueError, TypeError, KeyError, OverflowError, RecursionError, InvalidOperation, AttributeError]
)
def test_an_entry_that_fails_in_any_way_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    monkeypatch.setattr(decode, "assignment_from_json", failing_for("b", fault, decode.assignment_from_json))
    monkeypatch.setattr(decode, "execution_from_json", failing_for("b", fault, decode.execution_from_json))
    answer = heartbeat_from_json(
        heartbeat(assignments=[assignment("a"), assignment("b")], executions=[offer("1"), offer("2", "b")])
    )
    assert [each.account_id for each in answer.assignments] == ["a"]
    assert answer.unreadable == {"b"}
    assert [isinstance(each, Unreadable) for each in answer.executions] == [False, True]
    assert len(executions([offer("1"), offer("2", "b")])) == 2


def failing_for(account_id: str, fault: type[Exception], read: Callable[[object], object]) -> Callable[[Any], object]:
    def reading(value: Any) -> object:
        if value["account_id"] == account_id:
            raise fault
        return read(value)

    return reading


@pytest.mark.parametrize("nobody", [5, None, "", [], {"id": "a"}, True])
def test_an_entry_that_names_no_account_leaves_the_answer_incomplete(
    nobody: object, caplog: pytest.LogCaptureFixture
) -> None:
    answer = heartbeat_from_json(heartbeat(assignments=[assignment("a"), assignment(nobody)]))
    assert ([each.account_id for each in answer.assignments], answer.unreadable, answer.complete) == (
        ["a"],
        set(),
        False,
    )
    answer = heartbeat_from_json(heartbeat(assignments=[assignment("a")], executions=[offer("1"), offer("12", nobody)]))
    assert ([each.id for each in answer.executions], answer.unreadable, answer.complete) == ([1], set(), False)
    dropped = [record for record in caplog.records if record.message == "malformed_message_dropped"]
    assert [vars(record)["id"] for record in dropped] == [None, "12"]


def test_an_answer_whose_every_account_is_readable_is_complete() -> None:
    broken = [assignment("a"), assignment("b", epoch=None)]
    assert heartbeat_from_json(
        heartbeat(assignments=broken, executions=[offer("x", "c"), offer("1", lots=0.5)])
    ).complete


def test_an_answer_without_assignments_is_no_answer() -> None:
    """A missing list does not count as an empty one."""
    answer = heartbeat()
    del answer["assignments"]
    with pytest.raises(WireError, match="assignments"):
        heartbeat_from_json(answer)


@pytest.mark.parametrize("number", [2**63, str(2**63), "1" + "0" * 30, -(2**63) - 1, "9" * 5_000])
def test_a_number_beyond_64_bits_is_unreadable(number: object) -> None:
    assert executions([offer(number), offer("3"), offer(str(2**63 - 1))])[1:] == executions([offer(str(2**63 - 1))])
    assert execution_ids([number, "3"]) == (3,)
    with pytest.raises(WireError):
        heartbeat_from_json(heartbeat(heartbeat_ms=number))


# --- when an order was planned: only shown, never needed ----------------------------------------------------------


def planned(offered: tuple[object, ...]) -> list[str | None]:
    found = [one.planned_at for one in offered if isinstance(one, Execution)]
    assert len(found) == len(offered)
    return [None if at is None else at.isoformat().replace("+00:00", "Z") for at in found]


def test_a_broadcast_says_when_its_orders_were_planned() -> None:
    assert planned(executions_of_broadcast({"executions": [offer(1)], "planned_at": NOON})) == [NOON]


def test_an_answer_ends_the_planning_of_its_own_orders_and_not_of_those_it_repeats() -> None:
    times = {"received_at": "2026-11-22T11:59:59Z", "sent_at": "2026-11-22T12:00:01Z"}
    repeated = offer(1, queued_at="2026-11-22T11:59:00Z")
    assert planned(executions_of_answer({"executions": [repeated, offer(2)], **times})) == [None, times["sent_at"]]


def test_a_heartbeat_repeats_what_was_planned_before() -> None:
    assert planned(heartbeat_from_json(heartbeat(executions=[offer(1)])).executions) == [None]


@pytest.mark.parametrize("moment", [None, "soon", 5, *OUT_OF_RANGE])
def test_a_planned_at_that_cannot_be_read_costs_no_order(moment: object) -> None:
    assert planned(executions_of_broadcast({"executions": [offer(1)], "planned_at": moment})) == [None]
    answer = {"executions": [offer(1)], "received_at": moment, "sent_at": moment}
    assert planned(executions_of_answer(answer)) == [None]
