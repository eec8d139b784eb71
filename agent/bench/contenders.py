"""The contenders of `bench queue`: the product twice, each peer twice, each with its own database."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from agent.bench.lanes import COMPLETED, make_lanes
from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.schema import project_root

PRODUCT: Final = "agent.bench.contest.product"
BESIDE: Final = "tradecopier_beside"
ISOLATED: Final = "tradecopier_isolated"
SAME_WORK: Final = "_same_work"


@dataclass(frozen=True, slots=True)
class Peer:
    """A known queue library: the module that runs it, and the SQL that counts its completed jobs."""

    module: str
    completed: str


PEERS: Final = {
    "procrastinate": Peer(
        "agent.bench.contest.procrastinate_peer", "select count(*) from procrastinate_jobs where status = 'succeeded'"
    ),
    "pgqueuer": Peer(
        "agent.bench.contest.pgqueuer_peer", "select count(*) from pgqueuer_log where status = 'successful'"
    ),
}


@dataclass(frozen=True, slots=True)
class Queue:
    """A contender: its program, and the SQL that counts completed jobs in its database (which has its name).

    `lanes`: masters and followers of the product in that database, if it copies trades.
    """

    name: str
    module: str
    python: Path
    completed: str
    lanes: Sequence[Mapping[str, object]] = ()


def make_queues(server: PostgresServer, python: Path, connections: int, batch: int) -> list[Queue]:
    """Create the databases. `python`: the peers' interpreter; `connections` and `batch`: for each contender."""
    template = Database.prepared(server, "bench_template", project_root())
    own = Path(sys.executable)

    def copying(name: str, *, apart: bool = False) -> Sequence[Mapping[str, object]]:
        with Database.create(server, name, template).connect() as connection:
            return make_lanes(connection, name, connections, batch, apart=apart)

    def product(name: str, *, apart: bool) -> Queue:
        return Queue(name, PRODUCT, own, COMPLETED, copying(name, apart=apart))

    def bare(name: str) -> Queue:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
        return Queue(name, PEERS[name].module, python, PEERS[name].completed)

    def carrier(peer: str) -> Queue:
        name = peer + SAME_WORK
        completed = f"select least(({COMPLETED}), ({PEERS[peer].completed}))"
        return Queue(name, PEERS[peer].module, python, completed, copying(name))

    return [
        product(BESIDE, apart=False), product(ISOLATED, apart=True),
        *(bare(peer) for peer in PEERS), *(carrier(peer) for peer in PEERS),
    ]  # fmt: skip
