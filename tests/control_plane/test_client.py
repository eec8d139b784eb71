"""Calls to Supabase: what is repeated, what is final, and whose token they carry."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from fake_supabase import Supabase, supabase_server

from agent.clock import DatabaseClock, Lease
from agent.control_plane import client as control_plane
from agent.control_plane.client import ControlPlane
from agent.control_plane.contract import BackboneCutOff, BackboneRefused
from agent.control_plane.retry import Refused, SignInRefused, Unreachable
from agent.model import AccountId, Event, Execution, ExecutionId, Position, Report, Ticket, Unreadable
from agent.settings import Settings

ACCOUNT = AccountId("8e1c2f3a-0000-4000-8000-000000000001")
NOW = datetime(2026, 11, 22, 12, 0, 0, 125000, tzinfo=UTC)
ANSWER: dict[str, Any] = {"results": [], "executions": []}


@pytest.fixture
async def server() -> AsyncIterator[Supabase]:
    async with supabase_server() as running:
        yield running


class Waits(list[float]):
    """Replaces sleep: records the pauses."""

    async def sleep(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def plane(server: Supabase, waits: Waits) -> AsyncIterator[ControlPlane]:
    async with ControlPlane(settings_for(server.url), DatabaseClock(), sleep=waits.sleep) as control:
        yield control


def settings_for(url: str) -> Settings:
    return Settings(url=url, publishable_key="public", vps_id="vps-1", agent_secret="very-secret")


def snapshot() -> Event:
    position = Position(
        ticket=Ticket("5"), kind="position", symbol="EURUSD", side="buy", lots=Decimal("1E-2"), price=Decimal("1.10000")
    )
    return Event(account_id=ACCOUNT, session=12, seq=1, type="snapshot", positions=(position,), detected_at=NOW)


def report() -> Report:
    return Report(
        account_id=ACCOUNT, session=12, seq=2, execution_id=ExecutionId(2**60), attempt=1, outcome="completed"
    )


async def test_a_call_carries_the_agents_token_and_the_publishable_key(server: Supabase, plane: ControlPlane) -> None:
    server.rpc["queue_trade_copy"] = lambda _: (200, ANSWER)
    await plane.queue_trade_copy(ACCOUNT, 3, [snapshot()])
    sign_in, call = server.calls
    assert sign_in.body == {"vps_id": "vps-1", "secret": "very-secret"}
    assert (call.token, call.key) == ("access-1", "public")


async def test_numbers_travel_as_plain_strings_and_times_in_utc(server: Supabase, plane: ControlPlane) -> None:
    server.rpc["queue_trade_copy"] = lambda _: (200, ANSWER)
    server.rpc["report_executions"] = lambda _: (200, ANSWER)
    await plane.queue_trade_copy(ACCOUNT, 3, [snapshot()])
    await plane.report_executions([report()])
    event = server.called("queue_trade_copy")[0]["p_events"]["events"][0]
    assert event["positions"][0]["lots"] == "0.01"
    assert event["positions"][0]["price"] == "1.10000"
    assert event["detected_at"] == "2026-11-22T12:00:00.125000Z"
    assert server.called("report_executions")[0]["p_reports"]["reports"][0]["execution_id"] == str(2**60)


async def test_results_come_back_in_order(server: Supabase, plane: ControlPlane) -> None:
    results = [
        {"event_key": "12:1", "status": "accepted", "code": None, "error": None},
        {"event_key": "12:2", "status": "refused", "code": "TC001", "error": "lots"},
    ]
    server.rpc["queue_trade_copy"] = lambda _: (200, {**ANSWER, "results": results})
    answer = await plane.queue_trade_copy(ACCOUNT, 3, [snapshot(), snapshot()])
    assert [(r.event_key, r.status, r.code) for r in answer.results] == [
        ("12:1", "accepted", None),
        ("12:2", "refused", "TC001"),
    ]


@pytest.mark.parametrize(
    "trouble",
    [
        (500, {"code": "40001", "message": "could not serialize access", "details": None, "hint": None}),
        (
            500,
            {"code": "57014", "message": "canceling statement due to statement timeout", "details": None, "hint": None},
        ),
        (503, {"code": "PGRST001", "message": "no connection", "details": None, "hint": None}),
        (502, "<html>Bad Gateway</html>"),
        (504, "<html>Gateway Timeout</html>"),
        (200, "<html>a captive portal</html>"),
        "cut",
    ],
)
async def test_trades_are_delivered_despite_failures(
    server: Supabase, plane: ControlPlane, waits: Waits, trouble: tuple[int, object] | str
) -> None:
    server.rpc["report_executions"] = lambda _: (200, ANSWER)
    server.script("report_executions", *[trouble] * 12)
    await plane.report_executions([report()])
    assert len(server.called("report_executions")) == 13
    assert len(waits) == 12
    assert max(waits) <= 5


async def test_trades_wait_for_a_sign_in_that_is_refused(server: Supabase, plane: ControlPlane) -> None:
    server.rpc["report_executions"] = lambda _: (200, ANSWER)
    server.script("/session", (403, {"code": "TC102", "message": "this VPS is retired"}), (503, "down"))
    await plane.report_executions([report()])
    assert len(server.called("/session")) == 3


@pytest.mark.parametrize("code", ["TC001", "TC103", "TC104"])
async def test_a_refusal_by_the_database_is_final_and_keeps_its_code(
    server: Supabase, plane: ControlPlane, waits: Waits, code: str
) -> None:
    server.rpc["queue_trade_copy"] = lambda _: (400, {"code": code, "message": "no", "details": None, "hint": None})
    with pytest.raises(BackboneRefused) as refused:
        await plane.queue_trade_copy(ACCOUNT, 3, [snapshot()])
    assert refused.value.code == code
    assert refused.value.concerns_account == (code == "TC103")
    assert waits == []


async def test_a_payload_over_the_limit_is_refused_before_it_is_sent(server: Supabase, plane: ControlPlane) -> None:
    with pytest.raises(BackboneRefused) as refused:
        await plane.queue_trade_copy(ACCOUNT, 3, [snapshot()] * 5_000)
    assert refused.value.code == "TC002"
    assert server.calls == []


async def test_a_statement_that_was_cut_off_comes_back_when_it_can_be_halved(
    server: Supabase, plane: ControlPlane
) -> None:
    cut_off = (500, {"code": "57014", "message": "canceling statement due to statement timeout"})
    server.rpc["report_executions"] = lambda _: cut_off
    with pytest.raises(BackboneCutOff):
        await plane.report_executions([report(), report()])
    assert len(server.called("report_executions")) == 1
    answers = iter([cut_off, (200, ANSWER)])
    server.rpc["report_executions"] = lambda _: next(answers)
    await plane.report_executions([report()])  # one report cannot be halved: it is repeated


async def test_a_malformed_execution_is_named_and_the_others_come_through(
    server: Supabase, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    good = execution("1")
    bad = [
        {**execution("2"), "lots": 0.5},
        {**execution("3"), "side": "long"},
        "not an object",
        {**execution("4"), "lots": "NaN"},
    ]
    server.rpc["report_executions"] = lambda _: (
        200,
        {**ANSWER, "executions": [bad[0], good, *bad[1:], execution("5")]},
    )
    answer = await plane.report_executions([report()])
    assert [item.id for item in answer.executions if isinstance(item, Execution)] == [1, 5]
    assert {item.id: item.why for item in answer.executions if isinstance(item, Unreadable)}.keys() == {2, 3, 4}
    assert caplog.text.count("malformed_message_dropped") == 1


def execution(number: str) -> dict[str, Any]:
    return {
        "id": number, "attempt": 1, "account_id": ACCOUNT, "epoch": 3, "link_id": "77", "lane": "77", "step_id": number,
        "after_id": None, "action": "open", "priority": 40, "symbol": "EURUSD", "side": "buy", "order_type": "market",
        "lots": "0.50", "target_lots": None, "ticket": None, "price": None, "sl": "1.09500", "tp": None,
        "max_slippage_points": None, "master_price": "1.10000", "expires_at": None, "comment": "", "investigate": False,
        "detected_at": "2026-11-22T12:00:00Z",
        "queued_at": "2026-11-22T12:00:00.1Z", "send_before": "2026-11-22T12:00:05+00:00",
    }  # fmt: skip


async def test_an_expired_token_is_renewed_once_for_all_calls_that_use_it(
    server: Supabase, plane: ControlPlane
) -> None:
    server.rpc["report_executions"] = lambda _: (200, ANSWER)
    await plane.report_executions([report()])
    server.valid.clear()
    await asyncio.gather(*(plane.report_executions([report()]) for _ in range(5)))
    assert len(server.called("refresh_token")) == 1
    assert server.calls[-1].token == "access-2"


async def test_a_token_that_is_refused_even_when_new_is_reported_as_such(server: Supabase, plane: ControlPlane) -> None:
    server.script("open_session", *[(401, {"message": "Invalid API key"})] * 2)
    with pytest.raises(Refused) as refused:
        await plane.open_session(ACCOUNT, 3)
    assert refused.value.status == 401


async def test_an_impatient_call_gives_up(server: Supabase, plane: ControlPlane, waits: Waits) -> None:
    server.script("open_session", *[(503, "down")] * 100)
    with pytest.raises(Unreachable):
        await plane.open_session(ACCOUNT, 3)
    assert 15 <= sum(waits) <= 20


async def test_a_server_that_is_gone_is_unreachable(waits: Waits) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with ControlPlane(settings_for(f"http://127.0.0.1:{port}"), DatabaseClock(), sleep=waits.sleep) as plane:
        with pytest.raises(Unreachable):
            await plane.open_session(ACCOUNT, 3)


async def test_calls_share_a_connection_that_is_kept(server: Supabase, plane: ControlPlane) -> None:
    server.rpc["report_executions"] = lambda _: (200, ANSWER)
    server.rpc["vps_heartbeat"] = lambda _: (200, heartbeat())
    for _ in range(10):
        await plane.report_executions([report()])
        await plane.heartbeat({}, Lease())
    assert len(server.peers) == 2, "one for accounts, one for heartbeats and tokens"


async def test_a_heartbeat_renews_the_lease(server: Supabase) -> None:
    lease = Lease()
    server.rpc["vps_heartbeat"] = lambda _: (200, heartbeat())
    async with ControlPlane(settings_for(server.url), DatabaseClock()) as plane:
        answer, rtt_ms = await plane.heartbeat({"accounts": []}, lease)
    assert answer.topic == "vps:1"
    assert rtt_ms > 0
    assert 0 < lease.remaining() <= 15


def stamps(ahead: timedelta = timedelta(0)) -> dict[str, str]:
    """Times of receipt and sending by a clock that is `ahead` of this machine's."""
    now = (datetime.now(UTC) + ahead).isoformat()
    return {"received_at": now, "sent_at": now}


