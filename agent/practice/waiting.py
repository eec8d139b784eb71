"""Waits of a command: it says what it waits for, and shows a progress bar once that takes over two seconds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
QUIET_S: Final = 2.0
_LOOK_S: Final = 0.1


async def wait_for(what: str, look: Callable[[], Awaitable[T | None]], limit_s: float) -> T | None:
    """Look until there is a result; None after `limit_s` seconds. `what` completes the words "waiting until"."""
    begun = time.monotonic()
    showing = asyncio.create_task(_show(what, limit_s))
    try:
        while True:
            found = await look()
            if found is not None or time.monotonic() >= begun + limit_s:
                return found
            await asyncio.sleep(_LOOK_S)
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing


async def _show(what: str, limit_s: float) -> None:
    await asyncio.sleep(QUIET_S)
    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(f"… waiting until {what} (at most {limit_s:.0f} s)", err=True)
        return
    with Progress(
        TextColumn("waiting until {task.description}"), BarColumn(), TimeElapsedColumn(),
        TextColumn(f"of at most {limit_s:.0f} s"), console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=limit_s, completed=int(QUIET_S))
        while True:
            await asyncio.sleep(_LOOK_S)
            bar.advance(task, _LOOK_S)
