"""The tables and views of the exposed schemas, and how they refer to each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.stack.rest.refusal import Refused, closest

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `default`: the SQL that Postgres would insert. `type_name`: quoted and qualified."""

    name: str
    type_name: str
    default: str | None
    is_json: bool
    is_vector: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """One table or view, its columns by name, and the columns of its primary key."""

    schema: str
    name: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]

    @property
    def qualified(self) -> Name:
        """Schema and name."""
        return self.schema, self.name


@dataclass(frozen=True, slots=True)
class Junction:
    """The table between two tables that refer to each other many-to-many."""

    table: Name
    constraints: tuple[str, str]
    source: tuple[tuple[str, str], ...]
    target: tuple[tuple[str, str], ...]


Cardinality = Literal["many-to-one", "one-to-many", "one-to-one", "many-to-many"]


@dataclass(frozen=True, slots=True)
class Relationship:
    """How `table` refers to `other`: by pairs of columns, by a junction, or by a function of a row (`function`)."""

    table: Name
    other: Name
    cardinality: Cardinality
    constraint: str
    columns: tuple[tuple[str, str], ...] = ()
    #: whether the foreign key is at the side of `table`
    refers: bool = False
    junction: Junction | None = None
    function: Name | None = None

    @property
    def to_one(self) -> bool:
        """Whether a row of `table` has at most one row of `other`."""
        return self.cardinality in ("many-to-one", "one-to-one")

    @property
    def of_itself(self) -> bool:
        """Whether a table refers to itself."""
        return self.table == self.other and self.function is None


@dataclass(frozen=True, slots=True)
class Schema:
    """What the REST API knows of the database: relations by schema and name, relationships by the table they start
    from."""

    relations: Mapping[Name, Relation]
    relationships: Mapping[Name, tuple[Relationship, ...]] = field(default_factory=dict)

    def relation(self, schema: str, name: str) -> Relation:
        """The table or view. Raises Refused (PGRST205)."""
        found = self.relations.get((schema, name))
        if found is None:
            near = closest(name, (known for of, known in self.relations if of == schema))
            raise Refused(
                404, "PGRST205", f"Could not find the table '{schema}.{name}' in the schema cache",
                hint=f"Perhaps you meant the table '{schema}.{near}'" if near else None,
            )  # fmt: skip
        return found

    def relationship(self, origin: Name, target: str, hint: str | None) -> Relationship:
        """The one relationship by which `origin` embeds `target`. Raises Refused (PGRST200, PGRST201)."""
        schema = origin[0]
        known = [one for one in self.relationships.get(origin, ()) if one.other[0] == schema]
        computed = [one for one in known if one.function is not None and one.function[1] == target]
        if computed:
            return computed[0]
        found = [one for one in known if one.function is None and _fits(one, target, hint)]
        if not found:
            raise self._unrelated(origin, target, hint, known)
        if len(found) > 1:
            raise _ambiguous(origin, target, found)
        return found[0]

    def _unrelated(self, origin: Name, target: str, hint: str | None, known: Sequence[Relationship]) -> Refused:
        schema, name = origin
        using = f"' using the hint '{hint}" if hint else ""
        if known:
            near = closest(target, (one.other[1] for one in known))
            advice = f"Perhaps you meant '{near}' instead of '{target}'." if near else None
            if any(one.other[1] == target for one in known):
                advice = None
        else:
            near = closest(name, (of[1] for of in self.relationships if of[0] == schema))
            advice = f"Perhaps you meant '{near}' instead of '{name}'." if near else None
        return Refused(
            400, "PGRST200", f"Could not find a relationship between '{name}' and '{target}' in the schema cache",
            details=f"Searched for a foreign key relationship between '{name}' and '{target}{using}' in the schema"
            f" '{schema}', but no matches were found.", hint=advice,
        )  # fmt: skip


def _fits(one: Relationship, target: str, hint: str | None) -> bool:
    by_column = len(one.columns) == 1 and one.refers and one.columns[0][0] == target
    if one.of_itself:
        many = not one.refers
        if hint is None:
            return (many and one.other[1] == target) or by_column
        return many and one.other[1] == target and _hinted(one, hint)
    if hint is None:
        return target in (one.other[1], one.constraint) or by_column
    return one.other[1] == target and _hinted(one, hint)


def _hinted(one: Relationship, hint: str) -> bool:
    if one.junction is not None:
        return one.junction.table[1] == hint
    return hint == one.constraint or (len(one.columns) == 1 and hint in one.columns[0])


def _ambiguous(origin: Name, target: str, found: Sequence[Relationship]) -> Refused:
    ways = ", ".join(
        f"'{one.other[1]}!{one.junction.table[1] if one.junction is not None else one.constraint}'" for one in found
    )
    return Refused(
        300, "PGRST201",
        f"Could not embed because more than one relationship was found for '{origin[1]}' and '{target}'",
        details=[_described(one) for one in found],
        hint=f"Try changing '{target}' to one of the following: {ways}. Find the desired relationship in the 'details'"
        " key.",
    )  # fmt: skip


def _described(one: Relationship) -> dict[str, str]:
    if one.junction is not None:
        first, second = one.junction.constraints
        relationship = (
            f"{one.junction.table[1]} using {first}{_listed(pair[1] for pair in one.junction.source)} and"
            f" {second}{_listed(pair[1] for pair in one.junction.target)}"
        )
    else:
        relationship = (
            f"{one.constraint} using {one.table[1]}{_listed(pair[0] for pair in one.columns)} and"
            f" {one.other[1]}{_listed(pair[1] for pair in one.columns)}"
        )
    return {
        "cardinality": one.cardinality,
        "embedding": f"{one.table[1]} with {one.other[1]}",
        "relationship": relationship,
    }


def _listed(names: Iterable[str]) -> str:
    return f"({', '.join(names)})"


NO_SCHEMA: Final = Schema({})
