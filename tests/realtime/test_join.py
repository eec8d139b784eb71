"""Joining a channel: the reply, the messages after it, and every refusal with hosted's text."""

import json
import time

import jwt
import pytest
from realtime_harness import SECRET, Hall, Opener, mint, only_python
from realtime_peers import Member, Peer

from agent.stack.realtime import Limits


@pytest.mark.fact("join.reply")
async def test_the_reply_echoes_the_ref_and_always_lists_postgres_changes(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.joined(topic)
    join = await peer.sent.until(lambda f: f.event == "phx_join")
    reply = await peer.frame("phx_reply", topic)
    assert join.ref == join.join_ref == reply.ref
    assert reply.payload == {"status": "ok", "response": {"postgres_changes": []}}


@pytest.mark.fact("join.order")
async def test_after_the_reply_come_replayed_messages_and_then_presence(hall: Hall, topic: str) -> None:
    await hall.send(topic, "earlier")
    peer = await hall.open()
    replay = {"since": int(time.time() * 1000) - 60_000, "limit": 5}
    presence = {"key": "", "enabled": True}
    await peer.joined(topic, private=True, broadcast={"ack": False, "self": False, "replay": replay}, presence=presence)
    frames = [await peer.frames.until(lambda f: f.topic == f"realtime:{topic}") for _ in range(3)]
    assert [frame.event for frame in frames] == ["phx_reply", "broadcast", "presence_state"]


@pytest.mark.fact("join.strings")
@only_python
async def test_booleans_may_come_as_strings(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private="true", broadcast={"ack": "true", "self": "true"})
    await member.send("e", {"n": 1})
    assert (await member.broadcasts.next())["payload"] == {"n": 1}
    await hall.send(topic, "private")
    assert (await member.broadcasts.next())["event"] == "private"


@pytest.mark.fact("join.odd-config")
async def test_a_configuration_of_the_wrong_kind_is_not_refused(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(
        topic, broadcast={"ack": 3, "self": [], "replay": None}, presence={"key": 7, "enabled": False}
    )
    await hall.send(topic, private=False)
    await member.broadcasts.next()


@pytest.mark.fact("join.twice")
async def test_a_second_join_of_a_topic_closes_the_first(hall: Hall, topic: str) -> None:
    hall.server.faults.delay(1_200, topic, "phx_reply", times=1)
    peer = await hall.open(timeout=0.4)
    member = await peer.join(topic)
    assert (await member.statuses.next())[0] == "TIMED_OUT"
    first = await peer.sent.until(lambda f: f.event == "phx_join")
    close = await peer.frame("phx_close", topic)
    second = await peer.sent.until(lambda f: f.event == "phx_join")
    assert close.ref == first.ref != second.ref
    assert (await peer.frames.until(lambda f: f.ref == second.ref)).payload["status"] == "ok"
    # it compares refs, so the close of the old join does not affect it
    if hall.client == "js":
        await member.status("SUBSCRIBED")


@pytest.mark.fact("join.changes")
async def test_postgres_changes_are_echoed_with_numbers_and_then_refused_clearly(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.join(topic, changes={"event": "INSERT", "schema": "public", "table": "members"})
    reply = await peer.frame("phx_reply", topic)
    (change,) = reply.payload["response"]["postgres_changes"]
    assert isinstance(change.pop("id"), int)
    assert change == {"event": "INSERT", "schema": "public", "table": "members"}
    system = (await peer.frame("system", topic)).payload
    assert (system["extension"], system["status"]) == ("postgres_changes", "error")
    assert "not offered by the embedded server" in system["message"]


async def _refusal(peer: Peer, topic: str, **options: object) -> str:
    member: Member = await peer.join(topic, **options)  # type: ignore[arg-type]
    error = await member.status("CHANNEL_ERROR")
    reply = await peer.frame("phx_reply", topic)
    assert reply.payload["status"] == "error"
    reason = reply.payload["response"]["reason"]
    assert reason in json.dumps(error)
    return str(reason)


@pytest.mark.fact("join.topic-required")
async def test_a_topic_needs_a_name(hall: Hall) -> None:
    assert await _refusal(await hall.open(), "") == "TopicNameRequired: You must provide a topic name"


@pytest.mark.fact("join.private-only")
async def test_public_channels_can_be_forbidden(open_hall: Opener, topic: str) -> None:
    peer = await (await open_hall(Limits(private_only=True))).open()
    assert await _refusal(peer, topic) == "PrivateOnly: This project only allows private channels"
    await peer.joined(topic + "x", private=True)


@pytest.mark.fact("join.too-many-channels")
async def test_a_socket_holds_only_so_many_channels(open_hall: Opener, topic: str) -> None:
    peer = await (await open_hall(Limits(channels_per_connection=1))).open()
    await peer.joined(topic)
    assert await _refusal(peer, topic + "x") == "ChannelRateLimitReached: Too many channels"


@pytest.mark.fact("join.too-many-joins")
async def test_too_many_joins_are_refused_and_end_the_socket(open_hall: Opener, topic: str) -> None:
    peer = await (await open_hall(Limits(joins_per_second=1 / 60))).open()
    await peer.joined(topic)
    assert await _refusal(peer, topic + "x") == "ClientJoinRateLimitReached: Too many joins per second"
    assert await peer.closed.next() == 1001


@pytest.mark.fact("join.expired")
async def test_an_expired_token_is_refused_with_its_age(hall: Hall, topic: str) -> None:
    reason = await _refusal(await hall.open(token=mint(ttl_s=-90)), topic, private=True)
    assert reason.startswith("InvalidJWTToken: Token has expired 9")
    assert reason.endswith(" seconds ago")


@pytest.mark.fact("join.malformed")
async def test_a_token_that_is_no_jwt_is_refused(hall: Hall, topic: str) -> None:
    peer = await hall.open(token="nonsense")
    assert await _refusal(peer, topic) == "MalformedJWT: The token provided is not a valid JWT"


@pytest.mark.fact("join.signature")
async def test_a_token_with_a_foreign_signature_is_refused(hall: Hall, topic: str) -> None:
    token = jwt.encode({"role": "authenticated", "exp": time.time() + 60}, SECRET + "?", algorithm="HS256")
    peer = await hall.open(token=token)
    assert await _refusal(peer, topic) == "JwtSignatureError: Failed to validate JWT signature"


@pytest.mark.fact("join.claims")
async def test_a_token_needs_role_and_expiry(hall: Hall, topic: str) -> None:
    peer = await hall.open(token=mint(exp=None))
    assert await _refusal(peer, topic) == "InvalidJWTToken: Fields `role` and `exp` are required in JWT"


@pytest.mark.fact("join.key-token")
async def test_a_new_style_key_in_place_of_a_token_means_the_key_of_the_socket(hall: Hall, topic: str) -> None:
    peer = await hall.open(key="sb_secret_test", token="sb_secret_test")
    await peer.joined(topic, private=True)  # service_role passes every policy
