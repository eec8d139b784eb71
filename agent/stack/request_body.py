"""Reads request bodies, within the sender's size limit and time limit."""

import asyncio
from typing import Final, Protocol

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from agent.stack.postgrest import problem

#: agents and the secret key
TRUSTED_BODY_BYTES: Final = 10 * 1024 * 1024
#: everybody else; small enough that parsing does not block the event loop for long
GUEST_BODY_BYTES: Final = 256 * 1024
BODY_SECONDS: Final = 10.0
#: how much of a refused body is read and discarded, so that its sender can receive the response
DRAINED_BYTES: Final = 10 * 1024 * 1024
DRAIN_SECONDS: Final = 2.0
SMALL_DRAIN_SECONDS: Final = 1.0


#: the body's encoding, compression or chunking does not match its headers
BROKEN: Final = (web.RequestPayloadError, ClientPayloadError, HttpProcessingError)


class Turn(Protocol):
    """Limits one request of a guest (`agent.stack.traffic`)."""

    def pay(self, byte_count: int) -> float | None:
        """Seconds to wait before this many bytes may be read, or None when the wait would be too long."""

    async def enter(self) -> web.Response | None:
        """Wait for a free slot; a response means that the request is refused."""


#: where the middleware stores the turn of a guest's request; requests of agents and of the secret key have none
TURN: Final[web.RequestKey[Turn]] = web.RequestKey("turn")


async def read_body(request: web.Request, largest_trusted: int = TRUSTED_BODY_BYTES) -> bytes | web.Response:
    """Read the whole body, or return the response that refuses it (408, 413, 429, 503)."""
    turn: Turn | None = request.get(TURN)
    largest = largest_trusted if turn is None else GUEST_BODY_BYTES
    length = request.content_length
    if length is not None and length > largest:
        return await _too_large(request, turn, largest, 0)
    chunks: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                total += len(chunk)
                if total > largest:
                    return await _too_large(request, turn, largest, total)
                chunks.append(chunk)
                if turn is not None and not await _paid(turn, len(chunk)):
                    return too_many("this address sends too many bytes", 1)
    except BROKEN as error:
        refusal = problem(
            400, "TC635", f"the request body is malformed: {error}", hint="check its encoding and its length"
        )
        refusal.force_close()
        return refusal
    except TimeoutError:
        refusal = problem(
            408, "TC636", f"the request body did not arrive within {BODY_SECONDS:g} s", hint="send it again"
        )
        refusal.force_close()
        return refusal
    if turn is not None:
        refused = await turn.enter()
        if refused is not None:
            return refused
    return b"".join(chunks)


def too_many(what: str, seconds: float) -> web.Response:
    """429 with Retry-After; closes the connection."""
    wait = max(1, round(seconds))
    response = problem(429, "TC637", what, hint=f"wait {wait} s, then send less at once")
    response.headers["Retry-After"] = str(wait)
    response.force_close()
    return response


async def _paid(turn: Turn, byte_count: int) -> bool:
    wait = turn.pay(byte_count)
    if wait is None:
        return False
    if wait:
        await asyncio.sleep(wait)
    return True


async def _too_large(request: web.Request, turn: Turn | None, largest: int, already: int) -> web.Response:
    await _drain(request, turn, already)
    response = problem(
        413, "TC630", f"the request body is over {largest // 1024} kB",
        hint="send less at once" if turn is None else "send less at once; only agents and the secret key may send more",
    )  # fmt: skip
    response.force_close()
    return response


async def drain_small(request: web.Request) -> None:
    """Read and discard a body that nobody has read, if it is no larger than a guest's may be. The connection is closed
    after the response; while a body is arriving that resets it, and the client would lose the response."""
    length = request.content_length
    if length is None or length > GUEST_BODY_BYTES:
        return
    try:
        async with asyncio.timeout(SMALL_DRAIN_SECONDS):
            while not request.content.at_eof():
                await request.content.readany()
    except (TimeoutError, ConnectionError, *BROKEN):
        return


async def _drain(request: web.Request, turn: Turn | None, already: int) -> None:
    """Read on for a moment: a client that is cut off while sending would see a broken connection, not the response."""
    left = DRAINED_BYTES - already
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in request.content.iter_any():
                left -= len(chunk)
                if left < 0 or (turn is not None and not await _paid(turn, len(chunk))):
                    return
    except (TimeoutError, ConnectionError, *BROKEN):
        return
