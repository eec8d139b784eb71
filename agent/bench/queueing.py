"""`bench queue`: executions queued and completed per second in Postgres, the product compared with two known queues.

Compared are the same number of jobs, in batches of the same size, over the same number of connections, on the same
server, in the same run, in alternating rounds (each round begins with another contender). Each contender is one Python
process, and each connection has its own queue. A job is enqueued, fetched (claimed) and finished; after each round the
database must confirm that exactly this number was finished. Each contender is called below its worker, through its own
data access, in bulk where it has bulk calls: procrastinate defers in bulk but fetches and finishes one by one; pgqueuer
does all three in bulk; the product plans one event for all its followers and takes reports in bulk. The peers run on
uvloop, pgqueuer on asyncpg too; the product runs on plain asyncio and psycopg.

Each peer takes part twice, because there are two questions.

* `procrastinate_same_work`, `pgqueuer_same_work`: which queue is faster at the product's work? The product's planner
  creates the executions, the peer transports them to the followers' side, the product books the reports; only the
  transport differs. Compare with `tradecopier_isolated`, which broadcasts executions to another VPS. In the peers'
  favour they need no broadcast (their followers are planned as if they were on their master's VPS), and one connection
  acts for one agent permanently.
* `procrastinate`, `pgqueuer`: what does the work cost compared with a bare queue? A job is a row without any work. For
  the product the same calls also store the event, size every copy, keep links and mirrors of positions, explain every
  decision and validate every report, under locks that prevent a trade from being copied twice.

A peer accepts any job at any time, while the product's jobs come in groups, one per follower of an event: with one
follower its figures are lower, as `--batch 1` shows. Workers, listening, retries and a long history are left out for
everybody. After the warm-up every database is vacuumed and analysed once, as autovacuum would do within a minute. The
server does not flush to disk (as in every benchmark here), which favours the contender that commits most:
procrastinate.

`tradecopier_beside` has its followers on their master's VPS, `tradecopier_isolated` on another one
(`agent.bench.contest.product`).
"""

import asyncio
import contextlib
import json
import shutil
import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg

from agent import paths
from agent.bench.contenders import BESIDE, ISOLATED, PEERS, SAME_WORK, Queue, make_queues
from agent.bench.contest.turns import STAGES
from agent.bench.histogram import describe
from agent.bench.lanes import RENEW
from agent.bench.machine import machine_facts
from agent.bench.peers import peer_python
from agent.failure import Failure
from agent.stack.postgres import PostgresServer
from agent.stack.schema import project_root
from agent.stack.server_user import remove_folder

