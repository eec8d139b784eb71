"""Logs, logins and keys are readable by their owner only (0600), whatever the umask and their previous mode."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agent import private_file
from agent.stack.child_process import LARGEST_LOG_BYTES, Child
from agent.stack.keys import Keys
from agent.stack.passwords import FILE, SHARED_FILE, Passwords
from agent.stack.stack import Stack

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


@pytest.fixture(params=[0o000, 0o022, 0o177])
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """Restored after `tmp_path` was removed: under the last of these umasks its owner could not enter it."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def run(log: Path) -> None:
    child = Child([sys.executable, "-c", "print('said')"], log=log)
    assert child._guard.wait(30) == 0
    child.stop()


def test_a_new_log_is_private_under_any_umask(umask: int, tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    run(log)
    assert (mode(log), log.read_text()) == ("0o600", "said\n")


def test_a_log_that_others_could_read_is_tightened_and_kept(umask: int, tmp_path: Path) -> None:
    log, old = tmp_path / "child.log", tmp_path / "child.log.1"
    for file in (log, old):
        file.write_text("before\n")
        file.chmod(0o666)
    run(log)
    assert (mode(log), mode(old), log.read_text()) == ("0o600", "0o600", "before\nsaid\n")


def test_a_log_that_is_set_aside_is_tightened(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_bytes(b"x" * (LARGEST_LOG_BYTES + 1))
    log.chmod(0o644)
    run(log)
    assert (mode(log), mode(tmp_path / "child.log.1")) == ("0o600", "0o600")


def test_a_secret_is_written_anew_and_never_into_a_file_that_others_hold_open(umask: int, tmp_path: Path) -> None:
    file = tmp_path / "logins.json"
    file.write_text("old")
    file.chmod(0o666)
    with file.open() as held:
        private_file.write(file, "secret")
        assert held.read() == "old"
    assert (mode(file), file.read_text(), list(tmp_path.iterdir())) == ("0o600", "secret", [file])


def test_keys_that_others_could_read_are_tightened(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = Keys.load(file)
    file.chmod(0o644)
    assert Keys.load(file) == keys
    assert mode(file) == "0o600"


@pytest.mark.parametrize("name", [FILE, SHARED_FILE])
def test_passwords_that_others_could_read_are_tightened(tmp_path: Path, name: str) -> None:
    Passwords.generate().save(tmp_path)
    (tmp_path / SHARED_FILE).write_text("shared")
    (tmp_path / name).chmod(0o644)
    assert Passwords.load(tmp_path) is not None
    assert mode(tmp_path / name) == "0o600"


async def test_every_log_of_the_stack_is_private(stack: Stack) -> None:
    """Gateway, Auth and REST, functions, Postgres: every process that writes files has been used once."""
    stack.show_login("somebody@example.test", "swordfish")
    headers = {"apikey": stack.publishable_key}
    async with aiohttp.ClientSession(stack.url, headers=headers) as http:
        for path in ("/rest/v1/system_config", "/auth/v1/settings", "/functions/v1/enroll"):
            async with http.get(path) as response:
                await response.read()
    folders = {stack.data, stack.database.server.data}
    logs = [file for folder in folders for file in folder.iterdir() if ".log" in file.name]
    assert {file.name for file in logs} >= {"gateway.log", "auth.log", "functions.log", "postgres.log"}
    files = [*logs, stack.data / "keys.json", stack.data / "demo_login.json"]
    assert {file.name: mode(file) for file in files} == {file.name: "0o600" for file in files}
