"""The product in `bench queue`: its own SQL functions, called as the gateway calls them for an agent.

Each connection has a master, and as many followers as a batch has jobs. It alternately opens and closes a position.
enqueue: `queue_trade_copy` with one event, which plans one execution per follower · finish: `report_executions` with a
fill for each. Fetch depends on the followers' VPS: on their master's VPS (`apart` false) the answer of
`queue_trade_copy` contains the executions; on another VPS they arrive by broadcast. Broadcasts are read as the embedded
Realtime reads them, by logical decoding in a thread of this process; `bench copy` measures what the sockets add. Claims
and role are set in each transaction and are sent with the call, in one round trip.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from importlib import metadata
from typing import Any

import psycopg

from agent.bench.contest.copies import Copies, accepted
from agent.bench.contest.turns import Lane, Terms, run
from agent.stack.realtime.pgoutput import MessageRow
from agent.stack.realtime.stream import MessageStream

SETTINGS = "select set_config('request.jwt.claims', %s, true), set_config('role', 'authenticated', true)"


class ProductLane:
    """`place`: {"apart", "master", "agent", "followers_agent"}: ids of the master's account and of the agents'
    users."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], place: dict[str, Any], batch: int) -> None:
        self._connection = connection
        self._place = place
        self._batch = batch
        self._copies = Copies(place["master"])
        self._executions: list[dict[str, Any]] = []
        #: broadcasts to the followers' VPS
        self.broadcasts: asyncio.Queue[bytes] = asyncio.Queue()

    async def enqueue(self) -> None:
        answer = await self._call(self._place["agent"], "queue_trade_copy", self._copies.event())
        self._executions = answer["executions"]

    async def fetch(self) -> None:
        while len(self._executions) < self._batch and self._place["apart"]:
            self._executions += json.loads(await self.broadcasts.get())["executions"]

    async def finish(self) -> int:
        done, self._executions = self._executions, []
        return accepted(
            await self._call(self._place["followers_agent"], "report_executions", self._copies.reports(done))
        )

    async def _call(self, agent: str, function: str, request: dict[str, Any]) -> Any:
        claims = json.dumps({"sub": agent, "role": "authenticated"})
        async with self._connection.transaction(), self._connection.pipeline():
            await self._connection.execute(SETTINGS, (claims,), prepare=True)
            statement = f"select public.{function}(%s::jsonb)".encode()
            cursor = await self._connection.execute(statement, (json.dumps(request),), prepare=True)
            row = await cursor.fetchone()
        return None if row is None else row[0]


class Product:
    def __init__(self) -> None:
        self._connections: list[psycopg.AsyncConnection[tuple[Any, ...]]] = []
        self._dsn = ""
        #: lanes with followers on another VPS, by that VPS's topic
        self._on_another_vps: dict[str, ProductLane] = {}

    async def open(self, terms: Terms) -> list[Lane]:
        self._dsn = terms.dsn
        lanes: list[Lane] = []
        for place in terms.lanes:
            connection = await psycopg.AsyncConnection.connect(terms.dsn, autocommit=True)
            self._connections.append(connection)
            lane = ProductLane(connection, place, terms.batch)
            lanes.append(lane)
            if place["apart"]:
                self._on_another_vps[f"vps:{place['followers_vps']}"] = lane
        return lanes

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        if not self._on_another_vps:
            yield
            return
        loop, streams = asyncio.get_running_loop(), asyncio.Event()

        def hand_over(rows: Sequence[MessageRow]) -> None:
            loop.call_soon_threadsafe(self._deliver, rows)

        def on_state(streaming: bool) -> None:
            if streaming:
                loop.call_soon_threadsafe(streams.set)

        stream = MessageStream(self._dsn, hand_over, on_state)
        stream.start()
        try:
            async with asyncio.timeout(60):
                await streams.wait()
            yield
        finally:
            await asyncio.to_thread(stream.stop)

    def _deliver(self, rows: Sequence[MessageRow]) -> None:
        for row in rows:
            lane = self._on_another_vps.get(row.topic)
            if lane is not None and row.event == "executions":
                lane.broadcasts.put_nowait(row.payload)

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def versions(self) -> dict[str, str]:
        return {"tradecopier": metadata.version("tradecopier"), "psycopg": metadata.version("psycopg")}


if __name__ == "__main__":
    run(Product())
