"""A small farm on the embedded stack: enrolled VPSes, one process per agent, accounts at the paper broker.

It works as a real farm does: one-time tokens, the enrol function, `tradecopier agent run`, `connect_account`.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, cast

import psutil

from agent.command.enrollment import Identity, store
from agent.failure import Failure
from agent.model import Mode, SymbolSpec
from agent.paper.client import PaperClient
from agent.paper.process import PaperProcess
from agent.paper.profile import Profile
from agent.stack.child_process import Child
from agent.testbed.quiescence import Observer, Worked
from agent.testbed.supabase_client import Backend, Person

ONLINE_S: Final = 30.0
CONNECTED_S: Final = 30.0
#: longer than the others, because a lease must end before an account may move
MOVED_S: Final = 60.0
PLATFORM: Final = "paper"
#: name of the paper broker in broker_servers
SERVER: Final = "Paper-Demo"
RUN_AGENT: Final = (sys.executable, "-c", "from agent.cli import main; main()", "agent", "run")

VPS_STATUS = "select status, last_heartbeat_at > %(since)s as fresh from public.vps_instances where id = %(vps)s::uuid"
CONNECTED = """
  select a.id::text, a.status, a.status_reason, a.snapshot_session,
    exists (select from public.account_symbols s where s.account_id = a.id) as has_symbols
  from public.trading_accounts a where a.id = any(%(accounts)s::uuid[])"""
SESSION = "select session from public.trading_accounts where id = %(account)s::uuid"
REMOVE_COPIER = "update public.copiers set mode = 'off', removed_at = clock_timestamp() where id = %(copier)s::uuid"
NOW = "select clock_timestamp() as now"


class Place(Protocol):
    """What a farm needs of the stack that it runs on."""

    @property
    def url(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def publishable_key(self) -> str: ...
    @property
    def dsn(self) -> str:
        """Connection string of a database user that can read everything."""
        ...


@dataclass(slots=True, eq=False)
class Vps:
    """One VPS and the process of its agent."""

    name: str
    vps_id: str
    data_dir: Path
    child: Child | None = None

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.running

    @property
    def log(self) -> Path:
        return self.data_dir / "agent.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A paper account to open and connect. `symbols` None: the default instruments."""

    name: str
    login: str
    currency: str = "USD"
    balance: Decimal = Decimal(10000)
    leverage: int = 100
    mode: Mode = "hedging"
    symbols: tuple[SymbolSpec, ...] | None = None
    profile: Profile | None = None
    #: the account's password; its first login sets it at the broker
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)


