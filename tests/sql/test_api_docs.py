"""docs/api.md: what the comments of the public functions say is what the functions do."""

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from api_actors import Farm
from psycopg.types.json import Jsonb
from test_rights import FUNCTIONS, parsed

from agent.stack.schema import project_root

sys.path.append(str(project_root() / "scripts"))
api_docs: Any = importlib.import_module("api_docs")

ENTRY_CODES: Final = {"TC401", "TC402", "TC411", "TC420"}
"""Said of an entry in an answer, never raised."""

BY_TRIGGERS: Final = {
    "connect_account": {"TC204"},
    "save_copier": {"TC227", "TC330", "TC331"},
    "save_protection_rule": {"TC332"},
    "set_copier_mode": {"TC227"},
    "set_setting": {"TC215", "TC302", "TC303"},
}
NOT_FROM_HERE: Final = {
    "connect_account": {"TC206"},  # without a wish it places nowhere rather than refuse
    "maintain": {"TC106"},  # of a report that was kept
    "queue_trade_copy": {"TC106"},
    "vps_heartbeat": {"TC106"},
}
"""Raised by what the function calls, but not for it. A setting that is missing (TC200) counts for set_setting only."""


@pytest.fixture
def documented(connection: psycopg.Connection[Any]) -> list[Any]:
    found: list[Any] = api_docs.functions(connection)
    assert len(found) > 35
    return found


@pytest.fixture
def sources(farm: Farm) -> dict[str, str]:
    """The private functions without comments."""
    rows = farm.rows(
        "select proname as name, prosrc as source from pg_proc where pronamespace = 'private'::regnamespace"
    )
    return {row["name"]: re.sub(r"--[^\n]*", "", row["source"]) for row in rows}


def top(keys: Any) -> set[str]:
    return {path for key in keys for path in key.paths if not re.search(r"[.\[(]", path)}


def accepted(source: str) -> set[str] | None:
    """The keys that a function knows, by its source; null: it refuses none."""
    found = re.search(r"refuse_unknown\(\w+, '\w+',\s*(?:array\[([^\]]*)\]|'\{\}')\)", source) or re.search(
        r"jsonb_object_keys\(p_rule\) k\s+where k not in \(([^)]*)\)", source
    )
    return set(re.findall(r"'(\w+)'", found[1] or "")) if found else None


def settable(farm: Farm, source: str) -> set[str]:
    """The columns that save_copier takes."""
    refused = re.search(r"attname not in \(([^)]*)\)", source)
    assert refused is not None
    columns = farm.rows(
        "select attname as name from pg_attribute where attrelid = 'public.copiers'::regclass and attnum > 0"
    )
    return {row["name"] for row in columns} - set(re.findall(r"'(\w+)'", refused[1]))


def reached(sources: dict[str, str], name: str) -> set[str]:
    """The function and every private function that it calls, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [call for call in re.findall(r"private\.(\w+)\(", sources[one]) if call in sources]
    return found


def paths(value: Any, before: str = "") -> Iterator[str]:
    """Every key of an example, as the comments name it: master.currency, items[].kind."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield before + key
            yield from paths(one, f"{before}{key}.")
    elif isinstance(value, list):
        for one in value:
            yield from paths(one, before.removesuffix(".") + "[].")


def strange(value: Any, keys: Any) -> set[str]:
    """Keys of an example that are not documented. Where none beside a key is, the docs leave it to another page."""
    known = {path for key in keys for path in key.paths}
    parents = {path.rpartition(".")[0] for path in known}
    return {path for path in paths(value) if path not in known and path.rpartition(".")[0] in parents}


def test_every_function_that_may_be_called_has_the_four_parts(farm: Farm) -> None:
    rows = farm.rows(api_docs.FUNCTIONS)
    assert {row["name"] for row in rows} == set(parsed(FUNCTIONS))
    parts = ("Request", "Answer", "Errors", "Example")
    assert [(row["name"], part) for row in rows for part in parts if f"\n{part}:" not in (row["comment"] or "")] == []
    for row in rows:
        api_docs.parsed(row)


