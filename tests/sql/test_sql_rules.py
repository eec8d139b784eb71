"""House rules of the SQL that a machine can check: WHERE, search_path, definer rights, comments, lints, advisors."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pglast
import pytest
from api_actors import Farm
from pglast import ast
from pglast.visitors import Visitor

from agent.stack.schema import project_root, schema_files

SCHEMAS = "n.nspname in ('public', 'private')"


#: as in pyproject.toml and biome.json
LINE = 120


def test_a_line_fits_the_width_of_the_house() -> None:
    too_long = [
        f"{path.relative_to(project_root())}:{number}"
        for path in [*schema_files(project_root()), project_root() / "agent" / "stack" / "platform.sql"]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LINE
    ]
    assert not too_long, f"these lines are longer than {LINE} characters"


class _Unbounded(Visitor):
    """Collects updates and deletes without a WHERE, wherever they hide (CTEs included)."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_UpdateStmt(self, _: object, node: ast.UpdateStmt) -> None:
        self._check("update", node)

    def visit_DeleteStmt(self, _: object, node: ast.DeleteStmt) -> None:
        self._check("delete", node)

    def _check(self, verb: str, node: Any) -> None:
        if node.whereClause is None:
            self.found.append(f"{verb} {node.relation.relname}")


def unbounded(statements: str) -> list[str]:
    visitor = _Unbounded()
    visitor(pglast.parse_sql(statements))
    return visitor.found


def expressions(node: object) -> Iterator[tuple[str, int]]:
    """Every piece of SQL inside a parsed PL/pgSQL function, with its parse mode (0: a statement)."""
    if isinstance(node, dict):
        if isinstance(node.get("query"), str):
            yield node["query"], int(node.get("parseMode", 0))
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def statements_of(function: dict[str, Any]) -> Iterator[str]:
    if function["language"] == "sql":
        yield function["body"]
        return
    # pglast knows no types of other schemas than public, and no arrays of rows; neither matters here.
    readable = re.sub(r"\bprivate\.\w+\[\]", "text[]", function["definition"]).replace("private.", "public.")
    for text, mode in expressions(pglast.parse_plpgsql(readable)):
        # Expressions and assignments cannot change a row; what `execute` runs is a string and checked as one.
        if mode == 0:
            yield text
        for literal in re.findall(r"'((?:update|delete from)\s[^']*)'", text, re.IGNORECASE):
            yield re.sub(r"%\w", "x", literal)


def functions(farm: Farm) -> list[dict[str, Any]]:
    return farm.rows(
        "select p.oid::regprocedure::text as name, n.nspname as schema, l.lanname as language, p.prosrc as body,"
        " p.prosecdef as definer, pg_get_functiondef(p.oid) as definition, coalesce(p.proconfig, '{}') as config,"
        " obj_description(p.oid, 'pg_proc') as comment"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang"
        " where n.nspname in ('public', 'private') order by 1"
    )


def test_the_rule_itself_sees_what_it_should() -> None:
    assert unbounded("with gone as (delete from a returning *) update b set c = 1 where d; update e set f = 1") == [
        "update e",
        "delete a",
    ]
    body = (
        "begin delete from a; execute 'update b set c = 1';"
        " for x in update d set e = 1 returning f loop null; end loop; end"
    )
    definition = f"create function f() returns void language plpgsql as $$ declare x int; {body} $$"
    found = [
        hit for text in statements_of({"language": "plpgsql", "definition": definition}) for hit in unbounded(text)
    ]
    assert sorted(found) == ["delete a", "update b", "update d"]


def test_every_update_and_delete_has_a_where(farm: Farm) -> None:
    found = [(f["name"], hit) for f in functions(farm) for text in statements_of(f) for hit in unbounded(text)]
    found += [
        (job["jobname"], hit)
        for job in farm.rows("select jobname, command from cron.job")
        for hit in unbounded(job["command"])
    ]
    assert found == []


