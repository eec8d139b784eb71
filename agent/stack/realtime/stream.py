"""Logical decoding of `realtime.messages` in a thread: keeps commit order, survives restarts, hands rows to the
loop."""

import contextlib
import logging
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg2
from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor

from agent.stack.realtime.pgoutput import Decoder, MessageRow
from agent.stack.realtime.storage import PREPARE_SQL, PUBLICATION

log = logging.getLogger(__name__)
# Hosted's name for the slot. Slots are cluster-wide, so a random suffix lets several servers share a cluster.
_SLOT = "supabase_realtime_messages_replication_slot_"
_FEEDBACK_S = 5.0
_BATCH = 256
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

Rows = Callable[[Sequence[MessageRow]], None]


class _Wake:
    """A socket pair that interrupts the thread's `select` (on Windows, `select` accepts only sockets)."""

    def __init__(self) -> None:
        self.read, self._write = socket.socketpair()

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self._write.send(b"x")

    def close(self) -> None:
        self.read.close()
        self._write.close()


@dataclass(slots=True)
class MessageStream:
    """Streams committed rows until `stop`.

    `on_rows` is called *in the thread*, once per transaction (in parts of 256 rows if it is larger), `on_state(True)`
    when streaming begins and `on_state(False)` when it breaks. A lost connection is retried for ever, first after 50
    ms, later every 2 s; rows committed meanwhile are lost, as on hosted (the slot is temporary).
    """

    dsn: str
    on_rows: Rows
    on_state: Callable[[bool], None]
    slot: str | None = None
    _wake: _Wake | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._wake = _Wake()
        self._thread = threading.Thread(target=self._run, name="realtime-stream", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10) -> None:
        """End the thread. Blocks until it has closed its connection, which also drops the slot."""
        self._stopping.set()
        if self._wake is None or self._thread is None:
            return
        self._wake.interrupt()
        self._thread.join(timeout_s)
        self._wake.close()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._session()
            except (psycopg2.Error, OSError) as error:
                if self._stopping.is_set():
                    return
                failures = 0 if time.monotonic() - began > 5 else failures + 1
                log.warning("realtime_stream_lost", extra={"reason": str(error).strip(), "failures": failures})
            self.on_state(False)
            self._stopping.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])

    def _session(self) -> None:
        connection = psycopg2.connect(
            self.dsn,
            connection_factory=LogicalReplicationConnection,
            application_name="realtime_replication_connection",
            connect_timeout=5,
        )
        try:
            with connection.cursor() as cursor:
                self.slot = slot = _SLOT + secrets.token_hex(4)
                cursor.execute(PREPARE_SQL)
                cursor.execute(f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT')
                cursor.start_replication(
                    slot_name=slot, options={"proto_version": "1", "publication_names": PUBLICATION}, decode=False
                )
                self.on_state(True)
                self._stream(connection, cursor)
        finally:
            connection.close()

    def _stream(self, connection: LogicalReplicationConnection, cursor: ReplicationCursor) -> None:
        assert self._wake is not None
        decoder = Decoder()
        rows: list[MessageRow] = []
        acknowledged = time.monotonic()
        while not self._stopping.is_set():
            message = cursor.read_message()
            if message is None:
                select.select([connection.fileno(), self._wake.read.fileno()], [], [], _FEEDBACK_S)
            else:
                data: bytes = message.payload
                row = decoder.feed(data)
                if row is not None:
                    rows.append(row)
                if rows and (data[:1] == b"C" or len(rows) >= _BATCH):
                    self.on_rows(rows)
                    rows = []
            now = time.monotonic()
            if now - acknowledged >= _FEEDBACK_S:
                # Also lets Postgres discard WAL: no row is ever read twice.
                cursor.send_feedback(flush_lsn=cursor.wal_end, reply=False)  # type: ignore[no-untyped-call]
                acknowledged = now
