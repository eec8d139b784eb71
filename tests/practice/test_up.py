"""`tradecopier up` as a person runs it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from agent.failure import Failure
from agent.stack.postgres import free_port, require_port

COMMAND = [sys.executable, "-c", "from agent.cli import main; main()", "up", "--fast", "--json"]


def _up(folder: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "--data", str(folder), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


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


def test_a_port_that_is_taken_is_one_readable_line_before_anything_starts(tmp_path: Path) -> None:
    """Even when another stack answers on the port."""
    with _up(tmp_path / "first", "--no-practice") as first:
        assert first.stdout is not None
        port = json.loads(first.stdout.readline())["url"].rpartition(":")[2]
        command = [*COMMAND, "--data", str(tmp_path / "second"), "--port", port]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        os.kill(first.pid, signal.SIGINT)
        first.communicate(timeout=30)
    assert second.returncode == 1
    assert f"TC629: port {port} is in use" in second.stderr
    assert second.stderr.count("\n") == 1
    assert not (tmp_path / "second").exists()


def test_a_port_without_the_right_to_it_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(Failure, match="port 80 may not be used by this user"):
        require_port(80)


def _started(folder: Path, *options: str) -> dict[str, object]:
    """Start a stack, read what it prints, and stop it."""
    with _up(folder, *options) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors
    found: dict[str, object] = json.loads(line)
    return found


def test_logins_and_port_stay_the_same_over_restarts(tmp_path: Path) -> None:
    first, second = (_started(tmp_path / "stack", "--no-practice") for _ in range(2))
    assert (first["logins"], first["url"]) == (second["logins"], second["url"])
    # a port that was chosen is kept, too
    port = free_port()
    assert _started(tmp_path / "stack", "--no-practice", "--port", str(port))["url"] == f"http://127.0.0.1:{port}"
    assert _started(tmp_path / "stack", "--no-practice")["url"] == f"http://127.0.0.1:{port}"


def test_a_kept_port_that_another_program_has_taken_is_one_readable_line(tmp_path: Path) -> None:
    """An agent that is enrolled at the old address would not find the stack at another one."""
    folder = tmp_path / "stack"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (folder / "port").write_text(f"{port}\n")
        done = subprocess.run(
            [*COMMAND, "--data", str(folder)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert f"TC629: port {port}, which this stack had last time, is in use by another program" in done.stderr
    assert done.stderr.count("\n") == 1
