"""Every free-form field of a join: a value out of bounds gives a named error; the socket and its other channels go
on."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from realtime_harness import Hall, mint, only_python

pytestmark = only_python


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


class Socket:
    """A client that writes its own frames."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def join(self, topic: str, config: str, **more: str) -> dict[str, Any]:
        """Send a join whose config is this text; returns the reply's payload."""
        parts = {"config": config, "access_token": json.dumps(mint())} | more
        payload = ",".join(f'"{key}":{value}' for key, value in parts.items())
        name = json.dumps(f"realtime:{topic}")
        await self.ws.send_str(
            f'{{"topic":{name},"event":"phx_join","ref":"1","join_ref":"1","payload":{{{payload}}}}}'
        )
        while True:
            frame = await self.ws.receive_json(timeout=20)
            if frame["event"] == "phx_reply":
                return dict(frame["payload"])

    async def refused(self, topic: str, config: str, **more: str) -> str:
        reply = await self.join(topic, config, **more)
        assert reply["status"] == "error", reply
        return str(reply["response"]["reason"])

    async def alive(self, topic: str) -> None:
        assert (await self.join(topic, '{"private":true}'))["status"] == "ok"


@asynccontextmanager
async def socket(hall: Hall) -> AsyncIterator[Socket]:
    url = f"{hall.url}/realtime/v1/websocket?apikey=sb_publishable_test&vsn=1.0.0"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as ws:
        yield Socket(ws)


@pytest.mark.parametrize(
    "since",
    ["1e300", "-1e300", "1e18", "253402300800000", "-1", "-0.5", '"1700000000000"', "true", "false", "null", "[]", "{}",
     "9" * 18, "9" * 30, "-" + "9" * 30],
)  # fmt: skip
async def test_a_moment_that_is_none_is_a_named_error(hall: Hall, topic: str, since: str) -> None:
    async with socket(hall) as client:
        said = await client.refused(topic, f'{{"private":true,"broadcast":{{"replay":{{"since":{since}}}}}}}')
        assert said.startswith("UnableToReplayMessages: Replay params are not valid: since")
        await client.alive(topic)


async def test_a_replay_without_a_moment_is_a_named_error(hall: Hall, topic: str) -> None:
    async with socket(hall) as client:
        assert (await client.refused(topic, '{"private":true,"broadcast":{"replay":{}}}')).startswith(
            "UnableToReplayMessages: "
        )


@pytest.mark.parametrize("limit", ["0", "-1", "true", "2.5", '"5"', "null", "1e300", "-1e300", "[]"])
async def test_a_number_of_messages_that_is_none_is_a_named_error(hall: Hall, topic: str, limit: str) -> None:
    async with socket(hall) as client:
        said = await client.refused(topic, f'{{"private":true,"broadcast":{{"replay":{{"since":0,"limit":{limit}}}}}}}')
        assert said.startswith("UnableToReplayMessages: Replay params are not valid: limit")
        await client.alive(topic)


@pytest.mark.parametrize("since", ["0", "0.5", "253402300799999", "1700000000000"])
async def test_every_moment_of_the_calendar_is_one(hall: Hall, topic: str, since: str) -> None:
    async with socket(hall) as client:
        config = f'{{"private":true,"broadcast":{{"replay":{{"since":{since},"limit":1000000}}}}}}'
        assert (await client.join(topic, config))["status"] == "ok"


