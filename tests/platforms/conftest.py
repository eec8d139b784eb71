"""The platforms that the contract suite runs against."""

from collections.abc import AsyncIterator

import pytest
from counterparties import Counterparty, PaperCounterparty

COUNTERPARTIES = {"paper": PaperCounterparty.running}


@pytest.fixture(params=sorted(COUNTERPARTIES))
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Counterparty]:
    async with COUNTERPARTIES[request.param]() as counterparty:
        yield counterparty
