"""`tradecopier operator`: makes users operators of the farm. Reads the project's secret key from the environment."""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import aiohttp
import click

from agent import unreachable
from agent.address import on_this_machine, require_origin
from agent.command_group import CommandGroup
from agent.control_plane import json_fields
from agent.failure import Failure

TIMEOUT: Final = aiohttp.ClientTimeout(total=20, connect=5)
#: shortest time in which a person can read a mail and open its link
SOONEST_PROOF: Final = timedelta(seconds=2)


@click.group(cls=CommandGroup)
def operator() -> None:
    """Operators of the farm."""


@operator.command()
@click.argument("email")
@click.option("--yes", is_flag=True, help="Answer yes where the project cannot prove who owns the address.")
def grant(email: str, yes: bool) -> None:
    """Make the user with this e-mail address an operator.

    Reads TRADECOPIER_URL and TRADECOPIER_SECRET_KEY (Project Settings → API keys → secret) from the environment.
    Where addresses are confirmed without a mail (the embedded stack), it shows who signed up and when, and asks.
    If standard input is not a terminal, the answer is yes, as with --yes.
    """
    project = Project(*_service_access())
    user = asyncio.run(project.candidate(email))
    click.echo(user.line())
    if not user.proven:
        _ask(email, yes=yes or not sys.stdin.isatty())
    asyncio.run(project.grant(email, user.user_id))
    click.echo(f"{email} is an operator now")


def _ask(email: str, *, yes: bool) -> None:
    question = f"Nothing proves that whoever signed up owns this address. Make {email} an operator?"
    if yes:
        click.echo(f"{question} [y/N]: yes")
    elif not click.confirm(question):
        raise Failure(
            f"{email} was not made an operator: the answer was no",
            "delete the user in Auth if it is not theirs, let them sign up, then grant again",
            code="TC619",
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """The user with the address. `proven`: the address was confirmed by opening the link in a mail."""

    user_id: str
    email: str
    signed_up_at: datetime
    confirmed_at: datetime
    proven: bool

    def line(self) -> str:
        how = f"address confirmed {_minute(self.confirmed_at)}" if self.proven else "address confirmed without a mail"
        return f"{self.email}: user {self.user_id}, signed up {_minute(self.signed_up_at)}, {how}"


def _minute(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _service_access() -> tuple[str, str]:
    wanted = {
        "TRADECOPIER_URL": "the address of the Supabase project",
        "TRADECOPIER_SECRET_KEY": "its secret (service role) key, from Project Settings → API keys",
    }
    missing = [f"{name} ({what})" for name, what in wanted.items() if not os.environ.get(name)]
    if missing:
        raise Failure(
            f"missing in the environment: {'; '.join(missing)}",
            "set them for this one command, for example in front of it",
            code="TC611",
        )
    return require_origin(os.environ["TRADECOPIER_URL"], "TRADECOPIER_URL", "TC611"), os.environ[
        "TRADECOPIER_SECRET_KEY"
    ]


@dataclass(frozen=True, slots=True, repr=False)
class Project:
    """Calls with the secret key, to this address only: redirects are not followed."""

    url: str
    key: str

    async def candidate(self, email: str) -> Candidate:
        raw = await self._rpc(email, "operator_candidate", {"p_email": email})
        try:
            signed_up, confirmed = json_fields.instant(raw, "signed_up_at"), json_fields.instant(raw, "confirmed_at")
            user_id, address = json_fields.text(raw, "user_id"), json_fields.text(raw, "email")
        except json_fields.WireError as error:
            raise Failure(
                f"{self.url} did not say which user {email} belongs to",
                "push the migrations of this version first",
                code="TC615",
            ) from error
        proven = confirmed - signed_up >= SOONEST_PROOF and await self._confirms_by_mail()
        return Candidate(user_id, address, signed_up, confirmed, proven)

    async def grant(self, email: str, user_id: str) -> None:
        await self._rpc(email, "grant_operator", {"p_email": email, "p_user_id": user_id})

    async def _confirms_by_mail(self) -> bool:
        """Whether Auth confirms addresses by mail; no clear answer counts as no."""
        status, data = await self._call("GET", "/auth/v1/settings", None)
        try:
            return (
                status == 200
                and json_fields.as_object(json_fields.loads(data), "settings").get("mailer_autoconfirm") is False
            )
        except json_fields.WireError:
            return False

    async def _rpc(self, email: str, name: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
        status, data = await self._call("POST", f"/rest/v1/rpc/{name}", json_fields.dumps(arguments))
        try:
            raw = json_fields.as_object(json_fields.loads(data), name)
        except json_fields.WireError:
            raw = {}
        if status >= 300:
            raise _refusal(email, status, raw)
        return raw

    async def _call(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"apikey": self.key, "content-type": "application/json"}
        if not self.key.startswith("sb_"):
            headers["authorization"] = f"Bearer {self.key}"
        try:
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT, trust_env=not on_this_machine(self.url)) as http,
                http.request(method, self.url + path, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable.failure(self.url, error, "check TRADECOPIER_URL and the network") from error


def _refusal(email: str, status: int, raw: Mapping[str, object]) -> Failure:
    code = raw.get("code")
    if status in (401, 403):
        return Failure(
            f"the key may not make {email} an operator (HTTP {status})",
            "use the secret key of this project",
            code="TC618",
        )
    message = str(raw.get("message") or f"HTTP {status}")
    return Failure(
        f"{email} was not made an operator: {message}",
        str(raw.get("hint") or "let them sign up first, then try again"),
        code=str(code) if code else None,
    )