TURN_S: Final = 300.0
PAYLOAD: Final = {
    "id": "123", "attempt": 1, "account_id": "00000000-0000-0000-0000-000000000000", "epoch": 1, "link_id": "77",
    "lane": "77",
    "step_id": "123", "after_id": None, "action": "open", "priority": 40, "symbol": "EURUSD", "side": "buy",
    "order_type": "market", "lots": "0.10", "target_lots": None, "ticket": None, "price": None, "sl": None, "tp": None,
    "max_slippage_points": None, "master_price": "1.10000", "expires_at": None, "comment": "", "investigate": False,
    "detected_at": "2026-01-31T12:00:00Z", "queued_at": "2026-01-31T12:00:00Z", "send_before": "2026-01-31T12:00:05Z",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """`jobs` per round and contender, rounded up to full batches on every connection."""

    jobs: int
    rounds: int
    connections: int
    batch: int

    @property
    def steps(self) -> int:
        """Batches per connection in a round."""
        return max(1, -(-self.jobs // (self.connections * self.batch)))

    @property
    def jobs_per_round(self) -> int:
        return self.steps * self.connections * self.batch


@dataclass(slots=True)
class Player:
    """The running process of a contender."""

    queue: Queue
    server: PostgresServer
    process: asyncio.subprocess.Process
    versions: Mapping[str, str] = field(default_factory=dict)
    #: jobs per second of each round
    rates: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    async def ask(self, line: str) -> dict[str, object]:
        """Send one line and wait for the answer. Raises `Failure` (TC662)."""
        reader, writer = self.process.stdout, self.process.stdin
        assert reader is not None
        assert writer is not None
        with contextlib.suppress(ConnectionError):
            writer.write(line.encode() + b"\n")
            await writer.drain()
        try:
            async with asyncio.timeout(TURN_S):
                answer = await reader.readline()
        except TimeoutError:
            answer = b""
        if not answer:
            raise Failure(
                f"the process of {self.queue.name} ended unexpectedly", "read its error output above", code="TC662"
            )
        found: dict[str, object] = json.loads(answer)
        return found

    def completed(self) -> int:
        with psycopg.connect(self.server.dsn(self.queue.name), autocommit=True) as connection:
            if self.queue.lanes:
                connection.execute(RENEW)
            row = connection.execute(self.queue.completed.encode()).fetchone()
        return 0 if row is None else int(row[0])

    def analyze(self) -> None:
        """Analyse the tables, as autovacuum does within a minute, because they are no longer empty."""
        with psycopg.connect(self.server.dsn(self.queue.name), autocommit=True) as connection:
            connection.execute("vacuum (analyze)")

    async def turn(self, contest: Contest, *, counts: bool) -> None:
        """Run one round; the database must confirm what was completed. `counts`: False for the warm-up."""
        before = await asyncio.to_thread(self.completed)
        result = await self.ask(str(contest.steps))
        done = await asyncio.to_thread(self.completed) - before
        if done != contest.jobs_per_round or result["jobs"] != done:
            raise Failure(
                f"{self.queue.name}: {contest.jobs_per_round} jobs were queued, it says {result['jobs']} were"
                f" finished, "
                f"its database says {done}",
                "discard this result and report it",
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
    """Run the contest on a temporary embedded Postgres. Raises `Failure` (TC660–TC662)."""
    python = await asyncio.to_thread(peer_python)
    folder = await asyncio.to_thread(paths.temporary_folder, "bench")
    server = PostgresServer(folder, durable=False)
    try:
        say("starting Postgres")
        await asyncio.to_thread(server.start)
        say("creating accounts and queues")
        queues = await asyncio.to_thread(make_queues, server, python, contest.connections, contest.batch)
        about = machine_facts(await asyncio.to_thread(_server_version, server))
        async with _players(server, queues, contest) as players:
            await _play(players, contest, say)
            return {"benchmark": "queue", **_summary(players, contest), "machine": about}
    finally:
        await asyncio.to_thread(server.stop)
        remove_folder(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


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
                "dsn": server.dsn(queue.name), "connections": contest.connections, "batch": contest.batch,
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
    """Close standard input, which ends the contender."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(10):
            await process.wait()
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
    """Jobs per second are those of the median round; ratios (product over peer) are the median of the rounds' ratios.

    Nothing is delivered to followers on their master's VPS, so no queue does equal work.
    """
    rates = {player.queue.name: player.rates for player in players}
    pairs = [(own, peer) for own in (BESIDE, ISOLATED) for peer in PEERS] + [
        (ISOLATED, peer + SAME_WORK) for peer in PEERS
    ]
    return {
        "jobs_per_round": contest.jobs_per_round,
        "rounds": contest.rounds,
        "connections": contest.connections,
        "batch": contest.batch,
        "queues": {player.queue.name: _describe(player) for player in players},
        "ratios": {f"{own}/{peer}": _ratio(rates[own], rates[peer]) for own, peer in pairs},
    }


def _ratio(own: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(own, theirs, strict=True)), 3)


def _describe(player: Player) -> dict[str, object]:
    return {
        "jobs_per_second": round(statistics.median(player.rates), 1),
        "rounds": [round(rate, 1) for rate in player.rates],
        "batch_ms": {stage: describe(times) for stage, times in player.stages_ms.items()},
        "versions": dict(player.versions),
    }
