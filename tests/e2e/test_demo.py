"""The whole product: demo and replay, started as a person would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-c", "from agent.cli import main; main()"]
STATEMENT = """ticket,open_time,side,lots,symbol,open_price,sl,tp,close_time,close_price,commission,swap,profit,comment
1,2025.01.02 10:00:00,buy,0.30,EURUSD.z,1.10000,1.09000,0,2025.01.02 11:00:00,1.10100,0,0,0,to #2
2,2025.01.02 10:00:00,buy,0.20,EURUSD.z,1.10000,1.09000,0,2025.01.02 12:00:00,1.09000,0,0,0,[sl]
3,2025.01.02 10:30:00,sell,1.00,dax40-z,18000.5,0,0,,18010.0,0,0,0,
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=280, check=False)


def figures(file: Path) -> dict[str, object]:
    return cast("dict[str, object]", json.loads(file.read_text()))


def assert_nothing_wrong(found: dict[str, object]) -> None:
    assert found["divergence"] == {"missing": 0, "orphan": 0, "volume_mismatch": 0}
    assert found["duplicates"] == 0
    assert found["unexplained"] == 0
    assert found["success_rate"] == 1.0


def test_the_demo_ends_by_itself_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = run("demo", "--seconds", "6", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "login" in result.stdout
    found = figures(file)
    assert set(found) == {
        "seconds", "events", "trades", "executions", "not_copied", "skipped", "success_rate", "latency_ms", "ours_ms",
        "whole_ms", "stages_ms",
        "divergence", "duplicates", "unexplained", "platforms", "vps", "verdict",
    }  # fmt: skip
    assert set(cast("dict[str, object]", found["executions"])) == {
        "completed",
        "rejected",
        "expired",
        "cancelled",
        "open",
    }
    assert set(cast("dict[str, object]", found["latency_ms"])) == {"p50", "p95", "p99", "max", "n"}
    for sum_of_stages in ("ours_ms", "whole_ms"):
        assert set(cast("dict[str, object]", found[sum_of_stages])) == {"p50", "p95", "p99", "max", "n"}
    stages = cast("dict[str, object]", found["stages_ms"])
    assert list(stages) == ["detect", "request", "lock", "plan", "deliver", "lane", "broker"]
    assert None not in stages.values()
    assert found["vps"] == 3
    assert_nothing_wrong(found)


def test_a_statement_is_replayed_to_its_end_without_divergence(tmp_path: Path) -> None:
    statement, file = tmp_path / "statement.csv", tmp_path / "figures.json"
    statement.write_text(STATEMENT)
    result = run("demo", "--replay", str(statement), "--speed", "max", "--json", str(file))
    assert result.returncode == 0, result.stderr
    found = figures(file)
    assert found["events"] == 4
    assert_nothing_wrong(found)


def test_a_file_that_is_not_a_statement_is_refused_and_nothing_is_started(tmp_path: Path) -> None:
    statement = tmp_path / "statement.csv"
    statement.write_text(STATEMENT.replace("1.00,dax40", "much,dax40"))
    result = run("demo", "--replay", str(statement))
    assert result.returncode == 1
    assert "statement.csv:4, column lots" in result.stderr
    assert "starting" not in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_demo_and_leaves_nothing_running(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--json", str(file)],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=dict(os.environ),
        )
        family: dict[int, psutil.Process] = {}
        end = time.monotonic() + 120
        while "the master trades" not in (tmp_path / "output").read_text():
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < end, "the demo did not begin"
            family.update({child.pid: child for child in psutil.Process(process.pid).children(recursive=True)})
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "output").read_text()
    assert family
    _, alive = psutil.wait_procs(family.values(), timeout=10)
    assert alive == []
    assert_nothing_wrong(figures(file))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break differently there")
def test_a_reader_that_goes_away_ends_the_demo_like_ctrl_c(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with (tmp_path / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--json", str(file)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            assert any(line.startswith("login") for line in process.stdout)
            family = psutil.Process(process.pid).children(recursive=True)
            process.stdout.close()
            assert process.wait(timeout=120) == 0
        finally:
            process.kill()
        errors.seek(0)
        assert errors.read() == f"results written to {file}\n"
    assert figures(file)["divergence"] == {"missing": 0, "orphan": 0, "volume_mismatch": 0}
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
