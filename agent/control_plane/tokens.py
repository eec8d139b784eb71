"""The agent's access token: signs in, refreshes the token at 80 % of its lifetime, and signs in again if a refresh is
refused.

The agent does this itself because supabase-py's refresh task can die silently. Nothing is written to disk.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol

import aiohttp

from agent import unreachable
from agent.control_plane.json_fields import WireError, as_object, dumps, loads
from agent.control_plane.retry import SignInRefused, Unreachable, backoff, classify_auth
from agent.settings import Settings

log = logging.getLogger(__name__)

REFRESH_AT: Final = 0.8
JITTER: Final = 0.05
TIMEOUT: Final = aiohttp.ClientTimeout(total=15, connect=5)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Tokens from Auth; `expires_in` in seconds, counted from the answer."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires_in: float


class Auth(Protocol):
    """The source of tokens. Both calls raise `SignInRefused` (definitive) or `Unreachable`."""

    async def sign_in(self) -> TokenPair: ...

    async def refresh(self, refresh_token: str) -> TokenPair: ...


class SupabaseAuth:
    """Signs in through the enrol function with the agent's secret, or with e-mail and password."""

    def __init__(self, settings: Settings, http: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._http = http

    async def sign_in(self) -> TokenPair:
        chosen = self._settings
        if chosen.vps_id and chosen.agent_secret:
            body = {"vps_id": chosen.vps_id, "secret": chosen.agent_secret.get_secret_value()}
            return await self._ask("enroll/session", f"{chosen.functions_url}/enroll/session", body)
        if chosen.agent_email is None or chosen.agent_password is None:
            raise SignInRefused("sign in", "the agent has no identity; load_settings reports that before")
        body = {"email": chosen.agent_email, "password": chosen.agent_password.get_secret_value()}
        return await self._ask("sign in", f"{chosen.auth_url}/token?grant_type=password", body)

    async def refresh(self, refresh_token: str) -> TokenPair:
        url = f"{self._settings.auth_url}/token?grant_type=refresh_token"
        return await self._ask("refresh", url, {"refresh_token": refresh_token})

    async def _ask(self, call: str, url: str, body: dict[str, str]) -> TokenPair:
        headers = {"apikey": self._settings.publishable_key, "content-type": "application/json"}
        try:
            async with self._http.post(
                url, data=dumps(body), headers=headers, timeout=TIMEOUT, allow_redirects=False
            ) as response:
                status, data = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(call, unreachable.reason(error)) from error
        if status >= 300:
            raise _auth_error(call, status, data)
        try:
            return _token_pair(data)
        except (WireError, KeyError, TypeError, ValueError) as error:
            raise Unreachable(call, "the answer holds no tokens") from error


def _token_pair(data: bytes) -> TokenPair:
    raw = as_object(loads(data), "tokens")
    access, refresh, expires_in = raw["access_token"], raw.get("refresh_token"), raw["expires_in"]
    if not isinstance(access, str) or not access or not isinstance(expires_in, int | float):
        raise WireError("tokens: access_token must be a string and expires_in a number")
    return TokenPair(access, refresh if isinstance(refresh, str) and refresh else None, float(expires_in))


def _auth_error(call: str, status: int, data: bytes) -> SignInRefused | Unreachable:
    """GoTrue's errors have `error_code` and `msg`, OAuth's `error` and `error_description`, our function's `code` and
    `message`."""
    try:
        raw = as_object(loads(data), "error")
    except WireError:
        raw = {}
    message = next(
        (str(raw[key]) for key in ("msg", "message", "error_description", "error") if raw.get(key)), f"HTTP {status}"
    )
    code = next((str(raw[key]) for key in ("error_code", "code", "error") if isinstance(raw.get(key), str)), None)
    if classify_auth(status) == "refused":
        return SignInRefused(call, message, code=code, status=status)
    return Unreachable(call, f"HTTP {status}: {message}")


class Tokens:
    """One access token for all callers; `keep_fresh` refreshes it in time, `renew` replaces it at once.

    `on_change` handlers are called with every new token (Realtime needs it); they must not raise.
    """

    def __init__(
        self,
        auth: Auth,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._auth = auth
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._lock = asyncio.Lock()
        self._pair: TokenPair | None = None
        self._changed = asyncio.Event()
        self._handlers: list[Callable[[str], None]] = []

    def on_change(self, handler: Callable[[str], None]) -> None:
        self._handlers.append(handler)

    async def access(self) -> str:
        """The current token; signs in on first use. Raises `SignInRefused` or `Unreachable`."""
        pair = self._pair
        return pair.access if pair is not None else await self.renew(rejected=None)

    async def renew(self, rejected: str | None) -> str:
        """Replace the token that a server `rejected`; callers with the same token share one renewal."""
        async with self._lock:
            if self._pair is not None and self._pair.access != rejected:
                return self._pair.access
            return await self._replace()

    async def keep_fresh(self) -> NoReturn:
        """Refresh at 80 % of each token's lifetime until cancelled. Outages and refusals are logged and retried."""
        while True:
            current = self._pair
            if current is not None:
                self._changed.clear()
                if await self._replaced_meanwhile(self._refresh_in(current)):
                    continue
            await self._renew_at_last(current)

    async def _renew_at_last(self, current: TokenPair | None) -> None:
        """Retry until the token is replaced."""
        for wait in backoff(1, 60, self._rng):
            try:
                await self.renew(rejected=None if current is None else current.access)
                return
            except Unreachable as error:
                log.warning("token_refresh_failed", extra={"error": str(error)})
                await self._sleep(wait)
            except SignInRefused as error:
                log.error("sign_in_refused", extra={"error": str(error)})
                await self._sleep(wait + 30)

    def _refresh_in(self, pair: TokenPair) -> float:
        return max(0.0, pair.expires_in * (REFRESH_AT - self._rng.uniform(0, JITTER)))

    async def _replaced_meanwhile(self, seconds: float) -> bool:
        """Wait. True if a `renew` replaced the token meanwhile, so that its lifetime starts again."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({sleeping, changed}, return_when=asyncio.FIRST_COMPLETED)
            return changed.done()
        finally:
            sleeping.cancel()
            changed.cancel()

    async def _replace(self) -> str:
        refresh_token = self._pair.refresh if self._pair else None
        pair: TokenPair | None = None
        if refresh_token:
            try:
                pair = await self._auth.refresh(refresh_token)
            except SignInRefused as error:
                log.warning("refresh_refused_signing_in", extra={"error": str(error)})
        if pair is None:
            pair = await self._auth.sign_in()
        self._pair = pair
        self._changed.set()
        for handler in self._handlers:
            handler(pair.access)
        return pair.access
