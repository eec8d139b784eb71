"""The pace of heartbeats and the processing of answers, on a virtual clock."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.clock import DatabaseClock, Lease, boot_time
from agent.control_plane.decode import Heartbeat
from agent.control_plane.retry import Refused, Unreachable
from agent.model import AccountId, Assignment, ExecutionId, Offered
from agent.service.heartbeat import HealthSettings, HeartbeatLoop, Machine

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
EMPTY = Heartbeat(
    answer_id="7", vps_id="1", name="a", status="online", server_time=NOW, lease_ms=15_000, heartbeat_ms=2_000,
    last_tick_at=NOW, topic="vps:1", assignments=(), executions=(), cancel=(ExecutionId(9),),
    unreadable=frozenset({AccountId("b")}), resync=frozenset({AccountId("c")}),
)  # fmt: skip


class Agent:
    """Everything around the heartbeat: the database's answers, what is in flight, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.beats: list[float] = []
        self.figures: list[Mapping[str, object]] = []
        self.failures: list[Exception] = []
        self.answer = EMPTY
        self.in_flight = 0
        self.may_miss_broadcasts = False
        #: accounts that cannot be started, and the error that every answer causes
        self.not_taken: frozenset[AccountId] = frozenset()
        self.broken: Exception | None = None
        self.wanted: list[tuple[tuple[Assignment, ...], frozenset[AccountId]]] = []
        self.cancelled: list[ExecutionId] = []
        self.submitted = 0
        self.resynced: list[AccountId] = []
        self.told_accounts: list[dict[str, object]] = []
        self.ticks: list[datetime | None] = []
        self.lease = Lease()
        self.stop_at = 30.0
        self.asked_at: list[float] = []
        self.changes: dict[float, str] = {}
        self.loop = HeartbeatLoop(
            self,
            self,
            self,
            self,
            lease=self.lease,
            clock=DatabaseClock(),
            machine=lambda: {"cpu_percent": 1.0},
            wait=self.wait,
        )

    async def heartbeat(self, figures: Mapping[str, object], lease: Lease) -> tuple[Heartbeat, float]:
        self.beats.append(self.now)
        self.figures.append(figures)
        if self.failures:
            raise self.failures.pop(0)
        lease.renew(boot_time(), self.answer.lease_ms)
        return self.answer, 1.5

    def submit(self, executions: Iterable[Offered]) -> None:
        self.submitted += 1

    def cancel(self, ids: Iterable[ExecutionId]) -> None:
        self.cancelled += ids

    def check_ticks(self, last_tick_at: datetime | None, server_time: datetime) -> None:
        self.ticks.append(last_tick_at)

    def want(
        self, assignments: Iterable[Assignment], unreadable: frozenset[AccountId] = frozenset()
    ) -> frozenset[AccountId]:
        self.wanted.append((tuple(assignments), unreadable))
        if self.broken is not None:
            raise self.broken
        return self.not_taken

    def resync(self, account_ids: Iterable[AccountId]) -> None:
        self.resynced += account_ids

    def statuses_delivered(self, accounts: list[dict[str, object]]) -> None:
        self.told_accounts += accounts

    def statuses(self) -> list[dict[str, object]]:
        return [{"account_id": "a", "status": "connected"}]

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """A wait ends at once, unless the event is set or the test is over."""
        await asyncio.sleep(0)
        if event.is_set():
            return True
        self.now += seconds
        if change := self.changes.pop(self.now, None):
            exec_change(self, change)
        if self.now >= self.stop_at:
            raise asyncio.CancelledError
        return event.is_set()

    async def run(self, seconds: float) -> list[float]:
        self.stop_at = seconds
        with suppress(asyncio.CancelledError):
            await self.loop.run()
        return self.beats


def exec_change(agent: Agent, change: str) -> None:
    match change:
        case "trade":
            agent.in_flight = 1
        case "ask":
            agent.loop.beat_now()
            agent.loop.beat_now()
        case _:
            raise AssertionError(change)


@pytest.fixture
def agent() -> Agent:
    return Agent()


