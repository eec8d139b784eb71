"""A Supabase with answers chosen by the test: Auth, the enrol function and RPC over real HTTP."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

Answer = tuple[int, object] | str
Responder = Callable[[dict[str, Any]], Answer]


@dataclass(eq=False)
class Call:
    name: str
    body: dict[str, Any]
    token: str
    key: str


@dataclass(eq=False)
class Supabase:
    """`rpc[name]` answers an RPC from its argument; `script(name, …)` queues answers that are given first, once each.

    An answer is (status, JSON), or "cut" (the connection is cut after the request was read). `hold(name, argument)`
    returns the event that the answer of a call waits for.
    """

    url: str = ""
    #: target of its redirects
    location: str = ""
    calls: list[Call] = field(default_factory=list)
    rpc: dict[str, Responder] = field(default_factory=dict)
    auth: dict[str, Responder] = field(default_factory=dict)
    valid: set[str] = field(default_factory=set)
    peers: set[object] = field(default_factory=set)
    hold: Callable[[str, dict[str, Any]], asyncio.Event | None] = lambda name, argument: None
    #: calls that were received and not answered yet
    open: int = 0
    _scripts: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    _tokens: int = 0
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def script(self, name: str, *answers: Answer) -> None:
        self._scripts[name] += answers

    def called(self, name: str) -> list[dict[str, Any]]:
        return [call.body for call in self.calls if call.name == name]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(condition)

    def new_tokens(self, *, expires_in: float = 3600, refresh: bool = True) -> dict[str, object]:
        self._tokens += 1
        access = f"access-{self._tokens}"
        self.valid.add(access)
        tokens: dict[str, object] = {"access_token": access, "expires_in": expires_in, "token_type": "bearer"}
        return tokens | ({"refresh_token": f"refresh-{self._tokens}"} if refresh else {})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind, name = request.match_info["kind"], request.match_info.get("name", "")
        if kind == "token":
            name = request.query.get("grant_type", "")
        raw = await request.read()
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.calls.append(Call(name, orjson.loads(raw) if raw else {}, token, request.headers.get("apikey", "")))
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        answer = self._answer(kind, name, token)
        self.open += 1
        async with self._news:
            self._news.notify_all()
        if (held := self.hold(name, next(iter(self.calls[-1].body.values()), {}))) is not None:
            await held.wait()
        self.open -= 1
        if isinstance(answer, str):
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        status, body = answer
        if isinstance(body, str):
            headers = {"location": self.location} if 300 <= status < 400 else None
            return web.Response(status=status, text=body, content_type="text/html", headers=headers)
        return web.json_response(body, status=status)

    def _answer(self, kind: str, name: str, token: str) -> Answer:
        if self._scripts[name]:
            return self._scripts[name].pop(0)
        body = self.calls[-1].body
        if kind != "rpc":
            responder = self.auth.get(name)
            return (200, self.new_tokens()) if responder is None else responder(body)
        if token not in self.valid:
            return 401, {"code": "PGRST301", "message": "JWT expired", "details": None, "hint": None}
        if name not in self.rpc:
            return 404, {"code": "PGRST116", "message": f"no {name} here", "details": None, "hint": None}
        return self.rpc[name](next(iter(body.values())) if body else {})


@asynccontextmanager
async def supabase_server(port: int = 0, server: Supabase | None = None) -> AsyncIterator[Supabase]:
    running = server or Supabase()
    app = web.Application(client_max_size=20 * 2**20)
    app.router.add_post("/rest/v1/{kind:rpc}/{name}", running.handle)
    app.router.add_post("/auth/v1/{kind:token}", running.handle)
    app.router.add_post("/functions/v1/{kind:enroll}{name:.*}", running.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield running
    finally:
        await runner.cleanup()
