"""Heartbeats, tokens, client broadcasts, leaving, and all ways in which a channel or socket ends."""

from typing import Any

import pytest
from realtime_harness import Hall, Opener, eventually, mint, only_js, only_python

from agent.stack.realtime import Limits

ACK = {"ack": True, "self": False}


@pytest.mark.fact("messages.heartbeat")
async def test_a_heartbeat_is_answered_with_its_own_ref(hall: Hall, topic: str) -> None:
    options: dict[str, Any] = {"heartbeatIntervalMs": 200} if hall.client == "js" else {}
    peer = await hall.open(**options)
    await peer.joined(topic)
    beat = await peer.sent.until(lambda f: f.event == "heartbeat")
    reply = await peer.frame("phx_reply", "phoenix")
    assert (beat.ref is None) == (hall.client == "python")
    assert (reply.ref, reply.payload) == (beat.ref, {"status": "ok", "response": {}})


@pytest.mark.fact("messages.token-silent")
async def test_a_new_token_gets_no_reply_and_changes_nothing(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    await peer.frame("phx_reply", topic)
    await peer.set_auth(mint(ttl_s=1200))
    await peer.sent.until(lambda f: f.event == "access_token")
    await hall.send(topic)
    assert (await peer.frames.until(lambda f: f.topic == f"realtime:{topic}")).event == "broadcast"
    assert (await member.broadcasts.next())["payload"]["n"] == 1


@pytest.mark.fact("messages.token-ignored")
async def test_a_new_style_key_as_token_is_ignored(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    await peer.set_auth("sb_publishable_test")
    await peer.sent.until(lambda f: f.event == "access_token")
    await member.send("still", {})
    await hall.send(topic)
    assert (await member.broadcasts.next())["payload"]["n"] == 1


@pytest.mark.fact("messages.ack")
async def test_a_broadcast_is_acknowledged_if_the_channel_asked_for_it(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, broadcast=ACK)
    join = await peer.frame("phx_reply", topic)
    assert await member.send("e", {"n": 1}) == "ok"
    reply = await peer.frame("phx_reply", topic)
    assert reply.payload == {"status": "ok", "response": {}}
    assert reply.ref != join.ref


@pytest.mark.fact("messages.no-ack")
async def test_without_ack_nothing_is_replied(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, broadcast={"ack": False, "self": True})
    await peer.frame("phx_reply", topic)
    await member.send("e", {"n": 1})
    await member.send("e", {"n": 2})
    frames = [await peer.frames.until(lambda f: f.topic == f"realtime:{topic}") for _ in range(2)]
    assert [frame.event for frame in frames] == ["broadcast", "broadcast"]


@pytest.mark.fact("messages.ack-oversize")
async def test_an_oversize_broadcast_is_refused_if_acknowledgement_was_asked_for(open_hall: Opener, topic: str) -> None:
    peer = await (await open_hall(Limits(payload_kb=1))).open()
    member = await peer.joined(topic, broadcast=ACK)
    await peer.frame("phx_reply", topic)
    assert await member.send("e", {"fill": "x" * 2_000}) == "error"
    assert (await peer.frame("phx_reply", topic)).payload["response"] == {"error": "payload_size_exceeded"}
    assert await member.send("e", {"fill": "x" * 1_200}) == "ok"


@pytest.mark.fact("messages.self")
async def test_the_sender_hears_itself_only_if_it_wants_to(hall: Hall, topic: str) -> None:
    modest, vain = await hall.open(), await hall.open()
    silent = await modest.joined(topic, broadcast={"ack": False, "self": False})
    echo = await vain.joined(topic, broadcast={"ack": False, "self": True})
    await silent.send("first", {})
    await echo.send("second", {})
    assert (await silent.broadcasts.next())["event"] == "second"
    assert [(await echo.broadcasts.next())["event"] for _ in range(2)] == ["first", "second"] or hall.client == "js"


@pytest.mark.fact("messages.broadcast-shape")
async def test_a_client_broadcast_carries_no_meta_and_no_ref(hall: Hall, topic: str) -> None:
    peer, other = await hall.open(), await hall.open()
    listener, sender = await peer.joined(topic), await other.joined(topic)
    await sender.send("e", {"n": 1})
    frame = await peer.frame("broadcast", topic)
    assert (frame.ref, frame.payload["event"], frame.payload["payload"]) == (None, "e", {"n": 1})
    assert not frame.payload.get("meta")
    assert "meta" not in await listener.broadcasts.next()


@pytest.mark.fact("messages.leave")
async def test_leaving_is_answered_and_closes_the_channel(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic)
    join = await peer.frame("phx_reply", topic)
    keep = await peer.joined(topic + "x")
    await member.leave()
    leave = await peer.sent.until(lambda f: f.event == "phx_leave")
    reply = await peer.frame("phx_reply", topic)
    assert (reply.ref, reply.payload) == (leave.ref, {"status": "ok", "response": {}})
    close = await peer.frame("phx_close", topic)
    assert (close.ref, close.payload) == (join.ref, {})
    assert hall.server.faults.joined() == [[keep.topic]]


@pytest.mark.fact("messages.unmatched")
async def test_a_message_to_a_topic_not_joined_is_refused(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, broadcast=ACK)
    hall.server.faults.drop(topic, "phx_error")
    # the server has dropped the channel, the client has not
    assert hall.server.faults.crash(topic) == 1
    assert await member.send("e", {}) == "error"
    reply = await peer.frames.until(lambda f: f.event == "phx_reply" and f.payload["status"] == "error")
    assert reply.payload["response"] == {"reason": "unmatched topic"}


@pytest.mark.fact("messages.leave-unmatched")
async def test_leaving_a_topic_not_joined_is_fine(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic)
    await peer.frame("phx_reply", topic)
    hall.server.faults.drop(topic, "phx_error")
    hall.server.faults.crash(topic)
    await member.leave()
    assert (await peer.frame("phx_reply", topic)).payload == {"status": "ok", "response": {}}


@pytest.mark.fact("messages.channel-crash")
async def test_after_a_crash_of_the_channel_the_client_joins_again(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    hall.server.faults.crash(topic)
    assert (await peer.frame("phx_error", topic)).payload == {"reason": "channel_crash"}
    await member.status("CHANNEL_ERROR")
    await member.status("SUBSCRIBED")
    await hall.send(topic)
    await member.broadcasts.next()


@pytest.mark.fact("messages.close-codes")
@pytest.mark.parametrize("code", [1001, 1012])
async def test_a_closed_socket_is_opened_again_and_its_channels_joined(hall: Hall, topic: str, code: int) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    assert hall.server.faults.cut(topic, code=code) == 1
    assert await peer.closed.next() == code
    await member.status("SUBSCRIBED")
    await hall.send(topic)
    await member.broadcasts.next()


@pytest.mark.fact("messages.restart-code")
async def test_a_server_that_stops_says_restart(open_hall: Opener, topic: str) -> None:
    hall = await open_hall()
    peer = await hall.open()
    await peer.joined(topic)
    await hall.server.close()
    assert await peer.closed.next() == 1012


@pytest.mark.fact("messages.system")
async def test_system_messages_have_four_fields(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.joined(topic, broadcast={"ack": False, "self": False, "replication_ready": True})
    system = await peer.frame("system", topic)
    assert system.ref is None
    assert system.payload == {
        "extension": "system", "status": "ok", "message": "Replication connection established", "channel": topic,
    }  # fmt: skip


@pytest.mark.fact("client.readable")
@only_python
async def test_python_understands_every_kind_of_frame(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True, presence={"key": "me", "enabled": True}, broadcast=ACK)
    await hall.send(topic)
    await member.broadcasts.next()
    await member.track({"n": 1})
    await member.send("e", {})
    await member.leave()
    await peer.frame("phx_close", topic)
    assert peer.unreadable == []


@pytest.mark.fact("client.ping")
@only_python
async def test_the_server_answers_websocket_pings(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.joined(topic)
    pong = await peer.client._ws_connection.ping()  # type: ignore[attr-defined]
    await pong


@pytest.mark.fact("client.large-frame")
async def test_a_frame_over_one_mebibyte_ends_the_socket_of_python_only(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    await hall.db.execute(
        "select realtime.send(jsonb_build_object('fill', repeat('x', 1200000)), 'big', %s, true)", (topic,)
    )
    if hall.client == "python":
        await peer.closed.next()
        await member.status("SUBSCRIBED")
    else:
        assert len((await member.broadcasts.next())["payload"]["fill"]) == 1_200_000


@pytest.mark.fact("client.fallback")
@only_js
async def test_javascript_sends_over_rest_while_it_is_not_joined(hall: Hall, topic: str) -> None:
    listener = await (await hall.open()).joined(topic)
    away = await hall.open()
    hall.server.faults.drop(topic, "phx_reply")
    member = await away.join(topic)
    await eventually(lambda: len(hall.server.faults.joined()) == 2)
    hall.server.faults.black_hole()
    other = await hall.open(client="python")
    hall.server.faults.clear()
    python = await other.joined(topic)
    assert await member.send("e", {"n": 1}) == "ok"
    assert (await python.broadcasts.next())["payload"] == {"n": 1}
    assert listener.broadcasts.rest() == []


@pytest.mark.fact("client.token-callback")
@only_js
async def test_javascript_takes_the_token_from_its_callback(hall: Hall) -> None:
    peer = await hall.open(token=mint(sub="ann"))
    await peer.joined("user:ann", private=True)
    join = await peer.sent.until(lambda f: f.event == "phx_join")
    assert join.payload["access_token"] != "sb_publishable_test"


@pytest.mark.fact("client.reconnect")
async def test_after_a_torn_connection_the_client_comes_back(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    assert hall.server.faults.cut(topic) == 1
    assert await peer.closed.next() == 1006
    await member.status("SUBSCRIBED")
    await hall.send(topic)
    await member.broadcasts.next()
