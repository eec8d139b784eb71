"""Writes INSERT, UPDATE and DELETE. Postgres itself reads the values from the JSON body, so their types are exact."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from agent.stack.connection_pool import JsonBody
from agent.stack.rest.fragment import NOTHING, Sql, identifier, joined, literal, value
from agent.stack.rest.plan import Node
from agent.stack.rest.query import Query
from agent.stack.rest.reading import needed_columns, write_condition
from agent.stack.rest.refusal import Refused
from agent.stack.rest.relation import Column, Relation

Resolution = Literal["merge-duplicates", "ignore-duplicates"]

# Counts the rows that an upsert inserted: every row adds one, and takes it back when it only updated a row.
_ADDS: Final = (
    "set_config('pgrst.inserted', (coalesce(nullif(current_setting('pgrst.inserted', true), '')::int, 0) + 1)::text,"
    " true) <> '0'"
)
_TAKES_BACK: Final = (
    "set_config('pgrst.inserted', (coalesce(nullif(current_setting('pgrst.inserted', true), '')::int, 0) - 1)::text,"
    " true) <> '-1'"
)
INSERTED: Final = Sql("nullif(current_setting('pgrst.inserted', true), '')::int")


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON body: its text, whether it is one object, and the columns that it writes."""

    text: bytes
    is_object: bool
    columns: tuple[str, ...]
    is_empty: bool


def read_body_columns(text: bytes, query: Query) -> Body:
    """Check the body. The columns are those of `columns=`, otherwise the keys of the first object.

    Raises Refused (PGRST102).
    """
    try:
        parsed = orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError as error:
        raise Refused(400, "PGRST102", "Empty or invalid json", details=str(error)) from error
    rows = [parsed] if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Refused(400, "PGRST102", "Empty or invalid json", details="send one object, or an array of objects")
    columns = query.columns
    if columns is None:
        names = set(rows[0]) if rows else set()
        if any(set(row) != names for row in rows):
            raise Refused(400, "PGRST102", "All object keys must match")
        columns = tuple(rows[0]) if rows else ()
    return Body(text if text.strip() else b"{}", isinstance(parsed, dict), columns, is_empty=not rows)


def known_columns(relation: Relation, names: Iterable[str]) -> list[Column]:
    """The columns of these names. Raises Refused (PGRST204)."""
    found = []
    for name in names:
        known = relation.columns.get(name)
        if known is None:
            raise Refused(
                400, "PGRST204", f"Could not find the '{name}' column of '{relation.name}' in the schema cache"
            )
        found.append(known)
    return found


def insert(
    relation: Relation,
    body: Body,
    query: Query,
    *,
    defaults: bool,
    resolution: Resolution | None,
    returning: Sql,
) -> Sql:
    """INSERT with all rows of the body.

    `defaults`: a key that a row lacks gets the column's default instead of null. `resolution`: what happens to rows
    that are there already.
    """
    columns = known_columns(relation, body.columns)
    names = joined(identifier(column.name) for column in columns)
    text = "INSERT INTO " + identifier(*relation.qualified)
    if columns:
        text = text + "(" + names + ")"
    text = text + " SELECT " + joined(identifier("pgrst_body", column.name) for column in columns)
    text = text + _from_body(body, columns, defaults=defaults)
    conflict = _on_conflict(relation, columns, query, resolution) if resolution is not None else NOTHING
    if resolution == "merge-duplicates" and conflict:
        text = text + f" WHERE {_ADDS}"
    return text + conflict + returning


def _on_conflict(relation: Relation, columns: Sequence[Column], query: Query, resolution: Resolution) -> Sql:
    target = query.on_conflict or relation.key
    if not target:
        return NOTHING
    text = " ON CONFLICT (" + joined(identifier(name) for name in target) + ")"
    if resolution == "ignore-duplicates" or not columns:
        return text + " DO NOTHING"
    changes = joined(identifier(one.name) + " = EXCLUDED." + identifier(one.name) for one in columns)
    return text + " DO UPDATE SET " + changes + f" WHERE {_TAKES_BACK}"


def update(node: Node, relation: Relation, body: Body, *, defaults: bool, returning: Sql) -> Sql:
    """UPDATE of the rows that match the node's filters. Raises Refused: without a filter nothing is updated."""
    columns = known_columns(relation, body.columns)
    if not columns:
        return "SELECT " + identifier(*relation.qualified) + ".* FROM " + identifier(*relation.qualified) + \
            " WHERE false"  # fmt: skip
    changes = joined(identifier(one.name) + " = " + identifier("pgrst_body", one.name) for one in columns)
    text = "UPDATE " + identifier(*relation.qualified) + " SET " + changes
    return text + _from_body(body, columns, defaults=defaults) + _where(node, "UPDATE") + returning


def delete(node: Node, relation: Relation, *, returning: Sql) -> Sql:
    """DELETE of the rows that match the node's filters. Raises Refused: without a filter nothing is deleted."""
    return "DELETE FROM " + identifier(*relation.qualified) + _where(node, "DELETE") + returning


def _where(node: Node, verb: str) -> Sql:
    if not node.conditions:
        # Hosted loads safeupdate into the sessions of the API, which refuses this.
        raise Refused(400, "21000", f"{verb} requires a WHERE clause")
    return " WHERE " + joined((write_condition(node, one) for one in node.conditions), " AND ")


def returning_of(node: Node | None) -> Sql:
    """RETURNING with the columns that the answer shows; `1` when it shows none."""
    if node is None:
        return Sql(" RETURNING 1")
    return " RETURNING " + joined(needed_columns(node, node.table))


def _from_body(body: Body, columns: Sequence[Column], *, defaults: bool) -> Sql:
    """The rows of the body as `pgrst_body`. An object is read as an array of one."""
    filled = defaults and bool(columns)
    kind = "jsonb" if filled else "json"
    text = " FROM (SELECT " + value(JsonBody(body.text)) + f"::{kind} AS json_data) pgrst_payload,"
    rows = "pgrst_payload.json_data" if not body.is_object else f"{kind}_build_array(pgrst_payload.json_data)"
    if filled:
        known = {one.name: one.default for one in columns if one.default is not None}
        text = text + " LATERAL (SELECT jsonb_agg(" + _defaults(known) + " || elem) AS val"
        text = text + f" FROM jsonb_array_elements({rows}) elem) pgrst_json_defs,"
        rows = "pgrst_json_defs.val"
    if not columns:
        return text + f" LATERAL (SELECT 1 FROM {kind}_array_elements({rows})) pgrst_body"
    typed = joined(identifier(one.name) + f" {one.type_name.replace('%', '%%')}" for one in columns)
    names = joined(identifier(one.name) for one in columns)
    return text + " LATERAL (SELECT " + names + f" FROM {kind}_to_recordset({rows}) AS _(" + typed + ")) pgrst_body"


def _defaults(known: Mapping[str, str]) -> Sql:
    pairs = (literal(name) + f", {default.replace('%', '%%')}" for name, default in known.items())
    return "jsonb_build_object(" + joined(pairs) + ")"
