"""`make scenarios`: every behaviour of docs/scenarios.md has a test that says it shows it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = (ROOT / "docs" / "scenarios.md").read_text()

SHOWING = """
import pytest

@pytest.mark.covers("L1", "L2")
def test_two_rows(): ...

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.covers("L4"))])
def test_one_of_its_examples(n): ...

@pytest.mark.skip(reason="later")
@pytest.mark.covers("L5")
def test_that_is_skipped(): ...

@pytest.mark.xfail
@pytest.mark.covers("L6")
def test_that_fails(): ...
"""
PLAYED = """covers: [P1]
accounts: {M: {}}
steps: []
"""


def scenarios(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "scenarios.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)


def shown(printed: str) -> dict[str, str]:
    """Row id → the first test printed beside it."""
    return {line.split()[0]: line.split()[-1] for line in printed.splitlines() if line and line[0] in "LPSXR"}


def test_every_row_of_the_list_is_shown_by_a_test() -> None:
    done = scenarios()
    assert done.returncode == 0, done.stderr
    assert len(shown(done.stdout)) == sum(ROWS.count(f"\n| {kind}") for kind in "LPSXR")


def test_a_row_without_a_test_is_blank_and_fails(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SHOWING)
    (tmp_path / "played.yaml").write_text(PLAYED)
    done = scenarios("--tests", tmp_path)
    lines = shown(done.stdout)
    assert done.returncode == 1
    assert lines["L1"] == lines["L2"]
    assert lines["L2"].endswith("test_some.py::test_two_rows")
    assert lines["L4"].endswith("test_some.py::test_one_of_its_examples")
    assert lines["P1"].endswith("played.yaml")
    # what is skipped or expected to fail shows nothing
    assert [lines[row] for row in ("L5", "L6", "L8")] == ["--", "--", "--"]
    assert "rows have no test: L5, L6, L8" in done.stderr


def test_a_row_that_is_not_in_the_list_is_named_with_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text('import pytest\n\n@pytest.mark.covers("Z9")\ndef test_x(): ...\n')
    done = scenarios("--tests", tmp_path)
    assert done.returncode == 1
    assert "does not have: Z9 (" in done.stderr
    assert "test_some.py::test_x)" in done.stderr


def test_another_list_of_the_same_rows_is_compared(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("| L1 | a | b |\n| L3 | a | b |\n")
    done = scenarios("--tests", tmp_path, "--against", other)
    assert "Rows of the other list that scenarios.md does not have: L3." in done.stderr
    assert "Rows of scenarios.md that the other list does not have: L2, L4" in done.stderr


def test_tests_that_cannot_be_collected_are_an_error_not_a_blank(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("import nothing_of_this_name\n")
    done = scenarios("--tests", tmp_path)
    assert done.returncode == 1
    assert "cannot be collected" in done.stderr
    assert done.stdout == ""
