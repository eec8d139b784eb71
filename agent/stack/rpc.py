"""`/rest/v1/rpc/<function>`: one pipelined round trip; Postgres parses and builds the JSON, as PostgREST does it."""

import orjson
import psycopg
from aiohttp import web
from psycopg import AsyncConnection

from agent.stack.authentication import Access, AccessRefused, Caller
from agent.stack.connection_pool import DatabaseAway, JsonBody, PoolBusy, Sessions
from agent.stack.function_catalog import Routine
from agent.stack.postgrest import database_away, database_problem, problem
from agent.stack.request_body import TURN, read_body
from agent.stack.request_settings import SETTINGS, settings_of
from agent.stack.rest.cache import SchemaCache
from agent.stack.rest.refusal import Refused


class RpcEndpoint:
    """Serves calls that need only a function and its arguments; `wants_more` detects all others."""

    def __init__(self, sessions: Sessions, access: Access, cache: SchemaCache) -> None:
        self._sessions = sessions
        self._access = access
        self._cache = cache

    def wants_more(self, request: web.Request) -> bool:
        """Whether a request needs the full REST server: filters, columns, ranges, counts or a single object."""
        if request.method == "POST" and any(name != "apikey" for name in request.query):
            return True
        if request.method not in ("GET", "POST"):
            return True
        headers = request.headers
        if request.method == "POST" and "json" not in headers.get("Content-Type", "application/json"):
            return True
        preferred = ",".join(headers.getall("Prefer", []))
        if "Range" in headers or any(word in preferred for word in ("count=", "tx=", "handling=")):
            return True
        accept = headers.get("Accept", "*/*")
        if accept != "*/*" and "application/json" not in accept and "*/*" not in accept:
            return True
        schema = self._cache.settings.schemas[0]
        if headers.get("Content-Profile", schema) != schema or headers.get("Accept-Profile", schema) != schema:
            return True
        if request.method == "GET":
            routines = self._cache.catalog.routines.get((schema, request.match_info["name"]), ())
            known = {a.name for r in routines for a in r.arguments}
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
        names = frozenset(parsed) if isinstance(parsed, dict) else None
        try:
            routine = await self._cache.routine(self._cache.settings.schemas[0], request.match_info["name"], names)
            return await self._call(request, caller, routine, names or frozenset(), body)
        except Refused as refused:
            return refused.response()
        except DatabaseAway:
            return database_away()
        except PoolBusy:
            return problem(504, "PGRST003", "Timed out acquiring connection from connection pool.")
        except psycopg.Error as error:
            return database_problem(error, signed_in=caller.role != "anon")

    async def _call(
        self, request: web.Request, caller: Caller, routine: Routine, names: frozenset[str], body: bytes
    ) -> web.Response:
        settings = settings_of(
            request, caller, routine.schema, routine.timeout or self._cache.catalog.timeouts.get(caller.role),
            read_only=routine.read_only or request.method == "GET",
        )  # fmt: skip
        statement = routine.statement(names, self._cache.settings.max_rows)
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
