"""One stack, broker and farm per module; a test brings accounts of its own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("fault_harness")

# imported after the call above: pytest shows assertions in full only of modules that it rewrites
from fault_harness import Ground  # noqa: E402


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    async with Ground.open(request.module.__name__.removeprefix("test_").replace("_", "-")) as opened:
        yield opened
