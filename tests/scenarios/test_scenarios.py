"""Runs every scenario file, half of them on one stack and half on another at the same time: a scenario mostly waits.

Each file is a separate test that reads its lines from the run.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.yaml"))
LIMIT_S = 600

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(LIMIT_S + 60)]

WRONG = """name: a wrong expectation
accounts: {M: {}, F: {}}
copiers: [{master: M, follower: F}]
steps:
  - M: {open: buy, symbol: EURUSD, lots: 0.1}
  - expect: {F: [{symbol: EURUSD, lots: 0.2}]}
  - expect_sent: {F: 3}
  - expect_reasons: {F: {below_min: 1}}
"""


def run(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from agent.cli import main; main()", "scenario", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=dict(os.environ))


@dataclass(frozen=True, slots=True)
class Played:
    """What the command printed for the scenarios, and how it ended where one of them had to fail."""

    lines: list[str]
    errors: str
    status_with_failure: int

    def lines_of(self, name: str) -> list[str]:
        return [line for line in self.lines if f"{name}:" in line]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All scenarios and one that must fail. The command prints one line per expectation."""
    wrong = tmp_path_factory.mktemp("wrong") / "wrong.yaml"
    wrong.write_text(WRONG)
    with ThreadPoolExecutor(2) as halves:
        first, second = halves.map(lambda files: run(*files), (FILES[::2], [*FILES[1::2], wrong]))
    lines = [*first.stdout.splitlines(), *second.stdout.splitlines()]
    return Played(lines, first.stderr[-2000:] + second.stderr[-2000:], second.returncode)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path, played: Played) -> None:
    lines = played.lines_of(str(file))
    assert lines, played.errors
    assert [line for line in lines if not line.startswith("ok ")] == []


def test_a_wrong_expectation_fails_and_tells_both_sides(played: Played) -> None:
    lines = played.lines_of("wrong.yaml")
    assert played.status_with_failure == 1
    assert [line.split()[0] for line in lines] == ["FAILED", "FAILED", "FAILED"]
    assert "expected [symbol EURUSD lots 0.2], is [buy 0.1" in lines[0]
    assert "expected 3 orders, is 1 orders" in lines[1]
    assert "expected {below_min: 1}, is {}" in lines[2]


def test_a_file_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("accounts: {M: {}}\nsteps:\n  - M: {jump: high}\n")
    result = run(file)
    assert result.returncode != 0
    assert f"{file}:3: a step of M has no key 'jump'" in result.stderr
    assert result.stdout == ""


def test_a_platform_that_cannot_be_played_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mt5.yaml"
    file.write_text("accounts:\n  M: {platform: mt5}\nsteps: []\n")
    result = run(file)
    assert result.returncode != 0
    assert "TC641" in result.stderr
    assert "mt5" in result.stderr