CALLS: dict[str, tuple[Callable[[ControlPlane], Awaitable[object]], Callable[[], dict[str, object]]]] = {
    "vps_heartbeat": (lambda plane: plane.heartbeat({}, Lease()), lambda: heartbeat()),
    "queue_trade_copy": (lambda plane: plane.queue_trade_copy(ACCOUNT, 3, [snapshot()]), lambda: ANSWER),
    "report_executions": (lambda plane: plane.report_executions([report()]), lambda: ANSWER),
    "report_account_state": (lambda plane: plane.report_account_state({"account_id": ACCOUNT}), lambda: {"ok": True}),
    "open_session": (
        lambda plane: plane.open_session(ACCOUNT, 3),
        lambda: {"session": 1, "continues": None, "begins_at": "2026-11-22T12:00:00Z"},
    ),
    "account_credentials": (lambda plane: plane.credentials(ACCOUNT, 3), lambda: {"login": "1", "revision": 1}),
}


@pytest.mark.covers("R19")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("ahead", [timedelta(hours=1), -timedelta(hours=1)])
async def test_every_call_measures_the_clock(server: Supabase, name: str, ahead: timedelta) -> None:
    """An hour off, on either side."""
    clock = DatabaseClock()
    call, answer = CALLS[name]
    server.rpc[name] = lambda _: (200, answer() | stamps(ahead))
    async with ControlPlane(settings_for(server.url), clock) as plane:
        await call(plane)
    assert abs(clock.offset_ms - ahead / timedelta(milliseconds=1)) < 5_000


