"""Whatever happens, in whatever order: in the end every follower holds what its masters hold and the settings say.

`make test` plays the same hundred examples every time. `make test-long` plays PLANNER_EXAMPLES new ones; a failure is
shrunk to the shortest list of steps, which then belongs into a test of its own.
"""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from farm import CHAIN, COPIERS, Farm, Step, how_many_choices, verbs
from findings import FINDINGS, Finding
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutants import MUTANTS, Mutant, random_example
from quiet_world import OTHER, QuietWorld
from settings import BALANCES

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer

#: each kind of followers gets a database of its own
pytestmark = pytest.mark.own_database

LONG = "PLANNER_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("PLANNER_EXAMPLES", "100"))
#: followers → their part of the examples
KINDS = {"H": 30, "N": 30, "HN": 25, "HC": 15}


def furnish(world: QuietWorld) -> None:
    """Masters M1 and M2; a hedging follower H, a netting one N, and C, which follows H. Four VPSes, so that each may
    move."""
    for name, mode in (("M1", "hedging"), ("M2", "hedging"), ("H", "hedging"), ("N", "netting"), ("C", "hedging")):
        vps = "a" if name in ("M1", "M2") else "b"
        world.add_account(name, vps=vps, mode=mode, balance=str(BALANCES[name]))
        world.add_symbol(name, OTHER)
    world.add_vps("c")
    world.add_vps("d")
    world.db.execute("update public.vps_instances set lease_expires_at = now() + interval '1 day'")


def connect(world: QuietWorld, followers: str) -> None:
    chain = [CHAIN] if "C" in followers else []
    for copier in COPIERS[followers] + chain:
        world.copy(*copier, sanity_factor=None, max_age_ms=600000)


@contextmanager
def furnished(server: PostgresServer, template: Database, followers: str) -> Iterator[QuietWorld]:
    copy = Database.create(server, f"random_{os.getpid()}_{followers.lower()}", template)
    with copy.connect() as connection:
        world = QuietWorld(connection)
        furnish(world)
        connect(world, followers)
        try:
            yield world
        finally:
            connection.close()
            copy.drop()


def play(world: QuietWorld, followers: str, choices: list[int], steps: list[Step]) -> None:
    """One example, of which nothing is left in the database."""
    try:
        with world.db.transaction(force_rollback=True):
            Farm(world, followers, choices).play(steps)
    finally:
        world.end()


def choices(followers: str) -> st.SearchStrategy[list[int]]:
    how_many = how_many_choices(followers)
    return st.lists(st.integers(0, 7), min_size=how_many, max_size=how_many)


def examples(followers: str) -> st.SearchStrategy[list[Step]]:
    number = st.integers(0, 7)
    return st.lists(st.tuples(st.sampled_from(verbs(followers)), number, number, number), min_size=12, max_size=40)


@pytest.mark.timeout(0 if LONG else 300)
@pytest.mark.parametrize("followers", KINDS)
def test_followers_hold_what_the_settings_say(
    postgres_server: PostgresServer, template_database: Database, followers: str
) -> None:
    with furnished(postgres_server, template_database, followers) as world:

        @settings(
            max_examples=max(1, EXAMPLES * KINDS[followers] // 100),
            derandomize=not LONG,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(choices=choices(followers), steps=examples(followers))
        def holds(choices: list[int], steps: list[Step]) -> None:
            play(world, followers, choices, steps)

        holds()


@pytest.fixture(scope="module")
def worlds(postgres_server: PostgresServer, template_database: Database) -> Iterator[dict[str, QuietWorld]]:
    """A farm of every kind that mutants and findings need."""
    with ExitStack() as farms:
        kinds = sorted({mutant.followers for mutant in MUTANTS} | {finding.followers for finding in FINDINGS})
        yield {kind: farms.enter_context(furnished(postgres_server, template_database, kind)) for kind in kinds}


def finding_name(finding: Finding) -> str:
    return finding.name


@pytest.mark.parametrize("finding", FINDINGS, ids=finding_name)
def test_what_was_found_once_stays_mended(worlds: dict[str, QuietWorld], finding: Finding) -> None:
    play(worlds[finding.followers], finding.followers, finding.choices, finding.steps)


@contextmanager
def erring(world: QuietWorld, mutant: Mutant) -> Iterator[None]:
    """A planner with this fault, until the end of the block."""
    with world.db.transaction(force_rollback=True):
        world.db.execute(mutant.source(world))
        yield


def named(mutant: Mutant) -> str:
    return mutant.name


@pytest.mark.parametrize("mutant", MUTANTS, ids=named)
def test_a_planner_that_errs_is_caught(worlds: dict[str, QuietWorld], mutant: Mutant) -> None:
    """The property is worth something only if a small change of the planner breaks it. Without it the same example
    passes."""
    world = worlds[mutant.followers]
    play(world, mutant.followers, mutant.choices, mutant.steps)
    with erring(world, mutant), pytest.raises((AssertionError, psycopg.Error)):
        play(world, mutant.followers, mutant.choices, mutant.steps)


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.common], ids=named)
def test_random_examples_find_it_by_themselves(worlds: dict[str, QuietWorld], mutant: Mutant) -> None:
    world = worlds[mutant.followers]
    generator = random.Random(4)
    examples = [random_example(generator, mutant.followers) for _ in range(100)]

    def play_all() -> None:
        for choices, steps in examples:
            play(world, mutant.followers, choices, steps)

    with erring(world, mutant), pytest.raises((AssertionError, psycopg.Error)):
        play_all()
