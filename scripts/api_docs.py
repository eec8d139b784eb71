"""Write docs/api.md from the comments in the schema, on a database of its own: `make api`. `--check` only compares.

The text about a public function is its SQL comment in supabase/schemas/, in a form that is also readable in Studio (who
may call it, then four parts):

    Users: switches a copier.
    Request:
    - copier_id (uuid; required): copier of the caller
    - mode (text; required; on, monitor or off): what it does from now on
    Answer:
    - mode (text): what holds now
    Errors: TC001 TC106
    Example: {"copier_id": "…", "mode": "off"} -> {"mode": "off"}

In brackets: the type, whether the key is required ("required", or "required" and when), the allowed values. Several
keys may share a line; a key without a dot is a sibling of the first key. Write `Request: none` and `Errors: none` if
there are none.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from database_types import scratch_database
from psycopg.rows import dict_row

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
ERRORS = ROOT / "docs" / "errors.md"

FORM = re.compile(
    r"(?P<callers>Users|Users and operators|Everybody who is signed in|Operators|Agents|Service key): (?P<words>.+?)\n"
    r"Request:(?P<request>.*?)\nAnswer:(?P<answer>.*?)\nErrors: (?P<errors>[^\n]+)\n"
    r"Example: (?P<asked>.+?)\s*-> (?P<answered>.+)",
    re.DOTALL,
)
LINE = re.compile(r"- (?P<keys>.+?) \((?P<brackets>.+?)\): (?P<meaning>.+)")
ANY_COLUMN = "(any other column of copiers)"

WIDTH = 110

FUNCTIONS = """
    select p.proname as name, p.proargnames as arguments, p.proargtypes::regtype[]::text[] as types,
      obj_description(p.oid, 'pg_proc') as comment,
      has_function_privilege('authenticated', p.oid, 'execute') as signed_in,
      has_function_privilege('service_role', p.oid, 'execute') as service
    from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and (has_function_privilege('authenticated', p.oid, 'execute')
        or has_function_privilege('service_role', p.oid, 'execute'))
    order by p.proname
"""
COLUMNS = """
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, not a.attnotnull as nullable,
      pg_get_expr(d.adbin, d.adrelid) as default, col_description(a.attrelid, a.attnum) as meaning
    from pg_catalog.pg_attribute a left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = 'public.copiers'::regclass and a.attnum > 0 and not a.attisdropped
    order by a.attnum
"""
RULES = """
    select array_agg(a.attname::text order by a.attnum) as columns, obj_description(k.oid, 'pg_constraint') as words
    from pg_catalog.pg_constraint k
    join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = any (k.conkey)
    where k.conrelid = 'public.copiers'::regclass and k.contype = 'c'
      and obj_description(k.oid, 'pg_constraint') is not null
    group by k.oid, k.conname order by cardinality(k.conkey), k.conname
"""
#: save_copier's source contains the list of columns that it refuses
SAVE_COPIER = "select prosrc as source from pg_catalog.pg_proc where oid = 'private.save_copier(jsonb)'::regprocedure"

INTRODUCTION = """# The API

<!-- Made by `make api` from the comments in supabase/schemas/. Do not edit. -->

Every change is made by calling a function of the database. Tables and views are read-only, with `GET /rest/v1/<table>`:
users see their own rows, operators see all rows. Their numbers are JSON numbers, exactly as stored; most languages read
them as binary fractions, so ask for text where every digit counts (`?select=lots::text`).

The contract between agents and the database is on a separate page, [protocol.md](protocol.md); this page only lists
those functions.

## How to call a function

```http
POST /rest/v1/rpc/set_copier_mode
apikey: <publishable key of the project>
Authorization: Bearer <access token of the user who is signed in>
Content-Type: application/json

{"p_request": {"copier_id": "7d3c0e11-94b2-4f6a-8c55-1e2d3f4a5b01", "mode": "monitor"}}
```