@pytest.mark.parametrize("not_json", ["NaN", "Infinity", "-Infinity"])
async def test_what_is_no_json_number_ends_the_socket_as_every_bad_frame_does(
    hall: Hall, topic: str, not_json: str
) -> None:
    async with socket(hall) as client:
        config = f'{{"broadcast":{{"replay":{{"since":{not_json}}}}}}}'
        await client.ws.send_str(
            f'{{"topic":"realtime:{topic}","event":"phx_join","ref":"1","payload":{{"config":{config}}}}}'
        )
        assert (await client.ws.receive(timeout=20)).data == 1011


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (f'{{"presence":{{"enabled":true,"key":"{"k" * 256}"}}}}', "InvalidJoinPayload: presence.key"),
        (f'{{"postgres_changes":[{",".join(["{}"] * 101)}]}}', "InvalidJoinPayload: postgres_changes"),
        (f'{{"postgres_changes":[{{"table":"{"t" * 16_001}"}}]}}', "InvalidJoinPayload: postgres_changes"),
        (f'{{"postgres_changes":[{{"filter":{nested(251)}}}]}}', "InvalidJoinPayload: postgres_changes"),
        (f'{{"postgres_changes":[{{"filter":{nested(800)}}}]}}', "InvalidJoinPayload: postgres_changes"),
    ],
)
async def test_a_field_out_of_bounds_is_named(hall: Hall, topic: str, config: str, reason: str) -> None:
    async with socket(hall) as client:
        assert (await client.refused(topic, config)).startswith(reason)
        await client.alive(topic)


async def test_fields_at_their_bounds_are_taken(hall: Hall, topic: str) -> None:
    changes = ",".join(['{"event":"*"}'] * 100)
    config = f'{{"presence":{{"enabled":true,"key":"{"k" * 255}"}},"postgres_changes":[{changes}]}}'
    async with socket(hall) as client:
        assert (await client.join(topic, config))["status"] == "ok"
        assert (await client.join("room:" + "t" * 1_995, '{"private":true}'))["status"] == "ok"


async def test_a_topic_out_of_bounds_is_named(hall: Hall, topic: str) -> None:
    async with socket(hall) as client:
        for name in ("room:" + "t" * 1_996, "room:" + "t" * 100_000, "room:a\0b"):
            for private in ("true", "false"):
                assert (await client.refused(name, f'{{"private":{private}}}')).startswith("InvalidTopicName: ")
        await client.alive(topic)


@pytest.mark.parametrize("token", ["a.b.c", "é.ü.ö", "\0.\0.\0", "x" * 16_001, "." * 100, "a.b", "\U0001f511"])
async def test_a_token_that_is_none_is_named(hall: Hall, topic: str, token: str) -> None:
    async with socket(hall) as client:
        said = await client.refused(topic, '{"private":true}', access_token=json.dumps(token))
        assert said.startswith(("MalformedJWT: ", "JwtSignatureError: "))
        await client.alive(topic)


@pytest.mark.parametrize("field", ['"ref"', '"join_ref"'])
@pytest.mark.parametrize("value", ["[]", "{}", nested(900)])
async def test_a_ref_that_is_none_is_a_bad_frame(hall: Hall, topic: str, field: str, value: str) -> None:
    async with socket(hall) as client:
        await client.ws.send_str(f'{{"topic":"realtime:{topic}","event":"phx_join","payload":{{}},{field}:{value}}}')
        assert (await client.ws.receive(timeout=20)).data == 1011


async def test_a_presence_too_deep_to_be_sent_on_harms_nobody(hall: Hall, topic: str) -> None:
    async with socket(hall) as first, socket(hall) as second:
        config = '{"private":true,"presence":{"enabled":true,"key":"first"}}'
        assert (await first.join(topic, config))["status"] == "ok"
        deep = '{"a":' * 248 + "1" + "}" * 248
        await first.ws.send_str(
            f'{{"topic":"realtime:{topic}","event":"presence","ref":"2","payload":{{"type":"presence","event":"track","payload":{deep}}}}}'
        )
        frame = await first.ws.receive_json(timeout=20)
        while frame["ref"] != "2":
            frame = await first.ws.receive_json(timeout=20)
        assert frame["payload"] == {"status": "error", "response": {"error": "payload_size_exceeded"}}
        assert (await second.join(topic, config))["status"] == "ok"
        assert (await second.ws.receive_json(timeout=20))["payload"] == {}
