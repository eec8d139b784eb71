"""Writes the SELECT of a planned request, and the SELECT that counts its rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.stack.rest.condition import IS_VALUES, Condition, Group, columns_of, write
from agent.stack.rest.fragment import NOTHING, Sql, identifier, joined, literal, value
from agent.stack.rest.plan import Node
from agent.stack.rest.query import Field, Order
from agent.stack.rest.refusal import Refused
from agent.stack.rest.scanner import JsonPath


@dataclass(frozen=True, slots=True)
class Output:
    """A column in the result of an embedded table, for the parent that spreads it."""

    name: str
    aggregate: str | None = None
    cast: str | None = None


def read(node: Node) -> Sql:
    """The SELECT of a table with everything embedded in it."""
    selects = [_item(node, one) for one in node.fields]
    joins = NOTHING
    for child in node.children:
        selects += _shown(child)
        joins = joined((part for part in (joins, _join(child)) if part), " ")
    if not selects:
        selects = [identifier(*node.qualifier) + ".*"]
    text = "SELECT " + joined(selects) + " FROM " + node.source
    if joins:
        text = text + " " + joins
    wheres = [*_link(node), *(write_condition(node, one) for one in node.conditions)]
    if wheres:
        text = text + " WHERE " + joined(wheres, " AND ")
    if node.aggregates:
        text = text + _group(node)
    if node.order:
        text = text + " ORDER BY " + joined(_order(node, term) for term in node.order)
    if node.limit is not None:
        text = text + " LIMIT " + value(node.limit)
    if node.offset:
        text = text + " OFFSET " + value(node.offset)
    return text


def count(node: Node) -> Sql:
    """A SELECT with one row for each row that matches, without limit; inner joins become EXISTS."""
    wheres = [
        *_link(node),
        *(_counted(node, one) for one in node.conditions),
        *("EXISTS (" + count(child) + ")" for child in node.children if child.embed and child.embed.join == "inner"),
    ]
    where = " WHERE " + joined(wheres, " AND ") if wheres else NOTHING
    return "SELECT 1 FROM " + node.source + where


def write_condition(node: Node, condition: Condition | Group) -> Sql:
    """The SQL of a filter on a node; `embedded=is.null` asks whether nothing was embedded."""
    if isinstance(condition, Group):
        inner = joined((write_condition(node, one) for one in condition.members), f" {condition.operator.upper()} ")
        return ("NOT (" if condition.negated else "(") + inner + ")"
    child = _embedded(node, condition)
    if child is not None:
        return identifier(child.joined_as) + (" IS DISTINCT FROM NULL" if _present(condition) else
                                              " IS NOT DISTINCT FROM NULL")  # fmt: skip
    return write(condition, lambda name, path: column(node, name, path))


def _counted(node: Node, condition: Condition | Group) -> Sql:
    if isinstance(condition, Group):
        inner = joined((_counted(node, one) for one in condition.members), f" {condition.operator.upper()} ")
        return ("NOT (" if condition.negated else "(") + inner + ")"
    child = _embedded(node, condition)
    if child is not None:
        return ("EXISTS (" if _present(condition) else "NOT EXISTS (") + count(child) + ")"
    return write_condition(node, condition)


def _embedded(node: Node, condition: Condition) -> Node | None:
    if condition.operator != "is" or condition.path or condition.values[0] not in ("null", "not_null"):
        return None
    if node.relation is not None and condition.name in node.relation.columns:
        return None
    return node.child(condition.name)


def _present(condition: Condition) -> bool:
    return (IS_VALUES[condition.values[0]] == "NOT NULL") != condition.negated


def column(node: Node, name: str, path: JsonPath = ()) -> tuple[Sql, bool]:
    """The SQL of a column or of a value inside it, and whether it is a tsvector."""
    plain = identifier(*node.qualifier) + ".*" if name == "*" else identifier(*node.qualifier, name)
    known = node.relation.columns.get(name) if node.relation is not None else None
    if not path:
        return plain, known is not None and known.is_vector
    text = plain if known is not None and known.is_json else "to_jsonb(" + plain + ")"
    for arrow, key in path:
        text = text + arrow + (Sql(str(key)) if isinstance(key, int) else literal(key))
    return text, False


def output_name(field: Field) -> str:
    """The name of a selected column in the result."""
    if field.alias is not None:
        return field.alias
    if field.aggregate is not None:
        return field.aggregate
    keys = [str(key) for _, key in field.path if isinstance(key, str)]
    return keys[-1] if keys else field.name


def needed_columns(node: Node, qualifier: tuple[str, ...]) -> list[Sql]:
    """The columns of a root that its answer needs: selected, tested, ordered by, or leading to what is embedded.

    Computed ones (functions of a row) are asked for by name, because `*` lacks them.
    """
    names = dict.fromkeys(one.name for one in node.fields)
    whole = not names or "*" in names
    for child in node.children:
        if child.link is None:
            continue
        whole = whole or child.link.function is not None
        pairs = child.link.junction.source if child.link.junction is not None else child.link.columns
        names.update((own, None) for own, _ in pairs)
    for condition in node.conditions:
        names.update((name, None) for name in columns_of(condition) if node.child(name) is None)
    names.update((term.name, None) for term in node.order if term.of is None)
    names.pop("*", None)
    if not whole:
        return [identifier(*qualifier, name) for name in names]
    stored = node.relation.columns if node.relation is not None else names
    return [identifier(*qualifier) + ".*", *(identifier(*qualifier, name) for name in names if name not in stored)]


def _item(node: Node, field: Field) -> Sql:
    # What a spread table aggregates is aggregated by its parent.
    hoisted = node.spread and node.to_one
    text = _plain(node, field)
    if field.aggregate is not None and not hoisted:
        inner = Sql("*") if field.name == "*" else text
        text = field.aggregate.upper() + "(" + inner + ")"
        if field.aggregate_cast is not None:
            text = _cast(text, field.aggregate_cast)
    elif field.name == "*":
        return text if field.aggregate is None else Sql("1 AS ") + identifier(output_name(field))
    if field.alias is None and not field.path and field.aggregate is None and field.cast is None:
        return text
    return text + " AS " + identifier(output_name(field))


def _plain(node: Node, field: Field) -> Sql:
    text = column(node, field.name, field.path)[0]
    return text if field.cast is None else _cast(text, field.cast)


def _cast(text: Sql, type_name: str) -> Sql:
    # Without quotes, as types such as `double precision` need it; the scanner lets through only letters and blanks.
    return "CAST(" + text + f" AS {type_name})"


def _shown(child: Node) -> list[Sql]:
    """What the parent selects of an embedded table."""
    rows = identifier(child.joined_as)
    if not child.fields and not child.children:
        return []
    if child.spread:
        return [_spread(child, output) for output in outputs(child)]
    if child.to_one:
        return ["row_to_json(" + rows + ".*)::jsonb AS " + identifier(child.shown)]
    return ["COALESCE(" + rows + "." + rows + ", '[]') AS " + identifier(child.shown)]


def _spread(child: Node, output: Output) -> Sql:
    text = identifier(child.joined_as, output.name)
    if not child.to_one:
        return "COALESCE(" + text + ", '[]') AS " + identifier(output.name)
    if output.aggregate is not None:
        text = output.aggregate.upper() + "(" + text + ")"
        if output.cast is not None:
            text = _cast(text, output.cast)
    return text + " AS " + identifier(output.name)


def outputs(node: Node) -> Iterator[Output]:
    """The columns of a node's result."""
    hoisted = node.spread and node.to_one
    for one in node.fields:
        yield Output(output_name(one), one.aggregate if hoisted else None, one.aggregate_cast if hoisted else None)
    for child in node.children:
        if child.spread:
            yield from (Output(below.name) for below in outputs(child))
        elif child.fields or child.children:
            yield Output(child.shown)


