"""Tests that stop nothing share one stack, broker and farm per worker; a test brings accounts of its own."""

from collections.abc import AsyncIterator

import pytest_asyncio
from fault_harness import Ground


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ground() -> AsyncIterator[Ground]:
    async with Ground.open("shared-farm") as opened:
        yield opened
