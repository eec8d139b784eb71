"""`/rest/v1/<table>` and the calls of functions that need more than the RPC path: one statement per request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psycopg
from aiohttp import web

from agent.stack.authentication import Access, AccessRefused, Caller
from agent.stack.connection_pool import DatabaseAway, PoolBusy, Sessions
from agent.stack.function_catalog import Routine
from agent.stack.postgrest import database_away, database_problem, problem
from agent.stack.request_body import TURN, read_body
from agent.stack.request_settings import settings_of
from agent.stack.rest import writing
from agent.stack.rest.cache import SchemaCache
from agent.stack.rest.calling import call, called_arguments
from agent.stack.rest.fragment import NOTHING, Sql
from agent.stack.rest.plan import Node, limit_rows, plan, root_of_source, root_of_table
from agent.stack.rest.preferences import (
    Answer,
    Preferences,
    read_accept,
    read_preferences,
    read_profile,
    read_range,
)
from agent.stack.rest.query import Query, read_query
from agent.stack.rest.reading import count, read
from agent.stack.rest.refusal import Refused
from agent.stack.rest.relation import Relation
from agent.stack.rest.statement import Result, explained, planned_rows, run, wrapped

READS: Final = frozenset({"GET", "HEAD"})
#: refusals of something that the schema lacks
STALE: Final = frozenset({"PGRST200", "PGRST202", "PGRST204", "PGRST205"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the API understands it."""

    request: web.Request
    caller: Caller
    schema: str
    query: Query
    prefer: Preferences
    answer: Answer
    body: bytes

    @property
    def shows_rows(self) -> bool:
        """Whether a write answers with its rows."""
        return self.prefer.returned == "representation"


