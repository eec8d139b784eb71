"""Limits of one client at the gateway: timeouts, connections, bodies, joins, wrong passwords.

Agents are never locked out.
"""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import aiohttp
import pytest

from agent.stack.request_body import GUEST_BODY_BYTES
from agent.stack.sign_in_limit import WRONG_IN_ALL, WRONG_PER_CLIENT, WRONG_PER_EMAIL

if TYPE_CHECKING:
    from agent.stack.stack import Stack

#: the gateway closes a connection whose headers are not complete after 5 s; it checks every half second
CLOSED_WITHIN_S: Final = 12
PASSWORD: Final = "correct horse 1"
#: on one socket, below the limit of channels per socket
JOINS: Final = 90
CALL: Final = "/rest/v1/rpc/preview_copy"


def padded(size: int) -> bytes:
    """An argument of a call with exactly this many bytes."""
    empty = json.dumps({"p_request": {"x": ""}}).encode()
    return empty.replace(b'""', b'"' + b"x" * (size - len(empty)) + b'"')


async def agent_token(stack: "Stack") -> str:
    """The token of a user that belongs to a VPS."""
    user, _ = await stack.create_user("agent-1@agents.invalid")
    async with await stack.database.connect_async() as db:
        await db.execute(
            "insert into public.vps_instances (name, user_id, platforms) values ('a', %s, '{paper}')",
            (user,),
        )
    return await user_token(stack, user)


async def user_token(stack: "Stack", user: str) -> str:
    return stack.keys.sign({"sub": user, "role": "authenticated", "aud": "authenticated", "exp": 4102444800})


async def test_headers_that_never_end_close_the_connection(stack: "Stack") -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")

    async def drip() -> None:
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)

    dripping = asyncio.create_task(drip())
    try:
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(CLOSED_WITHIN_S):
                assert await reader.read() == b""
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        writer.close()


async def test_connections_that_say_nothing_never_keep_anybody_out(stack: "Stack") -> None:
    silent = [await asyncio.open_connection("127.0.0.1", stack.port) for _ in range(400)]
    try:
        patience = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(timeout=patience) as http, http.get(f"{stack.url}/health") as answer:
            assert answer.status == 200
        async with asyncio.timeout(CLOSED_WITHIN_S):
            for reader, _ in silent:
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    continue
    finally:
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("who", ["anon", "user"])
async def test_a_guest_sends_at_most_256_kb(stack: "Stack", who: str) -> None:
    headers = {"apikey": stack.publishable_key, "content-type": "application/json"}
    if who == "user":
        user, _ = await stack.create_user("someone@example.com")
        headers["authorization"] = f"Bearer {await user_token(stack, user)}"
    async with aiohttp.ClientSession(stack.url, headers=headers) as http:
        async with http.post(CALL, data=padded(GUEST_BODY_BYTES)) as answer:
            assert answer.status != 413
        for path in (CALL, "/rest/v1/copiers", "/auth/v1/signup", "/functions/v1/enroll", "/realtime/v1/api/broadcast"):
            for size in (GUEST_BODY_BYTES + 1, 9_000_000):
                async with http.post(path, data=io.BytesIO(padded(size))) as answer:
                    assert (path, size, answer.status) == (path, size, 413)
                    assert "256 kB" in await answer.text()

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"x" * 10_000

        async with http.post(CALL, data=chunks()) as answer:
            assert answer.status == 413, "a body without a length is counted while it is read"


async def test_agents_and_the_secret_key_send_more(stack: "Stack") -> None:
    token = await agent_token(stack)
    async with aiohttp.ClientSession(stack.url, headers={"content-type": "application/json"}) as http:
        for headers in (
            {"apikey": stack.secret_key},
            {"apikey": stack.publishable_key, "authorization": f"Bearer {token}"},
        ):
            async with http.post(CALL, data=io.BytesIO(padded(GUEST_BODY_BYTES + 1)), headers=headers) as answer:
                assert answer.status != 413


async def test_the_key_is_checked_before_the_body_is_read(stack: "Stack") -> None:
    for key in ("", "apikey: sb_publishable_wrong\r\n"):
        for path in (CALL, "/rest/v1/copiers", "/auth/v1/token?grant_type=password", "/realtime/v1/api/broadcast"):
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}Content-Type: application/json\r\n"
                "Content-Length: 9000000\r\n\r\n".encode()
            )
            async with asyncio.timeout(5):
                status = await reader.readline()
            writer.close()
            assert b" 401 " in status, (path, key, status)


