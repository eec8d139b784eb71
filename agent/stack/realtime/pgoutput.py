"""The part of Postgres' `pgoutput` protocol (version 1, text) that is needed for inserts into `realtime.messages`.

Source: PostgreSQL manual, "Logical Replication Message Formats". Everything but Relation, Insert and Commit is skipped.
"""

import struct
from dataclasses import dataclass

_MESSAGE_COLUMNS = frozenset({"id", "topic", "event", "private", "extension", "payload"})


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One committed row of `realtime.messages`; `payload` is JSON text, or raw bytes when `binary`."""

    id: str
    topic: str
    event: str
    private: bool
    payload: bytes
    binary: bool


class Decoder:
    """Tracks the relations of one replication session and decodes messages into rows."""

    def __init__(self) -> None:
        self._columns: dict[int, tuple[str, ...]] = {}

    def feed(self, data: bytes) -> MessageRow | None:
        """The row of an Insert message, or None for any other message (and for a row that no client may receive)."""
        kind = data[:1]
        if kind == b"I":
            (relation,) = struct.unpack_from("!I", data, 1)
            columns = self._columns.get(relation)
            return None if columns is None else _row(_tuple(data, 6, columns))
        if kind == b"R":
            self._relation(data)
        return None

    def _relation(self, data: bytes) -> None:
        (relation,) = struct.unpack_from("!I", data, 1)
        at = data.index(b"\0", 5) + 1
        at = data.index(b"\0", at) + 1 + 1  # name, then one byte of replica identity
        (count,) = struct.unpack_from("!H", data, at)
        at += 2
        names: list[str] = []
        for _ in range(count):
            end = data.index(b"\0", at + 1)
            names.append(data[at + 1 : end].decode())
            at = end + 1 + 8  # type oid and modifier
        if _MESSAGE_COLUMNS.issubset(names):
            self._columns[relation] = tuple(names)
        else:
            self._columns.pop(relation, None)


def _tuple(data: bytes, at: int, columns: tuple[str, ...]) -> dict[str, bytes | None]:
    values: dict[str, bytes | None] = {}
    at += 2
    for name in columns:
        if data[at : at + 1] == b"t":
            (size,) = struct.unpack_from("!I", data, at + 1)
            values[name] = data[at + 5 : at + 5 + size]
            at += 5 + size
        else:  # null, or unchanged TOAST (never in an insert)
            values[name] = None
            at += 1
    return values


def _row(values: dict[str, bytes | None]) -> MessageRow | None:
    key, topic, event = values["id"], values["topic"], values["event"]
    payload, binary = values["payload"], values.get("binary_payload")
    if key is None or topic is None or event is None or values["extension"] != b"broadcast":
        return None
    if payload is None:
        if binary is None:
            return None
        payload = bytes.fromhex(binary.decode().removeprefix("\\x"))
    private = values["private"] == b"t"
    return MessageRow(key.decode(), topic.decode(), event.decode(), private, payload, binary is not None)
