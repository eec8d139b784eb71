"""`tradecopier demo`: stack, farm, accounts and a trading master, until Ctrl-C or for some seconds, or as a statement says."""

import asyncio
import json
from pathlib import Path

import click

from agent.demo.statement import read_statement
from agent.failure import Failure


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
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End by itself after so many seconds of trading.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file at the end."
)
@click.option(
    "--replay",
    metavar="STATEMENT.csv",
    help="The master trades what this account statement says (`example`: the one that comes along).",
)
@click.option(
    "--speed",
    type=Speed(),
    default="max",
    show_default=True,
    help="How many times faster than life a statement is replayed; max: each action once the one before is copied.",
)
@click.option("--kill-vps", is_flag=True, help="Kill one VPS for good on the way; its accounts move to the others.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of prices and of the trading master.")
def demo(
    seconds: float | None, json_file: Path | None, replay: str | None, speed: float | None, kill_vps: bool, seed: int
) -> None:
    """Run stack, agents and accounts, and copy trades.

    A statement is a CSV with the columns ticket, open_time, side, lots, symbol, open_price, sl, tp, close_time, close_price,
    commission, swap, profit, comment. Times are YYYY.MM.DD HH:MM:SS, a price or level of 0 means none, an empty close_time
    means still open, and `from #N` / `to #N` in the comment name the ticket before or after a partial close.
    """
    from agent.demo.show import Options, run_demo

    statement = None if replay is None else read_statement(replay)
    check_writable(json_file)
    figures = asyncio.run(run_demo(Options(seconds=seconds, statement=statement, speed=speed, seed=seed, kill_vps=kill_vps)))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        click.echo(f"figures written to {json_file}", err=True)


def check_writable(file: Path | None) -> None:
    """Before anything is started: can the figures be kept there? Raises `Failure`."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise Failure(f"{file} cannot be written ({error.strerror})", "choose another file", code="TC655") from error
