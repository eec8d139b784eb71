"""What demo, scenarios, benchmarks and fault tests share: a temporary embedded stack with a farm."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Self

import httpx

from agent import paths
from agent.stack.server_user import remove_folder
from agent.stack.stack import Stack
from agent.testbed.farm import Farm

TOKEN_S = 300


class Testbed:
    """A running stack with a farm on it, and the faults that scenarios can cause."""

    def __init__(self, stack: Stack, farm: Farm) -> None:
        self.stack = stack
        self.farm = farm

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, *, say: Callable[[str], None], capacity: int = 50) -> AsyncIterator[Self]:
        """Start stack and farm with their own ports and data, so that two can run at once; removes everything at the
        end."""
        folder = await asyncio.to_thread(paths.temporary_folder, name)
        try:
            async with (
                Stack(folder / "stack", progress=lambda part: say(f"starting {part}")) as stack,
                Farm(stack, folder / "vps", say=say, capacity=capacity) as farm,
            ):
                yield cls(stack, farm)
        finally:
            remove_folder(folder / "stack")
            shutil.rmtree(folder, ignore_errors=True)

    # --- faults -----------------------------------------------------------------------------------------------

    async def drop_broadcasts(self) -> None:
        """Lose every broadcast to an agent from now on."""
        await self._hook("POST", {"action": "drop", "topic": "vps:*"})

    async def deliver_broadcasts(self) -> None:
        await self._hook("DELETE", None)

    async def _hook(self, method: str, body: Mapping[str, object] | None) -> None:
        headers = {"apikey": self.stack.secret_key, "authorization": f"Bearer {self.stack.secret_key}"}
        async with httpx.AsyncClient(base_url=self.stack.url, headers=headers, timeout=10) as http:
            answer = await http.request(method, "/realtime/v1/test/faults", json=body)
            answer.raise_for_status()

    async def stop_database(self) -> None:
        await self.stack.stop_database()

    async def start_database(self) -> None:
        await self.stack.start_database()

    async def call_as(self, user_id: str, function: str, parameter: str, argument: Mapping[str, object]) -> object:
        """Call a function of the database as this user would, with a token that the stack's Auth could have given
        out."""
        now = int(time.time())
        claims = {"sub": user_id, "aud": "authenticated", "role": "authenticated", "iat": now, "exp": now + TOKEN_S}
        return await self.farm.backend.rpc(function, parameter, argument, token=self.stack.keys.sign(claims))
