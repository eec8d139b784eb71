"""Both serializers as each client sees them, and messages from one client to the other."""

import pytest
from realtime_harness import Hall, only_js


@pytest.mark.fact("frames.text")
async def test_text_frames_have_four_keys_in_version_1_and_five_places_in_version_2(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.joined(topic)
    frame = await peer.frame("phx_reply", topic)
    if hall.client == "python":
        assert set(frame.raw) == {"topic", "event", "payload", "ref"}
    else:
        assert len(frame.raw) == 5
        assert frame.join_ref == frame.ref


@pytest.mark.fact("frames.binary-push")
@only_js
async def test_a_binary_push_is_understood_and_acknowledged(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, broadcast={"ack": True, "self": True})
    assert await member.send("e", {"n": 1}) == "ok"
    assert (await peer.sent.until(lambda f: f.event == "broadcast")).binary
    assert (await member.broadcasts.next())["payload"] == {"n": 1}


@pytest.mark.fact("frames.binary-broadcast")
@only_js
async def test_a_broadcast_of_the_database_arrives_as_a_binary_frame(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    await hall.send(topic, "e", '{"n": 1, "id": "mine"}')
    frame = await peer.frame("broadcast")
    assert frame.binary
    assert frame.payload["payload"] == {"n": 1, "id": "mine"}
    assert (await member.broadcasts.next())["meta"] == frame.payload["meta"]


@pytest.mark.fact("frames.binary-payload", client="js")
@pytest.mark.fact("frames.binary-payload", client="python")
@only_js
async def test_raw_bytes_reach_javascript_and_never_python(hall: Hall, topic: str) -> None:
    js, python = await hall.open(), await hall.open(client="python")
    listener, deaf = await js.joined(topic), await python.joined(topic)
    sender = await (await hall.open()).joined(topic, broadcast={"ack": True, "self": False})
    assert await sender.send("raw", b"\x00\x01\xff") == "ok"
    assert await sender.send("json", {"n": 1}) == "ok"
    assert (await listener.broadcasts.next())["payload"] == {"hex": "0001ff"}
    assert (await deaf.broadcasts.next())["event"] == "json"


@pytest.mark.fact("frames.long-names")
async def test_names_too_long_for_a_binary_frame_go_as_text(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    await hall.send(topic, "e" * 300)
    assert not (await peer.frame("broadcast")).binary
    assert (await member.broadcasts.next())["event"] == "e" * 300


@pytest.mark.fact("frames.across")
async def test_what_one_client_sends_the_other_hears(hall: Hall, topic: str) -> None:
    here, there = await hall.open(), await hall.open(client="js" if hall.client == "python" else "python")
    sender, listener = await here.joined(topic), await there.joined(topic)
    await sender.send("greeting", {"text": "Grüezi €", "deep": [1, {"x": None}]})
    heard = await listener.broadcasts.next()
    assert (heard["event"], heard["payload"]) == ("greeting", {"text": "Grüezi €", "deep": [1, {"x": None}]})


@pytest.mark.fact("frames.version-1-in-javascript")
@only_js
async def test_javascript_can_ask_for_version_1(hall: Hall, topic: str) -> None:
    peer = await hall.open(vsn="1.0.0")
    member = await peer.joined(topic, private=True, broadcast={"ack": True, "self": True})
    assert set((await peer.frame("phx_reply", topic)).raw) == {"topic", "event", "payload", "ref"}
    assert await member.send("e", {"n": 1}) == "ok"
    assert (await member.broadcasts.next())["payload"] == {"n": 1}
    await hall.send(topic, "row")
    assert (await member.broadcasts.next())["event"] == "row"
