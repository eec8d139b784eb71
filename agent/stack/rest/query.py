"""What a request asks for, read from its query string: columns, embedded tables, filters, order and range."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.stack.rest.condition import Condition, Group, condition, group
from agent.stack.rest.scanner import JsonPath, Scanner, whole_number

Aggregate = Literal["count", "sum", "avg", "min", "max"]
Join = Literal["left", "inner"]
Path = tuple[str, ...]

RESERVED: Final = frozenset({"select", "columns", "on_conflict", "apikey"})
OF_EMBEDDED: Final = frozenset({"order", "limit", "offset", "and", "or"})
_AGGREGATE: Final = re.compile(r"\.(count|sum|avg|min|max)\(\)")
_OPERATOR: Final = re.compile(
    r"(?:not\.)?(?:eq|gte?|lte?|neq|i?like|i?match|in|is|isdistinct|cs|cd|ov|sl|sr|nxr|nxl|adj|(?:pl|ph|w)?fts)"
    r"(?:\([^)]*\))?\."
)


@dataclass(frozen=True, slots=True)
class Field:
    """One selected column: `alias:name->path::cast.aggregate()::cast`. `*` stands for all columns."""

    name: str
    path: JsonPath = ()
    cast: str | None = None
    alias: str | None = None
    aggregate: Aggregate | None = None
    aggregate_cast: str | None = None


@dataclass(frozen=True, slots=True)
class Embed:
    """One embedded table: `alias:name!hint!inner(select)`; `...name(select)` when `spread`."""

    name: str
    select: tuple["Field | Embed", ...]
    alias: str | None = None
    hint: str | None = None
    join: Join = "left"
    spread: bool = False

    @property
    def shown(self) -> str:
        """The name under which it appears, and by which parameters refer to it."""
        return self.alias or self.name


@dataclass(frozen=True, slots=True)
class Order:
    """One term of an order. `of`: the embedded table to which the column belongs."""

    name: str
    path: JsonPath = ()
    of: str | None = None
    direction: Literal["asc", "desc"] | None = None
    nulls: Literal["nullsfirst", "nullslast"] | None = None


@dataclass(slots=True)
class Query:
    """A parsed query string. What belongs to an embedded table is stored by its path; the root's path is ()."""

    select: tuple[Field | Embed, ...] = (Field("*"),)
    conditions: dict[Path, list[Condition | Group]] = field(default_factory=dict)
    order: dict[Path, tuple[Order, ...]] = field(default_factory=dict)
    limit: dict[Path, int] = field(default_factory=dict)
    offset: dict[Path, int] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    on_conflict: tuple[str, ...] | None = None
    #: parameters that are no filters: the arguments of a function that is called with GET
    arguments: dict[str, str] = field(default_factory=dict)


