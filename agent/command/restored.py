"""`tradecopier restored`: declares by hand that the database was restored from a backup, for when no agent can
report it (docs/operations.md). Reads the project's secret key from the environment.
"""

import asyncio
import os
from typing import Final

import aiohttp
import click

from agent import unreachable
from agent.address import on_this_machine
from agent.control_plane import json_fields
from agent.failure import Failure

TIMEOUT: Final = aiohttp.ClientTimeout(total=60, connect=5)
WANTED: Final = {
    "TRADECOPIER_URL": "the address of the Supabase project",
    "TRADECOPIER_SECRET_KEY": "its secret (service role) key, from Project Settings → API keys",
}


@click.command()
@click.option(
    "--highest",
    type=click.IntRange(0, 10**15),
    help="A number at least as high as every execution number sent to an agent.",
)
def restored(highest: int | None) -> None:
    """Declare that the database was restored from a backup.

    Agents normally report this by themselves. The command is needed if the backup is more than 10,000,000 executions
    old (--highest sets where numbers continue), or if every agent was enrolled again since.

    Execution numbers, sessions and epochs jump by 1,000,000, orders in flight are looked up, and nothing is opened
    until an operator switches trading on again. Reads TRADECOPIER_URL and TRADECOPIER_SECRET_KEY from the environment.
    """
    missing = [f"{name} ({what})" for name, what in WANTED.items() if not os.environ.get(name)]
    if missing:
        raise Failure(
            f"missing in the environment: {'; '.join(missing)}",
            "set them for this one command, for example in front of it",
            code="TC611",
        )
    url, key = os.environ["TRADECOPIER_URL"].rstrip("/"), os.environ["TRADECOPIER_SECRET_KEY"]
    click.echo(f"declaring to {url} that a backup was restored …", err=True)
    for line in summary(asyncio.run(_note_restored(url, key, highest))):
        click.echo(line)


def summary(did: json_fields.Json) -> list[str]:
    """The answer of `note_restored` as lines of text."""
    trading = json_fields.text(did, "trading")
    closes = "closes too" if trading == "off" else "closes go on"
    return [
        f"generation: {json_fields.integer(did, 'generation')}",
        f"execution numbers continue after {json_fields.text(did, 'last_execution_id')}"
        f" (the backup's last was {json_fields.text(did, 'last_execution_id_before')})",
        f"accounts that open new sessions: {json_fields.integer(did, 'accounts')}",
        f"orders in flight that are looked up: {json_fields.integer(did, 'executions')}",
        f"trading: {trading} (nothing is opened, {closes}); set_trading switches it on again",
    ]


async def _note_restored(url: str, key: str, highest: int | None) -> json_fields.Json:
    headers = {"apikey": key, "content-type": "application/json"}
    if not key.startswith("sb_"):
        headers["authorization"] = f"Bearer {key}"
    request = {"p_request": {"highest": None if highest is None else str(highest)}}
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, trust_env=not on_this_machine(url)) as http,
            http.post(f"{url}/rest/v1/rpc/note_restored", data=json_fields.dumps(request), headers=headers) as response,
        ):
            status, data = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise unreachable.failure(url, error, "check TRADECOPIER_URL and the network") from error
    try:
        answer = json_fields.as_object(json_fields.loads(data), "answer")
    except json_fields.WireError:
        answer = {}
    if status >= 300 or not answer:
        raise _refusal(url, status, answer)
    return answer


def _refusal(url: str, status: int, answer: json_fields.Json) -> Failure:
    if status in (401, 403):
        return Failure(
            f"this key may not declare that a backup was restored at {url} (HTTP {status})",
            "use the secret key of this project",
            code="TC151",
        )
    return Failure(
        f"{url} refused the declaration: {answer.get('message') or f'HTTP {status}'}",
        str(answer.get("hint") or "check that the project has the migrations of this version, then try again"),
        code=str(answer.get("code") or "TC615"),
    )
