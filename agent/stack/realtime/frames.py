"""Phoenix frames as raw WebSocket frames, for both serializers.

Version 1.0.0 has JSON objects; 2.0.0 has JSON arrays and binary broadcasts.

Frames are built complete with their WebSocket header, so that one broadcast is encoded once per serializer and the same
bytes are written to every subscriber's transport.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

Vsn = Literal["1.0.0", "2.0.0"]
VERSIONS: Mapping[str, Vsn] = {"1.0.0": "1.0.0", "2.0.0": "2.0.0"}
TEXT, BINARY = 1, 2
_USER_PUSH, _USER_BROADCAST = 3, 4
_RAW, _JSON = 0, 1
_BYTE = 255


class BadFrame(ValueError):
    """The client sent a frame that its serializer cannot decode."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message from a client. `payload` is decoded JSON, or `bytes` for a binary broadcast."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Broadcast:
    """An outgoing broadcast. `payload` is encoded JSON, or raw bytes when `binary`; `meta_id` is the row's id."""

    topic: str
    event: str
    payload: bytes
    meta_id: str | None = None
    replayed: bool = False
    binary: bool = False

    @property
    def meta(self) -> dict[str, object]:
        meta: dict[str, object] = {} if self.meta_id is None else {"id": self.meta_id}
        if self.replayed:
            meta["replayed"] = True
        return meta


#: orjson decodes 1,024 levels but encodes only 254
DEEPEST = 200


def decode_text(vsn: Vsn, data: str) -> Incoming:
    """Decode a client's text frame. Raises BadFrame."""
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadFrame(str(error)) from error
    if vsn == "2.0.0":
        if not isinstance(raw, list) or len(raw) != 5:
            raise BadFrame("a 2.0.0 frame is an array of five")
        join_ref, ref, topic, event, payload = raw
    else:
        if not isinstance(raw, dict):
            raise BadFrame("a 1.0.0 frame is an object")
        join_ref, ref = raw.get("join_ref"), raw.get("ref")
        topic, event, payload = raw.get("topic"), raw.get("event"), raw.get("payload")
    if not isinstance(topic, str) or not isinstance(event, str):
        raise BadFrame("topic and event are strings")
    if (
        event != "phx_join" and data.count("{") + data.count("[") > DEEPEST
    ):  # a join names the field that is out of bounds
        _check_writable(raw)
    return Incoming(_ref(join_ref), _ref(ref), topic, event, payload if isinstance(payload, dict) else {})


def _check_writable(raw: object) -> None:
    """Reject a value that is nested too deeply to be encoded again: forwarding it would fail."""
    try:
        orjson.dumps(raw)
    except orjson.JSONEncodeError as error:
        raise BadFrame(str(error)) from error


def _ref(value: object) -> str | None:
    if isinstance(value, list | dict):
        raise BadFrame("a ref is a string or a number")
    return None if value is None else str(value)


def decode_binary(data: bytes) -> Incoming:
    """Decode a broadcast push (kind 3) of a 2.0.0 client. Raises BadFrame.

    Layout: kind, five one-byte lengths (join_ref, ref, topic, event, metadata), encoding, the five texts, the payload.
    """
    if len(data) < 7 or data[0] != _USER_PUSH:
        raise BadFrame("unknown binary frame")
    lengths, encoding = data[1:6], data[6]
    texts: list[str] = []
    at = 7
    for length in lengths:
        try:
            texts.append(data[at : at + length].decode())
        except UnicodeDecodeError as error:
            raise BadFrame("binary frame is not UTF-8") from error
        at += length
    if at > len(data):
        raise BadFrame("binary frame is cut short")
    join_ref, ref, topic, event, _metadata = texts
    body: object = data[at:]
    if encoding == _JSON:
        try:
            body = orjson.loads(data[at:])
        except orjson.JSONDecodeError as error:
            raise BadFrame("binary frame carries no JSON") from error
    payload: dict[str, object] = {"type": "broadcast", "event": event, "payload": body}
    return Incoming(join_ref or None, ref or None, topic, "broadcast", payload)


def websocket_frame(opcode: int, data: bytes) -> bytes:
    """A complete, unmasked, unfragmented frame from the server (RFC 6455 §5.2)."""
    size = len(data)
    if size < 126:
        return bytes((0x80 | opcode, size)) + data
    if size < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + data
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + data


def message(
    vsn: Vsn, topic: str, event: str, payload: object, *, ref: str | None = None, join_ref: str | None = None
) -> bytes:
    """Any message except a broadcast. In 1.0.0 a frame has exactly four keys; `join_ref` exists only in 2.0.0."""
    if vsn == "2.0.0":
        return websocket_frame(TEXT, orjson.dumps([join_ref, ref, topic, event, payload]))
    return websocket_frame(TEXT, orjson.dumps({"topic": topic, "event": event, "payload": payload, "ref": ref}))


def broadcast(vsn: Vsn, item: Broadcast) -> bytes | None:
    """The frame of a broadcast, or None when this serializer cannot carry it (binary payload on 1.0.0).

    The payload is inserted exactly as it came from Postgres; it is never parsed here.
    """
    topic = f"realtime:{item.topic}"
    meta = orjson.dumps(item.meta) if item.meta else b""
    if vsn == "2.0.0":
        binary = _binary_broadcast(topic.encode(), item.event.encode(), meta, item)
        if binary is not None or item.binary:
            return binary
    elif item.binary:
        return None
    body = b'{"type":"broadcast","event":' + orjson.dumps(item.event) + b',"payload":' + item.payload
    body += b',"meta":' + meta + b"}" if meta else b"}"
    if vsn == "2.0.0":
        return websocket_frame(TEXT, b"[null,null," + orjson.dumps(topic) + b',"broadcast",' + body + b"]")
    return websocket_frame(
        TEXT, b'{"topic":' + orjson.dumps(topic) + b',"event":"broadcast","payload":' + body + b',"ref":null}'
    )


def _binary_broadcast(topic: bytes, event: bytes, meta: bytes, item: Broadcast) -> bytes | None:
    # Each length is one byte; a frame with a longer field is sent as text.
    if max(len(topic), len(event), len(meta)) > _BYTE:
        return None
    head = bytes((_USER_BROADCAST, len(topic), len(event), len(meta), _RAW if item.binary else _JSON))
    return websocket_frame(BINARY, head + topic + event + meta + item.payload)
