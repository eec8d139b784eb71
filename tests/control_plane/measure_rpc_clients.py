"""Which HTTP client the control plane should use: `python -m tests.control_plane.measure_rpc_clients [N]`.

One kept-alive connection to a local server that answers like an RPC with one execution; prints the client's own cost
per call and what importing it costs in memory. Behind `agent/control_plane/client.py`'s choice; not a test.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import orjson
from aiohttp import ClientSession, web

BODY = orjson.dumps(
    {
        "p_events": {
            "account_id": "a" * 36,
            "epoch": 3,
            "events": [{"session": 1, "seq": 1, "position": {"ticket": "5", "lots": "1.00"}}],
        }
    }
)
ANSWER = orjson.dumps(
    {
        "results": [{"event_key": "1:1", "status": "accepted"}],
        "executions": [{"id": "1", "lots": "0.5", "symbol": "EURUSD"}] * 3,
    }
)


async def _answer(_request: web.Request) -> web.Response:
    return web.Response(body=ANSWER, content_type="application/json")


async def _time(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    spent = []
    for number in range(count + 200):
        started = time.perf_counter()
        await call()
        if number >= 200:
            spent.append((time.perf_counter() - started) * 1000)
    return spent


def _serve() -> None:
    app = web.Application()
    app.router.add_post("/rest/v1/rpc/{name}", _answer)

    async def go() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        sys.stdout.write(f"{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    asyncio.run(go())


async def _measure(port: int, count: int) -> None:
    import httpx
    from postgrest import AsyncPostgrestClient

    base = f"http://127.0.0.1:{port}/rest/v1"
    headers = {"apikey": "k", "authorization": "Bearer " + "t" * 600, "content-type": "application/json"}
    argument = orjson.loads(BODY)

    async with AsyncPostgrestClient(base, headers=headers) as postgrest:
        _print("postgrest", await _time(lambda: postgrest.rpc("queue_trade_copy", argument).execute(), count))
    async with httpx.AsyncClient(headers=headers) as plain:

        async def by_httpx() -> object:
            return orjson.loads(
                (await plain.post(base + "/rpc/queue_trade_copy", content=orjson.dumps(argument))).content
            )

        _print("httpx", await _time(by_httpx, count))
    async with ClientSession(headers=headers) as session:

        async def by_aiohttp() -> object:
            async with session.post(base + "/rpc/queue_trade_copy", data=orjson.dumps(argument)) as response:
                return orjson.loads(await response.read())

        _print("aiohttp", await _time(by_aiohttp, count))


def _print(name: str, spent: list[float]) -> None:
    ordered = sorted(spent)
    sys.stdout.write(
        f"{name:<10} p50 {median(ordered):6.3f} ms   p99 {ordered[int(len(ordered) * 0.99) - 1]:6.3f} ms   n"
        f" {len(ordered)}\n"
    )


def _memory(imports: str) -> float:
    code = f"{imports}\nimport psutil; print(psutil.Process().memory_info().rss)"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) / 2**20


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        _serve()
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with subprocess.Popen(
        [sys.executable, "-m", "tests.agent.measure_rpc_clients", "serve"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            asyncio.run(_measure(int(server.stdout.readline()), count))
        finally:
            server.terminate()
    for imports in (
        "pass",
        "import realtime",
        "import realtime, postgrest",
        "import realtime, aiohttp",
        "import supabase",
    ):
        sys.stdout.write(f"{imports:<28} {_memory(imports):6.1f} MB RSS\n")


if __name__ == "__main__":
    main()
