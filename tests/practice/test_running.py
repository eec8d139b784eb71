"""How a command of another terminal finds the stack that runs."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from agent.failure import Failure
from agent.practice import running
from agent.practice.desk import Desk
from agent.practice.running import RunningStack


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Something that answers as a running stack does."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(running, "default_folder", lambda: tmp_path / "stack")
    return tmp_path


def note(folder: Path, url: str) -> RunningStack:
    folder.mkdir()
    stack = RunningStack(url=url, publishable_key="k", email="e", password="p")
    stack.write(folder)
    return stack


def test_the_only_one_that_runs_is_found_beside_one_that_was_killed(base: Path, url: str) -> None:
    note(base / "stack", "http://127.0.0.1:1")
    second = note(base / "stack-2", url)
    assert running.find(None) == second
    assert running.find(base / "stack-2") == second
    assert (base / "stack-2" / "running.json").stat().st_mode & 0o077 == 0


def test_of_several_one_must_be_named(base: Path, url: str) -> None:
    first = note(base / "stack", url)
    note(base / "stack-2", url)
    with pytest.raises(Failure, match=r"2 stacks are running: .*stack, .*stack-2"):
        running.find(None)
    assert running.find(base / "stack") == first


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": 1}'])
def test_a_file_that_cannot_be_read_is_no_running_stack(base: Path, text: str) -> None:
    (base / "stack").mkdir()
    (base / "stack" / "running.json").write_text(text)
    with pytest.raises(Failure, match="no stack is running"):
        running.find(None)


def test_a_stack_that_ended_is_forgotten(base: Path, url: str) -> None:
    note(base / "stack", url)
    running.forget(base / "stack")
    running.forget(base / "stack")
    with pytest.raises(Failure, match="no stack is running"):
        running.find(None)


async def test_a_stack_without_practice_accounts_says_so(base: Path, url: str) -> None:
    note(base / "stack", url)
    with pytest.raises(Failure, match="runs without practice accounts"):
        async with Desk.open(base / "stack"):
            pass
