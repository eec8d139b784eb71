"""Frames and pgoutput without a network: odd lengths, cut frames, unknown relations."""

import struct

import pytest

from agent.stack.realtime import frames
from agent.stack.realtime.frames import BadFrame, Broadcast
from agent.stack.realtime.pgoutput import Decoder


@pytest.mark.parametrize(("size", "header"), [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)])
def test_websocket_headers_grow_with_the_payload(size: int, header: int) -> None:
    frame = frames.websocket_frame(frames.TEXT, b"x" * size)
    assert len(frame) == header + size
    assert frame[0] == 0x81


@pytest.mark.parametrize(
    "data",
    [b"", b"\x03", b"\x04\0\0\0\0\0\x01", b"\x03\xff\0\0\0\0\x01", b"\x03\0\0\0\0\0\x01{", b"\x03\x01\0\0\0\0\x00\xff"],
    ids=["empty", "kind only", "a server's kind", "cut short", "broken JSON", "not UTF-8"],
)
def test_broken_binary_frames_are_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        frames.decode_binary(data)


@pytest.mark.parametrize("depth", [253, 254, 300, 1_000, 100_000])
def test_a_frame_that_could_not_be_sent_on_is_refused(depth: int) -> None:
    """Presence and broadcasts are sent to other clients, whose connections must not fail because of them."""
    payload = '{"a":' * depth + "1" + "}" * depth
    if depth == 253:
        assert frames.decode_text("1.0.0", f'{{"topic":"t","event":"e","ref":"1","payload":{payload}}}').event == "e"
        return
    with pytest.raises(BadFrame):
        frames.decode_text("1.0.0", f'{{"topic":"t","event":"e","ref":"1","payload":{payload}}}')


def test_a_binary_push_is_read() -> None:
    data = bytes((3, 1, 2, 3, 1, 0, 1)) + b"1" + b"22" + b"r:x" + b"e" + b'{"n":1}'
    incoming = frames.decode_binary(data)
    assert (incoming.join_ref, incoming.ref, incoming.topic, incoming.event) == ("1", "22", "r:x", "broadcast")
    assert incoming.payload == {"type": "broadcast", "event": "e", "payload": {"n": 1}}


def test_version_1_cannot_carry_bytes() -> None:
    assert frames.broadcast("1.0.0", Broadcast("t", "e", b"\0", binary=True)) is None


def test_a_row_of_an_unknown_relation_is_skipped() -> None:
    assert Decoder().feed(b"I" + struct.pack("!I", 7) + b"N\0\0") is None


def test_a_relation_without_the_columns_of_a_message_is_skipped() -> None:
    decoder = Decoder()
    relation = b"R" + struct.pack("!I", 7) + b"public\0other\0d" + struct.pack("!H", 1) + b"\0id\0" + b"\0" * 8
    assert decoder.feed(relation) is None
    assert decoder.feed(b"I" + struct.pack("!I", 7) + b"N" + struct.pack("!H", 1) + b"n") is None
