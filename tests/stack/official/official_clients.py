"""Both official clients behind one call, so that a test compares what each of them makes of the stack's answer."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from postgrest import APIError
from supabase_auth.errors import AuthApiError

from supabase import AsyncClientOptions, acreate_client

ClientName = Literal["python", "js"]
Json = Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client returned. `text`, `status` and `headers`: the HTTP answer as it came."""

    data: Json
    error: dict[str, Json] | None
    count: int | None
    text: str
    status: int
    headers: dict[str, str]

    @property
    def code(self) -> str | None:
        """The error's code."""
        return None if self.error is None else self.error["code"]


class NodeClient:
    """supabase-js in one Node process."""

    def __init__(self) -> None:
        folder = Path(__file__).parent
        self._process = subprocess.Popen(
            ["node", str(folder / "driver.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, text=True
        )

    async def ask(self, url: str, key: str, code: str) -> Answer:
        """Evaluate an expression of `db`."""
        return await asyncio.to_thread(self._ask, url, key, code)

    def _ask(self, url: str, key: str, code: str) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"id": 1, "url": url, "key": key, "code": code}) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        assert "failure" not in said, said["failure"]
        return Answer(said["data"], said["error"], said["count"], said["text"], said["status"], said["headers"])

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


#: the client is Any: the tests also pass what its types forbid
PythonCall = Callable[[Any], Awaitable[Any]]


@dataclass(slots=True)
class _Seen:
    text: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def look(self, response: httpx.Response) -> None:
        await response.aread()
        self.text, self.status, self.headers = response.text, response.status_code, dict(response.headers)


async def ask_python(url: str, key: str, call: PythonCall) -> Answer:
    """Call supabase-py."""
    seen = _Seen()
    async with httpx.AsyncClient(timeout=20, event_hooks={"response": [seen.look]}) as http:
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
        client = await acreate_client(url, key, options)
        data, error, count = None, None, None
        try:
            said = await call(client)
            # maybe_single returns None, Auth returns its own objects
            data, count = getattr(said, "data", said), getattr(said, "count", None)
        except APIError as refused:
            error = {"code": refused.code, "message": refused.message, "details": refused.details, "hint": refused.hint}
        except AuthApiError as refused:
            error = {"code": refused.code, "message": refused.message, "details": None, "hint": None}
    return Answer(data, error, count, seen.text, seen.status, seen.headers)


@dataclass(frozen=True, slots=True)
class Official:
    """One of the clients at one stack."""

    name: ClientName
    url: str
    keys: dict[str, str]
    node: Callable[[], NodeClient]

    async def ask(self, js: str, py: PythonCall, key: str = "secret") -> Answer:
        """Run the call that belongs to this client. `key`: `secret` or `publishable`."""
        if self.name == "js":
            return await self.node().ask(self.url, self.keys[key], js)
        return await ask_python(self.url, self.keys[key], py)
