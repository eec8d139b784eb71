"""Whatever happens, in whatever order: in the end every follower holds what its masters hold and the settings say.

`make test` plays the same examples every time. `make test-long` plays PLANNER_EXAMPLES new ones per kind of follower; a failure
is shrunk to the shortest list of steps, which then belongs into a test of its own.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_farm import MULTIPLIERS, Farm, Step, verbs
from random_masters import QuietWorld

from agent.local.database import Database
from agent.local.postgres import PostgresServer

LONG = "PLANNER_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("PLANNER_EXAMPLES", "60"))
KINDS = {"hedging": "H", "netting": "N", "both": "HN"}


def furnish(world: QuietWorld, followers: str) -> None:
    """Masters M1 and M2, followers H (hedging) and N (netting), and the copiers that lead to these followers."""
    for name, vps, mode in (("M1", "a", "hedging"), ("M2", "a", "hedging"), ("H", "b", "hedging"), ("N", "b", "netting")):
        world.add_account(name, vps=vps, mode=mode)
    for (master, follower), factor in MULTIPLIERS.items():
        if follower in followers:
            world.copy(master, follower, sizing_value=str(factor), sanity_factor=None, max_age_ms=600000)
    world.db.execute("update public.vps_instances set lease_expires_at = now() + interval '1 day'")


@contextmanager
def furnished(server: PostgresServer, template: Database, followers: str, name: str) -> Iterator[QuietWorld]:
    copy = Database.create(server, f"random_{os.getpid()}_{name}", template)
    with copy.connect() as connection:
        world = QuietWorld(connection)
        furnish(world, followers)
        yield world
    copy.drop()


def play(world: QuietWorld, followers: str, steps: list[Step]) -> None:
    """One example, of which nothing is left in the database."""
    with world.db.transaction(force_rollback=True):
        Farm(world, followers).play(steps)


def examples(followers: str) -> st.SearchStrategy[list[Step]]:
    number = st.integers(0, 7)
    return st.lists(st.tuples(st.sampled_from(verbs(followers)), number, number, number), min_size=4, max_size=30)


@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.parametrize("kind", KINDS)
def test_followers_hold_what_the_settings_say(postgres_server: PostgresServer, template_database: Database, kind: str) -> None:
    followers = KINDS[kind]
    with furnished(postgres_server, template_database, followers, kind) as world:

        @settings(
            max_examples=EXAMPLES,
            derandomize=not LONG,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(steps=examples(followers))
        def holds(steps: list[Step]) -> None:
            play(world, followers, steps)

        holds()


#: what is changed in a copy of the planner → the followers that show it
MUTANTS = {
    "a reduction by the wrong comparison": (
        "private.plan_links",
        "s.position_lots - s.target >=",
        "s.position_lots - s.target <",
        "H",
    ),
    "an older number overrules a newer": ("private.apply_position", "(o.session, o.seq) >=", "(o.session, o.seq) =", "H"),
    "a doomed share is kept": ("private.net_deltas", "then -s.position_lots", "then 0", "N"),
    "a reduction aims at another volume": ("private.target_lots", "p_base * p_master_now", "p_base * p_master_base", "N"),
}


def random_steps(generator: random.Random, followers: str) -> list[Step]:
    def number() -> int:
        return generator.randrange(8)

    return [(generator.choice(verbs(followers)), number(), number(), number()) for _ in range(generator.randrange(10, 31))]


def fails_within(world: QuietWorld, followers: str, examples: int) -> bool:
    generator = random.Random(1)
    for _ in range(examples):
        try:
            play(world, followers, random_steps(generator, followers))
        except (AssertionError, psycopg.Error):
            return True
    return False


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planner_that_errs_is_caught(postgres_server: PostgresServer, template_database: Database, mutant: str) -> None:
    """The property is worth something only if a small change of the planner breaks it."""
    function, right, wrong, followers = MUTANTS[mutant]
    with furnished(postgres_server, template_database, followers, "mutant") as world:
        source = world.one("select pg_get_functiondef(%s::regproc)", function)
        assert source.count(right) == 1, "the planner has changed: choose another place"
        world.db.execute(source.replace(right, wrong))
        assert fails_within(world, followers, 200)
