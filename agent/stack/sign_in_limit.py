"""Slows down guessing of passwords and codes: after a few wrong ones Auth answers 429 with Retry-After, as hosted does.

Wrong attempts are counted per client, and per client and e-mail address. Existing sessions are not affected.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

import orjson
from aiohttp import web

WINDOW_SECONDS: Final = 60.0
WRONG_PER_EMAIL: Final = 5
WRONG_PER_CLIENT: Final = 30
#: from all clients together: a local attacker can use 16 million loopback addresses
WRONG_PER_EMAIL_IN_ALL: Final = 20
WRONG_IN_ALL: Final = 120
#: a six-digit code is valid for an hour; the number of guesses in that time is limited
CODE_SECONDS: Final = 3600.0
WRONG_CODES_PER_EMAIL: Final = 20
WRONG_CODES: Final = 100
EVERYBODY: Final = "everybody"
#: agents' users (functions/enroll) are counted separately, so that guessing people's passwords locks no agent out
AGENT_DOMAIN: Final = "@agents.invalid"
KEYS_REMEMBERED: Final = 20_000


class SignInLimited(Exception):
    """Too many wrong passwords; `seconds` until the next attempt is accepted."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong passwords, wait {seconds:.0f} s")
        self.seconds = seconds

    def response(self) -> web.Response:
        """The error as a GoTrue response."""
        wait = max(1, math.ceil(self.seconds))
        body = {
            "code": 429,
            "error_code": "over_request_rate_limit",
            "msg": f"Too many wrong passwords or codes. Wait {wait} seconds, then try again.",
        }
        return web.json_response(body, status=429, headers={"Retry-After": str(wait)})


@dataclass(slots=True)
class _Count:
    """Wrong attempts of the last minute, and attempts that are being checked."""

    wrong: deque[float] = field(default_factory=deque)
    under_way: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Attempt:
    """One attempt in progress; `wrong()` records that its password was wrong."""

    __slots__ = ("was_wrong",)

    def __init__(self) -> None:
        self.was_wrong = False

    def wrong(self) -> None:
        self.was_wrong = True


class SignInLimit:
    """Counts wrong passwords or codes of the last `window` seconds. `clock` returns seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        window: float = WINDOW_SECONDS,
        of_email: tuple[int, int] = (WRONG_PER_EMAIL, WRONG_PER_EMAIL_IN_ALL),
        of_all: tuple[int, int] = (WRONG_PER_CLIENT, WRONG_IN_ALL),
    ) -> None:
        """`of_email`, `of_all`: limits per address and for all addresses, from one client and from all clients
        together."""
        self._clock = clock
        self._window = window
        self._of_email = of_email
        self._of_all = of_all
        self._counts: dict[tuple[str, str], _Count] = {}

    @classmethod
    def of_codes(cls, clock: Callable[[], float] = time.monotonic) -> Self:
        """A limit for codes that are sent by mail."""
        per_email, in_all = WRONG_CODES_PER_EMAIL, WRONG_CODES
        return cls(clock, window=CODE_SECONDS, of_email=(per_email, per_email), of_all=(in_all, in_all))

    @asynccontextmanager
    async def attempt(self, client: str, email: str) -> AsyncIterator[Attempt]:
        """Wraps one attempt. Raises SignInLimited; waits while attempts in progress could use up the limit."""
        email = email.strip().lower()
        group = "agents" if email.endswith(AGENT_DOMAIN) else ""
        limited = (
            (self._count(client, email), self._of_email[0]),
            (self._count(EVERYBODY, email), self._of_email[1]),
            (self._count(client, f" {group}"), self._of_all[0]),
            (self._count(EVERYBODY, f" {group}"), self._of_all[1]),
        )
        while (full := self._full(limited)) is not None:
            full.ended.clear()
            await full.ended.wait()
        this = Attempt()
        for count, _ in limited:
            count.under_way += 1
        try:
            yield this
        finally:
            for count, _ in limited:
                count.under_way -= 1
                if this.was_wrong:
                    count.wrong.append(self._clock())
                count.ended.set()

    def _full(self, limited: Sequence[tuple[_Count, int]]) -> _Count | None:
        """The first count that attempts in progress could fill.

        Raises SignInLimited when wrong attempts have filled one.
        """
        for count, most in limited:
            self._forget_old(count)
            if len(count.wrong) >= most:
                raise SignInLimited(count.wrong[-most] + self._window - self._clock())
        return next((count for count, most in limited if len(count.wrong) + count.under_way >= most), None)

    def _count(self, client: str, email: str) -> _Count:
        key = client, email
        found = self._counts.get(key)
        if found is None:
            if len(self._counts) >= KEYS_REMEMBERED:
                self._forget_idle()
            found = self._counts[key] = _Count()
        return found

    def _forget_old(self, count: _Count) -> None:
        before = self._clock() - self._window
        while count.wrong and count.wrong[0] <= before:
            count.wrong.popleft()

    def _forget_idle(self) -> None:
        for count in self._counts.values():
            self._forget_old(count)
        self._counts = {key: count for key, count in self._counts.items() if count.wrong or count.under_way}


@dataclass(frozen=True, slots=True)
class Guess:
    """A request that can be used to guess: the address, and whether it guesses a password or a code."""

    whose: str
    is_code: bool


class BodyRefused(Exception):
    """Auth might read this body differently from this module; `message` states the required form."""


def guess_in(request: web.Request, body: bytes) -> tuple[Guess | None, bytes]:
    """Find out what a request to Auth could guess, if anything. Returns also the body to forward. Raises BodyRefused.

    Auth accepts more than well-formed JSON (any content type, broken UTF-8). The forwarded body is therefore rebuilt
    from what was parsed here; a body that cannot be parsed strictly is not forwarded.
    """
    fields = _fields_of(body)
    path = request.path
    if path == "/auth/v1/token" and "password" in fields:
        return Guess(_address_in(fields), is_code=False), orjson.dumps(fields)
    if path == "/auth/v1/verify":
        return Guess(_address_in(fields or dict(request.query)), is_code=True), orjson.dumps(fields) if body else b""
    if path == "/auth/v1/user" and "nonce" in fields:
        return Guess("", is_code=True), orjson.dumps(fields)
    return None, orjson.dumps(fields) if body else b""


def _fields_of(body: bytes) -> dict[str, object]:
    if not body:
        return {}
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BodyRefused(f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise BodyRefused("the body must be a JSON object")
    for name in ("email", "phone", "password", "token", "token_hash"):
        if fields.get(name) is not None and not isinstance(fields[name], str):
            raise BodyRefused(f"{name} must be a string")
    return fields


def _address_in(fields: Mapping[str, object]) -> str:
    """The e-mail address or telephone number; empty when a request has none (a link's token can be guessed for
    anybody)."""
    return next((str(fields[name]) for name in ("email", "phone") if fields.get(name)), "")
