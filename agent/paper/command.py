"""`tradecopier paper`: the paper broker for an operator, until Ctrl-C."""

import asyncio
import secrets
import signal
from contextlib import suppress
from pathlib import Path

import click

from agent.paper.server import PaperServer, ServerSettings
from agent.paper.specs import DEFAULT_PRICES

_FEED_INTERVAL_S = 0.25


@click.command("paper")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the books; without it they end with the broker.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Loopback port; 0 takes any free one.")
@click.option(
    "--token", envvar="PAPER_TOKEN", help="Password of the broker (better: the variable PAPER_TOKEN); made up when absent."
)
@click.option("--feed/--no-feed", default=True, show_default=True, help="Let the default symbols' prices walk at random.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of that walk.")
def paper(data: Path | None, port: int, token: str | None, feed: bool, seed: int) -> None:
    """Run the built-in paper broker: accounts to try copiers with, without money."""
    settings = ServerSettings(token=token or _own_token(data), port=port, data=data)
    try:
        asyncio.run(_run(settings, feed, seed))
    except OSError as error:
        raise click.ClickException(
            f"the paper broker cannot listen on port {port}: {error.strerror}; choose another --port"
        ) from None


def _own_token(data: Path | None) -> str:
    """A new token; kept beside the books, because the accounts that know it outlive this process."""
    if data is None:
        return secrets.token_urlsafe(24)
    file = data / "token"
    if not file.exists():
        data.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24), encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


async def _run(settings: ServerSettings, feed: bool, seed: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # where the loop cannot take signals (Windows), Ctrl-C raises KeyboardInterrupt instead
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    async with PaperServer(settings) as server:
        if feed:
            server.start_feed(None, seed, _FEED_INTERVAL_S)
        click.echo(f"paper broker   {server.address}")
        click.echo(f"token          {settings.token}")
        click.echo(f"symbols        {' '.join(DEFAULT_PRICES)}")
        click.echo(
            f"books          {'kept in ' + str(settings.data) if settings.data else 'in memory only (keep them with --data DIR)'}"
        )
        click.echo("Connect an account of platform paper: server = the address, password = the token. Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            await stop.wait()
    click.echo("paper broker stopped")
