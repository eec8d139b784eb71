"""A client of the run's Supabase: calls functions with the secret key or as a signed-in user."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Final, Self

import httpx

from agent.failure import Failure

TIMEOUT: Final = httpx.Timeout(20, connect=5)


@dataclass(frozen=True, slots=True)
class Person:
    """A signed-in user."""

    user_id: str
    email: str
    password: str = field(repr=False)
    token: str = field(repr=False)


class Backend:
    """Async context manager. `secret_key`: the secret (service) key of the project at `url`."""

    def __init__(self, url: str, publishable_key: str, secret_key: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT)
        self._publishable_key = publishable_key
        self._secret_key = secret_key

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def rpc(
        self, name: str, parameter: str, argument: Mapping[str, object], *, token: str | None = None
    ) -> dict[str, object]:
        """Call a function as the user of `token`, or without one with the secret key.

        A refusal raises `Failure` with the database's code and message.
        """
        key = self._publishable_key if token else self._secret_key
        headers = {"apikey": key, "authorization": f"Bearer {token or self._secret_key}"}
        return await self._post(name, f"/rest/v1/rpc/{name}", {parameter: argument}, headers)

    async def rows(
        self, table: str, query: Mapping[str, str], *, token: str | None = None
    ) -> list[Mapping[str, object]]:
        """Rows of a table or view that the user of `token` may read, or without one the secret key.

        `query`: PostgREST's parameters. Numbers keep every digit (`Decimal`).
        """
        key = self._publishable_key if token else self._secret_key
        headers = {"apikey": key, "authorization": f"Bearer {token or self._secret_key}"}
        answer = await self._http.get(f"/rest/v1/{table}", params=dict(query), headers=headers)
        if not answer.is_success:
            raise _failure(f"reading {table}", answer)
        found: list[Mapping[str, object]] = json.loads(answer.text, parse_float=Decimal)
        return found

    async def enroll(self, request: Mapping[str, object]) -> dict[str, object]:
        """Enrol a VPS with a one-time token, as `tradecopier agent enroll` does. Returns vps_id, name and secret."""
        return await self._post("the enrolment", "/functions/v1/enroll", request, {"apikey": self._publishable_key})

    async def sign_up(self, email: str, password: str | None = None) -> Person:
        """Make a confirmed user and sign in."""
        chosen = password or secrets.token_urlsafe(18)
        admin = {"apikey": self._secret_key, "authorization": f"Bearer {self._secret_key}"}
        body = {"email": email, "password": chosen, "email_confirm": True}
        user = await self._post("making a user", "/auth/v1/admin/users", body, admin)
        return await self.sign_in(email, chosen, user_id=str(user["id"]))

    async def sign_in(self, email: str, password: str, *, user_id: str | None = None) -> Person:
        body = {"email": email, "password": password}
        headers = {"apikey": self._publishable_key}
        session = await self._post("signing in", "/auth/v1/token?grant_type=password", body, headers)
        user = session.get("user")
        known = user_id or (str(user["id"]) if isinstance(user, dict) else "")
        return Person(known, email, password, str(session["access_token"]))

    async def _post(
        self, what: str, path: str, body: Mapping[str, object], headers: Mapping[str, str]
    ) -> dict[str, object]:
        answer = await self._http.post(path, json=body, headers=headers)
        if not answer.is_success:
            raise _failure(what, answer)
        value = answer.json()
        return value if isinstance(value, dict) else {}


def _failure(what: str, answer: httpx.Response) -> Failure:
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    message = str(problem.get("message") or problem.get("msg") or answer.text[:200] or f"HTTP {answer.status_code}")
    code = str(problem.get("code") or "")
    return Failure(
        f"{what} was refused: {message}",
        str(problem.get("hint") or "see docs/errors.md"),
        code=code if code.startswith("TC") else "TC653",
    )
