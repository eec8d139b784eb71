"""`bench queue`: jobs queued and completed per second in Postgres, the product's own functions against two known queues.

What is compared: the same number of jobs, in batches of the same size, over the same number of connections, on the same server,
in the same run, in rounds that take turns (each round begins with another contender). Each contender is one Python process,
and each connection has a queue of its own. A job is enqueued, fetched (claimed) and finished; after each round the database is
asked whether exactly that many were. Everybody is called below its worker, through its own data access, in bulk where it offers
that: procrastinate defers in bulk but fetches and finishes one by one; pgqueuer does all three in bulk; the product plans one
event for all its followers and takes reports in bulk. The peers run on uvloop, pgqueuer on asyncpg too; the product on plain
asyncio and psycopg.

What is not: for the peers a job is a row that nobody looks into. For the product the same calls also store the event, size every
copy, keep links and mirrors of positions, explain every decision and check every report, under locks that keep a trade from being
copied twice; with the peers that would be the job's own work, and is left out. On the other side, a peer takes any job at any
moment, while the product's jobs come many at a time, one for each follower of one event: with one follower its figures are
lower, and `--batch 1` shows it. Workers, listening, retries and a long history are left out for everybody; no Realtime server
reads the broadcasts. After the warm-up every database is vacuumed and analysed once, as autovacuum would do within a minute. The
server flushes nothing to disk (as in every benchmark here), which favours who commits most: procrastinate.

`tradecopier_beside` has followers on their master's VPS, `tradecopier_apart` on another one, see `agent.bench.contest.product`.
"""

import asyncio
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from agent.bench.contest.turns import STAGES
from agent.bench.histogram import describe
from agent.bench.lanes import COMPLETED, RENEW, make_lanes
from agent.bench.machine import machine_facts
from agent.bench.peers import peer_python
from agent.failure import Failure
from agent.local.database import Database
from agent.local.lodging import remove_folder
from agent.local.postgres import PostgresServer
from agent.local.schema import project_root

