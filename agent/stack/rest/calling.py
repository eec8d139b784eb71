"""Writes the call of a function as the source of rows."""

import orjson

from agent.stack.connection_pool import JsonBody
from agent.stack.function_catalog import WHOLE_BODY, Routine
from agent.stack.rest.fragment import NOTHING, Sql, identifier, joined, value
from agent.stack.rest.plan import Node
from agent.stack.rest.query import Query
from agent.stack.rest.reading import needed_columns
from agent.stack.rest.refusal import Refused


def called_arguments(
    query: Query, body: bytes, content_type: str, *, in_query: bool
) -> tuple[frozenset[str] | None, bytes]:
    """Names of the arguments, and the JSON that holds them. None: the body is not an object.

    Raises Refused (PGRST102).
    """
    if in_query:
        return frozenset(query.arguments), orjson.dumps(query.arguments)
    if content_type in WHOLE_BODY:
        return None, body
    text = body if body.strip() else b"{}"
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "PGRST102", "Empty or invalid json", details=str(error)) from error
    return (frozenset(parsed) if isinstance(parsed, dict) else None), text


def call(routine: Routine, names: frozenset[str] | None, body: bytes, node: Node) -> Sql:
    """A SELECT of the function's rows, with the columns that `node` needs; a scalar is the column `pgrst_scalar`."""
    source, arguments = _arguments(routine, names, body)
    function = identifier(routine.schema, routine.name) + "(" + arguments + ")"
    scalar = routine.shape in ("value", "values", "void")
    called = "LATERAL (SELECT " + function + " AS pgrst_scalar) pgrst_call" if scalar else \
        "LATERAL " + function + " pgrst_call"  # fmt: skip
    selected = Sql("pgrst_call.pgrst_scalar") if scalar else joined(needed_columns(node, ("pgrst_call",)))
    return "SELECT " + selected + " FROM " + source + called


def _arguments(routine: Routine, names: frozenset[str] | None, body: bytes) -> tuple[Sql, Sql]:
    if routine.unnamed is not None:
        whole = body if routine.unnamed == "bytea" else body.decode("utf-8", "replace")
        return NOTHING, value(whole) + f"::{routine.unnamed}"
    used = [one for one in routine.arguments if names is not None and one.name in names]
    if not used:
        return NOTHING, NOTHING
    columns = joined(identifier(one.name) + f" {one.type_name.replace('%', '%%')}" for one in used)
    source = "json_to_record(" + value(JsonBody(body)) + "::json) AS pgrst_body(" + columns + "), "
    passed = joined(
        Sql("VARIADIC " if one.variadic else "") + identifier(one.name) + " := pgrst_body." + identifier(one.name)
        for one in used
    )
    return source, passed