async def test_at_rest_it_beats_often_enough_to_find_an_open_in_time(agent: Agent) -> None:
    assert await agent.run(9) == [0, 2, 4, 6, 8]


async def test_the_database_says_how_often_to_beat(agent: Agent) -> None:
    agent.answer = replace(EMPTY, heartbeat_ms=3_500)
    assert await agent.run(8) == [0, 3.5, 7]


async def test_another_process_of_this_vps_ends_the_lease_at_once_and_the_accounts_when_it_is_sure(
    agent: Agent,
) -> None:
    agent.lease.renew(boot_time(), 15_000)
    other = Refused("vps_heartbeat", "another process works as this VPS", code="TC110")
    agent.failures = [other, other]
    await agent.run(1)
    assert agent.lease.remaining() == 0
    assert agent.wanted == []
    await agent.run(2)
    assert agent.wanted == [((), frozenset())]
    assert agent.beats == [0, 1]  # and then every half minute


async def test_a_heartbeat_that_a_gateway_delivered_twice_disconnects_nothing(agent: Agent) -> None:
    agent.failures = [Refused("vps_heartbeat", "another process works as this VPS", code="TC110")]
    await agent.run(2)
    assert agent.wanted == [((), frozenset({AccountId("b")}))]
    assert agent.lease.remaining() > 0


async def test_with_something_in_flight_it_beats_every_second(agent: Agent) -> None:
    agent.in_flight = 1
    assert await agent.run(4) == [0, 1, 2, 3]


async def test_while_broadcasts_may_be_missed_it_beats_every_second(agent: Agent) -> None:
    agent.may_miss_broadcasts = True
    assert await agent.run(4) == [0, 1, 2, 3]


async def test_a_trade_that_begins_during_a_rest_ends_the_rest(agent: Agent) -> None:
    agent.changes = {7.0: "trade"}
    assert await agent.run(9) == [0, 2, 4, 6, 7, 8]


async def test_two_requests_are_one_heartbeat_at_once(agent: Agent) -> None:
    agent.changes = {1.0: "ask"}
    assert await agent.run(6) == [0, 1, 3, 5]


async def test_during_an_outage_it_beats_every_second_but_never_faster(agent: Agent) -> None:
    agent.failures = [Unreachable("vps_heartbeat", "down") for _ in range(4)]
    agent.changes = {2.0: "ask"}
    assert (await agent.run(10))[:5] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fault", [OverflowError("date value out of range"), RecursionError("too deep"), KeyError("x")])
async def test_an_answer_that_makes_its_decoder_fail_does_not_end_the_loop(agent: Agent, fault: Exception) -> None:
    agent.failures = [fault]
    assert await agent.run(4) == [0, 1, 3]
    assert len(agent.wanted) == 2


async def test_the_answer_s_content_is_passed_on(agent: Agent) -> None:
    await agent.run(1)
    assert agent.wanted == [((), frozenset({AccountId("b")}))]
    assert agent.cancelled == [9]
    assert agent.submitted == 1
    assert agent.resynced == ["c"]
    assert agent.told_accounts == agent.statuses()
    assert agent.ticks == [NOW]
    assert agent.loop.answered.is_set()


async def test_it_reports_the_machine_the_offset_and_the_accounts(agent: Agent) -> None:
    await agent.run(3)
    first, second = agent.figures
    assert first["cpu_percent"] == 1.0
    assert first["accounts"] == [{"account_id": "a", "status": "connected"}]
    assert first["rtt_ms"] is None
    assert second["rtt_ms"] == 1.5
    assert second["offset_ms"] == 0.0


async def test_it_reports_what_makes_the_agent_unfit(agent: Agent) -> None:
    reasons = iter([None, "low_disk", None])
    agent.loop._unfit = lambda: next(reasons)
    for _ in range(3):
        await agent.loop.beat()
    assert [figures["unfit"] for figures in agent.figures] == [None, "low_disk", None]


