"""Copiers removed in the middle of anything: in the end every follower's book is what the way of removal promised.

preserve: what the copies held then is held still, and nobody's. close_gracefully: nothing is left once the masters have
closed. close_now: nothing is left. In every way: nothing in flight, nothing unexplained, the user's own trades
untouched.
"""

import os
import random
import re
from decimal import Decimal

import psycopg
import pytest
from brokers import OWN
from farm import Farm, Step, verbs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from quiet_world import MASTERS, QuietWorld
from test_planner_random import furnished

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer

LONG = "PLANNER_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("PLANNER_EXAMPLES", "40"))
MODES = ("preserve", "close_gracefully", "close_now")
#: after a removal: not the modes of a copier that leaves, and nothing that only the user does to copies
NOT_AFTER = ("mode", "user_trims", "user_closes", "order_fills", "user_deals")
#: the account's own states have tests of their own
NEVER = ("pause", "flatten")
Pair = tuple[str, str]


class Leaving:
    """A farm whose copiers are removed on the way, some of them in two ways one after the other."""

    def __init__(self, world: QuietWorld, followers: str) -> None:
        self.world = world
        self.farm = Farm(world, followers)
        self.mode: dict[Pair, str] = {}
        #: what a preserved copier's copies held, where nothing was under way that could still change it
        self.kept: dict[Pair, dict[str, Decimal]] = {}

    def play(self, before: list[Step], settled: bool, removals: list[int], after: list[Step]) -> None:
        self._steps(before)
        if settled:
            self.farm._settle()
        for copier, number in zip(list(self.farm.settings) * 2, removals, strict=False):
            self._remove(copier, MODES[number % 3])
        self._steps([step for step in after if step[0] not in NOT_AFTER])
        self._rest()
        for master in MASTERS:
            for p in self.farm.masters.live(master) + self.farm.masters.live(master, "order"):
                p["lots"] = Decimal(0)
                self.farm.masters._tell(master, "closed" if p["kind"] == "position" else "cancelled", p)
        self._rest()
        self.world.db.execute("select private.finish_removals()")
        self._check()

    def _steps(self, steps: list[Step]) -> None:
        for verb, *numbers in steps:
            self.farm.act(verb, *numbers)

    def _remove(self, copier: Pair, mode: str) -> None:
        if copier in self.kept or self.mode.get(copier) == "preserve":
            return
        self.mode[copier] = mode
        if mode == "preserve" and not self.world.open_executions(copier[1]):
            self.kept[copier] = self._held(copier)
        self.world.as_user("remove_copier", {"copier_id": self.world.copiers[">".join(copier)], "mode": mode})

    def _held(self, copier: Pair) -> dict[str, Decimal]:
        """What a copy began as → its lots at H's broker; on N its signed shares, for the net position has no tickets of
        copiers."""
        if copier[1] == "H":
            return {
                x.root: x.lots
                for x in self.farm.brokers.hedging.values()
                if x.pair and x.pair[:2] == copier and x.lots > 0
            }
        rows = self.world.rows(
            "select g.link_id, g.lots * private.sign_of(l.side) as lots from private.link_legs g"
            " join public.position_links l on l.id = g.link_id where l.copier_id = %s",
            self.world.copiers[">".join(copier)],
        )
        return {str(row["link_id"]): row["lots"] for row in rows}

    def _rest(self) -> None:
        while self.farm.masters.deliver_one():
            pass
        self.farm.agents.delaying = False
        for _ in range(200):
            if not self.farm._move():
                return
        raise AssertionError(
            f"never settles: {[(e['id'], e['action'], e['status']) for e in self.world.open_executions()]}"
        )

    def _check(self) -> None:
        world = self.world
        assert [(e["id"], e["action"], e["status"]) for e in world.open_executions()] == [], "something is in flight"
        assert world.unexplained() == 0, world.rows("select * from public.unexplained_pairs")
        left = {pair: world.one("select removed_at is null from public.copiers where id = %s",
                                world.copiers[">".join(pair)])
            for pair in self.mode}  # fmt: skip
        assert not any(left.values()), f"not removed: {left}"
        assert world.rows("select id, copier_id from public.position_links where state = 'live'") == []
        assert world.rows("select * from private.link_legs") == [], "a leg without a live link"
        for copier, mode in self.mode.items():
            if copier in self.kept and copier[1] == "H":
                now = self._held(copier)
                assert {t: now.get(t) for t in self.kept[copier]} == self.kept[copier], (
                    f"{copier}: a preserved copy was touched"
                )
            elif mode != "preserve" and copier[1] == "H":
                assert self._held(copier) == {}, f"{copier}: something of it is left after {mode}"
        self._check_net()
        own = [x.lots for x in self.farm.brokers.hedging.values() if x.pair is None]
        assert own == [OWN] * len(own), "a user's own trade was touched"

    def _check_net(self) -> None:
        mine = [pair for pair in self.mode if pair[1] == "N"]
        if (
            not mine
            or self.farm.followers.own_on_net
            or any(self.mode[p] == "preserve" and p not in self.kept for p in mine)
        ):
            return
        kept = sum((lots for pair in mine for lots in self.kept.get(pair, {}).values()), Decimal(0))
        assert self.farm.brokers.net == kept, f"the net position is {self.farm.brokers.net}, not {kept}"