@dataclass(slots=True)
class Farm:
    """Async context manager; leaving it stops every agent and the paper broker. `say` prints progress."""

    place: Place
    folder: Path
    say: Callable[[str], None] = field(default=lambda _: None)
    #: most accounts per VPS
    capacity: int = 50
    vpses: dict[str, Vps] = field(default_factory=dict)
    _ends: AsyncExitStack = field(default_factory=AsyncExitStack)
    _broker: PaperProcess = field(default_factory=PaperProcess)
    _paper: PaperClient | None = None
    _backend: Backend | None = None
    _observer: Observer | None = None

    @property
    def paper(self) -> PaperClient:
        assert self._paper is not None, "the farm is entered first"
        return self._paper

    @property
    def backend(self) -> Backend:
        assert self._backend is not None, "the farm is entered first"
        return self._backend

    @property
    def observer(self) -> Observer:
        assert self._observer is not None, "the farm is entered first"
        return self._observer

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as ends:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            await ends.enter_async_context(self._broker)
            self._paper = await ends.enter_async_context(await self._broker.client())
            self._backend = await ends.enter_async_context(
                Backend(self.place.url, self.place.publishable_key, self.place.secret_key)
            )
            await self._backend.rpc("save_broker_server", "p_request", {
                "platform": PLATFORM, "server": SERVER, "title": "Practice", "address": self._broker.address,
            })  # fmt: skip
            self._observer = Observer(self.place.dsn, self._paper)
            ends.push_async_callback(self._observer.close)
            ends.push_async_callback(self._stop_agents)
            self._ends = ends.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._ends.aclose()

    async def _stop_agents(self) -> None:
        children = [vps.child for vps in self.vpses.values() if vps.child is not None]
        await asyncio.gather(*(asyncio.to_thread(child.stop) for child in children))

    # --- VPSes --------------------------------------------------------------------------------------------

    async def add_vpses(self, names: Iterable[str]) -> list[Vps]:
        """Enrol VPSes, start their agents and wait for their first heartbeats."""
        added = [await self._enrol(name) for name in names]
        self.say(f"waiting for {len(added)} agents to come online")
        for vps in added:
            self.start(vps)
        await asyncio.gather(*(self.wait_online(vps) for vps in added))
        return added

    async def _enrol(self, name: str) -> Vps:
        token = await self.backend.rpc("create_enrollment_token", "p_request", {"name": name})
        answer = await self.backend.enroll(
            {"token": token["token"], "name": name, "platforms": [PLATFORM], "capacity": self.capacity}
        )
        identity = Identity(self.place.url, str(answer["vps_id"]), self.place.publishable_key, str(answer["secret"]))
        data_dir = self.folder / name
        await asyncio.to_thread(store, identity, data_dir)
        vps = self.vpses[name] = Vps(name, identity.vps_id, data_dir)
        return vps

    def start(self, vps: Vps) -> None:
        """Start the agent of `vps` with the identity in its data directory."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRADECOPIER_")}
        environment["TRADECOPIER_DATA_DIR"] = str(vps.data_dir)
        vps.child = Child(RUN_AGENT, log=vps.log, environment=environment)

    def kill(self, vps: Vps) -> None:
        """kill -9 the agent itself (its guard process then ends by itself)."""
        if vps.child is None:
            return
        for process in psutil.Process(vps.child.pid).children():
            process.kill()
            process.wait(5)

    async def wait_online(self, vps: Vps) -> None:
        """Wait for a heartbeat that is received after this call."""
        [row] = await self.observer.rows(NOW)
        await self._until(
            lambda: self._is_online(vps, row["now"]),
            ONLINE_S,
            lambda: f"the agent of {vps.name} did not come online: {_last_words(vps)}",
        )

    async def _is_online(self, vps: Vps, since: object) -> bool:
        if not vps.running:
            raise Failure(f"the agent of {vps.name} ended: {_last_words(vps)}", f"read its log {vps.log}", code="TC654")
        rows = await self.observer.rows(VPS_STATUS, {"vps": vps.vps_id, "since": since})
        return bool(rows) and rows[0]["status"] == "online" and bool(rows[0]["fresh"])

    # --- accounts -------------------------------------------------------------------------------------------

    async def open_account(self, opening: Opening, user_id: str, vps: Vps) -> Worked:
        """Open an account at the broker and connect it for `user_id`, to be worked by `vps`."""
        await self.paper.open_book(
            opening.login,
            currency=opening.currency,
            balance=opening.balance,
            leverage=opening.leverage,
            mode=opening.mode,
            symbols=opening.symbols,
            profile=opening.profile,
        )
        return await self.connect_account(opening, user_id, vps)

    async def connect_account(self, opening: Opening, user_id: str, vps: Vps) -> Worked:
        request = {
            "user_id": user_id,
            "vps_id": vps.vps_id,
            "platform": PLATFORM,
            "server": SERVER,
            "login": opening.login,
            "password": opening.password,
            "name": opening.name,
            "mode": opening.mode,
            "currency": opening.currency,
        }
        answer = await self.backend.rpc("connect_account", "p_account", request)
        return Worked(name=opening.name, account_id=str(answer["account_id"]), login=opening.login)

    async def wait_connected(self, accounts: Iterable[Worked]) -> None:
        """Wait until every account is connected and its first snapshot and symbols are stored."""
        watched = {account.account_id: account.name for account in accounts}
        self.say(f"waiting for {len(watched)} accounts to connect")
        missing: list[str] = []

        async def all_connected() -> bool:
            rows = await self.observer.rows(CONNECTED, {"accounts": list(watched)})
            missing[:] = [
                f"{watched[str(row['id'])]} is {row['status']} ({row['status_reason'] or 'no reason given'})"
                for row in rows
                if row["status"] != "connected" or not row["snapshot_session"] or not row["has_symbols"]
            ]
            return not missing

        await self._until(all_connected, CONNECTED_S, lambda: "accounts did not connect: " + "; ".join(missing))

    async def session(self, account: Worked) -> int:
        """Number of the account's current session."""
        [row] = await self.observer.rows(SESSION, {"account": account.account_id})
        return int(str(row["session"]))

    async def wait_new_session(self, account: Worked, before: int, *, limit_s: float = MOVED_S) -> None:
        """Wait until any agent has opened a new session of the account; `before`: the number of the current one."""

        async def newer() -> bool:
            return await self.session(account) > before

        await self._until(newer, limit_s, lambda: f"no agent took {account.name} over within {limit_s:.0f} s")

    async def save_copier(self, owner: Person, master: Worked, follower: Worked, columns: Mapping[str, object]) -> str:
        """Make a copier (`columns`: any of the table `copiers`, and `symbols`). Returns its id."""
        ends = {"master_account_id": master.account_id, "follower_account_id": follower.account_id}
        answer = await self.backend.rpc("save_copier", "p_copier", {**ends, **_as_json(columns)}, token=owner.token)
        return str(answer["copier_id"])

    async def change_copier(self, owner: Person, copier_id: str, columns: Mapping[str, object]) -> None:
        await self.backend.rpc("save_copier", "p_copier", {"id": copier_id, **_as_json(columns)}, token=owner.token)

    async def protect(self, owner: Person, account: Worked, settings: Mapping[str, object]) -> None:
        """Make a protection rule of an account."""
        rule = {"account_id": account.account_id, **_as_json(settings)}
        await self.backend.rpc("save_protection_rule", "p_rule", rule, token=owner.token)

    async def remove_copier(self, owner: Person, copier_id: str, mode: str) -> None:
        await self.backend.rpc("remove_copier", "p_request", {"copier_id": copier_id, "mode": mode}, token=owner.token)

    async def copier_drift(self, owner: Person, copier_id: str) -> list[Mapping[str, object]]:
        answer = await self.backend.rpc("copier_drift", "p_request", {"copier_id": copier_id}, token=owner.token)
        return cast("list[Mapping[str, object]]", answer["items"])

    async def resync_copier(
        self, owner: Person, copier_id: str, items: Sequence[Mapping[str, object]], max_distance_points: Decimal | None
    ) -> None:
        """Resync the given items of `copier_drift`, each with its "action". Without items nothing is called."""
        far = None if max_distance_points is None else str(max_distance_points)
        request = {"copier_id": copier_id, "items": list(items), "max_distance_points": far}
        if items:
            await self.backend.rpc("resync_copier", "p_request", request, token=owner.token)

    async def drop_copier(self, copier_id: str) -> None:
        """Remove a copier at once after a run, whatever is still in flight or held."""
        await self.observer.rows(REMOVE_COPIER, {"copier": copier_id})

    async def remove_account(self, owner: Person, account: Worked) -> None:
        await self.backend.rpc("remove_account", "p_request", {"account_id": account.account_id}, token=owner.token)

    async def _until(self, done: Callable[[], Awaitable[bool]], limit_s: float, what: Callable[[], str]) -> None:
        end = time.monotonic() + limit_s
        while not await done():
            if time.monotonic() > end:
                raise Failure(what(), f"read the agents' logs under {self.folder}", code="TC654")
            await asyncio.sleep(0.05)


def _as_json(columns: Mapping[str, object]) -> dict[str, object]:
    """Decimals become strings, which keep every digit."""
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in columns.items()}


def _last_words(vps: Vps) -> str:
    return vps.child.last_lines(1) if vps.child is not None else "it was never started"
