"""The practice part of `tradecopier up`: a paper broker, and an agent of its own that works the accounts there."""

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent import private_file
from agent.command.enrollment import Identity, store
from agent.failure import Failure
from agent.paper.connection import PaperLost
from agent.paper.process import PaperProcess
from agent.settings import identity_file
from agent.stack.child_process import Child
from agent.stack.stack import Stack
from agent.testbed.supabase_client import Backend

PLATFORM: Final = "paper"
#: name of the broker in broker_servers
SERVER: Final = "Practice"
VPS: Final = "this-machine"
RUN_AGENT: Final = (sys.executable, "-c", "from agent.cli import main; main()", "agent", "run")
#: between two starts of an agent that ends by itself
RESTART_S: Final = 5.0


class PracticeFarm:
    """Started after the stack and stopped before it. Books, prices and the agent's identity are kept in its folder."""

    def __init__(self, stack: Stack, progress: Callable[[str], None]) -> None:
        self._stack = stack
        self._progress = progress
        self._paper = stack.data / "paper"
        self._agent = stack.data / "agent"
        self.token = ""
        self._broker: PaperProcess | None = None
        self._child: Child | None = None
        self._child_began = 0.0

    @property
    def address(self) -> str:
        """host:port of the broker."""
        return "" if self._broker is None else self._broker.address

    async def start(self) -> None:
        """Start broker and agent; returns before the agent is online."""
        self._progress("practice broker")
        self.token = await asyncio.to_thread(_kept_token, self._paper)
        self._broker = PaperProcess(token=self.token, data=self._paper)
        await self._start_broker(self._broker)
        self._progress("agent")
        async with self._backend() as backend:
            await backend.rpc("save_broker_server", "p_request", {
                "platform": PLATFORM, "server": SERVER, "title": "Practice accounts", "address": self._broker.address,
            })  # fmt: skip
            await self._identify(backend)
        await asyncio.to_thread(self._start_agent)

    async def restart_ended_parts(self) -> bool:
        """Restart broker and agent if they ended unexpectedly. Returns whether one did."""
        restarted = False
        if self._broker is not None and not self._broker.running:
            await self._start_broker(self._broker)
            restarted = True
        if self._child is not None and not self._child.running and time.monotonic() > self._child_began + RESTART_S:
            async with self._backend() as backend:
                await self._identify(backend)  # somebody may have retired its VPS
            await asyncio.to_thread(self._start_agent)
            restarted = True
        return restarted

    async def close(self) -> None:
        """Stop the agent first, so that it can report what it has done. Safe to call again."""
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.stop)
        if self._broker is not None:
            await self._broker.stop()

    def _backend(self) -> Backend:
        return Backend(self._stack.url, self._stack.publishable_key, self._stack.secret_key)

    async def _start_broker(self, broker: PaperProcess) -> None:
        """Start the broker and let its prices move. Raises `Failure` (TC674)."""
        try:
            await broker.start()
        except PaperLost as error:
            raise Failure(str(error), "see that message; --no-practice starts without it", code="TC674") from error
        async with await broker.client() as client:
            await client.start_feed()

    async def _identify(self, backend: Backend) -> None:
        """Enrol the agent at the first start; later only its address may have changed. A retired VPS is replaced."""
        known = await asyncio.to_thread(_identity, self._agent)
        if known is not None and await self._has_vps(backend, "id", known.vps_id):
            identity = Identity(self._stack.url, known.vps_id, self._stack.publishable_key, known.secret)
        else:
            token = await backend.rpc("create_enrollment_token", "p_request", {})
            taken = await self._has_vps(backend, "name", VPS)
            name = f"{VPS}-{secrets.token_hex(3)}" if taken else VPS
            answer = await backend.enroll({"token": token["token"], "name": name, "platforms": [PLATFORM]})
            identity = Identity(
                self._stack.url, str(answer["vps_id"]), self._stack.publishable_key, str(answer["secret"])
            )
        await asyncio.to_thread(store, identity, self._agent)

    async def _has_vps(self, backend: Backend, column: str, value: str) -> bool:
        """Whether there is such a VPS that was not retired."""
        query = {"select": "id", column: f"eq.{value}", "retired_at": "is.null"}
        return bool(await backend.rows("vps_instances", query))

    def _start_agent(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRADECOPIER_")}
        environment["TRADECOPIER_DATA_DIR"] = str(self._agent)
        self._child = Child(RUN_AGENT, log=self._agent / "agent.log", environment=environment)
        self._child_began = time.monotonic()


def _kept_token(folder: Path) -> str:
    """The operator's token of the broker, stored beside its books."""
    file = folder / "token"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        private_file.write(file, secrets.token_urlsafe(24))
    return file.read_text(encoding="utf-8").strip()


def _identity(folder: Path) -> Identity | None:
    """The stored identity; None if there is none that can be read."""
    try:
        raw = json.loads(identity_file(folder).read_bytes())
        return Identity(str(raw["url"]), str(raw["vps_id"]), str(raw["publishable_key"]), str(raw["agent_secret"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
