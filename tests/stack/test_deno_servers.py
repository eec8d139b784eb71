"""The Deno processes behind the gateway: what they can read, where they listen, what they log."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import psutil
import pytest

from agent.stack import child_process, deno_server
from agent.stack.child_process import Child
from agent.stack.deno_server import DenoServer
from agent.stack.passwords import FILE

if TYPE_CHECKING:
    from agent.stack.stack import Stack

GATEWAY_ONLY = Path(deno_server.__file__).with_name("gateway_only.ts")
READER = """
import { fromGateway, tellPort } from "%s";
Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: tellPort }, async (request) => {
  if (!fromGateway(request)) return new Response("", { status: 401 });
  const path = decodeURIComponent(new URL(request.url).search.slice(1));
  if (path === "") return new Response("ok");
  try {
    await Deno.readTextFile(path);
    return new Response("read");
  } catch (error) {
    return new Response("", { status: error instanceof Deno.errors.NotCapable ? 403 : 500 });
  }
});
"""


@pytest.mark.parametrize(
    "data", [".tradecopier/stack", "my data", "."], ids=["usual", "anywhere in the checkout", "the checkout"]
)
async def test_the_superusers_password_is_not_readable_below_the_checkout(tmp_path: Path, data: str) -> None:
    folder = tmp_path / data
    folder.mkdir(parents=True, exist_ok=True)
    for file in (folder / FILE, folder / "keys.json", tmp_path / "open.txt"):
        file.write_text("text")
    script = tmp_path / "reader.ts"
    script.write_text(READER % GATEWAY_ONLY.as_uri())
    server = DenoServer(
        "Reader",
        script,
        directory=tmp_path,
        log_file=folder / "reader.log",
        environment=dict,
        prefixes=["/"],
        options=["--no-config", "--allow-net=127.0.0.1", "--allow-env", f"--allow-read={tmp_path}"],
    )
    try:
        await server.ensure()
        assert await server.request("GET", f"/?{tmp_path}/open.txt") == 200
        for name in (FILE, "keys.json"):
            assert await server.request("GET", f"/?{folder}/{name}".replace(" ", "%20")) == 403
    finally:
        await server.close()


async def test_the_servers_choose_their_own_ports(stack: "Stack") -> None:
    """Another user could take a predetermined port first and would then receive the gateway's secret."""
    assert stack.gateway_pid is not None
    servers = [found for found in psutil.Process(stack.gateway_pid).children(recursive=True) if "deno" in found.name()]
    assert servers
    assert [found.cmdline() for found in servers if "PORT" in found.environ()] == []


async def test_what_a_client_sends_does_not_fill_the_log(stack: "Stack") -> None:
    logs = [stack.data / "auth.log", stack.data / "gateway.log"]
    async with aiohttp.ClientSession(stack.url, headers={"apikey": stack.publishable_key}) as http:
        before = [log.stat().st_size for log in logs]
        for text in ("x" * 200_000, "x\n" * 40_000):
            for path, body in (
                ("/rest/v1/copiers", {"id": text}), ("/rest/v1/copiers?select=" + text[:2000], {}),
                ("/auth/v1/signup", {"email": text, "password": text}), ("/auth/v1/verify", {"type": text}),
                ("/auth/v1/token?grant_type=password", {"email": text, "password": "x"}),
            ):  # fmt: skip
                async with http.post(path, json=body) as response:
                    assert 400 <= response.status < 500, await response.text()
    for log, size in zip(logs, before, strict=True):
        lines = log.read_bytes()[size:].splitlines()
        assert max((len(line) for line in lines), default=0) <= 300
        assert len(lines) <= 8


async def test_a_log_is_cut_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "LARGEST_RUNNING_LOG_BYTES", 100_000)
    log, kept = tmp_path / "child.log", tmp_path / "child.log.1"
    program = "import sys, time\nfor n in range(10**9): print(n, 'x' * 1000, flush=True); time.sleep(0.0005)"
    running = Child([sys.executable, "-c", program], log=log)
    try:
        async with asyncio.timeout(30):
            while not kept.exists() or log.stat().st_size > 100_000:
                assert running.running
                await asyncio.sleep(0.01)
        assert kept.stat().st_mode & 0o777 == 0o600
        assert b"\0" not in log.read_bytes()
    finally:
        running.stop()