* Nearly every function has one argument, an object (`jsonb`), and returns one object. The argument's name is the only
  key of the body; it is usually `p_request`, and each function below names it. With a Supabase client:
  `supabase.rpc("set_copier_mode", { p_request: { … } })`.
* supabase-js on Node before version 22 needs a WebSocket of its own, or `createClient` fails: install `ws`, then
  `createClient(url, key, { realtime: { transport: ws } })`. Browsers, Deno and Node 22 have one.
* Users, operators and agents send the publishable key and their own access token. Send the project's secret key (the
  *service key*) as `apikey` only, without `Authorization`; send a legacy key, which begins with `ey`, as both. Use the
  secret key only on servers, never in a browser.
* Lots, prices and money are decimal strings such as `"0.5"`: a *number* below is such a string, or a JSON number.
  Times are RFC 3339.
* An unknown key is refused by every function that lists `TC301` among its errors, so that a misspelt key does not look
  accepted. Other functions ignore unknown keys.

## How errors look

A call that fails changes nothing. The response has a status of 400 or above and this body:

```json
{"code": "TC303", "message": "set_copier_mode: mode is of, but must be on, monitor or off",
 "details": null, "hint": "off freezes open copies; on and monitor keep them in step with the master."}
```

`code` is one of [errors.md](errors.md), or a code of Postgres or PostgREST: `42501` when the caller may not call this
function; `40001`, `40P01`, `55P03` or `57014` when another transaction holds a lock, or the call timed out: try again.
"""

PARTS: tuple[tuple[str, str, frozenset[str]], ...] = (
    (
        "Functions for users",
        "Called by signed-in users for their own accounts, copiers and rules.",
        frozenset({"Users", "Users and operators", "Everybody who is signed in"}),
    ),
    (
        "Functions for operators",
        "Called by a signed-in operator or with the service key. Other callers are refused with `TC107`.",
        frozenset({"Operators"}),
    ),
    (
        "Functions for agents",
        "Called by an agent, signed in as the auth user of its VPS. [protocol.md](protocol.md) is the contract: it"
        " says when to call them and what list entries contain.",
        frozenset({"Agents"}),
    ),
    (
        "Functions for the service key",
        "Called with the service key only: by the Edge Function `enroll` and by the command line.",
        frozenset({"Service key"}),
    ),
)


class FormError(Exception):
    """A comment does not have the form above; the message names the function and the problem."""


@dataclass(frozen=True, slots=True)
class Key:
    """One line with keys of the same type. `requirement`: "" (optional), "yes", or when they are required."""

    paths: tuple[str, ...]
    type: str
    requirement: str
    allowed: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    arguments: tuple[str, ...]
    takes_json: bool
    signed_in: bool
    service: bool
    callers: str
    words: str
    request: tuple[Key, ...]
    answer: tuple[Key, ...]
    errors: tuple[str, ...]
    asked: Any
    answered: Any

    @property
    def body(self) -> Any:
        """The example's request body: a jsonb argument is one key of the body; other arguments are its keys."""
        return {self.arguments[0]: self.asked} if self.takes_json else self.asked


def parsed(row: dict[str, Any]) -> Function:
    """Raises FormError."""
    name, comment = row["name"], (row["comment"] or "").replace("\n  ", " ")
    found = FORM.fullmatch(comment)
    if found is None:
        raise FormError(
            f"{name}: its comment must say who may call it, and contain Request, Answer, Errors and Example"
            f" (scripts/api_docs.py)"
        )
    try:
        asked, answered = json.loads(found["asked"]), json.loads(found["answered"])
    except ValueError as error:
        raise FormError(f"{name}: its example is not JSON: {error}") from error
    return Function(
        name=name,
        arguments=tuple(row["arguments"] or ()),
        takes_json=row["types"] == ["jsonb"],
        signed_in=row["signed_in"],
        service=row["service"],
        callers=found["callers"],
        words=found["words"].replace("\n", " "),
        request=keys_of(name, found["request"]),
        answer=keys_of(name, found["answer"]),
        errors=() if found["errors"] == "none" else tuple(found["errors"].split()),
        asked=asked,
        answered=answered,
    )


