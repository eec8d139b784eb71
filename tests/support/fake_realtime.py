"""A Realtime server with answers chosen by the test: the official client talks to it over a real socket.

The embedded server cannot be told to forget a join or to answer it late; this one does nothing by itself but
heartbeats.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

TOPIC = "vps:1"


@dataclass(eq=False)
class Socket:
    """One client's connection: what it sent, and the test's answers."""

    ws: web.WebSocketResponse
    joins: list[dict[str, object]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    #: names of all events that it sent, in order
    said: list[str] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def frame(self, event: str, payload: object, ref: object = None) -> None:
        await self.ws.send_str(
            json.dumps({"topic": f"realtime:{TOPIC}", "event": event, "payload": payload, "ref": ref})
        )

    async def accept(self, ref: object) -> None:
        await self.frame("phx_reply", {"status": "ok", "response": {"postgres_changes": []}}, ref)

    async def reject(self, ref: object, reason: str) -> None:
        await self.frame("phx_reply", {"status": "error", "response": {"reason": reason}}, ref)

    async def broadcast(self, event: str, payload: object) -> None:
        await self.frame("broadcast", {"type": "broadcast", "event": event, "payload": payload})

    async def close_channel(self, message: str) -> None:
        """As hosted Supabase does when a token expires or a right is revoked."""
        await self.frame("system", {"extension": "system", "status": "error", "message": message, "channel": TOPIC})
        await self.frame("phx_close", {}, "1")

    def abort(self) -> None:
        """Cut the TCP connection without a close frame."""
        transport = self.ws._req.transport if self.ws._req else None
        assert transport is not None
        transport.abort()


class Phoenix:
    """`sockets` in order of arrival; `on_join(number, socket, ref)` answers the n-th join of all (default: accepts
    it)."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.joins = 0
        self.refuse_with: int | None = None
        self.handshakes = 0
        self.silent = False
        self.on_join: Callable[[int, Socket, object], asyncio.Future[None] | asyncio.Task[None] | None] = lambda *_: (
            None
        )
        self.accepts: Callable[[int], bool] = lambda _number: True
        self._news = asyncio.Condition()
        self.url = ""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that this server saw makes `condition` true."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(condition)

    async def socket(self, number: int) -> Socket:
        """The n-th connection (from 1) once it has joined."""
        await self.until(lambda: len(self.sockets) >= number and bool(self.sockets[number - 1].joins))
        return self.sockets[number - 1]

    async def _note(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.handshakes += 1
        await self._note()
        if self.refuse_with is not None:
            return web.json_response({"error": "no"}, status=self.refuse_with)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        socket = Socket(ws)
        self.sockets.append(socket)
        await self._note()
        async for message in ws:
            if message.type == WSMsgType.TEXT and not self.silent:
                await self._said(socket, json.loads(message.data))
        socket.gone.set()
        await self._note()
        return ws

    async def _said(self, socket: Socket, frame: dict[str, object]) -> None:
        payload = frame["payload"]
        assert isinstance(payload, dict)
        socket.said.append(str(frame["event"]))
        match frame["event"]:
            case "heartbeat":
                await socket.ws.send_str(
                    json.dumps({**frame, "event": "phx_reply", "payload": {"status": "ok", "response": {}}})
                )
            case "phx_join":
                self.joins += 1
                socket.joins.append(payload)
                if self.accepts(self.joins):
                    await socket.accept(frame["ref"])
                self.on_join(self.joins, socket, frame["ref"])
            case "access_token":
                socket.tokens.append(str(payload["access_token"]))
            case _:
                pass
        await self._note()


@asynccontextmanager
async def phoenix_server(port: int = 0, server: Phoenix | None = None) -> AsyncIterator[Phoenix]:
    """A running server; give `port` and `server` to come back on the same address."""
    running = server or Phoenix()
    app = web.Application()
    app.router.add_get("/realtime/v1/websocket", running.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}/realtime/v1"
    try:
        yield running
    finally:
        for socket in running.sockets:
            if not socket.ws.closed:
                await socket.ws.close()
        await runner.cleanup()
