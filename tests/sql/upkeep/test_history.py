"""Years of closed trades beside an event do not make it read more: counted in pages of Postgres, not in time."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from agent.bench.contest.product import SETTINGS
from agent.bench.history import Farm
from agent.stack.database import Database

pytestmark = pytest.mark.own_database

ROWS = 60_000
FOLLOWERS = 4
#: an index over many rows is a level or two higher; anything that looked at history would read hundreds of pages more
HIGHER_INDEXES = 2.0


class CountingFarm(Farm):
    """Counts the pages that each call touches, by asking Postgres to explain it while it runs."""

    def __init__(self, database: Database, followers: int) -> None:
        super().__init__(database, followers)
        self.pages: list[int] = []

    def _call(self, function: str, request: dict[str, object]) -> dict[str, Any]:
        claims = json.dumps({"sub": self._place["agent"], "role": "authenticated"})
        with self._agent.transaction():
            self._agent.execute(SETTINGS, (claims,))
            self._agent.execute("create temporary table if not exists answer (told jsonb) on commit delete rows")
            statement = (
                f"explain (analyze, buffers, format json) insert into answer select public.{function}(%s::jsonb)"
            )
            plan = self._agent.execute(statement.encode(), (json.dumps(request),)).fetchone()
            told = self._agent.execute("select told from answer").fetchone()
        assert plan is not None
        assert told is not None
        top = plan[0][0]["Plan"]
        self.pages.append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
        answer: dict[str, Any] = told[0]
        return answer


@pytest.fixture
def farm(database: Database) -> Iterator[CountingFarm]:
    counting = CountingFarm(database, FOLLOWERS)
    yield counting
    counting.close()


def pages_of_a_round(farm: CountingFarm) -> int:
    farm.pages.clear()
    farm.play(counts=False)
    return sum(farm.pages)


def test_an_event_and_its_reports_read_no_more_pages_beside_a_long_history(farm: CountingFarm) -> None:
    for _ in range(3):
        farm.play(counts=False)
    without = pages_of_a_round(farm)
    farm.fill(ROWS)
    farm.play(counts=False)
    assert pages_of_a_round(farm) < without * HIGHER_INDEXES
