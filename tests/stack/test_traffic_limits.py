"""Token buckets and counts of wrong passwords, with the test's own clock."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from agent.stack.authentication import Access
from agent.stack.connection_pool import Sessions
from agent.stack.guarded_connections import ConnectionGuard
from agent.stack.keys import Keys
from agent.stack.postgres import free_port
from agent.stack.sign_in_limit import (
    CODE_SECONDS,
    WRONG_CODES_PER_EMAIL,
    WRONG_PER_CLIENT,
    WRONG_PER_EMAIL,
    WRONG_PER_EMAIL_IN_ALL,
    SignInLimit,
    SignInLimited,
)
from agent.stack.token_bucket import TokenBucket
from agent.stack.traffic import Traffic, TrafficLimits
from agent.stack.trusted_callers import TrustedCallers


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_at_once_and_then_so_much_per_second() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 5, clock)
    assert [bucket.take(1) for _ in range(5)] == [0, 0, 0, 0, 0]
    assert bucket.take(1) is None
    assert bucket.take(1, longest_wait=1) == pytest.approx(0.1)
    clock.now += 0.1
    assert bucket.take(1) is None, "the tenth of a second has paid for what was taken in advance"
    clock.now += 0.5
    assert bucket.is_full
    assert [bucket.take(1) for _ in range(6)][-1] is None


async def guess(limit: SignInLimit, client: str, email: str, *, wrong: bool = True) -> None:
    async with limit.attempt(client, email) as attempt:
        if wrong:
            attempt.wrong()


async def test_five_wrong_passwords_in_a_minute_stop_one_address_from_one_client() -> None:
    clock = Clock()
    limit = SignInLimit(clock)
    for _ in range(WRONG_PER_EMAIL):
        await guess(limit, "127.0.0.1", "A@example.com")
        clock.now += 1
    with pytest.raises(SignInLimited) as refused:
        await guess(limit, "127.0.0.1", " a@EXAMPLE.com", wrong=False)
    assert refused.value.seconds == pytest.approx(60 - WRONG_PER_EMAIL)
    assert refused.value.response().headers["Retry-After"] == str(60 - WRONG_PER_EMAIL)
    await guess(limit, "127.0.0.1", "b@example.com", wrong=False)
    await guess(limit, "127.0.0.2", "a@example.com", wrong=False)
    clock.now += 60 - WRONG_PER_EMAIL
    await guess(limit, "127.0.0.1", "a@example.com", wrong=False)


async def test_right_passwords_are_not_counted() -> None:
    limit = SignInLimit(Clock())
    for _ in range(100):
        await guess(limit, "127.0.0.1", "a@example.com", wrong=False)


async def test_thirty_wrong_passwords_stop_a_client_but_no_agent() -> None:
    limit = SignInLimit(Clock())
    for number in range(WRONG_PER_CLIENT):
        await guess(limit, "127.0.0.1", f"{number}@example.com")
    with pytest.raises(SignInLimited):
        await guess(limit, "127.0.0.1", "another@example.com", wrong=False)
    await guess(limit, "127.0.0.1", "agent-7@agents.invalid", wrong=False)
    await guess(limit, "127.0.0.2", "another@example.com", wrong=False)


async def test_guesses_at_the_same_time_are_no_way_around_the_limit() -> None:
    limit = SignInLimit(Clock())
    checking = asyncio.Event()
    tried = 0

    async def guess_slowly() -> str:
        nonlocal tried
        try:
            async with limit.attempt("127.0.0.1", "a@example.com") as attempt:
                tried += 1
                await checking.wait()
                attempt.wrong()
        except SignInLimited:
            return "refused"
        return "wrong"

    guesses = [asyncio.create_task(guess_slowly()) for _ in range(50)]
    await asyncio.wait(guesses, timeout=0)
    checking.set()
    answers = await asyncio.gather(*guesses)
    assert tried == WRONG_PER_EMAIL
    assert answers.count("refused") == 50 - WRONG_PER_EMAIL


async def test_more_addresses_are_no_way_around_the_limit() -> None:
    clock = Clock()
    limit = SignInLimit(clock)
    for number in range(WRONG_PER_EMAIL_IN_ALL):
        await guess(limit, f"127.0.1.{number}", "a@example.com")
    with pytest.raises(SignInLimited):
        await guess(limit, "127.0.2.1", "a@example.com", wrong=False)
    await guess(limit, "127.0.2.1", "b@example.com", wrong=False)


async def test_codes_are_counted_for_as_long_as_they_are_good() -> None:
    clock = Clock()
    limit = SignInLimit.of_codes(clock)
    for number in range(WRONG_CODES_PER_EMAIL):
        await guess(limit, f"127.0.1.{number}", "a@example.com")
        clock.now += 60
    with pytest.raises(SignInLimited):
        await guess(limit, "127.0.0.1", "a@example.com")
    clock.now += CODE_SECONDS
    await guess(limit, "127.0.0.1", "a@example.com")


@pytest.fixture
async def short_of_patience() -> AsyncIterator[str]:
    """The address of a server that allows a guest's request a fifth of a second."""
    traffic = Traffic(Access(Keys.generate()), TrustedCallers(Sessions("")), TrafficLimits(seconds=0.2))
    app = web.Application(middlewares=[traffic.middleware()])
    app.router.add_get("/silent", _wait_for_ever)
    app.router.add_get("/begun", _begin_and_wait_for_ever)
    runner, guard, port = web.AppRunner(app), ConnectionGuard(), free_port()
    await runner.setup()
    assert runner.server is not None
    guard.listen(runner.server, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    await guard.close()
    await runner.cleanup()


async def _wait_for_ever(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def _begin_and_wait_for_ever(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    return await _wait_for_ever(request)


async def test_a_request_that_takes_too_long_is_refused(short_of_patience: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{short_of_patience}/silent") as answer:
        assert answer.status == 504
        assert (await answer.json())["code"] == "TC638"


async def test_an_answer_that_has_begun_is_broken_off_and_never_looks_whole(short_of_patience: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{short_of_patience}/begun") as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