def keys_of(name: str, text: str) -> tuple[Key, ...]:
    if text.strip() == "none":
        return ()
    keys: list[Key] = []
    for line in text.strip().splitlines():
        if line.startswith(f"- {ANY_COLUMN}: "):
            keys.append(Key((ANY_COLUMN,), "", "", "", line.partition(": ")[2]))
            continue
        found = LINE.fullmatch(line)
        if found is None:
            raise FormError(
                f"{name}: a line is not of the form `- key (type; required; what is allowed): meaning`: {line}"
            )
        kind, *rest = found["brackets"].split("; ")
        requirement = ""
        if rest and rest[0].startswith("required"):
            requirement = rest.pop(0).removeprefix("required").strip() or "yes"
        first, *others = found["keys"].split(", ")
        beside = first.rpartition(".")[0]
        paths = (first, *(other if "." in other or not beside else f"{beside}.{other}" for other in others))
        keys.append(Key(paths, kind, requirement, "; ".join(rest), found["meaning"]))
    return tuple(keys)


def functions(connection: psycopg.Connection[Any]) -> list[Function]:
    """Every function of the schema public that anybody may call. Raises FormError."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [parsed(row) for row in cursor.execute(FUNCTIONS).fetchall()]


def error_meanings() -> dict[str, str]:
    return dict(re.findall(r"^\| (TC\d{3}) \| (.+?) \| ", ERRORS.read_text(), re.MULTILINE))


def anchor(heading: str) -> str:
    """The anchor that GitHub generates for a heading."""
    return heading.lower().replace(" ", "-")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def pretty(value: Any, indent: int = 0) -> str:
    """JSON, with line breaks only where it would be too wide."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= WIDTH or not value or not isinstance(value, dict | list):
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {pretty(one, indent + 2)}" for key, one in value.items()]
    else:
        parts = [pretty(one, indent + 2) for one in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(inner + part for part in parts) + "\n" + " " * indent + closing


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def callers_of(function: Function) -> str:
    if function.callers == "Service key":
        return "the service key"
    service = ", the service key" if function.service else ""
    if function.callers == "Users and operators":
        return "users about their own, operators about anybody's" + service
    return function.callers[0].lower() + function.callers[1:] + service


def argument_of(function: Function) -> str:
    if not function.arguments:
        return "Argument: none; the body is `{}`."
    if function.takes_json:
        return f"Argument: `{function.arguments[0]}`."
    return f"Arguments: {', '.join(f'`{name}`' for name in function.arguments)}, which are keys of the body itself."


def named(key: Key) -> str:
    if key.paths == (ANY_COLUMN,):
        return f"any other column of [`copiers`](#{anchor('Columns of copiers')})"
    return ", ".join(f"`{path}`" for path in key.paths)


def section(function: Function, meanings: dict[str, str]) -> str:
    text = (
        f"### {function.name}\n\n{capital(function.words)}\n\nMay be called by: {callers_of(function)}."
        f" {argument_of(function)}\n"
    )
    if function.request:
        rows = [(named(key), key.type, key.requirement or "no", key.allowed, key.meaning) for key in function.request]
        text += "\n" + table(("request", "type", "required", "allowed", "meaning"), rows)
    else:
        text += "\nThe request has no keys.\n"
    text += "\n" + table(
        ("answer", "type", "values", "meaning"),
        [(named(key), key.type, key.allowed, key.meaning) for key in function.answer],
    )
    errors = [(code, meanings.get(code, "")) for code in function.errors]
    entries = sorted({code for key in function.answer for code in re.findall(r"TC\d{3}", key.allowed)})
    errors += [(f"{code}, in an answer", meanings.get(code, "")) for code in entries]
    if errors:
        text += "\n" + table(("error", "what happened"), errors)
    else:
        text += "\nIt raises no error of its own.\n"
    return text + f"\n```json\n{pretty(function.body)}\n```\nanswers\n```json\n{pretty(function.answered)}\n```\n"


def copier_columns(connection: psycopg.Connection[Any]) -> str:
    with connection.cursor(row_factory=dict_row) as cursor:
        columns = cursor.execute(COLUMNS).fetchall()
        rules = cursor.execute(RULES).fetchall()
        source = cursor.execute(SAVE_COPIER).fetchone()
    found = re.search(r"attname not in \(([^)]*)\)", source["source"] if source else "")
    if found is None:
        raise FormError("save_copier: the list of columns that it refuses was not found in its source")
    refused = set(re.findall(r"'(\w+)'", found[1]))
    rows = []
    for column in columns:
        name = column["name"]
        limits = [allowed(name, rule["columns"], rule["words"]) for rule in rules if name in rule["columns"]]
        limits = list(dict.fromkeys(limits)) or [
            {"boolean": "true or false", "time without time zone": 'such as "08:30"'}.get(column["type"], "")
        ]
        if column["nullable"] and name not in refused and "null" not in "".join(limits):
            limits[-1] = f"{limits[-1]}, or null".removeprefix(", ")
        default = "set by the database" if name in refused else default_of(column)
        rows.append((f"`{name}`", type_of(column["type"]), "; ".join(limits), default, column["meaning"] or ""))
    return table(("column", "type", "allowed", "default", "meaning"), rows)


def allowed(name: str, columns: list[str], words: str) -> str:
    """The text of a constraint, which save_copier uses in its error message, rewritten for the row of one column."""
    text = re.sub(r"^must (?:be |have |fit together: |go together: )", "", words)
    others = [f"`{other}`" for other in columns if other != name]
    return f"with {' and '.join(others)}: {text}" if others else text


def type_of(sql: str) -> str:
    names = {
        "text[]": "list of texts",
        "integer[]": "list of integers",
        "numeric": "number",
        "time without time zone": "time of day",
    }
    return names.get(sql, "time" if sql.startswith("timestamp") else sql)


def default_of(column: dict[str, Any]) -> str:
    expression: str | None = column["default"]
    if expression is None:
        return "null" if column["nullable"] else "none: it must be given"
    if "(" in expression:
        return {"gen_random_uuid()": "a new one"}.get(expression, expression)
    value = expression.partition("::")[0].strip("'")
    if column["type"].endswith("[]"):
        value = "[" + value.strip("{}").replace(",", ", ") + "]"
    return f"`{value}`" if value else "empty"


def page(connection: psycopg.Connection[Any]) -> str:
    """The whole page. Raises FormError."""
    found, meanings = functions(connection), error_meanings()
    unknown = sorted({code for function in found for code in function.errors if code not in meanings})
    if unknown:
        raise FormError(f"not in {ERRORS.name}: {', '.join(unknown)}")
    text = INTRODUCTION
    for heading, words, callers in PARTS:
        chosen = [function for function in found if function.callers in callers]
        rows = [(f"[{function.name}](#{anchor(function.name)})", capital(function.words)) for function in chosen]
        text += f"\n## {heading}\n\n{words}\n\n" + table(("function", "what it does"), rows)
        text += "".join("\n" + section(function, meanings) for function in chosen)
    text += "\n## Columns of copiers\n\n"
    text += "The columns of the table. `save_copier` accepts all of them except those set by the database.\n\n"
    return text + copier_columns(connection)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say whether the file is up to date; write nothing")
    check = parser.parse_args().check
    try:
        with scratch_database() as database, database.connect() as connection:
            text = page(connection)
    except FormError as error:
        raise SystemExit(str(error)) from error
    if PAGE.exists() and PAGE.read_text() == text:
        print(f"{PAGE.name} is up to date")
        return 0
    if check:
        print(f"{PAGE.name} differs from the schema: run `make api`", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
