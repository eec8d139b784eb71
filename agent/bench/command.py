"""`tradecopier bench`: runs one benchmark on its own embedded stack."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import click

from agent.bench.burst import run_burst, summarise_waves
from agent.bench.copying import (
    add_followers,
    allow_accounts,
    prepare,
    run_events,
    run_trades,
    summarise,
    summarise_last,
)
from agent.bench.floods import FLOODS, flooding
from agent.bench.histogram import describe
from agent.bench.history import history_figures
from agent.bench.machine import machine
from agent.bench.queueing import Contest, queue_figures
from agent.bench.report import report
from agent.bench.tenants import Sizes, tenants_figures
from agent.bench.true_clock import offsets, ours_by_true_clock
from agent.command_group import CommandGroup
from agent.testbed import figures_file
from agent.testbed.testbed import Testbed
from agent.testbed.waiting import Steps

Figures = dict[str, object]
#: says what is being done, on standard error; standard output contains only the results
_say = Steps()

_json = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")


@click.group(cls=CommandGroup)
def bench() -> None:
    """Run a benchmark."""


@bench.command()
@click.option(
    "--samples", type=click.IntRange(2, 100_000), default=300, show_default=True, help="Events of the master."
)
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Events per second.")
@_json
def copy(samples: int, rate: float, json_file: Path | None) -> None:
    """One master, one follower on another VPS: time from the master's change to the follower's order."""
    _run(copy_figures(samples, rate), json_file)


@bench.command()
@click.option(
    "--samples", type=click.IntRange(2, 10_000), default=20, show_default=True, help="Events of the master per size."
)
@click.option(
    "--followers",
    "sizes",
    multiple=True,
    type=click.IntRange(1, 2000),
    default=(10, 100, 500),
    show_default=True,
    help="Number of followers; may be repeated.",
)
@click.option("--rate", type=click.FloatRange(0.01, 100), default=0.5, show_default=True, help="Events per second.")
@_json
def fanout(samples: int, sizes: tuple[int, ...], rate: float, json_file: Path | None) -> None:
    """One master, many followers on three VPSes: time until the last order was sent."""
    _run(fanout_figures(samples, sorted(sizes), rate), json_file)


@bench.command()
@click.option("--samples", type=click.IntRange(1, 1000), default=3, show_default=True, help="Bursts.")
@click.option("--positions", type=click.IntRange(1, 1000), default=50, show_default=True, help="Positions per burst.")
@click.option("--followers", type=click.IntRange(1, 2000), default=40, show_default=True, help="Number of followers.")
@_json
def burst(samples: int, positions: int, followers: int, json_file: Path | None) -> None:
    """Many positions within a second, many followers: counts lost and duplicate orders, and the total time."""
    _run(burst_figures(samples, positions, followers), json_file)


@bench.command()
@click.option(
    "--samples", type=click.IntRange(1, 1_000_000), default=4000, show_default=True, help="Jobs per round and queue."
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds after the warm-up.")
@click.option(
    "--connections", type=click.IntRange(1, 50), default=4, show_default=True, help="Connections of each queue."
)
@click.option(
    "--batch", type=click.IntRange(1, 200), default=40, show_default=True, help="Jobs per call; number of followers."
)
@_json
def queue(samples: int, rounds: int, connections: int, batch: int, json_file: Path | None) -> None:
    """Executions queued and completed per second in Postgres, compared with procrastinate and pgqueuer."""
    contest = Contest(jobs=samples, rounds=rounds, connections=connections, batch=batch)
    _run(queue_figures(contest, _say), json_file)


@bench.command()
@click.option(
    "--rows", type=click.IntRange(1000, 20_000_000), default=2_000_000, show_default=True, help="Rows of closed trades."
)
@click.option(
    "--rounds", type=click.IntRange(2, 10_000), default=60, show_default=True, help="Opens and closes of each database."
)
@click.option("--followers", type=click.IntRange(1, 200), default=20, show_default=True, help="Number of followers.")
@_json
def history(rows: int, rounds: int, followers: int, json_file: Path | None) -> None:
    """Cost of an event in Postgres with years of closed trades, compared with the same farm without them."""
    _run(asyncio.to_thread(history_figures, rows, rounds, followers, _say), json_file)


@bench.command()
@click.option(
    "--samples", type=click.IntRange(2, 10_000), default=40, show_default=True, help="Events of the master per flood."
)
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=10.0, show_default=True, help="Events per second.")
@click.option(
    "--flood", "kinds", multiple=True, type=click.Choice(list(FLOODS)), default=tuple(FLOODS), help="May be repeated."
)
@_json
def floods(samples: int, rate: float, kinds: tuple[str, ...], json_file: Path | None) -> None:
    """Latency of the same copies without and with a flood of the gateway, for each kind of flood."""
    _run(flood_figures(samples, rate, kinds), json_file)


@bench.command()
@click.option(
    "--samples", type=click.IntRange(4, 10_000), default=100, show_default=True, help="Events of the tenant per load."
)
@click.option("--rate", type=click.FloatRange(0.1, 100), default=2.0, show_default=True, help="Events per second.")
@click.option(
    "--accounts",
    type=click.IntRange(2, 500),
    default=200,
    show_default=True,
    help="Accounts with every list and setting at its limit.",
)
@click.option(
    "--followers", type=click.IntRange(1, 1000), default=500, show_default=True, help="Copiers of one master."
)
@click.option(
    "--calls",
    type=click.FloatRange(0.1, 1000),
    default=50.0,
    show_default=True,
    help="Calls per second of each function.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=1.0, show_default=True, help="Duration per function."
)
@click.option(
    "--rows", type=click.IntRange(100, 5_000_000), default=200_000, show_default=True, help="Rows of large tables."
)
@_json
def tenants(
    samples: int,
    rate: float,
    accounts: int,
    followers: int,
    calls: float,
    seconds: float,
    rows: int,
    json_file: Path | None,
) -> None:
    """Latency of one tenant's closes while another tenant uses everything that the limits allow."""
    sizes = Sizes(
        samples=samples, rate=rate, accounts=accounts, followers=followers, calls=calls, seconds=seconds, rows=rows
    )
    _run(tenants_figures(sizes, _say), json_file)