async def test_a_body_that_comes_after_its_refusal_does_not_cost_the_response(stack: "Stack") -> None:
    """Clients send the body after the headers. A connection that is closed before it came is reset."""
    async with aiohttp.ClientSession(stack.url) as http:
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            writer.write(
                f"POST {CALL} HTTP/1.1\r\nHost: 127.0.0.1\r\napikey: sb_publishable_wrong\r\n"
                "Content-Type: application/json\r\nContent-Length: 20000\r\n\r\n".encode()
            )
            await writer.drain()
            async with http.get("/health") as answer:  # the headers have arrived by then
                assert answer.status == 200
            for _ in range(2):
                writer.write(b"x" * 10_000)
                await writer.drain()
            async with asyncio.timeout(20):
                response = await reader.readuntil(b"}")
            assert b" 401 " in response
            writer.close()


async def test_a_body_that_never_ends_is_given_up(stack: "Stack") -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(
        f"POST {CALL} HTTP/1.1\r\nHost: 127.0.0.1\r\napikey: {stack.publishable_key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
    )
    async with asyncio.timeout(20):
        assert b" 408 " in await reader.readline()
    writer.close()


async def sign_in(http: aiohttp.ClientSession, email: str, password: str) -> tuple[int, str | None]:
    body = {"email": email, "password": password}
    async with http.post("/auth/v1/token?grant_type=password", json=body) as answer:
        return answer.status, answer.headers.get("Retry-After")


async def test_wrong_passwords_are_limited_and_open_sessions_are_not_touched(own_stack: "Stack") -> None:
    await own_stack.create_user("victim@example.com", PASSWORD)
    await own_stack.create_user("other@example.com", PASSWORD)
    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    headers = {"apikey": own_stack.publishable_key}
    async with (
        aiohttp.ClientSession(own_stack.url, headers=headers) as http,
        aiohttp.ClientSession(own_stack.url, headers=headers, connector=elsewhere) as victim,
    ):
        body = {"email": "victim@example.com", "password": PASSWORD}
        async with http.post("/auth/v1/token?grant_type=password", json=body) as answer:
            session = await answer.json()
        for _ in range(WRONG_PER_EMAIL):
            assert await sign_in(http, "victim@example.com", "wrong") == (400, None)
        status, wait = await sign_in(http, "victim@example.com", PASSWORD)
        assert status == 429
        assert wait is not None
        assert 1 <= int(wait) <= 60
        assert (await sign_in(http, "other@example.com", PASSWORD))[0] == 200
        assert (await sign_in(victim, "victim@example.com", PASSWORD))[0] == 200, (
            "a guesser does not lock the owner out"
        )
        async with http.get("/auth/v1/user", headers={"authorization": f"Bearer {session['access_token']}"}) as answer:
            assert answer.status == 200
        renewal = {"refresh_token": session["refresh_token"]}
        async with http.post("/auth/v1/token?grant_type=refresh_token", json=renewal) as answer:
            assert answer.status == 200


async def test_no_stranger_keeps_an_agent_from_signing_in(own_stack: "Stack") -> None:
    """Agents sign in through the Edge Function with the secret key, however many guesses come from however many
    addresses."""
    await own_stack.create_user("agent-1@agents.invalid", PASSWORD)
    headers = {"apikey": own_stack.publishable_key}
    clients = -(-WRONG_IN_ALL // WRONG_PER_CLIENT)
    async with contextlib.AsyncExitStack() as opened:
        strangers = [
            await opened.enter_async_context(
                aiohttp.ClientSession(
                    own_stack.url,
                    headers=headers,
                    connector=aiohttp.TCPConnector(local_addr=(f"127.0.3.{number + 1}", 0)),
                )
            )
            for number in range(clients)
        ]
        for guess in range(WRONG_PER_CLIENT):
            whose = [
                "agent-1@agents.invalid" if guess < WRONG_PER_EMAIL else f"nobody{guess}-{number}@agents.invalid"
                for number in range(clients)
            ]
            await asyncio.gather(*(sign_in(http, email, "wrong") for http, email in zip(strangers, whose, strict=True)))
        last = await opened.enter_async_context(aiohttp.ClientSession(own_stack.url, headers=headers))
        assert (await sign_in(last, "agent-1@agents.invalid", PASSWORD))[0] == 429, (
            "strangers have filled what is theirs"
        )
    async with aiohttp.ClientSession(own_stack.url, headers={"apikey": own_stack.secret_key}) as function:
        assert (await sign_in(function, "agent-1@agents.invalid", PASSWORD))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"email": "victim@example.com", "password": "wrong"}',
        b'{"email": "victim@example.com", "password": "wrong", "x": "\xff"}',
        b'{"email": "victim@example.com", "password": "wrong", "x": "\\ud800"}',
        b'{"email": "victim@example.com", "password": "wrong", "x": ' + b"[" * 1100 + b"]" * 1100 + b"}",
        b'{"email": "victim@example.com", "password": "wrong", "x": 1e999}',
        b'{"email": ["victim@example.com"], "password": "wrong"}',
        b'{"email": "victim@example.com", "password": 5}',
        b"email=victim%40example.com&password=wrong",
        b'[{"email": "victim@example.com", "password": "wrong"}]',
    ],
)
async def test_what_cannot_be_read_strictly_never_reaches_auth(stack: "Stack", body: bytes) -> None:
    headers = {"apikey": stack.publishable_key, "content-type": "application/json"}
    async with (
        aiohttp.ClientSession(stack.url, headers=headers) as http,
        http.post("/auth/v1/token?grant_type=password", data=body) as answer,
    ):
        assert (answer.status, (await answer.json())["error_code"]) == (400, "bad_json")


