"""Reads tables, views, keys and relationships of the exposed schemas from Postgres' catalog."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection

from agent.stack.rest.relation import Column, Junction, Name, Relation, Relationship, Schema

RELATIONS: Final = """
select c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text,
  (select array_agg(k.attname::text order by u.place) from pg_catalog.pg_constraint p,
    unnest(p.conkey) with ordinality u(number, place)
    join pg_catalog.pg_attribute k on k.attrelid = c.oid and k.attnum = u.number
    where p.conrelid = c.oid and p.contype = 'p'),
  (select r.ev_action::text from pg_catalog.pg_rewrite r
    where c.relkind in ('v', 'm') and r.ev_class = c.oid and r.rulename = '_RETURN')
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'v', 'm', 'f', 'p') and not c.relispartition and n.nspname = any (%s)
order by n.nspname, c.relname
"""
COLUMNS: Final = """
select a.attrelid::bigint, a.attnum::integer, a.attname::text,
  pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(t.typname),
  case
    when a.attgenerated <> '' then null
    when a.attidentity = 'd' then (select pg_catalog.format('nextval(%%L::regclass)', s.objid::regclass)
      from pg_catalog.pg_depend s
      where s.refobjid = c.oid and s.refobjsubid = a.attnum and s.deptype = 'i'
        and s.classid = 'pg_catalog.pg_class'::regclass and s.refclassid = 'pg_catalog.pg_class'::regclass)
    when d.adbin is null then pg_catalog.pg_get_expr(t.typdefaultbin, 0)
    else pg_catalog.pg_get_expr(d.adbin, d.adrelid)
  end,
  coalesce(b.typname, t.typname) in ('json', 'jsonb'), coalesce(b.typname, t.typname) = 'tsvector'
from pg_catalog.pg_attribute a
join pg_catalog.pg_class c on c.oid = a.attrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_type t on t.oid = a.atttypid
join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
left join pg_catalog.pg_type b on b.oid = t.typbasetype and t.typbasetype <> 0
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'v', 'm', 'f', 'p') and n.nspname = any (%s)
order by a.attrelid, a.attnum
"""
FOREIGN_KEYS: Final = """
select f.conname::text, f.conrelid::bigint, f.confrelid::bigint, f.conkey::integer[], f.confkey::integer[],
  exists (select from pg_catalog.pg_constraint u where u.conrelid = f.conrelid and u.contype in ('p', 'u')
    and u.conkey @> f.conkey and u.conkey <@ f.conkey)
