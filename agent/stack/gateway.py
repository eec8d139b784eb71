"""The gateway process: one loopback origin for REST, Auth, Functions, Realtime and the web.

The stack starts it as `python -m agent.stack.gateway` and passes its settings, which hold secrets, in the environment.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from aiohttp import web

from agent.failure import Failure
from agent.stack.auth_admin import AuthAdmin
from agent.stack.auth_server import AuthServer
from agent.stack.authentication import Access
from agent.stack.connection_pool import DatabaseAway, PoolBusy, Sessions
from agent.stack.edge_functions import EdgeFunctions
from agent.stack.guarded_connections import ConnectionGuard
from agent.stack.keys import Keys
from agent.stack.realtime.guests import Guests
from agent.stack.request_guard import guard_requests
from agent.stack.rest.cache import SchemaCache, configured
from agent.stack.rest.endpoint import TableEndpoint
from agent.stack.rpc import RpcEndpoint
from agent.stack.scheduler import Scheduler
from agent.stack.traffic import Traffic
from agent.stack.trusted_callers import TrustedCallers
from agent.stack.web_page import DEMO_LOGIN, Site

if TYPE_CHECKING:
    from agent.stack.realtime.server import RealtimeServer

log = logging.getLogger(__name__)

ENVIRONMENT: Final = "TRADECOPIER_GATEWAY"
RELOAD_DEBOUNCE_SECONDS: Final = 0.1
CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Content-Range, Content-Location, X-Total-Count",
}
PREFLIGHT: Final = CORS | {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Max-Age": "3600",
}


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Settings of the process. The DSNs hold passwords of roles that are not superusers."""

    port: int
    realtime_dsn: str
    api_dsn: str
    auth_dsn: str
    tables_dsn: str
    keys_file: str
    logs: str
    root: str
    test_hooks: bool

    @property
    def url(self) -> str:
        """The origin that clients use."""
        return f"http://127.0.0.1:{self.port}"

    def to_environment(self) -> dict[str, str]:
        """The settings as the environment variable that the process reads."""
        return {ENVIRONMENT: json.dumps(asdict(self))}