async def test_a_lease_that_ends_is_logged_once(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    agent.answer = replace(EMPTY, lease_ms=0)
    agent.lease.renew(boot_time(), 60_000)
    await agent.loop.beat()
    agent.lease.revoke()
    for _ in range(3):
        await agent.loop.beat()
    assert [record.message for record in caplog.records if record.levelname == "CRITICAL"] == ["lease_over"]


async def test_each_heartbeat_names_the_last_answer_that_was_processed(agent: Agent) -> None:
    agent.not_taken = frozenset({AccountId("d")})
    await agent.loop.beat()
    agent.answer = replace(EMPTY, answer_id="8", unreadable=frozenset())
    agent.not_taken = frozenset()
    await agent.loop.beat()
    await agent.loop.beat()
    assert [(said["worked_through"], said["unreadable"]) for said in agent.figures] == [
        (None, []),
        ("7", ["b", "d"]),
        ("8", []),
    ]


async def test_an_answer_that_cannot_be_processed_is_not_named(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    await agent.loop.beat()
    agent.answer = replace(EMPTY, answer_id="8")
    agent.broken = RecursionError("too deep")
    await agent.loop.beat()
    await agent.loop.beat()
    assert [said["worked_through"] for said in agent.figures] == [None, "7", "7"]
    assert "answer_not_worked_through" in caplog.text
    agent.broken = None
    await agent.loop.beat()
    await agent.loop.beat()
    assert agent.figures[-1]["worked_through"] == "8"


async def test_an_answer_with_an_entry_without_account_is_not_named_and_releases_nothing(agent: Agent) -> None:
    agent.answer = replace(EMPTY, unreadable=frozenset())
    await agent.loop.beat()
    agent.answer = replace(EMPTY, answer_id="8", complete=False)
    await agent.loop.beat()
    await agent.loop.beat()
    assert agent.wanted[-1] == ((), frozenset({AccountId("a"), AccountId("b")})), "`a` is at work here"
    assert (agent.submitted, agent.cancelled[-1]) == (3, 9), "what can be read is worked"
    assert [(said["worked_through"], said["unreadable"]) for said in agent.figures] == [
        (None, []),
        ("7", []),
        ("7", []),
    ]
    agent.answer = replace(EMPTY, answer_id="9", unreadable=frozenset())
    await agent.loop.beat()
    await agent.loop.beat()
    assert (agent.wanted[-1], agent.figures[-1]["worked_through"]) == (((), frozenset()), "9")


async def test_after_an_outage_the_lease_is_requested_at_once(agent: Agent) -> None:
    """The first answer after it renews nothing: what was worked through is too old. The next heartbeat names this
    one."""
    agent.failures = []
    await agent.loop.beat()
    agent.answer = replace(EMPTY, lease_ms=0)
    assert (await agent.run(3))[1:] == [0, 0, 2]


@pytest.mark.parametrize("code", ["TC101", "TC102", "TC111", "TC112"])
async def test_a_retired_agent_stops_everything_and_beats_rarely(agent: Agent, code: str) -> None:
    agent.lease.renew(boot_time(), 60_000)
    agent.failures = [Refused("vps_heartbeat", "retired", code=code)] * 3
    assert await agent.run(100) == [0, 30, 60, 90, 92, 94, 96, 98]
    assert agent.wanted[:3] == [((), frozenset())] * 3


async def test_a_retired_agent_has_no_lease(agent: Agent) -> None:
    agent.lease.renew(boot_time(), 60_000)
    agent.failures = [Refused("vps_heartbeat", "retired", code="TC102")]
    await agent.loop.beat()
    assert agent.lease.remaining() == 0


async def test_another_refusal_does_not_take_the_accounts_away(agent: Agent) -> None:
    agent.failures = [Refused("vps_heartbeat", "bad field", code="TC001")]
    await agent.loop.beat()
    assert agent.wanted == []
    assert agent.told_accounts == []


def test_the_machines_figures_are_percentages_and_megabytes(tmp_path: Path) -> None:
    figures = Machine(tmp_path).figures()
    for name in ("cpu_percent", "memory_percent", "disk_percent"):
        value = figures[name]
        assert isinstance(value, float)
        assert 0 <= value <= 100
    assert figures["rss_mb"]
    assert Machine(tmp_path).free().memory_mb > 1
    assert Machine(tmp_path).free().disk_mb > 1
    assert HealthSettings().every == 2
