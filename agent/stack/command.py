"""`tradecopier up`: runs the embedded stack until Ctrl-C."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from agent import private_file
from agent.stack.lock import first_free_folder
from agent.stack.passwords import OWNER
from agent.stack.schema import project_root
from agent.stack.stack import Stack

LOOK_SECONDS: Final = 1.0
TRADER: Final = "trader@example.com"
OPERATOR: Final = "operator@example.com"


@click.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), envvar="TRADECOPIER_STACK_DIR",
              help="Folder of the stack's data. [default: .tradecopier/stack, or the next free one]")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1. [default: a free one]")
@click.option("--json", "as_json", is_flag=True, help="Print address, keys and logins as one line of JSON.")
@click.option("--durable/--fast", default=True, show_default=True, help="Survive a power cut, or skip fsync.")
def up(data: Path | None, port: int | None, as_json: bool, durable: bool) -> None:
    """Run the embedded Supabase stack until Ctrl-C.

    Prints its address, API keys and demo logins. Two may run at once: each takes its own ports and its own data folder.
    """
    folder = data or first_free_folder(project_root() / ".tradecopier" / "stack")
    asyncio.run(_serve(folder, port, as_json=as_json, durable=durable))


async def _serve(folder: Path, port: int | None, *, as_json: bool, durable: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
    console = Console(stderr=True)
    with console.status("starting") as status:
        stack = Stack(
            folder,
            port=port,
            durable=durable,
            test_hooks=False,
            progress=lambda part: status.update(f"starting: {part}"),
        )
        starting = asyncio.create_task(_start(stack))
        interrupted = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
                await stack.close()
                return
            logins = starting.result()
        finally:
            interrupted.cancel()
    try:
        _print(stack, logins, as_json=as_json)
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await stopped.wait()
            if not stopped.is_set() and await stack.restart_ended_parts():
                console.print("a part of the stack stopped unexpectedly and was restarted")
    finally:
        with console.status("stopping"):
            await stack.close()


async def _start(stack: Stack) -> dict[str, str]:
    try:
        await stack.start()
        return await demo_logins(stack)
    except BaseException:
        await stack.close()
        raise


async def demo_logins(stack: Stack) -> dict[str, str]:
    """Passwords of the demo users by e-mail. They are created on first use and kept in the data folder."""
    file = stack.data / "logins.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    logins = {}
    for email in (TRADER, OPERATOR):
        _, logins[email] = await stack.create_user(email, known.get(email))
    await stack.call("grant_operator", {"p_email": OPERATOR})
    private_file.write(file, json.dumps(logins))
    return logins


def _print(stack: Stack, logins: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        facts = {
            "url": stack.url,
            "publishable_key": stack.publishable_key,
            "secret_key": stack.secret_key,
            "database": stack.database.dsn_of(OWNER),
        }
        click.echo(json.dumps(facts | {"logins": logins}))
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("URL", stack.url)
    table.add_row("Publishable key", stack.publishable_key)
    table.add_row("Secret key", stack.secret_key)
    table.add_row("Database", stack.database.dsn_of(OWNER))
    for email, password in logins.items():
        table.add_row("Login", f"{email}  {password}")
    table.add_row("Data", str(stack.data))
    Console(soft_wrap=True).print(table)
    click.echo("Ctrl-C stops it.")
