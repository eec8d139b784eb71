"""The folders of supabase/schemas: references run one way, from later folders to earlier ones, and never in a
circle."""

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from agent.stack.schema import project_root, schema_files

SCHEMAS = project_root() / "supabase" / "schemas"
MADE = re.compile(
    r"^create (?:or replace |unlogged |materialized |recursive )*"
    r"(?:function|procedure|table|view|type|domain|sequence) (?:if not exists )?((?:private|public)\.\w+)",
    re.MULTILINE,
)
NAME = re.compile(r"\b(?:private|public)\.\w+")
COMMENT = re.compile(r"--[^\n]*")


def name_of(file: Path) -> str:
    return str(file.relative_to(SCHEMAS))


def code_of(file: Path) -> str:
    return COMMENT.sub("", file.read_text())


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return schema_files()


@pytest.fixture(scope="module")
def homes(files: list[Path]) -> Mapping[str, str]:
    """object → the file that makes it"""
    return {made: name_of(file) for file in files for made in MADE.findall(code_of(file))}


def references(files: list[Path], homes: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(file, another file that it refers to, by which name)"""
    for file in files:
        for name in sorted(set(NAME.findall(code_of(file)))):
            home = homes.get(name)
            if home is not None and home != name_of(file):
                yield name_of(file), home, name


def test_every_object_is_made_in_one_file(files: list[Path]) -> None:
    made: dict[str, set[str]] = {}
    for file in files:
        for name in MADE.findall(code_of(file)):
            made.setdefault(name, set()).add(name_of(file))
    assert len(made) > 500
    assert {name: places for name, places in made.items() if len(places) > 1} == {}


def test_a_folder_is_read_in_one_piece(files: list[Path]) -> None:
    folders = [file.parent.name for file in files]
    changes = [second for first, second in pairwise(["", *folders]) if first != second]
    assert len(changes) == len(set(changes)), changes


def test_no_file_refers_to_a_later_folder(files: list[Path], homes: Mapping[str, str]) -> None:
    folders = list(dict.fromkeys(file.parent.name for file in files))
    rank = {folder: number for number, folder in enumerate(folders)}
    upward = [
        f"{file} uses {name} of {home}"
        for file, home, name in references(files, homes)
        if rank[home.partition("/")[0]] > rank[file.partition("/")[0]]
    ]
    assert upward == []


def test_files_do_not_refer_to_each_other_in_a_circle(files: list[Path], homes: Mapping[str, str]) -> None:
    uses: dict[str, set[str]] = {}
    for file, home, _ in references(files, homes):
        uses.setdefault(file, set()).add(home)
    circle: list[str] = []
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle, f"these files refer to each other in a circle: {' → '.join(circle)}"
