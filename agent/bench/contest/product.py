"""The product in `bench queue`: its own SQL functions, called as the gateway calls them for an agent.

Each connection has a master and as many followers as a batch has jobs. It opens a position and closes it in turn.
enqueue: `queue_trade_copy` with one event, which plans one execution for each follower · finish: `report_executions` with a fill
for each. Fetch depends on where the followers are: beside their master (`apart` false) the answer of `queue_trade_copy` itself
holds the executions; on another VPS they were broadcast, and are claimed with `vps_heartbeat`, the agents' way when a broadcast
is lost.
Claims and role are set in each transaction and travel with the call, one round trip together.
"""

import itertools
import json
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import psycopg

from agent.bench.contest.turns import Lane, Terms, run

SETTINGS = "select set_config('request.jwt.claims', %s, true), set_config('role', 'authenticated', true)"
SESSION = 1
PRICE = "1.10000"


class ProductLane:
    """`place`: {"apart", "master", "agent", "followers_agent"}: ids of the master's account and of the agents' own users."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], place: dict[str, Any]) -> None:
        self._connection = connection
        self._place = place
        self._numbers = itertools.count(1)
        self._tickets = itertools.count(1)
        self._ticket: str | None = None
        self._executions: list[dict[str, Any]] = []

    async def enqueue(self) -> None:
        now = datetime.now(UTC).isoformat()
        opens = self._ticket is None
        ticket = self._ticket or f"m{next(self._tickets)}"
        self._ticket = ticket if opens else None
        event = {
            "session": SESSION, "seq": next(self._numbers), "type": "opened" if opens else "closed", "evidence": "deal",
            "detected_at": now, "unchanged_at": now, "position": position_told(ticket, "0.10" if opens else "0"),
        }  # fmt: skip
        request = {"account_id": self._place["master"], "epoch": 1, "events": [event]}
        answer = await self._call(self._place["agent"], "queue_trade_copy", request)
        self._executions = answer["executions"]

    async def fetch(self) -> None:
        if self._place["apart"]:
            answer = await self._call(self._place["followers_agent"], "vps_heartbeat", {"accounts": []})
            self._executions = answer["executions"]

    async def finish(self) -> int:
        done, self._executions = self._executions, []
        request = {"reports": [self._report(execution) for execution in done]}
        answer = await self._call(self._place["followers_agent"], "report_executions", request)
        return sum(1 for result in answer["results"] if result["status"] == "accepted")

    def _report(self, execution: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        opens = execution["action"] == "open"
        ticket = f"f{next(self._tickets)}" if opens else execution["ticket"]
        return {
            "account_id": execution["account_id"], "session": SESSION, "seq": next(self._numbers),
            "execution_id": execution["id"], "attempt": execution["attempt"], "outcome": "completed", "reason": None,
            "retryable": False, "message": "", "adopted": False, "filled_lots": execution["lots"], "price": PRICE,
            "positions": [position_told(ticket, execution["lots"] if opens else "0", tag=execution["id"])],
            "received_at": now, "sent_at": now, "done_at": now,
        }  # fmt: skip

    async def _call(self, agent: str, function: str, request: dict[str, Any]) -> Any:
        claims = json.dumps({"sub": agent, "role": "authenticated"})
        async with self._connection.transaction(), self._connection.pipeline():
            await self._connection.execute(SETTINGS, (claims,), prepare=True)
            statement = f"select public.{function}(%s::jsonb)".encode()
            cursor = await self._connection.execute(statement, (json.dumps(request),), prepare=True)
            row = await cursor.fetchone()
        return None if row is None else row[0]


def position_told(ticket: str, lots: str, tag: str | None = None) -> dict[str, Any]:
    return {
        "ticket": ticket, "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": lots, "price": PRICE, "sl": None,
        "tp": None, "order_type": None, "magic": "0", "comment": "", "opened_at": None, "expires_at": None, "tag": tag,
        "replaces": None,
    }  # fmt: skip


class Product:
    def __init__(self) -> None:
        self._connections: list[psycopg.AsyncConnection[tuple[Any, ...]]] = []

    async def open(self, terms: Terms) -> list[Lane]:
        for _ in range(terms.connections):
            self._connections.append(await psycopg.AsyncConnection.connect(terms.dsn, autocommit=True))
        return [ProductLane(connection, place) for connection, place in zip(self._connections, terms.lanes, strict=True)]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def versions(self) -> dict[str, str]:
        return {"tradecopier": metadata.version("tradecopier"), "psycopg": metadata.version("psycopg")}


if __name__ == "__main__":
    run(Product())
