"""Law 4.4: a broadcast carries the full order but is only a hint; the row is authoritative.

Covered elsewhere with the real parts, and not repeated here:
* broadcasts dropped for four seconds: tests/scenarios/broadcasts_dropped.yaml
* duplicates from every source, submissions in reverse: tests/execution/test_engine.py
* a socket that died without a word is replaced, doubt makes heartbeats quick: tests/broadcasts/test_broadcasts.py
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import cast

import aiohttp
import httpx
import pytest
from fault_harness import Ground

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

LOBBY = "realtime:lobby"
FLOOD = {
    "topic": LOBBY,
    "event": "broadcast",
    "payload": {"type": "broadcast", "event": "flood", "payload": {}},
    "ref": None,
}
DASHBOARDS = 24
TOO_MANY = "Too many messages per second"


@asynccontextmanager
async def disturbed(ground: Ground, *rules: Mapping[str, object]) -> AsyncIterator[httpx.AsyncClient]:
    """The active rules of the Realtime test hook."""
    key = ground.testbed.stack.secret_key
    headers = {"apikey": key, "authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=ground.testbed.stack.url, headers=headers, timeout=10) as http:
        for rule in rules:
            (await http.post("/realtime/v1/test/faults", json=rule)).raise_for_status()
        try:
            yield http
        finally:
            (await http.delete("/realtime/v1/test/faults")).raise_for_status()


async def hits(http: httpx.AsyncClient) -> int:
    """Frames to which the active rules were applied."""
    answer = (await http.get("/realtime/v1/test/faults")).raise_for_status()
    return sum(rule["hits"] for rule in answer.json()["rules"])


async def test_with_every_broadcast_lost_everything_is_copied_by_catching_up(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    home, away, far = await ground.vps("home"), await ground.vps("away"), await ground.vps("far")
    async with ground.desk(home, [away, away, far], ratio=Decimal("0.5")) as desk:
        async with disturbed(ground, {"action": "drop", "topic": "vps:*"}) as http:
            tickets = [await desk.open(symbol, "0.40") for symbol in ("EURUSD", "USDJPY", "XAUUSD", "GBPUSD")]
            await desk.holds(4)
            await desk.close(tickets[0], "0.20")
            await desk.close(tickets[1])
            await desk.holds(3)
            for ticket in (tickets[0], *tickets[2:]):
                await desk.close(ticket)
            await desk.holds(0)
            kept = await desk.open("EURUSD", "1.00")
            await desk.close(kept, "0.30")
            await desk.holds(1)
            await desk.assert_money_laws()
            assert await hits(http) > 0
        rows = [row for follower in desk.followers for row in await ground.executions(follower)]
        assert {row["status"] for row in rows} == {"completed"}
        waits = [(cast(datetime, row["sent_at"]) - cast(datetime, row["detected_at"])).total_seconds() for row in rows]
        with capsys.disabled():
            print(f"\n  every broadcast lost: {len(rows)} executions, slowest sent {max(waits):.2f} s after detection")  # noqa: T201


async def test_broadcasts_twice_and_out_of_order_make_each_order_once(ground: Ground) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away, away]) as desk:
        rules: list[Mapping[str, object]] = [
            {"action": "duplicate", "topic": "vps:*", "event": "executions", "times": 6},
            {"action": "reorder", "topic": "vps:*", "event": "executions"},
        ]
        async with disturbed(ground, *rules) as http:
            kept = []
            for symbol in ("EURUSD", "USDJPY", "XAUUSD", "GBPUSD", "EURUSD", "USDJPY"):
                ticket = await desk.open(symbol, "0.20")
                await desk.close(ticket, "0.10")
                kept.append(ticket)
            for ticket in kept[:3]:
                await desk.close(ticket)
            await desk.assert_money_laws()
            assert await hits(http) > 0
        await desk.holds(3)


class Dashboards:
    """Browsers of one user: each gets its user's broadcasts and a public channel on which one keeps sending."""

    def __init__(self, ground: Ground, http: aiohttp.ClientSession) -> None:
        stack = ground.testbed.stack
        self._ground = ground
        self._http = http
        self._url = f"{stack.url}/realtime/v1/websocket?apikey={stack.publishable_key}&vsn=1.0.0"
        self.over_quota = asyncio.Event()

    async def open(self) -> aiohttp.ClientWebSocketResponse:
        socket = await self._http.ws_connect(self._url, max_msg_size=0)
        for number, (topic, private) in enumerate(
            ((LOBBY, False), (f"realtime:user:{self._ground.owner.user_id}", True)), 1
        ):
            config = {"broadcast": {"self": False, "ack": False}, "presence": {"key": ""}, "private": private}
            payload = {"config": config, "access_token": self._ground.owner.token}
            await socket.send_json(
                {"topic": topic, "event": "phx_join", "payload": payload, "ref": str(number), "join_ref": str(number)}
            )
        return socket

    async def listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if TOO_MANY in str(message.data):
                self.over_quota.set()

    async def flood(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        frame = json.dumps(FLOOD)
        while not socket.closed and not self.over_quota.is_set():
            for _ in range(50):
                await socket.send_str(frame)
            await asyncio.sleep(0)  # the listeners' turn


# The last test of its module: the quota is an average over a minute, during which broadcasts are refused.
async def test_dashboards_that_use_up_the_quota_do_not_cut_off_trading(ground: Ground) -> None:
    home, away, far = await ground.vps("home"), await ground.vps("away"), await ground.vps("far")
    log = ground.testbed.stack.data / "gateway.log"
    async with (
        ground.desk(home, [home, away, far]) as desk,
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as group,
    ):
        dashboards = Dashboards(ground, http)
        sockets = [await dashboards.open() for _ in range(DASHBOARDS)]
        listeners = [group.create_task(dashboards.listen(socket)) for socket in sockets]
        group.create_task(dashboards.flood(sockets[0]))
        before = 0
        async with asyncio.timeout(90):
            while not dashboards.over_quota.is_set():
                before += 1
                await desk.close(await desk.open("USDJPY", "0.20"))
                await asyncio.sleep(0.1)  # the pace of trading
        kept = [await desk.open(symbol, "0.20") for symbol in ("EURUSD", "XAUUSD", "GBPUSD")]
        await desk.holds(3)
        await desk.close(kept[0], "0.10")
        await desk.close(kept[1])
        await desk.assert_money_laws()
        assert before > 0
        assert "realtime_row_dropped" in log.read_text(), "the orders were not broadcast: the quota was over"
        for listener in listeners:
            listener.cancel()
