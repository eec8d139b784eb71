"""The composition root of an agent: `run_agent(settings)` runs everything until it is told to stop, and stops cleanly."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from agent.clock import DatabaseClock, Lease
from agent.connection import Parts
from agent.connections import VPSConnectionManager
from agent.control_plane import ControlPlane
from agent.engine import TradeCopyEngine
from agent.events import RealTimeTradeEventSystem
from agent.failure import Failure
from agent.health import HeartbeatLoop, Machine, agent_version
from agent.inbox import Broadcast
from agent.journal import Journal, JournalBusy, JournalError
from agent.json_fields import WireError
from agent.offers import execution_ids, executions
from agent.platforms.factory import PlatformFactory
from agent.process import AgentProcess
from agent.retry import SignInRefused, Unreachable, backoff
from agent.settings import Settings

log = logging.getLogger(__name__)

PRUNE_EVERY: Final = 3600


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of a running agent, for whoever embeds one."""

    plane: ControlPlane
    engine: TradeCopyEngine
    connections: VPSConnectionManager
    events: RealTimeTradeEventSystem
    heartbeats: HeartbeatLoop
    journal: Journal


#: an order waits for the journal's thread: that one must not wait the interpreter's usual 5 ms for its turn
SWITCH_S = 0.0005


async def run_agent(
    settings: Settings, stop: asyncio.Event | None = None, started: "asyncio.Future[Running] | None" = None
) -> None:
    """Run an agent until SIGTERM, SIGINT or `stop`. `started` gets the parts once the first heartbeat was answered.

    Raises `Failure` when it cannot even begin: refused identity, unusable data directory.
    """
    sys.setswitchinterval(SWITCH_S)
    stopping = stop or asyncio.Event()
    with _signals(stopping):
        async with _journal(settings) as journal:
            clock, lease = DatabaseClock(), Lease()
            async with ControlPlane(settings, clock) as plane:
                await _first_sign_in(plane, stopping)
                async with TradeCopyEngine(journal, plane, clock, lease) as engine:
                    running = _compose(settings, plane, engine, journal, clock, lease)
                    log.info("agent_started", extra={"version": agent_version(), "pid": os.getpid(), "url": settings.url})
                    await _work(running, settings, stopping, started)
    log.info("agent_stopped", extra={"pid": os.getpid()})


def _compose(
    settings: Settings, plane: ControlPlane, engine: TradeCopyEngine, journal: Journal, clock: DatabaseClock, lease: Lease
) -> Running:
    connections = VPSConnectionManager(
        Parts(plane=plane, engine=engine, journal=journal, clock=clock, create_adapter=PlatformFactory().create),
        on_news=lambda: heartbeats.beat_now(),
    )
    # The heartbeat needs the events' doubt and the events need a heartbeat to catch up: the later one is looked up when called.
    events = RealTimeTradeEventSystem.to(
        settings.realtime_url, settings.publishable_key, plane.tokens, clock, catch_up=lambda: heartbeats.beat_now()
    )
    heartbeats = HeartbeatLoop(
        plane,
        engine,
        events,
        connections,
        lease=lease,
        clock=clock,
        machine=Machine(settings.data_dir).figures,
        process=AgentProcess(settings.data_dir),
    )

    async def on_broadcast(message: Broadcast) -> None:
        _dispatch(message, engine, heartbeats)

    events.add_handler("engine", on_broadcast)
    return Running(plane, engine, connections, events, heartbeats, journal)


def _dispatch(message: Broadcast, engine: TradeCopyEngine, heartbeats: HeartbeatLoop) -> None:
    """A broadcast is a doorbell with the order in its hand; what cannot be read the next heartbeat brings."""
    try:
        match message.event:
            case "executions":
                engine.submit(executions(message.payload.get("executions")))
            case "cancel":
                engine.cancel(execution_ids(message.payload.get("ids")))
            case "assignments":
                heartbeats.beat_now()
            case other:
                log.warning("unknown_broadcast", extra={"broadcast": other})
    except WireError as error:
        log.error("malformed_broadcast", extra={"broadcast": message.event, "error": str(error)})
        heartbeats.beat_now()


async def _work(running: Running, settings: Settings, stopping: asyncio.Event, started: "asyncio.Future[Running] | None") -> None:
    """Everything in one task group; when told to stop: finish and report what is queued, disconnect, then end the rest."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(running.plane.tokens.keep_fresh(), name="tokens"),
            group.create_task(running.connections.run(), name="connections"),
            group.create_task(running.heartbeats.run(), name="heartbeats"),
            group.create_task(_listen(running), name="events"),
            group.create_task(_upkeep(running.journal), name="upkeep"),
            group.create_task(_announce(running, started), name="announce"),
        ]
        await stopping.wait()
        log.info("agent_stopping", extra={"in_flight": running.engine.in_flight})
        if not await running.connections.drain(settings.drain_seconds):
            log.warning("drain_cut_short", extra={"seconds": settings.drain_seconds, "in_flight": running.engine.in_flight})
        for task in tasks:
            task.cancel()


async def _listen(running: Running) -> None:
    """The topic's name comes with the first heartbeat."""
    await running.heartbeats.answered.wait()
    answer = running.heartbeats.answer
    assert answer is not None, "answered is set after answer"
    await running.events.run(answer.topic)


async def _announce(running: Running, started: "asyncio.Future[Running] | None") -> None:
    if started is not None:
        await running.heartbeats.answered.wait()
        if not started.done():
            started.set_result(running)


async def _upkeep(journal: Journal) -> None:
    while True:
        await asyncio.sleep(PRUNE_EVERY)
        try:
            await journal.prune()
        except JournalError as error:
            log.error("journal_prune_failed", extra={"error": str(error)})


async def _first_sign_in(plane: ControlPlane, stopping: asyncio.Event) -> None:
    """Wait for Supabase as long as it takes; a refused identity ends the agent with a readable line."""
    for wait in backoff(0.5, 15):
        try:
            await plane.tokens.access()
            return
        except SignInRefused as error:
            raise Failure(
                f"Supabase refused the identity of this agent ({error.message})",
                "enrol this VPS again: `tradecopier agent enroll --url U --token T`",
                code="TC612",
            ) from error
        except Unreachable as error:
            log.warning("waiting_for_supabase", extra={"error": str(error), "wait_ms": round(wait * 1000)})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await stopping.wait()
                return


@contextlib.asynccontextmanager
async def _journal(settings: Settings) -> AsyncIterator[Journal]:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = await Journal.open(settings.journal_file)
    except JournalBusy as error:
        raise Failure(
            f"another agent already runs with the data directory {settings.data_dir}",
            "stop it first, or give this one its own TRADECOPIER_DATA_DIR",
            code="TC613",
        ) from error
    except (JournalError, OSError) as error:
        raise Failure(
            f"the journal {settings.journal_file} cannot be written ({error})",
            "free some disk, or give this user the right to write there",
            code="TC614",
        ) from error
    try:
        yield journal
    finally:
        await journal.close()


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a clean stop; where the loop cannot watch signals (Windows) a handler wakes it."""
    loop = asyncio.get_running_loop()
    watched = [signal.SIGINT, signal.SIGTERM]
    try:
        for number in watched:
            loop.add_signal_handler(number, stopping.set)
    except (NotImplementedError, RuntimeError, ValueError):
        with contextlib.suppress(ValueError):
            for number in watched:
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopping.set))
        yield
        return
    try:
        yield
    finally:
        for number in watched:
            loop.remove_signal_handler(number)