def _join(child: Node) -> Sql:
    rows = identifier(child.joined_as)
    inner = child.embed is not None and child.embed.join == "inner"
    if child.to_one:
        sub, on = read(child), Sql("TRUE")
    elif child.spread:
        lists = joined(
            "json_agg(" + rows + "." + identifier(one.name) + ")::jsonb AS " + identifier(one.name)
            for one in outputs(child)
        )
        sub, on = "SELECT " + lists + " FROM (" + read(child) + ") AS " + rows, rows + " IS NOT NULL"
    else:
        sub = "SELECT json_agg(" + rows + ")::jsonb AS " + rows + " FROM (" + read(child) + ") AS " + rows
        on = rows + " IS NOT NULL"
    kind = "INNER" if inner else "LEFT"
    return f"{kind} JOIN LATERAL (" + sub + ") AS " + rows + " ON " + (on if inner else Sql("TRUE"))


def _link(node: Node) -> Iterable[Sql]:
    """The conditions that tie an embedded row to its parent's."""
    if node.link is None or node.link.function is not None:
        return
    parent = node.parent
    if node.link.junction is None:
        for own, theirs in node.link.columns:
            yield identifier(*parent, own) + " = " + identifier(*node.qualifier, theirs)
        return
    table = node.link.junction.table
    for own, there in node.link.junction.source:
        yield identifier(*parent, own) + " = " + identifier(*table, there)
    for own, there in node.link.junction.target:
        yield identifier(*node.qualifier, own) + " = " + identifier(*table, there)


def _group(node: Node) -> Sql:
    terms = [_plain(node, one) for one in node.fields if one.aggregate is None]
    for child in node.children:
        if child.spread:
            terms += [identifier(child.joined_as, one.name) for one in outputs(child) if one.aggregate is None]
        elif child.fields or child.children:
            terms.append(identifier(child.shown) if child.to_one else identifier(child.joined_as, child.joined_as))
    return " GROUP BY " + joined(terms) if terms else NOTHING


def _order(node: Node, term: Order) -> Sql:
    if term.of is None:
        text = column(node, term.name, term.path)[0]
    else:
        child = node.child(term.of)
        if child is None:
            raise Refused(
                400, "PGRST108", f"'{term.of}' is not an embedded resource in this request",
                hint=f"Verify that '{term.of}' is included in the 'select' query parameter.",
            )  # fmt: skip
        if not child.to_one:
            raise Refused(
                400, "PGRST118", f"A related order on '{term.of}' is not possible",
                details=f"'{node.table[1]}' and '{term.of}' do not form a many-to-one or one-to-one relationship",
            )  # fmt: skip
        text = identifier(child.joined_as, term.name)
        if term.path:
            text = "to_jsonb(" + text + ")"
            for arrow, key in term.path:
                text = text + arrow + (Sql(str(key)) if isinstance(key, int) else literal(key))
    direction = f" {term.direction.upper()}" if term.direction else ""
    nulls = {"nullsfirst": " NULLS FIRST", "nullslast": " NULLS LAST", None: ""}[term.nulls]
    return text + direction + nulls