def read_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Parse the parameters. Raises Refused (PGRST100)."""
    query = Query()
    for key, text in parameters:
        last = key.rpartition(".")[2]
        if key == "select":
            query.select = _select(text)
        elif key == "columns":
            query.columns = _names(text, "columns parameter")
        elif key == "on_conflict":
            query.on_conflict = _names(text, "on_conflict parameter")
        elif key in RESERVED:
            continue
        elif last in OF_EMBEDDED:
            _read_reserved(query, key, last, text)
        elif "." in key or _OPERATOR.match(text):
            path, found = _filter(key, text)
            query.conditions.setdefault(path, []).append(found)
        else:
            query.arguments[key] = text
    return query


def _read_reserved(query: Query, key: str, last: str, text: str) -> None:
    scanner = Scanner(key, "tree path")
    parts = [scanner.name()]
    while scanner.take("."):
        parts.append(scanner.name())
    scanner.end()
    path = tuple(parts[:-1])
    match last:
        case "order":
            query.order[path] = _order(text)
        case "limit":
            limit = whole_number(text)
            if limit is not None:
                query.limit[path] = limit
        case "offset":
            offset = whole_number(text)
            if offset is not None and offset >= 0:
                query.offset[path] = offset
        case _:
            negated = "not" in path
            path = tuple(part for part in path if part != "not")
            query.conditions.setdefault(path, []).append(group(text, last, negated=negated))


def _filter(key: str, text: str) -> tuple[Path, Condition]:
    scanner = Scanner(key, "tree path")
    names = [scanner.name()]
    while scanner.take("."):
        names.append(scanner.name())
    path = scanner.json_path()
    scanner.end()
    return tuple(names[:-1]), condition(names[-1], path, text)


def _names(text: str, what: str) -> tuple[str, ...]:
    scanner = Scanner(text, what)
    names = [scanner.name()]
    scanner.spaces()
    while scanner.take(","):
        scanner.spaces()
        names.append(scanner.name())
        scanner.spaces()
    scanner.end()
    return tuple(dict.fromkeys(names))


def _order(text: str) -> tuple[Order, ...]:
    scanner = Scanner(text, "order")
    terms = []
    while True:
        scanner.spaces()
        name, path, of = scanner.name(), scanner.json_path(), None
        if not path and scanner.take("("):
            of, name, path = name, scanner.name(), scanner.json_path()
            scanner.need(")")
        direction: Literal["asc", "desc"] | None = None
        nulls: Literal["nullsfirst", "nullslast"] | None = None
        if scanner.take(".asc"):
            direction = "asc"
        elif scanner.take(".desc"):
            direction = "desc"
        if scanner.take(".nullsfirst"):
            nulls = "nullsfirst"
        elif scanner.take(".nullslast"):
            nulls = "nullslast"
        terms.append(Order(name, path, of, direction, nulls))
        scanner.spaces()
        if not scanner.take(","):
            break
    if not scanner.done:
        scanner.fail('"asc", "desc", "nullsfirst" or "nullslast"')
    return tuple(terms)


def _select(text: str) -> tuple[Field | Embed, ...]:
    scanner = Scanner(text, "select parameter")
    scanner.spaces()
    if scanner.done:
        return (Field("*"),)
    found = _items(scanner)
    scanner.end()
    return found


def _items(scanner: Scanner) -> tuple[Field | Embed, ...]:
    items: list[Field | Embed] = []
    while True:
        scanner.spaces()
        if scanner.looking_at(")"):
            break
        items.append(_item(scanner))
        scanner.spaces()
        if not scanner.take(","):
            break
    return tuple(items)


def _item(scanner: Scanner) -> Field | Embed:
    if scanner.take("..."):
        return _embed(scanner, scanner.name(), None, spread=True)
    if scanner.take("*"):
        return Field("*")
    name, alias = scanner.name(), None
    if scanner.looking_at(":") and not scanner.looking_at("::"):
        scanner.need(":")
        scanner.spaces()
        name, alias = scanner.name(), name
    if scanner.looking_at("!") or (scanner.looking_at("(") and not _is_count(scanner, name)):
        return _embed(scanner, name, alias, spread=False)
    return _field(scanner, name, alias)


def _is_count(scanner: Scanner, name: str) -> bool:
    return name == "count" and scanner.looking_at("()")


def _field(scanner: Scanner, name: str, alias: str | None) -> Field:
    if _is_count(scanner, name):
        scanner.need("()")
        cast = scanner.identifier() if scanner.take("::") else None
        return Field("*", alias=alias or "count", aggregate="count", aggregate_cast=cast)
    path = scanner.json_path()
    cast = scanner.identifier() if scanner.take("::") else None
    called = scanner.match(_AGGREGATE)
    aggregate = _aggregate(called)
    aggregate_cast = scanner.identifier() if aggregate is not None and scanner.take("::") else None
    scanner.spaces()
    if not (scanner.done or scanner.looking_at(",") or scanner.looking_at(")")):
        scanner.fail('letter, digit, "-", "->>", "->", "::", ".", ")", "," or end of input')
    return Field(name, path, cast, alias, aggregate, aggregate_cast)


def _aggregate(called: str | None) -> Aggregate | None:
    match called:
        case ".count()":
            return "count"
        case ".sum()":
            return "sum"
        case ".avg()":
            return "avg"
        case ".min()":
            return "min"
        case ".max()":
            return "max"
        case _:
            return None


def _embed(scanner: Scanner, name: str, alias: str | None, *, spread: bool) -> Embed:
    hint: str | None = None
    join: Join = "left"
    while scanner.take("!"):
        word = scanner.name()
        if word == "inner":
            join = "inner"
        elif word != "left":
            hint = word
    scanner.deeper()
    select = _items(scanner)
    scanner.higher()
    scanner.spaces()
    return Embed(name, select, alias, hint, join, spread)


def embeds(select: Sequence[Field | Embed]) -> list[Embed]:
    """The embedded tables of a selection."""
    return [item for item in select if isinstance(item, Embed)]
