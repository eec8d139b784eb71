"""Runs the statement of a request, which builds the whole answer in Postgres."""

from dataclasses import dataclass

import orjson
from psycopg import AsyncConnection

from agent.stack.function_catalog import Routine
from agent.stack.request_settings import SETTINGS
from agent.stack.rest.fragment import NOTHING, Sql, value
from agent.stack.rest.plan import SOURCE
from agent.stack.rest.preferences import Answer
from agent.stack.rest.writing import INSERTED


@dataclass(slots=True)
class Result:
    """`body`: the answer. `rows`: how many it has. `total`: how many there are. `inserted`: by an upsert."""

    body: bytes
    rows: int
    total: int | None = None
    inserted: int | None = None


def wrapped(
    source: Sql,
    outer: Sql,
    answer: Answer,
    *,
    routine: Routine | None,
    counted: Sql | None,
    most: int | None,
    empty: bool,
) -> Sql:
    """The complete statement: total, rows, body and inserted rows.

    `source` yields rows or writes; `outer` selects from them. `counted` counts all rows (up to `most` and one).
    `empty`: no body is wanted.
    """
    form = answer.of.form if answer.of is not None else answer.form
    total = NOTHING
    text = f"WITH {SOURCE} AS (" + source + ")"
    if counted is not None:
        limit = " LIMIT " + value(most + 1) if most is not None else NOTHING
        text = text + ", pgrst_source_count AS (" + counted + limit + ")"
        total = Sql("(SELECT count(*) FROM pgrst_source_count)")
    rows = outer if outer else Sql(f"SELECT * FROM {SOURCE}")
    body = Sql("''") if empty else _body(form, routine, strip=answer.strip_nulls)
    return (
        text + " SELECT " + (total or Sql("null::bigint")) + ", count(_postgrest_t), (" + body + ")::text, " + INSERTED
        + " FROM (" + rows + ") _postgrest_t"
    )  # fmt: skip


def _body(form: str, routine: Routine | None, *, strip: bool) -> Sql:
    if form == "csv":
        return Sql(
            "(SELECT coalesce(string_agg(a.k, ','), '') FROM (SELECT json_object_keys(r)::text AS k FROM"
            f" (SELECT row_to_json(hh) AS r FROM {SOURCE} AS hh LIMIT 1) s) a) || E'\\n' ||"
            " coalesce(string_agg(substring(_postgrest_t::text, 2, length(_postgrest_t::text) - 2), E'\\n'), '')"
        )
    shape = routine.shape if routine is not None else "rows"
    rows = "_postgrest_t.pgrst_scalar" if shape in ("value", "values", "void") else "_postgrest_t"
    listed = f"json_agg({rows})"
    one = form == "object" or shape in ("value", "row", "void")
    found = f"{listed} -> 0" if one else listed
    if strip:
        found = f"json_strip_nulls({found})"
    return Sql(f"coalesce({found}, '{'null' if one else '[]'}')")


async def run(connection: AsyncConnection, settings: tuple[str, ...], statement: Sql) -> Result:
    """Run settings and statement in one round trip. Raises psycopg.Error."""
    async with connection.pipeline():
        await connection.execute(SETTINGS, settings, prepare=True)
        cursor = await connection.execute(_of(statement), statement.values, prepare=False)
    row = await cursor.fetchone()
    if row is None:
        return Result(b"", 0)
    total, rows, body, inserted = row
    return Result(body.encode(), rows, total, inserted)


async def planned_rows(connection: AsyncConnection, counted: Sql) -> int:
    """How many rows Postgres' planner expects."""
    text = "EXPLAIN (FORMAT JSON) " + counted
    cursor = await connection.execute(_of(text), text.values, prepare=False)
    row = await cursor.fetchone()
    plan = orjson.loads(row[0]) if row is not None else None
    return int(plan[0]["Plan"]["Plan Rows"]) if plan else 0


async def explained(connection: AsyncConnection, settings: tuple[str, ...], statement: Sql, answer: Answer) -> Result:
    """The plan of the statement, which is not run unless `analyze` is among the options; then it is rolled back."""
    options = ", ".join((f"FORMAT {answer.plan_format.upper()}", *(one.upper() for one in answer.plan_options)))
    text = f"EXPLAIN ({options}) " + statement
    async with connection.transaction(force_rollback=True):
        async with connection.pipeline():
            await connection.execute(SETTINGS, settings, prepare=True)
            cursor = await connection.execute(_of(text), text.values, prepare=False)
        lines = [row[0] for row in await cursor.fetchall()]
    body = lines[0] if answer.plan_format == "json" else "\n".join(lines).encode()
    return Result(body, 1)


def _of(text: Sql) -> bytes:
    return text.text.encode()