@pytest.mark.parametrize("stamp", [None, "soon", 7, "2026-11-22T12:00:00", "0001-01-01T00:00:00Z"])
async def test_an_answer_without_readable_times_measures_nothing_and_counts(server: Supabase, stamp: object) -> None:
    clock = DatabaseClock()
    times = {"received_at": stamp, "sent_at": stamp}
    server.rpc["report_executions"] = lambda _: (200, ANSWER | times)
    async with ControlPlane(settings_for(server.url), clock) as plane:
        assert (await plane.report_executions([report()])).results == ()
    assert clock.offset_ms == 0


async def test_a_refused_call_measures_nothing(server: Supabase) -> None:
    clock = DatabaseClock()
    server.rpc["open_session"] = lambda _: (400, {"code": "TC103", "message": "not yours"} | stamps(timedelta(hours=1)))
    async with ControlPlane(settings_for(server.url), clock) as plane:
        with pytest.raises(Refused):
            await plane.open_session(ACCOUNT, 3)
    assert clock.offset_ms == 0


async def test_a_slow_round_trip_does_not_move_the_clock(server: Supabase, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = DatabaseClock()
    ahead = iter([3600, 7200, 10800])
    server.rpc["vps_heartbeat"] = lambda _: (
        200,
        heartbeat(**stamps(timedelta(seconds=next(ahead)))),
    )
    async with ControlPlane(settings_for(server.url), clock) as plane:
        await plane.heartbeat({}, Lease())
        measured = clock.offset_ms
        monkeypatch.setattr(control_plane, "RTT_FORGET", 0)  # the best call took 0 ms
        monkeypatch.setattr(control_plane, "RTT_SLACK_MS", 0)
        await plane.heartbeat({}, Lease())
        assert clock.offset_ms == pytest.approx(measured, abs=60_000)
        monkeypatch.setattr(control_plane, "RTT_SLACK_MS", 60_000)
        await plane.heartbeat({}, Lease())
        assert clock.offset_ms > measured + 60_000


async def test_a_heartbeat_is_one_attempt(server: Supabase, plane: ControlPlane, waits: Waits) -> None:
    server.script("vps_heartbeat", (503, "down"))
    lease = Lease()
    with pytest.raises(Unreachable):
        await plane.heartbeat({}, lease)
    assert lease.remaining() == 0
    assert waits == []


async def test_an_assignment_that_cannot_be_read_does_not_count_as_removed(
    server: Supabase, plane: ControlPlane
) -> None:
    good = {
        "account_id": "a", "epoch": 1, "platform": "paper", "server": "s", "login": "1", "mode": "hedging",
        "currency": "USD", "revision": 1, "begins_at": "2026-11-22T12:00:00Z", "watch_symbols": ["EURUSD"],
    }  # fmt: skip
    server.rpc["vps_heartbeat"] = lambda _: (
        200,
        heartbeat(assignments=[good, {**good, "account_id": "b", "epoch": None}]),
    )
    answer, _ = await plane.heartbeat({}, Lease())
    assert [assignment.account_id for assignment in answer.assignments] == ["a"]
    assert answer.unreadable == {"b"}
    assert answer.complete


async def test_entries_that_cannot_be_read_name_their_accounts(server: Supabase, plane: ControlPlane) -> None:
    broken: list[object] = [
        {"account_id": "b", "id": "no number"},
        {"account_id": "c", "id": "5", "attempt": []},
        [],
        None,
    ]
    server.rpc["vps_heartbeat"] = lambda _: (200, heartbeat(assignments=["x", {"account_id": 5}], executions=broken))
    answer, _ = await plane.heartbeat({}, Lease())
    assert (answer.assignments, answer.executions) == ((), ())
    assert answer.unreadable == {"b", "c"}
    assert not answer.complete


@pytest.mark.parametrize("spoken", [{"protocol_version": 1}, {"protocol_version": None}])
async def test_an_older_database_gives_no_lease(
    server: Supabase, plane: ControlPlane, spoken: dict[str, object]
) -> None:
    lease = Lease()
    server.rpc["vps_heartbeat"] = lambda _: (200, heartbeat(**spoken))
    with pytest.raises(Refused) as refused:
        await plane.heartbeat({}, lease)
    assert (refused.value.code, lease.remaining()) == ("TC112", 0)
    assert "migrations" in str(refused.value)


async def test_a_newer_database_that_answers_is_accepted(server: Supabase, plane: ControlPlane) -> None:
    server.rpc["vps_heartbeat"] = lambda _: (200, heartbeat(protocol_version=7))
    lease = Lease()
    await plane.heartbeat({}, lease)
    assert lease.remaining() > 0
    assert server.called("vps_heartbeat")[0]["p_heartbeat"]["protocol_version"] == 2


def heartbeat(**changes: object) -> dict[str, object]:
    return {
        "protocol_version": 2, "answer_id": "7", "vps_id": "1", "name": "vps-a", "status": "online",
        "server_time": "2026-11-22T12:00:00Z", "lease_ms": 15000,
        "last_tick_at": None, "topic": "vps:1", "assignments": [], "executions": [], "cancel": ["12"], **changes,
    }  # fmt: skip


async def test_no_secret_is_printed(server: Supabase, plane: ControlPlane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server.rpc["account_credentials"] = lambda _: (
        200,
        {"login": "1", "server": "s", "password": "broker-pass", "settings": {}, "revision": 1},
    )
    server.script("account_credentials", (503, "down"))
    credentials = await plane.credentials(ACCOUNT, 3)
    assert credentials.password == "broker-pass"
    shown = f"{credentials!r} {plane.tokens!r} {settings_for(server.url)!r} {caplog.text}"
    for secret in ("broker-pass", "very-secret", "access-1", "refresh-1"):
        assert secret not in shown


async def test_a_retired_vps_cannot_sign_in(server: Supabase, plane: ControlPlane) -> None:
    server.script("/session", (403, {"code": "TC102", "message": "this VPS is retired"}))
    with pytest.raises(SignInRefused) as refused:
        await plane.tokens.access()
    assert refused.value.code == "TC102"