def play_once(
    world: QuietWorld, followers: str, before: list[Step], settled: bool, removals: list[int], after: list[Step]
) -> None:
    """One example, of which nothing is left in the database."""
    try:
        with world.db.transaction(force_rollback=True):
            Leaving(world, followers).play(before, settled, removals, after)
    finally:
        world.end()


def steps(followers: str, least: int, most: int) -> st.SearchStrategy[list[Step]]:
    number = st.integers(0, 7)
    return st.lists(
        st.tuples(st.sampled_from([verb for verb in verbs(followers) if verb not in NEVER]), number, number, number),
        min_size=least,
        max_size=most,
    )


@pytest.mark.covers("R16")
@pytest.mark.timeout(0 if LONG else 120)
@pytest.mark.parametrize("followers", ["H", "N"])
def test_what_is_left_is_what_the_removal_promised(
    postgres_server: PostgresServer, template_database: Database, followers: str
) -> None:
    with furnished(postgres_server, template_database, followers) as world:

        @settings(
            max_examples=EXAMPLES, derandomize=not LONG, deadline=None, database=None, print_blob=False,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip
        @given(
            before=steps(followers, 4, 15),
            settled=st.booleans(),
            removals=st.lists(st.integers(0, 2), min_size=2, max_size=4),
            after=steps(followers, 0, 12),
        )
        def holds(before: list[Step], settled: bool, removals: list[int], after: list[Step]) -> None:
            play_once(world, followers, before, settled, removals, after)

        holds()


#: what is changed in a copy of the lifecycle → the follower that shows it
MUTANTS = {
    "a preserved copy keeps its legs": (
        "private.release_copies",
        "delete from private.link_legs g where",
        "delete from private.link_legs g where false and",
        "H",
    ),
    "a late fill of a preserved copy is followed": ("private.left_to_user", "return true;", "return false;", "H"),
    "a removal ends too early": ("private.finish_removal", "l.state = 'live'", "l.state = 'gone'", "H"),
    "a deal in flight books a share that was handed over": (
        "private.drop_released_shares",
        "l.reason = 'released'",
        "l.reason = 'gone'",
        "N",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_removal_that_errs_is_caught(
    postgres_server: PostgresServer, template_database: Database, mutant: str
) -> None:
    function, right, wrong, followers = MUTANTS[mutant]
    generator = random.Random(2)

    def some(least: int, most: int) -> list[Step]:
        possible = [verb for verb in verbs(followers) if verb not in NEVER]
        chosen = [generator.choice(possible) for _ in range(generator.randrange(least, most))]
        return [(verb, generator.randrange(8), generator.randrange(8), generator.randrange(8)) for verb in chosen]

    with furnished(postgres_server, template_database, followers) as world:
        source = world.one("select pg_get_functiondef(%s::regproc)", function)
        found = re.findall(r"\s+".join(map(re.escape, right.split())), source)
        assert len(found) == 1, "the lifecycle has changed: choose another place"
        world.db.execute(source.replace(found[0], wrong))
        for _ in range(150):
            try:
                removals = [generator.randrange(3) for _ in range(4)]
                play_once(world, followers, some(4, 15), generator.random() < 0.5, removals, some(0, 12))
            except (AssertionError, psycopg.Error):
                return
    raise AssertionError("nobody notices")
