"""A Deno server behind the gateway: started on demand, monitored, and restarted with a growing delay when it ends."""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from agent.failure import Failure
from agent.stack.child_process import Child
from agent.stack.request_guard import INNER_HEADER, forwarded_target, is_below, readable

log = logging.getLogger(__name__)

READY_SECONDS: Final = 20.0
#: aiohttp's limit for a client's request line; the forwarded line can be longer, because odd bytes are sent as %XX
LONGEST_TARGET: Final = 8190
#: limit for a response header: REST repeats the target in Content-Location, percent-encoded again, up to three times as
#: long
LONGEST_FIELD: Final = 4 * LONGEST_TARGET
LONGEST_PAUSE_SECONDS: Final = 10.0
# Hop-by-hop headers, and headers that the client of the next hop sets itself.
HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding",
     "upgrade", "host", "content-length", "content-encoding", "accept-encoding"}
)  # fmt: skip
INNER_SECRET: Final = "TRADECOPIER_GATEWAY_SECRET"
SECRET_FILES: Final = (
    "postgres",
    "postgres.passwords",
    "postgres.password",
    "keys.json",
    "logins.json",
    "demo_login.json",
)
# a random word per start, known only to the script and to this process
LISTENING: Final = "TRADECOPIER_LISTENING"


def find_deno() -> str:
    """The Deno binary: next to this Python (PyPI's `deno`), otherwise on the PATH."""
    beside = Path(sys.executable).parent / ("deno.exe" if sys.platform == "win32" else "deno")
    found = str(beside) if beside.exists() else shutil.which("deno")
    if found is None:
        raise Failure("Deno is not installed", "run `make setup` (PyPI package deno)", code="TC624")
    return found


