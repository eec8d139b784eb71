"""Who plays in `bench queue`: the product twice, each peer twice, everyone with a database of its own."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from agent.bench.lanes import COMPLETED, make_lanes
from agent.local.database import Database
from agent.local.postgres import PostgresServer
from agent.local.schema import project_root

PRODUCT: Final = "agent.bench.contest.product"
BESIDE: Final = "tradecopier_beside"
APART: Final = "tradecopier_apart"
SAME_WORK: Final = "_same_work"


@dataclass(frozen=True, slots=True)
class Peer:
    """A known queue: the module that plays it, and how its schema counts what is completed."""

    module: str
    completed: str


PEERS: Final = {
    "procrastinate": Peer(
        "agent.bench.contest.procrastinate_peer", "select count(*) from procrastinate_jobs where status = 'succeeded'"
    ),
    "pgqueuer": Peer("agent.bench.contest.pgqueuer_peer", "select count(*) from pgqueuer_log where status = 'successful'"),
}


@dataclass(frozen=True, slots=True)
class Queue:
    """A contender: where its program is, and how its database, which has its name, counts what is completed.

    `lanes`: masters and followers of the product in that database, if it copies trades.
    """

    name: str
    module: str
    python: Path
    completed: str
    lanes: Sequence[Mapping[str, object]] = ()


def make_queues(server: PostgresServer, python: Path, connections: int, batch: int) -> list[Queue]:
    """Makes their databases. `python`: the interpreter of the peers; `connections` and `batch`: of each contender."""
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
        product(BESIDE, apart=False), product(APART, apart=True),
        *(bare(peer) for peer in PEERS), *(carrier(peer) for peer in PEERS),
    ]  # fmt: skip