async def test_a_body_of_another_type_counts_as_well(own_stack: "Stack") -> None:
    await own_stack.create_user("victim@example.com", PASSWORD)
    headers = {"apikey": own_stack.publishable_key, "content-type": "application/x-www-form-urlencoded"}
    body = json.dumps({"email": "victim@example.com", "password": "wrong"}).encode()
    async with aiohttp.ClientSession(own_stack.url, headers=headers) as http:
        seen = []
        for _ in range(WRONG_PER_EMAIL + 1):
            async with http.post("/auth/v1/token?grant_type=password", data=body) as answer:
                seen.append(answer.status)
    assert seen == [400] * WRONG_PER_EMAIL + [429]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_codes_are_not_guessed(own_stack: "Stack", method: str) -> None:
    await own_stack.create_user("victim@example.com", PASSWORD)
    async with aiohttp.ClientSession(own_stack.url, headers={"apikey": own_stack.publishable_key}) as http:
        async with http.post("/auth/v1/recover", json={"email": "victim@example.com"}) as answer:
            assert answer.status == 200
        seen = []
        for number in range(WRONG_PER_EMAIL + 1):
            guess = {"type": "recovery", "email": "victim@example.com", "token": f"{number:06}"}
            given = {"json": guess} if method == "POST" else {"params": guess, "allow_redirects": False}
            async with http.request(method, "/auth/v1/verify", **given) as answer:
                seen.append(answer.status)
    assert seen[-1] == 429
    assert 429 not in seen[:-1]


@pytest.mark.parametrize("path", [CALL, "/auth/v1/token", "/functions/v1/enroll", "/realtime/v1/api/broadcast"])
async def test_a_body_that_is_not_what_its_headers_say_is_400(stack: "Stack", path: str) -> None:
    headers = {"apikey": stack.publishable_key, "content-type": "application/json", "content-encoding": "gzip"}
    async with aiohttp.ClientSession(stack.url, headers=headers) as http, http.post(path, data=b"nope") as answer:
        assert answer.status == 400


async def test_a_flood_of_joins_is_cut_off_while_an_agent_joins(own_stack: "Stack") -> None:
    token = await agent_token(own_stack)
    url = f"{own_stack.url}/realtime/v1/websocket?vsn=1.0.0&apikey={own_stack.publishable_key}"
    async with aiohttp.ClientSession() as http:
        refused = 0
        for _ in range(10):
            async with http.ws_connect(url) as socket:
                for number in range(JOINS):
                    await join(socket, f"any:{number}", own_stack.publishable_key, str(number))
                refused += await answers_of(socket, "Too many joins per second")
        assert refused > 0
        async with http.ws_connect(url) as socket:
            await join(socket, "anything", token, "1")
            async with asyncio.timeout(10):
                answer = await socket.receive_json()
            assert answer["payload"]["status"] == "ok", answer


async def test_a_frame_of_a_guest_has_at_most_256_kb(stack: "Stack") -> None:
    url = f"{stack.url}/realtime/v1/websocket?vsn=1.0.0&apikey="
    frame = json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {"x": "x" * GUEST_BODY_BYTES}, "ref": "1"})
    async with aiohttp.ClientSession() as http, asyncio.timeout(20):
        async with http.ws_connect(url + stack.publishable_key) as socket:
            await socket.send_str(frame)
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        async with http.ws_connect(url + stack.secret_key) as socket:
            await socket.send_str(frame)
            assert json.loads((await socket.receive()).data)["payload"]["status"] == "ok"


async def join(
    socket: aiohttp.ClientWebSocketResponse, topic: str, token: str, ref: str, *, private: bool = False
) -> None:
    payload = {"config": {"private": private, "broadcast": {}, "presence": {}}, "access_token": token}
    with contextlib.suppress(ConnectionError):  # the server has closed it
        await socket.send_json({"topic": f"realtime:{topic}", "event": "phx_join", "payload": payload, "ref": ref})


async def answers_of(socket: aiohttp.ClientWebSocketResponse, reason: str) -> int:
    """The number of answers with this reason, until the socket is closed or all joins were answered."""
    found = answered = 0
    async with asyncio.timeout(30):
        async for message in socket:
            answered += '"phx_reply"' in message.data
            found += reason in message.data
            if answered == JOINS:
                break
    return found