class DenoServer:
    """A script that listens on a port chosen by the system and answers GET /ready.

    It prints `<word of LISTENING> <port>` to its log, which only this user can read. (If this process chose the port,
    another user of the machine could take it first and would then receive the secret.) The script answers only requests
    that carry the secret of this start (INNER_SECRET in its environment) in the header INNER_HEADER.
    """

    def __init__(
        self,
        name: str,
        script: Path,
        *,
        directory: Path,
        log_file: Path,
        environment: Callable[[], Mapping[str, str]],
        prefixes: Sequence[str],
        options: Sequence[str] = (),
        heap_mb: int = 128,
        idle_seconds: float | None = None,
        own_cors: bool = False,
    ) -> None:
        """`prefixes`: the paths that are forwarded. `own_cors`: pass on the CORS headers of the server's answers.

        `idle_seconds`: stop after that long without a request (None: never).
        """
        self._name = name
        self._script = script
        self._directory = directory
        self._log_file = log_file
        self._environment = environment
        self._prefixes = tuple(prefixes)
        self._secret = ""
        self._options = [*options, *_denied(log_file.parent, directory), f"--v8-flags=--max-old-space-size={heap_mb}"]
        self._lock = () if any(option.startswith("--lock=") for option in options) else ("--no-lock",)
        self._idle_seconds = idle_seconds
        self._own_cors = own_cors
        self._client = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=160), connector=aiohttp.TCPConnector(limit=0),
            max_field_size=LONGEST_FIELD,
        )  # fmt: skip
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
        """Whether the process is running."""
        return self._child is not None and self._child.running

    async def ensure(self) -> None:
        """Start the process unless it is running, and wait until it answers. Raises Failure."""
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
        """Stop the process and close the connections to it."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._stop()
        await self._client.close()

    async def request(self, method: str, path: str) -> int:
        """Send a request from the stack itself. Returns the status, or 0 when there is no answer."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._client.request(
                method,
                self._address(path),
                headers={INNER_HEADER: self._secret},
                timeout=aiohttp.ClientTimeout(total=5),
            ) as response:
                return response.status
        return 0

    async def forward(
        self,
        request: web.Request,
        *,
        below: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> web.StreamResponse:
        """Forward a guarded request and stream the response back; 503 when the process cannot start or the transfer
        breaks.

        `below` is removed from the start of the path. `headers` replace the client's; an empty value removes a header.
        """
        target = forwarded_target(request.raw_path).removeprefix(below)
        if not any(is_below(target, prefix) for prefix in self._prefixes):
            return web.json_response({"code": "NOT_FOUND", "message": "there is no endpoint at this path"}, status=404)
        if len(target) > LONGEST_TARGET:
            return _too_long(len(target))
        try:
            await self.ensure()
        except Failure as failure:
            log.error("server_unavailable", extra={"server": self._name, "reason": failure.what})
            return web.json_response({"code": failure.code, "message": failure.what, "hint": failure.fix}, status=503)
        self._in_flight += 1
        try:
            return await self._forward(request, target, headers, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            return web.json_response(
                {
                    "code": "TC631",
                    "message": f"{self._name} stopped in the middle of the request: {error}",
                    "hint": f"try again; see {self._log_file.name}",
                },
                status=503,
            )
        finally:
            self._in_flight -= 1
            self._used_at = time.monotonic()

    async def _forward(
        self, request: web.Request, target: str, headers: Mapping[str, str] | None, body: bytes | None
    ) -> web.StreamResponse:
        sent = CIMultiDict(
            (name, readable(value)) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP
        )
        forwarded = {"X-Forwarded-Host": request.host, "X-Forwarded-Proto": request.scheme, INNER_HEADER: self._secret}
        for name, value in {**forwarded, **(headers or {})}.items():
            sent.popall(name, None)
            if value:
                sent[name] = value
        data = body if body is not None else (request.content if request.body_exists else None)
        async with self._client.request(
            request.method, self._address(target), headers=sent, data=data, allow_redirects=False
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() in HOP_BY_HOP - {"content-encoding"}:
                    continue
                if name.lower().startswith("access-control-") and not self._own_cors:
                    continue
                # few clients can read a longer header
                if len(value) <= LONGEST_TARGET:
                    response.headers.add(name, value)
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    def _address(self, target: str) -> URL:
        """The target is sent unchanged; by default the client would resolve dot segments, after all checks were
        made."""
        return URL(f"http://127.0.0.1:{self._port}{target}", encoded=True)

    async def _start(self) -> None:
        self._port = 0
        self._secret, word = secrets.token_hex(32), secrets.token_hex(32)
        environment = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "TMPDIR", "DENO_DIR", "XDG_CACHE_HOME")
            if name in os.environ
        } | {LISTENING: word, INNER_SECRET: self._secret, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"}
        self._child = await asyncio.to_thread(
            Child,
            [find_deno(), "run", "--no-prompt", *self._lock, *self._options, str(self._script)],
            log=self._log_file,
            environment={**environment, **self._environment()},
            directory=self._directory,
        )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._child.running:
            self._port = self._port or _port_after(word, self._child.last_lines(200))
            if self._port and await self.request("GET", "/ready") == 200:
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
        """Restart the process when it ended unexpectedly; stop it when it has been idle."""
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


def _too_long(size: int) -> web.Response:
    answer = {
        "code": "TC642",
        "message": f"the request's URL is {size} bytes when forwarded; the limit is {LONGEST_TARGET}",
        "hint": "shorten the query, or split it into several requests",
    }
    return web.json_response(answer, status=414)


def _denied(data: Path, root: Path) -> list[str]:
    """Options that deny reading the stack's data below the checkout, which holds the superuser's password."""
    base = root.resolve()
    folders = {path for folder in (data, root / ".tradecopier") for path in (folder.absolute(), folder.resolve())}
    denied: list[Path] = []
    for folder in sorted(folders):
        # the checkout stays readable, except for the files with secrets
        if base.is_relative_to(folder.resolve()):
            denied += [folder / name for name in SECRET_FILES]
        elif folder.resolve().is_relative_to(base) or folder.is_relative_to(root.absolute()):
            denied.append(folder)
    if any("," in str(path) for path in denied):
        raise Failure(
            "the path of the stack's data folder contains a comma", "choose another folder with --data", code="TC624"
        )
    return [f"--deny-read={','.join(map(str, denied))}"] if denied else []


def _port_after(word: str, lines: str) -> int:
    found = re.search(rf"^{word} (\d+)$", lines, re.MULTILINE)
    return int(found[1]) if found is not None else 0
