"""A Realtime server on its own port, with its database, tokens and clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import psycopg
import pytest
from aiohttp import web
from realtime_peers import ClientName, Node, Peer, js_peer, python_peer

from agent.stack.realtime import RealtimeServer, TokenExpired, TokenInvalid

SECRET = "a secret of the tests that is long enough for HS256"
KEYS: Mapping[str, str] = {"sb_publishable_test": "anon", "sb_secret_test": "service_role"}

# The rights on the tests' topics, by the first word of the topic.
POLICIES = """
create policy "read room" on realtime.messages for select to authenticated
  using (realtime.topic() like 'room:%' or realtime.topic() like 'read:%');
create policy "write room" on realtime.messages for insert to authenticated
  with check (realtime.topic() like 'room:%' or realtime.topic() like 'write:%');
create policy "own topic" on realtime.messages for select to authenticated
  using (realtime.topic() = 'user:' || (auth.jwt() ->> 'sub'));
create policy "presence only" on realtime.messages for select to authenticated
  using (realtime.topic() like 'seen:%' and extension = 'presence');
create policy "by header" on realtime.messages for select to authenticated
  using (realtime.topic() like 'agent:%' and current_setting('request.headers', true)::jsonb ? 'host');
create table public.members (sub text primary key);
grant select on public.members to authenticated;
create policy "members" on realtime.messages for select to authenticated
  using (realtime.topic() like 'club:%' and exists (select from public.members m where m.sub = auth.jwt() ->> 'sub'));
create policy "members write" on realtime.messages for insert to authenticated
  with check (realtime.topic() like 'club:%' and exists (select from public.members m
  where m.sub = auth.jwt() ->> 'sub'));
create policy "see rank" on realtime.messages for select to authenticated using (realtime.topic() like 'rank:%');
create policy "write by rank" on realtime.messages for insert to authenticated
  with check (realtime.topic() like 'rank:%' and auth.jwt() ->> 'rank' = 'high');
create policy "broken" on realtime.messages for select to authenticated
  using (realtime.topic() like 'broken:%' and 1 / (extract(epoch from now()) * 0)::int = 1);
"""


only_python = pytest.mark.parametrize("client", ["python"], indirect=True)
only_js = pytest.mark.parametrize("client", ["js"], indirect=True)


def mint(role: str = "authenticated", sub: str = "user-1", ttl_s: float = 600, **claims: object) -> str:
    """A JWT; claims that are None are omitted."""
    body = {"role": role, "sub": sub, "exp": int(time.time() + ttl_s), **claims}
    return jwt.encode({key: value for key, value in body.items() if value is not None}, SECRET, algorithm="HS256")


def verify(token: str) -> Mapping[str, object]:
    if token in KEYS:
        return {"role": KEYS[token]}
    try:
        claims: dict[str, object] = jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False})
    except jwt.PyJWTError as error:
        raise TokenInvalid(str(error)) from error
    expires = claims.get("exp")
    if isinstance(expires, int) and expires <= time.time():
        raise TokenExpired(int(time.time() - expires))
    return claims


@dataclass(slots=True)
class Hall:
    """A running server, its database, and clients that are closed with it."""

    server: RealtimeServer
    url: str
    dsn: str
    db: psycopg.AsyncConnection[Any]
    client: ClientName
    node: Callable[[], Node]
    stack: AsyncExitStack
    peers: list[Peer] = field(default_factory=list)

    async def open(
        self, *, client: ClientName | None = None, key: str | None = None, token: str | None = None, **options: Any
    ) -> Peer:
        """A client of the kind under test (or of the named kind), by default `authenticated`."""
        key = "sb_publishable_test" if key is None else key
        peer: Peer
        if (client or self.client) == "python":
            peer = python_peer(self.url, key, token if token is not None else mint(), **options)
        else:
            peer = await js_peer(self.node(), self.url, key, token if token is not None else mint(), **options)
        self.peers.append(peer)
        self.stack.push_async_callback(peer.close)
        return peer

    async def send(self, topic: str, event: str = "e", payload: str = '{"n": 1}', *, private: bool = True) -> None:
        """Call `realtime.send` in its own transaction."""
        await self.db.execute("select realtime.send(%s::jsonb, %s, %s, %s)", (payload, event, topic, private))


Opener = Callable[..., Awaitable[Hall]]


@asynccontextmanager
async def serving(server: RealtimeServer) -> AsyncIterator[str]:
    app = web.Application()
    server.attach(app)
    await server.start()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await server.close()
        await runner.cleanup()


async def eventually(check: Callable[[], bool], timeout_s: float = 10) -> None:
    """Poll for a state that causes no notification."""
    async with asyncio.timeout(timeout_s):
        while not check():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
