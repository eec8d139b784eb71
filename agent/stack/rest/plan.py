"""Joins a parsed query with the schema: a tree of tables, each with its columns, filters and its way to its parent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.stack.rest.condition import Condition, Group, refuse_unsuitable_filter
from agent.stack.rest.fragment import Sql, identifier
from agent.stack.rest.query import Embed, Field, Order, Path, Query, embeds
from agent.stack.rest.refusal import Refused
from agent.stack.rest.relation import Name, Relation, Relationship, Schema

#: the name of the rows that a function returned or that a write changed
SOURCE: Final = "pgrst_source"


@dataclass(slots=True)
class Node:
    """One table of a request.

    `qualifier`: the names before a column's name. `link` and `embed`: how it is embedded; None for the root.
    `joined_as`: the name of its rows within its parent.
    """

    source: Sql
    qualifier: tuple[str, ...]
    relation: Relation | None
    table: Name
    fields: list[Field]
    conditions: list[Condition | Group] = field(default_factory=list)
    order: tuple[Order, ...] = ()
    limit: int | None = None
    offset: int = 0
    children: list["Node"] = field(default_factory=list)
    link: Relationship | None = None
    embed: Embed | None = None
    joined_as: str = ""
    #: the qualifier of its parent
    parent: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The name under which it appears in its parent."""
        return "" if self.embed is None else self.embed.shown

    @property
    def to_one(self) -> bool:
        """Whether its parent has at most one row of it."""
        return self.link is not None and self.link.to_one

    @property
    def spread(self) -> bool:
        """Whether its columns appear among those of its parent."""
        return self.embed is not None and self.embed.spread

    def child(self, shown: str) -> "Node | None":
        """The embedded table of this name."""
        return next((node for node in self.children if node.shown == shown), None)

    @property
    def aggregates(self) -> bool:
        """Whether it selects an aggregate, itself or through what it spreads."""
        return any(one.aggregate for one in self.fields) or any(
            child.spread and child.to_one and child.aggregates for child in self.children
        )


def root_of_table(relation: Relation) -> Node:
    """A node that reads a table or view."""
    return Node(identifier(*relation.qualified), relation.qualified, relation, relation.qualified, [])


def root_of_source(relation: Relation | None, table: Name) -> Node:
    """A node that reads the rows of a function or of a write. `table`: the name that errors show."""
    return Node(identifier(SOURCE), (SOURCE,), relation, table, [])


def plan(schema: Schema, query: Query, root: Node, *, aggregates: bool) -> Node:
    """Fill the root and its embedded tables from the query. Raises Refused.

    `aggregates`: whether aggregate functions may be used.
    """
    _select(schema, root, query.select, depth=1)
    for path, conditions in query.conditions.items():
        node = _at(root, path)
        node.conditions = list(conditions)
        for one in _flat(conditions):
            if (
                not one.path
                and _is_embedded(node, one.name)
                and not (one.operator == "is" and one.values[0] in ("null", "not_null"))
            ):
                raise refuse_unsuitable_filter(one.name)
    for path, order in query.order.items():
        _at(root, path).order = order
    for path, limit in query.limit.items():
        if limit < 0:
            raise Refused(
                416, "PGRST103", "Requested range not satisfiable",
                details="Limit should be greater than or equal to zero.",
            )  # fmt: skip
        _at(root, path).limit = limit
    for path, offset in query.offset.items():
        _at(root, path).offset = offset
    if not aggregates and _any_aggregate(root):
        raise Refused(400, "PGRST123", "Use of aggregate functions is not allowed")
    return root


def limit_rows(node: Node, most: int) -> None:
    """Give a node and all embedded ones at most so many rows."""
    node.limit = most if node.limit is None else min(most, node.limit)
    for child in node.children:
        limit_rows(child, most)


def _is_embedded(node: Node, name: str) -> bool:
    return node.child(name) is not None and (node.relation is None or name not in node.relation.columns)


def _flat(conditions: Sequence[Condition | Group]) -> list[Condition]:
    found: list[Condition] = []
    for one in conditions:
        found += [one] if isinstance(one, Condition) else _flat(one.members)
    return found


def _select(schema: Schema, node: Node, select: Sequence[Field | Embed], depth: int) -> None:
    node.fields = [item for item in select if isinstance(item, Field)]
    for embed in embeds(select):
        link = schema.relationship(node.table, embed.name, embed.hint)
        alias = f"{link.other[1]}_{depth}"
        source = identifier(*link.other) + " AS " + identifier(alias)
        if link.function is not None:
            row = identifier(node.qualifier[-1]) + "::" + identifier(*link.table)
            source = identifier(*link.function) + "(" + row + ") AS " + identifier(alias)
        elif link.junction is not None:
            source = source + ", " + identifier(*link.junction.table)
        child = Node(
            source, (alias,), schema.relations.get(link.other), link.other, [], link=link, embed=embed,
            joined_as=f"{node.table[1]}_{embed.shown}_{depth}", parent=node.qualifier,
        )  # fmt: skip
        _select(schema, child, embed.select, depth + 1)
        node.children.append(child)
    if node.aggregates or node.spread:
        node.fields = _without_star(node)


def _without_star(node: Node) -> list[Field]:
    """The fields with `*` replaced by the table's columns."""
    if node.relation is None:
        return node.fields
    found: list[Field] = []
    for one in node.fields:
        if one.name == "*" and one.aggregate is None:
            found += [Field(name) for name in node.relation.columns]
        else:
            found.append(one)
    return found


def _any_aggregate(node: Node) -> bool:
    return any(one.aggregate for one in node.fields) or any(_any_aggregate(child) for child in node.children)


def _at(root: Node, path: Path) -> Node:
    node = root
    for name in path:
        child = node.child(name) or next((one for one in node.children if one.embed and one.embed.name == name), None)
        if child is None:
            raise Refused(
                400, "PGRST108", f"'{name}' is not an embedded resource in this request",
                hint=f"Verify that '{name}' is included in the 'select' query parameter.",
            )  # fmt: skip
        node = child
    return node
