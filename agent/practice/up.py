"""`tradecopier up`: runs the embedded stack, with practice accounts, until Ctrl-C."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from agent import private_file
from agent.practice import running
from agent.practice.farm import SERVER, PracticeFarm
from agent.practice.running import RunningStack
from agent.stack.lock import first_free_folder
from agent.stack.passwords import OWNER
from agent.stack.stack import Stack
from agent.testbed.waiting import Steps, shown

LOOK_SECONDS: Final = 1.0
TRADER: Final = "trader@example.com"
OPERATOR: Final = "operator@example.com"
#: parts whose start is shown: Postgres, schema, gateway, logins, practice broker, agent
PARTS: Final = 6
STOP_SECONDS: Final = 30.0


@click.command()
@click.option("--data", type=click.Path(path_type=Path), envvar="TRADECOPIER_STACK_DIR",
              help="Folder of the stack's data. [default: .tradecopier/stack, or the next free one]")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535),
              help="Port on 127.0.0.1. [default: the same as last time; at first any free one]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print address, keys and logins as one line of JSON.")
@click.option("--durable/--fast", default=True, show_default=True, help="Survive a power cut, or skip fsync.")
@click.option("--practice/--no-practice", default=True, show_default=True,
              help="Run a paper broker and an agent too, for practice accounts.")  # fmt: skip
def up(data: Path | None, port: int | None, as_json: bool, durable: bool, practice: bool) -> None:
    """Run the embedded Supabase stack, with practice accounts, until Ctrl-C.

    Prints its addresses, API keys and demo logins. docs/first-copy.md says how to copy a first trade on it. Two may run
    at once: each takes its own ports and its own data folder.
    """
    folder = data or first_free_folder(running.default_folder())
    asyncio.run(_serve(folder, port, as_json=as_json, durable=durable, practice=practice))


class _Up:
    """Stack and practice farm as one."""

    def __init__(
        self, folder: Path, port: int | None, *, durable: bool, practice: bool, progress: Callable[[str], None]
    ) -> None:
        self.stack = Stack(folder, port=port, durable=durable, test_hooks=False, progress=progress)
        self.farm = PracticeFarm(self.stack, progress) if practice else None
        self.logins: dict[str, str] = {}
        self._progress = progress

    async def start(self) -> None:
        try:
            await self.stack.start()
            self._progress("logins")
            self.logins = await demo_logins(self.stack)
            if self.farm is not None:
                await self.farm.start()
            self._tell_other_terminals()
        except BaseException:
            await self.close()
            raise

    async def restart_ended_parts(self) -> bool:
        restarted = await self.stack.restart_ended_parts()
        if self.farm is not None and await self.farm.restart_ended_parts():
            self._tell_other_terminals()
            restarted = True
        return restarted

    async def close(self) -> None:
        if self.logins:
            await asyncio.to_thread(running.forget, self.stack.data)
        if self.farm is not None:
            await self.farm.close()
        await self.stack.close()

    def _tell_other_terminals(self) -> None:
        RunningStack(
            url=self.stack.url,
            publishable_key=self.stack.publishable_key,
            email=TRADER,
            password=self.logins[TRADER],
            paper="" if self.farm is None else self.farm.address,
            paper_token="" if self.farm is None else self.farm.token,
        ).write(self.stack.data)

    def facts(self) -> dict[str, object]:
        """Everything that a program needs, as JSON."""
        facts: dict[str, object] = {
            "url": self.stack.url,
            "publishable_key": self.stack.publishable_key,
            "secret_key": self.stack.secret_key,
            "database": self.stack.database.dsn_of(OWNER),
            "logins": self.logins,
        }
        if self.farm is not None:
            facts["paper"] = {"server": SERVER, "address": self.farm.address, "token": self.farm.token}
        return facts

    def lines(self) -> list[str]:
        """The same for people: a title, then each value alone on its line, so that it can be copied whole."""
        values = [("Page: open it in a browser and sign in with a login below", f"{self.stack.url}/")]
        for email, password in self.logins.items():
            may = "sees everything and manages the farm" if email == OPERATOR else "has accounts and copiers"
            values += [(f"Login that {may}: e-mail", email), ("its password", password)]
        values += [
            ("Address of the API, for agents and programs", self.stack.url),
            ("Publishable key", self.stack.publishable_key),
            ("Secret key: whoever has it may do anything", self.stack.secret_key),
            ("Database", self.stack.database.dsn_of(OWNER)),
            ("Data folder", str(self.stack.data)),
        ]
        next_step = [] if self.farm is None else ["A first copy, in another terminal: docs/first-copy.md", ""]
        pairs = [line for title, value in values for line in (f"{title}:", value, "")]
        return ["The stack is running.", "", *pairs, *next_step, "Ctrl-C stops it."]


async def _serve(folder: Path, port: int | None, *, as_json: bool, durable: bool, practice: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
    console = Console(stderr=True)
    with Steps(console, total=PARTS if practice else PARTS - 2) as begin:
        served = _Up(folder, port, durable=durable, practice=practice, progress=lambda part: begin(f"starting {part}"))
        starting = asyncio.create_task(served.start())
        interrupted = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
                await served.close()
                return
            starting.result()
        finally:
            interrupted.cancel()
    try:
        click.echo(json.dumps(served.facts()) if as_json else "\n".join(served.lines()))
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await stopped.wait()
            if not stopped.is_set() and await served.restart_ended_parts():
                console.print("a part of the stack stopped unexpectedly and was restarted")
    finally:
        async with shown("everything has ended", STOP_SECONDS):
            await served.close()


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