def test_every_function_fixes_its_search_path(farm: Farm) -> None:
    assert [f["name"] for f in functions(farm) if 'search_path=""' not in f["config"]] == []


def test_what_the_api_exposes_has_no_definer_rights(farm: Farm) -> None:
    """Hosted's lints 0028 and 0029, and more: not even without a grant."""
    exposed = [f for f in functions(farm) if f["schema"] == "public"]
    assert exposed
    assert [f["name"] for f in exposed if f["definer"]] == []
    assert [
        f["name"] for f in exposed if len(f["body"].strip().splitlines()) > 1 or "private." not in f["body"]
    ] == [], "one-line wrappers"


def test_the_private_schema_is_not_exposed() -> None:
    config = (project_root() / "supabase" / "config.toml").read_text()
    assert re.search(r'^schemas = \["public"\]$', config, re.MULTILINE)


def test_functions_that_the_api_exposes_say_what_they_are_for(farm: Farm) -> None:
    assert [f["name"] for f in functions(farm) if f["schema"] == "public" and not f["comment"]] == []


def test_every_table_says_what_it_is_for(farm: Farm) -> None:
    rows = farm.rows(
        "select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v') and not c.relispartition"
        " and obj_description(c.oid, 'pg_class') is null"
    )
    assert rows == []


def test_schema_files_touch_the_platforms_schemas_only_with_policies() -> None:
    ddl = re.compile(
        r"^\s*(?:create|alter|drop)\s+(?!policy)[^;]*?\b(?:on|table|function|schema|into)\s+(?:auth|realtime|storage|vault|cron)\b",
        re.MULTILINE | re.IGNORECASE,
    )
    files = schema_files()
    assert [(file.name, found.group(0)) for file in files for found in ddl.finditer(file.read_text())] == []


def test_every_error_code_stands_in_the_list() -> None:
    listed = set(re.findall(r"^\| (TC\d{3}) \|", (project_root() / "docs" / "errors.md").read_text(), re.MULTILINE))
    used = {
        (code, file.name) for file in schema_files() for code in re.findall(r"errcode = '(TC\d{3})'", file.read_text())
    }
    assert used
    assert sorted(pair for pair in used if pair[0] not in listed) == []


def test_every_growing_table_has_a_retention(farm: Farm) -> None:
    settings = farm.rows("select key from public.system_config where key like 'retention_days.%%'")
    keys = {row["key"].removeprefix("retention_days.") for row in settings}
    tables = farm.rows(
        "select c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'private') and c.relkind in ('r', 'p') and not c.relispartition"
        " and exists (select from pg_attribute a where a.attrelid = c.oid"
        " and (a.attidentity <> '' or a.attname in ('at', 'received_at', 'closed_at')))"
    )
    growing = {row["name"] for row in tables}
    assert growing - {"position_links"} <= keys, "position_links go with the positions"


@pytest.mark.own_database
def test_the_advisors_find_nothing_at_level_warn(farm: Farm) -> None:
    program = project_root() / "node_modules" / ".bin" / "supabase"
    if not program.exists():
        pytest.skip("the Supabase CLI is not installed: make setup")
    run = subprocess.run(
        [
            program, "db", "advisors", f"--remote={farm.database.dsn_of('postgres')}", "--level", "warn", "--fail-on",
            "none",
            "--output-format", "json", "--yes",
        ],
        capture_output=True, text=True, timeout=90, check=False, cwd=project_root(),
        env={"PATH": os.environ["PATH"], "HOME": str(Path.home()), "DO_NOT_TRACK": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert advice(run.stdout) == [], run.stdout


def advice(output: str) -> list[str]:
    """`name: detail` of each finding; the CLI says in a sentence that there are none."""
    start = min((i for i in (output.find("["), output.find("{")) if i >= 0), default=-1)
    if start < 0:
        assert "no issues" in output.lower(), output
        return []
    found = json.loads(output[start:])
    rows = found if isinstance(found, list) else next((v for v in found.values() if isinstance(v, list)), [])
    return [f"{row['name']}: {row['detail']}" for row in rows]
