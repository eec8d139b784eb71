"""One handler of broadcasts with its own queue: a handler that raises or hangs delays no other."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """One message on the agent's topic; `received_at` is on the database's clock."""

    event: str
    payload: Mapping[str, object]
    received_at: datetime


Handler = Callable[[Broadcast], Awaitable[None]]


class HandlerQueue:
    """One handler and its bounded queue."""

    def __init__(
        self, name: str, handler: Handler, *, backlog: int, timeout: timedelta, catch_up: Callable[[], None]
    ) -> None:
        """`catch_up` is called when a message was lost here: it requests what is outstanding."""
        self.name = name
        self._handler = handler
        self._timeout = timeout.total_seconds()
        self._queue: asyncio.Queue[Broadcast] = asyncio.Queue(backlog)
        self._catch_up = catch_up
        self._overflowed = False

    def put(self, message: Broadcast) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            if not self._overflowed:
                log.error("handler_behind", extra={"handler": self.name, "backlog": self._queue.maxsize})
            self._overflowed = True
        self._queue.put_nowait(message)

    async def work(self) -> NoReturn:
        while True:
            message = await self._queue.get()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._handler(message)
            except TimeoutError:
                log.error(
                    "handler_hangs", extra={"handler": self.name, "event": message.event, "seconds": self._timeout}
                )
                self._catch_up()
            except Exception:
                log.exception("handler_failed", extra={"handler": self.name, "event": message.event})
                self._catch_up()
            if self._overflowed and self._queue.empty():
                self._overflowed = False
                self._catch_up()
