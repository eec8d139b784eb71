"""The functions that the API exposes, with their signatures read from Postgres, like PostgREST's schema cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from psycopg import AsyncConnection, sql

SCHEMA: Final = "public"

Shape = Literal["void", "value", "values", "row", "rows"]


@dataclass(frozen=True, slots=True)
class Argument:
    """One input argument. `type_name` is spelled as `format_type` does; `required` means that it has no default."""

    name: str
    type_name: str
    required: bool
    variadic: bool


@dataclass(frozen=True, slots=True)
class Routine:
    """One function. `read_only`: stable or immutable. `timeout`: from its own `set statement_timeout`."""

    name: str
    arguments: tuple[Argument, ...]
    shape: Shape
    read_only: bool
    timeout: str | None
    unnamed_json: bool
    statements: dict[tuple[str, ...], bytes] = field(default_factory=dict, compare=False, repr=False)

    def accepts(self, names: frozenset[str]) -> bool:
        """Whether a call with exactly these argument names matches."""
        if self.unnamed_json:
            return False
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
        function = sql.Identifier(SCHEMA, self.name)
        wanted = [argument for argument in self.arguments if argument.name in used]
        if self.unnamed_json:
            call = sql.SQL("{}(%s::{})").format(function, sql.SQL(self.arguments[0].type_name))
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
    """Functions by name, and each role's statement timeout from `alter role … set`."""

    routines: Mapping[str, tuple[Routine, ...]]
    timeouts: Mapping[str, str]

    def find(self, name: str, names: frozenset[str]) -> Routine | None:
        """The overload for these argument names. A function with a single unnamed json argument accepts any names."""
        candidates = self.routines.get(name, ())
        fitting = [routine for routine in candidates if routine.accepts(names)]
        if fitting:
            return min(fitting, key=lambda routine: len(routine.arguments))
        return next((routine for routine in candidates if routine.unnamed_json), None)


QUERY: Final = """
select p.proname::text, coalesce(p.proargnames, '{}')::text[],
  coalesce(p.proargmodes::text[], array_fill('i'::text, array[p.pronargs])),
  array(select format_type(t, null)
    from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality u(t, n) order by n),
  p.pronargdefaults::integer, p.provolatile <> 'v', p.proretset, rt.typname::text,
  rt.typtype = 'c' or (rt.typname = 'record' and 't' = any (coalesce(p.proargmodes, '{}')::text[]))
    or (rt.typname = 'record' and 'o' = any (coalesce(p.proargmodes, '{}')::text[])),
  (select split_part(c, '=', 2) from unnest(p.proconfig) c where c like 'statement_timeout=%')
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_type rt on rt.oid = p.prorettype
where n.nspname = 'public' and p.prokind = 'f' and rt.typname not in ('trigger', 'event_trigger')
"""
TIMEOUT_QUERY: Final = """
select r.rolname::text, split_part(c, '=', 2)
from pg_catalog.pg_db_role_setting s join pg_catalog.pg_roles r on r.oid = s.setrole, unnest(s.setconfig) c
where s.setdatabase = 0 and c like 'statement_timeout=%'
"""


async def read_catalog(connection: AsyncConnection) -> Catalog:
    """Read the whole catalog again (takes a few milliseconds)."""
    routines: dict[str, list[Routine]] = {}
    cursor = await connection.execute(QUERY)
    for name, names, modes, types, defaults, read_only, is_set, type_name, is_row, timeout in await cursor.fetchall():
        arguments = _arguments(names, modes, types, defaults)
        if arguments is None:
            continue
        unnamed_json = len(arguments) == 1 and not arguments[0].name and arguments[0].type_name in ("json", "jsonb")
        if not unnamed_json and any(not argument.name for argument in arguments):
            # without names a JSON object cannot supply the arguments
            continue
        shape = _shape(type_name, is_row=is_row, is_set=is_set)
        routines.setdefault(name, []).append(Routine(name, arguments, shape, read_only, timeout, unnamed_json))
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
