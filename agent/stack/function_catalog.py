"""The functions that the API exposes, with their signatures read from Postgres, like PostgREST's schema cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from psycopg import AsyncConnection, sql

from agent.stack.rest.refusal import Refused, closest

Shape = Literal["void", "value", "values", "row", "rows"]
Name = tuple[str, str]

# Types of a single argument without a name: it receives the whole body, if its Content-Type is this one.
UNNAMED: Final = {
    "json": "application/json", "jsonb": "application/json", "text": "text/plain", "xml": "text/xml",
    "bytea": "application/octet-stream",
}  # fmt: skip
WHOLE_BODY: Final = frozenset(UNNAMED.values()) - {"application/json"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One input argument. `type_name` is spelled as `format_type` does; `required` means that it has no default."""

    name: str
    type_name: str
    required: bool
    variadic: bool


@dataclass(frozen=True, slots=True)
class Routine:
    """One function. `read_only`: stable or immutable. `timeout`: from its own `set statement_timeout`.

    `unnamed`: the type of its only argument when that has no name. `returns`: the table whose rows it returns.
    """

    schema: str
    name: str
    arguments: tuple[Argument, ...]
    shape: Shape
    read_only: bool
    timeout: str | None
    unnamed: str | None
    returns: Name | None = None
    statements: dict[tuple[str, ...], bytes] = field(default_factory=dict, compare=False, repr=False)

    def accepts(self, names: frozenset[str]) -> bool:
        """Whether a call with exactly these argument names matches."""
        known = {argument.name for argument in self.arguments}
        return names <= known and all(argument.name in names for argument in self.arguments if argument.required)

    def statement(self, names: frozenset[str], max_rows: int) -> bytes:
        """The SQL of one call.

        Parameter 1 is the body, a JSON object with the arguments by name; the result is JSON.
        """
        used = tuple(sorted(names))
        text = self.statements.get(used)
        if text is None:
            text = self.statements[used] = self._write(used, max_rows).as_bytes(None)
        return text

    def _write(self, used: tuple[str, ...], max_rows: int) -> sql.Composed:
        function = sql.Identifier(self.schema, self.name)
        wanted = [argument for argument in self.arguments if argument.name in used]
        if self.unnamed is not None:
            call = sql.SQL("{}(%s::{})").format(function, sql.SQL(self.unnamed))
            source: sql.Composable = sql.SQL("")
        elif not wanted:
            # The body is parameter 1 here too, so that all statements have the same parameters.
            call = sql.SQL("{}()").format(function)
            source = sql.SQL(" (select %s::json) body")
        else:
            passed = sql.SQL(", ").join(
                sql.SQL("{}{name} := args.{name}").format(
                    sql.SQL("variadic " if argument.variadic else ""), name=sql.Identifier(argument.name)
                )
                for argument in wanted
            )
            columns = sql.SQL(", ").join(
                # format_type has already quoted the name of the type.
                sql.SQL("{} {}").format(sql.Identifier(argument.name), sql.SQL(argument.type_name))
                for argument in wanted
            )
            call = sql.SQL("{}({})").format(function, passed)
            source = sql.SQL(" json_to_record(%s::json) as args({})").format(columns)
        return self._select(call, source, max_rows)

    def _select(self, call: sql.Composable, source: sql.Composable, max_rows: int) -> sql.Composed:
        origin = sql.SQL(" from{}").format(source) if source != sql.SQL("") else sql.SQL("")
        match self.shape:
            case "void":
                return sql.SQL("select 'null'::json, 1, {}{}").format(call, origin)
            case "value":
                return sql.SQL("select coalesce(to_json({}), 'null'), 1{}").format(call, origin)
            case "row":
                inner = sql.SQL("select called.* from {}lateral {} called limit 1").format(_comma(source), call)
                return sql.SQL("select coalesce((select to_json(r) from ({}) r), 'null'), 1").format(inner)
            case "values":
                inner = sql.SQL("select called as v from {}lateral {} called limit {}").format(
                    _comma(source), call, max_rows
                )
                return sql.SQL("select coalesce(json_agg(r.v), '[]'), count(*) from ({}) r").format(inner)
            case "rows":
                inner = sql.SQL("select called.* from {}lateral {} called limit {}").format(
                    _comma(source), call, max_rows
                )
                return sql.SQL("select coalesce(json_agg(r), '[]'), count(*) from ({}) r").format(inner)


