"""Broadcasts over HTTP, single (both clients) and in batches."""

import io

import aiohttp
import pytest
from realtime_harness import Hall, Opener, mint

from agent.stack.realtime import Limits


@pytest.mark.fact("rest.single")
@pytest.mark.parametrize("private", [False, True])
async def test_a_message_sent_over_http_is_heard(hall: Hall, topic: str, private: bool) -> None:
    listener = await (await hall.open()).joined(topic, private=private)
    sender = await (await hall.open()).joined(topic, private=private)
    assert await sender.http_send("an event/with ü", {"n": 1}) is None
    heard = await listener.broadcasts.next()
    assert (heard["event"], heard["payload"]) == ("an event/with ü", {"n": 1})


@pytest.mark.fact("rest.binary")
async def test_bytes_sent_over_http_reach_javascript(hall: Hall, topic: str) -> None:
    listener = await (await hall.open(client="js")).joined(topic)
    sender = await (await hall.open()).joined(topic)
    assert await sender.http_send("raw", b"\x00\xff") is None
    assert (await listener.broadcasts.next())["payload"] == {"hex": "00ff"}


@pytest.mark.fact("rest.denied")
async def test_a_private_message_that_may_not_be_written_is_refused(hall: Hall) -> None:
    member = await (await hall.open()).joined("read:http", private=True)
    assert "Forbidden" in str(await member.http_send("e", {}))


@pytest.mark.fact("rest.unauthorized")
async def test_a_bad_token_is_refused(hall: Hall, topic: str) -> None:
    member = await (await hall.open(token="nonsense")).join(topic)
    await member.status("CHANNEL_ERROR")
    assert "Unauthorized" in str(await member.http_send("e", {}))


@pytest.mark.fact("rest.invalid")
async def test_a_payload_must_be_an_object_of_allowed_size(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(payload_kb=1))
    member = await (await hall.open()).joined(topic)
    for payload in ([1], {"x": "x" * 2_000}):
        assert await member.http_send("e", payload) is not None
    assert await member.http_send("e", {}) is None


@pytest.mark.fact("rest.quota")
async def test_over_the_quota_http_says_so(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(messages_per_second=2 / 60))
    member = await (await hall.open()).joined(topic, broadcast={"ack": False, "self": False})
    await member.leave()
    assert await member.http_send("e", {}) is None
    assert await member.http_send("e", {}) is None
    assert "You have exceeded your rate limit" in str(await member.http_send("e", {}))


async def _post(hall: Hall, path: str, token: str | None = None, **request: object) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token if token is not None else mint()}", "apikey": "sb_publishable_test"}
    url = f"{hall.url}/realtime/v1/api/broadcast{path}"
    async with aiohttp.ClientSession() as http, http.post(url, headers=headers, **request) as response:  # type: ignore[arg-type]
        return response.status, await response.text()


@pytest.mark.fact("rest.batch")
async def test_a_batch_is_delivered_and_what_may_not_be_written_is_skipped(hall: Hall, topic: str) -> None:
    listener = await (await hall.open()).joined(topic, private=True)
    forbidden = await (await hall.open()).joined("read:batch", private=True)
    message = {"event": "e", "payload": {"n": 1}, "private": True}
    batch = {"messages": [{**message, "topic": "read:batch"}, {**message, "topic": topic, "id": "one"}]}
    assert await _post(hall, "", json=batch) == (202, "")
    heard = await listener.broadcasts.next()
    assert (heard["payload"], heard["meta"]) == ({"n": 1}, {"id": "one"})
    await hall.send("read:batch", "allowed")
    assert (await forbidden.broadcasts.next())["event"] == "allowed"


@pytest.mark.fact("rest.batch-refused", client="python")
@pytest.mark.fact("rest.batch-refused", client="js")
async def test_a_faulty_batch_is_refused_whole(hall: Hall, topic: str) -> None:
    good = {"topic": topic, "event": "e", "payload": {}}
    status, text = await _post(hall, "", json={"messages": [good, {"topic": topic, "event": "e", "payload": [1]}]})
    assert (status, "is invalid" in text) == (422, True)
    status, text = await _post(hall, "", json={"messages": [{"payload": {}}]})
    assert (status, "can't be blank" in text) == (422, True)
    deep = b'{"messages":[{"topic":"t","event":"e","payload":' + b'{"a":' * 250 + b"1" + b"}" * 250 + b"}]}"
    status, text = await _post(hall, "", data=deep)
    assert (status, "payload" in text) == (422, True)
    identifiers: tuple[object, ...] = ({}, [], 5, True)
    for key in identifiers:
        status, text = await _post(hall, "", json={"messages": [good | {"id": key}]})
        assert (status, "id" in text) == (422, True)
    assert (await _post(hall, "", json={}))[0] == 422
    assert (await _post(hall, "", data=b"{"))[0] == 400
    assert (await _post(hall, "", data=io.BytesIO(b"x" * 10_000_000)))[0] == 413
    assert await _post(hall, "", token="nonsense", json={"messages": [good]}) == (401, '{"message":"Unauthorized"}')
    assert (await _post(hall, f"/{topic}/events/e", data="plain text"))[0] == 415


async def test_a_browser_from_any_origin_may_send(hall: Hall, topic: str) -> None:
    for path in ("", f"/{topic}/events/e"):
        url = f"{hall.url}/realtime/v1/api/broadcast{path}"
        async with aiohttp.ClientSession() as http, http.options(url) as response:
            assert response.status == 204
            assert response.headers["access-control-allow-origin"] == "*"


async def test_without_authorization_the_api_key_decides(hall: Hall, topic: str) -> None:
    listener = await (await hall.open()).joined(topic, private=True)
    body = {"messages": [{"topic": topic, "event": "e", "payload": {}, "private": True}]}
    url = f"{hall.url}/realtime/v1/api/broadcast"
    async with aiohttp.ClientSession() as http:
        for key in ("sb_publishable_test", "sb_secret_test"):  # anon may not write, service_role may
            assert (await http.post(url, json=body, headers={"apikey": key})).status == 202
    await listener.broadcasts.next()
    await hall.send(topic, "end")
    assert (await listener.broadcasts.next())["event"] == "end"


@pytest.mark.fact("rest.batch-too-large")
async def test_a_batch_larger_than_the_quota_of_a_second_is_refused(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(messages_per_second=3))
    listener = await (await hall.open()).joined(topic)
    message = {"topic": topic, "event": "e", "payload": {}}
    status, text = await _post(hall, "", json={"messages": [message] * 4})
    assert (status, "please reduce the batch size" in text) == (429, True)
    assert (await _post(hall, "", json={"messages": [{**message, "event": "fits"}]}))[0] == 202
    assert (await listener.broadcasts.next())["event"] == "fits"
