"""The paper broker as a child process: its books outlive agents, but it never outlives its parent."""

import asyncio
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

from agent.paper.client import PaperClient
from agent.paper.connection import PaperLost
from agent.paper.messages import decode, encode, parse

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0


class PaperProcess:
    """Use as `async with PaperProcess() as broker`; call `start` and `stop` to restart it with the same `data`.

    Operators authenticate with `token`; programs log in at `address` with their account's password. With
    `virtual_clock`, latencies and expiries do not elapse until `PaperClient.advance`.
    """

    def __init__(
        self, *, token: str | None = None, port: int = 0, data: Path | None = None, virtual_clock: bool = False
    ) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self._port = port
        self._data = data
        self._virtual_clock = virtual_clock
        self._process: Process | None = None
        #: the last lines of standard error; it is read continuously, because a full pipe would block the process
        self._said: deque[bytes] = deque(maxlen=20)
        self._listening: asyncio.Task[None] | None = None
        self._address: str | None = None

    @property
    def address(self) -> str:
        """host:port; it stays the same when `start` restarts the process."""
        if self._address is None:
            raise RuntimeError("the paper broker has not been started")
        return self._address

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the paper broker has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """False before the start and once the process has ended."""
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the process. Raises PaperLost with its error output when it fails."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent.paper.server", stdin=PIPE, stdout=PIPE, stderr=PIPE,
            # the parent handles Ctrl-C and stops its broker last
            start_new_session=True,
        )  # fmt: skip
        self._process = process
        self._listening = asyncio.create_task(self._listen(process), name="paper-stderr")
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        settings = {
            "token": self.token, "port": self._port, "virtual_clock": self._virtual_clock,
            "data": None if self._data is None else str(self._data),
        }  # fmt: skip
        try:
            stdin.write(encode(settings))
            await stdin.drain()
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await stdout.readline()
        except (OSError, TimeoutError):
            line = b""
        if not line:
            await self.kill()
            raise PaperLost(f"the paper broker did not start: {self.said[-500:]}")
        self._address = decode(str, parse(line).get("address"))
        self._port = int(self._address.rpartition(":")[2])

    async def client(self) -> PaperClient:
        """A new operator connection; the caller closes it."""
        return await PaperClient.connect(self.address, self.token)

    async def stop(self) -> None:
        """Stop the process and wait until it has ended."""
        process = self._process
        if process is None:
            return
        if process.returncode is None and process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._ended(process)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Kill with SIGKILL, to simulate a crash."""
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        if process is not None:
            await self._ended(process)

    @property
    def said(self) -> str:
        """The last lines that the process wrote to standard error."""
        return b"".join(self._said).decode(errors="replace").strip()

    async def _ended(self, process: Process) -> None:
        await process.wait()
        if self._listening is not None:
            await self._listening

    async def _listen(self, process: Process) -> None:
        if process.stderr is not None:
            async for line in process.stderr:
                self._said.append(line)
