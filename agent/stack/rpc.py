"""`/rest/v1/rpc/<function>`: one pipelined round trip; Postgres parses and builds the JSON, as PostgREST does it."""

import asyncio
import logging
from typing import Final

import orjson
import psycopg
from aiohttp import web
from psycopg import AsyncConnection

from agent.stack.authentication import Access, AccessRefused, Caller
from agent.stack.connection_pool import DatabaseAway, JsonBody, PoolBusy, Sessions
from agent.stack.function_catalog import Catalog, Routine, read_catalog
from agent.stack.postgrest import database_away, database_problem, problem
from agent.stack.request_body import TURN, read_body
from agent.stack.request_guard import INNER_HEADER, readable

log = logging.getLogger(__name__)

MAX_ROWS: Final = 1000
# the authenticator's own timeout, for roles without one
DEFAULT_TIMEOUT: Final = "8s"
SEARCH_PATH: Final = "public, extensions"
# All settings are local to the transaction, which the pipeline's single sync ends. The role is set last, except for the
# settings that the role itself may change.
SETTINGS: Final = (
    b"select set_config('search_path', %s, true), set_config('request.jwt.claims', %s, true),"
    b" set_config('request.method', %s, true), set_config('request.path', %s, true), set_config('request.headers',"
    b" %s, true),"
    b" set_config('transaction_read_only', %s, true), set_config('statement_timeout', %s, true), set_config('role',"
    b" %s, true)"
)
PRIVATE_HEADERS: Final = frozenset({"authorization", "apikey", "cookie", INNER_HEADER})


class RpcEndpoint:
    """Serves calls that need only a function and its arguments; `wants_more` detects all others."""

    def __init__(self, sessions: Sessions, access: Access) -> None:
        self._sessions = sessions
        self._access = access
        self._catalog = Catalog({}, {})
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the function signatures again. Raises DatabaseAway."""
        async with self._reading, self._sessions.lease() as connection:
            self._catalog = await read_catalog(connection)

    def wants_more(self, request: web.Request) -> bool:
        """Whether a request needs the full REST server: filters, columns, ranges, counts or a single object."""
        if request.method == "POST" and any(name != "apikey" for name in request.query):
            return True
        if request.method not in ("GET", "POST"):
            return True
        headers = request.headers
        if "Range" in headers or "count=" in headers.get("Prefer", "") or "tx=" in headers.get("Prefer", ""):
            return True
        accept = headers.get("Accept", "*/*")
        if accept != "*/*" and "application/json" not in accept and "*/*" not in accept:
            return True
        if headers.get("Content-Profile", "public") != "public" or headers.get("Accept-Profile", "public") != "public":
            return True
        if request.method == "GET":
            known = {a.name for r in self._catalog.routines.get(request.match_info["name"], ()) for a in r.arguments}
            return any(name not in known and name != "apikey" for name in request.query)
        return False

    async def handle(self, request: web.Request) -> web.Response:
        """Run the call. Every failure becomes a response in PostgREST's format."""
        try:
            caller = self._access.caller(request)
        except AccessRefused as refused:
            return refused.response
        if request.method == "GET":
            body = orjson.dumps({name: value for name, value in request.query.items() if name != "apikey"})
        else:
            read = await read_body(request)
            if isinstance(read, web.Response):
                return read
            body = read or b"{}"
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return problem(400, "PGRST102", "Empty or invalid json", details=str(error))
        names = frozenset(parsed) if isinstance(parsed, dict) else frozenset[str]()
        try:
            routine = await self._find(request.match_info["name"], names)
            if routine is None or (not isinstance(parsed, dict) and not routine.unnamed_json):
                return _unknown(request.match_info["name"], names)
            return await self._call(request, caller, routine, names, body)
        except DatabaseAway:
            return database_away()
        except PoolBusy:
            return problem(504, "PGRST003", "Timed out acquiring connection from connection pool.")
        except psycopg.Error as error:
            return database_problem(error, signed_in=caller.role != "anon")

    async def _find(self, name: str, names: frozenset[str]) -> Routine | None:
        routine = self._catalog.find(name, names)
        if routine is None:
            await self.refresh()
            routine = self._catalog.find(name, names)
        return routine

    async def _call(
        self, request: web.Request, caller: Caller, routine: Routine, names: frozenset[str], body: bytes
    ) -> web.Response:
        settings = (
            SEARCH_PATH,
            caller.claims_json,
            request.method,
            request.path,
            _headers_json(request),
            "on" if routine.read_only or request.method == "GET" else "off",
            routine.timeout or self._catalog.timeouts.get(caller.role, DEFAULT_TIMEOUT),
            caller.role,
        )
        statement = routine.statement(names, MAX_ROWS)
        async with self._sessions.lease(routine.name, guest=TURN in request) as connection:
            result, count = await run(connection, settings, statement, JsonBody(body))
        if routine.shape == "void":
            return web.Response(status=204)
        response = web.Response(body=result, content_type="application/json", charset="utf-8")
        if routine.shape in ("rows", "values"):
            response.headers["Content-Range"] = f"0-{count - 1}/*" if count else "*/*"
        return response


async def run(
    connection: AsyncConnection, settings: tuple[str, ...], statement: bytes, body: JsonBody
) -> tuple[bytes, int]:
    """Run settings and statement in one round trip and one transaction. Returns the JSON and its number of rows."""
    async with connection.pipeline():
        await connection.execute(SETTINGS, settings, prepare=True)
        cursor = await connection.execute(statement, (body,), prepare=True)
    row = await cursor.fetchone()
    if row is None:
        return b"null", 0
    return row[0], row[1]


def _headers_json(request: web.Request) -> str:
    headers = {readable(k).lower(): readable(v) for k, v in request.headers.items() if k.lower() not in PRIVATE_HEADERS}
    return orjson.dumps(headers).decode()


def _unknown(name: str, names: frozenset[str]) -> web.Response:
    listed = ", ".join(sorted(names))
    what = f"public.{name}({listed})" if listed else f"public.{name} without parameters"
    return problem(
        404,
        "PGRST202",
        f"Could not find the function {what} in the schema cache",
        details=f"Searched for the function public.{name} with {'parameters ' + listed if listed else 'no parameters'},"
        " or with a single unnamed json/jsonb parameter, but no matches were found in the schema cache.",
    )
