"""Waits of a command: it says what it waits for, and shows a bar once that takes over two seconds."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Self, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
QUIET_S: Final = 2.0
_LOOK_S: Final = 0.1


async def wait_for(what: str, look: Callable[[], Awaitable[T | None]], limit_s: float) -> T | None:
    """Look until there is a result; None after `limit_s` seconds. `what` completes the words "waiting until"."""
    begun = time.monotonic()
    async with shown(what, limit_s):
        while True:
            found = await look()
            if found is not None or time.monotonic() >= begun + limit_s:
                return found
            await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def shown(what: str, limit_s: float) -> AsyncIterator[None]:
    """While the body waits for at most `limit_s` seconds: after two seconds, a bar that fills up to the limit."""
    showing = asyncio.create_task(_show(what, limit_s))
    try:
        yield
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


class Steps:
    """A list of steps with their times, as `with Steps() as begin: begin("starting Postgres")`.

    On a terminal a moving bar shows the present step, and each that is over stays as a line. Elsewhere a line says what
    begins. `total`: how many steps there are; then the bar fills up.
    """

    def __init__(self, console: Console | None = None, *, total: int | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total = total
        self._bar: Progress | None = None
        self._text: str | None = None
        self._begun = 0.0
        self._done = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("  {task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(complete=error is None)

    def __call__(self, text: str) -> None:
        """The step before is over, and this one begins."""
        if self._bar is None:
            self._console.print(f"… {text}", highlight=False, markup=False, soft_wrap=True)
            return
        self._step_ends()
        self._text, self._begun = text, time.monotonic()
        self._bar.add_task(text, total=self._total, completed=self._done)

    def end(self, *, complete: bool = True) -> None:
        """The last step is over. Safe to call again."""
        if self._bar is not None:
            if complete:
                self._step_ends()
            self._bar.stop()
            self._bar = None

    def _step_ends(self) -> None:
        if self._bar is None or self._text is None:
            return
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        seconds = time.monotonic() - self._begun
        self._console.print(f"✓ {self._text}  {seconds:.1f} s", highlight=False, markup=False)
        self._text = None
        self._done += 1
