"""One stack, broker and farm per module; a test brings accounts of its own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("fault_ground")

from fault_ground import Ground  # noqa: E402 - only what is imported later has its assertions told in full


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    async with Ground.open(request.module.__name__.removeprefix("test_").replace("_", "-")) as opened:
        yield opened
