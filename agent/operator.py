"""`tradecopier operator`: the farm's operators. Needs the project's secret key, which stays in the environment."""

import asyncio
import os

import aiohttp
import click

from agent import json_fields
from agent.failure import Failure

TIMEOUT = aiohttp.ClientTimeout(total=20, connect=5)


@click.group()
def operator() -> None:
    """Operators of the farm."""


@operator.command()
@click.argument("email")
def grant(email: str) -> None:
    """Make the user with this e-mail address an operator.

    Reads TRADECOPIER_URL and TRADECOPIER_SECRET_KEY (Project Settings → API keys → secret) from the environment.
    """
    url, key = _service_access()
    asyncio.run(_grant(url, key, email))
    click.echo(f"{email} is an operator now")


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
    return os.environ["TRADECOPIER_URL"].rstrip("/"), os.environ["TRADECOPIER_SECRET_KEY"]


async def _grant(url: str, key: str, email: str) -> None:
    headers = {"apikey": key, "content-type": "application/json"}
    if not key.startswith("sb_"):
        headers["authorization"] = f"Bearer {key}"
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as http,
            http.post(
                f"{url}/rest/v1/rpc/grant_operator", data=json_fields.dumps({"p_email": email}), headers=headers
            ) as response,
        ):
            status, data = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Failure(
            f"{url} does not answer ({type(error).__name__})", "check TRADECOPIER_URL and the network", code="TC615"
        ) from error
    if status >= 300:
        raise _refusal(email, status, data)


def _refusal(email: str, status: int, data: bytes) -> Failure:
    try:
        raw = json_fields.as_object(json_fields.loads(data), "error")
    except json_fields.WireError:
        raw = {}
    code = raw.get("code")
    if status in (401, 403):
        return Failure(
            f"the key may not make {email} an operator (HTTP {status})", "use the secret key of this very project", code="TC618"
        )
    message = str(raw.get("message") or f"HTTP {status}")
    return Failure(
        f"{email} was not made an operator: {message}",
        str(raw.get("hint") or "let them sign up first, then try again"),
        code=str(code) if code else None,
    )
