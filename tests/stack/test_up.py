"""`tradecopier up` as a person runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

COMMAND = [sys.executable, "-c", "from agent.cli import main; main()", "up", "--fast", "--json"]


def _up(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([*COMMAND, "--data", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_run_at_once_and_end_on_ctrl_c(tmp_path: Path) -> None:
    stacks = [_up(tmp_path / "one"), _up(tmp_path / "two")]
    try:
        facts = []
        for process in stacks:
            assert process.stdout is not None
            facts.append(json.loads(process.stdout.readline()))
        assert facts[0]["url"] != facts[1]["url"]
        for fact in facts:
            for email, password in fact["logins"].items():
                answer = httpx.post(
                    f"{fact['url']}/auth/v1/token?grant_type=password",
                    json={"email": email, "password": password},
                    headers={"apikey": fact["publishable_key"]},
                    timeout=20,
                )
                assert answer.status_code == 200, answer.text
        third = subprocess.run(
            [*COMMAND, "--data", str(tmp_path / "one")], capture_output=True, text=True, timeout=60, check=False
        )
        assert third.returncode == 1
        assert "TC626" in third.stderr
        family = [child for process in stacks for child in psutil.Process(process.pid).children(recursive=True)]
        for process in stacks:
            os.kill(process.pid, signal.SIGINT)
        assert [process.wait(30) for process in stacks] == [0, 0]
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []
    finally:
        for process in stacks:
            process.kill()
            process.communicate()


def test_logins_stay_the_same_over_restarts(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with _up(tmp_path / "stack") as process:
            assert process.stdout is not None
            seen.append(json.loads(process.stdout.readline())["logins"])
            os.kill(process.pid, signal.SIGINT)
            process.communicate(timeout=30)
            assert process.returncode == 0
    assert seen[0] == seen[1]
