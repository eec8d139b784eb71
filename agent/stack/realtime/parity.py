"""`python -m agent.stack.realtime.parity`: runs the tests and lists every visible fact × client with the tests for it.

Exits with 1 when a cell is blank (no test), or when a test for a fact failed or was skipped. A test names its facts
with `@pytest.mark.fact(id)`; the client is that of its `client` parameter, or is given with the mark.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from agent.stack.realtime.facts import CLIENTS, Client, Fact
from agent.stack.realtime.facts import FACTS as REALTIME
from agent.stack.rest.facts import FACTS as API

if TYPE_CHECKING:
    import pytest

_TESTS = Path(__file__).resolve().parents[3] / "tests"
FOLDERS = (_TESTS / "realtime", _TESTS / "stack" / "official")
FACTS = (*REALTIME, *API)
Cell = tuple[str, Client]


@dataclass(slots=True, eq=False)
class Collector:
    """A pytest plugin that records which test shows which fact, and the test's result."""

    shows: dict[str, list[Cell]] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def pytest_collection_finish(self, session: "pytest.Session") -> None:
        for item in session.items:
            cells = list(_cells(item))
            if cells:
                self.shows[item.nodeid] = cells

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)
        elif report.when == "call":
            self.passed.add(report.nodeid)

    def tests_of(self, cell: Cell) -> list[str]:
        return [node for node, cells in self.shows.items() if cell in cells]

    def proven(self, cell: Cell) -> bool:
        """Whether at least one test shows it, and every test for it passed."""
        tests = self.tests_of(cell)
        return bool(tests) and all(node in self.passed and node not in self.failed for node in tests)


def _cells(item: "pytest.Item") -> Iterator[Cell]:
    callspec = getattr(item, "callspec", None)
    parameter = callspec.params.get("client") if callspec is not None else None
    for mark in item.iter_markers("fact"):
        client = mark.kwargs.get("client", parameter)
        if client in CLIENTS:
            yield str(mark.args[0]), client


def unknown_facts(collector: Collector, facts: Sequence[Fact] = FACTS) -> list[str]:
    """Ids that tests name and that are missing from the list."""
    known = {fact.id for fact in facts}
    return sorted({fact for cells in collector.shows.values() for fact, _ in cells} - known)


def report(collector: Collector, console: Console, facts: Sequence[Fact] = FACTS) -> int:
    """Print the table. Returns the number of cells that are blank or not proven."""
    table = Table("fact", "what a client can see", *CLIENTS, title="Parity with hosted", show_lines=False)
    missing = 0
    for fact in facts:
        cells = []
        for client in CLIENTS:
            text, good = _cell(collector, fact, client)
            missing += not good
            cells.append(text)
        table.add_row(fact.id, fact.text, *cells)
    console.print(table)
    return missing


def _cell(collector: Collector, fact: Fact, client: Client) -> tuple[str, bool]:
    if fact.only is not None and fact.only != client:
        return f"n/a: {fact.because}", bool(fact.because)
    tests = collector.tests_of((fact.id, client))
    if not tests:
        return "[bold red]BLANK[/]", False
    names: dict[str, int] = defaultdict(int)
    for node in tests:
        names[node.rpartition("::")[2].partition("[")[0]] += 1
    text = ", ".join(names)
    return (text, True) if collector.proven((fact.id, client)) else (f"[bold red]FAILED[/] {text}", False)


@click.command(help=__doc__)
@click.option("--width", default=170, show_default=True, help="Columns of the table when the output is no terminal.")
def main(width: int) -> None:
    import pytest

    collector = Collector()
    console = Console(width=None if sys.stdout.isatty() else width)
    console.print(f"Running the tests with both official clients: {len(FACTS)} facts. About two minutes.")
    status = pytest.main([*map(str, FOLDERS), "-q", "--no-header", "-p", "no:cacheprovider"], plugins=[collector])
    missing = report(collector, console)
    unknown = unknown_facts(collector)
    for fact in unknown:
        console.print(f"[bold red]A test shows {fact!r}, which agent/stack/realtime/facts.py does not list.[/]")
    proven = sum(collector.proven((fact.id, client)) for fact in FACTS for client in CLIENTS)
    console.print(f"{proven} cells shown by passing tests, {missing} blank or failed; pytest ended with {int(status)}.")
    sys.exit(1 if missing or unknown or status else 0)


if __name__ == "__main__":
    main()
