"""`python -m agent.stack.realtime.measure`: time from a commit to the callback of the official Python client.

Postgres, the server, and writer + clients run in three processes, as in the product. Sends follow a fixed schedule that
does not wait for answers (open loop). It asserts nothing and only prints.
"""

import asyncio
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import click
import psycopg
from aiohttp import web
from realtime import AsyncRealtimeClient
from realtime.types import BroadcastPayload, RealtimeChannelOptions
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.realtime.errors import TokenInvalid
from agent.stack.realtime.limits import Limits
from agent.stack.realtime.server import RealtimeServer
from agent.stack.schema import apply_platform

KEY = "sb_secret_measure"
TOPIC = "vps:measure"
_WAIT_S = 30


def _verify(token: str) -> Mapping[str, object]:
    if token != KEY:
        raise TokenInvalid("not the key of this measurement")
    return {"role": "service_role"}


async def _serve(dsn: str) -> None:
    """The child process: serves until stdin is closed."""
    app = web.Application()
    server = RealtimeServer(dsn, _verify, Limits(messages_per_second=1e9))
    server.attach(app)
    await server.start()
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    click.echo(str(runner.addresses[0][1]))
    await asyncio.to_thread(sys.stdin.read)
    await server.close()
    await runner.cleanup()


@dataclass(slots=True)
class Samples:
    """Milliseconds of each message, from the start of the statement and from the return of its commit (may be
    negative)."""

    listeners: int
    called: dict[int, float] = field(default_factory=dict)
    returned: dict[int, float] = field(default_factory=dict)
    received: dict[int, list[float]] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: int = 0

    def receive(self, message: BroadcastPayload) -> None:
        now = time.perf_counter()
        number = int(cast(int, message["payload"]["n"]))
        self.received.setdefault(number, []).append(now)
        self.wanted -= 1
        if self.wanted == 0:
            self.done.set()

    def since(self, start: dict[int, float]) -> list[float]:
        return sorted((at - start[n]) * 1000 for n, times in self.received.items() for at in times)


async def _listen(port: int, samples: Samples) -> AsyncRealtimeClient:
    client = AsyncRealtimeClient(f"http://127.0.0.1:{port}/realtime/v1", KEY, max_retries=1)
    await client.connect()
    options = {"config": {"private": True, "broadcast": {"ack": False, "self": False}}}
    channel = client.channel(TOPIC, cast(RealtimeChannelOptions, options))
    channel.on_broadcast("order", samples.receive)
    async with asyncio.timeout(_WAIT_S):
        await channel.subscribe()
    if not channel.is_joined:
        raise ConnectionError("the measurement's client could not join its topic")
    return client


async def _run(dsn: str, port: int, count: int, rate: float, listeners: int) -> Samples:
    samples = Samples(listeners, wanted=count * listeners)
    clients = [await _listen(port, samples) for _ in range(listeners)]
    try:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as db:
            begin = time.perf_counter()
            for number in track(range(count), description="sending", console=Console(stderr=True)):
                await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
                samples.called[number] = time.perf_counter()
                await db.execute(
                    "select realtime.send(jsonb_build_object('n', %s::int, 'fill', repeat('x', 800)), 'order', %s,"
                    " true)",
                    (number, TOPIC),
                )
                samples.returned[number] = time.perf_counter()
            async with asyncio.timeout(_WAIT_S):
                await samples.done.wait()
    finally:
        for client in clients:
            await client.close()
    return samples


def _percentile(values: list[float], share: float) -> str:
    return f"{values[min(len(values) - 1, int(len(values) * share))]:.2f}"


def _print(samples: Samples, rate: float) -> None:
    table = Table(
        "ms", "p50", "p95", "p99", "max", title=f"database → callback, {rate:g}/s, {samples.listeners} listener(s)"
    )
    for name, start in (
        ("from the call of the statement", samples.called),
        ("from the return of its commit", samples.returned),
    ):
        values = samples.since(start)
        table.add_row(name, *(_percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)))
    Console().print(table)


async def _measure(dsn: str, count: int, rate: float, listeners: int) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.stack.realtime.measure", "--serve",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        # not passed as an argument, because it contains a password
        child.stdin.write(dsn.encode() + b"\n")
        await child.stdin.drain()
        async with asyncio.timeout(_WAIT_S):
            port = int(await child.stdout.readline())
        _print(await _run(dsn, port, count, rate, listeners), rate)
    finally:
        child.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await child.wait()
        if child.returncode is None:
            child.kill()
            await child.wait()


@click.command(help=__doc__)
@click.option("--messages", default=1000, show_default=True, help="How many messages to send.")
@click.option("--rate", default=200.0, show_default=True, help="Messages per second.")
@click.option("--listeners", default=1, show_default=True, help="Clients on the topic.")
@click.option("--serve", is_flag=True, hidden=True)
def main(messages: int, rate: float, listeners: int, serve: bool) -> None:
    logging.getLogger("realtime").setLevel(logging.ERROR)
    if serve:
        asyncio.run(_serve(sys.stdin.readline().strip()))
        return
    with tempfile.TemporaryDirectory(prefix="realtime-measure-") as name:
        folder = Path(name)
        # the server may run as another user
        folder.chmod(0o711)
        with PostgresServer(folder) as postgres:
            database = Database.create(postgres, "measure")
            with database.connect() as connection:
                apply_platform(connection)
            asyncio.run(_measure(database.dsn, messages, rate, listeners))


if __name__ == "__main__":
    main()
