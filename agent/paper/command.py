"""`tradecopier paper`: runs the paper broker until Ctrl-C."""

import asyncio
import secrets
import signal
from contextlib import suppress
from pathlib import Path

import click

from agent import paths, private_file
from agent.command_group import CommandGroup
from agent.paper.server import PaperServer, ServerSettings
from agent.paper.specs import DEFAULT_PRICES

_FEED_INTERVAL_S = 0.25


@click.group("paper", cls=CommandGroup, invoke_without_command=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder where the accounts are stored; without it they are lost when the broker stops.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Loopback port; 0 takes any free one.")
@click.option(
    "--token",
    envvar="PAPER_TOKEN",
    help="Token that operators of this broker need (better: set PAPER_TOKEN). Generated if absent.",
)
@click.option(
    "--feed/--no-feed", default=True, show_default=True, help="Move the default symbols' prices in a random walk."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the random walk.")
@click.pass_context
def paper(ctx: click.Context, data: Path | None, port: int, token: str | None, feed: bool, seed: int) -> None:
    """Practice accounts: open them and trade by hand.

    The commands below work on the stack that `tradecopier up` runs. Without a command, a paper broker of its own is run
    until Ctrl-C, for stacks and agents that are elsewhere; the options are for it.
    """
    if ctx.invoked_subcommand is not None:
        return
    if data is not None:
        paths.require_folder(data, "choose another folder with --data")
    settings = ServerSettings(token=token or _own_token(data), port=port, data=data)
    try:
        asyncio.run(_run(settings, feed, seed))
    except OSError as error:
        if error.filename is not None:
            raise
        raise click.ClickException(
            f"the paper broker cannot listen on port {port}: {error.strerror}; choose another --port"
        ) from None


def _own_token(data: Path | None) -> str:
    """Generate a token; stored next to the books, so that it stays valid when the broker is restarted."""
    if data is None:
        return secrets.token_urlsafe(24)
    file = data / "token"
    if not file.exists():
        private_file.write(file, secrets.token_urlsafe(24))
    private_file.tighten(file)
    return file.read_text(encoding="utf-8").strip()


async def _run(settings: ServerSettings, feed: bool, seed: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # where the event loop cannot handle signals (Windows), Ctrl-C raises KeyboardInterrupt instead
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    async with PaperServer(settings) as server:
        if feed:
            server.start_feed(None, seed, _FEED_INTERVAL_S)
        click.echo(f"paper broker   {server.address}")
        click.echo(f"token          {settings.token}")
        click.echo(f"symbols        {' '.join(DEFAULT_PRICES)}")
        stored = f"stored in {settings.data}" if settings.data else "in memory only (store them with --data DIR)"
        click.echo(f"accounts       {stored}")
        click.echo("Register the address with save_broker_server; users can then connect accounts to that server.")
        click.echo("The first login of an account sets its password. The token is for operators only.")
        click.echo("Press Ctrl-C to stop.")
        with suppress(KeyboardInterrupt):
            await stop.wait()
    click.echo("paper broker stopped")
