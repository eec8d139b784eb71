"""One JSON-lines connection to the paper broker that can have many calls in progress."""

import asyncio
import itertools
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from agent.paper.messages import LINE_LIMIT, MalformedMessage, encode, parse


class PaperLost(ConnectionError):
    """The connection to the paper broker is lost. Requests that were sent may have been executed."""


class PaperRefused(Exception):
    """The paper broker answered a call with an error; `code` is a short word, the text gives the reason."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Connection:
    """Matches calls with replies; `on_push` receives pushes as they arrive, `on_lost` is called once at the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._lost: PaperLost | None = None
        self.on_push: Callable[[dict[str, Any]], None] = lambda _message: None
        self.on_lost: Callable[[PaperLost], None] = lambda _error: None
        self._task = asyncio.create_task(self._read(), name="paper-connection")

    @classmethod
    async def open(cls, address: str, *, timeout: float = 5.0) -> Self:  # noqa: ASYNC109
        """`address` is host:port. Raises OSError or TimeoutError when there is no answer."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{address!r} is not of the form host:port")
        # asyncio.timeout throughout: wait_for can swallow a cancellation on Python 3.11
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=LINE_LIMIT)
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    @property
    def lost(self) -> PaperLost | None:
        return self._lost

    async def call(self, op: str, **fields: object) -> Any:
        """Returns the reply's `ok`.

        Raises PaperLost when no reply will come, PaperRefused for an error of the broker.
        """
        if self._lost is not None:
            raise PaperLost(str(self._lost))
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(encode({"id": number, "op": op, **fields}))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        self._fail("the connection was closed")
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                await self._writer.wait_closed()

    def abort(self, why: str) -> None:
        """Close the connection at once and notify everybody who waits for it."""
        self._fail(why)
        self._writer.transport.abort()

    async def _read(self) -> None:
        why = "the paper broker closed the connection"
        try:
            while line := await self._reader.readline():
                self._receive(parse(line))
        except (OSError, MalformedMessage, ValueError) as error:
            why = f"the connection to the paper broker broke: {error}"
        self.abort(why)

    def _receive(self, message: dict[str, Any]) -> None:
        if "push" in message:
            self.on_push(message)
            return
        answer = self._waiting.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(PaperRefused(message["error"]["code"], message["error"]["message"]))
        else:
            answer.set_result(message.get("ok"))

    def _fail(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = PaperLost(why)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PaperLost(why))
        self.on_lost(self._lost)