class Gateway:
    """All parts behind the origin. `run` serves until it is cancelled."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        keys = Keys.load(Path(settings.keys_file))
        root, logs = Path(settings.root), Path(settings.logs)
        access = Access(keys)
        self._keys = keys
        self._sessions = Sessions(settings.api_dsn)
        trusted = TrustedCallers(self._sessions)
        self._guests = Guests(trusted.is_trusted)
        self._traffic = Traffic(access, trusted)
        self._guard = ConnectionGuard()
        self._cache = SchemaCache(self._sessions, configured(root))
        self._rpc = RpcEndpoint(self._sessions, access, self._cache)
        self._tables = TableEndpoint(self._sessions, access, self._cache)
        self._auth = AuthServer(
            keys, access, dsn=settings.auth_dsn, site_url=settings.url, root=root, log_file=logs / "auth.log"
        )
        self._functions = EdgeFunctions(
            keys, access, url=settings.url, dsn=settings.tables_dsn, root=root, log_file=logs / "functions.log"
        )
        self._scheduler = Scheduler(settings.tables_dsn)
        self._realtime: RealtimeServer | None = None
        self._ready = False
        site = Site(root / "web" / "out", settings.url, keys, Path(settings.keys_file).with_name(DEMO_LOGIN))
        self.app = self._application(AuthAdmin(settings.auth_dsn, access), site)

    async def run(self) -> None:
        """Start the parts and serve; on cancellation stop the parts in reverse order."""
        runner = web.AppRunner(self.app, access_log=None, handle_signals=False, shutdown_timeout=2)
        await runner.setup()
        assert runner.server is not None, "set up just now"
        watcher = asyncio.create_task(self._watch_schema())
        try:
            self._guard.listen(runner.server, "127.0.0.1", self._settings.port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._auth.start())
                group.create_task(self._start_realtime())
                group.create_task(self._cache.refresh())
            self._scheduler.start()
            self._ready = True
            await asyncio.Event().wait()
        finally:
            self._ready = False
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            await self._scheduler.close()
            if self._realtime is not None:
                await self._realtime.close()
            await self._guard.close()
            await runner.cleanup()
            await self._functions.close()
            await self._auth.close()
            await self._sessions.close()

    def _application(self, admin: AuthAdmin, site: Site) -> web.Application:
        app = web.Application(client_max_size=0, middlewares=[guard_requests, self._traffic.middleware(), _cors])
        app.on_response_prepare.append(_allow_origin)
        app.router.add_get("/health", self._health)
        app.router.add_route("*", "/rest/v1/rpc/{name}", self._call)
        app.router.add_route("*", "/rest/v1/{path:.*}", self._tables.handle)
        admin.attach(app)
        app.router.add_route("*", "/auth/v1/{path:.*}", self._auth.handle)
        app.router.add_route("*", "/functions/v1/{name}", self._functions.handle)
        app.router.add_route("*", "/functions/v1/{name}/{path:.*}", self._functions.handle)
        self._attach_realtime(app)
        app.router.add_route("*", "/realtime/v1/{path:.*}", _no_realtime)
        app.router.add_route("*", "/storage/v1/{path:.*}", _no_storage)
        app.router.add_route("*", "/graphql/v1{path:.*}", _no_graphql)
        site.attach(app)
        return app

    def _attach_realtime(self, app: web.Application) -> None:
        try:
            from agent.stack.realtime.server import RealtimeServer
        except ImportError as error:
            log.warning("realtime_missing", extra={"reason": str(error)})
            return
        self._realtime = RealtimeServer(
            self._settings.realtime_dsn, self._keys.verify, guests=self._guests, test_hooks=self._settings.test_hooks
        )
        self._realtime.attach(app)

    async def _start_realtime(self) -> None:
        if self._realtime is not None:
            await self._realtime.start()

    async def _call(self, request: web.Request) -> web.StreamResponse:
        if self._rpc.wants_more(request):
            return await self._tables.call(request)
        return await self._rpc.handle(request)

    async def _health(self, request: web.Request) -> web.Response:
        """200 once every part has started; the stack polls it at start."""
        return web.json_response({"ready": self._ready}, status=200 if self._ready else 503)

    async def _watch_schema(self) -> None:
        """Read the schema again after DDL (an event trigger sends `notify pgrst`) and after a database restart."""
        first = True
        while True:
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError, DatabaseAway, PoolBusy):
                async with asyncio.timeout(5):
                    connection = await psycopg.AsyncConnection.connect(
                        self._settings.api_dsn, autocommit=True, application_name="gateway schema"
                    )
                async with connection:
                    await connection.execute("listen pgrst")
                    if not first:
                        await self._sessions.forget()
                        await self._cache.refresh()
                    first = False
                    while True:
                        async for _ in connection.notifies(stop_after=1):
                            pass
                        async for _ in connection.notifies(timeout=RELOAD_DEBOUNCE_SECONDS):
                            pass
                        await self._cache.refresh()
            await self._sessions.forget()
            await asyncio.sleep(0.2)


@web.middleware
async def _cors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer CORS preflight requests: during development the web is served from another port."""
    if not _is_function(request) and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        wanted = request.headers.get("Access-Control-Request-Headers", "*")
        return web.Response(status=204, headers=PREFLIGHT | {"Access-Control-Allow-Headers": wanted})
    return await handler(request)


async def _allow_origin(request: web.Request, response: web.StreamResponse) -> None:
    if "Origin" in request.headers and not _is_function(request):
        response.headers.update(CORS)


def _is_function(request: web.Request) -> bool:
    """Whether an Edge Function answers. As on hosted, only the function itself then decides about CORS."""
    return request.path.startswith("/functions/v1/")


async def _no_storage(request: web.Request) -> web.Response:
    body = {
        "statusCode": "501",
        "error": "not_offered",
        "message": "this stack offers no Storage; use a hosted project",
    }
    return web.json_response(body, status=501)


async def _no_graphql(request: web.Request) -> web.Response:
    message = "this stack lacks the extension pg_graphql; use the REST API, or a hosted project"
    return web.json_response({"data": None, "errors": [{"message": message}]}, status=501)


async def _no_realtime(request: web.Request) -> web.Response:
    return web.json_response({"code": "TC632", "message": "there is no Realtime endpoint at this path"}, status=503)


class JsonLines(logging.Formatter):
    """One JSON object per record: the event's name and the fields given as `extra`."""

    _usual = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage(), "logger": record.name}
        line |= {name: value for name, value in vars(record).items() if name not in self._usual}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


async def _main() -> int:
    settings = GatewaySettings(**json.loads(os.environ.pop(ENVIRONMENT)))
    serving = asyncio.create_task(Gateway(settings).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        return 0
    except Exception as error:
        log.critical("gateway_failed", extra={"reason": str(_first(error))})
        sys.stderr.write(f"{_first(error)}\n")
        return 1
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        failures = error.subgroup(Failure)
        error = (failures or error).exceptions[0]
    return error


def main() -> None:
    """Entry point of the process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    sys.exit(asyncio.run(_main()))


if __name__ == "__main__":
    main()
