"""Writes the journal: a thread commits everything that waits in one transaction; the event loop itself may commit while
the thread is idle.

An order waits for its row. Passing the write to the thread and back costs a millisecond, because both need the
interpreter; the commit itself, without a flush, costs 40 µs. So `execute_now` commits in the event loop unless the
thread has work. Everything slow, such as flushes and checkpoints, is done by the thread.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, cast

from agent.journal.file import JournalError, close_file

log = logging.getLogger(__name__)

T = TypeVar("T")
COMMIT_BATCH: Final = 500
#: seconds after which a write without an answer counts as failed: no order waits longer for the disk
ANSWER_TIMEOUT: Final = 10.0
#: commits after which the thread checkpoints the write-ahead log
CHECKPOINT_AFTER: Final = 500


@dataclass(frozen=True, slots=True)
class _Operation:
    work: Callable[[sqlite3.Connection], object]
    durable: bool
    done: "asyncio.Future[object] | None"


class JournalWriter:
    """Owns the connection. Its methods must be called in the event loop `loop`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._path = path
        self._loop = loop
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._failed = False
        #: failed writes since the start
        self.refused = 0
        self._closed = False
        self._flushing: bool | None = None
        #: held while the connection is in use
        self._at_work = threading.Lock()
        #: operations given to the thread (counted by the loop) and finished by it (counted by the thread)
        self._given = 0
        self._done = 0
        self._commits = 0
        connection.execute("pragma wal_autocheckpoint = 0")
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """False from a failed write to the next one that succeeds."""
        return not self._failed

    async def execute(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Run `work` in the thread and wait for the commit (`durable`: and the flush). Raises `JournalError`; after a
        timeout the work may still be done."""
        if self._closed:
            raise JournalError("the journal is closed")
        done: asyncio.Future[object] = self._loop.create_future()
        self._give(_Operation(work, durable, done))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return cast(T, await done)
        except TimeoutError:
            raise JournalError(f"the journal {self._path} did not answer within {ANSWER_TIMEOUT:g} s") from None

    def enqueue(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Run `work` in the thread later; failures are logged."""
        if self._closed:
            log.warning("journal_write_after_close")
            return
        self._give(_Operation(work, durable=False, done=None))

    async def execute_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Like `execute`, but in the event loop if the thread has no work: for quick writes that an order waits for."""
        if self._closed or self._given != self._done or not self._at_work.acquire(blocking=False):
            return await self.execute(work)
        try:
            (result,) = self._commit([_Operation(work, durable=False, done=None)])
        finally:
            self._at_work.release()
        if isinstance(result, Exception):
            raise _not_written(result)
        return cast(T, result)

    def _give(self, operation: _Operation) -> None:
        self._given += 1
        self._queue.put(operation)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, 10)

    # -- the thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._gather()
            with self._at_work:
                results = self._commit(batch)
                self._checkpoint()
                self._done += len(batch)
            self._settle(batch, results)
        close_file(self._connection)

    def _gather(self) -> tuple[list[_Operation], bool]:
        """The operations that wait now, up to `COMMIT_BATCH`, and whether the journal is closing."""
        batch: list[_Operation] = []
        operation = self._queue.get()
        while operation is not None:
            batch.append(operation)
            if len(batch) >= COMMIT_BATCH:
                return batch, False
            try:
                operation = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: Sequence[_Operation]) -> list[object]:
        """Run the batch in one transaction; if that fails, one by one, so that only the failing operations fail."""
        try:
            return self._transact(batch)
        except Exception as error:
            if len(batch) != 1:
                return [self._commit([operation])[0] for operation in batch]
            if isinstance(error, sqlite3.Error):
                self._failed = True
                self.refused += 1
            log.error("journal_write_failed", extra={"error": str(error), "path": str(self._path)})
            return [error]

    def _transact(self, batch: Sequence[_Operation]) -> list[object]:
        if not batch:
            return []
        self._flush_on_commit(any(operation.durable for operation in batch))
        self._connection.execute("begin immediate")
        try:
            results: list[object] = [operation.work(self._connection) for operation in batch]
            self._connection.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("rollback")
            raise
        self._failed = False
        self._commits += 1
        return results

    def _checkpoint(self) -> None:
        """Checkpoint the write-ahead log. Only the thread does it, because the flush takes a while."""
        if self._commits < CHECKPOINT_AFTER:
            return
        self._commits = 0
        try:
            self._connection.execute("pragma wal_checkpoint(passive)")
        except sqlite3.Error as error:
            log.warning("journal_checkpoint_failed", extra={"error": str(error), "path": str(self._path)})

    def _flush_on_commit(self, flush: bool) -> None:
        if flush != self._flushing:
            self._connection.execute(f"pragma synchronous = {'full' if flush else 'normal'}")
            self._flushing = flush

    def _settle(self, batch: Sequence[_Operation], results: Sequence[object]) -> None:
        waiting = [(o.done, result) for o, result in zip(batch, results, strict=True) if o.done is not None]
        if waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits for the results
                self._loop.call_soon_threadsafe(_resolve, waiting)


def _resolve(waiting: Sequence[tuple["asyncio.Future[object]", object]]) -> None:
    for done, result in waiting:
        if done.done():
            continue
        if isinstance(result, Exception):
            done.set_exception(_not_written(result))
        else:
            done.set_result(result)


def _not_written(cause: Exception) -> JournalError:
    error = JournalError(f"the journal could not be written: {cause}")
    error.__cause__ = cause
    return error
