"""Floods of the gateway, each in its own process, and their effect on a copy: `tradecopier bench floods`.

A flood uses loopback only and ends by itself. It is what one careless or hostile client can do with the publishable
key.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

LONGEST_S: Final = 120.0
SLOW_SOCKETS: Final = 400
BODY: Final = b'"' + b"x" * 9_000_000 + b'"'
BODY_SENDERS: Final = 8
JOINING_SOCKETS: Final = 40
CALLERS: Final = 32
#: how long a flooder waits after it was disconnected
AGAIN_S: Final = 0.02


async def slow_headers(host: str, port: int, key: str) -> None:
    """One connection that sends its headers byte by byte and never finishes them."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /rest/v1/ HTTP/1.1\r\nHost: {host}:{port}\r\napikey: {key}\r\nX-Slow: ".encode())
        while not reader.at_eof():
            writer.write(b"x")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await reader.read(1)
    finally:
        writer.close()


async def large_bodies(host: str, port: int, key: str) -> None:
    """One request with a body of 9 MB."""
    headers = {"apikey": key, "content-type": "application/json"}
    url = f"http://{host}:{port}/rest/v1/rpc/preview_copy"
    async with aiohttp.ClientSession() as http, http.post(url, data=BODY, headers=headers) as answer:
        await answer.read()


async def joins(host: str, port: int, key: str) -> None:
    """One socket that joins private topics as fast as possible."""
    url = f"http://{host}:{port}/realtime/v1/websocket?vsn=1.0.0&apikey={key}"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        reading = asyncio.ensure_future(_read_all(socket))
        try:
            number = 0
            while not socket.closed:
                number += 1
                payload = {"config": {"private": True, "broadcast": {}, "presence": {}}, "access_token": key}
                await socket.send_json(
                    {"topic": f"realtime:user:{number}", "event": "phx_join", "payload": payload, "ref": str(number)}
                )
                if number % 50 == 0:
                    await asyncio.sleep(0.01)
        finally:
            reading.cancel()


async def calls(host: str, port: int, key: str) -> None:
    """Calls of a function, one after the other, over one connection."""
    headers = {"apikey": key, "content-type": "application/json"}
    url = f"http://{host}:{port}/rest/v1/rpc/preview_copy"
    async with aiohttp.ClientSession() as http:
        for _ in range(1000):
            async with http.post(url, data=b'{"p_request": {}}', headers=headers) as answer:
                await answer.read()


async def connections(host: str, port: int, key: str) -> None:
    """One connection that is opened and sends nothing."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        await reader.read(1)
    finally:
        writer.close()


async def _read_all(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


Flooder = Callable[[str, int, str], Awaitable[None]]
#: the function of one flooder, and how many of them run at once
FLOODS: Final[Mapping[str, tuple[Flooder, int]]] = {
    "slow_headers": (slow_headers, SLOW_SOCKETS),
    "large_bodies": (large_bodies, BODY_SENDERS),
    "joins": (joins, JOINING_SOCKETS),
    "calls": (calls, CALLERS),
    "silent_connections": (connections, SLOW_SOCKETS * 2),
}


async def flood(kind: str, port: int, key: str, seconds: float) -> int:
    """Flood the gateway on loopback for this long. Returns how many times a flooder was started."""
    flooder, count = FLOODS[kind]
    end = time.monotonic() + min(seconds, LONGEST_S)
    begun = 0

    async def again() -> None:
        nonlocal begun
        while time.monotonic() < end:
            begun += 1
            with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.IncompleteReadError):
                await flooder("127.0.0.1", port, key)
            await asyncio.sleep(AGAIN_S)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(again())
    return begun


@asynccontextmanager
async def flooding(kind: str, port: int, key: str, seconds: float = LONGEST_S) -> AsyncIterator[None]:
    """Run a flood in its own process during the `with` block."""
    arguments = [sys.executable, "-m", "agent.bench.floods"]
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdin is not None, "started with a pipe"
    assert process.stdout is not None, "started with a pipe"
    try:
        # The key is sent through the pipe: any user of the machine can read an argument list.
        process.stdin.write(json.dumps({"kind": kind, "port": port, "key": key, "seconds": seconds}).encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(30):
            await process.stdout.readline()
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """Entry point of the flooding process: settings as one line on standard input."""
    wanted = json.loads(sys.stdin.readline())
    sys.stdout.write("flooding\n")
    sys.stdout.flush()
    asyncio.run(flood(wanted["kind"], int(wanted["port"]), wanted["key"], float(wanted["seconds"])))


if __name__ == "__main__":
    main()