PRODUCT: Final = "agent.bench.contest.product"
TURN_S: Final = 300.0
PAYLOAD: Final = {
    "id": "123", "attempt": 1, "account_id": "00000000-0000-0000-0000-000000000000", "epoch": 1, "link_id": "77", "lane": "77",
    "step_id": "123", "after_id": None, "action": "open", "priority": 40, "symbol": "EURUSD", "side": "buy",
    "order_type": "market", "lots": "0.10", "target_lots": None, "ticket": None, "price": None, "sl": None, "tp": None,
    "max_slippage_points": None, "master_price": "1.10000", "expires_at": None, "comment": "", "investigate": False,
    "detected_at": "2026-01-31T12:00:00Z", "queued_at": "2026-01-31T12:00:00Z", "send_before": "2026-01-31T12:00:05Z",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """`jobs` per round and contender, rounded up to whole batches on every connection."""

    jobs: int
    rounds: int
    connections: int
    batch: int

    @property
    def steps(self) -> int:
        """Batches of each connection in a round."""
        return max(1, -(-self.jobs // (self.connections * self.batch)))

    @property
    def jobs_per_round(self) -> int:
        return self.steps * self.connections * self.batch


@dataclass(frozen=True, slots=True)
class Queue:
    """A contender: where its program is, and how its database counts what is completed."""

    name: str
    module: str
    python: Path
    database: str
    completed: str
    lanes: Sequence[Mapping[str, object]] = ()


@dataclass(slots=True)
class Player:
    """A contender's running process."""

    queue: Queue
    server: PostgresServer
    process: asyncio.subprocess.Process
    versions: Mapping[str, str] = field(default_factory=dict)
    #: jobs per second, round by round
    rates: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    async def ask(self, line: str) -> dict[str, object]:
        """Send one line, wait for the answer. Raises `Failure` (TC662)."""
        reader, writer = self.process.stdout, self.process.stdin
        assert reader is not None
        assert writer is not None
        with contextlib.suppress(ConnectionError):
            writer.write(line.encode() + b"\n")
            await writer.drain()
        try:
            answer = await asyncio.wait_for(reader.readline(), TURN_S)
        except TimeoutError:
            answer = b""
        if not answer:
            raise Failure(f"{self.queue.name} broke off", "its own words stand above", code="TC662")
        found: dict[str, object] = json.loads(answer)
        return found

    def completed(self) -> int:
        with psycopg.connect(self.server.dsn(self.queue.database), autocommit=True) as connection:
            if self.queue.module == PRODUCT:
                connection.execute(RENEW)
            row = connection.execute(self.queue.completed.encode()).fetchone()
        return 0 if row is None else int(row[0])

    def analyze(self) -> None:
        """What autovacuum does within a minute: let the planner of Postgres know tables that are no longer empty."""
        with psycopg.connect(self.server.dsn(self.queue.database), autocommit=True) as connection:
            connection.execute("vacuum (analyze)")

    async def turn(self, contest: Contest, *, counts: bool) -> None:
        """One round; what was really completed is asked of the database. `counts`: False for the warm-up."""
        before = await asyncio.to_thread(self.completed)
        result = await self.ask(str(contest.steps))
        done = await asyncio.to_thread(self.completed) - before
        if done != contest.jobs_per_round or result["jobs"] != done:
            raise Failure(
                f"{self.queue.name}: {contest.jobs_per_round} jobs were queued, it says {result['jobs']} were finished, "
                f"its database says {done}",
                "the benchmark is void; report it",
                code="TC660",
            )
        if not counts:
            return
        self.rates.append(done / float(str(result["seconds"])))
        stages = result["stages_ms"]
        assert isinstance(stages, dict)
        for stage, times in stages.items():
            self.stages_ms[stage].extend(times)


async def queue_figures(contest: Contest, say: Callable[[str], None]) -> dict[str, object]:
    """Run the contest on an embedded Postgres of its own. Raises `Failure` (TC660–TC662)."""
    python = await asyncio.to_thread(peer_python)
    folder = Path(tempfile.mkdtemp(prefix="tradecopier-bench-"))
    await asyncio.to_thread(folder.chmod, 0o711)  # Postgres may run as another user
    server = PostgresServer(folder, durable=False)
    try:
        say("starting Postgres")
        await asyncio.to_thread(server.start)
        say("making accounts and queues")
        queues = await asyncio.to_thread(_prepare, server, contest, python)
        about = machine_facts(await asyncio.to_thread(_server_version, server))
        async with _players(server, queues, contest) as players:
            await _play(players, contest, say)
            return {"benchmark": "queue", **_summary(players, contest), "machine": about}
    finally:
        await asyncio.to_thread(server.stop)
        remove_folder(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(server: PostgresServer, contest: Contest, python: Path) -> list[Queue]:
    template = Database.prepared(server, "bench_template", project_root())
    own = Path(sys.executable)
    queues = []
    for name, apart in (("tradecopier_beside", False), ("tradecopier_apart", True)):
        database = Database.create(server, name, template)
        with database.connect() as connection:
            lanes = make_lanes(connection, name, contest.connections, contest.batch, apart=apart)
        queues.append(Queue(name, PRODUCT, own, name, COMPLETED, lanes))
    done = "select count(*) from procrastinate_jobs where status = 'succeeded'"
    queues.append(Queue("procrastinate", "agent.bench.contest.procrastinate_peer", python, "bench_procrastinate", done))
    done = "select count(*) from pgqueuer_log where status = 'successful'"
    queues.append(Queue("pgqueuer", "agent.bench.contest.pgqueuer_peer", python, "bench_pgqueuer", done))
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for queue in queues[2:]:
            admin.execute(sql.SQL("create database {} template template0").format(sql.Identifier(queue.database)))
    return queues


def _server_version(server: PostgresServer) -> str:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        return str(connection.info.parameter_status("server_version"))


@contextlib.asynccontextmanager
async def _players(server: PostgresServer, queues: Sequence[Queue], contest: Contest) -> AsyncIterator[list[Player]]:
    players: list[Player] = []
    try:
        for queue in queues:
            process = await asyncio.create_subprocess_exec(
                queue.python, "-m", queue.module, cwd=project_root(), limit=2**26,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            player = Player(queue, server, process)
            players.append(player)
            terms = {
                "dsn": server.dsn(queue.database), "connections": contest.connections, "batch": contest.batch,
                "payload": PAYLOAD, "lanes": list(queue.lanes),
            }  # fmt: skip
            versions = (await player.ask(json.dumps(terms)))["versions"]
            assert isinstance(versions, dict)
            player.versions = versions
        yield players
    finally:
        for player in players:
            await _end(player.process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """A contender ends with its standard input."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _play(players: Sequence[Player], contest: Contest, say: Callable[[str], None]) -> None:
    for number in range(contest.rounds + 1):
        say(f"round {number} of {contest.rounds}" if number else "warming up")
        first = number % len(players)
        for player in [*players[first:], *players[:first]]:
            await player.turn(contest, counts=number > 0)
            if number == 0:
                await asyncio.to_thread(player.analyze)


def _summary(players: Sequence[Player], contest: Contest) -> dict[str, object]:
    """Jobs per second are those of the middle round; ratios are the middle of the rounds' own ratios, product over peer."""
    own, peers = [player for player in players if player.queue.module == PRODUCT], players[-2:]
    return {
        "jobs_per_round": contest.jobs_per_round,
        "rounds": contest.rounds,
        "connections": contest.connections,
        "batch": contest.batch,
        "queues": {player.queue.name: _describe(player) for player in players},
        "ratios": {
            f"{product.queue.name}/{peer.queue.name}": round(
                statistics.median(mine / theirs for mine, theirs in zip(product.rates, peer.rates, strict=True)), 3
            )
            for product in own
            for peer in peers
        },
    }


def _describe(player: Player) -> dict[str, object]:
    return {
        "jobs_per_second": round(statistics.median(player.rates), 1),
        "rounds": [round(rate, 1) for rate in player.rates],
        "batch_ms": {stage: describe(times) for stage, times in player.stages_ms.items()},
        "versions": dict(player.versions),
    }
