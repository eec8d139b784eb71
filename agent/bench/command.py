"""`tradecopier bench`: one benchmark at a time, on an embedded stack of its own."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path

import click

from agent.bench.burst import run_burst, summarise_waves
from agent.bench.copying import (
    add_followers,
    allow_accounts,
    prepare,
    run_events,
    summarise,
    summarise_last,
)
from agent.bench.history import history_figures
from agent.bench.machine import machine
from agent.bench.queueing import Contest, queue_figures
from agent.demo.command import check_writable
from agent.demo.shelter import Shelter

Figures = dict[str, object]

_json = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file."
)


@click.group()
def bench() -> None:
    """Run a benchmark."""


@bench.command()
@click.option("--samples", type=click.IntRange(2, 100_000), default=300, show_default=True, help="Events of the master.")
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Events per second.")
@_json
def copy(samples: int, rate: float, json_file: Path | None) -> None:
    """One master, one follower on another VPS: from the change to the follower's order."""
    _run(copy_figures(samples, rate), json_file)


@bench.command()
@click.option("--samples", type=click.IntRange(2, 10_000), default=20, show_default=True, help="Events of the master per size.")
@click.option(
    "--followers",
    "sizes",
    multiple=True,
    type=click.IntRange(1, 2000),
    default=(10, 100, 500),
    show_default=True,
    help="How many followers; may be repeated.",
)
@click.option("--rate", type=click.FloatRange(0.01, 100), default=0.5, show_default=True, help="Events per second.")
@_json
def fanout(samples: int, sizes: tuple[int, ...], rate: float, json_file: Path | None) -> None:
    """One master, many followers over three VPSes: until the last order was sent."""
    _run(fanout_figures(samples, sorted(sizes), rate), json_file)


@bench.command()
@click.option("--samples", type=click.IntRange(1, 1000), default=3, show_default=True, help="Bursts.")
@click.option("--positions", type=click.IntRange(1, 1000), default=50, show_default=True, help="Positions per burst.")
@click.option("--followers", type=click.IntRange(1, 2000), default=40, show_default=True, help="How many followers.")
@_json
def burst(samples: int, positions: int, followers: int, json_file: Path | None) -> None:
    """Many positions within a second, many followers: no order lost, none twice, and when all is done."""
    _run(burst_figures(samples, positions, followers), json_file)


@bench.command()
@click.option("--samples", type=click.IntRange(1, 1_000_000), default=4000, show_default=True, help="Jobs per round and queue.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds after the warm-up.")
@click.option("--connections", type=click.IntRange(1, 50), default=4, show_default=True, help="Connections of each queue.")
@click.option("--batch", type=click.IntRange(1, 200), default=40, show_default=True, help="Jobs enqueued at once; followers.")
@_json
def queue(samples: int, rounds: int, connections: int, batch: int, json_file: Path | None) -> None:
    """Executions queued and completed per second in Postgres, against procrastinate and pgqueuer."""
    contest = Contest(jobs=samples, rounds=rounds, connections=connections, batch=batch)
    _run(queue_figures(contest, _say), json_file)


@bench.command()
@click.option("--rows", type=click.IntRange(1000, 20_000_000), default=2_000_000, show_default=True, help="Rows of history.")
@click.option(
    "--rounds", type=click.IntRange(2, 10_000), default=60, show_default=True, help="Opens and closes of each database."
)
@click.option("--followers", type=click.IntRange(1, 200), default=20, show_default=True, help="How many followers.")
@_json
def history(rows: int, rounds: int, followers: int, json_file: Path | None) -> None:
    """What an event costs in Postgres beside years of closed trades, against the same farm without any."""
    _run(asyncio.to_thread(history_figures, rows, rounds, followers, _say), json_file)


async def copy_figures(samples: int, rate: float, say: Callable[[str], None] | None = None) -> Figures:
    tell = say or _say
    async with Shelter.open("bench", say=tell) as shelter:
        about = await machine(shelter.farm.observer)
        field = await add_followers(shelter, await prepare(shelter, 2, tell), 1, tell, beside=False)
        tell(f"{samples} events at {rate:g} per second")
        orders = await run_events(shelter, field, events=samples, warm_up=max(2, min(100, samples // 2 * 2)), per_second=rate)
        return {"benchmark": "copy", "samples": samples, "rate": rate, **summarise(orders), "machine": about}


async def fanout_figures(samples: int, sizes: list[int], rate: float, say: Callable[[str], None] | None = None) -> Figures:
    tell = say or _say
    results: dict[str, object] = {}
    async with Shelter.open("bench", say=tell, capacity=max(50, max(sizes))) as shelter:
        about = await machine(shelter.farm.observer)
        await allow_accounts(shelter, max(200, max(sizes) + 1))
        field = await prepare(shelter, 3, tell)
        for size in sizes:
            field = await add_followers(shelter, field, size, tell, beside=True)
            tell(f"{samples} events for {size} followers at {rate:g} per second")
            orders = await run_events(shelter, field, events=samples, warm_up=4, per_second=rate)
            results[str(size)] = {**summarise_last(orders), **summarise(orders)}
    return {"benchmark": "fanout", "samples": samples, "rate": rate, "followers": results, "machine": about}


async def burst_figures(samples: int, positions: int, followers: int, say: Callable[[str], None] | None = None) -> Figures:
    tell = say or _say
    async with Shelter.open("bench", say=tell, capacity=max(50, followers)) as shelter:
        about = await machine(shelter.farm.observer)
        await allow_accounts(shelter, max(200, followers + 1))
        field = await add_followers(shelter, await prepare(shelter, 3, tell), followers, tell, beside=True)
        await run_events(shelter, field, events=2, warm_up=4, per_second=2)
        waves = []
        for number in range(samples):
            tell(f"burst {number + 1} of {samples}: {positions} positions within a second for {followers} followers")
            waves.append(await run_burst(shelter, field, positions, per_second=positions))
        return {
            "benchmark": "burst",
            "samples": samples,
            "positions": positions,
            "followers": followers,
            "vps": len(shelter.farm.vpses),
            "opens": summarise_waves([opens for opens, _ in waves]),
            "closes": summarise_waves([closes for _, closes in waves]),
            "machine": about,
        }


def _run(work: Coroutine[object, object, Figures], json_file: Path | None) -> None:
    try:
        check_writable(json_file)
        figures = asyncio.run(work)
    finally:
        work.close()
    _print(figures, "")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _print(figures: Figures, indent: str) -> None:
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()) and "p50" not in value:
            click.echo(f"{indent}{name}")
            _print(value, indent + "  ")
        elif isinstance(value, dict) and "p50" in value:
            shown = ", ".join(f"{key} {value[key]}" for key in ("p50", "p95", "p99", "max", "n"))
            click.echo(f"{indent}{name:27}{shown}")
        else:
            click.echo(f"{indent}{name:27}{value}")


def _say(text: str) -> None:
    click.echo(f"… {text}", err=True)
