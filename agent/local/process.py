"""A Deno server behind the gateway: started on demand, watched, started again with a growing pause when it ends."""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from agent.failure import Failure
from agent.local.child import Child
from agent.local.postgres import free_port

log = logging.getLogger(__name__)

READY_SECONDS: Final = 20.0
LONGEST_PAUSE_SECONDS: Final = 10.0
# Headers that belong to one connection, and those that the client of the hop behind makes itself.
HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding",
     "upgrade", "host", "content-length", "content-encoding", "accept-encoding"}
)  # fmt: skip


def find_deno() -> str:
    """The Deno binary: beside this Python (PyPI's `deno`), else on the path."""
    beside = Path(sys.executable).parent / ("deno.exe" if sys.platform == "win32" else "deno")
    found = str(beside) if beside.exists() else shutil.which("deno")
    if found is None:
        raise Failure("Deno is not installed", "run `make setup` (PyPI package deno)", code="TC624")
    return found


class DenoServer:
    """One script that listens on the port in its environment variable PORT and answers GET /ready."""

    def __init__(
        self,
        name: str,
        script: Path,
        *,
        directory: Path,
        log_file: Path,
        environment: Callable[[], Mapping[str, str]],
        options: Sequence[str] = (),
        heap_mb: int = 128,
        idle_seconds: float | None = None,
    ) -> None:
        """`idle_seconds`: stop after that long without a request (None: never)."""
        self._name = name
        self._script = script
        self._directory = directory
        self._log_file = log_file
        self._environment = environment
        self._options = [*options, f"--v8-flags=--max-old-space-size={heap_mb}"]
        self._idle_seconds = idle_seconds
        self._client = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=160), connector=aiohttp.TCPConnector(limit=0)
        )
        self._child: Child | None = None
        self._port = 0
        self._starting = asyncio.Lock()
        self._pause = 0.0
        self._not_before = 0.0
        self._used_at = time.monotonic()
        self._in_flight = 0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._child is not None and self._child.running

    async def ensure(self) -> None:
        """Start the process unless it runs, and wait until it answers. Raises Failure."""
        async with self._starting:
            if self.running:
                return
            wait = self._not_before - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            self._pause = min(LONGEST_PAUSE_SECONDS, max(0.2, self._pause * 2))
            self._not_before = time.monotonic() + self._pause
            await self._start()
            self._pause = 0.0
            if self._keeper is None:
                self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop the process and forget the connections to it."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._stop()
        await self._client.close()

    async def request(self, method: str, path: str) -> int:
        """A plain request of the stack's own. Returns the status, 0 when nobody answers."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._client.request(
                method, f"http://127.0.0.1:{self._port}{path}", timeout=aiohttp.ClientTimeout(total=5)
            ) as response:
                return response.status
        return 0

    async def forward(
        self,
        request: web.Request,
        *,
        path: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> web.StreamResponse:
        """Pass a request on and stream the answer back; 503 when the process cannot be started or breaks off.

        `headers` replace the client's; an empty one removes it.
        """
        try:
            await self.ensure()
        except Failure as failure:
            log.error("server_unavailable", extra={"server": self._name, "reason": failure.what})
            return web.json_response({"code": failure.code, "message": failure.what, "hint": failure.mend}, status=503)
        self._in_flight += 1
        try:
            return await self._forward(request, path or request.path_qs, headers, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            return web.json_response(
                {"code": "TC631", "message": f"{self._name} broke off: {error}", "hint": f"try again; see {self._log_file.name}"},
                status=503,
            )
        finally:
            self._in_flight -= 1
            self._used_at = time.monotonic()

    async def _forward(
        self, request: web.Request, path: str, headers: Mapping[str, str] | None, body: bytes | None
    ) -> web.StreamResponse:
        sent = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP)
        forwarded = {"X-Forwarded-Host": request.host, "X-Forwarded-Proto": request.scheme}
        for name, value in {**forwarded, **(headers or {})}.items():
            sent.popall(name, None)
            if value:
                sent[name] = value
        data = body if body is not None else (request.content if request.body_exists else None)
        url = f"http://127.0.0.1:{self._port}{path}"
        async with self._client.request(request.method, url, headers=sent, data=data, allow_redirects=False) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP - {"content-encoding"} and not name.lower().startswith("access-control-"):
                    response.headers.add(name, value)
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _start(self) -> None:
        self._port = free_port()
        environment = {
            name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "DENO_DIR", "XDG_CACHE_HOME") if name in os.environ
        } | {"PORT": str(self._port), "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1", **self._environment()}
        self._child = await asyncio.to_thread(
            Child,
            [find_deno(), "run", "--no-prompt", "--no-lock", *self._options, str(self._script)],
            log=self._log_file,
            environment=environment,
            directory=self._directory,
        )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._child.running:
            if await self.request("GET", "/ready") == 200:
                return
            await asyncio.sleep(0.03)
        lines = self._child.last_lines(4)
        await self._stop()
        raise Failure(f"{self._name} did not start: {lines}", f"read {self._log_file}", code="TC624")

    async def _stop(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            await asyncio.to_thread(child.stop)

    async def _keep(self) -> None:
        """Start it again when it ended by itself; end it when nobody needs it."""
        while True:
            await asyncio.sleep(0.5)
            if self._idle_seconds is not None:
                if self._in_flight == 0 and self.running and time.monotonic() - self._used_at > self._idle_seconds:
                    await self._stop()
                continue
            if not self.running:
                log.warning("server_ended", extra={"server": self._name})
                try:
                    await self.ensure()
                except Failure as failure:
                    log.error("server_unavailable", extra={"server": self._name, "reason": failure.what})
