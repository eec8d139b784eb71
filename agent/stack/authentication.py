"""Authenticates callers: turns API key and bearer token into a role and its claims; refuses as hosted Supabase does."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from agent.stack.keys import Keys
from agent.stack.postgrest import problem
from agent.stack.realtime.errors import TokenExpired, TokenInvalid

REMEMBERED_TOKENS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Caller:
    """A role and its claims (also as JSON), which are set for the transaction.

    `user_token`: the user's own JWT, if any.
    """

    role: str
    claims: Mapping[str, object]
    claims_json: str
    user_token: str | None
    expires_at: float | None


class AccessRefused(Exception):
    """Carries the finished response."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


class Access:
    """Resolves requests to callers. Verified tokens are cached until they expire."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: OrderedDict[str, Caller] = OrderedDict()

    def caller(self, request: web.Request) -> Caller:
        """The caller of a request. Raises AccessRefused (401)."""
        key = request.headers.get("apikey") or request.query.get("apikey")
        bearer = bearer_of(request)
        if key is None:
            raise AccessRefused(
                _refusal("No API key found in request", "No `apikey` request header or url param was found.")
            )
        of_key = self._api_key(key)
        if bearer is None or _same(bearer, key):
            return of_key
        if bearer.startswith("sb_"):
            raise AccessRefused(problem(401, "PGRST301", "Expected 3 parts in JWT; got 1"))
        return self._token(bearer)

    def is_secret(self, request: web.Request) -> bool:
        """Whether the request may act as service_role, either by the secret key or by a JWT with that role."""
        return self.caller(request).role == "service_role"

    def token(self, request: web.Request) -> Caller:
        """The caller by bearer JWT alone, which is how Edge Functions verify it. Raises AccessRefused (401)."""
        bearer = bearer_of(request)
        if bearer is None:
            raise AccessRefused(_function_refusal("Missing authorization header"))
        if bearer.startswith("sb_"):
            raise AccessRefused(_function_refusal("Invalid JWT"))
        try:
            return self._token(bearer)
        except AccessRefused as error:
            raise AccessRefused(_function_refusal("Invalid JWT")) from error

    def _api_key(self, key: str) -> Caller:
        known = self._known.get(key)
        if known is not None and known.expires_at is None:
            return known
        try:
            claims = self._keys.verify(key)
        except TokenInvalid as error:
            raise AccessRefused(_refusal("Invalid API key", "Double check your Supabase API key.")) from error
        if claims.get("role") not in ("anon", "service_role"):
            raise AccessRefused(_refusal("Invalid API key", "A user's token is no API key: send it as Authorization."))
        return self._remember(key, Caller(str(claims["role"]), claims, orjson.dumps(dict(claims)).decode(), None, None))

    def _token(self, token: str) -> Caller:
        known = self._known.get(token)
        if known is not None and (known.expires_at is None or known.expires_at > time.time()):
            return known
        try:
            claims = self._keys.verify(token)
        except TokenExpired as error:
            raise AccessRefused(problem(401, "PGRST303", "JWT expired")) from error
        except TokenInvalid as error:
            raise AccessRefused(
                problem(401, "PGRST301", "No suitable key or wrong key type", details=str(error))
            ) from error
        expires = claims.get("exp")
        role = claims.get("role")
        caller = Caller(
            role if isinstance(role, str) else "anon",
            claims,
            orjson.dumps(dict(claims)).decode(),
            token,
            float(expires) if isinstance(expires, int | float) else None,
        )
        return self._remember(token, caller)

    def _remember(self, token: str, caller: Caller) -> Caller:
        self._known[token] = caller
        if len(self._known) > REMEMBERED_TOKENS:
            self._known.popitem(last=False)
        return caller


def bearer_of(request: web.Request) -> str | None:
    """The bearer token of the request."""
    header = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _same(one: str, other: str) -> bool:
    # Bytes of a header that are not UTF-8 arrive as surrogate escapes; only this error handler can encode them again.
    return secrets.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))


def _refusal(message: str, hint: str) -> web.Response:
    return web.json_response({"message": message, "hint": hint}, status=401)


def _function_refusal(message: str) -> web.Response:
    return web.json_response({"code": 401, "message": message}, status=401)
