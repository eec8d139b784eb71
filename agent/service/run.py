"""The composition root of an agent: `run_agent(settings)` builds and runs all parts, and stops them cleanly."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from agent import paths
from agent.broadcasts.broadcasts import RealTimeTradeEventSystem
from agent.broadcasts.handler_queue import Broadcast
from agent.clock import DatabaseClock, Lease
from agent.connection.connection import Parts
from agent.connection.connections import VPSConnectionManager
from agent.control_plane.client import ControlPlane
from agent.control_plane.decode import execution_ids, executions_of_broadcast
from agent.control_plane.json_fields import WireError
from agent.control_plane.retry import SignInRefused, Unreachable, backoff
from agent.control_plane.witness import Witness
from agent.execution.engine import TradeCopyEngine
from agent.failure import Failure
from agent.journal.journal import Journal, JournalBusy, JournalError
from agent.platforms.factory import PlatformFactory
from agent.service.fitness import FitnessWatch
from agent.service.heartbeat import HeartbeatLoop, Machine, agent_version
from agent.service.process_identity import AgentProcess
from agent.settings import Settings

log = logging.getLogger(__name__)

PRUNE_EVERY: Final = 3600


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of a running agent, for tests and benchmarks that embed one."""

    plane: ControlPlane
    engine: TradeCopyEngine
    connections: VPSConnectionManager
    events: RealTimeTradeEventSystem
    heartbeats: HeartbeatLoop
    journal: Journal
    fitness: FitnessWatch


#: an order waits for the journal's thread, which must not wait the interpreter's default 5 ms for the GIL
SWITCH_S = 0.0005


async def run_agent(
    settings: Settings, stop: asyncio.Event | None = None, started: "asyncio.Future[Running] | None" = None
) -> None:
    """Run an agent until SIGTERM, SIGINT or `stop`. `started` gets the parts once the first heartbeat was answered.

    Raises `Failure` when it cannot begin: its identity is refused, or its data directory cannot be used.
    """
    sys.setswitchinterval(SWITCH_S)
    stopping = stop or asyncio.Event()
    with _signals(stopping):
        async with _journal(settings) as journal:
            clock, lease, witness = DatabaseClock(), Lease(), Witness(journal, settings.url)
            async with ControlPlane(settings, clock, witness=witness) as plane:
                await _first_sign_in(plane, stopping)
                async with TradeCopyEngine(journal, plane, clock, lease, owners=plane.owners) as engine:
                    running = _compose(settings, plane, engine, journal, clock, lease, witness)
                    log.info(
                        "agent_started", extra={"version": agent_version(), "pid": os.getpid(), "url": settings.url}
                    )
                    await _work(running, settings, stopping, started)
    log.info("agent_stopped", extra={"pid": os.getpid()})


def _compose(
    settings: Settings,
    plane: ControlPlane,
    engine: TradeCopyEngine,
    journal: Journal,
    clock: DatabaseClock,
    lease: Lease,
    witness: Witness,
) -> Running:
    connections = VPSConnectionManager(
        Parts(plane=plane, engine=engine, journal=journal, clock=clock, create_adapter=PlatformFactory().create),
        on_change=lambda: heartbeats.beat_now(),
    )
    # Heartbeats and events need each other: the lambdas look up `heartbeats` only when called.
    events = RealTimeTradeEventSystem.to(
        settings.realtime_url, settings.publishable_key, plane.tokens, clock, catch_up=lambda: heartbeats.beat_now()
    )
    machine = Machine(settings.data_dir)
    fitness = FitnessWatch(journal, machine.free, on_change=lambda: heartbeats.beat_now())
    heartbeats = HeartbeatLoop(
        plane,
        engine,
        events,
        connections,
        lease=lease,
        clock=clock,
        machine=machine.figures,
        process=AgentProcess(settings.data_dir),
        unfit=fitness.unfit,
    )

    async def on_broadcast(message: Broadcast) -> None:
        _dispatch(message, engine, heartbeats, witness)

    def begin_anew() -> None:
        engine.begin_anew()
        connections.begin_anew()
        heartbeats.beat_now()

    witness.on_new_generation = begin_anew
    events.add_handler("engine", on_broadcast)
    return Running(plane, engine, connections, events, heartbeats, journal, fitness)


def _dispatch(message: Broadcast, engine: TradeCopyEngine, heartbeats: HeartbeatLoop, witness: Witness) -> None:
    """Process a broadcast. It carries the full order but is only a hint: for one that cannot be read, a heartbeat is
    requested (law 4.4)."""
    try:
        match message.event:
            case "executions":
                offered = executions_of_broadcast(message.payload)
                believed = witness.believable(offered)
                engine.submit(believed)
                if len(believed) < len(offered):
                    heartbeats.beat_now()
            case "cancel":
                engine.cancel(execution_ids(message.payload.get("ids")))
            case "assignments":
                heartbeats.beat_now()
            case other:
                log.warning("unknown_broadcast", extra={"broadcast": other})
    except WireError as error:
        log.error("malformed_broadcast", extra={"broadcast": message.event, "error": str(error)})
        heartbeats.beat_now()


async def _work(
    running: Running, settings: Settings, stopping: asyncio.Event, started: "asyncio.Future[Running] | None"
) -> None:
    """Run every part in one task group. On `stopping`: finish and report what is queued, disconnect, then end the
    other parts."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(running.plane.tokens.keep_fresh(), name="tokens"),
            group.create_task(running.connections.run(), name="connections"),
            group.create_task(running.heartbeats.run(), name="heartbeats"),
            group.create_task(_listen(running), name="events"),
            group.create_task(_upkeep(running.journal), name="upkeep"),
            group.create_task(running.fitness.run(), name="fitness"),
            group.create_task(_announce(running, started), name="announce"),
        ]
        await stopping.wait()
        log.info("agent_stopping", extra={"in_flight": running.engine.in_flight})
        if not await running.connections.drain(settings.drain_seconds):
            log.warning(
                "drain_cut_short", extra={"seconds": settings.drain_seconds, "in_flight": running.engine.in_flight}
            )
        for task in tasks:
            task.cancel()


async def _listen(running: Running) -> None:
    """Receive broadcasts. The topic's name comes with the first heartbeat."""
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
    """Wait until Supabase answers. A refused identity raises `Failure`."""
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
        fix = "free disk space, or give this user write permission there"
        raise paths.unwritable(f"the journal {settings.journal_file}", error, fix) from error
    try:
        yield journal
    finally:
        await journal.close()


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT request a clean stop; where the loop cannot watch signals (Windows) a handler wakes it."""
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