class TableEndpoint:
    """Reads and writes tables and views, and calls functions whose result is filtered, counted or embedded."""

    def __init__(self, sessions: Sessions, access: Access, cache: SchemaCache) -> None:
        self._sessions = sessions
        self._access = access
        self._cache = cache

    async def handle(self, request: web.Request) -> web.Response:
        """Serve a table. Every failure becomes a response in PostgREST's format."""
        return await self._guarded(request, request.match_info["path"], is_call=False)

    async def call(self, request: web.Request) -> web.Response:
        """Serve a call of a function."""
        return await self._guarded(request, request.match_info["name"], is_call=True)

    async def _guarded(self, request: web.Request, name: str, *, is_call: bool) -> web.Response:
        signed_in = False
        try:
            caller = self._access.caller(request)
            signed_in = caller.role != "anon"
            body = await read_body(request)
            if isinstance(body, web.Response):
                return body
            asked = self._asked(request, caller, body)
            serve = self._call if is_call else self._table
            try:
                return await serve(asked, name)
            except Refused as refused:
                if refused.code not in STALE:
                    raise
            await self._cache.refresh_for_missing()
            return await serve(self._asked(request, caller, body), name)
        except AccessRefused as refused:
            return refused.response
        except Refused as refused:
            return refused.response()
        except DatabaseAway:
            return database_away()
        except PoolBusy:
            return problem(504, "PGRST003", "Timed out acquiring connection from connection pool.")
        except psycopg.Error as error:
            return database_problem(error, signed_in=signed_in)

    def _asked(self, request: web.Request, caller: Caller, body: bytes) -> Asked:
        settings = self._cache.settings
        headers = request.headers
        profile = headers.get("Accept-Profile" if request.method in READS else "Content-Profile")
        return Asked(
            request, caller, read_profile(profile, settings.schemas), read_query(request.query.items()),
            read_preferences(headers.getall("Prefer", []), may_roll_back=settings.may_roll_back),
            read_accept(headers.get("Accept", "*/*"), plans=settings.plans), body,
        )  # fmt: skip

    async def _table(self, asked: Asked, name: str) -> web.Response:
        if not name:
            raise Refused(404, "PGRST126", "Root endpoint metadata is disabled")
        if "/" in name:
            raise Refused(404, "PGRST125", "Invalid path specified in request URL")
        relation = self._cache.schema.relation(asked.schema, name)
        match asked.request.method:
            case "GET" | "HEAD":
                return await self._read(asked, relation)
            case "POST" | "PATCH" | "DELETE":
                return await self._write(asked, relation)
            case "OPTIONS":
                return web.Response(headers={"Allow": "OPTIONS,GET,HEAD,POST,PATCH,DELETE"})
            case method:
                raise Refused(405, "PGRST117", f"Unsupported HTTP method: {method}")

    def _plan(self, asked: Asked, root: Node, *, limited: bool) -> Node:
        node = plan(self._cache.schema, asked.query, root, aggregates=self._cache.settings.aggregates)
        if limited:
            offset, limit = read_range(asked.request.headers.get("Range"))
            node.offset = node.offset or offset
            node.limit = limit if node.limit is None else node.limit
            limit_rows(node, self._cache.settings.max_rows)
        return node

    async def _read(self, asked: Asked, relation: Relation) -> web.Response:
        node = self._plan(asked, root_of_table(relation), limited=True)
        result = await self._run(asked, read(node), node, read_only=True)
        return _of_rows(asked, node, result)

    async def _write(self, asked: Asked, relation: Relation) -> web.Response:
        method, prefer = asked.request.method, asked.prefer
        node = self._plan(asked, root_of_source(relation, relation.qualified), limited=False)
        target = root_of_table(relation)
        target.conditions, node.conditions = node.conditions, []
        node.limit, node.offset = None, 0
        shows = asked.shows_rows or asked.answer.form == "plan"
        returning = writing.returning_of(node if shows else None)
        if method == "DELETE":
            text = writing.delete(target, relation, returning=returning)
        else:
            if "json" not in asked.request.headers.get("Content-Type", "application/json"):
                kind = asked.request.content_type
                raise Refused(400, "PGRST102", f"Content-Type not acceptable: {kind}", hint="send application/json")
            body = writing.read_body_columns(asked.body, asked.query)
            if method == "POST":
                text = writing.insert(
                    relation, body, asked.query, defaults=prefer.missing_default, resolution=prefer.resolution,
                    returning=returning,
                )  # fmt: skip
            else:
                text = writing.update(target, relation, body, defaults=prefer.missing_default, returning=returning)
        result = await self._run(asked, text, node if shows else None, read_only=False)
        return _of_write(asked, result)

    async def _call(self, asked: Asked, name: str) -> web.Response:
        method = asked.request.method
        if method not in ("GET", "HEAD", "POST"):
            raise Refused(405, "PGRST101", f"Cannot use the {method} method on RPC")
        has_type = bool(asked.body) and "Content-Type" in asked.request.headers
        kind = asked.request.content_type if has_type else "application/json"
        arguments, body = called_arguments(asked.query, asked.body, kind, in_query=method in READS)
        routine = self._cache.catalog.find(asked.schema, name, arguments, kind)
        node = self._plan(asked, _root_of(routine, self._cache), limited=True)
        if asked.prefer.max_affected is not None and routine.shape not in ("rows", "values"):
            raise Refused(
                400, "PGRST128",
                "Function must return SETOF or TABLE when max-affected preference is used with handling=strict",
            )  # fmt: skip
        read_only = routine.read_only or method in READS
        result = await self._run(
            asked, call(routine, arguments, body, node), node, read_only=read_only, routine=routine
        )
        if routine.shape == "void":
            return web.Response(status=204, headers=_applied(asked))
        return _of_rows(asked, node, result)

    async def _run(
        self, asked: Asked, source: Sql, node: Node | None, *, read_only: bool, routine: Routine | None = None
    ) -> Result:
        """Run one statement in a transaction with the caller's role; check its result before it is committed."""
        cache, prefer = self._cache, asked.prefer
        is_read = routine is None and read_only
        counted = count(node) if node is not None and prefer.count and (is_read or routine is not None) else None
        most = cache.settings.max_rows
        statement = wrapped(
            source, NOTHING if node is None or is_read else read(node), asked.answer, routine=routine,
            counted=counted if prefer.count != "planned" else None, most=most if prefer.count == "estimated" else None,
            empty=node is None or (routine is not None and routine.shape == "void"),
        )  # fmt: skip
        timeout = (routine.timeout if routine is not None else None) or cache.catalog.timeouts.get(asked.caller.role)
        settings = settings_of(asked.request, asked.caller, asked.schema, timeout, read_only=read_only)
        async with self._sessions.lease(guest=TURN in asked.request) as connection:
            if asked.answer.form == "plan":
                return await explained(connection, settings, statement, asked.answer)
            if is_read and prefer.count in (None, "exact"):
                result = await run(connection, settings, statement)
                _check(asked, result, shown=True)
                return result
            async with connection.transaction(force_rollback=prefer.rollback):
                result = await run(connection, settings, statement)
                _check(asked, result, shown=node is not None)
                if counted is not None and _needs_plan(prefer, result, most):
                    result.total = max(await planned_rows(connection, counted), result.total or 0)
            return result


