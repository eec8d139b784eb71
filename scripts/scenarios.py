"""Which test shows which row of docs/scenarios.md: `make scenarios`. Nothing is run.

Prints every row with the tests and scenario files that say they show it. Exit status 1 when a row has none, when a test names a
row that is not in the list, or (`--against FILE`, another table whose rows begin with their ids) when the two lists differ.
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
    """`tests`: row id → names of what shows it, each once, in order of collection."""

    tests: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rows: Iterable[str], name: str) -> None:
        for row in rows:
            names = self.tests.setdefault(row, [])
            if name not in names:
                names.append(name)


class Collector:
    """A pytest plugin that reads the marks of what was collected."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            # what is never run, or is expected to fail, shows nothing
            if item.get_closest_marker("skip") or item.get_closest_marker("xfail"):
                continue
            for mark in item.iter_markers("covers"):
                self.shown.add((str(row) for row in mark.args), item.nodeid.partition("[")[0])


def read_rows(path: Path) -> dict[str, str]:
    """Row ids of a Markdown table in their order, each with its text; an id that stands twice is an error."""
    rows: dict[str, str] = {}
    for row, rest in ROW.findall(path.read_text(encoding="utf-8")):
        if row in rows:
            raise SystemExit(f"{path}: the row {row} stands twice.")
        rows[row] = " → ".join(cell.strip() for cell in rest.split(" | "))
    return rows


def collect(folder: Path) -> Shown:
    """What the tests of a folder say they show. Raises SystemExit when they cannot be collected."""
    shown = Shown()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", str(folder)], plugins=[Collector(shown)])
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
    """What is wrong, one sentence each."""
    found = []
    if blank := [row for row in rows if not shown.tests.get(row)]:
        found.append(f"{len(blank)} of {len(rows)} rows are shown by no test: {', '.join(blank)}.")
    if strange := sorted(set(shown.tests) - set(rows)):
        found.append(
            f"Tests name rows that {ROWS.name} does not have: {', '.join(f'{s} ({shown.tests[s][0]})' for s in strange)}."
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