from pg_catalog.pg_constraint f
where f.contype = 'f' and f.conparentid = 0
order by f.conname
"""
# Functions of one row of a table that return rows of a table: relationships that somebody wrote as a function.
COMPUTED: Final = """
select n.nspname::text, p.proname::text, an.nspname::text, ac.relname::text, rn.nspname::text, rc.relname::text,
  not p.proretset or p.prorows = 1
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_class ac on ac.reltype = p.proargtypes[0] and ac.relkind <> 'c'
join pg_catalog.pg_namespace an on an.oid = ac.relnamespace
join pg_catalog.pg_class rc on rc.reltype = p.prorettype and rc.relkind <> 'c'
join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
where p.pronargs = 1 and n.nspname = any (%s) and an.nspname = any (%s) and rn.nspname = any (%s)
"""
_TOKEN: Final = re.compile(r"\\.|[{}]|:targetList|:resno (\d+)|:resorigtbl (\d+)|:resorigcol (\d+)")

Place = tuple[int, int]


async def read_schema(connection: AsyncConnection, schemas: Sequence[str]) -> Schema:
    """Read everything again: some ten milliseconds for a hundred tables. Raises psycopg.Error."""
    exposed = list(schemas)
    cursor = await connection.execute(RELATIONS, (exposed,))
    found = await cursor.fetchall()
    cursor = await connection.execute(COLUMNS, (exposed,))
    columns: dict[int, dict[int, Column]] = defaultdict(dict)
    for oid, number, name, type_name, default, is_json, is_vector in await cursor.fetchall():
        columns[oid][number] = Column(name, type_name, default, is_json, is_vector)
    origins = _origins({oid: rule for oid, _, _, _, _, rule in found if rule is not None})
    keys = {oid: key for oid, _, _, _, key, _ in found if key is not None}
    relations = {}
    for oid, schema, name, kind, key, _ in found:
        own = tuple(key or ()) if kind not in ("v", "m") else _view_key(oid, columns, origins, keys)
        relations[oid] = Relation(schema, name, {c.name: c for c in columns[oid].values()}, own)
    cursor = await connection.execute(FOREIGN_KEYS)
    foreign_keys = [ForeignKey(*row) for row in await cursor.fetchall()]
    links = _links(foreign_keys, relations, columns, origins)
    links += _junctions(links, relations)
    cursor = await connection.execute(COMPUTED, (exposed, exposed, exposed))
    for schema, function, of_schema, of_name, to_schema, to_name, to_one in await cursor.fetchall():
        links.append(
            Relationship(
                (of_schema, of_name), (to_schema, to_name), "many-to-one" if to_one else "one-to-many", function,
                function=(schema, function),
            )
        )  # fmt: skip
    by_table: dict[Name, list[Relationship]] = defaultdict(list)
    for link in links:
        by_table[link.table].append(link)
    return Schema(
        {relation.qualified: relation for relation in relations.values()},
        {table: tuple(known) for table, known in by_table.items()},
    )


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """One constraint. `unique`: at most one row refers to each row of the other table."""

    name: str
    table: int
    other: int
    columns: Sequence[int]
    others: Sequence[int]
    unique: bool


def _links(
    foreign_keys: Sequence[ForeignKey],
    relations: Mapping[int, Relation],
    columns: Mapping[int, Mapping[int, Column]],
    origins: Mapping[int, Mapping[int, Place]],
) -> list[Relationship]:
    """Relationships in both directions; a view has those of the columns that it passes through."""
    passed: dict[Place, dict[int, int]] = defaultdict(dict)
    for view, by_column in origins.items():
        for column, place in by_column.items():
            passed[place].setdefault(view, column)
    links = []
    for key in foreign_keys:
        for table, own in _stand_ins(key.table, key.columns, passed):
            for other, theirs in _stand_ins(key.other, key.others, passed):
                if table not in relations or other not in relations:
                    continue
                pairs = tuple(
                    (columns[table][one].name, columns[other][two].name) for one, two in zip(own, theirs, strict=True)
                )
                links += _both_ways(key, relations[table].qualified, relations[other].qualified, pairs)
    return links


def _both_ways(key: ForeignKey, table: Name, other: Name, pairs: tuple[tuple[str, str], ...]) -> list[Relationship]:
    there = Relationship(table, other, "one-to-one" if key.unique else "many-to-one", key.name, pairs, refers=True)
    swapped = tuple((theirs, own) for own, theirs in pairs)
    return [there, Relationship(other, table, "one-to-one" if key.unique else "one-to-many", key.name, swapped)]


def _stand_ins(
    table: int, numbers: Sequence[int], passed: Mapping[Place, Mapping[int, int]]
) -> Iterator[tuple[int, list[int]]]:
    """The table itself, and each view that shows all these columns of it."""
    yield table, list(numbers)
    by_view = [passed.get((table, number), {}) for number in numbers]
    for view in by_view[0]:
        if all(view in shown for shown in by_view):
            yield view, [shown[view] for shown in by_view]


def _junctions(links: Sequence[Relationship], relations: Mapping[int, Relation]) -> list[Relationship]:
    """Many-to-many: a table whose primary key contains two foreign keys connects the tables that these refer to."""
    keys = {relation.qualified: set(relation.key) for relation in relations.values()}
    referring = defaultdict(list)
    for link in links:
        if link.refers and {own for own, _ in link.columns} <= keys.get(link.table, set()):
            referring[link.table].append(link)
    found = []
    for table, sides in referring.items():
        for one in sides:
            for two in sides:
                if one is two or (one.constraint == two.constraint and one.columns == two.columns):
                    continue
                junction = Junction(
                    table, (one.constraint, two.constraint), tuple((theirs, own) for own, theirs in one.columns),
                    tuple((theirs, own) for own, theirs in two.columns),
                )  # fmt: skip
                found.append(Relationship(one.other, two.other, "many-to-many", one.constraint, junction=junction))
    return found


def _origins(rules: Mapping[int, str]) -> dict[int, dict[int, Place]]:
    """Which column of which table each column of a view passes through, also through views of views."""
    direct = {view: dict(_targets(rule)) for view, rule in rules.items()}

    def origin(place: Place, depth: int = 0) -> Place:
        below = direct.get(place[0], {}).get(place[1])
        return place if below is None or depth > 20 else origin(below, depth + 1)

    return {view: {column: origin(place) for column, place in found.items()} for view, found in direct.items()}


def _targets(rule: str) -> Iterator[tuple[int, Place]]:
    """(column, (table, its column)) of a view's outermost SELECT, in the text of its rewrite rule."""
    depth, inside, number, table = 0, False, 0, 0
    for token in _TOKEN.finditer(rule):
        text = token[0]
        if text == "{":
            depth += 1
        elif text == "}":
            depth -= 1
            inside = inside and depth >= 1
        elif text == ":targetList":
            inside = inside or depth == 1
        elif inside and depth == 2:
            if token[1] is not None:
                number = int(token[1])
            elif token[2] is not None:
                table = int(token[2])
            elif token[3] is not None and table and int(token[3]):
                yield number, (table, int(token[3]))


def _view_key(
    view: int,
    columns: Mapping[int, Mapping[int, Column]],
    origins: Mapping[int, Mapping[int, Place]],
    keys: Mapping[int, Sequence[str]],
) -> tuple[str, ...]:
    """A view has the primary key of a table of which it shows all key columns."""
    shown: dict[int, dict[str, str]] = defaultdict(dict)
    for number, (table, column) in origins.get(view, {}).items():
        if table in keys and column in columns[table] and number in columns[view]:
            shown[table].setdefault(columns[table][column].name, columns[view][number].name)
    for table, by_column in shown.items():
        if all(name in by_column for name in keys[table]):
            return tuple(by_column[name] for name in keys[table])
    return ()
