"""Prints how much the RPC path adds to the bare SQL: `python -m agent.stack.measure`. Asserts nothing."""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
import orjson
from psycopg import AsyncConnection

from agent.stack.server_user import temporary_folder
from agent.stack.stack import Stack

PROBES: Final = """
create or replace function public.measure_nothing(p_value jsonb) returns jsonb language sql as $$ select p_value $$;
create table if not exists public.measure_rows (id bigint generated always as identity, data jsonb);
create or replace function public.measure_insert(p_value jsonb) returns jsonb language plpgsql security definer as $$
begin
  insert into public.measure_rows (data) select p_value from generate_series(1, 10);
  return jsonb_build_object('inserted', 10);
end $$;
grant execute on function public.measure_nothing(jsonb), public.measure_insert(jsonb) to authenticated;
"""
BODY: Final = {"p_value": {"events": [{"seq": n, "lots": "1.00", "symbol": "EURUSD"} for n in range(5)]}}


async def timed(calls: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    """Run the calls one after the other, after a warm-up; returns the milliseconds of each."""
    for _ in range(min(50, calls)):
        await call()
    figures = []
    for _ in range(calls):
        started = time.perf_counter()
        await call()
        figures.append((time.perf_counter() - started) * 1000)
    return sorted(figures)


async def measure(calls: int) -> list[tuple[str, list[float]]]:
    """Time both probes as bare SQL and over RPC, on a temporary stack."""
    results = []
    with temporary_folder() as folder:
        async with Stack(folder) as stack:
            async with await AsyncConnection.connect(stack.database.dsn, autocommit=True) as admin:
                await admin.execute(PROBES)
            token = stack.keys.sign(
                {"sub": "6f0b0000-0000-4000-8000-000000000001", "role": "authenticated", "exp": 4102444800}
            )
            headers = {
                "apikey": stack.publishable_key,
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
            }
            body = orjson.dumps(BODY)
            value = orjson.dumps(BODY["p_value"]).decode()
            async with (
                aiohttp.ClientSession(headers=headers) as client,
                await AsyncConnection.connect(stack.database.dsn, autocommit=True, prepare_threshold=0) as connection,
            ):
                for name in ("measure_nothing", "measure_insert"):
                    statement = f"select public.{name}(%s::jsonb)::text".encode()

                    async def bare(statement: bytes = statement) -> None:
                        await (await connection.execute(statement, (value,))).fetchone()

                    async def rpc(name: str = name) -> None:
                        async with client.post(f"{stack.url}/rest/v1/rpc/{name}", data=body) as response:
                            await response.read()
                            if response.status != 200:
                                raise RuntimeError(await response.text())

                    results.append((f"{name} bare SQL", await timed(calls, bare)))
                    results.append((f"{name} RPC", await timed(calls, rpc)))
    return results


def main() -> int:
    """Print p50, p95, p99."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    for name, figures in asyncio.run(measure(parser.parse_args().calls)):
        p95, p99 = figures[int(len(figures) * 0.95)], figures[int(len(figures) * 0.99)]
        sys.stdout.write(
            f"{name:28} p50 {statistics.median(figures):6.2f} ms   p95 {p95:6.2f} ms   p99 {p99:6.2f} ms\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
