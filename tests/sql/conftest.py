"""`farm`: a fresh database with the verbs of `farm_actors`.

`world`: masters M and M2, a hedging follower F and a netting follower N, without copiers.
"""

from collections.abc import Iterator

import pytest
from farm_actors import Farm
from netting_world import NettingWorld

from agent.local.database import Database


@pytest.fixture
def farm(database: Database) -> Iterator[Farm]:
    verbs = Farm(database)
    yield verbs
    verbs.close()


@pytest.fixture
def world(database: Database) -> Iterator[NettingWorld]:
    with database.connect() as connection:
        w = NettingWorld(connection)
        w.add_account("M", vps="a")
        w.add_account("M2", vps="a")
        w.add_account("F", vps="b")
        w.add_account("N", vps="b", mode="netting")
        yield w
        assert w.unexplained() == 0
