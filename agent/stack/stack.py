"""The embedded Supabase as one object: starts and stops everything, and restarts single parts for fault tests."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from agent import private_file
from agent.failure import Failure
from agent.stack.child_process import Child
from agent.stack.database import Database
from agent.stack.gateway import GatewaySettings
from agent.stack.keys import Keys
from agent.stack.lock import FolderLock
from agent.stack.passwords import AUTH, OWNER, REALTIME, REST
from agent.stack.postgres import PostgresServer, lasting_port, require_port
from agent.stack.schema import project_root
from agent.stack.web_page import DEMO_LOGIN

DATABASE: Final = "tradecopier"
READY_SECONDS: Final = 40.0
#: keeps the port from start to start, so that enrolled agents find the stack again
PORT_FILE: Final = "port"


class Stack:
    """`async with Stack(folder) as stack:` – Postgres and the gateway, each in its own process.

    The gateway process hosts REST, RPC, Realtime, the scheduler and the web, and starts Deno for Auth, tables and
    functions; so a test or an agent in this process does not share a GIL with it. If this process is killed, all of
    them end.
    """

    def __init__(
        self,
        data: Path,
        *,
        database: Database | None = None,
        durable: bool = False,
        port: int | None = None,
        test_hooks: bool = True,
        root: Path | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`data` holds keys, logs and the cluster. `port` None: the one that the stack in this folder had last time.

        With `database`, that server is used and is neither started nor stopped.
        """
        self.data = data
        self.root = root or project_root()
        self._lent = database
        self._server = database.server if database is not None else PostgresServer(data, durable=durable)
        self._database = database
        self._port = port
        self._test_hooks = test_hooks
        self._progress = progress
        self._lock = FolderLock(data)
        self._gateway: Child | None = None
        self._keys: Keys | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The origin of all endpoints."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port of the origin."""
        if self._port is None:
            raise RuntimeError("the stack has not been started")
        return self._port

    @property
    def keys(self) -> Keys:
        """All keys and the JWT secret of this stack."""
        if self._keys is None:
            raise RuntimeError("the stack has not been started")
        return self._keys

    @property
    def publishable_key(self) -> str:
        """The API key of role anon."""
        return self.keys.publishable_key

    @property
    def secret_key(self) -> str:
        """The API key of role service_role."""
        return self.keys.secret_key

    @property
    def database(self) -> Database:
        """The database behind the stack."""
        if self._database is None:
            raise RuntimeError("the stack has not been started")
        return self._database

    @property
    def dsn(self) -> str:
        """The superuser's address of the database.

        For this process only: no server that clients can reach may know it.
        """
        return self.database.dsn

    @property
    def gateway_pid(self) -> int | None:
        """Process id of the gateway's guard."""
        return None if self._gateway is None else self._gateway.pid

    async def start(self) -> None:
        """Start everything that is not running; returns when every part answers. Raises Failure."""
        # otherwise whatever answers on the port would be taken for the gateway
        if self._port is not None and self._gateway is None:
            require_port(self._port)
        await asyncio.to_thread(self._lock.take)
        if self._port is None and (kept := self._kept_port()) is not None:
            require_port(kept, kept=True)
            self._port = kept
        self._keys = Keys.load(self.data / "keys.json")
        if self._lent is None:
            self._progress("Postgres")
            await asyncio.to_thread(self._server.start)
            self._progress("schema")
            self._database = await asyncio.to_thread(Database.prepared, self._server, DATABASE, self.root)
        self._progress("gateway")
        await self._start_gateway()
        (self.data / PORT_FILE).write_text(f"{self._port}\n")

    async def close(self) -> None:
        """Stop everything that `start` started. Safe to call again."""
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            await asyncio.to_thread(gateway.stop)
        if self._lent is None:
            await asyncio.to_thread(self._server.stop)
        self._lock.release()

    async def restart_database(self) -> None:
        """Restart Postgres on the same port while the gateway keeps running; sessions are cut."""
        await asyncio.to_thread(self._server.restart)

    async def stop_database(self) -> None:
        """Stop Postgres; `start_database` starts it again."""
        await asyncio.to_thread(self._server.stop)

    async def start_database(self) -> None:
        """Start Postgres again on the same port."""
        await asyncio.to_thread(self._server.start)

    async def restart_gateway(self) -> None:
        """Restart the gateway on the same port; its sockets are closed."""
        if self._gateway is not None:
            await asyncio.to_thread(self._gateway.stop)
        await self._start_gateway()

    async def restart_ended_parts(self) -> bool:
        """Restart parts that ended unexpectedly. Returns whether there were any."""
        restarted = False
        if self._lent is None and not self._server.running:
            await asyncio.to_thread(self._server.start)
            restarted = True
        if self._gateway is not None and not self._gateway.running:
            await self._start_gateway()
            restarted = True
        return restarted

    def _kept_port(self) -> int | None:
        try:
            port = int((self.data / PORT_FILE).read_text())
        except (OSError, ValueError):
            return None
        return port if 0 < port < 65536 else None

    async def _start_gateway(self) -> None:
        wanted = self._port
        for attempt in (1, 2, 3):
            self._port = wanted or lasting_port()
            self._gateway = await asyncio.to_thread(self._launch)
            if await self._wait_until_ready(self._gateway):
                return
            lines = self._gateway.last_lines(3)
            await asyncio.to_thread(self._gateway.stop)
            if wanted is not None or "address already in use" not in lines or attempt == 3:
                raise Failure(
                    f"the gateway did not start: {lines or 'no answer'}", f"read {self._gateway.log}", code="TC627"
                )

    def _launch(self) -> Child:
        database = self.database
        settings = GatewaySettings(
            port=self._port or 0,
            realtime_dsn=database.dsn_of(REALTIME),
            api_dsn=database.dsn_of(REST),
            auth_dsn=database.dsn_of(AUTH),
            tables_dsn=database.dsn_of(OWNER),
            keys_file=str(self.data / "keys.json"),
            logs=str(self.data),
            root=str(self.root),
            test_hooks=self._test_hooks,
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "TRADECOPIER_"))}
        return Child(
            [sys.executable, "-m", "agent.stack.gateway"],
            log=self.data / "gateway.log",
            environment=environment | settings.to_environment(),
            directory=project_root(),
            stop_signal=signal.SIGTERM,
            stop_seconds=8,
        )

    async def _wait_until_ready(self, gateway: Child) -> bool:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as client:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + READY_SECONDS
            while loop.time() < deadline and gateway.running:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with client.get(f"{self.url}/health") as response:
                        if response.status == 200:
                            return True
                await asyncio.sleep(0.03)
        return False

    async def create_user(self, email: str, password: str | None = None, **metadata: object) -> tuple[str, str]:
        """Create a confirmed user through the Auth admin API, or find it and set a new password.

        Returns (id, password).
        """
        chosen = password or secrets.token_urlsafe(12)
        headers = {"apikey": self.secret_key}
        body = {"email": email, "password": chosen, "email_confirm": True, "user_metadata": metadata}
        async with aiohttp.ClientSession(self.url, headers=headers) as client:
            async with client.post("/auth/v1/admin/users", json=body) as response:
                answer = await response.json()
            if response.status == 422 and answer.get("error_code") == "email_exists":
                user_id = await self._find_user(client, email)
                async with client.put(f"/auth/v1/admin/users/{user_id}", json=body) as response:
                    answer = await response.json()
            if response.status != 200:
                raise Failure(
                    f"the user {email} could not be created: {answer.get('msg')}", "see gateway.log", code="TC628"
                )
        return str(answer["id"]), chosen

    def show_login(self, email: str, password: str) -> None:
        """Show this login on the sign-in page. Only for a temporary stack: anybody who opens the page can sign in."""
        private_file.write(self.data / DEMO_LOGIN, json.dumps({"email": email, "password": password}))

    async def call(self, function: str, arguments: Mapping[str, object]) -> object:
        """Call a database function as service_role. Raises Failure with the database's message."""
        async with (
            aiohttp.ClientSession(self.url, headers={"apikey": self.secret_key}) as client,
            client.post(f"/rest/v1/rpc/{function}", json=dict(arguments)) as response,
        ):
            answer: object = await response.json() if response.content_length != 0 and response.status != 204 else None
        if response.status >= 400:
            words = answer if isinstance(answer, dict) else {}
            raise Failure(
                f"{function}: {words.get('message', response.status)}",
                str(words.get("hint") or f"see {self.data / 'gateway.log'}"),
                code=str(words.get("code", "TC628")),
            )
        return answer

    async def _find_user(self, client: aiohttp.ClientSession, email: str) -> str:
        page = 1
        while True:
            async with client.get("/auth/v1/admin/users", params={"page": str(page), "per_page": "1000"}) as response:
                users = (await response.json())["users"]
            for user in users:
                if user["email"] == email.lower():
                    return str(user["id"])
            if len(users) < 1000:
                raise Failure(f"the user {email} exists, but Auth does not list it", "see gateway.log", code="TC628")
            page += 1
