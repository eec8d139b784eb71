"""`farm`: a fresh database with the verbs of `farm_actors`."""

from collections.abc import Iterator

import pytest
from farm_actors import Farm

from agent.local.database import Database


@pytest.fixture
def farm(database: Database) -> Iterator[Farm]:
    verbs = Farm(database)
    yield verbs
    verbs.close()
