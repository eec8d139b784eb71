"""Opening a socket: versions, keys, refusals with hosted's texts, and when the server closes it."""

import contextlib
import time
from typing import Any

import jwt
import pytest
from realtime_harness import SECRET, Hall, Opener, mint, only_python
from realtime_peers import Refused
from websockets.exceptions import ConnectionClosed

from agent.stack.realtime import Limits


@pytest.mark.fact("handshake.version")
async def test_each_client_is_served_in_its_own_protocol_version(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.joined(topic)
    reply = await peer.frame("phx_reply", topic)
    assert isinstance(reply.raw, dict if hall.client == "python" else list)


@pytest.mark.fact("handshake.key-kinds")
@pytest.mark.parametrize("key", ["sb_publishable_test", "sb_secret_test", "jwt"])
async def test_a_socket_opens_with_a_new_style_key_or_a_jwt(hall: Hall, key: str, topic: str) -> None:
    peer = await hall.open(key=mint("anon", ttl_s=60) if key == "jwt" else key)
    await peer.joined(topic)


async def _refused(hall: Hall, key: str) -> Refused:
    options: dict[str, Any] = {"max_retries": 1} if hall.client == "python" else {}
    peer = await hall.open(key=key, token="", **options)
    with pytest.raises(Refused) as refused:
        await peer.connect()
    return refused.value


@pytest.mark.fact("handshake.no-key")
@only_python
async def test_no_key_is_refused(hall: Hall) -> None:
    refused = await _refused(hall, "")
    assert (refused.status, refused.body) == (401, {"error": "API key is missing"})


@pytest.mark.fact("handshake.malformed")
async def test_a_key_that_is_no_jwt_is_refused(hall: Hall) -> None:
    refused = await _refused(hall, "nonsense")
    assert (refused.status, refused.body) == (401, {"error": "The token provided is not a valid JWT"})


@pytest.mark.fact("handshake.signature")
async def test_a_key_with_a_foreign_signature_is_refused(hall: Hall) -> None:
    refused = await _refused(
        hall, jwt.encode({"role": "anon", "exp": time.time() + 60}, SECRET + "?", algorithm="HS256")
    )
    assert (refused.status, refused.body) == (401, {"error": "Failed to validate JWT signature"})


@pytest.mark.fact("handshake.expired")
async def test_an_expired_key_is_refused(hall: Hall) -> None:
    refused = await _refused(hall, mint("anon", ttl_s=-30))
    assert (refused.status, refused.body) == (401, {"error": "Token has expired"})


@pytest.mark.fact("handshake.claims")
@pytest.mark.parametrize("missing", ["role", "exp"])
async def test_a_key_without_role_or_expiry_is_refused(hall: Hall, missing: str) -> None:
    token = mint(**{missing: None})  # type: ignore[arg-type]
    refused = await _refused(hall, token)
    assert (refused.status, refused.body) == (401, {"error": "Fields `role` and `exp` are required in JWT"})


@pytest.mark.fact("handshake.full")
async def test_one_socket_too_many_is_refused(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(connections=1))
    await (await hall.open()).joined(topic)
    refused = await _refused(hall, "sb_publishable_test")
    assert (refused.status, refused.body) == (429, {"error": "Too many connected users"})


@pytest.mark.fact("handshake.frame-size")
async def test_a_frame_over_five_megabytes_ends_the_socket(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic)
    with contextlib.suppress(ConnectionClosed):
        await member.send("big", {"fill": "x" * 5_100_000})
    # 1006 when the reset overtakes the close frame: the client is still sending
    assert await peer.closed.next() in {1006, 1009}


@pytest.mark.fact("handshake.no-channel")
async def test_a_socket_without_a_channel_is_closed(open_hall: Opener) -> None:
    hall = await open_hall(Limits(no_channel_timeout_s=0.2))
    peer = await hall.open()
    await peer.connect()
    assert await peer.closed.next() == 1000
