"""Filters: `price=gte.1.1`, `or=(side.eq.buy,lots.lt.2)`; read from text and written as SQL."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from agent.stack.rest.fragment import Sql, joined, value
from agent.stack.rest.refusal import Refused
from agent.stack.rest.scanner import JsonPath, Scanner

# Operators that also take a list: `like(any).{a*,b*}`.
COMPARISONS: Final = {
    "eq": "=", "gte": ">=", "gt": ">", "lte": "<=", "lt": "<", "like": "like", "ilike": "ilike", "match": "~",
    "imatch": "~*",
}  # fmt: skip
OTHERS: Final = {
    "neq": "<>", "cs": "@>", "cd": "<@", "ov": "&&", "sl": "<<", "sr": ">>", "nxr": "&<", "nxl": "&>", "adj": "-|-",
}  # fmt: skip
SEARCHES: Final = {
    "fts": "to_tsquery", "plfts": "plainto_tsquery", "phfts": "phraseto_tsquery", "wfts": "websearch_to_tsquery",
}  # fmt: skip
IS_VALUES: Final = {
    "null": "NULL", "not_null": "NOT NULL", "true": "TRUE", "false": "FALSE", "unknown": "UNKNOWN",
}  # fmt: skip
_WORD: Final = re.compile(r"[a-z_]+")
_VALUE: Final = re.compile(r"[A-Za-z_]+")
_LISTED: Final = re.compile(r"[^,)]*")
_ARRAY: Final = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Condition:
    """One filter. `values` has one entry, but any number for `in`.

    `mode`: `any` or `all` for a list; the language of a text search is in `language`.
    """

    name: str
    path: JsonPath
    operator: str
    values: tuple[str, ...]
    negated: bool = False
    mode: Literal["any", "all"] | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Conditions joined with `and` or `or`."""

    operator: Literal["and", "or"]
    members: tuple["Condition | Group", ...]
    negated: bool = False


def condition(name: str, path: JsonPath, text: str) -> Condition:
    """The filter in the value of a parameter. Raises Refused (PGRST100)."""
    scanner = Scanner(text, "filter")
    found = _expression(scanner, name, path, nested=False)
    scanner.end()
    return found


def group(text: str, operator: str, *, negated: bool) -> Group:
    """The conditions in the value of `and=` or `or=`. Raises Refused (PGRST100)."""
    scanner = Scanner(text, "logic tree")
    found = Group("or" if operator == "or" else "and", _members(scanner), negated)
    scanner.end()
    return found


def _members(scanner: Scanner) -> tuple[Condition | Group, ...]:
    scanner.spaces()
    scanner.deeper()
    members = [_member(scanner)]
    while scanner.take(","):
        members.append(_member(scanner))
    scanner.higher()
    scanner.spaces()
    return tuple(members)


def _member(scanner: Scanner) -> Condition | Group:
    scanner.spaces()
    start = scanner.at
    negated = scanner.take("not.")
    for operator in ("and", "or"):
        if scanner.take(operator):
            scanner.spaces()
            if scanner.looking_at("("):
                return Group("or" if operator == "or" else "and", _members(scanner), negated)
            break
    scanner.at = start
    name, path = scanner.name(), scanner.json_path()
    scanner.need(".")
    found = _expression(scanner, name, path, nested=True)
    scanner.spaces()
    return found


def _expression(scanner: Scanner, name: str, path: JsonPath, *, nested: bool) -> Condition:
    negated = scanner.take("not.")
    operator = scanner.match(_WORD) or ""
    mode: Literal["any", "all"] | None = None
    language = None
    if operator in COMPARISONS and scanner.take("("):
        mode = "any" if scanner.take("any") else "all"
        if mode == "all":
            scanner.need("all")
        scanner.need(")")
    elif operator in SEARCHES and scanner.take("("):
        language = scanner.identifier()
        scanner.need(")")
    elif operator not in COMPARISONS | OTHERS | SEARCHES and operator not in ("in", "is", "isdistinct"):
        scanner.fail("operator (eq, gt, ...)")
    scanner.need(".")
    if operator == "in":
        return Condition(name, path, operator, _list(scanner), negated)
    if operator == "is":
        word = (scanner.match(_VALUE) or "").lower()
        if word not in IS_VALUES:
            scanner.fail("isVal: (null, not_null, true, false, unknown)")
        return Condition(name, path, operator, (word,), negated)
    text = _nested_value(scanner) if nested else _rest(scanner)
    return Condition(name, path, operator, (text,), negated, mode, language)


def _rest(scanner: Scanner) -> str:
    text, scanner.at = scanner.text[scanner.at :], len(scanner.text)
    return text


def _nested_value(scanner: Scanner) -> str:
    text = scanner.quoted_value()
    if text is None:
        text = scanner.match(_ARRAY)
    return text if text is not None else (scanner.match(_LISTED) or "")


def _list(scanner: Scanner) -> tuple[str, ...]:
    scanner.spaces()
    scanner.need("(")
    found = [_listed(scanner)]
    while scanner.take(","):
        found.append(_listed(scanner))
    scanner.need(")")
    scanner.spaces()
    return () if found == [""] else tuple(found)


def _listed(scanner: Scanner) -> str:
    text = scanner.quoted_value()
    return text if text is not None else (scanner.match(_LISTED) or "")


#: the SQL of a column in a filter; the second value says whether it is a tsvector already
Column = Callable[[str, JsonPath], tuple[Sql, bool]]


def write(found: Condition | Group, column: Column) -> Sql:
    """The SQL of a condition or a group; `column` gives the SQL of its columns."""
    if isinstance(found, Group):
        inner = joined((write(member, column) for member in found.members), f" {found.operator.upper()} ")
        return ("NOT (" if found.negated else "(") + inner + ")"
    target, is_vector = column(found.name, found.path)
    written = _comparison(found, target, is_vector=is_vector)
    return "NOT " + written if found.negated else written


def _comparison(found: Condition, target: Sql, *, is_vector: bool) -> Sql:
    match found.operator:
        case "in":
            return target + " = ANY (" + value(array_literal(found.values)) + ")"
        case "is":
            return target + f" IS {IS_VALUES[found.values[0]]}"
        case "isdistinct":
            return target + " IS DISTINCT FROM " + value(found.values[0])
        case operator if operator in SEARCHES:
            language = "" if found.language is None else value(found.language) + "::regconfig, "
            vector = target if is_vector else "to_tsvector(" + (language + target) + ")"
            return vector + f" @@ {SEARCHES[operator]}(" + (language + value(found.values[0])) + ")"
        case operator:
            text = found.values[0]
            if operator in ("like", "ilike"):
                text = text.replace("*", "%")
            sign = COMPARISONS.get(operator) or OTHERS[operator]
            if found.mode is None:
                return target + f" {sign} " + value(text)
            return target + f" {sign} {found.mode.upper()} (" + value(text) + ")"


def array_literal(values: tuple[str, ...]) -> str:
    """The values as the text of an array, whose type Postgres infers: `{"a","b"}`."""
    return "{" + ",".join('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in values) + "}"


def columns_of(found: Condition | Group) -> set[str]:
    """Names of the columns that a condition tests."""
    if isinstance(found, Condition):
        return {found.name}
    return set().union(*(columns_of(member) for member in found.members))


def refuse_unsuitable_filter(name: str) -> Refused:
    """The refusal of a filter on an embedded table itself, other than `is.null`."""
    return Refused(
        400, "PGRST120", f"Bad operator on the '{name}' embedded resource",
        details="Only is null or not is null filters are allowed on embedded resources",
    )  # fmt: skip
