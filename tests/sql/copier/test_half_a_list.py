"""Of half a list of symbols only the same name, or a mapping, is traded."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from planner_harness import World


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> Iterator[World]:
    w = World(connection)
    w.add_account("M", vps="a")
    w.add_account("F", vps="b")
    w.add_symbol("M", "ZZTOP")
    w.db.execute("delete from public.account_symbols where account_id = %s", (w.accounts["F"],))
    yield w
    assert w.unexplained() == 0


def tell(world: World, complete: bool | None) -> None:
    report = {"account_id": world.accounts["F"], "epoch": 1, "symbols_complete": complete}
    world.as_agent("F", "report_account_state", report)


@pytest.mark.covers("X23")
@pytest.mark.parametrize(("complete", "copied"), [(False, 0), (True, 1), (None, 1)])
def test_another_name_waits_for_the_whole_list(world: World, complete: bool | None, copied: int) -> None:
    tell(world, complete)
    world.add_symbol("F", "ZZTOP.pro")
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert len(world.executions("F")) == copied
    assert world.reasons("F") == ({} if copied else {"symbols_loading": 1})


@pytest.mark.covers("X23")
def test_the_same_name_and_a_mapping_need_no_list(world: World) -> None:
    tell(world, False)
    world.add_symbol("F", "ZZTOP")
    world.add_symbol("F", "GOLD.x")
    world.copy("M", "F", symbols={"EURUSD": "GOLD.x"})
    world.opened("M", "0.10", symbol="ZZTOP")
    world.opened("M", "0.10")
    assert [e["symbol"] for e in world.executions("F")] == ["ZZTOP", "GOLD.x"]


@pytest.mark.covers("X23")
def test_a_list_that_was_complete_once_stays_so(world: World) -> None:
    for complete in (False, True, False, None):
        tell(world, complete)
    world.add_symbol("F", "ZZTOP.pro")
    world.copy("M", "F")
    world.opened("M", "0.10", symbol="ZZTOP")
    assert [e["symbol"] for e in world.executions("F")] == ["ZZTOP.pro"]