def _comma(source: sql.Composable) -> sql.Composable:
    return sql.SQL("{}, ").format(source) if source != sql.SQL("") else sql.SQL("")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Functions by schema and name, and each role's statement timeout from `alter role … set`."""

    routines: Mapping[Name, tuple[Routine, ...]]
    timeouts: Mapping[str, str]

    def find(
        self, schema: str, name: str, names: frozenset[str] | None, content_type: str = "application/json"
    ) -> Routine:
        """The function for these argument names. Raises Refused: PGRST202 for none, PGRST203 for several.

        `names` is None for a body that is no JSON object. A function with one unnamed argument takes the whole body.
        """
        candidates = self.routines.get((schema, name), ())
        found = [] if names is None else [routine for routine in candidates if routine.accepts(names)]
        if content_type in WHOLE_BODY:
            found = [routine for routine in found if routine.arguments]
        found = found or [one for one in candidates if UNNAMED.get(one.unnamed or "") == content_type]
        if not found:
            raise self._missing(schema, name, names or frozenset(), content_type)
        if len(found) > 1:
            raise _ambiguous(found)
        return found[0]

    def _missing(self, schema: str, name: str, names: frozenset[str], content_type: str) -> Refused:
        function, listed = f"{schema}.{name}", ", ".join(sorted(names))
        unnamed = next((kind for kind, wanted in UNNAMED.items() if wanted == content_type), "json")
        if content_type in WHOLE_BODY:
            shown, searched = "", f" with a single unnamed {unnamed} parameter"
        else:
            shown = f"({listed})" if names else " without parameters"
            searched = f" with parameter{'s' if len(names) > 1 else ''} {listed}" if names else " without parameters"
            searched += " or with a single unnamed json/jsonb parameter"
        overloads = self.routines.get((schema, name), ())
        if overloads:
            near = closest(f"({listed})", [f"({', '.join(sorted(a.name for a in r.arguments))})" for r in overloads])
            near = name + near if near is not None else None
        else:
            near = closest(name, (known for of, known in self.routines if of == schema))
        return Refused(
            404, "PGRST202", f"Could not find the function {function}{shown} in the schema cache",
            details=f"Searched for the function {function}{searched}, but no matches were found in the schema cache.",
            hint=f"Perhaps you meant to call the function {schema}.{near}" if near else None,
        )  # fmt: skip


def _ambiguous(found: Sequence[Routine]) -> Refused:
    listed = sorted(
        f"{one.schema}.{one.name}({', '.join(f'{a.name} => {a.type_name}' for a in one.arguments)})" for one in found
    )
    return Refused(
        300, "PGRST203", f"Could not choose the best candidate function between: {', '.join(listed)}",
        hint="Try renaming the parameters or the function itself in the database so function overloading can be"
        " resolved",
    )  # fmt: skip


QUERY: Final = """
select n.nspname::text, p.proname::text, coalesce(p.proargnames, '{}')::text[],
  coalesce(p.proargmodes::text[], array_fill('i'::text, array[p.pronargs])),
  array(select format_type(t, null)
    from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality u(t, n) order by n),
  p.pronargdefaults::integer, p.provolatile <> 'v', p.proretset, rt.typname::text,
  rt.typtype = 'c' or (rt.typname = 'record' and 't' = any (coalesce(p.proargmodes, '{}')::text[]))
    or (rt.typname = 'record' and 'o' = any (coalesce(p.proargmodes, '{}')::text[])),
  (select split_part(c, '=', 2) from unnest(p.proconfig) c where c like 'statement_timeout=%%'),
  (select array[tn.nspname::text, c.relname::text] from pg_catalog.pg_class c
    join pg_catalog.pg_namespace tn on tn.oid = c.relnamespace where c.oid = rt.typrelid and c.relkind <> 'c')
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_type rt on rt.oid = p.prorettype
where n.nspname = any (%s) and p.prokind = 'f' and rt.typname not in ('trigger', 'event_trigger')
"""
TIMEOUT_QUERY: Final = """
select r.rolname::text, split_part(c, '=', 2)
from pg_catalog.pg_db_role_setting s join pg_catalog.pg_roles r on r.oid = s.setrole, unnest(s.setconfig) c
where s.setdatabase = 0 and c like 'statement_timeout=%'
"""


async def read_catalog(connection: AsyncConnection, schemas: Sequence[str]) -> Catalog:
    """Read the catalog of these schemas again (takes a few milliseconds)."""
    routines: dict[Name, list[Routine]] = {}
    cursor = await connection.execute(QUERY, (list(schemas),))
    for row in await cursor.fetchall():
        schema, name, names, modes, types, defaults, read_only, is_set, type_name, is_row, timeout, returns = row
        arguments = _arguments(names, modes, types, defaults)
        if arguments is None:
            continue
        unnamed = arguments[0].type_name if len(arguments) == 1 and not arguments[0].name else None
        if any(not argument.name for argument in arguments) and unnamed not in UNNAMED:
            # without names a JSON object cannot supply the arguments
            continue
        shape = _shape(type_name, is_row=is_row, is_set=is_set)
        table = (returns[0], returns[1]) if returns is not None else None
        routines.setdefault((schema, name), []).append(
            Routine(schema, name, arguments, shape, read_only, timeout, unnamed, table)
        )
    cursor = await connection.execute(TIMEOUT_QUERY)
    timeouts = {str(role): str(value) for role, value in await cursor.fetchall()}
    return Catalog({name: tuple(found) for name, found in routines.items()}, timeouts)


def _arguments(names: list[str], modes: list[str], types: list[str], defaults: int) -> tuple[Argument, ...] | None:
    inputs = [
        (names[index] if index < len(names) else "", types[index], mode)
        for index, mode in enumerate(modes)
        if mode in ("i", "b", "v")
    ]
    if len(modes) != len(types):
        return None
    first_default = len(inputs) - defaults
    return tuple(
        Argument(name, type_name, required=index < first_default and mode != "v", variadic=mode == "v")
        for index, (name, type_name, mode) in enumerate(inputs)
    )


def _shape(type_name: str, *, is_row: bool, is_set: bool) -> Shape:
    if type_name == "void":
        return "void"
    if is_row:
        return "rows" if is_set else "row"
    return "values" if is_set else "value"
