"""List which test shows which row of docs/scenarios.md: `make scenarios`. Runs no tests.

Prints every row with the tests and scenario files that are marked with it. Exit status 1 when a row has none, when a
test names an unknown row, or when the list differs from another table (`--against FILE`, whose rows begin with their
ids).
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.scenario.grammar import read_scenario

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs" / "scenarios.md"
ROW = re.compile(r"^\| *([A-Z]\d+) *\|(.*)\|\s*$", re.MULTILINE)


@dataclass(slots=True)
class Shown:
    """`tests`: row id → names of the tests for it, without repetition, in the order of collection."""

    tests: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rows: Iterable[str], name: str) -> None:
        for row in rows:
            names = self.tests.setdefault(row, [])
            if name not in names:
                names.append(name)


class Collector:
    """A pytest plugin that reads the marks of the collected tests."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            # a test that is skipped or expected to fail shows nothing
            if item.get_closest_marker("skip") or item.get_closest_marker("xfail"):
                continue
            for mark in item.iter_markers("covers"):
                self.shown.add((str(row) for row in mark.args), item.nodeid.partition("[")[0])


def read_rows(path: Path) -> dict[str, str]:
    """Row ids of a Markdown table in order, each with its text. A duplicate id is an error."""
    rows: dict[str, str] = {}
    for row, rest in ROW.findall(path.read_text(encoding="utf-8")):
        if row in rows:
            raise SystemExit(f"{path}: the row {row} appears twice.")
        rows[row] = " → ".join(cell.strip() for cell in rest.split(" | "))
    return rows


def collect(folder: Path) -> Shown:
    """Collect the marks of the tests in a folder. Raises SystemExit when the tests cannot be collected."""
    shown = Shown()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main(
            ["--collect-only", "-qq", "-p", "no:cacheprovider", str(folder)], plugins=[Collector(shown)]
        )
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"The tests cannot be collected:\n{said.getvalue()[-4000:]}")
    for file in sorted(folder.rglob("*.yaml")):
        shown.add(read_scenario(file).covers, file.relative_to(folder.parent).as_posix())
    return shown


def table(rows: Mapping[str, str], shown: Shown) -> list[str]:
    """One line per row and test: id, behaviour, test."""
    width = 76
    lines = []
    for row, text in rows.items():
        short = text if len(text) <= width else text[: width - 1] + "…"
        for number, name in enumerate(shown.tests.get(row) or ["-- blank --"]):
            lines.append(f"{row if not number else '':4} {short if not number else '':{width}}  {name}".rstrip())
    return lines


def faults(rows: Mapping[str, str], shown: Shown, against: Mapping[str, str] | None) -> list[str]:
    """The problems found, one sentence each."""
    found = []
    if blank := [row for row in rows if not shown.tests.get(row)]:
        found.append(f"{len(blank)} of {len(rows)} rows have no test: {', '.join(blank)}.")
    if strange := sorted(set(shown.tests) - set(rows)):
        found.append(
            f"Tests name rows that {ROWS.name} does not have:"
            f" {', '.join(f'{row} ({shown.tests[row][0]})' for row in strange)}."
        )
    if against is not None and (missing := [row for row in against if row not in rows]):
        found.append(f"Rows of the other list that {ROWS.name} does not have: {', '.join(missing)}.")
    if against is not None and (more := [row for row in rows if row not in against]):
        found.append(f"Rows of {ROWS.name} that the other list does not have: {', '.join(more)}.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Print every row of docs/scenarios.md with the tests that show it.")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare the ids with those of another table")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", metavar="FOLDER", help="where the tests are")
    options = parser.parse_args()
    rows = read_rows(ROWS)
    shown = collect(options.tests.resolve())
    against = None if options.against is None else read_rows(options.against)
    print("\n".join(table(rows, shown)))
    wrong = faults(rows, shown, against)
    if wrong:
        sys.exit("\n" + "\n".join(wrong))
    print(f"\nEach of the {len(rows)} rows is shown by a test.")


if __name__ == "__main__":
    main()