def _needs_plan(prefer: Preferences, result: Result, most: int) -> bool:
    return prefer.count == "planned" or (prefer.count == "estimated" and (result.total or 0) > most)


def _root_of(routine: Routine, cache: SchemaCache) -> Node:
    table = routine.returns
    relation = cache.schema.relations.get(table) if table is not None else None
    return root_of_source(relation, table or (routine.schema, routine.name))


def _check(asked: Asked, result: Result, *, shown: bool) -> None:
    """Raises Refused when the result is not what was asked for; then nothing is committed."""
    answer, most = asked.answer, asked.prefer.max_affected
    is_write = asked.request.method in ("PATCH", "DELETE") or "name" in asked.request.match_info
    if most is not None and is_write and result.rows > most:
        raise Refused(
            400, "PGRST124", "Query result exceeds max-affected preference constraint",
            details=f"The query affects {result.rows} rows",
        )  # fmt: skip
    if answer.form == "object" and shown and result.rows != 1:
        raise Refused(
            406, "PGRST116", "Cannot coerce the result to a single JSON object",
            details=f"The result contains {result.rows} rows",
        )  # fmt: skip


def _of_rows(asked: Asked, node: Node, result: Result) -> web.Response:
    headers = _applied(asked)
    if asked.answer.form == "plan":
        return _body(asked, 200, result, headers)
    first, total = node.offset, result.total
    headers["Content-Range"] = _range(first, result.rows, total)
    if total is not None and first > total:
        raise Refused(
            416, "PGRST103", "Requested range not satisfiable",
            details=f"An offset of {first} was requested, but there are only {total} rows.",
        )  # fmt: skip
    partial = total is not None and result.rows < total
    return _body(asked, 206 if partial else 200, result, headers)


def _of_write(asked: Asked, result: Result) -> web.Response:
    headers, method = _applied(asked), asked.request.method
    total = result.rows if asked.prefer.count is not None else None
    created = 200 if asked.prefer.resolution == "merge-duplicates" and result.inserted == 0 else 201
    if asked.answer.form == "plan":
        return _body(asked, 200, result, headers)
    if method == "POST":
        headers["Content-Range"] = f"*/{'*' if total is None else total}"
    elif method == "PATCH":
        headers["Content-Range"] = _range(0, result.rows, total)
    else:
        headers["Content-Range"] = f"*/{'*' if total is None else total}"
    if asked.shows_rows:
        return _body(asked, created if method == "POST" else 200, result, headers)
    return web.Response(status=created if method == "POST" else 204, headers=headers)


def _range(first: int, rows: int, total: int | None) -> str:
    shown = f"{first}-{first + rows - 1}" if rows else "*"
    return f"{shown}/{'*' if total is None else total}"


def _applied(asked: Asked) -> dict[str, str]:
    return {"Preference-Applied": ", ".join(asked.prefer.applied)} if asked.prefer.applied else {}


def _body(asked: Asked, status: int, result: Result, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        status=status, body=b"" if asked.request.method == "HEAD" else result.body,
        headers={**headers, "Content-Type": asked.answer.content_type},
    )  # fmt: skip
