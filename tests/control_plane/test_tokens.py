"""The agent keeps its token fresh, whatever Auth does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from fake_supabase import Supabase, supabase_server

from agent.control_plane.retry import SignInRefused, Unreachable
from agent.control_plane.tokens import SupabaseAuth, Tokens
from agent.settings import Settings


class Clock:
    """Sleeps end when the test says so; `waits` lists them."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._gates: list[asyncio.Event] = []
        self._news = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        gate = asyncio.Event()
        self.waits.append(seconds)
        self._gates.append(gate)
        self._news.set()
        await gate.wait()

    async def until_waiting(self, number: int) -> float:
        """The n-th sleep (from 1), once it began."""
        async with asyncio.timeout(10):
            while len(self.waits) < number:
                self._news.clear()
                await self._news.wait()
        return self.waits[number - 1]

    def end(self, number: int) -> None:
        self._gates[number - 1].set()


@pytest.fixture
async def server() -> AsyncIterator[Supabase]:
    async with supabase_server() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def by_secret(server: Supabase) -> Settings:
    return Settings(url=server.url, publishable_key="public", vps_id="vps-1", agent_secret="very-secret")


def by_password(server: Supabase) -> Settings:
    return Settings(url=server.url, publishable_key="public", agent_email="agent@example.test", agent_password="pass")


@pytest.fixture
async def tokens(server: Supabase, clock: Clock) -> AsyncIterator[Tokens]:
    async with aiohttp.ClientSession() as http:
        owner = Tokens(SupabaseAuth(by_secret(server), http), sleep=clock.sleep)
        keeping = asyncio.create_task(owner.keep_fresh())
        yield owner
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def test_a_token_is_refreshed_at_four_fifths_of_its_life_with_jitter(
    server: Supabase, tokens: Tokens, clock: Clock
) -> None:
    assert 0.75 * 3600 <= await clock.until_waiting(1) <= 0.8 * 3600
    clock.end(1)
    await clock.until_waiting(2)
    assert server.called("refresh_token") == [{"refresh_token": "refresh-1"}]
    assert await tokens.access() == "access-2"


async def test_a_token_is_refreshed_for_ever(server: Supabase, tokens: Tokens, clock: Clock) -> None:
    for number in range(1, 21):
        await clock.until_waiting(number)
        clock.end(number)
    await clock.until_waiting(21)
    assert await tokens.access() == "access-21"
    assert len(server.called("/session")) == 1


async def test_a_refresh_that_meets_an_outage_is_tried_again(server: Supabase, tokens: Tokens, clock: Clock) -> None:
    await clock.until_waiting(1)
    server.script("refresh_token", (503, "down"), (500, "down"), (429, {"msg": "too many"}))
    for number in range(1, 5):
        await clock.until_waiting(number)
        clock.end(number)
    await clock.until_waiting(5)
    assert await tokens.access() == "access-2"
    assert clock.waits[1] < clock.waits[3] <= 60


async def test_a_refresh_refused_for_good_signs_in_again(server: Supabase, tokens: Tokens, clock: Clock) -> None:
    await clock.until_waiting(1)
    server.script(
        "refresh_token", (400, {"code": 400, "error_code": "refresh_token_not_found", "msg": "Invalid Refresh Token"})
    )
    clock.end(1)
    await clock.until_waiting(2)
    assert len(server.called("/session")) == 2
    assert await tokens.access() == "access-2"


async def test_a_sign_in_refused_later_is_tried_for_ever(server: Supabase, tokens: Tokens, clock: Clock) -> None:
    await clock.until_waiting(1)
    server.auth["refresh_token"] = lambda _: (403, {"msg": "session not found"})
    server.auth["/session"] = lambda _: (403, {"code": "TC212", "message": "no"})
    for number in range(1, 6):
        await clock.until_waiting(number)
        clock.end(number)
    await clock.until_waiting(6)
    del server.auth["/session"]
    clock.end(6)
    await clock.until_waiting(7)
    assert await tokens.access() == "access-2"


async def test_a_renewal_by_a_call_restarts_the_tokens_life(server: Supabase, tokens: Tokens, clock: Clock) -> None:
    await clock.until_waiting(1)
    await tokens.renew(rejected="access-1")
    assert await clock.until_waiting(2) > 0.7 * 3600
    assert len(server.called("refresh_token")) == 1


async def test_a_renewal_requested_by_many_happens_once(server: Supabase, tokens: Tokens, clock: Clock) -> None:
    await clock.until_waiting(1)
    renewed = await asyncio.gather(*(tokens.renew(rejected="access-1") for _ in range(10)))
    assert set(renewed) == {"access-2"}


async def test_handlers_get_every_new_token(server: Supabase, clock: Clock) -> None:
    told: list[str] = []
    async with aiohttp.ClientSession() as http:
        owner = Tokens(SupabaseAuth(by_secret(server), http), sleep=clock.sleep)
        owner.on_change(told.append)
        await owner.access()
        await owner.renew(rejected="access-1")
    assert told == ["access-1", "access-2"]


async def test_an_agent_with_a_password_signs_in_by_the_password_grant(server: Supabase, clock: Clock) -> None:
    async with aiohttp.ClientSession() as http:
        owner = Tokens(SupabaseAuth(by_password(server), http), sleep=clock.sleep)
        await owner.access()
    assert server.called("password") == [{"email": "agent@example.test", "password": "pass"}]


async def test_without_a_refresh_token_the_agent_signs_in_again(server: Supabase, clock: Clock) -> None:
    server.auth["/session"] = lambda _: (200, server.new_tokens(refresh=False))
    async with aiohttp.ClientSession() as http:
        owner = Tokens(SupabaseAuth(by_secret(server), http), sleep=clock.sleep)
        await owner.renew(rejected=await owner.access())
    assert len(server.called("/session")) == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, {"code": "TC102", "message": "retired"}), SignInRefused),
        ((400, {"error": "invalid_grant", "error_description": "Invalid login credentials"}), SignInRefused),
        ((429, {"code": "TC142", "message": "too many"}), Unreachable),
        ((503, "<html>"), Unreachable),
        ((200, {"access_token": ""}), Unreachable),
        ((200, "<html>a captive portal</html>"), Unreachable),
        ("cut", Unreachable),
    ],
)
async def test_a_sign_in_fails_for_good_or_for_now(
    server: Supabase, clock: Clock, answer: tuple[int, object] | str, error: type[Exception]
) -> None:
    server.script("/session", answer)
    async with aiohttp.ClientSession() as http:
        with pytest.raises(error):
            await Tokens(SupabaseAuth(by_secret(server), http), sleep=clock.sleep).access()


def test_a_token_is_never_printed() -> None:
    from agent.control_plane.tokens import TokenPair

    assert "secret" not in repr(TokenPair("secret-a", "secret-r", 3600))
