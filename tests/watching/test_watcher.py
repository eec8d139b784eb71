"""The laws of watching: pushes are reported at once, reads must be plausible, absence needs evidence."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pytest
from engine_harness import ACCOUNT, Desk, FakeDatabase, eventually, execution, position, running_lease
from watcher_harness import QUICK, Scene, stage

from agent.clock import DatabaseClock, boot_time
from agent.control_plane.contract import BackboneRefused
from agent.execution.engine import TradeCopyEngine
from agent.model import ExecutionId, Ticket
from agent.platforms.adapter import AccountChanged, AdapterError
from agent.watching import event_outbox as outbox


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """An account that holds one position; its snapshot is reported."""
    desk = Desk()
    desk.put(position("1"))
    async with stage(tmp_path) as open_scene:
        yield await open_scene(desk)


async def begin_read(scene: Scene) -> asyncio.Event:
    """A read that has begun and ends only when the event is set."""
    scene.desk.read_gate = asyncio.Event()
    before = scene.session.seq._last
    scene.watcher.resync()
    await eventually(lambda: scene.session.seq._last > before)
    return scene.desk.read_gate


# -- pushes ---------------------------------------------------------------------------------------------------


async def test_the_first_event_of_a_session_is_a_snapshot_of_everything(scene: Scene) -> None:
    (snapshot,) = scene.database.events
    assert snapshot.type == "snapshot"
    assert [each.ticket for each in snapshot.positions] == ["1"]
    assert snapshot.unchanged_at is None


async def test_every_change_is_named_by_comparison_with_what_was_known(scene: Scene) -> None:
    held = position("2")
    changes = [
        held,
        replace(held, lots=Decimal("2.00"), price=Decimal("1.2")),
        replace(held, lots=Decimal("0.50")),
        replace(held, lots=Decimal("0.50"), sl=Decimal("1.0")),
        replace(held, lots=Decimal(0)),
        position("3", kind="order", order_type="limit"),
        position("3", kind="order", order_type="limit", price=Decimal("1.05")),
        position("3", kind="order", order_type="limit", lots="0"),
    ]
    for change in changes:
        scene.desk.put(change)
    events = await scene.told(1 + len(changes))
    assert [event.type for event in events[1:]] == [
        "opened", "increased", "reduced", "modified", "closed", "ordered", "amended", "cancelled",
    ]  # fmt: skip
    assert [event.evidence for event in events if event.type in ("closed", "cancelled")] == ["deal", "deal"]
    assert [event.seq for event in events] == sorted({event.seq for event in events})


async def test_a_flip_of_a_netting_position_is_reported_as_reduced_with_the_new_side(scene: Scene) -> None:
    scene.desk.put(position("1", side="sell", lots="3.00"))
    events = await scene.told(2)
    assert events[1].type == "reduced"
    assert events[1].position is not None
    assert (events[1].position.side, events[1].position.lots) == ("sell", Decimal("3.00"))


async def test_a_filled_order_is_an_opened_position_that_continues_it(scene: Scene) -> None:
    scene.desk.put(position("7", kind="order", order_type="limit"))
    await scene.told(2)
    scene.desk.held.pop(Ticket("7"))
    scene.desk.put(position("8", replaces="7"))
    events = await scene.told(3)
    await scene.reads(4)
    assert scene.database.types() == ["snapshot", "ordered", "opened"]
    assert events[2].position is not None
    assert events[2].position.replaces == "7"


async def test_a_push_of_a_known_state_is_no_event(scene: Scene) -> None:
    scene.desk.put(position("1", comment="only a comment"))
    scene.desk.put(position("2"))
    events = await scene.told(2)
    assert [event.type for event in events] == ["snapshot", "opened"]


@pytest.mark.covers("R19")
async def test_adapter_times_are_reported_on_the_database_clock(tmp_path: Path) -> None:
    desk = Desk()
    async with stage(tmp_path) as open_scene:
        scene = await open_scene(desk)
        ahead = datetime.now(UTC) + timedelta(hours=1)
        scene.watcher._clock.measure(boot_time(), ahead, ahead, boot_time())
        desk.put(position("1"))
        event = (await scene.told(2))[1]
        assert event.detected_at > ahead - timedelta(seconds=1)
        assert event.unchanged_at is not None
        assert event.unchanged_at <= event.detected_at


# -- reads ----------------------------------------------------------------------------------------------------


async def test_an_empty_read_closes_nothing(scene: Scene) -> None:
    scene.desk.reads.extend(["empty", "empty"])
    await scene.reads(6)
    assert scene.database.types() == ["snapshot"]


async def test_a_failed_read_proves_nothing(scene: Scene) -> None:
    scene.desk.reads.extend(["error"] * 5)
    await scene.reads(6)
    assert scene.database.types() == ["snapshot"]


async def test_an_account_that_cannot_be_read_for_long_is_degraded_until_it_can(tmp_path: Path) -> None:
    desk = Desk()
    desk.put(position("1"))
    async with stage(tmp_path) as open_scene:
        scene = await open_scene(desk, settings=replace(QUICK, unread_after=timedelta(milliseconds=50)))
        desk.reads.extend(["error"] * 10_000)
        scene.watcher.resync()
        await eventually(lambda: scene.session.health()[0] == "degraded")
        _, why = scene.session.health()
        assert why is not None
        assert why.startswith("positions_unread: what the account holds could not be read")
        desk.reads.clear()
        await eventually(lambda: scene.session.health() == ("connected", None))


async def test_an_old_book_does_not_undo_a_reduction(scene: Scene) -> None:
    scene.desk.put(position("1", lots="0.40"))
    await scene.told(2)
    scene.desk.reads.extend(["stale", "stale"])
    await scene.reads(6)
    assert scene.database.types() == ["snapshot", "reduced"]


async def test_an_old_book_does_not_bring_a_closed_position_back(scene: Scene) -> None:
    scene.desk.put(position("1", lots="0"))
    await scene.told(2)
    scene.desk.reads.extend(["stale", "stale"])
    await scene.reads(6)
    assert scene.database.types() == ["snapshot", "closed"]


async def test_an_empty_read_is_not_believed_while_margin_is_in_use(scene: Scene) -> None:
    scene.desk.margin = Decimal(100)
    scene.desk.reads.extend(["empty"] * 8)
    await scene.reads(9)
    assert scene.database.types() == ["snapshot"]


@pytest.mark.covers("R7")
async def test_another_account_in_the_terminal_closes_and_opens_nothing(scene: Scene) -> None:
    scene.desk.login = "another one"
    scene.desk.put(position("1", lots="0"), push=False)
    scene.desk.put(position("77"), push=False)
    scene.watcher.resync()
    with pytest.raises(AccountChanged, match="another account"):
        await scene.running
    assert scene.database.types() == ["snapshot"]


async def test_another_account_at_the_first_read_is_no_snapshot(tmp_path: Path) -> None:
    desk = Desk()
    desk.put(position("1"))
    async with stage(tmp_path) as opened:
        desk.read_gate = asyncio.Event()
        scene = await opened(desk, ready=False)
        desk.login = "another one"
        desk.read_gate.set()
        with pytest.raises(AccountChanged):
            await scene.running
        assert scene.database.events == []


async def test_a_position_that_good_reads_lack_is_closed_with_that_evidence(scene: Scene) -> None:
    scene.desk.put(position("2"))
    await scene.told(2)
    scene.desk.put(position("1", lots="0"), push=False)
    await scene.reads(4)
    events = await scene.told(3)
    assert (events[2].type, events[2].evidence) == ("closed", "snapshots")
    assert events[2].position is not None
    assert events[2].position == position("1", lots="0")


async def test_a_vanished_ticket_without_a_closing_deal_waits_for_reads(scene: Scene) -> None:
    scene.adapter.push(position("1", lots="0"), None)
    await scene.reads(5)
    assert scene.database.types() == ["snapshot"]


async def test_after_a_gap_everything_is_read_and_new_tickets_are_reported_at_once(scene: Scene) -> None:
    before = datetime.now(UTC)
    scene.desk.put(position("2"), push=False)
    scene.adapter.resync()
    events = await scene.told(2)
    assert events[1].type == "opened"
    assert events[1].unchanged_at is not None
    assert events[1].unchanged_at < before


async def test_the_account_is_read_periodically(tmp_path: Path) -> None:
    desk = Desk()
    desk.put(position("1"))
    async with stage(tmp_path) as open_scene:
        scene = await open_scene(desk, settings=replace(QUICK, verify_every=timedelta(milliseconds=20)))
        desk.put(position("1", sl=Decimal("1.0")), push=False)
        events = await scene.told(2)
        assert events[1].type == "modified"
        await eventually(lambda: scene.journal.last_seen(ACCOUNT))


async def test_a_resync_reports_the_whole_state_even_if_nothing_differs(scene: Scene) -> None:
    scene.watcher.resync()
    events = await scene.told(2)
    assert [event.type for event in events] == ["snapshot", "snapshot"]
    assert events[1].unchanged_at is not None


async def test_after_a_restart_a_read_that_lacks_what_was_last_seen_must_be_confirmed(tmp_path: Path) -> None:
    desk = Desk()
    desk.put(position("1"))
    desk.put(position("2"))
    async with stage(tmp_path) as open_scene:
        first = await open_scene(desk, settings=replace(QUICK, verify_every=timedelta(milliseconds=10)))
        await eventually(lambda: first.journal.last_seen(ACCOUNT))
        first.running.cancel()
        await asyncio.gather(first.running, return_exceptions=True)  # a read that is in flight may still be recorded
        seen = first.journal.last_seen(ACCOUNT)
        desk.reads.extend(["empty", "empty"])
        second = await open_scene(desk, number=2)
        (snapshot,) = second.database.events
        assert [each.ticket for each in snapshot.positions] == ["1", "2"]
        assert seen is not None
        assert snapshot.unchanged_at == seen.at


# -- our own orders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pushed_first", [True, False])
async def test_our_own_order_is_reported_once_and_is_no_event(pushed_first: bool, tmp_path: Path) -> None:
    desk = Desk(pushes_own=pushed_first)
    async with stage(tmp_path) as open_scene:
        scene = await open_scene(desk, settings=replace(QUICK, hold_limit=timedelta(seconds=10)))
        async with TradeCopyEngine(scene.journal, scene.database, DatabaseClock(), running_lease()) as engine:
            await engine.attach(scene.session)
            gate = desk.gates[1] = asyncio.Event()
            engine.submit([execution(1)])
            await eventually(lambda: desk.tags)
            gate.set()
            await eventually(lambda: scene.database.outcome(1) == "completed")
            desk.put(desk.held[Ticket("T1")])
            await scene.reads(4)
            assert scene.database.types() == ["snapshot"]
            desk.put(replace(desk.held[Ticket("T1")], lots=Decimal("0.20")))
            events = await scene.told(2)
            assert events[1].type == "reduced"


async def test_a_read_that_hangs_does_not_delay_what_is_pushed(scene: Scene) -> None:
    await begin_read(scene)
    scene.desk.put(position("2"))
    scene.desk.put(position("1", lots="0"))
    await scene.told(3)
    assert scene.database.types() == ["snapshot", "opened", "closed"]


async def test_a_read_overtaken_by_a_push_does_not_undo_it(scene: Scene) -> None:
    scene.desk.reads.append("stale")
    (gate := await begin_read(scene))
    scene.desk.put(position("1", lots="0"))
    await scene.told(2)
    gate.set()
    events = await scene.told(3)
    assert scene.database.types() == ["snapshot", "closed", "snapshot"]
    assert events[-1].positions == ()
    assert [event.seq for event in events] == sorted(event.seq for event in events)


async def test_a_close_by_hand_that_an_answer_to_our_own_order_overtook_is_reported_at_once(scene: Scene) -> None:
    scene.adapter.push(position("1", lots="0"), "deal")
    answered = scene.session.take_seq()
    scene.session.note([position("1", sl=Decimal("1.0"))], answered)
    events = await scene.told(2)
    assert (events[1].type, events[1].evidence) == ("closed", "deal")
    assert events[1].seq > answered


async def test_a_held_change_is_reported_when_the_report_does_not_come_in_time(tmp_path: Path) -> None:
    desk = Desk(pushes_own=True)
    async with stage(tmp_path) as open_scene:
        scene = await open_scene(desk)
        async with TradeCopyEngine(scene.journal, scene.database, DatabaseClock(), running_lease()) as engine:
            await engine.attach(scene.session)
            desk.gates[1] = asyncio.Event()
            engine.submit([execution(1)])
            events = await scene.told(2)
            assert events[1].type == "opened"
            assert events[1].position is not None
            assert events[1].position.tag == ExecutionId(1)


# -- delivery -----------------------------------------------------------------------------------------------------


async def test_what_happens_during_a_call_goes_with_the_next_one(scene: Scene) -> None:
    scene.database.hold_events = asyncio.Event()
    scene.desk.put(position("2"))
    await eventually(lambda: scene.watcher._outbox.delivery.sending)
    for ticket in ("3", "4", "5"):
        scene.desk.put(position(ticket))
    await eventually(lambda: len(scene.watcher._outbox.delivery.waiting) == 3)
    scene.database.hold_events.set()
    await scene.told(5)
    assert scene.database.calls == [1, 1, 3]


async def test_a_trailing_stop_sends_only_its_last_state_but_no_partial_close_is_merged(scene: Scene) -> None:
    scene.database.hold_events = asyncio.Event()
    scene.desk.put(position("2"))
    await eventually(lambda: scene.watcher._outbox.delivery.sending)
    for step in range(20):
        scene.desk.put(position("1", sl=Decimal(1) + Decimal(step) / 1000))
    scene.desk.put(position("1", lots="0.80", sl=Decimal("1.019")))
    scene.desk.put(position("1", lots="0.60", sl=Decimal("1.019")))
    scene.desk.put(position("1", lots="0.60", sl=Decimal("1.02")))
    await eventually(lambda: len(scene.watcher._outbox.delivery.waiting) == 4)
    scene.database.hold_events.set()
    events = await scene.told(6)
    assert [event.type for event in events[2:]] == ["modified", "reduced", "reduced", "modified"]
    assert events[2].position is not None
    assert events[2].position.sl == Decimal("1.019")


async def test_events_of_a_lost_session_follow_the_first_snapshot_of_the_next(tmp_path: Path) -> None:
    desk = Desk()
    desk.put(position("1"))
    async with stage(tmp_path) as open_scene:
        first = await open_scene(desk)
        first.database.hold_events = asyncio.Event()
        desk.put(position("2"))
        await eventually(lambda: first.watcher._outbox.delivery.sending)
        first.adapter.lose()
        with pytest.raises(AdapterError, match="lost"):
            await first.running
        second = await open_scene(desk, number=2)
        events = await second.told(2)
        assert [(event.session, event.type) for event in events] == [(2, "snapshot"), (1, "opened")]
        await eventually(lambda: second.watcher._outbox.idle)
        assert await second.journal.undelivered_events(ACCOUNT, 3) == []


async def test_a_malformed_event_does_not_hold_up_its_batch(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.database.hold_events = asyncio.Event()
    scene.desk.put(position("2"))
    await eventually(lambda: scene.watcher._outbox.delivery.sending)
    for ticket in range(3, 10):
        scene.desk.put(position(str(ticket)))
    await eventually(lambda: len(scene.watcher._outbox.delivery.waiting) == 7)
    scene.database.poison = {sorted(event.seq for event in scene.watcher._outbox.delivery.waiting)[3]}
    scene.database.hold_events.set()
    events = await scene.told(8)
    assert len({event.seq for event in events}) == 8
    await eventually(lambda: "event_refused" in caplog.text)


@pytest.mark.covers("R25")
async def test_what_a_refused_close_said_is_told_by_a_snapshot_without_texts(scene: Scene) -> None:
    scene.desk.put(replace(position("2"), comment="a text"))
    scene.desk.put(replace(position("3"), comment="a text"))
    await scene.told(3)
    scene.database.refuse_events.append(BackboneRefused("22P05", "unsupported Unicode escape sequence"))
    scene.desk.put(position("2", lots="0"))
    await eventually(lambda: scene.database.types().count("snapshot") >= 2)
    snapshot = next(event for event in reversed(scene.database.events) if event.type == "snapshot")
    assert {held.ticket: held.comment for held in snapshot.positions} == {"1": "", "3": ""}
    await eventually(lambda: scene.session.health() == ("connected", None))


async def test_a_single_event_that_is_refused_makes_the_account_be_read_again(scene: Scene) -> None:
    scene.desk.put(position("2"))
    await scene.told(2)
    scene.database.refuse_types = {"closed"}
    scene.desk.put(position("2", lots="0"))
    await eventually(lambda: scene.database.types().count("snapshot") >= 2)
    snapshot = next(event for event in reversed(scene.database.events) if event.type == "snapshot")
    assert [held.ticket for held in snapshot.positions] == ["1"]


async def test_events_are_sent_in_batches_that_the_database_can_process(scene: Scene) -> None:
    scene.database.bears = 4
    scene.database.hold_events = asyncio.Event()
    scene.desk.put(position("2"))
    await eventually(lambda: scene.watcher._outbox.delivery.sending)
    for number in range(3, 33):
        scene.desk.put(position(str(number)))
    await eventually(lambda: len(scene.watcher._outbox.delivery.waiting) == 30)
    scene.database.hold_events.set()
    events = await scene.told(32)
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert max(scene.database.calls) <= 4


@pytest.mark.parametrize("refusal", ["refused", "kept"])
async def test_a_first_snapshot_that_is_refused_degrades_the_account_and_is_tried_again(
    tmp_path: Path, refusal: Literal["refused", "kept"]
) -> None:
    database = FakeDatabase(refuse_types={"snapshot"}, refusal=refusal)
    async with stage(tmp_path) as opened:
        scene = await opened(
            Desk(), database=database, ready=False, settings=replace(QUICK, retry_after=timedelta(milliseconds=20))
        )
        await eventually(lambda: scene.database.types().count("snapshot") >= 3)
        status, error = scene.session.health()
        assert status == "degraded"
        assert error is not None
        assert error.startswith("snapshot_refused: ")
        assert "position.lots" in error
        database.refuse_types.clear()
        await scene.watcher.ready()
        assert scene.session.health() == ("connected", None)


async def test_a_refused_account_ends_the_watch_and_says_so(scene: Scene) -> None:
    scene.database.refuse_events.append(BackboneRefused("TC103", "not yours"))
    scene.desk.put(position("2"))
    async with asyncio.timeout(5):
        await scene.running
    assert scene.refusals == [(ACCOUNT, "TC103")]


async def test_a_lease_that_ended_in_an_outage_does_not_end_the_session(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LEASE_RETRY_AFTER", 0.01)
    scene.database.refuse_events.append(BackboneRefused("TC104", "the lease is over"))
    scene.desk.put(position("2"))
    await scene.told(2)
    assert scene.database.types() == ["snapshot", "opened"]
    assert scene.refusals == []


async def test_a_lost_connection_ends_the_watch_with_its_cause(scene: Scene) -> None:
    scene.adapter.lose()
    with pytest.raises(AdapterError, match="the connection is lost"):
        async with asyncio.timeout(5):
            await scene.running
