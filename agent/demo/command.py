"""`tradecopier demo`: runs stack, farm, accounts and a trading master, until Ctrl-C, for some seconds, or for a
statement."""

import asyncio
from pathlib import Path

import click

from agent.demo.statement import read_statement
from agent.testbed import figures_file


class Speed(click.ParamType[float | None]):
    """A factor above 0, or `max`."""

    name = "X|max"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value in (None, "max"):
            return None
        try:
            factor = float(str(value))
        except ValueError:
            factor = 0.0
        if not 0 < factor < float("inf"):
            self.fail(f"{value!r} is neither a number above 0 nor max", param, ctx)
        return factor


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this many seconds of trading.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Write the results to this JSON file at the end.",
)
@click.option(
    "--replay",
    metavar="STATEMENT.csv",
    help="Replay this account statement on the master (`example`: the included one).",
)
@click.option(
    "--speed",
    type=Speed(),
    default="max",
    show_default=True,
    help="Speed of the replay compared to real time; max: each action as soon as the previous one is copied.",
)
@click.option("--kill-vps", is_flag=True, help="Kill one VPS during the run; its accounts move to the other ones.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the prices and of the master's trades.")
def demo(
    seconds: float | None, json_file: Path | None, replay: str | None, speed: float | None, kill_vps: bool, seed: int
) -> None:
    """Run stack, agents and accounts, and copy trades.

    A statement is a CSV file with the columns ticket, open_time, side, lots, symbol, open_price, sl, tp, close_time,
    close_price, commission, swap, profit, comment. Times are YYYY.MM.DD HH:MM:SS, a price or level of 0 means none, an
    empty close_time means still open, and `from #N` / `to #N` in the comment name the ticket before or after a partial
    close. A row of 0.00 lots is read if its comment names the position it was closed by: `close hedge by #N`.
    """
    from agent.demo.run import Options, run_demo

    statement = None if replay is None else read_statement(replay)
    if statement is not None and statement.left_out:
        lines = ", ".join(map(str, statement.left_out))
        click.echo(f"left out, because the file does not tell their volume: lines {lines}", err=True)
    figures_file.check_writable(json_file)
    figures = asyncio.run(
        run_demo(Options(seconds=seconds, statement=statement, speed=speed, seed=seed, kill_vps=kill_vps))
    )
    if json_file is not None:
        figures_file.write(json_file, figures)
        click.echo(f"results written to {json_file}", err=True)