async def copy_figures(samples: int, rate: float, say: Callable[[str], None] | None = None) -> Figures:
    progress = say or _say
    async with Testbed.open("bench", say=progress) as testbed:
        about = await machine(testbed.farm.observer)
        field = await add_followers(testbed, await prepare(testbed, 2, progress), 1, progress, beside=False)
        progress(f"{samples} events at {rate:g} per second")
        trades, orders = await run_trades(
            testbed, field, events=samples, warm_up=max(2, min(100, samples // 2 * 2)), per_second=rate
        )
        return {
            "benchmark": "copy",
            "samples": samples,
            "rate": rate,
            **summarise(orders),
            "ours_true_clock_ms": describe(await ours_by_true_clock(testbed, field, trades, orders)),
            "clock_offsets_ms": await offsets(testbed),
            "machine": about,
        }


async def flood_figures(
    samples: int, rate: float, kinds: Sequence[str], say: Callable[[str], None] | None = None
) -> Figures:
    progress = say or _say
    results: dict[str, object] = {}
    async with Testbed.open("bench", say=progress) as testbed:
        about = await machine(testbed.farm.observer)
        field = await add_followers(testbed, await prepare(testbed, 2, progress), 1, progress, beside=False)
        for kind in kinds:
            progress(f"{samples} events at {rate:g} per second, first without and then with the flood {kind}")
            calm = await run_events(
                testbed, field, events=samples, warm_up=max(2, min(40, samples // 2 * 2)), per_second=rate
            )
            async with flooding(kind, testbed.stack.port, testbed.stack.publishable_key):
                flooded = await run_events(testbed, field, events=samples, warm_up=2, per_second=rate)
            results[kind] = {"without": summarise(calm), "with": summarise(flooded)}
    return {"benchmark": "floods", "samples": samples, "rate": rate, "floods": results, "machine": about}


async def fanout_figures(
    samples: int, sizes: list[int], rate: float, say: Callable[[str], None] | None = None
) -> Figures:
    progress = say or _say
    results: dict[str, object] = {}
    async with Testbed.open("bench", say=progress, capacity=max(50, max(sizes))) as testbed:
        about = await machine(testbed.farm.observer)
        await allow_accounts(testbed, max(200, max(sizes) + 1))
        field = await prepare(testbed, 3, progress)
        for size in sizes:
            field = await add_followers(testbed, field, size, progress, beside=True)
            progress(f"{samples} events for {size} followers at {rate:g} per second")
            orders = await run_events(testbed, field, events=samples, warm_up=4, per_second=rate)
            results[str(size)] = {**summarise_last(orders), **summarise(orders)}
    return {"benchmark": "fanout", "samples": samples, "rate": rate, "followers": results, "machine": about}


async def burst_figures(
    samples: int, positions: int, followers: int, say: Callable[[str], None] | None = None
) -> Figures:
    progress = say or _say
    async with Testbed.open("bench", say=progress, capacity=max(50, followers)) as testbed:
        about = await machine(testbed.farm.observer)
        await allow_accounts(testbed, max(200, followers + 1))
        field = await add_followers(testbed, await prepare(testbed, 3, progress), followers, progress, beside=True)
        await run_events(testbed, field, events=2, warm_up=4, per_second=2)
        waves = []
        for number in range(samples):
            progress(
                f"burst {number + 1} of {samples}: {positions} positions within a second for {followers} followers"
            )
            waves.append(await run_burst(testbed, field, positions, per_second=positions))
        return {
            "benchmark": "burst",
            "samples": samples,
            "positions": positions,
            "followers": followers,
            "vps": len(testbed.farm.vpses),
            "opens": summarise_waves([opens for opens, _ in waves]),
            "closes": summarise_waves([closes for _, closes in waves]),
            "machine": about,
        }


def _run(work: Coroutine[object, object, Figures], json_file: Path | None) -> None:
    try:
        figures_file.check_writable(json_file)
        with _say:
            figures = asyncio.run(work)
    finally:
        work.close()
    if json_file is not None:
        figures_file.write(json_file, figures)
    click.echo(report(figures))
