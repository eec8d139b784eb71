"""`tradecopier scenario`: runs scripted scenarios on the embedded stack and prints one line per expectation."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from agent.failure import Failure
from agent.scenario.grammar import read_scenario
from agent.scenario.runner import Line, Runner
from agent.scenario.script import Scenario
from agent.scenario.stage import Pool, Stage
from agent.testbed.testbed import Testbed

PLAYABLE = ("paper",)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--platform", metavar="P", help="Use this platform for all accounts instead of those in the files.")
def scenario(files: tuple[Path, ...], platform: str | None) -> None:
    """Run scripted scenarios on the embedded stack.

    Each FILE is a YAML scenario: accounts, copiers, steps and expected results. One line is printed per expectation;
    the exit status is 1 if an expectation was not met.
    """
    scenarios = [on_platform(read_scenario(file), platform) for file in files]
    passed = asyncio.run(run_all(scenarios, lambda line: click.echo(str(line))))
    if not passed:
        sys.exit(1)


def on_platform(scenario: Scenario, platform: str | None) -> Scenario:
    """The scenario with every account on `platform` (None: unchanged).

    Raises `Failure` if the platform cannot be played.
    """
    accounts = {
        name: account if platform is None else replace(account, platform=platform)
        for name, account in scenario.accounts.items()
    }
    for account in accounts.values():
        if account.platform not in PLAYABLE:
            raise Failure(
                f"{scenario.path}:{account.line}: account {account.name} is on {account.platform}, which cannot be"
                f" played yet",
                f"use --platform {PLAYABLE[0]}",
                code="TC641",
            )
    return replace(scenario, accounts=accounts)


async def run_all(
    scenarios: Sequence[Scenario], tell: Callable[[Line], None], *, say: Callable[[str], None] | None = None
) -> bool:
    """Run every scenario on one stack; True when all expectations were met."""
    passed = True
    async with Testbed.open("scenario", say=say or progress) as testbed:
        owner = await testbed.farm.backend.sign_up("scenario@example.com")
        pool = Pool(farm=testbed.farm, owner=owner, hands=testbed)
        for number, scenario in enumerate(scenarios, 1):
            (say or progress)(f"{scenario.path}: {scenario.name}")
            async with Stage(scenario, pool, number) as stage:
                passed &= await Runner(scenario, stage, tell).run()
    return passed


def progress(text: str) -> None:
    """Print what is being waited for to stderr; stdout contains only the results."""
    click.echo(f"… {text}", err=True)