@pytest.mark.parametrize(
    "comment",
    [
        None,
        "Users: does something.",
        "Somebody: does it.\nRequest: none\nAnswer: none\nErrors: none\nExample: {} -> {}",
        "Users: does it.\nRequest:\n- key: no type\nAnswer: none\nErrors: none\nExample: {} -> {}",
        "Users: does it.\nRequest: none\nAnswer: none\nErrors: none\nExample: {key} -> {}",
    ],
)
def test_a_comment_of_another_form_is_refused(comment: str | None) -> None:
    row = {
        "name": "f",
        "arguments": ["p_request"],
        "types": ["jsonb"],
        "comment": comment,
        "signed_in": True,
        "service": False,
    }
    with pytest.raises(api_docs.FormError, match=r"^f: "):
        api_docs.parsed(row)


def test_a_comment_says_who_may_call(documented: list[Any]) -> None:
    for name, may in parsed(FUNCTIONS).items():
        callers = next(function.callers for function in documented if function.name == name)
        expected = {
            "Service key": may["user"] == "42501",
            "Agents": may["user"] == "TC101",
            "Operators": may["user"] == "TC107",
            "Everybody who is signed in": may["user"] == "ok" and may["agent"] == "ok",
            # whose rows they are decides
            "Users and operators": may["agent"] == "TC105" and may["operator"] == "ok" and may["other user"] == "TC106",
            "Users": may["agent"] == "TC105" and (may["operator"] == "TC106" or may["other user"] == "ok"),
        }
        assert [words for words, fits in expected.items() if fits] == [callers], name


def test_every_code_that_is_named_stands_in_the_list(farm: Farm) -> None:
    listed = set(api_docs.error_meanings())
    named = {
        (row["name"], code) for row in farm.rows(api_docs.FUNCTIONS) for code in re.findall(r"TC\d+", row["comment"])
    }
    assert named
    assert sorted(pair for pair in named if pair[1] not in listed) == []


def test_the_codes_are_those_that_a_function_can_raise(documented: list[Any], sources: dict[str, str]) -> None:
    for function in documented:
        raised = {
            code for name in reached(sources, function.name) for code in re.findall(r"'(TC\d{3})'", sources[name])
        }
        raised -= (
            ENTRY_CODES
            | ({"TC200"} if function.name != "set_setting" else set())
            | NOT_FROM_HERE.get(function.name, set())
        )
        if function.name == "report_executions":
            raised.discard("TC106")  # said of a report
            raised.discard("TC103")
        assert raised | BY_TRIGGERS.get(function.name, set()) == set(function.errors), function.name
        assert list(function.errors) == sorted(function.errors)


def test_the_keys_of_a_request_are_those_that_are_accepted(
    farm: Farm, documented: list[Any], sources: dict[str, str]
) -> None:
    refusing = {function.name for function in documented if "TC301" in function.errors}
    known = {name: keys for name in refusing if (keys := accepted(sources[name])) is not None}
    assert refusing - set(known) == {"save_copier"}
    for function in documented:
        if function.name in known:
            assert top(function.request) == known[function.name], function.name


def test_save_copier_takes_every_column_that_it_is_said_to_take(
    farm: Farm, documented: list[Any], sources: dict[str, str]
) -> None:
    function = next(function for function in documented if function.name == "save_copier")
    columns = settable(farm, sources["save_copier"])
    assert top(function.request) - {"symbols"} <= columns
    assert (api_docs.ANY_COLUMN,) in [key.paths for key in function.request]
    assert set(function.asked) - {"symbols"} <= columns


def test_an_example_is_complete_and_names_nothing_else(documented: list[Any]) -> None:
    for function in documented:
        if function.name != "save_copier":
            assert strange(function.asked, function.request) == set(), function.name
        assert strange(function.answered, function.answer) == set(), function.name
        required = {path for key in function.request if key.requirement == "yes" for path in key.paths}
        assert required & top(function.request) <= set(function.asked), function.name
        sometimes = {path for key in function.answer if key.meaning.startswith("only if ") for path in key.paths}
        assert top(function.answer) - sometimes <= set(function.answered), function.name


def test_the_example_of_preview_copy_is_what_it_answers(farm: Farm, documented: list[Any]) -> None:
    function = next(function for function in documented if function.name == "preview_copy")
    rows = farm.rows("select public.preview_copy(%s) as answer", (Jsonb(function.asked),))
    assert rows[0]["answer"] == function.answered


def test_every_column_of_copiers_has_a_meaning(connection: psycopg.Connection[Any]) -> None:
    lines = api_docs.copier_columns(connection).splitlines()[2:]
    assert len(lines) > 50
    assert [line for line in lines if line.endswith("|  |")] == []
